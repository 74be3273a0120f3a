/*-------------------------------------------------------------------------
 *
 * claim.c
 *		Claims the profiles that a run fetches next.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "storage/lmgr.h"
#include "store/refresh.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * A run ends after this many claims in succession that found only profiles that
 * had to be postponed, because other sessions were sending their contents.
 * Such profiles soon become due again, so the run might otherwise claim the
 * same ones until the leases of a session that has died end.
 */
#define MAX_POSTPONED_CLAIMS 100

/*
 * Time from the beginning of a lease until it is renewed, in milliseconds.  A
 * longer time would cost fewer renewals, but after a crash of a backend, its
 * profiles cannot be claimed again until their leases have ended.
 */
#define LEASE_TIME (5 * 60 * 1000)

/*
 * Time from the renewal of a lease until the lease would end, in milliseconds,
 * so that a renewal that is delayed by a lock can still be in time.
 */
#define LEASE_MARGIN (30 * 1000)

/*
 * The statements below lock rows, and then find these rows by "ctid" and,
 * because the table may be partitioned, by "tableoid".  With a join by key,
 * the planner might choose a scan of the whole table if the statistics say
 * that the table has a single row, for example after all its rows have been
 * deleted and loaded again.  For the same reason, keys are looked up in a
 * LATERAL subquery, which cannot be the outer side of a join.  If a row
 * changes after the snapshot of a claim was taken, but before the row is
 * locked, the claim does not find the new version of the row, and leaves it to
 * the next claim.
 */

/*
 * Statement that leases the profiles of a queue that have been due longest.
 * $1 is the current time, $2 the start of the run, $3 the maximum number of
 * profiles, $4 the end of the lease, $5 an array of sources to be skipped, and
 * $6 the latest due_at of a profile claimed from this queue before, or
 * -infinity.  Index entries before $6 are skipped, because most of them belong
 * to profiles that have been claimed already, and VACUUM cannot remove them
 * while another session holds an old snapshot; see also look_back().  Profiles
 * that are leased, and rows that other sessions have locked, are skipped.
 * Unwanted profiles are never claimed, even if a user has set their due_at.
 */
static const char claim_sql[] =
"WITH claimed AS MATERIALIZED"
" (SELECT p.tableoid AS part, p.ctid AS row FROM %P AS p"
" WHERE p.due_at >= $6 AND p.due_at <= $1"
" AND p.state IS DISTINCT FROM 'unwanted'"
" AND (p.lease_until IS NULL OR p.lease_until <= $1)"
" AND %s AND p.source_id <> ALL ($5)"
" ORDER BY p.due_at LIMIT $3"
" FOR NO KEY UPDATE SKIP LOCKED)"
" UPDATE %P AS p SET lease_until = $4"
" FROM claimed AS c WHERE p.tableoid = c.part AND p.ctid = c.row"
" RETURNING p.source_id, p.%I, p.generation, p.due_at, p.last_error,"
" p.state, p.attempts, %s";

/*
 * SQL conditions for a profile to be in a queue.  If max_age is short,
 * profiles that a run has refreshed become due again before the run ends; the
 * second condition leaves them to the next run.
 */
static const char *const queues_sql[] = {
	[HRFLOW_QUEUE_DUE] = "p.state = 'due'",
	[HRFLOW_QUEUE_OLD] = "p.state IS DISTINCT FROM 'due' AND p.due_at <= $2"
};

/*
 * Statement that postpones the profiles of a source that the API does not
 * know.  $1 is the source, $2 the current time, $3 the time at which to
 * request its profiles again, $4 the error, and $5 the maximum number of
 * profiles.  Profiles of the source that would be due before $3 are postponed
 * until then, unless a run has claimed them, or another session has locked
 * their rows.  A statement postpones at most $5 profiles, because other
 * sessions may be waiting for the rows that it locks.
 */
static const char postpone_sql[] =
"WITH due AS MATERIALIZED"
" (SELECT p.tableoid AS part, p.ctid AS row FROM %P AS p"
" WHERE p.source_id = $1 AND p.due_at < $3"
" AND (p.lease_until IS NULL OR p.lease_until <= $2)"
" ORDER BY p.due_at LIMIT $5"
" FOR NO KEY UPDATE SKIP LOCKED)"
" UPDATE %P AS p SET due_at = $3,"
" %s last_error = $4"
" FROM due WHERE p.tableoid = due.part AND p.ctid = due.row";

