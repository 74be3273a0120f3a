/*
 * fuzz_account.c
 *		Fuzzer for the rate limits and pauses of accounts: whatever the headers
 *		of replies say, and whenever they arrive, no limit may be exceeded, no
 *		pause may be too long, and requests must be admitted again in the end.
 *
 * The input consists of two bytes of options, and events of six bytes each.
 * Time passes only as the events say.
 */
#include "postgres.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend.h"
#include "base/shared.h"
#include "common/pg_prng.h"
#include "transport/transfer.h"

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Number of accounts.  There are fewer buckets. */
#define MOST_ACCOUNTS 102

/* Maximum number of events of an input, and of requests in flight. */
#define MOST_EVENTS 400
#define MOST_IN_FLIGHT 48

/* Longest period that is learned, with its margin and a slot. */
#define LONGEST_PERIOD (61 * HRFLOW_SEC)

/* What has been admitted to an account, to compare with its limits. */
typedef struct Account
{
	int			limit;			/* requests per minute, or 0 */
	int64		admitted[MOST_EVENTS];	/* when each request was admitted */
	int			nadmitted;
	int64		kept[MOST_EVENTS];	/* when each request that was neither refused
									 * nor given back was admitted */
	int			nkept;
	int			nlate;			/* number of requests that were refused or
								 * given back after more than a second */
	int			ncharged;		/* number of requests sent again by libcurl */
	int			ngiven_back;
	int64		left;			/* requests left according to the last reply,
								 * or -1 if it did not say so */
	int64		left_until;		/* when one more may be sent */
	int64		refused_until;	/* end of a pause that is too long to wait for */
} Account;

static HrflowShared *shared;
static int64 clock_now;
static Account accounts[2];

/*
 * ------------------------------------------------------------------------
 * Replacements for other files
 * ------------------------------------------------------------------------
 */

HrflowShared *
hrflow_shared_get(void)
{
	return shared;
}

int64
hrflow_clock_now(void)
{
	return clock_now;
}

int
s_lock(volatile slock_t *lock, const char *file, int line, const char *func)
{
	abort();					/* the mutex has not been released */
}

/*
 * ------------------------------------------------------------------------
 * Invariants
 * ------------------------------------------------------------------------
 */

/*
 * Make settings with the key of an account.
 */
static HrflowSettings
settings_of(int account)
{
	static char keys[MOST_ACCOUNTS][4];
	HrflowSettings settings = {.base_url = "https://api.hrflow.ai/v1"};

	snprintf(keys[account], sizeof(keys[account]), "%d", account);
	settings.serial = account + 1;
	settings.api_key = keys[account];
	return settings;
}

/*
 * Return the hash of an account.
 */
static uint64
hash_of(int account)
{
	static uint64 hashes[MOST_ACCOUNTS];
	HrflowSettings settings;

	if (hashes[account] == 0)
	{
		settings = settings_of(account);
		hashes[account] = hrflow_rate_account(&settings);
	}
	return hashes[account];
}

static HrflowBucket *
bucket_of(int account)
{
	for (int i = 0; i < HRFLOW_NBUCKETS; i++)
	{
		if (shared->buckets[i].account == hash_of(account))
			return &shared->buckets[i];
	}
	return NULL;
}

/*
 * Check the state of an account.
 */
static void
check_bucket(int account)
{
	const HrflowBucket *bucket = bucket_of(account);
	const HrflowAllowance *allowance;
	uint64		sum = 0;

	if (bucket == NULL)
		return;
	allowance = &bucket->allowance;
	if (bucket->paused && bucket->paused_until > clock_now + HRFLOW_RETRY_AFTER_LIMIT)
		abort();
	if (bucket->probe_until > clock_now + HRFLOW_RETRY_AFTER_LIMIT)
		abort();
	if (allowance->allowed < 0 || allowance->period < 0 || allowance->width < 0 ||
		allowance->period > LONGEST_PERIOD || allowance->nadmitted > 2 * MOST_EVENTS)
		abort();
	for (int i = 0; i < HRFLOW_NSLOTS; i++)
		sum += allowance->slots[i];
	if (sum > accounts[account].nkept + accounts[account].ncharged ||
		allowance->allowed > 2 * MOST_EVENTS)
		abort();
	if (allowance->is_told &&
		allowance->left_until > clock_now + HRFLOW_RETRY_AFTER_LIMIT)
		abort();
}

