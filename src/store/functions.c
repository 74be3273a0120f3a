/*-------------------------------------------------------------------------
 *
 * functions.c
 *		Implements the SQL functions that create and drop stores, change which
 *		profiles are tracked or due, and show the state of stores.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "store/store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/varlena.h"

PG_FUNCTION_INFO_V1(hrflow_create_store);
PG_FUNCTION_INFO_V1(hrflow_drop_store);
PG_FUNCTION_INFO_V1(hrflow_track);
PG_FUNCTION_INFO_V1(hrflow_mark_due);
PG_FUNCTION_INFO_V1(hrflow_untrack);
PG_FUNCTION_INFO_V1(hrflow_retry);
PG_FUNCTION_INFO_V1(hrflow_store_failures);
PG_FUNCTION_INFO_V1(hrflow_store_status);

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

static const char find_pgvector_sql[] =
"SELECT pg_catalog.quote_ident(n.nspname)"
" FROM pg_catalog.pg_extension e"
" JOIN pg_catalog.pg_namespace n"
" ON n.oid OPERATOR(pg_catalog.=) e.extnamespace"
" WHERE e.extname OPERATOR(pg_catalog.=) 'vector'";

/*
 * Parts of the statements below, and additional statements, for stores whose
 * contents are read from columns.
 */
static const char section_default_sql[] = " DEFAULT %L";
static const char content_states_sql[] = ", 'empty'";
static const char content_columns_sql[] = " content_hash text, sent_hash text,";
static const char *const create_content_sql[] = {
	"CREATE INDEX ON %P (content_hash) WHERE content_hash IS NOT NULL",
	"CREATE INDEX ON %P (sent_hash) WHERE sent_hash IS NOT NULL"
};

/*
 * Statement that creates the table of vectors.  %s is the DEFAULT clause of
 * the column "section", or empty.
 */
static const char create_vectors_sql[] =
"CREATE TABLE %V ("
" source_id text NOT NULL,"
" %I text NOT NULL,"
" section text NOT NULL%s,"
" item integer NOT NULL,"
" vector %T NOT NULL,"
" fetched_at timestamptz NOT NULL DEFAULT now(),"
" PRIMARY KEY (source_id, %I, section, item))";

/*
 * Statement that creates the table of profiles.  The arguments are additional
 * states and additional columns.  The fillfactor leaves space on each page for
 * a new version of every row, so that leases can be set by HOT updates: the
 * rows of a page are often leased at the same time.  (Most updates that
 * write results cannot be HOT, because they change due_at, which is indexed.)
 */
static const char create_profiles_sql[] =
"CREATE TABLE %P ("
" source_id text NOT NULL,"
" %I text NOT NULL,"
" state text NOT NULL DEFAULT 'due'"
" CHECK (state IN ('due', 'ok', 'missing', 'gone', 'failed', 'unwanted'%s)),"
" due_at timestamptz DEFAULT now(),"
" lease_until timestamptz,"
" attempts integer NOT NULL DEFAULT 0,"
" generation bigint NOT NULL DEFAULT 0,"
" refreshed_at timestamptz,"
" http_status integer,"
" last_error text,"
" failed_at timestamptz,"
" manual boolean NOT NULL DEFAULT true,"
" erased_at timestamptz,"
" dimension integer,"
" sections text[],"
" account text,%s"
" PRIMARY KEY (source_id, %I)) WITH (fillfactor = 50)";

/*
 * Statements that complete the tables that were created.  %s is the plural
 * noun for the store's kind, such as "profiles".
 */
