/*-------------------------------------------------------------------------
 *
 * deferred.c
 *		Erases the profiles that a transaction has deleted, before it commits.
 *
 * A transaction that deletes rows from a table that feeds a store may insert
 * them again, as a nightly reload does.  So the triggers only collect the keys
 * of the deleted profiles, and we find out before the transaction commits
 * whether any table still refers to these profiles.
 *
 * A deferred constraint trigger would be the usual way, but TRUNCATE does not
 * fire constraint triggers, and deferred triggers cannot be queued within a
 * security-restricted operation.  Instead we use a pre-commit callback, which
 * runs after all deferred triggers.  The callback erases within a
 * security-restricted operation, so that it cannot queue deferred triggers.
 *
 * Keys that were collected in a subtransaction are kept even if the
 * subtransaction is rolled back.  No profile is erased because of that: the
 * rows that the subtransaction deleted exist again and refer to their
 * profiles.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/base.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "miscadmin.h"
#include "store/store.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

/* Number of columns of a profile's key: its source and its identifier. */
#define NKEYS 2

/*
 * Keys of profiles that were named by rows of the tables that feed a store,
 * until the current transaction deleted the rows or changed their keys.  Lives
 * in TopTransactionContext.
 */
typedef struct Deleted
{
	Oid			vectors;		/* the store's table of vectors */
	Oid			function;		/* OID of hrflow_track_trigger() */
	TupleDesc	desc;			/* row type of "keys": (s text, i text) */
	Tuplestorestate *keys;
	bool		is_broken;		/* did adding a key to "keys" fail? */
} Deleted;

/*
 * A DestReceiver that adds the keys returned by a query to "deleted".
 */
typedef struct KeyReceiver
{
	DestReceiver base;
	Deleted    *deleted;
} KeyReceiver;

/* The current transaction's list of Deleted, in TopTransactionContext. */
static List *all_deleted = NIL;

/*
 * ------------------------------------------------------------------------
 * Collecting keys
 * ------------------------------------------------------------------------
 */

static Deleted *
find_deleted(Oid vectors)
{
	ListCell   *cell;

	foreach(cell, all_deleted)
	{
		Deleted    *deleted = lfirst(cell);

		if (deleted->vectors == vectors)
			return deleted;
	}
	return NULL;
}

/*
 * Throw 55000 if adding a key has failed, for example because a temporary file
 * exceeded temp_file_limit.  If that error was caught in a subtransaction, the
 * tuplestore may lack keys that were added earlier, or be inconsistent.
 */
static void
check_keys(const Deleted *deleted, const char *store)
{
	if (deleted->is_broken)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not erase deleted profiles from store %s", store),
				 errdetail("The identifiers of some deleted profiles were lost because of an earlier error in the transaction."),
				 errhint("Roll back the transaction and retry it.")));
}

static void at_end_of_transaction(XactEvent event, void *arg);

/*
 * Return the entry of a store in "all_deleted", and create it if necessary.
 */
static Deleted *
get_deleted(const HrflowStore *store, Oid function)
{
	static bool is_registered = false;
	Deleted    *deleted = find_deleted(RelationGetRelid(store->vectors));
	MemoryContext context;
	ResourceOwner owner;

	if (deleted != NULL)
	{
		check_keys(deleted, store->vectors_name);
		return deleted;
	}
	if (!is_registered)
	{
		RegisterXactCallback(at_end_of_transaction, NULL);
		is_registered = true;
	}

	/* A temporary file of the tuplestore must outlive a subtransaction. */
	context = MemoryContextSwitchTo(TopTransactionContext);
	owner = CurrentResourceOwner;
	CurrentResourceOwner = TopTransactionResourceOwner;
	deleted = palloc0(sizeof(Deleted));
	deleted->vectors = RelationGetRelid(store->vectors);
	deleted->function = function;
	deleted->desc = CreateTemplateTupleDesc(NKEYS);
	TupleDescInitEntry(deleted->desc, 1, "s", TEXTOID, -1, 0);
	TupleDescInitEntry(deleted->desc, 2, "i", TEXTOID, -1, 0);
	hrflow_compat_finalize_desc(deleted->desc);
	deleted->keys = tuplestore_begin_heap(false, false, work_mem);
	all_deleted = lappend(all_deleted, deleted);
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(context);
	return deleted;
}

