/*-------------------------------------------------------------------------
 *
 * aside.c
 *		Puts vectors aside, into the table NAME_aside of a store.
 *
 * Vectors that the API no longer has, and vectors of profiles that no table
 * wants any longer, are not deleted at once.  They are moved to this table,
 * where ranking and queries of the store do not find them, and can be brought
 * back until they expire.  The retention time is the default of the column
 * "delete_at", so it is dumped and restored with the table.  The table stores
 * vectors as real[], because the type of the store's vectors may have changed
 * when they are brought back.
 *
 * The owner may drop the table.  A store without it erases only profiles that
 * a user deletes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "miscadmin.h"
#include "store/refresh.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(hrflow_restore);

/* Suffix of this table, added to the name of the table of vectors. */
#define SUFFIX "_aside"

static const char *const create_aside_sql[] = {
	"CREATE TABLE %s ("
	" source_id text NOT NULL,"
	" %I text NOT NULL,"
	" section text NOT NULL,"
	" item integer NOT NULL,"
	" vector real[] NOT NULL,"
	" fetched_at timestamptz NOT NULL,"
	" reason text NOT NULL,"
	" due_at timestamptz,"
	" put_aside_at timestamptz NOT NULL DEFAULT now(),"
	" delete_at timestamptz NOT NULL DEFAULT now() + interval '1 day',"
	" PRIMARY KEY (source_id, %I, section, item))",
	"ALTER TABLE %s ALTER COLUMN vector SET STORAGE EXTERNAL",
	"CREATE INDEX ON %s (delete_at)",
	"COMMENT ON TABLE %s IS"
	" 'vectors that are put aside until delete_at; see hrflow_restore()'"
};

/*
 * If a vector is put aside twice, only its last value can be brought back.
 * "due_at" is the time at which its profile was due; it is restored with the
 * vector, unless it is NULL.
 */
static const char put_sql[] =
", aside AS (INSERT INTO %R AS a (source_id, %I, section, item, vector,"
" fetched_at, reason, due_at)"
" SELECT v.source_id, v.%I, v.section, v.item, v.vector::real[],"
" v.fetched_at, %L, v.due_at FROM vectors AS v"
" ON CONFLICT (source_id, %I, section, item)"
" DO UPDATE SET vector = excluded.vector, fetched_at = excluded.fetched_at,"
" reason = excluded.reason, due_at = excluded.due_at,"
" put_aside_at = excluded.put_aside_at, delete_at = excluded.delete_at)";

static const char count_sql[] =
"SELECT count(*) FROM (SELECT DISTINCT a.source_id, a.%I FROM %R AS a) AS a";

/*
 * Restrict to the source $1 and to the identifiers $2, unless they are NULL.
 */
static const char chosen_sql[] =
"($1 IS NULL OR a.source_id = $1) AND ($2 IS NULL OR a.%I = ANY ($2))";

/* Condition that a profile was unwanted, and is wanted again. */
static const char wanted_sql[] = "p.state = 'unwanted' AND NOT (%s)";

static const char lock_sql[] =
"SELECT array_agg(l.s::text), array_agg(l.i::text)"
" FROM (SELECT p.source_id AS s, p.%I AS i FROM %P AS p WHERE %s"
" ORDER BY p.source_id, p.%I%s) AS l";

static const char lock_all_sql[] = " FOR UPDATE OF p";
static const char lock_free_sql[] = " FOR UPDATE OF p SKIP LOCKED";

/* $1 is the size of a batch; $2 and $3 are the previous batch's last key. */
static const char lock_batch_sql[] = " LIMIT $1 FOR UPDATE OF p";
static const char after_key_sql[] = "(p.source_id, p.%I) > ($2, $3) AND %s";

static const char has_aside_sql[] =
"EXISTS (SELECT FROM %R AS a"
" WHERE a.source_id = p.source_id AND a.%I = p.%I AND %s)";

/*
 * Restore the profiles with the keys $1 and $2, which are locked.  A
 * profile that has been fetched meanwhile keeps its new vectors.  An unwanted
 * profile becomes due when it was due before; a gone profile becomes due now.
 */
