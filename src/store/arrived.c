/*-------------------------------------------------------------------------
 *
 * arrived.c
 *		Locks the rows of profiles that have arrived, and finds out which of the
 *		profiles may be written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "store/refresh.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/*
 * Statement that locks the rows of profiles, and returns their values.  $1 to
 * $5 are arrays of the sources, the identifiers, the leases, and the values of
 * generation and due_at when the profiles were claimed.  A profile is skipped
 * if its lease is no longer ours, unless generation and due_at are unchanged and
 * the profile is wanted: in that case, no session with a later lease has
 * recorded an answer.  As in claim.c, the plan does not depend on the statistics
 * of the table.
 */
static const char lock_arrived_sql[] =
"SELECT k.n::integer, l.*"
" FROM unnest($1, $2, $3, $4, $5) WITH ORDINALITY"
" AS k(s, i, lease, generation, due_at, n)"
" CROSS JOIN LATERAL (SELECT p.generation, p.state, p.due_at,"
" p.attempts, p.http_status, p.last_error, %F, %s,"
" COALESCE(p.lease_until <> k.lease, true) AS is_taken FROM %P AS p"
" WHERE p.source_id = k.s AND p.%I = k.i AND (p.lease_until = k.lease"
" OR (p.generation = k.generation AND p.due_at = k.due_at"
" AND p.state IS DISTINCT FROM 'unwanted'))"
" FOR NO KEY UPDATE SKIP LOCKED) AS l";

/*
 * Statement that finds whether the leases of profiles are still ours, even if
 * their rows are locked.  It returns null for profiles that are no longer
 * tracked.  The parameters are the first three of lock_arrived_sql.
 */
static const char find_locked_sql[] =
"SELECT k.n::integer, (SELECT CASE WHEN p.lease_until = k.lease THEN true"
" WHEN p.state = 'unwanted' THEN NULL ELSE false END"
" FROM %P AS p WHERE p.source_id = k.s AND p.%I = k.i)"
" FROM unnest($1, $2, $3) WITH ORDINALITY AS k(s, i, lease, n)";

static const Oid key_types[] = {TEXTOID, TEXTOID, TIMESTAMPTZOID, INT8OID,
TIMESTAMPTZOID};

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
 * Discard the results of an earlier write of a profile.
 */
static void
forget_write(HrflowProfile *profile)
{
	if (profile->write_error != NULL && profile->status == HRFLOW_OK)
		profile->is_postponed = false;
	profile->is_ours = profile->is_locked = profile->is_held = false;
	profile->is_taken = profile->is_rejected = profile->is_partial = false;
	profile->write_error = NULL;
	profile->lost = NULL;
	profile->has_lost = profile->is_kept = profile->is_undecided = false;
}

/*
 * Read the row of a profile from a row of the result of lock_arrived_sql.
 */
static void
read_row(HrflowProfile *profile, uint64 i)
{
	HrflowProfileRow *row = &profile->row;
	bool		is_null;

	memset(row, 0, sizeof(HrflowProfileRow));
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
	profile->is_taken = DatumGetBool(hrflow_store_datum(i, 10));

	/* Without the lease, write only what was paid for. */
	profile->is_ours = !profile->is_taken || hrflow_write_is_paid(profile);
}

/*
 * If the run has claimed a profile again whose lease was cleared, and both
 * answers have arrived, write only the newer one.
 */
static void
skip_older(List *profiles)
{
	ListCell   *cell;
	ListCell   *inner;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		if (!profile->is_ours || !profile->is_taken)
			continue;
		foreach(inner, profiles)
		{
			const HrflowProfile *other = lfirst(inner);

			if (other->is_ours &&
				(!other->is_taken || other->asked_at > profile->asked_at) &&
				strcmp(other->source_id, profile->source_id) == 0 &&
				strcmp(other->identifier, profile->identifier) == 0)
				profile->is_ours = false;
		}
	}
}

/*
 * Lock the rows of the profiles that may be written, and read the rows.  These
 * are the profiles whose leases are still ours, and those with fetched vectors
 * whose leases were taken over, or cleared, by other sessions that have not
 * recorded an answer.  Rows that other sessions have locked are skipped: an
 * application that writes several rows locks them in its own order, and could
 * deadlock with us.
 */
void
hrflow_arrived_lock(const HrflowStore *store, List *profiles)
{
	HrflowRows *rows = hrflow_store_make_rows(key_types, lengthof(key_types),
											  list_length(profiles));
	HrflowParameters parameters = {0};
	ListCell   *cell;
	uint64		n;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);
		Datum		values[lengthof(key_types)];

		forget_write(profile);
		values[0] = CStringGetTextDatum(profile->source_id);
		values[1] = CStringGetTextDatum(profile->identifier);
		values[2] = TimestampTzGetDatum(profile->lease);
		values[3] = Int64GetDatum(profile->generation);
		values[4] = TimestampTzGetDatum(profile->claimed_due_at);
		hrflow_store_add_row(rows, values, NULL);
	}
	hrflow_store_add_rows(&parameters, rows);
	n = hrflow_store_execute(hrflow_store_sql(store, lock_arrived_sql,
											  store->has_fetched_with ?
											  "p.sections" : "NULL::text[]"),
							 &parameters);
	for (uint64 i = 0; i < n; i++)
		read_row(list_nth(profiles, DatumGetInt32(hrflow_store_datum(i, 1)) - 1),
				 i);
	SPI_freetuptable(SPI_tuptable);
	skip_older(profiles);

	n = n == rows->n ? 0 :
		hrflow_store_execute(hrflow_store_sql(store, find_locked_sql),
							 &parameters);
	for (uint64 i = 0; i < n; i++)
	{
		int			which = DatumGetInt32(hrflow_store_datum(i, 1));
		HrflowProfile *profile = list_nth(profiles, which - 1);
		bool		is_untracked;
		bool		has_lease =
		DatumGetBool(SPI_getbinval(SPI_tuptable->vals[i],
								   SPI_tuptable->tupdesc, 2,
								   &is_untracked));

		if (profile->is_ours || is_untracked)
			continue;
		profile->is_locked = has_lease;
		profile->is_taken = !has_lease;
	}
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		/* If the profile is not to be written, do not wait for a lock. */
		profile->is_stuck &= profile->is_ours || profile->is_locked;
	}
}
