/*-------------------------------------------------------------------------
 *
 * match.c
 *		Finds the profiles of a store that are nearest to a vector.
 *
 * If the section to be searched has a pgvector index, and searching the index
 * is estimated to be cheaper than comparing every vector in the scope of the
 * search, the index is searched.  Otherwise, or if the index returns too few
 * profiles, every vector is compared.
 *
 * A weighted search uses indexes only if this holds for every section.  It
 * then compares only the profiles that are nearest in at least one section.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "compat.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "store/match.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(hrflow_match);
PG_FUNCTION_INFO_V1(hrflow_match_weighted);

/*
 * Arguments of hrflow_match_weighted() whose positions differ from those of
 * hrflow_match().
 */
#define ARG_WEIGHTS 2
#define ARG_WEIGHTED_K 3

/*
 * Maximum number of weights.  The API has five sections, and each match keeps
 * a similarity for each weight.
 */
#define MAX_WEIGHTS 100

/*
 * Number of candidates that a weighted search finds in each section if it uses
 * indexes, as a multiple of k.  The number is limited to HRFLOW_MAX_K.
 */
#define CANDIDATES 10

/*
 * Statement that returns the sections in $1 for which the store has no vector.
 */
static const char missing_statement[] =
"SELECT s FROM unnest($1) AS s"
" WHERE (SELECT true FROM %V AS v WHERE v.section = s LIMIT 1) IS NULL";

/*
 * Statement that returns a list of at most 20 sections of the store, for a
 * message.
 */
static const char sections_statement[] =
"SELECT string_agg('\"' || s.section || '\"', ', ' ORDER BY s.section)"
" FROM (SELECT DISTINCT v.section FROM %V AS v LIMIT 20) AS s";

/*
 * Statement that returns the estimated number of dead tuples of table $1 or,
 * if it is partitioned, of its partitions.
 */
static const char dead_statement[] =
"SELECT pg_stat_get_dead_tuples($1) + COALESCE(("
"SELECT sum(pg_stat_get_dead_tuples(p.relid))::bigint"
" FROM pg_partition_tree($1) AS p WHERE p.relid <> $1), 0)";

/*
 * A section and its weight in a weighted search.
 */
typedef struct Weight
{
	char	   *section;
	double		weight;
} Weight;

/*
 * ------------------------------------------------------------------------
 * Arguments
 * ------------------------------------------------------------------------
 */

/*
 * Return the query vector, detoasted.  Throws 22023 if it is not a
 * one-dimensional array of finite numbers, or is zero.
 */
static ArrayType *
get_query(FunctionCallInfo fcinfo)
{
	ArrayType  *query = PG_GETARG_ARRAYTYPE_P(HRFLOW_MATCH_QUERY);
	int			n = ArrayGetNItems(ARR_NDIM(query), ARR_DIMS(query));
	float4	   *elements = (float4 *) ARR_DATA_PTR(query);
	bool		is_zero = true;

	if (ARR_NDIM(query) != 1 || array_contains_nulls(query))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a one-dimensional array without nulls",
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
				 errmsg("cosine similarity is undefined for a zero vector")));
	return query;
}

/*
 * Return an argument, which must be between 1 and HRFLOW_MAX_K.
 *
 * Throws 22023.
 */
int
hrflow_match_get_number(FunctionCallInfo fcinfo, int argno, const char *name)
{
	int			number = PG_GETARG_INT32(argno);

	if (number < 1 || number > HRFLOW_MAX_K)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be between 1 and %d",
						name, HRFLOW_MAX_K)));
	return number;
}

/*
 * Read the argument "weights", a JSON object with a number for each section.
 * Throws 22023 if it is not valid.
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
	double		sum = 0;
	int			n = 0;

	if (!JB_ROOT_IS_OBJECT(jsonb) || JB_ROOT_COUNT(jsonb) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"weights\" must be a JSON object with a number for each section"),
				 errhint("For example, specify {\"profile\": 0.6, \"skills\": 0.4}.")));
	if (JB_ROOT_COUNT(jsonb) > MAX_WEIGHTS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"weights\" must not have more than %d members",
						MAX_WEIGHTS)));
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
			/* A number that is out of range becomes infinity or zero. */
			if (value.type == jbvNumeric)
				weight = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
															NumericGetDatum(value.val.numeric)));
			if (!(weight > 0) || !isfinite(weight))
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("weight of section \"%s\" must be a number greater than zero",
								section),
						 errdetail("Weights must be within the range of type double precision.")));
			sum += weight;
			weights[n].section = section;
			weights[n++].weight = weight;
		}
	}
	if (!isfinite(sum))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("sum of weights is out of range for type double precision")));
	*nweights = n;
	return weights;
}

