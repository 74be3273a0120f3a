/*-------------------------------------------------------------------------
 *
 * suspects.c
 *		Decides whether the failures of profiles have a common cause, such as
 *		an outage or a wrong setting.
 *
 * Profiles that fail for the same reason are suspects until another profile
 * rules out a common cause, or until there are enough of them to stop the run.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "store/refresh.h"
#include "utils/memutils.h"

/*
 * Minimum number of consecutive requests that must fail for the same reason
 * before a run concludes that the cause is not specific to the profiles.
 * While requests are in flight, at least "batch_size" failures are required as
 * well, but no more than HRFLOW_MAX_WASTED if a setting may be wrong.  If the
 * run has stopped because "patience" was exceeded, one is enough.
 */
#define MIN_OUTAGE 8

/*
 * The probable cause of a failure, if other profiles fail in the same way.
 */
typedef enum Sign
{
	SIGN_NONE,					/* no common cause, or no failure */
	SIGN_OF_NETWORK,			/* there are no usable replies */
	SIGN_OF_SETTING,			/* a setting or "fields" is wrong */
	SIGN_OF_VECTORS				/* the API has replied, but its replies lead
								 * to no usable vector */
} Sign;

/*
 * Return the probable cause of a profile's failure.  If the API has returned a
 * link, but the link's host replies with an error, that is SIGN_OF_VECTORS,
 * unless the error says that the host is down or overloaded.  A profile that
 * has other vectors, which must be stored soon, is no sign that none can be
 * fetched.
 */
static Sign
sign_of(const HrflowProfile *profile)
{
	Sign		sign_of_vectors = profile->vectors == NIL ? SIGN_OF_VECTORS :
	SIGN_NONE;

	switch (profile->status)
	{
		case HRFLOW_CONNECT_FAILED:
		case HRFLOW_CONNECTION_LOST:
		case HRFLOW_TIMEOUT:
			return SIGN_OF_NETWORK;
		case HRFLOW_INVALID_REPLY:
		case HRFLOW_HTTP_ERROR:
			return profile->is_link && !profile->is_down ? sign_of_vectors :
				SIGN_OF_NETWORK;
		case HRFLOW_LINK_REFUSED:
		case HRFLOW_INVALID_REQUEST:
			return SIGN_OF_SETTING;
		case HRFLOW_LINK_EXPIRED:
		case HRFLOW_NO_VECTOR:	/* the link's host replied, but without a
								 * vector */
		case HRFLOW_TOO_LARGE:
		case HRFLOW_INVALID_VECTOR:
			return sign_of_vectors;
		case HRFLOW_RATE_LIMITED:
			return profile->is_link ? SIGN_OF_NETWORK : SIGN_NONE;
		default:
			return SIGN_NONE;
	}
}

/*
 * Would a reply of the API that a profile is unknown rule out that the failure
 * of another profile has a common cause?  It shows that the API is available,
 * but not that the settings, the links or the vectors are right.
 */
static bool
is_of_api(const HrflowProfile *profile)
{
	return sign_of(profile) == SIGN_OF_NETWORK && !profile->is_link;
}

/*
 * Do the failures of two profiles indicate the same cause?
 */
static bool
have_met_the_same(const HrflowProfile *a, const HrflowProfile *b)
{
	return sign_of(a) == sign_of(b) &&
		(sign_of(a) != SIGN_OF_SETTING ||
		 (a->status == b->status &&
		  (a->status != HRFLOW_INVALID_REQUEST ||
		   strcmp(a->error, b->error) == 0)));
}

/*
 * Do not attribute the failure of a profile to the profile, because it was
 * caused by an outage.  Failures that are a SIGN_OF_VECTORS are still
 * attributed to it.
 */
static void
postpone_in_outage(HrflowProfile *profile)
{
	Sign		sign = sign_of(profile);

	profile->is_postponed = sign != SIGN_OF_VECTORS;
	profile->is_host_down = sign == SIGN_OF_NETWORK && profile->is_link;
}

/*
 * Move all suspects to the list of profiles to be written.  If "is_outage",
 * their failures are not attributed to the profiles, except failures that are
 * a SIGN_OF_VECTORS.
 */
static void
clear_suspects(HrflowRun *run, bool is_outage)
{
	while (!dlist_is_empty(&run->suspects))
	{
		HrflowProfile *profile = dlist_head_element(HrflowProfile, node,
													&run->suspects);

		if (is_outage)
			postpone_in_outage(profile);
		hrflow_state_arrive(run, profile);
	}
	run->nsuspects = 0;
}

/*
 * Stop the run because all suspects failed for the same reason, and there were
 * no other replies, so the failures are not specific to the profiles.
 * However, failures that are a SIGN_OF_VECTORS are still attributed to the
 * profiles, because the API has replied for each profile, and the replies were
 * paid for.
 */
static void
note_outage(HrflowRun *run)
{
	HrflowProfile *profile = dlist_head_element(HrflowProfile, node,
												&run->suspects);
	HrflowResult result = {
		.endpoint = run->kind->asked.endpoint,
		.status = profile->status,
		.is_link = profile->is_link
	};
	MemoryContext old = MemoryContextSwitchTo(run->context);

	run->is_outage = run->is_stopping = true;
	run->stop_reason = psprintf("%s; %s",
								sign_of(profile) == SIGN_OF_SETTING ?
								"all profiles failed in the same way" :
								sign_of(profile) == SIGN_OF_VECTORS ?
								"no profile could be fetched completely" :
								profile->is_link ?
								"the links' host sent no usable reply" :
								"the API sent no usable reply",
								profile->error);
	if (sign_of(profile) == SIGN_OF_VECTORS)
		run->stop_detail = _("The API has replied for these profiles, so their \"attempts\" were incremented.");
	run->stop_hint = hrflow_error_hint(&result);
	run->stop = HRFLOW_STOP_OUTAGE;
	run->stop_code = hrflow_error_code(profile->status);
	MemoryContextSwitchTo(old);
	clear_suspects(run, true);
}

