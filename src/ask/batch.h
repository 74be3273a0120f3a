/*-------------------------------------------------------------------------
 *
 * batch.h
 *		Interface of batches, and of the parts they consist of.
 *
 * A batch connects a source, which makes the requests for numbered elements,
 * with a sink, which receives their outcomes.  Sources and sinks are structs
 * that begin with one of the structs below, as a DestReceiver's private state
 * does.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_BATCH_H
#define HRFLOW_BATCH_H

#include "postgres.h"

#include "ask/ask.h"
#include "lib/ilist.h"

/*
 * The outcome of an element, or of one of its links.
 */
typedef struct HrflowOutcome
{
	const HrflowResult *result;
	const char *section;		/* section of the link; NULL: the element as a
								 * whole */
	int			item;			/* 0-based within the section */
	const char *link;			/* the link, if links are listed; else NULL */
	bool		unasked;		/* requests were omitted or abandoned, for a
								 * reason unrelated to the element */
	bool		is_last;		/* last outcome of the element */
	bool		is_spoilt;		/* was any earlier outcome of the element not
								 * "ok"? */
} HrflowOutcome;

/*
 * The request for an element.
 */
typedef struct HrflowElementRequest
{
	const char *url;			/* URL of the API, or the link */
	const char *body;			/* JSON to POST to "url", which then must live
								 * as long as the batch; NULL: use GET */
} HrflowElementRequest;

/*
 * Is there a request for an element?
 */
typedef enum HrflowElementKind
{
	HRFLOW_ELEMENT_ASKED,		/* there is a request */
	HRFLOW_ELEMENT_EMPTY,		/* element is NULL, so there is nothing to
								 * request */
	HRFLOW_ELEMENT_INVALID,		/* element is invalid */
	HRFLOW_ELEMENT_UNASKED		/* request is omitted, for a reason unrelated
								 * to the element */
} HrflowElementKind;

typedef struct HrflowSource HrflowSource;
typedef struct HrflowSink HrflowSink;

typedef struct HrflowSourceMethods
{
	bool		is_links;		/* are the elements links, rather than objects
								 * of "endpoint"? */
	HrflowEndpoint endpoint;

	/*
	 * Return the next element to request, or -1 if there is none at the
	 * moment.  The number of an element may be reused after its last outcome.
	 * If this is NULL, all elements are requested in order.
	 */
	int			(*next) (HrflowSource *source);

	/*
	 * Equal elements are requested once.  If these are NULL, no elements are
	 * equal.
	 */
	uint32		(*hash) (const HrflowSource *source, int element);
	bool		(*equal) (const HrflowSource *source, int a, int b);

	/*
	 * Make the request for an element, in the current memory context.  If
	 * there is none, set problem->detail, and problem->status unless that is
	 * HRFLOW_INVALID_REQUEST.
	 */
	HrflowElementKind (*make_request) (HrflowSource *source, int element,
									   HrflowElementRequest *request,
									   HrflowResult *problem);

	/*
	 * Return the "fields" to request for an element, or NULL to omit them.
	 * Not used for links.
	 */
	Jsonb	   *(*fields) (const HrflowSource *source, int element);

	/*
	 * Record that the API does not know the HrFlow source of an element.
	 * Returns whether that applies to all elements.  If this is NULL, it
	 * does.
	 */
	bool		(*reject_hrflow_source) (HrflowSource *source, int element);
} HrflowSourceMethods;

struct HrflowSource
{
	const HrflowSourceMethods *methods;
	const HrflowSettings *settings;
	HrflowActivity *activity;	/* shows the progress of the batch */
	int			nelements;		/* number of elements or, if "next" is set, of
								 * elements requested so far */
};

/*
 * Overall outcome of a batch.
 */
typedef struct HrflowBatchSummary
{
	int			nelements;
	int			nanswered;		/* number of elements for which the API sent a
								 * reply */
	bool		any_ok;			/* was any reply of the API successful? */
	bool		expired;		/* did the time limit end the batch? */
	bool		refused;		/* did "refusal" stop the batch? */
	HrflowResult refusal;
} HrflowBatchSummary;

