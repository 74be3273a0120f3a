/*-------------------------------------------------------------------------
 *
 * store.h
 *		What the files that work on stores share.
 *
 * A store is two ordinary tables of one owner: NAME, with the vectors, and
 * NAME_profile, with the state of each profile.  There is no registry: what a
 * function needs is in the two tables, in its arguments, or in the arguments
 * of the triggers that feed the store.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_STORE_H
#define HRFLOW_STORE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "executor/spi.h"
#include "utils/acl.h"
#include "utils/jsonb.h"
#include "utils/rel.h"

/*
 * On whose behalf a store is opened.
 */
typedef enum HrflowStoreAccess
{
	HRFLOW_STORE_READ,			/* by who may SELECT from both tables */
	HRFLOW_STORE_WRITE,			/* by who may write to both tables */
	HRFLOW_STORE_OWN,			/* by its owner alone, superusers included */
	HRFLOW_STORE_FEED			/* by a trigger of a table of the owner's */
} HrflowStoreAccess;

/*
 * The kind of identifier a store has; in the order of those of HrflowQuery.
 */
typedef enum HrflowIdentifier
{
	HRFLOW_BY_ID,
	HRFLOW_BY_REFERENCE,
	HRFLOW_BY_EMAIL
} HrflowIdentifier;

/*
 * An open store.  The names are quoted and qualified, for use in SQL.
 */
typedef struct HrflowStore
{
	Oid			owner;			/* of both tables */
	Relation	vectors;
	Relation	profiles;
	char	   *vectors_name;
	char	   *profiles_name;
	HrflowIdentifier identifier;
	const char *identifier_name;	/* of the column: "profile_id", ... */
	char	   *vector_type;	/* of the column */
	bool		has_manual;		/* the column of what was tracked by hand */
	bool		has_failed_at;	/* the column of when it failed last */

	/* What hrflow_store_close() sets back. */
	Oid			saved_user;
	int			saved_context;
	int			saved_nestlevel;
} HrflowStore;

/*
 * Parameters of a statement.
 */
#define HRFLOW_MAX_PARAMETERS 16

typedef struct HrflowParameters
{
	int			n;
	Oid			types[HRFLOW_MAX_PARAMETERS];
	Datum		values[HRFLOW_MAX_PARAMETERS];
	char		nulls[HRFLOW_MAX_PARAMETERS];
} HrflowParameters;

/* in store.c */
extern Oid	hrflow_store_profiles(Oid vectors);
extern void hrflow_store_open(HrflowStore *store, Oid vectors, Oid profiles,
							  HrflowStoreAccess access);
extern void hrflow_store_close(HrflowStore *store);
extern void hrflow_store_check_manual(const HrflowStore *store);
extern char *hrflow_store_sql(const HrflowStore *store, const char *template);
extern void hrflow_store_add(HrflowParameters *parameters, Oid type,
							 Datum value);
extern ErrorData *hrflow_store_try(void (*work) (void *arg), void *arg);
extern uint64 hrflow_store_execute(const char *sql,
								   const HrflowParameters *parameters);
extern char *hrflow_store_value_or_null(uint64 row, int column);
extern char *hrflow_store_value(uint64 row, int column);
extern Datum hrflow_store_datum(uint64 row, int column);
extern ArrayType *hrflow_store_identifiers(FunctionCallInfo fcinfo, int argno);

/* in track.c */
extern bool hrflow_track_drop_triggers(const HrflowStore *store,
									   Oid caller, Oid table);

/* in schedule.c */
extern char *hrflow_schedule_job(const HrflowStore *store);
extern void hrflow_schedule_forget(const HrflowStore *store, Oid caller);

/* in refresh.c */
extern Interval *hrflow_refresh_interval(FunctionCallInfo fcinfo, int argno,
										 const char *name);

#endif							/* HRFLOW_STORE_H */
