/*-------------------------------------------------------------------------
 *
 * refusal.c
 *		Detects that all elements of a batch are refused.
 *
 * This is the case if an answer applies to all elements, for example because
 * the quota is used up, or if the first HRFLOW_MAX_WASTED elements have all
 * been refused because of something that the requests have in common: for
 * example, a field that the API does not know, or links that link_hosts does
 * not allow.  It is also assumed if this many elements in succession, first or
 * not, have failed with server errors, such as HTTP 500, after all attempts;
 * see hrflow_refusal_count_outcome() for further conditions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"

/*
 * Minimum time, in microseconds, for which all elements must have failed with
 * a server error for a batch to be stopped, if an earlier element had another
 * outcome or the elements are links.  It is as long as an outage that stops a
 * batch; see outage.c.
 */
#define ERRORS_LIMIT (10 * HRFLOW_SEC)

/*
 * Start watching a batch.  If "is_watched" is false, only answers that apply
 * to all elements are considered.  If "on_trial" is false, refusals of the
 * first elements are ignored, except server errors.
 */
void
hrflow_refusal_init(HrflowRefusal *refusal, bool is_watched, bool on_trial)
{
	memset(refusal, 0, sizeof(*refusal));
	refusal->is_watched = is_watched;
	refusal->on_trial = on_trial;
}

/*
 * Return whether another element may be requested.  While "on_trial" is true,
 * no more elements may be requested than are needed to decide whether to stop
 * the batch.
 */
bool
hrflow_refusal_may_ask(const HrflowRefusal *refusal)
{
	return !refusal->on_trial || refusal->nasked < HRFLOW_MAX_WASTED;
}

/*
 * Count an element that is requested.
 */
void
hrflow_refusal_count_asked(HrflowRefusal *refusal)
{
	refusal->nasked++;
}

/*
 * Does this result mean that all other elements would be refused, too?  A
 * single HRFLOW_FORBIDDEN may concern only its element, but a second one is
 * taken to concern all.  The result must have been counted in nforbidden.
 */
static bool
is_refusal_of_all(const HrflowRefusal *refusal, HrflowSource *source,
				  int element, const HrflowResult *result)
{
	const HrflowSourceMethods *methods = source->methods;

	switch (result->status)
	{
		case HRFLOW_INVALID_SOURCE:
			return methods->reject_hrflow_source == NULL ||
				methods->reject_hrflow_source(source, element);
		case HRFLOW_FORBIDDEN:
			return refusal->nforbidden > 1;
		default:
			return hrflow_status_concerns_all(result->status);
	}
}

/*
 * Record the final result of an element's request to the API.  Returns whether
 * the result applies to all elements.
 */
bool
hrflow_refusal_count_answer(HrflowRefusal *refusal, HrflowSource *source,
							int element, const HrflowResult *result)
{
	if (result->status == HRFLOW_FORBIDDEN)
		refusal->nforbidden++;
	return is_refusal_of_all(refusal, source, element, result);
}

static bool
is_about_request(const HrflowResult *result)
{
	return result->status == HRFLOW_LINK_REFUSED ||
		(result->status == HRFLOW_INVALID_REQUEST && result->http_status != 0);
}

/*
 * Did the request fail with HTTP 500 or another transient HTTP error?  The
 * caller must have excluded errors that an outage could cause.
 */
static bool
is_server_error(const HrflowResult *result)
{
	return result->status == HRFLOW_HTTP_ERROR && result->transient;
}

/*
 * Is this refusal the same as that of the previous elements?  Details are not
 * compared, because they can differ although the reason is the same: they may
 * contain a link, the number of attempts, or an identifier that the server
 * repeats.
 */
static bool
is_same_refusal(const HrflowRefusal *refusal, const HrflowResult *result)
{
	return result->status == refusal->status &&
		(result->http_status == refusal->http_status || is_server_error(result));
}

/*
 * Begin to count refusals again, after an outcome that is not the same refusal
 * as the previous ones.
 */
static void
restart_count(HrflowRefusal *refusal)
{
	refusal->on_trial = false;
	refusal->nrefused = 0;
}

/*
 * Record an outcome with HRFLOW_EVIDENCE_ALL.  "nunasked" is the number of
 * elements that remain to be requested.  Returns whether enough elements have
 * been refused for the same reason, without any other outcome, to stop the
 * batch.
 *
 * Failures that could be caused by an outage show nothing about the requests;
 * outage.c decides about them.  Server errors stop a batch only if elements
 * remain to be requested.  Unless "on_trial" is still true, the errors must
 * also have lasted for some time, because all requests in flight may fail
 * within a moment.
 */
bool
hrflow_refusal_count_outcome(HrflowRefusal *refusal,
							 const HrflowResult *result, bool is_last,
							 int nunasked)
{
	if (!refusal->is_watched || hrflow_outage_could_cause(result))
		return false;
	if (refusal->nrefused > 0 && !is_same_refusal(refusal, result))
		restart_count(refusal);
	if (!is_server_error(result) &&
		!(refusal->on_trial && is_about_request(result)))
	{
		restart_count(refusal);
		return false;
	}
	refusal->status = result->status;
	refusal->http_status = result->http_status;
	if (refusal->nrefused == 0)
		refusal->refused_since = hrflow_clock_now();
	if (is_last)
		refusal->nrefused++;
	if (refusal->nrefused < HRFLOW_MAX_WASTED)
		return false;
	return !is_server_error(result) ||
		(nunasked > 0 &&
		 (refusal->on_trial ||
		  hrflow_clock_now() - refusal->refused_since > ERRORS_LIMIT));
}
