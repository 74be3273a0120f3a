/*-------------------------------------------------------------------------
 *
 * base.h
 *		Declarations of the lowest layer, apart from those in activity.h and
 *		shared.h.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_BASE_H
#define HRFLOW_BASE_H

#include "postgres.h"

#include <sys/socket.h>

#include "compat.h"

/*
 * Maximum length of a URL, in bytes.  Most servers and load balancers accept
 * no more than 8 to 64 kB, so a request with a longer URL is unlikely to
 * succeed; libcurl's own limit (8 MB) is far higher.
 */
#define HRFLOW_MAX_URL			(64 * 1024)

/*
 * Maximum length of an API key or an account e-mail address, in bytes.
 * Current keys have 37 characters, and an e-mail address has at most 254.
 */
#define HRFLOW_MAX_KEY			512

/*
 * Maximum total size of the header lines received in one attempt, in bytes.
 * Typical headers take 1 to 2 kB.
 */
#define HRFLOW_MAX_HEADERS		(64 * 1024)

/*
 * Maximum number of requests that a transport has in flight before one of its
 * requests has succeeded (or has been answered with 404).  If the server
 * refuses all requests, for example because of a wrong key, about this many
 * are wasted.
 */
#define HRFLOW_MAX_WASTED 32

/*
 * Upper limit of hrflow_embed.max_concurrency.  Each request in flight may
 * need a connection, and thus a file descriptor; max_files_per_process is 1000
 * by default.
 */
#define HRFLOW_MAX_CONCURRENCY 256

/*
 * Default of hrflow_embed.connect_timeout, in milliseconds.
 */
#define HRFLOW_CONNECT_TIMEOUT 5000

/*
 * Limit on the total size of the buffers in which a backend receives the
 * bodies of replies, in bytes (64 MB); see enlarge_body() for exceptions.  It
 * is also the upper limit of hrflow_embed.max_response_size.
 */
#define HRFLOW_MAX_BUFFERED		(64 * 1024 * 1024)

/*
 * Maximum length of a text or a document to embed, in bytes of UTF-8 (1 MB,
 * the size of a thick book).  Models read only a small part of that, and
 * servers commonly reject larger bodies.
 */
#define HRFLOW_MAX_TEXT			(1024 * 1024)

/*
 * Maximum length of a server's message quoted in one of ours, in bytes.  A few
 * sentences fit.
 */
#define HRFLOW_MAX_MESSAGE		500

/* Microseconds per millisecond.  hrflow_clock_now() counts microseconds. */
#define HRFLOW_MSEC		INT64CONST(1000)

/* Microseconds per second. */
#define HRFLOW_SEC		INT64CONST(1000000)

/* A time later than any other. */
#define HRFLOW_NEVER	PG_INT64_MAX

/*
 * Outcome of a request.  status.c defines the names shown to users.
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
	HRFLOW_OVER_BUDGET,			/* the statement's limit on requests is
								 * reached */
	HRFLOW_OVER_DAY,			/* the account's daily limit on requests is
								 * reached */
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
	HRFLOW_BY_DOCUMENT_EMBEDDING,
	HRFLOW_BY_DOCUMENT_EMBEDDINGS,
	HRFLOW_BY_AUTH,
	HRFLOW_BY_REFRESH
} HrflowCaller;

#define HRFLOW_NCALLERS (HRFLOW_BY_REFRESH + 1)

typedef enum HrflowDialect
{
	HRFLOW_DIALECT_ID,			/* parameters are named source_id, profile_id,
								 * ... */
	HRFLOW_DIALECT_KEY			/* parameters are named source_key, key, ... */
} HrflowDialect;

/*
 * A snapshot of the settings, or a copy made by hrflow_settings_copy().  A
 * snapshot is immutable, and remains valid at least until the memory context
 * that was current in hrflow_settings_get() or hrflow_settings_pin() is reset.
 * No string is NULL.  Only settings.c may create this struct, because it is
 * part of a larger one.
 */
