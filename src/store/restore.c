/*-------------------------------------------------------------------------
 *
 * restore.c
 *		Restores vectors that were put aside: see aside.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "store/refresh.h"
#include "utils/array.h"

PG_FUNCTION_INFO_V1(hrflow_restore);

/*
 * SQL condition that selects the source $1 and the identifiers $2.  If $1 is
 * null, it selects all sources; if $2 is null, all identifiers.
 */
static const char chosen_sql[] =
"($1 IS NULL OR a.source_id = $1) AND ($2 IS NULL OR a.%I = ANY ($2))";

/*
 * SQL condition for profiles whose state is "unwanted", although a table wants
 * them or they are tracked explicitly.  The argument is the condition for a
 * profile to be unwanted.
 */
static const char wanted_sql[] = "p.state = 'unwanted' AND NOT (%s)";

/*
 * Locking clauses for profiles that will be restored.  The second one skips
 * rows that other sessions have locked.
 */
static const char restore_all_sql[] = " FOR NO KEY UPDATE OF p";
static const char restore_free_sql[] = " FOR NO KEY UPDATE OF p SKIP LOCKED";

static const char has_aside_sql[] =
"EXISTS (SELECT FROM %R AS a"
" WHERE a.source_id = p.source_id AND a.%I = p.%I AND %s%s)";

/*
 * SQL condition that a vector was put aside because its profile was unwanted,
 * and not, for example, because the API no longer had the vector.
 */
static const char of_unwanted_sql[] =
" AND a.reason IN ('reconcile', 'untrack')";

/*
 * Statement that restores the profiles whose sources and identifiers are in
 * the arrays $1 and $2, and returns their number.  The profiles must be
 * locked.  Vectors that have been fetched meanwhile are not overwritten.  The
 * arguments are NAME_aside, an additional condition on its rows, and
 * assignments of state, due_at and attempts to gone and unwanted profiles.
 */
static const char restore_sql[] =
"WITH back AS (DELETE FROM %R AS a USING %P AS p, unnest($1, $2) AS l(s, i)"
" WHERE p.source_id = l.s AND p.%I = l.i"
" AND a.source_id = p.source_id AND a.%I = p.%I%s"
" RETURNING a.source_id, a.%I, a.section, a.item, a.vector, a.fetched_at,"
" a.state::text, a.due_at),"
" vectors AS (INSERT INTO %V AS v"
" (source_id, %I, section, item, vector, fetched_at)"
" SELECT b.source_id, b.%I, b.section, b.item, b.vector::%T, b.fetched_at"
" FROM back AS b ON CONFLICT (source_id, %I, section, item) DO NOTHING),"
" profiles AS (SELECT DISTINCT ON (b.source_id, b.%I) b.source_id AS s,"
" b.%I AS i, b.state, b.due_at"
" FROM back AS b ORDER BY b.source_id, b.%I, b.state),"
" restored AS (UPDATE %P AS p SET %s,"
" generation = p.generation + 1 FROM profiles AS k"
" WHERE p.source_id = k.s AND p.%I = k.i"
" AND p.state IN ('gone', 'unwanted'))"
" SELECT count(*) FROM profiles";

/*
 * An unwanted profile returns to the state and due_at that it had before it
 * was put aside.  A gone profile becomes due immediately, as does an unwanted
 * profile whose earlier state is not known, for example because a user has
 * changed NAME_aside.
 */
#define IS_KNOWN "p.state = 'unwanted' AND k.state IS NOT NULL"

static const char as_before_sql[] =
"state = CASE WHEN " IS_KNOWN " THEN k.state ELSE 'due' END,"
" due_at = CASE WHEN " IS_KNOWN " THEN k.due_at ELSE clock_timestamp() END,"
" attempts = CASE WHEN " IS_KNOWN " THEN p.attempts ELSE 0 END";

/*
 * While no table wanted a key, changes of its content were not noticed.  So
 * the content must be read; if neither the content nor the API key has
 * changed, a request is usually not necessary.
 */
static const char due_now_sql[] =
"state = 'due', due_at = clock_timestamp(), attempts = 0";

static const char make_due_sql[] =
"UPDATE %P AS p SET state = 'due', due_at = clock_timestamp(), attempts = 0,"
" generation = p.generation + 1"
" FROM (SELECT p.source_id AS s, p.%I AS i FROM %P AS p WHERE %s"
" FOR NO KEY UPDATE OF p SKIP LOCKED) AS l"
" WHERE p.source_id = l.s AND p.%I = l.i";

/*
 * If the store does not accept the vectors of any of this many profiles, do
 * not try to restore others, because each attempt takes about a millisecond.
 */
#define MAX_REFUSED 1000

/*
 * Lock the profiles that meet a condition and have vectors in NAME_aside, and
 * add their keys to the parameters "keys".  "reasons" is an additional
 * condition on these vectors: of_unwanted_sql, or an empty string.  See
 * hrflow_aside_lock_keys() for the other arguments.  Returns NAME_aside, or
 * InvalidOid if no profile was locked.
 */
static Oid
lock_restorable(const HrflowStore *store, const char *condition,
				const char *reasons, const char *how,
				const HrflowParameters *parameters, HrflowParameters *keys)
{
	Oid			table = hrflow_aside_find(store);

	if (!OidIsValid(table))
		return InvalidOid;
	condition = hrflow_store_sql(store, has_aside_sql, table, condition,
								 reasons);
	return hrflow_aside_lock_keys(store, condition, how, parameters, keys) ?
		table : InvalidOid;
}

/*
 * Restore the profiles with the given keys, which lock_restorable() has
 * locked, and return their number.  "table" is NAME_aside, and "due" is
 * as_before_sql or due_now_sql.
 */
