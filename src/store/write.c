/*-------------------------------------------------------------------------
 *
 * write.c
 *		Writes fetched vectors, and the states of their profiles.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "storage/lmgr.h"
#include "store/refresh.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

/*
 * Maximum time for which to retry writing a profile whose row or vectors are
 * locked by another session, in units of hrflow_clock_now().
 */
#define MAX_LOCKED_TIME (60 * HRFLOW_SEC)

/*
 * Time after which a pass over the profiles writes no further profile, and
 * leaves the rest to a later transaction, in milliseconds.
 */
#define MAX_WRITE_TIME 1000

/*
 * MAX_WRITE_TIME after an error or at the end of the session; short, so that a
 * timeout loses little.
 */
#define LAST_WRITE_TIME 250

/* Stop writing profiles one by one after this many were found locked. */
#define MAX_SINGLE_WAITS 25

/*
 * Statement that writes a vector, but only if it differs from the stored
 * vector.  $1 and $2 are the key of the profile.  $3 to $6 are the section,
 * the item, the vector and the current time.
 */
static const char insert_vector_sql[] =
"INSERT INTO %V AS v"
" (source_id, %I, section, item, vector, fetched_at)"
" SELECT $1, $2, $3, $4, $5::%T, $6"
" WHERE NOT EXISTS (SELECT FROM %V AS o"
" WHERE o.source_id = $1 AND o.%I = $2"
" AND o.section = $3 AND o.item = $4"
" AND o.vector::real[] = $5::%T::real[])"
" ON CONFLICT (source_id, %I, section, item)"
" DO UPDATE SET vector = excluded.vector,"
" fetched_at = excluded.fetched_at";

static Oid	insert_types[] = {TEXTOID, TEXTOID, TEXTOID, INT4OID,
FLOAT4ARRAYOID, TIMESTAMPTZOID};

/*
 * Were all requests for a profile completed without a failure?
 */
bool
hrflow_write_is_complete(const HrflowProfile *profile)
{
	return !profile->unasked && profile->status == HRFLOW_OK;
}

/* Argument of write_profiles(). */
typedef struct Writing
{
	HrflowRun  *run;
	const HrflowStore *store;
	SPIPlanPtr	insert;
	SPIPlanPtr	erase;
	List	   *profiles;
	HrflowProfile *profile;		/* profile that is being written */
	HrflowVector *vector;		/* vector that is being written, or NULL */
	TimestampTz now;			/* value of fetched_at for new vectors */
	bool		with_states;	/* write the states together with the vectors? */
	bool		has_vectors;	/* have the vectors been written? */
	int64		until;			/* time, as of hrflow_clock_now(), after which
								 * the pass must not begin to write another
								 * profile */
	int			nwaits;			/* number of profiles that could not be
								 * written one by one, because of locks */
} Writing;

/*
 * Is a profile locked by another session, or are its vectors?
 */
bool
hrflow_write_is_locked(const HrflowProfile *profile)
{
	return profile->is_locked || profile->is_stuck;
}

/*
 * Were vectors fetched for a profile, rather than copied from the store?
 */
bool
hrflow_write_is_paid(const HrflowProfile *profile)
{
	return profile->vectors != NIL && profile->asked_at != 0;
}

/*
 * Has the table rejected all fetched vectors of a profile?
 */
static bool
is_denied(const HrflowProfile *profile)
{
	return hrflow_write_is_paid(profile) && profile->write_error != NULL &&
		!profile->is_partial && !profile->is_rejected;
}

/*
 * Leave a profile to a later write.
 */
static void
hold_back(HrflowProfile *profile)
{
	profile->is_ours = false;
	profile->is_held = true;
	profile->was_kept |= profile->is_kept && !profile->is_undecided;
}

/*
 * Limit the wait for the next lock to the time left for all locks, but to no
 * less than a fifth of the time for all locks.
 */
static void
limit_locks(const HrflowRun *run)
{
	int64		left = (run->locks_until - hrflow_clock_now()) / HRFLOW_MSEC;

	hrflow_work_limit_locks(Max(left, run->lock_time / 5 + 1));
}

/*
 * Return the time after which a pass over the profiles that starts now must
 * not begin to write another profile.
 */
static int64
get_write_until(const HrflowRun *run)
{
	int			limit = run->error != NULL || run->is_ending ?
	LAST_WRITE_TIME : MAX_WRITE_TIME;
	int			timeout = hrflow_compat_transaction_timeout();

	if (timeout > 0)
		limit = Min(limit, timeout / 8);
	return hrflow_clock_now() + limit * HRFLOW_MSEC;
}

