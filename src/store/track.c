/*-------------------------------------------------------------------------
 *
 * track.c
 *		Triggers that keep a store in step with the tables that feed it.
 *
 * Every feeding table has four: INSERT, DELETE and TRUNCATE by statement, and
 * UPDATE by row, with a WHEN that lets through only what matters here, so that
 * an UPDATE of other columns costs nothing.  (PostgreSQL allows neither a WHEN
 * on rows nor a list of columns together with transition tables.)
 *
 * Rows of the state table are locked in the order of their keys (by an UPDATE
 * row by row, for it does not know the next one), and before it is asked
 * whether anybody else wants a profile: that is asked with a snapshot taken
 * after the lock, so that of a deletion here and an insertion there, at the
 * same time, the second one sees the first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "commands/trigger.h"
#include "compat.h"
#include "ask/ask.h"
#include "miscadmin.h"
#include "nodes/bitmapset.h"
#include "parser/parse_func.h"
#include "port/pg_crc32c.h"
#include "storage/lmgr.h"
#include "store/store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"
#include "utils/varlena.h"

PG_FUNCTION_INFO_V1(hrflow_track_table);
PG_FUNCTION_INFO_V1(hrflow_untrack_table);
PG_FUNCTION_INFO_V1(hrflow_track_trigger);

/* The arguments of hrflow_track_table, in their order. */
enum
{
	ARG_STORE,
	ARG_TABLE,
	ARG_PROFILE_COLUMN,
	ARG_SOURCE_ID,
	ARG_SOURCE_COLUMN,
	ARG_REFRESH_COLUMNS
};

/* The arguments of the trigger, in their order. */
enum
{
	TRIGGER_STORE,				/* quoted and qualified */
	TRIGGER_PROFILE_COLUMN,
	TRIGGER_SOURCE_ID,			/* one of these two is empty */
	TRIGGER_SOURCE_COLUMN,
	TRIGGER_NARGS
};

/* From so many rows on, INSERT is expected to bring new profiles only. */
#define MANY_ROWS 1000

/*
 * A table that feeds a store, as its triggers' arguments tell.
 */
typedef struct Feeder
{
	Oid			trigger;
	Oid			table;
	char	   *trigger_name;
	bool		is_insert;		/* this trigger is the one on INSERT */
	char	   *args[TRIGGER_NARGS];
} Feeder;

/*
 * ------------------------------------------------------------------------
 * Feeders
 * ------------------------------------------------------------------------
 */

/*
 * The trigger function, in the schema of the function that calls.
 */
static Oid
find_trigger_function(Oid caller)
{
	char	   *schema = get_namespace_name(get_func_namespace(caller));

	return LookupFuncName(list_make2(makeString(schema),
									 makeString("hrflow_track_trigger")),
						  0, NULL, false);
}

/*
 * The owner of a table, or InvalidOid where it has gone.
 */
static Oid
get_owner(Oid table)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
	Oid			owner = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
		ReleaseSysCache(tuple);
	}
	return owner;
}

/*
 * Is this a table that may feed a store: one of its owner's?  Who reads it on
 * the owner's behalf runs what its owner has put there: policies, types, their
 * casts.  A temporary one cannot be read by other sessions.
 */
static bool
may_feed(const HrflowStore *store, Oid table)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
	Form_pg_class form;
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_class) GETSTRUCT(tuple);
	result = (form->relkind == RELKIND_RELATION ||
			  form->relkind == RELKIND_PARTITIONED_TABLE) &&
		form->relowner == store->owner &&
		(form->relpersistence != RELPERSISTENCE_TEMP ||
		 RelationUsesLocalBuffers(store->vectors));
	ReleaseSysCache(tuple);
	return result;
}

/*
 * Read a trigger, unless it is another's or a partition's copy.  Anybody may
 * have made it, and named any store.  One that names another is the store's if
 * it is among those that were made for it: then it has been renamed since.
 * (Those on the store's own table depend on it as well, whatever they feed.)
 */
static Feeder *
read_trigger(HeapTuple tuple, TupleDesc desc, const HrflowStore *store,
			 Oid function, List *made_for_it)
{
	Form_pg_trigger form = (Form_pg_trigger) GETSTRUCT(tuple);
	Feeder	   *feeder;
	bool		is_null;
	Datum		args = heap_getattr(tuple, Anum_pg_trigger_tgargs, desc,
									&is_null);
	char	   *p;

	if (is_null || form->tgnargs != TRIGGER_NARGS ||
		form->tgfoid != function || OidIsValid(form->tgparentid))
		return NULL;

	feeder = palloc(sizeof(Feeder));
	p = VARDATA_ANY(DatumGetByteaPCopy(args));
	for (int i = 0; i < TRIGGER_NARGS; i++)
	{
		feeder->args[i] = p;
		p += strlen(p) + 1;
	}
	if (strcmp(feeder->args[TRIGGER_STORE], store->vectors_name) != 0 &&
		(form->tgrelid == RelationGetRelid(store->vectors) ||
		 !list_member_oid(made_for_it, form->oid)))
		return NULL;
	if (!may_feed(store, form->tgrelid))
		return NULL;
	feeder->trigger = form->oid;
	feeder->table = form->tgrelid;
	feeder->trigger_name = pstrdup(NameStr(form->tgname));
	feeder->is_insert = TRIGGER_TYPE_MATCHES(form->tgtype,
											 TRIGGER_TYPE_STATEMENT,
											 TRIGGER_TYPE_AFTER,
											 TRIGGER_TYPE_INSERT);
	return feeder;
}

/*
 * Read a trigger by its OID.  NULL also where there is none any more.
 */
static Feeder *
get_trigger(Relation triggers, Oid trigger, const HrflowStore *store,
			Oid function, List *made_for_it)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Feeder	   *feeder = NULL;

	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(trigger));
	scan = systable_beginscan(triggers, TriggerOidIndexId, true, NULL, 1,
							  &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		feeder = read_trigger(tuple, RelationGetDescr(triggers), store,
							  function, made_for_it);
	systable_endscan(scan);
	return feeder;
}

