/*-------------------------------------------------------------------------
 *
 * batch.c
 *		Requests many elements at once.
 *
 * Elements are requested in order, as many at a time as the transport has room
 * for, and their results are passed to the sink in the order of completion.
 * Equal elements are requested once, and each gets the result.  If vectors are
 * wanted, the links of a profile are fetched as soon as its answer arrives,
 * along with the requests for further profiles.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "miscadmin.h"
#include "utils/memutils.h"

/* Number of rows to store (about 2 ms) before serving the transport again. */
#define ROWS_OF_WORK 1024

/*
 * Minimum pause, in microseconds, before a parked request is sent again during
 * an outage, in addition to the pauses between its attempts.
 */
#define PROBE_PAUSE (250 * HRFLOW_MSEC)

typedef struct Batch
{
	HrflowSource *source;
	HrflowSink *sink;
	const HrflowSettings *settings; /* settings of the source */
	HrflowTransport *transport;
	HrflowBatchSummary *summary;
	MemoryContext reply_context;	/* reset after each element */
	MemoryContext kept_context; /* lives until the end of the batch */

	HrflowEqualElements equal;
	HrflowQueue queue;
	int			next;			/* first element not considered yet */
	int64		nrows;			/* number of rows passed to the sink */
	int			nforbidden;		/* number of answers with 403 */

	/* Used if the sink reports to the user: */
	HrflowHealth health;
	HrflowTally tally;
	HrflowProgress progress;
} Batch;

/* The result of elements that are not complete when the time limit expires. */
static const HrflowResult timed_out = {
	.status = HRFLOW_TIMEOUT,
	.detail = "hrflow_embed.batch_timeout expired."
};

/* State of a request after an attempt. */
typedef enum RequestFate
{
	REQUEST_RETRIED,			/* the transport retries it */
	REQUEST_PARKED,				/* it waits until the outage is over */
	REQUEST_DONE				/* its result was passed to the sink */
} RequestFate;

/*
 * ------------------------------------------------------------------------
 * Results
 * ------------------------------------------------------------------------
 */

/*
 * Pass an outcome to the sink, for an element and for the elements equal to
 * it.  The transport may have ended.
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
 * Pass the result of an element as a whole to the sink.
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
 * Pass the result of a request to the sink.
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
 * Requests
 * ------------------------------------------------------------------------
 */

/*
 * Stop the batch because of this result: request no more elements.
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
 * Should the batch be suspended or stopped if the API does not answer or
 * refuses everything?  It should not if the elements are links, which can lead
 * to many different hosts.
 */
static bool
watches_for_outage(const Batch *batch)
{
	return batch->sink->methods->reports && !batch->source->methods->is_links;
}

/*
 * Record an outcome of an element that was requested from the API.  Stop the
 * batch if all elements so far have been refused for the same reason, which
 * then does not lie in the elements.
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
 * Queue a link to be fetched, or if it may not be, pass the reason to the
 * sink.  "section" and "links" are NULL if the link is the element.
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
 * Request an element, or if it is not valid, pass the reason to the sink.
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
 * Return the next element to request, or -1 if there is none at the moment.
 */
static int
next_element(Batch *batch)
{
	HrflowSource *source = batch->source;

	if (source->methods->next != NULL)
	{
		int			element = source->methods->next(source);

		if (element >= 0)
			source->nelements++;
		return element;
	}
	while (batch->next < source->nelements &&
		   hrflow_equal_is_repeated(&batch->equal, batch->next))
		batch->next++;
	return batch->next < source->nelements ? batch->next++ : -1;
}

/*
 * Request the next element.  Returns false if there is none.
 */
static bool
ask_for_next_element(Batch *batch)
{
	int			element = next_element(batch);

	if (element < 0)
		return false;
	ask_for_element(batch, element);
	return true;
}

/*
 * May another element be requested?  Texts can be long, so limit the total size
 * of the requests that are not complete to that of the replies.
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
 * Submit requests while the transport has room for them and may_ask() permits
 * it.
 */
static void
refill_transport(Batch *batch)
{
	int			room;

	hrflow_queue_send_links(&batch->queue);
	room = hrflow_transport_room(batch->transport);
	while (room > 0 && may_ask(batch) && ask_for_next_element(batch))
	{
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
 * Does this result, which has been counted, mean that all other elements would
 * be refused, too?  A single 403 may be specific to its element, but a second
 * one shows that it is not.
 */
static bool
is_refusal_of_all(const Batch *batch, int element, const HrflowResult *result)
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
			return batch->nforbidden > 1;
		default:
			return false;
	}
}

/*
 * Record the API's answer for an element.  Stop the batch if the answer
 * applies to all elements.
 */
static void
note_answer(Batch *batch, int element, const HrflowResult *result)
{
	HrflowBatchSummary *summary = batch->summary;

	if (result->http_status != 0)
	{
		for (int i = element; i >= 0; i = hrflow_equal_next(&batch->equal, i))
			summary->nanswered++;
	}
	if (result->status == HRFLOW_OK)
		summary->any_ok = true;
	if (result->status == HRFLOW_FORBIDDEN)
		batch->nforbidden++;
	if (is_refusal_of_all(batch, element, result) && !summary->refused)
		refuse_rest(batch, result);
}

