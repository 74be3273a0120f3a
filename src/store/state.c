/*-------------------------------------------------------------------------
 *
 * state.c
 *		What becomes of a profile after an answer, and when it is asked for again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "common/pg_prng.h"
#include "compat.h"
#include "store/refresh.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

/* The longest time after which a missing one is asked for again. */
#define MAX_MISSING_WAIT (30 * USECS_PER_DAY)

/* As many failures that are not the profiles', and nothing else, end a run. */
#define MIN_OUTAGE 8

/* How long those of such a batch have to wait. */
#define MIN_POSTPONEMENT USECS_PER_MINUTE
#define MAX_POSTPONEMENT USECS_PER_HOUR

static const char *const state_names[] = {
	[HRFLOW_STATE_DUE] = "due",
	[HRFLOW_STATE_OK] = "ok",
	[HRFLOW_STATE_MISSING] = "missing",
	[HRFLOW_STATE_GONE] = "gone",
	[HRFLOW_STATE_FAILED] = "failed"
};

/*
 * The name of a state, as it is in the column.
 */
const char *
hrflow_state_name(HrflowState state)
{
	return state_names[state];
}

/*
 * The state of a name.  A user's own table may have others: they are taken for
 * "due".
 */
HrflowState
hrflow_state_parse(const char *name)
{
	for (int i = 0; i < lengthof(state_names); i++)
	{
		if (strcmp(name, state_names[i]) == 0)
			return i;
	}
	return HRFLOW_STATE_DUE;
}

/*
 * Is this the API saying no to us, rather than of a profile?
 */
static bool
is_our_fault(HrflowStatus status)
{
	switch (status)
	{
		case HRFLOW_UNAUTHORIZED:
		case HRFLOW_FORBIDDEN:
		case HRFLOW_OVER_QUOTA:
		case HRFLOW_RATE_LIMITED:
			return true;
		default:
			return false;
	}
}

/*
 * "age" from now, and up to a tenth less, so that what was fetched together
 * is not due together for ever.
 */
TimestampTz
hrflow_state_due_after(const Interval *age)
{
	double		factor = 1 - 0.1 * pg_prng_double(&pg_global_prng_state);
	Datum		interval = DirectFunctionCall2(interval_mul,
											   IntervalPGetDatum(age),
											   Float8GetDatum(factor));

	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(GetCurrentTimestamp()),
												   interval));
}

/*
 * When to try again: after 1, 5, 25 minutes, and so on to a day.
 */
static TimestampTz
retry_at(int attempts)
{
	double		minutes = Min(pow(5, Min(attempts, 10) - 1), 24 * 60);

	minutes *= 0.5 + 0.5 * pg_prng_double(&pg_global_prng_state);
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
									   minutes * 60 * 1000);
}

/*
 * When to ask again for a profile that the API does not know: after max_age,
 * or a day if that is sooner.  One that was missing before, and is kept for
 * want of proof, waits as long as it has been missing, up to a month.
 */
static TimestampTz
missing_until(HrflowRun *run, const HrflowProfile *profile)
{
	Interval	day = {.day = 1};
	TimestampTz due = Min(hrflow_state_due_after(run->max_age), hrflow_state_due_after(&day));
	TimestampTz now = GetCurrentTimestamp();

	if (profile->state == HRFLOW_STATE_MISSING && profile->has_failed_at)
	{
		int64		wait = Min(now - profile->failed_at, MAX_MISSING_WAIT);

		wait *= 1 - 0.1 * pg_prng_double(&pg_global_prng_state);
		due = Max(due, now + wait);
	}
	return due;
}

/*
 * Is a profile's error the one it had before?
 */
static bool
has_old_error(const HrflowProfile *profile)
{
	return profile->error != NULL && profile->old_error != NULL &&
		strcmp(profile->error, profile->old_error) == 0;
}

/*
 * When to ask again for a profile of a batch that says nothing of it:
 * after a minute, and while its error stays the same as long as it has had it,
 * up to an hour.  So the next run begins with others.  One that was out of time
 * has met no error now.
 */
static TimestampTz
postponed_until(const HrflowProfile *profile)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		wait = MIN_POSTPONEMENT;

	if (!profile->unasked && profile->has_failed_at && has_old_error(profile))
		wait = Min(Max(now - profile->failed_at, wait), MAX_POSTPONEMENT);
	return now + wait * (1 - 0.1 * pg_prng_double(&pg_global_prng_state));
}

/*
 * The new state of a profile that is ours and current.
 */
