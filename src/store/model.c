/*-------------------------------------------------------------------------
 *
 * model.c
 *		Keeps track of how vectors were fetched, and stops runs that fetch
 *		vectors which the store does not accept.
 *
 * For each profile, the table of profiles records the dimension of its
 * vectors, the sections that were requested and for which the API has replied,
 * and a fingerprint of the API key.  A store usually has few different
 * combinations of these values, and an index finds them without reading all
 * profiles.  User-supplied tables may lack these columns.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "compat.h"
#include "store/refresh.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"

/*
 * Number of bytes in a fingerprint.  Four bytes are enough to distinguish the
 * few API keys that are used with one store.
 */
#define FINGERPRINT_BYTES 4

/*
 * Statement that returns the first combination of dimension, account and
 * sections that follows ($1, $2, $3), where $3 is a hash of sections.
 * hrflow_create_store() creates an index on the table of profiles for this
 * order.
 */
static const char next_combination_sql[] =
"SELECT p.dimension, p.account, hash_array_extended(p.sections, 0),"
" p.sections FROM %P AS p WHERE p.sections IS NOT NULL"
" AND p.account IS NOT NULL"
" AND (p.dimension, p.account, hash_array_extended(p.sections, 0))"
" > ($1, $2, $3)"
" ORDER BY p.dimension, p.account, hash_array_extended(p.sections, 0)"
" LIMIT 1";

/*
 * Statement that makes at most $6 profiles of the combination ($1, $2, $3) due
 * at $4, the time when the run began.  $5 is the current time.  Only profiles
 * with state 'ok' that would be due later, and are neither claimed nor locked,
 * become due.  The limit $6 is the number of profiles that the run claims
 * next: further profiles might be claimed by another run, which might not
 * request the sections that the profiles lack.  Profiles with an error are
 * skipped if they will be due within a day, because they may have been
 * postponed because of the error (see MAX_LONG_POSTPONEMENT), and must not
 * become due earlier.
 */
static const char make_due_sql[] =
"WITH lacking AS MATERIALIZED"
" (SELECT p.source_id AS s, p.%I AS i FROM %P AS p"
" WHERE p.sections IS NOT NULL AND p.dimension = $1 AND p.account = $2"
" AND hash_array_extended(p.sections, 0) = $3"
" AND p.state = 'ok' AND p.due_at > $4"
" AND (p.last_error IS NULL OR p.due_at > $5 + interval '24 hours')"
" AND (p.lease_until IS NULL OR p.lease_until <= $5)"
" LIMIT $6 FOR NO KEY UPDATE SKIP LOCKED)"
" UPDATE %P AS p SET due_at = $4 FROM lacking AS l"
" WHERE p.source_id = l.s AND p.%I = l.i";

/*
 * Statement that counts the profiles whose vectors have the dimension $1, but
 * stops counting at $2.
 */
static const char count_dimension_sql[] =
"SELECT count(*) FROM (SELECT FROM %P AS p WHERE p.sections IS NOT NULL"
" AND p.dimension = $1 LIMIT $2) AS d";

/* Maximum number of profiles to count for each dimension. */
#define MOST_COUNTED 1000

/*
 * Statement that counts the errors, among the latest $2, that begin with one
 * of the texts in $1.  If there are any, we assume that the last run was
 * stopped because fetched vectors could not be stored.
 */
static const char was_stopped_sql[] =
"SELECT count(*) FROM (SELECT p.last_error FROM %P AS p"
" WHERE p.last_error IS NOT NULL"
" ORDER BY %F DESC NULLS LAST LIMIT $2) AS e"
" JOIN unnest($1) AS b(beginning) ON starts_with(e.last_error, b.beginning)";

#define FOREIGN_ERROR "The vectors are of another dimension than the store's"
#define REFUSED_ERROR "Nothing could be stored"

/*
 * Maximum number of profiles that are in flight, or whose vectors are to be
 * stored, until the run has stored the vectors of a profile.  It limits the
 * number of requests that are paid for in vain if the store accepts no
 * vectors.  If "is_wary" is set, the maximum is 1 instead.
 */
#define MAX_TRIAL 32

