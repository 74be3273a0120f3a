/*-------------------------------------------------------------------------
 *
 * ahead_live.c
 *		Lists the read-ahead nodes that are being executed in this backend, and
 *		passes the results of their calls to function scans.
 *
 * A set-returning function in FROM is executed by a function scan.  If its
 * arguments come from other tables (LATERAL), the function scan is the inner
 * side of a nested loop, and a read-ahead node on the outer side may issue the
 * calls ahead of their rows.  When the function is then executed for a row, it
 * takes the result of the call with hrflow_ahead_take().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ahead.h"

/*
 * Read-ahead nodes that have been initialized to be executed, and not ended.
 */
dlist_head	hrflow_ahead_live = DLIST_STATIC_INIT(hrflow_ahead_live);

void
hrflow_ahead_remove_live(HrflowAheadState *state)
{
	if (state->is_live)
		dlist_delete(&state->live);
	state->is_live = false;
}

static void
forget_state(void *arg)
{
	hrflow_ahead_remove_live(arg);
}

/*
 * Add a state to hrflow_ahead_live.  The executor does not call the node's end
 * method after an error, so register a reset callback on the per-query memory
 * context to remove the state from the list.
 */
void
hrflow_ahead_add_live(HrflowAheadState *state)
{
	dlist_push_tail(&hrflow_ahead_live, &state->live);
	state->is_live = true;
	state->on_reset.func = forget_state;
	state->on_reset.arg = state;
	MemoryContextRegisterResetCallback(state->css.ss.ps.state->es_query_cxt,
									   &state->on_reset);
}

/*
 * End the transport of a node, if it has one, which abandons its requests.
 * Calls that have no final reply are evaluated if their rows are returned
 * after all.  Does not throw.
 */
void
hrflow_ahead_abandon(HrflowAheadState *state)
{
	dlist_iter	iter;

	if (state->transport != NULL)
	{
		state->max_sent = Max(state->max_sent,
							  hrflow_transport_most_in_flight(state->transport));
		hrflow_transport_end(state->transport);
	}
	state->transport = NULL;
	if (state->activity != NULL)
		hrflow_activity_end(state->activity);
	state->activity = NULL;
	state->nsent = 0;
	dlist_foreach(iter, &state->calls)
	{
		HrflowAheadCall *ahead = dlist_container(HrflowAheadCall, node, iter.cur);

		if (ahead->call.state == HRFLOW_CALL_SENT)
			ahead->call.state = HRFLOW_CALL_READY;
	}
}

/*
 * Do two calls make the same request?  "first_url" is the URL of the first
 * request of "b", because b->url may already be the link that the API
 * returned.
 */
static bool
equals_call(const HrflowCall *a, const HrflowCall *b,
			const char *first_url)
{
	return a->function == b->function &&
		(a->body != NULL ? strcmp(a->body, b->body) :
		 strcmp(a->url, first_url)) == 0;
}

/*
 * Find a call of a node that makes the same request as "wanted".  Returns NULL
 * if there is none.
 */
HrflowAheadCall *
hrflow_ahead_find_equal(HrflowAheadState *state, const HrflowAheadCall *wanted)
{
	dlist_iter	iter;

	dlist_foreach(iter, &state->calls)
	{
		HrflowAheadCall *other = dlist_container(HrflowAheadCall, node, iter.cur);

		if (other->request != NULL && other->hash == wanted->hash &&
			equals_call(&wanted->call, &other->call, other->request))
			return other;
	}
	return NULL;
}

/*
 * Look for the result of "call", which is ready to be submitted.  If an equal
 * call was issued ahead for the current outer row and is complete, copy it to
 * *call and return true; otherwise return false.  The copy refers to memory
 * that is valid until the nested loop reads its next outer row.
 */
bool
hrflow_ahead_take(EState *estate, HrflowCall *call)
{
	dlist_iter	iter;

	dlist_foreach(iter, &hrflow_ahead_live)
	{
		HrflowAheadState *state = dlist_container(HrflowAheadState, live, iter.cur);
		HrflowAheadCall *ahead;

		if (!state->is_lateral || state->css.ss.ps.state != estate ||
			state->current == NULL)
			continue;
		ahead = state->current->calls[0];
		if (ahead != NULL && ahead->call.state == HRFLOW_CALL_DONE &&
			equals_call(call, &ahead->call, ahead->request))
		{
			*call = ahead->call;
			return true;
		}
	}
	return false;
}
