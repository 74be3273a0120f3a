/*-------------------------------------------------------------------------
 *
 * transport.h
 *		Requests and replies: URLs go in, bodies come out.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_TRANSPORT_H
#define HRFLOW_TRANSPORT_H

#include "postgres.h"

#include "base/activity.h"
#include "base/base.h"

/*
 * Where a request goes: what it carries, and what limits it.
 */
typedef enum HrflowTarget
{
	HRFLOW_TO_API,				/* with the key, at the account's rate */
	HRFLOW_TO_LINK,				/* to a host that link_hosts names */
	HRFLOW_TO_GUARDED_LINK		/* to one that a pattern lets through: not to
								 * a private address */
} HrflowTarget;

#define HRFLOW_IS_LINK(target) ((target) != HRFLOW_TO_API)

/*
 * One try's outcome, as the transport hands it out.
 */
typedef struct HrflowReply
{
	HrflowStatus status;		/* HRFLOW_OK: a whole reply came, of whatever
								 * kind; else what went wrong on the way */
	bool		transient;		/* another try may do better */
	const char *detail;			/* what went wrong, in a few words; or NULL */
	int			http_status;	/* 0 when none came */
	const char *content_type;	/* NULL when none came */
	const char *body;			/* a NUL follows its last byte */
	size_t		length;			/* bytes of body */
	int			retry_after;	/* seconds the server asked for; 0 when none */
	int			attempts;		/* tries so far, this one included */
	bool		stopped;		/* no try came to its end: the transport was
								 * stopped, or the batch's time is up */
	bool		expired;		/* it is the latter */
	HrflowTarget target;
	void	   *tag;			/* the submitter's */
	struct HrflowTransfer *transfer;	/* the transport's own */
} HrflowReply;

/*
 * The requests of one statement, or of one scan.  A backend may have several:
 * a function that one of them waits for may make requests of its own.
 */
typedef struct HrflowTransport HrflowTransport;

/* in transport.c */
extern HrflowTransport *hrflow_transport_begin(const HrflowSettings *settings,
											   HrflowActivity *activity,
											   int time_limit);
extern void hrflow_transport_submit(HrflowTransport *transport,
									HrflowTarget target, const char *url,
									void *tag);
extern void hrflow_transport_post(HrflowTransport *transport, const char *url,
								  const char *body, void *tag);
extern int	hrflow_transport_room(const HrflowTransport *transport);
extern int	hrflow_transport_width(const HrflowTransport *transport);
extern int	hrflow_transport_most_in_flight(const HrflowTransport *transport);
extern int	hrflow_transport_room_for_links(HrflowTransport *transport);
extern void hrflow_transport_stop(HrflowTransport *transport);
extern void hrflow_transport_expire(HrflowTransport *transport);
extern bool hrflow_transport_expired(const HrflowTransport *transport);
extern void hrflow_transport_work(HrflowTransport *transport);
extern void hrflow_transport_pause(HrflowTransport *transport, int64 duration);
extern HrflowReply *hrflow_transport_next(HrflowTransport *transport);
extern HrflowReply *hrflow_transport_next_until(HrflowTransport *transport,
												int64 until, bool *woken);
extern HrflowReply *hrflow_transport_poll(HrflowTransport *transport);
extern void hrflow_transport_suspend(HrflowTransport *transport);
extern bool hrflow_transport_retry(HrflowTransport *transport,
								   HrflowReply *reply, HrflowStatus status,
								   bool transient);
extern void hrflow_transport_release(HrflowTransport *transport,
									 HrflowReply *reply);
extern void hrflow_transport_end(HrflowTransport *transport);

/* in budget.c */
extern int64 hrflow_budget_sent(void);

/* in speed.c */
extern double hrflow_speed_estimate(const HrflowSettings *settings,
									int64 nrequests, int64 nlinks);

#endif							/* HRFLOW_TRANSPORT_H */
