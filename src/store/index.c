/*-------------------------------------------------------------------------
 *
 * index.c
 *		Searches a store with a pgvector index.
 *
 * A pgvector index returns vectors roughly in the order of their distance, but
 * it may return too few of them.  An HNSW scan takes hnsw.ef_search candidates
 * before dead tuples are removed and conditions are applied, and an IVFFlat
 * scan reads ivfflat.probes lists.  Since pgvector 0.8, scans can continue
 * after that, up to hnsw.max_scan_tuples or ivfflat.max_probes.  We read rows
 * from the index until we have enough profiles.  If the scan ends before that,
 * the caller compares every vector instead.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/amapi.h"
#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "store/match.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(hrflow_index_statement);

/*
 * Statement that finds an index on table $1 for the cosine distance of vectors
 * that belong to section $2 and have $3 dimensions.  The only indexed
 * expression must be the column "vector", or a cast of this column as in the
 * statement that hrflow_index_statement() returns.  The predicate, if there is
 * one, is compared with the output of pg_get_expr(), which doubles single
 * quotes and, unlike format('%L'), does not escape backslashes.
 *
 * search_statement names objects in pgvector's schema, on which a reader to
 * whom row-level security applies may lack USAGE.  Comparing all vectors does
 * not require that.
 *
 * The planner may choose another index on the same expression, so the result
 * contains the greatest number of lists of all these indexes.  If an IVFFlat
 * index does not set "lists", pgvector uses the default of 100.
 */
static const char find_statement[] =
"SELECT i.indexrelid::regclass, pg_get_indexdef(i.indexrelid, 1, false),"
" format_type(t.atttypid, t.atttypmod), quote_ident(n.nspname), a.oid,"
" max(CASE WHEN a.amname = 'ivfflat' THEN"
" COALESCE((SELECT option_value::int FROM pg_options_to_table(c.reloptions)"
" WHERE option_name = 'lists'), 100) ELSE 0 END)"
" OVER (PARTITION BY pg_get_indexdef(i.indexrelid, 1, false)),"
" (CASE WHEN c.relkind = 'I' THEN"
" (SELECT COALESCE(sum(greatest(leaf.reltuples, 0)), 0)"
" FROM pg_partition_tree(i.indexrelid) AS tree"
" JOIN pg_class AS leaf ON leaf.oid = tree.relid WHERE tree.isleaf)"
" ELSE c.reltuples END)::float8,"
" i.indpred IS NULL"
" FROM pg_index AS i"
" JOIN pg_class AS c ON c.oid = i.indexrelid"
" JOIN pg_am AS a ON a.oid = c.relam"
" JOIN pg_attribute AS t ON t.attrelid = c.oid AND t.attnum = 1"
" JOIN pg_opclass AS o ON o.oid = i.indclass[0]"
" JOIN pg_namespace AS n ON n.oid = o.opcnamespace"
" WHERE i.indrelid = $1 AND i.indisvalid AND i.indnatts = 1"
" AND a.amname IN ('hnsw', 'ivfflat')"
" AND o.opcname IN ('vector_cosine_ops', 'halfvec_cosine_ops')"
" AND has_schema_privilege(n.oid, 'USAGE')"
" AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid)"
" = '(section = ''' || replace($2, '''', '''''') || '''::text)')"
" AND (t.atttypmod = $3 OR t.atttypmod = -1)"
" AND pg_get_indexdef(i.indexrelid, 1, false) IN ('vector',"
" format('((vector)::%s)', format_type(t.atttypid, t.atttypmod)))"
" ORDER BY i.indpred IS NULL, a.amname LIMIT 1";

/*
 * Statement that returns the vectors of section $2, ordered by their distance
 * from $1 as the index computes it.  $3 is the source, or null to search all
 * sources.  The arguments are the indexed expression, pgvector's schema, and
 * the type of the indexed expression.  There is no LIMIT; keep_row() ends the
 * scan.
 */
static const char search_statement[] =
"SELECT v.source_id, v.%I, v.section, v.item, v.vector"
" FROM %V AS v WHERE v.section = $2 AND ($3 IS NULL OR v.source_id = $3)"
" ORDER BY %s OPERATOR(%s.<=>) $1::%s";

