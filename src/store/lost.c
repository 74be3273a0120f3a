/*-------------------------------------------------------------------------
 *
 * lost.c
 *		Puts aside stored vectors that are missing from the reply for their
 *		profile.
 *
 * A profile whose content has become empty is not requested.  It is treated
 * like a profile whose reply contains no vector.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "store/refresh.h"
#include "utils/array.h"
#include "utils/builtins.h"

/*
 * SQL conditions for the stored vectors of a profile.  IS_ASKED_FOR selects
 * vectors that the run requested, and IS_LOST those that are not in the reply.
 * $1 and $2 are the key of the profile.  $3 to $5 are arrays of what was
 * requested: whole sections (null if all sections were requested), and the
 * sections and items of elements.  $6 and $7 are arrays of the sections and
 * items of the vectors in the reply.
 */
#define IS_ASKED_FOR \
	" AND ($3 IS NULL OR v.section = ANY ($3)" \
	" OR (v.section, v.item) IN (SELECT * FROM unnest($4, $5)))"

#define IS_LOST "(v.section, v.item) NOT IN (SELECT * FROM unnest($6, $7))"

/*
 * Statement that returns a text that lists the sections of which more than
 * half of the requested vectors are lost, or null if there are none, and a
 * boolean that tells whether any vector is lost.
 */
static const char find_lost_sql[] =
"SELECT string_agg(CASE WHEN l.nlost = l.n THEN l.section"
" ELSE format('%%s (%%s of %%s)', l.section, l.nlost, l.n) END, ', '"
" ORDER BY l.section) FILTER (WHERE l.nlost * 2 > l.n),"
" COALESCE(sum(l.nlost) > 0, false)"
" FROM (SELECT v.section, count(*) AS n,"
" count(*) FILTER (WHERE " IS_LOST ") AS nlost FROM %V AS v"
" WHERE v.source_id = $1 AND v.%I = $2" IS_ASKED_FOR
" GROUP BY v.section) AS l";

/* Statement that puts all lost vectors of a profile aside. */
static const char put_lost_sql[] =
"WITH vectors AS (DELETE FROM %V AS v"
" WHERE v.source_id = $1 AND v.%I = $2" IS_ASKED_FOR " AND " IS_LOST
" RETURNING v.source_id, v.%I, v.section, v.item, v.vector, v.fetched_at,"
" NULL AS state, NULL::timestamptz AS due_at)%s"
" SELECT count(*) FROM vectors";

static Oid	lost_types[] = {TEXTOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID,
INT4ARRAYOID, TEXTARRAYOID, INT4ARRAYOID};

#define NLOST_TYPES 7

/*
 * Statement that sets "erased_at" of the profiles whose sources and
 * identifiers are in the arrays $1 and $2.
 */
static const char note_erased_sql[] =
"UPDATE %P AS p SET erased_at = clock_timestamp()"
" FROM unnest($1, $2) AS k(s, i) WHERE p.source_id = k.s AND p.%I = k.i";

/*
 * Number of profiles, and part of the profiles refreshed by a run, that
 * usually lose at most half of each section, because candidates often remove
 * elements of lists.  A run that exceeds both raises a WARNING.
 */
#define USUAL_SHORTENED 20
#define USUAL_SHORTENED_PART 0.05

static ArrayType *
make_texts(Datum *texts, int n)
{
	return construct_array(texts, n, TEXTOID, -1, false, TYPALIGN_INT);
}

static ArrayType *
make_integers(Datum *integers, int n)
{
	return construct_array(integers, n, INT4OID, sizeof(int32), true,
						   TYPALIGN_INT);
}

/*
 * Return an array with the section of each vector of a profile.
 */
static ArrayType *
get_sections(const HrflowProfile *profile)
{
	int			n = list_length(profile->vectors);
	Datum	   *sections = palloc(sizeof(Datum) * Max(n, 1));
	ListCell   *cell;

	foreach(cell, profile->vectors)
	{
		const HrflowVector *vector = lfirst(cell);

		sections[foreach_current_index(cell)] =
			CStringGetTextDatum(vector->section);
	}
	return make_texts(sections, n);
}

