/*-------------------------------------------------------------------------
 *
 * budget.c
 *		How many requests a statement has sent to the API, and an account on
 *		one day.
 *
 * A statement is what the client sent: functions and procedures that it calls
 * count as part of it, and so do the transactions that a procedure commits.  Each
 * FETCH is a statement, and so is each part of a result that a driver asks for.
 * Every try that is sent counts, since each may be paid for, and so do those that
 * libcurl makes by itself; links do not, since the API does not serve them.  A
 * try is counted before it is sent, so that those in flight do not exceed a limit
 * together.
 *
 * A day begins at midnight in UTC.  The requests of an account are counted
 * whether there is a limit or not, so that one that is set later holds for the
 * whole day.  They are kept over a restart; see saved.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "transport/transfer.h"

/* The statement that sent last, by when it began. */
static TimestampTz statement = 0;
static int64 nsent = 0;

/*
 * Number of requests that the present statement has sent.
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

static inline uint32
sent_on(uint64 sent, DateADT day)
{
	return (DateADT) (sent >> 32) == day ? (uint32) sent : 0;
}

/*
 * The counter of an account.  Where there are more accounts than counters, one
 * that has sent nothing today gives way; if there is none, accounts share one.
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
 * Count a request of an account, unless it has sent as many as "limit" today; 0:
 * count it anyway.  Returns whether it was counted.
 */
static bool
count_today(uint64 account, DateADT today, uint32 limit)
{
	pg_atomic_uint64 *counter = find_counter(account, today);
	uint64		sent = pg_atomic_read_u64(counter);
	uint32		n;

	do
	{
		n = sent_on(sent, today);
		if (limit > 0 && n >= limit)
			return false;
	} while (!pg_atomic_compare_exchange_u64(counter, &sent,
											 ((uint64) today << 32) | (n + 1)));
	return true;
}

/*
 * Has the present statement, or the account today, sent as many requests as it
 * may?  Returns HRFLOW_OK if not.
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
 * Say which limit hrflow_budget_check() has found to be reached.  Does not
 * throw.
 */
void
hrflow_budget_describe(const HrflowTransport *transport, HrflowStatus status,
					   char *detail, size_t size)
{
	const HrflowSettings *settings = transport->settings;

	if (status == HRFLOW_OVER_DAY)
		snprintf(detail, size, "The limit is %d requests a day.",
				 settings->max_requests_per_day);
	else
		snprintf(detail, size, "The limit is %d requests.",
				 settings->max_requests_per_statement);
}

/*
 * A request is about to be sent that hrflow_budget_check() has allowed.  Returns
 * false where another backend has sent the last one of today since.
 */
bool
hrflow_budget_take(HrflowTransfer *transfer)
{
	const HrflowTransport *transport = transfer->transport;

	transfer->try.statement = statement;
	transfer->try.day = hrflow_usage_today();
	if (!count_today(transport->account, transfer->try.day,
					 transport->settings->max_requests_per_day))
		return false;
	nsent++;
	return true;
}

/*
 * A try that was counted ended before it was sent, since there was no connection
 * to send it on: an outage of the network spends nothing.  It stays counted where
 * another statement or another day has begun since.  Does not throw.
 */
void
hrflow_budget_give_back(const HrflowTransfer *transfer)
{
	DateADT		today = hrflow_usage_today();

	if (transfer->try.day == today)
	{
		pg_atomic_uint64 *counter =
		find_counter(transfer->transport->account, today);
		uint64		sent = pg_atomic_read_u64(counter);

		while (sent_on(sent, today) > 0 &&
			   !pg_atomic_compare_exchange_u64(counter, &sent, sent - 1))
			;
	}
	if (transfer->try.statement == statement)
		nsent--;
}

/*
 * libcurl sends a request again by itself: count it.  Does not throw.
 */
void
hrflow_budget_charge(const HrflowTransport *transport)
{
	(void) count_today(transport->account, hrflow_usage_today(), 0);
	nsent++;
}