/*
 * Maximum number of profiles to be postponed by one statement; see
 * postpone_sql.
 */
#define POSTPONED_AT_ONCE 10000

static const char postpone_since_sql[] =
"failed_at = CASE WHEN p.state = 'missing' OR p.last_error = $4"
" THEN p.failed_at ELSE $2 END,";

/*
 * Statement that renews or releases the leases of profiles.  $1 to $3 are
 * arrays with one element per profile: the source, the identifier, and the
 * current end of the lease.  $4 is the new end of all leases, or null.
 * Profiles whose lease has another end, or whose row another session has
 * locked, are skipped.
 */
static const char change_leases_sql[] =
"WITH locked AS MATERIALIZED"
" (SELECT l.part, l.row, k.n"
" FROM unnest($1, $2, $3) WITH ORDINALITY AS k(s, i, lease, n)"
" CROSS JOIN LATERAL"
" (SELECT p.tableoid AS part, p.ctid AS row FROM %P AS p"
" WHERE p.source_id = k.s AND p.%I = k.i AND p.lease_until = k.lease"
" FOR NO KEY UPDATE SKIP LOCKED) AS l)"
" UPDATE %P AS p SET lease_until = $4"
" FROM locked AS l WHERE p.tableoid = l.part AND p.ctid = l.row"
" RETURNING l.n::integer";

/*
 * Return the end of a lease that begins now.
 */
static TimestampTz
lease_end(void)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
									   LEASE_TIME + LEASE_MARGIN);
}

/*
 * Return an array of the sources that the API does not know.
 */
static ArrayType *
bad_sources(HrflowRun *run)
{
	int			n = list_length(run->bad_sources);
	Datum	   *names = palloc(sizeof(Datum) * Max(n, 1));
	ListCell   *cell;

	foreach(cell, run->bad_sources)
	{
		const HrflowBadSource *source = lfirst(cell);

		names[foreach_current_index(cell)] =
			CStringGetTextDatum(source->source_id);
	}
	return construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT);
}

/*
 * Does an error message, which may be NULL, say that the API does not know the
 * source of a profile?
 */
static bool
is_of_source(const HrflowRun *run, const char *error)
{
	HrflowResult result = {
		.endpoint = run->kind->asked.endpoint,
		.status = HRFLOW_INVALID_SOURCE
	};
	char	   *beginning = hrflow_error_describe(&result);

	return error != NULL &&
		strncmp(error, beginning, strlen(beginning)) == 0;
}

/*
 * Read a claimed profile from a row of the last statement's result, and add it
 * to the claimed profiles of the run.  Throws 22004 if a column is null that
 * must not be null.
 */
static void
read_claimed(HrflowRun *run, HrflowClaimQueue queue, uint64 row, TimestampTz lease)
{
	MemoryContext context = AllocSetContextCreate(run->context,
												  "hrflow_embed profile",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	HrflowProfile *profile = palloc0(sizeof(HrflowProfile));
	Datum		dimension;
	bool		is_null;

	profile->context = context;
	profile->lease = lease;
	profile->source_id = pstrdup(hrflow_store_value(row, 1));
	profile->identifier = pstrdup(hrflow_store_value(row, 2));
	profile->generation = DatumGetInt64(hrflow_store_datum(row, 3));
	profile->claimed_due_at = DatumGetTimestampTz(hrflow_store_datum(row, 4));
	profile->is_suspect = is_of_source(run,
									   hrflow_store_value_or_null(row, 5));
	dimension = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
							  8, &is_null);
	profile->old_dimension = is_null ? 0 : DatumGetInt32(dimension);

	/* Refuse nulls before any request is sent, because requests cost money. */
	for (int i = 6; i <= 7; i++)
		(void) hrflow_store_value(row, i);
	run->claimed_to[queue] = Max(run->claimed_to[queue],
								 profile->claimed_due_at);
	dlist_push_tail(&run->claimed, &profile->node);
	MemoryContextSwitchTo(old);
}

/*
 * Claim at most "size" profiles from one queue.  Returns their number.
 */
