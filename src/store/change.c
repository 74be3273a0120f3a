/*-------------------------------------------------------------------------
 *
 * change.c
 *		hrflow_change_model() and hrflow_switch_model(): replace the vectors of
 *		a store by those of another model.
 *
 * The first function creates a second store, NAME_next, which the same tables
 * feed.  While it is being filled, the vectors of the old model remain, and a
 * deleted person is erased from both stores.  The second function drops the
 * old store, and gives its name to the second one.
 *
 * Tables are created, altered and dropped while the stores are closed, as in
 * functions.c, because PostgreSQL refuses to do so in a security-restricted
 * operation, or with a table that is open.  None of these statements executes
 * code of the owner.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "store/match.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(hrflow_change_model);
PG_FUNCTION_INFO_V1(hrflow_switch_model);

/* Suffix of the second store, added to the name of the first one. */
#define SUFFIX "_next"

/* Number of tables that a store may have. */
#define NTABLES 5

/* Maximum dimension that hrflow_index_statement() accepts. */
#define MAX_INDEXED_DIMENSION 4000

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

static const char create_store_sql[] = "SELECT %s(%L, %L, %L, %L)";
static const char drop_store_sql[] = "SELECT %s(%L)";
static const char rename_table_sql[] = "ALTER TABLE %R RENAME TO %q";
static const char rename_index_sql[] = "ALTER INDEX %R RENAME TO %q";
static const char make_index_sql[] = "SELECT %s(%L, %L)";

static const char count_tracked_sql[] = "SELECT count(*) FROM %P";

/*
 * Track those profiles explicitly that the store with the table of profiles in
 * the first argument tracks explicitly.
 */
static const char track_manual_sql[] =
"INSERT INTO %P AS p (source_id, %I, manual)"
" SELECT o.source_id, o.%I, true FROM %R AS o"
" WHERE o.manual AND o.state <> 'unwanted' ORDER BY o.source_id, o.%I"
" ON CONFLICT (source_id, %I) DO UPDATE SET manual = true"
" WHERE NOT p.manual";

/*
 * By source, the profiles that another store, whose table of profiles is the
 * argument, does not track.
 */
static const char untracked_sql[] =
"SELECT p.source_id, array_agg(p.%I) FROM %P AS p"
" WHERE NOT EXISTS (SELECT FROM %R AS o"
" WHERE o.source_id = p.source_id AND o.%I = p.%I) GROUP BY p.source_id";

/*
 * Count the profiles that have vectors and satisfy a condition.
 */
static const char count_fetched_sql[] =
"SELECT count(*) FROM %P AS p WHERE p.state <> 'unwanted'"
" AND EXISTS (SELECT FROM %V AS v"
" WHERE v.source_id = p.source_id AND v.%I = p.%I)%s";
static const char also_next_sql[] =
" AND EXISTS (SELECT FROM %R AS n"
" WHERE n.source_id = p.source_id AND n.%I = p.%I)";

static const char keep_erased_sql[] =
"INSERT INTO %R (erased_at, reason, vectors, put_aside_at, fingerprint)"
" SELECT erased_at, reason, vectors, put_aside_at, fingerprint FROM %R";

/*
 * Record and count the profiles that have vectors in the table in the first
 * argument, or in the one in the second argument, which is SQL, and have none
 * in this store.
 */
static const char lost_sql[] =
"WITH lost AS MATERIALIZED (SELECT o.source_id, o.%I, count(*) AS n,"
" min(o.put_aside_at) AS put_aside_at"
" FROM (SELECT v.source_id, v.%I, NULL::timestamptz AS put_aside_at"
" FROM %R AS v%s) AS o"
" WHERE NOT EXISTS (SELECT FROM %V AS n"
" WHERE n.source_id = o.source_id AND n.%I = o.%I)"
" GROUP BY o.source_id, o.%I)%s SELECT count(*) FROM lost";
static const char also_aside_sql[] =
" UNION ALL SELECT a.source_id, a.%I, a.put_aside_at FROM %R AS a";

/*
 * Statements that copy what protects the table $1 to the table $2: the
 * privileges of roles other than the owner $3, the policies for which $2 has
 * none of the same name, and whether policies apply.  Policies come before
 * they are made to apply.
 */
