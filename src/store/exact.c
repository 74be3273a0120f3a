/*-------------------------------------------------------------------------
 *
 * exact.c
 *		Implements the exact search, which compares every vector in the scope
 *		of a search with the query.
 *
 * If parallel workers can be used, and the store is large or partitioned, the
 * SQL statement compares the vectors with hrflow_vector_similarity(), and the
 * executor selects the best rows, unless the search looks up at most
 * MAX_FEW_KEYS identifiers by key.  In all other cases, the statement returns
 * the stored values, most of which are usually TOAST pointers, and we read and
 * compare the vectors ourselves, which is faster than a statement that
 * compares and sorts (measured by BENCH_ONLY=10 make bench).  For
 * hrflow_exact_visit(), the statement always compares the vectors, but returns
 * all rows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "fmgr.h"
#include "nodes/primnodes.h"
#include "optimizer/cost.h"
#include "optimizer/paths.h"
#include "storage/bufmgr.h"
#include "store/match.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/float.h"
#include "utils/memutils.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(hrflow_vector_similarity);

/*
 * Parameters of the statements below, in order.
 */
enum
{
	PARAMETER_QUERY,			/* $1, real[] */
	PARAMETER_SECTIONS,			/* $2, text[] */
	PARAMETER_SOURCE,			/* $3, text: one source, or NULL for all */
	PARAMETER_PROFILES,			/* $4, text[]: identifiers to search for, or
								 * NULL for all */
	PARAMETER_SOURCES,			/* $5, text[]: sources in which to look up the
								 * identifiers $4, or NULL */
	PARAMETER_LIMIT				/* $6, bigint */
};

/* $7 is not a parameter; hrflow_stream() replaces it with the similarity. */
#define SELECT_SIMILARITIES \
	"SELECT v.source_id, v.%I, v.section, v.item, $7" \
	" FROM %V AS v WHERE v.section = ANY ($2)"
#define SELECT_VECTORS \
	"SELECT v.source_id, v.%I, v.section, v.item, v.vector" \
	" FROM %V AS v WHERE v.section = ANY ($2)"

