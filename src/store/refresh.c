/*-------------------------------------------------------------------------
 *
 * refresh.c
 *		hrflow_refresh(): fetches the vectors of profiles that are due.
 *
 * Requests are sent in a rolling window.  Whenever another request may be
 * sent, and no claimed profile is left, a short transaction claims a few
 * profiles.  A claim gives them a lease, so that no other session requests
 * them.  While they are fetched, the run holds no snapshot, and no lock that
 * another session waits for (see history.c).  Replies are written every
 * second, or as soon as there is a batch of them, in another short
 * transaction.  So no profile waits for the reply of another one, and a
 * session that crashes loses only what arrived in the last second.  The leases
 * that it leaves behind expire.
 *
 * A reply that has arrived has been paid for.  If the run is ended by an
 * error, a query cancel, a time limit or the end of the session, it first
 * writes all replies, including those that arrive within DRAIN_TIME.
 *
 * The end of a lease also identifies its holder: nothing is written for a
 * profile if the end of its lease is not the one that the run has set, because
 * another session has claimed the profile meanwhile.
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

/*
 * Stop a run after this many claims without a result.  The size of a claim is
 * taken to be at most 2 * HRFLOW_MAX_WASTED profiles here, however many
 * requests may be in flight.
 */
#define MAX_VAIN_CLAIMS 4

/* Maximum time between two writes, in milliseconds. */
#define WRITE_INTERVAL 1000

/*
 * Stop a run when no reply has arrived for this long, in milliseconds.  A
 * shorter batch_timeout takes precedence.
 */
#define MAX_PATIENCE (5 * 60 * 1000)

/*
 * Time for which a run waits for requests in flight after an error or the end
 * of the session.
 */
#define DRAIN_TIME (100 * HRFLOW_MSEC)

/*
 * Time for which a run that is about to end retries writing profiles that
 * other sessions have locked, and the time between two attempts, in
 * milliseconds.
 */
#define LOCKED_GRACE (10 * HRFLOW_SEC)
#define LOCKED_INTERVAL 100

/* Time for which a run waits for requests in flight after its time budget. */
#define BUDGET_GRACE (5 * HRFLOW_SEC)

/*
 * Statement timeout for writing replies, in milliseconds, in a run that is
 * ended by an error or by the end of the session.
 */
#define LAST_TIME 2000

/* Time between two progress reports. */
#define REPORT_INTERVAL (5 * USECS_PER_SEC)

static const char count_due_sql[] =
"SELECT count(*) FROM %P WHERE due_at <= clock_timestamp()";

/*
 * ------------------------------------------------------------------------
 * The run
 * ------------------------------------------------------------------------
 */

/*
 * Report progress to the client, at most every REPORT_INTERVAL.  The last
 * report is always sent.
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
				 run->nlacking == 0 ? 0 :
				 errdetail_plural(INT64_FORMAT " profile was not due, but not all of \"fields\" had been requested for it.",
								  INT64_FORMAT " profiles were not due, but not all of \"fields\" had been requested for them.",
								  run->nlacking, run->nlacking)));
	else if (now - run->reported >= REPORT_INTERVAL)
	{
		if (ndone == 0)
			ereport(INFO,
					(errmsg("%s: nothing done yet, " INT64_FORMAT " remaining",
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
 * Report that the run stopped while profiles were still due, as an ERROR if
 * "is_error" is true, or else as a WARNING.  A scheduler only notices whether
 * the call failed, so for a scheduled run callers pass true, unless the run
 * has reached a limit that the user has set.
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
			 errdetail("Fetched vectors are kept, and no attempts were counted.") :
			 errdetail_plural("The vectors fetched for %d profile were not stored, and no attempt was counted.",
							  "The vectors fetched for %d profiles were not stored, and no attempts were counted.",
							  run->nrefused, run->nrefused),
			 run->stop_hint != NULL ? errhint("%s", run->stop_hint) : 0));
}

/*
 * Stop if none of the latest results could be stored.  A user's trigger may
 * undo our updates, and then the same profiles would be claimed, and paid for,
 * endlessly.
 */
