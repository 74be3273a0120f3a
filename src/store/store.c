/*-------------------------------------------------------------------------
 *
 * store.c
 *		Opens and closes stores, and executes SQL on their tables.
 *
 * Regardless of the caller, the tables of a store are read and written as
 * their owner, with a fixed search_path and in a security-restricted
 * operation, as in VACUUM.  Triggers and expressions that the owner has
 * attached to the tables thus run with the privileges of the owner, not with
 * those of the caller.  The privileges of the caller are checked first, except
 * for HRFLOW_STORE_FEED.  Searches by a caller to whom row-level security
 * applies are executed as the caller instead; see hrflow_store_open().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "compat.h"
#include "miscadmin.h"
#include "store/store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

/*
 * Suffix of the table of profiles, added to the name of the table of vectors.
 */
#define SUFFIX "_profile"

static const HrflowColumn vectors_columns[] = {
	{.name = "source_id", .type = TEXTOID},
	{.name = "section", .type = TEXTOID},
	{.name = "item", .type = INT4OID},
	{.name = "fetched_at", .type = TIMESTAMPTZOID}
};

static const HrflowColumn profiles_columns[] = {
	{.name = "source_id", .type = TEXTOID},
	{.name = "state", .type = TEXTOID},
	{.name = "due_at", .type = TIMESTAMPTZOID},
	{.name = "lease_until", .type = TIMESTAMPTZOID},
	{.name = "attempts", .type = INT4OID},
	{.name = "generation", .type = INT8OID},
	{.name = "refreshed_at", .type = TIMESTAMPTZOID},
	{.name = "http_status", .type = INT4OID},
	{.name = "last_error", .type = TEXTOID}
};

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

static const char explain_sql[] = "EXPLAIN %s"; /* a format for psprintf() */

/*
 * Return the quoted and qualified name of a relation.  Throws 42P01 if the
 * relation, which need not be locked, has been dropped.
 */
char *
hrflow_store_relation_name(Oid relation)
{
	char	   *schema = get_namespace_name(get_rel_namespace(relation));
	char	   *name = get_rel_name(relation);

	if (schema == NULL || name == NULL)
		hrflow_catalog_refuse_dropped(relation);
	return quote_qualified_identifier(schema, name);
}

/*
 * Make a statement, or a part of one, from a template.  A template may
 * contain:
 *
 *		%V	the table of vectors
 *		%P	the table of profiles
 *		%I	the name of the identifier's column
 *		%T	the type of the vectors
 *		%F	column "failed_at" of a row "p", or a null if there is none
 *		%s	the next argument, which is SQL
 *		%q	the next argument, as a quoted identifier
 *		%L	the next argument, as a literal
 *		%R	the qualified name of the relation whose OID is the next argument
 *		%%	a percent sign
 *
 * Only the first five require "store", which may otherwise be NULL.  The
 * result is palloc'd.  Throws 42P01 if the relation of %R has been dropped.
 */
char *
hrflow_store_sql(const HrflowStore *store, const char *template,...)
{
	StringInfoData sql;
	va_list		args;

	initStringInfo(&sql);
	va_start(args, template);
	for (const char *p = template; *p != '\0'; p++)
	{
		const char *part;

		if (*p != '%')
		{
			appendStringInfoCharMacro(&sql, *p);
			continue;
		}
		switch (*++p)
		{
			case 'V':
				part = store->vectors_name;
				break;
			case 'P':
				part = store->profiles_name;
				break;
			case 'I':
				part = store->identifier_name;
				break;
			case 'T':
				part = store->vector_type;
				break;
			case 'F':
				part = store->has_failed_at ? "p.failed_at" :
					"NULL::timestamptz";
				break;
			case 's':
				part = va_arg(args, const char *);
				break;
			case 'q':
				part = quote_identifier(va_arg(args, const char *));
				break;
			case 'L':
				part = quote_literal_cstr(va_arg(args, const char *));
				break;
			case 'R':
				part = hrflow_store_relation_name(va_arg(args, Oid));
				break;
			case '%':
				part = "%";
				break;
			default:
				elog(ERROR, "unknown placeholder in \"%s\"", template);
		}
		appendStringInfoString(&sql, part);
	}
	va_end(args);
	return sql.data;
}

