/*-------------------------------------------------------------------------
 *
 * work.c
 *		Executes the work of a refresh in transactions, and provides functions
 *		that all procedures use.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "compat.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/proc.h"
#include "store/refresh.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/*
 * Maximum time for which a transaction waits for a lock while requests are in
 * flight, replies are to be written, or the run is ending, in milliseconds.
 * It is shorter than the default of deadlock_timeout, so that a deadlock does
 * not end the other session's transaction.
 */
#define MAX_LOCK_TIME 500

/*
 * Maximum time for which a transaction waits for a lock, in milliseconds, if a
 * table was locked when work was last tried, and requests are in flight.
 */
#define SHORT_LOCK_TIME 10

/*
 * Maximum time for which to retry work that was rolled back because its
 * statements could not acquire a lock, other than a lock on a whole table of
 * the store.
 */
#define MAX_LOCKED_OUT (60 * HRFLOW_SEC)

/* Minimum interval at which hrflow_work_receive() receives replies. */
#define RECEIVE_INTERVAL (20 * HRFLOW_MSEC)

/*
 * Planner settings that are turned off in the transactions of a run.  "jit" is
 * among them because, before PostgreSQL 18, a plan that cannot avoid a
 * disabled node costs at least disable_cost, which is 10^10.  Such a cost
 * would cause short statements to be compiled.
 */
static const char *const planner_settings[] = {
	"enable_seqscan", "enable_bitmapscan", "enable_hashjoin",
	"enable_mergejoin", "jit"
};

/*
 * Move pending interrupts that would terminate the session to run->held, and
 * let the run end, because a FATAL error in a transaction of the run would
 * lose the replies that have arrived.  Until the run ends, SIGTERM does not
 * cause such an interrupt; see interrupt.c.  If the connection to the client
 * is lost, also stop sending to the client, because each attempt would cause
 * another interrupt.
 */
void
hrflow_work_hold_fatal(HrflowRun *run)
{
	if (!hrflow_compat_fatal_interrupt_pending())
		return;
	hrflow_compat_hold_interrupts(&run->held);
	run->is_ending = true;
	if (run->held.connection_lost)
		whereToSendOutput = DestNone;
}

/*
 * May a transaction wait for locks as long as the caller's lock_timeout
 * allows?  Other sessions may hold a lock for a long time, for example to
 * execute REINDEX.  If a run waited for such a lock, requests in flight would
 * time out, although the API has replied, and profiles that have arrived would
 * not be written.
 */
bool
hrflow_work_may_wait(HrflowRun *run)
{
	return dlist_is_empty(&run->in_flight) && dlist_is_empty(&run->split) &&
		run->narrived == 0 && run->nsuspects == 0 && run->nforeign == 0;
}

/*
 * Reduce lock_timeout to at most "limit" milliseconds until the end of the
 * current subtransaction or GUC nesting level.
 */