static const char protection_sql[] =
"SELECT format('GRANT %%s%%s ON %%s TO %%s%%s', a.privilege_type,"
" CASE WHEN o.attname IS NOT NULL THEN format(' (%%I)', o.attname) END,"
" $2::regclass,"
" CASE WHEN a.grantee = 0 THEN 'PUBLIC'"
" ELSE quote_ident(pg_get_userbyid(a.grantee)) END,"
" CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END)"
" FROM (SELECT NULL AS attname, c.relacl AS acl"
" FROM pg_class AS c WHERE c.oid = $1"
" UNION ALL SELECT t.attname::text, t.attacl FROM pg_attribute AS t"
" JOIN pg_attribute AS n ON n.attrelid = $2 AND n.attname = t.attname"
" AND NOT n.attisdropped"
" WHERE t.attrelid = $1 AND t.attnum > 0 AND NOT t.attisdropped) AS o,"
" aclexplode(o.acl) AS a WHERE a.grantee <> $3"
" UNION ALL SELECT format('CREATE POLICY %%I ON %%s AS %%s FOR %%s TO %%s%%s%%s',"
" p.polname, $2::regclass,"
" CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,"
" CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT'"
" WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,"
" (SELECT string_agg(CASE WHEN r = 0 THEN 'PUBLIC'"
" ELSE quote_ident(pg_get_userbyid(r)) END, ', ')"
" FROM unnest(p.polroles) AS r),"
" ' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')',"
" ' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')"
" FROM pg_policy AS p WHERE p.polrelid = $1"
" AND NOT EXISTS (SELECT FROM pg_policy AS n"
" WHERE n.polrelid = $2 AND n.polname = p.polname)"
" UNION ALL SELECT format('ALTER TABLE %%s %%s ROW LEVEL SECURITY',"
" $2::regclass, s.what)"
" FROM pg_class AS c, LATERAL (VALUES (c.relrowsecurity, 'ENABLE'),"
" (c.relforcerowsecurity, 'FORCE')) AS s(is_set, what)"
" WHERE c.oid = $1 AND s.is_set";

/*
 * The indexes of the table $1 whose names begin with $2, and these names with
 * $3 instead.
 */
static const char indexes_sql[] =
"SELECT i.indexrelid, $3 || substr(c.relname, length($2) + 1)"
" FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
" WHERE i.indrelid = $1 AND starts_with(c.relname, $2)";

/*
 * The sections that an index of vectors of the table $1, and none of the table
 * $2, is restricted to.
 */
static const char indexed_sections_sql[] =
"SELECT substring(x.condition FROM '^[(]section = ''([^'']*)''::text[)]$')"
" FROM (SELECT i.indrelid, pg_get_expr(i.indpred, i.indrelid) AS condition"
" FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
" JOIN pg_am AS a ON a.oid = c.relam"
" WHERE i.indrelid IN ($1, $2) AND a.amname IN ('hnsw', 'ivfflat')) AS x"
" GROUP BY x.condition HAVING bool_and(x.indrelid = $1) ORDER BY x.condition";

/*
 * ------------------------------------------------------------------------
 * Tools
 * ------------------------------------------------------------------------
 */

/*
 * Return the name of a store's table of vectors with the suffix of the second
 * store.
 */
static char *
next_name(const HrflowStore *store)
{
	return psprintf("%s" SUFFIX, RelationGetRelationName(store->vectors));
}

static char *
qualify(const HrflowStore *store, const char *name)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(store->vectors)),
									  name);
}

/*
 * Check that all tables that were tracked for a store still belong to its
 * owner, because those that do not are not found.  Throws 55000.
 */
static void
check_owners(const HrflowStore *store, Oid function)
{
	Oid			lost = hrflow_feeder_find_lost(store, function);

	if (OidIsValid(lost))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot change the model of store %s: the owner of tracked table \"%s\" has changed",
						store->vectors_name, get_rel_name(lost)),
				 errhint("Change the owner of the table to the owner of the store, or drop the triggers by which the table feeds the store.")));
}

/*
 * Return the statements that let the tables that feed a store feed the store
 * "name" in the same way.  Locks these tables.
 */
