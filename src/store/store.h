/*-------------------------------------------------------------------------
 *
 * store.h
 *		Data structures and functions for stores.
 *
 * A store consists of two tables that have the same owner: NAME, with the
 * vectors, and NAME_profile, with the state of each profile.
 * (hrflow_refresh() accepts a table of profiles with another name.)  Three
 * more tables are optional: see history.c, aside.c and erased.c.  There is no
 * registry of stores: only these tables, the triggers that feed a store, and
 * its pg_cron job describe it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_STORE_H
#define HRFLOW_STORE_H

#include "postgres.h"

#include "ask/ask.h"
#include "datatype/timestamp.h"
#include "executor/spi.h"
#include "utils/acl.h"
#include "utils/jsonb.h"
#include "utils/rel.h"

/*
 * Purpose for which a store is opened, which determines the privileges that
 * are required.  HRFLOW_STORE_READ and HRFLOW_STORE_WRITE also require that
 * row-level security does not apply to the caller.
 */
typedef enum HrflowStoreAccess
{
	HRFLOW_STORE_READ,			/* requires SELECT on both tables */
	HRFLOW_STORE_RANK,			/* requires SELECT on the table of vectors;
								 * the table of profiles is not opened */
	HRFLOW_STORE_WRITE,			/* requires SELECT, INSERT, UPDATE and DELETE
								 * on both tables */
	HRFLOW_STORE_OWN,			/* requires that the caller is the owner;
								 * superusers are not exempt */
	HRFLOW_STORE_FEED			/* requires no privileges of the caller; for
								 * triggers, which check that their table and
								 * the store have the same owner, and for work
								 * that they defer */
} HrflowStoreAccess;

/*
 * Describes how to read contents from columns of a table that feeds a store,
 * for a kind whose contents the API does not have.  "column_sql" and
 * "value_sql" are templates for hrflow_store_sql().
 */
typedef struct HrflowReading
{
	int			max_columns;
	bool		takes_item_type;	/* is the argument "item_type" used? */
	const Oid  *types;			/* types that a column may have; a domain
								 * counts as its base type */
	int			ntypes;
	const char *types_hint;		/* hint that names "types", to be translated */
	const char *column_sql;		/* SQL template that reads a column of row
								 * "f"; the argument is the name of the column */
	const char *value_sql;		/* SQL template that computes the content; the
								 * argument is a list of the columns, as read
								 * by "column_sql" */
	const char *present_sql;	/* SQL condition that c.value is not empty */
	const char *sendable_sql;	/* SQL condition that c.value can probably be
								 * sent; make_body() decides */

	/*
	 * Return the JSON to POST, palloc'd.  If the value cannot be sent, return
	 * NULL, and set *problem to the reason, a complete sentence.
	 */
	char	   *(*make_body) (const char *item_type, Datum value,
							  char **problem);
} HrflowReading;

/*
 * A kind of content that a store may have.
 */
typedef struct HrflowKind
{
	const char *content;		/* value of the argument "content" */
	const char *plural;			/* plural noun for COMMENT ON */
	const char *identifiers[HRFLOW_NIDENTIFIERS];	/* column names, then
													 * NULLs */
	bool		needs_source;	/* must source_id be nonempty? */
	bool		has_no_source;	/* must source_id be empty? */
	bool		has_sections;	/* does "fields" choose sections?  If not,
								 * "whole" is the only section */
	const char *whole;			/* section for the complete content, such as a
								 * whole profile */
	HrflowWantedKind asked;		/* describes requests for this kind */
	const HrflowReading *reading;	/* how to read contents from columns, or
									 * NULL if the API has the contents */
} HrflowKind;

/*
 * A column that a table must have.
 */
typedef struct HrflowColumn
{
	const char *name;
	Oid			type;			/* InvalidOid means any type */
} HrflowColumn;

/*
 * Identifies the last WARNING about an ignored relation; see beside.c.
 */
