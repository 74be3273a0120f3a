/*-------------------------------------------------------------------------
 *
 * estimate.c
 *		Planner support functions that estimate how many rows the batch
 *		functions return: one for each array element, vector or link.
 *		hrflow_estimate(), which estimates the cost of a batch for users, is in
 *		many.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "nodes/nodeFuncs.h"
#include "nodes/pathnodes.h"
#include "nodes/supportnodes.h"
#include "optimizer/pathnode.h"
#include "utils/array.h"
#include "utils/jsonb.h"

PG_FUNCTION_INFO_V1(hrflow_elements_support);
PG_FUNCTION_INFO_V1(hrflow_items_support);

/*
 * Return the number of rows that an aggregate without GROUP BY reads, or -1 if
 * the path is not such an aggregate or the number is unknown.
 */
static double
aggregated_rows(Path *path)
{
	Path	   *input;

	if (!IsA(path, AggPath) || ((AggPath *) path)->groupClause != NIL)
		return -1;
	input = ((AggPath *) path)->subpath;
	if (!DO_AGGSPLIT_COMBINE(((AggPath *) path)->aggsplit))
		return input->rows;

	/*
	 * This aggregate only combines the results of parallel workers, each of
	 * which aggregates a part of the rows.
	 */
	if (IsA(input, GatherPath))
		input = ((GatherPath *) input)->subpath;
	return IsA(input, AggPath) ?
		((AggPath *) input)->subpath->parent->rows : -1;
}

/*
 * Return the number of elements of an array that is computed by an initplan of
 * this query level, as ARRAY(SELECT ...) or (SELECT array_agg(...) ...).
 * Returns -1 if the parameter is not such an array, or the number is unknown.
 */
static double
elements_of_subquery(PlannerInfo *root, const Param *param)
{
	ListCell   *cell;

	if (param->paramkind != PARAM_EXEC)
		return -1;
	foreach(cell, root->init_plans)
	{
		SubPlan    *plan = lfirst_node(SubPlan, cell);
		PlannerInfo *subroot;
		Path	   *path;

		if (!list_member_int(plan->setParam, param->paramid))
			continue;
		subroot = list_nth(root->glob->subroots, plan->plan_id - 1);
		path = fetch_upper_rel(subroot, UPPERREL_FINAL,
							   NULL)->cheapest_total_path;
		if (plan->subLinkType == ARRAY_SUBLINK)
			return path->rows;
		return plan->subLinkType == EXPR_SUBLINK ? aggregated_rows(path) : -1;
	}
	return -1;
}

/*
 * Return the number of elements of an array argument, or -1 if it is unknown.
 */
static double
array_elements(PlannerInfo *root, Node *node)
{
	if (IsA(node, ArrayCoerceExpr))
		node = (Node *) ((ArrayCoerceExpr *) node)->arg;
	if (IsA(node, Const))
	{
		const Const *constant = (const Const *) node;
		ArrayType  *array;

		if (constant->constisnull)
			return 0;
		array = DatumGetArrayTypeP(constant->constvalue);
		return ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	}
	if (IsA(node, ArrayExpr) && !((ArrayExpr *) node)->multidims)
		return list_length(((ArrayExpr *) node)->elements);
	if (IsA(node, Param) && root != NULL)
		return elements_of_subquery(root, (const Param *) node);
	return -1;
}

/*
 * Return the number of items that "fields" requests: for each section the
 * length of its list, or 1 if it has no list; in total at least 1.
 */
double
hrflow_estimate_items(Jsonb *fields)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	value;
	double		items = 0;

	it = JsonbIteratorInit(&fields->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token != WJB_VALUE)
			continue;
		items += value.type == jbvBinary &&
			JsonContainerIsArray(value.val.binary.data) ?
			JsonContainerSize(value.val.binary.data) : 1;
	}
	return Max(items, 1);
}

/*
 * Return the number of items that the argument "fields" requests, or 1 if it
 * is NULL or unknown.
 */
static double
items_of_argument(Node *node)
{
	const Const *constant = (const Const *) node;

	if (!IsA(node, Const) || constant->constisnull)
		return 1;
	return hrflow_estimate_items(DatumGetJsonbP(constant->constvalue));
}

/*
 * Process a support request: estimate the number of rows from the longest
 * array argument and, if "by_item" is true, from the argument "fields".
 * Returns NULL if the length of an array is unknown, or the request is not a
 * SupportRequestRows for a function call.
 */
static Node *
estimate_rows(Node *request, bool by_item)
{
	SupportRequestRows *rows = (SupportRequestRows *) request;
	double		nelements = 0;
	double		nitems = 1;
	ListCell   *cell;

	if (!IsA(request, SupportRequestRows) || !IsA(rows->node, FuncExpr))
		return NULL;
	foreach(cell, ((FuncExpr *) rows->node)->args)
	{
		Node	   *argument = lfirst(cell);
		Oid			type = exprType(argument);

		if (type == TEXTARRAYOID || type == JSONBARRAYOID)
		{
			double		n = array_elements(rows->root, argument);

			if (n < 0)
				return NULL;
			nelements = Max(nelements, n);
		}
		else if (type == JSONBOID && by_item)
			nitems = items_of_argument(argument);
	}
	rows->rows = nelements * nitems;
	return request;
}

/*
 * hrflow_elements_support(internal) RETURNS internal
 *
 * Planner support function of functions that return a row for each element.
 */
Datum
hrflow_elements_support(PG_FUNCTION_ARGS)
{
	PG_RETURN_POINTER(estimate_rows((Node *) PG_GETARG_POINTER(0), false));
}

/*
 * hrflow_items_support(internal) RETURNS internal
 *
 * Planner support function of functions that return a row for each item of an
 * element.
 */
Datum
hrflow_items_support(PG_FUNCTION_ARGS)
{
	PG_RETURN_POINTER(estimate_rows((Node *) PG_GETARG_POINTER(0), true));
}