typedef struct HrflowSettings
{
	uint64		serial;			/* unique to each snapshot, but shared by its
								 * copies */
	const char *api_key;		/* valid as the value of a header; empty only
								 * if the caller did not need a key */
	const char *api_user;		/* value of the header X-USER-EMAIL; empty to
								 * omit the header */
	const char *base_url;		/* without trailing slashes */
	HrflowDialect dialect;
	const char *ca_file;		/* path; empty to use the system's
								 * certificates */
	const char *proxy;			/* URL; empty to use no proxy */
	const char *link_hosts;		/* comma-separated hosts and patterns */
	int			connect_timeout;	/* maximum time to connect in one attempt,
									 * in milliseconds */
	int			request_timeout;	/* maximum duration of one attempt, from
									 * its start to the last byte of the
									 * reply, in milliseconds; see
									 * excuse_absence() for an exception */
	int			batch_timeout;	/* maximum duration of a batch, in
								 * milliseconds, or 0 for no limit */
	int			refresh_debounce;	/* milliseconds to wait before a profile
									 * that changed while it was being fetched
									 * is fetched again */
	int			max_attempts;	/* maximum number of attempts per request,
								 * including the first; see
								 * hrflow_rate_report(), end_attempt() and
								 * restart_transfer() for attempts that do not
								 * count */
	bool		missing_is_null;	/* should functions that return one value
									 * return NULL, rather than raise an
									 * error, if a profile, job or vector is
									 * missing? */
	int			max_concurrency;	/* maximum number of requests in flight
									 * per backend */
	int			max_requests_per_minute;	/* requests per minute for one
											 * account, excluding links, or 0
											 * for no limit */
	int			max_requests_per_statement; /* maximum number of requests,
											 * excluding links: the lower of
											 * max_requests_per_statement and
											 * statement_request_limit,
											 * ignoring zeros, or 0 for no
											 * limit */
	int			max_requests_per_day;	/* requests per day for one account,
										 * excluding links, or 0 for no limit */
	size_t		max_response_size;	/* maximum size of the body of a reply
									 * after decompression, in bytes */
	int			vector_dimension;	/* dimension of the vectors of the
									 * account's model, or 0 if unknown */
	bool		allow_in_shard_queries; /* are batches allowed in queries that
										 * Citus runs on shards? */
	bool		http2;			/* offer HTTP/2 over TLS? */
} HrflowSettings;

/*
 * The parts of a URL.  The strings point into the URL; the host is not
 * NUL-terminated.
 */
typedef struct HrflowUrl
{
	bool		https;			/* is the scheme https rather than http? */
	const char *host;			/* host; without brackets if it is an IPv6
								 * address */
	int			host_length;
	bool		loopback;		/* is the host localhost, ::1, or in
								 * 127.0.0.0/8? */
	int			port;			/* explicit port, or the scheme's default */
	const char *path;			/* everything after host and port, including
								 * query and fragment; may be empty */
} HrflowUrl;

/*
 * Counters, as shown by hrflow_embed_stats.  All but the last are in the order
 * of its columns.
 */
typedef enum HrflowCounter
{
	HRFLOW_CALLS,				/* calls of our functions that use the
								 * network; a scan that issues calls ahead
								 * counts as one call, and a refresh as one
								 * call or more */
	HRFLOW_REQUESTS,			/* requests sent to the API and for links,
								 * including retries */
	HRFLOW_RETRIES,				/* requests that the transport or libcurl has
								 * sent again */
	HRFLOW_RATE_LIMITS,			/* replies that refuse a request because of a
								 * rate limit */
	HRFLOW_BYTES_RECEIVED,		/* size of the reply bodies before
								 * decompression */
	HRFLOW_WAITED_USEC,			/* time that backends waited for the network,
								 * the rate limit or a retry, in microseconds */
	HRFLOW_CONNECTIONS_OPENED,
	HRFLOW_CONNECTIONS_REUSED,	/* replies received over a connection that was
								 * already open */
	HRFLOW_LINK_REQUESTS		/* requests for links, including retries */
} HrflowCounter;

#define HRFLOW_NCOUNTERS (HRFLOW_LINK_REQUESTS + 1)

/*
 * Push an error context callback, to be popped with hrflow_context_pop().  The
 * caller provides the memory for "context".
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
extern HrflowSettings *hrflow_settings_copy(const HrflowSettings *settings);
extern bool hrflow_settings_read_ahead(void);
extern int	hrflow_settings_max_erased(void);

/* in refused.c */
extern void hrflow_refused_begin(void);
extern void hrflow_refused_find(void);
extern void hrflow_refused_check(void);

/* in key.c */
extern const char *hrflow_key_problem(const char *value);
extern const char *hrflow_key_read(const char *path);

/* in status.c */
extern bool hrflow_status_concerns_all(HrflowStatus status);
extern const char *hrflow_status_name(HrflowStatus status);

/* in caller.c */
extern const char *hrflow_caller_name(HrflowCaller caller);

/* in text.c */
extern const char *hrflow_text_to_utf8(const char *text);
extern const char *hrflow_text_from_utf8(const char *text, size_t length);
extern char *hrflow_text_show_utf8(const char *text, size_t length);

/* in url.c */
extern const char *hrflow_url_parse(const char *url, HrflowUrl *parsed);
extern const char *hrflow_url_bad_base(const char *value);
extern const char *hrflow_url_bad_proxy(const char *value);

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
