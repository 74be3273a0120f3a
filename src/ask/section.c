/*-------------------------------------------------------------------------
 *
 * section.c
 *		Checks the names of sections for misspellings.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ask.h"
#include "utils/varlena.h"

/* Sections for which the API is known to have vectors. */
const char *const hrflow_sections[HRFLOW_NSECTIONS] = {
	"profile", "skills", "interests", "experiences", "educations"
};

/*
 * Maximum edit distance between a misspelled name and the name suggested; like
 * PostgreSQL's MAX_FUZZY_DISTANCE.
 */
#define MAX_DISTANCE 3

/*
 * Maximum length of a name for which to look for a suggestion, in bytes.  The
 * names of the known sections are much shorter.
 */
#define MAX_NAME 64

static bool
is_known_section(const char *name)
{
	for (int i = 0; i < HRFLOW_NSECTIONS; i++)
	{
		if (strcmp(name, hrflow_sections[i]) == 0)
			return true;
	}
	return false;
}

/*
 * Return the section whose name is closest to the given one, or NULL if none
 * is close enough.
 */
const char *
hrflow_section_nearest(const char *name)
{
	const char *nearest = NULL;
	int			least = MAX_DISTANCE + 1;
	int			length = strlen(name);

	if (length > MAX_NAME)
		return NULL;
	for (int i = 0; i < HRFLOW_NSECTIONS; i++)
	{
		const char *section = hrflow_sections[i];
		int			distance =
		varstr_levenshtein_less_equal(name, length, section, strlen(section),
									  1, 1, 1, least, true);

		/*
		 * As PostgreSQL does for misspelled columns, require at least half of
		 * the name to match.
		 */
		if (distance < least && distance <= length / 2)
		{
			nearest = section;
			least = distance;
		}
	}
	return nearest;
}

/*
 * Warn if the API is not known to have a section of this name.  This is not an
 * error, because the API may have added the section.
 */
void
hrflow_section_check(const char *name)
{
	const char *nearest;

	if (is_known_section(name))
		return;
	nearest = hrflow_section_nearest(name);
	ereport(WARNING,
			(errmsg("unrecognized section \"%s\"", name),
			 nearest != NULL ?
			 errhint("Perhaps you meant \"%s\".", nearest) :
			 errhint("The known sections are \"profile\", \"skills\", \"interests\", \"experiences\" and \"educations\".")));
}

/*
 * Check all sections in "fields", which is a JSON object or NULL.
 */
void
hrflow_section_check_fields(Jsonb *fields)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;

	if (fields == NULL)
		return;
	iterator = JsonbIteratorInit(&fields->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			hrflow_section_check(pnstrdup(value.val.string.val,
										  value.val.string.len));
	}
}
