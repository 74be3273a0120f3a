/*-------------------------------------------------------------------------
 *
 * transport.h
 *		What transport.c, which decides when to ask, and transport_curl.c,
 *		which asks, share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_TRANSPORT_H
#define HRFLOW_TRANSPORT_H

#include "postgres.h"

#include "hrflow_embed.h"
#include "lib/ilist.h"
#include "lib/pairingheap.h"

/* Milliseconds and seconds in the unit of our clock, the microsecond. */
#define MSEC INT64CONST(1000)
#define SEC INT64CONST(1000000)

/* No such time. */
#define NEVER PG_INT64_MAX

/*
 * One request: in a list of its transport's, or idle in the pool.
 */
typedef struct HrflowTransfer
{
	HrflowReply reply;			/* first, so that one is the other */
	const char *url;			/* the submitter's */
	const char *post;			/* the submitter's JSON; NULL: it is a GET */

	/* For transport.c. */
	dlist_node	node;
	pairingheap_node delayed;	/* in the transport's delayed, by due */
	int64		due;			/* when the next try may begin */
	bool		is_probe;		/* the first one after a pause */
	bool		was_sent;		/* once at least */
	bool		is_alone;		/* this try is the only one in flight */

	/* For transport_curl.c. */
	void	   *easy;			/* CURL; NULL before the first try */
	uint64		configured;		/* serial of the settings that "easy" has */
	int64		started;		/* when this try began */
	char	   *body;			/* malloc'd; kept from request to request */
	size_t		capacity;		/* bytes allocated */
	size_t		header_bytes;	/* received in this try */
	bool		headers_ended;	/* the empty line behind them was received */
	bool		too_large;		/* the callbacks met a limit, */
	bool		over_budget;	/* or the backend's, */
	bool		out_of_memory;	/* or no memory, */
	bool		address_refused;	/* or an address that a link may not have */
	bool		looks_up;		/* libcurl looks the host's name up, or has */
	bool		may_share;		/* waits for a connection it could share */
	bool		connected;		/* the request was about to be sent ... */
	int			local_port;		/* over the connection with this port */
	bool		sent_twice;		/* libcurl was about to send a POST again */
	char		error[256];		/* in libcurl's words */
} HrflowTransfer;

/* in transport_curl.c */
extern void hrflow_curl_prepare(const HrflowSettings *settings);
extern HrflowTransfer *hrflow_curl_get_idle(void);
extern void hrflow_curl_drop_body(HrflowTransfer *transfer);
extern size_t hrflow_curl_most_buffered(void);
extern void hrflow_curl_put_idle(HrflowTransfer *transfer);
extern bool hrflow_curl_reserve_descriptor(int nrunning);
extern void hrflow_curl_balance_descriptors(int nrunning);
extern bool hrflow_curl_start(HrflowTransfer *transfer);
extern void hrflow_curl_remove(HrflowTransfer *transfer);
extern void hrflow_curl_abandon(HrflowTransfer *transfer);
extern HrflowTransfer *hrflow_curl_next_done(void);
extern void hrflow_curl_run_timer(void);
extern void hrflow_curl_wait(int64 until, bool is_delay);
extern void hrflow_curl_work(void);

#endif							/* HRFLOW_TRANSPORT_H */
