/*-------------------------------------------------------------------------
 *
 * store.c
 *		Stores: made, opened, filled by hand, looked at.
 *
 * Whoever calls, a store's tables are read and written as their owner, with a
 * fixed search_path and as a security-restricted operation, as VACUUM does:
 * triggers, policies and expressions that the owner has put on them are the
 * owner's to run, never the caller's.  What the caller may do is checked
 * first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/tuptable.h"
#include "compat.h"
#include "funcapi.h"
#include "ask/ask.h"
#include "miscadmin.h"
#include "store/store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

PG_FUNCTION_INFO_V1(hrflow_create_store);
PG_FUNCTION_INFO_V1(hrflow_drop_store);
PG_FUNCTION_INFO_V1(hrflow_track);
PG_FUNCTION_INFO_V1(hrflow_mark_due);
PG_FUNCTION_INFO_V1(hrflow_untrack);
PG_FUNCTION_INFO_V1(hrflow_retry);
PG_FUNCTION_INFO_V1(hrflow_store_failures);
PG_FUNCTION_INFO_V1(hrflow_store_status);

/* What the name of the table of profiles has more. */
#define SUFFIX "_profile"

/* A column that a store must have. */
typedef struct Column
{
	const char *name;
	Oid			type;			/* InvalidOid: see is_vector_type() */
} Column;

static const Column vectors_columns[] = {
	{"source_id", TEXTOID},
	{"section", TEXTOID},
	{"item", INT4OID},
	{"vector", InvalidOid},
	{"fetched_at", TIMESTAMPTZOID}
};

static const Column profiles_columns[] = {
	{"source_id", TEXTOID},
	{"state", TEXTOID},
	{"due_at", TIMESTAMPTZOID},
	{"lease_until", TIMESTAMPTZOID},
	{"attempts", INT4OID},
	{"generation", INT8OID},
	{"refreshed_at", TIMESTAMPTZOID},
	{"http_status", INT4OID},
	{"last_error", TEXTOID}
};

static const char *const identifier_names[] = {
	[HRFLOW_BY_ID] = "profile_id",
	[HRFLOW_BY_REFERENCE] = "profile_reference",
	[HRFLOW_BY_EMAIL] = "profile_email"
};

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

/*
 * A statement about a store: %V is the table of vectors, %P that of profiles,
 * %I the identifier's column and %T the type of a vector.
 */
char *
hrflow_store_sql(const HrflowStore *store, const char *template)
{
	StringInfoData sql;

	initStringInfo(&sql);
	for (const char *p = template; *p != '\0'; p++)
	{
		if (*p != '%')
			appendStringInfoCharMacro(&sql, *p);
		else
			switch (*++p)
			{
				case 'V':
					appendStringInfoString(&sql, store->vectors_name);
					break;
				case 'P':
					appendStringInfoString(&sql, store->profiles_name);
					break;
				case 'I':
					appendStringInfoString(&sql, store->identifier_name);
					break;
				case 'T':
					appendStringInfoString(&sql, store->vector_type);
					break;
				default:
					elog(ERROR, "unknown placeholder in \"%s\"", template);
			}
	}
	return sql.data;
}

/*
 * Add a parameter of a statement: $1, $2 and so on.
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
 * Do some work in a subtransaction.  Returns NULL, or the error, when
 * nothing of it is left: not even the levels of SPI that a trigger of the
 * owner's was at, which would keep us from ending the transaction.
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
 * Execute a statement.  Returns the number of rows, which are in
 * SPI_tuptable when it returns rows: until SPI_finish(), unless they are
 * freed.  The memory context stays the caller's; SPI would leave its own,
 * which a procedure keeps for as long as it runs.
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

HRFLOW_NORETURN static void
refuse_null(int column)
{
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("column \"%s\" of a store must not be null",
					SPI_fname(SPI_tuptable->tupdesc, column)),
			 errhint("Set the column NOT NULL, as hrflow_create_store() does.")));
}

/*
 * A value of the last statement's result as text, or NULL.
 */
char *
hrflow_store_value_or_null(uint64 row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						column);
}

/*
 * The same of what is never null in a store that we made.  A person may have
 * made the tables without NOT NULL: then it throws 22004.
 */
char *
hrflow_store_value(uint64 row, int column)
{
	char	   *value = hrflow_store_value_or_null(row, column);

	if (value == NULL)
		refuse_null(column);
	return value;
}

