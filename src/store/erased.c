/*-------------------------------------------------------------------------
 *
 * erased.c
 *		Records erasures of profiles, in the table NAME_erased of a store.
 *
 * The table has a row for every erased profile.  Instead of the identifier it
 * has a fingerprint, by which anybody who knows the identifier of a person can
 * show that, and when, the person's vectors were erased.  The owner may delete
 * old rows, or drop the table.  A store without it keeps no record.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "store/store.h"

/* Suffix of this table, added to the name of the table of vectors. */
#define SUFFIX "_erased"

static const char *const create_erased_sql[] = {
	"CREATE TABLE %s ("
	" erased_at timestamptz NOT NULL DEFAULT now(),"
	" reason text NOT NULL,"
	" vectors bigint NOT NULL,"
	" put_aside_at timestamptz,"
	" fingerprint bytea NOT NULL)",
	"CREATE INDEX ON %s (fingerprint)",
	"CREATE INDEX ON %s (erased_at)",
	"COMMENT ON TABLE %s IS"
	" 'profiles that were erased; see hrflow_fingerprint()'"
};

/*
 * Compute the same fingerprint as hrflow_fingerprint(), from the bytes in the
 * encoding of the database: converting them could fail, and nothing may
 * prevent an erasure.
 */
static const char note_sql[] =
", noted AS (INSERT INTO %R AS n (reason, vectors, put_aside_at, fingerprint)"
" SELECT (%s)::text, sum(x.n), min(x.put_aside_at),"
" sha256(sha256(convert_to(x.source_id, getdatabaseencoding()))"
" || sha256(convert_to(x.%I, getdatabaseencoding())))"
" FROM (%s) AS x GROUP BY x.source_id, x.%I, (%s)::text)";

/*
 * Create the table for a store that is being created.  "vectors" is the name
 * of the table of vectors.
 */
void
hrflow_erased_create(const char *schema, const char *vectors)
{
	const char *name = hrflow_beside_name(schema, vectors, SUFFIX);

	for (int i = 0; i < lengthof(create_erased_sql); i++)
		hrflow_store_execute(hrflow_store_sql(NULL, create_erased_sql[i], name), NULL);
}

/*
 * Return the table of a store, or InvalidOid if there is none.
 */
Oid
hrflow_erased_find(const HrflowStore *store)
{
	static const char *const columns[] = {
		"erased_at", "reason", "vectors", "put_aside_at", "fingerprint", NULL
	};

	return hrflow_beside_find(store, SUFFIX, columns);
}

/*
 * Return a WITH query that records erasures, or an empty string if the store
 * keeps no record.  "reason" is an SQL expression.  "erased" is a query that
 * returns the key of each profile with a number "n" of vectors and with
 * "put_aside_at"; rows with the same key are added up.
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
