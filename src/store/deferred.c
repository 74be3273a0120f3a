/*-------------------------------------------------------------------------
 *
 * deferred.c
 *		Erases at commit the profiles that a transaction has deleted.
 *
 * A transaction that deletes rows of a table that feeds a store may insert
 * them again, as a nightly reload does.  So the triggers only collect the keys
 * of the deleted profiles, and we find out before the transaction commits
 * whether any table still wants these profiles.
 *
 * A deferred constraint trigger would be the usual way, but TRUNCATE does not
 * fire constraint triggers, and deferred triggers cannot be queued within a
 * security-restricted operation.  Instead we use a pre-commit callback, which
 * runs after all deferred triggers.  The callback erases within a
 * security-restricted operation, so that it cannot queue further ones.
 *
 * Keys of a subtransaction that was rolled back are kept.  That does no harm,
 * because its rows exist again and want their profiles.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "base/base.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/tstoreReceiver.h"
#include "miscadmin.h"
#include "store/store.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

/*
 * The deleted profiles of a store.  Lives in TopTransactionContext.
 */
typedef struct Deleted
{
	Oid			vectors;		/* the store's table of vectors */
	Oid			function;		/* function of the triggers that feed the
								 * store */
	TupleDesc	desc;			/* row type of the keys, (s, i) */
	Tuplestorestate *keys;
} Deleted;

/* List of Deleted of the current transaction, in TopTransactionContext. */
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

static void at_end_of_transaction(XactEvent event, void *arg);

/*
 * Find the entry of a store, or create it.
 */
static Deleted *
get_deleted(const HrflowStore *store, Oid function)
{
	static bool is_registered = false;
	Deleted    *deleted = find_deleted(RelationGetRelid(store->vectors));
	MemoryContext context;
	ResourceOwner owner;

	if (deleted != NULL)
		return deleted;
	if (!is_registered)
	{
		RegisterXactCallback(at_end_of_transaction, NULL);
		is_registered = true;
	}

	/* The end of a subtransaction must not delete a temporary file. */
	context = MemoryContextSwitchTo(TopTransactionContext);
	owner = CurrentResourceOwner;
	CurrentResourceOwner = TopTransactionResourceOwner;
	deleted = palloc0(sizeof(Deleted));
	deleted->vectors = RelationGetRelid(store->vectors);
	deleted->function = function;
	deleted->desc = CreateTemplateTupleDesc(2);
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
 * Erase a profile at the end of the transaction, unless a table wants it by
 * then.
 */
void
hrflow_deferred_add(const HrflowStore *store, Oid function,
					HrflowParameters *key)
{
	Deleted    *deleted = get_deleted(store, function);
	bool		nulls[2] = {false, false};

	Assert(key->n == lengthof(nulls));
	tuplestore_putvalues(deleted->keys, deleted->desc,
						 key->values, nulls);
}

/*
 * Erase profiles at the end of the transaction, unless a table wants them by
 * then.  "profiles" is a query that returns their keys, as (s, i).  It sees
 * all rows that are committed by now, because TRUNCATE also deletes rows that
 * are not visible to the transaction's snapshot.
 */
void
hrflow_deferred_add_all(const HrflowStore *store, Oid function,
						const char *profiles)
{
	Deleted    *deleted = get_deleted(store, function);
	DestReceiver *receiver = CreateDestReceiver(DestTuplestore);
	SPIExecuteOptions options = {.read_only = true, .dest = receiver};
	MemoryContext context = CurrentMemoryContext;
	int			code;

	SetTuplestoreDestReceiverParams(receiver, deleted->keys,
									TopTransactionContext, true, NULL, NULL);
	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	code = SPI_execute_extended(profiles, &options);
	PopActiveSnapshot();
	MemoryContextSwitchTo(context);
	if (code < 0)
		elog(ERROR, "SPI_execute_extended failed: %s",
			 SPI_result_code_string(code));
	receiver->rDestroy(receiver);
}

/*
 * Make keys available as the table HRFLOW_DELETED until SPI_finish().
 */
static void
register_keys(const Deleted *deleted)
{
	EphemeralNamedRelation relation =
	palloc0(sizeof(EphemeralNamedRelationData));
	int			code;

	relation->md.name = HRFLOW_DELETED;
	relation->md.tupdesc = deleted->desc;
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = tuplestore_tuple_count(deleted->keys);
	relation->reldata = deleted->keys;
	code = SPI_register_relation(relation);
	if (code != SPI_OK_REL_REGISTER)
		elog(ERROR, "SPI_register_relation failed: %s",
			 SPI_result_code_string(code));
}

/*
 * Make the keys of the profiles that the transaction has deleted so far from a
 * store's tables available, as the table HRFLOW_DELETED, until SPI_finish().
 * Returns false if there are none.
 */
bool
hrflow_deferred_register(const HrflowStore *store)
{
	Deleted    *deleted = find_deleted(RelationGetRelid(store->vectors));

	if (deleted == NULL)
		return false;
	register_keys(deleted);
	return true;
}

/*
 * ------------------------------------------------------------------------
 * The end of the transaction
 * ------------------------------------------------------------------------
 */

/*
 * Error context callback: name the store, which COMMIT does not.
 */
static void
add_context(void *arg)
{
	errcontext("erasing deleted profiles from store %s", (char *) arg);
}

/*
 * Erase the deleted profiles of a store, unless the store has been dropped.
 * If the extension has been dropped, we cannot find out whether a profile is
 * still wanted, so throw an error.
 */
static void
erase_deleted(const Deleted *deleted)
{
	HrflowStore store;
	ErrorContextCallback context;

	if (tuplestore_tuple_count(deleted->keys) == 0 ||
		!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(deleted->vectors)))
		return;
	if (!SearchSysCacheExists1(PROCOID, ObjectIdGetDatum(deleted->function)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot drop extension \"%s\" in a transaction that has deleted rows of a table that feeds a store",
						"hrflow_embed"),
				 errhint("Commit the transaction before dropping the extension.")));
	SPI_connect();
	hrflow_store_open(&store, deleted->vectors, InvalidOid, HRFLOW_STORE_FEED);
	hrflow_context_push(&context, add_context, store.vectors_name);
	register_keys(deleted);
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
 * Erase the deleted profiles of all stores, in the order of their OIDs.  A
 * trigger that a user has created on a store may delete from a table that
 * feeds a store; these profiles are erased, too.
 */
static void
erase_all_deleted(void)
{
	MemoryContext context = AllocSetContextCreate(TopTransactionContext,
												  "hrflow_embed deleted",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	list_sort(all_deleted, compare_stores);
	PushActiveSnapshot(GetTransactionSnapshot());
	while (all_deleted != NIL)
	{
		Deleted    *deleted = linitial(all_deleted);

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
		all_deleted = NIL;		/* its memory is freed with the transaction */
}
