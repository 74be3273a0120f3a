/*-------------------------------------------------------------------------
 *
 * aside.c
 *		Puts vectors aside, into the table NAME_aside of a store.
 *
 * Vectors that the API no longer has, vectors of contents that have become
 * empty, and vectors of unwanted profiles (see feeder.c) are not erased
 * immediately, unless a user has deleted or untracked the profiles.  Instead,
 * they are moved to NAME_aside, where searches do not find them, and can be
 * restored (see restore.c) until they expire.  The default of the column
 * "delete_at" sets the retention time, which is therefore dumped and restored
 * together with the table.  Vectors are put aside as real[], because the type
 * of the store's vectors may change before they are restored.
 *
 * The owner may drop the table.  Without it, only profiles that a user deletes
 * or untracks are erased.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "store/refresh.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(hrflow_store_orphans);

/* Suffix of the name of the table NAME_aside. */
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
	" state text,"
	" due_at timestamptz,"
	" put_aside_at timestamptz NOT NULL DEFAULT now(),"
	" delete_at timestamptz NOT NULL DEFAULT now() + interval '3 days',"
	" PRIMARY KEY (source_id, %I, section, item))",
	"ALTER TABLE %s ALTER COLUMN vector SET STORAGE EXTERNAL",
	"CREATE INDEX ON %s (delete_at)",
	"COMMENT ON TABLE %s IS"
	" 'vectors that are put aside until delete_at; see hrflow_restore()'"
};

/*
 * WITH query that inserts the rows of the WITH query "vectors" into
 * NAME_aside.  If a vector was put aside before, the new row replaces the old
 * one.  "state" and "due_at" are the values that an unwanted profile had
 * before it was put aside, which as_before_sql in restore.c restores; for all
 * other profiles, they are null.
 */
static const char put_sql[] =
", aside AS (INSERT INTO %R AS a (source_id, %I, section, item, vector,"
" fetched_at, reason, state, due_at)"
" SELECT v.source_id, v.%I, v.section, v.item, v.vector::real[],"
" v.fetched_at, %L, v.state, v.due_at FROM vectors AS v"
" ON CONFLICT (source_id, %I, section, item)"
" DO UPDATE SET vector = excluded.vector, fetched_at = excluded.fetched_at,"
" reason = excluded.reason, state = excluded.state,"
" due_at = excluded.due_at,"
" put_aside_at = excluded.put_aside_at, delete_at = excluded.delete_at)";

static const char count_sql[] =
"SELECT count(*) FROM (SELECT DISTINCT a.source_id, a.%I FROM %R AS a) AS a";

static const char lock_sql[] =
"SELECT array_agg(l.s::text), array_agg(l.i::text)"
" FROM (SELECT p.source_id AS s, p.%I AS i FROM %P AS p WHERE %s"
" ORDER BY p.source_id, p.%I%s) AS l";

/*
 * Locking clauses for profiles that may be put aside or erased.  The second
 * one skips rows that other sessions have locked.
 */
static const char lock_all_sql[] = " FOR UPDATE OF p";
static const char lock_free_sql[] = " FOR UPDATE OF p SKIP LOCKED";

/* LIMIT and locking clause for a batch of $1 profiles. */
static const char lock_batch_sql[] = " LIMIT $1 FOR UPDATE OF p";

/*
 * SQL condition for the keys after the last key of the previous batch, which
 * consists of $2 and $3.  The argument is another condition.
 */
static const char after_key_sql[] = "(p.source_id, p.%I) > ($2, $3) AND %s";

/*
 * Statement that puts aside the unwanted profiles among those whose sources
 * and identifiers are in the arrays $2 and $3.  The profiles must be locked.
 * Unwanted profiles that have no vectors, neither in the store nor in
 * NAME_aside, are erased immediately.  For any other unwanted profile, vectors
 * that were put aside earlier also get the profile's current state and due_at.
 * If more than $1 unwanted profiles have vectors, all of these are kept.
 */
