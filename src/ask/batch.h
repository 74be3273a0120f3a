/*-------------------------------------------------------------------------
 *
 * batch.h
 *		Interface of batches and of their parts.
 *
 * A batch connects a source, which makes the requests for numbered elements,
 * with a sink, which receives the outcomes.  Each kind of source or sink is a
 * struct that begins with HrflowSource or HrflowSink, just as each kind of
 * DestReceiver is a struct that begins with DestReceiver.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_BATCH_H
#define HRFLOW_BATCH_H

#include "postgres.h"

#include "ask/ask.h"
#include "base/shared.h"
#include "lib/ilist.h"

/*
 * Information that an outcome gives about the elements of a batch.
 */
typedef enum HrflowEvidence
{
	HRFLOW_EVIDENCE_NONE,		/* nothing: a request was omitted or abandoned
								 * for a reason unrelated to the element */
	HRFLOW_EVIDENCE_ELEMENT,	/* only something about this element: it was
								 * empty or invalid, or failed in what may be
								 * an outage */
	HRFLOW_EVIDENCE_ALL			/* something about all elements: whether they
								 * are refused for the same reason */
} HrflowEvidence;

/*
 * The outcome of an element, or of one of its links.
 */
typedef struct HrflowOutcome
{
	const HrflowResult *result;
	const char *section;		/* section of the link, or NULL if this is the
								 * outcome of the element as a whole */
	int			item;			/* 0-based index within the section */
	const char *link;			/* the link, if it is only listed or is not
								 * allowed; else NULL */
	HrflowEvidence evidence;
	bool		is_empty;		/* is the element NULL? */

	/* Set by hrflow_outcome_put(): */
	bool		is_last;		/* is this the element's last outcome? */
	bool		is_spoilt;		/* did an earlier outcome of the element have
								 * a status other than "ok"? */
} HrflowOutcome;

/*
 * Set by the make_request callback: the request to send for an element.
 */
typedef struct HrflowElementRequest
{
	const char *url;			/* URL to which the request is sent; if there
								 * is a body, must live as long as the batch */
	const char *body;			/* JSON to POST, or NULL to use GET */
} HrflowElementRequest;

/*
 * Result of the make_request callback, which builds the request for an
 * element.
 */
typedef enum HrflowElementKind
{
	HRFLOW_ELEMENT_ASKED,		/* there is a request */
	HRFLOW_ELEMENT_EMPTY,		/* element is NULL, so there is nothing to
								 * request */
	HRFLOW_ELEMENT_INVALID,		/* element is not valid, so there is no
								 * request */
	HRFLOW_ELEMENT_UNASKED		/* request was omitted for a reason unrelated
								 * to the element */
} HrflowElementKind;

typedef struct HrflowSource HrflowSource;
typedef struct HrflowSink HrflowSink;

typedef struct HrflowSourceMethods
{
	bool		is_links;		/* are the elements links, rather than objects
								 * to request from "endpoint"? */
	HrflowEndpoint endpoint;

	/*
	 * Return the next element to request, or -1 if there is none at the
	 * moment.  The number of an element may be reused after its last outcome.
	 * If this callback is NULL, the elements from 0 to nelements - 1 are
	 * taken in order.
	 */
	int			(*next) (HrflowSource *source);

	/*
	 * Callbacks that hash an element, and tell whether two elements are
	 * equal.  Equal elements are requested only once.  If both callbacks are
	 * NULL, no two elements are considered equal.
	 */
	uint32		(*hash) (const HrflowSource *source, int element);
	bool		(*equal) (const HrflowSource *source, int a, int b);

	/*
	 * Make the request for an element, in the current memory context.  If no
	 * request can be made, set problem->detail, and change problem->status
	 * unless HRFLOW_INVALID_REQUEST, its initial value, is right.
	 */
	HrflowElementKind (*make_request) (HrflowSource *source, int element,
									   HrflowElementRequest *request,
									   HrflowResult *problem);

	/*
	 * Return the "fields" parameter of an element's request, or NULL if there
	 * is none.  Used only if the reply may contain links.
	 */
	Jsonb	   *(*fields) (const HrflowSource *source, int element);

	/*
	 * Record that the API does not know the HrFlow source of an element.
	 * Returns whether all elements are affected.  If this callback is NULL,
	 * they are.
	 */
	bool		(*reject_hrflow_source) (HrflowSource *source, int element);
} HrflowSourceMethods;

