/*-------------------------------------------------------------------------
 *
 * batch.c
 *		Asks for many elements at once.
 *
 * Elements are asked for in their order, max_concurrency at a time; results
 * are handed out in the order of completion.  Equal elements are asked for
 * once and answered each.  Where vectors are wanted, a profile's links are
 * fetched as soon as they arrive, among the requests for further profiles.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "utils/memutils.h"

/*
 * Number of rows stored without looking at the network: about 2 ms.
 */
#define ROWS_OF_WORK 1024

typedef struct Batch
{
	HrflowSource *source;
	HrflowSink *sink;
	const HrflowSettings *settings; /* the source's */
	HrflowTransport *transport;
	HrflowBatchSummary *summary;
	MemoryContext reply_context;	/* reset after each element */
	MemoryContext request_context;	/* of requests without a reply yet */

	/*
	 * The next element equal to this one, or -1; and whether an earlier one
	 * is equal.  Both are NULL where no two elements are.
	 */
	int		   *next_equal;
	bool	   *is_repeated;

	int			next;			/* the first element not looked at */
	dlist_head	links;			/* BatchRequests to be sent, in this order */
	size_t		pending;		/* bytes of requests without a reply yet */
	int64		nrows;			/* handed out so far */
	bool		any_forbidden;	/* an element met a 403 */
} Batch;

/* What becomes of elements that are not done when the time is over. */
static const HrflowResult time_over = {
	.status = HRFLOW_TIMEOUT,
	.detail = "hrflow_embed.batch_timeout is over."
};

/*
 * A request, and what it is for; the tag of its reply.
 */
typedef struct BatchRequest
{
	dlist_node	node;			/* in the batch's links, until it is sent */
	HrflowTarget target;
	const char *post_url;		/* where the body goes; NULL: it is a GET */
	int			element;
	char	   *section;		/* of a profile's link; else NULL */
	int			item;
	size_t		size;			/* of what follows */
	char		sent[FLEXIBLE_ARRAY_MEMBER];	/* body to POST, or URL */
} BatchRequest;

/*
 * ------------------------------------------------------------------------
 * Equal elements
 * ------------------------------------------------------------------------
 */

typedef struct DistinctEntry
{
	int			first;			/* element; also the key */
	int			last;			/* element equal to it met last */
	uint32		hash;
	char		status;
} DistinctEntry;

static uint32
hash_element(const HrflowSource *source, int element)
{
	return source->methods->hash(source, element);
}

static bool
elements_equal(const HrflowSource *source, int a, int b)
{
	return source->methods->equal(source, a, b);
}

#define SH_PREFIX distinct
#define SH_ELEMENT_TYPE DistinctEntry
#define SH_KEY_TYPE int
#define SH_KEY first
#define SH_HASH_KEY(table, key) hash_element((HrflowSource *) (table)->private_data, key)
#define SH_EQUAL(table, a, b) elements_equal((HrflowSource *) (table)->private_data, a, b)
#define SH_STORE_HASH
#define SH_GET_HASH(table, entry) (entry)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/*
 * Chain up the elements that are equal.  About 20 ms for 100,000.
 */
static void
chain_equal_elements(Batch *batch)
{
	int			nelements = batch->source->nelements;
	distinct_hash *table;

	if (batch->source->methods->hash == NULL)
		return;
	batch->next_equal = MemoryContextAllocHuge(CurrentMemoryContext,
											   sizeof(int) * nelements);
	for (int i = 0; i < nelements; i++)
		batch->next_equal[i] = -1;
	batch->is_repeated = palloc0(sizeof(bool) * nelements);
	table = distinct_create(CurrentMemoryContext, 1024, batch->source);

	for (int i = 0; i < nelements; i++)
	{
		bool		found;
		DistinctEntry *entry = distinct_insert(table, i, &found);

		if (i % 10000 == 0)
			CHECK_FOR_INTERRUPTS();
		if (found)
		{
			batch->next_equal[entry->last] = i;
			batch->is_repeated[i] = true;
		}
		entry->last = i;
	}
	distinct_destroy(table);
}

static inline int
next_equal_element(const Batch *batch, int element)
{
	return batch->next_equal == NULL ? -1 : batch->next_equal[element];
}

static inline bool
is_repeated_element(const Batch *batch, int element)
{
	return batch->is_repeated != NULL && batch->is_repeated[element];
}

/*
 * ------------------------------------------------------------------------
 * Handing out
 * ------------------------------------------------------------------------
 */

/*
 * Hand out what became of an element, and of those equal to it.
 */
