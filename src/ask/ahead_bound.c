/*-------------------------------------------------------------------------
 *
 * ahead_bound.c
 *		Determines how many rows of a read-ahead node its query needs.
 *
 * Every request is paid for, so none may be sent for a row that the query may
 * not return.  Two hooks provide information that the executor does not give
 * to a node: ExecutorStart finds the nodes above it, which may need fewer rows
 * than it has, and ExecutorRun the number of rows that the caller wants, such
 * as 10 for FETCH 10.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ahead.h"
#include "compat.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"

static ExecutorStart_hook_type previous_start_hook = NULL;
static ExecutorRun_hook_type previous_run_hook = NULL;

/* Stands for an unlimited number of rows. */
#define ALL_ROWS PG_INT64_MAX

/*
 * Number of rows for which a node will still be asked, including the one it is
 * about to return.
 */
typedef struct RowsNeeded
{
	int64		most;			/* upper limit, or ALL_ROWS */
	bool		is_certain;		/* will the node be asked for all of these
								 * rows, unless it has fewer? */
} RowsNeeded;

/*
 * Return the state of a read-ahead node, or NULL if "ps" is any other node.
 */
static HrflowAheadState *
get_ahead_state(PlanState *ps)
{
	if (IsA(ps, CustomScanState) &&
		((CustomScanState *) ps)->methods == &hrflow_ahead_exec_methods)
		return (HrflowAheadState *) ps;
	return NULL;
}

/*
 * ------------------------------------------------------------------------
 * Rows needed from child nodes
 * ------------------------------------------------------------------------
 */

/*
 * Compute what a Limit node needs from its child.  The node has computed its
 * count and offset before it asks for a row.  nodeLimit.c's "position" counts
 * the rows that it has received.
 */
static RowsNeeded
pass_limit(const LimitState *limit, RowsNeeded needed)
{
	int64		skipped = Max(limit->offset - limit->position, 0);

	if (needed.most != ALL_ROWS)
		needed.most += skipped;
	if (!limit->noCount)
	{
		/* WITH TIES reads one more row, to see that it is not a tie. */
		needed.most = Min(needed.most, limit->offset + limit->count -
						  limit->position);
		needed.most = Max(needed.most, 1);
	}
	return needed;
}

/*
 * Return how many rows may be read ahead if we don't know how many are needed:
 * one more than have been returned, so that the wasted requests exceed the
 * useful ones by at most one.  Read only the one to be returned if another one
 * could cost any number of requests.
 */
static int64
uncertain_rows(const HrflowAheadState *ahead)
{
	return ahead->has_filter ? 1 : ahead->nreturned + 1;
}

/*
 * Compute what a read-ahead node needs from its child.  If we don't know what
 * is needed from the node, its child must read no more rows ahead than the node
 * does, because the child's requests would be wasted as well.
 */
static RowsNeeded
pass_ahead(const HrflowAheadState *ahead, RowsNeeded needed)
{
	if (!needed.is_certain)
		needed.most = Min(needed.most, uncertain_rows(ahead));
	needed.is_certain = true;
	if (needed.most != ALL_ROWS)
		needed.most = Max(needed.most - ahead->nrows, 1);
	return needed;
}

/*
 * Compute what a node needs from the node below it, given what is needed from
 * the node.
 */