typedef struct HrflowBesideWarning
{
	Oid			vectors;		/* table of vectors of the store */
	TimestampTz statement;		/* start of the client's statement */
} HrflowBesideWarning;

/*
 * The layout in which a column stores vectors.
 */
typedef enum HrflowLayout
{
	HRFLOW_LAYOUT_ARRAY,		/* real[] */
	HRFLOW_LAYOUT_VECTOR,		/* pgvector's vector */
	HRFLOW_LAYOUT_HALFVEC		/* pgvector's halfvec */
} HrflowLayout;

/*
 * An open store.  "vectors_name" and "profiles_name" are quoted and qualified,
 * for use in SQL.
 */
typedef struct HrflowStore
{
	Oid			owner;			/* of both tables */
	Relation	vectors;
	Relation	profiles;		/* NULL for HRFLOW_STORE_RANK */
	char	   *vectors_name;
	char	   *profiles_name;	/* NULL for HRFLOW_STORE_RANK */
	const HrflowKind *kind;
	int			identifier;		/* index into kind->identifiers */
	const char *identifier_name;	/* name of the identifier's column, such
									 * as "profile_id" */
	char	   *vector_type;	/* type of the column "vector" */
	HrflowLayout layout;		/* layout of the column "vector" */
	bool		has_manual;		/* does "profiles" have a column "manual"? */
	bool		has_failed_at;	/* does "profiles" have a column "failed_at"? */
	bool		has_erased_at;	/* does "profiles" have a column "erased_at"? */
	bool		has_content;	/* are contents read from columns?  If so,
								 * "profiles" has the columns "content_hash"
								 * and "sent_hash" */
	bool		has_fetched_with;	/* does "profiles" have "dimension",
									 * "sections" and "account", with the
									 * expected types? */

	/* State that hrflow_store_close() restores. */
	Oid			saved_user;
	int			saved_context;
	int			saved_nestlevel;
} HrflowStore;

/* Maximum number of parameters of a statement. */
#define HRFLOW_MAX_PARAMETERS 20

/*
 * Parameters of a statement, $1 and so on.
 */
typedef struct HrflowParameters
{
	int			n;
	Oid			types[HRFLOW_MAX_PARAMETERS];
	Datum		values[HRFLOW_MAX_PARAMETERS];
	char		nulls[HRFLOW_MAX_PARAMETERS];
} HrflowParameters;

/*
 * Rows to be passed to a statement as parameters, one array per column.  The
 * statement converts the arrays to rows with unnest().
 */
typedef struct HrflowRows
{
	int			ncolumns;
	const Oid  *types;			/* types of the columns */
	int			n;				/* number of rows so far */
	int			max;			/* maximum number of rows */
	Datum	  **values;			/* indexed by column, then by row */
	bool	  **nulls;			/* indexed like "values" */
} HrflowRows;

/*
 * Arguments of the triggers on a table that feeds a store.
 */
enum
{
	HRFLOW_TRIGGER_STORE,		/* store name, quoted and qualified */
	HRFLOW_TRIGGER_PROFILE_COLUMN,
	HRFLOW_TRIGGER_SOURCE_ID,	/* source of all rows; may be empty */
	HRFLOW_TRIGGER_SOURCE_COLUMN,	/* column with the source of each row; may
									 * be empty */

	/* These are passed only if the content comes from columns of the table. */
	HRFLOW_TRIGGER_NCOLUMNS,	/* number of content columns */
	HRFLOW_TRIGGER_ITEM_TYPE,	/* type of the items; may be empty */
	HRFLOW_TRIGGER_NARGS
};

/* Number of arguments of a trigger without content columns. */
#define HRFLOW_TRIGGER_NKEYS HRFLOW_TRIGGER_NCOLUMNS

/*
 * A trigger on a table that feeds a store.
 */
