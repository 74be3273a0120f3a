/*-------------------------------------------------------------------------
 *
 * refresh.c
 *		hrflow_refresh(): fetches what is due in a store, batch by batch.
 *
 * A batch takes two short transactions.  The first one claims profiles: it
 * gives them a lease, so that nobody else asks for them.  Then they are
 * fetched, with no snapshot and no lock held.  The second one writes what came.
 * Whoever dies in between loses the lease when its time is over, and nothing
 * else.
 *
 * The time a lease ends also tells whose it is: nothing is written of a
 * profile whose lease is another's by then, or that has changed since it was
 * claimed, which its generation tells.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "compat.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "store/refresh.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(hrflow_refresh);

/* The arguments, in their order. */
enum
{
	ARG_STORE,
	ARG_FIELDS,
	ARG_MAX_AGE,
	ARG_TIME_BUDGET,
	ARG_MAX_PROFILES,
	ARG_BATCH_SIZE,
	ARG_MAX_ATTEMPTS,
	ARG_PROFILES
};

/* A run in which more than this part, and this many, are gone erases none. */
#define MAX_GONE_PART 0.05
#define MAX_GONE_FREE 20

/* Seconds between two lines of progress. */
#define PROGRESS_INTERVAL 5

static const char count_due_sql[] =
"SELECT count(*) FROM %P WHERE due_at <= clock_timestamp()";

/*
 * ------------------------------------------------------------------------
 * The run
 * ------------------------------------------------------------------------
 */

/*
 * Tell a person how far it has come; the last line in any case.
 */
static void
report_progress(HrflowRun *run, bool is_last)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		ndone = run->nok + run->nretry + run->nfailed + run->nmissing;
	double		seconds = (now - run->started) / 1e6;
	double		rate = ndone / Max(seconds, 1e-3);
	int64		remaining = Max(run->ndue - ndone, 0);

	if (run->is_silent)
		return;
	if (is_last)
		ereport(INFO,
				(errmsg("%s: " INT64_FORMAT " refreshed, " INT64_FORMAT " to be tried again, " INT64_FORMAT " failed, " INT64_FORMAT " not found, " INT64_FORMAT " gone, in %.1f s",
						run->name, run->nok, run->nretry, run->nfailed,
						run->nmissing - run->ngone, run->ngone, seconds)));
	else if (now - run->reported >= PROGRESS_INTERVAL * USECS_PER_SEC)
	{
		ereport(INFO,
				(errmsg("%s: " INT64_FORMAT " done, " INT64_FORMAT " of them not well, " INT64_FORMAT " remaining, %.0f a second, about %.0f s to go",
						run->name, ndone, ndone - run->nok, remaining, rate,
						remaining / Max(rate, 1e-3))));
		run->reported = now;
	}
}

/*
 * The API has refused to go on, or the network fails.
 */
static void
stop(HrflowRun *run, const char *reason)
{
	run->stopped = true;
	ereport(WARNING,
			(errmsg("refresh of %s was stopped: %s", run->name, reason),
			 errdetail("What was fetched is kept, and no attempts were counted.")));
}

/*
 * Remember the sources that the API does not know, and say so.
 */
static void
note_bad_sources(HrflowRun *run, List *profiles)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);
	ListCell   *cell;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);
		ListCell   *known;
		bool		is_new = profile->status == HRFLOW_INVALID_SOURCE;

		foreach(known, run->bad_sources)
			is_new = is_new && strcmp(lfirst(known), profile->source_id) != 0;
		if (!is_new)
			continue;
		run->bad_sources = lappend(run->bad_sources,
								   pstrdup(profile->source_id));
		ereport(WARNING,
				(errmsg("refresh of %s leaves a source out: the API does not know it",
						run->name),
				 errdetail("Source \"%s\": %s", profile->source_id,
						   profile->error),
				 errhint("Check the source's id, and whose API key it is.")));
	}
	MemoryContextSwitchTo(old);
}

/*
 * Remember those that the API did not know at the last refresh, and does not
 * now; and stop when they are so many that it must be a mistake.
 */
