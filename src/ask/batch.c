/*-------------------------------------------------------------------------
 *
 * batch.c
 *		Requests many elements at once.
 *
 * Elements are requested in order, as many at a time as the transport has room
 * for, and their results are passed to the sink in the order of completion.
 * Equal elements are requested only once, and the result is passed on for
 * each.  If the sink wants vectors, the links in a reply are fetched while
 * further elements are requested.
 *
 * An element passes through these steps:
 *
 * 1. ask_for_element() makes its request, and submits or queues it.  If there
 *    is none, because the element is invalid, for example, its outcome follows
 *    at once.
 * 2. take_reply() interprets the reply to each attempt, and outage.c counts
 *    the attempt.  During an outage, no further elements are requested, except
 *    as probes.  If the outage lasts too long while elements remain to be
 *    requested, the batch stops.
 * 3. The transport retries the request if it may.  If the request fails
 *    nonetheless, outage.c may park it.  It is resent later, or fail_parked()
 *    treats it as failed.
 * 4. Any other result is final.  record_answer() stops the batch if the result
 *    applies to all elements; so does take_reply() if the proxy refuses the
 *    password for a link.  If the links in an answer are to be fetched,
 *    each allowed link leads to a request, which continues with step 2.
 * 5. put_outcome() passes the outcome to the sink.  It stops the batch if the
 *    first elements were all refused for the same reason, or if too many
 *    elements in succession failed with server errors.
 *
 * After the batch has been stopped, the transport abandons requests as
 * described at hrflow_transport_stop(); after the time limit has expired, it
 * abandons all that have no reply yet.  finish_batch() passes on outcomes for
 * links and elements that were not requested, unless it raises the refusal
 * that stopped the batch.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "miscadmin.h"
#include "utils/memutils.h"

typedef struct Batch
{
	HrflowSource *source;
	HrflowSink *sink;
	HrflowTransport *transport;
	HrflowBatchSummary *summary;
	MemoryContext reply_context;	/* memory context that is reset after each
									 * reply or element */
	MemoryContext kept_context; /* memory context that lives until the end of
								 * the batch, and is the parent of the other
								 * contexts */

	HrflowOutcomes outcomes;
	HrflowQueue queue;
	HrflowOutage outage;
	HrflowRefusal refusal;
	HrflowProgress progress;
	bool		links_stopped;	/* are no more links fetched? */
	int			next;			/* first element not considered yet; not used
								 * if the source has a callback "next" */
} Batch;

/*
 * The result of requests that are abandoned or not sent because the time limit
 * has expired.
 */
static const HrflowResult timed_out = {
	.status = HRFLOW_TIMEOUT,
	.detail = "\"hrflow_embed.batch_timeout\" expired."
};

/*
 * ------------------------------------------------------------------------
 * Outcomes
 * ------------------------------------------------------------------------
 */

/*
 * Return whether the batch may park requests, wait for the end of an outage,
 * and request further elements.  It may until it is stopped or its time limit
 * expires.
 */
static bool
may_continue(const Batch *batch)
{
	return !batch->summary->refused &&
		!hrflow_transport_expired(batch->transport);
}

/*
 * Keep a result as the reason for which the batch ends early.  Its data and
 * vector are not kept, because they do not outlive the reply.
 */
static void
set_reason(Batch *batch, const HrflowResult *result)
{
	HrflowResult *reason = &batch->summary->reason;

	reason->status = result->status;
	reason->is_link = result->is_link;
	reason->http_status = result->http_status;
	reason->detail = result->detail == NULL ? NULL :
		MemoryContextStrdup(batch->kept_context, result->detail);
}

/*
 * Unless the batch was stopped before, stop it because of this result: request
 * no more elements.  Links in replies are still fetched, because the replies
 * have been paid for, unless the proxy would refuse these requests, too: it
 * may lock an account after a few wrong passwords.
 */
