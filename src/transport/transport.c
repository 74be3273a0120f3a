/*-------------------------------------------------------------------------
 *
 * transport.c
 *		URLs to replies: what the layers above call.
 *
 * A statement has one transport: its requests, from hrflow_transport_begin to
 * hrflow_transport_end or to the reset of the memory context it began in,
 * whichever comes first.  There may be several at once, where a function that
 * one statement calls makes requests of its own, or where a scan has been
 * suspended.
 *
 * Here interrupts are taken in hrflow_transport_next() and
 * hrflow_transport_suspend() alone.  Who takes them elsewhere while there is a
 * transport, as json.c and batch.c do in long loops, leaves it to its memory
 * context to end it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "transport/transfer.h"
#include "utils/memutils.h"

/*
 * Maximum number of a transport's requests waiting to be retried.  No more are
 * begun until some of these are done, so that a server in trouble does not
 * fill our memory.
 */
#define MAX_DELAYED 1024

/* A pause that has at least this left is worth a NOTICE. */
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

	/* The heap gives the largest first. */
	return due_a < due_b ? 1 : due_a > due_b ? -1 : 0;
}

/*
 * Does not throw.
 */
static void
dismiss(HrflowTransport *transport, bool at_exit)
{
	hrflow_transfer_dismiss(transport, at_exit);
	hrflow_curl_release_headers(transport->headers);
	transport->activity->state.nin_flight = 0;
	transport->has_ended = true;
}

/*
 * The memory context of a transport goes: at the statement's end when there
 * was an error.
 */
static void
on_transport_reset(void *arg)
{
	HrflowTransport *transport = arg;

	if (!transport->has_ended)
		dismiss(transport, proc_exit_inprogress);
}

/*
 * Begin a statement's requests.  "activity" shows them, says on whose behalf
 * each is sent, and must not end earlier.  "time_limit" is for all of them, in
 * milliseconds; 0 for none.  The transport lives in the current memory context
 * and ends with it; so long it keeps the settings.
 */
HrflowTransport *
hrflow_transport_begin(const HrflowSettings *settings,
					   HrflowActivity *activity, int time_limit)
{
	HrflowTransport *transport;

	/* Attach to what is shared while an error may still be raised. */
	hrflow_stats_flush();
	hrflow_transfer_prepare(settings);

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
	transport->headers = hrflow_curl_get_headers(settings);

	/* Nothing throws from here on. */
	transport->on_reset.func = on_transport_reset;
	transport->on_reset.arg = transport;
	MemoryContextRegisterResetCallback(CurrentMemoryContext,
									   &transport->on_reset);
	hrflow_transfer_enroll(transport);
	hrflow_stats_count(HRFLOW_CALLS, 1);
	return transport;
}

/*
 * End a statement's requests.  Connections stay open for the next one.
 */
void
hrflow_transport_end(HrflowTransport *transport)
{
	Assert(!transport->has_ended);
	dismiss(transport, false);
}

/*
 * ------------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------------
 */

/*
 * A transport that may have been suspended is used again.
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
	transfer->was_sent = false;
	transfer->avoids_http2 = false;
	transfer->try = (HrflowTry)
	{
		0
	};
	wake(transport);
	hrflow_transfer_move(transfer, HRFLOW_READY);
}

/*
 * Ask for a URL, which must stay where it is until its reply is released.
 * Nothing is sent yet.  "tag" comes back in the reply.
 */
void
hrflow_transport_submit(HrflowTransport *transport, HrflowTarget target,
						const char *url, void *tag)
{
	submit(transport, target, url, NULL, tag);
}

/*
 * POST a body of JSON to the API.  The URL and the body must stay where they
 * are until the reply is released.
 */
void
hrflow_transport_post(HrflowTransport *transport, const char *url,
					  const char *body, void *tag)
{
	submit(transport, HRFLOW_TO_API, url, body, tag);
}

/*
 * How many requests more are of use now?  Those beyond would only wait here,
 * and take memory.
 */
int
hrflow_transport_room(const HrflowTransport *transport)
{
	if (transport->stopped || transport->ndelayed >= MAX_DELAYED)
		return 0;
	return Max(0, Min(hrflow_transfer_room(transport),
					  hrflow_window_room(transport->window)) -
			   transport->nready);
}

/*
 * How many requests to the API may be in flight at present?
 */
int
hrflow_transport_width(const HrflowTransport *transport)
{
	int			width = Min(hrflow_window_limit(transport),
							hrflow_window_size(transport->window));

	return transport->is_answered ? width : Min(width, HRFLOW_MAX_WASTED);
}

/*
 * The most that were at one time, links included.
 */
int
hrflow_transport_most_in_flight(const HrflowTransport *transport)
{
	return transport->most_in_flight;
}

