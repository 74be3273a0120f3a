/*-------------------------------------------------------------------------
 *
 * erased.c
 *		Records erasures of profiles, in the table NAME_erased of a store.
 *
 * The table has a row for each erasure of a profile or of its expired vectors.
 * Instead of the source and the identifier, the row has a fingerprint.  Anyone
 * who knows both can use the fingerprint to show that a person's vectors were
 * erased, and when.  The owner may delete old rows, or drop the table.
 * Without the table, erasures are not recorded.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "store/store.h"

/* Suffix of the name of the table NAME_erased. */
#define SUFFIX "_erased"

static const char *const create_erased_sql[] = {
	"CREATE TABLE %s ("
	" erased_at timestamptz NOT NULL DEFAULT now(),"
	" reason text NOT NULL,"
	" vectors bigint NOT NULL,"
	" put_aside_at timestamptz,"
	" fingerprint bytea NOT NULL)",

	/*
	 * The table has no key, so publishing UPDATE and DELETE requires a
	 * replica identity.
	 */
	"ALTER TABLE %s REPLICA IDENTITY FULL",
	"CREATE INDEX ON %s (fingerprint)",
	"CREATE INDEX ON %s (erased_at)",
	"COMMENT ON TABLE %s IS"
	" 'profiles that were erased; see hrflow_fingerprint()'"
};

/*
 * SQL for the fingerprint of the profile in a row.  It is the same as that of
 * hrflow_fingerprint().  It is computed from the bytes in the database
 * encoding, because converting them to another encoding could fail, and that
 * would prevent the erasure.
 */
#define FINGERPRINT_SQL(row) \
	"sha256(sha256(convert_to(" row ".source_id, getdatabaseencoding()))" \
	" || sha256(convert_to(" row ".%I, getdatabaseencoding())))"

/* WITH query that records erasures. */
static const char note_sql[] =
", noted AS (INSERT INTO %R AS n (reason, vectors, put_aside_at, fingerprint)"
" SELECT (%s)::text, sum(x.n), min(x.put_aside_at), " FINGERPRINT_SQL("x")
" FROM (%s) AS x GROUP BY x.source_id, x.%I, (%s)::text)";

/*
 * Query for the fingerprints of the profiles that have no row in the table of
 * profiles, and whose latest erasure was by hrflow_untrack() or
 * hrflow_untrack_batches(), as an array, or null if there are none.  Erasures
 * by hrflow_untrack_table() have the same reason, but also "put_aside_at"; see
 * aside.c.
 */
static const char untracked_sql[] =
"SELECT array_agg(DISTINCT e.fingerprint) FROM %R AS e"
" WHERE e.reason = 'untrack' AND e.put_aside_at IS NULL"
" AND NOT EXISTS (SELECT FROM %R AS l"
" WHERE l.fingerprint = e.fingerprint AND l.erased_at > e.erased_at"
" AND (l.reason <> 'untrack' OR l.put_aside_at IS NOT NULL))"
" AND NOT EXISTS (SELECT FROM %P AS p"
" WHERE " FINGERPRINT_SQL("p") " = e.fingerprint)";

/*
 * Query for the profiles whose fingerprints are in the array $1.  It returns
 * each source with an array of identifiers.
 */
static const char by_fingerprint_sql[] =
"SELECT p.source_id, array_agg(p.%I) FROM %P AS p"
" WHERE " FINGERPRINT_SQL("p") " IN (SELECT unnest($1))"
" GROUP BY p.source_id";

/*
 * Create the table NAME_erased for a store that is being created.  "vectors"
 * is the name of the table of vectors, without its schema.
 */
void
hrflow_erased_create(const char *schema, const char *vectors)
{
	const char *name = hrflow_beside_name(schema, vectors, SUFFIX);

	for (int i = 0; i < lengthof(create_erased_sql); i++)
		hrflow_store_execute(hrflow_store_sql(NULL, create_erased_sql[i], name), NULL);
}