/*
 * May a request be sent again after all its attempts have failed?  A text may
 * be sent again only if the API cannot have processed it.
 */
static bool
may_resend(const HrflowBatchRequest *request, const HrflowResult *result)
{
	return request->post_url == NULL ||
		result->status == HRFLOW_CONNECT_FAILED;
}

/*
 * Park a request all of whose attempts have failed, if that may be due to an
 * outage and there was no answer since it was last sent again.  Returns
 * whether it was parked.
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
 * Fail all parked requests to the API, or all parked links.
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
 * Handle the parked requests after the API, or the host of links, has
 * answered: send them again if it was down, else fail them.
 */
static void
settle_parked(Batch *batch, bool is_link, bool was_down)
{
	if (!was_down)
		fail_all_parked(batch, is_link);
	for (int n = batch->queue.nparked[is_link]; n > 0; n--)
		hrflow_queue_resend(&batch->queue, is_link);
}

/*
 * Record the result of one attempt.  Stop the batch if an outage has lasted
 * too long.
 */
static void
note_try(Batch *batch, const HrflowResult *result)
{
	bool		was_down = hrflow_health_in_trouble(&batch->health, result->is_link);

	if (!watches_for_outage(batch))
		return;
	if (hrflow_health_note_try(&batch->health, result) &&
		batch->next < batch->source->nelements && !batch->summary->refused)
		refuse_rest(batch, result);
	if (!hrflow_health_is_outage(result))
		settle_parked(batch, result->is_link, was_down);
}

/*
 * Pass a link in the answer for a profile to the sink.
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
 * Fetch the links in the answer for a profile, or pass them to the sink.
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
		HrflowOpenLinks *open_links = MemoryContextAllocZero(batch->kept_context,
															 sizeof(HrflowOpenLinks));

		open_links->n = list_length(links);
		foreach(cell, links)
		{
			HrflowLink *link = lfirst(cell);

			if (batch->sink->methods->link_use == HRFLOW_LINKS_LISTED)
				put_link(batch, element, result, link, open_links);
			else
				queue_link(batch, element, link->url, link->section,
						   link->item, open_links);
		}
	}
}

/*
 * Process the reply to one attempt.  Returns what happens to the request.
 */
static RequestFate
take_reply(Batch *batch, HrflowReply *reply)
{
	HrflowBatchRequest *request = reply->tag;
	bool		is_link = HRFLOW_IS_LINK(reply->target);
	HrflowResult result;

	if (reply->stopped)
	{
		result = reply->expired ? timed_out : batch->summary->refusal;
		hrflow_response_set_abandoned(reply, &result);
		put_result_of_request(batch, request, &result, true);
		return REQUEST_DONE;
	}

	if (is_link)
		hrflow_response_parse_vector(reply, &result);
	else
		hrflow_response_parse(reply, batch->source->methods->endpoint,
							  batch->settings, &result);
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
 * Process the reply to one attempt, and free what is no longer needed.
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
 * Pass to the sink the links that were still queued when the time limit
 * expired.
 */
static void
put_unsent_links(Batch *batch)
{
	HrflowResult late = timed_out;
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
 * Pass the elements that were not requested to the sink.
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
 * Continue when nothing is in flight, because the batch is complete or requests
 * are parked.  During an outage, pause and then send one request as a probe.
 * If too few elements remain to tell an outage from their own failures, fail
 * the parked requests.  Returns false at the end of the batch.
 */
static bool
continue_when_idle(Batch *batch)
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
 * Has the batch produced anything worth keeping?  Answers of the API are,
 * since they are paid for, but if their links cannot be fetched they are
 * useless.
 */
static bool
has_succeeded(const Batch *batch)
{
	return batch->summary->refusal.is_link ?
		batch->tally.by_status[HRFLOW_OK] > 0 : batch->summary->any_ok;
}

/*
 * Run the batch.
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
			summary->refusal = timed_out;
		}
		hrflow_progress_show(&batch->progress, &batch->tally, batch->next,
							 batch->source->nelements);
		if (reply != NULL)
			process_reply(batch, reply);
		else if (!woken && !continue_when_idle(batch))
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
 * Error context callback: add the progress of the batch.
 */
static void
add_batch_context(void *arg)
{
	const Batch *batch = arg;

	errcontext("HrFlow batch of %d elements, %lld rows so far",
			   batch->source->nelements, (long long) batch->nrows);
	hrflow_error_hint_conflict();
}

/*
 * Request all elements of a source, within "time_limit" milliseconds (0: no
 * limit), and pass the outcomes to a sink.  The detail of the summary's
 * refusal is palloc'd in the current memory context.  Raises the errors of
 * hrflow_transport_next() and of the sink.
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
