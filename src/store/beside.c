/*-------------------------------------------------------------------------
 *
 * beside.c
 *		Finds optional tables of a store, whose names consist of the name of
 *		the store and a suffix.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "compat.h"
#include "parser/parse_coerce.h"
#include "store/store.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

/*
 * Return the quoted and qualified name of an optional table.  "vectors" is the
 * name of the table of vectors, without its schema.
 */
const char *
hrflow_beside_name(const char *schema, const char *vectors,
				   const char *suffix)
{
	return quote_qualified_identifier(schema,
									  psprintf("%s%s", vectors, suffix));
}

static bool
has_columns(Oid table, const HrflowColumn *columns, int n)
{
	for (int i = 0; i < n; i++)
	{
		AttrNumber	number = get_attnum(table, columns[i].name);

		if (number == InvalidAttrNumber ||
			(OidIsValid(columns[i].type) &&
			 !IsBinaryCoercible(get_atttype(table, number),
								columns[i].type)))
			return false;
	}
	return true;
}

/*
 * Return the OID of an optional table of a store, or InvalidOid if there is
 * none.  A relation with the expected name is ignored if it is not an ordinary
 * or partitioned table, has another owner than the store, or lacks one of the
 * given columns.  The type of each column must be binary coercible to the
 * given type, unless that is InvalidOid.
 *
 * The table is not locked, so it may be altered before a statement uses it.
 * Values read from it must therefore be cast to the expected types.
 */
Oid
hrflow_beside_find(const HrflowStore *store, const char *suffix,
				   const HrflowColumn *columns, int ncolumns)
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
		form->relowner != store->owner ||
		!has_columns(table, columns, ncolumns))
		table = InvalidOid;
	ReleaseSysCache(tuple);
	return table;
}
