/*-------------------------------------------------------------------------
 *
 * erase.c
 *		Erases profiles and their vectors.
 *
 * Profiles that a user deletes are erased at once.  Vectors that the API no
 * longer has, and profiles that no table wants any longer, are first put
 * aside, within a limit, and erased when they expire; see aside.c.  Nothing is
 * erased in any other way.
 *
 * Rows of the table of profiles are locked in the order of their keys.
 * Whether a table wants a profile is determined after that, with a snapshot
 * that is taken after the lock.  So if one session deletes the row that wants
 * a profile while another one inserts such a row, the session that gets the
 * lock last sees what the other one did.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "store/refresh.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/timestamp.h"

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

static const char lock_sql[] =
"SELECT FROM %P AS p WHERE %s ORDER BY p.source_id, p.%I FOR UPDATE OF p";

/* Erase the profiles that satisfy a condition. */
static const char erase_sql[] =
"WITH erased AS (DELETE FROM %P AS p WHERE %s"
" RETURNING p.source_id, p.%I),"
" stored AS (DELETE FROM %V AS v USING erased AS e"
" WHERE v.source_id = e.source_id AND v.%I = e.%I"
" RETURNING v.source_id, v.%I)%s%s"
" SELECT count(*) FROM erased";

static const char erase_aside_sql[] =
", aside AS (DELETE FROM %R AS a USING erased AS e"
" WHERE a.source_id = e.source_id AND a.%I = e.%I"
" RETURNING a.source_id, a.%I)";

/*
 * Rows for the record of erasures: one for each profile that the statement has
 * erased, and one for each of its vectors.
 */
#define ERASED_SQL \
	"SELECT e.source_id, e.%I, 0 AS n, NULL::timestamptz AS put_aside_at" \
	" FROM erased AS e" \
	" UNION ALL SELECT v.source_id, v.%I, 1, NULL FROM stored AS v"

static const char erased_sql[] = ERASED_SQL;

static const char erased_with_aside_sql[] = ERASED_SQL
" UNION ALL SELECT a.source_id, a.%I, 1, NULL FROM aside AS a";

/* Condition that a profile was deleted, and a conjunction of conditions. */
static const char deleted_sql[] =
"(p.source_id, p.%I) IN (SELECT d.s, d.i FROM " HRFLOW_DELETED " AS d)";
static const char and_deleted_sql[] = "%s AND %s";

/*
 * Lock and erase profiles even if a table wants them.  $1 is their source, and
 * $2 are their identifiers.
 */
static const char lock_profiles_sql[] =
"SELECT FROM %P AS p WHERE p.source_id = $1 AND p.%I = ANY ($2)"
" ORDER BY p.%I FOR UPDATE";

static const char erase_profiles_sql[] =
"WITH erased AS (DELETE FROM %P AS p"
" WHERE p.source_id = $1 AND p.%I = ANY ($2)"
" RETURNING p.source_id, p.%I),"
" stored AS (DELETE FROM %V AS v"
" WHERE v.source_id = $1 AND v.%I = ANY ($2)"
" RETURNING v.source_id, v.%I)%s%s"
" SELECT count(*) FROM erased";

static const char erase_profiles_aside_sql[] =
", aside AS (DELETE FROM %R AS a"
" WHERE a.source_id = $1 AND a.%I = ANY ($2)"
" RETURNING a.source_id, a.%I)";

/*
 * Find which of the profiles that a run has found missing are gone, and put
 * their vectors aside.  $1 to $3 are the keys and generations of the profiles.
 * $4 says whether the API knows the profile, and only has no vector of what
 * was requested, namely the sections $5, and elements of the sections $9 with
 * the items $10.  $6 is the time before which they must have been missing, and
 * $7 is when the run began.  If more than $8 of them have vectors, all that
 * have vectors are kept.
 *
 * Profiles that have changed meanwhile, or that another session has claimed,
 * are skipped.  So are profiles that the API knows and that have vectors which
 * the run did not request.  A profile is proven to be gone if another profile
 * of its source was refreshed in the second half of the time for which it has
 * been missing.
 */
