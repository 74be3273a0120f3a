/*
 * standin.h
 *		A stand-in for the HrFlow API and its object store, for tests.
 *
 * It follows what is known of the API; README.md describes our choices where
 * nothing is known.
 */
#ifndef STANDIN_H
#define STANDIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <microhttpd.h>

/* Command-line options. */
typedef struct Options
{
	const char *keys[32];
	int			nkeys;
	const char *dir;
	const char *link_base;		/* NULL: scheme and host of the request */
	int			http_port;
	int			https_port;
	int			dim;
	int			link_ttl;		/* seconds */
	int			latency;		/* milliseconds */
	long		quota;			/* number of requests; -1: no quota */
	long		rate;			/* requests per rate_seconds; 0: no limit */
	double		rate_seconds;
	bool		free_refusals;	/* do not count refused requests */
	const char *retry_after;	/* of a refusal; NULL: until the next request is admitted */
	const char *rate_headers;	/* prefix of the headers; NULL: none */
	int			serve;			/* requests served at the same time; 0: no limit */
	long		memory;			/* bytes per connection */
	bool		close;			/* close each connection after its first reply */
	long		log;			/* number of entries to keep */
} Options;

extern Options options;

/* One parameter of a query, decoded. */
typedef struct Parameter
{
	char	   *name;
	char	   *value;
} Parameter;

#define MAX_PARAMETERS 32

/* The faults that an identifier requests. */
typedef struct Fault
{
	bool		any;
	bool		bad;			/* contains an unknown name */
	bool		own;			/* does a step of the script also have the
								 * faults of the identifier? */
	long		first;			/* 0: always */
	long		latency;		/* milliseconds */
	long		hold;			/* number of replies to hold; 0: do not hold it */
	bool		silent;
	long		status;			/* 0: none */
	long		code;			/* 0: same as the status */
	char	   *message;
	bool		html;
	bool		empty;
	char	   *type;
	bool		notype;
	bool		charset;
	bool		truncated;
	long		deep;
	bool		badutf8;
	bool		nul;
	char	   *body;
	size_t		body_length;
	char	   *data;
	size_t		data_length;
	long		big;
	bool		gzip;
	char	   *coding;			/* names separated by '+'; NULL: none */
	long		members;		/* number of gzip members; 0: one */
	long		bomb;
	long		empty_blocks;	/* size of empty gzip blocks, in bytes */
	char	   *redirect;
	bool		redirected;
	long		retry_after;	/* LONG_MIN: none */
	long		retry_after_date;	/* LONG_MIN: none */
	char	   *retry_after_text;
	char	   *left;			/* RateLimit-Remaining */
	char	   *left_reset;		/* RateLimit-Reset */
	long		left_reset_date;	/* RateLimit-Reset as Unix time, from now;
									 * LONG_MIN: none */
	bool		close;
	long		break_at;		/* -1: none */
	bool		reset;
	long		stall;			/* -1: none */
	long		slow;			/* milliseconds; 0: none */
	bool		drop;
	bool		opaque;
	bool		echo;
	long		headers;
	long		header_size;

	/* faults of the store */
	char	   *error;			/* error code */
	char	   *dtype;
	bool		fortran;
	char	   *shape;
	int			version;
	char	   *encoding;
	bool		nan;
	bool		cut;
	bool		trailing;
} Fault;

/* An HTTP request, from its URI to its completion. */
typedef struct Request
{
	struct MHD_Connection *connection;
	bool		https;
	bool		control;
	bool		begun;			/* is it counted as in flight? */
	bool		delayed;		/* has it been delayed? */
	bool		over_rate;
	long		rate_left;		/* requests */
	double		rate_wait;		/* milliseconds; 0: none */
	double		begun_at;		/* milliseconds since the start */
	unsigned long begun_after_resets;	/* of the log */
	unsigned long number;		/* in the order of arrival, from 1 */
	unsigned long in_flight;	/* requests in flight on arrival, including itself */
	char	   *uri;
	char	   *path;			/* raw */
	const char *query;			/* raw, within uri */
	const char *method;
	unsigned long connection_number;
	Parameter	parameters[MAX_PARAMETERS];
	int			nparameters;
	Fault		fault;
	char	   *body_in;
	size_t		body_in_length;
	char	   *text;			/* the text in the body, decoded, or what
								 * identifies its document; NULL: none */
	char	   *item_type;		/* type of the items in the document; NULL: not
								 * a string */
	bool		sequences;		/* a vector for each part of the document */
} Request;

/* A growing string. */
typedef struct Buffer
{
	char	   *data;
	size_t		length;
	size_t		size;
} Buffer;

extern void buffer_add(Buffer *buffer, const void *data, size_t length);
extern void buffer_printf(Buffer *buffer, const char *format,...)
			__attribute__((format(printf, 2, 3)));

/* in fault.c */
extern void fault_parse(const char *identifier, bool store, Fault *fault);
extern void fault_free(Fault *fault);
extern bool fault_applies(const char *identifier, bool store, long first);
extern void fault_reset(void);
extern size_t base64url_decode(const char *text, char *out);

/* in coding.c */
extern char *coding_apply(const Fault *fault, const char *data, size_t length,
						  Buffer *out);

/* in limit.c */
extern void limit_admit(Request *request);
extern void limit_add_headers(struct MHD_Response *response,
							  const Request *request);
extern long limit_queue(long milliseconds);
extern void limit_add_step(const char *faults, long count, long milliseconds);
extern char *limit_next_fault(bool store);
extern void limit_reset(void);

/* in serve.c */
extern bool serve_start(const char *certificate, const char *key);
extern void serve_stop(void);
extern int	serve_http_port(void);
extern int	serve_https_port(void);
extern void serve_after(Request *request, long milliseconds);
extern enum MHD_Result answer(Request *request, int status, const char *type,
							  const void *body, size_t length);

/* in api.c */
extern enum MHD_Result api_handle(Request *request);
extern enum MHD_Result store_handle(Request *request);
extern enum MHD_Result vector_handle(Request *request);
extern const char *request_parameter(const Request *request, const char *name);
extern const char *identifier_of(const Request *request);

/* in body.c */
extern void body_read(Request *request);

/* in vector.c */
extern void vector_make(const char *profile, const char *section, int item,
						float *vector);
extern void vector_write(const float *vector, Buffer *out);
extern void vector_encode(const float *vector, const Fault *fault,
						  Buffer *out);
extern void vector_encode_base64(const float *elements, int n, Buffer *out);
extern uint64_t hash_text(const char *text, uint64_t seed);
extern const char *occupation_of(const char *identifier);

/* in log.c */
extern void log_start(void);
extern double log_now(void);
extern void log_request(Request *request, int status);
extern void log_begin(Request *request);
extern void log_end(Request *request);
extern void log_bytes(size_t n);
extern void log_connection_closed(void);
extern unsigned long log_connection_opened(void);
extern void log_reset(void);
extern void log_stats(Buffer *out);
extern void log_entries(Buffer *out, unsigned long since);
extern long log_api_requests(void);

#endif							/* STANDIN_H */
