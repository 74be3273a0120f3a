/*-------------------------------------------------------------------------
 *
 * ahead_args.c
 *		Evaluates the arguments of calls that are issued ahead of their rows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "ask/ahead.h"
#include "compat.h"
#include "nodes/nodeFuncs.h"
#include "utils/resowner.h"

/*
 * Could evaluating an expression raise an error, apart from errors of
 * initplans?  We assume so for all types of expressions that are not listed.
 */
static bool
may_raise_walker(Node *node, void *context)
{
	if (node == NULL || IsA(node, Var) || IsA(node, Const) || IsA(node, Param))
		return false;
	if (IsA(node, RelabelType) || IsA(node, List))
		return expression_tree_walker(node, may_raise_walker, context);
	return true;
}

/*
 * Collect the numbers of the executor's parameters in an expression.
 */
static bool
find_params_walker(Node *node, void *context)
{
	Bitmapset **params = context;

	if (node == NULL)
		return false;
	if (IsA(node, Param) && ((Param *) node)->paramkind == PARAM_EXEC)
		*params = bms_add_member(*params, ((Param *) node)->paramid);
	return expression_tree_walker(node, find_params_walker, context);
}

/*
 * Initialize the fields of a column that concern its arguments.  "args"
 * contains the argument expressions, and "ps" is the read-ahead node.
 */
void
hrflow_ahead_init_arguments(HrflowAheadColumn *column, List *args,
							PlanState *ps)
{
	ListCell   *cell;

	column->is_safe = !may_raise_walker((Node *) args, NULL);
	find_params_walker((Node *) args, &column->params);
	column->initplans = palloc0(bms_num_members(column->params) *
								sizeof(void *));
	column->args = palloc(list_length(args) * sizeof(ExprState *));
	column->values = palloc0(list_length(args) * sizeof(NullableDatum));
	foreach(cell, args)
		column->args[column->nargs++] = ExecInitExpr(lfirst(cell), ps);
}

/*
 * Do the arguments of a column refer to an initplan that has not been executed
 * yet?  (Most uncorrelated sub-selects are initplans.  An initplan is executed
 * when its result is first needed.)
 */
static bool
needs_initplan(HrflowAheadState *state, HrflowAheadColumn *column)
{
	ParamExecData *params = state->css.ss.ps.state->es_param_exec_vals;
	int			i = -1;

	while ((i = bms_next_member(column->params, i)) >= 0)
	{
		if (params[i].execPlan != NULL)
			return true;
	}
	return false;
}

/*
 * Make the initplans of a column raise an error if they are executed.  If
 * "unblock" is true, undo this.
 *
 * An initplan must not be executed in a subtransaction: it acquires resources
 * that the query keeps until it ends, but those that a subtransaction acquires
 * are released when the subtransaction ends.  To block an initplan, replace it
 * by a CTE, for which ExecSetParamPlan() raises an error.
 */
static void
block_initplans(HrflowAheadState *state, HrflowAheadColumn *column,
				bool unblock)
{
	ParamExecData *params = state->css.ss.ps.state->es_param_exec_vals;
	int			i = -1;
	int			n = 0;

	if (state->blocker == NULL)
	{
		MemoryContext old =
		MemoryContextSwitchTo(state->css.ss.ps.state->es_query_cxt);

		state->blocker = makeNode(SubPlanState);
		state->blocker->subplan = makeNode(SubPlan);
		state->blocker->subplan->subLinkType = CTE_SUBLINK;
		state->blocker->planstate = &state->css.ss.ps;
		MemoryContextSwitchTo(old);
	}
	while ((i = bms_next_member(column->params, i)) >= 0)
	{
		if (unblock)
			params[i].execPlan = column->initplans[n++];
		else
		{
			column->initplans[n++] = params[i].execPlan;
			if (params[i].execPlan != NULL)
				params[i].execPlan = state->blocker;
		}
	}
}

static void
evaluate_arguments(HrflowAheadState *state, HrflowAheadColumn *column)
{
	for (int i = 0; i < column->nargs; i++)
		column->values[i].value =
			ExecEvalExprSwitchContext(column->args[i], state->args_context,
									  &column->values[i].isnull);
}

/*
 * End a subtransaction in which arguments have been evaluated without an
 * error.  In parallel mode, CommitSubTransaction() raises an error if the
 * statement writes, as CREATE TABLE AS does, because it could not increment
 * the command counter.  So roll the subtransaction back in parallel mode: the
 * values are in memory that remains, and no argument contains a volatile
 * function, so nothing is lost.
 */
static void
end_subtransaction(void)
{
	if (IsInParallelMode())
		RollbackAndReleaseCurrentSubTransaction();
	else
		ReleaseCurrentSubTransaction();
}

/*
 * Evaluate arguments in a subtransaction, which makes it safe to continue
 * after an error, as in PL/pgSQL.  Returns false if no subtransaction can be
 * started, or if the arguments raise an error or need an initplan that has not
 * been executed yet.  Errors that the row does not cause are rethrown.
 */
static bool
try_arguments(HrflowAheadState *state, HrflowAheadColumn *column)
{
	MemoryContext old_context = CurrentMemoryContext;
	ResourceOwner old_owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;
	int			category;

	if (!hrflow_compat_allows_subtransaction())
		return false;

	block_initplans(state, column, false);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old_context);
	PG_TRY();
	{
		evaluate_arguments(state, column);
		end_subtransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(old_context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old_context);
	CurrentResourceOwner = old_owner;
	block_initplans(state, column, true);
	if (error == NULL)
		return true;

	/*
	 * Rethrow a cancel or another operator intervention, and a shortage of
	 * server resources, now rather than when the row is returned, because the
	 * row is not the cause.  An exceeded request limit has a SQLSTATE of the
	 * latter class, but is caused by the row, so it is not rethrown.  The
	 * subtransaction has been rolled back by now, as rethrowing requires.
	 */
	category = ERRCODE_TO_CATEGORY(error->sqlerrcode);
	if (category == ERRCODE_OPERATOR_INTERVENTION ||
		(category == ERRCODE_INSUFFICIENT_RESOURCES &&
		 error->sqlerrcode != ERRCODE_CONFIGURATION_LIMIT_EXCEEDED))
		ReThrowError(error);
	FreeErrorData(error);
	return false;
}

/*
 * Evaluate the arguments of a column for the row in args_slot.  Returns false
 * if the call must be evaluated when the row is returned, because its
 * arguments raise an error, because they need an initplan that must not be
 * executed yet, or because evaluating them safely requires a subtransaction
 * that cannot be started.
 *
 * Raises an error in two cases.  First, a cancel or a shortage of resources is
 * raised at once.  Second, if the executor needs this row now, an initplan may
 * be executed for the first column, because the query would evaluate these
 * arguments next; any error is then raised.
 */
bool
hrflow_ahead_evaluate_arguments(HrflowAheadState *state,
								HrflowAheadColumn *column)
{
	bool		is_next;

	is_next = column == state->columns && state->nrows == 0 &&
		!state->is_asked;
	if (needs_initplan(state, column) ? !is_next : !column->is_safe)
		return try_arguments(state, column);
	evaluate_arguments(state, column);
	return true;
}
