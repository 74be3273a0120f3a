/*-------------------------------------------------------------------------
 *
 * transfer.h
 *		Data structures and functions shared by the files of the transport.
 *
 * The files, from the top down:
 *
 * 	transport.c	functions that other layers call
 * 	scheduler.c	starts requests, and collects their replies
 * 	transfer.c	states of requests
 * 	account.c	asks accounts to admit requests, reports outcomes to them, and
 *				computes the backoff of retries
 * 	window.c	limits the number of requests in flight
 * 	curl.c		options and callbacks of a request
 * 	headers.c	headers of requests
 * 	advance.c	records the progress of attempts
 * 	body.c		receives replies
 * 	gunzip.c	decompresses replies
 * 	envelope.c	finds a refusal that only the body reports
 * 	origin.c	HTTP versions of origins
 * 	sharing.c	prevents requests from sharing a busy HTTP/1.1 connection
 * 	budget.c	counts requests per statement, and per account and day
 * 	show.c		counts requests, and records why the backend waits
 * 	speed.c		latency of requests
 * 	failure.c	interprets libcurl's errors
 * 	lookup.c	limits abandoned name lookups
 * 	features.c	checks libcurl's features
 * 	trust.c		certificate authorities
 * 	pool.c		resources kept between statements: multi handle, connections
 * 	idle.c		idle transfers
 * 	rate.c		rate limits and pauses of accounts, shared by all backends
 * 	allowance.c	learns the limits that servers impose on accounts
 * 	poller.c	epoll or kqueue
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
 * The state of a request.  It is changed only in transfer.c, except that
 * hrflow_transfer_advance() records the progress of an attempt in flight.
 */
typedef enum HrflowTransferState
{
	HRFLOW_IDLE,				/* belongs to no transport */
	HRFLOW_READY,				/* waiting to be started */
	HRFLOW_DELAYED,				/* waiting until the next attempt may start */

	/* States in flight: the request is in libcurl. */
	HRFLOW_WAITING,				/* libcurl has reported no progress yet: the
								 * request may be waiting for a connection */
	HRFLOW_RESOLVING,			/* a libcurl thread is resolving the host name */
	HRFLOW_CONNECTING,			/* libcurl is connecting for this request, or
								 * its lookup has ended */
	HRFLOW_SENT,				/* sent over a connection */
	HRFLOW_RECEIVING,			/* a header line has been received */

	HRFLOW_DONE,				/* the reply, which may report a failure, is
								 * ready */
	HRFLOW_HANDED_OUT			/* the submitter has the reply, or will not
								 * get it: see hand_out() */
} HrflowTransferState;

/*
 * Maximum Retry-After that we obey.  If a server asks for more, the request is
 * not retried, since an earlier retry would disregard what the server asked
 * for.  (A batch may still send it again as a probe; see ask/outage.c.)
 */
#define HRFLOW_RETRY_AFTER_LIMIT (300 * HRFLOW_SEC)

/* Maximum number of idle easy handles to keep (about 10 kB each). */
#define HRFLOW_KEEP_HANDLES 32

/*
 * Maximum size of a body's buffer to keep for the next reply, in bytes.  Most
 * replies are 2 to 20 kB long.
 */
#define HRFLOW_KEEP_BUFFER (64 * 1024)

/* Value of Accept-Encoding; read_encoding() accepts other encodings, too. */
#define HRFLOW_ACCEPTED_ENCODING "gzip"

#define HRFLOW_SERVER_OF(transfer) \
	(HRFLOW_IS_LINK((transfer)->reply.target) ? HRFLOW_SERVER_LINKS : \
	 HRFLOW_SERVER_API)

#define HRFLOW_IN_FLIGHT(transfer) \
	((transfer)->state >= HRFLOW_WAITING && (transfer)->state <= HRFLOW_RECEIVING)

/*
 * Cause of an attempt's failure, if it is more specific than libcurl's result
 * code.  Set by our callbacks for libcurl, or by hrflow_failure_classify().
 */
