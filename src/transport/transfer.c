/*-------------------------------------------------------------------------
 *
 * transfer.c
 *		The states of requests, and the scheduler of a backend.
 *
 * A backend can have several transports at the same time, but has only one
 * scheduler.  Whichever transport is waiting, the replies for all of them are
 * received; each reply goes to the "done" list of its own transport.  Requests
 * in flight, descriptors and the memory for bodies are limited for all
 * transports together.  The most recent transport has priority, since the
 * others are waiting for it.
 *
 * All lists and counts are maintained by enter() and leave(), which are called
 * only by hrflow_transfer_move(), and by start() when an attempt starts, by
 * which time it has reserved everything the attempt needs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/*
 * Interval at which a waiting statement adds its counts to the shared ones, in
 * microseconds.
 */
#define FLUSH_INTERVAL HRFLOW_SEC

/*
 * If requests need new connections, number of them to start before sending
 * those over the connections that have just been opened, because opening a
 * hundred connections takes ten milliseconds.  Requests that need none are
 * sent together, which is faster.
 */
#define START_AT_ONCE 8

static struct
{
	dlist_head	transports;		/* most recent first */
	int			nin_flight;		/* number of requests in flight of all
								 * transports */
	int64		flushed_at;		/* when the counts were last added to the
								 * shared ones */
}			scheduler = {DLIST_STATIC_INIT(scheduler.transports)};

/*
 * ------------------------------------------------------------------------
 * States
 * ------------------------------------------------------------------------
 */

/*
 * Remove a transfer from the list for its state, and if it is in flight, from
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
 * Add a transfer, which must not be in any list, to the list for a state.
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
 * Move a transfer to another state, which must not be one in flight; for these
 * see start().  A request that may no longer be sent becomes done instead of
 * ready or delayed.  Does not throw.
 */
void
hrflow_transfer_move(HrflowTransfer *transfer, HrflowTransferState state)
{
	HrflowTransport *transport = transfer->transport;
	bool		was_sent = HRFLOW_IN_FLIGHT(transfer) && transfer->try.nsent > 0;

	leave(transfer);
	if (transfer->try.nsent == 0)
		hrflow_budget_give_back(transfer);
	hrflow_account_give_back_probe(transfer);
	if ((state == HRFLOW_READY || state == HRFLOW_DELAYED) &&
		(transport->expired ||
		 (transport->stopped && !HRFLOW_IS_LINK(transfer->reply.target))))
	{
		transfer->reply.stopped = true;
		transfer->reply.expired = transport->expired;
		transfer->reply.was_sent = was_sent;
		state = HRFLOW_DONE;
	}
	enter(transfer, state);
}

/*
 * Make a request ready to be sent, before all others to the API if "first".
 */
void
hrflow_transfer_queue(HrflowTransfer *transfer, bool first)
{
	hrflow_transfer_move(transfer, HRFLOW_READY);
	if (first && transfer->state == HRFLOW_READY)
		dlist_move_head(&transfer->transport->ready, &transfer->node);
}

/*
 * Abandon the requests in a list, none of which may be sent any more.
 */
static void
give_up_list(dlist_head *list)
{
	while (!dlist_is_empty(list))
	{
		HrflowTransfer *transfer = dlist_head_element(HrflowTransfer, node, list);

		/* Since it may not be sent, this makes it done. */
		hrflow_transfer_move(transfer, HRFLOW_READY);
		Assert(transfer->state == HRFLOW_DONE);
	}
}

/*
 * Abandon the requests that may no longer be sent, because the transport was
 * stopped or its time limit expired.
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
 * Fail a request that has not been sent.
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
 * Fail a request because a limit of requests has been reached.
 */
static void
refuse_spent(HrflowTransfer *transfer, HrflowStatus status)
{
	hrflow_budget_describe(transfer->transport, status, transfer->error,
						   sizeof(transfer->error));
	refuse(transfer, status, transfer->error);
}

/*
 * Start a ready request: move it into libcurl, or to done if it fails
 * immediately.  Returns false, and leaves it in its state, if the account does
 * not admit it now.  The caller must have reserved a descriptor.
 *
 * May throw, in which case nothing has been moved.  A probe and a counted
 * request are given back when the transport is dismissed.
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
			.serial = transport->serial,
			.nleft = -1,
			.socket = -1,
			.is_probe = admission == HRFLOW_ADMIT_PROBE,
			.is_alone = hrflow_window_limit(transport) == 1
	};
	if (admission == HRFLOW_REFUSE)
	{
		/* The API asked for a longer pause than we are willing to make. */
		refuse(transfer, HRFLOW_RATE_LIMITED,
			   "The API requested a pause of more than five minutes.");
		return true;
	}
	if (!HRFLOW_IS_LINK(transfer->reply.target) &&
		!hrflow_budget_take(transfer))
	{
		refuse_spent(transfer, HRFLOW_OVER_DAY);
		return true;
	}
	if (!hrflow_curl_start(transfer))
		hrflow_transfer_move(transfer, HRFLOW_DONE);
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
 * Start a request again over a new connection, because libcurl was about to
 * send it over one that cannot be used.  Unless libcurl had sent it before, this
 * does not count as an attempt.
 */
