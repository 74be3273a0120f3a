/*-------------------------------------------------------------------------
 *
 * work.c
 *		Transactions of a refresh, and functions that procedures share.
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
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Maximum time to wait for a lock when the run is ending, in milliseconds. */
#define LAST_LOCK_TIMEOUT 1000

/*
 * Settings to be turned off.  Before PostgreSQL 18, a plan that cannot avoid
 * a disabled node costs at least disable_cost, which is 10^10.  "jit" is
 * turned off because such a cost would cause statements to be compiled, which
 * is not worth it.
 */
static const char *const planner_settings[] = {
	"enable_seqscan", "enable_bitmapscan", "enable_hashjoin",
	"enable_mergejoin", "jit"
};

/*
 * Stop waiting for locks before transaction_timeout terminates the session.
 * If the run is ending, stop even sooner, so that a user who cancelled it
 * need not cancel it again.
 */
static void
limit_lock_timeout(const HrflowRun *run)
{
	int			limit = hrflow_compat_transaction_timeout() / 2;

	if ((run->error != NULL || run->is_ending) &&
		(limit == 0 || limit > LAST_LOCK_TIMEOUT))
		limit = LAST_LOCK_TIMEOUT;
	if (limit > 0 && (LockTimeout == 0 || LockTimeout > limit))
		(void) set_config_option("lock_timeout", psprintf("%d", limit),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
								 true, 0, false);
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
 * Keep an error that was caught, to be thrown at the end of the run, unless
 * there is an earlier one.  Ends the transaction.  Holds interrupts
 * meanwhile, because nothing would catch the error of another cancel.
 */
void
hrflow_work_keep_error(HrflowRun *run)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);
	ErrorData  *error = CopyErrorData();

	HOLD_INTERRUPTS();
	FlushErrorState();
	while (ActiveSnapshotSet())
		PopActiveSnapshot();
	SPI_rollback();
	if (run->error == NULL)
		run->error = error;
	RESUME_INTERRUPTS();
	MemoryContextSwitchTo(old);
}

/*
 * Call a function in a transaction, and commit it.  The function runs in a
 * subtransaction, because an error within a trigger would leave SPI at a
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

	begin_work(run, &arg.store);
	error = hrflow_store_try(do_work_in_store, &arg);
	if (error != NULL)
		ReThrowError(error);
	end_work(&arg.store);
	MemoryContextSwitchTo(old);
	MemoryContextReset(run->work_context);
}

/*
 * Like hrflow_work_do(), but keep an error, to be thrown at the end of the
 * run, unless there is an earlier one.  Returns true if there was no error.
 */
bool
hrflow_work_try(HrflowRun *run, HrflowWork work)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;
	volatile bool ok = true;

	/* Time limits must be able to end a wait for a lock. */
	InterruptHoldoffCount = 0;
	PG_TRY();
	{
		hrflow_work_do(run, work);
	}
	PG_CATCH();
	{
		hrflow_work_keep_error(run);
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
 * Begin a new transaction, so that no transaction lasts for long.
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
 * Refuse a CALL of a procedure if it cannot have transactions of its own.
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
				 errmsg("%s must be between 1 and %d", name, max)));
	return value;
}
