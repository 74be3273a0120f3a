/*-------------------------------------------------------------------------
 *
 * refresh.c
 *		hrflow_refresh(): fetches what is due in a store, batch by batch.
 *
 * A batch takes two short transactions.  The first one claims profiles: it
 * gives them a lease, so that nobody else asks for them.  Then they are
 * fetched, with no snapshot and no lock held.  The second one writes what came.
 * Whoever dies in between loses the lease when its time is over, and nothing
 * else.
 *
 * The time a lease ends also tells whose it is: nothing is written of a
 * profile whose lease is another's by then, or that has changed since it was
 * claimed, which its generation tells.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "compat.h"
#include "funcapi.h"
#include "ask/ask.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "store/store.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(hrflow_refresh);

/* The arguments, in their order. */
enum
{
	ARG_STORE,
	ARG_FIELDS,
	ARG_MAX_AGE,
	ARG_TIME_BUDGET,
	ARG_MAX_PROFILES,
	ARG_BATCH_SIZE,
	ARG_MAX_ATTEMPTS,
	ARG_PROFILES
};

/*
 * The longest time a batch is fetched, in milliseconds, unless batch_timeout
 * says less.  It bounds how long the profiles of a backend that died wait.
 */
#define MAX_BATCH_TIME (5 * 60 * 1000)

/* What a lease has more, to write the batch: in milliseconds. */
#define LEASE_MARGIN (30 * 1000)

/* A run in which more than this part, and this many, are gone erases none. */
#define MAX_GONE_PART 0.05
#define MAX_GONE_FREE 20

/* The longest time after which a missing one is asked for again. */
#define MAX_MISSING_WAIT (30 * USECS_PER_DAY)

/* As many failures that are not the profiles', and nothing else, end a run. */
#define MIN_OUTAGE 8

/* How long those of such a batch have to wait. */
#define MIN_POSTPONEMENT USECS_PER_MINUTE
#define MAX_POSTPONEMENT USECS_PER_HOUR

/* How long a lock is waited for to give leases back, in milliseconds. */
#define RELEASE_LOCK_TIMEOUT 1000

/* What the API is asked for section by section where "fields" is left out. */
#define KNOWN_SECTIONS \
	"{\"profile\":1,\"skills\":1,\"interests\":1,\"experiences\":1,\"educations\":1}"

/* Seconds between two lines of progress. */
#define PROGRESS_INTERVAL 5

typedef struct Vector
{
	char	   *section;
	int			item;
	ArrayType  *value;
} Vector;

/*
 * A profile that was claimed, and what became of it.
 */
typedef struct Profile
{
	MemoryContext context;		/* the batch's */
	char	   *source_id;
	char	   *identifier;
	int64		generation;		/* when it was claimed */
	int			attempts;		/* this one included */
	bool		was_missing;	/* the last answer was that there is none */

	/* What the fetch gave. */
	HrflowStatus status;		/* the first that is neither of the following */
	bool		unasked;		/* it was not asked for to the end */
	bool		is_exhausted;	/* nor at all: its attempts are used up */
	bool		is_postponed;	/* its batch says nothing of it */
	bool		no_vector;		/* some section has none */
	int			http_status;
	char	   *error;
	List	   *vectors;

	/* What the state table has, when it is written. */
	bool		is_ours;		/* the lease is still ours, */
	bool		is_current;		/* and nothing has changed since */
	char	   *state;
	Datum		due_at;
	bool		has_due_at;
	int			old_http_status;
	char	   *old_error;
	TimestampTz failed_at;		/* see set_failed_at() */
	bool		has_failed_at;
	bool		is_refreshed;
} Profile;

typedef struct Gone
{
	char	   *source_id;
	char	   *identifier;
	int64		generation;
} Gone;

typedef struct Run
{
	MemoryContext context;		/* as long as the call */
	MemoryContext batch_context;	/* reset after each batch */

	/* The arguments. */
	Oid			vectors;
	Oid			profiles;		/* InvalidOid: by its name */
	Jsonb	   *fields;			/* NULL: left out */
	const char *fields_text;
	ArrayType  *sections;		/* those of "fields"; if that is left out,
								 * those that are known */
	List	   *parts;			/* they one by one: Jsonb */
	Interval   *max_age;
	TimestampTz deadline;		/* of the time budget */
	int64		max_profiles;
	int			batch_size;
	int			max_attempts;

	char	   *name;			/* of the store */
	TimestampTz started;
	TimestampTz lease;			/* when that of the present batch ends */
	List	   *bad_sources;	/* those the API does not know: char * */
	List	   *gone;			/* to be erased at the end: Gone */
	bool		stopped;		/* nothing more is to be claimed */

	int64		nclaimed;
	int64		nok;
	int64		nretry;			/* failed, and to be tried again */
	int64		nfailed;
	int64		nmissing;
	int64		ngone;

	bool		is_silent;
	int64		ndue;			/* when the run began; for a person */
	TimestampTz reported;		/* when progress was last shown */
} Run;

/*
 * ------------------------------------------------------------------------
 * Transactions
 * ------------------------------------------------------------------------
 */

/*
 * What has no other way than one that is off seems to cost 10^10 before 18: it
 * is not worth compiling for that.
 */
static const char *const planner_settings[] = {
	"enable_seqscan", "enable_bitmapscan", "enable_hashjoin",
	"enable_mergejoin", "jit"
};

/*
 * Begin with a store: a snapshot is there until end_work().
 */