static const char put_unwanted_sql[] =
"WITH found AS MATERIALIZED"
" (SELECT p.source_id AS s, p.%I AS i, p.state, p.due_at,"
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
" RETURNING f.s, f.i, f.state, f.due_at),"
" vectors AS (DELETE FROM %V AS v USING unwanted AS u"
" WHERE v.source_id = u.s AND v.%I = u.i"
" RETURNING v.source_id, v.%I, v.section, v.item, v.vector,"
" v.fetched_at, u.state, u.due_at),"
" earlier AS (UPDATE %R AS a SET state = u.state, due_at = u.due_at"
" FROM unwanted AS u WHERE a.source_id = u.s AND a.%I = u.i"
" AND NOT EXISTS (SELECT FROM %V AS v WHERE v.source_id = a.source_id"
" AND v.%I = a.%I AND v.section = a.section AND v.item = a.item))%s%s"
" SELECT (SELECT count(*) FROM erased), (SELECT count(*) FROM unwanted),"
" CASE WHEN c.n <= $1 THEN 0 ELSE c.n END FROM counted AS c";

static const char set_unwanted_erased_at_sql[] =
", erased_at = clock_timestamp()";

static const char not_yet_unwanted_sql[] =
"%s AND p.state IS DISTINCT FROM 'unwanted'";

/* Number of columns that put_unwanted_sql returns. */
#define NCOUNTS 3

/*
 * Queries for the keys of the profiles that put_unwanted_sql has erased, to be
 * recorded in NAME_erased.  If their table was untracked, "put_aside_at" is
 * set, which distinguishes them from profiles that hrflow_untrack() has
 * erased; see erased.c.
 */
#define ERASED_AT_ONCE_SQL(put_aside_at) \
	"SELECT e.source_id, e.%I, 0 AS n, " put_aside_at " AS put_aside_at" \
	" FROM erased AS e"

static const char reconciled_sql[] = ERASED_AT_ONCE_SQL("NULL::timestamptz");
static const char untracked_sql[] = ERASED_AT_ONCE_SQL("now()");

/*
 * Statement that counts the vectors for each key that has no row in the table
 * of profiles.
 */
static const char orphans_sql[] =
"SELECT o.source_id, o.i, count(*)"
" FROM (SELECT v.source_id, v.%I AS i FROM %V AS v%s) AS o"
" WHERE NOT EXISTS (SELECT FROM %P AS p"
" WHERE p.source_id = o.source_id AND p.%I = o.i)"
" GROUP BY o.source_id, o.i ORDER BY o.source_id, o.i";

static const char and_aside_sql[] =
" UNION ALL SELECT a.source_id, a.%I FROM %R AS a";

/*
 * ------------------------------------------------------------------------
 * The table
 * ------------------------------------------------------------------------
 */

/*
 * Create the table NAME_aside for a store that is being created.  Of "store",
 * only "identifier_name" needs to be set.  "vectors" is the name of the table
 * of vectors, without its schema.
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
 * Return the table NAME_aside of a store, or InvalidOid if there is none.
 * Unless "problem" is NULL, sets *problem to the reason for ignoring a
 * relation with that name, or to NULL; see hrflow_beside_find().
 */
static Oid
find_table(const HrflowStore *store, char **problem)
{
	const HrflowColumn columns[] = {
		{.name = "source_id", .type = TEXTOID},
		{.name = store->identifier_name, .type = TEXTOID},
		{.name = "section", .type = TEXTOID},
		{.name = "item", .type = INT4OID},
		{.name = "vector"},		/* of any type */
		{.name = "fetched_at", .type = TIMESTAMPTZOID},
		{.name = "reason", .type = TEXTOID},
		{.name = "state", .type = TEXTOID},
		{.name = "due_at", .type = TIMESTAMPTZOID},
		{.name = "put_aside_at", .type = TIMESTAMPTZOID},
		{.name = "delete_at", .type = TIMESTAMPTZOID}
	};

	return hrflow_beside_find(store, SUFFIX, columns, lengthof(columns),
							  problem);
}

