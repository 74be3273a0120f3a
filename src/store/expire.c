/*-------------------------------------------------------------------------
 *
 * expire.c
 *		Erases vectors that were put aside, when they expire.
 *
 * Very many vectors may expire at the same time, for example three days after
 * a table was untracked, so they are erased in batches.  A run erases a batch
 * after each write of replies while it fetches profiles, and further batches
 * at its end, each batch in a transaction of its own.  So a time limit undoes
 * at most one batch, and no write of replies.  An SQL function runs in a
 * single transaction, and erases only one batch.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "store/refresh.h"
#include "utils/timestamp.h"

/*
 * Number of vectors in a batch, which limits the work that a time limit can
 * undo.  The expired vectors of a profile belong to the same batch, so a batch
 * may be somewhat larger.
 */
#define EXPIRED_BATCH 2000

/*
 * Statement that erases vectors that expired at $1 or earlier: the first $2 of
 * them, and the other expired vectors of the same profiles.  It returns the
 * number of vectors erased, and arrays of the keys of their profiles.  It
 * skips rows that another session has locked, because that session may be
 * restoring them.  The plan of this statement, like those of the statements in
 * claim.c, does not depend on the statistics of the table.
 */
static const char erase_expired_sql[] =
"WITH chosen AS MATERIALIZED"
" (SELECT a.source_id AS s, a.%I AS i FROM %R AS a"
" WHERE a.delete_at <= $1 ORDER BY a.delete_at LIMIT $2"
" FOR UPDATE SKIP LOCKED),"
" expired AS MATERIALIZED"
" (SELECT l.* FROM (SELECT DISTINCT c.s, c.i FROM chosen AS c) AS k"
" CROSS JOIN LATERAL"
" (SELECT a.tableoid AS part, a.ctid AS row FROM %R AS a"
" WHERE a.source_id = k.s AND a.%I = k.i AND a.delete_at <= $1"
" FOR UPDATE SKIP LOCKED) AS l),"
" aside AS (DELETE FROM %R AS a USING expired AS x"
" WHERE a.tableoid = x.part AND a.ctid = x.row"
" RETURNING a.source_id, a.%I, a.reason, a.put_aside_at)%s"
" SELECT (SELECT count(*) FROM aside), array_agg(k.s::text),"
" array_agg(k.i::text)"
" FROM (SELECT DISTINCT a.source_id AS s, a.%I AS i FROM aside AS a) AS k";

static const char reason_sql[] = "x.reason";

static const char expired_sql[] =
"SELECT a.source_id, a.%I, a.reason, 1 AS n, a.put_aside_at FROM aside AS a";

/*
 * Statements that lock unwanted profiles, except those that another session
 * has locked, and return arrays of their keys.  lock_keys_sql locks profiles
 * whose sources and identifiers are in the arrays $1 and $2; lock_empty_sql
 * locks at most $1 profiles that have no vectors in NAME_aside, and meet the
 * condition erasable().
 */
#define LOCK_SQL \
	"SELECT array_agg(l.s), array_agg(l.i)" \
	" FROM (SELECT p.source_id AS s, p.%I AS i FROM %P AS p"

#define SKIP_LOCKED_SQL " FOR UPDATE OF p SKIP LOCKED) AS l"

static const char lock_keys_sql[] = LOCK_SQL
" JOIN unnest($1, $2) AS k(s, i) ON p.source_id = k.s AND p.%I = k.i"
" WHERE p.state = 'unwanted'" SKIP_LOCKED_SQL;

static const char lock_empty_sql[] = LOCK_SQL
" WHERE p.state = 'unwanted' AND NOT EXISTS (SELECT FROM %R AS a"
" WHERE a.source_id = p.source_id AND a.%I = p.%I)%s LIMIT $1" SKIP_LOCKED_SQL;

/*
 * Statement that erases the unwanted profiles whose sources and identifiers
 * are in the arrays $1 and $2, if they have no vectors in NAME_aside, and meet
 * the condition erasable().  The profiles must be locked.  A vector still
 * counts if another session has changed its row, but has not committed the
 * change.
 */
static const char erase_unwanted_sql[] =
"DELETE FROM %P AS p USING unnest($1, $2) AS k(s, i)"
" WHERE p.source_id = k.s AND p.%I = k.i AND p.state = 'unwanted'"
" AND NOT EXISTS (SELECT FROM %R AS a"
" WHERE a.source_id = p.source_id AND a.%I = p.%I)%s";

/*
 * SQL condition for a profile no longer to count towards the limit; see
 * hrflow_erase_count().
 */
static const char not_recent_sql[] =
" AND (p.erased_at > clock_timestamp() - interval '24 hours') IS NOT TRUE";

/*
 * Return an additional condition for unwanted profiles without vectors to be
 * erased, or an empty string.  If erasures are not recorded, only the rows of
 * these profiles show how many have lost vectors within the last 24 hours.
 */
static const char *
erasable(const HrflowStore *store)
{
	return store->has_erased_at && !OidIsValid(hrflow_erased_find(store)) ?
		not_recent_sql : "";
}

