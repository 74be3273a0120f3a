/*-------------------------------------------------------------------------
 *
 * origin.c
 *		Remembers the HTTP version that each origin uses over TLS.
 *
 * With HTTP/2, requests share a connection, so it is worthwhile for a request
 * to wait for a connection that is being established.  With HTTP/1.1 it is
 * not, and libcurl 8.14 would make all other requests wait until the first
 * reply is complete (066_wire.pl).  Therefore, if the version is unknown,
 * requests wait only until the first request has been sent: see
 * release_waiting().
 *
 * If requests to an origin are lost over HTTP/2, but answered over HTTP/1.1,
 * we use HTTP/1.1.  The connections may have been lost for another reason,
 * such as a restart, so one request offers HTTP/2 again after FIRST_INTERVAL,
 * if the origin used HTTP/2 before, or else RETRY_INTERVAL, and then after
 * each RETRY_INTERVAL.
 *
 * Backends share this information if shared memory is available: see shared.c.
 * Each entry is a single atomic number that combines 30 bits of the hash of
 * the origin, the time at which HTTP/2 may be offered again, and two bits for
 * the version.  Nothing here throws once hrflow_shared_get() has succeeded.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "transport/transfer.h"

/*
 * Interval at which to offer HTTP/2 to an origin with which only HTTP/1.1 is
 * used because requests over HTTP/2 were lost, in seconds.
 */
#define RETRY_INTERVAL 600

/*
 * Time after which to offer HTTP/2 for the first time to such an origin if it
 * has used HTTP/2 before, in seconds.  The origin has probably been restarted,
 * which takes about this long.
 */
#define FIRST_INTERVAL 10

/* Bits of an entry, above those for the version. */
#define TIME_SHIFT 2
#define HASH_SHIFT 34

/*
 * Return the length of the scheme, host and port of a URL.
 */
static size_t
length_of_origin(const char *url)
{
	return strlen("https://") + strcspn(url + strlen("https://"), "/?#");
}

/*
 * Do two URLs have the same origin, in the same spelling?
 */
bool
hrflow_origin_is_same(const char *a, const char *b)
{
	size_t		length = length_of_origin(a);

	return length == length_of_origin(b) && strncmp(a, b, length) == 0;
}

/*
 * Return the hash of a URL's scheme, host and port, never 0.
 */
uint64
hrflow_origin_hash(const char *url)
{
	return Max(hash_bytes_extended((const unsigned char *) url,
								   length_of_origin(url), 0), 1);
}

/*
 * Find the entry of an origin, and compute its hash.
 */
static pg_atomic_uint64 *
find_origin(const char *url, uint64 *hash)
{
	*hash = hrflow_origin_hash(url);
	return &hrflow_shared_get()->origins[*hash % HRFLOW_NORIGINS];
}

/*
 * Return an entry.  "again" is the time at which HTTP/2 may be offered
 * again, in seconds of hrflow_clock_now(), or 0 if there is no such time.
 */
static uint64
pack_entry(uint64 hash, HrflowProtocol protocol, uint32 again)
{
	return hash >> HASH_SHIFT << HASH_SHIFT |
		(uint64) again << TIME_SHIFT | protocol;
}

/*
 * Return the HTTP version in an entry, if the entry is of the origin with this
 * hash.
 */
static HrflowProtocol
protocol_of(uint64 entry, uint64 hash)
{
	return entry >> HASH_SHIFT == hash >> HASH_SHIFT ? entry & 3 :
		HRFLOW_PROTOCOL_UNKNOWN;
}

static uint32
offer_at(uint64 entry)
{
	return (uint32) (entry >> TIME_SHIFT);
}

static uint32
seconds_now(void)
{
	return hrflow_clock_now() / HRFLOW_SEC;
}

/*
 * Return the HTTP version of an https URL's origin.
 */
HrflowProtocol
hrflow_origin_protocol(const char *url)
{
	uint64		hash;
	uint64		entry = pg_atomic_read_u64(find_origin(url, &hash));

	return protocol_of(entry, hash);
}

/*
 * Choose the HTTP version for a request that could use HTTP/2.  Usually this
 * is the version of its origin.  When it is time to offer HTTP/2 again, a
 * single request of all backends gets HRFLOW_HTTP_1_1, so that it offers
 * HTTP/2 without waiting for another request's connection.  "may_fail" tells
 * whether the request would be retried after a failure; a request that would
 * not be retried offers HTTP/2 only RETRY_INTERVAL later.
 */
HrflowProtocol
hrflow_origin_choose(const char *url, bool may_fail)
{
	uint64		hash;
	pg_atomic_uint64 *entry = find_origin(url, &hash);
	uint64		old = pg_atomic_read_u64(entry);
	HrflowProtocol protocol = protocol_of(old, hash);
	uint32		now;

	if (protocol != HRFLOW_HTTP_1_1_ONLY || offer_at(old) == 0)
		return protocol;
	now = seconds_now();
	if (now < offer_at(old) + (may_fail ? 0 : RETRY_INTERVAL) ||
		!pg_atomic_compare_exchange_u64(entry, &old,
										pack_entry(hash, protocol,
												   now + RETRY_INTERVAL)))
		return protocol;
	return HRFLOW_HTTP_1_1;
}

/*
 * Record the HTTP version of a URL's origin.  HRFLOW_HTTP_1_1_ONLY is kept
 * until another origin needs the entry, except that HTTP/2 replaces it if it
 * was recorded by hrflow_origin_note_refusal().
 */
void
hrflow_origin_note(const char *url, HrflowProtocol protocol)
{
	uint64		hash;
	pg_atomic_uint64 *entry = find_origin(url, &hash);
	uint64		old = pg_atomic_read_u64(entry);

	if (protocol_of(old, hash) == HRFLOW_HTTP_1_1_ONLY &&
		(offer_at(old) == 0 || protocol == HRFLOW_HTTP_1_1))
		return;
	if (old != pack_entry(hash, protocol, 0))
		pg_atomic_write_u64(entry, pack_entry(hash, protocol, 0));
}

/*
 * Called when an origin has answered over HTTP/1.1 a request that it did not
 * answer over HTTP/2.  Records HRFLOW_HTTP_1_1_ONLY, with the time at which to
 * offer HTTP/2 again, unless HRFLOW_HTTP_1_1_ONLY is recorded already.
 */
void
hrflow_origin_note_refusal(const char *url)
{
	uint64		hash;
	pg_atomic_uint64 *entry = find_origin(url, &hash);
	uint64		old = pg_atomic_read_u64(entry);
	HrflowProtocol protocol = protocol_of(old, hash);
	uint32		again = seconds_now() +
	(protocol == HRFLOW_HTTP_2 ? FIRST_INTERVAL : RETRY_INTERVAL);

	if (protocol != HRFLOW_HTTP_1_1_ONLY)
		(void) pg_atomic_compare_exchange_u64(entry, &old,
											  pack_entry(hash, HRFLOW_HTTP_1_1_ONLY,
														 again));
}