/*
 * Replace section names with the names that the store uses, and add up the
 * weights of names that refer to the same section.  For example, "profile" and
 * "job" refer to the same section in a store of jobs.
 */
static void
merge_weights(const HrflowStore *store, Weight *weights, int *nweights)
{
	int			n = 0;

	for (int i = 0; i < *nweights; i++)
	{
		char	   *section = hrflow_kind_section(store->kind,
												  weights[i].section);
		double		weight = weights[i].weight;
		int			at = 0;

		while (at < n && strcmp(weights[at].section, section) != 0)
			at++;
		if (at == n)
		{
			weights[n].section = section;
			weights[n++].weight = 0;
		}
		weights[at].weight += weight;
	}
	*nweights = n;
}

/*
 * Is any argument null that must not be null?  If so, the SQL function must
 * behave as if it were STRICT.
 */
bool
hrflow_match_lacks_argument(FunctionCallInfo fcinfo)
{
	for (int i = 0; i < HRFLOW_MATCH_PROFILES; i++)
	{
		if (PG_ARGISNULL(i))
			return true;
	}
	return false;
}

/*
 * Set the query of a search.  The search keeps a pointer to the array, and
 * another to a copy of its elements in the current memory context.
 */
void
hrflow_match_set_query(HrflowSearch *search, ArrayType *query)
{
	search->query = query;
	search->dimension = ArrayGetNItems(ARR_NDIM(query), ARR_DIMS(query));
	search->elements =
		hrflow_similarity_prepare((const float4 *) ARR_DATA_PTR(query),
								  search->dimension, &search->norm);
}

/*
 * Create a search of an open store, in the current memory context.  The search
 * calls hrflow_vector_similarity() in the schema of the SQL function that was
 * called.
 */
HrflowSearch *
hrflow_match_make_search(FunctionCallInfo fcinfo, const HrflowStore *store)
{
	static const Oid types[] = {ANYOID, FLOAT4ARRAYOID};
	HrflowSearch *search = palloc0(sizeof(HrflowSearch));

	search->store = store;
	search->function = hrflow_catalog_function("hrflow_vector_similarity",
											   types, lengthof(types),
											   fcinfo->flinfo->fn_oid);
	return search;
}

/*
 * Restrict a search according to the arguments "profiles" and "source_id".
 */
void
hrflow_match_restrict_search(FunctionCallInfo fcinfo, HrflowSearch *search)
{
	if (!PG_ARGISNULL(HRFLOW_MATCH_PROFILES))
	{
		search->profiles = PG_GETARG_ARRAYTYPE_P(HRFLOW_MATCH_PROFILES);
		search->nprofiles = ArrayGetNItems(ARR_NDIM(search->profiles),
										   ARR_DIMS(search->profiles));
	}
	if (!PG_ARGISNULL(HRFLOW_MATCH_SOURCE_ID))
		search->source_id = PG_GETARG_TEXT_PP(HRFLOW_MATCH_SOURCE_ID);
}

/*
 * ------------------------------------------------------------------------
 * One section
 * ------------------------------------------------------------------------
 */

/*
 * Report in a NOTICE, once per search, that an index returned only "found" of
 * k profiles, if dead tuples are the likely cause.  That requires that the dead
 * tuples of the table could be as large a part of all vectors that a scan
 * visits as the missing profiles are of k.  If there are fewer, the usual
 * cause is a condition that few of the visited vectors satisfy, and VACUUM
 * would not help.
 */
static void
report_dead_tuples(HrflowSearch *search, const HrflowIndex *index,
				   int found, int k)
{
	HrflowParameters parameters = {0};
	int64		dead;

	if (search->has_reported)
		return;
	hrflow_store_add(&parameters, OIDOID,
					 ObjectIdGetDatum(RelationGetRelid(search->store->vectors)));
	hrflow_store_execute(dead_statement, &parameters);
	dead = DatumGetInt64(hrflow_store_datum(0, 1));
	if ((double) dead * k < hrflow_index_max_visited(index) * (k - found))
		return;
	search->has_reported = true;
	ereport(NOTICE,
			(errmsg_plural("index %s returned only %d profile, so all vectors were compared",
						   "index %s returned only %d profiles, so all vectors were compared",
						   found, index->name, found),
			 errdetail_plural("Store %s has about " INT64_FORMAT " dead row, which the index still returns.",
							  "Store %s has about " INT64_FORMAT " dead rows, which the index still returns.",
							  dead, search->store->vectors_name, dead),
			 errhint("Run VACUUM %s.", search->store->vectors_name)));
}