static const char restore_sql[] =
"WITH back AS (DELETE FROM %R AS a USING %P AS p, unnest($1, $2) AS l(s, i)"
" WHERE p.source_id = l.s AND p.%I = l.i"
" AND a.source_id = p.source_id AND a.%I = p.%I"
" RETURNING a.source_id, a.%I, a.section, a.item, a.vector, a.fetched_at,"
" a.due_at),"
" vectors AS (INSERT INTO %V AS v"
" (source_id, %I, section, item, vector, fetched_at)"
" SELECT b.source_id, b.%I, b.section, b.item, b.vector::%T, b.fetched_at"
" FROM back AS b ON CONFLICT (source_id, %I, section, item) DO NOTHING),"
" profiles AS (SELECT b.source_id AS s, b.%I AS i, max(b.due_at) AS due_at"
" FROM back AS b GROUP BY b.source_id, b.%I),"
" restored AS (UPDATE %P AS p SET"
" state = CASE p.state WHEN 'unwanted' THEN 'ok' ELSE 'due' END,"
" due_at = COALESCE(k.due_at, clock_timestamp()), attempts = 0,"
" generation = p.generation + 1 FROM profiles AS k"
" WHERE p.source_id = k.s AND p.%I = k.i"
" AND p.state IN ('gone', 'unwanted'))"
" SELECT count(*) FROM profiles";

static const char make_due_sql[] =
"UPDATE %P AS p SET state = 'due', due_at = clock_timestamp(), attempts = 0,"
" generation = p.generation + 1"
" FROM (SELECT p.source_id AS s, p.%I AS i FROM %P AS p WHERE %s"
" FOR UPDATE OF p SKIP LOCKED) AS l"
" WHERE p.source_id = l.s AND p.%I = l.i";

/*
 * Put aside the profiles with the keys $2 and $3, which are locked, if they
 * meet the condition that no table wants them.  Profiles that have no vectors,
 * neither in the store nor put aside, are erased at once.  If more than $1
 * other profiles meet the condition, all of them are kept.
 */
static const char put_unwanted_sql[] =
"WITH found AS MATERIALIZED"
" (SELECT p.source_id AS s, p.%I AS i, p.due_at,"
" EXISTS (SELECT FROM %V AS v WHERE v.source_id = p.source_id"
" AND v.%I = p.%I) OR EXISTS (SELECT FROM %R AS a"
" WHERE a.source_id = p.source_id AND a.%I = p.%I) AS has_vectors"
" FROM %P AS p JOIN unnest($2, $3) AS l(s, i)"
" ON p.source_id = l.s AND p.%I = l.i WHERE %s),"
" counted AS MATERIALIZED"
" (SELECT count(*) FILTER (WHERE has_vectors) AS n FROM found),"
" erased AS (DELETE FROM %P AS p USING found AS f"
" WHERE p.source_id = f.s AND p.%I = f.i AND NOT f.has_vectors"
" RETURNING p.source_id, p.%I),"
" unwanted AS (UPDATE %P AS p SET state = 'unwanted', due_at = NULL,"
" lease_until = NULL, generation = p.generation + 1%s"
" FROM found AS f, counted AS c"
" WHERE p.source_id = f.s AND p.%I = f.i"
" AND f.has_vectors AND c.n <= $1"
" RETURNING f.s, f.i, f.due_at),"
" vectors AS (DELETE FROM %V AS v USING unwanted AS u"
" WHERE v.source_id = u.s AND v.%I = u.i"
" RETURNING v.source_id, v.%I, v.section, v.item, v.vector,"
" v.fetched_at, u.due_at)%s%s"
" SELECT (SELECT count(*) FROM erased), (SELECT count(*) FROM unwanted),"
" CASE WHEN c.n <= $1 THEN 0 ELSE c.n END FROM counted AS c";

static const char set_unwanted_erased_at_sql[] =
", erased_at = clock_timestamp()";

static const char not_yet_unwanted_sql[] =
"%s AND p.state IS DISTINCT FROM 'unwanted'";

/* Number of columns that put_unwanted_sql returns. */
#define NCOUNTS 3

/* The profiles that were erased at once, for the record of erasures. */
static const char erased_at_once_sql[] =
"SELECT e.source_id, e.%I, 0 AS n, NULL::timestamptz AS put_aside_at"
" FROM erased AS e";

/*
 * Erase vectors that expired at $1 or earlier, and the unwanted profiles that
 * have no vectors put aside any longer.  Skip rows that another session has
 * locked, because it may be bringing them back.
 */
