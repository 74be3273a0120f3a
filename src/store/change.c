/*-------------------------------------------------------------------------
 *
 * change.c
 *		Changes the model of a store: creates a second store beside it, which
 *		takes its name when enough vectors have been fetched.
 *
 * The functions in this file call hrflow_create_store(), hrflow_track_table()
 * and hrflow_drop_store() as the caller, who must be the owner of the store and
 * may need to be granted EXECUTE on them.  While they do so, no store is open:
 * see hrflow_store_open().  No code of the owner is executed in the meantime.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/relation.h"
#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "store/store.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(hrflow_change_model);
PG_FUNCTION_INFO_V1(hrflow_switch_model);

/* Suffix of the name of the second store. */
#define SUFFIX "_next"

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

/*
 * Statements that call other functions of the extension.  They cast the
 * arguments to the exact parameter types, so that they cannot call an
 * overloaded function that another role has created in the same schema.
 */
static const char create_sql[] =
"SELECT %s(%L::pg_catalog.text, %L::pg_catalog.text,"
" %s::pg_catalog.text, %L::pg_catalog.text)";
static const char drop_store_sql[] = "SELECT %s(%L::pg_catalog.regclass)";

/*
 * Statement that tracks the profiles that hrflow_track() has tracked in the
 * first store.  %s is the second store's table of profiles.
 */
static const char track_manual_sql[] =
"INSERT INTO %s AS n (source_id, %I, state, due_at, attempts,"
" generation, manual)"
" SELECT p.source_id, p.%I, 'due', clock_timestamp(), 0, 0, true FROM %P AS p"
" WHERE p.manual AND p.state IS DISTINCT FROM 'unwanted'"
" ORDER BY p.source_id, p.%I"
" ON CONFLICT (source_id, %I) DO UPDATE SET manual = true WHERE NOT n.manual";

/*
 * Statement that counts the profiles that have vectors in the first store, and
 * those of them that have vectors of the same sections in the second one,
 * whose table of vectors is %s.
 */
static const char count_vectors_sql[] =
"SELECT count(*), count(*) FILTER (WHERE c.has_all)"
" FROM (SELECT bool_and(n.i IS NOT NULL) AS has_all"
" FROM (SELECT DISTINCT v.source_id AS s, v.%I AS i, v.section"
" FROM %V AS v) AS o"
" LEFT JOIN (SELECT DISTINCT v.source_id AS s, v.%I AS i, v.section"
" FROM %s AS v) AS n"
" ON n.s = o.s AND n.i = o.i AND n.section = o.section"
" GROUP BY o.s, o.i) AS c";

static const char copy_erased_sql[] =
"INSERT INTO %R (erased_at, reason, vectors, put_aside_at, fingerprint)"
" SELECT erased_at, reason, vectors, put_aside_at, fingerprint FROM %R";

static const char rename_sql[] = "ALTER TABLE %R RENAME TO %q";
static const char always_sql[] = "ALTER TABLE %R ENABLE ALWAYS TRIGGER %q";

/* SQL for a grantee, and for the end of a GRANT statement. */
#define ROLE_SQL(role) \
	"CASE " role " WHEN 0 THEN 'PUBLIC'" \
	" ELSE quote_ident(pg_get_userbyid(" role ")) END"
#define GRANTEE_SQL \
	ROLE_SQL("a.grantee") \
	", CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END"

/*
 * Query for the statements that revoke all privileges on table $1 from roles
 * other than the owner.
 */
static const char revoke_sql[] =
"SELECT DISTINCT format('REVOKE ALL ON TABLE %%s FROM %%s', c.oid::regclass, "
ROLE_SQL("a.grantee") ")"
" FROM pg_class AS c, aclexplode(c.relacl) AS a"
" WHERE c.oid = $1 AND a.grantee <> c.relowner";