/*
 * Find the best matches in a section, and add them to "best".  Searches an
 * index if there is one that is cheaper.  If there is none, or if it does not
 * find enough profiles, compares all vectors in the scope of the search.
 */
void
hrflow_match_search_section(HrflowSearch *search, const char *section,
							HrflowBest *best)
{
	HrflowIndex *index = hrflow_index_find(search, section);
	int			found;

	if (index == NULL ||
		!hrflow_index_is_cheaper(search, index, section, best->k))
	{
		hrflow_exact_search(search, section, best);
		return;
	}
	hrflow_index_search(search, index, section, best);
	found = best->n;
	if (found < best->k)
	{
		hrflow_exact_search(search, section, best);
		if (best->n > found)
			report_dead_tuples(search, index, found, best->k);
	}
}

/*
 * ------------------------------------------------------------------------
 * Several sections
 * ------------------------------------------------------------------------
 */

/*
 * State of a weighted search.  The search visits all vectors of a profile
 * before those of the next profile, and adds up the weighted similarities of
 * each profile's sections.
 */
typedef struct Weighing
{
	const Weight *weights;
	int			nweights;
	bool	   *seen;			/* per section: was at least one vector
								 * visited? */
	double	   *nearest;		/* per section: similarity of the profile's
								 * best item, or NaN */
	int		   *items;
	double	   *parts;
	char	   *source_id;		/* source of the current profile, or NULL
								 * before the first profile */
	char	   *identifier;
	HrflowBest *best;
} Weighing;

/*
 * Called when all vectors of the current profile have been visited.  Computes
 * the weighted sum, and keeps the profile if it is among the best.
 */
static void
finish_profile(Weighing *weighing)
{
	HrflowMatch match = {
		.source_id = weighing->source_id,
		.identifier = weighing->identifier,
		.parts = weighing->parts
	};
	double		largest = 0;

	for (int i = 0; i < weighing->nweights; i++)
	{
		double		part = weighing->weights[i].weight * weighing->nearest[i];

		match.parts[i] = part;
		weighing->nearest[i] = get_float8_nan();
		if (isnan(part))
			continue;
		match.similarity += part;
		if (match.section == NULL || part > largest)
		{
			largest = part;
			match.section = weighing->weights[i].section;
			match.item = weighing->items[i];
		}
	}
	if (match.section != NULL)
		hrflow_best_keep(weighing->best, &match);
}

static void
visit_vector(void *arg, const HrflowMatch *match)
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
		if (strcmp(weighing->weights[i].section, match->section) != 0)
			continue;
		weighing->seen[i] = true;
		if (match->similarity <= weighing->nearest[i])
			continue;
		weighing->nearest[i] = match->similarity;
		weighing->items[i] = match->item;
	}
}

/*
 * Use the indexes of the sections to find profiles that are near the query in
 * at least one section.  Returns NULL if any section has no index, or has one
 * that is not cheaper than comparing all vectors in the scope of the search.
 */
static HrflowBest *
find_candidates(HrflowSearch *search, const Weight *weights, int nweights,
				int k)
{
	int			each = Min(HRFLOW_MAX_K, k * CANDIDATES);
	HrflowBest *candidates;

	for (int i = 0; i < nweights; i++)
	{
		const char *section = weights[i].section;
		HrflowIndex *index = hrflow_index_find(search, section);

		if (index == NULL ||
			!hrflow_index_is_cheaper(search, index, section, each))
			return NULL;
	}
	candidates = hrflow_best_make(nweights * each, 0);
	for (int i = 0; i < nweights; i++)
	{
		HrflowBest *found = hrflow_best_make(each, 0);

		hrflow_match_search_section(search, weights[i].section, found);
		for (int j = 0; j < found->n; j++)
			hrflow_best_keep(candidates, found->matches[j]);
	}
	return candidates;
}

/*
 * Find the profiles with the greatest weighted sums of similarities, over
 * several sections, and add them to "best".  Sets seen[] to true for each
 * section in which at least one vector was visited.
 */
static void
search_weighted(HrflowSearch *search, const Weight *weights, int nweights,
				ArrayType *sections, bool *seen, HrflowBest *best)
{
	Weighing	weighing = {
		.weights = weights,
		.nweights = nweights,
		.seen = seen,
		.nearest = palloc(sizeof(double) * nweights),
		.items = palloc0(sizeof(int) * nweights),
		.parts = palloc(sizeof(double) * nweights),
		.best = best
	};

	for (int i = 0; i < nweights; i++)
		weighing.nearest[i] = get_float8_nan();

	hrflow_exact_visit(search, sections,
					   find_candidates(search, weights, nweights, best->k),
					   visit_vector, &weighing);
	if (weighing.source_id != NULL)
		finish_profile(&weighing);
}

