/*-------------------------------------------------------------------------
 *
 * activity.c
 *		Tracks what each backend is doing in our functions, for the view
 *		hrflow_embed_activity.
 *
 * A backend can be in several of our functions at once: a query whose calls
 * are issued ahead may call a PL/pgSQL function that runs a batch, and a
 * trigger that fires during a refresh may run one, too.  We show the activity
 * that began last, since the others are waiting for it; when it ends, the
 * previous one is shown again.  A cursor is not shown while the client is not
 * fetching from it.
 *
 * Each activity belongs to a memory context, and ends at the latest when the
 * context is reset.  After an error in a transaction block, the contexts of
 * PL/pgSQL and SPI are not reset until the client sends ROLLBACK, so
 * activities also end when the transaction is aborted, except those of
 * procedures that commit and roll back.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/activity.h"
#include "base/shared.h"
#include "catalog/pg_authid.h"
#include "compat.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(hrflow_embed_activity);

static const char *const wait_names[] = {
	[HRFLOW_FOR_NOTHING] = NULL,
	[HRFLOW_FOR_NETWORK] = "network",
	[HRFLOW_FOR_RATE] = "rate",
	[HRFLOW_FOR_RETRY] = "retry",
	[HRFLOW_FOR_MEMORY] = "memory",
	[HRFLOW_FOR_LOCK] = "lock"
};

/* This backend's activities, most recent first. */
static dlist_head activities = DLIST_STATIC_INIT(activities);

/* This backend's entry in shared memory; NULL if it has none. */
static HrflowActivitySlot *my_slot = NULL;

/*
 * ------------------------------------------------------------------------
 * Writing
 * ------------------------------------------------------------------------
 */

/*
 * Write an activity to this backend's entry in shared memory, or clear the
 * entry if "activity" is NULL.  Does not throw.
 */
static void
write_slot(const HrflowActivity *activity)
{
	volatile HrflowActivitySlot *slot = my_slot;

	if (slot == NULL || (activity == NULL && slot->pid == 0))
		return;
	slot->changes++;
	pg_write_barrier();
	slot->pid = activity != NULL ? MyProcPid : 0;
	if (activity != NULL)
		*unvolatize(HrflowActivityState *, &slot->state) = activity->state;
	pg_write_barrier();
	slot->changes++;
}

/*
 * before_shmem_exit callback: clear this backend's entry in shared memory.
 * Also forget the entry, because "activities" may still contain activities of
 * the current transaction, which is aborted later.
 */
static void
leave_slot(int code, Datum arg)
{
	write_slot(NULL);
	my_slot = NULL;
}

/*
 * On the first call, find this backend's entry in shared memory, if the state
 * is shared.  May throw.
 */
static void
take_slot(void)
{
	static bool is_taken = false;
	HrflowShared *shared = hrflow_shared_get();

	if (is_taken || !hrflow_shared_is_shared())
		return;
	before_shmem_exit(leave_slot, 0);
	is_taken = true;
	my_slot = &shared->activity[hrflow_compat_backend_number()];

	/*
	 * Make "changes" even: the previous owner of the entry may have been
	 * killed while it was writing.
	 */
	my_slot->changes += my_slot->changes % 2;
}

/*
 * Publish this backend's most recent activity that is not suspended; if there
 * is none, clear the backend's entry.  Does not throw.
 */
void
hrflow_activity_publish(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &activities)
	{
		HrflowActivity *activity = dlist_container(HrflowActivity, node, iter.cur);

		if (!activity->is_suspended)
		{
			write_slot(activity);
			return;
		}
	}
	write_slot(NULL);
}

/*
 * ------------------------------------------------------------------------
 * Activities
 * ------------------------------------------------------------------------
 */

static void
on_activity_reset(void *arg)
{
	HrflowActivity *activity = arg;

	if (!activity->has_ended)
		hrflow_activity_end(activity);
}

/*
 * Callback for the end of a transaction: if it is aborted, end all activities,
 * except those of procedures that commit and roll back.
 */
