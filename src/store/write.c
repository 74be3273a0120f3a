/*-------------------------------------------------------------------------
 *
 * write.c
 *		Writes fetched vectors, and the states of their profiles.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "store/refresh.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/*
 * Maximum time for which to retry writing a profile whose row is locked by
 * another session, in units of hrflow_clock_now().
 */
#define MAX_LOCKED_TIME (60 * HRFLOW_SEC)

/*
 * In these two statements, $1 to $3 are arrays of the sources, identifiers
 * and leases of profiles.  Like the statements in claim.c, they do not depend
 * on the statistics of the table.
 */
static const char lock_arrived_sql[] =
"SELECT k.n::integer, l.*"
" FROM unnest($1, $2, $3) WITH ORDINALITY AS k(s, i, lease, n)"
" CROSS JOIN LATERAL (SELECT p.generation, p.state, p.due_at,"
" p.attempts, p.http_status, p.last_error, %F, %s FROM %P AS p"
" WHERE p.source_id = k.s AND p.%I = k.i AND p.lease_until = k.lease"
" FOR UPDATE SKIP LOCKED) AS l";

/* Finds the profiles whose leases are still ours, even if they are locked. */
static const char find_locked_sql[] =
"SELECT k.n::integer"
" FROM unnest($1, $2, $3) WITH ORDINALITY AS k(s, i, lease, n)"
" WHERE k.lease = (SELECT p.lease_until FROM %P AS p"
" WHERE p.source_id = k.s AND p.%I = k.i)";

/*
 * $1 and $2 are the key of a profile.  $3 to $6 are a vector; it is written
 * only if it differs from the stored one.
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

static const char write_states_sql[] =
"UPDATE %P AS p SET state = k.state, due_at = k.due_at,"
" lease_until = NULL, attempts = k.attempts,"
" refreshed_at = COALESCE(k.refreshed_at, p.refreshed_at),"
" %s %s %s http_status = k.http_status, last_error = k.error"
" FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
" AS k(s, i, state, due_at, attempts, http_status,"
" refreshed_at, error, failed_at, dimension, sections, hash, was_sent,"
" is_kept)"
" CROSS JOIN LATERAL (SELECT o.tableoid AS part, o.ctid AS row FROM %P AS o"
" WHERE o.source_id = k.s AND o.%I = k.i OFFSET 0) AS l"
" WHERE p.tableoid = l.part AND p.ctid = l.row";

/*
 * $15 is the account.  If the API does not know a profile, all its sections
 * are requested again once it does.  If the API knows it, but has no vector
 * for a section, the section counts as requested.
 */
static const char fetched_with_sql[] =
"dimension = COALESCE(k.dimension, p.dimension),"
" sections = CASE WHEN k.state = 'missing' THEN k.sections::text[]"
" ELSE COALESCE(k.sections::text[], p.sections) END,"
" account = CASE WHEN k.dimension IS NULL THEN p.account ELSE $15 END,";

/*
 * The hash of a content is updated only together with its vector.  A content
 * that may have been sent remains marked if there was no reply.
 */
static const char content_sql[] =
"content_hash = CASE WHEN k.refreshed_at IS NULL OR k.is_kept"
" THEN p.content_hash ELSE k.hash END,"
" sent_hash = CASE WHEN k.was_sent THEN p.sent_hash END,";

/*
 * Copy a timestamp in the last statement's result to *value.  Returns false,
 * and leaves *value unchanged, if it is null.
 */
static bool
get_timestamp(uint64 row, int column, TimestampTz *value)
{
	bool		is_null;
	Datum		datum = SPI_getbinval(SPI_tuptable->vals[row],
									  SPI_tuptable->tupdesc, column, &is_null);

	if (!is_null)
		*value = DatumGetTimestampTz(datum);
	return !is_null;
}

/*
 * Return a copy of an array in the last statement's result, or NULL.
 */
static ArrayType *
get_array(uint64 row, int column)
{
	bool		is_null;
	Datum		datum = SPI_getbinval(SPI_tuptable->vals[row],
									  SPI_tuptable->tupdesc, column, &is_null);

	return is_null ? NULL : DatumGetArrayTypePCopy(datum);
}

/*
 * Lock the rows of profiles, and read their current contents.  Rows that
 * other sessions have locked are skipped: an application that writes several
 * rows locks them in its own order, and could deadlock with us.
 */