/*
 * Check the rate at which an account may send requests.
 */
static void
check_interval(int account)
{
	HrflowSettings settings = settings_of(account);
	int64		burst = -1;
	double		interval;

	settings.max_requests_per_minute = accounts[account].limit;
	interval = hrflow_rate_interval(&settings, &burst);
	if (!isfinite(interval) || interval < 0 || burst < 0 ||
		interval * HRFLOW_SEC > LONGEST_PERIOD ||
		(accounts[account].limit > 0 && interval < 60.0 / accounts[account].limit))
		abort();
}

/*
 * Return how many of n times are in the last period of this length.
 */
static int
count_since(const int64 *times, int n, int64 period)
{
	int			nlast = 0;

	for (int i = 0; i < n; i++)
		nlast += times[i] > clock_now - period;
	return nlast;
}

/*
 * Remove a request that was admitted at "began" from those kept.
 */
static void
take_out_kept(Account *account, int64 began)
{
	for (int i = 0; i < account->nkept; i++)
	{
		if (account->kept[i] == began)
		{
			account->kept[i] = account->kept[--account->nkept];
			account->nlate += clock_now - began > HRFLOW_SEC;
			return;
		}
	}
	abort();
}

/*
 * Check that a request may be admitted to an account now, and record it.
 */
static void
note_admitted(Account *account, const HrflowAllowance *allowance, bool is_probe)
{
	bool		is_learned = allowance->allowed > 0;

	account->admitted[account->nadmitted++] = clock_now;
	account->kept[account->nkept++] = clock_now;
	if (account->limit > 0 &&
		count_since(account->admitted, account->nadmitted, 60 * HRFLOW_SEC) >
		account->limit + Max(account->limit / 60, 1) - 1 + account->ngiven_back)
		abort();

	/*
	 * A request that is taken out of the history after a long time may no
	 * longer be in it, so that another one is taken out.
	 */
	if (is_learned && !is_probe &&
		count_since(account->kept, account->nkept, allowance->period) >
		allowance->allowed + account->nlate)
		abort();

	/*
	 * The headers of replies limit neither probes nor, once a limit has been
	 * learned from refusals, other requests.
	 */
	if (account->left >= 0 && !is_probe && !is_learned && clock_now < account->left_until)
	{
		if (account->left == 0)
			abort();
		account->left--;
	}
}

/*
 * Ask an account to admit a request.
 */
static HrflowAdmission
admit(int account, int limit, uint64 *serial, int64 *again)
{
	int64		paused_until = -1;
	HrflowAdmission admission;

	*again = -1;
	admission = hrflow_rate_admit(hash_of(account), limit, serial, again, &paused_until);
	switch (admission)
	{
		case HRFLOW_ADMIT:
		case HRFLOW_ADMIT_PROBE:
			if (account < lengthof(accounts))
				note_admitted(&accounts[account], &bucket_of(account)->allowance,
							  admission == HRFLOW_ADMIT_PROBE);
			break;
		case HRFLOW_WAIT:
			/* A backend that waits must not be busy. */
			if (*again <= clock_now)
				abort();
			break;
		case HRFLOW_REFUSE:
			if (*again != clock_now || paused_until <= clock_now ||
				(account < lengthof(accounts) &&
				 clock_now >= accounts[account].refused_until))
				abort();
			break;
	}
	if (paused_until != 0 && (paused_until <= clock_now ||
							  paused_until > clock_now + HRFLOW_RETRY_AFTER_LIMIT + LONGEST_PERIOD))
		abort();
	return admission;
}

