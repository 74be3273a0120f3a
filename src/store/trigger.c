/*-------------------------------------------------------------------------
 *
 * trigger.c
 *		Implements the trigger function for the tables that feed a store.
 *
 * Rows of the table of profiles are locked in the order of their keys, so that
 * concurrent statements do not deadlock.  This does not hold for the rows of
 * an UPDATE that are processed immediately, because the row-level trigger
 * locks their profiles in the order in which the rows are updated; see
 * updated.c.  The profiles of deleted rows are erased before the transaction
 * commits, if they are unwanted by then; see deferred.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_trigger.h"
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
 * Minimum number of inserted rows for which the trigger first checks whether
 * any of their profiles is tracked.  If none is, the profiles are inserted
 * without ON CONFLICT, which would take 50% longer.
 */
#define MANY_ROWS 1000

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

/*
 * SQL for a single profile.  $1 is its source, and $2 is its identifier.
 */
static const char mark_changed_sql[] =
"UPDATE %P AS p SET" HRFLOW_MARK_CHANGED
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
 * Argument of insert_new(): profiles to be tracked.
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
 * Track many profiles, none of which was tracked at the last check.  Returns
 * false, without having changed anything, if that violates a unique
 * constraint, usually because another session has tracked some of them since.
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
 * Identifies one of the statements about a single profile.
 */
typedef enum OneStatement
{
	ONE_MARK_CHANGED,
	ONE_LOCK,
	ONE_WANT
} OneStatement;

/*
 * Hash key of a cached plan: a statement, and the table of profiles on which
 * it is executed.  Plans are cached, because planning a statement for each row
 * of an UPDATE would take several times as long as executing it.
 */
typedef struct OnePlanKey
{
	Oid			profiles;
	OneStatement statement;
} OnePlanKey;

typedef struct OnePlan
{
	OnePlanKey	key;
	char	   *sql;			/* the planned statement */
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
 * Return the cached plan of a statement for a store.  Plans the statement
 * first if there is no plan of it yet, or if its SQL has changed.
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
 * Execute a statement about one profile with the snapshot that the isolation
 * level prescribes.
 */
static void
execute_for_one(const HrflowStore *store, OneStatement statement,
				HrflowParameters *key)
{
	hrflow_store_execute_plan(get_plan(store, statement), key->values,
							  key->nulls);
}

/*
 * Execute a statement about the latest version of one profile's row, if the
 * row exists, even if the snapshot of the transaction does not contain that
 * version.
 */
static void
execute_for_latest(const HrflowStore *store, OneStatement statement,
				   HrflowParameters *key)
{
	hrflow_store_execute_plan_latest(get_plan(store, statement), key->values,
									 key->nulls);
}

/*
 * ------------------------------------------------------------------------
 * The trigger
 * ------------------------------------------------------------------------
 */

/*
 * Return a column of a row as text, or NULL if it is null.  The column must
 * exist.
 */
static char *
get_column(TriggerData *trigdata, HeapTuple tuple, const char *name)
{
	TupleDesc	desc = RelationGetDescr(trigdata->tg_relation);

	return SPI_getvalue(tuple, desc, SPI_fnumber(desc, name));
}

/*
 * Get the key of the profile that a row names, as parameters.  Returns false
 * if the row names no profile.
 */
static bool
get_key(const HrflowKind *kind, TriggerData *trigdata, HeapTuple tuple,
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
	if ((kind->needs_source && *source == '\0') ||
		identifier == NULL || *identifier == '\0')
		return false;
	key->n = 0;
	hrflow_store_add(key, TEXTOID, CStringGetTextDatum(source));
	hrflow_store_add(key, TEXTOID, CStringGetTextDatum(identifier));
	return true;
}

/*
 * Compare two keys.  Rows of profiles are locked in this order.
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
 * Handle an UPDATE that changed a relevant column of a row.
 */
static void
row_updated(const HrflowStore *store, TriggerData *trigdata)
{
	HrflowParameters old;
	HrflowParameters new;
	bool		has_old = get_key(store->kind, trigdata, trigdata->tg_trigtuple,
								  &old);
	bool		has_new = get_key(store->kind, trigdata, trigdata->tg_newtuple,
								  &new);
	int			order = has_old && has_new ? compare_keys(&old, &new) : 1;

	if (order == 0)
	{
		execute_for_latest(store, ONE_MARK_CHANGED, &new);
		return;
	}
	if (order < 0)
		execute_for_latest(store, ONE_LOCK, &old);
	if (has_new)
		execute_for_one(store, ONE_WANT, &new);
	if (has_old)
		hrflow_deferred_add(store, trigdata->tg_trigger->tgfoid, &old);
}

/*
 * Collect a row in which an UPDATE changed a relevant column.  The row is
 * handled at the end of the statement.
 */
static void
collect_row(HrflowUpdated *updated, TriggerData *trigdata)
{
	const HrflowKind *kind = hrflow_updated_kind(updated);
	HrflowParameters old;
	HrflowParameters new;
	bool		has_old = get_key(kind, trigdata, trigdata->tg_trigtuple, &old);
	bool		has_new = get_key(kind, trigdata, trigdata->tg_newtuple, &new);
	bool		kept = has_old && has_new && compare_keys(&old, &new) == 0;

	hrflow_updated_add(updated, has_new ? &new : NULL,
					   kept ? &new : has_old ? &old : NULL);
}

/*
 * Handle inserted rows.
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
 * Handle a TRUNCATE of a table, before its rows are deleted.
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
 * Handle deleted rows.
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
 * Return the table of vectors that a trigger's arguments name, or InvalidOid
 * if there is none.  Does not require USAGE on its schema, because roles that
 * write to the trigger's table need not have that privilege.
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
 * Return the original of a partition's copy of a trigger, or the trigger
 * itself if it is not a copy.  Sets *table to the table of the original.
 */
static Oid
get_original(Oid trigger, Oid *table)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	Oid			parent = trigger;

	while (OidIsValid(parent))
	{
		HeapTuple	tuple = hrflow_catalog_trigger(triggers, parent);
		Form_pg_trigger form;

		trigger = parent;
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "could not find tuple for trigger %u", trigger);
		form = (Form_pg_trigger) GETSTRUCT(tuple);
		parent = form->tgparentid;
		*table = form->tgrelid;
	}
	table_close(triggers, AccessShareLock);
	return trigger;
}