/*
 * Query for the statements that give table $2 of the second store, once it has
 * the name of table $1 of the first one, what that table has: privileges,
 * row-level security, policies that table $2 does not have, and the default of
 * "delete_at" of NAME_aside.  Expressions of policies may contain the names of
 * tables of the first store.
 */
static const char copy_access_sql[] =
"SELECT format('GRANT %%s ON TABLE %%s TO %%s%%s', a.privilege_type,"
" $1::regclass, " GRANTEE_SQL ")"
" FROM pg_class AS c, aclexplode(c.relacl) AS a"
" WHERE c.oid = $1 AND a.grantee <> c.relowner"
" UNION ALL"
" SELECT format('GRANT %%s (%%I) ON TABLE %%s TO %%s%%s', a.privilege_type,"
" t.attname, $1::regclass, " GRANTEE_SQL ")"
" FROM pg_attribute AS t, aclexplode(t.attacl) AS a"
" WHERE t.attrelid = $1 AND t.attnum > 0 AND NOT t.attisdropped"
" UNION ALL"
" SELECT format('ALTER TABLE %%s ENABLE ROW LEVEL SECURITY', $1::regclass)"
" FROM pg_class AS c WHERE c.oid = $1 AND c.relrowsecurity"
" UNION ALL"
" SELECT format('ALTER TABLE %%s FORCE ROW LEVEL SECURITY', $1::regclass)"
" FROM pg_class AS c WHERE c.oid = $1 AND c.relforcerowsecurity"
" UNION ALL"
" SELECT format('CREATE POLICY %%I ON %%s AS %%s FOR %%s TO %%s%%s%%s',"
" p.polname, $1::regclass,"
" CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,"
" CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT'"
" WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,"
" (SELECT string_agg(" ROLE_SQL("r") ", ', ') FROM unnest(p.polroles) AS r),"
" ' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')',"
" ' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')"
" FROM pg_policy AS p WHERE p.polrelid = $1 AND NOT EXISTS"
" (SELECT FROM pg_policy AS n WHERE n.polrelid = $2 AND n.polname = p.polname)"
" UNION ALL"
" SELECT format('ALTER TABLE %%s ALTER COLUMN delete_at SET DEFAULT %%s',"
" $1::regclass, pg_get_expr(d.adbin, d.adrelid))"
" FROM pg_attrdef AS d JOIN pg_attribute AS t"
" ON t.attrelid = d.adrelid AND t.attnum = d.adnum"
" WHERE d.adrelid = $1 AND t.attname = 'delete_at'";

/*
 * Query that returns whether table of vectors $1 has a pgvector index, and
 * table of vectors $2 has no valid one.
 */
static const char lacks_index_sql[] =
"SELECT COALESCE(bool_or(i.indrelid = $1)"
" AND NOT bool_or(i.indrelid = $2 AND i.indisvalid),"
" false) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
" JOIN pg_am AS m ON m.oid = c.relam"
" WHERE i.indrelid IN ($1, $2) AND m.amname IN ('hnsw', 'ivfflat')";

/*
 * ------------------------------------------------------------------------
 * Both stores
 * ------------------------------------------------------------------------
 */

/* Positions of a store's tables in an array of their OIDs. */
enum
{
	VECTORS,
	PROFILES,
	HISTORY,
	ASIDE,
	ERASED,
	NTABLES
};

static void
find_tables(const HrflowStore *store, Oid *tables)
{
	tables[VECTORS] = RelationGetRelid(store->vectors);
	tables[PROFILES] = RelationGetRelid(store->profiles);
	tables[HISTORY] = hrflow_history_find(store);
	tables[ASIDE] = hrflow_aside_find(store);
	tables[ERASED] = hrflow_erased_find(store);
}

/*
 * Append to "statements" those that a query returns for one or two tables.
 * Reads the latest privileges and policies at every isolation level.
 */
