/*-------------------------------------------------------------------------
 *
 * missing.c
 *		Implements hrflow_embed.on_missing = null: a call for a profile or job
 *		that is not found or has no vector returns NULL, and a WARNING at the
 *		end of the statement reports how many calls did.
 *
 * The statement is the one sent by the client; statements that functions run
 * inside of it do not warn.  Calls that are not part of a query, such as
 * PL/pgSQL's simple expressions, are reported by the next statement that ends,
 * or when the transaction commits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "ask/ask.h"
#include "compat.h"
#include "executor/executor.h"

/* Number of calls that returned NULL and have not been reported yet. */
static int64 nmissing = 0;

/* Nesting depth of ExecutorRun. */
static int	run_depth = 0;

static ExecutorRun_hook_type previous_run = NULL;
static ExecutorFinish_hook_type previous_finish = NULL;

/*
 * Should this result be returned as NULL rather than raised as an error?  If
 * so, count it.
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
				(errmsg_plural(INT64_FORMAT " call returned NULL because the profile, job or link was not found or has no vector",
							   INT64_FORMAT " calls returned NULL because the profile, job or link was not found or has no vector",
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
 * Install the hooks.  Called when the library is loaded.
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