/* Scope of a search; selects a variant of the statements below. */
typedef enum Among
{
	AMONG_ALL,
	AMONG_PROFILES,				/* the identifiers $4, in source $3, or in all
								 * sources if $3 is NULL */
	AMONG_KEYS,					/* each identifier $4 in each source $5 */
	AMONG_FEW_KEYS,				/* like AMONG_KEYS, for few identifiers */
	AMONG_PAIRS,				/* each identifier in $4 in the source at the
								 * same position in $5 */
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

/* SQL clause that makes the vectors of each profile consecutive. */
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
 * Maximum number of sources in which to look up identifiers by key; every
 * identifier is looked up in every source.  If the scope of a search has more
 * sources, the table of vectors is scanned instead.
 */
#define MAX_SOURCES 16

/*
 * Statement that returns the sources of a store that have vectors.  Each
 * source is found by a single lookup in the primary key, so the number of
 * vectors in a source does not matter.  The statement returns at most
 * MAX_SOURCES + 1 rows.
 */
static const char sources_statement[] =
"WITH RECURSIVE sources (id) AS"
" ((SELECT v.source_id FROM %V AS v ORDER BY 1 LIMIT 1)"
" UNION ALL"
" SELECT (SELECT v.source_id FROM %V AS v WHERE v.source_id > s.id"
" ORDER BY 1 LIMIT 1) FROM sources AS s WHERE s.id IS NOT NULL)"
" SELECT s.id FROM sources AS s WHERE s.id IS NOT NULL"
" LIMIT 17";

StaticAssertDecl(MAX_SOURCES == 16,
				 "sources_statement must return MAX_SOURCES + 1 rows");

/*
 * Maximum number of identifiers to pass in an array comparison, which is
 * executed as a single scan of the primary key, or with a hash table that is
 * probed while the table is scanned.  The planner estimates the selectivity of
 * each element of an array, so for more identifiers, a join is planned and
 * executed faster.
 */
#define MAX_FEW_KEYS 10000

/*
 * Maximum number of pairs of a source and an identifier to look up, if there
 * are several sources.  The executor computes all pairs before it looks up the
 * first one, so for more pairs, the table of vectors is scanned instead, and
 * only the identifiers are hashed.
 */
#define MAX_PAIRS 200000

/*
 * Use parallel workers only if the table of vectors and its TOAST table
 * together are at least this many times as large as
 * min_parallel_table_scan_size, that is, 256 MB with the default of that
 * setting.  Each worker must start, load the session's libraries and map the
 * buffers that it reads.  The factor is an estimate: above the resulting size,
 * workers should save more time than they take; if it is wrong, searches are
 * slower than they could be.  A partitioned table is assumed to be large
 * enough.
 */
#define PARALLEL_SIZE_FACTOR 32

/*
 * ------------------------------------------------------------------------
 * Comparison
 * ------------------------------------------------------------------------
 */

/*
 * State of hrflow_vector_similarity(), kept in fn_extra between calls.
 */
typedef struct Comparison
{
	HrflowLayout layout;		/* layout of the first argument */
	bool		is_constant;	/* is the query a constant in the plan? */
	struct varlena *stored;		/* detoasted copy of the query, to be compared
								 * with the query of the next call; NULL if no
								 * query was read yet, or if "is_constant" is
								 * set */
	const double *query;		/* NULL: not read yet */
	int			dimension;
	double		norm;
} Comparison;

/*
 * Is an argument a constant in the plan?  A parameter is not, although
 * get_fn_expr_arg_stable() returns true for it: PL/pgSQL evaluates an
 * expression with the same FmgrInfo in the whole transaction, during which a
 * variable may have many values.
 */
static bool
is_constant(const FmgrInfo *flinfo, int argno)
{
	const Node *expression = flinfo->fn_expr;

	return expression != NULL && IsA(expression, FuncExpr) &&
		IsA(list_nth(((const FuncExpr *) expression)->args, argno), Const);
}

static Comparison *
make_comparison(FmgrInfo *flinfo)
{
	Oid			type = get_fn_expr_argtype(flinfo, 0);
	Comparison *comparison = MemoryContextAllocZero(flinfo->fn_mcxt,
													sizeof(Comparison));

	if (!hrflow_layout_find(type, &comparison->layout))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("type %s is not supported for vectors",
						format_type_be(type)),
				 errhint("Use real[], or pgvector's vector or halfvec.")));
	comparison->is_constant = is_constant(flinfo, 1);
	return comparison;
}

/*
 * Forget the query, and free its memory.
 */
static void
forget_query(Comparison *comparison)
{
	struct varlena *stored = comparison->stored;
	const double *query = comparison->query;

	comparison->stored = NULL;
	comparison->query = NULL;
	if (stored != NULL)
		pfree(stored);
	if (query != NULL)
		pfree(unconstify(double *, query));
}

/*
 * Return the state of hrflow_vector_similarity(), updated for the query that
 * is passed to this call.  The query is converted only if it differs from the
 * query of the previous call.
 */
