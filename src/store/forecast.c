/*-------------------------------------------------------------------------
 *
 * forecast.c
 *		Forecasts the requests that refreshing a store will take, now and on
 *		each of the next days.
 *
 * No request is sent.  The table of profiles says when each profile is due.
 * If "fields" has several parts, profiles that lack vectors of a section are
 * expected to take an additional request for each part.  The table of runs, if
 * there is one, shows how long a request takes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "compat.h"
#include "funcapi.h"
#include "store/refresh.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(hrflow_refresh_estimate);

/* Argument numbers. */
enum
{
	ARG_STORE,
	ARG_FIELDS,
	ARG_MAX_AGE,
	ARG_DAYS
};

/* Maximum length of a forecast, in days: a year. */
#define MAX_DAYS 366

/*
 * Assumed latency of a request, in seconds, if recorded runs do not show it.
 */
#define USUAL_LATENCY 0.2

/*
 * Average age at which a profile is due, as a fraction of max_age; see
 * hrflow_state_due_after().
 */
#define AVERAGE_AGE 0.95

/*
 * Statement that counts the profiles that are neither leased nor unwanted, by
 * the day on which they are due.  For each day, it returns the number of
 * profiles, the number of those that have been refreshed, and the number of
 * refreshed profiles that lack vectors of a section.  $1 is the current time,
 * and $2 is the last day of the forecast.  Profiles that are due later, or
 * never, are counted under day $2 + 1.
 */
static const char due_sql[] =
"SELECT CASE WHEN p.due_at <= $1%s THEN 0"
" WHEN p.due_at < $1 + $2 * interval '24 hours'"
" THEN 1 + floor(extract(epoch FROM p.due_at - $1) / 86400)::integer"
" ELSE $2 + 1 END,"
" count(*), count(p.refreshed_at), %s"
" FROM %P AS p%s"
" WHERE (p.lease_until IS NULL OR p.lease_until <= $1)"
" AND p.state IS DISTINCT FROM 'unwanted'"
" GROUP BY 1";

/*
 * SQL condition for profiles that are due at once, although they were
 * refreshed successfully, because at least one part of "fields" has never been
 * requested for them.  Profiles with an error that are due within a day are
 * excluded; see make_due_sql in model.c.  $1 is the current time, $5 the array
 * of the parts' names, and $6 the array of their sections.
 */
#define NEVER_ASKED \
	"(p.state = 'ok' AND p.sections IS NOT NULL AND (p.last_error IS NULL" \
	" OR p.due_at > $1 + interval '24 hours') IS TRUE" \
	" AND EXISTS (SELECT FROM unnest($5, $6) AS a(name, section)" \
	" WHERE a.name <> ALL (p.sections) AND a.section <> ALL (p.sections)))"

static const char or_never_asked_sql[] = " OR " NEVER_ASKED;
static const char and_asked_sql[] = " AND NOT " NEVER_ASKED;

/*
 * SQL expression that replaces count_lacking_sql if no additional requests are
 * sent for profiles that lack a section.
 */
static const char none_sql[] = "0::bigint";

/*
 * SQL expression that counts the refreshed profiles that lack vectors of at
 * least one of the $4 sections in the array $3.  The argument is an additional
 * condition, or empty.
 */
static const char count_lacking_sql[] =
"count(*) FILTER (WHERE p.refreshed_at IS NOT NULL"
" AND (v.n >= $4) IS NOT TRUE%s)";

static const char join_sections_sql[] =
" LEFT JOIN (SELECT w.source_id, w.%I, count(DISTINCT w.section) AS n"
" FROM %V AS w WHERE w.section = ANY ($3) GROUP BY 1, 2) AS v"
" ON v.source_id = p.source_id AND v.%I = p.%I";

/*
 * Statement that estimates the average latency of a request, in seconds, from
 * the last 20 runs that sent requests and ended because no more profiles were
 * due, or because of time_budget or max_profiles.  $1 is the assumed maximum
 * number of requests in flight.
 */
static const char latency_sql[] =
"SELECT (sum(extract(epoch FROM h.ended_at - h.started_at)"
" * LEAST(h.requests, $1)) / sum(h.requests))::float8"
" FROM (SELECT * FROM %R AS r WHERE r.requests > 0"
" AND r.stop_reason IN ('done', 'time_budget', 'max_profiles')"
" ORDER BY r.run DESC LIMIT 20) AS h";

/*
 * Number of profiles that are due on a day, and number of requests for them.
 */
typedef struct Day
{
	double		nprofiles;
	double		nrequests;
} Day;