/*
 * Stop the run once the store has rejected the vectors or states of this many
 * profiles without accepting any, or once this many profiles have had vectors
 * of the wrong dimension without one that fits.  If the last run was stopped
 * for either reason, a single such profile is enough until the store has
 * accepted vectors.
 */
#define MIN_REFUSED 8

/*
 * A combination of dimension, API key and sections with which at least one
 * profile of a store was fetched.
 */
typedef struct Combination
{
	int			dimension;
	char	   *account;
	int64		hash;			/* hash of the column "sections" */
	List	   *sections;		/* names of sections, and of single elements
								 * such as "experiences[0]" */
} Combination;

/*
 * Return a fingerprint of an API key, which does not reveal the key: the
 * beginning of its SHA-256 hash, in hexadecimal.
 */
static char *
get_fingerprint(const char *api_key)
{
	uint8		digest[PG_SHA256_DIGEST_LENGTH];
	char	   *account = palloc0(2 * FINGERPRINT_BYTES + 1);
	pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA256);

	if (pg_cryptohash_init(context) < 0 ||
		pg_cryptohash_update(context, (const uint8 *) api_key,
							 strlen(api_key)) < 0 ||
		pg_cryptohash_final(context, digest, sizeof(digest)) < 0)
		elog(ERROR, "could not compute the SHA-256 hash of the API key");
	pg_cryptohash_free(context);
	hex_encode((const char *) digest, FINGERPRINT_BYTES, account);
	return account;
}

/*
 * ------------------------------------------------------------------------
 * Sections and dimensions
 * ------------------------------------------------------------------------
 */

/*
 * Return the names of sections and of single elements in the column
 * "sections", as a list of strings.  "array" may be NULL.
 */
static List *
read_sections(ArrayType *array)
{
	List	   *names = NIL;
	Datum	   *values;
	bool	   *nulls;
	int			n;

	if (array == NULL)
		return NIL;
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls,
					  &n);
	for (int i = 0; i < n; i++)
	{
		if (!nulls[i])
			names = lappend(names, TextDatumGetCString(values[i]));
	}
	return names;
}

static bool
has_name(const List *names, const char *name)
{
	ListCell   *cell;

	foreach(cell, names)
	{
		if (strcmp(lfirst(cell), name) == 0)
			return true;
	}
	return false;
}

/*
 * Does a run request a section that is not in the list, or an element of which
 * neither the name nor the section is in the list?
 */
static bool
lacks_section(const HrflowRun *run, const List *sections)
{
	ListCell   *cell;

	foreach(cell, run->parts)
	{
		const HrflowPart *part = lfirst(cell);

		if (!has_name(sections, part->name) &&
			!(part->is_element && has_name(sections, part->section)))
			return true;
	}
	return false;
}

static List *
add_name(List *names, char *name)
{
	return has_name(names, name) ? names : lappend(names, name);
}

static int
compare_names(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}

/*
 * Return the new value of the column "sections" for a profile for which the
 * API has replied, as the text form of an array.  To the names in the current
 * value, it adds the names of what this run has requested or, if "fields" was
 * not given and all sections were requested at once, of the sections in the
 * reply.  Returns NULL to leave the column unchanged.  The value for a missing
 * profile is always returned, because NULL would clear its column.
 */
char *
hrflow_model_sections(const HrflowRun *run, const HrflowProfile *profile)
{
	List	   *old = read_sections(profile->row.sections);
	List	   *names = list_copy(old);
	Datum	   *values;
	ListCell   *cell;

	if (run->fields == NULL && !profile->no_vector)
	{
		foreach(cell, profile->vectors)
			names = add_name(names, ((HrflowVector *) lfirst(cell))->section);
	}
	else
	{
		foreach(cell, run->parts)
			names = add_name(names, ((HrflowPart *) lfirst(cell))->name);
	}
	if (profile->row.sections != NULL &&
		profile->row.state != HRFLOW_STATE_MISSING &&
		list_length(names) == list_length(old))
		return NULL;

	list_sort(names, compare_names);
	values = palloc(sizeof(Datum) * Max(list_length(names), 1));
	foreach(cell, names)
		values[foreach_current_index(cell)] =
		CStringGetTextDatum(lfirst(cell));
	return OidOutputFunctionCall(F_ARRAY_OUT,
								 PointerGetDatum(construct_array(values,
																 list_length(names),
																 TEXTOID, -1,
																 false,
																 TYPALIGN_INT)));
}

