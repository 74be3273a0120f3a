/*-------------------------------------------------------------------------
 *
 * erase.c
 *		The only place that erases profiles and their vectors.
 *
 * Rows of the table of profiles are locked in the order of their keys, and
 * before it is asked whether anybody else wants a profile: that is asked with
 * a snapshot taken after the lock, so that of a deletion here and an insertion
 * there, at the same time, the second one sees the first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "store/refresh.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

/* Lock profiles that meet a condition, and erase them. */
static const char lock_candidates_sql[] =
"SELECT FROM %P AS p WHERE %s ORDER BY p.source_id, p.%I FOR UPDATE OF p";

static const char erase_sql[] =
"WITH erased AS (DELETE FROM %P AS p WHERE %s"
" RETURNING p.source_id, p.%I),"
" vectors AS (DELETE FROM %V AS v USING erased AS e"
" WHERE v.source_id = e.source_id AND v.%I = e.%I)"
" SELECT count(*) FROM erased";

/* The condition for one of some profiles, and another condition met. */
static const char one_of_sql[] = "(p.source_id, p.%I) IN %s";
static const char and_one_of_sql[] = "%s AND (p.source_id, p.%I) IN %s";

/* In these two $1 is the source of the profiles, and $2 are their identifiers. */
static const char erase_profiles_sql[] =
"WITH locked AS MATERIALIZED"
" (SELECT p.%I AS i FROM %P AS p"
" WHERE p.source_id = $1 AND p.%I = ANY ($2) ORDER BY p.%I FOR UPDATE)"
" DELETE FROM %P AS p USING locked"
" WHERE p.source_id = $1 AND p.%I = locked.i";

static const char erase_vectors_sql[] =
"DELETE FROM %V AS v WHERE v.source_id = $1 AND v.%I = ANY ($2)";

/*
 * $1 to $3 are the keys and generations of profiles that the API did not know
 * twice, and $4 is when the run began.
 */
static const char erase_gone_sql[] =
"WITH known AS MATERIALIZED"
" (SELECT p.source_id AS s, max(p.refreshed_at) AS at"
" FROM %P AS p WHERE p.source_id = ANY ($1) GROUP BY 1),"
" locked AS MATERIALIZED"
" (SELECT p.source_id AS s, p.%I AS i,"
" COALESCE(known.at > COALESCE(%F, $4), false) AS proven"
" FROM %P AS p JOIN unnest($1, $2, $3) AS k(s, i, generation)"
" ON p.source_id = k.s AND p.%I = k.i"
" JOIN known ON p.source_id = known.s"
" WHERE p.state = 'missing' AND p.generation = k.generation"
" ORDER BY p.source_id, p.%I"
" FOR UPDATE OF p SKIP LOCKED),"
" gone AS (UPDATE %P AS p SET state = 'gone', due_at = NULL,"
" lease_until = NULL FROM locked AS k"
" WHERE p.source_id = k.s AND p.%I = k.i AND k.proven"
" RETURNING k.s, k.i),"
" vectors AS (DELETE FROM %V AS v USING gone AS k"
" WHERE v.source_id = k.s AND v.%I = k.i)"
" SELECT count(*), count(*) FILTER (WHERE NOT proven) FROM locked";

/*
 * Lock the profiles that meet one condition, and erase those that meet another
 * by then.  Returns their number.
 */
static uint64
erase(const HrflowStore *store, const char *candidates, const char *unwanted,
	  const HrflowParameters *parameters)
{
	hrflow_store_execute_latest(hrflow_store_sql(store, lock_candidates_sql, candidates),
								parameters);
	hrflow_store_execute_latest(hrflow_store_sql(store, erase_sql, unwanted),
								parameters);
	return DatumGetInt64(hrflow_store_datum(0, 1));
}

/*
 * Erase all profiles that nobody wants.  Returns their number.
 */
uint64
hrflow_erase_unwanted(const HrflowStore *store, Oid function)
{
	char	   *unwanted = hrflow_feeder_unwanted(store, function);

	return erase(store, unwanted, unwanted, NULL);
}

/*
 * Erase those of some profiles that nobody wants.  "profiles" is SQL for their
 * keys, as (s, i).  Returns their number.
 */
uint64
hrflow_erase_unwanted_of(const HrflowStore *store, Oid function,
						 const char *profiles,
						 const HrflowParameters *parameters)
{
	char	   *unwanted = hrflow_feeder_unwanted(store, function);

	return erase(store, hrflow_store_sql(store, one_of_sql, profiles),
				 hrflow_store_sql(store, and_one_of_sql, unwanted, profiles),
				 parameters);
}

/*
 * Erase profiles whoever wants them; see erase_profiles_sql for the parameters.
 * Returns their number.
 */
uint64
hrflow_erase_profiles(const HrflowStore *store,
					  const HrflowParameters *parameters)
{
	uint64		n = hrflow_store_execute(hrflow_store_sql(store,
														  erase_profiles_sql),
										 parameters);

	hrflow_store_execute(hrflow_store_sql(store, erase_vectors_sql),
						 parameters);
	return n;
}

/*
 * Erase those that are gone: where the API is known to know others.  Another
 * one of the source must have been refreshed since the one was first not
 * found; else, a wrong address or key would erase a store little by little,
 * however few a run asks for.  Without that, those stay missing.
 *
 * A table of a person's that has no failed_at does not tell since when they
 * are missing: it was before the run, so what the run has refreshed counts.
 *
 * Returns the number that are gone now; "nkept" becomes that of those that stay
 * missing.
 */
uint64
hrflow_erase_gone(HrflowRun *run, const HrflowStore *store, int64 *nkept)
{
	static const Oid types[] = {TEXTOID, TEXTOID, INT8OID};
	HrflowRows *rows = hrflow_store_make_rows(types, lengthof(types),
											  list_length(run->gone));
	HrflowParameters parameters = {0};
	ListCell   *cell;

	foreach(cell, run->gone)
	{
		HrflowGone *gone = lfirst(cell);
		Datum		values[lengthof(types)];

		values[0] = CStringGetTextDatum(gone->source_id);
		values[1] = CStringGetTextDatum(gone->identifier);
		values[2] = Int64GetDatum(gone->generation);
		hrflow_store_add_row(rows, values, NULL);
	}
	hrflow_store_add_rows(&parameters, rows);
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->started));
	hrflow_store_execute(hrflow_store_sql(store, erase_gone_sql), &parameters);
	*nkept = DatumGetInt64(hrflow_store_datum(0, 2));
	return DatumGetInt64(hrflow_store_datum(0, 1)) - *nkept;
}
