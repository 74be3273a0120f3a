/*-------------------------------------------------------------------------
 *
 * fetch.c
 *		Profiles that were claimed are asked for, section by section if need be.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "store/refresh.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* What the API is asked for section by section where "fields" is left out. */
#define KNOWN_SECTIONS \
	"{\"profile\":1,\"skills\":1,\"interests\":1,\"experiences\":1,\"educations\":1}"

/*
 * ------------------------------------------------------------------------
 * Fields
 * ------------------------------------------------------------------------
 */

static char *
jsonb_text(JsonbValue *value)
{
	Jsonb	   *jsonb = JsonbValueToJsonb(value);

	return JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
}

/*
 * "fields" for one section, or one element of it.
 */
static Jsonb *
make_part(const char *key, const char *value, bool is_element)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	escape_json(&text, key);
	appendStringInfo(&text, is_element ? ": [%s]}" : ": %s}", value);
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum(text.data)));
}

/*
 * Read "fields": which sections are asked for, and its parts.
 */
void
hrflow_fetch_read_fields(HrflowRun *run, Jsonb *fields)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	int			depth = 0;
	char	   *key = NULL;
	List	   *sections = NIL;
	Datum	   *names;
	ListCell   *cell;

	run->fields = hrflow_check_fields(fields);
	run->fields_text = hrflow_fields_text(run->fields);
	fields = run->fields;
	if (fields == NULL)
		fields = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													CStringGetDatum(KNOWN_SECTIONS)));

	iterator = JsonbIteratorInit(&fields->root);
	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		char	   *text;

		if (token == WJB_KEY && depth == 1)
			key = pnstrdup(value.val.string.val, value.val.string.len);
		depth += (token == WJB_BEGIN_OBJECT || token == WJB_BEGIN_ARRAY) -
			(token == WJB_END_OBJECT || token == WJB_END_ARRAY);
		if (token != WJB_VALUE && token != WJB_ELEM)
			continue;

		Assert(key != NULL);	/* for they are an object */
		text = jsonb_text(&value);
		if (token == WJB_VALUE &&
			(strcmp(text, "0") == 0 || strcmp(text, "false") == 0 ||
			 strcmp(text, "null") == 0))
			continue;			/* not asked for */
		run->parts = lappend(run->parts, make_part(key, text, token == WJB_ELEM));
		if (sections == NIL || strcmp(llast(sections), key) != 0)
			sections = lappend(sections, key);
	}
	names = palloc(sizeof(Datum) * list_length(sections));
	foreach(cell, sections)
		names[foreach_current_index(cell)] = CStringGetTextDatum(lfirst(cell));
	run->sections = construct_array(names, list_length(sections), TEXTOID, -1,
									false, TYPALIGN_INT);
}

/*
 * ------------------------------------------------------------------------
 * Fetching
 * ------------------------------------------------------------------------
 */

/*
 * Take a result; the transport's memory is not ours to keep.
 *
 * That a section has no vector is for the API to say.  Where it gives a link
 * to one that the link's host does not have, the profile has failed: a host
 * that has lost its objects must not erase ours.
 */
static void
take_result(HrflowWanted *wanted, const char *section, int item,
			const HrflowResult *result, bool unasked)
{
	HrflowProfile *profile = wanted->tag;
	MemoryContext old = MemoryContextSwitchTo(profile->context);

	if (result->http_status != 0)
		profile->http_status = result->http_status;
	if (unasked)
		profile->unasked = true;
	if (result->status == HRFLOW_OK && section != NULL)
	{
		HrflowVector *vector = palloc(sizeof(HrflowVector));

		vector->section = pstrdup(section);
		vector->item = item;
		vector->value = (ArrayType *) palloc(VARSIZE(result->vector));
		memcpy(vector->value, result->vector, VARSIZE(result->vector));
		profile->vectors = lappend(profile->vectors, vector);
	}
	else if (result->status == HRFLOW_NO_VECTOR && !result->is_link)
		profile->no_vector = true;
	else if (result->status != HRFLOW_OK && profile->status == HRFLOW_OK)
	{
		profile->status = result->status;
		profile->error = hrflow_error_describe(result);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Want a profile, or a part of it.
 */
static void
want(HrflowRun *run, HrflowWanted *wanted, HrflowProfile *profile,
	 Jsonb *fields)
{
	memset(wanted, 0, sizeof(HrflowWanted));
	wanted->source_id = profile->source_id;
	wanted->identifiers[run->identifier] = profile->identifier;
	wanted->fields = fields;
	wanted->fields_text = fields == run->fields ? run->fields_text :
		hrflow_fields_text(fields);
	wanted->tag = profile;
}

/*
 * Fetch a batch.  Returns false, and why, when the API refused to go on.
 *
 * Where a section has no vector, the API answers nothing at all: then the
 * sections are asked for one by one, so that the others are had.
 */
bool
hrflow_fetch(HrflowRun *run, List *profiles, int limit,
			 HrflowResult *refusal)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  limit);
	int			nparts = list_length(run->parts);
	int			n = 0;
	HrflowWanted *wanted;
	ListCell   *cell;
	ListCell   *part;

	wanted = palloc(sizeof(HrflowWanted) * list_length(profiles));
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		if (profile->attempts <= run->max_attempts)
			want(run, &wanted[n++], profile, run->fields);
		else
		{
			profile->is_exhausted = true;
			profile->status = HRFLOW_CONNECTION_LOST;
			profile->error = psprintf("The session ended while it was fetched, %d times.",
									  profile->attempts - 1);
		}
	}

	/* No snapshot is kept while the network is awaited. */
	InvalidateCatalogSnapshot();
	if (!hrflow_wanted_fetch(wanted, n, limit, take_result, refusal))
		return false;

	wanted = palloc(sizeof(HrflowWanted) * list_length(profiles) *
					Max(nparts, 1));
	n = 0;
	foreach(cell, profiles)
	{
		HrflowProfile *profile = lfirst(cell);

		if (profile->no_vector && nparts > 1)
		{
			foreach(part, run->parts)
				want(run, &wanted[n++], profile, lfirst(part));
		}
	}
	limit = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
	return n == 0 || hrflow_wanted_fetch(wanted, n, Max(limit, 1), take_result,
										 refusal);
}
