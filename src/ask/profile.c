/*-------------------------------------------------------------------------
 *
 * profile.c
 *		The SQL functions that ask for one profile or fetch one
 *		link.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "funcapi.h"
#include "ask/ask.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(hrflow_profile_embedding);
PG_FUNCTION_INFO_V1(hrflow_profile_embedding_links);
PG_FUNCTION_INFO_V1(hrflow_fetch_vector);

/* The arguments of the functions above, in their order. */
enum
{
	ARG_SOURCE_ID,
	ARG_PROFILE_ID,
	ARG_FIELDS,
	ARG_PROFILE_REFERENCE,
	ARG_PROFILE_EMAIL
};

/*
 * How a profile was asked for.
 */
typedef struct AskedProfile
{
	const char *id;				/* or NULL */
	bool		has_reference;
} AskedProfile;

/*
 * CONTEXT of whatever goes wrong.  An id is an id; a reference or an e-mail
 * address is personal data and stays out of the log.
 */
static void
add_context(void *arg)
{
	const AskedProfile *asked = arg;

	if (asked->id != NULL)
		errcontext("HrFlow profile \"%.*s\"",
				   pg_mbcliplen(asked->id, strlen(asked->id), 64), asked->id);
	else if (asked->has_reference)
		errcontext("HrFlow profile, by its reference");
	else
		errcontext("HrFlow profile, by its e-mail");
}

/*
 * An identifier that is an argument of any of our functions, in UTF-8, or
 * NULL.  An empty one is an error.
 */
const char *
hrflow_get_identifier(FunctionCallInfo fcinfo, int argno, const char *name)
{
	const char *value;

	if (PG_ARGISNULL(argno))
		return NULL;
	value = text_to_cstring(PG_GETARG_TEXT_PP(argno));
	if (*value == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", name),
				 errhint("Pass NULL for an identifier that is not to be sent.")));
	value = hrflow_text_to_utf8(value);
	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s cannot be converted to UTF-8", name)));
	return value;
}

/*
 * The argument "fields" of any of our functions, or NULL when it is to be left
 * out.
 */
Jsonb *
hrflow_check_fields(Jsonb *fields)
{
	if (fields == NULL)
		return NULL;
	if (!JB_ROOT_IS_OBJECT(fields))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("fields must be a JSON object"),
				 errhint("For example: {\"profile\": 1, \"experiences\": [0, 2]}.")));
	return JB_ROOT_COUNT(fields) == 0 ? NULL : fields;
}

/*
 * "fields" as the JSON text that is sent, or NULL.
 */
const char *
hrflow_fields_text(Jsonb *fields)
{
	const char *text;

	if (fields == NULL)
		return NULL;
	text = hrflow_text_to_utf8(JsonbToCString(NULL, &fields->root,
											  VARSIZE(fields)));

	if (text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s cannot be converted to UTF-8", "fields")));
	return text;
}

/*
 * A URL that was made, or NULL, which is raised: it would be too long.
 */
const char *
hrflow_check_url(const char *url)
{
	if (url == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("request to the HrFlow API would be too long"),
				 errdetail("Its URL would exceed %d bytes.", HRFLOW_MAX_URL)));
	return url;
}

/*
 * Ask the API: with GET, or with POST where there is a body.  Raises what goes
 * wrong; then the transport has ended.
 */
void
hrflow_ask(HrflowTransport *transport, const HrflowSettings *settings,
		   HrflowEndpoint endpoint, const char *url, const char *body,
		   HrflowResult *result)
{
	HrflowReply *reply;

	if (body != NULL)
		hrflow_transport_post(transport, url, body, NULL);
	else
		hrflow_transport_submit(transport, HRFLOW_TO_API, url, NULL);
	do
	{
		reply = hrflow_transport_next(transport);
		hrflow_response_parse(reply, endpoint, settings->api_key, result);
	} while (hrflow_transport_retry(transport, reply, result->status,
									result->transient));

	if (result->status != HRFLOW_OK)
	{
		hrflow_transport_end(transport);
		hrflow_error_raise(result);
	}
	hrflow_transport_release(transport, reply);
}

/*
 * Ask for one profile.  Raises what goes wrong.
 */
static Jsonb *
ask(const HrflowSettings *settings, const HrflowQuery *query)
{
	const char *url = hrflow_check_url(hrflow_request_profile(settings->base_url,
															  settings->dialect,
															  query));
	HrflowTransport *transport = hrflow_transport_begin(settings, 0);
	HrflowResult result;

	hrflow_ask(transport, settings, HRFLOW_PROFILE, url, NULL, &result);
	hrflow_transport_end(transport);
	return result.data;
}

/*
 * Read the arguments and ask for the profile.  Returns NULL when there is
 * nothing to ask for.  Where "links" is not NULL, it receives the links of the
 * answer.
 */
