/*-------------------------------------------------------------------------
 *
 * settle.c
 *		Writes the profiles that have arrived, during a run and at its end.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "store/refresh.h"
#include "utils/memutils.h"
#include "utils/timeout.h"

/*
 * Number of consecutive profiles without a stored result at which a run stops,
 * as a multiple of the maximum number of profiles per claim, which counts as
 * at most 2 * HRFLOW_MAX_WASTED.
 */
#define MAX_VAIN_CLAIMS 4

/*
 * Stop the run after the table has rejected all fetched vectors of this many
 * profiles in succession.
 */
#define MAX_DENIED 256

/*
 * Duration of a write, in milliseconds, above which the interval until the
 * next write is measured from the end of the write rather than its beginning.
 */
#define LONG_WRITE 500

/*
 * Maximum time for which hrflow_settle() retries writing profiles that other
 * sessions have locked; but see write_rest().
 */
#define LOCKED_GRACE (10 * HRFLOW_SEC)

/*
 * Time between two attempts to write profiles that other sessions have locked,
 * in milliseconds.
 */
#define LOCKED_INTERVAL 100

/*
 * Maximum duration of a transaction that writes replies, or releases leases,
 * after an error or at the end of the session, in milliseconds.  This is also
 * the maximum time for which to wait for other sessions without writing a
 * profile.
 */
#define LAST_TIME 2000

/*
 * Time for writing replies after an error or at the end of the session.  Once
 * it has passed, no further write is begun.
 */
#define LAST_WRITES (10 * HRFLOW_SEC)

/*
 * After an error or at the end of the session, stop writing when this many
 * writes have failed without any progress, for example because of another
 * query cancel.
 */
#define MAX_FAILURES 5

/*
 * ------------------------------------------------------------------------
 * Writing
 * ------------------------------------------------------------------------
 */

/*
 * Stop the run if none of the latest results, or none of the latest vectors,
 * could be stored.  A user's trigger may reject or undo our updates, and then
 * profiles would be claimed, and paid for, endlessly.
 */
static void
check_vain(HrflowRun *run)
{
	MemoryContext old;
	int			most = MAX_VAIN_CLAIMS * Min(run->claim_size,
											 2 * HRFLOW_MAX_WASTED);
	bool		is_denied = run->ndenied_since >= MAX_DENIED;

	if ((run->nvain < most && !is_denied) || run->is_stopping)
		return;
	old = MemoryContextSwitchTo(run->context);
	run->is_stopping = true;
	run->stop = HRFLOW_STOP_NOT_KEPT;
	run->stop_code = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	run->stop_reason = "fetched vectors could not be stored";
	run->stop_detail = is_denied ?
		psprintf(_("No vector was stored for the last %d profiles with fetched vectors.  The last error was: %s"),
				 run->ndenied_since, run->denial) :
		run->rejection != NULL ?
		psprintf(_("Nothing was stored for the last %d profiles.  The first error was: %s"),
				 run->nvain, run->rejection) :
		psprintf(_("None of the last %d profiles still had the lease with which it was claimed."),
				 run->nvain);
	run->stop_hint = is_denied ?
		_("Check the type of the column \"vector\", and the indexes, constraints and triggers of the table.") :
		_("Check the constraints and triggers of the table of profiles.");
	MemoryContextSwitchTo(old);
}

/*
 * Postpone profiles of sources that the API does not know; see
 * hrflow_claim_postpone().
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
 * Write profiles that have arrived, in a separate transaction.  Returns false
 * if the transaction was rolled back.
 */
static bool
write_once(HrflowRun *run)
{
	if (!hrflow_work_try(run, hrflow_write))
		return false;
	hrflow_write_done(run);
	check_vain(run);
	postpone_sources(run);
	run->is_drained = false;
	return true;
}

/*
 * Write the profiles that have arrived, except profiles that must be retried
 * later, for example because other sessions have locked them.  If writing the
 * profiles together fails with an error that may be specific to one of them,
 * write them one by one.  hrflow_work_try() handles other errors.  If no
 * profile has arrived, only begin a new transaction.
 */
void
hrflow_settle_write(HrflowRun *run)
{
	bool		has_more = run->narrived > 0;

	run->written_at = hrflow_clock_now();
	run->has_trial = false;
	if (!has_more)
		hrflow_work_pause(run);
	while (has_more)
	{
		int			nbefore = run->narrived;
		bool		was_single = run->is_single;

		has_more = write_once(run) ?
			run->has_more && run->narrived < nbefore :
			run->is_single && !was_single;
		hrflow_work_receive(run);
		hrflow_interrupts_take(run);
		has_more = has_more && run->error == NULL && !run->is_ending;
	}
	if (hrflow_clock_now() - run->written_at > LONG_WRITE * HRFLOW_MSEC)
		run->written_at = hrflow_clock_now();
	run->nleft = run->narrived;
}

/*
 * ------------------------------------------------------------------------
 * The end
 * ------------------------------------------------------------------------
 */

/*
 * Wait briefly before trying again to write profiles that are locked.
 */
