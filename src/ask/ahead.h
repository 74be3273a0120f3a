/*-------------------------------------------------------------------------
 *
 * ahead.h
 *		What the files of the read-ahead share among themselves.
 *
 * The planner puts a CustomScan node, HrflowReadAhead, above the lowest node
 * that would compute calls of our functions for each of its rows
 * (ahead_plan.c).  When the node executes, it reads rows of its child ahead of
 * the one that it returns and has the requests of their calls in flight
 * together (ahead_node.c), but only for rows that the query certainly needs
 * (ahead_bound.c).
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
 * A call among the columns of the node's scan tuple.
 */
typedef struct HrflowAheadColumn
{
	const HrflowFunction *function;
	int			attno;			/* in the scan tuple, from 0 */
	int			nargs;
	ExprState **args;			/* over the columns of the child */
	NullableDatum *values;		/* of the arguments, of the row last read */
	ExprState  *whole;			/* the call itself, to be evaluated when its
								 * row is reached */
	bool		is_safe;		/* evaluating the arguments raises no error */
} HrflowAheadColumn;

/*
 * The requests of one call, which may be that of several rows.
 */
typedef struct HrflowAheadCall
{
	dlist_node	node;			/* in the state's calls */
	MemoryContext context;		/* of this struct, and of all that the call
								 * refers to */
	HrflowCall	call;
	const char *request;		/* URL of the first request */
	uint32		hash;			/* of its URL or body */
	int			nrows;			/* rows that refer to it */
	int64		first_row;		/* number of the first of these */
	Size		bytes;			/* counted in the state's */
} HrflowAheadCall;

/*
 * A row that was read and not returned yet.
 */
typedef struct HrflowAheadRow
{
	dlist_node	node;			/* in the state's rows */
	MinimalTuple tuple;			/* the child's columns */
	int64		number;			/* counts from 0 in a scan */
	HrflowAheadCall *calls[FLEXIBLE_ARRAY_MEMBER];	/* for each column; NULL:
													 * evaluate it when the
													 * row is reached */
} HrflowAheadRow;

/*
 * The executor's state of the node.
 */
typedef struct HrflowAheadState
{
	CustomScanState css;		/* first, so that the executor may cast */

	/* Fixed when the node is initialized. */
	int			nchild;			/* columns of the child, the first ones of the
								 * scan tuple */
	int			ncolumns;
	HrflowAheadColumn *columns;
	bool		needs_key;		/* one of the columns asks the API */
	ExprContext *args_context;	/* of the arguments of rows read ahead */
	TupleTableSlot *args_slot;	/* a scan tuple without the calls' values */
	TupleTableSlot *row_slot;	/* a row of the child's that was kept */
	MemoryContext context;		/* of rows and calls */
	bool		is_placed;		/* "ancestors" is known: the node is not part
								 * of a subplan */
	List	   *ancestors;		/* PlanStates above it, the topmost first */

	/* Of the execution. */
	dlist_node	live;			/* in the list of all such states */
	bool		is_live;		/* it is in that list */
	MemoryContextCallback on_reset;
	bool		is_bounded;		/* "count" holds, while ExecutorRun runs */
	uint64		count;			/* rows that ExecutorRun was asked for; 0: all */

	/* Of the scan. */
	const HrflowSettings *settings; /* NULL before the first request */
	HrflowTransport *transport; /* NULL when there is none */
	HrflowActivity *activity;	/* likewise */
	dlist_head	rows;			/* read and not returned, in their order */
	int			nrows;
	dlist_head	calls;			/* of these rows */
	int			nsent;			/* calls that await a reply */
	HrflowAheadRow *current;	/* the row returned last, or NULL */
	int64		next_number;	/* of the next row that is read */
	int64		nreturned;		/* rows returned in this scan */
	int64		stops_at;		/* no row after this one is read or asked for;
								 * PG_INT64_MAX: no such row */
	bool		child_ended;	/* the child has no further row */
	bool		has_ended;		/* ... and the node has said so */
	Size		bytes;			/* of rows, and of calls that are done */
	Size		largest;		/* bytes of the largest call so far */

	/* For EXPLAIN ANALYZE. */
	int64		nrequests;
	int			max_sent;
	int			max_rows;
} HrflowAheadState;

/* in ahead_node.c */
extern const CustomScanMethods hrflow_ahead_scan_methods;
extern const CustomExecMethods hrflow_ahead_exec_methods;

/* in ahead_bound.c */
extern void hrflow_ahead_install_executor(void);
extern void hrflow_ahead_add_live(HrflowAheadState *state);
extern void hrflow_ahead_remove_live(HrflowAheadState *state);
extern int	hrflow_ahead_rows_allowed(HrflowAheadState *state, int most);

#endif							/* HRFLOW_AHEAD_H */