/*
 * ------------------------------------------------------------------------
 * Results
 * ------------------------------------------------------------------------
 */

/*
 * Warn about a section that has no vectors.  "there" lists sections that have
 * vectors, and is NULL if the store is empty.  For an empty store, warn only
 * if its kind has sections, and the API is not known to have this one.
 */
static void
warn_about_section(const HrflowStore *store, const char *section,
				   const char *there)
{
	const char *nearest = hrflow_section_nearest(section);

	if (there == NULL && store->kind->has_sections)
		hrflow_section_check(section);
	else if (there != NULL)
		ereport(WARNING,
				(errmsg("store %s has no vector of section \"%s\"",
						store->vectors_name, section),
				 errdetail("The store has vectors of %s.", there),
				 nearest != NULL && strcmp(nearest, section) != 0 ?
				 errhint("Perhaps you meant \"%s\".", nearest) : 0));
}

/*
 * Warn if a search may have found too few profiles because of a mistake: a
 * section has no vectors, usually because its name is misspelled, or nothing
 * was found ("is_empty") and no vector has the dimension of the query, usually
 * because another model made the query.  The elements of the query are not
 * used.  Must not be called for a search that was restricted to an empty list
 * of profiles.
 */
static void
warn_about_nothing(HrflowSearch *search, ArrayType *sections, bool is_empty)
{
	const HrflowStore *store = search->store;
	HrflowParameters parameters = {0};
	uint64		n;
	int			other;

	hrflow_store_add(&parameters, TEXTARRAYOID, PointerGetDatum(sections));
	n = hrflow_store_execute(hrflow_store_sql(store, missing_statement),
							 &parameters);
	if (n > 0)
	{
		SPITupleTable *missing = SPI_tuptable;
		char	   *there;

		hrflow_store_execute(hrflow_store_sql(store, sections_statement),
							 NULL);
		there = hrflow_store_value_or_null(0, 1);
		for (uint64 i = 0; i < n; i++)
			warn_about_section(store, SPI_getvalue(missing->vals[i],
												   missing->tupdesc, 1),
							   there);
		return;
	}
	other = is_empty ? hrflow_exact_other_dimension(search, sections) : 0;
	if (other > 0)
		ereport(WARNING,
				(errmsg("search of store %s found no vectors with %d dimensions",
						store->vectors_name, search->dimension),
				 errdetail("At least one vector in the scope of the search has %d dimensions.",
						   other),
				 errhint("Compare only vectors that were made by the same model.")));
}

static ArrayType *
make_sections(const Weight *weights, int n)
{
	Datum	   *sections = palloc(sizeof(Datum) * n);

	for (int i = 0; i < n; i++)
		sections[i] = CStringGetTextDatum(weights[i].section);
	return construct_array(sections, n, TEXTOID, -1, false, TYPALIGN_INT);
}

/*
 * Warn if a section of a store has no vectors, or none with the given
 * dimension.  If "dimension" is 0, vectors may have any dimension.  The caller
 * must be connected to SPI.
 */
void
hrflow_match_warn(Oid relid, char *name, int dimension)
{
	HrflowStore store;
	HrflowSearch search = {.store = &store, .dimension = dimension};
	Weight		section = {NULL, 1};

	hrflow_store_open(&store, relid, InvalidOid, HRFLOW_STORE_RANK);
	section.section = hrflow_kind_section(store.kind, name);
	warn_about_nothing(&search, make_sections(&section, 1), dimension > 0);
	hrflow_store_close(&store);
}

/*
 * Return the weighted similarities of a match as a JSON object with one member
 * per section, except sections that the profile lacks.
 */
static Datum
make_parts(const HrflowMatch *match, const Weight *weights, int nweights)
{
	HrflowJsonbState state = {0};

	hrflow_compat_push_jsonb(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < nweights; i++)
	{
		JsonbValue	key;
		JsonbValue	part;

		if (isnan(match->parts[i]))
			continue;
		key.type = jbvString;
		key.val.string.val = weights[i].section;
		key.val.string.len = strlen(weights[i].section);
		part.type = jbvNumeric;
		part.val.numeric =
			DatumGetNumeric(DirectFunctionCall1(float8_numeric,
												Float8GetDatum(match->parts[i])));
		hrflow_compat_push_jsonb(&state, WJB_KEY, &key);
		hrflow_compat_push_jsonb(&state, WJB_VALUE, &part);
	}
	hrflow_compat_push_jsonb(&state, WJB_END_OBJECT, NULL);
	return JsonbPGetDatum(JsonbValueToJsonb(state.result));
}