static const char *const create_more_sql[] = {
	/* Floats hardly compress. */
	"ALTER TABLE %V ALTER COLUMN vector SET STORAGE EXTERNAL",

	/*
	 * Two indexes for claiming profiles, and one index each for listing
	 * missing, gone, failed and unwanted profiles, finding the most recent
	 * error, counting recent erasures, and finding how vectors were fetched
	 * (see model.c).
	 */
	"CREATE INDEX ON %P (due_at) WHERE due_at IS NOT NULL",
	"CREATE INDEX ON %P (due_at) WHERE state = 'due'",
	"CREATE INDEX ON %P (state, source_id, %I)"
	" WHERE state IN ('missing', 'gone', 'failed', 'unwanted')",
	"CREATE INDEX ON %P (failed_at DESC NULLS LAST) WHERE last_error IS NOT NULL",
	"CREATE INDEX ON %P (erased_at) WHERE erased_at IS NOT NULL",
	"CREATE INDEX ON %P (dimension, account, hash_array_extended(sections, 0))"
	" WHERE sections IS NOT NULL",

	"COMMENT ON TABLE %V IS"
	" 'vectors of HrFlow %s, kept fresh by hrflow_refresh()'",
	"COMMENT ON TABLE %P IS"
	" 'state of the %s whose vectors are kept; see hrflow_store_status()'"
};

static const char drop_sql[] = "DROP TABLE %V, %P";
static const char also_sql[] = "%s, %R";

/*
 * Statements for a given list of profiles.  $1 is their source, and $2 is an
 * array of their identifiers.
 *
 * track_sql neither changes nor counts existing rows, but locks them, so that
 * they are not erased before set_manual_sql and want_gone_sql are executed.
 */
static const char track_sql[] =
"INSERT INTO %P AS p (source_id, %I, state, due_at, attempts,"
" generation, manual)"
" SELECT $1, k.i, 'due', clock_timestamp(), 0, 0, true"
" FROM (SELECT DISTINCT i FROM unnest($2) AS i) AS k ORDER BY k.i"
" ON CONFLICT (source_id, %I) DO UPDATE SET manual = true WHERE false";

static const char set_manual_sql[] =
"UPDATE %P AS p SET manual = true"
" WHERE p.source_id = $1 AND p.%I = ANY ($2) AND NOT p.manual";

static const char want_gone_sql[] =
"UPDATE %P AS p SET state = 'due', due_at = clock_timestamp(),"
" attempts = 0, generation = p.generation + 1"
" WHERE p.source_id = $1 AND p.%I = ANY ($2)"
" AND p.state IN ('gone', 'unwanted')";

/*
 * Statement that marks profiles as due, except unwanted profiles.  A missing
 * profile is treated like a new profile, because the API may not have indexed
 * the change of the profile yet.
 */
static const char mark_due_sql[] =
"WITH locked AS MATERIALIZED (SELECT p.%I AS i FROM %P AS p"
" WHERE p.source_id = $1 AND p.%I = ANY ($2)"
" AND p.state IS DISTINCT FROM 'unwanted' ORDER BY p.%I FOR NO KEY UPDATE)"
" UPDATE %P AS p SET" HRFLOW_MARK_DUE
" FROM locked WHERE p.source_id = $1 AND p.%I = locked.i";

static const char retry_sql[] =
"WITH locked AS MATERIALIZED"
" (SELECT p.source_id AS s, p.%I AS i FROM %P AS p"
" WHERE p.state IN ('failed', 'gone')"
" ORDER BY p.source_id, p.%I FOR NO KEY UPDATE)"
" UPDATE %P AS p SET state = 'due', due_at = clock_timestamp(), attempts = 0%s"
" FROM locked WHERE p.source_id = locked.s"
" AND p.%I = locked.i AND p.state IN ('failed', 'gone')";

/*
 * SQL assignment that clears "sent_hash", except for leased profiles, whose
 * requests may be in flight.
 */
static const char forget_sent_sql[] = ", sent_hash = CASE"
" WHEN p.lease_until > clock_timestamp() THEN p.sent_hash END";

static const char failures_sql[] =
"SELECT source_id, %I, state, attempts, http_status,"
" last_error, refreshed_at FROM %P"
" WHERE state IN ('missing', 'gone', 'failed')"
" ORDER BY state, source_id, %I";

/*
 * Statement that returns the counts for hrflow_store_status().  $1 is the
 * current time.
 */