static void
set_state(HrflowRun *run, HrflowProfile *profile, bool refused)
{
	if (profile->is_exhausted)
	{
		profile->attempts--;
		profile->state = HRFLOW_STATE_FAILED;
		profile->has_due_at = false;
		run->nfailed++;
	}
	else if (profile->unasked || profile->is_postponed ||
			 profile->status == HRFLOW_INVALID_SOURCE ||
			 (refused && is_our_fault(profile->status)))
	{
		/* As if it had not been claimed; no error if there was no time. */
		profile->attempts--;
		if (profile->unasked && profile->status == HRFLOW_TIMEOUT)
		{
			profile->http_status = profile->old_http_status;
			profile->error = profile->old_error;
		}
		if (profile->is_postponed && profile->has_due_at)
			profile->due_at = postponed_until(profile);
	}
	else if (profile->status == HRFLOW_OK)
	{
		profile->state = HRFLOW_STATE_OK;
		profile->due_at = hrflow_state_due_after(run->max_age);
		profile->has_due_at = true;
		profile->attempts = 0;
		profile->is_refreshed = true;
		run->nok++;
	}
	else if (profile->status == HRFLOW_NOT_FOUND)
	{
		profile->due_at = missing_until(run, profile);
		profile->state = HRFLOW_STATE_MISSING;
		profile->has_due_at = true;
		profile->attempts = 0;
		run->nmissing++;
	}
	else if (profile->attempts >= run->max_attempts)
	{
		profile->state = HRFLOW_STATE_FAILED;
		profile->has_due_at = false;
		run->nfailed++;
	}
	else
	{
		profile->state = HRFLOW_STATE_DUE;
		profile->due_at = retry_at(profile->attempts);
		profile->has_due_at = true;
		run->nretry++;
	}
}

/*
 * When it failed: the last time.  Of a missing one that is when it was first
 * not found, which hrflow_erase_gone() must know; and of one that was not answered,
 * when that error came first.
 */
static void
set_failed_at(HrflowProfile *profile, HrflowState old_state)
{
	bool		failed_now;

	if (profile->state == HRFLOW_STATE_MISSING)
		failed_now = old_state != HRFLOW_STATE_MISSING ||
			!profile->has_failed_at;
	else if (profile->attempts > 0 && !profile->unasked &&
			 !profile->is_postponed)
		failed_now = true;
	else
		failed_now = profile->error != NULL && !has_old_error(profile);

	if (failed_now)
	{
		profile->failed_at = GetCurrentTimestamp();
		profile->has_failed_at = true;
	}
}

/*
 * Decide what becomes of a profile that is ours and current.
 */
void
hrflow_state_set(HrflowRun *run, HrflowProfile *profile, bool refused)
{
	HrflowState old_state = profile->state;

	set_state(run, profile, refused);
	set_failed_at(profile, old_state);
}

/*
 * Why a batch says nothing of its profiles, or NULL: that nothing was
 * answered, for the network's sake or because its time was over; or that all
 * met the same, which a setting or "fields" makes of them: no host of links is
 * allowed, or what was asked is not.  A few such failures are the profiles',
 * where that is all, so that those who are alone come to an end.
 *
 * An empty reason: the time was the run's, which needs none.
 */
char *
hrflow_state_outage(HrflowRun *run, List *profiles, int limit)
{
	int			nnetwork = 0;
	int			nalike = 0;
	int			nunasked = 0;
	char	   *error = NULL;
	HrflowStatus status = HRFLOW_OK;
	ListCell   *cell;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		if (profile->is_exhausted)
			continue;
		if (profile->unasked)
		{
			nunasked++;
			continue;
		}
		switch (profile->status)
		{
			case HRFLOW_CONNECT_FAILED:
			case HRFLOW_CONNECTION_LOST:
			case HRFLOW_TIMEOUT:
			case HRFLOW_INVALID_REPLY:
			case HRFLOW_HTTP_ERROR:
				nnetwork++;
				break;
			case HRFLOW_NO_VECTOR:	/* of a link's host */
			case HRFLOW_LINK_REFUSED:
			case HRFLOW_LINK_EXPIRED:
				if (nalike++ > 0 && profile->status != status)
					return NULL;
				break;
			case HRFLOW_INVALID_REQUEST:
				if (nalike++ > 0 && (profile->status != status ||
									 strcmp(profile->error, error) != 0))
					return NULL;
				break;
			default:
				return NULL;
		}
		status = profile->status;
		error = profile->error;
	}

	if (nnetwork > 0 && nalike > 0)
		return NULL;
	if (nalike >= MIN_OUTAGE)
		return psprintf("all profiles met the same; %s", error);
	if (nalike > 0 || (nnetwork < MIN_OUTAGE && nunasked == 0))
		return NULL;
	if (error != NULL)
		return psprintf("nothing was answered; %s", error);
	if (TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 10) < run->deadline)
		return psprintf("nothing was answered within %d ms", limit);
	return pstrdup("");
}
