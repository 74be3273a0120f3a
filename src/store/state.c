/*-------------------------------------------------------------------------
 *
 * state.c
 *		Determines the state of a profile after a reply, and when to request
 *		the profile again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "common/pg_prng.h"
#include "compat.h"
#include "store/refresh.h"
#include "utils/memutils.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

/*
 * Waits before a missing profile is requested again.  The API indexes profiles
 * some time after they were sent, so the first waits are short.  Later, the
 * profile is requested once a day.  If it has been missing for
 * HRFLOW_GONE_AGE, but is not considered gone (see hrflow_erase_gone()), it is
 * requested less and less often.
 */
static const int64 missing_waits[] = {
	USECS_PER_MINUTE, 5 * USECS_PER_MINUTE, 30 * USECS_PER_MINUTE,
	6 * USECS_PER_HOUR
};

#define LATER_MISSING_WAIT USECS_PER_DAY
#define MAX_MISSING_WAIT (30 * USECS_PER_DAY)

/*
 * Minimum delay of a profile that is postponed after a failure that is not
 * specific to the profile, except for jitter, which may shorten it.
 */
#define MIN_POSTPONEMENT USECS_PER_MINUTE

/*
 * Maximum delay of a profile that is postponed after a failure that is not
 * specific to the profile, unless MAX_LONG_POSTPONEMENT applies.
 */
#define MAX_POSTPONEMENT USECS_PER_HOUR

/*
 * Maximum delay of a postponed profile whose source the API does not know, for
 * which "is_undecided" is set, or for which the links' host is down.  In the
 * last two cases, the API has replied, and the reply was paid for.
 */
#define MAX_LONG_POSTPONEMENT USECS_PER_DAY

/*
 * Error message of a profile for which "is_undecided" is set, unless it has
 * another error.
 */
#define UNDECIDED_ERROR \
	"Lost vectors were not put aside, because another session held a lock"

static const char *const state_names[] = {
	[HRFLOW_STATE_DUE] = "due",
	[HRFLOW_STATE_OK] = "ok",
	[HRFLOW_STATE_MISSING] = "missing",
	[HRFLOW_STATE_GONE] = "gone",
	[HRFLOW_STATE_FAILED] = "failed",
	[HRFLOW_STATE_EMPTY] = "empty"
};

/*
 * Return the name of a state, as it is stored in the column "state".
 */
const char *
hrflow_state_name(HrflowState state)
{
	return state_names[state];
}

/*
 * Return the state with this name.  Unknown names, which a user-supplied table
 * may contain, are treated as "due".
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
 * Return the status of a profile, which covers both fetching and writing it.
 */
static HrflowStatus
get_status(const HrflowProfile *profile)
{
	return profile->write_error != NULL ? HRFLOW_INVALID_VECTOR :
		profile->status;
}

/*
 * Return the error message of a profile, or NULL.
 */
static const char *
get_error(const HrflowProfile *profile)
{
	return profile->write_error != NULL ? profile->write_error :
		profile->error != NULL ? profile->error :
		profile->is_undecided ? UNDECIDED_ERROR : profile->lost;
}

/*
 * Does the profile's failure, if any, probably affect all requests to the API,
 * rather than only this profile?  A single 403 may be specific to the profile.
 */
static bool
is_our_fault(const HrflowRun *run, const HrflowProfile *profile)
{
	if (profile->is_link)
		return false;
	if (profile->status == HRFLOW_FORBIDDEN)
		return run->nforbidden > 1;
	return hrflow_status_concerns_all(profile->status);
}

/*
 * Return a time that is "age" from now, less a random jitter of up to a tenth,
 * so that profiles that were fetched together do not become due together
 * forever.  Throws 22008 if the time is out of range.
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

static bool
is_shorter(const Interval *a, const Interval *b)
{
	return DatumGetBool(DirectFunctionCall2(interval_lt,
											IntervalPGetDatum(a),
											IntervalPGetDatum(b)));
}

/*
 * Return an argument that is an interval.
 *
 * Throws 22023 if it is null or negative.
 */
Interval *
hrflow_state_get_interval(FunctionCallInfo fcinfo, int argno, const char *name)
{
	Interval	zero = {0};
	Interval   *value = PG_ARGISNULL(argno) ? NULL :
	PG_GETARG_INTERVAL_P(argno);

	if (value == NULL || is_shorter(value, &zero))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be negative or null",
						name)));
	return value;
}