static uint64
restore(const HrflowStore *store, Oid table, const char *reasons,
		const char *due, const HrflowParameters *keys)
{
	hrflow_store_execute_latest(hrflow_store_sql(store, restore_sql, table,
												 reasons, due),
								keys);
	return DatumGetInt64(hrflow_store_datum(0, 1));
}

/*
 * Restoration of profiles that are no longer unwanted.
 */
typedef struct Wanted
{
	const HrflowStore *store;
	Oid			table;			/* NAME_aside */
	Datum	   *keys[2];		/* sources and identifiers of the profiles */
	HrflowParameters range;		/* keys of the profiles to be restored next */
	int64		nrestored;
	int64		nrefused;		/* number of profiles whose vectors the store
								 * does not accept, or that were not tried */
	ErrorData  *error;			/* the first error, or NULL */
} Wanted;

static void
restore_wanted(void *arg)
{
	const Wanted *wanted = arg;

	(void) restore(wanted->store, wanted->table, of_unwanted_sql,
				   wanted->store->has_content ? due_now_sql :
				   as_before_sql, &wanted->range);
}

/*
 * Restore "n" profiles from the given position.  If the store does not accept
 * all of their vectors, restore each half of these profiles separately, so
 * that only the profiles that cause errors are refused.  If the store has
 * accepted nothing so far, stop after MAX_REFUSED profiles, and refuse the
 * others too.
 */
static void
restore_range(Wanted *wanted, int first, int n)
{
	ErrorData  *error;

	CHECK_FOR_INTERRUPTS();
	if (wanted->nrestored == 0 && wanted->nrefused >= MAX_REFUSED)
	{
		wanted->nrefused += n;
		return;
	}
	wanted->range.n = 0;
	for (int i = 0; i < lengthof(wanted->keys); i++)
		hrflow_store_add(&wanted->range, TEXTARRAYOID,
						 PointerGetDatum(construct_array(wanted->keys[i] + first,
														 n, TEXTOID, -1, false,
														 TYPALIGN_INT)));
	error = hrflow_store_try(restore_wanted, wanted);
	if (error == NULL)
	{
		wanted->nrestored += n;
		return;
	}

	/* Safe to rethrow: any handler must have its own subtransaction. */
	if (hrflow_write_is_of_server(error->sqlerrcode))
		ReThrowError(error);
	if (wanted->error == NULL)
		wanted->error = error;
	else
		FreeErrorData(error);
	if (n == 1)
		wanted->nrefused++;
	else
	{
		restore_range(wanted, first, n / 2);
		restore_range(wanted, first + n / 2, n - n / 2);
	}
}

/*
 * Restore the profiles that have the state "unwanted", but are no longer
 * unwanted (see feeder.c), except those that another session has locked.
 * Profiles whose vectors the store does not accept, for example because
 * another model made them, become due instead, after a WARNING.  If contents
 * are read from tables, the restored profiles become due as well.  Profiles
 * for which NAME_aside has no vectors that meet of_unwanted_sql become due in
 * any case.  Does nothing if hrflow_feeder_can_ask_all() returns false.
 *
 * Call this before hrflow_expire_batch(), which erases unwanted profiles
 * without looking for rows that refer to them.
 */
void
hrflow_restore_wanted(const HrflowStore *store, Oid function)
{
	const char *condition;
	HrflowParameters keys = {0};
	Wanted		wanted = {.store = store};

	if (!hrflow_feeder_can_ask_all(store, function))
		return;
	condition = hrflow_store_sql(store, wanted_sql,
								 hrflow_feeder_unwanted(store, function));
	wanted.table = lock_restorable(store, condition, of_unwanted_sql,
								   restore_free_sql, NULL, &keys);
	if (OidIsValid(wanted.table))
	{
		int			n = 0;

		for (int i = 0; i < keys.n; i++)
			deconstruct_array(DatumGetArrayTypeP(keys.values[i]), TEXTOID, -1,
							  false, TYPALIGN_INT, &wanted.keys[i], NULL, &n);
		restore_range(&wanted, 0, n);
	}
	if (wanted.error != NULL)
		ereport(WARNING,
				(errmsg_plural("could not restore the vectors of " INT64_FORMAT " profile of store %s",
							   "could not restore the vectors of " INT64_FORMAT " profiles of store %s",
							   wanted.nrefused, wanted.nrefused,
							   store->vectors_name),
				 errdetail_internal("%s", wanted.error->message),
				 errhint("To restore the vectors instead of fetching them again, fix the cause of the error, and call hrflow_restore() before the next refresh.")));
	hrflow_store_execute_latest(hrflow_store_sql(store, make_due_sql,
												 condition),
								NULL);
}

/*
 * hrflow_restore(store regclass, source_id text, profile_ids text[])
 *		RETURNS bigint
 */
Datum
hrflow_restore(PG_FUNCTION_ARGS)
{
	HrflowStore store;
	HrflowParameters parameters = {0};
	HrflowParameters keys = {0};
	Oid			table;
	uint64		n = 0;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be null", "store")));
	PreventCommandDuringRecovery("hrflow_restore()");
	hrflow_store_add(&parameters, TEXTOID, PG_GETARG_DATUM(1));
	hrflow_store_add(&parameters, TEXTARRAYOID, PG_GETARG_DATUM(2));
	for (int i = 0; i < parameters.n; i++)
		parameters.nulls[i] = PG_ARGISNULL(i + 1) ? 'n' : ' ';
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_WRITE);
	table = lock_restorable(&store, hrflow_store_sql(&store, chosen_sql), "",
							restore_all_sql, &parameters, &keys);
	if (OidIsValid(table))
		n = restore(&store, table, "", as_before_sql, &keys);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_INT64(n);
}
