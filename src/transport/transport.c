/*-------------------------------------------------------------------------
 *
 * transport.c
 *		URLs to replies: which request goes out when, and what is tried again.
 *
 * A statement has one transport: its requests, from hrflow_transport_begin to
 * hrflow_transport_end or to the reset of the memory context it began in,
 * whichever comes first.  A backend runs one statement of ours at a time, so
 * a transport that is still there when the next begins was left by an error.
 *
 * Here interrupts are taken in hrflow_transport_next() alone.  Who takes them
 * elsewhere while there is a transport, as json.c and batch.c do in long
 * loops, leaves it to its memory context to end it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "transport/transfer.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/memutils.h"

/*
 * The pause before a second try is random between 0 and this, doubled for
 * every further try up to the limit: "full jitter", so that clients that
 * failed together do not come back together.
 */
#define BACKOFF_BASE (250 * HRFLOW_MSEC)
#define BACKOFF_LIMIT (16 * HRFLOW_SEC)

/*
 * Retry-After is obeyed up to this.  A server that asks for more gets no
 * further try: to come back earlier would be to ignore it.
 */
#define RETRY_AFTER_LIMIT (300 * HRFLOW_SEC)

/*
 * A probe that has not come back after this is taken for lost, and another
 * may go: nobody would tell of the end of a backend that was killed.
 */
#define PROBE_LIMIT (30 * HRFLOW_SEC)

/*
 * libcurl ends a try when its time is up.  When it has not done so after this,
 * it has lost sight of it, as libcurl 8.22 may where its memory failed.
 */
#define OVERDUE_MARGIN HRFLOW_SEC

/* How often others are told how far a statement has come. */
#define FLUSH_INTERVAL HRFLOW_SEC

/*
 * As many requests may wait for another try.  More are not begun before some
 * of these are done, so that a server in trouble does not fill our memory.
 */
#define MAX_DELAYED 1024

struct HrflowTransport
{
	const HrflowSettings *settings;
	MemoryContextCallback on_reset;
	dlist_head	ready_links;	/* to be started first, in this order */
	dlist_head	ready;			/* to be started, in this order: those to the
								 * API */
	pairingheap *delayed;		/* to be started when due */
	dlist_head	running;		/* in libcurl, in the order they began */
	dlist_head	finished;		/* to be handed out */
	dlist_head	handed_out;
	int			nready;			/* of both kinds */
	int			ndelayed;
	int			nrunning;
	int			limit;			/* of nrunning */
	int			nfitting;		/* replies in a row within the budget */
	uint64		account;		/* whose rate is limited */
	bool		awaits_rate;	/* the first of ready may not start before ... */
	int64		admitted_at;
	int64		deadline;		/* all must be done by then; or HRFLOW_NEVER */
	int64		flushed_at;		/* when its counts were added to the shared */
	bool		has_probe;		/* one of running is a probe */
	bool		stopped;		/* nothing more is sent to the API */
	bool		expired;		/* because the deadline is over */
};

/* The transport that is begun, or NULL. */
static HrflowTransport *current = NULL;

/*
 * ------------------------------------------------------------------------
 * From list to list
 * ------------------------------------------------------------------------
 */

/*
 * Hand a request out as one that will not be made.
 */
static void
give_up(HrflowTransport *transport, HrflowTransfer *transfer)
{
	transfer->reply.stopped = true;
	transfer->reply.expired = transport->expired;
	dlist_push_tail(&transport->finished, &transfer->node);
}

/*
 * Have a request, which is in no list, made when it is due.
 */
static void
delay(HrflowTransport *transport, HrflowTransfer *transfer)
{
	pairingheap_add(transport->delayed, &transfer->delayed);
	transport->ndelayed++;
}

/*
 * Have a request, which is in no list, made as soon as may be.
 */
