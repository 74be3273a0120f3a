/*-------------------------------------------------------------------------
 *
 * columns.c
 *		Finds and checks the columns through which a table feeds a store.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "nodes/bitmapset.h"
#include "nodes/nodeFuncs.h"
#include "nodes/primnodes.h"
#include "rewrite/prs2lock.h"
#include "store/store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/*
 * ------------------------------------------------------------------------
 * Conditions of triggers
 * ------------------------------------------------------------------------
 */

/*
 * Expression walker: append to a list the attribute numbers of the columns of
 * OLD to which an expression refers, in order of occurrence.
 */
static bool
collect_columns(Node *node, void *list)
{
	List	  **columns = list;

	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		if (((Var *) node)->varno == PRS2_OLD_VARNO)
			*columns = lappend_int(*columns, ((Var *) node)->varattno);
		return false;
	}
	return expression_tree_walker(node, collect_columns, list);
}

/*
 * Return the attribute numbers of the columns of OLD to which a WHEN condition
 * refers, in order of occurrence.  "condition" may be NULL, for no condition.
 * The condition stores attribute numbers, so columns can be renamed; in a
 * dump, it contains column names.
 *
 * The result for the last condition is kept, because the trigger on UPDATE may
 * call this for each row, and parsing a condition on several columns takes
 * some microseconds.
 */
static List *
columns_of_condition(const char *condition)
{
	static char *last = NULL;	/* in TopMemoryContext, like last_columns */
	static List *last_columns = NIL;

	if (condition == NULL)
		return NIL;
	if (last == NULL || strcmp(condition, last) != 0)
	{
		List	   *columns = NIL;
		MemoryContext old;

		(void) collect_columns(stringToNode(condition), &columns);
		if (last != NULL)
			pfree(last);
		last = NULL;
		list_free(last_columns);
		last_columns = NIL;
		old = MemoryContextSwitchTo(TopMemoryContext);
		last_columns = list_copy(columns);
		last = pstrdup(condition);
		MemoryContextSwitchTo(old);
	}
	return list_copy(last_columns);
}

/*
 * Return the columns of the WHEN condition of a trigger; see
 * columns_of_condition().  Returns NIL if the trigger does not exist, or has
 * no WHEN condition.
 */
static List *
columns_of_trigger(Oid trigger)
{
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	HeapTuple	tuple = hrflow_catalog_trigger(triggers, trigger);
	List	   *columns = NIL;
	bool		is_null = true;
	Datum		condition = (Datum) 0;

	if (HeapTupleIsValid(tuple))
		condition = heap_getattr(tuple, Anum_pg_trigger_tgqual,
								 RelationGetDescr(triggers), &is_null);
	if (!is_null)
		columns = columns_of_condition(TextDatumGetCString(condition));
	table_close(triggers, AccessShareLock);
	return columns;
}

/*
 * Given the columns of the WHEN condition of a trigger on UPDATE, and the
 * arguments of the trigger, return the key columns, which come first.  Returns
 * NIL if there are not enough columns, or the condition refers to the whole
 * row or a system column in their place, which is possible only if a user has
 * created the trigger.
 */
static List *
keys_of_condition(List *columns, char *const *args)
{
	int			nkeys = *args[HRFLOW_TRIGGER_SOURCE_COLUMN] == '\0' ? 1 : 2;
	ListCell   *cell;

	if (list_length(columns) < nkeys)
		return NIL;
	columns = list_truncate(columns, nkeys);
	foreach(cell, columns)
	{
		if (!AttrNumberIsForUserDefinedAttr(lfirst_int(cell)))
			return NIL;
	}
	return columns;
}

/*
 * Return the attribute numbers of the columns, other than key columns, whose
 * changes make profiles due: the columns in the WHEN conditions of the
 * triggers.  They are found through the dependencies of the triggers, rather
 * than by names in the triggers' arguments, so that columns can be renamed.
 */
Bitmapset *
hrflow_columns_watched(List *feeders)
{
	Bitmapset  *columns = NULL;
	ListCell   *cell;
	ListCell   *inner;

	foreach(cell, feeders)
	{
		HrflowFeeder *feeder = lfirst(cell);

		foreach(inner, hrflow_catalog_dependencies(TriggerRelationId, feeder->trigger))
		{
			Form_pg_depend form = lfirst(inner);

			if (form->refclassid == RelationRelationId &&
				form->refobjid == feeder->table && form->refobjsubid > 0)
				columns = bms_add_member(columns, form->refobjsubid);
		}
	}

	foreach(cell, feeders)
	{
		HrflowFeeder *feeder = lfirst(cell);

		if (!feeder->is_update)
			continue;
		foreach(inner, keys_of_condition(columns_of_trigger(feeder->trigger),
										 feeder->args))
			columns = bms_del_member(columns, lfirst_int(inner));
	}
	return columns;
}

