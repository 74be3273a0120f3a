/*-------------------------------------------------------------------------
 *
 * updated.c
 *		Collects the rows of a large UPDATE, and tracks their profiles at the
 *		end of the statement.
 *
 * The trigger on UPDATE is a row-level trigger, which does not know whether
 * more rows follow.  Executing statements for each row takes three times as
 * long as executing them for all rows at once.  Therefore, if the trigger
 * fires within our ExecutorFinish hook, it processes only the first few rows
 * of an UPDATE immediately.  It collects the other rows, and the hook
 * processes them at the end of the statement.
 *
 * The trigger fires outside the hook if the trigger itself has loaded the
 * library, in the first statement of a session that uses the extension; for
 * rows that logical replication applies; and at the end of a transaction.  In
 * these cases, every row is processed immediately.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "store/store.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/tuplestore.h"

/*
 * Minimum number of rows per statement and store that are processed
 * immediately, because collecting so few rows would save no time.
 */
#define FEW_ROWS 100

/* Name of the table with the collected rows. */
#define UPDATED "hrflow_updated"

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

/*
 * Statement that locks the profiles that rows name or have named, in the order
 * of their keys.  It returns only the number of profiles, so that SPI does not
 * store them.
 */
static const char lock_updated_sql[] =
"SELECT count(*) FROM (SELECT FROM %P AS p WHERE (p.source_id, p.%I) IN"
" (SELECT u.s, u.i FROM " UPDATED " AS u"
" UNION ALL SELECT u.old_s, u.old_i FROM " UPDATED " AS u)"
" ORDER BY p.source_id, p.%I FOR UPDATE OF p) AS l";

static const char mark_updated_sql[] =
"UPDATE %P AS p SET" HRFLOW_MARK_CHANGED
" WHERE (p.source_id, p.%I) IN"
" (SELECT u.s, u.i FROM " UPDATED " AS u WHERE u.kept)";

/*
 * Subquery for the keys of the profiles that rows name now, except rows that
 * have kept their keys.
 */
static const char new_profiles_sql[] =
"(SELECT u.s, u.i FROM " UPDATED " AS u WHERE u.i IS NOT NULL AND NOT u.kept)";

/*
 * Query for the keys of the profiles that rows named before, except rows that
 * have kept their keys.
 */
static const char old_profiles_sql[] =
"SELECT u.old_s AS s, u.old_i AS i FROM " UPDATED " AS u"
" WHERE u.old_i IS NOT NULL";

/*
 * ------------------------------------------------------------------------
 * Collecting rows
 * ------------------------------------------------------------------------
 */

/*
 * Collected rows of the tables that feed one store.
 */
struct HrflowUpdated
{
	Oid			vectors;		/* the store's table of vectors */
	Oid			function;		/* function of the triggers */
	const HrflowKind *kind;
	List	   *triggers;		/* OIDs of triggers that have opened the
								 * store, and have thus checked that they may
								 * feed it */
	int			nfirst;			/* number of rows that were processed
								 * immediately */
	bool		has_kept;		/* has any row kept its key? */
	bool		has_changed;	/* has any row changed its key? */
	TupleDesc	desc;			/* row type of "rows"; NULL until the first
								 * row is collected */
	Tuplestorestate *rows;		/* NULL until the first row is collected */
};

/*
 * A statement whose triggers are firing.
 */
typedef struct Statement
{
	struct Statement *outer;	/* statement whose trigger executes this
								 * statement, or NULL */
	MemoryContext context;		/* memory context of the statement */
	SubTransactionId subtransaction;
	List	   *updated;		/* list of HrflowUpdated, in "context" */
} Statement;

static Statement *current_statement = NULL;
static ExecutorFinish_hook_type previous_executor_finish = NULL;

/*
 * Return the statement whose triggers are firing.  Returns NULL if there is
 * none, or if triggers fire in another subtransaction, because their rows may
 * not belong to the statement: for example, a user's trigger may have started
 * a subtransaction in which deferred triggers fire.
 */
static Statement *
get_statement(void)
{
	if (current_statement == NULL ||
		current_statement->subtransaction != GetCurrentSubTransactionId())
		return NULL;
	return current_statement;
}

/*
 * Return the HrflowUpdated in which to collect the rows of a trigger, or NULL
 * if the rows must be processed immediately.
 */
HrflowUpdated *
hrflow_updated_find(Oid trigger)
{
	Statement  *statement = get_statement();
	ListCell   *cell;

	foreach(cell, statement == NULL ? NIL : statement->updated)
	{
		HrflowUpdated *updated = lfirst(cell);

		if (updated->nfirst >= FEW_ROWS &&
			list_member_oid(updated->triggers, trigger))
			return updated;
	}
	return NULL;
}

const HrflowKind *
hrflow_updated_kind(const HrflowUpdated *updated)
{
	return updated->kind;
}

/*
 * Note that a row has been processed immediately by a trigger that feeds a
 * store, unless rows cannot be collected at present.
 */