static void
note_gone(HrflowRun *run, List *profiles)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);
	int64		ndone;
	ListCell   *cell;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);
		HrflowGone *gone;

		if (!profile->is_ours || !profile->is_current || profile->unasked ||
			profile->status != HRFLOW_NOT_FOUND ||
			profile->claimed_state != HRFLOW_STATE_MISSING)
			continue;
		gone = palloc(sizeof(HrflowGone));
		gone->source_id = pstrdup(profile->source_id);
		gone->identifier = pstrdup(profile->identifier);
		gone->generation = profile->generation;
		run->gone = lappend(run->gone, gone);
	}
	MemoryContextSwitchTo(old);

	ndone = run->nok + run->nretry + run->nfailed + run->nmissing;
	if (list_length(run->gone) >= MAX_GONE_FREE &&
		list_length(run->gone) > MAX_GONE_PART * ndone)
	{
		ereport(WARNING,
				(errmsg("refresh of %s was stopped: too many profiles are gone",
						run->name),
				 errdetail("Of " INT64_FORMAT " profiles the API does not know %d, twice by now.  Nothing was erased.",
						   ndone, list_length(run->gone)),
				 errhint("Check hrflow_embed.base_url, the API key and the source.  If the profiles were deleted, untrack them with hrflow_untrack().")));
		run->gone = NIL;
		run->stopped = true;
	}
}

/*
 * Fetch and write a batch that was claimed.
 */
static void
process_batch(HrflowRun *run, List *profiles, int limit)
{
	HrflowResult refusal;
	bool		ok = hrflow_fetch(run, profiles, limit, &refusal);
	char	   *reason;
	ListCell   *cell;

	if (!ok)
		reason = hrflow_error_describe(&refusal);
	else
	{
		reason = hrflow_state_outage(run, profiles, limit);
		foreach(cell, profiles)
			((HrflowProfile *) lfirst(cell))->is_postponed = reason != NULL;
	}
	hrflow_write(run, profiles, !ok);
	if (reason != NULL && *reason != '\0')
		stop(run, reason);
	note_bad_sources(run, profiles);
	note_gone(run, profiles);
}

/*
 * Give the leases back after an error.  Where that fails too they stay until
 * their end, with a warning: the caller is to see what was thrown first, and
 * that ends the transaction, whatever state it is in.
 */
static void
try_release(HrflowRun *run, List *profiles)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		hrflow_claim_release(run, profiles);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("leases could not be given back: %s",
						error->message ? error->message : "unknown error"),
				 errdetail("They end by themselves.")));
	}
	PG_END_TRY();
}

/*
 * Process a batch; when that fails the leases are given back.
 */
static void
try_batch(HrflowRun *run, List *profiles, int limit)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		process_batch(run, profiles, limit);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(run->context);
		error = CopyErrorData();
		FlushErrorState();
		while (ActiveSnapshotSet())
			PopActiveSnapshot();
		SPI_rollback();
		MemoryContextSwitchTo(context);
		try_release(run, profiles);
		ReThrowError(error);
	}
	PG_END_TRY();
}

/*
 * Erase those that are gone; see hrflow_erase_gone().
 */
static void
erase_gone(HrflowRun *run)
{
	HrflowStore store;
	int64		nkept;

	hrflow_work_begin(run, &store);
	run->ngone = hrflow_erase_gone(run, &store, &nkept);
	hrflow_work_end(&store);

	if (nkept > 0)
		ereport(WARNING,
				(errmsg_plural("refresh of %s keeps " INT64_FORMAT " profile that the API does not know",
							   "refresh of %s keeps " INT64_FORMAT " profiles that the API does not know",
							   nkept, run->name, nkept),
				 errdetail("Since each was first not found, no other profile of its source was refreshed."),
				 errhint("Check hrflow_embed.base_url, the API key and the source.  If the profiles were deleted, untrack them with hrflow_untrack().")));
}

/*
 * Refresh until nothing is to be claimed, or time or number are up.
 */
static void
refresh(HrflowRun *run)
{
	HrflowStore store;

	hrflow_work_begin(run, &store);
	run->identifier = store.identifier;
	run->name = MemoryContextStrdup(run->context, store.vectors_name);
	if (!run->is_silent)
	{
		hrflow_store_execute(hrflow_store_sql(&store, count_due_sql), NULL);
		run->ndue = DatumGetInt64(hrflow_store_datum(0, 1));
	}
	hrflow_work_end(&store);

	while (!run->stopped && run->nclaimed < run->max_profiles)
	{
		int			limit;
		List	   *profiles;

		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(run->batch_context);
		profiles = hrflow_claim(run, &limit);
		if (profiles == NIL)
			break;
		try_batch(run, profiles, limit);
		report_progress(run, false);
		MemoryContextReset(run->batch_context);
	}
	if (run->gone != NIL)
		erase_gone(run);
	report_progress(run, true);
}

