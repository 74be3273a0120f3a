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
 * Backends share this information if shared memory is available: see shared.c.
 * Each entry is a single atomic number that combines the hash of the origin
 * and two bits for the version.  Nothing here throws once hrflow_shared_get()
 * has succeeded.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "transport/transfer.h"

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
 * Return the hash of a URL's scheme, host and port.  The two lowest bits are
 * 0, but the hash as a whole is never 0.
 */
uint64
hrflow_origin_hash(const char *url)
{
	return Max(hash_bytes_extended((const unsigned char *) url,
								   length_of_origin(url), 0) &
			   ~UINT64CONST(3), 4);
}

/*
 * Find the entry of an origin, and compute its hash.
 */
static pg_atomic_uint64 *
find_origin(const char *url, uint64 *hash)
{
	*hash = hrflow_origin_hash(url);
	return &hrflow_shared_get()->origins[(*hash >> 2) % HRFLOW_NORIGINS];
}

/*
 * Return the HTTP version of an https URL's origin.
 */
HrflowProtocol
hrflow_origin_protocol(const char *url)
{
	uint64		hash;
	uint64		entry = pg_atomic_read_u64(find_origin(url, &hash));

	return (entry & ~UINT64CONST(3)) == hash ? entry & 3 : HRFLOW_PROTOCOL_UNKNOWN;
}

/*
 * Record the HTTP version of a URL's origin.  HRFLOW_HTTP_1_1_ONLY, once
 * recorded, is kept until another origin needs the same entry.
 */
void
hrflow_origin_note(const char *url, HrflowProtocol protocol)
{
	uint64		hash;
	pg_atomic_uint64 *entry = find_origin(url, &hash);
	uint64		old = pg_atomic_read_u64(entry);

	if (old != (hash | protocol) && old != (hash | HRFLOW_HTTP_1_1_ONLY))
		pg_atomic_write_u64(entry, hash | protocol);
}
