/*-------------------------------------------------------------------------
 *
 * ahead_node.c
 *		Executes the plan node of the read-ahead, HrflowReadAhead.
 *
 * The node keeps a queue of rows read from its child.  When it reads a row, it
 * evaluates the arguments of the row's calls and submits their requests to its
 * transport.  It returns the row after the replies to these calls have
 * arrived.  Rows are returned in the order of the child, and an error of a
 * call is raised only when its row would be returned.
 *
 * Apart from the calls, the node's target list is computed by its projection
 * when the row is returned.  A call that cannot be issued ahead is also
 * evaluated then, as it would be without read-ahead.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ahead.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/ruleutils.h"

/*
 * Maximum number of rows to read ahead for each request that may be in flight.
 * The factor allows requests for later rows to be sent while the first row
 * waits for a slow reply.
 */
#define ROWS_PER_REQUEST 4

/*
 * Estimated memory use of a call while no call is complete yet, in bytes: the
 * size of a vector of 2,048 elements.
 */
#define DEFAULT_CALL_SIZE 8192

/*
 * ------------------------------------------------------------------------
 * Calls
 * ------------------------------------------------------------------------
 */

/*
 * Stop reading ahead at the given row, because one of its calls has failed or
 * may fail: the query might not return the rows after it.  If such rows have
 * been read, send no more requests to the API; calls whose requests were not
 * sent are evaluated when their rows are returned.
 */
static void
stop_at(HrflowAheadState *state, int64 row)
{
	state->stops_at = Min(state->stops_at, row);
	if (state->next_number > row + 1)
		hrflow_transport_stop(state->transport, false);
}

/*
 * Is it known that this call will raise an error?  If hrflow_embed.on_missing
 * is "null", a missing profile, job or vector does not cause an error.
 */
static bool
has_failed(const HrflowCall *call)
{
	if (call->state == HRFLOW_CALL_DONE && call->settings->missing_is_null &&
		(call->result.status == HRFLOW_NOT_FOUND ||
		 call->result.status == HRFLOW_NO_VECTOR))
		return false;
	return call->state == HRFLOW_CALL_INVALID ||
		(call->state == HRFLOW_CALL_DONE && call->result.status != HRFLOW_OK);
}

static void
submit_call(HrflowAheadState *state, HrflowAheadCall *ahead)
{
	if (state->transport == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(state->context);

		state->activity = hrflow_activity_begin(ahead->call.function->caller,
												NULL);
		state->transport = hrflow_transport_begin(state->settings,
												  state->activity, 0);
		MemoryContextSwitchTo(old);
	}
	state->activity->state.caller = ahead->call.function->caller;
	hrflow_call_submit(&ahead->call, state->transport);
	state->nrequests++;
	state->nsent++;
}

static void
receive_reply(HrflowAheadState *state, HrflowReply *reply)
{
	HrflowAheadCall *ahead = (HrflowAheadCall *)
	((char *) reply->tag - offsetof(HrflowAheadCall, call));
	bool		gave_up = reply->stopped;
	MemoryContext old = MemoryContextSwitchTo(ahead->context);

	state->max_sent = Max(state->max_sent,
						  hrflow_transport_most_in_flight(state->transport));
	hrflow_call_take_reply(&ahead->call, state->transport, reply);
	MemoryContextSwitchTo(old);

	if (ahead->call.state == HRFLOW_CALL_SENT)
	{
		state->nrequests++;		/* the request is retried */
		return;
	}
	state->nsent--;
	if (ahead->call.state == HRFLOW_CALL_READY)
	{
		if (!gave_up)
			submit_call(state, ahead);
		return;
	}
	hrflow_activity_count(state->activity,
						  ahead->call.state == HRFLOW_CALL_DONE &&
						  ahead->call.result.status == HRFLOW_OK);
	state->bytes -= ahead->bytes;
	ahead->bytes = MemoryContextMemAllocated(ahead->context, true);
	state->bytes += ahead->bytes;
	state->largest = Max(state->largest, ahead->bytes);
	if (has_failed(&ahead->call))
		stop_at(state, ahead->first_row);
}

/*
 * Process the replies that have arrived, and send requests that can be sent
 * now, without waiting.  This is done before each row is returned, because the
 * query may spend a long time on a row.
 */
