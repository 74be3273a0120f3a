/*-------------------------------------------------------------------------
 *
 * queue.c
 *		The requests of a batch that have no result yet.
 *
 * Most are in the transport.  The others are waiting here: links until there
 * is room for them, and requests all of whose attempts failed until the outage
 * is over.
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
	dlist_init(&queue->parked[false]);
	dlist_init(&queue->parked[true]);
}

/*
 * Create a request for an element.  "sent" is its URL, or the body to POST.
 */
HrflowBatchRequest *
hrflow_queue_make(HrflowQueue *queue, int element, const char *sent)
{
	size_t		size = strlen(sent) + 1;
	HrflowBatchRequest *request;

	request = MemoryContextAlloc(queue->context,
								 offsetof(HrflowBatchRequest, sent) + size);
	memset(request, 0, offsetof(HrflowBatchRequest, sent));
	request->target = HRFLOW_TO_API;
	request->element = element;
	request->size = size;
	memcpy(request->sent, sent, size);
	queue->pending += size;
	return request;
}

/*
 * Free a request that has its result.
 */
void
hrflow_queue_free(HrflowQueue *queue, HrflowBatchRequest *request)
{
	queue->pending -= request->size;
	if (request->section != NULL)
		pfree(request->section);
	if (request->failure != NULL)
	{
		if (request->failure->detail != NULL)
			pfree(request->failure->detail);
		pfree(request->failure);
	}
	pfree(request);
}

/*
 * Submit a request to the transport.
 */
void
hrflow_queue_send(HrflowQueue *queue, HrflowBatchRequest *request)
{
	if (request->post_url != NULL)
		hrflow_transport_post(queue->transport, request->post_url,
							  request->sent, request);
	else
		hrflow_transport_submit(queue->transport, request->target,
								request->sent, request);
}

/*
 * Queue a link, to be sent when there is room for it.
 */
void
hrflow_queue_add_link(HrflowQueue *queue, HrflowBatchRequest *request)
{
	dlist_push_tail(&queue->links, &request->node);
}

/*
 * Remove and return the first queued link, or NULL.
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
 * Send queued links while there is room.  An answer can have a thousand links,
 * and there can be as many answers as requests in flight; in the transport
 * each request would take 6 kB.
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
		hrflow_queue_send(queue, request);
}

/*
 * Set is_last and is_spoilt of an outcome that is about to be passed to the
 * sink.  "links" is NULL unless the outcome is that of an answer's link.
 */
void
hrflow_queue_close_link(HrflowOpenLinks *links, HrflowOutcome *outcome)
{
	outcome->is_last = links == NULL || --links->n == 0;
	if (links == NULL)
		return;
	outcome->is_spoilt = links->any_failed;
	links->any_failed |= outcome->result->status != HRFLOW_OK;
	if (outcome->is_last)
		pfree(links);
}

/*
 * Park a request all of whose attempts have failed, and save its result.
 */
void
hrflow_queue_park(HrflowQueue *queue, HrflowBatchRequest *request,
				  const HrflowResult *result)
{
	MemoryContext old = MemoryContextSwitchTo(queue->context);

	if (request->failure == NULL)
		request->failure = palloc0(sizeof(HrflowResult));
	else if (request->failure->detail != NULL)
		pfree(request->failure->detail);
	*request->failure = *result;
	if (result->detail != NULL)
		request->failure->detail = pstrdup(result->detail);
	MemoryContextSwitchTo(old);

	dlist_push_tail(&queue->parked[result->is_link], &request->node);
	queue->nparked[result->is_link]++;
}

/*
 * Remove and return the request that was parked first.  There must be one.
 */
HrflowBatchRequest *
hrflow_queue_unpark(HrflowQueue *queue, bool is_link)
{
	queue->nparked[is_link]--;
	return dlist_container(HrflowBatchRequest, node,
						   dlist_pop_head_node(&queue->parked[is_link]));
}

/*
 * Send the request that was parked first again.
 */
void
hrflow_queue_resend(HrflowQueue *queue, bool is_link)
{
	HrflowBatchRequest *request = hrflow_queue_unpark(queue, is_link);

	request->resent_at = hrflow_clock_now();
	if (is_link)
		hrflow_queue_add_link(queue, request);
	else
		hrflow_queue_send(queue, request);
}
