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
 * A lease lasts for LEASE_TIME + LEASE_MARGIN milliseconds, and is renewed
 * LEASE_MARGIN before it ends.  The profiles of a backend that has crashed
 * cannot be claimed again until their leases have ended.
 */
#define LEASE_TIME (5 * 60 * 1000)
#define LEASE_MARGIN (30 * 1000)

/*
 * The statements below find the rows that they have just locked by "ctid"
 * and, because the table may be partitioned, by "tableoid".  If they did so
 * by key, the planner would scan the whole table in each statement if the
 * statistics say that it has a single row, for example after all rows of a
 * table have been deleted and loaded again.  For the same reason, keys are
 * looked up in a LATERAL subquery, which cannot be the outer side of the
 * join.  If a row is changed between the snapshot of a statement and the
 * lock, a claim does not find the new version, and leaves it to the next
 * claim.
 */

/*
 * $1 is the current time, $2 the start of the run, $3 the maximum number of
 * profiles, $4 the end of the lease, $5 an array of sources to be skipped,
 * and $6 the due_at of the last profile claimed before.  Below $6, the index
 * contains only entries of profiles that were claimed already; they cannot be
 * removed while another session holds an old snapshot.
 */
static const char claim_sql[] =
"WITH claimed AS MATERIALIZED"
" (SELECT p.tableoid AS part, p.ctid AS row FROM %P AS p"
" WHERE p.due_at >= $6 AND p.due_at <= $1"
" AND (p.lease_until IS NULL OR p.lease_until <= $1)"
" AND %s AND p.source_id <> ALL ($5)"
" ORDER BY p.due_at LIMIT $3"
" FOR UPDATE SKIP LOCKED)"
" UPDATE %P AS p SET lease_until = $4"
" FROM claimed AS c WHERE p.tableoid = c.part AND p.ctid = c.row"
" RETURNING p.source_id, p.%I, p.generation, p.due_at, p.last_error,"
" p.state, p.attempts, %s";

/*
 * Condition for a profile to be in a queue.  If max_age is short, profiles
 * that this run has refreshed are due again before it ends; they are left to
 * the next run.
 */
static const char *const queues_sql[] = {
	[HRFLOW_QUEUE_DUE] = "p.state = 'due'",
	[HRFLOW_QUEUE_OLD] = "p.state IS DISTINCT FROM 'due' AND p.due_at <= $2"
};

/*
 * $1 is a source that the API does not know, $2 the current time, $3 the time
 * at which to request the source again, $4 the error, and $5 the maximum
 * number of profiles.  All profiles of the source that would be due before $3
 * are postponed until then, but at most $5 per statement, because other
 * sessions may be waiting for their rows.
 */
static const char postpone_sql[] =
"WITH due AS MATERIALIZED"
" (SELECT p.tableoid AS part, p.ctid AS row FROM %P AS p"
" WHERE p.source_id = $1 AND p.due_at < $3"
" AND (p.lease_until IS NULL OR p.lease_until <= $2)"
" ORDER BY p.due_at LIMIT $5"
" FOR UPDATE SKIP LOCKED)"
" UPDATE %P AS p SET due_at = $3,"
" %s last_error = $4"
" FROM due WHERE p.tableoid = due.part AND p.ctid = due.row";

/* Maximum number of profiles to be postponed by one statement. */
#define POSTPONED_AT_ONCE 10000

static const char postpone_since_sql[] =
"failed_at = CASE WHEN p.state = 'missing' OR p.last_error = $4"
" THEN p.failed_at ELSE $2 END,";

/*
 * $1 to $3 are arrays of the sources, identifiers and leases of profiles, and
 * $4 is the new end of the leases.  Rows that other sessions have locked are
 * skipped.
 */