/*
 * Append a parameter to the parameters of a statement.  The first parameter is
 * $1, the next one is $2, and so on.  A caller that passes a null must set
 * parameters->nulls itself.
 */
void
hrflow_store_add(HrflowParameters *parameters, Oid type, Datum value)
{
	int			n = parameters->n++;

	Assert(n < HRFLOW_MAX_PARAMETERS);
	parameters->types[n] = type;
	parameters->values[n] = value;
	parameters->nulls[n] = ' ';
}

/*
 * Return an empty collection of at most "max" rows.  The caller must keep
 * "types", the types of the columns, as long as the collection is used.
 */
HrflowRows *
hrflow_store_make_rows(const Oid *types, int ncolumns, int max)
{
	HrflowRows *rows = palloc0(sizeof(HrflowRows));

	rows->types = types;
	rows->ncolumns = ncolumns;
	rows->max = max;
	rows->values = palloc(sizeof(Datum *) * ncolumns);
	rows->nulls = palloc(sizeof(bool *) * ncolumns);
	for (int i = 0; i < ncolumns; i++)
	{
		rows->values[i] = palloc(sizeof(Datum) * Max(max, 1));
		rows->nulls[i] = palloc(sizeof(bool) * Max(max, 1));
	}
	return rows;
}

/*
 * Add a row to a collection.  "nulls" may be NULL if no value is null.  Values
 * passed by reference are not copied.
 */
void
hrflow_store_add_row(HrflowRows *rows, const Datum *values, const bool *nulls)
{
	int			n = rows->n++;

	Assert(n < rows->max);
	for (int i = 0; i < rows->ncolumns; i++)
	{
		rows->values[i][n] = values[i];
		rows->nulls[i][n] = nulls != NULL && nulls[i];
	}
}

/*
 * Add rows to the parameters of a statement, as one array per column.
 */
void
hrflow_store_add_rows(HrflowParameters *parameters, const HrflowRows *rows)
{
	for (int i = 0; i < rows->ncolumns; i++)
	{
		int			dims[] = {rows->n};
		int			lower[] = {1};
		int16		length;
		bool		by_value;
		char		alignment;
		ArrayType  *array;

		get_typlenbyvalalign(rows->types[i], &length, &by_value, &alignment);
		array = rows->n == 0 ? construct_empty_array(rows->types[i]) :
			construct_md_array(rows->values[i], rows->nulls[i], 1, dims, lower,
							   rows->types[i], length, by_value, alignment);
		hrflow_store_add(parameters, get_array_type(rows->types[i]),
						 PointerGetDatum(array));
	}
}

/*
 * Call a function in a subtransaction.  Returns NULL on success.  If the
 * function throws an error, rolls back the subtransaction, and returns the
 * error, allocated in the current memory context.  The rollback also closes
 * SPI levels that triggers have opened, which would keep us from ending the
 * transaction.
 */