static void
take_replies(HrflowAheadState *state)
{
	HrflowReply *reply;

	while (state->nsent > 0 &&
		   (reply = hrflow_transport_poll(state->transport)) != NULL)
		receive_reply(state, reply);
}

static uint32
hash_request(const HrflowCall *call)
{
	const char *sent = call->body != NULL ? call->body : call->url;

	return hash_bytes((const unsigned char *) sent, strlen(sent));
}

/*
 * Release a row's reference to a call, and free the call if this was the last
 * reference.
 */
static void
drop_call(HrflowAheadState *state, HrflowAheadCall *ahead)
{
	if (ahead == NULL || --ahead->nrows > 0)
		return;
	Assert(ahead->call.state != HRFLOW_CALL_SENT);
	state->bytes -= ahead->bytes;
	dlist_delete(&ahead->node);
	MemoryContextDelete(ahead->context);
}

/*
 * ------------------------------------------------------------------------
 * Making calls
 * ------------------------------------------------------------------------
 */

/*
 * Get the settings for the scan, unless this has been done before.  Getting
 * them may raise an error, for example if there is no key, which must not
 * happen before the executor needs the row.  Therefore, if the row is being
 * read ahead, return false without getting them.  Also return false if other
 * calls of the node need a key but this one does not.
 */
static bool
take_settings(HrflowAheadState *state, const HrflowAheadRow *row,
			  HrflowCall *call)
{
	ErrorContextCallback context;
	MemoryContext old;

	if (state->settings != NULL)
		return true;
	if (state->nrows > 0 || state->is_asked ||
		call->function->needs_key != state->needs_key)
		return false;

	hrflow_context_push(&context, hrflow_call_add_context, call);
	old = MemoryContextSwitchTo(state->context);
	state->settings = hrflow_settings_get(state->needs_key);
	MemoryContextSwitchTo(old);
	hrflow_context_pop(&context);
	return true;
}

/*
 * Make the call of a column for the row in args_slot, and submit its request,
 * unless there is no request or the query might not return the row.  If an
 * equal call exists, return that instead.  Returns NULL if the call cannot be
 * made before the row is returned.
 */
