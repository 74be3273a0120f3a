/*-------------------------------------------------------------------------
 *
 * poller.c
 *		Watches many descriptors through a single descriptor, which a
 *		WaitEventSet can contain: epoll, or kqueue on macOS and the BSDs.
 *
 * libcurl changes the events it waits for about twice per request and socket,
 * and sockets cannot be removed from a WaitEventSet, so the set would have to
 * be rebuilt each time.
 *
 * Nothing here throws, since this is called from libcurl's callbacks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/epoll.h>
#else
#include <sys/event.h>
#endif

#include "transport/transfer.h"

/*
 * Event that poll() reports if the peer has closed its half of the connection.
 * macOS does not define it, but reports POLLHUP if that is requested.
 */
#ifndef POLLRDHUP
#define POLLRDHUP POLLHUP
#endif

#define READABLE 1
#define WRITABLE 2

/*
 * The events that the kernel watches for on a descriptor ("is"), and the
 * events that libcurl wants.
 *
 * libcurl drops its interest in a connection at the end of each request, and
 * regains it with the next request.  So we keep watching a connection until an
 * event occurs that is not wanted, which saves three system calls per request.
 * hrflow_poller_opened() and hrflow_poller_closed() must be called for each
 * connection, since the kernel stops watching a descriptor when it is closed,
 * and reuses its number.
 */
typedef struct Watched
{
	unsigned char is;
	unsigned char wanted;
	bool		is_connection;
	char		version;		/* first digit of the HTTP version of replies
								 * received over the connection, or 0 before
								 * the first reply */
	int			local_port;		/* local port of the connection, or 0 if not
								 * known yet */
	int64		heard_at;		/* when the descriptor was last readable */
} Watched;

static Watched *watched = NULL; /* indexed by descriptor; malloc'd */
static int	nwatched = 0;

/*
 * Create a poller.  Returns its descriptor, or -1 with errno set.
 */
int
hrflow_poller_open(void)
{
#ifdef __linux__
	return epoll_create1(EPOLL_CLOEXEC);
#else
	return kqueue();
#endif
}

#ifndef __linux__
/*
 * Add or remove a filter of a descriptor.  Make one change at a time, because
 * kevent() skips all changes after a change that fails.
 */
static bool
change_filter(int poller, int fd, int filter, bool wanted)
{
	struct kevent change;

	EV_SET(&change, fd, filter, wanted ? EV_ADD : EV_DELETE, 0, 0, 0);
	return kevent(poller, &change, 1, NULL, 0, NULL) >= 0 ||
		(!wanted && errno == ENOENT);
}
#endif

/*
 * Make the kernel watch for the events that are wanted.  If a descriptor was
 * closed without our knowledge, the kernel no longer watches it, even though
 * "is" is not 0.
 */
static bool
update(int poller, int fd)
{
	Watched    *w = &watched[fd];
	bool		good = true;

	if (w->is == w->wanted)
		return true;

#ifdef __linux__
	{
		struct epoll_event event = {0};

		event.data.fd = fd;
		event.events = (w->wanted & READABLE ? EPOLLIN : 0) |
			(w->wanted & WRITABLE ? EPOLLOUT : 0);
		good = epoll_ctl(poller, w->wanted == 0 ? EPOLL_CTL_DEL :
						 w->is == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD,
						 fd, &event) == 0 || w->wanted == 0 ||
			(errno == ENOENT &&
			 epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) == 0);
	}
#else
	if ((w->is ^ w->wanted) & READABLE)
		good = change_filter(poller, fd, EVFILT_READ, w->wanted & READABLE);
	if ((w->is ^ w->wanted) & WRITABLE)
		good = change_filter(poller, fd, EVFILT_WRITE, w->wanted & WRITABLE) &&
			good;
	good = good || w->wanted == 0;
#endif
	w->is = good ? w->wanted : 0;
	return good;
}

/*
 * Enlarge the array to include a descriptor.  Returns false if there is not
 * enough memory.
 */
static bool
enlarge(int fd)
{
	int			n = Max(fd + 1, 2 * nwatched);
	Watched    *larger;

	if (fd < nwatched)
		return true;
	larger = realloc(watched, n * sizeof(Watched));
	if (larger == NULL)
		return false;
	memset(larger + nwatched, 0, (n - nwatched) * sizeof(Watched));
	watched = larger;
	nwatched = n;
	return true;
}

