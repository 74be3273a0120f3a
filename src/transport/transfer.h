/*-------------------------------------------------------------------------
 *
 * transfer.h
 *		What the files of the transport share among themselves.
 *
 * The files, from the top down: transport.c is what others call; transfer.c
 * has the states of a request and is the one scheduler of a backend; account.c
 * says what its outcome means to the account; curl.c has a request's options
 * and callbacks; advance.c notes how far its tries have come; body.c and gunzip.c
 * receive its reply; origin.c and sharing.c know who may share a connection;
 * window.c says how many requests may be in flight;
 * budget.c counts what a statement has sent, and an account today; show.c shows
 * what the backend does; speed.c knows how long requests take; failure.c says what
 * an error of libcurl's means; features.c knows what libcurl was built with;
 * trust.c chooses the certificates; pool.c has what a backend keeps: the multi
 * handle, the connections, the wait; idle.c keeps requests that are nobody's;
 * rate.c has the limits that backends share; poller.c is epoll or kqueue.
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
 * The state of a request.  It is changed in transfer.c alone, except that
 * libcurl's callbacks tell, with hrflow_transfer_advance(), how far a try has
 * come that libcurl has.
 */
typedef enum HrflowTransferState
{
	HRFLOW_IDLE,				/* in the pool: it is nobody's */
	HRFLOW_READY,				/* to be started as soon as there is room */
	HRFLOW_DELAYED,				/* to be started when it is due */

	/* libcurl has it, from here ... */
	HRFLOW_WAITING,				/* for a connection: none is being made for
								 * this request alone */
	HRFLOW_RESOLVING,			/* a thread of libcurl's looks the name up */
	HRFLOW_CONNECTING,			/* a socket was opened for this request */
	HRFLOW_SENT,				/* it has a connection, and is on its way */
	HRFLOW_RECEIVING,			/* a line of the reply's headers has come */
	/* ... to here. */

	HRFLOW_DONE,				/* to be handed out */
	HRFLOW_HANDED_OUT			/* the submitter has its reply */
} HrflowTransferState;

/*
 * Retry-After is obeyed up to this.  A server that asks for more gets no
 * further try: to come back earlier would be to ignore it.
 */
#define HRFLOW_RETRY_AFTER_LIMIT (300 * HRFLOW_SEC)

/* Number of idle easy handles to keep (about 10 kB each). */
#define HRFLOW_KEEP_HANDLES 32

/*
 * A body's buffer larger than this is not kept for the next reply.  Answers
 * have 2 to 20 kB.
 */
#define HRFLOW_KEEP_BUFFER (64 * 1024)

/* Content encodings we accept: see body.c. */
#define HRFLOW_ACCEPTED_ENCODING "gzip"

#define HRFLOW_IN_FLIGHT(transfer) \
	((transfer)->state >= HRFLOW_WAITING && (transfer)->state <= HRFLOW_RECEIVING)

/*
 * Why a callback ended a try.
 */
typedef enum HrflowFault
{
	HRFLOW_NO_FAULT,
	HRFLOW_EXCEEDS_LIMIT,		/* the reply is too large */
	HRFLOW_EXCEEDS_BUDGET,		/* this backend's bodies are, together */
	HRFLOW_NO_MEMORY,
	HRFLOW_BAD_ENCODING,
	HRFLOW_PRIVATE_ADDRESS,		/* a link may not go there */
	HRFLOW_SENT_TWICE,			/* libcurl was about to send a POST again */
	HRFLOW_MIXED_UP				/* whose reply came is not known */
} HrflowFault;

/*
 * What an origin speaks over TLS.
 */
typedef enum HrflowProtocol
{
	HRFLOW_PROTOCOL_UNKNOWN,
	HRFLOW_HTTP_1_1,
	HRFLOW_HTTP_2,
	HRFLOW_HTTP_1_1_ONLY		/* it offers HTTP/2, and refuses it */
} HrflowProtocol;

/*
 * One try of a request.  All of it is zero when a try begins.
 */
