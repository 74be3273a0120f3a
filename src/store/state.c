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
#include "utils/memutils.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

/*
 * When a missing one is asked for again: the API indexes profiles some time
 * after they were sent, so soon at first, then each day, and after
 * HRFLOW_GONE_AGE, where it is kept for want of proof, less and less often.
 */
static const int64 missing_waits[] = {
	USECS_PER_MINUTE, 5 * USECS_PER_MINUTE, 30 * USECS_PER_MINUTE,
	6 * USECS_PER_HOUR
};

#define LATER_MISSING_WAIT USECS_PER_DAY
#define MAX_MISSING_WAIT (30 * USECS_PER_DAY)

/*
 * End a run after at least this many failures that may be none of the profiles',
 * where nothing else is answered.
 */
#define MIN_OUTAGE 8

/* How long profiles have to wait that met an outage. */
#define MIN_POSTPONEMENT USECS_PER_MINUTE
#define MAX_POSTPONEMENT USECS_PER_HOUR

/* Likewise, where the API does not know their source. */
#define MAX_SOURCE_POSTPONEMENT USECS_PER_DAY

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
 * What has become of a profile: of its request, or of what came of it.
 */
static HrflowStatus
get_status(const HrflowProfile *profile)
{
	return profile->write_error != NULL ? HRFLOW_INVALID_VECTOR :
		profile->status;
}

/*
 * The error that goes with it, or NULL.
 */
static char *
get_error(const HrflowProfile *profile)
{
	return profile->write_error != NULL ? profile->write_error :
		profile->error != NULL ? profile->error : profile->lost;
}

/*
 * Does the API refuse us, rather than this profile?  One 403 may be about the
 * profile.
 */
static bool
is_our_fault(const HrflowRun *run, const HrflowProfile *profile)
{
	if (profile->is_link)
		return false;
	switch (get_status(profile))
	{
		case HRFLOW_UNAUTHORIZED:
		case HRFLOW_PROXY_REFUSED:
		case HRFLOW_OVER_QUOTA:
		case HRFLOW_RATE_LIMITED:
		case HRFLOW_OVER_BUDGET:
		case HRFLOW_OVER_DAY:
			return true;
		case HRFLOW_FORBIDDEN:
			return run->nforbidden > 1;
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
 * Throws 22023 where it is null or negative.
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
				 errmsg("%s must not be negative or null", name)));
	return value;
}

/*
 * The argument "max_age".  PostgreSQL takes '30' for 30 seconds, where 30 days
 * were meant, and all profiles would be paid for all the time: what is shorter
 * than a minute is refused, but for zero, which is meant.
 *
 * Throws 22023.
 */
Interval *
hrflow_state_get_max_age(FunctionCallInfo fcinfo, int argno)
{
	Interval   *age = hrflow_state_get_interval(fcinfo, argno, "max_age");
	Interval	zero = {0};
	Interval	minute = {.time = USECS_PER_MINUTE};
	Interval	hour = {.time = USECS_PER_HOUR};

	if (is_shorter(&zero, age) && is_shorter(age, &hour))
		ereport(is_shorter(age, &minute) ? ERROR : WARNING,
				(errcode(is_shorter(age, &minute) ?
						 ERRCODE_INVALID_PARAMETER_VALUE : ERRCODE_WARNING),
				 errmsg("max_age is only %s",
						DatumGetCString(DirectFunctionCall1(interval_out,
															IntervalPGetDatum(age)))),
				 errdetail("Each profile would be fetched, and paid for, again after this time."),
				 errhint("An interval without a unit is in seconds: write '30 days'.")));
	return age;
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
 * When to ask again for a profile that the API has no vector of, which is
 * missing since "age".  However late it was asked for this time, the wait goes
 * with its age: it is the first that is more than twice that.
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
 * For how long has the API had no vector of a profile?  A table of a user's own
 * may lack failed_at, and does not tell then: it takes a day.
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
 * Is a profile's error the one it had before?
 */
static bool
has_old_error(const HrflowProfile *profile)
{
	return get_error(profile) != NULL && profile->row.error != NULL &&
		strcmp(get_error(profile), profile->row.error) == 0;
}

/*
 * When to ask again for a profile that met what says nothing about it:
 * after a minute, and while its error stays the same as long as it has had it,
 * up to an hour, or a day where the API does not know its source.  So the next
 * run begins with others.  One that was out of time has met no error now.
 */
static TimestampTz
postponed_until(const HrflowProfile *profile)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		longest = get_status(profile) == HRFLOW_INVALID_SOURCE ?
	MAX_SOURCE_POSTPONEMENT : MAX_POSTPONEMENT;
	int64		wait = MIN_POSTPONEMENT;

	if (!profile->unasked && profile->row.has_failed_at &&
		has_old_error(profile))
		wait = Min(Max(now - profile->row.failed_at, wait), longest);
	return now + wait * (1 - 0.1 * pg_prng_double(&pg_global_prng_state));
}