typedef enum HrflowFault
{
	HRFLOW_NO_FAULT,
	HRFLOW_EXCEEDS_LIMIT,		/* the reply is too large */
	HRFLOW_EXCEEDS_BUDGET,		/* the bodies of all of this backend's replies
								 * together are too large */
	HRFLOW_NO_MEMORY,
	HRFLOW_BAD_ENCODING,
	HRFLOW_PRIVATE_ADDRESS,		/* link to a private address */
	HRFLOW_SENT_TWICE,			/* libcurl was about to resend a request that
								 * must not be resent */
	HRFLOW_UNUSABLE,			/* libcurl was about to send the request over
								 * a connection that cannot be used */
	HRFLOW_STOPPED,				/* libcurl was about to send a request that
								 * has been given up; see
								 * hrflow_transfer_is_given_up() */
	HRFLOW_MIXED_UP				/* the reply cannot be attributed to a request */
} HrflowFault;

/*
 * HTTP version that an origin uses over TLS.
 */
typedef enum HrflowProtocol
{
	HRFLOW_PROTOCOL_UNKNOWN,
	HRFLOW_HTTP_1_1,
	HRFLOW_HTTP_2,
	HRFLOW_HTTP_1_1_ONLY		/* HTTP/2 must not be offered: requests over
								 * HTTP/2 seem to fail, or libcurl may mix up
								 * the origin's replies */
} HrflowProtocol;

/*
 * An attempt to send a request.  When an attempt starts, all fields that
 * start_transfer() does not set are zero.
 */
typedef struct HrflowAttempt
{
	int64		began;			/* start of the attempt (hrflow_clock_now()) */
	int64		sent_at;		/* when libcurl last sent the request in this
								 * attempt, or 0 if it did not */
	int64		excused;		/* time that does not count towards
								 * request_timeout, in microseconds: see
								 * excuse_absence() */
	int64		limit;			/* libcurl's CURLOPT_TIMEOUT_MS, in
								 * milliseconds */
	int64		waited;			/* hrflow_pool_waited() when the attempt
								 * started */
	int			nbeside;		/* number of requests in flight in the window
								 * when the attempt started, including the
								 * attempt itself */
	int64		pause;			/* length of the pause that
								 * hrflow_rate_report() has returned, in
								 * microseconds, or 0 */
	bool		is_probe;		/* is the attempt a probe whose outcome has
								 * not been reported yet? */
	bool		is_impatient;	/* could a connect_timeout shorter than the
								 * default have ended the attempt? */
	bool		is_alone;		/* is this the only request that may be in
								 * flight? */
	bool		counts;			/* if there is a pause, does the attempt count
								 * towards max_attempts? */
	bool		uses_proxy;		/* is the attempt sent through the proxy? */
	bool		offers_http2;
	bool		may_wait;		/* is libcurl allowed to make the attempt wait
								 * for a connection to share? */
	bool		is_gzip;		/* is the body compressed? */
	bool		opened;			/* has libcurl tried to connect to an allowed
								 * address? */
	bool		has_reply;		/* has the final status line been received? */
	bool		headers_ended;	/* have all headers of the response, perhaps
								 * an interim one, been received? */
	uint32		round;			/* round of the scheduler in which the attempt
								 * stopped waiting for a connection */
	HrflowFault fault;			/* the fault that ended or will end the
								 * attempt */
	int			nsent;			/* number of times that libcurl has sent the
								 * request in this attempt */
	bool		is_charged;		/* is the attempt counted towards the rate
								 * limit of the account? */
	bool		is_counted;		/* is the attempt counted towards the request
								 * limits? */
	TimestampTz statement;		/* start of the statement for which the
								 * attempt was counted */
	DateADT		day;			/* day for which the attempt was counted */
	int			local_port;		/* local port of the attempt's connection */
	int			socket;			/* descriptor of the connection, or -1 if
								 * unknown */
	bool		is_cut_off;		/* is the connection probably dead?  See
								 * hrflow_poller_is_cut_off() */
	uint64		connection;		/* hash of the endpoints of the connection, or
								 * 0 if the request is not using a connection
								 * or the endpoints are unknown */
	dlist_node	sent;			/* in sharing.c's list of requests */
	uint64		serial;			/* number of the attempt among the account's
								 * requests */
	int64		nleft;			/* number of requests that the account may
								 * still send, according to the reply, or -1
								 * if unknown */
	int64		reset;			/* seconds until the account may send more
								 * requests, according to the reply, or 0 if
								 * unknown */
	size_t		header_bytes;	/* size of the headers received */
	size_t		body_bytes;		/* size of the body received, before
								 * decompression */
} HrflowAttempt;