/*
 * Add a key.  If that fails, "is_broken" remains set.
 */
static void
add_key(Deleted *deleted, Datum *values, bool *nulls)
{
	deleted->is_broken = true;
	tuplestore_putvalues(deleted->keys, deleted->desc, values, nulls);
	deleted->is_broken = false;
}

/*
 * Record that a row no longer refers to a profile, because the row's key has
 * been changed.  The profile is erased before the commit, if it is unwanted by
 * then; see feeder.c.
 */
void
hrflow_deferred_add(const HrflowStore *store, Oid function,
					HrflowParameters *key)
{
	bool		nulls[NKEYS] = {false, false};

	Assert(key->n == NKEYS);
	add_key(get_deleted(store, function), key->values, nulls);
}

static void
start_keys(DestReceiver *receiver, int operation, TupleDesc desc)
{
	Assert(desc->natts == NKEYS);
}

/*
 * Add a key that a query has returned.  A value may be stored out of line in a
 * row that will be removed before the key is read, so detoast it.
 */
static bool
receive_key(TupleTableSlot *slot, DestReceiver *receiver)
{
	Datum		values[NKEYS];

	slot_getallattrs(slot);
	for (int i = 0; i < NKEYS; i++)
		values[i] = slot->tts_isnull[i] ? (Datum) 0 :
			PointerGetDatum(PG_DETOAST_DATUM_PACKED(slot->tts_values[i]));
	add_key(((KeyReceiver *) receiver)->deleted, values, slot->tts_isnull);
	for (int i = 0; i < NKEYS; i++)
	{
		if (!slot->tts_isnull[i] && values[i] != slot->tts_values[i])
			pfree(DatumGetPointer(values[i]));
	}
	return true;
}

static void
ignore_end_of_keys(DestReceiver *receiver)
{
}

/*
 * Record that rows that refer to profiles are being deleted, or that the rows'
 * keys have been changed.  The profiles are erased before the commit, if they
 * are unwanted by then.  "profiles" is a query that returns the keys of these
 * profiles as columns "s" and "i".  The query sees all rows that are committed
 * by now, because TRUNCATE also deletes rows that are not visible to the
 * transaction's snapshot.
 */
void
hrflow_deferred_add_all(const HrflowStore *store, Oid function,
						const char *profiles)
{
	KeyReceiver receiver = {
		.base = {
			.receiveSlot = receive_key,
			.rStartup = start_keys,
			.rShutdown = ignore_end_of_keys,
			.rDestroy = ignore_end_of_keys,
			.mydest = DestTuplestore
		},
		.deleted = get_deleted(store, function)
	};
	SPIExecuteOptions options = {.read_only = true, .dest = &receiver.base};
	MemoryContext context = CurrentMemoryContext;
	int			code;

	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	code = SPI_execute_extended(profiles, &options);
	PopActiveSnapshot();
	MemoryContextSwitchTo(context);
	if (code < 0)
		elog(ERROR, "SPI_execute_extended failed: %s",
			 SPI_result_code_string(code));
}

/*
 * Make the rows of a tuplestore available to SPI queries as a table with the
 * given name, until SPI_finish().
 */
void
hrflow_deferred_register_rows(char *name, TupleDesc desc,
							  Tuplestorestate *rows)
{
	EphemeralNamedRelation relation =
	palloc0(sizeof(EphemeralNamedRelationData));
	int			code;

	relation->md.name = name;
	relation->md.tupdesc = desc;
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = tuplestore_tuple_count(rows);
	relation->reldata = rows;
	code = SPI_register_relation(relation);
	if (code != SPI_OK_REL_REGISTER)
		elog(ERROR, "SPI_register_relation failed: %s",
			 SPI_result_code_string(code));
}

