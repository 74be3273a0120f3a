/*-------------------------------------------------------------------------
 *
 * window.c
 *		Limits the number of requests in flight to each origin.
 *
 * max_concurrency is the upper limit.  Below it, each origin has a window that
 * adapts to the server.  After each round, of about half a window of requests,
 * the median latency of the round is compared with the lowest recent median.
 * We compare medians, because individual latencies of a server vary by far
 * more than a factor of 1.5 even if there is no queue.
 *
 * - While the window is opening, it grows by three requests with each reply,
 *   that is, by a factor of four in each round trip: from 32 to the default of
 *   max_concurrency in one.  (TCP's slow start doubles its window.)  After the
 *   first cut it grows by at least an eighth of a request with each reply.  It
 *   does not grow unless it is fully used, nor while the latency is more than
 *   1.2 times the lowest, nor with the reply to a request during which we
 *   waited for less than a quarter of the time, because then our own CPU is
 *   the bottleneck.  (Small differences of latency are ignored: see GROW_SLACK
 *   and CUT_SLACK.)
 * - If the latency is more than 1.5 times the lowest for two rounds, requests
 *   are queueing in the server.  (One round is not enough, because opening
 *   many connections takes time on both sides, but only temporarily.)  By
 *   Little's law, the number of requests in flight that would have the allowed
 *   latency (1.2 times the lowest) is the current number times the allowed
 *   latency, divided by the current latency.  The window is cut to this
 *   number, which is slightly more than the throughput times the lowest
 *   latency, so that the server always has work.  (TCP Vegas, Brakmo and
 *   Peterson 1995, keeps the queue between two bounds in the same way.)
 * - If our requests caused the queue, it is now shorter, and the throughput
 *   has not changed.  If instead the throughput falls with the number of
 *   requests in flight, we caused no queue: the requests are of a different
 *   kind, or the server has become slower.  Then the window is restored, and
 *   the current latency becomes the lowest one.
 * - The lowest latency is forgotten after some time.  If the window is full
 *   then, the latency may include a queue, so the window is halved for one
 *   round to measure the latency without one (as BBR does in its ProbeRTT
 *   state).
 * - 429, 503 and connections that break cut the window to 0.7 of its size, at
 *   most once in a round trip (as CUBIC does, RFC 9438), but not below
 *   MIN_CUT: a server that breaks a few connections at random should not make
 *   requests wait for one another.  Timeouts and failures to connect cut the
 *   window, too, but not below the size of a new window: they mostly mean an
 *   outage, and the more requests try, the sooner its end is noticed.
 *
 * Two more limits are the memory for replies, and the number of requests that
 * a refusal may waste (HRFLOW_MAX_WASTED).  Nothing here throws.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/* Initial size of the window of an origin about which nothing is known. */
#define INITIAL_SIZE HRFLOW_MAX_WASTED

/* Growth of a window that has not been cut yet, in requests per reply. */
#define OPENING_GROWTH 3

/* Minimum growth of a window that has been cut, in requests per reply. */
#define GROWTH 0.125

/*
 * The window grows only if this backend has waited for at least this part of
 * the time since the attempt started.
 */
#define MIN_WAITED 0.25

/*
 * The window counts as fully used if requests in flight fill at least this
 * part of it, so that a queue is noticed even if slightly fewer requests are
 * in flight.
 */
#define FULL_PART 0.75

/*
 * Factor by which a refusal, a broken connection, a failure to connect or a
 * timeout multiplies the size of the window.
 */
#define REFUSAL_FACTOR 0.7

/*
 * The window may grow if the latency is at most this factor times the lowest
 * latency.
 */
#define GROW_FACTOR 1.2

/*
 * A fully used window is cut if, in two consecutive rounds, the latency
 * exceeds the lowest latency multiplied by this factor; but see CUT_SLACK.
 */
#define CUT_FACTOR 1.5

/*
 * The window may also grow if the latency exceeds the lowest latency by at
 * most this, in microseconds.
 */
#define GROW_SLACK (HRFLOW_MSEC / 2)

/*
 * The window is not cut if the latency exceeds the lowest latency by at most
 * this, in microseconds.  A few milliseconds do not indicate a queue in the
 * server: both machines need that time to wake up and schedule the processes.
 */
#define CUT_SLACK (5 * HRFLOW_MSEC)

/*
 * Minimum size to which latency, refusals and broken connections cut a window,
 * so that a few random failures do not make requests wait for one another.
 */
#define MIN_CUT 8

/*
 * Minimum number of requests in a round.  The median of fewer latencies would
 * vary too much.
 */
#define MIN_ROUND 8

/* Maximum number of requests in a round.  All of their latencies are kept. */
#define MAX_ROUND 64

