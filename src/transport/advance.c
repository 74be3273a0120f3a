/*-------------------------------------------------------------------------
 *
 * advance.c
 *		Records the progress of attempts, as libcurl's callbacks report it, and
 *		detects overdue attempts.
 *
 * All other changes of the state of a transfer are in transfer.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/*
 * Extra time to wait for libcurl to end an attempt that has timed out.  After
 * that we assume that libcurl has lost the transfer, which happens to libcurl
 * 8.22 if it runs out of memory.
 */
#define OVERDUE_MARGIN HRFLOW_SEC

/* Number of times that replies have been collected. */
static uint32 this_round = 0;

/*
 * Has a connection been established for which other requests may be waiting?
 */
static bool has_connected = false;

/*
 * Serial of the settings with which a request last passed the proxy, if there
 * is one.
 */
static uint64 passed_proxy = 0;

/*
 * Record the state that an attempt has reached.  Does not throw.
 */
void
hrflow_transfer_advance(HrflowTransfer *transfer, HrflowTransferState state)
{
	if (!HRFLOW_IN_FLIGHT(transfer))
		return;
	if (transfer->state == HRFLOW_WAITING)
		transfer->try.round = this_round;
	if (state == HRFLOW_SENT)
	{
		has_connected |= transfer->try.may_wait;
		passed_proxy = transfer->transport->settings->serial;
	}
	transfer->state = state;
}

/*
 * Record the end of an attempt.  Does not throw.
 */
void
hrflow_advance_end_try(const HrflowTransfer *transfer)
{
	if (transfer->reply.status != HRFLOW_PROXY_REFUSED)
		passed_proxy = transfer->transport->settings->serial;
}

/*
 * Might the proxy refuse the user and password in these settings?  Proxies
 * may lock the account after a few wrong passwords, so the caller sends a
 * single request, and no others until the proxy has accepted it.
 */
bool
hrflow_advance_may_be_refused(const HrflowSettings *settings)
{
	return passed_proxy != settings->serial &&
		strchr(settings->proxy, '@') != NULL;
}

/*
 * Return the number of the round in which replies will be collected next.
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
 * transport's requests in flight.
 */
int64
hrflow_advance_overdue_at(const HrflowTransport *transport)
{
	const HrflowTransfer *first;

	if (transport->nin_flight == 0)
		return HRFLOW_NEVER;
	first = dlist_container(HrflowTransfer, node,
							transport->in_flight.head.next);
	return first->try.began +
		transport->settings->request_timeout * HRFLOW_MSEC + OVERDUE_MARGIN;
}
