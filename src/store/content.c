/*-------------------------------------------------------------------------
 *
 * content.c
 *		Reads contents from the tables that feed a store, to be sent to the
 *		API, and avoids sending the same content twice.
 *
 * Contents are read in the transaction that claims their keys.  For each key,
 * the column "content_hash" contains the hash of the request that produced the
 * key's vector.  Content is not sent again while a run has a request with the
 * same content in flight (for other sessions, see sent.c), or if the store has
 * its vector under any key, fetched with the same API key, and with an
 * accepted dimension.
 *
 * Before requests are sent, their hashes are committed in the column
 * "sent_hash", which is cleared when the reply is written, or if no request
 * was sent.  If a session ends before the reply is written, the next session
 * knows which contents may have been sent, and paid for.  It marks their keys
 * as failed, and sends the contents again only after hrflow_retry().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "compat.h"
#include "storage/lmgr.h"
#include "store/refresh.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"

/*
 * Statement that reads the contents of the keys $1 from one table.  It returns
 * no empty contents.  If several rows have the same key, it returns the
 * content that sorts first, but prefers contents that can probably be sent.
 * The LATERAL subquery ensures that contents are computed only for these keys,
 * and only once: it depends on "p", and OFFSET keeps the planner from
 * flattening it.
 */
static const char read_sql[] =
"SELECT DISTINCT ON (p.n) p.n::integer, c.value FROM"
" (SELECT ''::text AS source_id, u.i AS %I, u.n"
" FROM unnest($1) WITH ORDINALITY AS u(i, n)) AS p"
" JOIN %R AS f ON %s CROSS JOIN LATERAL"
" (SELECT %s AS value WHERE p.n > 0 OFFSET 0) AS c"
" WHERE %s ORDER BY p.n, NOT (%s), c.value";

static const char next_column_sql[] = "%s, %s";

/*
 * Statement that finds the stored vectors of contents.  $1 is an array of
 * keys, and $2 an array of the hashes of their contents.  $3 is the account,
 * and $4 the section.  $5 is an array of the accepted dimensions, which is
 * empty if any dimension is accepted.  A key's own vector is preferred.
 * Because many keys may have the same content, LIMIT stops at the first vector
 * found.
 */
#define VECTOR_SQL \
	" CROSS JOIN LATERAL (SELECT v.vector::real[] AS vector FROM %V AS v" \
	" WHERE v.source_id = p.source_id AND v.%I = p.%I" \
	" AND v.section = $4 AND v.item = 0 OFFSET 0) AS e" \
	" WHERE p.content_hash = h.hash AND p.account = $3" \
	" AND (cardinality($5) = 0 OR p.dimension = ANY ($5))"

static const char find_vectors_sql[] =
"SELECT h.n::integer, f.vector"
" FROM unnest($1, $2) WITH ORDINALITY AS h(i, hash, n)"
" CROSS JOIN LATERAL (SELECT e.vector FROM (SELECT * FROM %P AS o"
" WHERE o.source_id = '' AND o.%I = h.i OFFSET 0) AS p" VECTOR_SQL
" UNION ALL SELECT e.vector FROM %P AS p" VECTOR_SQL " LIMIT 1) AS f";

/*
 * Statement that sets "sent_hash" for requests that are about to be sent.  $1
 * is an array of keys, and $2 an array of the hashes of their requests.  The
 * plans of this statement and of unmark_sql, like those of the statements in
 * claim.c, do not depend on the statistics of the table.
 */
static const char mark_sql[] =
"UPDATE %P AS p SET sent_hash = k.hash FROM unnest($1, $2) AS k(i, hash)"
" CROSS JOIN LATERAL (SELECT o.tableoid AS part, o.ctid AS row FROM %P AS o"
" WHERE o.source_id = '' AND o.%I = k.i OFFSET 0) AS l"
" WHERE p.tableoid = l.part AND p.ctid = l.row";

/*
 * Statement that clears "sent_hash" for requests that were not sent.  $1 is an
 * array of their keys, and $2 an array of the times at which the leases of
 * these keys end.  Keys whose lease ends at another time, or whose row another
 * session has locked, are skipped.
 */
