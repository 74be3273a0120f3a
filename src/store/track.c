/*-------------------------------------------------------------------------
 *
 * track.c
 *		Creates the triggers on tables that feed a store.
 *
 * hrflow_track_table() creates four triggers.  The triggers on INSERT, DELETE
 * and TRUNCATE are statement-level triggers.  The trigger on TRUNCATE fires
 * before the rows are deleted.  The trigger on UPDATE is a row-level
 * trigger with a WHEN condition on the relevant columns, so that an UPDATE of
 * other columns does not fire it.  A statement-level trigger cannot do that:
 * its WHEN condition cannot refer to columns, and a trigger with a list of
 * columns cannot have transition tables.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "commands/trigger.h"
#include "compat.h"
#include "miscadmin.h"
#include "nodes/bitmapset.h"
#include "port/pg_crc32c.h"
#include "storage/lmgr.h"
#include "store/store.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(hrflow_track_table);

/* Numbers of the arguments of hrflow_track_table(). */
enum
{
	ARG_STORE,
	ARG_TABLE,
	ARG_PROFILE_COLUMN,
	ARG_SOURCE_ID,
	ARG_SOURCE_COLUMN,
	ARG_REFRESH_COLUMNS,
	ARG_CONTENT_COLUMNS,
	ARG_ITEM_TYPE
};

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

/*
 * SQL template for the condition that at least one of several columns has
 * changed.  It is applied once per column.  The first two arguments are the
 * condition for the preceding columns and " OR "; both are empty for the first
 * column.
 */
static const char column_changed_sql[] =
"%s%sOLD.%q%s IS DISTINCT FROM NEW.%q%s";

static const char grant_sql[] = "GRANT EXECUTE ON FUNCTION %s() TO %q";

static const char create_trigger_sql[] =
"CREATE OR REPLACE TRIGGER %q %s %s ON %R %s"
" EXECUTE FUNCTION %s(%L, %L, %L, %L%s)";
static const char content_arguments_sql[] = ", %L, %L";

/*
 * Statement that marks all profiles as changed, except unwanted and gone ones.
 * It is executed when different columns, or a different item type, will be
 * used to make contents.  If the content of a profile turns out to be the
 * same, its vector is normally kept and not requested again; see content.c.
 */
static const char mark_all_changed_sql[] =
"UPDATE %P AS p SET due_at = LEAST(p.due_at, clock_timestamp()),"
" attempts = 0, generation = p.generation + 1, state = 'due'"
" FROM (SELECT o.source_id AS s, o.%I AS i FROM %P AS o"
" WHERE o.state NOT IN ('unwanted', 'gone')"
" ORDER BY o.source_id, o.%I FOR NO KEY UPDATE) AS l"
" WHERE p.source_id = l.s AND p.%I = l.i";

static const char on_insert_sql[] =
"REFERENCING NEW TABLE AS hrflow_new FOR EACH STATEMENT";
static const char on_delete_sql[] =
"REFERENCING OLD TABLE AS hrflow_old FOR EACH STATEMENT";
static const char on_update_sql[] = "FOR EACH ROW WHEN (%s)";
static const char on_truncate_sql[] = "FOR EACH STATEMENT";

/*
 * Definition of one of the triggers on a table that feeds a store.
 */
typedef struct TriggerKind
{
	const char *when;			/* BEFORE or AFTER */
	const char *event;			/* event, which is also the suffix of the
								 * trigger's name */
	const char *clauses;		/* remaining clauses; %s stands for the result
								 * of update_condition() */
	int16		type;			/* pg_trigger.tgtype */
} TriggerKind;

static const TriggerKind trigger_kinds[] = {
	{"AFTER", "insert", on_insert_sql, TRIGGER_TYPE_AFTER | TRIGGER_TYPE_INSERT},
	{"AFTER", "delete", on_delete_sql, TRIGGER_TYPE_AFTER | TRIGGER_TYPE_DELETE},
	{"AFTER", "update", on_update_sql,
	TRIGGER_TYPE_AFTER | TRIGGER_TYPE_ROW | TRIGGER_TYPE_UPDATE},
	{"BEFORE", "truncate", on_truncate_sql,
	TRIGGER_TYPE_BEFORE | TRIGGER_TYPE_TRUNCATE}
};

