/*-------------------------------------------------------------------------
 *
 * sharing.c
 *		Prevents requests in flight from sharing an HTTP/1.1 connection.
 *
 * Over HTTP/1.1 a reply belongs to the only request in progress on its
 * connection.  But before 8.5 (commit 1c37d472a0), libcurl may send several
 * requests at once: if a host has an HTTP/2 connection, it treats all of the
 * host's connections as HTTP/2 connections, and assigns each reply to
 * whichever request reads first (069_http2.pl).
 *
 * Once a connection is known to use HTTP/1.1, no request is sent over it while
 * another one is in progress: hrflow_sharing_is_busy().  Before its first
 * reply, it may have several requests.  Nothing in a reply tells which
 * request it belongs to, so all of these requests must fail:
 * hrflow_sharing_check().
 *
 * This file, hrflow_poller_is_busy() and HRFLOW_MIXED_UP may be removed when
 * the minimum version of libcurl is 8.5 or later.
 *
 * Except for hrflow_sharing_separate(), nothing here throws, since this is
 * called from libcurl's callbacks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "transport/libcurl.h"

/*
 * Requests that have been sent over a known connection and are still in
 * flight.
 */
static dlist_head sent = DLIST_STATIC_INIT(sent);

/*
 * Keep requests that offer HTTP/2 from sharing connections with requests that
 * do not.  libcurl reuses a connection only if the requested TLS versions are
 * the same, so request different ones: no maximum if the request offers
 * HTTP/2, else a maximum of TLS 1.3.  The two are equivalent, because TLS 1.3
 * is the latest version.
 */
void
hrflow_sharing_separate(HrflowTransfer *transfer)
{
	HRFLOW_SETOPT(transfer->easy, CURLOPT_SSLVERSION,
				  (long) (CURL_SSLVERSION_TLSv1_2 |
						  (transfer->attempt.offers_http2 ? 0 :
						   CURL_SSLVERSION_MAX_TLSv1_3)));
}

/*
 * Is another request in progress on the HTTP/1.1 connection that libcurl has
 * chosen for this request?
 */
bool
hrflow_sharing_is_busy(const HrflowTransfer *transfer)
{
	return hrflow_poller_is_busy(transfer->attempt.socket);
}

/*
 * If hrflow_sharing_is_busy() is true for a request that offers HTTP/2, use
 * only HTTP/1.1 with its origin from now on.
 */
void
hrflow_sharing_avoid_http2(const HrflowTransfer *transfer)
{
	if (transfer->attempt.offers_http2 && hrflow_sharing_is_busy(transfer))
		hrflow_origin_note(transfer->url, HRFLOW_HTTP_1_1_ONLY);
}

/*
 * Record that a request no longer uses a connection.
 */
void
hrflow_sharing_forget(HrflowTransfer *transfer)
{
	if (transfer->attempt.connection != 0)
		dlist_delete(&transfer->attempt.sent);
	transfer->attempt.connection = 0;
}

/*
 * Record that a request is about to be sent or resent over the connection with
 * these endpoints.  libcurl reports port 0 if the port is unknown.
 */
void
hrflow_sharing_note_sent(HrflowTransfer *transfer, const char *remote,
						 int remote_port, const char *local, int local_port)
{
	char		ends[256];
	int			length;

	hrflow_sharing_forget(transfer);
	transfer->attempt.has_reply = false;
	if (local_port == 0)
		return;
	length = snprintf(ends, sizeof(ends), "%s %d %s %d", remote, remote_port,
					  local, local_port);
	transfer->attempt.connection =
		Max(hash_bytes_extended((const unsigned char *) ends,
								Min(length, (int) sizeof(ends) - 1), 0), 1);
	dlist_push_tail(&sent, &transfer->attempt.sent);
}

/*
 * Check the beginning of an HTTP/1.1 reply.  Returns false if other requests
 * are waiting for a reply over the same connection.  In that case all of these
 * requests, including this one, have failed, since the reply may belong to any
 * of them.
 */
bool
hrflow_sharing_check(HrflowTransfer *transfer)
{
	bool		is_alone = true;
	dlist_iter	iter;

	dlist_foreach(iter, &sent)
	{
		HrflowTransfer *other = dlist_container(HrflowTransfer, attempt.sent, iter.cur);

		/* A request that has a reply may be complete already. */
		if (other == transfer || other->attempt.has_reply ||
			other->attempt.connection != transfer->attempt.connection)
			continue;
		other->attempt.fault = HRFLOW_MIXED_UP;
		is_alone = false;
	}
	if (!is_alone)
		transfer->attempt.fault = HRFLOW_MIXED_UP;
	return is_alone;
}
