/*-------------------------------------------------------------------------
 *
 * curl.c
 *		Runs a request in libcurl: its options, its callbacks and its reply.
 *
 * No callback of libcurl may throw: see pool.c.
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
 * Maximum length of a URL sent over HTTP/2, in bytes.  The limits for a header
 * compressed by HPACK are 8 kB in nginx and 16 kB in haproxy.
 */
#define LONG_URL 8000

/*
 * libcurl resolves a name in a thread that cannot be stopped.  If the request
 * is abandoned, the thread and a descriptor remain until the system's resolver
 * times out, by default after 30 s (two attempts with 5 s for each of 3 name
 * servers).  This limits the number of such threads, separately for the API
 * and for links.  (libcurl 8.22 has a bounded pool of threads, and does not
 * tell us about the lookups.)
 */
#define MAX_ABANDONED 64
#define LOOKUP_LIFE (30 * HRFLOW_SEC)

/*
 * libcurl's lists of headers; see HrflowHeaders in transfer.h.
 */
struct HrflowHeaders
{
	uint64		serial;			/* serial of the settings */
	int			nusers;			/* number of transports using these, plus one
								 * for cached_headers */
	struct curl_slist *get;		/* for GET requests to the API */
	struct curl_slist *post;	/* for POST requests to the API */
	struct curl_slist *link;	/* for links */
};

/* The most recently created headers. */
static HrflowHeaders *cached_headers = NULL;

/*
 * Ring buffers with the times when lookups were last abandoned, for the API
 * and for links.
 */
static struct
{
	int64		at[MAX_ABANDONED];
	int			next;
}			abandoned[2];

StaticAssertDecl(sizeof(((HrflowTransfer *) NULL)->error) >= CURL_ERROR_SIZE,
				 "libcurl's messages must fit");

/*
 * ------------------------------------------------------------------------
 * Callbacks of libcurl.  None may throw.
 * ------------------------------------------------------------------------
 */

/*
 * Must this request's host have a public address?  If there is a proxy, we
 * never see the address.
 */
