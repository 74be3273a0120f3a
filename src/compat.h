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

#include "catalog/pg_attribute.h"
#include "fmgr.h"
#if PG_VERSION_NUM >= 160000
#include "nodes/miscnodes.h"
#endif
#if PG_VERSION_NUM >= 170000
#include "storage/dsm_registry.h"
#endif
#include "storage/latch.h"
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
 * libcurl's CURLE_TOO_LARGE, since 8.6: earlier no error has this number.
 */
#define HRFLOW_CURLE_TOO_LARGE 100

/*
 * Does libcurl say CURLE_OUT_OF_MEMORY of it instead?
 */
#define HRFLOW_CURL_TOO_LARGE_IS_MEMORY() \
	(curl_version_info(CURLVERSION_NOW)->version_num < 0x080600)

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
 * A column that is generated when it is read; before 18 there are none.
 */
#ifndef ATTRIBUTE_GENERATED_VIRTUAL
#define ATTRIBUTE_GENERATED_VIRTUAL 'v'
#endif

#endif							/* HRFLOW_COMPAT_H */