/*
 * Throw an error if the store for which a trigger was created has been
 * renamed, because its profiles must still be kept up to date.  "named" is the
 * table of vectors that the trigger names, or InvalidOid if there is none.
 * Returns the trigger's table or, if the trigger is a partition's copy, the
 * partitioned table that has the original.
 */
static Oid
check_not_renamed(TriggerData *trigdata, Oid named)
{
	Trigger    *trigger = trigdata->tg_trigger;
	const char *store = trigger->tgargs[HRFLOW_TRIGGER_STORE];
	Oid			table = RelationGetRelid(trigdata->tg_relation);
	Oid			original = get_original(trigger->tgoid, &table);
	Oid			vectors = hrflow_feeder_store(original, table);

	if (!OidIsValid(vectors) || vectors == named)
		return table;
	ereport(ERROR,
			(errcode(OidIsValid(named) ?
					 ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE :
					 ERRCODE_UNDEFINED_TABLE),
			 errmsg("store %s of trigger \"%s\" has been renamed", store,
					trigger->tgname),
			 OidIsValid(named) ?
			 errdetail("The trigger belongs to store %s, and another table has the old name.",
					   hrflow_store_relation_name(vectors)) :
			 errdetail("The trigger belongs to store %s.",
					   hrflow_store_relation_name(vectors)),
			 errhint("Call hrflow_track_table() for store %s again.",
					 hrflow_store_relation_name(vectors))));
}

/*
 * Report that the store that a trigger names does not exist.  Dropping a store
 * also drops its triggers, except those that were restored from a dump, which
 * does not preserve their dependency on the store.  Such a trigger has nothing
 * to do, and writing to its table must not fail, so only a WARNING is raised.
 * Throws 42P01 if the store is known to have been renamed.
 */