/*
 * Return the table NAME_aside of a store, or InvalidOid if there is none.
 */
Oid
hrflow_aside_find(const HrflowStore *store)
{
	return find_table(store, NULL);
}

/*
 * Called when profiles have been erased, or the store is being dropped.  Warn
 * if there is a relation NAME_aside that is ignored, because vectors of the
 * store may remain in it; see hrflow_beside_should_warn().
 */
void
hrflow_aside_warn(const HrflowStore *store, bool is_dropped)
{
	static HrflowBesideWarning last;
	char	   *problem;

	(void) find_table(store, &problem);
	if (problem == NULL || !hrflow_beside_should_warn(store, &last))
		return;
	ereport(WARNING,
			(errmsg("vectors of erased profiles of store %s may remain in relation \"%s" SUFFIX "\"",
					store->vectors_name,
					RelationGetRelationName(store->vectors)),
			 errdetail_internal("%s", problem),
			 is_dropped ?
			 errhint("Drop the relation if it contains vectors of the store.") :
			 errhint("If this is the store's own table, revert the change made to it, and call hrflow_untrack() for the profiles that hrflow_store_orphans() returns.  Otherwise, rename the relation.")));
}

/*
 * Find the table NAME_aside of a store, and lock it until the end of the
 * transaction, so that it cannot be dropped before vectors are put there.
 * Sets *table to its OID, or to InvalidOid if there is no such table.  If
 * another session holds a conflicting lock, waits if "wait" is set, and
 * otherwise returns false.  Returns true in all other cases, even if there is
 * no such table.
 */
bool
hrflow_aside_lock(const HrflowStore *store, bool wait, Oid *table)
{
	*table = hrflow_aside_find(store);
	if (!OidIsValid(*table))
		return true;
	if (wait)
		LockRelationOid(*table, RowExclusiveLock);
	else if (!ConditionalLockRelationOid(*table, RowExclusiveLock))
		return false;

	/* The table may have been dropped or renamed before it was locked. */
	if (hrflow_aside_find(store) != *table)
		*table = InvalidOid;
	return true;
}

/*
 * Return a WITH query that inserts the rows of the WITH query "vectors" into
 * NAME_aside.  "vectors" must have the columns of the table of vectors, and
 * "state" and "due_at".  If the store has no table NAME_aside, returns an
 * empty string; "vectors" must then return no rows.
 */
const char *
hrflow_aside_put_sql(const HrflowStore *store, const char *reason)
{
	Oid			table = hrflow_aside_find(store);

	return OidIsValid(table) ?
		hrflow_store_sql(store, put_sql, table, reason) : "";
}

/*
 * Count the profiles that have vectors in NAME_aside.
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
 * the keys to the parameters "keys", as two arrays.  "how" is the locking
 * clause, preceded by a space and optionally LIMIT.  Returns false if no
 * profile was locked; "keys" must then not be used.
 */
bool
hrflow_aside_lock_keys(const HrflowStore *store, const char *condition,
					   const char *how,
					   const HrflowParameters *parameters,
					   HrflowParameters *keys)
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
 * Return the number of keys that hrflow_aside_lock_keys() has added.
 */
static int64
count_keys(const HrflowParameters *keys)
{
	return ARR_DIMS(DatumGetArrayTypeP(keys->values[0]))[0];
}

/*
 * ------------------------------------------------------------------------
 * Moving vectors out of a store
 * ------------------------------------------------------------------------
 */

/*
 * Warn about "nput" unwanted profiles that were put aside, and about "nkept"
 * unwanted profiles that were kept because hrflow_erase_allowance() permitted
 * fewer.
 */