/*
 * Write writing->vector, unless it is stored already.
 */
static void
write_vector(void *arg)
{
	const Writing *writing = arg;
	const HrflowProfile *profile = writing->profile;
	const HrflowVector *vector = writing->vector;
	Datum		values[lengthof(insert_types)];

	values[0] = CStringGetTextDatum(profile->source_id);
	values[1] = CStringGetTextDatum(profile->identifier);
	values[2] = CStringGetTextDatum(vector->section);
	values[3] = Int32GetDatum(vector->item);
	values[4] = PointerGetDatum(vector->value);
	values[5] = TimestampTzGetDatum(writing->now);
	hrflow_store_execute_plan(writing->insert, values, NULL);
}

/*
 * Write the vectors of profiles, except vectors that are stored already.  If a
 * profile was fetched completely, also put aside stored vectors that its reply
 * lacks, unless they are to be kept.  When the time is used up, hold back the
 * rest, but at least one profile is written.  If "with_states" is set, also
 * write the states.
 */
static void
write_profiles(void *arg)
{
	Writing    *writing = arg;
	HrflowRun  *run = writing->run;
	bool		has_begun = false;
	ListCell   *cell;
	ListCell   *inner;

	writing->now = GetCurrentTimestamp();
	foreach(cell, writing->profiles)
	{
		HrflowProfile *profile = writing->profile = lfirst(cell);

		if (!profile->is_ours)
			continue;
		if (has_begun && hrflow_clock_now() >= writing->until)
		{
			hold_back(profile);
			run->has_more = true;
			continue;
		}
		has_begun = true;
		limit_locks(run);
		hrflow_work_receive(run);
		hrflow_interrupts_check_client(run);
		foreach(inner, profile->vectors)
		{
			writing->vector = lfirst(inner);
			write_vector(writing);
		}
		writing->vector = NULL;
		if (hrflow_write_is_complete(profile))
			hrflow_lost_put(writing->run, writing->erase, profile);
	}
	writing->has_vectors = true;
	if (writing->with_states)
	{
		hrflow_lost_note(writing->store, writing->profiles);
		hrflow_record_states(run, writing->store, writing->profiles);
	}
}

/*
 * Was this error caused by the server or by user intervention rather than by
 * the data?  Of class 55, only errors about locks and objects in use count; of
 * class XX, only errors about corruption count.  Any other error of these
 * classes may be thrown by a trigger for a single profile.  XX000 is the
 * SQLSTATE of elog(), and of ereport() without an errcode.
 */
bool
hrflow_write_is_of_server(int sqlerrcode)
{
	int			category = ERRCODE_TO_CATEGORY(sqlerrcode);

	return sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
		sqlerrcode == ERRCODE_OBJECT_IN_USE ||
		sqlerrcode == ERRCODE_DATA_CORRUPTED ||
		sqlerrcode == ERRCODE_INDEX_CORRUPTED ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_TRANSACTION_ROLLBACK) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR);
}

/*
 * Call a function in a subtransaction.  Returns NULL, or an error that is
 * specific to the profiles or a conflict with another session.  Rethrows any
 * other error.
 */
ErrorData *
hrflow_write_try(void (*work) (void *arg), void *arg)
{
	ErrorData  *error = hrflow_store_try(work, arg);

	if (error != NULL && hrflow_write_is_of_server(error->sqlerrcode) &&
		!HRFLOW_IS_CONFLICT(error->sqlerrcode))
		ReThrowError(error);
	return error;
}

/*
 * Call write_profiles() in a subtransaction; see hrflow_write_try().
 */
static ErrorData *
try_write_profiles(Writing *writing, List *profiles)
{
	writing->profiles = profiles;
	writing->has_vectors = false;
	writing->vector = NULL;
	return hrflow_write_try(write_profiles, writing);
}

/*
 * Record that the vectors or the state of a profile could not be written,
 * either because of an error specific to the profile, or because of a conflict
 * with another session.  In the latter case, leave the profile to a later
 * write, and move it to the end of the list, so that the next write tries
 * other profiles first.
 */
