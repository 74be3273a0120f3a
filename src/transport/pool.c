/*-------------------------------------------------------------------------
 *
 * pool.c
 *		Manages the resources that a backend keeps between statements:
 *		libcurl's multi handle with its connections, the poller, and the
 *		WaitEventSet.
 *
 * No callback of libcurl may throw, because a longjmp through libcurl makes
 * its handles unusable.  The callbacks record what happened; we act on that
 * after libcurl has returned.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "compat.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "transport/libcurl.h"

/*
 * Number of connections that may be kept.  If 2 * max_concurrency is greater,
 * that many may be kept: a batch of vectors uses a connection to the API and
 * one to the object store for each request in flight.
 */
#define KEEP_CONNECTIONS 64

/*
 * Maximum number of descriptors that a request needs at any time: two for the
 * thread that resolves its host name, one that the system's resolver opens in
 * that thread, and one for the connection.
 */
#define DESCRIPTORS_PER_REQUEST 4

/*
 * Number of requests to start before checking again that there are enough
 * descriptors, because a check takes several system calls.
 */
#define ADMIT_AT_ONCE 32

/*
 * Minimum time between two checks by hrflow_pool_prepare() for connections
 * that the server has closed, so that not every short statement checks.
 */
#define DROP_INTERVAL HRFLOW_SEC

/*
 * If the sockets have not been checked for longer than this, in microseconds,
 * the arrival times of replies are considered unknown.
 */
#define AWAY_LIMIT 2500

/*
 * Highest descriptor that has_plenty() may open, since the kernel enlarges its
 * table of descriptors to include it.
 */
#define PROBE_LIMIT 4096

/* This backend's resources.  "multi" and "wait_set" are NULL until needed. */
static struct
{
	CURLM	   *multi;
	bool		is_stale;		/* must "multi" be discarded once no requests
								 * are in flight? */
	bool		is_broken;		/* must "multi" no longer be used, because of
								 * an error? */
	bool		has_poller;
	int			poller;			/* valid if has_poller */
	WaitEventSet *wait_set;
	uint32		wait_event;		/* wait event while requests are in flight */
	uint32		delay_event;	/* wait event while no requests are in flight */
	int			reserved;		/* descriptors reserved for connections */
	bool		is_short;		/* are descriptors scarce? */
	int			nadmitted;		/* number of requests that may be started
								 * before the next check of descriptors */
	bool		has_opened;		/* has a socket been opened since the last
								 * check of descriptors? */
	int64		dropped_at;		/* when hrflow_pool_prepare() last checked for
								 * closed connections */

	/* Changed by the callbacks. */
	int64		timer;			/* when libcurl wants to be called, or
								 * HRFLOW_NEVER */
	int			sockets;		/* number of open connections */
	int			poller_errno;	/* errno after the poller has failed, or 0 */

	int64		attended_at;	/* when the sockets were last checked */
	bool		was_away;		/* was the backend busy elsewhere for more
								 * than AWAY_LIMIT before attended_at? */
	int64		waited;			/* microseconds that the backend has waited
								 * for sockets, timers or delays */
}			pool = {.timer = HRFLOW_NEVER, .has_opened = true};