static int
compare_tables(const ListCell *a, const ListCell *b)
{
	Oid			left = ((Feeder *) lfirst(a))->table;
	Oid			right = ((Feeder *) lfirst(b))->table;

	return left < right ? -1 : left > right;
}

/*
 * The triggers that depend on something.
 */
static List *
find_dependents(Oid class, Oid object)
{
	Relation	depend = table_open(DependRelationId, AccessShareLock);
	List	   *found = NIL;
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(class));
	ScanKeyInit(&keys[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(object));
	scan = systable_beginscan(depend, DependReferenceIndexId, true, NULL, 2,
							  keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend form = (Form_pg_depend) GETSTRUCT(tuple);

		if (form->classid == TriggerRelationId)
			found = lappend_oid(found, form->objid);
	}
	systable_endscan(scan);
	table_close(depend, AccessShareLock);
	return found;
}

/*
 * The triggers that feed a store: those of its owner's tables that call our
 * function and name the store, or were made for it; on one table only unless
 * that is InvalidOid.  The tables are locked, in the order of their OIDs; what
 * had gone when its lock was had is left out.  Tables of others are not waited
 * for.
 */
static List *
find_triggers(const HrflowStore *store, Oid function, Oid table,
			  LOCKMODE lockmode)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	List	   *made_for_it = find_dependents(RelationRelationId,
											  RelationGetRelid(store->vectors));
	List	   *found = NIL;
	List	   *feeders = NIL;
	ListCell   *cell;

	foreach(cell, find_dependents(ProcedureRelationId, function))
	{
		Feeder	   *feeder = get_trigger(triggers, lfirst_oid(cell), store,
										 function, made_for_it);

		if (feeder != NULL && (!OidIsValid(table) || feeder->table == table))
			found = lappend(found, feeder);
	}

	list_sort(found, compare_tables);
	foreach(cell, found)
	{
		Feeder	   *feeder = lfirst(cell);

		LockRelationOid(feeder->table, lockmode);
		feeder = get_trigger(triggers, feeder->trigger, store, function,
							 made_for_it);
		if (feeder != NULL)
			feeders = lappend(feeders, feeder);
	}
	table_close(triggers, AccessShareLock);
	return feeders;
}

static void
drop_trigger(const Feeder *feeder)
{
	hrflow_store_execute(psprintf("DROP TRIGGER %s ON %s",
								  quote_identifier(feeder->trigger_name),
								  quote_qualified_identifier(get_namespace_name(get_rel_namespace(feeder->table)),
															 get_rel_name(feeder->table))),
						 NULL);
}

/*
 * Drop the triggers on a table that feed a store; on any where the table is
 * InvalidOid.  Returns whether there was one.
 */
bool
hrflow_track_drop_triggers(const HrflowStore *store, Oid caller, Oid table)
{
	List	   *feeders = find_triggers(store, find_trigger_function(caller),
										table, AccessExclusiveLock);
	ListCell   *cell;

	foreach(cell, feeders)
		drop_trigger(lfirst(cell));
	return feeders != NIL;
}

/*
 * Check that a column is there; and, where it is to hold keys, that its type
 * has one text only for each value.  "tracked": it was there when the table was
 * tracked.
 */
static void
check_source_column(Relation table, const char *name, bool is_key,
					bool tracked)
{
	int			number = SPI_fnumber(RelationGetDescr(table), name);
	Oid			type;

	if (number <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("table \"%s\" has no column \"%s\"",
						RelationGetRelationName(table), name),
				 tracked ? errhint("If it was renamed, call hrflow_track_table() again.") : 0));
	if (!is_key)
		return;
	type = getBaseType(SPI_gettypeid(RelationGetDescr(table), number));
	if (type != TEXTOID && type != VARCHAROID && type != UUIDOID &&
		type != INT8OID && type != INT4OID && type != INT2OID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" has the type %s", name,
						format_type_be(type)),
				 errhint("Identifiers are text, varchar, uuid or integers; a stored generated column can convert others.")));
	if (TupleDescAttr(RelationGetDescr(table), number - 1)->attgenerated ==
		ATTRIBUTE_GENERATED_VIRTUAL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" is generated when it is read", name),
				 errdetail("Triggers do not see what it holds."),
				 errhint("Make it STORED.")));
}

/*
 * Check the columns that hold a table's keys.
 */
static void
check_key_columns(Relation table, char *const *args, bool tracked)
{
	check_source_column(table, args[TRIGGER_PROFILE_COLUMN], true, tracked);
	if (*args[TRIGGER_SOURCE_COLUMN] != '\0')
		check_source_column(table, args[TRIGGER_SOURCE_COLUMN], true, tracked);
}

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

/*
 * Keys are compared byte by byte, as the store's are, whatever the collation of
 * a column that feeds it; and then an index of the store's can be used.
 */
#define PLAIN_COLLATION " COLLATE pg_catalog.\"default\""

/*
 * SQL for the source and the identifier of a row of a feeding table, "alias".
 */
static char *
source_of(char *const *args, const char *alias)
{
	if (args[TRIGGER_SOURCE_COLUMN][0] == '\0')
		return psprintf("%s::text",
						quote_literal_cstr(args[TRIGGER_SOURCE_ID]));
	return psprintf("%s.%s::text" PLAIN_COLLATION, alias,
					quote_identifier(args[TRIGGER_SOURCE_COLUMN]));
}

static char *
identifier_of(char *const *args, const char *alias)
{
	return psprintf("%s.%s::text" PLAIN_COLLATION, alias,
					quote_identifier(args[TRIGGER_PROFILE_COLUMN]));
}

/*
 * SQL for: column "name" of a row "f" of a feeding table is, as text, the value
 * of the SQL "text".  It is the text that is converted, if it is one that the
 * type writes, for the column's index is of the column's own type and
 * collation.
 */
