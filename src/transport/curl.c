/*-------------------------------------------------------------------------
 *
 * curl.c
 *		Runs a request in libcurl: its options, its callbacks and its reply.
 *
 * No callback of libcurl may throw: see pool.c.
 *
 * The following is necessary only for certain versions of libcurl.  The
 * comments there tell whether it can be removed when these are no longer
 * supported:
 *
 * - sharing.c: before 8.5
 * - renew_if_resent(): before 8.17
 * - lookup.c: before 8.20
 * - is_spent(): before 8.0, and since 8.22
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <limits.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "transport/libcurl.h"

/*
 * Maximum length of a URL sent over HTTP/2, in bytes.  By default, the limits
 * for a header compressed by HPACK are 8 kB in nginx and 16 kB in haproxy.
 */
#define LONG_URL 8000

StaticAssertDecl(sizeof(((HrflowTransfer *) NULL)->error) >= CURL_ERROR_SIZE,
				 "libcurl's messages must fit");

/*
 * ------------------------------------------------------------------------
 * Callbacks of libcurl.  None may throw.
 * ------------------------------------------------------------------------
 */

/*
 * Must the connection of this attempt be to a public address?  If a proxy is
 * used, we never see the host's address.
 */
static bool
is_guarded(const HrflowTransfer *transfer)
{
	return transfer->reply.target == HRFLOW_TO_GUARDED_LINK &&
		!transfer->attempt.uses_proxy;
}

/*
 * Is a numeric address public?
 */
static bool
is_public(const char *address)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};

	if (inet_pton(AF_INET, address, &v4.sin_addr) == 1)
		return !hrflow_link_is_private((struct sockaddr *) &v4);
	return inet_pton(AF_INET6, address, &v6.sin6_addr) == 1 &&
		!hrflow_link_is_private((struct sockaddr *) &v6);
}

/*
 * libcurl's callback for opening a socket.  Refuse a private address if a
 * link's host is allowed only by a pattern, unless a proxy is used, whose
 * address may be private.
 */
static curl_socket_t
on_open(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	HrflowTransfer *transfer = arg;

	if (is_guarded(transfer) && hrflow_link_is_private(&address->addr))
	{
		if (!transfer->attempt.opened)
			transfer->attempt.fault = HRFLOW_PRIVATE_ADDRESS;
		return CURL_SOCKET_BAD;
	}

	/*
	 * If a host has both private and public addresses, the public ones count.
	 */
	transfer->attempt.opened = true;
	transfer->attempt.fault = HRFLOW_NO_FAULT;
	hrflow_transfer_advance(transfer, HRFLOW_CONNECTING);
	return hrflow_pool_open_socket(address,
								   transfer->transport->settings->connect_timeout);
}

/*
 * Count a request to the API once more towards the rate limit and the request
 * limits, because libcurl is sending it again by itself, for example because
 * the server closed a reused connection, or refused to process the request.
 * These limits do not apply to links.
 */
static void
charge_again(const HrflowTransfer *transfer)
{
	if (!HRFLOW_IS_LINK(transfer->reply.target))
	{
		hrflow_rate_charge(transfer->transport->account);
		hrflow_budget_charge(transfer);
	}
}

/*
 * After a connection broke before it delivered a reply to this request, shut
 * down idle connections that are probably dead, too.  If it took a long time
 * to break, our packets were probably not acknowledged, for example because a
 * NAT has dropped the connection; see hrflow_pool_open_socket().  Connections
 * that have been idle for as long have then probably been dropped, too.  Spare
 * the connection with the local port "spared": libcurl is about to use it, or
 * knows that it is broken.
 */
static void
suspect_idle_connections(const HrflowTransfer *transfer, int spared)
{
	int64		elapsed = hrflow_clock_now() - transfer->attempt.began;

	if (elapsed >= transfer->transport->settings->connect_timeout * HRFLOW_MSEC / 2)
		hrflow_poller_shut_idle(spared, transfer->attempt.began);
}