/*
 * The same as it is, in the result's memory where it is not passed by value.
 */
Datum
hrflow_store_datum(uint64 row, int column)
{
	bool		is_null;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row],
									  SPI_tuptable->tupdesc, column, &is_null);

	if (is_null)
		refuse_null(column);
	return value;
}

/*
 * ------------------------------------------------------------------------
 * Opening
 * ------------------------------------------------------------------------
 */

/*
 * The table of profiles that goes with a table of vectors, by its name.
 */
Oid
hrflow_store_profiles(Oid vectors)
{
	char	   *name = get_rel_name(vectors);
	Oid			profiles = InvalidOid;

	if (name != NULL)
		profiles = get_relname_relid(psprintf("%s" SUFFIX, name),
									 get_rel_namespace(vectors));
	if (!OidIsValid(profiles))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("\"%s\" is not a store of vectors",
						name ? name : psprintf("%u", vectors)),
				 errdetail("There is no table \"%s" SUFFIX "\" beside it.",
						   name ? name : psprintf("%u", vectors)),
				 errhint("Make a store with hrflow_create_store().")));
	return profiles;
}

/*
 * Is this a type that vectors are kept in: real[], or pgvector's vector or
 * halfvec?
 */
static bool
is_vector_type(Oid type)
{
	Oid			extension = getExtensionOfObject(TypeRelationId, type);
	char	   *name;

	if (type == FLOAT4ARRAYOID)
		return true;
	if (!OidIsValid(extension) ||
		extension != get_extension_oid("vector", true))
		return false;
	name = format_type_extended(type, -1, FORMAT_TYPE_FORCE_QUALIFY);
	name = strrchr(name, '.');
	return strcmp(name, ".vector") == 0 || strcmp(name, ".halfvec") == 0;
}

/*
 * Find a column, or NULL.
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
			 errmsg("\"%s\" is not a table of a store of vectors",
					RelationGetRelationName(relation)),
			 errdetail_internal("%s", detail),
			 errhint("Make a store with hrflow_create_store().")));
}

static Form_pg_attribute
check_column(Relation relation, const char *name, Oid type)
{
	Form_pg_attribute column = find_column(relation, name);

	if (column == NULL)
		refuse_shape(relation,
					 psprintf(_("It has no column \"%s\"."), name));
	if (OidIsValid(type) ? column->atttypid != type :
		!is_vector_type(column->atttypid))
		refuse_shape(relation,
					 psprintf(_("Its column \"%s\" has the type %s."), name,
							  format_type_be(column->atttypid)));
	return column;
}

/*
 * Check the shape of both tables, and learn what differs between stores.
 */
static void
check_shape(HrflowStore *store)
{
	Relation	relations[] = {store->vectors, store->profiles};
	Form_pg_attribute vector;

	for (int i = 0; i < lengthof(relations); i++)
	{
		char		kind = relations[i]->rd_rel->relkind;

		if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE)
			refuse_shape(relations[i], _("It is not a table."));
	}
	if (store->profiles->rd_rel->relowner != store->owner)
		refuse_shape(store->profiles,
					 psprintf(_("Its owner is not that of \"%s\"."),
							  RelationGetRelationName(store->vectors)));

	for (int i = 0; i < lengthof(vectors_columns); i++)
		check_column(store->vectors, vectors_columns[i].name,
					 vectors_columns[i].type);
	for (int i = 0; i < lengthof(profiles_columns); i++)
		check_column(store->profiles, profiles_columns[i].name,
					 profiles_columns[i].type);

	store->identifier = HRFLOW_BY_ID;
	while (store->identifier < HRFLOW_BY_EMAIL &&
		   find_column(store->vectors,
					   identifier_names[store->identifier]) == NULL)
		store->identifier++;
	store->identifier_name = identifier_names[store->identifier];
	check_column(store->vectors, store->identifier_name, TEXTOID);
	check_column(store->profiles, store->identifier_name, TEXTOID);

	vector = find_column(store->vectors, "vector");
	store->vector_type = format_type_extended(vector->atttypid,
											  vector->atttypmod,
											  FORMAT_TYPE_TYPEMOD_GIVEN |
											  FORMAT_TYPE_FORCE_QUALIFY);
	store->has_manual = find_column(store->profiles, "manual") != NULL;
	if (store->has_manual)
		check_column(store->profiles, "manual", BOOLOID);
	store->has_failed_at = find_column(store->profiles, "failed_at") != NULL;
	if (store->has_failed_at)
		check_column(store->profiles, "failed_at", TIMESTAMPTZOID);
}