static const char count_sql[] =
"SELECT count(*),"
" count(*) FILTER (WHERE NOT c.leased AND c.due_at <= $1),"
" count(*) FILTER (WHERE c.leased),"
" count(*) FILTER (WHERE c.state = 'ok'),"
" count(*) FILTER (WHERE c.state = 'failed'),"
" count(*) FILTER (WHERE c.state = 'missing'),"
" count(*) FILTER (WHERE c.state = 'gone'),"
" count(*) FILTER (WHERE c.refreshed_at > $1 - interval '1 minute'),"
" count(*) FILTER (WHERE c.refreshed_at > $1 - interval '1 hour'),"
" COALESCE(min(c.due_at) FILTER (WHERE NOT c.leased AND c.due_at <= $1),"
" 'infinity')"
" FROM (SELECT p.state, p.due_at, p.refreshed_at,"
" COALESCE(p.lease_until > $1, false) AS leased"
" FROM %P AS p WHERE p.state <> 'unwanted') AS c";

static const char last_error_sql[] =
"SELECT p.last_error FROM %P AS p WHERE p.last_error IS NOT NULL"
" ORDER BY %F DESC NULLS LAST, p.last_error DESC LIMIT 1";

/*
 * ------------------------------------------------------------------------
 * Creating and dropping stores
 * ------------------------------------------------------------------------
 */

/*
 * Return the type that the argument "vector_type" names, qualified with the
 * schema of pgvector if necessary.  "auto" means vector if pgvector is
 * installed, or else real[].  Throws 22023 if the argument names no supported
 * type, and 42704 if the type requires pgvector, which is not installed.
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
				 errmsg("invalid value for argument \"vector_type\": \"%s\"", wanted),
				 errhint("Available values: \"auto\", \"real[]\", \"vector\", \"vector(n)\", \"halfvec\", \"halfvec(n)\".")));

	if (hrflow_store_execute(find_pgvector_sql, NULL) > 0)
		return psprintf("%s.%s", hrflow_store_value(0, 1),
						is_auto ? "vector" : wanted);
	if (is_auto)
		return pstrdup("real[]");
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("type \"%s\" requires extension \"vector\", which is not installed",
					name),
			 errhint("Use CREATE EXTENSION vector to install the extension, or use real[].")));
}

/*
 * Create the tables of vectors and profiles, with their indexes.
 */
static void
create_tables(const HrflowStore *store)
{
	bool		reads = store->kind->reading != NULL;

	hrflow_store_execute(hrflow_store_sql(store, create_vectors_sql, !reads ? "" :
										  hrflow_store_sql(store, section_default_sql,
														   store->kind->whole)),
						 NULL);
	hrflow_store_execute(hrflow_store_sql(store, create_profiles_sql,
										  reads ? content_states_sql : "",
										  reads ? content_columns_sql : ""),
						 NULL);
	for (int i = 0; i < lengthof(create_more_sql); i++)
		hrflow_store_execute(hrflow_store_sql(store, create_more_sql[i],
											  store->kind->plural),
							 NULL);
	for (int i = 0; reads && i < lengthof(create_content_sql); i++)
		hrflow_store_execute(hrflow_store_sql(store, create_content_sql[i]),
							 NULL);
}

/*
 * hrflow_create_store(name text, vector_type text, identifier text,
 *					   content text)
 *		RETURNS regclass
 *
 * Runs as the caller, who becomes the owner of the store.
 */
