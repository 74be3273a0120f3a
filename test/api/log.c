/*
 * log.c
 *		Logs and counts what was received.
 */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "standin.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static double started;

static char **entries;			/* ring buffer of options.log lines */
static unsigned long nentries;	/* number of lines since the start */
static unsigned long nresets;

static struct
{
	unsigned long requests,
				api_requests,
				store_requests,
				by_status[600],
				in_flight,
				max_in_flight,
				opened,
				open,
				bytes,
				max_per_minute;
}			stats;

/* Times of API requests in the last 60 s: a ring buffer that grows. */
static double *window;
static size_t window_size,
			window_first,
			window_count;

void
buffer_add(Buffer *buffer, const void *data, size_t length)
{
	if (buffer->length + length + 1 > buffer->size)
	{
		buffer->size = (buffer->length + length + 1) * 2;
		buffer->data = realloc(buffer->data, buffer->size);
		if (buffer->data == NULL)
			abort();
	}
	if (length > 0)
		memcpy(buffer->data + buffer->length, data, length);
	buffer->length += length;
	buffer->data[buffer->length] = '\0';
}

void
buffer_printf(Buffer *buffer, const char *format,...)
{
	char		text[4096];
	va_list		args;
	int			n;

	va_start(args, format);
	n = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	buffer_add(buffer, text, n < (int) sizeof(text) ? (size_t) n : sizeof(text) - 1);
}

static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000.0 + ts.tv_nsec / 1e6;
}

/* Return the milliseconds since the start. */
double
log_now(void)
{
	return now() - started;
}

void
log_start(void)
{
	started = now();
	if (options.log > 0)
		entries = calloc(options.log, sizeof(char *));
}

/* Append bytes as a JSON string, with those that are not ASCII as \u00xx. */
static void
add_bytes(Buffer *out, const char *text, size_t length)
{
	const unsigned char *end = (const unsigned char *) text + length;

	buffer_add(out, "\"", 1);
	for (const unsigned char *p = (const unsigned char *) text; p < end; p++)
	{
		if (*p < ' ' || *p > '~' || *p == '"' || *p == '\\')
			buffer_printf(out, "\\u%04x", *p);
		else
			buffer_add(out, p, 1);
	}
	buffer_add(out, "\"", 1);
}

static void
add_string(Buffer *out, const char *text)
{
	add_bytes(out, text, strlen(text));
}

static enum MHD_Result
add_header(void *arg, enum MHD_ValueKind kind, const char *name,
		   const char *value)
{
	Buffer	   *out = arg;

	(void) kind;
	if (out->data[out->length - 1] != '{')
		buffer_add(out, ",", 1);
	add_string(out, name);
	buffer_add(out, ":", 1);
	add_string(out, value ? value : "");
	return MHD_YES;
}

static void
slide_window(double at)
{
	while (window_count > 0 && window[window_first] <= at - 60000)
	{
		window_first = (window_first + 1) % window_size;
		window_count--;
	}
}

static void
add_to_window(double at)
{
	slide_window(at);
	if (window_count == window_size)
	{
		size_t		size = window_size ? window_size * 2 : 1024;
		double	   *larger = malloc(size * sizeof(double));

		for (size_t i = 0; i < window_count; i++)
			larger[i] = window[(window_first + i) % window_size];
		free(window);
		window = larger;
		window_size = size;
		window_first = 0;
	}
	window[(window_first + window_count++) % window_size] = at;
	if (window_count > stats.max_per_minute)
		stats.max_per_minute = window_count;
}

long
log_api_requests(void)
{
	return stats.api_requests;
}

void
log_begin(Request *request)
{
	bool		store = strncmp(request->path, "/v1/", 4) != 0;

	pthread_mutex_lock(&mutex);
	stats.requests++;
	if (store)
		stats.store_requests++;
	else
	{
		stats.api_requests++;
		add_to_window(now());
	}
	if (++stats.in_flight > stats.max_in_flight)
		stats.max_in_flight = stats.in_flight;
	request->number = stats.requests;
	request->in_flight = stats.in_flight;
	request->begun_after_resets = nresets;
	request->begun_at = log_now();
	pthread_mutex_unlock(&mutex);
	request->begun = true;
}

void
log_end(Request *request)
{
	if (!request->begun)
		return;
	pthread_mutex_lock(&mutex);
	stats.in_flight--;
	pthread_mutex_unlock(&mutex);
}

