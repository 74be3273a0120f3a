/*-------------------------------------------------------------------------
 *
 * ahead_bound.c
 *		Determines how many rows a query needs from a read-ahead node.
 *
 * Requests cost money, so avoid requests for rows that the query will not
 * return.  ExecSetTupleBound() does not tell custom scans how many rows are
 * needed, so two hooks find out: our ExecutorStart_hook finds the nodes above
 * each read-ahead node, some of which may need only part of its rows, and our
 * ExecutorRun_hook records the number of rows that the caller wants, such as
 * 10 for FETCH 10.  The latter and our ExecutorFinish_hook also deal with the
 * requests that are in flight when the executor returns or fails.
 *
 * Because ExecSetTupleBound() does not descend below a custom scan either, we
 * pass the bound of a LIMIT above a read-ahead node on to a sort below the
 * node.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ahead.h"
#include "common/int.h"
#include "compat.h"
#include "miscadmin.h"

static ExecutorStart_hook_type previous_start_hook = NULL;
static ExecutorRun_hook_type previous_run_hook = NULL;
static ExecutorFinish_hook_type previous_finish_hook = NULL;

/* An unlimited number of rows. */
#define ALL_ROWS PG_INT64_MAX

/*
 * Number of rows that are still needed from a node, including the row that it
 * is about to return.  If nodes above it discard rows, more rows may be needed
 * later.
 */
typedef struct RowsNeeded
{
	int64		most;			/* number of rows, or ALL_ROWS */
	bool		is_certain;		/* are this many rows certain to be needed,
								 * unless the node has fewer? */
} RowsNeeded;

/*
 * Return the state of a read-ahead node, or NULL if "ps" is not one.
 */
HrflowAheadState *
hrflow_ahead_get(PlanState *ps)
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
 * Compute how many rows a Limit node needs from its child.  The node computes
 * its count and offset before it reads a row.  LimitState.position is the
 * number of rows that the node has received.
 */
static RowsNeeded
pass_limit(const LimitState *limit, RowsNeeded needed)
{
	int64		skipped = limit->offset - limit->position;
	int64		left;

	if (needed.most != ALL_ROWS &&
		pg_add_s64_overflow(needed.most, Max(skipped, 0), &needed.most))
		needed.most = ALL_ROWS;
	if (!limit->noCount &&
		!pg_add_s64_overflow(limit->count, skipped, &left))
	{
		/*
		 * At least one row is needed, because WITH TIES reads rows until one
		 * is not a tie.
		 */
		needed.most = Max(Min(needed.most, left), 1);
	}
	return needed;
}

/*
 * Return how many rows may be read ahead if we don't know how many are needed:
 * one more than have been returned, so that at most one more row is read in
 * vain than is used.  If reading a row could raise an error or have effects
 * other than requests, read only the row to be returned.
 */
static int64
uncertain_rows(const HrflowAheadState *ahead)
{
	return ahead->is_risky ? 1 : ahead->nreturned + 1;
}

