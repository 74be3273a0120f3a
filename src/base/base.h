/*-------------------------------------------------------------------------
 *
 * base.h
 *		What all other layers stand on: limits, statuses, settings, encodings,
 *		URLs, the clock and the statistics.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_BASE_H
#define HRFLOW_BASE_H

#include "postgres.h"

#include <sys/socket.h>

#include "compat.h"

/*
 * The longest URL we send, in bytes.  Servers and load balancers stop at 8 to
 * 64 kB; beyond that nothing useful can happen, and libcurl's own limit
 * (8 MB) is far away.
 */
#define HRFLOW_MAX_URL			(64 * 1024)

/*
 * The longest API key and account e-mail, in bytes.  Keys of today have 37
 * characters and an e-mail address has at most 254.
 */
#define HRFLOW_MAX_KEY			512

/*
 * All the headers of one reply together, in bytes.  Servers send 1 to 2 kB.
 */
#define HRFLOW_MAX_HEADERS		(64 * 1024)

/*
 * The most requests that a statement sends before one of them succeeds: as many
 * are wasted where all are refused, as with a wrong key.
 */
#define HRFLOW_MAX_WASTED 32

/*
 * Bodies held in memory by a backend at any time, in bytes: 64 MB.  It is
 * also the upper end of hrflow_embed.max_response_size, so that one reply
 * always fits.
 */
#define HRFLOW_MAX_BUFFERED		(64 * 1024 * 1024)

/*
 * The longest text to be embedded, in bytes: 1 MB, a thick book.  Models look
 * at a small part of that, and servers commonly take no larger bodies.
 */
#define HRFLOW_MAX_TEXT			(1024 * 1024)

/*
 * How much of a server's message is passed on, in bytes.
 */
#define HRFLOW_MAX_MESSAGE		500

/*
 * Milliseconds and seconds in the unit of our clock, the microsecond.
 */
#define HRFLOW_MSEC		INT64CONST(1000)
#define HRFLOW_SEC		INT64CONST(1000000)

/* A time that never comes. */
#define HRFLOW_NEVER	PG_INT64_MAX

/*
 * What became of a request.  The order is that of the table in base/status.c.
 */
typedef enum HrflowStatus
{
	HRFLOW_OK,
	HRFLOW_INVALID_REQUEST,
	HRFLOW_INVALID_SOURCE,
	HRFLOW_NOT_FOUND,
	HRFLOW_NO_VECTOR,
	HRFLOW_UNAUTHORIZED,
	HRFLOW_FORBIDDEN,
	HRFLOW_PROXY_REFUSED,
	HRFLOW_OVER_QUOTA,
	HRFLOW_RATE_LIMITED,
	HRFLOW_OVER_BUDGET,			/* of the statement */
	HRFLOW_OVER_DAY,			/* the day's */
	HRFLOW_CONNECT_FAILED,
	HRFLOW_CONNECTION_LOST,
	HRFLOW_TIMEOUT,
	HRFLOW_INVALID_REPLY,
	HRFLOW_HTTP_ERROR,
	HRFLOW_TOO_LARGE,
	HRFLOW_LINK_REFUSED,
	HRFLOW_LINK_EXPIRED,
	HRFLOW_INVALID_VECTOR
} HrflowStatus;

#define HRFLOW_LAST_STATUS HRFLOW_INVALID_VECTOR

/*
 * The SQL function on whose behalf requests are sent.
 */
typedef enum HrflowCaller
{
	HRFLOW_BY_PROFILE_EMBEDDING,
	HRFLOW_BY_PROFILE_EMBEDDING_LINKS,
	HRFLOW_BY_PROFILE_EMBEDDINGS,
	HRFLOW_BY_PROFILE_LINKS,
	HRFLOW_BY_PROFILE_VECTORS,
	HRFLOW_BY_FETCH_VECTOR,
	HRFLOW_BY_FETCH_VECTORS,
	HRFLOW_BY_JOB_EMBEDDING,
	HRFLOW_BY_JOB_VECTOR,
	HRFLOW_BY_TEXT_EMBEDDING,
	HRFLOW_BY_TEXT_EMBEDDINGS,
	HRFLOW_BY_AUTH,
	HRFLOW_BY_REFRESH
} HrflowCaller;

#define HRFLOW_NCALLERS (HRFLOW_BY_REFRESH + 1)

typedef enum HrflowDialect
{
	HRFLOW_DIALECT_ID,			/* source_id, profile_id, ... */
	HRFLOW_DIALECT_KEY			/* source_key, key, ... */
} HrflowDialect;

/*
 * The settings as one statement sees them.  They never change, and live as
 * long as the memory context that hrflow_settings_get() or
 * hrflow_settings_pin() was called in is not reset.  No string is NULL.
 */
