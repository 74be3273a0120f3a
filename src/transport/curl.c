/*-------------------------------------------------------------------------
 *
 * curl.c
 *		libcurl: a backend's connections, one request, and the wait for them.
 *
 * The only file that knows libcurl.  A backend has one pool: a curl_multi
 * handle whose connections outlive the statement, the easy handles it uses
 * again, and one WaitEventSet.
 *
 * No callback of libcurl may throw: a longjmp through libcurl leaves its
 * handles unusable.  The callbacks count, set a flag and return; what they saw
 * is acted upon when libcurl has returned.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "compat.h"
#include "transport/transfer.h"
#include "miscadmin.h"
#include "storage/fd.h"

/*
 * A body's buffer larger than this is not kept for the next reply.  Answers
 * have 2 to 20 kB.
 */
#define KEEP_BUFFER (64 * 1024)

/* What servers may compress with, and libcurl is to decompress. */
#define ACCEPTED_ENCODING "gzip"

/* As many idle easy handles are kept (about 10 kB each) ... */
#define KEEP_HANDLES 32

/* ... and as many idle connections, or two for each request in flight. */
#define KEEP_CONNECTIONS 64

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
 * CURLMOPT_QUICK_EXIT, which came with 8.20, though these headers may be older:
 * curl_multi_cleanup() does not wait for lookups that were given up.
 */
#define MULTI_QUICK_EXIT ((CURLMoption) (CURLOPTTYPE_LONG + 21))

/* The backend's; what is zero is not made yet. */
static struct
{
	CURLM	   *multi;
	bool		discard_multi;	/* it is not to be used for another statement */
	bool		has_poller;
	int			poller;			/* valid if so */
	WaitEventSet *wait_set;
	uint32		wait_event;		/* of who awaits the network, */
	uint32		delay_event;	/* and of who has nothing under way */
	const HrflowSettings *settings; /* of the statement */
	struct curl_slist *headers; /* of a GET of the API, */
	struct curl_slist *post_headers;	/* of a POST, */
	struct curl_slist *link_headers;	/* and of a link, for the settings
										 * whose serial is ... */
	uint64		headers_serial;
	dlist_head	idle;			/* transfers that wait for work */
	int			nidle;

	/* Kept by the callbacks. */
	int64		timer;			/* when libcurl wants to be called; or
								 * HRFLOW_NEVER */
	int			sockets;		/* open */
	size_t		buffered;		/* bytes of all transfers' bodies, */
	size_t		most_buffered;	/* and the most since it was asked for */
	int			poller_errno;	/* why a socket is not watched; 0: none */

	/* When lookups were given up, the last ones in a ring: API, links. */
	struct
	{
		int64		at[MAX_ABANDONED];
		int			next;
	}			abandoned[2];

	int			reserved;		/* descriptors reserved with fd.c */

	struct stat ca_file;		/* as it was when it was looked at, */
	int64		ca_file_seen;	/* then */

	/* Which certificates to trust without; made out once. */
	bool		trust_known;
	char	   *trust_path;		/* hashed folder; malloc'd; NULL for none */
	bool		trust_default;	/* leave it to libcurl */
}			pool;

StaticAssertDecl(sizeof(((HrflowTransfer *) NULL)->error) >= CURL_ERROR_SIZE,
				 "libcurl's messages must fit");

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

/*
 * What a multi handle is like after an error of its own is not told: libcurl
 * 7.88 divides by zero in one that had no memory for a socket.
 */