static void
end_failed_activities(XactEvent event, void *arg)
{
	dlist_mutable_iter iter;

	if (event != XACT_EVENT_ABORT)
		return;
	dlist_foreach_modify(iter, &activities)
	{
		HrflowActivity *activity = dlist_container(HrflowActivity, node, iter.cur);

		if (!activity->outlives_transactions)
			hrflow_activity_end(activity);
	}
}

/*
 * On the first call, register end_failed_activities().  May throw.
 */
static void
watch_transactions(void)
{
	static bool is_watching = false;

	if (!is_watching)
		RegisterXactCallback(end_failed_activities, NULL);
	is_watching = true;
}

/*
 * Begin an activity.  It is allocated in the current memory context, and ends
 * at the latest when the context is reset.  May throw.  "store" is the name of
 * the store being refreshed, or NULL.
 */
HrflowActivity *
hrflow_activity_begin(HrflowCaller caller, const char *store)
{
	HrflowActivity *activity = palloc0(sizeof(HrflowActivity));
	HrflowActivityState *state = &activity->state;

	take_slot();
	watch_transactions();
	state->caller = caller;
	state->role = GetOuterUserId();
	state->started_at = GetCurrentTimestamp();
	state->ntotal = -1;
	if (store != NULL)
		memcpy(state->store, store,
			   pg_mbcliplen(store, strlen(store), HRFLOW_SHOWN_STORE - 1));
	activity->on_reset.func = on_activity_reset;
	activity->on_reset.arg = activity;
	MemoryContextRegisterResetCallback(CurrentMemoryContext,
									   &activity->on_reset);
	dlist_push_head(&activities, &activity->node);
	hrflow_activity_publish();
	return activity;
}

/*
 * End an activity.  Does not throw.
 */
void
hrflow_activity_end(HrflowActivity *activity)
{
	Assert(!activity->has_ended);
	activity->has_ended = true;
	dlist_delete(&activity->node);
	hrflow_activity_publish();
}

/*
 * Hide an activity while the client is not fetching from its cursor, or show
 * it again.  Does not throw.
 */
void
hrflow_activity_suspend(HrflowActivity *activity, bool is_suspended)
{
	if (activity->is_suspended == is_suspended)
		return;
	activity->is_suspended = is_suspended;
	hrflow_activity_publish();
}

/*
 * Count a completed element.  Publish the counts at once, because the backend
 * may work for a long time before it waits and publishes them.  Does not
 * throw.
 */
void
hrflow_activity_count(HrflowActivity *activity, bool is_ok)
{
	activity->state.ndone++;
	activity->state.nok += is_ok;
	hrflow_activity_publish();
}

/*
 * Record why the backend is about to wait.  "resumes_at" is when the wait is
 * expected to end, according to hrflow_clock_now(), or HRFLOW_NEVER if
 * unknown.  Does not publish the activity, and does not throw.
 */
void
hrflow_activity_wait(HrflowActivity *activity, HrflowWaitReason reason,
					 int64 resumes_at)
{
	activity->state.waiting_for = reason;
	activity->state.resumes_at = 0;
	if (resumes_at != HRFLOW_NEVER)
		activity->state.resumes_at = GetCurrentTimestamp() +
			Max(resumes_at - hrflow_clock_now(), 0);
}

/*
 * Record and publish that the backend has stopped waiting.  Does not throw.
 */
void
hrflow_activity_go_on(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &activities)
	{
		hrflow_activity_wait(dlist_container(HrflowActivity, node, iter.cur),
							 HRFLOW_FOR_NOTHING, HRFLOW_NEVER);
	}
	hrflow_activity_publish();
}

/*
 * ------------------------------------------------------------------------
 * The view
 * ------------------------------------------------------------------------
 */

/*
 * Copy a backend's entry.  Returns false if the backend has no activity to
 * show.
 */
