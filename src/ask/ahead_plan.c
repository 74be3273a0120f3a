/*-------------------------------------------------------------------------
 *
 * ahead_plan.c
 *		Planner part of the read-ahead: decides which calls are issued ahead
 *		of their rows.
 *
 * Each SQL function whose calls can be issued ahead has the support function
 * hrflow_support().  This function does not simplify anything, but
 * eval_const_expressions() calls it, so our library is loaded before the
 * planner creates the paths of the session's first query that uses one of our
 * functions.  Therefore nothing needs to be preloaded.
 *
 * grouping_planner() calls create_upper_paths_hook for UPPERREL_FINAL when the
 * paths of a query, or of a subquery that is planned separately, are complete.
 * Where possible, we then replace each path that computes calls in its target
 * by
 *
 * 		CustomPath, with the same target
 * 		  -> the same path, with a target that lacks the calls
 *
 * A set-returning function in FROM is executed by a function scan.  If its
 * arguments are columns of other relations, the function scan is the inner
 * side of a nested loop, and we may put a CustomPath on the outer side.
 *
 * Since our functions are volatile, the planner has decided in which path's
 * target each call is computed: it never pulls up a subquery whose target
 * contains a volatile function, and it computes a volatile column above a sort
 * unless the sort needs the column.  We split the path that computes the call
 * in two, but never move a call above or below another path.
 *
 * Other volatile functions stay where they are.  Those in the same target are
 * executed when the row is returned, so a call that has one in its arguments
 * is not issued ahead.  If reading a row from the path below executes a
 * volatile function, rows are read ahead only if it is certain that the query
 * needs them (ahead_risk.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ahead.h"
#include "catalog/pg_type.h"
#include "compat.h"
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

/*
 * Maximum nesting depth of calls that are issued ahead.  Each level adds a
 * plan node; queries rarely need more than two levels.
 */
#define MAX_LEVELS 4

static create_upper_paths_hook_type previous_upper_paths_hook = NULL;

/*
 * Has a query with one of our functions been planned in this backend?  If not,
 * the planner hook has nothing to do.
 */
static bool calls_seen = false;

/*
 * hrflow_support(internal) RETURNS internal
 *
 * Planner support function of the functions whose calls can be issued ahead.
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
 * Is this a call of one of our functions that can be issued ahead?
 * "returns_set" selects set-returning functions rather than those that return
 * one value.
 *
 * fmgr_info() returns the address of our C function only if no extension hooks
 * its calls, and the SQL function neither is SECURITY DEFINER nor has a SET
 * clause.  Otherwise calls cannot be issued ahead, because the hook or the
 * change of role or settings would not apply.
 */
static bool
is_call_of_kind(Node *node, bool returns_set)
{
	FuncExpr   *call = (FuncExpr *) node;
	FmgrInfo	finfo;

	if (!IsA(node, FuncExpr) || call->funcretset != returns_set ||
		(call->funcresulttype != JSONBOID &&
		 call->funcresulttype != FLOAT4ARRAYOID &&
		 call->funcresulttype != RECORDOID))
		return false;
	fmgr_info(call->funcid, &finfo);
	return hrflow_single_find(finfo.fn_addr) != NULL &&
		list_length(call->args) > 0;
}

