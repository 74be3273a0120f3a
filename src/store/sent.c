/*-------------------------------------------------------------------------
 *
 * sent.c
 *		Finds contents that other sessions are sending, or may have sent, and
 *		postpones keys with contents that are being sent.
 *
 * A claim marks the contents that it is going to send by "sent_hash"; see
 * content.c.  Other sessions cannot see this until the claim commits.  To keep
 * two sessions from sending the same content for different keys, a claim
 * therefore tries to lock the hashes of its contents first, without waiting.
 * If another session has locked a hash, or has marked it and may yet write the
 * reply, the claim postpones its own key, unless the store has the vector of
 * the content.  When the key is due again, the store probably has the vector.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "store/refresh.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/*
 * Time for which a key is postponed while another session is sending its
 * content, in milliseconds.
 */
#define SENDING_TIME (10 * 1000)

/*
 * Statement that finds which of the hashes $1 belong to requests that may have
 * been sent, or are about to be, but whose replies were not written.  $2 is
 * the current time, and $3 the end of the leases of the keys that were just
 * claimed.  If all keys of such a request have leases, taken by earlier claims
 * of this session or by other sessions, the reply may yet be written, and
 * "is_open" is true.  However, a lease that ends much later was extended by
 * record.c, after the reply could not be written.  Many keys may have the same
 * content, so LIMIT stops at the first row.  The second branch needs no
 * condition on the lease: it is executed only if the first has found no row.
 */
static const char find_sent_sql[] =
"SELECT h.n::integer, s.is_open FROM unnest($1) WITH ORDINALITY AS h(hash, n)"
" CROSS JOIN LATERAL"
" (SELECT false AS is_open FROM %P AS p WHERE p.sent_hash = h.hash"
" AND (p.lease_until IS NULL OR p.lease_until <= $2 OR p.lease_until = $3"
" OR p.lease_until > $3 + interval '1 hour')"
" UNION ALL SELECT true FROM %P AS p WHERE p.sent_hash = h.hash"
" LIMIT 1) AS s";

/*
 * Statement that postpones the keys $1, which were just claimed, to $2, and
 * releases their leases.
 */
static const char give_back_sql[] =
"UPDATE %P AS p SET due_at = $2, lease_until = NULL FROM unnest($1) AS k(i)"
" CROSS JOIN LATERAL (SELECT o.tableoid AS part, o.ctid AS row FROM %P AS o"
" WHERE o.source_id = '' AND o.%I = k.i OFFSET 0) AS l"
" WHERE p.tableoid = l.part AND p.ctid = l.row";

/*
 * Try to lock a hash until the end of the transaction.  Returns false if
 * another session has locked it.  The last field of the lock tag differs from
 * those of the SQL functions for advisory locks and of history.c.  If two
 * hashes have the same tag, which is unlikely, a key may be postponed without
 * need.
 */
static bool
lock_hash(const HrflowStore *store, const char *hash)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, RelationGetRelid(store->profiles),
						 hash_bytes((const unsigned char *) hash, strlen(hash)),
						 4);
	return LockAcquire(&tag, ExclusiveLock, false, true) !=
		LOCKACQUIRE_NOT_AVAIL;
}

/*
 * Does the run have another profile with the same content, from an earlier
 * claim, that has not been written yet?  If so, it is this run that has marked
 * the content, unless the other profile needed no request.
 */
static bool
has_own(HrflowRun *run, const HrflowProfile *profile)
{
	dlist_head *lists[] = {&run->waiting, &run->in_flight, &run->suspects,
	&run->foreign, &run->arrived};
	dlist_iter	iter;

	for (int i = 0; i < lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			const HrflowProfile *other = dlist_container(HrflowProfile, node,
														 iter.cur);

			if (other->hash != NULL && strcmp(other->hash, profile->hash) == 0)
				return true;
		}
	}
	return false;
}

/*
 * Find which contents of the profiles that were just claimed, with leases
 * until "lease", may have been sent although no reply was written.  Sets
 * "was_sent" if a session that did not write the reply may have sent the
 * content, and "is_elsewhere" if another session is sending it, or may be
 * about to.
 *
 * Must be called before the store is searched for the vectors of the contents:
 * otherwise, another session could write a vector after the search, and clear
 * "sent_hash" before we look for it.
 */
void
hrflow_sent_find(HrflowRun *run, const HrflowStore *store, List *profiles,
				 TimestampTz lease)
{
	ArrayBuildState *hashes = initArrayResult(TEXTOID, CurrentMemoryContext,
											  false);
	HrflowParameters parameters = {0};
	ListCell   *cell;
	uint64		n;

	/* Acquire the locks before the statement below takes its snapshot. */
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		profile->is_elsewhere = !lock_hash(store, profile->hash);
		(void) accumArrayResult(hashes, CStringGetTextDatum(profile->hash),
								false, TEXTOID, CurrentMemoryContext);
	}
	hrflow_store_add(&parameters, TEXTARRAYOID,
					 makeArrayResult(hashes, CurrentMemoryContext));
	hrflow_store_add(&parameters, TIMESTAMPTZOID,
					 TimestampTzGetDatum(GetCurrentTimestamp()));
	hrflow_store_add(&parameters, TIMESTAMPTZOID, TimestampTzGetDatum(lease));
	n = hrflow_store_execute(hrflow_store_sql(store, find_sent_sql),
							 &parameters);
	for (uint64 i = 0; i < n; i++)
	{
		HrflowProfile *profile = list_nth(profiles,
										  DatumGetInt32(hrflow_store_datum(i, 1)) - 1);

		if (DatumGetBool(hrflow_store_datum(i, 2)))
			profile->is_elsewhere = true;
		else
			profile->was_sent = true;
	}
	SPI_freetuptable(SPI_tuptable);
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		profile->is_elsewhere = profile->is_elsewhere && !has_own(run, profile);
	}
}

/*
 * Postpone, and forget, the claimed profiles whose contents another session is
 * sending or may be about to send.  Returns their number.
 */
int64
hrflow_sent_give_back(HrflowRun *run, const HrflowStore *store)
{
	ArrayBuildState *keys = initArrayResult(TEXTOID, CurrentMemoryContext,
											false);
	TimestampTz due_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													 SENDING_TIME);
	List	   *profiles = NIL;
	HrflowParameters parameters = {0};
	dlist_iter	iter;
	ListCell   *cell;

	dlist_foreach(iter, &run->claimed)
	{
		HrflowProfile *profile = dlist_container(HrflowProfile, node, iter.cur);

		if (!profile->is_elsewhere)
			continue;
		profiles = lappend(profiles, profile);
		(void) accumArrayResult(keys, CStringGetTextDatum(profile->identifier),
								false, TEXTOID, CurrentMemoryContext);
	}
	if (profiles == NIL)
		return 0;
	hrflow_store_add(&parameters, TEXTARRAYOID,
					 makeArrayResult(keys, CurrentMemoryContext));
	hrflow_store_add(&parameters, TIMESTAMPTZOID, TimestampTzGetDatum(due_at));
	hrflow_store_execute(hrflow_store_sql(store, give_back_sql), &parameters);
	foreach(cell, profiles)
		hrflow_claim_forget(run, lfirst(cell));
	return list_length(profiles);
}