/*
 * ------------------------------------------------------------------------
 * Events
 * ------------------------------------------------------------------------
 */

static HrflowTransport transport;
static HrflowTransfer transfers[MOST_IN_FLIGHT];
static int	nin_flight;

/*
 * Start a request if it is admitted, after up to this many waits.
 */
static void
start(int account, int limit, int nwaits)
{
	HrflowTransfer *transfer;
	uint64		serial;
	int64		again;
	HrflowAdmission admission;

	if (nin_flight == MOST_IN_FLIGHT)
		return;
	while ((admission = admit(account, limit, &serial, &again)) == HRFLOW_WAIT &&
		   nwaits-- > 0)
		clock_now = again;
	if (admission != HRFLOW_ADMIT && admission != HRFLOW_ADMIT_PROBE)
		return;
	transfer = &transfers[nin_flight++];
	memset(transfer, 0, sizeof(*transfer));
	transfer->transport = &transport;
	transfer->attempt.began = clock_now;
	transfer->attempt.serial = serial;
	transfer->attempt.is_probe = admission == HRFLOW_ADMIT_PROBE;
	transfer->attempt.nsent = 1;
	transfer->attempt.nleft = -1;
	transfer->reply.tag = (void *) (intptr_t) account;
}

/*
 * Report the outcome of a request with these headers.
 */
static void
finish(int i, HrflowAccountOutcome outcome, int retry_after, int64 nleft, int64 reset)
{
	HrflowTransfer *transfer = &transfers[i];
	int			account = (intptr_t) transfer->reply.tag;
	int64		asked;
	bool		counts;
	int64		length;

	/* With another Retry-After, a 503 would be HRFLOW_FAILED. */
	if (outcome == HRFLOW_OVERLOADED)
		retry_after = 1 + retry_after % 300;
	asked = retry_after * HRFLOW_SEC;
	transport.account = hash_of(account);
	transfer->reply.retry_after = retry_after;
	transfer->attempt.nleft = nleft;
	transfer->attempt.reset = reset;
	length = hrflow_rate_report(transfer, outcome, transfer->attempt.is_probe, &counts);
	if (length < 0 ||
		length > Max(asked, HRFLOW_RETRY_AFTER_LIMIT) ||
		((outcome == HRFLOW_LIMITED || outcome == HRFLOW_OVERLOADED) &&
		 length < Max(asked, 1)) ||
		((outcome == HRFLOW_ANSWERED || outcome == HRFLOW_TIMED_OUT ||
		  outcome == HRFLOW_GIVEN_UP) && (length != 0 || !counts)))
		abort();
	if (account < lengthof(accounts) &&
		((outcome == HRFLOW_LIMITED && asked > HRFLOW_RETRY_AFTER_LIMIT) ||
		 clock_now < accounts[account].refused_until))
		accounts[account].refused_until = bucket_of(account)->paused_until;
	if (account < lengthof(accounts) && outcome == HRFLOW_LIMITED)
		take_out_kept(&accounts[account], transfer->attempt.began);
	if (account < lengthof(accounts) && (outcome == HRFLOW_ANSWERED || nleft >= 0))
	{
		Account    *entry = &accounts[account];

		entry->left = nleft < 0 || reset > 300 ? -1 : nleft;
		entry->left_until = clock_now + reset * HRFLOW_SEC;
	}
	transfers[i] = transfers[--nin_flight];
}

/*
 * Take back a request that was not sent.
 */
static void
give_back(int i)
{
	int			account = (intptr_t) transfers[i].reply.tag;
	bool		counts;

	transport.account = hash_of(account);
	if (transfers[i].attempt.is_probe)
		(void) hrflow_rate_report(&transfers[i], HRFLOW_GIVEN_UP, true, &counts);
	hrflow_rate_give_back(hash_of(account), transfers[i].attempt.began);
	if (account < lengthof(accounts))
	{
		accounts[account].ngiven_back++;
		take_out_kept(&accounts[account], transfers[i].attempt.began);
		if (accounts[account].left >= 0)
			accounts[account].left++;
	}
	transfers[i] = transfers[--nin_flight];
}

