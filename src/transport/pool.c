/*-------------------------------------------------------------------------
 *
 * pool.c
 *		What a backend keeps from statement to statement: libcurl's multi
 *		handle with its connections, the poller, and the set to wait with.
 *
 * No callback of libcurl may throw: a longjmp through libcurl leaves its
 * handles unusable.  The callbacks count, set a flag and return; what they saw
 * is acted upon when libcurl has returned.
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
 * Number of connections to keep, unless twice max_concurrency is more: a batch
 * of vectors has a connection to the API and one to the object store for each
 * request in flight.
 */
#define KEEP_CONNECTIONS 64

/*
 * Number of descriptors that a request may need at one time: a pair for the
 * thread that looks its host up, what the system's resolver opens there, and
 * the connection.
 */
#define DESCRIPTORS_PER_REQUEST 4

/* Number of requests that may start before descriptors are looked at again. */
#define ADMIT_AT_ONCE 32

/*
 * Least time between two looks for connections that the server has closed, so
 * that one call after another does not look each time.
 */
#define DROP_INTERVAL HRFLOW_SEC

/*
 * If we have not looked at the sockets for longer than this, in microseconds, it
 * is not known when a reply came.
 */
#define AWAY_LIMIT 2500

/* A shorter wait, in microseconds, found the reply there already. */
#define SLEEP_MIN 30

/* See has_plenty(). */
#define PROBE_LIMIT 4096

/* The backend's; what is zero is not made yet. */
static struct
{
	CURLM	   *multi;
	bool		is_stale;		/* to be discarded when nothing is in flight */
	bool		is_broken;		/* not to be used at all */
	bool		has_poller;
	int			poller;			/* valid if so */
	WaitEventSet *wait_set;
	uint32		wait_event;		/* of who awaits the network, */
	uint32		delay_event;	/* and of who has nothing under way */
	int			reserved;		/* descriptors reserved with fd.c */
	bool		is_short;		/* the process had too few for a request */
	int			nadmitted;		/* requests for which it has enough */
	bool		has_opened;		/* a socket since descriptors were looked at */
	int64		dropped_at;		/* when closed connections were looked for */

	/* Kept by the callbacks. */
	int64		timer;			/* when libcurl wants to be called; or
								 * HRFLOW_NEVER */
	int			sockets;		/* open */
	int			poller_errno;	/* why a socket is not watched; 0: none */

	int64		attended_at;	/* when we last looked at the sockets */
	bool		was_away;		/* had that been long ago before? */
	bool		has_slept;		/* did we wait for what we saw then? */
}			pool = {.timer = HRFLOW_NEVER, .has_opened = true};