/*
 * ------------------------------------------------------------------------
 * Keys
 * ------------------------------------------------------------------------
 */

/*
 * Throw 0A000 if a column is a virtual generated column.
 */
static void
check_not_virtual(Form_pg_attribute column)
{
	if (column->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" is a virtual generated column",
						NameStr(column->attname)),
				 errdetail("Triggers do not see the values of virtual generated columns."),
				 errhint("Use a stored generated column.")));
}

/*
 * Check that a table has a column.  If "is_key", also check that the column is
 * not a virtual generated column, and that its type is supported for keys:
 * each value of a supported type has only one text representation.  "tracked"
 * means that the column existed when the table was tracked, so it may have
 * been renamed since.  Throws 42703, 42804 and 0A000.
 */
void
hrflow_columns_check(Relation table, const char *name, bool is_key,
					 bool tracked)
{
	int			number = SPI_fnumber(RelationGetDescr(table), name);
	Oid			type;

	if (number <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist",
						name, RelationGetRelationName(table)),
				 tracked ? errhint("If the column was renamed, call hrflow_track_table() again.") : 0));
	if (!is_key)
		return;
	type = getBaseType(SPI_gettypeid(RelationGetDescr(table), number));
	if (type != TEXTOID && type != VARCHAROID && type != UUIDOID &&
		type != INT8OID && type != INT4OID && type != INT2OID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" has unsupported type %s", name,
						format_type_be(type)),
				 errhint("Use a column of type text, varchar, uuid, bigint, integer or smallint.  A stored generated column can convert values of other types.")));
	check_not_virtual(TupleDescAttr(RelationGetDescr(table), number - 1));
}

/*
 * Find the trigger on UPDATE by which a table feeds the same store, through
 * the same keys, as a trigger with the given function and arguments.  If the
 * table is a partition, this is the partition's copy of the trigger.  Returns
 * NULL if there is no such trigger.
 */
static const Trigger *
trigger_on_update(Relation table, Oid function, char *const *args)
{
	const TriggerDesc *triggers = table->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		const Trigger *trigger = &triggers->triggers[i];
		int			nequal = 0;

		if (trigger->tgfoid != function ||
			trigger->tgnargs < HRFLOW_TRIGGER_NKEYS ||
			!TRIGGER_TYPE_MATCHES(trigger->tgtype, TRIGGER_TYPE_ROW,
								  TRIGGER_TYPE_AFTER, TRIGGER_TYPE_UPDATE))
			continue;
		while (nequal < HRFLOW_TRIGGER_NKEYS &&
			   strcmp(trigger->tgargs[nequal], args[nequal]) == 0)
			nequal++;
		if (nequal == HRFLOW_TRIGGER_NKEYS)
			return trigger;
	}
	return NULL;
}

/*
 * Return the attribute numbers of the columns that have the names of the key
 * columns now: that of the column of identifiers, and that of the column of
 * sources, if any.  A column that does not exist has the number
 * SPI_ERROR_NOATTRIBUTE.
 */
static List *
keys_by_name(Relation table, char *const *args)
{
	TupleDesc	desc = RelationGetDescr(table);
	List	   *keys =
	list_make1_int(SPI_fnumber(desc, args[HRFLOW_TRIGGER_PROFILE_COLUMN]));

	if (*args[HRFLOW_TRIGGER_SOURCE_COLUMN] != '\0')
		keys = lappend_int(keys,
						   SPI_fnumber(desc, args[HRFLOW_TRIGGER_SOURCE_COLUMN]));
	return keys;
}

/*
 * Return the attribute numbers of the key columns that were tracked, in the
 * order of keys_by_name(), even if they have been renamed.  "on_update" is the
 * result of trigger_on_update().  If it is NULL, or keys_of_condition() finds
 * no keys, returns the result of keys_by_name().
 */
static List *
tracked_keys(Relation table, const Trigger *on_update, char *const *args)
{
	List	   *keys = on_update == NULL ? NIL :
	keys_of_condition(columns_of_condition(on_update->tgqual), args);

	return keys == NIL ? keys_by_name(table, args) : keys;
}

/*
 * Does a table have the trigger on UPDATE by which it feeds a store?
 * "function" and "args" are those of the table's other triggers.
 */
bool
hrflow_columns_are_compared(Relation table, Oid function, char *const *args)
{
	return trigger_on_update(table, function, args) != NULL;
}

/*
 * Do two triggers have the same columns of identifiers and sources, and the
 * same constant source?  "a" and "b" are their arguments.
 */
bool
hrflow_columns_same_keys(char *const *a, char *const *b)
{
	for (int i = HRFLOW_TRIGGER_PROFILE_COLUMN; i < HRFLOW_TRIGGER_NKEYS; i++)
	{
		if (strcmp(a[i], b[i]) != 0)
			return false;
	}
	return true;
}

