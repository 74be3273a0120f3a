/*-------------------------------------------------------------------------
 *
 * ready.c
 *		Checks, before vectors are fetched and paid for, that they can be
 *		stored.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "storage/lmgr.h"
#include "store/refresh.h"
#include "utils/lsyscache.h"

/* Number of key columns of the table of vectors. */
#define KEY_COLUMNS 4

/*
 * Throw an error for a store that hrflow_refresh() cannot write to.  The
 * caller must have translated "detail" and "hint".
 */
HRFLOW_NORETURN static void
refuse_store(const HrflowStore *store, const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("store %s cannot accept fetched vectors",
					store->vectors_name),
			 errdetail_internal("%s", detail),
			 errhint("%s", hint)));
}

/*
 * Check that a table has no enabled trigger that is initially deferred, such
 * as that of a deferred constraint.  Such triggers cannot be queued within a
 * security-restricted operation, in which we write on behalf of the owner.
 */
static void
check_triggers(const HrflowStore *store, Relation table)
{
	const TriggerDesc *triggers = table->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		const Trigger *trigger = &triggers->triggers[i];

		if (trigger->tginitdeferred && trigger->tgenabled != TRIGGER_DISABLED)
			refuse_store(store,
						 psprintf(_("Constraint \"%s\" of table \"%s\" is INITIALLY DEFERRED."),
								  get_constraint_name(trigger->tgconstraint),
								  RelationGetRelationName(table)),
						 _("Make the constraint NOT DEFERRABLE or INITIALLY IMMEDIATE."));
	}
}

/*
 * Check the triggers on one of a store's tables, and on the partitions or
 * inheritance children of the table.
 */
static void
check_table(const HrflowStore *store, Relation root)
{
	ListCell   *cell;

	foreach(cell, find_all_inheritors(RelationGetRelid(root), AccessShareLock,
									  NULL))
	{
		Relation	table = table_open(lfirst_oid(cell), NoLock);

		check_triggers(store, table);
		table_close(table, NoLock);
	}
}

/*
 * Is a column of the table of vectors part of its key?
 */
static bool
is_in_key(const HrflowStore *store, const char *column)
{
	return strcmp(column, "source_id") == 0 ||
		strcmp(column, store->identifier_name) == 0 ||
		strcmp(column, "section") == 0 || strcmp(column, "item") == 0;
}

/*
 * Does a refresh set this column of the table of vectors?
 */
static bool
is_refreshed_column(const HrflowStore *store, const char *column)
{
	return is_in_key(store, column) || strcmp(column, "vector") == 0 ||
		strcmp(column, "fetched_at") == 0;
}

/*
 * Can ON CONFLICT infer this index from the key columns?  This is also true
 * for the index of a deferrable constraint, although ON CONFLICT would fail
 * during execution.
 */
static bool
is_of_key(const HrflowStore *store, Relation index)
{
	const FormData_pg_index *form = index->rd_index;
	TupleDesc	desc = RelationGetDescr(store->vectors);

	if (!form->indisunique || !form->indisvalid ||
		form->indnkeyatts != KEY_COLUMNS ||
		RelationGetIndexPredicate(index) != NIL)
		return false;
	for (int i = 0; i < KEY_COLUMNS; i++)
	{
		AttrNumber	number = form->indkey.values[i];

		if (number <= 0 ||
			!is_in_key(store, NameStr(TupleDescAttr(desc, number - 1)->attname)))
			return false;
	}
	return true;
}

/*
 * Check that the table of vectors has a unique index on its key columns, and
 * that no such index belongs to a deferrable constraint.
 */
