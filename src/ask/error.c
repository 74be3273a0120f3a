/*-------------------------------------------------------------------------
 *
 * error.c
 *		What became of a request: text for rows, errors for callers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ask.h"

typedef struct StatusInfo
{
	int			sqlerrcode;
	const char *message;		/* of the error; lower case, one line; %s is
								 * who was asked */
	const char *hint;			/* what the caller can do; or NULL */
	const char *link_hint;		/* the same where a link was fetched */
	const char *link_message;	/* likewise; NULL: as "message" */
} StatusInfo;

/* In the order of HrflowStatus. */
static const StatusInfo status_info[] = {
	[HRFLOW_OK] = {
		.sqlerrcode = ERRCODE_SUCCESSFUL_COMPLETION,
		.message = "success"
	},
	[HRFLOW_INVALID_REQUEST] = {
		.sqlerrcode = ERRCODE_INVALID_PARAMETER_VALUE,
		.message = "invalid request to %s",
		.hint = "Check the identifiers and \"fields\"."
	},
	[HRFLOW_INVALID_SOURCE] = {
		.sqlerrcode = ERRCODE_INVALID_PARAMETER_VALUE,
		.message = "HrFlow source not found",
		.hint = "Check the source id, and that the API key belongs to the source's workspace."
	},
	[HRFLOW_NOT_FOUND] = {
		.sqlerrcode = ERRCODE_NO_DATA_FOUND,
		.message = "HrFlow profile not found",
		.hint = "Check the profile's identifier and that the profile is in this source."
	},
	[HRFLOW_NO_VECTOR] = {
		.sqlerrcode = ERRCODE_NO_DATA_FOUND,
		.message = "HrFlow profile has no vector for a section asked for",
		.hint = "Ask for fewer sections in \"fields\", or for one at a time.",
		.link_message = "vector of the link does not exist"
	},
	[HRFLOW_UNAUTHORIZED] = {
		.sqlerrcode = ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
		.message = "HrFlow API refused the API key",
		.hint = "Check hrflow_embed.api_key_file (or api_key), hrflow_embed.api_user and hrflow_embed.base_url. A key that may only write cannot read embeddings."
	},
	[HRFLOW_FORBIDDEN] = {
		.sqlerrcode = ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
		.message = "HrFlow API refused access",
		.hint = "Check that the API key may read this source."
	},
	[HRFLOW_PROXY_REFUSED] = {
		.sqlerrcode = ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
		.message = "proxy in \"hrflow_embed.proxy\" refused its user or password",
		.hint = "Check the user and the password in hrflow_embed.proxy."
	},
	[HRFLOW_OVER_QUOTA] = {
		.sqlerrcode = ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		.message = "HrFlow account is over its quota",
		.hint = "Ask again when the quota is renewed, or raise it with HrFlow."
	},
	[HRFLOW_RATE_LIMITED] = {
		.sqlerrcode = ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		.message = "%s limited the rate of requests",
		.hint = "Ask again later, or send fewer requests a minute."
	},
	[HRFLOW_OVER_BUDGET] = {
		.sqlerrcode = ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		.message = "statement has sent as many requests to %s as it may",
		.hint = "Ask for less in one statement, or raise hrflow_embed.max_requests_per_statement. Only a superuser can raise hrflow_embed.statement_request_limit."
	},
	[HRFLOW_OVER_DAY] = {
		.sqlerrcode = ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		.message = "account has sent as many requests to %s today as it may",
		.hint = "Ask again tomorrow (UTC), or have a superuser raise hrflow_embed.max_requests_per_day."
	},
	[HRFLOW_CONNECT_FAILED] = {
		.sqlerrcode = ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
		.message = "could not connect to %s",
		.hint = "Check hrflow_embed.base_url, proxy and ca_file, and that the database server may reach the network.",
		.link_hint = "Check hrflow_embed.proxy and ca_file, and that the database server may reach the link's host."
	},
	[HRFLOW_CONNECTION_LOST] = {
		.sqlerrcode = ERRCODE_CONNECTION_FAILURE,
		.message = "lost the connection to %s",
		.hint = "Ask again.",
		.link_hint = "Fetch the link again."
	},
	[HRFLOW_TIMEOUT] = {
		.sqlerrcode = ERRCODE_CONNECTION_FAILURE,
		.message = "%s did not answer in time",
		.hint = "Ask again, or raise hrflow_embed.request_timeout.",
		.link_hint = "Fetch the link again, or raise hrflow_embed.request_timeout."
	},
	[HRFLOW_INVALID_REPLY] = {
		.sqlerrcode = ERRCODE_PROTOCOL_VIOLATION,
		.message = "invalid reply from %s",
		.hint = "Check hrflow_embed.base_url: what answers there may not be the HrFlow API."
	},
	[HRFLOW_HTTP_ERROR] = {
		.sqlerrcode = ERRCODE_SYSTEM_ERROR,
		.message = "%s answered with an error",
		.hint = "Ask again later. If it lasts, check hrflow_embed.base_url."
	},
	[HRFLOW_TOO_LARGE] = {
		.sqlerrcode = ERRCODE_PROGRAM_LIMIT_EXCEEDED,
		.message = "reply from %s is too large",
		.hint = "Ask for fewer sections in \"fields\", or raise hrflow_embed.max_response_size.",
		.link_hint = "Raise hrflow_embed.max_response_size."
	},
	[HRFLOW_LINK_REFUSED] = {
		.sqlerrcode = ERRCODE_INSUFFICIENT_PRIVILEGE,
		.message = "link to a vector is not allowed",
		.link_hint = "Only https links to a host in hrflow_embed.link_hosts are fetched; a superuser can add one."
	},
	[HRFLOW_LINK_EXPIRED] = {
		.sqlerrcode = ERRCODE_SYSTEM_ERROR,
		.message = "link to a vector has expired or is not valid",
		.link_hint = "A link is valid for 20 minutes: ask for the profile again."
	},
	[HRFLOW_INVALID_VECTOR] = {
		.sqlerrcode = ERRCODE_INVALID_BINARY_REPRESENTATION,
		.message = "invalid vector"
	}
};