struct HrflowSource
{
	const HrflowSourceMethods *methods;
	const HrflowSettings *settings;
	HrflowActivity *activity;	/* shows the progress of the batch */
	int			nelements;		/* number of elements or, if "next" is set,
								 * number of elements that it has returned so
								 * far */
};

/*
 * Overall outcome of a batch.
 */
typedef struct HrflowBatchSummary
{
	int			nelements;		/* number of elements; not used if the source
								 * has a callback "next" */
	bool		is_links;		/* are the elements links? */
	int			nanswered;		/* number of elements whose final result is
								 * that of a reply from the API or, if they
								 * are links, from their host */
	bool		any_ok;			/* did the API send any successful reply? */
	bool		expired;		/* did the time limit end the batch? */
	bool		refused;		/* was the batch stopped? */
	HrflowResult reason;		/* why the batch ended early; only status,
								 * is_link, endpoint, http_status and detail
								 * are set */
} HrflowBatchSummary;

/*
 * Treatment of the links in the reply for a profile or a job.
 */
typedef enum HrflowLinkUse
{
	HRFLOW_LINKS_KEPT,			/* leave the links in the data */
	HRFLOW_LINKS_LISTED,		/* each link is an outcome of its own */
	HRFLOW_LINKS_FOLLOWED		/* fetch each link; its vector is an outcome
								 * of its own */
} HrflowLinkUse;

typedef struct HrflowSinkMethods
{
	HrflowLinkUse link_use;

	/*
	 * Does the batch report to the user?  If so, a refusal is raised as an
	 * error unless something has succeeded, and hrflow_tally_report() is
	 * called at the end.  Unless the elements are links to several hosts, the
	 * batch also stops if an outage lasts too long while elements remain to
	 * be requested, if the first elements are all refused for the same reason
	 * (unless they are links), or if many elements in succession fail with
	 * server errors.
	 */
	bool		reports;

	/*
	 * Receive an outcome of an element.  "repeated" means that this element
	 * is equal to the previous one and has the same outcome.  The outcome is
	 * valid until this callback returns.  The current memory context is reset
	 * after the outcome has been passed on for the last equal element.
	 */
	void		(*put) (HrflowSink *sink, int element,
						const HrflowOutcome *outcome, bool repeated);

	/*
	 * Do other work before each wait for a reply.  Returns the time,
	 * according to hrflow_clock_now(), at which to end the wait and call this
	 * callback again.  May stop the transport or let it expire.  When an
	 * interrupt is pending, this callback is called without delay, and must
	 * process the interrupt itself.  May be NULL.
	 */
	int64		(*work) (HrflowSink *sink, HrflowTransport *transport);
} HrflowSinkMethods;

struct HrflowSink
{
	const HrflowSinkMethods *methods;
};

/*
 * Sets of equal elements.  Both arrays are NULL if the source does not compare
 * its elements.
 */
typedef struct HrflowEqualElements
{
	int		   *next;			/* for each element, the next element equal to
								 * it, or -1 */
	bool	   *is_repeated;	/* for each element, is an earlier element
								 * equal to it? */
} HrflowEqualElements;

/*
 * Return the server to which a result relates.
 */
static inline HrflowServer
hrflow_server_of(const HrflowResult *result)
{
	return result->is_link ? HRFLOW_SERVER_LINKS : HRFLOW_SERVER_API;
}

/*
 * The links of one reply that have no outcome yet.
 */
typedef struct HrflowOpenLinks
{
	int			n;				/* number of links without an outcome */
	bool		any_failed;		/* has any of the reply's links failed so far? */
} HrflowOpenLinks;

/*
 * A request of a batch.  The transport returns a pointer to this struct as the
 * tag of each reply.
 */