/*
 * How many links more?  They do not wait for the account's rate, and are
 * fetched though the transport was stopped.
 */
int
hrflow_transport_room_for_links(HrflowTransport *transport)
{
	int			room = hrflow_transfer_room(transport);
	dlist_iter	iter;

	if (transport->expired || transport->ndelayed >= MAX_DELAYED)
		return 0;
	dlist_foreach(iter, &transport->ready_links)
		room--;
	return Max(0, room);
}

/*
 * ------------------------------------------------------------------------
 * The end of sending
 * ------------------------------------------------------------------------
 */

/*
 * Send nothing more to the API.  What is in flight comes home, and links,
 * which are paid for, are still fetched; the rest comes as replies that say
 * "stopped".
 */
void
hrflow_transport_stop(HrflowTransport *transport)
{
	transport->stopped = true;
	hrflow_transfer_give_up(transport);
}

/*
 * Give up all requests that have not arrived, as when the time limit is over.
 */
void
hrflow_transport_expire(HrflowTransport *transport)
{
	hrflow_transfer_receive();
	transport->stopped = true;
	transport->expired = true;
	hrflow_transfer_give_up(transport);
}

/*
 * Is the time limit over?
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
 * Receive what has come, without waiting and without handing it out.  To be
 * called now and then by who has other work for long: a reply that is not
 * read in time has timed out.
 */
void
hrflow_transport_work(HrflowTransport *transport)
{
	if (!transport->has_ended)
		hrflow_transfer_receive();
}

/*
 * Hand out a reply that has come, or NULL.
 *
 * Where there was no memory for a reply, the transport is stopped, and 53200 is
 * raised when all other replies have been handed out, because they may have
 * been paid for.  Requests that were not sent get no reply then.
 */
static HrflowReply *
hand_out(HrflowTransport *transport)
{
	while (!dlist_is_empty(&transport->done))
	{
		HrflowTransfer *transfer = dlist_head_element(HrflowTransfer, node,
													  &transport->done);

		hrflow_transfer_move(transfer, HRFLOW_HANDED_OUT);
		if (transfer->try.fault == HRFLOW_NO_MEMORY)
		{
			transport->lacks_memory = true;
			hrflow_transport_stop(transport);
		}
		else if (!transport->lacks_memory || !transfer->reply.stopped)
			return &transfer->reply;
	}
	return NULL;
}

/*
 * Is nothing asked for any more?  Raises 53200 if there was no memory for a
 * reply.
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
 * Go on, whatever the statements did that came between.  An error of theirs
 * that was caught may have left libcurl's handle broken.
 */
static void
resume(HrflowTransport *transport)
{
	Assert(!transport->has_ended);
	wake(transport);
	if (hrflow_pool_is_broken())
		hrflow_transfer_prepare(transport->settings);
}

/*
 * Wait for "duration" microseconds, or until the time limit is over.  Nothing
 * of this transport may be in flight; the backend's other transports go on.
 */
void
hrflow_transport_pause(HrflowTransport *transport, int64 duration)
{
	int64		until = Min(hrflow_clock_now() + duration, transport->deadline);

	resume(transport);
	transport->rests_until = until;
	while (hrflow_clock_now() < until)
	{
		CHECK_FOR_INTERRUPTS();
		hrflow_transfer_work();
		hrflow_transfer_wait(until);
	}
	transport->rests_until = 0;
}

/*
 * Tell the user, once, that the server has asked for a pause.
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
			 errdetail("The API limits the rate of this account's requests.")));
}

/*
 * End the requests whose time is over: all of a transport's after its deadline,
 * and those that libcurl has lost sight of.
 */
static void
end_late_requests(HrflowTransport *transport, int64 now)
{
	if (now >= transport->deadline && !transport->expired)
		hrflow_transport_expire(transport);
	hrflow_transfer_end_overdue(now);
}

/*
 * Wait for the next reply to come; NULL when nothing is asked for any more.
 * Meanwhile the requests of the backend's other transports go on.
 *
 * Each reply is one try's: the caller makes out what it means and must then
 * ask hrflow_transport_retry() whether there will be another.
 *
 * Raises 57014, 57P01 and the like from CHECK_FOR_INTERRUPTS, and 53200.
 */
HrflowReply *
hrflow_transport_next(HrflowTransport *transport)
{
	return hrflow_transport_next_until(transport, HRFLOW_NEVER, NULL);
}

