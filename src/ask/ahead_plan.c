/*-------------------------------------------------------------------------
 *
 * ahead_plan.c
 *		The read-ahead in the planner: where calls are issued ahead of their
 *		row.
 *
 * Each SQL function has the support function hrflow_support().  It simplifies
 * nothing, but because eval_const_expressions() calls it, this library is
 * loaded before the paths of the first query that uses one of our functions
 * are made, so that nothing needs to be preloaded.
 *
 * grouping_planner() calls create_upper_paths_hook for UPPERREL_FINAL when the
 * paths of a query, or of a subquery that is planned on its own, are complete.
 * There we replace each path that computes calls in its target by
 *
 *		CustomPath, with the same target
 *		  -> the same path, with a target that lacks the calls
 *
 * A path that could still compute something below a volatile function does not
 * exist at that point: subqueries whose targets are volatile are never pulled
 * up, and grouping_planner() computes volatile columns above a sort unless the
 * sort needs them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ahead.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/supportnodes.h"
#include "miscadmin.h"
#include "optimizer/clauses.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/planner.h"
#include "optimizer/restrictinfo.h"
#include "optimizer/tlist.h"
#include "rewrite/rewriteManip.h"

PG_FUNCTION_INFO_V1(hrflow_support);

/* Nested calls need a node for each level; more levels are left alone. */
#define MAX_LEVELS 4

static create_upper_paths_hook_type previous_upper_paths_hook = NULL;

/*
 * True once one of our functions was planned in this backend: until then the
 * hook has nothing to do.
 */
static bool calls_seen = false;

/*
 * hrflow_support(internal) RETURNS internal
 *
 * The planner's support function of the functions whose calls are read ahead.
 */
Datum
hrflow_support(PG_FUNCTION_ARGS)
{
	calls_seen = true;
	PG_RETURN_POINTER(NULL);
}

/*
 * ------------------------------------------------------------------------
 * Calls in expressions
 * ------------------------------------------------------------------------
 */

/*
 * Is this a call of one of our functions that can be read ahead?
 *
 * fmgr_info() gives the address of our own C function only when the function
 * can be called directly: not where it is SECURITY DEFINER or has a SET
 * clause, whose effects a call that is issued ahead would miss.
 */
static bool
is_our_call(Node *node)
{
	FuncExpr   *call = (FuncExpr *) node;
	FmgrInfo	finfo;
	const HrflowFunction *function;

	if (!IsA(node, FuncExpr) || call->funcretset ||
		(call->funcresulttype != JSONBOID &&
		 call->funcresulttype != FLOAT4ARRAYOID))
		return false;
	fmgr_info(call->funcid, &finfo);
	function = hrflow_single_find(finfo.fn_addr);
	return function != NULL && list_length(call->args) > 0;
}

static bool
contains_call_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	return is_our_call(node) ||
		expression_tree_walker(node, contains_call_walker, context);
}

static bool
contains_call(Node *node)
{
	return contains_call_walker(node, NULL);
}

/*
 * What find_calls_walker() collects, and where it stops.
 */
typedef struct CallSearch
{
	List	   *inputs;			/* expressions that are computed below */
	List	   *calls;			/* FuncExprs found, without duplicates */
} CallSearch;

/*
 * Collect the calls in an expression that are evaluated whenever the
 * expression is.  Only nodes that are known to evaluate their arguments are
 * entered: what is below CASE, COALESCE, AND, OR, a subplan and the like may
 * not be needed for a row, and aggregates and window functions are computed
 * below.
 */
static bool
find_calls_walker(Node *node, void *context)
{
	CallSearch *search = context;

	if (node == NULL || list_member(search->inputs, node))
		return false;

	switch (nodeTag(node))
	{
		case T_List:
		case T_FuncExpr:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
		case T_ScalarArrayOpExpr:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_ArrayCoerceExpr:
		case T_CollateExpr:
		case T_CoerceToDomain:
		case T_FieldSelect:
		case T_NullTest:
		case T_BooleanTest:
		case T_ArrayExpr:
		case T_RowExpr:
			break;
		case T_SubscriptingRef:
			/* Of a NULL array the subscripts are not evaluated. */
			return find_calls_walker((Node *) ((SubscriptingRef *) node)->refexpr,
									 context);
		default:
			return false;
	}
	if (is_our_call(node))
		search->calls = list_append_unique(search->calls, node);
	return expression_tree_walker(node, find_calls_walker, context);
}

