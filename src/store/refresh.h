/*-------------------------------------------------------------------------
 *
 * refresh.h
 *		Data structures and functions of a refresh.
 *
 * A profile moves through the lists of a run: it is claimed, then in flight,
 * perhaps split into its sections, and then arrived.  Finally it is written
 * and freed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_REFRESH_H
#define HRFLOW_REFRESH_H

#include "lib/ilist.h"
#include "store/store.h"

/*
 * State of a profile, which is stored in the column "state".
 */
typedef enum HrflowState
{
	HRFLOW_STATE_DUE,			/* not fetched yet, or to be fetched again */
	HRFLOW_STATE_OK,
	HRFLOW_STATE_MISSING,		/* the API has no vector of the profile */
	HRFLOW_STATE_GONE,			/* missing for days; vectors put aside */
	HRFLOW_STATE_FAILED,		/* all attempts failed */
	HRFLOW_STATE_EMPTY			/* its content is empty, so that there is
								 * nothing to request */
} HrflowState;

/*
 * Queues from which profiles are claimed in turn, so that new, changed and
 * failed profiles need not wait for the many profiles that are merely
 * requested again after max_age.
 */
typedef enum HrflowClaimQueue
{
	HRFLOW_QUEUE_DUE,			/* profiles in the state HRFLOW_STATE_DUE */
	HRFLOW_QUEUE_OLD			/* profiles in any other state */
} HrflowClaimQueue;

#define HRFLOW_NQUEUES (HRFLOW_QUEUE_OLD + 1)

/*
 * A source that the API does not know.
 */
typedef struct HrflowBadSource
{
	char	   *source_id;
	char	   *error;
	TimestampTz due_at;			/* when to request its profiles again; 0: not
								 * known yet */
	bool		is_to_be_postponed; /* are all its profiles to be postponed
									 * until due_at? */
	bool		has_more;		/* does it have more profiles than were
								 * postponed in one statement? */
} HrflowBadSource;

/*
 * Category in which a run counts a profile after writing it.
 */
typedef enum HrflowRunTally
{
	HRFLOW_TALLY_NONE,			/* requests incomplete, or not counted */
	HRFLOW_TALLY_OK,
	HRFLOW_TALLY_RETRY,			/* failed, will be retried */
	HRFLOW_TALLY_FAILED,		/* failed for the last time */
	HRFLOW_TALLY_MISSING
} HrflowRunTally;

#define HRFLOW_NTALLIES (HRFLOW_TALLY_MISSING + 1)

/*
 * A section that "fields" requests, or a single element of a section.
 */
typedef struct HrflowPart
{
	Jsonb	   *fields;			/* value of "fields" that requests only this
								 * part */
	char	   *name;			/* "skills", or "experiences[0]" */
	char	   *section;
	bool		is_element;
	int			item;			/* index of the element; -1: not given by
								 * index */
} HrflowPart;

/*
 * Reason for which a run ended.  history.c has the names.
 */
typedef enum HrflowStop
{
	HRFLOW_STOP_DONE,			/* no profile is due any longer */
	HRFLOW_STOP_TIME_BUDGET,
	HRFLOW_STOP_MAX_PROFILES,
	HRFLOW_STOP_REQUEST_LIMIT,	/* the limit of a statement */
	HRFLOW_STOP_REFUSED,		/* the API rejects the key, or the quota is
								 * used up */
	HRFLOW_STOP_OUTAGE,			/* no replies, or the same failure for all */
	HRFLOW_STOP_NOT_KEPT,		/* fetched vectors could not be stored */
	HRFLOW_STOP_ERROR,
	HRFLOW_STOP_CANCELLED,
	HRFLOW_STOP_TERMINATED		/* the session was terminated */
} HrflowStop;

typedef struct HrflowVector
{
	char	   *section;
	int			item;
	ArrayType  *value;
} HrflowVector;

/*
 * The contents of a profile's row in the table of profiles, or the contents to
 * be written.
 */
typedef struct HrflowProfileRow
{
	HrflowState state;
	TimestampTz due_at;
	bool		has_due_at;
	int			attempts;
	int			http_status;	/* 0: none */
	char	   *error;			/* error message, or NULL */
	TimestampTz failed_at;		/* see set_failed_at() */
	bool		has_failed_at;
	bool		is_refreshed;	/* set refreshed_at to the current time? */
	ArrayType  *sections;		/* names of the sections requested so far, or
								 * NULL */
} HrflowProfileRow;

/*
 * A claimed profile.  Times of type int64 are those of hrflow_clock_now().
 */
