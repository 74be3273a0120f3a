/*-------------------------------------------------------------------------
 *
 * exact.c
 *		Exact search: every vector that a search is about is compared.
 *
 * In a large store, where parallel workers may take part, the comparison is part
 * of the query, as hrflow_vector_similarity(), and the executor keeps the best
 * rows.  Otherwise the query returns vectors as they are stored, out of line most
 * often, and we read and compare them ourselves, which takes less than a query that
 * compares and sorts (BENCH_ONLY=10 make bench).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "fmgr.h"
#include "optimizer/cost.h"
#include "optimizer/paths.h"
#include "storage/bufmgr.h"
#include "store/match.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(hrflow_vector_similarity);

/*
 * Parameters of the statements below, by their number.
 */
enum
{
	PARAMETER_QUERY,			/* $1, real[] */
	PARAMETER_SECTIONS,			/* $2, text[] */
	PARAMETER_SOURCE,			/* $3, text: the only source, or NULL */
	PARAMETER_PROFILES,			/* $4, text[]: the only profiles */
	PARAMETER_SOURCES,			/* $5, text[]: the sources of these */
	PARAMETER_LIMIT				/* $6, bigint */
};

#define SELECT_SIMILARITIES \
	"SELECT v.source_id, v.%I, v.section, v.item, %s(v.vector, $1)" \
	" FROM %V AS v WHERE v.section = ANY ($2)"
#define SELECT_VECTORS \
	"SELECT v.source_id, v.%I, v.section, v.item, v.vector" \
	" FROM %V AS v WHERE v.section = ANY ($2)"

/* Which vectors: the statements' variants, in this order. */
typedef enum Among
{
	AMONG_ALL,
	AMONG_PROFILES,				/* of any source, or of one */
	AMONG_KEYS,					/* each of the sources with each identifier */
	AMONG_FEW_KEYS,				/* likewise, for few identifiers */
	AMONG_PAIRS,				/* a source with an identifier */
	NAMONG
} Among;

#define OF_ALL \
	" AND ($3 IS NULL OR v.source_id = $3)"
#define OF_PROFILES \
	" AND ($3 IS NULL OR v.source_id = $3)" \
	" AND v.%I IN (SELECT i FROM unnest($4) AS i)"
#define OF_KEYS \
	" AND (v.source_id, v.%I) IN" \
	" (SELECT s, i FROM unnest($5) AS s, unnest($4) AS i)"
#define OF_FEW_KEYS \
	" AND v.source_id = ANY ($5) AND v.%I = ANY ($4)"
#define OF_PAIRS \
	" AND (v.source_id, v.%I) IN" \
	" (SELECT s, i FROM unnest($5, $4) AS pairs (s, i))"

#define BEST_FIRST \
	" ORDER BY 5 DESC NULLS LAST LIMIT $6"

/* A profile's vectors together. */
#define BY_PROFILE \
	" ORDER BY v.source_id, v.%I"

static const char *const best_statements[NAMONG] = {
	[AMONG_ALL] = SELECT_SIMILARITIES OF_ALL BEST_FIRST,
	[AMONG_PROFILES] = SELECT_SIMILARITIES OF_PROFILES BEST_FIRST,
	[AMONG_KEYS] = SELECT_SIMILARITIES OF_KEYS BEST_FIRST,
	[AMONG_FEW_KEYS] = NULL,
	[AMONG_PAIRS] = NULL
};

static const char *const all_statements[NAMONG] = {
	[AMONG_ALL] = SELECT_SIMILARITIES OF_ALL BY_PROFILE,
	[AMONG_PROFILES] = SELECT_SIMILARITIES OF_PROFILES BY_PROFILE,
	[AMONG_KEYS] = SELECT_SIMILARITIES OF_KEYS BY_PROFILE,
	[AMONG_FEW_KEYS] = SELECT_SIMILARITIES OF_FEW_KEYS BY_PROFILE,
	[AMONG_PAIRS] = SELECT_SIMILARITIES OF_PAIRS BY_PROFILE
};