typedef struct HrflowBatchRequest
{
	dlist_node	node;			/* in HrflowQueue.links or
								 * HrflowWatchedServer.parked; not used while
								 * the request is in the transport */
	HrflowTarget target;
	const char *url;
	const char *body;			/* JSON to POST, or NULL to use GET */
	int			element;
	HrflowOpenLinks *links;		/* shared by all links of one reply; NULL
								 * unless this is a link from a reply */
	char	   *section;		/* section of a link from a reply, else NULL */
	int			item;
	HrflowResult *failure;		/* result of the last attempt before the
								 * request was last parked; NULL if it never
								 * was */
	int64		resent_at;		/* when the request was last resent after
								 * being parked, or 0 if it never was */
	size_t		size;			/* size of "copy" in bytes, including the NUL */
	char		copy[FLEXIBLE_ARRAY_MEMBER];	/* copy of "body", or of "url"
												 * if there is no body */
} HrflowBatchRequest;

/*
 * The requests of a batch that have no final result yet.
 */
typedef struct HrflowQueue
{
	MemoryContext context;
	HrflowTransport *transport;
	dlist_head	links;			/* links waiting to be submitted, in order */
	size_t		pending;		/* total size of "copy" in all requests that
								 * have not been freed, in bytes */
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
 * Number of rows or elements, in total and by status.
 */
typedef struct HrflowCounts
{
	int64		total;
	int64		by_status[HRFLOW_LAST_STATUS + 1];
} HrflowCounts;

/*
 * Number of rows and of elements of a batch.  Empty elements are not counted.
 */
typedef struct HrflowTally
{
	MemoryContext context;		/* contains the strings in "first" */
	HrflowCounts rows;
	HrflowCounts elements;		/* elements by the status of their only row;
								 * those with rows for links count as "ok" */
	HrflowResult first[HRFLOW_LAST_STATUS + 1]; /* the first failure with each
												 * status */
} HrflowTally;

/*
 * State used to pass outcomes to the sink.
 */
typedef struct HrflowOutcomes
{
	HrflowSink *sink;
	HrflowActivity *activity;
	HrflowTransport *transport;
	MemoryContext context;		/* memory context in which the sink is called;
								 * reset after each outcome has been passed on
								 * for all equal elements */
	HrflowEqualElements equal;
	int64		nrows;			/* number of rows passed to the sink */
	HrflowTally tally;			/* used if the sink reports to the user */
} HrflowOutcomes;

/*
 * A server that is watched for outages.
 */
typedef struct HrflowWatchedServer
{
	int64		answered_at;	/* time of the last result that rules out an
								 * outage, or 0 if there is none */
	int			nfailures;		/* number of attempts since answered_at that
								 * failed as in an outage */
	int64		failing_since;	/* time since which there has been no answer
								 * as far as these failures show */
	dlist_head	parked;			/* requests that wait for the end of an outage */
	int			nparked;		/* length of "parked" */
} HrflowWatchedServer;

/*
 * State used to detect outages, and the requests that wait for their end.
 */
typedef struct HrflowOutage
{
	HrflowQueue *queue;			/* resends requests */
	bool		is_watched;		/* are outages detected? */
	HrflowWatchedServer servers[HRFLOW_NSERVERS];
} HrflowOutage;

/*
 * State of a server, as far as an attempt shows it.
 */
typedef enum HrflowOutageState
{
	HRFLOW_OUTAGE_NONE,			/* the attempt shows no outage, or the server
								 * is not watched */
	HRFLOW_OUTAGE_POSSIBLE,		/* the server may be down, or the attempt does
								 * not show whether it is */
	HRFLOW_OUTAGE_LASTING		/* waiting for the end of the outage is
								 * useless, or has taken too long */
} HrflowOutageState;

/*
 * State used to detect that all elements are refused.
 */
typedef struct HrflowRefusal
{
	bool		is_watched;		/* are outcomes with HRFLOW_EVIDENCE_ALL
								 * considered? */
	bool		on_trial;		/* have all outcomes with HRFLOW_EVIDENCE_ALL
								 * so far, except those that show nothing
								 * about the requests, been refusals for the
								 * same reason?  Always false if the batch is
								 * not watched, or the elements are links,
								 * whose refusal costs nothing. */
	int			nasked;			/* number of elements requested */
	int			nforbidden;		/* number of final results with
								 * HRFLOW_FORBIDDEN */
	int			nrefused;		/* number of elements in succession refused
								 * for the same reason */
	int64		refused_since;	/* when the first of them was refused, if any */
	HrflowStatus status;		/* status of these refusals */
	int			http_status;	/* HTTP status of these refusals, or 0 if
								 * there is none */
} HrflowRefusal;

/* in equal.c */
extern void hrflow_equal_find(HrflowEqualElements *elements,
							  HrflowSource *source);
extern int	hrflow_equal_next(const HrflowEqualElements *elements,
							  int element);
extern bool hrflow_equal_is_repeated(const HrflowEqualElements *elements,
									 int element);

/* in outcome.c */
extern void hrflow_outcome_init(HrflowOutcomes *outcomes, HrflowSink *sink,
								HrflowActivity *activity,
								MemoryContext context);
extern void hrflow_outcome_put(HrflowOutcomes *outcomes, int element,
							   HrflowOpenLinks *links, HrflowOutcome *outcome);

/* in queue.c */
extern void hrflow_queue_init(HrflowQueue *queue, MemoryContext context,
							  HrflowTransport *transport);
extern void hrflow_queue_add_element(HrflowQueue *queue, int element,
									 const HrflowElementRequest *wanted);
extern void hrflow_queue_add_link(HrflowQueue *queue, int element,
								  const HrflowLink *link, bool by_name,
								  HrflowOpenLinks *links);
extern void hrflow_queue_resend(HrflowQueue *queue,
								HrflowBatchRequest *request);
extern void hrflow_queue_keep_failure(HrflowQueue *queue,
									  HrflowBatchRequest *request,
									  const HrflowResult *result);
extern void hrflow_queue_free(HrflowQueue *queue, HrflowBatchRequest *request);
extern HrflowBatchRequest *hrflow_queue_take_link(HrflowQueue *queue);
extern void hrflow_queue_send_links(HrflowQueue *queue);

/* in outage.c */
extern bool hrflow_outage_could_cause(const HrflowResult *result);
extern bool hrflow_outage_can_watch(HrflowSource *source,
									MemoryContext context);
extern void hrflow_outage_init(HrflowOutage *outage, HrflowQueue *queue,
							   bool is_watched);
extern bool hrflow_outage_may_ask(const HrflowOutage *outage);
extern bool hrflow_outage_park(HrflowOutage *outage,
							   HrflowBatchRequest *request,
							   const HrflowResult *result);
extern HrflowBatchRequest *hrflow_outage_unpark(HrflowOutage *outage,
												HrflowServer server);
extern HrflowOutageState hrflow_outage_count_attempt(HrflowOutage *outage,
													 const HrflowReply *reply,
													 const HrflowResult *result);
extern bool hrflow_outage_should_wait(const HrflowOutage *outage,
									  int nunasked);
extern bool hrflow_outage_probe(HrflowOutage *outage);

/* in refusal.c */
extern void hrflow_refusal_init(HrflowRefusal *refusal, bool is_watched,
								bool on_trial);
extern bool hrflow_refusal_may_ask(const HrflowRefusal *refusal);
extern void hrflow_refusal_count_asked(HrflowRefusal *refusal);
extern bool hrflow_refusal_count_answer(HrflowRefusal *refusal,
										HrflowSource *source, int element,
										const HrflowResult *result);
extern bool hrflow_refusal_count_outcome(HrflowRefusal *refusal,
										 const HrflowResult *result,
										 bool is_last, int nunasked);

/* in tally.c */
extern void hrflow_tally_count(HrflowTally *tally,
							   const HrflowOutcome *outcome);
extern bool hrflow_tally_has_succeeded(const HrflowTally *tally,
									   const HrflowBatchSummary *summary);
HRFLOW_NORETURN extern void hrflow_tally_raise(const HrflowBatchSummary *summary);
extern void hrflow_tally_report(const HrflowTally *tally,
								const HrflowBatchSummary *summary);

/* in estimate.c */
extern double hrflow_estimate_items(Jsonb *fields);

/* in progress.c */
extern void hrflow_progress_begin(HrflowProgress *progress,
								  const HrflowSink *sink);
extern int64 hrflow_progress_due(const HrflowProgress *progress);
extern void hrflow_progress_show(HrflowProgress *progress,
								 const HrflowTally *tally, int nasked,
								 int nelements);

/* in batch.c */
extern void hrflow_batch_run(HrflowSource *source, HrflowSink *sink,
							 int time_limit, HrflowBatchSummary *summary);

#endif							/* HRFLOW_BATCH_H */
