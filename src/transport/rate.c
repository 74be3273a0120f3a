/*-------------------------------------------------------------------------
 *
 * rate.c
 *		Limits the rate of requests of each account, and pauses accounts.
 *
 * An account is a key at an origin.  Its limit is a token bucket that holds
 * the tokens of one second, but at least one token.  It is represented by the
 * time at which the next request is due (the "generic cell rate algorithm").
 * In any minute at most limit + max(limit / 60, 1) - 1 requests are admitted,
 * and there are no boundaries between minutes at which two bursts could meet.
 *
 * The limit that the server itself imposes is learned from its replies; see
 * allowance.c.
 *
 * A 429, or a 503 with a Retry-After of at most HRFLOW_RETRY_AFTER_LIMIT,
 * pauses the account, until the time that the reply states, if any, but for no
 * longer than that limit.  So do many failures in succession (5xx, or
 * connections that fail or break) soon after other replies, as when a server
 * is restarted.
 *
 * When the pause is over, one request is sent as a probe.  If the probe is
 * refused, too, or is another such failure, the account is paused for longer.
 * If the probe is abandoned, another one is sent.  Any other outcome ends the
 * pause, and so does a probe that takes longer than both the pause and a
 * second.  A probe does not end a pause that the server requested while the
 * probe was in flight: when that pause is over, the next request is a probe
 * again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/shared.h"
#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "transport/transfer.h"

/*
 * Time for which a limit is remembered after its last use.  After this time, a
 * higher limit, or none, may replace it.
 */
#define LIMIT_MEMORY (60 * HRFLOW_SEC)

/* Interval at which to check whether another backend's probe has completed. */
#define PROBE_POLL (20 * HRFLOW_MSEC)

/*
 * Interval at which to check whether a pause has ended early, since backends
 * do not wake each other.
 */
#define PAUSE_POLL HRFLOW_SEC

/*
 * Initial length of a pause, before jitter, if the server does not specify a
 * length and a limit that has been learned does not predict the end.  The
 * first probe is sent after about this time, since a refusal may have causes
 * other than a rate limit.
 */
#define PAUSE_MIN (250 * HRFLOW_MSEC)

/*
 * Maximum length of a pause started by a refusal, if the server does not
 * specify a length and no rate limit predicts the end.  After a refused probe,
 * the next probe is sent when a rate limit with one of the usual periods would
 * admit a request.  If there is no such time, the length of the pause is
 * doubled, up to this maximum.
 */
#define PAUSE_LIMIT (8 * HRFLOW_SEC)

/*
 * Maximum length of a pause started by failures.  A batch notices an outage
 * only when its requests fail, and it sends none during a pause, so this must
 * be shorter than users are willing to wait for the batch to stop.
 */
#define FAILURE_PAUSE_LIMIT (2 * HRFLOW_SEC)

/*
 * Minimum time to wait for the outcome of a probe.  If the pause was longer,
 * we wait for the length of the pause.  If no outcome has been reported by
 * then, the pause ends.
 */
#define PROBE_MIN HRFLOW_SEC

/*
 * Number of failures since HRFLOW_ANSWERED was last reported that pauses an
 * account.  It is large enough that occasional failures do not pause the
 * account.
 */
#define BREAKER_FAILURES 16

/*
 * Failures pause an account only within this time after HRFLOW_ANSWERED was
 * last reported.  The pause is meant to bridge a restart of the server, which
 * usually takes less than a minute.
 */
#define BREAKER_MEMORY (60 * HRFLOW_SEC)

/*
 * Return the account of these settings: a 64-bit hash of the key and the
 * origin of base_url, never 0.  The hash is not cryptographic, but it is too
 * short to determine a randomly generated key.
 */
