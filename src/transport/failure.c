/*-------------------------------------------------------------------------
 *
 * failure.c
 *		Converts the failure of an attempt to a status and a detail.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/libcurl.h"

/*
 * Raise 53200 after an allocation not made by palloc() has failed.
 */
void
hrflow_out_of_memory(void)
{
	ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
}

/*
 * Has any byte of the reply been received?
 */
static bool
has_begun_to_answer(const HrflowTransfer *transfer)
{
	curl_off_t	first_byte = 0;

	return curl_easy_getinfo(transfer->easy, CURLINFO_STARTTRANSFER_TIME_T,
							 &first_byte) == CURLE_OK && first_byte > 0;
}

/*
 * Did the headers exceed one of libcurl's limits: 100 kB per header line, or
 * the maximum number of headers?  Before 8.6, libcurl reports too long a line
 * as lack of memory.
 */
static bool
has_too_large_headers(const HrflowTransfer *transfer, CURLcode code)
{
	return code == HRFLOW_CURLE_TOO_LARGE ||
		(code == CURLE_OUT_OF_MEMORY && HRFLOW_CURL_TOO_LARGE_IS_MEMORY() &&
		 has_begun_to_answer(transfer) && !transfer->attempt.headers_ended);
}

/*
 * Return the status of an attempt that ended with a fault.  May also set
 * reply->detail and reply->transient.
 */
static HrflowStatus
classify_fault(HrflowReply *reply, HrflowFault fault)
{
	switch (fault)
	{
		case HRFLOW_EXCEEDS_LIMIT:
			reply->detail = "The reply exceeds \"hrflow_embed.max_response_size\", or its headers are too large.";
			return HRFLOW_TOO_LARGE;
		case HRFLOW_EXCEEDS_BUDGET:
			reply->detail = "The replies received at the same time exceed the memory that a session may use for them.";
			return HRFLOW_TOO_LARGE;
		case HRFLOW_PRIVATE_ADDRESS:
			reply->detail = "The host of the link has a private address, and \"hrflow_embed.link_hosts\" does not contain its exact name.";
			return HRFLOW_LINK_REFUSED;
		case HRFLOW_SENT_TWICE:
			reply->transient = true;
			reply->detail = "The connection broke after the request had been sent.";
			return HRFLOW_CONNECTION_LOST;
		case HRFLOW_MIXED_UP:
			reply->transient = true;
			reply->detail = "Several requests were sent over one HTTP/1.1 connection at the same time.";
			return HRFLOW_CONNECTION_LOST;
		case HRFLOW_BAD_ENCODING:
			reply->detail = "The encoding of the reply was not requested, or its content is not valid.";
			return HRFLOW_INVALID_REPLY;
		case HRFLOW_UNUSABLE:	/* see restart_transfer() */
		case HRFLOW_STOPPED:	/* see restart_transfer() */
		case HRFLOW_NO_MEMORY:
		case HRFLOW_NO_FAULT:
			break;
	}
	return HRFLOW_CONNECTION_LOST;
}

/*
 * Return the status of an attempt that libcurl ended with an error.  May also
 * set reply->detail, reply->transient and the attempt's fault.
 */