static char *
column_is(Relation table, const char *name, const char *text)
{
	TupleDesc	desc = RelationGetDescr(table);
	Form_pg_attribute attribute =
	TupleDescAttr(desc, SPI_fnumber(desc, name) - 1);
	const char *column = quote_identifier(name);

	switch (getBaseType(attribute->atttypid))
	{
		case INT8OID:
		case INT4OID:
		case INT2OID:
			return psprintf("f.%s = CASE WHEN %s COLLATE \"C\" ~ '^(0|-?[1-9][0-9]{0,18})$' THEN"
							" CASE WHEN %s::numeric BETWEEN -9223372036854775808 AND 9223372036854775807"
							" THEN %s::bigint END END",
							column, text, text, text);
		case UUIDOID:
			return psprintf("f.%s = CASE WHEN %s COLLATE \"C\" ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'"
							" THEN %s::uuid END",
							column, text, text);
		default:

			/* All that tell texts apart tell the same ones apart. */
			if (get_collation_isdeterministic(attribute->attcollation))
				return psprintf("f.%s::text = %s COLLATE %s", column, text,
								DatumGetCString(DirectFunctionCall1(regcollationout,
																	ObjectIdGetDatum(attribute->attcollation))));
			return psprintf("f.%s::text" PLAIN_COLLATION " = %s", column, text);
	}
}

/*
 * SQL for: a row "f" of a feeding table wants the profile of the state table's
 * row "p".
 */
static char *
row_wants(const HrflowStore *store, Relation table, char *const *args)
{
	char	   *identifier = column_is(table, args[TRIGGER_PROFILE_COLUMN],
									   psprintf("p.%s",
												store->identifier_name));

	if (*args[TRIGGER_SOURCE_COLUMN] != '\0')
		return psprintf("%s AND %s", identifier,
						column_is(table, args[TRIGGER_SOURCE_COLUMN],
								  "p.source_id"));
	return psprintf("%s AND p.source_id = %s", identifier,
					quote_literal_cstr(args[TRIGGER_SOURCE_ID]));
}

/*
 * The profiles that a table's rows name, as (s, i).
 */
static char *
profiles_in(char *const *args, const char *table, bool distinct)
{
	return psprintf("(SELECT %s %s AS s, %s AS i FROM %s AS f"
					" WHERE %s <> '' AND %s <> '')",
					distinct ? "DISTINCT" : "",
					source_of(args, "f"), identifier_of(args, "f"), table,
					source_of(args, "f"), identifier_of(args, "f"));
}

/*
 * SQL for: nobody wants the profile of the state table's row "p".
 */
static char *
unwanted(const HrflowStore *store, Oid function)
{
	StringInfoData sql;
	ListCell   *cell;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "NOT p.manual");
	foreach(cell, find_triggers(store, function, InvalidOid, AccessShareLock))
	{
		Feeder	   *feeder = lfirst(cell);
		Relation	table;

		if (!feeder->is_insert)
			continue;
		table = relation_open(feeder->table, NoLock);
		check_key_columns(table, feeder->args, true);
		appendStringInfo(&sql, " AND NOT EXISTS (SELECT FROM %s AS f WHERE %s)",
						 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(table)),
													RelationGetRelationName(table)),
						 row_wants(store, table, feeder->args));
		relation_close(table, NoLock);
	}
	return sql.data;
}

/*
 * Can all tables that feed a store be asked what they want?  Where a column was
 * renamed, not before its table is tracked again.
 */
static bool
can_ask_all(const HrflowStore *store, Oid function)
{
	bool		result = true;
	ListCell   *cell;

	foreach(cell, find_triggers(store, function, InvalidOid, AccessShareLock))
	{
		Feeder	   *feeder = lfirst(cell);
		const char *source_column = feeder->args[TRIGGER_SOURCE_COLUMN];
		Relation	table;
		TupleDesc	desc;

		if (!feeder->is_insert)
			continue;
		table = relation_open(feeder->table, NoLock);
		desc = RelationGetDescr(table);
		if (SPI_fnumber(desc, feeder->args[TRIGGER_PROFILE_COLUMN]) <= 0 ||
			(*source_column != '\0' && SPI_fnumber(desc, source_column) <= 0))
			result = false;
		relation_close(table, NoLock);
	}
	return result;
}

/*
 * Execute a statement that sees all that is committed by now, whatever the
 * isolation level, as the checks of foreign keys do.
 */
static uint64
execute_latest(const char *sql, const HrflowParameters *parameters)
{
	HrflowParameters none = {0};
	HrflowParameters *p = unconstify(HrflowParameters *,
									 parameters ? parameters : &none);
	SPIPlanPtr	plan = SPI_prepare(sql, p->n, p->types);
	int			code;

	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s",
			 SPI_result_code_string(SPI_result));
	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	code = SPI_execute_snapshot(plan, p->values, p->nulls, GetActiveSnapshot(),
								InvalidSnapshot, false, true, 0);
	PopActiveSnapshot();
	if (code < 0)
		elog(ERROR, "SPI_execute_snapshot failed: %s",
			 SPI_result_code_string(code));
	SPI_freeplan(plan);
	return SPI_processed;
}

/*
 * Erase those of some profiles that nobody wants.  "profiles" is SQL for
 * their keys, as (s, i), or NULL for all.
 */
