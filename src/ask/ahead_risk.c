/*-------------------------------------------------------------------------
 *
 * ahead_risk.c
 *		Decides whether a row that the query might not need can be read ahead
 *		without any effect other than its requests.
 *
 * Reading a row executes everything below the read-ahead node.  If the query
 * turns out not to need the row, reading it must not have raised an error,
 * executed a volatile function, or locked a row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ahead.h"
#include "catalog/pg_proc.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "utils/lsyscache.h"

/*
 * Could a call of this function raise an error or have side effects?
 * Leakproof functions, such as most comparisons, raise no error that depends
 * on their arguments.
 */
static bool
is_risky_function(Oid function, void *context)
{
	return !get_func_leakproof(function) ||
		func_volatile(function) == PROVOLATILE_VOLATILE;
}

/*
 * Could evaluating an expression raise an error or have side effects?  We
 * assume so for all types of expressions that are not listed.  "context" is
 * the EState.
 */
static bool
is_risky_expression(Node *node, void *context)
{
	EState	   *estate = context;

	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Param:
			/* Evaluating the parameter may execute an initplan. */
			return ((Param *) node)->paramkind == PARAM_EXEC &&
				estate->es_param_exec_vals[((Param *) node)->paramid].execPlan != NULL;
		case T_Var:
		case T_Const:
		case T_CaseTestExpr:
		case T_List:
		case T_TargetEntry:
		case T_FuncExpr:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
		case T_ScalarArrayOpExpr:
		case T_BoolExpr:
		case T_RelabelType:
		case T_CollateExpr:
		case T_CaseExpr:
		case T_CaseWhen:
		case T_CoalesceExpr:
		case T_NullTest:
		case T_BooleanTest:
		case T_RowExpr:
		case T_FieldSelect:
			return check_functions_in_node(node, is_risky_function, NULL) ||
				expression_tree_walker(node, is_risky_expression, context);
		default:
			return true;
	}
}

/*
 * Does a node read all its input before it returns its first row, and never
 * again?  If so, returning another row executes nothing below the node.
 */
static bool
computes_all_rows_first(PlanState *ps)
{
	if (!bms_is_empty(ps->plan->extParam))
		return false;
	switch (nodeTag(ps))
	{
		case T_SortState:
		case T_FunctionScanState:
			return true;
		case T_AggState:
			return ((Agg *) ps->plan)->aggstrategy == AGG_HASHED;
		default:
			return false;
	}
}

/*
 * Get the expressions that a node evaluates to read one more row, other than
 * its target list and its filter.  Returns false if the node itself could
 * raise an error or have side effects, which we assume of all types of nodes
 * that are not listed.
 */
static bool
get_expressions(PlanState *ps, List **exprs)
{
	Plan	   *plan = ps->plan;

	*exprs = NIL;
	switch (nodeTag(ps))
	{
		case T_ResultState:
		case T_AppendState:
		case T_MergeAppendState:
		case T_SeqScanState:
		case T_BitmapHeapScanState:
		case T_BitmapAndState:
		case T_BitmapOrState:
		case T_SubqueryScanState:
		case T_CteScanState:
		case T_WorkTableScanState:
		case T_MaterialState:
		case T_SortState:
		case T_IncrementalSortState:
		case T_GroupState:
		case T_AggState:
		case T_UniqueState:
		case T_HashState:
		case T_LimitState:
		case T_GatherState:
		case T_GatherMergeState:
			return true;
		case T_FunctionScanState:
			return computes_all_rows_first(ps);
		case T_IndexScanState:
			*exprs = ((IndexScan *) plan)->indexqual;
			return ((IndexScan *) plan)->indexorderby == NIL;
		case T_IndexOnlyScanState:
			*exprs = ((IndexOnlyScan *) plan)->indexqual;
			return ((IndexOnlyScan *) plan)->indexorderby == NIL;
		case T_BitmapIndexScanState:
			*exprs = ((BitmapIndexScan *) plan)->indexqual;
			return true;
		case T_TidScanState:
			*exprs = ((TidScan *) plan)->tidquals;
			return true;
		case T_TidRangeScanState:
			*exprs = ((TidRangeScan *) plan)->tidrangequals;
			return true;
		case T_ValuesScanState:
			*exprs = ((ValuesScan *) plan)->values_lists;
			return true;
		case T_NestLoopState:
			*exprs = ((Join *) plan)->joinqual;
			return true;
		case T_MergeJoinState:
			*exprs = list_concat_copy(((Join *) plan)->joinqual,
									  ((MergeJoin *) plan)->mergeclauses);
			return true;
		case T_HashJoinState:
			*exprs = list_concat_copy(((Join *) plan)->joinqual,
									  ((HashJoin *) plan)->hashclauses);
			return true;
		default:
			return false;
	}
}

