/*-------------------------------------------------------------------------
 *
 * advance.c
 *		Records the progress of attempts, as libcurl's callbacks report it, and
 *		detects overdue attempts.
 *
 * All other changes to the state of a transfer are made in transfer.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/*
 * Extra time to wait for libcurl to end an attempt that has timed out.  After
 * that, we end it ourselves: libcurl has no timer for an attempt that was
 * prolonged, and libcurl 8.22 loses a transfer if it runs out of memory
 * (test/t/072_injection.pl).
 */
#define OVERDUE_MARGIN HRFLOW_SEC

/*
 * Time since a request last passed the proxy after which the proxy may no
 * longer accept the password.  The next request must then open a connection of
 * its own, so a shorter time would delay more requests.
 */
#define PROXY_MEMORY (20 * HRFLOW_SEC)

/*
 * Number of the current round, which is the number of times that replies have
 * been collected.
 */
static uint32 this_round = 0;

/*
 * Has a connection been established for which other requests may be waiting?
 */
static bool has_connected = false;

/*
 * Serial of the settings with which a request last passed the proxy, or 0 if
 * none has or the proxy has refused these settings since; and the time when
 * that request passed.  All requests that use a proxy are sent through a
 * tunnel, because http is allowed only for loopback addresses, which bypass
 * the proxy.  So the proxy has accepted the password once it has opened the
 * tunnel.
 */
static uint64 passed_proxy = 0;
static int64 passed_proxy_at = 0;

/*
 * Record the state that an attempt in flight has reached.  An attempt that is
 * sent through a tunnel opened earlier does not show that the proxy would open
 * another one, unless one was opened or used recently.  Does not throw.
 */
void
hrflow_transfer_advance(HrflowTransfer *transfer, HrflowTransferState state)
{
	if (!HRFLOW_IN_FLIGHT(transfer))
		return;
	if (transfer->state == HRFLOW_WAITING)
		transfer->attempt.round = this_round;
	if (state == HRFLOW_SENT)
	{
		has_connected |= transfer->attempt.may_wait;
		if (transfer->attempt.uses_proxy &&
			(transfer->attempt.opened ||
			 !hrflow_advance_may_be_refused(transfer->transport->settings)))
			hrflow_advance_pass_proxy(transfer);
	}
	transfer->state = state;
}

/*
 * Record that the proxy has accepted the user and password in the settings of
 * an attempt.  Does not throw.
 */
void
hrflow_advance_pass_proxy(const HrflowTransfer *transfer)
{
	passed_proxy = transfer->transport->settings->serial;
	passed_proxy_at = hrflow_clock_now();
}

/*
 * Record that the proxy has refused the user and password in the settings of
 * an attempt.  Does not throw.
 */
void
hrflow_advance_fail_proxy(const HrflowTransfer *transfer)
{
	if (passed_proxy == transfer->transport->settings->serial)
		passed_proxy = 0;
}

/*
 * Called when libcurl is about to close a connection: if the connection is cut
 * off, record that in the attempts in flight that use it.  libcurl closes an
 * HTTP/1.1 connection before it reports that its request has timed out.  Does
 * not throw.
 */
void
hrflow_advance_note_closing(int fd)
{
	dlist_iter	iter;

	if (!hrflow_poller_is_cut_off(fd))
		return;
	dlist_foreach(iter, hrflow_transfer_in_flight())
	{
		HrflowTransfer *transfer = dlist_container(HrflowTransfer, in_flight, iter.cur);

		transfer->attempt.is_cut_off |= transfer->attempt.socket == fd;
	}
}

/*
 * Might the proxy refuse the user and password in these settings?  Proxies may
 * lock an account after a few wrong passwords.  So until the proxy has
 * accepted the password, a request that uses the proxy must open a connection
 * of its own, and must not be started while another request is opening one.
 * Does not throw.
 */
bool
hrflow_advance_may_be_refused(const HrflowSettings *settings)
{
	return strchr(settings->proxy, '@') != NULL &&
		(passed_proxy != settings->serial ||
		 hrflow_clock_now() - passed_proxy_at > PROXY_MEMORY);
}

/*
 * Return the number of the current round.  A round ends when replies are
 * collected.
 */
uint32
hrflow_advance_round(void)
{
	return this_round;
}

/*
 * Record that replies have been collected.
 */
void
hrflow_advance_end_round(void)
{
	this_round++;
}

/*
 * Since the last call, has a connection been established for which other
 * requests may be waiting?
 */
bool
hrflow_advance_take_connected(void)
{
	bool		result = has_connected;

	has_connected = false;
	return result;
}

/*
 * Return the time by which libcurl should have ended the oldest of a
 * transport's requests in flight, or HRFLOW_NEVER if there are none.
 *
 * The list of requests in flight is in the order in which they were started,
 * and all have the same timeout, so the first request is the first to be
 * overdue.  More time may be excused for an earlier request than for a later
 * one, but only time that passed before the later one began.
 */
int64
hrflow_advance_overdue_at(const HrflowTransport *transport)
{
	const HrflowTransfer *first;

	if (transport->nin_flight == 0)
		return HRFLOW_NEVER;
	first = dlist_container(HrflowTransfer, node,
							transport->in_flight.head.next);
	return first->attempt.began + first->attempt.excused +
		transport->settings->request_timeout * HRFLOW_MSEC + OVERDUE_MARGIN;
}

/*
 * Return the oldest of a transport's requests in flight if libcurl should have
 * ended it before "now", else NULL.
 */
HrflowTransfer *
hrflow_advance_find_overdue(HrflowTransport *transport, int64 now)
{
	if (hrflow_advance_overdue_at(transport) > now)
		return NULL;
	return dlist_head_element(HrflowTransfer, node, &transport->in_flight);
}
