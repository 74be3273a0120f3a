/*-------------------------------------------------------------------------
 *
 * refresh.c
 *		Implements hrflow_refresh(), which fetches the vectors of profiles that
 *		are due.
 *
 * Requests are sent in a rolling window.  Whenever another request may be
 * sent, and no claimed profile is left, a short transaction claims a few
 * profiles.  A claim gives them a lease, so that no other session requests
 * them.  While it fetches profiles, the run holds no snapshot, and no lock for
 * which another session waits (see history.c).  Replies are written every
 * second, or as soon as there is a batch of them, in another short
 * transaction.  So a reply is usually written without waiting for any other
 * reply, and a session that crashes usually loses only the replies of the last
 * second.  The leases of such a session expire.
 *
 * A reply that has arrived has been paid for.  If the run is ended by an
 * error, a query cancel, a time limit or the end of the session, it first
 * tries to write all replies, including those that arrive within DRAIN_TIME.
 *
 * The time at which a lease ends also identifies its holder.  If a profile's
 * lease no longer has the end that the run has set, another session has
 * claimed the profile, or cleared its lease, in the meantime, and the run
 * writes nothing for the profile.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "compat.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/latch.h"
#include "store/refresh.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(hrflow_refresh);

/* Argument numbers. */
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

/* Maximum time between two writes, in milliseconds. */
#define WRITE_INTERVAL 1000

/*
 * Maximum time without any reply before a run stops, in milliseconds.  A
 * shorter batch_timeout takes precedence.
 */
#define MAX_PATIENCE (5 * 60 * 1000)

/*
 * Maximum time for which a run waits for requests in flight after an error or
 * at the end of the session.  It is short, so that a query cancel takes effect
 * almost immediately.
 */
#define DRAIN_TIME (100 * HRFLOW_MSEC)

/*
 * Statement timeout, in milliseconds, for recording the end of a run that is
 * ended by an error or by the end of the session.
 */
#define LAST_ENTRY_TIME 2000

/* Minimum time between two progress reports. */
#define REPORT_INTERVAL (5 * USECS_PER_SEC)

static const char count_due_sql[] =
"SELECT count(*) FROM %P WHERE due_at <= clock_timestamp()";

/*
 * ------------------------------------------------------------------------
 * The run
 * ------------------------------------------------------------------------
 */

/*
 * Report progress to the client, if there is one, at most once every
 * REPORT_INTERVAL.  The last report is always sent.
 */
static void
report_progress(HrflowRun *run, bool is_last)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		nok = run->tallies[HRFLOW_TALLY_OK];
	int64		nretry = run->tallies[HRFLOW_TALLY_RETRY];
	int64		nfailed = run->tallies[HRFLOW_TALLY_FAILED];
	int64		nmissing = run->tallies[HRFLOW_TALLY_MISSING];
	int64		ndone = nok + nretry + nfailed + nmissing;
	double		seconds = (now - run->started) / 1e6;
	double		rate = ndone / Max(seconds, 1e-3);
	int64		remaining = Max(run->ndue - ndone, 0);

	if (run->is_scheduled)
		return;
	if (is_last)
		ereport(INFO,
				(errmsg("%s: " INT64_FORMAT " refreshed, " INT64_FORMAT " to be retried, " INT64_FORMAT " failed, " INT64_FORMAT " not found, " INT64_FORMAT " gone, in %.1f s",
						run->name, nok, nretry, nfailed,
						Max(nmissing - run->ngone, 0), run->ngone, seconds),
				 run->nlacking != 0 ?
				 errdetail_plural(INT64_FORMAT " profile was not due, but not all of \"fields\" had been requested for it.",
								  INT64_FORMAT " profiles were not due, but not all of \"fields\" had been requested for them.",
								  run->nlacking, run->nlacking) :
				 run->npostponed != 0 ?
				 errdetail_plural(INT64_FORMAT " profile was postponed, because another session was sending its content.",
								  INT64_FORMAT " profiles were postponed, because other sessions were sending their contents.",
								  run->npostponed, run->npostponed) : 0));
	else if (now - run->reported >= REPORT_INTERVAL)
	{
		if (ndone == 0)
			ereport(INFO,
					(errmsg("%s: no profiles processed yet, " INT64_FORMAT " remaining",
							run->name, remaining)));
		else
			ereport(INFO,
					(errmsg("%s: " INT64_FORMAT " done, " INT64_FORMAT " of them unsuccessful, " INT64_FORMAT " remaining, %.0f per second, about %.0f s left",
							run->name, ndone, ndone - nok, remaining, rate,
							remaining / Max(rate, 1e-3))));
		run->reported = now;
	}
}

