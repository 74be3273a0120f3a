/*-------------------------------------------------------------------------
 *
 * failure.c
 *		What it means that a try has failed, or that there is no memory for
 *		one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/libcurl.h"

/*
 * Raise 53200 for an allocation that was not PostgreSQL's to make.
 */
void
hrflow_out_of_memory(void)
{
	ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
}

/*
 * Has a byte of the reply come?
 */
static bool
has_begun_to_answer(const HrflowTransfer *transfer)
{
	curl_off_t	first_byte = 0;

	return curl_easy_getinfo(transfer->easy, CURLINFO_STARTTRANSFER_TIME_T,
							 &first_byte) == CURLE_OK && first_byte > 0;
}

/*
 * Did libcurl meet a limit of its own: a line of the headers that is longer
 * than it can hold, 100 kB, or more headers than it takes?  Before 8.6 it says
 * of the former that it is out of memory.
 */
static bool
has_too_large_headers(const HrflowTransfer *transfer, CURLcode code)
{
	return code == HRFLOW_CURLE_TOO_LARGE ||
		(code == CURLE_OUT_OF_MEMORY && HRFLOW_CURL_TOO_LARGE_IS_MEMORY() &&
		 has_begun_to_answer(transfer) && !transfer->try.headers_ended);
}

/*
 * The status of a try that a callback ended.
 */
static HrflowStatus
classify_fault(HrflowReply *reply, HrflowFault fault)
{
	switch (fault)
	{
		case HRFLOW_EXCEEDS_LIMIT:
		case HRFLOW_EXCEEDS_BUDGET:
			reply->detail = "The reply exceeds hrflow_embed.max_response_size, or its headers a limit of their own.";
			return HRFLOW_TOO_LARGE;
		case HRFLOW_PRIVATE_ADDRESS:
			reply->detail = "The host of the link has a private address, and hrflow_embed.link_hosts does not contain its exact name.";
			return HRFLOW_LINK_REFUSED;
		case HRFLOW_SENT_TWICE:
			reply->transient = true;
			reply->detail = "The connection broke after the request had been sent.";
			return HRFLOW_CONNECTION_LOST;
		case HRFLOW_MIXED_UP:
			reply->transient = true;
			reply->detail = "Several requests were sent on one connection of HTTP/1.1.";
			return HRFLOW_CONNECTION_LOST;
		case HRFLOW_BAD_ENCODING:
			reply->detail = "The reply's Content-Encoding is not one that was asked for, or the reply is not encoded so.";
			return HRFLOW_INVALID_REPLY;
		case HRFLOW_NO_MEMORY:
		case HRFLOW_NO_FAULT:
			break;
	}
	return HRFLOW_CONNECTION_LOST;
}

/*
 * The status of a try that libcurl ended with this error.
 */
static HrflowStatus
classify_code(HrflowTransfer *transfer, CURLcode code)
{
	HrflowReply *reply = &transfer->reply;
	const HrflowSettings *settings = transfer->transport->settings;
	bool		was_sent = transfer->try.nsent > 0;

	switch (code)
	{
		case CURLE_OUT_OF_MEMORY:

			/*
			 * libcurl 8.14 may then keep the connection open, and not use it
			 * any more.
			 */
			hrflow_pool_discard();
			transfer->try.fault = HRFLOW_NO_MEMORY;
			return HRFLOW_CONNECTION_LOST;

		case CURLE_OPERATION_TIMEDOUT:

			/*
			 * libcurl does not tell its two time limits apart.  When it is
			 * not the whole try's that is up, it is the connection's.
			 */
			if (was_sent || hrflow_clock_now() - transfer->try.began >=
				settings->request_timeout * HRFLOW_MSEC)
				return HRFLOW_TIMEOUT;
			reply->transient = true;
			return HRFLOW_CONNECT_FAILED;

		case CURLE_COULDNT_RESOLVE_PROXY:

			/* libcurl's message may quote the setting, password and all. */
			reply->transient = true;
			reply->detail = "The host that hrflow_embed.proxy names cannot be resolved.";
			return was_sent ? HRFLOW_CONNECTION_LOST :
				HRFLOW_CONNECT_FAILED;

		case CURLE_SSL_CACERT_BADFILE:
			reply->detail = *settings->ca_file == '\0' ?
				"The system has no certificates to trust; install them, or set hrflow_embed.ca_file." :
				"The file that hrflow_embed.ca_file names cannot be read as certificates.";
			return HRFLOW_CONNECT_FAILED;

		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_ISSUER_ERROR:
		case CURLE_SSL_CERTPROBLEM:
		case CURLE_SSL_CIPHER:
			return HRFLOW_CONNECT_FAILED;

		case CURLE_UNSUPPORTED_PROTOCOL:	/* HTTP/0.9 among others */
		case CURLE_WEIRD_SERVER_REPLY:
		case CURLE_BAD_CONTENT_ENCODING:
		case CURLE_URL_MALFORMAT:
			return HRFLOW_INVALID_REPLY;

		default:
			reply->transient = true;
			return was_sent ? HRFLOW_CONNECTION_LOST :
				HRFLOW_CONNECT_FAILED;
	}
}

/*
 * How the proxy refused our user or password, if it is the proxy that refused the
 * request, and not the server; else NULL.
 */
static const char *
refusal_of_proxy(const HrflowTransfer *transfer, CURLcode code)
{
	long		connect_status = 0;
	long		proxy_error = 0;

	if (*transfer->transport->settings->proxy == '\0')
		return NULL;
	curl_easy_getinfo(transfer->easy, CURLINFO_HTTP_CONNECTCODE,
					  &connect_status);
	if (connect_status == 407)
		return "The proxy answered HTTP 407.";
	if (code == CURLE_PROXY)
		curl_easy_getinfo(transfer->easy, CURLINFO_PROXY_ERROR, &proxy_error);
	if (proxy_error == CURLPX_USER_REJECTED)
		return "The proxy rejected the user and password of SOCKS5.";
	return NULL;
}

/*
 * Fill in the status of a try that libcurl says has failed, whether another
 * may do better, and, if libcurl's message will not do, the detail.
 */
void
hrflow_failure_classify(HrflowTransfer *transfer, CURLcode code)
{
	HrflowReply *reply = &transfer->reply;
	const char *refusal = refusal_of_proxy(transfer, code);

	if (transfer->try.fault == HRFLOW_NO_FAULT &&
		has_too_large_headers(transfer, code))
		transfer->try.fault = HRFLOW_EXCEEDS_LIMIT;
	if (refusal != NULL)
	{
		reply->status = HRFLOW_PROXY_REFUSED;
		reply->detail = refusal;
	}
	else if (transfer->try.fault != HRFLOW_NO_FAULT)
		reply->status = classify_fault(reply, transfer->try.fault);
	else
		reply->status = classify_code(transfer, code);
}
