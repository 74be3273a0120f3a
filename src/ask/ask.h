/*-------------------------------------------------------------------------
 *
 * ask.h
 *		Interface of the layer that makes requests to the HrFlow API and
 *		interprets its replies.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_ASK_H
#define HRFLOW_ASK_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "transport/transport.h"
#include "utils/array.h"
#include "utils/jsonb.h"

/*
 * Maximum nesting depth of the JSON in a reply.  The API's replies have at
 * most 4 levels.  The limit protects the stack, because our parser is
 * recursive.
 */
#define HRFLOW_MAX_JSON_DEPTH	64

/*
 * Maximum number of links in one reply.  Each link takes an HTTP request (not
 * counted by the request limits) and a few kB of memory while it is fetched.
 * The replies for real profiles have a few dozen links, most of them for
 * experiences and educations.
 */
#define HRFLOW_MAX_LINKS		1000

/*
 * Endpoints of the API, and the "data" that their replies must contain.
 */
typedef enum HrflowEndpoint
{
	HRFLOW_PROFILE,				/* an object that contains the links of the
								 * requested sections */
	HRFLOW_JOB,					/* a string: the link to the vector */
	HRFLOW_TEXT,				/* a list of one object, which contains the
								 * vector */
	HRFLOW_DOCUMENT,			/* a string: one or more vectors in base64 */
	HRFLOW_AUTH					/* an object */
} HrflowEndpoint;

/*
 * Parameters of a request for a profile, as NUL-terminated UTF-8 strings.
 * Parameters that are NULL are omitted from the request.
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
 * Parameters of a request for a job, in the same form as in HrflowQuery.
 */
typedef struct HrflowJobQuery
{
	const char *board_id;
	const char *job_id;
	const char *job_reference;
} HrflowJobQuery;

/*
 * An error in a call's arguments or request, to be raised with
 * hrflow_argument_raise().
 */
typedef struct HrflowProblem
{
	const char *message;		/* primary message; NULL if there is no
								 * problem */
	const char *detail;			/* or NULL */
	const char *hint;			/* or NULL */
} HrflowProblem;

/*
 * The result of an attempt.  If no request was sent, "status" and "detail" say
 * why.
 */
typedef struct HrflowResult
{
	HrflowStatus status;
	bool		is_link;		/* is this the result of fetching a link, not
								 * of a request to the API? */
	HrflowEndpoint endpoint;	/* endpoint requested; not used for links */
	bool		transient;		/* might a retry succeed? */
	bool		was_sent;		/* if no reply was received, or the reply
								 * broke off, could the server have processed
								 * the request? */
	int64		sent_at;		/* if the request was abandoned, when it was
								 * first sent, or 0 if it was not */
	int			http_status;	/* 0 if no reply was received */
	Jsonb	   *data;			/* "data" of a reply for a profile, a job or
								 * the account, if status is HRFLOW_OK */
	ArrayType  *vector;			/* the vector of a link or text, or the
								 * vectors of a document, if status is
								 * HRFLOW_OK */
	char	   *detail;			/* error detail, in one line; NULL if there is
								 * none or status is HRFLOW_OK */
} HrflowResult;

/*
 * A link to a vector.
 */
typedef struct HrflowLink
{
	const char *section;		/* in the server encoding; NULL if the link is
								 * not from a reply */
	int			item;			/* 0-based index within the section */
	const char *url;
} HrflowLink;

/* Maximum number of identifiers in a request for a profile or job. */
#define HRFLOW_NIDENTIFIERS 3

/*
 * An object to fetch with hrflow_wanted_fetch(): a profile, job, text or
 * document, each of which is called a profile below.  Strings are in the
 * server encoding, except "fields_text" and "body", which are in UTF-8.
 */
typedef struct HrflowWanted
{
	const char *source_id;		/* id of the HrFlow source; for a job, id of
								 * the board, or an empty string */
	const char *identifiers[HRFLOW_NIDENTIFIERS];	/* id, reference, e-mail
													 * address; at least one
													 * is not NULL */
	Jsonb	   *fields;			/* "fields" parameter, or NULL to omit it */
	const char *fields_text;	/* "fields" as JSON text */
	const char *body;			/* JSON to POST, or NULL to use GET */
	void	   *tag;			/* for use by the caller */
} HrflowWanted;

/*
 * Describes how to request the vectors of a store.
 */
typedef struct HrflowWantedKind
{
	HrflowEndpoint endpoint;

	/*
	 * Return the URL to request, palloc'd, or NULL if the URL would be too
	 * long.  All strings in "wanted" are in UTF-8.  This callback is NULL if
	 * the requests have a body.
	 */
	char	   *(*make_url) (const HrflowSettings *settings,
							 const HrflowWanted *wanted);
} HrflowWantedKind;

/*
 * The outcome of fetching one vector of a profile or, if "section" is NULL,
 * the outcome for the profile as a whole.  It is valid until the callback
 * "take" returns.
 */
typedef struct HrflowWantedOutcome
{
	const char *section;
	int			item;
	const HrflowResult *result;
	bool		unasked;		/* was a request omitted or abandoned for a
								 * reason unrelated to the profile? */
	bool		is_last;		/* is this the profile's last outcome? */
} HrflowWantedOutcome;

/*
 * Callbacks that provide the profiles and receive their vectors.
 */
