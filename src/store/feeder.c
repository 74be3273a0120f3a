/*-------------------------------------------------------------------------
 *
 * feeder.c
 *		Finds the tables that feed a store, and the profiles that they want.
 *
 * A table feeds a store if our triggers on the table were created for the
 * store, or name it and were not created for another one, and if the table and
 * the store have the same owner (see also hrflow_owner_may_feed()).  There is
 * no other registry.  A table wants a profile, or refers to it, if one of the
 * table's rows has the profile's key.  A profile is unwanted if no table that
 * feeds the store wants it, and it was not tracked explicitly.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "nodes/bitmapset.h"
#include "storage/lmgr.h"
#include "store/store.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

static const char drop_trigger_sql[] = "DROP TRIGGER %q ON %R";

/* SQL for a key column of row "f" of a table that feeds a store. */
static const char key_column_sql[] = "f.%q::text" HRFLOW_PLAIN_COLLATION;

/* SQL for the source column of row "f", if the source may be null. */
static const char optional_column_sql[] =
"coalesce(f.%q::text, '')" HRFLOW_PLAIN_COLLATION;

/* SQL for the source, if all rows of the table have the same source. */
static const char key_constant_sql[] = "%L::text";

/* SQL conditions that a row names a profile: its key must not be empty. */
static const char names_profile_sql[] = "%s <> '' AND %s <> ''";
static const char names_by_identifier_sql[] = "%s <> ''";

/* SQL query for the keys of the profiles that the rows of a table name. */
static const char profiles_sql[] =
"(SELECT %s %s AS s, %s AS i FROM %s AS f WHERE %s)";

/*
 * SQL conditions that compare a column of a row "f", as text, with an
 * expression.  So that an index can be used, they convert the expression to
 * bigint or uuid, or use the collation of the column, unless that collation is
 * nondeterministic.  An expression that is not in the output format of the
 * type is unequal.
 */
static const char integer_is_sql[] =
"f.%q = CASE WHEN %s COLLATE \"C\" ~ '^(0|-?[1-9][0-9]{0,18})$' THEN"
" CASE WHEN %s::numeric BETWEEN -9223372036854775808 AND 9223372036854775807"
" THEN %s::bigint END END";

static const char uuid_is_sql[] =
"f.%q = CASE WHEN %s COLLATE \"C\" ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'"
" THEN %s::uuid END";

static const char text_is_sql[] = "f.%q::text = %s COLLATE %s";

static const char nondeterministic_text_is_sql[] =
"f.%q::text" HRFLOW_PLAIN_COLLATION " = %s";

/* SQL conditions that row "f" of a table names the profile in row "p". */
static const char wants_of_column_sql[] = "%s AND %s";
static const char wants_of_optional_column_sql[] =
"%s AND (%s OR p.source_id = '' AND f.%q IS NULL)";
static const char wants_of_source_sql[] = "%s AND p.source_id = %L";

/*
 * SQL condition that a profile is unwanted: it was not tracked explicitly, and
 * no table wants it.  The second template is applied for each table.
 */
static const char unwanted_sql[] = "NOT p.manual";
static const char unwanted_by_table_sql[] =
"%s AND NOT EXISTS (SELECT FROM %R AS f WHERE %s)";

#define TRACK_SQL \
	"INSERT INTO %P AS p" \
	" (source_id, %I, state, due_at, attempts, generation, manual)" \
	" SELECT DISTINCT ON (k.s, k.i)" \
	" k.s, k.i, 'due', statement_timestamp(), 0, 0, false" \
	" FROM %s AS k ORDER BY k.s, k.i"

static const char track_new_sql[] = TRACK_SQL;

static const char find_tracked_sql[] =
"SELECT FROM %s AS k JOIN %P AS p ON p.source_id = k.s AND p.%I = k.i LIMIT 1";

static const char track_untracked_sql[] = TRACK_SQL
" ON CONFLICT (source_id, %I) DO UPDATE SET state = p.state WHERE false";