typedef struct HrflowFeeder
{
	Oid			trigger;
	Oid			table;
	Oid			function;
	Oid			stranger;		/* partition or child whose owner lacks the
								 * privileges of the store's owner, or
								 * InvalidOid; see hrflow_owner_stranger() */
	char	   *trigger_name;
	int16		type;			/* pg_trigger.tgtype */
	char		enabled;		/* pg_trigger.tgenabled */
	bool		represents;		/* does this trigger represent its table?  See
								 * hrflow_feeder_find() */
	bool		is_update;		/* is this the trigger on UPDATE? */
	char	   *args[HRFLOW_TRIGGER_NARGS]; /* arguments; an argument that the
											 * trigger lacks is an empty
											 * string */
} HrflowFeeder;

/*
 * Progress of putting unwanted profiles aside in batches; see
 * hrflow_aside_put_batch().
 */
typedef struct HrflowAsideBatch
{
	int			size;			/* maximum number of profiles in a batch */
	MemoryContext context;		/* memory context of the strings below; lives
								 * until the procedure returns */
	char	   *source_id;		/* source of the last profile so far, or NULL */
	char	   *identifier;		/* identifier of the last profile so far, or
								 * NULL */
	int64		nerased;		/* number of profiles erased immediately,
								 * because they had no vectors */
	int64		nput;			/* number of profiles put aside */
	bool		is_refused;		/* was the last batch refused, with a WARNING? */
} HrflowAsideBatch;

/*
 * Collation for comparing texts with the keys of a store, regardless of the
 * collation of the column that contains a text.  It is deterministic, so texts
 * are equal only if all their bytes are equal.
 */
#define HRFLOW_PLAIN_COLLATION " COLLATE pg_catalog.\"default\""

/* in store.c */
extern char *hrflow_store_relation_name(Oid relation);
extern char *hrflow_store_sql(const HrflowStore *store, const char *template,
							  ...);
extern void hrflow_store_add(HrflowParameters *parameters, Oid type,
							 Datum value);
extern HrflowRows *hrflow_store_make_rows(const Oid *types, int ncolumns,
										  int max);
extern void hrflow_store_add_row(HrflowRows *rows, const Datum *values,
								 const bool *nulls);
extern void hrflow_store_add_rows(HrflowParameters *parameters,
								  const HrflowRows *rows);
extern ErrorData *hrflow_store_try(void (*work) (void *arg), void *arg);
extern uint64 hrflow_store_execute(const char *sql,
								   const HrflowParameters *parameters);
extern void hrflow_store_explain(const char *sql,
								 const HrflowParameters *parameters);
extern uint64 hrflow_store_execute_latest(const char *sql,
										  const HrflowParameters *parameters);
extern void hrflow_store_execute_plan_latest(SPIPlanPtr plan, Datum *values,
											 const char *nulls);
extern SPIPlanPtr hrflow_store_prepare(const char *sql, int nargs, Oid *types);
extern void hrflow_store_execute_plan(SPIPlanPtr plan, Datum *values,
									  const char *nulls);
HRFLOW_NORETURN extern void hrflow_store_refuse_null(const char *column);
extern char *hrflow_store_value_or_null(uint64 row, int column);
extern char *hrflow_store_value(uint64 row, int column);
extern Datum hrflow_store_datum(uint64 row, int column);
extern char *hrflow_store_profiles_name(const char *vectors);
extern Oid	hrflow_store_profiles(Oid vectors);
extern AttrNumber hrflow_store_check_column(Relation relation,
											const char *name, Oid type);
extern void hrflow_store_check_manual(const HrflowStore *store);
extern void hrflow_store_open(HrflowStore *store, Oid vectors, Oid profiles,
							  HrflowStoreAccess access);
extern void hrflow_store_close(HrflowStore *store);

/* in kind.c */
extern const HrflowKind *hrflow_kind_find(const char *content);
extern const char *hrflow_kind_bare_name(const HrflowKind *kind,
										 const char *identifier);
extern int	hrflow_kind_identifier(const HrflowKind *kind, const char *name);
extern const HrflowKind *hrflow_kind_of(Relation vectors, int *identifier);
extern char *hrflow_kind_section(const HrflowKind *kind, char *name);
extern void hrflow_kind_check_fields(const HrflowKind *kind, Jsonb *fields);

