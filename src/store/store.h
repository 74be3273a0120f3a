/*-------------------------------------------------------------------------
 *
 * store.h
 *		Data structures and functions of stores.
 *
 * A store is two ordinary tables of one owner: NAME, with the vectors, and
 * NAME_profile, with the state of each profile.  Three more tables are
 * optional: see history.c, aside.c and erased.c.  There is no registry:
 * everything a function needs is in these tables, in its arguments, or in the
 * arguments of the triggers that feed the store.
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
 * are required.
 */
typedef enum HrflowStoreAccess
{
	HRFLOW_STORE_READ,			/* requires SELECT on both tables */
	HRFLOW_STORE_RANK,			/* requires SELECT on the table of vectors;
								 * the table of profiles is not opened */
	HRFLOW_STORE_WRITE,			/* requires SELECT, INSERT, UPDATE and DELETE
								 * on both tables */
	HRFLOW_STORE_OWN,			/* requires ownership, even of superusers */
	HRFLOW_STORE_FEED			/* for a trigger, which has checked the owner */
} HrflowStoreAccess;

/*
 * Describes how to read the contents to be sent from the columns of a feeding
 * table, if the API does not have them.  The SQL has the conventions of
 * hrflow_store_sql().
 */
typedef struct HrflowReading
{
	int			max_columns;
	bool		takes_item_type;	/* is there a type of items? */
	const Oid  *types;			/* types that a column may have */
	int			ntypes;
	const char *type_names;		/* names of these types, for a hint */
	const char *column_sql;		/* a column of row "f"; takes its name */
	const char *value_sql;		/* the content; takes the columns */
	const char *present_sql;	/* condition that c.value is not empty */
	const char *sendable_sql;	/* condition that c.value can probably be
								 * sent, which only make_body() knows */

	/*
	 * Make the JSON to POST, palloc'd; or return NULL, with *problem set to
	 * the reason as a whole sentence.
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
	const char *plural;			/* noun for messages and comments */
	const char *identifiers[HRFLOW_NIDENTIFIERS];	/* names of columns, then
													 * NULLs */
	bool		needs_source;	/* must source_id be nonempty? */
	bool		has_no_source;	/* must source_id be empty? */
	bool		has_sections;	/* does "fields" choose sections?  If not,
								 * "whole" is the only section */
	const char *whole;			/* section for a complete profile or job */
	HrflowWantedKind asked;		/* describes its requests to the API */
	const HrflowReading *reading;	/* how to read contents; NULL: the API has
									 * them */
} HrflowKind;

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
 * An open store.  The names are quoted and qualified, for use in SQL.
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
	bool		has_content;	/* does "profiles" have columns "content_hash"
								 * and "sent_hash"? */
	bool		has_fetched_with;	/* does "profiles" have "dimension",
									 * "sections" and "account"? */

	/* State that hrflow_store_close() restores. */
	Oid			saved_user;
	int			saved_context;
	int			saved_nestlevel;
} HrflowStore;

/*
 * Parameters of a statement.
 */
#define HRFLOW_MAX_PARAMETERS 20

typedef struct HrflowParameters
{
	int			n;
	Oid			types[HRFLOW_MAX_PARAMETERS];
	Datum		values[HRFLOW_MAX_PARAMETERS];
	char		nulls[HRFLOW_MAX_PARAMETERS];
} HrflowParameters;

/*
 * Rows to be passed to a statement as parameters, one array per column, which
 * unnest() turns into rows again.
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
	HRFLOW_TRIGGER_STORE,		/* name, quoted and qualified */
	HRFLOW_TRIGGER_PROFILE_COLUMN,
	HRFLOW_TRIGGER_SOURCE_ID,	/* empty if SOURCE_COLUMN is not */
	HRFLOW_TRIGGER_SOURCE_COLUMN,	/* empty if SOURCE_ID is not */

	/* Passed only if the content comes from columns of the table. */
	HRFLOW_TRIGGER_NCOLUMNS,	/* number of columns of content */
	HRFLOW_TRIGGER_ITEM_TYPE,	/* type of the items; may be empty */
	HRFLOW_TRIGGER_NARGS
};

/* Number of arguments of a trigger without columns of content. */
#define HRFLOW_TRIGGER_NKEYS HRFLOW_TRIGGER_NCOLUMNS

/*
 * A trigger on a table that feeds a store.
 */

typedef struct HrflowFeeder
{
	Oid			trigger;
	Oid			table;
	char	   *trigger_name;
	int16		type;			/* pg_trigger.tgtype */
	char		enabled;		/* pg_trigger.tgenabled */
	bool		is_insert;		/* is this the trigger on INSERT? */
	bool		is_update;		/* is this the trigger on UPDATE? */
	char	   *args[HRFLOW_TRIGGER_NARGS]; /* arguments, empty if the trigger
											 * lacks them */
} HrflowFeeder;

/*
 * Progress in putting aside, in batches, the profiles that no table wants; see
 * hrflow_aside_put_batch().
 */
typedef struct HrflowAsideBatch
{
	int			size;			/* number of profiles in a batch */
	MemoryContext context;		/* contains the key for the whole call */
	char	   *source_id;		/* source of the last profile so far, or NULL */
	char	   *identifier;		/* identifier of the last profile so far, or
								 * NULL */
	int64		nerased;		/* number of profiles erased at once, because
								 * they had no vectors */
	int64		nput;			/* number of profiles put aside */
} HrflowAsideBatch;