static uint64
erase(const HrflowStore *store, Oid function, const char *profiles,
	  const HrflowParameters *parameters)
{
	char	   *where = unwanted(store, function);
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT FROM %s AS p WHERE ", store->profiles_name);
	if (profiles != NULL)
		appendStringInfo(&sql, "(p.source_id, p.%s) IN %s",
						 store->identifier_name, profiles);
	else
		appendStringInfoString(&sql, where);
	appendStringInfo(&sql, " ORDER BY p.source_id, p.%s FOR UPDATE OF p",
					 store->identifier_name);
	execute_latest(sql.data, parameters);

	resetStringInfo(&sql);
	appendStringInfo(&sql, "WITH erased AS (DELETE FROM %s AS p WHERE %s",
					 store->profiles_name, where);
	if (profiles != NULL)
		appendStringInfo(&sql, " AND (p.source_id, p.%s) IN %s",
						 store->identifier_name, profiles);
	appendStringInfoString(&sql,
						   hrflow_store_sql(store,
											" RETURNING p.source_id, p.%I),"
											" vectors AS (DELETE FROM %V AS v USING erased AS e"
											" WHERE v.source_id = e.source_id AND v.%I = e.%I)"
											" SELECT count(*) FROM erased"));
	execute_latest(sql.data, parameters);
	return strtou64(hrflow_store_value(0, 1), NULL, 10);
}

/*
 * Track some profiles.  "profiles" is SQL for their keys, as (s, i);
 * "on_conflict" says what to do with a row that is there.  Returns the number
 * of rows written.
 */
static uint64
insert_profiles(const HrflowStore *store, const char *profiles,
				const HrflowParameters *parameters, const char *on_conflict)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql,
						   hrflow_store_sql(store,
											"INSERT INTO %P AS p (source_id, %I, state, due_at,"
											" attempts, generation, manual)"
											" SELECT k.s, k.i, 'due', statement_timestamp(), 0, 0, false FROM "));
	appendStringInfo(&sql, "%s AS k ORDER BY k.s, k.i", profiles);
	appendStringInfoString(&sql, hrflow_store_sql(store, on_conflict));
	return hrflow_store_execute(sql.data, parameters);
}

/*
 * Track some profiles.  A row that is there is locked, lest it is erased
 * meanwhile; one that was gone is wanted again.
 */
static uint64
track(const HrflowStore *store, const char *profiles,
	  const HrflowParameters *parameters)
{
	return insert_profiles(store, profiles, parameters,
						   " ON CONFLICT (source_id, %I) DO UPDATE SET state = 'due',"
						   " due_at = clock_timestamp(), attempts = 0,"
						   " generation = p.generation + 1"
						   " WHERE p.state = 'gone'");
}

/*
 * Profiles to be tracked; see insert_profiles().
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

	insert_profiles(profiles->store, profiles->keys, NULL, "");
}

/*
 * The same for many, of which none is likely to be there, nor twice: without
 * looking for that first, which costs as much again.  Returns false, having
 * done nothing, when one is.
 */
static bool
track_new(const HrflowStore *store, const char *profiles)
{
	NewProfiles arg = {.store = store, .keys = profiles};
	ErrorData  *error = hrflow_store_try(insert_new, &arg);

	/* Whoever catches this has a subtransaction of his own to roll back. */
	if (error != NULL && error->sqlerrcode != ERRCODE_UNIQUE_VIOLATION)
		ReThrowError(error);
	return error == NULL;
}

/*
 * A statement that was planned for a store's table of profiles, kept for the
 * next rows of an UPDATE of many.
 */
typedef struct MarkPlan
{
	Oid			profiles;		/* the key */
	char	   *sql;			/* what it was made of */
	SPIPlanPtr	plan;
} MarkPlan;

/*
 * The statement that marks a profile of a store due, planned.
 */
static SPIPlanPtr
get_mark_plan(const HrflowStore *store)
{
	static HTAB *plans = NULL;
	static Oid	types[] = {TEXTOID, TEXTOID};
	Oid			profiles = RelationGetRelid(store->profiles);
	char	   *sql = hrflow_store_sql(store,
									   "UPDATE %P AS p SET due_at = clock_timestamp(),"
									   " attempts = 0, generation = p.generation + 1,"
									   " state = CASE p.state WHEN 'missing' THEN 'missing'"
									   " ELSE 'due' END"
									   " WHERE p.source_id = $1 AND p.%I = $2");
	MarkPlan   *entry;
	SPIPlanPtr	plan;
	bool		found;

	if (plans == NULL)
	{
		HASHCTL		control = {.keysize = sizeof(Oid),
		.entrysize = sizeof(MarkPlan)};

		plans = hash_create("hrflow_embed plans", 8, &control,
							HASH_ELEM | HASH_BLOBS);
	}
	entry = hash_search(plans, &profiles, HASH_FIND, NULL);
	if (entry != NULL && strcmp(entry->sql, sql) == 0)
		return entry->plan;

	plan = SPI_prepare(sql, lengthof(types), types);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s",
			 SPI_result_code_string(SPI_result));
	sql = MemoryContextStrdup(TopMemoryContext, sql);
	SPI_keepplan(plan);
	entry = hash_search(plans, &profiles, HASH_ENTER, &found);
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
 * One profile has changed.
 */
