/*-------------------------------------------------------------------------
 *
 * tally.c
 *		Counts the rows of a batch by status, and warns of frequent failures.
 *
 * Without the warning, a statement that keeps only rows with status "ok" would
 * hide that, for example, the API does not know a field or the whole source.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "utils/memutils.h"

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
 * Has the batch produced anything worth keeping?  A successful reply from the
 * API is worth keeping, because it has been paid for.  But if the batch was
 * stopped because links cannot be fetched, only rows with status "ok" count.
 */
bool
hrflow_tally_has_succeeded(const HrflowTally *tally,
						   const HrflowBatchSummary *summary)
{
	return summary->reason.is_link ? tally->by_status[HRFLOW_OK] > 0 :
		summary->any_ok;
}

/*
 * Return the number of rows whose status has the same name as "status", since
 * users see only names.
 */
static int64
count_same_name(const HrflowTally *tally, HrflowStatus status)
{
	int64		n = 0;

	for (int other = HRFLOW_OK; other <= HRFLOW_LAST_STATUS; other++)
	{
		if (strcmp(hrflow_status_name(other), hrflow_status_name(status)) == 0)
			n += tally->by_status[other];
	}
	return n;
}

/*
 * Return the most frequent status, by name, among the rows that failed, or
 * HRFLOW_OK if none did.
 */
static HrflowStatus
most_frequent_failure(const HrflowTally *tally)
{
	HrflowStatus most = HRFLOW_OK;
	int64		n = 0;

	for (int status = HRFLOW_OK + 1; status <= HRFLOW_LAST_STATUS; status++)
	{
		if (tally->by_status[status] > 0 && count_same_name(tally, status) > n)
		{
			most = status;
			n = count_same_name(tally, status);
		}
	}
	return most;
}

static void
warn_that_stopped(const HrflowBatchSummary *summary)
{
	const char *hint = hrflow_error_hint(&summary->reason);
	const char *status = hrflow_status_name(summary->reason.status);

	ereport(WARNING,
			(errmsg("batch stopped early: %s",
					hrflow_error_describe(&summary->reason)),
			 summary->is_links ?
			 errdetail("The host sent a final reply for %d of %d links; links whose requests were omitted or abandoned have the status \"%s\".",
					   summary->nanswered, summary->nelements, status) :
			 errdetail("The API sent a final reply for %d of %d elements; elements whose requests were omitted or abandoned have the status \"%s\".",
					   summary->nanswered, summary->nelements, status),
			 hint ? errhint("%s", hint) : 0));
}

/*
 * Warn if a batch was stopped, if all its rows failed, or if more than half of
 * them failed with the same status.  Rows of empty elements do not count.
 */
void
hrflow_tally_report(const HrflowTally *tally,
					const HrflowBatchSummary *summary)
{
	HrflowStatus status = most_frequent_failure(tally);
	int64		nfailed = count_same_name(tally, status);
	const HrflowResult *first = &tally->first[status];
	const char *hint;

	if (summary->refused)
	{
		warn_that_stopped(summary);
		return;
	}
	if (status == HRFLOW_OK ||
		(tally->by_status[HRFLOW_OK] > 0 && nfailed <= tally->nrows / 2))
		return;

	hint = status == HRFLOW_TIMEOUT && summary->expired ?
		"Raise \"hrflow_embed.batch_timeout\", or request fewer elements at once." :
		hrflow_error_hint(first);
	if (status == HRFLOW_NOT_FOUND && nfailed == tally->nrows)
		ereport(WARNING,
				(errmsg("none of the profiles in the batch were found in the specified source"),
				 errdetail_plural("The batch contained " INT64_FORMAT " profile.",
								  "The batch contained " INT64_FORMAT " profiles.",
								  nfailed, nfailed),
				 errhint("%s", hint)));
	else
		ereport(WARNING,
				(errmsg_plural(INT64_FORMAT " of " INT64_FORMAT " row of the batch failed with status \"%s\"",
							   INT64_FORMAT " of " INT64_FORMAT " rows of the batch failed with status \"%s\"",
							   tally->nrows,
							   nfailed, tally->nrows, hrflow_status_name(status)),
				 errdetail("The first error with this status was: %s",
						   hrflow_error_describe(first)),
				 hint ? errhint("%s", hint) : 0));
}
