/*-------------------------------------------------------------------------
 *
 * call.h
 *		One call of a SQL function that returns one value.
 *
 * A call goes through its states in order: read the arguments, make the
 * request and submit it to a transport, take the replies, and finally return
 * the value or raise the error.  The SQL functions do all of that at once; the
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
	bool		needs_key;		/* does it send a request to the API, rather
								 * than fetch a link? */
	HrflowEndpoint endpoint;	/* endpoint of the API, if needs_key */
	bool		follows_link;	/* is the API's answer a link that is to be
								 * fetched? */
	bool		returns_vector; /* does it return real[], rather than jsonb? */

	/* Reads the arguments into the call.  May set call->problem. */
	void		(*read) (HrflowCall *call, const NullableDatum *args);

	/*
	 * Returns the URL of the request to the API, palloc'd, or NULL if it
	 * would be too long, or the settings do not allow the request, in which
	 * case the problem of the call is set.
	 */
	char	   *(*make_url) (HrflowCall *call);

	/*
	 * Calls errcontext().  NULL if the context line about the link suffices.
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
 * Everything a call refers to lives in the memory context that is current in
 * the functions below, which must be the same for all of them.
 */
struct HrflowCall
{
	const HrflowFunction *function;
	const HrflowSettings *settings; /* NULL until the first request is made;
									 * must outlive the call */
	HrflowCallState state;
	HrflowProblem problem;		/* an error about the arguments or the request */

	/* The arguments. */
	union
	{
		HrflowQuery profile;
		HrflowJobQuery job;
	}			query;
	Jsonb	   *fields;			/* NULL: omitted */
	const char *id;				/* id of the profile or job in the server
								 * encoding, or NULL */
	int			length;			/* length of the text, or of the request for a
								 * document, in bytes */
	bool		returns_sequences;	/* return a vector for each part of the
									 * document? */

	/* The current request. */
	HrflowTarget target;
	char	   *url;
	char	   *body;			/* JSON to POST, or NULL */
	char	   *link;			/* the link that is being or has been fetched,
								 * in the server encoding; else NULL */

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