static void
mark_due(const HrflowStore *store, HrflowParameters *key)
{
	int			code = SPI_execute_plan(get_mark_plan(store), key->values,
										key->nulls, false, 0);

	if (code < 0)
		elog(ERROR, "SPI_execute_plan failed: %s",
			 SPI_result_code_string(code));
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
get_key(TriggerData *trigdata, HeapTuple tuple, HrflowParameters *key)
{
	char	  **args = trigdata->tg_trigger->tgargs;
	char	   *source = args[TRIGGER_SOURCE_ID];
	char	   *identifier = get_column(trigdata, tuple,
										args[TRIGGER_PROFILE_COLUMN]);

	if (args[TRIGGER_SOURCE_COLUMN][0] != '\0')
		source = get_column(trigdata, tuple, args[TRIGGER_SOURCE_COLUMN]);
	if (source == NULL || *source == '\0' ||
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
lock_profile(const HrflowStore *store, const HrflowParameters *key)
{
	execute_latest(hrflow_store_sql(store,
									"SELECT FROM %P AS p"
									" WHERE p.source_id = $1 AND p.%I = $2 FOR UPDATE"),
				   key);
}

/*
 * A row was updated, and in what matters here.
 */
static void
row_updated(const HrflowStore *store, TriggerData *trigdata)
{
	static const char one[] = "(SELECT $1 AS s, $2 AS i)";
	HrflowParameters old;
	HrflowParameters new;
	bool		has_old = get_key(trigdata, trigdata->tg_trigtuple, &old);
	bool		has_new = get_key(trigdata, trigdata->tg_newtuple, &new);
	int			order = has_old && has_new ? compare_keys(&old, &new) : 1;

	if (order == 0)
	{
		mark_due(store, &new);
		return;
	}
	if (order < 0)
		lock_profile(store, &old);
	if (has_new)
		track(store, one, &new);
	if (has_old)
		erase(store, trigdata->tg_trigger->tgfoid, one, &old);
}

/*
 * Rows were inserted.
 */
static void
rows_inserted(const HrflowStore *store, TriggerData *trigdata)
{
	char	  **args = trigdata->tg_trigger->tgargs;
	const char *table = quote_identifier(trigdata->tg_trigger->tgnewtable);

	if (tuplestore_tuple_count(trigdata->tg_newtable) < MANY_ROWS ||
		!track_new(store, profiles_in(args, table, false)))
		track(store, profiles_in(args, table, true), NULL);
}

/*
 * The table of vectors that a trigger names, or InvalidOid.  Whoever writes to
 * the trigger's table needs no right on the store's schema.
 */
static Oid
find_store(const char *name)
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
 * What a trigger on a partition is a copy of, or the trigger itself; its table
 * too.
 */
static Oid
find_original(Oid trigger, Oid *table)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	Oid			parent = trigger;

	while (OidIsValid(parent))
	{
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tuple;

		trigger = parent;
		ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
					ObjectIdGetDatum(parent));
		scan = systable_beginscan(triggers, TriggerOidIndexId, true, NULL, 1,
								  &key);
		tuple = systable_getnext(scan);
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "could not find tuple for trigger %u", parent);
		parent = ((Form_pg_trigger) GETSTRUCT(tuple))->tgparentid;
		*table = ((Form_pg_trigger) GETSTRUCT(tuple))->tgrelid;
		systable_endscan(scan);
	}
	table_close(triggers, AccessShareLock);
	return trigger;
}

/*
 * Does a trigger on a table depend on another table?  That is the store it was
 * made for.
 */
static bool
has_store(Oid trigger, Oid table)
{
	Relation	depend = table_open(DependRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		result = false;

	ScanKeyInit(&keys[0], Anum_pg_depend_classid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(TriggerRelationId));
	ScanKeyInit(&keys[1], Anum_pg_depend_objid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(trigger));
	scan = systable_beginscan(depend, DependDependerIndexId, true, NULL, 2,
							  keys);
	while (!result && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend form = (Form_pg_depend) GETSTRUCT(tuple);

		result = form->refclassid == RelationRelationId &&
			form->refobjid != table;
	}
	systable_endscan(scan);
	table_close(depend, AccessShareLock);
	return result;
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
	const char *store = trigger->tgargs[TRIGGER_STORE];
	Oid			table = RelationGetRelid(trigdata->tg_relation);
	Oid			original = find_original(trigger->tgoid, &table);

	if (has_store(original, table))
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
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)),
												get_rel_name(table)))));
}

/*
 * Open the store that a trigger feeds.  Who acts is the owner of the table,
 * who must be the store's.  False where there is no store any more.
 */
static bool
open_store(HrflowStore *store, TriggerData *trigdata)
{
	Trigger    *trigger = trigdata->tg_trigger;
	Oid			vectors;

	if (trigger->tgnargs != TRIGGER_NARGS)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" was not made by hrflow_track_table()",
						trigger->tgname)));
	vectors = find_store(trigger->tgargs[TRIGGER_STORE]);
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
						trigger->tgargs[TRIGGER_STORE])));
	hrflow_store_check_manual(store);
	check_key_columns(trigdata->tg_relation, trigger->tgargs, true);
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
	if (!TRIGGER_FIRED_AFTER(event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" was not made by hrflow_track_table()",
						trigdata->tg_trigger->tgname)));
	SPI_connect();
	SPI_register_trigger_data(trigdata);
	if (!open_store(&store, trigdata))
	{
		SPI_finish();
		return PointerGetDatum(NULL);
	}
	if (TRIGGER_FIRED_BY_TRUNCATE(event))
		erase(&store, trigdata->tg_trigger->tgfoid, NULL, NULL);
	else if (TRIGGER_FIRED_BY_UPDATE(event) && TRIGGER_FIRED_FOR_ROW(event))
		row_updated(&store, trigdata);
	else if (TRIGGER_FIRED_BY_INSERT(event) && trigdata->tg_newtable != NULL)
		rows_inserted(&store, trigdata);
	else if (TRIGGER_FIRED_BY_DELETE(event) && trigdata->tg_oldtable != NULL)
		erase(&store, trigdata->tg_trigger->tgfoid,
			  profiles_in(trigdata->tg_trigger->tgargs,
						  quote_identifier(trigdata->tg_trigger->tgoldtable),
						  true),
			  NULL);
	else
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" was not made by hrflow_track_table()",
						trigdata->tg_trigger->tgname)));
	hrflow_store_close(&store);
	SPI_finish();
	return PointerGetDatum(NULL);
}

/*
 * ------------------------------------------------------------------------
 * Tracking a table
 * ------------------------------------------------------------------------
 */

/*
 * Check that a table, if there is one, is the store's owner's.
 */
static void
check_owner(const HrflowStore *store, Oid table)
{
	Oid			owner = get_owner(table);

	if (OidIsValid(owner) && owner != store->owner)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("table \"%s\" and store %s do not have the same owner",
						get_rel_name(table), store->vectors_name)));
}

/*
 * Open a table of the store's owner, to make triggers on it.
 */