static void
wait_for_locks(HrflowRun *run)
{
	hrflow_activity_wait(run->activity, HRFLOW_FOR_LOCK, HRFLOW_NEVER);
	hrflow_activity_publish();
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 LOCKED_INTERVAL, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	hrflow_activity_go_on();
}

/*
 * Renew the leases that end soon.
 */
static void
renew_leases(HrflowRun *run)
{
	if (hrflow_work_try(run, hrflow_claim_renew))
		hrflow_claim_renew_done(run);
}

/*
 * Write the profiles that have arrived.  Retry profiles that other sessions
 * have locked, for at most LOCKED_GRACE.  While a lock causes the whole write
 * to be rolled back, is_locked_out() in work.c limits the time instead.  After
 * an error or at the end of the session, leave the rest to write_last().
 */
static void
write_rest(HrflowRun *run)
{
	int64		give_up_at = hrflow_clock_now() + LOCKED_GRACE;
	int64		renew_at = hrflow_clock_now() + HRFLOW_SEC;

	while (run->error == NULL && !run->is_ending)
	{
		hrflow_settle_write(run);
		if (run->locked_out == hrflow_write)
			give_up_at = hrflow_clock_now() + LOCKED_GRACE;
		if (run->narrived == 0 || hrflow_clock_now() >= give_up_at)
			break;
		if (run->error == NULL && hrflow_clock_now() >= renew_at)
		{
			renew_leases(run);
			renew_at = hrflow_clock_now() + HRFLOW_SEC;
		}
		wait_for_locks(run);
		hrflow_interrupts_take(run);
	}
}

/*
 * After an error while a profile was being written in a subtransaction, move
 * that profile to the end of the list, so that the other profiles are
 * committed before it is tried again.  Returns false if an error in this
 * profile has aborted a transaction before: by then, all others were tried.
 */
static bool
put_last(HrflowRun *run)
{
	HrflowProfile *profile = run->writing;

	run->writing = NULL;
	if (profile->has_failed)
		return false;
	profile->has_failed = true;
	dlist_delete(&profile->node);
	dlist_push_tail(&run->arrived, &profile->node);
	return true;
}

/*
 * Write the profiles that have arrived in a run that is ended by an error or
 * by the end of the session.  Each transaction writes a small part, so that a
 * time limit, or another query cancel, loses little.  If a write fails after
 * it has locked the tables, for example because the trigger of one profile
 * waits until the timeout, the profiles are written one by one.
 */
static void
write_last(HrflowRun *run)
{
	int64		give_up_at = hrflow_clock_now() + LAST_WRITES;
	int64		progress_at = hrflow_clock_now();
	int			nfailures = 0;

	while (run->narrived > 0 && nfailures < MAX_FAILURES &&
		   hrflow_clock_now() < give_up_at &&
		   hrflow_clock_now() < progress_at + 2 * LAST_TIME * HRFLOW_MSEC)
	{
		int			nbefore = run->narrived;
		bool		ok;

		enable_timeout_after(STATEMENT_TIMEOUT, LAST_TIME);
		ok = write_once(run);
		disable_timeout(STATEMENT_TIMEOUT, false);
		if (run->narrived < nbefore)
		{
			progress_at = hrflow_clock_now();
			nfailures = 0;
		}
		else if (!ok && run->has_locks && !run->is_single)
		{
			run->is_single = true;
			progress_at = hrflow_clock_now();
		}
		else if (!ok && run->writing != NULL)
		{
			/* This is progress, because it moves each profile only once. */
			if (!put_last(run))
				break;
			progress_at = hrflow_clock_now();
		}
		else if (!ok)
			nfailures++;
		else if (hrflow_clock_now() < progress_at + LAST_TIME * HRFLOW_MSEC)
			wait_for_locks(run);
		else
			break;
	}
}

/*
 * Try to release the remaining leases.  Returns the error that
 * hrflow_work_try() has saved, or NULL.
 */
static ErrorData *
try_release(HrflowRun *run)
{
	ErrorData  *first = run->error;
	bool		is_ending = run->is_ending;
	bool		is_bounded = first != NULL || is_ending;
	ErrorData  *error;

	run->error = NULL;
	run->is_ending = is_bounded;
	if (is_bounded)
		enable_timeout_after(STATEMENT_TIMEOUT, LAST_TIME);
	(void) hrflow_work_try(run, hrflow_claim_release);
	if (is_bounded)
		disable_timeout(STATEMENT_TIMEOUT, false);
	error = run->error;
	run->error = first;
	run->is_ending = is_ending || run->held.connection_lost;
	return error;
}

/*
 * Release the remaining leases.  If that fails, let the leases expire, and
 * only warn, so that the caller gets an earlier error of the run.  However,
 * if a query cancel causes the failure, and there is no earlier error, the
 * cancel ends the run, and the release is retried.
 */