static const char unmark_sql[] =
"WITH locked AS MATERIALIZED"
" (SELECT l.part, l.row FROM unnest($1, $2) AS k(i, lease)"
" CROSS JOIN LATERAL"
" (SELECT p.tableoid AS part, p.ctid AS row FROM %P AS p"
" WHERE p.source_id = '' AND p.%I = k.i AND p.lease_until = k.lease"
" FOR NO KEY UPDATE SKIP LOCKED) AS l)"
" UPDATE %P AS p SET sent_hash = NULL"
" FROM locked AS l WHERE p.tableoid = l.part AND p.ctid = l.row";

/*
 * Those of the planner settings turned off by work.c that are turned on again
 * while a table that feeds the store is read, so that the planner can choose
 * other ways to find the rows.
 */
static const char *const read_settings[] = {
	"enable_seqscan", "enable_bitmapscan", "enable_hashjoin"
};

/*
 * Can the tables that feed the store be locked without waiting?  Acquires the
 * locks one by one, so it may hold some of them even if it returns false.
 */
bool
hrflow_content_can_lock(const HrflowRun *run, const HrflowStore *store)
{
	ListCell   *cell;
	ListCell   *inner;

	foreach(cell, hrflow_feeder_find(store, run->function, InvalidOid, NoLock))
	{
		const HrflowFeeder *feeder = lfirst(cell);

		if (!feeder->represents)
			continue;
		foreach(inner, find_all_inheritors(feeder->table, NoLock, NULL))
		{
			if (!ConditionalLockRelationOid(lfirst_oid(inner),
											AccessShareLock))
				return false;
		}
	}
	return true;
}

/*
 * Find the triggers on UPDATE of the tables that feed the store, and those
 * that represent the tables, and lock these tables.  Must be called before
 * rows of the store are locked, because TRUNCATE of one of these tables locks
 * the table before it locks rows of the store.
 */
List *
hrflow_content_feeders(const HrflowRun *run, const HrflowStore *store)
{
	List	   *feeders = NIL;
	ListCell   *cell;

	foreach(cell, hrflow_feeder_find(store, run->function, InvalidOid,
									 AccessShareLock))
	{
		HrflowFeeder *feeder = lfirst(cell);

		/*
		 * The trigger on UPDATE specifies the columns.  If it was dropped,
		 * for example by hrflow_release_columns(), the contents must not be
		 * considered empty.
		 */
		if (feeder->represents || feeder->is_update)
			feeders = lappend(feeders, feeder);
	}
	return feeders;
}

/*
 * Return the trigger on UPDATE of a table, or InvalidOid if there is none.
 */
static Oid
find_update_trigger(List *feeders, Oid table)
{
	ListCell   *cell;

	foreach(cell, feeders)
	{
		const HrflowFeeder *feeder = lfirst(cell);

		if (feeder->is_update && feeder->table == table)
			return feeder->trigger;
	}
	return InvalidOid;
}

/*
 * Return the statement that reads contents from a table.
 */
static char *
make_read_sql(const HrflowStore *store, Relation table,
			  const HrflowFeeder *feeder, Oid trigger)
{
	const HrflowReading *reading = store->kind->reading;
	char	   *columns = NULL;
	ListCell   *cell;

	hrflow_columns_check_keys(table, feeder->function, feeder->args);
	foreach(cell, hrflow_columns_of_content(table, trigger, feeder->args))
	{
		char	   *name = SPI_fname(RelationGetDescr(table), lfirst_int(cell));
		char	   *column = hrflow_store_sql(NULL, reading->column_sql, name);

		columns = columns == NULL ? column :
			hrflow_store_sql(NULL, next_column_sql, columns, column);
	}
	return hrflow_store_sql(store, read_sql, RelationGetRelid(table),
							hrflow_feeder_wants(store, table, feeder->args),
							hrflow_store_sql(NULL, reading->value_sql, columns),
							reading->present_sql, reading->sendable_sql);
}

/*
 * Return the SHA-256 hash of a string, in hexadecimal.
 */