static void
lock_profiles(const HrflowStore *store, List *profiles)
{
	static const Oid types[] = {TEXTOID, TEXTOID, TIMESTAMPTZOID};
	HrflowRows *rows = hrflow_store_make_rows(types, lengthof(types),
											  list_length(profiles));
	HrflowParameters parameters = {0};
	ListCell   *cell;
	uint64		n;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);
		Datum		values[lengthof(types)];

		/* Discard the results of a write that was rolled back. */
		profile->is_ours = profile->is_locked = profile->is_held = false;
		profile->write_error = NULL;
		profile->lost = NULL;
		profile->is_kept = false;
		values[0] = CStringGetTextDatum(profile->source_id);
		values[1] = CStringGetTextDatum(profile->identifier);
		values[2] = TimestampTzGetDatum(profile->lease);
		hrflow_store_add_row(rows, values, NULL);
	}
	hrflow_store_add_rows(&parameters, rows);
	n = hrflow_store_execute(hrflow_store_sql(store, lock_arrived_sql,
											  store->has_fetched_with ?
											  "p.sections" : "NULL::text[]"),
							 &parameters);
	for (uint64 i = 0; i < n; i++)
	{
		int			which = DatumGetInt32(hrflow_store_datum(i, 1));
		HrflowProfile *profile = list_nth(profiles, which - 1);
		HrflowProfileRow *row = &profile->row;
		bool		is_null;

		memset(row, 0, sizeof(HrflowProfileRow));
		profile->is_ours = true;
		row->state = hrflow_state_parse(hrflow_store_value(i, 3));
		row->has_due_at = get_timestamp(i, 4, &row->due_at);
		row->attempts = DatumGetInt32(hrflow_store_datum(i, 5));
		row->http_status =
			DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 6, &is_null));
		row->error = hrflow_store_value_or_null(i, 7);
		row->has_failed_at = get_timestamp(i, 8, &row->failed_at);
		row->sections = get_array(i, 9);
		profile->is_current = profile->generation ==
			DatumGetInt64(hrflow_store_datum(i, 2)) &&
			row->has_due_at && row->due_at == profile->claimed_due_at;
	}
	SPI_freetuptable(SPI_tuptable);

	n = n == rows->n ? 0 :
		hrflow_store_execute(hrflow_store_sql(store, find_locked_sql),
							 &parameters);
	for (uint64 i = 0; i < n; i++)
	{
		int			which = DatumGetInt32(hrflow_store_datum(i, 1));
		HrflowProfile *profile = list_nth(profiles, which - 1);

		profile->is_locked = !profile->is_ours;
	}
}

static const Oid state_types[] = {TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID,
	INT4OID, INT4OID, TIMESTAMPTZOID, TEXTOID, TIMESTAMPTZOID, INT4OID, TEXTOID,
TEXTOID, BOOLOID, BOOLOID};

static Oid	insert_types[] = {TEXTOID, TEXTOID, TEXTOID, INT4OID,
FLOAT4ARRAYOID, TIMESTAMPTZOID};

/*
 * Did the API reply to all requests for a profile, without a failure?
 */
static bool
is_complete(const HrflowProfile *profile)
{
	return !profile->unasked && profile->status == HRFLOW_OK;
}

/* Argument of write_vectors(). */
typedef struct Writing
{
	HrflowRun  *run;
	const HrflowStore *store;
	SPIPlanPtr	insert;
	SPIPlanPtr	erase;
	List	   *profiles;
} Writing;

/*
 * Write the vectors of some profiles, except those that are stored already.
 * If a profile was fetched completely, also erase its old vectors.
 */
static void
write_vectors(void *arg)
{
	Writing    *writing = arg;
	Datum		now = TimestampTzGetDatum(GetCurrentTimestamp());
	ListCell   *cell;
	ListCell   *inner;

	foreach(cell, writing->profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		if (!profile->is_ours)
			continue;
		foreach(inner, profile->vectors)
		{
			HrflowVector *vector = lfirst(inner);
			Datum		values[6];

			values[0] = CStringGetTextDatum(profile->source_id);
			values[1] = CStringGetTextDatum(profile->identifier);
			values[2] = CStringGetTextDatum(vector->section);
			values[3] = Int32GetDatum(vector->item);
			values[4] = PointerGetDatum(vector->value);
			values[5] = now;
			hrflow_store_execute_plan(writing->insert, values, NULL);
		}
		if (is_complete(profile))
			hrflow_erase_old_vectors(writing->run, writing->store,
									 writing->erase, profile);
	}
}

/*
 * Was this error caused by the server or by user intervention rather than by
 * the data?  Of class 55, only errors about locks count, and of class XX only
 * those about corruption, because a trigger may throw any other error of
 * these classes for a single profile.  XX000 is the SQLSTATE of elog(), and
 * of ereport() without an errcode.
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
 * Is this an error about rows that other sessions have locked?
 */
static bool
is_of_lock(int sqlerrcode)
{
	return sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
		sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED;
}

/*
 * Write the vectors of some profiles in a subtransaction.  Returns NULL, or
 * an error that is specific to the profiles or about locks.  Rethrows any
 * other error.
 */