/*
 * Minimum length of a period.  Latencies are compared with the lowest latency
 * of the current and the previous period.
 */
#define PERIOD (10 * HRFLOW_SEC)

/* Minimum length of a period, as a multiple of the latency. */
#define ROUND_TRIPS_PER_PERIOD 50

/* A window that has not been used for this long is reset. */
#define WINDOW_MEMORY (60 * HRFLOW_SEC)

/* Maximum number of origins that have a window in each backend. */
#define NWINDOWS 32

/* Purpose for which the window was reduced before the current round. */
typedef enum WindowTrial
{
	NO_TRIAL,
	TRIAL_OF_CUT,				/* to see whether a cut lowers the latency */
	TRIAL_OF_LATENCY			/* to measure the latency without a queue */
} WindowTrial;

/*
 * The window of an origin.  Times and latencies are in microseconds.
 */
struct HrflowWindow
{
	uint64		origin;			/* hash of the origin, or 0 if this window is
								 * unused */
	int			nin_flight;
	double		size;			/* limit of nin_flight */
	bool		is_opening;		/* has the window not been cut yet? */
	bool		may_grow;		/* does the latency of the last round allow
								 * growth? */
	bool		is_suspect;		/* was the latency of the last round too high? */
	int64		used_at;		/* when a request was last started */
	int64		full_at;		/* when the window was last fully used */

	/*
	 * The current round, which counts requests that started at "counts_from"
	 * or later.
	 */
	int64		counts_from;
	int64		round_began;
	int			length;			/* number of requests of the round */
	int			n;				/* number of requests of the round whose
								 * latency has been recorded */
	int32		latencies[MAX_ROUND];
	int64		sum_beside;		/* sum of "nbeside" of these "n" requests */

	int32		lowest;			/* lowest median of this period, or 0 if there
								 * is none */
	int32		lowest_before;	/* lowest median of the previous period, or 0
								 * if there is none */
	int64		period_began;

	WindowTrial trial;
	double		size_before;	/* "size" before the trial */
	double		beside_before;	/* average "nbeside" before the trial */
	int32		latency_before; /* median latency before the trial */
};

static HrflowWindow windows[NWINDOWS];

/*
 * Limit on the requests of all transports, imposed by the memory for replies.
 */
static struct
{
	int			narrowed;		/* maximum number of requests in flight, if
								 * limited by memory; else 0 */
	int			nfitting;		/* number of consecutive replies within the
								 * memory limit */
}			memory;

/*
 * Return how many more requests a window has room for.
 */
int
hrflow_window_room(const HrflowWindow *window)
{
	return Max((int) window->size - window->nin_flight, 0);
}

/*
 * Record that a request is in flight.
 */
void
hrflow_window_enter(HrflowTransfer *transfer)
{
	HrflowWindow *window = transfer->window;

	window->nin_flight++;
	window->used_at = transfer->attempt.began;
	if (window->nin_flight >= FULL_PART *
		Min((int) window->size, transfer->transport->settings->max_concurrency))
		window->full_at = transfer->attempt.began;
	transfer->attempt.nbeside = window->nin_flight;
	transfer->attempt.waited = hrflow_pool_waited();
}

/*
 * Record that a request is no longer in flight.
 */
void
hrflow_window_leave(HrflowTransfer *transfer)
{
	transfer->window->nin_flight--;
}

/*
 * Start a new round.
 */
static void
begin_round(HrflowWindow *window, int64 now)
{
	window->round_began = now;
	window->length = Max(MIN_ROUND, Min((int) window->size / 2, MAX_ROUND));
	window->n = 0;
	window->sum_beside = 0;
}

/*
 * Find the window of an origin.  If the origin has none, return the least
 * recently used window without requests in flight, which the caller may
 * replace.  If all windows have requests in flight, return a window that
 * several origins must share.
 */
static HrflowWindow *
find_window(uint64 origin)
{
	int			first = (origin >> 2) % NWINDOWS;
	HrflowWindow *oldest = NULL;

	for (int i = 0; i < NWINDOWS; i++)
	{
		HrflowWindow *window = &windows[(first + i) % NWINDOWS];

		if (window->origin == origin)
			return window;
		if (window->nin_flight == 0 &&
			(oldest == NULL || window->used_at < oldest->used_at))
			oldest = window;
	}
	return oldest ? oldest : &windows[first];
}

/*
 * Find or create the window of a URL's origin.  The pointer remains valid, but
 * the window may be reassigned to another origin when it has no requests in
 * flight.
 */
