/*-------------------------------------------------------------------------
 *
 * match.c
 *		The profiles of a store that are nearest to a vector.
 *
 * Where the table of vectors has an index of pgvector's for the section, the
 * query is written as the index is, so that it is used; else every vector of
 * the section is compared.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "compat.h"
#include "funcapi.h"
#include "ask/ask.h"
#include "miscadmin.h"
#include "store/store.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(hrflow_match);
PG_FUNCTION_INFO_V1(hrflow_match_weighted);
PG_FUNCTION_INFO_V1(hrflow_index_statement);

/* The arguments of the first two, in their order. */
enum
{
	ARG_STORE,
	ARG_QUERY,
	ARG_K,						/* the second has ARG_WEIGHTS here */
	ARG_SECTION					/* and ARG_WEIGHTED_K here */
};

#define ARG_WEIGHTS ARG_K
#define ARG_WEIGHTED_K ARG_SECTION

/* The most rows one call returns. */
#define MAX_K 10000

/* Rows read at a time where every vector is compared. */
#define FETCH_SIZE 1000

/*
 * Of each section, so many times k profiles are candidates where they come
 * from an index.
 */
#define CANDIDATES 10

/*
 * An index of pgvector's that serves a section.
 */
typedef struct VectorIndex
{
	char	   *expression;		/* what is indexed, as SQL */
	char	   *type;			/* its type */
	char	   *schema;			/* pgvector's, quoted */
	bool		is_hnsw;
	int			dimension;		/* -1: any */
} VectorIndex;

/*
 * A vector that was found, and how near it is.
 */
typedef struct Match
{
	char	   *source_id;		/* these two come first: Matches' key */
	char	   *identifier;
	char	   *section;
	int			item;
	double		similarity;
} Match;

/*
 * The k best matches so far, of as many profiles; the last is the worst.
 */
typedef struct Matches
{
	MemoryContext context;
	int			k;
	int			n;
	Match	  **matches;		/* n of them, best first */
	HTAB	   *by_profile;		/* where they are, strings in "context" */
} Matches;

/* What a section weighs. */
typedef struct Weight
{
	char	   *section;
	double		weight;
} Weight;

/*
 * ------------------------------------------------------------------------
 * The best
 * ------------------------------------------------------------------------
 */

static uint32
hash_profile(const void *key, Size keysize)
{
	const Match *match = key;

	return hash_combine(hash_bytes((unsigned char *) match->source_id,
								   strlen(match->source_id)),
						hash_bytes((unsigned char *) match->identifier,
								   strlen(match->identifier)));
}

static int
compare_profiles(const void *a, const void *b, Size keysize)
{
	const Match *match_a = a;
	const Match *match_b = b;

	return strcmp(match_a->identifier, match_b->identifier) != 0 ||
		strcmp(match_a->source_id, match_b->source_id) != 0;
}

static Matches *
make_matches(int k)
{
	Matches    *best = palloc0(sizeof(Matches));
	HASHCTL		control = {0};

	best->context = CurrentMemoryContext;
	best->k = k;
	best->matches = palloc(sizeof(Match *) * k);
	control.keysize = offsetof(Match, section);
	control.entrysize = sizeof(Match);
	control.hash = hash_profile;
	control.match = compare_profiles;
	control.hcxt = CurrentMemoryContext;
	best->by_profile = hash_create("hrflow_embed matches", k, &control,
								   HASH_ELEM | HASH_FUNCTION | HASH_COMPARE |
								   HASH_CONTEXT);
	return best;
}

/*
 * Is this one of the best so far?
 */
static inline bool
is_better(const Matches *best, double similarity)
{
	return best->n < best->k ||
		similarity > best->matches[best->n - 1]->similarity;
}

/*
 * Read of a row (source_id, identifier, section, item, ...) of the last
 * statement's what vector it is.
 */
static void
read_match(uint64 row, Match *match)
{
	match->source_id = hrflow_store_value(row, 1);
	match->identifier = hrflow_store_value(row, 2);
	match->section = hrflow_store_value(row, 3);
	match->item = DatumGetInt32(hrflow_store_datum(row, 4));
}