/*
 * Likewise, but return NULL at a time, too, or when an interrupt is pending.
 * Then *woken is set, and the interrupt is left to the caller.  A reply that has
 * come is returned first, unless there is an interrupt.
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

		end_late_requests(transport, now);
		reply = hand_out(transport);
		if (reply == NULL)
		{
			hrflow_transfer_work();
			reply = hand_out(transport);
		}
		if (reply != NULL)
			return reply;
		if (is_at_end(transport))
			return NULL;
		if (woken != NULL && now >= until)
		{
			*woken = true;
			return NULL;
		}
		tell_pause(transport, now);
		hrflow_transfer_wait(Min(transport->deadline, until));
	}
}

/*
 * The next reply, if there is one now; NULL also when there is none yet.
 * Sends what may be sent and receives what has come, but does not wait.
 *
 * Raises 53200 and what a failure of libcurl's raises; takes no interrupts.
 */
HrflowReply *
hrflow_transport_poll(HrflowTransport *transport)
{
	resume(transport);
	hrflow_transfer_receive();
	end_late_requests(transport, hrflow_clock_now());
	hrflow_transfer_work();
	return hand_out(transport);
}

/*
 * Wait until none of a transport's requests is in flight, and start no more
 * until it is used again: with submit, post, next or poll.  To be called where
 * control leaves us for a time that we do not know, as an open cursor does.
 *
 * It takes no longer than request_timeout.  Replies are kept to be handed out;
 * what they say of the account has been passed on.
 *
 * Raises what CHECK_FOR_INTERRUPTS does.
 */
void
hrflow_transport_suspend(HrflowTransport *transport)
{
	resume(transport);
	transport->suspended = true;
	while (transport->nin_flight > 0)
	{
		CHECK_FOR_INTERRUPTS();
		hrflow_transfer_end_overdue(hrflow_clock_now());
		hrflow_transfer_work();
		if (transport->nin_flight > 0)
			hrflow_transfer_wait(HRFLOW_NEVER);
	}
	hrflow_activity_suspend(transport->activity, true);
}

/*
 * May this request be sent again, after what became of it?  A GET always.  A
 * POST only where that proves that it was not processed: no connection was
 * made, or the server tells to come again (429, or 503 with Retry-After).
 */
static bool
may_repeat(const HrflowTransfer *transfer, HrflowStatus status)
{
	const HrflowReply *reply = &transfer->reply;

	return transfer->post == NULL ||
		reply->status == HRFLOW_CONNECT_FAILED ||
		status == HRFLOW_RATE_LIMITED ||
		(reply->http_status == 503 && reply->retry_after > 0);
}

/*
 * Tell the transport what a reply turned out to be: its status, and whether
 * another try may do better.  Returns whether the request is made again: then
 * the reply is the transport's once more.  It must be called for every reply
 * that does not say "stopped".
 *
 * A try that met the account's pause does not count where others had paused it
 * already.  One that counts goes last, so that no request's tries are all spent
 * on probes.
 */
bool
hrflow_transport_retry(HrflowTransport *transport, HrflowReply *reply,
					   HrflowStatus status, bool transient)
{
	HrflowTransfer *transfer = reply->transfer;
	bool		is_limited = status == HRFLOW_RATE_LIMITED &&
	!HRFLOW_IS_LINK(reply->target);
	bool		pauses;
	bool		counts;
	int64		pause;

	if (!transient || !may_repeat(transfer, status))
		return false;

	/* The envelope of a reply may say so, and not its HTTP status. */
	if (is_limited && transfer->try.pause == 0)
		hrflow_account_report(transfer, HRFLOW_LIMITED);
	pauses = !HRFLOW_IS_LINK(reply->target) && transfer->try.pause > 0;
	counts = !pauses || transfer->try.counts;
	pause = pauses ? transfer->try.pause : hrflow_account_backoff(reply);

	/* Where the statement may send nothing more, the failure is the answer. */
	if (pause > HRFLOW_RETRY_AFTER_LIMIT || transport->expired ||
		(!HRFLOW_IS_LINK(reply->target) &&
		 hrflow_budget_check(transport) != HRFLOW_OK) ||
		(transport->stopped && !HRFLOW_IS_LINK(reply->target)) ||
		hrflow_clock_now() + pause >= transport->deadline ||
		(counts && reply->attempts >= transport->settings->max_attempts))
		return false;

	hrflow_body_drop(transfer);
	if (!counts)
		reply->attempts--;
	if (pauses)
		hrflow_transfer_queue(transfer, !counts);
	else
	{
		transfer->due = hrflow_clock_now() + pause;
		hrflow_transfer_move(transfer, HRFLOW_DELAYED);
	}
	return true;
}

/*
 * Give a reply back.  What it points to is gone.
 */
void
hrflow_transport_release(HrflowTransport *transport, HrflowReply *reply)
{
	Assert(reply->transfer->transport == transport);
	hrflow_transfer_move(reply->transfer, HRFLOW_IDLE);
}
