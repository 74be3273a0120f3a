/*-------------------------------------------------------------------------
 *
 * allowance.c
 *		Learns how many requests a server allows an account.
 *
 * If the headers of a reply say how many requests may still be sent, and no
 * limit has been learned from refusals, we admit no more than that
 * (RateLimit-Remaining and RateLimit-Reset of
 * draft-ietf-httpapi-ratelimit-headers, with or without the prefix X-).  We
 * assume that the server has not counted the requests that were admitted after
 * the one it replies to, and subtract their number.
 *
 * The limit itself is learned from refusals (429).  We know approximately when
 * each request that was not refused arrived at the server, when the server
 * began to refuse requests, and when a probe succeeded.  Suppose that the
 * server allows N requests in any period of length P.  After N requests it
 * refuses all others until the oldest of the N is older than P.  Hence each
 * possible P predicts when the pause will end, and the time at which the pause
 * does end reveals P.  N is the number of requests admitted during the last P
 * before the first refusal.  This model is the strictest of the usual ones:
 * fixed windows and token buckets allow at least as many requests.
 *
 * From then on, we admit N requests per P, so the server should not refuse
 * any.  After some periods N is raised, slightly at first.  If the server
 * refuses the additional requests, the limit is learned again.
 *
 * All of this is part of the account's state in shared memory.  The caller is
 * rate.c, which holds the mutex.  Nothing here throws.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/*
 * Possible lengths of a period, in seconds.  A period of any other length
 * below 60 s is mistaken for the next longer one, so that we send fewer
 * requests than allowed rather than more.
 */
static const uint8 usual_periods[] = {
	1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60
};

/*
 * Lengthen each period by 1/PERIOD_MARGIN, since our clock and the server's
 * may run at slightly different speeds.
 */
#define PERIOD_MARGIN 100

/* Width of the slots in a new history, if the period is unknown. */
#define FIRST_WIDTH (HRFLOW_SEC / 64)

/*
 * Maximum width of the slots while the period is unknown.  With this width,
 * the history spans more than the longest period.
 */
#define LAST_WIDTH (HRFLOW_SEC / 2)

/*
 * Minimum number of slots per period, once the period is known.  With fewer
 * slots, requests would be admitted noticeably later than the limit allows.
 */
#define MIN_SLOTS 32

/*
 * Minimum number of refusals required to learn a limit if none is known.
 * Fewer refusals may have other causes.
 */
#define MIN_REFUSED 4

/*
 * Minimum rate of a period to be chosen by find_period(), as a fraction of the
 * highest rate of all periods.
 */
#define MIN_RATE 0.6

/*
 * Number of periods without a refusal after which the allowed number of
 * requests is raised for the first time.
 */
#define PERIODS_BEFORE_RAISE 8

/*
 * Exponent of the first raise: the allowed number of requests is raised by 1/2
 * to the power of FIRST_RAISE, that is, by 1/64.  A period later, it is raised
 * by 1/32, and so on.
 */
#define FIRST_RAISE 6

/* Exponent of the largest raise, which is by 1/4 per period. */
#define LAST_RAISE 2

/*
 * The requests of a period are spread over 1/SPREAD_PART of the period, so
 * that all backends get their share.
 */
#define SPREAD_PART 32

/*
 * Time by which a request may be admitted early while requests are spread,
 * because of the resolution of the timeouts with which backends wait.
 */
#define SPREAD_SLACK (4 * HRFLOW_MSEC)

/*
 * If the rate limit headers of a reply allow no more requests, send one
 * request after this time, or after the time that the headers state, whichever
 * is longer, to find out how many requests are allowed then.
 */
#define TOLD_AGAIN HRFLOW_SEC

/*
 * Interval at which a backend whose account may send no more requests,
 * according to the rate limit headers of the last reply, checks whether a
 * later reply to another backend allows more.
 */
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
 * History of admitted requests
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
 * Return the current slot.  While the period is unknown, widen the slots as
 * time passes, so that the history can span the longest period.
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
 * Return the number of requests admitted between "from" and "to", including
 * all requests of the slots in which these times are.
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
 * Return the end of the first nonempty slot that ends after the given time, or
 * 0 if there is none.
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
 * Remove a request that was admitted at "began" from the history.
 */
static void
take_out(HrflowAllowance *allowance, int64 began)
{
	int64		n = allowance->width == 0 ? HRFLOW_NSLOTS :
	Max(began - allowance->began, 0) / allowance->width;

	/* The request was counted just after "began", perhaps in the next slot. */
	if (n < HRFLOW_NSLOTS - 1 && allowance->slots[n] == 0)
		n++;
	if (n < HRFLOW_NSLOTS && allowance->slots[n] > 0)
		allowance->slots[n]--;
}