static void
note_write_error(Writing *writing, HrflowProfile *profile, ErrorData *error)
{
	MemoryContext old = CurrentMemoryContext;

	if (HRFLOW_IS_CONFLICT(error->sqlerrcode))
	{
		hold_back(profile);
		profile->is_held = false;
		profile->is_stuck = true;
		dlist_delete(&profile->node);
		dlist_push_tail(&writing->run->arrived, &profile->node);
		writing->nwaits++;
		return;
	}
	/* Do not pay again for a reply that was received. */
	if (profile->hash != NULL && hrflow_write_is_paid(profile))
		profile->was_sent = profile->is_final = true;
	MemoryContextSwitchTo(profile->context);
	profile->write_error = psprintf("Could not be stored: %s", error->message ?
									error->message : "unknown error");
	MemoryContextSwitchTo(old);
	if (writing->has_vectors)
		hrflow_record_reject(writing->run, profile, error);
	else if (is_denied(profile))
	{
		if (writing->run->denial != NULL)
			pfree(writing->run->denial);
		writing->run->denial =
			MemoryContextStrdup(writing->run->context, error->message ?
								error->message : "unknown error");
		writing->run->denial_code = error->sqlerrcode;
	}
	if (profile->is_partial && writing->run->partial_error == NULL)
	{
		writing->run->partial_error =
			MemoryContextStrdup(writing->run->context, error->message ?
								error->message : "unknown error");
		writing->run->partial_code = error->sqlerrcode;
	}
}

/*
 * After an error that is specific to writing->profile, write its vectors one
 * by one, except the vector that has caused the error, if any, so that the
 * vectors that the table accepts are kept.  A vector that is rejected does not
 * replace the stored one, and no vectors are put aside.  Returns NULL, or the
 * error of a conflict with another session.
 *
 * Does nothing if the state was rejected, if no vectors were fetched, or if
 * the store's contents are read from columns: such a store has one vector per
 * profile, which must match "content_hash".
 */
static ErrorData *
keep_vectors(Writing *writing)
{
	HrflowProfile *profile = writing->profile;
	const HrflowVector *rejected = writing->vector;
	ListCell   *cell;

	if (writing->has_vectors || writing->store->has_content ||
		!hrflow_write_is_paid(profile))
		return NULL;
	foreach(cell, profile->vectors)
	{
		ErrorData  *error;

		writing->vector = lfirst(cell);
		if (writing->vector == rejected)
			continue;
		hrflow_work_receive(writing->run);
		error = hrflow_write_try(write_vector, writing);
		if (error == NULL)
			profile->is_partial = true;
		else if (HRFLOW_IS_CONFLICT(error->sqlerrcode))
			return error;
	}
	return NULL;
}

/*
 * Write each profile separately, so that profiles that cause errors do not
 * keep others from being written.  After MAX_SINGLE_WAITS profiles were found
 * locked, hold the rest back.  Also hold the rest back when the time for this
 * pass is used up, or at a profile whose error has aborted a transaction
 * before, unless it is the first profile: the profiles before it must be
 * committed first.  Returns false in these last two cases; the rest should
 * then be written in another transaction.
 */
static bool
write_one_by_one(Writing *writing, List *profiles)
{
	int			level = NewGUCNestLevel();
	bool		has_begun = false;
	bool		has_time = true;
	ListCell   *cell;

	hrflow_work_limit_locks(HRFLOW_SINGLE_LOCK_TIME);
	writing->until = get_write_until(writing->run);
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);
		HrflowProfileRow row = profile->row;
		ErrorData  *error;

		if (!profile->is_ours)
			continue;
		has_time = has_time &&
			(!has_begun || (hrflow_clock_now() < writing->until &&
							!profile->has_failed));
		if (!has_time || writing->nwaits >= MAX_SINGLE_WAITS)
		{
			hold_back(profile);
			continue;
		}
		has_begun = true;
		writing->run->writing = profile;
		error = try_write_profiles(writing, list_make1(profile));
		if (error != NULL)
		{
			ErrorData  *conflict = HRFLOW_IS_CONFLICT(error->sqlerrcode) ?
			NULL : keep_vectors(writing);

			profile->row = row;
			note_write_error(writing, profile, conflict ? conflict : error);
		}
		writing->run->writing = NULL;
	}
	AtEOXact_GUC(false, level);
	return has_time;
}

static void
begin_writing(Writing *writing, List *profiles)
{
	const HrflowStore *store = writing->store;

	writing->insert =
		hrflow_store_prepare(hrflow_store_sql(store, insert_vector_sql),
							 lengthof(insert_types), insert_types);
	writing->erase = hrflow_lost_prepare(store, profiles);
	writing->until = get_write_until(writing->run);
}

static void
end_writing(Writing *writing)
{
	SPI_freeplan(writing->insert);
	if (writing->erase != NULL)
		SPI_freeplan(writing->erase);
}

/*
 * Write the vectors of profiles: first the profiles whose vectors have not
 * been found to be locked, together if that causes no error, and then the
 * others.  Then write the states together, except those of profiles that are
 * left to a later write.
 */
