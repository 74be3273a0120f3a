/*-------------------------------------------------------------------------
 *
 * refresh.h
 *		Data structures and functions for refreshing a store.
 *
 * A claimed profile is always in one of the lists of its run: usually first in
 * "claimed", then in "in_flight", and finally in "arrived".  It is freed after
 * it has been written, or if the run cannot write it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_REFRESH_H
#define HRFLOW_REFRESH_H

#include "lib/ilist.h"
#include "store/store.h"

/*
 * State of a profile, which is stored in the column "state".  The state
 * "unwanted" is not in this list, because a run does not process unwanted
 * profiles.
 */
typedef enum HrflowState
{
	HRFLOW_STATE_DUE,			/* to be fetched, for the first time or again */
	HRFLOW_STATE_OK,
	HRFLOW_STATE_MISSING,		/* the API has no vector for the profile */
	HRFLOW_STATE_GONE,			/* missing for HRFLOW_GONE_AGE, and found to
								 * no longer exist in the API; its vectors, if
								 * any, were put aside */
	HRFLOW_STATE_FAILED,		/* not to be retried, because of max_attempts
								 * or because the failure is final */
	HRFLOW_STATE_EMPTY			/* no content, so there is nothing to request */
} HrflowState;

/*
 * Queues from which profiles are claimed, in order of precedence.  New and
 * changed profiles, and profiles to be retried after a failure, take
 * precedence over all others, such as missing profiles, and profiles that are
 * requested again only because of max_age.
 */
typedef enum HrflowClaimQueue
{
	HRFLOW_QUEUE_DUE,			/* profiles in the state HRFLOW_STATE_DUE */
	HRFLOW_QUEUE_OLD			/* profiles in any other state, except
								 * "unwanted" */
} HrflowClaimQueue;

#define HRFLOW_NQUEUES (HRFLOW_QUEUE_OLD + 1)

/*
 * A source that the API does not know.
 */
typedef struct HrflowBadSource
{
	char	   *source_id;
	char	   *error;
	TimestampTz due_at;			/* when to request its profiles again, or 0 if
								 * not known yet */
	bool		is_to_be_postponed; /* are the profiles of the source to be
									 * postponed until due_at? */
	bool		has_more;		/* did the last execution of postpone_sql
								 * reach its limit, so that there may be more
								 * profiles to postpone? */
} HrflowBadSource;

/*
 * Category in which a run counts a profile after writing it.
 */
typedef enum HrflowRunTally
{
	HRFLOW_TALLY_NONE,			/* not counted, for example because requests
								 * are incomplete */
	HRFLOW_TALLY_OK,
	HRFLOW_TALLY_RETRY,			/* failed, will be retried */
	HRFLOW_TALLY_FAILED,		/* failed, will not be retried */
	HRFLOW_TALLY_MISSING
} HrflowRunTally;

#define HRFLOW_NTALLIES (HRFLOW_TALLY_MISSING + 1)

/*
 * A part of "fields": a section, or a single element of a section.
 */
typedef struct HrflowPart
{
	Jsonb	   *fields;			/* value of "fields" that requests only this
								 * part */
	char	   *name;			/* for example "skills" or "experiences[0]" */
	char	   *section;
	bool		is_element;
	int			item;			/* index of the element, or -1 if the element
								 * is not identified by an index; not used for
								 * sections */
} HrflowPart;

/*
 * Reason for the end of a run.  The names of the reasons are in history.c.
 */