typedef struct HrflowSettings
{
	uint64		serial;			/* differs when any other field does */
	const char *api_key;		/* safe in a header; empty only where none is
								 * needed */
	const char *api_user;		/* empty: not sent */
	const char *base_url;		/* no slash at its end */
	HrflowDialect dialect;
	const char *ca_file;		/* empty: the system's certificates */
	const char *proxy;			/* empty: none */
	const char *link_hosts;		/* hosts and patterns, with commas */
	int			connect_timeout;	/* milliseconds, one try */
	int			request_timeout;	/* milliseconds, one try, all of it */
	int			batch_timeout;	/* milliseconds, a whole statement; 0: none */
	int			refresh_debounce;	/* milliseconds until a profile is
									 * refreshed that changed while it was
									 * fetched */
	int			max_attempts;	/* tries of one request, the first included */
	bool		missing_is_null;	/* of functions that return one value: for
									 * a profile or job that is not found or
									 * has no vector; else it is an error */
	int			max_concurrency;	/* requests in flight */
	int			max_requests_per_minute;	/* of the API; 0: no limit */
	int			max_requests_per_statement; /* likewise; the lower one of two
											 * settings */
	int			max_requests_per_day;	/* likewise */
	size_t		max_response_size;	/* bytes, after decompression */
	bool		allow_in_shard_queries; /* batches, where Citus runs them */
	bool		http2;			/* is it offered where there is TLS? */
} HrflowSettings;

/*
 * The parts of a URL that decide where a request goes.  The strings point
 * into the URL and are not NUL-terminated.
 */
typedef struct HrflowUrl
{
	bool		https;			/* else http */
	const char *host;			/* without the brackets of an IPv6 address */
	int			host_length;
	bool		loopback;		/* localhost, 127.0.0.0/8 or ::1 */
	int			port;			/* as written, or the scheme's own */
	const char *path;			/* from its first slash to the URL's end; may
								 * be empty */
} HrflowUrl;

/*
 * What is counted, in the order of the columns of hrflow_embed_stats, but for
 * the last one.
 */
typedef enum HrflowCounter
{
	HRFLOW_CALLS,				/* calls of our functions that reach the
								 * network */
	HRFLOW_REQUESTS,			/* tries, the first ones included */
	HRFLOW_RETRIES,				/* tries that were not the first */
	HRFLOW_RATE_LIMITS,			/* replies that were 429 */
	HRFLOW_BYTES_RECEIVED,		/* of bodies, before decompression */
	HRFLOW_WAITED_USEC,			/* microseconds asleep */
	HRFLOW_CONNECTIONS_OPENED,
	HRFLOW_CONNECTIONS_REUSED,	/* requests that found one open */
	HRFLOW_LINK_REQUESTS		/* of the requests, those for links */
} HrflowCounter;

#define HRFLOW_NCOUNTERS (HRFLOW_LINK_REQUESTS + 1)

/*
 * Have errors and warnings carry the CONTEXT that a callback adds, until
 * hrflow_context_pop().  "context" is the caller's.
 */
static inline void
hrflow_context_push(ErrorContextCallback *context, void (*callback) (void *),
					void *arg)
{
	context->callback = callback;
	context->arg = arg;
	context->previous = error_context_stack;
	error_context_stack = context;
}

static inline void
hrflow_context_pop(ErrorContextCallback *context)
{
	Assert(error_context_stack == context);
	error_context_stack = context->previous;
}

/* in settings.c */
extern void hrflow_settings_define(void);
extern const HrflowSettings *hrflow_settings_get(bool need_key);
extern const HrflowSettings *hrflow_settings_pin(const HrflowSettings *settings);
extern bool hrflow_settings_read_ahead(void);

/* in key.c */
extern const char *hrflow_key_problem(const char *value);
extern const char *hrflow_key_read(const char *path);

/* in status.c */
extern const char *hrflow_status_name(HrflowStatus status);

/* in caller.c */
extern const char *hrflow_caller_name(HrflowCaller caller);

/* in text.c */
extern const char *hrflow_text_to_utf8(const char *text);
extern const char *hrflow_text_from_utf8(const char *text, size_t length);
extern char *hrflow_text_show_utf8(const char *text, size_t length);

/* in url.c */
extern const char *hrflow_url_parse(const char *url, HrflowUrl *parsed);

/* in link.c */
extern const char *hrflow_link_bad_hosts(const char *hosts);
extern const char *hrflow_link_refusal(const char *link, const char *hosts,
									   bool *by_name);
extern char *hrflow_link_describe(const char *link);
extern bool hrflow_link_is_private(const struct sockaddr *address);

/* in clock.c */
extern int64 hrflow_clock_now(void);

/* in shared.c */
extern void hrflow_shared_define(void);

/* in stats.c */
extern void hrflow_stats_count(HrflowCounter counter, uint64 n);
extern void hrflow_stats_count_row(HrflowStatus status);
extern void hrflow_stats_flush(void);

/* in usage.c */
typedef struct HrflowUsageCounts HrflowUsageCounts;
extern HrflowUsageCounts *hrflow_usage_of(Oid role);
extern void hrflow_usage_count(HrflowUsageCounts *counts, HrflowCaller caller,
							   bool is_link);
extern void hrflow_usage_flush(void);

#endif							/* HRFLOW_BASE_H */