/*
 * ------------------------------------------------------------------------
 * Tables
 * ------------------------------------------------------------------------
 */

/*
 * Refuse a table that has a parent or, unless it is partitioned, children.  A
 * statement fires only the statement-level triggers of the table that it
 * names.  Rows inserted or deleted through the parent, or in a child, would be
 * missed.  Statements that name a partitioned table fire its triggers,
 * whichever partitions contain the rows.
 */
static void
check_inheritance(Relation table)
{
	Oid			relid = RelationGetRelid(table);

	if (table->rd_rel->relispartition)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot track partition \"%s\"",
						RelationGetRelationName(table)),
				 errdetail("Statements on the partitioned table do not fire statement-level triggers of its partitions."),
				 errhint("Track the partitioned table.")));
	if (has_superclass(relid))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot track inheritance child \"%s\"",
						RelationGetRelationName(table)),
				 errdetail("Statements that name the parent do not fire the triggers of its children."),
				 errhint("Use ALTER TABLE ... NO INHERIT, or make the parent a partitioned table and track the parent.")));
	if (table->rd_rel->relkind == RELKIND_RELATION &&
		find_inheritance_children(relid, NoLock) != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot track table \"%s\" because it has inheritance children",
						RelationGetRelationName(table)),
				 errdetail("Statements that name a child do not fire the triggers of its parent."),
				 errhint("Use ALTER TABLE ... NO INHERIT for each child, or make the table a partitioned table.")));
}

/*
 * Open a table that is to feed the store.  The table must belong to the
 * store's owner, and its partitions to roles with that owner's privileges.
 * Throws 42P01, 42809, 42501 and 0A000.
 */
static Relation
open_source(Oid relid, const HrflowStore *store)
{
	Relation	table = hrflow_catalog_open(relid);
	char		kind = table->rd_rel->relkind;

	if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE &&
		kind != RELKIND_FOREIGN_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table",
						RelationGetRelationName(table))));
	hrflow_owner_check_all(store, relid);
	hrflow_remote_check_table(table);
	if (RelationUsesLocalBuffers(table) &&
		!RelationUsesLocalBuffers(store->vectors))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("temporary table \"%s\" cannot feed permanent store %s",
						RelationGetRelationName(table), store->vectors_name),
				 errdetail("Other sessions cannot read temporary tables.")));

	/*
	 * The owner has been checked, so the table may be locked.  The lock
	 * excludes sessions that create or drop triggers, but not readers or
	 * writers.
	 */
	LockRelationOid(relid, ShareUpdateExclusiveLock);
	check_inheritance(table);

	/* A partition may have been attached before the lock was acquired. */
	hrflow_owner_lock(relid, AccessShareLock);
	hrflow_owner_check_all(store, relid);
	return table;
}

/*
 * Return the SQL condition that an UPDATE has changed at least one of the
 * given columns.  Columns whose type has no equality operator, such as json,
 * are compared as text.  So are columns whose operator is not built in,
 * because the operator may not be in search_path.  Two texts that only a
 * nondeterministic collation considers equal count as different.
 */
static char *
update_condition(Relation table, char *const *columns, int ncolumns)
{
	TupleDesc	desc = RelationGetDescr(table);
	char	   *sql = pstrdup("");

	for (int i = 0; i < ncolumns; i++)
	{
		int			number = SPI_fnumber(desc, columns[i]);
		Oid			type = SPI_gettypeid(desc, number);
		Oid			collation = TupleDescAttr(desc, number - 1)->attcollation;
		Oid			equality = lookup_type_cache(getBaseType(type),
												 TYPECACHE_EQ_OPR)->eq_opr;
		bool		is_core = OidIsValid(equality) &&
		equality < FirstNormalObjectId;
		bool		is_deterministic = !OidIsValid(collation) ||
		get_collation_isdeterministic(collation);
		const char *as = is_core && is_deterministic ? "" :
		is_core ? HRFLOW_PLAIN_COLLATION :
		is_deterministic ? "::text" : "::text" HRFLOW_PLAIN_COLLATION;

		sql = hrflow_store_sql(NULL, column_changed_sql, sql,
							   i == 0 ? "" : " OR ", columns[i], as,
							   columns[i], as);
	}
	return sql;
}

