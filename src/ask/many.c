/*-------------------------------------------------------------------------
 *
 * many.c
 *		Implements the SQL functions for many profiles, texts, documents or
 *		links at once.
 *
 * Each except hrflow_estimate() runs a batch, which connects a source that
 * reads arrays with a sink that stores rows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/arrays.h"
#include "compat.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(hrflow_profile_embeddings);
PG_FUNCTION_INFO_V1(hrflow_profile_links);
PG_FUNCTION_INFO_V1(hrflow_profile_vectors);
PG_FUNCTION_INFO_V1(hrflow_estimate);
PG_FUNCTION_INFO_V1(hrflow_fetch_vectors);
PG_FUNCTION_INFO_V1(hrflow_text_embeddings);
PG_FUNCTION_INFO_V1(hrflow_document_embeddings);

/*
 * ------------------------------------------------------------------------
 * Rows
 * ------------------------------------------------------------------------
 */

/*
 * Columns that can follow the ordinality and the identifiers in a row.
 */
typedef enum RowColumn
{
	COLUMN_SECTION,
	COLUMN_ITEM,
	COLUMN_LINK,
	COLUMN_VECTOR,
	COLUMN_STATUS,
	COLUMN_HTTP_STATUS,
	COLUMN_DATA,
	COLUMN_ERROR
} RowColumn;

static const RowColumn embedding_columns[] = {
	COLUMN_STATUS, COLUMN_HTTP_STATUS, COLUMN_DATA, COLUMN_ERROR
};

static const RowColumn profile_link_columns[] = {
	COLUMN_SECTION, COLUMN_ITEM, COLUMN_LINK, COLUMN_STATUS,
	COLUMN_HTTP_STATUS, COLUMN_ERROR
};

static const RowColumn profile_vector_columns[] = {
	COLUMN_SECTION, COLUMN_ITEM, COLUMN_VECTOR, COLUMN_STATUS,
	COLUMN_HTTP_STATUS, COLUMN_ERROR
};

static const RowColumn vector_columns[] = {
	COLUMN_VECTOR, COLUMN_STATUS, COLUMN_HTTP_STATUS, COLUMN_ERROR
};

/* Maximum number of columns of a row. */
#define MAX_COLUMNS 10

/*
 * A sink that stores the rows of a set-returning function.
 */
typedef struct RowSink
{
	HrflowSink	base;
	Tuplestorestate *store;
	TupleDesc	desc;
	const HrflowArray *identifiers; /* arrays that contain columns 2 to
									 * nidentifiers + 1 */
	int			nidentifiers;
	const RowColumn *columns;	/* the remaining columns of "desc" */
	Datum		values[MAX_COLUMNS];	/* values of the row stored last,
										 * which a repeated row reuses */
	bool		nulls[MAX_COLUMNS];
} RowSink;

/*
 * Compute the value of a column.  Returns false if it is NULL.
 */
static bool
make_column(RowColumn column, const HrflowOutcome *outcome, Datum *value)
{
	const HrflowResult *result = outcome->result;

	switch (column)
	{
		case COLUMN_SECTION:
			if (outcome->section == NULL)
				break;
			*value = CStringGetTextDatum(outcome->section);
			return true;
		case COLUMN_ITEM:
			*value = Int32GetDatum(outcome->item);
			return outcome->section != NULL;
		case COLUMN_LINK:
			if (outcome->link == NULL)
				break;
			*value = CStringGetTextDatum(outcome->link);
			return true;
		case COLUMN_VECTOR:
			*value = PointerGetDatum(result->vector);
			return result->vector != NULL;
		case COLUMN_STATUS:
			*value = CStringGetTextDatum(hrflow_status_name(result->status));
			return true;
		case COLUMN_HTTP_STATUS:
			*value = Int32GetDatum(result->http_status);
			return result->http_status != 0;
		case COLUMN_DATA:
			*value = PointerGetDatum(result->data);
			return result->data != NULL;
		case COLUMN_ERROR:
			if (result->status == HRFLOW_OK)
				break;
			*value = CStringGetTextDatum(hrflow_error_describe(result));
			return true;
	}
	return false;
}

static void
put_row(HrflowSink *sink, int element, const HrflowOutcome *outcome,
		bool repeated)
{
	RowSink    *self = (RowSink *) sink;
	int			n = 0;

	self->values[n] = Int64GetDatum((int64) element + 1);
	self->nulls[n++] = false;
	for (int i = 0; i < self->nidentifiers; i++, n++)
	{
		const HrflowArray *identifiers = &self->identifiers[i];

		self->nulls[n] = hrflow_array_is_null(identifiers, element);
		self->values[n] = self->nulls[n] ? (Datum) 0 :
			identifiers->values[element];
	}

	/* Equal elements have the same values in the columns that follow. */
	if (!repeated)
	{
		for (const RowColumn *column = self->columns; n < self->desc->natts;
			 column++, n++)
			self->nulls[n] = !make_column(*column, outcome, &self->values[n]);
	}
	tuplestore_putvalues(self->store, self->desc, self->values, self->nulls);
}