static const char *const vector_statements[NAMONG] = {
	[AMONG_ALL] = SELECT_VECTORS OF_ALL,
	[AMONG_PROFILES] = SELECT_VECTORS OF_PROFILES,
	[AMONG_KEYS] = SELECT_VECTORS OF_KEYS,
	[AMONG_FEW_KEYS] = SELECT_VECTORS OF_FEW_KEYS,
	[AMONG_PAIRS] = NULL
};

/*
 * The sources, one after the other along the primary key, however many
 * vectors each has.  Ends after MAX_SOURCES + 1.
 */
static const char sources_statement[] =
"WITH RECURSIVE sources (id) AS"
" ((SELECT v.source_id FROM %V AS v ORDER BY 1 LIMIT 1)"
" UNION ALL"
" SELECT (SELECT v.source_id FROM %V AS v WHERE v.source_id > s.id"
" ORDER BY 1 LIMIT 1) FROM sources AS s WHERE s.id IS NOT NULL)"
" SELECT s.id FROM sources AS s WHERE s.id IS NOT NULL LIMIT 17";

/*
 * Maximum number of sources with each of which an identifier is looked up; a
 * store of more is scanned instead.
 */
#define MAX_SOURCES 16

/*
 * Maximum number of identifiers that are looked up as an array: in one scan of
 * the primary key, or by a hash table while the table is scanned.  The planner
 * estimates the selectivity of each element of an array, so that more of them are
 * planned and executed faster as a join.
 */
#define MAX_FEW_KEYS 10000

/*
 * Vectors must fill this many times min_parallel_table_scan_size, together with
 * their TOAST table, before parallel workers take part: 256 MB unless it is set
 * to something else.  Each worker first has to start, to load the libraries of the
 * session and to map the buffers that it reads; the number is an estimate of the
 * size from which on that is saved again.
 */
#define PARALLEL_SIZE_FACTOR 32

/*
 * ------------------------------------------------------------------------
 * Comparison
 * ------------------------------------------------------------------------
 */

/*
 * What hrflow_vector_similarity() keeps between two calls.
 */
typedef struct Comparison
{
	HrflowLayout layout;		/* of the first argument */
	bool		is_fixed;		/* is the query the same in every call? */
	const double *query;		/* NULL: not read yet */
	int			dimension;
	double		norm;
} Comparison;

static Comparison *
get_comparison(FunctionCallInfo fcinfo)
{
	FmgrInfo   *flinfo = fcinfo->flinfo;
	Comparison *comparison = flinfo->fn_extra;

	if (comparison == NULL)
	{
		Oid			type = get_fn_expr_argtype(flinfo, 0);

		comparison = MemoryContextAllocZero(flinfo->fn_mcxt,
											sizeof(Comparison));
		if (!hrflow_layout_find(type, &comparison->layout))
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("type %s is not a type of vectors",
							format_type_be(type)),
					 errhint("Use real[], or pgvector's vector or halfvec.")));
		comparison->is_fixed = get_fn_expr_arg_stable(flinfo, 1);
		flinfo->fn_extra = comparison;
	}
	if (comparison->query == NULL || !comparison->is_fixed)
	{
		MemoryContext old = CurrentMemoryContext;
		const float4 *elements;

		if (comparison->is_fixed)
			MemoryContextSwitchTo(flinfo->fn_mcxt);
		elements = hrflow_layout_read(HRFLOW_LAYOUT_ARRAY,
									  PG_DETOAST_DATUM(PG_GETARG_DATUM(1)),
									  &comparison->dimension);
		comparison->query = hrflow_similarity_prepare(elements,
													  comparison->dimension,
													  &comparison->norm);
		MemoryContextSwitchTo(old);
	}
	return comparison;
}