/*
 * Has the server closed the connection that libcurl has chosen, or, over
 * HTTP/1.1, is there data to read?  Data cannot be the reply to this request,
 * but would be taken for it.  If the connection has been closed, libcurl would
 * notice only after sending the request, and a POST is not sent again.
 *
 * Since 8.0 (commit 7c5637b8b4), libcurl checks this itself, but since 8.22
 * (commit 2f1e94eaed) it checks a connection at most once a second
 * (066_wire.pl).  So a higher minimum version of libcurl does not make this
 * unnecessary.
 */
static bool
is_spent(const HrflowTransfer *transfer)
{
	return hrflow_poller_is_spent(transfer->attempt.socket);
}

/*
 * May libcurl send a GET again by itself?  A request that counts towards the
 * request limits must be within them.  Does not throw, because shared memory
 * has been attached to.
 */
static bool
may_be_resent(const HrflowTransfer *transfer)
{
	return HRFLOW_IS_LINK(transfer->reply.target) ||
		hrflow_budget_check(transfer->transport) == HRFLOW_OK;
}

/*
 * Check whether a request may be sent over the connection that libcurl has
 * chosen.
 *
 * Check the address again, since the connection may have been opened for
 * another request, whose host may have a private address.  If a kept
 * connection turns out to be dead, libcurl sends the request again over a new
 * one.  By then the server may have processed the request, so a POST must not
 * be sent again, and the transport may have been stopped.  Check for a POST
 * first, because a caller may submit again what a stopped transport returns.
 */
static HrflowFault
check_connection(const HrflowTransfer *transfer, const char *remote)
{
	if (transfer->attempt.fault != HRFLOW_NO_FAULT)
		return transfer->attempt.fault;
	if (transfer->attempt.nsent > 0 && transfer->post != NULL)
		return HRFLOW_SENT_TWICE;
	if (hrflow_transfer_is_given_up(transfer))
		return HRFLOW_STOPPED;
	if (transfer->attempt.nsent > 0 && !may_be_resent(transfer))
		return HRFLOW_SENT_TWICE;
	if (is_guarded(transfer) && !is_public(remote))
		return HRFLOW_PRIVATE_ADDRESS;
	if (hrflow_sharing_is_busy(transfer) || is_spent(transfer))
		return HRFLOW_UNUSABLE;
	return HRFLOW_NO_FAULT;
}

/*
 * libcurl's callback before a request is sent.  If libcurl sends the request
 * again, the previous connection has probably broken.
 */
static int
on_request(void *arg, char *remote, char *local, int remote_port,
		   int local_port)
{
	HrflowTransfer *transfer = arg;
	HrflowAttempt *attempt = &transfer->attempt;

	attempt->socket = hrflow_poller_find(local_port);
	attempt->fault = check_connection(transfer, remote);
	if (attempt->fault == HRFLOW_UNUSABLE)
		hrflow_sharing_avoid_http2(transfer);
	if (attempt->fault != HRFLOW_NO_FAULT)
		return CURL_PREREQFUNC_ABORT;

	if (attempt->nsent > 0)
	{
		charge_again(transfer);
		suspect_idle_connections(transfer, local_port);
	}
	attempt->sent_at = hrflow_clock_now();
	attempt->is_cut_off = false;
	attempt->local_port = local_port;
	attempt->nsent++;
	hrflow_show_sent(transfer);
	hrflow_sharing_note_sent(transfer, remote, remote_port, local, local_port);
	hrflow_transfer_advance(transfer, HRFLOW_SENT);
	return CURL_PREREQFUNC_OK;
}

/*
 * ------------------------------------------------------------------------
 * Attempts
 * ------------------------------------------------------------------------
 */

/*
 * Give a transfer a new easy handle.  curl_easy_reset() would not report a
 * failure to allocate libcurl's defaults, and would leave the handle without
 * some of them.
 */
static void
renew_easy(HrflowTransfer *transfer)
{
	CURL	   *easy = curl_easy_init();

	if (easy == NULL)
		hrflow_out_of_memory();
	curl_easy_cleanup(transfer->easy);
	transfer->easy = easy;
	transfer->needs_renewal = false;
	transfer->configured = 0;
}