/*
 * Set failed_at: when it failed the last time.  Of a missing one that is since
 * when it is missing, which hrflow_erase_gone() must know; and of one that was
 * not answered, when that error came first.
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
 * A profile was not asked for to the end, or what it met says nothing about
 * it: as if it had not been claimed.
 */
static void
set_not_counted(HrflowProfile *profile, bool is_postponed)
{
	HrflowProfileRow *row = &profile->row;
	TimestampTz due_at = is_postponed ? postponed_until(profile) : 0;

	/* No error where there was no time. */
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
 * When to ask again for a profile that was fetched: after max_age, or a day if
 * that is sooner and it has lost vectors that the API no longer has, which may be
 * a mistake.
 */
static TimestampTz
ok_until(HrflowRun *run, const HrflowProfile *profile)
{
	Interval	day = {.day = 1};
	TimestampTz due = hrflow_state_due_after(run->max_age);

	return profile->lost == NULL || profile->is_kept ? due :
		Min(due, hrflow_state_due_after(&day));
}

/*
 * A profile was answered.
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
		row->state = HRFLOW_STATE_OK;
		row->due_at = ok_until(run, profile);
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
		if (row->attempts >= run->max_attempts)
		{
			profile->tally = HRFLOW_TALLY_FAILED;
			row->state = HRFLOW_STATE_FAILED;
			row->has_due_at = false;
		}
		else
		{
			profile->tally = HRFLOW_TALLY_RETRY;
			row->state = HRFLOW_STATE_DUE;
			row->due_at = retry_at(row->attempts);
		}
	}
	row->http_status = profile->http_status;
	row->error = get_error(profile);
}

/*
 * A profile was answered, and has changed since it was claimed.  What came is
 * kept; it is due again, but not at once, so that a profile that changes all
 * the time is not paid for all the time.
 */
static void
set_changed(HrflowRun *run, HrflowProfile *profile)
{
	HrflowProfileRow *row = &profile->row;
	TimestampTz earliest =
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
 * A run that goes on is not to claim again at once what has come to nothing.  It
 * does not go on where the API refuses us, though it may not know yet.
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
		!run->is_stopping && !run->is_ending && run->error == NULL)
		row->due_at = Max(row->due_at, earliest);
}

/*
 * Decide what becomes of a profile that is ours, whose row is as it is now.
 */
void
hrflow_state_set(HrflowRun *run, HrflowProfile *profile)
{
	profile->tally = HRFLOW_TALLY_NONE;
	if (profile->unasked || profile->is_postponed ||
		is_our_fault(run, profile) ||
		get_status(profile) == HRFLOW_INVALID_SOURCE)
	{
		if (profile->is_current)
			set_not_counted(profile, profile->is_postponed ||
							(get_status(profile) == HRFLOW_INVALID_SOURCE &&
							 !profile->unasked));
		put_beyond_run(run, profile);
	}
	else if (profile->is_current)
		set_answered(run, profile);
	else
		set_changed(run, profile);
}

/*
 * ------------------------------------------------------------------------
 * Outages
 * ------------------------------------------------------------------------
 */

/*
 * What an answer may be a sign of, if it is the only one that comes.
 */
typedef enum Sign
{
	SIGN_NONE,					/* the API answers for profiles */
	SIGN_OF_NETWORK,			/* nothing is answered */
	SIGN_OF_SETTING,			/* a setting or "fields" is wrong */
	SIGN_OF_LINKS				/* no link works */
} Sign;

static Sign
sign_of(const HrflowProfile *profile)
{
	switch (profile->status)
	{
		case HRFLOW_CONNECT_FAILED:
		case HRFLOW_CONNECTION_LOST:
		case HRFLOW_TIMEOUT:
		case HRFLOW_INVALID_REPLY:
		case HRFLOW_HTTP_ERROR:
			return SIGN_OF_NETWORK;
		case HRFLOW_LINK_REFUSED:
		case HRFLOW_INVALID_REQUEST:
			return SIGN_OF_SETTING;
		case HRFLOW_LINK_EXPIRED:
		case HRFLOW_NO_VECTOR:	/* says the host of a link */
			return SIGN_OF_LINKS;
		default:
			return SIGN_NONE;
	}
}