/*
 * Statement that counts the vectors of section $1 and source $2, but stops
 * counting at $3.
 */
static const char count_statement[] =
"SELECT count(*) FROM (SELECT FROM %V AS v"
" WHERE v.section = $1 AND v.source_id = $2 LIMIT $3) AS v";

static const char pgvector_statement[] =
"SELECT quote_ident(n.nspname) FROM pg_extension AS e"
" JOIN pg_namespace AS n ON n.oid = e.extnamespace"
" WHERE e.extname = 'vector'";

static const char dimension_statement[] =
"SELECT cardinality(v.vector::real[]) FROM %V AS v"
" WHERE v.section = $1 AND cardinality(v.vector::real[]) > 0 LIMIT 1";

/*
 * The statement that hrflow_index_statement() returns.  It must work with any
 * search_path.
 */
static const char index_statement[] =
"CREATE INDEX%s ON %V USING hnsw (%s %s.%s_cosine_ops)"
" WHERE section OPERATOR(pg_catalog.=) %L";

/*
 * Number of candidates that an HNSW scan takes at a time (hnsw.ef_search) for
 * each of the k rows.  More candidates increase both the recall and the cost
 * of a search.
 */
#define CANDIDATES_PER_ROW 8

/* Minimum number of candidates, which keeps the recall high for a small k. */
#define MIN_CANDIDATES 200

/* Maximum number of candidates, which is the maximum that pgvector allows. */
#define MAX_CANDIDATES 1000

/*
 * Number of rows to take from an index for each of the k rows, if the search
 * has a condition; only rows that satisfy the condition are counted.  If a
 * scan has to continue because of the condition, it returns further vectors in
 * sorted groups, so nearer vectors may follow in a later group.  With a lower
 * number, searches with a condition would have a lower recall than others;
 * each additional row costs about as much as a comparison.
 */
#define ROWS_UNDER_CONDITION 4

/*
 * Cost of taking the next vector from an index, as a multiple of the cost of
 * fetching a vector by its key and comparing it.  This is an estimate; if it
 * is wrong, searches are slower than they could be.
 */
#define COST_OF_INDEX 3.0

/*
 * ------------------------------------------------------------------------
 * Finding an index
 * ------------------------------------------------------------------------
 */

/*
 * Does a table have an index of one of pgvector's access methods?
 */
static bool
has_vector_index(Relation relation)
{
	ListCell   *cell;

	foreach(cell, RelationGetIndexList(relation))
	{
		HeapTuple	index = SearchSysCache1(RELOID,
											ObjectIdGetDatum(lfirst_oid(cell)));
		char	   *method;

		/* The index may have been dropped concurrently. */
		if (!HeapTupleIsValid(index))
			continue;
		method = get_am_name(((Form_pg_class) GETSTRUCT(index))->relam);
		ReleaseSysCache(index);
		if (method != NULL &&
			(strcmp(method, "hnsw") == 0 || strcmp(method, "ivfflat") == 0))
			return true;
	}
	return false;
}

/*
 * Find an index that can be used for searching a section.  Returns NULL if
 * there is none.
 */
HrflowIndex *
hrflow_index_find(const HrflowSearch *search, const char *section)
{
	static SPIPlanPtr plan = NULL;
	Oid			relid = RelationGetRelid(search->store->vectors);
	HrflowParameters parameters = {0};
	HrflowIndex *index;

	/*
	 * Avoid find_statement if there is no vector index, and plan it only once
	 * in a session, because planning it takes as long as comparing a thousand
	 * vectors.
	 */
	if (!has_vector_index(search->store->vectors))
		return NULL;
	hrflow_store_add(&parameters, OIDOID, ObjectIdGetDatum(relid));
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(section));
	hrflow_store_add(&parameters, INT4OID, Int32GetDatum(search->dimension));
	if (plan == NULL)
	{
		SPIPlanPtr	prepared = hrflow_store_prepare(find_statement,
													parameters.n,
													parameters.types);

		SPI_keepplan(prepared);
		plan = prepared;
	}
	hrflow_store_execute_plan(plan, parameters.values, parameters.nulls);
	if (SPI_processed == 0)
		return NULL;

	index = palloc(sizeof(HrflowIndex));
	index->name = hrflow_store_value(0, 1);
	index->expression = hrflow_store_value(0, 2);
	index->type = hrflow_store_value(0, 3);
	index->schema = hrflow_store_value(0, 4);
	index->method = DatumGetObjectId(hrflow_store_datum(0, 5));
	index->lists = DatumGetInt32(hrflow_store_datum(0, 6));
	index->tuples = DatumGetFloat8(hrflow_store_datum(0, 7));
	index->is_whole = DatumGetBool(hrflow_store_datum(0, 8));
	return index;
}