static void
begin_work(Run *run, HrflowStore *store)
{
	/* Claiming skips what is locked: other levels would fail instead. */
	XactIsoLevel = XACT_READ_COMMITTED;
	PushActiveSnapshot(GetTransactionSnapshot());
	hrflow_store_open(store, run->vectors, run->profiles, HRFLOW_STORE_OWN);

	/*
	 * Every statement is about a batch's rows, and finds them by their keys,
	 * however small the tables were when they were last analyzed.
	 */
	for (int i = 0; i < lengthof(planner_settings); i++)
		(void) set_config_option(planner_settings[i], "off", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
}

static void
end_work(HrflowStore *store)
{
	hrflow_store_close(store);
	PopActiveSnapshot();
	SPI_commit();
}

/*
 * Add an array of texts, of which some may be NULL, to a statement.
 */
static void
add_texts(HrflowParameters *parameters, char **texts, int n)
{
	Datum	   *values = palloc(sizeof(Datum) * Max(n, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(n, 1));
	int			dims[] = {n};
	int			lower[] = {1};

	for (int i = 0; i < n; i++)
	{
		nulls[i] = texts[i] == NULL;
		values[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(texts[i]);
	}
	hrflow_store_add(parameters, TEXTARRAYOID,
					 PointerGetDatum(n == 0 ?
									 construct_empty_array(TEXTOID) :
									 construct_md_array(values, nulls, 1, dims,
														lower, TEXTOID, -1,
														false, TYPALIGN_INT)));
}

/*
 * The same of values of fixed size, NULL where "nulls" says so.
 */
static void
add_values(HrflowParameters *parameters, Oid array_type, Oid type, int size,
		   Datum *values, bool *nulls, int n)
{
	int			dims[] = {n};
	int			lower[] = {1};

	hrflow_store_add(parameters, array_type,
					 PointerGetDatum(n == 0 ? construct_empty_array(type) :
									 construct_md_array(values, nulls, 1, dims,
														lower, type, size,
														true,
														size == 4 ?
														TYPALIGN_INT :
														TYPALIGN_DOUBLE)));
}

/*
 * Add the keys of profiles: two arrays.
 */
static void
add_keys(HrflowParameters *parameters, List *profiles)
{
	int			n = list_length(profiles);
	char	  **sources = palloc(sizeof(char *) * Max(n, 1));
	char	  **identifiers = palloc(sizeof(char *) * Max(n, 1));
	ListCell   *cell;

	foreach(cell, profiles)
	{
		Profile    *profile = lfirst(cell);

		sources[foreach_current_index(cell)] = profile->source_id;
		identifiers[foreach_current_index(cell)] = profile->identifier;
	}
	add_texts(parameters, sources, n);
	add_texts(parameters, identifiers, n);
}

/*
 * ------------------------------------------------------------------------
 * Claiming
 * ------------------------------------------------------------------------
 */

/*
 * How long the next batch may take, in milliseconds.
 */
static int
batch_time(Run *run)
{
	int			timeout = hrflow_settings_get(true)->batch_timeout;
	int			limit = timeout > 0 ? Min(timeout, MAX_BATCH_TIME) :
	MAX_BATCH_TIME;

	if (run->deadline != DT_NOEND)
	{
		long		rest =
		TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										run->deadline);

		limit = Min(limit, rest);
	}
	return limit;
}

/*
 * Claim a batch.  Returns the profiles, which are to be fetched in at most
 * "limit" milliseconds; none when the time is up.
 */
static List *
claim(Run *run, int *limit)
{
	TimestampTz now;
	int64		size = Min(run->batch_size, run->max_profiles - run->nclaimed);
	HrflowParameters parameters = {0};
	HrflowStore store;
	List	   *profiles = NIL;
	char	  **bad = palloc(sizeof(char *) *
							 Max(list_length(run->bad_sources), 1));
	ListCell   *cell;
	uint64		n;

	/* A lease begins when it is given, however long the table was locked. */
	begin_work(run, &store);
	LockRelationOid(RelationGetRelid(store.profiles), RowExclusiveLock);
	*limit = batch_time(run);
	now = GetCurrentTimestamp();
	run->lease = TimestampTzPlusMilliseconds(now, *limit + LEASE_MARGIN);
	if (*limit <= 0)
		size = 0;
	hrflow_store_add(&parameters, TIMESTAMPTZOID, TimestampTzGetDatum(now));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->started));
	hrflow_store_add(&parameters, INT8OID, Int64GetDatum(size));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->lease));
	foreach(cell, run->bad_sources)
		bad[foreach_current_index(cell)] = lfirst(cell);
	add_texts(&parameters, bad, list_length(run->bad_sources));

	/*
	 * What this run has refreshed and is due again, max_age being short, is
	 * the next one's.
	 */
	n = hrflow_store_execute(hrflow_store_sql(&store,
											  "WITH claimed AS MATERIALIZED"
											  " (SELECT p.source_id AS s, p.%I AS i FROM %P AS p"
											  " WHERE p.due_at <= $1"
											  " AND (p.lease_until IS NULL OR p.lease_until <= $1)"
											  " AND (p.state = 'due' OR p.due_at <= $2)"
											  " AND p.source_id <> ALL ($5)"
											  " ORDER BY p.due_at LIMIT $3"
											  " FOR UPDATE SKIP LOCKED)"
											  " UPDATE %P AS p"
											  " SET lease_until = $4, attempts = p.attempts + 1"
											  " FROM claimed AS c"
											  " WHERE p.source_id = c.s AND p.%I = c.i"
											  " RETURNING p.source_id, p.%I, p.generation,"
											  " p.attempts, p.state"),
							 &parameters);
	for (uint64 i = 0; i < n; i++)
	{
		Profile    *profile = palloc0(sizeof(Profile));

		profile->context = run->batch_context;
		profile->source_id = hrflow_store_value(i, 1);
		profile->identifier = hrflow_store_value(i, 2);
		profile->generation = DatumGetInt64(hrflow_store_datum(i, 3));
		profile->attempts = DatumGetInt32(hrflow_store_datum(i, 4));
		profile->was_missing = strcmp(hrflow_store_value(i, 5), "missing") == 0;
		profiles = lappend(profiles, profile);
	}
	SPI_freetuptable(SPI_tuptable);
	end_work(&store);
	run->nclaimed += n;
	return profiles;
}

/*
 * ------------------------------------------------------------------------
 * Fetching
 * ------------------------------------------------------------------------
 */

/*
 * Take a result; the transport's memory is not ours to keep.
 */