static List *
add_statements(List *statements, const char *query, Oid first, Oid second)
{
	HrflowParameters parameters = {0};
	uint64		n;

	hrflow_store_add(&parameters, OIDOID, ObjectIdGetDatum(first));
	hrflow_store_add(&parameters, OIDOID, ObjectIdGetDatum(second));
	n = hrflow_store_execute_latest(hrflow_store_sql(NULL, query), &parameters);
	for (uint64 row = 0; row < n; row++)
		statements = lappend(statements, hrflow_store_value(row, 1));
	return statements;
}

/*
 * Serialize changes of the model of a store until the end of the transaction.
 * This is not a lock on the table: a session that waits here must not hold a
 * lock that keeps the other session from dropping the table.
 */
static void
lock_change(Oid vectors)
{
	LockDatabaseObject(RelationRelationId, vectors, 0, ExclusiveLock);
}

/*
 * Return the name of the second store's table of vectors, without its schema.
 * Throws 42622 if it is too long for a store.
 */
static char *
get_next_name(const HrflowStore *store)
{
	char	   *name = psprintf("%s" SUFFIX,
								RelationGetRelationName(store->vectors));

	(void) hrflow_store_profiles_name(name);
	return name;
}

/*
 * Return the relation that has the name of the second store, or InvalidOid.
 */
static Oid
find_next(const HrflowStore *store)
{
	return get_relname_relid(get_next_name(store),
							 RelationGetNamespace(store->vectors));
}

/*
 * Throw 55000, after the WARNING of hrflow_feeder_owns_all(), if the owner of
 * a tracked table has changed: such a table cannot be tracked for the other
 * store.
 */
static void
check_feeders(const HrflowStore *store, Oid function)
{
	if (!hrflow_feeder_owns_all(store, function))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot change the model of store %s",
						store->vectors_name),
				 errdetail("A table that feeds the store, or a partition or inheritance child of such a table, does not belong to the owner of the store."),
				 errhint("Change the owner of that table to the owner of the store.")));
}

static bool
feeds(const List *feeders, Oid table)
{
	ListCell   *cell;

	foreach(cell, feeders)
	{
		if (((const HrflowFeeder *) lfirst(cell))->table == table)
			return true;
	}
	return false;
}

/*
 * Append to "statements" those that track the tables that feed a store, except
 * the tables in "others", for the store "name" instead.  "feeders" and
 * "others" are results of hrflow_feeder_find(), which has locked the tables.
 *
 * Omits tables that are being untracked.  Throws 55000 if a table feeds the
 * store through several sets of keys.
 */
static List *
add_track_statements(List *statements, const HrflowStore *store,
					 const char *name, const List *feeders,
					 const List *others, Oid caller)
{
	int			i = 0;

	while (i < list_length(feeders))
	{
		const HrflowFeeder *first = list_nth(feeders, i);
		Oid			table = first->table;
		List	   *triggers = NIL;
		bool		is_represented = false;
		bool		has_same_keys = true;
		Relation	relation;

		for (; i < list_length(feeders) &&
			 ((HrflowFeeder *) list_nth(feeders, i))->table == table; i++)
		{
			HrflowFeeder *feeder = list_nth(feeders, i);

			triggers = lappend(triggers, feeder);
			is_represented = is_represented || feeder->represents;
			has_same_keys = has_same_keys &&
				hrflow_columns_same_keys(feeder->args, first->args);
		}
		if (!is_represented || feeds(others, table))
			continue;
		relation = relation_open(table, NoLock);
		if (!has_same_keys)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("triggers on table \"%s\" that feed store %s have different columns of identifiers or sources",
							RelationGetRelationName(relation),
							store->vectors_name),
					 errhint("To replace the triggers, call hrflow_track_table() for the table.")));
		statements = lappend(statements,
							 hrflow_release_statement(store, name, relation,
													  triggers, caller));
		relation_close(relation, NoLock);
	}
	return statements;
}

/*
 * Drop the triggers that feed a store only because they name it: they were
 * restored from a dump, which does not preserve their dependency on the store.
 * Once the store is renamed, hrflow_track_table() would not replace them.
 */
