/*-------------------------------------------------------------------------
 *
 * shared.c
 *		What the backends of a server share: the limits of rate, the
 *		statistics and what each is doing.
 *
 * From PostgreSQL 17 on it is a segment of the DSM registry, there whether the
 * library is preloaded or not.  Earlier it is in the main shared memory when
 * the library is in shared_preload_libraries; else every backend has its own.
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
 * Initialize all but the backends' activity.
 */
static void
initialize(HrflowShared *new)
{
	memset(new, 0, sizeof(*new));
	SpinLockInit(&new->mutex);
	for (int i = 0; i < HRFLOW_NORIGINS; i++)
		pg_atomic_init_u64(&new->origins[i], 0);
	for (int i = 0; i < lengthof(new->latency); i++)
		pg_atomic_init_u64(&new->latency[i], 0);
	for (int i = 0; i < HRFLOW_NCOUNTERS; i++)
		pg_atomic_init_u64(&new->counters[i], 0);
	for (int i = 0; i < HRFLOW_NSTATUSES; i++)
		pg_atomic_init_u64(&new->rows[i], 0);
	pg_atomic_init_u64(&new->reset_at, GetCurrentTimestamp());
}

static void
initialize_shared(void *pointer)
{
	HrflowShared *new = pointer;

	initialize(new);
	memset(new->activity, 0, shared_size() - offsetof(HrflowShared, activity));
}

#if HRFLOW_HAVE_DSM_REGISTRY

void
hrflow_shared_define(void)
{
}

static HrflowShared *
attach(void)
{
	is_shared = true;

	/* A version's own: after an upgrade, sessions of the old one go on. */
	return hrflow_compat_named_segment("hrflow_embed " HRFLOW_EMBED_VERSION,
									   shared_size(), initialize_shared);
}

#else

static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

static void
request_shared(void)
{
	if (previous_request_hook)
		previous_request_hook();
	RequestAddinShmemSpace(MAXALIGN(shared_size()));
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
	is_shared = true;
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