static void
take_result(HrflowWanted *wanted, const char *section, int item,
			const HrflowResult *result, bool unasked)
{
	Profile    *profile = wanted->tag;
	MemoryContext old = MemoryContextSwitchTo(profile->context);

	if (result->http_status != 0)
		profile->http_status = result->http_status;
	if (unasked)
		profile->unasked = true;
	if (result->status == HRFLOW_OK && section != NULL)
	{
		Vector	   *vector = palloc(sizeof(Vector));

		vector->section = pstrdup(section);
		vector->item = item;
		vector->value = (ArrayType *) palloc(VARSIZE(result->vector));
		memcpy(vector->value, result->vector, VARSIZE(result->vector));
		profile->vectors = lappend(profile->vectors, vector);
	}
	else if (result->status == HRFLOW_NO_VECTOR)
		profile->no_vector = true;
	else if (result->status != HRFLOW_OK && profile->status == HRFLOW_OK)
	{
		profile->status = result->status;
		profile->error = hrflow_error_describe(result);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Want a profile, or a part of it.
 */
static void
want(Run *run, HrflowIdentifier kind, HrflowWanted *wanted, Profile *profile,
	 Jsonb *fields)
{
	memset(wanted, 0, sizeof(HrflowWanted));
	wanted->source_id = profile->source_id;
	wanted->identifiers[kind] = profile->identifier;
	wanted->fields = fields;
	wanted->fields_text = fields == run->fields ? run->fields_text :
		hrflow_fields_text(fields);
	wanted->tag = profile;
}

/*
 * Fetch a batch.  Returns false, and why, when the API refused to go on.
 *
 * Where a section has no vector, the API answers nothing at all: then the
 * sections are asked for one by one, so that the others are had.
 */
static bool
fetch(Run *run, HrflowIdentifier kind, List *profiles, int limit,
	  HrflowResult *refusal)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  limit);
	int			nparts = list_length(run->parts);
	int			n = 0;
	HrflowWanted *wanted;
	ListCell   *cell;
	ListCell   *part;

	wanted = palloc(sizeof(HrflowWanted) * list_length(profiles));
	foreach(cell, profiles)
	{
		Profile    *profile = lfirst(cell);

		if (profile->attempts <= run->max_attempts)
			want(run, kind, &wanted[n++], profile, run->fields);
		else
		{
			profile->is_exhausted = true;
			profile->status = HRFLOW_CONNECTION_LOST;
			profile->error = psprintf("The session ended while it was fetched, %d times.",
									  profile->attempts - 1);
		}
	}

	/* No snapshot is kept while the network is awaited. */
	InvalidateCatalogSnapshot();
	if (!hrflow_batch_fetch(wanted, n, limit, take_result, refusal))
		return false;

	wanted = palloc(sizeof(HrflowWanted) * list_length(profiles) *
					Max(nparts, 1));
	n = 0;
	foreach(cell, profiles)
	{
		Profile    *profile = lfirst(cell);

		if (profile->no_vector && nparts > 1)
		{
			foreach(part, run->parts)
				want(run, kind, &wanted[n++], profile, lfirst(part));
		}
	}
	limit = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
	return n == 0 || hrflow_batch_fetch(wanted, n, Max(limit, 1), take_result,
										refusal);
}

/*
 * ------------------------------------------------------------------------
 * Writing
 * ------------------------------------------------------------------------
 */

/*
 * Lock the batch's rows of the state table, and see what they are by now.
 * What another session has locked is left out: an application that writes
 * several rows locks them in its own order, and would deadlock with us.
 */
static void
lock_profiles(Run *run, const HrflowStore *store, List *profiles)
{
	HrflowParameters parameters = {0};
	uint64		n;

	add_keys(&parameters, profiles);
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->lease));
	n = hrflow_store_execute(hrflow_store_sql(store,
											  psprintf("SELECT k.n::integer, p.generation, p.state, p.due_at,"
													   " p.attempts, p.http_status, p.last_error, %s"
													   " FROM unnest($1, $2) WITH ORDINALITY AS k(s, i, n)"
													   " JOIN %%P AS p ON p.source_id = k.s AND p.%%I = k.i"
													   " WHERE p.lease_until = $3"
													   " ORDER BY p.source_id, p.%%I"
													   " FOR UPDATE OF p SKIP LOCKED",
													   store->has_failed_at ? "p.failed_at" :
													   "NULL::timestamptz")),
							 &parameters);
	for (uint64 i = 0; i < n; i++)
	{
		int			which = DatumGetInt32(hrflow_store_datum(i, 1));
		Profile    *profile = list_nth(profiles, which - 1);
		bool		is_null;

		profile->is_ours = true;
		profile->is_current = profile->generation ==
			DatumGetInt64(hrflow_store_datum(i, 2));
		profile->state = hrflow_store_value(i, 3);
		profile->due_at = SPI_getbinval(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 4, &is_null);
		profile->has_due_at = !is_null;
		profile->old_http_status =
			DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 6, &is_null));
		profile->old_error = hrflow_store_value_or_null(i, 7);
		profile->failed_at =
			DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[i],
											  SPI_tuptable->tupdesc, 8,
											  &is_null));
		profile->has_failed_at = !is_null;
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

static SPIPlanPtr
prepare(const HrflowStore *store, int nargs, const char *template, Oid *types)
{
	MemoryContext context = CurrentMemoryContext;
	SPIPlanPtr	plan = SPI_prepare(hrflow_store_sql(store, template), nargs,
								   types);

	MemoryContextSwitchTo(context);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s",
			 SPI_result_code_string(SPI_result));
	return plan;
}

static void
execute_plan(SPIPlanPtr plan, Datum *values, const char *nulls)
{
	MemoryContext context = CurrentMemoryContext;
	int			code = SPI_execute_plan(plan, values, nulls, false, 0);

	MemoryContextSwitchTo(context);
	if (code < 0)
		elog(ERROR, "SPI_execute_plan failed: %s",
			 SPI_result_code_string(code));
}

/*
 * Was all of a profile answered?
 */