static void
check_multi(CURLMcode code, const char *what)
{
	pool.discard_multi |= code != CURLM_OK;
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
enlarge_body(HrflowTransfer *transfer, size_t size)
{
	size_t		capacity = Max(transfer->capacity, 4096);
	char	   *body;

	if (size <= transfer->capacity)
		return true;
	while (capacity < size)
		capacity *= 2;
	capacity = Min(capacity, pool.settings->max_response_size + 1);

	if (pool.buffered - transfer->capacity + capacity >
		HRFLOW_MAX_BUFFERED + KEEP_HANDLES * KEEP_BUFFER)
	{
		/*
		 * What others hold may be released before the next try.  They have
		 * this one's room at once.
		 */
		transfer->over_budget = true;
		hrflow_curl_drop_body(transfer);
		return false;
	}
	body = realloc(transfer->body, capacity);
	if (body == NULL)
	{
		transfer->out_of_memory = true;
		return false;
	}
	pool.buffered += capacity - transfer->capacity;
	pool.most_buffered = Max(pool.most_buffered, pool.buffered);
	transfer->body = body;
	transfer->capacity = capacity;
	return true;
}

static size_t
on_body(char *data, size_t one, size_t length, void *arg)
{
	HrflowTransfer *transfer = arg;
	size_t		total = transfer->reply.length + length;

	if (total > pool.settings->max_response_size)
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
	HrflowTransfer *transfer = arg;

	/* An empty line ends them, unless it ends those of an HTTP 100. */
	if (length >= 5 && memcmp(data, "HTTP/", 5) == 0)
		transfer->headers_ended = false;
	else if (length > 0 && (*data == '\r' || *data == '\n'))
		transfer->headers_ended = true;

	transfer->header_bytes += length;
	if (transfer->header_bytes > HRFLOW_MAX_HEADERS)
	{
		transfer->too_large = true;
		return 0;
	}
	return length;
}

/*
 * libcurl 7.88 closes a socket that was not connected in time by itself, and
 * tells us afterwards.
 */
static void
notice_closed(int fd)
{
	if (fcntl(fd, F_GETFD) == -1 && hrflow_poller_closed(fd))
		pool.sockets--;
}

/*
 * A socket that is no connection is for the thread that looks a name up.
 */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	if (what == CURL_POLL_REMOVE)
		notice_closed(fd);
	else if (!hrflow_poller_is_connection(fd))
	{
		HrflowTransfer *transfer = NULL;

		/* It may be a handle of libcurl's own, as in 8.22. */
		curl_easy_getinfo(easy, CURLINFO_PRIVATE, &transfer);
		if (transfer != NULL)
			transfer->looks_up = true;
	}
	if (!hrflow_poller_watch(pool.poller, fd,
							 what == CURL_POLL_IN || what == CURL_POLL_INOUT,
							 what == CURL_POLL_OUT || what == CURL_POLL_INOUT))
		pool.poller_errno = errno;
	return 0;
}

static int
on_timer(CURLM *multi, long timeout, void *arg)
{
	pool.timer = timeout < 0 ? HRFLOW_NEVER : hrflow_clock_now() + timeout * HRFLOW_MSEC;
	return 0;
}

/*
 * Must the address of this request's host be a public one?  Behind a proxy we
 * do not see it.
 */
static bool
is_guarded(const HrflowTransfer *transfer)
{
	return transfer->reply.target == HRFLOW_TO_GUARDED_LINK &&
		*pool.settings->proxy == '\0';
}

/*
 * A connection is to be made.  Where a pattern let a link's host through, its
 * address must be a public one; a proxy's need not be.
 */
static curl_socket_t
on_open(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	HrflowTransfer *transfer = arg;
	curl_socket_t fd;

	if (is_guarded(transfer) && hrflow_link_is_private(&address->addr))
	{
		transfer->address_refused = true;
		return CURL_SOCKET_BAD;
	}

	fd = socket(address->family, address->socktype, address->protocol);
	if (fd == -1)
		return CURL_SOCKET_BAD;
	(void) fcntl(fd, F_SETFD, FD_CLOEXEC);
	if (hrflow_poller_opened(fd))
		pool.sockets++;
	return fd;
}

