/*-------------------------------------------------------------------------
 *
 * sharing.c
 *		Which requests were sent on the same connection.
 *
 * Over HTTP/1.1 a reply belongs to the one request that is under way on its
 * connection.  libcurl 7.88 may send several at once: when a host has a
 * connection of HTTP/2, it takes all of the host's connections for such, and
 * gives each reply to whichever request reads first (069_http2.pl).  Nothing in
 * the reply tells whose it is, so none of them gets it.
 *
 * Nothing here throws, since libcurl's callbacks call it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "transport/transfer.h"

/* The requests in flight that were sent. */
static dlist_head sent = DLIST_STATIC_INIT(sent);

/*
 * A request leaves libcurl, or its connection.
 */
void
hrflow_sharing_forget(HrflowTransfer *transfer)
{
	if (transfer->try.connection != 0)
		dlist_delete(&transfer->try.sent);
	transfer->try.connection = 0;
}

/*
 * A request is about to be sent, perhaps again, on the connection with these
 * ends.  libcurl says 0 where it does not know a port.
 */
void
hrflow_sharing_note_sent(HrflowTransfer *transfer, const char *remote,
						 int remote_port, const char *local, int local_port)
{
	char		ends[256];
	int			length;

	hrflow_sharing_forget(transfer);
	transfer->try.has_reply = false;
	if (local_port == 0)
		return;
	length = snprintf(ends, sizeof(ends), "%s %d %s %d", remote, remote_port,
					  local, local_port);
	transfer->try.connection =
		Max(hash_bytes_extended((const unsigned char *) ends,
								Min(length, (int) sizeof(ends) - 1), 0), 1);
	dlist_push_tail(&sent, &transfer->try.sent);
}

/*
 * A reply of HTTP/1.1 begins.  Returns false if other requests wait for theirs on
 * its connection: then all of these have failed, since it may be any one's.
 */
bool
hrflow_sharing_check(HrflowTransfer *transfer)
{
	bool		is_alone = true;
	dlist_iter	iter;

	dlist_foreach(iter, &sent)
	{
		HrflowTransfer *other = dlist_container(HrflowTransfer, try.sent, iter.cur);

		/* libcurl may be done with one that has a reply. */
		if (other == transfer || other->try.has_reply ||
			other->try.connection != transfer->try.connection)
			continue;
		other->try.fault = HRFLOW_MIXED_UP;
		is_alone = false;
	}
	if (!is_alone)
		transfer->try.fault = HRFLOW_MIXED_UP;
	return is_alone;
}