static const char erase_expired_sql[] =
"WITH expired AS MATERIALIZED"
" (SELECT a.source_id AS s, a.%I AS i, a.section, a.item FROM %R AS a"
" WHERE a.delete_at <= $1 FOR UPDATE SKIP LOCKED),"
" aside AS (DELETE FROM %R AS a USING expired AS x"
" WHERE a.source_id = x.s AND a.%I = x.i AND a.section = x.section"
" AND a.item = x.item"
" RETURNING a.source_id, a.%I, a.reason, a.put_aside_at),"
" unwanted AS MATERIALIZED"
" (SELECT p.source_id AS s, p.%I AS i FROM %P AS p"
" WHERE p.state = 'unwanted' AND NOT EXISTS (SELECT FROM %R AS a"
" WHERE a.source_id = p.source_id AND a.%I = p.%I AND a.delete_at > $1)"
" FOR UPDATE OF p SKIP LOCKED),"
" profiles AS (DELETE FROM %P AS p USING unwanted AS u"
" WHERE p.source_id = u.s AND p.%I = u.i)%s"
" SELECT count(*) FROM aside";

static const char expired_reason_sql[] = "x.reason";

static const char expired_sql[] =
"SELECT a.source_id, a.%I, a.reason, 1 AS n, a.put_aside_at FROM aside AS a";

/*
 * ------------------------------------------------------------------------
 * The table
 * ------------------------------------------------------------------------
 */

/*
 * Create the table for a store that is being created.  Of "store", only the
 * identifier needs to be set.  "vectors" is the name of the table of vectors.
 */
void
hrflow_aside_create(const HrflowStore *store, const char *schema,
					const char *vectors)
{
	const char *name = hrflow_beside_name(schema, vectors, SUFFIX);

	for (int i = 0; i < lengthof(create_aside_sql); i++)
		hrflow_store_execute(hrflow_store_sql(store, create_aside_sql[i], name),
							 NULL);
}

/*
 * Return the table of a store, or InvalidOid if there is none.
 */
Oid
hrflow_aside_find(const HrflowStore *store)
{
	static const char *const columns[] = {
		"source_id", "section", "item", "vector", "fetched_at", "reason",
		"due_at", "put_aside_at", "delete_at", NULL
	};

	return hrflow_beside_find(store, SUFFIX, columns);
}

/*
 * Return a WITH query that puts aside the rows of the WITH query "vectors",
 * which must have the columns of the table of vectors and "due_at".  Returns
 * an empty string if the store has no table for it; then "vectors" must return
 * no rows.
 */
const char *
hrflow_aside_put_sql(const HrflowStore *store, const char *reason)
{
	Oid			table = hrflow_aside_find(store);

	return OidIsValid(table) ?
		hrflow_store_sql(store, put_sql, table, reason) : "";
}

/*
 * Count the profiles that have vectors put aside.
 */
int64
hrflow_aside_count(const HrflowStore *store)
{
	Oid			table = hrflow_aside_find(store);

	if (!OidIsValid(table))
		return 0;
	hrflow_store_execute(hrflow_store_sql(store, count_sql, table), NULL);
	return DatumGetInt64(hrflow_store_datum(0, 1));
}

/*
 * ------------------------------------------------------------------------
 * Locks
 * ------------------------------------------------------------------------
 */

/*
 * Lock the profiles that meet a condition, in the order of their keys, and add
 * the keys to the parameters "keys", as two arrays.  "how" is one of
 * lock_all_sql, lock_free_sql, which skips rows locked by other sessions, and
 * lock_batch_sql.  Returns false if there are no such profiles.
 */
static bool
lock_keys(const HrflowStore *store, const char *condition, const char *how,
		  const HrflowParameters *parameters, HrflowParameters *keys)
{
	bool		is_null = false;

	hrflow_store_execute_latest(hrflow_store_sql(store, lock_sql, condition,
												 how),
								parameters);
	for (int i = 1; i <= 2 && !is_null; i++)
	{
		Datum		array = SPI_getbinval(SPI_tuptable->vals[0],
										  SPI_tuptable->tupdesc, i, &is_null);

		hrflow_store_add(keys, TEXTARRAYOID, array);
	}
	return !is_null;
}

/*
 * ------------------------------------------------------------------------
 * Moving vectors out of a store
 * ------------------------------------------------------------------------
 */

/*
 * Erase the vectors put aside that have expired, and their unwanted profiles.
 */
void
hrflow_aside_erase_expired(const HrflowStore *store)
{
	Oid			aside = hrflow_aside_find(store);
	HrflowParameters parameters = {0};

	if (!OidIsValid(aside))
		return;
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(GetCurrentTimestamp()));
	hrflow_store_execute(hrflow_store_sql(store, erase_expired_sql, aside,
										  aside, aside,
										  hrflow_erased_note_sql(store, expired_reason_sql,
																 expired_sql)),
						 &parameters);
}