/*
 * ------------------------------------------------------------------------
 * The procedure
 * ------------------------------------------------------------------------
 */

static int
get_positive(FunctionCallInfo fcinfo, int argno, const char *name, int max)
{
	int			value = PG_ARGISNULL(argno) ? 0 : PG_GETARG_INT32(argno);

	if (value < 1 || value > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between 1 and %d", name, max)));
	return value;
}

/*
 * The most profiles that a run is to fetch.
 */
static int64
get_max_profiles(FunctionCallInfo fcinfo)
{
	int64		value = PG_ARGISNULL(ARG_MAX_PROFILES) ? PG_INT64_MAX :
	PG_GETARG_INT64(ARG_MAX_PROFILES);

	if (value < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between 1 and " INT64_FORMAT,
						"max_profiles", PG_INT64_MAX)));
	return value;
}

/*
 * A run has transactions of its own.
 */
static void
check_context(FunctionCallInfo fcinfo)
{
	CallContext *context = (CallContext *) fcinfo->context;

	if (context == NULL || !IsA(context, CallContext) || context->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("hrflow_refresh cannot run inside a transaction block"),
				 errhint("CALL it alone: outside BEGIN and COMMIT, not in a function, and not in one string with other statements.")));
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("hrflow_refresh cannot run on a standby"),
				 errhint("CALL it on the primary server.")));
}

/*
 * hrflow_refresh(store regclass, fields jsonb, max_age interval,
 *				  time_budget interval, max_profiles bigint, batch_size int,
 *				  max_attempts int, profiles regclass)
 */
Datum
hrflow_refresh(PG_FUNCTION_ARGS)
{
	HrflowRun	run = {0};
	MemoryContext old;

	check_context(fcinfo);
	if (PG_ARGISNULL(ARG_STORE))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be null", "store")));

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	run.context = AllocSetContextCreate(CurrentMemoryContext,
										"hrflow_embed refresh",
										ALLOCSET_DEFAULT_SIZES);
	run.batch_context = AllocSetContextCreate(run.context,
											  "hrflow_embed refresh batch",
											  ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(run.context);

	run.vectors = PG_GETARG_OID(ARG_STORE);
	run.profiles = PG_ARGISNULL(ARG_PROFILES) ? InvalidOid :
		PG_GETARG_OID(ARG_PROFILES);
	hrflow_fetch_read_fields(&run, PG_ARGISNULL(ARG_FIELDS) ? NULL :
							 (Jsonb *) PG_DETOAST_DATUM_COPY(PG_GETARG_DATUM(ARG_FIELDS)));
	run.max_age = palloc(sizeof(Interval));
	*run.max_age = *hrflow_store_get_interval(fcinfo, ARG_MAX_AGE, "max_age");
	run.started = GetCurrentTimestamp();
	run.reported = run.started;
	run.deadline = DT_NOEND;
	if (!PG_ARGISNULL(ARG_TIME_BUDGET))
	{
		Interval   *budget = hrflow_store_get_interval(fcinfo, ARG_TIME_BUDGET,
													   "time_budget");

		run.deadline =
			DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													TimestampTzGetDatum(run.started),
													IntervalPGetDatum(budget)));
	}
	run.max_profiles = get_max_profiles(fcinfo);
	run.batch_size = get_positive(fcinfo, ARG_BATCH_SIZE, "batch_size", 10000);
	run.max_attempts = get_positive(fcinfo, ARG_MAX_ATTEMPTS, "max_attempts",
									1000);
	(void) hrflow_state_due_after(run.max_age); /* in range? */
	run.is_silent = MyBackendType != B_BACKEND ||
		whereToSendOutput != DestRemote ||
		strncmp(application_name, "pg_cron", strlen("pg_cron")) == 0;

	/* Whatever snapshot the CALL itself has taken goes with this. */
	SPI_commit();
	refresh(&run);

	MemoryContextSwitchTo(old);
	SPI_finish();
	PG_RETURN_VOID();
}
