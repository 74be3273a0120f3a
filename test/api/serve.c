/*
 * serve.c
 *		HTTP: two listeners, delayed requests, and sending answers with faults
 *		that concern their bytes.
 */
#include <limits.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "standin.h"

/* How long a silent request is kept, in milliseconds. */
#define FOREVER 120000

static struct MHD_Daemon *daemons[2];

/*
 * ------------------------------------------------------------------------
 * Latency: connections sleep suspended, in a heap by the time to wake them
 * ------------------------------------------------------------------------
 */

typedef struct Sleeper
{
	double		wake;
	struct MHD_Connection *connection;
} Sleeper;

static Sleeper *heap;
static size_t heap_size,
			heap_count;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed;
static pthread_t waker;
static bool stopping;

static void
heap_push(Sleeper sleeper)
{
	size_t		i = heap_count++;

	if (heap_count > heap_size)
	{
		heap_size = heap_size ? heap_size * 2 : 1024;
		heap = realloc(heap, heap_size * sizeof(Sleeper));
	}
	for (; i > 0 && heap[(i - 1) / 2].wake > sleeper.wake; i = (i - 1) / 2)
		heap[i] = heap[(i - 1) / 2];
	heap[i] = sleeper;
}

static Sleeper
heap_pop(void)
{
	Sleeper		first = heap[0];
	Sleeper		last = heap[--heap_count];
	size_t		i = 0;

	for (;;)
	{
		size_t		child = 2 * i + 1;

		if (child >= heap_count)
			break;
		if (child + 1 < heap_count && heap[child + 1].wake < heap[child].wake)
			child++;
		if (heap[child].wake >= last.wake)
			break;
		heap[i] = heap[child];
		i = child;
	}
	heap[i] = last;
	return first;
}

static void *
wake_up(void *arg)
{
	(void) arg;
	pthread_mutex_lock(&mutex);
	for (;;)
	{
		double		now = log_now();

		while (heap_count > 0 && (heap[0].wake <= now || stopping))
			MHD_resume_connection(heap_pop().connection);
		if (stopping)
			break;
		if (heap_count == 0)
			pthread_cond_wait(&changed, &mutex);
		else
		{
			struct timespec ts;
			double		left = heap[0].wake - now;

			clock_gettime(CLOCK_MONOTONIC, &ts);
			ts.tv_sec += (time_t) (left / 1000);
			ts.tv_nsec += (long) ((left - 1000.0 * (time_t) (left / 1000)) * 1e6);
			if (ts.tv_nsec >= 1000000000)
			{
				ts.tv_nsec -= 1000000000;
				ts.tv_sec++;
			}
			pthread_cond_timedwait(&changed, &mutex, &ts);
		}
	}
	pthread_mutex_unlock(&mutex);
	return NULL;
}

/*
 * Suspend the connection of a request, and resume it later.
 */
void
serve_after(Request *request, long milliseconds)
{
	MHD_suspend_connection(request->connection);
	pthread_mutex_lock(&mutex);
	heap_push((Sleeper) {log_now() + milliseconds, request->connection});
	pthread_cond_signal(&changed);
	pthread_mutex_unlock(&mutex);
}

/* Connections whose replies are held, suspended. */
static struct MHD_Connection **held;
static long nheld;

/*
 * Suspend the connection of a request until the replies to n requests are held.
 * Then resume all of them, after some milliseconds.  A request that its client
 * has abandoned meanwhile is counted.
 */
static void
hold(Request *request, long n, long milliseconds)
{
	MHD_suspend_connection(request->connection);
	pthread_mutex_lock(&mutex);
	held = realloc(held, (nheld + 1) * sizeof(*held));
	held[nheld++] = request->connection;
	if (nheld >= n)
	{
		double		wake = log_now() + milliseconds;

		while (nheld > 0)
			heap_push((Sleeper) {wake, held[--nheld]});
		pthread_cond_signal(&changed);
	}
	pthread_mutex_unlock(&mutex);
}

/*
 * ------------------------------------------------------------------------
 * Answers
 * ------------------------------------------------------------------------
 */

