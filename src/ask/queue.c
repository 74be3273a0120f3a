/*-------------------------------------------------------------------------
 *
 * queue.c
 *		Keeps the requests of a batch that have no final result yet.
 *
 * Most of these requests have been submitted to the transport.  Links that
 * wait to be submitted are in a queue until the transport has room for them.
 * Requests that have been parked are in the lists of outage.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"

void
hrflow_queue_init(HrflowQueue *queue, MemoryContext context,
				  HrflowTransport *transport)
{
	memset(queue, 0, sizeof(*queue));
	queue->context = context;
	queue->transport = transport;
	dlist_init(&queue->links);
}

/*
 * Create a request for an element or a link: a POST if there is a body,
 * otherwise a GET.  The URL of a POST is not copied, because all elements
 * share it, so it must live as long as the request.  The body of a POST and
 * the URL of a GET are copied.
 */
static HrflowBatchRequest *
make_batch_request(HrflowQueue *queue, int element, HrflowTarget target,
				   const char *url, const char *body)
{
	const char *copied = body != NULL ? body : url;
	size_t		size = strlen(copied) + 1;
	HrflowBatchRequest *request;

	request = MemoryContextAlloc(queue->context,
								 offsetof(HrflowBatchRequest, copy) + size);
	memset(request, 0, offsetof(HrflowBatchRequest, copy));
	request->target = target;
	request->element = element;
	request->size = size;
	memcpy(request->copy, copied, size);
	request->url = body != NULL ? url : request->copy;
	request->body = body != NULL ? request->copy : NULL;
	queue->pending += size;
	return request;
}

static void
submit_batch_request(HrflowQueue *queue, HrflowBatchRequest *request)
{
	if (request->body != NULL)
		hrflow_transport_post(queue->transport, request->url, request->body,
							  request);
	else
		hrflow_transport_submit(queue->transport, request->target,
								request->url, request);
}

/*
 * Submit a request for an element to the transport.
 */
void
hrflow_queue_add_element(HrflowQueue *queue, int element,
						 const HrflowElementRequest *wanted)
{
	submit_batch_request(queue,
						 make_batch_request(queue, element, HRFLOW_TO_API,
											wanted->url, wanted->body));
}

/*
 * Queue a link, to be submitted when the transport has room for it.  "by_name"
 * is the value that hrflow_link_refusal() has set; "links" is NULL if the
 * element is itself the link.
 */
void
hrflow_queue_add_link(HrflowQueue *queue, int element, const HrflowLink *link,
					  bool by_name, HrflowOpenLinks *links)
{
	HrflowTarget target = by_name ? HRFLOW_TO_LINK : HRFLOW_TO_GUARDED_LINK;
	HrflowBatchRequest *request = make_batch_request(queue, element, target,
													 link->url, NULL);

	if (link->section != NULL)
		request->section = MemoryContextStrdup(queue->context, link->section);
	request->item = link->item;
	request->links = links;
	dlist_push_tail(&queue->links, &request->node);
}

/*
 * Submit a request to the transport again, or queue it if it is for a link.
 */
void
hrflow_queue_resend(HrflowQueue *queue, HrflowBatchRequest *request)
{
	request->resent_at = hrflow_clock_now();
	if (HRFLOW_IS_LINK(request->target))
		dlist_push_tail(&queue->links, &request->node);
	else
		submit_batch_request(queue, request);
}

/*
 * Remove and return the first queued link, or NULL if there is none.
 */
HrflowBatchRequest *
hrflow_queue_take_link(HrflowQueue *queue)
{
	if (dlist_is_empty(&queue->links))
		return NULL;
	return dlist_container(HrflowBatchRequest, node,
						   dlist_pop_head_node(&queue->links));
}

/*
 * Submit queued links while the transport has room.  A reply can have a
 * thousand links, and there can be as many replies as requests in flight.  In
 * the transport, each of these links would take 6 kB.
 */
void
hrflow_queue_send_links(HrflowQueue *queue)
{
	int			room;
	HrflowBatchRequest *request;

	if (dlist_is_empty(&queue->links))
		return;
	room = hrflow_transport_room_for_links(queue->transport);
	while (room-- > 0 && (request = hrflow_queue_take_link(queue)) != NULL)
		submit_batch_request(queue, request);
}

static void
free_failure(HrflowBatchRequest *request)
{
	if (request->failure == NULL)
		return;
	if (request->failure->detail != NULL)
		pfree(request->failure->detail);
	pfree(request->failure);
}

/*
 * Record the result of the last attempt of a request in request->failure, in
 * place of any earlier one.
 */
void
hrflow_queue_keep_failure(HrflowQueue *queue, HrflowBatchRequest *request,
						  const HrflowResult *result)
{
	MemoryContext old = MemoryContextSwitchTo(queue->context);

	free_failure(request);
	request->failure = palloc(sizeof(HrflowResult));
	*request->failure = *result;
	if (result->detail != NULL)
		request->failure->detail = pstrdup(result->detail);
	MemoryContextSwitchTo(old);
}

/*
 * Free a request that has its final result.
 */
void
hrflow_queue_free(HrflowQueue *queue, HrflowBatchRequest *request)
{
	queue->pending -= request->size;
	if (request->section != NULL)
		pfree(request->section);
	free_failure(request);
	pfree(request);
}