/*
 * Set the events to watch for on a descriptor.  Returns false, with errno set,
 * if the kernel refuses or there is not enough memory.
 */
bool
hrflow_poller_watch(int poller, int fd, bool readable, bool writable)
{
	if (!enlarge(fd))
		return false;
	watched[fd].wanted = (readable ? READABLE : 0) | (writable ? WRITABLE : 0);
	if (watched[fd].wanted == 0 && watched[fd].is_connection)
		return true;
	return update(poller, fd);
}

/*
 * Record that a descriptor belongs to a new connection.  Returns whether the
 * number of connections has increased.  It has not if the descriptor's
 * previous connection was closed without our knowledge, and so is still
 * counted, or if there is not enough memory to record the new one.
 */
bool
hrflow_poller_opened(int fd)
{
	bool		was_connection;

	if (!enlarge(fd))
		return false;
	was_connection = watched[fd].is_connection;
	memset(&watched[fd], 0, sizeof(Watched));
	watched[fd].is_connection = true;
	return !was_connection;
}

/*
 * Record that a descriptor has been or is about to be closed.  Returns whether
 * the descriptor belonged to a connection.
 */
bool
hrflow_poller_closed(int fd)
{
	bool		was_connection;

	if (fd >= nwatched)
		return false;
	was_connection = watched[fd].is_connection;
	memset(&watched[fd], 0, sizeof(Watched));
	return was_connection;
}

/*
 * Does this descriptor belong to a connection?
 */
bool
hrflow_poller_is_connection(int fd)
{
	return fd < nwatched && watched[fd].is_connection;
}

/*
 * Has anything been received over the connection with this descriptor?
 */
bool
hrflow_poller_has_heard(int fd)
{
	return fd < nwatched && watched[fd].heard_at != 0;
}

/*
 * Return the local port of a connection, or 0 if it has none yet.
 */
static int
get_local_port(int fd)
{
	union
	{
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	}			address = {0};
	socklen_t	length = sizeof(address);

	if (watched[fd].local_port == 0 &&
		getsockname(fd, &address.any, &length) == 0)
		watched[fd].local_port = ntohs(address.any.sa_family == AF_INET6 ?
									   address.v6.sin6_port : address.v4.sin_port);
	return watched[fd].local_port;
}

/*
 * Return the descriptor of the connection with this local port.  Returns -1 if
 * there is none, or if several connections (to different servers) have this
 * port.
 */
int
hrflow_poller_find(int local_port)
{
	int			found = -1;

	for (int fd = 0; fd < nwatched && local_port != 0; fd++)
	{
		if (watched[fd].is_connection && get_local_port(fd) == local_port)
		{
			if (found >= 0)
				return -1;
			found = fd;
		}
	}
	return found;
}

/*
 * Record the first digit of the HTTP version of a reply received over a
 * connection.  "fd" may be -1.
 */
void
hrflow_poller_note_version(int fd, char version)
{
	if (fd >= 0 && fd < nwatched)
		watched[fd].version = version;
}

/*
 * Is a request in progress on a connection that uses HTTP/1.1?  To check this
 * for a request that is about to be sent, call this before libcurl asks to
 * watch the connection for that request.  "fd" may be -1.
 */
bool
hrflow_poller_is_busy(int fd)
{
	return fd >= 0 && fd < nwatched && watched[fd].version == '1' &&
		watched[fd].wanted != 0;
}

/*
 * Has the peer closed an idle connection, or is there data to read from one
 * that uses HTTP/1.1?  Over HTTP/2, data may arrive at any time.  Returns
 * false before the first reply.  "fd" may be -1.
 */