/*
 * State of a decompression; defined in gunzip.c.
 */
typedef struct HrflowGunzip HrflowGunzip;

/*
 * Limits the number of requests in flight to an origin; defined in window.c.
 */
typedef struct HrflowWindow HrflowWindow;

/*
 * A request, which belongs to a transport or is idle.
 */
typedef struct HrflowTransfer
{
	HrflowReply reply;
	HrflowTransport *transport; /* undefined while idle */
	HrflowWindow *window;		/* window of its origin */
	const char *url;			/* owned by the submitter */
	const char *post;			/* JSON to POST, owned by the submitter, or
								 * NULL to use GET */
	HrflowCaller caller;		/* SQL function on whose behalf the request is
								 * sent */
	int			ncounted;		/* number of earlier attempts that count
								 * towards max_attempts */
	int64		sent_at;		/* when the first attempt was sent, or 0 if
								 * none was */
	bool		avoids_http2;	/* must later attempts not offer HTTP/2?  See
								 * learn_from_lost_connection() */
	bool		needs_fresh;	/* must the request be sent over a new
								 * connection? */

	HrflowTransferState state;
	dlist_node	node;			/* in the list for its state */
	dlist_node	in_flight;		/* link in the list of the requests in flight
								 * of all transports; used only while the
								 * request is in flight */
	pairingheap_node delayed;	/* in the transport's "delayed" */
	int64		due;			/* when a delayed attempt may start */

	HrflowAttempt attempt;		/* the current or the latest attempt */

	void	   *easy;			/* a CURL *; NULL before the first attempt */
	uint64		configured;		/* serial of the settings that "easy" is
								 * configured for, or 0 if it is not
								 * configured */
	bool		needs_renewal;	/* must "easy" be replaced before the next
								 * attempt? */
	char	   *body;			/* malloc'd; may be reused for the next
								 * request */
	size_t		capacity;		/* allocated size of "body" */
	HrflowGunzip *gunzip;		/* NULL until the first compressed reply */
	char		error[256];		/* libcurl's message, or a detail that we have
								 * written */
} HrflowTransfer;

/*
 * The headers of requests with particular settings.  libcurl does not copy
 * them, so they live at least as long as any transport uses them.
 */
typedef struct HrflowHeaders HrflowHeaders;

struct HrflowTransport
{
	dlist_node	node;			/* in the scheduler's list of transports */
	bool		has_ended;		/* has the transport been removed from the
								 * scheduler's list? */
	const HrflowSettings *settings; /* pinned */
	HrflowHeaders *headers;
	HrflowActivity *activity;	/* shows what the transport is doing */
	HrflowUsageCounts *usage;	/* request counts of the role on whose behalf
								 * requests are sent */
	uint64		account;		/* hash of the account that sends the requests
								 * to the API; see hrflow_rate_account() */
	HrflowWindow *window;		/* window of the API's origin */
	bool		is_answered;	/* has any of its requests succeeded, or been
								 * answered with 404? */
	MemoryContextCallback on_reset;

	dlist_head	ready_links;	/* ready links, in order; they have priority
								 * over "ready" */
	dlist_head	ready;			/* ready requests to the API, in order */
	pairingheap *delayed;		/* delayed requests, ordered by "due" */
	dlist_head	all_delayed;	/* delayed requests, as a list */
	dlist_head	in_flight;		/* in the order in which they were started */
	dlist_head	done;
	dlist_head	handed_out;
	int			nready;			/* total length of "ready" and "ready_links" */
	int			ndelayed;
	int			nin_flight;
	int			most_in_flight; /* maximum number in flight at any time */

