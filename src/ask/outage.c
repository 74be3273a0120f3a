/*-------------------------------------------------------------------------
 *
 * outage.c
 *		Detects outages during a batch, and parks requests until they end.
 *
 * A server is the API or, taken together, the hosts of the links.  It is
 * considered down after MIN_OUTAGE consecutive attempts have failed in a way
 * that an outage would explain.  Then no further elements are requested,
 * except as probes.
 *
 * A request whose last attempt has failed in this way is parked, because it
 * may be unclear whether the server is down.  Exceptions are a request that
 * must not be sent twice, a request that fails again after the server was
 * found to be up, and all requests once the batch has ended early.  When an
 * attempt shows that the server is up, the requests parked for it are resent
 * if it was down; else they have failed for reasons of their own.
 *
 * When no request is in flight, a parked request is resent as a probe, unless
 * too few elements remain to detect an outage.  The probe is sent after
 * PROBE_PAUSE, even if the reply specified a longer Retry-After; but if the
 * account is paused, a probe of the API waits until the pause ends.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "miscadmin.h"
#include "utils/memutils.h"

/*
 * Number of consecutive attempts that must fail before we assume an outage.  A
 * batch does not wait for the end of an outage if no elements remain to be
 * requested, or if these and the parked requests are fewer than this number.
 */
#define MIN_OUTAGE 8

/*
 * If an outage has lasted longer than this, in microseconds, stop the batch
 * instead of waiting for the end of the outage.  It is twice the default of
 * hrflow_embed.connect_timeout.
 */
#define OUTAGE_LIMIT (10 * HRFLOW_SEC)

/*
 * Pause before a probe, in microseconds.  This is in addition to the
 * transport's pauses between attempts.
 */
#define PROBE_PAUSE (250 * HRFLOW_MSEC)

/*
 * Do all links of a source have the same origin?  Links that are refused are
 * ignored, because there are no requests for them.  "context" is reset.
 */