/*
 * Once no replies arrive any more, an account must admit a request in the end,
 * even if the outcome of a probe is never reported.
 */
static void
check_liveness(int account, int limit)
{
	int64		began = clock_now;
	/* A pause, a probe, and a limit of one request per minute */
	int64		most = 2 * HRFLOW_RETRY_AFTER_LIMIT + LONGEST_PERIOD +
	(accounts[account].ncharged + 2) * 60 * HRFLOW_SEC;
	HrflowAdmission admission;
	uint64		serial;

	do
	{
		int64		again = 0;
		int64		until = 0;

		if (clock_now - began > most)
			abort();
		admission = hrflow_rate_admit(hash_of(account), limit, &serial, &again, &until);
		if (admission == HRFLOW_WAIT && again <= clock_now)
			abort();
		if (admission == HRFLOW_WAIT || admission == HRFLOW_REFUSE)
			clock_now = Max(Max(again, until), clock_now + HRFLOW_SEC);
	} while (admission == HRFLOW_WAIT || admission == HRFLOW_REFUSE);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const int limits[] = {0, 1, 7, 59, 60, 100, 119, 600, 7000, 60000, 999999, 1000000};
	static const int64 numbers[] = {
		0, 1, 2, 5, 17, 60, 299, 300, 301, 3600, 1000000000,
		PG_INT32_MAX, INT64CONST(21474836479)
	};
	bool		has_many;

	if (size < 2)
		return 0;
	if (shared == NULL)
		shared = calloc(1, sizeof(HrflowShared));
	memset(shared, 0, offsetof(HrflowShared, origins));
	memset(accounts, 0, sizeof(accounts));
	for (int i = 0; i < lengthof(accounts); i++)
	{
		accounts[i].limit = limits[data[0] / (i == 0 ? 1 : 12) % 12];
		accounts[i].left = -1;
	}
	has_many = data[1] % 8 == 7;
	pg_prng_seed(&pg_global_prng_state, data[1]);
	clock_now = 100000 * HRFLOW_SEC;
	nin_flight = 0;
	data += 2;
	size -= 2;

	for (int n = 0; n < MOST_EVENTS && size >= 6; n++, data += 6, size -= 6)
	{
		int			account = has_many ? 2 + data[1] % 100 : data[1] % 2;
		int			limit = has_many ? limits[data[2] % 12] : accounts[account].limit;
		int			i = nin_flight == 0 ? 0 : data[1] % nin_flight;
		int64		nleft = data[4] % 16 < lengthof(numbers) ? numbers[data[4] % 16] : -1;

		switch (data[0] % 8)
		{
			case 0:
			case 1:
			case 2:
				start(account, limit, data[0] % 8 == 0 ? 0 : 1 + data[3] % 8);
				break;
			case 3:
			case 4:
				if (nin_flight > 0)
					finish(i, data[2] % (HRFLOW_GIVEN_UP + 1),
						   Min(numbers[data[3] % lengthof(numbers)], PG_INT32_MAX),
						   nleft, numbers[data[5] % lengthof(numbers)]);
				break;
			case 5:
				if (nin_flight > 0)
					give_back(i);
				break;
			case 6:
				hrflow_rate_charge(hash_of(account));
				if (!has_many)
					accounts[account].ncharged++;
				break;
			case 7:
				/* Up to 36 s, on a logarithmic scale, or many days */
				clock_now += data[1] == 255 ? 1000000 * HRFLOW_SEC :
					((int64) 1 << data[1] % 26) + data[2];
				break;
		}
		if (shared->mutex != 0)
			abort();
		for (int j = 0; j < lengthof(accounts); j++)
			check_bucket(j);
	}
	for (int i = 0; i < lengthof(accounts); i++)
	{
		check_interval(i);
		check_liveness(i, accounts[i].limit);
	}
	backend_reset();
	return 0;
}
