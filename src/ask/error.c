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
		ERRCODE_SUCCESSFUL_COMPLETION,
		"success", NULL
	},
	[HRFLOW_INVALID_REQUEST] = {
		ERRCODE_INVALID_PARAMETER_VALUE,
		"invalid request to %s",
		"Check the identifiers and \"fields\"."
	},
	[HRFLOW_INVALID_SOURCE] = {
		ERRCODE_INVALID_PARAMETER_VALUE,
		"HrFlow source not found",
		"Check the source id, and that the API key belongs to the source's workspace."
	},
	[HRFLOW_NOT_FOUND] = {
		ERRCODE_NO_DATA_FOUND,
		"HrFlow profile not found",
		"Check the profile's identifier and that the profile is in this source."
	},
	[HRFLOW_NO_VECTOR] = {
		ERRCODE_NO_DATA_FOUND,
		"HrFlow profile has no vector for a section asked for",
		"Ask for fewer sections in \"fields\", or for one at a time.",
		NULL,
		"vector of the link does not exist"
	},
	[HRFLOW_UNAUTHORIZED] = {
		ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
		"HrFlow API refused the API key",
		"Check hrflow_embed.api_key_file (or api_key), hrflow_embed.api_user and hrflow_embed.base_url. A key that may only write cannot read embeddings."
	},
	[HRFLOW_FORBIDDEN] = {
		ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
		"HrFlow API refused access",
		"Check that the API key may read this source."
	},
	[HRFLOW_PROXY_REFUSED] = {
		ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
		"proxy in \"hrflow_embed.proxy\" refused its user or password",
		"Check the user and the password in hrflow_embed.proxy."
	},
	[HRFLOW_OVER_QUOTA] = {
		ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"HrFlow account is over its quota",
		"Ask again when the quota is renewed, or raise it with HrFlow."
	},
	[HRFLOW_RATE_LIMITED] = {
		ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"%s limited the rate of requests",
		"Ask again later, or send fewer requests a minute."
	},
	[HRFLOW_OVER_BUDGET] = {
		ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"statement has sent as many requests to %s as it may",
		"Ask for less in one statement, or raise hrflow_embed.max_requests_per_statement. Only a superuser can raise hrflow_embed.statement_request_limit."
	},
	[HRFLOW_OVER_DAY] = {
		ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"account has sent as many requests to %s today as it may",
		"Ask again tomorrow (UTC), or have a superuser raise hrflow_embed.max_requests_per_day."
	},
	[HRFLOW_CONNECT_FAILED] = {
		ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
		"could not connect to %s",
		"Check hrflow_embed.base_url, proxy and ca_file, and that the database server may reach the network.",
		"Check hrflow_embed.proxy and ca_file, and that the database server may reach the link's host."
	},
	[HRFLOW_CONNECTION_LOST] = {
		ERRCODE_CONNECTION_FAILURE,
		"lost the connection to %s",
		"Ask again.", "Fetch the link again."
	},
	[HRFLOW_TIMEOUT] = {
		ERRCODE_CONNECTION_FAILURE,
		"%s did not answer in time",
		"Ask again, or raise hrflow_embed.request_timeout.",
		"Fetch the link again, or raise hrflow_embed.request_timeout."
	},
	[HRFLOW_INVALID_REPLY] = {
		ERRCODE_PROTOCOL_VIOLATION,
		"invalid reply from %s",
		"Check hrflow_embed.base_url: what answers there may not be the HrFlow API."
	},
	[HRFLOW_HTTP_ERROR] = {
		ERRCODE_SYSTEM_ERROR,
		"%s answered with an error",
		"Ask again later. If it lasts, check hrflow_embed.base_url."
	},
	[HRFLOW_TOO_LARGE] = {
		ERRCODE_PROGRAM_LIMIT_EXCEEDED,
		"reply from %s is too large",
		"Ask for fewer sections in \"fields\", or raise hrflow_embed.max_response_size.",
		"Raise hrflow_embed.max_response_size."
	},
	[HRFLOW_LINK_REFUSED] = {
		ERRCODE_INSUFFICIENT_PRIVILEGE,
		"link to a vector is not allowed",
		NULL,
		"Only https links to a host in hrflow_embed.link_hosts are fetched; a superuser can add one."
	},
	[HRFLOW_LINK_EXPIRED] = {
		ERRCODE_SYSTEM_ERROR,
		"link to a vector has expired or is not valid",
		NULL,
		"A link is valid for 20 minutes: ask for the profile again."
	},
	[HRFLOW_INVALID_VECTOR] = {
		ERRCODE_INVALID_BINARY_REPRESENTATION,
		"invalid vector",
		NULL, NULL
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
	{HRFLOW_JOB, HRFLOW_INVALID_REQUEST, NULL, "Check the identifiers."},
	{HRFLOW_JOB, HRFLOW_INVALID_SOURCE, "HrFlow board not found",
	"Check the board id, and that the API key belongs to the board's workspace."},
	{HRFLOW_JOB, HRFLOW_NOT_FOUND, "HrFlow job not found",
	"Check the job's identifier and that the job is in this board."},
	{HRFLOW_JOB, HRFLOW_NO_VECTOR, "HrFlow job has no vector", NULL},
	{HRFLOW_JOB, HRFLOW_FORBIDDEN, NULL,
	"Check that the API key may read this board."},
	{HRFLOW_JOB, HRFLOW_TOO_LARGE, NULL,
	"Raise hrflow_embed.max_response_size."},
	{HRFLOW_TEXT, HRFLOW_INVALID_REQUEST, NULL, "Check the text."},
	{HRFLOW_TEXT, HRFLOW_FORBIDDEN, NULL,
	"Check that the API key may embed texts."},
	{HRFLOW_TEXT, HRFLOW_TOO_LARGE, NULL,
	"Raise hrflow_embed.max_response_size."},
	{HRFLOW_AUTH, HRFLOW_INVALID_REQUEST, NULL,
	"Check hrflow_embed.base_url."},
	{HRFLOW_AUTH, HRFLOW_FORBIDDEN, NULL, "Check the API key."},
	{HRFLOW_AUTH, HRFLOW_TOO_LARGE, NULL,
	"Raise hrflow_embed.max_response_size."}
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