static uint64
claim_from(HrflowRun *run, const HrflowStore *store, HrflowClaimQueue queue,
		   int64 size, TimestampTz lease)
{
	HrflowParameters parameters = {0};
	uint64		n;

	if (size == 0)
		return 0;
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(GetCurrentTimestamp()));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->started));
	hrflow_store_add(&parameters, INT8OID, Int64GetDatum(size));
	hrflow_store_add(&parameters, TIMESTAMPTZOID, TimestampTzGetDatum(lease));
	hrflow_store_add(&parameters, TEXTARRAYOID,
					 PointerGetDatum(bad_sources(run)));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->claimed_to[queue]));
	n = hrflow_store_execute(hrflow_store_sql(store, claim_sql,
											  queues_sql[queue],
											  store->has_fetched_with ?
											  "p.dimension" : "NULL::integer"),
							 &parameters);
	for (uint64 i = 0; i < n; i++)
		read_claimed(run, queue, i, lease);
	return n;
}

/*
 * Claim at most "size" profiles from all queues, one after the other.
 * Returns their number.
 */
static uint64
claim_from_all(HrflowRun *run, const HrflowStore *store, int64 size,
			   TimestampTz lease)
{
	uint64		n = 0;

	for (int i = 0; i < HRFLOW_NQUEUES; i++)
		n += claim_from(run, store, i, size - n, lease);
	return n;
}

/*
 * At most once a second, let the next claim search the queue of due profiles
 * from its beginning.  A profile may have an earlier due_at than the last
 * claimed profile, but not have been claimed, for example because it had long
 * been due when it changed, or because another session had locked it.
 */
static void
look_back(HrflowRun *run)
{
	int64		now = hrflow_clock_now();

	if (now - run->looked_back_at < HRFLOW_SEC)
		return;
	run->looked_back_at = now;
	run->claimed_to[HRFLOW_QUEUE_DUE] = DT_NOBEGIN;
}

/*
 * Can the table of profiles, and the tables from which contents are read, be
 * locked without waiting?  Acquires the locks one by one, so it may hold some
 * of them even if it returns false.
 */
static bool
can_lock(const HrflowRun *run, const HrflowStore *store)
{
	return (!store->has_content || hrflow_content_can_lock(run, store)) &&
		ConditionalLockRelationOid(RelationGetRelid(store->profiles),
								   RowExclusiveLock);
}

/*
 * Claim profiles, at most as many as can be requested soon.  From each queue,
 * the profiles that have been due longest are claimed first.  If another
 * session has locked a table, and the run must not wait for it, only sets
 * is_blocked.
 */
void
hrflow_claim(HrflowRun *run, const HrflowStore *store)
{
	int64		size = Min(Min(run->claim_size, hrflow_model_room(run)),
						   run->max_profiles - run->nclaimed);
	int64		npostponed = 0;
	List	   *feeders = NIL;
	TimestampTz lease;
	uint64		n;

	run->is_blocked = !hrflow_work_may_wait(run) && !can_lock(run, store);
	if (run->is_blocked)
		return;
	if (store->has_content)
		feeders = hrflow_content_feeders(run, store);

	/*
	 * Lock the table before the lease begins, because waiting for the lock
	 * may take long.
	 */
	LockRelationOid(RelationGetRelid(store->profiles), RowExclusiveLock);
	run->has_locks = true;
	lease = run->claim_lease = lease_end();

	look_back(run);
	n = claim_from_all(run, store, size, lease);
	if (n == 0)
	{
		/* Profiles with an earlier due_at may have been added or unlocked. */
		for (int i = 0; i < HRFLOW_NQUEUES; i++)
			run->claimed_to[i] = DT_NOBEGIN;
		n = claim_from_all(run, store, size, lease);
	}
	if (n == 0 && hrflow_model_make_due(run, store, size))
		n = claim_from_all(run, store, size, lease);
	if (store->has_content && n > 0)
		npostponed = hrflow_content_read(run, store, feeders, lease);
	run->npostponed += npostponed;
	run->nclaimed += n - npostponed;
	run->npostponed_claims = n > npostponed ? 0 : run->npostponed_claims + 1;
	run->is_drained = n == 0 || run->npostponed_claims >= MAX_POSTPONED_CLAIMS;
}

/*
 * After a claim was rolled back, forget its profiles, so that they are not
 * requested.
 */