/*
 * Does a table feed a store through the columns that have the names of its key
 * columns now?  "function" and "args" are those of the table's triggers.
 *
 * The result is false if one of these columns does not exist, or if a column
 * was renamed and another one has its name now, so that the name would select
 * wrong profiles.  Without the trigger on UPDATE, it is not known whether a
 * column was renamed.
 */
bool
hrflow_columns_have_keys(Relation table, Oid function, char *const *args)
{
	List	   *keys = keys_by_name(table, args);

	return !list_member_int(keys, SPI_ERROR_NOATTRIBUTE) &&
		equal(keys, tracked_keys(table,
								 trigger_on_update(table, function, args),
								 args));
}

/*
 * Do the triggers with the arguments "args" feed a store through keys other
 * than those of triggers that are to be created with the arguments "new_args"?
 * If a key column no longer exists, and it is not known whether it was
 * renamed, assume that it was, and that the keys are the same.
 */
bool
hrflow_columns_change_keys(Relation table, Oid function, char *const *args,
						   char *const *new_args)
{
	List	   *keys = tracked_keys(table, trigger_on_update(table, function, args),
									args);

	return !list_member_int(keys, SPI_ERROR_NOATTRIBUTE) &&
		(!equal(keys, keys_by_name(table, new_args)) ||
		 strcmp(args[HRFLOW_TRIGGER_SOURCE_ID],
				new_args[HRFLOW_TRIGGER_SOURCE_ID]) != 0);
}

/*
 * Throw 55000 if hrflow_columns_have_keys() is false although the columns
 * exist.
 */
static void
check_tracked(Relation table, Oid function, char *const *args)
{
	TupleDesc	desc = RelationGetDescr(table);
	const Trigger *on_update = trigger_on_update(table, function, args);
	List	   *keys = keys_by_name(table, args);
	ListCell   *cell;

	foreach(cell, tracked_keys(table, on_update, args))
	{
		int			number = lfirst_int(cell);
		int			named = list_nth_int(keys, foreach_current_index(cell));

		if (number != named)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("column \"%s\" of relation \"%s\" has been renamed to \"%s\"",
							NameStr(TupleDescAttr(desc, named - 1)->attname),
							RelationGetRelationName(table),
							NameStr(TupleDescAttr(desc, number - 1)->attname)),
					 errdetail("Another column has the old name."),
					 errhint("Call hrflow_track_table() again.")));
	}
}

/*
 * Check the key columns of a table; see hrflow_columns_check().  "function" is
 * the function of the table's triggers, or InvalidOid if the table is to be
 * tracked.  If the table is tracked already, also throws 55000, unless it
 * feeds the store through these columns; see hrflow_columns_have_keys().
 */
void
hrflow_columns_check_keys(Relation table, Oid function, char *const *args)
{
	bool		tracked = OidIsValid(function);

	hrflow_columns_check(table, args[HRFLOW_TRIGGER_PROFILE_COLUMN], true, tracked);
	if (*args[HRFLOW_TRIGGER_SOURCE_COLUMN] != '\0')
		hrflow_columns_check(table, args[HRFLOW_TRIGGER_SOURCE_COLUMN], true, tracked);
	if (tracked)
		check_tracked(table, function, args);
}

/*
 * ------------------------------------------------------------------------
 * Content
 * ------------------------------------------------------------------------
 */

/*
 * Return the attribute numbers of the columns from which contents are read, in
 * order.  "trigger" is the trigger on UPDATE of a table, and "args" are the
 * arguments of any trigger by which the table feeds the store; one of them is
 * the number of these columns.  In the WHEN condition of the trigger, these
 * columns follow the key column.
 *
 * Returns NIL if there is no such trigger.  Also returns NIL if the condition
 * is missing or does not contain enough columns, or refers to the whole row or
 * a system column in their place, which is possible only if a user has created
 * the trigger.
 */
static List *
find_content(Oid trigger, char *const *args)
{
	int			n = atoi(args[HRFLOW_TRIGGER_NCOLUMNS]);
	List	   *columns = columns_of_trigger(trigger);
	List	   *content = NIL;

	if (n < 1 || list_length(columns) <= n)
		return NIL;
	for (int i = 1; i <= n; i++)
	{
		int			number = list_nth_int(columns, i);

		if (!AttrNumberIsForUserDefinedAttr(number))
			return NIL;
		content = lappend_int(content, number);
	}
	return content;
}

/*
 * Return the attribute numbers of the columns from which contents are read, in
 * order; see find_content().  Throws 55000 if they cannot be determined.
 */
