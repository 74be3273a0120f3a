/*-------------------------------------------------------------------------
 *
 * ahead.h
 *		Data structures of the read-ahead.
 *
 * A planner hook puts a CustomScan node, HrflowReadAhead, on top of the lowest
 * plan node that would evaluate calls of our functions for each of its rows
 * (ahead_plan.c).  HrflowReadAhead reads rows from its child before its own
 * parent needs them, so that the requests of several rows are in flight at the
 * same time (ahead_node.c).  It reads no more rows than the query needs, as
 * far as that is known (ahead_bound.c).
 *
 * A call in FROM whose arguments come from other tables is executed by a
 * function scan on the inner side of a nested loop.  If HrflowReadAhead can be
 * put on the outer side, it returns the rows of its child unchanged, and keeps
 * the result of a row's call, for the function to take, until it returns the
 * next row (ahead_live.c).
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_AHEAD_H
#define HRFLOW_AHEAD_H

#include "postgres.h"

#include "ask/call.h"
#include "executor/executor.h"
#include "lib/ilist.h"
#include "nodes/extensible.h"

/* Name of the node's methods, and of the node in EXPLAIN. */
#define HRFLOW_AHEAD_NAME "HrflowReadAhead"

/*
 * A call that is issued ahead.  It is a column of the node's scan tuple, or it
 * is executed by a function scan.
 */
typedef struct HrflowAheadColumn
{
	const HrflowFunction *function; /* NULL if the SQL function was altered
									 * after planning; its calls are then not
									 * issued ahead */
	FuncExpr   *call;			/* the call as it appears in the query, for
								 * EXPLAIN */
	int			attno;			/* index in the scan tuple, from 0; not used
								 * for a function scan */
	int			nargs;
	ExprState **args;			/* argument expressions, which refer to the
								 * child's columns */
	NullableDatum *values;		/* argument values for the row read last */
	ExprState  *whole;			/* the call itself, for evaluating it when its
								 * row is returned; NULL for a function scan */
	bool		is_safe;		/* can the arguments be evaluated without
								 * raising an error, apart from errors of
								 * initplans? */
	Bitmapset  *params;			/* numbers of the executor parameters
								 * (PARAM_EXEC), such as results of initplans,
								 * in the arguments */
	void	  **initplans;		/* saved ParamExecData.execPlan of each of
								 * "params" while initplans are blocked */
} HrflowAheadColumn;

/*
 * A call whose arguments were evaluated ahead of their row.  Rows whose calls
 * make equal requests share one HrflowAheadCall.
 */
typedef struct HrflowAheadCall
{
	dlist_node	node;			/* in HrflowAheadState.calls */
	MemoryContext context;		/* memory context of this struct and of
								 * everything to which the call refers, except
								 * the settings and static data */
	HrflowCall	call;
	const char *request;		/* URL of the first request of the call; NULL
								 * if the call has no request */
	uint32		hash;			/* hash of the first request's URL or body */
	int			nrows;			/* number of rows that refer to this call */
	int64		first_row;		/* position in the scan of the first row that
								 * refers to this call, from 0 */
	Size		bytes;			/* memory counted for the call in
								 * HrflowAheadState.bytes; 0 until its final
								 * reply, unless it has a body */
} HrflowAheadCall;

/*
 * A row that has been read and not returned yet, or the row returned last.
 */
typedef struct HrflowAheadRow
{
	dlist_node	node;			/* in HrflowAheadState.rows, until the row is
								 * returned */
	MinimalTuple tuple;			/* the child's columns */
	int64		number;			/* position of the row in the scan, from 0 */
	HrflowAheadCall *calls[FLEXIBLE_ARRAY_MEMBER];	/* for each column, the
													 * call made ahead, or
													 * NULL to evaluate the
													 * call when the row is
													 * returned */
} HrflowAheadRow;

/*
 * Kind of the plan or subplan that contains a node.
 */
typedef enum HrflowAheadRoot
{
	HRFLOW_ROOT_UNKNOWN,		/* a subplan that might be read only
								 * partially, or from several places */
	HRFLOW_ROOT_SUBPLAN_ALL,	/* a subplan that is read to its end */
	HRFLOW_ROOT_MAIN			/* the main plan, or a CTE that is scanned
								 * once, in the main plan or in another such
								 * CTE */
} HrflowAheadRoot;

/*
 * Executor state of an HrflowReadAhead node.
 */
