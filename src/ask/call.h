/*-------------------------------------------------------------------------
 *
 * call.h
 *		One call of a SQL function that requests a single object or link.
 *
 * A call is processed in these steps: read its arguments, make a request and
 * submit it to a transport, take the replies, and finally return the value or
 * raise the error.  The SQL functions perform all steps at once; the
 * read-ahead has many calls in progress at the same time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_CALL_H
#define HRFLOW_CALL_H

#include "postgres.h"

#include "ask/ask.h"
#include "fmgr.h"

typedef struct HrflowCall HrflowCall;

/*
 * Describes a SQL function that returns one value, or the links of one
 * profile.
 */
typedef struct HrflowFunction
{
	PGFunction	entry;			/* C function */
	HrflowCaller caller;
	bool		needs_key;		/* does the function send a request to the
								 * API, rather than only fetch a link? */
	HrflowEndpoint endpoint;	/* endpoint requested, if needs_key */
	bool		follows_link;	/* does the API reply with a link, which the
								 * function then fetches? */
	bool		returns_vector; /* does the function return real[], rather
								 * than jsonb or a set of links? */

	/*
	 * Read the arguments into the call.  May set call->problem, or set
	 * call->state to HRFLOW_CALL_EMPTY.
	 */
	void		(*read) (HrflowCall *call, const NullableDatum *args);

	/*
	 * Return the URL of the request to the API, palloc'd.  Return NULL if the
	 * URL would be too long or, with call->problem set, if the settings do
	 * not allow the request.  This callback is NULL if needs_key is false.
	 */
	char	   *(*make_url) (HrflowCall *call);

	/*
	 * Add an error context line that identifies the requested object.  This
	 * callback is NULL if the function needs no such line.
	 */
	void		(*add_context) (const HrflowCall *call);
} HrflowFunction;

typedef enum HrflowCallState
{
	HRFLOW_CALL_EMPTY,			/* nothing to request; the value is NULL */
	HRFLOW_CALL_INVALID,		/* the call cannot be made; see "problem" */
	HRFLOW_CALL_READ,			/* the arguments have been read */
	HRFLOW_CALL_READY,			/* the next request is ready to be submitted */
	HRFLOW_CALL_SENT,			/* a request has been submitted */
	HRFLOW_CALL_DONE			/* "result" is final */
} HrflowCallState;

/*
 * Everything that a call refers to, except the settings and static data, is
 * allocated in the memory context that is current in hrflow_call_read(),
 * hrflow_call_prepare() and hrflow_call_take_reply(), which must be the same
 * in all three.  However, hrflow_ahead_take() may replace the call with one
 * that is allocated in a memory context of the read-ahead node.
 */
struct HrflowCall
{
	const HrflowFunction *function;
	const HrflowSettings *settings; /* NULL until hrflow_call_prepare(); must
									 * outlive the call */
	HrflowCallState state;
	HrflowProblem problem;		/* error in the arguments or the request; its
								 * message is NULL if there is none */

	/* The arguments. */
	union
	{
		HrflowQuery profile;
		HrflowJobQuery job;
	}			query;
	Jsonb	   *fields;			/* "fields" parameter, or NULL to omit it */
	const char *id;				/* id of the profile or job in the server
								 * encoding, or NULL */
	int			length;			/* length of the text, or of the request for a
								 * document, in bytes */
	bool		returns_sequences;	/* is a vector for each part of the
									 * document requested? */

	/* The current request. */
	HrflowTarget target;
	char	   *url;
	char	   *body;			/* JSON to POST, or NULL */
	char	   *link;			/* link to fetch, in the server encoding; NULL
								 * if no link is known */

	HrflowResult result;
};

/* in single.c */
extern const HrflowFunction *hrflow_single_find(PGFunction entry);

/* in ahead_live.c */
extern bool hrflow_ahead_take(struct EState *estate, HrflowCall *call);

/* in call.c */
extern void hrflow_call_add_context(void *call);
extern void hrflow_call_read(HrflowCall *call, const HrflowFunction *function,
							 const NullableDatum *args);
extern void hrflow_call_prepare(HrflowCall *call,
								const HrflowSettings *settings);
extern void hrflow_call_submit(HrflowCall *call, HrflowTransport *transport);
extern void hrflow_call_take_reply(HrflowCall *call,
								   HrflowTransport *transport,
								   HrflowReply *reply);
extern Datum hrflow_call_value(HrflowCall *call, bool *isnull);
extern List *hrflow_call_links(HrflowCall *call);
extern Datum hrflow_call_run(HrflowCall *call, const HrflowFunction *function,
							 FunctionCallInfo fcinfo, bool *isnull);

#endif							/* HRFLOW_CALL_H */