static void
restart(HrflowTransfer *transfer)
{
	transfer->needs_fresh = true;
	if (transfer->try.nsent == 0)
		transfer->reply.attempts--;
	hrflow_transfer_move(transfer, HRFLOW_READY);
}

/*
 * Move a transfer whose attempt has ended out of libcurl.  Report the outcome
 * to the account immediately, since it may take a long time until the
 * submitter gets the reply.
 *
 * If all bodies together, rather than this one, were too large, the request is
 * repeated when other bodies have been released, except if it is a POST, which
 * has been processed already.
 */
static void
end_try(HrflowTransfer *transfer)
{
	if (transfer->try.fault == HRFLOW_UNUSABLE)
	{
		restart(transfer);
		return;
	}
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
 * Has a request to the same origin been sent over a connection that this one
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
 * Is a request waiting for the connection that "failed" could not establish,
 * or has libcurl just made it stop waiting and open its own connection?
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
 * Fail the requests that are waiting for a connection that could not be
 * established.  libcurl would make them try one after another, each for as
 * long as the first one, until most of them time out.  If there is no other
 * connection to the origin, they fail as if each had tried by itself, which is
 * what happens with HTTP/1.1.
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
 * After a connection has been established, stop waiting for it: requests that
 * cannot share it now never will.  May throw.
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
 * Process the transfers that libcurl has completed, for all transports.  Does
 * not throw.
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
 * Fail all requests in flight after an error of the multi handle itself, which
 * must no longer be used.
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
			transfer->reply.detail = "The request was abandoned after an internal error of libcurl.";
			hrflow_transfer_move(transfer, HRFLOW_DONE);
		}
	}
}

/*
 * Receive the data that has arrived, for all transports, without waiting.
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
 * End a transport's overdue requests, after giving libcurl an opportunity to
 * do that.
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
 * End the overdue requests of all transports.
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
 * Count the requests in flight that have not been sent.
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
 * Return the ready request to start next, among those whose window has room,
 * or NULL.  Links have priority.
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
 * Start the ready requests of a transport while there is room, a descriptor is
 * available and the account admits them.  Returns false if the room or the
 * descriptors did not suffice for all of them.
 */
static bool
start_ready(HrflowTransport *transport, int64 now)
{
	HrflowTransfer *transfer;
	int			nstarted = 0;
	bool		opens = true;	/* do requests need new connections? */

	transport->awaits_rate = false;
	while ((transfer = first_delayed(transport)) != NULL &&
		   transfer->due <= now)
		hrflow_transfer_move(transfer, HRFLOW_READY);

	while ((transfer = next_ready(transport)) != NULL)
	{
		if (hrflow_transfer_room(transport) <= 0 ||
			(transport->nin_flight > 0 &&
			 hrflow_advance_may_be_refused(transport->settings)) ||
			!hrflow_pool_reserve_descriptor(transport->settings,
											scheduler.nin_flight,
											count_unsent))
			return false;
		if (!start(transfer, now))
		{
			transport->awaits_rate = true;
			break;
		}
		if (opens && ++nstarted % START_AT_ONCE == 0 &&
			hrflow_pool_lacks_connections(scheduler.nin_flight))
		{
			opens = hrflow_pool_run_timer();
			hrflow_transfer_receive();
			now = hrflow_clock_now();
		}
	}
	return true;
}

/*
 * Return the time at which a transport needs attention even if nothing
 * arrives.
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
 * Start the requests of all transports that may be started, in the order of
 * priority, and let libcurl process its timers.  Does not wait.
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
	(void) hrflow_pool_run_timer();
	collect();
}

/*
 * Wait for an event, but no longer than until the given time.
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
 * Return how many more requests of a transport could be started now if no
 * others were ready.  The windows of their origins may allow fewer.
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
 * Prepare the backend for the requests of a transport.  May throw.
 */
void
hrflow_transfer_prepare(const HrflowSettings *settings)
{
	if (hrflow_pool_is_broken())
		lose_in_flight();
	hrflow_pool_prepare(settings, scheduler.nin_flight > 0);
}

/*
 * Add a transport to the scheduler.  Does not throw.
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
 * Remove a transport from the scheduler, and release all its resources.
 * Connections with a request in flight are closed, but the others stay open.
 * An exiting backend leaves its sockets to the kernel, but must release its
 * probe, for which other backends may be waiting.  Does not throw.
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
