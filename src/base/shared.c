/*-------------------------------------------------------------------------
 *
 * shared.c
 *		What the backends of a server share: the limits of rate, the
 *		statistics and what each is doing.
 *
 * It is in the main shared memory when the library is in
 * shared_preload_libraries.  Otherwise, from PostgreSQL 17 on it is a segment of
 * the DSM registry, and earlier every backend has its own.
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

/* Name of the lock, as pg_stat_activity shows a wait for it. */
#define LOCK_NAME "HrflowUsage"

static HrflowShared *shared = NULL;
static bool is_shared = false;

/*
 * Bytes that are shared.
 */
static Size
shared_size(void)
{
	return add_size(offsetof(HrflowShared, activity),
					mul_size(MaxBackends, sizeof(HrflowActivitySlot)));
}

/*
 * Initialize what each backend has where nothing is shared.
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
 * Initialize all of it.
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
 * The postmaster shuts down, cannot start, or resets shared memory after a
 * backend has crashed.  Unlike pg_stat_statements we save in every case: a limit
 * on what a day may cost is not to be lifted by a crash, and what was loaded is
 * not to be lost where pg_hba.conf has a mistake.
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
 * Called when the library is loaded.
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
	/* A version's own: after an upgrade, sessions of the old one go on. */
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
 * What is shared, or this backend's own where nothing is.  May raise an error
 * at the first call of a backend.
 */
HrflowShared *
hrflow_shared_get(void)
{
	if (shared == NULL)
		shared = attach();
	return shared;
}

/*
 * Do all backends of the server see the same?
 */
bool
hrflow_shared_is_shared(void)
{
	(void) hrflow_shared_get();
	return is_shared;
}

/*
 * What requests have cost; NULL where nothing is shared.
 */
HrflowUsage *
hrflow_shared_usage(void)
{
	return hrflow_shared_is_shared() ? &shared->usage : NULL;
}
