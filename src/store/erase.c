/*-------------------------------------------------------------------------
 *
 * erase.c
 *		Erases profiles and their vectors.
 *
 * Profiles that a user deletes or untracks are erased in the same transaction
 * (hrflow_untrack_batches() executes one transaction for each batch).
 * Vectors that the API no longer has, vectors of contents that have become
 * empty, and profiles that are unwanted for another reason (see feeder.c) are
 * first put aside, and erased when they expire; see aside.c.  Unless a user
 * has untracked a table, hrflow_erase_allowance() limits how many profiles may
 * lose more than half of the vectors of a section in this way.  Unwanted
 * profiles without vectors are erased immediately.
 *
 * Rows of the table of profiles are locked in the order of their keys.  Only
 * after that do we determine whether a table refers to a profile, with a
 * snapshot that is taken after the lock.  So if one session deletes a row that
 * refers to a profile while another one inserts such a row, the session that
 * gets the lock last sees the change of the other session.  Rows that may be
 * deleted are locked FOR UPDATE, others FOR NO KEY UPDATE, which does not
 * conflict with the locks of foreign keys that refer to the table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "store/refresh.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/timestamp.h"

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

/*
 * Statement that locks the profiles in HRFLOW_DELETED.  It returns their
 * number and whether HRFLOW_DELETED has more keys than that, but not the rows,
 * which SPI would store.
 */
static const char lock_sql[] =
"SELECT count(*), count(*) < (SELECT count(*) FROM"
" (SELECT DISTINCT d.s, d.i FROM " HRFLOW_DELETED " AS d) AS k)"
" FROM (SELECT FROM %P AS p WHERE %s"
" ORDER BY p.source_id, p.%I FOR UPDATE OF p) AS l";

/* Statement that erases the profiles that satisfy a condition. */
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
 * Query for the erasures to be recorded in NAME_erased; see
 * hrflow_erased_note_sql().  It returns one row per erased profile, and one
 * per erased vector.
 */
#define ERASED_SQL \
	"SELECT e.source_id, e.%I, 0 AS n, NULL::timestamptz AS put_aside_at" \
	" FROM erased AS e" \
	" UNION ALL SELECT v.source_id, v.%I, 1, NULL FROM stored AS v"

static const char erased_sql[] = ERASED_SQL;

static const char erased_with_aside_sql[] = ERASED_SQL
" UNION ALL SELECT a.source_id, a.%I, 1, NULL FROM aside AS a";

/* SQL condition that the profile in row "p" is in HRFLOW_DELETED. */
static const char deleted_sql[] =
"(p.source_id, p.%I) IN (SELECT d.s, d.i FROM " HRFLOW_DELETED " AS d)";

/*
 * SQL template that adds a condition to another condition, or to a query that
 * ends with its WHERE clause.
 */
static const char and_sql[] = "%s AND %s";

/*
 * Query for the keys in HRFLOW_DELETED that have vectors, but no row in the
 * table of profiles, for example because a user has deleted that row.  Like a
 * row of the table of profiles, "p" has a column "manual".
 */
static const char orphans_sql[] =
"SELECT p.* FROM (SELECT DISTINCT d.s AS source_id, d.i AS %I, false AS manual"
" FROM " HRFLOW_DELETED " AS d) AS p"
" WHERE NOT EXISTS (SELECT FROM %P AS q"
" WHERE q.source_id = p.source_id AND q.%I = p.%I)"
" AND (EXISTS (SELECT FROM %V AS v"
" WHERE v.source_id = p.source_id AND v.%I = p.%I)%s)";

static const char or_aside_sql[] =
" OR EXISTS (SELECT FROM %R AS a"
" WHERE a.source_id = p.source_id AND a.%I = p.%I)";

static const char has_orphans_sql[] = "SELECT EXISTS (%s)";

/* Statement that erases the vectors whose keys a query returns. */
static const char erase_orphans_sql[] =
"WITH erased AS MATERIALIZED (%s),"
" stored AS (DELETE FROM %V AS v USING erased AS e"
" WHERE v.source_id = e.source_id AND v.%I = e.%I"
" RETURNING v.source_id, v.%I)%s%s"
" SELECT count(*) FROM erased";

/*
 * Statements that lock and erase profiles, regardless of whether a table
 * refers to them.  $1 is their source, and $2 an array of their identifiers.
 */