uint64
hrflow_rate_account(const HrflowSettings *settings)
{
	static uint64 serial = 0;	/* serial of the settings for which "hash" was
								 * computed */
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
 * Find the bucket of an account, or create it in an unused entry or in place
 * of the least recently used bucket.  The caller must hold the mutex.
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
 * Merge this backend's limit into the bucket.  The lowest limit in use applies
 * to all backends, including backends without a limit.
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
 * Return the number of seconds between requests at the highest rate that the
 * account may use after an initial burst of *burst requests, or 0 if no limit
 * is known.  Limits that are known only from the headers of replies are
 * ignored.
 */
double
hrflow_rate_interval(const HrflowSettings *settings, int64 *burst)
{
	HrflowShared *shared = hrflow_shared_get();
	uint64		account = hrflow_rate_account(settings);
	int64		now = hrflow_clock_now();
	HrflowBucket bucket = {0};
	const HrflowAllowance *allowance = &bucket.allowance;
	double		set = 0;
	double		learnt = 0;

	/*
	 * Do not create a bucket, which might replace the bucket of another
	 * account.
	 */
	SpinLockAcquire(&shared->mutex);
	for (int i = 0; i < HRFLOW_NBUCKETS; i++)
	{
		if (shared->buckets[i].account == account)
			bucket = shared->buckets[i];
	}
	SpinLockRelease(&shared->mutex);

	merge_limit(&bucket, settings->max_requests_per_minute, now);
	if (bucket.limit > 0)
		set = 60.0 / bucket.limit;
	if (allowance->allowed > 0)
		learnt = (double) allowance->period / allowance->allowed / HRFLOW_SEC;
	*burst = set >= learnt ? Max(bucket.limit / 60, 1) : allowance->allowed;
	return Max(set, learnt);
}

/*
 * Return the time between requests at the limit, which must not be 0, in
 * microseconds.  It is rounded up, so that as many intervals as the limit are
 * not shorter than a minute.
 */
static int64
interval_of(const HrflowBucket *bucket)
{
	return (60 * HRFLOW_SEC + bucket->limit - 1) / bucket->limit;
}

/*
 * Return the time at which the limit admits the next request, which may be in
 * the past.
 */
static int64
due_at(const HrflowBucket *bucket)
{
	int64		burst = Max(bucket->limit / 60, 1);

	return bucket->limit == 0 ? 0 :
		bucket->next_at - (burst - 1) * interval_of(bucket);
}

/*
 * Count a request towards the limit, if there is one.
 */
static void
charge_limit(HrflowBucket *bucket, int64 now)
{
	if (bucket->limit > 0)
		bucket->next_at = Max(bucket->next_at, now) + interval_of(bucket);
}

/*
 * May this account send a request now?  If so, count it, and set *serial to
 * its number among the account's requests.  If not, set *again to the time at
 * which to ask again, and *paused_until to the end of the pause or to the time
 * at which an exhausted limit of the API admits requests again, or to 0 if
 * neither applies.  If the request is refused, *again is the current time, so
 * that the next request need not wait for its refusal.
 */
HrflowAdmission
hrflow_rate_admit(uint64 account, int limit, uint64 *serial, int64 *again,
				  int64 *paused_until)
{
	HrflowShared *shared = hrflow_shared_get();
	HrflowAdmission admission = HRFLOW_ADMIT;
	HrflowBucket *bucket;
	int64		now = hrflow_clock_now();

	*paused_until = 0;
	SpinLockAcquire(&shared->mutex);
	bucket = find_bucket(shared, account, now);
	merge_limit(bucket, limit, now);

	if (bucket->paused && now >= bucket->paused_until &&
		bucket->probe_until != 0 && now >= bucket->probe_until)
		bucket->paused = false;

	if (bucket->paused)
	{
		if (now < bucket->paused_until)
		{
			*paused_until = bucket->paused_until;
			if (bucket->refuses)
			{
				*again = now;
				admission = HRFLOW_REFUSE;
			}
			else
			{
				*again = Min(bucket->paused_until, now + PAUSE_POLL);
				admission = HRFLOW_WAIT;
			}
		}
		else if (now < bucket->probe_until)
		{
			*again = now + PROBE_POLL;
			admission = HRFLOW_WAIT;
		}
		else
			admission = HRFLOW_ADMIT_PROBE;
	}

	if (admission == HRFLOW_ADMIT || admission == HRFLOW_ADMIT_PROBE)
	{
		*again = due_at(bucket);
		if (now < *again ||
			(admission == HRFLOW_ADMIT &&
			 !hrflow_allowance_admit(&bucket->allowance, now, again,
									 paused_until)))
			admission = HRFLOW_WAIT;
		else
			charge_limit(bucket, now);
	}

	if (admission == HRFLOW_ADMIT_PROBE)
	{
		hrflow_allowance_charge(&bucket->allowance, now);
		bucket->probe_sent_at = now;
		bucket->probe_until = now +
			Max(bucket->paused_until - bucket->pause_asked_at, PROBE_MIN);
	}
	*serial = bucket->allowance.nadmitted;
	SpinLockRelease(&shared->mutex);

	return admission;
}

/*
 * Count a request that libcurl resends by itself.  Does not throw.
 */
void
hrflow_rate_charge(uint64 account)
{
	HrflowShared *shared = hrflow_shared_get();
	HrflowBucket *bucket;
	int64		now = hrflow_clock_now();

	SpinLockAcquire(&shared->mutex);
	bucket = find_bucket(shared, account, now);
	charge_limit(bucket, now);
	hrflow_allowance_charge(&bucket->allowance, now);
	SpinLockRelease(&shared->mutex);
}

/*
 * Undo the counting of a request that was admitted just after "began", but was
 * not sent.  Does not throw.
 */
void
hrflow_rate_give_back(uint64 account, int64 began)
{
	HrflowShared *shared = hrflow_shared_get();
	HrflowBucket *bucket;

	SpinLockAcquire(&shared->mutex);
	bucket = find_bucket(shared, account, hrflow_clock_now());
	if (bucket->limit > 0)
		bucket->next_at -= interval_of(bucket);
	hrflow_allowance_give_back(&bucket->allowance, began);
	SpinLockRelease(&shared->mutex);
}

/*
 * Choose the length of a pause if the server does not specify one.  "random"
 * is in [0, 1).
 */
static int64
choose_pause(const HrflowBucket *bucket, double random, int64 now)
{
	bool		by_rate = bucket->cause == HRFLOW_LIMITED;
	int64		step = PAUSE_MIN << Min(bucket->level, 10);
	int64		probe_at = 0;

	if (by_rate && (bucket->level > 0 || bucket->allowance.allowed > 0))
		probe_at = hrflow_allowance_probe_at(&bucket->allowance,
											 now + PAUSE_MIN / 2);
	if (probe_at != 0)
		return probe_at - now;
	step = Min(step, bucket->cause == HRFLOW_FAILED ? FAILURE_PAUSE_LIMIT :
			   PAUSE_LIMIT);
	return step * (1 + random) / 2;
}

/*
 * Pause an account because of "cause", or extend its pause.  "asked" is the
 * length requested by the server, or 0.  During a pause, a request other than
 * a probe extends it only if the server requested a length.  If the pause is
 * already too long to wait for, the reply to such a request does not change
 * that.  The caller must hold the mutex.
 */
static void
pause_bucket(HrflowBucket *bucket, HrflowAccountOutcome cause, int64 asked,
			 bool was_probe, double random, int64 now)
{
	if (!bucket->paused)
	{
		bucket->paused = true;
		bucket->paused_until = 0;
		bucket->probe_until = 0;
		bucket->level = 0;
		bucket->cause = cause;
		if (cause == HRFLOW_LIMITED)
			hrflow_allowance_begin_pause(&bucket->allowance, now);
	}
	else if (was_probe)
	{
		bucket->probe_until = 0;
		bucket->level++;
		if (cause == HRFLOW_LIMITED && bucket->cause == HRFLOW_LIMITED)
			hrflow_allowance_prolong_pause(&bucket->allowance,
										   bucket->probe_sent_at);
	}
	else if (asked == 0)
		return;

	bucket->refuses = asked > HRFLOW_RETRY_AFTER_LIMIT ||
		(bucket->refuses && now < bucket->paused_until);
	if (asked == 0)
		asked = choose_pause(bucket, random, now);
	bucket->paused_until = Max(bucket->paused_until,
							   now + Min(asked, HRFLOW_RETRY_AFTER_LIMIT));
	bucket->pause_asked_at = now;
}

/*
 * End the pause after a probe whose outcome does not extend it, unless a reply
 * requested a pause after the probe was sent.
 */
static void
end_pause(HrflowBucket *bucket, HrflowAccountOutcome outcome)
{
	bucket->probe_until = 0;
	if (!bucket->paused || bucket->pause_asked_at > bucket->probe_sent_at)
		return;
	bucket->paused = false;
	bucket->paused_until = 0;
	if (outcome == HRFLOW_ANSWERED && bucket->cause == HRFLOW_LIMITED)
		hrflow_allowance_learn(&bucket->allowance, bucket->probe_sent_at);
}

/*
 * Return the length of the pause that the server requests in its reply, in
 * microseconds, or 0.  This is its Retry-After.  If there is none, and its
 * rate limit headers say that no request is left, a refusal requests a pause
 * until the reset, unless that is later than we are willing to believe.
 */
static int64
requested_pause(const HrflowTransfer *transfer, HrflowAccountOutcome outcome)
{
	const HrflowAttempt *attempt = &transfer->attempt;
	int64		reset = attempt->reset * HRFLOW_SEC;

	if (outcome == HRFLOW_LIMITED && transfer->reply.retry_after == 0 &&
		attempt->nleft == 0 && reset <= HRFLOW_RETRY_AFTER_LIMIT)
		return reset;
	return transfer->reply.retry_after * HRFLOW_SEC;
}

/*
 * Report the outcome of a request.
 *
 * If this outcome is a reason to pause the account, return the remaining
 * length of the pause or, after a refusal, a longer Retry-After, in
 * microseconds; else 0.  Sets *counts to whether the attempt counts towards
 * max_attempts.  A refusal does not count if the account was already paused,
 * unless the attempt was a probe.  A failure does not count if it is a reason
 * to pause the account.  Does not throw.
 */
int64
hrflow_rate_report(const HrflowTransfer *transfer,
				   HrflowAccountOutcome outcome, bool was_probe, bool *counts)
{
	HrflowShared *shared = hrflow_shared_get();
	HrflowBucket *bucket;
	const HrflowAttempt *attempt = &transfer->attempt;
	int64		asked = requested_pause(transfer, outcome);
	double		random = pg_prng_double(&pg_global_prng_state);
	int64		now = hrflow_clock_now();
	int64		length = 0;

	*counts = true;
	SpinLockAcquire(&shared->mutex);
	bucket = find_bucket(shared, transfer->transport->account, now);
	if (outcome == HRFLOW_ANSWERED || attempt->nleft >= 0)
		hrflow_allowance_note_left(&bucket->allowance, attempt->nleft, attempt->reset,
								   attempt->serial, now);
	switch (outcome)
	{
		case HRFLOW_ANSWERED:
			bucket->failures = 0;
			bucket->answered_at = now;
			if (was_probe)
				end_pause(bucket, outcome);
			break;

		case HRFLOW_LIMITED:
		case HRFLOW_OVERLOADED:
			if (outcome == HRFLOW_LIMITED)
				hrflow_allowance_note_refusal(&bucket->allowance, attempt->began,
											  was_probe);
			*counts = was_probe || !bucket->paused;
			pause_bucket(bucket, outcome, asked, was_probe, random, now);
			length = Max(asked, Max(bucket->paused_until - now, 1));
			break;

		case HRFLOW_FAILED:
			if (bucket->answered_at != 0 &&
				now - bucket->answered_at < BREAKER_MEMORY &&
				++bucket->failures >= BREAKER_FAILURES)
			{
				*counts = false;
				pause_bucket(bucket, HRFLOW_FAILED, 0, was_probe, random, now);
				length = Max(bucket->paused_until - now, 1);
			}
			else if (was_probe)
				end_pause(bucket, outcome);
			break;

		case HRFLOW_TIMED_OUT:
			if (was_probe)
				end_pause(bucket, outcome);
			break;

		case HRFLOW_GIVEN_UP:
			if (was_probe)
				bucket->probe_until = 0;
			break;
	}

	/*
	 * An attempt that was not sent remains counted at "began", because
	 * hrflow_rate_give_back() will undo that.
	 */
	if (outcome != HRFLOW_LIMITED && outcome != HRFLOW_GIVEN_UP &&
		attempt->nsent > 0)
		hrflow_allowance_note_answer(&bucket->allowance, attempt->began, now);
	SpinLockRelease(&shared->mutex);

	return length;
}
