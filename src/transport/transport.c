/*-------------------------------------------------------------------------
 *
 * transport.c
 *		Implements the interface of the transport, which the layers above call.
 *
 * A call of a function, or a scan, has one transport for its requests, from
 * hrflow_transport_begin() to hrflow_transport_end(), the reset of the memory
 * context in which it began, or the abort of the transaction, whichever comes
 * first.  (A procedure that commits or rolls back keeps its transport.)  There
 * can be several transports at the same time, if a function called by a
 * statement sends requests of its own, or if a scan has been suspended.
 *
 * If an error interrupts the use of a transport, the caller must end it.  The
 * memory context may live on: if the error is rolled back to a savepoint, that
 * of a cursor opened before the savepoint does, until the cursor is closed.
 * Meanwhile, other transports would send the requests that are left.
 *
 * In this layer only hrflow_transport_next(), hrflow_transport_next_until(),
 * hrflow_transport_pause() and hrflow_transport_suspend() process interrupts.
 * Other layers process interrupts, too: see, for example, json.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "transport/transfer.h"
#include "utils/memutils.h"

/*
 * If this many of a transport's requests are waiting to be retried, callers
 * are asked to submit no more, so that a failing server does not fill our
 * memory.
 */
#define MAX_DELAYED 1024

/* Minimum remaining length of a pause that is reported to the user. */
#define LONG_PAUSE (5 * HRFLOW_SEC)

/*
 * ------------------------------------------------------------------------
 * Begin and end
 * ------------------------------------------------------------------------
 */

static int
compare_due(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	int64		due_a = pairingheap_const_container(HrflowTransfer, delayed, a)->due;
	int64		due_b = pairingheap_const_container(HrflowTransfer, delayed, b)->due;

	/* pairingheap.c returns the largest element first. */
	return due_a < due_b ? 1 : due_a > due_b ? -1 : 0;
}

/*
 * Finish ending a transport that has been removed from the scheduler.  Does
 * not throw.
 */
static void
note_end(HrflowTransport *transport)
{
	hrflow_headers_release(transport->headers);
	transport->activity->state.nin_flight = 0;
	transport->has_ended = true;
}

/*
 * Callback for the reset of a transport's memory context, which ends the
 * transport after an error.
 */
static void
on_transport_reset(void *arg)
{
	HrflowTransport *transport = arg;

	if (transport->has_ended)
		return;
	if (proc_exit_inprogress)
		hrflow_scheduler_abandon(transport);
	else
		hrflow_scheduler_dismiss(transport);
	note_end(transport);
}

/*
 * Callback for the end of a transaction: if it is aborted, end its transports.
 * In a failed transaction block, their memory contexts might otherwise live
 * until the client sends ROLLBACK; see activity.c.  Transports of procedures
 * that commit and roll back continue.
 */
static void
end_failed_transports(XactEvent event, void *arg)
{
	dlist_mutable_iter iter;

	if (event != XACT_EVENT_ABORT)
		return;
	dlist_foreach_modify(iter, hrflow_scheduler_transports())
	{
		HrflowTransport *transport = dlist_container(HrflowTransport, node,
													 iter.cur);

		if (!transport->activity->outlives_transactions)
			on_transport_reset(transport);
	}
}

/*
 * On the first call, register end_failed_transports().  May throw.
 */
static void
watch_failures(void)
{
	static bool is_watching = false;

	if (!is_watching)
		RegisterXactCallback(end_failed_transports, NULL);
	is_watching = true;
}

/*
 * Begin a transport for the requests of a call or a scan.  May throw.
 * "activity" shows the requests, determines on whose behalf they are sent, and
 * must not end before the transport.  "time_limit" is the limit for all
 * requests together, in milliseconds, or 0 for no limit.  The transport lives
 * in the current memory context, ends at the latest when that is reset, and
 * pins the settings until then.
 */