static bool
compare(HrflowLayout layout, const struct varlena *vector,
		const double *query, int dimension, double norm, double *similarity)
{
	int			n;
	double		norms;
	const void *elements = hrflow_layout_read(layout, vector, &n);

	return n == dimension && n > 0 &&
		hrflow_similarity_compare(elements,
								  layout == HRFLOW_LAYOUT_HALFVEC ? HRFLOW_HALF :
								  HRFLOW_REAL,
								  query, dimension, norm, similarity, &norms);
}

/*
 * hrflow_vector_similarity(vector "any", query real[])
 *		RETURNS double precision
 */
Datum
hrflow_vector_similarity(PG_FUNCTION_ARGS)
{
	Comparison *comparison = get_comparison(fcinfo);
	double		similarity;

	if (!compare(comparison->layout, PG_DETOAST_DATUM(PG_GETARG_DATUM(0)),
				 comparison->query,
				 comparison->dimension, comparison->norm, &similarity))
		PG_RETURN_NULL();
	PG_RETURN_FLOAT8(similarity);
}

/*
 * Compare a stored vector, which is not toasted, with the query.  Returns false
 * where they have no similarity, as hrflow_vector_similarity() returns NULL.
 */
bool
hrflow_exact_compare(const HrflowSearch *search, struct varlena *vector,
					 double *similarity)
{
	return compare(search->store->layout, vector, search->elements,
				   search->dimension, search->norm, similarity);
}

/*
 * ------------------------------------------------------------------------
 * Which vectors
 * ------------------------------------------------------------------------
 */

/*
 * Look up the sources that a search by key needs.
 */
static void
find_sources(HrflowSearch *search)
{
	Datum		sources[MAX_SOURCES];
	uint64		n = 1;
	MemoryContext old;

	if (search->knows_sources)
		return;
	search->knows_sources = true;
	if (search->source_id != NULL)
		sources[0] = PointerGetDatum(search->source_id);
	else
	{
		n = hrflow_store_execute(hrflow_store_sql(search->store,
												  sources_statement), NULL);
		if (n > MAX_SOURCES)
			return;
		for (uint64 i = 0; i < n; i++)
			sources[i] = hrflow_store_datum(i, 1);
	}

	/* They live as long as the search, which may be made more than once. */
	old = MemoryContextSwitchTo(GetMemoryChunkContext(search));
	search->sources = construct_array(sources, n, TEXTOID, -1, false,
									  TYPALIGN_INT);
	MemoryContextSwitchTo(old);
}

static void
add_or_null(HrflowParameters *parameters, Oid type, void *value)
{
	hrflow_store_add(parameters, type, PointerGetDatum(value));
	if (value == NULL)
		parameters->nulls[parameters->n - 1] = 'n';
}

/*
 * Set the parameters of a statement but for the limit, and tell which variant
 * it is.
 */
static Among
set_parameters(HrflowSearch *search, ArrayType *sections,
			   HrflowParameters *parameters)
{
	if (search->profiles != NULL)
		find_sources(search);
	hrflow_store_add(parameters, FLOAT4ARRAYOID,
					 PointerGetDatum(search->query));
	hrflow_store_add(parameters, TEXTARRAYOID, PointerGetDatum(sections));
	add_or_null(parameters, TEXTOID, search->source_id);
	add_or_null(parameters, TEXTARRAYOID, search->profiles);
	add_or_null(parameters, TEXTARRAYOID, search->sources);
	if (search->profiles == NULL)
		return AMONG_ALL;
	if (search->sources == NULL)
		return AMONG_PROFILES;
	return search->nprofiles <= MAX_FEW_KEYS ? AMONG_FEW_KEYS : AMONG_KEYS;
}

static char *
make_statement(const HrflowSearch *search, const char *template)
{
	return hrflow_store_sql(search->store, template, search->function);
}