static void
warn_of_unwanted(const HrflowStore *store, int64 nput, int64 nkept)
{
	if (nput > 0)
		ereport(WARNING,
				(errmsg_plural("the vectors of " INT64_FORMAT " profile of store %s were put aside",
							   "the vectors of " INT64_FORMAT " profiles of store %s were put aside",
							   nput, nput, store->vectors_name),
				 errdetail_plural("This profile is no longer in any table that feeds the store.",
								  "These profiles are no longer in any table that feeds the store.",
								  nput),
				 errhint_plural("To restore the vectors, call hrflow_restore() before they are erased, or hrflow_track_table() for a table that contains the profile.",
								"To restore the vectors, call hrflow_restore() before they are erased, or hrflow_track_table() for a table that contains the profiles.",
								nput)));
	if (nkept > 0)
		ereport(WARNING,
				(errmsg_plural("store %s keeps the vectors of " INT64_FORMAT " profile that is in no table that feeds it",
							   "store %s keeps the vectors of " INT64_FORMAT " profiles that are in no table that feeds it",
							   nkept, store->vectors_name, nkept),
				 store->has_erased_at ?
				 errdetail("At most %d%% of the profiles of a store or 20 profiles, whichever is greater, are put aside in this way within 24 hours (\"hrflow_embed.max_erased_percent\").",
						   hrflow_settings_max_erased()) :
				 errdetail("The table of profiles has no column \"erased_at\", so it is not known how many profiles have lost vectors within the last 24 hours."),
				 errhint_plural("If a table contains this profile, call hrflow_track_table() for that table.  Otherwise, erase it with hrflow_untrack().",
								"If a table contains these profiles, call hrflow_track_table() for that table.  Otherwise, erase them with hrflow_untrack().",
								nkept)));
}

/*
 * Return an SQL condition that is true if the profile in row "p" is unwanted,
 * but its state is not "unwanted" yet.
 */
static char *
unwanted_now(const HrflowStore *store, Oid function)
{
	return hrflow_store_sql(store, not_yet_unwanted_sql,
							hrflow_feeder_unwanted(store, function));
}

/*
 * Put aside the unwanted profiles among those with the given keys, and erase
 * those that have no vectors.  If "is_limited", and more profiles with vectors
 * are unwanted than hrflow_erase_allowance() permits, keep all profiles that
 * have vectors.
 *
 * The caller must have locked the profiles.  The tables that feed the store
 * are looked up and queried only now, because a session that held the locks
 * before may have tracked another table.
 *
 * Sets the elements of "counts" to the number of profiles that were erased
 * immediately, the number that were put aside, and the number that were kept
 * because the allowance was smaller.  Returns false, after a WARNING, if
 * nothing can be put aside.
 */
static bool
put_locked(const HrflowStore *store, Oid function, bool is_limited,
		   const HrflowParameters *keys, int64 *counts)
{
	const char *reason = is_limited ? "reconcile" : "untrack";
	int64		allowance = PG_INT64_MAX;
	Oid			aside;
	char	   *unwanted;
	char	   *problem;
	HrflowParameters parameters = {0};
	HrflowRefreshed refreshed = {0};

	AcceptInvalidationMessages();

	/* The condition omits tables that hrflow_feeder_owns_all() rejects. */
	unwanted = unwanted_now(store, function);
	if (!hrflow_feeder_owns_all(store, function))
		return false;
	(void) hrflow_aside_lock(store, true, &aside);
	if (!OidIsValid(aside))
	{
		(void) find_table(store, &problem);
		ereport(WARNING,
				(errmsg("store %s keeps profiles that are in no table that feeds it",
						store->vectors_name),
				 problem != NULL ?
				 errdetail("Relation \"%s" SUFFIX "\" cannot be used.  %s",
						   RelationGetRelationName(store->vectors), problem) :
				 errdetail("The store has no table \"%s" SUFFIX "\" for vectors that are put aside.",
						   RelationGetRelationName(store->vectors)),
				 errhint("Use hrflow_untrack() to erase profiles.")));
		return false;
	}
	if (is_limited)
		allowance = hrflow_erase_allowance(store, count_keys(keys), &refreshed);
	hrflow_store_add(&parameters, INT8OID, Int64GetDatum(Max(allowance, 0)));
	for (int i = 0; i < keys->n; i++)
		hrflow_store_add(&parameters, keys->types[i], keys->values[i]);
	hrflow_store_execute_latest(hrflow_store_sql(store, put_unwanted_sql,
												 aside,
												 unwanted,
												 is_limited && store->has_erased_at ?
												 set_unwanted_erased_at_sql : "",
												 aside,
												 hrflow_aside_put_sql(store, reason),
												 hrflow_erased_note_sql(store,
																		quote_literal_cstr(reason),
																		is_limited ?
																		reconciled_sql :
																		untracked_sql)),
								&parameters);
	for (int i = 0; i < NCOUNTS; i++)
		counts[i] = DatumGetInt64(hrflow_store_datum(0, i + 1));
	if (counts[0] > 0)
		hrflow_erased_warn(store);
	if (allowance == HRFLOW_ERASE_UNDECIDED)
		counts[2] = 0;			/* kept for another reason */
	return true;
}

