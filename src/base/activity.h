/*-------------------------------------------------------------------------
 *
 * activity.h
 *		Declarations for tracking what each backend is doing in our functions,
 *		which the view hrflow_embed_activity shows.
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
 * Reason for a backend's wait.
 */
typedef enum HrflowWaitReason
{
	HRFLOW_FOR_NOTHING,			/* not waiting */
	HRFLOW_FOR_NETWORK,			/* waiting for a reply */
	HRFLOW_FOR_RATE,			/* the account's rate limit or pause does not
								 * admit the next request yet */
	HRFLOW_FOR_RETRY,			/* the next retry is not due yet, or a pause
								 * during an outage has not ended */
	HRFLOW_FOR_MEMORY,			/* the memory limit for replies
								 * (HRFLOW_MAX_BUFFERED) has been reached */
	HRFLOW_FOR_LOCK				/* other transactions hold locks on rows of
								 * the store */
} HrflowWaitReason;

/* Maximum size of a displayed store name, in bytes, including the NUL. */
#define HRFLOW_SHOWN_STORE (2 * NAMEDATALEN)

/*
 * The part of an activity that other backends see.  It is copied byte by byte
 * into shared memory, so it must not contain pointers.
 */
typedef struct HrflowActivityState
{
	HrflowCaller caller;
	Oid			role;			/* GetOuterUserId() when the activity began */
	TimestampTz started_at;
	int64		ntotal;			/* number of elements, or -1 if unknown */
	int64		ndone;			/* number of complete elements */
	int64		nok;			/* number of complete elements whose results
								 * are all "ok" */
	int64		nrequests;		/* number of requests sent to the API and for
								 * links, including retries */
	int64		nretries;
	int			nin_flight;		/* number of requests in flight when the
								 * backend last began to wait, or 0 once the
								 * transport has ended */
	HrflowWaitReason waiting_for;
	TimestampTz resumes_at;		/* when the wait is expected to end, or 0 if
								 * unknown */
	char		store[HRFLOW_SHOWN_STORE];	/* store being refreshed, in the
											 * encoding of the backend's
											 * database; empty if there is
											 * none */
} HrflowActivityState;

/*
 * A call of one of our SQL functions, or a scan that issues calls ahead of
 * their rows.  Other backends see the "state" of at most one activity of a
 * backend, as it was when hrflow_activity_publish() was last called.
 */
typedef struct HrflowActivity
{
	HrflowActivityState state;
	dlist_node	node;			/* in activity.c's list of this backend's
								 * activities */
	bool		is_suspended;	/* does the activity belong to a cursor from
								 * which the client is not fetching? */
	bool		outlives_transactions;	/* does the activity belong to a
										 * procedure that commits and rolls
										 * back? */
	bool		has_ended;
	MemoryContextCallback on_reset;
} HrflowActivity;

/*
 * One backend's entry in shared memory.  Only that backend writes to it.
 * There is no lock; instead, "changes" is odd during a write, like
 * st_changecount in PostgreSQL's PgBackendStatus.
 */
typedef struct HrflowActivitySlot
{
	uint32		changes;
	int			pid;			/* 0 if the backend has no activity to show */
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