/*
 * Grant EXECUTE on the trigger function to the store's owner, acting as the
 * owner of the function.  PUBLIC does not have this privilege, because a
 * trigger that calls the function makes its table a candidate for feeding any
 * store.  However, roles that may call hrflow_track_table() may create such
 * triggers.  Granting the privilege temporarily would not suffice: PostgreSQL
 * checks it again whenever a partition is created.
 */
static void
grant_function(const HrflowStore *store, Oid function)
{
	Datum		execute = CStringGetTextDatum("EXECUTE");
	char	   *name;
	HeapTuple	tuple;
	Oid			grantor;
	Oid			user;
	int			context;

	/* If the function has been dropped, throw 42883. */
	(void) hrflow_catalog_schema(function);
	if (DatumGetBool(DirectFunctionCall3(has_function_privilege_id_id,
										 ObjectIdGetDatum(store->owner),
										 ObjectIdGetDatum(function),
										 execute)))
		return;

	/* Without a lock, one of two concurrent GRANTs could fail. */
	LockDatabaseObject(ProcedureRelationId, function, 0,
					   ShareUpdateExclusiveLock);
	name = hrflow_catalog_qualified_name(function);
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	grantor = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(grantor, context | SECURITY_LOCAL_USERID_CHANGE);
	hrflow_store_execute(hrflow_store_sql(store, grant_sql, name,
										  GetUserNameFromId(store->owner,
															false)),
						 NULL);
	SetUserIdAndSecContext(user, context);
}

/*
 * Return the name of a trigger.  The name contains a checksum of the store's
 * qualified name, because different names of schemas and tables may become
 * equal when they are joined or truncated.  The checksum depends on nothing
 * else, so the trigger has the same name wherever a dump is restored.
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
 * Check that a trigger with this name, if it exists, feeds the store, so that
 * it may be replaced.  Throws 42710.
 */
static void
check_trigger_name(const HrflowStore *store, Relation table, Oid function,
				   const char *name)
{
	Oid			trigger = get_trigger_oid(RelationGetRelid(table), name, true);
	Oid			other;

	if (!OidIsValid(trigger) ||
		hrflow_feeder_get(store, function, trigger) != NULL)
		return;
	other = hrflow_feeder_store(trigger, RelationGetRelid(table));
	ereport(ERROR,
			(errcode(ERRCODE_DUPLICATE_OBJECT),
			 errmsg("trigger \"%s\" for relation \"%s\" already exists",
					name, RelationGetRelationName(table)),
			 OidIsValid(other) ?
			 errdetail("The trigger belongs to store %s.",
					   hrflow_store_relation_name(other)) :
			 errdetail("The trigger does not feed store %s.",
					   store->vectors_name),
			 OidIsValid(other) ?
			 errhint("If that store has been renamed, first call hrflow_track_table() for it.  Otherwise, rename the trigger, because hrflow_track_table() must create a trigger with that name.") :
			 errhint("Rename the trigger, because hrflow_track_table() must create a trigger with that name.")));
}

/*
 * Create or replace one of the triggers, and make it depend on the store, so
 * that dropping the store drops the trigger.  Returns the name of the trigger.
 */