/*
 * ------------------------------------------------------------------------
 * Searching
 * ------------------------------------------------------------------------
 */

/*
 * Rows with a similarity on their way to a visitor.
 */
typedef struct Visit
{
	HrflowVisitor visitor;
	void	   *arg;
	const HrflowBest *best;		/* leaves out what is not wanted; or NULL */
	int64		nrows;			/* number of rows seen */
} Visit;

static bool
visit_row(void *arg, TupleTableSlot *slot)
{
	Visit	   *visit = arg;
	HrflowMatch match;

	visit->nrows++;
	if (slot->tts_isnull[4])
		return true;
	match.similarity = DatumGetFloat8(slot->tts_values[4]);
	if (visit->best != NULL &&
		!hrflow_best_wants(visit->best, match.similarity))
		return true;
	hrflow_stream_read(slot, &match);
	visit->visitor(visit->arg, &match);
	return true;
}

static void
keep_match(void *arg, const HrflowMatch *match)
{
	hrflow_best_keep(arg, match);
}

/*
 * Vectors on their way to the best matches.
 */
typedef struct Comparing
{
	const HrflowSearch *search;
	HrflowToast *toast;
	HrflowBest *best;
} Comparing;

static bool
compare_row(void *arg, TupleTableSlot *slot)
{
	Comparing  *comparing = arg;
	HrflowMatch match;

	if (slot->tts_isnull[4])
		return true;
	hrflow_prefetch_next((struct varlena *) DatumGetPointer(slot->tts_values[4]));
	if (!hrflow_exact_compare(comparing->search,
							  hrflow_toast_read(comparing->toast,
												slot->tts_values[4]),
							  &match.similarity) ||
		!hrflow_best_wants(comparing->best, match.similarity))
		return true;
	hrflow_stream_read(slot, &match);
	hrflow_best_keep(comparing->best, &match);
	return true;
}

/*
 * Number of blocks of a table and its TOAST table.
 */
static uint64
count_blocks(Relation relation)
{
	uint64		nblocks = RelationGetNumberOfBlocks(relation);

	if (OidIsValid(relation->rd_rel->reltoastrelid))
	{
		Relation	toast = table_open(relation->rd_rel->reltoastrelid,
									   AccessShareLock);

		nblocks += RelationGetNumberOfBlocks(toast);
		table_close(toast, AccessShareLock);
	}
	return nblocks;
}

/*
 * May parallel workers take part, and is it worth it?  How many the planner wants
 * depends on the size of the table without its TOAST table, or is set for the
 * table.
 */