static bool
is_complete(const Profile *profile)
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
delete_old_vectors(Run *run, const Plans *plans, Profile *profile)
{
	int			n = list_length(profile->vectors);
	Datum	   *sections = palloc(sizeof(Datum) * Max(n, 1));
	Datum	   *items = palloc(sizeof(Datum) * Max(n, 1));
	Datum		values[5];
	char		nulls[5] = "     ";
	ListCell   *cell;

	foreach(cell, profile->vectors)
	{
		Vector	   *vector = lfirst(cell);
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
	execute_plan(plans->delete, values, nulls);
}

/* What write_vectors() is to do. */
typedef struct Writing
{
	Run		   *run;
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
		Profile    *profile = lfirst(cell);

		if (!profile->is_ours || !profile->is_current)
			continue;
		foreach(inner, profile->vectors)
		{
			Vector	   *vector = lfirst(inner);
			Datum		values[6];

			values[0] = CStringGetTextDatum(profile->source_id);
			values[1] = CStringGetTextDatum(profile->identifier);
			values[2] = CStringGetTextDatum(vector->section);
			values[3] = Int32GetDatum(vector->item);
			values[4] = PointerGetDatum(vector->value);
			values[5] = now;
			execute_plan(writing->plans->insert, values, NULL);
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
try_write_vectors(Run *run, const Plans *plans, List *profiles)
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
write_batch_vectors(Run *run, const HrflowStore *store, List *profiles)
{
	Plans		plans;
	ListCell   *cell;

	plans.insert = prepare(store, 6,
						   "INSERT INTO %V AS v"
						   " (source_id, %I, section, item, vector, fetched_at)"
						   " SELECT $1, $2, $3, $4, $5::%T, $6"
						   " WHERE NOT EXISTS (SELECT FROM %V AS o"
						   " WHERE o.source_id = $1 AND o.%I = $2"
						   " AND o.section = $3 AND o.item = $4"
						   " AND o.vector::real[] = $5::%T::real[])"
						   " ON CONFLICT (source_id, %I, section, item)"
						   " DO UPDATE SET vector = excluded.vector,"
						   " fetched_at = excluded.fetched_at",
						   insert_types);
	plans.delete = prepare(store, 5,
						   "DELETE FROM %V AS v"
						   " WHERE v.source_id = $1 AND v.%I = $2"
						   " AND ($3 IS NULL OR v.section = ANY ($3))"
						   " AND (v.section, v.item)"
						   " NOT IN (SELECT * FROM unnest($4, $5))",
						   delete_types);
	if (try_write_vectors(run, &plans, profiles) != NULL)
	{
		foreach(cell, profiles)
		{
			Profile    *profile = lfirst(cell);
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
 * Is this the API saying no to us, rather than of a profile?
 */
static bool
is_our_fault(HrflowStatus status)
{
	switch (status)
	{
		case HRFLOW_UNAUTHORIZED:
		case HRFLOW_FORBIDDEN:
		case HRFLOW_OVER_QUOTA:
		case HRFLOW_RATE_LIMITED:
			return true;
		default:
			return false;
	}
}

/*
 * "age" from now, and up to a tenth less, so that what was fetched together
 * is not due together for ever.
 */
static TimestampTz
jitter(const Interval *age)
{
	double		factor = 1 - 0.1 * pg_prng_double(&pg_global_prng_state);
	Datum		interval = DirectFunctionCall2(interval_mul,
											   IntervalPGetDatum(age),
											   Float8GetDatum(factor));

	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(GetCurrentTimestamp()),
												   interval));
}

/*
 * When to try again: after 1, 5, 25 minutes, and so on to a day.
 */
static TimestampTz
backoff(int attempts)
{
	double		minutes = Min(pow(5, Min(attempts, 10) - 1), 24 * 60);

	minutes *= 0.5 + 0.5 * pg_prng_double(&pg_global_prng_state);
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
									   minutes * 60 * 1000);
}

/*
 * When to ask again for a profile that the API does not know: after max_age,
 * or a day if that is sooner.  One that was missing before, and is kept for
 * want of proof, waits as long as it has been missing, up to a month.
 */
static TimestampTz
missing_until(Run *run, const Profile *profile)
{
	Interval	day = {.day = 1};
	TimestampTz due = Min(jitter(run->max_age), jitter(&day));
	TimestampTz now = GetCurrentTimestamp();

	if (strcmp(profile->state, "missing") == 0 && profile->has_failed_at)
	{
		int64		wait = Min(now - profile->failed_at, MAX_MISSING_WAIT);

		wait *= 1 - 0.1 * pg_prng_double(&pg_global_prng_state);
		due = Max(due, now + wait);
	}
	return due;
}

/*
 * Is a profile's error the one it had before?
 */
static bool
has_old_error(const Profile *profile)
{
	return profile->error != NULL && profile->old_error != NULL &&
		strcmp(profile->error, profile->old_error) == 0;
}

/*
 * When to ask again for a profile of a batch that says nothing of it:
 * after a minute, and while its error stays the same as long as it has had it,
 * up to an hour.  So the next run begins with others.  One that was out of time
 * has met no error now.
 */
static TimestampTz
postponed_until(const Profile *profile)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		wait = MIN_POSTPONEMENT;

	if (!profile->unasked && profile->has_failed_at && has_old_error(profile))
		wait = Min(Max(now - profile->failed_at, wait), MAX_POSTPONEMENT);
	return now + wait * (1 - 0.1 * pg_prng_double(&pg_global_prng_state));
}

/*
 * The new state of a profile that is ours and current.
 */
static void
set_state(Run *run, Profile *profile, bool refused)
{
	if (profile->is_exhausted)
	{
		profile->attempts--;
		profile->state = "failed";
		profile->has_due_at = false;
		run->nfailed++;
	}
	else if (profile->unasked || profile->is_postponed ||
			 profile->status == HRFLOW_INVALID_SOURCE ||
			 (refused && is_our_fault(profile->status)))
	{
		/* As if it had not been claimed; no error if there was no time. */
		profile->attempts--;
		if (profile->unasked && profile->status == HRFLOW_TIMEOUT)
		{
			profile->http_status = profile->old_http_status;
			profile->error = profile->old_error;
		}
		if (profile->is_postponed && profile->has_due_at)
			profile->due_at = TimestampTzGetDatum(postponed_until(profile));
	}
	else if (profile->status == HRFLOW_OK)
	{
		profile->state = "ok";
		profile->due_at = TimestampTzGetDatum(jitter(run->max_age));
		profile->has_due_at = true;
		profile->attempts = 0;
		profile->is_refreshed = true;
		run->nok++;
	}
	else if (profile->status == HRFLOW_NOT_FOUND)
	{
		profile->due_at = TimestampTzGetDatum(missing_until(run, profile));
		profile->state = "missing";
		profile->has_due_at = true;
		profile->attempts = 0;
		run->nmissing++;
	}
	else if (profile->attempts >= run->max_attempts)
	{
		profile->state = "failed";
		profile->has_due_at = false;
		run->nfailed++;
	}
	else
	{
		profile->state = "due";
		profile->due_at = TimestampTzGetDatum(backoff(profile->attempts));
		profile->has_due_at = true;
		run->nretry++;
	}
}

/*
 * When it failed: the last time.  Of a missing one that is when it was first
 * not found, which erase_gone() must know; and of one that was not answered,
 * when that error came first.
 */
static void
set_failed_at(Profile *profile, const char *old_state)
{
	bool		failed_now;

	if (strcmp(profile->state, "missing") == 0)
		failed_now = strcmp(old_state, "missing") != 0 ||
			!profile->has_failed_at;
	else if (profile->attempts > 0 && !profile->unasked &&
			 !profile->is_postponed)
		failed_now = true;
	else
		failed_now = profile->error != NULL && !has_old_error(profile);

	if (failed_now)
	{
		profile->failed_at = GetCurrentTimestamp();
		profile->has_failed_at = true;
	}
}

/*
 * Write the state of the profiles that are ours.
 */
static void
write_states(Run *run, const HrflowStore *store, List *profiles, bool refused)
{
	HrflowParameters parameters = {0};
	int			max = list_length(profiles);
	List	   *ours = NIL;
	char	  **states = palloc(sizeof(char *) * max);
	char	  **errors = palloc(sizeof(char *) * max);
	Datum	   *due = palloc(sizeof(Datum) * max);
	Datum	   *attempts = palloc(sizeof(Datum) * max);
	Datum	   *statuses = palloc(sizeof(Datum) * max);
	bool	   *no_due = palloc(sizeof(bool) * max);
	bool	   *no_status = palloc(sizeof(bool) * max);
	bool	   *never = palloc0(sizeof(bool) * max);
	Datum	   *refreshed = palloc(sizeof(Datum) * max);
	bool	   *not_refreshed = palloc(sizeof(bool) * max);
	Datum	   *failed = palloc(sizeof(Datum) * max);
	bool	   *not_failed = palloc(sizeof(bool) * max);
	ListCell   *cell;
	int			n = 0;

	foreach(cell, profiles)
	{
		Profile    *profile = lfirst(cell);

		if (!profile->is_ours)
			continue;
		if (profile->is_current)
		{
			char	   *old_state = profile->state;

			set_state(run, profile, refused);
			set_failed_at(profile, old_state);
		}
		ours = lappend(ours, profile);
		states[n] = profile->state;
		errors[n] = profile->error;
		due[n] = profile->due_at;
		no_due[n] = !profile->has_due_at;
		attempts[n] = Int32GetDatum(profile->attempts);
		statuses[n] = Int32GetDatum(profile->http_status);
		no_status[n] = profile->http_status == 0;
		refreshed[n] = TimestampTzGetDatum(GetCurrentTimestamp());
		not_refreshed[n] = !profile->is_refreshed;
		failed[n] = TimestampTzGetDatum(profile->failed_at);
		not_failed[n] = !profile->has_failed_at;
		n++;
	}
	if (n == 0)
		return;

	add_keys(&parameters, ours);
	add_texts(&parameters, states, n);
	add_values(&parameters, TIMESTAMPTZARRAYOID, TIMESTAMPTZOID,
			   sizeof(TimestampTz), due, no_due, n);
	add_values(&parameters, INT4ARRAYOID, INT4OID, sizeof(int32), attempts,
			   never, n);
	add_values(&parameters, INT4ARRAYOID, INT4OID, sizeof(int32), statuses,
			   no_status, n);
	add_values(&parameters, TIMESTAMPTZARRAYOID, TIMESTAMPTZOID,
			   sizeof(TimestampTz), refreshed, not_refreshed, n);
	add_texts(&parameters, errors, n);
	add_values(&parameters, TIMESTAMPTZARRAYOID, TIMESTAMPTZOID,
			   sizeof(TimestampTz), failed, not_failed, n);
	hrflow_store_execute(hrflow_store_sql(store,
										  psprintf("UPDATE %%P AS p SET state = k.state, due_at = k.due_at,"
												   " lease_until = NULL, attempts = k.attempts,"
												   " refreshed_at = COALESCE(k.refreshed_at, p.refreshed_at),"
												   " %s http_status = k.http_status, last_error = k.error"
												   " FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9)"
												   " AS k(s, i, state, due_at, attempts, http_status,"
												   " refreshed_at, error, failed_at)"
												   " WHERE p.source_id = k.s AND p.%%I = k.i",
												   store->has_failed_at ?
												   "failed_at = k.failed_at," : "")),
						 &parameters);
}

/*
 * Why a batch says nothing of its profiles, or NULL: that nothing was
 * answered, for the network's sake or because its time was over; or that all
 * met the same, which a setting or "fields" makes of them: no host of links is
 * allowed, or what was asked is not.  A few such failures are the profiles',
 * where that is all, so that those who are alone come to an end.
 *
 * An empty reason: the time was the run's, which needs none.
 */
static char *
why_not_counted(Run *run, List *profiles, int limit)
{
	int			nnetwork = 0;
	int			nalike = 0;
	int			nunasked = 0;
	char	   *error = NULL;
	HrflowStatus status = HRFLOW_OK;
	ListCell   *cell;

	foreach(cell, profiles)
	{
		Profile    *profile = lfirst(cell);

		if (profile->is_exhausted)
			continue;
		if (profile->unasked)
		{
			nunasked++;
			continue;
		}
		switch (profile->status)
		{
			case HRFLOW_CONNECT_FAILED:
			case HRFLOW_CONNECTION_LOST:
			case HRFLOW_TIMEOUT:
			case HRFLOW_INVALID_REPLY:
			case HRFLOW_HTTP_ERROR:
				nnetwork++;
				break;
			case HRFLOW_LINK_REFUSED:
			case HRFLOW_LINK_EXPIRED:
				if (nalike++ > 0 && profile->status != status)
					return NULL;
				break;
			case HRFLOW_INVALID_REQUEST:
				if (nalike++ > 0 && (profile->status != status ||
									 strcmp(profile->error, error) != 0))
					return NULL;
				break;
			default:
				return NULL;
		}
		status = profile->status;
		error = profile->error;
	}

	if (nnetwork > 0 && nalike > 0)
		return NULL;
	if (nalike >= MIN_OUTAGE)
		return psprintf("all profiles met the same; %s", error);
	if (nalike > 0 || (nnetwork < MIN_OUTAGE && nunasked == 0))
		return NULL;
	if (error != NULL)
		return psprintf("nothing was answered; %s", error);
	if (TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 10) < run->deadline)
		return psprintf("nothing was answered within %d ms", limit);
	return pstrdup("");
}

/*
 * Remember those that the API did not know at the last refresh, and does not
 * now; and stop when they are so many that it must be a mistake.
 */
static void
note_gone(Run *run, List *profiles)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);
	int64		ndone;
	ListCell   *cell;

	foreach(cell, profiles)
	{
		Profile    *profile = lfirst(cell);
		Gone	   *gone;

		if (!profile->is_ours || !profile->is_current || profile->unasked ||
			profile->status != HRFLOW_NOT_FOUND || !profile->was_missing)
			continue;
		gone = palloc(sizeof(Gone));
		gone->source_id = pstrdup(profile->source_id);
		gone->identifier = pstrdup(profile->identifier);
		gone->generation = profile->generation;
		run->gone = lappend(run->gone, gone);
	}
	MemoryContextSwitchTo(old);

	ndone = run->nok + run->nretry + run->nfailed + run->nmissing;
	if (list_length(run->gone) >= MAX_GONE_FREE &&
		list_length(run->gone) > MAX_GONE_PART * ndone)
	{
		ereport(WARNING,
				(errmsg("refresh of %s was stopped: too many profiles are gone",
						run->name),
				 errdetail("Of " INT64_FORMAT " profiles the API does not know %d, twice by now.  Nothing was erased.",
						   ndone, list_length(run->gone)),
				 errhint("Check hrflow_embed.base_url, the API key and the source.  If the profiles were deleted, untrack them with hrflow_untrack().")));
		run->gone = NIL;
		run->stopped = true;
	}
}