static void
drop_restored(const HrflowStore *store, const List *feeders)
{
	ListCell   *cell;

	foreach(cell, feeders)
	{
		const HrflowFeeder *feeder = lfirst(cell);

		if (!hrflow_feeder_is_of(feeder->trigger,
								 RelationGetRelid(store->vectors)))
			hrflow_feeder_drop(feeder);
	}
}

static void
execute_all(const List *statements)
{
	ListCell   *cell;

	foreach(cell, statements)
		hrflow_store_execute(lfirst(cell), NULL);
}

/*
 * Set each trigger that feeds the store to ENABLE ALWAYS if a trigger in
 * "feeders" on the same table and of the same type is set to ENABLE ALWAYS.
 */
static void
keep_always(const HrflowStore *store, Oid function, const List *feeders)
{
	ListCell   *outer;
	ListCell   *inner;

	foreach(outer, hrflow_feeder_find(store, function, InvalidOid, NoLock))
	{
		const HrflowFeeder *made = lfirst(outer);

		foreach(inner, feeders)
		{
			const HrflowFeeder *old = lfirst(inner);

			if (old->table == made->table && old->type == made->type &&
				old->enabled == TRIGGER_FIRES_ALWAYS)
				break;
		}
		if (inner != NULL)
			hrflow_store_execute(hrflow_store_sql(NULL, always_sql,
												  made->table,
												  made->trigger_name),
								 NULL);
	}
}

/*
 * Set search_path for statements that are executed while no store is open.
 * Returns the nest level to pass to AtEOXact_GUC(), which restores it.
 */
static int
fix_search_path(void)
{
	int			nestlevel = NewGUCNestLevel();

	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	return nestlevel;
}

/*
 * ------------------------------------------------------------------------
 * Beginning a change
 * ------------------------------------------------------------------------
 */

/*
 * Return the statement that creates the second store, with the quoted and
 * qualified name "name".  "vector_type" is the type of its vectors, or NULL
 * for that of the first store without its dimension.
 */
static char *
make_create_statement(const HrflowStore *store, const char *name,
					  const char *vector_type, Oid caller)
{
	static const char *const types[] = {
		[HRFLOW_LAYOUT_ARRAY] = "real[]",
		[HRFLOW_LAYOUT_VECTOR] = "vector",
		[HRFLOW_LAYOUT_HALFVEC] = "halfvec"
	};

	return hrflow_store_sql(store, create_sql,
							hrflow_catalog_function_name("hrflow_create_store",
														 caller),
							name,
							vector_type ? vector_type : types[store->layout],
							quote_literal_cstr(hrflow_kind_bare_name(store->kind,
																	 store->identifier_name)),
							store->kind->content);
}

/*
 * Revoke the privileges on the second store that default privileges have
 * granted to other roles.
 */
static void
revoke_defaults(const HrflowStore *next)
{
	Oid			tables[NTABLES];
	List	   *statements = NIL;

	find_tables(next, tables);
	for (int i = 0; i < NTABLES; i++)
		statements = add_statements(statements, revoke_sql, tables[i],
									InvalidOid);
	execute_all(statements);
}

/*
 * hrflow_change_model(store regclass, vector_type text) RETURNS regclass
 */
