/*-------------------------------------------------------------------------
 *
 * health.c
 *		Detects when it is pointless to continue a batch.
 *
 * That is the case if the API, or the host of the links, has stopped
 * answering, and if every element from the first one on is refused for a
 * reason that lies in the request: fields that the API does not know, or links
 * that link_hosts does not allow.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "utils/memutils.h"

/*
 * Stop the batch after an outage of this length.  It is twice the default of
 * connect_timeout.
 */
#define OUTAGE_LIMIT (10 * HRFLOW_SEC)

/*
 * Start watching a batch.  "context" must live as long as the batch.
 */
void
hrflow_health_init(HrflowHealth *health, MemoryContext context)
{
	memset(health, 0, sizeof(*health));
	health->context = context;
	health->on_trial = true;
	health->last_refused = -1;
	for (int i = 0; i < lengthof(health->servers); i++)
		health->servers[i].answered_at = hrflow_clock_now();
}

/*
 * Can this result be caused by an outage?  That includes the statuses of
 * gateways whose server is down, but not 500, which can be caused by a single
 * element.
 */
bool
hrflow_health_is_outage(const HrflowResult *result)
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
 * Record the result of one attempt.  Returns whether the outage, if there is
 * one, has lasted too long.  An outage that will not pass by itself, such as
 * an untrusted certificate, is considered too long immediately.  Timeouts are
 * not retried, but they can pass: a connection can be dead although the server
 * is not.
 */
bool
hrflow_health_note_try(HrflowHealth *health, const HrflowResult *result)
{
	HrflowServerHealth *server = &health->servers[result->is_link];
	int64		now = hrflow_clock_now();

	if (!hrflow_health_is_outage(result))
	{
		server->answered_at = now;
		server->nfailures = 0;
		return false;
	}
	server->nfailures++;
	return hrflow_health_in_trouble(health, result->is_link) &&
		((!result->transient && result->status != HRFLOW_TIMEOUT) ||
		 now - server->answered_at > OUTAGE_LIMIT);
}

/*
 * Have enough consecutive attempts failed that the API, or the host of the
 * links, may be down?
 */
bool
hrflow_health_in_trouble(const HrflowHealth *health, bool is_link)
{
	return health->servers[is_link].nfailures >= HRFLOW_MIN_OUTAGE;
}

/*
 * May another element be requested?  While all elements so far have been
 * refused, request no more than are needed to decide to stop.
 */
bool
hrflow_health_may_ask(const HrflowHealth *health)
{
	return !health->on_trial || health->nasked < HRFLOW_MAX_WASTED;
}

/*
 * Count an element requested from the API.
 */
void
hrflow_health_note_asked(HrflowHealth *health)
{
	health->nasked++;
}

static bool
is_about_request(const HrflowResult *result)
{
	return result->status == HRFLOW_LINK_REFUSED ||
		(result->status == HRFLOW_INVALID_REQUEST && result->http_status != 0);
}

/*
 * Is this the same refusal as that of the previous elements?
 */
static bool
is_same_refusal(const HrflowResult *first, const HrflowResult *result)
{
	/* The detail names the link, but never the profile. */
	return result->status == first->status &&
		(result->status == HRFLOW_LINK_REFUSED ||
		 strcmp(result->detail, first->detail) == 0);
}

/*
 * Record an outcome of an element that was requested from the API.  Returns
 * whether enough elements have been refused for the same reason, without any
 * other outcome, to stop the batch.
 */
bool
hrflow_health_note_outcome(HrflowHealth *health, int element,
						   const HrflowResult *result)
{
	if (!health->on_trial)
		return false;
	if (!is_about_request(result) ||
		(health->nrefused > 0 &&
		 !is_same_refusal(&health->refusal, result)))
	{
		health->on_trial = false;
		return false;
	}
	if (health->nrefused == 0)
	{
		health->refusal = *result;
		health->refusal.detail = MemoryContextStrdup(health->context,
													 result->detail);
	}
	if (element != health->last_refused)
		health->nrefused++;
	health->last_refused = element;
	return health->nrefused >= HRFLOW_MAX_WASTED;
}
