/*-------------------------------------------------------------------------
 *
 * recall.c
 *		Implements hrflow_match_recall(), which measures how much of the exact
 *		result hrflow_match() returns in a store with an index.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "store/match.h"
#include "utils/array.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(hrflow_match_recall);

/*
 * Arguments of hrflow_match_recall() that hrflow_match() lacks, or
 * has at other positions.
 */
#define ARG_RECALL_SECTION 1
#define ARG_RECALL_SAMPLE 2
#define ARG_RECALL_K 3

/*
 * Maximum difference between two similarities that are considered equal.
 * Products may be added in a different order, which changes a similarity
 * slightly.
 */
#define TOLERANCE 1e-9

/*
 * Statement that returns the keys of a random sample of at most $2 vectors of
 * section $1.
 */
static const char sample_statement[] =
"SELECT v.source_id, v.%I, v.section, v.item FROM %V AS v"
" WHERE v.section = $1 ORDER BY random() LIMIT $2";

static const char vector_statement[] =
"SELECT v.vector::real[] FROM %V AS v WHERE v.source_id = $1 AND v.%I = $2"
" AND v.section = $3 AND v.item = $4 AND v.vector IS NOT NULL";

/*
 * Of the k profiles nearest to the query of a search, return the fraction that
 * hrflow_match() finds, or 1 if there are no profiles.  A profile counts as
 * found if it is at least as near as the last of the k profiles.
 */
static double
measure_recall(HrflowSearch *search, const char *section, int k)
{
	HrflowBest *found = hrflow_best_make(k, 0);
	HrflowBest *wanted = hrflow_best_make(k, 0);
	int			n = 0;

	hrflow_match_search_section(search, section, found);
	hrflow_exact_search(search, section, wanted);
	for (int i = 0; i < found->n && wanted->n > 0; i++)
		n += found->matches[i]->similarity >=
			wanted->matches[wanted->n - 1]->similarity - TOLERANCE;
	return wanted->n == 0 ? 1 : (double) n / wanted->n;
}

/*
 * Set the query of a search to a vector of the sample.  Returns false if the
 * vector is null, has been deleted since it was sampled, or cannot be a query
 * because it is not one-dimensional, contains nulls, or has a length that is
 * zero or not finite.  Throws 22004 if its key contains a null.
 */
static bool
set_sampled_query(HrflowSearch *search, SPITupleTable *sample, uint64 row)
{
	static const Oid types[] = {TEXTOID, TEXTOID, TEXTOID, INT4OID};
	HrflowParameters key = {0};
	ArrayType  *vector;
	int			n;

	for (int i = 0; i < lengthof(types); i++)
	{
		bool		is_null;

		hrflow_store_add(&key, types[i],
						 SPI_getbinval(sample->vals[row], sample->tupdesc,
									   i + 1, &is_null));
		if (is_null)
			hrflow_store_refuse_null(SPI_fname(sample->tupdesc, i + 1));
	}
	if (hrflow_store_execute(hrflow_store_sql(search->store,
											  vector_statement), &key) == 0)
		return false;
	vector = DatumGetArrayTypeP(hrflow_store_datum(0, 1));
	(void) hrflow_layout_read(HRFLOW_LAYOUT_ARRAY, (struct varlena *) vector, &n);
	if (n == 0)
		return false;
	hrflow_match_set_query(search, vector);
	return search->norm > 0 && isfinite(search->norm);
}

/*
 * hrflow_match_recall(store regclass, section text, sample int, k int,
 *					   profiles text[], source_id text)
 *		RETURNS double precision
 */
Datum
hrflow_match_recall(PG_FUNCTION_ARGS)
{
	char	   *section;
	int			sample;
	int			k;
	HrflowParameters parameters = {0};
	HrflowStore store;
	HrflowSearch *search;
	SPITupleTable *keys;
	double		sum = 0;
	int			measured = 0;
	uint64		n;

	if (hrflow_match_lacks_argument(fcinfo))
		PG_RETURN_NULL();
	section = text_to_cstring(PG_GETARG_TEXT_PP(ARG_RECALL_SECTION));
	sample = hrflow_match_get_number(fcinfo, ARG_RECALL_SAMPLE, "sample");
	k = hrflow_match_get_number(fcinfo, ARG_RECALL_K, "k");

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(HRFLOW_MATCH_STORE), InvalidOid,
					  HRFLOW_STORE_RANK);
	section = hrflow_kind_section(store.kind, section);
	search = hrflow_match_make_search(fcinfo, &store);
	hrflow_match_restrict_search(fcinfo, search);
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(section));
	hrflow_store_add(&parameters, INT8OID, Int64GetDatum(sample));
	n = hrflow_store_execute(hrflow_store_sql(&store, sample_statement),
							 &parameters);
	keys = SPI_tuptable;
	for (uint64 i = 0; i < n; i++)
	{
		/*
		 * Connect for each search, so that SPI_finish() frees its results.
		 */
		SPI_connect();
		if (set_sampled_query(search, keys, i))
		{
			if (hrflow_index_find(search, section) == NULL)
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("store %s has no usable index for section \"%s\"",
								store.vectors_name, section),
						 errhint("Create an index with the statement that hrflow_index_statement() returns.")));
			sum += measure_recall(search, section, k);
			measured++;
		}
		SPI_finish();
	}
	hrflow_store_close(&store);
	SPI_finish();
	if (measured == 0)
		PG_RETURN_NULL();
	PG_RETURN_FLOAT8(sum / measured);
}