static char *
make_hash(const char *string)
{
	uint8		digest[PG_SHA256_DIGEST_LENGTH];
	char	   *hash = palloc0(2 * PG_SHA256_DIGEST_LENGTH + 1);
	pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA256);

	if (pg_cryptohash_init(context) < 0 ||
		pg_cryptohash_update(context, (const uint8 *) string,
							 strlen(string)) < 0 ||
		pg_cryptohash_final(context, digest, sizeof(digest)) < 0)
		elog(ERROR, "could not compute the SHA-256 hash of a request");
	pg_cryptohash_free(context);
	hex_encode((const char *) digest, PG_SHA256_DIGEST_LENGTH, hash);
	return hash;
}

/*
 * Take a value read from a table as the content of a profile, or set "problem"
 * if the value cannot be sent.  If several tables have contents for the
 * profile that can be sent, the content whose request sorts first is used.
 *
 * Making the body of a request takes several times the memory of the body, so
 * only the result is allocated in the profile's memory context.
 */
static void
take_content(HrflowProfile *profile, const HrflowReading *reading,
			 const char *item_type, Datum value)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "hrflow_embed content",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	char	   *problem = NULL;
	char	   *body = reading->make_body(item_type, value, &problem);

	if (body == NULL)
		profile->problem = MemoryContextStrdup(profile->context, problem);
	else if (profile->body == NULL || strcmp(body, profile->body) < 0)
	{
		if (profile->body != NULL)
			pfree(profile->body);
		profile->body = MemoryContextStrdup(profile->context, body);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

static ArrayType *
make_texts_of(List *profiles, bool of_hashes)
{
	Datum	   *texts = palloc(sizeof(Datum) * Max(list_length(profiles), 1));
	ListCell   *cell;

	foreach(cell, profiles)
	{
		const HrflowProfile *profile = lfirst(cell);

		texts[foreach_current_index(cell)] =
			CStringGetTextDatum(of_hashes ? profile->hash :
								profile->identifier);
	}
	return construct_array(texts, list_length(profiles), TEXTOID, -1, false,
						   TYPALIGN_INT);
}

/*
 * Read the contents of profiles from one table.
 */
static void
read_table(const HrflowStore *store, List *feeders, const HrflowFeeder *feeder,
		   List *profiles)
{
	Relation	table = relation_open(feeder->table, NoLock);
	HrflowParameters parameters = {0};
	uint64		n;

	hrflow_store_add(&parameters, TEXTARRAYOID,
					 PointerGetDatum(make_texts_of(profiles, false)));
	n = hrflow_store_execute(make_read_sql(store, table, feeder,
										   find_update_trigger(feeders,
															   feeder->table)),
							 &parameters);
	for (uint64 i = 0; i < n; i++)
		take_content(list_nth(profiles,
							  DatumGetInt32(hrflow_store_datum(i, 1)) - 1),
					 store->kind->reading,
					 feeder->args[HRFLOW_TRIGGER_ITEM_TYPE],
					 hrflow_store_datum(i, 2));
	SPI_freetuptable(SPI_tuptable);
	relation_close(table, NoLock);
}

/*
 * Read the contents of profiles from all tables that feed a store.
 */
static void
read_tables(const HrflowStore *store, List *feeders, List *profiles)
{
	int			level = NewGUCNestLevel();
	ListCell   *cell;

	for (int i = 0; i < lengthof(read_settings); i++)
		(void) set_config_option(read_settings[i], "on", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	foreach(cell, feeders)
	{
		const HrflowFeeder *feeder = lfirst(cell);

		if (feeder->represents)
			read_table(store, feeders, feeder, profiles);
	}
	AtEOXact_GUC(false, level);
}

/*
 * If no content was found for some profiles, check that they may be considered
 * empty.  Throws 55000 if no table feeds the store, for example because tables
 * feed only the partitioned store of which this one is a partition, or if a
 * table cannot be read because it, a partition or a child does not belong to
 * the owner of the store.
 * In both cases, the contents may exist.
 */
static void
check_all_readable(const HrflowRun *run, const HrflowStore *store,
				   List *feeders, List *profiles)
{
	bool		is_empty = false;
	ListCell   *cell;

	foreach(cell, profiles)
	{
		const HrflowProfile *profile = lfirst(cell);

		is_empty |= profile->body == NULL && profile->problem == NULL;
	}
	if (is_empty && !hrflow_feeder_owns_all(store, run->function))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot read the contents of store %s",
						store->vectors_name),
				 errdetail("A table that feeds the store, or a partition or inheritance child of such a table, does not belong to the owner of the store."),
				 errhint("Change the owner of that table to the owner of the store.")));
	if (is_empty && feeders == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot read the contents of store %s",
						store->vectors_name),
				 errdetail("No table feeds the store."),
				 errhint("Call hrflow_track_table() for the table to read from.  If the store is a partition of another store, refresh that store.")));
}

