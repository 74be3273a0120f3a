/*-------------------------------------------------------------------------
 *
 * allowance.c
 *		Learns how many requests a server allows an account.
 *
 * If the headers of replies say how many requests are left, no more are sent
 * (RateLimit-Remaining and RateLimit-Reset of
 * draft-ietf-httpapi-ratelimit-headers, also with X- before them).  Requests
 * admitted after the one that is answered are assumed to be unknown to the
 * server yet, and are subtracted from that number.
 *
 * The limit itself is learnt from refusals (429).  We know when the requests
 * that were not refused were admitted, when the server refused others, and
 * when a probe succeeded.  If the server allows a number of requests in any
 * period of a given length, it admits another one as soon as the first request
 * of the last such period is older than that.  Hence each length implies when
 * a pause ends, and the time at which it does end tells the length.  The
 * number of requests is that of the period before the first refusal.  This
 * model is the strictest: limits of fixed windows, and token buckets, allow
 * at least as much.
 *
 * From then on that number is admitted per period, and the server refuses
 * nothing.  After some periods the number is raised, slightly at first.  If
 * the server refuses the additional requests, the number is learnt again as
 * before.
 *
 * All of this is part of the account's state in shared memory.  The caller is
 * rate.c, which holds the mutex.  Nothing here throws.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/*
 * Lengths of periods that are considered, in seconds.  Other lengths are taken
 * for the next longer one, with which fewer requests are sent than are
 * allowed.
 */
static const uint8 usual_periods[] = {
	1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60
};

/*
 * A period is assumed to be longer than it is by 1/100, since clocks differ.
 */
#define PERIOD_MARGIN 100

/*
 * Width of slots in a new history, and the width with which they span more
 * than the longest period.
 */
#define FIRST_WIDTH (HRFLOW_SEC / 64)
#define LAST_WIDTH (HRFLOW_SEC / 2)

/* Minimum number of slots per period, once the period is known. */
#define MIN_SLOTS 32

/*
 * Minimum number of refusals from which a limit is learnt: a few may have
 * other reasons.  Minimum number of requests per period, unless the period is
 * the longest: with fewer, a longer period is used if the history spans it.
 */
#define MIN_REFUSED 4
#define MIN_ALLOWED 10

/*
 * Raise the number of requests by 1/64 after this many periods without a
 * refusal, by 1/32 in the next period, and so on up to 1/4 per period.
 */
#define PERIODS_BEFORE_RAISE 8
#define FIRST_RAISE 6
#define LAST_RAISE 2

/*
 * Spread the requests of a period over 1/128 of it, so that all backends get
 * their share.  SPREAD_SLACK allows for the resolution of the time for which
 * they wait.
 */
#define SPREAD_PART 128
#define SPREAD_SLACK (4 * HRFLOW_MSEC)

/*
 * If no request is left, one is sent after TOLD_AGAIN, or when the server says
 * that others may be sent, to find out how many are left then.  Meanwhile,
 * backends check each TOLD_POLL whether a reply to another backend has said
 * so.
 */
#define TOLD_AGAIN HRFLOW_SEC
#define TOLD_POLL (20 * HRFLOW_MSEC)

static int64
length_of(int i)
{
	return usual_periods[i] * HRFLOW_SEC;
}

static int64
with_margin(int64 period)
{
	return period + period / PERIOD_MARGIN;
}

/*
 * ------------------------------------------------------------------------
 * What was admitted
 * ------------------------------------------------------------------------
 */

/*
 * Double the width of the slots.
 */
static void
widen_slots(HrflowAllowance *allowance)
{
	for (int i = 0; i < HRFLOW_NSLOTS / 2; i++)
		allowance->slots[i] = allowance->slots[2 * i] +
			allowance->slots[2 * i + 1];
	memset(allowance->slots + HRFLOW_NSLOTS / 2, 0,
		   sizeof(allowance->slots) / 2);
	allowance->width *= 2;
}

/*
 * Discard the first n slots.
 */
static void
shift_slots(HrflowAllowance *allowance, int64 n)
{
	int			nkept = HRFLOW_NSLOTS - Min(n, HRFLOW_NSLOTS);

	memmove(allowance->slots, allowance->slots + (HRFLOW_NSLOTS - nkept),
			nkept * sizeof(allowance->slots[0]));
	memset(allowance->slots + nkept, 0,
		   (HRFLOW_NSLOTS - nkept) * sizeof(allowance->slots[0]));
	allowance->began += n * allowance->width;
}

/*
 * Start a new history.
 */
static void
clear_slots(HrflowAllowance *allowance, int64 now)
{
	memset(allowance->slots, 0, sizeof(allowance->slots));
	allowance->began = now;
	if (allowance->period == 0)
		allowance->width = FIRST_WIDTH;
}

/*
 * Return the current slot.  While the period is unknown, the slots become
 * wider with time, so that they span all that may matter.
 */