/*
 * Replace the calls in a list by constants.
 */
static Node *
remove_calls_mutator(Node *node, void *context)
{
	List	   *calls = context;

	if (node == NULL)
		return NULL;
	if (list_member(calls, node))
		return (Node *) makeNullConst(exprType(node), -1, exprCollation(node));
	return expression_tree_mutator(node, remove_calls_mutator, context);
}

/*
 * Can the arguments of a call be evaluated ahead of their row, where the calls
 * in "computed" are at hand?  Volatile functions must run when their row is
 * reached, and subplans keep resources of the executor between evaluations.
 */
static bool
may_read_ahead(FuncExpr *call, List *computed)
{
	Node	   *args = remove_calls_mutator((Node *) call->args, computed);

	return !contain_volatile_functions(args) && !contain_subplans(args) &&
		!contains_call(args);
}

/*
 * Collect what must come from the path below in order to compute an
 * expression: without duplicates, and as large as it is computed there.
 */
static bool
find_inputs_walker(Node *node, void *context)
{
	CallSearch *search = context;

	if (node == NULL)
		return false;
	if (IsA(node, Var) || IsA(node, PlaceHolderVar) || IsA(node, Aggref) ||
		IsA(node, GroupingFunc) || IsA(node, WindowFunc) ||
		list_member(search->inputs, node))
	{
		search->calls = list_append_unique(search->calls, node);
		return false;
	}
	return expression_tree_walker(node, find_inputs_walker, context);
}

/*
 * ------------------------------------------------------------------------
 * Paths
 * ------------------------------------------------------------------------
 */

static Plan *plan_read_ahead(PlannerInfo *root, RelOptInfo *rel,
							 CustomPath *best_path, List *tlist,
							 List *clauses, List *custom_plans);

static const CustomPathMethods path_methods = {
	.CustomName = HRFLOW_AHEAD_NAME,
	.PlanCustomPath = plan_read_ahead
};

/*
 * Make the path that computes "calls" over a path that does not.  It costs
 * nothing more: the choice among paths is to remain what it was.
 */
static Path *
make_read_ahead_path(Path *subpath, PathTarget *target, List *calls)
{
	CustomPath *path = makeNode(CustomPath);

	path->path.pathtype = T_CustomScan;
	path->path.parent = subpath->parent;
	path->path.pathtarget = target;
	path->path.param_info = subpath->param_info;
	path->path.rows = subpath->rows;
	path->path.startup_cost = subpath->startup_cost;
	path->path.total_cost = subpath->total_cost;
	path->path.pathkeys = subpath->pathkeys;
	path->flags = CUSTOMPATH_SUPPORT_PROJECTION;
	path->custom_paths = list_make1(subpath);
	path->custom_private = calls;
	path->methods = &path_methods;
	return (Path *) path;
}

/*
 * A target of these expressions.
 */
static PathTarget *
make_target(PlannerInfo *root, List *exprs)
{
	PathTarget *target = create_empty_pathtarget();
	ListCell   *cell;

	foreach(cell, exprs)
		add_column_to_pathtarget(target, lfirst(cell), 0);
	return set_pathtarget_cost_width(root, target);
}

/*
 * Put read-ahead nodes, one for each level of nesting, above "child", which
 * computes none of "calls".  The topmost one has the target of "path".
 */
static Path *
add_levels(PlannerInfo *root, Path *path, Path *child, List *calls)
{
	List	   *computed = NIL;

	for (int level = 0; level < MAX_LEVELS && calls != NIL; level++)
	{
		List	   *ready = NIL;
		List	   *exprs;
		ListCell   *cell;

		foreach(cell, calls)
		{
			if (may_read_ahead(lfirst(cell), computed))
				ready = lappend(ready, lfirst(cell));
		}
		if (ready == NIL)
			break;
		calls = list_difference(calls, ready);
		computed = list_concat(computed, ready);
		exprs = list_concat_copy(child->pathtarget->exprs, ready);
		child = make_read_ahead_path(child, make_target(root, exprs), ready);
	}
	if (computed == NIL)
		return path;
	child->pathtarget = path->pathtarget;
	return child;
}