/* A body that is sent in a special way. */
typedef struct Body
{
	Request    *request;
	char	   *data;			/* NULL: send spaces */
	size_t		data_length;
	size_t		length;			/* send empty gzip blocks after the data */
	long		break_at;
	long		stall;
	long		slow;
	bool		rested;			/* has it slept before this piece? */
} Body;

static ssize_t
read_body(void *arg, uint64_t at, char *buffer, size_t max)
{
	Body	   *body = arg;
	size_t		n = body->length - at;

	if (n > max)
		n = max;
	if (body->break_at >= 0)
	{
		if (at >= (uint64_t) body->break_at)
			return MHD_CONTENT_READER_END_WITH_ERROR;
		if (n > (uint64_t) body->break_at - at)
			n = body->break_at - at;
	}
	if (body->stall >= 0)
	{
		if (at >= (uint64_t) body->stall)
		{
			serve_after(body->request, FOREVER);
			return 0;
		}
		if (n > (uint64_t) body->stall - at)
			n = body->stall - at;
	}
	if (body->slow > 0)
	{
		if (!body->rested)
		{
			body->rested = true;
			serve_after(body->request, body->slow);
			return 0;
		}
		body->rested = false;
		if (n > body->length / 20 + 1)
			n = body->length / 20 + 1;
	}
	if (body->data == NULL)
		memset(buffer, ' ', n);
	else if (at < body->data_length)
	{
		if (n > body->data_length - at)
			n = body->data_length - at;
		memcpy(buffer, body->data + at, n);
	}
	else
	{
		/* An empty stored block, not marked as the last. */
		for (size_t i = 0; i < n; i++)
			buffer[i] = "\0\0\0\xff\xff"[(at - body->data_length + i) % 5];
	}
	return n;
}

static void
free_body(void *arg)
{
	Body	   *body = arg;

	free(body->data);
	free(body);
}

static void
add_headers(struct MHD_Response *response, const Request *request,
			const char *type)
{
	const Fault *fault = &request->fault;
	char		text[512];

	if (type)
		MHD_add_response_header(response, "Content-Type", type);
	if (fault->retry_after != LONG_MIN)
	{
		snprintf(text, sizeof(text), "%ld", fault->retry_after);
		MHD_add_response_header(response, "Retry-After", text);
	}
	if (fault->retry_after_date != LONG_MIN)
	{
		time_t		at = time(NULL) + fault->retry_after_date;
		struct tm	tm;

		gmtime_r(&at, &tm);
		strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &tm);
		MHD_add_response_header(response, "Retry-After", text);
	}
	if (fault->retry_after_text)
		MHD_add_response_header(response, "Retry-After",
								fault->retry_after_text);
	if (fault->left)
		MHD_add_response_header(response, "RateLimit-Remaining", fault->left);
	if (fault->left_reset)
		MHD_add_response_header(response, "RateLimit-Reset",
								fault->left_reset);
	if (fault->left_reset_date != LONG_MIN)
	{
		snprintf(text, sizeof(text), "%ld",
				 (long) time(NULL) + fault->left_reset_date);
		MHD_add_response_header(response, "RateLimit-Reset", text);
	}
	if (fault->close || options.close)
		MHD_add_response_header(response, "Connection", "close");
	if (strncmp(request->path, "/v1/", 4) == 0)
		limit_add_headers(response, request);
	if (fault->redirected)
	{
		snprintf(text, sizeof(text), "http://localhost:%d/elsewhere",
				 serve_http_port());
		MHD_add_response_header(response, "Location",
								fault->redirect ? fault->redirect : text);
	}
	for (long i = 0; i < fault->headers; i++)
	{
		snprintf(text, sizeof(text), "X-Extra-%ld", i);
		MHD_add_response_header(response, text, "extra");
	}
	if (fault->header_size > 0)
	{
		char	   *value = malloc(fault->header_size + 1);

		memset(value, 'x', fault->header_size);
		value[fault->header_size] = '\0';
		MHD_add_response_header(response, "X-Large", value);
		free(value);
	}
}