HrflowWindow *
hrflow_window_find(const char *url)
{
	uint64		origin = hrflow_origin_hash(url);
	HrflowWindow *window = find_window(origin);
	int64		now = hrflow_clock_now();

	if (window->nin_flight == 0 &&
		(window->origin != origin || now - window->used_at > WINDOW_MEMORY))
	{
		*window = (HrflowWindow)
		{
			.origin = origin,
				.used_at = now,
				.size = INITIAL_SIZE,
				.is_opening = true,
				.may_grow = true,
				.period_began = now
		};
		begin_round(window, now);
	}
	return window;
}

static void
begin_period(HrflowWindow *window, int32 lowest, int32 lowest_before, int64 now)
{
	window->lowest = lowest;
	window->lowest_before = lowest_before;
	window->period_began = now;
}

/*
 * Start over after the size of a window has changed abruptly: ignore requests
 * that started earlier.
 */
static void
start_over(HrflowWindow *window, int64 now)
{
	window->counts_from = now;
	begin_round(window, now);
}

/*
 * Reduce a window, to see after one round how that affects the latency.
 */
static void
try_size(HrflowWindow *window, double size, WindowTrial trial, double beside,
		 int32 latency, int64 now)
{
	window->trial = trial;
	window->size_before = window->size;
	window->beside_before = beside;
	window->latency_before = latency;
	window->size = Max(size, Min(window->size, MIN_CUT));
	start_over(window, now);
}

static int
compare_latencies(const void *a, const void *b)
{
	int32		latency_a = *(const int32 *) a;
	int32		latency_b = *(const int32 *) b;

	return latency_a < latency_b ? -1 : latency_a > latency_b;
}

/*
 * Has the throughput fallen in proportion to the number of requests in flight,
 * rather than remained the same?  The threshold is the geometric mean of these
 * two possibilities.
 */
static bool
was_cut_in_vain(const HrflowWindow *window, double beside, int32 latency)
{
	double		cut = beside / window->beside_before;
	double		fall = cut * window->latency_before / latency;

	return fall * fall < cut;
}

/*
 * If the window was reduced for this round, evaluate the effect.  Returns
 * whether the window has been restored to its previous size.
 */
static bool
end_trial(HrflowWindow *window, double beside, int32 latency, int64 now)
{
	WindowTrial trial = window->trial;

	window->trial = NO_TRIAL;
	if (trial == NO_TRIAL ||
		(trial == TRIAL_OF_CUT && !was_cut_in_vain(window, beside, latency)))
		return false;
	begin_period(window, latency, 0, now);
	window->size = window->size_before;
	window->may_grow = true;
	start_over(window, now);
	return true;
}

/*
 * Evaluate the latency of a complete round.
 */
static void
end_round(HrflowWindow *window, int64 now)
{
	double		beside = (double) window->sum_beside / window->n;
	bool		was_full = window->full_at >= window->round_began;
	int32		latency;
	int32		lowest;
	bool		is_high;
	double		grow_limit;

	qsort(window->latencies, window->n, sizeof(int32), compare_latencies);
	latency = window->latencies[window->n / 2];
	if (end_trial(window, beside, latency, now))
		return;
	begin_round(window, now);

	if (window->lowest == 0 || latency < window->lowest)
		window->lowest = latency;
	lowest = window->lowest_before == 0 ? window->lowest :
		Min(window->lowest, window->lowest_before);
	grow_limit = Max(lowest * GROW_FACTOR, lowest + GROW_SLACK);
	window->may_grow = latency <= grow_limit;

	is_high = was_full &&
		latency > Max(lowest * CUT_FACTOR, lowest + CUT_SLACK);
	if (is_high && window->is_suspect)
	{
		window->is_opening = false;
		window->is_suspect = false;
		try_size(window, Min(beside, window->size) * grow_limit / latency,
				 TRIAL_OF_CUT, beside, latency, now);
		return;
	}
	window->is_suspect = is_high;
	if (is_high)
		return;
	if (now - window->period_began >
		Max(PERIOD, (int64) latency * ROUND_TRIPS_PER_PERIOD))
	{
		begin_period(window, latency, window->lowest, now);
		if (was_full)
			try_size(window, window->size / 2, TRIAL_OF_LATENCY, beside, latency,
					 now);
	}
}

/*
 * Enlarge the window if it may grow.  If the request belongs to the current
 * round and the time at which its reply arrived is known, record the latency,
 * and end the round if it is complete.
 */
static void
note_latency(HrflowTransfer *transfer, int64 now)
{
	HrflowWindow *window = transfer->window;
	const HrflowAttempt *attempt = &transfer->attempt;

	if (window->may_grow && window->trial == NO_TRIAL &&
		hrflow_pool_waited() - attempt->waited >= (now - attempt->began) * MIN_WAITED &&
		window->full_at >= attempt->began &&
		window->size < transfer->transport->settings->max_concurrency)
		window->size += window->is_opening ? OPENING_GROWTH :
			Max(GROWTH, 1 / window->size);

	if (attempt->began < window->counts_from || hrflow_pool_was_away())
		return;
	window->latencies[window->n++] = Min(now - attempt->sent_at, INT_MAX);
	window->sum_beside += attempt->nbeside;
	if (window->n >= window->length)
		end_round(window, now);
}

