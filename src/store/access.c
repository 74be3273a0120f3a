/*-------------------------------------------------------------------------
 *
 * access.c
 *		Decides whether the API refuses access (HTTP status 403) to single
 *		profiles, to all profiles of a source, or to everything.
 *
 * A refusal concerns only its profile if the API has since granted access to
 * another profile of the same source.  Several refusals in succession are taken
 * to concern the source: the run skips the source, and continues with others.
 * If the API has not granted access to anything, the run stops.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "store/refresh.h"
#include "utils/memutils.h"

/*
 * Skip a source after this many refusals in succession.
 */
#define MAX_REFUSALS 8

/*
 * Stop the run after this many refusals, not counting those of sources that
 * are skipped, unless access was granted to any profile.
 */
#define MAX_ALL_REFUSALS (2 * HRFLOW_MAX_WASTED)

/*
 * A source of which at least one profile was refused since access was last
 * granted to a profile of it.
 */
typedef struct RefusedSource
{
	char	   *source_id;
	char	   *error;			/* error message of the first refusal */
	int			nrefusals;
} RefusedSource;

static RefusedSource *
find_refused(const HrflowRun *run, const char *source_id)
{
	ListCell   *cell;

	foreach(cell, run->refused)
	{
		RefusedSource *source = lfirst(cell);

		if (strcmp(source->source_id, source_id) == 0)
			return source;
	}
	return NULL;
}

static RefusedSource *
add_refused(HrflowRun *run, const HrflowProfile *profile)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);
	RefusedSource *source = palloc0(sizeof(RefusedSource));

	source->source_id = pstrdup(profile->source_id);
	source->error = pstrdup(profile->error);
	run->refused = lappend(run->refused, source);
	MemoryContextSwitchTo(old);
	return source;
}

/*
 * Stop the run, because the API refuses access to everything.
 */
static void
stop_for_access(HrflowRun *run, const RefusedSource *source)
{
	run->is_stopping = true;
	run->stop = HRFLOW_STOP_REFUSED;
	run->stop_reason = source->error;
	run->stop_code = hrflow_error_code(HRFLOW_FORBIDDEN);
}

/*
 * Warn that a source is skipped, and request no more of its profiles.
 */
static void
skip_source(HrflowRun *run, const RefusedSource *source)
{
	HrflowResult result = {
		.endpoint = run->kind->asked.endpoint,
		.status = HRFLOW_FORBIDDEN
	};
	dlist_mutable_iter iter;

	if (!hrflow_fetch_add_bad_source(run, source->source_id, source->error))
		return;
	ereport(WARNING,
			(result.endpoint == HRFLOW_JOB ?
			 errmsg("skipping board \"%s\" in refresh of %s: access refused",
					source->source_id, run->name) :
			 errmsg("skipping source \"%s\" in refresh of %s: access refused",
					source->source_id, run->name),
			 errdetail_internal("%s", source->error),
			 errhint("%s", hrflow_error_hint(&result))));
	dlist_foreach_modify(iter, &run->claimed)
	{
		HrflowProfile *profile = dlist_container(HrflowProfile, node, iter.cur);

		if (strcmp(profile->source_id, source->source_id) != 0)
			continue;
		profile->unasked = true;
		profile->status = HRFLOW_FORBIDDEN;
		hrflow_state_land(run, profile);
	}
}

/*
 * Record that access to a profile was refused.  The contents that a store
 * sends are not of different sources, so there are no others to continue with.
 */
static void
note_refusal(HrflowRun *run, const HrflowProfile *profile)
{
	RefusedSource *source = find_refused(run, profile->source_id);

	if (source == NULL)
		source = add_refused(run, profile);
	source->nrefusals++;
	run->nforbidden += source->nrefusals <= MAX_REFUSALS;
	if (run->is_stopping)
		return;
	if ((!run->has_access && run->nforbidden >= MAX_ALL_REFUSALS) ||
		(run->kind->reading != NULL && source->nrefusals >= MAX_REFUSALS))
		stop_for_access(run, source);
	else if (source->nrefusals >= MAX_REFUSALS)
		skip_source(run, source);
}

/*
 * Record that access to a profile was granted.  If this is the first one, let
 * all profiles of the sources that were skipped before be postponed.
 */
static void
note_access(HrflowRun *run, const HrflowProfile *profile)
{
	RefusedSource *source = find_refused(run, profile->source_id);
	ListCell   *cell;

	if (source != NULL)
		run->refused = list_delete_ptr(run->refused, source);
	if (run->has_access)
		return;
	run->has_access = true;
	foreach(cell, run->bad_sources)
	{
		HrflowBadSource *bad = lfirst(cell);

		bad->is_to_be_postponed = bad->due_at != 0;
	}
}

/*
 * Called when all requests for a profile are complete.  A profile whose result
 * was copied from another one must not be passed to this function.
 */
void
hrflow_access_note(HrflowRun *run, const HrflowProfile *profile)
{
	if (profile->status == HRFLOW_OK || profile->status == HRFLOW_NOT_FOUND ||
		profile->is_link || profile->no_vector)
		note_access(run, profile);
	else if (profile->status == HRFLOW_FORBIDDEN)
		note_refusal(run, profile);
}

/*
 * Does the refusal of a profile, as far as known, concern other profiles, too?
 */
bool
hrflow_access_is_refused(const HrflowRun *run, const HrflowProfile *profile)
{
	const RefusedSource *source = find_refused(run, profile->source_id);

	return (source != NULL && source->nrefusals > 1) ||
		(!run->has_access && run->nforbidden > 1);
}

/*
 * Called when no requests are in flight.  Stops the run if there were several
 * refusals, and access was not granted to any profile.
 */
void
hrflow_access_settle(HrflowRun *run)
{
	if (!run->has_access && run->nforbidden > 1 && run->stop_reason == NULL)
		stop_for_access(run, linitial(run->refused));
}