typedef struct HrflowProfile
{
	dlist_node	node;			/* in one of the run's lists */
	MemoryContext context;		/* contains this struct and everything it
								 * refers to */
	char	   *source_id;
	char	   *identifier;
	TimestampTz lease;			/* end of the lease */
	TimestampTz renewed;		/* end of the lease once the transaction
								 * commits, or 0 */

	/* State of the row when the profile was claimed. */
	int64		generation;
	TimestampTz claimed_due_at;
	bool		is_suspect;		/* did the API not know its source? */
	int			old_dimension;	/* dimension of its stored vectors; 0: it has
								 * none */

	/* Its content, if the API does not have it; see content.c. */
	char	   *body;			/* JSON to POST; NULL: there is none, or it
								 * need not be sent for this profile */
	char	   *hash;			/* hash of the JSON, or NULL */
	char	   *problem;		/* reason for which the content cannot be
								 * sent, or NULL */
	bool		is_empty;		/* is there no content? */
	struct HrflowProfile *leader;	/* profile with the same content whose
									 * result it waits for, or NULL */
	bool		is_copy;		/* is its result that of its leader? */
	bool		was_sent;		/* may the content have been sent without an
								 * answer? */

	/* Results of fetching it. */
	int64		asked_at;		/* time of the first request */
	int			nopen;			/* number of its requests that are incomplete */
	bool		is_probe;		/* do other profiles of its source wait for
								 * its reply? */
	bool		is_split;		/* are its sections requested one by one? */
	int			next_part;		/* index of the next part to be requested */
	bool		is_trial;		/* is it counted in HrflowRun.ntrial? */
	HrflowStatus status;		/* first status other than HRFLOW_OK and
								 * HRFLOW_NO_VECTOR */
	bool		is_link;		/* is "status" the status of a link? */
	bool		unasked;		/* were its requests not completed? */
	bool		is_postponed;	/* is its failure unrelated to the profile? */
	bool		is_final;		/* should the profile not be requested again? */
	bool		no_vector;		/* does some section have no vector? */
	char	   *no_vector_error;	/* the API's first message about a section
									 * without a vector */
	int			http_status;	/* 0: none */
	char	   *error;
	List	   *vectors;		/* HrflowVector */

	/* Results of writing it. */
	bool		is_ours;		/* is the lease still ours? */
	bool		is_locked;		/* is the row ours, but locked by another
								 * session? */
	bool		is_current;		/* is the row ours, and unchanged since the
								 * claim? */
	bool		is_stuck;		/* are its vectors locked by another session? */
	bool		is_held;		/* is it held back, to be written later? */
	bool		is_known;		/* does the API know it, without having a
								 * vector of it? */
	int64		locked_at;		/* when its row or vectors were first found
								 * locked; 0: never */
	char	   *write_error;	/* reason for which its vectors could not be
								 * stored, or NULL */
	char	   *lost;			/* error message that names the sections of
								 * which the API no longer has vectors, or
								 * NULL */
	bool		is_kept;		/* are the vectors of the sections in "lost"
								 * kept, because too many profiles have lost
								 * some? */
	HrflowRunTally tally;
	HrflowProfileRow row;
} HrflowProfile;

/*
 * Minimum time for which the API must have had no vector of a profile before
 * the profile can be considered gone.  The API needs minutes to index a
 * profile, during which it is requested several times; then it is requested on
 * three more days.
 */
#define HRFLOW_GONE_AGE (4 * USECS_PER_DAY)

/*
 * A profile of which the API has not had a vector for HRFLOW_GONE_AGE.
 */
typedef struct HrflowGone
{
	char	   *source_id;
	char	   *identifier;
	int64		generation;
	bool		is_known;		/* does it lack only the sections requested? */
} HrflowGone;

/*
 * A run of hrflow_refresh().  Times of type int64 are those of
 * hrflow_clock_now().
 */
