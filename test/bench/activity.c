/*
 * activity.c
 *		Measures the time that the library spends on tracking its activity.
 *
 * A copy of the library is linked with this file and --wrap for each of these
 * functions, so that calls from its other files pass through here.  Each
 * measurement includes the time of one call of clock_gettime().
 */
#include "postgres.h"

#include <time.h>

#include "base/activity.h"
#include "fmgr.h"

PG_FUNCTION_INFO_V1(bench_activity_seconds);

static int64 spent = 0;			/* nanoseconds */

static int64
nanoseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64CONST(1000000000) + t.tv_nsec;
}

#define MEASURED(name, parameters, arguments) \
	extern void __real_##name parameters; \
	extern void __wrap_##name parameters; \
	void \
	__wrap_##name parameters \
	{ \
		int64		began = nanoseconds(); \
\
		__real_##name arguments; \
		spent += nanoseconds() - began; \
	} \
	extern void __real_##name parameters

MEASURED(hrflow_activity_count, (HrflowActivity *activity, bool is_ok),
		 (activity, is_ok));
MEASURED(hrflow_activity_wait,
		 (HrflowActivity *activity, HrflowWaitReason reason, int64 resumes_at),
		 (activity, reason, resumes_at));
MEASURED(hrflow_activity_publish, (void), ());
MEASURED(hrflow_activity_go_on, (void), ());

/*
 * bench_activity_seconds() RETURNS float8
 *
 * Returns the time spent since the last call of this function.
 */
Datum
bench_activity_seconds(PG_FUNCTION_ARGS)
{
	float8		seconds = spent / 1e9;

	spent = 0;
	PG_RETURN_FLOAT8(seconds);
}