/*
 * Make the keys of the profiles that the transaction has deleted so far
 * available to SPI queries as the table HRFLOW_DELETED, until SPI_finish().
 * Returns false if no keys were collected for the store.  Throws 55000 if
 * keys were lost; see check_keys().
 */
bool
hrflow_deferred_register(const HrflowStore *store)
{
	Deleted    *deleted = find_deleted(RelationGetRelid(store->vectors));

	if (deleted == NULL)
		return false;
	check_keys(deleted, store->vectors_name);
	hrflow_deferred_register_rows(HRFLOW_DELETED, deleted->desc,
								  deleted->keys);
	return true;
}

/*
 * ------------------------------------------------------------------------
 * The end of the transaction
 * ------------------------------------------------------------------------
 */

/*
 * Error context callback: add the name of the store, because a COMMIT does not
 * contain it.
 */
static void
add_context(void *arg)
{
	errcontext("erasing deleted profiles from store %s", (char *) arg);
}

/*
 * Erase those of the deleted profiles of a store that are unwanted.  Does
 * nothing if the store has been dropped.  If the extension has been dropped,
 * we cannot find out whether tables still refer to these profiles, so throw
 * 55006.
 */
static void
erase_deleted(const Deleted *deleted)
{
	HrflowStore store;
	ErrorContextCallback context;

	if ((tuplestore_tuple_count(deleted->keys) == 0 && !deleted->is_broken) ||
		!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(deleted->vectors)))
		return;
	if (!SearchSysCacheExists1(PROCOID, ObjectIdGetDatum(deleted->function)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot drop extension \"%s\" because deleted profiles have not been erased yet",
						"hrflow_embed"),
				 errdetail("The transaction has deleted rows, or changed their keys, in a table that feeds a store."),
				 errhint("Commit the transaction before dropping the extension.")));
	SPI_connect();
	hrflow_store_open(&store, deleted->vectors, InvalidOid, HRFLOW_STORE_FEED);
	hrflow_context_push(&context, add_context, store.vectors_name);
	check_keys(deleted, store.vectors_name);
	hrflow_deferred_register_rows(HRFLOW_DELETED, deleted->desc,
								  deleted->keys);
	hrflow_erase_deleted(&store, deleted->function);
	hrflow_context_pop(&context);
	hrflow_store_close(&store);
	SPI_finish();
}

static int
compare_stores(const ListCell *a, const ListCell *b)
{
	Oid			left = ((Deleted *) lfirst(a))->vectors;
	Oid			right = ((Deleted *) lfirst(b))->vectors;

	return left < right ? -1 : left > right;
}

/*
 * Erase the deleted profiles of all stores, in the order of the OIDs of the
 * stores.  While a profile is erased, a user's trigger on the store may delete
 * rows from a table that feeds a store; the profiles of these rows are erased,
 * too.  So the list is sorted again before each store.  (If a trigger adds a
 * store with a lower OID than the current one, the order cannot be kept.)
 */
static void
erase_all_deleted(void)
{
	MemoryContext context = AllocSetContextCreate(TopTransactionContext,
												  "hrflow_embed deleted",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	PushActiveSnapshot(GetTransactionSnapshot());
	while (all_deleted != NIL)
	{
		Deleted    *deleted;

		list_sort(all_deleted, compare_stores);
		deleted = linitial(all_deleted);
		all_deleted = list_delete_first(all_deleted);
		erase_deleted(deleted);
		tuplestore_end(deleted->keys);
	}
	PopActiveSnapshot();
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

static void
at_end_of_transaction(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_COMMIT || event == XACT_EVENT_PRE_PREPARE)
	{
		if (all_deleted != NIL)
			erase_all_deleted();
	}
	else
		all_deleted = NIL;		/* the list's memory is freed with the
								 * transaction */
}