static void
make_ready(HrflowTransport *transport, HrflowTransfer *transfer, bool first)
{
	bool		is_link = HRFLOW_IS_LINK(transfer->reply.target);

	if (transport->expired || (transport->stopped && !is_link))
	{
		give_up(transport, transfer);
		return;
	}
	if (is_link)
		dlist_push_tail(&transport->ready_links, &transfer->node);
	else if (first)
		dlist_push_head(&transport->ready, &transfer->node);
	else
		dlist_push_tail(&transport->ready, &transfer->node);
	transport->nready++;
}

/*
 * A probe has come back.  It has got through when there was an answer, and
 * that was not 429.
 */
static void
end_probe(HrflowTransport *transport, HrflowTransfer *transfer)
{
	transfer->is_probe = false;
	transport->has_probe = false;
	transport->admitted_at = 0;
	hrflow_rate_end_probe(transport->account,
						  transfer->reply.http_status != 0 &&
						  transfer->reply.http_status != 429);
}

/*
 * A reply was within the backend's budget: after as many as may be in flight,
 * allow twice as many when these would have been too.
 */
static void
raise_limit(HrflowTransport *transport)
{
	int			most = transport->settings->max_concurrency;

	if (transport->limit >= most ||
		++transport->nfitting < transport->limit)
		return;
	transport->nfitting = 0;
	if (hrflow_curl_most_buffered() <= HRFLOW_MAX_BUFFERED / 2)
		transport->limit = Min(2 * transport->limit, most);
}

/*
 * Move a transfer that libcurl is done with to where it belongs.
 */
static void
finish(HrflowTransport *transport, HrflowTransfer *transfer)
{
	dlist_delete(&transfer->node);
	transport->nrunning--;

	if (transfer->over_budget && !transfer->is_alone)
	{
		/*
		 * The backend's budget is spent, not this reply's.  Ask again when
		 * others have given theirs back, and keep as many in flight as have
		 * found room; but not with a POST, which was processed.
		 */
		transport->limit = Max(1, Min(transport->limit, transport->nrunning));
		transport->nfitting = 0;
		if (transfer->post == NULL)
		{
			if (transfer->is_probe)
				end_probe(transport, transfer);
			transfer->reply.attempts--;
			make_ready(transport, transfer, false);
			return;
		}
	}
	raise_limit(transport);
	dlist_push_tail(&transport->finished, &transfer->node);
}

static bool
same_origin(const char *a, const char *b)
{
	size_t		length = strcspn(a + strlen("https://"), "/?#") +
	strlen("https://");

	return strncmp(a, b, length) == 0 && strchr("/?#", b[length]) != NULL;
}

/*
 * A connection that others wait for, to share it, could not be made.  libcurl
 * would have one after the other try, each for as long as this one has, until
 * the time of most is up.  Unless there is a connection after all, what became
 * of this one becomes of them: as if each had tried, as in clear each does.
 */
static void
fail_waiting(HrflowTransport *transport, const HrflowTransfer *failed)
{
	dlist_iter	each;
	dlist_mutable_iter iter;

	dlist_foreach(each, &transport->running)
	{
		HrflowTransfer *transfer = dlist_container(HrflowTransfer, node, each.cur);

		if (transfer->connected && same_origin(failed->url, transfer->url))
			return;
	}
	dlist_foreach_modify(iter, &transport->running)
	{
		HrflowTransfer *transfer = dlist_container(HrflowTransfer, node, iter.cur);

		if (transfer == failed || !transfer->may_share ||
			!same_origin(failed->url, transfer->url))
			continue;
		hrflow_curl_remove(transfer);
		transfer->reply.status = failed->reply.status;
		transfer->reply.transient = failed->reply.transient;
		strlcpy(transfer->error, failed->reply.detail,
				sizeof(transfer->error));
		transfer->reply.detail = transfer->error;
		finish(transport, transfer);
	}
}

/*
 * Move all that libcurl is done with.
 */
