/*-------------------------------------------------------------------------
 *
 * transfer.c
 *		The states of a request, and the scheduler of a backend's requests.
 *
 * A backend may have several transports at once, and one scheduler.  Whichever
 * transport waits, the replies of all are received; each goes to the "done"
 * list of its own transport.  What is limited is limited for all together: the
 * requests in flight, the descriptors and the bytes of bodies.  Room goes to
 * the transport that was begun last, since the others wait for it.
 *
 * All lists and counts are kept by enter() and leave(), which only
 * hrflow_transfer_move() and start() call: the latter where a try begins, since
 * all of its room has been reserved by then.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/* How often the counts of a statement that waits are added to the shared. */
#define FLUSH_INTERVAL HRFLOW_SEC

static struct
{
	dlist_head	transports;		/* the one begun last comes first */
	int			nin_flight;		/* requests in flight, of all transports */
	int64		flushed_at;		/* when the counts were added to the shared */
}			scheduler = {DLIST_STATIC_INIT(scheduler.transports)};

/*
 * ------------------------------------------------------------------------
 * States
 * ------------------------------------------------------------------------
 */

/*
 * A try has ended: where it was not sent, it does not count.
 */
static void
give_back_unsent(const HrflowTransfer *transfer)
{
	if (transfer->try.nsent == 0 && !HRFLOW_IS_LINK(transfer->reply.target))
		hrflow_budget_give_back(transfer);
}

/*
 * Take a transfer out of the list of its state; where it is in flight, out of
 * libcurl.
 */
static void
leave(HrflowTransfer *transfer)
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
			hrflow_curl_remove(transfer);
			give_back_unsent(transfer);
			hrflow_window_leave(transfer);
			dlist_delete(&transfer->node);
			transport->nin_flight--;
			scheduler.nin_flight--;
			break;
		case HRFLOW_DONE:
		case HRFLOW_HANDED_OUT:
			dlist_delete(&transfer->node);
			break;
	}
}

/*
 * Put a transfer, which is in no list, in that of a state.
 */
