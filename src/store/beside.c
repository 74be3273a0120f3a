/*-------------------------------------------------------------------------
 *
 * beside.c
 *		Finds optional tables of a store, whose names consist of the name of
 *		the store and a suffix.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "compat.h"
#include "parser/parse_coerce.h"
#include "store/store.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

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

/*
 * Return a DETAIL that names one of the given columns that a table does not
 * have, or has with an unsuitable type.  Returns NULL if there is none.
 */
static char *
get_column_problem(Oid table, const HrflowColumn *columns, int n)
{
	for (int i = 0; i < n; i++)
	{
		Oid			type = get_atttype(table,
									   get_attnum(table, columns[i].name));

		if (!OidIsValid(type))
			return psprintf(_("The table has no column \"%s\"."),
							columns[i].name);
		if (OidIsValid(columns[i].type) &&
			!IsBinaryCoercible(type, columns[i].type))
			return psprintf(_("Column \"%s\" has type %s."), columns[i].name,
							format_type_be(type));
	}
	return NULL;
}

/*
 * Return the reason for ignoring a relation that has the name of an optional
 * table of a store, as a DETAIL, or NULL if the relation is that table.
 */
static char *
get_problem(const HrflowStore *store, Oid table, Form_pg_class form,
			const HrflowColumn *columns, int ncolumns)
{
	if (form->relkind != RELKIND_RELATION &&
		form->relkind != RELKIND_PARTITIONED_TABLE)
		return pstrdup(_("The relation is not a table."));
	if (form->relowner != store->owner)
		return pstrdup(_("The table does not belong to the owner of the store."));
	return get_column_problem(table, columns, ncolumns);
}

/*
 * Return the OID of an optional table of a store, or InvalidOid if there is
 * none.  A relation with the expected name is ignored if it is not an ordinary
 * or partitioned table, has a different owner than the store, or lacks one of
 * the given columns.  The type of each column must be binary coercible to the
 * given type, unless that is InvalidOid.  Unless "problem" is NULL, sets
 * *problem to the reason for ignoring a relation, as a DETAIL, or to NULL if
 * none was ignored.
 *
 * The table is not locked, so it may be altered before a statement uses it.
 * Values read from it must therefore be cast to the expected types.
 */
Oid
hrflow_beside_find(const HrflowStore *store, const char *suffix,
				   const HrflowColumn *columns, int ncolumns, char **problem)
{
	Oid			table = get_relname_relid(psprintf("%s%s",
												   RelationGetRelationName(store->vectors),
												   suffix),
										  RelationGetNamespace(store->vectors));
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
	char	   *found = NULL;

	if (HeapTupleIsValid(tuple))
	{
		found = get_problem(store, table, (Form_pg_class) GETSTRUCT(tuple),
							columns, ncolumns);
		ReleaseSysCache(tuple);
	}
	else
		table = InvalidOid;
	if (problem != NULL)
		*problem = found;
	return found == NULL ? table : InvalidOid;
}

/*
 * Check that the tables NAME_aside and NAME_erased were renamed together with
 * the store, if a trigger shows that the store has been renamed.  An erasure
 * under the new name would miss vectors in NAME_aside, and these vectors could
 * be restored when that table is renamed later.  Throws 55000 if one of the
 * tables still has its old name, no relation has its new name, and no relation
 * has the old name of the store.
 */
void
hrflow_beside_check_renamed(const HrflowStore *store,
							const HrflowFeeder *feeder)
{
	static const char *const suffixes[] = {"_aside", "_erased"};
	const char *old = feeder->args[HRFLOW_TRIGGER_STORE];
	const char *schema = get_namespace_name(RelationGetNamespace(store->vectors));
	List	   *names;
	Oid			old_schema;

	if (strcmp(old, store->vectors_name) == 0)
		return;
	names = textToQualifiedNameList(cstring_to_text(old));
	if (list_length(names) != 2)
		return;
	old_schema = get_namespace_oid(strVal(linitial(names)), true);

	/* If another relation has the old name, the tables may belong to it. */
	if (OidIsValid(old_schema) &&
		OidIsValid(get_relname_relid(strVal(lsecond(names)), old_schema)))
		return;
	for (int i = 0; OidIsValid(old_schema) && i < lengthof(suffixes); i++)
	{
		Oid			left = get_relname_relid(psprintf("%s%s",
													  strVal(lsecond(names)),
													  suffixes[i]),
											 old_schema);
		const char *name = hrflow_beside_name(schema,
											  RelationGetRelationName(store->vectors),
											  suffixes[i]);

		if (!OidIsValid(left) ||
			OidIsValid(get_relname_relid(psprintf("%s%s",
												  RelationGetRelationName(store->vectors),
												  suffixes[i]),
										 RelationGetNamespace(store->vectors))))
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("relation %s was not renamed together with store %s",
						hrflow_store_relation_name(left), store->vectors_name),
				 errdetail("Trigger \"%s\" on table \"%s\" still refers to the store as %s.",
						   feeder->trigger_name, get_rel_name(feeder->table),
						   old),
				 errhint("If the relation belongs to this store, rename or move it to %s.  Otherwise, drop the triggers that use the old name of the store.",
						 name)));
	}
}

/*
 * Should a WARNING be raised about a relation that hrflow_beside_find() has
 * ignored?  It should unless the last WARNING was about the same store, and
 * raised during the same statement of the client.  "last" identifies that
 * WARNING, and is updated.
 */
bool
hrflow_beside_should_warn(const HrflowStore *store, HrflowBesideWarning *last)
{
	Oid			vectors = RelationGetRelid(store->vectors);
	TimestampTz statement = GetCurrentStatementStartTimestamp();

	if (last->vectors == vectors && last->statement == statement)
		return false;
	last->vectors = vectors;
	last->statement = statement;
	return true;
}
