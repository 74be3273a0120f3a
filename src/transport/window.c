/*-------------------------------------------------------------------------
 *
 * window.c
 *		How many requests may be in flight.
 *
 * max_concurrency is a maximum.  Below it, each origin has a window, which
 * follows the server.  What is compared is the median latency of a round, of
 * about half a window of requests, with the lowest such median of late: both
 * are medians, since the latencies of a server differ from each other by far
 * more than 1.5 times without any queue.
 *
 * - The window opens by 1.5 requests with each answer, which makes it 2.5 times
 *   as large in a round trip, as in TCP's slow start.  After the first cut it
 *   grows by an eighth in a round trip.  It grows only while it is in full use,
 *   not while the latency is more than 1.2 times the lowest, and not by answers
 *   that we did not wait for: then it is our processor that is busy.
 * - Where the latency is more than 1.5 times the lowest for two rounds, requests
 *   queue in the server.  (One round is not enough: that many connections are
 *   being made takes time on both sides, and passes.)  By Little's law, the
 *   number in flight with the latency allowed is the number in flight now times
 *   that latency, divided by the present one.  The window is cut to that, which
 *   is a little more than throughput times the lowest latency, so that the server
 *   does not run dry.  (TCP Vegas, Brakmo and Peterson 1995, keeps the queue
 *   between two bounds in the same way.)
 * - A queue that was ours is shorter after that, and the throughput is what it
 *   was.  If instead the throughput falls with the number in flight, it was not
 *   a queue, or not ours: requests are of another kind, or the server has become
 *   slower.  Then the window is restored, and the latency is the lowest one from
 *   now on.
 * - The lowest latency is forgotten after a time.  One that was seen in a full
 *   window may have a queue in it, so for one round the window is halved to see
 *   the latency without (as BBR does in its state ProbeRTT).
 * - 429, 503 and connections that break cut the window to 0.7 of it, at most once
 *   in a round trip (as CUBIC does, RFC 9438).  So do time-outs and connections
 *   that cannot be made, but not below the size of a new window: they are mostly
 *   an outage, which is over all the sooner the more requests try.
 *
 * The other limits are the memory for replies, and what a refusal may waste.
 * Nothing here throws.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/*
 * The window of an origin of which nothing is known.
 */
#define INITIAL_SIZE HRFLOW_MAX_WASTED

/* Growth with each answer, while the window opens, and later. */
#define OPENING_GROWTH 1.5
#define GROWTH 0.125

/* What is left of a window after a refusal. */
#define REFUSAL_FACTOR 0.7

/*
 * Latencies above the lowest one up to which a window grows, and from which on
 * it is cut: a factor, and a time at least.  A few milliseconds are not a queue
 * in the server, but what both machines take to wake up and to get round to a
 * request.
 */
#define GROW_FACTOR 1.2
#define CUT_FACTOR 1.5
#define GROW_SLACK (HRFLOW_MSEC / 2)
#define CUT_SLACK (5 * HRFLOW_MSEC)

/* A window is not cut below this because of latency. */
#define MIN_CUT 8

/* Fewest and most requests of a round. */
#define MIN_ROUND 8
#define MAX_ROUND 64

/*
 * How long the lowest latency is remembered: two periods, each of this and of
 * so many times the latency at least.
 */
#define PERIOD (10 * HRFLOW_SEC)
#define ROUND_TRIPS_PER_PERIOD 50

/* A window that was not used for this long is forgotten. */
#define WINDOW_MEMORY (60 * HRFLOW_SEC)

/* Number of windows. */
#define NWINDOWS 32

/* Why a window has been made smaller for a round. */
typedef enum WindowTrial
{
	NO_TRIAL,
	TRIAL_OF_CUT,				/* does the latency fall? */
	TRIAL_OF_LATENCY			/* what is it without a queue? */
} WindowTrial;

/*
 * Times and latencies are in microseconds.
 */
struct HrflowWindow
{
	uint64		origin;			/* hash; 0: free */
	int			nin_flight;
	double		size;			/* how many may be */
	bool		is_opening;		/* no limit of the server's was met yet */
	bool		may_grow;		/* the latency of the last round allows it */
	bool		is_suspect;		/* it was too high, and may be a queue */
	int64		used_at;		/* when a request was last started */
	int64		full_at;		/* when the window was last in full use */

	/* The round: of requests that began at "counts_from" or later. */
	int64		counts_from;
	int64		round_began;
	int			length;			/* requests that it has */
	int			n;				/* those that have been answered */
	int32		latencies[MAX_ROUND];
	int64		sum_beside;		/* of how many were in flight with each */

	int32		lowest;			/* median of this period; 0: none */
	int32		lowest_before;	/* of the period before; 0: none */
	int64		period_began;

	WindowTrial trial;
	double		size_before;	/* with a trial: what they were */
	double		beside_before;
	int32		latency_before;
};

static HrflowWindow windows[NWINDOWS];

/* Those of the memory for replies; for all transports. */
static struct
{
	int			narrowed;		/* most requests in flight, where the budget
								 * for bodies has set one; else 0 */
	int			nfitting;		/* replies in a row within that budget */
}			memory;

/*
 * ------------------------------------------------------------------------
 * The window of an origin
 * ------------------------------------------------------------------------
 */

/*
 * How many requests may be in flight.
 */
int
hrflow_window_size(const HrflowWindow *window)
{
	return window->size;
}

/*
 * How many more may be started.
 */
int
hrflow_window_room(const HrflowWindow *window)
{
	return Max((int) window->size - window->nin_flight, 0);
}

/*
 * A request is in flight from now on.
 */