/*
 * Return the matches as rows.  "weights" are the weights of
 * hrflow_match_weighted(); NULL means that there is no column "parts".
 */
static void
put_matches(FunctionCallInfo fcinfo, const HrflowBest *best,
			const Weight *weights)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	for (int i = 0; i < best->n; i++)
	{
		const HrflowMatch *match = best->matches[i];
		Datum		values[6];
		bool		nulls[6] = {false};

		values[0] = CStringGetTextDatum(match->source_id);
		values[1] = CStringGetTextDatum(match->identifier);
		values[2] = CStringGetTextDatum(match->section);
		values[3] = Int32GetDatum(match->item);
		values[4] = Float8GetDatum(match->similarity);
		if (weights != NULL)
			values[5] = make_parts(match, weights, best->nparts);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
}

/*
 * ------------------------------------------------------------------------
 * The SQL functions
 * ------------------------------------------------------------------------
 */

/*
 * hrflow_match(store regclass, query real[], k int, section text,
 *				profiles text[], source_id text)
 *		RETURNS TABLE (source_id text, profile_id text, section text, item int,
 *					   similarity double precision)
 */
Datum
hrflow_match(PG_FUNCTION_ARGS)
{
	Weight		section = {NULL, 1};
	HrflowStore store;
	HrflowSearch *search;
	HrflowBest *best;
	ArrayType  *query;
	int			k;

	InitMaterializedSRF(fcinfo, 0);
	if (hrflow_match_lacks_argument(fcinfo))
		return (Datum) 0;
	query = get_query(fcinfo);
	k = hrflow_match_get_number(fcinfo, HRFLOW_MATCH_K, "k");
	section.section = text_to_cstring(PG_GETARG_TEXT_PP(HRFLOW_MATCH_SECTION));

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(HRFLOW_MATCH_STORE), InvalidOid,
					  HRFLOW_STORE_RANK);
	section.section = hrflow_kind_section(store.kind, section.section);
	search = hrflow_match_make_search(fcinfo, &store);
	hrflow_match_set_query(search, query);
	hrflow_match_restrict_search(fcinfo, search);
	best = hrflow_best_make(k, 0);
	if (search->profiles == NULL || search->nprofiles > 0)
	{
		hrflow_match_search_section(search, section.section, best);
		if (best->n == 0)
			warn_about_nothing(search, make_sections(&section, 1), true);
	}
	put_matches(fcinfo, best, NULL);
	hrflow_store_close(&store);
	SPI_finish();
	return (Datum) 0;
}

/*
 * hrflow_match_weighted(store regclass, query real[], weights jsonb, k int,
 *						 profiles text[], source_id text)
 *		RETURNS TABLE (source_id text, profile_id text, section text, item int,
 *					   similarity double precision, parts jsonb)
 */
Datum
hrflow_match_weighted(PG_FUNCTION_ARGS)
{
	Weight	   *weights;
	int			nweights;
	HrflowStore store;
	HrflowSearch *search;
	HrflowBest *best;
	ArrayType  *query;
	int			k;

	InitMaterializedSRF(fcinfo, 0);
	if (hrflow_match_lacks_argument(fcinfo))
		return (Datum) 0;
	query = get_query(fcinfo);
	k = hrflow_match_get_number(fcinfo, ARG_WEIGHTED_K, "k");
	weights = get_weights(fcinfo, &nweights);

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(HRFLOW_MATCH_STORE), InvalidOid,
					  HRFLOW_STORE_RANK);
	merge_weights(&store, weights, &nweights);
	search = hrflow_match_make_search(fcinfo, &store);
	hrflow_match_set_query(search, query);
	hrflow_match_restrict_search(fcinfo, search);
	best = hrflow_best_make(k, nweights);
	if (search->profiles == NULL || search->nprofiles > 0)
	{
		ArrayType  *sections = make_sections(weights, nweights);
		bool	   *seen = palloc0(sizeof(bool) * nweights);
		bool		all_seen = true;

		search_weighted(search, weights, nweights, sections, seen, best);
		for (int i = 0; i < nweights; i++)
			all_seen = all_seen && seen[i];
		if (!all_seen)
			warn_about_nothing(search, sections, best->n == 0);
	}
	put_matches(fcinfo, best, weights);
	hrflow_store_close(&store);
	SPI_finish();
	return (Datum) 0;
}