static Comparison *
get_comparison(FunctionCallInfo fcinfo)
{
	FmgrInfo   *flinfo = fcinfo->flinfo;
	Comparison *comparison = flinfo->fn_extra;
	struct varlena *given;
	const float4 *elements;
	MemoryContext old;

	if (comparison == NULL)
		comparison = flinfo->fn_extra = make_comparison(flinfo);
	if (comparison->query != NULL && comparison->is_constant)
		return comparison;
	given = PG_DETOAST_DATUM(PG_GETARG_DATUM(1));
	if (comparison->query != NULL &&
		VARSIZE(comparison->stored) == VARSIZE(given) &&
		memcmp(comparison->stored, given, VARSIZE(given)) == 0)
		return comparison;

	forget_query(comparison);
	old = MemoryContextSwitchTo(flinfo->fn_mcxt);
	if (!comparison->is_constant)
	{
		comparison->stored = palloc(VARSIZE(given));
		memcpy(comparison->stored, given, VARSIZE(given));
	}
	elements = hrflow_layout_read(HRFLOW_LAYOUT_ARRAY, given,
								  &comparison->dimension);
	comparison->query = hrflow_similarity_prepare(elements,
												  comparison->dimension,
												  &comparison->norm);
	MemoryContextSwitchTo(old);
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
 * Compare a stored vector, which must be detoasted, with the query.  Returns
 * false if their similarity is undefined; hrflow_vector_similarity() returns
 * NULL in the same cases.
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
 * Scope of a search
 * ------------------------------------------------------------------------
 */

/*
 * Execute a statement of a search, and pass each row to take() until that
 * returns false.
 */
static void
execute(const HrflowSearch *search, const char *template,
		const HrflowParameters *parameters, HrflowTake take, void *arg)
{
	hrflow_stream(hrflow_store_sql(search->store, template), parameters,
				  search->function, false, take, arg);
}

/*
 * State of take_source(), which collects the sources of a store.
 */
typedef struct Sources
{
	MemoryContext context;		/* contains the sources */
	Datum		sources[MAX_SOURCES];
	int			n;				/* number of sources found; MAX_SOURCES + 1 if
								 * there are too many */
} Sources;

static bool
take_source(void *arg, TupleTableSlot *slot)
{
	Sources    *sources = arg;
	MemoryContext old;

	if (sources->n < MAX_SOURCES)
	{
		old = MemoryContextSwitchTo(sources->context);
		sources->sources[sources->n] = datumCopy(slot->tts_values[0], false, -1);
		MemoryContextSwitchTo(old);
	}
	sources->n++;
	return true;
}

/*
 * Look up the sources in which to search by key, once per search.  If the
 * search is restricted to a source, this is the only one.  "sources" remains
 * NULL if there are too many.  The lookup must use the snapshot of the search:
 * with a newer one, the search would miss all vectors of a source whose last
 * vector has just been deleted.
 */
static void
find_sources(HrflowSearch *search)
{
	HrflowParameters none = {0};
	Sources		found = {.context = CurrentMemoryContext};
	MemoryContext old;

	if (search->knows_sources)
		return;
	search->knows_sources = true;
	if (search->source_id != NULL)
		found.sources[found.n++] = PointerGetDatum(search->source_id);
	else
		execute(search, sources_statement, &none, take_source, &found);
	if (found.n > MAX_SOURCES)
		return;

	/* Keep the array for the search, which may be executed repeatedly. */
	old = MemoryContextSwitchTo(GetMemoryChunkContext(search));
	search->sources = construct_array(found.sources, found.n, TEXTOID, -1,
									  false, TYPALIGN_INT);
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
 * Set all parameters of a statement except PARAMETER_LIMIT, and return the
 * variant of the statement that is to be executed.
 */
static Among
set_parameters(HrflowSearch *search, ArrayType *sections,
			   HrflowParameters *parameters)
{
	int			nsources;

	if (search->profiles != NULL)
		find_sources(search);
	add_or_null(parameters, FLOAT4ARRAYOID, search->query);
	hrflow_store_add(parameters, TEXTARRAYOID, PointerGetDatum(sections));
	add_or_null(parameters, TEXTOID, search->source_id);
	add_or_null(parameters, TEXTARRAYOID, search->profiles);
	add_or_null(parameters, TEXTARRAYOID, search->sources);
	if (search->profiles == NULL)
		return AMONG_ALL;
	if (search->sources == NULL)
		return AMONG_PROFILES;
	if (search->nprofiles <= MAX_FEW_KEYS)
		return AMONG_FEW_KEYS;
	nsources = ArrayGetNItems(ARR_NDIM(search->sources),
							  ARR_DIMS(search->sources));
	if (nsources > 1 && search->nprofiles > MAX_PAIRS / nsources)
		return AMONG_PROFILES;
	return AMONG_KEYS;
}

/*
 * ------------------------------------------------------------------------
 * Searching
 * ------------------------------------------------------------------------
 */

/*
 * State of visit_row(), which passes rows to a visitor, except rows whose
 * similarity is null or too low.
 */
typedef struct Visit
{
	HrflowVisitor visitor;
	void	   *arg;
	const HrflowBest *best;		/* best matches so far, to skip rows that are
								 * worse, or NULL to skip none */
	int64		nrows;			/* number of rows seen */
	double		last;			/* similarity of the last row seen, or NaN if
								 * it is null */
} Visit;

static bool
visit_row(void *arg, TupleTableSlot *slot)
{
	Visit	   *visit = arg;
	HrflowMatch match;

	visit->nrows++;
	visit->last = get_float8_nan();
	if (slot->tts_isnull[4])
		return true;
	match.similarity = visit->last = DatumGetFloat8(slot->tts_values[4]);
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
 * State of compare_row(), which compares vectors and keeps the best matches.
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
 * Return the number of blocks of a table and its TOAST table.
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
 * Can parallel workers be used, and will they probably make the search faster?
 * The planner derives the number of workers from the size of the table without
 * its TOAST table, or from the storage parameter parallel_workers.  For a
 * partitioned table, we assume that workers make the search faster.
 */
static bool
is_parallel(const HrflowSearch *search, const HrflowParameters *parameters)
{
	Relation	vectors = search->store->vectors;
	int			workers;

	if (max_parallel_workers_per_gather == 0 || IsInParallelMode() ||
		!hrflow_stream_allows_workers(parameters))
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
 * Let the executor find the best vectors, possibly with parallel workers.
 *
 * Several of the best vectors may belong to the same profile.  If the rows
 * therefore contain too few profiles, which is rare, execute the statement
 * again with a higher limit.  "best" may already contain matches that an index
 * has found, so it may be full before the best vectors have been read.  No
 * further row is better than the last one.  Rows whose similarity is null come
 * last, so only such rows follow one of them.
 */
static void
search_in_executor(const HrflowSearch *search, Among among,
				   HrflowParameters *parameters, HrflowBest *best)
{
	int64		limit = 4 * (int64) best->k;

	hrflow_store_add(parameters, INT8OID, Int64GetDatum(limit));
	for (;;)
	{
		Visit		visit = {.visitor = keep_match, .arg = best, .best = best};

		parameters->values[PARAMETER_LIMIT] = Int64GetDatum(limit);
		execute(search, best_statements[among], parameters, visit_row, &visit);
		if (visit.nrows < limit || isnan(visit.last) ||
			!hrflow_best_wants(best, visit.last))
			break;
		limit *= 16;
	}
}

/*
 * Find the best matches of a section and add them to "best".
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

	if (among != AMONG_FEW_KEYS && is_parallel(search, &parameters))
		search_in_executor(search, among, &parameters, best);
	else
	{
		Comparing	comparing = {
			.search = search,
			.toast = hrflow_toast_begin(),
			.best = best
		};

		execute(search, vector_statements[among], &parameters, compare_row,
				&comparing);
		hrflow_toast_end(comparing.toast);
	}
}

/*
 * Pass a match to a visitor for each vector of several sections, except
 * vectors whose similarity is undefined.  The matches of each profile are
 * passed consecutively.  If "candidates" is not NULL, only the profiles in
 * "candidates" are visited; otherwise all profiles in the scope of the search.
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
	execute(search, all_statements[among], &parameters, visit_row, &visit);
}

/*
 * State of look_at_dimension(), which looks for a vector with a given
 * dimension.
 */
typedef struct Dimensions
{
	HrflowLayout layout;
	int			wanted;
	int			other;			/* dimension of the last nonempty vector, or 0
								 * if there is none yet */
	bool		met;			/* does a vector have the wanted dimension? */
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
 * If no vector of the given sections, in the scope of a search, has the
 * dimension of the query, return the dimension of one of the vectors.  Returns
 * 0 if there are only empty vectors or none, or if at least one has the
 * dimension of the query.
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

	execute(search, vector_statements[among], &parameters, look_at_dimension,
			&dimensions);
	return dimensions.met ? 0 : dimensions.other;
}
