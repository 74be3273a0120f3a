/*-------------------------------------------------------------------------
 *
 * single.c
 *		Implements the SQL functions for a single profile, job, text, document
 *		or link, and for the account.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "ask/call.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(hrflow_profile_embedding);
PG_FUNCTION_INFO_V1(hrflow_profile_embedding_links);
PG_FUNCTION_INFO_V1(hrflow_job_embedding);
PG_FUNCTION_INFO_V1(hrflow_job_vector);
PG_FUNCTION_INFO_V1(hrflow_text_embedding);
PG_FUNCTION_INFO_V1(hrflow_document_embedding);
PG_FUNCTION_INFO_V1(hrflow_fetch_vector);
PG_FUNCTION_INFO_V1(hrflow_auth);

/* Argument numbers of the functions for profiles. */
enum
{
	PROFILE_ARG_SOURCE_ID,
	PROFILE_ARG_PROFILE_ID,
	PROFILE_ARG_FIELDS,
	PROFILE_ARG_REFERENCE,
	PROFILE_ARG_EMAIL
};

/* Argument numbers of the functions for jobs. */
enum
{
	JOB_ARG_JOB_ID,
	JOB_ARG_REFERENCE,
	JOB_ARG_BOARD_ID
};

/* Argument numbers of the function for documents. */
enum
{
	DOCUMENT_ARG_ITEM_TYPE,
	DOCUMENT_ARG_ITEM,
	DOCUMENT_ARG_RETURN_SEQUENCES
};

/*
 * Return an identifier in the server encoding, or NULL if the argument is
 * NULL.
 */
static const char *
get_id(const NullableDatum *argument)
{
	return argument->isnull ? NULL : TextDatumGetCString(argument->value);
}

/*
 * ------------------------------------------------------------------------
 * Profiles
 * ------------------------------------------------------------------------
 */

static void
read_profile_arguments(HrflowCall *call, const NullableDatum *args)
{
	HrflowQuery *query = &call->query.profile;
	HrflowProblem *problem = &call->problem;

	query->source_id =
		hrflow_argument_identifier(&args[PROFILE_ARG_SOURCE_ID],
								   "source_id", problem);
	query->profile_id =
		hrflow_argument_identifier(&args[PROFILE_ARG_PROFILE_ID],
								   "profile_id", problem);
	query->profile_reference =
		hrflow_argument_identifier(&args[PROFILE_ARG_REFERENCE],
								   "profile_reference", problem);
	query->profile_email =
		hrflow_argument_identifier(&args[PROFILE_ARG_EMAIL],
								   "profile_email", problem);
	call->fields = hrflow_argument_fields(&args[PROFILE_ARG_FIELDS],
										  &query->fields, problem);
	call->id = get_id(&args[PROFILE_ARG_PROFILE_ID]);

	if (query->source_id == NULL ||
		(query->profile_id == NULL && query->profile_reference == NULL &&
		 query->profile_email == NULL))
		call->state = HRFLOW_CALL_EMPTY;
}

static char *
make_profile_url(HrflowCall *call)
{
	return hrflow_request_profile(call->settings->base_url,
								  call->settings->dialect,
								  &call->query.profile);
}

/*
 * Add a context line about an identifier that is personal data and must not be
 * logged.  People who have the identifier can recognize it by the first 4
 * bytes of its SHA-256, which replace the conversions in "format".
 */
static void
add_fingerprint_context(const char *format, const char *identifier)
{
	bytea	   *data = (bytea *) cstring_to_text(identifier);
	bytea	   *hash = DatumGetByteaPP(DirectFunctionCall1(sha256_bytea,
														   PointerGetDatum(data)));
	const unsigned char *bytes = (const unsigned char *) VARDATA_ANY(hash);

	errcontext(format, bytes[0], bytes[1], bytes[2], bytes[3]);
}

/*
 * Add a context line about the profile.  Its id may be logged, but not its
 * reference or e-mail address.
 */
static void
add_profile_context(const HrflowCall *call)
{
	if (call->id != NULL)
		errcontext("HrFlow profile \"%.*s\"",
				   pg_mbcliplen(call->id, strlen(call->id), 64), call->id);
	else if (call->query.profile.profile_reference != NULL)
		add_fingerprint_context("HrFlow profile whose reference has a SHA-256 beginning with %02x%02x%02x%02x",
								call->query.profile.profile_reference);
	else
		add_fingerprint_context("HrFlow profile whose e-mail address has a SHA-256 beginning with %02x%02x%02x%02x",
								call->query.profile.profile_email);
}

/*
 * ------------------------------------------------------------------------
 * Jobs
 * ------------------------------------------------------------------------
 */

static void
read_job_arguments(HrflowCall *call, const NullableDatum *args)
{
	HrflowJobQuery *query = &call->query.job;
	HrflowProblem *problem = &call->problem;

	query->job_id = hrflow_argument_identifier(&args[JOB_ARG_JOB_ID],
											   "job_id", problem);
	query->job_reference = hrflow_argument_identifier(&args[JOB_ARG_REFERENCE],
													  "job_reference",
													  problem);
	query->board_id = hrflow_argument_identifier(&args[JOB_ARG_BOARD_ID],
												 "board_id", problem);
	call->id = get_id(&args[JOB_ARG_JOB_ID]);

	if (query->job_id == NULL && query->job_reference == NULL)
		call->state = HRFLOW_CALL_EMPTY;
}