static const char lock_profiles_sql[] =
"SELECT count(*) FROM (SELECT FROM %P AS p"
" WHERE p.source_id = $1 AND p.%I = ANY ($2)"
" ORDER BY p.%I FOR UPDATE OF p) AS l";

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
 * Statement that finds which of the missing profiles of a run are gone, and
 * puts their vectors aside.  $1 to $4 are arrays: the sources, identifiers and
 * generations of the profiles, and whether the API knows the profile, but has
 * none of the vectors that the run requested.  The run requested the sections
 * $5, and the items $10 of the sections $9.  A gone profile has been missing
 * since $6 or earlier, and is due again only after $7, the start of the run.
 * If more than $8 gone profiles have vectors, these profiles are not changed.
 *
 * Profiles that have changed in the meantime, or that another session has
 * claimed or locked, are skipped.  So are profiles that the API knows, if they
 * have vectors that the run did not request.  A profile is proven to be gone
 * if another profile of its source was refreshed in the second half of the
 * time for which it has been missing.  "at" is a time at which a profile of
 * the source was refreshed: one that proves this for all missing profiles of
 * the source if there is one, which usually is soon found, or else the latest.
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
" ORDER BY p.source_id, p.%I FOR NO KEY UPDATE OF p SKIP LOCKED),"
" known AS MATERIALIZED"
" (SELECT m.s, COALESCE((SELECT p.refreshed_at FROM %P AS p"
" WHERE p.source_id = m.s"
" AND p.refreshed_at > m.since + (clock_timestamp() - m.since) / 2 LIMIT 1),"
" (SELECT max(p.refreshed_at) FROM %P AS p WHERE p.source_id = m.s)) AS at"
" FROM (SELECT s, max(since) AS since FROM missing GROUP BY s) AS m),"
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
" v.fetched_at, NULL AS state, NULL::timestamptz AS due_at)%s"
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

/*
 * SQL that counts the unwanted profiles that were put aside within the limit,
 * and then erased, within the last 24 hours.
 */
static const char count_recorded_sql[] =
"SELECT count(DISTINCT n.fingerprint) FROM %R AS n WHERE n.reason = 'reconcile'"
" AND n.put_aside_at > clock_timestamp() - interval '24 hours'"
" AND n.erased_at > clock_timestamp() - interval '24 hours'";

/*
 * Statement that counts, up to $1, the profiles that have been refreshed, and
 * are neither gone nor unwanted.  %s is a condition by which gone and unwanted
 * profiles that lost their vectors within the last 24 hours are counted, too;
 * otherwise the limit would fall with each profile that it permits.
 */
static const char count_refreshed_sql[] =
"SELECT count(*) FROM (SELECT FROM %P AS p"
" WHERE p.refreshed_at IS NOT NULL"
" AND (p.state IN ('gone', 'unwanted')%s) IS NOT TRUE LIMIT $1) AS r";

static const char not_today_sql[] =
" AND (p.erased_at > clock_timestamp() - interval '24 hours') IS NOT TRUE";

/*
 * Minimum of the limit on the profiles of a store that may lose more than half
 * of the vectors of a section within 24 hours without being deleted or
 * untracked by a user.  The limit is this number or max_erased_percent of the
 * profiles, whichever is greater.  If more profiles seem to have lost vectors,
 * a wrong address, key or source is a more likely cause.
 */
#define MAX_ERASED_FREE 20

/*
 * Warn if a transaction has deleted more than this percentage of a store's
 * profiles, and more than MAX_ERASED_FREE profiles.
 */
#define MANY_DELETED_PERCENT 5

/*
 * Number of attempts to acquire the lock that serializes decisions about this
 * limit.  All attempts together take only about 0.1 s, because the caller may
 * have locked rows.
 */
#define LIMIT_ATTEMPTS 10

/* Time between two of these attempts, in microseconds. */
#define LIMIT_WAIT 10000

/*
 * Lock the profiles in HRFLOW_DELETED, and return their number.  Sets
 * *has_more to whether there may be keys without a profile.  The caller must
 * look up the tables that feed the store, and determine whether they refer to
 * the profiles, after this call, because a session that had one of the rows
 * locked may have tracked another table.
 */
static int64
lock_deleted(const HrflowStore *store, const char *condition, bool *has_more)
{
	hrflow_store_execute_latest(hrflow_store_sql(store, lock_sql, condition),
								NULL);
	AcceptInvalidationMessages();
	*has_more = DatumGetBool(hrflow_store_datum(0, 2));
	return DatumGetInt64(hrflow_store_datum(0, 1));
}