#define MULTI_SETOPT(option, value) \
	check_multi(curl_multi_setopt(pool.multi, option, value), #option)

/*
 * Raise an error unless libcurl has set an option, or initialized itself.  An
 * option that it does not know or cannot store must not be ignored.
 */
void
hrflow_pool_check_option(CURLcode code, const char *what)
{
	if (code == CURLE_OUT_OF_MEMORY)
		hrflow_out_of_memory();
	if (code != CURLE_OK)
		elog(ERROR, "%s failed in libcurl: %s", what, curl_easy_strerror(code));
}

/*
 * Check the result of a curl_multi function.  The state of a multi handle
 * after an error is undocumented, so never use the handle again: for example,
 * libcurl 7.88 divides by zero after it has run out of memory for a socket.
 * Raises 53200 or 58000.
 */
static void
check_multi(CURLMcode code, const char *what)
{
	pool.is_broken |= code != CURLM_OK;
	if (code == CURLM_OUT_OF_MEMORY)
		hrflow_out_of_memory();
	if (code != CURLM_OK)
		ereport(ERROR,
				(errcode(ERRCODE_SYSTEM_ERROR),
				 errmsg_internal("%s failed in libcurl: %s", what,
								 curl_multi_strerror(code))));
}

/*
 * ------------------------------------------------------------------------
 * Callbacks of libcurl.  None may throw.
 * ------------------------------------------------------------------------
 */

/*
 * Notice if libcurl has closed a socket without calling
 * hrflow_pool_close_socket().  libcurl 7.88 does this if a connection is not
 * established in time, and calls on_socket() afterwards.  A connection over
 * which data has been received cannot be affected.
 */
static void
notice_closed(int fd)
{
	if (!hrflow_poller_has_heard(fd) && fcntl(fd, F_GETFD) == -1 &&
		hrflow_poller_closed(fd))
		pool.sockets--;
}

/*
 * libcurl's callback that sets the events for which to watch a socket.  A
 * socket that is not a connection belongs to the thread that resolves a name.
 */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	if (what == CURL_POLL_REMOVE)
		notice_closed(fd);
	else if (!hrflow_poller_is_connection(fd))
	{
		HrflowTransfer *transfer = NULL;

		/* In libcurl 8.22, "easy" may be an internal handle. */
		(void) curl_easy_getinfo(easy, CURLINFO_PRIVATE, &transfer);
		if (transfer != NULL)
			hrflow_transfer_advance(transfer, HRFLOW_RESOLVING);
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
 * Open a socket for libcurl.  The timeout is in milliseconds.
 */
curl_socket_t
hrflow_pool_open_socket(const struct curl_sockaddr *address,
						int connect_timeout)
{
	curl_socket_t fd = socket(address->family, address->socktype,
							  address->protocol);

	if (fd == -1)
		return CURL_SOCKET_BAD;
	(void) fcntl(fd, F_SETFD, FD_CLOEXEC);
#ifdef TCP_USER_TIMEOUT

	/*
	 * The peer's kernel acknowledges data even if the server takes a long
	 * time to reply.  Without an acknowledgment, the connection is dead, for
	 * example because a NAT has dropped it, so don't wait until
	 * request_timeout.
	 */
	(void) setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &connect_timeout,
					  sizeof(connect_timeout));
#endif
	if (hrflow_poller_opened(fd))
		pool.sockets++;
	pool.has_opened = true;
	return fd;
}

/*
 * libcurl's callback for closing a socket, which may have outlived the request
 * for which it was opened.
 */
int
hrflow_pool_close_socket(void *arg, curl_socket_t fd)
{
	hrflow_advance_note_closing(fd);
	if (hrflow_poller_closed(fd))
		pool.sockets--;
	return close(fd);
}

/*
 * ------------------------------------------------------------------------
 * Initialization
 * ------------------------------------------------------------------------
 */

static void begin_libcurl(sigset_t *old);
static void end_libcurl(const sigset_t *old, CURLMcode code);

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

/*
 * Free the multi handle, with its connections, and the idle easy handles, so
 * that what they have cached is discarded.  Certificates are cached for a day
 * in the multi handle.  TLS sessions are cached in the multi handle since
 * libcurl 8.12 (curl pull request 15982), and in the easy handles before.
 */
static void
discard_multi(void)
{
	hrflow_idle_free_all();
	curl_multi_cleanup(pool.multi);
	pool.multi = NULL;
	pool.is_stale = false;
	pool.is_broken = false;
}

/*
 * Create the multi handle if needed.  A stale handle is replaced only when no
 * requests are in flight.
 */
static void
make_multi(const HrflowSettings *settings, bool in_flight)
{
	if (hrflow_trust_changed(settings))
		pool.is_stale = true;
	if (pool.is_broken || (pool.is_stale && !in_flight))
		discard_multi();
	if (pool.multi != NULL)
		return;
	pool.multi = curl_multi_init();
	if (pool.multi == NULL)
		hrflow_out_of_memory();

	/* Ignore a failure: the option was added in libcurl 8.20. */
	(void) curl_multi_setopt(pool.multi, HRFLOW_CURLMOPT_QUICK_EXIT, 1L);
}

/*
 * Create the WaitEventSet.  It is kept, since the poller never changes.
 */
static void
make_wait_set(void)
{
	static WaitEventSet *half_made = NULL;

	/* A set without a resource owner is not freed after an error. */
	if (half_made != NULL)
		FreeWaitEventSet(half_made);
	half_made = NULL;

	/* CreateWaitEventSet() raises XX000 if no descriptor is available. */
	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not wait for the network"),
				 errdetail("There are too many open files on the local server."),
				 errhint("Raise the server's \"max_files_per_process\" and/or \"ulimit -n\" limits.")));
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
 * Let libcurl finish closing connections.  It waits up to two seconds for the
 * server to close its side of a TLS connection, but from 8.21 to at least 8.23
 * curl_multi_socket_action() does not look at these sockets (curl issue
 * 22282).  No requests are in flight, so curl_multi_perform() does nothing
 * else.
 */