static bool
is_same_for_all(HrflowSource *source, MemoryContext context)
{
	MemoryContext old = CurrentMemoryContext;
	char	   *first = NULL;
	bool		result = true;

	for (int i = 0; i < source->nelements && result; i++)
	{
		HrflowElementRequest request = {0};
		HrflowResult problem = {0};
		bool		by_name;

		if (i % 10000 == 0)
			CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(context);
		if (source->methods->make_request(source, i, &request, &problem) ==
			HRFLOW_ELEMENT_ASKED &&
			hrflow_link_refusal(request.url, source->settings->link_hosts,
								&by_name) == NULL)
		{
			if (first == NULL)
				first = MemoryContextStrdup(old, request.url);
			result = hrflow_origin_is_same(first, request.url);
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	return result;
}

/*
 * Can outages be detected in a batch?  They can unless the elements are links
 * to several hosts, of which one may be down.  "context" is reset.
 */
bool
hrflow_outage_can_watch(HrflowSource *source, MemoryContext context)
{
	return !source->methods->is_links || is_same_for_all(source, context);
}

/*
 * Start watching a batch for outages.  If "is_watched" is false, no outage is
 * detected, and no request is parked.
 */
void
hrflow_outage_init(HrflowOutage *outage, HrflowQueue *queue, bool is_watched)
{
	memset(outage, 0, sizeof(*outage));
	outage->queue = queue;
	outage->is_watched = is_watched;
	for (int server = 0; server < HRFLOW_NSERVERS; server++)
		dlist_init(&outage->servers[server].parked);
}

/*
 * Could an outage have caused this result?  Timeouts, which include HTTP 408,
 * count.  HTTP 502 to 504 count, because gateways send them if the server
 * behind them is down.  HTTP 500 and other server errors do not count, because
 * a single element can cause them.
 */
bool
hrflow_outage_could_cause(const HrflowResult *result)
{
	switch (result->status)
	{
		case HRFLOW_CONNECT_FAILED:
		case HRFLOW_CONNECTION_LOST:
		case HRFLOW_TIMEOUT:
			return true;
		case HRFLOW_HTTP_ERROR:
			return result->http_status >= 502 && result->http_status <= 504;
		default:
			return false;
	}
}

/*
 * Does this result show neither that the server is down nor that it is up?
 * Other server errors may be caused by the element, or by a partial outage.
 */
static bool
is_inconclusive(const HrflowResult *result)
{
	return result->status == HRFLOW_HTTP_ERROR && result->transient &&
		!hrflow_outage_could_cause(result);
}

/*
 * Have enough consecutive attempts failed for the server to be considered
 * down?
 */
static bool
is_down(const HrflowWatchedServer *server)
{
	return server->nfailures >= MIN_OUTAGE;
}

/*
 * Has the outage in which this attempt failed lasted too long?  An outage that
 * will not end by itself, such as one caused by an untrusted certificate, is
 * considered too long as soon as it is detected.  A timeout that is not
 * transient does not mean that the outage will not end: a connection can be
 * dead although the server is not.
 */
static bool
is_lasting(const HrflowWatchedServer *server, const HrflowResult *result,
		   int64 now)
{
	return is_down(server) &&
		((!result->transient && result->status != HRFLOW_TIMEOUT) ||
		 now - server->failing_since > OUTAGE_LIMIT);
}

/*
 * Return whether another element may be requested without waiting for the end
 * of an outage.
 */
bool
hrflow_outage_may_ask(const HrflowOutage *outage)
{
	for (int server = 0; server < HRFLOW_NSERVERS; server++)
	{
		if (is_down(&outage->servers[server]))
			return false;
	}
	return true;
}

/*
 * Return whether a request may be resent after all its attempts have failed.
 * A POST must not be resent if the API could have processed it.
 */
static bool
may_resend(const HrflowBatchRequest *request, const HrflowResult *result)
{
	return request->body == NULL ||
		(result->http_status == 0 && !result->was_sent);
}

/*
 * Return whether a request may be parked after all its attempts have failed.
 */
static bool
may_park(const HrflowOutage *outage, const HrflowBatchRequest *request,
		 const HrflowResult *result)
{
	const HrflowWatchedServer *server = &outage->servers[hrflow_server_of(result)];

	/* Park the request only if an outage could have caused its failure. */
	if (!outage->is_watched || !hrflow_outage_could_cause(result))
		return false;

	/*
	 * If the server was found to be up after this request had been resent,
	 * assume that the failure is specific to the request.
	 */
	if (request->resent_at != 0 && request->resent_at < server->answered_at)
		return false;
	return may_resend(request, result);
}

/*
 * Park a request all of whose attempts have failed, the last one with this
 * result.  Returns false if the request may not be parked, so that its failure
 * is final.
 */
bool
hrflow_outage_park(HrflowOutage *outage, HrflowBatchRequest *request,
				   const HrflowResult *result)
{
	HrflowWatchedServer *server = &outage->servers[hrflow_server_of(result)];

	if (!may_park(outage, request, result))
		return false;
	hrflow_queue_keep_failure(outage->queue, request, result);
	dlist_push_tail(&server->parked, &request->node);
	server->nparked++;
	return true;
}

/*
 * Remove and return the request that was parked first, or NULL if there is
 * none.
 */
HrflowBatchRequest *
hrflow_outage_unpark(HrflowOutage *outage, HrflowServer server)
{
	HrflowWatchedServer *watched = &outage->servers[server];

	if (watched->nparked == 0)
		return NULL;
	watched->nparked--;
	return dlist_container(HrflowBatchRequest, node,
						   dlist_pop_head_node(&watched->parked));
}

/*
 * Resend the request that was parked first.  Returns false if there is none.
 */
static bool
resend_parked(HrflowOutage *outage, HrflowServer server)
{
	HrflowBatchRequest *request = hrflow_outage_unpark(outage, server);

	if (request == NULL)
		return false;
	hrflow_queue_resend(outage->queue, request);
	return true;
}

/*
 * Count a failed attempt.  The outage is assumed to have begun when the first
 * attempt failed or, if the server was silent, at the time that
 * hrflow_failure_since() returns, whichever is earlier; but not before the
 * last answer.  The last answer itself is not taken as the beginning, because
 * there may have been no requests for some time after it, for example while
 * the account was paused.
 */
static void
count_failure(HrflowWatchedServer *server, const HrflowReply *reply,
			  const HrflowResult *result, int64 now)
{
	bool		was_silent = result->http_status == 0 &&
	result->status != HRFLOW_CONNECTION_LOST;
	int64		since = was_silent ? hrflow_failure_since(reply) : now;

	if (server->nfailures++ > 0)
		since = Min(since, server->failing_since);
	server->failing_since = Max(since, server->answered_at);
}

/*
 * Record the result of one attempt, before its reply is retried or released.
 * If it ends an outage, resend the requests that are parked for the server.
 * Returns the state of the server.
 */
HrflowOutageState
hrflow_outage_count_attempt(HrflowOutage *outage, const HrflowReply *reply,
							const HrflowResult *result)
{
	HrflowServer id = hrflow_server_of(result);
	HrflowWatchedServer *server = &outage->servers[id];
	int64		now = hrflow_clock_now();
	bool		was_down = is_down(server);

	if (!outage->is_watched)
		return HRFLOW_OUTAGE_NONE;
	if (hrflow_outage_could_cause(result))
	{
		count_failure(server, reply, result, now);
		return is_lasting(server, result, now) ? HRFLOW_OUTAGE_LASTING :
			HRFLOW_OUTAGE_POSSIBLE;
	}
	if (is_inconclusive(result))
		return is_lasting(server, result, now) ? HRFLOW_OUTAGE_LASTING :
			HRFLOW_OUTAGE_POSSIBLE;
	server->answered_at = now;
	server->nfailures = 0;
	while (was_down && resend_parked(outage, id))
		 /* resend all */ ;
	return HRFLOW_OUTAGE_NONE;
}

/*
 * When no request is in flight, should the batch wait for the end of an
 * outage?  It should if there may be one, because an attempt has failed since
 * the last answer or requests are parked, and if elements remain to be
 * requested that, together with the parked requests, are enough to tell an
 * outage from failures of individual elements.
 */
bool
hrflow_outage_should_wait(const HrflowOutage *outage, int nunasked)
{
	int			nwaiting = nunasked;
	bool		may_be_down = false;

	for (int server = 0; server < HRFLOW_NSERVERS; server++)
	{
		nwaiting += outage->servers[server].nparked;
		may_be_down |= outage->servers[server].nparked > 0 ||
			outage->servers[server].nfailures > 0;
	}
	return may_be_down && nunasked > 0 && nwaiting >= MIN_OUTAGE;
}

/*
 * Pause, and then resend one parked request as a probe.  Returns false if
 * there is none.
 */
bool
hrflow_outage_probe(HrflowOutage *outage)
{
	hrflow_transport_pause(outage->queue->transport, PROBE_PAUSE);
	return resend_parked(outage, HRFLOW_SERVER_LINKS) ||
		resend_parked(outage, HRFLOW_SERVER_API);
}