/*
 * ------------------------------------------------------------------------
 * The limit
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
 * Does the limit allow a request now?  "spare" is a lower bound on the number
 * of requests that may still be sent: that number increases as requests leave
 * the period, and decreases only when a request is counted.  The slots are
 * added up only when "spare" has been used up, because the caller holds a
 * spinlock.
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
 * Raise the limit if it is time to do so.  Must be called only if the limit
 * allows no request now.
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
 * Admit a request, and count it, if the limit allows one now, and return
 * whether it does.  If not, return in *again when the caller should ask again,
 * and in *full_until when an exhausted limit admits requests again.
 * *full_until is 0 if the request is admitted, if it is delayed only to spread
 * requests (see SPREAD_PART), or if the limit resets soon.
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
 * Count a request that is sent regardless of the limit.
 */
void
hrflow_allowance_charge(HrflowAllowance *allowance, int64 now)
{
	count_one(allowance, now);
	allowance->left--;
	allowance->nadmitted++;
}

/*
 * Undo the counting of a request that was admitted at "began", but not sent.
 * If the reply to a later request sets "left", before or after this, one
 * request too many is admitted.  "nadmitted" may be 0 if the account's entry
 * was replaced in the meantime.
 */
void
hrflow_allowance_give_back(HrflowAllowance *allowance, int64 began)
{
	take_out(allowance, began);
	allowance->left++;
	if (allowance->nadmitted > 0)
		allowance->nadmitted--;
}

/*
 * Record the headers of the reply to request number "serial".  "left" is the
 * number of requests that may still be sent, or negative if the headers do not
 * contain it.  "reset" is the number of seconds after which more requests may
 * be sent.  Headers with a "reset" of more than HRFLOW_RETRY_AFTER_LIMIT are
 * ignored.
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
 * Record that a request that was admitted at "began", and sent, has ended
 * without being refused.  The request then counts as admitted at "now",
 * because we do not know when it arrived at the server.
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
 * Record that a refusal has started a pause.
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
 * Record that the probe sent at "sent_at" has been refused.  If two probes are
 * refused during the same pause, forget the learned limit: it must be wrong,
 * because it predicted that the second probe would be accepted.
 */
void
hrflow_allowance_prolong_pause(HrflowAllowance *allowance, int64 sent_at)
{
	allowance->full_at = sent_at;
	if (++allowance->nprobes > 1)
		forget(allowance);
}

/*
 * Return the time at which the pause would end if the period had this length,
 * or 0 if no request was admitted in the last period of that length before the
 * pause.
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
 * Return the time at which to send the next probe, not before "earliest"; or 0
 * if it cannot be predicted.
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
 * Adapt the width of the slots to a period that has just been learned.  If the
 * slots were too wide, treat all requests of the last period as admitted now.
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
 * the pause.  "now" is the time at which the probe that ended the pause was
 * sent.  Requests answered during the pause are included, because they were in
 * flight when the pause began.
 */
static int64
count_before_pause(const HrflowAllowance *allowance, int64 period, int64 now)
{
	int64		n = count_admitted(allowance, allowance->refused_at - period,
								   now);

	return Max(n - 1, 0);		/* without the probe */
}

/*
 * Return the length of the period that explains why a probe sent at "now" has
 * ended the pause, or 0 if none does.
 *
 * Several lengths may explain the end of the pause.  A period that is too long
 * may include time in which the account sent few requests; the limit learned
 * would then be too low, and no refusal would ever correct it.  A period that
 * is too short may not include all requests that the server counts.  Hence we
 * use the longest period whose rate is at least MIN_RATE of the highest rate.
 * To compute a rate, half a request is subtracted, because a period that
 * begins and ends with a request contains more than its share of requests.
 */
static int64
find_period(const HrflowAllowance *allowance, int64 now)
{
	double		rates[lengthof(usual_periods)];
	double		highest = 0;
	int64		found = 0;

	for (int i = 0; i < lengthof(usual_periods); i++)
	{
		int64		period = length_of(i);
		int64		end = end_of_pause(allowance, period);

		rates[i] = -1;
		if (end == 0 || end > now + allowance->width ||
			end + period / PERIOD_MARGIN < allowance->full_at)
			continue;
		period = with_margin(period);
		rates[i] = Max(count_before_pause(allowance, period, now) - 0.5, 0) /
			period;
		highest = Max(highest, rates[i]);
	}
	for (int i = 0; i < lengthof(usual_periods); i++)
	{
		if (rates[i] >= highest * MIN_RATE)
			found = with_margin(length_of(i));
	}
	return found;
}

/*
 * Learn the limit, if possible, after a probe sent at "now" has ended the
 * pause.
 */
void
hrflow_allowance_learn(HrflowAllowance *allowance, int64 now)
{
	int64		n;

	if (allowance->period == 0)
		allowance->period = find_period(allowance, now);
	if (allowance->period == 0)
		return;
	n = count_before_pause(allowance, allowance->period, now);
	fit_slots(allowance, now);
	if (allowance->allowed == 0 && allowance->nrefused < MIN_REFUSED)
		return;
	allowance->allowed = n;
	allowance->spare = 0;
	allowance->raise = FIRST_RAISE;
	allowance->raised_at = now + PERIODS_BEFORE_RAISE * allowance->period;
}
