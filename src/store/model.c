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
 * Does a run ask for a section that is not among these, or for an element
 * neither it nor the section of which is?
 */
static bool
lacks_section(const HrflowRun *run, const List *sections)
{
	ListCell   *cell;

	if (run->fields == NULL)
		return false;
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
 * answered: the names of all that it was asked for, by this run or before.  Where
 * "fields" is left out these are the sections that have come.  NULL if it is to
 * stay as it is, which a profile that is missing has to say.
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

/*
 * The dimension of a profile's vectors: of the first one, or 0 if there is none.
 */
int
hrflow_model_dimension(const HrflowProfile *profile)
{
	ArrayType  *vector;

	if (profile->vectors == NIL)
		return 0;
	vector = ((HrflowVector *) linitial(profile->vectors))->value;
	return ARR_NDIM(vector) == 0 ? 0 : ARR_DIMS(vector)[ARR_NDIM(vector) - 1];
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
 * Learn whether the vectors of a store were fetched with another API key than the
 * run's, and none with it.
 */
void
hrflow_model_look(HrflowRun *run, const HrflowStore *store)
{
	Combination *combination = NULL;

	if (!store->has_fetched_with)
		return;
	while ((combination = find_next(store, combination)) != NULL)
	{
		run->is_new_account = strcmp(combination->account, run->account) != 0;
		if (!run->is_new_account)
			break;
	}
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