void
hrflow_work_limit_locks(int limit)
{
	if (LockTimeout == 0 || LockTimeout > limit)
		(void) set_config_option("lock_timeout", psprintf("%d", limit),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
}

/*
 * Limit the time for which the transaction that is being started waits for
 * each lock, so that transaction_timeout does not terminate the session, and
 * no reply is lost; see hrflow_work_may_wait().
 */
static void
limit_lock_timeout(HrflowRun *run)
{
	int			timeout = hrflow_compat_transaction_timeout();
	int			limit = timeout / 4;

	if (run->error != NULL || run->is_ending || !hrflow_work_may_wait(run))
	{
		limit = run->lock_limit > 0 ? run->lock_limit : MAX_LOCK_TIME;
		if (timeout > 0)
			limit = Min(limit, timeout / 8);
		if (run->locked_out != NULL && run->is_shut &&
			!dlist_is_empty(&run->in_flight))
			limit = Min(limit, SHORT_LOCK_TIME);
	}
	else if (timeout == 0)
		return;
	limit = Max(limit, 1);
	run->lock_time = limit;
	run->locks_until = hrflow_clock_now() + limit * HRFLOW_MSEC;
	if (LockTimeout == 0 || LockTimeout > limit)
		(void) set_config_option("lock_timeout", psprintf("%d", limit),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
								 true, 0, false);
}

/*
 * Read the settings that determine how long a run waits for locks.
 */
void
hrflow_work_read_settings(HrflowRun *run, int request_timeout)
{
	run->lock_timeout = LockTimeout;
	run->lock_limit = Max(Min(MAX_LOCK_TIME, request_timeout / 4), 1);
}

/*
 * Receive the replies that have arrived, so that their requests do not time
 * out during a long transaction.  Does not throw.
 */
void
hrflow_work_receive(HrflowRun *run)
{
	int64		now = hrflow_clock_now();

	if (run->transport == NULL || now - run->received_at < RECEIVE_INTERVAL)
		return;
	run->received_at = now;
	hrflow_transport_work(run->transport);
}

/*
 * Open a store, with an active snapshot that exists until end_work().
 */
static void
begin_work(HrflowRun *run, HrflowStore *store)
{
	/*
	 * At other isolation levels, claims would fail instead of skipping rows
	 * that have changed.
	 */
	XactIsoLevel = XACT_READ_COMMITTED;
	PushActiveSnapshot(GetTransactionSnapshot());

	run->has_locks = false;
	limit_lock_timeout(run);
	hrflow_store_open(store, run->vectors, run->profiles, HRFLOW_STORE_OWN);

	/*
	 * Every statement should find the rows of a batch by their keys, even if
	 * the tables were small when they were last analyzed.
	 */
	for (int i = 0; i < lengthof(planner_settings); i++)
		(void) set_config_option(planner_settings[i], "off", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
}

static void
end_work(HrflowStore *store)
{
	hrflow_store_close(store);
	PopActiveSnapshot();
	SPI_commit();

	/* Hold no snapshot while waiting for the network. */
	InvalidateCatalogSnapshot();
}

typedef struct WorkInStore
{
	HrflowRun  *run;
	HrflowStore store;
	HrflowWork	work;
} WorkInStore;

static void
do_work_in_store(void *arg)
{
	WorkInStore *work = arg;

	SPI_connect();
	MemoryContextSwitchTo(work->run->work_context);
	work->work(work->run, &work->store);
	SPI_finish();
}

/*
 * End the transaction after an error that was caught.  Returns a copy of the
 * error, which lives as long as the run.  Holds off interrupts while doing so,
 * because nothing would catch the error of another query cancel.
 */
static ErrorData *
end_failed_work(HrflowRun *run)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);
	ErrorData  *error = CopyErrorData();

	HOLD_INTERRUPTS();
	FlushErrorState();
	while (ActiveSnapshotSet())
		PopActiveSnapshot();
	SPI_rollback();
	RESUME_INTERRUPTS();
	MemoryContextSwitchTo(old);
	return error;
}

/*
 * Save an error that was caught, to be rethrown at the end of the run, unless
 * an earlier error has been saved.  Ends the transaction.
 */
void
hrflow_work_keep_error(HrflowRun *run)
{
	ErrorData  *error = end_failed_work(run);

	if (run->error == NULL)
		run->error = error;
}

/*
 * Can work that failed with this error be retried?  It can if there was a
 * conflict with another session, such as a lock, and requests are in flight or
 * replies are waiting to be written, unless the run has already failed or the
 * session is being terminated.
 *
 * While the store's tables are locked, a run retries without a limit as long
 * as it may have requests in flight, and then as long as the caller's
 * lock_timeout allows.  For any other lock, such as a lock that a trigger
 * requires, it retries for at most MAX_LOCKED_OUT.
 */
static bool
is_locked_out(HrflowRun *run, const ErrorData *error)
{
	int64		since = run->locked_out == NULL ? 0 :
	hrflow_clock_now() - run->locked_out_at;

	if (!HRFLOW_IS_CONFLICT(error->sqlerrcode) || run->error != NULL ||
		run->is_ending || hrflow_work_may_wait(run))
		return false;
	if (run->has_locks)
		return since < MAX_LOCKED_OUT;
	return run->transport != NULL || run->lock_timeout == 0 ||
		since < run->lock_timeout * HRFLOW_MSEC;
}

/*
 * Has a write of all profiles together failed because of an error that may be
 * specific to one of the profiles?
 */
