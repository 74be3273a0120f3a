/*-------------------------------------------------------------------------
 *
 * model.c
 *		What the vectors of profiles were fetched with.
 *
 * The table of profiles keeps, for each of them, the dimension of its vectors,
 * the sections that it was asked for and that the API has answered, and a
 * fingerprint of the API key.  Few combinations of these occur in a store: an
 * index finds them without reading the profiles.
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

/* Number of bytes of a fingerprint: enough to tell the keys of a store apart. */
#define FINGERPRINT_BYTES 4

/*
 * Find the first combination after that of $1, $2 and $3.  The index on the
 * table of profiles that hrflow_create_store() makes has this order.
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
 * Make profiles of such a combination due, as if since $4, when the run began.
 * $5 is the time now, and $6 the largest number: those that the run claims next,
 * for others that claim them would not ask for what they lack.  A profile that has
 * an error is asked for again soon in any case, and not before others of its
 * source.
 */
static const char make_due_sql[] =
"WITH lacking AS MATERIALIZED"
" (SELECT p.source_id AS s, p.%I AS i FROM %P AS p"
" WHERE p.sections IS NOT NULL AND p.dimension = $1 AND p.account = $2"
" AND hash_array_extended(p.sections, 0) = $3"
" AND p.state = 'ok' AND p.due_at > $4 AND p.last_error IS NULL"
" AND (p.lease_until IS NULL OR p.lease_until <= $5)"
" LIMIT $6 FOR UPDATE SKIP LOCKED)"
" UPDATE %P AS p SET due_at = $4 FROM lacking AS l"
" WHERE p.source_id = l.s AND p.%I = l.i";

/* Count profiles whose vectors have the dimension $1, up to $2. */
static const char count_dimension_sql[] =
"SELECT count(*) FROM (SELECT FROM %P AS p WHERE p.sections IS NOT NULL"
" AND p.dimension = $1 LIMIT $2) AS d";

#define MOST_COUNTED 1000

/*
 * Find out whether one of $1 begins one of the $2 last errors: then the last run
 * was stopped for it.
 */
static const char was_stopped_sql[] =
"SELECT count(*) FROM (SELECT p.last_error FROM %P AS p"
" WHERE p.last_error IS NOT NULL"
" ORDER BY %F DESC NULLS LAST LIMIT $2) AS e"
" JOIN unnest($1) AS b(beginning) ON starts_with(e.last_error, b.beginning)";

#define FOREIGN_ERROR "The vectors are of another dimension than the store's"
#define REFUSED_ERROR "Nothing could be stored"

/*
 * Maximum number of profiles to ask for before the store has taken the vectors of
 * any, and minimum number of those that it does not take, with no other, for which
 * a run is stopped.  Both are 1 if the last run was stopped for this reason.
 */
#define MAX_TRIAL 32
#define MIN_REFUSED 8

/*
 * What some profiles of a store were fetched with.
 */
typedef struct Combination
{
	int			dimension;
	char	   *account;
	int64		hash;			/* of the sections */
	List	   *sections;		/* their names, and those of elements */
} Combination;

/*
 * A fingerprint of an API key, from which the key cannot be told: the beginning
 * of its SHA-256, in hexadecimal.
 */
char *
hrflow_model_account(const char *api_key)
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
 * Sections
 * ------------------------------------------------------------------------
 */

/*
 * The names of sections and elements in the column "sections", or NIL for NULL.
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
 * Does a run ask for a section that is not among these, or for an element where
 * neither that nor its section is?
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
 * The text of the array that the column "sections" is to be after a profile was
 * answered: the names of all that it was asked for, by this run or before.  If
 * "fields" is left out, these are the sections that have come.  NULL if the column
 * is to stay as it is, which a profile that is missing has to say.
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
 * The dimension of a profile's vectors: of the first one, or 0 if there is none.
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
 * Find the combination that follows another one, or the first if that is NULL.
 * Returns NULL after the last.
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
 * The dimension of the column's type, or 0 if it takes any.
 */
static int
column_dimension(const HrflowStore *store)
{
	AttrNumber	number = hrflow_store_check_column(store->vectors, "vector",
												   InvalidOid);
	Form_pg_attribute column =
	TupleDescAttr(RelationGetDescr(store->vectors), number - 1);

	/* The modifier of pgvector's types is the dimension. */
	return store->layout == HRFLOW_LAYOUT_ARRAY ? 0 :
		Max(column->atttypmod, 0);
}

/*
 * Of the dimensions of a store's vectors, those that at least half as many
 * profiles have as the most frequent one: the others are left from a model
 * before, or came with a few answers when it changed.
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
 * Was the last run stopped because the store did not take what it fetched?
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
 * Learn what the vectors of a store were fetched with: their dimension, and
 * whether none was with the run's API key.
 */