ErrorData *
hrflow_store_try(void (*work) (void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		work(arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}

/*
 * Execute a statement, and return the number of rows.  If the statement
 * returns rows, they are in SPI_tuptable until SPI_finish(), unless they are
 * freed earlier.  Preserves the current memory context, because SPI would
 * leave its own context current, which in a procedure exists until the
 * procedure ends.
 */
uint64
hrflow_store_execute(const char *sql, const HrflowParameters *parameters)
{
	HrflowParameters none = {0};
	HrflowParameters *p = unconstify(HrflowParameters *,
									 parameters ? parameters : &none);
	MemoryContext context = CurrentMemoryContext;
	int			code = SPI_execute_with_args(sql, p->n, p->types, p->values,
											 p->nulls, false, 0);

	MemoryContextSwitchTo(context);
	if (code < 0)
		elog(ERROR, "SPI_execute_with_args failed: %s",
			 SPI_result_code_string(code));
	return SPI_processed;
}

/*
 * Plan a statement and initialize its execution, but do not execute it.
 */
void
hrflow_store_explain(const char *sql, const HrflowParameters *parameters)
{
	hrflow_store_execute(psprintf(explain_sql, sql), parameters);
}

/*
 * Prepare a statement.  The plan lives until SPI_finish(), unless it is kept
 * or freed earlier.
 */
SPIPlanPtr
hrflow_store_prepare(const char *sql, int nargs, Oid *types)
{
	MemoryContext context = CurrentMemoryContext;
	SPIPlanPtr	plan = SPI_prepare(sql, nargs, types);

	MemoryContextSwitchTo(context);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s",
			 SPI_result_code_string(SPI_result));
	return plan;
}

/*
 * Execute a prepared statement.
 */
void
hrflow_store_execute_plan(SPIPlanPtr plan, Datum *values, const char *nulls)
{
	MemoryContext context = CurrentMemoryContext;
	int			code = SPI_execute_plan(plan, values, nulls, false, 0);

	MemoryContextSwitchTo(context);
	if (code < 0)
		elog(ERROR, "SPI_execute_plan failed: %s",
			 SPI_result_code_string(code));
}

/*
 * Execute a prepared statement with the latest snapshot, at every isolation
 * level, so that it sees everything that has been committed.
 */
void
hrflow_store_execute_plan_latest(SPIPlanPtr plan, Datum *values,
								 const char *nulls)
{
	MemoryContext context = CurrentMemoryContext;
	int			code;

	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	code = SPI_execute_snapshot(plan, values, nulls, GetActiveSnapshot(),
								InvalidSnapshot, false, true, 0);
	PopActiveSnapshot();
	MemoryContextSwitchTo(context);
	if (code < 0)
		elog(ERROR, "SPI_execute_snapshot failed: %s",
			 SPI_result_code_string(code));
}

/*
 * Execute a statement with the latest snapshot, at every isolation level.
 * Returns the number of rows.
 */
uint64
hrflow_store_execute_latest(const char *sql,
							const HrflowParameters *parameters)
{
	HrflowParameters p = parameters ? *parameters : (HrflowParameters) {0};
	SPIPlanPtr	plan = hrflow_store_prepare(sql, p.n, p.types);

	hrflow_store_execute_plan_latest(plan, p.values, p.nulls);
	SPI_freeplan(plan);
	return SPI_processed;
}

/*
 * Raise the error for a null in a column that hrflow_create_store() declares
 * NOT NULL.
 */
void
hrflow_store_refuse_null(const char *column)
{
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("column \"%s\" contains null values", column),
			 errhint("Check both tables of the store.  Remove the rows in which the column is null, and set the column NOT NULL, as hrflow_create_store() does.")));
}

/*
 * Return a value in the last statement's result as text, or NULL if it is
 * null.
 */
char *
hrflow_store_value_or_null(uint64 row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						column);
}

/*
 * Return a value in the last statement's result as text.  Throws 22004 if the
 * value is null, which is possible if a table lacks a NOT NULL constraint that
 * hrflow_create_store() adds.
 */
char *
hrflow_store_value(uint64 row, int column)
{
	char	   *value = hrflow_store_value_or_null(row, column);

	if (value == NULL)
		hrflow_store_refuse_null(SPI_fname(SPI_tuptable->tupdesc, column));
	return value;
}

/*
 * Like hrflow_store_value(), but return a Datum.  If the type is passed by
 * reference, as 8-byte types are on 32-bit machines, the Datum points into
 * the result, and is valid only as long as the result.
 */
Datum
hrflow_store_datum(uint64 row, int column)
{
	bool		is_null;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row],
									  SPI_tuptable->tupdesc, column, &is_null);

	if (is_null)
		hrflow_store_refuse_null(SPI_fname(SPI_tuptable->tupdesc, column));
	return value;
}

/*
 * ------------------------------------------------------------------------
 * Opening
 * ------------------------------------------------------------------------
 */

/*
 * Return the name of the table of profiles that belongs to a table of
 * vectors.  Throws 42622 if it is too long.
 */