	bool		awaits_rate;	/* is the account's rate limit or pause
								 * delaying the first of "ready"? */
	int64		admitted_at;	/* earliest time to ask the account again */
	uint64		serial;			/* number of the request last admitted */
	int64		paused_until;	/* end of the account's pause, or time at
								 * which an exhausted limit of the API admits
								 * requests again, or 0 if neither applies */
	int64		rests_until;	/* end of a pause requested by the caller, or
								 * 0 if there is none */
	int64		deadline;		/* end of the time limit, or HRFLOW_NEVER */
	bool		was_told;		/* was the user informed of a long pause? */
	bool		suspended;		/* is the start of requests suspended until
								 * the transport is used again? */
	bool		lacks_memory;	/* was there not enough memory for a reply? */
	ErrorData  *error;			/* error of libcurl or the system that is
								 * still to be raised, or NULL */
	bool		stopped;		/* must the transport stop sending requests to
								 * the API? */
	bool		at_limit;		/* is "stopped" set because a request limit
								 * was reached?  If so, requests that are
								 * already counted towards the limit may still
								 * be sent */
	bool		links_stopped;	/* must the transport stop fetching links? */
	bool		expired;		/* has the time limit expired? */
};

/*
 * Result of asking the account to admit a request.
 */
typedef enum HrflowAdmission
{
	HRFLOW_ADMIT,
	HRFLOW_ADMIT_PROBE,			/* admitted as the first request after a pause */
	HRFLOW_WAIT,				/* not admitted yet */
	HRFLOW_REFUSE				/* the account is paused for longer than we
								 * are willing to wait */
} HrflowAdmission;

/*
 * Maximum number of events that hrflow_poller_wait() returns.  It exceeds the
 * number of connections that can be in use, kept or being closed.
 */
#define HRFLOW_MAX_EVENTS 1024

/*
 * Maximum number of events to process after a wait, before more requests are
 * started.
 */
#define HRFLOW_EVENTS_AT_ONCE 64

/*
 * An event on a descriptor.
 */
typedef struct HrflowPollerEvent
{
	int			fd;
	bool		readable;
	bool		writable;
	bool		failed;			/* error or hangup, which the next read will
								 * report */
} HrflowPollerEvent;

/* in failure.c */
HRFLOW_NORETURN extern void hrflow_out_of_memory(void);

/* in scheduler.c */
extern void hrflow_scheduler_prepare(const HrflowSettings *settings);
extern dlist_head *hrflow_scheduler_transports(void);
extern void hrflow_scheduler_enroll(HrflowTransport *transport);
extern void hrflow_scheduler_dismiss(HrflowTransport *transport);
extern void hrflow_scheduler_abandon(HrflowTransport *transport);
extern int	hrflow_scheduler_room(const HrflowTransport *transport);
extern void hrflow_scheduler_work(void);
extern void hrflow_scheduler_receive(void);
extern void hrflow_scheduler_collect(void);
extern void hrflow_scheduler_end_overdue(int64 now);
extern void hrflow_scheduler_wait(int64 until);

/* in transfer.c */
extern dlist_head *hrflow_transfer_in_flight(void);
extern int	hrflow_transfer_nin_flight(void);
extern void hrflow_transfer_move(HrflowTransfer *transfer,
								 HrflowTransferState state);
extern void hrflow_transfer_give_back(HrflowTransfer *transfer);
extern void hrflow_transfer_launch(HrflowTransfer *transfer);
extern void hrflow_transfer_queue(HrflowTransfer *transfer);
extern void hrflow_transfer_queue_first(HrflowTransfer *transfer);
extern void hrflow_transfer_delay(HrflowTransfer *transfer, int64 due);
extern bool hrflow_transfer_is_given_up(const HrflowTransfer *transfer);
extern void hrflow_transfer_give_up(HrflowTransport *transport);

