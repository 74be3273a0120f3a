/*-------------------------------------------------------------------------
 *
 * wanted.c
 *		Fetches the vectors for a store.
 *
 * In the SQL functions that run a batch, all profiles have the same HrFlow
 * source and "fields".  Here, each profile has its own, and each job its own
 * board.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"

typedef struct WantedSource
{
	HrflowSource base;
	const HrflowWantedKind *kind;
	const HrflowWantedMethods *methods;
	void	   *arg;			/* argument of the methods */
	const char *post_url;		/* URL to POST bodies to */
	HrflowWanted **wanted;		/* profiles by element number; NULL for
								 * numbers that are not in use */
	int			size;			/* allocated length of "wanted" */
	int			first_free;		/* no smaller number is free */
	List	   *unknown;		/* palloc'd ids of HrFlow sources or boards
								 * that the API does not know */
	MemoryContext context;		/* memory context of "wanted" and "unknown" */
} WantedSource;

typedef struct WantedSink
{
	HrflowSink	base;
	WantedSource *source;
} WantedSink;

/*
 * Assign an element number to a profile.
 */
static int
number_wanted(WantedSource *source, HrflowWanted *wanted)
{
	int			element = source->first_free;

	while (element < source->size && source->wanted[element] != NULL)
		element++;
	if (element == source->size)
	{
		source->size *= 2;
		source->wanted = repalloc(source->wanted,
								  sizeof(HrflowWanted *) * source->size);
		memset(source->wanted + element, 0,
			   sizeof(HrflowWanted *) * (source->size - element));
	}
	source->wanted[element] = wanted;
	source->first_free = element + 1;
	return element;
}

static int
next_wanted(HrflowSource *source)
{
	WantedSource *self = (WantedSource *) source;
	HrflowWanted *wanted = self->methods->next(self->arg);

	return wanted == NULL ? -1 : number_wanted(self, wanted);
}

static bool
is_in_unknown_source(const WantedSource *source, int element)
{
	ListCell   *cell;

	foreach(cell, source->unknown)
	{
		if (strcmp(lfirst(cell), source->wanted[element]->source_id) == 0)
			return true;
	}
	return false;
}

/*
 * Record that the API does not know the HrFlow source of a profile, so that no
 * further profiles of this source are requested.  Returns false, because
 * profiles of other sources are still requested.
 */
static bool
reject_source_of_wanted(HrflowSource *source, int element)
{
	WantedSource *self = (WantedSource *) source;
	MemoryContext old = MemoryContextSwitchTo(self->context);

	if (!is_in_unknown_source(self, element))
		self->unknown = lappend(self->unknown,
								pstrdup(self->wanted[element]->source_id));
	MemoryContextSwitchTo(old);
	return false;
}

/*
 * Convert a string, which may be NULL, to UTF-8.  Returns false if the string
 * cannot be converted.
 */
static bool
convert_wanted_text(const char **text)
{
	if (*text == NULL)
		return true;
	*text = hrflow_text_to_utf8(*text);
	return *text != NULL;
}

static HrflowElementKind
make_wanted_request(HrflowSource *source, int element,
					HrflowElementRequest *request, HrflowResult *problem)
{
	WantedSource *self = (WantedSource *) source;
	HrflowWanted wanted = *self->wanted[element];
	bool		is_converted;

	if (is_in_unknown_source(self, element))
	{
		problem->status = HRFLOW_INVALID_SOURCE;
		problem->detail = self->kind->endpoint == HRFLOW_JOB ?
			"The HrFlow API does not know the board." :
			"The HrFlow API does not know the source.";
		return HRFLOW_ELEMENT_UNASKED;
	}
	if (wanted.body != NULL)
	{
		request->url = self->post_url;
		request->body = wanted.body;
		return HRFLOW_ELEMENT_ASKED;
	}
	is_converted = convert_wanted_text(&wanted.source_id);
	for (int i = 0; i < HRFLOW_NIDENTIFIERS && is_converted; i++)
		is_converted = convert_wanted_text(&wanted.identifiers[i]);
	if (!is_converted)
	{
		problem->detail = "An identifier cannot be converted to UTF-8.";
		return HRFLOW_ELEMENT_INVALID;
	}
	request->url = self->kind->make_url(source->settings, &wanted);
	if (request->url == NULL)
	{
		problem->detail = "The URL would be too long.";
		return HRFLOW_ELEMENT_INVALID;
	}
	return HRFLOW_ELEMENT_ASKED;
}

static Jsonb *
fields_of_wanted(const HrflowSource *source, int element)
{
	return ((const WantedSource *) source)->wanted[element]->fields;
}

static void
put_wanted(HrflowSink *sink, int element, const HrflowOutcome *outcome,
		   bool repeated)
{
	WantedSource *source = ((WantedSink *) sink)->source;
	HrflowWanted *wanted = source->wanted[element];
	HrflowWantedOutcome given = {
		.section = outcome->section,
		.item = outcome->item,
		.result = outcome->result,
		.unasked = outcome->evidence == HRFLOW_EVIDENCE_NONE,
		.is_last = outcome->is_last
	};

	if (outcome->is_last)
	{
		source->wanted[element] = NULL;
		source->first_free = Min(source->first_free, element);
	}
	source->methods->take(source->arg, wanted, &given);
}

static int64
work_between_wanted(HrflowSink *sink, HrflowTransport *transport)
{
	WantedSource *source = ((WantedSink *) sink)->source;

	return source->methods->work(source->arg, transport);
}

static const HrflowSinkMethods wanted_sink_methods = {
	.link_use = HRFLOW_LINKS_FOLLOWED,
	.put = put_wanted,
	.work = work_between_wanted
};

/*
 * Fetch the vectors for a store, until methods->next() returns NULL while no
 * request is in flight, the batch is stopped, or methods->work() calls
 * hrflow_transport_expire().  After methods->work() has stopped the transport,
 * methods->next() must return NULL.  All requests are sent with the given
 * settings, and thus with the same API key.  Everything is allocated in the
 * current memory context; resetting this context, even after an error,
 * releases all resources.  Returns false if the batch was stopped, and sets
 * *refusal to the reason.  "activity" shows the requests, but the caller must
 * count the elements in it.
 */
bool
hrflow_wanted_fetch(const HrflowWantedKind *kind,
					const HrflowSettings *settings,
					const HrflowWantedMethods *methods, void *arg,
					HrflowActivity *activity, HrflowResult *refusal)
{
	const HrflowSourceMethods source_methods = {
		.endpoint = kind->endpoint,
		.next = next_wanted,
		.make_request = make_wanted_request,
		.fields = fields_of_wanted,
		.reject_hrflow_source = reject_source_of_wanted
	};
	HrflowSettings *copy = hrflow_settings_copy(settings);
	WantedSource source = {
		.base.methods = &source_methods,
		.base.settings = copy,
		.base.activity = activity,
		.kind = kind,
		.methods = methods,
		.arg = arg,
		.size = 64,
		.context = CurrentMemoryContext
	};
	WantedSink	sink = {
		.base.methods = &wanted_sink_methods,
		.source = &source
	};
	HrflowBatchSummary summary;

	/*
	 * A store keeps one vector for each document, so do not split the payload
	 * into several vectors.
	 */
	copy->vector_dimension = 0;

	source.post_url = hrflow_request_url(copy->base_url, kind->endpoint);
	source.wanted = palloc0(sizeof(HrflowWanted *) * source.size);
	hrflow_batch_run(&source.base, &sink.base, 0, &summary);
	*refusal = summary.reason;
	return !summary.refused;
}
