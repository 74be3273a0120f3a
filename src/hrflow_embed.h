/*-------------------------------------------------------------------------
 *
 * hrflow_embed.h
 *		The map: types, limits and prototypes, grouped by file.
 *
 * Data flows one way:
 *
 *	SQL function -> request -> transport -> response -> rows
 *
 * request.c and response.c are pure: what they make depends on their
 * arguments alone.  Only transport.c knows libcurl.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_EMBED_H
#define HRFLOW_EMBED_H

#include "postgres.h"

#include <sys/socket.h>

#include "compat.h"
#include "nodes/pg_list.h"
#include "utils/array.h"
#include "utils/jsonb.h"

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
 * How deep a reply may nest.  An answer of the API is 3 deep; jsonb_in would
 * recurse, so the depth is bounded before it is called.
 */
#define HRFLOW_MAX_JSON_DEPTH	64

/*
 * All the headers of one reply together, in bytes.  Servers send 1 to 2 kB.
 */
#define HRFLOW_MAX_HEADERS		(64 * 1024)

/*
 * Bodies held in memory by a backend at any time, in bytes: 64 MB.  It is
 * also the upper end of hrflow_embed.max_response_size, so that one reply
 * always fits.
 */
#define HRFLOW_MAX_BUFFERED		(64 * 1024 * 1024)

/*
 * The most links in one answer.  A profile has a few dozen experiences and
 * educations; each link takes a request and some kB while it is fetched.
 */
#define HRFLOW_MAX_LINKS		1000

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
 * What became of a request.  The order is that of the table in status.c.
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
	HRFLOW_OVER_QUOTA,
	HRFLOW_RATE_LIMITED,
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

typedef enum HrflowDialect
{
	HRFLOW_DIALECT_ID,			/* source_id, profile_id, ... */
	HRFLOW_DIALECT_KEY			/* source_key, key, ... */
} HrflowDialect;

/*
 * What the API is asked for, and so what a reply's data must be.
 */
typedef enum HrflowEndpoint
{
	HRFLOW_PROFILE,				/* an object: links by section */
	HRFLOW_JOB,					/* a string: the link */
	HRFLOW_TEXT,				/* a list of one object, which has the vector */
	HRFLOW_AUTH					/* an object */
} HrflowEndpoint;

/*
 * The settings as one statement sees them.  Strings are never NULL unless
 * said so; they live until the next hrflow_settings_get().
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
	int			max_attempts;	/* tries of one request, the first included */
	int			max_concurrency;	/* requests in flight */
	int			max_requests_per_minute;	/* of the API; 0: no limit */
	size_t		max_response_size;	/* bytes, after decompression */
} HrflowSettings;

/*
 * What to ask for.  UTF-8, NUL-terminated; NULL is left out of the request.
 */
typedef struct HrflowQuery
{
	const char *source_id;
	const char *profile_id;
	const char *profile_reference;
	const char *profile_email;
	const char *fields;			/* JSON text */
} HrflowQuery;

/*
 * Which job to ask for, likewise.
 */
typedef struct HrflowJobQuery
{
	const char *board_id;
	const char *job_id;
	const char *job_reference;
} HrflowJobQuery;

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
 * Where a request goes: what it carries, and what limits it.
 */
typedef enum HrflowTarget
{
	HRFLOW_TO_API,				/* with the key, at the account's rate */
	HRFLOW_TO_LINK,				/* to a host that link_hosts names */
	HRFLOW_TO_GUARDED_LINK		/* to one that a pattern lets through: not to
								 * a private address */
} HrflowTarget;

#define HRFLOW_IS_LINK(target) ((target) != HRFLOW_TO_API)

/*
 * One try's outcome, as the transport hands it out.
 */
typedef struct HrflowReply
{
	HrflowStatus status;		/* HRFLOW_OK: a whole reply came, of whatever
								 * kind; else what went wrong on the way */
	bool		transient;		/* another try may do better */
	const char *detail;			/* what went wrong, in a few words; or NULL */
	int			http_status;	/* 0 when none came */
	const char *content_type;	/* NULL when none came */
	const char *body;			/* a NUL follows its last byte */
	size_t		length;			/* bytes of body */
	int			retry_after;	/* seconds the server asked for; 0 when none */
	int			attempts;		/* tries so far, this one included */
	bool		stopped;		/* no try came to its end: the transport was
								 * stopped, or the batch's time is up */
	bool		expired;		/* it is the latter */
	HrflowTarget target;
	void	   *tag;			/* the submitter's */
} HrflowReply;