static char *
create_trigger(const HrflowStore *store, Relation table, Oid function,
			   char *const *args, const char *when, const char *event,
			   const char *clauses)
{
	char	   *name = trigger_name(store, event);
	ObjectAddress trigger;
	ObjectAddress vectors;

	check_trigger_name(store, table, function, name);
	hrflow_store_execute(hrflow_store_sql(store, create_trigger_sql, name,
										  when, event, RelationGetRelid(table),
										  clauses,
										  hrflow_catalog_qualified_name(function),
										  args[HRFLOW_TRIGGER_STORE],
										  args[HRFLOW_TRIGGER_PROFILE_COLUMN],
										  args[HRFLOW_TRIGGER_SOURCE_ID],
										  args[HRFLOW_TRIGGER_SOURCE_COLUMN],
										  *args[HRFLOW_TRIGGER_NCOLUMNS] == '\0' ? "" :
										  hrflow_store_sql(NULL,
														   content_arguments_sql,
														   args[HRFLOW_TRIGGER_NCOLUMNS],
														   args[HRFLOW_TRIGGER_ITEM_TYPE])),
						 NULL);

	ObjectAddressSet(trigger, TriggerRelationId,
					 get_trigger_oid(RelationGetRelid(table), name, false));
	ObjectAddressSet(vectors, RelationRelationId,
					 RelationGetRelid(store->vectors));
	recordDependencyOn(&trigger, &vectors, DEPENDENCY_AUTO);
	return name;
}

/*
 * Warn if a table has fed the store through other keys so far: the user should
 * learn immediately that the previous profiles may be put aside.
 */
static void
warn_of_other_keys(const HrflowStore *store, Relation table,
				   const HrflowFeeder *feeder, char *const *args)
{
	if (hrflow_columns_change_keys(table, feeder->function, feeder->args, args))
		ereport(WARNING,
				(errmsg("table \"%s\" no longer feeds store %s through its previous keys",
						RelationGetRelationName(table), store->vectors_name),
				 errdetail("A table feeds a store through a single column of identifiers, and a single source or column of sources.  Profiles that are in no other table that feeds the store may be put aside.")));
}

/*
 * Warn about columns whose changes will no longer make profiles due.  The user
 * may have omitted them by mistake, for example when only reconciling the
 * table.
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
			(errmsg_plural("table \"%s\" no longer marks profiles of store %s due when column %s changes",
						   "table \"%s\" no longer marks profiles of store %s due when columns %s change",
						   bms_num_members(columns),
						   RelationGetRelationName(table), store->vectors_name,
						   names.data),
			 errhint("Each call of hrflow_track_table() must list in \"refresh_columns\" all columns whose changes should mark profiles due.")));
}

/*
 * Create or replace the triggers of a table.  "condition" is the condition on
 * which an UPDATE is relevant, and "columns" are the columns that it
 * compares.  Returns whether the table fed the store before.
 */
static bool
create_triggers(const HrflowStore *store, Relation table, Oid function,
				char *const *args, const char *condition,
				const Bitmapset *columns)
{
	List	   *old = hrflow_feeder_find(store, function, RelationGetRelid(table),
										 ShareRowExclusiveLock);
	Bitmapset  *old_columns = hrflow_columns_watched(old);
	char	   *names[lengthof(trigger_kinds)];
	ListCell   *cell;

	foreach(cell, old)
	{
		hrflow_beside_check_renamed(store, lfirst(cell));
		if (((HrflowFeeder *) lfirst(cell))->represents)
			warn_of_other_keys(store, table, lfirst(cell), args);
	}
	grant_function(store, function);
	for (int i = 0; i < lengthof(trigger_kinds); i++)
		names[i] = create_trigger(store, table, function, args,
								  trigger_kinds[i].when,
								  trigger_kinds[i].event,
								  hrflow_store_sql(store,
												   trigger_kinds[i].clauses,
												   condition));

	/*
	 * Drop all other triggers by which the table fed the store, because they
	 * would repeat the work of the new triggers, or track by previous keys.
	 */
	foreach(cell, old)
	{
		HrflowFeeder *feeder = lfirst(cell);
		int			i = 0;

		while (i < lengthof(names) &&
			   strcmp(names[i], feeder->trigger_name) != 0)
			i++;
		if (i == lengthof(names))
			hrflow_feeder_drop(feeder);
	}
	warn_of_columns(store, table, bms_difference(old_columns, columns));
	return old != NIL;
}

/*
 * Is a trigger as create_trigger() would create it, except that it may be set
 * to ENABLE ALWAYS?  Its WHEN condition and transition tables are not checked.
 */
