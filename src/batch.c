/*-------------------------------------------------------------------------
 *
 * batch.c
 *		The SQL functions that ask for many profiles at once.
 *
 * Elements are asked in their order, max_concurrency at a time; rows come in
 * the order of completion.  Equal elements are asked once and answered each.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "compat.h"
#include "funcapi.h"
#include "hrflow_embed.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(hrflow_profile_embeddings);

/* The arguments of the function above, in their order. */
enum
{
	ARG_SOURCE_ID,
	ARG_PROFILE_IDS,
	ARG_FIELDS,
	ARG_PROFILE_REFERENCES,
	ARG_PROFILE_EMAILS
};

/* Its columns. */
enum
{
	COLUMN_ORDINALITY,
	COLUMN_IDENTIFIERS,			/* three of them */
	COLUMN_STATUS = COLUMN_IDENTIFIERS + 3,
	COLUMN_HTTP_STATUS,
	COLUMN_DATA,
	COLUMN_ERROR,
	NCOLUMNS
};

/* Identifiers of one kind, an array's elements. */
typedef struct Identifiers
{
	const char *name;			/* of the argument's elements */
	Datum	   *values;			/* NULL when there is no such array */
	bool	   *nulls;
} Identifiers;

typedef struct Batch
{
	const HrflowSettings *settings;
	HrflowTransport *transport;
	ReturnSetInfo *rsinfo;
	MemoryContext reply_context;	/* reset after each element */
	MemoryContext url_context;	/* URLs of what is asked for */

	const char *source_id;		/* UTF-8; NULL: every element is invalid */
	const char *fields;			/* UTF-8; NULL: left out */
	Identifiers ids[3];			/* profile_id, reference, e-mail */
	int			nelements;

	/*
	 * The next element equal to this one, or -1; and whether an earlier one
	 * is.  NULL when there is one element.
	 */
	int		   *next_equal;
	bool	   *is_repeated;

	int			next;			/* the first element not looked at */
	int			nanswered;		/* rows so far */
	int			nasked;			/* elements with a reply */
	bool		any_ok;
	bool		any_forbidden;

	/* The reason not to ask for more, once there is one. */
	bool		refused;
	HrflowResult refusal;
} Batch;

/* An element that is asked for; the tag of its request. */
typedef struct Asked
{
	int			element;
	char		url[FLEXIBLE_ARRAY_MEMBER];
} Asked;

/*
 * ------------------------------------------------------------------------
 * Equal elements
 * ------------------------------------------------------------------------
 */

typedef struct DistinctEntry
{
	int			first;			/* element; also the key */
	int			last;			/* element equal to it met last */
	uint32		hash;
	char		status;
} DistinctEntry;

static uint32 hash_element(const Batch *batch, int element);
static bool elements_equal(const Batch *batch, int a, int b);

#define SH_PREFIX distinct
#define SH_ELEMENT_TYPE DistinctEntry
#define SH_KEY_TYPE int
#define SH_KEY first
#define SH_HASH_KEY(table, key) hash_element((Batch *) (table)->private_data, key)
#define SH_EQUAL(table, a, b) elements_equal((Batch *) (table)->private_data, a, b)
#define SH_STORE_HASH
#define SH_GET_HASH(table, entry) (entry)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static uint32
hash_element(const Batch *batch, int element)
{
	uint32		hash = 0;

	for (int i = 0; i < lengthof(batch->ids); i++)
	{
		const Identifiers *ids = &batch->ids[i];
		text	   *value;

		if (ids->values == NULL || ids->nulls[element])
			continue;
		value = DatumGetTextPP(ids->values[element]);
		hash = hash_combine(hash, hash_bytes((unsigned char *) VARDATA_ANY(value),
											 VARSIZE_ANY_EXHDR(value)) + i);
	}
	return hash;
}

static bool
elements_equal(const Batch *batch, int a, int b)
{
	for (int i = 0; i < lengthof(batch->ids); i++)
	{
		const Identifiers *ids = &batch->ids[i];
		text	   *value_a;
		text	   *value_b;

		if (ids->values == NULL)
			continue;
		if (ids->nulls[a] != ids->nulls[b])
			return false;
		if (ids->nulls[a])
			continue;
		value_a = DatumGetTextPP(ids->values[a]);
		value_b = DatumGetTextPP(ids->values[b]);
		if (VARSIZE_ANY_EXHDR(value_a) != VARSIZE_ANY_EXHDR(value_b) ||
			memcmp(VARDATA_ANY(value_a), VARDATA_ANY(value_b),
				   VARSIZE_ANY_EXHDR(value_a)) != 0)
			return false;
	}
	return true;
}

