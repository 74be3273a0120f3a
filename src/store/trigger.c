/*-------------------------------------------------------------------------
 *
 * trigger.c
 *		What the triggers do that are on the tables that feed a store.
 *
 * Rows of the state table are locked in the order of their keys; by an UPDATE
 * row by row, for it does not know the next one.  What is deleted is erased at
 * the end of the transaction; see deferred.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "store/store.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/varlena.h"

PG_FUNCTION_INFO_V1(hrflow_track_trigger);

/*
 * From this number of rows on, INSERT first looks whether one of their profiles
 * is tracked.  If none is, the profiles are inserted without ON CONFLICT, which
 * would cost half as much again.
 */
#define MANY_ROWS 1000

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

/*
 * In these $1 is the source of a profile, and $2 its identifier.
 *
 * A change never sends a profile back that waits for its turn, nor makes one
 * due again earlier that has changed while it was fetched.  One that was missing
 * is as good as new: the API may not have indexed yet what has changed.
 */
static const char mark_changed_sql[] =
"UPDATE %P AS p SET due_at = CASE"
" WHEN p.state = 'due' AND p.attempts = 0 AND p.due_at IS NOT NULL"
" THEN p.due_at ELSE LEAST(p.due_at, clock_timestamp()) END,"
" attempts = 0, generation = p.generation + 1, state = 'due'"
" WHERE p.source_id = $1 AND p.%I = $2";

static const char lock_profile_sql[] =
"SELECT FROM %P AS p WHERE p.source_id = $1 AND p.%I = $2 FOR UPDATE";

static const char one_profile_sql[] = "(SELECT $1 AS s, $2 AS i)";

/*
 * ------------------------------------------------------------------------
 * Profiles
 * ------------------------------------------------------------------------
 */

/*
 * Profiles to be tracked; see hrflow_feeder_track_new().
 */
typedef struct NewProfiles
{
	const HrflowStore *store;
	const char *keys;
} NewProfiles;

static void
insert_new(void *arg)
{
	const NewProfiles *profiles = arg;

	hrflow_feeder_track_new(profiles->store, profiles->keys);
}

/*
 * Track many profiles, of which none was tracked a moment ago.  Returns false,
 * having done nothing, when another session has tracked one since.
 */
static bool
track_new(const HrflowStore *store, const char *profiles)
{
	NewProfiles arg = {.store = store, .keys = profiles};
	ErrorData  *error = hrflow_store_try(insert_new, &arg);

	/* Safe to rethrow: any handler must have its own subtransaction. */
	if (error != NULL && error->sqlerrcode != ERRCODE_UNIQUE_VIOLATION)
		ReThrowError(error);
	return error == NULL;
}

/*
 * A statement about one profile, whose source is $1 and whose identifier is $2.
 */
typedef enum OneStatement
{
	ONE_MARK_CHANGED,
	ONE_LOCK,
	ONE_WANT
} OneStatement;

/*
 * Such a statement that was planned for a store's table of profiles, kept for the
 * next rows of an UPDATE of many: planning it takes several times as long as
 * executing it.
 */
typedef struct OnePlanKey
{
	Oid			profiles;
	OneStatement statement;
} OnePlanKey;

typedef struct OnePlan
{
	OnePlanKey	key;
	char	   *sql;			/* what it was made of */
	SPIPlanPtr	plan;
} OnePlan;

static char *
one_sql(const HrflowStore *store, OneStatement statement)
{
	switch (statement)
	{
		case ONE_MARK_CHANGED:
			return hrflow_store_sql(store, mark_changed_sql);
		case ONE_LOCK:
			return hrflow_store_sql(store, lock_profile_sql);
		case ONE_WANT:
			return hrflow_feeder_want_sql(store, one_profile_sql);
	}
	pg_unreachable();
}

/*
 * The plan of a statement for a store.
 */
static SPIPlanPtr
get_plan(const HrflowStore *store, OneStatement statement)
{
	static HTAB *plans = NULL;
	static Oid	types[] = {TEXTOID, TEXTOID};
	OnePlanKey	key = {RelationGetRelid(store->profiles), statement};
	char	   *sql = one_sql(store, statement);
	OnePlan    *entry;
	SPIPlanPtr	plan;
	bool		found;

	if (plans == NULL)
	{
		HASHCTL		control = {.keysize = sizeof(OnePlanKey),
		.entrysize = sizeof(OnePlan)};

		plans = hash_create("hrflow_embed plans", 8, &control,
							HASH_ELEM | HASH_BLOBS);
	}
	entry = hash_search(plans, &key, HASH_FIND, NULL);
	if (entry != NULL && strcmp(entry->sql, sql) == 0)
		return entry->plan;

	plan = hrflow_store_prepare(sql, lengthof(types), types);
	sql = MemoryContextStrdup(TopMemoryContext, sql);
	SPI_keepplan(plan);
	entry = hash_search(plans, &key, HASH_ENTER, &found);
	if (found)
	{
		SPI_freeplan(entry->plan);
		pfree(entry->sql);
	}
	entry->sql = sql;
	entry->plan = plan;
	return plan;
}

