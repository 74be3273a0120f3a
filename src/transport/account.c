/*-------------------------------------------------------------------------
 *
 * account.c
 *		Asks an account to admit requests, reports their outcomes to it, and
 *		computes the backoff of retries.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "transport/transfer.h"

/*
 * Maximum of the random pause before the first retry.  The maximum is doubled
 * for each further retry, up to BACKOFF_LIMIT, and the pause is between 0 and
 * the maximum (exponential backoff with full jitter).  Jitter prevents clients
 * that failed at the same time from returning at the same time.
 */
#define BACKOFF_BASE (250 * HRFLOW_MSEC)

/*
 * Maximum of the random pause before a retry.  A Retry-After from the server
 * may be longer.
 */
#define BACKOFF_LIMIT (16 * HRFLOW_SEC)

/*
 * Return the pause before a request is retried after this reply, in
 * microseconds, if the reply has not paused the account.
 */
int64
hrflow_account_backoff(const HrflowReply *reply)
{
	int64		most = BACKOFF_BASE << Min(Max(reply->attempts - 1, 0), 10);
	int64		pause = pg_prng_double(&pg_global_prng_state) *
	Min(most, BACKOFF_LIMIT);

	return Max(reply->retry_after * HRFLOW_SEC, pause);
}

/*
 * Report the outcome of an attempt to the account.  Does not throw.
 */
void
hrflow_account_report(HrflowTransfer *transfer, HrflowAccountOutcome outcome)
{
	HrflowTransport *transport = transfer->transport;
	bool		was_probe = transfer->attempt.is_probe;

	transfer->attempt.is_probe = false;
	if (was_probe)
		transport->admitted_at = 0;
	transfer->attempt.pause = hrflow_rate_report(transfer, outcome, was_probe,
												 &transfer->attempt.counts);
}

/*
 * If the attempt is a probe whose outcome has not been reported, report to the
 * account that the outcome is unknown.  Does not throw.
 */
void
hrflow_account_give_back_probe(HrflowTransfer *transfer)
{
	if (transfer->attempt.is_probe)
		hrflow_account_report(transfer, HRFLOW_GIVEN_UP);
}

/*
 * If an attempt that ended before it was sent is counted towards the rate
 * limit of the account, undo that, and let the transport ask the account again
 * at once.  Does not throw.
 */
void
hrflow_account_give_back(HrflowTransfer *transfer)
{
	HrflowTransport *transport = transfer->transport;

	if (!transfer->attempt.is_charged)
		return;
	transfer->attempt.is_charged = false;
	transport->admitted_at = 0;
	hrflow_rate_give_back(transport->account, transfer->attempt.began);
}

/*
 * Classify the outcome of a completed attempt for the account.  If the proxy
 * refused the attempt, nothing is known about the API.  An attempt that a
 * connect_timeout shorter than the default may have ended is not taken as a
 * sign of an outage, because an outage pauses the account for all backends.
 */
static HrflowAccountOutcome
outcome_of(const HrflowTransfer *transfer)
{
	const HrflowReply *reply = &transfer->reply;

	if (reply->status == HRFLOW_PROXY_REFUSED)
		return HRFLOW_GIVEN_UP;
	if (reply->is_limited)
		return HRFLOW_LIMITED;
	if (reply->http_status == 503 && reply->retry_after > 0 &&
		reply->retry_after * HRFLOW_SEC <= HRFLOW_RETRY_AFTER_LIMIT)
		return HRFLOW_OVERLOADED;
	if (reply->http_status >= 500)
		return HRFLOW_FAILED;
	if (reply->http_status == 408 || reply->status == HRFLOW_TIMEOUT)
		return HRFLOW_TIMED_OUT;
	if (reply->status == HRFLOW_CONNECT_FAILED ||
		reply->status == HRFLOW_CONNECTION_LOST)
		return reply->transient && !transfer->attempt.is_impatient ?
			HRFLOW_FAILED : HRFLOW_TIMED_OUT;
	return HRFLOW_ANSWERED;
}

/*
 * Unless it is too early to ask again, ask the account to admit a request to
 * the API now.  Counts the request if it is admitted; else records when to ask
 * again.
 */
HrflowAdmission
hrflow_account_admit(HrflowTransport *transport, int64 now)
{
	if (now < transport->admitted_at)
		return HRFLOW_WAIT;
	return hrflow_rate_admit(transport->account,
							 transport->settings->max_requests_per_minute,
							 &transport->serial, &transport->admitted_at,
							 &transport->paused_until);
}

/*
 * Report the outcome of a completed attempt to the account, unless the attempt
 * fetched a link.  Does not throw.
 */
void
hrflow_account_settle(HrflowTransfer *transfer)
{
	if (HRFLOW_IS_LINK(transfer->reply.target))
		return;
	hrflow_account_report(transfer, outcome_of(transfer));
}