/*
 * Set the vectors of a profile to a copy of a single vector.
 */
static void
give_vector(const HrflowRun *run, HrflowProfile *profile, ArrayType *value)
{
	MemoryContext old = MemoryContextSwitchTo(profile->context);
	HrflowVector *vector = palloc0(sizeof(HrflowVector));

	vector->section = pstrdup(run->kind->whole);
	vector->value = (ArrayType *) palloc(VARSIZE(value));
	memcpy(vector->value, value, VARSIZE(value));
	profile->vectors = list_make1(vector);
	MemoryContextSwitchTo(old);
}

/*
 * For each of the given profiles, copy the vector of its content if the store
 * already has that vector; see find_vectors_sql.
 */
static void
find_vectors(HrflowRun *run, const HrflowStore *store, List *profiles)
{
	int			ndimensions = list_length(run->dimensions);
	Datum	   *dimensions = palloc(sizeof(Datum) * Max(ndimensions, 1));
	HrflowParameters parameters = {0};
	ListCell   *cell;
	uint64		n;

	foreach(cell, run->dimensions)
		dimensions[foreach_current_index(cell)] = Int32GetDatum(lfirst_int(cell));
	hrflow_store_add(&parameters, TEXTARRAYOID,
					 PointerGetDatum(make_texts_of(profiles, false)));
	hrflow_store_add(&parameters, TEXTARRAYOID,
					 PointerGetDatum(make_texts_of(profiles, true)));
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(run->account));
	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(run->kind->whole));
	hrflow_store_add(&parameters, INT4ARRAYOID,
					 PointerGetDatum(construct_array(dimensions, ndimensions,
													 INT4OID, sizeof(int32),
													 true, TYPALIGN_INT)));
	n = hrflow_store_execute(hrflow_store_sql(store, find_vectors_sql),
							 &parameters);
	for (uint64 i = 0; i < n; i++)
		give_vector(run,
					list_nth(profiles,
							 DatumGetInt32(hrflow_store_datum(i, 1)) - 1),
					DatumGetArrayTypeP(hrflow_store_datum(i, 2)));
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Record the final failure of a profile for which no request is sent.
 */
static void
fail(HrflowRun *run, HrflowProfile *profile, HrflowStatus status,
	 const char *detail)
{
	HrflowResult result = {
		.status = status,
		.endpoint = run->kind->asked.endpoint,
		.detail = unconstify(char *, detail)
	};
	MemoryContext old = MemoryContextSwitchTo(profile->context);

	profile->status = status;
	profile->is_final = true;
	profile->error = hrflow_error_describe(&result);
	MemoryContextSwitchTo(old);
	hrflow_state_arrive(run, profile);
}

/*
 * Find another profile of the run with the same content that is to be
 * requested or in flight, that has a vector to be written, or whose content
 * may have been sent although no reply was written.  Returns NULL if there is
 * none.  Sets *is_held to true if the vector is held back because of its
 * dimension.
 */
