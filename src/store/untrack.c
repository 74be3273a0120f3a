/*-------------------------------------------------------------------------
 *
 * untrack.c
 *		Stops a table from feeding a store, and erases profiles in batches.
 *
 * hrflow_untrack() and hrflow_untrack_table() run in a single transaction, and
 * hold their locks until the transaction ends: both lock every profile that
 * they erase or put aside, and hrflow_untrack_table() also locks the table
 * against readers.  The procedures in this file do the same work in batches,
 * each in a separate transaction, so that other sessions usually do not wait
 * longer than a batch takes.  Completed batches are committed.  After an error
 * or a query cancel, a repeated call continues with the rest.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "miscadmin.h"
#include "store/refresh.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(hrflow_untrack_table);
PG_FUNCTION_INFO_V1(hrflow_untrack_batches);
PG_FUNCTION_INFO_V1(hrflow_untrack_table_batches);

/* Maximum number of profiles in a batch. */
#define MAX_BATCH_SIZE 100000

static const char disable_trigger_sql[] = "ALTER TABLE %R DISABLE TRIGGER %q";

/*
 * State of a procedure call, in a memory context that outlives the
 * transactions.
 */
typedef struct Untracking
{
	MemoryContext context;
	MemoryContext batch_context;	/* reset after each batch */
	Oid			vectors;		/* the store's table of vectors */
	HrflowStoreAccess access;
	int			batch_size;
	int64		nuntracked;		/* number of profiles untracked so far */

	/* Used only by hrflow_untrack_batches(). */
	Datum		source_id;
	Datum	   *identifiers;
	int			nidentifiers;
	int			nasked;			/* number of identifiers processed so far */

	/* Used only by hrflow_untrack_table_batches(). */
	Oid			table;
	Oid			function;		/* function of the triggers */
	HrflowAsideBatch aside;
} Untracking;

/*
 * A callback that does the work of one transaction.  Returns whether there is
 * more work to do.
 */
typedef bool (*UntrackWork) (Untracking *untracking, const HrflowStore *store);

/*
 * ------------------------------------------------------------------------
 * In one transaction
 * ------------------------------------------------------------------------
 */

/*
 * Report that a table, if it still exists, does not feed a store.  Nothing is
 * put aside in this case, so if a user has dropped the triggers, profiles that
 * no table wants may still be tracked.
 */
static void
report_no_feeder(const HrflowStore *store, Oid table)
{
	char	   *name = get_rel_name(table);

	if (name != NULL)
		ereport(NOTICE,
				(errmsg("table \"%s\" does not feed store %s", name,
						store->vectors_name),
				 errhint("If its triggers were dropped, call hrflow_track_table() for the table, and then untrack it again.")));
}

/*
 * Stop a table from feeding a store.  Returns whether the table has fed the
 * store.
 */
static bool
drop_triggers(const HrflowStore *store, Oid function, Oid table)
{
	hrflow_store_check_manual(store);
	hrflow_owner_check_all(store, table);
	return hrflow_feeder_drop_all(store, function, table);
}

/*
 * hrflow_untrack_table(store regclass, source_table regclass) RETURNS bigint
 */
Datum
hrflow_untrack_table(PG_FUNCTION_ARGS)
{
	Oid			function = hrflow_feeder_function(fcinfo->flinfo->fn_oid);
	HrflowStore store;
	uint64		n = 0;

	PreventCommandDuringRecovery("hrflow_untrack_table()");
	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(0), InvalidOid, HRFLOW_STORE_OWN);
	hrflow_remote_check(&store);
	if (drop_triggers(&store, function, PG_GETARG_OID(1)))
	{
		CommandCounterIncrement();
		n = hrflow_aside_put_unwanted(&store, function, false);
		hrflow_restore_wanted(&store, function);
		(void) hrflow_expire_batch(&store);
	}
	else
		report_no_feeder(&store, PG_GETARG_OID(1));
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_INT64(n);
}

/*
 * ------------------------------------------------------------------------
 * In batches
 * ------------------------------------------------------------------------
 */

/*
 * Begin a call: check the arguments, connect to SPI, and switch to the memory
 * context of the call.  "names" are the names of the first "n" arguments,
 * which must not be null.  The next argument is the size of a batch.
 *
 * Throws 2D000, 25006 and 22023.
 */