static const char erase_gone_sql[] =
"WITH missing AS MATERIALIZED"
" (SELECT p.source_id AS s, p.%I AS i, p.failed_at AS since,"
" EXISTS (SELECT FROM %V AS v WHERE v.source_id = p.source_id"
" AND v.%I = p.%I) AS has_vectors"
" FROM %P AS p JOIN unnest($1, $2, $3, $4) AS a(s, i, generation, is_known)"
" ON p.source_id = a.s AND p.%I = a.i"
" WHERE p.state = 'missing' AND p.failed_at <= $6 AND p.due_at > $7"
" AND p.generation = a.generation"
" AND (p.lease_until IS NULL OR p.lease_until <= clock_timestamp())"
" AND NOT (a.is_known AND EXISTS (SELECT FROM %V AS v"
" WHERE v.source_id = p.source_id AND v.%I = p.%I"
" AND v.section <> ALL ($5)"
" AND (v.section, v.item) NOT IN (SELECT * FROM unnest($9, $10))))"
" ORDER BY p.source_id, p.%I FOR UPDATE OF p SKIP LOCKED),"
" known AS MATERIALIZED"
" (SELECT m.s, (SELECT max(p.refreshed_at) FROM %P AS p"
" WHERE p.source_id = m.s) AS at"
" FROM (SELECT DISTINCT s FROM missing) AS m),"
" found AS MATERIALIZED"
" (SELECT m.s, m.i, m.has_vectors,"
" COALESCE(k.at > m.since + (clock_timestamp() - m.since) / 2, false)"
" AS proven"
" FROM missing AS m JOIN known AS k ON k.s = m.s),"
" counted AS MATERIALIZED"
" (SELECT count(*) FILTER (WHERE proven AND has_vectors) AS n,"
" count(*) FILTER (WHERE NOT proven) AS nunproven FROM found),"
" gone AS (UPDATE %P AS p SET state = 'gone', due_at = NULL,"
" lease_until = NULL%s FROM found AS k, counted AS c"
" WHERE p.source_id = k.s AND p.%I = k.i"
" AND k.proven AND (c.n <= $8 OR NOT k.has_vectors)"
" RETURNING k.s, k.i, k.has_vectors),"
" vectors AS (DELETE FROM %V AS v USING gone AS k"
" WHERE v.source_id = k.s AND v.%I = k.i"
" RETURNING v.source_id, v.%I, v.section, v.item, v.vector,"
" v.fetched_at, NULL::timestamptz AS due_at)%s"
" SELECT (SELECT count(*) FROM gone), c.nunproven,"
" CASE WHEN c.n <= $8 THEN 0 ELSE c.n END,"
" (SELECT count(*) FROM gone AS k WHERE k.has_vectors)"
" FROM counted AS c";

static const char set_erased_at_sql[] =
", erased_at = CASE WHEN k.has_vectors THEN clock_timestamp()"
" ELSE p.erased_at END";

static const char count_erased_sql[] =
"SELECT count(*) FROM %P AS p"
" WHERE p.erased_at > clock_timestamp() - interval '24 hours'";

/* Count profiles that no table wanted, and that have been erased. */
static const char count_recorded_sql[] =
"SELECT count(*) FROM %R AS n WHERE n.reason = 'reconcile'"
" AND n.put_aside_at > clock_timestamp() - interval '24 hours'"
" AND n.erased_at > clock_timestamp() - interval '24 hours'";

static const char count_refreshed_sql[] =
"SELECT count(*) FROM %P AS p"
" WHERE p.refreshed_at IS NOT NULL"
" AND (p.state IN ('gone', 'unwanted')) IS NOT TRUE";

/*
 * Statements about the vectors of one profile that a reply lacks.  $1 and $2
 * are the key of the profile.  $3 to $5 are what was requested: $3 are whole
 * sections, or NULL for all sections, and $4 and $5 are the sections and items
 * of elements.  find_lost_sql returns the sections of which the store has
 * vectors, but which are not among $6, the sections in the reply.
 * put_lost_sql puts the vectors of these sections aside.  delete_vectors_sql
 * deletes all vectors that are not among $6 and $7, the sections and items in
 * the reply.
 */
#define IS_ASKED_FOR \
	" AND ($3 IS NULL OR v.section = ANY ($3)" \
	" OR (v.section, v.item) IN (SELECT * FROM unnest($4, $5)))"

static const char find_lost_sql[] =
"SELECT string_agg(DISTINCT v.section, ', ' ORDER BY v.section) FROM %V AS v"
" WHERE v.source_id = $1 AND v.%I = $2" IS_ASKED_FOR
" AND v.section <> ALL ($6)";

static const char put_lost_sql[] =
"WITH vectors AS (DELETE FROM %V AS v"
" WHERE v.source_id = $1 AND v.%I = $2" IS_ASKED_FOR
" AND v.section <> ALL ($6)"
" RETURNING v.source_id, v.%I, v.section, v.item, v.vector, v.fetched_at,"
" NULL::timestamptz AS due_at)%s"
" SELECT count(*) FROM vectors";