void
log_bytes(size_t n)
{
	__atomic_fetch_add(&stats.bytes, n, __ATOMIC_RELAXED);
}

unsigned long
log_connection_opened(void)
{
	__atomic_fetch_add(&stats.open, 1, __ATOMIC_RELAXED);
	return __atomic_add_fetch(&stats.opened, 1, __ATOMIC_RELAXED);
}

void
log_connection_closed(void)
{
	__atomic_fetch_sub(&stats.open, 1, __ATOMIC_RELAXED);
}

/*
 * Log a request, and the status with which it is being answered, or 0 if it
 * will not be answered.  Requests that began before the log was reset are
 * ignored.
 */
void
log_request(Request *request, int status)
{
	Buffer		line = {0};
	bool		belongs;

	pthread_mutex_lock(&mutex);
	belongs = request->begun_after_resets == nresets;
	if (belongs && status > 0 && status < 600)
		stats.by_status[status]++;
	pthread_mutex_unlock(&mutex);
	if (!belongs || options.log <= 0)
		return;

	buffer_printf(&line, "\"number\":%lu,\"ms\":%.3f,\"begun\":%.3f,\"in_flight\":%lu,\"listener\":\"%s\",\"connection\":%lu,\"method\":\"%s\",\"path\":",
				  request->number, log_now(), request->begun_at, request->in_flight,
				  request->https ? "https" : "http",
				  request->connection_number, request->method);
	add_string(&line, request->path);
	buffer_printf(&line, ",\"query\":");
	add_string(&line, request->query);
	buffer_printf(&line, ",\"headers\":{");
	MHD_get_connection_values(request->connection, MHD_HEADER_KIND, add_header,
							  &line);
	buffer_printf(&line, "},");
	if (request->body_in)
	{
		buffer_printf(&line, "\"body\":");
		add_bytes(&line, request->body_in, request->body_in_length);
		buffer_printf(&line, ",");
	}
	buffer_printf(&line, "\"status\":%d}", status);

	pthread_mutex_lock(&mutex);
	free(entries[nentries % options.log]);
	entries[nentries++ % options.log] = line.data;
	pthread_mutex_unlock(&mutex);
}

void
log_entries(Buffer *out, unsigned long since)
{
	pthread_mutex_lock(&mutex);
	for (unsigned long n = nentries > (unsigned long) options.log ?
		 nentries - options.log : 0; n < nentries; n++)
	{
		char		number[40];

		if (n < since)
			continue;
		buffer_add(out, number,
				   snprintf(number, sizeof(number), "{\"n\":%lu,", n));
		buffer_add(out, entries[n % options.log],
				   strlen(entries[n % options.log]));
		buffer_add(out, "\n", 1);
	}
	pthread_mutex_unlock(&mutex);
}

void
log_stats(Buffer *out)
{
	bool		any = false;

	pthread_mutex_lock(&mutex);
	buffer_printf(out, "{\"now\":%.3f,\"requests\":%lu,\"api_requests\":%lu,\"store_requests\":%lu,"
				  "\"in_flight\":%lu,\"max_in_flight\":%lu,\"connections_opened\":%lu,"
				  "\"connections_open\":%lu,\"bytes_sent\":%lu,\"max_per_minute\":%lu,\"by_status\":{",
				  log_now(), stats.requests, stats.api_requests, stats.store_requests,
				  stats.in_flight, stats.max_in_flight, stats.opened,
				  stats.open, stats.bytes, stats.max_per_minute);
	for (int i = 0; i < 600; i++)
	{
		if (stats.by_status[i] == 0)
			continue;
		buffer_printf(out, "%s\"%d\":%lu", any ? "," : "", i, stats.by_status[i]);
		any = true;
	}
	buffer_printf(out, "}}\n");
	pthread_mutex_unlock(&mutex);
}

void
log_reset(void)
{
	pthread_mutex_lock(&mutex);
	nresets++;
	for (long i = 0; i < options.log; i++)
	{
		free(entries[i]);
		entries[i] = NULL;
	}
	nentries = 0;
	stats.requests = stats.api_requests = stats.store_requests = 0;
	stats.max_in_flight = stats.in_flight;
	stats.opened = stats.bytes = stats.max_per_minute = 0;
	memset(stats.by_status, 0, sizeof(stats.by_status));
	window_count = 0;
	pthread_mutex_unlock(&mutex);
}