static void
finish_closing(void)
{
	CURLMcode	code;
	sigset_t	old;
	int			running;

	begin_libcurl(&old);
	code = curl_multi_perform(pool.multi, &running);
	end_libcurl(&old, code);
}

/*
 * Prepare for requests with these settings.  The first call in a backend
 * initializes libcurl, which must never happen in the postmaster.
 *
 * "in_flight" tells whether any requests are in flight.  There must be none if
 * the pool is broken.
 */
void
hrflow_pool_prepare(const HrflowSettings *settings, bool in_flight)
{
	static bool initialized = false;
	int			keep = Max(KEEP_CONNECTIONS, 2 * settings->max_concurrency);
	int64		now = hrflow_clock_now();

	if (!initialized)
	{
		CURLcode	code;

		hrflow_features_check();
		code = curl_global_init(CURL_GLOBAL_DEFAULT);
		hrflow_pool_check_option(code, "curl_global_init");
		initialized = true;
	}
	if (!pool.has_poller)
		make_poller();
	pool.nadmitted = 0;

	/*
	 * Check the connections now, since they are not watched while a backend
	 * is idle.  If max_concurrency was lowered, libcurl would close only one
	 * connection for every request that ends, so close all of them.
	 */
	if (now - pool.dropped_at >= DROP_INTERVAL)
	{
		hrflow_poller_drop_closed();
		if (!in_flight && pool.multi != NULL && !pool.is_broken)
			finish_closing();
		pool.dropped_at = now;
	}
	if (pool.sockets > keep)
		pool.is_stale = true;
	make_multi(settings, in_flight);

	MULTI_SETOPT(CURLMOPT_SOCKETFUNCTION, on_socket);
	MULTI_SETOPT(CURLMOPT_TIMERFUNCTION, on_timer);
	MULTI_SETOPT(CURLMOPT_MAX_CONCURRENT_STREAMS,
				 (long) settings->max_concurrency);
	MULTI_SETOPT(CURLMOPT_MAXCONNECTS, (long) keep);

	/*
	 * This option limits all open connections, to bound the number of those
	 * that libcurl is still closing.  It must not limit the connections in
	 * use, which may be more than are kept if there is another transport.
	 */
	MULTI_SETOPT(CURLMOPT_MAX_TOTAL_CONNECTIONS,
				 (long) Max(keep, HRFLOW_MAX_CONCURRENCY));

	if (pool.wait_set == NULL)
		make_wait_set();
}

/*
 * Was there an error after which the requests in flight must be abandoned?
 */
bool
hrflow_pool_is_broken(void)
{
	return pool.is_broken;
}

/*
 * Mark all connections to be closed once no requests are in flight.
 */
void
hrflow_pool_discard(void)
{
	pool.is_stale = true;
}

/*
 * Add a request to libcurl.  Throws 53200 or 58000.
 */
void
hrflow_pool_add(CURL *easy)
{
	check_multi(curl_multi_add_handle(pool.multi, easy),
				"curl_multi_add_handle");
}

/*
 * Remove a request from libcurl, whether or not the request is complete.  Does
 * not throw.
 */
void
hrflow_pool_remove(CURL *easy)
{
	curl_multi_remove_handle(pool.multi, easy);
}

/*
 * Return the next message in which libcurl reports a complete request, or NULL
 * if there is none.
 */
CURLMsg *
hrflow_pool_next_message(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(pool.multi, &left)) != NULL)
	{
		if (message->msg == CURLMSG_DONE)
			break;
	}
	return message;
}

/*
 * ------------------------------------------------------------------------
 * Descriptors
 * ------------------------------------------------------------------------
 */

/*
 * Adjust the number of descriptors reserved with fd.c to the number of open
 * connections or of requests in flight, whichever is greater.  Reserves fewer
 * if fd.c allows no more.  Does not throw.
 */
void
hrflow_pool_balance_descriptors(int nin_flight)
{
	int			needed = Max(nin_flight, pool.sockets);

	while (pool.reserved < needed && AcquireExternalFD())
		pool.reserved++;
	while (pool.reserved > needed)
	{
		ReleaseExternalFD();
		pool.reserved--;
	}
}