/*
 * Return the argument "max_age".  PostgreSQL reads '90' as 90 seconds.  If the
 * user meant 90 days, all profiles would be fetched, and paid for, all the
 * time.  So any age of less than an hour is rejected, which includes numbers
 * below 3,600 without a unit, but not zero, which must be deliberate.
 *
 * Throws 22023.
 */
Interval *
hrflow_state_get_max_age(FunctionCallInfo fcinfo, int argno)
{
	Interval   *age = hrflow_state_get_interval(fcinfo, argno, "max_age");
	Interval	zero = {0};
	Interval	hour = {.time = USECS_PER_HOUR};

	if (is_shorter(&zero, age) && is_shorter(age, &hour))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"max_age\" must be zero or at least one hour, not %s",
						DatumGetCString(DirectFunctionCall1(interval_out,
															IntervalPGetDatum(age)))),
				 errdetail("Each profile would be fetched and paid for again after this time."),
				 errhint("Specify a unit, as in '30 days'.  Without a unit, an interval is in seconds.")));
	return age;
}

/* Number of failed attempts after which the delay no longer grows. */
#define MAX_DELAY_ATTEMPTS 6

/*
 * Return the time of the next attempt after a number of failed attempts.  The
 * delay is a minute after the first failure, and is multiplied by 5 with each
 * further failure, up to a day.  A random jitter shortens it by up to a half.
 */
static TimestampTz
retry_at(int attempts)
{
	double		minutes = Min(pow(5, Min(attempts, MAX_DELAY_ATTEMPTS) - 1), 24 * 60);

	minutes *= 0.5 + 0.5 * pg_prng_double(&pg_global_prng_state);
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
									   minutes * 60 * 1000);
}

/*
 * Return the time at which to request a missing profile again.  "age" is the
 * time for which the API has had no vector for the profile.  The wait depends
 * on "age", no matter how late the last request was: it is the first element
 * of missing_waits that is greater than twice the age, or else a day, but at
 * most max_age.  From HRFLOW_GONE_AGE on, the wait is as long as the age, but
 * at most MAX_MISSING_WAIT.  A random jitter shortens it by up to a tenth.
 */
static TimestampTz
missing_until(HrflowRun *run, int64 age)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		wait = LATER_MISSING_WAIT;
	double		factor = 1 - 0.1 * pg_prng_double(&pg_global_prng_state);

	for (int i = lengthof(missing_waits) - 1; i >= 0; i--)
	{
		if (2 * age < missing_waits[i])
			wait = missing_waits[i];
	}
	if (age >= HRFLOW_GONE_AGE)
		return now + (int64) (Min(age, MAX_MISSING_WAIT) * factor);
	return Min(now + (int64) (wait * factor),
			   hrflow_state_due_after(run->max_age));
}

/*
 * Return for how long the API has had no vector for a profile, in
 * microseconds, or 0 if the profile was not missing before.  If "failed_at" is
 * null, or a user-supplied table lacks this column, the time is unknown, and
 * we assume a day.
 */
static int64
missing_age(const HrflowProfileRow *row)
{
	if (row->state != HRFLOW_STATE_MISSING)
		return 0;
	if (!row->has_failed_at)
		return USECS_PER_DAY;
	return Max(GetCurrentTimestamp() - row->failed_at, 0);
}

/*
 * Are two error messages equal, apart from numbers?  libcurl's messages about
 * timeouts contain the milliseconds that have passed.
 */
static bool
are_alike(const char *a, const char *b)
{
	for (;;)
	{
		a += strspn(a, "0123456789");
		b += strspn(b, "0123456789");
		if (*a != *b || *a == '\0')
			return *a == *b;
		a++;
		b++;
	}
}

/*
 * Does a profile have the same error as before?
 */
static bool
has_old_error(const HrflowProfile *profile)
{
	return get_error(profile) != NULL && profile->row.error != NULL &&
		(profile->http_status == profile->row.http_status ||
		 profile->http_status == 0 || profile->row.http_status == 0) &&
		are_alike(get_error(profile), profile->row.error);
}