static void
refuse_rest(Batch *batch, const HrflowResult *result)
{
	if (!batch->links_stopped &&
		(batch->source->methods->is_links ||
		 result->status == HRFLOW_PROXY_REFUSED))
	{
		batch->links_stopped = true;
		hrflow_transport_stop_links(batch->transport);
	}
	if (batch->summary->refused)
		return;
	set_reason(batch, result);
	batch->summary->refused = true;
	hrflow_transport_stop(batch->transport,
						  result->status == HRFLOW_OVER_BUDGET ||
						  result->status == HRFLOW_OVER_DAY);
}

/*
 * Return the number of elements that have not been considered yet, or 0 if the
 * source has a "next" callback, because their number is then unknown.
 */
static int
count_unasked(const Batch *batch)
{
	return batch->source->methods->next != NULL ? 0 :
		batch->source->nelements - batch->next;
}

/*
 * Pass an outcome to the sink.  Stop the batch if too many elements have been
 * refused for the same reason, because then the elements themselves are not
 * the cause.
 */
static void
put_outcome(Batch *batch, int element, HrflowOpenLinks *links,
			HrflowOutcome *outcome)
{
	hrflow_outcome_put(&batch->outcomes, element, links, outcome);
	if (outcome->evidence == HRFLOW_EVIDENCE_ALL &&
		hrflow_refusal_count_outcome(&batch->refusal, outcome->result,
									 outcome->is_last, count_unasked(batch)))
		refuse_rest(batch, outcome->result);
}

/*
 * Pass the result of a request to the sink, and free the request.
 */
static void
finish_request(Batch *batch, HrflowBatchRequest *request,
			   const HrflowResult *result, HrflowEvidence evidence)
{
	HrflowOutcome outcome = {
		.result = result,
		.section = request->section,
		.item = request->item,
		.evidence = evidence
	};

	put_outcome(batch, request->element, request->links, &outcome);
	hrflow_queue_free(&batch->queue, request);
}

/*
 * Pass to the sink a link that is only listed, or is not allowed.
 */
static void
put_link(Batch *batch, int element, const HrflowLink *link,
		 HrflowOpenLinks *links, const HrflowResult *result)
{
	HrflowOutcome outcome = {
		.result = result,
		.section = link->section,
		.item = link->item,
		.link = link->url,
		.evidence = HRFLOW_EVIDENCE_ALL
	};

	put_outcome(batch, element, links, &outcome);
}

/*
 * Pass to the sink an element for which there is no request.
 */
static void
put_element(Batch *batch, int element, HrflowElementKind kind,
			const HrflowResult *problem)
{
	HrflowOutcome outcome = {
		.result = problem,
		.is_empty = kind == HRFLOW_ELEMENT_EMPTY,
		.evidence = kind == HRFLOW_ELEMENT_UNASKED ? HRFLOW_EVIDENCE_NONE :
		HRFLOW_EVIDENCE_ELEMENT
	};

	put_outcome(batch, element, NULL, &outcome);
}

/*
 * ------------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------------
 */

/*
 * Queue a link to be fetched or, if it is not allowed, pass the reason to the
 * sink.  "links" is NULL if the element is itself the link.  Returns whether
 * the link is allowed.
 */
static bool
ask_for_link(Batch *batch, int element, const HrflowLink *link,
			 HrflowOpenLinks *links)
{
	const HrflowSettings *settings = batch->source->settings;
	bool		by_name;
	const char *refusal = hrflow_link_refusal(link->url, settings->link_hosts,
											  &by_name);

	if (refusal == NULL)
		hrflow_queue_add_link(&batch->queue, element, link, by_name, links);
	else
	{
		const char *shown = hrflow_response_scrub(hrflow_link_describe(link->url),
												  settings->api_key);
		HrflowResult result = {
			.status = HRFLOW_LINK_REFUSED,
			.is_link = true,
			.detail = psprintf("%s Link: %s", refusal, shown)
		};

		put_link(batch, element, link, links, &result);
	}
	return refusal == NULL;
}

