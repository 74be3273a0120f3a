/*-------------------------------------------------------------------------
 *
 * write.c
 *		What was fetched is written: vectors, and the state of their profiles.
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
 * $1 and $2 are the keys of a batch, and $3 is when its lease ends.
 */
static const char lock_batch_sql[] =
"SELECT k.n::integer, p.generation, p.state, p.due_at,"
" p.attempts, p.http_status, p.last_error, %F"
" FROM unnest($1, $2) WITH ORDINALITY AS k(s, i, n)"
" JOIN %P AS p ON p.source_id = k.s AND p.%I = k.i"
" WHERE p.lease_until = $3"
" ORDER BY p.source_id, p.%I"
" FOR UPDATE OF p SKIP LOCKED";

/*
 * In these two $1 and $2 are the key of a profile.  The first one takes a
 * vector, and writes it where it differs from what is there; the second one
 * the sections of which vectors are deleted, or NULL for all, and then the
 * vectors to keep.
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

static const char delete_vectors_sql[] =
"DELETE FROM %V AS v"
" WHERE v.source_id = $1 AND v.%I = $2"
" AND ($3 IS NULL OR v.section = ANY ($3))"
" AND (v.section, v.item) NOT IN (SELECT * FROM unnest($4, $5))";

static const char write_states_sql[] =
"UPDATE %P AS p SET state = k.state, due_at = k.due_at,"
" lease_until = NULL, attempts = k.attempts,"
" refreshed_at = COALESCE(k.refreshed_at, p.refreshed_at),"
" %s http_status = k.http_status, last_error = k.error"
" FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9)"
" AS k(s, i, state, due_at, attempts, http_status,"
" refreshed_at, error, failed_at)"
" WHERE p.source_id = k.s AND p.%I = k.i";

/*
 * Copy a timestamp of the last statement's result to "value".  Returns false,
 * and leaves "value" as it is, where it is NULL.
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
 * Lock the batch's rows of the state table, and see what they are by now.
 * What another session has locked is left out: an application that writes
 * several rows locks them in its own order, and would deadlock with us.
 */
static void
lock_profiles(HrflowRun *run, const HrflowStore *store, List *profiles)
{
	HrflowParameters parameters = {0};
	uint64		n;

	hrflow_work_add_keys(&parameters, profiles);
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->lease));
	n = hrflow_store_execute(hrflow_store_sql(store, lock_batch_sql),
							 &parameters);
	for (uint64 i = 0; i < n; i++)
	{
		int			which = DatumGetInt32(hrflow_store_datum(i, 1));
		HrflowProfile *profile = list_nth(profiles, which - 1);
		bool		is_null;

		profile->is_ours = true;
		profile->is_current = profile->generation ==
			DatumGetInt64(hrflow_store_datum(i, 2));
		profile->state = hrflow_state_parse(hrflow_store_value(i, 3));
		profile->has_due_at = get_timestamp(i, 4, &profile->due_at);
		profile->old_http_status =
			DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 6, &is_null));
		profile->old_error = hrflow_store_value_or_null(i, 7);
		profile->has_failed_at = get_timestamp(i, 8, &profile->failed_at);
		if (!profile->is_current)
		{
			profile->attempts = DatumGetInt32(hrflow_store_datum(i, 5));
			profile->http_status = profile->old_http_status;
			profile->error = profile->old_error;
		}
	}
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Statements executed for each vector, and each profile, of a batch.
 */
typedef struct Plans
{
	SPIPlanPtr	insert;
	SPIPlanPtr	delete;
} Plans;

static Oid	insert_types[] = {TEXTOID, TEXTOID, TEXTOID, INT4OID,
FLOAT4ARRAYOID, TIMESTAMPTZOID};
static Oid	delete_types[] = {TEXTOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID,
INT4ARRAYOID};

/*
 * Was all of a profile answered?
 */