static RowsNeeded
pass_node(PlanState *ps, PlanState *below, RowsNeeded needed)
{
	static const RowsNeeded all = {ALL_ROWS, true};
	static const RowsNeeded unknown = {ALL_ROWS, false};
	HrflowAheadState *ahead;
	Agg		   *agg;

	switch (nodeTag(ps))
	{
		case T_LimitState:
			return pass_limit((LimitState *) ps, needed);

			/* These return at most one row for each row from below. */
		case T_ResultState:
		case T_SubqueryScanState:
		case T_LockRowsState:
		case T_MaterialState:
		case T_UniqueState:
		case T_GroupState:
		case T_AppendState:
			return needed;

			/*
			 * These keep rows that they have not returned yet, so below a
			 * LIMIT we don't know how many more they need.
			 */
		case T_IncrementalSortState:
			if (needed.most != ALL_ROWS)
				needed.most = 1;
			return needed;
		case T_WindowAggState:
			if (needed.most != ALL_ROWS)
				needed.most = 1;
			if (((WindowAgg *) ps->plan)->runCondition != NIL)
				needed.is_certain = false;
			return needed;
		case T_CustomScanState:
			ahead = get_ahead_state(ps);
			return ahead != NULL ? pass_ahead(ahead, needed) : unknown;

			/* These read all rows before they return one. */
		case T_SortState:
		case T_HashState:
			return all;
		case T_AggState:
			agg = (Agg *) ps->plan;
			if (agg->aggstrategy == AGG_PLAIN ||
				agg->aggstrategy == AGG_HASHED)
				return all;
			/* A row may complete the groups of several grouping sets. */
			if (agg->groupingSets != NIL && needed.most != ALL_ROWS)
				needed.is_certain = false;
			return needed;
		case T_ModifyTableState:
			return ((ModifyTable *) ps->plan)->returningLists == NIL ? all :
				needed;

			/* These read all rows if they return all rows. */
		case T_NestLoopState:
			if (below == outerPlanState(ps) && needed.most == ALL_ROWS)
				return needed;
			return unknown;
		case T_MergeAppendState:
		case T_ProjectSetState:
			return needed.most == ALL_ROWS ? needed : unknown;
		default:
			return unknown;
	}
}

/*
 * Return how many rows may be read ahead, including the one to be returned
 * next: at least 1, and at most "most".
 */
int
hrflow_ahead_rows_allowed(HrflowAheadState *state, int most)
{
	RowsNeeded	needed = {ALL_ROWS, false};
	int64		allowed;
	ListCell   *cell;

	if (state->is_bounded && state->is_placed)
	{
		needed.is_certain = true;
		if (state->count > 0)
			needed.most = Max((int64) (state->count -
									   state->css.ss.ps.state->es_processed), 1);
	}
	foreach(cell, state->ancestors)
	{
		ListCell   *next = lnext(state->ancestors, cell);

		needed = pass_node(lfirst(cell), next != NULL ? lfirst(next) :
						   &state->css.ss.ps, needed);
	}
	allowed = Min(needed.most, most);
	if (!needed.is_certain)
		allowed = Min(allowed, uncertain_rows(state));
	return (int) allowed;
}

/*
 * ------------------------------------------------------------------------
 * Hooks
 * ------------------------------------------------------------------------
 */

/*
 * Is there a read-ahead node at or below "ps"?
 */
static bool
contains_state(PlanState *ps, void *context)
{
	return get_ahead_state(ps) != NULL ||
		planstate_tree_walker(ps, contains_state, context);
}

/*
 * Does a node at or below "ps" discard rows for which a volatile function,
 * such as one of ours, has been called?  Reading one more row could then take
 * any number of such calls.
 */
static bool
contains_filter(PlanState *ps, void *context)
{
	Plan	   *plan = ps->plan;
	List	   *quals = plan->qual;
	bool		is_filter;

	if (IsA(ps, NestLoopState) || IsA(ps, MergeJoinState) ||
		IsA(ps, HashJoinState))
		quals = list_concat_copy(quals, ((Join *) plan)->joinqual);
	is_filter = quals != NIL || IsA(ps, MergeJoinState) ||
		IsA(ps, HashJoinState);
	return contain_volatile_functions((Node *) quals) ||
		(is_filter && contains_state(ps, NULL)) ||
		planstate_tree_walker(ps, contains_filter, context);
}

static void find_states(PlanState *ps, List *ancestors, bool is_placed);

static void
find_states_in(PlanState **children, int n, List *ancestors, bool is_placed)
{
	for (int i = 0; i < n; i++)
		find_states(children[i], ancestors, is_placed);
}

/*
 * Find the read-ahead nodes at or below "ps", and record the nodes above each.
 */