void
hrflow_claim_undo(HrflowRun *run)
{
	dlist_head *lists[] = {&run->claimed, &run->waiting, &run->foreign,
	&run->arrived};

	for (int i = 0; i < lengthof(lists); i++)
	{
		dlist_mutable_iter iter;

		dlist_foreach_modify(iter, lists[i])
		{
			HrflowProfile *profile = dlist_container(HrflowProfile, node,
													 iter.cur);

			if (profile->lease != run->claim_lease)
				continue;
			run->nwaiting -= lists[i] == &run->waiting;
			run->narrived -= lists[i] == &run->arrived;
			hrflow_claim_forget(run, profile);
		}
	}
	for (int i = 0; i < HRFLOW_NQUEUES; i++)
		run->claimed_to[i] = DT_NOBEGIN;
	run->is_blocked = true;
}

/*
 * Postpone profiles of sources that the API does not know, so that profiles of
 * other sources do not have to wait for them.  At most POSTPONED_AT_ONCE
 * profiles of each source are postponed.
 */
void
hrflow_claim_postpone(HrflowRun *run, const HrflowStore *store)
{
	ListCell   *cell;

	foreach(cell, run->bad_sources)
	{
		HrflowBadSource *source = lfirst(cell);
		HrflowParameters parameters = {0};
		uint64		n;

		if (!source->is_to_be_postponed)
			continue;
		hrflow_store_add(&parameters, TEXTOID,
						 CStringGetTextDatum(source->source_id));
		hrflow_store_add(&parameters, TIMESTAMPTZOID,
						 TimestampTzGetDatum(GetCurrentTimestamp()));
		hrflow_store_add(&parameters, TIMESTAMPTZOID,
						 TimestampTzGetDatum(source->due_at));
		hrflow_store_add(&parameters, TEXTOID,
						 CStringGetTextDatum(source->error));
		hrflow_store_add(&parameters, INT8OID,
						 Int64GetDatum(POSTPONED_AT_ONCE));
		n = hrflow_store_execute(hrflow_store_sql(store, postpone_sql,
												  store->has_failed_at ?
												  postpone_since_sql : ""),
								 &parameters);
		source->has_more = n == POSTPONED_AT_ONCE;
	}
}

/*
 * Record which sources have no more profiles to be postponed.  Must be called
 * after the transaction of hrflow_claim_postpone() has committed.
 */
void
hrflow_claim_postpone_done(HrflowRun *run)
{
	ListCell   *cell;

	foreach(cell, run->bad_sources)
	{
		HrflowBadSource *source = lfirst(cell);

		source->is_to_be_postponed &= source->has_more;
	}
}

/*
 * Return all profiles of a run whose leases end no later than "before".
 */
static List *
find_leases(HrflowRun *run, TimestampTz before)
{
	dlist_head *lists[] = {&run->claimed, &run->waiting, &run->in_flight,
	&run->split, &run->suspects, &run->foreign, &run->arrived};
	List	   *profiles = NIL;
	dlist_iter	iter;

	for (int i = 0; i < lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			HrflowProfile *profile = dlist_container(HrflowProfile, node,
													 iter.cur);

			if (profile->lease <= before)
				profiles = lappend(profiles, profile);
		}
	}
	return profiles;
}

/*
 * Change the leases that end no later than "before" so that they end at
 * "lease", or release them if "lease" is DT_NOBEGIN.  Skips leases that are no
 * longer ours, and rows that other sessions have locked.  Returns the profiles
 * whose leases were changed; the change takes effect at the commit.
 */
static List *
change_leases(HrflowRun *run, const HrflowStore *store, TimestampTz before,
			  TimestampTz lease)
{
	static const Oid types[] = {TEXTOID, TEXTOID, TIMESTAMPTZOID};
	List	   *profiles = find_leases(run, before);
	List	   *changed = NIL;
	HrflowParameters parameters = {0};
	HrflowRows *rows;
	ListCell   *cell;
	uint64		n;

	if (profiles == NIL)
		return NIL;
	rows = hrflow_store_make_rows(types, lengthof(types),
								  list_length(profiles));
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);
		Datum		values[lengthof(types)];

		values[0] = CStringGetTextDatum(profile->source_id);
		values[1] = CStringGetTextDatum(profile->identifier);
		values[2] = TimestampTzGetDatum(profile->lease);
		hrflow_store_add_row(rows, values, NULL);
	}
	hrflow_store_add_rows(&parameters, rows);
	hrflow_store_add(&parameters, TIMESTAMPTZOID, TimestampTzGetDatum(lease));
	if (lease == DT_NOBEGIN)
		parameters.nulls[parameters.n - 1] = 'n';
	n = hrflow_store_execute(hrflow_store_sql(store, change_leases_sql),
							 &parameters);
	for (uint64 i = 0; i < n; i++)
		changed = lappend(changed,
						  list_nth(profiles,
								   DatumGetInt32(hrflow_store_datum(i, 1)) - 1));
	return changed;
}