static Untracking *
begin_untracking(FunctionCallInfo fcinfo, const char *procedure,
				 HrflowStoreAccess access, const char *const *names, int n)
{
	MemoryContext context;
	Untracking *untracking;

	hrflow_work_check_context(fcinfo, procedure);
	for (int i = 0; i < n; i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"%s\" must not be null", names[i])));
	}
	SPI_connect_ext(SPI_OPT_NONATOMIC);
	context = AllocSetContextCreate(CurrentMemoryContext,
									"hrflow_embed untrack",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	untracking = palloc0(sizeof(Untracking));
	untracking->context = context;
	untracking->batch_context =
		AllocSetContextCreate(context, "hrflow_embed untrack batch",
							  ALLOCSET_DEFAULT_SIZES);
	untracking->vectors = PG_GETARG_OID(0);
	untracking->access = access;
	untracking->batch_size = hrflow_work_get_positive(fcinfo, n, "batch_size",
													  MAX_BATCH_SIZE);
	return untracking;
}

/*
 * Open the store, call work(), and commit the transaction.  Returns the result
 * of work().
 */
static bool
do_batch(Untracking *untracking, UntrackWork work)
{
	MemoryContext old = MemoryContextSwitchTo(untracking->batch_context);
	HrflowStore store;
	bool		has_more;

	CHECK_FOR_INTERRUPTS();

	/*
	 * At READ COMMITTED, an UPDATE waits for profiles that other sessions are
	 * updating; at higher isolation levels, it could then throw a
	 * serialization failure.
	 */
	XactIsoLevel = XACT_READ_COMMITTED;
	PushActiveSnapshot(GetTransactionSnapshot());
	hrflow_store_open(&store, untracking->vectors, InvalidOid,
					  untracking->access);
	hrflow_remote_check(&store);
	SPI_connect();
	MemoryContextSwitchTo(untracking->batch_context);
	has_more = work(untracking, &store);
	SPI_finish();
	hrflow_store_close(&store);
	PopActiveSnapshot();
	SPI_commit();
	MemoryContextSwitchTo(old);
	MemoryContextReset(untracking->batch_context);
	return has_more;
}

/*
 * Report the number of untracked profiles, because a procedure has no result.
 */
static void
report_untracked(const Untracking *untracking)
{
	ereport(INFO,
			(errmsg_plural(INT64_FORMAT " profile is no longer tracked",
						   INT64_FORMAT " profiles are no longer tracked",
						   untracking->nuntracked, untracking->nuntracked)));
}

/*
 * UntrackWork callback: erase the next batch of the given profiles.
 */
static bool
erase_batch(Untracking *untracking, const HrflowStore *store)
{
	int			n = Min(untracking->batch_size,
						untracking->nidentifiers - untracking->nasked);
	HrflowParameters parameters = {0};

	hrflow_functions_check_source(store, untracking->source_id);
	hrflow_store_add(&parameters, TEXTOID, untracking->source_id);
	hrflow_store_add(&parameters, TEXTARRAYOID,
					 PointerGetDatum(construct_array(untracking->identifiers +
													 untracking->nasked, n,
													 TEXTOID, -1, false,
													 TYPALIGN_INT)));
	untracking->nuntracked += hrflow_erase_profiles(store, &parameters);
	untracking->nasked += n;
	return untracking->nasked < untracking->nidentifiers;
}

/*
 * hrflow_untrack_batches(store regclass, source_id text, profile_ids text[],
 *							 batch_size int)
 */
Datum
hrflow_untrack_batches(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "source_id", "profile_ids"};
	MemoryContext old = CurrentMemoryContext;
	Untracking *untracking =
	begin_untracking(fcinfo, "hrflow_untrack_batches", HRFLOW_STORE_WRITE,
					 names, lengthof(names));
	ArrayType  *identifiers;
	bool	   *nulls;

	untracking->source_id =
		PointerGetDatum(PG_DETOAST_DATUM_COPY(PG_GETARG_DATUM(1)));
	identifiers = (ArrayType *)
		PG_DETOAST_DATUM_COPY(PointerGetDatum(hrflow_functions_get_identifiers(fcinfo, 2)));
	deconstruct_array(identifiers, TEXTOID, -1, false, TYPALIGN_INT,
					  &untracking->identifiers, &nulls,
					  &untracking->nidentifiers);

	/* Commit, which also releases the snapshot that CALL has taken. */
	SPI_commit();
	while (do_batch(untracking, erase_batch))
		;
	report_untracked(untracking);

	MemoryContextSwitchTo(old);
	SPI_finish();
	PG_RETURN_VOID();
}

/*
 * UntrackWork callback: put aside the next batch of unwanted profiles.
 */
static bool
put_aside_batch(Untracking *untracking, const HrflowStore *store)
{
	return !untracking->aside.is_refused &&
		hrflow_aside_put_batch(store, untracking->function,
							   &untracking->aside);
}

