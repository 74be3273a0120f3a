/*-------------------------------------------------------------------------
 *
 * claim.c
 *		Which profiles a run fetches next.
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
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * How long a lease lasts, in milliseconds, and how long before its end it is
 * renewed.  It bounds how long the profiles of a backend that died wait.
 */
#define LEASE_TIME (5 * 60 * 1000)
#define LEASE_MARGIN (30 * 1000)

/*
 * $1 is the time now, $2 when the run began, $3 how many, $4 when the lease
 * ends, $5 sources to leave out and $6 when the last one claimed was due.  Below
 * that the index has nothing but what was claimed already, which a snapshot
 * held elsewhere keeps from being removed.
 */
static const char claim_sql[] =
"WITH claimed AS MATERIALIZED"
" (SELECT p.source_id AS s, p.%I AS i FROM %P AS p"
" WHERE p.due_at >= $6 AND p.due_at <= $1"
" AND (p.lease_until IS NULL OR p.lease_until <= $1)"
" AND %s AND p.source_id <> ALL ($5)"
" ORDER BY p.due_at LIMIT $3"
" FOR UPDATE SKIP LOCKED)"
" UPDATE %P AS p SET lease_until = $4"
" FROM claimed AS c"
" WHERE p.source_id = c.s AND p.%I = c.i"
" RETURNING p.source_id, p.%I, p.generation, p.due_at, p.last_error,"
" p.state, p.attempts, %s";

/*
 * What is in each queue.  What this run has refreshed and is due again, max_age
 * being short, is the next one's.
 */
static const char *const queues_sql[] = {
	[HRFLOW_QUEUE_DUE] = "p.state = 'due'",
	[HRFLOW_QUEUE_OLD] = "p.state IS DISTINCT FROM 'due' AND p.due_at <= $2"
};

/*
 * $1 is a source that the API does not know, $2 the time now, $3 when it is to be
 * asked for again, and $4 the error.  All its profiles that would be due earlier
 * wait until then; $5 at a time, for others may be waiting for their rows.
 */
static const char postpone_sql[] =
"WITH due AS MATERIALIZED"
" (SELECT p.source_id AS s, p.%I AS i FROM %P AS p"
" WHERE p.source_id = $1 AND p.due_at < $3"
" AND (p.lease_until IS NULL OR p.lease_until <= $2)"
" ORDER BY p.due_at LIMIT $5"
" FOR UPDATE SKIP LOCKED)"
" UPDATE %P AS p SET due_at = $3,"
" %s last_error = $4"
" FROM due WHERE p.source_id = due.s AND p.%I = due.i";

#define POSTPONED_AT_ONCE 10000

static const char postpone_since_sql[] =
"failed_at = CASE WHEN p.state = 'missing' OR p.last_error = $4"
" THEN p.failed_at ELSE $2 END,";

/*
 * $1 to $3 are the keys and leases, and $4 is when they end now.  Those that
 * others have locked stay as they are.
 */
static const char change_leases_sql[] =
"WITH locked AS MATERIALIZED"
" (SELECT p.source_id AS s, p.%I AS i, k.n FROM %P AS p"
" JOIN unnest($1, $2, $3) WITH ORDINALITY AS k(s, i, lease, n)"
" ON p.source_id = k.s AND p.%I = k.i"
" WHERE p.lease_until = k.lease"
" ORDER BY p.source_id, p.%I"
" FOR UPDATE OF p SKIP LOCKED)"
" UPDATE %P AS p SET lease_until = $4"
" FROM locked AS k"
" WHERE p.source_id = k.s AND p.%I = k.i"
" RETURNING k.n::integer";

/*
 * When a lease ends that is given now.
 */
static TimestampTz
lease_end(void)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
									   LEASE_TIME + LEASE_MARGIN);
}

/*
 * The sources that the API does not know, as an array.
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
 * Read a profile that was claimed.
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

	/* What must not be null is refused before it is paid for. */
	for (int i = 6; i <= 7; i++)
		(void) hrflow_store_value(row, i);
	run->claimed_to[queue] = Max(run->claimed_to[queue],
								 profile->claimed_due_at);
	dlist_push_tail(&run->claimed, &profile->node);
	MemoryContextSwitchTo(old);
}

/*
 * Claim so many profiles from one queue.  Returns their number.
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
 * Likewise from all of them, one after the other.
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
 * What was due long ago when it changed, and what others had locked, has come to
 * the queue below the bound: once a second, look from the beginning.
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
 * Claim what is due longest in its queue, as much as is soon asked for.
 */
void
hrflow_claim(HrflowRun *run, const HrflowStore *store)
{
	int64		size = Min(Min(run->claim_size, hrflow_model_room(run)),
						   run->max_profiles - run->nclaimed);
	TimestampTz lease;
	uint64		n;

	/* A lease begins when it is given, however long the table was locked. */
	LockRelationOid(RelationGetRelid(store->profiles), RowExclusiveLock);
	lease = lease_end();

	/* A lease that a crash takes back is not missed. */
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	look_back(run);
	n = claim_from_all(run, store, size, lease);
	if (n == 0)
	{
		/* Something may be due since long ago that was locked, or is new. */
		for (int i = 0; i < HRFLOW_NQUEUES; i++)
			run->claimed_to[i] = DT_NOBEGIN;
		n = claim_from_all(run, store, size, lease);
	}
	if (n == 0 && hrflow_model_make_due(run, store, size))
		n = claim_from_all(run, store, size, lease);
	run->nclaimed += n;
	run->is_drained = n == 0;
}

/*
 * Have all of a source wait that the API does not know, as one of its profiles
 * does: others are not to wait for what cannot be fetched.
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
 * That is committed.
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
 * The profiles of all lists whose leases would end before a time.
 */
static List *
find_leases(HrflowRun *run, TimestampTz before)
{
	dlist_head *lists[] = {&run->claimed, &run->in_flight, &run->split,
	&run->suspects, &run->foreign, &run->arrived};
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
 * Have all leases that would end before a time end at another one instead, or
 * never have been where "lease" is DT_NOBEGIN.  Returns the profiles of which
 * that is so once this is committed.
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
 * Renew the leases that end soon, as of profiles that wait for the rate.  See
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
 * What was renewed is committed.  Not before: an answer is written only where
 * the lease is the one that the table has.
 */
void
hrflow_claim_renew_done(HrflowRun *run)
{
	dlist_head *lists[] = {&run->claimed, &run->in_flight, &run->split,
	&run->suspects, &run->foreign, &run->arrived};
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
 * Give the leases back of all profiles that were not written.
 */
void
hrflow_claim_release(HrflowRun *run, const HrflowStore *store)
{
	(void) change_leases(run, store, DT_NOEND, DT_NOBEGIN);
}

/*
 * Forget a profile: it is in none of the lists any more.
 */
void
hrflow_claim_forget(HrflowRun *run, HrflowProfile *profile)
{
	hrflow_model_end_trial(run, profile);
	dlist_delete(&profile->node);
	MemoryContextDelete(profile->context);
}

/*
 * Forget all that were not written.  What has arrived of a profile that others
 * have locked is lost.
 */
void
hrflow_claim_forget_all(HrflowRun *run)
{
	dlist_head *lists[] = {&run->claimed, &run->arrived};

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
	run->narrived = 0;
}
