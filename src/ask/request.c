/*-------------------------------------------------------------------------
 *
 * request.c
 *		Makes the URLs and bodies of requests.
 *
 * The functions in this file are pure: they do not read settings or use the
 * network.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ask.h"
#include "lib/stringinfo.h"
#include "utils/json.h"

/* Paths of the endpoints, relative to base_url. */
static const char *const paths[] = {
	[HRFLOW_PROFILE] = "/profile/embedding",
	[HRFLOW_JOB] = "/job/embedding",
	[HRFLOW_TEXT] = "/text/embedding",
	[HRFLOW_DOCUMENT] = "/document/embedding",
	[HRFLOW_AUTH] = "/auth"
};

/*
 * Names of the parameters in each dialect of the API.  For e-mail addresses in
 * the key dialect, the documentation says "email", but the Python SDK sends
 * "profile_email"; we follow the SDK.
 */
typedef struct ParameterNames
{
	const char *source;
	const char *profile;
	const char *reference;
	const char *email;
} ParameterNames;

static const ParameterNames parameter_names[] = {
	[HRFLOW_DIALECT_ID] = {
		.source = "source_id",
		.profile = "profile_id",
		.reference = "profile_reference",
		.email = "profile_email"
	},
	[HRFLOW_DIALECT_KEY] = {
		.source = "source_key",
		.profile = "key",
		.reference = "reference",
		.email = "profile_email"
	}
};

typedef struct JobParameterNames
{
	const char *board;
	const char *job;
	const char *reference;
} JobParameterNames;

static const JobParameterNames job_parameter_names[] = {
	[HRFLOW_DIALECT_ID] = {
		.board = "board_id",
		.job = "job_id",
		.reference = "job_reference"
	},
	[HRFLOW_DIALECT_KEY] = {
		.board = "board_key",
		.job = "key",
		.reference = "reference"
	}
};

/*
 * Append "value", with all bytes percent-encoded except RFC 3986's unreserved
 * characters, so that no value can end its parameter or start another one.
 */
static void
append_encoded(StringInfo url, const char *value)
{
	static const char hex[] = "0123456789ABCDEF";

	for (const unsigned char *p = (const unsigned char *) value; *p; p++)
	{
		if ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
			(*p >= '0' && *p <= '9') ||
			*p == '-' || *p == '.' || *p == '_' || *p == '~')
			appendStringInfoCharMacro(url, *p);
		else
		{
			appendStringInfoCharMacro(url, '%');
			appendStringInfoCharMacro(url, hex[*p >> 4]);
			appendStringInfoCharMacro(url, hex[*p & 15]);
		}
	}
}

/*
 * Append a parameter, unless its value is NULL or the URL is too long already.
 * *separator is '?' before the first parameter, and is changed to '&' for the
 * following ones.
 */
static void
append_parameter(StringInfo url, char *separator, const char *name,
				 const char *value)
{
	if (value == NULL)
		return;

	if (url->len > HRFLOW_MAX_URL)
		return;

	/*
	 * If the value alone exceeds the limit, encode only its beginning,
	 * because encoding could triple its size.  finish_url() will then reject
	 * the URL.
	 */
	appendStringInfoCharMacro(url, *separator);
	appendStringInfoString(url, name);
	appendStringInfoCharMacro(url, '=');
	append_encoded(url, strnlen(value, HRFLOW_MAX_URL + 1) > HRFLOW_MAX_URL ?
				   pnstrdup(value, HRFLOW_MAX_URL + 1) : value);
	*separator = '&';
}

/*
 * Return a complete URL, or NULL if it is longer than HRFLOW_MAX_URL.
 */
static char *
finish_url(StringInfo url)
{
	if (url->len <= HRFLOW_MAX_URL)
		return url->data;
	pfree(url->data);
	return NULL;
}

/*
 * Make the URL that requests the embedding of a profile, palloc'd.  Returns
 * NULL if it would be longer than HRFLOW_MAX_URL.
 */
char *
hrflow_request_profile(const char *base_url, HrflowDialect dialect,
					   const HrflowQuery *query)
{
	const ParameterNames *names = &parameter_names[dialect];
	StringInfoData url;
	char		separator = '?';

	initStringInfo(&url);
	appendStringInfoString(&url, base_url);
	appendStringInfoString(&url, paths[HRFLOW_PROFILE]);

	append_parameter(&url, &separator, names->source, query->source_id);
	append_parameter(&url, &separator, names->profile, query->profile_id);
	append_parameter(&url, &separator, names->reference,
					 query->profile_reference);
	append_parameter(&url, &separator, names->email, query->profile_email);
	append_parameter(&url, &separator, "fields", query->fields);
	return finish_url(&url);
}

/*
 * Make the URL that requests the embedding of a job, palloc'd.  Returns NULL
 * if it would be longer than HRFLOW_MAX_URL.
 */
char *
hrflow_request_job(const char *base_url, HrflowDialect dialect,
				   const HrflowJobQuery *query)
{
	const JobParameterNames *names = &job_parameter_names[dialect];
	StringInfoData url;
	char		separator = '?';

	initStringInfo(&url);
	appendStringInfoString(&url, base_url);
	appendStringInfoString(&url, paths[HRFLOW_JOB]);

	append_parameter(&url, &separator, names->board, query->board_id);
	append_parameter(&url, &separator, names->job, query->job_id);
	append_parameter(&url, &separator, names->reference,
					 query->job_reference);
	return finish_url(&url);
}

/*
 * Make the URL of an endpoint, without parameters, palloc'd.
 */
char *
hrflow_request_url(const char *base_url, HrflowEndpoint endpoint)
{
	return psprintf("%s%s", base_url, paths[endpoint]);
}

/*
 * Make the JSON that requests the embedding of a text, palloc'd.  "text" must
 * be UTF-8, and no longer than HRFLOW_MAX_TEXT; escapes can make the JSON up
 * to six times as long as "text".
 */
char *
hrflow_request_text_body(const char *text)
{
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfoString(&body, "{\"text\": ");
	escape_json(&body, text);
	appendStringInfoChar(&body, '}');
	return body.data;
}

/*
 * Make the JSON that requests the embedding of a document, palloc'd.  "item"
 * must be a JSON object in UTF-8.  According to the API's documentation,
 * return_sequences is a string.
 */
char *
hrflow_request_document_body(const char *item_type, const char *item,
							 bool return_sequences)
{
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfoString(&body, "{\"item_type\": ");
	escape_json(&body, item_type);
	appendStringInfo(&body, ", \"item\": %s, \"return_sequences\": \"%s\"}",
					 item, return_sequences ? "True" : "False");
	return body.data;
}