static const char delete_vectors_sql[] =
"DELETE FROM %V AS v"
" WHERE v.source_id = $1 AND v.%I = $2" IS_ASKED_FOR
" AND (v.section, v.item) NOT IN (SELECT * FROM unnest($6, $7))";

static Oid	delete_types[] = {TEXTOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID,
INT4ARRAYOID, TEXTARRAYOID, INT4ARRAYOID};

/* Set "erased_at" of the profiles with the keys $1 and $2. */
static const char note_erased_sql[] =
"UPDATE %P AS p SET erased_at = clock_timestamp()"
" FROM unnest($1, $2) AS k(s, i) WHERE p.source_id = k.s AND p.%I = k.i";

/*
 * Limit of the number of profiles of a store that may lose vectors within 24
 * hours because the API no longer has them: this part of all profiles, or this
 * number if that is more.  If more seem to be lost, a wrong address, key or
 * source is a likelier cause.
 */
#define MAX_ERASED_PART 0.05
#define MAX_ERASED_FREE 20

/*
 * Lock the profiles that satisfy a condition.  Returns false if there are
 * none.  The caller must determine afterwards whether a table wants them, and
 * must consider all tables that feed the store by then, because a session that
 * had one of the rows locked may have tracked another table.
 */
static bool
lock_deleted(const HrflowStore *store, const char *condition)
{
	uint64		n = hrflow_store_execute_latest(hrflow_store_sql(store, lock_sql,
																 condition),
												NULL);

	AcceptInvalidationMessages();
	return n > 0;
}

/*
 * Return a statement that erases profiles.  "template" is erase_sql, with its
 * condition, or erase_profiles_sql, for which "condition" must be NULL.
 * "aside_sql" deletes the vectors of these profiles that are put aside.
 * "reason" is the SQL literal to be recorded.
 */
static char *
get_erase_sql(const HrflowStore *store, const char *template,
			  const char *condition, const char *aside_sql,
			  const char *reason)
{
	Oid			aside = hrflow_aside_find(store);
	const char *erase_aside = !OidIsValid(aside) ? "" :
	hrflow_store_sql(store, aside_sql, aside);
	const char *note = hrflow_erased_note_sql(store, reason,
											  OidIsValid(aside) ?
											  erased_with_aside_sql :
											  erased_sql);

	return condition == NULL ?
		hrflow_store_sql(store, template, erase_aside, note) :
		hrflow_store_sql(store, template, condition, erase_aside, note);
}

/*
 * Erase the profiles that satisfy a condition.  Returns their number.
 */
static uint64
erase(const HrflowStore *store, const char *condition, const char *reason)
{
	hrflow_store_execute_latest(get_erase_sql(store, erase_sql, condition,
											  erase_aside_sql, reason),
								NULL);
	return DatumGetInt64(hrflow_store_datum(0, 1));
}

/*
 * Count the profiles that have been refreshed, and so may have vectors.
 */
static int64
count_refreshed(const HrflowStore *store)
{
	hrflow_store_execute(hrflow_store_sql(store, count_refreshed_sql), NULL);
	return DatumGetInt64(hrflow_store_datum(0, 1));
}

/*
 * Warn that deleting rows has erased many profiles.  There is no limit for
 * that, because deletions are deliberate; but a user may have reloaded a table
 * and committed before the INSERT.
 */
static void
warn_of_many_deleted(const HrflowStore *store, int64 n)
{
	if (n <= MAX_ERASED_FREE ||
		n <= MAX_ERASED_PART * (n + count_refreshed(store)))
		return;
	ereport(WARNING,
			(errmsg("deletion of rows erased " INT64_FORMAT " profiles and their vectors from store %s",
					n, store->vectors_name),
			 errdetail("More than 5 %% of the profiles of the store, or 20 if that is more, are no longer in any table that feeds it."),
			 errhint("To reload a table without erasing vectors, delete and insert its rows in a single transaction.")));
}

/*
 * Erase the profiles in HRFLOW_DELETED, which the transaction has deleted,
 * unless a table still wants them.
 */