static char *
make_job_url(HrflowCall *call)
{
	return hrflow_request_job(call->settings->base_url,
							  call->settings->dialect, &call->query.job);
}

/*
 * Add a context line about the job.  Its id may be logged, but not its
 * reference.
 */
static void
add_job_context(const HrflowCall *call)
{
	if (call->id != NULL)
		errcontext("HrFlow job \"%.*s\"",
				   pg_mbcliplen(call->id, strlen(call->id), 64), call->id);
	else
		errcontext("HrFlow job identified by its reference");
}

/*
 * ------------------------------------------------------------------------
 * Texts, documents, links and the account
 * ------------------------------------------------------------------------
 */

static void
read_text_argument(HrflowCall *call, const NullableDatum *args)
{
	char	   *detail = NULL;

	if (args[0].isnull)
	{
		call->state = HRFLOW_CALL_EMPTY;
		return;
	}
	call->body = hrflow_make_text_body(args[0].value, &detail);
	call->length = toast_raw_datum_size(args[0].value) - VARHDRSZ;
	if (call->body == NULL)
	{
		call->problem.message = "argument \"input\" cannot be embedded";
		call->problem.detail = detail;
	}
}

/*
 * Add a context line about the text, which must not be logged because it may
 * contain personal data.
 */
static void
add_text_context(const HrflowCall *call)
{
	errcontext("HrFlow text of %d bytes", call->length);
}

static void
read_document_arguments(HrflowCall *call, const NullableDatum *args)
{
	const char *item_type;
	char	   *detail = NULL;

	if (args[DOCUMENT_ARG_ITEM_TYPE].isnull || args[DOCUMENT_ARG_ITEM].isnull ||
		args[DOCUMENT_ARG_RETURN_SEQUENCES].isnull)
	{
		call->state = HRFLOW_CALL_EMPTY;
		return;
	}
	item_type = hrflow_argument_item_type(&args[DOCUMENT_ARG_ITEM_TYPE],
										  &call->problem);
	if (item_type == NULL)
		return;
	call->returns_sequences =
		DatumGetBool(args[DOCUMENT_ARG_RETURN_SEQUENCES].value);
	call->body = hrflow_make_document_body(item_type,
										   args[DOCUMENT_ARG_ITEM].value,
										   call->returns_sequences, &detail);
	if (call->body == NULL)
	{
		call->problem.message = "argument \"item\" cannot be embedded";
		call->problem.detail = detail;
		return;
	}
	call->length = strlen(call->body);
}

/*
 * Return the URL for documents.  If a vector for each part of the document is
 * requested, but the dimension by which the vectors would have to be separated
 * is not configured, return NULL rather than send a request that would have to
 * be paid for.
 */
static char *
make_document_url(HrflowCall *call)
{
	if (call->returns_sequences && call->settings->vector_dimension == 0)
	{
		call->problem.message = "dimension of the account's vectors is unknown";
		call->problem.detail = "The API concatenates the vectors of a document, so they can be separated only by their dimension.";
		call->problem.hint = "Set \"hrflow_embed.vector_dimension\", for example to the value of cardinality(hrflow_text_embedding('a')).";
		return NULL;
	}
	return hrflow_request_url(call->settings->base_url, HRFLOW_DOCUMENT);
}

/*
 * Add a context line about the document, which must not be logged because it
 * may contain personal data.
 */
static void
add_document_context(const HrflowCall *call)
{
	errcontext("HrFlow document in a request of %d bytes", call->length);
}

static void
read_link_argument(HrflowCall *call, const NullableDatum *args)
{
	if (args[0].isnull)
		call->state = HRFLOW_CALL_EMPTY;
	else
		call->link = TextDatumGetCString(args[0].value);
}

static void
read_no_arguments(HrflowCall *call, const NullableDatum *args)
{
}

static char *
make_endpoint_url(HrflowCall *call)
{
	return hrflow_request_url(call->settings->base_url,
							  call->function->endpoint);
}

/*
 * ------------------------------------------------------------------------
 * The SQL functions
 * ------------------------------------------------------------------------
 */

