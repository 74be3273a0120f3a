/*-------------------------------------------------------------------------
 *
 * work.c
 *		The transactions of a refresh.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "store/refresh.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

/*
 * What has no other way than one that is off seems to cost 10^10 before 18: it
 * is not worth compiling for that.
 */
static const char *const planner_settings[] = {
	"enable_seqscan", "enable_bitmapscan", "enable_hashjoin",
	"enable_mergejoin", "jit"
};

/*
 * Begin with a store: a snapshot is there until hrflow_work_end().
 */
void
hrflow_work_begin(HrflowRun *run, HrflowStore *store)
{
	/* Claiming skips what is locked: other levels would fail instead. */
	XactIsoLevel = XACT_READ_COMMITTED;
	PushActiveSnapshot(GetTransactionSnapshot());
	hrflow_store_open(store, run->vectors, run->profiles, HRFLOW_STORE_OWN);

	/*
	 * Every statement is about a batch's rows, and finds them by their keys,
	 * however small the tables were when they were last analyzed.
	 */
	for (int i = 0; i < lengthof(planner_settings); i++)
		(void) set_config_option(planner_settings[i], "off", PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
}

void
hrflow_work_end(HrflowStore *store)
{
	hrflow_store_close(store);
	PopActiveSnapshot();
	SPI_commit();
}

/*
 * Add the keys of profiles: two arrays.
 */
void
hrflow_work_add_keys(HrflowParameters *parameters, List *profiles)
{
	static const Oid types[] = {TEXTOID, TEXTOID};
	HrflowRows *rows = hrflow_store_make_rows(types, lengthof(types),
											  list_length(profiles));
	ListCell   *cell;

	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);
		Datum		values[lengthof(types)];

		values[0] = CStringGetTextDatum(profile->source_id);
		values[1] = CStringGetTextDatum(profile->identifier);
		hrflow_store_add_row(rows, values, NULL);
	}
	hrflow_store_add_rows(parameters, rows);
}