HrflowTransport *
hrflow_transport_begin(const HrflowSettings *settings,
					   HrflowActivity *activity, int time_limit)
{
	HrflowTransport *transport;

	/* Attach to shared memory while an error may still be raised. */
	hrflow_stats_flush();
	watch_failures();
	hrflow_scheduler_prepare(settings);

	transport = palloc0(sizeof(HrflowTransport));
	transport->usage = hrflow_usage_of(activity->state.role);
	transport->settings = hrflow_settings_pin(settings);
	transport->activity = activity;
	transport->account = hrflow_rate_account(settings);
	transport->window = hrflow_window_find(settings->base_url);
	transport->deadline = time_limit > 0 ?
		hrflow_clock_now() + time_limit * HRFLOW_MSEC : HRFLOW_NEVER;
	dlist_init(&transport->ready);
	dlist_init(&transport->ready_links);
	dlist_init(&transport->all_delayed);
	dlist_init(&transport->in_flight);
	dlist_init(&transport->done);
	dlist_init(&transport->handed_out);
	transport->delayed = pairingheap_allocate(compare_due, NULL);
	transport->headers = hrflow_headers_get(settings);

	/* Nothing throws from here on. */
	transport->on_reset.func = on_transport_reset;
	transport->on_reset.arg = transport;
	MemoryContextRegisterResetCallback(CurrentMemoryContext,
									   &transport->on_reset);
	hrflow_scheduler_enroll(transport);
	hrflow_stats_count(HRFLOW_CALLS, 1);
	return transport;
}

/*
 * End a transport.  Connections without a request in flight stay open for the
 * next transport.
 */
void
hrflow_transport_end(HrflowTransport *transport)
{
	Assert(!transport->has_ended);
	hrflow_scheduler_dismiss(transport);
	note_end(transport);
}

/*
 * ------------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------------
 */

/*
 * Record that a transport, which may have been suspended, is in use again.
 */
static void
wake(HrflowTransport *transport)
{
	transport->suspended = false;
	hrflow_activity_suspend(transport->activity, false);
}

static void
submit(HrflowTransport *transport, HrflowTarget target, const char *url,
	   const char *post, void *tag)
{
	HrflowTransfer *transfer = hrflow_idle_get();

	transfer->reply = (HrflowReply)
	{
		.target = target,
			.tag = tag,
			.transfer = transfer
	};
	transfer->transport = transport;
	transfer->window = HRFLOW_IS_LINK(target) ? hrflow_window_find(url) :
		transport->window;
	transfer->url = url;
	transfer->post = post;
	transfer->caller = transport->activity->state.caller;
	transfer->ncounted = 0;
	transfer->sent_at = 0;
	transfer->avoids_http2 = false;
	transfer->needs_fresh = false;
	transfer->attempt = (HrflowAttempt)
	{
		0
	};
	wake(transport);
	hrflow_transfer_queue(transfer);
}

/*
 * Submit a GET request.  It is not sent yet.  May throw.  The URL must remain
 * valid until the reply is released.  "tag" is returned in the reply.
 */
void
hrflow_transport_submit(HrflowTransport *transport, HrflowTarget target,
						const char *url, void *tag)
{
	submit(transport, target, url, NULL, tag);
}

/*
 * Submit a POST request with a JSON body to the API.  May throw.  The URL and
 * the body must remain valid until the reply is released.
 */
void
hrflow_transport_post(HrflowTransport *transport, const char *url,
					  const char *body, void *tag)
{
	submit(transport, HRFLOW_TO_API, url, body, tag);
}

/*
 * Return how many more requests to the API it is useful to submit now.
 * Further requests would only wait here, and use memory.
 */
int
hrflow_transport_room(const HrflowTransport *transport)
{
	if (transport->stopped || transport->error != NULL ||
		transport->ndelayed >= MAX_DELAYED)
		return 0;
	return Max(0, Min(hrflow_scheduler_room(transport),
					  hrflow_window_room(transport->window)) -
			   transport->nready);
}

/*
 * Return the maximum number of requests to the API that may be in flight,
 * regardless of the current size of the window.
 */
