/*-------------------------------------------------------------------------
 *
 * scheduler.c
 *		Starts requests, and collects their replies.
 *
 * A backend can have several transports at the same time, but has only one
 * scheduler.  While any transport is waiting, replies are received for all of
 * them; each reply is added to the "done" list of its own transport.  Requests
 * in flight, descriptors and the memory for bodies are limited for all
 * transports together.  The most recent transport has priority, since the
 * others are usually waiting for it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/*
 * Interval at which a statement adds its counts to the shared counts, in
 * microseconds.
 */
#define FLUSH_INTERVAL HRFLOW_SEC

/*
 * Number of requests to start before libcurl is called, if they need new
 * connections.  Opening a hundred connections takes ten milliseconds, so let
 * libcurl send these requests before it opens more connections.  Requests that
 * do not need new connections are started together, which is faster.
 */
#define START_AT_ONCE 8

/*
 * If libcurl has not been called for longer than this, in microseconds, the
 * time does not count towards request_timeout.
 */
#define ABSENCE_LIMIT (100 * HRFLOW_MSEC)

static struct
{
	dlist_head	transports;		/* most recent first */
	const HrflowTransport *blocker; /* transport that keeps the transports
									 * after it in the list from starting
									 * requests, or NULL */
	int64		used_at;		/* when libcurl was last called */
	int64		flushed_at;		/* start of the current FLUSH_INTERVAL */
}			scheduler = {DLIST_STATIC_INIT(scheduler.transports)};

/*
 * ------------------------------------------------------------------------
 * Starting requests
 * ------------------------------------------------------------------------
 */

/*
 * The result of an attempt to start a request.
 */
typedef enum StartResult
{
	STARTED,					/* the request is in flight */
	REFUSED,					/* the request is done, and was not sent */
	NOT_NOW						/* the request is still ready */
} StartResult;

/*
 * Fail a request that has not been sent.
 */
static void
refuse_transfer(HrflowTransfer *transfer, HrflowStatus status,
				const char *detail)
{
	transfer->reply.status = status;
	transfer->reply.transient = false;
	transfer->reply.was_sent = false;
	transfer->reply.detail = detail;
	transfer->reply.http_status = 0;
	transfer->reply.attempts = transfer->ncounted;
	hrflow_transfer_move(transfer, HRFLOW_DONE);
}

/*
 * Fail a request because a request limit has been reached.
 */
static void
refuse_spent(HrflowTransfer *transfer, HrflowStatus status)
{
	hrflow_budget_describe(transfer->transport, status, transfer->error,
						   sizeof(transfer->error));
	refuse_transfer(transfer, status, transfer->error);
}

/*
 * Ask the request limits and the account whether a request to the API may be
 * sent now.  If so, count it, and return STARTED.  If not, return REFUSED if
 * the request has failed, or NOT_NOW if it is still ready.
 */
static StartResult
admit_transfer(HrflowTransfer *transfer, int64 now)
{
	HrflowTransport *transport = transfer->transport;
	HrflowStatus spent = hrflow_budget_check(transport);
	HrflowAdmission admission;

	if (spent != HRFLOW_OK)
	{
		refuse_spent(transfer, spent);
		return REFUSED;
	}
	admission = hrflow_account_admit(transport, now);
	transfer->attempt.serial = transport->serial;
	transfer->attempt.is_probe = admission == HRFLOW_ADMIT_PROBE;
	if (admission == HRFLOW_WAIT)
		return NOT_NOW;
	if (admission == HRFLOW_REFUSE)
	{
		StaticAssertStmt(HRFLOW_RETRY_AFTER_LIMIT == 5 * 60 * HRFLOW_SEC,
						 "the detail must name the limit");
		refuse_transfer(transfer, HRFLOW_RATE_LIMITED,
						"The API requested a pause of more than five minutes.");
		return REFUSED;
	}
	transfer->attempt.is_charged = true;
	if (!hrflow_budget_take(transfer))
	{
		refuse_spent(transfer, HRFLOW_OVER_DAY);
		return REFUSED;
	}
	return STARTED;
}

/*
 * Start a ready request, if it is admitted now.  The caller must have reserved
 * a descriptor.
 *
 * If this throws, the request is still ready.  If it was admitted as a probe
 * or counted, that is undone when the transport is dismissed, when the request
 * is given up, or when it is started again (if the error was raised and caught
 * while another transport was being used).
 */
