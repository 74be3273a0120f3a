/*-------------------------------------------------------------------------
 *
 * batch.c
 *		The SQL functions that ask for many profiles or texts, or fetch many
 *		links, at once.
 *
 * Elements are asked in their order, max_concurrency at a time; rows come in
 * the order of completion.  Equal elements are asked once and answered each.
 * Where vectors are wanted, a profile's links are fetched as soon as they
 * arrive, among the requests for further profiles.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "compat.h"
#include "funcapi.h"
#include "ask/ask.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(hrflow_profile_embeddings);
PG_FUNCTION_INFO_V1(hrflow_profile_vectors);
PG_FUNCTION_INFO_V1(hrflow_fetch_vectors);
PG_FUNCTION_INFO_V1(hrflow_text_embeddings);

/* The arguments of the first two, in their order. */
enum
{
	ARG_SOURCE_ID,
	ARG_PROFILE_IDS,
	ARG_FIELDS,
	ARG_PROFILE_REFERENCES,
	ARG_PROFILE_EMAILS
};

/* What a batch is to return. */
typedef enum BatchKind
{
	BATCH_OF_EMBEDDINGS,		/* of profiles: the API's data */
	BATCH_OF_VECTORS,			/* of profiles: their vectors */
	BATCH_OF_LINKS,				/* of links: their vectors */
	BATCH_OF_TEXTS				/* of texts: their vectors */
} BatchKind;

/*
 * As many rows are stored without a look at the network: about 2 ms.
 */
#define ROWS_OF_WORK 1024

/* As many columns as the widest of these has. */
#define MAX_COLUMNS 10

/* Identifiers of one kind, an array's elements. */
typedef struct Identifiers
{
	const char *name;			/* of the argument's elements */
	Datum	   *values;			/* NULL when there is no such array */
	bool	   *nulls;
} Identifiers;

typedef struct Batch
{
	BatchKind	kind;
	const HrflowSettings *settings;
	HrflowTransport *transport;
	ReturnSetInfo *rsinfo;
	MemoryContext reply_context;	/* reset after each element */
	MemoryContext asked_context;	/* of what is asked for */

	const char *source_id;		/* UTF-8; NULL: every element is invalid, */
	const char *bad_source;		/* for this reason */
	Jsonb	   *fields;			/* NULL: left out */
	const char *fields_text;	/* the same in UTF-8 */
	const char *text_url;		/* where texts are sent */
	Identifiers ids[3];			/* profile_id, reference, e-mail; or link; or
								 * text */
	int			nids;
	int			nshown;			/* as many of them are columns */
	int			nelements;

	/* What has these instead of the above, and the result at once. */
	HrflowWanted *wanted;
	HrflowSink	sink;
	List	   *bad_sources;	/* sources that the API does not know */

	/*
	 * The next element equal to this one, or -1; and whether an earlier one
	 * is.
	 */
	int		   *next_equal;
	bool	   *is_repeated;

	int			next;			/* the first element not looked at */
	dlist_head	links;			/* to be fetched, in this order: Asked */
	size_t		pending;		/* bytes of bodies asked with, no reply yet */
	int64		nrows;			/* so far */
	int			nanswered;		/* elements with a reply of the API */
	bool		any_ok;
	bool		any_forbidden;

	/* The reason not to ask for more, once there is one. */
	bool		refused;
	HrflowResult refusal;
} Batch;

/* What becomes of what is not done by then. */
static const HrflowResult time_over = {
	.status = HRFLOW_TIMEOUT,
	.detail = "hrflow_embed.batch_timeout is over."
};

