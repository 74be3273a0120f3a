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
#include "compat.h"
#include "nodes/bitmapset.h"
#include "nodes/nodeFuncs.h"
#include "nodes/primnodes.h"
#include "rewrite/prs2lock.h"
#include "store/store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/*
 * Return the attribute numbers of the columns, other than key columns, whose
 * changes make profiles due: the columns in the WHEN conditions of the
 * triggers.  They are found through the dependencies of the triggers, rather
 * than by names in the triggers' arguments, so that columns can be renamed.
 */
Bitmapset *
hrflow_columns_watched(Relation table, List *feeders)
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

		for (int i = HRFLOW_TRIGGER_PROFILE_COLUMN; i < HRFLOW_TRIGGER_NKEYS;
			 i++)
		{
			int			number = i == HRFLOW_TRIGGER_SOURCE_ID ? 0 :
			SPI_fnumber(RelationGetDescr(table), feeder->args[i]);

			if (number > 0)
				columns = bms_del_member(columns, number);
		}
	}
	return columns;
}

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
 * Check that a table has a column.  If "is_key", also check that its type is
 * one of those that are supported for keys, because each of their values has
 * only one text representation, and that the column is not a virtual generated
 * column.  "tracked" means that the column existed when the table was tracked,
 * so it may have been renamed since.  Throws 42703, 42804 and 0A000.
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
 * Check the key columns of a table; see hrflow_columns_check().
 */
void
hrflow_columns_check_keys(Relation table, char *const *args, bool tracked)
{
	hrflow_columns_check(table, args[HRFLOW_TRIGGER_PROFILE_COLUMN], true, tracked);
	if (*args[HRFLOW_TRIGGER_SOURCE_COLUMN] != '\0')
		hrflow_columns_check(table, args[HRFLOW_TRIGGER_SOURCE_COLUMN], true, tracked);
}

/*
 * ------------------------------------------------------------------------
 * Content
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
 * Return the attribute numbers of the columns from which contents are read, in
 * order.  "trigger" is the trigger on UPDATE of a table, and "args" are the
 * arguments of any trigger by which the table feeds the store; one of them is
 * the number of these columns.  In the WHEN condition of the trigger, these
 * columns follow the key column.  The condition stores attribute numbers, so
 * columns can be renamed; in a dump, it contains column names.
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
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	HeapTuple	tuple = hrflow_catalog_trigger(triggers, trigger);
	List	   *columns = NIL;
	List	   *content = NIL;
	bool		is_null = true;
	Datum		condition = (Datum) 0;

	if (HeapTupleIsValid(tuple))
		condition = heap_getattr(tuple, Anum_pg_trigger_tgqual,
								 RelationGetDescr(triggers), &is_null);
	if (!is_null)
		(void) collect_columns(stringToNode(TextDatumGetCString(condition)),
							   &columns);
	table_close(triggers, AccessShareLock);

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
				 errhint("For a store of %s, use columns of type %s.",
						 store->kind->plural, reading->type_names)));
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
					 errdetail("A store of %s does not read contents from columns.",
							   store->kind->plural),
					 errhint("To make profiles due when columns change, use \"refresh_columns\".")));
		return 0;
	}
	if (n < 1 || n > reading->max_columns)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg(reading->max_columns == 1 ?
						"argument \"content_columns\" must name one column" :
						"argument \"content_columns\" must name at least one column"),
				 errhint("For a store of %s, pass columns of type %s.",
						 store->kind->plural, reading->type_names)));
	for (int i = 0; i < n; i++)
		check_content(store, table, columns[i]);
	args[HRFLOW_TRIGGER_NCOLUMNS] = psprintf("%d", n);
	if (reading->takes_item_type)
		args[HRFLOW_TRIGGER_ITEM_TYPE] = pstrdup(item_type);
	return n;
}
