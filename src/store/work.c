/*-------------------------------------------------------------------------
 *
 * work.c
 *		The transactions of a refresh, and what procedures have in common.
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

/* How long a lock is waited for by a run that is to end, in milliseconds. */
#define LAST_LOCK_TIMEOUT 1000

/*
 * What has no other way than one that is off seems to cost 10^10 before 18: it
 * is not worth compiling for that.
 */
static const char *const planner_settings[] = {
	"enable_seqscan", "enable_bitmapscan", "enable_hashjoin",
	"enable_mergejoin", "jit"
};

/*
 * Give up waiting for a lock before transaction_timeout ends the session; and
 * soon, where the run is to end: whoever cancelled it does not want to do so
 * again.
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
 * Begin with a store: a snapshot is there until end_work().
 */
static void
begin_work(HrflowRun *run, HrflowStore *store)
{
	/* Claiming skips what is locked: other levels would fail instead. */
	XactIsoLevel = XACT_READ_COMMITTED;
	PushActiveSnapshot(GetTransactionSnapshot());

	limit_lock_timeout(run);
	hrflow_store_open(store, run->vectors, run->profiles, HRFLOW_STORE_OWN);

	/*
	 * Every statement is about a batch's rows, and finds them by their keys,
	 * however small the tables were when they were last analyzed.
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

	/* No snapshot is kept while the network is awaited. */
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
 * After an error was caught: keep it for the end of the run, if it is the first
 * one, and end the transaction.  Another cancel must not come in between, for
 * nobody would catch it.
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
 * Do some work in a transaction, and commit it.  It is done in a
 * subtransaction, because an error within a trigger would leave SPI at a level
 * where we could not end the transaction; and at a level of SPI of its own,
 * because the procedure's keeps every result until its end.
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
 * Likewise, but keep an error for the end of the run, if it is the first one.
 * Returns whether there was none.
 */
bool
hrflow_work_try(HrflowRun *run, HrflowWork work)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;
	volatile bool ok = true;

	/* A lock that is waited for must be given up where a time limit says so. */
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
 * Begin another transaction, so that none is old.
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
 * Refuse a CALL of a procedure of this name where it cannot have transactions of
 * its own.
 *
 * Throws 2D000 and 25006.
 */
void
hrflow_work_check_context(FunctionCallInfo fcinfo, const char *procedure)
{
	CallContext *context = (CallContext *) fcinfo->context;

	if (context == NULL || !IsA(context, CallContext) || context->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("%s cannot run inside a transaction block", procedure),
				 errhint("CALL it alone: outside BEGIN and COMMIT, not in a function, and not in one string with other statements.")));
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("%s cannot run on a standby", procedure),
				 errhint("CALL it on the primary server.")));
}

/*
 * An argument that is a number from 1 to "max".
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