/*
 * Return the number of candidates that a search for k rows takes at a time.
 */
static int
count_candidates(int k)
{
	return Min(MAX_CANDIDATES, Max(MIN_CANDIDATES, CANDIDATES_PER_ROW * k));
}

/*
 * Return the maximum number of vectors, including dead ones, that an HNSW scan
 * visits if it continues because too few rows satisfy the condition
 * (hnsw.max_scan_tuples).  If a store is large, visiting more would cost more
 * than comparing all of its vectors.
 */
double
hrflow_index_max_visited(const HrflowIndex *index)
{
	return Min(Max(index->tuples / COST_OF_INDEX, 4 * MAX_CANDIDATES),
			   (double) PG_INT32_MAX);
}

/*
 * Return the number of vectors that can be looked up by key and compared at
 * the cost of a single index search.  "among" is the number of vectors in the
 * scope of the search.
 */
static double
allowed_comparisons(const HrflowIndex *index, int k, double among)
{
	double		visited = (double) ROWS_UNDER_CONDITION * k *
	Max(index->tuples, 1) / Max(among, 1);

	return COST_OF_INDEX * Max(visited, count_candidates(k));
}

/*
 * Is it cheaper to search the index than to compare all vectors in the scope
 * of the search?  The vectors of a few profiles, or of a small source, are
 * better looked up by key, because the index may return many other vectors for
 * each of them.  Without such a restriction, we assume that the index is
 * cheaper, unless a scan would end before it has found k profiles.
 */
bool
hrflow_index_is_cheaper(const HrflowSearch *search, const HrflowIndex *index,
						const char *section, int k)
{
	HrflowParameters parameters = {0};
	int64		few;

	/* An HNSW scan would end too early; an IVFFlat scan would cost more. */
	if (k > hrflow_index_max_visited(index))
		return false;
	if (search->profiles != NULL &&
		search->nprofiles <= allowed_comparisons(index, k, search->nprofiles))
		return false;
	if (search->source_id == NULL)
		return true;

	/*
	 * Both methods cost the same for this number of vectors, so there is no
	 * need to count further.
	 */
	few = ceil(Max(sqrt(COST_OF_INDEX * ROWS_UNDER_CONDITION * k *
						Max(index->tuples, 1)),
				   COST_OF_INDEX * count_candidates(k)));
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(section));
	hrflow_store_add(&parameters, TEXTOID,
					 PointerGetDatum(search->source_id));
	hrflow_store_add(&parameters, INT8OID, Int64GetDatum(few + 1));
	hrflow_store_execute(hrflow_store_sql(search->store, count_statement),
						 &parameters);
	return DatumGetInt64(hrflow_store_datum(0, 1)) > few;
}

/*
 * ------------------------------------------------------------------------
 * Searching
 * ------------------------------------------------------------------------
 */

/*
 * Entry of a hash table of the identifiers to which a search is restricted.
 */
typedef struct Allowed
{
	const		text *identifier;
	uint32		status;
} Allowed;

static inline uint32
hash_text(const text * t)
{
	return hash_bytes((const unsigned char *) VARDATA_ANY(t),
					  VARSIZE_ANY_EXHDR(t));
}

static inline bool
equal_texts(const text * a, const text * b)
{
	return VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
		memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
}