/*
 * Use of the links in a profile's answer.
 */
typedef enum HrflowLinkUse
{
	HRFLOW_LINKS_KEPT,			/* leave them in the answer's data */
	HRFLOW_LINKS_LISTED,		/* each link is an outcome */
	HRFLOW_LINKS_FOLLOWED		/* fetch each link; its vector is an outcome */
} HrflowLinkUse;

typedef struct HrflowSinkMethods
{
	HrflowLinkUse link_use;

	/*
	 * Report to the user?  If so, a refusal is raised as an error if nothing
	 * has succeeded, a WARNING at the end reports why the batch failed or
	 * stopped early, and the batch stops during an outage or if all requests
	 * are refused for the same reason.
	 */
	bool		reports;

	/*
	 * Receive an outcome of an element.  "repeated" means that this element
	 * is equal to the previous one and has the same outcome.  The outcome is
	 * valid until this returns; the current memory context is reset some time
	 * after the last equal element.
	 */
	void		(*put) (HrflowSink *sink, int element,
						const HrflowOutcome *outcome, bool repeated);

	/*
	 * Do other work between replies.  Returns the time of hrflow_clock_now()
	 * by which to be called again.  May stop the transport.  It is called at
	 * once when an interrupt is pending, and must process that itself.  May
	 * be NULL.
	 */
	int64		(*work) (HrflowSink *sink, HrflowTransport *transport);
} HrflowSinkMethods;

struct HrflowSink
{
	const HrflowSinkMethods *methods;
};

/*
 * Sets of equal elements.  Both arrays are NULL if no elements are equal.
 */
typedef struct HrflowEqualElements
{
	int		   *next;			/* for each element, the next one that is
								 * equal to it, or -1 */
	bool	   *is_repeated;	/* for each element, is an earlier one equal
								 * to it? */
} HrflowEqualElements;

/*
 * Keeps track of the links of one answer that have no outcome yet.
 */
typedef struct HrflowOpenLinks
{
	int			n;				/* number of links without an outcome */
	bool		any_failed;		/* has any other link failed? */
} HrflowOpenLinks;

/*
 * A request of a batch.  It is the tag of its reply.
 */
typedef struct HrflowBatchRequest
{
	dlist_node	node;			/* in HrflowQueue.links or HrflowQueue.parked */
	HrflowTarget target;
	const char *post_url;		/* URL to POST the body to; NULL: use GET */
	int			element;
	HrflowOpenLinks *links;		/* shared by the links of an answer; NULL: not
								 * a link of an answer */
	char	   *section;		/* section of a profile's link, else NULL */
	int			item;
	HrflowResult *failure;		/* result of the failed attempts; NULL unless
								 * the request was parked */
	int64		resent_at;		/* when the request was last sent again after
								 * being parked; 0: never */
	size_t		size;			/* size of "sent" */
	char		sent[FLEXIBLE_ARRAY_MEMBER];	/* body to POST, or URL to GET */
} HrflowBatchRequest;

/*
 * The requests of a batch that have no result yet.
 */
typedef struct HrflowQueue
{
	MemoryContext context;
	HrflowTransport *transport;
	dlist_head	links;			/* links that have not been sent, in order */
	dlist_head	parked[2];		/* [0]: to the API; [1]: for links; requests
								 * all of whose attempts failed in an outage */
	int			nparked[2];
	size_t		pending;		/* total size of URLs and bodies, in bytes */
} HrflowQueue;

/*
 * Progress reports to psql.
 */
typedef struct HrflowProgress
{
	bool		is_shown;
	int64		began_at;
	int64		shown_at;		/* time of the last report */
} HrflowProgress;

/*
 * Number of rows of a batch with each status.
 */
typedef struct HrflowTally
{
	MemoryContext context;		/* contains the strings in "first" */
	int64		nrows;			/* rows of empty elements are not counted */
	int64		by_status[HRFLOW_LAST_STATUS + 1];
	HrflowResult first[HRFLOW_LAST_STATUS + 1]; /* the first failure with each
												 * status */
} HrflowTally;

