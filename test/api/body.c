/*
 * body.c
 *		Parses the bodies of POST requests.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "standin.h"

static void
add_utf8(Buffer *out, unsigned c)
{
	char		bytes[4];
	size_t		n = 0;

	if (c < 0x80)
		bytes[n++] = (char) c;
	else if (c < 0x800)
		bytes[n++] = (char) (0xc0 | c >> 6);
	else if (c < 0x10000)
	{
		bytes[n++] = (char) (0xe0 | c >> 12);
		bytes[n++] = (char) (0x80 | (c >> 6 & 0x3f));
	}
	else
	{
		bytes[n++] = (char) (0xf0 | c >> 18);
		bytes[n++] = (char) (0x80 | (c >> 12 & 0x3f));
		bytes[n++] = (char) (0x80 | (c >> 6 & 0x3f));
	}
	if (c >= 0x80)
		bytes[n++] = (char) (0x80 | (c & 0x3f));
	buffer_add(out, bytes, n);
}

/*
 * Read four hexadecimal digits.  Do not use sscanf(), which would search for
 * the end of the text.
 */
static bool
parse_hex(const char *p, unsigned *value)
{
	*value = 0;
	for (int i = 0; i < 4; i++)
	{
		if (!isxdigit((unsigned char) p[i]))
			return false;
		*value = *value * 16 +
			(isdigit((unsigned char) p[i]) ? p[i] - '0' : (p[i] | 32) - 'a' + 10);
	}
	return true;
}

/* Read an escape, after its backslash.  Returns NULL if it is not valid. */
static const char *
parse_escape(const char *p, Buffer *out)
{
	static const char codes[] = "\"\\/bfnrt";
	static const char meant[] = "\"\\/\b\f\n\r\t";
	const char *code = *p ? strchr(codes, *p) : NULL;
	unsigned	high;
	unsigned	low;

	if (code)
	{
		buffer_add(out, &meant[code - codes], 1);
		return p + 1;
	}
	if (*p != 'u' || !parse_hex(p + 1, &high) || high == 0)
		return NULL;
	p += 5;
	if (high >= 0xd800 && high < 0xdc00)
	{
		if (p[0] != '\\' || p[1] != 'u' || !parse_hex(p + 2, &low))
			return NULL;
		high = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
		p += 6;
	}
	add_utf8(out, high);
	return p;
}

static const char *
skip_space(const char *p)
{
	return p + strspn(p, " \t\n\r");
}

/*
 * Skip a character and the space around it.  Returns NULL if there is another
 * one.
 */
static const char *
take(const char *p, char c)
{
	p = skip_space(p);
	return *p == c ? skip_space(p + 1) : NULL;
}

/* Read a string with its quotes.  Returns NULL if it is not valid. */
static const char *
parse_string(const char *p, Buffer *out)
{
	if (*p++ != '"')
		return NULL;
	buffer_add(out, "", 0);
	while (p && *p != '"')
	{
		if ((unsigned char) *p < ' ')
			p = NULL;
		else if (*p == '\\')
			p = parse_escape(p + 1, out);
		else
			buffer_add(out, p++, 1);
	}
	return p ? p + 1 : NULL;
}

/*
 * Find the end of a value.  In nested values, check only that brackets and
 * strings are closed.
 */
static const char *
skip_value(const char *p)
{
	int			depth = 0;

	do
	{
		p = skip_space(p);
		if (*p == '"')
		{
			Buffer		ignored = {0};

			p = parse_string(p, &ignored);
			free(ignored.data);
		}
		else if (*p == '{' || *p == '[')
			depth++, p++;
		else if (*p == '}' || *p == ']')
			depth--, p++;
		else if (depth > 0 && (*p == ',' || *p == ':'))
			p++;
		else
		{
			size_t		n = strcspn(p, "\"{}[],: \t\n\r");

			p = n > 0 ? p + n : NULL;
		}
	} while (p && depth > 0);
	return depth == 0 ? p : NULL;
}

/*
 * Return the value of a member of an object, to be freed, or NULL if there is
 * no member with this name.  *n is set to the number of members, or -1 if the
 * JSON is not an object.
 */
static char *
member_of(const char *p, const char *name, int *n)
{
	char	   *value = NULL;

	*n = 0;
	p = take(p, '{');
	if (p && *p == '}')
		return NULL;
	while (p)
	{
		Buffer		key = {0};
		const char *begin = NULL;
		const char *end = NULL;

		p = parse_string(p, &key);
		if (p)
			begin = take(p, ':');
		if (begin)
			end = skip_value(begin);
		if (end && strcmp(key.data, name) == 0)
		{
			free(value);
			value = strndup(begin, end - begin);
		}
		free(key.data);
		if (end == NULL)
			break;
		++*n;
		p = skip_space(end);
		if (*p == '}')
		{
			if (*skip_space(p + 1) == '\0')
				return value;
			break;
		}
		p = take(p, ',');
	}
	*n = -1;
	free(value);
	return NULL;
}

/* Decode a JSON string, to be freed.  Returns NULL if it is not a string. */
static char *
string_of(const char *value)
{
	Buffer		out = {0};
	const char *end = value ? parse_string(value, &out) : NULL;

	if (end && *end == '\0')
		return out.data;
	free(out.data);
	return NULL;
}

/*
 * Read {"text": "…"}, and nothing else.
 */
static void
read_text(Request *request)
{
	int			n;
	char	   *value = member_of(request->body_in, "text", &n);

	if (n == 1)
		request->text = string_of(value);
	free(value);
}

/*
 * Read {"item_type": "…", "item": {…}, "return_sequences": "True" or "False"},
 * and nothing else.  The identifier, which can request faults, is the "key" of
 * the item, or the whole item if it has none.
 */
static void
read_document(Request *request)
{
	int			n;
	int			nmembers;
	char	   *type = member_of(request->body_in, "item_type", &n);
	char	   *item = member_of(request->body_in, "item", &n);
	char	   *sequences = member_of(request->body_in, "return_sequences", &n);
	bool		all = sequences && strcmp(sequences, "\"True\"") == 0;

	if (n == 3 && type && item && *item == '{' && sequences &&
		(all || strcmp(sequences, "\"False\"") == 0))
	{
		char	   *key = member_of(item, "key", &nmembers);

		request->item_type = string_of(type);
		request->text = nmembers > 0 ? string_of(key) : NULL;
		if (nmembers > 0 && request->text == NULL)
			request->text = strdup(item);
		request->sequences = all;
		free(key);
	}
	free(type);
	free(item);
	free(sequences);
}

/*
 * Parse the body of a request as its endpoint requires.
 */
void
body_read(Request *request)
{
	if (request->body_in == NULL ||
		strlen(request->body_in) != request->body_in_length)
		return;
	if (strcmp(request->path, "/v1/document/embedding") == 0)
		read_document(request);
	else
		read_text(request);
}