/*
 * Drop the worst.
 */
static void
drop_match(Matches *best)
{
	Match	   *worst = best->matches[--best->n];
	Match		strings = *worst;

	hash_search(best->by_profile, worst, HASH_REMOVE, NULL);
	pfree(strings.source_id);
	pfree(strings.identifier);
	pfree(strings.section);
}

/*
 * Keep a match, if it is; of each profile the best one.
 */
static void
keep_match(Matches *best, const Match *match)
{
	Match	  **matches = best->matches;
	Match	   *kept;
	int			i;				/* where it is, or is to be without order */
	int			low = 0;
	int			high;

	if (!is_better(best, match->similarity))
		return;
	kept = hash_search(best->by_profile, match, HASH_FIND, NULL);
	if (kept != NULL)
	{
		if (kept->similarity >= match->similarity)
			return;
		for (i = best->n - 1; matches[i] != kept; i--)
			;
		pfree(kept->section);
	}
	else
	{
		if (best->n == best->k)
			drop_match(best);
		kept = hash_search(best->by_profile, match, HASH_ENTER, NULL);
		kept->source_id = MemoryContextStrdup(best->context,
											  match->source_id);
		kept->identifier = MemoryContextStrdup(best->context,
											   match->identifier);
		i = best->n++;
	}
	kept->section = MemoryContextStrdup(best->context, match->section);
	kept->item = match->item;
	kept->similarity = match->similarity;
	high = i;

	/* To its place, behind its equals. */
	while (low < high)
	{
		int			middle = (low + high) / 2;

		if (matches[middle]->similarity >= kept->similarity)
			low = middle + 1;
		else
			high = middle;
	}
	memmove(&matches[low + 1], &matches[low], sizeof(Match *) * (i - low));
	matches[low] = kept;
}

/*
 * ------------------------------------------------------------------------
 * Through an index
 * ------------------------------------------------------------------------
 */

/*
 * Find an index for the cosine distance of a section's vectors, or NULL.  Of
 * the column "vector", or of the cast of it to the index's type that
 * hrflow_index_statement() writes, and of nothing else that may be in the
 * table or be computed from it.
 */
static VectorIndex *
find_index(const HrflowStore *store, const char *section, int dimension)
{
	HrflowParameters parameters = {0};
	VectorIndex *index;

	if (!OidIsValid(get_extension_oid("vector", true)))
		return NULL;
	hrflow_store_add(&parameters, OIDOID,
					 ObjectIdGetDatum(RelationGetRelid(store->vectors)));
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(section));
	hrflow_store_add(&parameters, INT4OID, Int32GetDatum(dimension));
	if (hrflow_store_execute("SELECT pg_get_indexdef(i.indexrelid, 1, false),"
							 " format_type(t.atttypid, t.atttypmod),"
							 " quote_ident(n.nspname), a.amname = 'hnsw', t.atttypmod"
							 " FROM pg_index AS i"
							 " JOIN pg_class AS c ON c.oid = i.indexrelid"
							 " JOIN pg_am AS a ON a.oid = c.relam"
							 " JOIN pg_attribute AS t ON t.attrelid = c.oid AND t.attnum = 1"
							 " JOIN pg_opclass AS o ON o.oid = i.indclass[0]"
							 " JOIN pg_namespace AS n ON n.oid = o.opcnamespace"
							 " WHERE i.indrelid = $1 AND i.indisvalid AND i.indnatts = 1"
							 " AND a.amname IN ('hnsw', 'ivfflat')"
							 " AND o.opcname IN ('vector_cosine_ops', 'halfvec_cosine_ops')"
							 " AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid)"
							 " = format('(section = %L::text)', $2))"
							 " AND (t.atttypmod = $3 OR t.atttypmod = -1)"
							 " AND pg_get_indexdef(i.indexrelid, 1, false) IN ('vector',"
							 " format('((vector)::%s)', format_type(t.atttypid, t.atttypmod)))"
							 " ORDER BY i.indpred IS NULL, a.amname LIMIT 1",
							 &parameters) == 0)
		return NULL;

	index = palloc(sizeof(VectorIndex));
	index->expression = hrflow_store_value(0, 1);
	index->type = hrflow_store_value(0, 2);
	index->schema = hrflow_store_value(0, 3);
	index->is_hnsw = strcmp(hrflow_store_value(0, 4), "t") == 0;
	index->dimension = atoi(hrflow_store_value(0, 5));
	return index;
}

