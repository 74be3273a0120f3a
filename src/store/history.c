/*-------------------------------------------------------------------------
 *
 * history.c
 *		The history of a store's runs, in the table NAME_run beside it.
 *
 * A run inserts its row before it asks for anything, and completes it in the
 * last of its transactions, so a row without an end is of a run that goes on or
 * that was killed.  To tell these apart, a run holds a lock of its session for
 * as long as it goes on, which PostgreSQL releases however the session ends.
 *
 * The table is as much the owner's as the other two: it is dumped, dropped and
 * restored with them.  A store without it keeps no history.
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

/* The name of the table is that of the vectors and this. */
#define SUFFIX "_run"

/* Number of runs that are kept: a week of one each minute. */
#define MAX_RUNS 10000

/*
 * Maximum time to wait for a lock on the history, in milliseconds.  An open
 * transaction that has locked it must not keep a store from being refreshed.
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

/* $1 is when the run began, and $2 the process. */
static const char begin_sql[] =
"INSERT INTO %R AS r (started_at, pid) VALUES ($1, $2) RETURNING r.run";

/* $1 is the run's number; the others are in the order of the columns. */
static const char end_sql[] =
"UPDATE %R AS r SET ended_at = clock_timestamp(), stop_reason = $2,"
" asked = $3, ok = $4, failed = $5, missing = $6, erased = $7,"
" requests = $8, error = $9 WHERE r.run = $1";

/* Runs that end at the same time do not wait for each other. */
static const char forget_sql[] =
"DELETE FROM %R AS r WHERE r.run IN"
" (SELECT o.run FROM %R AS o WHERE o.run <= $1 FOR UPDATE SKIP LOCKED)";

static const char last_sql[] =
"SELECT r.started_at, r.run, r.stop_reason, r.error"
" FROM %R AS r ORDER BY r.run DESC LIMIT 1";

/*
 * ------------------------------------------------------------------------
 * The table
 * ------------------------------------------------------------------------
 */

/*
 * Create the table for a store that is being created.  "vectors" is the name of
 * its table of vectors.
 */
void
hrflow_history_create(const char *schema, const char *vectors)
{
	const char *name = hrflow_beside_name(schema, vectors, SUFFIX);

	hrflow_store_execute(hrflow_store_sql(NULL, create_sql, name), NULL);
	hrflow_store_execute(hrflow_store_sql(NULL, comment_sql, name), NULL);
}

/*
 * The table of runs of a store, or InvalidOid where there is none.
 */
Oid
hrflow_history_find(const HrflowStore *store)
{
	static const char *const columns[] = {
		"run", "started_at", "ended_at", "stop_reason", "requests", "error",
		NULL
	};

	return hrflow_beside_find(store, SUFFIX, columns);
}

/*
 * ------------------------------------------------------------------------
 * The lock
 * ------------------------------------------------------------------------
 */

/*
 * The lock of a run.  It is an advisory one, since a session keeps no others when
 * a transaction aborts; the last number sets it apart from those of SQL, which
 * have 1 and 2 there.  Two runs whose numbers differ by a multiple of 2^32 would
 * share it, but by then the first is forgotten.
 */
static void
set_run_tag(LOCKTAG *tag, Oid runs, int64 run)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, runs, (uint32) run, 3);
}

/*
 * Is the session of a run that has no end still there?  A standby does not
 * know, and takes it for granted.
 */
static bool
is_running(Oid runs, int64 run)
{
	LOCKTAG		tag;

	if (RecoveryInProgress())
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

/* What insert_row() and complete_row() are to do. */
typedef struct Entry
{
	HrflowRun  *run;
	const HrflowStore *store;
	Oid			runs;
	bool		is_there;		/* unless a trigger of the owner's undoes it */
} Entry;

/*
 * Write to the history.  Where that fails, the run goes on without, with a WARNING:
 * vectors matter more.  Returns whether it was done.
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
			(errmsg("run is not entered in the history of store %s",
					entry->store->vectors_name),
			 errdetail_internal("%s", error->message)));
	return false;
}

static void
insert_row(void *arg)
{
	Entry	   *entry = arg;
	HrflowParameters parameters = {0};

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
 * A run begins: insert its row.  Its lock is held until
 * hrflow_history_unlock().
 */
void
hrflow_history_begin(HrflowRun *run, const HrflowStore *store)
{
	Entry		entry = {
		.run = run, .store = store, .runs = hrflow_history_find(store)
	};
	LOCKTAG		tag;

	/* On a subscriber the row could have the number of one that arrives. */
	hrflow_remote_check_subscription(store);
	if (!OidIsValid(entry.runs) || !write_entry(&entry, insert_row) ||
		!entry.is_there)
		return;
	set_run_tag(&tag, entry.runs, run->number);
	run->has_lock =
		LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
	run->runs = entry.runs;
}

/*
 * Add a count to the parameters.
 */
static void
add_count(HrflowParameters *parameters, int64 n)
{
	hrflow_store_add(parameters, INT8OID, Int64GetDatum(n));
}

/*
 * Add a text, or NULL.
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
	add_count(&parameters, run->nerased + run->ngone);
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
 * A run ends: complete its row, and forget the oldest ones.  The user may have
 * dropped the table meanwhile.
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
 * Release the lock of a run, however it has ended.
 */
void
hrflow_history_unlock(HrflowRun *run)
{
	LOCKTAG		tag;

	if (!run->has_lock)
		return;
	set_run_tag(&tag, run->runs, run->number);
	LockRelease(&tag, ExclusiveLock, true);
	run->has_lock = false;
}

/*
 * Has a run failed that ended for this reason?  It has not where it met a limit
 * that it was given.
 */
bool
hrflow_history_is_failure(HrflowStop stop)
{
	return stop > HRFLOW_STOP_REQUEST_LIMIT;
}

/*
 * The status of a run, in pg_cron's words.  "reason" is NULL for one that has no
 * end.
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
	return "failed";			/* someone else has written it */
}

/*
 * The last run of a store: when it began, its status and its error, as
 * "values" and "nulls" of three columns.
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