typedef struct HrflowRun
{
	MemoryContext context;		/* lives until the call returns */
	MemoryContext work_context; /* lives until the transaction ends */

	/* Arguments. */
	Oid			vectors;
	Oid			profiles;		/* InvalidOid: find it by its name */
	Jsonb	   *fields;			/* NULL: not given */
	const char *fields_text;
	Oid			function;		/* function of the triggers that feed stores */
	ArrayType  *sections;		/* sections of "fields", or if it is not
								 * given, all sections that we know */
	List	   *parts;			/* list of HrflowPart, for the sections in
								 * "sections" */
	Interval   *max_age;
	TimestampTz deadline;		/* end of the time budget */
	int64		max_profiles;
	int			batch_size;
	int			max_attempts;

	/* Settings. */
	int			claim_size;		/* maximum number of profiles per claim */
	int			write_interval; /* maximum time between two writes, in ms */
	int			patience;		/* maximum time without any reply, in ms */
	int			debounce;		/* delay of a profile that changed while it
								 * was fetched, in ms */
	char	   *account;		/* fingerprint of the API key */

	char	   *name;			/* name of the store */
	HrflowActivity *activity;	/* entry in hrflow_embed_activity */
	char	   *profiles_name;	/* name of the table of profiles */
	const HrflowKind *kind;		/* kind of the store */
	int			identifier;		/* index into kind->identifiers */
	TimestampTz started;

	/* Lists of profiles.  Each profile is in one of them. */
	dlist_head	claimed;		/* claimed, but not requested yet */
	dlist_head	waiting;		/* waiting for a profile with the same content */
	dlist_head	in_flight;
	dlist_head	split;			/* with sections that are not requested yet */
	dlist_head	suspects;		/* failed, possibly because of an outage */
	dlist_head	foreign;		/* with vectors of a dimension that differs
								 * from the store's */
	dlist_head	arrived;		/* to be written */
	int			nwaiting;
	int			nsuspects;		/* number of requests that failed; fewer than
								 * profiles if these have the same content */
	int			nforeign;
	int			narrived;

	List	   *dimensions;		/* dimensions of stored vectors; NIL: any */
	bool		is_typed;		/* does the column accept no other dimension? */
	bool		is_wary;		/* did the last run stop because the store did
								 * not accept the vectors that it fetched? */
	int64		fits_at;		/* when vectors of one of "dimensions" last
								 * arrived */
	bool		is_foreign;		/* does this run stop because of the vectors'
								 * dimension? */
	int			ntrial;			/* number of profiles requested, or with
								 * vectors to be stored */
	bool		has_trial;		/* have vectors arrived since the last write? */
	bool		is_trusted;		/* have the vectors of some profile been
								 * stored? */
	bool		is_settling;	/* write arrived profiles before requesting
								 * more? */
	int			nrefused;		/* number of profiles not stored for a reason
								 * common to all */

	TimestampTz claimed_to[HRFLOW_NQUEUES]; /* claim only profiles due at this
											 * time or later */
	int64		looked_back_at; /* when look_back() last reset claimed_to */
	bool		is_drained;		/* did the last claim find no profile? */
	bool		is_blocked;		/* did another session lock a table from which
								 * the last claim was to read contents? */
	List	   *bad_sources;	/* list of HrflowBadSource */

	int64		alive_at;		/* when the API last replied for a profile */
	int64		answered_at;	/* when the API last replied at all */
	int64		written_at;		/* time of the last write */
	bool		is_stopping;	/* are no more requests to be sent? */
	bool		is_outage;		/* did the run stop because of an outage? */
	bool		is_unanswered;	/* did the run stop because "patience" was
								 * exceeded? */
	HrflowStop	stop;			/* why the run stopped */
	const char *stop_reason;	/* message for a WARNING, or NULL */
	const char *stop_detail;	/* DETAIL of the message, or NULL */
	const char *stop_hint;		/* HINT of the message, or NULL */
	int			stop_code;		/* SQLSTATE of the message if it is an ERROR */
	ErrorData  *error;			/* error to throw after the last write, or
								 * NULL */
	bool		is_ending;		/* is the session being terminated? */
	HrflowFatalInterrupts held; /* pending interrupts, other than SIGTERM,
								 * that will terminate the session */
	int64		drain_until;	/* time until which to wait for requests in
								 * flight */

	int			nforbidden;		/* number of profiles that received a 403 */

	/* The run's row in the table of runs. */
	Oid			runs;			/* table of runs; InvalidOid: there is none */
	int64		number;			/* key of the row */
	bool		has_lock;		/* is the lock held that marks the run as in
								 * progress? */

	int64		nclaimed;
	int64		nasked;			/* number of profiles requested */
	int64		nsent_before;	/* number of requests that the statement sent
								 * before the run */
	int64		nerased;		/* number of profiles of which vectors were
								 * put aside, because the API no longer has
								 * any of their sections */
	int64		tallies[HRFLOW_NTALLIES];
	int64		ncounted;		/* sum of "tallies", except HRFLOW_TALLY_NONE */
	int			nvain;			/* number of profiles without a result since
								 * the last one that was counted */
	int64		nunwritten;		/* number of profiles that other sessions have
								 * locked for too long */
	List	   *gone;			/* list of HrflowGone: profiles that may be
								 * gone */
	int64		ngone;			/* number of profiles found to be gone */
	int64		ngone_put;		/* number of gone profiles that had vectors,
								 * which were put aside */
	bool		is_new_account; /* did the store have vectors when the run
								 * began, but none fetched with this key? */
	int64		nlacking;		/* number of profiles that the run made due
								 * because they lacked sections */
	int64		nkept;			/* number of profiles that keep vectors which
								 * the API no longer has, because there are
								 * too many such profiles */

	bool		is_scheduled;	/* is there no client to report progress to? */
	int64		ndue;			/* number of profiles due when the run began,
								 * for reporting progress */
	TimestampTz reported;		/* when progress was last reported */
} HrflowRun;

/* A function to be executed in a transaction; see work.c. */
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
extern bool hrflow_claim_may_wait(HrflowRun *run);
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

/* in content.c */
extern bool hrflow_content_can_lock(const HrflowRun *run,
									const HrflowStore *store);
extern List *hrflow_content_feeders(const HrflowRun *run,
									const HrflowStore *store);
extern void hrflow_content_read(HrflowRun *run, const HrflowStore *store,
								List *feeders, TimestampTz lease);
extern void hrflow_content_unmark(HrflowRun *run, const HrflowStore *store);
extern void hrflow_content_warn(const HrflowRun *run);
extern void hrflow_content_share(HrflowRun *run, const HrflowProfile *leader);

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