static int
dimension_of(const HrflowVector *vector)
{
	int			ndim = ARR_NDIM(vector->value);

	return ndim == 0 ? 0 : ARR_DIMS(vector->value)[ndim - 1];
}

/*
 * Return the dimension of a profile's first fetched or copied vector, or 0 if
 * there is none.
 */
int
hrflow_model_dimension(const HrflowProfile *profile)
{
	return profile->vectors == NIL ? 0 :
		dimension_of(linitial(profile->vectors));
}

/*
 * ------------------------------------------------------------------------
 * Stores
 * ------------------------------------------------------------------------
 */

/*
 * Find the combination that follows "last", or the first combination if "last"
 * is NULL.  Returns NULL if there are no more.
 */
static Combination *
find_next(const HrflowStore *store, const Combination *last)
{
	HrflowParameters parameters = {0};
	Combination *next;

	hrflow_store_add(&parameters, INT4OID,
					 Int32GetDatum(last ? last->dimension : -1));
	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(last ? last->account : ""));
	hrflow_store_add(&parameters, INT8OID,
					 Int64GetDatum(last ? last->hash : 0));
	if (hrflow_store_execute(hrflow_store_sql(store, next_combination_sql),
							 &parameters) == 0)
		return NULL;
	next = palloc(sizeof(Combination));
	next->dimension = DatumGetInt32(hrflow_store_datum(0, 1));
	next->account = hrflow_store_value(0, 2);
	next->hash = DatumGetInt64(hrflow_store_datum(0, 3));
	next->sections = read_sections(DatumGetArrayTypeP(hrflow_store_datum(0, 4)));
	SPI_freetuptable(SPI_tuptable);
	return next;
}

/*
 * Return the dimension declared for the column "vector", or 0 if the column
 * accepts any dimension.
 */
static int
column_dimension(const HrflowStore *store)
{
	AttrNumber	number = hrflow_store_check_column(store->vectors, "vector",
												   InvalidOid);
	Form_pg_attribute column =
	TupleDescAttr(RelationGetDescr(store->vectors), number - 1);

	/* The type modifier of a pgvector type is the dimension. */
	return store->layout == HRFLOW_LAYOUT_ARRAY ? 0 :
		Max(column->atttypmod, 0);
}

/*
 * Return the dimensions of a store's vectors, except rare dimensions.  A
 * dimension is rare if fewer than half as many profiles have it as have the
 * most frequent dimension, where at most MOST_COUNTED profiles are counted for
 * each.  Vectors with a rare dimension are probably left from an earlier
 * model, or came with a few replies after the model had changed.
 */
static List *
choose_dimensions(const HrflowStore *store, List *dimensions)
{
	int64	   *counts;
	int64		most = 0;
	List	   *chosen = NIL;
	ListCell   *cell;

	if (list_length(dimensions) < 2)
		return dimensions;
	counts = palloc(sizeof(int64) * list_length(dimensions));
	foreach(cell, dimensions)
	{
		HrflowParameters parameters = {0};
		int64		n;

		hrflow_store_add(&parameters, INT4OID, Int32GetDatum(lfirst_int(cell)));
		hrflow_store_add(&parameters, INT8OID, Int64GetDatum(MOST_COUNTED));
		hrflow_store_execute(hrflow_store_sql(store, count_dimension_sql),
							 &parameters);
		n = DatumGetInt64(hrflow_store_datum(0, 1));
		counts[foreach_current_index(cell)] = n;
		most = Max(most, n);
	}
	foreach(cell, dimensions)
	{
		if (2 * counts[foreach_current_index(cell)] >= most)
			chosen = lappend_int(chosen, lfirst_int(cell));
	}
	return chosen;
}

/*
 * Record that vectors of the store were fetched with this API key.
 */
static void
note_account(HrflowRun *run, const char *account)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);

	if (!has_name(run->accounts, account))
		run->accounts = lappend(run->accounts, pstrdup(account));
	MemoryContextSwitchTo(old);
}