static void
put_outcome(Batch *batch, int element, const HrflowOutcome *outcome)
{
	MemoryContext old = MemoryContextSwitchTo(batch->reply_context);
	bool		repeated = false;

	for (; element >= 0; element = next_equal_element(batch, element))
	{
		CHECK_FOR_INTERRUPTS();
		batch->sink->methods->put(batch->sink, element, outcome, repeated);
		repeated = true;
		hrflow_stats_count_row(outcome->result->status);
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
	HrflowOutcome outcome = {.result = result, .unasked = unasked};

	put_outcome(batch, element, &outcome);
}

/*
 * Hand out the result of one request.
 */
static void
put_result_of_request(Batch *batch, const BatchRequest *request,
					  const HrflowResult *result, bool unasked)
{
	HrflowOutcome outcome = {
		.result = result,
		.section = request->section,
		.item = request->item,
		.unasked = unasked
	};

	put_outcome(batch, request->element, &outcome);
}

/*
 * ------------------------------------------------------------------------
 * Asking
 * ------------------------------------------------------------------------
 */

/*
 * A request for an element, to be freed with its reply.
 */
static BatchRequest *
make_batch_request(Batch *batch, int element, const char *sent)
{
	size_t		size = strlen(sent) + 1;
	BatchRequest *request = MemoryContextAlloc(batch->request_context,
											   offsetof(BatchRequest, sent) +
											   size);

	memset(request, 0, offsetof(BatchRequest, sent));
	request->target = HRFLOW_TO_API;
	request->element = element;
	request->size = size;
	memcpy(request->sent, sent, size);
	batch->pending += size;
	return request;
}

static void
free_batch_request(Batch *batch, BatchRequest *request)
{
	batch->pending -= request->size;
	if (request->section != NULL)
		pfree(request->section);
	pfree(request);
}

/*
 * Hand a request to the transport.
 */
static void
send_batch_request(Batch *batch, BatchRequest *request)
{
	if (request->post_url != NULL)
		hrflow_transport_post(batch->transport, request->post_url,
							  request->sent, request);
	else
		hrflow_transport_submit(batch->transport, request->target,
								request->sent, request);
}

/*
 * Send the requests for links for which there is room.  An answer may have a
 * thousand links, and there may be as many answers as requests in flight: in
 * the transport each request would take 6 kB.
 */
static void
send_links(Batch *batch)
{
	int			room;

	if (dlist_is_empty(&batch->links))
		return;
	room = hrflow_transport_room_for_links(batch->transport);
	for (; room > 0 && !dlist_is_empty(&batch->links); room--)
		send_batch_request(batch,
						   dlist_container(BatchRequest, node,
										   dlist_pop_head_node(&batch->links)));
}

/*
 * Have a link fetched, or hand out at once why it may not be.  "section" is
 * NULL where the link is the element.
 */
static void
queue_link(Batch *batch, int element, const char *url, const char *section,
		   int item)
{
	bool		by_name;
	const char *refusal = hrflow_link_refusal(url, batch->settings->link_hosts,
											  &by_name);

	if (refusal == NULL)
	{
		BatchRequest *request = make_batch_request(batch, element, url);

		request->target = by_name ? HRFLOW_TO_LINK : HRFLOW_TO_GUARDED_LINK;
		if (section != NULL)
			request->section = MemoryContextStrdup(batch->request_context,
												   section);
		request->item = item;
		dlist_push_tail(&batch->links, &request->node);
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

		put_outcome(batch, element, &outcome);
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
	bool		unasked = false;

	if (!methods->make_request(batch->source, element, &wanted, &problem,
							   &unasked))
		put_result(batch, element, &problem, unasked);
	else if (methods->is_links)
		queue_link(batch, element, wanted.url, NULL, 0);
	else
	{
		bool		is_post = wanted.body != NULL;
		BatchRequest *request = make_batch_request(batch, element,
												   is_post ? wanted.body :
												   wanted.url);

		request->post_url = is_post ? wanted.url : NULL;
		send_batch_request(batch, request);
	}

	MemoryContextSwitchTo(old);
	MemoryContextReset(batch->reply_context);
}

/*
 * Keep the transport busy.  Texts can be long: at least one is asked for, and
 * no more than the bodies of replies may take.
 */
static void
refill_transport(Batch *batch)
{
	int			room;

	send_links(batch);
	room = hrflow_transport_room(batch->transport);
	while (room > 0 && batch->next < batch->source->nelements &&
		   batch->pending < HRFLOW_MAX_BUFFERED)
	{
		int			element = batch->next++;

		if (is_repeated_element(batch, element))
			continue;
		ask_for_element(batch, element);
		send_links(batch);
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
		case HRFLOW_OVER_QUOTA:
		case HRFLOW_RATE_LIMITED:
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
 * Ask for nothing more, because of this result.
 */
static void
refuse_rest(Batch *batch, const HrflowResult *result)
{
	HrflowResult *refusal = &batch->summary->refusal;

	*refusal = *result;
	if (result->detail != NULL)
		refusal->detail = MemoryContextStrdup(batch->request_context,
											  result->detail);
	batch->summary->refused = true;
	hrflow_transport_stop(batch->transport);
}

/*
 * Note what the API answered to an element.
 */
static void
note_answer(Batch *batch, int element, const HrflowResult *result)
{
	HrflowBatchSummary *summary = batch->summary;

	for (int i = element; i >= 0; i = next_equal_element(batch, i))
		summary->nanswered++;
	summary->any_ok |= result->status == HRFLOW_OK;
	if (is_refusal_of_all(batch, element, result) && !summary->refused)
		refuse_rest(batch, result);
}

/*
 * Have the links in a profile's data fetched.
 */
static void
queue_links_of_answer(Batch *batch, int element, HrflowResult *result)
{
	Jsonb	   *fields = batch->source->methods->fields(batch->source, element);
	List	   *links;
	ListCell   *cell;

	if (!hrflow_links_collect(result->data, fields, batch->settings->api_key,
							  &links, &result->detail))
		result->status = HRFLOW_INVALID_REPLY;
	if (result->status != HRFLOW_OK || links == NIL)
		put_result(batch, element, result, false);
	else
	{
		foreach(cell, links)
		{
			HrflowLink *link = lfirst(cell);

			queue_link(batch, element, link->url, link->section, link->item);
		}
	}
}

/*
 * Take the reply to one try.  Returns whether the request will be retried.
 */
static bool
take_reply(Batch *batch, HrflowReply *reply)
{
	BatchRequest *request = reply->tag;
	bool		is_link = HRFLOW_IS_LINK(reply->target);
	HrflowResult result;

	if (reply->stopped)
	{
		result = reply->expired ? time_over : batch->summary->refusal;
		result.is_link = is_link;
		result.http_status = 0;
		put_result_of_request(batch, request, &result, true);
		return false;
	}

	if (is_link)
		hrflow_response_parse_vector(reply, &result);
	else
		hrflow_response_parse(reply, batch->source->methods->endpoint,
							  batch->settings->api_key, &result);
	if (hrflow_transport_retry(batch->transport, reply, result.status,
							   result.transient))
		return true;

	if (!is_link)
		note_answer(batch, request->element, &result);
	if (!is_link && result.status == HRFLOW_OK &&
		batch->sink->methods->follows_links && result.data != NULL)
		queue_links_of_answer(batch, request->element, &result);
	else
		put_result_of_request(batch, request, &result, false);
	return false;
}

/*
 * Take the reply to one try, and give it back unless the request is retried.
 */
static void
process_reply(Batch *batch, HrflowReply *reply)
{
	MemoryContext old = MemoryContextSwitchTo(batch->reply_context);
	BatchRequest *request = reply->tag;

	if (!take_reply(batch, reply))
	{
		hrflow_transport_release(batch->transport, reply);
		free_batch_request(batch, request);
	}
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

	late.is_link = true;
	while (!dlist_is_empty(&batch->links))
	{
		dlist_node *node = dlist_pop_head_node(&batch->links);
		BatchRequest *request = dlist_container(BatchRequest, node, node);

		put_result_of_request(batch, request, &late, true);
		MemoryContextReset(batch->reply_context);
		free_batch_request(batch, request);
	}
}

/*
 * Hand out the elements that were not asked for.
 */
static void
put_unasked_elements(Batch *batch)
{
	HrflowResult rest = batch->summary->refusal;

	rest.http_status = 0;
	rest.is_link = batch->source->methods->is_links;
	for (; batch->next < batch->source->nelements; batch->next++)
	{
		if (is_repeated_element(batch, batch->next))
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
 * Ask for all elements.
 */
static void
ask_for_all(Batch *batch, int time_limit)
{
	HrflowBatchSummary *summary = batch->summary;
	HrflowReply *reply;

	batch->transport = hrflow_transport_begin(batch->settings, time_limit);
	for (;;)
	{
		bool		expired;

		refill_transport(batch);
		reply = hrflow_transport_next(batch->transport);
		expired = hrflow_transport_expired(batch->transport);
		if (reply == NULL && (batch->next >= batch->source->nelements ||
							  summary->refused || expired))
			break;
		if (expired && !summary->refused)
			summary->refusal = time_over;
		if (reply != NULL)
			process_reply(batch, reply);
	}
	hrflow_transport_end(batch->transport);

	if (summary->refused && batch->sink->methods->refused != NULL)
		batch->sink->methods->refused(batch->sink, summary);
	put_unsent_links(batch);
	put_unasked_elements(batch);
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
	if (source->nelements == 0)
		return;

	dlist_init(&batch.links);
	batch.reply_context = AllocSetContextCreate(CurrentMemoryContext,
												"hrflow_embed reply",
												ALLOCSET_DEFAULT_SIZES);
	batch.request_context = AllocSetContextCreate(CurrentMemoryContext,
												  "hrflow_embed requests",
												  ALLOCSET_DEFAULT_SIZES);

	hrflow_context_push(&context, add_batch_context, &batch);

	chain_equal_elements(&batch);
	ask_for_all(&batch, time_limit);

	hrflow_context_pop(&context);
	if (summary->refusal.detail != NULL)
		summary->refusal.detail = pstrdup(summary->refusal.detail);
	MemoryContextDelete(batch.reply_context);
	MemoryContextDelete(batch.request_context);
}