/*
 * Have the index searched well enough for k rows, and go on where a filter
 * leaves too few (pgvector 0.8 and later).  Until the store is closed.
 */
static void
tune_index(const VectorIndex *index, int k)
{
	const char *ef_search = GetConfigOption("hnsw.ef_search", true, false);
	int			wanted = Min(1000, Max(200, 8 * k));

	if (!index->is_hnsw)
		return;
	if (ef_search == NULL || atoi(ef_search) < wanted)
		(void) set_config_option("hnsw.ef_search", psprintf("%d", wanted),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
	if (GetConfigOption("hnsw.iterative_scan", true, false) != NULL)
		(void) set_config_option("hnsw.iterative_scan", "strict_order",
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
}

/*
 * A copy of a vector that is not zero, of the length 1.
 */
static ArrayType *
normalize(const ArrayType *vector)
{
	ArrayType  *unit = palloc(VARSIZE(vector));
	int			n = ArrayGetNItems(ARR_NDIM(vector), ARR_DIMS(vector));
	float4	   *elements;
	double		norm;

	memcpy(unit, vector, VARSIZE(vector));
	elements = (float4 *) ARR_DATA_PTR(unit);
	norm = hrflow_vector_norm(elements, n);
	for (int i = 0; i < n; i++)
		elements[i] = elements[i] / norm;
	return unit;
}

/*
 * Find the k best through an index.  The query's length is nothing to its
 * direction, but might be too much or too little for a halfvec, or for the
 * squares that pgvector sums up in single precision.  A section with several
 * items gives a profile several times: then more are asked for.
 */
static void
search_index(const HrflowStore *store, const VectorIndex *index,
			 ArrayType *query, const char *section, Matches *best)
{
	HrflowParameters parameters = {0};
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "hrflow_embed match",
												  ALLOCSET_DEFAULT_SIZES);
	int64		limit = best->k;
	uint64		n;
	StringInfoData sql;

	hrflow_store_add(&parameters, FLOAT4ARRAYOID,
					 PointerGetDatum(normalize(query)));
	tune_index(index, best->k);
	for (;;)
	{
		initStringInfo(&sql);
		appendStringInfo(&sql, "SELECT v.source_id, v.%s, v.section, v.item,"
						 " 1 - (%s OPERATOR(%s.<=>) $1::%s) FROM %s AS v"
						 " WHERE section = %s ORDER BY %s OPERATOR(%s.<=>) $1::%s"
						 " LIMIT " INT64_FORMAT,
						 store->identifier_name, index->expression,
						 index->schema, index->type, store->vectors_name,
						 quote_literal_cstr(section), index->expression,
						 index->schema, index->type, limit);
		n = hrflow_store_execute(sql.data, &parameters);
		while (best->n > 0)
			drop_match(best);
		for (uint64 i = 0; i < n; i++)
		{
			MemoryContext old = MemoryContextSwitchTo(context);
			bool		is_null;
			Datum		similarity = SPI_getbinval(SPI_tuptable->vals[i],
												   SPI_tuptable->tupdesc, 5,
												   &is_null);
			Match		match;

			CHECK_FOR_INTERRUPTS();
			match.similarity = is_null ? get_float8_nan() :
				DatumGetFloat8(similarity);
			if (!isnan(match.similarity))	/* NULL: of no vector */
			{
				read_match(i, &match);
				keep_match(best, &match);
			}
			MemoryContextSwitchTo(old);
			MemoryContextReset(context);
		}
		SPI_freetuptable(SPI_tuptable);
		if (best->n == best->k || n < limit)
			break;
		limit *= 4;
	}
	MemoryContextDelete(context);
}

/*
 * ------------------------------------------------------------------------
 * By comparing
 * ------------------------------------------------------------------------
 */

/*
 * What comparing gives a profile's vector to.
 */
typedef void (*Visitor) (void *arg, const Match *match);

/*
 * Compare all vectors that a query returns: (source_id, identifier, section,
 * item, real[]).  Those of another dimension, of no length, with nulls or in
 * rows are left out; and those that are not among the best so far, where
 * "best" is not NULL.
 *
 * A query of another model's meets none of its dimension, and is told so.
 */
static void
compare_all(const HrflowStore *store, const char *sql,
			const HrflowParameters *parameters, ArrayType *query,
			const Matches *best, Visitor visitor, void *arg)
{
	HrflowParameters *p = unconstify(HrflowParameters *, parameters);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "hrflow_embed match",
												  ALLOCSET_DEFAULT_SIZES);
	int			dimension = ArrayGetNItems(ARR_NDIM(query), ARR_DIMS(query));
	double		norm = hrflow_vector_norm((float4 *) ARR_DATA_PTR(query),
										  dimension);
	int			other_dimension = 0;
	bool		met_dimension = false;
	Portal		portal = SPI_cursor_open_with_args(NULL,
												   hrflow_store_sql(store, sql),
												   p->n, p->types,
												   p->values, p->nulls, true,
												   CURSOR_OPT_NO_SCROLL);

	for (;;)
	{
		SPI_cursor_fetch(portal, true, FETCH_SIZE);
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			MemoryContext old = MemoryContextSwitchTo(context);
			bool		is_null;
			Datum		value = SPI_getbinval(SPI_tuptable->vals[i],
											  SPI_tuptable->tupdesc, 5,
											  &is_null);
			ArrayType  *vector = is_null ? NULL : DatumGetArrayTypeP(value);
			int			n = vector != NULL && ARR_NDIM(vector) == 1 ?
			ARR_DIMS(vector)[0] : 0;
			double		norms;
			Match		match;

			met_dimension |= n == dimension;
			if (n > 0)
				other_dimension = n;
			if (n == dimension && !array_contains_nulls(vector) &&
				hrflow_vector_compare((float4 *) ARR_DATA_PTR(vector),
									  (float4 *) ARR_DATA_PTR(query),
									  dimension, norm, &match.similarity,
									  &norms) &&
				(best == NULL || is_better(best, match.similarity)))
			{
				read_match(i, &match);
				visitor(arg, &match);
			}
			MemoryContextSwitchTo(old);
			MemoryContextReset(context);
		}
		SPI_freetuptable(SPI_tuptable);
		CHECK_FOR_INTERRUPTS();
	}
	SPI_cursor_close(portal);
	MemoryContextDelete(context);

	if (!met_dimension && other_dimension > 0)
		ereport(WARNING,
				(errmsg("no vector of store %s has the query's %d dimensions",
						store->vectors_name, dimension),
				 errdetail("Those of the sections asked for have others, such as %d.",
						   other_dimension),
				 errhint("Compare what one model made.")));
}