/*
 * Who tracks marks whether it was by hand; the store must have where.
 */
void
hrflow_store_check_manual(const HrflowStore *store)
{
	if (!store->has_manual)
		refuse_shape(store->profiles,
					 psprintf(_("It has no column \"%s\"."), "manual"));
}

/*
 * The caller is not the owner of a table of a store.
 */
HRFLOW_NORETURN static void
refuse_caller(Relation relation)
{
	Oid			owner = relation->rd_rel->relowner;
	char	   *name = GetUserNameFromId(owner, false);

	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("must be owner of store %s",
					quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)),
											   RelationGetRelationName(relation))),
			 errdetail("Its owner's triggers would run as the caller."),
			 hrflow_compat_can_set_role(GetSessionUserId(), owner) ?
			 errhint("SET ROLE %s first.", quote_identifier(name)) :
			 errhint("Have its owner, %s, do it.", quote_identifier(name))));
}

/*
 * May the caller do this with a table?
 */
static void
check_access(Relation relation, HrflowStoreAccess access)
{
	Oid			relid = RelationGetRelid(relation);
	AclMode		mode = access == HRFLOW_STORE_READ ? ACL_SELECT :
	ACL_SELECT | ACL_INSERT | ACL_UPDATE | ACL_DELETE;

	if (access == HRFLOW_STORE_FEED)
		return;					/* the trigger has checked */
	if (access == HRFLOW_STORE_OWN)
	{
		if (GetUserId() != relation->rd_rel->relowner)
			refuse_caller(relation);
		return;
	}
	if (pg_class_aclmask(relid, GetUserId(), mode, ACLMASK_ALL) != mode)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE,
					   RelationGetRelationName(relation));
	if (check_enable_rls(relid, InvalidOid, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("row-level security of table \"%s\" applies to you",
						RelationGetRelationName(relation)),
				 errhint("Read and write the table itself.")));
}

/*
 * Open a store whose table of vectors is given, and of profiles too where it
 * has another name than usual.  Until hrflow_store_close(), or the end of the
 * (sub)transaction, the current user is the store's owner and search_path is
 * PostgreSQL's own catalog.
 *
 * The operation is restricted for the owner as well: who has become him by SET
 * ROLE could be made somebody else again by RESET ROLE in a trigger.  That also
 * refuses deferred triggers, which would fire when this is over.  Of what is
 * done to a store, restriction hinders nothing: triggers may be made and
 * dropped under it.  hrflow_create_store() and the DROP TABLE of
 * hrflow_drop_store() are outside, for a temporary table may not be made under
 * it, nor one dropped that is open; neither runs anything of the owner's.
 *
 * Whoever commits must close first, for a transaction begins unrestricted.
 *
 * Throws 42P01, 42809 and 42501.
 */