static bool
is_complete(const HrflowProfile *profile)
{
	return profile->is_ours && profile->is_current && !profile->unasked &&
		profile->status == HRFLOW_OK;
}

/*
 * Delete a profile's vectors, of the sections asked for, that its answer no
 * longer has.  Where "fields" is left out those are all, unless there was no
 * answer before the known ones were asked for one by one.
 */
static void
delete_old_vectors(HrflowRun *run, const Plans *plans, HrflowProfile *profile)
{
	int			n = list_length(profile->vectors);
	Datum	   *sections = palloc(sizeof(Datum) * Max(n, 1));
	Datum	   *items = palloc(sizeof(Datum) * Max(n, 1));
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};
	ListCell   *cell;

	foreach(cell, profile->vectors)
	{
		HrflowVector *vector = lfirst(cell);
		int			i = foreach_current_index(cell);

		sections[i] = CStringGetTextDatum(vector->section);
		items[i] = Int32GetDatum(vector->item);
	}
	values[0] = CStringGetTextDatum(profile->source_id);
	values[1] = CStringGetTextDatum(profile->identifier);
	values[2] = PointerGetDatum(run->sections);
	nulls[2] = run->fields == NULL && !profile->no_vector ? 'n' : ' ';
	values[3] = PointerGetDatum(construct_array(sections, n, TEXTOID, -1,
												false, TYPALIGN_INT));
	values[4] = PointerGetDatum(construct_array(items, n, INT4OID,
												sizeof(int32), true,
												TYPALIGN_INT));
	hrflow_store_execute_plan(plans->delete, values, nulls);
}

/* What write_vectors() is to do. */
typedef struct Writing
{
	HrflowRun  *run;
	const Plans *plans;
	List	   *profiles;
} Writing;

/*
 * Write the vectors of some profiles, where they differ from what is there.
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

		if (!profile->is_ours || !profile->is_current)
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
			hrflow_store_execute_plan(writing->plans->insert, values, NULL);
		}
		if (is_complete(profile))
			delete_old_vectors(writing->run, writing->plans, profile);
	}
}

/*
 * Is this an error of the server's or for a person's sake, rather than of
 * what was written?  Of class 55 only what is about locks: the rest of it a
 * trigger may well throw for one profile.
 */
static bool
is_of_server(int sqlerrcode)
{
	int			category = ERRCODE_TO_CATEGORY(sqlerrcode);

	return sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
		sqlerrcode == ERRCODE_OBJECT_IN_USE ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_TRANSACTION_ROLLBACK) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_INTERNAL_ERROR);
}

/*
 * The same in a subtransaction.  Returns NULL, or the error's message: that
 * of a vector the column does not take, or of a trigger or constraint of the
 * user's.
 */
static char *
try_write_vectors(HrflowRun *run, const Plans *plans, List *profiles)
{
	Writing		writing = {run, plans, profiles};
	ErrorData  *error = hrflow_store_try(write_vectors, &writing);

	if (error == NULL)
		return NULL;
	if (is_of_server(error->sqlerrcode))
		ReThrowError(error);
	return error->message ? error->message : pstrdup("unknown error");
}

/*
 * Write the vectors of a batch; of those profiles that give an error, alone,
 * none.
 */
static void
write_batch_vectors(HrflowRun *run, const HrflowStore *store, List *profiles)
{
	Plans		plans;
	ListCell   *cell;

	plans.insert = hrflow_store_prepare(hrflow_store_sql(store,
														 insert_vector_sql),
										lengthof(insert_types), insert_types);
	plans.delete = hrflow_store_prepare(hrflow_store_sql(store,
														 delete_vectors_sql),
										lengthof(delete_types), delete_types);
	if (try_write_vectors(run, &plans, profiles) != NULL)
	{
		foreach(cell, profiles)
		{
			HrflowProfile *profile = lfirst(cell);
			char	   *message = try_write_vectors(run, &plans,
													list_make1(profile));

			if (message == NULL)
				continue;
			profile->status = HRFLOW_INVALID_VECTOR;
			profile->error = psprintf("Could not be stored: %s", message);
		}
	}
	SPI_freeplan(plans.insert);
	SPI_freeplan(plans.delete);
}