static void
visit_match(void *arg, const Match *match)
{
	keep_match(arg, match);
}

/*
 * Find the k best of a section.
 */
static Matches *
search_section(const HrflowStore *store, ArrayType *query,
			   const char *section, int k)
{
	int			dimension = ArrayGetNItems(ARR_NDIM(query), ARR_DIMS(query));
	VectorIndex *index = find_index(store, section, dimension);
	Matches    *best = make_matches(k);
	HrflowParameters parameters = {0};

	if (index != NULL)
	{
		search_index(store, index, query, section, best);
		return best;
	}
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(section));
	compare_all(store,
				"SELECT v.source_id, v.%I, v.section, v.item,"
				" v.vector::real[] FROM %V AS v"
				" WHERE v.section = $1",
				&parameters, query, best, visit_match, best);
	return best;
}

/*
 * ------------------------------------------------------------------------
 * Several sections
 * ------------------------------------------------------------------------
 */

/*
 * The sum of a profile's sections, while its vectors go by.
 */
typedef struct Weighing
{
	const Weight *weights;
	int			nweights;
	double	   *nearest;		/* similarity of each section's best item, or
								 * NaN */
	int		   *items;
	char	   *source_id;		/* of the present profile; NULL: none yet */
	char	   *identifier;
	Matches    *best;
} Weighing;

