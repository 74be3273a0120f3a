/*-------------------------------------------------------------------------
 *
 * shared.h
 *		The layout of what the backends of a server share; for shared.c,
 *		rate.c, stats.c, usage.c, saved.c and activity.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_SHARED_H
#define HRFLOW_SHARED_H

#include "postgres.h"

#include "base/activity.h"
#include "base/base.h"
#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "utils/date.h"

/*
 * As many accounts (a key at an origin) have limits of their own; the one
 * used longest ago gives way to another.  Servers have one or a few.
 */
#define HRFLOW_NBUCKETS 64

#define HRFLOW_NSTATUSES (HRFLOW_LAST_STATUS + 1)

/*
 * The limit of one account.  Times are those of hrflow_clock_now().
 */
typedef struct HrflowBucket
{
	uint64		account;		/* hash of key and origin; 0: free */
	int64		used_at;
	int			limit;			/* requests a minute; 0: none */
	int64		limit_used_at;	/* when somebody with this limit last asked */
	int64		next_at;		/* when the next request is due, were there no
								 * burst allowed */
	bool		paused;			/* until a probe gets through */
	bool		by_failures;	/* the pause was begun by failures, not by the
								 * server's word */
	bool		refuses;		/* the server asks for longer than anyone
								 * waits */
	int			level;			/* probes in this pause that did not get
								 * through */
	int64		paused_at;
	int64		paused_until;
	int64		pause_asked_at; /* when a reply last asked for a pause */
	int64		lasted;			/* length of the last pause, which a probe
								 * ended; 0 when unknown */
	int64		ended_at;		/* when that was */
	int64		probe_sent_at;	/* the last one */
	int64		probe_until;	/* a probe is out; no longer waited for after
								 * this; 0 for none */
	int			failures;		/* in a row, since the last answer */
	int64		answered_at;	/* when the last answer came */
} HrflowBucket;

/* Number of origins whose version of HTTP is remembered. */
#define HRFLOW_NORIGINS 256

/* Number of accounts whose requests of a day are counted. */
#define HRFLOW_NDAYS HRFLOW_NBUCKETS

/*
 * The requests that an account has sent today; see budget.c.
 */
typedef struct HrflowDay
{
	pg_atomic_uint64 account;	/* as in HrflowBucket; 0: free */
	pg_atomic_uint64 sent;		/* on the day in the upper 32 bits, which is a
								 * DateADT, as many as the lower 32 bits say */
} HrflowDay;

/* Number of entries of hrflow_embed_usage that are kept. */
#define HRFLOW_NUSAGE 4096

/*
 * The requests that a role has sent by a function on one day.
 */
typedef struct HrflowUsageEntry
{
	DateADT		day;			/* in UTC */
	Oid			role;
	HrflowCaller caller;
	pg_atomic_uint64 requests[2];	/* to the API; for links */
} HrflowUsageEntry;

/*
 * Who adds to an entry holds the lock shared; who makes one, alone.
 */
typedef struct HrflowUsage
{
	LWLock		lock;
	int			nentries;
	HrflowUsageEntry entries[HRFLOW_NUSAGE];
} HrflowUsage;

typedef struct HrflowShared
{
	slock_t		mutex;			/* for the buckets */
	HrflowBucket buckets[HRFLOW_NBUCKETS];

	pg_atomic_uint64 origins[HRFLOW_NORIGINS];	/* see origin.c */

	/* Of the API and of links, in microseconds; 0: none seen.  See speed.c. */
	pg_atomic_uint64 latency[2];

	pg_atomic_uint64 counters[HRFLOW_NCOUNTERS];
	pg_atomic_uint64 rows[HRFLOW_NSTATUSES];
	pg_atomic_uint64 reset_at;	/* TimestampTz */

	HrflowDay	days[HRFLOW_NDAYS];

	/* What follows is only used where it is shared. */
	HrflowUsage usage;

	/* MaxBackends of them. */
	HrflowActivitySlot activity[FLEXIBLE_ARRAY_MEMBER];
} HrflowShared;

/* in shared.c */
extern HrflowShared *hrflow_shared_get(void);
extern bool hrflow_shared_is_shared(void);
extern HrflowUsage *hrflow_shared_usage(void);

/* in saved.c */
extern void hrflow_saved_load(HrflowShared *shared);
extern void hrflow_saved_save(HrflowShared *shared);

/* in usage.c */
extern DateADT hrflow_usage_today(void);

#endif							/* HRFLOW_SHARED_H */