/*
 * Did the end of the run abandon a request for a profile after the API had at
 * least HRFLOW_BUDGET_GRACE to reply?
 */
static bool
is_slow(const HrflowProfile *profile)
{
	return profile->unasked && profile->sent_at != 0 &&
		(profile->status == HRFLOW_OK || profile->status == HRFLOW_TIMEOUT) &&
		hrflow_clock_now() - profile->sent_at >= HRFLOW_BUDGET_GRACE;
}

/*
 * Let a slow profile be postponed, with an error.  Otherwise each run would
 * begin with the same profiles if none of them were answered in time, and
 * would never request any others.
 */
static void
postpone_slow(HrflowRun *run, HrflowProfile *profile)
{
	MemoryContext old = MemoryContextSwitchTo(profile->context);
	HrflowResult result = {
		.endpoint = run->kind->asked.endpoint,
		.status = HRFLOW_TIMEOUT,
		.is_link = profile->is_link,
		.detail = "The run ended before there was an answer."
	};

	profile->unasked = false;
	profile->is_postponed = true;
	profile->status = result.status;
	profile->error = hrflow_error_describe(&result);
	MemoryContextSwitchTo(old);
	hrflow_state_arrive(run, profile);
}

/*
 * Called when all requests for a profile are complete, or have been given up.
 * Moves the profile to the list of profiles to be written, unless its vectors
 * are held back because of their dimension, or its failure may be caused by an
 * outage.  An outage is ruled out if another profile has succeeded, or failed
 * for a different reason, since this one was requested; but see is_of_api().
 */
void
hrflow_suspects_land(HrflowRun *run, HrflowProfile *profile)
{
	Sign		sign = profile->unasked ? SIGN_NONE : sign_of(profile);
	HrflowProfile *suspect = dlist_is_empty(&run->suspects) ? NULL :
	dlist_head_element(HrflowProfile, node, &run->suspects);
	int64		ruled_out_at;

	run->nforbidden += profile->status == HRFLOW_FORBIDDEN && !profile->is_copy;
	if (hrflow_model_hold(run, profile))
	{
		run->alive_at = run->usable_at = run->answered_at = hrflow_clock_now();
		clear_suspects(run, false);
		return;
	}
	if (is_slow(profile) && !run->is_unanswered)
	{
		postpone_slow(run, profile);
		return;
	}
	if (profile->unasked)
	{
		profile->is_postponed = run->is_unanswered;
		hrflow_state_arrive(run, profile);
		return;
	}
	if (sign != SIGN_OF_NETWORK)
		run->answered_at = hrflow_clock_now();
	if (run->is_outage && sign != SIGN_NONE)
	{
		postpone_in_outage(profile);
		hrflow_state_arrive(run, profile);
		return;
	}
	if (profile->status == HRFLOW_NOT_FOUND)
	{
		run->alive_at = hrflow_clock_now();
		if (suspect != NULL && is_of_api(suspect))
			clear_suspects(run, false);
		hrflow_state_arrive(run, profile);
		return;
	}
	ruled_out_at = is_of_api(profile) ? run->alive_at : run->usable_at;
	if (sign != SIGN_NONE && ruled_out_at < profile->asked_at &&
		(suspect == NULL || have_met_the_same(profile, suspect)))
	{
		dlist_delete(&profile->node);
		dlist_push_tail(&run->suspects, &profile->node);

		/* Count profiles that share a request once. */
		run->nsuspects += !profile->is_copy;
		if (run->stop_reason == NULL && run->nsuspects >= MIN_OUTAGE &&
			run->nsuspects >= (sign == SIGN_OF_SETTING ?
							   Min(run->batch_size, HRFLOW_MAX_WASTED) :
							   run->batch_size))
			note_outage(run);
		return;
	}
	if (sign == SIGN_NONE || ruled_out_at < profile->asked_at)
		run->alive_at = run->usable_at = hrflow_clock_now();
	clear_suspects(run, false);
	hrflow_state_arrive(run, profile);
}

/*
 * Called when no requests are in flight, to decide about the suspects.  At
 * least MIN_OUTAGE failed requests mean an outage.  Fewer failures are
 * considered specific to the profiles, because a store with few profiles would
 * otherwise never record a failure.  However, if the run is stopping for any
 * reason, they are treated as in an outage, because there was no time for
 * other replies.  If it is stopping because there were no replies, an outage
 * is reported.  The reason for an earlier stop is kept.
 */
void
hrflow_suspects_settle(HrflowRun *run)
{
	if (run->stop_reason != NULL)
		;						/* there is another reason for the stop */
	else if (run->nsuspects >= MIN_OUTAGE ||
			 (run->nsuspects > 0 && run->is_unanswered))
		note_outage(run);
	else if (run->is_unanswered)
	{
		MemoryContext old = MemoryContextSwitchTo(run->context);

		run->stop_reason = psprintf("the API did not reply within %d ms",
									run->patience);
		run->stop = HRFLOW_STOP_OUTAGE;
		run->stop_code = hrflow_error_code(HRFLOW_TIMEOUT);
		MemoryContextSwitchTo(old);
	}
	clear_suspects(run, run->is_stopping);
}
