/*-------------------------------------------------------------------------
 *
 * beside.c
 *		Tables beside a store: their names are the store's and a suffix.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "compat.h"
#include "store/store.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/*
 * The name of a table, quoted and qualified, that goes with a table of vectors.
 */
const char *
hrflow_beside_name(const char *schema, const char *vectors,
				   const char *suffix)
{
	return quote_qualified_identifier(schema,
									  psprintf("%s%s", vectors, suffix));
}

static bool
has_columns(Oid table, const char *const *names)
{
	for (; *names != NULL; names++)
	{
		if (get_attnum(table, *names) == InvalidAttrNumber)
			return false;
	}
	return true;
}

/*
 * Find such a table of a store, or InvalidOid.  One of that name that belongs to
 * somebody else, or lacks one of these columns, is not the store's.  "columns"
 * ends with NULL.
 */
Oid
hrflow_beside_find(const HrflowStore *store, const char *suffix,
				   const char *const *columns)
{
	Oid			table = get_relname_relid(psprintf("%s%s",
												   RelationGetRelationName(store->vectors),
												   suffix),
										  RelationGetNamespace(store->vectors));
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
	Form_pg_class form;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	form = (Form_pg_class) GETSTRUCT(tuple);
	if ((form->relkind != RELKIND_RELATION &&
		 form->relkind != RELKIND_PARTITIONED_TABLE) ||
		form->relowner != store->owner || !has_columns(table, columns))
		table = InvalidOid;
	ReleaseSysCache(tuple);
	return table;
}
