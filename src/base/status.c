/*-------------------------------------------------------------------------
 *
 * status.c
 *		Converts statuses to names, and tells which statuses concern all
 *		requests.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/base.h"

/*
 * Names of statuses, as shown by SQL functions and views.  Several statuses
 * may share a name.
 */
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
 * Is the cause of this status likely to make all other requests to the API
 * with the same settings fail, too?
 */
bool
hrflow_status_concerns_all(HrflowStatus status)
{
	switch (status)
	{
		case HRFLOW_UNAUTHORIZED:
		case HRFLOW_PROXY_REFUSED:
		case HRFLOW_OVER_QUOTA:
		case HRFLOW_RATE_LIMITED:
		case HRFLOW_OVER_BUDGET:
		case HRFLOW_OVER_DAY:
			return true;
		default:
			return false;
	}
}

/*
 * Return the name of a status.
 */
const char *
hrflow_status_name(HrflowStatus status)
{
	return status_names[status];
}