void
hrflow_updated_note(const HrflowStore *store, Oid function, Oid trigger)
{
	Statement  *statement = get_statement();
	HrflowUpdated *updated = NULL;
	MemoryContext old;
	ListCell   *cell;

	if (statement == NULL)
		return;
	foreach(cell, statement->updated)
	{
		HrflowUpdated *other = lfirst(cell);

		if (other->vectors == RelationGetRelid(store->vectors))
			updated = other;
	}
	old = MemoryContextSwitchTo(statement->context);
	if (updated == NULL)
	{
		updated = palloc0(sizeof(HrflowUpdated));
		updated->vectors = RelationGetRelid(store->vectors);
		updated->function = function;
		updated->kind = store->kind;
		statement->updated = lappend(statement->updated, updated);
	}
	updated->nfirst++;
	updated->triggers = list_append_unique_oid(updated->triggers, trigger);
	MemoryContextSwitchTo(old);
}

/*
 * Prepare for collecting rows.
 */
static void
start_collecting(HrflowUpdated *updated)
{
	MemoryContext old = MemoryContextSwitchTo(current_statement->context);

	updated->desc = CreateTemplateTupleDesc(5);
	TupleDescInitEntry(updated->desc, 1, "s", TEXTOID, -1, 0);
	TupleDescInitEntry(updated->desc, 2, "i", TEXTOID, -1, 0);
	TupleDescInitEntry(updated->desc, 3, "old_s", TEXTOID, -1, 0);
	TupleDescInitEntry(updated->desc, 4, "old_i", TEXTOID, -1, 0);
	TupleDescInitEntry(updated->desc, 5, "kept", BOOLOID, -1, 0);
	hrflow_compat_finalize_desc(updated->desc);
	updated->rows = tuplestore_begin_heap(false, false, work_mem);
	MemoryContextSwitchTo(old);
}

/*
 * Collect a row.  "key" is its new key and "old" is its old key; each is NULL
 * if that key is empty.  Both are the same pointer if the row has kept its
 * key.
 */
void
hrflow_updated_add(HrflowUpdated *updated, const HrflowParameters *key,
				   const HrflowParameters *old)
{
	Datum		values[5] = {0};
	bool		nulls[5] = {true, true, true, true, false};
	bool		kept = key == old;

	if (key == NULL && old == NULL)
		return;
	if (updated->rows == NULL)
		start_collecting(updated);
	for (int i = 0; key != NULL && i < 2; i++)
	{
		values[i] = key->values[i];
		nulls[i] = false;
	}
	for (int i = 0; old != NULL && !kept && i < 2; i++)
	{
		values[2 + i] = old->values[i];
		nulls[2 + i] = false;
	}
	values[4] = BoolGetDatum(kept);
	tuplestore_putvalues(updated->rows, updated->desc, values, nulls);
	if (kept)
		updated->has_kept = true;
	else
		updated->has_changed = true;
}

/*
 * ------------------------------------------------------------------------
 * The end of the statement
 * ------------------------------------------------------------------------
 */

/*
 * Process the collected rows of a store, as row_updated() does for a single
 * row.  The store still exists, because its triggers cannot be dropped while
 * their table is used by the statement.
 */
static void
process_updated(HrflowUpdated *updated)
{
	HrflowStore store;

	SPI_connect();
	hrflow_store_open(&store, updated->vectors, InvalidOid, HRFLOW_STORE_FEED);
	hrflow_deferred_register_rows(UPDATED, updated->desc, updated->rows);
	hrflow_store_execute_latest(hrflow_store_sql(&store, lock_updated_sql),
								NULL);
	if (updated->has_kept)
		hrflow_store_execute_latest(hrflow_store_sql(&store, mark_updated_sql),
									NULL);
	if (updated->has_changed)
	{
		hrflow_store_execute(hrflow_feeder_want_sql(&store, new_profiles_sql),
							 NULL);
		hrflow_deferred_add_all(&store, updated->function, old_profiles_sql);
	}
	hrflow_store_close(&store);
	SPI_finish();
	tuplestore_end(updated->rows);
	updated->rows = NULL;
}

static void
finish_and_track(QueryDesc *query)
{
	Statement	statement = {
		.outer = current_statement,
		.context = query->estate->es_query_cxt,
		.subtransaction = GetCurrentSubTransactionId()
	};

	current_statement = &statement;
	PG_TRY();
	{
		if (previous_executor_finish)
			previous_executor_finish(query);
		else
			standard_ExecutorFinish(query);
		for (int i = 0; i < list_length(statement.updated); i++)
		{
			HrflowUpdated *updated = list_nth(statement.updated, i);

			if (updated->rows != NULL)
				process_updated(updated);
		}
	}
	PG_FINALLY();
	{
		current_statement = statement.outer;
	}
	PG_END_TRY();
}

/*
 * Install the hook.  Called when the library is loaded.
 */
void
hrflow_updated_define(void)
{
	previous_executor_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = finish_and_track;
}
