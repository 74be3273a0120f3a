/*-------------------------------------------------------------------------
 *
 * tally.c
 *		Counts the rows and elements of a batch by status, and warns of
 *		frequent failures.
 *
 * Without the warning, a statement that keeps only rows with status "ok" would
 * hide that, for example, the API does not know a field or the whole source.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "utils/memutils.h"

/*
 * Count a row, and its element if this is the element's last row.
 */
void
hrflow_tally_count(HrflowTally *tally, const HrflowOutcome *outcome)
{
	const HrflowResult *result = outcome->result;
	HrflowStatus status = result->status;

	if (outcome->is_last)
	{
		tally->elements.total++;
		tally->elements.by_status[outcome->section == NULL ? status : HRFLOW_OK]++;
	}
	tally->rows.total++;
	if (tally->rows.by_status[status]++ > 0 || status == HRFLOW_OK)
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
	return summary->reason.is_link ? tally->rows.by_status[HRFLOW_OK] > 0 :
		summary->any_ok;
}

/*
 * Return the number of rows or elements whose status has the same name as
 * "status", since users see only names.
 */
static int64
count_same_name(const HrflowCounts *counts, HrflowStatus status)
{
	int64		n = 0;

	for (int other = HRFLOW_OK; other <= HRFLOW_LAST_STATUS; other++)
	{
		if (strcmp(hrflow_status_name(other), hrflow_status_name(status)) == 0)
			n += counts->by_status[other];
	}
	return n;
}

/*
 * Return the most frequent status, by name, among the rows or elements that
 * failed, or HRFLOW_OK if none did.
 */
static HrflowStatus
most_frequent_failure(const HrflowCounts *counts)
{
	HrflowStatus most = HRFLOW_OK;
	int64		n = 0;

	for (int status = HRFLOW_OK + 1; status <= HRFLOW_LAST_STATUS; status++)
	{
		if (counts->by_status[status] > 0 && count_same_name(counts, status) > n)
		{
			most = status;
			n = count_same_name(counts, status);
		}
	}
	return most;
}

/*
 * Did all rows or elements fail, or more than half of them with the same
 * status?
 */
static bool
has_mostly_failed(const HrflowCounts *counts)
{
	HrflowStatus status = most_frequent_failure(counts);

	return status != HRFLOW_OK &&
		(counts->by_status[HRFLOW_OK] == 0 ||
		 count_same_name(counts, status) > counts->total / 2);
}

/*
 * Raise the reason for which a batch was stopped.  If it is a limit of
 * requests, add how many elements were processed.
 */
void
hrflow_tally_raise(const HrflowBatchSummary *summary)
{
	HrflowResult reason = summary->reason;

	if (reason.status == HRFLOW_OVER_BUDGET ||
		reason.status == HRFLOW_OVER_DAY)
		reason.detail = psprintf("%s  The API sent a final reply for %d of %d elements.",
								 reason.detail, summary->nanswered,
								 summary->nelements);
	hrflow_error_raise(&reason);
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
			 errdetail("The hosts of the links sent a final reply for %d of %d links; links whose requests were omitted or abandoned have the status \"%s\".",
					   summary->nanswered, summary->nelements, status) :
			 errdetail("The API sent a final reply for %d of %d elements; elements whose requests were omitted or abandoned have the status \"%s\".",
					   summary->nanswered, summary->nelements, status),
			 hint ? errhint("%s", hint) : 0));
}

/*
 * Warn if a batch was stopped, if all its rows failed, or if more than half of
 * its rows or elements failed with the same status.  An element that succeeds
 * may have many rows, but has only one if it fails as a whole.
 */
void
hrflow_tally_report(const HrflowTally *tally,
					const HrflowBatchSummary *summary)
{
	bool		by_row = has_mostly_failed(&tally->rows);
	const HrflowCounts *counts = by_row ? &tally->rows : &tally->elements;
	HrflowStatus status = most_frequent_failure(counts);
	int64		nfailed = count_same_name(counts, status);
	const HrflowResult *first = &tally->first[status];
	const char *hint;

	if (summary->refused)
	{
		warn_that_stopped(summary);
		return;
	}
	if (!has_mostly_failed(counts))
		return;

	hint = status == HRFLOW_TIMEOUT && summary->expired ?
		"Raise \"hrflow_embed.batch_timeout\", or request fewer elements at once." :
		hrflow_error_hint(first);
	if (status == HRFLOW_NOT_FOUND && nfailed == counts->total)
		ereport(WARNING,
				(errmsg("none of the profiles in the batch were found in the specified source"),
				 errdetail_plural("The batch contained " INT64_FORMAT " profile.",
								  "The batch contained " INT64_FORMAT " profiles.",
								  nfailed, nfailed),
				 errhint("%s", hint)));
	else
		ereport(WARNING,
				(by_row ?
				 errmsg_plural(INT64_FORMAT " of " INT64_FORMAT " row of the batch failed with status \"%s\"",
							   INT64_FORMAT " of " INT64_FORMAT " rows of the batch failed with status \"%s\"",
							   counts->total,
							   nfailed, counts->total, hrflow_status_name(status)) :
				 errmsg_plural(INT64_FORMAT " of " INT64_FORMAT " element of the batch failed with status \"%s\"",
							   INT64_FORMAT " of " INT64_FORMAT " elements of the batch failed with status \"%s\"",
							   counts->total,
							   nfailed, counts->total, hrflow_status_name(status)),
				 errdetail("The first error with this status was: %s",
						   hrflow_error_describe(first)),
				 hint ? errhint("%s", hint) : 0));
}