/* What a request is for; its tag. */
typedef struct Asked
{
	dlist_node	node;			/* in the batch's links, until it is sent */
	HrflowTarget target;
	int			element;
	char	   *section;		/* of a profile's link; else NULL */
	int			item;
	size_t		size;			/* of what follows */
	char		sent[FLEXIBLE_ARRAY_MEMBER];	/* URL, or a text's body */
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

	for (int i = 0; i < batch->nids; i++)
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
	for (int i = 0; i < batch->nids; i++)
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
	for (int i = 0; i < batch->nelements; i++)
		batch->next_equal[i] = -1;
	batch->is_repeated = palloc0(sizeof(bool) * batch->nelements);
	if (batch->wanted != NULL)
		return;
	table = distinct_create(CurrentMemoryContext, 1024, batch);

	for (int i = 0; i < batch->nelements; i++)
	{
		bool		found;
		DistinctEntry *entry = distinct_insert(table, i, &found);

		if (i % 10000 == 0)
			CHECK_FOR_INTERRUPTS();
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
 * Store a row of an element, and of those equal to it.  "section" is NULL
 * where the row is not about one; "unasked" where the element was not asked
 * for to the end.
 */
static void
put_rows(Batch *batch, int element, const char *section, int item,
		 const HrflowResult *result, bool unasked)
{
	MemoryContext old = MemoryContextSwitchTo(batch->reply_context);
	Datum		values[MAX_COLUMNS] = {0};
	bool		nulls[MAX_COLUMNS] = {false};
	int			n = 1 + batch->nshown;

	if (batch->sink != NULL)
	{
		batch->sink(&batch->wanted[element], section, item, result, unasked);
		hrflow_stats_count_row(result->status);
		MemoryContextSwitchTo(old);
		return;
	}

	/* What is behind the ordinality and the identifiers is the same in all. */
	if (batch->kind == BATCH_OF_VECTORS)
	{
		nulls[n] = section == NULL;
		if (section != NULL)
			values[n] = CStringGetTextDatum(section);
		n++;
		nulls[n] = section == NULL;
		values[n++] = Int32GetDatum(item);
	}
	if (batch->kind != BATCH_OF_EMBEDDINGS)
	{
		nulls[n] = result->vector == NULL;
		values[n++] = PointerGetDatum(result->vector);
	}
	values[n++] = CStringGetTextDatum(hrflow_status_name(result->status));
	nulls[n] = result->http_status == 0;
	values[n++] = Int32GetDatum(result->http_status);
	if (batch->kind == BATCH_OF_EMBEDDINGS)
	{
		nulls[n] = result->data == NULL;
		values[n++] = PointerGetDatum(result->data);
	}
	nulls[n] = result->status == HRFLOW_OK;
	if (result->status != HRFLOW_OK)
		values[n] = CStringGetTextDatum(hrflow_error_describe(result));
	n++;
	Assert(n == batch->rsinfo->setDesc->natts);

	for (; element >= 0; element = batch->next_equal[element])
	{
		CHECK_FOR_INTERRUPTS();
		values[0] = Int64GetDatum((int64) element + 1);
		for (int i = 0; i < batch->nshown; i++)
		{
			const Identifiers *ids = &batch->ids[i];

			nulls[1 + i] = ids->values == NULL || ids->nulls[element];
			values[1 + i] = nulls[1 + i] ? (Datum) 0 : ids->values[element];
		}
		tuplestore_putvalues(batch->rsinfo->setResult, batch->rsinfo->setDesc,
							 values, nulls);
		if (++batch->nrows % ROWS_OF_WORK == 0)
			hrflow_transport_work(batch->transport);
		hrflow_stats_count_row(result->status);
	}
	MemoryContextSwitchTo(old);
}

/*
 * ------------------------------------------------------------------------
 * Asking
 * ------------------------------------------------------------------------
 */

/*
 * Make a query of what is wanted.  Returns NULL, or why it cannot be asked.
 */
static const char *
make_wanted_query(const HrflowWanted *wanted, HrflowQuery *query)
{
	const char *values[4];

	for (int i = 0; i < lengthof(values); i++)
	{
		const char *value = i == 0 ? wanted->source_id :
		wanted->identifiers[i - 1];

		values[i] = value == NULL ? NULL : hrflow_text_to_utf8(value);
		if (value != NULL && values[i] == NULL)
			return "A text cannot be converted to UTF-8.";
	}
	query->source_id = values[0];
	query->profile_id = values[1];
	query->profile_reference = values[2];
	query->profile_email = values[3];
	query->fields = wanted->fields_text;
	return NULL;
}

/*
 * Is an element in a source that the API does not know?
 */
static bool
is_in_bad_source(const Batch *batch, int element)
{
	ListCell   *cell;

	foreach(cell, batch->bad_sources)
	{
		if (strcmp(lfirst(cell), batch->wanted[element].source_id) == 0)
			return true;
	}
	return false;
}

/*
 * Read an element's identifiers into a query.  Returns NULL, or why there is
 * nothing to be asked.
 */
static const char *
make_query(const Batch *batch, int element, HrflowQuery *query)
{
	const char *values[3] = {NULL, NULL, NULL};

	if (batch->wanted != NULL)
		return make_wanted_query(&batch->wanted[element], query);
	if (batch->source_id == NULL)
		return batch->bad_source;

	for (int i = 0; i < batch->nids; i++)
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
	query->fields = batch->fields_text;
	return NULL;
}

/*
 * Which endpoint of the API is asked?
 */
static HrflowEndpoint
endpoint_of(const Batch *batch)
{
	return batch->kind == BATCH_OF_TEXTS ? HRFLOW_TEXT : HRFLOW_PROFILE;
}

/*
 * A request to be sent: for a URL, or with a text's body.
 */
static Asked *
make_asked(Batch *batch, HrflowTarget target, const char *sent, int element,
		   const char *section, int item)
{
	size_t		size = strlen(sent) + 1;
	Asked	   *asked = MemoryContextAlloc(batch->asked_context,
										   offsetof(Asked, sent) + size);

	asked->target = target;
	asked->size = size;
	asked->element = element;
	asked->section = section == NULL ? NULL :
		MemoryContextStrdup(batch->asked_context, section);
	asked->item = item;
	memcpy(asked->sent, sent, size);
	batch->pending += size;
	return asked;
}

static void
free_asked(Batch *batch, Asked *asked)
{
	batch->pending -= asked->size;
	if (asked->section != NULL)
		pfree(asked->section);
	pfree(asked);
}

/*
 * Send a request.  What it is for is freed with its reply.
 */
static void
submit(Batch *batch, Asked *asked)
{
	if (batch->kind == BATCH_OF_TEXTS)
		hrflow_transport_post(batch->transport, batch->text_url, asked->sent,
							  asked);
	else
		hrflow_transport_submit(batch->transport, asked->target, asked->sent,
								asked);
}

/*
 * Send those for links that have their turn.  An answer may have a thousand,
 * and there may be as many answers as requests in flight: in the transport
 * each would take 6 kB.
 */
static void
submit_links(Batch *batch)
{
	int			room;

	if (dlist_is_empty(&batch->links))
		return;
	room = hrflow_transport_room_for_links(batch->transport);
	for (; room > 0 && !dlist_is_empty(&batch->links); room--)
		submit(batch, dlist_container(Asked, node,
									  dlist_pop_head_node(&batch->links)));
}

/*
 * Have a link fetched, or answer at once when it may not be.
 */
static void
fetch_link(Batch *batch, const char *link, int element, const char *section,
		   int item)
{
	HrflowResult refused = {.status = HRFLOW_LINK_REFUSED, .is_link = true};
	HrflowTarget target;
	bool		by_name;
	const char *refusal;
	Asked	   *asked;

	refusal = hrflow_link_refusal(link, batch->settings->link_hosts, &by_name);
	if (refusal == NULL)
	{
		target = by_name ? HRFLOW_TO_LINK : HRFLOW_TO_GUARDED_LINK;
		asked = make_asked(batch, target, link, element, section, item);
		dlist_push_tail(&batch->links, &asked->node);
	}
	else
	{
		refused.detail = psprintf("%s Link: %s", refusal,
								  hrflow_response_scrub(hrflow_link_describe(link),
														batch->settings->api_key));
		put_rows(batch, element, section, item, &refused, false);
	}
}

/*
 * Ask for a profile, or answer at once when it cannot be asked for.
 */
static void
ask_profile(Batch *batch, int element)
{
	HrflowResult invalid = {HRFLOW_INVALID_REQUEST};
	HrflowQuery query;
	const char *problem;
	char	   *url = NULL;

	if (is_in_bad_source(batch, element))
	{
		invalid.status = HRFLOW_INVALID_SOURCE;
		invalid.detail = "The API does not know the source.";
		put_rows(batch, element, NULL, 0, &invalid, true);
		return;
	}
	problem = make_query(batch, element, &query);
	if (problem == NULL)
	{
		url = hrflow_request_profile(batch->settings->base_url,
									 batch->settings->dialect, &query);
		if (url == NULL)
			problem = "The URL would be too long.";
	}
	if (problem == NULL)
		submit(batch, make_asked(batch, HRFLOW_TO_API, url, element, NULL, 0));
	else
	{
		invalid.detail = unconstify(char *, problem);
		put_rows(batch, element, NULL, 0, &invalid, false);
	}
}

/*
 * Ask for a text's vector, or answer at once when it cannot be asked for.
 */
static void
ask_text(Batch *batch, int element)
{
	HrflowResult invalid = {.status = HRFLOW_INVALID_REQUEST,
	.endpoint = HRFLOW_TEXT};
	const Identifiers *texts = &batch->ids[0];
	const char *body = NULL;

	if (texts->nulls[element])
		invalid.detail = "The text is null.";
	else
		body = hrflow_make_text_body(texts->values[element], &invalid.detail);
	if (body != NULL)
		submit(batch, make_asked(batch, HRFLOW_TO_API, body, element, NULL, 0));
	else
		put_rows(batch, element, NULL, 0, &invalid, false);
}

/*
 * Ask for one element.
 */
static void
ask_element(Batch *batch, int element)
{
	HrflowResult invalid = {.status = HRFLOW_INVALID_REQUEST, .is_link = true,
	.detail = "The link is null."};
	MemoryContext old = MemoryContextSwitchTo(batch->reply_context);

	if (batch->kind == BATCH_OF_TEXTS)
		ask_text(batch, element);
	else if (batch->kind != BATCH_OF_LINKS)
		ask_profile(batch, element);
	else if (batch->ids[0].nulls[element])
		put_rows(batch, element, NULL, 0, &invalid, false);
	else
		fetch_link(batch, TextDatumGetCString(batch->ids[0].values[element]),
				   element, NULL, 0);

	MemoryContextSwitchTo(old);
	MemoryContextReset(batch->reply_context);
}

/*
 * Keep the transport busy.  Texts can be long: as many are asked for as we
 * hold bodies of replies, or one.
 */
static void
refill(Batch *batch)
{
	int			room;

	submit_links(batch);
	room = hrflow_transport_room(batch->transport);
	while (room > 0 && batch->next < batch->nelements &&
		   batch->pending < HRFLOW_MAX_BUFFERED)
	{
		int			element = batch->next++;

		if (batch->is_repeated[element])
			continue;
		ask_element(batch, element);
		submit_links(batch);
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
		case HRFLOW_RATE_LIMITED:
			return true;
		case HRFLOW_INVALID_SOURCE:
			return batch->wanted == NULL;
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
 * Nothing more is to be asked.
 */
static void
refuse_all(Batch *batch, const HrflowResult *result)
{
	batch->refused = true;
	batch->refusal = *result;
	if (result->detail != NULL)
		batch->refusal.detail = MemoryContextStrdup(batch->asked_context,
													result->detail);
	hrflow_transport_stop(batch->transport);
}

/*
 * Fetch the links in a profile's data.
 */
static void
fetch_links(Batch *batch, int element, HrflowResult *result)
{
	List	   *links;
	ListCell   *cell;

	if (!hrflow_response_links(result->data, batch->wanted != NULL ?
							   batch->wanted[element].fields : batch->fields,
							   batch->settings->api_key, &links, &result->detail))
		result->status = HRFLOW_INVALID_REPLY;
	if (result->status != HRFLOW_OK || links == NIL)
		put_rows(batch, element, NULL, 0, result, false);
	else
	{
		foreach(cell, links)
		{
			HrflowLink *link = lfirst(cell);

			fetch_link(batch, link->url, element, link->section, link->item);
		}
	}
}

/*
 * The API does not know an element's source: ask no more of it.
 */
static void
avoid_source(Batch *batch, int element)
{
	MemoryContext old = MemoryContextSwitchTo(batch->asked_context);

	if (!is_in_bad_source(batch, element))
		batch->bad_sources = lappend(batch->bad_sources,
									 pstrdup(batch->wanted[element].source_id));
	MemoryContextSwitchTo(old);
}

/*
 * Take one try's reply.  Returns whether there will be another.
 */
static bool
take_reply(Batch *batch, HrflowReply *reply)
{
	Asked	   *asked = reply->tag;
	bool		is_link = HRFLOW_IS_LINK(reply->target);
	HrflowResult result;

	if (reply->stopped)
	{
		if (reply->expired)
			result = time_over;
		else
			result = batch->refusal;
		result.is_link = is_link;
		result.http_status = 0;
		put_rows(batch, asked->element, asked->section, asked->item, &result,
				 true);
		return false;
	}

	if (is_link)
		hrflow_response_parse_vector(reply, &result);
	else
		hrflow_response_parse(reply, endpoint_of(batch),
							  batch->settings->api_key, &result);
	if (hrflow_transport_retry(batch->transport, reply, result.status,
							   result.transient))
		return true;

	if (!is_link)
	{
		for (int i = asked->element; i >= 0; i = batch->next_equal[i])
			batch->nanswered++;
		batch->any_ok |= result.status == HRFLOW_OK;
		if (!batch->refused && is_refusal(batch, &result))
			refuse_all(batch, &result);
		if (batch->wanted != NULL && result.status == HRFLOW_INVALID_SOURCE)
			avoid_source(batch, asked->element);
	}
	if (!is_link && result.status == HRFLOW_OK &&
		batch->kind == BATCH_OF_VECTORS)
		fetch_links(batch, asked->element, &result);
	else
		put_rows(batch, asked->element, asked->section, asked->item, &result,
				 false);
	return false;
}

/*
 * Take one reply, and give it back unless there will be another.
 */
static void
process_reply(Batch *batch, HrflowReply *reply)
{
	MemoryContext old = MemoryContextSwitchTo(batch->reply_context);
	Asked	   *asked = reply->tag;

	if (!take_reply(batch, reply))
	{
		hrflow_transport_release(batch->transport, reply);
		free_asked(batch, asked);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(batch->reply_context);
}

/*
 * Give the links their rows that waited when the time was over.
 */
static void
put_rest_of_links(Batch *batch)
{
	HrflowResult late = time_over;

	late.is_link = true;
	while (!dlist_is_empty(&batch->links))
	{
		Asked	   *asked = dlist_container(Asked, node,
											dlist_pop_head_node(&batch->links));

		put_rows(batch, asked->element, asked->section, asked->item, &late,
				 true);
		MemoryContextReset(batch->reply_context);
		free_asked(batch, asked);
	}
}

/*
 * Give the elements that were not asked their rows.
 */
static void
put_rest(Batch *batch)
{
	HrflowResult rest = batch->refusal;

	rest.http_status = 0;
	rest.is_link = batch->kind == BATCH_OF_LINKS;
	for (; batch->next < batch->nelements; batch->next++)
	{
		if (batch->is_repeated[batch->next])
			continue;
		put_rows(batch, batch->next, NULL, 0, &rest, true);
		MemoryContextReset(batch->reply_context);
	}
}

/*
 * Raise the batch's refusal when nothing was had; else warn of it.
 */
static void
report_refusal(Batch *batch)
{
	if (!batch->any_ok)
		hrflow_error_raise(&batch->refusal);

	ereport(WARNING,
			(errmsg("batch was not finished: %s",
					hrflow_error_describe(&batch->refusal)),
			 errdetail("%d of %d elements were answered; what was still to be asked has the status \"%s\".",
					   batch->nanswered, batch->nelements,
					   hrflow_status_name(batch->refusal.status))));
}

/*
 * Ask for all elements.
 */
static void
run(Batch *batch, int time_limit)
{
	HrflowReply *reply;

	dlist_init(&batch->links);
	batch->transport = hrflow_transport_begin(batch->settings, time_limit);
	for (;;)
	{
		refill(batch);
		reply = hrflow_transport_next(batch->transport);
		if (reply == NULL &&
			(batch->next >= batch->nelements || batch->refused ||
			 hrflow_transport_expired(batch->transport)))
			break;
		if (hrflow_transport_expired(batch->transport) && !batch->refused)
			batch->refusal = time_over;
		if (reply != NULL)
			process_reply(batch, reply);
	}
	hrflow_transport_end(batch->transport);

	if (batch->refused && batch->sink == NULL)
		report_refusal(batch);
	put_rest_of_links(batch);
	put_rest(batch);
	hrflow_stats_flush();
}

/*
 * CONTEXT of whatever goes wrong: how far it had come.
 */
static void
add_context(void *arg)
{
	Batch	   *batch = arg;

	errcontext("HrFlow batch of %d elements, " INT64_FORMAT " rows so far",
			   batch->nelements, batch->nrows);
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
 * Run a batch whose elements are known.  What it has asked with is freed; of
 * the refusal the detail is the caller's.
 */
static void
run_batch(Batch *batch, int time_limit)
{
	ErrorContextCallback context;

	batch->reply_context = AllocSetContextCreate(CurrentMemoryContext,
												 "hrflow_embed reply",
												 ALLOCSET_DEFAULT_SIZES);
	batch->asked_context = AllocSetContextCreate(CurrentMemoryContext,
												 "hrflow_embed requests",
												 ALLOCSET_DEFAULT_SIZES);

	batch->refusal.endpoint = endpoint_of(batch);

	context.callback = add_context;
	context.arg = batch;
	context.previous = error_context_stack;
	error_context_stack = &context;

	find_equal(batch);
	run(batch, time_limit);

	error_context_stack = context.previous;
	if (batch->refusal.detail != NULL)
		batch->refusal.detail = pstrdup(batch->refusal.detail);
	MemoryContextDelete(batch->reply_context);
	MemoryContextDelete(batch->asked_context);
}

/*
 * The same for one of the functions below.
 */
static void
return_batch(FunctionCallInfo fcinfo, Batch *batch)
{
	InitMaterializedSRF(fcinfo, 0);
	if (batch->nelements == 0)
		return;

	batch->rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	batch->settings = hrflow_settings_get(batch->kind != BATCH_OF_LINKS);
	batch->text_url = hrflow_request_url(batch->settings->base_url, HRFLOW_TEXT);
	run_batch(batch, batch->settings->batch_timeout);
}

/*
 * Fetch the vectors of profiles, in at most "time_limit" milliseconds.  They
 * are handed to "sink" as they come.  Returns false, and why, when the API
 * refused to go on.
 */
bool
hrflow_batch_fetch(HrflowWanted *wanted, int nwanted, int time_limit,
				   HrflowSink sink, HrflowResult *refusal)
{
	Batch		batch = {BATCH_OF_VECTORS};

	batch.settings = hrflow_settings_get(true);
	batch.wanted = wanted;
	batch.sink = sink;
	batch.nelements = nwanted;
	if (nwanted > 0)
		run_batch(&batch, time_limit);
	*refusal = batch.refusal;
	return !batch.refused;
}

/*
 * Run a batch of profiles: the arguments are those of both functions below.
 */
static void
run_profiles(FunctionCallInfo fcinfo, BatchKind kind)
{
	Batch		batch = {kind};
	const char *source_id;

	batch.nelements = -1;
	batch.nids = batch.nshown = 3;
	get_identifiers(fcinfo, ARG_PROFILE_IDS, "profile_id", "profile_ids",
					&batch.ids[0], &batch.nelements);
	get_identifiers(fcinfo, ARG_PROFILE_REFERENCES, "profile_reference",
					"profile_references", &batch.ids[1], &batch.nelements);
	get_identifiers(fcinfo, ARG_PROFILE_EMAILS, "profile_email",
					"profile_emails", &batch.ids[2], &batch.nelements);
	if (batch.nelements < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no identifiers were given"),
				 errhint("Pass profile_ids, profile_references or profile_emails.")));

	batch.fields = hrflow_check_fields(PG_ARGISNULL(ARG_FIELDS) ? NULL :
									   PG_GETARG_JSONB_P(ARG_FIELDS));
	batch.fields_text = hrflow_fields_text(batch.fields);
	batch.bad_source = "The source_id is null or empty.";
	if (!PG_ARGISNULL(ARG_SOURCE_ID))
	{
		source_id = text_to_cstring(PG_GETARG_TEXT_PP(ARG_SOURCE_ID));
		if (*source_id != '\0')
		{
			batch.source_id = hrflow_text_to_utf8(source_id);
			batch.bad_source = "The source_id cannot be converted to UTF-8.";
		}
	}

	return_batch(fcinfo, &batch);
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
	run_profiles(fcinfo, BATCH_OF_EMBEDDINGS);
	return (Datum) 0;
}

/*
 * hrflow_profile_vectors(…the same…)
 *		RETURNS TABLE (ordinality bigint, profile_id text,
 *					   profile_reference text, profile_email text,
 *					   section text, item int, vector real[], status text,
 *					   http_status int, error text)
 */
Datum
hrflow_profile_vectors(PG_FUNCTION_ARGS)
{
	run_profiles(fcinfo, BATCH_OF_VECTORS);
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
	Batch		batch = {BATCH_OF_LINKS};

	batch.nelements = -1;
	batch.nids = batch.nshown = 1;
	get_identifiers(fcinfo, 0, "link", "links", &batch.ids[0],
					&batch.nelements);
	if (batch.nelements < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be null", "links")));

	return_batch(fcinfo, &batch);
	return (Datum) 0;
}

/*
 * hrflow_text_embeddings(inputs text[])
 *		RETURNS TABLE (ordinality bigint, vector real[], status text,
 *					   http_status int, error text)
 */
Datum
hrflow_text_embeddings(PG_FUNCTION_ARGS)
{
	Batch		batch = {BATCH_OF_TEXTS};

	batch.nelements = -1;
	batch.nids = 1;
	get_identifiers(fcinfo, 0, "input", "inputs", &batch.ids[0],
					&batch.nelements);
	if (batch.nelements < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be null", "inputs")));

	return_batch(fcinfo, &batch);
	return (Datum) 0;
}
