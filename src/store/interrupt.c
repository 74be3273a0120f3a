/*-------------------------------------------------------------------------
 *
 * interrupt.c
 *		What ends a run waits until the answers that have arrived are written.
 *
 * An error can be caught, written after, and thrown again.  A FATAL cannot, so
 * nothing may raise one while there are answers to be written: neither where
 * the network is awaited nor in a transaction that writes.  For the first,
 * interrupts are held, and taken between replies.  For the second, SIGTERM is
 * at first a cancel, which is an error, during a run.
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
 * As libpq/libpq.h declares it, which includes headers of GSSAPI where the server
 * was built with that.
 */
extern bool pq_check_connection(void);

/* The action for SIGTERM outside of a run. */
static struct sigaction outer_sigterm;

/* Has SIGTERM come since the run began? */
static volatile sig_atomic_t is_terminated;

/*
 * Handle SIGTERM during a run: cancel what is being done, once.  The session
 * ends in hrflow_interrupts_end().
 */
static void
handle_sigterm(int signo, siginfo_t *info, void *context)
{
	int			save_errno = errno;

	/* It knows what else is to be done, such as to count how sessions end. */
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
 * Stop the timer of client_connection_check_interval: the check is a FATAL
 * wherever it happens to be done.  The next statement starts it again.
 */
static void
leave_client_unchecked(void)
{
	disable_timeout(CLIENT_CONNECTION_CHECK_TIMEOUT, false);
	CheckClientConnectionPending = false;
}

/*
 * A run begins.  hrflow_interrupts_end() must follow, after an error too.
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
 * The run is over: interrupts that were held back are pending now.
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
 * Take the interrupts that are pending.  An error is kept for the end of the
 * run; where the session is to end, that is noted.
 */
void
hrflow_interrupts_take(HrflowRun *run)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;

	/* The cancel may have been caught, such as by a trigger of the owner's. */
	if (is_terminated)
		run->is_ending = true;
	if (!InterruptPending)
		return;
	if (hrflow_compat_fatal_interrupt_pending())
	{
		hrflow_compat_hold_interrupts(&run->held);
		run->is_ending = true;
	}
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
 * Check whether the client is still there, where client_connection_check_interval
 * asks for that.  If it is not, the run is to end, and the session with it.  A
 * background worker, such as one of pg_cron's, has no client.
 */
void
hrflow_interrupts_check_client(HrflowRun *run)
{
	if (client_connection_check_interval == 0 || MyProcPort == NULL ||
		pq_check_connection())
		return;
	run->held.connection_lost = run->is_ending = true;
}