/*
 * What is said where the API was asked for something else than a profile.
 */
static const struct
{
	HrflowEndpoint endpoint;
	HrflowStatus status;
	const char *message;		/* NULL: as for a profile */
	const char *hint;
}			other_words[] = {

	{
		.endpoint = HRFLOW_JOB,
		.status = HRFLOW_INVALID_REQUEST,
		.hint = "Check the identifiers."
	},
	{
		.endpoint = HRFLOW_JOB,
		.status = HRFLOW_INVALID_SOURCE,
		.message = "HrFlow board not found",
		.hint = "Check the board id, and that the API key belongs to the board's workspace."
	},
	{
		.endpoint = HRFLOW_JOB,
		.status = HRFLOW_NOT_FOUND,
		.message = "HrFlow job not found",
		.hint = "Check the job's identifier and that the job is in this board."
	},
	{
		.endpoint = HRFLOW_JOB,
		.status = HRFLOW_NO_VECTOR,
		.message = "HrFlow job has no vector"
	},
	{
		.endpoint = HRFLOW_JOB,
		.status = HRFLOW_FORBIDDEN,
		.hint = "Check that the API key may read this board."
	},
	{
		.endpoint = HRFLOW_JOB,
		.status = HRFLOW_TOO_LARGE,
		.hint = "Raise hrflow_embed.max_response_size."
	},
	{
		.endpoint = HRFLOW_TEXT,
		.status = HRFLOW_INVALID_REQUEST,
		.hint = "Check the text."
	},
	{
		.endpoint = HRFLOW_TEXT,
		.status = HRFLOW_FORBIDDEN,
		.hint = "Check that the API key may embed texts."
	},
	{
		.endpoint = HRFLOW_TEXT,
		.status = HRFLOW_TOO_LARGE,
		.hint = "Raise hrflow_embed.max_response_size."
	},
	{
		.endpoint = HRFLOW_AUTH,
		.status = HRFLOW_INVALID_REQUEST,
		.hint = "Check hrflow_embed.base_url."
	},
	{
		.endpoint = HRFLOW_AUTH,
		.status = HRFLOW_FORBIDDEN,
		.hint = "Check the API key."
	},
	{
		.endpoint = HRFLOW_AUTH,
		.status = HRFLOW_TOO_LARGE,
		.hint = "Raise hrflow_embed.max_response_size."
	}
};

/*
 * The message and the hint (or NULL) of a result that went wrong.
 */
static void
find_words(const HrflowResult *result, const char **message, const char **hint)
{
	const StatusInfo *info = &status_info[result->status];

	*message = info->message;
	*hint = result->is_link ? info->link_hint : info->hint;
	if (result->is_link)
	{
		if (info->link_message != NULL)
			*message = info->link_message;
		return;
	}
	for (int i = 0; i < lengthof(other_words); i++)
	{
		if (other_words[i].endpoint != result->endpoint ||
			other_words[i].status != result->status)
			continue;
		if (other_words[i].message != NULL)
			*message = other_words[i].message;
		*hint = other_words[i].hint;
	}
}

/*
 * The primary message of a result that went wrong, palloc'd.
 */
static char *
make_message(const HrflowResult *result)
{
	const char *message;
	const char *hint;

	find_words(result, &message, &hint);
	return psprintf(message,
					result->is_link ? "the link's host" : "the HrFlow API");
}

/*
 * What went wrong in one line, for a column "error"; palloc'd.
 */
char *
hrflow_error_describe(const HrflowResult *result)
{
	char	   *message = make_message(result);

	return result->detail ? psprintf("%s: %s", message, result->detail) :
		message;
}

/*
 * What a person can do about what went wrong; or NULL.
 */
const char *
hrflow_error_hint(const HrflowResult *result)
{
	const char *message;
	const char *hint;

	find_words(result, &message, &hint);
	return hint;
}

/*
 * The SQLSTATE of a status.
 */
int
hrflow_error_code(HrflowStatus status)
{
	return status_info[status].sqlerrcode;
}

/*
 * Raise what went wrong.
 */
void
hrflow_error_raise(const HrflowResult *result)
{
	const char *message;
	const char *hint;

	Assert(result->status != HRFLOW_OK);

	find_words(result, &message, &hint);
	ereport(ERROR,
			(errcode(status_info[result->status].sqlerrcode),
			 errmsg_internal("%s", make_message(result)),
			 result->detail ? errdetail_internal("%s", result->detail) : 0,
			 hint ? errhint("%s", hint) : 0));
}