/*
 * Answer with these bytes, modified as the request's fault requires.
 */
enum MHD_Result
answer(Request *request, int status, const char *type, const void *data,
	   size_t length)
{
	const Fault *fault = &request->fault;
	struct MHD_Response *response;
	enum MHD_Result result;
	Buffer		encoded = {0};
	char	   *coding = coding_apply(fault, data, length, &encoded);
	char		charset[200];

	if (coding)
	{
		data = encoded.data;
		length = encoded.length;
	}
	if (fault->notype)
		type = NULL;
	else if (fault->type)
		type = fault->type;
	else if (fault->charset && type)
	{
		snprintf(charset, sizeof(charset), "%s; charset=utf-8", type);
		type = charset;
	}

	if (fault->big > 0 || fault->empty_blocks > 0 || fault->break_at >= 0 ||
		fault->stall >= 0 || fault->slow > 0)
	{
		Body	   *body = calloc(1, sizeof(Body));

		body->request = request;
		body->length = fault->big > 0 ? (size_t) fault->big :
			length + fault->empty_blocks;
		body->break_at = fault->break_at;
		body->stall = fault->stall;
		body->slow = fault->slow;
		if (fault->big == 0)
		{
			body->data = malloc(length + 1);
			body->data_length = length;
			memcpy(body->data, data, length);
		}
		response = MHD_create_response_from_callback(body->length, 32768,
													 read_body, body, free_body);
	}
	else
		response = MHD_create_response_from_buffer(length,
												   (void *) (uintptr_t) data,
												   MHD_RESPMEM_MUST_COPY);
	if (coding)
		MHD_add_response_header(response, "Content-Encoding", coding);
	free(coding);
	free(encoded.data);
	add_headers(response, request, type);
	if (!request->control)
	{
		log_request(request, status);
		log_bytes(length);
	}
	result = MHD_queue_response(request->connection, status, response);
	MHD_destroy_response(response);
	return result;
}

/* Return a number in the query, or 0 if there is none. */
static long
number_of(const Request *request, const char *name)
{
	const char *value = request_parameter(request, name);

	return value ? atol(value) : 0;
}

static void
add_step(const Request *request)
{
	const char *faults = request_parameter(request, "fault");

	limit_add_step(faults ? faults : "", number_of(request, "count"),
				   number_of(request, "ms"));
}

static enum MHD_Result
answer_control(Request *request)
{
	Buffer		out = {0};
	enum MHD_Result result;

	if (strcmp(request->path, "/vector") == 0)
		return vector_handle(request);
	buffer_add(&out, "", 0);
	if (strcmp(request->path, "/stats") == 0)
		log_stats(&out);
	else if (strcmp(request->path, "/log") == 0)
		log_entries(&out, number_of(request, "since"));
	else if (strcmp(request->path, "/script") == 0)
		add_step(request);
	else
	{
		log_reset();
		fault_reset();
		limit_reset();
	}
	result = answer(request, 200, "application/json", out.data, out.length);
	free(out.data);
	return result;
}

/* Reset the connection without an answer. */
static enum MHD_Result
reset_connection(Request *request)
{
	const union MHD_ConnectionInfo *info;
	struct linger linger = {1, 0};

	info = MHD_get_connection_info(request->connection,
								   MHD_CONNECTION_INFO_CONNECTION_FD);
	if (info)
		setsockopt(info->connect_fd, SOL_SOCKET, SO_LINGER, &linger,
				   sizeof(linger));
	log_request(request, 0);
	return MHD_NO;
}

/*
 * ------------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------------
 */

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Decode percent-encoding, and "+" to a space as servers do in a query. */
static char *
decode(const char *text, size_t length)
{
	char	   *out = malloc(length + 1);
	size_t		n = 0;

	for (size_t i = 0; i < length; i++)
	{
		if (text[i] == '%' && i + 2 < length && hex_digit(text[i + 1]) >= 0 &&
			hex_digit(text[i + 2]) >= 0)
		{
			out[n++] = (char) (hex_digit(text[i + 1]) * 16 +
							   hex_digit(text[i + 2]));
			i += 2;
		}
		else
			out[n++] = text[i] == '+' ? ' ' : text[i];
	}
	out[n] = '\0';
	return out;
}

