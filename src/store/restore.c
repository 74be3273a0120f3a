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

PG_FUNCTION_INFO_V1(hrflow_restore);

/*
 * SQL condition that selects the source $1 and the identifiers $2.  If either
 * is null, it selects all sources or all identifiers.
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
 * Condition that a vector was put aside because its profile was unwanted,
 * rather than because the API no longer had the vector.
 */
static const char of_unwanted_sql[] =
" AND a.reason IN ('reconcile', 'untrack')";

/*
 * Statement that restores the profiles whose sources and identifiers are in
 * the arrays $1 and $2, and returns their number.  The profiles must be
 * locked.  Vectors that have been fetched meanwhile are not overwritten.  The
 * arguments are NAME_aside, an additional condition on its rows, and
 * assignments of the state and due_at.
 */
static const char restore_sql[] =
"WITH back AS (DELETE FROM %R AS a USING %P AS p, unnest($1, $2) AS l(s, i)"
" WHERE p.source_id = l.s AND p.%I = l.i"
" AND a.source_id = p.source_id AND a.%I = p.%I%s"
" RETURNING a.source_id, a.%I, a.section, a.item, a.vector, a.fetched_at,"
" a.due_at),"
" vectors AS (INSERT INTO %V AS v"
" (source_id, %I, section, item, vector, fetched_at)"
" SELECT b.source_id, b.%I, b.section, b.item, b.vector::%T, b.fetched_at"
" FROM back AS b ON CONFLICT (source_id, %I, section, item) DO NOTHING),"
" profiles AS (SELECT b.source_id AS s, b.%I AS i, max(b.due_at) AS due_at"
" FROM back AS b GROUP BY b.source_id, b.%I),"
" restored AS (UPDATE %P AS p SET %s, attempts = 0,"
" generation = p.generation + 1 FROM profiles AS k"
" WHERE p.source_id = k.s AND p.%I = k.i"
" AND p.state IN ('gone', 'unwanted'))"
" SELECT count(*) FROM profiles";

/*
 * An unwanted profile becomes due at the time at which it was due before it
 * was put aside, or immediately if its due_at was null; a gone profile becomes
 * due immediately.
 */
static const char due_as_before_sql[] =
"state = CASE p.state WHEN 'unwanted' THEN 'ok' ELSE 'due' END,"
" due_at = COALESCE(k.due_at, clock_timestamp())";

/*
 * While no table wanted a key, changes of its content were not noticed.  So
 * the content must be read; if neither the content nor the API key has
 * changed, no request is sent.
 */
static const char due_now_sql[] =
"state = 'due', due_at = clock_timestamp()";

static const char make_due_sql[] =
"UPDATE %P AS p SET state = 'due', due_at = clock_timestamp(), attempts = 0,"
" generation = p.generation + 1"
" FROM (SELECT p.source_id AS s, p.%I AS i FROM %P AS p WHERE %s"
" FOR NO KEY UPDATE OF p SKIP LOCKED) AS l"
" WHERE p.source_id = l.s AND p.%I = l.i";

/*
 * Restore the profiles that meet a condition and have vectors in NAME_aside,
 * and return their number.  "reasons" is an additional condition on these
 * vectors: of_unwanted_sql, or an empty string.  "due" is due_as_before_sql or
 * due_now_sql.  See hrflow_aside_lock_keys() for the other arguments.
 */
static uint64
restore(const HrflowStore *store, const char *condition, const char *reasons,
		const char *due, const char *how, const HrflowParameters *parameters)
{
	Oid			table = hrflow_aside_find(store);
	HrflowParameters keys = {0};

	if (!OidIsValid(table) ||
		!hrflow_aside_lock_keys(store,
								hrflow_store_sql(store, has_aside_sql, table,
												 condition, reasons),
								how, parameters, &keys))
		return 0;
	hrflow_store_execute(hrflow_store_sql(store, restore_sql, table, reasons,
										  due),
						 &keys);
	return DatumGetInt64(hrflow_store_datum(0, 1));
}

/* Arguments of restore_wanted(). */
typedef struct Wanted
{
	const HrflowStore *store;
	const char *condition;
} Wanted;

static void
restore_wanted(void *arg)
{
	const Wanted *wanted = arg;

	(void) restore(wanted->store, wanted->condition, of_unwanted_sql,
				   wanted->store->has_content ? due_now_sql :
				   due_as_before_sql, restore_free_sql, NULL);
}

/*
 * Restore the profiles that have the state "unwanted" although a table refers
 * to them again, except those that another session has locked.  If the store
 * does not accept their vectors, for example because another model made them,
 * all of these profiles become due instead.  If the store has contents, the
 * restored profiles are due as well.  Profiles without vectors in
 * NAME_aside become due in any case.  Does nothing if a table that feeds the
 * store cannot be queried.
 *
 * Call this before hrflow_expire_batch(), which erases unwanted profiles
 * without looking for rows that refer to them.
 */
void
hrflow_restore_wanted(const HrflowStore *store, Oid function)
{
	const char *condition;
	Wanted		wanted = {.store = store};
	ErrorData  *error;

	if (!hrflow_feeder_can_ask_all(store, function))
		return;
	condition = hrflow_store_sql(store, wanted_sql,
								 hrflow_feeder_unwanted(store, function));
	wanted.condition = condition;
	error = hrflow_store_try(restore_wanted, &wanted);

	/* Safe to rethrow: any handler must have its own subtransaction. */
	if (error != NULL && hrflow_write_is_of_server(error->sqlerrcode))
		ReThrowError(error);
	hrflow_store_execute(hrflow_store_sql(store, make_due_sql, condition),
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
	uint64		n;

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
	n = restore(&store, hrflow_store_sql(&store, chosen_sql), "",
				due_as_before_sql, restore_all_sql, &parameters);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_INT64(n);
}
