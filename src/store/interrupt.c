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
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "compat.h"
#include "miscadmin.h"
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

/*
 * Handle SIGTERM during a run: the first SIGTERM cancels the current
 * statement.  hrflow_interrupts_end() then terminates the session.
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
 * Begin a run.  The caller must call hrflow_interrupts_end() even after an
 * error.
 */
void
hrflow_interrupts_begin(void)
{
	struct sigaction action;

	is_terminated = false;
	sigaction(SIGTERM, NULL, &outer_sigterm);
	action = outer_sigterm;
	action.sa_flags |= SA_SIGINFO;
	action.sa_sigaction = handle_sigterm;
	sigaction(SIGTERM, &action, NULL);

	leave_client_unchecked();
}

/*
 * End a run: restore the SIGTERM handler, and the pending interrupts that were
 * held back.
 */
void
hrflow_interrupts_end(const HrflowRun *run)
{
	sigaction(SIGTERM, &outer_sigterm, NULL);
	hrflow_compat_restore_interrupts(&run->held);
	if (is_terminated)
		ProcDiePending = InterruptPending = true;
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

	/* A user's trigger may have caught the error of the query cancel. */
	if (is_terminated)
		run->is_ending = true;
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
 * Check whether the client is still connected, if
 * client_connection_check_interval is set.  If the connection is lost, let the
 * run and the session end.  A background worker, such as a worker of pg_cron,
 * has no client.
 */
void
hrflow_interrupts_check_client(HrflowRun *run)
{
	if (client_connection_check_interval == 0 || MyProcPort == NULL ||
		pq_check_connection())
		return;
	run->held.connection_lost = run->is_ending = true;
	whereToSendOutput = DestNone;
}