static StartResult
start_transfer(HrflowTransfer *transfer, int64 now)
{
	StartResult result = STARTED;

	hrflow_transfer_give_back(transfer);
	transfer->attempt = (HrflowAttempt)
	{
		.began = now,
			.nleft = -1,
			.socket = -1,
			.is_alone = hrflow_window_limit(transfer->transport) == 1
	};
	if (!HRFLOW_IS_LINK(transfer->reply.target))
		result = admit_transfer(transfer, now);
	if (result != STARTED)
		return result;
	if (!hrflow_curl_start(transfer))
	{
		hrflow_transfer_move(transfer, HRFLOW_DONE);
		return REFUSED;
	}
	hrflow_transfer_launch(transfer);
	return STARTED;
}

/*
 * ------------------------------------------------------------------------
 * Replies
 * ------------------------------------------------------------------------
 */

/*
 * Make a request ready to be sent over a new connection, after on_request()
 * has kept libcurl from sending it: the connection cannot be used, or the
 * transport has been stopped.  If the request may no longer be sent, it is
 * finished instead.  If libcurl has never sent the request in this attempt,
 * the attempt does not count.
 */
static void
restart_transfer(HrflowTransfer *transfer)
{
	transfer->needs_fresh = true;
	if (transfer->attempt.nsent > 0)
		transfer->ncounted++;
	hrflow_transfer_queue(transfer);
}

/*
 * Move a transfer whose attempt has ended out of libcurl.  Report the outcome
 * to the account immediately, since it may take a long time until the
 * submitter gets the reply.
 *
 * If the bodies of all replies together, rather than this body, were too
 * large, the request becomes ready again, unless it may no longer be sent.
 * The attempt does not count, and the number of requests in flight is limited
 * from then on.  A POST is not retried, since the server has already processed
 * it.
 */
static void
end_attempt(HrflowTransfer *transfer)
{
	if (transfer->attempt.fault == HRFLOW_UNUSABLE ||
		transfer->attempt.fault == HRFLOW_STOPPED)
	{
		restart_transfer(transfer);
		return;
	}
	hrflow_window_settle(transfer);
	hrflow_account_settle(transfer);
	hrflow_speed_note(transfer);
	if (transfer->attempt.fault != HRFLOW_EXCEEDS_BUDGET)
	{
		hrflow_transfer_move(transfer, HRFLOW_DONE);
		hrflow_window_widen(transfer->transport);
		return;
	}
	if (transfer->post == NULL)
		hrflow_transfer_queue(transfer);
	else
		hrflow_transfer_move(transfer, HRFLOW_DONE);
	hrflow_window_narrow(transfer->transport, hrflow_transfer_nin_flight());
}

/*
 * Has a request to the same origin been sent over a connection that this
 * request might share?
 */
