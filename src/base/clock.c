/*-------------------------------------------------------------------------
 *
 * clock.c
 *		The time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "base/base.h"

/*
 * Microseconds of a clock that is never set, the same in every process.
 */
int64
hrflow_clock_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * HRFLOW_SEC + ts.tv_nsec / 1000;
}
