/*-------------------------------------------------------------------------
 *
 * many.c
 *		The SQL functions that request many profiles or texts, or fetch many
 *		links, at once.
 *
 * Each runs a batch, which connects a source that reads arrays of text with a
 * sink that stores rows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "compat.h"
#include "funcapi.h"
#include "ask/batch.h"
#include "miscadmin.h"
#include "nodes/primnodes.h"
#include "utils/array.h"
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

/* Argument numbers of the functions for profiles. */
enum
{
	ARG_SOURCE_ID,
	ARG_PROFILE_IDS,
	ARG_FIELDS,
	ARG_PROFILE_REFERENCES,
	ARG_PROFILE_EMAILS
};

/*
 * ------------------------------------------------------------------------
 * Arrays
 * ------------------------------------------------------------------------
 */

/* Maximum number of arrays that describe an element. */
#define MAX_ARRAYS 3

/*
 * An array of text, with one element for each element of the batch.
 */
typedef struct TextArray
{
	const char *name;			/* name of one element, for messages */
	Datum	   *values;			/* NULL if no array was passed */
	bool	   *nulls;
} TextArray;

/*
 * A source whose elements are described by one or more arrays.
 */
typedef struct ArraySource
{
	HrflowSource base;
	TextArray	arrays[MAX_ARRAYS]; /* ids, references and e-mail addresses;
									 * or links; or texts */
	int			narrays;

	/* For profiles: */
	const char *source_id;		/* in UTF-8; NULL: all elements are invalid */
	const char *bad_source_id;	/* the reason for that */
	Jsonb	   *fields;			/* NULL: omitted */
	const char *fields_text;	/* "fields" as UTF-8 text */

	/* For texts: URL to send them to. */
	const char *text_url;
} ArraySource;

/*
 * Read an array argument, and append it to the arrays of the source.  All
 * arrays must have the same length.
 */
static void
add_array(ArraySource *source, FunctionCallInfo fcinfo, int argno,
		  const char *name, const char *plural)
{
	TextArray  *array = &source->arrays[source->narrays++];
	ArrayType  *argument;
	int			n;

	array->name = name;
	if (PG_ARGISNULL(argno))
		return;

	argument = PG_GETARG_ARRAYTYPE_P(argno);
	if (ARR_NDIM(argument) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a one-dimensional array", plural)));
	deconstruct_array(argument, TEXTOID, -1, false, TYPALIGN_INT,
					  &array->values, &array->nulls, &n);
	if (source->base.nelements >= 0 && n != source->base.nelements)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays of identifiers must have the same length"),
				 errdetail("%s has %d elements, but another array has %d.",
						   plural, n, source->base.nelements)));
	source->base.nelements = n;
}

/*
 * Initialize the source of a function that has only one array.  NULL is
 * treated as an empty array, because array_agg returns NULL for no rows.
 */
static void
init_single_array_source(ArraySource *source, FunctionCallInfo fcinfo,
						 const char *name, const char *plural)
{
	source->base.nelements = -1;
	add_array(source, fcinfo, 0, name, plural);
	source->base.nelements = Max(source->base.nelements, 0);
}

static inline bool
is_null(const TextArray *array, int element)
{
	return array->values == NULL || array->nulls[element];
}

static bool
is_empty_element(const ArraySource *source, int element)
{
	for (int i = 0; i < source->narrays; i++)
	{
		if (!is_null(&source->arrays[i], element))
			return false;
	}
	return true;
}

static uint32
hash_of_texts(const HrflowSource *source, int element)
{
	const ArraySource *self = (const ArraySource *) source;
	uint32		hash = 0;

	for (int i = 0; i < self->narrays; i++)
	{
		const TextArray *array = &self->arrays[i];
		text	   *value;

		if (is_null(array, element))
			continue;
		value = DatumGetTextPP(array->values[element]);
		hash = hash_combine(hash, hash_bytes((unsigned char *) VARDATA_ANY(value),
											 VARSIZE_ANY_EXHDR(value)) + i);
	}
	return hash;
}

static bool
texts_equal(const HrflowSource *source, int a, int b)
{
	const ArraySource *self = (const ArraySource *) source;

	for (int i = 0; i < self->narrays; i++)
	{
		const TextArray *array = &self->arrays[i];
		text	   *value_a;
		text	   *value_b;

		if (is_null(array, a) != is_null(array, b))
			return false;
		if (is_null(array, a))
			continue;
		value_a = DatumGetTextPP(array->values[a]);
		value_b = DatumGetTextPP(array->values[b]);
		if (VARSIZE_ANY_EXHDR(value_a) != VARSIZE_ANY_EXHDR(value_b) ||
			memcmp(VARDATA_ANY(value_a), VARDATA_ANY(value_b),
				   VARSIZE_ANY_EXHDR(value_a)) != 0)
			return false;
	}
	return true;
}