static bool
is_parallel(const HrflowSearch *search)
{
	Relation	vectors = search->store->vectors;
	int			workers;

	if (max_parallel_workers_per_gather == 0 || IsInParallelMode())
		return false;
	if (vectors->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		return true;
	if (count_blocks(vectors) <
		PARALLEL_SIZE_FACTOR * (uint64) min_parallel_table_scan_size)
		return false;
	workers = RelationGetParallelWorkers(vectors, -1);
	return workers > 0 ||
		(workers < 0 &&
		 RelationGetNumberOfBlocks(vectors) >= min_parallel_table_scan_size);
}

/*
 * Find the best vectors in the executor, and so in its parallel workers.
 *
 * A profile may have several of them.  If so many that there are not enough
 * profiles, the query is repeated with a higher limit; most often it is not.
 */
static void
search_in_executor(const HrflowSearch *search, Among among,
				   HrflowParameters *parameters, HrflowBest *best)
{
	char	   *sql = make_statement(search, best_statements[among]);
	int64		limit = 4 * (int64) best->k;

	hrflow_store_add(parameters, INT8OID, Int64GetDatum(limit));
	for (;;)
	{
		Visit		visit = {.visitor = keep_match, .arg = best, .best = best};

		parameters->values[PARAMETER_LIMIT] = Int64GetDatum(limit);
		hrflow_stream(sql, parameters, visit_row, &visit);
		if (best->n == best->k || visit.nrows < limit)
			break;
		limit *= 16;
	}
}

/*
 * Find the best matches of a section.
 */
void
hrflow_exact_search(HrflowSearch *search, const char *section,
					HrflowBest *best)
{
	Datum		name = CStringGetTextDatum(section);
	ArrayType  *sections = construct_array(&name, 1, TEXTOID, -1, false,
										   TYPALIGN_INT);
	HrflowParameters parameters = {0};
	Among		among = set_parameters(search, sections, &parameters);

	if (among != AMONG_FEW_KEYS && is_parallel(search))
		search_in_executor(search, among, &parameters, best);
	else
	{
		Comparing	comparing = {
			.search = search,
			.toast = hrflow_toast_begin(),
			.best = best
		};

		hrflow_stream(make_statement(search, vector_statements[among]),
					  &parameters, compare_row, &comparing);
		hrflow_toast_end(comparing.toast);
	}
}

/*
 * Visit the vectors of several sections, a profile's together: those that the
 * search is about, or of the given candidates alone.
 */
void
hrflow_exact_visit(HrflowSearch *search, ArrayType *sections,
				   const HrflowBest *candidates, HrflowVisitor visitor,
				   void *arg)
{
	HrflowParameters parameters = {0};
	Among		among = set_parameters(search, sections, &parameters);
	Visit		visit = {.visitor = visitor, .arg = arg};

	if (candidates != NULL)
	{
		Datum	   *sources = palloc(sizeof(Datum) * candidates->n);
		Datum	   *profiles = palloc(sizeof(Datum) * candidates->n);

		for (int i = 0; i < candidates->n; i++)
		{
			sources[i] = CStringGetTextDatum(candidates->matches[i]->source_id);
			profiles[i] = CStringGetTextDatum(candidates->matches[i]->identifier);
		}
		parameters.values[PARAMETER_SOURCES] =
			PointerGetDatum(construct_array(sources, candidates->n, TEXTOID,
											-1, false, TYPALIGN_INT));
		parameters.nulls[PARAMETER_SOURCES] = ' ';
		parameters.values[PARAMETER_PROFILES] =
			PointerGetDatum(construct_array(profiles, candidates->n, TEXTOID,
											-1, false, TYPALIGN_INT));
		parameters.nulls[PARAMETER_PROFILES] = ' ';
		among = AMONG_PAIRS;
	}
	hrflow_stream(make_statement(search, all_statements[among]), &parameters,
				  visit_row, &visit);
}

/*
 * What dimensions stored vectors have.
 */
typedef struct Dimensions
{
	HrflowLayout layout;
	int			wanted;
	int			other;			/* of the last vector; 0: there is none */
	bool		met;			/* does one have the wanted dimension? */
} Dimensions;

static bool
look_at_dimension(void *arg, TupleTableSlot *slot)
{
	Dimensions *dimensions = arg;
	int			n;

	if (slot->tts_isnull[4])
		return true;
	hrflow_layout_read(dimensions->layout, PG_DETOAST_DATUM(slot->tts_values[4]), &n);
	if (n > 0)
		dimensions->other = n;
	dimensions->met = n == dimensions->wanted;
	return !dimensions->met;
}

/*
 * Have the vectors that a search is about another dimension than the query?
 * Returns that of one of them; 0 where there is no vector, or one of the
 * query's dimension.
 */
int
hrflow_exact_other_dimension(HrflowSearch *search, ArrayType *sections)
{
	HrflowParameters parameters = {0};
	Among		among = set_parameters(search, sections, &parameters);
	Dimensions	dimensions = {
		.layout = search->store->layout,
		.wanted = search->dimension
	};

	hrflow_stream(make_statement(search, vector_statements[among]),
				  &parameters, look_at_dimension, &dimensions);
	return dimensions.met ? 0 : dimensions.other;
}
