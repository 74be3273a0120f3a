/*
 * hrflow-bench.c
 *		A C program that sends requests to the HrFlow API by libcurl, with
 *		which the benchmark compares the extension.
 *
 *	hrflow-bench serial BASE N [1 --http2 CAFILE | 1 --tls CAFILE]
 *	hrflow-bench multi BASE N CONCURRENCY [--http2 CAFILE | --tls CAFILE]
 *	hrflow-bench vectors BASE N CONCURRENCY
 *	hrflow-bench get URL
 *
 * Prints seconds, seconds of CPU, the number of connections opened, and the KiB
 * by which the peak of its memory exceeds its memory at the start.  The program
 * ends when the answers to all requests, which must have status 200, are in
 * memory.  It parses an answer only to find the links for "vectors".  "get"
 * prints a body.  With --tls it uses HTTP/1.1 over TLS, and opens all
 * connections at once.
 *
 * On purpose, it checks and keeps less than the extension must: it has no
 * limits, does not retry, and has one buffer for each request in flight.
 */
#define _GNU_SOURCE
#include <curl/curl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* Number of requests before "serial" is timed, as for the extension. */
#define WARM_UP 100

#define LINKS 3					/* links of each profile in "vectors" */
#define MAX_FD 4096

/* A request in flight.  Its handle and buffer are reused for the next one. */
typedef struct Transfer
{
	CURL	   *easy;
	char	   *body;
	size_t		length;
	size_t		capacity;
	bool		is_link;
} Transfer;

static const char *base;
static const char *fields = "%7B%22profile%22%3A1%7D";
static const char *ca_file;
static bool http2;
static struct curl_slist *headers;
static struct curl_slist *link_headers;

static CURLM *multi;
static int	epoll;
static int64_t timer = -1;		/* microseconds; -1: none */
static struct
{
	uint32_t	is;				/* what epoll was told */
	uint32_t	wanted;			/* what libcurl wants */
}			watched[MAX_FD];

static long connections;

/* Queue of links, in the order in which they were received. */
static char **links;
static long first_link;
static long nlinks;

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	fputs("hrflow-bench: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	exit(1);
}

static int64_t
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static double
cpu_seconds(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
		(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/*
 * Return a field of /proc/self/status.  We cannot use ru_maxrss, which includes
 * the memory that the shell had.
 */
static long
status_kib(const char *name)
{
	FILE	   *file = fopen("/proc/self/status", "r");
	char		line[256];
	size_t		length = strlen(name);
	long		kib = 0;

	while (file && fgets(line, sizeof(line), file))
	{
		if (strncmp(line, name, length) == 0 && line[length] == ':')
			kib = atol(line + length + 1);
	}
	if (file)
		fclose(file);
	return kib;
}

/*
 * ------------------------------------------------------------------------
 * One request
 * ------------------------------------------------------------------------
 */

static size_t
on_body(char *data, size_t one, size_t length, void *arg)
{
	Transfer   *transfer = arg;

	(void) one;
	if (transfer->length + length + 1 > transfer->capacity)
	{
		transfer->capacity = 2 * (transfer->length + length) + 4096;
		transfer->body = realloc(transfer->body, transfer->capacity);
		if (transfer->body == NULL)
			return 0;
	}
	memcpy(transfer->body + transfer->length, data, length);
	transfer->length += length;
	return length;
}

static void
prepare(Transfer *transfer)
{
	CURL	   *easy = curl_easy_init();

	if (easy == NULL)
		die("out of memory");
	transfer->easy = easy;
	curl_easy_setopt(easy, CURLOPT_PRIVATE, transfer);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer);
	curl_easy_setopt(easy, CURLOPT_ACCEPT_ENCODING, "gzip");
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_PROXY, "");
	if (ca_file)
	{
		curl_easy_setopt(easy, CURLOPT_HTTP_VERSION,
						 (long) (http2 ? CURL_HTTP_VERSION_2TLS :
								 CURL_HTTP_VERSION_1_1));
		curl_easy_setopt(easy, CURLOPT_PIPEWAIT, (long) http2);
		curl_easy_setopt(easy, CURLOPT_CAINFO, ca_file);
		curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
	}
}