/*
 * Add two arrays of keys to parameters: the given column of the last
 * statement's result, and the column after it.  Returns false if the arrays
 * are null.
 */
static bool
get_keys(int column, HrflowParameters *keys)
{
	for (int i = column; i < column + 2; i++)
	{
		bool		is_null;
		Datum		array = SPI_getbinval(SPI_tuptable->vals[0],
										  SPI_tuptable->tupdesc, i, &is_null);

		if (is_null)
			return false;
		hrflow_store_add(keys, TEXTARRAYOID, array);
	}
	return true;
}

/*
 * Lock unwanted profiles with the statement "lock", and erase those that have
 * no vectors in NAME_aside and meet the condition erasable().  Vectors are put
 * aside only for locked profiles, so a snapshot that is taken after the lock
 * contains all of these vectors.
 */
static void
erase_unwanted(const HrflowStore *store, Oid aside, const char *lock,
			   const HrflowParameters *parameters)
{
	HrflowParameters keys = {0};

	hrflow_store_execute_latest(lock, parameters);
	if (get_keys(1, &keys))
		hrflow_store_execute_latest(hrflow_store_sql(store,
													 erase_unwanted_sql,
													 aside, erasable(store)),
									&keys);
}

/*
 * Erase a batch of expired vectors, and unwanted profiles that have no vectors
 * left.  Returns true if there may be more expired vectors.  Does nothing, and
 * returns false, if there is no table NAME_aside, or while another session has
 * locked it.
 */
bool
hrflow_expire_batch(const HrflowStore *store)
{
	HrflowParameters parameters = {0};
	HrflowParameters keys = {0};
	HrflowParameters limit = {0};
	const char *note;
	Oid			aside;
	int64		n;

	if (!hrflow_aside_lock(store, false, &aside) || !OidIsValid(aside))
		return false;
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(GetCurrentTimestamp()));
	hrflow_store_add(&parameters, INT8OID, Int64GetDatum(EXPIRED_BATCH));
	note = hrflow_erased_note_sql(store, reason_sql, expired_sql);
	hrflow_store_execute_latest(hrflow_store_sql(store, erase_expired_sql, aside,
												 aside, aside, note),
								&parameters);
	n = DatumGetInt64(hrflow_store_datum(0, 1));
	if (n > 0)
		hrflow_erased_warn(store);
	if (get_keys(2, &keys))
		erase_unwanted(store, aside, hrflow_store_sql(store, lock_keys_sql),
					   &keys);
	if (n >= EXPIRED_BATCH)
		return true;

	/* A user may have deleted vectors of unwanted profiles from NAME_aside. */
	hrflow_store_add(&limit, INT8OID, Int64GetDatum(EXPIRED_BATCH));
	erase_unwanted(store, aside,
				   hrflow_store_sql(store, lock_empty_sql, aside,
									erasable(store)), &limit);
	return false;
}

/*
 * ------------------------------------------------------------------------
 * In a run
 * ------------------------------------------------------------------------
 */

/* Argument of try_batch(). */
typedef struct Expiry
{
	const HrflowStore *store;
	bool		has_more;
} Expiry;

static void
try_batch(void *arg)
{
	Expiry	   *expiry = arg;

	expiry->has_more = hrflow_expire_batch(expiry->store);
}

/*
 * HrflowWork callback: erase a batch.  If that fails, the run continues with a
 * WARNING, because writing vectors is more important than erasing expired
 * ones.  Rethrows errors that must end the run, such as a query cancel.
 */
static void
erase_in_run(HrflowRun *run, const HrflowStore *store)
{
	Expiry		expiry = {.store = store};
	ErrorData  *error = hrflow_store_try(try_batch, &expiry);

	run->expired_done = !expiry.has_more;
	if (error == NULL)
		return;
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) ==
		ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION))
		ReThrowError(error);
	ereport(WARNING,
			(errmsg("could not erase expired vectors of store %s",
					store->vectors_name),
			 errdetail_internal("%s", error->message)));
}

/*
 * Erase a batch of expired vectors, in a transaction of its own.  Does nothing
 * if the last batch left no expired vectors or failed, or if the run is about
 * to end.
 */
void
hrflow_expire_some(HrflowRun *run)
{
	if (!run->expired_done && run->error == NULL && !run->is_ending &&
		!run->is_stopping)
		(void) hrflow_work_try(run, erase_in_run);
}

/*
 * Erase expired vectors, including those that expired during the run.  Stops
 * when none is left, at the end of the time budget, if a batch fails, if
 * another session has locked NAME_aside, or if the run is ended by an error or
 * by the end of the session.
 */
void
hrflow_expire_all(HrflowRun *run)
{
	run->expired_done = false;
	while (!run->expired_done && run->error == NULL && !run->is_ending &&
		   hrflow_work_try(run, erase_in_run))
	{
		hrflow_interrupts_take(run);
		if (run->deadline != DT_NOEND &&
			GetCurrentTimestamp() >= run->deadline)
			break;
	}
}