/*
 * If the run has a "stop_reason", report it as an ERROR if "is_error" is true,
 * or else as a WARNING.  A scheduler notices only whether the call failed, so
 * a scheduled run reports an ERROR, unless it has reached a limit that the
 * user has set.
 */
static void
report_stop(const HrflowRun *run, bool is_error)
{
	if (run->stop_reason == NULL)
		return;
	ereport(is_error ? ERROR : WARNING,
			(is_error ? errcode(run->stop_code) : 0,
			 errmsg("refresh of %s was stopped: %s", run->name,
					run->stop_reason),
			 run->stop_detail != NULL ?
			 errdetail_internal("%s", run->stop_detail) :
			 run->nrefused == 0 ?
			 errdetail("Fetched vectors were stored.  Stopping the run did not increment the \"attempts\" of any profile.") :
			 errdetail_plural("Vectors fetched for %d profile were not stored, and its \"attempts\" were not incremented.",
							  "Vectors fetched for %d profiles were not stored, and their \"attempts\" were not incremented.",
							  run->nrefused, run->nrefused),
			 run->stop_hint != NULL ? errhint("%s", run->stop_hint) : 0));
}

/*
 * Is the time budget exhausted?
 */
static bool
is_late(const HrflowRun *run)
{
	return run->deadline != DT_NOEND &&
		GetCurrentTimestamp() >= run->deadline;
}

/*
 * HrflowWantedMethods.next: return the next request, or NULL if there is none
 * at present.  Claims more profiles if all claimed profiles have been
 * requested, and the run may claim more now.
 */
static HrflowWanted *
next_wanted_of_run(void *arg)
{
	HrflowRun  *run = arg;
	int64		npostponed = run->npostponed;

	/*
	 * Let the run end if an interrupt that terminates the session, such as
	 * the loss of the connection to the client, has occurred since
	 * work_of_run() was called.  Claim repeatedly, because a claim may find
	 * only profiles that need not be requested, or must be postponed.
	 */
	hrflow_work_hold_fatal(run);
	while (dlist_is_empty(&run->split) && dlist_is_empty(&run->claimed) &&
		   run->narrived + run->nwaiting + run->npostponed - npostponed <
		   run->batch_size &&
		   (!run->is_blocked || hrflow_work_may_wait(run)) &&
		   !run->is_drained && !run->is_stopping && run->error == NULL &&
		   !run->is_ending && run->nclaimed < run->max_profiles &&
		   hrflow_model_room(run) > 0 && !is_late(run))
	{
		run->claim_lease = DT_NOBEGIN;
		if (!hrflow_work_try(run, hrflow_claim))
			hrflow_claim_undo(run);
	}
	if (dlist_is_empty(&run->in_flight) && run->nsuspects == 0)
		run->answered_at = hrflow_clock_now();
	return run->is_stopping || run->error != NULL || run->is_ending ? NULL :
		hrflow_fetch_next(run);
}

static void
take_outcome_of_run(void *arg, HrflowWanted *wanted,
					const HrflowWantedOutcome *outcome)
{
	hrflow_fetch_take(arg, wanted, outcome);
}

/*
 * Stop sending requests if there is a reason to, and abandon the requests in
 * flight if they take too long.  Returns the time at which to call this
 * function again.
 */
static int64
stop_if_necessary(HrflowRun *run, HrflowTransport *transport)
{
	int64		now = hrflow_clock_now();
	int64		impatient_at = run->answered_at + run->patience * HRFLOW_MSEC;
	int64		budget_end = run->deadline == DT_NOEND ? HRFLOW_NEVER :
	now + Max(run->deadline - GetCurrentTimestamp(), 0);

	if (run->error != NULL || run->is_ending)
	{
		run->is_stopping = true;
		run->drain_until = Min(run->drain_until, now + DRAIN_TIME);
	}
	if (now >= budget_end)
	{
		run->is_stopping = true;
		run->drain_until = Min(run->drain_until, now + HRFLOW_BUDGET_GRACE);
		budget_end = HRFLOW_NEVER;
	}
	if (now >= impatient_at)
		run->is_unanswered = run->is_stopping = true;
	if (run->is_stopping)
		hrflow_transport_stop(transport, false);
	if (run->is_unanswered || now >= run->drain_until)
		hrflow_transport_expire(transport);
	return Min(Min(impatient_at, budget_end), run->drain_until);
}