static Relation
open_source(Oid relid, const HrflowStore *store)
{
	Relation	table = relation_open(relid, AccessShareLock);
	char		kind = table->rd_rel->relkind;

	if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table",
						RelationGetRelationName(table))));
	check_owner(store, relid);
	if (RelationUsesLocalBuffers(table) &&
		!RelationUsesLocalBuffers(store->vectors))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("table \"%s\" is temporary, and store %s is not",
						RelationGetRelationName(table), store->vectors_name),
				 errdetail("Other sessions could not read what it wants.")));

	/* Only what is the owner's is locked against others. */
	LockRelationOid(relid, ShareRowExclusiveLock);
	return table;
}

/*
 * The condition under which an UPDATE of a row matters.  A type whose equality
 * is not PostgreSQL's own, or that has none, such as json, is compared as
 * text: it would not be found by every search_path.  Texts that a collation
 * takes for the same are not.
 */
static char *
update_condition(Relation table, char *const *columns, int ncolumns)
{
	TupleDesc	desc = RelationGetDescr(table);
	StringInfoData sql;

	initStringInfo(&sql);
	for (int i = 0; i < ncolumns; i++)
	{
		int			number = SPI_fnumber(desc, columns[i]);
		Oid			type = SPI_gettypeid(desc, number);
		Oid			collation = TupleDescAttr(desc, number - 1)->attcollation;
		Oid			equality = lookup_type_cache(getBaseType(type),
												 TYPECACHE_EQ_OPR)->eq_opr;
		const char *cast = OidIsValid(equality) &&
		equality < FirstNormalObjectId ? "" : "::text";
		const char *column =
		psprintf("%s%s%s", quote_identifier(columns[i]), cast,
				 !OidIsValid(collation) ||
				 get_collation_isdeterministic(collation) ? "" :
				 PLAIN_COLLATION);

		appendStringInfo(&sql, "%sOLD.%s IS DISTINCT FROM NEW.%s",
						 i == 0 ? "" : " OR ", column, column);
	}
	return sql.data;
}

/*
 * Let the store's owner execute the triggers' function, as the function's
 * owner.  It is not PUBLIC's: whoever makes a trigger with it makes a table a
 * candidate for feeding any store.  But who may call hrflow_track_table() may
 * have triggers made; PostgreSQL asks for the right again whenever a partition
 * is made, so that it is not enough to have it here and now.
 */
static void
grant_function(const HrflowStore *store, Oid function)
{
	Datum		execute = CStringGetTextDatum("EXECUTE");
	HeapTuple	tuple;
	Oid			grantor;
	Oid			user;
	int			context;

	if (DatumGetBool(DirectFunctionCall3(has_function_privilege_id_id,
										 ObjectIdGetDatum(store->owner),
										 ObjectIdGetDatum(function),
										 execute)))
		return;

	/* Of two that do this at the same time one would fail. */
	LockDatabaseObject(ProcedureRelationId, function, 0,
					   ShareUpdateExclusiveLock);
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	grantor = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(grantor, context | SECURITY_LOCAL_USERID_CHANGE);
	hrflow_store_execute(psprintf("GRANT EXECUTE ON FUNCTION %s() TO %s",
								  quote_qualified_identifier(get_namespace_name(get_func_namespace(function)),
															 get_func_name(function)),
								  quote_identifier(GetUserNameFromId(store->owner,
																	 false))),
						 NULL);
	SetUserIdAndSecContext(user, context);
}

/*
 * The name of a trigger.  Names of a schema and a table can be put together to
 * the same in two ways, or be cut to it, so there is a checksum of both in it,
 * which is the same wherever a dump is restored.
 */
static char *
trigger_name(const HrflowStore *store, const char *event)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, store->vectors_name, strlen(store->vectors_name));
	FIN_CRC32C(crc);
	return makeObjectName(psprintf("hrflow_%s",
								   get_namespace_name(RelationGetNamespace(store->vectors))),
						  RelationGetRelationName(store->vectors),
						  psprintf("%08x_%s", crc, event));
}

/*
 * A trigger of that name is replaced if it feeds the store.
 */
static void
check_trigger_name(const HrflowStore *store, Relation table, Oid function,
				   const char *name)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	Oid			trigger = get_trigger_oid(RelationGetRelid(table), name, true);

	if (OidIsValid(trigger) &&
		get_trigger(triggers, trigger, store, function, NIL) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("trigger \"%s\" of table \"%s\" does not feed store %s",
						name, RelationGetRelationName(table),
						store->vectors_name),
				 errhint("Rename it: hrflow_track_table() needs the name.")));
	table_close(triggers, AccessShareLock);
}

/*
 * Make one of the triggers, or make it anew.  It goes when the store goes.
 * Returns its name.
 */
static char *
create_trigger(const HrflowStore *store, Relation table, Oid function,
			   char *const *args, const char *event, const char *clauses)
{
	char	   *schema = get_namespace_name(RelationGetNamespace(table));
	char	   *name = trigger_name(store, event);
	StringInfoData sql;
	ObjectAddress trigger;
	ObjectAddress vectors;

	check_trigger_name(store, table, function, name);
	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE OR REPLACE TRIGGER %s AFTER %s ON %s %s EXECUTE FUNCTION %s(",
					 quote_identifier(name), event,
					 quote_qualified_identifier(schema, RelationGetRelationName(table)),
					 clauses,
					 quote_qualified_identifier(get_namespace_name(get_func_namespace(function)),
												get_func_name(function)));
	for (int i = 0; i < TRIGGER_NARGS; i++)
		appendStringInfo(&sql, "%s%s", i == 0 ? "" : ", ",
						 quote_literal_cstr(args[i]));
	appendStringInfoChar(&sql, ')');
	hrflow_store_execute(sql.data, NULL);

	ObjectAddressSet(trigger, TriggerRelationId,
					 get_trigger_oid(RelationGetRelid(table), name, false));
	ObjectAddressSet(vectors, RelationRelationId,
					 RelationGetRelid(store->vectors));
	recordDependencyOn(&trigger, &vectors, DEPENDENCY_AUTO);
	return name;
}

