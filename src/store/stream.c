/*-------------------------------------------------------------------------
 *
 * stream.c
 *		Executes queries, and passes each row to a callback as soon as the
 *		executor returns it.
 *
 * A search may read every vector of a store and keep only ten.  A cursor would
 * copy each row, and would not allow parallel workers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "nodes/params.h"
#include "store/match.h"
#include "tcop/dest.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

/*
 * A DestReceiver that passes rows to a callback.
 */
typedef struct Stream
{
	DestReceiver receiver;
	HrflowTake	take;
	void	   *arg;
	MemoryContext context;		/* reset after each row */
} Stream;

static void
start_stream(DestReceiver *receiver, int operation, TupleDesc desc)
{
}

static void
end_stream(DestReceiver *receiver)
{
}

static bool
take_row(TupleTableSlot *slot, DestReceiver *receiver)
{
	Stream	   *stream = (Stream *) receiver;
	MemoryContext old = MemoryContextSwitchTo(stream->context);
	bool		more;

	slot_getallattrs(slot);
	more = stream->take(stream->arg, slot);
	MemoryContextSwitchTo(old);
	MemoryContextReset(stream->context);
	return more;
}

/*
 * Execute a query, and call take() for each row until take() returns false.
 * It is called in a memory context that is reset after each row.  All
 * attributes of the slot have been extracted, but belong to the executor.  The
 * query uses the snapshot of the calling statement.
 */
void
hrflow_stream(const char *sql, const HrflowParameters *parameters,
			  HrflowTake take, void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ParamListInfo params = makeParamList(parameters->n);
	SPIExecuteOptions options = {0};
	Stream		stream = {
		.receiver = {
			.receiveSlot = take_row,
			.rStartup = start_stream,
			.rShutdown = end_stream,
			.rDestroy = end_stream,
			.mydest = DestTuplestore
		}
	};
	int			code;

	stream.take = take;
	stream.arg = arg;
	stream.context = AllocSetContextCreate(context, "hrflow_embed row",
										   ALLOCSET_DEFAULT_SIZES);

	/* Pass constants, so that the planner can estimate the number of rows. */
	for (int i = 0; i < parameters->n; i++)
	{
		params->params[i].value = parameters->values[i];
		params->params[i].isnull = parameters->nulls[i] == 'n';
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = parameters->types[i];
	}
	options.params = params;
	options.read_only = true;
	options.must_return_tuples = true;
	options.dest = &stream.receiver;
	code = SPI_execute_extended(sql, &options);
	MemoryContextSwitchTo(context);
	if (code < 0)
		elog(ERROR, "SPI_execute_extended failed: %s",
			 SPI_result_code_string(code));
	MemoryContextDelete(stream.context);
	pfree(params);
}

/*
 * Read the key of the vector in a row, the first columns of which must be
 * source_id, the identifier, section and item.  The strings are allocated in
 * the current memory context.  Throws 22004 if any of these is null, which is
 * possible in a user-supplied table.
 */
void
hrflow_stream_read(const TupleTableSlot *slot, HrflowMatch *match)
{
	for (int i = 0; i < 4; i++)
	{
		if (slot->tts_isnull[i])
			hrflow_store_refuse_null(NameStr(TupleDescAttr(slot->tts_tupleDescriptor,
														   i)->attname));
	}
	match->source_id = TextDatumGetCString(slot->tts_values[0]);
	match->identifier = TextDatumGetCString(slot->tts_values[1]);
	match->section = TextDatumGetCString(slot->tts_values[2]);
	match->item = DatumGetInt32(slot->tts_values[3]);
	match->parts = NULL;
}