/*
 * Have two profiles met the same?
 */
static bool
have_met_the_same(const HrflowProfile *a, const HrflowProfile *b)
{
	return sign_of(a) == sign_of(b) &&
		(sign_of(a) == SIGN_OF_NETWORK ||
		 (a->status == b->status &&
		  (a->status != HRFLOW_INVALID_REQUEST ||
		   strcmp(a->error, b->error) == 0)));
}

/*
 * A profile is to be written.
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

/*
 * The suspects are at fault themselves, or they are not, as "is_outage" says.
 */
static void
clear_suspects(HrflowRun *run, bool is_outage)
{
	while (!dlist_is_empty(&run->suspects))
	{
		HrflowProfile *profile = dlist_head_element(HrflowProfile, node,
													&run->suspects);

		profile->is_postponed = is_outage && sign_of(profile) != SIGN_OF_LINKS;
		hrflow_state_arrive(run, profile);
	}
	run->nsuspects = 0;
}

/*
 * All suspects have met the same, and nothing else was met: that is not theirs.
 * Of links it is, however many meet it: the API has answered, and has been
 * paid.
 */
static void
note_outage(HrflowRun *run)
{
	HrflowProfile *profile = dlist_head_element(HrflowProfile, node,
												&run->suspects);
	MemoryContext old = MemoryContextSwitchTo(run->context);

	run->is_outage = run->is_stopping = true;
	run->stop_reason = sign_of(profile) == SIGN_OF_NETWORK ?
		psprintf("nothing was answered; %s", profile->error) :
		psprintf("all profiles met the same; %s", profile->error);
	run->stop = HRFLOW_STOP_OUTAGE;
	run->stop_code = hrflow_error_code(profile->status);
	MemoryContextSwitchTo(old);
	clear_suspects(run, true);
}

/*
 * Nothing more comes of a profile: it is written next, unless what it has met
 * may be an outage.  It is not if the API has answered anything else since the
 * profile was asked for.
 */
void
hrflow_state_land(HrflowRun *run, HrflowProfile *profile)
{
	Sign		sign = profile->unasked ? SIGN_NONE : sign_of(profile);

	run->nforbidden += profile->status == HRFLOW_FORBIDDEN;
	if (hrflow_model_hold(run, profile))
	{
		run->alive_at = run->answered_at = hrflow_clock_now();
		clear_suspects(run, false);
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
		profile->is_postponed = sign != SIGN_OF_LINKS;
		hrflow_state_arrive(run, profile);
		return;
	}
	if (sign != SIGN_NONE && run->alive_at < profile->asked_at &&
		(run->nsuspects == 0 ||
		 have_met_the_same(profile, dlist_head_element(HrflowProfile, node,
													   &run->suspects))))
	{
		dlist_delete(&profile->node);
		dlist_push_tail(&run->suspects, &profile->node);
		if (++run->nsuspects >= run->batch_size &&
			run->nsuspects >= MIN_OUTAGE)
			note_outage(run);
		return;
	}
	if (sign == SIGN_NONE || run->alive_at < profile->asked_at)
		run->alive_at = hrflow_clock_now();
	clear_suspects(run, false);
	hrflow_state_arrive(run, profile);
}

/*
 * Nothing more comes at all: decide about the suspects.  A few are at fault
 * themselves, so that profiles that are alone come to an end, unless the time
 * was too short for others.
 */
void
hrflow_state_settle_suspects(HrflowRun *run)
{
	if (run->nsuspects >= MIN_OUTAGE ||
		(run->nsuspects > 0 && run->is_unanswered))
		note_outage(run);
	else if (run->is_unanswered)
	{
		MemoryContext old = MemoryContextSwitchTo(run->context);

		run->stop_reason = psprintf("nothing was answered within %d ms",
									run->patience);
		run->stop = HRFLOW_STOP_OUTAGE;
		run->stop_code = hrflow_error_code(HRFLOW_TIMEOUT);
		MemoryContextSwitchTo(old);
	}
	clear_suspects(run, run->is_stopping);
}