typedef struct HrflowAheadState
{
	CustomScanState css;		/* must be first */

	/*
	 * These fields, except "blocker", do not change while the node is
	 * executed.
	 */
	int			nchild;			/* number of the child's columns, which come
								 * first in the scan tuple */
	bool		is_lateral;		/* is there a single call, executed by a
								 * function scan (and so not in the scan
								 * tuple)? */
	int			ncolumns;
	HrflowAheadColumn *columns;
	bool		needs_key;		/* does any call send a request to the API? */
	SubPlanState *blocker;		/* replaces an initplan that must not be
								 * executed; NULL until it is needed */
	ExprContext *args_context;	/* expression context for evaluating arguments
								 * ahead of their row */
	TupleTableSlot *args_slot;	/* scan tuple for evaluating arguments; the
								 * columns of calls are NULL */
	TupleTableSlot *row_slot;	/* the child's columns of the row being
								 * returned */
	MemoryContext context;		/* contains the settings, transport, rows and
								 * calls of a scan */
	HrflowAheadRoot root;
	List	   *ancestors;		/* PlanStates above the node, topmost first */
	struct HrflowAheadState *asked; /* read-ahead node whose rows the child
									 * returns one by one, or NULL; before a
									 * row is read ahead, this node is asked
									 * whether a call of the row may fail */
	bool		is_risky;		/* could reading a row that is not needed
								 * raise an error, or have side effects other
								 * than requests? */

	/* State of the execution. */
	dlist_node	live;			/* in hrflow_ahead_live */
	bool		is_live;		/* is the state in hrflow_ahead_live? */
	MemoryContextCallback on_reset;
	bool		is_bounded;		/* is "count" valid (only while ExecutorRun()
								 * is running)? */
	uint64		count;			/* number of rows that the caller of
								 * ExecutorRun() wants, or 0 if it wants all
								 * rows */

	/* State of the scan. */
	bool		is_limit_passed;	/* has hrflow_ahead_pass_limit() been
									 * called for this scan? */
	const HrflowSettings *settings; /* NULL until the scan first needs them */
	HrflowTransport *transport; /* NULL before the first request is submitted,
								 * and after the requests were abandoned */
	HrflowActivity *activity;	/* NULL if there is no transport */
	dlist_head	rows;			/* rows read but not returned, in order */
	int			nrows;
	dlist_head	calls;			/* calls of the rows in "rows" and of
								 * "current" */
	int			nsent;			/* number of calls waiting for a reply */
	HrflowAheadRow *current;	/* the row that was returned last, or NULL */
	int64		next_number;	/* number of the next row to be read */
	int64		nreturned;		/* number of rows taken from "rows" and
								 * returned in this scan */
	int64		stops_at;		/* number of the first row with a call that
								 * has failed or may fail, or PG_INT64_MAX if
								 * there is none; rows after it are not read
								 * before it is returned */
	bool		is_asked;		/* is the next row read only to find out
								 * whether its calls may fail, rather than
								 * because it is needed? */
	bool		child_ended;	/* has the child reported the end of the scan? */
	bool		has_ended;		/* has the node reported the end of the scan? */
	Size		bytes;			/* memory used by rows, complete calls and
								 * bodies, in bytes */
	Size		largest;		/* size in bytes of the largest call completed
								 * so far; 0 if there is none */

	/* For EXPLAIN ANALYZE. */
	int64		nrequests;
	int			max_sent;
	int			max_rows;
} HrflowAheadState;

/* in ahead_build.c */
extern const CustomPathMethods hrflow_ahead_call_methods;
extern const CustomPathMethods hrflow_ahead_lateral_methods;

/* in ahead_node.c */
extern const CustomScanMethods hrflow_ahead_scan_methods;
extern const CustomExecMethods hrflow_ahead_exec_methods;

/* in ahead_args.c */
extern void hrflow_ahead_init_arguments(HrflowAheadColumn *column, List *args,
										PlanState *ps);
extern bool hrflow_ahead_evaluate_arguments(HrflowAheadState *state,
											HrflowAheadColumn *column);

/* in ahead_live.c */
extern dlist_head hrflow_ahead_live;
extern void hrflow_ahead_add_live(HrflowAheadState *state);
extern void hrflow_ahead_remove_live(HrflowAheadState *state);
extern void hrflow_ahead_abandon(HrflowAheadState *state);
extern HrflowAheadCall *hrflow_ahead_find_equal(HrflowAheadState *state,
												const HrflowAheadCall *wanted);

/* in ahead_risk.c */
extern void hrflow_ahead_assess(HrflowAheadState *state);

/* in ahead_bound.c */
extern HrflowAheadState *hrflow_ahead_get(PlanState *ps);
extern void hrflow_ahead_install_executor(void);
extern int	hrflow_ahead_rows_allowed(HrflowAheadState *state, int most);
extern void hrflow_ahead_pass_limit(HrflowAheadState *state);

#endif							/* HRFLOW_AHEAD_H */
