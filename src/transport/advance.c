/*-------------------------------------------------------------------------
 *
 * advance.c
 *		How far tries have come in libcurl, as its callbacks tell.
 *
 * The other changes of a transfer's state are made by transfer.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/* How often replies were collected. */
static uint32 this_round = 0;

/* Was a connection made that other requests may wait for? */
static bool has_connected = false;

/*
 * libcurl tells how far a try has come.  Does not throw.
 */
void
hrflow_transfer_advance(HrflowTransfer *transfer, HrflowTransferState state)
{
	if (!HRFLOW_IN_FLIGHT(transfer))
		return;
	if (transfer->state == HRFLOW_WAITING)
		transfer->try.round = this_round;
	if (state == HRFLOW_SENT && transfer->try.may_wait)
		has_connected = true;
	transfer->state = state;
}

/*
 * The number of the round in which replies are collected next.
 */
uint32
hrflow_advance_round(void)
{
	return this_round;
}

/*
 * Replies were collected.
 */
void
hrflow_advance_end_round(void)
{
	this_round++;
}

/*
 * Was a connection made that other requests may wait for, since the last call?
 */
bool
hrflow_advance_take_connected(void)
{
	bool		result = has_connected;

	has_connected = false;
	return result;
}