/*
 * HrflowWantedMethods.work: process interrupts, write profiles and renew
 * leases between replies.  Returns the latest time at which to call this
 * function again.
 */
static int64
work_of_run(void *arg, HrflowTransport *transport)
{
	HrflowRun  *run = arg;
	int64		write_at;
	int64		next;

	run->transport = transport;

	/*
	 * Process interrupts first, because the transport returns no replies
	 * while an interrupt is pending.
	 */
	hrflow_interrupts_take(run);
	if (hrflow_transport_expired(transport))
		return HRFLOW_NEVER;
	write_at = run->written_at + run->write_interval * HRFLOW_MSEC;
	if (run->error == NULL && !run->is_ending &&
		(run->narrived - run->nleft >= run->batch_size ||
		 hrflow_clock_now() >= write_at ||
		 (run->has_trial && !run->is_trusted)))
	{
		hrflow_settle_write(run);
		run->is_blocked = false;
		if (run->error == NULL && hrflow_work_try(run, hrflow_claim_renew))
			hrflow_claim_renew_done(run);
		hrflow_expire_some(run);
		report_progress(run, false);
		write_at = run->written_at + run->write_interval * HRFLOW_MSEC;
	}
	next = stop_if_necessary(run, transport);
	return run->error != NULL || run->is_ending ? next : Min(next, write_at);
}

static const HrflowWantedMethods run_methods = {
	.next = next_wanted_of_run,
	.take = take_outcome_of_run,
	.work = work_of_run
};

/*
 * Fetch profiles until no more can be claimed, or the run has to stop.  Each
 * call uses a single API key, which may have changed since the last call.
 * Saves an error in run->error instead of throwing it.
 */
static void
fetch_all(HrflowRun *run)
{
	MemoryContext context = AllocSetContextCreate(run->context,
												  "hrflow_embed fetch",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	uint32		holdoff = InterruptHoldoffCount;

	PG_TRY();
	{
		const HrflowSettings *settings = hrflow_settings_get(true);
		HrflowResult refusal;

		hrflow_model_set_account(run, settings->api_key);
		if (!hrflow_wanted_fetch(&run->kind->asked, settings, &run_methods,
								 run, run->activity, &refusal))
		{
			run->is_stopping = true;
			MemoryContextSwitchTo(run->context);
			run->stop = refusal.status == HRFLOW_OVER_BUDGET ||
				refusal.status == HRFLOW_OVER_DAY ?
				HRFLOW_STOP_REQUEST_LIMIT : HRFLOW_STOP_REFUSED;
			run->stop_reason = hrflow_error_describe(&refusal);
			run->stop_hint = hrflow_error_hint(&refusal);
			run->stop_code = hrflow_error_code(refusal.status);
		}
	}
	PG_CATCH();
	{
		hrflow_work_keep_error(run);
	}
	PG_END_TRY();
	InterruptHoldoffCount = holdoff;
	run->transport = NULL;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	hrflow_fetch_give_up(run);
}

/*
 * Copy the settings that a run needs.  Profiles are claimed shortly before
 * they are requested.  Therefore, a claim takes at most as many profiles as
 * may be requested per minute, and at most twice as many as may be in flight.
 */
static void
read_settings(HrflowRun *run)
{
	const HrflowSettings *settings = hrflow_settings_get(true);
	int			timeout = hrflow_compat_transaction_timeout();

	hrflow_work_read_settings(run, settings->request_timeout);
	run->claim_size = Min(run->batch_size, 2 * settings->max_concurrency);
	if (settings->max_requests_per_minute > 0)
		run->claim_size = Min(run->claim_size,
							  settings->max_requests_per_minute);
	run->patience = settings->batch_timeout > 0 ?
		Min(settings->batch_timeout, MAX_PATIENCE) : MAX_PATIENCE;
	run->debounce = settings->refresh_debounce;
	run->write_interval = timeout > 0 ? Min(timeout / 2, WRITE_INTERVAL) :
		WRITE_INTERVAL;
}

/*
 * Check the store, and read the settings and the properties of the store on
 * which the run depends.
 */
static void
look_at_store(HrflowRun *run, const HrflowStore *store)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);

	read_settings(run);
	hrflow_fetch_set_kind(run, store);
	MemoryContextSwitchTo(old);
	hrflow_ready_check(store);
	hrflow_ready_warn(store, run->function);
	run->name = MemoryContextStrdup(run->context, store->vectors_name);
	run->profiles_name = MemoryContextStrdup(run->context,
											 store->profiles_name);
	hrflow_model_look(run, store);
	if (!run->is_scheduled)
	{
		hrflow_store_execute(hrflow_store_sql(store, count_due_sql), NULL);
		run->ndue = DatumGetInt64(hrflow_store_datum(0, 1));
	}
}

