/*-------------------------------------------------------------------------
 *
 * speed.c
 *		Measures the latency of requests, and estimates how long future
 *		requests will take.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/*
 * The latency is an exponential moving average, in which the latest reply has
 * a weight of 1 / WEIGHT.
 */
#define WEIGHT 8

/*
 * Record the latency of an attempt if it was successful.  There is no lock: if
 * two backends do this at the same time, one of the measurements may be lost.
 * Does not throw.
 */
void
hrflow_speed_note(const HrflowTransfer *transfer)
{
	pg_atomic_uint64 *latency =
	&hrflow_shared_get()->latency[HRFLOW_SERVER_OF(transfer)];
	int64		seen = pg_atomic_read_u64(latency);
	int64		took = Max(hrflow_clock_now() - transfer->attempt.began, 1);

	if (transfer->reply.status != HRFLOW_OK || transfer->reply.is_limited ||
		transfer->reply.http_status < 200 || transfer->reply.http_status > 299)
		return;
	pg_atomic_write_u64(latency,
						seen == 0 ? took : seen + (took - seen) / WEIGHT);
}

/*
 * Estimate how long this many requests to the API and for links will take with
 * these settings, in seconds, from the recent latency and the account's rate
 * limit.  Returns a negative number if neither is known, but 0 if "nrequests"
 * is 0.
 */
double
hrflow_speed_estimate(const HrflowSettings *settings, int64 nrequests,
					  int64 nlinks)
{
	HrflowShared *shared = hrflow_shared_get();
	double		latency = pg_atomic_read_u64(&shared->latency[HRFLOW_SERVER_API]);
	double		latency_of_links = pg_atomic_read_u64(&shared->latency[HRFLOW_SERVER_LINKS]);
	int64		burst;
	double		interval = hrflow_rate_interval(settings, &burst);
	double		seconds = -1;

	if (nrequests == 0)
		return 0;
	if (latency > 0)
	{
		/* A link is fetched after the reply that contains it. */
		double		at_once = latency +
		(nlinks > 0 ? latency_of_links : 0);
		double		by_turns = (nrequests * latency +
								nlinks * latency_of_links) /
		hrflow_window_expected(settings);

		seconds = Max(at_once, by_turns) / HRFLOW_SEC;
	}
	if (interval > 0)
		seconds = Max(seconds, Max(nrequests - burst, 0) * interval);
	return seconds;
}