static HrflowProfile *
find_leader(HrflowRun *run, const HrflowProfile *profile, bool *is_held)
{
	dlist_head *lists[] = {&run->in_flight, &run->claimed, &run->suspects,
	&run->foreign, &run->arrived};
	dlist_iter	iter;

	for (int i = 0; i < lengthof(lists); i++)
	{
		bool		is_open = lists[i] == &run->in_flight ||
		lists[i] == &run->claimed;

		dlist_foreach(iter, lists[i])
		{
			HrflowProfile *other = dlist_container(HrflowProfile, node,
												   iter.cur);

			if (other == profile)
				break;			/* later profiles in the list wait for the
								 * result of this profile */
			if (other->hash != NULL && strcmp(other->hash, profile->hash) == 0 &&
				((is_open && !other->is_elsewhere) || other->vectors != NIL ||
				 other->was_sent))
			{
				*is_held = lists[i] == &run->foreign;
				return other;
			}
		}
	}
	return NULL;
}

/*
 * Is the content of a claimed profile to be sent, by a request for this
 * profile or for another profile of the run with the same content?  In the
 * latter case, moves the profile to the list "waiting".  If the content is not
 * to be sent, moves the profile to the list "arrived", with a vector, as empty,
 * or with an error; or to the list "foreign", if the vector is held back
 * because of its dimension; or, if another session is sending the content,
 * leaves the profile to hrflow_sent_give_back().
 */
static bool
settle(HrflowRun *run, HrflowProfile *profile)
{
	HrflowProfile *leader;
	bool		is_held = false;

	if (profile->body == NULL && profile->problem != NULL)
		fail(run, profile, HRFLOW_INVALID_REQUEST, profile->problem);
	else if (profile->hash == NULL)
	{
		profile->is_empty = true;
		hrflow_state_arrive(run, profile);
	}
	else if (profile->vectors != NIL)
		hrflow_state_arrive(run, profile);
	else if ((leader = find_leader(run, profile, &is_held)) == NULL &&
			 !profile->was_sent)
		return !profile->is_elsewhere;
	else if (leader == NULL || (leader->vectors == NIL && leader->was_sent))
	{
		profile->was_sent = true;
		fail(run, profile, HRFLOW_CONNECTION_LOST,
			 "The content may have been sent, and paid for, but no reply was written.  hrflow_retry() sends it again.");
	}
	else if (leader->vectors != NIL)
	{
		profile->asked_at = leader->asked_at;
		give_vector(run, profile,
					((HrflowVector *) linitial(leader->vectors))->value);
		if (is_held)
		{
			dlist_delete(&profile->node);
			dlist_push_tail(&run->foreign, &profile->node);
		}
		else
			hrflow_state_arrive(run, profile);
	}
	else
	{
		profile->leader = leader;
		profile->was_sent = false;
		dlist_delete(&profile->node);
		dlist_push_tail(&run->waiting, &profile->node);
		run->nwaiting++;
		return true;
	}
	return false;
}

/*
 * Read the contents of the profiles that were just claimed, with leases until
 * "lease".  Profiles whose contents need not or cannot be sent leave the list
 * "claimed" immediately; see settle().  Profiles whose contents another session
 * is sending are postponed and forgotten.  The others remain claimed, or wait
 * for a profile with the same content; their contents are marked as possibly
 * sent.  Returns the number of postponed profiles.
 */
int64
hrflow_content_read(HrflowRun *run, const HrflowStore *store, List *feeders,
					TimestampTz lease)
{
	List	   *profiles = NIL;
	List	   *present = NIL;
	List	   *sent = NIL;
	HrflowParameters parameters = {0};
	int64		npostponed;
	dlist_iter	iter;
	ListCell   *cell;

	dlist_foreach(iter, &run->claimed)
		profiles = lappend(profiles,
						   dlist_container(HrflowProfile, node, iter.cur));
	if (profiles == NIL)
		return 0;
	read_tables(store, feeders, profiles);
	check_all_readable(run, store, feeders, profiles);
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);
		MemoryContext old = MemoryContextSwitchTo(profile->context);

		if (profile->body != NULL)
			profile->hash = make_hash(profile->body);
		MemoryContextSwitchTo(old);
		if (profile->hash != NULL)
			present = lappend(present, profile);
	}
	if (present != NIL)
	{
		hrflow_sent_find(run, store, present, lease);
		find_vectors(run, store, present);
	}
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);
		bool		is_sent = settle(run, profile);

		if (is_sent)
			sent = lappend(sent, profile);

		/*
		 * Only a profile for which a request is sent still needs its content.
		 */
		if (profile->body != NULL && (!is_sent || profile->leader != NULL))
		{
			pfree(profile->body);
			profile->body = NULL;
		}
	}
	npostponed = hrflow_sent_give_back(run, store);
	if (sent == NIL)
		return npostponed;
	hrflow_store_add(&parameters, TEXTARRAYOID,
					 PointerGetDatum(make_texts_of(sent, false)));
	hrflow_store_add(&parameters, TEXTARRAYOID,
					 PointerGetDatum(make_texts_of(sent, true)));
	hrflow_store_execute(hrflow_store_sql(store, mark_sql), &parameters);

	/* A crash must not lose "sent_hash", even if synchronous_commit is off. */
	ForceSyncCommit();
	return npostponed;
}

