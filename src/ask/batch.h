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
#include "lib/ilist.h"

/*
 * What became of an element, or of one of its links.
 */
typedef struct HrflowOutcome
{
	const HrflowResult *result;
	const char *section;		/* of the link; NULL: this is about the
								 * element as a whole */
	int			item;			/* 0-based within the section */
	const char *link;			/* where links are listed; else NULL */
	bool		unasked;		/* it was not asked for to the end, for a
								 * reason that is not the element's */
	bool		is_last;		/* nothing more comes of the element */
	bool		is_spoilt;		/* an earlier outcome of it was not "ok" */
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

/*
 * Whether there is a request for an element.
 */
typedef enum HrflowElementKind
{
	HRFLOW_ELEMENT_ASKED,		/* there is */
	HRFLOW_ELEMENT_EMPTY,		/* it is NULL: there is nothing to ask for */
	HRFLOW_ELEMENT_INVALID,		/* it cannot be asked for */
	HRFLOW_ELEMENT_UNASKED		/* it is not asked for, for a reason that is
								 * not the element's */
} HrflowElementKind;

typedef struct HrflowSource HrflowSource;
typedef struct HrflowSink HrflowSink;

typedef struct HrflowSourceMethods
{
	bool		is_links;		/* elements are links, else of the API's ... */
	HrflowEndpoint endpoint;

	/*
	 * The element to ask for next, or -1 for none at present.  The number of
	 * an element may be used again after its last outcome.  NULL: all
	 * elements are asked for, in their order.
	 */
	int			(*next) (HrflowSource *source);

	/* Elements that are equal are asked for once; NULL: none are. */
	uint32		(*hash) (const HrflowSource *source, int element);
	bool		(*equal) (const HrflowSource *source, int a, int b);

	/*
	 * Make the request for an element, in the current memory context.  Where
	 * there is none, sets the detail of *problem, and its status unless that
	 * is HRFLOW_INVALID_REQUEST.
	 */
	HrflowElementKind (*make_request) (HrflowSource *source, int element,
									   HrflowElementRequest *request,
									   HrflowResult *problem);

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
	HrflowActivity *activity;	/* shows the batch */
	int			nelements;		/* numbered from 0; those asked for so far,
								 * where "next" says which */
};

/*
 * How a batch went.
 */
typedef struct HrflowBatchSummary
{
	int			nelements;
	int			nanswered;		/* elements with a reply of the API */
	bool		any_ok;			/* of these replies */
	bool		expired;		/* its time was over before its end */
	bool		refused;		/* nothing more was asked, because of ... */
	HrflowResult refusal;
} HrflowBatchSummary;

/*
 * What is done with the links in an answer about a profile.
 */
typedef enum HrflowLinkUse
{
	HRFLOW_LINKS_KEPT,			/* nothing: they are in the answer's data */
	HRFLOW_LINKS_LISTED,		/* each is an outcome */
	HRFLOW_LINKS_FOLLOWED		/* the vector that each leads to is an outcome */
} HrflowLinkUse;

typedef struct HrflowSinkMethods
{
	HrflowLinkUse link_use;

	/*
	 * Is this for a user?  Then a refusal is raised when nothing succeeded,
	 * and a WARNING says at the end why the batch failed or was not finished;
	 * requests that all meet the same refusal, and an outage, stop it.
	 */
	bool		reports;

	/*
	 * Take what became of an element.  "repeated" says that this element is
	 * equal to the one before, and the outcome the same.  The outcome lives
	 * until this returns; the current memory context is reset some time after
	 * the last equal element.
	 */
	void		(*put) (HrflowSink *sink, int element,
						const HrflowOutcome *outcome, bool repeated);

	/*
	 * Do other work between replies.  Returns when to be called again at the
	 * latest, by our clock.  May stop the transport.  It is called at once
	 * when an interrupt is pending, which is left to it.  NULL: there is
	 * none.
	 */
	int64		(*work) (HrflowSink *sink, HrflowTransport *transport);
} HrflowSinkMethods;

struct HrflowSink
{
	const HrflowSinkMethods *methods;
};

/*
 * Which elements are equal.  Both arrays are NULL where none are.
 */
typedef struct HrflowEqualElements
{
	int		   *next;			/* of each element, the next one equal to it;
								 * or -1 */
	bool	   *is_repeated;	/* whether an earlier one is equal to it */
} HrflowEqualElements;

/*
 * The links of an answer that have no outcome yet.
 */
typedef struct HrflowOpenLinks
{
	int			n;
	bool		any_failed;		/* of the others */
} HrflowOpenLinks;

/*
 * A request, and what it is for; the tag of its reply.
 */
typedef struct HrflowBatchRequest
{
	dlist_node	node;			/* in the queue's links or parked */
	HrflowTarget target;
	const char *post_url;		/* where the body goes; NULL: it is a GET */
	int			element;
	HrflowOpenLinks *links;		/* of the same answer; NULL: it is not one of
								 * them */
	char	   *section;		/* of a profile's link; else NULL */
	int			item;
	HrflowResult *failure;		/* of all tries; NULL unless it was parked */
	int64		resent_at;		/* when it was sent again; 0: never */
	size_t		size;			/* of what follows */
	char		sent[FLEXIBLE_ARRAY_MEMBER];	/* body to POST, or URL */
} HrflowBatchRequest;

/*
 * The requests that have no result yet.
 */
typedef struct HrflowQueue
{
	MemoryContext context;
	HrflowTransport *transport;
	dlist_head	links;			/* to be sent, in this order */
	dlist_head	parked[2];		/* to the API and for links: all their tries
								 * failed in an outage */
	int			nparked[2];
	size_t		pending;		/* bytes of URLs and bodies */
} HrflowQueue;

/*
 * What a person at a terminal is told of a batch.
 */
typedef struct HrflowProgress
{
	bool		is_shown;
	int64		began_at;
	int64		shown_at;		/* when it was shown last */
} HrflowProgress;

/*
 * What became of the elements of a batch, by row.
 */
typedef struct HrflowTally
{
	MemoryContext context;		/* of the texts in "first" */
	int64		nrows;			/* those of empty elements left out */
	int64		by_status[HRFLOW_LAST_STATUS + 1];
	HrflowResult first[HRFLOW_LAST_STATUS + 1]; /* the first one of each
												 * status that failed */
} HrflowTally;

/*
 * Whether the API, or the host of links, answers.
 */
typedef struct HrflowServerHealth
{
	int64		answered_at;	/* when a try was answered last, or the batch
								 * began */
	int			nfailures;		/* tries without an answer since */
} HrflowServerHealth;

/*
 * Whether it is of use to go on with a batch.
 */
typedef struct HrflowHealth
{
	MemoryContext context;		/* of the text in "refusal" */
	HrflowServerHealth servers[2];	/* the API; the host of links */
	bool		on_trial;		/* every element so far was refused, ... */
	int			nasked;			/* of so many that the API was asked for, */
	int			nrefused;		/* so many, */
	int			last_refused;	/* this one last; -1: none */
	HrflowResult refusal;		/* for this reason */
} HrflowHealth;

/*
 * The number of tries, and of elements, without an answer that are taken for
 * an outage.
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