/*
 * Write the state of the profiles that are ours.
 */
static void
write_states(HrflowRun *run, const HrflowStore *store, List *profiles,
			 bool refused)
{
	static const Oid types[] = {TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID,
	INT4OID, INT4OID, TIMESTAMPTZOID, TEXTOID, TIMESTAMPTZOID};
	HrflowRows *rows = hrflow_store_make_rows(types, lengthof(types),
											  list_length(profiles));
	HrflowParameters parameters = {0};
	TimestampTz now = GetCurrentTimestamp();
	ListCell   *cell;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);
		Datum		values[lengthof(types)];
		bool		nulls[lengthof(types)] = {false};
		int			i = 0;

		if (!profile->is_ours)
			continue;
		if (profile->is_current)
			hrflow_state_set(run, profile, refused);
		values[i++] = CStringGetTextDatum(profile->source_id);
		values[i++] = CStringGetTextDatum(profile->identifier);
		values[i++] = CStringGetTextDatum(hrflow_state_name(profile->state));
		nulls[i] = !profile->has_due_at;
		values[i++] = TimestampTzGetDatum(profile->due_at);
		values[i++] = Int32GetDatum(profile->attempts);
		nulls[i] = profile->http_status == 0;
		values[i++] = Int32GetDatum(profile->http_status);
		nulls[i] = !profile->is_refreshed;
		values[i++] = TimestampTzGetDatum(now);
		nulls[i] = profile->error == NULL;
		values[i++] = profile->error == NULL ? (Datum) 0 :
			CStringGetTextDatum(profile->error);
		nulls[i] = !profile->has_failed_at;
		values[i++] = TimestampTzGetDatum(profile->failed_at);
		Assert(i == lengthof(types));
		hrflow_store_add_row(rows, values, nulls);
	}
	if (rows->n == 0)
		return;

	hrflow_store_add_rows(&parameters, rows);
	hrflow_store_execute(hrflow_store_sql(store, write_states_sql,
										  store->has_failed_at ?
										  "failed_at = k.failed_at," : ""),
						 &parameters);
}

/* What write_profiles() is to do. */
typedef struct WrittenBatch
{
	HrflowRun  *run;
	const HrflowStore *store;
	List	   *profiles;
	bool		refused;		/* the API refused to go on */
} WrittenBatch;

static void
write_profiles(void *arg)
{
	WrittenBatch *batch = arg;

	lock_profiles(batch->run, batch->store, batch->profiles);
	write_batch_vectors(batch->run, batch->store, batch->profiles);
	write_states(batch->run, batch->store, batch->profiles, batch->refused);
}

static void
write_batch(HrflowRun *run, List *profiles, bool refused)
{
	HrflowStore store;
	WrittenBatch batch = {run, &store, profiles, refused};
	ErrorData  *error;

	hrflow_work_begin(run, &store);
	error = hrflow_store_try(write_profiles, &batch);
	if (error != NULL)
		ReThrowError(error);
	hrflow_work_end(&store);
}

/*
 * Try again to write what was locked by others, or is no longer ours.  What
 * still is keeps its lease, and is asked for again when that ends.
 */
static void
write_rest(HrflowRun *run, List *profiles, bool refused)
{
	List	   *rest = NIL;
	ListCell   *cell;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		if (!profile->is_ours)
			rest = lappend(rest, profile);
	}
	if (rest != NIL)
		write_batch(run, rest, refused);
}

/*
 * Write a batch, in a transaction of its own.
 */
void
hrflow_write(HrflowRun *run, List *profiles, bool refused)
{
	write_batch(run, profiles, refused);
	write_rest(run, profiles, refused);
}