static void
check_key(const HrflowStore *store)
{
	bool		has_key = false;
	ListCell   *cell;

	foreach(cell, RelationGetIndexList(store->vectors))
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);

		if (is_of_key(store, index))
		{
			if (!index->rd_index->indimmediate)
				refuse_store(store,
							 psprintf(_("The constraint of index \"%s\" is DEFERRABLE."),
									  RelationGetRelationName(index)),
							 _("Make the constraint NOT DEFERRABLE."));
			has_key = true;
		}
		index_close(index, NoLock);
	}
	if (!has_key)
		refuse_store(store,
					 psprintf(_("Table \"%s\" has no unique index on (source_id, %s, section, item)."),
							  RelationGetRelationName(store->vectors),
							  store->identifier_name),
					 psprintf(_("Run ALTER TABLE %s ADD PRIMARY KEY (source_id, %s, section, item)."),
							  store->vectors_name, store->identifier_name));
}

/*
 * Check that the table of vectors has no NOT NULL column that a refresh would
 * leave null, unless a trigger may set it.
 */
static void
check_columns(const HrflowStore *store)
{
	TupleDesc	desc = RelationGetDescr(store->vectors);
	TriggerDesc *triggers = store->vectors->trigdesc;

	/* A BEFORE INSERT trigger may set such columns. */
	if (triggers != NULL && triggers->trig_insert_before_row)
		return;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);

		if (column->attnotnull && !column->attisdropped &&
			!column->atthasdef && column->attidentity == '\0' &&
			!is_refreshed_column(store, NameStr(column->attname)))
			refuse_store(store,
						 psprintf(_("Column \"%s\" of table \"%s\" is NOT NULL and has no default."),
								  NameStr(column->attname),
								  RelationGetRelationName(store->vectors)),
						 _("Give the column a default, or allow nulls."));
	}
}

static void
explain_statements(void *arg)
{
	const HrflowStore *store = arg;

	hrflow_write_explain(store);
	hrflow_lost_explain(store);
}

/*
 * Check that the statements by which a refresh writes vectors and states, and
 * deletes vectors, can be planned, and their execution initialized.  This
 * verifies that the columns are writable, and that the owner has the necessary
 * privileges on both tables.  Rethrows errors that do not concern the store,
 * such as a query cancel.
 */
static void
check_statements(const HrflowStore *store)
{
	ErrorData  *error = hrflow_store_try(explain_statements,
										 unconstify(HrflowStore *, store));
	const char *hint = _("Create the tables as hrflow_create_store() does.");

	if (error == NULL)
		return;
	switch (error->sqlerrcode)
	{
		case ERRCODE_INSUFFICIENT_PRIVILEGE:
			hint = _("Grant SELECT, INSERT, UPDATE and DELETE on both tables to their owner.");
			break;
		default:
			if (hrflow_write_is_of_server(error->sqlerrcode))
				ReThrowError(error);
	}
	refuse_store(store, error->message ? error->message : "", hint);
}

/*
 * Check, as far as possible, that a refresh can write to the tables of a
 * store.  If it could not, profiles would be fetched, and paid for, in vain.
 * The caller must have connected to SPI.
 *
 * Throws 55000 if a refresh cannot write, 0A000 if rows are on other servers,
 * and 25006 if a logical replication subscription writes to the tables.
 */
void
hrflow_ready_check(const HrflowStore *store)
{
	hrflow_remote_check(store);
	hrflow_remote_check_subscription(store);
	check_table(store, store->vectors);
	check_table(store, store->profiles);
	check_key(store);
	check_columns(store);
	check_statements(store);
}

/*
 * Return a trigger of the table that feeds the store but does not fire for
 * ordinary changes, or NULL if there is none.
 */
static const Trigger *
find_disabled(Relation table, const List *feeders)
{
	const TriggerDesc *triggers = table->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		const Trigger *trigger = &triggers->triggers[i];
		ListCell   *cell;

		if (trigger->tgenabled == TRIGGER_FIRES_ON_ORIGIN ||
			trigger->tgenabled == TRIGGER_FIRES_ALWAYS)
			continue;
		foreach(cell, feeders)
		{
			if (((HrflowFeeder *) lfirst(cell))->trigger == trigger->tgoid)
				return trigger;
		}
	}
	return NULL;
}