/*
 * Erase those that are gone: where the API is known to know others.  Another
 * one of the source must have been refreshed since the one was first not
 * found; else, a wrong address or key would erase a store little by little,
 * however few a run asks for.  Without that, those stay missing.
 *
 * A table of a person's that has no failed_at does not tell since when they
 * are missing: it was before the run, so what the run has refreshed counts.
 */
static void
erase_gone(Run *run)
{
	int			n = list_length(run->gone);
	HrflowParameters parameters = {0};
	HrflowStore store;
	char	  **sources = palloc(sizeof(char *) * n);
	char	  **identifiers = palloc(sizeof(char *) * n);
	Datum	   *generations = palloc(sizeof(Datum) * n);
	bool	   *nulls = palloc0(sizeof(bool) * n);
	int64		nkept;
	ListCell   *cell;

	foreach(cell, run->gone)
	{
		Gone	   *gone = lfirst(cell);
		int			i = foreach_current_index(cell);

		sources[i] = gone->source_id;
		identifiers[i] = gone->identifier;
		generations[i] = Int64GetDatum(gone->generation);
	}

	begin_work(run, &store);
	add_texts(&parameters, sources, n);
	add_texts(&parameters, identifiers, n);
	add_values(&parameters, INT8ARRAYOID, INT8OID, sizeof(int64), generations,
			   nulls, n);
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->started));
	hrflow_store_execute(hrflow_store_sql(&store,
										  psprintf("WITH known AS MATERIALIZED"
												   " (SELECT p.source_id AS s, max(p.refreshed_at) AS at"
												   " FROM %%P AS p WHERE p.source_id = ANY ($1) GROUP BY 1),"
												   " locked AS MATERIALIZED"
												   " (SELECT p.source_id AS s, p.%%I AS i,"
												   " COALESCE(known.at > COALESCE(%s, $4), false) AS proven"
												   " FROM %%P AS p JOIN unnest($1, $2, $3) AS k(s, i, generation)"
												   " ON p.source_id = k.s AND p.%%I = k.i"
												   " JOIN known ON p.source_id = known.s"
												   " WHERE p.state = 'missing' AND p.generation = k.generation"
												   " ORDER BY p.source_id, p.%%I"
												   " FOR UPDATE OF p SKIP LOCKED),"
												   " gone AS (UPDATE %%P AS p SET state = 'gone', due_at = NULL,"
												   " lease_until = NULL FROM locked AS k"
												   " WHERE p.source_id = k.s AND p.%%I = k.i AND k.proven"
												   " RETURNING k.s, k.i),"
												   " vectors AS (DELETE FROM %%V AS v USING gone AS k"
												   " WHERE v.source_id = k.s AND v.%%I = k.i)"
												   " SELECT count(*), count(*) FILTER (WHERE NOT proven) FROM locked",
												   store.has_failed_at ? "p.failed_at" : "NULL")),
						 &parameters);
	nkept = DatumGetInt64(hrflow_store_datum(0, 2));
	run->ngone = DatumGetInt64(hrflow_store_datum(0, 1)) - nkept;
	end_work(&store);

	if (nkept > 0)
		ereport(WARNING,
				(errmsg_plural("refresh of %s keeps " INT64_FORMAT " profile that the API does not know",
							   "refresh of %s keeps " INT64_FORMAT " profiles that the API does not know",
							   nkept, run->name, nkept),
				 errdetail("Since each was first not found, no other profile of its source was refreshed."),
				 errhint("Check hrflow_embed.base_url, the API key and the source.  If the profiles were deleted, untrack them with hrflow_untrack().")));
}