/*
 * Execute a statement about one profile.
 */
static void
execute_for_one(const HrflowStore *store, OneStatement statement,
				HrflowParameters *key)
{
	hrflow_store_execute_plan(get_plan(store, statement), key->values,
							  key->nulls);
}

/*
 * ------------------------------------------------------------------------
 * The trigger
 * ------------------------------------------------------------------------
 */

/*
 * A column of a row as text, or NULL.  It is known to be there.
 */
static char *
get_column(TriggerData *trigdata, HeapTuple tuple, const char *name)
{
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);

	return SPI_getvalue(tuple, desc, SPI_fnumber(desc, name));
}

/*
 * A row's key as parameters.  False where it names no profile.
 */
static bool
get_key(const HrflowStore *store, TriggerData *trigdata, HeapTuple tuple,
		HrflowParameters *key)
{
	char	  **args = trigdata->tg_trigger->tgargs;
	const char *source = args[HRFLOW_TRIGGER_SOURCE_ID];
	char	   *identifier = get_column(trigdata, tuple,
										args[HRFLOW_TRIGGER_PROFILE_COLUMN]);

	if (args[HRFLOW_TRIGGER_SOURCE_COLUMN][0] != '\0')
		source = get_column(trigdata, tuple, args[HRFLOW_TRIGGER_SOURCE_COLUMN]);
	if (source == NULL)
		source = "";
	if ((store->kind->needs_source && *source == '\0') ||
		identifier == NULL || *identifier == '\0')
		return false;
	key->n = 0;
	hrflow_store_add(key, TEXTOID, CStringGetTextDatum(source));
	hrflow_store_add(key, TEXTOID, CStringGetTextDatum(identifier));
	return true;
}

/*
 * Compare keys in the order in which their rows are locked.
 */
static int
compare_keys(const HrflowParameters *a, const HrflowParameters *b)
{
	int			result = 0;

	for (int i = 0; i < a->n && result == 0; i++)
		result = DatumGetInt32(DirectFunctionCall2Coll(bttextcmp,
													   DEFAULT_COLLATION_OID,
													   a->values[i],
													   b->values[i]));
	return result;
}

/*
 * Lock a profile's row, if there is one, whatever has become of it since the
 * transaction's snapshot.
 */
static void
lock_profile(const HrflowStore *store, HrflowParameters *key)
{
	hrflow_store_execute_plan_latest(get_plan(store, ONE_LOCK), key->values,
									 key->nulls);
}

/*
 * A row was updated, and in what matters here.
 */
static void
row_updated(const HrflowStore *store, TriggerData *trigdata)
{
	HrflowParameters old;
	HrflowParameters new;
	bool		has_old = get_key(store, trigdata, trigdata->tg_trigtuple, &old);
	bool		has_new = get_key(store, trigdata, trigdata->tg_newtuple, &new);
	int			order = has_old && has_new ? compare_keys(&old, &new) : 1;

	if (order == 0)
	{
		execute_for_one(store, ONE_MARK_CHANGED, &new);
		return;
	}
	if (order < 0)
		lock_profile(store, &old);
	if (has_new)
		execute_for_one(store, ONE_WANT, &new);
	if (has_old)
		hrflow_deferred_add(store, trigdata->tg_trigger->tgfoid, &old);
}

/*
 * Rows were inserted.
 */
static void
rows_inserted(const HrflowStore *store, TriggerData *trigdata)
{
	const char *table = quote_identifier(trigdata->tg_trigger->tgnewtable);
	const char *profiles = hrflow_feeder_profiles(store,
												  trigdata->tg_trigger->tgargs,
												  table, "");

	if (tuplestore_tuple_count(trigdata->tg_newtable) < MANY_ROWS ||
		hrflow_feeder_has_tracked(store, profiles) ||
		!track_new(store, profiles))
		hrflow_feeder_want_inserted(store, profiles);
}

/*
 * All rows of a table are about to be deleted.
 */
static void
table_truncated(const HrflowStore *store, TriggerData *trigdata)
{
	const char *table =
	hrflow_store_relation_name(RelationGetRelid(trigdata->tg_relation));

	hrflow_deferred_add_all(store, trigdata->tg_trigger->tgfoid,
							hrflow_feeder_profiles(store,
												   trigdata->tg_trigger->tgargs,
												   table, ""));
}

/*
 * Rows were deleted.
 */
static void
rows_deleted(const HrflowStore *store, TriggerData *trigdata)
{
	Trigger    *trigger = trigdata->tg_trigger;

	hrflow_deferred_add_all(store, trigger->tgfoid,
							hrflow_feeder_profiles(store, trigger->tgargs,
												   quote_identifier(trigger->tgoldtable),
												   "DISTINCT"));
}