static bool
is_guarded(const HrflowTransfer *transfer)
{
	return transfer->reply.target == HRFLOW_TO_GUARDED_LINK &&
		*transfer->transport->settings->proxy == '\0';
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
 * link's host is allowed only by a pattern; the address of a proxy may be
 * private.
 */
static curl_socket_t
on_open(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	HrflowTransfer *transfer = arg;

	if (is_guarded(transfer) && hrflow_link_is_private(&address->addr))
	{
		if (!transfer->try.opened)
			transfer->try.fault = HRFLOW_PRIVATE_ADDRESS;
		return CURL_SOCKET_BAD;
	}

	/*
	 * A host may have both kinds of addresses; if so, the public one counts.
	 */
	transfer->try.opened = true;
	transfer->try.fault = HRFLOW_NO_FAULT;
	hrflow_transfer_advance(transfer, HRFLOW_CONNECTING);
	return hrflow_pool_open_socket(address,
								   transfer->transport->settings->connect_timeout);
}

/*
 * Count a request that libcurl sends again by itself, because the server
 * closed a kept connection or refused to process the request.
 */
static void
charge_again(const HrflowTransfer *transfer)
{
	if (!HRFLOW_IS_LINK(transfer->reply.target))
	{
		hrflow_rate_charge(transfer->transport->account);
		hrflow_budget_charge(transfer->transport);
	}
}

/*
 * Suspect other idle connections after a connection broke without an answer to
 * this request.  If that took long, our packets were not acknowledged (see
 * hrflow_pool_open_socket()), as happens if a NAT has dropped the connection,
 * and connections that have been idle as long are probably dead, too.
 */
static void
suspect_idle_connections(const HrflowTransfer *transfer)
{
	int64		elapsed = hrflow_clock_now() - transfer->try.began;

	if (elapsed >= transfer->transport->settings->connect_timeout * HRFLOW_MSEC / 2)
		hrflow_poller_shut_idle(transfer->try.local_port, transfer->try.began);
}

/*
 * May a request be sent over its connection?  Over HTTP/1.1 replies follow the
 * order of the requests, so there must be no other request whose reply is not
 * complete, and nothing to read.  libcurl 7.88 does not check the latter, and
 * not always the former: see sharing.c.  If it does not, use only HTTP/1.1
 * with this origin from now on.
 */
static bool
is_usable(const HrflowTransfer *transfer)
{
	bool		is_busy = hrflow_poller_is_busy(transfer->try.socket);

	if (is_busy && transfer->try.offers_http2)
		hrflow_origin_note(transfer->url, HRFLOW_HTTP_1_1_ONLY);
	return !is_busy && !hrflow_poller_has_input(transfer->try.socket);
}

/*
 * libcurl's callback before a request is sent.  The connection may have been
 * opened for another request, which was not guarded.
 *
 * If a kept connection turns out to be dead, libcurl sends the request again
 * over a new one.  The server may have processed a POST by then, so that must
 * not be sent twice.
 */
static int
on_request(void *arg, char *remote, char *local, int remote_port,
		   int local_port)
{
	HrflowTransfer *transfer = arg;

	transfer->try.socket = hrflow_poller_find(local_port);
	if (transfer->try.fault == HRFLOW_NO_FAULT)
	{
		if (transfer->try.nsent > 0 && transfer->post != NULL)
			transfer->try.fault = HRFLOW_SENT_TWICE;
		else if (is_guarded(transfer) && !is_public(remote))
			transfer->try.fault = HRFLOW_PRIVATE_ADDRESS;
		else if (!is_usable(transfer))
			transfer->try.fault = HRFLOW_UNUSABLE;
	}
	if (transfer->try.fault != HRFLOW_NO_FAULT)
		return CURL_PREREQFUNC_ABORT;

	transfer->try.sent_at = hrflow_clock_now();
	transfer->try.local_port = local_port;
	if (transfer->try.nsent++ > 0)
	{
		charge_again(transfer);
		suspect_idle_connections(transfer);
	}
	hrflow_show_sent(transfer);
	hrflow_sharing_note_sent(transfer, remote, remote_port, local, local_port);
	hrflow_transfer_advance(transfer, HRFLOW_SENT);
	return CURL_PREREQFUNC_OK;
}

/*
 * ------------------------------------------------------------------------
 * Headers
 * ------------------------------------------------------------------------
 */

/*
 * Add a header.  An empty value makes libcurl omit its own header of that
 * name.
 */
static bool
add_header(struct curl_slist **headers, const char *name, const char *value)
{
	char		line[HRFLOW_MAX_KEY + 32];
	struct curl_slist *list;
	int			length = snprintf(line, sizeof(line), "%s: %s", name, value);

	/* Keys and users longer than HRFLOW_MAX_KEY have been refused. */
	Assert(length < (int) sizeof(line));
	(void) length;
	list = curl_slist_append(*headers, line);
	if (list != NULL)
		*headers = list;
	return list != NULL;
}

/*
 * Add the headers of all requests.
 *
 * libcurl has options for both of these, but formats the value of an option
 * character by character, twice for each request, which takes a tenth of its
 * CPU time.
 */
static bool
add_client_headers(struct curl_slist **headers)
{
	return add_header(headers, "User-Agent",
					  "hrflow_embed/" HRFLOW_EMBED_VERSION) &&
		add_header(headers, "Accept-Encoding", HRFLOW_ACCEPTED_ENCODING);
}

/*
 * Add the headers of all requests to the API.
 */
static bool
add_api_headers(struct curl_slist **headers, const HrflowSettings *settings)
{
	return add_client_headers(headers) &&
		add_header(headers, "X-API-KEY", settings->api_key) &&
		(*settings->api_user == '\0' ||
		 add_header(headers, "X-USER-EMAIL", settings->api_user)) &&
		add_header(headers, "Accept", "application/json");
}

/*
 * Does not throw.
 */
static void
free_headers(HrflowHeaders *headers)
{
	curl_slist_free_all(headers->get);
	curl_slist_free_all(headers->post);
	curl_slist_free_all(headers->link);
	free(headers);
}

/*
 * Return the headers for requests with these settings.  The caller must
 * release them once no request that uses them is in flight.  Throws if there is
 * not enough memory.
 */
HrflowHeaders *
hrflow_curl_get_headers(const HrflowSettings *settings)
{
	HrflowHeaders *headers = cached_headers;

	if (headers != NULL && headers->serial == settings->serial)
	{
		headers->nusers++;
		return headers;
	}

	/*
	 * The empty Expect header prevents libcurl from waiting up to 1 s for
	 * "100 Continue", which servers may not send.
	 */
	headers = calloc(1, sizeof(HrflowHeaders));
	if (headers == NULL ||
		!add_client_headers(&headers->link) ||
		!add_api_headers(&headers->get, settings) ||
		!add_api_headers(&headers->post, settings) ||
		!add_header(&headers->post, "Content-Type", "application/json") ||
		!add_header(&headers->post, "Expect", ""))
	{
		if (headers != NULL)
			free_headers(headers);
		hrflow_out_of_memory();
	}
	if (cached_headers != NULL)
		hrflow_curl_release_headers(cached_headers);
	headers->serial = settings->serial;
	headers->nusers = 2;
	cached_headers = headers;
	return headers;
}

/*
 * Does not throw.
 */
void
hrflow_curl_release_headers(HrflowHeaders *headers)
{
	if (--headers->nusers == 0)
		free_headers(headers);
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
	transfer->configured = 0;
}

/*
 * Set the options that depend only on the settings.
 */
static void
configure(HrflowTransfer *transfer, const HrflowSettings *settings)
{
	CURL	   *easy;

	if (transfer->configured == settings->serial)
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
	 * Send the key only to the origin of base_url: see hrflow_curl_start().
	 * check_base_url() ensured that this is https, or http to a loopback
	 * address.
	 */
	HRFLOW_SETOPT(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	HRFLOW_SETOPT(easy, CURLOPT_FOLLOWLOCATION, 0L);
	HRFLOW_SETOPT(easy, CURLOPT_HEADEROPT, (long) CURLHEADER_SEPARATE);
	HRFLOW_SETOPT(easy, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	HRFLOW_SETOPT(easy, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
	HRFLOW_SETOPT(easy, CURLOPT_PATH_AS_IS, 1L);

	/* An empty string, unlike NULL, makes libcurl ignore the environment. */
	HRFLOW_SETOPT(easy, CURLOPT_PROXY, settings->proxy);
	HRFLOW_SETOPT(easy, CURLOPT_NOPROXY, "");
	HRFLOW_SETOPT(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
	hrflow_trust_configure(easy, settings);

	HRFLOW_SETOPT(easy, CURLOPT_HTTP09_ALLOWED, 0L);
	HRFLOW_SETOPT(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	HRFLOW_SETOPT(easy, CURLOPT_CONNECTTIMEOUT_MS, (long) settings->connect_timeout);

	transfer->configured = settings->serial;
}

static void
note_abandoned(bool is_link)
{
	int		   *next = &abandoned[is_link].next;

	abandoned[is_link].at[*next] = hrflow_clock_now();
	*next = (*next + 1) % MAX_ABANDONED;
}

/*
 * Are there too many abandoned lookups that may still be running?
 */
static bool
too_many_abandoned(bool is_link, int64 now)
{
	int64		oldest = abandoned[is_link].at[abandoned[is_link].next];

	return oldest != 0 && now - oldest < LOOKUP_LIFE;
}

/*
 * Set the HTTP version, and whether to wait for a connection that is being
 * established for other requests and might be shared: see origin.c.
 *
 * A POST uses HTTP/1.1.  An HTTP/2 server may close a connection at any time,
 * and libcurl then sends all requests on it again, including those that the
 * server may have processed: see on_request().
 *
 * A long URL uses HTTP/1.1, too, because nginx and haproxy close the whole
 * HTTP/2 connection in cases where they answer 414 or 400 over HTTP/1.1.
 */
static void
set_version(HrflowTransfer *transfer)
{
	bool		offers_http2 = transfer->transport->settings->http2 &&
	hrflow_features_http2() &&
	transfer->post == NULL && !transfer->avoids_http2 &&
	pg_strncasecmp(transfer->url, "https:", 6) == 0 &&
	strlen(transfer->url) <= LONG_URL;
	HrflowProtocol protocol = HRFLOW_PROTOCOL_UNKNOWN;

	if (offers_http2)
		protocol = hrflow_origin_protocol(transfer->url);
	transfer->try.offers_http2 = offers_http2 &&
		protocol != HRFLOW_HTTP_1_1_ONLY;
	transfer->try.may_wait = offers_http2 && protocol != HRFLOW_HTTP_1_1 &&
		protocol != HRFLOW_HTTP_1_1_ONLY;
	HRFLOW_SETOPT(transfer->easy, CURLOPT_HTTP_VERSION,
				  (long) (transfer->try.offers_http2 ?
						  CURL_HTTP_VERSION_2TLS : CURL_HTTP_VERSION_1_1));
	HRFLOW_SETOPT(transfer->easy, CURLOPT_PIPEWAIT,
				  (long) transfer->try.may_wait);
}

/*
 * Set the request target to the exact bytes of a link, because libcurl 8.22
 * changes the hexadecimal digits of a path to upper case.  An http proxy that
 * is not tunneled through needs the whole URL, so leave that to libcurl.
 */
static void
set_target(HrflowTransfer *transfer)
{
	const char *target = NULL;

	if (HRFLOW_IS_LINK(transfer->reply.target) &&
		(*transfer->transport->settings->proxy == '\0' ||
		 pg_strncasecmp(transfer->url, "https:", 6) == 0))
	{
		target = strstr(transfer->url, "://") + strlen("://");
		target += strcspn(target, "/?#");
		if (*target != '/' || strchr(target, '#') != NULL)
			target = NULL;
	}
	HRFLOW_SETOPT(transfer->easy, CURLOPT_REQUEST_TARGET, target);
}

/*
 * Start an attempt.  Returns false if it has failed immediately.
 */
bool
hrflow_curl_start(HrflowTransfer *transfer)
{
	const HrflowSettings *settings = transfer->transport->settings;
	const HrflowHeaders *headers = transfer->transport->headers;
	HrflowReply *reply = &transfer->reply;

	configure(transfer, settings);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_URL, transfer->url);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_HTTPHEADER,
				  HRFLOW_IS_LINK(reply->target) ? headers->link :
				  transfer->post != NULL ? headers->post : headers->get);

	/*
	 * Bypass the proxy for the server itself.  Never do so for links allowed
	 * only by a pattern, because libcurl considers more names local than we
	 * do ("x.localhost").
	 */
	if (*settings->proxy != '\0')
		HRFLOW_SETOPT(transfer->easy, CURLOPT_NOPROXY,
					  reply->target == HRFLOW_TO_GUARDED_LINK ? "" :
					  "localhost,127.0.0.0/8,::1");

	/* libcurl does not copy the body.  Setting it makes this a POST. */
	HRFLOW_SETOPT(transfer->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) -1);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_POSTFIELDS, transfer->post);
	if (transfer->post == NULL)
		HRFLOW_SETOPT(transfer->easy, CURLOPT_HTTPGET, 1L);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_TIMEOUT_MS, (long) settings->request_timeout);

	/* Don't keep connections if descriptors are scarce. */
	HRFLOW_SETOPT(transfer->easy, CURLOPT_FORBID_REUSE,
				  (long) hrflow_pool_is_short());
	HRFLOW_SETOPT(transfer->easy, CURLOPT_FRESH_CONNECT,
				  (long) transfer->needs_fresh);
	transfer->needs_fresh = false;

	set_version(transfer);
	set_target(transfer);

	/*
	 * Do not share connections between requests that offer only HTTP/1.1 and
	 * all others.  Once a host has an HTTP/2 connection, libcurl 7.88 also
	 * adds requests to busy HTTP/1.1 connections, and assigns the replies to
	 * whichever request reads first: see test/t/069_http2.pl.  libcurl reuses
	 * a connection only if the requested TLS versions are the same.  These
	 * two values are equivalent, because TLS 1.3 is the latest version, but
	 * not the same.
	 */
	HRFLOW_SETOPT(transfer->easy, CURLOPT_SSLVERSION,
				  (long) (!transfer->try.offers_http2 ?
						  CURL_SSLVERSION_TLSv1_2 | CURL_SSLVERSION_MAX_TLSv1_3 :
						  CURL_SSLVERSION_TLSv1_2));

	transfer->error[0] = '\0';
	*reply = (HrflowReply)
	{
		.target = reply->target,
			.tag = reply->tag,
			.transfer = transfer,
			.attempts = reply->attempts + 1
	};

	if (too_many_abandoned(HRFLOW_IS_LINK(reply->target), transfer->try.began))
	{
		reply->status = HRFLOW_CONNECT_FAILED;
		reply->transient = true;
		reply->detail = "Too many name lookups are still pending.";
		return false;
	}

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
 * Fill in the reply of a transfer that libcurl has completed.
 */
static void
fill_reply(HrflowTransfer *transfer, CURLcode code)
{
	HrflowReply *reply = &transfer->reply;
	long		http_status = 0;
	char	   *content_type = NULL;
	curl_off_t	retry_after = 0;
	long		connects = 0;

	curl_easy_getinfo(transfer->easy, CURLINFO_NUM_CONNECTS, &connects);
	curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &http_status);
	curl_easy_getinfo(transfer->easy, CURLINFO_CONTENT_TYPE, &content_type);
	curl_easy_getinfo(transfer->easy, CURLINFO_RETRY_AFTER, &retry_after);

	hrflow_stats_count(HRFLOW_CONNECTIONS_REUSED,
					   connects == 0 && http_status != 0);
	hrflow_stats_count(HRFLOW_RATE_LIMITS, http_status == 429);
	hrflow_stats_count(HRFLOW_BYTES_RECEIVED, transfer->try.body_bytes);

	/* The status of an interim response is not that of a reply. */
	if (http_status / 100 == 1 && http_status != 101)
		http_status = 0;
	reply->http_status = http_status;
	reply->content_type = content_type;
	reply->retry_after = Max(0, Min(retry_after, INT_MAX));
	reply->body = "";
	if (reply->length > 0)
	{
		transfer->body[reply->length] = '\0';
		reply->body = transfer->body;
	}

	/*
	 * libcurl reports success if the connection is closed within the headers,
	 * and does not decompress the body.
	 */
	if (code == CURLE_OK &&
		(!transfer->try.headers_ended ||
		 (transfer->try.is_gzip && transfer->try.body_bytes > 0 &&
		  !hrflow_gunzip_is_complete(transfer->gunzip))))
		code = CURLE_PARTIAL_FILE;
	if (code != CURLE_OK)
	{
		hrflow_failure_classify(transfer, code);
		if (reply->detail == NULL)
			reply->detail = transfer->error[0] != '\0' ? transfer->error :
				curl_easy_strerror(code);
		if (reply->status == HRFLOW_CONNECTION_LOST && http_status == 0 &&
			transfer->try.fault != HRFLOW_UNUSABLE)
		{
			suspect_idle_connections(transfer);
			transfer->avoids_http2 |= transfer->try.offers_http2 &&
				hrflow_origin_protocol(transfer->url) != HRFLOW_HTTP_1_1;
		}
	}
}

/*
 * Remove a transfer from libcurl, whether complete or not.  Does not throw.
 */
void
hrflow_curl_remove(HrflowTransfer *transfer)
{
	curl_off_t	found_after = 0;
	long		connects = 0;

	curl_easy_getinfo(transfer->easy, CURLINFO_NUM_CONNECTS, &connects);
	hrflow_stats_count(HRFLOW_CONNECTIONS_OPENED, connects);
	if (transfer->state == HRFLOW_RESOLVING)
	{
		curl_easy_getinfo(transfer->easy, CURLINFO_NAMELOOKUP_TIME_T,
						  &found_after);
		if (found_after == 0)
			note_abandoned(HRFLOW_IS_LINK(transfer->reply.target));
	}
	hrflow_sharing_forget(transfer);
	hrflow_pool_remove(transfer->easy);

	/*
	 * libcurl 7.88 stops sending again after five times, counted over all
	 * requests of a handle (066_wire.pl), so renew the handle for the next
	 * one.
	 */
	if (transfer->try.nsent > 1)
		transfer->configured = 0;
}

/*
 * Stop a request from waiting for another's connection, so that it opens its
 * own if it cannot share that one.  May throw.
 */
void
hrflow_curl_stop_waiting(HrflowTransfer *transfer)
{
	int64		elapsed = (hrflow_clock_now() - transfer->try.began) / HRFLOW_MSEC;

	transfer->try.may_wait = false;
	hrflow_pool_remove(transfer->easy);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_PIPEWAIT, 0L);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_TIMEOUT_MS,
				  (long) Max(transfer->transport->settings->request_timeout - elapsed, 1));
	hrflow_pool_add(transfer->easy);
}

