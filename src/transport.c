/*-------------------------------------------------------------------------
 *
 * transport.c
 *		URLs to replies: libcurl, the wait loop, tries and limits.
 *
 * The only file that knows libcurl.
 *
 * A backend has one pool: a curl_multi handle whose connections outlive the
 * statement, the easy handles it uses again, and one WaitEventSet.  A
 * statement has one transport on it: its requests, from hrflow_transport_begin
 * to hrflow_transport_end or to the reset of the memory context it began in,
 * whichever comes first.  A backend runs one statement of ours at a time, so
 * a transport that is still there when the next begins was left by an error.
 *
 * Where an error may be raised decides the shape of this file.  No callback of
 * libcurl may throw: a longjmp through libcurl leaves its handles unusable.
 * The callbacks count, set a flag and return; what they saw is acted upon when
 * libcurl has returned.  So nothing but the wait loop is interrupted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <curl/curl.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>

#include "common/pg_prng.h"
#include "compat.h"
#include "hrflow_embed.h"
#include "lib/ilist.h"
#include "lib/pairingheap.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "utils/memutils.h"

/* Milliseconds and seconds in the unit of our clock, the microsecond. */
#define MSEC INT64CONST(1000)
#define SEC INT64CONST(1000000)

/* No such time. */
#define NEVER PG_INT64_MAX

/*
 * The pause before a second try is random between 0 and this, doubled for
 * every further try up to the limit: "full jitter", so that clients that
 * failed together do not come back together.
 */
#define BACKOFF_BASE (250 * MSEC)
#define BACKOFF_LIMIT (16 * SEC)

/*
 * Retry-After is obeyed up to this.  A server that asks for more gets no
 * further try: to come back earlier would be to ignore it.
 */
#define RETRY_AFTER_LIMIT (300 * SEC)

/*
 * A body's buffer larger than this is not kept for the next reply.  Answers
 * have 2 to 20 kB.
 */
#define KEEP_BUFFER (64 * 1024)

/* As many idle easy handles are kept (about 10 kB each) ... */
#define KEEP_HANDLES 32

/* ... and as many idle connections, or two for each request in flight. */
#define KEEP_CONNECTIONS 64

/*
 * As many requests may wait for another try.  More are not begun before some
 * of these are done, so that a server in trouble does not fill our memory.
 */
#define MAX_DELAYED 1024

/*
 * One request: in a list of its transport's, or idle in the pool's.
 */
typedef struct Transfer
{
	HrflowReply reply;			/* first, so that one is the other */
	dlist_node	node;
	pairingheap_node delayed;	/* in the transport's delayed, by due */
	CURL	   *easy;
	uint64		configured;		/* serial of the settings that "easy" has */
	const char *url;			/* the submitter's */
	int64		started;		/* when this try began */
	int64		due;			/* when the next try may begin */
	char	   *body;			/* malloc'd; kept from request to request */
	size_t		capacity;		/* bytes allocated */
	size_t		header_bytes;	/* received in this try */
	bool		is_probe;		/* the first one after a pause */
	bool		too_large;		/* the callbacks met a limit, */
	bool		over_budget;	/* or the backend's, */
	bool		out_of_memory;	/* or no memory */
	char		error[CURL_ERROR_SIZE];
} Transfer;

struct HrflowTransport
{
	const HrflowSettings *settings;
	MemoryContextCallback on_reset;
	dlist_head	ready;			/* to be started, in this order */
	pairingheap *delayed;		/* to be started when due */
	dlist_head	running;		/* in libcurl */
	dlist_head	finished;		/* to be handed out */
	dlist_head	handed_out;
	int			nready;
	int			ndelayed;
	int			nrunning;
	int			limit;			/* of nrunning */
	uint64		account;		/* whose rate is limited */
	int64		admitted_at;	/* no request may start before */
	int64		deadline;		/* all must be done by then; or NEVER */
	bool		has_probe;		/* one of running is a probe */
	bool		stopped;		/* nothing more is sent */
	bool		expired;		/* because the deadline is over */
};

/* The backend's; what is zero is not made yet. */
static struct
{
	CURLM	   *multi;
	int			poller;			/* valid if multi is */
	WaitEventSet *wait_set;
	uint32		wait_event;
	struct curl_slist *headers; /* of the settings whose serial is ... */
	uint64		headers_serial;
	dlist_head	idle;			/* Transfers that wait for work */
	int			nidle;
	HrflowTransport *owner;		/* the transport that is begun, or NULL */

	/* Kept by the callbacks. */
	int64		timer;			/* when libcurl wants to be called; or NEVER */
	int			sockets;		/* open */
	size_t		buffered;		/* bytes of all Transfers' bodies */
	bool		poller_failed;

	int			reserved;		/* descriptors reserved with fd.c */

	/* Which certificates to trust; made out once. */
	bool		trust_known;
	char	   *trust_path;		/* hashed folder; malloc'd; NULL for none */
	bool		trust_default;	/* leave it to libcurl */
} pool;