/*
 * Return the time at which to request a profile again after a failure that is
 * not specific to the profile.  The wait is a minute if the error is new.
 * Otherwise, it is as long as the profile has had the error, but at least a
 * minute, and at most an hour, or a day if MAX_LONG_POSTPONEMENT applies.
 * Thus the next run begins with other profiles.  An error counts as new if
 * requests for the profile were not completed, or if "failed_at" is not known.
 * However, each request for a profile with "is_undecided" set is paid for.  So
 * if the "failed_at" of such a profile is not known, we assume that the
 * profile has had the error for an hour.  A random jitter shortens the wait by
 * up to a tenth.
 */
static TimestampTz
postponed_until(const HrflowProfile *profile)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		longest = get_status(profile) == HRFLOW_INVALID_SOURCE ||
	profile->is_undecided || profile->is_host_down ? MAX_LONG_POSTPONEMENT :
	MAX_POSTPONEMENT;
	int64		wait = MIN_POSTPONEMENT;

	if (!profile->unasked && has_old_error(profile))
	{
		if (profile->row.has_failed_at)
			wait = Min(Max(now - profile->row.failed_at, wait), longest);
		else if (profile->is_undecided)
			wait = MAX_POSTPONEMENT;
	}
	return now + wait * (1 - 0.1 * pg_prng_double(&pg_global_prng_state));
}

/*
 * Set "failed_at", the time of the last failure or loss of vectors.  For a
 * missing profile, it is the time since which the profile has been missing;
 * hrflow_erase_gone() relies on this.  For a failure that is not counted as an
 * attempt, it is the time at which the error first occurred.
 */
static void
set_failed_at(HrflowProfile *profile, HrflowState state, bool counted)
{
	HrflowProfileRow *row = &profile->row;
	bool		failed_now;

	if (state == HRFLOW_STATE_MISSING)
		failed_now = row->state != HRFLOW_STATE_MISSING ||
			!row->has_failed_at;
	else
		failed_now = get_error(profile) != NULL &&
			(counted || !has_old_error(profile));
	if (failed_now)
	{
		row->failed_at = GetCurrentTimestamp();
		row->has_failed_at = true;
	}
}

/*
 * Set the row of a profile whose requests were not completed, or whose failure
 * is not specific to the profile.  Only the error changes, with its time and
 * its HTTP status, and, if "is_postponed" is true, due_at.  The rest of the
 * row remains as if the profile had not been claimed.
 */
static void
set_not_counted(HrflowProfile *profile, bool is_postponed)
{
	HrflowProfileRow *row = &profile->row;
	TimestampTz due_at = is_postponed ? postponed_until(profile) : 0;

	/* A timeout of the run is not an error of the profile. */
	if (get_error(profile) != NULL &&
		!(profile->unasked && get_status(profile) == HRFLOW_TIMEOUT))
	{
		set_failed_at(profile, row->state, false);
		row->http_status = profile->http_status;
		row->error = get_error(profile);
	}
	if (is_postponed && row->has_due_at)
		row->due_at = due_at;
}

/*
 * Return the time at which to request a successfully fetched profile again:
 * usually after max_age.  If more than half of a section was put aside, which
 * may be a mistake, the wait is at most a day.  If another session prevented
 * the decision whether to put vectors aside, the wait is at most as long as
 * after a failure; see postponed_until().
 */
static TimestampTz
ok_until(HrflowRun *run, const HrflowProfile *profile)
{
	Interval	day = {.day = 1};
	TimestampTz due = hrflow_state_due_after(run->max_age);

	if (profile->is_undecided)
		return Min(due, postponed_until(profile));
	return profile->lost == NULL || profile->is_kept ? due :
		Min(due, hrflow_state_due_after(&day));
}

/*
 * Set the row of a profile whose requests, if it needed any, were completed
 * with a result that is specific to the profile.  If the table has rejected
 * the state, an early retry is unlikely to help, so a retry is delayed as long
 * as after many failed attempts.
 */
