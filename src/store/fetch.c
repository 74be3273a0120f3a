/*-------------------------------------------------------------------------
 *
 * fetch.c
 *		Requests claimed profiles from the API, section by section if
 *		necessary.
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
#include "utils/timestamp.h"

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
 * Make a part of "fields": a section, or one element of a section.
 */
static HrflowPart *
make_part(char *section, const char *value, bool is_element)
{
	HrflowPart *part = palloc(sizeof(HrflowPart));
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoChar(&text, '{');
	escape_json(&text, section);
	appendStringInfo(&text, is_element ? ": [%s]}" : ": %s}", value);
	part->fields = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													  CStringGetDatum(text.data)));
	part->name = is_element ? psprintf("%s[%s]", section, value) : section;
	part->section = section;
	part->is_element = is_element;
	part->item = strlen(value) < 10 &&
		strspn(value, "0123456789") == strlen(value) ? atoi(value) : -1;
	return part;
}

/*
 * Return a value of "fields" that requests all known sections.  Its parts are
 * used to request sections one by one if "fields" is not given.
 */
static Jsonb *
make_all_fields(void)
{
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < HRFLOW_NSECTIONS; i++)
		appendStringInfo(&text, "%s\"%s\": 1", i == 0 ? "{" : ", ",
						 hrflow_sections[i]);
	appendStringInfoChar(&text, '}');
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum(text.data)));
}

static void
set_sections(HrflowRun *run, List *sections)
{
	Datum	   *names = palloc(sizeof(Datum) * list_length(sections));
	ListCell   *cell;

	foreach(cell, sections)
		names[foreach_current_index(cell)] = CStringGetTextDatum(lfirst(cell));
	run->sections = construct_array(names, list_length(sections), TEXTOID, -1,
									false, TYPALIGN_INT);
}

/*
 * Read "fields", and set the sections and the parts that the run requests.  If
 * "fields" is NULL, these are all known sections.  Throws 22023 if "fields" is
 * not valid.
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

	run->fields = hrflow_check_fields(fields);
	run->fields_text = hrflow_fields_text(run->fields);
	fields = run->fields != NULL ? run->fields : make_all_fields();

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

		Assert(key != NULL);	/* "fields" is an object */
		text = jsonb_text(&value);
		if (token == WJB_VALUE &&
			(strcmp(text, "0") == 0 || strcmp(text, "false") == 0 ||
			 strcmp(text, "null") == 0))
			continue;			/* the section is not requested */
		run->parts = lappend(run->parts, make_part(key, text, token == WJB_ELEM));
		if (sections == NIL || strcmp(llast(sections), key) != 0)
			sections = lappend(sections, key);
	}
	set_sections(run, sections);
}

/*
 * Set the fields of the run that depend on the kind of the store.  Must be
 * called after hrflow_fetch_read_fields().  If stores of this kind have no
 * sections, only the complete content can be requested.  Throws 22023 if
 * "fields" is not valid for the kind.
 */
void
hrflow_fetch_set_kind(HrflowRun *run, const HrflowStore *store)
{
	run->kind = store->kind;
	run->identifier = store->identifier;
	hrflow_kind_check_fields(run->kind, run->fields);
	if (!run->kind->has_sections)
	{
		char	   *whole = pstrdup(run->kind->whole);

		run->fields = NULL;
		run->fields_text = NULL;
		run->parts = list_make1(make_part(whole, "1", false));
		set_sections(run, list_make1(whole));
	}
}

/*
 * ------------------------------------------------------------------------
 * Fetching
 * ------------------------------------------------------------------------
 */

/*
 * Change a result that has several vectors, such as a NumPy file with several
 * rows, into a failure.  A store keeps one vector for each section or item.
 * An array of several vectors, which could not be ranked, must not replace it.
 */
static void
refuse_several(HrflowResult *result)
{
	if (result->status != HRFLOW_OK || result->vector == NULL ||
		ARR_NDIM(result->vector) == 1)
		return;
	result->status = HRFLOW_INVALID_VECTOR;
	result->detail = psprintf(_("There are %d vectors instead of one."),
							  ARR_DIMS(result->vector)[0]);
	result->vector = NULL;
}

/*
 * Record the outcome of a request in its profile.  The vector is copied,
 * because the outcome is valid only until hrflow_fetch_take() returns.
 *
 * Only the API can tell that a section has no vector.  If the API returns a
 * link, but the link's host does not have the vector, the profile has failed:
 * a host that has lost its objects must not cause vectors to be put aside.
 */