static ErrorData *
try_write_vectors(Writing *writing, List *profiles)
{
	ErrorData  *error;

	writing->profiles = profiles;
	error = hrflow_store_try(write_vectors, writing);

	if (error != NULL && hrflow_write_is_of_server(error->sqlerrcode) &&
		!is_of_lock(error->sqlerrcode))
		ReThrowError(error);
	return error;
}

/*
 * Keep an error, to be thrown at the end of the run.  "error" is a copy of
 * it.  Changes the current memory context.
 */
static pg_noinline void
keep_error(HrflowRun *run, ErrorData *error)
{
	PG_TRY();
	{
		ReThrowError(error);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(run->context);
		run->error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
}

/*
 * Record that the vectors of a profile could not be written, either because
 * of an error specific to the profile, or because their rows are locked.  A
 * lock ends the run, but only after all other profiles are written; the
 * profile keeps its lease until then.
 */
static void
note_write_error(HrflowRun *run, HrflowProfile *profile, ErrorData *error)
{
	MemoryContext old = CurrentMemoryContext;

	if (is_of_lock(error->sqlerrcode))
	{
		profile->is_ours = false;
		profile->is_stuck = true;
		if (run->error == NULL)
			keep_error(run, error);
		MemoryContextSwitchTo(old);
		return;
	}
	/* Do not pay again for an answer that was received. */
	if (profile->hash != NULL && profile->asked_at != 0)
		profile->was_sent = profile->is_final = true;
	MemoryContextSwitchTo(profile->context);
	profile->write_error = psprintf("Could not be stored: %s", error->message ?
									error->message : "unknown error");
	MemoryContextSwitchTo(old);
}

/*
 * Write the vectors of profiles.  If there is an error, write each profile
 * separately, so that only the profiles that cause errors remain unwritten.
 */
static void
write_all_vectors(HrflowRun *run, const HrflowStore *store, List *profiles)
{
	Writing		writing = {.run = run, .store = store};
	ListCell   *cell;

	writing.insert = hrflow_store_prepare(hrflow_store_sql(store,
														   insert_vector_sql),
										  lengthof(insert_types), insert_types);
	writing.erase = hrflow_erase_prepare(store);
	if (try_write_vectors(&writing, profiles) != NULL)
	{
		foreach(cell, profiles)
		{
			HrflowProfile *profile = lfirst(cell);
			ErrorData  *error = try_write_vectors(&writing,
												  list_make1(profile));

			if (error != NULL)
				note_write_error(run, profile, error);
		}
	}
	SPI_freeplan(writing.insert);
	SPI_freeplan(writing.erase);
}

/*
 * Return the statement that writes states.
 */
static char *
get_write_states_sql(const HrflowStore *store)
{
	return hrflow_store_sql(store, write_states_sql, store->has_failed_at ?
							"failed_at = k.failed_at," : "",
							store->has_fetched_with ? fetched_with_sql : "",
							store->has_content ? content_sql : "");
}

/*
 * Write the states of the profiles whose leases are still ours.
 */
static void
write_states(HrflowRun *run, const HrflowStore *store, List *profiles)
{
	HrflowRows *rows = hrflow_store_make_rows(state_types, lengthof(state_types),
											  list_length(profiles));
	HrflowParameters parameters = {0};
	TimestampTz now = GetCurrentTimestamp();
	ListCell   *cell;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);
		HrflowProfileRow *row = &profile->row;
		Datum		values[lengthof(state_types)];
		bool		nulls[lengthof(state_types)] = {false};
		bool		is_kept = profile->is_kept && profile->is_empty;
		char	   *sections;
		int			i = 0;

		if (!profile->is_ours)
			continue;
		hrflow_state_set(run, profile);
		values[i++] = CStringGetTextDatum(profile->source_id);
		values[i++] = CStringGetTextDatum(profile->identifier);
		values[i++] = CStringGetTextDatum(hrflow_state_name(row->state));
		nulls[i] = !row->has_due_at;
		values[i++] = TimestampTzGetDatum(row->due_at);
		values[i++] = Int32GetDatum(row->attempts);
		nulls[i] = row->http_status == 0;
		values[i++] = Int32GetDatum(row->http_status);
		nulls[i] = !row->is_refreshed;
		values[i++] = TimestampTzGetDatum(now);
		nulls[i] = row->error == NULL;
		values[i++] = row->error == NULL ? (Datum) 0 :
			CStringGetTextDatum(row->error);
		nulls[i] = !row->has_failed_at;
		values[i++] = TimestampTzGetDatum(row->failed_at);
		nulls[i] = !row->is_refreshed || is_kept;
		values[i++] = Int32GetDatum(hrflow_model_dimension(profile));
		sections = row->is_refreshed || profile->is_known ?
			hrflow_model_sections(run, profile) : NULL;
		nulls[i] = sections == NULL;
		values[i++] = sections == NULL ? (Datum) 0 :
			CStringGetTextDatum(sections);
		nulls[i] = profile->hash == NULL;
		values[i++] = profile->hash == NULL ? (Datum) 0 :
			CStringGetTextDatum(profile->hash);
		values[i++] = BoolGetDatum(profile->was_sent &&
								   (!is_complete(profile) ||
									profile->write_error != NULL));
		values[i++] = BoolGetDatum(is_kept);
		Assert(i == lengthof(state_types));
		hrflow_store_add_row(rows, values, nulls);
	}
	if (rows->n == 0)
		return;

	hrflow_store_add_rows(&parameters, rows);
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(run->account));
	hrflow_store_execute(get_write_states_sql(store), &parameters);
}