/*
 * Statement that tracks the profiles that are not tracked yet, and locks the
 * rows that name them.  So a transaction that deletes such a row, or changes
 * its key, has either committed before, so that the row is not found here, or
 * waits for our transaction, and then finds the profile.
 */
static const char track_missing_sql[] =
"INSERT INTO %P AS p"
" (source_id, %I, state, due_at, attempts, generation, manual)"
" SELECT DISTINCT k.s, k.i, 'due', statement_timestamp(), 0, 0, false"
" FROM (SELECT %s AS s, %s AS i FROM %R AS f"
" WHERE %s AND NOT EXISTS"
" (SELECT FROM %P AS t WHERE t.source_id = %s AND t.%I = %s)"
" FOR SHARE OF f) AS k ORDER BY k.s, k.i"
" ON CONFLICT (source_id, %I) DO NOTHING";

static const char want_sql[] = TRACK_SQL
" ON CONFLICT (source_id, %I) DO UPDATE SET state = 'due',"
" due_at = clock_timestamp(), attempts = 0, generation = p.generation + 1"
" WHERE p.state = 'unwanted'%s";

/*
 * Like want_sql, for contents that are read from rows: a row that is inserted,
 * or whose key has changed, may change the content of a tracked profile.
 */
static const char want_content_sql[] = TRACK_SQL
" ON CONFLICT (source_id, %I) DO UPDATE SET" HRFLOW_MARK_CHANGED
" WHERE p.state <> 'gone'%s";

static const char or_gone_sql[] = " OR p.state = 'gone'";

static const char mark_kept_sql[] =
"UPDATE %P AS p SET" HRFLOW_MARK_CHANGED
" WHERE p.state <> 'gone' AND p.state <> 'unwanted'"
" AND (p.source_id, p.%I) IN (SELECT d.s, d.i FROM " HRFLOW_DELETED " AS d)";

static const char want_gone_but_deleted_sql[] =
"UPDATE %P AS p SET" HRFLOW_MARK_CHANGED " FROM %s AS k"
" WHERE p.source_id = k.s AND p.%I = k.i AND p.state = 'gone'"
" AND NOT EXISTS (SELECT FROM " HRFLOW_DELETED " AS d"
" WHERE d.s = p.source_id AND d.i = p.%I)";

/*
 * ------------------------------------------------------------------------
 * Catalogs
 * ------------------------------------------------------------------------
 */

/*
 * Return the OID of hrflow_track_trigger() in the schema of the function
 * "caller".  Throws 42883 if "caller" no longer exists.
 */
Oid
hrflow_feeder_function(Oid caller)
{
	(void) hrflow_catalog_schema(caller);	/* throws 42883 */
	return hrflow_catalog_function("hrflow_track_trigger", NULL, 0, caller);
}

/*
 * Does a list of dependencies, as returned by hrflow_catalog_dependencies()
 * for a table of vectors, contain a trigger?
 */
static bool
was_made_for(const List *dependencies, Oid trigger)
{
	ListCell   *cell;

	foreach(cell, dependencies)
	{
		if (((Form_pg_depend) lfirst(cell))->objid == trigger)
			return true;
	}
	return false;
}

/*
 * Return the table of vectors of the store for which a trigger on "table" was
 * created, that is, the other table on which the trigger depends.  Returns
 * InvalidOid if there is no such table, for example after the tables were
 * restored from a dump, which does not preserve that dependency.
 */
Oid
hrflow_feeder_store(Oid trigger, Oid table)
{
	ListCell   *cell;

	foreach(cell, hrflow_catalog_dependencies(TriggerRelationId, trigger))
	{
		Form_pg_depend form = lfirst(cell);

		if (form->refclassid == RelationRelationId && form->refobjid != table)
			return form->refobjid;
	}
	return InvalidOid;
}

