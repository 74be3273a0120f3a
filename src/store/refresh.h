/*-------------------------------------------------------------------------
 *
 * refresh.h
 *		What the files share of which a refresh is made.
 *
 * A profile passes through the lists of a run: it is claimed, in flight, split
 * into its sections perhaps, and has arrived; then it is written and forgotten.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_REFRESH_H
#define HRFLOW_REFRESH_H

#include "lib/ilist.h"
#include "store/store.h"

/*
 * The state of a profile, in the column "state".
 */
typedef enum HrflowState
{
	HRFLOW_STATE_DUE,			/* never fetched, or to be fetched again */
	HRFLOW_STATE_OK,
	HRFLOW_STATE_MISSING,		/* the API has no vector of it */
	HRFLOW_STATE_GONE,			/* for days; its vectors are put aside */
	HRFLOW_STATE_FAILED			/* given up */
} HrflowState;

/*
 * Profiles are claimed by turns from these: those that are new or have changed
 * or failed do not wait for the many that are only fetched again each month.
 */
typedef enum HrflowClaimQueue
{
	HRFLOW_QUEUE_DUE,			/* in the state of that name */
	HRFLOW_QUEUE_OLD			/* in any other state */
} HrflowClaimQueue;

#define HRFLOW_NQUEUES (HRFLOW_QUEUE_OLD + 1)

/*
 * A source that the API does not know.
 */
typedef struct HrflowBadSource
{
	char	   *source_id;
	char	   *error;
	TimestampTz due_at;			/* when to ask again, or 0: not known yet */
	bool		is_to_be_postponed; /* all of it, until then */
	bool		has_more;		/* than were postponed at once */
} HrflowBadSource;

/*
 * What a run counts a profile as, once it is written.
 */
typedef enum HrflowRunTally
{
	HRFLOW_TALLY_NONE,			/* it was not asked to the end, or not counted */
	HRFLOW_TALLY_OK,
	HRFLOW_TALLY_RETRY,			/* failed, and to be tried again */
	HRFLOW_TALLY_FAILED,		/* for the last time */
	HRFLOW_TALLY_MISSING
} HrflowRunTally;

#define HRFLOW_NTALLIES (HRFLOW_TALLY_MISSING + 1)

/*
 * What "fields" asks for: a section, or one element of it.
 */
typedef struct HrflowPart
{
	Jsonb	   *fields;			/* that ask for it alone */
	char	   *name;			/* "skills", or "experiences[0]" */
	char	   *section;
	bool		is_element;
	int			item;			/* of an element; -1: it is not given by its
								 * index */
} HrflowPart;

/*
 * Why a run has ended, in the order of the names in history.c.
 */
typedef enum HrflowStop
{
	HRFLOW_STOP_DONE,			/* nothing is due any longer */
	HRFLOW_STOP_TIME_BUDGET,
	HRFLOW_STOP_MAX_PROFILES,
	HRFLOW_STOP_REQUEST_LIMIT,	/* of a statement */
	HRFLOW_STOP_REFUSED,		/* the API refuses us: the key, the quota */
	HRFLOW_STOP_OUTAGE,			/* nothing is answered, or the same to all */
	HRFLOW_STOP_NOT_KEPT,		/* nothing of what is fetched is kept */
	HRFLOW_STOP_ERROR,
	HRFLOW_STOP_CANCELLED,
	HRFLOW_STOP_TERMINATED		/* the session was to end */
} HrflowStop;

typedef struct HrflowVector
{
	char	   *section;
	int			item;
	ArrayType  *value;
} HrflowVector;

/*
 * What the table of profiles has of a profile, or is to have.
 */
typedef struct HrflowProfileRow
{
	HrflowState state;
	TimestampTz due_at;
	bool		has_due_at;
	int			attempts;
	int			http_status;	/* 0: none */
	char	   *error;			/* or NULL */
	TimestampTz failed_at;		/* see set_failed_at() */
	bool		has_failed_at;
	bool		is_refreshed;	/* refreshed_at becomes the present time */
	ArrayType  *sections;		/* names of those it was asked for so far, or
								 * NULL */
} HrflowProfileRow;

/*
 * A profile that was claimed, and what becomes of it.
 */
