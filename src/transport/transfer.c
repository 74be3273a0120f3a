/*-------------------------------------------------------------------------
 *
 * transfer.c
 *		Changes the states of requests.
 *
 * A request that is not idle is in the list of its transport for its state,
 * and, if it is in flight, in the list of all requests in flight.  These
 * lists, and the counts of ready, delayed and in-flight requests, are
 * maintained by enter_list() and leave_list(), which are called only by
 * hrflow_transfer_move() and hrflow_transfer_launch().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/*
 * Requests in flight of all transports, in the order in which they were
 * started, and their number.
 */
static dlist_head all_in_flight = DLIST_STATIC_INIT(all_in_flight);
static int	nin_flight = 0;

/*
 * Return the list of the requests in flight of all transports, in the order in
 * which they were started.  They are linked by "in_flight".
 */
dlist_head *
hrflow_transfer_in_flight(void)
{
	return &all_in_flight;
}

/*
 * Return the number of requests in flight of all transports.
 */
int
hrflow_transfer_nin_flight(void)
{
	return nin_flight;
}

/*
 * Return the list in which a transfer's transport keeps the transfer while it
 * is ready.
 */
static dlist_head *
ready_list_of(const HrflowTransfer *transfer)
{
	return HRFLOW_IS_LINK(transfer->reply.target) ?
		&transfer->transport->ready_links : &transfer->transport->ready;
}

/*
 * Remove a transfer from the list for its state.
 */
static void
leave_list(HrflowTransfer *transfer)
{
	HrflowTransport *transport = transfer->transport;

	switch (transfer->state)
	{
		case HRFLOW_IDLE:
			break;
		case HRFLOW_READY:
			dlist_delete(&transfer->node);
			transport->nready--;
			break;
		case HRFLOW_DELAYED:
			pairingheap_remove(transport->delayed, &transfer->delayed);
			dlist_delete(&transfer->node);
			transport->ndelayed--;
			break;
		case HRFLOW_WAITING:
		case HRFLOW_RESOLVING:
		case HRFLOW_CONNECTING:
		case HRFLOW_SENT:
		case HRFLOW_RECEIVING:
			dlist_delete(&transfer->node);
			dlist_delete(&transfer->in_flight);
			transport->nin_flight--;
			nin_flight--;
			break;
		case HRFLOW_DONE:
		case HRFLOW_HANDED_OUT:
			dlist_delete(&transfer->node);
			break;
	}
}

/*
 * Add a transfer, which must not be in any list, to the list for a state.
 */
static void
enter_list(HrflowTransfer *transfer, HrflowTransferState state)
{
	HrflowTransport *transport = transfer->transport;

	transfer->state = state;
	switch (state)
	{
		case HRFLOW_IDLE:
			break;
		case HRFLOW_READY:
			dlist_push_tail(ready_list_of(transfer), &transfer->node);
			transport->nready++;
			break;
		case HRFLOW_DELAYED:
			pairingheap_add(transport->delayed, &transfer->delayed);
			dlist_push_tail(&transport->all_delayed, &transfer->node);
			transport->ndelayed++;
			break;
		case HRFLOW_WAITING:
		case HRFLOW_RESOLVING:
		case HRFLOW_CONNECTING:
		case HRFLOW_SENT:
		case HRFLOW_RECEIVING:
			dlist_push_tail(&transport->in_flight, &transfer->node);
			dlist_push_tail(&all_in_flight, &transfer->in_flight);
			transport->nin_flight++;
			transport->most_in_flight = Max(transport->most_in_flight,
											transport->nin_flight);
			nin_flight++;
			break;
		case HRFLOW_DONE:
			dlist_push_tail(&transport->done, &transfer->node);
			break;
		case HRFLOW_HANDED_OUT:
			dlist_push_tail(&transport->handed_out, &transfer->node);
			break;
	}
}

/*
 * May a request still be sent?  It must not be sent if its transport has been
 * stopped, or if the time limit has expired.  Links are stopped separately.  A
 * stop because of a request limit does not affect a request that only lacks a
 * usable connection, because the limit has allowed it.
 */
static bool
may_be_sent(const HrflowTransfer *transfer)
{
	const HrflowTransport *transport = transfer->transport;

	if (transport->expired)
		return false;
	if (HRFLOW_IS_LINK(transfer->reply.target))
		return !transport->links_stopped;
	return !transport->stopped ||
		(transport->at_limit && transfer->needs_fresh);
}

/*
 * Release an attempt's share of the limits.  If the attempt was not sent, for
 * example because libcurl could not start it, it no longer counts towards the
 * request limits and the rate limit.  If it is a probe whose outcome has not
 * been reported, the account stops waiting for the outcome.  Does not throw.
 */
void
hrflow_transfer_give_back(HrflowTransfer *transfer)
{
	if (transfer->attempt.nsent == 0)
	{
		hrflow_account_give_back(transfer);
		hrflow_budget_give_back(transfer);
	}
	hrflow_account_give_back_probe(transfer);
}

