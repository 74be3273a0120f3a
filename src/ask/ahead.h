/*-------------------------------------------------------------------------
 *
 * ahead.h
 *		Data structures of the read-ahead.
 *
 * The planner puts a CustomScan node, HrflowReadAhead, on top of the lowest
 * plan node that would compute calls of our functions for each of its rows
 * (ahead_plan.c).  The node reads rows of its child before they are requested
 * from it, so that the requests of several rows are in flight at the same time
 * (ahead_node.c), but only as many rows as the query is certain to need
 * (ahead_bound.c).
 *
 * A call in FROM whose arguments come from other tables is executed by a
 * function scan on the inner side of a nested loop.  The node is then put on
 * the outer side, returns the rows of its child unchanged, and holds the
 * answer that the function takes (ahead_live.c).
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

/* Name of the node in EXPLAIN, and of its methods. */
#define HRFLOW_AHEAD_NAME "HrflowReadAhead"

/*
 * A call that is a column of the node's scan tuple, or the call of a function
 * scan.
 */
typedef struct HrflowAheadColumn
{
	const HrflowFunction *function;
	FuncExpr   *call;			/* the call as in the query, for EXPLAIN */
	int			attno;			/* index in the scan tuple, from 0; not used
								 * for a function scan */
	int			nargs;
	ExprState **args;			/* expressions over the columns of the child */
	NullableDatum *values;		/* values of the arguments for the row read
								 * last */
	ExprState  *whole;			/* the whole call, for evaluating it when its
								 * row is returned; NULL for a function scan */
	bool		is_safe;		/* can the arguments be evaluated without
								 * raising an error? */
} HrflowAheadColumn;

/*
 * A call that was issued ahead.  Rows with equal calls share it.
 */
typedef struct HrflowAheadCall
{
	dlist_node	node;			/* in HrflowAheadState.calls */
	MemoryContext context;		/* contains this struct and everything that
								 * the call refers to */
	HrflowCall	call;
	const char *request;		/* URL of the first request of the call */
	uint32		hash;			/* hash of the first request's URL or body */
	int			nrows;			/* number of rows that refer to this call */
	int64		first_row;		/* number of the first row that refers to it */
	Size		bytes;			/* size, once complete, before that only if it
								 * has a body; included in
								 * HrflowAheadState.bytes */
} HrflowAheadCall;

/*
 * A row that has been read but not returned yet.
 */
typedef struct HrflowAheadRow
{
	dlist_node	node;			/* in HrflowAheadState.rows */
	MinimalTuple tuple;			/* the child's columns */
	int64		number;			/* position of the row in the scan, from 0 */
	HrflowAheadCall *calls[FLEXIBLE_ARRAY_MEMBER];	/* the call of each
													 * column; NULL: evaluate
													 * it when the row is
													 * returned */
} HrflowAheadRow;

/*
 * Executor state of the node.
 */
typedef struct HrflowAheadState
{
	CustomScanState css;		/* must be first */

	/* Fixed when the node is initialized. */
	int			nchild;			/* number of columns of the child, with which
								 * the scan tuple begins */
	bool		is_lateral;		/* does a function scan execute the only call,
								 * which then is not in the scan tuple? */
	int			ncolumns;
	HrflowAheadColumn *columns;
	bool		needs_key;		/* does any call send a request to the API? */
	ExprContext *args_context;	/* for evaluating arguments ahead */
	TupleTableSlot *args_slot;	/* scan tuple for evaluating arguments, in
								 * which calls are NULL */
	TupleTableSlot *row_slot;	/* the child's columns of the row being
								 * returned */
	MemoryContext context;		/* contains rows and calls */
	bool		is_placed;		/* is the node in the main plan rather than in
								 * a subplan? */
	List	   *ancestors;		/* PlanStates above the node, topmost first */
	bool		has_filter;		/* could reading one more row take any number
								 * of calls of volatile functions? */

	/* State of the execution. */
	dlist_node	live;			/* in ahead_bound.c's list of states */
	bool		is_live;		/* is the state in the list of states? */
	MemoryContextCallback on_reset;
	bool		is_bounded;		/* is "count" valid?  Only while ExecutorRun
								 * is running */
	uint64		count;			/* number of rows requested by ExecutorRun; 0:
								 * all */

	/* State of the scan. */
	const HrflowSettings *settings; /* NULL until the first request of the
									 * scan */
	HrflowTransport *transport; /* NULL if there is none */
	HrflowActivity *activity;	/* NULL if there is no transport */
	dlist_head	rows;			/* rows read but not returned, in order */
	int			nrows;
	dlist_head	calls;			/* calls of the rows in "rows" and of
								 * "current" */
	int			nsent;			/* number of calls waiting for a reply */
	HrflowAheadRow *current;	/* the row that was returned last, or NULL */
	int64		next_number;	/* number of the next row to be read */
	int64		nreturned;		/* number of rows returned in this scan */
	int64		stops_at;		/* last row that may be read, because its call
								 * has failed or will fail; PG_INT64_MAX: none
								 * has */
	bool		child_ended;	/* has the child reported the end of the scan? */
	bool		has_ended;		/* has the node reported the end of the scan? */
	Size		bytes;			/* memory used by rows and completed calls */
	Size		largest;		/* size in bytes of the largest complete call;
								 * 0 if none is complete */

	/* For EXPLAIN ANALYZE. */
	int64		nrequests;
	int			max_sent;
	int			max_rows;
} HrflowAheadState;

/* in ahead_node.c */
extern const CustomScanMethods hrflow_ahead_scan_methods;
extern const CustomExecMethods hrflow_ahead_exec_methods;

/* in ahead_live.c */
extern dlist_head hrflow_ahead_live;
extern void hrflow_ahead_add_live(HrflowAheadState *state);
extern void hrflow_ahead_remove_live(HrflowAheadState *state);
extern HrflowAheadCall *hrflow_ahead_find_equal(HrflowAheadState *state,
												const HrflowAheadCall *wanted);

/* in ahead_bound.c */
extern void hrflow_ahead_install_executor(void);
extern int	hrflow_ahead_rows_allowed(HrflowAheadState *state, int most);

#endif							/* HRFLOW_AHEAD_H */