List *
hrflow_columns_of_content(Relation table, Oid trigger, char *const *args)
{
	List	   *content = find_content(trigger, args);

	if (content == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot determine the content columns of table \"%s\"",
						RelationGetRelationName(table)),
				 errhint("Call hrflow_track_table() again.")));
	return content;
}

/*
 * Given the triggers of a table, return the attribute numbers of the columns
 * from which contents are read, in order.  Returns NIL if contents are not
 * read from the table, if hrflow_release_columns() has released the columns,
 * or if they cannot be determined.  If contents are to be read, NIL causes
 * hrflow_track_table() to re-create the triggers.
 */
List *
hrflow_columns_of_feeders(List *feeders)
{
	ListCell   *cell;

	foreach(cell, feeders)
	{
		const HrflowFeeder *feeder = lfirst(cell);

		if (feeder->is_update && *feeder->args[HRFLOW_TRIGGER_NCOLUMNS] != '\0')
			return find_content(feeder->trigger, feeder->args);
	}
	return NIL;
}

/*
 * Check that the contents of a store can be read from a column.
 *
 * Throws 42703 if the column does not exist, 42804 if its type is not
 * supported, and 0A000 if it is a virtual generated column.
 */
static void
check_content(const HrflowStore *store, Relation table, const char *name)
{
	const HrflowReading *reading = store->kind->reading;
	Form_pg_attribute column;
	Oid			type;
	int			i = 0;

	hrflow_columns_check(table, name, false, false);
	column = TupleDescAttr(RelationGetDescr(table),
						   SPI_fnumber(RelationGetDescr(table), name) - 1);
	type = getBaseType(column->atttypid);
	while (i < reading->ntypes && reading->types[i] != type)
		i++;
	if (i == reading->ntypes)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" has unsupported type %s", name,
						format_type_be(type)),
				 errhint("%s", _(reading->types_hint))));
	check_not_virtual(column);
}

/*
 * ------------------------------------------------------------------------
 * Arguments
 * ------------------------------------------------------------------------
 */

/*
 * Read an array of column names into "columns", unless "columns" is NULL.
 * "argument" is the name of the SQL argument, for messages.  Returns the
 * number of column names.  Throws 22023 if the array has several dimensions or
 * contains nulls, and 54011 if it has too many elements.
 */
int
hrflow_columns_get(const char *argument, ArrayType *array, char **columns)
{
	Datum	   *values;
	bool	   *nulls;
	int			n;

	deconstruct_array(array, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR,
					  &values, &nulls, &n);
	if (ARR_NDIM(array) > 1 || array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a one-dimensional array without nulls",
						argument)));
	if (n > MaxTupleAttributeNumber)
		ereport(ERROR,
				(errcode(ERRCODE_TOO_MANY_COLUMNS),
				 errmsg("argument \"%s\" must not have more than %d elements",
						argument, MaxTupleAttributeNumber)));
	for (int i = 0; columns != NULL && i < n; i++)
		columns[i] = NameStr(*DatumGetName(values[i]));
	return n;
}

/*
 * Read and check the arguments that specify the columns from which contents
 * are read.  Stores the column names in "columns", and the trigger arguments
 * HRFLOW_TRIGGER_NCOLUMNS and HRFLOW_TRIGGER_ITEM_TYPE in "args".  Returns the
 * number of columns, which is 0 if the store does not read contents from
 * columns.  Throws 22023, 54011, and the errors of check_content().
 */
int
hrflow_columns_get_content(const HrflowStore *store, Relation table,
						   ArrayType *array, const NullableDatum *type,
						   char **args, char **columns)
{
	const HrflowReading *reading = store->kind->reading;
	HrflowProblem problem = {NULL};
	const char *item_type = hrflow_argument_item_type(type, &problem);
	int			n = array == NULL ? 0 :
	hrflow_columns_get("content_columns", array, columns);

	args[HRFLOW_TRIGGER_NCOLUMNS] = args[HRFLOW_TRIGGER_ITEM_TYPE] = pstrdup("");
	if (problem.message != NULL)
		hrflow_argument_raise(&problem);
	if (reading == NULL)
	{
		if (array != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"%s\" must not be specified",
							"content_columns"),
					 errdetail("Only stores of texts and documents read contents from columns."),
					 errhint("To make profiles due when columns change, use \"refresh_columns\".")));
		return 0;
	}
	if (n < 1 || n > reading->max_columns)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg(reading->max_columns == 1 ?
						"argument \"content_columns\" must name one column" :
						"argument \"content_columns\" must name at least one column"),
				 errhint("%s", _(reading->types_hint))));
	for (int i = 0; i < n; i++)
		check_content(store, table, columns[i]);
	args[HRFLOW_TRIGGER_NCOLUMNS] = psprintf("%d", n);
	if (reading->takes_item_type)
		args[HRFLOW_TRIGGER_ITEM_TYPE] = pstrdup(item_type);
	return n;
}