void
hrflow_store_open(HrflowStore *store, Oid vectors, Oid profiles,
				  HrflowStoreAccess access)
{
	if (!OidIsValid(profiles))
		profiles = hrflow_store_profiles(vectors);
	store->vectors = relation_open(vectors, AccessShareLock);
	store->profiles = relation_open(profiles, AccessShareLock);
	store->owner = store->vectors->rd_rel->relowner;

	check_access(store->vectors, access);
	check_access(store->profiles, access);

	/*
	 * Names are compared with those in triggers, so they must be quoted in
	 * one way.
	 */
	store->saved_nestlevel = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	if (quote_all_identifiers)
		(void) set_config_option("quote_all_identifiers", "off",
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
	check_shape(store);

	store->vectors_name =
		quote_qualified_identifier(get_namespace_name(RelationGetNamespace(store->vectors)),
								   RelationGetRelationName(store->vectors));
	store->profiles_name =
		quote_qualified_identifier(get_namespace_name(RelationGetNamespace(store->profiles)),
								   RelationGetRelationName(store->profiles));

	/*
	 * Policies that are forced on the owner are not asked, as foreign keys do
	 * not: who keeps a store in step must see all that is wanted.  Whether
	 * one applies to the caller was asked above.
	 */
	GetUserIdAndSecContext(&store->saved_user, &store->saved_context);
	SetUserIdAndSecContext(store->owner, store->saved_context |
						   SECURITY_RESTRICTED_OPERATION |
						   SECURITY_NOFORCE_RLS);
}

/*
 * Close it.  The locks stay until the transaction's end.
 */
void
hrflow_store_close(HrflowStore *store)
{
	AtEOXact_GUC(false, store->saved_nestlevel);
	SetUserIdAndSecContext(store->saved_user, store->saved_context);
	relation_close(store->profiles, NoLock);
	relation_close(store->vectors, NoLock);
}

/*
 * ------------------------------------------------------------------------
 * Making and dropping
 * ------------------------------------------------------------------------
 */

/*
 * The type that is meant by the argument "vector_type".
 */
static char *
choose_vector_type(const char *wanted)
{
	bool		is_auto = strcmp(wanted, "auto") == 0;
	char	   *end;
	long		dimension;
	const char *name = NULL;

	if (strcmp(wanted, "real[]") == 0)
		return pstrdup(wanted);
	if (is_auto || strncmp(wanted, "vector", 6) == 0)
		name = "vector";
	else if (strncmp(wanted, "halfvec", 7) == 0)
		name = "halfvec";
	if (name != NULL && !is_auto && wanted[strlen(name)] != '\0')
	{
		dimension = wanted[strlen(name)] == '(' ?
			strtol(wanted + strlen(name) + 1, &end, 10) : 0;
		if (dimension < 1 || dimension > 16000 || strcmp(end, ")") != 0)
			name = NULL;
	}
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid vector_type: \"%s\"", wanted),
				 errhint("Use auto, real[], vector, vector(n), halfvec or halfvec(n).")));

	if (hrflow_store_execute("SELECT pg_catalog.quote_ident(n.nspname)"
							 " FROM pg_catalog.pg_extension e"
							 " JOIN pg_catalog.pg_namespace n"
							 " ON n.oid OPERATOR(pg_catalog.=) e.extnamespace"
							 " WHERE e.extname OPERATOR(pg_catalog.=) 'vector'",
							 NULL) > 0)
		return psprintf("%s.%s", hrflow_store_value(0, 1),
						is_auto ? "vector" : wanted);
	if (is_auto)
		return pstrdup("real[]");
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("type \"%s\" needs the extension \"vector\" in this database",
					name),
			 errhint("CREATE EXTENSION vector, or use real[].")));
}

static const char *const create_statements[] = {
	"CREATE TABLE %V ("
	" source_id text NOT NULL,"
	" %I text NOT NULL,"
	" section text NOT NULL,"
	" item integer NOT NULL,"
	" vector %T NOT NULL,"
	" fetched_at timestamptz NOT NULL DEFAULT now(),"
	" PRIMARY KEY (source_id, %I, section, item))",

	/* Floats do not compress. */
	"ALTER TABLE %V ALTER COLUMN vector SET STORAGE EXTERNAL",

	/*
	 * Room on each page for the version of a row that a lease makes, which no
	 * index is told of.
	 */
	"CREATE TABLE %P ("
	" source_id text NOT NULL,"
	" %I text NOT NULL,"
	" state text NOT NULL DEFAULT 'due'"
	" CHECK (state IN ('due', 'ok', 'missing', 'gone', 'failed')),"
	" due_at timestamptz DEFAULT now(),"
	" lease_until timestamptz,"
	" attempts integer NOT NULL DEFAULT 0,"
	" generation bigint NOT NULL DEFAULT 0,"
	" refreshed_at timestamptz,"
	" http_status integer,"
	" last_error text,"
	" failed_at timestamptz,"
	" manual boolean NOT NULL DEFAULT true,"
	" PRIMARY KEY (source_id, %I)) WITH (fillfactor = 80)",

	/* What is to be claimed; what is not well; which error is the last. */
	"CREATE INDEX ON %P (due_at) WHERE due_at IS NOT NULL",
	"CREATE INDEX ON %P (state, source_id, %I)"
	" WHERE state IN ('missing', 'gone', 'failed')",
	"CREATE INDEX ON %P (failed_at DESC NULLS LAST) WHERE last_error IS NOT NULL",

	"COMMENT ON TABLE %V IS"
	" 'vectors of HrFlow profiles, kept fresh by hrflow_refresh()'",
	"COMMENT ON TABLE %P IS"
	" 'state of the profiles whose vectors are kept; see hrflow_store_status()'"
};