/*
 * Set the options that depend only on the settings, unless that has been done.
 * If this throws, the next attempt begins with a new handle.
 */
static void
configure(HrflowTransfer *transfer, const HrflowSettings *settings)
{
	CURL	   *easy;

	if (transfer->configured == settings->serial && !transfer->needs_renewal)
		return;

	renew_easy(transfer);
	easy = transfer->easy;

	HRFLOW_SETOPT(easy, CURLOPT_PRIVATE, transfer);
	HRFLOW_SETOPT(easy, CURLOPT_ERRORBUFFER, transfer->error);
	HRFLOW_SETOPT(easy, CURLOPT_WRITEFUNCTION, hrflow_body_on_data);
	HRFLOW_SETOPT(easy, CURLOPT_WRITEDATA, transfer);
	HRFLOW_SETOPT(easy, CURLOPT_HEADERFUNCTION, hrflow_body_on_header);
	HRFLOW_SETOPT(easy, CURLOPT_HEADERDATA, transfer);
	HRFLOW_SETOPT(easy, CURLOPT_OPENSOCKETFUNCTION, on_open);
	HRFLOW_SETOPT(easy, CURLOPT_OPENSOCKETDATA, transfer);
	HRFLOW_SETOPT(easy, CURLOPT_PREREQFUNCTION, on_request);
	HRFLOW_SETOPT(easy, CURLOPT_PREREQDATA, transfer);
	HRFLOW_SETOPT(easy, CURLOPT_CLOSESOCKETFUNCTION, hrflow_pool_close_socket);

	/* libcurl must not replace PostgreSQL's signal handlers. */
	HRFLOW_SETOPT(easy, CURLOPT_NOSIGNAL, 1L);

	/* An unresponsive name server must not delay a cancel. */
	HRFLOW_SETOPT(easy, CURLOPT_QUICK_EXIT, 1L);

	/*
	 * Send the key only to the origin of base_url: see set_request_options().
	 * bad_base_url() ensured that base_url is https, or http to a loopback
	 * address.
	 */
	HRFLOW_SETOPT(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	HRFLOW_SETOPT(easy, CURLOPT_FOLLOWLOCATION, 0L);
	HRFLOW_SETOPT(easy, CURLOPT_HEADEROPT, (long) CURLHEADER_SEPARATE);
	HRFLOW_SETOPT(easy, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	HRFLOW_SETOPT(easy, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
	HRFLOW_SETOPT(easy, CURLOPT_PATH_AS_IS, 1L);

	/* With an empty string, unlike NULL, libcurl ignores the environment. */
	HRFLOW_SETOPT(easy, CURLOPT_PROXY, settings->proxy);
	HRFLOW_SETOPT(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
	hrflow_trust_configure(easy, settings);

	HRFLOW_SETOPT(easy, CURLOPT_HTTP09_ALLOWED, 0L);
	HRFLOW_SETOPT(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	HRFLOW_SETOPT(easy, CURLOPT_CONNECTTIMEOUT_MS, (long) settings->connect_timeout);

	transfer->configured = settings->serial;
}

static bool
is_https(const char *url)
{
	return pg_strncasecmp(url, "https:", strlen("https:")) == 0;
}

/*
 * Is HTTP/2 suitable for a request, apart from what is known about its origin?
 *
 * A POST uses HTTP/1.1.  An HTTP/2 server may close a connection at any time,
 * and libcurl may then send requests on it again, even if the server has
 * processed them: see check_connection().
 *
 * A long URL uses HTTP/1.1, too, because nginx and haproxy close the whole
 * HTTP/2 connection in cases where they answer 414 or 400 over HTTP/1.1.
 */
static bool
may_offer_http2(const HrflowTransfer *transfer)
{
	if (!transfer->transport->settings->http2 || !hrflow_features_http2())
		return false;
	if (transfer->post != NULL || transfer->avoids_http2)
		return false;
	return is_https(transfer->url) && strlen(transfer->url) <= LONG_URL;
}

/*
 * Set the HTTP version, and whether to wait for a connection that is being
 * established for other requests and might be shared: see origin.c.
 */
static void
set_version(HrflowTransfer *transfer)
{
	HrflowProtocol protocol = HRFLOW_HTTP_1_1_ONLY;

	if (may_offer_http2(transfer))
		protocol = hrflow_origin_choose(transfer->url, transfer->reply.attempts <
										transfer->transport->settings->max_attempts &&
										may_be_resent(transfer));
	transfer->attempt.offers_http2 = protocol != HRFLOW_HTTP_1_1_ONLY;
	transfer->attempt.may_wait = transfer->attempt.offers_http2 &&
		protocol != HRFLOW_HTTP_1_1;
	HRFLOW_SETOPT(transfer->easy, CURLOPT_HTTP_VERSION,
				  (long) (transfer->attempt.offers_http2 ?
						  CURL_HTTP_VERSION_2TLS : CURL_HTTP_VERSION_1_1));
	HRFLOW_SETOPT(transfer->easy, CURLOPT_PIPEWAIT,
				  (long) transfer->attempt.may_wait);
}

/*
 * Is the host of a URL "localhost" or a loopback address?
 */
static bool
is_loopback_url(const char *text)
{
	HrflowUrl	url;

	return hrflow_url_parse(text, &url) == NULL && url.loopback;
}

/*
 * Is a request sent through a proxy?  Requests to loopback addresses bypass
 * the proxy, if there is one.
 */
bool
hrflow_curl_uses_proxy(const HrflowTransfer *transfer)
{
	return *transfer->transport->settings->proxy != '\0' &&
		!is_loopback_url(transfer->url);
}

/*
 * Set whether the proxy is used.  Don't leave the decision to libcurl, which
 * considers more names local than we do, such as "x.localhost".  An asterisk
 * denotes all hosts; without a value, libcurl would use the environment.
 */
static void
set_proxy(HrflowTransfer *transfer)
{
	transfer->attempt.uses_proxy = hrflow_curl_uses_proxy(transfer);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_NOPROXY,
				  transfer->attempt.uses_proxy ? "" : "*");
}

/*
 * Set the request target to the exact path and query of a link, which may be
 * signed.  libcurl would normalize them: 8.14 drops the question mark of an
 * empty query, and 8.22 changes the hexadecimal digits of a path to upper case
 * (066_wire.pl).
 *
 * Leave the target to libcurl if a link has a fragment or no path, or if an
 * http URL is requested through a proxy, since the target is then the whole
 * URL.
 */
static void
set_target(HrflowTransfer *transfer)
{
	const char *target = NULL;

	if (HRFLOW_IS_LINK(transfer->reply.target) &&
		(!transfer->attempt.uses_proxy || is_https(transfer->url)))
	{
		target = strstr(transfer->url, "://") + strlen("://");
		target += strcspn(target, "/?#");
		if (*target != '/' || strchr(target, '#') != NULL)
			target = NULL;
	}
	HRFLOW_SETOPT(transfer->easy, CURLOPT_REQUEST_TARGET, target);
}

/*
 * Set the body and the method.  libcurl does not copy the body.  Setting a
 * body makes the request a POST.
 */
static void
set_method(HrflowTransfer *transfer)
{
	HRFLOW_SETOPT(transfer->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) -1);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_POSTFIELDS, transfer->post);
	if (transfer->post == NULL)
		HRFLOW_SETOPT(transfer->easy, CURLOPT_HTTPGET, 1L);
}

/*
 * Set the options that depend on the request and on this attempt.  Each
 * attempt sets all of them, because the handle may have been used for another
 * request.  Don't keep connections if descriptors are scarce.
 */
static void
set_request_options(HrflowTransfer *transfer)
{
	const HrflowTransport *transport = transfer->transport;
	const HrflowHeaders *headers = transport->headers;

	HRFLOW_SETOPT(transfer->easy, CURLOPT_URL, transfer->url);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_HTTPHEADER,
				  HRFLOW_IS_LINK(transfer->reply.target) ? headers->link :
				  transfer->post != NULL ? headers->post : headers->get);
	set_proxy(transfer);
	set_method(transfer);
	transfer->attempt.limit = transport->settings->request_timeout;
	HRFLOW_SETOPT(transfer->easy, CURLOPT_TIMEOUT_MS,
				  (long) transfer->attempt.limit);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_FORBID_REUSE,
				  (long) hrflow_pool_is_short());
	HRFLOW_SETOPT(transfer->easy, CURLOPT_FRESH_CONNECT,
				  (long) (transfer->needs_fresh ||
						  (transfer->attempt.uses_proxy &&
						   hrflow_advance_may_be_refused(transport->settings))));
	set_version(transfer);
	hrflow_sharing_separate(transfer);
	set_target(transfer);
}