#define MULTI_SETOPT(option, value) \
	check_multi(curl_multi_setopt(pool.multi, option, value), #option)

/*
 * Every option is checked: one that libcurl does not know or cannot store
 * must not pass in silence, least of all those that protect.
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
 * The state of a multi handle after an error of its own is undocumented, so
 * never use it again: libcurl 7.88 divides by zero in one that had no memory
 * for a socket.
 */
static void
check_multi(CURLMcode code, const char *what)
{
	pool.is_broken |= code != CURLM_OK;
	if (code == CURLM_OUT_OF_MEMORY)
		hrflow_out_of_memory();
	if (code != CURLM_OK)
		elog(ERROR, "%s failed in libcurl: %s", what, curl_multi_strerror(code));
}

/*
 * ------------------------------------------------------------------------
 * Callbacks of libcurl.  None may throw.
 * ------------------------------------------------------------------------
 */

/*
 * libcurl 7.88 closes a socket that was not connected in time by itself, and
 * tells us afterwards.  A connection over which something has come was in time.
 */
static void
notice_closed(int fd)
{
	if (!hrflow_poller_has_heard(fd) && fcntl(fd, F_GETFD) == -1 &&
		hrflow_poller_closed(fd))
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
	 * A kernel acknowledges what it has received, however long its server
	 * takes to answer.  Where it does not, the connection is dead, as when a
	 * NAT has forgotten it: don't wait for the answer until request_timeout.
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
 * Close one; it may outlive the request that it was opened for.
 */
int
hrflow_pool_close_socket(void *arg, curl_socket_t fd)
{
	if (hrflow_poller_closed(fd))
		pool.sockets--;
	return close(fd);
}

/*
 * ------------------------------------------------------------------------
 * Making ready
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

/*
 * Close all connections, and forget what libcurl has read of certificates and
 * remembers of TLS sessions.  The certificates are the multi handle's, for a
 * day; the sessions are the easy handles', and since 8.12 the multi handle's.
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
 * The handle that requests are added to.  It is discarded only when no request
 * is in it.
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

	/* An older library does not know it, and waits for none. */
	(void) curl_multi_setopt(pool.multi, HRFLOW_CURLMOPT_QUICK_EXIT, 1L);
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
 * Make ready for requests with these settings.  What a backend needs once is
 * made by its first statement, never in the postmaster.
 *
 * "in_flight" says that requests are; none may be where the pool is broken.
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
	 * What is kept is found out now, since nothing looks after connections
	 * while a backend is idle.  Where max_concurrency was lowered, libcurl
	 * would close one connection for every request that ends: close all.
	 */
	if (now - pool.dropped_at >= DROP_INTERVAL)
	{
		hrflow_poller_drop_closed();
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

	if (pool.wait_set == NULL)
		make_wait_set();
}

/*
 * Was there an error after which the requests in flight must be given up?
 */
bool
hrflow_pool_is_broken(void)
{
	return pool.is_broken;
}

/*
 * Use the connections no longer than the requests in flight do.
 */
void
hrflow_pool_discard(void)
{
	pool.is_stale = true;
}

/*
 * Hand a request to libcurl.
 */
void
hrflow_pool_add(CURL *easy)
{
	check_multi(curl_multi_add_handle(pool.multi, easy),
				"curl_multi_add_handle");
}

/*
 * Take a request out of libcurl, done or not.  Does not throw.
 */
void
hrflow_pool_remove(CURL *easy)
{
	curl_multi_remove_handle(pool.multi, easy);
}

/*
 * The next message of libcurl's that a request is done; or NULL.
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
 * Have as many descriptors reserved with fd.c as are in use: one for every
 * open connection and every request that runs.  Does not throw.
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
 * Are there enough descriptors for the next ADMIT_AT_ONCE requests, whatever
 * those in flight still need?  fd.c does not know: not all code in a backend
 * reserves what it opens, and we do not reserve what a lookup needs for a
 * moment.
 *
 * The lowest free descriptor is given out, so that those above a free one are
 * mostly free: look well below the limit.  The kernel's table of them grows up
 * to where we look, so do not look higher than PROBE_LIMIT.
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
 * Number of the process's free descriptors, or "most" if there are more.  Count
 * them without taking any from the threads that look names up.
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
			nfree += (states[i].revents & POLLNVAL) != 0;
	}
	return Min(nfree, most);
}

/*
 * Look how many requests may start before descriptors are short, where "nunsent"
 * of those in flight have not been sent, and may still open theirs.
 */
static void
look_for_descriptors(int nin_flight, int nunsent)
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
 * Are descriptors so short that connections should not be kept?
 */
bool
hrflow_pool_is_short(void)
{
	return pool.is_short;
}

/*
 * Reserve a descriptor for one more request.  Where descriptors are short, one
 * request at a time goes out all the same, so the only one in flight need not
 * look unless a connection was opened since, which should perhaps not be kept.
 * "count_unsent" tells how many of those in flight have not been sent.
 */
bool
hrflow_pool_reserve_descriptor(int nin_flight, int (*count_unsent) (void))
{
	if (pool.nadmitted == 0 &&
		(nin_flight > 0 || pool.is_short || pool.has_opened))
		look_for_descriptors(nin_flight, count_unsent());
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
 * What libcurl said of the work it was let do: raise what went wrong.
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
 * Block all signals while libcurl works.  It may start a thread then, to
 * resolve a name.  A thread inherits the signal mask, and must never run a
 * signal handler of PostgreSQL's.
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
 * Let libcurl work on the sockets that are ready, without waiting.  "since" is
 * until when we were busy elsewhere.
 */
static void
work_on_sockets(int64 since)
{
	HrflowPollerEvent events[64];
	int			n = hrflow_poller_wait(pool.poller, events, lengthof(events));
	CURLMcode	code = CURLM_OK;
	sigset_t	old;
	int			running;

	pool.was_away = since - pool.attended_at > AWAY_LIMIT;
	begin_libcurl(&old);
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
 * May the replies that were received last have waited for us for some time?
 */
bool
hrflow_pool_was_away(void)
{
	return pool.was_away;
}

/*
 * Did we have to wait for them?  If not, our own processor is busy.
 */
bool
hrflow_pool_has_slept(void)
{
	return pool.has_slept;
}

/*
 * Let libcurl do what it wanted to do by now.
 */
void
hrflow_pool_run_timer(void)
{
	CURLMcode	code;
	sigset_t	old;
	int			running;

	if (pool.timer > hrflow_clock_now())
		return;
	pool.timer = HRFLOW_NEVER;
	begin_libcurl(&old);
	code = curl_multi_socket_action(pool.multi, CURL_SOCKET_TIMEOUT, 0,
									&running);
	end_libcurl(&old, code);
}

/*
 * Let libcurl do what there is to do, without waiting.
 */
void
hrflow_pool_receive(void)
{
	pool.has_slept = false;
	work_on_sockets(hrflow_clock_now());
	hrflow_pool_run_timer();
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
	pool.has_slept = waited >= SLEEP_MIN;

	for (int i = 0; i < n; i++)
	{
		if (events[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		if (events[i].events & WL_SOCKET_READABLE)
			work_on_sockets(began);
	}
}