/*
 * Collation in which texts are compared with the keys of a store, regardless
 * of the collation of the column that they come from.  It is deterministic, so
 * texts are equal only if all their bytes are.
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
extern int	hrflow_kind_identifier(const HrflowKind *kind, const char *name);
extern const HrflowKind *hrflow_kind_of(Relation vectors, int *identifier);
extern char *hrflow_kind_section(const HrflowKind *kind, char *name);
extern void hrflow_kind_check_fields(const HrflowKind *kind, Jsonb *fields);

/* in layout.c */
extern bool hrflow_layout_find(Oid type, HrflowLayout *layout);
extern const void *hrflow_layout_read(HrflowLayout layout,
									  const struct varlena *value, int *n);

/* in catalog.c */
extern char *hrflow_catalog_function_name(const char *name, Oid other);
extern HeapTuple hrflow_catalog_trigger(Relation triggers, Oid trigger);
extern List *hrflow_catalog_dependencies(Oid class, Oid object);
extern char *hrflow_catalog_trigger_args(Relation triggers, HeapTuple tuple,
										 Oid function);
extern List *hrflow_catalog_triggers_of(Oid function, const char *store);

/* in feeder.c */
extern Oid	hrflow_feeder_function(Oid caller);
extern List *hrflow_feeder_find(const HrflowStore *store, Oid function,
								Oid table, LOCKMODE lockmode);
extern HrflowFeeder *hrflow_feeder_get(const HrflowStore *store, Oid function,
									   Oid trigger);
extern Oid	hrflow_feeder_original(Oid trigger, Oid *table);
extern void hrflow_feeder_check_owner(const HrflowStore *store, Oid table);
extern bool hrflow_feeder_is_of(Oid trigger, Oid vectors);
extern bool hrflow_feeder_has_store(Oid trigger, Oid table);
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
extern Bitmapset *hrflow_columns_watched(Relation table, List *feeders);
extern void hrflow_columns_check(Relation table, const char *name,
								 bool is_key, bool tracked);
extern void hrflow_columns_check_keys(Relation table, char *const *args,
									  bool tracked);
extern List *hrflow_columns_of_content(Relation table, Oid trigger,
									   char *const *args);
extern List *hrflow_columns_of_feeders(Relation table, List *feeders);
extern int	hrflow_columns_get(const char *argument, ArrayType *array,
							   char **columns);
extern int	hrflow_columns_get_content(const HrflowStore *store,
									   Relation table, ArrayType *array,
									   const NullableDatum *type, char **args,
									   char **columns);

/* Table with the keys of deleted profiles; see hrflow_deferred_register() */
#define HRFLOW_DELETED "hrflow_deleted"

/*
 * Assignments that mark row "p" of the table of profiles as changed.  A change
 * never moves a profile back in its queue.  If a profile changed while it was
 * fetched, another change does not make it due earlier.  A missing profile is
 * treated like a new one, because the API may not have indexed the change yet.
 */
#define HRFLOW_MARK_CHANGED \
	" state = 'due', due_at = CASE" \
	" WHEN p.state = 'due' AND p.attempts = 0 AND p.due_at IS NOT NULL" \
	" THEN p.due_at ELSE LEAST(p.due_at, clock_timestamp()) END," \
	" attempts = 0, generation = p.generation + 1"

/* in deferred.c */
extern void hrflow_deferred_add(const HrflowStore *store, Oid function,
								HrflowParameters *key);
extern void hrflow_deferred_add_all(const HrflowStore *store, Oid function,
									const char *profiles);
extern bool hrflow_deferred_register(const HrflowStore *store);

/* in beside.c */
extern const char *hrflow_beside_name(const char *schema, const char *vectors,
									  const char *suffix);
extern Oid	hrflow_beside_find(const HrflowStore *store, const char *suffix,
							   const char *const *columns);

/* in erased.c */
extern void hrflow_erased_create(const char *schema, const char *vectors);
extern Oid	hrflow_erased_find(const HrflowStore *store);
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
extern const char *hrflow_aside_put_sql(const HrflowStore *store,
										const char *reason);
extern void hrflow_aside_erase_expired(const HrflowStore *store);
extern uint64 hrflow_aside_put_unwanted(const HrflowStore *store, Oid function,
										bool is_limited);
extern bool hrflow_aside_put_batch(const HrflowStore *store, Oid function,
								   HrflowAsideBatch *batch);
extern uint64 hrflow_aside_put_end(const HrflowStore *store,
								   const HrflowAsideBatch *batch);
extern int64 hrflow_aside_count(const HrflowStore *store);
extern void hrflow_aside_restore_wanted(const HrflowStore *store,
										Oid function);

/* in erase.c */
extern void hrflow_erase_deleted(const HrflowStore *store, Oid function);
extern uint64 hrflow_erase_profiles(const HrflowStore *store,
									const HrflowParameters *parameters);
extern int64 hrflow_erase_allowance(const HrflowStore *store);
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

/* in schedule.c */
extern char *hrflow_schedule_last_status(const HrflowStore *store);
extern void hrflow_schedule_forget(const HrflowStore *store, Oid caller);

#endif							/* HRFLOW_STORE_H */
