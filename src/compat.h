/*-------------------------------------------------------------------------
 *
 * compat.h
 *		Every difference between the versions of PostgreSQL (15 and later)
 *		and of libcurl (7.88 and later) that we meet, and nothing else.
 *
 * No other file names PG_VERSION_NUM or LIBCURL_VERSION_NUM.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_COMPAT_H
#define HRFLOW_COMPAT_H

#include "postgres.h"

#include <curl/curlver.h>

#include "access/amapi.h"
#include "access/tableam.h"
#include "access/genam.h"
#include "access/toast_internals.h"
#include "catalog/pg_attribute.h"
#include "commands/explain.h"
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#endif
#include "fmgr.h"
#include "miscadmin.h"
#if PG_VERSION_NUM >= 160000
#include "nodes/miscnodes.h"
#endif
#if PG_VERSION_NUM >= 170000
#include "storage/dsm_registry.h"
#endif
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif
#include "utils/acl.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#if PG_VERSION_NUM < 150000
#error "hrflow_embed needs PostgreSQL 15 or later"
#endif

/*
 * PostgreSQL 18 lets a module tell its name and version.
 */
#if PG_VERSION_NUM >= 180000
#define HRFLOW_MODULE_MAGIC \
	PG_MODULE_MAGIC_EXT(.name = "hrflow_embed", .version = HRFLOW_EMBED_VERSION)
#else
#define HRFLOW_MODULE_MAGIC PG_MODULE_MAGIC
#endif

/*
 * Stands before a declaration.
 */
#if PG_VERSION_NUM >= 180000
#define HRFLOW_NORETURN pg_noreturn
#else
#define HRFLOW_NORETURN pg_attribute_noreturn()
#endif

/*
 * From 17 on a WaitEventSet belongs to a resource owner (NULL: to nobody,
 * which is what a set that lives as long as the backend wants) and not to a
 * memory context.
 */
static inline WaitEventSet *
hrflow_compat_wait_set(int nevents)
{
#if PG_VERSION_NUM >= 170000
	return CreateWaitEventSet(NULL, nevents);
#else
	return CreateWaitEventSet(TopMemoryContext, nevents);
#endif
}

/*
 * From 17 on an extension's wait events have names.  Earlier they are all
 * "Extension".
 */
static inline uint32
hrflow_compat_wait_event(const char *name)
{
#if PG_VERSION_NUM >= 170000
	return WaitEventExtensionNew(name);
#else
	return PG_WAIT_EXTENSION;
#endif
}

/*
 * The number of this backend, from 0 to MaxBackends - 1.
 */
static inline int
hrflow_compat_backend_number(void)
{
#if PG_VERSION_NUM >= 170000
	return MyProcNumber;
#else
	return MyBackendId - 1;
#endif
}

/*
 * May a role that has logged in SET ROLE to another?  From 16 on a membership
 * may be without that.
 */
static inline bool
hrflow_compat_can_set_role(Oid member, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return member_can_set_role(member, role);
#else
	return is_member_of_role(member, role);
#endif
}

/*
 * From 17 on shared memory can be had by name, without preloading.
 */
#if PG_VERSION_NUM >= 170000
#define HRFLOW_HAVE_DSM_REGISTRY 1

typedef void (*HrflowInitialize) (void *pointer);

#if PG_VERSION_NUM >= 190000
static inline void
hrflow_compat_initialize(void *pointer, void *arg)
{
	(*(HrflowInitialize *) arg) (pointer);
}
#endif

static inline void *
hrflow_compat_named_segment(const char *name, size_t size,
							HrflowInitialize initialize)
{
	bool		found;

#if PG_VERSION_NUM >= 190000
	return GetNamedDSMSegment(name, size, hrflow_compat_initialize, &found,
							  &initialize);
#else
	return GetNamedDSMSegment(name, size, initialize, &found);
#endif
}
#else
#define HRFLOW_HAVE_DSM_REGISTRY 0
#endif

/*
 * Initialize a lock in shared memory, and have this backend know its name.  From
 * 19 on the name is shared.
 */
static inline void
hrflow_compat_init_lock(LWLock *lock, const char *name)
{
#if PG_VERSION_NUM >= 190000
	LWLockInitialize(lock, LWLockNewTrancheId(name));
#else
	LWLockInitialize(lock, LWLockNewTrancheId());
#endif
}

static inline void
hrflow_compat_register_lock(const LWLock *lock, const char *name)
{
#if PG_VERSION_NUM < 190000
	LWLockRegisterTranche(lock->tranche, name);
#endif
}

/*
 * From 19 on a tuple descriptor is not complete before this.
 */
static inline void
hrflow_compat_finalize_desc(TupleDesc desc)
{
#if PG_VERSION_NUM >= 190000
	TupleDescFinalize(desc);
#endif
}

/*
 * libcurl's CURLE_TOO_LARGE, since 8.6: earlier no error has this number.
 */
#define HRFLOW_CURLE_TOO_LARGE 100

/*
 * Does libcurl say CURLE_OUT_OF_MEMORY of it instead?
 */
#define HRFLOW_CURL_TOO_LARGE_IS_MEMORY() \
	(curl_version_info(CURLVERSION_NOW)->version_num < 0x080600)

/*
 * CURLMOPT_QUICK_EXIT, which came with 8.20, though these headers may be older:
 * curl_multi_cleanup() does not wait for lookups that were given up.
 */
