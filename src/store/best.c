/*-------------------------------------------------------------------------
 *
 * best.c
 *		Keeps the k best matches of a search, at most one per profile.
 *
 * Matches are kept in an array, sorted by similarity, and in a hash table by
 * profile, so that a profile with several vectors takes only one of the k
 * places.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "store/match.h"
#include "utils/memutils.h"

static uint32
hash_profile(const void *key, Size keysize)
{
	const HrflowMatch *match = key;

	return hash_combine(hash_bytes((unsigned char *) match->source_id,
								   strlen(match->source_id)),
						hash_bytes((unsigned char *) match->identifier,
								   strlen(match->identifier)));
}

static int
compare_profiles(const void *a, const void *b, Size keysize)
{
	const HrflowMatch *match_a = a;
	const HrflowMatch *match_b = b;

	return strcmp(match_a->identifier, match_b->identifier) != 0 ||
		strcmp(match_a->source_id, match_b->source_id) != 0;
}

/*
 * Return an empty list for the k best matches, allocated in the current memory
 * context.  "nparts" is the number of parts of each match, or 0.
 */
HrflowBest *
hrflow_best_make(int k, int nparts)
{
	HrflowBest *best = palloc0(sizeof(HrflowBest));
	HASHCTL		control = {0};

	best->context = CurrentMemoryContext;
	best->k = k;
	best->nparts = nparts;
	best->matches = palloc(sizeof(HrflowMatch *) * k);
	control.keysize = offsetof(HrflowMatch, section);
	control.entrysize = sizeof(HrflowMatch);
	control.hash = hash_profile;
	control.match = compare_profiles;
	control.hcxt = CurrentMemoryContext;
	best->by_profile = hash_create("hrflow_embed matches", k, &control,
								   HASH_ELEM | HASH_FUNCTION | HASH_COMPARE |
								   HASH_CONTEXT);
	return best;
}

/*
 * Could a match with this similarity be among the k best?  Does not check
 * whether its profile already has a match that is at least as good.
 */
bool
hrflow_best_wants(const HrflowBest *best, double similarity)
{
	return best->n < best->k ||
		similarity > best->matches[best->n - 1]->similarity;
}

/*
 * Remove and free the worst match.
 */
static void
drop_worst(HrflowBest *best)
{
	HrflowMatch *worst = best->matches[--best->n];
	HrflowMatch strings = *worst;

	hash_search(best->by_profile, worst, HASH_REMOVE, NULL);
	pfree(strings.source_id);
	pfree(strings.identifier);
	pfree(strings.section);
	if (strings.parts != NULL)
		pfree(strings.parts);
}

/*
 * Add a hash table entry for a profile that has none.  If there are k matches
 * already, remove the worst one first.  The caller must add the entry to the
 * array.
 */
static HrflowMatch *
enter_profile(HrflowBest *best, const HrflowMatch *match)
{
	HrflowMatch *kept;

	if (best->n == best->k)
		drop_worst(best);
	kept = hash_search(best->by_profile, match, HASH_ENTER, NULL);
	kept->source_id = MemoryContextStrdup(best->context, match->source_id);
	kept->identifier = MemoryContextStrdup(best->context, match->identifier);
	kept->section = NULL;
	kept->parts = NULL;
	if (best->nparts > 0)
		kept->parts = MemoryContextAlloc(best->context,
										 sizeof(double) * best->nparts);
	best->n++;
	return kept;
}

/*
 * Keep a copy of a match if it is among the k best.  If the profile already
 * has a match, keep only the better of the two.
 */
void
hrflow_best_keep(HrflowBest *best, const HrflowMatch *match)
{
	HrflowMatch **matches = best->matches;
	HrflowMatch *kept;
	int			from;			/* index of the match in the array before the
								 * match is moved forward */
	int			low = 0;
	int			high;

	if (!hrflow_best_wants(best, match->similarity))
		return;
	kept = hash_search(best->by_profile, match, HASH_FIND, NULL);
	if (kept == NULL)
	{
		kept = enter_profile(best, match);
		from = best->n - 1;
	}
	else
	{
		if (kept->similarity >= match->similarity)
			return;
		for (from = best->n - 1; matches[from] != kept; from--)
			;
		pfree(kept->section);
	}
	kept->section = MemoryContextStrdup(best->context, match->section);
	kept->item = match->item;
	kept->similarity = match->similarity;
	if (best->nparts > 0)
		memcpy(kept->parts, match->parts, sizeof(double) * best->nparts);

	/*
	 * Move the match forward, but not ahead of matches that are equally good.
	 */
	high = from;
	while (low < high)
	{
		int			middle = (low + high) / 2;

		if (matches[middle]->similarity >= kept->similarity)
			low = middle + 1;
		else
			high = middle;
	}
	memmove(&matches[low + 1], &matches[low],
			sizeof(HrflowMatch *) * (from - low));
	matches[low] = kept;
}