static void
take_result(const HrflowRun *run, HrflowProfile *profile,
			const HrflowWantedOutcome *outcome)
{
	HrflowResult result = *outcome->result;
	const char *section = outcome->section == NULL && result.vector != NULL ?
	run->kind->whole : outcome->section;
	MemoryContext old = MemoryContextSwitchTo(profile->context);

	refuse_several(&result);
	if (result.http_status != 0)
		profile->http_status = result.http_status;
	if (outcome->unasked)
		profile->unasked = true;

	/*
	 * Unless a request to the API was omitted or abandoned, assume that the
	 * first one was sent at "asked_at".
	 */
	if (profile->sent_at == 0)
		profile->sent_at = outcome->unasked && !result.is_link ?
			result.sent_at : profile->asked_at;
	profile->was_sent = profile->body != NULL && result.was_sent;
	if (result.status == HRFLOW_OK && section != NULL)
	{
		HrflowVector *vector = palloc(sizeof(HrflowVector));

		vector->section = pstrdup(section);
		vector->item = outcome->item;
		vector->value = (ArrayType *) palloc(VARSIZE(result.vector));
		memcpy(vector->value, result.vector, VARSIZE(result.vector));
		profile->vectors = lappend(profile->vectors, vector);
	}
	else if (result.status == HRFLOW_NO_VECTOR && !result.is_link)
	{
		profile->no_vector = true;
		if (profile->no_vector_error == NULL)
			profile->no_vector_error = hrflow_error_describe(&result);
	}
	else if (result.status != HRFLOW_OK && profile->status == HRFLOW_OK)
	{
		profile->status = result.status;
		profile->is_link = result.is_link;
		profile->is_down = result.http_status >= 502;
		profile->error = hrflow_error_describe(&result);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Return the entry of a source in the list of sources that the API does not
 * know, or NULL if it is not in the list.
 */
HrflowBadSource *
hrflow_fetch_bad_source(HrflowRun *run, const char *source_id)
{
	ListCell   *cell;

	foreach(cell, run->bad_sources)
	{
		HrflowBadSource *source = lfirst(cell);

		if (strcmp(source->source_id, source_id) == 0)
			return source;
	}
	return NULL;
}

/*
 * Record a source that the API does not know, and warn about it, unless that
 * was done before.
 */
static void
note_bad_source(HrflowRun *run, const HrflowProfile *profile)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);
	HrflowResult result = {
		.endpoint = run->kind->asked.endpoint,
		.status = HRFLOW_INVALID_SOURCE
	};

	if (hrflow_fetch_bad_source(run, profile->source_id) == NULL)
	{
		HrflowBadSource *source = palloc0(sizeof(HrflowBadSource));

		source->source_id = pstrdup(profile->source_id);
		source->error = pstrdup(profile->error);
		run->bad_sources = lappend(run->bad_sources, source);
		ereport(WARNING,
				(result.endpoint == HRFLOW_JOB ?
				 errmsg("skipping board \"%s\" in refresh of %s: board not found",
						profile->source_id, run->name) :
				 errmsg("skipping source \"%s\" in refresh of %s: source not found",
						profile->source_id, run->name),
				 errdetail_internal("%s", profile->error),
				 errhint("%s", hrflow_error_hint(&result))));
	}
	MemoryContextSwitchTo(old);
}

/*
 * Return the next claimed profile to be requested, or NULL if there is none or
 * all claimed profiles must wait.  If the last errors of several profiles say
 * that the API does not know their source, one of these profiles is requested
 * first, as a probe, and the others wait for the reply.
 */
static HrflowProfile *
next_claimed(HrflowRun *run)
{
	dlist_iter	iter;

	dlist_foreach(iter, &run->claimed)
	{
		HrflowProfile *profile = dlist_container(HrflowProfile, node, iter.cur);
		dlist_iter	inner;
		bool		is_waiting = false;

		if (!profile->is_suspect)
			return profile;
		dlist_foreach(inner, &run->in_flight)
		{
			HrflowProfile *other = dlist_container(HrflowProfile, node,
												   inner.cur);

			is_waiting |= other->is_probe &&
				strcmp(other->source_id, profile->source_id) == 0;
		}
		if (is_waiting)
			continue;
		profile->is_probe =
			hrflow_fetch_bad_source(run, profile->source_id) == NULL;
		return profile;
	}
	return NULL;
}

/*
 * After all requests for a probe are complete, let the other claimed profiles
 * of its source no longer wait.  If the API still does not know the source,
 * hrflow_wanted_fetch() sends no requests for them.
 */