/*
 * hrflow_create_store(name text, vector_type text, identifier text)
 *		RETURNS regclass
 *
 * As the caller, who becomes the owner.
 */
Datum
hrflow_create_store(PG_FUNCTION_ARGS)
{
	text	   *name = PG_GETARG_TEXT_PP(0);
	char	   *wanted_type = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *wanted_identifier = text_to_cstring(PG_GETARG_TEXT_PP(2));
	RangeVar   *table = makeRangeVarFromNameList(textToQualifiedNameList(name));
	Oid			namespace = RangeVarGetCreationNamespace(table);
	char	   *schema = get_namespace_name(namespace);
	HrflowStore store;

	if (strlen(table->relname) + strlen(SUFFIX) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("name of the store is too long"),
				 errdetail("With \"" SUFFIX "\" it must have less than %d bytes.",
						   NAMEDATALEN)));
	store.identifier_name = NULL;
	for (int i = 0; i < lengthof(identifier_names); i++)
	{
		if (strcmp(wanted_identifier, identifier_names[i] +
				   strlen("profile_")) == 0)
			store.identifier_name = identifier_names[i];
	}
	if (store.identifier_name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid identifier: \"%s\"", wanted_identifier),
				 errhint("Use id, reference or email.")));

	store.vectors_name = quote_qualified_identifier(schema, table->relname);
	store.profiles_name =
		quote_qualified_identifier(schema,
								   psprintf("%s" SUFFIX, table->relname));

	SPI_connect();
	store.saved_nestlevel = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	store.vector_type = choose_vector_type(wanted_type);
	for (int i = 0; i < lengthof(create_statements); i++)
		hrflow_store_execute(hrflow_store_sql(&store, create_statements[i]),
							 NULL);
	AtEOXact_GUC(false, store.saved_nestlevel);
	SPI_finish();

	PG_RETURN_OID(get_relname_relid(table->relname, namespace));
}

/*
 * hrflow_drop_store(store regclass) RETURNS void
 *
 * As the caller, who must be the owner.
 */
Datum
hrflow_drop_store(PG_FUNCTION_ARGS)
{
	HrflowStore store;
	char	   *sql;

	PreventCommandDuringRecovery("hrflow_drop_store()");
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_OWN);
	(void) hrflow_track_drop_triggers(&store, fcinfo->flinfo->fn_oid,
									  InvalidOid);
	sql = hrflow_store_sql(&store, "DROP TABLE %V, %P");
	hrflow_schedule_forget(&store, fcinfo->flinfo->fn_oid);
	hrflow_store_close(&store);
	hrflow_store_execute(sql, NULL);
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * ------------------------------------------------------------------------
 * Tracking by hand
 * ------------------------------------------------------------------------
 */

/*
 * An argument that is an array of identifiers, each of which is something.
 */
ArrayType *
hrflow_store_identifiers(FunctionCallInfo fcinfo, int argno)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(argno);
	Datum	   *values;
	bool	   *nulls;
	int			n;

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a one-dimensional array", "profile_ids")));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls,
					  &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i] || VARSIZE_ANY_EXHDR(DatumGetPointer(values[i])) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s must not contain nulls or empty strings",
							"profile_ids"),
					 errdetail("Element %d is one.", i + 1)));
	}
	return array;
}

/*
 * Execute statements about some profiles: $1 is the source, $2 the
 * identifiers.  Returns the number of rows of the first one.
 */
static uint64
change_profiles(FunctionCallInfo fcinfo, const char *const *templates,
				int ntemplates, bool needs_manual)
{
	HrflowStore store;
	HrflowParameters parameters = {0};
	uint64		nrows = 0;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be null",
						PG_ARGISNULL(0) ? "store" :
						PG_ARGISNULL(1) ? "source_id" : "profile_ids")));
	if (VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(1)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", "source_id")));

	hrflow_store_add(&parameters, TEXTOID, PG_GETARG_DATUM(1));
	hrflow_store_add(&parameters, TEXTARRAYOID,
					 PointerGetDatum(hrflow_store_identifiers(fcinfo, 2)));

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid,
					  HRFLOW_STORE_WRITE);
	if (needs_manual)
		hrflow_store_check_manual(&store);
	for (int i = 0; i < ntemplates; i++)
	{
		uint64		n = hrflow_store_execute(hrflow_store_sql(&store,
															  templates[i]),
											 &parameters);

		if (i == 0)
			nrows = n;
	}
	hrflow_store_close(&store);
	SPI_finish();
	return nrows;
}