/*
 * Request an element, or pass the reason to the sink if there is no request.
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
	HrflowElementKind kind = methods->make_request(batch->source, element,
												   &wanted, &problem);

	if (kind != HRFLOW_ELEMENT_ASKED)
		put_element(batch, element, kind, &problem);
	else if (methods->is_links)
	{
		HrflowLink	link = {.url = wanted.url};

		if (ask_for_link(batch, element, &link, NULL))
			hrflow_refusal_count_asked(&batch->refusal);
	}
	else
	{
		hrflow_queue_add_element(&batch->queue, element, &wanted);
		hrflow_refusal_count_asked(&batch->refusal);
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
		   hrflow_equal_is_repeated(&batch->outcomes.equal, batch->next))
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

	if (element >= 0)
		ask_for_element(batch, element);
	return element >= 0;
}

/*
 * Return whether another element may be requested.  Texts can be long, so the
 * total size of incomplete requests is limited, like the total size of
 * replies.
 */
static bool
may_ask(const Batch *batch)
{
	if (batch->queue.pending >= HRFLOW_MAX_BUFFERED)
		return false;
	return hrflow_outage_may_ask(&batch->outage) &&
		hrflow_refusal_may_ask(&batch->refusal);
}

/*
 * Submit queued links while the transport has room for them, and request
 * further elements while there is room and may_ask() permits it.
 */
static void
refill_transport(Batch *batch)
{
	do
		hrflow_queue_send_links(&batch->queue);
	while (hrflow_transport_room(batch->transport) > 0 &&
		   may_ask(batch) && ask_for_next_element(batch));
}

/*
 * ------------------------------------------------------------------------
 * Replies
 * ------------------------------------------------------------------------
 */

/*
 * Record the final result of an element's request to the API or, if the
 * elements are links, to a link's host.  Stop the batch if the result applies
 * to all elements.
 */
static void
record_answer(Batch *batch, int element, const HrflowResult *result)
{
	if (result->http_status != 0)
	{
		for (int i = element; i >= 0; i = hrflow_equal_next(&batch->outcomes.equal, i))
			batch->summary->nanswered++;
	}
	if (result->is_link)
		return;
	if (result->status == HRFLOW_OK)
		batch->summary->any_ok = true;
	if (hrflow_refusal_count_answer(&batch->refusal, batch->source, element,
									result))
		refuse_rest(batch, result);
}

/*
 * Treat the requests that are parked for a server as failed.
 */
static void
fail_parked(Batch *batch, HrflowServer server)
{
	HrflowBatchRequest *request;

	while ((request = hrflow_outage_unpark(&batch->outage, server)) != NULL)
	{
		if (request->links == NULL)
			record_answer(batch, request->element, request->failure);
		finish_request(batch, request, request->failure,
					   batch->summary->refused ? HRFLOW_EVIDENCE_NONE :
					   HRFLOW_EVIDENCE_ELEMENT);
	}
}

/*
 * Record the result of one attempt.  If it shows no outage, treat requests
 * that are still parked for the server as failed.  Stop the batch if an outage
 * has lasted too long and elements remain to be requested.
 */
static void
record_attempt(Batch *batch, const HrflowReply *reply,
			   const HrflowResult *result)
{
	switch (hrflow_outage_count_attempt(&batch->outage, reply, result))
	{
		case HRFLOW_OUTAGE_NONE:
			fail_parked(batch, hrflow_server_of(result));
			break;
		case HRFLOW_OUTAGE_POSSIBLE:
			break;
		case HRFLOW_OUTAGE_LASTING:
			if (count_unasked(batch) > 0)
				refuse_rest(batch, result);
			break;
	}
}

/*
 * Return the links in the answer for a profile or job, as a list of
 * HrflowLink.  If the answer is not valid, set the status and detail of its
 * result, and return NIL.
 */