/*
 * Read a trigger.  Returns NULL if it does not exist, is not one of ours, is a
 * partition's copy, or does not feed the store.  If "stranger" of the result
 * is set, the trigger's table must not be read.
 *
 * A trigger that names the store does not necessarily feed it, because a role
 * that may execute "function" can create a trigger that names any store; the
 * trigger's table must also pass hrflow_owner_may_feed().  If a trigger names
 * the store, but was created for another one, it feeds that other store, which
 * has been renamed.  Conversely, a trigger that names another store feeds this
 * store if it is in "made_for_it", because this store has been renamed.
 * (Triggers on the store's own table also depend on that table, whatever store
 * they feed.)
 */
static HrflowFeeder *
read_trigger(Relation triggers, Oid trigger, const HrflowStore *store,
			 Oid function, const List *made_for_it)
{
	HeapTuple	tuple = hrflow_catalog_trigger(triggers, trigger);
	Form_pg_trigger form;
	HrflowFeeder *feeder;
	char	   *args;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	form = (Form_pg_trigger) GETSTRUCT(tuple);
	args = hrflow_catalog_trigger_args(triggers, tuple, function);
	if (args == NULL)
		return NULL;

	feeder = palloc(sizeof(HrflowFeeder));
	for (int i = 0; i < HRFLOW_TRIGGER_NARGS; i++)
	{
		feeder->args[i] = pstrdup("");
		if (i >= form->tgnargs)
			continue;
		feeder->args[i] = args;
		args += strlen(args) + 1;
	}
	if (strcmp(feeder->args[HRFLOW_TRIGGER_STORE], store->vectors_name) == 0)
	{
		Oid			of = was_made_for(made_for_it, trigger) ? InvalidOid :
		hrflow_feeder_store(trigger, form->tgrelid);

		if (OidIsValid(of) && of != RelationGetRelid(store->vectors))
			return NULL;
	}
	else if (form->tgrelid == RelationGetRelid(store->vectors) ||
			 !was_made_for(made_for_it, trigger))
		return NULL;
	if (!hrflow_owner_may_feed(store, form->tgrelid))
		return NULL;
	feeder->trigger = trigger;
	feeder->table = form->tgrelid;
	feeder->function = function;
	feeder->stranger = hrflow_owner_stranger(form->tgrelid, store->owner);
	feeder->trigger_name = pstrdup(NameStr(form->tgname));
	feeder->type = form->tgtype;
	feeder->enabled = form->tgenabled;
	feeder->represents = false;
	feeder->is_update = TRIGGER_TYPE_MATCHES(form->tgtype, TRIGGER_TYPE_ROW,
											 TRIGGER_TYPE_AFTER,
											 TRIGGER_TYPE_UPDATE);
	return feeder;
}

/*
 * Read a trigger.  Returns NULL unless it both feeds the store and names it.
 */
HrflowFeeder *
hrflow_feeder_get(const HrflowStore *store, Oid function, Oid trigger)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	HrflowFeeder *feeder = read_trigger(triggers, trigger, store, function,
										NIL);

	table_close(triggers, AccessShareLock);
	return feeder;
}

static int
compare_tables(const ListCell *a, const ListCell *b)
{
	Oid			left = ((HrflowFeeder *) lfirst(a))->table;
	Oid			right = ((HrflowFeeder *) lfirst(b))->table;

	return left < right ? -1 : left > right;
}

/*
 * Return the triggers that feed a store, including those on tables that must
 * not be read, as a list of HrflowFeeder.  "made_for_it" are the dependencies
 * of triggers on the store.
 */
static List *
read_feeders(Relation triggers, const HrflowStore *store, Oid function,
			 const List *made_for_it)
{
	List	   *candidates = hrflow_catalog_triggers_of(function,
														store->vectors_name);
	List	   *feeders = NIL;
	ListCell   *cell;

	foreach(cell, made_for_it)
		candidates = list_append_unique_oid(candidates,
											((Form_pg_depend) lfirst(cell))->objid);
	foreach(cell, candidates)
	{
		HrflowFeeder *feeder = read_trigger(triggers, lfirst_oid(cell), store,
											function, made_for_it);

		if (feeder != NULL)
			feeders = lappend(feeders, feeder);
	}
	return feeders;
}