void
hrflow_model_look(HrflowRun *run, const HrflowStore *store)
{
	Combination *combination = NULL;
	int			dimension = column_dimension(store);
	List	   *dimensions = NIL;
	bool		has_account = false;
	MemoryContext old;

	while (store->has_fetched_with &&
		   (combination = find_next(store, combination)) != NULL)
	{
		run->is_new_account = true;
		has_account |= strcmp(combination->account, run->account) == 0;
		if (combination->dimension > 0)
			dimensions = list_append_unique_int(dimensions,
												combination->dimension);
	}
	run->is_new_account &= !has_account;
	run->is_typed = dimension > 0;
	dimensions = run->is_typed ? list_make1_int(dimension) :
		choose_dimensions(store, dimensions);
	run->is_wary = was_stopped(store);
	old = MemoryContextSwitchTo(run->context);
	run->dimensions = list_copy(dimensions);
	MemoryContextSwitchTo(old);
}

/*
 * Vectors that were fetched with another API key are now beside such of the
 * run's: warn, for it may be another account's.
 */
void
hrflow_model_warn_of_account(const HrflowRun *run)
{
	if (run->is_new_account && run->tallies[HRFLOW_TALLY_OK] > 0)
		ereport(WARNING,
				(errmsg("store %s has vectors that were fetched with another API key",
						run->name),
				 errdetail("Vectors can be compared only if one model has made them, which those of another account may not share."),
				 errhint("If the key is of another account, fetch them again: UPDATE %s SET due_at = now() WHERE account <> '%s'.",
						 run->profiles_name, run->account)));
}

/*
 * Make some profiles due of a combination, at most so many.  Returns their
 * number.
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
 * Make profiles due that were fetched without a section, or an element of one,
 * that the run asks for: at most so many.  Returns whether there were any.
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
 * What the store does not take
 * ------------------------------------------------------------------------
 */

/*
 * How many more profiles may be asked for now, as far as it is known what the store
 * takes?
 */
int64
hrflow_model_room(const HrflowRun *run)
{
	return run->is_trusted ? PG_INT64_MAX :
		(run->is_wary ? 1 : MAX_TRIAL) - run->ntrial;
}

/*
 * A profile no longer counts among those whose vectors are to show what the store
 * takes.
 */
void
hrflow_model_end_trial(HrflowRun *run, HrflowProfile *profile)
{
	run->ntrial -= profile->is_trial;
	profile->is_trial = false;
}

/*
 * Have so many profiles met the same that the run is to stop?
 */
static bool
are_enough(const HrflowRun *run, int n)
{
	return n >= (run->is_wary && !run->is_trusted ? 1 : MIN_REFUSED);
}

/*
 * Do vectors of a profile have the dimension of the store's, or of its own that
 * are there?
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
 * Stop the run because of the dimension of what comes.
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
		run->stop_hint = _("If the model has changed, create another store, refresh it, and drop this one. Otherwise check hrflow_embed.base_url and the API key.");
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
 * Have the profiles written that were held back: they alone have vectors of another
 * dimension.
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
 * Nothing more comes of a profile.  If its vectors have another dimension than
 * the store's it is held back until another one shows whether that is so of all.
 * Returns whether it is.
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
 * Nothing more comes: all that has come is of another dimension.
 */
void
hrflow_model_settle(HrflowRun *run)
{
	if (!dlist_is_empty(&run->foreign))
		stop_for_dimension(run);
}

/*
 * Stop the run because the store takes nothing: these profiles are not to blame.
 */
static void
stop_for_refusal(HrflowRun *run, List *refused)
{
	MemoryContext old = CurrentMemoryContext;
	HrflowProfile *first = linitial(refused);
	ListCell   *cell;

	MemoryContextSwitchTo(run->context);
	run->is_stopping = true;
	run->stop = HRFLOW_STOP_NOT_KEPT;
	run->stop_code = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	run->stop_reason = psprintf("the store takes nothing of what is fetched; %s",
								first->write_error);
	run->stop_hint = _("Check the type of the column \"vector\", and the indexes, constraints and triggers of the table.");
	foreach(cell, refused)
	{
		HrflowProfile *profile = lfirst(cell);

		MemoryContextSwitchTo(profile->context);
		profile->write_error = psprintf(REFUSED_ERROR ": %s",
										profile->write_error);
		profile->is_postponed = true;
	}
	run->nrefused = list_length(refused);
	MemoryContextSwitchTo(old);
}

static void
hold(HrflowProfile *profile)
{
	profile->is_held = true;
	profile->is_ours = false;
}

/*
 * While a few profiles are written to see whether the store takes them, hold back
 * those that would lose sections: whether these are too many is judged of all that
 * arrive together.
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
 * After vectors were written, and before the states of their profiles are: is the
 * store to blame for those that it did not take?  It is if it has taken none so
 * far, and refused several; fewer are held back.
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
	if (are_enough(run, list_length(refused)))
		stop_for_refusal(run, refused);
	else if (!run->is_settling)
	{
		foreach(cell, refused)
			hold(lfirst(cell));
	}
}