bool
hrflow_poller_is_spent(int fd)
{
	struct pollfd state = {.fd = fd, .events = POLLRDHUP};
	char		byte;

	if (fd < 0 || fd >= nwatched)
		return false;
	if (watched[fd].version == '1')
		return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 ||
			(errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
	return watched[fd].version == '2' && watched[fd].wanted == 0 &&
		poll(&state, 1, 0) > 0;
}

/*
 * Return the descriptor of the connection with this local port, or -1 if there
 * is not exactly one, or if data has been received over it since "since" (a
 * time of hrflow_clock_now()) or is available for reading.
 */
int
hrflow_poller_find_silent(int local_port, int64 since)
{
	int			fd = hrflow_poller_find(local_port);
	char		byte;

	return fd >= 0 && watched[fd].heard_at < since &&
		recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0 ? fd : -1;
}

/*
 * Is the kernel sending data over a connection again, because the peer's
 * kernel has not acknowledged it?  Then the connection is probably dead,
 * unlike that of a server that takes a long time to reply.  Always false on
 * systems other than Linux.
 */
bool
hrflow_poller_is_cut_off(int fd)
{
#ifdef __linux__
	struct tcp_info info = {0};
	socklen_t	length = sizeof(info);

	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 &&
		info.tcpi_retransmits > 0;
#else
	return false;
#endif
}

/*
 * Shut down idle connections over which nothing has been received since
 * "since", a time of hrflow_clock_now(), so that libcurl does not reuse them.
 * Skip the connection with this local port, because libcurl may be about to
 * use it.
 */
void
hrflow_poller_shut_idle(int local_port, int64 since)
{
	for (int fd = 0; fd < nwatched; fd++)
	{
		if (watched[fd].is_connection && watched[fd].wanted == 0 &&
			watched[fd].heard_at < since && get_local_port(fd) != local_port)
			(void) shutdown(fd, SHUT_RDWR);
	}
}

/*
 * If the peer has closed a connection, discard the data that it sent before.
 */
static void
drain_if_closed(const struct pollfd *state)
{
	char		discarded[1024];

	if ((state->revents & (POLLRDHUP | POLLHUP | POLLERR)) == 0)
		return;
	while (recv(state->fd, discarded, sizeof(discarded), MSG_DONTWAIT) > 0)
		;
}

/*
 * Make libcurl notice idle connections that the server has closed; libcurl
 * closes them when it next looks for a connection.  libcurl 7.88 considers a
 * connection alive if there is data to read, such as the alert that TLS sends
 * before closing, so discard the data.
 */
void
hrflow_poller_drop_closed(void)
{
	struct pollfd states[64];
	int			n = 0;

	for (int fd = 0; fd < nwatched; fd++)
	{
		if (watched[fd].is_connection && watched[fd].wanted == 0)
		{
			states[n].fd = fd;
			states[n++].events = POLLRDHUP;
		}
		if (n < lengthof(states) && fd < nwatched - 1)
			continue;
		if (n > 0 && poll(states, n, 0) > 0)
		{
			for (int i = 0; i < n; i++)
				drain_if_closed(&states[i]);
		}
		n = 0;
	}
}

/*
 * Is this event wanted?  If not, stop watching the descriptor.
 */
static bool
is_wanted(int poller, const HrflowPollerEvent *event, int64 now)
{
	int			fd = event->fd;

	if (fd < nwatched && event->readable)
		watched[fd].heard_at = now;
	if (fd < nwatched && watched[fd].wanted != 0)
		return true;
	if (fd < nwatched)
		(void) update(poller, fd);
	return false;
}

/*
 * Store up to "max" pending events in "events", and return their number, or -1
 * with errno set.  "max" must not exceed HRFLOW_MAX_EVENTS.  Does not wait.
 */
int
hrflow_poller_wait(int poller, HrflowPollerEvent *events, int max)
{
	int			n;
	int			nwanted = 0;
	int64		now = hrflow_clock_now();
#ifdef __linux__
	struct epoll_event ready[HRFLOW_MAX_EVENTS];

	n = epoll_wait(poller, ready, max, 0);
	for (int i = 0; i < n; i++)
	{
		HrflowPollerEvent *event = &events[nwanted];

		event->fd = ready[i].data.fd;
		event->readable = (ready[i].events & EPOLLIN) != 0;
		event->writable = (ready[i].events & EPOLLOUT) != 0;
		event->failed = (ready[i].events & (EPOLLERR | EPOLLHUP)) != 0;
		nwanted += is_wanted(poller, event, now);
	}
#else
	struct kevent ready[HRFLOW_MAX_EVENTS];
	struct timespec at_once = {0, 0};

	n = kevent(poller, NULL, 0, ready, max, &at_once);
	for (int i = 0; i < n; i++)
	{
		HrflowPollerEvent *event = &events[nwanted];

		event->fd = ready[i].ident;
		event->readable = ready[i].filter == EVFILT_READ;
		event->writable = ready[i].filter == EVFILT_WRITE;
		event->failed = (ready[i].flags & EV_ERROR) != 0;
		nwanted += is_wanted(poller, event, now);
	}
#endif
	return n < 0 && errno != EINTR ? -1 : nwanted;
}