static void
clear_source(HrflowRun *run, HrflowProfile *probe)
{
	dlist_iter	iter;

	dlist_foreach(iter, &run->claimed)
	{
		HrflowProfile *profile = dlist_container(HrflowProfile, node, iter.cur);

		if (strcmp(profile->source_id, probe->source_id) == 0)
			profile->is_suspect = false;
	}
	probe->is_probe = false;
}

/*
 * Make a request for a profile, or for one of the parts of "fields".
 */
static HrflowWanted *
make_wanted(HrflowRun *run, HrflowProfile *profile, Jsonb *fields)
{
	MemoryContext old = MemoryContextSwitchTo(profile->context);
	HrflowWanted *wanted = palloc0(sizeof(HrflowWanted));

	wanted->source_id = profile->source_id;
	wanted->identifiers[run->identifier] = profile->identifier;
	wanted->fields = fields;
	wanted->fields_text = fields == run->fields ? run->fields_text :
		hrflow_fields_text(fields);
	wanted->body = profile->body;
	wanted->tag = profile;
	profile->nopen++;
	MemoryContextSwitchTo(old);
	return wanted;
}

static void
move_to(dlist_head *list, HrflowProfile *profile)
{
	dlist_delete(&profile->node);
	dlist_push_tail(list, &profile->node);
}

/*
 * Return the next request: for a part of a split profile, or for a claimed
 * profile.  Returns NULL if there is neither, or if no claimed profile may be
 * requested at present.
 */
HrflowWanted *
hrflow_fetch_next(HrflowRun *run)
{
	HrflowProfile *profile;

	if (!dlist_is_empty(&run->split))
	{
		const HrflowPart *part;

		profile = dlist_head_element(HrflowProfile, node, &run->split);
		part = list_nth(run->parts, profile->next_part++);
		if (profile->next_part == list_length(run->parts))
			move_to(&run->in_flight, profile);
		return make_wanted(run, profile, part->fields);
	}
	if (hrflow_model_room(run) <= 0)
		return NULL;
	profile = next_claimed(run);
	if (profile == NULL)
		return NULL;
	profile->is_trial = true;
	run->ntrial++;
	profile->asked_at = hrflow_clock_now();
	run->nasked++;
	move_to(&run->in_flight, profile);
	return make_wanted(run, profile, run->fields);
}

/*
 * Consider a profile missing, like a profile that the API does not know,
 * because the replies contained no vector at all.  The profile may not have
 * been indexed yet, and its stored vectors must not be put aside because of a
 * single reply.
 */
static void
set_missing(HrflowProfile *profile)
{
	profile->is_known = true;
	profile->status = HRFLOW_NOT_FOUND;
	profile->error = profile->no_vector_error;
	if (profile->error == NULL)
		profile->error = MemoryContextStrdup(profile->context,
											 "HrFlow has no vector of the profile");
}

/*
 * Process the outcome of a request.
 *
 * If any of the requested sections has no vector, the API returns no vector at
 * all.  In that case, request the sections one by one, so that the vectors of
 * the other sections are fetched.
 */
void
hrflow_fetch_take(HrflowRun *run, HrflowWanted *wanted,
				  const HrflowWantedOutcome *outcome)
{
	HrflowProfile *profile = wanted->tag;

	take_result(run, profile, outcome);
	if (!outcome->is_last || --profile->nopen > 0)
		return;
	if (profile->no_vector && !profile->is_split && !profile->unasked &&
		list_length(run->parts) > 1)
	{
		profile->is_split = true;
		move_to(&run->split, profile);
		return;
	}
	if (profile->is_split && profile->next_part < list_length(run->parts) &&
		!profile->unasked)
		return;
	if (profile->status == HRFLOW_OK && profile->vectors == NIL &&
		run->parts != NIL && !profile->unasked)
		set_missing(profile);
	if (profile->status == HRFLOW_INVALID_SOURCE && !profile->unasked)
		note_bad_source(run, profile);
	if (profile->is_probe)
		clear_source(run, profile);
	hrflow_content_share(run, profile);
	hrflow_suspects_land(run, profile);
}

/*
 * Stop waiting for replies.  The profiles in flight are processed with the
 * results that were received so far.
 */
void
hrflow_fetch_give_up(HrflowRun *run)
{
	dlist_head *lists[] = {&run->split, &run->in_flight};

	for (int i = 0; i < lengthof(lists); i++)
	{
		while (!dlist_is_empty(lists[i]))
		{
			HrflowProfile *profile = dlist_head_element(HrflowProfile, node,
														lists[i]);

			profile->unasked = true;
			profile->was_sent = profile->body != NULL;
			hrflow_content_share(run, profile);
			hrflow_suspects_land(run, profile);
		}
	}
}
