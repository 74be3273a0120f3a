/*-------------------------------------------------------------------------
 *
 * ahead_live.c
 *		The read-ahead nodes that are being executed in this backend, and the
 *		calls that function scans take from them.
 *
 * The call of a set-returning function in FROM is executed by a function scan.
 * If its arguments come from other tables (LATERAL), that scan is the inner
 * side of a nested loop, and a read-ahead node on the outer side issues the
 * calls of the rows ahead.  When the scan executes the function for a row, the
 * function finds the answer here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ahead.h"

/* All states that have been initialized but not ended. */
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
 * Add a state to the list.  After an error the executor does not end its
 * nodes, so a reset callback on the memory of the query removes it.
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
 * Do two calls make the same request?  "first_url" is the URL of the first
 * request of "b"; while the link of "b" is fetched, b->url is the link.
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
 * Find a call of a node that makes the same request, or return NULL.
 */
HrflowAheadCall *
hrflow_ahead_find_equal(HrflowAheadState *state, const HrflowAheadCall *wanted)
{
	dlist_iter	iter;

	dlist_foreach(iter, &state->calls)
	{
		HrflowAheadCall *other = dlist_container(HrflowAheadCall, node, iter.cur);

		if (other->hash == wanted->hash &&
			equals_call(&wanted->call, &other->call, other->request))
			return other;
	}
	return NULL;
}

/*
 * If the answer to a call, which is ready to be submitted, has been read ahead
 * for the current row of the query, set *call to the completed call.  Its
 * memory is valid until the function scan is executed for the next row.
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