static Jsonb *
fetch_profile(FunctionCallInfo fcinfo, List **links)
{
	ErrorContextCallback context;
	AskedProfile asked;
	const HrflowSettings *settings;
	HrflowQuery query;
	HrflowResult result = {HRFLOW_INVALID_REPLY};
	Jsonb	   *fields;
	Jsonb	   *data;

	query.source_id = hrflow_get_identifier(fcinfo, ARG_SOURCE_ID,
											"source_id");
	query.profile_id = hrflow_get_identifier(fcinfo, ARG_PROFILE_ID,
											 "profile_id");
	query.profile_reference = hrflow_get_identifier(fcinfo,
													ARG_PROFILE_REFERENCE,
													"profile_reference");
	query.profile_email = hrflow_get_identifier(fcinfo, ARG_PROFILE_EMAIL,
												"profile_email");
	fields = hrflow_check_fields(PG_ARGISNULL(ARG_FIELDS) ? NULL :
								 PG_GETARG_JSONB_P(ARG_FIELDS));
	query.fields = hrflow_fields_text(fields);

	if (query.source_id == NULL ||
		(query.profile_id == NULL && query.profile_reference == NULL &&
		 query.profile_email == NULL))
		return NULL;

	asked.id = PG_ARGISNULL(ARG_PROFILE_ID) ? NULL :
		text_to_cstring(PG_GETARG_TEXT_PP(ARG_PROFILE_ID));
	asked.has_reference = query.profile_reference != NULL;
	context.callback = add_context;
	context.arg = &asked;
	context.previous = error_context_stack;
	error_context_stack = &context;

	settings = hrflow_settings_get(true);
	data = ask(settings, &query);
	if (links != NULL &&
		!hrflow_response_links(data, fields, settings->api_key, links,
							   &result.detail))
		hrflow_error_raise(&result);

	error_context_stack = context.previous;
	return data;
}

/*
 * hrflow_profile_embedding(source_id text, profile_id text, fields jsonb,
 *							profile_reference text, profile_email text)
 *		RETURNS jsonb
 *
 * The "data" of the API's answer.
 */
Datum
hrflow_profile_embedding(PG_FUNCTION_ARGS)
{
	Jsonb	   *data = fetch_profile(fcinfo, NULL);

	if (data == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(data);
}

/*
 * hrflow_profile_embedding_links(…the same…)
 *		RETURNS TABLE (section text, item int, link text)
 */
Datum
hrflow_profile_embedding_links(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	List	   *links;
	ListCell   *cell;

	InitMaterializedSRF(fcinfo, 0);

	if (fetch_profile(fcinfo, &links) == NULL)
		return (Datum) 0;

	foreach(cell, links)
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
 * A link, and the settings whose key the API might have put into it.
 */
typedef struct LinkToFetch
{
	const char *link;
	const HrflowSettings *settings;
} LinkToFetch;

/*
 * CONTEXT of whatever goes wrong with a link.
 */
static void
add_link_context(void *arg)
{
	const LinkToFetch *fetched = arg;

	errcontext("HrFlow link %s",
			   hrflow_response_scrub(hrflow_link_describe(fetched->link),
									 fetched->settings->api_key));
}

/*
 * Fetch a link's vector.  It is the last that the transport does, which may
 * be NULL: then one is begun, if need be.  Raises what goes wrong.
 */
ArrayType *
hrflow_fetch_link(HrflowTransport *transport, const HrflowSettings *settings,
				  char *link)
{
	LinkToFetch fetched = {link, settings};
	ErrorContextCallback context;
	HrflowReply *reply;
	HrflowResult result = {.status = HRFLOW_LINK_REFUSED, .is_link = true};
	bool		by_name;

	context.callback = add_link_context;
	context.arg = &fetched;
	context.previous = error_context_stack;
	error_context_stack = &context;

	result.detail = unconstify(char *,
							   hrflow_link_refusal(link, settings->link_hosts,
												   &by_name));
	if (result.detail == NULL)
	{
		if (transport == NULL)
			transport = hrflow_transport_begin(settings, 0);
		hrflow_transport_submit(transport, by_name ? HRFLOW_TO_LINK :
								HRFLOW_TO_GUARDED_LINK, link, NULL);
		do
		{
			reply = hrflow_transport_next(transport);
			hrflow_response_parse_vector(reply, &result);
		} while (hrflow_transport_retry(transport, reply, result.status,
										result.transient));
	}
	if (transport != NULL)
		hrflow_transport_end(transport);
	if (result.status != HRFLOW_OK)
		hrflow_error_raise(&result);

	error_context_stack = context.previous;
	return result.vector;
}

/*
 * hrflow_fetch_vector(link text) RETURNS real[]
 */
Datum
hrflow_fetch_vector(PG_FUNCTION_ARGS)
{
	char	   *link = text_to_cstring(PG_GETARG_TEXT_PP(0));

	PG_RETURN_ARRAYTYPE_P(hrflow_fetch_link(NULL, hrflow_settings_get(false),
											link));
}
