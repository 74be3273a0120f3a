/*-------------------------------------------------------------------------
 *
 * refresh.h
 *		What the files share of which a refresh is made.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_REFRESH_H
#define HRFLOW_REFRESH_H

#include "ask/ask.h"
#include "store/store.h"

/*
 * The state of a profile, in the column "state".
 */
typedef enum HrflowState
{
	HRFLOW_STATE_DUE,			/* never fetched, or to be fetched again */
	HRFLOW_STATE_OK,
	HRFLOW_STATE_MISSING,		/* unknown to the API when asked last */
	HRFLOW_STATE_GONE,			/* unknown twice; its vectors are erased */
	HRFLOW_STATE_FAILED			/* given up */
} HrflowState;

typedef struct HrflowVector
{
	char	   *section;
	int			item;
	ArrayType  *value;
} HrflowVector;

/*
 * A profile that was claimed, and what became of it.
 */
typedef struct HrflowProfile
{
	MemoryContext context;		/* the batch's */
	char	   *source_id;
	char	   *identifier;
	int64		generation;		/* when it was claimed */
	int			attempts;		/* this one included */
	HrflowState claimed_state;	/* when it was claimed */

	/* What the fetch gave. */
	HrflowStatus status;		/* the first that is neither HRFLOW_OK nor
								 * HRFLOW_NO_VECTOR */
	bool		unasked;		/* it was not asked for to the end */
	bool		is_exhausted;	/* nor at all: its attempts are used up */
	bool		is_postponed;	/* its batch says nothing of it */
	bool		no_vector;		/* some section has none */
	int			http_status;	/* 0: none */
	char	   *error;
	List	   *vectors;		/* HrflowVector */

	/* What the state table has, or is to have. */
	bool		is_ours;		/* the lease is still ours, */
	bool		is_current;		/* and nothing has changed since */
	HrflowState state;
	TimestampTz due_at;
	bool		has_due_at;
	int			old_http_status;
	char	   *old_error;
	TimestampTz failed_at;		/* see set_failed_at() */
	bool		has_failed_at;
	bool		is_refreshed;	/* in this run */
} HrflowProfile;

/*
 * A profile that the API did not know twice, to be erased.
 */
typedef struct HrflowGone
{
	char	   *source_id;
	char	   *identifier;
	int64		generation;
} HrflowGone;

typedef struct HrflowRun
{
	MemoryContext context;		/* as long as the call */
	MemoryContext batch_context;	/* reset after each batch */

	/* The arguments. */
	Oid			vectors;
	Oid			profiles;		/* InvalidOid: by its name */
	Jsonb	   *fields;			/* NULL: left out */
	const char *fields_text;
	ArrayType  *sections;		/* those of "fields"; if that is left out,
								 * those that are known */
	List	   *parts;			/* they one by one: Jsonb */
	Interval   *max_age;
	TimestampTz deadline;		/* of the time budget */
	int64		max_profiles;
	int			batch_size;
	int			max_attempts;

	char	   *name;			/* of the store */
	HrflowIdentifier identifier;
	TimestampTz started;
	TimestampTz lease;			/* when that of the present batch ends */
	List	   *bad_sources;	/* those the API does not know: char * */
	List	   *gone;			/* to be erased at the end: HrflowGone */
	bool		stopped;		/* nothing more is to be claimed */

	int64		nclaimed;
	int64		nok;
	int64		nretry;			/* failed, and to be tried again */
	int64		nfailed;
	int64		nmissing;
	int64		ngone;

	bool		is_silent;
	int64		ndue;			/* when the run began; for a person */
	TimestampTz reported;		/* when progress was last shown */
} HrflowRun;

/* in state.c */
extern const char *hrflow_state_name(HrflowState state);
extern HrflowState hrflow_state_parse(const char *name);
extern TimestampTz hrflow_state_due_after(const Interval *age);
extern void hrflow_state_set(HrflowRun *run, HrflowProfile *profile,
							 bool refused);
extern char *hrflow_state_outage(HrflowRun *run, List *profiles, int limit);

/* in work.c */
extern void hrflow_work_begin(HrflowRun *run, HrflowStore *store);
extern void hrflow_work_end(HrflowStore *store);
extern void hrflow_work_add_keys(HrflowParameters *parameters,
								 List *profiles);

/* in claim.c */
extern List *hrflow_claim(HrflowRun *run, int *limit);
extern void hrflow_claim_release(HrflowRun *run, List *profiles);

/* in fetch.c */
extern void hrflow_fetch_read_fields(HrflowRun *run, Jsonb *fields);
extern bool hrflow_fetch(HrflowRun *run, List *profiles, int limit,
						 HrflowResult *refusal);

/* in write.c */
extern void hrflow_write(HrflowRun *run, List *profiles, bool refused);

/* in erase.c */
extern uint64 hrflow_erase_gone(HrflowRun *run, const HrflowStore *store,
								int64 *nkept);

#endif							/* HRFLOW_REFRESH_H */