static void
parse_query(Request *request)
{
	const char *p = request->query;

	while (*p && request->nparameters < MAX_PARAMETERS)
	{
		size_t		length = strcspn(p, "&");
		size_t		name = strcspn(p, "=&");
		Parameter  *parameter = &request->parameters[request->nparameters++];

		parameter->name = decode(p, name);
		parameter->value = name < length ?
			decode(p + name + 1, length - name - 1) : strdup("");
		p += length;
		if (*p)
			p++;
	}
}

static void *
on_uri(void *arg, const char *uri, struct MHD_Connection *connection)
{
	Request    *request = calloc(1, sizeof(Request));
	size_t		path = strcspn(uri, "?");

	request->connection = connection;
	request->https = arg != NULL;
	request->uri = strdup(uri);
	request->path = strndup(uri, path);
	request->query = request->uri + path + (request->uri[path] == '?');
	parse_query(request);
	fault_parse(NULL, false, &request->fault);
	request->control = strcmp(request->path, "/stats") == 0 ||
		strcmp(request->path, "/log") == 0 ||
		strcmp(request->path, "/reset") == 0 ||
		strcmp(request->path, "/script") == 0 ||
		strcmp(request->path, "/vector") == 0;
	return request;
}

static void
on_completed(void *arg, struct MHD_Connection *connection, void **state,
			 enum MHD_RequestTerminationCode code)
{
	Request    *request = *state;

	(void) arg, (void) connection, (void) code;
	if (request == NULL)
		return;
	log_end(request);
	for (int i = 0; i < request->nparameters; i++)
	{
		free(request->parameters[i].name);
		free(request->parameters[i].value);
	}
	fault_free(&request->fault);
	free(request->uri);
	free(request->path);
	free(request->body_in);
	free(request->text);
	free(request->item_type);
	free(request);
	*state = NULL;
}