static bool
is_connected(const HrflowTransfer *transfer)
{
	dlist_iter	iter;

	dlist_foreach(iter, hrflow_transfer_in_flight())
	{
		const HrflowTransfer *other = dlist_container(HrflowTransfer, in_flight, iter.cur);

		if (other->attempt.offers_http2 && other->attempt.nsent > 0 &&
			hrflow_origin_is_same(transfer->url, other->url))
			return true;
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
	return transfer != failed && transfer->attempt.may_wait &&
		(transfer->state == HRFLOW_WAITING ||
		 transfer->attempt.round == hrflow_advance_round()) &&
		hrflow_origin_is_same(failed->url, transfer->url);
}

/*
 * Fail the requests that are waiting for a connection that could not be
 * established.  libcurl would make them try to connect one after another, each
 * for as long as the first one, until most of them time out.  Unless there is
 * another connection to the origin, they fail as if each had tried by itself,
 * as with HTTP/1.1.
 */
static void
fail_waiting(const HrflowTransfer *failed)
{
	dlist_mutable_iter iter;

	if (is_connected(failed))
		return;
	dlist_foreach_modify(iter, hrflow_transfer_in_flight())
	{
		HrflowTransfer *transfer = dlist_container(HrflowTransfer, in_flight, iter.cur);

		if (!waited_for(transfer, failed))
			continue;
		transfer->reply.status = failed->reply.status;
		transfer->reply.transient = failed->reply.transient;
		transfer->attempt.is_impatient = failed->attempt.is_impatient;
		strlcpy(transfer->error, failed->reply.detail,
				sizeof(transfer->error));
		transfer->reply.detail = transfer->error;
		end_attempt(transfer);
	}
}

/*
 * After a connection has been established, make requests stop waiting for it:
 * if they cannot share it now, they never will.  is_connected() reads the
 * whole list, so call it only once for consecutive requests to the same
 * origin.
 *
 * May throw.  Then the other requests wait until the next connection has been
 * established, or until they time out.
 */
static void
release_waiting(void)
{
	const HrflowTransfer *asked = NULL;
	bool		connected = false;
	dlist_iter	iter;

	if (!hrflow_advance_take_connected())
		return;
	dlist_foreach(iter, hrflow_transfer_in_flight())
	{
		HrflowTransfer *transfer = dlist_container(HrflowTransfer, in_flight, iter.cur);

		if (transfer->state != HRFLOW_WAITING || !transfer->attempt.may_wait)
			continue;
		if (asked == NULL || !hrflow_origin_is_same(asked->url, transfer->url))
		{
			asked = transfer;
			connected = is_connected(transfer);
		}
		if (connected)
			hrflow_curl_stop_waiting(transfer);
	}
}

/*
 * Process the transfers that libcurl has completed, for all transports.  Does
 * not throw.
 */
static void
collect_done(void)
{
	HrflowTransfer *transfer;

	while ((transfer = hrflow_curl_next_done()) != NULL)
	{
		if (transfer->reply.status == HRFLOW_CONNECT_FAILED &&
			transfer->attempt.may_wait)
			fail_waiting(transfer);
		end_attempt(transfer);
	}
	hrflow_advance_end_round();
}

/*
 * After an error that has interrupted the scheduler, process the transfers
 * that libcurl had already completed, even if the multi handle is broken: this
 * only reads its messages, and removes these transfers from it.  Does not
 * throw.
 */
void
hrflow_scheduler_collect(void)
{
	if (hrflow_transfer_nin_flight() > 0)
		collect_done();
}

/*
 * Fail all requests in flight after an error of the multi handle itself, which
 * must no longer be used.  Replies that are complete are kept.
 */
static void
lose_in_flight(void)
{
	dlist_head *in_flight = hrflow_transfer_in_flight();

	hrflow_scheduler_collect();
	while (!dlist_is_empty(in_flight))
	{
		HrflowTransfer *transfer = dlist_head_element(HrflowTransfer, in_flight,
													  in_flight);

		transfer->reply.status = HRFLOW_CONNECTION_LOST;
		transfer->reply.transient = true;
		transfer->reply.was_sent = transfer->attempt.nsent > 0;
		transfer->reply.detail = "The request was abandoned after an internal error of libcurl.";
		hrflow_transfer_move(transfer, HRFLOW_DONE);
	}
}

/*
 * If the backend has been busy elsewhere for longer than ABSENCE_LIMIT, for
 * example because a row that is being updated was locked, prolong the requests
 * in flight by that time.  libcurl compares the time before it reads from a
 * socket, so requests would time out although their replies have arrived.
 * Must be called before libcurl, and scheduler.used_at must be set afterwards.
 * Does not throw.
 */
static void
excuse_absence(void)
{
	int64		absence = hrflow_clock_now() - scheduler.used_at;
	dlist_iter	iter;

	if (absence <= ABSENCE_LIMIT)
		return;
	dlist_foreach(iter, hrflow_transfer_in_flight())
	{
		hrflow_curl_prolong(dlist_container(HrflowTransfer, in_flight, iter.cur),
							absence);
	}
	scheduler.used_at += absence;
}

/*
 * Receive the data that has arrived, for all transports, without waiting.
 */
void
hrflow_scheduler_receive(void)
{
	if (hrflow_transfer_nin_flight() == 0 || hrflow_pool_is_broken())
		return;
	excuse_absence();
	hrflow_pool_receive();
	collect_done();
	scheduler.used_at = hrflow_clock_now();
}

/*
 * End a transport's overdue requests, after giving libcurl an opportunity to
 * end them.  libcurl has no timer for requests that have been prolonged.
 */
static void
end_overdue(HrflowTransport *transport)
{
	HrflowTransfer *transfer;

	hrflow_scheduler_receive();
	while ((transfer = hrflow_advance_find_overdue(transport,
												   hrflow_clock_now())) != NULL)
	{
		hrflow_curl_abandon(transfer);
		end_attempt(transfer);
	}
}

/*
 * End the overdue requests of all transports.
 */
void
hrflow_scheduler_end_overdue(int64 now)
{
	dlist_iter	iter;

	excuse_absence();
	dlist_foreach(iter, &scheduler.transports)
	{
		HrflowTransport *transport = dlist_container(HrflowTransport, node, iter.cur);

		if (hrflow_advance_find_overdue(transport, now) != NULL)
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
	dlist_iter	iter;

	dlist_foreach(iter, hrflow_transfer_in_flight())
	{
		if (dlist_container(HrflowTransfer, in_flight, iter.cur)->state < HRFLOW_SENT)
			n++;
	}
	return n;
}

/*
 * Return the next ready request to start, or NULL if there is none whose
 * window has room.  Links have priority.
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
 * Must a request wait because the proxy has not accepted our password
 * recently, and another request is opening a connection through it?
 */
static bool
awaits_proxy(const HrflowTransfer *transfer)
{
	dlist_iter	iter;

	if (!hrflow_advance_may_be_refused(transfer->transport->settings) ||
		!hrflow_curl_uses_proxy(transfer))
		return false;
	dlist_foreach(iter, hrflow_transfer_in_flight())
	{
		const HrflowTransfer *other = dlist_container(HrflowTransfer, in_flight, iter.cur);

		if (other->attempt.uses_proxy && other->state < HRFLOW_SENT)
			return true;
	}
	return false;
}

/*
 * Start the ready requests of a transport while there is room, a descriptor is
 * available and the account admits them.  Returns false if a request must wait
 * although its window has room, because hrflow_scheduler_room() is 0 or less,
 * no descriptor is available, or the proxy may refuse it; then the transports
 * after this one in the list must not start requests either.  May throw.
 */
static bool
start_ready(HrflowTransport *transport, int64 now)
{
	HrflowTransfer *transfer;
	StartResult result;
	int			nstarted = 0;
	bool		opens = true;	/* do requests need new connections? */

	transport->awaits_rate = false;
	while ((transfer = first_delayed(transport)) != NULL &&
		   transfer->due <= now)
		hrflow_transfer_queue(transfer);

	while ((transfer = next_ready(transport)) != NULL)
	{
		if (hrflow_scheduler_room(transport) <= 0 || awaits_proxy(transfer) ||
			!hrflow_pool_reserve_descriptor(transport->settings,
											hrflow_transfer_nin_flight(),
											count_unsent))
			return false;
		result = start_transfer(transfer, now);
		if (result == NOT_NOW)
		{
			transport->awaits_rate = true;
			break;
		}
		if (result != STARTED || !opens)
			continue;
		nstarted++;
		if (nstarted % START_AT_ONCE == 0 &&
			hrflow_pool_lacks_connections(hrflow_transfer_nin_flight()))
		{
			opens = hrflow_pool_run_timer();
			scheduler.used_at = hrflow_clock_now();
			hrflow_scheduler_receive();
			now = hrflow_clock_now();
		}
	}
	return true;
}

/*
 * Return the time at which a transport needs attention even if no event
 * occurs.  "may_start" tells whether it may start requests.
 */
static int64
next_time(const HrflowTransport *transport, bool may_start)
{
	int64		next = hrflow_advance_overdue_at(transport);
	const HrflowTransfer *delayed = first_delayed(transport);

	if (transport->suspended || !may_start)
		return next;
	if (delayed != NULL)
		next = Min(next, delayed->due);
	if (transport->awaits_rate)
		next = Min(next, transport->admitted_at);
	return next;
}

/*
 * Add this backend's counts to the shared counts, at most once per
 * FLUSH_INTERVAL.  Returns the time at which to call this function again.
 */
static int64
flush_counts(int64 now)
{
	if (now - scheduler.flushed_at >= FLUSH_INTERVAL)
	{
		hrflow_stats_flush();
		scheduler.flushed_at = now;
	}
	return scheduler.flushed_at + FLUSH_INTERVAL;
}

/*
 * For each transport, in order of priority, start the requests that may be
 * started now.  Then let libcurl process its timers, and process the transfers
 * that it has completed.  Does not wait.
 */
void
hrflow_scheduler_work(void)
{
	int64		now = hrflow_clock_now();
	dlist_iter	iter;

	excuse_absence();
	scheduler.blocker = NULL;
	dlist_foreach(iter, &scheduler.transports)
	{
		HrflowTransport *transport = dlist_container(HrflowTransport, node, iter.cur);

		if (!transport->suspended && !start_ready(transport, now))
		{
			scheduler.blocker = transport;
			break;
		}
	}
	hrflow_pool_balance_descriptors(hrflow_transfer_nin_flight());
	release_waiting();
	(void) hrflow_pool_run_timer();
	collect_done();
	scheduler.used_at = hrflow_clock_now();
	(void) flush_counts(scheduler.used_at);
}

/*
 * Record why each transport is about to wait, and publish the activity.
 */
static void
show_waits(void)
{
	bool		is_narrow = hrflow_window_is_narrow(hrflow_transfer_nin_flight());
	dlist_iter	iter;

	dlist_foreach(iter, &scheduler.transports)
	{
		HrflowTransport *transport = dlist_container(HrflowTransport, node, iter.cur);
		const HrflowTransfer *delayed = first_delayed(transport);

		hrflow_show_wait(transport, delayed ? delayed->due : HRFLOW_NEVER,
						 is_narrow);
	}
	hrflow_activity_publish();
}

/*
 * Wait for an event, but no longer than until the given time, until a
 * transport needs attention, or until counts must be flushed.  Only an event
 * enables the transports after the blocker to start requests.
 */
void
hrflow_scheduler_wait(int64 until)
{
	bool		may_start = true;
	dlist_iter	iter;

	until = Min(until, flush_counts(hrflow_clock_now()));
	dlist_foreach(iter, &scheduler.transports)
	{
		const HrflowTransport *transport = dlist_container(HrflowTransport, node, iter.cur);

		until = Min(until, next_time(transport, may_start));
		may_start &= transport != scheduler.blocker;
	}
	show_waits();
	hrflow_pool_wait(until, hrflow_transfer_nin_flight() == 0);
	scheduler.used_at = hrflow_clock_now();
	hrflow_activity_go_on();
}

/*
 * Return how many more requests of a transport could be started now if no
 * other requests were ready.  The windows of their origins, the account, the
 * proxy and the available descriptors may allow fewer.  May be negative.
 */
int
hrflow_scheduler_room(const HrflowTransport *transport)
{
	int			room = hrflow_window_limit(transport) - hrflow_transfer_nin_flight();

	return transport->is_answered ? room :
		Min(room, HRFLOW_MAX_WASTED - transport->nin_flight);
}

/*
 * ------------------------------------------------------------------------
 * Transports
 * ------------------------------------------------------------------------
 */

/*
 * Prepare the backend for the requests of a transport.  If the multi handle is
 * broken, fail all requests in flight, and replace it.  May throw.
 */
void
hrflow_scheduler_prepare(const HrflowSettings *settings)
{
	if (hrflow_pool_is_broken())
		lose_in_flight();
	hrflow_pool_prepare(settings, hrflow_transfer_nin_flight() > 0);
}

/*
 * Return the list of the transports that have not ended.
 */
dlist_head *
hrflow_scheduler_transports(void)
{
	return &scheduler.transports;
}

/*
 * Add a transport to the scheduler.  Does not throw.
 */
void
hrflow_scheduler_enroll(HrflowTransport *transport)
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
 * Remove a transport from the scheduler, and release its requests.  Of the
 * connections that its requests in flight use, only established HTTP/2
 * connections stay open.  Does not throw.
 */
void
hrflow_scheduler_dismiss(HrflowTransport *transport)
{
	HrflowTransfer *transfer;

	dlist_delete(&transport->node);
	make_idle(&transport->in_flight);
	make_idle(&transport->ready_links);
	make_idle(&transport->ready);
	make_idle(&transport->done);
	make_idle(&transport->handed_out);
	while ((transfer = first_delayed(transport)) != NULL)
		hrflow_transfer_move(transfer, HRFLOW_IDLE);
	hrflow_pool_balance_descriptors(hrflow_transfer_nin_flight());
	hrflow_stats_flush();
}

/*
 * Remove a transport from the scheduler of an exiting backend.  Its sockets
 * are left to the kernel, but what it has taken from other backends must be
 * given back: its probe, whose outcome they may be waiting for, and the
 * requests that were counted towards limits, but not sent.  Such requests are
 * in flight, or still ready if an error has occurred while they were being
 * started.  Does not throw.
 */
void
hrflow_scheduler_abandon(HrflowTransport *transport)
{
	dlist_head *lists[] = {&transport->in_flight, &transport->ready};
	dlist_iter	iter;

	dlist_delete(&transport->node);
	for (int i = 0; i < lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			hrflow_transfer_give_back(dlist_container(HrflowTransfer, node, iter.cur));
		}
	}
	hrflow_stats_flush();
}