/*
 * Are there enough descriptors for the next ADMIT_AT_ONCE requests, in
 * addition to the descriptors that requests in flight may still need?  fd.c
 * cannot tell, since not all code in a backend reserves the descriptors it
 * opens, and we do not reserve the descriptors that a name lookup needs
 * temporarily.
 *
 * The kernel allocates the lowest free descriptor, so most descriptors above a
 * free descriptor are free, too: try a descriptor well below the limit.  This
 * makes the kernel enlarge its table of descriptors, so do not exceed
 * PROBE_LIMIT.
 */
static bool
has_plenty(int nin_flight, int end)
{
	int			needed = DESCRIPTORS_PER_REQUEST * (nin_flight + ADMIT_AT_ONCE);
	int			first = Min(end, PROBE_LIMIT) - 2 * needed;
	int			fd;

	if (first < 0)
		return false;
	fd = fcntl(pool.poller, F_DUPFD_CLOEXEC, first);
	if (fd >= 0)
		close(fd);
	return fd == first;
}

/*
 * Count the free descriptors of the process, up to "most", without taking any
 * of them away from the threads that resolve names.
 */
static int
count_free_descriptors(int most, int end)
{
	int			nfree = 0;

	for (int fd = 0; fd < end && nfree < most;)
	{
		struct pollfd states[256];
		int			n = 0;

		for (; n < lengthof(states) && fd < end; n++, fd++)
			states[n] = (struct pollfd)
		{
			.fd = fd
		};
		(void) poll(states, n, 0);
		for (int i = 0; i < n; i++)
		{
			if (states[i].revents & POLLNVAL)
				nfree++;
		}
	}
	return Min(nfree, most);
}

/*
 * Determine how many requests may be started before there are too few
 * descriptors.  "nunsent" requests in flight have not been sent, and may still
 * open descriptors.
 */
static void
check_descriptors(int nin_flight, int nunsent)
{
	struct rlimit limit;
	int			end = INT_MAX;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < INT_MAX)
		end = limit.rlim_cur;
	if (has_plenty(nin_flight, end))
		pool.nadmitted = ADMIT_AT_ONCE;
	else
	{
		int			most = nunsent + ADMIT_AT_ONCE;
		int			nfree = count_free_descriptors(DESCRIPTORS_PER_REQUEST * most,
												   end);

		pool.nadmitted = Max(nfree / DESCRIPTORS_PER_REQUEST - nunsent, 0);
	}
	pool.is_short = pool.nadmitted == 0;
	pool.has_opened = false;
}

/*
 * Are descriptors so scarce that connections should not be kept?
 */
bool
hrflow_pool_is_short(void)
{
	return pool.is_short;
}

/*
 * Reserve a descriptor for another request.  Returns false if the request must
 * wait.  "count_unsent" returns how many requests in flight have not been
 * sent.
 *
 * Even if descriptors are scarce, one request at a time is allowed.  So if no
 * request is in flight, check the descriptors only if they were scarce at the
 * last check, or if a connection has been opened since then: if descriptors
 * have become scarce, connections must not be kept.
 *
 * If descriptors are scarce and no requests are in flight, close all
 * connections: those that are kept, and those that libcurl is closing
 * gracefully, which takes up to two seconds (seen with 8.14, not with 7.88).
 */
bool
hrflow_pool_reserve_descriptor(const HrflowSettings *settings, int nin_flight,
							   int (*count_unsent) (void))
{
	if (pool.nadmitted == 0 &&
		(nin_flight > 0 || pool.is_short || pool.has_opened))
		check_descriptors(nin_flight, count_unsent());
	if (pool.is_short && nin_flight == 0 && pool.sockets > 0)
	{
		pool.is_stale = true;
		hrflow_pool_prepare(settings, false);
		check_descriptors(0, 0);
	}
	if (pool.nadmitted > 0)
		pool.nadmitted--;
	if (pool.is_short && nin_flight > 0)
		return false;
	if (pool.reserved > nin_flight)
		return true;
	if (!AcquireExternalFD())
	{
		if (nin_flight > 0)
			return false;
		ReserveExternalFD();
	}
	pool.reserved++;
	return true;
}

/*
 * ------------------------------------------------------------------------
 * Progress
 * ------------------------------------------------------------------------
 */

/*
 * Raise an error if one occurred while libcurl was working.
 */