#define HRFLOW_CURLMOPT_QUICK_EXIT ((CURLMoption) (CURLOPTTYPE_LONG + 21))

/*
 * The snapshot with which chunks of out-of-line values are read.  Before 18 it
 * is made in memory of the caller's.
 */
static inline Snapshot
hrflow_compat_toast_snapshot(SnapshotData *memory)
{
#if PG_VERSION_NUM >= 180000
	return get_toast_snapshot();
#else
	init_toast_snapshot(memory);
	return memory;
#endif
}

/*
 * Begin an index scan.  From 18 on it can count what it does for EXPLAIN.
 */
static inline IndexScanDesc
hrflow_compat_begin_index_scan(Relation table, Relation index,
							   Snapshot snapshot, int nkeys)
{
#if PG_VERSION_NUM >= 190000
	return index_beginscan(table, index, snapshot, NULL, nkeys, 0, 0);
#elif PG_VERSION_NUM >= 180000
	return index_beginscan(table, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(table, index, snapshot, nkeys, 0);
#endif
}

/*
 * A jsonb under construction, and what is pushed to it.
 */
#if PG_VERSION_NUM >= 190000
typedef JsonbInState HrflowJsonbState;
#else
typedef struct HrflowJsonbState
{
	JsonbParseState *parse;
	JsonbValue *result;			/* once its end was pushed */
} HrflowJsonbState;
#endif

static inline void
hrflow_compat_push_jsonb(HrflowJsonbState *state, JsonbIteratorToken token,
						 JsonbValue *value)
{
#if PG_VERSION_NUM >= 190000
	pushJsonbValue(state, token, value);
#else
	state->result = pushJsonbValue(&state->parse, token, value);
#endif
}

/*
 * Begin a sequential scan of a whole table.  Since 19 the caller says what it
 * will do beside reading: nothing.
 */
static inline TableScanDesc
hrflow_compat_beginscan(Relation relation, Snapshot snapshot)
{
#if PG_VERSION_NUM >= 190000
	return table_beginscan(relation, snapshot, 0, NULL, SO_NONE);
#else
	return table_beginscan(relation, snapshot, 0, NULL);
#endif
}

/*
 * PostgreSQL 19 renamed UpperUniquePath: the path of its former name is gone.
 */
#if PG_VERSION_NUM >= 190000
#define UpperUniquePath UniquePath
#define T_UpperUniquePath T_UniquePath
#endif

/*
 * Load the library of an index access method.  Since 19 the routine is a
 * constant; before, it was a copy for the caller.
 */
static inline void
hrflow_compat_load_index_method(Oid method)
{
#if PG_VERSION_NUM >= 190000
	(void) GetIndexAmRoutineByAmId(method, false);
#else
	pfree(GetIndexAmRoutineByAmId(method, false));
#endif
}

/*
 * A column that is generated when it is read; before 18 there are none.
 */
#ifndef ATTRIBUTE_GENERATED_VIRTUAL
#define ATTRIBUTE_GENERATED_VIRTUAL 'v'
#endif

/*
 * PostgreSQL 18 dropped the parameter "execute_once" of ExecutorRun().
 */
#if PG_VERSION_NUM >= 180000
#define HRFLOW_EXECUTOR_RUN_PARAMETERS \
	QueryDesc *query, ScanDirection direction, uint64 count
#define HRFLOW_EXECUTOR_RUN_ARGUMENTS query, direction, count
#else
#define HRFLOW_EXECUTOR_RUN_PARAMETERS \
	QueryDesc *query, ScanDirection direction, uint64 count, bool once
#define HRFLOW_EXECUTOR_RUN_ARGUMENTS query, direction, count, once
#endif

/*
 * Pending interrupts that end the session when they are processed.
 */
typedef struct HrflowFatalInterrupts
{
	bool		die;			/* SIGTERM */
	bool		connection_lost;
	bool		transaction_timeout;	/* there is none before 17 */
} HrflowFatalInterrupts;

static inline bool
hrflow_compat_fatal_interrupt_pending(void)
{
#if PG_VERSION_NUM >= 170000
	if (TransactionTimeoutPending)
		return true;
#endif
	return ProcDiePending || ClientConnectionLost;
}

/*
 * Take such interrupts back until hrflow_compat_restore_interrupts().
 */
static inline void
hrflow_compat_hold_interrupts(HrflowFatalInterrupts *held)
{
	held->die |= ProcDiePending;
	ProcDiePending = false;
	held->connection_lost |= ClientConnectionLost;
	ClientConnectionLost = false;
#if PG_VERSION_NUM >= 170000
	held->transaction_timeout |= TransactionTimeoutPending;
	TransactionTimeoutPending = false;
#endif
}

static inline void
hrflow_compat_restore_interrupts(const HrflowFatalInterrupts *held)
{
	if (held->die)
		ProcDiePending = true;
	if (held->connection_lost)
		ClientConnectionLost = true;
#if PG_VERSION_NUM >= 170000
	if (held->transaction_timeout)
		TransactionTimeoutPending = true;
#endif
	if (held->die || held->connection_lost || held->transaction_timeout)
		InterruptPending = true;
}

/*
 * The setting transaction_timeout in milliseconds; 0: none, as before 17.
 */
static inline int
hrflow_compat_transaction_timeout(void)
{
#if PG_VERSION_NUM >= 170000
	return TransactionTimeout;
#else
	return 0;
#endif
}

#endif							/* HRFLOW_COMPAT_H */
