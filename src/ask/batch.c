/*-------------------------------------------------------------------------
 *
 * batch.c
 *		Asks for many elements at once.
 *
 * Elements are asked for in their order, as many at a time as the transport
 * has room for; results
 * are handed out in the order of completion.  Equal elements are asked for
 * once and answered each.  Where vectors are wanted, a profile's links are
 * fetched as soon as they arrive, among the requests for further profiles.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "miscadmin.h"
#include "utils/memutils.h"

/* Number of rows stored without looking at the network: about 2 ms. */
#define ROWS_OF_WORK 1024

/*
 * How long to wait in an outage before a request is sent again, beyond the
 * pauses between its tries.
 */
#define PROBE_PAUSE (250 * HRFLOW_MSEC)

typedef struct Batch
{
	HrflowSource *source;
	HrflowSink *sink;
	const HrflowSettings *settings; /* the source's */
	HrflowTransport *transport;
	HrflowBatchSummary *summary;
	MemoryContext reply_context;	/* reset after each element */
	MemoryContext kept_context; /* of what outlives it */

	HrflowEqualElements equal;
	HrflowQueue queue;
	int			next;			/* the first element not looked at */
	int64		nrows;			/* handed out so far */
	bool		any_forbidden;	/* an element met a 403 */

	/* Where the sink reports: */
	HrflowHealth health;
	HrflowTally tally;
	HrflowProgress progress;
} Batch;

/* What becomes of elements that are not done when the time is over. */
static const HrflowResult time_over = {
	.status = HRFLOW_TIMEOUT,
	.detail = "hrflow_embed.batch_timeout is over."
};

/* What becomes of a request after one try. */
typedef enum RequestFate
{
	REQUEST_RETRIED,			/* the transport sends it again */
	REQUEST_PARKED,				/* it waits for the end of an outage */
	REQUEST_DONE				/* its result was handed out */
} RequestFate;

/*
 * ------------------------------------------------------------------------
 * Handing out
 * ------------------------------------------------------------------------
 */

/*
 * Hand out what became of an element, and of those equal to it.
 */
