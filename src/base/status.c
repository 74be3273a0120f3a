/*-------------------------------------------------------------------------
 *
 * status.c
 *		Names of statuses, as SQL shows them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/base.h"

/* Several statuses may have the same name. */
static const char *const status_names[] = {
	[HRFLOW_OK] = "ok",
	[HRFLOW_INVALID_REQUEST] = "invalid_request",
	[HRFLOW_INVALID_SOURCE] = "invalid_request",
	[HRFLOW_NOT_FOUND] = "not_found",
	[HRFLOW_NO_VECTOR] = "no_vector",
	[HRFLOW_UNAUTHORIZED] = "unauthorized",
	[HRFLOW_FORBIDDEN] = "unauthorized",
	[HRFLOW_PROXY_REFUSED] = "unauthorized",
	[HRFLOW_OVER_QUOTA] = "over_quota",
	[HRFLOW_RATE_LIMITED] = "rate_limited",
	[HRFLOW_OVER_BUDGET] = "over_budget",
	[HRFLOW_OVER_DAY] = "over_budget",
	[HRFLOW_CONNECT_FAILED] = "connection_failed",
	[HRFLOW_CONNECTION_LOST] = "connection_failed",
	[HRFLOW_TIMEOUT] = "timeout",
	[HRFLOW_INVALID_REPLY] = "invalid_reply",
	[HRFLOW_HTTP_ERROR] = "http_error",
	[HRFLOW_TOO_LARGE] = "too_large",
	[HRFLOW_LINK_REFUSED] = "link_refused",
	[HRFLOW_LINK_EXPIRED] = "link_expired",
	[HRFLOW_INVALID_VECTOR] = "invalid_vector"
};

/*
 * Return the name of a status.
 */
const char *
hrflow_status_name(HrflowStatus status)
{
	return status_names[status];
}