typedef struct HrflowProfile
{
	dlist_node	node;			/* in one of the run's lists */
	MemoryContext context;		/* of all that is about this profile */
	char	   *source_id;
	char	   *identifier;
	TimestampTz lease;			/* when it ends */
	TimestampTz renewed;		/* when it ends after the commit, or 0 */

	/* When it was claimed. */
	int64		generation;
	TimestampTz claimed_due_at;
	bool		is_suspect;		/* the API did not know its source */
	int			old_dimension;	/* of its vectors; 0: there are none */

	/* What the fetch gives. */
	int64		asked_at;		/* by our clock */
	int			nopen;			/* requests for it without their last outcome */
	bool		is_probe;		/* others of its source wait for its answer */
	bool		is_split;		/* its sections are asked for one by one */
	int			next_part;		/* the first of them not yet asked for */
	bool		is_trial;		/* counted in ntrial of the run */
	HrflowStatus status;		/* the first that is neither HRFLOW_OK nor
								 * HRFLOW_NO_VECTOR */
	bool		is_link;		/* of a link, not of the API */
	bool		unasked;		/* it was not asked for to the end */
	bool		is_postponed;	/* what it met says nothing about it */
	bool		no_vector;		/* some section has none, */
	char	   *no_vector_error;	/* and how the API has said so first */
	int			http_status;	/* 0: none */
	char	   *error;
	List	   *vectors;		/* HrflowVector */

	/* What becomes of that. */
	bool		is_ours;		/* the lease is still ours, */
	bool		is_locked;		/* it is, but others have locked the row */
	bool		is_current;		/* and nothing has changed since */
	bool		is_stuck;		/* its vectors are locked by others */
	bool		is_held;		/* its vectors were refused, and are to be
								 * tried again */
	bool		is_known;		/* the API knows it, but has no vector of it */
	int64		locked_at;		/* since when, by our clock; 0: never */
	char	   *write_error;	/* why the table of vectors did not take its
								 * vectors, or NULL */
	char	   *lost;			/* sections of which the API no longer has
								 * vectors, for an error; or NULL */
	bool		is_kept;		/* their vectors are, for they are too many */
	HrflowRunTally tally;
	HrflowProfileRow row;
} HrflowProfile;

/*
 * A missing profile may be gone when the API has had no vector of it for this
 * long: while one is indexed, which takes minutes, it is asked for several times,
 * and then at three days more.
 */
#define HRFLOW_GONE_AGE (4 * USECS_PER_DAY)

/*
 * A profile of which the API has had no vector for days.
 */
typedef struct HrflowGone
{
	char	   *source_id;
	char	   *identifier;
	int64		generation;
	bool		is_known;		/* but only lacks the sections asked for */
} HrflowGone;