/*
 * A profile has gone by.
 */
static void
finish_profile(Weighing *weighing)
{
	Match		match = {weighing->source_id, weighing->identifier};
	double		contribution = 0;

	for (int i = 0; i < weighing->nweights; i++)
	{
		double		part = weighing->weights[i].weight * weighing->nearest[i];

		if (isnan(part))
			continue;
		match.similarity += part;
		if (match.section == NULL || part > contribution)
		{
			contribution = part;
			match.section = weighing->weights[i].section;
			match.item = weighing->items[i];
		}
	}
	if (match.section != NULL)
		keep_match(weighing->best, &match);
	for (int i = 0; i < weighing->nweights; i++)
		weighing->nearest[i] = get_float8_nan();
}

static void
visit_profile(void *arg, const Match *match)
{
	Weighing   *weighing = arg;

	if (weighing->source_id == NULL ||
		strcmp(weighing->source_id, match->source_id) != 0 ||
		strcmp(weighing->identifier, match->identifier) != 0)
	{
		if (weighing->source_id != NULL)
		{
			finish_profile(weighing);
			pfree(weighing->source_id);
			pfree(weighing->identifier);
		}
		weighing->source_id = MemoryContextStrdup(weighing->best->context,
												  match->source_id);
		weighing->identifier = MemoryContextStrdup(weighing->best->context,
												   match->identifier);
	}
	for (int i = 0; i < weighing->nweights; i++)
	{
		if (strcmp(weighing->weights[i].section, match->section) != 0 ||
			match->similarity <= weighing->nearest[i])
			continue;
		weighing->nearest[i] = match->similarity;
		weighing->items[i] = match->item;
	}
}

/*
 * The keys of the profiles that the indexes of all sections find, as
 * parameters; false where a section has no index.
 */
static bool
find_candidates(const HrflowStore *store, ArrayType *query,
				const Weight *weights, int nweights, int k,
				HrflowParameters *parameters)
{
	int			dimension = ArrayGetNItems(ARR_NDIM(query), ARR_DIMS(query));
	ArrayBuildState *sources = initArrayResult(TEXTOID, CurrentMemoryContext,
											   false);
	ArrayBuildState *identifiers = initArrayResult(TEXTOID,
												   CurrentMemoryContext,
												   false);

	for (int i = 0; i < nweights; i++)
	{
		VectorIndex *index = find_index(store, weights[i].section, dimension);
		Matches    *found = make_matches(Min(MAX_K, k * CANDIDATES));

		if (index == NULL)
			return false;
		search_index(store, index, query, weights[i].section, found);
		for (int j = 0; j < found->n; j++)
		{
			accumArrayResult(sources,
							 CStringGetTextDatum(found->matches[j]->source_id),
							 false, TEXTOID, CurrentMemoryContext);
			accumArrayResult(identifiers,
							 CStringGetTextDatum(found->matches[j]->identifier),
							 false, TEXTOID, CurrentMemoryContext);
		}
	}
	hrflow_store_add(parameters, TEXTARRAYOID,
					 makeArrayResult(sources, CurrentMemoryContext));
	hrflow_store_add(parameters, TEXTARRAYOID,
					 makeArrayResult(identifiers, CurrentMemoryContext));
	return true;
}

/*
 * Find the k best by the weighted sum of several sections.
 */