/*
 * Release what the attempt of a transfer holds, including a place in libcurl
 * and in the window of its origin if it is in flight.
 */
static void
release_attempt(HrflowTransfer *transfer)
{
	if (HRFLOW_IN_FLIGHT(transfer))
	{
		hrflow_curl_remove(transfer);
		hrflow_window_leave(transfer);
	}
	hrflow_transfer_give_back(transfer);
}

/*
 * Move a transfer to a state other than those in flight, which only
 * hrflow_transfer_launch() enters.  If an attempt is in progress, it ends.  A
 * transfer that is moved to HRFLOW_IDLE must no longer be used.  Does not
 * throw.
 */
void
hrflow_transfer_move(HrflowTransfer *transfer, HrflowTransferState state)
{
	Assert(state < HRFLOW_WAITING || state > HRFLOW_RECEIVING);
	Assert((state != HRFLOW_READY && state != HRFLOW_DELAYED) ||
		   may_be_sent(transfer));

	release_attempt(transfer);
	leave_list(transfer);
	enter_list(transfer, state);
	if (state == HRFLOW_IDLE)
		hrflow_idle_put(transfer);
}

/*
 * Move a request, which was ready, to the first state in flight, after it has
 * been added to libcurl.  Does not throw.
 */
void
hrflow_transfer_launch(HrflowTransfer *transfer)
{
	leave_list(transfer);
	enter_list(transfer, HRFLOW_WAITING);
	hrflow_window_enter(transfer);
}

/*
 * Finish a request that may no longer be sent, whether it is in flight or not.
 * Does not throw.
 */
static void
finish_stopped(HrflowTransfer *transfer)
{
	Assert(!may_be_sent(transfer));
	transfer->reply.stopped = true;
	transfer->reply.expired = transfer->transport->expired;
	transfer->reply.was_sent = HRFLOW_IN_FLIGHT(transfer) &&
		transfer->attempt.nsent > 0;
	transfer->reply.sent_at = transfer->sent_at;
	hrflow_transfer_move(transfer, HRFLOW_DONE);
}

/*
 * Make a request ready, as the last of its transport's ready links or ready
 * requests to the API.  If it may no longer be sent, finish it instead.  Does
 * not throw.
 */
void
hrflow_transfer_queue(HrflowTransfer *transfer)
{
	if (may_be_sent(transfer))
		hrflow_transfer_move(transfer, HRFLOW_READY);
	else
		finish_stopped(transfer);
}

/*
 * Make a request ready, as the first of its transport's ready links or ready
 * requests to the API.  The request must be one that may be sent.  Does not
 * throw.
 */
void
hrflow_transfer_queue_first(HrflowTransfer *transfer)
{
	hrflow_transfer_move(transfer, HRFLOW_READY);
	dlist_move_head(ready_list_of(transfer), &transfer->node);
}

/*
 * Delay a request, which must be one that may be sent, until "due".  Does not
 * throw.
 */
void
hrflow_transfer_delay(HrflowTransfer *transfer, int64 due)
{
	transfer->due = due;
	hrflow_transfer_move(transfer, HRFLOW_DELAYED);
}

/*
 * Finish the requests in a list that may no longer be sent.
 */
static void
give_up_list(dlist_head *list)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, list)
	{
		HrflowTransfer *transfer = dlist_container(HrflowTransfer, node, iter.cur);

		if (!may_be_sent(transfer))
			finish_stopped(transfer);
	}
}

/*
 * Must a request in flight no longer be sent, or sent again?  Does not throw.
 */
bool
hrflow_transfer_is_given_up(const HrflowTransfer *transfer)
{
	const HrflowTransport *transport = transfer->transport;

	return !may_be_sent(transfer) &&
		(transport->expired || !transport->at_limit ||
		 HRFLOW_IS_LINK(transfer->reply.target));
}

/*
 * Finish the requests in flight that have not been sent, and are no longer to
 * be sent.  They are still waiting for a connection.
 */
static void
give_up_unsent(HrflowTransport *transport)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &transport->in_flight)
	{
		HrflowTransfer *transfer = dlist_container(HrflowTransfer, node, iter.cur);

		if (transfer->attempt.nsent == 0 &&
			hrflow_transfer_is_given_up(transfer))
			finish_stopped(transfer);
	}
}

/*
 * Finish the requests that may no longer be sent, because the transport was
 * stopped or its time limit expired.  A stop does not affect requests in
 * flight that have been sent.  Must not be called from a callback of libcurl.
 * Does not throw.
 */
void
hrflow_transfer_give_up(HrflowTransport *transport)
{
	give_up_list(&transport->ready);
	give_up_list(&transport->ready_links);
	give_up_list(&transport->all_delayed);
	give_up_unsent(transport);
	if (transport->expired)
		give_up_list(&transport->in_flight);
}