/* What write_profiles() is to do. */
typedef struct Batch
{
	Run		   *run;
	const HrflowStore *store;
	List	   *profiles;
	bool		refused;		/* the API refused to go on */
} Batch;

static void
write_profiles(void *arg)
{
	Batch	   *batch = arg;

	lock_profiles(batch->run, batch->store, batch->profiles);
	write_batch_vectors(batch->run, batch->store, batch->profiles);
	write_states(batch->run, batch->store, batch->profiles, batch->refused);
}

/*
 * Write a batch.
 */
static void
write_batch(Run *run, List *profiles, bool refused)
{
	HrflowStore store;
	Batch		batch = {run, &store, profiles, refused};
	ErrorData  *error;

	begin_work(run, &store);
	error = hrflow_store_try(write_profiles, &batch);
	if (error != NULL)
		ReThrowError(error);
	end_work(&store);
}

/*
 * Try again to write what was locked by others, or is no longer ours.  What
 * still is keeps its lease, and is asked for again when that ends.
 */
static void
write_rest(Run *run, List *profiles, bool refused)
{
	List	   *rest = NIL;
	ListCell   *cell;

	foreach(cell, profiles)
	{
		Profile    *profile = lfirst(cell);

		if (!profile->is_ours)
			rest = lappend(rest, profile);
	}
	if (rest != NIL)
		write_batch(run, rest, refused);
}

/*
 * Give a batch's leases back, and the attempts: what threw was not a profile's
 * fault.  Who has cancelled the run, or a time-out that has, does not do so
 * again: so it does not wait for long, until the transaction ends.
 */