/*
 * Every option is checked: one that libcurl does not know or cannot store
 * must not pass in silence, least of all those that protect.
 */
#define SETOPT(easy, option, value) \
	check_option(curl_easy_setopt(easy, option, value), #option)
#define MULTI_SETOPT(option, value) \
	check_multi(curl_multi_setopt(pool.multi, option, value), #option)

static void
check_option(CURLcode code, const char *what)
{
	if (code == CURLE_OUT_OF_MEMORY)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	if (code != CURLE_OK)
		elog(ERROR, "%s failed in libcurl: %s", what, curl_easy_strerror(code));
}

static void
check_multi(CURLMcode code, const char *what)
{
	if (code == CURLM_OUT_OF_MEMORY)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	if (code != CURLM_OK)
		elog(ERROR, "%s failed in libcurl: %s", what, curl_multi_strerror(code));
}

/*
 * ------------------------------------------------------------------------
 * Callbacks of libcurl.  None may throw.
 * ------------------------------------------------------------------------
 */

/*
 * Make room for "size" bytes in a body.
 */
static bool
enlarge_body(Transfer *transfer, size_t size)
{
	size_t		capacity = Max(transfer->capacity, 4096);
	char	   *body;

	if (size <= transfer->capacity)
		return true;
	while (capacity < size)
		capacity *= 2;
	capacity = Min(capacity, pool.owner->settings->max_response_size + 1);

	if (pool.buffered - transfer->capacity + capacity >
		HRFLOW_MAX_BUFFERED + KEEP_HANDLES * KEEP_BUFFER)
	{
		/* What others hold may be released before the next try. */
		transfer->over_budget = true;
		return false;
	}
	body = realloc(transfer->body, capacity);
	if (body == NULL)
	{
		transfer->out_of_memory = true;
		return false;
	}
	pool.buffered += capacity - transfer->capacity;
	transfer->body = body;
	transfer->capacity = capacity;
	return true;
}

static size_t
on_body(char *data, size_t one, size_t length, void *arg)
{
	Transfer   *transfer = arg;
	size_t		total = transfer->reply.length + length;

	if (total > pool.owner->settings->max_response_size)
	{
		transfer->too_large = true;
		return 0;
	}
	if (!enlarge_body(transfer, total + 1))
		return 0;
	memcpy(transfer->body + transfer->reply.length, data, length);
	transfer->reply.length = total;
	return length;
}

static size_t
on_header(char *data, size_t one, size_t length, void *arg)
{
	Transfer   *transfer = arg;

	transfer->header_bytes += length;
	if (transfer->header_bytes > HRFLOW_MAX_HEADERS)
	{
		transfer->too_large = true;
		return 0;
	}
	return length;
}

static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	if (!hrflow_poller_watch(pool.poller, fd,
							 what == CURL_POLL_IN || what == CURL_POLL_INOUT,
							 what == CURL_POLL_OUT || what == CURL_POLL_INOUT))
		pool.poller_failed = true;
	return 0;
}

static int
on_timer(CURLM *multi, long timeout, void *arg)
{
	pool.timer = timeout < 0 ? NEVER : hrflow_rate_now() + timeout * MSEC;
	return 0;
}

static curl_socket_t
on_open(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	curl_socket_t fd = socket(address->family, address->socktype,
							  address->protocol);

	if (fd == -1)
		return CURL_SOCKET_BAD;
	(void) fcntl(fd, F_SETFD, FD_CLOEXEC);
	pool.sockets++;
	return fd;
}

static int
on_close(void *arg, curl_socket_t fd)
{
	pool.sockets--;
	return close(fd);
}

/*
 * ------------------------------------------------------------------------
 * The pool
 * ------------------------------------------------------------------------
 */

static void
make_multi(void)
{
	pool.poller = hrflow_poller_open();
	if (pool.poller < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not watch network connections: %m")));
	ReserveExternalFD();

	pool.multi = curl_multi_init();
	if (pool.multi == NULL)
	{
		close(pool.poller);
		ReleaseExternalFD();
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
}

/*
 * The set to wait with.  It is kept, since the poller behind it never changes.
 */
static void
make_wait_set(void)
{
	static WaitEventSet *half_made = NULL;

	/* Before 17 nobody frees a set when an error ends its making. */
	if (half_made != NULL)
		FreeWaitEventSet(half_made);

	half_made = hrflow_compat_wait_set(3);
	AddWaitEventToSet(half_made, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch,
					  NULL);
	AddWaitEventToSet(half_made, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL,
					  NULL);
	AddWaitEventToSet(half_made, WL_SOCKET_READABLE, pool.poller, NULL, NULL);
	pool.wait_event = hrflow_compat_wait_event("HrflowApi");
	pool.wait_set = half_made;
	half_made = NULL;
}

/*
 * Make what a backend needs once.  Called by the first statement that reaches
 * the network, never in the postmaster.
 */
static void
prepare_pool(const HrflowSettings *settings)
{
	static bool initialized = false;

	if (!initialized)
	{
		CURLcode	code = curl_global_init(CURL_GLOBAL_DEFAULT);

		check_option(code, "curl_global_init");
		dlist_init(&pool.idle);
		pool.timer = NEVER;
		initialized = true;
	}
	if (pool.multi == NULL)
		make_multi();

	MULTI_SETOPT(CURLMOPT_SOCKETFUNCTION, on_socket);
	MULTI_SETOPT(CURLMOPT_TIMERFUNCTION, on_timer);
	MULTI_SETOPT(CURLMOPT_MAXCONNECTS,
				 (long) Max(KEEP_CONNECTIONS, 2 * settings->max_concurrency));

	if (pool.wait_set == NULL)
		make_wait_set();
}

/*
 * Is there a file here that OpenSSL would find by a certificate's hash, such
 * as "4042bcee.0"?
 */
static bool
is_hashed_folder(const char *path)
{
	DIR		   *dir = opendir(path);
	struct dirent *entry;
	bool		found = false;

	if (dir == NULL)
		return false;
	while (!found && (entry = readdir(dir)) != NULL)
		found = strspn(entry->d_name, "0123456789abcdef") == 8 &&
			entry->d_name[8] == '.' && entry->d_name[9] == '0' &&
			entry->d_name[10] == '\0';
	closedir(dir);
	return found;
}

/*
 * Make out where certificates come from.
 *
 * OpenSSL 3 takes 21 ms to parse Debian's bundle of certificates, and libcurl
 * has it do so for every connection where it is given a folder too, as it is
 * by default.  A hashed folder alone is read file by file, as needed; a bundle
 * alone is cached by libcurl.  Other TLS libraries keep libcurl's defaults.
 */
static void
find_trust(CURL *easy)
{
	const char *tls = curl_version_info(CURLVERSION_NOW)->ssl_version;
	char	   *path = NULL;

	if (pool.trust_known)
		return;

	pool.trust_default = tls == NULL || strstr(tls, "OpenSSL") == NULL;
	if (!pool.trust_default &&
		curl_easy_getinfo(easy, CURLINFO_CAPATH, &path) == CURLE_OK &&
		path != NULL && is_hashed_folder(path))
		pool.trust_path = strdup(path);
	pool.trust_known = true;
}

/*
 * The headers of a request.  Only begun transports use them, and there is one.
 */
static void
make_headers(const HrflowSettings *settings)
{
	char		line[HRFLOW_MAX_KEY + 32];
	struct curl_slist *list;

	if (pool.headers != NULL && pool.headers_serial == settings->serial)
		return;

	curl_slist_free_all(pool.headers);
	pool.headers = NULL;

	snprintf(line, sizeof(line), "X-API-KEY: %s", settings->api_key);
	list = curl_slist_append(NULL, line);
	if (list != NULL)
		pool.headers = list;
	if (list != NULL && *settings->api_user != '\0')
	{
		snprintf(line, sizeof(line), "X-USER-EMAIL: %s", settings->api_user);
		list = curl_slist_append(pool.headers, line);
	}
	if (list != NULL)
		list = curl_slist_append(pool.headers, "Accept: application/json");
	if (list == NULL)
	{
		curl_slist_free_all(pool.headers);
		pool.headers = NULL;
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
	pool.headers_serial = settings->serial;
}

static void
free_transfer(Transfer *transfer)
{
	curl_easy_cleanup(transfer->easy);
	pool.buffered -= transfer->capacity;
	free(transfer->body);
	free(transfer);
}

/*
 * Put a transfer, which is in no list, back into the pool.  Does not throw.
 */
static void
put_idle(Transfer *transfer)
{
	if (pool.nidle >= KEEP_HANDLES)
	{
		free_transfer(transfer);
		return;
	}
	if (transfer->capacity > KEEP_BUFFER)
	{
		pool.buffered -= transfer->capacity;
		free(transfer->body);
		transfer->body = NULL;
		transfer->capacity = 0;
	}
	dlist_push_head(&pool.idle, &transfer->node);
	pool.nidle++;
}

static Transfer *
get_idle(void)
{
	Transfer   *transfer;

	if (!dlist_is_empty(&pool.idle))
	{
		pool.nidle--;
		return dlist_container(Transfer, node,
							   dlist_pop_head_node(&pool.idle));
	}
	transfer = calloc(1, sizeof(Transfer));
	if (transfer != NULL)
		transfer->easy = curl_easy_init();
	if (transfer == NULL || transfer->easy == NULL)
	{
		free(transfer);
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
	return transfer;
}

/*
 * Have as many descriptors reserved with fd.c as are in use: one for every
 * open connection and every request that runs.  Does not throw.
 */
static void
balance_descriptors(int nrunning)
{
	int			needed = Max(nrunning, pool.sockets);

	while (pool.reserved < needed && AcquireExternalFD())
		pool.reserved++;
	while (pool.reserved > needed)
	{
		ReleaseExternalFD();
		pool.reserved--;
	}
}

/*
 * Reserve a descriptor for one more request.  Where they are short, one
 * request at a time goes out all the same.
 */
static bool
reserve_descriptor(int nrunning)
{
	if (pool.reserved > nrunning)
		return true;
	if (!AcquireExternalFD())
	{
		if (nrunning > 0)
			return false;
		ReserveExternalFD();
	}
	pool.reserved++;
	return true;
}

/*
 * ------------------------------------------------------------------------
 * One easy handle
 * ------------------------------------------------------------------------
 */

static void
configure_trust(CURL *easy, const HrflowSettings *settings)
{
	SETOPT(easy, CURLOPT_SSL_VERIFYPEER, 1L);
	SETOPT(easy, CURLOPT_SSL_VERIFYHOST, 2L);
	SETOPT(easy, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);

	if (*settings->ca_file != '\0')
	{
		SETOPT(easy, CURLOPT_CAINFO, settings->ca_file);
		SETOPT(easy, CURLOPT_CAPATH, NULL);
	}
	else if (pool.trust_path != NULL)
	{
		SETOPT(easy, CURLOPT_CAINFO, NULL);
		SETOPT(easy, CURLOPT_CAPATH, pool.trust_path);
	}
	else if (!pool.trust_default)
		SETOPT(easy, CURLOPT_CAPATH, NULL);
}

/*
 * Set all options that depend on the settings alone.
 */
static void
configure(Transfer *transfer, const HrflowSettings *settings)
{
	CURL	   *easy = transfer->easy;

	if (transfer->configured == settings->serial)
		return;

	transfer->configured = 0;
	curl_easy_reset(easy);
	find_trust(easy);

	SETOPT(easy, CURLOPT_PRIVATE, transfer);
	SETOPT(easy, CURLOPT_ERRORBUFFER, transfer->error);
	SETOPT(easy, CURLOPT_WRITEFUNCTION, on_body);
	SETOPT(easy, CURLOPT_WRITEDATA, transfer);
	SETOPT(easy, CURLOPT_HEADERFUNCTION, on_header);
	SETOPT(easy, CURLOPT_HEADERDATA, transfer);
	SETOPT(easy, CURLOPT_OPENSOCKETFUNCTION, on_open);
	SETOPT(easy, CURLOPT_CLOSESOCKETFUNCTION, on_close);

	/* A signal handler of libcurl's would take PostgreSQL's place. */
	SETOPT(easy, CURLOPT_NOSIGNAL, 1L);

	/* A name server that does not answer must not hold up a cancel. */
	SETOPT(easy, CURLOPT_QUICK_EXIT, 1L);

	/*
	 * The key goes to the origin of base_url and nowhere else.  base_url was
	 * checked to be https, or http to a loopback address.
	 */
	SETOPT(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	SETOPT(easy, CURLOPT_FOLLOWLOCATION, 0L);
	SETOPT(easy, CURLOPT_HEADEROPT, (long) CURLHEADER_SEPARATE);
	SETOPT(easy, CURLOPT_HTTPHEADER, pool.headers);
	SETOPT(easy, CURLOPT_USERAGENT,
		   "hrflow_embed/" HRFLOW_EMBED_VERSION " libcurl/" LIBCURL_VERSION);
	SETOPT(easy, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	SETOPT(easy, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
	SETOPT(easy, CURLOPT_PATH_AS_IS, 1L);

	/* An empty string, unlike NULL, makes libcurl ignore the environment. */
	SETOPT(easy, CURLOPT_PROXY, settings->proxy);
	SETOPT(easy, CURLOPT_NOPROXY, "localhost,127.0.0.0/8,::1");
	SETOPT(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
	configure_trust(easy, settings);

	/* HTTP/2 where TLS offers it, and then on one connection. */
	SETOPT(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_2TLS);
	SETOPT(easy, CURLOPT_HTTP09_ALLOWED, 0L);
	SETOPT(easy, CURLOPT_ACCEPT_ENCODING, "gzip");
	SETOPT(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	SETOPT(easy, CURLOPT_CONNECTTIMEOUT_MS, (long) settings->connect_timeout);

	transfer->configured = settings->serial;
}

/*
 * Begin a try of the first of the ready ones.
 */
static void
start(HrflowTransport *transport, Transfer *transfer)
{
	const HrflowSettings *settings = transport->settings;
	HrflowReply *reply = &transfer->reply;

	configure(transfer, settings);
	SETOPT(transfer->easy, CURLOPT_URL, transfer->url);
	SETOPT(transfer->easy, CURLOPT_TIMEOUT_MS, (long) settings->request_timeout);

	/*
	 * Over TLS wait for a connection being made, which may turn out to be
	 * HTTP/2 and carry this request too.  In clear there is nothing to wait
	 * for, and libcurl would learn so from the first reply only.
	 */
	SETOPT(transfer->easy, CURLOPT_PIPEWAIT,
		   (long) (pg_strncasecmp(transfer->url, "https", 5) == 0));

	reply->status = HRFLOW_OK;
	reply->transient = false;
	reply->detail = NULL;
	reply->http_status = 0;
	reply->content_type = NULL;
	reply->length = 0;
	reply->retry_after = 0;
	reply->attempts++;
	transfer->header_bytes = 0;
	transfer->too_large = false;
	transfer->over_budget = false;
	transfer->out_of_memory = false;
	transfer->error[0] = '\0';
	transfer->started = hrflow_rate_now();

	check_multi(curl_multi_add_handle(pool.multi, transfer->easy),
				"curl_multi_add_handle");
	dlist_delete(&transfer->node);
	transport->nready--;
	dlist_push_tail(&transport->running, &transfer->node);
	transport->nrunning++;

	hrflow_stats_count(HRFLOW_REQUESTS, 1);
	if (reply->attempts > 1)
		hrflow_stats_count(HRFLOW_RETRIES, 1);
}

/*
 * Was the connection made, TLS included?
 */
static bool
was_connected(CURL *easy)
{
	curl_off_t	made = 0;

	return curl_easy_getinfo(easy, CURLINFO_PRETRANSFER_TIME_T,
							 &made) == CURLE_OK && made > 0;
}

/*
 * The status of a try that libcurl says has failed.
 */
static HrflowStatus
classify_failure(const HrflowTransport *transport, Transfer *transfer,
				 CURLcode code)
{
	HrflowReply *reply = &transfer->reply;
	bool		connected = was_connected(transfer->easy);

	if (transfer->too_large)
	{
		reply->detail = "The reply exceeds hrflow_embed.max_response_size, or its headers a limit of their own.";
		return HRFLOW_TOO_LARGE;
	}

	switch (code)
	{
		case CURLE_OPERATION_TIMEDOUT:

			/*
			 * libcurl does not tell its two time limits apart.  When it is
			 * not the whole try's that is up, it is the connection's.
			 */
			if (connected || hrflow_rate_now() - transfer->started >=
				transport->settings->request_timeout * MSEC)
				return HRFLOW_TIMEOUT;
			reply->transient = true;
			return HRFLOW_CONNECT_FAILED;

		case CURLE_SSL_CACERT_BADFILE:
			reply->detail = "The file that hrflow_embed.ca_file names cannot be read as certificates.";
			return HRFLOW_INVALID_REQUEST;

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
			return connected ? HRFLOW_CONNECTION_LOST : HRFLOW_CONNECT_FAILED;
	}
}

/*
 * Fill in the reply of a transfer that libcurl is done with.
 */
static void
fill_reply(HrflowTransport *transport, Transfer *transfer, CURLcode code)
{
	HrflowReply *reply = &transfer->reply;
	long		http_status = 0;
	char	   *content_type = NULL;
	curl_off_t	retry_after = 0;
	long		connects = 0;

	curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &http_status);
	curl_easy_getinfo(transfer->easy, CURLINFO_CONTENT_TYPE, &content_type);
	curl_easy_getinfo(transfer->easy, CURLINFO_RETRY_AFTER, &retry_after);

	curl_easy_getinfo(transfer->easy, CURLINFO_NUM_CONNECTS, &connects);
	hrflow_stats_count(HRFLOW_CONNECTIONS_OPENED, connects);
	hrflow_stats_count(HRFLOW_CONNECTIONS_REUSED,
					   connects == 0 && http_status != 0);
	hrflow_stats_count(HRFLOW_RATE_LIMITS, http_status == 429);
	hrflow_stats_count(HRFLOW_BYTES_RECEIVED, reply->length);

	reply->http_status = http_status;
	reply->content_type = content_type;
	reply->retry_after = Min(retry_after, INT_MAX);
	reply->body = "";
	if (reply->length > 0)
	{
		transfer->body[reply->length] = '\0';
		reply->body = transfer->body;
	}

	if (code != CURLE_OK)
	{
		reply->status = classify_failure(transport, transfer, code);
		if (reply->detail == NULL)
			reply->detail = transfer->error[0] != '\0' ? transfer->error :
				curl_easy_strerror(code);
	}
}

/*
 * Hand a request out as one that will not be made.
 */
static void
give_up(HrflowTransport *transport, Transfer *transfer)
{
	transfer->reply.stopped = true;
	dlist_push_tail(&transport->finished, &transfer->node);
}

/*
 * Have a request, which is in no list, made as soon as may be.
 */
static void
make_ready(HrflowTransport *transport, Transfer *transfer, bool first)
{
	if (transport->stopped)
	{
		give_up(transport, transfer);
		return;
	}
	if (first)
		dlist_push_head(&transport->ready, &transfer->node);
	else
		dlist_push_tail(&transport->ready, &transfer->node);
	transport->nready++;
}

/*
 * Move a transfer that libcurl is done with to where it belongs.
 */
static void
finish(HrflowTransport *transport, Transfer *transfer, CURLcode code)
{
	curl_multi_remove_handle(pool.multi, transfer->easy);
	dlist_delete(&transfer->node);
	transport->nrunning--;

	if (transfer->over_budget && transport->nrunning > 0)
	{
		/*
		 * The backend's budget is spent, not this reply's.  Ask again when
		 * others have given theirs back, and keep fewer in flight from now
		 * on.
		 */
		transport->limit = Max(1, transport->limit / 2);
		transfer->reply.attempts--;
		make_ready(transport, transfer, false);
		return;
	}
	if (transfer->over_budget)
		transfer->too_large = true;

	fill_reply(transport, transfer, code);
	dlist_push_tail(&transport->finished, &transfer->node);
}

/*
 * ------------------------------------------------------------------------
 * The loop
 * ------------------------------------------------------------------------
 */

/*
 * Let libcurl work on one socket, or on its timers.
 *
 * It may start a thread here, to resolve a name.  A thread inherits the
 * signal mask, and must never run a signal handler of PostgreSQL's.
 */
static void
drive(curl_socket_t fd, int events)
{
	sigset_t	all;
	sigset_t	old;
	int			running;
	CURLMcode	code;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	code = curl_multi_socket_action(pool.multi, fd, events, &running);
	pthread_sigmask(SIG_SETMASK, &old, NULL);

	check_multi(code, "curl_multi_socket_action");
	if (pool.poller_failed)
	{
		pool.poller_failed = false;
		elog(ERROR, "could not watch a network connection");
	}
}

static void
drive_ready_sockets(void)
{
	HrflowPollerEvent events[64];
	int			n = hrflow_poller_wait(pool.poller, events, lengthof(events));

	for (int i = 0; i < n; i++)
		drive(events[i].fd,
			  (events[i].readable ? CURL_CSELECT_IN : 0) |
			  (events[i].writable ? CURL_CSELECT_OUT : 0) |
			  (events[i].failed ? CURL_CSELECT_ERR : 0));
}

static void
collect_finished(HrflowTransport *transport)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(pool.multi, &left)) != NULL)
	{
		Transfer   *transfer;
		CURLcode	code = message->data.result;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
		finish(transport, transfer, code);
	}
}

static Transfer *
first_delayed(const HrflowTransport *transport)
{
	if (pairingheap_is_empty(transport->delayed))
		return NULL;
	return pairingheap_container(Transfer, delayed,
								 pairingheap_first(transport->delayed));
}

static Transfer *
pop_delayed(HrflowTransport *transport)
{
	transport->ndelayed--;
	return pairingheap_container(Transfer, delayed,
								 pairingheap_remove_first(transport->delayed));
}

/*
 * Start what has its turn: below the limit in flight, with a descriptor, and
 * as the account's rate admits.
 */
static void
start_what_may(HrflowTransport *transport)
{
	const HrflowSettings *settings = transport->settings;
	int64		now = hrflow_rate_now();
	Transfer   *transfer;

	while ((transfer = first_delayed(transport)) != NULL &&
		   transfer->due <= now)
		make_ready(transport, pop_delayed(transport), false);

	while (transport->nready > 0 &&
		   transport->nrunning < transport->limit &&
		   transport->admitted_at <= now &&
		   reserve_descriptor(transport->nrunning))
	{
		HrflowAdmission admission;

		admission = hrflow_rate_admit(transport->account,
									  settings->max_requests_per_minute,
									  settings->request_timeout * MSEC + SEC,
									  &transport->admitted_at);
		if (admission == HRFLOW_WAIT)
			break;

		transfer = dlist_head_element(Transfer, node, &transport->ready);
		transfer->is_probe = admission == HRFLOW_ADMIT_PROBE;
		transport->has_probe |= transfer->is_probe;
		start(transport, transfer);
	}
	balance_descriptors(transport->nrunning);
}

/*
 * How long may we sleep, in milliseconds?  -1: until something happens.
 */
static long
sleep_time(HrflowTransport *transport)
{
	int64		now;
	int64		next = Min(pool.timer, transport->deadline);
	Transfer   *transfer = first_delayed(transport);

	if (transfer != NULL)
		next = Min(next, transfer->due);
	if (transport->nready > 0 && transport->nrunning < transport->limit)
		next = Min(next, transport->admitted_at);
	if (next == NEVER)
		return -1;

	now = hrflow_rate_now();
	if (next <= now)
		return 0;
	return Min((next - now + MSEC - 1) / MSEC, INT_MAX);
}

static void
wait_for_events(HrflowTransport *transport)
{
	WaitEvent	events[3];
	int64		began = hrflow_rate_now();
	int			n;

	n = WaitEventSetWait(pool.wait_set, sleep_time(transport), events,
						 lengthof(events), pool.wait_event);
	hrflow_stats_count(HRFLOW_WAITED_USEC, hrflow_rate_now() - began);
	for (int i = 0; i < n; i++)
	{
		if (events[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		if (events[i].events & WL_SOCKET_READABLE)
			drive_ready_sockets();
	}
}

/*
 * ------------------------------------------------------------------------
 * What others call
 * ------------------------------------------------------------------------
 */

static int
compare_due(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	int64		due_a = pairingheap_const_container(Transfer, delayed, a)->due;
	int64		due_b = pairingheap_const_container(Transfer, delayed, b)->due;

	/* The heap gives the largest first. */
	return due_a < due_b ? 1 : due_a > due_b ? -1 : 0;
}

static void
put_all_idle(dlist_head *list)
{
	while (!dlist_is_empty(list))
		put_idle(dlist_container(Transfer, node, dlist_pop_head_node(list)));
}

/*
 * Take everything back that a transport has from the pool.  Connections with
 * a request in flight are closed, the others stay.  Does not throw.
 */
static void
dismantle(HrflowTransport *transport)
{
	dlist_iter	iter;

	dlist_foreach(iter, &transport->running)
	{
		Transfer   *transfer = dlist_container(Transfer, node, iter.cur);

		curl_multi_remove_handle(pool.multi, transfer->easy);
	}
	put_all_idle(&transport->running);
	put_all_idle(&transport->ready);
	put_all_idle(&transport->finished);
	put_all_idle(&transport->handed_out);
	while (!pairingheap_is_empty(transport->delayed))
		put_idle(pop_delayed(transport));
	if (transport->has_probe)
		hrflow_rate_end_probe(transport->account, false);
	balance_descriptors(0);
	hrflow_stats_flush();
	pool.owner = NULL;
}

/*
 * The memory context of a transport goes: at the statement's end when there
 * was an error.  A backend that exits leaves its sockets to the kernel.
 */
static void
on_context_reset(void *arg)
{
	if (pool.owner == arg && !proc_exit_inprogress)
		dismantle(arg);
}

/*
 * Begin a statement's requests.  "settings" must outlive them.  "time_limit"
 * is for all of them, in milliseconds; 0 for none.  The transport lives in the
 * current memory context and ends with it.
 */
HrflowTransport *
hrflow_transport_begin(const HrflowSettings *settings, int time_limit)
{
	HrflowTransport *transport;

	if (pool.owner != NULL)
		dismantle(pool.owner);

	/* Attach to what is shared while an error may still be raised. */
	hrflow_stats_flush();
	prepare_pool(settings);
	make_headers(settings);

	transport = palloc0(sizeof(HrflowTransport));
	transport->settings = settings;
	transport->limit = settings->max_concurrency;
	transport->account = hrflow_rate_account(settings);
	transport->deadline = time_limit > 0 ?
		hrflow_rate_now() + time_limit * MSEC : NEVER;
	dlist_init(&transport->ready);
	dlist_init(&transport->running);
	dlist_init(&transport->finished);
	dlist_init(&transport->handed_out);
	transport->delayed = pairingheap_allocate(compare_due, NULL);

	transport->on_reset.func = on_context_reset;
	transport->on_reset.arg = transport;
	MemoryContextRegisterResetCallback(CurrentMemoryContext,
									   &transport->on_reset);
	pool.owner = transport;
	hrflow_stats_count(HRFLOW_CALLS, 1);
	return transport;
}

/*
 * Ask for a URL, which must stay where it is until its reply is released.
 * Nothing is sent yet.  "tag" comes back in the reply.
 */
void
hrflow_transport_submit(HrflowTransport *transport, const char *url, void *tag)
{
	Transfer   *transfer = get_idle();

	memset(&transfer->reply, 0, sizeof(transfer->reply));
	transfer->reply.tag = tag;
	transfer->url = url;
	make_ready(transport, transfer, false);
}

/*
 * How many requests more are of use now?  Those beyond would only wait here,
 * and take memory.
 */
int
hrflow_transport_room(HrflowTransport *transport)
{
	if (transport->stopped || transport->ndelayed >= MAX_DELAYED)
		return 0;
	return Max(0, transport->limit - transport->nrunning - transport->nready);
}

/*
 * Send nothing more.  What is in flight comes home; the rest comes as replies
 * that say "stopped".
 */
void
hrflow_transport_stop(HrflowTransport *transport)
{
	transport->stopped = true;
	while (!dlist_is_empty(&transport->ready))
		give_up(transport, dlist_container(Transfer, node,
										   dlist_pop_head_node(&transport->ready)));
	transport->nready = 0;
	while (!pairingheap_is_empty(transport->delayed))
		give_up(transport, pop_delayed(transport));
}

/*
 * The time limit is over: what is in flight is given up too.
 */
static void
expire(HrflowTransport *transport)
{
	transport->expired = true;
	hrflow_transport_stop(transport);
	while (!dlist_is_empty(&transport->running))
	{
		Transfer   *transfer = dlist_container(Transfer, node,
											   dlist_pop_head_node(&transport->running));

		curl_multi_remove_handle(pool.multi, transfer->easy);
		transport->nrunning--;
		give_up(transport, transfer);
	}
}

/*
 * Is the time limit over?
 */
bool
hrflow_transport_expired(HrflowTransport *transport)
{
	return transport->expired;
}

/*
 * Wait for the next reply to come; NULL when nothing is asked for any more.
 *
 * Each is one try's: the caller makes out what it means and must then ask
 * hrflow_transport_retry() whether there will be another.
 *
 * Raises 57014, 57P01 and the like from CHECK_FOR_INTERRUPTS, and 53200.
 */
HrflowReply *
hrflow_transport_next(HrflowTransport *transport)
{
	Assert(pool.owner == transport);

	for (;;)
	{
		Transfer   *transfer;
		int64		now = hrflow_rate_now();

		CHECK_FOR_INTERRUPTS();

		if (now >= transport->deadline && !transport->expired)
			expire(transport);
		start_what_may(transport);
		if (pool.timer <= now)
		{
			pool.timer = NEVER;
			drive(CURL_SOCKET_TIMEOUT, 0);
		}
		collect_finished(transport);

		if (!dlist_is_empty(&transport->finished))
		{
			transfer = dlist_container(Transfer, node,
									   dlist_pop_head_node(&transport->finished));
			dlist_push_tail(&transport->handed_out, &transfer->node);
			if (transfer->out_of_memory)
				ereport(ERROR,
						(errcode(ERRCODE_OUT_OF_MEMORY),
						 errmsg("out of memory")));
			return &transfer->reply;
		}
		if (transport->nrunning == 0 && transport->nready == 0 &&
			transport->ndelayed == 0)
			return NULL;

		wait_for_events(transport);
	}
}

/*
 * A random pause before try "attempt" + 1.
 */
static int64
backoff(int attempt)
{
	int64		most = BACKOFF_BASE << Min(attempt - 1, 10);

	return pg_prng_double(&pg_global_prng_state) * Min(most, BACKOFF_LIMIT);
}

/*
 * How long to wait before another try.
 */
static int64
delay_of(const HrflowReply *reply, bool limited)
{
	int64		asked = reply->retry_after * SEC;

	if (limited && asked > 0)
		return asked;
	return Max(asked, backoff(Max(reply->attempts, 1)));
}

/*
 * A probe has come back, and did not meet a 429.  It has got through when
 * there was an answer.
 */
static void
end_probe(HrflowTransport *transport, Transfer *transfer)
{
	transfer->is_probe = false;
	transport->has_probe = false;
	transport->admitted_at = 0;
	hrflow_rate_end_probe(transport->account,
						  transfer->reply.http_status != 0);
}

/*
 * A request met a 429: pause the account.  Those that were under way when the
 * pause began are not held against their requests, which are asked again
 * without counting the try; the one that is counted goes first.
 */
static bool
retry_limited(HrflowTransport *transport, Transfer *transfer, int64 delay)
{
	bool		was_probe = transfer->is_probe;
	bool		counts;

	if (was_probe)
	{
		transfer->is_probe = false;
		transport->has_probe = false;
	}
	counts = !hrflow_rate_pause(transport->account, delay, was_probe) ||
		was_probe;
	if (counts &&
		transfer->reply.attempts >= transport->settings->max_attempts)
		return false;
	if (!counts)
		transfer->reply.attempts--;

	dlist_delete(&transfer->node);
	make_ready(transport, transfer, counts);
	return true;
}

/*
 * Tell the transport what a reply turned out to be, and be told whether it
 * will be asked again: then the reply is the transport's once more.  It must
 * be called for every reply that does not say "stopped".
 *
 * All our requests are GET, and so may be repeated.
 */
bool
hrflow_transport_retry(HrflowTransport *transport, HrflowReply *reply,
					   const HrflowResult *result)
{
	Transfer   *transfer = (Transfer *) reply;
	bool		limited = result->status == HRFLOW_RATE_LIMITED;
	int64		delay;

	if (transfer->is_probe && !limited)
		end_probe(transport, transfer);
	if (!result->transient)
		return false;

	delay = delay_of(reply, limited);
	if (delay > RETRY_AFTER_LIMIT || transport->stopped ||
		hrflow_rate_now() + delay >= transport->deadline)
	{
		/* Others may still have the time. */
		if (transfer->is_probe)
			end_probe(transport, transfer);
		return false;
	}
	if (limited)
		return retry_limited(transport, transfer, delay);
	if (reply->attempts >= transport->settings->max_attempts)
		return false;

	dlist_delete(&transfer->node);
	transfer->due = hrflow_rate_now() + delay;
	pairingheap_add(transport->delayed, &transfer->delayed);
	transport->ndelayed++;
	return true;
}

/*
 * Give a reply back.  What it points to is gone.
 */
void
hrflow_transport_release(HrflowTransport *transport, HrflowReply *reply)
{
	Transfer   *transfer = (Transfer *) reply;

	dlist_delete(&transfer->node);
	put_idle(transfer);
}

/*
 * End a statement's requests.  Connections stay open for the next one.
 */
void
hrflow_transport_end(HrflowTransport *transport)
{
	Assert(pool.owner == transport);
	dismantle(transport);
}