void
hrflow_window_enter(HrflowTransfer *transfer)
{
	HrflowWindow *window = transfer->window;

	window->nin_flight++;
	window->used_at = transfer->try.began;
	if (window->nin_flight >=
		Min((int) window->size, transfer->transport->settings->max_concurrency))
		window->full_at = transfer->try.began;
	transfer->try.nbeside = window->nin_flight;
}

/*
 * It no longer is.
 */
void
hrflow_window_leave(HrflowTransfer *transfer)
{
	transfer->window->nin_flight--;
}

/*
 * Let another round begin.
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
 * The place of an origin's window.  If it has none yet, the one whose last
 * request is longest ago gives way, unless all have requests in flight.  Then
 * origins share one.
 */
static HrflowWindow *
find_place(uint64 origin)
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
 * The window of a URL's origin.  The pointer stays valid, but becomes another
 * origin's if it is not used while many others are.
 */
HrflowWindow *
hrflow_window_find(const char *url)
{
	uint64		origin = hrflow_origin_hash(url);
	HrflowWindow *window = find_place(origin);
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
 * The size of a window has changed at once: of what began before, nothing
 * counts any more.
 */
static void
begin_anew(HrflowWindow *window, int64 now)
{
	window->counts_from = now;
	begin_round(window, now);
}

/*
 * Make a window smaller, and see what that does to the latency.
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
	begin_anew(window, now);
}

static int
compare_latencies(const void *a, const void *b)
{
	int32		latency_a = *(const int32 *) a;
	int32		latency_b = *(const int32 *) b;

	return latency_a < latency_b ? -1 : latency_a > latency_b;
}

/*
 * Has the throughput fallen with the number in flight, which was cut?  Halfway
 * between not at all and as much is the geometric mean of both.
 */
static bool
was_cut_in_vain(const HrflowWindow *window, double beside, int32 latency)
{
	double		cut = beside / window->beside_before;
	double		fall = cut * window->latency_before / latency;

	return fall * fall < cut;
}

/*
 * The round after a window was made smaller.  Returns whether the window is what
 * it was.
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
	begin_anew(window, now);
	return true;
}

/*
 * A round is complete: decide what its latency means.
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
 * A request was answered.
 */
static void
note_answer(HrflowTransfer *transfer, int64 now)
{
	HrflowWindow *window = transfer->window;
	const HrflowTry *try = &transfer->try;

	if (window->may_grow && window->trial == NO_TRIAL &&
		hrflow_pool_has_slept() &&
		window->full_at >= try->began &&
		window->size < transfer->transport->settings->max_concurrency)
		window->size += window->is_opening ? OPENING_GROWTH :
			Max(GROWTH, 1 / window->size);

	if (try->began < window->counts_from || hrflow_pool_was_away())
		return;
	window->latencies[window->n++] = Min(now - try->sent_at, INT_MAX);
	window->sum_beside += try->nbeside;
	if (window->n >= window->length)
		end_round(window, now);
}

/*
 * A request was refused because there were too many, or so it seems: make the
 * window smaller, though not below "least".  A probe goes alone: that it is
 * refused says nothing of the number.
 */
static void
note_refusal(HrflowTransfer *transfer, double least, int64 now)
{
	HrflowWindow *window = transfer->window;

	if (transfer->try.began < window->counts_from ||
		window->size <= least || transfer->try.is_probe)
		return;
	window->size = Max(window->size * REFUSAL_FACTOR, least);
	window->is_opening = false;
	window->is_suspect = false;
	window->trial = NO_TRIAL;
	begin_anew(window, now);
}

/*
 * A try has ended, and is still in flight: note what it tells of the server.  The
 * account is told afterwards, and then it is no longer known to be a probe.
 */
void
hrflow_window_settle(HrflowTransfer *transfer)
{
	const HrflowReply *reply = &transfer->reply;
	int64		now = hrflow_clock_now();

	if (reply->http_status == 429 || reply->http_status == 503 ||
		(reply->transient && reply->status == HRFLOW_CONNECTION_LOST))
		note_refusal(transfer, 1, now);
	else if (reply->status == HRFLOW_TIMEOUT ||
			 (reply->transient && reply->status == HRFLOW_CONNECT_FAILED))
		note_refusal(transfer, INITIAL_SIZE, now);
	else if (reply->status == HRFLOW_OK && reply->http_status < 500)
		note_answer(transfer, now);
	if (reply->status == HRFLOW_OK &&
		((reply->http_status >= 200 && reply->http_status <= 299) ||
		 reply->http_status == 404))
		transfer->transport->is_answered = true;
}

/*
 * ------------------------------------------------------------------------
 * All requests of a transport
 * ------------------------------------------------------------------------
 */

/*
 * The most requests that may be in flight for this transport's sake, whatever
 * their origins.
 */
int
hrflow_window_limit(const HrflowTransport *transport)
{
	int			most = transport->settings->max_concurrency;

	return memory.narrowed > 0 ? Min(memory.narrowed, most) : most;
}

/*
 * The bodies have spent their budget: keep as many requests in flight as have
 * found room.
 */
void
hrflow_window_narrow(const HrflowTransport *transport, int nin_flight)
{
	memory.narrowed = Max(1, Min(hrflow_window_limit(transport), nin_flight));
	memory.nfitting = 0;
}

/*
 * A reply was within the budget: after as many as may be in flight, allow twice
 * as many if those would have been too.
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
 * Does the budget for bodies keep more than these from being started?
 */
bool
hrflow_window_is_narrow(int nin_flight)
{
	return memory.narrowed > 0 && nin_flight >= memory.narrowed;
}

/*
 * Forget the budget's limit, since no transport has a reply.
 */
void
hrflow_window_forget_memory(void)
{
	memory.narrowed = 0;
	memory.nfitting = 0;
}