/* in advance.c */
extern void hrflow_transfer_advance(HrflowTransfer *transfer,
									HrflowTransferState state);
extern uint32 hrflow_advance_round(void);
extern void hrflow_advance_end_round(void);
extern bool hrflow_advance_take_connected(void);
extern void hrflow_advance_pass_proxy(const HrflowTransfer *transfer);
extern void hrflow_advance_fail_proxy(const HrflowTransfer *transfer);
extern void hrflow_advance_note_closing(int fd);
extern bool hrflow_advance_may_be_refused(const HrflowSettings *settings);
extern int64 hrflow_advance_overdue_at(const HrflowTransport *transport);
extern HrflowTransfer *hrflow_advance_find_overdue(HrflowTransport *transport,
												   int64 now);

/* in idle.c */
extern HrflowTransfer *hrflow_idle_get(void);
extern void hrflow_idle_put(HrflowTransfer *transfer);
extern void hrflow_idle_free_all(void);

/* in headers.c */
extern HrflowHeaders *hrflow_headers_get(const HrflowSettings *settings);
extern void hrflow_headers_release(HrflowHeaders *headers);

/* in curl.c */
extern bool hrflow_curl_uses_proxy(const HrflowTransfer *transfer);
extern bool hrflow_curl_start(HrflowTransfer *transfer);
extern void hrflow_curl_stop_waiting(HrflowTransfer *transfer);
extern void hrflow_curl_prolong(HrflowTransfer *transfer, int64 duration);
extern void hrflow_curl_remove(HrflowTransfer *transfer);
extern HrflowTransfer *hrflow_curl_next_done(void);
extern void hrflow_curl_abandon(HrflowTransfer *transfer);

/* in pool.c */
extern void hrflow_pool_prepare(const HrflowSettings *settings,
								bool in_flight);
extern bool hrflow_pool_is_broken(void);
extern bool hrflow_pool_reserve_descriptor(const HrflowSettings *settings,
										   int nin_flight,
										   int (*count_unsent) (void));
extern void hrflow_pool_balance_descriptors(int nin_flight);
extern bool hrflow_pool_lacks_connections(int nin_flight);
extern bool hrflow_pool_run_timer(void);
extern void hrflow_pool_receive(void);
extern bool hrflow_pool_was_away(void);
extern int64 hrflow_pool_waited(void);
extern void hrflow_pool_wait(int64 until, bool is_delay);

/* in body.c */
extern size_t hrflow_body_on_data(char *data, size_t one, size_t length,
								  void *arg);
extern size_t hrflow_body_on_header(char *data, size_t one, size_t length,
									void *arg);
extern void hrflow_body_drop(HrflowTransfer *transfer);
extern size_t hrflow_body_most_buffered(void);

/* in envelope.c */
extern bool hrflow_envelope_is_limited(const char *body);

/* in gunzip.c */
typedef bool (*HrflowGunzipSink) (void *arg, const char *data, size_t length);
extern HrflowGunzip *hrflow_gunzip_create(void);
extern void hrflow_gunzip_free(HrflowGunzip *gunzip);
extern void hrflow_gunzip_reset(HrflowGunzip *gunzip);
extern bool hrflow_gunzip_feed(HrflowGunzip *gunzip, const char *data,
							   size_t length, HrflowGunzipSink sink,
							   void *arg, bool *no_memory);
extern bool hrflow_gunzip_is_complete(const HrflowGunzip *gunzip);

/* in show.c */
extern void hrflow_show_sent(HrflowTransfer *transfer);
extern void hrflow_show_wait(HrflowTransport *transport, int64 retry_at,
							 bool is_narrowed);

/* in speed.c */
extern void hrflow_speed_note(const HrflowTransfer *transfer);

/* in window.c */
extern HrflowWindow *hrflow_window_find(const char *url);
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
extern int	hrflow_window_expected(const HrflowSettings *settings);

/* in origin.c */
extern uint64 hrflow_origin_hash(const char *url);
extern HrflowProtocol hrflow_origin_protocol(const char *url);
extern HrflowProtocol hrflow_origin_choose(const char *url,
										   bool may_fail);