/*
 * Warn about profiles that were put aside because no table wants them, and
 * about profiles that were kept because there were too many.
 */
static void
warn_of_unwanted(const HrflowStore *store, int64 nput, int64 nkept)
{
	if (nput > 0)
		ereport(WARNING,
				(errmsg_plural("the vectors of " INT64_FORMAT " profile of store %s were put aside",
							   "the vectors of " INT64_FORMAT " profiles of store %s were put aside",
							   nput, nput, store->vectors_name),
				 errdetail("No table that feeds the store wants these profiles any longer."),
				 errhint("Until they are erased, call hrflow_restore() to restore them, or hrflow_track_table() for a table that wants them.")));
	if (nkept > 0)
		ereport(WARNING,
				(errmsg_plural("store %s keeps the vectors of " INT64_FORMAT " profile that no table wants",
							   "store %s keeps the vectors of " INT64_FORMAT " profiles that no table wants",
							   nkept, store->vectors_name, nkept),
				 errdetail("At most 5 %% of the profiles of a store, or 20 if that is more, are put aside in this way within 24 hours."),
				 errhint("Call hrflow_track_table() for each table that feeds the store. If no table should want these profiles, call hrflow_untrack_table() for one of the tables, and then hrflow_track_table() for it again.")));
}

/*
 * Return an SQL condition that is true if no table wants the profile in row
 * "p", and it is not in the state "unwanted" yet.
 */
static char *
unwanted_now(const HrflowStore *store, Oid function)
{
	return hrflow_store_sql(store, not_yet_unwanted_sql,
							hrflow_feeder_unwanted(store, function));
}

/*
 * Put aside those of the profiles with the given keys that no table wants.  If
 * "is_limited", keep them if there are too many.
 *
 * The caller must have locked the profiles; only then may the tables that feed
 * the store be looked up and queried, because a session that held the locks
 * before may have tracked another table.
 *
 * Sets "counts" to the numbers of profiles that were erased at once, put
 * aside, and kept.  Returns false, after a WARNING, if nothing can be put
 * aside.
 */
static bool
put_locked(const HrflowStore *store, Oid function, bool is_limited,
		   const HrflowParameters *keys, int64 *counts)
{
	const char *reason = is_limited ? "reconcile" : "untrack";
	Oid			aside = hrflow_aside_find(store);
	HrflowParameters parameters = {0};

	AcceptInvalidationMessages();
	if (!hrflow_feeder_owns_all(store, function))
		return false;
	if (!OidIsValid(aside))
	{
		ereport(WARNING,
				(errmsg("store %s keeps profiles that no table wants",
						store->vectors_name),
				 errdetail("The store has no table \"%s" SUFFIX "\" for vectors that are put aside.",
						   RelationGetRelationName(store->vectors)),
				 errhint("Use hrflow_untrack() to erase profiles.")));
		return false;
	}
	hrflow_store_add(&parameters, INT8OID,
					 Int64GetDatum(is_limited ? hrflow_erase_allowance(store) :
								   PG_INT64_MAX));
	for (int i = 0; i < keys->n; i++)
		hrflow_store_add(&parameters, keys->types[i], keys->values[i]);
	hrflow_store_execute_latest(hrflow_store_sql(store, put_unwanted_sql,
												 aside,
												 unwanted_now(store, function),
												 is_limited && store->has_erased_at ?
												 set_unwanted_erased_at_sql : "",
												 hrflow_aside_put_sql(store, reason),
												 hrflow_erased_note_sql(store,
																		quote_literal_cstr(reason),
																		erased_at_once_sql)),
								&parameters);
	for (int i = 0; i < NCOUNTS; i++)
		counts[i] = DatumGetInt64(hrflow_store_datum(0, i + 1));
	return true;
}

/*
 * Put aside all profiles that no table wants.  If "is_limited", keep them if
 * there are too many, and skip profiles that another session has locked.  Such
 * a session may be about to want them, and we must not wait for it: it may
 * wait for a row of the table that we are reconciling.  Returns the number of
 * profiles that are no longer tracked.
 */
uint64
hrflow_aside_put_unwanted(const HrflowStore *store, Oid function, bool is_limited)
{
	HrflowParameters keys = {0};
	int64		counts[NCOUNTS];

	if (!lock_keys(store, unwanted_now(store, function),
				   is_limited ? lock_free_sql : lock_all_sql, NULL, &keys) ||
		!put_locked(store, function, is_limited, &keys, counts))
		return 0;
	warn_of_unwanted(store, counts[1], counts[2]);
	hrflow_aside_erase_expired(store);
	return counts[0] + counts[1];
}