Datum
hrflow_create_store(PG_FUNCTION_ARGS)
{
	char	   *wanted_type;
	char	   *wanted_identifier;
	char	   *content;
	RangeVar   *table;
	Oid			namespace;
	char	   *schema;
	HrflowStore store;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(3))
		PG_RETURN_NULL();
	wanted_type = text_to_cstring(PG_GETARG_TEXT_PP(1));
	wanted_identifier = PG_ARGISNULL(2) ? NULL :
		text_to_cstring(PG_GETARG_TEXT_PP(2));
	content = text_to_cstring(PG_GETARG_TEXT_PP(3));
	table = makeRangeVarFromNameList(textToQualifiedNameList(PG_GETARG_TEXT_PP(0)));
	namespace = RangeVarGetAndCheckCreationNamespace(table, NoLock, NULL);
	schema = get_namespace_name(namespace);
	store.vectors_name = quote_qualified_identifier(schema, table->relname);
	store.profiles_name =
		quote_qualified_identifier(schema,
								   hrflow_store_profiles_name(table->relname));
	store.kind = hrflow_kind_find(content);
	store.identifier = hrflow_kind_identifier(store.kind, wanted_identifier);
	store.identifier_name = store.kind->identifiers[store.identifier];

	SPI_connect();
	store.saved_nestlevel = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	store.vector_type = choose_vector_type(wanted_type);
	create_tables(&store);
	hrflow_history_create(schema, table->relname);
	hrflow_aside_create(&store, schema, table->relname);
	hrflow_erased_create(schema, table->relname);
	AtEOXact_GUC(false, store.saved_nestlevel);
	SPI_finish();
	PG_RETURN_OID(get_relname_relid(table->relname, namespace));
}

/*
 * hrflow_drop_store(store regclass) RETURNS void
 *
 * The caller must be the owner of the store.
 */
Datum
hrflow_drop_store(PG_FUNCTION_ARGS)
{
	HrflowStore store;
	Oid			beside[3];
	char	   *sql;

	PreventCommandDuringRecovery("hrflow_drop_store()");
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_OWN);
	(void) hrflow_feeder_drop_all(&store,
								  hrflow_feeder_function(fcinfo->flinfo->fn_oid),
								  InvalidOid);
	sql = hrflow_store_sql(&store, drop_sql);
	beside[0] = hrflow_history_find(&store);
	beside[1] = hrflow_aside_find(&store);
	beside[2] = hrflow_erased_find(&store);
	for (int i = 0; i < lengthof(beside); i++)
	{
		if (OidIsValid(beside[i]))
			sql = hrflow_store_sql(&store, also_sql, sql, beside[i]);
	}
	hrflow_schedule_forget(&store, fcinfo->flinfo->fn_oid);
	hrflow_aside_warn(&store, true);
	hrflow_store_close(&store);
	hrflow_store_execute(sql, NULL);
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * ------------------------------------------------------------------------
 * Tracked profiles
 * ------------------------------------------------------------------------
 */

/*
 * Return an argument that is an array of identifiers.  Throws 22023 if the
 * array has more than one dimension, or contains a null or an empty string.
 */
ArrayType *
hrflow_functions_get_identifiers(FunctionCallInfo fcinfo, int argno)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(argno);
	Datum	   *values;
	bool	   *nulls;
	int			n;

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a one-dimensional array",
						"profile_ids")));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls,
					  &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i] || VARSIZE_ANY_EXHDR(DatumGetPointer(values[i])) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"%s\" must not contain nulls or empty strings",
							"profile_ids"),
					 errdetail("Element %d is null or empty.", i + 1)));
	}
	return array;
}

/*
 * Check the source of profiles.  Throws 22023 if it is empty although the
 * store requires one, or not empty although the store has no sources.
 */
void
hrflow_functions_check_source(const HrflowStore *store, Datum source_id)
{
	if (store->kind->needs_source &&
		VARSIZE_ANY_EXHDR(DatumGetTextPP(source_id)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be empty", "source_id")));
	if (store->kind->has_no_source &&
		VARSIZE_ANY_EXHDR(DatumGetTextPP(source_id)) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be empty", "source_id"),
				 errdetail("Stores of texts and documents have no sources.")));
}

/*
 * Open the store in the first argument, to change some of its profiles.  Sets
 * the parameters of statements to the next two arguments, which are the source
 * and the identifiers of these profiles.
 */
static void
open_for_profiles(FunctionCallInfo fcinfo, HrflowStore *store,
				  HrflowParameters *parameters)
{
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be null",
						PG_ARGISNULL(0) ? "store" :
						PG_ARGISNULL(1) ? "source_id" : "profile_ids")));
	parameters->n = 0;
	hrflow_store_add(parameters, TEXTOID, PG_GETARG_DATUM(1));
	hrflow_store_add(parameters, TEXTARRAYOID,
					 PointerGetDatum(hrflow_functions_get_identifiers(fcinfo, 2)));
	SPI_connect();
	hrflow_store_open(store, PG_GETARG_OID(0), InvalidOid,
					  HRFLOW_STORE_WRITE);
	hrflow_functions_check_source(store, parameters->values[0]);
}