static List *
links_of_answer(Batch *batch, int element, HrflowResult *result)
{
	HrflowSource *source = batch->source;
	List	   *links;

	if (hrflow_links_collect(result->data,
							 source->methods->fields(source, element),
							 source->settings->api_key, &links,
							 &result->detail))
		return links;
	result->status = HRFLOW_INVALID_REPLY;
	return NIL;
}

/*
 * Queue the links in an answer to be fetched or, if the sink only lists links,
 * pass them to the sink.
 */
static void
take_links(Batch *batch, int element, List *links, const HrflowResult *result)
{
	HrflowOpenLinks *open_links = MemoryContextAllocZero(batch->kept_context,
														 sizeof(HrflowOpenLinks));
	ListCell   *cell;

	open_links->n = list_length(links);
	foreach(cell, links)
	{
		HrflowLink *link = lfirst(cell);

		if (batch->sink->methods->link_use == HRFLOW_LINKS_LISTED)
			put_link(batch, element, link, open_links, result);
		else
			(void) ask_for_link(batch, element, link, open_links);
	}
}

/*
 * Process the final result of a request to the API.
 */
static void
take_final_answer(Batch *batch, HrflowBatchRequest *request, HrflowResult *result)
{
	List	   *links = NIL;

	record_answer(batch, request->element, result);
	if (result->status == HRFLOW_OK && result->data != NULL &&
		batch->sink->methods->link_use != HRFLOW_LINKS_KEPT)
		links = links_of_answer(batch, request->element, result);
	if (links == NIL)
		finish_request(batch, request, result, HRFLOW_EVIDENCE_ALL);
	else
	{
		take_links(batch, request->element, links, result);
		hrflow_queue_free(&batch->queue, request);
	}
}

/*
 * Process the reply to one attempt.  The result does not point into the reply,
 * which is released unless the transport retries the request.
 */
static void
take_reply(Batch *batch, HrflowReply *reply)
{
	HrflowBatchRequest *request = reply->tag;
	HrflowResult result;

	if (reply->stopped)
	{
		result = reply->expired ? timed_out : batch->summary->reason;
		hrflow_response_set_abandoned(reply, &result);
		hrflow_transport_release(batch->transport, reply);
		finish_request(batch, request, &result, HRFLOW_EVIDENCE_NONE);
		return;
	}

	if (HRFLOW_IS_LINK(reply->target))
		hrflow_response_parse_vector(reply, &result);
	else
		hrflow_response_parse(reply, batch->source->methods->endpoint,
							  batch->source->settings, &result);
	record_attempt(batch, reply, &result);
	if (hrflow_transport_retry(batch->transport, reply, result.status,
							   result.transient))
		return;
	hrflow_transport_release(batch->transport, reply);
	if (may_continue(batch) &&
		hrflow_outage_park(&batch->outage, request, &result))
		return;
	if (!result.is_link)
	{
		take_final_answer(batch, request, &result);
		return;
	}
	if (result.status == HRFLOW_PROXY_REFUSED)
		refuse_rest(batch, &result);
	if (request->links == NULL)
		record_answer(batch, request->element, &result);
	finish_request(batch, request, &result, HRFLOW_EVIDENCE_ALL);
}

/*
 * Process the reply to one attempt, and free the memory used for this.
 */
static void
process_reply(Batch *batch, HrflowReply *reply)
{
	MemoryContext old = MemoryContextSwitchTo(batch->reply_context);

	take_reply(batch, reply);
	MemoryContextSwitchTo(old);
	MemoryContextReset(batch->reply_context);
}

/*
 * Pass to the sink the links that were still queued when links were stopped or
 * the time limit expired.
 */