/*
 * Should a trigger represent its table, for callers that need each table once?
 * "feeders" are the triggers found so far.  A table has one representative for
 * each set of key columns.  A disabled trigger on DELETE or TRUNCATE
 * represents nothing, because the table may be being untracked; see untrack.c.
 */
static bool
should_represent(const List *feeders, const HrflowFeeder *feeder)
{
	ListCell   *cell;

	if (feeder->enabled == TRIGGER_DISABLED &&
		(TRIGGER_FOR_DELETE(feeder->type) || TRIGGER_FOR_TRUNCATE(feeder->type)))
		return false;
	foreach(cell, feeders)
	{
		const HrflowFeeder *other = lfirst(cell);

		if (other->represents && other->table == feeder->table &&
			hrflow_columns_same_keys(other->args, feeder->args))
			return false;
	}
	return true;
}

/*
 * Return the triggers that feed a store, as a list of HrflowFeeder; see
 * read_trigger().  If "table" is valid, return only triggers on this table.
 * should_represent() chooses those that represent their tables.
 * Unless "lockmode" is NoLock, lock the tables, in the order of their OIDs,
 * with their partitions and children, and omit triggers that no longer exist
 * once the tables are locked.  Triggers on tables that must not be read
 * because of their owners (see owner.c) are omitted, and the tables are not
 * locked.
 */
List *
hrflow_feeder_find(const HrflowStore *store, Oid function, Oid table,
				   LOCKMODE lockmode)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	List	   *made_for_it = hrflow_catalog_dependencies(RelationRelationId,
														  RelationGetRelid(store->vectors));
	List	   *found = NIL;
	List	   *feeders = NIL;
	Oid			locked = InvalidOid;
	ListCell   *cell;

	foreach(cell, read_feeders(triggers, store, function, made_for_it))
	{
		const HrflowFeeder *feeder = lfirst(cell);

		if (!OidIsValid(feeder->stranger) &&
			(!OidIsValid(table) || feeder->table == table))
			found = lappend(found, lfirst(cell));
	}

	list_sort(found, compare_tables);
	foreach(cell, found)
	{
		HrflowFeeder *feeder = lfirst(cell);

		if (lockmode != NoLock && feeder->table != locked)
			hrflow_owner_lock(feeder->table, lockmode);
		locked = feeder->table;
		feeder = read_trigger(triggers, feeder->trigger, store, function,
							  made_for_it);
		if (feeder == NULL || OidIsValid(feeder->stranger))
			continue;
		feeder->represents = should_represent(feeders, feeder);
		feeders = lappend(feeders, feeder);
	}
	table_close(triggers, AccessShareLock);
	return feeders;
}

/*
 * Was a trigger created for the store with this table of vectors?  Checks the
 * trigger's dependency, which a dump does not preserve, rather than the store
 * name in its arguments, because another store may have had that name when the
 * trigger was created.
 */
bool
hrflow_feeder_is_of(Oid trigger, Oid vectors)
{
	ListCell   *cell;

	foreach(cell, hrflow_catalog_dependencies(TriggerRelationId, trigger))
	{
		Form_pg_depend form = lfirst(cell);

		if (form->refclassid == RelationRelationId && form->refobjid == vectors)
			return true;
	}
	return false;
}

void
hrflow_feeder_drop(const HrflowFeeder *feeder)
{
	hrflow_store_execute(hrflow_store_sql(NULL, drop_trigger_sql,
										  feeder->trigger_name, feeder->table),
						 NULL);
}

/*
 * Drop the triggers through which a table feeds a store, or those on all
 * tables if "table" is InvalidOid, except triggers that hrflow_feeder_find()
 * omits.  Returns whether any trigger was dropped.
 */
bool
hrflow_feeder_drop_all(const HrflowStore *store, Oid function, Oid table)
{
	List	   *feeders = hrflow_feeder_find(store, function, table,
											 AccessExclusiveLock);
	ListCell   *cell;

	foreach(cell, feeders)
		hrflow_feeder_drop(lfirst(cell));
	return feeders != NIL;
}

