/*-------------------------------------------------------------------------
 *
 * missing.c
 *		What hrflow_embed.on_missing = null does with a profile or job that is
 *		not found or has no vector: the call returns NULL, and a WARNING at the
 *		end of the statement counts such calls.
 *
 * The statement is the one that the client sent: those that functions run
 * inside it do not warn.  Calls outside of any query, as PL/pgSQL's simple
 * expressions are, are reported by the next statement that ends, or when the
 * transaction commits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "ask/ask.h"
#include "compat.h"
#include "executor/executor.h"

/* Calls that returned NULL, not yet reported. */
static int64 nmissing = 0;

/* How many runs of the executor are under way, one inside the other. */
static int	run_depth = 0;

static ExecutorRun_hook_type previous_run = NULL;
static ExecutorFinish_hook_type previous_finish = NULL;

/*
 * May this result be NULL instead of an error?  Then it is counted.
 */
bool
hrflow_missing_accept(const HrflowSettings *settings,
					  const HrflowResult *result)
{
	if (!settings->missing_is_null ||
		(result->status != HRFLOW_NOT_FOUND &&
		 result->status != HRFLOW_NO_VECTOR))
		return false;
	nmissing++;
	return true;
}

static void
report_missing(void)
{
	int64		n = nmissing;

	nmissing = 0;
	if (n > 0)
		ereport(WARNING,
				(errmsg_plural(INT64_FORMAT " HrFlow profile or job that is not found or has no vector was returned as NULL",
							   INT64_FORMAT " HrFlow profiles or jobs that are not found or have no vector were returned as NULL",
							   n, n),
				 errhint("Set hrflow_embed.on_missing to \"error\" to see the first of them.")));
}

static void
run_counting_depth(HRFLOW_EXECUTOR_RUN_PARAMETERS)
{
	run_depth++;
	PG_TRY();
	{
		if (previous_run)
			previous_run(HRFLOW_EXECUTOR_RUN_ARGUMENTS);
		else
			standard_ExecutorRun(HRFLOW_EXECUTOR_RUN_ARGUMENTS);
	}
	PG_FINALLY();
	{
		run_depth--;
	}
	PG_END_TRY();
}

static void
finish_and_report(QueryDesc *query)
{
	if (previous_finish)
		previous_finish(query);
	else
		standard_ExecutorFinish(query);
	if (run_depth == 0)
		report_missing();
}

static void
at_end_of_transaction(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_COMMIT)
		report_missing();
	else if (event == XACT_EVENT_ABORT)
		nmissing = 0;
}

/*
 * Called when the library is loaded.
 */
void
hrflow_missing_define(void)
{
	previous_run = ExecutorRun_hook;
	ExecutorRun_hook = run_counting_depth;
	previous_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = finish_and_report;
	RegisterXactCallback(at_end_of_transaction, NULL);
}