static bool
is_as_made(const HrflowStore *store, const HrflowFeeder *feeder,
		   char *const *args, const TriggerKind *kind)
{
	if (feeder->type != kind->type ||
		(feeder->enabled != TRIGGER_FIRES_ON_ORIGIN &&
		 feeder->enabled != TRIGGER_FIRES_ALWAYS) ||
		!hrflow_feeder_is_of(feeder->trigger, RelationGetRelid(store->vectors)))
		return false;
	for (int i = 0; i < HRFLOW_TRIGGER_NARGS; i++)
	{
		if (strcmp(feeder->args[i], args[i]) != 0)
			return false;
	}
	return strcmp(feeder->trigger_name,
				  trigger_name(store, kind->event)) == 0;
}

/*
 * Does a table feed the store through the triggers that create_triggers()
 * would create, and no others?  Compares what is_as_made() compares, and the
 * columns in the WHEN condition.  Acquires no lock stronger than
 * AccessShareLock.
 */
static bool
is_tracked(const HrflowStore *store, Relation table, Oid function,
		   char *const *args, const Bitmapset *columns, const List *content)
{
	List	   *feeders = hrflow_feeder_find(store, function,
											 RelationGetRelid(table),
											 AccessShareLock);
	Bitmapset  *keys = NULL;
	int			nmade = 0;
	ListCell   *cell;

	foreach(cell, feeders)
	{
		for (int i = 0; i < lengthof(trigger_kinds); i++)
			nmade += is_as_made(store, lfirst(cell), args, &trigger_kinds[i]);
	}
	if (nmade != lengthof(trigger_kinds) || list_length(feeders) != nmade)
		return false;
	for (int i = HRFLOW_TRIGGER_PROFILE_COLUMN; i < HRFLOW_TRIGGER_NKEYS; i++)
	{
		int			number = i == HRFLOW_TRIGGER_SOURCE_ID ? 0 :
		SPI_fnumber(RelationGetDescr(table), args[i]);

		if (number > 0)
			keys = bms_add_member(keys, number);
	}
	return hrflow_columns_have_keys(table, function, args) &&
		bms_equal(hrflow_columns_watched(feeders),
				  bms_difference(columns, keys)) &&
		equal(content, hrflow_columns_of_feeders(feeders));
}

/*
 * Check and read the arguments of hrflow_track_table().  Sets "args", except
 * HRFLOW_TRIGGER_STORE, to the arguments of the triggers, *condition and
 * *numbers to the arguments "condition" and "columns" of create_triggers(),
 * and *content to the attribute numbers of the content columns.
 */