static int
on_close(void *arg, curl_socket_t fd)
{
	if (hrflow_poller_closed(fd))
		pool.sockets--;
	return close(fd);
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

	transfer->sent_twice = transfer->connected && transfer->post != NULL;
	if (transfer->sent_twice)
		return CURL_PREREQFUNC_ABORT;
	transfer->connected = true;
	transfer->local_port = local_port;
	if (!is_guarded(transfer))
		return CURL_PREREQFUNC_OK;
	if (inet_pton(AF_INET, remote, &v4.sin_addr) == 1 &&
		!hrflow_link_is_private((struct sockaddr *) &v4))
		return CURL_PREREQFUNC_OK;
	if (inet_pton(AF_INET6, remote, &v6.sin6_addr) == 1 &&
		!hrflow_link_is_private((struct sockaddr *) &v6))
		return CURL_PREREQFUNC_OK;
	transfer->address_refused = true;
	return CURL_PREREQFUNC_ABORT;
}

/*
 * ------------------------------------------------------------------------
 * The pool
 * ------------------------------------------------------------------------
 */

static void
make_poller(void)
{
	int			poller = hrflow_poller_open();

	if (poller < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not watch network connections: %m")));
	ReserveExternalFD();
	pool.poller = poller;
	pool.has_poller = true;
}

static void
free_transfer(HrflowTransfer *transfer)
{
	curl_easy_cleanup(transfer->easy);
	pool.buffered -= transfer->capacity;
	free(transfer->body);
	free(transfer);
}

/*
 * Is the file of certificates another than when it was looked at last, or
 * changed?  A look costs 3 % of a call over loopback (BENCH_ONLY=1 make bench),
 * so one a second must do.
 */
static bool
ca_file_changed(const HrflowSettings *settings)
{
	struct stat before;
	int64		now = hrflow_clock_now();

	if (*settings->ca_file == '\0' || now - pool.ca_file_seen < HRFLOW_SEC)
		return false;
	before = pool.ca_file;
	pool.ca_file_seen = now;
	if (stat(settings->ca_file, &pool.ca_file) != 0)
		memset(&pool.ca_file, 0, sizeof(pool.ca_file));
	return before.st_dev != pool.ca_file.st_dev ||
		before.st_ino != pool.ca_file.st_ino ||
		before.st_size != pool.ca_file.st_size ||
		before.st_mtime != pool.ca_file.st_mtime ||
		before.st_ctime != pool.ca_file.st_ctime;
}

/*
 * Close all connections, and forget what libcurl has read of certificates and
 * remembers of TLS sessions.  The certificates are the multi handle's, for a
 * day; the sessions are the easy handles', and since 8.12 the multi handle's.
 */
static void
discard_multi(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &pool.idle)
	{
		free_transfer(dlist_container(HrflowTransfer, node, iter.cur));
	}
	dlist_init(&pool.idle);
	pool.nidle = 0;
	curl_multi_cleanup(pool.multi);
	pool.multi = NULL;
	pool.discard_multi = false;
}

/*
 * The handle that requests are added to; no request is in one that is
 * discarded.
 */
static void
make_multi(const HrflowSettings *settings)
{
	if (ca_file_changed(settings))
		pool.discard_multi = true;
	if (pool.discard_multi)
		discard_multi();
	if (pool.multi != NULL)
		return;
	pool.multi = curl_multi_init();
	if (pool.multi == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));

	/* An older library does not know it, and waits for none. */
	(void) curl_multi_setopt(pool.multi, MULTI_QUICK_EXIT, 1L);
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

	/* PostgreSQL would raise an internal error. */
	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not wait for the network: too many open files"),
				 errhint("Raise max_files_per_process, or close other connections of this session.")));
	ReleaseExternalFD();

	half_made = hrflow_compat_wait_set(3);
	AddWaitEventToSet(half_made, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch,
					  NULL);
	if (IsUnderPostmaster)
		AddWaitEventToSet(half_made, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET,
						  NULL, NULL);
	AddWaitEventToSet(half_made, WL_SOCKET_READABLE, pool.poller, NULL, NULL);
	pool.wait_event = hrflow_compat_wait_event("HrflowApi");
	pool.delay_event = hrflow_compat_wait_event("HrflowDelay");
	pool.wait_set = half_made;
	half_made = NULL;
}

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
		add_header(headers, "Accept-Encoding", ACCEPTED_ENCODING);
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

