/*-------------------------------------------------------------------------
 *
 * ahead_build.c
 *		Creates the plan nodes of the read-ahead.
 *
 * ahead_plan.c creates the paths.  If the planner chooses a plan with such a
 * path, create_customscan_plan() calls the path's method below to create the
 * plan node, and set_customscan_references() then replaces the node's Vars.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ahead.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"

/*
 * Replace row-identity Vars in an expression by Vars of a table.
 *
 * If the target of an UPDATE, DELETE or MERGE is partitioned or inherited,
 * add_row_identity_var() represents each junk column that identifies a row,
 * such as ctid, by a Var with the special number ROWID_VAR, whose attribute
 * number is an index into root->row_identity_vars.  setrefs.c expects such
 * Vars only where it replaces them by references to a child's column, so they
 * must not be in custom_scan_tlist; EXPLAIN VERBOSE could not print them.
 * Replace them by Vars of the first table that has the column, as
 * adjust_appendrel_attrs() does below an Append.  The target list of a path
 * above the Append refers to none of these tables otherwise.
 */
static Node *
replace_row_identities_mutator(Node *node, void *context)
{
	PlannerInfo *root = context;

	if (node == NULL)
		return NULL;
	if (IsA(node, Var) && ((Var *) node)->varno == ROWID_VAR)
	{
		RowIdentityVarInfo *identity =
		list_nth(root->row_identity_vars, ((Var *) node)->varattno - 1);
		Var		   *var = copyObject(identity->rowidvar);

		var->varno = bms_next_member(identity->rowidrels, -1);
		var->varnosyn = 0;
		var->varattnosyn = 0;
		return (Node *) var;
	}
	return expression_tree_mutator(node, replace_row_identities_mutator,
								   context);
}

/*
 * Create a plan node whose scan tuple consists of the child's columns.
 */
static CustomScan *
make_scan(PlannerInfo *root, CustomPath *path, List *tlist,
		  List *custom_plans)
{
	CustomScan *scan = makeNode(CustomScan);
	Plan	   *child = linitial(custom_plans);
	ListCell   *cell;

	scan->scan.plan.targetlist = tlist;
	scan->flags = path->flags;
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
	scan->scan.plan.targetlist = (List *)
		replace_row_identities_mutator((Node *) scan->scan.plan.targetlist,
									   root);
	scan->custom_scan_tlist = (List *)
		replace_row_identities_mutator((Node *) scan->custom_scan_tlist, root);
	return scan;
}

/*
 * Create the plan node for a path that computes calls.
 *
 * The node's scan tuple consists of the child's columns, followed by a column
 * for each call.  In the target list and in custom_exprs,
 * set_customscan_references() replaces each expression that equals an entry of
 * custom_scan_tlist by a reference to that entry's column.  Therefore
 * custom_exprs contains, for each call, the list of its arguments rather than
 * the call itself.
 */
static Plan *
plan_read_ahead(PlannerInfo *root, RelOptInfo *rel, CustomPath *best_path,
				List *tlist, List *clauses, List *custom_plans)
{
	CustomScan *scan = make_scan(root, best_path, tlist, custom_plans);
	ListCell   *cell;

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
 * Create the plan node for the outer side of a nested loop whose inner side is
 * a function scan.  The arguments of the call are in custom_exprs;
 * custom_private contains the call without its arguments, because
 * set_customscan_references() does not process custom_private.
 */
static Plan *
plan_lateral(PlannerInfo *root, RelOptInfo *rel, CustomPath *best_path,
			 List *tlist, List *clauses, List *custom_plans)
{
	CustomScan *scan = make_scan(root, best_path, tlist, custom_plans);
	FuncExpr   *call = copyObject(linitial(best_path->custom_private));

	scan->custom_exprs = list_make1(call->args);
	call->args = NIL;
	scan->custom_private = list_make1(call);
	return (Plan *) scan;
}

const CustomPathMethods hrflow_ahead_call_methods = {
	.CustomName = HRFLOW_AHEAD_NAME,
	.PlanCustomPath = plan_read_ahead
};

const CustomPathMethods hrflow_ahead_lateral_methods = {
	.CustomName = HRFLOW_AHEAD_NAME,
	.PlanCustomPath = plan_lateral
};