typedef enum HrflowStop
{
	HRFLOW_STOP_DONE,			/* no more profiles could be claimed */
	HRFLOW_STOP_TIME_BUDGET,
	HRFLOW_STOP_MAX_PROFILES,
	HRFLOW_STOP_REQUEST_LIMIT,	/* max_requests_per_statement or
								 * max_requests_per_day was reached */
	HRFLOW_STOP_REFUSED,		/* the API or a proxy refuses all requests,
								 * for example because of the key or quota */
	HRFLOW_STOP_OUTAGE,			/* no replies, or too many profiles failed in
								 * the same way */
	HRFLOW_STOP_NOT_KEPT,		/* fetched vectors, or the states of their
								 * profiles, could not be stored */
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
 * The current or new values of a profile's row in the table of profiles.
 */
typedef struct HrflowProfileRow
{
	HrflowState state;
	TimestampTz due_at;
	bool		has_due_at;
	int			attempts;
	int			http_status;	/* HTTP status, or 0 if there is none */
	const char *error;			/* error message, or NULL */
	TimestampTz failed_at;		/* see set_failed_at() */
	bool		has_failed_at;
	bool		is_refreshed;	/* set refreshed_at to the current time? */
	ArrayType  *sections;		/* value of the column "sections", or NULL */
} HrflowProfileRow;

/*
 * A claimed profile.  Times of type int64 have the units of
 * hrflow_clock_now().
 */
typedef struct HrflowProfile
{
	dlist_node	node;			/* in one of the run's lists */
	MemoryContext context;		/* memory context of this struct and of
								 * everything that it owns; "row" may refer to
								 * memory of a transaction */
	char	   *source_id;
	char	   *identifier;
	TimestampTz lease;			/* end of the lease */
	TimestampTz renewed;		/* new end of the lease that has not been
								 * committed yet, or 0 if the lease was not
								 * renewed */

	/* State of the row when the profile was claimed. */
	int64		generation;
	TimestampTz claimed_due_at;
	bool		is_suspect;		/* did the last error say that the API does
								 * not know the source?  Reset after the reply
								 * to a probe */
	int			old_dimension;	/* dimension of the stored vectors, or 0 if
								 * there are none or it is not known */

	/*
	 * The content, if the store's contents are read from tables; see
	 * content.c.
	 */
	char	   *body;			/* JSON to POST, or NULL if no request is to
								 * be sent for this profile */
	char	   *hash;			/* hash of the JSON, or NULL */
	char	   *problem;		/* why the content of a row cannot be sent, or
								 * NULL; does not matter if another row has
								 * content that can be sent */
	bool		is_empty;		/* is there no content? */
	struct HrflowProfile *leader;	/* profile with the same content, whose
									 * result this profile awaits; or NULL */
	bool		is_copy;		/* was the result copied from a leader, after
								 * waiting for it? */
	bool		was_sent;		/* could a request with this content have been
								 * sent, by this session or an earlier one,
								 * whose reply has not been written? */
	bool		is_elsewhere;	/* is another session sending this content, or
								 * could it be about to? */

	/* Progress and results of fetching the profile. */
	int64		asked_at;		/* time of the first request, or 0 if there
								 * was none; for a copied result, that of the
								 * original */
	int64		sent_at;		/* when the first request was sent, or 0 if
								 * none was sent or no outcome is known; may
								 * be "asked_at", which is not later */
	int			nopen;			/* number of requests in progress */
	bool		is_probe;		/* do other profiles of the source wait for
								 * the reply? */
	bool		is_split;		/* are the sections requested one by one? */
	int			next_part;		/* index of the next part to be requested */
	bool		is_trial;		/* is the profile counted in HrflowRun.ntrial? */
	HrflowStatus status;		/* status of the first failure, or HRFLOW_OK;
								 * a section without a vector is not a
								 * failure, but see set_missing() */
	bool		is_link;		/* does "status" concern a link, rather than a
								 * request to the API? */
	bool		is_down;		/* if "status" is an HTTP error, does it say
								 * that the server is down?  HTTP 502 to 504
								 * do, and the codes above them that some
								 * proxies use; HTTP 500 may be caused by a
								 * single profile */
	bool		is_host_down;	/* is the profile postponed because the links'
								 * host is down? */
	bool		unasked;		/* was at least one request omitted or
								 * abandoned for a reason unrelated to the
								 * profile? */
	bool		is_postponed;	/* is the profile postponed, because the
								 * failure is not specific to the profile? */
	bool		is_final;		/* is the failure final, whatever the number
								 * of attempts? */
	bool		no_vector;		/* does at least one section have no vector? */
	char	   *no_vector_error;	/* first message of the API that says that
									 * a section has no vector, or NULL */
	int			http_status;	/* last HTTP status, or 0 if none */
	char	   *error;
	List	   *vectors;		/* HrflowVector */

	/* Results of writing the profile. */
	bool		is_ours;		/* is the lease still ours, and is the profile
								 * to be written by this transaction? */
	bool		is_locked;		/* is the lease ours, but the row locked by
								 * another session? */
	bool		is_taken;		/* is the lease no longer ours, although the
								 * profile is still tracked? */
	bool		is_current;		/* if the lease is ours: are "generation" and
								 * "due_at" unchanged since the claim? */
	bool		is_stuck;		/* did a conflict with another session, such
								 * as a lock, prevent the vectors or the state
								 * from being written? */
	bool		is_held;		/* is the profile held back, to be written
								 * later? */
	bool		is_known;		/* is the profile known to the API, but
								 * without a vector? */
	int64		locked_at;		/* when the row or the vectors were first
								 * found locked, or 0 if they never were */
	bool		has_failed;		/* was a transaction aborted by an error while
								 * this profile was being written? */
	char	   *write_error;	/* error because of which the vectors or the
								 * state could not be stored, or NULL */
	bool		is_rejected;	/* was the new state rejected? */
	bool		is_partial;		/* were some vectors stored although another
								 * one, or putting vectors aside, was
								 * rejected? */
	bool		has_lost;		/* does the reply lack stored vectors that
								 * were requested? */
	char	   *lost;			/* error message that names the sections of
								 * whose stored vectors the reply lacks more
								 * than half, or NULL */
	bool		is_kept;		/* are stored vectors kept although the reply
								 * lacks them, because too many profiles have
								 * lost vectors, or because vectors cannot be
								 * put aside? */
	bool		is_undecided;	/* is "is_kept" set only because another
								 * session held a lock that the decision
								 * requires? */
	bool		was_kept;		/* was "is_kept" set, but not "is_undecided",
								 * when write.c held the profile back? */
	HrflowRunTally tally;
	HrflowProfileRow row;
} HrflowProfile;

/*
 * Time for which the API must have had no vector for a profile before the
 * profile can be considered to no longer exist in the API.  By then, if runs
 * are frequent enough, the profile has been requested several times on the
 * first day, when the API may not have indexed it yet, and about once on each
 * of the following days.
 */
#define HRFLOW_GONE_AGE (4 * USECS_PER_DAY)

/*
 * Maximum time to wait for requests in flight after the end of the time
 * budget.
 */
#define HRFLOW_BUDGET_GRACE (5 * HRFLOW_SEC)

/*
 * A profile for which the API has had no vector for at least HRFLOW_GONE_AGE.
 */
typedef struct HrflowGone
{
	char	   *source_id;
	char	   *identifier;
	int64		generation;
	bool		is_known;		/* is the profile known to the API, but
								 * without any requested vectors? */
} HrflowGone;

/*
 * Maximum number of profiles in HrflowRun.gone.  One transaction decides about
 * all of them.
 */
#define HRFLOW_MAX_GONE 10000

/*
 * A run of hrflow_refresh().  Times of type int64 have the units of
 * hrflow_clock_now().
 */
typedef struct HrflowRun HrflowRun;

/* A function to be executed in a transaction; see work.c. */
typedef void (*HrflowWork) (HrflowRun *run, const HrflowStore *store);

struct HrflowRun
{
	MemoryContext context;		/* memory context that lives until the
								 * procedure returns */
	MemoryContext work_context; /* memory context for one transaction of the
								 * run, reset after it */

	/* Arguments. */
	Oid			vectors;
	Oid			profiles;		/* table of profiles, or InvalidOid to find
								 * the table by its name */
	Jsonb	   *fields;			/* NULL if not given, or if the kind does not
								 * have "has_sections" */
	const char *fields_text;
	Oid			function;		/* OID of hrflow_track_trigger(), which the
								 * triggers that feed stores call */
	ArrayType  *sections;		/* sections in "fields"; all known sections if
								 * "fields" is not given; only the kind's
								 * "whole" if the kind does not have
								 * "has_sections" */
	List	   *parts;			/* list of HrflowPart, for the sections in
								 * "sections" */
	Interval   *max_age;
	TimestampTz deadline;		/* end of the time budget, or DT_NOEND */
	int64		max_profiles;
	int			batch_size;
	int			max_attempts;

	/* Settings. */
	int			claim_size;		/* maximum number of profiles per claim */
	int			write_interval; /* maximum time between two writes, in ms */
	int			patience;		/* maximum time without any reply, in ms */
	int			lock_timeout;	/* lock_timeout of the caller, in ms, or 0 if
								 * there is none */
	int			lock_limit;		/* maximum time to wait for locks while
								 * requests are in flight or replies are to be
								 * written, in ms */
	int			debounce;		/* delay of a profile that changed while it
								 * was fetched, in ms */
	char	   *account;		/* fingerprint of the API key with which the
								 * profiles in the lists below are fetched */

	char	   *name;			/* name of the store */
	HrflowActivity *activity;	/* entry in hrflow_embed_activity */
	char	   *profiles_name;	/* name of the table of profiles */
	const HrflowKind *kind;		/* kind of the store */
	int			identifier;		/* index into kind->identifiers */
	TimestampTz started;

	/* Lists of profiles.  Each claimed profile is in exactly one of them. */
	dlist_head	claimed;		/* claimed, but not requested yet */
	dlist_head	waiting;		/* profiles that wait for a profile with the
								 * same content */
	dlist_head	in_flight;
	dlist_head	split;			/* profiles with sections that have not been
								 * requested */
	dlist_head	suspects;		/* profiles that failed, possibly for a common
								 * reason, such as an outage */
	dlist_head	foreign;		/* profiles held back because the dimension of
								 * their vectors differs from the store's */
	dlist_head	arrived;		/* to be written */
	int			nwaiting;
	int			nsuspects;		/* number of profiles in "suspects", except
								 * copies: profiles with the same content
								 * share a request */
	int			nforeign;
	int			narrived;

	List	   *dimensions;		/* dimensions that fetched vectors are
								 * expected to have, or NIL to accept any
								 * dimension */
	bool		is_typed;		/* does the column "vector" accept vectors of
								 * one dimension only? */
	bool		is_wary;		/* was the last run probably stopped because
								 * fetched vectors, or the states of their
								 * profiles, could not be stored?  Set by
								 * history.c and model.c */
	int64		fits_at;		/* when vectors that fit the store last
								 * arrived; see fits() */
	bool		is_foreign;		/* was the run stopped because of the
								 * dimension of fetched vectors? */
	bool		is_unfit;		/* was the run stopped because the store
								 * accepted none of the first results? */
	int			ntrial;			/* number of profiles with "is_trial": in
								 * flight, or with vectors that are not stored
								 * yet */
	bool		has_trial;		/* have vectors arrived since the last write? */
	bool		is_trusted;		/* have fetched vectors of at least one
								 * profile been stored? */
	bool		is_settling;	/* are all requests complete, so that no
								 * profile is held back to wait for other
								 * results? */
	int			nrefused;		/* number of profiles whose vectors were not
								 * stored, for a reason that is not specific
								 * to a profile */

	TimestampTz claimed_to[HRFLOW_NQUEUES]; /* claim only profiles due at this
											 * time or later */
	int64		looked_back_at; /* when look_back() last reset an element of
								 * claimed_to */
	bool		is_drained;		/* did the last claim find no profile, or the
								 * last MAX_POSTPONED_CLAIMS claims only
								 * profiles to be postponed?  Reset after each
								 * write */
	bool		is_blocked;		/* was the last claim rolled back, or skipped
								 * because another session holds a lock?
								 * work_of_run() resets it after a write */
	TimestampTz claim_lease;	/* time at which the leases of the last claim
								 * end, or DT_NOBEGIN if the claim has taken
								 * no lease yet */
	List	   *bad_sources;	/* list of HrflowBadSource */

	int64		alive_at;		/* when the outcome of a request last ruled
								 * out an outage of the API */
	int64		usable_at;		/* when the outcome of a request last ruled
								 * out that failures have a common cause */
	int64		answered_at;	/* when the API last sent a valid reply, or
								 * when nothing was in flight */
	int64		written_at;		/* when the last write began or, if it took
								 * long, when it ended */
	int			nleft;			/* value of "narrived" after the last write */
	bool		has_more;		/* did the last write leave profiles to
								 * another transaction, for example because it
								 * ran out of time? */
	bool		is_single;		/* is each profile to be written in a
								 * subtransaction?  Set if a write of all
								 * profiles together has failed */
	HrflowProfile *writing;		/* profile that is being written in a
								 * subtransaction, or NULL */
	int64		nrejected;		/* number of profiles whose states were
								 * rejected, unless that has stopped the run */
	char	   *rejection;		/* error message of the first rejected state,
								 * or NULL */
	int			rejection_code; /* SQLSTATE of "rejection" */
	int64		ndenied;		/* number of profiles of which the table
								 * rejected all fetched vectors, unless that
								 * has stopped the run; see is_denied() */
	int			ndenied_since;	/* number of profiles of which the table
								 * rejected all fetched vectors, since a
								 * vector was last stored */
	char	   *denial;			/* error message of the last profile of which
								 * the table rejected all fetched vectors, or
								 * NULL */
	int			denial_code;	/* SQLSTATE of "denial" */
	int64		npartial;		/* number of profiles with "is_partial" */
	char	   *partial_error;	/* error message of the first profile with
								 * "is_partial", or NULL */
	int			partial_code;	/* SQLSTATE of "partial_error" */

	/* Locks of other sessions; see work.c. */
	int			lock_time;		/* maximum wait for a lock in the current
								 * transaction, in ms */
	int64		locks_until;	/* time until which the vectors of each
								 * further profile wait for locks, but for at
								 * least a fifth of "lock_time" */
	bool		has_locks;		/* has the current transaction locked the
								 * tables that it writes? */
	HrflowWork	locked_out;		/* work that was last rolled back because of a
								 * lock, or NULL if it has succeeded since */
	bool		is_shut;		/* was "locked_out" rolled back because of a
								 * table lock? */
	int64		locked_out_at;	/* when work was first rolled back because of
								 * a lock, if "locked_out" is set */

	HrflowTransport *transport; /* transport that sends the requests, or NULL
								 * if none is open */
	int64		received_at;	/* when hrflow_work_receive() last received
								 * replies */
	bool		is_stopping;	/* are no more requests to be sent? */
	bool		is_outage;		/* did the run stop because of failures with a
								 * common reason? */
	bool		is_unanswered;	/* did the run stop because "patience" was
								 * exceeded? */
	HrflowStop	stop;			/* why the run stopped */
	const char *stop_reason;	/* message for a WARNING or ERROR, or NULL */
	const char *stop_detail;	/* DETAIL of the message, or NULL */
	const char *stop_hint;		/* HINT of the message, or NULL */
	int			stop_code;		/* SQLSTATE of the message if it is an ERROR */
	ErrorData  *error;			/* error to throw after the last write, or
								 * NULL */
	bool		is_ending;		/* is the session being terminated? */
	HrflowFatalInterrupts held; /* pending interrupts that will terminate the
								 * session, except a SIGTERM received during
								 * the run */
	int64		drain_until;	/* time until which to wait for requests in
								 * flight */

	int			nforbidden;		/* number of profiles that failed with HTTP
								 * status 403, without copies of results */

	/* The run's row in the table of runs. */
	Oid			runs;			/* table of runs, or InvalidOid if there is
								 * none */
	int64		number;			/* key of the row */
	bool		has_lock;		/* does the run hold the lock that marks it as
								 * in progress? */

	int64		nclaimed;
	int64		npostponed;		/* number of profiles postponed by
								 * hrflow_sent_give_back(); not counted in
								 * "nclaimed" */
	int			npostponed_claims;	/* number of consecutive claims that found
									 * only profiles to be postponed, or none */
	int64		nasked;			/* number of profiles requested */
	int64		nsent_before;	/* number of requests that the statement sent
								 * before the run */
	int64		nerased;		/* number of profiles of which more than half
								 * of a section was put aside, because the API
								 * no longer has it, or because the content
								 * has become empty */
	int64		tallies[HRFLOW_NTALLIES];
	int64		ncounted;		/* sum of "tallies", except HRFLOW_TALLY_NONE */
	int			nvain;			/* number of profiles processed since the last
								 * one that was counted in "ncounted" and not
								 * rejected; profiles of unknown sources count
								 * only if they could not be written */
	int64		nunwritten;		/* number of profiles that were not written
								 * although vectors were fetched for them,
								 * except profiles that are no longer tracked,
								 * and those counted in "nrejected" */
	int64		nlocked;		/* number of profiles in "nunwritten" that
								 * other sessions have locked for too long */
	int64		ntaken;			/* number of profiles in "nunwritten" whose
								 * leases were taken over, or cleared, by
								 * other sessions */
	HrflowRefreshed refreshed;	/* see hrflow_erase_allowance() */
	List	   *gone;			/* list of HrflowGone, the profiles that may
								 * no longer exist in the API */
	int64		nlong_missing;	/* number of profiles that may no longer exist
								 * in the API, including those that "gone" has
								 * no room for */
	int64		ngone;			/* number of profiles found to no longer exist
								 * in the API */
	int64		ngone_put;		/* number of profiles in "ngone" that had
								 * vectors, which were put aside */
	bool		expired_done;	/* did the last batch of expired vectors fail,
								 * or leave none that could be erased? */
	List	   *accounts;		/* fingerprints of the API keys with which the
								 * vectors of the store were fetched before
								 * "account" was set */
	int64		nlacking;		/* number of profiles that the run made due
								 * because not all of "fields" had been
								 * requested for them */
	int64		nshortened;		/* number of profiles, not counted in
								 * "nerased", of which at most half of a
								 * section was put aside */
	bool		has_no_aside;	/* did the store have no table for vectors
								 * that are put aside? */
	bool		has_no_limit;	/* did the store lack the column "erased_at",
								 * so that no vectors that count towards the
								 * limit may be put aside? */
	int64		nkept;			/* number of profiles that keep vectors that
								 * were not put aside, for the reason that
								 * hrflow_lost_why_kept() returns */

	bool		is_scheduled;	/* is there no client to report progress to? */
	int64		ndue;			/* number of profiles due when the run began,
								 * for reporting progress */
	TimestampTz reported;		/* when progress was last reported */
};

/* in state.c */
extern const char *hrflow_state_name(HrflowState state);
extern HrflowState hrflow_state_parse(const char *name);
extern TimestampTz hrflow_state_due_after(const Interval *age);
extern Interval *hrflow_state_get_interval(FunctionCallInfo fcinfo, int argno,
										   const char *name);
extern Interval *hrflow_state_get_max_age(FunctionCallInfo fcinfo, int argno);
extern void hrflow_state_set(HrflowRun *run, HrflowProfile *profile);
extern void hrflow_state_arrive(HrflowRun *run, HrflowProfile *profile);

/* in suspects.c */
extern void hrflow_suspects_land(HrflowRun *run, HrflowProfile *profile);
extern void hrflow_suspects_settle(HrflowRun *run);

/* in interrupt.c */
extern void hrflow_interrupts_begin(void);
extern void hrflow_interrupts_end(const HrflowRun *run);
extern void hrflow_interrupts_check_client(HrflowRun *run);
extern void hrflow_interrupts_take(HrflowRun *run);

/* in work.c */
extern void hrflow_work_do(HrflowRun *run, HrflowWork work);
extern void hrflow_work_hold_fatal(HrflowRun *run);
extern bool hrflow_work_may_wait(HrflowRun *run);
extern void hrflow_work_limit_locks(int limit);
extern void hrflow_work_read_settings(HrflowRun *run, int request_timeout);
extern void hrflow_work_receive(HrflowRun *run);
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
extern void hrflow_claim_undo(HrflowRun *run);
extern void hrflow_claim_renew(HrflowRun *run, const HrflowStore *store);
extern void hrflow_claim_renew_done(HrflowRun *run);
extern void hrflow_claim_release(HrflowRun *run, const HrflowStore *store);
extern void hrflow_claim_postpone(HrflowRun *run, const HrflowStore *store);
extern void hrflow_claim_postpone_done(HrflowRun *run);
extern void hrflow_claim_forget(HrflowRun *run, HrflowProfile *profile);
extern void hrflow_claim_forget_locked(HrflowRun *run);
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
extern int64 hrflow_content_read(HrflowRun *run, const HrflowStore *store,
								 List *feeders, TimestampTz lease);
extern void hrflow_content_unmark(HrflowRun *run, const HrflowStore *store);
extern void hrflow_content_warn(const HrflowRun *run);
extern void hrflow_content_share(HrflowRun *run, const HrflowProfile *leader);

/* in sent.c */
extern void hrflow_sent_find(HrflowRun *run, const HrflowStore *store,
							 List *profiles, TimestampTz lease);
extern int64 hrflow_sent_give_back(HrflowRun *run, const HrflowStore *store);

/* in model.c */
extern void hrflow_model_set_account(HrflowRun *run, const char *api_key);
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

/*
 * Does this SQLSTATE mean that there was a conflict with another session, such
 * as a lock, so that the work may succeed if it is retried?
 */
#define HRFLOW_IS_CONFLICT(sqlerrcode) \
	((sqlerrcode) == ERRCODE_LOCK_NOT_AVAILABLE || \
	 (sqlerrcode) == ERRCODE_T_R_DEADLOCK_DETECTED || \
	 (sqlerrcode) == ERRCODE_T_R_SERIALIZATION_FAILURE)

/*
 * Maximum wait for a lock if profiles are written one by one, in milliseconds.
 */
#define HRFLOW_SINGLE_LOCK_TIME 10

/* in arrived.c */
extern void hrflow_arrived_lock(const HrflowStore *store, List *profiles);

/* in write.c */
extern void hrflow_write(HrflowRun *run, const HrflowStore *store);
extern void hrflow_write_done(HrflowRun *run);
extern void hrflow_write_explain(const HrflowStore *store);
extern ErrorData *hrflow_write_try(void (*work) (void *arg), void *arg);
extern bool hrflow_write_is_complete(const HrflowProfile *profile);
extern bool hrflow_write_is_of_server(int sqlerrcode);
extern bool hrflow_write_is_locked(const HrflowProfile *profile);
extern bool hrflow_write_is_paid(const HrflowProfile *profile);

/* in record.c */
extern void hrflow_record_states(HrflowRun *run, const HrflowStore *store,
								 List *profiles);
extern void hrflow_record_explain(const HrflowStore *store);
extern void hrflow_record_reject(HrflowRun *run, HrflowProfile *profile,
								 const ErrorData *error);
extern void hrflow_record_failures(HrflowRun *run, const HrflowStore *store,
								   List *profiles);

/* in expire.c */
extern void hrflow_expire_some(HrflowRun *run);
extern void hrflow_expire_all(HrflowRun *run);

/* in lost.c */
extern void hrflow_lost_asked_for(const HrflowRun *run, ArrayType **whole,
								  ArrayType **sections, ArrayType **items);
extern void hrflow_lost_judge(HrflowRun *run, const HrflowStore *store,
							  List *profiles);
extern SPIPlanPtr hrflow_lost_prepare(const HrflowStore *store,
									  List *profiles);
extern void hrflow_lost_explain(const HrflowStore *store);
extern void hrflow_lost_put(const HrflowRun *run, SPIPlanPtr plan,
							const HrflowProfile *profile);
extern void hrflow_lost_note(const HrflowStore *store, List *profiles);
extern const char *hrflow_lost_why_kept(const HrflowRun *run);
extern void hrflow_lost_warn(const HrflowRun *run);

/* in settle.c */
extern void hrflow_settle_write(HrflowRun *run);
extern void hrflow_settle(HrflowRun *run);
extern void hrflow_settle_warn(const HrflowRun *run);

/* in erase.c */
extern void hrflow_erase_gone(HrflowRun *run, const HrflowStore *store);

#endif							/* HRFLOW_REFRESH_H */
