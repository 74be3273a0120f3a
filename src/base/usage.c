/*-------------------------------------------------------------------------
 *
 * usage.c
 *		Counts the requests that each role sends per day, for the view
 *		hrflow_embed_usage.
 *
 * Each backend counts locally, and adds its counts to the shared counts
 * together with its statistics (see stats.c), and when it reads the view.  The
 * shared counts survive a restart if the library is preloaded; see saved.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/shared.h"
#include "catalog/pg_authid.h"
#include "funcapi.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(hrflow_embed_usage);

/*
 * Counts of one role that have not been added to the shared counts yet.
 */
struct HrflowUsageCounts
{
	slist_node	node;
	Oid			role;
	bool		is_dirty;		/* is any of "requests" not zero? */
	uint64		requests[HRFLOW_NCALLERS][2];	/* second index: is_link */
};

/* The counts of all roles on whose behalf this backend has sent requests. */
static slist_head all_counts = SLIST_STATIC_INIT(all_counts);

/*
 * Return the current date in UTC.
 */
DateADT
hrflow_usage_today(void)
{
	TimestampTz now = GetCurrentTimestamp();

	return now / USECS_PER_DAY - (now % USECS_PER_DAY < 0);
}

/*
 * Find or create the counts of a role, which live as long as the backend.  May
 * throw.
 */
HrflowUsageCounts *
hrflow_usage_of(Oid role)
{
	HrflowUsageCounts *counts;
	slist_iter	iter;

	slist_foreach(iter, &all_counts)
	{
		counts = slist_container(HrflowUsageCounts, node, iter.cur);
		if (counts->role == role)
			return counts;
	}
	counts = MemoryContextAllocZero(TopMemoryContext,
									sizeof(HrflowUsageCounts));
	counts->role = role;
	slist_push_head(&all_counts, &counts->node);
	return counts;
}

/*
 * Count a request.  Does not throw.
 */
void
hrflow_usage_count(HrflowUsageCounts *counts, HrflowCaller caller,
				   bool is_link)
{
	counts->requests[caller][is_link]++;
	counts->is_dirty = true;
}

/*
 * Find today's entry for a role and a function.  Returns NULL if there is
 * none.  The caller must hold the lock.
 */
static HrflowUsageEntry *
find_usage(HrflowUsage *usage, DateADT today, Oid role, HrflowCaller caller)
{
	/*
	 * Index of the last entry found for each function, where the search
	 * begins because the entry is likely to match again.
	 */
	static int	last[HRFLOW_NCALLERS];

	for (int i = 0; i < usage->nentries; i++)
	{
		int			n = (last[caller] + i) % usage->nentries;
		HrflowUsageEntry *entry = &usage->entries[n];

		if (entry->day == today && entry->role == role &&
			entry->caller == caller)
		{
			last[caller] = n;
			return entry;
		}
	}
	return NULL;
}

static uint64
requests_of(HrflowUsageEntry *entry)
{
	return pg_atomic_read_u64(&entry->requests[false]) +
		pg_atomic_read_u64(&entry->requests[true]);
}

/*
 * Create an entry.  If the array is full, replace the entry with the fewest
 * requests on the oldest day.  The caller must hold the lock in exclusive
 * mode.
 */
static HrflowUsageEntry *
make_entry(HrflowUsage *usage, DateADT today, Oid role, HrflowCaller caller)
{
	HrflowUsageEntry *entry = &usage->entries[0];

	if (usage->nentries < HRFLOW_NUSAGE)
		entry = &usage->entries[usage->nentries++];
	else
	{
		for (int i = 1; i < usage->nentries; i++)
		{
			HrflowUsageEntry *other = &usage->entries[i];

			if (other->day < entry->day ||
				(other->day == entry->day &&
				 requests_of(other) < requests_of(entry)))
				entry = other;
		}
	}
	entry->day = today;
	entry->role = role;
	entry->caller = caller;
	pg_atomic_write_u64(&entry->requests[false], 0);
	pg_atomic_write_u64(&entry->requests[true], 0);
	return entry;
}

/*
 * Add a role's counts for one function to the shared counts.
 */