/*
 * ------------------------------------------------------------------------
 * Wanted profiles
 * ------------------------------------------------------------------------
 */

/*
 * Return an SQL expression for the source of row "f" of a tracked table.
 */
static char *
source_of(const HrflowStore *store, char *const *args)
{
	if (args[HRFLOW_TRIGGER_SOURCE_COLUMN][0] == '\0')
		return hrflow_store_sql(NULL, key_constant_sql,
								args[HRFLOW_TRIGGER_SOURCE_ID]);
	return hrflow_store_sql(NULL, store->kind->needs_source ?
							key_column_sql : optional_column_sql,
							args[HRFLOW_TRIGGER_SOURCE_COLUMN]);
}

/*
 * Return an SQL expression for the identifier in row "f" of a tracked table.
 */
static char *
identifier_of(char *const *args)
{
	return hrflow_store_sql(NULL, key_column_sql,
							args[HRFLOW_TRIGGER_PROFILE_COLUMN]);
}

/*
 * Return the SQL condition that row "f" of a tracked table names a profile.
 */
static char *
row_names(const HrflowStore *store, char *const *args)
{
	return hrflow_store_sql(NULL, store->kind->needs_source ?
							names_profile_sql : names_by_identifier_sql,
							identifier_of(args), source_of(store, args));
}

/*
 * Return a subquery for the keys (s, i) of the profiles that are named by the
 * rows of a table.  "table" is SQL for the table; "distinct" is DISTINCT or
 * empty.
 */
char *
hrflow_feeder_profiles(const HrflowStore *store, char *const *args,
					   const char *table, const char *distinct)
{
	return hrflow_store_sql(NULL, profiles_sql, distinct,
							source_of(store, args), identifier_of(args), table,
							row_names(store, args));
}

/*
 * Return the SQL condition that column "name" of row "f", as text, equals the
 * SQL expression "text".
 */
static char *
column_is(Relation table, const char *name, const char *text)
{
	TupleDesc	desc = RelationGetDescr(table);
	Form_pg_attribute attribute =
	TupleDescAttr(desc, SPI_fnumber(desc, name) - 1);
	Oid			collation = attribute->attcollation;

	switch (getBaseType(attribute->atttypid))
	{
		case INT8OID:
		case INT4OID:
		case INT2OID:
			return hrflow_store_sql(NULL, integer_is_sql, name, text, text,
									text);
		case UUIDOID:
			return hrflow_store_sql(NULL, uuid_is_sql, name, text, text);
		default:

			/* All deterministic collations consider the same texts equal. */
			if (get_collation_isdeterministic(collation))
				return hrflow_store_sql(NULL, text_is_sql, name, text,
										DatumGetCString(DirectFunctionCall1(regcollationout,
																			ObjectIdGetDatum(collation))));
			return hrflow_store_sql(NULL, nondeterministic_text_is_sql, name,
									text);
	}
}

/*
 * Return the SQL condition that row "f" of a table names the profile in "p".
 */
char *
hrflow_feeder_wants(const HrflowStore *store, Relation table,
					char *const *args)
{
	char	   *identifier = column_is(table,
									   args[HRFLOW_TRIGGER_PROFILE_COLUMN],
									   hrflow_store_sql(store, "p.%I"));

	if (*args[HRFLOW_TRIGGER_SOURCE_COLUMN] != '\0')
		return hrflow_store_sql(NULL, store->kind->needs_source ?
								wants_of_column_sql :
								wants_of_optional_column_sql, identifier,
								column_is(table,
										  args[HRFLOW_TRIGGER_SOURCE_COLUMN],
										  "p.source_id"),
								args[HRFLOW_TRIGGER_SOURCE_COLUMN]);
	return hrflow_store_sql(NULL, wants_of_source_sql, identifier,
							args[HRFLOW_TRIGGER_SOURCE_ID]);
}

/*
 * Return the SQL condition that the profile in row "p" is unwanted.  It omits
 * tables that hrflow_feeder_owns_all() rejects, and tables that are being
 * untracked.  Locks all tables that feed the store, except those that
 * hrflow_feeder_owns_all() rejects.  Throws like hrflow_columns_check_keys().
 */