void
hrflow_erase_deleted(const HrflowStore *store, Oid function)
{
	char	   *deleted = hrflow_store_sql(store, deleted_sql);

	/* Lock tables before profiles, in the same order as TRUNCATE. */
	(void) hrflow_feeder_find(store, function, InvalidOid, AccessShareLock);
	if (!lock_deleted(store, deleted) ||
		!hrflow_feeder_owns_all(store, function))
		return;
	warn_of_many_deleted(store,
						 erase(store,
							   hrflow_store_sql(store, and_deleted_sql,
												hrflow_feeder_unwanted(store, function),
												deleted),
							   "'delete'"));
	hrflow_feeder_mark_kept(store);
}

/*
 * Erase profiles even if a table wants them.  See erase_profiles_sql for the
 * parameters.  Returns the number of profiles erased.
 */
uint64
hrflow_erase_profiles(const HrflowStore *store,
					  const HrflowParameters *parameters)
{
	hrflow_store_execute(hrflow_store_sql(store, lock_profiles_sql),
						 parameters);
	hrflow_store_execute(get_erase_sql(store, erase_profiles_sql, NULL,
									   erase_profiles_aside_sql, "'untrack'"),
						 parameters);
	return DatumGetInt64(hrflow_store_datum(0, 1));
}

/*
 * Count the profiles that have lost vectors within 24 hours, because the API
 * no longer had them or because no table wanted them.  Returns 0 if a
 * user-supplied table of profiles lacks the column "erased_at".
 */
int64
hrflow_erase_count(const HrflowStore *store)
{
	Oid			record = hrflow_erased_find(store);
	int64		n;

	if (!store->has_erased_at)
		return 0;
	hrflow_store_execute(hrflow_store_sql(store, count_erased_sql), NULL);
	n = DatumGetInt64(hrflow_store_datum(0, 1));
	if (!OidIsValid(record))
		return n;
	hrflow_store_execute(hrflow_store_sql(store, count_recorded_sql, record),
						 NULL);
	return n + DatumGetInt64(hrflow_store_datum(0, 1));
}

/*
 * Return how many more profiles may lose vectors that no user has deleted.
 * All profiles that have lost vectors in this way within 24 hours count,
 * regardless of the run.  Returns 0 if their number is not known, or if
 * vectors cannot be put aside.
 *
 * This takes a lock until the end of the transaction.  If another session
 * holds it, we return 0 rather than wait, because the caller has locked rows.
 */
int64
hrflow_erase_allowance(const HrflowStore *store)
{
	int64		most;

	if (!store->has_erased_at || !OidIsValid(hrflow_aside_find(store)) ||
		!ConditionalLockDatabaseObject(RelationRelationId,
									   RelationGetRelid(store->profiles), 0,
									   ExclusiveLock))
		return 0;
	most = MAX_ERASED_PART * count_refreshed(store);
	return Max(Max(most, MAX_ERASED_FREE) - hrflow_erase_count(store), 0);
}

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
 * Were vectors of all sections requested for a profile?  They were if "fields"
 * was not given, unless the API had no vector, after which the known sections
 * were requested one by one.
 */
static bool
has_asked_for_all(const HrflowRun *run, const HrflowProfile *profile)
{
	return run->fields == NULL && !profile->no_vector;
}

static bool
has_section(const HrflowProfile *profile, const char *section)
{
	ListCell   *cell;

	foreach(cell, profile->vectors)
	{
		const HrflowVector *vector = lfirst(cell);

		if (strcmp(vector->section, section) == 0)
			return true;
	}
	return false;
}

/*
 * Return the parts that a run requests: whole sections, and the sections and
 * items of single elements.  Elements that are not given by index are left
 * out.  If "profile" is not NULL, the sections that its reply lacks are left
 * out, too.
 */
static void
make_asked_for(const HrflowRun *run, const HrflowProfile *profile,
			   ArrayType **whole, ArrayType **sections, ArrayType **items)
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

		if (profile != NULL && !has_section(profile, part->section))
			continue;
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
 * Set the parameters $3 to $5 of find_lost_sql, put_lost_sql and
 * delete_vectors_sql to what was requested for a profile.  If the profile
 * keeps sections that its reply lacks, these are left out.
 */
static void
set_asked_for(const HrflowRun *run, const HrflowProfile *profile,
			  Datum *values, char *nulls)
{
	bool		is_kept = profile->is_kept;
	ArrayType  *whole;
	ArrayType  *sections;
	ArrayType  *items;

	make_asked_for(run, is_kept ? profile : NULL, &whole, &sections, &items);
	values[2] = PointerGetDatum(whole);
	values[3] = PointerGetDatum(sections);
	values[4] = PointerGetDatum(items);
	if (has_asked_for_all(run, profile))
	{
		values[2] = PointerGetDatum(get_sections(profile));
		nulls[2] = is_kept ? ' ' : 'n';
	}
}

