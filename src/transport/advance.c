/*-------------------------------------------------------------------------
 *
 * advance.c
 *		How far tries have come in libcurl, as its callbacks tell, and when
 *		they are overdue.
 *
 * The other changes of a transfer's state are made by transfer.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/*
 * libcurl ends a try when its time is up.  When it has not done so after this,
 * it has lost sight of it, as libcurl 8.22 may where its memory failed.
 */
#define OVERDUE_MARGIN HRFLOW_SEC

/* How often replies were collected. */
static uint32 this_round = 0;

/* Was a connection made that other requests may wait for? */
static bool has_connected = false;

/* The settings, by serial, whose proxy has not refused the last request. */
static uint64 passed_proxy = 0;

/*
 * libcurl tells how far a try has come.  Does not throw.
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
 * A try has ended.  Does not throw.
 */
void
hrflow_advance_end_try(const HrflowTransfer *transfer)
{
	if (transfer->reply.status != HRFLOW_PROXY_REFUSED)
		passed_proxy = transfer->transport->settings->serial;
}

/*
 * May the proxy refuse the password that these settings have for it?  It may lock
 * the account when it has been given a wrong one a few times, so let it see one
 * request first.
 */
bool
hrflow_advance_may_be_refused(const HrflowSettings *settings)
{
	return passed_proxy != settings->serial &&
		strchr(settings->proxy, '@') != NULL;
}

/*
 * The number of the round in which replies are collected next.
 */
uint32
hrflow_advance_round(void)
{
	return this_round;
}

/*
 * Replies were collected.
 */
void
hrflow_advance_end_round(void)
{
	this_round++;
}

/*
 * Was a connection made that other requests may wait for, since the last call?
 */
bool
hrflow_advance_take_connected(void)
{
	bool		result = has_connected;

	has_connected = false;
	return result;
}

/*
 * When should libcurl have ended the first of a transport's requests in flight,
 * at the latest?
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
