/*-------------------------------------------------------------------------
 *
 * missing.c
 *		Implements hrflow_embed.on_missing = null: a call returns NULL, or no
 *		rows, if the profile, job or link is not found or has no vector, and a
 *		WARNING at the end of the statement reports the number of these calls.
 *
 * The WARNING is issued at the end of the top-level statement, usually the one
 * sent by the client.  Statements executed within another one, such as by a
 * trigger, by DO or by CALL, are not top-level.  When a transaction commits,
 * the calls that have not been reported yet are reported, so a procedure that
 * commits causes a WARNING for each transaction with such calls.  When a
 * transaction aborts, they are not reported.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "ask/ask.h"
#include "compat.h"
#include "executor/executor.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"

/* Number of calls that found nothing and have not been reported yet. */
static int64 nmissing = 0;

/*
 * Nesting depth of ExecutorRun(), ExecutorFinish() and ProcessUtility() calls.
 */
static int	statement_depth = 0;

static ExecutorRun_hook_type previous_run = NULL;
static ExecutorFinish_hook_type previous_finish = NULL;
static ProcessUtility_hook_type previous_utility = NULL;

/*
 * Should this result be returned as NULL, or as no rows, rather than raised as
 * an error?  If so, count it.
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
				(errmsg_plural(INT64_FORMAT " call returned NULL or no rows because the profile, job or link was not found or has no vector",
							   INT64_FORMAT " calls returned NULL or no rows because the profile, job or link was not found or has no vector",
							   n, n),
				 errhint("Set \"hrflow_embed.on_missing\" to \"error\" to raise an error for the first of these calls.")));
}

/*
 * At the end of a top-level statement, report the number of calls for which
 * nothing was found.
 *
 * A DO or CALL that began before our library was loaded is not counted in
 * "statement_depth", so check for it separately.
 */
static void
report_at_end_of_statement(void)
{
	if (statement_depth > 0 ||
		(ActivePortal != NULL && (ActivePortal->commandTag == CMDTAG_DO ||
								  ActivePortal->commandTag == CMDTAG_CALL)))
		return;
	report_missing();
}

static void
run_counting_depth(HRFLOW_EXECUTOR_RUN_PARAMETERS)
{
	statement_depth++;
	PG_TRY();
	{
		if (previous_run)
			previous_run(HRFLOW_EXECUTOR_RUN_ARGUMENTS);
		else
			standard_ExecutorRun(HRFLOW_EXECUTOR_RUN_ARGUMENTS);
	}
	PG_FINALLY();
	{
		statement_depth--;
	}
	PG_END_TRY();
}

/*
 * ExecutorFinish() executes AFTER triggers, whose statements are not
 * top-level.
 */
static void
finish_and_report(QueryDesc *query)
{
	statement_depth++;
	PG_TRY();
	{
		if (previous_finish)
			previous_finish(query);
		else
			standard_ExecutorFinish(query);
	}
	PG_FINALLY();
	{
		statement_depth--;
	}
	PG_END_TRY();
	report_at_end_of_statement();
}

static void
execute_utility_and_report(PlannedStmt *statement, const char *query,
						   bool read_only_tree, ProcessUtilityContext context,
						   ParamListInfo params, QueryEnvironment *environment,
						   DestReceiver *destination,
						   QueryCompletion *completion)
{
	statement_depth++;
	PG_TRY();
	{
		if (previous_utility)
			previous_utility(statement, query, read_only_tree, context, params,
							 environment, destination, completion);
		else
			standard_ProcessUtility(statement, query, read_only_tree, context,
									params, environment, destination,
									completion);
	}
	PG_FINALLY();
	{
		statement_depth--;
	}
	PG_END_TRY();
	if (statement_depth == 0)
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
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = execute_utility_and_report;
	RegisterXactCallback(at_end_of_transaction, NULL);
}
