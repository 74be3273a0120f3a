/*-------------------------------------------------------------------------
 *
 * show.c
 *		Counts the requests of a transport, and records why the backend waits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/*
 * Count a request that is being sent or resent.  An attempt that is never sent
 * does not count, because no server has seen it.  Does not throw.
 */
void
hrflow_show_sent(HrflowTransfer *transfer)
{
	bool		is_retry = transfer->sent_at != 0;
	HrflowActivityState *state = &transfer->transport->activity->state;
	bool		is_link = HRFLOW_IS_LINK(transfer->reply.target);

	hrflow_usage_count(transfer->transport->usage, transfer->caller, is_link);
	hrflow_stats_count(HRFLOW_LINK_REQUESTS, is_link);
	hrflow_stats_count(HRFLOW_REQUESTS, 1);
	hrflow_stats_count(HRFLOW_RETRIES, is_retry);
	state->nrequests++;
	if (is_retry)
		state->nretries++;
	if (!is_retry)
		transfer->sent_at = hrflow_clock_now();
}

/*
 * Record why the backend is about to wait.  "retry_at" is the time of the
 * transport's next retry, or HRFLOW_NEVER.  "is_narrowed" means that the
 * memory limit for replies does not allow another request to be started.  Does
 * not throw.
 */
void
hrflow_show_wait(HrflowTransport *transport, int64 retry_at, bool is_narrowed)
{
	HrflowActivity *activity = transport->activity;

	activity->state.nin_flight = transport->nin_flight;
	if (transport->rests_until != 0)
		hrflow_activity_wait(activity, HRFLOW_FOR_RETRY,
							 transport->rests_until);
	else if (transport->awaits_rate)
		hrflow_activity_wait(activity, HRFLOW_FOR_RATE,
							 Max(transport->paused_until,
								 transport->admitted_at));
	else if (transport->nready > 0 && is_narrowed)
		hrflow_activity_wait(activity, HRFLOW_FOR_MEMORY, HRFLOW_NEVER);
	else if (transport->nready == 0 && transport->nin_flight == 0 &&
			 transport->ndelayed > 0)
		hrflow_activity_wait(activity, HRFLOW_FOR_RETRY, retry_at);
	else
		hrflow_activity_wait(activity, HRFLOW_FOR_NETWORK, HRFLOW_NEVER);
}