static void
free_headers(void)
{
	curl_slist_free_all(pool.headers);
	curl_slist_free_all(pool.post_headers);
	curl_slist_free_all(pool.link_headers);
	pool.headers = NULL;
	pool.post_headers = NULL;
	pool.link_headers = NULL;
}

/*
 * The headers of requests to the API.  No request is in flight that uses the
 * old ones.
 */
static void
make_headers(const HrflowSettings *settings)
{
	if (pool.headers != NULL && pool.headers_serial == settings->serial)
		return;
	free_headers();

	/* Who waits for "100 Continue" from a server that says none loses 1 s. */
	if (!add_client_headers(&pool.link_headers) ||
		!add_api_headers(&pool.headers, settings) ||
		!add_api_headers(&pool.post_headers, settings) ||
		!add_header(&pool.post_headers, "Content-Type", "application/json") ||
		!add_header(&pool.post_headers, "Expect", ""))
	{
		free_headers();
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
	pool.headers_serial = settings->serial;
}

/*
 * Make ready for a statement with these settings, which must outlive it.  What
 * a backend needs once is made by its first statement, never in the
 * postmaster.
 */
void
hrflow_curl_prepare(const HrflowSettings *settings)
{
	static bool initialized = false;

	if (!initialized)
	{
		CURLcode	code = curl_global_init(CURL_GLOBAL_DEFAULT);

		check_option(code, "curl_global_init");
		dlist_init(&pool.idle);
		pool.timer = HRFLOW_NEVER;
		initialized = true;
	}
	if (!pool.has_poller)
		make_poller();
	make_multi(settings);

	MULTI_SETOPT(CURLMOPT_SOCKETFUNCTION, on_socket);
	MULTI_SETOPT(CURLMOPT_TIMERFUNCTION, on_timer);
	MULTI_SETOPT(CURLMOPT_MAX_CONCURRENT_STREAMS,
				 (long) settings->max_concurrency);
	MULTI_SETOPT(CURLMOPT_MAXCONNECTS,
				 (long) Max(KEEP_CONNECTIONS, 2 * settings->max_concurrency));

	if (pool.wait_set == NULL)
		make_wait_set();
	make_headers(settings);
	pool.settings = settings;
}

/*
 * Give the memory of a transfer's body back: it will be asked for again, and
 * may have to wait long.  Does not throw.
 */
void
hrflow_curl_drop_body(HrflowTransfer *transfer)
{
	pool.buffered -= transfer->capacity;
	free(transfer->body);
	transfer->body = NULL;
	transfer->capacity = 0;
	transfer->reply.body = "";
	transfer->reply.length = 0;
}

/*
 * The most bytes that bodies had at one time since this was called last.
 */
size_t
hrflow_curl_most_buffered(void)
{
	size_t		most = pool.most_buffered;

	pool.most_buffered = pool.buffered;
	return most;
}

/*
 * Give a transfer, which is in no list, back to the pool.  Does not throw.
 */
void
hrflow_curl_put_idle(HrflowTransfer *transfer)
{
	if (pool.nidle >= KEEP_HANDLES)
	{
		free_transfer(transfer);
		return;
	}
	if (transfer->capacity > KEEP_BUFFER)
		hrflow_curl_drop_body(transfer);
	dlist_push_head(&pool.idle, &transfer->node);
	pool.nidle++;
}

/*
 * A transfer to be filled in and started.
 */
HrflowTransfer *
hrflow_curl_get_idle(void)
{
	HrflowTransfer *transfer;

	if (!dlist_is_empty(&pool.idle))
	{
		pool.nidle--;
		return dlist_container(HrflowTransfer, node,
							   dlist_pop_head_node(&pool.idle));
	}
	transfer = calloc(1, sizeof(HrflowTransfer));
	if (transfer == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	return transfer;
}

/*
 * Have as many descriptors reserved with fd.c as are in use: one for every
 * open connection and every request that runs.  Does not throw.
 */
void
hrflow_curl_balance_descriptors(int nrunning)
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
bool
hrflow_curl_reserve_descriptor(int nrunning)
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
 * Certificates
 * ------------------------------------------------------------------------
 */

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
	{
		pool.trust_path = strdup(path);
		if (pool.trust_path == NULL)
			ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
	pool.trust_known = true;
}

/*
 * Have servers checked, or a proxy that is spoken to in TLS: libcurl keeps
 * options for it apart.
 */
typedef struct TrustOptions
{
	CURLoption	verify_peer;
	CURLoption	verify_host;
	CURLoption	version;
	CURLoption	file;
	CURLoption	folder;
} TrustOptions;

static const TrustOptions server_trust = {
	CURLOPT_SSL_VERIFYPEER, CURLOPT_SSL_VERIFYHOST, CURLOPT_SSLVERSION,
	CURLOPT_CAINFO, CURLOPT_CAPATH
};

static const TrustOptions proxy_trust = {
	CURLOPT_PROXY_SSL_VERIFYPEER, CURLOPT_PROXY_SSL_VERIFYHOST,
	CURLOPT_PROXY_SSLVERSION, CURLOPT_PROXY_CAINFO, CURLOPT_PROXY_CAPATH
};

static void
configure_trust(CURL *easy, const HrflowSettings *settings,
				const TrustOptions *options)
{
	SETOPT(easy, options->verify_peer, 1L);
	SETOPT(easy, options->verify_host, 2L);
	SETOPT(easy, options->version, (long) CURL_SSLVERSION_TLSv1_2);

	if (*settings->ca_file != '\0')
	{
		SETOPT(easy, options->file, settings->ca_file);
		SETOPT(easy, options->folder, NULL);
	}
	else if (pool.trust_path != NULL)
	{
		SETOPT(easy, options->file, NULL);
		SETOPT(easy, options->folder, pool.trust_path);
	}
	else if (!pool.trust_default)
		SETOPT(easy, options->folder, NULL);
}

/*
 * ------------------------------------------------------------------------
 * One request
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
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
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
	find_trust(easy);

	SETOPT(easy, CURLOPT_PRIVATE, transfer);
	SETOPT(easy, CURLOPT_ERRORBUFFER, transfer->error);
	SETOPT(easy, CURLOPT_WRITEFUNCTION, on_body);
	SETOPT(easy, CURLOPT_WRITEDATA, transfer);
	SETOPT(easy, CURLOPT_HEADERFUNCTION, on_header);
	SETOPT(easy, CURLOPT_HEADERDATA, transfer);
	SETOPT(easy, CURLOPT_OPENSOCKETFUNCTION, on_open);
	SETOPT(easy, CURLOPT_OPENSOCKETDATA, transfer);
	SETOPT(easy, CURLOPT_PREREQFUNCTION, on_request);
	SETOPT(easy, CURLOPT_PREREQDATA, transfer);
	SETOPT(easy, CURLOPT_CLOSESOCKETFUNCTION, on_close);

	/* A signal handler of libcurl's would take PostgreSQL's place. */
	SETOPT(easy, CURLOPT_NOSIGNAL, 1L);

	/* A name server that does not answer must not hold up a cancel. */
	SETOPT(easy, CURLOPT_QUICK_EXIT, 1L);

	/*
	 * The key goes to the origin of base_url and nowhere else: see start().
	 * base_url was checked to be https, or http to a loopback address.
	 */
	SETOPT(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	SETOPT(easy, CURLOPT_FOLLOWLOCATION, 0L);
	SETOPT(easy, CURLOPT_HEADEROPT, (long) CURLHEADER_SEPARATE);
	SETOPT(easy, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	SETOPT(easy, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
	SETOPT(easy, CURLOPT_PATH_AS_IS, 1L);

	/* An empty string, unlike NULL, makes libcurl ignore the environment. */
	SETOPT(easy, CURLOPT_PROXY, settings->proxy);
	SETOPT(easy, CURLOPT_NOPROXY, "");
	SETOPT(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
	configure_trust(easy, settings, &server_trust);
	if (*settings->proxy != '\0')
		configure_trust(easy, settings, &proxy_trust);

	SETOPT(easy, CURLOPT_HTTP09_ALLOWED, 0L);
	SETOPT(easy, CURLOPT_ACCEPT_ENCODING, ACCEPTED_ENCODING);
	SETOPT(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	SETOPT(easy, CURLOPT_CONNECTTIMEOUT_MS, (long) settings->connect_timeout);

	transfer->configured = settings->serial;
}

static void
note_abandoned(bool is_link)
{
	int		   *next = &pool.abandoned[is_link].next;

	pool.abandoned[is_link].at[*next] = hrflow_clock_now();
	*next = (*next + 1) % MAX_ABANDONED;
}

/*
 * Are there too many lookups that were given up and may still be there?
 */
static bool
too_many_abandoned(bool is_link, int64 now)
{
	int64		oldest = pool.abandoned[is_link].at[pool.abandoned[is_link].next];

	return oldest != 0 && now - oldest < LOOKUP_LIFE;
}

/*
 * Begin a try.  Returns false where it came to its end at once.
 */
bool
hrflow_curl_start(HrflowTransfer *transfer)
{
	const HrflowSettings *settings = pool.settings;
	HrflowReply *reply = &transfer->reply;

	transfer->may_share = transfer->post == NULL &&
		pg_strncasecmp(transfer->url, "https:", 6) == 0;
	configure(transfer, settings);
	SETOPT(transfer->easy, CURLOPT_URL, transfer->url);
	SETOPT(transfer->easy, CURLOPT_HTTPHEADER,
		   HRFLOW_IS_LINK(reply->target) ? pool.link_headers :
		   transfer->post != NULL ? pool.post_headers : pool.headers);

	/*
	 * What goes past a proxy is the server's own.  No link that a pattern let
	 * through does, whatever else libcurl takes for that ("x.localhost").
	 */
	if (*settings->proxy != '\0')
		SETOPT(transfer->easy, CURLOPT_NOPROXY,
			   reply->target == HRFLOW_TO_GUARDED_LINK ? "" :
			   "localhost,127.0.0.0/8,::1");

	/* libcurl does not copy the body.  Setting it makes the request a POST. */
	SETOPT(transfer->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) -1);
	SETOPT(transfer->easy, CURLOPT_POSTFIELDS, transfer->post);
	if (transfer->post == NULL)
		SETOPT(transfer->easy, CURLOPT_HTTPGET, 1L);
	SETOPT(transfer->easy, CURLOPT_TIMEOUT_MS, (long) settings->request_timeout);

	/*
	 * HTTP/2 where TLS offers it, and then on one connection: wait for one
	 * being made, which may turn out to carry this request too.  In clear
	 * there is nothing to wait for, and libcurl would learn so from the first
	 * reply only.
	 *
	 * A POST has a connection of its own.  HTTP/2's servers end one after
	 * some requests, and refuse those that they have not looked at; libcurl
	 * would send them again, but as it would those that may have been
	 * processed: see on_request().
	 */
	SETOPT(transfer->easy, CURLOPT_HTTP_VERSION,
		   (long) (transfer->may_share ? CURL_HTTP_VERSION_2TLS :
				   CURL_HTTP_VERSION_1_1));
	SETOPT(transfer->easy, CURLOPT_PIPEWAIT, (long) transfer->may_share);

	reply->status = HRFLOW_OK;
	reply->transient = false;
	reply->detail = NULL;
	reply->http_status = 0;
	reply->content_type = NULL;
	reply->length = 0;
	reply->retry_after = 0;
	reply->attempts++;
	transfer->header_bytes = 0;
	transfer->headers_ended = false;
	transfer->too_large = false;
	transfer->over_budget = false;
	transfer->out_of_memory = false;
	transfer->address_refused = false;
	transfer->looks_up = false;
	transfer->connected = false;
	transfer->sent_twice = false;
	transfer->error[0] = '\0';
	transfer->started = hrflow_clock_now();

	if (too_many_abandoned(HRFLOW_IS_LINK(reply->target), transfer->started))
	{
		reply->status = HRFLOW_CONNECT_FAILED;
		reply->transient = true;
		reply->detail = "Too many name lookups have not been answered.";
		return false;
	}

	check_multi(curl_multi_add_handle(pool.multi, transfer->easy),
				"curl_multi_add_handle");
	hrflow_stats_count(HRFLOW_REQUESTS, 1);
	hrflow_stats_count(HRFLOW_RETRIES, transfer->was_sent);
	transfer->was_sent = true;
	return true;
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
		 has_begun_to_answer(transfer) && !transfer->headers_ended);
}

/*
 * The status of a try that libcurl says has failed.
 */
static HrflowStatus
classify_failure(HrflowTransfer *transfer, CURLcode code)
{
	HrflowReply *reply = &transfer->reply;

	if (transfer->too_large || transfer->over_budget ||
		has_too_large_headers(transfer, code))
	{
		reply->detail = "The reply exceeds hrflow_embed.max_response_size, or its headers a limit of their own.";
		return HRFLOW_TOO_LARGE;
	}

	if (transfer->address_refused)
	{
		reply->detail = "Its host has a private address, and is not in hrflow_embed.link_hosts by its own name.";
		return HRFLOW_LINK_REFUSED;
	}

	if (transfer->sent_twice)
	{
		reply->transient = true;
		reply->detail = "The connection broke after the request had been sent.";
		return HRFLOW_CONNECTION_LOST;
	}

	switch (code)
	{
		case CURLE_OUT_OF_MEMORY:

			/*
			 * libcurl 8.14 may then keep the connection open, and not use it
			 * any more.
			 */
			pool.discard_multi = true;
			transfer->out_of_memory = true;
			return HRFLOW_CONNECTION_LOST;

		case CURLE_OPERATION_TIMEDOUT:

			/*
			 * libcurl does not tell its two time limits apart.  When it is
			 * not the whole try's that is up, it is the connection's.
			 */
			if (transfer->connected || hrflow_clock_now() - transfer->started >=
				pool.settings->request_timeout * HRFLOW_MSEC)
				return HRFLOW_TIMEOUT;
			reply->transient = true;
			return HRFLOW_CONNECT_FAILED;

		case CURLE_COULDNT_RESOLVE_PROXY:

			/* libcurl's message may quote the setting, password and all. */
			reply->transient = true;
			reply->detail = "The host that hrflow_embed.proxy names cannot be resolved.";
			return HRFLOW_CONNECT_FAILED;

		case CURLE_SSL_CACERT_BADFILE:
			reply->detail = *pool.settings->ca_file == '\0' ?
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
			return transfer->connected ? HRFLOW_CONNECTION_LOST :
				HRFLOW_CONNECT_FAILED;
	}
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
	hrflow_stats_count(HRFLOW_BYTES_RECEIVED, reply->length);

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
	if (code == CURLE_OK && !transfer->headers_ended)
		code = CURLE_PARTIAL_FILE;
	if (code != CURLE_OK)
	{
		reply->status = classify_failure(transfer, code);
		if (reply->detail == NULL)
			reply->detail = transfer->error[0] != '\0' ? transfer->error :
				curl_easy_strerror(code);
	}
}

/*
 * ------------------------------------------------------------------------
 * Progress
 * ------------------------------------------------------------------------
 */

/*
 * Let libcurl work on its timers, or else on the sockets that are ready.
 *
 * It may start a thread here, to resolve a name.  A thread inherits the
 * signal mask, and must never run a signal handler of PostgreSQL's.
 */
static void
drive(bool timers)
{
	HrflowPollerEvent events[64];
	int			n = timers ? 0 : hrflow_poller_wait(pool.poller, events,
													lengthof(events));
	CURLMcode	code = CURLM_OK;
	sigset_t	all;
	sigset_t	old;
	int			running;

	pool.poller_errno = 0;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	if (timers)
		code = curl_multi_socket_action(pool.multi, CURL_SOCKET_TIMEOUT, 0,
										&running);
	for (int i = 0; i < n && code == CURLM_OK; i++)
		code = curl_multi_socket_action(pool.multi, events[i].fd,
										(events[i].readable ? CURL_CSELECT_IN : 0) |
										(events[i].writable ? CURL_CSELECT_OUT : 0) |
										(events[i].failed ? CURL_CSELECT_ERR : 0),
										&running);
	pthread_sigmask(SIG_SETMASK, &old, NULL);

	check_multi(code, "curl_multi_socket_action");
	if (pool.poller_errno != 0)
	{
		bool		no_memory = pool.poller_errno == ENOMEM;

		errno = pool.poller_errno;
		ereport(ERROR,
				(errcode(no_memory ? ERRCODE_OUT_OF_MEMORY :
						 ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not watch a network connection: %m")));
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
	if (transfer->looks_up)
		curl_easy_getinfo(transfer->easy, CURLINFO_NAMELOOKUP_TIME_T,
						  &found_after);
	if (transfer->looks_up && found_after == 0)
		note_abandoned(HRFLOW_IS_LINK(transfer->reply.target));
	curl_multi_remove_handle(pool.multi, transfer->easy);
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

	if (transfer->connected)
		fd = hrflow_poller_find_silent(transfer->local_port, transfer->started);
	if (fd >= 0)
		(void) shutdown(fd, SHUT_RDWR);
}

/*
 * The next transfer that libcurl is done with, its reply filled in; or NULL.
 */
HrflowTransfer *
hrflow_curl_next_done(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(pool.multi, &left)) != NULL)
	{
		HrflowTransfer *transfer;
		CURLcode	code = message->data.result;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
		if (code == CURLE_OPERATION_TIMEDOUT)
			shut_if_silent(transfer);
		else
			transfer->looks_up = false; /* it has an answer */
		hrflow_curl_remove(transfer);
		fill_reply(transfer, code);
		return transfer;
	}
	return NULL;
}

/*
 * Take out of libcurl what it has lost sight of; its time is up.
 */
void
hrflow_curl_abandon(HrflowTransfer *transfer)
{
	pool.discard_multi = true;
	hrflow_curl_remove(transfer);
	fill_reply(transfer, CURLE_OPERATION_TIMEDOUT);
}

/*
 * Let libcurl do what it wanted to do by now.
 */
void
hrflow_curl_run_timer(void)
{
	if (pool.timer > hrflow_clock_now())
		return;
	pool.timer = HRFLOW_NEVER;
	drive(true);
}

/*
 * Let libcurl do what there is to do, without waiting.
 */
void
hrflow_curl_work(void)
{
	drive(false);
	hrflow_curl_run_timer();
}

/*
 * How long until then, in milliseconds, rounded up?  -1 for ever.
 */
static long
milliseconds_until(int64 when, int64 now)
{
	if (when == HRFLOW_NEVER)
		return -1;
	if (when <= now)
		return 0;
	return Min((when - now + HRFLOW_MSEC - 1) / HRFLOW_MSEC, INT_MAX);
}

/*
 * Sleep until a socket is ready, libcurl's timer runs off, the latch is set,
 * or it is "until".  "is_delay" where no request is under way.
 */
void
hrflow_curl_wait(int64 until, bool is_delay)
{
	WaitEvent	events[3];
	int64		began = hrflow_clock_now();
	int			n;

	n = WaitEventSetWait(pool.wait_set,
						 milliseconds_until(Min(until, pool.timer), began),
						 events, lengthof(events),
						 is_delay ? pool.delay_event : pool.wait_event);
	hrflow_stats_count(HRFLOW_WAITED_USEC, hrflow_clock_now() - began);

	for (int i = 0; i < n; i++)
	{
		if (events[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		if (events[i].events & WL_SOCKET_READABLE)
			drive(false);
	}
}