Datum
hrflow_change_model(PG_FUNCTION_ARGS)
{
	Oid			caller = fcinfo->flinfo->fn_oid;
	Oid			function = hrflow_feeder_function(caller);
	HrflowStore store;
	HrflowStore next;
	HrflowParameters untracked = {0};
	Oid			vectors;
	List	   *feeders;
	List	   *statements;
	const char *name;
	char	   *create;
	int			nestlevel;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be null", "store")));
	PreventCommandDuringRecovery("hrflow_change_model()");
	lock_change(PG_GETARG_OID(0));

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_OWN);
	hrflow_remote_check(&store);
	hrflow_store_check_manual(&store);
	vectors = find_next(&store);
	if (OidIsValid(vectors))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot change the model of store %s because relation %s exists",
						store.vectors_name,
						hrflow_store_relation_name(vectors)),
				 errhint("If a change has begun, complete it with hrflow_switch_model(), or give it up with hrflow_drop_store(%s).  Otherwise, rename the relation.",
						 quote_literal_cstr(hrflow_store_relation_name(vectors)))));
	feeders = hrflow_feeder_find(&store, function, InvalidOid,
								 ShareRowExclusiveLock);
	check_feeders(&store, function);
	name = hrflow_beside_name(get_namespace_name(RelationGetNamespace(store.vectors)),
							  RelationGetRelationName(store.vectors), SUFFIX);
	create = make_create_statement(&store, name, PG_ARGISNULL(1) ? NULL :
								   text_to_cstring(PG_GETARG_TEXT_PP(1)),
								   caller);
	statements = add_track_statements(NIL, &store, name, feeders, NIL, caller);
	hrflow_store_close(&store);

	nestlevel = fix_search_path();
	hrflow_store_execute(create, NULL);
	vectors = DatumGetObjectId(hrflow_store_datum(0, 1));
	execute_all(statements);
	AtEOXact_GUC(false, nestlevel);

	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_OWN);
	hrflow_store_open(&next, vectors, InvalidOid, HRFLOW_STORE_OWN);
	hrflow_store_execute_latest(hrflow_store_sql(&store, track_manual_sql,
												 next.profiles_name), NULL);
	hrflow_erased_untracked(&store, &untracked);
	hrflow_erased_repeat(&next, &untracked);
	keep_always(&next, function, feeders);
	revoke_defaults(&next);
	hrflow_store_close(&next);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_OID(vectors);
}

/*
 * ------------------------------------------------------------------------
 * Completing a change
 * ------------------------------------------------------------------------
 */

/*
 * State of a switch, which is kept after both stores have been closed.
 */
typedef struct Switching
{
	char	   *name;			/* quoted and qualified name of the store */
	char	   *bare_name;		/* name of its table of vectors */
	Oid			tables[NTABLES];	/* of the second store, or InvalidOid */
	List	   *copies;			/* statements that copy privileges and so on */
	List	   *feeders;		/* triggers that feed the stores */
	List	   *tracks;			/* statements that track the tables again */
	HrflowParameters untracked; /* result of hrflow_erased_untracked() */
	bool		lacks_index;	/* will the store lose its pgvector index? */
	bool		has_job;		/* did either store have an active job? */
	HrflowJob	job;
} Switching;

/*
 * Open the second store.  Throws 55000 if there is none, or if it differs from
 * the first one in more than its vectors.
 */
static void
open_next(const HrflowStore *store, HrflowStore *next)
{
	Oid			vectors = find_next(store);

	if (!OidIsValid(vectors))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the model of store %s is not being changed",
						store->vectors_name),
				 errdetail("There is no relation \"%s\" in the same schema.",
						   get_next_name(store)),
				 errhint("Call hrflow_change_model() first.")));
	hrflow_store_open(next, vectors, InvalidOid, HRFLOW_STORE_OWN);
	if (next->kind != store->kind || next->identifier != store->identifier)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("store %s cannot replace store %s",
						next->vectors_name, store->vectors_name),
				 errdetail("The stores have different types of content or different identifiers.")));
}

/*
 * Do enough of the profiles that have vectors in the first store have vectors
 * of the same sections in the second one?  If not, say so in a NOTICE.
 */
static bool
has_enough(const HrflowStore *store, const HrflowStore *next, double part)
{
	int64		n;
	int64		nready;

	hrflow_store_execute_latest(hrflow_store_sql(store, count_vectors_sql,
												 next->vectors_name), NULL);
	n = DatumGetInt64(hrflow_store_datum(0, 1));
	nready = DatumGetInt64(hrflow_store_datum(0, 2));
	if (n == 0 || (double) nready / n >= part)
		return true;
	ereport(NOTICE,
			(errmsg("store %s was not replaced", store->vectors_name),
			 errdetail("Only " INT64_FORMAT " of " INT64_FORMAT " profiles have vectors of the same sections in %s.",
					   nready, n, next->vectors_name),
			 errhint("Refresh %s with the same fields, or pass a lower \"part\".  Profiles that are in no table and were not tracked by hrflow_track() are never refreshed.",
					 next->vectors_name)));
	return false;
}