static List *
track_statements(const HrflowStore *store, const char *name, Oid caller,
				 LOCKMODE lockmode)
{
	List	   *feeders = hrflow_feeder_find(store,
											 hrflow_feeder_function(caller),
											 InvalidOid, lockmode);
	List	   *of_table = NIL;
	List	   *statements = NIL;
	ListCell   *cell;

	foreach(cell, feeders)
	{
		const HrflowFeeder *feeder = lfirst(cell);
		ListCell   *next = lnext(feeders, cell);
		Relation	table;

		of_table = lappend(of_table, lfirst(cell));
		if (next != NULL &&
			((const HrflowFeeder *) lfirst(next))->table == feeder->table)
			continue;
		table = relation_open(feeder->table, NoLock);
		statements = lappend(statements,
							 hrflow_release_statement(name, table, of_table,
													  caller));
		relation_close(table, NoLock);
		of_table = NIL;
	}
	return statements;
}

static void
execute_all(const List *statements)
{
	ListCell   *cell;

	foreach(cell, statements)
		hrflow_store_execute(lfirst(cell), NULL);
}

/*
 * Set search_path to that of an open store until AtEOXact_GUC().  Returns the
 * nesting level.
 */
static int
set_search_path(void)
{
	int			nestlevel = NewGUCNestLevel();

	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	return nestlevel;
}

/*
 * ------------------------------------------------------------------------
 * Creating the second store
 * ------------------------------------------------------------------------
 */

/*
 * Return the type of a store's vectors without its dimension, as the argument
 * of hrflow_create_store().
 */
static const char *
general_type(const HrflowStore *store)
{
	switch (store->layout)
	{
		case HRFLOW_LAYOUT_ARRAY:
			return "real[]";
		case HRFLOW_LAYOUT_VECTOR:
			return "vector";
		case HRFLOW_LAYOUT_HALFVEC:
			return "halfvec";
	}
	pg_unreachable();
}

static void
check_partitioned(const HrflowStore *store)
{
	if (store->vectors->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ||
		store->profiles->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot create a second store beside store %s, which is partitioned",
						store->vectors_name),
				 errhint("Create the store %s and its partitions, let the same tables feed it, refresh it, and call hrflow_switch_model().",
						 qualify(store, next_name(store)))));
}

/*
 * hrflow_change_model(store regclass, vector_type text) RETURNS regclass
 */
Datum
hrflow_change_model(PG_FUNCTION_ARGS)
{
	Oid			caller = fcinfo->flinfo->fn_oid;
	Oid			vectors;
	Oid			profiles;
	HrflowStore store;
	char	   *name;
	char	   *next;
	char	   *create;
	List	   *statements;
	int64		n;
	int			nestlevel;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	PreventCommandDuringRecovery("hrflow_change_model()");
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_OWN);
	hrflow_remote_check(&store);
	hrflow_store_check_manual(&store);
	check_partitioned(&store);
	check_owners(&store, hrflow_feeder_function(caller));
	name = store.vectors_name;
	next = qualify(&store, next_name(&store));
	profiles = RelationGetRelid(store.profiles);
	create = hrflow_store_sql(&store, create_store_sql,
							  hrflow_catalog_function_name("hrflow_create_store",
														   caller),
							  next, PG_ARGISNULL(1) ? general_type(&store) :
							  text_to_cstring(PG_GETARG_TEXT_PP(1)),
							  hrflow_kind_bare_identifier(&store),
							  store.kind->content);
	statements = track_statements(&store, next, caller, AccessShareLock);
	hrflow_store_close(&store);

	hrflow_store_execute(create, NULL);
	vectors = DatumGetObjectId(hrflow_store_datum(0, 1));
	execute_all(statements);

	hrflow_store_open(&store, vectors, InvalidOid, HRFLOW_STORE_OWN);
	hrflow_store_execute(hrflow_store_sql(&store, track_manual_sql, profiles),
						 NULL);
	hrflow_store_execute(hrflow_store_sql(&store, count_tracked_sql), NULL);
	n = DatumGetInt64(hrflow_store_datum(0, 1));
	hrflow_store_close(&store);

	nestlevel = set_search_path();
	hrflow_schedule_move(name, next, caller);
	AtEOXact_GUC(false, nestlevel);
	ereport(NOTICE,
			(errmsg_plural("store %s will request " INT64_FORMAT " profile",
						   "store %s will request " INT64_FORMAT " profiles",
						   n, next, n)));
	SPI_finish();
	PG_RETURN_OID(vectors);
}