/* Number connections from their first request that is not for control. */
static void
number_connection(Request *request)
{
	const union MHD_ConnectionInfo *info;
	unsigned long *number;

	info = MHD_get_connection_info(request->connection,
								   MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	number = info ? info->socket_context : NULL;
	if (number == NULL)
		return;
	if (*number == 0)
		*number = log_connection_opened();
	request->connection_number = *number;
}

static void
on_connection(void *arg, struct MHD_Connection *connection, void **state,
			  enum MHD_ConnectionNotificationCode code)
{
	(void) arg, (void) connection;
	if (code == MHD_CONNECTION_NOTIFY_STARTED)
		*state = calloc(1, sizeof(unsigned long));
	else if (*state)
	{
		if (*(unsigned long *) *state != 0)
			log_connection_closed();
		free(*state);
		*state = NULL;
	}
}

/*
 * Determine the faults of a request.  Returns false if the connection has been
 * suspended first.
 */
static bool
prepare(Request *request, bool *reset)
{
	const char *identifier;
	char	   *scripted;
	bool		store = strncmp(request->path, "/v1/", 4) != 0;
	long		wait = options.latency;

	body_read(request);
	identifier = identifier_of(request);
	scripted = limit_next_fault(store);
	fault_parse(scripted ? scripted : identifier, store, &request->fault);
	if (scripted == NULL && request->fault.first > 0 &&
		!fault_applies(identifier, store, request->fault.first))
	{
		fault_free(&request->fault);
		fault_parse(NULL, store, &request->fault);
	}
	if (scripted && request->fault.own &&
		identifier && strncmp(identifier, "fault:", 6) == 0)
	{
		char	   *both = malloc(strlen(scripted) + strlen(identifier) + 1);

		sprintf(both, "%s,%s", scripted, identifier + 6);
		fault_free(&request->fault);
		fault_parse(both, store, &request->fault);
		free(both);
	}
	free(scripted);
	if (request->fault.silent)
		wait = FOREVER;
	else
	{
		wait += request->fault.latency;
		if (!store)
			wait = limit_queue(wait);
	}
	*reset = request->fault.reset;
	if (request->fault.hold > 0)
		hold(request, request->fault.hold, wait);
	else if (wait > 0)
		serve_after(request, wait);
	else
		return true;
	return false;
}

static enum MHD_Result
on_request(void *arg, struct MHD_Connection *connection, const char *url,
		   const char *method, const char *version, const char *data,
		   size_t *length, void **state)
{
	Request    *request = *state;
	bool		reset;

	(void) arg, (void) connection, (void) url, (void) version;
	if (request->method == NULL)
	{
		request->method = method;
		if (!request->control)
		{
			number_connection(request);
			log_begin(request);
			if (strncmp(request->path, "/v1/", 4) == 0)
				limit_admit(request);
		}
		/* Answering at this point would close the connection. */
		return MHD_YES;
	}
	if (*length > 0)
	{
		request->body_in = realloc(request->body_in,
								   request->body_in_length + *length + 1);
		memcpy(request->body_in + request->body_in_length, data, *length);
		request->body_in_length += *length;
		request->body_in[request->body_in_length] = '\0';
		*length = 0;
		return MHD_YES;
	}
	if (request->control)
		return answer_control(request);

	if (!request->delayed)
	{
		request->delayed = true;
		if (!prepare(request, &reset))
			return MHD_YES;
	}
	if (request->fault.reset)
		return reset_connection(request);
	if (strncmp(request->path, "/v1/", 4) == 0)
		return api_handle(request);
	return store_handle(request);
}

static struct MHD_Daemon *
listen_on(int port, const char *certificate, const char *key)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)
	};
	/*
	 * Do not use epoll: with it libmicrohttpd 0.9.75 was observed to keep
	 * sleeping while 128 connections, the number of events it requests at a
	 * time, were ready at once.
	 */
	unsigned	flags = MHD_USE_POLL_INTERNAL_THREAD |
		MHD_ALLOW_SUSPEND_RESUME | (certificate ? MHD_USE_TLS : 0);
	struct MHD_OptionItem tls[] = {
		{MHD_OPTION_HTTPS_MEM_CERT, 0, (void *) (uintptr_t) certificate},
		{MHD_OPTION_HTTPS_MEM_KEY, 0, (void *) (uintptr_t) key},
		{MHD_OPTION_END, 0, NULL}
	};
	struct MHD_OptionItem none[] = {{MHD_OPTION_END, 0, NULL}};

	return MHD_start_daemon(flags, port, NULL, NULL, on_request, NULL,
							MHD_OPTION_SOCK_ADDR, &address,
							MHD_OPTION_CONNECTION_LIMIT, 2000u,
							MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t) options.memory,
							MHD_OPTION_LISTENING_ADDRESS_REUSE, 1u,
							MHD_OPTION_URI_LOG_CALLBACK, on_uri, certificate,
							MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL,
							MHD_OPTION_NOTIFY_CONNECTION, on_connection, NULL,
							MHD_OPTION_ARRAY, certificate ? tls : none,
							MHD_OPTION_END);
}

static int
port_of(struct MHD_Daemon *daemon)
{
	return MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_BIND_PORT)->port;
}

int
serve_http_port(void)
{
	return port_of(daemons[0]);
}

int
serve_https_port(void)
{
	return port_of(daemons[1]);
}

bool
serve_start(const char *certificate, const char *key)
{
	pthread_condattr_t attributes;

	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&changed, &attributes);
	if (pthread_create(&waker, NULL, wake_up, NULL) != 0)
		return false;
	daemons[0] = listen_on(options.http_port, NULL, NULL);
	daemons[1] = listen_on(options.https_port, certificate, key);
	return daemons[0] && daemons[1];
}

void
serve_stop(void)
{
	pthread_mutex_lock(&mutex);
	stopping = true;
	pthread_cond_signal(&changed);
	pthread_mutex_unlock(&mutex);
	pthread_join(waker, NULL);
}