/*
 * Return the statements that give tables of the second store, once they have
 * been renamed, the privileges, and so on, of those of the first one.
 */
static List *
make_copies(const Oid *old, const Oid *new)
{
	List	   *statements = NIL;

	for (int i = 0; i < NTABLES; i++)
	{
		if (OidIsValid(old[i]) && OidIsValid(new[i]))
			statements = add_statements(statements, copy_access_sql, old[i],
										new[i]);
	}
	return statements;
}

/*
 * Does the second store lack an index that the first one has?
 */
static bool
has_no_index(Oid old, Oid new)
{
	HrflowParameters parameters = {0};

	hrflow_store_add(&parameters, OIDOID, ObjectIdGetDatum(old));
	hrflow_store_add(&parameters, OIDOID, ObjectIdGetDatum(new));
	hrflow_store_execute(lacks_index_sql, &parameters);
	return DatumGetBool(hrflow_store_datum(0, 1));
}

/*
 * Lock both stores and the tables that feed them, and find out what remains to
 * be done.  Also copy the record of erasures, track the profiles that
 * hrflow_track() has tracked in the first store, and drop restored triggers of
 * the second one.  The tables that feed the stores are locked first, as by a
 * statement that changes their rows.
 *
 * A table that feeds both stores will be tracked with its arguments for the
 * second one.  A table that feeds only the first store, because it was tracked
 * after the change had begun, will be tracked, too.
 */
static void
prepare_switch(const HrflowStore *store, const HrflowStore *next, Oid caller,
			   Switching *switching)
{
	Oid			function = hrflow_feeder_function(caller);
	Oid			tables[NTABLES];
	List	   *of_next;
	List	   *of_old;

	hrflow_store_check_manual(store);
	hrflow_store_check_manual(next);
	(void) hrflow_feeder_find(next, function, InvalidOid, AccessExclusiveLock);
	(void) hrflow_feeder_find(store, function, InvalidOid, AccessExclusiveLock);
	find_tables(store, tables);
	find_tables(next, switching->tables);
	for (int i = 0; i < NTABLES; i++)
	{
		if (OidIsValid(tables[i]))
			LockRelationOid(tables[i], AccessExclusiveLock);
		if (OidIsValid(switching->tables[i]))
			LockRelationOid(switching->tables[i], AccessExclusiveLock);
	}

	/* Another session may have tracked a table before we got the locks. */
	of_next = hrflow_feeder_find(next, function, InvalidOid,
								 AccessExclusiveLock);
	of_old = hrflow_feeder_find(store, function, InvalidOid,
								AccessExclusiveLock);
	check_feeders(store, function);
	check_feeders(next, function);

	if (OidIsValid(tables[ERASED]))
	{
		if (!OidIsValid(switching->tables[ERASED]))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("store %s has no usable table for its record of erasures",
							next->vectors_name),
					 errdetail("The record in %s would be lost.",
							   hrflow_store_relation_name(tables[ERASED])),
					 errhint("Drop store %s, and call hrflow_change_model() again.",
							 next->vectors_name)));
		hrflow_store_execute_latest(hrflow_store_sql(NULL, copy_erased_sql,
													 switching->tables[ERASED],
													 tables[ERASED]), NULL);
	}

	hrflow_erased_untracked(store, &switching->untracked);
	hrflow_store_execute_latest(hrflow_store_sql(store, track_manual_sql,
												 next->profiles_name), NULL);
	hrflow_restore_wanted(next, function);

	switching->name = store->vectors_name;
	switching->bare_name = pstrdup(RelationGetRelationName(store->vectors));
	switching->copies = make_copies(tables, switching->tables);
	switching->tracks =
		add_track_statements(add_track_statements(NIL, next, store->vectors_name,
												  of_next, NIL, caller),
							 store, store->vectors_name, of_old, of_next,
							 caller);
	switching->feeders = list_concat_copy(of_next, of_old);
	drop_restored(next, of_next);
	switching->lacks_index = has_no_index(tables[VECTORS],
										  switching->tables[VECTORS]);
	switching->has_job =
		hrflow_schedule_read(next, store->vectors_name, caller, &switching->job) ||
		hrflow_schedule_read(store, store->vectors_name, caller, &switching->job);
}