/*
 * Replace "last" with the last text of a nonempty array.
 */
static void
keep_last(MemoryContext context, Datum array, char **last)
{
	ArrayType  *texts = DatumGetArrayTypeP(array);
	int			n = ARR_DIMS(texts)[0];
	bool		is_null;
	Datum		element = array_get_element(PointerGetDatum(texts), 1, &n, -1, -1,
											false, TYPALIGN_INT, &is_null);

	if (*last != NULL)
		pfree(*last);
	*last = MemoryContextStrdup(context, TextDatumGetCString(element));
}

/*
 * Put aside the next batch of profiles that no table wants, in the order of
 * their keys.  The caller commits, and calls again while this returns true.  A
 * batch begins after the last key of the previous one, so that all batches
 * together do not take longer than a single transaction.
 */
bool
hrflow_aside_put_batch(const HrflowStore *store, Oid function,
					   HrflowAsideBatch *batch)
{
	char	   *condition = unwanted_now(store, function);
	HrflowParameters parameters = {0};
	HrflowParameters keys = {0};
	int64		counts[NCOUNTS];

	hrflow_store_add(&parameters, INT4OID, Int32GetDatum(batch->size));
	if (batch->source_id != NULL)
	{
		hrflow_store_add(&parameters, TEXTOID,
						 CStringGetTextDatum(batch->source_id));
		hrflow_store_add(&parameters, TEXTOID,
						 CStringGetTextDatum(batch->identifier));
		condition = hrflow_store_sql(store, after_key_sql, condition);
	}
	if (!lock_keys(store, condition, lock_batch_sql, &parameters, &keys))
		return false;
	keep_last(batch->context, keys.values[0], &batch->source_id);
	keep_last(batch->context, keys.values[1], &batch->identifier);
	if (!put_locked(store, function, false, &keys, counts))
		return false;
	batch->nerased += counts[0];
	batch->nput += counts[1];
	return true;
}

/*
 * Report the profiles that were put aside in batches, and erase expired
 * vectors.  Returns the number of profiles that are no longer tracked.
 */
uint64
hrflow_aside_put_end(const HrflowStore *store, const HrflowAsideBatch *batch)
{
	warn_of_unwanted(store, batch->nput, 0);
	hrflow_aside_erase_expired(store);
	return batch->nerased + batch->nput;
}

/*
 * ------------------------------------------------------------------------
 * Bringing vectors back
 * ------------------------------------------------------------------------
 */

/*
 * Restore the profiles that meet a condition, and return their number.  See
 * lock_keys() for the arguments.
 */
static uint64
restore(const HrflowStore *store, const char *condition, const char *how,
		const HrflowParameters *parameters)
{
	Oid			table = hrflow_aside_find(store);
	HrflowParameters keys = {0};

	if (!OidIsValid(table) ||
		!lock_keys(store,
				   hrflow_store_sql(store, has_aside_sql, table, condition),
				   how, parameters, &keys))
		return 0;
	hrflow_store_execute(hrflow_store_sql(store, restore_sql, table), &keys);
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

	(void) restore(wanted->store, wanted->condition, lock_free_sql, NULL);
}

/*
 * Bring back the unwanted profiles that are wanted again, except those that
 * another session has locked.  If that fails because the store no longer
 * accepts their vectors, for example because they are of another model, make
 * the profiles due instead.
 */
void
hrflow_aside_restore_wanted(const HrflowStore *store, Oid function)
{
	const char *condition =
	hrflow_store_sql(store, wanted_sql,
					 hrflow_feeder_unwanted(store, function));
	Wanted		wanted = {.store = store, .condition = condition};
	ErrorData  *error = hrflow_store_try(restore_wanted, &wanted);

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
				 errmsg("%s must not be null", "store")));
	PreventCommandDuringRecovery("hrflow_restore()");
	hrflow_store_add(&parameters, TEXTOID, PG_GETARG_DATUM(1));
	hrflow_store_add(&parameters, TEXTARRAYOID, PG_GETARG_DATUM(2));
	for (int i = 0; i < parameters.n; i++)
		parameters.nulls[i] = PG_ARGISNULL(i + 1) ? 'n' : ' ';
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_WRITE);
	n = restore(&store, hrflow_store_sql(&store, chosen_sql), lock_all_sql,
				&parameters);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_INT64(n);
}