static void
aim_at_profile(Transfer *transfer, const char *prefix, long n)
{
	char		url[1024];

	snprintf(url, sizeof(url),
			 "%s/profile/embedding?source_id=bench&profile_id=%s%ld&fields=%s",
			 base, prefix, n, fields);
	if (transfer->is_link)
		curl_easy_setopt(transfer->easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(transfer->easy, CURLOPT_URL, url);
	transfer->is_link = false;
	transfer->length = 0;
}

static void
aim_at_link(Transfer *transfer, char *link)
{
	if (!transfer->is_link)
		curl_easy_setopt(transfer->easy, CURLOPT_HTTPHEADER, link_headers);
	curl_easy_setopt(transfer->easy, CURLOPT_URL, link);
	free(link);
	transfer->is_link = true;
	transfer->length = 0;
}

static void
check(Transfer *transfer, CURLcode code)
{
	long		status = 0;
	long		opened = 0;

	if (code != CURLE_OK)
		die("%s", curl_easy_strerror(code));
	curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
	if (status != 200)
		die("the answer was %ld", status);
	if (transfer->length == 0)
		die("the answer was empty");
	curl_easy_getinfo(transfer->easy, CURLINFO_NUM_CONNECTS, &opened);
	connections += opened;
	transfer->body[transfer->length] = '\0';
}

/*
 * Queue the links of an answer, which are its only strings that begin with
 * "http".
 */
static void
take_links(Transfer *transfer)
{
	char	   *p = transfer->body;
	int			n = 0;

	while ((p = strstr(p, "\"http")) != NULL)
	{
		char	   *link = ++p;
		char	   *to = p;

		for (; *p != '"' && *p != '\0'; p++)
		{
			if (*p == '\\')
				p++;
			*to++ = *p;
		}
		if (*p == '\0')
			break;
		*to = '\0';
		links[nlinks++] = strdup(link);
		p++;
		if (++n > LINKS)
			break;
	}
	if (n != LINKS)
		die("an answer had %d links", n);
}

/*
 * ------------------------------------------------------------------------
 * Concurrent requests
 * ------------------------------------------------------------------------
 */

/*
 * Like the extension, continue to watch a connection when libcurl loses
 * interest in it at the end of a request, since the next request will use it.
 */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
	struct epoll_event event = {.data.fd = fd};

	(void) easy, (void) arg, (void) socket_arg;
	if (fd >= MAX_FD)
		die("too many connections");
	watched[fd].wanted = (what & CURL_POLL_IN ? EPOLLIN : 0) |
		(what & CURL_POLL_OUT ? EPOLLOUT : 0);
	if (what == CURL_POLL_REMOVE)
		watched[fd].wanted = 0;
	if (watched[fd].wanted == 0 || watched[fd].wanted == watched[fd].is)
		return 0;

	event.events = watched[fd].wanted;
	if (epoll_ctl(epoll, watched[fd].is ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd,
				  &event) != 0 &&
		epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
		die("epoll_ctl failed");
	watched[fd].is = watched[fd].wanted;
	return 0;
}

static int
on_timer(CURLM *m, long timeout, void *arg)
{
	(void) m, (void) arg;
	timer = timeout < 0 ? -1 : now() + timeout * 1000;
	return 0;
}

static int
on_close(void *arg, curl_socket_t fd)
{
	(void) arg;
	if (fd < MAX_FD)
		watched[fd].is = watched[fd].wanted = 0;
	return close(fd);
}

static void
wait_and_drive(void)
{
	struct epoll_event ready[64];
	int			running;
	int			wait = -1;
	int			n;

	if (timer >= 0)
	{
		int64_t		left = timer - now();

		if (left <= 0)
		{
			timer = -1;
			curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running);
			return;
		}
		wait = (left + 999) / 1000;
	}
	n = epoll_wait(epoll, ready, 64, wait);
	for (int i = 0; i < n; i++)
	{
		int			fd = ready[i].data.fd;
		uint32_t	events = ready[i].events;

		if (watched[fd].wanted == 0)
		{
			epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
			watched[fd].is = 0;
			continue;
		}
		curl_multi_socket_action(multi, fd,
								 (events & EPOLLIN ? CURL_CSELECT_IN : 0) |
								 (events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
								 (events & (EPOLLERR | EPOLLHUP) ?
								  CURL_CSELECT_ERR : 0), &running);
	}
}

static void
make_multi(long concurrency)
{
	epoll = epoll_create1(EPOLL_CLOEXEC);
	multi = curl_multi_init();
	curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket);
	curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timer);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, 2 * concurrency);
	curl_multi_setopt(multi, CURLMOPT_MAX_CONCURRENT_STREAMS, concurrency);
}

/*
 * Start the next request, with priority for links.  Returns false if there is
 * none at the moment.
 */
static bool
start_next(Transfer *transfer, long *asked, long n)
{
	if (first_link < nlinks)
		aim_at_link(transfer, links[first_link++]);
	else if (*asked < n)
		aim_at_profile(transfer, "p", ++*asked);
	else
		return false;
	curl_multi_add_handle(multi, transfer->easy);
	return true;
}