/*
 * Error context callback: replace the hint that suggests CASCADE.
 */
static void
add_hint(void *arg)
{
	if (geterrcode() == ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST)
		errhint("Drop these objects, call hrflow_switch_model(), and create them again, in a single transaction.");
}

/*
 * Drop the first store, and give its name to the tables of the second one.
 */
static void
drop_and_rename(const Switching *switching, Oid caller)
{
	ErrorContextCallback context;

	hrflow_context_push(&context, add_hint, NULL);
	hrflow_store_execute(hrflow_store_sql(NULL, drop_store_sql,
										  hrflow_catalog_function_name("hrflow_drop_store",
																	   caller),
										  switching->name), NULL);
	hrflow_context_pop(&context);
	for (int i = 0; i < NTABLES; i++)
	{
		Oid			table = switching->tables[i];
		int			length = strlen(switching->bare_name);

		if (OidIsValid(table))
			hrflow_store_execute(hrflow_store_sql(NULL, rename_sql, table,
												  psprintf("%s%s",
														   switching->bare_name,
														   get_rel_name(table) +
														   length + strlen(SUFFIX))),
								 NULL);
	}
}

/*
 * Replace the first store by the second one, after both have been closed.
 */
static void
replace_store(const Switching *switching, Oid caller)
{
	int			nestlevel = fix_search_path();
	HrflowStore store;

	drop_and_rename(switching, caller);
	execute_all(switching->copies);
	execute_all(switching->tracks);
	AtEOXact_GUC(false, nestlevel);

	hrflow_store_open(&store, switching->tables[VECTORS], InvalidOid,
					  HRFLOW_STORE_OWN);
	/* hrflow_track_table() has tracked again those that are still in a table. */
	hrflow_erased_repeat(&store, &switching->untracked);
	keep_always(&store, hrflow_feeder_function(caller), switching->feeders);
	if (switching->has_job)
		hrflow_schedule_again(&store, caller, &switching->job);
	else
		hrflow_schedule_forget(NULL, caller);
	hrflow_store_close(&store);
	if (switching->lacks_index)
		ereport(NOTICE,
				(errmsg("store %s no longer has a pgvector index",
						switching->name),
				 errhint("Execute the statement that this query returns: SELECT hrflow_index_statement(%s)",
						 quote_literal_cstr(switching->name))));
}

/*
 * hrflow_switch_model(store regclass, part double precision) RETURNS boolean
 */
Datum
hrflow_switch_model(PG_FUNCTION_ARGS)
{
	Oid			caller = fcinfo->flinfo->fn_oid;
	double		part = PG_GETARG_FLOAT8(1);
	Switching	switching = {0};
	HrflowStore store;
	HrflowStore next;
	bool		is_ready;

	if (isnan(part) || part < 0 || part > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be between 0 and 1", "part")));
	PreventCommandDuringRecovery("hrflow_switch_model()");
	lock_change(PG_GETARG_OID(0));

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_OWN);
	open_next(&store, &next);
	is_ready = has_enough(&store, &next, part);
	if (is_ready)
		prepare_switch(&store, &next, caller, &switching);
	hrflow_store_close(&next);
	hrflow_store_close(&store);
	if (is_ready)
		replace_store(&switching, caller);
	SPI_finish();
	PG_RETURN_BOOL(is_ready);
}
