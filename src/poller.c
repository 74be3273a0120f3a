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

#include <unistd.h>
#ifdef __linux__
#include <sys/epoll.h>
#else
#include <sys/event.h>
#endif

#include "hrflow_embed.h"

#define MAX_EVENTS 64

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

/*
 * Watch a descriptor for what is asked; for nothing: forget it.  A closed
 * descriptor has been forgotten already, which is no failure.
 */
bool
hrflow_poller_watch(int poller, int fd, bool readable, bool writable)
{
#ifdef __linux__
	struct epoll_event event = {0};

	event.data.fd = fd;
	event.events = (readable ? EPOLLIN : 0) | (writable ? EPOLLOUT : 0);

	if (event.events == 0)
	{
		(void) epoll_ctl(poller, EPOLL_CTL_DEL, fd, &event);
		return true;
	}
	return epoll_ctl(poller, EPOLL_CTL_MOD, fd, &event) == 0 ||
		(errno == ENOENT && epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) == 0);
#else
	struct kevent change;
	bool		good = true;

	EV_SET(&change, fd, EVFILT_READ, readable ? EV_ADD : EV_DELETE, 0, 0, 0);
	if (kevent(poller, &change, 1, NULL, 0, NULL) < 0 && readable)
		good = false;
	EV_SET(&change, fd, EVFILT_WRITE, writable ? EV_ADD : EV_DELETE, 0, 0, 0);
	if (kevent(poller, &change, 1, NULL, 0, NULL) < 0 && writable)
		good = false;
	return good;
#endif
}

/*
 * What can be read or written at this moment: at most "max" events, without
 * waiting.
 */
int
hrflow_poller_wait(int poller, HrflowPollerEvent *events, int max)
{
	int			n;
#ifdef __linux__
	struct epoll_event ready[MAX_EVENTS];

	n = epoll_wait(poller, ready, Min(max, MAX_EVENTS), 0);
	for (int i = 0; i < n; i++)
	{
		events[i].fd = ready[i].data.fd;
		events[i].readable = (ready[i].events & EPOLLIN) != 0;
		events[i].writable = (ready[i].events & EPOLLOUT) != 0;
		events[i].failed = (ready[i].events & (EPOLLERR | EPOLLHUP)) != 0;
	}
#else
	struct kevent ready[MAX_EVENTS];
	struct timespec now = {0, 0};

	n = kevent(poller, NULL, 0, ready, Min(max, MAX_EVENTS), &now);
	for (int i = 0; i < n; i++)
	{
		events[i].fd = ready[i].ident;
		events[i].readable = ready[i].filter == EVFILT_READ;
		events[i].writable = ready[i].filter == EVFILT_WRITE;
		events[i].failed = (ready[i].flags & EV_ERROR) != 0;
	}
#endif
	return Max(n, 0);
}