/*
 * A reply understood.
 */
typedef struct HrflowResult
{
	HrflowStatus status;
	bool		is_link;		/* a link was fetched, else the API asked */
	HrflowEndpoint endpoint;	/* of the API */
	bool		transient;		/* another try may do better */
	int			http_status;	/* 0 when none came */
	Jsonb	   *data;			/* the API's data when status is HRFLOW_OK */
	ArrayType  *vector;			/* the link's or the text's vector when status
								 * is HRFLOW_OK */
	char	   *detail;			/* one line for a person; NULL when HRFLOW_OK */
} HrflowResult;

/*
 * One element of an answer's data.
 */
typedef struct HrflowLink
{
	char	   *section;		/* server encoding */
	int			item;			/* 0-based within the section */
	char	   *url;
} HrflowLink;

/*
 * A profile whose vectors hrflow_batch_fetch() is to fetch.  Server encoding.
 */
typedef struct HrflowWanted
{
	const char *source_id;
	const char *identifiers[3]; /* id, reference, e-mail; at least one */
	Jsonb	   *fields;			/* NULL: left out */
	const char *fields_text;	/* the same in UTF-8 */
	void	   *tag;			/* the caller's */
} HrflowWanted;

/*
 * Takes one vector of a profile, or what became of the profile as a whole:
 * then "section" is NULL.  "unasked" says that it was not asked for to the
 * end, for a reason that is not the profile's.  The result lives until this
 * returns.
 */
typedef void (*HrflowSink) (HrflowWanted *wanted, const char *section,
							int item, const HrflowResult *result,
							bool unasked);

/*
 * Arrays of JSON that were left where they are.
 */
typedef struct HrflowSpan
{
	int			n;				/* how many there were */
	const char *start;			/* of the last one: its first bracket */
	size_t		length;			/* bytes, both brackets included */
} HrflowSpan;

typedef struct HrflowTransport HrflowTransport;

/*
 * What is counted, in the order of the columns of hrflow_embed_stats.
 */
typedef enum HrflowCounter
{
	HRFLOW_CALLS,				/* calls of our functions that reach the
								 * network */
	HRFLOW_REQUESTS,			/* tries, the first ones included */
	HRFLOW_RETRIES,				/* tries that were not the first */
	HRFLOW_RATE_LIMITS,			/* replies that were 429 */
	HRFLOW_BYTES_RECEIVED,		/* of bodies, as decompressed */
	HRFLOW_WAITED_USEC,			/* microseconds asleep */
	HRFLOW_CONNECTIONS_OPENED,
	HRFLOW_CONNECTIONS_REUSED	/* requests that found one open */
} HrflowCounter;

#define HRFLOW_NCOUNTERS (HRFLOW_CONNECTIONS_REUSED + 1)

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

/* in status.c */
extern const char *hrflow_status_name(HrflowStatus status);
HRFLOW_NORETURN extern void hrflow_status_raise(const HrflowResult *result);

extern char *hrflow_status_describe(const HrflowResult *result);

/* in hrflow_embed.c */
extern Jsonb *hrflow_check_fields(Jsonb *fields);
extern const char *hrflow_fields_text(Jsonb *fields);
extern const char *hrflow_get_identifier(FunctionCallInfo fcinfo, int argno,
										 const char *name);
extern const char *hrflow_check_url(const char *url);
extern void hrflow_ask(HrflowTransport *transport,
					   const HrflowSettings *settings, HrflowEndpoint endpoint,
					   const char *url, const char *body,
					   HrflowResult *result);
extern ArrayType *hrflow_fetch_link(HrflowTransport *transport,
									const HrflowSettings *settings,
									char *link);

/* in neighbours.c */
extern char *hrflow_make_text_body(Datum input, char **problem);

/* in batch.c */
extern bool hrflow_batch_fetch(HrflowWanted *wanted, int nwanted,
							   int time_limit, HrflowSink sink,
							   HrflowResult *refusal);

/* in settings.c */
extern void hrflow_settings_define(void);
extern const HrflowSettings *hrflow_settings_get(bool need_key);

