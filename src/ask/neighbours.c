/*-------------------------------------------------------------------------
 *
 * neighbours.c
 *		The SQL functions that ask the neighbours of the profiles' endpoint:
 *		for one job, one text or the account.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "ask/ask.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(hrflow_job_embedding);
PG_FUNCTION_INFO_V1(hrflow_job_vector);
PG_FUNCTION_INFO_V1(hrflow_text_embedding);
PG_FUNCTION_INFO_V1(hrflow_auth);

/* The arguments of the first two, in their order. */
enum
{
	ARG_JOB_ID,
	ARG_JOB_REFERENCE,
	ARG_BOARD_ID
};

/*
 * ------------------------------------------------------------------------
 * Jobs
 * ------------------------------------------------------------------------
 */

/*
 * CONTEXT of whatever goes wrong with a job.  A reference is the caller's own
 * and stays out of the log, as a profile's does.
 */
static void
add_job_context(void *arg)
{
	const char *id = arg;

	if (id != NULL)
		errcontext("HrFlow job \"%.*s\"", pg_mbcliplen(id, strlen(id), 64), id);
	else
		errcontext("HrFlow job, by its reference");
}

/*
 * Ask for a job and, where "vector" is not NULL, fetch what its link leads to.
 * Returns the link, or NULL when there is nothing to ask for.
 */
static Jsonb *
fetch_job(FunctionCallInfo fcinfo, ArrayType **vector)
{
	ErrorContextCallback context;
	const HrflowSettings *settings;
	HrflowTransport *transport;
	HrflowJobQuery query;
	HrflowResult result;
	const char *url;

	query.job_id = hrflow_get_identifier(fcinfo, ARG_JOB_ID, "job_id");
	query.job_reference = hrflow_get_identifier(fcinfo, ARG_JOB_REFERENCE,
												"job_reference");
	query.board_id = hrflow_get_identifier(fcinfo, ARG_BOARD_ID, "board_id");
	if (query.job_id == NULL && query.job_reference == NULL)
		return NULL;

	context.callback = add_job_context;
	context.arg = PG_ARGISNULL(ARG_JOB_ID) ? NULL :
		text_to_cstring(PG_GETARG_TEXT_PP(ARG_JOB_ID));
	context.previous = error_context_stack;
	error_context_stack = &context;

	settings = hrflow_settings_get(true);
	url = hrflow_check_url(hrflow_request_job(settings->base_url,
											  settings->dialect, &query));
	transport = hrflow_transport_begin(settings, 0);
	hrflow_ask(transport, settings, HRFLOW_JOB, url, NULL, &result);
	if (vector == NULL)
		hrflow_transport_end(transport);
	else
	{
		JsonbValue *link = getIthJsonbValueFromContainer(&result.data->root, 0);

		*vector = hrflow_fetch_link(transport, settings,
									pnstrdup(link->val.string.val,
											 link->val.string.len));
	}

	error_context_stack = context.previous;
	return result.data;
}

/*
 * hrflow_job_embedding(job_id text, job_reference text, board_id text)
 *		RETURNS jsonb
 *
 * The "data" of the API's answer: a string, the link.
 */
Datum
hrflow_job_embedding(PG_FUNCTION_ARGS)
{
	Jsonb	   *data = fetch_job(fcinfo, NULL);

	if (data == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(data);
}

/*
 * hrflow_job_vector(…the same…) RETURNS real[]
 */
Datum
hrflow_job_vector(PG_FUNCTION_ARGS)
{
	ArrayType  *vector;

	if (fetch_job(fcinfo, &vector) == NULL)
		PG_RETURN_NULL();
	PG_RETURN_ARRAYTYPE_P(vector);
}

/*
 * ------------------------------------------------------------------------
 * Texts
 * ------------------------------------------------------------------------
 */

/*
 * The body that asks for the vector of a datum of type text, palloc'd; or NULL
 * and *problem, as a sentence.
 */
char *
hrflow_make_text_body(Datum input, char **problem)
{
	text	   *value = DatumGetTextPP(input);
	const char *utf8;

	if (VARSIZE_ANY_EXHDR(value) == 0)
	{
		*problem = pstrdup("The text is empty.");
		return NULL;
	}
	if (VARSIZE_ANY_EXHDR(value) <= HRFLOW_MAX_TEXT)
	{
		utf8 = hrflow_text_to_utf8(text_to_cstring(value));
		if (utf8 == NULL)
		{
			*problem = pstrdup("The text cannot be converted to UTF-8.");
			return NULL;
		}
		if (strlen(utf8) <= HRFLOW_MAX_TEXT)
			return hrflow_request_text_body(utf8);
	}
	*problem = psprintf("The text is longer than %d bytes.", HRFLOW_MAX_TEXT);
	return NULL;
}

/*
 * CONTEXT of whatever goes wrong with a text, which may be personal data.
 */
static void
add_text_context(void *arg)
{
	errcontext("HrFlow text of %d bytes", (int) VARSIZE_ANY_EXHDR(arg));
}

/*
 * hrflow_text_embedding(input text) RETURNS real[]
 */
Datum
hrflow_text_embedding(PG_FUNCTION_ARGS)
{
	text	   *input = PG_GETARG_TEXT_PP(0);
	ErrorContextCallback context;
	const HrflowSettings *settings;
	HrflowTransport *transport;
	HrflowResult result;
	char	   *problem = NULL;
	char	   *body = hrflow_make_text_body(PointerGetDatum(input), &problem);

	if (body == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("input cannot be embedded"),
				 errdetail("%s", problem)));

	context.callback = add_text_context;
	context.arg = input;
	context.previous = error_context_stack;
	error_context_stack = &context;

	settings = hrflow_settings_get(true);
	transport = hrflow_transport_begin(settings, 0);
	hrflow_ask(transport, settings, HRFLOW_TEXT,
			   hrflow_request_url(settings->base_url, HRFLOW_TEXT), body,
			   &result);
	hrflow_transport_end(transport);

	error_context_stack = context.previous;
	PG_RETURN_ARRAYTYPE_P(result.vector);
}

/*
 * ------------------------------------------------------------------------
 * The account
 * ------------------------------------------------------------------------
 */

/*
 * hrflow_auth() RETURNS jsonb
 *
 * The "data" of the API's answer.
 */
Datum
hrflow_auth(PG_FUNCTION_ARGS)
{
	const HrflowSettings *settings = hrflow_settings_get(true);
	HrflowTransport *transport = hrflow_transport_begin(settings, 0);
	HrflowResult result;

	hrflow_ask(transport, settings, HRFLOW_AUTH,
			   hrflow_request_url(settings->base_url, HRFLOW_AUTH), NULL,
			   &result);
	hrflow_transport_end(transport);
	PG_RETURN_JSONB_P(result.data);
}