char *
hrflow_store_profiles_name(const char *vectors)
{
	if (strlen(vectors) + strlen(SUFFIX) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("store name \"%s\" is too long", vectors),
				 errdetail("The name, including the suffix \"" SUFFIX "\", must be shorter than %d bytes.",
						   NAMEDATALEN)));
	return psprintf("%s" SUFFIX, vectors);
}

HRFLOW_NORETURN static void
refuse_without_profiles(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("\"%s\" is not a vector store", name),
			 errdetail("There is no table \"%s" SUFFIX "\" in the same schema.", name),
			 errhint("Use hrflow_create_store() to create a store.  If \"%s" SUFFIX "\" was renamed or dropped, restore it.", name)));
}

/*
 * Find a store's table of profiles by its name, which is the name of the table
 * of vectors with a suffix.  Throws 42P01 if either table does not exist.
 */
Oid
hrflow_store_profiles(Oid vectors)
{
	char	   *name = get_rel_name(vectors);
	Oid			profiles;

	if (name == NULL)
		hrflow_catalog_refuse_dropped(vectors);
	profiles = get_relname_relid(psprintf("%s" SUFFIX, name),
								 get_rel_namespace(vectors));
	if (!OidIsValid(profiles))
		refuse_without_profiles(name);
	return profiles;
}

/*
 * Return a column of a relation, or NULL if there is none with this name.
 */
static Form_pg_attribute
find_column(Relation relation, const char *name)
{
	TupleDesc	desc = RelationGetDescr(relation);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);

		if (!column->attisdropped && strcmp(NameStr(column->attname), name) == 0)
			return column;
	}
	return NULL;
}

HRFLOW_NORETURN static void
refuse_shape(Relation relation, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("\"%s\" is not a table of a vector store",
					RelationGetRelationName(relation)),
			 errdetail_internal("%s", detail),
			 errhint("Use hrflow_create_store() to create a store.")));
}

/*
 * Check that a table of a store has a column of the given type, or of any
 * vector type if "type" is InvalidOid.  Returns the number of the column.
 * Throws 42809.
 */
AttrNumber
hrflow_store_check_column(Relation relation, const char *name, Oid type)
{
	Form_pg_attribute column = find_column(relation, name);
	HrflowLayout layout;

	if (column == NULL)
		refuse_shape(relation,
					 psprintf(_("The table has no column \"%s\"."), name));
	if (OidIsValid(type) ? column->atttypid != type :
		!hrflow_layout_find(column->atttypid, &layout))
		refuse_shape(relation,
					 psprintf(_("Column \"%s\" has type %s."), name,
							  format_type_be(column->atttypid)));
	return column->attnum;
}

static void
check_kind(Relation relation)
{
	char		kind = relation->rd_rel->relkind;

	if (kind == RELKIND_FOREIGN_TABLE)
		hrflow_remote_check_table(relation);
	if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE)
		refuse_shape(relation, _("The relation is not a table."));
}

/*
 * Check the columns of the table of vectors, and set the fields of the store
 * that depend on them.
 */
static void
check_vectors(HrflowStore *store)
{
	Form_pg_attribute vector;

	check_kind(store->vectors);
	for (int i = 0; i < lengthof(vectors_columns); i++)
		hrflow_store_check_column(store->vectors, vectors_columns[i].name,
								  vectors_columns[i].type);

	store->kind = hrflow_kind_of(store->vectors, &store->identifier);
	store->identifier_name = store->kind->identifiers[store->identifier];
	hrflow_store_check_column(store->vectors, store->identifier_name, TEXTOID);

	vector = TupleDescAttr(RelationGetDescr(store->vectors),
						   hrflow_store_check_column(store->vectors, "vector",
													 InvalidOid) - 1);
	store->vector_type = format_type_extended(vector->atttypid,
											  vector->atttypmod,
											  FORMAT_TYPE_TYPEMOD_GIVEN |
											  FORMAT_TYPE_FORCE_QUALIFY);
	(void) hrflow_layout_find(vector->atttypid, &store->layout);
}

/*
 * Does a table of a store have this optional column?  User-supplied tables may
 * lack it.  Throws 42809 if the column has another type.
 */
static bool
has_column(Relation relation, const char *name, Oid type)
{
	if (find_column(relation, name) == NULL)
		return false;
	hrflow_store_check_column(relation, name, type);
	return true;
}

