/*-------------------------------------------------------------------------
 *
 * error.c
 *		Converts results to error messages, both in the rows of a batch and
 *		in errors that are raised.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "ask/ask.h"

typedef struct StatusInfo
{
	int			sqlerrcode;
	const char *message;		/* primary message */
	const char *hint;			/* or NULL */
	const char *link_hint;		/* hint about a link, or NULL */
	const char *link_message;	/* message about a link, or NULL to use
								 * "message" */
} StatusInfo;

static const StatusInfo status_info[] = {
	[HRFLOW_OK] = {
		.sqlerrcode = ERRCODE_SUCCESSFUL_COMPLETION,
		.message = "success"
	},
	[HRFLOW_INVALID_REQUEST] = {
		.sqlerrcode = ERRCODE_INVALID_PARAMETER_VALUE,
		.message = "invalid request to the HrFlow API",
		.hint = "Check the identifiers and \"fields\".",
		.link_message = "invalid request to the link's host"
	},
	[HRFLOW_INVALID_SOURCE] = {
		.sqlerrcode = ERRCODE_INVALID_PARAMETER_VALUE,
		.message = "HrFlow source not found",
		.hint = "Check the source id, and that the API key belongs to the source's workspace."
	},
	[HRFLOW_NOT_FOUND] = {
		.sqlerrcode = ERRCODE_NO_DATA_FOUND,
		.message = "HrFlow profile not found",
		.hint = "Check the profile's identifier and that the profile is in the specified source."
	},
	[HRFLOW_NO_VECTOR] = {
		.sqlerrcode = ERRCODE_NO_DATA_FOUND,
		.message = "HrFlow profile has no vector for a requested section",
		.hint = "Request fewer sections in \"fields\", or one at a time.",
		.link_hint = "Request the profile or job again to get a new link.",
		.link_message = "vector of the link does not exist"
	},
	[HRFLOW_UNAUTHORIZED] = {
		.sqlerrcode = ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
		.message = "HrFlow API refused the API key",
		.hint = "Check \"hrflow_embed.api_key_file\" (or \"hrflow_embed.api_key\"), \"hrflow_embed.api_user\" and \"hrflow_embed.base_url\".  A key that may only write cannot read embeddings."
	},
	[HRFLOW_FORBIDDEN] = {
		.sqlerrcode = ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
		.message = "HrFlow API refused access",
		.hint = "Check that the API key may read the source."
	},
	[HRFLOW_PROXY_REFUSED] = {
		.sqlerrcode = ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
		.message = "proxy in \"hrflow_embed.proxy\" refused the user or password",
		.hint = "Check the user and the password in \"hrflow_embed.proxy\".",
		.link_hint = "Check the user and the password in \"hrflow_embed.proxy\"."
	},
	[HRFLOW_OVER_QUOTA] = {
		.sqlerrcode = ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		.message = "HrFlow account is over its quota",
		.hint = "Try again when the quota is renewed, or ask HrFlow to raise it."
	},
	[HRFLOW_RATE_LIMITED] = {
		.sqlerrcode = ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		.message = "the HrFlow API limited the rate of requests",
		.hint = "Try again later, or send fewer requests per minute.",
		.link_hint = "Fetch the link again later, or lower \"hrflow_embed.max_concurrency\".",
		.link_message = "the link's host limited the rate of requests"
	},
	[HRFLOW_OVER_BUDGET] = {
		.sqlerrcode = ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		.message = "statement reached its limit of requests to the HrFlow API",
		.hint = "Send fewer requests in one statement, or raise \"hrflow_embed.max_requests_per_statement\".  Only a superuser can raise \"hrflow_embed.statement_request_limit\".",
		.link_message = "statement reached its limit of requests to the link's host"
	},
	[HRFLOW_OVER_DAY] = {
		.sqlerrcode = ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		.message = "account reached its daily limit of requests to the HrFlow API",
		.hint = "Try again tomorrow (UTC), or ask a superuser to raise \"hrflow_embed.max_requests_per_day\".",
		.link_message = "account reached its daily limit of requests to the link's host"
	},
	[HRFLOW_CONNECT_FAILED] = {
		.sqlerrcode = ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
		.message = "could not connect to the HrFlow API",
		.hint = "Check \"hrflow_embed.base_url\", \"hrflow_embed.proxy\" and \"hrflow_embed.ca_file\", and that the database server can reach the network.",
		.link_hint = "Check \"hrflow_embed.proxy\" and \"hrflow_embed.ca_file\", and that the database server can reach the link's host.",
		.link_message = "could not connect to the link's host"
	},
	[HRFLOW_CONNECTION_LOST] = {
		.sqlerrcode = ERRCODE_CONNECTION_FAILURE,
		.message = "lost the connection to the HrFlow API",
		.hint = "Try again.",
		.link_hint = "Fetch the link again.",
		.link_message = "lost the connection to the link's host"
	},
	[HRFLOW_TIMEOUT] = {
		.sqlerrcode = ERRCODE_CONNECTION_FAILURE,
		.message = "the HrFlow API did not answer in time",
		.hint = "Try again, or raise \"hrflow_embed.request_timeout\".",
		.link_hint = "Fetch the link again, or raise \"hrflow_embed.request_timeout\".",
		.link_message = "the link's host did not answer in time"
	},
	[HRFLOW_INVALID_REPLY] = {
		.sqlerrcode = ERRCODE_PROTOCOL_VIOLATION,
		.message = "invalid reply from the HrFlow API",
		.hint = "Check that \"hrflow_embed.base_url\" is the URL of the HrFlow API.",
		.link_hint = "Check that the link is one that the HrFlow API has returned.",
		.link_message = "invalid reply from the link's host"
	},
	[HRFLOW_HTTP_ERROR] = {
		.sqlerrcode = ERRCODE_SYSTEM_ERROR,
		.message = "the HrFlow API returned an error",
		.hint = "Try again later.  If the error persists, check \"hrflow_embed.base_url\".",
		.link_hint = "Fetch the link again later.  If the error persists, request the profile or job again to get a new link.",
		.link_message = "the link's host returned an error"
	},
	[HRFLOW_TOO_LARGE] = {
		.sqlerrcode = ERRCODE_PROGRAM_LIMIT_EXCEEDED,
		.message = "reply from the HrFlow API is too large",
		.hint = "Request fewer sections in \"fields\", or raise \"hrflow_embed.max_response_size\".",
		.link_hint = "Raise \"hrflow_embed.max_response_size\".",
		.link_message = "reply from the link's host is too large"
	},
	[HRFLOW_LINK_REFUSED] = {
		.sqlerrcode = ERRCODE_INSUFFICIENT_PRIVILEGE,
		.message = "link to a vector is not allowed",
		.link_hint = "Use an https link to a host in \"hrflow_embed.link_hosts\", or ask a superuser to add the host."
	},
	[HRFLOW_LINK_EXPIRED] = {
		.sqlerrcode = ERRCODE_SYSTEM_ERROR,
		.message = "link to a vector has expired or is not valid",
		.link_hint = "Links are valid for 20 minutes.  Request the profile or job again to get a new one."
	},
	[HRFLOW_INVALID_VECTOR] = {
		.sqlerrcode = ERRCODE_INVALID_BINARY_REPRESENTATION,
		.message = "invalid vector",
		.hint = "Try again.  If the error persists, report it to HrFlow.",
		.link_hint = "Check that the link is one that the HrFlow API has returned."
	}
};