/*
 * Shut down the connection of an attempt that timed out, if nothing has been
 * received over it all that time.  It may be dead without notice, for example
 * if a NAT has dropped it, and an HTTP/2 connection would be reused forever.
 * If the server is merely slow, other requests on the connection are sent
 * again over another connection.
 *
 * libcurl reports the descriptor only for the last request on a connection, so
 * find the connection by its local port.
 */
static void
shut_if_silent(const HrflowTransfer *transfer)
{
	int			fd = -1;

	if (transfer->try.nsent > 0)
		fd = hrflow_poller_find_silent(transfer->try.local_port, transfer->try.began);
	if (fd >= 0)
		(void) shutdown(fd, SHUT_RDWR);
}

/*
 * Return the next transfer that libcurl has completed, with its reply filled
 * in, or NULL.  The caller must remove it from libcurl.
 */
HrflowTransfer *
hrflow_curl_next_done(void)
{
	CURLMsg    *message = hrflow_pool_next_message();
	HrflowTransfer *transfer;
	CURLcode	code;

	if (message == NULL)
		return NULL;
	code = message->data.result;
	curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
	if (code == CURLE_OPERATION_TIMEDOUT)
		shut_if_silent(transfer);
	else if (transfer->state == HRFLOW_RESOLVING)
		hrflow_transfer_advance(transfer, HRFLOW_CONNECTING);	/* the lookup was
																 * answered */
	fill_reply(transfer, code);
	return transfer;
}

/*
 * Give up on a transfer that is overdue, but that libcurl has not reported.
 * Discard the multi handle, which can no longer be trusted, and fill in the
 * reply as for a timeout.
 */
void
hrflow_curl_abandon(HrflowTransfer *transfer)
{
	hrflow_pool_discard();
	fill_reply(transfer, CURLE_OPERATION_TIMEDOUT);
}