/*
 * hrflow_track(store regclass, source_id text, profile_ids text[])
 *		RETURNS bigint
 */
Datum
hrflow_track(PG_FUNCTION_ARGS)
{
	static const char *const templates[] = {

		/*
		 * Rows that are there are not changed, nor counted, but locked: else
		 * a DELETE could erase them before the next statement.
		 */
		"INSERT INTO %P AS p (source_id, %I, state, due_at, attempts,"
		" generation, manual)"
		" SELECT $1, k.i, 'due', clock_timestamp(), 0, 0, true"
		" FROM (SELECT DISTINCT i FROM unnest($2) AS i) AS k ORDER BY k.i"
		" ON CONFLICT (source_id, %I) DO UPDATE SET manual = true WHERE false",

		"UPDATE %P AS p SET manual = true"
		" WHERE p.source_id = $1 AND p.%I = ANY ($2) AND NOT p.manual",

		/* Wanted again. */
		"UPDATE %P AS p SET state = 'due', due_at = clock_timestamp(),"
		" attempts = 0, generation = p.generation + 1"
		" WHERE p.source_id = $1 AND p.%I = ANY ($2) AND p.state = 'gone'"
	};

	PG_RETURN_INT64(change_profiles(fcinfo, templates, lengthof(templates),
									true));
}

/*
 * hrflow_mark_due(store regclass, source_id text, profile_ids text[])
 *		RETURNS bigint
 */
Datum
hrflow_mark_due(PG_FUNCTION_ARGS)
{
	static const char *const templates[] = {
		"WITH locked AS MATERIALIZED"
		" (SELECT p.%I AS i FROM %P AS p"
		" WHERE p.source_id = $1 AND p.%I = ANY ($2) ORDER BY p.%I FOR UPDATE)"
		" UPDATE %P AS p SET due_at = clock_timestamp(), attempts = 0,"
		" generation = p.generation + 1,"
		" state = CASE p.state WHEN 'missing' THEN 'missing' ELSE 'due' END"
		" FROM locked WHERE p.source_id = $1 AND p.%I = locked.i"
	};

	PG_RETURN_INT64(change_profiles(fcinfo, templates, lengthof(templates),
									false));
}

/*
 * hrflow_untrack(store regclass, source_id text, profile_ids text[])
 *		RETURNS bigint
 */
Datum
hrflow_untrack(PG_FUNCTION_ARGS)
{
	static const char *const templates[] = {
		"WITH locked AS MATERIALIZED"
		" (SELECT p.%I AS i FROM %P AS p"
		" WHERE p.source_id = $1 AND p.%I = ANY ($2) ORDER BY p.%I FOR UPDATE)"
		" DELETE FROM %P AS p USING locked"
		" WHERE p.source_id = $1 AND p.%I = locked.i",

		"DELETE FROM %V AS v WHERE v.source_id = $1 AND v.%I = ANY ($2)"
	};

	PG_RETURN_INT64(change_profiles(fcinfo, templates, lengthof(templates),
									false));
}

/*
 * hrflow_retry(store regclass) RETURNS bigint
 */
Datum
hrflow_retry(PG_FUNCTION_ARGS)
{
	HrflowStore store;
	uint64		n;

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid,
					  HRFLOW_STORE_WRITE);
	n = hrflow_store_execute(hrflow_store_sql(&store,
											  "WITH locked AS MATERIALIZED"
											  " (SELECT p.source_id AS s, p.%I AS i FROM %P AS p"
											  " WHERE p.state = 'failed'"
											  " ORDER BY p.source_id, p.%I FOR UPDATE)"
											  " UPDATE %P AS p SET state = 'due',"
											  " due_at = clock_timestamp(), attempts = 0"
											  " FROM locked WHERE p.source_id = locked.s"
											  " AND p.%I = locked.i AND p.state = 'failed'"),
							 NULL);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_INT64(n);
}