/*
 * Say so where a table has fed the store by other keys: its profiles are
 * erased, which had better not be found out later.  A column that is no more
 * was renamed.
 */
static void
warn_of_other_keys(const HrflowStore *store, Relation table,
				   const Feeder *feeder, char *const *args)
{
	TupleDesc	desc = RelationGetDescr(table);
	bool		same = true;

	for (int i = TRIGGER_PROFILE_COLUMN; i < TRIGGER_NARGS; i++)
	{
		const char *old = feeder->args[i];

		if (i != TRIGGER_SOURCE_ID && *old != '\0' &&
			SPI_fnumber(desc, old) == SPI_ERROR_NOATTRIBUTE)
			return;
		same = same && strcmp(old, args[i]) == 0;
	}
	if (!same)
		ereport(WARNING,
				(errmsg("table \"%s\" feeds store %s by column \"%s\" no more",
						RelationGetRelationName(table), store->vectors_name,
						feeder->args[TRIGGER_PROFILE_COLUMN]),
				 errdetail("A table feeds a store by one column, and from one source or column of sources. Profiles that nothing else wants are erased.")));
}

/*
 * The columns, by their numbers, whose change marks profiles due: those that
 * the triggers of a table depend on for their WHEN, but for its keys.  They are
 * in no argument of a trigger; and a number outlasts that the column is renamed.
 */
static Bitmapset *
find_refresh_columns(Relation table, List *feeders)
{
	Relation	depend = table_open(DependRelationId, AccessShareLock);
	Bitmapset  *columns = NULL;
	ListCell   *cell;

	foreach(cell, feeders)
	{
		Feeder	   *feeder = lfirst(cell);
		ScanKeyData keys[2];
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&keys[0], Anum_pg_depend_classid, BTEqualStrategyNumber,
					F_OIDEQ, ObjectIdGetDatum(TriggerRelationId));
		ScanKeyInit(&keys[1], Anum_pg_depend_objid, BTEqualStrategyNumber,
					F_OIDEQ, ObjectIdGetDatum(feeder->trigger));
		scan = systable_beginscan(depend, DependDependerIndexId, true, NULL, 2,
								  keys);
		while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		{
			Form_pg_depend form = (Form_pg_depend) GETSTRUCT(tuple);

			if (form->refclassid == RelationRelationId &&
				form->refobjid == feeder->table && form->refobjsubid > 0)
				columns = bms_add_member(columns, form->refobjsubid);
		}
		systable_endscan(scan);
	}
	table_close(depend, AccessShareLock);

	foreach(cell, feeders)
	{
		Feeder	   *feeder = lfirst(cell);

		for (int i = TRIGGER_PROFILE_COLUMN; i < TRIGGER_NARGS; i++)
		{
			int			number = i == TRIGGER_SOURCE_ID ? 0 :
			SPI_fnumber(RelationGetDescr(table), feeder->args[i]);

			if (number > 0)
				columns = bms_del_member(columns, number);
		}
	}
	return columns;
}

/*
 * Say so where columns have marked profiles due and do so no more: whoever
 * calls again, only to reconcile, may not have meant it.
 */
static void
warn_of_columns(const HrflowStore *store, Relation table,
				const Bitmapset *columns)
{
	StringInfoData names;
	int			number = -1;

	if (bms_is_empty(columns))
		return;
	initStringInfo(&names);
	while ((number = bms_next_member(columns, number)) >= 0)
		appendStringInfo(&names, "%s\"%s\"", names.len == 0 ? "" : ", ",
						 NameStr(TupleDescAttr(RelationGetDescr(table),
											   number - 1)->attname));
	ereport(WARNING,
			(errmsg_plural("table \"%s\" marks profiles of store %s due by column %s no more",
						   "table \"%s\" marks profiles of store %s due by columns %s no more",
						   bms_num_members(columns),
						   RelationGetRelationName(table), store->vectors_name,
						   names.data),
			 errhint("Pass all columns that are to do so in refresh_columns, each time.")));
}

/*
 * Make the triggers of a table, or make them anew.  "condition" is that on
 * which an UPDATE matters, and "columns" are what it compares.  Returns whether
 * the table has fed the store before.
 */
static bool
create_triggers(const HrflowStore *store, Relation table, Oid function,
				char *const *args, const char *condition,
				const Bitmapset *columns)
{
	List	   *old = find_triggers(store, function, RelationGetRelid(table),
									ShareRowExclusiveLock);
	Bitmapset  *old_columns = find_refresh_columns(table, old);
	char	   *names[4];
	int			n = 0;
	ListCell   *cell;

	grant_function(store, function);
	names[n++] =
		create_trigger(store, table, function, args, "insert",
					   "REFERENCING NEW TABLE AS hrflow_new FOR EACH STATEMENT");
	names[n++] =
		create_trigger(store, table, function, args, "delete",
					   "REFERENCING OLD TABLE AS hrflow_old FOR EACH STATEMENT");
	names[n++] =
		create_trigger(store, table, function, args, "update",
					   psprintf("FOR EACH ROW WHEN (%s)", condition));
	names[n++] =
		create_trigger(store, table, function, args, "truncate",
					   "FOR EACH STATEMENT");

	/* Any others would do all that once more. */
	foreach(cell, old)
	{
		Feeder	   *feeder = lfirst(cell);
		int			i = 0;

		if (feeder->is_insert)
			warn_of_other_keys(store, table, feeder, args);
		while (i < n && strcmp(names[i], feeder->trigger_name) != 0)
			i++;
		if (i == n)
			drop_trigger(feeder);
	}
	warn_of_columns(store, table, bms_difference(old_columns, columns));
	return old != NIL;
}

/*
 * Read the names of columns in an array.
 */