static Matches *
search_weighted(const HrflowStore *store, ArrayType *query,
				const Weight *weights, int nweights, int k)
{
	HrflowParameters parameters = {0};
	Weighing	weighing = {weights, nweights};
	Datum	   *sections = palloc(sizeof(Datum) * nweights);
	const char *candidates = "";

	weighing.nearest = palloc(sizeof(double) * nweights);
	weighing.items = palloc0(sizeof(int) * nweights);
	weighing.best = make_matches(k);
	for (int i = 0; i < nweights; i++)
	{
		weighing.nearest[i] = get_float8_nan();
		sections[i] = CStringGetTextDatum(weights[i].section);
	}
	hrflow_store_add(&parameters, TEXTARRAYOID,
					 PointerGetDatum(construct_array(sections, nweights,
													 TEXTOID, -1, false,
													 TYPALIGN_INT)));
	if (find_candidates(store, query, weights, nweights, k, &parameters))
		candidates = " AND (v.source_id, v.%I) IN"
			" (SELECT * FROM unnest($2, $3))";

	/* A profile's vectors together; the cast above the sort, not below. */
	compare_all(store,
				psprintf("SELECT v.source_id, v.%%I, v.section, v.item,"
						 " v.vector::real[] FROM (SELECT v.* FROM %%V AS v"
						 " WHERE v.section = ANY ($1)%s"
						 " ORDER BY v.source_id, v.%%I OFFSET 0) AS v",
						 candidates),
				&parameters, query, NULL, visit_profile, &weighing);
	if (weighing.source_id != NULL)
		finish_profile(&weighing);
	return weighing.best;
}

/*
 * ------------------------------------------------------------------------
 * The SQL functions
 * ------------------------------------------------------------------------
 */

/*
 * The query vector, in one piece.
 */
static ArrayType *
get_query(FunctionCallInfo fcinfo)
{
	ArrayType  *query = PG_GETARG_ARRAYTYPE_P(ARG_QUERY);
	int			n = ArrayGetNItems(ARR_NDIM(query), ARR_DIMS(query));
	float4	   *elements = (float4 *) ARR_DATA_PTR(query);
	bool		is_zero = true;

	if (ARR_NDIM(query) != 1 || array_contains_nulls(query))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a one-dimensional array without nulls",
						"query")));
	for (int i = 0; i < n; i++)
	{
		if (!isfinite(elements[i]))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("vector must not contain infinity or NaN")));
		is_zero = is_zero && elements[i] == 0;
	}
	if (is_zero)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a zero vector has no cosine similarity")));
	return query;
}

static int
get_k(FunctionCallInfo fcinfo, int argno)
{
	int			k = PG_GETARG_INT32(argno);

	if (k < 1 || k > MAX_K)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between 1 and %d", "k", MAX_K)));
	return k;
}

/*
 * Return the matches.
 */
static void
put_matches(FunctionCallInfo fcinfo, const Matches *best)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	for (int i = 0; i < best->n; i++)
	{
		const Match *match = best->matches[i];
		Datum		values[5];
		bool		nulls[5] = {false};

		values[0] = CStringGetTextDatum(match->source_id);
		values[1] = CStringGetTextDatum(match->identifier);
		values[2] = CStringGetTextDatum(match->section);
		values[3] = Int32GetDatum(match->item);
		values[4] = Float8GetDatum(match->similarity);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
}

/*
 * hrflow_match(store regclass, query real[], k int, section text)
 *		RETURNS TABLE (source_id text, profile_id text, section text, item int,
 *					   similarity double precision)
 */
Datum
hrflow_match(PG_FUNCTION_ARGS)
{
	ArrayType  *query = get_query(fcinfo);
	int			k = get_k(fcinfo, ARG_K);
	char	   *section = text_to_cstring(PG_GETARG_TEXT_PP(ARG_SECTION));
	HrflowStore store;

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(ARG_STORE), InvalidOid,
					  HRFLOW_STORE_READ);
	put_matches(fcinfo, search_section(&store, query, section, k));
	hrflow_store_close(&store);
	SPI_finish();
	return (Datum) 0;
}

/*
 * Read the weights: an object with a number for each section.
 */