/*
 * Return an array with the item of each vector of a profile.
 */
static ArrayType *
get_items(const HrflowProfile *profile)
{
	int			n = list_length(profile->vectors);
	Datum	   *items = palloc(sizeof(Datum) * Max(n, 1));
	ListCell   *cell;

	foreach(cell, profile->vectors)
	{
		const HrflowVector *vector = lfirst(cell);

		items[foreach_current_index(cell)] = Int32GetDatum(vector->item);
	}
	return make_integers(items, n);
}

/*
 * Did the run request all sections of a profile?  It did if "fields" was not
 * given, unless the API replied that a section has no vector: in that case,
 * the run requested only the known sections, one by one.
 */
static bool
has_asked_for_all(const HrflowRun *run, const HrflowProfile *profile)
{
	return run->fields == NULL && !profile->no_vector;
}

/*
 * Return the parts that a run requests: whole sections, and the sections and
 * items of single elements.  Elements that are not specified by an index are
 * left out.
 */
void
hrflow_lost_asked_for(const HrflowRun *run, ArrayType **whole,
					  ArrayType **sections, ArrayType **items)
{
	int			n = Max(list_length(run->parts), 1);
	Datum	   *of_whole = palloc(sizeof(Datum) * n);
	Datum	   *of_sections = palloc(sizeof(Datum) * n);
	Datum	   *of_items = palloc(sizeof(Datum) * n);
	int			nwhole = 0;
	int			nelements = 0;
	ListCell   *cell;

	foreach(cell, run->parts)
	{
		const HrflowPart *part = lfirst(cell);

		if (!part->is_element)
			of_whole[nwhole++] = CStringGetTextDatum(part->section);
		else if (part->item >= 0)
		{
			of_sections[nelements] = CStringGetTextDatum(part->section);
			of_items[nelements++] = Int32GetDatum(part->item);
		}
	}
	*whole = make_texts(of_whole, nwhole);
	*sections = make_texts(of_sections, nelements);
	*items = make_integers(of_items, nelements);
}

/*
 * Execute find_lost_sql or put_lost_sql for a profile.
 */
static void
execute_for(const HrflowRun *run, SPIPlanPtr plan,
			const HrflowProfile *profile)
{
	Datum		values[NLOST_TYPES];
	char		nulls[NLOST_TYPES];
	ArrayType  *whole;
	ArrayType  *sections;
	ArrayType  *items;

	memset(nulls, ' ', sizeof(nulls));
	hrflow_lost_asked_for(run, &whole, &sections, &items);
	values[0] = CStringGetTextDatum(profile->source_id);
	values[1] = CStringGetTextDatum(profile->identifier);
	values[2] = PointerGetDatum(whole);
	values[3] = PointerGetDatum(sections);
	values[4] = PointerGetDatum(items);
	values[5] = PointerGetDatum(get_sections(profile));
	values[6] = PointerGetDatum(get_items(profile));
	if (has_asked_for_all(run, profile))
		nulls[2] = 'n';
	hrflow_store_execute_plan(plan, values, nulls);
}

/*
 * Find out whether the reply for a profile lacks stored vectors that were
 * requested, and set "has_lost".  If the reply lacks more than half of these
 * vectors in any section, set "lost" to an error message that names all such
 * sections.
 */
static void
find_lost(const HrflowRun *run, SPIPlanPtr plan, HrflowProfile *profile)
{
	char	   *lost;

	execute_for(run, plan, profile);
	lost = hrflow_store_value_or_null(0, 1);
	profile->has_lost = DatumGetBool(hrflow_store_datum(0, 2));
	SPI_freetuptable(SPI_tuptable);
	if (lost != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(profile->context);

		profile->lost = psprintf(profile->is_empty ?
								 "The content has become empty, but there are vectors of sections: %s" :
								 "HrFlow no longer has vectors of the requested sections: %s",
								 lost);
		MemoryContextSwitchTo(old);
	}
}

