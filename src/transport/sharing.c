/*-------------------------------------------------------------------------
 *
 * sharing.c
 *		Keeps track of which requests were sent over the same connection.
 *
 * Over HTTP/1.1 a reply belongs to the only request in progress on its
 * connection.  But libcurl 7.88 may send several requests at once: if a host
 * has an HTTP/2 connection, it treats all of the host's connections as such,
 * and assigns each reply to whichever request reads first (069_http2.pl).
 * Nothing in a reply tells which request it belongs to, so all of them must
 * fail.  This is possible only until the first reply over the connection: once
 * its version is known, is_usable() in curl.c prevents it.
 *
 * Nothing here throws, since this is called from libcurl's callbacks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "transport/transfer.h"

/* Requests that have been sent and are still in flight. */
static dlist_head sent = DLIST_STATIC_INIT(sent);

/*
 * Record that a request has left libcurl, or its connection.
 */
void
hrflow_sharing_forget(HrflowTransfer *transfer)
{
	if (transfer->try.connection != 0)
		dlist_delete(&transfer->try.sent);
	transfer->try.connection = 0;
}

/*
 * Record that a request is about to be sent, possibly again, over the
 * connection with these endpoints.  libcurl reports port 0 if it is unknown.
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
 * Check the beginning of an HTTP/1.1 reply.  Returns false if other requests
 * are waiting for a reply over the same connection.  All of these have then
 * failed, since the reply may belong to any of them.
 */
bool
hrflow_sharing_check(HrflowTransfer *transfer)
{
	bool		is_alone = true;
	dlist_iter	iter;

	dlist_foreach(iter, &sent)
	{
		HrflowTransfer *other = dlist_container(HrflowTransfer, try.sent, iter.cur);

		/* A request that has a reply may be complete already. */
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
