/*-------------------------------------------------------------------------
 *
 * section.c
 *		Names of sections, which are most often wrong because they are misspelt.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ask.h"
#include "utils/varlena.h"

/* The sections of which the API is known to have vectors. */
const char *const hrflow_sections[HRFLOW_NSECTIONS] = {
	"profile", "skills", "interests", "experiences", "educations"
};

/* Names that differ by more than this are not taken for misspelt. */
#define MAX_DISTANCE 3

/* The longest name that is compared, in bytes. */
#define MAX_NAME 64

/*
 * Is this the name of a section that the API is known to have?
 */
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
 * The name of a section that is nearest to a name, or NULL where none is near.
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

		/* As PostgreSQL does for columns: half of the name must be right. */
		if (distance < least && distance <= length / 2)
		{
			nearest = section;
			least = distance;
		}
	}
	return nearest;
}

/*
 * Warn about a section that the API is not known to have.  It may have it
 * nevertheless, so that is no error.
 */
void
hrflow_section_check(const char *name)
{
	const char *nearest;

	if (is_known_section(name))
		return;
	nearest = hrflow_section_nearest(name);
	ereport(WARNING,
			(errmsg("section \"%s\" is not known to the HrFlow API", name),
			 nearest != NULL ?
			 errhint("Perhaps you meant \"%s\".", nearest) :
			 errhint("The sections are profile, skills, interests, experiences and educations.")));
}

/*
 * Likewise about each of "fields" (or NULL), an object.
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