static void
get_arguments(FunctionCallInfo fcinfo, const HrflowStore *store,
			  Relation table, char **args, char **condition,
			  Bitmapset **numbers, List **content)
{
	bool		has_source_id;
	bool		has_source_column;
	char	  **columns;
	int			ncolumns = 0;
	ArrayType  *refresh = PG_ARGISNULL(ARG_REFRESH_COLUMNS) ? NULL :
	PG_GETARG_ARRAYTYPE_P(ARG_REFRESH_COLUMNS);
	ArrayType  *given = PG_ARGISNULL(ARG_CONTENT_COLUMNS) ? NULL :
	PG_GETARG_ARRAYTYPE_P(ARG_CONTENT_COLUMNS);

	args[HRFLOW_TRIGGER_PROFILE_COLUMN] =
		NameStr(*PG_GETARG_NAME(ARG_PROFILE_COLUMN));
	args[HRFLOW_TRIGGER_SOURCE_ID] = PG_ARGISNULL(ARG_SOURCE_ID) ? pstrdup("") :
		text_to_cstring(PG_GETARG_TEXT_PP(ARG_SOURCE_ID));
	args[HRFLOW_TRIGGER_SOURCE_COLUMN] = PG_ARGISNULL(ARG_SOURCE_COLUMN) ?
		pstrdup("") : NameStr(*PG_GETARG_NAME(ARG_SOURCE_COLUMN));
	has_source_id = *args[HRFLOW_TRIGGER_SOURCE_ID] != '\0';
	has_source_column = *args[HRFLOW_TRIGGER_SOURCE_COLUMN] != '\0';
	if (store->kind->has_no_source && (has_source_id || has_source_column))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arguments \"source_id\" and \"source_column\" must not be specified"),
				 errdetail("Stores of texts and documents have no sources.")));
	if (!store->kind->has_no_source && has_source_id == has_source_column &&
		(has_source_id || store->kind->needs_source))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg(has_source_id ?
						"arguments \"source_id\" and \"source_column\" must not both be specified" :
						"either argument \"source_id\" or argument \"source_column\" must be specified"),
				 errhint("Use \"source_id\" if all profiles of the table are in one source, or \"source_column\" if a column contains the source of each row.")));

	columns = palloc(sizeof(char *) *
					 (2 + (refresh == NULL ? 0 :
						   hrflow_columns_get("refresh_columns", refresh, NULL)) +
					  (given == NULL ? 0 :
					   hrflow_columns_get("content_columns", given, NULL))));
	hrflow_columns_check_keys(table, InvalidOid, args);
	columns[ncolumns++] = args[HRFLOW_TRIGGER_PROFILE_COLUMN];
	if (*args[HRFLOW_TRIGGER_SOURCE_COLUMN] != '\0')
		columns[ncolumns++] = args[HRFLOW_TRIGGER_SOURCE_COLUMN];
	*content = NIL;
	for (int i = hrflow_columns_get_content(store, table, given,
											&fcinfo->args[ARG_ITEM_TYPE],
											args, columns + ncolumns);
		 i > 0; i--)
		*content = lappend_int(*content,
							   SPI_fnumber(RelationGetDescr(table),
										   columns[ncolumns++]));
	if (refresh != NULL)
	{
		int			n = hrflow_columns_get("refresh_columns", refresh,
										   columns + ncolumns);

		for (int i = 0; i < n; i++)
			hrflow_columns_check(table, columns[ncolumns++], false, false);
	}
	*condition = update_condition(table, columns, ncolumns);
	*numbers = NULL;
	for (int i = 0; i < ncolumns; i++)
		*numbers = bms_add_member(*numbers,
								  SPI_fnumber(RelationGetDescr(table),
											  columns[i]));
}

/*
 * Put aside unwanted profiles, if all tables that feed the store can be
 * queried.
 */
static void
put_unwanted(const HrflowStore *store, Oid function)
{
	if (hrflow_feeder_can_ask_all(store, function))
		hrflow_aside_put_unwanted(store, function, true);
}

/*
 * Do the existing triggers of a table name other content columns, or another
 * item type, than this call?  Columns that are not known, for example because
 * hrflow_release_columns() has released them, count as different.
 */
static bool
reads_otherwise(const HrflowStore *store, Relation table, Oid function,
				char *const *args, const List *content)
{
	List	   *feeders = hrflow_feeder_find(store, function,
											 RelationGetRelid(table),
											 AccessShareLock);

	if (feeders == NIL || content == NIL)
		return false;
	return !equal(content, hrflow_columns_of_feeders(feeders)) ||
		strcmp(((HrflowFeeder *) linitial(feeders))->args[HRFLOW_TRIGGER_ITEM_TYPE],
			   args[HRFLOW_TRIGGER_ITEM_TYPE]) != 0;
}

/*
 * May the owner lock rows of a table?  Owners may have revoked that privilege
 * from themselves.
 */
static bool
may_lock_rows(const HrflowStore *store, Relation table)
{
	return pg_class_aclcheck(RelationGetRelid(table), store->owner,
							 ACL_UPDATE) == ACLCHECK_OK;
}

/*
 * Does the table already feed the store through the same keys?
 */
static bool
has_keys(const HrflowStore *store, Relation table, Oid function,
		 char *const *args)
{
	ListCell   *cell;

	foreach(cell, hrflow_feeder_find(store, function, RelationGetRelid(table),
									 AccessShareLock))
	{
		const HrflowFeeder *feeder = lfirst(cell);

		if (feeder->represents && hrflow_columns_same_keys(feeder->args, args))
			return true;
	}
	return false;
}

