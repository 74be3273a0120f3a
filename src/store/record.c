/*-------------------------------------------------------------------------
 *
 * record.c
 *		Writes the states of fetched profiles to the table of profiles.
 *
 * The states of all profiles of a write are written by one statement.  If a
 * constraint or a trigger of the owner rejects the row of one profile, the
 * whole write is rolled back, and write.c writes one profile at a time
 * instead.  For a profile whose row is rejected, a failure is then recorded.
 * If that row is rejected as well, only the lease of the profile is extended,
 * unless no request was sent for the profile, or not all requests were
 * completed.  Both a recorded failure and an extended lease keep the profile
 * from being requested, and paid for, again soon.  If the lease is not
 * extended, the profile can be claimed again when the lease of the run ends.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "store/refresh.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * Length of the extended lease of a profile for which neither the new state
 * nor the failure could be written.
 */
#define REJECTED_LEASE USECS_PER_DAY

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
 * $15 is the account.  If the API does not know a profile, all sections of the
 * profile are requested again once the API knows it.  If the API knows the
 * profile, but has no vector for a section, the section counts as requested.
 */
static const char fetched_with_sql[] =
"dimension = COALESCE(k.dimension, p.dimension),"
" sections = CASE WHEN k.state = 'missing' THEN k.sections::text[]"
" ELSE COALESCE(k.sections::text[], p.sections) END,"
" account = CASE WHEN k.dimension IS NULL THEN p.account ELSE $15 END,";

/*
 * The hash of the content is updated only together with the vector.  Content
 * that may have been sent remains marked as sent unless a complete reply was
 * received and stored.
 */
static const char content_sql[] =
"content_hash = CASE WHEN k.refreshed_at IS NULL OR k.is_kept"
" THEN p.content_hash ELSE k.hash END,"
" sent_hash = CASE WHEN k.was_sent THEN p.sent_hash END,";

/*
 * Statement that extends the lease of a profile to $4.  $1 and $2 are the key
 * of the profile, and $3 is the current end of the lease.
 */
static const char extend_lease_sql[] =
"UPDATE %P AS p SET lease_until = $4"
" WHERE p.source_id = $1 AND p.%I = $2 AND p.lease_until = $3";

static const Oid state_types[] = {TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID,
	INT4OID, INT4OID, TIMESTAMPTZOID, TEXTOID, TIMESTAMPTZOID, INT4OID, TEXTOID,
TEXTOID, BOOLOID, BOOLOID};

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
 * Write the states of the profiles for which "is_ours" is set.  Throws 27000
 * if a row was not updated, because that would leave the profile to be
 * requested, and paid for, again and again.
 */
void
hrflow_record_states(HrflowRun *run, const HrflowStore *store, List *profiles)
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
								   (!hrflow_write_is_complete(profile) ||
									profile->write_error != NULL));
		values[i++] = BoolGetDatum(is_kept);
		Assert(i == lengthof(state_types));
		hrflow_store_add_row(rows, values, nulls);
	}
	if (rows->n == 0)
		return;

	hrflow_store_add_rows(&parameters, rows);
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(run->account));
	if (hrflow_store_execute(get_write_states_sql(store), &parameters) < rows->n)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("a trigger or policy on table %s suppressed an update",
						store->profiles_name)));
}

/*
 * Plan the statement that writes states, and initialize its execution, but do
 * not execute it.  Throws any error that this causes.
 */
void
hrflow_record_explain(const HrflowStore *store)
{
	HrflowParameters states = {0};

	hrflow_store_add_rows(&states,
						  hrflow_store_make_rows(state_types,
												 lengthof(state_types), 0));
	hrflow_store_add(&states, TEXTOID, CStringGetTextDatum(""));
	hrflow_store_explain(get_write_states_sql(store), &states);
}

/*
 * Note that the new row of a profile was rejected.  The run reports the number
 * of such profiles, and the first error, when it ends, unless model.c stops it
 * because of them.
 */
void
hrflow_record_reject(HrflowRun *run, HrflowProfile *profile,
					 const ErrorData *error)
{
	profile->is_rejected = true;
	if (run->rejection != NULL)
		return;
	run->rejection = MemoryContextStrdup(run->context, error->message ?
										 error->message : "unknown error");
	run->rejection_code = error->sqlerrcode;
}

/* Argument of record_failure() and extend_lease(). */
typedef struct Failure
{
	HrflowRun  *run;
	const HrflowStore *store;
	HrflowProfile *profile;
} Failure;

static void
record_failure(void *arg)
{
	Failure    *failure = arg;

	hrflow_record_states(failure->run, failure->store,
						 list_make1(failure->profile));
}

static void
extend_lease(void *arg)
{
	Failure    *failure = arg;
	const HrflowProfile *profile = failure->profile;
	TimestampTz lease = GetCurrentTimestamp() + REJECTED_LEASE;
	HrflowParameters parameters = {0};

	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(profile->source_id));
	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(profile->identifier));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(profile->lease));
	hrflow_store_add(&parameters, TIMESTAMPTZOID, TimestampTzGetDatum(lease));
	hrflow_store_execute(hrflow_store_sql(failure->store, extend_lease_sql),
						 &parameters);
}

/*
 * Record the failure of each profile that has a "write_error", and for which
 * "is_ours" is set.  If that is rejected, too, clear "is_ours" and, provided
 * that requests for the profile were sent, and all were completed, try to
 * extend the lease.  After a conflict with another session, leave the profile
 * to a later write.
 */
void
hrflow_record_failures(HrflowRun *run, const HrflowStore *store,
					   List *profiles)
{
	int			level = NewGUCNestLevel();
	ListCell   *cell;

	hrflow_work_limit_locks(HRFLOW_SINGLE_LOCK_TIME);
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);
		HrflowProfileRow row = profile->row;
		Failure		failure = {
			.run = run, .store = store, .profile = profile
		};
		ErrorData  *error;

		if (!profile->is_ours || profile->write_error == NULL)
			continue;
		hrflow_work_receive(run);
		run->writing = profile;
		error = hrflow_write_try(record_failure, &failure);
		if (error != NULL && HRFLOW_IS_CONFLICT(error->sqlerrcode))
		{
			profile->row = row;
			profile->is_ours = false;
			profile->is_stuck = true;
		}
		else if (error != NULL)
		{
			/* A run that stops reports its first error itself. */
			if (!profile->is_postponed)
				hrflow_record_reject(run, profile, error);
			profile->is_ours = profile->is_stuck = false;
			if (profile->asked_at != 0 && !profile->unasked)
				(void) hrflow_write_try(extend_lease, &failure);
		}
		run->writing = NULL;
	}
	AtEOXact_GUC(false, level);
}
