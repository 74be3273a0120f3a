/*-------------------------------------------------------------------------
 *
 * health.c
 *		Tells when it is of no use to go on with a batch.
 *
 * That is when the API, or the links' host, has stopped answering, and when
 * every element from the first one on is refused for a reason that is the
 * request's: fields that the API does not know, or links that link_hosts does
 * not allow.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "utils/memutils.h"

/*
 * An outage that lasts this long ends the batch.  The default of
 * connect_timeout is half of it.
 */
#define OUTAGE_LIMIT (10 * HRFLOW_SEC)

/*
 * Watch a batch that begins now.  "context" must live as long.
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
 * Can this be the outcome of an outage?  The statuses of gateways whose server
 * is down are among them; 500 can be about the element.
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
 * Note the outcome of one try.  Returns whether the outage has lasted too
 * long; one that does not pass, such as a certificate that is not trusted, is
 * not waited for.  A time-out is not tried again, but may pass: a connection
 * can be dead although the server is not.
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
 * Have so many tries failed in a row that the API, or the links' host, may be
 * down?
 */
bool
hrflow_health_in_trouble(const HrflowHealth *health, bool is_link)
{
	return health->servers[is_link].nfailures >= HRFLOW_MIN_OUTAGE;
}

/*
 * May another element be asked for?  Until one has not been refused, only as
 * many are as it takes to see that all are.
 */
bool
hrflow_health_may_ask(const HrflowHealth *health)
{
	return !health->on_trial || health->nasked < HRFLOW_MAX_WASTED;
}

/*
 * Note that the API is asked for an element.
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
 * Is this the refusal that the elements before have met?
 */
static bool
is_same_refusal(const HrflowResult *first, const HrflowResult *result)
{
	/* A link's refusal names the link; the API's do not name the profile. */
	return result->status == first->status &&
		(result->status == HRFLOW_LINK_REFUSED ||
		 strcmp(result->detail, first->detail) == 0);
}

/*
 * Note what became of an element that the API was asked for, or of one of its
 * links.  Returns whether all have met this refusal, and are enough.
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