/*
 * hrflow_track(store regclass, source_id text, profile_ids text[])
 *		RETURNS bigint
 */
Datum
hrflow_track(PG_FUNCTION_ARGS)
{
	HrflowStore store;
	HrflowParameters profiles;
	uint64		n;

	open_for_profiles(fcinfo, &store, &profiles);
	hrflow_store_check_manual(&store);
	n = hrflow_store_execute(hrflow_store_sql(&store, track_sql), &profiles);
	hrflow_store_execute(hrflow_store_sql(&store, set_manual_sql), &profiles);
	hrflow_store_execute(hrflow_store_sql(&store, want_gone_sql), &profiles);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_INT64(n);
}

/*
 * hrflow_mark_due(store regclass, source_id text, profile_ids text[])
 *		RETURNS bigint
 */
Datum
hrflow_mark_due(PG_FUNCTION_ARGS)
{
	HrflowStore store;
	HrflowParameters profiles;
	uint64		n;

	open_for_profiles(fcinfo, &store, &profiles);
	n = hrflow_store_execute_latest(hrflow_store_sql(&store, mark_due_sql),
									&profiles);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_INT64(n);
}

/*
 * hrflow_untrack(store regclass, source_id text, profile_ids text[])
 *		RETURNS bigint
 */
Datum
hrflow_untrack(PG_FUNCTION_ARGS)
{
	HrflowStore store;
	HrflowParameters profiles;
	uint64		n;

	open_for_profiles(fcinfo, &store, &profiles);
	n = hrflow_erase_profiles(&store, &profiles);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_INT64(n);
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
	n = hrflow_store_execute_latest(hrflow_store_sql(&store, retry_sql,
													 store.has_content ?
													 forget_sent_sql : ""),
									NULL);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_INT64(n);
}

/*
 * ------------------------------------------------------------------------
 * Showing the state of stores
 * ------------------------------------------------------------------------
 */

/*
 * Execute a query on the store in the first argument, and return its rows.
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
	return_query(fcinfo, failures_sql);
	return (Datum) 0;
}

/*
 * Counts for hrflow_store_status().
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
	TimestampTz oldest;			/* earliest due_at of due profiles; DT_NOEND
								 * if there are none */
} Counts;

static void
count_profile(Counts *counts, Datum state, Datum *times, bool *nulls,
			  TimestampTz now)
{
	char	   *text = VARDATA_ANY(DatumGetPointer(state));
	int			length = VARSIZE_ANY_EXHDR(DatumGetPointer(state));
	bool		leased = !nulls[1] && DatumGetTimestampTz(times[1]) > now;

	if (length == 8 && memcmp(text, "unwanted", 8) == 0)
		return;
	counts->tracked++;
	counts->ok += length == 2 && memcmp(text, "ok", 2) == 0;
	counts->gone += length == 4 && memcmp(text, "gone", 4) == 0;
	counts->failed += length == 6 && memcmp(text, "failed", 6) == 0;
	counts->missing += length == 7 && memcmp(text, "missing", 7) == 0;
	counts->leased += leased;
	if (!leased && !nulls[0])
	{
		TimestampTz due = DatumGetTimestampTz(times[0]);

		if (due <= now)
		{
			counts->due++;
			counts->oldest = Min(counts->oldest, due);
		}
	}
	if (!nulls[2])
	{
		int64		age = now - DatumGetTimestampTz(times[2]);

		counts->last_minute += age < USECS_PER_MINUTE;
		counts->last_hour += age < USECS_PER_HOUR;
	}
}