static void
put_outcome(Batch *batch, int element, const HrflowOutcome *outcome,
			bool is_empty)
{
	MemoryContext old = MemoryContextSwitchTo(batch->reply_context);
	bool		repeated = false;

	for (; element >= 0; element = hrflow_equal_next(&batch->equal, element))
	{
		if (repeated)
			CHECK_FOR_INTERRUPTS();
		batch->sink->methods->put(batch->sink, element, outcome, repeated);
		repeated = true;
		hrflow_stats_count_row(outcome->result->status);
		if (batch->sink->methods->reports && !is_empty)
			hrflow_tally_count(&batch->tally, outcome->result);
		if (batch->sink->methods->reports && outcome->is_last)
			hrflow_activity_count(batch->source->activity,
								  outcome->result->status == HRFLOW_OK &&
								  !outcome->is_spoilt);
		if (++batch->nrows % ROWS_OF_WORK == 0)
			hrflow_transport_work(batch->transport);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Hand out the result of an element as a whole.
 */
static void
put_result(Batch *batch, int element, const HrflowResult *result,
		   bool unasked)
{
	HrflowOutcome outcome = {
		.result = result,
		.unasked = unasked,
		.is_last = true
	};

	put_outcome(batch, element, &outcome, false);
}

/*
 * Hand out the result of one request.
 */
static void
put_result_of_request(Batch *batch, const HrflowBatchRequest *request,
					  const HrflowResult *result, bool unasked)
{
	HrflowOutcome outcome = {
		.result = result,
		.section = request->section,
		.item = request->item,
		.unasked = unasked
	};

	hrflow_queue_close_link(request->links, &outcome);
	put_outcome(batch, request->element, &outcome, false);
}

/*
 * ------------------------------------------------------------------------
 * Asking
 * ------------------------------------------------------------------------
 */

/*
 * Ask for nothing more, because of this result.
 */
static void
refuse_rest(Batch *batch, const HrflowResult *result)
{
	HrflowResult *refusal = &batch->summary->refusal;

	*refusal = *result;
	if (result->detail != NULL)
		refusal->detail = MemoryContextStrdup(batch->kept_context,
											  result->detail);
	batch->summary->refused = true;
	hrflow_transport_stop(batch->transport);
}

/*
 * Is the batch stopped, or held up, when the API does not answer or refuses
 * everything?  Links that a user passes may lead to as many hosts.
 */
static bool
watches_for_outage(const Batch *batch)
{
	return batch->sink->methods->reports && !batch->source->methods->is_links;
}

/*
 * Note what became of an element, or one of its links, that the API was asked
 * for.  When all have met the same refusal, which is not theirs, nothing more
 * is asked for.
 */
static void
note_outcome(Batch *batch, int element, const HrflowResult *result)
{
	if (watches_for_outage(batch) &&
		hrflow_health_note_outcome(&batch->health, element, result) &&
		!batch->summary->refused)
		refuse_rest(batch, result);
}

/*
 * Have a link fetched, or hand out at once why it may not be.  "section" and
 * "links" are NULL where the link is the element.
 */
static void
queue_link(Batch *batch, int element, const char *url, const char *section,
		   int item, HrflowOpenLinks *links)
{
	bool		by_name;
	const char *refusal = hrflow_link_refusal(url, batch->settings->link_hosts,
											  &by_name);

	if (refusal == NULL)
	{
		HrflowBatchRequest *request = hrflow_queue_make(&batch->queue, element, url);

		request->target = by_name ? HRFLOW_TO_LINK : HRFLOW_TO_GUARDED_LINK;
		if (section != NULL)
			request->section = MemoryContextStrdup(batch->kept_context,
												   section);
		request->item = item;
		request->links = links;
		hrflow_queue_add_link(&batch->queue, request);
	}
	else
	{
		const char *shown = hrflow_response_scrub(hrflow_link_describe(url),
												  batch->settings->api_key);
		HrflowResult result = {
			.status = HRFLOW_LINK_REFUSED,
			.is_link = true,
			.detail = psprintf("%s Link: %s", refusal, shown)
		};
		HrflowOutcome outcome = {
			.result = &result,
			.section = section,
			.item = item
		};

		hrflow_queue_close_link(links, &outcome);
		put_outcome(batch, element, &outcome, false);
		note_outcome(batch, element, &result);
	}
}

/*
 * Ask for one element, or hand out at once why it cannot be asked for.
 */
static void
ask_for_element(Batch *batch, int element)
{
	const HrflowSourceMethods *methods = batch->source->methods;
	MemoryContext old = MemoryContextSwitchTo(batch->reply_context);
	HrflowElementRequest wanted = {0};
	HrflowResult problem = {
		.status = HRFLOW_INVALID_REQUEST,
		.is_link = methods->is_links,
		.endpoint = methods->endpoint
	};
	HrflowOutcome outcome = {.result = &problem, .is_last = true};
	HrflowElementKind kind = methods->make_request(batch->source, element,
												   &wanted, &problem);

	if (kind != HRFLOW_ELEMENT_ASKED)
	{
		outcome.unasked = kind == HRFLOW_ELEMENT_UNASKED;
		put_outcome(batch, element, &outcome, kind == HRFLOW_ELEMENT_EMPTY);
	}
	else if (methods->is_links)
		queue_link(batch, element, wanted.url, NULL, 0, NULL);
	else
	{
		bool		is_post = wanted.body != NULL;
		HrflowBatchRequest *request = hrflow_queue_make(&batch->queue, element,
														is_post ? wanted.body :
														wanted.url);

		request->post_url = is_post ? wanted.url : NULL;
		hrflow_queue_send(&batch->queue, request);
		hrflow_health_note_asked(&batch->health);
	}

	MemoryContextSwitchTo(old);
	MemoryContextReset(batch->reply_context);
}

/*
 * The next element to ask for, or -1 for none at present.
 */
static int
next_element(Batch *batch)
{
	HrflowSource *source = batch->source;

	if (source->methods->next != NULL)
	{
		int			element = source->methods->next(source);

		source->nelements += element >= 0;
		return element;
	}
	while (batch->next < source->nelements &&
		   hrflow_equal_is_repeated(&batch->equal, batch->next))
		batch->next++;
	return batch->next < source->nelements ? batch->next++ : -1;
}

/*
 * May another element be asked for?
 */
static bool
may_ask(const Batch *batch)
{
	if (batch->queue.pending >= HRFLOW_MAX_BUFFERED)
		return false;
	if (!watches_for_outage(batch))
		return true;
	return !hrflow_health_in_trouble(&batch->health, false) &&
		!hrflow_health_in_trouble(&batch->health, true) &&
		hrflow_health_may_ask(&batch->health);
}

/*
 * Keep the transport busy.  Texts can be long: at least one is asked for, and
 * no more than the bodies of replies may take.
 */
static void
refill_transport(Batch *batch)
{
	int			room;

	hrflow_queue_send_links(&batch->queue);
	room = hrflow_transport_room(batch->transport);
	while (room > 0 && may_ask(batch))
	{
		int			element = next_element(batch);

		if (element < 0)
			break;
		ask_for_element(batch, element);
		hrflow_queue_send_links(&batch->queue);
		room = hrflow_transport_room(batch->transport);
	}
}

/*
 * ------------------------------------------------------------------------
 * Replies
 * ------------------------------------------------------------------------
 */

/*
 * Does this result refuse the whole batch?  A 403 does when a second element
 * has met it.
 */
static bool
is_refusal_of_all(Batch *batch, int element, const HrflowResult *result)
{
	const HrflowSourceMethods *methods = batch->source->methods;

	switch (result->status)
	{
		case HRFLOW_UNAUTHORIZED:
		case HRFLOW_PROXY_REFUSED:
		case HRFLOW_OVER_QUOTA:
		case HRFLOW_RATE_LIMITED:
		case HRFLOW_OVER_BUDGET:
		case HRFLOW_OVER_DAY:
			return true;
		case HRFLOW_INVALID_SOURCE:
			return methods->reject_hrflow_source == NULL ||
				methods->reject_hrflow_source(batch->source, element);
		case HRFLOW_FORBIDDEN:
			if (batch->any_forbidden)
				return true;
			batch->any_forbidden = true;
			return false;
		default:
			return false;
	}
}

/*
 * Note what the API answered to an element.
 */
static void
note_answer(Batch *batch, int element, const HrflowResult *result)
{
	HrflowBatchSummary *summary = batch->summary;

	for (int i = element; i >= 0 && result->http_status != 0;
		 i = hrflow_equal_next(&batch->equal, i))
		summary->nanswered++;
	summary->any_ok |= result->status == HRFLOW_OK;
	if (is_refusal_of_all(batch, element, result) && !summary->refused)
		refuse_rest(batch, result);
}

/*
 * May a request be sent again whose tries have all failed?  A text only where
 * it was not processed.
 */
static bool
may_resend(const HrflowBatchRequest *request, const HrflowResult *result)
{
	return request->post_url == NULL ||
		result->status == HRFLOW_CONNECT_FAILED;
}

/*
 * A request's tries have all failed.  Keep it when that may be an outage,
 * unless there was an answer since it was sent again.  Returns whether it was
 * kept.
 */
static bool
park_request(Batch *batch, HrflowBatchRequest *request, const HrflowResult *result)
{
	const HrflowHealth *health = &batch->health;

	if (!watches_for_outage(batch) || batch->summary->refused ||
		hrflow_transport_expired(batch->transport) ||
		!hrflow_health_is_outage(result) || !may_resend(request, result) ||
		(request->resent_at != 0 &&
		 request->resent_at < health->servers[result->is_link].answered_at))
		return false;

	hrflow_queue_park(&batch->queue, request, result);
	return true;
}

/*
 * Hand out the parked requests as those that have failed.
 */
static void
fail_all_parked(Batch *batch, bool is_link)
{
	while (batch->queue.nparked[is_link] > 0)
	{
		HrflowBatchRequest *request = hrflow_queue_unpark(&batch->queue, is_link);

		if (!is_link)
			note_answer(batch, request->element, request->failure);
		put_result_of_request(batch, request, request->failure,
							  batch->summary->refused);
		hrflow_queue_free(&batch->queue, request);
	}
}

/*
 * The API, or the links' host, has answered: what is parked is sent again
 * after an outage; a few requests have failed for a reason of their own.
 */
static void
settle_parked(Batch *batch, bool is_link)
{
	int			n = batch->queue.nparked[is_link];

	if (n < HRFLOW_MIN_OUTAGE)
		fail_all_parked(batch, is_link);
	else
	{
		while (n-- > 0)
			hrflow_queue_resend(&batch->queue, is_link);
	}
}

/*
 * Note how one try went: an outage that lasts too long ends the batch.
 */
static void
note_try(Batch *batch, const HrflowResult *result)
{
	if (!watches_for_outage(batch))
		return;
	if (hrflow_health_note_try(&batch->health, result) &&
		batch->next < batch->source->nelements && !batch->summary->refused)
		refuse_rest(batch, result);
	if (!hrflow_health_is_outage(result))
		settle_parked(batch, result->is_link);
}

/*
 * Hand out a link in a profile's data.
 */
static void
put_link(Batch *batch, int element, const HrflowResult *result,
		 const HrflowLink *link, HrflowOpenLinks *links)
{
	HrflowOutcome outcome = {
		.result = result,
		.section = link->section,
		.item = link->item,
		.link = link->url
	};

	hrflow_queue_close_link(links, &outcome);
	put_outcome(batch, element, &outcome, false);
	note_outcome(batch, element, result);
}

/*
 * Have the links in a profile's data fetched, or hand them out.
 */
static void
take_links_of_answer(Batch *batch, int element, HrflowResult *result)
{
	Jsonb	   *fields = batch->source->methods->fields(batch->source, element);
	List	   *links;
	ListCell   *cell;

	if (!hrflow_links_collect(result->data, fields, batch->settings->api_key,
							  &links, &result->detail))
		result->status = HRFLOW_INVALID_REPLY;
	if (result->status != HRFLOW_OK || links == NIL)
	{
		put_result(batch, element, result, false);
		note_outcome(batch, element, result);
	}
	else
	{
		HrflowOpenLinks *open =
		MemoryContextAllocZero(batch->kept_context, sizeof(HrflowOpenLinks));

		open->n = list_length(links);
		foreach(cell, links)
		{
			HrflowLink *link = lfirst(cell);

			if (batch->sink->methods->link_use == HRFLOW_LINKS_LISTED)
				put_link(batch, element, result, link, open);
			else
				queue_link(batch, element, link->url, link->section,
						   link->item, open);
		}
	}
}

/*
 * Take the reply to one try.  Returns what becomes of the request.
 */
static RequestFate
take_reply(Batch *batch, HrflowReply *reply)
{
	HrflowBatchRequest *request = reply->tag;
	bool		is_link = HRFLOW_IS_LINK(reply->target);
	HrflowResult result;

	if (reply->stopped)
	{
		result = reply->expired ? time_over : batch->summary->refusal;
		result.is_link = is_link;
		result.http_status = 0;
		put_result_of_request(batch, request, &result, true);
		return REQUEST_DONE;
	}

	if (is_link)
		hrflow_response_parse_vector(reply, &result);
	else
		hrflow_response_parse(reply, batch->source->methods->endpoint,
							  batch->settings->api_key, &result);
	note_try(batch, &result);
	if (hrflow_transport_retry(batch->transport, reply, result.status,
							   result.transient))
		return REQUEST_RETRIED;
	if (park_request(batch, request, &result))
		return REQUEST_PARKED;

	if (!is_link)
		note_answer(batch, request->element, &result);
	if (!is_link && result.status == HRFLOW_OK &&
		batch->sink->methods->link_use != HRFLOW_LINKS_KEPT &&
		result.data != NULL)
		take_links_of_answer(batch, request->element, &result);
	else
	{
		put_result_of_request(batch, request, &result, false);
		note_outcome(batch, request->element, &result);
	}
	return REQUEST_DONE;
}

/*
 * Take the reply to one try, and give back what is not needed any more.
 */
static void
process_reply(Batch *batch, HrflowReply *reply)
{
	MemoryContext old = MemoryContextSwitchTo(batch->reply_context);
	HrflowBatchRequest *request = reply->tag;
	RequestFate fate = take_reply(batch, reply);

	if (fate != REQUEST_RETRIED)
		hrflow_transport_release(batch->transport, reply);
	if (fate == REQUEST_DONE)
		hrflow_queue_free(&batch->queue, request);
	MemoryContextSwitchTo(old);
	MemoryContextReset(batch->reply_context);
}

/*
 * Hand out the links that were still waiting when the time was over.
 */
static void
put_unsent_links(Batch *batch)
{
	HrflowResult late = time_over;
	HrflowBatchRequest *request;

	late.is_link = true;
	while ((request = hrflow_queue_take_link(&batch->queue)) != NULL)
	{
		put_result_of_request(batch, request, &late, true);
		MemoryContextReset(batch->reply_context);
		hrflow_queue_free(&batch->queue, request);
	}
}

/*
 * Hand out the elements that were not asked for.
 */
static void
put_unasked_elements(Batch *batch)
{
	HrflowResult rest = batch->summary->refusal;

	if (batch->source->methods->next != NULL)
		return;
	rest.http_status = 0;
	rest.is_link = batch->source->methods->is_links;
	for (; batch->next < batch->source->nelements; batch->next++)
	{
		if (hrflow_equal_is_repeated(&batch->equal, batch->next))
			continue;
		put_result(batch, batch->next, &rest, true);
		MemoryContextReset(batch->reply_context);
	}
}

/*
 * ------------------------------------------------------------------------
 * The batch
 * ------------------------------------------------------------------------
 */

/*
 * Ask for the next element.  Returns false when there is none.
 */
static bool
ask_for_next_element(Batch *batch)
{
	int			element = next_element(batch);

	if (element >= 0)
		ask_for_element(batch, element);
	return element >= 0;
}

/*
 * Nothing is in flight: either the batch is at its end, or tries have failed.
 * In an outage one request is sent, some time after the last try, to see
 * whether it is over; but the last elements fail when their own tries have.
 * Returns false at the end.
 */
static bool
ask_although_failing(Batch *batch)
{
	int			nunasked = batch->source->methods->next != NULL ? 0 :
	batch->source->nelements - batch->next;
	int			nwaiting = batch->queue.nparked[false] + batch->queue.nparked[true] +
	nunasked;
	bool		at_end = batch->summary->refused ||
	hrflow_transport_expired(batch->transport);

	if (at_end || nunasked == 0 || nwaiting < HRFLOW_MIN_OUTAGE)
	{
		fail_all_parked(batch, true);
		fail_all_parked(batch, false);
		return !at_end && ask_for_next_element(batch);
	}
	hrflow_transport_pause(batch->transport, PROBE_PAUSE);
	if (batch->queue.nparked[true] > 0)
		hrflow_queue_resend(&batch->queue, true);
	else if (batch->queue.nparked[false] > 0)
		hrflow_queue_resend(&batch->queue, false);
	else
		return ask_for_next_element(batch);
	return true;
}

/*
 * Is there anything to be kept?  The API's answers are paid for; but where it
 * is the links that cannot be fetched, they are of no use.
 */
static bool
has_succeeded(const Batch *batch)
{
	return batch->summary->refusal.is_link ?
		batch->tally.by_status[HRFLOW_OK] > 0 : batch->summary->any_ok;
}

/*
 * Ask for all elements.
 */
static void
ask_for_all(Batch *batch, int time_limit)
{
	HrflowBatchSummary *summary = batch->summary;
	HrflowReply *reply;

	batch->transport = hrflow_transport_begin(batch->settings,
											  batch->source->activity,
											  time_limit);
	hrflow_queue_init(&batch->queue, batch->kept_context, batch->transport);
	for (;;)
	{
		bool		expired;
		bool		woken = false;

		if (batch->sink->methods->work == NULL)
		{
			refill_transport(batch);
			reply = hrflow_transport_next(batch->transport);
		}
		else
		{
			int64		wake = batch->sink->methods->work(batch->sink,
														  batch->transport);

			refill_transport(batch);
			reply = hrflow_transport_next_until(batch->transport, wake,
												&woken);
		}
		expired = hrflow_transport_expired(batch->transport);
		if (expired && !summary->refused)
		{
			summary->expired = true;
			summary->refusal = time_over;
		}
		hrflow_progress_show(&batch->progress, &batch->tally, batch->next,
							 batch->source->nelements);
		if (reply != NULL)
			process_reply(batch, reply);
		else if (!woken && !ask_although_failing(batch))
			break;
	}
	hrflow_transport_end(batch->transport);

	if (summary->refused && batch->sink->methods->reports &&
		!has_succeeded(batch))
		hrflow_error_raise(&summary->refusal);
	put_unsent_links(batch);
	put_unasked_elements(batch);
	if (batch->sink->methods->reports)
		hrflow_tally_report(&batch->tally, summary);
	hrflow_stats_flush();
}

/*
 * CONTEXT of any error: how far the batch had come.
 */
static void
add_batch_context(void *arg)
{
	const Batch *batch = arg;

	errcontext("HrFlow batch of %d elements, " INT64_FORMAT " rows so far",
			   batch->source->nelements, batch->nrows);
}

/*
 * Ask for all elements of a source, in at most "time_limit" milliseconds (0:
 * without a limit), and hand out what becomes of them to a sink.  The detail
 * of the summary's refusal is palloc'd in the current context.
 *
 * Raises what hrflow_transport_next() and the sink raise.
 */
void
hrflow_batch_run(HrflowSource *source, HrflowSink *sink, int time_limit,
				 HrflowBatchSummary *summary)
{
	Batch		batch = {
		.source = source,
		.sink = sink,
		.settings = source->settings,
		.summary = summary
	};
	ErrorContextCallback context;

	memset(summary, 0, sizeof(*summary));
	summary->nelements = source->nelements;
	summary->refusal.endpoint = source->methods->endpoint;

	batch.reply_context = AllocSetContextCreate(CurrentMemoryContext,
												"hrflow_embed reply",
												ALLOCSET_DEFAULT_SIZES);
	batch.kept_context = AllocSetContextCreate(CurrentMemoryContext,
											   "hrflow_embed batch",
											   ALLOCSET_DEFAULT_SIZES);

	hrflow_health_init(&batch.health, batch.kept_context);
	batch.tally.context = batch.kept_context;
	hrflow_progress_begin(&batch.progress, sink);
	hrflow_context_push(&context, add_batch_context, &batch);

	hrflow_equal_find(&batch.equal, source);
	ask_for_all(&batch, time_limit);

	hrflow_context_pop(&context);
	if (summary->refusal.detail != NULL)
		summary->refusal.detail = pstrdup(summary->refusal.detail);
	MemoryContextDelete(batch.reply_context);
	MemoryContextDelete(batch.kept_context);
}
