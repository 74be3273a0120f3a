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

#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/params.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "store/match.h"
#include "tcop/dest.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/*
 * In a statement, this parameter stands for the similarity of the column
 * "vector" to the first parameter.
 */
#define SIMILARITY_PARAMETER 7

/*
 * Maximum total size of the parameters of a statement that parallel workers
 * may execute, in bytes.  The parameters are constants in the plan, which is
 * passed to the workers as text in dynamic shared memory, with up to five
 * characters for each byte of an array.  The text must fit into 1 GB; a much
 * lower maximum keeps every worker from parsing a long text.
 */
#define MAX_SIZE_FOR_WORKERS (1024 * 1024)

/*
 * A DestReceiver that passes rows to a callback.
 */
typedef struct Stream
{
	DestReceiver receiver;
	HrflowTake	take;
	void	   *arg;
	MemoryContext context;		/* reset after each row */
	int			nestlevel;		/* nesting level of the settings for planning */
} Stream;

/*
 * Executor callback: called once, when the query has been planned, and before
 * any row is read.  Restores the settings that are only meant for planning.
 * Otherwise they would also apply to the queries of functions that policies
 * call, and PL/pgSQL would keep the plans.
 */
static void
start_stream(DestReceiver *receiver, int operation, TupleDesc desc)
{
	AtEOXact_GUC(false, ((Stream *) receiver)->nestlevel);
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
 * ------------------------------------------------------------------------
 * Parameters
 * ------------------------------------------------------------------------
 */

/*
 * Meaning of the parameters of a statement.
 */
typedef struct Meaning
{
	const HrflowParameters *parameters;
	Oid			similarity;		/* OID of hrflow_vector_similarity(), or
								 * InvalidOid */
} Meaning;

static Node *
make_param(const HrflowParameters *parameters, int number)
{
	Param	   *param = makeNode(Param);

	param->paramkind = PARAM_EXTERN;
	param->paramid = number;
	param->paramtype = parameters->types[number - 1];
	param->paramtypmod = -1;
	param->paramcollid = get_typcollation(param->paramtype);
	param->location = -1;
	return (Node *) param;
}

/*
 * Parser callback: return the expression for which a parameter stands.
 */
static Node *
resolve_parameter(ParseState *pstate, ParamRef *reference)
{
	const Meaning *meaning = pstate->p_ref_hook_state;
	Node	   *vector;

	if (OidIsValid(meaning->similarity) &&
		reference->number == SIMILARITY_PARAMETER)
	{
		vector = colNameToVar(pstate, "vector", true, reference->location);
		if (vector == NULL)
			elog(ERROR, "statement has no column \"vector\"");
		return (Node *) makeFuncExpr(meaning->similarity, FLOAT8OID,
									 list_make2(vector,
												make_param(meaning->parameters,
														   1)),
									 InvalidOid, InvalidOid,
									 COERCE_EXPLICIT_CALL);
	}
	if (reference->number < 1 ||
		reference->number > meaning->parameters->n)
		elog(ERROR, "statement has no parameter $%d", reference->number);
	return make_param(meaning->parameters, reference->number);
}

static void
set_up_parser(ParseState *pstate, void *arg)
{
	pstate->p_paramref_hook = resolve_parameter;
	pstate->p_ref_hook_state = arg;
}

/*
 * ------------------------------------------------------------------------
 * Execution
 * ------------------------------------------------------------------------
 */

/*
 * Are these parameters small enough for parallel workers?  Values of variable
 * length must be detoasted.
 */
bool
hrflow_stream_allows_workers(const HrflowParameters *parameters)
{
	Size		size = 0;

	for (int i = 0; i < parameters->n; i++)
	{
		if (parameters->nulls[i] != 'n' &&
			get_typlen(parameters->types[i]) == -1)
			size += VARSIZE_ANY(DatumGetPointer(parameters->values[i]));
	}
	return size <= MAX_SIZE_FOR_WORKERS;
}

static void
set_for_planning(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Execute a query, and call take() for each row until take() returns false.
 * take() is called in a memory context that is reset after each row.  All
 * attributes of the slot have been extracted, but belong to the executor.  The
 * query uses the snapshot of the calling statement.  No parallel workers are
 * used if the parameters are too large.  If "by_index" is true, the planner
 * uses an index for the order of the rows, if possible, even if it estimates
 * that another plan is cheaper.
 *
 * The query is not compiled (JIT), whatever its cost, because little of its
 * time is spent in expressions.  The cost of an index scan also includes all
 * rows, although take() usually ends the scan after a few of them.
 *
 * "similarity" is the OID of hrflow_vector_similarity(), or InvalidOid if the
 * query does not call the function.  The query contains $7 instead of the
 * call.  The function accepts any type of vector, so if the query called it by
 * name, PostgreSQL would prefer an overloaded function for the actual type of
 * vector, which another role may have created in the same schema, and would
 * execute it with the privileges of the store's owner.
 */
void
hrflow_stream(const char *sql, const HrflowParameters *parameters,
			  Oid similarity, bool by_index, HrflowTake take, void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ParamListInfo params = makeParamList(parameters->n);
	Meaning		meaning = {parameters, similarity};
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
	params->parserSetup = set_up_parser;
	params->parserSetupArg = &meaning;
	options.params = params;
	options.read_only = true;
	options.must_return_tuples = true;
	options.dest = &stream.receiver;
	stream.nestlevel = NewGUCNestLevel();
	set_for_planning("jit", "off");
	if (!hrflow_stream_allows_workers(parameters))
		set_for_planning("max_parallel_workers_per_gather", "0");
	if (by_index)
	{
		set_for_planning("enable_seqscan", "off");
		set_for_planning("enable_bitmapscan", "off");
		set_for_planning("enable_sort", "off");
		set_for_planning("enable_indexscan", "on");
	}
	code = SPI_execute_extended(sql, &options);
	MemoryContextSwitchTo(context);
	if (code < 0)
		elog(ERROR, "SPI_execute_extended failed: %s",
			 SPI_result_code_string(code));
	MemoryContextDelete(stream.context);
	pfree(params);
}

/*
 * Read the key of the vector in a row.  The first columns of the row must be
 * source_id, the identifier, section and item.  The strings are allocated in
 * the current memory context.  Throws 22004 if any of these columns is null,
 * which is possible in a user-supplied table.
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
