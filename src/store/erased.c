/*-------------------------------------------------------------------------
 *
 * erased.c
 *		The record of what was erased from a store, in the table NAME_erased
 *		beside it.
 *
 * It has a row for every profile that was erased, without its identifier: a
 * fingerprint lets who knows a person's identifier show that their vectors were
 * erased, and when.  The table is as much the owner's as the others, who purges
 * it as long ago as they like.  A store without it keeps no record.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "store/store.h"

/* The name of the table is that of the vectors and this. */
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
 * The fingerprint is the one of hrflow_fingerprint().  It is computed of bytes
 * as they are, since a conversion could fail, and what is deleted must go.
 */
static const char note_sql[] =
", noted AS (INSERT INTO %R AS n (reason, vectors, put_aside_at, fingerprint)"
" SELECT (%s)::text, sum(x.n), min(x.put_aside_at),"
" sha256(sha256(convert_to(x.source_id, getdatabaseencoding()))"
" || sha256(convert_to(x.%I, getdatabaseencoding())))"
" FROM (%s) AS x GROUP BY x.source_id, x.%I, (%s)::text)";

/*
 * Create the table for a store that is being created.  "vectors" is the name of
 * its table of vectors.
 */
void
hrflow_erased_create(const char *schema, const char *vectors)
{
	const char *name = hrflow_beside_name(schema, vectors, SUFFIX);

	for (int i = 0; i < lengthof(create_erased_sql); i++)
		hrflow_store_execute(hrflow_store_sql(NULL, create_erased_sql[i], name), NULL);
}

/*
 * The record of a store, or InvalidOid where there is none.
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
 * A part of a WITH clause that records what was erased.  "reason" and "erased"
 * are SQL: the latter returns the keys of profiles, each with a number "n" of
 * vectors and with "put_aside_at", and repeated for more vectors.  Nothing where
 * the store has no record.
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