typedef struct Forecast
{
	TimestampTz now;
	int			ndays;			/* last day of the forecast; day 0 is now */
	Day		   *days;			/* array of ndays + 1 days; days[0] is for
								 * profiles due now */
	int			nparts;			/* number of additional requests for a profile
								 * that lacks a section */
	double		lacking;		/* fraction of refreshed profiles that lack a
								 * section */
	double		latency;		/* latency of a request, in seconds */
	double		interval;		/* expected time between two requests, in
								 * seconds */
} Forecast;

/*
 * Add the names and the sections of the parts of "fields" to the parameters.
 */
static void
add_parts(HrflowParameters *parameters, const HrflowRun *run)
{
	int			n = list_length(run->parts);
	Datum	   *names = palloc(sizeof(Datum) * Max(n, 1));
	Datum	   *sections = palloc(sizeof(Datum) * Max(n, 1));
	ListCell   *cell;

	foreach(cell, run->parts)
	{
		const HrflowPart *part = lfirst(cell);

		names[foreach_current_index(cell)] = CStringGetTextDatum(part->name);
		sections[foreach_current_index(cell)] =
			CStringGetTextDatum(part->section);
	}
	hrflow_store_add(parameters, TEXTARRAYOID,
					 PointerGetDatum(construct_array(names, n, TEXTOID, -1,
													 false, TYPALIGN_INT)));
	hrflow_store_add(parameters, TEXTARRAYOID,
					 PointerGetDatum(construct_array(sections, n, TEXTOID, -1,
													 false, TYPALIGN_INT)));
}

/*
 * For each day, count the profiles that are due, and the requests that they
 * will take.
 */
static void
count_due(Forecast *forecast, const HrflowStore *store, const HrflowRun *run)
{
	bool		may_lack = run->fields != NULL && forecast->nparts > 0;
	bool		knows = run->fields != NULL && store->has_fetched_with;
	int			nsections = ArrayGetNItems(ARR_NDIM(run->sections),
										   ARR_DIMS(run->sections));
	HrflowParameters parameters = {0};
	int64		nrefreshed = 0;
	int64		nlacking = 0;
	double	   *nnew = palloc0(sizeof(double) * (forecast->ndays + 2));
	uint64		n;

	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(forecast->now));
	hrflow_store_add(&parameters, INT4OID, Int32GetDatum(forecast->ndays));
	hrflow_store_add(&parameters, TEXTARRAYOID,
					 PointerGetDatum(run->sections));
	hrflow_store_add(&parameters, INT4OID, Int32GetDatum(nsections));
	add_parts(&parameters, run);
	n = hrflow_store_execute(hrflow_store_sql(store, due_sql,
											  knows ? or_never_asked_sql : "",
											  !may_lack ? none_sql :
											  hrflow_store_sql(store, count_lacking_sql,
															   knows ? and_asked_sql : ""),
											  may_lack ?
											  hrflow_store_sql(store,
															   join_sections_sql) :
											  ""),
							 &parameters);
	for (uint64 i = 0; i < n; i++)
	{
		int			day = DatumGetInt32(hrflow_store_datum(i, 1));
		int64		count = DatumGetInt64(hrflow_store_datum(i, 2));
		int64		refreshed = DatumGetInt64(hrflow_store_datum(i, 3));
		int64		lacking = DatumGetInt64(hrflow_store_datum(i, 4));

		nrefreshed += refreshed;
		nlacking += lacking;
		nnew[day] = count - refreshed;
		if (day > forecast->ndays)
			continue;
		forecast->days[day].nprofiles = count;
		forecast->days[day].nrequests =
			count + (double) lacking * forecast->nparts;
	}

	/* Assume that new profiles lack sections as often as the others do. */
	forecast->lacking = nrefreshed > 0 ? (double) nlacking / nrefreshed : 0;
	for (int day = 0; day <= forecast->ndays; day++)
		forecast->days[day].nrequests +=
			nnew[day] * forecast->lacking * forecast->nparts;
}

/*
 * Add "nprofiles" profiles that are due again on a day to the counts of that
 * day.
 */
static void
add_again(const Forecast *forecast, int day, double nprofiles)
{
	forecast->days[day].nprofiles += nprofiles;
	forecast->days[day].nrequests +=
		nprofiles * (1 + forecast->lacking * forecast->nparts);
}

/*
 * Add the profiles that become due again on each day, "age" days after they
 * were refreshed.  "age" may be less than 1.
 */