static int
get_columns(ArrayType *array, char **columns)
{
	Datum	   *values;
	bool	   *nulls;
	int			n;

	deconstruct_array(array, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR,
					  &values, &nulls, &n);
	if (ARR_NDIM(array) > 1 || array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a one-dimensional array without nulls",
						"refresh_columns")));
	if (n > MaxTupleAttributeNumber)
		ereport(ERROR,
				(errcode(ERRCODE_TOO_MANY_COLUMNS),
				 errmsg("%s has more elements than a table has columns",
						"refresh_columns")));
	for (int i = 0; columns != NULL && i < n; i++)
		columns[i] = NameStr(*DatumGetName(values[i]));
	return n;
}

/*
 * Check the arguments of hrflow_track_table(), and read them: into "args" for
 * the triggers, "condition" and "numbers" as create_triggers() takes them.
 */
static void
get_arguments(FunctionCallInfo fcinfo, Relation table, char **args,
			  char **condition, Bitmapset **numbers)
{
	char	  **columns;
	int			ncolumns = 0;
	ArrayType  *refresh = PG_ARGISNULL(ARG_REFRESH_COLUMNS) ? NULL :
	PG_GETARG_ARRAYTYPE_P(ARG_REFRESH_COLUMNS);

	args[TRIGGER_PROFILE_COLUMN] =
		NameStr(*PG_GETARG_NAME(ARG_PROFILE_COLUMN));
	args[TRIGGER_SOURCE_ID] = PG_ARGISNULL(ARG_SOURCE_ID) ? pstrdup("") :
		text_to_cstring(PG_GETARG_TEXT_PP(ARG_SOURCE_ID));
	args[TRIGGER_SOURCE_COLUMN] = PG_ARGISNULL(ARG_SOURCE_COLUMN) ?
		pstrdup("") : NameStr(*PG_GETARG_NAME(ARG_SOURCE_COLUMN));
	if ((*args[TRIGGER_SOURCE_ID] == '\0') ==
		(*args[TRIGGER_SOURCE_COLUMN] == '\0'))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("either source_id or source_column must be given"),
				 errhint("source_id is for a table whose profiles are all in one source, source_column for one that says for each row which.")));

	columns = palloc(sizeof(char *) *
					 (2 + (refresh == NULL ? 0 : get_columns(refresh, NULL))));
	check_key_columns(table, args, false);
	columns[ncolumns++] = args[TRIGGER_PROFILE_COLUMN];
	if (*args[TRIGGER_SOURCE_COLUMN] != '\0')
		columns[ncolumns++] = args[TRIGGER_SOURCE_COLUMN];
	if (refresh != NULL)
	{
		int			n = get_columns(refresh, columns + ncolumns);

		for (int i = 0; i < n; i++)
			check_source_column(table, columns[ncolumns++], false, false);
	}
	*condition = update_condition(table, columns, ncolumns);
	*numbers = NULL;
	for (int i = 0; i < ncolumns; i++)
		*numbers = bms_add_member(*numbers,
								  SPI_fnumber(RelationGetDescr(table),
											  columns[i]));
}

/*
 * hrflow_track_table(store regclass, source_table regclass,
 *					  profile_column name, source_id text, source_column name,
 *					  refresh_columns name[]) RETURNS bigint
 */
Datum
hrflow_track_table(PG_FUNCTION_ARGS)
{
	Oid			function = find_trigger_function(fcinfo->flinfo->fn_oid);
	char	   *args[TRIGGER_NARGS];
	char	   *condition;
	Bitmapset  *columns;
	HrflowStore store;
	Relation	table;
	bool		had_triggers;
	uint64		n;

	if (PG_ARGISNULL(ARG_STORE) || PG_ARGISNULL(ARG_TABLE) ||
		PG_ARGISNULL(ARG_PROFILE_COLUMN))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be null",
						PG_ARGISNULL(ARG_STORE) ? "store" :
						PG_ARGISNULL(ARG_TABLE) ? "source_table" :
						"profile_column")));
	PreventCommandDuringRecovery("hrflow_track_table()");

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(ARG_STORE), InvalidOid,
					  HRFLOW_STORE_OWN);
	hrflow_store_check_manual(&store);
	table = open_source(PG_GETARG_OID(ARG_TABLE), &store);
	args[TRIGGER_STORE] = store.vectors_name;
	get_arguments(fcinfo, table, args, &condition, &columns);

	had_triggers = create_triggers(&store, table, function, args, condition,
								   columns);
	CommandCounterIncrement();

	/*
	 * A table that feeds the store from now on makes nothing unwanted.  What
	 * it does not want may be another's, whose triggers are still to be made
	 * anew, as after DROP EXTENSION; or who cannot be asked until then, as
	 * where columns of several tables were renamed.
	 */
	if (had_triggers && can_ask_all(&store, function))
		erase(&store, function, NULL, NULL);
	n = track(&store,
			  profiles_in(args,
						  quote_qualified_identifier(get_namespace_name(RelationGetNamespace(table)),
													 RelationGetRelationName(table)),
						  true),
			  NULL);

	relation_close(table, NoLock);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_INT64(n);
}

/*
 * hrflow_untrack_table(store regclass, source_table regclass) RETURNS bigint
 */
Datum
hrflow_untrack_table(PG_FUNCTION_ARGS)
{
	Oid			function = find_trigger_function(fcinfo->flinfo->fn_oid);
	HrflowStore store;
	uint64		n = 0;

	PreventCommandDuringRecovery("hrflow_untrack_table()");
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(ARG_STORE), InvalidOid,
					  HRFLOW_STORE_OWN);
	hrflow_store_check_manual(&store);
	check_owner(&store, PG_GETARG_OID(ARG_TABLE));
	if (hrflow_track_drop_triggers(&store, fcinfo->flinfo->fn_oid,
								   PG_GETARG_OID(ARG_TABLE)))
	{
		CommandCounterIncrement();
		n = erase(&store, function, NULL, NULL);
	}
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_INT64(n);
}
