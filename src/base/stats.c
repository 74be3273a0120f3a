/*-------------------------------------------------------------------------
 *
 * stats.c
 *		Counters, and the function behind the view hrflow_embed_stats.
 *
 * Each backend counts locally, and adds its counts to the shared counters once
 * a second while a transport waits or is polled, when it has no more requests
 * in flight, when it begins, is suspended or ends, at the end of a batch, and
 * when the backend reads or resets the counters.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "compat.h"
#include "funcapi.h"
#include "base/base.h"
#include "lib/stringinfo.h"
#include "base/shared.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(hrflow_embed_stats);
PG_FUNCTION_INFO_V1(hrflow_embed_stats_reset);

/*
 * This backend's counts that have not been added to the shared counters yet.
 */
static uint64 pending[HRFLOW_NCOUNTERS];

/* Number of rows with each status, not added to the shared counters yet. */
static uint64 pending_rows[HRFLOW_NSTATUSES];

/*
 * Add to a counter.  Does not throw.
 */
void
hrflow_stats_count(HrflowCounter counter, uint64 n)
{
	pending[counter] += n;
}

/*
 * Count a row with this status.  Does not throw.
 */
void
hrflow_stats_count_row(HrflowStatus status)
{
	pending_rows[status]++;
}

/*
 * Add this backend's counts to the shared counters.  Does not throw once
 * hrflow_shared_get() has succeeded in this backend.
 */
void
hrflow_stats_flush(void)
{
	HrflowShared *shared = hrflow_shared_get();

	for (int i = 0; i < HRFLOW_NCOUNTERS; i++)
	{
		if (pending[i] != 0)
			pg_atomic_fetch_add_u64(&shared->counters[i], pending[i]);
		pending[i] = 0;
	}
	for (int i = 0; i < HRFLOW_NSTATUSES; i++)
	{
		if (pending_rows[i] != 0)
			pg_atomic_fetch_add_u64(&shared->rows[i], pending_rows[i]);
		pending_rows[i] = 0;
	}
	hrflow_usage_flush();
}

/*
 * Return the number of rows per status name, as jsonb.  Several statuses can
 * have the same name.
 */
static Datum
rows_by_status(HrflowShared *shared)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	for (int i = 0; i < HRFLOW_NSTATUSES; i++)
	{
		const char *name = hrflow_status_name(i);
		uint64		n = 0;
		bool		seen = false;

		for (int j = 0; j < HRFLOW_NSTATUSES; j++)
		{
			if (strcmp(hrflow_status_name(j), name) != 0)
				continue;
			seen |= j < i;
			n += pg_atomic_read_u64(&shared->rows[j]);
		}
		if (n > 0 && !seen)
			appendStringInfo(&json, "%s\"%s\": " UINT64_FORMAT,
							 json.len > 1 ? ", " : "", name, n);
	}
	appendStringInfoChar(&json, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

/*
 * hrflow_embed_stats() RETURNS record
 *
 * Returns the row of the view hrflow_embed_stats.
 */
Datum
hrflow_embed_stats(PG_FUNCTION_ARGS)
{
	HrflowShared *shared = hrflow_shared_get();
	TupleDesc	desc;
	Datum		values[HRFLOW_NCOUNTERS + 4];
	bool		nulls[HRFLOW_NCOUNTERS + 4] = {false};
	uint64		nrequests;
	uint64		nlinks;
	int			n = 0;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	/* Include counts that a failed statement may not have flushed. */
	hrflow_stats_flush();

	values[n++] = CStringGetTextDatum(hrflow_shared_is_shared() ?
									  "server" : "session");
	for (int i = 0; i < HRFLOW_LINK_REQUESTS; i++)
	{
		uint64		count = pg_atomic_read_u64(&shared->counters[i]);

		values[n++] = i == HRFLOW_WAITED_USEC ?
			Float8GetDatum(count / 1000000.0) : Int64GetDatum(count);
	}
	values[n++] = rows_by_status(shared);
	values[n++] = TimestampTzGetDatum(pg_atomic_read_u64(&shared->reset_at));
	nlinks = pg_atomic_read_u64(&shared->counters[HRFLOW_LINK_REQUESTS]);
	nrequests = pg_atomic_read_u64(&shared->counters[HRFLOW_REQUESTS]);
	values[n++] = Int64GetDatum(nrequests - Min(nlinks, nrequests));
	values[n++] = Int64GetDatum(nlinks);
	Assert(n == lengthof(values));

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/*
 * hrflow_embed_stats_reset() RETURNS void
 *
 * Sets all counters to zero, and the reset time to the current time.  This
 * backend's pending counts are flushed first, so that they are not added after
 * the reset.
 */
Datum
hrflow_embed_stats_reset(PG_FUNCTION_ARGS)
{
	HrflowShared *shared = hrflow_shared_get();

	hrflow_stats_flush();
	for (int i = 0; i < HRFLOW_NCOUNTERS; i++)
		pg_atomic_write_u64(&shared->counters[i], 0);
	for (int i = 0; i < HRFLOW_NSTATUSES; i++)
		pg_atomic_write_u64(&shared->rows[i], 0);
	pg_atomic_write_u64(&shared->reset_at, GetCurrentTimestamp());
	PG_RETURN_VOID();
}