static void
flush_function(HrflowUsage *usage, HrflowUsageCounts *counts,
			   HrflowCaller caller)
{
	DateADT		today = hrflow_usage_today();
	HrflowUsageEntry *entry;

	LWLockAcquire(&usage->lock, LW_SHARED);
	entry = find_usage(usage, today, counts->role, caller);
	if (entry == NULL)
	{
		LWLockRelease(&usage->lock);
		LWLockAcquire(&usage->lock, LW_EXCLUSIVE);
		entry = find_usage(usage, today, counts->role, caller);
		if (entry == NULL)
			entry = make_entry(usage, today, counts->role, caller);
	}
	for (int i = 0; i < 2; i++)
		pg_atomic_fetch_add_u64(&entry->requests[i],
								counts->requests[caller][i]);
	LWLockRelease(&usage->lock);
}

/*
 * Add all counts of this backend to the shared counts, or discard them if
 * nothing is shared.  Does not throw once hrflow_shared_get() has succeeded in
 * this backend.  Must not be called from libcurl's callbacks, because it may
 * wait for a lock.
 */
void
hrflow_usage_flush(void)
{
	HrflowUsage *usage = hrflow_shared_usage();
	slist_iter	iter;

	slist_foreach(iter, &all_counts)
	{
		HrflowUsageCounts *counts = slist_container(HrflowUsageCounts, node,
													iter.cur);

		if (!counts->is_dirty)
			continue;
		for (int caller = 0; usage != NULL && caller < HRFLOW_NCALLERS; caller++)
		{
			if (counts->requests[caller][false] > 0 ||
				counts->requests[caller][true] > 0)
				flush_function(usage, counts, caller);
		}
		memset(counts->requests, 0, sizeof(counts->requests));
		counts->is_dirty = false;
	}
}

/*
 * ------------------------------------------------------------------------
 * The view
 * ------------------------------------------------------------------------
 */

/*
 * A copy of an HrflowUsageEntry, made while the lock is held.
 */
typedef struct Usage
{
	DateADT		day;
	Oid			role;
	HrflowCaller caller;
	uint64		requests[2];
} Usage;

static void
put_usage(ReturnSetInfo *rsinfo, const Usage *entry)
{
	const char *role = GetUserNameFromId(entry->role, true);
	NameData	role_name;
	Datum		values[5];
	bool		nulls[5] = {false};

	namestrcpy(&role_name, role != NULL ? role : "");
	values[0] = DateADTGetDatum(entry->day);
	values[1] = NameGetDatum(&role_name);
	nulls[1] = role == NULL;
	values[2] = CStringGetTextDatum(hrflow_caller_name(entry->caller));
	values[3] = Int64GetDatum(entry->requests[false]);
	values[4] = Int64GetDatum(entry->requests[true]);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * hrflow_embed_usage() RETURNS TABLE (...)
 *
 * Returns the rows of the view hrflow_embed_usage.
 */
Datum
hrflow_embed_usage(PG_FUNCTION_ARGS)
{
	static bool was_told = false;
	HrflowUsage *usage = hrflow_shared_usage();
	Usage	   *copy;
	int			n;
	bool		sees_all = has_privs_of_role(GetUserId(),
											 ROLE_PG_READ_ALL_STATS);

	InitMaterializedSRF(fcinfo, 0);
	if (usage == NULL)
	{
		if (!was_told)
			ereport(NOTICE,
					(errmsg("usage of the HrFlow API is not counted"),
					 errhint("Add hrflow_embed to \"shared_preload_libraries\".")));
		was_told = true;
		return (Datum) 0;
	}

	/* Include counts that a failed statement may not have flushed. */
	hrflow_usage_flush();

	copy = palloc(sizeof(Usage) * HRFLOW_NUSAGE);
	LWLockAcquire(&usage->lock, LW_SHARED);
	n = usage->nentries;
	for (int i = 0; i < n; i++)
	{
		HrflowUsageEntry *entry = &usage->entries[i];

		copy[i] = (Usage)
		{
			.day = entry->day,
				.role = entry->role,
				.caller = entry->caller,
				.requests[false] = pg_atomic_read_u64(&entry->requests[false]),
				.requests[true] = pg_atomic_read_u64(&entry->requests[true])
		};
	}
	LWLockRelease(&usage->lock);
	for (int i = 0; i < n; i++)
	{
		if (sees_all || has_privs_of_role(GetUserId(), copy[i].role))
			put_usage((ReturnSetInfo *) fcinfo->resultinfo, &copy[i]);
	}
	pfree(copy);
	return (Datum) 0;
}
