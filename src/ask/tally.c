/*-------------------------------------------------------------------------
 *
 * tally.c
 *		Counts what became of a batch, and warns when most of it failed.
 *
 * A statement that keeps the rows that are 'ok' would otherwise end without a
 * word, whether the API did not know a field or the whole source.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "utils/memutils.h"

/*
 * Count a row.
 */
void
hrflow_tally_count(HrflowTally *tally, const HrflowResult *result)
{
	HrflowStatus status = result->status;

	tally->nrows++;
	if (tally->by_status[status]++ > 0 || status == HRFLOW_OK)
		return;
	tally->first[status] = *result;
	if (result->detail != NULL)
		tally->first[status].detail = MemoryContextStrdup(tally->context,
														  result->detail);
}

/*
 * The status that most of the rows that failed have; HRFLOW_OK when none
 * failed.
 */
static HrflowStatus
most_frequent_failure(const HrflowTally *tally)
{
	HrflowStatus most = HRFLOW_OK;
	int64		n = 0;

	for (int status = HRFLOW_OK + 1; status <= HRFLOW_LAST_STATUS; status++)
	{
		if (tally->by_status[status] > n)
		{
			most = status;
			n = tally->by_status[status];
		}
	}
	return most;
}

/*
 * Warn that a batch was stopped.
 */
static void
warn_of_refusal(const HrflowBatchSummary *summary)
{
	const char *hint = hrflow_error_hint(&summary->refusal);

	ereport(WARNING,
			(errmsg("batch was not finished: %s",
					hrflow_error_describe(&summary->refusal)),
			 errdetail("%d of %d elements were answered; what was still to be asked has the status \"%s\".",
					   summary->nanswered, summary->nelements,
					   hrflow_status_name(summary->refusal.status)),
			 hint ? errhint("%s", hint) : 0));
}

/*
 * Warn once when a batch was stopped, when nothing in it succeeded, or when
 * more than half of it met one refusal.
 */
void
hrflow_tally_report(const HrflowTally *tally,
					const HrflowBatchSummary *summary)
{
	HrflowStatus status = most_frequent_failure(tally);
	int64		nfailed = tally->by_status[status];
	const HrflowResult *first = &tally->first[status];
	const char *hint;

	if (summary->refused)
	{
		warn_of_refusal(summary);
		return;
	}
	if (status == HRFLOW_OK ||
		(tally->by_status[HRFLOW_OK] > 0 && nfailed <= tally->nrows / 2))
		return;

	hint = status == HRFLOW_TIMEOUT && summary->expired ?
		"Raise hrflow_embed.batch_timeout, or ask for fewer elements at once." :
		hrflow_error_hint(first);
	if (status == HRFLOW_NOT_FOUND && nfailed == tally->nrows)
		ereport(WARNING,
				(errmsg("none of the profiles in the batch is known in this source"),
				 errdetail("The HrFlow API was asked for " INT64_FORMAT " elements.",
						   nfailed),
				 errhint("%s", hint)));
	else
		ereport(WARNING,
				(errmsg("most of the batch failed: " INT64_FORMAT " of " INT64_FORMAT " rows have the status \"%s\"",
						nfailed, tally->nrows, hrflow_status_name(status)),
				 errdetail("The first of them: %s",
						   hrflow_error_describe(first)),
				 hint ? errhint("%s", hint) : 0));
}