static const HrflowFunction functions[] = {
	{
		.entry = hrflow_profile_embedding,
		.caller = HRFLOW_BY_PROFILE_EMBEDDING,
		.needs_key = true,
		.endpoint = HRFLOW_PROFILE,
		.read = read_profile_arguments,
		.make_url = make_profile_url,
		.add_context = add_profile_context
	},
	{
		.entry = hrflow_profile_embedding_links,
		.caller = HRFLOW_BY_PROFILE_EMBEDDING_LINKS,
		.needs_key = true,
		.endpoint = HRFLOW_PROFILE,
		.read = read_profile_arguments,
		.make_url = make_profile_url,
		.add_context = add_profile_context
	},
	{
		.entry = hrflow_job_embedding,
		.caller = HRFLOW_BY_JOB_EMBEDDING,
		.needs_key = true,
		.endpoint = HRFLOW_JOB,
		.read = read_job_arguments,
		.make_url = make_job_url,
		.add_context = add_job_context
	},
	{
		.entry = hrflow_job_vector,
		.caller = HRFLOW_BY_JOB_VECTOR,
		.needs_key = true,
		.endpoint = HRFLOW_JOB,
		.follows_link = true,
		.returns_vector = true,
		.read = read_job_arguments,
		.make_url = make_job_url,
		.add_context = add_job_context
	},
	{
		.entry = hrflow_text_embedding,
		.caller = HRFLOW_BY_TEXT_EMBEDDING,
		.needs_key = true,
		.endpoint = HRFLOW_TEXT,
		.returns_vector = true,
		.read = read_text_argument,
		.make_url = make_endpoint_url,
		.add_context = add_text_context
	},
	{
		.entry = hrflow_document_embedding,
		.caller = HRFLOW_BY_DOCUMENT_EMBEDDING,
		.needs_key = true,
		.endpoint = HRFLOW_DOCUMENT,
		.returns_vector = true,
		.read = read_document_arguments,
		.make_url = make_document_url,
		.add_context = add_document_context
	},
	{
		.entry = hrflow_fetch_vector,
		.caller = HRFLOW_BY_FETCH_VECTOR,
		.returns_vector = true,
		.read = read_link_argument
	},
	{
		.entry = hrflow_auth,
		.caller = HRFLOW_BY_AUTH,
		.needs_key = true,
		.endpoint = HRFLOW_AUTH,
		.read = read_no_arguments,
		.make_url = make_endpoint_url
	}
};

/*
 * Find the description of a SQL function by its C function.  Returns NULL for
 * functions that are not in the table above.
 */
const HrflowFunction *
hrflow_single_find(PGFunction entry)
{
	for (int i = 0; i < lengthof(functions); i++)
	{
		if (functions[i].entry == entry)
			return &functions[i];
	}
	return NULL;
}

static Datum
run_function(FunctionCallInfo fcinfo, PGFunction entry)
{
	HrflowCall	call;

	return hrflow_call_run(&call, hrflow_single_find(entry), fcinfo,
						   &fcinfo->isnull);
}

/*
 * hrflow_profile_embedding(source_id text, profile_id text, fields jsonb,
 * 						  profile_reference text, profile_email text)
 * 		RETURNS jsonb
 *
 * Returns the "data" of the API's reply.
 */
Datum
hrflow_profile_embedding(PG_FUNCTION_ARGS)
{
	return run_function(fcinfo, hrflow_profile_embedding);
}

/*
 * hrflow_profile_embedding_links(source_id text, profile_id text,
 *								  fields jsonb, profile_reference text,
 *								  profile_email text)
 *		RETURNS TABLE (section text, item int, link text)
 */
Datum
hrflow_profile_embedding_links(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	HrflowCall	call;
	bool		isnull;
	ListCell   *cell;

	InitMaterializedSRF(fcinfo, 0);

	hrflow_call_run(&call, hrflow_single_find(hrflow_profile_embedding_links),
					fcinfo, &isnull);
	if (isnull)
		return (Datum) 0;

	foreach(cell, hrflow_call_links(&call))
	{
		HrflowLink *link = lfirst(cell);
		Datum		values[3];
		bool		nulls[3] = {false, false, false};

		values[0] = CStringGetTextDatum(link->section);
		values[1] = Int32GetDatum(link->item);
		values[2] = CStringGetTextDatum(link->url);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * hrflow_job_embedding(job_id text, job_reference text, board_id text)
 * 		RETURNS jsonb
 *
 * Returns the "data" of the API's reply: a string, the link to the vector.
 */
Datum
hrflow_job_embedding(PG_FUNCTION_ARGS)
{
	return run_function(fcinfo, hrflow_job_embedding);
}

/*
 * hrflow_job_vector(job_id text, job_reference text, board_id text)
 *		RETURNS real[]
 */
Datum
hrflow_job_vector(PG_FUNCTION_ARGS)
{
	return run_function(fcinfo, hrflow_job_vector);
}

/*
 * hrflow_text_embedding(input text) RETURNS real[]
 */
Datum
hrflow_text_embedding(PG_FUNCTION_ARGS)
{
	return run_function(fcinfo, hrflow_text_embedding);
}

/*
 * hrflow_document_embedding(item_type text, item jsonb,
 *							 return_sequences boolean)
 *		RETURNS real[]
 */
Datum
hrflow_document_embedding(PG_FUNCTION_ARGS)
{
	return run_function(fcinfo, hrflow_document_embedding);
}

/*
 * hrflow_fetch_vector(link text) RETURNS real[]
 */
Datum
hrflow_fetch_vector(PG_FUNCTION_ARGS)
{
	return run_function(fcinfo, hrflow_fetch_vector);
}

/*
 * hrflow_auth() RETURNS jsonb
 *
 * Returns the "data" of the API's reply.
 */
Datum
hrflow_auth(PG_FUNCTION_ARGS)
{
	return run_function(fcinfo, hrflow_auth);
}