/*
 * Evidence of whether the API, or the host of links, is replying.
 */
typedef struct HrflowServerHealth
{
	int64		answered_at;	/* time of the last answer, or of the
								 * beginning of the batch */
	int			nfailures;		/* number of attempts without an answer since
								 * answered_at */
} HrflowServerHealth;

/*
 * Detects when it is pointless to continue a batch.
 */
typedef struct HrflowHealth
{
	MemoryContext context;		/* contains the strings in "refusal" */
	HrflowServerHealth servers[2];	/* [0]: the API; [1]: the host of links */
	bool		on_trial;		/* have all elements so far been refused for
								 * the same reason? */
	int			nasked;			/* number of elements requested from the API */
	int			nrefused;		/* number of elements refused */
	int			last_refused;	/* the element refused last, or -1 */
	HrflowResult refusal;		/* the first refusal */
} HrflowHealth;

/*
 * Number of consecutive attempts without an answer, and of elements affected,
 * that we consider an outage.
 */
#define HRFLOW_MIN_OUTAGE 8

/* in equal.c */
extern void hrflow_equal_find(HrflowEqualElements *elements,
							  HrflowSource *source);
extern int	hrflow_equal_next(const HrflowEqualElements *elements,
							  int element);
extern bool hrflow_equal_is_repeated(const HrflowEqualElements *elements,
									 int element);

/* in queue.c */
extern void hrflow_queue_init(HrflowQueue *queue, MemoryContext context,
							  HrflowTransport *transport);
extern HrflowBatchRequest *hrflow_queue_make(HrflowQueue *queue, int element,
											 const char *sent);
extern void hrflow_queue_free(HrflowQueue *queue, HrflowBatchRequest *request);
extern void hrflow_queue_send(HrflowQueue *queue, HrflowBatchRequest *request);
extern void hrflow_queue_add_link(HrflowQueue *queue,
								  HrflowBatchRequest *request);
extern HrflowBatchRequest *hrflow_queue_take_link(HrflowQueue *queue);
extern void hrflow_queue_send_links(HrflowQueue *queue);
extern void hrflow_queue_close_link(HrflowOpenLinks *links,
									HrflowOutcome *outcome);
extern void hrflow_queue_park(HrflowQueue *queue, HrflowBatchRequest *request,
							  const HrflowResult *result);
extern HrflowBatchRequest *hrflow_queue_unpark(HrflowQueue *queue,
											   bool is_link);
extern void hrflow_queue_resend(HrflowQueue *queue, bool is_link);

/* in health.c */
extern void hrflow_health_init(HrflowHealth *health, MemoryContext context);
extern bool hrflow_health_is_outage(const HrflowResult *result);
extern bool hrflow_health_note_try(HrflowHealth *health,
								   const HrflowResult *result);
extern bool hrflow_health_in_trouble(const HrflowHealth *health, bool is_link);
extern bool hrflow_health_may_ask(const HrflowHealth *health);
extern void hrflow_health_note_asked(HrflowHealth *health);
extern bool hrflow_health_note_outcome(HrflowHealth *health, int element,
									   const HrflowResult *result);

/* in tally.c */
extern void hrflow_tally_count(HrflowTally *tally, const HrflowResult *result);
extern void hrflow_tally_report(const HrflowTally *tally,
								const HrflowBatchSummary *summary);

/* in estimate.c */
extern double hrflow_estimate_items(Jsonb *fields);

/* in progress.c */
extern void hrflow_progress_begin(HrflowProgress *progress,
								  const HrflowSink *sink);
extern void hrflow_progress_show(HrflowProgress *progress,
								 const HrflowTally *tally, int nasked,
								 int nelements);

/* in batch.c */
extern void hrflow_batch_run(HrflowSource *source, HrflowSink *sink,
							 int time_limit, HrflowBatchSummary *summary);

#endif							/* HRFLOW_BATCH_H */
