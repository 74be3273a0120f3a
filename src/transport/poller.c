/*-------------------------------------------------------------------------
 *
 * poller.c
 *		Many descriptors behind one that a WaitEventSet can hold: epoll, or
 *		kqueue on macOS and the BSDs.
 *
 * libcurl changes its interest in a socket about twice a request, and a
 * WaitEventSet cannot drop a socket: it would have to be built anew each time.
 *
 * Nothing here raises an error, since libcurl's callbacks call it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/epoll.h>
#else
#include <sys/event.h>
#endif

#include "transport/transfer.h"

/* The other end has closed its half; other systems say POLLHUP. */
#ifndef POLLRDHUP
#define POLLRDHUP 0
#endif

#define MAX_EVENTS 64

#define READABLE 1
#define WRITABLE 2

/*
 * What each descriptor is watched for, and what it should be.
 *
 * libcurl loses its interest in a connection at the end of each request, and
 * finds it again with the next.  So a connection is watched until it turns out
 * to be ready although nobody wants it: that spares three system calls a
 * request.  It must be told of with hrflow_poller_opened() and closed(), since
 * the kernel forgets a closed descriptor and gives its number to another.
 */
typedef struct Watched
{
	unsigned char is;
	unsigned char wanted;
	bool		is_connection;
	int64		heard_at;		/* when it could be read last */
} Watched;

static Watched *watched = NULL; /* by descriptor; malloc'd */
static int	nwatched = 0;

/*
 * A new poller's descriptor, or -1 with errno set.
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
 * Watch a descriptor for one thing, or no longer.  One change at a time: of
 * several, those behind one that fails are not made.
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
 * Make the kernel watch a descriptor as is wanted.
 *
 * One that was closed behind our back is no longer watched, whatever we took
 * down of it.
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
 * Make room for a descriptor.
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
 * Watch a descriptor for what is asked.  Returns false when the kernel or our
 * memory is at its limit.
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
 * A connection has this descriptor from now on.  Returns whether it is one
 * more: not where another's that had it was closed unnoticed.
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
 * It is about to be closed, or is.  Returns whether it was a connection's.
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
 * Is this descriptor a connection's?
 */
bool
hrflow_poller_is_connection(int fd)
{
	return fd < nwatched && watched[fd].is_connection;
}

/*
 * Has anything come over the connection with this descriptor?
 */
bool
hrflow_poller_has_heard(int fd)
{
	return fd < nwatched && watched[fd].heard_at != 0;
}

/*
 * A connection's port at our end; -1 for none.
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

	if (getsockname(fd, &address.any, &length) != 0)
		return -1;
	return ntohs(address.any.sa_family == AF_INET6 ?
				 address.v6.sin6_port : address.v4.sin_port);
}

/*
 * The connection with this port at our end, if nothing has come over it since
 * this time of hrflow_clock_now(), or is there to be read; else -1.
 */
int
hrflow_poller_find_silent(int local_port, int64 since)
{
	for (int fd = 0; fd < nwatched; fd++)
	{
		char		byte;

		if (watched[fd].is_connection && watched[fd].heard_at < since &&
			get_local_port(fd) == local_port &&
			recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0)
			return fd;
	}
	return -1;
}

/*
 * Shut down the connections that no request uses and over which nothing has come
 * since this time, so that libcurl does not use them again.  Leave the one with
 * this port at our end: libcurl may be about to use it.
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
 * Read what the other end has sent before it closed a connection, if it has.
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
 * Make libcurl see which of the connections that no request uses the server
 * has closed: it closes those itself when it next looks for a connection.
 * libcurl 7.88 takes what TLS sends before the end for a sign of life, so
 * discard that: the end is all that is left to be read.
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
 * Is this descriptor, which is ready, wanted?  If not, watch it no longer.
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
 * What can be read or written at this moment: at most "max" events, without
 * waiting.
 */
int
hrflow_poller_wait(int poller, HrflowPollerEvent *events, int max)
{
	int			n;
	int			nwanted = 0;
	int64		now = hrflow_clock_now();
#ifdef __linux__
	struct epoll_event ready[MAX_EVENTS];

	n = epoll_wait(poller, ready, Min(max, MAX_EVENTS), 0);
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
	struct kevent ready[MAX_EVENTS];
	struct timespec at_once = {0, 0};

	n = kevent(poller, NULL, 0, ready, Min(max, MAX_EVENTS), &at_once);
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
	return nwanted;
}