char *
hrflow_feeder_unwanted(const HrflowStore *store, Oid function)
{
	char	   *sql = pstrdup(unwanted_sql);
	ListCell   *cell;

	foreach(cell, hrflow_feeder_find(store, function, InvalidOid,
									 AccessShareLock))
	{
		HrflowFeeder *feeder = lfirst(cell);
		Relation	table;

		if (!feeder->represents)
			continue;
		table = relation_open(feeder->table, NoLock);
		hrflow_columns_check_keys(table, function, feeder->args);
		sql = hrflow_store_sql(store, unwanted_by_table_sql, sql,
							   feeder->table,
							   hrflow_feeder_wants(store, table,
												   feeder->args));
		relation_close(table, NoLock);
	}
	return sql;
}

/*
 * Can all tables that feed a store be queried for the profiles that they want?
 * Tables that hrflow_feeder_unwanted() omits do not matter.  After a key
 * column has been renamed, its table cannot be queried until it is tracked
 * again; see hrflow_columns_have_keys().
 */
bool
hrflow_feeder_can_ask_all(const HrflowStore *store, Oid function)
{
	bool		result = true;
	ListCell   *cell;

	foreach(cell, hrflow_feeder_find(store, function, InvalidOid,
									 AccessShareLock))
	{
		HrflowFeeder *feeder = lfirst(cell);
		Relation	table;

		if (!feeder->represents)
			continue;
		table = relation_open(feeder->table, NoLock);
		result = result &&
			hrflow_columns_have_keys(table, function, feeder->args);
		relation_close(table, NoLock);
	}
	return result;
}

/*
 * Does every table that was tracked for a store still belong to the store's
 * owner, and may the owner read its partitions and children (see owner.c)?  If
 * not, returns false after a WARNING; the caller must then not erase anything:
 * the owner may have been changed by mistake, and we do not query tables of
 * other owners.  Of tables whose triggers do not depend on the store, because
 * they were restored from a dump, only the partitions and children are
 * checked.
 */
bool
hrflow_feeder_owns_all(const HrflowStore *store, Oid function)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	List	   *made_for_it = hrflow_catalog_dependencies(RelationRelationId,
														  RelationGetRelid(store->vectors));
	char	   *lost = NULL;
	char	   *child = NULL;
	ListCell   *cell;

	foreach(cell, made_for_it)
	{
		HeapTuple	tuple = hrflow_catalog_trigger(triggers,
												   ((Form_pg_depend) lfirst(cell))->objid);
		Form_pg_trigger form;

		if (!HeapTupleIsValid(tuple))
			continue;
		form = (Form_pg_trigger) GETSTRUCT(tuple);

		/* A table that has been dropped in the meantime has no name. */
		if (form->tgfoid == function && lost == NULL &&
			form->tgrelid != RelationGetRelid(store->vectors) &&
			!hrflow_owner_may_feed(store, form->tgrelid))
			lost = get_rel_name(form->tgrelid);
	}
	if (lost == NULL)
	{
		foreach(cell, read_feeders(triggers, store, function, made_for_it))
		{
			const HrflowFeeder *feeder = lfirst(cell);

			if (!OidIsValid(feeder->stranger))
				continue;
			lost = get_rel_name(feeder->table);
			child = get_rel_name(feeder->stranger);
			if (lost != NULL && child != NULL)
				break;
			lost = child = NULL;
		}
	}
	table_close(triggers, AccessShareLock);
	if (child != NULL)
		ereport(WARNING,
				(errmsg("not erasing profiles from store %s: partition or child \"%s\" of tracked table \"%s\" has another owner",
						store->vectors_name, child, lost),
				 errhint("Change the owner of \"%s\" to the owner of the store, or drop the triggers by which \"%s\" feeds the store.",
						 child, lost)));
	else if (lost != NULL)
		ereport(WARNING,
				(errmsg("not erasing profiles from store %s: tracked table \"%s\" does not belong to the owner of the store",
						store->vectors_name, lost),
				 errhint("Change the owner of the table to the owner of the store, or drop the triggers by which the table feeds the store.")));
	return lost == NULL;
}