/*
 * Show the run in hrflow_embed_activity.  The number of due profiles is only
 * known if there is a client to report progress to.
 */
static void
show(HrflowRun *run)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);

	run->activity = hrflow_activity_begin(HRFLOW_BY_REFRESH, run->name);
	run->activity->outlives_transactions = true;
	if (!run->is_scheduled)
		run->activity->state.ntotal = Min(run->ndue, run->max_profiles);
	MemoryContextSwitchTo(old);
}

/*
 * Fetch and write profiles until no more can be claimed, or the run has to
 * stop.  Then, unless an error or the end of the session ends the run, put
 * aside the vectors of profiles that no longer exist in the API, and erase
 * expired vectors.
 */
static void
refresh(HrflowRun *run)
{
	show(run);
	run->answered_at = run->written_at = hrflow_clock_now();
	do
	{
		run->is_drained = false;
		fetch_all(run);
		hrflow_settle(run);
	} while (!run->is_drained && run->error == NULL && !run->is_ending &&
			 !run->is_stopping && run->nclaimed < run->max_profiles &&
			 !is_late(run));
	hrflow_settle_warn(run);
	if (run->error == NULL && !run->is_ending && run->gone != NIL)
		(void) hrflow_work_try(run, hrflow_erase_gone);
	hrflow_expire_all(run);
	hrflow_activity_end(run->activity);
}

/*
 * Set run->stop, the reason for the end of the run, unless it has been set.
 * An error, or the end of the session, overrides another reason.
 */
static void
set_stop(HrflowRun *run)
{
	if (run->is_ending)
		run->stop = HRFLOW_STOP_TERMINATED;
	else if (run->error != NULL)
		run->stop = run->error->sqlerrcode == ERRCODE_QUERY_CANCELED ?
			HRFLOW_STOP_CANCELLED : HRFLOW_STOP_ERROR;
	else if (run->stop_reason == NULL && !run->is_drained)
		run->stop = is_late(run) ? HRFLOW_STOP_TIME_BUDGET :
			HRFLOW_STOP_MAX_PROFILES;
}

/*
 * Complete the run's row in the table of runs.  If the run is ended by an
 * error or by the end of the session, LAST_ENTRY_TIME limits the time that
 * each attempt takes.  Must be called after all replies have been written.
 */
static void
record_end(HrflowRun *run)
{
	bool		is_done = !OidIsValid(run->runs);

	/* Retry once, in case a query cancel interrupts the first attempt. */
	for (int i = 0; i < 2 && !is_done; i++)
	{
		bool		is_bounded;

		hrflow_interrupts_take(run);
		set_stop(run);
		is_bounded = run->error != NULL || run->is_ending;
		if (is_bounded)
			enable_timeout_after(STATEMENT_TIMEOUT, LAST_ENTRY_TIME);
		is_done = hrflow_work_try(run, hrflow_history_end);
		if (is_bounded)
			disable_timeout(STATEMENT_TIMEOUT, false);
	}
}

/*
 * Execute the run, record it, and report its result.  Throws the error that
 * ended the run, if any, and raises an ERROR if a scheduled run has failed.
 */