/*
 * ------------------------------------------------------------------------
 * Looking
 * ------------------------------------------------------------------------
 */

/*
 * Return the rows of a query about the store in the first argument.
 */
static void
return_query(FunctionCallInfo fcinfo, const char *template)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	HrflowStore store;
	uint64		n;

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_READ);
	n = hrflow_store_execute(hrflow_store_sql(&store, template), NULL);
	for (uint64 i = 0; i < n; i++)
		tuplestore_puttuple(rsinfo->setResult, SPI_tuptable->vals[i]);
	hrflow_store_close(&store);
	SPI_finish();
}

/*
 * hrflow_store_failures(store regclass)
 *		RETURNS TABLE (source_id text, profile_id text, state text,
 *					   attempts int, http_status int, last_error text,
 *					   refreshed_at timestamptz)
 */
Datum
hrflow_store_failures(PG_FUNCTION_ARGS)
{
	return_query(fcinfo,
				 "SELECT source_id, %I, state, attempts, http_status,"
				 " last_error, refreshed_at FROM %P"
				 " WHERE state IN ('missing', 'failed')"
				 " ORDER BY state, source_id, %I");
	return (Datum) 0;
}

/*
 * When pg_cron last ran the store's job, and how that ended: "values" and
 * "nulls" of two columns.
 */
static void
get_last_run(HrflowStore *store, Datum *values, bool *nulls)
{
	HrflowParameters parameters = {0};
	bool		is_null;
	char	   *status;

	nulls[0] = nulls[1] = true;
	if (!OidIsValid(get_extension_oid("pg_cron", true)))
		return;
	hrflow_store_execute("SELECT has_schema_privilege('cron', 'USAGE')"
						 " AND has_table_privilege('cron.job', 'SELECT')"
						 " AND has_table_privilege('cron.job_run_details', 'SELECT')",
						 NULL);
	if (strcmp(hrflow_store_value(0, 1), "t") != 0)
		return;

	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(hrflow_schedule_job(store)));
	if (hrflow_store_execute("SELECT d.start_time, d.status"
							 " FROM cron.job_run_details AS d"
							 " JOIN cron.job AS j ON j.jobid = d.jobid"
							 " WHERE j.jobname = $1 AND d.start_time IS NOT NULL"
							 " ORDER BY d.runid DESC LIMIT 1",
							 &parameters) == 0)
		return;
	values[0] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
							  &is_null);
	nulls[0] = is_null;
	status = hrflow_store_value_or_null(0, 2);
	nulls[1] = status == NULL;
	if (status != NULL)
		values[1] = CStringGetTextDatum(status);
}

/*
 * What hrflow_store_status() counts.
 */
typedef struct Counts
{
	int64		tracked;
	int64		due;
	int64		leased;
	int64		ok;
	int64		failed;
	int64		missing;
	int64		gone;
	int64		last_minute;
	int64		last_hour;
	TimestampTz oldest;			/* of the due ones; DT_NOEND: none */
} Counts;

static void
count_profile(Counts *counts, Datum state, Datum *times, bool *nulls,
			  TimestampTz now)
{
	char	   *text = VARDATA_ANY(DatumGetPointer(state));
	int			length = VARSIZE_ANY_EXHDR(DatumGetPointer(state));
	TimestampTz due = DatumGetTimestampTz(times[0]);
	bool		leased = !nulls[1] && DatumGetTimestampTz(times[1]) > now;

	counts->tracked++;
	counts->ok += length == 2 && memcmp(text, "ok", 2) == 0;
	counts->gone += length == 4 && memcmp(text, "gone", 4) == 0;
	counts->failed += length == 6 && memcmp(text, "failed", 6) == 0;
	counts->missing += length == 7 && memcmp(text, "missing", 7) == 0;
	counts->leased += leased;
	if (!leased && !nulls[0] && due <= now)
	{
		counts->due++;
		counts->oldest = Min(counts->oldest, due);
	}
	if (!nulls[2])
	{
		int64		age = now - DatumGetTimestampTz(times[2]);

		counts->last_minute += age < USECS_PER_MINUTE;
		counts->last_hour += age < USECS_PER_HOUR;
	}
}

/*
 * Count the profiles of a table, or of one partition.  A query that counts all
 * this takes four times as long; one for each count, from an index, does too
 * unless the table was vacuumed a moment ago.
 */