typedef struct HrflowTry
{
	int64		began;			/* hrflow_clock_now() */
	int64		sent_at;		/* likewise; 0: it was not */
	int			nbeside;		/* in flight in its window, itself included,
								 * when it began */
	int64		pause;			/* how long the account pauses because of it,
								 * in microseconds; 0 when it does not */
	bool		is_probe;		/* the account's first after a pause */
	bool		is_alone;		/* nothing else may be in flight */
	bool		counts;			/* with a pause: it is an attempt all the same */
	bool		offers_http2;
	bool		may_wait;		/* for a connection that it would share */
	bool		is_gzip;		/* the body is compressed */
	bool		opened;			/* a socket to an address it may have */
	bool		has_reply;		/* a status line has come that is final */
	bool		headers_ended;	/* the empty line after them has come */
	uint32		round;			/* of the scheduler's, when it ceased to wait
								 * for a connection */
	HrflowFault fault;			/* the first that a callback met */
	int			nsent;			/* how often libcurl was about to send it */
	TimestampTz statement;		/* when the statement began, and ... */
	DateADT		day;			/* the day, that the try was counted in */
	int			local_port;		/* our end of the connection it was sent on */
	uint64		connection;		/* that connection; 0: not sent */
	dlist_node	sent;			/* among those that were sent */
	size_t		header_bytes;	/* received */
	size_t		body_bytes;		/* received, before decompression */
} HrflowTry;

/*
 * The state of decompression; in gunzip.c.
 */
typedef struct HrflowGunzip HrflowGunzip;

/*
 * How many requests to an origin may be in flight; in window.c.
 */
typedef struct HrflowWindow HrflowWindow;

/*
 * One request: a transport's, or idle in the pool.
 */
typedef struct HrflowTransfer
{
	HrflowReply reply;
	HrflowTransport *transport; /* whose it is; undefined while idle */
	HrflowWindow *window;		/* of its origin */
	const char *url;			/* the submitter's */
	const char *post;			/* the submitter's JSON; NULL: it is a GET */
	HrflowCaller caller;		/* on whose behalf it is sent */
	bool		was_sent;		/* by this try or an earlier one */
	bool		avoids_http2;	/* a try over it was lost without a word */

	HrflowTransferState state;
	dlist_node	node;			/* in the list of its state */
	pairingheap_node delayed;	/* in its transport's "delayed", by "due" */
	int64		due;			/* when a delayed try may begin */

	HrflowTry	try;			/* the current or the last one */

	void	   *easy;			/* CURL; NULL before the first try */
	uint64		configured;		/* serial of the settings that "easy" has */
	char	   *body;			/* malloc'd; kept from request to request */
	size_t		capacity;		/* bytes allocated */
	HrflowGunzip *gunzip;		/* NULL before the first compressed reply */
	char		error[256];		/* in libcurl's words */
} HrflowTransfer;

/*
 * The headers of requests under some settings.  libcurl does not copy them:
 * they live as long as a transport uses them.
 */
typedef struct HrflowHeaders HrflowHeaders;

struct HrflowTransport
{
	dlist_node	node;			/* among the backend's transports */
	bool		has_ended;		/* and is in no list of the backend's */
	const HrflowSettings *settings; /* pinned */
	HrflowHeaders *headers;
	HrflowActivity *activity;	/* shows what it does */
	HrflowUsageCounts *usage;	/* of the role on whose behalf it sends */
	uint64		account;		/* whose rate is limited */
	HrflowWindow *window;		/* of the API */
	bool		is_answered;	/* one of its requests has succeeded */
	MemoryContextCallback on_reset;

	dlist_head	ready_links;	/* to be started first, in this order */
	dlist_head	ready;			/* those to the API, likewise */
	pairingheap *delayed;		/* to be started when due ... */
	dlist_head	all_delayed;	/* the same ones, in any order */
	dlist_head	in_flight;		/* in the order they began */
	dlist_head	done;
	dlist_head	handed_out;
	int			nready;			/* of both kinds */
	int			ndelayed;
	int			nin_flight;
	int			most_in_flight; /* at one time */

	bool		awaits_rate;	/* the first of "ready" may not start before
								 * ... */
	int64		admitted_at;
	int64		paused_until;	/* by the server's will; 0 when it is not */
	int64		rests_until;	/* by the caller's; 0 when it does not */
	int64		deadline;		/* all must be done by then; or HRFLOW_NEVER */
	bool		was_told;		/* the user knows that a pause is long */
	bool		suspended;		/* starts nothing until it is used again */
	bool		lacks_memory;	/* there was none for a reply */
	bool		stopped;		/* sends nothing more to the API */
	bool		expired;		/* because its deadline is over */
};