/*
 * Return a statement that erases profiles.  "template" is erase_sql,
 * erase_orphans_sql or erase_profiles_sql.  "condition" is the condition for
 * erase_sql, or the query for erase_orphans_sql; it must be NULL for
 * erase_profiles_sql.  "aside_sql" is a WITH query that deletes the vectors of
 * these profiles from NAME_aside.  "reason" is the reason to be recorded, as
 * an SQL literal.
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
 * Erase deleted profiles, or vectors that have no profile.  See
 * get_erase_sql() for "template" and "condition".  Returns the number of keys.
 */
static uint64
erase(const HrflowStore *store, const char *template, const char *condition)
{
	hrflow_store_execute_latest(get_erase_sql(store, template, condition,
											  erase_aside_sql, "'delete'"),
								NULL);
	return DatumGetInt64(hrflow_store_datum(0, 1));
}

/*
 * Return a query for the keys in HRFLOW_DELETED that have vectors, but no
 * profile, or NULL if there are none.
 */
static char *
find_orphans(const HrflowStore *store)
{
	Oid			aside = hrflow_aside_find(store);
	char	   *orphans = hrflow_store_sql(store, orphans_sql,
										   !OidIsValid(aside) ? "" :
										   hrflow_store_sql(store, or_aside_sql,
															aside));

	hrflow_store_execute_latest(hrflow_store_sql(store, has_orphans_sql,
												 orphans), NULL);
	return DatumGetBool(hrflow_store_datum(0, 1)) ? orphans : NULL;
}

/*
 * Count the profiles that may have vectors, as far as is necessary to find out
 * whether "percent" percent of their number is at least "n".  "percent" must
 * be positive.  Does nothing if *refreshed, the result of an earlier call, is
 * sufficient.  A run calls this in many of its transactions, so the limit of
 * each scan is at least twice the previous count.
 */
static void
count_refreshed(const HrflowStore *store, int64 n, int percent,
				HrflowRefreshed *refreshed)
{
	HrflowParameters parameters = {0};
	int64		enough = (n * 100 + percent - 1) / percent;

	if (refreshed->is_total || refreshed->n >= enough)
		return;
	enough = Max(enough, 2 * refreshed->n);
	hrflow_store_add(&parameters, INT8OID, Int64GetDatum(enough));
	hrflow_store_execute_latest(hrflow_store_sql(store, count_refreshed_sql,
												 store->has_erased_at ?
												 not_today_sql : ""),
								&parameters);
	refreshed->n = DatumGetInt64(hrflow_store_datum(0, 1));
	refreshed->is_total = refreshed->n < enough;
}

/*
 * Warn if deleting rows, or changing their keys, has erased many profiles.
 * Neither is limited, because both are deliberate; but a user who reloads a
 * table may have committed between the DELETE and the INSERT.
 */
static void
warn_of_many_deleted(const HrflowStore *store, int64 n)
{
	HrflowRefreshed refreshed = {0};

	if (n <= MAX_ERASED_FREE)
		return;
	count_refreshed(store, n, MANY_DELETED_PERCENT, &refreshed);
	if (n * 100 <= MANY_DELETED_PERCENT * (n + refreshed.n))
		return;
	ereport(WARNING,
			(errmsg_plural("erased " INT64_FORMAT " profile and its vectors from store %s because rows were deleted or their keys were changed",
						   "erased " INT64_FORMAT " profiles and their vectors from store %s because rows were deleted or their keys were changed",
						   n, n, store->vectors_name),
			 errdetail("More than %d%% of the profiles of the store or %d profiles, whichever is greater, are no longer in any table that feeds it.",
					   MANY_DELETED_PERCENT, MAX_ERASED_FREE),
			 errhint("To reload a table without erasing vectors, delete and insert its rows in a single transaction.")));
}

/*
 * Erase the profiles in HRFLOW_DELETED that are unwanted now.  Also erase the
 * vectors of keys in HRFLOW_DELETED that have no profile and that no table
 * wants.  Then call hrflow_feeder_mark_kept() for the other profiles.  Does
 * none of this if hrflow_feeder_owns_all() returns false, after a WARNING.
 */