static void
put_unsent_links(Batch *batch)
{
	HrflowResult unsent = batch->links_stopped ? batch->summary->reason :
	timed_out;
	HrflowBatchRequest *request;

	unsent.is_link = true;
	unsent.http_status = 0;
	while ((request = hrflow_queue_take_link(&batch->queue)) != NULL)
		finish_request(batch, request, &unsent, HRFLOW_EVIDENCE_NONE);
}

/*
 * Pass to the sink all elements that were not requested.  Does nothing if the
 * source has a "next" callback, because their number is then unknown.
 */
static void
put_unasked_elements(Batch *batch)
{
	HrflowResult rest = batch->summary->reason;
	int			element;

	if (batch->source->methods->next != NULL)
		return;
	rest.http_status = 0;
	rest.is_link = batch->source->methods->is_links;
	while ((element = next_element(batch)) >= 0)
		put_element(batch, element, HRFLOW_ELEMENT_UNASKED, &rest);
}

/*
 * ------------------------------------------------------------------------
 * The batch
 * ------------------------------------------------------------------------
 */

/*
 * Request the next element for which a request can be made.  The elements
 * before it are passed to the sink with the reasons why they have no request.
 * Returns false if no request can be made for any of the remaining elements.
 */
static bool
ask_for_next_valid_element(Batch *batch)
{
	int			nasked = batch->refusal.nasked;

	while (batch->refusal.nasked == nasked)
	{
		if (!ask_for_next_element(batch))
			return false;
	}
	return true;
}

/*
 * Continue when no request is in flight.  If the end of an outage should be
 * awaited, pause, and send a probe: a parked request or, if there is none, the
 * request for an element.  Skip elements for which no request can be made, so
 * that the pause is not in vain.  Otherwise treat parked requests as failed
 * and, unless the batch ends early, request the next element.  Returns false
 * at the end of the batch.
 */
static bool
continue_when_idle(Batch *batch)
{
	bool		continues = may_continue(batch);

	if (continues &&
		hrflow_outage_should_wait(&batch->outage, count_unasked(batch)))
		return hrflow_outage_probe(&batch->outage) ||
			ask_for_next_valid_element(batch);
	fail_parked(batch, HRFLOW_SERVER_LINKS);
	fail_parked(batch, HRFLOW_SERVER_API);
	return continues && ask_for_next_element(batch);
}

/*
 * Let the sink do its work, submit requests, and wait for a reply.  Returns
 * NULL if the transport has no requests left or, with *woken set to true, if
 * the sink is to be called again or progress is to be reported first.
 */
static HrflowReply *
wait_for_reply(Batch *batch, bool *woken)
{
	bool		has_work = batch->sink->methods->work != NULL;
	int64		wake = hrflow_progress_due(&batch->progress);
	HrflowReply *reply;

	*woken = false;
	if (has_work)
		wake = Min(wake, batch->sink->methods->work(batch->sink,
													batch->transport));
	refill_transport(batch);
	reply = hrflow_transport_next_until(batch->transport, wake,
										has_work || wake != HRFLOW_NEVER ?
										woken : NULL);

	/* A sink that does work processes interrupts itself. */
	if (*woken && !has_work)
		CHECK_FOR_INTERRUPTS();
	return reply;
}

/*
 * After the last reply, pass outcomes for the remaining links and elements to
 * the sink, and report to the user.  As described at
 * HrflowSinkMethods.reports, a refusal may be raised instead.
 */
static void
finish_batch(Batch *batch)
{
	HrflowBatchSummary *summary = batch->summary;

	if (summary->refused && batch->sink->methods->reports &&
		!hrflow_tally_has_succeeded(&batch->outcomes.tally, summary))
		hrflow_tally_raise(summary);
	put_unsent_links(batch);
	put_unasked_elements(batch);
	if (batch->sink->methods->reports)
		hrflow_tally_report(&batch->outcomes.tally, summary);
	hrflow_stats_flush();
}

/*
 * Request all elements, and process the replies until the batch ends.
 */