/*
 * Set the account of the run to the fingerprint of the API key with which the
 * run will fetch profiles.  If the run has used another key before, no profile
 * fetched with that key is left to be written.
 */
void
hrflow_model_set_account(HrflowRun *run, const char *api_key)
{
	char	   *account = get_fingerprint(api_key);

	if (run->account != NULL && strcmp(run->account, account) == 0)
		return;
	if (run->tallies[HRFLOW_TALLY_OK] > 0)
		note_account(run, run->account);
	run->account = MemoryContextStrdup(run->context, account);
}

/*
 * Do the latest errors of profiles indicate that the last run was stopped
 * because fetched vectors could not be stored?
 */
static bool
was_stopped(const HrflowStore *store)
{
	Datum		beginnings[2];
	HrflowParameters parameters = {0};

	beginnings[0] = CStringGetTextDatum(FOREIGN_ERROR);
	beginnings[1] = CStringGetTextDatum(REFUSED_ERROR);
	hrflow_store_add(&parameters, TEXTARRAYOID,
					 PointerGetDatum(construct_array(beginnings,
													 lengthof(beginnings),
													 TEXTOID, -1, false,
													 TYPALIGN_INT)));
	hrflow_store_add(&parameters, INT8OID, Int64GetDatum(MAX_TRIAL));
	hrflow_store_execute(hrflow_store_sql(store, was_stopped_sql), &parameters);
	return DatumGetInt64(hrflow_store_datum(0, 1)) > 0;
}

/*
 * Set the fields of the run that describe a store's vectors: which dimensions
 * are accepted, with which API keys the vectors were fetched, and whether the
 * last run was stopped because fetched vectors could not be stored.
 */
void
hrflow_model_look(HrflowRun *run, const HrflowStore *store)
{
	Combination *combination = NULL;
	int			dimension = column_dimension(store);
	List	   *dimensions = NIL;
	MemoryContext old;

	while (store->has_fetched_with &&
		   (combination = find_next(store, combination)) != NULL)
	{
		note_account(run, combination->account);
		if (combination->dimension > 0)
			dimensions = list_append_unique_int(dimensions,
												combination->dimension);
	}
	run->is_typed = dimension > 0;
	dimensions = run->is_typed ? list_make1_int(dimension) :
		choose_dimensions(store, dimensions);
	run->is_wary |= was_stopped(store);
	old = MemoryContextSwitchTo(run->context);
	run->dimensions = list_copy(dimensions);
	MemoryContextSwitchTo(old);
}

/*
 * Warn if the run has added vectors to a store that had only vectors fetched
 * with other API keys, which may belong to other accounts.
 */
void
hrflow_model_warn_of_account(const HrflowRun *run)
{
	if (run->tallies[HRFLOW_TALLY_OK] > 0 && run->accounts != NIL &&
		!has_name(run->accounts, run->account))
		ereport(WARNING,
				(errmsg("store %s has vectors that were fetched with another API key",
						run->name),
				 errdetail("Vectors are comparable only if they were made by the same model, and another account may use another model."),
				 errhint("If the key belongs to another account, fetch the vectors again: UPDATE %s SET due_at = now() WHERE state = 'ok' AND account <> '%s'.",
						 run->profiles_name, run->account)));
}

/*
 * Make at most "most" profiles of a combination due, and return their number.
 */
static uint64
make_due(const HrflowRun *run, const HrflowStore *store,
		 const Combination *combination, int64 most)
{
	HrflowParameters parameters = {0};

	hrflow_store_add(&parameters, INT4OID,
					 Int32GetDatum(combination->dimension));
	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(combination->account));
	hrflow_store_add(&parameters, INT8OID, Int64GetDatum(combination->hash));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->started));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(GetCurrentTimestamp()));
	hrflow_store_add(&parameters, INT8OID, Int64GetDatum(most));
	return hrflow_store_execute(hrflow_store_sql(store, make_due_sql),
								&parameters);
}

/*
 * If "fields" was given, find profiles for which not everything that this run
 * requests has been requested before.  Make at most "most" of these profiles
 * due, all of the same combination, and return whether any became due.
 */