#define SH_PREFIX allowed
#define SH_ELEMENT_TYPE Allowed
#define SH_KEY_TYPE const text *
#define SH_KEY identifier
#define SH_HASH_KEY(table, key) hash_text(key)
#define SH_EQUAL(table, a, b) equal_texts(a, b)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static allowed_hash *
make_allowed(const HrflowSearch *search)
{
	allowed_hash *allowed;
	Datum	   *identifiers;
	bool	   *nulls;
	int			n;

	deconstruct_array(search->profiles, TEXTOID, -1, false, TYPALIGN_INT,
					  &identifiers, &nulls, &n);
	allowed = allowed_create(CurrentMemoryContext, n, NULL);
	for (int i = 0; i < n; i++)
	{
		bool		found;

		if (!nulls[i])
			allowed_insert(allowed, DatumGetTextPP(identifiers[i]), &found);
	}
	pfree(identifiers);
	pfree(nulls);
	return allowed;
}

/*
 * State of keep_row(), which receives the rows of an index scan.
 */
typedef struct IndexRows
{
	const HrflowSearch *search;
	allowed_hash *allowed;		/* identifiers to keep, or NULL to keep all */
	HrflowBest *best;
	int64		ntaken;			/* number of rows taken so far that satisfy
								 * the condition */
	int64		nwanted;		/* value that "ntaken" must reach before the
								 * scan may end */
} IndexRows;

/*
 * HrflowTake callback: keep a row, unless its identifier is not to be searched
 * for, or its similarity is undefined.  Returns whether more profiles or rows
 * are needed.  We compute the similarity from the vector itself, because
 * pgvector computes sums in single precision, which overflows for large
 * elements.
 */
static bool
keep_row(void *arg, TupleTableSlot *slot)
{
	IndexRows  *scan = arg;
	HrflowMatch match;

	if (scan->allowed != NULL &&
		(slot->tts_isnull[1] ||
		 allowed_lookup(scan->allowed,
						DatumGetTextPP(slot->tts_values[1])) == NULL))
		return true;
	if (slot->tts_isnull[4] ||
		!hrflow_exact_compare(scan->search,
							  PG_DETOAST_DATUM(slot->tts_values[4]),
							  &match.similarity))
		return true;
	hrflow_stream_read(slot, &match);
	hrflow_best_keep(scan->best, &match);
	return ++scan->ntaken < scan->nwanted || scan->best->n < scan->best->k;
}