/*
 * Chain up the elements that are equal.  About 20 ms for 100,000.
 */
static void
find_equal(Batch *batch)
{
	distinct_hash *table;

	batch->next_equal = MemoryContextAllocHuge(CurrentMemoryContext,
											   sizeof(int) * batch->nelements);
	batch->is_repeated = palloc0(sizeof(bool) * batch->nelements);
	table = distinct_create(CurrentMemoryContext, 1024, batch);

	for (int i = 0; i < batch->nelements; i++)
	{
		bool		found;
		DistinctEntry *entry = distinct_insert(table, i, &found);

		if (i % 10000 == 0)
			CHECK_FOR_INTERRUPTS();
		batch->next_equal[i] = -1;
		if (found)
		{
			batch->next_equal[entry->last] = i;
			batch->is_repeated[i] = true;
		}
		entry->last = i;
	}
	distinct_destroy(table);
}

/*
 * ------------------------------------------------------------------------
 * Rows
 * ------------------------------------------------------------------------
 */

/*
 * Store the row of one element.
 */
static void
put_row(Batch *batch, int element, const HrflowResult *result)
{
	Datum		values[NCOLUMNS] = {0};
	bool		nulls[NCOLUMNS] = {false};

	values[COLUMN_ORDINALITY] = Int64GetDatum((int64) element + 1);
	for (int i = 0; i < lengthof(batch->ids); i++)
	{
		const Identifiers *ids = &batch->ids[i];

		nulls[COLUMN_IDENTIFIERS + i] = ids->values == NULL ||
			ids->nulls[element];
		if (!nulls[COLUMN_IDENTIFIERS + i])
			values[COLUMN_IDENTIFIERS + i] = ids->values[element];
	}
	values[COLUMN_STATUS] = CStringGetTextDatum(hrflow_status_name(result->status));
	values[COLUMN_HTTP_STATUS] = Int32GetDatum(result->http_status);
	nulls[COLUMN_HTTP_STATUS] = result->http_status == 0;
	nulls[COLUMN_DATA] = result->data == NULL;
	if (result->data != NULL)
		values[COLUMN_DATA] = JsonbPGetDatum(result->data);
	nulls[COLUMN_ERROR] = result->status == HRFLOW_OK;
	if (result->status != HRFLOW_OK)
		values[COLUMN_ERROR] = CStringGetTextDatum(hrflow_status_describe(result));

	tuplestore_putvalues(batch->rsinfo->setResult, batch->rsinfo->setDesc,
						 values, nulls);
	batch->nanswered++;
	hrflow_stats_count_row(result->status);
}

/*
 * Store the rows of an element and of those equal to it.
 */
