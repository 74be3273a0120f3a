/*-------------------------------------------------------------------------
 *
 * beside.c
 *		Optional tables of a store, named after the store with a suffix.
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
 * Return the quoted and qualified name of an optional table.  "vectors" is the
 * name of the table of vectors.
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
 * Find an optional table of a store, or return InvalidOid.  A table of that
 * name that has another owner, or that lacks one of the columns, is ignored.
 * "columns" ends with NULL.
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
