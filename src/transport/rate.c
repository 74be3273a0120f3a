/*-------------------------------------------------------------------------
 *
 * rate.c
 *		How many requests an account may send, and when it must pause.
 *
 * An account is a key at an origin.  Its limit is a token bucket that holds
 * one second's tokens, kept as the time the next request is due (the "generic
 * cell rate algorithm"): in any minute at most limit + limit / 60 requests go
 * out, and there is no minute's edge at which two bursts could meet.
 *
 * A 429 pauses the account.  When the pause is over one request goes out as a
 * probe; when it gets through the account goes on, when it does not the pause
 * begins anew.  A pause that was asked for while the probe was out is not the
 * probe's to end: another goes out when that is over.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "transport/transfer.h"
#include "base/shared.h"

/*
 * A limit that nobody has used for this long gives way to a higher one.
 */
#define LIMIT_MEMORY (60 * HRFLOW_SEC)

/* How often to look whether another backend's probe has come back. */
#define PROBE_POLL (20 * HRFLOW_MSEC)

/*
 * How often to look whether a pause is over before its time: nobody wakes who
 * waits.
 */
#define PAUSE_POLL HRFLOW_SEC

/*
 * The account that these settings use, the key and the origin of base_url:
 * never 0.  Nothing tells the key from it.
 */
uint64
hrflow_rate_account(const HrflowSettings *settings)
{
	static uint64 serial = 0;	/* of the settings that had "hash" last */
	static uint64 hash;
	HrflowUrl	url;
	char	   *origin;

	if (serial == settings->serial)
		return hash;
	hash = hash_bytes_extended((const unsigned char *) settings->api_key,
							   strlen(settings->api_key), 0);
	if (hrflow_url_parse(settings->base_url, &url) != NULL)
		elog(ERROR, "base_url has not been checked");
	origin = psprintf("%d %.*s", url.port, url.host_length, url.host);
	for (char *p = origin; *p; p++)
		*p = pg_ascii_tolower(*p);
	hash = hash_bytes_extended((unsigned char *) origin, strlen(origin), hash);
	pfree(origin);
	hash = Max(hash, 1);
	serial = settings->serial;
	return hash;
}

/*
 * The account's bucket, made if need be.  The caller holds the mutex.
 */
static HrflowBucket *
find_bucket(HrflowShared *shared, uint64 account, int64 now)
{
	HrflowBucket *oldest = &shared->buckets[0];

	for (int i = 0; i < HRFLOW_NBUCKETS; i++)
	{
		HrflowBucket *bucket = &shared->buckets[i];

		if (bucket->account == account)
		{
			bucket->used_at = now;
			return bucket;
		}
		if (bucket->used_at < oldest->used_at)
			oldest = bucket;
	}
	memset(oldest, 0, sizeof(*oldest));
	oldest->account = account;
	oldest->used_at = now;
	return oldest;
}

/*
 * Of the limits in use the lowest holds for all, for those without one too.
 */
static void
merge_limit(HrflowBucket *bucket, int limit, int64 now)
{
	bool		forgotten = now - bucket->limit_used_at > LIMIT_MEMORY;

	if (bucket->limit == 0 || forgotten || (limit != 0 && limit <= bucket->limit))
	{
		bucket->limit = limit;
		bucket->limit_used_at = now;
	}
}

/*
 * May this account send a request now?  If so it is counted.  If not, *again
 * is when to ask next.  "probe_time" is how long a probe may take.
 */
HrflowAdmission
hrflow_rate_admit(uint64 account, int limit, int64 probe_time, int64 *again)
{
	HrflowShared *shared = hrflow_shared_get();
	HrflowAdmission admission = HRFLOW_ADMIT;
	HrflowBucket *bucket;
	int64		now = hrflow_clock_now();

	SpinLockAcquire(&shared->mutex);
	bucket = find_bucket(shared, account, now);
	merge_limit(bucket, limit, now);

	if (bucket->paused)
	{
		if (now < bucket->paused_until)
		{
			*again = Min(bucket->paused_until, now + PAUSE_POLL);
			admission = HRFLOW_WAIT;
		}
		else if (now < bucket->probe_until)
		{
			*again = now + PROBE_POLL;
			admission = HRFLOW_WAIT;
		}
		else
			admission = HRFLOW_ADMIT_PROBE;
	}

	if (admission != HRFLOW_WAIT && bucket->limit > 0)
	{
		int64		interval = 60 * HRFLOW_SEC / bucket->limit;
		int64		burst = Max(bucket->limit / 60, 1);
		int64		due = bucket->next_at - (burst - 1) * interval;

		if (now < due)
		{
			*again = due;
			admission = HRFLOW_WAIT;
		}
		else
			bucket->next_at = Max(bucket->next_at, now) + interval;
	}

	if (admission == HRFLOW_ADMIT_PROBE)
	{
		bucket->probe_sent_at = now;
		bucket->probe_until = now + probe_time;
	}
	SpinLockRelease(&shared->mutex);

	return admission;
}

/*
 * The account met a 429: nobody sends before "delay" is over.  Returns whether
 * it was paused already.
 */
bool
hrflow_rate_pause(uint64 account, int64 delay, bool was_probe)
{
	HrflowShared *shared = hrflow_shared_get();
	HrflowBucket *bucket;
	int64		now = hrflow_clock_now();
	bool		was_paused;

	SpinLockAcquire(&shared->mutex);
	bucket = find_bucket(shared, account, now);
	was_paused = bucket->paused;
	bucket->paused = true;
	bucket->paused_until = Max(bucket->paused_until, now + delay);
	bucket->pause_asked_at = now;
	if (was_probe)
		bucket->probe_until = 0;
	SpinLockRelease(&shared->mutex);

	return was_paused;
}

/*
 * The probe got through, or ("passed" is false) was given up: another may go.
 * What was asked for since it was sent it knows nothing of.
 */
void
hrflow_rate_end_probe(uint64 account, bool passed)
{
	HrflowShared *shared = hrflow_shared_get();
	HrflowBucket *bucket;

	SpinLockAcquire(&shared->mutex);
	bucket = find_bucket(shared, account, hrflow_clock_now());
	bucket->probe_until = 0;
	if (passed && bucket->pause_asked_at <= bucket->probe_sent_at)
	{
		bucket->paused = false;
		bucket->paused_until = 0;
	}
	SpinLockRelease(&shared->mutex);
}