/*
 * UntrackWork callback: drop all but one of the table's triggers, and disable
 * the remaining trigger, which is dropped after the last batch.  If the
 * procedure is interrupted, the remaining trigger shows the next call that the
 * table was being untracked.  A table without any trigger may never have fed
 * the store, for example if its name was misspelled, so nothing is put aside
 * for it.  Returns whether there was any trigger.
 *
 * Only a trigger on DELETE or TRUNCATE can remain: as long as there is a
 * trigger on INSERT, the table wants its profiles, and the trigger on UPDATE
 * depends on columns.  If a user has dropped both, all unwanted profiles are
 * put aside in this transaction, so that an interruption restores the other
 * triggers.  If the profiles cannot be put aside, this throws 55000, because
 * without a trigger the next call would not put them aside.
 *
 * This locks the table against readers until the transaction is committed.
 */
static bool
begin_put_aside(Untracking *untracking, const HrflowStore *store)
{
	const HrflowFeeder *kept = NULL;
	List	   *feeders;
	ListCell   *cell;

	hrflow_store_check_manual(store);
	hrflow_owner_check_all(store, untracking->table);
	feeders = hrflow_feeder_find(store, untracking->function,
								 untracking->table, AccessExclusiveLock);

	foreach(cell, feeders)
	{
		const HrflowFeeder *feeder = lfirst(cell);

		if (TRIGGER_FOR_DELETE(feeder->type) ||
			(TRIGGER_FOR_TRUNCATE(feeder->type) && kept == NULL))
			kept = feeder;
	}
	foreach(cell, feeders)
	{
		const HrflowFeeder *feeder = lfirst(cell);

		if (feeder != kept)
			hrflow_feeder_drop(feeder);
		else if (feeder->enabled != TRIGGER_DISABLED)
			hrflow_store_execute(hrflow_store_sql(NULL, disable_trigger_sql,
												  feeder->table,
												  feeder->trigger_name),
								 NULL);
	}
	if (feeders == NIL)
	{
		report_no_feeder(store, untracking->table);
		return false;
	}
	if (kept == NULL)
	{
		CommandCounterIncrement();
		while (put_aside_batch(untracking, store))
			;
		if (untracking->aside.is_refused)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("could not untrack table \"%s\" from store %s",
							get_rel_name(untracking->table),
							store->vectors_name),
					 errdetail("The store cannot put aside the profiles of the table, so the table still feeds it.")));
	}
	return true;
}

/*
 * UntrackWork callback: restore profiles that are no longer unwanted.
 */
static bool
restore_wanted_again(Untracking *untracking, const HrflowStore *store)
{
	hrflow_restore_wanted(store, untracking->function);
	return false;
}

/*
 * UntrackWork callback: erase a batch of expired vectors.
 */
static bool
erase_expired_batch(Untracking *untracking, const HrflowStore *store)
{
	return hrflow_expire_batch(store);
}

/*
 * UntrackWork callback: finish after the last batch.  Drop the remaining
 * trigger, unless a batch was refused: then not all unwanted profiles have
 * been put aside.
 */
static bool
end_put_aside(Untracking *untracking, const HrflowStore *store)
{
	if (!untracking->aside.is_refused)
		(void) drop_triggers(store, untracking->function, untracking->table);
	untracking->nuntracked = hrflow_aside_put_end(store, &untracking->aside);
	return false;
}

/*
 * hrflow_untrack_table_batches(store regclass, source_table regclass,
 *								   batch_size int)
 */
Datum
hrflow_untrack_table_batches(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"store", "source_table"};
	MemoryContext old = CurrentMemoryContext;
	Untracking *untracking =
	begin_untracking(fcinfo, "hrflow_untrack_table_batches",
					 HRFLOW_STORE_OWN, names, lengthof(names));

	untracking->table = PG_GETARG_OID(1);
	untracking->function = hrflow_feeder_function(fcinfo->flinfo->fn_oid);
	untracking->aside.context = untracking->context;
	untracking->aside.size = untracking->batch_size;

	SPI_commit();
	if (do_batch(untracking, begin_put_aside))
	{
		while (do_batch(untracking, put_aside_batch))
			;
		(void) do_batch(untracking, end_put_aside);
	}
	(void) do_batch(untracking, restore_wanted_again);
	while (do_batch(untracking, erase_expired_batch))
		;
	report_untracked(untracking);

	MemoryContextSwitchTo(old);
	SPI_finish();
	PG_RETURN_VOID();
}
