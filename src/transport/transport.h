/*-------------------------------------------------------------------------
 *
 * transport.h
 *		Interface of the transport, which sends HTTP requests and returns the
 *		replies.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_TRANSPORT_H
#define HRFLOW_TRANSPORT_H

#include "postgres.h"

#include "base/activity.h"
#include "base/base.h"

/*
 * Destination of a request, which determines its headers and limits.
 */
typedef enum HrflowTarget
{
	HRFLOW_TO_API,				/* sent with the key, within the account's
								 * rate limit */
	HRFLOW_TO_LINK,				/* link to a host listed in link_hosts by its
								 * exact name */
	HRFLOW_TO_GUARDED_LINK		/* link to a host allowed only by a pattern;
								 * fetched from public addresses only, unless
								 * a proxy is used */
} HrflowTarget;

#define HRFLOW_IS_LINK(target) ((target) != HRFLOW_TO_API)

/*
 * The outcome of an attempt.
 */
typedef struct HrflowReply
{
	HrflowStatus status;		/* HRFLOW_OK if a complete reply was received,
								 * whatever its HTTP status; else why there is
								 * none.  Meaningless if "stopped" */
	bool		transient;		/* if there is no complete reply, might a
								 * retry succeed? */
	const char *detail;			/* error detail, or NULL */
	int			http_status;	/* 0 if no reply was received */
	const char *content_type;	/* NULL if no content type was received */
	const char *body;			/* NUL-terminated; undefined if http_status is
								 * 0 */
	size_t		length;			/* size of the body in bytes */
	int			retry_after;	/* Retry-After of the reply, in seconds, or 0
								 * if there is none */
	bool		is_limited;		/* did the server refuse the request because
								 * of a rate limit? */
	int			attempts;		/* number of earlier attempts that count
								 * towards max_attempts, plus 1 if this
								 * attempt was started */
	bool		stopped;		/* was the request abandoned, because the
								 * transport was stopped or its time limit
								 * expired? */
	bool		expired;		/* if the request was abandoned, did the time
								 * limit expire? */
	bool		was_sent;		/* could the server have received the request
								 * in this attempt? */
	int64		sent_at;		/* if the request was abandoned, when its
								 * first attempt was sent, or 0 if none was */
	HrflowTarget target;
	void	   *tag;			/* passed by the submitter */
	struct HrflowTransfer *transfer;	/* internal to the transport */
} HrflowReply;

/*
 * The requests of one call of a function, or of one scan that issues calls
 * ahead.  A backend can have several transports: while a statement has
 * requests in flight, it may call a function that sends requests of its own.
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
extern void hrflow_transport_stop(HrflowTransport *transport, bool at_limit);
extern void hrflow_transport_stop_links(HrflowTransport *transport);
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

/* in origin.c */
extern bool hrflow_origin_is_same(const char *a, const char *b);

/* in failure.c */
extern int64 hrflow_failure_since(const HrflowReply *reply);

/* in budget.c */
extern int64 hrflow_budget_sent(void);

/* in speed.c */
extern double hrflow_speed_estimate(const HrflowSettings *settings,
									int64 nrequests, int64 nlinks);

/* in rate.c */
extern double hrflow_rate_interval(const HrflowSettings *settings,
								   int64 *burst);

#endif							/* HRFLOW_TRANSPORT_H */