static void
find_states(PlanState *ps, List *ancestors, bool is_placed)
{
	HrflowAheadState *ahead;
	List	   *path;

	if (ps == NULL)
		return;
	check_stack_depth();

	ahead = get_ahead_state(ps);
	if (ahead != NULL)
	{
		ahead->ancestors = ancestors;
		ahead->is_placed = is_placed;
		ahead->has_filter = contains_filter(linitial(ahead->css.custom_ps),
											NULL);
	}

	path = lappend(list_copy(ancestors), ps);
	find_states(outerPlanState(ps), path, is_placed);
	find_states(innerPlanState(ps), path, is_placed);
	switch (nodeTag(ps))
	{
		case T_AppendState:
			find_states_in(((AppendState *) ps)->appendplans,
						   ((AppendState *) ps)->as_nplans, path, is_placed);
			break;
		case T_MergeAppendState:
			find_states_in(((MergeAppendState *) ps)->mergeplans,
						   ((MergeAppendState *) ps)->ms_nplans, path, is_placed);
			break;
		case T_SubqueryScanState:
			find_states(((SubqueryScanState *) ps)->subplan, path, is_placed);
			break;
		case T_CustomScanState:
			if (ahead != NULL)
				find_states(linitial(ahead->css.custom_ps), path, is_placed);
			break;
		default:
			break;
	}
}

static void
start_with_read_ahead(QueryDesc *query, int eflags)
{
	dlist_iter	iter;
	ListCell   *cell;
	bool		found = false;

	if (previous_start_hook != NULL)
		previous_start_hook(query, eflags);
	else
		standard_ExecutorStart(query, eflags);

	dlist_foreach(iter, &hrflow_ahead_live)
	{
		HrflowAheadState *state = dlist_container(HrflowAheadState, live, iter.cur);

		found |= state->css.ss.ps.state == query->estate;
	}
	if (found)
	{
		MemoryContext old = MemoryContextSwitchTo(query->estate->es_query_cxt);

		find_states(query->planstate, NIL, true);
		foreach(cell, query->estate->es_subplanstates)
			find_states(lfirst(cell), NIL, false);
		MemoryContextSwitchTo(old);
	}
}

/*
 * Set, or clear, how many rows the caller of a query wants.
 */
static void
set_bound(EState *estate, bool is_bounded, uint64 count)
{
	dlist_iter	iter;

	dlist_foreach(iter, &hrflow_ahead_live)
	{
		HrflowAheadState *state = dlist_container(HrflowAheadState, live, iter.cur);

		if (state->css.ss.ps.state != estate)
			continue;
		state->is_bounded = is_bounded;
		state->count = count;
	}
}

/*
 * Complete the requests in flight before the executor returns to its caller.
 * The caller may never ask for more rows, and an open cursor must hold neither
 * a connection nor the account's probe, for which other backends wait.
 */
static void
pause_states(EState *estate)
{
	dlist_iter	iter;

	dlist_foreach(iter, &hrflow_ahead_live)
	{
		HrflowAheadState *state = dlist_container(HrflowAheadState, live, iter.cur);

		if (state->css.ss.ps.state == estate && state->transport != NULL)
			hrflow_transport_suspend(state->transport);
	}
}

static void
run_with_read_ahead(HRFLOW_EXECUTOR_RUN_PARAMETERS)
{
	set_bound(query->estate, true, count);
	if (previous_run_hook != NULL)
		previous_run_hook(HRFLOW_EXECUTOR_RUN_ARGUMENTS);
	else
		standard_ExecutorRun(HRFLOW_EXECUTOR_RUN_ARGUMENTS);
	pause_states(query->estate);
	set_bound(query->estate, false, 0);
}

void
hrflow_ahead_install_executor(void)
{
	previous_start_hook = ExecutorStart_hook;
	ExecutorStart_hook = start_with_read_ahead;
	previous_run_hook = ExecutorRun_hook;
	ExecutorRun_hook = run_with_read_ahead;
}