bool
hrflow_model_make_due(HrflowRun *run, const HrflowStore *store, int64 most)
{
	Combination *combination = NULL;

	if (!store->has_fetched_with || run->fields == NULL)
		return false;
	while ((combination = find_next(store, combination)) != NULL)
	{
		uint64		n;

		if (!lacks_section(run, combination->sections))
			continue;
		n = make_due(run, store, combination, most);
		run->nlacking += n;
		if (n > 0)
			return true;
	}
	return false;
}

/*
 * ------------------------------------------------------------------------
 * Vectors that the store does not accept
 * ------------------------------------------------------------------------
 */

/*
 * Return how many more profiles may be requested now.  The number is limited
 * until vectors have been stored, so that few requests are paid for if the
 * store accepts no vectors.
 */
int64
hrflow_model_room(const HrflowRun *run)
{
	return run->is_trusted ? PG_INT64_MAX :
		(run->is_wary ? 1 : MAX_TRIAL) - run->ntrial;
}

/*
 * Stop counting a profile as a trial profile.  The number of trial profiles is
 * limited until the store is known to accept vectors; see hrflow_model_room().
 */
void
hrflow_model_end_trial(HrflowRun *run, HrflowProfile *profile)
{
	run->ntrial -= profile->is_trial;
	profile->is_trial = false;
}

/*
 * Should the run be stopped if the vectors of "n" profiles were not accepted?
 */
static bool
are_enough(const HrflowRun *run, int n)
{
	return n >= (run->is_wary && !run->is_trusted ? 1 : MIN_REFUSED);
}

/*
 * Does any fetched vector of a profile have one of the dimensions of the store
 * or, if the column "vector" accepts any dimension, the dimension of the
 * profile's stored vectors?
 */
static bool
fits(const HrflowRun *run, const HrflowProfile *profile)
{
	ListCell   *cell;

	foreach(cell, profile->vectors)
	{
		int			dimension = dimension_of(lfirst(cell));

		if (list_member_int(run->dimensions, dimension) ||
			(!run->is_typed && dimension == profile->old_dimension))
			return true;
	}
	return false;
}

/*
 * Stop the run because of the dimension of the fetched vectors, and discard
 * the vectors that were held back.
 */
static void
stop_for_dimension(HrflowRun *run)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);

	if (!run->is_foreign)
	{
		HrflowProfile *profile = dlist_head_element(HrflowProfile, node,
													&run->foreign);

		run->is_foreign = run->is_stopping = true;
		run->stop = HRFLOW_STOP_NOT_KEPT;
		run->stop_code = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
		run->stop_reason = psprintf("the API returned vectors of %d dimensions, and those of the store have %d",
									hrflow_model_dimension(profile),
									linitial_int(run->dimensions));
		run->stop_hint = _("If the model has changed, create another store, refresh it, and drop this one.  Otherwise, check \"hrflow_embed.base_url\" and the API key.");
	}
	MemoryContextSwitchTo(old);

	while (!dlist_is_empty(&run->foreign))
	{
		HrflowProfile *profile = dlist_head_element(HrflowProfile, node,
													&run->foreign);

		MemoryContextSwitchTo(profile->context);
		profile->status = HRFLOW_INVALID_VECTOR;
		profile->error = psprintf(FOREIGN_ERROR ": %d instead of %d",
								  hrflow_model_dimension(profile),
								  linitial_int(run->dimensions));
		MemoryContextSwitchTo(old);
		profile->vectors = NIL;
		profile->is_postponed = true;
		run->nrefused++;
		hrflow_state_arrive(run, profile);
	}
	run->nforeign = 0;
}

/*
 * Release the profiles that were held back because of their dimension, so that
 * they are written.  Called when a fetched vector fits, which shows that the
 * mismatch does not affect all profiles.
 */
static void
clear_foreign(HrflowRun *run)
{
	while (!dlist_is_empty(&run->foreign))
		hrflow_state_arrive(run, dlist_head_element(HrflowProfile, node,
													&run->foreign));
	run->nforeign = 0;
}

