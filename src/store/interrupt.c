/*-------------------------------------------------------------------------
 *
 * interrupt.c
 *		Delays the end of a run until the replies that have arrived are
 *		written.
 *
 * An ERROR can be caught, and rethrown after the replies are written.  A FATAL
 * error cannot be caught, so we must not let one be raised while there are
 * replies to be written.  While a run waits for the network, interrupts are
 * held off, and processed between replies.  Our SIGTERM handler protects
 * transactions: during a run, the first SIGTERM acts as a query cancel, which
 * raises an ERROR.
 *
 * A run catches errors of lock_timeout, and retries.  If a lock timeout and a
 * query cancel, or statement_timeout, are pending at the same time,
 * ProcessInterrupts() reports only one of them, and discards the other.  So we
 * remember both a query cancel and statement_timeout; see restore_cancel().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "compat.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "store/refresh.h"
#include "tcop/tcopprot.h"
#include "utils/timeout.h"

/*
 * Declared in libpq/libpq.h, which we do not include, because it includes
 * GSSAPI headers if the server was built with GSSAPI.
 */
extern bool pq_check_connection(void);

/* SIGTERM action that handle_sigterm() replaces during a run. */
static struct sigaction outer_sigterm;

/* Has SIGTERM been received since the run began? */
static volatile sig_atomic_t is_terminated;

/* SIGINT action that handle_sigint() replaces during a run. */
static struct sigaction outer_sigint;

/*
 * Has another process sent SIGINT, to cancel the run, since the run began or
 * since restore_cancel() last restored a cancel?
 */
static volatile sig_atomic_t is_canceled;

/* Does statement_timeout limit the statement that has started the run? */
static bool has_statement_timeout;

/*
 * Handle SIGTERM during a run: the first SIGTERM cancels the current
 * statement.  hrflow_interrupts_end() lets the session be terminated.
 */
static void
handle_sigterm(int signo, siginfo_t *info, void *context)
{
	int			save_errno = errno;

	/*
	 * Call the replaced handler, because it does more than set
	 * ProcDiePending; for example, die() records why the session ended.
	 */
	if (outer_sigterm.sa_flags & SA_SIGINFO)
		outer_sigterm.sa_sigaction(signo, info, context);
	else if (outer_sigterm.sa_handler != SIG_IGN &&
			 outer_sigterm.sa_handler != SIG_DFL)
		outer_sigterm.sa_handler(signo);

	if (ProcDiePending)
	{
		ProcDiePending = false;
		if (!is_terminated)
			QueryCancelPending = InterruptPending = true;
		is_terminated = true;
	}
	errno = save_errno;
}

/*
 * Handle SIGINT during a run.  The timers of lock_timeout and
 * statement_timeout send SIGINT from this process to itself.
 */
static void
handle_sigint(int signo, siginfo_t *info, void *context)
{
	int			save_errno = errno;

	if (outer_sigint.sa_flags & SA_SIGINFO)
		outer_sigint.sa_sigaction(signo, info, context);
	else if (outer_sigint.sa_handler != SIG_IGN &&
			 outer_sigint.sa_handler != SIG_DFL)
		outer_sigint.sa_handler(signo);

	if (QueryCancelPending && info->si_pid != MyProcPid)
		is_canceled = true;
	errno = save_errno;
}

/*
 * Stop the timer for client_connection_check_interval, because the check may
 * raise a FATAL error at any CHECK_FOR_INTERRUPTS().  The next statement
 * starts the timer again.
 */
static void
leave_client_unchecked(void)
{
	disable_timeout(CLIENT_CONNECTION_CHECK_TIMEOUT, false);
	CheckClientConnectionPending = false;
}

/*
 * Install a signal handler, and store the action that it replaces in *outer.
 */
static void
replace_handler(int signo, void (*handler) (int, siginfo_t *, void *),
				struct sigaction *outer)
{
	struct sigaction action;

	sigaction(signo, NULL, outer);
	action = *outer;
	action.sa_flags |= SA_SIGINFO;
	action.sa_sigaction = handler;
	sigaction(signo, &action, NULL);
}

/*
 * Prepare for a run: replace the handlers of SIGTERM and SIGINT, and stop
 * checking the client connection.  The caller must call
 * hrflow_interrupts_end(), even after an error.
 */
void
hrflow_interrupts_begin(void)
{
	is_terminated = is_canceled = false;
	replace_handler(SIGTERM, handle_sigterm, &outer_sigterm);
	replace_handler(SIGINT, handle_sigint, &outer_sigint);
	has_statement_timeout = get_timeout_active(STATEMENT_TIMEOUT);

	leave_client_unchecked();
}

/*
 * Called at the end of a run.  Restores the signal handlers, and makes
 * interrupts that were held back, including SIGTERM, pending again.
 */
void
hrflow_interrupts_end(const HrflowRun *run)
{
	sigaction(SIGTERM, &outer_sigterm, NULL);
	sigaction(SIGINT, &outer_sigint, NULL);
	hrflow_compat_restore_interrupts(&run->held);
	if (is_terminated)
		ProcDiePending = InterruptPending = true;
}

/*
 * If a query cancel or statement_timeout was discarded in favor of a lock
 * timeout, or a user's trigger has caught its error, make it pending again.
 * Does nothing if an error or the end of the session ends the run anyway, or
 * if a cancel is still pending.
 */
static void
restore_cancel(const HrflowRun *run)
{
	if (run->error != NULL || run->is_ending || QueryCancelPending)
		return;
	if (is_canceled)
	{
		is_canceled = false;
		QueryCancelPending = InterruptPending = true;
	}
	else if (has_statement_timeout && !get_timeout_active(STATEMENT_TIMEOUT))
		enable_timeout_after(STATEMENT_TIMEOUT, 1);
}

/*
 * Process pending interrupts.  If one raises an error, the error is kept until
 * the end of the run, unless an earlier error is kept already.  If the session
 * is to be terminated, "is_ending" is set.
 */
void
hrflow_interrupts_take(HrflowRun *run)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;

	/* SIGTERM cancels the statement; a user's trigger may catch that error. */
	if (is_terminated)
		run->is_ending = true;
	restore_cancel(run);
	if (!InterruptPending)
		return;
	hrflow_work_hold_fatal(run);
	InterruptHoldoffCount = 0;
	PG_TRY();
	{
		CHECK_FOR_INTERRUPTS();
	}
	PG_CATCH();
	{
		hrflow_work_keep_error(run);
	}
	PG_END_TRY();
	InterruptHoldoffCount = holdoff;
	MemoryContextSwitchTo(context);
}

/*
 * Check whether the client is still connected, if the platform can report it.
 * If the connection is lost, let the run and the session end, and send nothing
 * more to the client: a message, such as a NOTICE from a user's trigger, would
 * cause a FATAL error in the transaction that is writing replies.
 * hrflow_work_try() calls this before each transaction.  Because a trigger's
 * message can only be prevented before it is raised, write.c also calls this
 * before it writes the vectors of each profile, and before it writes the
 * states of all profiles together.  A background worker, such as a worker of
 * pg_cron, has no client.
 */
void
hrflow_interrupts_check_client(HrflowRun *run)
{
	if (MyProcPort == NULL || whereToSendOutput != DestRemote ||
		!WaitEventSetCanReportClosed() || pq_check_connection())
		return;
	run->held.connection_lost = run->is_ending = true;
	whereToSendOutput = DestNone;
}