/*
 * Prepare the reply of an attempt that starts.
 */
static void
reset_reply(HrflowTransfer *transfer)
{
	transfer->error[0] = '\0';
	transfer->reply = (HrflowReply)
	{
		.body = "",
			.attempts = transfer->ncounted + 1,
			.target = transfer->reply.target,
			.tag = transfer->reply.tag,
			.transfer = transfer
	};
}

/*
 * Start an attempt.  Returns false if it has failed, without having used
 * libcurl.
 *
 * May throw, for example if there is not enough memory.  In that case, the
 * transfer is not in libcurl.
 */
bool
hrflow_curl_start(HrflowTransfer *transfer)
{
	reset_reply(transfer);
	if (!hrflow_lookup_may_start(transfer))
	{
		transfer->reply.status = HRFLOW_CONNECT_FAILED;
		transfer->reply.transient = true;
		transfer->reply.detail = "Too many name lookups are still pending.";
		return false;
	}
	configure(transfer, transfer->transport->settings);
	set_request_options(transfer);
	transfer->needs_fresh = false;

	/*
	 * Drop closed connections, because a POST is not sent again if its
	 * connection turns out to be closed.
	 */
	if (transfer->post != NULL)
		hrflow_poller_drop_closed();
	hrflow_pool_add(transfer->easy);
	return true;
}