static bool
is_of_one_profile(const HrflowRun *run, HrflowWork work,
				  const ErrorData *error)
{
	return work == hrflow_write && run->has_locks && !run->is_single &&
		(HRFLOW_IS_CONFLICT(error->sqlerrcode) ||
		 !hrflow_write_is_of_server(error->sqlerrcode));
}

/*
 * Roll back a transaction after an error.  Save the error, unless the work can
 * be retried, or an earlier error has been saved.
 */
static void
take_error_of_work(HrflowRun *run, HrflowWork work)
{
	ErrorData  *error = end_failed_work(run);

	if (is_of_one_profile(run, work, error))
	{
		run->is_single = true;
		FreeErrorData(error);
	}
	else if (is_locked_out(run, error))
	{
		if (run->locked_out == NULL)
			run->locked_out_at = hrflow_clock_now();
		run->locked_out = work;
		run->is_shut = !run->has_locks;
		FreeErrorData(error);
	}
	else if (run->error == NULL)
		run->error = error;
}

/*
 * Call a function in a transaction, and commit the transaction; but rethrow an
 * error of the function without ending the transaction.  The function runs in
 * a subtransaction, because an error within a trigger would leave SPI at a
 * level where we could not end the transaction.  It also runs at its own SPI
 * level, because results at the level of the procedure are kept until the
 * procedure ends.
 */
void
hrflow_work_do(HrflowRun *run, HrflowWork work)
{
	MemoryContext old = MemoryContextSwitchTo(run->work_context);
	WorkInStore arg = {.run = run, .work = work};
	ErrorData  *error;

	/*
	 * Begin a new transaction, so that the work has all the time that
	 * transaction_timeout allows.
	 */
	if (hrflow_compat_transaction_timeout() > 0)
		hrflow_work_pause(run);
	begin_work(run, &arg.store);
	error = hrflow_store_try(do_work_in_store, &arg);
	if (error != NULL)
		ReThrowError(error);
	end_work(&arg.store);
	MemoryContextSwitchTo(old);
	MemoryContextReset(run->work_context);
}

/*
 * Like hrflow_work_do(), but save the first error, to be rethrown at the end
 * of the run, and roll back the transaction.  An error is not saved if the
 * work can be retried.  Returns true if there was no error.
 */
bool
hrflow_work_try(HrflowRun *run, HrflowWork work)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;
	volatile bool ok = true;

	hrflow_interrupts_check_client(run);
	hrflow_work_hold_fatal(run);

	/* Allow timeouts and a query cancel to end a wait for a lock. */
	InterruptHoldoffCount = 0;
	PG_TRY();
	{
		hrflow_work_do(run, work);
		if (run->locked_out == work)
			run->locked_out = NULL;
	}
	PG_CATCH();
	{
		take_error_of_work(run, work);
		ok = false;
	}
	PG_END_TRY();
	InterruptHoldoffCount = holdoff;
	MemoryContextSwitchTo(context);
	if (!ok)
		MemoryContextReset(run->work_context);
	return ok;
}

/*
 * Commit the transaction and begin a new one, so that none lasts for long.
 */
void
hrflow_work_pause(HrflowRun *run)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);

	SPI_commit();
	InvalidateCatalogSnapshot();
	MemoryContextSwitchTo(old);
}

/*
 * ------------------------------------------------------------------------
 * Procedures
 * ------------------------------------------------------------------------
 */

/*
 * Check that a procedure was called in a context in which it can commit.
 *
 * Throws 2D000 and, on a standby, 25006.
 */
void
hrflow_work_check_context(FunctionCallInfo fcinfo, const char *procedure)
{
	CallContext *context = (CallContext *) fcinfo->context;

	if (context == NULL || !IsA(context, CallContext) || context->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("%s cannot run inside a transaction block", procedure),
				 errhint("Call it outside of transaction blocks and functions, and not in a query string that contains other statements.")));
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot execute %s during recovery", procedure),
				 errhint("Call it on the primary server.")));
}

/*
 * Return an argument, which must be between 1 and "max".
 *
 * Throws 22023.
 */
int
hrflow_work_get_positive(FunctionCallInfo fcinfo, int argno, const char *name,
						 int max)
{
	int			value = PG_ARGISNULL(argno) ? 0 : PG_GETARG_INT32(argno);

	if (value < 1 || value > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be between 1 and %d",
						name, max)));
	return value;
}