int
hrflow_transport_width(const HrflowTransport *transport)
{
	int			width = hrflow_window_limit(transport);

	return transport->is_answered ? width : Min(width, HRFLOW_MAX_WASTED);
}

/*
 * Return the maximum number of requests that have been in flight at any time,
 * including links.
 */
int
hrflow_transport_most_in_flight(const HrflowTransport *transport)
{
	return transport->most_in_flight;
}

/*
 * Return how many more links it is useful to submit now.  Unlike requests to
 * the API, links do not wait for the account's rate limit, and are fetched
 * even if the transport was stopped, unless links were, too.  After an error,
 * or once the time limit has expired, nothing is sent.
 */
int
hrflow_transport_room_for_links(HrflowTransport *transport)
{
	int			room = hrflow_scheduler_room(transport);
	dlist_iter	iter;

	if (transport->expired || transport->links_stopped ||
		transport->error != NULL || transport->ndelayed >= MAX_DELAYED)
		return 0;
	dlist_foreach(iter, &transport->ready_links)
		room--;
	return Max(0, room);
}

/*
 * ------------------------------------------------------------------------
 * Errors of libcurl and of the system
 * ------------------------------------------------------------------------
 */

/*
 * A step of a transport's work, which may throw.  "time" is its argument, if
 * it has one.
 */
typedef void (*Step) (HrflowTransport *transport, int64 time);

static void
prepare_step(HrflowTransport *transport, int64 time)
{
	hrflow_scheduler_prepare(transport->settings);
}

static void
receive_step(HrflowTransport *transport, int64 time)
{
	hrflow_scheduler_receive();
}

static void
work_step(HrflowTransport *transport, int64 time)
{
	hrflow_scheduler_work();
}

static void
wait_step(HrflowTransport *transport, int64 until)
{
	hrflow_scheduler_wait(until);
}

/*
 * Execute a step.  If it throws, save the error, unless an earlier error is
 * still to be raised.  It is safe to continue without aborting the transaction,
 * because the steps do not use the database, do not process interrupts, and
 * never throw while holding a lock.
 */
static void
catch_step(HrflowTransport *transport, Step step, int64 time)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		interrupt_holdoff = InterruptHoldoffCount;
	uint32		cancel_holdoff = QueryCancelHoldoffCount;

	PG_TRY();
	{
		step(transport, time);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(GetMemoryChunkContext(transport));
		if (transport->error == NULL)
			transport->error = CopyErrorData();
		FlushErrorState();
		MemoryContextSwitchTo(context);

		/* An error that is thrown resets these. */
		InterruptHoldoffCount = interrupt_holdoff;
		QueryCancelHoldoffCount = cancel_holdoff;
		pgstat_report_wait_end();
		hrflow_activity_go_on();
	}
	PG_END_TRY();
}

/*
 * Execute a step, unless an earlier error is still to be raised.  If the step
 * throws, save the error, so that hrflow_transport_next() can first return the
 * replies that have arrived, because they may have been paid for.  To complete
 * more of them, collect the replies that libcurl has not reported yet and,
 * unless libcurl itself has failed, first read the data that is available.
 */
static void
attempt_step(HrflowTransport *transport, Step step, int64 time)
{
	if (transport->error != NULL)
		return;
	catch_step(transport, step, time);
	if (transport->error != NULL)
	{
		catch_step(transport, receive_step, 0);
		hrflow_scheduler_collect();
	}
}

/*
 * Raise the error that attempt_step() has saved, if any.
 */
static void
raise_error(const HrflowTransport *transport)
{
	if (transport->error != NULL)
		ReThrowError(transport->error);
}

/*
 * ------------------------------------------------------------------------
 * Stopping
 * ------------------------------------------------------------------------
 */

/*
 * Stop sending requests to the API.  Requests in flight that have been sent
 * are completed, unless libcurl would have to send them again.  Links, which
 * have been paid for, are still fetched, unless hrflow_transport_stop_links()
 * is called, too.  "at_limit" means that a request limit has been reached.
 * Then requests that are already counted towards the limit are sent even if
 * their connection has not been established yet or must be replaced.  All
 * other requests are returned as replies with "stopped" set.
 */
