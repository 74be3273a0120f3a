/*-------------------------------------------------------------------------
 *
 * caller.c
 *		Names the SQL functions that send requests.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/base.h"

static const char *const caller_names[] = {
	[HRFLOW_BY_PROFILE_EMBEDDING] = "hrflow_profile_embedding",
	[HRFLOW_BY_PROFILE_EMBEDDING_LINKS] = "hrflow_profile_embedding_links",
	[HRFLOW_BY_PROFILE_EMBEDDINGS] = "hrflow_profile_embeddings",
	[HRFLOW_BY_PROFILE_LINKS] = "hrflow_profile_links",
	[HRFLOW_BY_PROFILE_VECTORS] = "hrflow_profile_vectors",
	[HRFLOW_BY_FETCH_VECTOR] = "hrflow_fetch_vector",
	[HRFLOW_BY_FETCH_VECTORS] = "hrflow_fetch_vectors",
	[HRFLOW_BY_JOB_EMBEDDING] = "hrflow_job_embedding",
	[HRFLOW_BY_JOB_VECTOR] = "hrflow_job_vector",
	[HRFLOW_BY_TEXT_EMBEDDING] = "hrflow_text_embedding",
	[HRFLOW_BY_TEXT_EMBEDDINGS] = "hrflow_text_embeddings",
	[HRFLOW_BY_DOCUMENT_EMBEDDING] = "hrflow_document_embedding",
	[HRFLOW_BY_DOCUMENT_EMBEDDINGS] = "hrflow_document_embeddings",
	[HRFLOW_BY_AUTH] = "hrflow_auth",
	[HRFLOW_BY_REFRESH] = "hrflow_refresh"
};

/*
 * Return the name of a SQL function, without schema or arguments.
 */
const char *
hrflow_caller_name(HrflowCaller caller)
{
	return caller_names[caller];
}