/*
 * Messages and hints for endpoints other than HRFLOW_PROFILE, where they
 * differ from status_info.
 */
static const struct
{
	HrflowEndpoint endpoint;
	HrflowStatus status;
	const char *message;		/* NULL to use the message in status_info */
	const char *hint;			/* NULL for no hint */
}			endpoint_messages[] = {

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
		.hint = "Check the job's identifier and, if a board was specified, that the job is in it."
	},
	{
		.endpoint = HRFLOW_JOB,
		.status = HRFLOW_NO_VECTOR,
		.message = "HrFlow job has no vector"
	},
	{
		.endpoint = HRFLOW_JOB,
		.status = HRFLOW_FORBIDDEN,
		.hint = "Check that the API key may read the board."
	},
	{
		.endpoint = HRFLOW_JOB,
		.status = HRFLOW_TOO_LARGE,
		.hint = "Raise \"hrflow_embed.max_response_size\"."
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
		.hint = "Raise \"hrflow_embed.max_response_size\"."
	},
	{
		.endpoint = HRFLOW_DOCUMENT,
		.status = HRFLOW_INVALID_REQUEST,
		.hint = "Check the item and its type."
	},
	{
		.endpoint = HRFLOW_DOCUMENT,
		.status = HRFLOW_FORBIDDEN,
		.hint = "Check that the API key may embed documents."
	},
	{
		.endpoint = HRFLOW_DOCUMENT,
		.status = HRFLOW_INVALID_VECTOR,
		.hint = "Check \"hrflow_embed.vector_dimension\".  If the error persists, report it to HrFlow."
	},
	{
		.endpoint = HRFLOW_DOCUMENT,
		.status = HRFLOW_TOO_LARGE,
		.hint = "Raise \"hrflow_embed.max_response_size\"."
	},
	{
		.endpoint = HRFLOW_AUTH,
		.status = HRFLOW_INVALID_REQUEST,
		.hint = "Check \"hrflow_embed.base_url\"."
	},
	{
		.endpoint = HRFLOW_AUTH,
		.status = HRFLOW_FORBIDDEN,
		.hint = "Check the API key."
	},
	{
		.endpoint = HRFLOW_AUTH,
		.status = HRFLOW_TOO_LARGE,
		.hint = "Raise \"hrflow_embed.max_response_size\"."
	}
};

