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
#include "storage/proc.h"
#include "store/refresh.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

/*
 * The longest time a batch is fetched, in milliseconds, unless batch_timeout
 * says less.  It bounds how long the profiles of a backend that died wait.
 */
#define MAX_BATCH_TIME (5 * 60 * 1000)

/* What a lease has more, to write the batch: in milliseconds. */
#define LEASE_MARGIN (30 * 1000)

/* How long a lock is waited for to give leases back, in milliseconds. */
#define RELEASE_LOCK_TIMEOUT 1000

/*
 * $1 is the time now, $2 when the run began, $3 how many, $4 when the lease
 * ends and $5 sources to leave out.
 *
 * What this run has refreshed and is due again, max_age being short, is the
 * next one's.
 */
static const char claim_sql[] =
"WITH claimed AS MATERIALIZED"
" (SELECT p.source_id AS s, p.%I AS i FROM %P AS p"
" WHERE p.due_at <= $1"
" AND (p.lease_until IS NULL OR p.lease_until <= $1)"
" AND (p.state = 'due' OR p.due_at <= $2)"
" AND p.source_id <> ALL ($5)"
" ORDER BY p.due_at LIMIT $3"
" FOR UPDATE SKIP LOCKED)"
" UPDATE %P AS p"
" SET lease_until = $4, attempts = p.attempts + 1"
" FROM claimed AS c"
" WHERE p.source_id = c.s AND p.%I = c.i"
" RETURNING p.source_id, p.%I, p.generation, p.attempts, p.state";

/* $1 and $2 are the keys, and $3 is when the lease ends. */
static const char release_sql[] =
"WITH locked AS MATERIALIZED"
" (SELECT p.source_id AS s, p.%I AS i FROM %P AS p"
" JOIN unnest($1, $2) AS k(s, i) ON p.source_id = k.s AND p.%I = k.i"
" WHERE p.lease_until = $3"
" ORDER BY p.source_id, p.%I"
" FOR UPDATE OF p SKIP LOCKED)"
" UPDATE %P AS p SET lease_until = NULL,"
" attempts = GREATEST(p.attempts - 1, 0)"
" FROM locked AS k"
" WHERE p.source_id = k.s AND p.%I = k.i";

/*
 * How long the next batch may take, in milliseconds.
 */
static int
batch_time(HrflowRun *run)
{
	int			timeout = hrflow_settings_get(true)->batch_timeout;
	int			limit = timeout > 0 ? Min(timeout, MAX_BATCH_TIME) :
	MAX_BATCH_TIME;

	if (run->deadline != DT_NOEND)
	{
		long		rest =
		TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										run->deadline);

		limit = Min(limit, rest);
	}
	return limit;
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
		names[foreach_current_index(cell)] = CStringGetTextDatum(lfirst(cell));
	return construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT);
}

/*
 * Claim a batch.  Returns the profiles, which are to be fetched in at most
 * "limit" milliseconds; none when the time is up.
 */
List *
hrflow_claim(HrflowRun *run, int *limit)
{
	TimestampTz now;
	int64		size = Min(run->batch_size, run->max_profiles - run->nclaimed);
	HrflowParameters parameters = {0};
	HrflowStore store;
	List	   *profiles = NIL;
	uint64		n;

	/* A lease begins when it is given, however long the table was locked. */
	hrflow_work_begin(run, &store);
	LockRelationOid(RelationGetRelid(store.profiles), RowExclusiveLock);
	*limit = batch_time(run);
	now = GetCurrentTimestamp();
	run->lease = TimestampTzPlusMilliseconds(now, *limit + LEASE_MARGIN);
	if (*limit <= 0)
		size = 0;
	hrflow_store_add(&parameters, TIMESTAMPTZOID, TimestampTzGetDatum(now));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->started));
	hrflow_store_add(&parameters, INT8OID, Int64GetDatum(size));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->lease));
	hrflow_store_add(&parameters, TEXTARRAYOID,
					 PointerGetDatum(bad_sources(run)));
	n = hrflow_store_execute(hrflow_store_sql(&store, claim_sql), &parameters);
	for (uint64 i = 0; i < n; i++)
	{
		HrflowProfile *profile = palloc0(sizeof(HrflowProfile));

		profile->context = run->batch_context;
		profile->source_id = hrflow_store_value(i, 1);
		profile->identifier = hrflow_store_value(i, 2);
		profile->generation = DatumGetInt64(hrflow_store_datum(i, 3));
		profile->attempts = DatumGetInt32(hrflow_store_datum(i, 4));
		profile->claimed_state = hrflow_state_parse(hrflow_store_value(i, 5));
		profiles = lappend(profiles, profile);
	}
	SPI_freetuptable(SPI_tuptable);
	hrflow_work_end(&store);
	run->nclaimed += n;
	return profiles;
}

/*
 * Give a batch's leases back, and the attempts: what threw was not a profile's
 * fault.  Who has cancelled the run, or a time-out that has, does not do so
 * again: so it does not wait for long, until the transaction ends.
 */
void
hrflow_claim_release(HrflowRun *run, List *profiles)
{
	HrflowParameters parameters = {0};
	HrflowStore store;

	if (LockTimeout == 0 || LockTimeout > RELEASE_LOCK_TIMEOUT)
		(void) set_config_option("lock_timeout",
								 psprintf("%d", RELEASE_LOCK_TIMEOUT),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
								 true, 0, false);
	hrflow_work_begin(run, &store);
	hrflow_work_add_keys(&parameters, profiles);
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->lease));
	hrflow_store_execute(hrflow_store_sql(&store, release_sql), &parameters);
	hrflow_work_end(&store);
}