/*
 * Compute how many rows a read-ahead node needs from its child.  If we don't
 * know how many rows are needed from the node, a read-ahead node below it must
 * not read further ahead than this node, because its requests would be wasted,
 * too.
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
 * Compute how many rows "ps" needs from "below", given how many rows are
 * needed from "ps".
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

			/*
			 * These nodes return at most one row for each row that they read.
			 * Even if other children of an Append are asynchronous, this
			 * child is read to its end without interruption, because
			 * ExecAppend() looks for asynchronous events only when a child
			 * has ended.
			 */
		case T_AppendState:
		case T_ResultState:
		case T_SubqueryScanState:
		case T_CteScanState:
		case T_LockRowsState:
		case T_MaterialState:
		case T_UniqueState:
		case T_GroupState:
			return needed;

			/*
			 * These nodes may read rows that they do not return yet, so
			 * unless all rows are needed, we know only that they need the
			 * next one.  A WindowAgg with a run condition may stop even
			 * before that.
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
			ahead = hrflow_ahead_get(ps);
			return ahead != NULL ? pass_ahead(ahead, needed) : unknown;

			/* These nodes read all rows before they return one. */
		case T_SortState:
		case T_HashState:
			return all;
		case T_AggState:
			agg = (Agg *) ps->plan;
			if (agg->aggstrategy == AGG_PLAIN ||
				agg->aggstrategy == AGG_HASHED)
				return all;

			/*
			 * One input row may complete groups of several grouping sets, and
			 * so yield several rows.
			 */
			if (agg->groupingSets != NIL && needed.most != ALL_ROWS)
				needed.is_certain = false;
			return needed;

			/*
			 * Without RETURNING, all rows are read at once.  A data-modifying
			 * CTE is always executed to completion.
			 */
		case T_ModifyTableState:
			return ((ModifyTable *) ps->plan)->returningLists == NIL ||
				!((ModifyTable *) ps->plan)->canSetTag ? all : needed;

			/*
			 * If all rows of these nodes are needed, they read all rows of
			 * their children, with two exceptions: a semijoin, an antijoin or
			 * a join to a unique inner side may stop reading its inner side,
			 * and a hash join may stop before it has a hash table.
			 */
		case T_NestLoopState:
			if (needed.most == ALL_ROWS &&
				(below == outerPlanState(ps) ||
				 (!((JoinState *) ps)->single_match &&
				  ((JoinState *) ps)->jointype != JOIN_ANTI)))
				return needed;
			return unknown;
		case T_HashJoinState:
			if (needed.most == ALL_ROWS &&
				((HashJoinState *) ps)->hj_HashTable != NULL)
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

	if (state->root == HRFLOW_ROOT_SUBPLAN_ALL)
		needed.is_certain = true;
	else if (state->root == HRFLOW_ROOT_MAIN && state->is_bounded)
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
 * Return the Limit node that receives each row of a read-ahead node, or NULL
 * if there is none or a node between the two might not pass all rows on.
 */
static LimitState *
find_limit(const HrflowAheadState *state)
{
	for (int i = list_length(state->ancestors) - 1; i >= 0; i--)
	{
		PlanState  *ps = list_nth(state->ancestors, i);

		if (IsA(ps, LimitState))
			return (LimitState *) ps;
		if (ps->plan->qual != NIL ||
			(!IsA(ps, ResultState) && !IsA(ps, SubqueryScanState) &&
			 hrflow_ahead_get(ps) == NULL))
			return NULL;
	}
	return NULL;
}

/*
 * If there is a LIMIT above a read-ahead node, tell the nodes below how many
 * rows are needed, so that a sort keeps only that many rows.
 * ExecSetTupleBound() does this for the nodes that it knows, but stops at a
 * CustomScan.
 *
 * Call this before the scan's first row is read.  In a rescan, call it before
 * the child is rescanned, because a sort whose bound changes must sort again.
 * Limit nodes have computed their count and offset by then.
 *
 * A sort raises an error if more rows than its bound are read from it, so
 * hrflow_ahead_rows_allowed() must never allow more.
 */
void
hrflow_ahead_pass_limit(HrflowAheadState *state)
{
	LimitState *limit = find_limit(state);
	int64		bound;

	state->is_limit_passed = true;
	if (limit == NULL)
		return;
	if (limit->noCount || limit->limitOption == LIMIT_OPTION_WITH_TIES ||
		pg_add_s64_overflow(limit->count, limit->offset, &bound))
		bound = -1;				/* all rows */
	ExecSetTupleBound(bound, linitial(state->css.custom_ps));
}

/*
 * ------------------------------------------------------------------------
 * Hooks
 * ------------------------------------------------------------------------
 */

/*
 * State of find_states().
 */
typedef struct Search
{
	List	   *visited;		/* subplans that were visited */
	List	   *shared;			/* subplans that were visited more than once */
} Search;

static void find_states(Search *search, PlanState *ps, List *ancestors,
						HrflowAheadRoot root);

static void
find_states_in(Search *search, PlanState **children, int n, List *ancestors,
			   HrflowAheadRoot root)
{
	for (int i = 0; i < n; i++)
		find_states(search, children[i], ancestors, root);
}