/*
 * Like has_column(), but for a column with a common name.  A column of another
 * type is ignored, because a user may have added it for another purpose.
 */
static bool
is_column(Relation relation, const char *name, Oid type)
{
	Form_pg_attribute column = find_column(relation, name);

	return column != NULL && column->atttypid == type;
}

/*
 * Check the owner and the columns of the table of profiles, and set the
 * fields of the store that depend on them.
 */
static void
check_profiles(HrflowStore *store)
{
	check_kind(store->profiles);
	if (store->profiles->rd_rel->relowner != store->owner)
		refuse_shape(store->profiles,
					 psprintf(_("Table \"%s\" has a different owner."),
							  RelationGetRelationName(store->vectors)));
	for (int i = 0; i < lengthof(profiles_columns); i++)
		hrflow_store_check_column(store->profiles, profiles_columns[i].name,
								  profiles_columns[i].type);
	hrflow_store_check_column(store->profiles, store->identifier_name,
							  TEXTOID);
	store->has_manual = has_column(store->profiles, "manual", BOOLOID);
	store->has_failed_at = has_column(store->profiles, "failed_at",
									  TIMESTAMPTZOID);
	store->has_erased_at = has_column(store->profiles, "erased_at",
									  TIMESTAMPTZOID);
	if (store->kind->reading != NULL)
	{
		hrflow_store_check_column(store->profiles, "content_hash", TEXTOID);
		hrflow_store_check_column(store->profiles, "sent_hash", TEXTOID);
		store->has_content = true;
	}
	store->has_fetched_with =
		is_column(store->profiles, "dimension", INT4OID) &&
		is_column(store->profiles, "sections", TEXTARRAYOID) &&
		is_column(store->profiles, "account", TEXTOID);
}

/*
 * Check that the store has the column "manual", which records whether a
 * profile was tracked explicitly.  Throws 42809.
 */
void
hrflow_store_check_manual(const HrflowStore *store)
{
	if (!store->has_manual)
		refuse_shape(store->profiles,
					 psprintf(_("The table has no column \"%s\"."), "manual"));
}

/*
 * Throw the error for a caller who is not the owner of a table of a store,
 * with SQLSTATE 42501.
 */
HRFLOW_NORETURN static void
refuse_caller(Relation relation)
{
	Oid			owner = relation->rd_rel->relowner;
	char	   *name = GetUserNameFromId(owner, false);

	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("must be owner of store %s",
					hrflow_store_relation_name(RelationGetRelid(relation))),
			 errdetail("Superusers and members of the owner's role are not exempt."),
			 hrflow_compat_can_set_role(GetSessionUserId(), owner) ?
			 errhint("Run SET ROLE %s first.", quote_identifier(name)) :
			 errhint("Ask the owner of the store, %s, to call the function.",
					 quote_identifier(name))));
}

/*
 * Check that the caller has the privileges on a table that "access" requires
 * and, for HRFLOW_STORE_READ and HRFLOW_STORE_WRITE, that row-level security
 * does not apply to the caller.  Throws 42501.
 */
static void
check_access(Relation relation, HrflowStoreAccess access)
{
	Oid			relid = RelationGetRelid(relation);
	AclMode		mode = ACL_SELECT;

	if (access == HRFLOW_STORE_FEED)
		return;					/* checked by the trigger */
	if (access == HRFLOW_STORE_OWN)
	{
		if (GetUserId() != relation->rd_rel->relowner)
			refuse_caller(relation);
		return;
	}
	if (access == HRFLOW_STORE_WRITE)
		mode |= ACL_INSERT | ACL_UPDATE | ACL_DELETE;
	if (pg_class_aclmask(relid, GetUserId(), mode, ACLMASK_ALL) != mode)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE,
					   RelationGetRelationName(relation));
	if (access != HRFLOW_STORE_RANK &&
		check_enable_rls(relid, InvalidOid, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("query would be affected by row-level security policy for table \"%s\"",
						RelationGetRelationName(relation)),
				 errhint("Access the table directly instead of calling the function.")));
}

