/*-------------------------------------------------------------------------
 *
 * shared.h
 *		Layout of the state that all backends of a server share, or that each
 *		backend has for itself: see shared.c.
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
 * Maximum number of accounts whose rate limits and pauses are kept.  An
 * account is an API key at an origin; most servers use only a few.  When all
 * entries are in use, the least recently used one is replaced.
 */
#define HRFLOW_NBUCKETS 64

#define HRFLOW_NSTATUSES (HRFLOW_LAST_STATUS + 1)

/*
 * The kinds of servers to which requests are sent.
 */
typedef enum HrflowServer
{
	HRFLOW_SERVER_API,
	HRFLOW_SERVER_LINKS			/* the hosts of links */
} HrflowServer;

#define HRFLOW_NSERVERS (HRFLOW_SERVER_LINKS + 1)

/*
 * Outcome of a request to the API, as passed to hrflow_rate_report().
 */
typedef enum HrflowAccountOutcome
{
	HRFLOW_ANSWERED,			/* none of the outcomes below */
	HRFLOW_LIMITED,				/* HTTP 429, or a code 429 in the body */
	HRFLOW_OVERLOADED,			/* HTTP 503 with a Retry-After of at most
								 * HRFLOW_RETRY_AFTER_LIMIT */
	HRFLOW_FAILED,				/* any other HTTP 5xx, or the connection
								 * failed or broke in a way that is not
								 * HRFLOW_TIMED_OUT */
	HRFLOW_TIMED_OUT,			/* HTTP 408, a timeout, or a connection
								 * failure that a retry would repeat or that a
								 * connect_timeout shorter than the default
								 * has caused */
	HRFLOW_GIVEN_UP				/* abandoned or not started by us, or refused
								 * by the proxy; the API's outcome is unknown */
} HrflowAccountOutcome;

/*
 * Number of slots in the history of an account's requests.  At their maximum
 * width (half a second), the slots span 80 seconds, which is more than the
 * longest period of a limit (60 seconds).
 */
#define HRFLOW_NSLOTS 160

/*
 * The requests that a server allows an account to send, as learned from its
 * replies; see allowance.c.
 */
typedef struct HrflowAllowance
{
	/* Counts of the requests that the server has not refused, by time */
	int64		began;			/* start of the first slot */
	int64		width;			/* width of each slot, in microseconds, or 0
								 * if no request has been admitted yet */
	uint32		slots[HRFLOW_NSLOTS];	/* number of requests per slot; see
										 * hrflow_allowance_note_answer() */

	/* The limit learned from refusals */
	int64		period;			/* period of the limit, in microseconds, or 0
								 * if unknown */
	int64		allowed;		/* requests allowed per period, or 0 if
								 * unknown */
	int64		spare;			/* requests that may be admitted before the
								 * slots must be added up again */
	int64		raised_at;		/* earliest time to raise "allowed" */
	int			raise;			/* the next raise adds "allowed"/2^raise */
	int64		spread_at;		/* earliest time of the next request; see
								 * SPREAD_PART in allowance.c */

	/*
	 * The limit stated by the headers of the last reply.  Refusals and failed
	 * requests without such headers do not change it.
	 */
	bool		is_told;		/* did the last reply have valid headers about
								 * the limit? */
	int64		left;			/* number of requests that may be sent until
								 * left_until */
	int64		left_until;		/* time at which at least one more request may
								 * be sent */
	uint64		nadmitted;		/* number of requests admitted so far, except
								 * those that turned out not to be sent */

	/* The current or last pause */
	int64		refused_at;		/* start of the pause */
	int64		full_at;		/* last time at which the server is known to
								 * have refused requests */
	int			nrefused;		/* number of refused requests, not counting
								 * probes */
	int			nprobes;		/* number of refused probes */
} HrflowAllowance;

/*
 * Rate limit and pause of one account.  Times are those of hrflow_clock_now().
 */
typedef struct HrflowBucket
{
	uint64		account;		/* hash of key and origin, or 0 if this entry
								 * is unused */
	int64		used_at;
	int			limit;			/* requests per minute, or 0 for no limit */
	int64		limit_used_at;	/* when a backend with this limit last asked
								 * to send a request */
	int64		next_at;		/* when the next request would be due if
								 * bursts were not allowed */
	bool		paused;			/* is the account paused?  If so, only probes
								 * are admitted */
	HrflowAccountOutcome cause; /* outcome that started the pause */
	bool		refuses;		/* did the server request a pause longer than
								 * HRFLOW_RETRY_AFTER_LIMIT?  Such a pause
								 * lasts until paused_until */
	int			level;			/* number of probes that have extended this
								 * pause */
	int64		paused_until;
	int64		pause_asked_at; /* when the pause was last started or extended */
	int64		probe_sent_at;	/* when the last probe was sent */
	int64		probe_until;	/* deadline of the outstanding probe, after
								 * which the pause ends unless the server has
								 * requested a longer one; 0 if no probe is
								 * outstanding */
	int			failures;		/* number of failures within BREAKER_MEMORY
								 * after HRFLOW_ANSWERED was last reported */
	int64		answered_at;	/* when HRFLOW_ANSWERED was last reported */
	HrflowAllowance allowance;
} HrflowBucket;

/*
 * Maximum number of origins whose HTTP version is remembered.  Each takes only
 * 8 bytes.
 */
#define HRFLOW_NORIGINS 256

/* Maximum number of accounts whose requests are counted per day. */
#define HRFLOW_NDAYS HRFLOW_NBUCKETS

/*
 * Number of requests that an account has sent on one day; see budget.c.
 */
typedef struct HrflowDay
{
	pg_atomic_uint64 account;	/* hash of key and origin, as in HrflowBucket,
								 * or 0 if this entry is unused */
	pg_atomic_uint64 sent;		/* the day (a DateADT) in the upper 32 bits,
								 * and the number of requests on that day in
								 * the lower 32 */
} HrflowDay;

/* Maximum number of rows of hrflow_embed_usage.  They take 128 kB. */
#define HRFLOW_NUSAGE 4096

/*
 * Number of requests that a role has sent through a function on one day.
 */
typedef struct HrflowUsageEntry
{
	DateADT		day;			/* UTC */
	Oid			role;
	HrflowCaller caller;
	pg_atomic_uint64 requests[2];	/* requests to the API in element 0, and
									 * requests for links in element 1 */
} HrflowUsageEntry;

/*
 * Numbers of requests by role, function and day.  To add to an existing entry,
 * hold the lock in shared mode; to create or replace an entry, hold the lock
 * in exclusive mode.
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

	pg_atomic_uint64 origins[HRFLOW_NORIGINS];	/* HTTP versions; see origin.c
												 * for the format */

	/*
	 * Moving average of the latency of requests to each kind of server, in
	 * microseconds, or 0 if no request has succeeded yet.  See speed.c.
	 */
	pg_atomic_uint64 latency[HRFLOW_NSERVERS];

	pg_atomic_uint64 counters[HRFLOW_NCOUNTERS];
	pg_atomic_uint64 rows[HRFLOW_NSTATUSES];
	pg_atomic_uint64 reset_at;	/* TimestampTz */

	HrflowDay	days[HRFLOW_NDAYS];

	/* The following fields are used only if all backends share the state. */
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