/*
 * Replace a path that computes calls by one that reads them ahead.  "below" is
 * the path that it takes its rows from, or NULL where it scans or joins.
 */
static Path *
read_calls_ahead(PlannerInfo *root, Path *path, Path *below)
{
	CallSearch	search = {NIL, NIL};
	List	   *calls;
	Path	   *child;

	if (below != NULL && IS_DUMMY_APPEND(below))
		return path;

	/*
	 * ruleutils.c of PostgreSQL 18 finds the window of a WindowFunc in its
	 * WindowAgg node only, so that EXPLAIN could not show one that is in our
	 * custom_scan_tlist.
	 */
	if (contain_windowfuncs((Node *) path->pathtarget->exprs))
		return path;
	if (below != NULL)
		search.inputs = below->pathtarget->exprs;
	find_calls_walker((Node *) path->pathtarget->exprs, &search);
	if (search.calls == NIL)
		return path;

	/*
	 * What a projection takes its rows from has all that is needed.  Any
	 * other path projects itself, so that create_projection_plan() only
	 * replaces its target list.
	 */
	if (IsA(path, ProjectionPath))
		child = below;
	else
	{
		calls = search.calls;
		search.calls = NIL;
		find_inputs_walker((Node *) path->pathtarget->exprs, &search);
		child = (Path *) create_projection_path(root, path->parent, path,
												make_target(root, search.calls));
		search.calls = calls;
	}
	return add_levels(root, path, child, search.calls);
}

static Path *find_computing_path(PlannerInfo *root, Path *path);

static void
replace_in_list(PlannerInfo *root, List *paths)
{
	ListCell   *cell;

	foreach(cell, paths)
		lfirst(cell) = find_computing_path(root, lfirst(cell));
}

/*
 * Replace "path", and the paths that it takes its rows from, where they
 * compute calls.  A path may be shared by several others; it is modified once.
 */
static Path *
find_computing_path(PlannerInfo *root, Path *path)
{
	Path	  **below = NULL;

	check_stack_depth();

	switch (nodeTag(path))
	{
			/* These return the rows of another path, or fewer. */
		case T_LimitPath:
			below = &((LimitPath *) path)->subpath;
			break;
		case T_LockRowsPath:
			below = &((LockRowsPath *) path)->subpath;
			break;
		case T_SortPath:
		case T_IncrementalSortPath:
			below = &((SortPath *) path)->subpath;
			break;
		case T_UpperUniquePath:
			below = &((UpperUniquePath *) path)->subpath;
			break;
		case T_ModifyTablePath:
			/* RETURNING and ON CONFLICT are not in its subpath's target. */
			below = &((ModifyTablePath *) path)->subpath;
			break;
		case T_AppendPath:
			replace_in_list(root, ((AppendPath *) path)->subpaths);
			return path;
		case T_MergeAppendPath:
			replace_in_list(root, ((MergeAppendPath *) path)->subpaths);
			return path;

			/* These compute their target from the rows of another path. */
		case T_ProjectionPath:
			below = &((ProjectionPath *) path)->subpath;
			*below = find_computing_path(root, *below);
			return read_calls_ahead(root, path, *below);
		case T_AggPath:
			below = &((AggPath *) path)->subpath;
			*below = find_computing_path(root, *below);
			return read_calls_ahead(root, path, *below);
		case T_GroupPath:
			below = &((GroupPath *) path)->subpath;
			*below = find_computing_path(root, *below);
			return read_calls_ahead(root, path, *below);
		case T_WindowAggPath:
			below = &((WindowAggPath *) path)->subpath;
			*below = find_computing_path(root, *below);
			return read_calls_ahead(root, path, *below);
		case T_GatherPath:
			return read_calls_ahead(root, path, ((GatherPath *) path)->subpath);
		case T_GatherMergePath:
			return read_calls_ahead(root, path,
									((GatherMergePath *) path)->subpath);

			/* These scan or join. */
		case T_Path:
			return path->pathtype == T_Result ? path :
				read_calls_ahead(root, path, NULL);
		case T_IndexPath:
		case T_BitmapHeapPath:
		case T_TidPath:
		case T_TidRangePath:
		case T_SubqueryScanPath:
		case T_ForeignPath:
		case T_NestPath:
		case T_MergePath:
		case T_HashPath:
			return read_calls_ahead(root, path, NULL);

			/* Others, and what was replaced before. */
		default:
			return path;
	}

	*below = find_computing_path(root, *below);
	return path;
}

