/*-------------------------------------------------------------------------
 *
 * origin.c
 *		Which HTTP an origin speaks over TLS, as its replies have told.
 *
 * With HTTP/2, requests share a connection, and one that is being made is worth
 * waiting for.  With HTTP/1.1 it is not, and libcurl 8.14 would have all others
 * wait until the first reply is complete (066_wire.pl).  So where it is not
 * known what an origin speaks, they wait only until the first request is sent:
 * see release_waiting().
 *
 * The backends share what they know, where they share memory at all.  Each
 * entry is one atomic number: the hash of the origin, and two bits for what it
 * speaks.  Nothing here throws once hrflow_shared_get() has been called.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "transport/transfer.h"

/*
 * The length of the scheme, host and port of a URL.
 */
static size_t
length_of_origin(const char *url)
{
	return strlen("https://") + strcspn(url + strlen("https://"), "/?#");
}

/*
 * Are two URLs of one origin?
 */
bool
hrflow_origin_is_same(const char *a, const char *b)
{
	size_t		length = length_of_origin(a);

	return length == length_of_origin(b) && strncmp(a, b, length) == 0;
}

/*
 * The hash of a URL's scheme, host and port.  Its two lowest bits are 0, but it
 * is not.
 */
uint64
hrflow_origin_hash(const char *url)
{
	return Max(hash_bytes_extended((const unsigned char *) url,
								   length_of_origin(url), 0) &
			   ~UINT64CONST(3), 4);
}

/*
 * Where an origin's entry is, and the hash of the origin.
 */
static pg_atomic_uint64 *
find_origin(const char *url, uint64 *hash)
{
	*hash = hrflow_origin_hash(url);
	return &hrflow_shared_get()->origins[(*hash >> 2) % HRFLOW_NORIGINS];
}

/*
 * What the origin of a URL, which is https, is known to speak.
 */
HrflowProtocol
hrflow_origin_protocol(const char *url)
{
	uint64		hash;
	uint64		entry = pg_atomic_read_u64(find_origin(url, &hash));

	return (entry & ~UINT64CONST(3)) == hash ? entry & 3 : HRFLOW_PROTOCOL_UNKNOWN;
}

/*
 * The origin of a URL speaks this.  Where it cannot be spoken to in HTTP/2
 * although it offers that, it stays so.
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