/*
 * Return the number of connections that libcurl has opened for an attempt.
 */
static long
count_connects(const HrflowTransfer *transfer)
{
	long		connects = 0;

	(void) curl_easy_getinfo(transfer->easy, CURLINFO_NUM_CONNECTS, &connects);
	return connects;
}

/*
 * Set the HTTP status, the content type and the Retry-After of a reply.
 * Values that libcurl does not know are 0 or NULL.  The status of an interim
 * response (HTTP 1xx, except 101) is ignored, because it is not the status of
 * the reply.
 */
static void
take_info(HrflowTransfer *transfer)
{
	HrflowReply *reply = &transfer->reply;
	long		http_status = 0;
	char	   *content_type = NULL;
	curl_off_t	retry_after = 0;

	(void) curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE,
							 &http_status);
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_CONTENT_TYPE,
							 &content_type);
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_RETRY_AFTER,
							 &retry_after);
	if (http_status / 100 == 1 && http_status != 101)
		http_status = 0;
	reply->http_status = http_status;
	reply->content_type = content_type;
	reply->retry_after = Max(0, Min(retry_after, INT_MAX));
}

/*
 * Set reply->body to the body that has been received, and reply->is_limited.
 */
static void
take_body(HrflowTransfer *transfer)
{
	HrflowReply *reply = &transfer->reply;

	reply->body = "";
	if (reply->length > 0)
	{
		transfer->body[reply->length] = '\0';
		reply->body = transfer->body;
	}
	reply->is_limited = reply->http_status == 429 ||
		(!HRFLOW_IS_LINK(reply->target) &&
		 hrflow_envelope_is_limited(reply->body));
}

/*
 * Has a reply that libcurl considers complete been received completely?
 * libcurl reports success even if the connection is closed before the end of
 * the headers.  It also cannot detect that a gzip body is truncated, because
 * we decompress the body ourselves.
 */
static bool
is_whole(const HrflowTransfer *transfer)
{
	const HrflowAttempt *attempt = &transfer->attempt;

	if (!attempt->headers_ended)
		return false;
	return !attempt->is_gzip || attempt->body_bytes == 0 ||
		hrflow_gunzip_is_complete(transfer->gunzip);
}