extern void hrflow_origin_note(const char *url, HrflowProtocol protocol);
extern void hrflow_origin_note_refusal(const char *url);

/* in account.c */
extern int64 hrflow_account_backoff(const HrflowReply *reply);
extern HrflowAdmission hrflow_account_admit(HrflowTransport *transport,
											int64 now);
extern void hrflow_account_report(HrflowTransfer *transfer,
								  HrflowAccountOutcome outcome);
extern void hrflow_account_settle(HrflowTransfer *transfer);
extern void hrflow_account_give_back(HrflowTransfer *transfer);
extern void hrflow_account_give_back_probe(HrflowTransfer *transfer);

/* in lookup.c */
extern bool hrflow_lookup_may_start(const HrflowTransfer *transfer);
extern void hrflow_lookup_note_answer(HrflowTransfer *transfer);
extern void hrflow_lookup_note_end(const HrflowTransfer *transfer);

/* in sharing.c */
extern void hrflow_sharing_separate(HrflowTransfer *transfer);
extern bool hrflow_sharing_is_busy(const HrflowTransfer *transfer);
extern void hrflow_sharing_avoid_http2(const HrflowTransfer *transfer);
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
extern void hrflow_budget_give_back(HrflowTransfer *transfer);
extern void hrflow_budget_charge(const HrflowTransfer *transfer);

/* in rate.c */
extern uint64 hrflow_rate_account(const HrflowSettings *settings);
extern HrflowAdmission hrflow_rate_admit(uint64 account, int limit,
										 uint64 *serial, int64 *again,
										 int64 *paused_until);
extern void hrflow_rate_charge(uint64 account);
extern void hrflow_rate_give_back(uint64 account, int64 began);
extern int64 hrflow_rate_report(const HrflowTransfer *transfer,
								HrflowAccountOutcome outcome, bool was_probe,
								bool *counts);

/* in allowance.c */
extern bool hrflow_allowance_admit(HrflowAllowance *allowance, int64 now,
								   int64 *again, int64 *full_until);
extern void hrflow_allowance_charge(HrflowAllowance *allowance, int64 now);
extern void hrflow_allowance_give_back(HrflowAllowance *allowance,
									   int64 began);
extern void hrflow_allowance_note_left(HrflowAllowance *allowance, int64 left,
									   int64 reset, uint64 serial, int64 now);
extern void hrflow_allowance_note_answer(HrflowAllowance *allowance,
										 int64 began, int64 now);
extern void hrflow_allowance_note_refusal(HrflowAllowance *allowance,
										  int64 began, bool was_probe);
extern void hrflow_allowance_begin_pause(HrflowAllowance *allowance,
										 int64 now);
extern void hrflow_allowance_prolong_pause(HrflowAllowance *allowance,
										   int64 sent_at);
extern int64 hrflow_allowance_probe_at(const HrflowAllowance *allowance,
									   int64 earliest);
extern void hrflow_allowance_learn(HrflowAllowance *allowance, int64 now);

/* in poller.c */
extern int	hrflow_poller_open(void);
extern bool hrflow_poller_watch(int poller, int fd, bool readable,
								bool writable);
extern bool hrflow_poller_opened(int fd);
extern bool hrflow_poller_closed(int fd);
extern bool hrflow_poller_is_connection(int fd);
extern bool hrflow_poller_has_heard(int fd);
extern int	hrflow_poller_find(int local_port);
extern void hrflow_poller_note_version(int fd, char version);
extern bool hrflow_poller_is_busy(int fd);
extern bool hrflow_poller_is_spent(int fd);
extern int	hrflow_poller_find_silent(int local_port, int64 since);
extern bool hrflow_poller_is_cut_off(int fd);
extern void hrflow_poller_shut_idle(int local_port, int64 since);
extern void hrflow_poller_drop_closed(void);
extern int	hrflow_poller_wait(int poller, HrflowPollerEvent *events, int max);

#endif							/* HRFLOW_TRANSFER_H */