/*
 * Record a refusal that is, or appears to be, due to too many requests: cut
 * the window, but not below "least".  The refusal of a probe does not count,
 * because a probe is sent alone.
 */
static void
note_refusal(HrflowTransfer *transfer, double least, int64 now)
{
	HrflowWindow *window = transfer->window;

	if (transfer->attempt.began < window->counts_from ||
		window->size <= least || transfer->attempt.is_probe)
		return;
	window->size = Max(window->size * REFUSAL_FACTOR, least);
	window->is_opening = false;
	window->is_suspect = false;
	window->trial = NO_TRIAL;
	start_over(window, now);
}

/*
 * Evaluate an attempt that has ended, but is still counted as in flight, and
 * record whether the transport has been answered.  Call this before reporting
 * the outcome to the account, because a probe is no longer marked as a probe
 * after that.
 */
void
hrflow_window_settle(HrflowTransfer *transfer)
{
	const HrflowReply *reply = &transfer->reply;
	int64		now = hrflow_clock_now();

	if (reply->is_limited || reply->http_status == 503 ||
		(reply->transient && reply->status == HRFLOW_CONNECTION_LOST))
		note_refusal(transfer, MIN_CUT, now);
	else if (reply->status == HRFLOW_TIMEOUT ||
			 (reply->transient && reply->status == HRFLOW_CONNECT_FAILED))
		note_refusal(transfer, INITIAL_SIZE, now);
	else if (reply->status == HRFLOW_OK && reply->http_status < 500)
		note_latency(transfer, now);
	if (reply->status == HRFLOW_OK && !reply->is_limited &&
		((reply->http_status >= 200 && reply->http_status <= 299) ||
		 reply->http_status == 404))
		transfer->transport->is_answered = true;
}

/*
 * Return the number of requests to the API that are likely to be in flight
 * with these settings.  If this backend has not sent any requests to the API
 * recently, assume the initial size of a window.
 */
int
hrflow_window_expected(const HrflowSettings *settings)
{
	uint64		origin = hrflow_origin_hash(settings->base_url);
	const HrflowWindow *window = find_window(origin);

	if (window->origin != origin ||
		hrflow_clock_now() - window->used_at > WINDOW_MEMORY)
		return Min(INITIAL_SIZE, settings->max_concurrency);
	return Min((int) window->size, settings->max_concurrency);
}

/*
 * ------------------------------------------------------------------------
 * Limit on the requests in flight to all origins
 * ------------------------------------------------------------------------
 */

/*
 * Return the maximum number of requests in flight, of all transports and to
 * all origins together, up to which this transport may start requests.
 */
int
hrflow_window_limit(const HrflowTransport *transport)
{
	int			most = transport->settings->max_concurrency;

	return memory.narrowed > 0 ? Min(memory.narrowed, most) : most;
}

/*
 * After the bodies of the replies have exceeded the memory limit, limit the
 * number of requests in flight to "nin_flight", but at least to 1, unless the
 * limit is lower already.
 */
void
hrflow_window_narrow(const HrflowTransport *transport, int nin_flight)
{
	memory.narrowed = Max(1, Min(hrflow_window_limit(transport), nin_flight));
	memory.nfitting = 0;
}

/*
 * Record that a reply was within the memory limit.  After as many consecutive
 * replies within the limit as requests may be in flight, double the number of
 * requests that may be in flight, if the buffers used at most half of the
 * memory.
 */
void
hrflow_window_widen(const HrflowTransport *transport)
{
	if (memory.narrowed == 0 || ++memory.nfitting < memory.narrowed)
		return;
	memory.nfitting = 0;
	if (hrflow_body_most_buffered() <= HRFLOW_MAX_BUFFERED / 2)
		memory.narrowed *= 2;
	if (memory.narrowed >= transport->settings->max_concurrency)
		memory.narrowed = 0;
}

/*
 * Does the memory limit for bodies currently prevent requests from being
 * started?
 */
bool
hrflow_window_is_narrow(int nin_flight)
{
	return memory.narrowed > 0 && nin_flight >= memory.narrowed;
}

/*
 * Remove the limit that the memory for replies imposes.  Called when there are
 * no transports.
 */
void
hrflow_window_forget_memory(void)
{
	memory.narrowed = 0;
	memory.nfitting = 0;
}
