/*-------------------------------------------------------------------------
 *
 * envelope.c
 *		Detects a refusal that only the body of a reply reports.
 *
 * The API repeats the HTTP status as "code" in the JSON of a reply, the
 * envelope, and the two may disagree.  A 429 in the envelope is a refusal like
 * HTTP 429.  It must be known when the outcome of the attempt is reported to
 * the account, which happens before the submitter parses the reply.
 *
 * The functions are pure, and neither throw nor allocate memory.  They do not
 * validate the JSON, which the submitter parses later.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

#define SPACE " \t\n\r"

/*
 * Return the position after the string that begins at p, or the end of the
 * text if the string has no closing quote.
 */
static const char *
skip_string(const char *p)
{
	for (p++; *p != '\0' && *p != '"'; p++)
	{
		if (*p == '\\' && p[1] != '\0')
			p++;
	}
	return *p == '"' ? p + 1 : p;
}

/*
 * Return the end of the member whose value begins at p: the comma or brace
 * after it, or the end of the text.
 */
static const char *
skip_member(const char *p)
{
	int			depth = 0;

	while (*p != '\0')
	{
		if (*p == '"')
		{
			p = skip_string(p);
			continue;
		}
		if (depth == 0 && (*p == ',' || *p == '}'))
			break;
		if (*p == '{' || *p == '[')
			depth++;
		else if (*p == '}' || *p == ']')
			depth--;
		p++;
		p += strcspn(p, "\"{}[],");
	}
	return p;
}

/*
 * Is the number at p the integer 429, with a delimiter after it?
 */
static bool
is_429(const char *p)
{
	return strncmp(p, "429", 3) == 0 && strchr(SPACE ",}", p[3]) != NULL &&
		p[3] != '\0';
}

/*
 * Is this body a JSON object whose first member named "code" is 429?  The body
 * ends with a NUL.  In the API's replies "code" is the first member, so normally
 * only a few bytes are read.
 */
bool
hrflow_envelope_is_limited(const char *body)
{
	const char *p = body + strspn(body, SPACE);

	if (*p != '{')
		return false;
	do
	{
		const char *name = p + 1 + strspn(p + 1, SPACE);
		const char *end;

		if (*name != '"')
			return false;
		end = skip_string(name);
		p = end + strspn(end, SPACE);
		if (*p != ':')
			return false;
		p += 1 + strspn(p + 1, SPACE);
		if (end - name == strlen("\"code\"") &&
			strncmp(name, "\"code\"", end - name) == 0)
			return is_429(p);
		p = skip_member(p);
	} while (*p == ',');
	return false;
}