/*
 * Return the table NAME_erased of a store, or InvalidOid if there is none.
 * Sets *problem as hrflow_beside_find() does.
 */
static Oid
find_record(const HrflowStore *store, char **problem)
{
	static const HrflowColumn columns[] = {
		{.name = "erased_at", .type = TIMESTAMPTZOID},
		{.name = "reason", .type = TEXTOID},
		{.name = "vectors", .type = INT8OID},
		{.name = "put_aside_at", .type = TIMESTAMPTZOID},
		{.name = "fingerprint", .type = BYTEAOID}
	};

	return hrflow_beside_find(store, SUFFIX, columns, lengthof(columns),
							  problem);
}

/*
 * Return the table NAME_erased of a store, or InvalidOid if there is none.
 */
Oid
hrflow_erased_find(const HrflowStore *store)
{
	return find_record(store, NULL);
}

/*
 * Add the fingerprints that untracked_sql returns for a store to the
 * parameters "fingerprints", as an array.  Adds nothing if there are none, or
 * if the store keeps no record of erasures.
 */
void
hrflow_erased_untracked(const HrflowStore *store,
						HrflowParameters *fingerprints)
{
	Oid			record = hrflow_erased_find(store);
	Datum		array;
	bool		is_null;

	if (!OidIsValid(record))
		return;
	hrflow_store_execute_latest(hrflow_store_sql(store, untracked_sql,
												 record, record), NULL);
	array = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						  &is_null);
	if (!is_null)
		hrflow_store_add(fingerprints, BYTEAARRAYOID, array);
}

/*
 * Erase from a store what hrflow_untrack() has erased from another one, given
 * the result of hrflow_erased_untracked().
 */
void
hrflow_erased_repeat(const HrflowStore *store,
					 const HrflowParameters *fingerprints)
{
	SPITupleTable *found;
	uint64		n;

	if (fingerprints->n == 0)
		return;
	n = hrflow_store_execute_latest(hrflow_store_sql(store,
													 by_fingerprint_sql),
									fingerprints);
	found = SPI_tuptable;
	for (uint64 row = 0; row < n; row++)
	{
		HrflowParameters key = {0};
		bool		is_null;

		hrflow_store_add(&key, TEXTOID,
						 SPI_getbinval(found->vals[row], found->tupdesc, 1,
									   &is_null));
		hrflow_store_add(&key, TEXTARRAYOID,
						 SPI_getbinval(found->vals[row], found->tupdesc, 2,
									   &is_null));
		(void) hrflow_erase_profiles(store, &key);
	}
}

/*
 * Called when profiles, or expired vectors, have been erased.  Warn if that
 * was not recorded because a relation NAME_erased is ignored; see
 * hrflow_beside_should_warn().
 */
void
hrflow_erased_warn(const HrflowStore *store)
{
	static HrflowBesideWarning last;
	char	   *problem;

	(void) find_record(store, &problem);
	if (problem == NULL || !hrflow_beside_should_warn(store, &last))
		return;
	ereport(WARNING,
			(errmsg("erasures from store %s are not recorded in relation \"%s" SUFFIX "\"",
					store->vectors_name,
					RelationGetRelationName(store->vectors)),
			 errdetail_internal("%s", problem),
			 errhint("If this is the store's own table, revert the change made to it.  Otherwise, rename the relation.")));
}

/*
 * Return a WITH query that records erasures, or an empty string if the store
 * has no table NAME_erased.  "reason" is an SQL expression.  "erased" is a
 * template for a query that returns the keys of profiles, a number "n" of
 * vectors, "put_aside_at", and any column to which "reason" refers.  The
 * values of "n" are added up for each key and reason.
 */
const char *
hrflow_erased_note_sql(const HrflowStore *store, const char *reason,
					   const char *erased)
{
	Oid			table = hrflow_erased_find(store);

	return OidIsValid(table) ?
		hrflow_store_sql(store, note_sql, table, reason,
						 hrflow_store_sql(store, erased), reason) : "";
}