typedef struct HrflowRun
{
	MemoryContext context;		/* as long as the call */
	MemoryContext work_context; /* as long as a transaction */

	/* The arguments. */
	Oid			vectors;
	Oid			profiles;		/* InvalidOid: by its name */
	Jsonb	   *fields;			/* NULL: left out */
	const char *fields_text;
	ArrayType  *sections;		/* those of "fields"; if that is left out,
								 * those that are known */
	List	   *parts;			/* HrflowPart, likewise */
	Interval   *max_age;
	TimestampTz deadline;		/* of the time budget */
	int64		max_profiles;
	int			batch_size;
	int			max_attempts;

	/* Settings. */
	int			claim_size;		/* the most profiles claimed at once */
	int			write_interval; /* between two writes, at most; ms */
	int			patience;		/* how long nothing may be answered; ms */
	int			debounce;		/* how long a profile that changed while it
								 * was fetched has to wait; ms */
	char	   *account;		/* fingerprint of the API key */

	char	   *name;			/* of the store */
	HrflowActivity *activity;	/* shows the run */
	char	   *profiles_name;	/* of its table of profiles */
	const HrflowKind *kind;		/* of the store, */
	int			identifier;		/* and of its profiles */
	TimestampTz started;

	/* Profiles, by where they are. */
	dlist_head	claimed;		/* not yet asked for */
	dlist_head	in_flight;
	dlist_head	split;			/* with sections still to be asked for */
	dlist_head	suspects;		/* failed in a way that may be an outage */
	dlist_head	foreign;		/* their vectors are of another dimension than
								 * the store's */
	dlist_head	arrived;		/* to be written */
	int			nsuspects;
	int			nforeign;
	int			narrived;

	List	   *dimensions;		/* of the store's vectors; NIL: any */
	bool		is_typed;		/* the column takes no other */
	bool		is_wary;		/* the last run ended for the vectors'
								 * dimension */
	int64		fits_at;		/* when a profile came last whose vectors have
								 * one of these, by our clock */
	bool		is_foreign;		/* the run stops for the vectors' dimension */
	int			ntrial;			/* profiles that are asked for, or whose
								 * vectors are to be stored */
	bool		has_trial;		/* vectors have come since the last write */
	bool		is_trusted;		/* the store has taken a profile's vectors */
	bool		is_settling;	/* nothing more comes before what has arrived
								 * is written */
	int			nrefused;		/* profiles that are not stored because of
								 * what was the same for all */

	TimestampTz claimed_to[HRFLOW_NQUEUES]; /* no profile due before is to be
											 * claimed */
	int64		looked_back_at; /* see look_back(), by our clock */
	bool		is_drained;		/* the last claim found none */
	List	   *bad_sources;	/* HrflowBadSource */

	int64		alive_at;		/* when the API last answered for a profile, */
	int64		answered_at;	/* and when it last answered at all */
	int64		written_at;		/* all by our clock */
	bool		is_stopping;	/* nothing more is to be asked for */
	bool		is_outage;		/* because of this, or of ... */
	bool		is_unanswered;	/* its patience is at an end */
	HrflowStop	stop;			/* why, where the run stopped by itself */
	const char *stop_reason;	/* for a WARNING, or NULL */
	const char *stop_detail;	/* likewise, and so is the hint */
	const char *stop_hint;
	int			stop_code;		/* the SQLSTATE, where it is an error */
	ErrorData  *error;			/* to be thrown when all is written, or NULL */
	bool		is_ending;		/* the session is to end */
	HrflowFatalInterrupts held; /* what ends it, besides SIGTERM */
	int64		drain_until;	/* what is in flight is waited for */

	int			nforbidden;		/* profiles that met a 403 */

	/* The run's row in the table of runs. */
	Oid			runs;			/* InvalidOid: there is none */
	int64		number;
	bool		has_lock;		/* which says that the run goes on */

	int64		nclaimed;
	int64		nasked;			/* profiles that were asked for */
	int64		nsent_before;	/* requests of the statement before the run */
	int64		nerased;		/* profiles that have lost vectors of sections
								 * of which the API no longer has any; they
								 * were put aside */
	int64		tallies[HRFLOW_NTALLIES];
	int64		ncounted;		/* all of these except HRFLOW_TALLY_NONE */
	int			nvain;			/* profiles since that came to nothing */
	int64		nunwritten;		/* profiles that others have locked too long */
	List	   *gone;			/* those that may be gone: HrflowGone */
	int64		ngone;
	int64		ngone_put;		/* those of them that had vectors, which were
								 * put aside */
	bool		is_new_account; /* vectors are there, and none was fetched
								 * with this key when the run began */
	int64		nlacking;		/* profiles that the run has made due, as they
								 * lacked sections */
	int64		nkept;			/* profiles that keep vectors which the API no
								 * longer has, for they are too many */

	bool		is_scheduled;	/* nobody reads what is reported */
	int64		ndue;			/* when the run began; for a person */
	TimestampTz reported;		/* when progress was last shown */
} HrflowRun;

/* What is done in a transaction. */
typedef void (*HrflowWork) (HrflowRun *run, const HrflowStore *store);

/* in state.c */
extern const char *hrflow_state_name(HrflowState state);
extern HrflowState hrflow_state_parse(const char *name);
extern TimestampTz hrflow_state_due_after(const Interval *age);
extern Interval *hrflow_state_get_interval(FunctionCallInfo fcinfo, int argno,
										   const char *name);
extern Interval *hrflow_state_get_max_age(FunctionCallInfo fcinfo, int argno);
extern void hrflow_state_set(HrflowRun *run, HrflowProfile *profile);
extern void hrflow_state_land(HrflowRun *run, HrflowProfile *profile);
extern void hrflow_state_arrive(HrflowRun *run, HrflowProfile *profile);
extern void hrflow_state_settle_suspects(HrflowRun *run);