/*
 * Count the profiles of a table, or of one partition, except unwanted ones,
 * and add them to *counts.  Scans the table directly.  A query for all counts
 * takes four times as long, and so do separate queries that use indexes,
 * unless the table was vacuumed recently.
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
		last = state_column =
			hrflow_store_check_column(relation, "state", TEXTOID);
		for (int i = 0; i < lengthof(time_columns); i++)
		{
			numbers[i] = hrflow_store_check_column(relation, time_columns[i],
												   TIMESTAMPTZOID);
			last = Max(last, numbers[i]);
		}
		slot = table_slot_create(relation, NULL);
		scan = hrflow_compat_beginscan(relation, GetActiveSnapshot());
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
 * Set *counts like count_profiles(), for a table with rows on other servers.
 */
static void
count_remote_profiles(Counts *counts, const HrflowStore *store)
{
	int64	   *const numbers[] = {
		&counts->tracked, &counts->due, &counts->leased, &counts->ok,
		&counts->failed, &counts->missing, &counts->gone,
		&counts->last_minute, &counts->last_hour
	};
	HrflowParameters parameters = {0};

	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(GetCurrentTimestamp()));
	hrflow_store_execute(hrflow_store_sql(store, count_sql), &parameters);
	for (int i = 0; i < lengthof(numbers); i++)
		*numbers[i] = DatumGetInt64(hrflow_store_datum(0, i + 1));
	counts->oldest =
		DatumGetTimestampTz(hrflow_store_datum(0, lengthof(numbers) + 1));
}

/*
 * Return the error of the profile that failed most recently, or NULL.
 */
static char *
get_last_error(const HrflowStore *store)
{
	if (hrflow_store_execute(hrflow_store_sql(store, last_error_sql), NULL) == 0)
		return NULL;
	return hrflow_store_value_or_null(0, 1);
}

/*
 * hrflow_store_status(store regclass)
 *
 * Returns one row; docs/reference.md describes its columns.
 */
Datum
hrflow_store_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Counts		counts = {.oldest = DT_NOEND};
	Interval	time_due = {0};
	HrflowStore store;
	char	   *error;
	char	   *job_status;
	Datum		values[19];
	bool		nulls[19] = {false};
	Datum		last_run[3];
	bool		last_run_nulls[3];
	int			n = 0;
	ListCell   *cell;

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_READ);
	hrflow_ready_warn(&store, hrflow_feeder_function(fcinfo->flinfo->fn_oid));
	if (hrflow_remote_reason(store.profiles) != NULL)
		count_remote_profiles(&counts, &store);
	else
	{
		foreach(cell, find_all_inheritors(RelationGetRelid(store.profiles),
										  AccessShareLock, NULL))
			count_profiles(&counts, lfirst_oid(cell));
	}
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
	/* A due profile usually takes at least one request. */
	values[n++] = Int64GetDatum(counts.due);
	nulls[n] = counts.last_minute == 0;
	if (counts.last_minute > 0)
		time_due.time = (double) counts.due / counts.last_minute *
			USECS_PER_MINUTE;
	values[n++] = IntervalPGetDatum(&time_due);
	nulls[n] = error == NULL;
	values[n++] = error == NULL ? (Datum) 0 : CStringGetTextDatum(error);
	hrflow_history_last(&store, last_run, last_run_nulls);
	for (int i = 0; i < 2; i++)
	{
		values[n] = last_run[i];
		nulls[n++] = last_run_nulls[i];
	}
	values[n++] = Int64GetDatum(hrflow_erase_count(&store));
	values[n] = last_run[2];
	nulls[n++] = last_run_nulls[2];
	job_status = hrflow_schedule_last_status(&store);
	nulls[n] = job_status == NULL;
	values[n++] = job_status == NULL ? (Datum) 0 :
		CStringGetTextDatum(job_status);
	values[n++] = Int64GetDatum(hrflow_aside_count(&store));
	Assert(n == rsinfo->setDesc->natts);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);

	hrflow_store_close(&store);
	SPI_finish();
	return (Datum) 0;
}