static uint32 *
find_slot(HrflowAllowance *allowance, int64 now)
{
	int64		n;

	if (allowance->width == 0 ||
		now - allowance->began > 2 * HRFLOW_NSLOTS * LAST_WIDTH)
		clear_slots(allowance, now);
	while ((n = (now - allowance->began) / allowance->width) >= HRFLOW_NSLOTS)
	{
		if (allowance->period == 0 && allowance->width < LAST_WIDTH)
			widen_slots(allowance);
		else
			shift_slots(allowance, n - HRFLOW_NSLOTS + 1);
	}
	return &allowance->slots[Max(n, 0)];
}

/*
 * Return the number of requests admitted from "from" to "to".  All requests of
 * a slot that is partly before "from" are included.
 */
static int64
count_admitted(const HrflowAllowance *allowance, int64 from, int64 to)
{
	int64		n = 0;

	for (int i = 0; i < HRFLOW_NSLOTS; i++)
	{
		int64		begin = allowance->began + i * allowance->width;

		if (begin + allowance->width > from && begin <= to)
			n += allowance->slots[i];
	}
	return n;
}

/*
 * Return the end of the first slot with requests admitted after a time; 0 if
 * there is none.
 */
static int64
first_admitted(const HrflowAllowance *allowance, int64 after)
{
	for (int i = 0; i < HRFLOW_NSLOTS; i++)
	{
		int64		end = allowance->began + (i + 1) * allowance->width;

		if (end > after && allowance->slots[i] > 0)
			return end;
	}
	return 0;
}

/*
 * Count a request.
 */
static void
count_one(HrflowAllowance *allowance, int64 now)
{
	(*find_slot(allowance, now))++;
	allowance->spare--;
}

/*
 * Remove a request that was admitted at "began".
 */
static void
take_out(HrflowAllowance *allowance, int64 began)
{
	int64		n = allowance->width == 0 ? HRFLOW_NSLOTS :
	Max(began - allowance->began, 0) / allowance->width;

	/* It was counted slightly later, perhaps in the next slot. */
	if (n < HRFLOW_NSLOTS - 1 && allowance->slots[n] == 0)
		n++;
	if (n < HRFLOW_NSLOTS && allowance->slots[n] > 0)
		allowance->slots[n]--;
}

/*
 * ------------------------------------------------------------------------
 * What is allowed
 * ------------------------------------------------------------------------
 */

/*
 * Forget the limit.
 */
static void
forget(HrflowAllowance *allowance)
{
	allowance->period = 0;
	allowance->allowed = 0;
}

/*
 * Does the limit allow a request now?  As time passes, requests leave the
 * period, so the number that may still be sent does not decrease by itself.
 * Hence the slots, which are many for a spinlock, are added up only when the
 * number found the last time has been used up.
 */
static bool
has_spare(HrflowAllowance *allowance, int64 now)
{
	if (allowance->spare <= 0)
		allowance->spare = allowance->allowed -
			count_admitted(allowance, now - allowance->period, now);
	return allowance->spare > 0;
}

/*
 * The limit has been reached: raise it if it is time to.
 */
static void
raise_allowed(HrflowAllowance *allowance, int64 now)
{
	if (now < allowance->raised_at)
		return;
	allowance->allowed += Max(allowance->allowed >> allowance->raise, 1);
	allowance->raise = Max(allowance->raise - 1, LAST_RAISE);
	allowance->raised_at = now + allowance->period;
}

/*
 * May a request be sent now?  If so, it is counted.  If not, *again is set to
 * when to ask again, and *full_until to when the next request will be allowed;
 * or 0 if the wait is a short one.
 */
bool
hrflow_allowance_admit(HrflowAllowance *allowance, int64 now, int64 *again,
					   int64 *full_until)
{
	*full_until = 0;
	if (allowance->allowed == 0 && allowance->is_told)
	{
		if (now >= allowance->left_until)
		{
			allowance->left = Max(allowance->left, 1);
			allowance->left_until = now + TOLD_AGAIN;
		}
		if (allowance->left <= 0)
		{
			*again = Min(allowance->left_until, now + TOLD_POLL);
			if (allowance->left_until > now + TOLD_AGAIN)
				*full_until = allowance->left_until;
			return false;
		}
	}
	if (allowance->allowed > 0)
	{
		if (!has_spare(allowance, now))
			raise_allowed(allowance, now);
		if (!has_spare(allowance, now))
		{
			*full_until = first_admitted(allowance, now - allowance->period) +
				allowance->period;
			*again = *full_until;
			return false;
		}
		if (now < allowance->spread_at - SPREAD_SLACK)
		{
			*again = allowance->spread_at;
			return false;
		}
		allowance->spread_at = Max(allowance->spread_at, now - SPREAD_SLACK) +
			allowance->period / SPREAD_PART / allowance->allowed;
	}
	count_one(allowance, now);
	allowance->left--;
	allowance->nadmitted++;
	return true;
}

/*
 * Count a request that is sent in any case.
 */
void
hrflow_allowance_charge(HrflowAllowance *allowance, int64 now)
{
	count_one(allowance, now);
	allowance->left--;
	allowance->nadmitted++;
}

/*
 * Record what the headers of the reply to request number "serial" say: how
 * many requests may still be sent, negative if they do not say so, and after
 * how many seconds others may.
 */
