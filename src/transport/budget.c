/*-------------------------------------------------------------------------
 *
 * budget.c
 *		How many requests a statement has sent to the API.
 *
 * A statement is what the client sent: functions and procedures that it calls
 * count as part of it, and so do the transactions that a procedure commits.  Each
 * FETCH is a statement, and so is each part of a result that a driver asks for.
 * Every try counts, since each may be paid for, and so do those that libcurl
 * makes by itself; links do not, since the API does not serve them.
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
 * Has the present statement sent as many requests as it may?
 */
bool
hrflow_budget_is_spent(const HrflowSettings *settings)
{
	if (statement != GetCurrentStatementStartTimestamp())
	{
		statement = GetCurrentStatementStartTimestamp();
		nsent = 0;
	}
	return settings->max_requests_per_statement > 0 &&
		nsent >= settings->max_requests_per_statement;
}

/*
 * A request is sent that hrflow_budget_is_spent() has been asked about before.
 * Does not throw.
 */
void
hrflow_budget_charge(void)
{
	nsent++;
}