static Weight *
get_weights(FunctionCallInfo fcinfo, int *nweights)
{
	Jsonb	   *jsonb = PG_GETARG_JSONB_P(ARG_WEIGHTS);
	Weight	   *weights;
	JsonbIterator *iterator;
	JsonbValue	value;
	JsonbIteratorToken token;
	char	   *section = NULL;
	int			n = 0;

	if (!JB_ROOT_IS_OBJECT(jsonb) || JB_ROOT_COUNT(jsonb) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("weights must be a JSON object with a number for each section"),
				 errhint("For example: {\"profile\": 0.6, \"skills\": 0.4}.")));
	weights = palloc(sizeof(Weight) * JB_ROOT_COUNT(jsonb));
	iterator = JsonbIteratorInit(&jsonb->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			section = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE)
		{
			double		weight = -1;

			Assert(section != NULL);
			/* What double precision lacks becomes infinite, or zero. */
			if (value.type == jbvNumeric)
				weight = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
															NumericGetDatum(value.val.numeric)));
			if (!(weight > 0) || !isfinite(weight))
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("weight of section \"%s\" must be a number greater than zero",
								section),
						 errdetail("Weights are double precision.")));
			weights[n].section = section;
			weights[n++].weight = weight;
		}
	}
	*nweights = n;
	return weights;
}

/*
 * hrflow_match_weighted(store regclass, query real[], weights jsonb, k int)
 *		RETURNS TABLE (source_id text, profile_id text, section text, item int,
 *					   similarity double precision)
 */
Datum
hrflow_match_weighted(PG_FUNCTION_ARGS)
{
	ArrayType  *query = get_query(fcinfo);
	int			k = get_k(fcinfo, ARG_WEIGHTED_K);
	int			nweights;
	Weight	   *weights = get_weights(fcinfo, &nweights);
	HrflowStore store;

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(ARG_STORE), InvalidOid,
					  HRFLOW_STORE_READ);
	put_matches(fcinfo, search_weighted(&store, query, weights, nweights, k));
	hrflow_store_close(&store);
	SPI_finish();
	return (Datum) 0;
}

/*
 * hrflow_index_statement(store regclass, section text) RETURNS text
 */
Datum
hrflow_index_statement(PG_FUNCTION_ARGS)
{
	char	   *section = text_to_cstring(PG_GETARG_TEXT_PP(1));
	HrflowParameters parameters = {0};
	HrflowStore store;
	char	   *schema;
	char	   *type;
	char	   *expression;
	char	   *statement;
	MemoryContext context = CurrentMemoryContext;
	int			dimension;
	bool		is_half;

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(ARG_STORE), InvalidOid,
					  HRFLOW_STORE_READ);
	if (hrflow_store_execute("SELECT quote_ident(n.nspname) FROM pg_extension AS e"
							 " JOIN pg_namespace AS n ON n.oid = e.extnamespace"
							 " WHERE e.extname = 'vector'", NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("an index of vectors needs pgvector"),
				 errhint("CREATE EXTENSION vector.")));
	schema = hrflow_store_value(0, 1);

	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(section));
	if (hrflow_store_execute(hrflow_store_sql(&store,
											  "SELECT cardinality(v.vector::real[]) FROM %V AS v"
											  " WHERE v.section = $1"
											  " AND cardinality(v.vector::real[]) > 0"
											  " LIMIT 1"),
							 &parameters) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("store %s has no vector of section \"%s\"",
						store.vectors_name, section),
				 errdetail("An index is made for a dimension, which a vector tells."),
				 errhint("CALL hrflow_refresh() first.")));
	dimension = DatumGetInt32(hrflow_store_datum(0, 1));
	is_half = dimension > 2000 ||
		strstr(store.vector_type, ".halfvec") != NULL;
	if (dimension > 4000)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("vectors of %d dimensions cannot be indexed", dimension),
				 errdetail("pgvector's HNSW indexes halfvec up to 4000.")));

	/* A column of that very type is indexed as it is. */
	type = psprintf("%s.%s(%d)", schema, is_half ? "halfvec" : "vector",
					dimension);
	expression = strcmp(store.vector_type, type) == 0 ? pstrdup("vector") :
		psprintf("(vector::%s)", type);
	statement = psprintf("CREATE INDEX%s ON %s USING hnsw (%s %s.%s_cosine_ops) WHERE section OPERATOR(pg_catalog.=) %s",
						 store.vectors->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ?
						 "" : " CONCURRENTLY",
						 store.vectors_name, expression, schema,
						 is_half ? "halfvec" : "vector",
						 quote_literal_cstr(section));
	statement = MemoryContextStrdup(context, statement);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_TEXT_P(cstring_to_text(statement));
}
