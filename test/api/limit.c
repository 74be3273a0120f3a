/*
 * limit.c
 *		Limits of a whole account: the rate of requests, the number served at
 *		the same time, and the faults of the next requests.
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "standin.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/*
 * ------------------------------------------------------------------------
 * The rate
 * ------------------------------------------------------------------------
 */

/* Times of the requests within the window, in milliseconds: a ring buffer. */
static double *window;
static long window_first,
			window_count;

/*
 * Number of requests to remember: one more than the rate, to detect that it is
 * exceeded.
 */
static long
window_size(void)
{
	return options.rate + 1;
}

static void
remember(double at)
{
	if (window == NULL)
		window = calloc(window_size(), sizeof(double));
	if (window_count == window_size())
	{
		window_first = (window_first + 1) % window_size();
		window_count--;
	}
	window[(window_first + window_count++) % window_size()] = at;
}

/*
 * Check whether a request to the API is within the rate.  Refused requests
 * count as well, unless --free-refusals is set.
 */
void
limit_admit(Request *request)
{
	double		at = log_now();
	double		span = options.rate_seconds * 1000;

	if (options.rate == 0)
		return;
	pthread_mutex_lock(&mutex);
	while (window_count > 0 && window[window_first] <= at - span)
	{
		window_first = (window_first + 1) % window_size();
		window_count--;
	}
	request->over_rate = window_count >= options.rate;
	if (!request->over_rate || !options.free_refusals)
		remember(at);
	request->rate_left = options.rate > window_count ?
		options.rate - window_count : 0;

	/*
	 * The next request is admitted when only rate - 1 are left in the window.
	 */
	if (window_count >= options.rate)
		request->rate_wait = window[(window_first + window_count -
									 options.rate) % window_size()] + span - at;
	pthread_mutex_unlock(&mutex);
}

static void
format_date(char *text, size_t size, time_t at)
{
	struct tm	tm;

	gmtime_r(&at, &tm);
	strftime(text, size, "%a, %d %b %Y %H:%M:%S GMT", &tm);
}

static void
add_number(struct MHD_Response *response, const char *name, long number)
{
	char		full[64];
	char		text[32];

	snprintf(full, sizeof(full), "%s-%s", options.rate_headers, name);
	snprintf(text, sizeof(text), "%ld", number);
	MHD_add_response_header(response, full, text);
}

/*
 * Add the headers that describe the rate to a reply.
 */
void
limit_add_headers(struct MHD_Response *response, const Request *request)
{
	const char *how = options.retry_after ? options.retry_after : "due";
	long		seconds = (long) ceil(request->rate_wait / 1000);
	char		text[64];

	if (options.rate == 0)
		return;
	if (options.rate_headers)
	{
		add_number(response, "Limit", options.rate);
		add_number(response, "Remaining", request->rate_left);
		add_number(response, "Reset", seconds);
	}
	if (!request->over_rate || strcmp(how, "none") == 0)
		return;
	if (strcmp(how, "due") == 0)
		snprintf(text, sizeof(text), "%ld", seconds > 1 ? seconds : 1);
	else if (strcmp(how, "date") == 0)
		format_date(text, sizeof(text), time(NULL) + seconds + 1);
	else if (strcmp(how, "past") == 0)
		format_date(text, sizeof(text), time(NULL) - 3600);
	else
		snprintf(text, sizeof(text), "%s", how);
	MHD_add_response_header(response, "Retry-After", text);
}

/*
 * ------------------------------------------------------------------------
 * Requests served at a time
 * ------------------------------------------------------------------------
 */

/* When each server will have completed its requests, in milliseconds. */
static double *busy_until;

/*
 * Return the time until a request is answered that takes "milliseconds" to
 * serve, if only --serve requests are served at the same time and the others
 * are queued.  A request that its client abandons is served all the same.
 */
long
limit_queue(long milliseconds)
{
	double		at = log_now();
	int			next = 0;
	double		start;

	if (options.serve == 0)
		return milliseconds;
	pthread_mutex_lock(&mutex);
	if (busy_until == NULL)
		busy_until = calloc(options.serve, sizeof(double));
	for (int i = 1; i < options.serve; i++)
	{
		if (busy_until[i] < busy_until[next])
			next = i;
	}
	start = busy_until[next] > at ? busy_until[next] : at;
	busy_until[next] = start + milliseconds;
	pthread_mutex_unlock(&mutex);
	return (long) ceil(start + milliseconds - at);
}

/*
 * ------------------------------------------------------------------------
 * The script
 * ------------------------------------------------------------------------
 */

/* Faults for the next requests, whatever they are for. */
typedef struct Step
{
	struct Step *next;
	char	   *fault;			/* faults in the form of an identifier,
								 * including "fault:" */
	bool		store;
	long		count;			/* remaining requests; 0: no limit */
	double		lasts;			/* duration from its first request, in milliseconds; 0: no limit */
	double		until;			/* time of its first request; 0: none yet */
} Step;

static Step *steps;

/*
 * Add a step to the script.  It applies to the object store if its first fault
 * does.
 */
void
limit_add_step(const char *faults, long count, long milliseconds)
{
	Step	   *step = calloc(1, sizeof(Step));
	Step	  **end = &steps;

	step->fault = malloc(strlen(faults) + 7);
	sprintf(step->fault, "fault:%s", faults);
	step->store = strncmp(faults, "v.", 2) == 0;
	step->count = count;
	step->lasts = milliseconds;
	pthread_mutex_lock(&mutex);
	while (*end)
		end = &(*end)->next;
	*end = step;
	pthread_mutex_unlock(&mutex);
}

static void
remove_step(Step **at)
{
	Step	   *step = *at;

	*at = step->next;
	free(step->fault);
	free(step);
}

/*
 * Return the faults that the script has for a request, to be freed; or NULL.
 */
char *
limit_next_fault(bool store)
{
	double		at = log_now();
	char	   *fault = NULL;

	pthread_mutex_lock(&mutex);
	for (Step **step = &steps; *step && fault == NULL;)
	{
		if ((*step)->store != store)
			step = &(*step)->next;
		else if ((*step)->until > 0 && (*step)->until <= at)
			remove_step(step);
		else
		{
			fault = strdup((*step)->fault);
			if ((*step)->lasts > 0 && (*step)->until == 0)
				(*step)->until = at + (*step)->lasts;
			if ((*step)->count > 0 && --(*step)->count == 0)
				remove_step(step);
		}
	}
	pthread_mutex_unlock(&mutex);
	return fault;
}

/*
 * Discard the times of requests and the script.
 */
void
limit_reset(void)
{
	pthread_mutex_lock(&mutex);
	while (steps)
		remove_step(&steps);
	window_count = 0;
	pthread_mutex_unlock(&mutex);
}