/*
 * The table of vectors that a trigger names, or InvalidOid.  Whoever writes to
 * the trigger's table needs no right on the store's schema.
 */
static Oid
find_fed_store(const char *name)
{
	List	   *names = textToQualifiedNameList(cstring_to_text(name));
	Oid			schema;

	if (list_length(names) != 2)
		return InvalidOid;
	schema = get_namespace_oid(strVal(linitial(names)), true);
	return OidIsValid(schema) ?
		get_relname_relid(strVal(lsecond(names)), schema) : InvalidOid;
}

/*
 * The store that a trigger names is not there.  Where it was renamed that is
 * an error, for its profiles are still to be kept in step.  Where it was
 * dropped the trigger went with it, but a dump does not tell that it would:
 * then there is nothing to do, and nobody's writing is to fail for that.
 */
static void
report_missing_store(TriggerData *trigdata)
{
	static Oid	warned = InvalidOid;
	static TimestampTz warned_at = 0;
	Trigger    *trigger = trigdata->tg_trigger;
	const char *store = trigger->tgargs[HRFLOW_TRIGGER_STORE];
	Oid			table = RelationGetRelid(trigdata->tg_relation);
	Oid			original = hrflow_feeder_original(trigger->tgoid, &table);

	if (hrflow_feeder_has_store(original, table))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("store %s of trigger \"%s\" does not exist", store,
						trigger->tgname),
				 errhint("If it was renamed, call hrflow_track_table() again.")));

	/* Once a statement, of however many rows. */
	if (warned == trigger->tgoid &&
		warned_at == GetCurrentStatementStartTimestamp())
		return;
	warned = trigger->tgoid;
	warned_at = GetCurrentStatementStartTimestamp();
	ereport(WARNING,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("store %s of trigger \"%s\" does not exist", store,
					trigger->tgname),
			 errhint("DROP TRIGGER %s ON %s. If the store was renamed, call hrflow_track_table() for it as well.",
					 quote_identifier(trigger->tgname),
					 hrflow_store_relation_name(table))));
}

/*
 * Open the store that a trigger feeds.  Who acts is the owner of the table,
 * who must be the store's.  False where there is no store any more.
 */
static bool
open_fed_store(HrflowStore *store, TriggerData *trigdata)
{
	Trigger    *trigger = trigdata->tg_trigger;
	Oid			vectors;

	if (trigger->tgnargs != HRFLOW_TRIGGER_NARGS)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" was not made by hrflow_track_table()",
						trigger->tgname)));
	vectors = find_fed_store(trigger->tgargs[HRFLOW_TRIGGER_STORE]);
	if (!OidIsValid(vectors))
	{
		report_missing_store(trigdata);
		return false;
	}
	hrflow_store_open(store, vectors, InvalidOid, HRFLOW_STORE_FEED);
	if (store->owner != trigdata->tg_relation->rd_rel->relowner)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("table \"%s\" and store %s do not have the same owner",
						RelationGetRelationName(trigdata->tg_relation),
						trigger->tgargs[HRFLOW_TRIGGER_STORE])));
	hrflow_store_check_manual(store);
	hrflow_feeder_check_keys(trigdata->tg_relation, trigger->tgargs, true);
	return true;
}

/*
 * hrflow_track_trigger() RETURNS trigger
 */
Datum
hrflow_track_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	HrflowStore store;
	TriggerEvent event;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("hrflow_track_trigger() can only be called as a trigger")));

	event = trigdata->tg_event;
	if (TRIGGER_FIRED_AFTER(event) == TRIGGER_FIRED_BY_TRUNCATE(event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" was not made by hrflow_track_table()",
						trigdata->tg_trigger->tgname)));
	SPI_connect();
	SPI_register_trigger_data(trigdata);
	if (!open_fed_store(&store, trigdata))
	{
		SPI_finish();
		return PointerGetDatum(NULL);
	}
	if (TRIGGER_FIRED_BY_TRUNCATE(event))
		table_truncated(&store, trigdata);
	else if (TRIGGER_FIRED_BY_UPDATE(event) && TRIGGER_FIRED_FOR_ROW(event))
		row_updated(&store, trigdata);
	else if (TRIGGER_FIRED_BY_INSERT(event) && trigdata->tg_newtable != NULL)
		rows_inserted(&store, trigdata);
	else if (TRIGGER_FIRED_BY_DELETE(event) && trigdata->tg_oldtable != NULL)
		rows_deleted(&store, trigdata);
	else
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" was not made by hrflow_track_table()",
						trigdata->tg_trigger->tgname)));
	hrflow_store_close(&store);
	SPI_finish();
	return PointerGetDatum(NULL);
}