static void
add_repeats(Forecast *forecast, double age)
{
	double		nbefore = 0;	/* number of profiles due on earlier days */

	for (int day = 0; day <= forecast->ndays; day++)
	{
		double		nfirst = forecast->days[day].nprofiles;

		if (age < 1)
		{
			if (day > 0)
				add_again(forecast, day, nbefore / age);
			nbefore += nfirst;
		}
		else
		{
			int			whole = (int) Min(floor(age), MAX_DAYS + 1);
			double		rest = age - floor(age);

			if (day >= whole)
				add_again(forecast, day, (1 - rest) *
						  forecast->days[day - whole].nprofiles);
			if (day >= whole + 1)
				add_again(forecast, day, rest *
						  forecast->days[day - whole - 1].nprofiles);
		}
	}
}

/*
 * Set the latency of a request, and the interval between two requests, for the
 * current settings.  Assume the number of requests in flight with which a run
 * begins, because it is not known whether the server accepts more.
 */
static void
find_speed(Forecast *forecast, const HrflowStore *store)
{
	const HrflowSettings *settings = hrflow_settings_get(false);
	Oid			runs = hrflow_history_find(store);
	HrflowParameters parameters = {0};
	int			nin_flight = Min(settings->max_concurrency, HRFLOW_MAX_WASTED);
	int64		burst;

	forecast->latency = USUAL_LATENCY;
	if (OidIsValid(runs))
	{
		bool		is_null;
		Datum		latency;

		hrflow_store_add(&parameters, INT8OID,
						 Int64GetDatum(nin_flight));
		hrflow_store_execute(hrflow_store_sql(store, latency_sql, runs),
							 &parameters);
		latency = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
								1, &is_null);
		if (!is_null)
			forecast->latency = DatumGetFloat8(latency);
	}
	forecast->interval = Max(forecast->latency / nin_flight,
							 hrflow_rate_interval(settings, &burst));
}

/*
 * Return the time that a number of requests is expected to take.
 */
static Interval *
time_of(const Forecast *forecast, double nrequests)
{
	Interval   *result = palloc0(sizeof(Interval));

	if (nrequests > 0)
		result->time = Max(nrequests * forecast->interval, forecast->latency) *
			USECS_PER_SEC;
	return result;
}

static void
put_days(FunctionCallInfo fcinfo, const Forecast *forecast)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	for (int day = 0; day <= forecast->ndays; day++)
	{
		double		nrequests = rint(forecast->days[day].nrequests);
		Datum		values[5];
		bool		nulls[5] = {false};

		values[0] = Int32GetDatum(day);
		values[1] = TimestampTzGetDatum(forecast->now + day * USECS_PER_DAY);
		values[2] = Int64GetDatum((int64) rint(forecast->days[day].nprofiles));
		values[3] = Int64GetDatum((int64) nrequests);
		values[4] = IntervalPGetDatum(time_of(forecast, nrequests));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
}

/*
 * Convert an interval to days, with 30 days per month.
 */
static double
days_of(const Interval *interval)
{
	return interval->month * (double) DAYS_PER_MONTH + interval->day +
		interval->time / (double) USECS_PER_DAY;
}

/*
 * hrflow_refresh_estimate(store regclass, fields jsonb, max_age interval,
 *						   days int)
 *		RETURNS TABLE (day int, until timestamptz, profiles bigint,
 *					   requests bigint, duration interval)
 */
Datum
hrflow_refresh_estimate(PG_FUNCTION_ARGS)
{
	Forecast	forecast = {.now = GetCurrentTimestamp()};
	HrflowRun	run = {0};
	HrflowStore store;
	Interval   *max_age;

	if (PG_ARGISNULL(ARG_STORE))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be null", "store")));
	forecast.ndays = PG_ARGISNULL(ARG_DAYS) ? -1 : PG_GETARG_INT32(ARG_DAYS);
	if (forecast.ndays < 0 || forecast.ndays > MAX_DAYS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be between %d and %d",
						"days", 0, MAX_DAYS)));
	max_age = hrflow_state_get_max_age(fcinfo, ARG_MAX_AGE);
	InitMaterializedSRF(fcinfo, 0);
	hrflow_fetch_read_fields(&run, PG_ARGISNULL(ARG_FIELDS) ? NULL :
							 PG_GETARG_JSONB_P(ARG_FIELDS));
	forecast.days = palloc0(sizeof(Day) * (forecast.ndays + 1));

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(ARG_STORE), InvalidOid,
					  HRFLOW_STORE_READ);
	hrflow_fetch_set_kind(&run, &store);
	forecast.nparts = list_length(run.parts) > 1 ? list_length(run.parts) : 0;
	count_due(&forecast, &store, &run);
	if (days_of(max_age) > 0)
		add_repeats(&forecast, AVERAGE_AGE * days_of(max_age));
	find_speed(&forecast, &store);
	put_days(fcinfo, &forecast);
	hrflow_store_close(&store);
	SPI_finish();
	return (Datum) 0;
}