/*
 * ------------------------------------------------------------------------
 * Switching to the second store
 * ------------------------------------------------------------------------
 */

/*
 * The tables of a store, InvalidOid for those that it lacks, and the suffixes
 * of their names.
 */
typedef struct Tables
{
	Oid			oids[NTABLES];
	const char *suffixes[NTABLES];
} Tables;

static Tables
list_tables(const HrflowStore *store)
{
	Tables		tables = {
		.oids = {
			RelationGetRelid(store->vectors), RelationGetRelid(store->profiles),
			hrflow_history_find(store), hrflow_aside_find(store),
			hrflow_erased_find(store)
		},
		.suffixes = {"", "_profile", "_run", "_aside", "_erased"}
	};

	return tables;
}

/*
 * Check that each table that feeds the first store feeds the second one in the
 * same way.  From then on, these tables are locked against writers, whose
 * triggers could otherwise wait for us while we wait for them.  Throws 55000.
 */
static void
check_next(const HrflowStore *store, const HrflowStore *next, Oid caller)
{
	List	   *wanted;
	List	   *found;
	ListCell   *cell;

	check_owners(store, hrflow_feeder_function(caller));
	check_owners(next, hrflow_feeder_function(caller));
	wanted = track_statements(store, next->vectors_name, caller,
							  ShareRowExclusiveLock);
	found = track_statements(next, next->vectors_name, caller,
							 ShareRowExclusiveLock);
	foreach(cell, wanted)
	{
		const char *statement = lfirst(cell);
		bool		is_found = false;
		ListCell   *inner;

		foreach(inner, found)
			is_found = is_found || strcmp(lfirst(inner), statement) == 0;
		if (!is_found)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("store %s cannot replace store %s",
							next->vectors_name, store->vectors_name),
					 errdetail("A table that feeds store %s does not feed store %s in the same way.",
							   store->vectors_name, next->vectors_name),
					 errhint("Run: %s", statement)));
	}
}

/*
 * Track explicitly what the first store does, and erase profiles that it no
 * longer tracks, because hrflow_untrack() erased them from it.
 */
static void
follow(const HrflowStore *store, const HrflowStore *next)
{
	Oid			profiles = RelationGetRelid(store->profiles);
	SPITupleTable *untracked;
	uint64		n;

	hrflow_store_execute(hrflow_store_sql(next, track_manual_sql, profiles),
						 NULL);
	n = hrflow_store_execute(hrflow_store_sql(next, untracked_sql, profiles),
							 NULL);
	untracked = SPI_tuptable;
	for (uint64 i = 0; i < n; i++)
	{
		HrflowParameters parameters = {0};
		bool		is_null;

		hrflow_store_add(&parameters, TEXTOID,
						 SPI_getbinval(untracked->vals[i], untracked->tupdesc,
									   1, &is_null));
		hrflow_store_add(&parameters, TEXTARRAYOID,
						 SPI_getbinval(untracked->vals[i], untracked->tupdesc,
									   2, &is_null));
		hrflow_erase_profiles(next, &parameters);
	}
}

/*
 * Return the number of profiles that have vectors and satisfy a condition,
 * which is SQL.
 */
static int64
count_fetched(const HrflowStore *store, const char *condition)
{
	hrflow_store_execute(hrflow_store_sql(store, count_fetched_sql, condition),
						 NULL);
	return DatumGetInt64(hrflow_store_datum(0, 1));
}

/*
 * Check that this part of the profiles that have vectors in the first store
 * has vectors in the second one.  Throws 55000.
 */
static void
check_part(const HrflowStore *store, const HrflowStore *next, double part)
{
	int64		total = count_fetched(store, "");
	int64		fetched = count_fetched(store,
										hrflow_store_sql(store, also_next_sql,
														 RelationGetRelid(next->vectors)));

	if (fetched < part * total)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("store %s has vectors of only " INT64_FORMAT " of " INT64_FORMAT " profiles",
						next->vectors_name, fetched, total),
				 errdetail("The vectors of the others would be lost."),
				 errhint("Call hrflow_refresh() for store %s, or pass a smaller value of \"part\".",
						 next->vectors_name)));
}

/*
 * Keep the record of what was erased from the first store, and record and
 * report the profiles that will no longer have vectors.
 */