/*
 * May a reply lack a section of which the store has vectors?  It cannot if it
 * has all sections that were requested.
 */
static bool
may_lack_section(const HrflowRun *run, const HrflowProfile *profile)
{
	Datum	   *sections;
	bool	   *nulls;
	int			n;

	if (has_asked_for_all(run, profile))
		return true;
	deconstruct_array(run->sections, TEXTOID, -1, false, TYPALIGN_INT,
					  &sections, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (!has_section(profile, TextDatumGetCString(sections[i])))
			return true;
	}
	return false;
}

/*
 * Find the sections of which the store has vectors of a profile, but its reply
 * has none, and set "lost" to an error message that names them.
 */
static void
find_lost(const HrflowRun *run, SPIPlanPtr plan, HrflowProfile *profile)
{
	Datum		values[6];
	char		nulls[6] = {' ', ' ', ' ', ' ', ' ', ' '};
	char	   *lost;

	values[0] = CStringGetTextDatum(profile->source_id);
	values[1] = CStringGetTextDatum(profile->identifier);
	set_asked_for(run, profile, values, nulls);
	values[5] = PointerGetDatum(get_sections(profile));
	hrflow_store_execute_plan(plan, values, nulls);
	lost = hrflow_store_value_or_null(0, 1);
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
 * Find which of some profiles have lost all vectors of a section in the API,
 * and decide whether these profiles may lose them in the store as well: either
 * all of them may, or none.  This does not apply to other vectors that a reply
 * lacks, such as the last one of a list that has become shorter, because the
 * reply replaces these.
 */
void
hrflow_erase_judge(HrflowRun *run, const HrflowStore *store, List *profiles)
{
	static Oid	types[] = {TEXTOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID,
	INT4ARRAYOID, TEXTARRAYOID};
	SPIPlanPtr	plan = NULL;
	List	   *losers = NIL;
	ListCell   *cell;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		if (!may_lack_section(run, profile))
			continue;
		if (plan == NULL)
			plan = hrflow_store_prepare(hrflow_store_sql(store, find_lost_sql),
										lengthof(types), types);
		find_lost(run, plan, profile);
		if (profile->lost != NULL)
			losers = lappend(losers, profile);
	}
	if (plan != NULL)
		SPI_freeplan(plan);
	if (losers == NIL || list_length(losers) <= hrflow_erase_allowance(store))
		return;
	foreach(cell, losers)
		((HrflowProfile *) lfirst(cell))->is_kept = true;
}

/*
 * Prepare the statement for hrflow_erase_old_vectors().  The caller must free
 * the plan.
 */
SPIPlanPtr
hrflow_erase_prepare(const HrflowStore *store)
{
	return hrflow_store_prepare(hrflow_store_sql(store, delete_vectors_sql),
								lengthof(delete_types), delete_types);
}

/*
 * Plan the statement of hrflow_erase_prepare(), and start its execution,
 * without deleting a row.  Throws any error that this causes, such as a lack
 * of privileges.
 */
void
hrflow_erase_explain(const HrflowStore *store)
{
	HrflowParameters parameters = {0};

	for (int i = 0; i < lengthof(delete_types); i++)
	{
		hrflow_store_add(&parameters, delete_types[i], (Datum) 0);
		parameters.nulls[i] = 'n';
	}
	hrflow_store_explain(hrflow_store_sql(store, delete_vectors_sql),
						 &parameters);
}

/*
 * Put aside the vectors of a profile that belong to sections of which the API
 * no longer has any vector.
 */
