/*-------------------------------------------------------------------------
 *
 * curl.c
 *		One request in libcurl: its options, its callbacks and its reply.
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
 * URLs longer than this, in bytes, are not sent over HTTP/2: nginx's limit for
 * a header is 8 kB, as HPACK packs it, haproxy's 16 kB.
 */
#define LONG_URL 8000

/*
 * A name is looked up by a thread of libcurl's, which nothing can stop: if its
 * request is given up, it and a descriptor stay until the system's resolver
 * gives up too, by default after 30 s (3 name servers, 5 s each, twice).  Of
 * these there are not more than that, for the API and for links.  (libcurl 8.22
 * has a pool of threads, which it bounds itself; its requests do not tell us.)
 */
#define MAX_ABANDONED 64
#define LOOKUP_LIFE (30 * HRFLOW_SEC)

/*
 * Lists of libcurl's; see HrflowHeaders in transfer.h.
 */
struct HrflowHeaders
{
	uint64		serial;			/* of the settings */
	int			nusers;			/* transports, and the cache */
	struct curl_slist *get;		/* of a GET of the API */
	struct curl_slist *post;	/* of a POST */
	struct curl_slist *link;
};

/* The headers that were made last. */
static HrflowHeaders *cached_headers = NULL;

/* When lookups were given up, the last ones in a ring: API, links. */
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
 * Must the address of this request's host be a public one?  Behind a proxy we
 * do not see it.
 */
static bool
is_guarded(const HrflowTransfer *transfer)
{
	return transfer->reply.target == HRFLOW_TO_GUARDED_LINK &&
		*transfer->transport->settings->proxy == '\0';
}

/*
 * A connection is to be made.  Where a pattern let a link's host through, its
 * address must be a public one; a proxy's need not be.
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

	/* A host may have addresses of both kinds: what counts is the public one. */
	transfer->try.opened = true;
	transfer->try.fault = HRFLOW_NO_FAULT;
	hrflow_transfer_advance(transfer, HRFLOW_CONNECTING);
	return hrflow_pool_open_socket(address,
								   transfer->transport->settings->connect_timeout);
}

/*
 * libcurl sends a request again by itself, because the server closed a kept
 * connection, or refused to look at it: that is one more request.
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
 * A connection broke without an answer to this request.  If that took long, nothing
 * was acknowledged (see hrflow_pool_open_socket), as where a NAT has forgotten it:
 * then those that were idle as long are likely to be as dead.
 */
static void
suspect_idle_connections(const HrflowTransfer *transfer)
{
	int64		elapsed = hrflow_clock_now() - transfer->try.began;

	if (elapsed >= transfer->transport->settings->connect_timeout * HRFLOW_MSEC / 2)
		hrflow_poller_shut_idle(transfer->try.local_port, transfer->try.began);
}

/*
 * A request is about to be sent, perhaps over a connection that was made for
 * another that was not guarded.
 *
 * Where a connection that was kept turns out to be dead, libcurl sends the
 * request again over a new one, of whatever kind it is.  A POST may have been
 * processed by then: it is not sent twice.
 */
static int
on_request(void *arg, char *remote, char *local, int remote_port,
		   int local_port)
{
	HrflowTransfer *transfer = arg;
	struct sockaddr_in v4 = {.sin_family = AF_INET};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};

	if (transfer->try.fault != HRFLOW_NO_FAULT)
		return CURL_PREREQFUNC_ABORT;
	if (transfer->try.nsent > 0 && transfer->post != NULL)
	{
		transfer->try.fault = HRFLOW_SENT_TWICE;
		return CURL_PREREQFUNC_ABORT;
	}
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
	if (!is_guarded(transfer))
		return CURL_PREREQFUNC_OK;
	if (inet_pton(AF_INET, remote, &v4.sin_addr) == 1 &&
		!hrflow_link_is_private((struct sockaddr *) &v4))
		return CURL_PREREQFUNC_OK;
	if (inet_pton(AF_INET6, remote, &v6.sin6_addr) == 1 &&
		!hrflow_link_is_private((struct sockaddr *) &v6))
		return CURL_PREREQFUNC_OK;
	transfer->try.fault = HRFLOW_PRIVATE_ADDRESS;
	return CURL_PREREQFUNC_ABORT;
}

/*
 * ------------------------------------------------------------------------
 * Headers
 * ------------------------------------------------------------------------
 */

/*
 * Add a header; libcurl leaves out its own of that name where the value is
 * empty.
 */
static bool
add_header(struct curl_slist **headers, const char *name, const char *value)
{
	char		line[HRFLOW_MAX_KEY + 32];
	struct curl_slist *list;

	snprintf(line, sizeof(line), "%s: %s", name, value);
	list = curl_slist_append(*headers, line);
	if (list != NULL)
		*headers = list;
	return list != NULL;
}

/*
 * Add those that every request has.
 *
 * libcurl has options for both, but puts what it makes of an option together
 * character by character, twice for each request: a tenth of its work.  It
 * leaves its own header out where there is one of that name.
 */
static bool
add_client_headers(struct curl_slist **headers)
{
	return add_header(headers, "User-Agent",
					  "hrflow_embed/" HRFLOW_EMBED_VERSION) &&
		add_header(headers, "Accept-Encoding", HRFLOW_ACCEPTED_ENCODING);
}

/*
 * Add those that every request to the API has.
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
 * The headers of requests with these settings; to be released when none that
 * uses them is in flight any more.  Raises 53200.
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

	/* Who waits for "100 Continue" from a server that says none loses 1 s. */
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
 * A try
 * ------------------------------------------------------------------------
 */