void
hrflow_erase_deleted(const HrflowStore *store, Oid function)
{
	char	   *deleted = hrflow_store_sql(store, deleted_sql);
	char	   *orphans = NULL;
	char	   *unwanted;
	int64		nlocked;
	bool		has_more;
	uint64		norphans = 0;
	uint64		n;

	/* Lock tables before profiles, in the same order as TRUNCATE. */
	(void) hrflow_feeder_find(store, function, InvalidOid, AccessShareLock);
	nlocked = lock_deleted(store, deleted, &has_more);
	if (has_more)
		orphans = find_orphans(store);
	if (nlocked == 0 && orphans == NULL)
		return;

	/* The condition omits tables that hrflow_feeder_owns_all() rejects. */
	unwanted = hrflow_feeder_unwanted(store, function);
	if (!hrflow_feeder_owns_all(store, function))
		return;
	if (orphans != NULL)
		norphans = erase(store, erase_orphans_sql,
						 hrflow_store_sql(store, and_sql, orphans, unwanted));
	n = erase(store, erase_sql,
			  hrflow_store_sql(store, and_sql, unwanted, deleted));
	warn_of_many_deleted(store, n);
	if (n + norphans > 0)
	{
		hrflow_aside_warn(store, false);
		hrflow_erased_warn(store);
	}
	hrflow_feeder_mark_kept(store);
}

/*
 * Erase profiles regardless of whether a table refers to them.  See
 * erase_profiles_sql for the parameters.  Reads the latest rows at every
 * isolation level, so that no vector stays because it was stored after the
 * transaction's snapshot was taken.  Returns the number of profiles erased.
 */
uint64
hrflow_erase_profiles(const HrflowStore *store,
					  const HrflowParameters *parameters)
{
	uint64		n;

	hrflow_store_execute_latest(hrflow_store_sql(store, lock_profiles_sql),
								parameters);
	hrflow_store_execute_latest(get_erase_sql(store, erase_profiles_sql, NULL,
											  erase_profiles_aside_sql,
											  "'untrack'"),
								parameters);
	n = DatumGetInt64(hrflow_store_datum(0, 1));
	hrflow_aside_warn(store, false);
	hrflow_erased_warn(store);
	return n;
}

/*
 * Count the profiles that lost vectors within the last 24 hours in a way that
 * hrflow_erase_allowance() limits.  Profiles that were erased since then are
 * counted only if the store has a table NAME_erased.  Returns 0 if a
 * user-supplied table of profiles lacks the column "erased_at".
 */
int64
hrflow_erase_count(const HrflowStore *store)
{
	Oid			record;
	int64		n;

	if (!store->has_erased_at)
		return 0;
	hrflow_store_execute_latest(hrflow_store_sql(store, count_erased_sql),
								NULL);
	n = DatumGetInt64(hrflow_store_datum(0, 1));
	record = hrflow_erased_find(store);
	if (!OidIsValid(record))
		return n;
	hrflow_store_execute_latest(hrflow_store_sql(store, count_recorded_sql,
												 record), NULL);
	return n + DatumGetInt64(hrflow_store_datum(0, 1));
}

/*
 * Acquire the lock that serializes decisions about the limit, and hold it
 * until the end of the transaction.  Waits for another session, but only
 * briefly, because the caller may have locked rows.  Returns false if the
 * other session still holds the lock.
 */
static bool
lock_limit(const HrflowStore *store)
{
	for (int i = 0; i < LIMIT_ATTEMPTS; i++)
	{
		if (ConditionalLockDatabaseObject(RelationRelationId,
										  RelationGetRelid(store->profiles), 0,
										  ExclusiveLock))
			return true;
		CHECK_FOR_INTERRUPTS();
		pg_usleep(LIMIT_WAIT);
	}
	return false;
}

/*
 * Return the number of further profiles that may lose vectors within the
 * limit, see MAX_ERASED_FREE, or any number of at least "wanted" if so many
 * may lose vectors.  All profiles that hrflow_erase_count() counts are
 * subtracted, no matter in which run they lost vectors.  Returns 0 if their
 * number is not known, or if vectors cannot be put aside, and
 * HRFLOW_ERASE_UNDECIDED if another session is deciding about vectors at the
 * moment, or has locked NAME_aside.
 *
 * The table of profiles may be large, so its profiles are counted only as far
 * as necessary, and *refreshed keeps their number for the caller's next call.
 *
 * If the result is positive, no other session can obtain an allowance until
 * the end of the transaction, and NAME_aside cannot be dropped.
 */
