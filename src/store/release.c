/*-------------------------------------------------------------------------
 *
 * release.c
 *		Implements hrflow_release_columns(), which allows changing the types of
 *		the columns of a table that feeds a store.
 *
 * PostgreSQL rejects ALTER COLUMN TYPE for a column that the WHEN condition of
 * a trigger refers to, and the condition of our trigger on UPDATE refers to
 * all tracked columns.  Therefore, hrflow_release_columns() drops the trigger
 * on UPDATE, but no other trigger.  Without the others, the table would no
 * longer feed the store, and reconciling another table that feeds the store
 * would put aside profiles to which only this table refers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "miscadmin.h"
#include "nodes/bitmapset.h"
#include "store/store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(hrflow_release_columns);

/*
 * SQL templates for the statements that re-create the triggers of a table
 * without and with content columns, and for the optional arguments of these
 * statements.  They cast the arguments to the exact parameter types of
 * hrflow_track_table(), so that they cannot call an overloaded function that
 * another role has created in the same schema.
 */
static const char track_again_sql[] =
"SELECT %s(%L::pg_catalog.regclass, %L::pg_catalog.regclass,"
" %L::pg_catalog.name, %s => %L::pg_catalog.%s%s)";
static const char track_content_again_sql[] =
"SELECT %s(%L::pg_catalog.regclass, %L::pg_catalog.regclass,"
" %L::pg_catalog.name, content_columns => %L::pg_catalog.name[]%s%s)";
static const char item_type_sql[] = ", item_type => %L::pg_catalog.text";
static const char refresh_columns_sql[] =
", refresh_columns => %L::pg_catalog.name[]";

/*
 * Return the names of columns as the text form of an array.
 */
static char *
make_names(Relation table, const List *columns)
{
	Datum	   *names = palloc(sizeof(Datum) * Max(list_length(columns), 1));
	ListCell   *cell;

	foreach(cell, columns)
		names[foreach_current_index(cell)] =
		NameGetDatum(&TupleDescAttr(RelationGetDescr(table),
									lfirst_int(cell) - 1)->attname);
	return OidOutputFunctionCall(F_ARRAY_OUT,
								 PointerGetDatum(construct_array(names,
																 list_length(columns),
																 NAMEOID,
																 NAMEDATALEN,
																 false,
																 TYPALIGN_CHAR)));
}

/*
 * Return the SQL of the argument "refresh_columns", or an empty string if
 * there are no columns.
 */
static char *
refresh_columns_argument(Relation table, const Bitmapset *columns)
{
	List	   *numbers = NIL;
	int			number = -1;

	while ((number = bms_next_member(columns, number)) >= 0)
		numbers = lappend_int(numbers, number);
	return numbers == NIL ? pstrdup("") :
		hrflow_store_sql(NULL, refresh_columns_sql,
						 make_names(table, numbers));
}

/*
 * Return the statement that tracks a table for the store "name", with the
 * arguments of "feeder".  The argument "refresh_columns" lists the members of
 * "columns" that are not content columns.  Throws the errors of
 * hrflow_columns_check_keys() and hrflow_columns_of_content().
 */
static char *
make_track_statement(const char *name, Relation table,
					 const HrflowFeeder *feeder, Bitmapset *columns,
					 Oid caller)
{
	bool		has_column =
	feeder->args[HRFLOW_TRIGGER_SOURCE_COLUMN][0] != '\0';
	const char *item_type = feeder->args[HRFLOW_TRIGGER_ITEM_TYPE];
	List	   *content;

	hrflow_columns_check_keys(table, feeder->function, feeder->args);
	if (*feeder->args[HRFLOW_TRIGGER_NCOLUMNS] != '\0')
	{
		content = hrflow_columns_of_content(table, feeder->trigger,
											feeder->args);
		for (int i = 0; i < list_length(content); i++)
			columns = bms_del_member(columns, list_nth_int(content, i));
		return hrflow_store_sql(NULL, track_content_again_sql,
								hrflow_catalog_function_name("hrflow_track_table",
															 caller),
								name,
								hrflow_store_relation_name(RelationGetRelid(table)),
								feeder->args[HRFLOW_TRIGGER_PROFILE_COLUMN],
								make_names(table, content),
								*item_type == '\0' ? "" :
								hrflow_store_sql(NULL, item_type_sql, item_type),
								refresh_columns_argument(table, columns));
	}

	return hrflow_store_sql(NULL, track_again_sql,
							hrflow_catalog_function_name("hrflow_track_table",
														 caller),
							name,
							hrflow_store_relation_name(RelationGetRelid(table)),
							feeder->args[HRFLOW_TRIGGER_PROFILE_COLUMN],
							has_column ? "source_column" : "source_id",
							feeder->args[has_column ?
										 HRFLOW_TRIGGER_SOURCE_COLUMN :
										 HRFLOW_TRIGGER_SOURCE_ID],
							has_column ? "name" : "text",
							refresh_columns_argument(table, columns));
}

/*
 * Return the statement that tracks a table for the store "name" as it is
 * tracked for "store".  "feeders" are the triggers
 * by which it feeds that store.  Throws 55000 if none of them is a trigger on
 * UPDATE, and the errors of make_track_statement().
 */
char *
hrflow_release_statement(const HrflowStore *store, const char *name,
						 Relation table, List *feeders, Oid caller)
{
	const HrflowFeeder *on_update = NULL;
	ListCell   *cell;

	foreach(cell, feeders)
	{
		const HrflowFeeder *feeder = lfirst(cell);

		if (feeder->is_update)
			on_update = feeder;
	}
	if (on_update == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no trigger on UPDATE that feeds store %s",
						RelationGetRelationName(table), store->vectors_name),
				 errhint("To create the trigger on UPDATE again, call hrflow_track_table() with the arguments with which the table was tracked.")));
	return make_track_statement(name, table, on_update,
								hrflow_columns_watched(feeders), caller);
}

/*
 * Drop the trigger on UPDATE of a table that feeds a store, and return the
 * statement that re-creates it.  If there are several such triggers, drop all.
 *
 * Throws 42704 if the table does not feed the store, and the errors of
 * hrflow_release_statement().
 */
static char *
release(const HrflowStore *store, Relation table, Oid caller)
{
	List	   *feeders = hrflow_feeder_find(store,
											 hrflow_feeder_function(caller),
											 RelationGetRelid(table),
											 AccessExclusiveLock);
	char	   *statement;
	ListCell   *cell;

	if (feeders == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" does not feed store %s",
						RelationGetRelationName(table), store->vectors_name)));
	statement = hrflow_release_statement(store, store->vectors_name, table,
										 feeders, caller);
	foreach(cell, feeders)
	{
		const HrflowFeeder *feeder = lfirst(cell);

		if (feeder->is_update)
			hrflow_feeder_drop(feeder);
	}
	return statement;
}

/*
 * hrflow_release_columns(store regclass, source_table regclass) RETURNS text
 */
Datum
hrflow_release_columns(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	HrflowStore store;
	Relation	table;
	char	   *statement;
	text	   *result;

	PreventCommandDuringRecovery("hrflow_release_columns()");
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_OWN);
	table = hrflow_catalog_open(PG_GETARG_OID(1));
	statement = release(&store, table, fcinfo->flinfo->fn_oid);
	relation_close(table, NoLock);
	hrflow_store_close(&store);
	MemoryContextSwitchTo(context);
	result = cstring_to_text(statement);
	SPI_finish();
	PG_RETURN_TEXT_P(result);
}
