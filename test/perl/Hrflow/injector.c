/*
 * injector.c
 *		Injects a failure at the N-th occasion into one process of a tree.
 *
 * Preloaded by LD_PRELOAD, it reads from the file HRFLOW_INJECT, which is
 * written by Hrflow::Injector, in which process to inject what:
 *
 * Memory: the N-th allocation of libcurl, or by malloc() and the like in the
 * extension, returns NULL.  libcurl is initialized with our own allocators.
 * Allocations of the extension are recognized by the address of the caller,
 * since malloc() is called by everything; this does not work with
 * AddressSanitizer, which replaces malloc().
 *
 * Bodies: the N-th realloc() of 4 kB or more in the extension returns NULL.
 * Only the bodies of replies are enlarged to this size.
 *
 * Wakeups: the N-th epoll_wait(), in PostgreSQL or the extension, begins with a
 * SIGINT, which cancels the statement.
 *
 * Terminations: likewise with a SIGTERM, which terminates the backend.
 *
 * Waits: the N-th epoll_wait() with a timeout, in PostgreSQL or the extension,
 * that finds a descriptor ready fails, without reporting it.  While a backend
 * waits for a command, it has no timeout.
 *
 * Actions: the N-th curl_multi_socket_action() that leaves a request complete
 * fails nevertheless.
 *
 * Additions: the N-th curl_multi_add_handle() fails.
 *
 * Inflations: the N-th inflate() in the extension fails for lack of memory.
 *
 * It also counts libcurl's easy handles, and those added to a multi handle, and
 * can set the monotonic clock of the extension forward, in all processes.  If
 * told to, it does so instead of letting the watched process wait while it has
 * no request in flight.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum
{
	MEMORY = 1,
	WAKEUPS,
	BODIES,
	WAITS,
	ACTIONS,
	ADDITIONS,
	INFLATIONS,
	TERMINATIONS
};

/* Results of libcurl's multi interface */
#define OUT_OF_MEMORY 3
#define INTERNAL_ERROR 4

/* Result of zlib */
#define NO_MEMORY (-4)

/* Content of the file. */
static volatile struct
{
	int32_t		process;		/* 0: none */
	int32_t		what;
	int64_t		nth;			/* number of the occasion that fails; 0: only count */
	int64_t		seen;
	int64_t		injected;
	int64_t		handles;		/* easy handles created minus those cleaned up */
	int64_t		added;			/* easy handles added to a multi handle minus those removed */
	int64_t		skips;			/* 1: do not wait while no request is in flight */
	int64_t		ahead;			/* milliseconds by which the clock is set forward */
}		   *order;

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *old, size_t size);

__attribute__((constructor))
static void
begin(void)
{
	const char *path = getenv("HRFLOW_INJECT");
	int			fd = path != NULL ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void	   *mapped;

	if (fd == -1)
		return;
	mapped = mmap(NULL, sizeof(*order), PROT_READ | PROT_WRITE, MAP_SHARED,
				  fd, 0);
	close(fd);
	if (mapped != MAP_FAILED)
		order = mapped;
}

static int
is_ordered(void)
{
	return order != NULL && order->process != 0 &&
		order->process == getpid();
}

/*
 * Count an occasion, and return whether to make it fail.
 */
static int
is_to_fail(int what)
{
	if (!is_ordered() || order->what != what)
		return 0;
	if (__atomic_add_fetch(&order->seen, 1, __ATOMIC_SEQ_CST) != order->nth)
		return 0;
	order->injected++;
	errno = ENOMEM;
	return 1;
}

/*
 * ------------------------------------------------------------------------
 * Memory
 * ------------------------------------------------------------------------
 */

static uintptr_t extension_start;
static uintptr_t extension_end;

static int
find_extension(struct dl_phdr_info *info, size_t size, void *arg)
{
	if (info->dlpi_name == NULL || strstr(info->dlpi_name, "/hrflow_embed.so") == NULL)
		return 0;
	extension_start = info->dlpi_addr;
	for (int i = 0; i < info->dlpi_phnum; i++)
	{
		const		ElfW(Phdr) *part = &info->dlpi_phdr[i];
		uintptr_t	end = info->dlpi_addr + part->p_vaddr + part->p_memsz;

		if (part->p_type == PT_LOAD && end > extension_end)
			extension_end = end;
	}
	return 1;
}

/*
 * Was this called from the extension?
 */
static int
is_in_extension(void *caller)
{
	uintptr_t	address = (uintptr_t) caller;

	if (extension_end == 0)
		dl_iterate_phdr(find_extension, NULL);
	return address >= extension_start && address < extension_end;
}

/*
 * Was this called from the extension, in the process that is watched?
 */
static int
is_extension(void *caller)
{
	return is_ordered() && is_in_extension(caller);
}

/*
 * If this was called from the extension, count it, and return whether to make
 * it fail.
 */
static int
fails_for(void *caller)
{
	return is_extension(caller) && is_to_fail(MEMORY);
}