static void
check_vain(HrflowRun *run)
{
	MemoryContext old;

	int			most = MAX_VAIN_CLAIMS * Min(run->claim_size,
											 2 * HRFLOW_MAX_WASTED);

	if (run->nvain < most || run->is_stopping)
		return;
	old = MemoryContextSwitchTo(run->context);
	run->is_stopping = true;
	run->stop = HRFLOW_STOP_NOT_KEPT;
	run->stop_code = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	run->stop_reason = "fetched vectors could not be stored";
	run->stop_detail =
		psprintf(_("None of the last %d profiles still had the lease with which it was claimed."),
				 run->nvain);
	run->stop_hint = _("Check the triggers of the table of profiles.");
	MemoryContextSwitchTo(old);
}

/*
 * Warn that replies, which have been paid for, were lost.
 */
static void
warn_of_unwritten(HrflowRun *run)
{
	if (run->nunwritten > 0)
		ereport(WARNING,
				(errmsg_plural("refresh of %s could not store the vectors fetched for " INT64_FORMAT " profile",
							   "refresh of %s could not store the vectors fetched for " INT64_FORMAT " profiles",
							   run->nunwritten, run->name, run->nunwritten),
				 errdetail("Other sessions held locks on the rows for too long. No attempt was counted."),
				 errhint("Keep transactions that lock rows of the store short.")));
}

/*
 * Warn that vectors which the API no longer has are kept, because too many
 * profiles are affected.
 */
static void
warn_of_kept(HrflowRun *run)
{
	if (run->nkept > 0)
		ereport(WARNING,
				(errmsg_plural("refresh of %s keeps the vectors of " INT64_FORMAT " profile that the API no longer has",
							   "refresh of %s keeps the vectors of " INT64_FORMAT " profiles that the API no longer has",
							   run->nkept, run->name, run->nkept),
				 errdetail("At most 5 %% of the profiles of a store, or 20 if that is more, lose vectors in this way within 24 hours."),
				 errhint("Check hrflow_embed.base_url, the API key and the source. If the profiles were deleted, untrack them with hrflow_untrack().")));
}

/*
 * Warn that vectors which the API no longer has were put aside.
 */
static void
warn_of_put(HrflowRun *run)
{
	int64		n = run->nerased + run->ngone_put;

	if (n > 0)
		ereport(WARNING,
				(errmsg_plural("refresh of %s has put aside vectors of " INT64_FORMAT " profile that the API no longer has",
							   "refresh of %s has put aside vectors of " INT64_FORMAT " profiles that the API no longer has",
							   n, run->name, n),
				 errhint("Until they are erased, call hrflow_restore() to restore them.")));
}

/*
 * Postpone the other profiles of sources that the API does not know.
 */
static void
postpone_sources(HrflowRun *run)
{
	bool		is_necessary = false;
	ListCell   *cell;

	foreach(cell, run->bad_sources)
	{
		const HrflowBadSource *source = lfirst(cell);

		is_necessary |= source->is_to_be_postponed;
	}
	if (is_necessary && hrflow_work_try(run, hrflow_claim_postpone))
		hrflow_claim_postpone_done(run);
}

/*
 * Write the profiles that have arrived, in a transaction of its own.
 */
static void
write_arrived(HrflowRun *run)
{
	run->written_at = hrflow_clock_now();
	run->has_trial = false;
	if (run->narrived == 0)
		hrflow_work_pause(run);
	else if (hrflow_work_try(run, hrflow_write))
	{
		hrflow_write_done(run);
		check_vain(run);
		postpone_sources(run);
		run->is_drained = false;
	}
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
 * requested.
 */
static HrflowWanted *
next_wanted_of_run(void *arg)
{
	HrflowRun  *run = arg;

	/* Profiles that need not be requested arrive when they are claimed. */
	while (dlist_is_empty(&run->split) && dlist_is_empty(&run->claimed) &&
		   run->narrived + run->nwaiting < run->batch_size &&
		   (!run->is_blocked || hrflow_claim_may_wait(run)) &&
		   !run->is_drained && !run->is_stopping && run->error == NULL &&
		   !run->is_ending && run->nclaimed < run->max_profiles &&
		   hrflow_model_room(run) > 0 && !is_late(run))
		hrflow_work_try(run, hrflow_claim);
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
 * Stop sending requests if there is a reason to, and abandon requests in
 * flight that take too long.  Returns the time at which to check this again.
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
		run->drain_until = Min(run->drain_until, now + BUDGET_GRACE);
		budget_end = HRFLOW_NEVER;
	}
	if (now >= impatient_at)
		run->is_unanswered = run->is_stopping = true;
	if (run->is_stopping)
		hrflow_transport_stop(transport);
	if (run->is_unanswered || now >= run->drain_until)
		hrflow_transport_expire(transport);
	return Min(Min(impatient_at, budget_end), run->drain_until);
}