void
hrflow_transport_stop(HrflowTransport *transport, bool at_limit)
{
	transport->stopped = true;
	transport->at_limit = at_limit;
	hrflow_transfer_give_up(transport);
}

/*
 * Stop fetching links.  Links that have been requested from their hosts are
 * completed, unless libcurl would have to request them again.  All other links
 * are returned as replies with "stopped" set.
 */
void
hrflow_transport_stop_links(HrflowTransport *transport)
{
	transport->links_stopped = true;
	hrflow_transfer_give_up(transport);
}

/*
 * Abandon all requests that have no reply yet.  Called when the time limit has
 * expired, or when the caller will not wait any longer.
 */
void
hrflow_transport_expire(HrflowTransport *transport)
{
	attempt_step(transport, receive_step, 0);
	transport->stopped = true;
	transport->expired = true;
	hrflow_transfer_give_up(transport);
}

/*
 * Has the time limit expired?
 */
bool
hrflow_transport_expired(const HrflowTransport *transport)
{
	return transport->expired;
}

/*
 * ------------------------------------------------------------------------
 * Replies
 * ------------------------------------------------------------------------
 */

/*
 * Receive the data that has arrived, without waiting and without returning any
 * reply.  Callers that are busy for a long time must call this now and then,
 * because requests make no progress otherwise, and servers may give up sending
 * their replies.  Does not throw: hrflow_transport_next() raises an error of
 * libcurl or the system.
 */
void
hrflow_transport_work(HrflowTransport *transport)
{
	if (!transport->has_ended)
		attempt_step(transport, receive_step, 0);
}

/*
 * Return a reply that is complete, or NULL.  If no request is in flight any
 * more, add this backend's counts to the shared counts, since the caller may
 * be busy elsewhere for a long time before it uses the transport again.
 *
 * If there was not enough memory for a reply, stop the transport, but let
 * is_at_end() raise 53200 only when all other replies have been returned,
 * because they may have been paid for.  In that case, abandoned requests get
 * no reply.
 */
static HrflowReply *
hand_out(HrflowTransport *transport)
{
	if (transport->nin_flight == 0)
		hrflow_stats_flush();
	while (!dlist_is_empty(&transport->done))
	{
		HrflowTransfer *transfer = dlist_head_element(HrflowTransfer, node,
													  &transport->done);

		hrflow_transfer_move(transfer, HRFLOW_HANDED_OUT);
		if (transfer->attempt.fault == HRFLOW_NO_MEMORY)
		{
			transport->lacks_memory = true;
			hrflow_transport_stop(transport, false);
		}
		else if (!transport->lacks_memory || !transfer->reply.stopped)
			return &transfer->reply;
	}
	return NULL;
}

/*
 * Will no more replies follow?  Must be called only after hand_out() has
 * returned NULL.  Throws 53200 if there was not enough memory for a reply.
 */
static bool
is_at_end(const HrflowTransport *transport)
{
	if (transport->nin_flight > 0 || transport->nready > 0 ||
		transport->ndelayed > 0)
		return false;
	if (transport->lacks_memory)
		hrflow_out_of_memory();
	return true;
}

/*
 * Prepare to use a transport after other statements may have been executed.
 * If one of these raised an error that was caught, libcurl's multi handle may
 * be broken, and is replaced, unless an error of this transport is still to be
 * raised.
 */
static void
resume(HrflowTransport *transport)
{
	Assert(!transport->has_ended);
	wake(transport);
	if (hrflow_pool_is_broken())
		attempt_step(transport, prepare_step, 0);
}

/*
 * Wait for "duration" microseconds, or until the time limit expires.  This
 * transport must have no requests; those of the backend's other transports
 * continue.  May throw.
 */