/*
 * ------------------------------------------------------------------------
 * Profiles
 * ------------------------------------------------------------------------
 */

/*
 * Was an argument specified in the call, or is it the default?  Both may be a
 * constant NULL, but a default is read from the catalogs, where expressions
 * have no location in the text of a query.  A NULL that results from constant
 * folding is taken for a default, too.
 */
static bool
is_specified(FunctionCallInfo fcinfo, int argno)
{
	Node	   *call = fcinfo->flinfo->fn_expr;
	Node	   *argument;

	if (call == NULL || !IsA(call, FuncExpr) ||
		list_length(((FuncExpr *) call)->args) <= argno)
		return false;
	argument = list_nth(((FuncExpr *) call)->args, argno);
	return !IsA(argument, Const) || ((Const *) argument)->location >= 0;
}

/*
 * Read the arguments of a function for profiles.
 */
static void
init_profile_source(ArraySource *source, FunctionCallInfo fcinfo)
{
	source->base.nelements = -1;
	add_array(source, fcinfo, ARG_PROFILE_IDS, "profile_id", "profile_ids");
	add_array(source, fcinfo, ARG_PROFILE_REFERENCES, "profile_reference",
			  "profile_references");
	add_array(source, fcinfo, ARG_PROFILE_EMAILS, "profile_email",
			  "profile_emails");
	if (source->base.nelements < 0)
	{
		if (!is_specified(fcinfo, ARG_PROFILE_IDS) &&
			!is_specified(fcinfo, ARG_PROFILE_REFERENCES) &&
			!is_specified(fcinfo, ARG_PROFILE_EMAILS))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("no identifiers were given"),
					 errhint("Pass profile_ids, profile_references or profile_emails.")));

		/* array_agg returns NULL for no rows. */
		source->base.nelements = 0;
	}

	source->fields = hrflow_check_fields(PG_ARGISNULL(ARG_FIELDS) ? NULL :
										 PG_GETARG_JSONB_P(ARG_FIELDS));
	hrflow_section_check_fields(source->fields);
	source->fields_text = hrflow_fields_text(source->fields);
	source->bad_source_id = "The source_id is null or empty.";
	if (!PG_ARGISNULL(ARG_SOURCE_ID))
	{
		const char *source_id = text_to_cstring(PG_GETARG_TEXT_PP(ARG_SOURCE_ID));

		if (*source_id != '\0')
		{
			source->source_id = hrflow_text_to_utf8(source_id);
			source->bad_source_id = "The source_id cannot be converted to UTF-8.";
		}
	}
}

/*
 * Read the identifiers of an element into a query.  Returns NULL, or the
 * reason why the element cannot be requested as a whole sentence.
 */
static char *
make_profile_query(const ArraySource *source, int element, HrflowQuery *query)
{
	const char *values[MAX_ARRAYS] = {NULL};

	if (source->source_id == NULL)
		return pstrdup(source->bad_source_id);

	for (int i = 0; i < source->narrays; i++)
	{
		const TextArray *array = &source->arrays[i];
		const char *value;

		if (is_null(array, element))
			continue;
		value = TextDatumGetCString(array->values[element]);
		if (*value == '\0')
			return psprintf("The %s is empty.", array->name);
		values[i] = hrflow_text_to_utf8(value);
		if (values[i] == NULL)
			return psprintf("The %s cannot be converted to UTF-8.",
							array->name);
	}
	if (values[0] == NULL && values[1] == NULL && values[2] == NULL)
		return pstrdup("All identifiers are null.");

	query->source_id = source->source_id;
	query->profile_id = values[0];
	query->profile_reference = values[1];
	query->profile_email = values[2];
	query->fields = source->fields_text;
	return NULL;
}

static HrflowElementKind
make_profile_request(HrflowSource *source, int element,
					 HrflowElementRequest *request, HrflowResult *problem)
{
	ArraySource *self = (ArraySource *) source;
	HrflowQuery query;

	problem->detail = make_profile_query(self, element, &query);
	if (problem->detail != NULL)
		return is_empty_element(self, element) ? HRFLOW_ELEMENT_EMPTY :
			HRFLOW_ELEMENT_INVALID;
	request->url = hrflow_request_profile(source->settings->base_url,
										  source->settings->dialect, &query);
	if (request->url == NULL)
	{
		problem->detail = "The URL would be too long.";
		return HRFLOW_ELEMENT_INVALID;
	}
	return HRFLOW_ELEMENT_ASKED;
}

static Jsonb *
fields_of_profile(const HrflowSource *source, int element)
{
	return ((const ArraySource *) source)->fields;
}

static const HrflowSourceMethods profile_source_methods = {
	.endpoint = HRFLOW_PROFILE,
	.hash = hash_of_texts,
	.equal = texts_equal,
	.make_request = make_profile_request,
	.fields = fields_of_profile
};