void *
malloc(size_t size)
{
	return fails_for(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *
calloc(size_t n, size_t size)
{
	return fails_for(__builtin_return_address(0)) ? NULL : __libc_calloc(n, size);
}

void *
realloc(void *old, size_t size)
{
	void	   *caller = __builtin_return_address(0);

	if (fails_for(caller) ||
		(size >= 4096 && is_extension(caller) && is_to_fail(BODIES)))
		return NULL;
	return __libc_realloc(old, size);
}

static void *
curl_malloc(size_t size)
{
	return is_to_fail(MEMORY) ? NULL : malloc(size);
}

static void *
curl_calloc(size_t n, size_t size)
{
	return is_to_fail(MEMORY) ? NULL : calloc(n, size);
}

static void *
curl_realloc(void *old, size_t size)
{
	return is_to_fail(MEMORY) ? NULL : realloc(old, size);
}

static char *
curl_strdup(const char *text)
{
	return is_to_fail(MEMORY) ? NULL : strdup(text);
}

/*
 * ------------------------------------------------------------------------
 * libcurl's functions that the extension calls; some libcurl calls itself
 * ------------------------------------------------------------------------
 */

static void *
of_libcurl(const char *name)
{
	void	   *libcurl = dlopen("libcurl.so.4", RTLD_LAZY | RTLD_NOLOAD);

	return libcurl != NULL ? dlsym(libcurl, name) : NULL;
}

int
curl_global_init(long flags)
{
	int			(*real) (long, void *(*) (size_t), void (*) (void *),
						 void *(*) (void *, size_t), char *(*) (const char *),
						 void *(*) (size_t, size_t)) = of_libcurl("curl_global_init_mem");

	return real(flags, curl_malloc, free, curl_realloc, curl_strdup, curl_calloc);
}

void *
curl_easy_init(void)
{
	void	   *(*real) (void) = of_libcurl("curl_easy_init");
	void	   *easy = real();

	if (easy != NULL && is_extension(__builtin_return_address(0)))
		order->handles++;
	return easy;
}

void
curl_easy_cleanup(void *easy)
{
	void		(*real) (void *) = of_libcurl("curl_easy_cleanup");

	if (easy != NULL && is_extension(__builtin_return_address(0)))
		order->handles--;
	real(easy);
}

int
curl_multi_add_handle(void *multi, void *easy)
{
	int			(*real) (void *, void *) = of_libcurl("curl_multi_add_handle");
	int			code = is_to_fail(ADDITIONS) ? OUT_OF_MEMORY : real(multi, easy);

	if (code == 0 && is_ordered())
		order->added++;
	return code;
}

int
curl_multi_remove_handle(void *multi, void *easy)
{
	int			(*real) (void *, void *) = of_libcurl("curl_multi_remove_handle");
	int			code = real(multi, easy);

	if (code == 0 && is_ordered())
		order->added--;
	return code;
}

int
curl_multi_socket_action(void *multi, int socket, int events, int *running)
{
	int			(*real) (void *, int, int, int *) = of_libcurl("curl_multi_socket_action");
	int			code = real(multi, socket, events, running);

	if (code == 0 && is_ordered() && *running < order->added && is_to_fail(ACTIONS))
		return INTERNAL_ERROR;
	return code;
}

/*
 * ------------------------------------------------------------------------
 * zlib
 * ------------------------------------------------------------------------
 */

int
inflate(void *stream, int flush)
{
	int			(*real) (void *, int) = dlsym(dlopen("libz.so.1", RTLD_LAZY | RTLD_NOLOAD),
											  "inflate");

	return is_extension(__builtin_return_address(0)) && is_to_fail(INFLATIONS) ?
		NO_MEMORY : real(stream, flush);
}

/*
 * ------------------------------------------------------------------------
 * Wakeups and waits
 * ------------------------------------------------------------------------
 */

int
epoll_wait(int epoll, struct epoll_event *events, int max, int timeout)
{
	int			skips = is_ordered() && order->skips && order->added == 0 && timeout > 0;
	int			n;

	if (is_to_fail(WAKEUPS))
		kill(getpid(), SIGINT);
	if (is_to_fail(TERMINATIONS))
		kill(getpid(), SIGTERM);
	n = epoll_pwait(epoll, events, max, skips ? 0 : timeout, NULL);
	if (n == 0 && skips)
		order->ahead += timeout;
	return n > 0 && timeout >= 0 && is_to_fail(WAITS) ? -1 : n;
}

/*
 * ------------------------------------------------------------------------
 * The clock
 * ------------------------------------------------------------------------
 */

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	static int	(*real) (clockid_t, struct timespec *);
	int			result;

	if (real == NULL)
		real = dlsym(RTLD_NEXT, "clock_gettime");
	result = real(clock, now);
	if (clock == CLOCK_MONOTONIC && order != NULL && order->ahead != 0 &&
		is_in_extension(__builtin_return_address(0)))
	{
		now->tv_sec += order->ahead / 1000;
		now->tv_nsec += order->ahead % 1000 * 1000000;
		now->tv_sec += now->tv_nsec / 1000000000;
		now->tv_nsec %= 1000000000;
	}
	return result;
}