static void
set_option(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Set an option of pgvector to a number, unless its value is already at least
 * as great.
 */
static void
raise_option(const char *name, int value)
{
	const char *present = GetConfigOption(name, true, false);

	if (present == NULL || atoi(present) < value)
		set_option(name, psprintf("%d", value));
}

/*
 * Set options of pgvector so that the scan considers enough candidates to find
 * about the k nearest rows, whichever access method the index has that the
 * planner chooses.  With pgvector 0.8 or later, the scan continues if a
 * condition or dead tuples leave too few rows; the cost of an HNSW scan is
 * limited to about that of comparing all vectors.
 *
 * The rows need not be returned in strict order, because we sort them.  The
 * scan reads the options while it is executed, so they also apply to searches
 * in functions that policies of the table call.
 */
static void
tune_search(const HrflowIndex *index, int k)
{
	/* pgvector's options are unknown before its library is loaded. */
	hrflow_compat_load_index_method(index->method);

	raise_option("hnsw.ef_search", count_candidates(k));
	if (GetConfigOption("hnsw.iterative_scan", true, false) != NULL)
	{
		set_option("hnsw.iterative_scan", "relaxed_order");
		set_option("hnsw.max_scan_tuples",
				   psprintf("%.0f", hrflow_index_max_visited(index)));
	}
	raise_option("ivfflat.probes", ceil(sqrt(index->lists)));
	if (GetConfigOption("ivfflat.iterative_scan", true, false) != NULL)
		set_option("ivfflat.iterative_scan", "relaxed_order");
}

/*
 * Return a copy of the query that is scaled to length 1.  This does not change
 * cosine similarities, but ensures that no element is out of range for
 * halfvec, and that the sum of the squares does not overflow in pgvector,
 * which computes it in single precision.
 */
static ArrayType *
normalize(const HrflowSearch *search)
{
	ArrayType  *unit = palloc(VARSIZE(search->query));
	float4	   *elements;

	memcpy(unit, search->query, VARSIZE(search->query));
	elements = (float4 *) ARR_DATA_PTR(unit);
	for (int i = 0; i < search->dimension; i++)
		elements[i] = elements[i] / search->norm;
	return unit;
}

/*
 * Find the best matches of a section with an index, and add them to "best".
 * If the index returns vectors of too few profiles, "best" contains fewer than
 * k matches.
 */
void
hrflow_index_search(const HrflowSearch *search, const HrflowIndex *index,
					const char *section, HrflowBest *best)
{
	const HrflowStore *store = search->store;
	HrflowParameters parameters = {0};
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "hrflow_embed index search",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	int			nestlevel = NewGUCNestLevel();
	bool		has_condition = index->is_whole ||
	search->profiles != NULL || search->source_id != NULL ||
	check_enable_rls(RelationGetRelid(store->vectors), InvalidOid,
					 true) == RLS_ENABLED;
	IndexRows	scan = {.search = search, .best = best};

	if (has_condition)
		scan.nwanted = (int64) ROWS_UNDER_CONDITION * best->k;
	if (search->profiles != NULL)
		scan.allowed = make_allowed(search);
	tune_search(index, best->k);

	hrflow_store_add(&parameters, FLOAT4ARRAYOID,
					 PointerGetDatum(normalize(search)));
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(section));
	hrflow_store_add(&parameters, TEXTOID, PointerGetDatum(search->source_id));
	if (search->source_id == NULL)
		parameters.nulls[2] = 'n';
	hrflow_stream(hrflow_store_sql(store, search_statement, index->expression,
								   index->schema, index->type),
				  &parameters, InvalidOid, true, keep_row, &scan);

	AtEOXact_GUC(false, nestlevel);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/*
 * ------------------------------------------------------------------------
 * Creating an index
 * ------------------------------------------------------------------------
 */

static bool
take_dimension(void *arg, TupleTableSlot *slot)
{
	int		   *dimension = arg;

	*dimension = DatumGetInt32(slot->tts_values[0]);
	return false;
}

/*
 * Return the dimension of one of the nonempty vectors of a section, or 0 if
 * there is none, in the snapshot of the calling statement.
 */
int
hrflow_index_dimension(const HrflowStore *store, const char *section)
{
	HrflowParameters parameters = {0};
	int			dimension = 0;

	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(section));
	hrflow_stream(hrflow_store_sql(store, dimension_statement), &parameters,
				  InvalidOid, false, take_dimension, &dimension);
	return dimension;
}

/*
 * hrflow_index_statement(store regclass, section text) RETURNS text
 */
Datum
hrflow_index_statement(PG_FUNCTION_ARGS)
{
	char	   *section = text_to_cstring(PG_GETARG_TEXT_PP(1));
	HrflowStore store;
	char	   *schema;
	char	   *type;
	char	   *expression;
	char	   *statement;
	MemoryContext context = CurrentMemoryContext;
	int			dimension;
	bool		is_half;

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_RANK);
	section = hrflow_kind_section(store.kind, section);
	if (hrflow_store_execute(pgvector_statement, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("vector indexes require extension \"vector\", which is not installed"),
				 errhint("Use CREATE EXTENSION vector to install the extension.")));
	schema = hrflow_store_value(0, 1);

	dimension = hrflow_index_dimension(&store, section);
	if (dimension == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("store %s has no vector of section \"%s\"",
						store.vectors_name, section),
				 errdetail("The dimension of the index is determined from a vector of the section."),
				 errhint("Call hrflow_refresh() first.")));
	is_half = dimension > 2000 ||
		strstr(store.vector_type, ".halfvec") != NULL;
	if (dimension > 4000)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("vectors with %d dimensions cannot be indexed", dimension),
				 errdetail("HNSW indexes of pgvector support halfvec with at most 4000 dimensions.")));

	/* If the column has exactly this type, index it without a cast. */
	type = psprintf("%s.%s(%d)", schema, is_half ? "halfvec" : "vector",
					dimension);
	expression = strcmp(store.vector_type, type) == 0 ? pstrdup("vector") :
		psprintf("(vector::%s)", type);
	statement = hrflow_store_sql(&store, index_statement,
								 store.vectors->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ?
								 "" : " CONCURRENTLY",
								 expression, schema,
								 is_half ? "halfvec" : "vector", section);
	statement = MemoryContextStrdup(context, statement);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_TEXT_P(cstring_to_text(statement));
}