/* in interrupt.c */
extern void hrflow_interrupts_begin(void);
extern void hrflow_interrupts_end(const HrflowRun *run);
extern void hrflow_interrupts_check_client(HrflowRun *run);
extern void hrflow_interrupts_take(HrflowRun *run);

/* in work.c */
extern void hrflow_work_do(HrflowRun *run, HrflowWork work);
extern void hrflow_work_keep_error(HrflowRun *run);
extern bool hrflow_work_try(HrflowRun *run, HrflowWork work);
extern void hrflow_work_pause(HrflowRun *run);
extern void hrflow_work_check_context(FunctionCallInfo fcinfo,
									  const char *procedure);
extern int	hrflow_work_get_positive(FunctionCallInfo fcinfo, int argno,
									 const char *name, int max);

/* in history.c */
extern void hrflow_history_begin(HrflowRun *run, const HrflowStore *store);
extern void hrflow_history_end(HrflowRun *run, const HrflowStore *store);
extern void hrflow_history_unlock(HrflowRun *run);
extern bool hrflow_history_is_failure(HrflowStop stop);

/* in claim.c */
extern void hrflow_claim(HrflowRun *run, const HrflowStore *store);
extern void hrflow_claim_renew(HrflowRun *run, const HrflowStore *store);
extern void hrflow_claim_renew_done(HrflowRun *run);
extern void hrflow_claim_release(HrflowRun *run, const HrflowStore *store);
extern void hrflow_claim_postpone(HrflowRun *run, const HrflowStore *store);
extern void hrflow_claim_postpone_done(HrflowRun *run);
extern void hrflow_claim_forget(HrflowRun *run, HrflowProfile *profile);
extern void hrflow_claim_forget_all(HrflowRun *run);

/* in fetch.c */
extern void hrflow_fetch_read_fields(HrflowRun *run, Jsonb *fields);
extern void hrflow_fetch_set_kind(HrflowRun *run, const HrflowStore *store);
extern HrflowBadSource *hrflow_fetch_bad_source(HrflowRun *run,
												const char *source_id);
extern HrflowWanted *hrflow_fetch_next(HrflowRun *run);
extern void hrflow_fetch_take(HrflowRun *run, HrflowWanted *wanted,
							  const HrflowWantedOutcome *outcome);
extern void hrflow_fetch_give_up(HrflowRun *run);

/* in model.c */
extern char *hrflow_model_account(const char *api_key);
extern char *hrflow_model_sections(const HrflowRun *run,
								   const HrflowProfile *profile);
extern int	hrflow_model_dimension(const HrflowProfile *profile);
extern void hrflow_model_look(HrflowRun *run, const HrflowStore *store);
extern int64 hrflow_model_room(const HrflowRun *run);
extern void hrflow_model_end_trial(HrflowRun *run, HrflowProfile *profile);
extern bool hrflow_model_hold(HrflowRun *run, HrflowProfile *profile);
extern void hrflow_model_settle(HrflowRun *run);
extern void hrflow_model_spare(HrflowRun *run, List *profiles);
extern void hrflow_model_judge(HrflowRun *run, List *profiles);
extern void hrflow_model_warn_of_account(const HrflowRun *run);
extern bool hrflow_model_make_due(HrflowRun *run, const HrflowStore *store,
								  int64 most);

/* in write.c */
extern void hrflow_write(HrflowRun *run, const HrflowStore *store);
extern void hrflow_write_done(HrflowRun *run);
extern void hrflow_write_explain(const HrflowStore *store);
extern bool hrflow_write_is_of_server(int sqlerrcode);

/* in erase.c */
extern void hrflow_erase_judge(HrflowRun *run, const HrflowStore *store,
							   List *profiles);
extern SPIPlanPtr hrflow_erase_prepare(const HrflowStore *store);
extern void hrflow_erase_old_vectors(HrflowRun *run,
									 const HrflowStore *store,
									 SPIPlanPtr plan, HrflowProfile *profile);
extern void hrflow_erase_explain(const HrflowStore *store);
extern void hrflow_erase_note(const HrflowStore *store, List *profiles);
extern void hrflow_erase_gone(HrflowRun *run, const HrflowStore *store);

#endif							/* HRFLOW_REFRESH_H */