static void
collect(HrflowTransport *transport)
{
	HrflowTransfer *transfer;

	while ((transfer = hrflow_curl_next_done()) != NULL)
	{
		if (transfer->reply.status == HRFLOW_CONNECT_FAILED &&
			transfer->may_share)
			fail_waiting(transport, transfer);
		finish(transport, transfer);
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
	if (pairingheap_is_empty(transport->delayed))
		return NULL;
	return pairingheap_container(HrflowTransfer, delayed,
								 pairingheap_first(transport->delayed));
}

static HrflowTransfer *
pop_delayed(HrflowTransport *transport)
{
	transport->ndelayed--;
	return pairingheap_container(HrflowTransfer, delayed,
								 pairingheap_remove_first(transport->delayed));
}

/*
 * Does the account's rate admit a request to the API now?
 */
static bool
admit(HrflowTransport *transport, HrflowTransfer *transfer, int64 now)
{
	const HrflowSettings *settings = transport->settings;
	HrflowAdmission admission;

	transport->awaits_rate = now < transport->admitted_at;
	if (transport->awaits_rate)
		return false;
	admission = hrflow_rate_admit(transport->account,
								  settings->max_requests_per_minute,
								  Min(settings->request_timeout * HRFLOW_MSEC, PROBE_LIMIT) + HRFLOW_SEC,
								  &transport->admitted_at);
	transport->awaits_rate = admission == HRFLOW_WAIT;
	if (transport->awaits_rate)
		return false;
	transfer->is_probe = admission == HRFLOW_ADMIT_PROBE;
	transport->has_probe |= transfer->is_probe;
	return true;
}

/*
 * Start what has its turn: below the limit in flight, with a descriptor, and
 * as the account's rate admits.
 */
static void
start_what_may(HrflowTransport *transport)
{
	int64		now = hrflow_clock_now();
	HrflowTransfer *transfer;
	bool		started;

	while ((transfer = first_delayed(transport)) != NULL &&
		   transfer->due <= now)
		make_ready(transport, pop_delayed(transport), false);

	transport->awaits_rate = false;
	while (transport->nready > 0 &&
		   transport->nrunning < transport->limit &&
		   hrflow_curl_reserve_descriptor(transport->nrunning))
	{
		if (!dlist_is_empty(&transport->ready_links))
			transfer = dlist_head_element(HrflowTransfer, node,
										  &transport->ready_links);
		else
		{
			transfer = dlist_head_element(HrflowTransfer, node, &transport->ready);
			if (!admit(transport, transfer, now))
				break;
		}
		transfer->is_alone = transport->limit == 1;
		started = hrflow_curl_start(transfer);
		dlist_delete(&transfer->node);
		transport->nready--;
		dlist_push_tail(started ? &transport->running : &transport->finished,
						&transfer->node);
		transport->nrunning += started;
	}
	hrflow_curl_balance_descriptors(transport->nrunning);
}

/*
 * When should libcurl have ended the first of those that run, at the latest?
 */
static int64
overdue_at(const HrflowTransport *transport)
{
	const HrflowTransfer *transfer;

	if (transport->nrunning == 0)
		return HRFLOW_NEVER;
	transfer = dlist_container(HrflowTransfer, node,
							   transport->running.head.next);
	return transfer->started +
		transport->settings->request_timeout * HRFLOW_MSEC + OVERDUE_MARGIN;
}

/*
 * End what is overdue, although libcurl has just been given the time to.
 */
static void
end_overdue(HrflowTransport *transport)
{
	hrflow_curl_work();
	collect(transport);
	while (overdue_at(transport) <= hrflow_clock_now())
	{
		HrflowTransfer *transfer =
		dlist_head_element(HrflowTransfer, node, &transport->running);

		hrflow_curl_abandon(transfer);
		finish(transport, transfer);
	}
}

/*
 * When is there something to do, though nothing happens?
 */
static int64
next_time(const HrflowTransport *transport)
{
	int64		next = Min(transport->deadline, overdue_at(transport));
	HrflowTransfer *transfer = first_delayed(transport);

	next = Min(next, transport->flushed_at + FLUSH_INTERVAL);
	if (transfer != NULL)
		next = Min(next, transfer->due);
	if (transport->awaits_rate)
		next = Min(next, transport->admitted_at);
	return next;
}

/*
 * ------------------------------------------------------------------------
 * What others call
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

static void
put_all_idle(dlist_head *list)
{
	while (!dlist_is_empty(list))
		hrflow_curl_put_idle(dlist_container(HrflowTransfer, node, dlist_pop_head_node(list)));
}

/*
 * Tell the other backends that a transport is at its end.  Does not throw.
 */
static void
leave_shared(HrflowTransport *transport)
{
	if (transport->has_probe)
		hrflow_rate_end_probe(transport->account, false);
	hrflow_stats_flush();
	current = NULL;
}

/*
 * Take everything back that a transport has from the pool.  Connections with
 * a request in flight are closed, the others stay.  Does not throw.
 */
static void
dismantle(HrflowTransport *transport)
{
	dlist_iter	iter;

	dlist_foreach(iter, &transport->running)
	{
		HrflowTransfer *transfer = dlist_container(HrflowTransfer, node, iter.cur);

		hrflow_curl_remove(transfer);
	}
	put_all_idle(&transport->running);
	put_all_idle(&transport->ready);
	put_all_idle(&transport->ready_links);
	put_all_idle(&transport->finished);
	put_all_idle(&transport->handed_out);
	while (!pairingheap_is_empty(transport->delayed))
		hrflow_curl_put_idle(pop_delayed(transport));
	hrflow_curl_balance_descriptors(0);
	leave_shared(transport);
}

/*
 * The memory context of a transport goes: at the statement's end when there
 * was an error.  A backend that exits leaves its sockets to the kernel, but
 * not the others to wait for its probe.
 */
static void
on_context_reset(void *arg)
{
	if (current != arg)
		return;
	if (proc_exit_inprogress)
		leave_shared(arg);
	else
		dismantle(arg);
}

/*
 * Begin a statement's requests.  "settings" must outlive them.  "time_limit"
 * is for all of them, in milliseconds; 0 for none.  The transport lives in the
 * current memory context and ends with it.
 */
HrflowTransport *
hrflow_transport_begin(const HrflowSettings *settings, int time_limit)
{
	HrflowTransport *transport;

	if (current != NULL)
		dismantle(current);

	/* Attach to what is shared while an error may still be raised. */
	hrflow_stats_flush();
	hrflow_curl_prepare(settings);

	transport = palloc0(sizeof(HrflowTransport));
	transport->settings = settings;
	transport->limit = settings->max_concurrency;
	transport->account = hrflow_rate_account(settings);
	transport->flushed_at = hrflow_clock_now();
	transport->deadline = time_limit > 0 ?
		transport->flushed_at + time_limit * HRFLOW_MSEC : HRFLOW_NEVER;
	dlist_init(&transport->ready);
	dlist_init(&transport->ready_links);
	dlist_init(&transport->running);
	dlist_init(&transport->finished);
	dlist_init(&transport->handed_out);
	transport->delayed = pairingheap_allocate(compare_due, NULL);

	transport->on_reset.func = on_context_reset;
	transport->on_reset.arg = transport;
	MemoryContextRegisterResetCallback(CurrentMemoryContext,
									   &transport->on_reset);
	current = transport;
	hrflow_stats_count(HRFLOW_CALLS, 1);
	return transport;
}

static void
submit(HrflowTransport *transport, HrflowTarget target, const char *url,
	   const char *post, void *tag)
{
	HrflowTransfer *transfer = hrflow_curl_get_idle();

	memset(&transfer->reply, 0, sizeof(transfer->reply));
	transfer->reply.target = target;
	transfer->reply.tag = tag;
	transfer->is_probe = false;
	transfer->was_sent = false;
	transfer->url = url;
	transfer->post = post;
	make_ready(transport, transfer, false);
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
 * The same with a body of JSON, which must stay where it is too: POST it to
 * the API.
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
hrflow_transport_room(HrflowTransport *transport)
{
	if (transport->stopped || transport->ndelayed >= MAX_DELAYED)
		return 0;
	return Max(0, transport->limit - transport->nrunning - transport->nready);
}

/*
 * How many links more?  They do not wait for the account's rate, and are
 * fetched though the transport was stopped.
 */
int
hrflow_transport_room_for_links(HrflowTransport *transport)
{
	int			room = transport->limit - transport->nrunning;
	dlist_iter	iter;

	if (transport->expired || transport->ndelayed >= MAX_DELAYED)
		return 0;
	dlist_foreach(iter, &transport->ready_links)
		room--;
	return Max(0, room);
}

static void
give_up_all(HrflowTransport *transport, dlist_head *list, int *count)
{
	while (!dlist_is_empty(list))
	{
		give_up(transport, dlist_container(HrflowTransfer, node,
										   dlist_pop_head_node(list)));
		(*count)--;
	}
}

/*
 * Give up what waits for another try; links only when the time is over.
 */
static void
give_up_delayed(HrflowTransport *transport)
{
	dlist_head	kept;

	dlist_init(&kept);
	while (transport->ndelayed > 0)
	{
		HrflowTransfer *transfer = pop_delayed(transport);

		if (HRFLOW_IS_LINK(transfer->reply.target) && !transport->expired)
			dlist_push_tail(&kept, &transfer->node);
		else
			give_up(transport, transfer);
	}
	while (!dlist_is_empty(&kept))
		delay(transport, dlist_container(HrflowTransfer, node,
										 dlist_pop_head_node(&kept)));
}

/*
 * Send nothing more to the API.  What is in flight comes home, and links,
 * which are paid for, are still fetched; the rest comes as replies that say
 * "stopped".
 */
void
hrflow_transport_stop(HrflowTransport *transport)
{
	transport->stopped = true;
	give_up_all(transport, &transport->ready, &transport->nready);
	give_up_delayed(transport);
}

/*
 * The time limit is over: all is given up.
 */
static void
expire(HrflowTransport *transport)
{
	dlist_iter	iter;

	transport->expired = true;
	hrflow_transport_stop(transport);
	give_up_all(transport, &transport->ready_links, &transport->nready);
	dlist_foreach(iter, &transport->running)
	{
		HrflowTransfer *transfer = dlist_container(HrflowTransfer, node, iter.cur);

		hrflow_curl_remove(transfer);
	}
	give_up_all(transport, &transport->running, &transport->nrunning);
}

/*
 * Is the time limit over?
 */
bool
hrflow_transport_expired(HrflowTransport *transport)
{
	return transport->expired;
}

/*
 * Receive what has come, without waiting and without handing it out.  To be
 * called now and then by who has other work for long: a reply that is not
 * read in time has timed out.
 */
void
hrflow_transport_work(HrflowTransport *transport)
{
	if (current == transport && transport->nrunning > 0)
		hrflow_curl_work();
}

/*
 * Wait for the next reply to come; NULL when nothing is asked for any more.
 *
 * Each is one try's: the caller makes out what it means and must then ask
 * hrflow_transport_retry() whether there will be another.
 *
 * Raises 57014, 57P01 and the like from CHECK_FOR_INTERRUPTS, and 53200.
 */
HrflowReply *
hrflow_transport_next(HrflowTransport *transport)
{
	Assert(current == transport);

	for (;;)
	{
		HrflowTransfer *transfer;
		int64		now = hrflow_clock_now();

		CHECK_FOR_INTERRUPTS();

		if (now >= transport->deadline && !transport->expired)
		{
			hrflow_transport_work(transport);
			collect(transport);
			expire(transport);
		}
		if (overdue_at(transport) <= now)
			end_overdue(transport);
		if (dlist_is_empty(&transport->finished))
		{
			start_what_may(transport);
			hrflow_curl_run_timer();
			collect(transport);
		}

		if (!dlist_is_empty(&transport->finished))
		{
			transfer = dlist_container(HrflowTransfer, node,
									   dlist_pop_head_node(&transport->finished));
			dlist_push_tail(&transport->handed_out, &transfer->node);
			if (transfer->out_of_memory)
				ereport(ERROR,
						(errcode(ERRCODE_OUT_OF_MEMORY),
						 errmsg("out of memory")));
			return &transfer->reply;
		}
		if (transport->nrunning == 0 && transport->nready == 0 &&
			transport->ndelayed == 0)
			return NULL;

		if (now - transport->flushed_at >= FLUSH_INTERVAL)
		{
			hrflow_stats_flush();
			transport->flushed_at = now;
		}
		hrflow_curl_wait(next_time(transport), transport->nrunning == 0);
	}
}

/*
 * A random pause before try "attempt" + 1.
 */
static int64
backoff(int attempt)
{
	int64		most = BACKOFF_BASE << Min(attempt - 1, 10);

	return pg_prng_double(&pg_global_prng_state) * Min(most, BACKOFF_LIMIT);
}

/*
 * How long to wait before another try.
 */
static int64
pause_after(const HrflowReply *reply, bool limited)
{
	int64		asked = reply->retry_after * HRFLOW_SEC;

	if (limited && asked > 0)
		return asked;
	return Max(asked, backoff(Max(reply->attempts, 1)));
}

/*
 * A request met a 429: pause the account.  Returns whether the try counts.
 */
static bool
pause_account(HrflowTransport *transport, HrflowTransfer *transfer, int64 pause)
{
	bool		was_probe = transfer->is_probe;

	if (was_probe)
	{
		transfer->is_probe = false;
		transport->has_probe = false;
	}
	return !hrflow_rate_pause(transport->account, pause, was_probe) ||
		was_probe;
}

/*
 * Ask again what met a 429.  Those that were under way when the pause began
 * are not held against their requests, which are asked again without counting
 * the try; the one that is counted goes first.
 */
static bool
retry_limited(HrflowTransport *transport, HrflowTransfer *transfer, int64 pause)
{
	bool		counts = pause_account(transport, transfer, pause);

	if (counts &&
		transfer->reply.attempts >= transport->settings->max_attempts)
		return false;
	if (!counts)
		transfer->reply.attempts--;

	dlist_delete(&transfer->node);
	hrflow_curl_drop_body(transfer);
	make_ready(transport, transfer, counts);
	return true;
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
 */
bool
hrflow_transport_retry(HrflowTransport *transport, HrflowReply *reply,
					   HrflowStatus status, bool transient)
{
	HrflowTransfer *transfer = (HrflowTransfer *) reply;
	bool		limited = status == HRFLOW_RATE_LIMITED &&
	!HRFLOW_IS_LINK(reply->target);
	int64		pause;

	if (transfer->is_probe && !limited)
		end_probe(transport, transfer);
	if (!transient || !may_repeat(transfer, status))
		return false;

	pause = pause_after(reply, limited);
	if (pause > RETRY_AFTER_LIMIT || transport->expired ||
		(transport->stopped && !HRFLOW_IS_LINK(reply->target)) ||
		hrflow_clock_now() + pause >= transport->deadline)
	{
		/* Others may still have the time. */
		if (limited)
			(void) pause_account(transport, transfer,
								 Min(pause, RETRY_AFTER_LIMIT));
		return false;
	}
	if (limited)
		return retry_limited(transport, transfer, pause);
	if (reply->attempts >= transport->settings->max_attempts)
		return false;

	dlist_delete(&transfer->node);
	hrflow_curl_drop_body(transfer);
	transfer->due = hrflow_clock_now() + pause;
	delay(transport, transfer);
	return true;
}

/*
 * Give a reply back.  What it points to is gone.
 */
void
hrflow_transport_release(HrflowTransport *transport, HrflowReply *reply)
{
	HrflowTransfer *transfer = (HrflowTransfer *) reply;

	dlist_delete(&transfer->node);
	hrflow_curl_put_idle(transfer);
}

/*
 * End a statement's requests.  Connections stay open for the next one.
 */
void
hrflow_transport_end(HrflowTransport *transport)
{
	Assert(current == transport);
	dismantle(transport);
}