/* in layout.c */
extern bool hrflow_layout_find(Oid type, HrflowLayout *layout);
extern const void *hrflow_layout_read(HrflowLayout layout,
									  const struct varlena *value, int *n);

/* in catalog.c */
extern char *hrflow_catalog_schema(Oid function);
extern char *hrflow_catalog_qualified_name(Oid function);
HRFLOW_NORETURN extern void hrflow_catalog_refuse_dropped(Oid relation);
extern Relation hrflow_catalog_open(Oid relation);
extern Oid	hrflow_catalog_function(const char *name, const Oid *types,
									int nargs, Oid other);
extern char *hrflow_catalog_function_name(const char *name, Oid other);
extern HeapTuple hrflow_catalog_trigger(Relation triggers, Oid trigger);
extern List *hrflow_catalog_dependencies(Oid class, Oid object);
extern char *hrflow_catalog_trigger_args(Relation triggers, HeapTuple tuple,
										 Oid function);
extern List *hrflow_catalog_triggers_of(Oid function, const char *store);

/* in owner.c */
extern Oid	hrflow_owner_stranger(Oid table, Oid owner);
extern void hrflow_owner_lock(Oid table, LOCKMODE lockmode);
extern bool hrflow_owner_may_feed(const HrflowStore *store, Oid table);
extern void hrflow_owner_check(const HrflowStore *store, Oid table);
extern void hrflow_owner_check_all(const HrflowStore *store, Oid table);

/* in feeder.c */
extern Oid	hrflow_feeder_function(Oid caller);
extern List *hrflow_feeder_find(const HrflowStore *store, Oid function,
								Oid table, LOCKMODE lockmode);
extern HrflowFeeder *hrflow_feeder_get(const HrflowStore *store, Oid function,
									   Oid trigger);
extern bool hrflow_feeder_is_of(Oid trigger, Oid vectors);
extern Oid	hrflow_feeder_store(Oid trigger, Oid table);
extern void hrflow_feeder_drop(const HrflowFeeder *feeder);
extern bool hrflow_feeder_drop_all(const HrflowStore *store, Oid function,
								   Oid table);
extern bool hrflow_feeder_can_ask_all(const HrflowStore *store, Oid function);
extern bool hrflow_feeder_owns_all(const HrflowStore *store, Oid function);
extern char *hrflow_feeder_profiles(const HrflowStore *store,
									char *const *args, const char *table,
									const char *distinct);
extern char *hrflow_feeder_wants(const HrflowStore *store, Relation table,
								 char *const *args);
extern char *hrflow_feeder_unwanted(const HrflowStore *store, Oid function);
extern bool hrflow_feeder_has_tracked(const HrflowStore *store,
									  const char *profiles);
extern void hrflow_feeder_track_new(const HrflowStore *store,
									const char *profiles);
extern uint64 hrflow_feeder_track(const HrflowStore *store,
								  const char *profiles,
								  const HrflowParameters *parameters);
extern uint64 hrflow_feeder_track_missing(const HrflowStore *store,
										  Relation table, char *const *args);
extern char *hrflow_feeder_want_sql(const HrflowStore *store,
									const char *profiles);
extern void hrflow_feeder_want_inserted(const HrflowStore *store,
										const char *profiles);
extern void hrflow_feeder_mark_kept(const HrflowStore *store);

/* in columns.c */
extern Bitmapset *hrflow_columns_watched(List *feeders);
extern void hrflow_columns_check(Relation table, const char *name,
								 bool is_key, bool tracked);
extern bool hrflow_columns_are_compared(Relation table, Oid function,
										char *const *args);
extern bool hrflow_columns_same_keys(char *const *a, char *const *b);
extern bool hrflow_columns_have_keys(Relation table, Oid function,
									 char *const *args);