/*
 * Let a table feed the store from now on, and track the profiles that its rows
 * name.  May put aside unwanted profiles.  Locks the table against writers.
 * Returns the number of profiles that were not tracked before.
 */
static uint64
track(const HrflowStore *store, Relation table, Oid function,
	  char *const *args, const char *condition, const Bitmapset *columns,
	  const List *content)
{
	bool		had_triggers;
	bool		had_keys;
	bool		has_changed;

	LockRelationOid(RelationGetRelid(table), ShareRowExclusiveLock);
	had_keys = has_keys(store, table, function, args);
	has_changed = reads_otherwise(store, table, function, args, content);
	had_triggers = create_triggers(store, table, function, args, condition,
								   columns);
	CommandCounterIncrement();
	if (has_changed)
		hrflow_store_execute_latest(hrflow_store_sql(store,
													 mark_all_changed_sql),
									NULL);

	/*
	 * Put nothing aside if the table did not feed the store before: an
	 * additional table makes no profile unwanted.  Other tables may refer to
	 * profiles that are unwanted now, but have no triggers yet, for example
	 * after DROP EXTENSION, or cannot be queried yet, for example after
	 * columns of several tables were renamed.
	 */
	if (had_triggers)
		put_unwanted(store, function);
	if (had_keys && may_lock_rows(store, table))
		return hrflow_feeder_track_missing(store, table, args);
	return hrflow_feeder_track(store,
							   hrflow_feeder_profiles(store, args,
													  hrflow_store_relation_name(RelationGetRelid(table)),
													  ""),
							   NULL);
}

/*
 * Reconcile the store with a table that feeds it already: track the profiles
 * that its rows name, and put aside unwanted profiles, while other sessions
 * read and write the table.  Profiles that are tracked and remain so are not
 * written.  Waits for locks on rows of the table before it locks any profile.
 * Returns the number of profiles that were not tracked before.
 */
static uint64
reconcile(const HrflowStore *store, Relation table, Oid function,
		  char *const *args)
{
	uint64		n;

	grant_function(store, function);
	n = hrflow_feeder_track_missing(store, table, args);
	put_unwanted(store, function);
	return n;
}

/*
 * hrflow_track_table(store regclass, source_table regclass,
 *					  profile_column name, source_id text, source_column name,
 *					  refresh_columns name[], content_columns name[],
 *					  item_type text) RETURNS bigint
 */
Datum
hrflow_track_table(PG_FUNCTION_ARGS)
{
	Oid			function = hrflow_feeder_function(fcinfo->flinfo->fn_oid);
	char	   *args[HRFLOW_TRIGGER_NARGS];
	char	   *condition;
	Bitmapset  *columns;
	List	   *content;
	HrflowStore store;
	Relation	table;
	uint64		n;

	if (PG_ARGISNULL(ARG_STORE) || PG_ARGISNULL(ARG_TABLE) ||
		PG_ARGISNULL(ARG_PROFILE_COLUMN))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be null",
						PG_ARGISNULL(ARG_STORE) ? "store" :
						PG_ARGISNULL(ARG_TABLE) ? "source_table" :
						"profile_column")));
	PreventCommandDuringRecovery("hrflow_track_table()");

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(ARG_STORE), InvalidOid,
					  HRFLOW_STORE_OWN);
	hrflow_remote_check(&store);
	hrflow_store_check_manual(&store);
	table = open_source(PG_GETARG_OID(ARG_TABLE), &store);
	args[HRFLOW_TRIGGER_STORE] = store.vectors_name;
	get_arguments(fcinfo, &store, table, args, &condition, &columns,
				  &content);

	if (is_tracked(&store, table, function, args, columns, content) &&
		may_lock_rows(&store, table))
		n = reconcile(&store, table, function, args);
	else
		n = track(&store, table, function, args, condition, columns, content);
	hrflow_restore_wanted(&store, function);
	(void) hrflow_expire_batch(&store);

	relation_close(table, NoLock);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_INT64(n);
}
