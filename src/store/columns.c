/*-------------------------------------------------------------------------
 *
 * columns.c
 *		The columns by which a table feeds a store.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "nodes/bitmapset.h"
#include "store/store.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/*
 * Return the numbers of the columns whose changes mark profiles due: those
 * that the WHEN conditions of the triggers refer to, except columns of keys.
 * The triggers have no arguments that name them; numbers also remain valid if
 * a column is renamed.
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

		for (int i = HRFLOW_TRIGGER_PROFILE_COLUMN; i < HRFLOW_TRIGGER_NARGS;
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
 * Check that a table has a column and, if the column holds keys, that each
 * value of its type has only one text representation.  "tracked" means that
 * the column existed when the table was tracked.
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
				 errhint("Use a column of type text, varchar, uuid, bigint, integer or smallint. A stored generated column can convert values of other types.")));
	if (TupleDescAttr(RelationGetDescr(table), number - 1)->attgenerated ==
		ATTRIBUTE_GENERATED_VIRTUAL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" is a virtual generated column", name),
				 errdetail("Triggers do not see the values of virtual generated columns."),
				 errhint("Make it a stored generated column.")));
}

/*
 * Check the columns that hold a table's keys.
 */
void
hrflow_columns_check_keys(Relation table, char *const *args, bool tracked)
{
	hrflow_columns_check(table, args[HRFLOW_TRIGGER_PROFILE_COLUMN], true, tracked);
	if (*args[HRFLOW_TRIGGER_SOURCE_COLUMN] != '\0')
		hrflow_columns_check(table, args[HRFLOW_TRIGGER_SOURCE_COLUMN], true, tracked);
}