static HrflowStatus
classify_code(HrflowTransfer *transfer, CURLcode code)
{
	HrflowReply *reply = &transfer->reply;
	const HrflowSettings *settings = transfer->transport->settings;
	bool		was_sent = transfer->attempt.nsent > 0;

	switch (code)
	{
		case CURLE_OUT_OF_MEMORY:

			/*
			 * After running out of memory, libcurl 8.14 may keep the
			 * connection open without ever using it again.
			 */
			hrflow_pool_discard();
			transfer->attempt.fault = HRFLOW_NO_MEMORY;
			return HRFLOW_CONNECTION_LOST;

		case CURLE_OPERATION_TIMEDOUT:

			/*
			 * libcurl does not report which of its two time limits expired.
			 * If the request was not sent, and the attempt, apart from
			 * excused time, was shorter than request_timeout, it was the
			 * limit for connecting.  After request_timeout, a retry would
			 * probably only make a slow server process the request again,
			 * unless the connection over which it was sent seems to be dead.
			 */
			if (was_sent || hrflow_clock_now() - transfer->attempt.began -
				transfer->attempt.excused >=
				settings->request_timeout * HRFLOW_MSEC)
			{
				reply->transient = transfer->attempt.is_cut_off;
				return HRFLOW_TIMEOUT;
			}
			reply->transient = true;
			return HRFLOW_CONNECT_FAILED;

		case CURLE_COULDNT_RESOLVE_PROXY:

			/*
			 * libcurl's message may quote the setting, including its
			 * password.
			 */
			reply->transient = true;
			reply->detail = "The host name in \"hrflow_embed.proxy\" cannot be resolved.";
			return was_sent ? HRFLOW_CONNECTION_LOST :
				HRFLOW_CONNECT_FAILED;

		case CURLE_SSL_CACERT_BADFILE:
			reply->detail = *settings->ca_file == '\0' ?
				"The system's trusted certificates cannot be read, and \"hrflow_embed.ca_file\" is not set." :
				"The certificates in the file specified by \"hrflow_embed.ca_file\" cannot be read.";
			return HRFLOW_CONNECT_FAILED;

		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_ISSUER_ERROR:
		case CURLE_SSL_CERTPROBLEM:
		case CURLE_SSL_CIPHER:
			return HRFLOW_CONNECT_FAILED;

		case CURLE_UNSUPPORTED_PROTOCOL:	/* for example HTTP/0.9 */
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
 * If the proxy refused our user or password, return a description of the
 * refusal, else NULL.  If the attempt failed after an HTTP proxy had accepted
 * them, record that.
 */
static const char *
refusal_of_proxy(const HrflowTransfer *transfer, CURLcode code)
{
	long		connect_status = 0;
	long		proxy_error = 0;

	if (!transfer->attempt.uses_proxy)
		return NULL;
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_HTTP_CONNECTCODE,
							 &connect_status);
	if (connect_status == 407)
		return "The proxy answered HTTP 407.";
	if (connect_status / 100 == 2 && transfer->attempt.nsent == 0)
		hrflow_advance_pass_proxy(transfer);
	if (code == CURLE_PROXY)
		(void) curl_easy_getinfo(transfer->easy, CURLINFO_PROXY_ERROR,
								 &proxy_error);
	if (proxy_error == CURLPX_USER_REJECTED)
		return "The SOCKS5 proxy rejected the user and password.";
	return NULL;
}

/*
 * Could the attempt have failed because its connect_timeout, which libcurl
 * enforces for connecting, and the kernel for data sent, is shorter than the
 * default?  True even if request_timeout ended the attempt.
 */
static bool
is_impatient(const HrflowTransfer *transfer, CURLcode code)
{
	long		error = 0;

	if (transfer->transport->settings->connect_timeout >=
		HRFLOW_CONNECT_TIMEOUT)
		return false;
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_OS_ERRNO, &error);
	return code == CURLE_OPERATION_TIMEDOUT || error == ETIMEDOUT;
}

/*
 * Set reply->status for a failed attempt.  May also set reply->transient, the
 * attempt's fault, and, if libcurl's own message is not suitable,
 * reply->detail.  Sets the attempt's is_impatient.
 */
void
hrflow_failure_classify(HrflowTransfer *transfer, CURLcode code)
{
	HrflowReply *reply = &transfer->reply;
	const char *refusal = refusal_of_proxy(transfer, code);

	transfer->attempt.is_impatient = is_impatient(transfer, code);
	if (transfer->attempt.fault == HRFLOW_NO_FAULT &&
		has_too_large_headers(transfer, code))
		transfer->attempt.fault = HRFLOW_EXCEEDS_LIMIT;
	if (refusal != NULL)
	{
		hrflow_advance_fail_proxy(transfer);
		reply->status = HRFLOW_PROXY_REFUSED;
		reply->detail = refusal;
	}
	else if (transfer->attempt.fault != HRFLOW_NO_FAULT)
		reply->status = classify_fault(reply, transfer->attempt.fault);
	else
		reply->status = classify_code(transfer, code);
}

/*
 * Return the time since which the server has not answered an attempt that has
 * ended without a reply.  This is its start plus the excused time or, if it
 * was sent over a connection that it had not opened itself, the current time:
 * such a connection may have been dead although the server was not.
 */
int64
hrflow_failure_since(const HrflowReply *reply)
{
	const HrflowAttempt *attempt = &reply->transfer->attempt;

	if (attempt->nsent > 0 && !attempt->opened)
		return hrflow_clock_now();
	return attempt->began + attempt->excused;
}
