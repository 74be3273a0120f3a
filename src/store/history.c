/*-------------------------------------------------------------------------
 *
 * history.c
 *		Records the runs of a store in its table NAME_run.
 *
 * A run inserts its row before it sends a request, and completes the row in
 * its last transaction.  A row without "ended_at" therefore belongs to a run
 * that is still in progress or whose end was not recorded, usually because it
 * was killed.  To distinguish the two, a run holds a session-level lock, which
 * PostgreSQL releases no matter how the session ends.
 *
 * The table belongs to the store's owner, and is dumped, restored and dropped
 * together with the store's other tables.  A store without NAME_run has no
 * history.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "store/refresh.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

/* Suffix of the name of the table NAME_run. */
#define SUFFIX "_run"

/* Number of runs to keep: about one week, if there is a run each minute. */
#define MAX_RUNS 10000

/*
 * Maximum time to wait for a lock on NAME_run, in milliseconds, so that an
 * open transaction that has locked the table cannot keep a store from being
 * refreshed.
 */
#define MAX_LOCK_WAIT 1000

static const char *const stop_names[] = {
	[HRFLOW_STOP_DONE] = "done",
	[HRFLOW_STOP_TIME_BUDGET] = "time_budget",
	[HRFLOW_STOP_MAX_PROFILES] = "max_profiles",
	[HRFLOW_STOP_REQUEST_LIMIT] = "request_limit",
	[HRFLOW_STOP_REFUSED] = "refused",
	[HRFLOW_STOP_OUTAGE] = "outage",
	[HRFLOW_STOP_NOT_KEPT] = "not_kept",
	[HRFLOW_STOP_ERROR] = "error",
	[HRFLOW_STOP_CANCELLED] = "cancelled",
	[HRFLOW_STOP_TERMINATED] = "terminated"
};

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

static const char create_sql[] =
"CREATE TABLE %s ("
" run bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
" started_at timestamptz NOT NULL,"
" ended_at timestamptz,"
" pid integer NOT NULL,"
" stop_reason text,"
" asked bigint,"
" ok bigint,"
" failed bigint,"
" missing bigint,"
" erased bigint,"
" requests bigint,"
" error text)";

static const char comment_sql[] =
"COMMENT ON TABLE %s IS"
" 'runs of hrflow_refresh(); see hrflow_store_status()'";

/* Insert the row of a run.  $1 is its start, and $2 is the process ID. */
static const char begin_sql[] =
"INSERT INTO %R AS r (started_at, pid) VALUES ($1, $2)"
" RETURNING r.run::bigint";

/*
 * Complete the row of a run.  $1 is its number; $2 to $9 are the new values.
 */
static const char end_sql[] =
"UPDATE %R AS r SET ended_at = clock_timestamp(), stop_reason = $2,"
" asked = $3, ok = $4, failed = $5, missing = $6, erased = $7,"
" requests = $8, error = $9 WHERE r.run = $1";

/*
 * Statement that deletes old runs, up to number $1.  It skips locked rows, so
 * that runs that end at the same time do not wait for one another.
 */
static const char forget_sql[] =
"DELETE FROM %R AS r WHERE r.run IN"
" (SELECT o.run FROM %R AS o WHERE o.run <= $1 FOR UPDATE SKIP LOCKED)";

/*
 * Statement that returns whether "not_kept" is the stop_reason of the last run
 * that has ended, and the run has refreshed no profile.  Returns no row if no
 * run has ended.
 */
static const char was_not_kept_sql[] =
"SELECT r.stop_reason IS NOT DISTINCT FROM 'not_kept'"
" AND COALESCE(r.ok, 0) = 0 FROM %R AS r"
" WHERE r.ended_at IS NOT NULL ORDER BY r.run DESC LIMIT 1";

static const char last_sql[] =
"SELECT r.started_at::timestamptz, r.run::bigint, r.stop_reason, r.error"
" FROM %R AS r ORDER BY r.run DESC LIMIT 1";

/*
 * ------------------------------------------------------------------------
 * The table
 * ------------------------------------------------------------------------
 */

/*
 * Create the table NAME_run for a store that is being created.  "vectors" is
 * the name of the table of vectors, without its schema.
 */
void
hrflow_history_create(const char *schema, const char *vectors)
{
	const char *name = hrflow_beside_name(schema, vectors, SUFFIX);

	hrflow_store_execute(hrflow_store_sql(NULL, create_sql, name), NULL);
	hrflow_store_execute(hrflow_store_sql(NULL, comment_sql, name), NULL);
}

/*
 * Return the table of runs of a store, or InvalidOid if there is none.
 */
