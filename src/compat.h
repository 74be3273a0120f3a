/*-------------------------------------------------------------------------
 *
 * compat.h
 *		Differences between the supported versions of PostgreSQL (15 and later)
 *		and libcurl (7.88 and later).
 *
 * No other file may refer to PG_VERSION_NUM or LIBCURL_VERSION_NUM.
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
#include "access/xact.h"
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
#include "nodes/pathnodes.h"
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
#include "utils/guc.h"
#include "utils/guc_tables.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#if PG_VERSION_NUM < 150000
#error "hrflow_embed needs PostgreSQL 15 or later"
#endif

/*
 * Since PostgreSQL 18, the magic block can contain the module's name and
 * version.
 */
#if PG_VERSION_NUM >= 180000
#define HRFLOW_MODULE_MAGIC \
	PG_MODULE_MAGIC_EXT(.name = "hrflow_embed", .version = HRFLOW_EMBED_VERSION)
#else
#define HRFLOW_MODULE_MAGIC PG_MODULE_MAGIC
#endif

/*
 * Marks a function that does not return.  Precedes the function's declaration.
 */
#if PG_VERSION_NUM >= 180000
#define HRFLOW_NORETURN pg_noreturn
#else
#define HRFLOW_NORETURN pg_attribute_noreturn()
#endif

/*
 * Can a subtransaction be started now, to recover from an error?  Before
 * PostgreSQL 17, it cannot be started in parallel mode.
 */
static inline bool
hrflow_compat_allows_subtransaction(void)
{
#if PG_VERSION_NUM >= 170000
	return true;
#else
	return !IsInParallelMode();
#endif
}

/*
 * Create a WaitEventSet that lives as long as the backend.  In PostgreSQL 17
 * and later, the set can belong to a resource owner (we pass none) instead of
 * a memory context.
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
 * Return a wait event with this name.  Before PostgreSQL 17 all wait events of
 * extensions are named "Extension".
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
 * Return the number of this backend, from 0 to MaxBackends - 1.
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
 * Can one role SET ROLE to another?  PostgreSQL 16 added memberships that do
 * not allow SET ROLE.
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
 * Return an array of all settings, and its length.
 */
static inline struct config_generic **
hrflow_compat_settings(int *n)
{
#if PG_VERSION_NUM >= 160000
	return get_guc_variables(n);
#else
	*n = GetNumConfigOptions();
	return get_guc_variables();
#endif
}

/*
 * PostgreSQL 17 added the DSM registry: named shared memory that needs no
 * preloading.
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
 * Initialize a lock in shared memory.  Each backend must then register the
 * lock's name, except in PostgreSQL 19 and later, where the name is in shared
 * memory, too.
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
 * Complete a tuple descriptor; required by PostgreSQL 19 and later.
 */
static inline void
hrflow_compat_finalize_desc(TupleDesc desc)
{
#if PG_VERSION_NUM >= 190000
	TupleDescFinalize(desc);
#endif
}

/*
 * libcurl's CURLE_TOO_LARGE, which was added in 8.6; older versions have no
 * error with this number.
 */
#define HRFLOW_CURLE_TOO_LARGE 100

/*
 * Does libcurl return CURLE_OUT_OF_MEMORY where versions since 8.6 return
 * CURLE_TOO_LARGE?
 */
#define HRFLOW_CURL_TOO_LARGE_IS_MEMORY() \
	(curl_version_info(CURLVERSION_NOW)->version_num < 0x080600)

/*
 * libcurl's CURLMOPT_QUICK_EXIT, which was added in 8.20; our headers may be
 * older than the library.  With this option, curl_multi_cleanup() does not
 * wait for abandoned name lookups.
 */
#define HRFLOW_CURLMOPT_QUICK_EXIT ((CURLMoption) (CURLOPTTYPE_LONG + 21))

/*
 * Return the snapshot with which to read the chunks of out-of-line values.
 * Before PostgreSQL 18, the snapshot is built in "memory", which the caller
 * provides.
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
 * Begin an index scan.  PostgreSQL 18 added a parameter for instrumentation,
 * and PostgreSQL 19 one for scan flags; we use neither.
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
 * State for building a jsonb value.
 */
#if PG_VERSION_NUM >= 190000
typedef JsonbInState HrflowJsonbState;
#else
typedef struct HrflowJsonbState
{
	JsonbParseState *parse;
	JsonbValue *result;			/* the whole value, once the outermost object
								 * or array has been closed */
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
 * Begin a sequential scan of a whole table.  PostgreSQL 19 added a parameter
 * for scan flags; we use none.
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
 * PostgreSQL 19 removed the path type UniquePath, and gave its name to
 * UpperUniquePath.
 */
#if PG_VERSION_NUM >= 190000
#define UpperUniquePath UniquePath
#define T_UpperUniquePath T_UniquePath
#endif

/*
 * Copy a path's number of disabled nodes, which includes those below it.
 * Before PostgreSQL 18 there is no such number; disabled nodes merely have a
 * high cost.
 */
static inline void
hrflow_compat_copy_disabled_nodes(Path *to, const Path *from)
{
#if PG_VERSION_NUM >= 180000
	to->disabled_nodes = from->disabled_nodes;
#endif
}

/*
 * Load the library that implements an index access method.  Before PostgreSQL
 * 19, GetIndexAmRoutineByAmId() returns a palloc'd struct.
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
 * Value of attgenerated for virtual generated columns, which PostgreSQL 18
 * added.
 */
#ifndef ATTRIBUTE_GENERATED_VIRTUAL
#define ATTRIBUTE_GENERATED_VIRTUAL 'v'
#endif

/*
 * Parameters and arguments of ExecutorRun().  PostgreSQL 18 dropped
 * "execute_once".
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
 * Pending interrupts that will terminate the session when they are processed,
 * except recovery conflicts and the timeouts of idle sessions.
 */
typedef struct HrflowFatalInterrupts
{
	bool		die;			/* SIGTERM */
	bool		connection_lost;
	bool		transaction_timeout;	/* always false before PostgreSQL 17 */
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
 * Clear the pending fatal interrupts, and record them in "held", so that
 * hrflow_compat_restore_interrupts() can set them again.
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
 * Return transaction_timeout, in milliseconds.  0 means no limit, which is
 * always the case before PostgreSQL 17.
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