/*
 * HrflowWantedMethods.work: process interrupts, write profiles and renew
 * leases between replies.  Returns when to be called again at the latest.
 */
static int64
work_of_run(void *arg, HrflowTransport *transport)
{
	HrflowRun  *run = arg;
	int64		write_at;
	int64		next;

	/* The transport returns no replies while an interrupt is pending. */
	hrflow_interrupts_take(run);
	if (hrflow_transport_expired(transport))
		return HRFLOW_NEVER;
	write_at = run->written_at + run->write_interval * HRFLOW_MSEC;
	if (run->error == NULL && !run->is_ending &&
		(run->narrived >= run->batch_size || hrflow_clock_now() >= write_at ||
		 (run->has_trial && !run->is_trusted)))
	{
		write_arrived(run);
		if (run->error == NULL && hrflow_work_try(run, hrflow_claim_renew))
			hrflow_claim_renew_done(run);
		report_progress(run, false);
		hrflow_interrupts_check_client(run);
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
 * Fetch until there are no more profiles to claim, or the run has to stop.
 */
static void
fetch_all(HrflowRun *run)
{
	MemoryContext context = AllocSetContextCreate(run->context,
												  "hrflow_embed fetch",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	PG_TRY();
	{
		HrflowResult refusal;
		bool		ok;

		/* work_of_run() processes interrupts; an error resumes them. */
		HOLD_INTERRUPTS();
		ok = hrflow_wanted_fetch(&run->kind->asked, &run_methods, run,
								 run->activity, &refusal);
		RESUME_INTERRUPTS();
		if (!ok)
		{
			run->is_stopping = true;
			MemoryContextSwitchTo(run->context);
			run->stop = refusal.status == HRFLOW_OVER_BUDGET ||
				refusal.status == HRFLOW_OVER_DAY ?
				HRFLOW_STOP_REQUEST_LIMIT : HRFLOW_STOP_REFUSED;
			run->stop_reason = hrflow_error_describe(&refusal);
			run->stop_code = hrflow_error_code(refusal.status);
		}
	}
	PG_CATCH();
	{
		hrflow_work_keep_error(run);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	hrflow_fetch_give_up(run);
}

/*
 * Release the remaining leases.  If that fails, only warn and let them expire,
 * so that the caller gets the first error.
 */
static void
release_leases(HrflowRun *run)
{
	ErrorData  *first = run->error;
	bool		was_ending = run->is_ending;
	ErrorData  *error;

	run->error = NULL;
	run->is_ending |= first != NULL;
	if (!hrflow_work_try(run, hrflow_claim_release))
	{
		error = run->error;
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("could not release leases: %s",
						error->message ? error->message : "unknown error"),
				 errdetail("Profiles cannot be claimed until their leases expire.")));
	}
	run->error = first;
	run->is_ending = was_ending;
}

/*
 * Write the profiles that have arrived, and release the leases of the others.
 * If the run is ended by an error or by the end of the session, LAST_TIME
 * limits each of these steps.
 */
static void
finish(HrflowRun *run)
{
	bool		is_bounded = false;
	int64		give_up_at = hrflow_clock_now() + LOCKED_GRACE;

	hrflow_state_settle_suspects(run);
	hrflow_model_settle(run);
	run->is_settling = true;
	while (run->error == NULL && !run->is_ending)
	{
		write_arrived(run);
		if (run->narrived == 0 || hrflow_clock_now() >= give_up_at)
			break;
		hrflow_activity_wait(run->activity, HRFLOW_FOR_LOCK, HRFLOW_NEVER);
		hrflow_activity_publish();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOCKED_INTERVAL, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		hrflow_activity_go_on();
		hrflow_interrupts_take(run);
		hrflow_interrupts_check_client(run);
	}
	if (run->error != NULL || run->is_ending)
	{
		is_bounded = true;

		/* Retry once, in case a query cancel interrupts the first attempt. */
		for (int i = 0; i < 2 && run->narrived > 0; i++)
		{
			enable_timeout_after(STATEMENT_TIMEOUT, LAST_TIME);
			write_arrived(run);
		}
	}
	if (!dlist_is_empty(&run->claimed) || !dlist_is_empty(&run->waiting) ||
		!dlist_is_empty(&run->arrived))
	{
		if (is_bounded)
			enable_timeout_after(STATEMENT_TIMEOUT, LAST_TIME);
		release_leases(run);
	}
	if (is_bounded)
		disable_timeout(STATEMENT_TIMEOUT, false);
	run->is_settling = false;
	hrflow_claim_forget_all(run);
}

/*
 * Copy the values that a run needs from the settings.  Profiles are claimed
 * shortly before they are requested: at most as many as may be requested per
 * minute, and at most twice as many as may be in flight.
 */
static void
read_settings(HrflowRun *run)
{
	const HrflowSettings *settings = hrflow_settings_get(true);
	int			timeout = hrflow_compat_transaction_timeout();

	run->claim_size = Min(run->batch_size, 2 * settings->max_concurrency);
	if (settings->max_requests_per_minute > 0)
		run->claim_size = Min(run->claim_size,
							  settings->max_requests_per_minute);
	run->patience = settings->batch_timeout > 0 ?
		Min(settings->batch_timeout, MAX_PATIENCE) : MAX_PATIENCE;
	run->debounce = settings->refresh_debounce;
	run->account = hrflow_model_account(settings->api_key);
	run->write_interval = timeout > 0 ? Min(timeout / 2, WRITE_INTERVAL) :
		WRITE_INTERVAL;
}

/*
 * Check the store, and read what the run needs to know about it.
 */
static void
look_at_store(HrflowRun *run, const HrflowStore *store)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);

	read_settings(run);
	hrflow_fetch_set_kind(run, store);
	MemoryContextSwitchTo(old);
	hrflow_ready_check(store);
	hrflow_aside_erase_expired(store);
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
	if (!run->is_scheduled)
		run->activity->state.ntotal = Min(run->ndue, run->max_profiles);
	MemoryContextSwitchTo(old);
}