/*
 * Plan the statements that write vectors and states, and initialize their
 * execution, without any rows.  Throws the errors that the statements would
 * throw.
 */
void
hrflow_write_explain(const HrflowStore *store)
{
	HrflowParameters vector = {0};
	HrflowParameters states = {0};

	for (int i = 0; i < lengthof(insert_types); i++)
	{
		hrflow_store_add(&vector, insert_types[i], (Datum) 0);
		vector.nulls[i] = 'n';
	}
	hrflow_store_explain(hrflow_store_sql(store, insert_vector_sql), &vector);
	hrflow_store_add_rows(&states,
						  hrflow_store_make_rows(state_types,
												 lengthof(state_types), 0));
	hrflow_store_add(&states, TEXTOID, CStringGetTextDatum(""));
	hrflow_store_explain(get_write_states_sql(store), &states);
}

/*
 * Add a profile to run->gone if the API has had no vector of it for at least
 * HRFLOW_GONE_AGE.
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
 * Return the profiles whose leases are still ours, and that were fetched
 * completely.
 */
static List *
list_complete(List *profiles)
{
	List	   *complete = NIL;
	ListCell   *cell;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		if (profile->is_ours && is_complete(profile))
			complete = lappend(complete, profile);
	}
	return complete;
}

/*
 * Write the profiles that have arrived.  After the commit, the caller must
 * call hrflow_write_done().
 */
void
hrflow_write(HrflowRun *run, const HrflowStore *store)
{
	List	   *profiles = NIL;
	dlist_iter	iter;

	dlist_foreach(iter, &run->arrived)
	{
		HrflowProfile *profile = dlist_container(HrflowProfile, node, iter.cur);

		if (!profile->is_stuck)
			profiles = lappend(profiles, profile);
	}
	if (profiles == NIL)
		return;
	lock_profiles(store, profiles);
	hrflow_erase_judge(run, store, list_complete(profiles));
	hrflow_model_spare(run, profiles);
	write_all_vectors(run, store, profiles);
	hrflow_model_judge(run, profiles);
	hrflow_erase_note(store, profiles);
	write_states(run, store, profiles);
}

/*
 * Should writing a profile be retried?  It should if its row is locked by
 * another session, but for at most MAX_LOCKED_TIME.
 */
static bool
is_to_be_tried_again(HrflowRun *run, HrflowProfile *profile)
{
	int64		now = hrflow_clock_now();

	if (!profile->is_locked)
		return false;
	hrflow_model_end_trial(run, profile);
	if (profile->locked_at == 0)
		profile->locked_at = now;
	return now - profile->locked_at < MAX_LOCKED_TIME;
}

/*
 * If the API does not know the source of a profile that was written, let the
 * other profiles of the source be postponed until the same time.  A profile
 * that was claimed, but not requested, does not count as claimed.
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
 * Count and free the profiles that were written, after the commit.  Profiles
 * that are locked by other sessions are kept for a retry, but not those whose
 * leases are no longer ours.
 */
void
hrflow_write_done(HrflowRun *run)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &run->arrived)
	{
		HrflowProfile *profile = dlist_container(HrflowProfile, node, iter.cur);

		if (profile->is_stuck || profile->is_held ||
			is_to_be_tried_again(run, profile))
			continue;
		run->nvain += !profile->is_ours ||
			profile->status != HRFLOW_INVALID_SOURCE;
		run->nunwritten += profile->is_locked;
		if (profile->is_ours)
		{
			/* A copy of a stored vector does not show what the API returns. */
			run->is_trusted |= profile->vectors != NIL &&
				profile->asked_at != 0 && profile->write_error == NULL;
			run->tallies[profile->tally]++;
			if (profile->tally != HRFLOW_TALLY_NONE)
			{
				run->ncounted++;
				run->nvain = 0;
			}
			note_long_missing(run, profile);
			run->nkept += profile->is_kept;
			run->nerased += profile->lost != NULL && !profile->is_kept &&
				profile->write_error == NULL;
			note_bad_profile(run, profile);
		}
		run->narrived--;
		hrflow_claim_forget(run, profile);
	}
}
