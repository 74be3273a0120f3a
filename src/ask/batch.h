/*-------------------------------------------------------------------------
 *
 * batch.h
 *		What a batch asks for, and where its results go.
 *
 * A batch connects a source, which makes the requests of numbered elements,
 * with a sink, which takes what became of them.  Both are structs whose first
 * member is one of those below, as a DestReceiver's is.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_BATCH_H
#define HRFLOW_BATCH_H

#include "postgres.h"

#include "ask/ask.h"

/*
 * What became of an element, or of one of its links.
 */
typedef struct HrflowOutcome
{
	const HrflowResult *result;
	const char *section;		/* of the link; NULL: this is about the
								 * element as a whole */
	int			item;			/* 0-based within the section */
	bool		unasked;		/* it was not asked for to the end, for a
								 * reason that is not the element's */
} HrflowOutcome;

/*
 * The request for an element.
 */
typedef struct HrflowElementRequest
{
	const char *url;			/* of the API, or a link */
	const char *body;			/* JSON to POST; then "url" lives as long as
								 * the batch.  NULL: GET */
} HrflowElementRequest;

typedef struct HrflowSource HrflowSource;
typedef struct HrflowSink HrflowSink;

typedef struct HrflowSourceMethods
{
	bool		is_links;		/* elements are links, else of the API's ... */
	HrflowEndpoint endpoint;

	/* Elements that are equal are asked for once; NULL: none are. */
	uint32		(*hash) (const HrflowSource *source, int element);
	bool		(*equal) (const HrflowSource *source, int a, int b);

	/*
	 * Make the request for an element, in the current memory context.  Where
	 * it cannot be asked for, returns false and says why: sets the status and
	 * the detail of *problem, and *unasked as in an outcome.
	 */
	bool		(*make_request) (HrflowSource *source, int element,
								 HrflowElementRequest *request,
								 HrflowResult *problem, bool *unasked);

	/* The "fields" that an element is asked for with; NULL: none, or links. */
	Jsonb	   *(*fields) (const HrflowSource *source, int element);

	/*
	 * The API does not know the HrFlow source that an element is in.  Returns
	 * whether that goes for all elements; NULL: it does.
	 */
	bool		(*reject_hrflow_source) (HrflowSource *source, int element);
} HrflowSourceMethods;

struct HrflowSource
{
	const HrflowSourceMethods *methods;
	const HrflowSettings *settings;
	int			nelements;		/* numbered from 0 */
};

/*
 * How a batch went.
 */
typedef struct HrflowBatchSummary
{
	int			nelements;
	int			nanswered;		/* elements with a reply of the API */
	bool		any_ok;			/* of these replies */
	bool		refused;		/* nothing more was asked, because of ... */
	HrflowResult refusal;
} HrflowBatchSummary;

typedef struct HrflowSinkMethods
{
	/* Fetch the vectors that answers about profiles link to? */
	bool		follows_links;

	/*
	 * Take what became of an element.  "repeated" says that this element is
	 * equal to the one before, and the outcome the same.  The outcome lives
	 * until this returns; the current memory context is reset some time after
	 * the last equal element.
	 */
	void		(*put) (HrflowSink *sink, int element,
						const HrflowOutcome *outcome, bool repeated);

	/*
	 * The API refused to go on; elements not asked for are put after this.
	 * May raise an error.  NULL: nothing is to be done.
	 */
	void		(*refused) (HrflowSink *sink,
							const HrflowBatchSummary *summary);
} HrflowSinkMethods;

struct HrflowSink
{
	const HrflowSinkMethods *methods;
};

/* in batch.c */
extern void hrflow_batch_run(HrflowSource *source, HrflowSink *sink,
							 int time_limit, HrflowBatchSummary *summary);

#endif							/* HRFLOW_BATCH_H */