int64
hrflow_erase_allowance(const HrflowStore *store, int64 wanted,
					   HrflowRefreshed *refreshed)
{
	int			percent = hrflow_settings_max_erased();
	int64		nerased;
	int64		most;
	Oid			aside;

	if (!store->has_erased_at)
		return 0;
	if (!hrflow_aside_lock(store, false, &aside))
		return HRFLOW_ERASE_UNDECIDED;
	if (!OidIsValid(aside))
		return 0;
	if (!lock_limit(store))
		return HRFLOW_ERASE_UNDECIDED;
	if (percent == 100)
		return Max(wanted, 0);
	nerased = hrflow_erase_count(store);
	if (percent > 0 && wanted + nerased > MAX_ERASED_FREE)
		count_refreshed(store, wanted + nerased, percent, refreshed);
	most = percent * refreshed->n / 100;
	return Max(Max(most, MAX_ERASED_FREE) - nerased, 0);
}

/*
 * Warn about profiles that are kept although the API has repeatedly had no
 * vectors for them.  They are kept because nothing proves that the API still
 * knows their source.
 */
static void
warn_of_unproven(const HrflowRun *run, int64 n)
{
	if (n > 0)
		ereport(WARNING,
				(errmsg_plural("refresh of %s keeps " INT64_FORMAT " profile for which the API has no vectors",
							   "refresh of %s keeps " INT64_FORMAT " profiles for which the API has no vectors",
							   n, run->name, n),
				 errdetail("No other profile of the same source has been refreshed recently, so this might be due to the source, the API key or the server."),
				 errhint_plural("Check \"hrflow_embed.base_url\", the API key and the source.  If the profile was deleted, untrack it with hrflow_untrack().",
								"Check \"hrflow_embed.base_url\", the API key and the source.  If the profiles were deleted, untrack them with hrflow_untrack().",
								n)));
}

/*
 * Find which of the missing profiles of a run are gone, and put their vectors
 * aside.
 *
 * A profile that has been missing for days is gone if there is proof that the
 * API knows other profiles: another profile of its source must have been
 * refreshed in the second half of the time for which the profile has been
 * missing.  Otherwise a wrong address or key would erase a store little by
 * little, however few profiles a run requests.  Profiles without that proof
 * stay missing.  If too many profiles would lose vectors, profiles with
 * vectors stay missing, too.
 *
 * If a user-supplied table of profiles lacks the column "failed_at", it is not
 * known how long profiles have been missing, so none of them is gone.  If
 * hrflow_erase_allowance() returns HRFLOW_ERASE_UNDECIDED, all profiles stay
 * missing until they are requested again.  So do the profiles that run->gone
 * has no room for.
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
	int64		allowance = hrflow_erase_allowance(store,
												   run->nlong_missing,
												   &run->refreshed);
	ListCell   *cell;

	if (!store->has_failed_at || allowance == HRFLOW_ERASE_UNDECIDED)
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
	hrflow_lost_asked_for(run, &whole, &sections, &items);
	hrflow_store_add(&parameters, TEXTARRAYOID, PointerGetDatum(whole));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(GetCurrentTimestamp() - HRFLOW_GONE_AGE));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(run->started));

	/*
	 * Profiles that run->gone has no room for may have vectors, so they count
	 * towards the limit.
	 */
	allowance -= run->nlong_missing - list_length(run->gone);
	hrflow_store_add(&parameters, INT8OID, Int64GetDatum(allowance));
	hrflow_store_add(&parameters, TEXTARRAYOID, PointerGetDatum(sections));
	hrflow_store_add(&parameters, INT4ARRAYOID, PointerGetDatum(items));
	hrflow_store_execute(hrflow_store_sql(store, erase_gone_sql,
										  store->has_erased_at ?
										  set_erased_at_sql : "",
										  hrflow_aside_put_sql(store, "gone")),
						 &parameters);
	run->ngone = DatumGetInt64(hrflow_store_datum(0, 1));
	run->has_no_aside |= !OidIsValid(hrflow_aside_find(store));
	run->has_no_limit |= !store->has_erased_at;
	run->nkept += DatumGetInt64(hrflow_store_datum(0, 3));
	run->ngone_put = DatumGetInt64(hrflow_store_datum(0, 4));
	warn_of_unproven(run, DatumGetInt64(hrflow_store_datum(0, 2)));
}
