/*-------------------------------------------------------------------------
 *
 * lookup.c
 *		Limits the number of name lookups that have been abandoned.
 *
 * Before 8.20 (commit 39036c9021), libcurl resolves each name in a thread of
 * its own, which cannot be stopped.  If the request is abandoned, the thread
 * and a descriptor remain until the system's resolver gets an answer or times
 * out (068_unreachable.pl).
 *
 * This file may be removed when the minimum version of libcurl is 8.20 or
 * later: libcurl then has a bounded pool of threads, and does not report
 * lookups to us.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/libcurl.h"

/*
 * If this many lookups have been abandoned within LOOKUP_LIFE, counted
 * separately for the API and for links, no other attempt of that kind is
 * started.
 */
#define MAX_ABANDONED 64

/*
 * Time after which the system's resolver has given up by default: two attempts
 * with 5 s for each of 3 name servers.
 */
#define LOOKUP_LIFE (30 * HRFLOW_SEC)

/*
 * Ring buffers with the times when lookups were last abandoned.
 */
static struct
{
	int64		at[MAX_ABANDONED];	/* when a lookup was abandoned, or 0 if
									 * this element is unused */
	int			next;			/* index of the next element to set: an unused
								 * one, or else the oldest */
}			abandoned[HRFLOW_NSERVERS];

/*
 * Can another attempt, which may need a lookup, be started?  It cannot if too
 * many abandoned lookups may still be running.
 */
bool
hrflow_lookup_may_start(const HrflowTransfer *transfer)
{
	HrflowServer server = HRFLOW_SERVER_OF(transfer);
	int64		oldest = abandoned[server].at[abandoned[server].next];

	return oldest == 0 || transfer->attempt.began - oldest >= LOOKUP_LIFE;
}

/*
 * Record that libcurl has completed an attempt without a timeout, which means
 * that the attempt's name lookup, if there was one, has been answered.
 */
void
hrflow_lookup_note_answer(HrflowTransfer *transfer)
{
	if (transfer->state == HRFLOW_RESOLVING)
		hrflow_transfer_advance(transfer, HRFLOW_CONNECTING);
}

/*
 * If libcurl is still resolving the host name of an attempt that ends, record
 * that this lookup is abandoned.
 */
void
hrflow_lookup_note_end(const HrflowTransfer *transfer)
{
	HrflowServer server = HRFLOW_SERVER_OF(transfer);
	curl_off_t	found_after = 0;

	if (transfer->state != HRFLOW_RESOLVING)
		return;
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_NAMELOOKUP_TIME_T,
							 &found_after);
	if (found_after != 0)
		return;
	abandoned[server].at[abandoned[server].next] = hrflow_clock_now();
	abandoned[server].next = (abandoned[server].next + 1) % MAX_ABANDONED;
}