static void
put_lost(HrflowRun *run, const HrflowStore *store,
		 const HrflowProfile *profile)
{
	HrflowParameters parameters = {.n = 6};

	memcpy(parameters.types, delete_types, sizeof(Oid) * parameters.n);
	memset(parameters.nulls, ' ', parameters.n);
	parameters.values[0] = CStringGetTextDatum(profile->source_id);
	parameters.values[1] = CStringGetTextDatum(profile->identifier);
	set_asked_for(run, profile, parameters.values, parameters.nulls);
	parameters.values[5] = PointerGetDatum(get_sections(profile));
	hrflow_store_execute(hrflow_store_sql(store, put_lost_sql,
										  hrflow_aside_put_sql(store, "no vector")),
						 &parameters);
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Erase the vectors of a profile that were requested, but that its reply
 * lacks.  The vectors of sections that the reply lacks completely are put
 * aside or, if "is_kept" is set, kept.
 */
void
hrflow_erase_old_vectors(HrflowRun *run, const HrflowStore *store,
						 SPIPlanPtr plan, HrflowProfile *profile)
{
	Datum		values[lengthof(delete_types)];
	char		nulls[] = {' ', ' ', ' ', ' ', ' ', ' ', ' '};

	StaticAssertStmt(lengthof(nulls) == lengthof(delete_types),
					 "one for each parameter");
	if (profile->lost != NULL && !profile->is_kept)
		put_lost(run, store, profile);
	values[0] = CStringGetTextDatum(profile->source_id);
	values[1] = CStringGetTextDatum(profile->identifier);
	set_asked_for(run, profile, values, nulls);
	values[5] = PointerGetDatum(get_sections(profile));
	values[6] = PointerGetDatum(get_items(profile));
	hrflow_store_execute_plan(plan, values, nulls);
}

/*
 * Of some profiles, set "erased_at" of those that have lost vectors.
 */
void
hrflow_erase_note(const HrflowStore *store, List *profiles)
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
	hrflow_aside_erase_expired(store);
}

/*
 * Warn that profiles are kept although the API has repeatedly had no vectors
 * of them, because nothing proves that it still knows others of their source.
 */
static void
warn_of_unproven(const HrflowRun *run, int64 n)
{
	if (n > 0)
		ereport(WARNING,
				(errmsg_plural("refresh of %s keeps " INT64_FORMAT " profile that the API does not know",
							   "refresh of %s keeps " INT64_FORMAT " profiles that the API does not know",
							   n, run->name, n),
				 errdetail("No other profile of the same source was refreshed in the second half of the time for which each has been missing."),
				 errhint("Check hrflow_embed.base_url, the API key and the source. If the profiles were deleted, untrack them with hrflow_untrack().")));
}

/*
 * Find which of the missing profiles of a run are gone.
 *
 * A profile that has been missing for days is gone if there is proof that the
 * API knows other profiles: another profile of its source must have been
 * refreshed in the second half of that time.  Otherwise a wrong address or key
 * would erase a store little by little, however few profiles a run requests.
 * Profiles without that proof stay missing, and so do profiles with vectors if
 * too many would be erased.
 *
 * If a user-supplied table of profiles lacks the column "failed_at", we do not
 * know since when profiles have been missing, so none of them is gone.
 */
void
hrflow_erase_gone(HrflowRun *run, const HrflowStore *store)
{
	static const Oid types[] = {TEXTOID, TEXTOID, INT8OID, BOOLOID};
	ArrayType  *whole;
	ArrayType  *sections;
	ArrayType  *items;
	HrflowRows *rows;
	HrflowParameters parameters = {0};
	ListCell   *cell;

	if (!store->has_failed_at)
		return;
	rows = hrflow_store_make_rows(types, lengthof(types),
								  list_length(run->gone));
	foreach(cell, run->gone)
	{
		const HrflowGone *gone = lfirst(cell);
		Datum		values[lengthof(types)];

		values[0] = CStringGetTextDatum(gone->source_id);
		values[1] = CStringGetTextDatum(gone->identifier);
		values[2] = Int64GetDatum(gone->generation);
		values[3] = BoolGetDatum(gone->is_known);
		hrflow_store_add_row(rows, values, NULL);
	}
	hrflow_store_add_rows(&parameters, rows);
	make_asked_for(run, NULL, &whole, &sections, &items);
	hrflow_store_add(&parameters, TEXTARRAYOID, PointerGetDatum(whole));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(GetCurrentTimestamp() - HRFLOW_GONE_AGE));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->started));
	hrflow_store_add(&parameters, INT8OID,
					 Int64GetDatum(hrflow_erase_allowance(store)));
	hrflow_store_add(&parameters, TEXTARRAYOID, PointerGetDatum(sections));
	hrflow_store_add(&parameters, INT4ARRAYOID, PointerGetDatum(items));
	hrflow_store_execute(hrflow_store_sql(store, erase_gone_sql,
										  store->has_erased_at ?
										  set_erased_at_sql : "",
										  hrflow_aside_put_sql(store, "gone")),
						 &parameters);
	run->ngone = DatumGetInt64(hrflow_store_datum(0, 1));
	run->nkept += DatumGetInt64(hrflow_store_datum(0, 3));
	run->ngone_put = DatumGetInt64(hrflow_store_datum(0, 4));
	warn_of_unproven(run, DatumGetInt64(hrflow_store_datum(0, 2)));
	hrflow_aside_erase_expired(store);
}