static HrflowAheadCall *
make_call(HrflowAheadState *state, HrflowAheadRow *row,
		  HrflowAheadColumn *column)
{
	MemoryContext context;
	MemoryContext old;
	HrflowAheadCall *ahead;
	HrflowAheadCall *equal;

	if (column->function == NULL)
		return NULL;
	if (!hrflow_ahead_evaluate_arguments(state, column))
	{
		stop_at(state, row->number);
		return NULL;
	}

	context = AllocSetContextCreate(state->context, "hrflow_embed call",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	ahead = palloc0(sizeof(HrflowAheadCall));
	ahead->context = context;
	ahead->first_row = row->number;
	ahead->nrows = 1;
	hrflow_call_read(&ahead->call, column->function, column->values);
	if (ahead->call.state == HRFLOW_CALL_READ)
	{
		if (!take_settings(state, row, &ahead->call))
		{
			MemoryContextSwitchTo(old);
			MemoryContextDelete(context);
			return NULL;
		}
		hrflow_call_prepare(&ahead->call, state->settings);
	}
	MemoryContextSwitchTo(old);

	if (ahead->call.state == HRFLOW_CALL_READY)
	{
		ahead->hash = hash_request(&ahead->call);
		ahead->request = ahead->call.url;
		equal = hrflow_ahead_find_equal(state, ahead);
		if (equal != NULL)
		{
			MemoryContextDelete(context);
			equal->nrows++;
			return equal;
		}
	}
	dlist_push_tail(&state->calls, &ahead->node);

	/* The body can be large even if the row is small, because of TOAST. */
	if (ahead->call.body != NULL)
		ahead->bytes = MemoryContextMemAllocated(context, true);
	state->bytes += ahead->bytes;

	if (has_failed(&ahead->call))
		stop_at(state, row->number);
	else if (ahead->call.state == HRFLOW_CALL_READY &&
			 row->number <= state->stops_at)
		submit_call(state, ahead);
	return ahead;
}

/*
 * ------------------------------------------------------------------------
 * Rows
 * ------------------------------------------------------------------------
 */

/*
 * Store a row of the child in a scan tuple, with NULLs in the columns of the
 * calls.
 */
static void
store_scan_tuple(HrflowAheadState *state, TupleTableSlot *scan,
				 TupleTableSlot *child)
{
	slot_getallattrs(child);
	ExecClearTuple(scan);
	memcpy(scan->tts_values, child->tts_values,
		   state->nchild * sizeof(Datum));
	memcpy(scan->tts_isnull, child->tts_isnull, state->nchild * sizeof(bool));
	for (int i = 0; i < state->ncolumns && !state->is_lateral; i++)
	{
		scan->tts_values[state->nchild + i] = (Datum) 0;
		scan->tts_isnull[state->nchild + i] = true;
	}
	ExecStoreVirtualTuple(scan);
}

/*
 * Read a row of the child, and issue its calls.
 */
static void
read_row(HrflowAheadState *state)
{
	TupleTableSlot *slot = ExecProcNode(linitial(state->css.custom_ps));
	HrflowAheadRow *row;
	MemoryContext old;

	if (TupIsNull(slot))
	{
		state->child_ended = true;
		return;
	}

	old = MemoryContextSwitchTo(state->context);
	row = palloc0(offsetof(HrflowAheadRow, calls) +
				  state->ncolumns * sizeof(HrflowAheadCall *));
	row->tuple = ExecCopySlotMinimalTuple(slot);
	row->number = state->next_number++;
	state->bytes += row->tuple->t_len;
	MemoryContextSwitchTo(old);

	ResetExprContext(state->args_context);
	store_scan_tuple(state, state->args_slot, slot);
	state->args_context->ecxt_scantuple = state->args_slot;
	for (int i = 0; i < state->ncolumns; i++)
		row->calls[i] = make_call(state, row, &state->columns[i]);

	dlist_push_tail(&state->rows, &row->node);
	state->nrows++;
	state->max_rows = Max(state->max_rows, state->nrows);
}

static void
drop_row(HrflowAheadState *state, HrflowAheadRow *row)
{
	for (int i = 0; i < state->ncolumns; i++)
		drop_call(state, row->calls[i]);
	state->bytes -= row->tuple->t_len;
	pfree(row->tuple);
	pfree(row);
}

/*
 * Does work_mem allow reading one more row ahead?  The first row is always
 * allowed.  Compute in 64 bits, because the estimated total size of all calls
 * can exceed the range of a 32-bit Size.
 */
static bool
has_memory(const HrflowAheadState *state)
{
	uint64		each = state->largest > 0 ? state->largest : DEFAULT_CALL_SIZE;

	return state->nrows == 0 ||
		state->bytes + (state->nsent + 1) * each <= (uint64) work_mem * 1024;
}

static bool next_row_may_fail(HrflowAheadState *state);

/*
 * Return whether the next row may be read now.  A row that the executor needs
 * may always be read.  Any other row must not be read if a call of a
 * read-ahead node below could raise an error, because the query might not need
 * the row, and because the rows before it have not been returned.
 */
static bool
may_read_row(HrflowAheadState *state)
{
	if (state->nrows == 0 && !state->is_asked)
		return true;
	return state->asked == NULL || !next_row_may_fail(state->asked);
}

/*
 * Read as many rows as the query needs and the limits allow.
 */
static void
read_rows(HrflowAheadState *state)
{
	int			most = 1;
	int			allowed;

	if (state->nrows == 0)
		state->stops_at = PG_INT64_MAX;
	do
	{
		if (state->transport != NULL)
			most = ROWS_PER_REQUEST * hrflow_transport_width(state->transport);
		allowed = hrflow_ahead_rows_allowed(state, most);
		if (state->child_ended || state->nrows >= allowed ||
			state->next_number > state->stops_at || !has_memory(state) ||
			!may_read_row(state))
			break;
		read_row(state);
	} while (true);
}

/*
 * End the transport, which abandons the requests in flight, and discard all
 * rows and the settings.
 */
static void
forget_rows(HrflowAheadState *state)
{
	hrflow_ahead_abandon(state);
	state->settings = NULL;
	dlist_init(&state->rows);
	dlist_init(&state->calls);
	state->nrows = 0;
	state->bytes = 0;
	state->current = NULL;
	MemoryContextReset(state->context);
}

/*
 * ------------------------------------------------------------------------
 * Returning rows
 * ------------------------------------------------------------------------
 */

static TupleTableSlot *
project_row(HrflowAheadState *state)
{
	ScanState  *ss = &state->css.ss;

	if (ss->ps.ps_ProjInfo == NULL)
		return ss->ss_ScanTupleSlot;
	return ExecProject(ss->ps.ps_ProjInfo);
}

/*
 * Compute the node's output for a row of the child.  "calls" contains the call
 * that was made ahead for each column.  If "calls" or the call is NULL, or the
 * request of the call was not sent or was abandoned, evaluate the column's
 * expression instead.  Raises the error of a call that has failed.
 */
static TupleTableSlot *
return_row(HrflowAheadState *state, TupleTableSlot *child,
		   HrflowAheadCall **calls)
{
	ScanState  *ss = &state->css.ss;
	TupleTableSlot *scan = ss->ss_ScanTupleSlot;
	ExprContext *econtext = ss->ps.ps_ExprContext;

	ResetExprContext(econtext);
	store_scan_tuple(state, scan, child);
	econtext->ecxt_scantuple = scan;
	for (int i = 0; i < state->ncolumns && !state->is_lateral; i++)
	{
		HrflowAheadColumn *column = &state->columns[i];
		HrflowAheadCall *ahead = calls == NULL ? NULL : calls[i];
		Datum		value;
		bool		isnull;

		if (ahead != NULL && ahead->call.state != HRFLOW_CALL_READY)
			value = hrflow_call_value(&ahead->call, &isnull);
		else
			value = ExecEvalExprSwitchContext(column->whole, econtext, &isnull);
		scan->tts_values[column->attno] = value;
		scan->tts_isnull[column->attno] = isnull;
	}
	return project_row(state);
}

/*
 * Return the child's next row in the scan direction, or NULL if there is none,
 * without reading ahead.
 */
static TupleTableSlot *
return_row_alone(HrflowAheadState *state)
{
	TupleTableSlot *slot = ExecProcNode(linitial(state->css.custom_ps));

	if (TupIsNull(slot))
		return NULL;
	return return_row(state, slot, NULL);
}

/*
 * Return the previous row.  The child may be some rows ahead of the row we
 * returned last, so first move it back to that row.
 */
static TupleTableSlot *
return_previous_row(HrflowAheadState *state)
{
	int			nsteps = state->nrows;

	if (state->child_ended && !state->has_ended)
		nsteps++;
	for (; nsteps > 0; nsteps--)
		(void) ExecProcNode(linitial(state->css.custom_ps));
	forget_rows(state);
	state->child_ended = false;
	state->has_ended = false;
	return return_row_alone(state);
}

/*
 * Wait for the replies to a call.  In the meantime, read more rows if the
 * number of rows that may be read ahead has grown.
 */
static void
complete_call(HrflowAheadState *state, HrflowAheadCall *ahead)
{
	ErrorContextCallback context;

	while (ahead->call.state == HRFLOW_CALL_SENT)
	{
		hrflow_context_push(&context, hrflow_call_add_context, &ahead->call);
		receive_reply(state, hrflow_transport_next(state->transport));
		hrflow_context_pop(&context);
		if (hrflow_settings_read_ahead())
			read_rows(state);
	}
}

/*
 * Wait for the replies to the calls of the first row that was read ahead, and
 * return the row.
 */
static HrflowAheadRow *
complete_first_row(HrflowAheadState *state)
{
	HrflowAheadRow *row = dlist_container(HrflowAheadRow, node,
										  dlist_head_node(&state->rows));

	for (int i = 0; i < state->ncolumns; i++)
	{
		if (row->calls[i] != NULL)
			complete_call(state, row->calls[i]);
	}
	return row;
}

/*
 * Could a call raise an error when the node returns its next row?  To find
 * out, read this row and complete its calls.  Return true also if the row
 * cannot be read, or one of its calls cannot be evaluated, before the row is
 * needed.
 */
static bool
next_row_may_fail(HrflowAheadState *state)
{
	HrflowAheadRow *row;
	bool		may_fail = false;

	if (state->css.ss.ps.chgParam != NULL)
		return true;

	state->is_asked = true;
	take_replies(state);
	if (state->nrows > 0 || state->settings != NULL)
		read_rows(state);
	if (state->nrows > 0)
	{
		row = complete_first_row(state);
		for (int i = 0; i < state->ncolumns; i++)
			may_fail |= row->calls[i] == NULL ||
				row->calls[i]->call.state == HRFLOW_CALL_READY ||
				has_failed(&row->calls[i]->call);
	}
	else
		may_fail = !state->child_ended;
	state->is_asked = false;
	return may_fail;
}

/*
 * Return the first row that was read ahead, after the replies to its calls
 * have arrived.
 */
static TupleTableSlot *
return_first_row(HrflowAheadState *state)
{
	HrflowAheadRow *row = complete_first_row(state);

	dlist_delete(&row->node);
	state->nrows--;
	state->nreturned++;
	state->current = row;
	ExecForceStoreMinimalTuple(row->tuple, state->row_slot, false);
	return return_row(state, state->row_slot, row->calls);
}

static TupleTableSlot *
exec_read_ahead(CustomScanState *css)
{
	HrflowAheadState *state = (HrflowAheadState *) css;
	EState	   *estate = css->ss.ps.state;

	CHECK_FOR_INTERRUPTS();

	/*
	 * EvalPlanQual() rechecks a single row that was concurrently changed.  It
	 * uses separate plan states, in which nothing is read ahead.
	 */
	if (estate->es_epq_active != NULL)
		return return_row_alone(state);
	if (!state->is_limit_passed)
		hrflow_ahead_pass_limit(state);
	if (!ScanDirectionIsForward(estate->es_direction))
		return return_previous_row(state);

	if (state->current != NULL)
		drop_row(state, state->current);
	state->current = NULL;

	take_replies(state);
	if (hrflow_settings_read_ahead())
		read_rows(state);
	if (state->nrows > 0)
		return return_first_row(state);
	if (!state->child_ended && !hrflow_settings_read_ahead())
	{
		TupleTableSlot *slot = return_row_alone(state);

		state->child_ended = slot == NULL;
		state->has_ended = slot == NULL;
		return slot;
	}
	state->has_ended = true;
	return NULL;
}

/*
 * ------------------------------------------------------------------------
 * Other executor methods of the node
 * ------------------------------------------------------------------------
 */

/*
 * Initialize the HrflowAheadColumn of a call.  The Vars in "args" refer to the
 * scan tuple.  So do the Vars in "call" for a function scan; for a column of
 * the scan tuple, they are those of the query.
 *
 * If the function was altered after the query was planned, our C function may
 * no longer be called directly.  Then column->function is NULL.  This can
 * happen in a long UPDATE, because EvalPlanQual() initializes its plan states
 * when it first finds a row that was changed concurrently.
 *
 * ExecInitExpr() checks that the user may execute the function, as it does for
 * a call in a target list.  A function scan checks this itself.
 */
static void
init_column(HrflowAheadState *state, HrflowAheadColumn *column,
			FuncExpr *call, List *args, int attno)
{
	PlanState  *ps = &state->css.ss.ps;
	FmgrInfo	finfo;

	fmgr_info(call->funcid, &finfo);
	column->function = hrflow_single_find(finfo.fn_addr);
	column->call = call;
	column->attno = attno;
	hrflow_ahead_init_arguments(column, args, ps);
	if (!state->is_lateral)
	{
		FuncExpr   *whole = copyObject(call);

		whole->args = args;
		column->whole = ExecInitExpr((Expr *) whole, ps);
	}
	if (column->function != NULL)
		state->needs_key |= column->function->needs_key;
}

static void
begin_read_ahead(CustomScanState *css, EState *estate, int eflags)
{
	HrflowAheadState *state = (HrflowAheadState *) css;
	CustomScan *scan = (CustomScan *) css->ss.ps.plan;
	PlanState  *child = ExecInitNode(linitial(scan->custom_plans), estate,
									 eflags);
	TupleDesc	scan_desc = css->ss.ss_ScanTupleSlot->tts_tupleDescriptor;
	TupleDesc	child_desc = ExecGetResultType(child);

	css->custom_ps = list_make1(child);
	state->nchild = child_desc->natts;
	state->ncolumns = list_length(scan->custom_exprs);
	state->columns = palloc0(state->ncolumns * sizeof(HrflowAheadColumn));
	state->is_lateral = scan->custom_private != NIL;
	if (state->is_lateral)
	{
		FuncExpr   *call = copyObject(linitial(scan->custom_private));

		call->args = linitial(scan->custom_exprs);
		init_column(state, &state->columns[0], call, call->args, -1);
	}
	for (int i = 0; i < state->ncolumns && !state->is_lateral; i++)
	{
		TargetEntry *entry = list_nth(scan->custom_scan_tlist,
									  state->nchild + i);

		init_column(state, &state->columns[i], (FuncExpr *) entry->expr,
					list_nth(scan->custom_exprs, i), state->nchild + i);
	}
	state->args_context = CreateExprContext(estate);
	state->args_slot = ExecInitExtraTupleSlot(estate, scan_desc,
											  &TTSOpsVirtual);
	state->row_slot = ExecInitExtraTupleSlot(estate, child_desc,
											 &TTSOpsMinimalTuple);
	state->context = AllocSetContextCreate(estate->es_query_cxt,
										   "hrflow_embed read-ahead",
										   ALLOCSET_DEFAULT_SIZES);
	state->is_risky = true;
	state->stops_at = PG_INT64_MAX;
	dlist_init(&state->rows);
	dlist_init(&state->calls);
	if ((eflags & EXEC_FLAG_EXPLAIN_ONLY) == 0)
		hrflow_ahead_add_live(state);
}

static void
end_read_ahead(CustomScanState *css)
{
	HrflowAheadState *state = (HrflowAheadState *) css;

	forget_rows(state);
	hrflow_ahead_remove_live(state);
	ExecEndNode(linitial(css->custom_ps));
}

static void
rescan_read_ahead(CustomScanState *css)
{
	HrflowAheadState *state = (HrflowAheadState *) css;
	PlanState  *child = linitial(css->custom_ps);

	forget_rows(state);
	state->child_ended = false;
	state->has_ended = false;
	state->nreturned = 0;
	state->next_number = 0;
	state->stops_at = PG_INT64_MAX;

	hrflow_ahead_pass_limit(state);

	/*
	 * ExecReScan() does not pass changed parameters on to custom_ps.
	 */
	if (css->ss.ps.chgParam != NULL)
		UpdateChangedParamSet(child, css->ss.ps.chgParam);
	if (child->chgParam == NULL)
		ExecReScan(child);
}

static void
explain_read_ahead(CustomScanState *css, List *ancestors, ExplainState *es)
{
	HrflowAheadState *state = (HrflowAheadState *) css;
	List	   *context = set_deparse_context_plan(es->deparse_cxt,
												   css->ss.ps.plan, ancestors);
	bool		prefix = list_length(es->rtable) > 1 || es->verbose;
	List	   *calls = NIL;

	for (int i = 0; i < state->ncolumns; i++)
		calls = lappend(calls,
						deparse_expression((Node *) state->columns[i].call,
										   context, prefix, false));
	ExplainPropertyList("Calls", calls, es);
	if (!es->analyze)
		return;
	ExplainPropertyInteger("Requests", NULL, state->nrequests, es);
	ExplainPropertyInteger("Maximum in Flight", NULL, state->max_sent, es);
	ExplainPropertyInteger("Maximum Rows Ahead", NULL, state->max_rows, es);
}

const CustomExecMethods hrflow_ahead_exec_methods = {
	.CustomName = HRFLOW_AHEAD_NAME,
	.BeginCustomScan = begin_read_ahead,
	.ExecCustomScan = exec_read_ahead,
	.EndCustomScan = end_read_ahead,
	.ReScanCustomScan = rescan_read_ahead,
	.ExplainCustomScan = explain_read_ahead
};

static Node *
create_read_ahead_state(CustomScan *scan)
{
	HrflowAheadState *state = (HrflowAheadState *)
	newNode(sizeof(HrflowAheadState), T_CustomScanState);

	state->css.methods = &hrflow_ahead_exec_methods;
	return (Node *) state;
}

const CustomScanMethods hrflow_ahead_scan_methods = {
	.CustomName = HRFLOW_AHEAD_NAME,
	.CreateCustomScanState = create_read_ahead_state
};