static void
write_together(HrflowRun *run, const HrflowStore *store, List *profiles)
{
	Writing		writing = {.run = run, .store = store};
	List	   *fresh = NIL;
	List	   *stuck = NIL;
	ListCell   *cell;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		if (profile->is_stuck)
			stuck = lappend(stuck, profile);
		else
			fresh = lappend(fresh, profile);
	}
	begin_writing(&writing, profiles);
	if (try_write_profiles(&writing, fresh) != NULL)
		run->has_more = !write_one_by_one(&writing, fresh);
	if (stuck != NIL)
		(void) write_one_by_one(&writing, stuck);
	end_writing(&writing);
	hrflow_model_judge(run, profiles);
	hrflow_interrupts_check_client(run);
	hrflow_lost_note(store, profiles);
	hrflow_record_states(run, store, profiles);
}

/*
 * Write the vectors and the state of each profile in a subtransaction.  Then
 * record the failures of the profiles whose vectors or states were rejected.
 */
static void
write_singly(HrflowRun *run, const HrflowStore *store, List *profiles)
{
	Writing		writing = {.run = run, .store = store, .with_states = true};

	begin_writing(&writing, profiles);
	run->has_more = !write_one_by_one(&writing, profiles);
	end_writing(&writing);
	hrflow_model_judge(run, profiles);
	hrflow_record_failures(run, store, profiles);
}

/*
 * Plan the statements that write vectors and states, and initialize their
 * execution, but do not execute them.  Throws any error that this causes.
 */
void
hrflow_write_explain(const HrflowStore *store)
{
	HrflowParameters vector = {0};

	for (int i = 0; i < lengthof(insert_types); i++)
	{
		hrflow_store_add(&vector, insert_types[i], (Datum) 0);
		vector.nulls[i] = 'n';
	}
	hrflow_store_explain(hrflow_store_sql(store, insert_vector_sql), &vector);
	hrflow_record_explain(store);
}

/*
 * If the API has had no vector for a profile for at least HRFLOW_GONE_AGE,
 * count the profile in run->nlong_missing, and add it to run->gone, unless
 * that list is full.
 */
static void
note_long_missing(HrflowRun *run, const HrflowProfile *profile)
{
	MemoryContext old;
	HrflowGone *gone;

	if (profile->tally != HRFLOW_TALLY_MISSING ||
		!profile->row.has_failed_at ||
		GetCurrentTimestamp() - profile->row.failed_at < HRFLOW_GONE_AGE)
		return;
	run->nlong_missing++;
	if (list_length(run->gone) >= HRFLOW_MAX_GONE)
		return;
	old = MemoryContextSwitchTo(run->context);
	gone = palloc(sizeof(HrflowGone));
	gone->source_id = pstrdup(profile->source_id);
	gone->identifier = pstrdup(profile->identifier);
	gone->generation = profile->generation;
	gone->is_known = profile->is_known;
	run->gone = lappend(run->gone, gone);
	MemoryContextSwitchTo(old);
}

/*
 * Return the completely fetched profiles whose leases are still ours.
 */
static List *
list_complete(List *profiles)
{
	List	   *complete = NIL;
	ListCell   *cell;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		if (profile->is_ours && hrflow_write_is_complete(profile))
			complete = lappend(complete, profile);
	}
	return complete;
}

/*
 * Lock the tables of vectors and profiles.  Another session may hold a lock on
 * a table for a long time, so this must be done before rows are locked.
 */
static void
lock_tables(const HrflowRun *run, const HrflowStore *store)
{
	Relation	tables[] = {store->vectors, store->profiles};
	ListCell   *cell;

	limit_locks(run);

	for (int i = 0; i < lengthof(tables); i++)
	{
		/* An INSERT would lock only the partitions of its rows; lock all. */
		foreach(cell, find_all_inheritors(RelationGetRelid(tables[i]), NoLock,
										  NULL))
			LockRelationOid(lfirst_oid(cell), RowExclusiveLock);
	}
}

/*
 * If a profile that was held back has lost more than half of a section, but
 * must keep its vectors, for example because too many profiles have lost
 * vectors, let all profiles of this write that have lost as much keep theirs.
 */
static void
keep_held_back(List *profiles)
{
	bool		was_kept = false;
	ListCell   *cell;

	foreach(cell, profiles)
	{
		const HrflowProfile *profile = lfirst(cell);

		was_kept |= profile->was_kept && profile->lost != NULL;
	}
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		profile->is_kept |= was_kept && profile->lost != NULL;
	}
}

/*
 * Write the profiles that have arrived: together, unless run->is_single is
 * set.  Sets run->has_more if the rest should be written in another
 * transaction.  The caller must call hrflow_write_done() after the commit.
 */
