/*-------------------------------------------------------------------------
 *
 * outcome.c
 *		Passes the outcomes of a batch to its sink, and counts them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "miscadmin.h"
#include "utils/memutils.h"

/*
 * Number of rows to pass to the sink between two calls of
 * hrflow_transport_work().  It is large enough for these calls to take little
 * time, and small enough that servers do not give up sending their replies
 * between them.
 */
#define ROWS_OF_WORK 1024

/*
 * Prepare to pass outcomes to a sink.  "context" must live as long as the
 * batch.  The transport and the equal elements must be set later.
 */
void
hrflow_outcome_init(HrflowOutcomes *outcomes, HrflowSink *sink,
					HrflowActivity *activity, MemoryContext context)
{
	memset(outcomes, 0, sizeof(*outcomes));
	outcomes->sink = sink;
	outcomes->activity = activity;
	outcomes->context = AllocSetContextCreate(context, "hrflow_embed outcome",
											  ALLOCSET_DEFAULT_SIZES);
	outcomes->tally.context = context;
}

/*
 * Set is_last and is_spoilt of an outcome.  "links" is freed after the last
 * link.
 */
static void
close_link(HrflowOpenLinks *links, HrflowOutcome *outcome)
{
	outcome->is_last = links == NULL || --links->n == 0;
	if (links == NULL)
		return;
	outcome->is_spoilt = links->any_failed;
	links->any_failed |= outcome->result->status != HRFLOW_OK;
	if (outcome->is_last)
		pfree(links);
}

/*
 * Count a row with this outcome in the statistics.  A request that was
 * abandoned because the sink has stopped the transport has no status, and is
 * not counted.  If the sink reports to the user, also count the row in the
 * tally, unless the element is empty, and count the element in the activity at
 * its last outcome.
 */
static void
count_row(HrflowOutcomes *outcomes, const HrflowOutcome *outcome)
{
	if (outcome->evidence != HRFLOW_EVIDENCE_NONE ||
		outcome->result->status != HRFLOW_OK)
		hrflow_stats_count_row(outcome->result->status);
	if (!outcomes->sink->methods->reports)
		return;
	if (!outcome->is_empty)
		hrflow_tally_count(&outcomes->tally, outcome);
	if (outcome->is_last)
		hrflow_activity_count(outcomes->activity,
							  outcome->result->status == HRFLOW_OK &&
							  !outcome->is_spoilt);
}

/*
 * Pass an outcome to the sink, for an element and all elements equal to it.
 * "links" is NULL unless the outcome is that of a link from a reply.  Sets
 * is_last and is_spoilt.  Resets outcomes->context.
 *
 * May be called after hrflow_transport_end().  Processes interrupts unless the
 * sink does.  Raises the errors of the sink.
 */
void
hrflow_outcome_put(HrflowOutcomes *outcomes, int element,
				   HrflowOpenLinks *links, HrflowOutcome *outcome)
{
	const HrflowSinkMethods *methods = outcomes->sink->methods;
	MemoryContext old = MemoryContextSwitchTo(outcomes->context);
	bool		repeated = false;

	close_link(links, outcome);
	for (; element >= 0; element = hrflow_equal_next(&outcomes->equal, element))
	{
		methods->put(outcomes->sink, element, outcome, repeated);
		repeated = true;
		count_row(outcomes, outcome);
		if (++outcomes->nrows % ROWS_OF_WORK == 0)
			hrflow_transport_work(outcomes->transport);

		/*
		 * If the sink has a work() callback, that callback processes
		 * interrupts, so that results that have arrived can still be stored.
		 */
		if (methods->work == NULL)
			CHECK_FOR_INTERRUPTS();
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(outcomes->context);
}