/*
 * Put aside all unwanted profiles; see put_locked().  If "is_limited", skip
 * profiles that another session has locked.  We must not wait for such a
 * session: it may be about to insert rows that refer to these profiles, and
 * may be waiting for a row of the table that we are reconciling.  Returns the
 * number of profiles that were put aside or erased.
 */
uint64
hrflow_aside_put_unwanted(const HrflowStore *store, Oid function, bool is_limited)
{
	HrflowParameters keys = {0};
	int64		counts[NCOUNTS];

	if (!hrflow_aside_lock_keys(store, unwanted_now(store, function),
								is_limited ? lock_free_sql : lock_all_sql,
								NULL, &keys) ||
		!put_locked(store, function, is_limited, &keys, counts))
		return 0;
	warn_of_unwanted(store, counts[1], counts[2]);
	return counts[0] + counts[1];
}

/*
 * Replace *last with a copy of the last text in a nonempty array.
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
 * Put aside the next batch of unwanted profiles, in the order of their keys.
 * Returns false if there were none left, or if the batch was refused.
 * Otherwise, the caller must commit, and call this function again.  Each batch
 * begins after the last key of the previous batch, so no batch searches the
 * keys of previous batches again.
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
	if (!hrflow_aside_lock_keys(store, condition, lock_batch_sql, &parameters,
								&keys))
		return false;
	keep_last(batch->context, keys.values[0], &batch->source_id);
	keep_last(batch->context, keys.values[1], &batch->identifier);
	batch->is_refused = !put_locked(store, function, false, &keys, counts);
	if (batch->is_refused)
		return false;
	batch->nerased += counts[0];
	batch->nput += counts[1];
	return true;
}

/*
 * Called after the last batch: warn about the profiles that were put aside.
 * Returns the number of profiles that all batches have put aside or erased.
 */
uint64
hrflow_aside_put_end(const HrflowStore *store, const HrflowAsideBatch *batch)
{
	warn_of_unwanted(store, batch->nput, 0);
	return batch->nerased + batch->nput;
}

/*
 * hrflow_store_orphans(store regclass)
 *		RETURNS TABLE (source_id text, profile_id text, vectors bigint)
 */
Datum
hrflow_store_orphans(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	HrflowStore store;
	Oid			table;
	char	   *problem;
	uint64		n;

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_READ);
	table = find_table(&store, &problem);
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot search relation \"%s" SUFFIX "\" for vectors of store %s",
						RelationGetRelationName(store.vectors),
						store.vectors_name),
				 errdetail_internal("%s", problem),
				 errhint("If this is the store's own table, revert the change made to it.  Otherwise, rename the relation.")));
	n = hrflow_store_execute(hrflow_store_sql(&store, orphans_sql,
											  !OidIsValid(table) ? "" :
											  hrflow_store_sql(&store,
															   and_aside_sql,
															   table)), NULL);
	for (uint64 i = 0; i < n; i++)
		tuplestore_puttuple(rsinfo->setResult, SPI_tuptable->vals[i]);
	hrflow_store_close(&store);
	SPI_finish();
	return (Datum) 0;
}