/*
 * Decide whether profiles may lose vectors.  "losers" are all profiles whose
 * replies lack stored vectors; "n" of them lack more than half of a section.
 * Either all of these "n" may lose vectors, or none of them.  The others are
 * not limited, because candidates often remove elements of lists.  If the
 * store has no table NAME_aside, or another session has locked it, no profile
 * may lose vectors.
 */
static void
decide(HrflowRun *run, const HrflowStore *store, List *losers, int n)
{
	Oid			aside;
	bool		is_free = hrflow_aside_lock(store, false, &aside);
	int64		allowance;
	ListCell   *cell;

	/* Count the profiles again if their number may have grown a lot. */
	if (run->tallies[HRFLOW_TALLY_OK] > 2 * run->refreshed.n)
		run->refreshed.is_total = false;
	allowance = !is_free ? HRFLOW_ERASE_UNDECIDED :
		n == 0 ? 0 : hrflow_erase_allowance(store, n, &run->refreshed);
	run->has_no_aside |= is_free && !OidIsValid(aside);
	run->has_no_limit |= !store->has_erased_at;
	foreach(cell, losers)
	{
		HrflowProfile *profile = lfirst(cell);

		profile->is_kept = !is_free || !OidIsValid(aside) ||
			(profile->lost != NULL && n > allowance);
		profile->is_undecided = profile->is_kept &&
			allowance == HRFLOW_ERASE_UNDECIDED;
	}
}

/*
 * Find the profiles whose replies lack stored vectors, and decide whether the
 * store may lose these vectors.
 */
void
hrflow_lost_judge(HrflowRun *run, const HrflowStore *store, List *profiles)
{
	SPIPlanPtr	plan;
	List	   *losers = NIL;
	int			n = 0;
	ListCell   *cell;

	if (profiles == NIL)
		return;
	plan = hrflow_store_prepare(hrflow_store_sql(store, find_lost_sql),
								NLOST_TYPES, lost_types);
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		find_lost(run, plan, profile);
		n += profile->lost != NULL;
		if (profile->has_lost)
			losers = lappend(losers, profile);
	}
	SPI_freeplan(plan);
	if (losers != NIL)
		decide(run, store, losers, n);
}

/* Has a profile lost vectors that are to be put aside? */
static bool
is_loser(const HrflowProfile *profile)
{
	return profile->has_lost && !profile->is_kept;
}

/*
 * Prepare the statement for hrflow_lost_put(), after hrflow_lost_judge().
 * Returns NULL if no profile needs the statement: preparing it would wait if
 * another session has locked NAME_aside.  The caller must free the plan.
 */
SPIPlanPtr
hrflow_lost_prepare(const HrflowStore *store, List *profiles)
{
	bool		is_necessary = false;
	ListCell   *cell;

	foreach(cell, profiles)
		is_necessary |= is_loser(lfirst(cell));
	return !is_necessary ? NULL :
		hrflow_store_prepare(hrflow_store_sql(store, put_lost_sql,
											  hrflow_aside_put_sql(store, "no vector")),
							 NLOST_TYPES, lost_types);
}

/*
 * Plan a statement that deletes vectors, and initialize its execution, without
 * deleting a row.  Throws any error that this causes, for example if the owner
 * lacks privileges.
 */
void
hrflow_lost_explain(const HrflowStore *store)
{
	HrflowParameters parameters = {0};

	for (int i = 0; i < NLOST_TYPES; i++)
	{
		hrflow_store_add(&parameters, lost_types[i], (Datum) 0);
		parameters.nulls[i] = 'n';
	}
	hrflow_store_explain(hrflow_store_sql(store, put_lost_sql, ""),
						 &parameters);
}

/*
 * Put aside the vectors that a profile has lost, unless they are to be kept.
 */
void
hrflow_lost_put(const HrflowRun *run, SPIPlanPtr plan,
				const HrflowProfile *profile)
{
	if (!is_loser(profile))
		return;
	execute_for(run, plan, profile);
	SPI_freetuptable(SPI_tuptable);
}

/*
 * If the store has the column "erased_at", set it for those of the given
 * profiles of which more than half of a section was put aside.
 */
