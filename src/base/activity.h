/*-------------------------------------------------------------------------
 *
 * activity.h
 *		What a backend is doing in our functions, for others to see.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_ACTIVITY_H
#define HRFLOW_ACTIVITY_H

#include "postgres.h"

#include "base/base.h"
#include "datatype/timestamp.h"
#include "lib/ilist.h"

/*
 * Why a backend sleeps.
 */
typedef enum HrflowWaitReason
{
	HRFLOW_FOR_NOTHING,			/* it does not */
	HRFLOW_FOR_NETWORK,			/* a reply is to come */
	HRFLOW_FOR_RATE,			/* the account's rate, or its pause, does not
								 * admit the next request yet */
	HRFLOW_FOR_RETRY,			/* the time of a retry has not come */
	HRFLOW_FOR_MEMORY,			/* replies take as much memory as they may */
	HRFLOW_FOR_LOCK				/* others have locked rows of the store */
} HrflowWaitReason;

/* Bytes of a store's name that are shown, the NUL included. */
#define HRFLOW_SHOWN_STORE (2 * NAMEDATALEN)

/*
 * What is shown of an activity.  It is copied as a whole, and so has no
 * pointers.
 */
typedef struct HrflowActivityState
{
	HrflowCaller caller;
	Oid			role;			/* as the client has set it */
	TimestampTz started_at;
	int64		ntotal;			/* elements; -1: not known */
	int64		ndone;			/* of which nothing more comes, ... */
	int64		nok;			/* all of whose results are "ok" */
	int64		nrequests;		/* to the API and of links, retries included */
	int64		nretries;
	int			nin_flight;		/* requests */
	HrflowWaitReason waiting_for;
	TimestampTz resumes_at;		/* when that is over; 0: not known */
	char		store[HRFLOW_SHOWN_STORE];	/* its name in the encoding of the
											 * database; empty: none */
} HrflowActivityState;

/*
 * One call of a SQL function, or a scan that reads calls ahead.  Others see
 * "state" as it was when hrflow_activity_publish() was called last.
 */
typedef struct HrflowActivity
{
	HrflowActivityState state;
	dlist_node	node;			/* among the backend's */
	bool		is_suspended;	/* control is with the client */
	bool		has_ended;
	MemoryContextCallback on_reset;
} HrflowActivity;

/*
 * The place of one backend in shared memory.  Only that backend writes to it,
 * without a lock: "changes" is odd meanwhile, as in PostgreSQL's
 * PgBackendStatus.
 */
typedef struct HrflowActivitySlot
{
	uint32		changes;
	int			pid;			/* 0: none of our functions runs */
	HrflowActivityState state;
} HrflowActivitySlot;

/* in activity.c */
extern HrflowActivity *hrflow_activity_begin(HrflowCaller caller,
											 const char *store);
extern void hrflow_activity_end(HrflowActivity *activity);
extern void hrflow_activity_suspend(HrflowActivity *activity,
									bool is_suspended);
extern void hrflow_activity_count(HrflowActivity *activity, bool is_ok);
extern void hrflow_activity_wait(HrflowActivity *activity,
								 HrflowWaitReason reason, int64 resumes_at);
extern void hrflow_activity_publish(void);
extern void hrflow_activity_go_on(void);

#endif							/* HRFLOW_ACTIVITY_H */