/*
 * Return an event for which a table has none of the triggers in "feeders" with
 * the key columns of "feeder", or NULL.  UPDATE is omitted: see
 * hrflow_columns_are_compared().
 */
static const char *
find_missing(const HrflowFeeder *feeder, const List *feeders)
{
	int			types = 0;
	ListCell   *cell;

	foreach(cell, feeders)
	{
		const HrflowFeeder *other = lfirst(cell);

		if (other->table == feeder->table &&
			hrflow_columns_same_keys(other->args, feeder->args))
			types |= other->type;
	}
	return !TRIGGER_FOR_INSERT(types) ? "INSERT" :
		!TRIGGER_FOR_DELETE(types) ? "DELETE" :
		!TRIGGER_FOR_TRUNCATE(types) ? "TRUNCATE" : NULL;
}

/*
 * Warn if the store misses changes to a table because a trigger was dropped, a
 * key column was renamed or dropped, or a trigger does not fire for ordinary
 * changes.  "feeder" represents the table, and "feeders" are all triggers that
 * feed the store.
 */
static void
warn_of_table(const HrflowStore *store, Relation table,
			  const HrflowFeeder *feeder, const List *feeders)
{
	bool		has_keys = hrflow_columns_have_keys(table, feeder->function,
													feeder->args);
	bool		is_compared = hrflow_columns_are_compared(table,
														  feeder->function,
														  feeder->args);
	const char *missing = find_missing(feeder, feeders);
	const Trigger *disabled = find_disabled(table, feeders);

	if (has_keys && is_compared && missing == NULL && disabled == NULL)
		return;
	ereport(WARNING,
			(errmsg("store %s misses changes to table \"%s\"",
					store->vectors_name, RelationGetRelationName(table)),
			 !has_keys ?
			 errdetail("A column of identifiers or sources was renamed or dropped.") :
			 missing != NULL ?
			 errdetail("The trigger on %s was dropped.", missing) :
			 !is_compared || disabled == NULL ?
			 errdetail("The trigger on UPDATE was dropped, for example by DROP COLUMN ... CASCADE.") :
			 disabled->tgenabled == TRIGGER_DISABLED ?
			 errdetail("Trigger \"%s\" is disabled.", disabled->tgname) :
			 errdetail("Trigger \"%s\" fires only if \"session_replication_role\" is \"replica\".",
					   disabled->tgname),
			 table->rd_rel->relispartition ?
			 errhint("Call hrflow_untrack_table() for this partition, and hrflow_track_table() for the partitioned table.") :
			 errhint("Call hrflow_track_table() again.")));
}

/*
 * Warn about each table whose changes the store misses, once per statement.
 * Tables are skipped if they are being untracked, must not be read because of
 * their owners (see owner.c), or cannot be locked without waiting.
 */
void
hrflow_ready_warn(const HrflowStore *store, Oid function)
{
	static Oid	warned = InvalidOid;
	static TimestampTz warned_at = 0;
	Oid			vectors = RelationGetRelid(store->vectors);
	List	   *feeders;
	ListCell   *cell;

	if (warned == vectors && warned_at == GetCurrentStatementStartTimestamp())
		return;
	warned = vectors;
	warned_at = GetCurrentStatementStartTimestamp();
	feeders = hrflow_feeder_find(store, function, InvalidOid, NoLock);
	foreach(cell, feeders)
	{
		const HrflowFeeder *feeder = lfirst(cell);
		Relation	table;

		if (!feeder->represents ||
			!ConditionalLockRelationOid(feeder->table, AccessShareLock))
			continue;
		table = try_relation_open(feeder->table, NoLock);
		if (table == NULL)
		{
			UnlockRelationOid(feeder->table, AccessShareLock);
			continue;
		}
		/* Another session may have dropped or replaced the triggers. */
		if (hrflow_feeder_get(store, function, feeder->trigger) != NULL)
			warn_of_table(store, table, feeder, feeders);
		relation_close(table, AccessShareLock);
	}
}
