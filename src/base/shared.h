/*-------------------------------------------------------------------------
 *
 * shared.h
 *		Layout of the state that all backends of a server share.  Used by
 *		shared.c, rate.c, allowance.c, stats.c, usage.c, saved.c, activity.c
 *		and a few files of the transport.
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
 * Number of accounts (an account is an API key at an origin) whose rate is
 * limited at the same time.  When all entries are in use, the least recently
 * used one is replaced.  Servers have one account or a few.
 */
#define HRFLOW_NBUCKETS 64

#define HRFLOW_NSTATUSES (HRFLOW_LAST_STATUS + 1)

/*
 * Outcome of a request to the API, as reported to the account.
 */
typedef enum HrflowAccountOutcome
{
	HRFLOW_ANSWERED,
	HRFLOW_LIMITED,				/* 429 */
	HRFLOW_OVERLOADED,			/* 503 with Retry-After */
	HRFLOW_FAILED,				/* 5xx, or no connection */
	HRFLOW_TIMED_OUT,
	HRFLOW_GIVEN_UP				/* abandoned by us */
} HrflowAccountOutcome;

/* Number of slots in the history of an account's requests. */
#define HRFLOW_NSLOTS 160

/*
 * The requests that a server allows an account to send, as learned from its
 * replies; see allowance.c.
 */
typedef struct HrflowAllowance
{
	/* History of the requests that the server has not refused */
	int64		began;			/* start of the first slot */
	int64		width;			/* width of each slot, in microseconds; 0: no
								 * request has been admitted yet */
	uint32		slots[HRFLOW_NSLOTS];	/* requests admitted during each slot */

	/* The limit learned from refusals */
	int64		period;			/* period of the limit, in microseconds; 0:
								 * unknown */
	int64		allowed;		/* requests allowed per period; 0: unknown */
	int64		spare;			/* requests that may be admitted before the
								 * slots must be added up again */
	int64		raised_at;		/* earliest time to raise "allowed" */
	int			raise;			/* exponent of the next raise, by 1/2^raise */
	int64		spread_at;		/* earliest time of the next request, which
								 * spreads the requests of a period over a
								 * part of it */

	/* The limit given by headers of replies */
	bool		is_told;		/* did the last answer have headers about the
								 * limit? */
	int64		left;			/* requests that may be sent until left_until */
	int64		left_until;		/* when at least one more request may be sent */
	uint64		nadmitted;		/* requests admitted so far */

	/* The current pause, or the last one */
	int64		refused_at;		/* start of the pause */
	int64		full_at;		/* when the last request was refused */
	int			nrefused;		/* refused requests, without probes */
	int			nprobes;		/* refused probes */
} HrflowAllowance;

/*
 * Rate limit and pause of one account.  Times are those of hrflow_clock_now().
 */
typedef struct HrflowBucket
{
	uint64		account;		/* hash of key and origin; 0: unused */
	int64		used_at;
	int			limit;			/* requests per minute; 0: no limit */
	int64		limit_used_at;	/* when a backend with this limit last asked */
	int64		next_at;		/* when the next request would be due if
								 * bursts were not allowed */
	bool		paused;			/* no requests but probes, until a probe
								 * succeeds */
	HrflowAccountOutcome cause; /* outcome that started the pause */
	bool		refuses;		/* server requested a pause longer than we
								 * ever wait */
	int			level;			/* number of failed probes during this pause */
	int64		paused_until;
	int64		pause_asked_at; /* when a reply last requested a pause */
	int64		probe_sent_at;	/* when the last probe was sent */
	int64		probe_until;	/* deadline of the outstanding probe, after
								 * which another backend may send one; 0: no
								 * probe is outstanding */
	int			failures;		/* consecutive failures since the last answer */
	int64		answered_at;	/* when the last answer was received */
	HrflowAllowance allowance;
} HrflowBucket;

/* Number of origins whose HTTP version is remembered. */
#define HRFLOW_NORIGINS 256

/* Number of accounts whose requests are counted per day. */
#define HRFLOW_NDAYS HRFLOW_NBUCKETS

/*
 * Number of requests an account has sent today; see budget.c.
 */
typedef struct HrflowDay
{
	pg_atomic_uint64 account;	/* as in HrflowBucket; 0: unused */
	pg_atomic_uint64 sent;		/* the day (a DateADT) in the upper 32 bits,
								 * and the number of requests on that day in
								 * the lower 32 */
} HrflowDay;

/* Maximum number of rows of hrflow_embed_usage. */
#define HRFLOW_NUSAGE 4096

/*
 * Number of requests that a role has sent through a function on one day.
 */
typedef struct HrflowUsageEntry
{
	DateADT		day;			/* UTC */
	Oid			role;
	HrflowCaller caller;
	pg_atomic_uint64 requests[2];	/* [0]: to the API; [1]: for links */
} HrflowUsageEntry;

/*
 * Adding to an existing entry requires the lock in shared mode; creating or
 * replacing an entry requires exclusive mode.
 */
typedef struct HrflowUsage
{
	LWLock		lock;
	int			nentries;
	HrflowUsageEntry entries[HRFLOW_NUSAGE];
} HrflowUsage;

typedef struct HrflowShared
{
	slock_t		mutex;			/* protects "buckets" */
	HrflowBucket buckets[HRFLOW_NBUCKETS];

	pg_atomic_uint64 origins[HRFLOW_NORIGINS];	/* format described in
												 * origin.c */

	/*
	 * Smoothed latency of requests to the API and for links, in microseconds;
	 * 0: no request yet.  See speed.c.
	 */
	pg_atomic_uint64 latency[2];

	pg_atomic_uint64 counters[HRFLOW_NCOUNTERS];
	pg_atomic_uint64 rows[HRFLOW_NSTATUSES];
	pg_atomic_uint64 reset_at;	/* TimestampTz */

	HrflowDay	days[HRFLOW_NDAYS];

	/* The following fields exist only if the state is really shared. */
	HrflowUsage usage;

	/* One entry per backend, MaxBackends in all. */
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