typedef struct HrflowWantedMethods
{
	/*
	 * Return the next profile to request, or NULL if there is none at the
	 * moment.  The struct must remain valid until the profile's last outcome.
	 */
	HrflowWanted *(*next) (void *arg);

	void		(*take) (void *arg, HrflowWanted *wanted,
						 const HrflowWantedOutcome *outcome);

	/*
	 * Do other work before each wait for a reply.  Returns the time,
	 * according to hrflow_clock_now(), at which to end the wait and call this
	 * callback again.  May stop the transport or let it expire.  When an
	 * interrupt is pending, this callback is called without delay, and must
	 * process the interrupt itself.
	 */
	int64		(*work) (void *arg, HrflowTransport *transport);
} HrflowWantedMethods;

/*
 * Element type of a vector.
 */
typedef enum HrflowElement
{
	HRFLOW_REAL,				/* float4 */
	HRFLOW_HALF					/* IEEE 754 binary16, as in pgvector's halfvec */
} HrflowElement;

/*
 * Arrays that the JSON parser skipped.
 */
typedef struct HrflowSpan
{
	int			n;				/* number of arrays skipped */
	const char *start;			/* opening bracket of the last array skipped */
	size_t		length;			/* length of that array in bytes, including
								 * both brackets */
} HrflowSpan;

/* in error.c */
HRFLOW_NORETURN extern void hrflow_error_raise(const HrflowResult *result);
extern char *hrflow_error_describe(const HrflowResult *result);
extern const char *hrflow_error_hint(const HrflowResult *result);
extern int	hrflow_error_code(HrflowStatus status);
extern void hrflow_error_hint_conflict(void);

/* in ahead_plan.c */
extern void hrflow_ahead_install(void);

/* in arguments.c */
HRFLOW_NORETURN extern void hrflow_argument_raise(const HrflowProblem *problem);
extern const char *hrflow_argument_identifier(const NullableDatum *argument,
											  const char *name,
											  HrflowProblem *problem);
extern Jsonb *hrflow_argument_fields(const NullableDatum *argument,
									 const char **text,
									 HrflowProblem *problem);
extern Jsonb *hrflow_check_fields(Jsonb *fields);
extern const char *hrflow_fields_text(Jsonb *fields);
extern char *hrflow_make_text_body(Datum input, char **problem);
extern const char *hrflow_argument_item_type(const NullableDatum *argument,
											 HrflowProblem *problem);
extern char *hrflow_make_document_body(const char *item_type, Datum item,
									   bool return_sequences, char **problem);

/* in missing.c */
extern void hrflow_missing_define(void);
extern bool hrflow_missing_accept(const HrflowSettings *settings,
								  const HrflowResult *result);

/* in wanted.c */
extern bool hrflow_wanted_fetch(const HrflowWantedKind *kind,
								const HrflowSettings *settings,
								const HrflowWantedMethods *methods, void *arg,
								HrflowActivity *activity,
								HrflowResult *refusal);

/* in section.c */
#define HRFLOW_NSECTIONS 5
extern const char *const hrflow_sections[HRFLOW_NSECTIONS];
extern const char *hrflow_section_nearest(const char *name);
extern void hrflow_section_check(const char *name);
extern void hrflow_section_check_fields(Jsonb *fields);

/* in request.c */
extern char *hrflow_request_profile(const char *base_url,
									HrflowDialect dialect,
									const HrflowQuery *query);
extern char *hrflow_request_job(const char *base_url, HrflowDialect dialect,
								const HrflowJobQuery *query);
extern char *hrflow_request_text_body(const char *text);
extern char *hrflow_request_document_body(const char *item_type,
										  const char *item,
										  bool return_sequences);
extern char *hrflow_request_url(const char *base_url,
								HrflowEndpoint endpoint);

/*
 * Describes what is wrong with a payload that could not be decoded.
 */
typedef struct HrflowBadVector
{
	int			sqlerrcode;
	char	   *detail;			/* error detail, a whole sentence in ASCII,
								 * palloc'd */
} HrflowBadVector;

/* in decode.c */
extern ArrayType *hrflow_decode_payload(const char *payload, size_t length,
										int dimension, HrflowBadVector *bad);

/* in similarity.c */
extern double *hrflow_similarity_prepare(const float4 *a, int n,
										 double *norm);
extern bool hrflow_similarity_scale(const void *a, HrflowElement element,
									int n, float4 *scaled, double *norm);
extern bool hrflow_similarity_compare(const void *a, HrflowElement element,
									  const double *b, int n, double norm,
									  double *similarity, double *norms);

/* in products.c */
#define HRFLOW_PRODUCTS_ROWS	12
#define HRFLOW_PRODUCTS_STEP	16
extern void hrflow_products(const float4 *a, int na, const float4 *b, int nb,
							int n, float4 *products);

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
								  HrflowEndpoint endpoint,
								  const HrflowSettings *settings,
								  HrflowResult *result);
extern void hrflow_response_set_abandoned(const HrflowReply *reply,
										  HrflowResult *result);
extern void hrflow_response_parse_vector(const HrflowReply *reply,
										 HrflowResult *result);
extern char *hrflow_response_scrub(const char *message, const char *secret);

/* in s3.c */
extern char *hrflow_s3_read_error(const char *body, size_t length,
								  HrflowStatus *status, bool *transient);

/* in links.c */
extern bool hrflow_links_collect(Jsonb *data, Jsonb *fields,
								 const char *secret, List **links,
								 char **detail);

#endif							/* HRFLOW_ASK_H */