/*
 * May a request go out?
 */
typedef enum HrflowAdmission
{
	HRFLOW_ADMIT,
	HRFLOW_ADMIT_PROBE,			/* yes, as the first after a pause: alone */
	HRFLOW_WAIT,				/* not yet */
	HRFLOW_REFUSE				/* not for longer than anyone waits */
} HrflowAdmission;

/*
 * What became of a request to the API, as its account sees it.
 */
typedef enum HrflowAccountOutcome
{
	HRFLOW_ANSWERED,
	HRFLOW_LIMITED,				/* 429, or 503 with Retry-After */
	HRFLOW_FAILED,				/* 5xx, or no connection */
	HRFLOW_TIMED_OUT,
	HRFLOW_GIVEN_UP				/* by us */
} HrflowAccountOutcome;

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

/* in failure.c */
HRFLOW_NORETURN extern void hrflow_out_of_memory(void);

/* in transfer.c */
extern void hrflow_transfer_prepare(const HrflowSettings *settings);
extern void hrflow_transfer_enroll(HrflowTransport *transport);
extern void hrflow_transfer_dismiss(HrflowTransport *transport, bool at_exit);
extern void hrflow_transfer_move(HrflowTransfer *transfer,
								 HrflowTransferState state);
extern void hrflow_transfer_queue(HrflowTransfer *transfer, bool first);
extern void hrflow_transfer_give_up(HrflowTransport *transport);
extern int	hrflow_transfer_room(const HrflowTransport *transport);
extern void hrflow_transfer_work(void);
extern void hrflow_transfer_receive(void);
extern void hrflow_transfer_end_overdue(int64 now);
extern void hrflow_transfer_wait(int64 until);

/* in advance.c */
extern void hrflow_transfer_advance(HrflowTransfer *transfer,
									HrflowTransferState state);
extern uint32 hrflow_advance_round(void);
extern void hrflow_advance_end_round(void);
extern bool hrflow_advance_take_connected(void);
extern void hrflow_advance_end_try(const HrflowTransfer *transfer);
extern bool hrflow_advance_may_be_refused(const HrflowSettings *settings);
extern int64 hrflow_advance_overdue_at(const HrflowTransport *transport);

/* in idle.c */
extern HrflowTransfer *hrflow_idle_get(void);
extern void hrflow_idle_put(HrflowTransfer *transfer);
extern void hrflow_idle_free_all(void);

/* in curl.c */
extern HrflowHeaders *hrflow_curl_get_headers(const HrflowSettings *settings);
extern void hrflow_curl_release_headers(HrflowHeaders *headers);
extern bool hrflow_curl_start(HrflowTransfer *transfer);
extern void hrflow_curl_stop_waiting(HrflowTransfer *transfer);
extern void hrflow_curl_remove(HrflowTransfer *transfer);
extern HrflowTransfer *hrflow_curl_next_done(void);
extern void hrflow_curl_abandon(HrflowTransfer *transfer);

/* in pool.c */
extern void hrflow_pool_prepare(const HrflowSettings *settings,
								bool in_flight);
extern bool hrflow_pool_is_broken(void);
extern bool hrflow_pool_reserve_descriptor(int nin_flight,
										   int (*count_unsent) (void));
extern void hrflow_pool_balance_descriptors(int nin_flight);
extern void hrflow_pool_run_timer(void);
extern void hrflow_pool_receive(void);
extern bool hrflow_pool_was_away(void);
extern bool hrflow_pool_has_slept(void);
extern void hrflow_pool_wait(int64 until, bool is_delay);

/* in body.c */
extern size_t hrflow_body_on_data(char *data, size_t one, size_t length,
								  void *arg);
extern size_t hrflow_body_on_header(char *data, size_t one, size_t length,
									void *arg);
extern void hrflow_body_drop(HrflowTransfer *transfer);
extern size_t hrflow_body_most_buffered(void);