/*
 * Look up the primary message and the hint (or NULL) for a result that is not
 * HRFLOW_OK.
 */
static void
find_messages(const HrflowResult *result, const char **message, const char **hint)
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
	for (int i = 0; i < lengthof(endpoint_messages); i++)
	{
		if (endpoint_messages[i].endpoint != result->endpoint ||
			endpoint_messages[i].status != result->status)
			continue;
		if (endpoint_messages[i].message != NULL)
			*message = endpoint_messages[i].message;
		*hint = endpoint_messages[i].hint;
	}
}

/*
 * Return the error message and detail in one line, as in the column "error";
 * palloc'd.
 */
char *
hrflow_error_describe(const HrflowResult *result)
{
	const char *message;
	const char *hint;

	find_messages(result, &message, &hint);
	return result->detail ? psprintf("%s: %s", message, result->detail) :
		pstrdup(message);
}

/*
 * Return the hint for a result that is not HRFLOW_OK, or NULL.
 */
const char *
hrflow_error_hint(const HrflowResult *result)
{
	const char *message;
	const char *hint;

	find_messages(result, &message, &hint);
	return hint;
}

/*
 * Return the SQLSTATE for a status.
 */
int
hrflow_error_code(HrflowStatus status)
{
	return status_info[status].sqlerrcode;
}

/*
 * Raise a result that is not HRFLOW_OK as an error.
 */
void
hrflow_error_raise(const HrflowResult *result)
{
	const char *message;
	const char *hint;

	Assert(result->status != HRFLOW_OK);

	find_messages(result, &message, &hint);
	ereport(ERROR,
			(errcode(status_info[result->status].sqlerrcode),
			 errmsg_internal("%s", message),
			 result->detail ? errdetail_internal("%s", result->detail) : 0,
			 hint ? errhint("%s", hint) : 0));
}

/*
 * If the error is a recovery conflict on a standby, add a hint.  Must be
 * called from an error context callback.  We do not try to return the rows for
 * the replies received so far, because PostgreSQL repeats the cancel until the
 * snapshot has been released.
 */
void
hrflow_error_hint_conflict(void)
{
	if (geterrcode() == ERRCODE_T_R_SERIALIZATION_FAILURE &&
		RecoveryInProgress())
		errhint("Set \"hot_standby_feedback\" on the standby, or pass fewer elements at a time.");
}