void
hrflow_transport_pause(HrflowTransport *transport, int64 duration)
{
	int64		until = Min(hrflow_clock_now() + duration, transport->deadline);

	resume(transport);
	raise_error(transport);
	transport->rests_until = until;
	while (hrflow_clock_now() < until)
	{
		CHECK_FOR_INTERRUPTS();
		hrflow_scheduler_end_overdue(hrflow_clock_now());
		hrflow_scheduler_work();
		hrflow_scheduler_wait(until);
	}
	transport->rests_until = 0;
}

/*
 * Send a NOTICE, at most once per transport, if its requests have to wait a
 * long time because the account is paused or a limit of the API has been
 * reached.
 */
static void
tell_pause(HrflowTransport *transport, int64 now)
{
	int64		left = transport->paused_until - now;

	if (transport->was_told || !transport->awaits_rate ||
		transport->nin_flight > 0 || left < LONG_PAUSE)
		return;
	transport->was_told = true;
	ereport(NOTICE,
			(errmsg("waiting %d s for the HrFlow API",
					(int) ((left + HRFLOW_SEC - 1) / HRFLOW_SEC)),
			 errdetail("The API has asked for a pause, or limits the account's request rate.")));
}

/*
 * End the requests that have timed out: all requests of this transport if its
 * time limit has expired, and requests of any transport that libcurl should
 * have ended.
 */
static void
end_late_requests(HrflowTransport *transport, int64 now)
{
	if (now >= transport->deadline && !transport->expired)
		hrflow_transport_expire(transport);
	hrflow_scheduler_end_overdue(now);
}

/*
 * Wait for the next reply.  Returns NULL if there are no requests left.
 * Requests of the backend's other transports continue meanwhile.
 *
 * A reply belongs to a single attempt.  Unless "stopped" is set, the caller
 * must interpret it, and then call hrflow_transport_retry(), which retries the
 * request if possible and returns whether it did.  A reply that is not retried
 * must be released.  Raises any error of CHECK_FOR_INTERRUPTS(), such as 57014
 * and 57P01.  Once the replies that have arrived have been returned, raises
 * 53200 if there is not enough memory, and other errors if libcurl or the
 * system has failed.
 */
HrflowReply *
hrflow_transport_next(HrflowTransport *transport)
{
	return hrflow_transport_next_until(transport, HRFLOW_NEVER, NULL);
}

/*
 * Like hrflow_transport_next(), but unless "woken" is NULL, also return NULL,
 * with *woken set to true, at the time "until" or when an interrupt is
 * pending.  The caller must process the interrupt.  A reply that has arrived
 * is returned even after "until", but not while an interrupt is pending.
 */
HrflowReply *
hrflow_transport_next_until(HrflowTransport *transport, int64 until,
							bool *woken)
{
	resume(transport);
	for (;;)
	{
		int64		now = hrflow_clock_now();
		HrflowReply *reply;

		if (woken != NULL && InterruptPending)
		{
			*woken = true;
			return NULL;
		}
		CHECK_FOR_INTERRUPTS();

		attempt_step(transport, end_late_requests, now);
		reply = hand_out(transport);
		if (reply == NULL)
		{
			attempt_step(transport, work_step, 0);
			reply = hand_out(transport);
		}
		if (reply != NULL)
			return reply;
		raise_error(transport);
		if (is_at_end(transport))
			return NULL;
		if (woken != NULL && now >= until)
		{
			*woken = true;
			return NULL;
		}
		tell_pause(transport, now);
		attempt_step(transport, wait_step, Min(transport->deadline, until));
	}
}

/*
 * Return the next reply if it is complete now, else NULL.  Sends and receives
 * what is possible without waiting.
 *
 * Does not throw: hrflow_transport_next() does if libcurl or the system lacks
 * resources or fails.  Does not process interrupts.
 */
HrflowReply *
hrflow_transport_poll(HrflowTransport *transport)
{
	resume(transport);
	attempt_step(transport, receive_step, 0);
	attempt_step(transport, end_late_requests, hrflow_clock_now());
	attempt_step(transport, work_step, 0);
	return hand_out(transport);
}

