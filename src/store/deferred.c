/*-------------------------------------------------------------------------
 *
 * deferred.c
 *		What a transaction has deleted is erased when it commits.
 *
 * A transaction that deletes rows of a table that feeds a store may put them
 * back, as a nightly reload does.  So the triggers only keep the keys of the
 * profiles whose rows were deleted, and whether anything still wants these
 * profiles is asked at the end of the transaction, before it commits.
 *
 * A deferred constraint trigger would be the usual way, but TRUNCATE fires none,
 * and none may be queued within a security-restricted operation.  A callback
 * before the commit runs when all deferred triggers have been fired; because it
 * erases within such an operation, it cannot queue others.
 *
 * Keys of a subtransaction that was rolled back are kept as well: the rows are
 * there again, and want their profiles.
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
 * The deleted profiles of one store.  All of it lives as long as the
 * transaction.
 */
typedef struct Deleted
{
	Oid			vectors;		/* the store */
	Oid			function;		/* of the triggers that feed it */
	TupleDesc	desc;			/* of their keys, (s, i) */
	Tuplestorestate *keys;
} Deleted;

/* Those of the current transaction: in TopTransactionContext. */
static List *all_deleted = NIL;

/*
 * ------------------------------------------------------------------------
 * Keeping
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
 * Find where the keys of a store are kept, or begin to keep them.
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

	/* The end of a subtransaction must not take a temporary file away. */
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
 * Erase a profile at the end of the transaction, unless it is wanted then.
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
 * Likewise profiles; "profiles" is SQL for their keys, as (s, i).  All rows that
 * are committed by now are seen, since TRUNCATE deletes those as well that the
 * transaction's snapshot does not show.
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
 * Make keys a table, HRFLOW_DELETED, of what is executed until SPI_finish().
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
 * Do that with the keys of the profiles that the transaction has deleted from a
 * store's tables so far.  Returns false where there are none.
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
 * Tell in which store there is an error: COMMIT names none.
 */
static void
add_context(void *arg)
{
	errcontext("erasing deleted profiles from store %s", (char *) arg);
}

/*
 * Erase what was deleted from one store.  Nothing is left to erase where the
 * store has been dropped since.  Where the extension has, nobody could be asked
 * whether a profile is still wanted.
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
				 errhint("Commit before you drop the extension.")));
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
 * Erase what was deleted, store by store in the order of their OIDs.  A trigger
 * of the owner's on a store may delete from a table that feeds one: that is
 * erased in its turn.
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
		all_deleted = NIL;		/* its memory goes with the transaction's */
}