static void
run_multi(Transfer *transfers, long n, long concurrency, bool with_links)
{
	Transfer   *idle[concurrency];
	long		nidle = 0;
	long		asked = 0;

	for (long i = concurrency - 1; i >= 0; i--)
		idle[nidle++] = &transfers[i];

	for (;;)
	{
		CURLMsg    *message;
		int			left;

		while (nidle > 0 && start_next(idle[nidle - 1], &asked, n))
			nidle--;
		if (nidle == concurrency)
			return;
		wait_and_drive();
		while ((message = curl_multi_info_read(multi, &left)) != NULL)
		{
			Transfer   *transfer;
			CURLcode	code = message->data.result;

			curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
			curl_multi_remove_handle(multi, transfer->easy);
			check(transfer, code);
			if (with_links && !transfer->is_link)
				take_links(transfer);
			idle[nidle++] = transfer;
		}
	}
}

static void
run_serial(Transfer *transfer, const char *prefix, long n)
{
	for (long i = 1; i <= n; i++)
	{
		aim_at_profile(transfer, prefix, i);
		check(transfer, curl_easy_perform(transfer->easy));
	}
}

int
main(int argc, char **argv)
{
	const char *mode = argc > 2 ? argv[1] : "";
	long		n = argc > 3 ? atol(argv[3]) : 0;
	long		concurrency = argc > 4 ? atol(argv[4]) : 1;
	bool		serial = strcmp(mode, "serial") == 0;
	bool		vectors = strcmp(mode, "vectors") == 0;
	Transfer   *transfers;
	int64_t		began;
	double		cpu;
	long		memory;

	/*
	 * Linux divides the time of processors among sessions first (autogroups).
	 * A backend has a session of its own.  Without one, the servers would seldom
	 * be preempted for us, and we would have fewer and larger pieces to read.
	 */
	(void) setsid();

	curl_global_init(CURL_GLOBAL_DEFAULT);
	if (strcmp(mode, "get") == 0)
	{
		Transfer	transfer = {0};

		prepare(&transfer);
		curl_easy_setopt(transfer.easy, CURLOPT_URL, argv[2]);
		check(&transfer, curl_easy_perform(transfer.easy));
		fputs(transfer.body, stdout);
		return 0;
	}
	if ((!serial && !vectors && strcmp(mode, "multi") != 0) || n < 1 ||
		concurrency < 1 || concurrency > 1024)
		die("usage: serial BASE N [1 --http2 CAFILE | 1 --tls CAFILE] | multi BASE N CONCURRENCY [--http2 CAFILE | --tls CAFILE] | vectors BASE N CONCURRENCY | get URL");
	if (argc > 6)
	{
		http2 = strcmp(argv[5], "--http2") == 0;
		if (!http2 && strcmp(argv[5], "--tls") != 0)
			die("unknown option %s", argv[5]);
		ca_file = argv[6];
	}

	base = argv[2];
	headers = curl_slist_append(NULL, "X-API-KEY: askr_0123456789abcdef0123456789abcdef");
	headers = curl_slist_append(headers, "Accept: application/json");
	headers = curl_slist_append(headers, "User-Agent: hrflow_embed/1.0");
	link_headers = curl_slist_append(NULL, "User-Agent: hrflow_embed/1.0");
	if (vectors)
	{
		fields = "%7B%22profile%22%3A1%2C%22skills%22%3A1%2C%22interests%22%3A1%7D";
		links = malloc((n * LINKS + 1) * sizeof(char *));
	}
	transfers = calloc(concurrency, sizeof(Transfer));
	if (transfers == NULL)
		die("out of memory");
	for (long i = 0; i < concurrency; i++)
	{
		prepare(&transfers[i]);
		if (!serial)
		{
			curl_easy_setopt(transfers[i].easy, CURLOPT_CLOSESOCKETFUNCTION,
							 on_close);
		}
	}

	if (serial)
		run_serial(transfers, "w", WARM_UP);
	else
		make_multi(concurrency);
	connections = 0;
	memory = status_kib("VmRSS");
	cpu = cpu_seconds();
	began = now();
	if (serial)
		run_serial(transfers, "p", n);
	else
		run_multi(transfers, n, concurrency, vectors);
	began = now() - began;
	cpu = cpu_seconds() - cpu;
	printf("%.6f %.6f %ld %ld\n", began / 1e6, cpu, connections,
		   status_kib("VmHWM") - memory);
	return 0;
}