/*
 * Renew the leases that end soon, such as those of profiles that wait because
 * of the rate limit.  After the commit, the caller must call
 * hrflow_claim_renew_done().
 */
void
hrflow_claim_renew(HrflowRun *run, const HrflowStore *store)
{
	TimestampTz lease = lease_end();
	List	   *renewed;
	ListCell   *cell;

	/* An earlier renewal may have been rolled back. */
	foreach(cell, find_leases(run, DT_NOEND))
		((HrflowProfile *) lfirst(cell))->renewed = 0;
	renewed = change_leases(run, store,
							TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														LEASE_MARGIN),
							lease);
	foreach(cell, renewed)
		((HrflowProfile *) lfirst(cell))->renewed = lease;
}

/*
 * Record the ends of renewed leases.  Must be called after the transaction of
 * hrflow_claim_renew() has committed, because a profile is written only if the
 * end of its lease equals "lease_until" in the table.
 */
void
hrflow_claim_renew_done(HrflowRun *run)
{
	dlist_head *lists[] = {&run->claimed, &run->waiting, &run->in_flight,
	&run->split, &run->suspects, &run->foreign, &run->arrived};
	dlist_iter	iter;

	for (int i = 0; i < lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			HrflowProfile *profile = dlist_container(HrflowProfile, node,
													 iter.cur);

			if (profile->renewed != 0)
				profile->lease = profile->renewed;
			profile->renewed = 0;
		}
	}
}

/*
 * Release the leases of the profiles that are left in the run's lists, except
 * for rows that other sessions have locked.  If contents are read from tables,
 * also clear "sent_hash" for requests that were not sent.
 */
void
hrflow_claim_release(HrflowRun *run, const HrflowStore *store)
{
	if (store->has_content)
		hrflow_content_unmark(run, store);
	(void) change_leases(run, store, DT_NOEND, DT_NOBEGIN);
}

/*
 * Remove a profile from its list, and free it.
 */
void
hrflow_claim_forget(HrflowRun *run, HrflowProfile *profile)
{
	hrflow_model_end_trial(run, profile);
	dlist_delete(&profile->node);
	MemoryContextDelete(profile->context);
}

/*
 * Free the arrived profiles that other sessions have locked, and count those
 * whose fetched vectors are lost.  Their leases are not released, because
 * another claim could then request, and pay for, the same profiles again at
 * once.
 */
void
hrflow_claim_forget_locked(HrflowRun *run)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &run->arrived)
	{
		HrflowProfile *profile = dlist_container(HrflowProfile, node, iter.cur);

		if (!hrflow_write_is_locked(profile))
			continue;
		run->nlocked += hrflow_write_is_paid(profile);
		run->nunwritten += hrflow_write_is_paid(profile);
		run->narrived--;
		hrflow_claim_forget(run, profile);
	}
}

/*
 * Free all profiles that were not written, and count those whose fetched
 * vectors are lost.  No list of the run other than "claimed", "waiting" and
 * "arrived" may contain profiles.
 */
void
hrflow_claim_forget_all(HrflowRun *run)
{
	dlist_head *lists[] = {&run->claimed, &run->waiting, &run->arrived};

	for (int i = 0; i < lengthof(lists); i++)
	{
		while (!dlist_is_empty(lists[i]))
		{
			HrflowProfile *profile = dlist_head_element(HrflowProfile, node,
														lists[i]);

			run->nunwritten += hrflow_write_is_paid(profile);
			hrflow_claim_forget(run, profile);
		}
	}
	run->narrived = run->nwaiting = 0;
}
