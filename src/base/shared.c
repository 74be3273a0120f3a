/*-------------------------------------------------------------------------
 *
 * shared.c
 *		Manages the state that all backends of a server share, such as rate
 *		limits, statistics, and the activity of each backend.
 *
 * If the library is in shared_preload_libraries, the state is in the main
 * shared memory segment.  Otherwise, on PostgreSQL 17 and later, it is in a
 * segment of the DSM registry, and on older versions each backend has its own
 * state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "base/base.h"
#include "miscadmin.h"
#include "base/shared.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

/*
 * Name of the tranche of the lock in HrflowUsage, which pg_stat_activity shows
 * as wait_event.
 */
#define LOCK_NAME "HrflowUsage"

static HrflowShared *shared = NULL;
static bool is_shared = false;

/*
 * Size of the shared state, in bytes.
 */
static Size
shared_size(void)
{
	return add_size(offsetof(HrflowShared, activity),
					mul_size(MaxBackends, sizeof(HrflowActivitySlot)));
}

/*
 * Initialize the part of the state that is used even if nothing is shared.
 */
static void
initialize(HrflowShared *new)
{
	memset(new, 0, offsetof(HrflowShared, usage));
	SpinLockInit(&new->mutex);
	for (int i = 0; i < HRFLOW_NORIGINS; i++)
		pg_atomic_init_u64(&new->origins[i], 0);
	for (int i = 0; i < HRFLOW_NDAYS; i++)
	{
		pg_atomic_init_u64(&new->days[i].account, 0);
		pg_atomic_init_u64(&new->days[i].sent, 0);
	}
	for (int i = 0; i < lengthof(new->latency); i++)
		pg_atomic_init_u64(&new->latency[i], 0);
	for (int i = 0; i < HRFLOW_NCOUNTERS; i++)
		pg_atomic_init_u64(&new->counters[i], 0);
	for (int i = 0; i < HRFLOW_NSTATUSES; i++)
		pg_atomic_init_u64(&new->rows[i], 0);
	pg_atomic_init_u64(&new->reset_at, GetCurrentTimestamp());
}

/*
 * Initialize the whole shared state.
 */
static void
initialize_shared(void *pointer)
{
	HrflowShared *new = pointer;

	initialize(new);
	memset(&new->usage, 0, shared_size() - offsetof(HrflowShared, usage));
	hrflow_compat_init_lock(&new->usage.lock, LOCK_NAME);
	for (int i = 0; i < HRFLOW_NUSAGE; i++)
	{
		for (int j = 0; j < 2; j++)
			pg_atomic_init_u64(&new->usage.entries[i].requests[j], 0);
	}
}

/*
 * ------------------------------------------------------------------------
 * Preloaded
 * ------------------------------------------------------------------------
 */

static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

static void
request_shared(void)
{
	if (previous_request_hook)
		previous_request_hook();
	RequestAddinShmemSpace(MAXALIGN(shared_size()));
}

/*
 * Save the counts when the postmaster shuts down, fails to start, or resets
 * shared memory after a backend crash.  Unlike pg_stat_statements, we save
 * them in each of these cases: a crash must not reset the count that a daily
 * limit applies to, and a start that fails because of a mistake in pg_hba.conf
 * must not lose the counts that were just loaded.
 */
static void
save_shared(int code, Datum arg)
{
	hrflow_saved_save(shared);
}

static void
startup_shared(void)
{
	bool		found;

	if (previous_startup_hook)
		previous_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("hrflow_embed", shared_size(), &found);
	if (!found)
		initialize_shared(shared);
	LWLockRelease(AddinShmemInitLock);
	hrflow_compat_register_lock(&shared->usage.lock, LOCK_NAME);
	is_shared = true;

	if (!IsUnderPostmaster)
		on_shmem_exit(save_shared, (Datum) 0);
	if (!found)
		hrflow_saved_load(shared);
}

/*
 * Install the shared memory hooks, if the library is being preloaded by the
 * postmaster.  Called when the library is loaded.
 */
void
hrflow_shared_define(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_shared;
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shared;
}

/*
 * ------------------------------------------------------------------------
 * Not preloaded
 * ------------------------------------------------------------------------
 */

#if HRFLOW_HAVE_DSM_REGISTRY

static HrflowShared *
attach(void)
{
	/*
	 * Include our version in the name, because sessions that loaded the
	 * previous version's library continue to use its layout.
	 */
	HrflowShared *segment =
	hrflow_compat_named_segment("hrflow_embed " HRFLOW_EMBED_VERSION,
								shared_size(), initialize_shared);

	hrflow_compat_register_lock(&segment->usage.lock, LOCK_NAME);
	is_shared = true;
	return segment;
}

#else

static HrflowShared *
attach(void)
{
	static HrflowShared own;

	initialize(&own);
	return &own;
}

#endif							/* HRFLOW_HAVE_DSM_REGISTRY */

/*
 * Return the shared state, or this backend's own if nothing is shared.  May
 * throw until it has succeeded once in a backend.
 */
HrflowShared *
hrflow_shared_get(void)
{
	if (shared == NULL)
		shared = attach();
	return shared;
}

/*
 * Is the state shared by all backends of the server?
 */
bool
hrflow_shared_is_shared(void)
{
	(void) hrflow_shared_get();
	return is_shared;
}

/*
 * Return the shared request counts per role, function and day, or NULL if
 * nothing is shared.
 */
HrflowUsage *
hrflow_shared_usage(void)
{
	return hrflow_shared_is_shared() ? &shared->usage : NULL;
}