/*
 * Called when all requests for a profile are complete, or have been given up.
 * Returns false if the profile has no fetched vectors, if the run accepts any
 * dimension, or if one of the vectors fits the store; also if a vector that
 * fits has arrived since the profile was requested, unless the run has been
 * stopped for the dimension of vectors.
 *
 * Otherwise returns true, and moves the profile to the list "foreign", in
 * which profiles are held back until others show whether the mismatch affects
 * all.  Once enough profiles are held back, stops the run, and moves them,
 * without their vectors, to the list "arrived"; all such profiles that follow
 * are moved there, too.
 */
bool
hrflow_model_hold(HrflowRun *run, HrflowProfile *profile)
{
	if (profile->vectors == NIL)
	{
		hrflow_model_end_trial(run, profile);
		return false;
	}
	run->has_trial = true;
	if (run->dimensions == NIL)
		return false;
	if (fits(run, profile))
	{
		run->fits_at = hrflow_clock_now();
		clear_foreign(run);
		return false;
	}
	if (run->fits_at >= profile->asked_at && !run->is_foreign)
		return false;
	dlist_delete(&profile->node);
	dlist_push_tail(&run->foreign, &profile->node);
	if (are_enough(run, ++run->nforeign) || run->is_foreign)
		stop_for_dimension(run);
	return true;
}

/*
 * Called when no requests are in flight.  Stops the run if profiles are still
 * held back because of their dimension, which means that no vector that fits
 * the store has arrived since they were held back.
 */
void
hrflow_model_settle(HrflowRun *run)
{
	if (!dlist_is_empty(&run->foreign))
		stop_for_dimension(run);
}

/*
 * Stop the run because the store rejects fetched vectors or the states of
 * fetched profiles, and postpone the profiles in "refused", because the error
 * is probably not specific to them.
 */
static void
stop_for_refusal(HrflowRun *run, List *refused)
{
	MemoryContext old = CurrentMemoryContext;
	HrflowProfile *first = linitial(refused);
	ListCell   *cell;

	MemoryContextSwitchTo(run->context);
	run->is_unfit = run->is_stopping = true;
	run->stop = HRFLOW_STOP_NOT_KEPT;
	run->stop_code = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	if (first->is_rejected)
	{
		run->stop_reason = psprintf("the store does not accept the states of fetched profiles; %s",
									first->write_error);
		run->stop_hint = psprintf(_("Check the constraints and triggers of table %s."),
								  run->profiles_name);
	}
	else
	{
		run->stop_reason = psprintf("the store does not accept fetched vectors; %s",
									first->write_error);
		run->stop_hint = _("Check the type of the column \"vector\", and the indexes, constraints and triggers of the table.");
	}
	foreach(cell, refused)
	{
		HrflowProfile *profile = lfirst(cell);

		MemoryContextSwitchTo(profile->context);
		profile->write_error = psprintf(REFUSED_ERROR ": %s",
										profile->write_error);
		profile->is_postponed = true;
		profile->is_rejected = false;
	}
	MemoryContextSwitchTo(old);
}

static void
hold(HrflowProfile *profile)
{
	profile->is_held = true;
	profile->is_ours = false;
}

/*
 * Hold back profiles that have lost more than half of a section, while a few
 * profiles are written to find out whether the store accepts vectors.  The
 * limit on such losses must be applied to all profiles that arrive together.
 */
void
hrflow_model_spare(HrflowRun *run, List *profiles)
{
	ListCell   *cell;

	if (run->is_trusted || run->is_settling)
		return;
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		if (profile->lost != NULL)
			hold(profile);
	}
}

/*
 * Called after vectors were written, but before the states of the profiles
 * with a "write_error" are written.  If the store has accepted no vector in
 * this run, stops the run once the vectors or the states of enough profiles
 * were rejected.  Until then, unless the run is settling, holds back these
 * profiles, so that the write is retried later.
 */
void
hrflow_model_judge(HrflowRun *run, List *profiles)
{
	List	   *refused = NIL;
	ListCell   *cell;

	if (run->is_trusted)
		return;
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		if (profile->write_error != NULL)
			refused = lappend(refused, profile);
		else if (profile->is_ours && profile->vectors != NIL)
			return;
	}
	if (refused == NIL)
		return;
	if (run->is_unfit || are_enough(run, list_length(refused)))
		stop_for_refusal(run, refused);
	else if (!run->is_settling)
	{
		foreach(cell, refused)
			hold(lfirst(cell));
	}
}