/*
 * ------------------------------------------------------------------------
 * Links and texts
 * ------------------------------------------------------------------------
 */

static HrflowElementKind
make_link_request(HrflowSource *source, int element,
				  HrflowElementRequest *request, HrflowResult *problem)
{
	const TextArray *links = &((ArraySource *) source)->arrays[0];

	if (is_null(links, element))
	{
		problem->detail = "The link is null.";
		return HRFLOW_ELEMENT_EMPTY;
	}
	request->url = TextDatumGetCString(links->values[element]);
	return HRFLOW_ELEMENT_ASKED;
}

static HrflowElementKind
make_text_request(HrflowSource *source, int element,
				  HrflowElementRequest *request, HrflowResult *problem)
{
	ArraySource *self = (ArraySource *) source;
	const TextArray *texts = &self->arrays[0];

	if (is_null(texts, element))
	{
		problem->detail = "The text is null.";
		return HRFLOW_ELEMENT_EMPTY;
	}
	request->url = self->text_url;
	request->body = hrflow_make_text_body(texts->values[element],
										  &problem->detail);
	return request->body != NULL ? HRFLOW_ELEMENT_ASKED :
		HRFLOW_ELEMENT_INVALID;
}

static const HrflowSourceMethods link_source_methods = {
	.is_links = true,
	.endpoint = HRFLOW_PROFILE,
	.hash = hash_of_texts,
	.equal = texts_equal,
	.make_request = make_link_request
};

static const HrflowSourceMethods text_source_methods = {
	.endpoint = HRFLOW_TEXT,
	.hash = hash_of_texts,
	.equal = texts_equal,
	.make_request = make_text_request
};

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
	const TextArray *identifiers;	/* contents of columns 2 to nidentifiers +
									 * 1 */
	int			nidentifiers;
	const RowColumn *columns;	/* the remaining columns of "desc" */
	Datum		values[MAX_COLUMNS];	/* of the row that was stored last */
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
		const TextArray *identifiers = &self->identifiers[i];

		self->nulls[n] = is_null(identifiers, element);
		self->values[n] = self->nulls[n] ? (Datum) 0 :
			identifiers->values[element];
	}

	/* Equal elements have the same values in all other columns. */
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
 * Raise an error in a query that Citus runs on a shard of a table.
 *
 * Once the arguments of a function in FROM are known, Citus sends a join with
 * it to every shard, and each of these queries would send all requests.  Citus
 * marks the connections for such queries by application_name, and those of
 * functions such as run_command_on_workers() differently (tested with Citus
 * 13.2.2).
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
				 errdetail("Every shard of the table would send all requests of the batch."),
				 errhint("Move the function call into WITH v AS MATERIALIZED (...), or set hrflow_embed.allow_in_shard_queries.")));
}

/*
 * Run a batch over a source, and return its rows: the ordinality, the first
 * "nidentifiers" arrays of the source, and "columns".
 */
static Datum
return_rows(FunctionCallInfo fcinfo, HrflowCaller caller, ArraySource *source,
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
	source->text_url = hrflow_request_url(source->base.settings->base_url,
										  HRFLOW_TEXT);
	source->base.activity = hrflow_activity_begin(caller, NULL);
	source->base.activity->state.ntotal = source->base.nelements;
	hrflow_batch_run(&source->base, &sink.base,
					 source->base.settings->batch_timeout, &summary);
	hrflow_activity_end(source->base.activity);
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
	ArraySource source = {.base.methods = &profile_source_methods};

	init_profile_source(&source, fcinfo);
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
	ArraySource source = {.base.methods = &profile_source_methods};

	init_profile_source(&source, fcinfo);
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
	ArraySource source = {.base.methods = &profile_source_methods};

	init_profile_source(&source, fcinfo);
	return return_rows(fcinfo, HRFLOW_BY_PROFILE_VECTORS, &source, 3,
					   &vector_row_sink_methods, profile_vector_columns);
}

/*
 * Count the requests that a batch would send if each was answered, and its
 * distinct elements.
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
	ArraySource source = {.base.methods = &profile_source_methods};
	int64		nelements;
	int64		nrequests;
	int64		nlinks = 0;
	double		seconds;
	Datum		values[4];
	bool		nulls[4] = {false};

	init_profile_source(&source, fcinfo);
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
	ArraySource source = {.base.methods = &link_source_methods};

	init_single_array_source(&source, fcinfo, "link", "links");
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
	ArraySource source = {.base.methods = &text_source_methods};

	init_single_array_source(&source, fcinfo, "input", "inputs");
	return return_rows(fcinfo, HRFLOW_BY_TEXT_EMBEDDINGS, &source, 0,
					   &row_sink_methods, vector_columns);
}