static void
exchange_all(Batch *batch)
{
	HrflowBatchSummary *summary = batch->summary;

	for (;;)
	{
		bool		woken;
		HrflowReply *reply = wait_for_reply(batch, &woken);

		if (hrflow_transport_expired(batch->transport) &&
			!summary->expired && !summary->refused)
		{
			summary->expired = true;
			set_reason(batch, &timed_out);
		}
		hrflow_progress_show(&batch->progress, &batch->outcomes.tally,
							 batch->next, batch->source->nelements);
		if (reply != NULL)
			process_reply(batch, reply);
		else if (!woken && !continue_when_idle(batch))
			break;
	}
}

/*
 * Run the batch.  An error must end the transport; see the comments at the top
 * of transport.c.
 */
static void
ask_for_all(Batch *batch, int time_limit)
{
	batch->transport = hrflow_transport_begin(batch->source->settings,
											  batch->source->activity,
											  time_limit);
	PG_TRY();
	{
		batch->outcomes.transport = batch->transport;
		hrflow_queue_init(&batch->queue, batch->kept_context,
						  batch->transport);
		exchange_all(batch);
	}
	PG_FINALLY();
	{
		hrflow_transport_end(batch->transport);
	}
	PG_END_TRY();
	finish_batch(batch);
}

/*
 * Error context callback: add the progress of the batch and, if the error is a
 * recovery conflict, a hint.
 */
static void
add_batch_context(void *arg)
{
	const Batch *batch = arg;

	errcontext("HrFlow batch of %d elements, %lld rows so far",
			   batch->source->nelements, (long long) batch->outcomes.nrows);
	hrflow_error_hint_conflict();
}

/*
 * Create the memory contexts of a batch, and initialize its parts.
 */
static void
init_batch(Batch *batch)
{
	HrflowSource *source = batch->source;
	MemoryContext kept = AllocSetContextCreate(CurrentMemoryContext,
											   "hrflow_embed batch",
											   ALLOCSET_DEFAULT_SIZES);
	bool		is_watched;

	batch->kept_context = kept;
	batch->reply_context = AllocSetContextCreate(kept, "hrflow_embed reply",
												 ALLOCSET_DEFAULT_SIZES);
	hrflow_outcome_init(&batch->outcomes, batch->sink, source->activity, kept);
	hrflow_progress_begin(&batch->progress, batch->sink);

	/*
	 * Detect outages, and a common reason for refusals, only if the batch
	 * reports to the user.
	 */
	is_watched = batch->sink->methods->reports &&
		hrflow_outage_can_watch(source, batch->reply_context);
	hrflow_outage_init(&batch->outage, &batch->queue, is_watched);
	hrflow_refusal_init(&batch->refusal, is_watched,
						is_watched && !source->methods->is_links);
}

/*
 * Request the elements of a source, within "time_limit" milliseconds (or
 * without limit if it is 0), and pass the outcomes to a sink.  The detail of
 * the summary's reason is palloc'd in the current memory context.  Raises
 * errors of the source, the transport and the sink and, as described at
 * HrflowSinkMethods.reports, a refusal.
 */
void
hrflow_batch_run(HrflowSource *source, HrflowSink *sink, int time_limit,
				 HrflowBatchSummary *summary)
{
	Batch		batch = {
		.source = source,
		.sink = sink,
		.summary = summary
	};
	ErrorContextCallback context;

	memset(summary, 0, sizeof(*summary));
	summary->nelements = source->nelements;
	summary->is_links = source->methods->is_links;
	summary->reason.endpoint = source->methods->endpoint;

	init_batch(&batch);
	hrflow_context_push(&context, add_batch_context, &batch);
	hrflow_equal_find(&batch.outcomes.equal, source);
	ask_for_all(&batch, time_limit);
	hrflow_context_pop(&context);
	if (summary->reason.detail != NULL)
		summary->reason.detail = pstrdup(summary->reason.detail);
	MemoryContextDelete(batch.kept_context);
}