static void
release_leases(HrflowRun *run)
{
	ErrorData  *error;

	hrflow_work_hold_fatal(run);
	error = try_release(run);
	if (error != NULL && run->error == NULL && !run->is_ending &&
		error->sqlerrcode == ERRCODE_QUERY_CANCELED)
	{
		run->error = error;
		hrflow_interrupts_take(run);
		error = try_release(run);
	}
	if (error != NULL)
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("refresh of %s could not release leases: %s", run->name,
						error->message ? error->message : "unknown error"),
				 errdetail("The profiles cannot be claimed until their leases expire.")));
}

/*
 * Write the profiles that have arrived, and release the leases of all others,
 * except profiles that other sessions have locked.  No profile remains in the
 * run.  Interrupts must be held off.
 */
void
hrflow_settle(HrflowRun *run)
{
	hrflow_suspects_settle(run);
	hrflow_model_settle(run);
	run->is_settling = true;
	write_rest(run);
	if (run->error != NULL || run->is_ending)
		write_last(run);
	hrflow_claim_forget_locked(run);
	if (!dlist_is_empty(&run->claimed) || !dlist_is_empty(&run->waiting) ||
		!dlist_is_empty(&run->arrived))
		release_leases(run);
	run->is_settling = false;
	hrflow_claim_forget_all(run);
	run->nleft = 0;
}

/*
 * Return a DETAIL that says why fetched vectors could not be stored.
 */
static const char *
get_unwritten_detail(const HrflowRun *run)
{
	StringInfoData detail;

	initStringInfo(&detail);
	if (run->nlocked > 0)
		appendStringInfo(&detail, "%s  ",
						 _("Other sessions held locks on the rows for too long."));
	if (run->ntaken > 0)
		appendStringInfo(&detail, "%s  ",
						 ngettext("Other sessions took over, or cleared, the lease of the profile.",
								  "Other sessions took over, or cleared, the leases of the profiles.",
								  run->ntaken));
	if (run->nunwritten > run->nlocked + run->ntaken)
		appendStringInfo(&detail, "%s  ",
						 _("The run ended before they were written."));
	appendStringInfoString(&detail,
						   ngettext("The profile's \"attempts\" were not incremented.",
									"The profiles' \"attempts\" were not incremented.",
									run->nunwritten));
	return detail.data;
}

/*
 * Warn about states and fetched vectors that could not be written.
 */
void
hrflow_settle_warn(const HrflowRun *run)
{
	if (run->nrejected > 0)
		ereport(WARNING,
				(errcode(run->rejection_code),
				 errmsg_plural("refresh of %s could not write the state of " INT64_FORMAT " profile: %s",
							   "refresh of %s could not write the states of " INT64_FORMAT " profiles: %s",
							   run->nrejected, run->name, run->nrejected,
							   run->rejection),
				 run->npartial == 0 ?
				 errdetail_plural("Vectors fetched for this profile were not stored.",
								  "Vectors fetched for these profiles were not stored.",
								  run->nrejected) :
				 errdetail_plural("Vectors fetched for this profile were not stored, unless it was partly updated.",
								  "Vectors fetched for these profiles were not stored, except for profiles that were partly updated.",
								  run->nrejected),
				 errhint("Check the constraints and triggers of table %s.",
						 run->profiles_name)));
	if (run->ndenied > 0)
		ereport(WARNING,
				(errcode(run->denial_code),
				 errmsg_plural("refresh of %s could not store the vectors of " INT64_FORMAT " profile: %s",
							   "refresh of %s could not store the vectors of " INT64_FORMAT " profiles: %s",
							   run->ndenied, run->name, run->ndenied,
							   run->denial),
				 errdetail_plural("The table accepted none of the vectors fetched for this profile.  Vectors stored before were kept.",
								  "The table accepted none of the vectors fetched for these profiles.  Vectors stored before were kept.",
								  run->ndenied),
				 errhint("Check the constraints, indexes and triggers of table %s.",
						 run->name)));
	if (run->npartial > 0)
		ereport(WARNING,
				(errcode(run->partial_code),
				 errmsg_plural("refresh of %s could only partly update the vectors of " INT64_FORMAT " profile: %s",
							   "refresh of %s could only partly update the vectors of " INT64_FORMAT " profiles: %s",
							   run->npartial, run->name, run->npartial,
							   run->partial_error),
				 errdetail_plural("Fetched vectors that the table accepted were stored.  Other vectors of this profile were kept, and none were put aside.",
								  "Fetched vectors that the table accepted were stored.  Other vectors of these profiles were kept, and none were put aside.",
								  run->npartial),
				 errhint("Check the constraints, indexes and triggers of table %s.",
						 run->name)));
	if (run->nunwritten > 0)
		ereport(WARNING,
				(errmsg_plural("refresh of %s could not store the vectors fetched for " INT64_FORMAT " profile",
							   "refresh of %s could not store the vectors fetched for " INT64_FORMAT " profiles",
							   run->nunwritten, run->name, run->nunwritten),
				 errdetail_internal("%s", get_unwritten_detail(run)),
				 run->nlocked > 0 ?
				 errhint("Keep transactions that lock rows of the store short.") :
				 run->ntaken > 0 ?
				 errhint("Clear only leases of sessions that have ended.") : 0));
}