extern bool hrflow_columns_change_keys(Relation table, Oid function,
									   char *const *args,
									   char *const *new_args);
extern void hrflow_columns_check_keys(Relation table, Oid function,
									  char *const *args);
extern List *hrflow_columns_of_content(Relation table, Oid trigger,
									   char *const *args);
extern List *hrflow_columns_of_feeders(List *feeders);
extern int	hrflow_columns_get(const char *argument, ArrayType *array,
							   char **columns);
extern int	hrflow_columns_get_content(const HrflowStore *store,
									   Relation table, ArrayType *array,
									   const NullableDatum *type, char **args,
									   char **columns);

/*
 * Name of the table with the keys of deleted profiles; see
 * hrflow_deferred_register().
 */
#define HRFLOW_DELETED "hrflow_deleted"

/*
 * SQL assignments that mark row "p" of the table of profiles as changed.  A
 * change never makes a profile due later.  If the profile's state is already
 * "due", and its "attempts" are 0, a change does not make it due earlier
 * either: a profile that changed while it was fetched waits for
 * refresh_debounce.  A missing profile is treated like a new profile, because
 * the API may not have indexed the change yet.
 */
#define HRFLOW_MARK_CHANGED HRFLOW_MARK_CHANGED_IF_WAITING("")

/*
 * Likewise for hrflow_mark_due(), except that a profile that would wait for
 * longer than refresh_debounce, for example because of an error, becomes due:
 * the caller may know that the cause of the error no longer exists.
 */
#define HRFLOW_MARK_DUE \
	HRFLOW_MARK_CHANGED_IF_WAITING(" AND p.due_at <= clock_timestamp()" \
		" + current_setting('hrflow_embed.refresh_debounce')::interval")

#define HRFLOW_MARK_CHANGED_IF_WAITING(condition) \
	" state = 'due', due_at = CASE" \
	" WHEN p.state = 'due' AND p.attempts = 0 AND p.due_at IS NOT NULL" \
	condition \
	" THEN p.due_at ELSE LEAST(p.due_at, clock_timestamp()) END," \
	" attempts = 0, generation = p.generation + 1"

/* in release.c */
extern char *hrflow_release_statement(const HrflowStore *store,
									  const char *name, Relation table,
									  List *feeders, Oid caller);

/* in deferred.c */
extern void hrflow_deferred_add(const HrflowStore *store, Oid function,
								HrflowParameters *key);
extern void hrflow_deferred_add_all(const HrflowStore *store, Oid function,
									const char *profiles);
extern void hrflow_deferred_register_rows(char *name, TupleDesc desc,
										  Tuplestorestate *rows);
extern bool hrflow_deferred_register(const HrflowStore *store);

/* Rows collected from an UPDATE; defined in updated.c. */
typedef struct HrflowUpdated HrflowUpdated;

/* in updated.c */
extern HrflowUpdated *hrflow_updated_find(Oid trigger);
extern const HrflowKind *hrflow_updated_kind(const HrflowUpdated *updated);
extern void hrflow_updated_note(const HrflowStore *store, Oid function,
								Oid trigger);
extern void hrflow_updated_add(HrflowUpdated *updated,
							   const HrflowParameters *key,
							   const HrflowParameters *old);
extern void hrflow_updated_define(void);

/* in beside.c */
extern const char *hrflow_beside_name(const char *schema, const char *vectors,
									  const char *suffix);
extern Oid	hrflow_beside_find(const HrflowStore *store, const char *suffix,
							   const HrflowColumn *columns, int ncolumns,
							   char **problem);
extern void hrflow_beside_check_renamed(const HrflowStore *store,
										const HrflowFeeder *feeder);
extern bool hrflow_beside_should_warn(const HrflowStore *store,
									  HrflowBesideWarning *last);

/* in erased.c */
extern void hrflow_erased_create(const char *schema, const char *vectors);
extern Oid	hrflow_erased_find(const HrflowStore *store);
extern void hrflow_erased_untracked(const HrflowStore *store,
									HrflowParameters *fingerprints);