/*
 * Open a store.  "vectors" is its table of vectors.  "profiles" is its table
 * of profiles, or InvalidOid if that table has the usual name.  Until
 * hrflow_store_close(), or the end of the (sub)transaction, the current user
 * is the owner of the store, and search_path is "pg_catalog, pg_temp".  For
 * HRFLOW_STORE_RANK, the table of profiles is not opened, and the current user
 * remains the caller if row-level security applies to the caller.
 *
 * The operation is security-restricted even if the caller is the owner: after
 * SET ROLE, a trigger could otherwise execute RESET ROLE and continue with the
 * privileges of the session user.  The restriction also prevents deferred
 * triggers, which would fire after the store is closed.  It allows everything
 * else that we do to a store, such as creating and dropping triggers.  The
 * exceptions are hrflow_create_store() and the DROP TABLE of
 * hrflow_drop_store(), which therefore run without the restriction: a
 * temporary table cannot be created in a security-restricted operation, and an
 * open table cannot be dropped.  Neither of them executes code of the owner.
 *
 * Before a commit, the store must be closed, because a new transaction starts
 * without the restriction.
 *
 * Throws 42P01, 42809 and 42501; also 0A000 if a table is a foreign table or,
 * for HRFLOW_STORE_WRITE, has rows on other servers.
 */
void
hrflow_store_open(HrflowStore *store, Oid vectors, Oid profiles,
				  HrflowStoreAccess access)
{
	bool		with_profiles = access != HRFLOW_STORE_RANK;

	memset(store, 0, sizeof(HrflowStore));
	if (with_profiles && !OidIsValid(profiles))
		profiles = hrflow_store_profiles(vectors);
	store->vectors = hrflow_catalog_open(vectors);
	store->owner = store->vectors->rd_rel->relowner;
	check_access(store->vectors, access);
	if (with_profiles)
	{
		store->profiles = try_relation_open(profiles, AccessShareLock);
		if (store->profiles == NULL)
			refuse_without_profiles(RelationGetRelationName(store->vectors));
		check_access(store->profiles, access);
	}

	/*
	 * Names are compared with names in the arguments of triggers, so all
	 * names must be quoted in the same way.
	 */
	store->saved_nestlevel = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	if (quote_all_identifiers)
		(void) set_config_option("quote_all_identifiers", "off",
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
	check_vectors(store);
	if (with_profiles)
		check_profiles(store);
	if (access == HRFLOW_STORE_WRITE)
		hrflow_remote_check(store);

	store->vectors_name =
		hrflow_store_relation_name(RelationGetRelid(store->vectors));
	if (with_profiles)
		store->profiles_name =
			hrflow_store_relation_name(RelationGetRelid(store->profiles));

	/*
	 * Readers to whom row-level security applies rank only the rows that they
	 * may see: policies are evaluated for them, but with the search_path set
	 * above.
	 *
	 * Otherwise, policies are bypassed even if they are forced on the owner,
	 * as in foreign-key checks, because keeping a store up to date requires
	 * seeing all rows.  For HRFLOW_STORE_READ and HRFLOW_STORE_WRITE,
	 * check_access() has thrown an error if row-level security applies to the
	 * caller.
	 */
	GetUserIdAndSecContext(&store->saved_user, &store->saved_context);
	if (access == HRFLOW_STORE_RANK &&
		check_enable_rls(vectors, InvalidOid, true) == RLS_ENABLED)
		SetUserIdAndSecContext(store->saved_user, store->saved_context |
							   SECURITY_RESTRICTED_OPERATION);
	else
		SetUserIdAndSecContext(store->owner, store->saved_context |
							   SECURITY_RESTRICTED_OPERATION |
							   SECURITY_NOFORCE_RLS);
}

/*
 * Close a store.  Locks are kept until the end of the transaction.
 */
void
hrflow_store_close(HrflowStore *store)
{
	AtEOXact_GUC(false, store->saved_nestlevel);
	SetUserIdAndSecContext(store->saved_user, store->saved_context);
	if (store->profiles != NULL)
		relation_close(store->profiles, NoLock);
	relation_close(store->vectors, NoLock);
}