static void
release_batch(Run *run, List *profiles)
{
	HrflowParameters parameters = {0};
	HrflowStore store;

	if (LockTimeout == 0 || LockTimeout > RELEASE_LOCK_TIMEOUT)
		(void) set_config_option("lock_timeout",
								 psprintf("%d", RELEASE_LOCK_TIMEOUT),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
								 true, 0, false);
	begin_work(run, &store);
	add_keys(&parameters, profiles);
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->lease));
	hrflow_store_execute(hrflow_store_sql(&store,
										  "WITH locked AS MATERIALIZED"
										  " (SELECT p.source_id AS s, p.%I AS i FROM %P AS p"
										  " JOIN unnest($1, $2) AS k(s, i)"
										  " ON p.source_id = k.s AND p.%I = k.i"
										  " WHERE p.lease_until = $3"
										  " ORDER BY p.source_id, p.%I"
										  " FOR UPDATE OF p SKIP LOCKED)"
										  " UPDATE %P AS p SET lease_until = NULL,"
										  " attempts = GREATEST(p.attempts - 1, 0)"
										  " FROM locked AS k"
										  " WHERE p.source_id = k.s AND p.%I = k.i"),
						 &parameters);
	end_work(&store);
}

/*
 * ------------------------------------------------------------------------
 * The run
 * ------------------------------------------------------------------------
 */

/*
 * Tell a person how far it has come; the last line in any case.
 */
static void
report_progress(Run *run, bool is_last)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		ndone = run->nok + run->nretry + run->nfailed + run->nmissing;
	double		seconds = (now - run->started) / 1e6;
	double		rate = ndone / Max(seconds, 1e-3);
	int64		remaining = Max(run->ndue - ndone, 0);

	if (run->is_silent)
		return;
	if (is_last)
		ereport(INFO,
				(errmsg("%s: " INT64_FORMAT " refreshed, " INT64_FORMAT " to be tried again, " INT64_FORMAT " failed, " INT64_FORMAT " not found, " INT64_FORMAT " gone, in %.1f s",
						run->name, run->nok, run->nretry, run->nfailed,
						run->nmissing - run->ngone, run->ngone, seconds)));
	else if (now - run->reported >= PROGRESS_INTERVAL * USECS_PER_SEC)
	{
		ereport(INFO,
				(errmsg("%s: " INT64_FORMAT " done, " INT64_FORMAT " of them not well, " INT64_FORMAT " remaining, %.0f a second, about %.0f s to go",
						run->name, ndone, ndone - run->nok, remaining, rate,
						remaining / Max(rate, 1e-3))));
		run->reported = now;
	}
}

/*
 * The API has refused to go on, or the network fails.
 */
static void
stop(Run *run, const char *reason)
{
	run->stopped = true;
	ereport(WARNING,
			(errmsg("refresh of %s was stopped: %s", run->name, reason),
			 errdetail("What was fetched is kept, and no attempts were counted.")));
}

/*
 * Remember the sources that the API does not know, and say so.
 */
static void
note_bad_sources(Run *run, List *profiles)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);
	ListCell   *cell;

	foreach(cell, profiles)
	{
		Profile    *profile = lfirst(cell);
		ListCell   *known;
		bool		is_new = profile->status == HRFLOW_INVALID_SOURCE;

		foreach(known, run->bad_sources)
			is_new = is_new && strcmp(lfirst(known), profile->source_id) != 0;
		if (!is_new)
			continue;
		run->bad_sources = lappend(run->bad_sources,
								   pstrdup(profile->source_id));
		ereport(WARNING,
				(errmsg("refresh of %s leaves a source out: the API does not know it",
						run->name),
				 errdetail("Source \"%s\": %s", profile->source_id,
						   profile->error),
				 errhint("Check the source's id, and whose API key it is.")));
	}
	MemoryContextSwitchTo(old);
}

/*
 * Fetch and write a batch that was claimed.
 */
static void
process_batch(Run *run, HrflowIdentifier kind, List *profiles, int limit)
{
	HrflowResult refusal;
	bool		ok = fetch(run, kind, profiles, limit, &refusal);
	char	   *reason;
	ListCell   *cell;

	if (!ok)
		reason = hrflow_error_describe(&refusal);
	else
	{
		reason = why_not_counted(run, profiles, limit);
		foreach(cell, profiles)
			((Profile *) lfirst(cell))->is_postponed = reason != NULL;
	}
	write_batch(run, profiles, !ok);
	write_rest(run, profiles, !ok);
	if (reason != NULL && *reason != '\0')
		stop(run, reason);
	note_bad_sources(run, profiles);
	note_gone(run, profiles);
}

/*
 * Give the leases back after an error.  Where that fails too they stay until
 * their end, with a warning: the caller is to see what was thrown first, and
 * that ends the transaction, whatever state it is in.
 */
static void
try_release(Run *run, List *profiles)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		release_batch(run, profiles);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("leases could not be given back: %s",
						error->message ? error->message : "unknown error"),
				 errdetail("They end by themselves.")));
	}
	PG_END_TRY();
}

/*
 * Process a batch; when that fails the leases are given back.
 */
static void
try_batch(Run *run, HrflowIdentifier kind, List *profiles, int limit)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		process_batch(run, kind, profiles, limit);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(run->context);
		error = CopyErrorData();
		FlushErrorState();
		while (ActiveSnapshotSet())
			PopActiveSnapshot();
		SPI_rollback();
		MemoryContextSwitchTo(context);
		try_release(run, profiles);
		ReThrowError(error);
	}
	PG_END_TRY();
}

/*
 * Refresh until nothing is to be claimed, or time or number are up.
 */
static void
refresh(Run *run)
{
	HrflowStore store;
	HrflowIdentifier kind;

	begin_work(run, &store);
	kind = store.identifier;
	run->name = MemoryContextStrdup(run->context, store.vectors_name);
	if (!run->is_silent)
	{
		hrflow_store_execute(hrflow_store_sql(&store,
											  "SELECT count(*) FROM %P WHERE due_at <= clock_timestamp()"),
							 NULL);
		run->ndue = DatumGetInt64(hrflow_store_datum(0, 1));
	}
	end_work(&store);

	while (!run->stopped && run->nclaimed < run->max_profiles)
	{
		int			limit;
		List	   *profiles;

		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(run->batch_context);
		profiles = claim(run, &limit);
		if (profiles == NIL)
			break;
		try_batch(run, kind, profiles, limit);
		report_progress(run, false);
		MemoryContextReset(run->batch_context);
	}
	if (run->gone != NIL)
		erase_gone(run);
	report_progress(run, true);
}

/*
 * ------------------------------------------------------------------------
 * The procedure
 * ------------------------------------------------------------------------
 */

static char *
jsonb_text(JsonbValue *value)
{
	Jsonb	   *jsonb = JsonbValueToJsonb(value);

	return JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
}