void
hrflow_lost_note(const HrflowStore *store, List *profiles)
{
	static const Oid types[] = {TEXTOID, TEXTOID};
	HrflowRows *rows = hrflow_store_make_rows(types, lengthof(types),
											  list_length(profiles));
	HrflowParameters parameters = {0};
	ListCell   *cell;

	foreach(cell, profiles)
	{
		const HrflowProfile *profile = lfirst(cell);
		Datum		values[lengthof(types)];

		if (!profile->is_ours || profile->lost == NULL || profile->is_kept ||
			profile->write_error != NULL)
			continue;
		values[0] = CStringGetTextDatum(profile->source_id);
		values[1] = CStringGetTextDatum(profile->identifier);
		hrflow_store_add_row(rows, values, NULL);
	}
	if (rows->n == 0 || !store->has_erased_at)
		return;
	hrflow_store_add_rows(&parameters, rows);
	hrflow_store_execute(hrflow_store_sql(store, note_erased_sql),
						 &parameters);
}

/*
 * ------------------------------------------------------------------------
 * Reports
 * ------------------------------------------------------------------------
 */

/*
 * Return why a run has kept vectors, as a translated DETAIL.
 */
const char *
hrflow_lost_why_kept(const HrflowRun *run)
{
	return run->has_no_aside ?
		_("The store has no table for vectors that are put aside.") :
		run->has_no_limit ?
		_("The table of profiles has no column \"erased_at\", so it is not known how many profiles have lost vectors within the last 24 hours.") :
		psprintf(_("At most %d%% of the profiles of a store or 20 profiles, whichever is greater, lose vectors in this way within 24 hours (\"hrflow_embed.max_erased_percent\")."),
				 hrflow_settings_max_erased());
}

/*
 * Warn that the store keeps vectors that no longer exist in the API.
 */
static void
warn_of_kept(const HrflowRun *run)
{
	if (run->nkept > 0)
		ereport(WARNING,
				(errmsg_plural("refresh of %s keeps the vectors of " INT64_FORMAT " profile although the API no longer has them",
							   "refresh of %s keeps the vectors of " INT64_FORMAT " profiles although the API no longer has them",
							   run->nkept, run->name, run->nkept),
				 errdetail_internal("%s", hrflow_lost_why_kept(run)),
				 errhint_plural("Check \"hrflow_embed.base_url\", the API key and the source.  If the profile was deleted, untrack it with hrflow_untrack().",
								"Check \"hrflow_embed.base_url\", the API key and the source.  If the profiles were deleted, untrack them with hrflow_untrack().",
								run->nkept)));
}

/*
 * Warn that stored vectors were put aside because they no longer exist in the
 * API.  Profiles that have lost at most half of each section are not counted.
 */
static void
warn_of_put(const HrflowRun *run)
{
	int64		n = run->nerased + run->ngone_put;

	if (n > 0)
		ereport(WARNING,
				(errmsg_plural("refresh of %s has put aside vectors of " INT64_FORMAT " profile because the API no longer has them",
							   "refresh of %s has put aside vectors of " INT64_FORMAT " profiles because the API no longer has them",
							   n, run->name, n),
				 errhint("To restore the vectors, call hrflow_restore() before they are erased.")));
}

/*
 * Warn if unusually many profiles have lost at most half of each section.  The
 * API may be at fault.
 */
static void
warn_of_shortened(const HrflowRun *run)
{
	int64		nrefreshed = run->tallies[HRFLOW_TALLY_OK];

	if (run->nshortened > USUAL_SHORTENED &&
		run->nshortened > USUAL_SHORTENED_PART * nrefreshed)
		ereport(WARNING,
				(errmsg("refresh of %s has put aside vectors of some list elements in " INT64_FORMAT " of " INT64_FORMAT " refreshed profiles",
						run->name, run->nshortened, nrefreshed),
				 errdetail("The API no longer has the vectors of these elements."),
				 errhint("If the elements still exist, call hrflow_restore() before their vectors are erased.")));
}

/*
 * Warn about stored vectors that no longer exist in the API.
 */
void
hrflow_lost_warn(const HrflowRun *run)
{
	warn_of_put(run);
	warn_of_shortened(run);
	warn_of_kept(run);
}