/* in text.c */
extern const char *hrflow_text_to_utf8(const char *text);
extern const char *hrflow_text_from_utf8(const char *text, size_t length);
extern char *hrflow_text_show_utf8(const char *text, size_t length);

/* in request.c */
extern char *hrflow_request_profile(const char *base_url,
									HrflowDialect dialect,
									const HrflowQuery *query);
extern char *hrflow_request_job(const char *base_url, HrflowDialect dialect,
								const HrflowJobQuery *query);
extern char *hrflow_request_text_body(const char *text);
extern char *hrflow_request_url(const char *base_url,
								HrflowEndpoint endpoint);
extern const char *hrflow_request_parse_url(const char *url,
											HrflowUrl *parsed);

/* in link.c */
extern const char *hrflow_link_bad_hosts(const char *hosts);
extern const char *hrflow_link_refusal(const char *link, const char *hosts,
									   bool *by_name);
extern char *hrflow_link_describe(const char *link);
extern bool hrflow_link_is_private(const struct sockaddr *address);

/* in transport.c */
extern HrflowTransport *hrflow_transport_begin(const HrflowSettings *settings,
											   int time_limit);
extern void hrflow_transport_submit(HrflowTransport *transport,
									HrflowTarget target, const char *url,
									void *tag);
extern void hrflow_transport_post(HrflowTransport *transport, const char *url,
								  const char *body, void *tag);
extern int	hrflow_transport_room(HrflowTransport *transport);
extern int	hrflow_transport_room_for_links(HrflowTransport *transport);
extern void hrflow_transport_stop(HrflowTransport *transport);
extern bool hrflow_transport_expired(HrflowTransport *transport);
extern void hrflow_transport_work(HrflowTransport *transport);
extern HrflowReply *hrflow_transport_next(HrflowTransport *transport);
extern bool hrflow_transport_retry(HrflowTransport *transport,
								   HrflowReply *reply,
								   const HrflowResult *result);
extern void hrflow_transport_release(HrflowTransport *transport,
									 HrflowReply *reply);
extern void hrflow_transport_end(HrflowTransport *transport);

/* in shared.c */
extern void hrflow_shared_define(void);

/* in rate.c */
extern int64 hrflow_rate_now(void);
extern uint64 hrflow_rate_account(const HrflowSettings *settings);
extern HrflowAdmission hrflow_rate_admit(uint64 account, int limit,
										 int64 probe_time, int64 *again);
extern bool hrflow_rate_pause(uint64 account, int64 delay, bool was_probe);
extern void hrflow_rate_end_probe(uint64 account, bool passed);

/* in stats.c */
extern void hrflow_stats_count(HrflowCounter counter, uint64 n);
extern void hrflow_stats_count_row(HrflowStatus status);
extern void hrflow_stats_flush(void);

/* in poller.c */
extern int	hrflow_poller_open(void);
extern bool hrflow_poller_watch(int poller, int fd, bool readable,
								bool writable);
extern bool hrflow_poller_opened(int fd);
extern bool hrflow_poller_closed(int fd);
extern bool hrflow_poller_is_connection(int fd);
extern int	hrflow_poller_find_silent(int local_port, int64 since);
extern int	hrflow_poller_wait(int poller, HrflowPollerEvent *events, int max);

/* in vector.c */
extern ArrayType *hrflow_vector_decode(const char *payload, size_t length,
									   char **problem);
extern double hrflow_vector_norm(const float4 *a, int n);
extern bool hrflow_vector_compare(const float4 *a, const float4 *b, int n,
								  double norm, double *similarity,
								  double *norms);

/* in json.c */
extern JsonbValue *hrflow_json_parse(const char *text, const char *converted,
									 bool *too_deep);
extern JsonbValue *hrflow_json_parse_without(const char *text,
											 const char *converted,
											 const char *name,
											 HrflowSpan *left_out,
											 bool *too_deep);

/* in response.c */
extern void hrflow_response_parse(const HrflowReply *reply,
								  HrflowEndpoint endpoint, const char *secret,
								  HrflowResult *result);
extern void hrflow_response_parse_vector(const HrflowReply *reply,
										 HrflowResult *result);
extern bool hrflow_response_links(Jsonb *data, Jsonb *fields,
								  const char *secret, List **links,
								  char **detail);
extern char *hrflow_response_scrub(const char *message, const char *secret);

#endif							/* HRFLOW_EMBED_H */