/*
 * Find the read-ahead nodes in a subplan.  If the subplan is executed from
 * several places, we don't know how many of its rows are needed.
 */
static void
find_states_in_subplan(Search *search, PlanState *subplan, List *ancestors,
					   HrflowAheadRoot root)
{
	if (!list_member_ptr(search->visited, subplan))
	{
		search->visited = lappend(search->visited, subplan);
		find_states(search, subplan, ancestors, root);
	}
	else if (!list_member_ptr(search->shared, subplan))
	{
		search->shared = lappend(search->shared, subplan);
		find_states(search, subplan, NIL, HRFLOW_ROOT_UNKNOWN);
	}
}

/*
 * Find the read-ahead nodes in the initplans and subplans of a node.  ARRAY(),
 * and IN with a hash table, read all rows.  CTEs are skipped here, and found
 * from the nodes that scan them.
 */
static void
find_states_in_expressions(Search *search, List *subplans)
{
	ListCell   *cell;

	foreach(cell, subplans)
	{
		SubPlanState *state = lfirst(cell);
		SubPlan    *subplan = state->subplan;

		if (subplan->subLinkType == CTE_SUBLINK)
			continue;
		find_states_in_subplan(search, state->planstate, NIL,
							   subplan->subLinkType == ARRAY_SUBLINK ||
							   subplan->useHashTable ?
							   HRFLOW_ROOT_SUBPLAN_ALL : HRFLOW_ROOT_UNKNOWN);
	}
}

/*
 * Find the read-ahead nodes at or below "ps", and set those of their fields
 * that depend on the nodes above and below them.
 */
static void
find_states(Search *search, PlanState *ps, List *ancestors,
			HrflowAheadRoot root)
{
	HrflowAheadState *ahead;
	List	   *path;

	if (ps == NULL)
		return;
	check_stack_depth();

	path = lappend(list_copy(ancestors), ps);
	find_states_in_expressions(search, ps->initPlan);
	find_states_in_expressions(search, ps->subPlan);
	find_states(search, outerPlanState(ps), path, root);
	find_states(search, innerPlanState(ps), path, root);
	switch (nodeTag(ps))
	{
		case T_AppendState:
			find_states_in(search, ((AppendState *) ps)->appendplans,
						   ((AppendState *) ps)->as_nplans, path, root);
			break;
		case T_MergeAppendState:
			find_states_in(search, ((MergeAppendState *) ps)->mergeplans,
						   ((MergeAppendState *) ps)->ms_nplans, path, root);
			break;
		case T_SubqueryScanState:
			find_states(search, ((SubqueryScanState *) ps)->subplan, path,
						root);
			break;
		case T_CteScanState:
			find_states_in_subplan(search, ((CteScanState *) ps)->cteplanstate,
								   path, root);
			break;
		case T_CustomScanState:
			ahead = hrflow_ahead_get(ps);
			if (ahead != NULL)
			{
				ahead->ancestors = ancestors;
				ahead->root = root;
				find_states(search, linitial(ahead->css.custom_ps), path,
							root);
				hrflow_ahead_assess(ahead);
			}
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
		Search		search = {NIL, NIL};

		find_states(&search, query->planstate, NIL, HRFLOW_ROOT_MAIN);

		/*
		 * The subplans not found so far include data-modifying CTEs that
		 * nothing reads.
		 */
		foreach(cell, query->estate->es_subplanstates)
		{
			if (!list_member_ptr(search.visited, lfirst(cell)))
				find_states(&search, lfirst(cell), NIL, HRFLOW_ROOT_UNKNOWN);
		}
		MemoryContextSwitchTo(old);
	}
}

/*
 * In all read-ahead nodes of a query, set or clear the number of rows that the
 * caller of ExecutorRun() wants.  Returns false if the query has no such node.
 */
static bool
set_bound(EState *estate, bool is_bounded, uint64 count)
{
	bool		found = false;
	dlist_iter	iter;

	dlist_foreach(iter, &hrflow_ahead_live)
	{
		HrflowAheadState *state = dlist_container(HrflowAheadState, live, iter.cur);

		if (state->css.ss.ps.state != estate)
			continue;
		state->is_bounded = is_bounded;
		state->count = count;
		found = true;
	}
	return found;
}