/*
 * State of is_risky_node().
 */
typedef struct RiskSearch
{
	HrflowAheadState *asked;	/* the read-ahead node that is asked before
								 * each row whether the row's calls may fail,
								 * or NULL */
	List	   *visited;		/* plans of CTEs and initplans that were
								 * visited */
} RiskSearch;

/*
 * Could reading one more row from "ps", after the first one, raise an error or
 * have side effects?  "context" is the RiskSearch.  Any read-ahead node below
 * "ps" other than "asked" is risky, because its calls could raise an error.
 *
 * A CTE is visited only once, although several nodes may scan it: otherwise,
 * CTEs that scan each other would be visited exponentially often.  If it were
 * risky, the first visit would have ended the search.
 */
static bool
is_risky_node(PlanState *ps, void *context)
{
	RiskSearch *search = context;
	List	   *exprs = NIL;

	CHECK_FOR_INTERRUPTS();
	check_stack_depth();

	if (list_member_ptr(ps->state->es_subplanstates, ps))
	{
		if (list_member_ptr(search->visited, ps))
			return false;
		search->visited = lappend(search->visited, ps);
	}
	if (search->asked != NULL && ps == &search->asked->css.ss.ps)
	{
		PlanState  *child = linitial(search->asked->css.custom_ps);

		search->asked = search->asked->asked;
		return is_risky_expression((Node *) ps->plan->targetlist, ps->state) ||
			is_risky_node(child, search);
	}

	if (!get_expressions(ps, &exprs) ||
		is_risky_expression((Node *) ps->plan->targetlist, ps->state) ||
		is_risky_expression((Node *) ps->plan->qual, ps->state) ||
		is_risky_expression((Node *) exprs, ps->state))
		return true;
	if (computes_all_rows_first(ps))
		return false;
	if (IsA(ps, CteScanState) &&
		is_risky_node(((CteScanState *) ps)->cteplanstate, search))
		return true;
	return planstate_tree_walker(ps, is_risky_node, search);
}

/*
 * Return the read-ahead node whose rows "ps" returns one by one, or NULL if
 * there is none or its call is executed by a function scan.
 */
static HrflowAheadState *
find_state_below(PlanState *ps)
{
	HrflowAheadState *ahead;

	while (ps != NULL && ps->plan->qual == NIL)
	{
		ahead = hrflow_ahead_get(ps);
		if (ahead != NULL)
			return ahead->is_lateral ? NULL : ahead;
		if (IsA(ps, ResultState))
			ps = outerPlanState(ps);
		else if (IsA(ps, SubqueryScanState))
			ps = ((SubqueryScanState *) ps)->subplan;
		else
			break;
	}
	return NULL;
}

/*
 * Set the fields "asked" and "is_risky" of a node.  The nodes below it must
 * have been processed before.
 */
void
hrflow_ahead_assess(HrflowAheadState *state)
{
	PlanState  *child = linitial(state->css.custom_ps);
	RiskSearch	search = {0};

	state->asked = find_state_below(child);
	search.asked = state->asked;
	state->is_risky = is_risky_node(child, &search);
}