static void
report_missing_store(TriggerData *trigdata)
{
	static Oid	warned = InvalidOid;
	static TimestampTz warned_at = 0;
	Trigger    *trigger = trigdata->tg_trigger;
	const char *store = trigger->tgargs[HRFLOW_TRIGGER_STORE];
	Oid			table = check_not_renamed(trigdata, InvalidOid);

	/* Warn once per statement, regardless of its number of rows. */
	if (warned == trigger->tgoid &&
		warned_at == GetCurrentStatementStartTimestamp())
		return;
	warned = trigger->tgoid;
	warned_at = GetCurrentStatementStartTimestamp();
	ereport(WARNING,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("store %s of trigger \"%s\" does not exist", store,
					trigger->tgname),
			 TRIGGER_FIRED_BY_INSERT(trigdata->tg_event) ? 0 :
			 errdetail("If the store was renamed, the vectors of deleted rows and of former identifiers have not been erased."),
			 errhint("Run DROP TRIGGER %s ON %s.  If the store was renamed, also call hrflow_track_table() for it.",
					 quote_identifier(trigger->tgname),
					 hrflow_store_relation_name(table))));
}

/*
 * Open the store that a trigger feeds, on behalf of the owner of the
 * trigger's table, who must also own the store.  If the trigger is a
 * partition's copy, the owner of the partitioned table counts, not that of the
 * partition.  Only a trigger on TRUNCATE reads the table, so only then are the
 * owners of its partitions and children checked, too.  Returns false, after a
 * WARNING, if the store no longer exists.
 */
static bool
open_fed_store(HrflowStore *store, TriggerData *trigdata)
{
	Trigger    *trigger = trigdata->tg_trigger;
	Oid			vectors;
	Oid			table;

	if (trigger->tgnargs != HRFLOW_TRIGGER_NKEYS &&
		trigger->tgnargs != HRFLOW_TRIGGER_NARGS)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" was not created by hrflow_track_table()",
						trigger->tgname)));
	vectors = find_fed_store(trigger->tgargs[HRFLOW_TRIGGER_STORE]);
	if (!OidIsValid(vectors))
	{
		report_missing_store(trigdata);
		return false;
	}
	table = check_not_renamed(trigdata, vectors);
	hrflow_store_open(store, vectors, InvalidOid, HRFLOW_STORE_FEED);
	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		hrflow_owner_check_all(store, table);
	else
		hrflow_owner_check(store, table);
	hrflow_store_check_manual(store);
	hrflow_columns_check_keys(trigdata->tg_relation, trigger->tgfoid,
							  trigger->tgargs);
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
	HrflowUpdated *updated;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"hrflow_track_trigger")));

	event = trigdata->tg_event;
	if (TRIGGER_FIRED_AFTER(event) == TRIGGER_FIRED_BY_TRUNCATE(event) ||
		(TRIGGER_FIRED_BY_UPDATE(event) && TRIGGER_FIRED_FOR_STATEMENT(event)))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" was not created by hrflow_track_table()",
						trigdata->tg_trigger->tgname)));

	updated = TRIGGER_FIRED_BY_UPDATE(event) ?
		hrflow_updated_find(trigdata->tg_trigger->tgoid) : NULL;
	if (updated != NULL)
	{
		collect_row(updated, trigdata);
		return PointerGetDatum(NULL);
	}

	SPI_connect();
	SPI_register_trigger_data(trigdata);
	if (!open_fed_store(&store, trigdata))
	{
		SPI_finish();
		return PointerGetDatum(NULL);
	}
	if (TRIGGER_FIRED_BY_TRUNCATE(event))
		table_truncated(&store, trigdata);
	else if (TRIGGER_FIRED_BY_UPDATE(event))
	{
		row_updated(&store, trigdata);
		hrflow_updated_note(&store, trigdata->tg_trigger->tgfoid,
							trigdata->tg_trigger->tgoid);
	}
	else if (TRIGGER_FIRED_BY_INSERT(event) && trigdata->tg_newtable != NULL)
		rows_inserted(&store, trigdata);
	else if (TRIGGER_FIRED_BY_DELETE(event) && trigdata->tg_oldtable != NULL)
		rows_deleted(&store, trigdata);
	else
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" was not created by hrflow_track_table()",
						trigdata->tg_trigger->tgname)));
	hrflow_store_close(&store);
	SPI_finish();
	return PointerGetDatum(NULL);
}