Oid
hrflow_history_find(const HrflowStore *store)
{
	static const HrflowColumn columns[] = {
		{.name = "run", .type = INT8OID},
		{.name = "started_at", .type = TIMESTAMPTZOID},
		{.name = "ended_at", .type = TIMESTAMPTZOID},
		{.name = "stop_reason", .type = TEXTOID},
		{.name = "requests", .type = INT8OID},
		{.name = "error", .type = TEXTOID}
	};

	return hrflow_beside_find(store, SUFFIX, columns, lengthof(columns),
							  NULL);
}

/*
 * ------------------------------------------------------------------------
 * The lock
 * ------------------------------------------------------------------------
 */

/*
 * The run of this session that is in progress and has a row, or NULL.  There
 * is at most one, because hrflow_refresh() can only be called at top level.
 */
static const HrflowRun *own_run = NULL;

/*
 * Set the lock tag of a run.  We use an advisory lock, because other
 * session-level locks are released when a transaction aborts.  The last field
 * of the tag differs from 1 and 2, which the SQL functions for advisory locks
 * use.  Two runs whose numbers differ by a multiple of 2^32 would share a
 * lock, but the row of the earlier run has been deleted by then.
 */
static void
set_run_tag(LOCKTAG *tag, Oid runs, int64 run)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, runs, (uint32) run, 3);
}

/*
 * Is a run whose row lacks "ended_at" still in progress?  On a standby, where
 * the lock cannot be seen, assume that it is.  A run of this session, whose
 * status a trigger may request, does not conflict with our lock.
 */
static bool
is_running(Oid runs, int64 run)
{
	LOCKTAG		tag;

	if (RecoveryInProgress() ||
		(own_run != NULL && own_run->runs == runs && own_run->number == run))
		return true;
	set_run_tag(&tag, runs, run);
	if (LockAcquire(&tag, ShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	LockRelease(&tag, ShareLock, false);
	return false;
}

/*
 * ------------------------------------------------------------------------
 * Runs
 * ------------------------------------------------------------------------
 */

/* Argument of insert_row() and complete_row(). */
typedef struct Entry
{
	HrflowRun  *run;
	const HrflowStore *store;
	Oid			runs;
	bool		is_there;		/* was the row inserted?  A user's trigger may
								 * have prevented the insertion */
} Entry;

/*
 * Write to the table of runs, and return whether that succeeded.  A failure
 * causes only a WARNING, because writing vectors is more important than
 * recording the run.  Rethrows errors that must end the run, such as a query
 * cancel.
 */
static bool
write_entry(Entry *entry, void (*work) (void *arg))
{
	ErrorData  *error;

	if (LockTimeout == 0 || LockTimeout > MAX_LOCK_WAIT)
		(void) set_config_option("lock_timeout",
								 psprintf("%d", MAX_LOCK_WAIT), PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	error = hrflow_store_try(work, entry);
	if (error == NULL)
		return true;
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) ==
		ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION))
		ReThrowError(error);
	ereport(WARNING,
			(errmsg("could not record the run in the history of store %s",
					entry->store->vectors_name),
			 errdetail_internal("%s", error->message)));
	return false;
}

static void
insert_row(void *arg)
{
	Entry	   *entry = arg;
	HrflowParameters parameters = {0};

	entry->run->is_wary =
		hrflow_store_execute(hrflow_store_sql(entry->store, was_not_kept_sql,
											  entry->runs), NULL) > 0 &&
		DatumGetBool(hrflow_store_datum(0, 1));

	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(entry->run->started));
	hrflow_store_add(&parameters, INT4OID, Int32GetDatum(MyProcPid));
	entry->is_there =
		hrflow_store_execute(hrflow_store_sql(entry->store, begin_sql,
											  entry->runs),
							 &parameters) > 0;
	if (entry->is_there)
		entry->run->number = DatumGetInt64(hrflow_store_datum(0, 1));
}

/*
 * Insert the row of a run that begins, and acquire its lock, which is held
 * until hrflow_history_unlock().  If there is no table of runs, or the row
 * cannot be inserted, the run is not recorded.  Sets run->is_wary if the last
 * recorded run that has ended refreshed no profile, and was stopped because
 * its results could not be stored.  Throws 25006 if a subscription writes to
 * the store.
 */
void
hrflow_history_begin(HrflowRun *run, const HrflowStore *store)
{
	Entry		entry = {.run = run, .store = store};
	LOCKTAG		tag;

	/*
	 * Refuse to run on a subscriber, where rows of the store are replicated.
	 */
	hrflow_remote_check_subscription(store);
	entry.runs = hrflow_history_find(store);
	if (!OidIsValid(entry.runs) || !write_entry(&entry, insert_row) ||
		!entry.is_there)
		return;
	set_run_tag(&tag, entry.runs, run->number);
	run->has_lock =
		LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
	run->runs = entry.runs;
	own_run = run;
}

