/*-------------------------------------------------------------------------
 *
 * transfer.h
 *		What the files of the transport share among themselves.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_TRANSFER_H
#define HRFLOW_TRANSFER_H

#include "postgres.h"

#include "base/shared.h"
#include "lib/ilist.h"
#include "lib/pairingheap.h"
#include "transport/transport.h"

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

	/* For curl.c. */
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

/*
 * May a request go out?
 */
typedef enum HrflowAdmission
{
	HRFLOW_ADMIT,
	HRFLOW_ADMIT_PROBE,			/* yes, as the first after a pause: alone */
	HRFLOW_WAIT					/* not yet */
} HrflowAdmission;

/*
 * One descriptor that can be read or written.
 */
typedef struct HrflowPollerEvent
{
	int			fd;
	bool		readable;
	bool		writable;
	bool		failed;			/* error or hangup: the next read tells */
} HrflowPollerEvent;

/* in curl.c */
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

/* in rate.c */
extern uint64 hrflow_rate_account(const HrflowSettings *settings);
extern HrflowAdmission hrflow_rate_admit(uint64 account, int limit,
										 int64 probe_time, int64 *again);
extern bool hrflow_rate_pause(uint64 account, int64 delay, bool was_probe);
extern void hrflow_rate_end_probe(uint64 account, bool passed);

/* in poller.c */
extern int	hrflow_poller_open(void);
extern bool hrflow_poller_watch(int poller, int fd, bool readable,
								bool writable);
extern bool hrflow_poller_opened(int fd);
extern bool hrflow_poller_closed(int fd);
extern bool hrflow_poller_is_connection(int fd);
extern int	hrflow_poller_find_silent(int local_port, int64 since);
extern int	hrflow_poller_wait(int poller, HrflowPollerEvent *events, int max);

#endif							/* HRFLOW_TRANSFER_H */
