/*-------------------------------------------------------------------------
 *
 * ask.h
 *		What the API is asked, and what its answers mean.
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
 * How deep a reply may nest.  An answer of the API is 3 deep; jsonb_in would
 * recurse, so the depth is bounded before it is called.
 */
#define HRFLOW_MAX_JSON_DEPTH	64

/*
 * The most links in one answer.  A profile has a few dozen experiences and
 * educations; each link takes a request and some kB while it is fetched.
 */
#define HRFLOW_MAX_LINKS		1000

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
 * Why the arguments of a call cannot be sent: an error that is not yet raised.
 */
typedef struct HrflowProblem
{
	const char *message;		/* primary message; NULL when there is no
								 * problem */
	const char *detail;			/* or NULL */
	const char *hint;			/* or NULL */
} HrflowProblem;

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
 * A profile whose vectors hrflow_wanted_fetch() is to fetch.  Server encoding.
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
 * What becomes of one vector of a profile, or of the profile as a whole: then
 * "section" is NULL.  The result lives until the callback returns.
 */
typedef struct HrflowWantedOutcome
{
	const char *section;
	int			item;
	const HrflowResult *result;
	bool		unasked;		/* it was not asked for to the end, for a
								 * reason that is not the profile's */
	bool		is_last;		/* nothing more comes of this profile */
} HrflowWantedOutcome;

/*
 * Where the profiles come from and the vectors go.
 */
typedef struct HrflowWantedMethods
{
	/*
	 * The next profile to ask for, or NULL for none at present.  It stays
	 * where it is until its last outcome.
	 */
	HrflowWanted *(*next) (void *arg);

	void		(*take) (void *arg, HrflowWanted *wanted,
						 const HrflowWantedOutcome *outcome);

	/*
	 * Do other work between replies.  Returns when to be called again at the
	 * latest, by our clock.  May stop the transport.  It is called at once
	 * when an interrupt is pending, which is left to it.
	 */
	int64		(*work) (void *arg, HrflowTransport *transport);
} HrflowWantedMethods;

/*
 * The type of a vector's elements.
 */
typedef enum HrflowElement
{
	HRFLOW_REAL,				/* float4 */
	HRFLOW_HALF					/* IEEE 754 binary16, as in pgvector's halfvec */
} HrflowElement;

/*
 * Arrays of JSON that were left where they are.
 */
typedef struct HrflowSpan
{
	int			n;				/* how many there were */
	const char *start;			/* of the last one: its first bracket */
	size_t		length;			/* bytes, both brackets included */
} HrflowSpan;

/* in error.c */
HRFLOW_NORETURN extern void hrflow_error_raise(const HrflowResult *result);
extern char *hrflow_error_describe(const HrflowResult *result);
extern const char *hrflow_error_hint(const HrflowResult *result);
extern int	hrflow_error_code(HrflowStatus status);

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

/* in missing.c */
extern void hrflow_missing_define(void);
extern bool hrflow_missing_accept(const HrflowSettings *settings,
								  const HrflowResult *result);

/* in wanted.c */
extern bool hrflow_wanted_fetch(const HrflowWantedMethods *methods, void *arg,
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
extern char *hrflow_request_url(const char *base_url,
								HrflowEndpoint endpoint);

/* in decode.c */
extern ArrayType *hrflow_vector_decode(const char *payload, size_t length,
									   char **problem);

/* in similarity.c */
extern double *hrflow_similarity_prepare(const float4 *a, int n,
										 double *norm);
extern bool hrflow_similarity_compare(const void *a, HrflowElement element,
									  const double *b, int n, double norm,
									  double *similarity, double *norms);

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
extern char *hrflow_response_scrub(const char *message, const char *secret);

/* in s3.c */
extern char *hrflow_s3_read_error(const char *body, size_t length,
								  HrflowStatus *status, bool *transient);

/* in links.c */
extern bool hrflow_links_collect(Jsonb *data, Jsonb *fields,
								 const char *secret, List **links,
								 char **detail);

#endif							/* HRFLOW_ASK_H */