/*
 * Add a parameter of type bigint.
 */
static void
add_count(HrflowParameters *parameters, int64 n)
{
	hrflow_store_add(parameters, INT8OID, Int64GetDatum(n));
}

/*
 * Add a parameter of type text, which is null if "value" is NULL.
 */
static void
add_text(HrflowParameters *parameters, const char *value)
{
	hrflow_store_add(parameters, TEXTOID,
					 value == NULL ? (Datum) 0 : CStringGetTextDatum(value));
	if (value == NULL)
		parameters->nulls[parameters->n - 1] = 'n';
}

static void
complete_row(void *arg)
{
	const Entry *entry = arg;
	const HrflowRun *run = entry->run;
	HrflowParameters parameters = {0};
	HrflowParameters oldest = {0};

	add_count(&parameters, run->number);
	add_text(&parameters, stop_names[run->stop]);
	add_count(&parameters, run->nasked);
	add_count(&parameters, run->tallies[HRFLOW_TALLY_OK]);
	add_count(&parameters, run->tallies[HRFLOW_TALLY_RETRY] +
			  run->tallies[HRFLOW_TALLY_FAILED]);
	add_count(&parameters, run->tallies[HRFLOW_TALLY_MISSING]);
	add_count(&parameters, run->nerased + run->nshortened + run->ngone);
	add_count(&parameters, hrflow_budget_sent() - run->nsent_before);
	add_text(&parameters, run->stop == HRFLOW_STOP_TERMINATED ? NULL :
			 run->error != NULL ? run->error->message : run->stop_reason);
	hrflow_store_execute(hrflow_store_sql(entry->store, end_sql, entry->runs),
						 &parameters);

	add_count(&oldest, run->number - MAX_RUNS);
	hrflow_store_execute(hrflow_store_sql(entry->store, forget_sql,
										  entry->runs, entry->runs),
						 &oldest);
}

/*
 * Complete the row of a run that ends, and delete the oldest rows.  Does
 * nothing if the table has been dropped or renamed meanwhile.
 */
void
hrflow_history_end(HrflowRun *run, const HrflowStore *store)
{
	Entry		entry = {
		.run = run, .store = store, .runs = hrflow_history_find(store)
	};

	if (entry.runs == run->runs)
		(void) write_entry(&entry, complete_row);
}

/*
 * Release the lock of a run, if it is held.  Must be called even after an
 * error.
 */
void
hrflow_history_unlock(HrflowRun *run)
{
	LOCKTAG		tag;

	own_run = NULL;
	if (!run->has_lock)
		return;
	set_run_tag(&tag, run->runs, run->number);
	LockRelease(&tag, ExclusiveLock, true);
	run->has_lock = false;
}

/*
 * Did a run that ended for this reason fail?  Reaching a limit that the user
 * has set is not a failure.
 */
bool
hrflow_history_is_failure(HrflowStop stop)
{
	return stop > HRFLOW_STOP_REQUEST_LIMIT;
}

/*
 * Return the status of a run: pg_cron's "running", "succeeded" or "failed", or
 * "killed" if the run has no recorded end, but is no longer running.  "reason"
 * says why the run ended, or is NULL if no end was recorded.
 */
static const char *
status_of_run(Oid runs, int64 run, const char *reason)
{
	if (reason == NULL)
		return is_running(runs, run) ? "running" : "killed";
	for (int i = 0; i < lengthof(stop_names); i++)
	{
		if (strcmp(reason, stop_names[i]) == 0)
			return hrflow_history_is_failure(i) ? "failed" : "succeeded";
	}
	return "failed";			/* not one of the reasons that we write */
}

/*
 * Get the start, the status and the error of the last run of a store, which
 * are stored in the three elements of "values" and "nulls".  All three are
 * null if no run is recorded.
 */
void
hrflow_history_last(const HrflowStore *store, Datum *values, bool *nulls)
{
	Oid			runs = hrflow_history_find(store);
	char	   *error;

	nulls[0] = nulls[1] = nulls[2] = true;
	if (!OidIsValid(runs) ||
		hrflow_store_execute(hrflow_store_sql(store, last_sql, runs),
							 NULL) == 0)
		return;
	values[0] = hrflow_store_datum(0, 1);
	values[1] =
		CStringGetTextDatum(status_of_run(runs,
										  DatumGetInt64(hrflow_store_datum(0, 2)),
										  hrflow_store_value_or_null(0, 3)));
	nulls[0] = nulls[1] = false;
	error = hrflow_store_value_or_null(0, 4);
	nulls[2] = error == NULL;
	if (error != NULL)
		values[2] = CStringGetTextDatum(error);
}