static void
check_work(CURLMcode code)
{
	bool		no_memory = pool.poller_errno == ENOMEM;

	check_multi(code, "curl_multi_socket_action");
	if (pool.poller_errno == 0)
		return;
	errno = pool.poller_errno;
	ereport(ERROR,
			(errcode(no_memory ? ERRCODE_OUT_OF_MEMORY :
					 ERRCODE_INSUFFICIENT_RESOURCES),
			 errmsg("could not watch a network connection: %m")));
}

/*
 * Block all signals while libcurl is working, because it may start a thread to
 * resolve a name.  A thread inherits the signal mask, and must never run one
 * of PostgreSQL's signal handlers.
 */
static void
begin_libcurl(sigset_t *old)
{
	sigset_t	all;

	pool.poller_errno = 0;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, old);
}

static void
end_libcurl(const sigset_t *old, CURLMcode code)
{
	pthread_sigmask(SIG_SETMASK, old, NULL);
	check_work(code);
}

/*
 * Let libcurl process up to "max" sockets that are ready, without waiting.  The
 * backend was busy elsewhere until "since".
 */
static void
work_on_sockets(int64 since, int max)
{
	HrflowPollerEvent events[HRFLOW_MAX_EVENTS];
	int			n = hrflow_poller_wait(pool.poller, events, max);
	CURLMcode	code = CURLM_OK;
	sigset_t	old;
	int			running;

	pool.was_away = since - pool.attended_at > AWAY_LIMIT;
	begin_libcurl(&old);
	if (n < 0)
		pool.poller_errno = errno;
	for (int i = 0; i < n && code == CURLM_OK; i++)
		code = curl_multi_socket_action(pool.multi, events[i].fd,
										(events[i].readable ? CURL_CSELECT_IN : 0) |
										(events[i].writable ? CURL_CSELECT_OUT : 0) |
										(events[i].failed ? CURL_CSELECT_ERR : 0),
										&running);
	end_libcurl(&old, code);
	pool.attended_at = hrflow_clock_now();
}

/*
 * Might the latest replies have arrived some time before they were received?
 */
bool
hrflow_pool_was_away(void)
{
	return pool.was_away;
}

/*
 * Return how long this backend has waited in total, in microseconds.
 */
int64
hrflow_pool_waited(void)
{
	return pool.waited;
}

/*
 * Are there fewer connections than requests in flight?  If so, libcurl opens
 * more when its timer is run, unless requests can share connections.
 */
bool
hrflow_pool_lacks_connections(int nin_flight)
{
	return pool.sockets < nin_flight;
}

/*
 * Let libcurl process its timers that have expired, including the timers of
 * requests that have just been added.  Returns whether the number of
 * connections has grown.
 */
bool
hrflow_pool_run_timer(void)
{
	int			before = pool.sockets;
	CURLMcode	code;
	sigset_t	old;
	int			running;

	if (pool.timer > hrflow_clock_now())
		return false;
	pool.timer = HRFLOW_NEVER;
	begin_libcurl(&old);
	code = curl_multi_socket_action(pool.multi, CURL_SOCKET_TIMEOUT, 0,
									&running);
	end_libcurl(&old, code);
	return pool.sockets > before;
}

/*
 * Let libcurl process whatever is ready, without waiting.
 */
void
hrflow_pool_receive(void)
{
	work_on_sockets(hrflow_clock_now(), HRFLOW_MAX_EVENTS);
	(void) hrflow_pool_run_timer();
}

/*
 * Return the time from "now" until "when" in milliseconds, rounded up, or -1
 * for HRFLOW_NEVER.
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
 * Wait until a socket is ready, a timer of libcurl expires, the latch is set,
 * or the time "until" is reached.  Then let libcurl process ready sockets.
 * "is_delay" means that no requests are in flight.
 */
void
hrflow_pool_wait(int64 until, bool is_delay)
{
	WaitEvent	events[3];
	int64		began = hrflow_clock_now();
	int64		waited;
	int			n;

	n = WaitEventSetWait(pool.wait_set,
						 milliseconds_until(Min(until, pool.timer), began),
						 events, lengthof(events),
						 is_delay ? pool.delay_event : pool.wait_event);
	waited = hrflow_clock_now() - began;
	hrflow_stats_count(HRFLOW_WAITED_USEC, waited);
	pool.waited += waited;

	for (int i = 0; i < n; i++)
	{
		if (events[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		if (events[i].events & WL_SOCKET_READABLE)
			work_on_sockets(began, HRFLOW_EVENTS_AT_ONCE);
	}
}