static void
set_answered(HrflowRun *run, HrflowProfile *profile)
{
	HrflowProfileRow *row = &profile->row;

	row->attempts++;
	row->has_due_at = true;
	if (get_status(profile) == HRFLOW_OK)
	{
		profile->tally = HRFLOW_TALLY_OK;
		row->state = profile->is_empty ? HRFLOW_STATE_EMPTY : HRFLOW_STATE_OK;
		row->due_at = ok_until(run, profile);
		set_failed_at(profile, row->state, !profile->is_undecided);
		row->attempts = 0;
		row->is_refreshed = true;
	}
	else if (get_status(profile) == HRFLOW_NOT_FOUND)
	{
		profile->tally = HRFLOW_TALLY_MISSING;
		row->due_at = missing_until(run, missing_age(row));
		set_failed_at(profile, HRFLOW_STATE_MISSING, true);
		row->state = HRFLOW_STATE_MISSING;
		row->attempts = 0;
	}
	else
	{
		set_failed_at(profile, HRFLOW_STATE_DUE, true);
		if (row->attempts >= run->max_attempts || profile->is_final)
		{
			profile->tally = HRFLOW_TALLY_FAILED;
			row->state = HRFLOW_STATE_FAILED;
			row->has_due_at = false;
		}
		else
		{
			profile->tally = HRFLOW_TALLY_RETRY;
			row->state = HRFLOW_STATE_DUE;
			row->due_at = retry_at(profile->is_rejected ? MAX_DELAY_ATTEMPTS :
								   row->attempts);
		}
	}
	row->http_status = profile->http_status;
	row->error = get_error(profile);
}

/*
 * Like set_answered(), but for a profile that has changed since it was
 * claimed.  A success is recorded, and a failure is ignored.  The profile
 * becomes due again only after a delay, so that a profile that changes
 * continually is not fetched, and paid for, continually.
 */
static void
set_changed(HrflowRun *run, HrflowProfile *profile)
{
	HrflowProfileRow *row = &profile->row;
	TimestampTz earliest = profile->is_rejected ? retry_at(MAX_DELAY_ATTEMPTS) :
	TimestampTzPlusMilliseconds(GetCurrentTimestamp(), run->debounce);

	if (get_status(profile) == HRFLOW_OK)
	{
		profile->tally = HRFLOW_TALLY_OK;
		row->state = HRFLOW_STATE_DUE;
		row->attempts = 0;
		row->http_status = profile->http_status;
		row->error = get_error(profile);
		row->is_refreshed = true;
		set_failed_at(profile, HRFLOW_STATE_DUE, true);
	}
	if (row->has_due_at)
		row->due_at = Max(row->due_at, earliest);
}

/*
 * Postpone a profile that is due and has no result, so that a run that
 * continues does not claim it again immediately.  This is not necessary if the
 * run is stopping, or will stop because the failure affects all requests,
 * except for a profile to be postponed that set_not_counted() has not
 * postponed, because it has changed.
 */
static void
put_beyond_run(HrflowRun *run, HrflowProfile *profile)
{
	HrflowProfileRow *row = &profile->row;
	TimestampTz earliest = GetCurrentTimestamp() +
	(profile->is_current ? MIN_POSTPONEMENT :
	 run->debounce * INT64CONST(1000));

	if (row->has_due_at && row->state == HRFLOW_STATE_DUE &&
		!is_our_fault(run, profile) &&
		((profile->is_postponed && !profile->is_current) ||
		 (!run->is_stopping && !run->is_ending && run->error == NULL)))
		row->due_at = Max(row->due_at, earliest);
}

/*
 * Was a request for the profile refused, possibly because of its source?  If
 * so, the next run should begin with profiles of other sources.
 */
static bool
is_refused(const HrflowProfile *profile)
{
	return !profile->unasked && !profile->is_link &&
		(profile->status == HRFLOW_INVALID_SOURCE ||
		 profile->status == HRFLOW_FORBIDDEN);
}

/*
 * Replace the current values of a profile's row, in profile->row, by the new
 * values, and set the tally of the profile.  The lease must still be ours.
 */
void
hrflow_state_set(HrflowRun *run, HrflowProfile *profile)
{
	profile->tally = HRFLOW_TALLY_NONE;
	if (profile->unasked || profile->is_postponed ||
		is_our_fault(run, profile) ||
		profile->status == HRFLOW_INVALID_SOURCE)
	{
		if (profile->is_current)
			set_not_counted(profile,
							profile->is_postponed || is_refused(profile));
		put_beyond_run(run, profile);
	}
	else if (profile->is_current)
		set_answered(run, profile);
	else
		set_changed(run, profile);
}

/*
 * Move a profile to the list of profiles to be written.
 */
void
hrflow_state_arrive(HrflowRun *run, HrflowProfile *profile)
{
	dlist_delete(&profile->node);
	dlist_push_tail(&run->arrived, &profile->node);
	run->narrived++;
	if (!profile->unasked && !profile->is_postponed)
		hrflow_activity_count(run->activity, profile->status == HRFLOW_OK);
}