void
hrflow_allowance_note_left(HrflowAllowance *allowance, int64 left,
						   int64 reset, uint64 serial, int64 now)
{
	allowance->is_told = left >= 0 &&
		reset * HRFLOW_SEC <= HRFLOW_RETRY_AFTER_LIMIT;
	if (!allowance->is_told)
		return;
	allowance->left = left - Max((int64) (allowance->nadmitted - serial), 0);
	allowance->left_until = now + Max(reset * HRFLOW_SEC, TOLD_AGAIN);
}

/*
 * Record that a request admitted at "began" has been answered.  From now on it
 * counts as admitted now, since it is not known when it arrived at the server.
 */
void
hrflow_allowance_note_answer(HrflowAllowance *allowance, int64 began,
							 int64 now)
{
	take_out(allowance, began);
	count_one(allowance, now);
}

/*
 * Record the refusal of a request that was admitted at "began".
 */
void
hrflow_allowance_note_refusal(HrflowAllowance *allowance, int64 began,
							  bool was_probe)
{
	take_out(allowance, began);
	if (!was_probe)
		allowance->nrefused++;
}

/*
 * A pause for a refusal begins.
 */
void
hrflow_allowance_begin_pause(HrflowAllowance *allowance, int64 now)
{
	allowance->refused_at = now;
	allowance->full_at = now;
	allowance->nrefused = 1;
	allowance->nprobes = 0;
}

/*
 * A probe that was sent at "sent_at" has been refused.  If a second one is
 * refused although the limit should allow it, forget the limit.
 */
void
hrflow_allowance_prolong_pause(HrflowAllowance *allowance, int64 sent_at)
{
	allowance->full_at = sent_at;
	if (++allowance->nprobes > 1)
		forget(allowance);
}

/*
 * Return when the pause would end if the period had this length; 0 if nothing
 * was admitted within such a period before the pause.
 */
static int64
end_of_pause(const HrflowAllowance *allowance, int64 period)
{
	int64		first = first_admitted(allowance,
									   allowance->refused_at - period);

	return first == 0 || first > allowance->refused_at + allowance->width ? 0 :
		first + period;
}

/*
 * Return when to send the next probe, at "earliest" or later; 0 if unknown.
 */
int64
hrflow_allowance_probe_at(const HrflowAllowance *allowance, int64 earliest)
{
	int64		next = 0;

	if (allowance->period > 0)
	{
		int64		end = end_of_pause(allowance, allowance->period);

		return end == 0 ? 0 : Max(end, earliest);
	}
	for (int i = 0; i < lengthof(usual_periods); i++)
	{
		int64		end = end_of_pause(allowance, with_margin(length_of(i)));

		if (end >= earliest && (next == 0 || end < next))
			next = end;
	}
	return next;
}

/*
 * Adapt the width of the slots to a period that is known from now on.  If they
 * were too wide, the requests of the last period are counted as if they were
 * admitted now.
 */
static void
fit_slots(HrflowAllowance *allowance, int64 now)
{
	int64		period = allowance->period;

	while (allowance->width * (HRFLOW_NSLOTS - 1) < period)
		widen_slots(allowance);
	if (allowance->width > period / MIN_SLOTS)
	{
		int64		n = count_admitted(allowance, now - period, now);

		clear_slots(allowance, now);
		allowance->width = period / MIN_SLOTS / 2;
		allowance->slots[0] = n;
	}
}

/*
 * Return the number of requests that the server allowed in the period before
 * the pause, which a probe has ended that was sent at "now".  Requests that
 * were in flight when the pause began were answered during it.
 */
static int64
count_before_pause(const HrflowAllowance *allowance, int64 now)
{
	int64		n = count_admitted(allowance,
								   allowance->refused_at - allowance->period,
								   now);

	return Max(n - 1, 0);		/* without the probe */
}

/*
 * A probe that was sent at "now" has ended the pause: learn the limit.
 */
void
hrflow_allowance_learn(HrflowAllowance *allowance, int64 now)
{
	int64		n;

	for (int i = lengthof(usual_periods) - 1;
		 i >= 0 && allowance->period == 0; i--)
	{
		int64		end = end_of_pause(allowance, length_of(i));

		if (end != 0 && end <= now + allowance->width &&
			end + length_of(i) / PERIOD_MARGIN >= allowance->full_at)
			allowance->period = with_margin(length_of(i));
	}
	if (allowance->period == 0)
		return;
	n = count_before_pause(allowance, now);
	for (int i = 0; i < lengthof(usual_periods) && n < MIN_ALLOWED; i++)
	{
		if (with_margin(length_of(i)) <= allowance->period)
			continue;
		allowance->period = with_margin(length_of(i));
		if (allowance->refused_at - allowance->period < allowance->began)
		{
			forget(allowance);
			return;
		}
		n = count_before_pause(allowance, now);
	}
	fit_slots(allowance, now);
	if (allowance->allowed == 0 && allowance->nrefused < MIN_REFUSED)
		return;
	allowance->allowed = n;
	allowance->spare = 0;
	allowance->raise = FIRST_RAISE;
	allowance->raised_at = now + PERIODS_BEFORE_RAISE * allowance->period;
}