extern void hrflow_erased_repeat(const HrflowStore *store,
								 const HrflowParameters *fingerprints);
extern void hrflow_erased_warn(const HrflowStore *store);
extern const char *hrflow_erased_note_sql(const HrflowStore *store,
										  const char *reason,
										  const char *erased);

/* in functions.c */
extern void hrflow_functions_check_source(const HrflowStore *store,
										  Datum source_id);
extern ArrayType *hrflow_functions_get_identifiers(FunctionCallInfo fcinfo,
												   int argno);

/* in aside.c */
extern void hrflow_aside_create(const HrflowStore *store, const char *schema,
								const char *vectors);
extern Oid	hrflow_aside_find(const HrflowStore *store);
extern void hrflow_aside_warn(const HrflowStore *store, bool is_dropped);
extern bool hrflow_aside_lock(const HrflowStore *store, bool wait,
							  Oid *table);
extern const char *hrflow_aside_put_sql(const HrflowStore *store,
										const char *reason);
extern bool hrflow_aside_lock_keys(const HrflowStore *store,
								   const char *condition, const char *how,
								   const HrflowParameters *parameters,
								   HrflowParameters *keys);
extern uint64 hrflow_aside_put_unwanted(const HrflowStore *store, Oid function,
										bool is_limited);
extern bool hrflow_aside_put_batch(const HrflowStore *store, Oid function,
								   HrflowAsideBatch *batch);
extern uint64 hrflow_aside_put_end(const HrflowStore *store,
								   const HrflowAsideBatch *batch);
extern int64 hrflow_aside_count(const HrflowStore *store);

/* in restore.c */
extern void hrflow_restore_wanted(const HrflowStore *store, Oid function);

/* in expire.c */
extern bool hrflow_expire_batch(const HrflowStore *store);

/*
 * Result of hrflow_erase_allowance() while another session holds a lock that
 * the function requires.
 */
#define HRFLOW_ERASE_UNDECIDED (-1)

/*
 * Number of profiles that may have vectors, as far as they have been counted;
 * initially zero.
 */
typedef struct HrflowRefreshed
{
	int64		n;
	bool		is_total;		/* were all of them counted? */
} HrflowRefreshed;

/* in erase.c */
extern void hrflow_erase_deleted(const HrflowStore *store, Oid function);
extern uint64 hrflow_erase_profiles(const HrflowStore *store,
									const HrflowParameters *parameters);
extern int64 hrflow_erase_allowance(const HrflowStore *store, int64 wanted,
									HrflowRefreshed *refreshed);
extern int64 hrflow_erase_count(const HrflowStore *store);

/* in history.c */
extern void hrflow_history_create(const char *schema, const char *vectors);
extern Oid	hrflow_history_find(const HrflowStore *store);
extern void hrflow_history_last(const HrflowStore *store, Datum *values,
								bool *nulls);

/* in remote.c */
extern char *hrflow_remote_reason(Relation table);
extern void hrflow_remote_check_table(Relation table);
extern void hrflow_remote_check(const HrflowStore *store);
extern void hrflow_remote_check_subscription(const HrflowStore *store);

/* in ready.c */
extern void hrflow_ready_check(const HrflowStore *store);
extern void hrflow_ready_warn(const HrflowStore *store, Oid function);

/*
 * The job by which pg_cron refreshes a store.
 */
typedef struct HrflowJob
{
	char	   *schedule;
	char	   *command;
} HrflowJob;

/* in schedule.c */
extern char *hrflow_schedule_last_status(const HrflowStore *store);
extern void hrflow_schedule_forget(const HrflowStore *store, Oid caller);
extern bool hrflow_schedule_read(const HrflowStore *store, const char *name,
								 Oid caller, HrflowJob *job);
extern void hrflow_schedule_again(const HrflowStore *store, Oid caller,
								  const HrflowJob *job);

#endif							/* HRFLOW_STORE_H */