/*
 * "fields" for one section, or one element of it.
 */
static Jsonb *
make_part(const char *key, const char *value, bool is_element)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	escape_json(&text, key);
	appendStringInfo(&text, is_element ? ": [%s]}" : ": %s}", value);
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum(text.data)));
}

/*
 * Read "fields": which sections are asked for, and its parts.
 */
static void
read_fields(Run *run, Jsonb *fields)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	int			depth = 0;
	char	   *key = NULL;
	List	   *sections = NIL;
	Datum	   *names;
	ListCell   *cell;

	run->fields = hrflow_check_fields(fields);
	run->fields_text = hrflow_fields_text(run->fields);
	fields = run->fields;
	if (fields == NULL)
		fields = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													CStringGetDatum(KNOWN_SECTIONS)));

	iterator = JsonbIteratorInit(&fields->root);
	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		char	   *text;

		if (token == WJB_KEY && depth == 1)
			key = pnstrdup(value.val.string.val, value.val.string.len);
		depth += (token == WJB_BEGIN_OBJECT || token == WJB_BEGIN_ARRAY) -
			(token == WJB_END_OBJECT || token == WJB_END_ARRAY);
		if (token != WJB_VALUE && token != WJB_ELEM)
			continue;

		Assert(key != NULL);	/* for they are an object */
		text = jsonb_text(&value);
		if (token == WJB_VALUE &&
			(strcmp(text, "0") == 0 || strcmp(text, "false") == 0 ||
			 strcmp(text, "null") == 0))
			continue;			/* not asked for */
		run->parts = lappend(run->parts, make_part(key, text, token == WJB_ELEM));
		if (sections == NIL || strcmp(llast(sections), key) != 0)
			sections = lappend(sections, key);
	}
	names = palloc(sizeof(Datum) * list_length(sections));
	foreach(cell, sections)
		names[foreach_current_index(cell)] = CStringGetTextDatum(lfirst(cell));
	run->sections = construct_array(names, list_length(sections), TEXTOID, -1,
									false, TYPALIGN_INT);
}

static int
get_positive(FunctionCallInfo fcinfo, int argno, const char *name, int max)
{
	int			value = PG_ARGISNULL(argno) ? 0 : PG_GETARG_INT32(argno);

	if (value < 1 || value > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between 1 and %d", name, max)));
	return value;
}

/*
 * The most profiles that a run is to fetch.
 */
static int64
get_max_profiles(FunctionCallInfo fcinfo)
{
	int64		value = PG_ARGISNULL(ARG_MAX_PROFILES) ? PG_INT64_MAX :
	PG_GETARG_INT64(ARG_MAX_PROFILES);

	if (value < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between 1 and " INT64_FORMAT,
						"max_profiles", PG_INT64_MAX)));
	return value;
}

/*
 * An argument that is an interval, neither null nor negative.
 */
Interval *
hrflow_refresh_interval(FunctionCallInfo fcinfo, int argno, const char *name)
{
	Interval	zero = {0};
	Interval   *value = PG_ARGISNULL(argno) ? NULL :
	PG_GETARG_INTERVAL_P(argno);

	if (value == NULL ||
		DatumGetBool(DirectFunctionCall2(interval_lt, IntervalPGetDatum(value),
										 IntervalPGetDatum(&zero))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be negative or null", name)));
	return value;
}

/*
 * A run has transactions of its own.
 */
static void
check_context(FunctionCallInfo fcinfo)
{
	CallContext *context = (CallContext *) fcinfo->context;

	if (context == NULL || !IsA(context, CallContext) || context->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("hrflow_refresh cannot run inside a transaction block"),
				 errhint("CALL it alone: outside BEGIN and COMMIT, not in a function, and not in one string with other statements.")));
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("hrflow_refresh cannot run on a standby"),
				 errhint("CALL it on the primary server.")));
}

/*
 * hrflow_refresh(store regclass, fields jsonb, max_age interval,
 *				  time_budget interval, max_profiles bigint, batch_size int,
 *				  max_attempts int, profiles regclass)
 */
Datum
hrflow_refresh(PG_FUNCTION_ARGS)
{
	Run			run = {0};
	MemoryContext old;

	check_context(fcinfo);
	if (PG_ARGISNULL(ARG_STORE))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be null", "store")));

	SPI_connect_ext(SPI_OPT_NONATOMIC);
	run.context = AllocSetContextCreate(CurrentMemoryContext,
										"hrflow_embed refresh",
										ALLOCSET_DEFAULT_SIZES);
	run.batch_context = AllocSetContextCreate(run.context,
											  "hrflow_embed refresh batch",
											  ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(run.context);

	run.vectors = PG_GETARG_OID(ARG_STORE);
	run.profiles = PG_ARGISNULL(ARG_PROFILES) ? InvalidOid :
		PG_GETARG_OID(ARG_PROFILES);
	read_fields(&run, PG_ARGISNULL(ARG_FIELDS) ? NULL :
				(Jsonb *) PG_DETOAST_DATUM_COPY(PG_GETARG_DATUM(ARG_FIELDS)));
	run.max_age = palloc(sizeof(Interval));
	*run.max_age = *hrflow_refresh_interval(fcinfo, ARG_MAX_AGE, "max_age");
	run.started = GetCurrentTimestamp();
	run.reported = run.started;
	run.deadline = DT_NOEND;
	if (!PG_ARGISNULL(ARG_TIME_BUDGET))
	{
		Interval   *budget = hrflow_refresh_interval(fcinfo, ARG_TIME_BUDGET,
													 "time_budget");

		run.deadline =
			DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													TimestampTzGetDatum(run.started),
													IntervalPGetDatum(budget)));
	}
	run.max_profiles = get_max_profiles(fcinfo);
	run.batch_size = get_positive(fcinfo, ARG_BATCH_SIZE, "batch_size", 10000);
	run.max_attempts = get_positive(fcinfo, ARG_MAX_ATTEMPTS, "max_attempts",
									1000);
	(void) jitter(run.max_age); /* in range? */
	run.is_silent = MyBackendType != B_BACKEND ||
		whereToSendOutput != DestRemote ||
		strncmp(application_name, "pg_cron", strlen("pg_cron")) == 0;

	/* Whatever snapshot the CALL itself has taken goes with this. */
	SPI_commit();
	refresh(&run);

	MemoryContextSwitchTo(old);
	SPI_finish();
	PG_RETURN_VOID();
}