static const HrflowSinkMethods row_sink_methods = {
	.reports = true,
	.put = put_row
};

static const HrflowSinkMethods link_row_sink_methods = {
	.link_use = HRFLOW_LINKS_LISTED,
	.reports = true,
	.put = put_row
};

static const HrflowSinkMethods vector_row_sink_methods = {
	.link_use = HRFLOW_LINKS_FOLLOWED,
	.reports = true,
	.put = put_row
};

/*
 * ------------------------------------------------------------------------
 * The SQL functions
 * ------------------------------------------------------------------------
 */

/*
 * Raise an error in a query that Citus has sent to a shard of a table, unless
 * hrflow_embed.allow_in_shard_queries is set.  A query on a shard that Citus
 * executes in the client's own session is not recognized.
 *
 * If the arguments of a function in FROM are known, Citus sends a join with
 * the function to every shard, and the query on each shard would send all
 * requests.  Citus identifies the connections for these queries by
 * application_name; functions such as run_command_on_workers() use a different
 * name.  A CTE with only the function in its FROM is computed on the
 * coordinator if the arguments of the function are known, for example as the
 * result of an aggregate.  However, each shard computes ARRAY(SELECT ...) for
 * its own rows (tested with Citus 13.2.2, by test/scale).
 */
static void
check_not_in_shard_query(const HrflowSettings *settings)
{
	const char *mark = "citus_internal";

	if (!settings->allow_in_shard_queries && application_name != NULL &&
		strncmp(application_name, mark, strlen(mark)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot run a batch in a query on a shard"),
				 errdetail("The query on each shard would send the requests of a batch of its own."),
				 errhint("Move the function call into WITH v AS MATERIALIZED (...), and replace ARRAY(SELECT ...) with (SELECT array_agg(...) ...), or set \"hrflow_embed.allow_in_shard_queries\" on the workers.")));
}

/*
 * Run a batch over a source, and return its rows: the ordinality, the first
 * "nidentifiers" arrays of the source, and "columns".
 */
static Datum
return_rows(FunctionCallInfo fcinfo, HrflowCaller caller, HrflowArraySource *source,
			int nidentifiers, const HrflowSinkMethods *methods,
			const RowColumn *columns)
{
	RowSink		sink = {
		.base.methods = methods,
		.identifiers = source->arrays,
		.nidentifiers = nidentifiers,
		.columns = columns
	};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	HrflowBatchSummary summary;

	InitMaterializedSRF(fcinfo, 0);
	sink.store = rsinfo->setResult;
	sink.desc = rsinfo->setDesc;
	if (source->base.nelements == 0)
		return (Datum) 0;

	source->base.settings =
		hrflow_settings_get(!source->base.methods->is_links);
	check_not_in_shard_query(source->base.settings);
	source->post_url = hrflow_request_url(source->base.settings->base_url,
										  source->base.methods->endpoint);
	source->base.activity = hrflow_activity_begin(caller, NULL);
	source->base.activity->state.ntotal = source->base.nelements;
	PG_TRY();
	{
		hrflow_batch_run(&source->base, &sink.base,
						 source->base.settings->batch_timeout, &summary);
	}
	PG_FINALLY();
	{
		hrflow_activity_end(source->base.activity);
	}
	PG_END_TRY();
	return (Datum) 0;
}

/*
 * hrflow_profile_embeddings(source_id text, profile_ids text[], fields jsonb,
 *							 profile_references text[], profile_emails text[])
 *		RETURNS TABLE (ordinality bigint, profile_id text,
 *					   profile_reference text, profile_email text,
 *					   status text, http_status int, data jsonb, error text)
 */
Datum
hrflow_profile_embeddings(PG_FUNCTION_ARGS)
{
	HrflowArraySource source = {0};

	hrflow_arrays_take_profiles(&source, fcinfo);
	return return_rows(fcinfo, HRFLOW_BY_PROFILE_EMBEDDINGS, &source, 3,
					   &row_sink_methods, embedding_columns);
}

/*
 * hrflow_profile_links(source_id text, profile_ids text[], fields jsonb,
 *						profile_references text[], profile_emails text[])
 *		RETURNS TABLE (ordinality bigint, profile_id text,
 *					   profile_reference text, profile_email text,
 *					   section text, item int, link text, status text,
 *					   http_status int, error text)
 */