/* in gunzip.c */
typedef bool (*HrflowGunzipSink) (void *arg, const char *data, size_t length);
extern HrflowGunzip *hrflow_gunzip_create(void);
extern void hrflow_gunzip_free(HrflowGunzip *gunzip);
extern void hrflow_gunzip_reset(HrflowGunzip *gunzip);
extern bool hrflow_gunzip_feed(HrflowGunzip *gunzip, const char *data,
							   size_t length, HrflowGunzipSink sink,
							   void *arg);

/* in show.c */
extern void hrflow_show_sent(HrflowTransfer *transfer);
extern void hrflow_show_wait(HrflowTransport *transport, int64 retry_at,
							 bool is_narrowed);

/* in speed.c */
extern void hrflow_speed_note(const HrflowTransfer *transfer);

/* in window.c */
extern HrflowWindow *hrflow_window_find(const char *url);
extern int	hrflow_window_size(const HrflowWindow *window);
extern int	hrflow_window_room(const HrflowWindow *window);
extern void hrflow_window_enter(HrflowTransfer *transfer);
extern void hrflow_window_leave(HrflowTransfer *transfer);
extern void hrflow_window_settle(HrflowTransfer *transfer);
extern int	hrflow_window_limit(const HrflowTransport *transport);
extern void hrflow_window_narrow(const HrflowTransport *transport,
								 int nin_flight);
extern void hrflow_window_widen(const HrflowTransport *transport);
extern bool hrflow_window_is_narrow(int nin_flight);
extern void hrflow_window_forget_memory(void);

/* in origin.c */
extern uint64 hrflow_origin_hash(const char *url);
extern HrflowProtocol hrflow_origin_protocol(const char *url);
extern bool hrflow_origin_is_same(const char *a, const char *b);
extern void hrflow_origin_note(const char *url, HrflowProtocol protocol);

/* in account.c */
extern int64 hrflow_account_backoff(const HrflowReply *reply);
extern HrflowAdmission hrflow_account_admit(HrflowTransport *transport,
											int64 now);
extern void hrflow_account_report(HrflowTransfer *transfer,
								  HrflowAccountOutcome outcome);
extern void hrflow_account_settle(HrflowTransfer *transfer);
extern void hrflow_account_give_back_probe(HrflowTransfer *transfer);

/* in sharing.c */
extern void hrflow_sharing_note_sent(HrflowTransfer *transfer,
									 const char *remote, int remote_port,
									 const char *local, int local_port);
extern void hrflow_sharing_forget(HrflowTransfer *transfer);
extern bool hrflow_sharing_check(HrflowTransfer *transfer);

/* in budget.c */
extern HrflowStatus hrflow_budget_check(const HrflowTransport *transport);
extern void hrflow_budget_describe(const HrflowTransport *transport,
								   HrflowStatus status, char *detail,
								   size_t size);
extern bool hrflow_budget_take(HrflowTransfer *transfer);
extern void hrflow_budget_give_back(const HrflowTransfer *transfer);
extern void hrflow_budget_charge(const HrflowTransport *transport);

/* in rate.c */
extern uint64 hrflow_rate_account(const HrflowSettings *settings);
extern HrflowAdmission hrflow_rate_admit(uint64 account, int limit,
										 int64 *again, int64 *paused_until);
extern int	hrflow_rate_limit(uint64 account, int own);
extern void hrflow_rate_charge(uint64 account);
extern int64 hrflow_rate_report(uint64 account, HrflowAccountOutcome outcome,
								int64 asked, bool was_probe, bool *counts);

/* in poller.c */
extern int	hrflow_poller_open(void);
extern bool hrflow_poller_watch(int poller, int fd, bool readable,
								bool writable);
extern bool hrflow_poller_opened(int fd);
extern bool hrflow_poller_closed(int fd);
extern bool hrflow_poller_is_connection(int fd);
extern bool hrflow_poller_has_heard(int fd);
extern int	hrflow_poller_find_silent(int local_port, int64 since);
extern void hrflow_poller_shut_idle(int local_port, int64 since);
extern void hrflow_poller_drop_closed(void);
extern int	hrflow_poller_wait(int poller, HrflowPollerEvent *events, int max);

#endif							/* HRFLOW_TRANSFER_H */