/*
 * Set the status and detail of the reply of a failed attempt.  Use libcurl's
 * message as the detail if there is no better one.
 */
static void
take_failure(HrflowTransfer *transfer, CURLcode code)
{
	HrflowReply *reply = &transfer->reply;

	hrflow_failure_classify(transfer, code);
	if (reply->detail == NULL)
		reply->detail = transfer->error[0] != '\0' ? transfer->error :
			curl_easy_strerror(code);
}

/*
 * Fill in the reply of an attempt for which libcurl has returned "code".
 */
static void
fill_reply(HrflowTransfer *transfer, CURLcode code)
{
	take_info(transfer);
	take_body(transfer);
	if (code == CURLE_OK && !is_whole(transfer))
		code = CURLE_PARTIAL_FILE;
	if (code != CURLE_OK)
		take_failure(transfer, code);
}

/*
 * If the connection of an attempt broke before it delivered any part of the
 * reply, suspect the connections that have been idle meanwhile, and do not
 * offer HTTP/2 for the retry, unless the origin is known to use HTTP/1.1.
 *
 * The connection of an attempt that ended with HRFLOW_STOPPED broke, too:
 * libcurl was about to send the request again, because unsent requests of a
 * stopped transport are not in flight.  If there is no HTTP status,
 * HRFLOW_NO_MEMORY was reported by libcurl, and all connections are discarded
 * anyway.
 */
static void
learn_from_lost_connection(HrflowTransfer *transfer)
{
	if (transfer->reply.status != HRFLOW_CONNECTION_LOST ||
		transfer->reply.http_status != 0 ||
		transfer->attempt.fault == HRFLOW_UNUSABLE)
		return;
	suspect_idle_connections(transfer, transfer->attempt.local_port);
	transfer->avoids_http2 |= transfer->attempt.offers_http2 &&
		hrflow_origin_protocol(transfer->url) != HRFLOW_HTTP_1_1;
}

/*
 * Add a reply to the statistics.
 */
static void
count_reply(const HrflowTransfer *transfer)
{
	hrflow_stats_count(HRFLOW_CONNECTIONS_REUSED,
					   transfer->reply.http_status != 0 &&
					   count_connects(transfer) == 0);
	hrflow_stats_count(HRFLOW_RATE_LIMITS, transfer->reply.is_limited);
	hrflow_stats_count(HRFLOW_BYTES_RECEIVED, transfer->attempt.body_bytes);
}

/*
 * Fill in the reply of an attempt for which libcurl has returned "code", learn
 * from it, and count it.
 */
static void
conclude_attempt(HrflowTransfer *transfer, CURLcode code)
{
	fill_reply(transfer, code);
	transfer->reply.was_sent = transfer->attempt.nsent > 0;
	learn_from_lost_connection(transfer);
	count_reply(transfer);
}

/*
 * After libcurl has sent a request again by itself, use a new handle for the
 * next request.  Before 8.17 (commit 5e46318414), libcurl resends at most five
 * requests during the life of a handle (066_wire.pl).
 *
 * This function and "needs_renewal" may be removed when the minimum version of
 * libcurl is 8.17 or later.
 */
static void
renew_if_resent(HrflowTransfer *transfer)
{
	if (transfer->attempt.nsent > 1)
		transfer->needs_renewal = true;
}

/*
 * Remove a transfer from libcurl, whether or not the transfer is complete.
 * Count the connections that libcurl has opened for the transfer, and record
 * that the transfer no longer uses a connection.  Does not throw.
 */
void
hrflow_curl_remove(HrflowTransfer *transfer)
{
	hrflow_stats_count(HRFLOW_CONNECTIONS_OPENED, count_connects(transfer));
	hrflow_lookup_note_end(transfer);
	hrflow_sharing_forget(transfer);
	hrflow_pool_remove(transfer->easy);
	renew_if_resent(transfer);
}

/*
 * Stop a request from waiting for another request's connection.  If it cannot
 * share that connection now, it opens its own.
 *
 * May throw.  Then the request is still in the lists of requests in flight,
 * but may no longer be in libcurl.  That is safe: removing it from libcurl
 * again does nothing, and if its transport continues, it ends as overdue.
 */
