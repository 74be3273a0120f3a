/*-------------------------------------------------------------------------
 *
 * clock.c
 *		Reads the clock that the timeouts and pauses of requests use.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "base/base.h"

/*
 * Return the current time of the monotonic clock, in microseconds.  All
 * processes on a machine see the same clock, which cannot be set.
 */
int64
hrflow_clock_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * HRFLOW_SEC + ts.tv_nsec / 1000;
}