void
hrflow_write(HrflowRun *run, const HrflowStore *store)
{
	List	   *profiles = NIL;
	dlist_iter	iter;

	run->has_more = false;
	run->writing = NULL;
	lock_tables(run, store);
	run->has_locks = true;
	dlist_foreach(iter, &run->arrived)
		profiles = lappend(profiles,
						   dlist_container(HrflowProfile, node, iter.cur));
	hrflow_arrived_lock(store, profiles);
	hrflow_lost_judge(run, store, list_complete(profiles));
	keep_held_back(profiles);
	hrflow_model_spare(run, profiles);
	if (run->is_single)
		write_singly(run, store, profiles);
	else
		write_together(run, store, profiles);
}

/*
 * Should writing a profile be retried?  It should if another session has
 * locked the row or the vectors, but for at most MAX_LOCKED_TIME.  A locked
 * profile no longer counts as a trial profile.
 */
static bool
is_to_be_tried_again(HrflowRun *run, HrflowProfile *profile)
{
	int64		now = hrflow_clock_now();

	if (!hrflow_write_is_locked(profile))
		return false;
	hrflow_model_end_trial(run, profile);
	if (profile->locked_at == 0)
		profile->locked_at = now;
	return now - profile->locked_at < MAX_LOCKED_TIME;
}

/*
 * If the API does not know the source of a profile that was written, let all
 * other profiles of the source be postponed until this profile is due.  If
 * this profile was claimed, but not requested, stop counting it in
 * run->nclaimed.
 */
static void
note_bad_profile(HrflowRun *run, const HrflowProfile *profile)
{
	HrflowBadSource *source;

	if (profile->status != HRFLOW_INVALID_SOURCE)
		return;
	source = hrflow_fetch_bad_source(run, profile->source_id);
	if (source == NULL)
		return;					/* some requests for the profile were not
								 * completed */
	if (profile->unasked)
		run->nclaimed--;
	else if (profile->is_current && profile->row.has_due_at)
		source->due_at = Max(source->due_at, profile->row.due_at);
	source->is_to_be_postponed = source->due_at != 0;
}

/*
 * After the commit, count and free all profiles of the write, whether they
 * were written or not, except profiles that are held back and, for at most
 * MAX_LOCKED_TIME, locked profiles.
 */
void
hrflow_write_done(HrflowRun *run)
{
	bool		is_single = false;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &run->arrived)
	{
		HrflowProfile *profile = dlist_container(HrflowProfile, node, iter.cur);

		/* Write together again once all profiles have been accepted. */
		is_single |= profile->write_error != NULL || profile->is_held ||
			hrflow_write_is_locked(profile);
		if (profile->is_ours)
			profile->is_stuck = false;
		if (profile->is_held || is_to_be_tried_again(run, profile))
			continue;
		run->nvain += !profile->is_ours ||
			profile->status != HRFLOW_INVALID_SOURCE;
		if (hrflow_write_is_paid(profile))
		{
			run->nlocked += hrflow_write_is_locked(profile);
			run->ntaken += profile->is_taken;
			run->nunwritten += hrflow_write_is_locked(profile) ||
				profile->is_taken;
		}
		if (is_denied(profile))
		{
			run->ndenied += !profile->is_postponed;
			run->ndenied_since++;
		}
		else if (hrflow_write_is_paid(profile) && profile->is_ours &&
				 !profile->is_rejected)
			run->ndenied_since = 0;
		if (profile->is_ours)
		{
			/* A vector copied from the store proves nothing about the API. */
			run->is_trusted |= hrflow_write_is_paid(profile) &&
				profile->write_error == NULL;
			run->tallies[profile->tally]++;
			if (profile->tally != HRFLOW_TALLY_NONE)
			{
				run->ncounted++;
				if (!profile->is_rejected)
					run->nvain = 0;
			}
			note_long_missing(run, profile);
			run->nkept += profile->is_kept && !profile->is_undecided;
			run->nerased += profile->lost != NULL && !profile->is_kept &&
				profile->write_error == NULL;
			run->nshortened += profile->has_lost && profile->lost == NULL &&
				!profile->is_kept && profile->write_error == NULL;
			note_bad_profile(run, profile);
		}
		run->nrejected += profile->is_rejected;
		run->npartial += profile->is_partial && profile->write_error != NULL;
		run->nrefused += profile->is_postponed && profile->vectors != NIL &&
			profile->write_error != NULL;
		run->narrived--;
		hrflow_claim_forget(run, profile);
	}
	run->is_single &= is_single;
}
