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
 * Maximum nesting depth of the JSON in a reply.  Answers of the API nest 3
 * deep.  The limit exists because our parser recurses.
 */
#define HRFLOW_MAX_JSON_DEPTH	64

/*
 * Maximum number of links in one answer.  A profile has a few dozen
 * experiences and educations.  Each link costs a request, and a few kB of
 * memory while it is fetched.
 */
#define HRFLOW_MAX_LINKS		1000

/*
 * Endpoints of the API, and the "data" that their answers must contain.
 */
typedef enum HrflowEndpoint
{
	HRFLOW_PROFILE,				/* an object with the links of each section */
	HRFLOW_JOB,					/* a string, the link */
	HRFLOW_TEXT,				/* a list of one object that contains the
								 * vector */
	HRFLOW_DOCUMENT,			/* a string, base64 of one or more vectors */
	HRFLOW_AUTH					/* an object */
} HrflowEndpoint;

/*
 * Parameters of a request for a profile, as NUL-terminated UTF-8.  Parameters
 * that are NULL are omitted from the request.
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
 * Parameters of a request for a job, as in HrflowQuery.
 */
typedef struct HrflowJobQuery
{
	const char *board_id;
	const char *job_id;
	const char *job_reference;
} HrflowJobQuery;

/*
 * An error about the arguments of a call that has not been raised yet.
 */
typedef struct HrflowProblem
{
	const char *message;		/* primary message; NULL if there is no
								 * problem */
	const char *detail;			/* or NULL */
	const char *hint;			/* or NULL */
} HrflowProblem;

/*
 * The result of interpreting a reply.
 */
typedef struct HrflowResult
{
	HrflowStatus status;
	bool		is_link;		/* was this a link rather than a request to
								 * the API? */
	HrflowEndpoint endpoint;	/* endpoint of the API; not used for links */
	bool		transient;		/* might a retry succeed? */
	bool		was_sent;		/* if there is no reply, may the server have
								 * processed the request? */
	int			http_status;	/* 0: no reply was received */
	Jsonb	   *data;			/* "data" of the API's answer if status is
								 * HRFLOW_OK */
	ArrayType  *vector;			/* vector of a link or a text, or vectors of a
								 * document, if status is HRFLOW_OK */
	char	   *detail;			/* error detail, in one line; NULL if status
								 * is HRFLOW_OK */
} HrflowResult;

/*
 * One link of an answer.
 */
typedef struct HrflowLink
{
	char	   *section;		/* in the server encoding */
	int			item;			/* 0-based within the section */
	char	   *url;
} HrflowLink;

/* Maximum number of identifiers in a request for a profile or job. */
#define HRFLOW_NIDENTIFIERS 3

/*
 * A profile, job, text or document for hrflow_wanted_fetch() to fetch.
 * Strings are in the server encoding, except "body".
 */
typedef struct HrflowWanted
{
	const char *source_id;		/* id of the source, or of the board, which
								 * may be empty */
	const char *identifiers[HRFLOW_NIDENTIFIERS];	/* id, reference, e-mail
													 * address; at least one
													 * is not NULL */
	Jsonb	   *fields;			/* NULL: omitted */
	const char *fields_text;	/* "fields" as UTF-8 text */
	const char *body;			/* JSON to POST; NULL: use GET */
	void	   *tag;			/* for use by the caller */
} HrflowWanted;

/*
 * Describes the requests for the contents of a store.
 */
typedef struct HrflowWantedKind
{
	HrflowEndpoint endpoint;

	/*
	 * Returns the URL of a request, palloc'd, or NULL if it would be too
	 * long.  All strings are in UTF-8.  NULL if requests have a body.
	 */
	char	   *(*make_url) (const HrflowSettings *settings,
							 const HrflowWanted *wanted);
} HrflowWantedKind;

/*
 * The outcome of fetching one vector of a profile, or, if "section" is NULL,
 * the profile as a whole.  "result" lives until the callback returns.
 */
typedef struct HrflowWantedOutcome
{
	const char *section;
	int			item;
	const HrflowResult *result;
	bool		unasked;		/* requests were omitted or abandoned, for a
								 * reason unrelated to the profile */
	bool		is_last;		/* last outcome of this profile */
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
	 * Do other work between replies.  Returns the time of hrflow_clock_now()
	 * by which to be called again.  May stop the transport.  It is called at
	 * once when an interrupt is pending, and must process that itself.
	 */
	int64		(*work) (void *arg, HrflowTransport *transport);
} HrflowWantedMethods;

/*
 * Type of the elements of a vector.
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
 * Why a payload could not be decoded.
 */
typedef struct HrflowBadVector
{
	int			sqlerrcode;
	char	   *detail;			/* a palloc'd sentence in ASCII */
} HrflowBadVector;

/* in decode.c */
extern ArrayType *hrflow_vector_decode(const char *payload, size_t length,
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
