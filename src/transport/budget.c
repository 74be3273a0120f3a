/*-------------------------------------------------------------------------
 *
 * budget.c
 *		Counts the requests to the API sent by a statement, and by each account
 *		today.
 *
 * A statement is a command sent by the client, including the functions and
 * procedures that it calls, and all transactions that a procedure commits.
 * Each FETCH is a statement, and so is each execution of a portal when a
 * driver fetches a result in parts; the statements of one simple query count
 * as one.  Every attempt that is sent counts, including those that libcurl
 * makes by itself, since each may be paid for.  Links do not count, since they
 * are not served by the API.  An attempt is counted before it is sent, so that
 * requests in flight together cannot exceed a limit.
 *
 * Days begin at midnight UTC.  An account's requests are counted even if there
 * is no limit, so that a limit set later applies to the whole day.  The counts
 * of the day survive a restart, but not a crash of the postmaster, if the
 * library is preloaded; see saved.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "transport/transfer.h"

/* Start time of the statement whose requests are counted in "nsent". */
static TimestampTz statement = 0;

/* Number of requests that the statement has sent. */
static int64 nsent = 0;

/*
 * Return the number of requests that the current statement has sent.
 */
int64
hrflow_budget_sent(void)
{
	if (statement != GetCurrentStatementStartTimestamp())
	{
		statement = GetCurrentStatementStartTimestamp();
		nsent = 0;
	}
	return nsent;
}

static inline DateADT
day_of(uint64 sent)
{
	return (DateADT) (sent >> 32);
}

/*
 * Return the day on which to count a request, which is today, unless the
 * counter is already that of tomorrow: then the clock has been set back, or
 * another backend has counted a request after midnight, but this backend read
 * the clock before midnight.  The counter must not be replaced by one that
 * begins at zero.  A day farther ahead is that of a clock that was wrong, and
 * must not block requests until then.
 */
static inline DateADT
day_to_count(uint64 sent, DateADT today)
{
	return day_of(sent) == today + 1 ? today + 1 : today;
}

/*
 * Return the number of requests counted so far on the day on which to count.
 */
static inline uint32
sent_on(uint64 sent, DateADT today)
{
	return day_of(sent) == day_to_count(sent, today) ? (uint32) sent : 0;
}

/*
 * Find the counter of an account.  If there are more accounts than counters,
 * replace the counter of an account that has sent nothing today; if there is
 * no such account, share the last counter.
 */
static pg_atomic_uint64 *
find_counter(uint64 account, DateADT today)
{
	HrflowDay  *days = hrflow_shared_get()->days;

	for (int i = 0; i < HRFLOW_NDAYS; i++)
	{
		uint64		found = pg_atomic_read_u64(&days[i].account);

		if (found == account ||
			(found == 0 &&
			 (pg_atomic_compare_exchange_u64(&days[i].account, &found, account) ||
			  found == account)))
			return &days[i].sent;
	}
	for (int i = 0; i < HRFLOW_NDAYS; i++)
	{
		uint64		found = pg_atomic_read_u64(&days[i].account);

		if (sent_on(pg_atomic_read_u64(&days[i].sent), today) == 0 &&
			pg_atomic_compare_exchange_u64(&days[i].account, &found, account))
			return &days[i].sent;
	}
	return &days[HRFLOW_NDAYS - 1].sent;
}

/*
 * Count a request of an account, unless the account has already sent "limit"
 * requests today; 0 means no limit.  Returns whether the request was counted,
 * and the day for which it was.
 */
static bool
count_today(uint64 account, uint32 limit, DateADT *day)
{
	DateADT		today = hrflow_usage_today();
	pg_atomic_uint64 *counter = find_counter(account, today);
	uint64		sent = pg_atomic_read_u64(counter);
	uint32		n;

	do
	{
		*day = day_to_count(sent, today);
		n = sent_on(sent, today);
		if (limit > 0 && n >= limit)
			return false;
	} while (!pg_atomic_compare_exchange_u64(counter, &sent,
											 ((uint64) *day << 32) | (n + 1)));
	return true;
}

/*
 * Has the current statement or the account reached its request limit?  Returns
 * HRFLOW_OVER_BUDGET or HRFLOW_OVER_DAY if so, else HRFLOW_OK.
 */
HrflowStatus
hrflow_budget_check(const HrflowTransport *transport)
{
	const HrflowSettings *settings = transport->settings;
	DateADT		today;
	int64		n = hrflow_budget_sent();

	if (settings->max_requests_per_statement > 0 &&
		n >= settings->max_requests_per_statement)
		return HRFLOW_OVER_BUDGET;
	if (settings->max_requests_per_day == 0)
		return HRFLOW_OK;
	today = hrflow_usage_today();
	return sent_on(pg_atomic_read_u64(find_counter(transport->account, today)),
				   today) >= (uint32) settings->max_requests_per_day ?
		HRFLOW_OVER_DAY : HRFLOW_OK;
}

/*
 * Describe the limit that has been reached.  "status" is HRFLOW_OVER_BUDGET or
 * HRFLOW_OVER_DAY.  Does not throw.
 */
void
hrflow_budget_describe(const HrflowTransport *transport, HrflowStatus status,
					   char *detail, size_t size)
{
	const HrflowSettings *settings = transport->settings;

	if (status == HRFLOW_OVER_DAY)
		snprintf(detail, size, "The daily limit is %d.",
				 settings->max_requests_per_day);
	else
		snprintf(detail, size, "The limit per statement is %d.",
				 settings->max_requests_per_statement);
}

/*
 * Count a request that is about to be sent, after hrflow_budget_check() has
 * allowed it.  Returns false if another backend has reached the daily limit in
 * the meantime.
 */
bool
hrflow_budget_take(HrflowTransfer *transfer)
{
	const HrflowTransport *transport = transfer->transport;

	transfer->attempt.statement = statement;
	if (!count_today(transport->account,
					 transport->settings->max_requests_per_day,
					 &transfer->attempt.day))
		return false;
	nsent++;
	transfer->attempt.is_counted = true;
	return true;
}

/*
 * Undo the counting of an attempt that ended before it was sent, so that a
 * network outage does not use up the limits.  The counts of a statement or day
 * that has ended remain unchanged.  Does nothing if the attempt was not
 * counted.  Does not throw.
 */
void
hrflow_budget_give_back(HrflowTransfer *transfer)
{
	DateADT		day = transfer->attempt.day;
	DateADT		today;

	if (!transfer->attempt.is_counted)
		return;
	transfer->attempt.is_counted = false;
	today = hrflow_usage_today();
	if (day == today || day == today + 1)
	{
		pg_atomic_uint64 *counter =
		find_counter(transfer->transport->account, today);
		uint64		sent = pg_atomic_read_u64(counter);

		while (day_of(sent) == day && (uint32) sent > 0 &&
			   !pg_atomic_compare_exchange_u64(counter, &sent, sent - 1))
			;
	}
	if (transfer->attempt.statement == statement)
		nsent--;
}

/*
 * Count a request that libcurl resends by itself.  It counts towards the limit
 * of the day and, unless the statement that sent it has ended, towards the
 * limit of that statement.  Does not throw.
 */
void
hrflow_budget_charge(const HrflowTransfer *transfer)
{
	DateADT		day;

	(void) count_today(transfer->transport->account, 0, &day);
	if (transfer->attempt.statement == statement)
		nsent++;
}