/*
 * Wait until a transport has no requests in flight, which takes little longer
 * than request_timeout at most, and start no more until the transport is used
 * again by submit, post, next, poll or pause.  Must be called before control
 * passes to the client for an unknown time, as with an open cursor.  Replies
 * are kept until the caller asks for them, but their outcomes are reported to
 * the account.  Raises any error of CHECK_FOR_INTERRUPTS(), and errors of
 * libcurl or the system, even if replies have arrived.
 */
void
hrflow_transport_suspend(HrflowTransport *transport)
{
	resume(transport);
	transport->suspended = true;
	while (transport->nin_flight > 0)
	{
		raise_error(transport);
		CHECK_FOR_INTERRUPTS();
		hrflow_scheduler_end_overdue(hrflow_clock_now());
		hrflow_scheduler_work();
		if (transport->nin_flight > 0)
			hrflow_scheduler_wait(HRFLOW_NEVER);
	}
	hrflow_stats_flush();
	hrflow_activity_suspend(transport->activity, true);
}

/*
 * May this request be retried after this outcome?  A GET can always be
 * retried.  A POST can be retried only if the outcome means that it was not
 * processed: it was not sent, or the server asked for a retry later (429, or
 * 503 with Retry-After).
 */
static bool
may_repeat(const HrflowTransfer *transfer, HrflowStatus status)
{
	const HrflowReply *reply = &transfer->reply;

	return transfer->post == NULL ||
		(reply->status == HRFLOW_CONNECT_FAILED && !reply->was_sent) ||
		status == HRFLOW_RATE_LIMITED ||
		(reply->http_status == 503 && reply->retry_after > 0);
}

/*
 * Retry the request of a reply if possible, given the status of the reply and
 * whether a retry might succeed.  Returns whether the request is retried, in
 * which case the caller must no longer use the reply.  This must be called for
 * every reply that does not have "stopped" set.
 *
 * If the attempt caused a pause of the account, hrflow_rate_report()
 * determined whether it counts towards max_attempts.  If it does, the request
 * goes to the end of the queue, so that no request spends all of its attempts
 * on probes.  A pause that many failures have caused may be shorter than a
 * Retry-After that one of them specifies, which delays only its request.
 */
bool
hrflow_transport_retry(HrflowTransport *transport, HrflowReply *reply,
					   HrflowStatus status, bool transient)
{
	HrflowTransfer *transfer = reply->transfer;
	bool		pauses;
	bool		counts;
	bool		delays;
	int64		asked = reply->retry_after * HRFLOW_SEC;
	int64		pause;

	if (!transient || !may_repeat(transfer, status))
		return false;

	pauses = !HRFLOW_IS_LINK(reply->target) && transfer->attempt.pause > 0;
	counts = !pauses || transfer->attempt.counts;
	pause = pauses ? transfer->attempt.pause : hrflow_account_backoff(reply);
	delays = !pauses || pause < asked;
	pause = Max(pause, asked);

	/* If no other attempt is allowed, the failure is final. */
	if (pause > HRFLOW_RETRY_AFTER_LIMIT || transport->expired ||
		(!HRFLOW_IS_LINK(reply->target) &&
		 hrflow_budget_check(transport) != HRFLOW_OK) ||
		(HRFLOW_IS_LINK(reply->target) ? transport->links_stopped :
		 transport->stopped) ||
		hrflow_clock_now() + pause >= transport->deadline ||
		(counts && reply->attempts >= transport->settings->max_attempts))
		return false;

	hrflow_body_drop(transfer);
	if (counts)
		transfer->ncounted++;
	if (delays)
		hrflow_transfer_delay(transfer, hrflow_clock_now() + pause);
	else if (counts)
		hrflow_transfer_queue(transfer);
	else
		hrflow_transfer_queue_first(transfer);
	return true;
}

/*
 * Release a reply, with its body and its detail.
 */
void
hrflow_transport_release(HrflowTransport *transport, HrflowReply *reply)
{
	Assert(reply->transfer->transport == transport);
	hrflow_transfer_move(reply->transfer, HRFLOW_IDLE);
}