/*
 * Give a transfer a new easy handle.  curl_easy_reset() of the old one would
 * not tell where it has no memory for libcurl's defaults, and the handle would
 * be without some of them.
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
 * Set all options that depend on the settings alone.
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

	/* A signal handler of libcurl's would take PostgreSQL's place. */
	HRFLOW_SETOPT(easy, CURLOPT_NOSIGNAL, 1L);

	/* A name server that does not answer must not hold up a cancel. */
	HRFLOW_SETOPT(easy, CURLOPT_QUICK_EXIT, 1L);

	/*
	 * The key goes to the origin of base_url and nowhere else: see start().
	 * base_url was checked to be https, or http to a loopback address.
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
 * Are there too many lookups that were given up and may still be there?
 */
static bool
too_many_abandoned(bool is_link, int64 now)
{
	int64		oldest = abandoned[is_link].at[abandoned[is_link].next];

	return oldest != 0 && now - oldest < LOOKUP_LIFE;
}

/*
 * Set the version of HTTP, and whether to wait for a connection that others
 * make and this request could share: see origin.c.
 *
 * A POST has a connection of its own.  HTTP/2's servers end one after some
 * requests, and refuse those that they have not looked at; libcurl would send
 * them again, but as it would those that may have been processed: see
 * on_request().
 *
 * So has a long URL: nginx and haproxy end the whole connection where HTTP/1.1
 * has them answer 414 or 400.
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
 * Send a link byte for byte: libcurl 8.22 upper-cases the hexadecimal digits of
 * a path.  A proxy in clear must be told the whole URL.
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
 * Begin a try.  Returns false where it came to its end at once.
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
	 * What goes past a proxy is the server's own.  No link that a pattern let
	 * through does, whatever else libcurl takes for that ("x.localhost").
	 */
	if (*settings->proxy != '\0')
		HRFLOW_SETOPT(transfer->easy, CURLOPT_NOPROXY,
					  reply->target == HRFLOW_TO_GUARDED_LINK ? "" :
					  "localhost,127.0.0.0/8,::1");

	/* libcurl does not copy the body.  Setting it makes the request a POST. */
	HRFLOW_SETOPT(transfer->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) -1);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_POSTFIELDS, transfer->post);
	if (transfer->post == NULL)
		HRFLOW_SETOPT(transfer->easy, CURLOPT_HTTPGET, 1L);
	HRFLOW_SETOPT(transfer->easy, CURLOPT_TIMEOUT_MS, (long) settings->request_timeout);

	/* A connection that is kept is a descriptor less for other hosts. */
	HRFLOW_SETOPT(transfer->easy, CURLOPT_FORBID_REUSE,
				  (long) hrflow_pool_is_short());

	set_version(transfer);
	set_target(transfer);

	/*
	 * Keep connections of requests that offer only HTTP/1.1 from all others.
	 * Once a host has a connection of HTTP/2, libcurl 7.88 adds requests also
	 * to busy ones of HTTP/1.1, and gives the replies to whichever request
	 * reads first: see test/t/069_http2.pl.  A connection is only used again
	 * where the versions of TLS that were asked for are equal.  These are
	 * equivalent, as 1.3 is the latest, but not equal.
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
		reply->detail = "Too many name lookups have not been answered.";
		return false;
	}

	/* A POST is not sent again where it meets a connection that is closed. */
	if (transfer->post != NULL)
		hrflow_poller_drop_closed();

	hrflow_pool_add(transfer->easy);
	return true;
}

/*
 * Fill in the reply of a transfer that libcurl is done with.
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

	reply->http_status = http_status;
	reply->content_type = content_type;
	reply->retry_after = Max(0, Min(retry_after, INT_MAX));
	reply->body = "";
	if (reply->length > 0)
	{
		transfer->body[reply->length] = '\0';
		reply->body = transfer->body;
	}

	/* libcurl is content when a connection ends among the headers. */
	if (code == CURLE_OK && !transfer->try.headers_ended)
		code = CURLE_PARTIAL_FILE;
	if (code != CURLE_OK)
	{
		hrflow_failure_classify(transfer, code);
		if (reply->detail == NULL)
			reply->detail = transfer->error[0] != '\0' ? transfer->error :
				curl_easy_strerror(code);
		if (reply->status == HRFLOW_CONNECTION_LOST && http_status == 0)
		{
			suspect_idle_connections(transfer);
			transfer->avoids_http2 |= transfer->try.offers_http2 &&
				hrflow_origin_protocol(transfer->url) != HRFLOW_HTTP_1_1;
		}
	}
}

/*
 * Take a transfer out of libcurl, done or not.  Does not throw.
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
	 * libcurl 7.88 gives up after sending again five times, and counts over
	 * all requests of a handle (066_wire.pl): use another one next time.
	 */
	if (transfer->try.nsent > 1)
		transfer->configured = 0;
}

/*
 * Have a request, which waits for another's connection, make its own if it
 * cannot share that one.  May throw.
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
 * A try's time is up.  If nothing came over its connection in all that time,
 * shut it down: it may be dead without a word, as where a NAT has forgotten
 * it, and HTTP/2's would be used for ever.  If it is the server that is slow,
 * other requests on it begin anew elsewhere.
 *
 * libcurl would tell the descriptor only to the last request on a connection.
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
 * The next transfer that libcurl is done with, its reply filled in; or NULL.
 * It is still libcurl's.
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
		hrflow_transfer_advance(transfer, HRFLOW_CONNECTING);	/* it has an answer */
	fill_reply(transfer, code);
	return transfer;
}

/*
 * Fill in the reply of what libcurl has lost sight of; its time is up.
 */
void
hrflow_curl_abandon(HrflowTransfer *transfer)
{
	hrflow_pool_discard();
	fill_reply(transfer, CURLE_OPERATION_TIMEDOUT);
}