/*
 * Clear "sent_hash" of the profiles that are still claimed, or waiting,
 * because their contents were not sent; see unmark_sql.
 */
void
hrflow_content_unmark(HrflowRun *run, const HrflowStore *store)
{
	static const Oid types[] = {TEXTOID, TIMESTAMPTZOID};
	dlist_head *lists[] = {&run->claimed, &run->waiting};
	HrflowRows *rows;
	HrflowParameters parameters = {0};
	dlist_iter	iter;
	int			n = 0;

	for (int i = 0; i < lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
			n++;
	}
	rows = hrflow_store_make_rows(types, lengthof(types), n);
	for (int i = 0; i < lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			const HrflowProfile *profile = dlist_container(HrflowProfile, node,
														   iter.cur);
			Datum		values[lengthof(types)];

			values[0] = CStringGetTextDatum(profile->identifier);
			values[1] = TimestampTzGetDatum(profile->lease);
			hrflow_store_add_row(rows, values, NULL);
		}
	}
	hrflow_store_add_rows(&parameters, rows);
	hrflow_store_execute(hrflow_store_sql(store, unmark_sql), &parameters);
}

/*
 * Copy the result of a profile to the profiles with the same content that wait
 * for it.
 */
void
hrflow_content_share(HrflowRun *run, const HrflowProfile *leader)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &run->waiting)
	{
		HrflowProfile *profile = dlist_container(HrflowProfile, node, iter.cur);

		if (profile->leader != leader)
			continue;
		profile->leader = NULL;
		profile->is_copy = true;
		run->nwaiting--;
		profile->asked_at = leader->asked_at;
		profile->sent_at = leader->sent_at;
		profile->status = leader->status;
		profile->http_status = leader->http_status;
		profile->unasked = leader->unasked;
		profile->was_sent = leader->was_sent;
		if (leader->error != NULL)
			profile->error = MemoryContextStrdup(profile->context,
												 leader->error);
		if (leader->vectors != NIL)
			give_vector(run, profile,
						((HrflowVector *) linitial(leader->vectors))->value);
		hrflow_suspects_land(run, profile);
	}
}

/*
 * Warn about contents that have become empty.  Their vectors were put aside
 * or, for the reason that hrflow_lost_why_kept() returns, kept.
 */
void
hrflow_content_warn(const HrflowRun *run)
{
	if (run->nerased > 0)
		ereport(WARNING,
				(errmsg_plural("refresh of %s has put aside the vector of " INT64_FORMAT " key whose content has become empty",
							   "refresh of %s has put aside the vectors of " INT64_FORMAT " keys whose contents have become empty",
							   run->nerased, run->name, run->nerased),
				 errhint_plural("To restore the vector, call hrflow_restore() before it is erased.",
								"To restore the vectors, call hrflow_restore() before they are erased.",
								run->nerased)));
	if (run->nkept > 0)
		ereport(WARNING,
				(errmsg_plural("refresh of %s keeps the vector of " INT64_FORMAT " key whose content has become empty",
							   "refresh of %s keeps the vectors of " INT64_FORMAT " keys whose contents have become empty",
							   run->nkept, run->name, run->nkept),
				 errdetail_internal("%s", hrflow_lost_why_kept(run)),
				 errhint("If the rows are no longer needed, delete them or untrack their keys with hrflow_untrack().")));
}
