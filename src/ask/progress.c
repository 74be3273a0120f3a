/*-------------------------------------------------------------------------
 *
 * progress.c
 *		Reports the progress of a batch to an interactive client.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "miscadmin.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"

/* Minimum interval between two reports, in microseconds. */
#define PROGRESS_INTERVAL (5 * HRFLOW_SEC)

/*
 * Start reporting the progress of a batch, if its sink reports to the user and
 * the client is psql.  Other clients may not expect messages of level INFO.
 */
void
hrflow_progress_begin(HrflowProgress *progress, const HrflowSink *sink)
{
	progress->is_shown = sink->methods->reports &&
		MyBackendType == B_BACKEND && whereToSendOutput == DestRemote &&
		strcmp(application_name, "psql") == 0;
	progress->began_at = progress->shown_at = hrflow_clock_now();
}

/*
 * Return the time of the next report, or HRFLOW_NEVER if there is none.
 */
int64
hrflow_progress_due(const HrflowProgress *progress)
{
	return progress->is_shown ? progress->shown_at + PROGRESS_INTERVAL :
		HRFLOW_NEVER;
}

/*
 * Report progress to the client, at most every PROGRESS_INTERVAL.  "nasked" is
 * the number of elements that have been considered.
 */
void
hrflow_progress_show(HrflowProgress *progress, const HrflowTally *tally,
					 int nasked, int nelements)
{
	int64		now;
	double		seconds;

	if (!progress->is_shown)
		return;
	now = hrflow_clock_now();
	if (now - progress->shown_at < PROGRESS_INTERVAL)
		return;
	progress->shown_at = now;
	if (nasked == 0)
		return;
	seconds = (now - progress->began_at) / (double) HRFLOW_SEC;
	ereport(INFO,
			(errmsg("batch: %d of %d elements requested, " INT64_FORMAT " rows so far, " INT64_FORMAT " of them failed, about %.0f s remaining",
					nasked, nelements, tally->rows.total,
					tally->rows.total - tally->rows.by_status[HRFLOW_OK],
					seconds / nasked * (nelements - nasked))));
}