static void
put_rows(Batch *batch, int element, const HrflowResult *result)
{
	MemoryContext old = MemoryContextSwitchTo(batch->reply_context);

	for (; element >= 0; element = batch->next_equal[element])
	{
		CHECK_FOR_INTERRUPTS();
		put_row(batch, element, result);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(batch->reply_context);
}

/*
 * ------------------------------------------------------------------------
 * Asking
 * ------------------------------------------------------------------------
 */

/*
 * Read an element's identifiers into a query.  Returns NULL, or why there is
 * nothing to be asked.
 */
static const char *
make_query(const Batch *batch, int element, HrflowQuery *query)
{
	const char *values[3] = {NULL, NULL, NULL};

	if (batch->source_id == NULL)
		return "The source_id is null or empty.";

	for (int i = 0; i < lengthof(batch->ids); i++)
	{
		const Identifiers *ids = &batch->ids[i];
		const char *value;

		if (ids->values == NULL || ids->nulls[element])
			continue;
		value = TextDatumGetCString(ids->values[element]);
		if (*value == '\0')
			return psprintf("The %s is empty.", ids->name);
		values[i] = hrflow_text_to_utf8(value);
		if (values[i] == NULL)
			return psprintf("The %s cannot be converted to UTF-8.", ids->name);
	}
	if (values[0] == NULL && values[1] == NULL && values[2] == NULL)
		return "All identifiers are null.";

	query->source_id = batch->source_id;
	query->profile_id = values[0];
	query->profile_reference = values[1];
	query->profile_email = values[2];
	query->fields = batch->fields;
	return NULL;
}

/*
 * Ask for one element, or answer it at once when it cannot be asked for.
 */
static void
ask_element(Batch *batch, int element)
{
	HrflowResult invalid = {HRFLOW_INVALID_REQUEST};
	MemoryContext old = MemoryContextSwitchTo(batch->reply_context);
	HrflowQuery query;
	const char *problem = make_query(batch, element, &query);
	char	   *url = NULL;

	if (problem == NULL)
	{
		url = hrflow_request_profile(batch->settings->base_url,
									 batch->settings->dialect, &query);
		if (url == NULL)
			problem = "The URL would be too long.";
	}
	MemoryContextSwitchTo(old);

	if (problem != NULL)
	{
		invalid.detail = unconstify(char *, problem);
		put_rows(batch, element, &invalid);
	}
	else
	{
		size_t		size = strlen(url) + 1;
		Asked	   *asked = MemoryContextAlloc(batch->url_context,
											   offsetof(Asked, url) + size);

		asked->element = element;
		memcpy(asked->url, url, size);
		hrflow_transport_submit(batch->transport, asked->url, asked);
		MemoryContextReset(batch->reply_context);
	}
}

/*
 * Keep the transport busy.
 */
static void
refill(Batch *batch)
{
	int			room = hrflow_transport_room(batch->transport);

	while (room > 0 && batch->next < batch->nelements)
	{
		int			element = batch->next++;

		if (batch->is_repeated[element])
			continue;
		ask_element(batch, element);
		room = hrflow_transport_room(batch->transport);
	}
}

/*
 * Does this result refuse the whole batch?  A 403 does when a second element
 * has met it.
 */
static bool
is_refusal(Batch *batch, const HrflowResult *result)
{
	switch (result->status)
	{
		case HRFLOW_UNAUTHORIZED:
		case HRFLOW_OVER_QUOTA:
		case HRFLOW_INVALID_SOURCE:
		case HRFLOW_RATE_LIMITED:
			return true;
		case HRFLOW_FORBIDDEN:
			if (batch->any_forbidden)
				return true;
			batch->any_forbidden = true;
			return false;
		default:
			return false;
	}
}

/*
 * Take one reply: another try, or the element's rows.
 */
static void
take_reply(Batch *batch, HrflowReply *reply)
{
	MemoryContext old = MemoryContextSwitchTo(batch->reply_context);
	Asked	   *asked = reply->tag;
	HrflowResult result;

	if (reply->stopped)
	{
		result = batch->refusal;
		result.http_status = 0;
	}
	else
	{
		hrflow_response_parse(reply, batch->settings->api_key, &result);
		if (hrflow_transport_retry(batch->transport, reply, &result))
		{
			MemoryContextSwitchTo(old);
			MemoryContextReset(batch->reply_context);
			return;
		}
		batch->nasked++;
		if (!batch->refused && is_refusal(batch, &result))
		{
			batch->refused = true;
			batch->refusal = result;
			batch->refusal.detail = result.detail ?
				MemoryContextStrdup(old, result.detail) : NULL;
			hrflow_transport_stop(batch->transport);
		}
		batch->any_ok |= result.status == HRFLOW_OK;
	}
	MemoryContextSwitchTo(old);

	put_rows(batch, asked->element, &result);
	hrflow_transport_release(batch->transport, reply);
	pfree(asked);
}

/*
 * Give the elements that were not asked their rows.
 */
static void
put_rest(Batch *batch)
{
	HrflowResult rest = batch->refusal;

	rest.http_status = 0;
	for (; batch->next < batch->nelements; batch->next++)
	{
		if (!batch->is_repeated[batch->next])
			put_rows(batch, batch->next, &rest);
	}
}

/*
 * Raise the batch's refusal when nothing was had; else warn of it.
 */
static void
report_refusal(Batch *batch)
{
	if (!batch->any_ok)
		hrflow_status_raise(&batch->refusal);

	ereport(WARNING,
			(errmsg("batch was not finished: %s",
					hrflow_status_describe(&batch->refusal)),
			 errdetail("%d of %d elements were asked; the others have the status \"%s\".",
					   batch->nasked, batch->nelements,
					   hrflow_status_name(batch->refusal.status))));
}

/*
 * Ask for all elements.
 */
static void
run(Batch *batch)
{
	HrflowReply *reply;

	batch->transport = hrflow_transport_begin(batch->settings,
											  batch->settings->batch_timeout);
	for (;;)
	{
		refill(batch);
		reply = hrflow_transport_next(batch->transport);
		if (reply == NULL &&
			(batch->next >= batch->nelements || batch->refused ||
			 hrflow_transport_expired(batch->transport)))
			break;
		if (hrflow_transport_expired(batch->transport) && !batch->refused)
		{
			batch->refusal.status = HRFLOW_TIMEOUT;
			batch->refusal.detail = "hrflow_embed.batch_timeout is over.";
		}
		if (reply != NULL)
			take_reply(batch, reply);
	}
	hrflow_transport_end(batch->transport);

	if (batch->refused)
		report_refusal(batch);
	put_rest(batch);
}

/*
 * CONTEXT of whatever goes wrong: how far it had come.
 */
static void
add_context(void *arg)
{
	Batch	   *batch = arg;

	errcontext("HrFlow batch, %d of %d elements answered",
			   batch->nanswered, batch->nelements);
}

/*
 * ------------------------------------------------------------------------
 * The SQL function
 * ------------------------------------------------------------------------
 */

/*
 * Read an array of identifiers.  *nelements is -1 before the first one; all
 * must have the same length.
 */
static void
get_identifiers(FunctionCallInfo fcinfo, int argno, const char *name,
				const char *plural, Identifiers *ids, int *nelements)
{
	ArrayType  *array;
	int			n;

	ids->name = name;
	ids->values = NULL;
	if (PG_ARGISNULL(argno))
		return;

	array = PG_GETARG_ARRAYTYPE_P(argno);
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a one-dimensional array", plural)));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &ids->values,
					  &ids->nulls, &n);
	if (*nelements >= 0 && n != *nelements)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arrays of identifiers must have the same length"),
				 errdetail("%s has %d elements where another has %d.",
						   plural, n, *nelements)));
	*nelements = n;
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
	ErrorContextCallback context;
	Batch		batch = {0};
	int			nelements = -1;

	get_identifiers(fcinfo, ARG_PROFILE_IDS, "profile_id", "profile_ids",
					&batch.ids[0], &nelements);
	get_identifiers(fcinfo, ARG_PROFILE_REFERENCES, "profile_reference",
					"profile_references", &batch.ids[1], &nelements);
	get_identifiers(fcinfo, ARG_PROFILE_EMAILS, "profile_email",
					"profile_emails", &batch.ids[2], &nelements);
	if (nelements < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no identifiers were given"),
				 errhint("Pass profile_ids, profile_references or profile_emails.")));
	batch.nelements = nelements;
	batch.fields = hrflow_fields_text(hrflow_check_fields(PG_ARGISNULL(ARG_FIELDS) ? NULL :
														  PG_GETARG_JSONB_P(ARG_FIELDS)));
	if (!PG_ARGISNULL(ARG_SOURCE_ID))
		batch.source_id = hrflow_text_to_utf8(text_to_cstring(PG_GETARG_TEXT_PP(ARG_SOURCE_ID)));
	if (batch.source_id != NULL && *batch.source_id == '\0')
		batch.source_id = NULL;

	InitMaterializedSRF(fcinfo, 0);
	if (nelements == 0)
		return (Datum) 0;

	batch.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	batch.reply_context = AllocSetContextCreate(CurrentMemoryContext,
												"hrflow_embed reply",
												ALLOCSET_DEFAULT_SIZES);
	batch.url_context = AllocSetContextCreate(CurrentMemoryContext,
											  "hrflow_embed requests",
											  ALLOCSET_DEFAULT_SIZES);

	context.callback = add_context;
	context.arg = &batch;
	context.previous = error_context_stack;
	error_context_stack = &context;

	find_equal(&batch);
	batch.settings = hrflow_settings_get();
	run(&batch);

	error_context_stack = context.previous;
	return (Datum) 0;
}