static const char change_leases_sql[] =
"WITH locked AS MATERIALIZED"
" (SELECT l.part, l.row, k.n"
" FROM unnest($1, $2, $3) WITH ORDINALITY AS k(s, i, lease, n)"
" CROSS JOIN LATERAL"
" (SELECT p.tableoid AS part, p.ctid AS row FROM %P AS p"
" WHERE p.source_id = k.s AND p.%I = k.i AND p.lease_until = k.lease"
" FOR UPDATE SKIP LOCKED) AS l)"
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
 * Is this the error of a profile whose source the API does not know?
 */
static bool
is_of_source(const char *error)
{
	HrflowResult result = {.status = HRFLOW_INVALID_SOURCE};
	char	   *beginning = hrflow_error_describe(&result);

	return error != NULL &&
		strncmp(error, beginning, strlen(beginning)) == 0;
}

/*
 * Read a claimed profile from a row of the last statement's result, and add
 * it to the claimed profiles of the run.
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
	profile->is_suspect = is_of_source(hrflow_store_value_or_null(row, 5));
	dimension = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
							  8, &is_null);
	profile->old_dimension = is_null ? 0 : DatumGetInt32(dimension);

	/* Refuse nulls now, before sending requests that cost money. */
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
 * Once a second, let the next claim search the queue of due profiles from its
 * beginning.  A profile may have a due_at below that of the last profile
 * claimed if it had long been due when it changed, or if another session had
 * locked it.
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
 * May a claim wait for locks on the tables from which contents are read?
 * Sessions of the user may hold such a lock for long, for example ALTER
 * TABLE.  Meanwhile requests in flight would time out, and profiles that have
 * arrived would not be written.
 */
bool
hrflow_claim_may_wait(HrflowRun *run)
{
	return dlist_is_empty(&run->in_flight) && run->narrived == 0 &&
		run->nsuspects == 0 && run->nforeign == 0;
}

/*
 * Claim the profiles that have been due longest in their queue, as many as
 * will be requested soon.
 */
void
hrflow_claim(HrflowRun *run, const HrflowStore *store)
{
	int64		size = Min(Min(run->claim_size, hrflow_model_room(run)),
						   run->max_profiles - run->nclaimed);
	List	   *feeders = NIL;
	TimestampTz lease;
	uint64		n;

	if (store->has_content)
	{
		run->is_blocked = !hrflow_claim_may_wait(run) &&
			!hrflow_content_can_lock(run, store);
		if (run->is_blocked)
			return;
		feeders = hrflow_content_feeders(run, store);
	}

	/* Lock the table before the lease begins, because this may take long. */
	LockRelationOid(RelationGetRelid(store->profiles), RowExclusiveLock);
	lease = lease_end();

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
		hrflow_content_read(run, store, feeders, lease);
	run->nclaimed += n;
	run->is_drained = n == 0;
}

/*
 * Postpone all profiles of each source that the API does not know, so that
 * profiles of other sources do not wait for them.
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
 * Record that sources were postponed.  The caller must have committed
 * hrflow_claim_postpone().
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
 * Return the profiles, of all lists, whose leases end no later than "before".
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
 * Set the end of all leases that end no later than "before" to "lease", or
 * release them if "lease" is DT_NOBEGIN.  Returns the profiles whose leases
 * will have changed after the commit.
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
	List	   *renewed = change_leases(run, store,
										TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
																	LEASE_MARGIN),
										lease);
	ListCell   *cell;

	foreach(cell, renewed)
		((HrflowProfile *) lfirst(cell))->renewed = lease;
}

/*
 * Record the renewed leases.  The caller must have committed
 * hrflow_claim_renew(), because a profile is written only if its lease is the
 * one in the table.
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
 * Release the leases of all profiles that were not written.
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
 * Free all profiles that were not written.  This loses fetched vectors of
 * profiles whose rows other sessions have locked.
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

			run->nunwritten += profile->is_locked || profile->is_stuck;
			hrflow_claim_forget(run, profile);
		}
	}
	run->narrived = run->nwaiting = 0;
}