static void
enter(HrflowTransfer *transfer, HrflowTransferState state)
{
	HrflowTransport *transport = transfer->transport;

	transfer->state = state;
	switch (state)
	{
		case HRFLOW_IDLE:
			hrflow_idle_put(transfer);
			break;
		case HRFLOW_READY:
			dlist_push_tail(HRFLOW_IS_LINK(transfer->reply.target) ?
							&transport->ready_links : &transport->ready,
							&transfer->node);
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
			transport->nin_flight++;
			transport->most_in_flight = Max(transport->most_in_flight,
											transport->nin_flight);
			scheduler.nin_flight++;
			hrflow_window_enter(transfer);
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
 * Move a transfer to another state, which is not one of those in flight: see
 * start().  A request that may no longer be sent is done instead of ready or
 * delayed.  Does not throw.
 */
void
hrflow_transfer_move(HrflowTransfer *transfer, HrflowTransferState state)
{
	HrflowTransport *transport = transfer->transport;

	leave(transfer);
	hrflow_account_give_back_probe(transfer);
	if ((state == HRFLOW_READY || state == HRFLOW_DELAYED) &&
		(transport->expired ||
		 (transport->stopped && !HRFLOW_IS_LINK(transfer->reply.target))))
	{
		transfer->reply.stopped = true;
		transfer->reply.expired = transport->expired;
		state = HRFLOW_DONE;
	}
	enter(transfer, state);
}

/*
 * Have a request sent as soon as may be, before all others to the API if it is
 * to be first.
 */
void
hrflow_transfer_queue(HrflowTransfer *transfer, bool first)
{
	hrflow_transfer_move(transfer, HRFLOW_READY);
	if (first && transfer->state == HRFLOW_READY)
		dlist_move_head(&transfer->transport->ready, &transfer->node);
}

/*
 * Hand out the requests of a list as ones that will not be made.  The caller
 * has seen to it that none of them may be sent.
 */
static void
give_up_list(dlist_head *list)
{
	while (!dlist_is_empty(list))
		hrflow_transfer_move(dlist_head_element(HrflowTransfer, node, list),
							 HRFLOW_READY);
}

/*
 * A transport was stopped, or its time is over: give up what may no longer be
 * sent.
 */
void
hrflow_transfer_give_up(HrflowTransport *transport)
{
	dlist_mutable_iter iter;

	give_up_list(&transport->ready);
	dlist_foreach_modify(iter, &transport->all_delayed)
	{
		HrflowTransfer *transfer = dlist_container(HrflowTransfer, node, iter.cur);

		if (transport->expired || !HRFLOW_IS_LINK(transfer->reply.target))
			hrflow_transfer_move(transfer, HRFLOW_DELAYED);
	}
	if (transport->expired)
	{
		give_up_list(&transport->ready_links);
		give_up_list(&transport->in_flight);
	}
}

/*
 * A request fails without having been sent.
 */
static void
refuse(HrflowTransfer *transfer, HrflowStatus status, const char *detail)
{
	transfer->reply.status = status;
	transfer->reply.transient = false;
	transfer->reply.detail = detail;
	transfer->reply.http_status = 0;
	transfer->try.fault = HRFLOW_NO_FAULT;
	hrflow_transfer_move(transfer, HRFLOW_DONE);
}

/*
 * A request fails because no more may be sent.
 */
static void
refuse_spent(HrflowTransfer *transfer, HrflowStatus status)
{
	hrflow_budget_describe(transfer->transport, status, transfer->error,
						   sizeof(transfer->error));
	refuse(transfer, status, transfer->error);
}

/*
 * Start a request that is ready: move it into libcurl, or to where it is done
 * if it came to its end at once.  Returns false, and leaves it where it is,
 * when the account's rate does not admit it.  The caller has reserved a
 * descriptor.
 *
 * May throw, and then has moved nothing.
 */
static bool
start(HrflowTransfer *transfer, int64 now)
{
	HrflowTransport *transport = transfer->transport;
	HrflowAdmission admission = HRFLOW_ADMIT;

	if (!HRFLOW_IS_LINK(transfer->reply.target))
	{
		HrflowStatus spent = hrflow_budget_check(transport);

		if (spent != HRFLOW_OK)
		{
			refuse_spent(transfer, spent);
			return true;
		}
		admission = hrflow_account_admit(transport, now);
	}
	if (admission == HRFLOW_WAIT)
		return false;

	transfer->try = (HrflowTry)
	{
		.began = now,
			.is_probe = admission == HRFLOW_ADMIT_PROBE,
			.is_alone = hrflow_window_limit(transport) == 1
	};
	if (admission == HRFLOW_REFUSE)
	{
		/* Nobody waits that long. */
		refuse(transfer, HRFLOW_RATE_LIMITED,
			   "The API has asked for a pause of more than five minutes.");
		return true;
	}
	if (!HRFLOW_IS_LINK(transfer->reply.target) &&
		!hrflow_budget_take(transfer))
	{
		refuse_spent(transfer, HRFLOW_OVER_DAY);
		return true;
	}
	if (!hrflow_curl_start(transfer))
	{
		give_back_unsent(transfer);
		hrflow_transfer_move(transfer, HRFLOW_DONE);
	}
	else
	{
		leave(transfer);
		enter(transfer, HRFLOW_WAITING);
	}
	return true;
}

/*
 * ------------------------------------------------------------------------
 * Replies
 * ------------------------------------------------------------------------
 */

/*
 * Move a transfer, whose try has ended, out of libcurl.  The account is told at
 * once, since it may be long before the reply is handed out.
 *
 * A reply that would exceed the budget of all, and not its own limit, is asked
 * for again when others have been released.  A POST is not, because it has
 * been processed.
 */
static void
end_try(HrflowTransfer *transfer)
{
	hrflow_advance_end_try(transfer);
	hrflow_window_settle(transfer);
	hrflow_account_settle(transfer);
	hrflow_speed_note(transfer);
	if (transfer->try.fault != HRFLOW_EXCEEDS_BUDGET)
	{
		hrflow_transfer_move(transfer, HRFLOW_DONE);
		hrflow_window_widen(transfer->transport);
		return;
	}
	if (transfer->post == NULL)
	{
		transfer->reply.attempts--;
		hrflow_transfer_move(transfer, HRFLOW_READY);
	}
	else
		hrflow_transfer_move(transfer, HRFLOW_DONE);
	hrflow_window_narrow(transfer->transport, scheduler.nin_flight);
}

/*
 * Is a request to the same origin on its way, over a connection that this one
 * might share?
 */
static bool
is_connected(const HrflowTransfer *transfer)
{
	dlist_iter	i;
	dlist_iter	j;

	dlist_foreach(i, &scheduler.transports)
	{
		dlist_foreach(j, &dlist_container(HrflowTransport, node, i.cur)->in_flight)
		{
			HrflowTransfer *other = dlist_container(HrflowTransfer, node, j.cur);

			if (other->try.offers_http2 && other->try.nsent > 0 &&
				hrflow_origin_is_same(transfer->url, other->url))
				return true;
		}
	}
	return false;
}

/*
 * Does a request wait for the connection that another could not make, or did
 * it until just now, when libcurl had it make one for itself?
 */
static bool
waited_for(const HrflowTransfer *transfer, const HrflowTransfer *failed)
{
	return transfer != failed && transfer->try.may_wait &&
		(transfer->state == HRFLOW_WAITING ||
		 transfer->try.round == hrflow_advance_round()) &&
		hrflow_origin_is_same(failed->url, transfer->url);
}

/*
 * A connection could not be made.  libcurl would have those that wait for it
 * try one after the other, each for as long as this one has, until the time of
 * most is up.  Unless there is a connection to the same origin after all, they
 * fail with this one, as if each had tried, as each does in clear.
 */
static void
fail_waiting(const HrflowTransfer *failed)
{
	dlist_iter	i;
	dlist_mutable_iter k;

	if (is_connected(failed))
		return;
	dlist_foreach(i, &scheduler.transports)
	{
		dlist_foreach_modify(k, &dlist_container(HrflowTransport, node, i.cur)->in_flight)
		{
			HrflowTransfer *transfer = dlist_container(HrflowTransfer, node, k.cur);

			if (!waited_for(transfer, failed))
				continue;
			transfer->reply.status = failed->reply.status;
			transfer->reply.transient = failed->reply.transient;
			strlcpy(transfer->error, failed->reply.detail,
					sizeof(transfer->error));
			transfer->reply.detail = transfer->error;
			end_try(transfer);
		}
	}
}

/*
 * Where a connection has been made, those that wait for it can share it now or
 * never.  May throw.
 */
static void
release_waiting(void)
{
	dlist_iter	i;
	dlist_iter	j;

	if (!hrflow_advance_take_connected())
		return;
	dlist_foreach(i, &scheduler.transports)
	{
		dlist_foreach(j, &dlist_container(HrflowTransport, node, i.cur)->in_flight)
		{
			HrflowTransfer *transfer = dlist_container(HrflowTransfer, node, j.cur);

			if (transfer->state == HRFLOW_WAITING && transfer->try.may_wait &&
				is_connected(transfer))
				hrflow_curl_stop_waiting(transfer);
		}
	}
}

/*
 * Take what libcurl is done with, for all transports.  Does not throw.
 */
static void
collect(void)
{
	HrflowTransfer *transfer;

	while ((transfer = hrflow_curl_next_done()) != NULL)
	{
		if (transfer->reply.status == HRFLOW_CONNECT_FAILED &&
			transfer->try.may_wait)
			fail_waiting(transfer);
		end_try(transfer);
	}
	hrflow_advance_end_round();
}

/*
 * The multi handle met an error of its own: take out of it what is in flight,
 * as connections that were lost.
 */
static void
lose_in_flight(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &scheduler.transports)
	{
		HrflowTransport *transport = dlist_container(HrflowTransport, node, iter.cur);

		while (!dlist_is_empty(&transport->in_flight))
		{
			HrflowTransfer *transfer =
			dlist_head_element(HrflowTransfer, node, &transport->in_flight);

			transfer->reply.status = HRFLOW_CONNECTION_LOST;
			transfer->reply.transient = true;
			transfer->reply.detail = "The connection was given up after an error.";
			hrflow_transfer_move(transfer, HRFLOW_DONE);
		}
	}
}

/*
 * Receive what has come, for all transports, without waiting.
 */
void
hrflow_transfer_receive(void)
{
	if (scheduler.nin_flight == 0 || hrflow_pool_is_broken())
		return;
	hrflow_pool_receive();
	collect();
}

/*
 * End a transport's requests that are overdue, although libcurl is given the
 * time first to see to them.
 */
static void
end_overdue(HrflowTransport *transport)
{
	hrflow_transfer_receive();
	while (hrflow_advance_overdue_at(transport) <= hrflow_clock_now())
	{
		HrflowTransfer *transfer =
		dlist_head_element(HrflowTransfer, node, &transport->in_flight);

		hrflow_curl_abandon(transfer);
		end_try(transfer);
	}
}

/*
 * End what is overdue, of all transports.
 */
void
hrflow_transfer_end_overdue(int64 now)
{
	dlist_iter	iter;

	dlist_foreach(iter, &scheduler.transports)
	{
		HrflowTransport *transport = dlist_container(HrflowTransport, node, iter.cur);

		if (hrflow_advance_overdue_at(transport) <= now)
			end_overdue(transport);
	}
}

/*
 * ------------------------------------------------------------------------
 * The loop
 * ------------------------------------------------------------------------
 */

static HrflowTransfer *
first_delayed(const HrflowTransport *transport)
{
	if (transport->ndelayed == 0)
		return NULL;
	return pairingheap_container(HrflowTransfer, delayed,
								 pairingheap_first(transport->delayed));
}

/*
 * How many requests in flight have not been sent?
 */
static int
count_unsent(void)
{
	int			n = 0;
	dlist_iter	i;
	dlist_iter	j;

	dlist_foreach(i, &scheduler.transports)
	{
		dlist_foreach(j, &dlist_container(HrflowTransport, node, i.cur)->in_flight)
		{
			n += dlist_container(HrflowTransfer, node, j.cur)->state < HRFLOW_SENT;
		}
	}
	return n;
}

/*
 * The transport's request that is to be started next, among those whose window
 * has room; NULL for none.  Links come first.
 */
static HrflowTransfer *
next_ready(HrflowTransport *transport)
{
	dlist_iter	iter;

	dlist_foreach(iter, &transport->ready_links)
	{
		HrflowTransfer *transfer = dlist_container(HrflowTransfer, node, iter.cur);

		if (hrflow_window_room(transfer->window) > 0)
			return transfer;
	}
	if (dlist_is_empty(&transport->ready) ||
		hrflow_window_room(transport->window) == 0)
		return NULL;
	return dlist_head_element(HrflowTransfer, node, &transport->ready);
}

/*
 * Start as many of a transport's requests as there is room for, each with a
 * descriptor, and as the account's rate admits.  Returns false when there was
 * no room for more.
 */
static bool
start_ready(HrflowTransport *transport, int64 now)
{
	HrflowTransfer *transfer;

	transport->awaits_rate = false;
	while ((transfer = first_delayed(transport)) != NULL &&
		   transfer->due <= now)
		hrflow_transfer_move(transfer, HRFLOW_READY);

	while ((transfer = next_ready(transport)) != NULL)
	{
		if (hrflow_transfer_room(transport) <= 0 ||
			(transport->nin_flight > 0 &&
			 hrflow_advance_may_be_refused(transport->settings)) ||
			!hrflow_pool_reserve_descriptor(scheduler.nin_flight,
											count_unsent))
			return false;
		if (!start(transfer, now))
		{
			transport->awaits_rate = true;
			break;
		}
	}
	return true;
}

/*
 * When is there something to do for a transport, though nothing happens?
 */
static int64
next_time(const HrflowTransport *transport)
{
	int64		next = hrflow_advance_overdue_at(transport);
	const HrflowTransfer *delayed = first_delayed(transport);

	if (transport->suspended)
		return next;
	if (delayed != NULL)
		next = Min(next, delayed->due);
	if (transport->awaits_rate)
		next = Min(next, transport->admitted_at);
	return next;
}

/*
 * Start what may be started, of all transports, the one begun last first, and
 * let libcurl see to its timers.  Does not wait.
 */
void
hrflow_transfer_work(void)
{
	int64		now = hrflow_clock_now();
	dlist_iter	iter;

	dlist_foreach(iter, &scheduler.transports)
	{
		HrflowTransport *transport = dlist_container(HrflowTransport, node, iter.cur);

		if (!transport->suspended && !start_ready(transport, now))
			break;
	}
	hrflow_pool_balance_descriptors(scheduler.nin_flight);
	release_waiting();
	hrflow_pool_run_timer();
	collect();
}

/*
 * Wait until something happens, or until this time.
 */
void
hrflow_transfer_wait(int64 until)
{
	int64		now = hrflow_clock_now();
	dlist_iter	iter;

	if (now - scheduler.flushed_at >= FLUSH_INTERVAL)
	{
		hrflow_stats_flush();
		scheduler.flushed_at = now;
	}
	until = Min(until, scheduler.flushed_at + FLUSH_INTERVAL);
	dlist_foreach(iter, &scheduler.transports)
	{
		HrflowTransport *transport = dlist_container(HrflowTransport, node, iter.cur);
		const HrflowTransfer *delayed = first_delayed(transport);

		until = Min(until, next_time(transport));
		hrflow_show_wait(transport, delayed ? delayed->due : HRFLOW_NEVER,
						 hrflow_window_is_narrow(scheduler.nin_flight));
	}
	hrflow_activity_publish();
	hrflow_pool_wait(until, scheduler.nin_flight == 0);
	hrflow_activity_go_on();
}

/*
 * How many more requests of a transport could be started now, were its own
 * the only ones that wait?  The windows of their origins may allow fewer.
 */
int
hrflow_transfer_room(const HrflowTransport *transport)
{
	int			room = hrflow_window_limit(transport) - scheduler.nin_flight;

	return transport->is_answered ? room :
		Min(room, HRFLOW_MAX_WASTED - transport->nin_flight);
}

/*
 * ------------------------------------------------------------------------
 * Transports
 * ------------------------------------------------------------------------
 */

/*
 * Make the backend ready for a transport's requests.  May throw.
 */
void
hrflow_transfer_prepare(const HrflowSettings *settings)
{
	if (hrflow_pool_is_broken())
		lose_in_flight();
	hrflow_pool_prepare(settings, scheduler.nin_flight > 0);
}

/*
 * Schedule a transport from now on.  Does not throw.
 */
void
hrflow_transfer_enroll(HrflowTransport *transport)
{
	if (dlist_is_empty(&scheduler.transports))
	{
		hrflow_window_forget_memory();
		scheduler.flushed_at = hrflow_clock_now();
	}
	dlist_push_head(&scheduler.transports, &transport->node);
}

static void
make_idle(dlist_head *list)
{
	while (!dlist_is_empty(list))
		hrflow_transfer_move(dlist_head_element(HrflowTransfer, node, list),
							 HRFLOW_IDLE);
}

/*
 * Give back everything that a transport has.  Connections with a request in
 * flight are closed, the others stay.  A backend that exits leaves its sockets
 * to the kernel, but not the other backends to wait for its probe.  Does not
 * throw.
 */
void
hrflow_transfer_dismiss(HrflowTransport *transport, bool at_exit)
{
	HrflowTransfer *transfer;
	dlist_iter	iter;

	dlist_delete(&transport->node);
	if (at_exit)
	{
		dlist_foreach(iter, &transport->in_flight)
		{
			hrflow_account_give_back_probe(dlist_container(HrflowTransfer, node, iter.cur));
		}
	}
	else
	{
		make_idle(&transport->in_flight);
		make_idle(&transport->ready_links);
		make_idle(&transport->ready);
		make_idle(&transport->done);
		make_idle(&transport->handed_out);
		while ((transfer = first_delayed(transport)) != NULL)
			hrflow_transfer_move(transfer, HRFLOW_IDLE);
		hrflow_pool_balance_descriptors(scheduler.nin_flight);
	}
	hrflow_stats_flush();
}