Datum
hrflow_profile_links(PG_FUNCTION_ARGS)
{
	HrflowArraySource source = {0};

	hrflow_arrays_take_profiles(&source, fcinfo);
	return return_rows(fcinfo, HRFLOW_BY_PROFILE_LINKS, &source, 3,
					   &link_row_sink_methods, profile_link_columns);
}

/*
 * hrflow_profile_vectors(source_id text, profile_ids text[], fields jsonb,
 * 						  profile_references text[], profile_emails text[])
 * 		RETURNS TABLE (ordinality bigint, profile_id text,
 * 					   profile_reference text, profile_email text,
 * 					   section text, item int, vector real[], status text,
 * 					   http_status int, error text)
 */
Datum
hrflow_profile_vectors(PG_FUNCTION_ARGS)
{
	HrflowArraySource source = {0};

	hrflow_arrays_take_profiles(&source, fcinfo);
	return return_rows(fcinfo, HRFLOW_BY_PROFILE_VECTORS, &source, 3,
					   &vector_row_sink_methods, profile_vector_columns);
}

/*
 * Return the number of requests to the API that a complete batch would send
 * without retries, and set *ndistinct to the number of distinct elements.
 */
static int64
count_requests(HrflowSource *source, int64 *ndistinct)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "hrflow_embed estimate",
												  ALLOCSET_DEFAULT_SIZES);
	HrflowEqualElements equal = {NULL};
	int64		n = 0;

	*ndistinct = 0;
	hrflow_equal_find(&equal, source);
	for (int i = 0; i < source->nelements; i++)
	{
		HrflowElementRequest request = {0};
		HrflowResult problem = {0};
		MemoryContext old;

		CHECK_FOR_INTERRUPTS();
		if (hrflow_equal_is_repeated(&equal, i))
			continue;
		++*ndistinct;
		old = MemoryContextSwitchTo(context);
		n += source->methods->make_request(source, i, &request, &problem) ==
			HRFLOW_ELEMENT_ASKED;
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	return n;
}

/*
 * hrflow_estimate(source_id text, profile_ids text[], fields jsonb,
 * 				 profile_references text[], profile_emails text[])
 * 		RETURNS TABLE (elements bigint, requests bigint, links bigint,
 * 					   seconds float8)
 */
Datum
hrflow_estimate(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	HrflowArraySource source = {0};
	int64		nelements;
	int64		nrequests;
	int64		nlinks = 0;
	double		seconds;
	Datum		values[4];
	bool		nulls[4] = {false};

	hrflow_arrays_take_profiles(&source, fcinfo);
	InitMaterializedSRF(fcinfo, 0);
	source.base.settings = hrflow_settings_get(true);
	nrequests = count_requests(&source.base, &nelements);
	if (source.fields != NULL)
		nlinks = nrequests * hrflow_estimate_items(source.fields);
	seconds = hrflow_speed_estimate(source.base.settings, nrequests, nlinks);

	values[0] = Int64GetDatum(nelements);
	values[1] = Int64GetDatum(nrequests);
	values[2] = Int64GetDatum(nlinks);
	nulls[2] = source.fields == NULL;
	values[3] = Float8GetDatum(seconds);
	nulls[3] = seconds < 0;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	return (Datum) 0;
}

/*
 * hrflow_fetch_vectors(links text[])
 *		RETURNS TABLE (ordinality bigint, link text, vector real[],
 *					   status text, http_status int, error text)
 */
Datum
hrflow_fetch_vectors(PG_FUNCTION_ARGS)
{
	HrflowArraySource source = {0};

	hrflow_arrays_take_links(&source, fcinfo);
	return return_rows(fcinfo, HRFLOW_BY_FETCH_VECTORS, &source, 1,
					   &row_sink_methods, vector_columns);
}

/*
 * hrflow_text_embeddings(inputs text[])
 *		RETURNS TABLE (ordinality bigint, vector real[], status text,
 *					   http_status int, error text)
 */
Datum
hrflow_text_embeddings(PG_FUNCTION_ARGS)
{
	HrflowArraySource source = {0};

	hrflow_arrays_take_texts(&source, fcinfo);
	return return_rows(fcinfo, HRFLOW_BY_TEXT_EMBEDDINGS, &source, 0,
					   &row_sink_methods, vector_columns);
}

/*
 * hrflow_document_embeddings(item_type text, items jsonb[])
 *		RETURNS TABLE (ordinality bigint, vector real[], status text,
 *					   http_status int, error text)
 */
Datum
hrflow_document_embeddings(PG_FUNCTION_ARGS)
{
	HrflowArraySource source = {0};

	hrflow_arrays_take_documents(&source, fcinfo);
	return return_rows(fcinfo, HRFLOW_BY_DOCUMENT_EMBEDDINGS, &source, 0,
					   &row_sink_methods, vector_columns);
}