static bool
read_slot(volatile HrflowActivitySlot *slot, HrflowActivitySlot *copy)
{
	for (;;)
	{
		uint32		before = slot->changes;

		pg_read_barrier();
		*copy = *unvolatize(HrflowActivitySlot *, slot);
		pg_read_barrier();
		if (slot->changes == before && before % 2 == 0)
			return copy->pid != 0;
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Estimate when all elements will be complete, at the average speed so far.
 * Returns 0 if there is no estimate.
 */
static TimestampTz
estimate_end(const HrflowActivityState *state)
{
	TimestampTz now = GetCurrentTimestamp();
	double		remaining = state->ntotal - state->ndone;

	if (state->ntotal < 0 || state->ndone == 0 || remaining < 0)
		return 0;
	return now +
		(TimestampTz) ((now - state->started_at) * remaining / state->ndone);
}

static void
set_column(Datum *values, bool *nulls, int column, bool is_known, Datum value)
{
	nulls[column] = !is_known;
	values[column] = value;
}

static Datum
text_or_null(const char *value)
{
	return value == NULL ? (Datum) 0 : CStringGetTextDatum(value);
}

/* Number of columns of the view hrflow_embed_activity. */
#define NCOLUMNS 15

/*
 * Number of leading columns of the view that every role may see: pid and role.
 */
#define NPUBLIC_COLUMNS 2

static void
put_activity(ReturnSetInfo *rsinfo, const HrflowActivitySlot *slot)
{
	const HrflowActivityState *state = &slot->state;
	bool		is_allowed = has_privs_of_role(GetUserId(), state->role) ||
	has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
	TimestampTz eta = estimate_end(state);
	const char *reason = wait_names[state->waiting_for];
	const char *role = GetUserNameFromId(state->role, true);
	const char *store = state->store;
	NameData	role_name;
	Datum		values[NCOLUMNS];
	bool		nulls[NCOLUMNS];
	int			n = 0;

	/*
	 * The store's name is in the encoding of the other backend's database, so
	 * it may be invalid in ours.
	 */
	if (*store == '\0' || !pg_verifymbstr(store, strlen(store), true))
		store = NULL;
	namestrcpy(&role_name, role != NULL ? role : "");

	set_column(values, nulls, n++, true, Int32GetDatum(slot->pid));
	set_column(values, nulls, n++, role != NULL, NameGetDatum(&role_name));
	Assert(n == NPUBLIC_COLUMNS);
	set_column(values, nulls, n++, true,
			   CStringGetTextDatum(hrflow_caller_name(state->caller)));
	set_column(values, nulls, n++, store != NULL, text_or_null(store));
	set_column(values, nulls, n++, true,
			   TimestampTzGetDatum(state->started_at));
	set_column(values, nulls, n++, state->ntotal >= 0,
			   Int64GetDatum(state->ntotal));
	set_column(values, nulls, n++, true, Int64GetDatum(state->ndone));
	set_column(values, nulls, n++, true, Int64GetDatum(state->nok));
	set_column(values, nulls, n++, true,
			   Int64GetDatum(state->ndone - state->nok));
	set_column(values, nulls, n++, true, Int64GetDatum(state->nrequests));
	set_column(values, nulls, n++, true, Int64GetDatum(state->nretries));
	set_column(values, nulls, n++, true, Int32GetDatum(state->nin_flight));
	set_column(values, nulls, n++, reason != NULL, text_or_null(reason));
	set_column(values, nulls, n++, state->resumes_at != 0,
			   TimestampTzGetDatum(state->resumes_at));
	set_column(values, nulls, n++, eta != 0, TimestampTzGetDatum(eta));
	Assert(n == NCOLUMNS);

	for (int i = NPUBLIC_COLUMNS; i < NCOLUMNS && !is_allowed; i++)
		nulls[i] = true;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * hrflow_embed_activity() RETURNS TABLE (...)
 *
 * Returns the rows of the view hrflow_embed_activity.
 */
Datum
hrflow_embed_activity(PG_FUNCTION_ARGS)
{
	static bool was_told = false;
	HrflowShared *shared = hrflow_shared_get();

	InitMaterializedSRF(fcinfo, 0);
	if (!hrflow_shared_is_shared())
	{
		if (!was_told)
			ereport(NOTICE,
					(errmsg("the activity of other sessions is not visible"),
					 errhint("Add hrflow_embed to \"shared_preload_libraries\".")));
		was_told = true;
		return (Datum) 0;
	}
	for (int i = 0; i < MaxBackends; i++)
	{
		HrflowActivitySlot copy;

		if (read_slot(&shared->activity[i], &copy))
			put_activity((ReturnSetInfo *) fcinfo->resultinfo, &copy);
	}
	return (Datum) 0;
}