/*
 * ------------------------------------------------------------------------
 * Tracking
 * ------------------------------------------------------------------------
 */

/*
 * Is any of the given profiles tracked?  "profiles" is a subquery that returns
 * their keys as columns "s" and "i".
 */
bool
hrflow_feeder_has_tracked(const HrflowStore *store, const char *profiles)
{
	return hrflow_store_execute(hrflow_store_sql(store, find_tracked_sql,
												 profiles), NULL) > 0;
}

/*
 * Track profiles.  Throws 23505 if one of them is already tracked.
 */
void
hrflow_feeder_track_new(const HrflowStore *store, const char *profiles)
{
	hrflow_store_execute(hrflow_store_sql(store, track_new_sql, profiles),
						 NULL);
}

/*
 * Track profiles, and return how many were not tracked before.  Profiles that
 * were tracked already are locked, so that they are not erased concurrently.
 *
 * Reads the latest rows at every isolation level, because triggers that have
 * just been created have missed changes since the transaction's snapshot.
 */
uint64
hrflow_feeder_track(const HrflowStore *store, const char *profiles,
					const HrflowParameters *parameters)
{
	return hrflow_store_execute_latest(hrflow_store_sql(store,
														track_untracked_sql,
														profiles),
									   parameters);
}

/*
 * Track the profiles that the rows of a tracked table name, and return how
 * many were not tracked before.  Profiles that were tracked already are
 * neither written nor locked.  Reads the latest rows at every isolation level.
 */
uint64
hrflow_feeder_track_missing(const HrflowStore *store, Relation table,
							char *const *args)
{
	return hrflow_store_execute_latest(hrflow_store_sql(store,
														track_missing_sql,
														source_of(store, args),
														identifier_of(args),
														RelationGetRelid(table),
														row_names(store, args),
														source_of(store, args),
														identifier_of(args)),
									   NULL);
}

/*
 * Return a statement that tracks the profiles to which rows now refer.
 * Profiles that are tracked already are locked.  They become due if they are
 * unwanted, or if contents are read from the rows; but gone profiles become
 * due only if "or_gone".
 */
static char *
want(const HrflowStore *store, const char *profiles, bool or_gone)
{
	return hrflow_store_sql(store, store->has_content ?
							want_content_sql : want_sql, profiles,
							or_gone ? or_gone_sql : "");
}

/*
 * Return a statement that tracks the profiles of new rows, or of rows whose
 * keys have changed.  Profiles that are tracked already are locked, and become
 * due if they are unwanted or gone, or if contents are read from the rows.
 */
char *
hrflow_feeder_want_sql(const HrflowStore *store, const char *profiles)
{
	return want(store, profiles, true);
}

/*
 * Track the profiles of inserted rows like hrflow_feeder_want_sql().  However,
 * a gone profile stays gone if this transaction has deleted a row that names
 * it, because the transaction may be reloading the row.
 *
 * If the transaction has deleted rows, a second statement makes the other gone
 * profiles due, with an anti-join.  The first statement has locked them.
 */
void
hrflow_feeder_want_inserted(const HrflowStore *store, const char *profiles)
{
	bool		has_deleted = hrflow_deferred_register(store);

	hrflow_store_execute(want(store, profiles, !has_deleted), NULL);
	if (has_deleted)
		hrflow_store_execute(hrflow_store_sql(store,
											  want_gone_but_deleted_sql,
											  profiles),
							 NULL);
}

/*
 * If contents are read from rows, mark as changed those profiles in
 * HRFLOW_DELETED that were not erased, and are neither gone nor unwanted.
 */
void
hrflow_feeder_mark_kept(const HrflowStore *store)
{
	if (store->has_content)
		hrflow_store_execute_latest(hrflow_store_sql(store, mark_kept_sql),
									NULL);
}