static bool
is_our_call(Node *node)
{
	return is_call_of_kind(node, false);
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
 * State of find_calls_walker() and find_inputs_walker().
 */
typedef struct CallSearch
{
	List	   *inputs;			/* expressions that the path below computes;
								 * they are not searched */
	List	   *calls;			/* result: calls or inputs found, without
								 * duplicates */
} CallSearch;

/*
 * Collect the calls that are evaluated whenever an expression is evaluated.
 * Descend only into nodes that are known to evaluate all their arguments: a
 * call inside CASE, COALESCE, AND, OR, a subplan and so on might not be needed
 * for a row, and aggregates and window functions are computed by lower paths.
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
			/* The subscripts of a NULL array are not evaluated. */
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
 * Replace the calls that are listed in "context" by NULL constants.
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
 * Can the arguments of a call be evaluated before their row is returned, given
 * the values of the calls in "computed"?  Volatile functions must not be
 * called early, and subplans hold executor resources between evaluations.
 */
static bool
may_read_ahead(FuncExpr *call, List *computed)
{
	Node	   *args = remove_calls_mutator((Node *) call->args, computed);

	return !contain_volatile_functions(args) && !contain_subplans(args) &&
		!contains_call(args);
}

/*
 * Collect the expressions, without duplicates, that the path below must
 * provide to compute an expression.
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

/*
 * Return the parent relation for a path above "subpath": the parent of
 * "subpath" itself if it has no restrictions, or else a copy of it without
 * them.
 *
 * create_scan_plan() puts a Result that evaluates pseudoconstant restrictions
 * above our plan node, too, not only above the scans below it.  That would be
 * redundant, and the target list of the Result would contain row-identity
 * Vars, which our node replaces (see replace_row_identities_mutator()).
 */
static RelOptInfo *
get_parent(const Path *subpath)
{
	RelOptInfo *rel;

	if (subpath->parent->baserestrictinfo == NIL)
		return subpath->parent;
	rel = palloc(sizeof(RelOptInfo));
	*rel = *subpath->parent;
	rel->baserestrictinfo = NIL;
	return rel;
}

/*
 * Create a read-ahead path on top of "subpath".  It has the same cost as
 * "subpath", so that the choice among paths does not change.
 */
static Path *
make_read_ahead_path(Path *subpath, PathTarget *target,
					 const CustomPathMethods *methods, List *private)
{
	CustomPath *path = makeNode(CustomPath);

	path->path.pathtype = T_CustomScan;
	path->path.parent = get_parent(subpath);
	path->path.pathtarget = target;
	path->path.param_info = subpath->param_info;
	path->path.rows = subpath->rows;
	path->path.startup_cost = subpath->startup_cost;
	path->path.total_cost = subpath->total_cost;
	hrflow_compat_copy_disabled_nodes(&path->path, subpath);
	path->path.pathkeys = subpath->pathkeys;
	path->flags = CUSTOMPATH_SUPPORT_PROJECTION;
	path->custom_paths = list_make1(subpath);
	path->custom_private = private;
	path->methods = methods;
	return (Path *) path;
}

/*
 * Create a target from a list of expressions.
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
 * Add read-ahead paths, one for each level of nested calls, up to MAX_LEVELS,
 * on top of "child", which computes none of "calls".  The topmost path gets
 * the target of "path".  Returns "path" if no call can be issued ahead.
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
		child = make_read_ahead_path(child, make_target(root, exprs),
									 &hrflow_ahead_call_methods, ready);
	}
	if (computed == NIL)
		return path;
	child->pathtarget = path->pathtarget;
	return child;
}

/*
 * Does a list contain two equal volatile expressions?
 */
static bool
has_equal_volatile(List *exprs)
{
	List	   *seen = NIL;
	ListCell   *cell;

	foreach(cell, exprs)
	{
		if (!contain_volatile_functions(lfirst(cell)))
			continue;
		if (list_member(seen, lfirst(cell)))
			return true;
		seen = lappend(seen, lfirst(cell));
	}
	return false;
}

/*
 * Return a path that computes the same target as "path", and issues the calls
 * in it ahead; or "path" itself if there are no such calls, or if they cannot
 * be issued ahead.  "below" is the path that provides the rows of "path", or
 * NULL if "path" is a scan or join.
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
	 * PostgreSQL 18's ruleutils.c looks for the window of a WindowFunc only
	 * in a WindowAgg node, so EXPLAIN could not print a WindowFunc in our
	 * custom_scan_tlist.
	 */
	if (contain_windowfuncs((Node *) path->pathtarget->exprs))
		return path;

	/*
	 * set_customscan_references() identifies columns of the path below by
	 * their expressions alone, so it could not tell apart the columns of
	 * SELECT random() AS a, random() AS b ... ORDER BY a, b.
	 */
	if (below != NULL && has_equal_volatile(below->pathtarget->exprs))
		return path;
	if (below != NULL)
		search.inputs = below->pathtarget->exprs;
	find_calls_walker((Node *) path->pathtarget->exprs, &search);
	if (search.calls == NIL)
		return path;

	/*
	 * The path below a projection provides all inputs.  Any other path can
	 * project, so create_projection_plan() merely replaces its target list.
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
 * Return the address of a path's pointer to its only subpath, or NULL if the
 * path has none or several, or if get_subpath() does not support its type.
 */
static Path **
get_subpath(Path *path)
{
	switch (nodeTag(path))
	{
			/*
			 * These paths pass all or some rows of their subpath on
			 * unchanged: they compute no target of their own.
			 */
		case T_LimitPath:
			return &((LimitPath *) path)->subpath;
		case T_LockRowsPath:
			return &((LockRowsPath *) path)->subpath;
		case T_SortPath:
		case T_IncrementalSortPath:
			return &((SortPath *) path)->subpath;
		case T_UpperUniquePath:
			return &((UpperUniquePath *) path)->subpath;

			/*
			 * RETURNING, ON CONFLICT and the actions of MERGE are safe: their
			 * expressions are not in the subpath's target.
			 */
		case T_ModifyTablePath:
			return &((ModifyTablePath *) path)->subpath;

			/*
			 * These paths compute their target from the rows of their
			 * subpath.
			 */
		case T_ProjectionPath:
			return &((ProjectionPath *) path)->subpath;
		case T_AggPath:
			return &((AggPath *) path)->subpath;
		case T_GroupPath:
			return &((GroupPath *) path)->subpath;
		case T_WindowAggPath:
			return &((WindowAggPath *) path)->subpath;

		default:
			return NULL;
	}
}

/*
 * In the tree whose root is "path", replace the paths that compute calls, if
 * possible, by paths that issue the calls ahead.  Returns the new root.  A
 * path may be visited several times, because several others may refer to it.
 * That is harmless: paths that we have created are not replaced again.
 */
static Path *
find_computing_path(PlannerInfo *root, Path *path)
{
	Path	  **below = get_subpath(path);
	Path	   *subpath = NULL;

	check_stack_depth();

	if (below != NULL)
	{
		subpath = find_computing_path(root, *below);
		*below = subpath;
	}

	switch (nodeTag(path))
	{
		case T_AppendPath:
			replace_in_list(root, ((AppendPath *) path)->subpaths);
			return path;
		case T_MergeAppendPath:
			replace_in_list(root, ((MergeAppendPath *) path)->subpaths);
			return path;

			/*
			 * Paths that compute their target from the rows of their subpath.
			 */
		case T_ProjectionPath:
		case T_AggPath:
		case T_GroupPath:
		case T_WindowAggPath:
			return read_calls_ahead(root, path, subpath);
		case T_GatherPath:
			return read_calls_ahead(root, path, ((GatherPath *) path)->subpath);
		case T_GatherMergePath:
			return read_calls_ahead(root, path,
									((GatherMergePath *) path)->subpath);

			/* Scans and joins. */
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

			/* Other paths, including those that we have created. */
		default:
			return path;
	}
}

/*
 * Does a path return row-identity Vars?  (See
 * replace_row_identities_mutator().)
 */
static bool
returns_row_identity(Path *path)
{
	ListCell   *cell;

	foreach(cell, path->pathtarget->exprs)
	{
		if (IsA(lfirst(cell), Var) && ((Var *) lfirst(cell))->varno == ROWID_VAR)
			return true;
	}
	return false;
}

/*
 * Return an AppendPath whose only subpath is "path".
 *
 * setrefs.c looks for each Var of a join in the target lists of the nodes
 * below before it processes these nodes, so it would not find the row-identity
 * Vars that our node replaces.  It does not look below an Append, whose
 * columns are merely those of its children in the same order, and finally
 * removes an Append with a single child from the plan.
 */
static Path *
hide_replaced_vars(Path *path)
{
	AppendPath *append = makeNode(AppendPath);

	append->path = *path;
	append->path.type = T_AppendPath;
	append->path.pathtype = T_Append;
	append->path.pathkeys = NIL;	/* used only to choose among paths */
	append->subpaths = list_make1(path);
	append->first_partial_path = 1;
	append->limit_tuples = -1;
	return (Path *) append;
}

/*
 * Has read_lateral_ahead() created this path?
 */
static bool
is_lateral_path(Path *path)
{
	if (IsA(path, AppendPath) &&
		list_length(((AppendPath *) path)->subpaths) == 1)
		path = linitial(((AppendPath *) path)->subpaths);
	return IsA(path, CustomPath) &&
		((CustomPath *) path)->methods == &hrflow_ahead_lateral_methods;
}

/*
 * If "inner" executes a call of one of our set-returning functions for each
 * row of "outer", and the call can be issued ahead, return the call, else
 * NULL.  The arguments of the call must contain columns, all of which are
 * columns of "outer".
 *
 * A function scan below a Memoize node is not supported, because it is not
 * executed for each row.  The planner hardly ever creates a Memoize node above
 * a function scan, because it ignores the cost of a function when it estimates
 * the cost of a rescan.
 */
static FuncExpr *
find_lateral_call(PlannerInfo *root, Path *inner, Path *outer)
{
	CallSearch	search = {NIL, NIL};
	RangeTblEntry *rte;
	FuncExpr   *call;

	if (inner->pathtype != T_FunctionScan)
		return NULL;

	rte = root->simple_rte_array[inner->parent->relid];
	if (list_length(rte->functions) != 1)
		return NULL;
	call = (FuncExpr *) linitial_node(RangeTblFunction, rte->functions)->funcexpr;
	if (!is_call_of_kind((Node *) call, true) || !may_read_ahead(call, NIL))
		return NULL;

	find_inputs_walker((Node *) call->args, &search);
	if (search.calls == NIL ||
		list_difference(search.calls, outer->pathtarget->exprs) != NIL)
		return NULL;
	return call;
}

/*
 * Find the nested loops among "path" and those paths below it into which we
 * descend, and issue the calls of their inner function scans ahead, if
 * possible.
 */
static void
read_lateral_ahead(PlannerInfo *root, Path *path)
{
	Path	  **below = get_subpath(path);
	NestPath   *loop;
	Path	  **outer;
	FuncExpr   *call;
	ListCell   *cell;

	check_stack_depth();

	if (below != NULL)
	{
		read_lateral_ahead(root, *below);
		return;
	}

	switch (nodeTag(path))
	{
		case T_CustomPath:
			if (((CustomPath *) path)->methods != &hrflow_ahead_call_methods)
				return;
			foreach(cell, ((CustomPath *) path)->custom_paths)
				read_lateral_ahead(root, lfirst(cell));
			return;
		case T_MergePath:
		case T_HashPath:
			read_lateral_ahead(root, ((JoinPath *) path)->outerjoinpath);
			read_lateral_ahead(root, ((JoinPath *) path)->innerjoinpath);
			return;
		case T_NestPath:
			break;
		default:
			return;
	}

	loop = (NestPath *) path;
	outer = &loop->jpath.outerjoinpath;
	read_lateral_ahead(root, *outer);
	call = find_lateral_call(root, loop->jpath.innerjoinpath, *outer);

	/*
	 * The nested loop may be part of several paths, so it may already have
	 * been modified.
	 */
	if (call == NULL || is_lateral_path(*outer))
		return;
	*outer = make_read_ahead_path(*outer, (*outer)->pathtarget,
								  &hrflow_ahead_lateral_methods,
								  list_make1(call));
	if (returns_row_identity(*outer))
		*outer = hide_replaced_vars(*outer);
}

/*
 * Does FROM contain a call of one of our set-returning functions?
 */
static bool
has_lateral_call(PlannerInfo *root)
{
	for (int i = 1; i < root->simple_rel_array_size; i++)
	{
		RelOptInfo *rel = root->simple_rel_array[i];
		RangeTblEntry *rte = root->simple_rte_array[i];
		ListCell   *cell;

		if (rel == NULL || rte->rtekind != RTE_FUNCTION)
			continue;
		foreach(cell, rte->functions)
		{
			if (is_call_of_kind(lfirst_node(RangeTblFunction, cell)->funcexpr,
								true))
				return true;
		}
	}
	return false;
}

/*
 * ------------------------------------------------------------------------
 * The planner hook
 * ------------------------------------------------------------------------
 */

/*
 * Can this query contain calls that are evaluated for each of its rows?  A
 * query without FROM has at most one row, and PL/pgSQL expects its plan to be
 * a Result node.  Queries with set-returning functions in the target list or
 * with grouping sets are not supported.
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
	if (stage != UPPERREL_FINAL || !calls_seen || !is_candidate(root))
		return;
	if (contains_call((Node *) root->processed_tlist))
		replace_in_list(root, output_rel->pathlist);

	/* A pseudoconstant qual may prevent a scan from being executed at all. */
	if (!root->hasPseudoConstantQuals && has_lateral_call(root))
	{
		ListCell   *cell;

		foreach(cell, output_rel->pathlist)
			read_lateral_ahead(root, lfirst(cell));
	}
}

/*
 * Install the hooks.  The library can be loaded while a query is being
 * planned.  create_upper_paths_hook and the executor hooks then already apply
 * to that query, because the server has not read them yet.
 */
void
hrflow_ahead_install(void)
{
	previous_upper_paths_hook = create_upper_paths_hook;
	create_upper_paths_hook = read_ahead_upper_paths;
	RegisterCustomScanMethods(&hrflow_ahead_scan_methods);
	hrflow_ahead_install_executor();
}