void
hrflow_curl_stop_waiting(HrflowTransfer *transfer)
{
	int64		elapsed = (hrflow_clock_now() - transfer->attempt.began -
						   transfer->attempt.excused) / HRFLOW_MSEC;

	transfer->attempt.may_wait = false;
	transfer->attempt.limit =
		Max(transfer->transport->settings->request_timeout - elapsed, 1);
	hrflow_pool_remove(transfer->easy);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_PIPEWAIT, 0L);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_TIMEOUT_MS,
				  (long) transfer->attempt.limit);
	hrflow_pool_add(transfer->easy);
}

/*
 * Let an attempt in flight take longer, by "duration" microseconds.  libcurl
 * reads CURLOPT_TIMEOUT_MS whenever it checks whether a request has timed out:
 * Curl_timeleft() in 7.88 and 8.14, Curl_timeleft_ms() in 8.22.  But it does
 * not set its timer again, so it may not notice when the limit has been
 * reached: see hrflow_curl_abandon().  Does not throw.
 */
void
hrflow_curl_prolong(HrflowTransfer *transfer, int64 duration)
{
	HrflowAttempt *attempt = &transfer->attempt;

	attempt->excused += duration;
	attempt->limit = Min(attempt->limit + duration / HRFLOW_MSEC + 1, INT_MAX);
	(void) curl_easy_setopt(transfer->easy, CURLOPT_TIMEOUT_MS,
							(long) attempt->limit);
}

/*
 * Shut down the connection of an attempt that timed out, if nothing has been
 * received over it since the attempt began.  The connection may be dead
 * although it was never closed, for example if a NAT has dropped it, and
 * libcurl would keep reusing a dead HTTP/2 connection.  If the server is
 * merely slow, other requests on the connection are sent again over another
 * connection.  If the connection is cut off, connections that have been idle
 * meanwhile probably are, too; see hrflow_poller_is_cut_off().
 *
 * libcurl reports the descriptor only for the last request on a connection, so
 * find the connection by its local port.
 */
static void
shut_if_silent(HrflowTransfer *transfer)
{
	HrflowAttempt *attempt = &transfer->attempt;
	int			fd = -1;

	if (attempt->nsent > 0)
		fd = hrflow_poller_find_silent(attempt->local_port, attempt->began);
	if (fd >= 0)
	{
		attempt->is_cut_off |= hrflow_poller_is_cut_off(fd);
		(void) shutdown(fd, SHUT_RDWR);
	}
	if (attempt->is_cut_off)
		hrflow_poller_shut_idle(attempt->local_port, attempt->began);
}

/*
 * Return the next transfer that libcurl has completed, with its reply filled
 * in, or NULL.  The caller must remove it from libcurl.
 */
HrflowTransfer *
hrflow_curl_next_done(void)
{
	CURLMsg    *message = hrflow_pool_next_message();
	HrflowTransfer *transfer = NULL;
	CURLcode	code;

	if (message == NULL)
		return NULL;
	code = message->data.result;
	(void) curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
	Assert(transfer != NULL);
	if (code == CURLE_OPERATION_TIMEDOUT)
		shut_if_silent(transfer);
	else
		hrflow_lookup_note_answer(transfer);
	conclude_attempt(transfer, code);
	return transfer;
}

/*
 * Give up on a transfer that should have ended, but whose end libcurl has not
 * reported, and fill in the reply as for a timeout.  Mark the multi handle to
 * be discarded: unless libcurl missed the end only because the transfer was
 * prolonged, the handle can no longer be trusted.
 *
 * libcurl 8.22 loses a request if it runs out of memory (072_injection.pl), so
 * a higher minimum version of libcurl does not make this unnecessary.
 */
void
hrflow_curl_abandon(HrflowTransfer *transfer)
{
	hrflow_pool_discard();
	if (transfer->attempt.excused > 0)
		shut_if_silent(transfer);
	conclude_attempt(transfer, CURLE_OPERATION_TIMEDOUT);
}