static void
count_profiles(Counts *counts, Oid relid)
{
	static const char *const time_columns[] = {"due_at", "lease_until",
	"refreshed_at"};
	Relation	relation = table_open(relid, AccessShareLock);
	TimestampTz now = GetCurrentTimestamp();
	AttrNumber	state_column;
	AttrNumber	numbers[lengthof(time_columns)];
	AttrNumber	last;
	TableScanDesc scan;
	TupleTableSlot *slot;

	if (relation->rd_rel->relkind == RELKIND_RELATION)
	{
		last = state_column = check_column(relation, "state", TEXTOID)->attnum;
		for (int i = 0; i < lengthof(time_columns); i++)
		{
			numbers[i] = check_column(relation, time_columns[i],
									  TIMESTAMPTZOID)->attnum;
			last = Max(last, numbers[i]);
		}
		slot = table_slot_create(relation, NULL);
		scan = table_beginscan(relation, GetActiveSnapshot(), 0, NULL);
		while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
		{
			Datum		times[lengthof(time_columns)];
			bool		nulls[lengthof(time_columns)];
			struct varlena *state;

			CHECK_FOR_INTERRUPTS();
			slot_getsomeattrs(slot, last);
			for (int i = 0; i < lengthof(time_columns); i++)
			{
				times[i] = slot->tts_values[numbers[i] - 1];
				nulls[i] = slot->tts_isnull[numbers[i] - 1];
			}
			if (slot->tts_isnull[state_column - 1])
				continue;
			state = PG_DETOAST_DATUM_PACKED(slot->tts_values[state_column - 1]);
			count_profile(counts, PointerGetDatum(state), times, nulls, now);
		}
		table_endscan(scan);
		ExecDropSingleTupleTableSlot(slot);
	}
	table_close(relation, NoLock);
}

/*
 * The error of the profile that failed last, or NULL.
 */
static char *
get_last_error(const HrflowStore *store)
{
	const char *template = store->has_failed_at ?
	"SELECT last_error FROM %P WHERE last_error IS NOT NULL"
	" ORDER BY failed_at DESC NULLS LAST LIMIT 1" :
	"SELECT max(last_error) FROM %P";

	if (hrflow_store_execute(hrflow_store_sql(store, template), NULL) == 0)
		return NULL;
	return hrflow_store_value_or_null(0, 1);
}

/*
 * hrflow_store_status(store regclass), one row; see the SQL script.
 */
Datum
hrflow_store_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Counts		counts = {.oldest = DT_NOEND};
	Interval	time_due = {0};
	HrflowStore store;
	char	   *error;
	Datum		values[15];
	bool		nulls[15] = {false};
	int			n = 0;
	ListCell   *cell;

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_READ);
	foreach(cell, find_all_inheritors(RelationGetRelid(store.profiles),
									  AccessShareLock, NULL))
		count_profiles(&counts, lfirst_oid(cell));
	error = get_last_error(&store);

	values[n++] = Int64GetDatum(counts.tracked);
	values[n++] = Int64GetDatum(counts.due);
	values[n++] = Int64GetDatum(counts.leased);
	values[n++] = Int64GetDatum(counts.ok);
	values[n++] = Int64GetDatum(counts.failed);
	values[n++] = Int64GetDatum(counts.missing);
	values[n++] = Int64GetDatum(counts.gone);
	nulls[n] = counts.oldest == DT_NOEND;
	values[n++] = TimestampTzGetDatum(counts.oldest);
	values[n++] = Int64GetDatum(counts.last_minute);
	values[n++] = Int64GetDatum(counts.last_hour);
	values[n++] = Int64GetDatum(counts.due);	/* a request each */
	nulls[n] = counts.last_minute == 0;
	if (counts.last_minute > 0)
		time_due.time = (double) counts.due / counts.last_minute *
			USECS_PER_MINUTE;
	values[n++] = IntervalPGetDatum(&time_due);
	nulls[n] = error == NULL;
	values[n++] = error == NULL ? (Datum) 0 : CStringGetTextDatum(error);
	get_last_run(&store, values + n, nulls + n);
	Assert(n + 2 == rsinfo->setDesc->natts);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);

	hrflow_store_close(&store);
	SPI_finish();
	return (Datum) 0;
}