/*
 * Complete the requests in flight before the executor returns to its caller,
 * unless complete_states() has abandoned them.  The caller may never ask for
 * more rows, and an open cursor must hold neither a connection nor the
 * account's probe, whose result other backends wait for.
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

/*
 * After an error in a query, abandon its requests.  Its nodes are not executed
 * again, but if the query belongs to a cursor and only a subtransaction is
 * rolled back, they exist until the cursor is closed, and until then their
 * requests would be sent while other transports wait.  Does not throw.
 */
static void
abandon_states(EState *estate)
{
	dlist_iter	iter;

	dlist_foreach(iter, &hrflow_ahead_live)
	{
		HrflowAheadState *state = dlist_container(HrflowAheadState, live, iter.cur);

		if (state->css.ss.ps.state == estate)
			hrflow_ahead_abandon(state);
	}
}

/*
 * Could ExecutorFinish(), which executes data-modifying CTEs to their ends,
 * read rows of a node?
 */
static bool
may_be_finished_later(const HrflowAheadState *state)
{
	List	   *modifying = state->css.ss.ps.state->es_auxmodifytables;
	ListCell   *cell;

	foreach(cell, state->ancestors)
	{
		if (list_member_ptr(modifying, lfirst(cell)))
			return true;
	}
	return modifying != NIL && state->root == HRFLOW_ROOT_UNKNOWN;
}

/*
 * Abandon the requests of a query that has returned all of its rows, except
 * requests of nodes that ExecutorFinish() could execute.  Nothing needs the
 * results of the abandoned requests.
 */
static void
complete_states(EState *estate)
{
	dlist_iter	iter;

	dlist_foreach(iter, &hrflow_ahead_live)
	{
		HrflowAheadState *state = dlist_container(HrflowAheadState, live, iter.cur);

		if (state->css.ss.ps.state == estate && !may_be_finished_later(state))
			hrflow_ahead_abandon(state);
	}
}

static void
run_next(HRFLOW_EXECUTOR_RUN_PARAMETERS)
{
	if (previous_run_hook != NULL)
		previous_run_hook(HRFLOW_EXECUTOR_RUN_ARGUMENTS);
	else
		standard_ExecutorRun(HRFLOW_EXECUTOR_RUN_ARGUMENTS);
}

static void
run_with_read_ahead(HRFLOW_EXECUTOR_RUN_PARAMETERS)
{
	if (!set_bound(query->estate, true, count))
	{
		run_next(HRFLOW_EXECUTOR_RUN_ARGUMENTS);
		return;
	}
	PG_TRY();
	{
		run_next(HRFLOW_EXECUTOR_RUN_ARGUMENTS);
		if (ScanDirectionIsForward(direction) && count == 0)
			complete_states(query->estate);
		pause_states(query->estate);
	}
	PG_CATCH();
	{
		abandon_states(query->estate);
		PG_RE_THROW();
	}
	PG_END_TRY();
	set_bound(query->estate, false, 0);
}

static void
finish_next(QueryDesc *query)
{
	if (previous_finish_hook != NULL)
		previous_finish_hook(query);
	else
		standard_ExecutorFinish(query);
}

/*
 * ExecutorFinish() completes data-modifying CTEs of which the query has not
 * read all rows, so it can read rows ahead.  If it raises an error, abandon
 * the query's requests.
 */
static void
finish_with_read_ahead(QueryDesc *query)
{
	if (dlist_is_empty(&hrflow_ahead_live))
	{
		finish_next(query);
		return;
	}
	PG_TRY();
	{
		finish_next(query);
	}
	PG_CATCH();
	{
		abandon_states(query->estate);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

void
hrflow_ahead_install_executor(void)
{
	previous_start_hook = ExecutorStart_hook;
	ExecutorStart_hook = start_with_read_ahead;
	previous_run_hook = ExecutorRun_hook;
	ExecutorRun_hook = run_with_read_ahead;
	previous_finish_hook = ExecutorFinish_hook;
	ExecutorFinish_hook = finish_with_read_ahead;
}