static void
note_lost(const HrflowStore *store, const HrflowStore *next,
		  const Tables *tables)
{
	Oid			aside = hrflow_aside_find(store);
	Oid			erased = hrflow_erased_find(store);
	int64		n;

	if (OidIsValid(erased))
	{
		if (!OidIsValid(hrflow_erased_find(next)))
			hrflow_erased_create(get_namespace_name(RelationGetNamespace(next->vectors)),
								 RelationGetRelationName(next->vectors));
		hrflow_store_execute(hrflow_store_sql(NULL, keep_erased_sql,
											  hrflow_erased_find(next), erased),
							 NULL);
	}
	hrflow_store_execute(hrflow_store_sql(next, lost_sql, tables->oids[0],
										  !OidIsValid(aside) ? "" :
										  hrflow_store_sql(next, also_aside_sql,
														   aside),
										  hrflow_erased_note_sql(next, "'model'",
																 "SELECT * FROM lost")),
						 NULL);
	n = DatumGetInt64(hrflow_store_datum(0, 1));
	if (n > 0)
		ereport(WARNING,
				(errmsg_plural("erased the vectors of " INT64_FORMAT " profile of store %s, of which there are none of the new model",
							   "erased the vectors of " INT64_FORMAT " profiles of store %s, of which there are none of the new model",
							   n, n, store->vectors_name)));
}

/*
 * Return statements for the time when the first store has been dropped: they
 * give the name of its table of vectors, and its suffixes, to the tables of
 * the second store and their indexes.
 */
static List *
rename_statements(const HrflowStore *next, const Tables *tables,
				  const char *name)
{
	List	   *statements = NIL;

	for (int i = 0; i < NTABLES; i++)
	{
		HrflowParameters parameters = {0};
		uint64		n;

		if (!OidIsValid(tables->oids[i]))
			continue;
		hrflow_store_add(&parameters, OIDOID,
						 ObjectIdGetDatum(tables->oids[i]));
		hrflow_store_add(&parameters, TEXTOID,
						 CStringGetTextDatum(RelationGetRelationName(next->vectors)));
		hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(name));
		n = hrflow_store_execute(indexes_sql, &parameters);
		for (uint64 j = 0; j < n; j++)
			statements = lappend(statements,
								 hrflow_store_sql(NULL, rename_index_sql,
												  DatumGetObjectId(hrflow_store_datum(j, 1)),
												  hrflow_store_value(j, 2)));
		statements = lappend(statements,
							 hrflow_store_sql(NULL, rename_table_sql,
											  tables->oids[i],
											  psprintf("%s%s", name,
													   tables->suffixes[i])));
	}
	return statements;
}

/*
 * Return statements that protect the tables of the second store like those of
 * the first one.
 */
static List *
protection_statements(const HrflowStore *store, const Tables *from,
					  const Tables *to)
{
	List	   *statements = NIL;

	for (int i = 0; i < NTABLES; i++)
	{
		HrflowParameters parameters = {0};
		uint64		n;

		if (!OidIsValid(from->oids[i]) || !OidIsValid(to->oids[i]))
			continue;
		hrflow_store_add(&parameters, OIDOID, ObjectIdGetDatum(from->oids[i]));
		hrflow_store_add(&parameters, OIDOID, ObjectIdGetDatum(to->oids[i]));
		hrflow_store_add(&parameters, OIDOID, ObjectIdGetDatum(store->owner));
		n = hrflow_store_execute(hrflow_store_sql(NULL, protection_sql),
								 &parameters);
		for (uint64 j = 0; j < n; j++)
			statements = lappend(statements, hrflow_store_value(j, 1));
	}
	return statements;
}

/*
 * Return queries for the statements that create the indexes of vectors which
 * the first store has and the second one lacks, as far as there are vectors to
 * be indexed.
 */
