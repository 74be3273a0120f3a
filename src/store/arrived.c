/*-------------------------------------------------------------------------
 *
 * arrived.c
 *		Locks the rows of profiles that a run is about to write.
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
 * Statement that locks the rows of profiles whose leases are still ours,
 * except rows that other sessions have locked, and returns their values.  $1
 * to $3 are arrays of the sources, identifiers and ends of the leases.  As in
 * claim.c, the plan does not depend on the statistics of the table.
 */
static const char lock_arrived_sql[] =
"SELECT k.n::integer, l.*"
" FROM unnest($1, $2, $3) WITH ORDINALITY AS k(s, i, lease, n)"
" CROSS JOIN LATERAL (SELECT p.generation, p.state, p.due_at,"
" p.attempts, p.http_status, p.last_error, %F, %s FROM %P AS p"
" WHERE p.source_id = k.s AND p.%I = k.i AND p.lease_until = k.lease"
" FOR NO KEY UPDATE SKIP LOCKED) AS l";

/*
 * Statement that finds whether the leases of profiles are still ours, even if
 * their rows are locked.  It returns null for profiles that are no longer
 * tracked.  The parameters are those of lock_arrived_sql.
 */
static const char find_locked_sql[] =
"SELECT k.n::integer, (SELECT CASE WHEN p.lease_until = k.lease THEN true"
" WHEN p.state = 'unwanted' THEN NULL ELSE false END"
" FROM %P AS p WHERE p.source_id = k.s AND p.%I = k.i)"
" FROM unnest($1, $2, $3) WITH ORDINALITY AS k(s, i, lease, n)";

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
 * Return a copy of an array in the last statement's result, or NULL if it is
 * null.
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
 * Lock the rows of profiles whose leases are still ours, and read the rows.
 * Rows that other sessions have locked are skipped: an application that writes
 * several rows locks them in its own order, and could deadlock with us.  Sets
 * "is_ours", "is_locked" and "is_taken" of all given profiles, and "row" and
 * "is_current" of those that are ours.
 */
void
hrflow_arrived_lock(const HrflowStore *store, List *profiles)
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

		/* Discard the results of an earlier write. */
		if (profile->write_error != NULL && profile->status == HRFLOW_OK)
			profile->is_postponed = false;
		profile->is_ours = profile->is_locked = profile->is_held = false;
		profile->is_taken = profile->is_rejected = profile->is_partial = false;
		profile->write_error = NULL;
		profile->lost = NULL;
		profile->is_kept = profile->is_undecided = false;
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

		/* If the lease is no longer ours, do not wait for a lock. */
		profile->is_stuck &= profile->is_ours || profile->is_locked;
	}
}