/*
 * Can this query have calls that are evaluated for each of its rows?  A query
 * without FROM has one row, and PL/pgSQL wants a Result node for it.  Of
 * functions in the target list that return sets, and of grouping sets, we
 * stay away.
 */
static bool
is_candidate(PlannerInfo *root)
{
	Query	   *parse = root->parse;

	if (parse->hasTargetSRFs || parse->groupingSets != NIL)
		return false;
	for (int i = 1; i < root->simple_rel_array_size; i++)
	{
		RelOptInfo *rel = root->simple_rel_array[i];

		if (rel != NULL && rel->rtekind != RTE_RESULT)
			return true;
	}
	return false;
}

static void
read_ahead_upper_paths(PlannerInfo *root, UpperRelationKind stage,
					   RelOptInfo *input_rel, RelOptInfo *output_rel,
					   void *extra)
{
	if (previous_upper_paths_hook != NULL)
		previous_upper_paths_hook(root, stage, input_rel, output_rel, extra);
	if (stage == UPPERREL_FINAL && calls_seen && is_candidate(root) &&
		contains_call((Node *) root->processed_tlist))
		replace_in_list(root, output_rel->pathlist);
}

/*
 * ------------------------------------------------------------------------
 * The plan
 * ------------------------------------------------------------------------
 */

/*
 * Make the plan node of a path.
 *
 * Its scan tuple has the columns of its child, and after them a column for
 * each call.  set_customscan_references() replaces what equals an entry of
 * custom_scan_tlist, in the target list and in custom_exprs, by a reference to
 * that column of the scan tuple.  Therefore custom_exprs has the arguments of
 * the calls, and not the calls themselves: one list for each call.
 */
static Plan *
plan_read_ahead(PlannerInfo *root, RelOptInfo *rel, CustomPath *best_path,
				List *tlist, List *clauses, List *custom_plans)
{
	CustomScan *scan = makeNode(CustomScan);
	Plan	   *child = linitial(custom_plans);
	ListCell   *cell;

	scan->scan.plan.targetlist = tlist;
	scan->flags = best_path->flags;
	if (ExecSupportsBackwardScan(child))
		scan->flags |= CUSTOMPATH_SUPPORT_BACKWARD_SCAN;
	scan->custom_plans = custom_plans;
	scan->methods = &hrflow_ahead_scan_methods;

	foreach(cell, child->targetlist)
	{
		TargetEntry *entry = lfirst(cell);

		scan->custom_scan_tlist =
			lappend(scan->custom_scan_tlist,
					makeTargetEntry(copyObject(entry->expr), entry->resno,
									NULL, false));
	}
	foreach(cell, best_path->custom_private)
	{
		FuncExpr   *call = lfirst(cell);

		scan->custom_scan_tlist =
			lappend(scan->custom_scan_tlist,
					makeTargetEntry((Expr *) copyObject(call),
									list_length(scan->custom_scan_tlist) + 1,
									NULL, false));
		scan->custom_exprs = lappend(scan->custom_exprs,
									 copyObject(call->args));
	}
	return (Plan *) scan;
}

/*
 * Install the hooks, when the library is loaded.  That may be in the middle of
 * planning a query: both the hook here and those of the executor are looked up
 * after that.
 */
void
hrflow_ahead_install(void)
{
	previous_upper_paths_hook = create_upper_paths_hook;
	create_upper_paths_hook = read_ahead_upper_paths;
	RegisterCustomScanMethods(&hrflow_ahead_scan_methods);
	hrflow_ahead_install_executor();
}
