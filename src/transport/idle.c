/*-------------------------------------------------------------------------
 *
 * idle.c
 *		Keeps idle transfers, so that their libcurl handles are reused.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/libcurl.h"

/* List of idle transfers, most recently used first. */
static dlist_head idle = DLIST_STATIC_INIT(idle);
static int	nidle = 0;

static void
free_transfer(HrflowTransfer *transfer)
{
	curl_easy_cleanup(transfer->easy);
	hrflow_body_drop(transfer);
	hrflow_gunzip_free(transfer->gunzip);
	free(transfer);
}

/*
 * Free all idle transfers.  Does not throw.
 */
void
hrflow_idle_free_all(void)
{
	while (!dlist_is_empty(&idle))
		free_transfer(dlist_container(HrflowTransfer, node,
									  dlist_pop_head_node(&idle)));
	nidle = 0;
}

/*
 * Make a transfer idle, or free it if HRFLOW_KEEP_HANDLES transfers are idle
 * already.  The transfer must not be in any list.  Does not throw.
 */
void
hrflow_idle_put(HrflowTransfer *transfer)
{
	if (nidle >= HRFLOW_KEEP_HANDLES)
	{
		free_transfer(transfer);
		return;
	}
	if (transfer->capacity > HRFLOW_KEEP_BUFFER)
		hrflow_body_drop(transfer);
	dlist_push_head(&idle, &transfer->node);
	nidle++;
}

/*
 * Get a transfer for a new request.  May throw.
 */
HrflowTransfer *
hrflow_idle_get(void)
{
	HrflowTransfer *transfer;

	if (!dlist_is_empty(&idle))
	{
		nidle--;
		return dlist_container(HrflowTransfer, node,
							   dlist_pop_head_node(&idle));
	}
	transfer = calloc(1, sizeof(HrflowTransfer));
	if (transfer == NULL)
		hrflow_out_of_memory();
	return transfer;
}