static void
run_to_end(HrflowRun *run)
{
	bool		is_failure;

	hrflow_interrupts_begin();
	PG_TRY();
	{
		hrflow_work_do(run, hrflow_history_begin);

		/*
		 * Process interrupts only in hrflow_interrupts_take() and in
		 * transactions.  An error that is thrown resets the holdoff count.
		 */
		HOLD_INTERRUPTS();
		if (hrflow_work_try(run, look_at_store))
			refresh(run);
		record_end(run);
		RESUME_INTERRUPTS();
	}
	PG_FINALLY();
	{
		hrflow_history_unlock(run);
		hrflow_interrupts_end(run);
	}
	PG_END_TRY();
	CHECK_FOR_INTERRUPTS();

	hrflow_model_warn_of_account(run);
	if (run->error != NULL)
		ReThrowError(run->error);
	is_failure = run->is_scheduled && hrflow_history_is_failure(run->stop);
	if (!is_failure)
		report_stop(run, false);
	if (run->kind->reading != NULL)
		hrflow_content_warn(run);
	else
		hrflow_lost_warn(run);
	report_progress(run, true);
	if (is_failure)
		report_stop(run, true);
}

/*
 * ------------------------------------------------------------------------
 * The procedure
 * ------------------------------------------------------------------------
 */

/*
 * Get the argument "max_profiles".  NULL means no limit.
 */
static int64
get_max_profiles(FunctionCallInfo fcinfo)
{
	int64		value = PG_ARGISNULL(ARG_MAX_PROFILES) ? PG_INT64_MAX :
	PG_GETARG_INT64(ARG_MAX_PROFILES);

	if (value < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be greater than zero",
						"max_profiles")));
	return value;
}

static void
prepare_lists(HrflowRun *run)
{
	dlist_init(&run->claimed);
	dlist_init(&run->waiting);
	dlist_init(&run->in_flight);
	dlist_init(&run->split);
	dlist_init(&run->suspects);
	dlist_init(&run->foreign);
	dlist_init(&run->arrived);
	for (int i = 0; i < HRFLOW_NQUEUES; i++)
		run->claimed_to[i] = DT_NOBEGIN;
	run->drain_until = HRFLOW_NEVER;
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

	hrflow_work_check_context(fcinfo, "hrflow_refresh");
	if (PG_ARGISNULL(ARG_STORE))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be null", "store")));

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	run.context = AllocSetContextCreate(CurrentMemoryContext,
										"hrflow_embed refresh",
										ALLOCSET_DEFAULT_SIZES);
	run.work_context = AllocSetContextCreate(run.context,
											 "hrflow_embed refresh work",
											 ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(run.context);

	run.vectors = PG_GETARG_OID(ARG_STORE);
	run.function = hrflow_feeder_function(fcinfo->flinfo->fn_oid);
	run.profiles = PG_ARGISNULL(ARG_PROFILES) ? InvalidOid :
		PG_GETARG_OID(ARG_PROFILES);
	hrflow_fetch_read_fields(&run, PG_ARGISNULL(ARG_FIELDS) ? NULL :
							 (Jsonb *) PG_DETOAST_DATUM_COPY(PG_GETARG_DATUM(ARG_FIELDS)));
	run.max_age = palloc(sizeof(Interval));
	*run.max_age = *hrflow_state_get_max_age(fcinfo, ARG_MAX_AGE);
	run.started = GetCurrentTimestamp();
	run.reported = run.started;
	run.deadline = DT_NOEND;
	if (!PG_ARGISNULL(ARG_TIME_BUDGET))
	{
		Interval   *budget = hrflow_state_get_interval(fcinfo, ARG_TIME_BUDGET,
													   "time_budget");

		run.deadline =
			DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													TimestampTzGetDatum(run.started),
													IntervalPGetDatum(budget)));
	}
	run.max_profiles = get_max_profiles(fcinfo);
	run.batch_size = hrflow_work_get_positive(fcinfo, ARG_BATCH_SIZE,
											  "batch_size", 10000);
	run.max_attempts = hrflow_work_get_positive(fcinfo, ARG_MAX_ATTEMPTS,
												"max_attempts", 1000);
	(void) hrflow_state_due_after(run.max_age); /* throws if out of range */
	run.is_scheduled = MyBackendType != B_BACKEND ||
		whereToSendOutput != DestRemote ||
		strncmp(application_name, "pg_cron", strlen("pg_cron")) == 0;

	run.nsent_before = hrflow_budget_sent();
	prepare_lists(&run);

	/* Commit, which also releases the snapshot that CALL has taken. */
	SPI_commit();
	run_to_end(&run);

	MemoryContextSwitchTo(old);
	SPI_finish();
	PG_RETURN_VOID();
}
