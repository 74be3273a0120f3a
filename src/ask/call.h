/*-------------------------------------------------------------------------
 *
 * call.h
 *		One call of a SQL function that returns one value.
 *
 * A call goes through its states in order: its arguments are read, its request
 * is made and submitted to a transport, the replies are taken, and at last its
 * value is returned or its error raised.  The SQL functions themselves do all
 * of that at once; the read-ahead has many calls under way.
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
 * A SQL function that returns one value, or the links of one profile.
 */
typedef struct HrflowFunction
{
	PGFunction	entry;			/* its C function */
	HrflowCaller caller;
	bool		needs_key;		/* it asks the API, else it fetches a link */
	HrflowEndpoint endpoint;	/* of the API, where it asks that */
	bool		follows_link;	/* the API's answer is a link, which is
								 * fetched */
	bool		returns_vector; /* real[], else jsonb */

	/* Reads the arguments into the call.  May set its problem. */
	void		(*read) (HrflowCall *call, const NullableDatum *args);

	/* The URL of the API's request, palloc'd; NULL when it is too long. */
	char	   *(*make_url) (const HrflowCall *call);

	/* Calls errcontext(); NULL when the link, if any, says enough. */
	void		(*add_context) (const HrflowCall *call);
} HrflowFunction;

typedef enum HrflowCallState
{
	HRFLOW_CALL_EMPTY,			/* there is nothing to ask: the value is NULL */
	HRFLOW_CALL_INVALID,		/* "problem" says why it cannot be asked */
	HRFLOW_CALL_READ,			/* the arguments are read */
	HRFLOW_CALL_READY,			/* the next request can be submitted */
	HRFLOW_CALL_SENT,			/* a request is with the transport */
	HRFLOW_CALL_DONE			/* "result" is final */
} HrflowCallState;

/*
 * All that the call refers to lives in the memory context that is current
 * when its functions are called; it must be the same one for all of them.
 */
struct HrflowCall
{
	const HrflowFunction *function;
	const HrflowSettings *settings; /* NULL until the first request is made;
									 * must outlive the call */
	HrflowCallState state;
	HrflowProblem problem;		/* of the arguments or the request */

	/* What the arguments were. */
	union
	{
		HrflowQuery profile;
		HrflowJobQuery job;
	}			query;
	Jsonb	   *fields;			/* NULL: left out */
	const char *id;				/* of the profile or job in the server
								 * encoding, or NULL */
	int			length;			/* of the text, in bytes */

	/* The request that is made. */
	HrflowTarget target;
	char	   *url;
	char	   *body;			/* JSON to be posted, or NULL */
	char	   *link;			/* server encoding; set while, and after, a
								 * link is fetched */

	HrflowResult result;
};

/* in single.c */
extern const HrflowFunction *hrflow_single_find(PGFunction entry);

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