/*
 * Refresh until there are no more profiles to claim, or a limit is reached.
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
		finish(run);
	} while (!run->is_drained && run->error == NULL && !run->is_ending &&
			 !run->is_stopping && run->nclaimed < run->max_profiles &&
			 !is_late(run));
	warn_of_unwritten(run);
	if (run->error == NULL && !run->is_ending && run->gone != NIL)
		(void) hrflow_work_try(run, hrflow_erase_gone);
	hrflow_activity_end(run->activity);
}

/*
 * Set the reason why the run ended, unless it has stopped by itself.
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
 * error or by the end of the session, LAST_TIME limits the time that this
 * takes.  All replies have been written before.
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
			enable_timeout_after(STATEMENT_TIMEOUT, LAST_TIME);
		is_done = hrflow_work_try(run, hrflow_history_end);
		if (is_bounded)
			disable_timeout(STATEMENT_TIMEOUT, false);
	}
}

/*
 * Execute the run, record it, and report its result.  Throws the error, if
 * any, that ended it.
 */
static void
run_to_end(HrflowRun *run)
{
	bool		is_failure;

	hrflow_interrupts_begin();
	PG_TRY();
	{
		hrflow_work_do(run, hrflow_history_begin);
		if (hrflow_work_try(run, look_at_store))
			refresh(run);
		record_end(run);
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
	{
		warn_of_put(run);
		warn_of_kept(run);
	}
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
 * Get the argument "max_profiles".  A NULL means no limit.
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
				 errmsg("%s must not be null", "store")));

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
	(void) hrflow_state_due_after(run.max_age); /* may throw */
	run.is_scheduled = MyBackendType != B_BACKEND ||
		whereToSendOutput != DestRemote ||
		strncmp(application_name, "pg_cron", strlen("pg_cron")) == 0;

	run.nsent_before = hrflow_budget_sent();
	prepare_lists(&run);

	/* This also releases the snapshot that CALL itself has taken. */
	SPI_commit();
	run_to_end(&run);

	MemoryContextSwitchTo(old);
	SPI_finish();
	PG_RETURN_VOID();
}