static List *
index_queries(const HrflowStore *store, const HrflowStore *next, Oid caller)
{
	HrflowParameters parameters = {0};
	SPITupleTable *sections;
	List	   *queries = NIL;
	uint64		n;

	hrflow_store_add(&parameters, OIDOID,
					 ObjectIdGetDatum(RelationGetRelid(store->vectors)));
	hrflow_store_add(&parameters, OIDOID,
					 ObjectIdGetDatum(RelationGetRelid(next->vectors)));
	n = hrflow_store_execute(indexed_sections_sql, &parameters);
	sections = SPI_tuptable;
	for (uint64 i = 0; i < n; i++)
	{
		char	   *section = SPI_getvalue(sections->vals[i],
										   sections->tupdesc, 1);
		int			dimension = section == NULL ? 0 :
		hrflow_index_dimension(next, section);

		if (dimension > 0 && dimension <= MAX_INDEXED_DIMENSION)
			queries = lappend(queries,
							  hrflow_store_sql(NULL, make_index_sql,
											   hrflow_catalog_function_name("hrflow_index_statement",
																			caller),
											   store->vectors_name, section));
	}
	return queries;
}

/*
 * Open the second store of an open store.  Throws 42P01 if there is none, and
 * 55000 if it has another kind of content or identifiers.
 */
static void
open_next(const HrflowStore *store, HrflowStore *next)
{
	char	   *name = next_name(store);
	Oid			vectors = get_relname_relid(name,
											RelationGetNamespace(store->vectors));

	if (!OidIsValid(vectors))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("store %s does not exist", qualify(store, name)),
				 errhint("Call hrflow_change_model() to create it.")));
	hrflow_store_open(next, vectors, InvalidOid, HRFLOW_STORE_OWN);
	if (next->kind != store->kind || next->identifier != store->identifier)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("store %s cannot replace store %s",
						next->vectors_name, store->vectors_name),
				 errdetail("They do not have the same content and identifiers.")));
}

/*
 * What remains to be executed when the stores have been closed.
 */
typedef struct Switch
{
	char	   *name;			/* of the first store */
	char	   *next_name;		/* of the second store */
	List	   *statements;		/* to be executed in this order */
	List	   *track;			/* statements that track tables again */
	List	   *indexes;		/* queries for statements to be returned */
} Switch;

/*
 * Prepare the switch of a store to the second one, if that has vectors of this
 * part of the profiles.
 */
static Switch
prepare_switch(Oid vectors, double part, Oid caller)
{
	Switch		result = {0};
	HrflowStore store;
	HrflowStore next;
	Tables		from;
	Tables		to;

	hrflow_store_open(&store, vectors, InvalidOid, HRFLOW_STORE_OWN);
	hrflow_remote_check(&store);
	open_next(&store, &next);
	hrflow_store_check_manual(&store);
	hrflow_store_check_manual(&next);
	check_part(&store, &next, part);
	check_next(&store, &next, caller);
	from = list_tables(&store);
	follow(&store, &next);
	note_lost(&store, &next, &from);
	to = list_tables(&next);

	result.name = store.vectors_name;
	result.next_name = next.vectors_name;
	result.statements =
		lappend(protection_statements(&store, &from, &to),
				hrflow_store_sql(NULL, drop_store_sql,
								 hrflow_catalog_function_name("hrflow_drop_store",
															  caller),
								 store.vectors_name));
	result.statements =
		list_concat(result.statements,
					rename_statements(&next, &to,
									  RelationGetRelationName(store.vectors)));
	result.track = track_statements(&next, store.vectors_name, caller,
									AccessShareLock);
	result.indexes = index_queries(&store, &next, caller);
	hrflow_store_close(&next);
	hrflow_store_close(&store);
	return result;
}

/*
 * hrflow_switch_model(store regclass, part double precision)
 *		RETURNS SETOF text
 */
Datum
hrflow_switch_model(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			caller = fcinfo->flinfo->fn_oid;
	double		part = PG_GETARG_FLOAT8(1);
	Switch		todo;
	int			nestlevel;
	ListCell   *cell;

	if (!(part >= 0 && part <= 1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between %d and %d", "part", 0, 1)));
	PreventCommandDuringRecovery("hrflow_switch_model()");
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	SPI_connect();
	todo = prepare_switch(PG_GETARG_OID(0), part, caller);
	nestlevel = set_search_path();
	execute_all(todo.statements);
	execute_all(todo.track);
	hrflow_schedule_move(todo.next_name, todo.name, caller);
	foreach(cell, todo.indexes)
	{
		bool		is_null = false;
		Datum		statement;

		hrflow_store_execute(lfirst(cell), NULL);
		statement = hrflow_store_datum(0, 1);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &statement,
							 &is_null);
	}
	AtEOXact_GUC(false, nestlevel);
	SPI_finish();
	return (Datum) 0;
}
