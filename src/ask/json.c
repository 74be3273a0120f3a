/*-------------------------------------------------------------------------
 *
 * json.c
 *		JSON text of a reply to what jsonb is made of, without errors.
 *
 * jsonb_in would do, were it not that it raises errors for much that a reply
 * may hold (before 16 for all of it), recurses as deep as the text nests, and
 * before 16 looks at every character of a string three times: links of 1,700
 * characters made it two fifths of what a call cost.  What is accepted here is
 * what jsonb_in accepts, within the limits below, and becomes the same; a
 * fuzzer compares the two.
 *
 * Strings stay in UTF-8 but where they are to become jsonb: what is not needed
 * may have characters that the server encoding lacks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "ask/ask.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

/*
 * A number is no longer than this, and its exponent has no more digits, so
 * that numeric can hold it: numbers are status codes here.
 */
#define MAX_NUMBER 100
#define MAX_EXPONENT_DIGITS 3

/* An int64 holds any number of fewer digits. */
#define INT64_DIGITS 19

/*
 * Values of a reply, each of which takes some 40 bytes while it is read: an
 * answer has dozens.
 */
#define MAX_VALUES 1000000

typedef struct Reader
{
	const char *p;				/* the next byte; a NUL is at the end */
	int			depth;			/* of arrays and objects around it */
	bool		too_deep;
	int			nvalues;		/* elements and members begun, those that are
								 * left out included */
	const char *converted;		/* member of the outermost object whose
								 * strings are converted; or NULL */
	bool		converts;		/* in it now */
	const char *name;			/* of members to leave out; or NULL */
	HrflowSpan *left_out;
	HrflowJsonbState state;
} Reader;

static bool read_value(Reader *r, JsonbIteratorToken token);

static void
skip_space(Reader *r)
{
	r->p += strspn(r->p, " \t\n\r");
}

static bool
take(Reader *r, char c)
{
	skip_space(r);
	if (*r->p != c)
		return false;
	r->p++;
	return true;
}

/*
 * Read four hexadecimal digits.
 */
static bool
read_hex(Reader *r, pg_wchar *unit)
{
	*unit = 0;
	for (int i = 0; i < 4; i++, r->p++)
	{
		char		c = *r->p;

		if (c >= '0' && c <= '9')
			*unit = *unit * 16 + (c - '0');
		else if (c >= 'a' && c <= 'f')
			*unit = *unit * 16 + (c - 'a' + 10);
		else if (c >= 'A' && c <= 'F')
			*unit = *unit * 16 + (c - 'A' + 10);
		else
			return false;
	}
	return true;
}

/*
 * Read what follows "\u", the other half of a surrogate pair included, as
 * UTF-8.  jsonb has no NUL.
 */
static bool
read_unicode(Reader *r, char **to)
{
	pg_wchar	c;
	pg_wchar	low;

	if (!read_hex(r, &c) || c == 0 || is_utf16_surrogate_second(c))
		return false;
	if (is_utf16_surrogate_first(c))
	{
		if (r->p[0] != '\\' || r->p[1] != 'u')
			return false;
		r->p += 2;
		if (!read_hex(r, &low) || !is_utf16_surrogate_second(low))
			return false;
		c = surrogate_pair_to_codepoint(c, low);
	}
	unicode_to_utf8(c, (unsigned char *) *to);
	*to += pg_utf_mblen((unsigned char *) *to);
	return true;
}

/*
 * The quote that ends a string whose next characters are these, or the end of
 * the text.
 */
static const char *
end_of_string(const char *p)
{
	for (;;)
	{
		p += strcspn(p, "\"\\");
		if (*p != '\\')
			return p;
		p += p[1] != '\0' ? 2 : 1;
	}
}

/*
 * Read the rest of a string that has escapes, of which "length" bytes before
 * the first one are at "start".  Nothing becomes longer than it is written.
 */
static bool
read_escapes(Reader *r, const char *start, size_t length, JsonbValue *value)
{
	static const char codes[] = "\"\\/bfnrt";
	static const char meant[] = "\"\\/\b\f\n\r\t";
	char	   *string = palloc(end_of_string(r->p) - start + 1);
	char	   *to = string + length;

	memcpy(string, start, length);
	while (*r->p != '"')
	{
		if ((unsigned char) *r->p < ' ')
			return false;
		if (*r->p != '\\')
			*to++ = *r->p++;
		else if (*++r->p == 'u')
		{
			r->p++;
			if (!read_unicode(r, &to))
				return false;
		}
		else
		{
			const char *code = *r->p ? strchr(codes, *r->p) : NULL;

			if (code == NULL)
				return false;
			*to++ = meant[code - codes];
			r->p++;
		}
	}
	*to = '\0';
	value->val.string.val = string;
	value->val.string.len = to - string;
	return true;
}

/*
 * Is there a control character, which must be escaped?  A loop that can be
 * vectorised: links are long.
 */
static bool
has_control(const char *text, size_t length)
{
	unsigned char found = 0;

	for (size_t i = 0; i < length; i++)
		found |= (unsigned char) text[i] < ' ';
	return found;
}

/*
 * Read a string behind its first quote.  It is left where it is if it can be.
 */
static bool
read_string(Reader *r, JsonbValue *value)
{
	const char *start = r->p;
	const char *converted;

	value->type = jbvString;
	r->p += strcspn(r->p, "\"\\");
	if (has_control(start, r->p - start))
		return false;
	if (*r->p == '\\')
	{
		if (!read_escapes(r, start, r->p - start, value))
			return false;
	}
	else
	{
		value->val.string.val = unconstify(char *, start);
		value->val.string.len = r->p - start;
	}
	if (*r->p != '"')
		return false;
	r->p++;

	if (!r->converts || GetDatabaseEncoding() == PG_UTF8 ||
		GetDatabaseEncoding() == PG_SQL_ASCII)
		return true;
	converted = hrflow_text_from_utf8(pnstrdup(value->val.string.val,
											   value->val.string.len),
									  value->val.string.len);
	if (converted == NULL)
		return false;
	value->val.string.val = unconstify(char *, converted);
	value->val.string.len = strlen(converted);
	return true;
}

static size_t
count_digits(const char *p)
{
	return strspn(p, "0123456789");
}

static bool
read_number(Reader *r, JsonbValue *value)
{
	const char *start = r->p;
	size_t		digits;
	char		number[MAX_NUMBER + 1];

	value->type = jbvNumeric;
	r->p += *r->p == '-';
	digits = count_digits(r->p);
	if (digits == 0 || (*r->p == '0' && digits > 1))
		return false;
	r->p += digits;
	if (digits < INT64_DIGITS && strchr(".eE", *r->p) == NULL)
	{
		value->val.numeric = int64_to_numeric(strtoll(start, NULL, 10));
		return true;
	}
	if (*r->p == '.')
	{
		digits = count_digits(++r->p);
		if (digits == 0)
			return false;
		r->p += digits;
	}
	if (*r->p == 'e' || *r->p == 'E')
	{
		r->p++;
		r->p += *r->p == '+' || *r->p == '-';
		digits = count_digits(r->p);
		if (digits == 0 || digits > MAX_EXPONENT_DIGITS)
			return false;
		r->p += digits;
	}
	if (r->p - start > MAX_NUMBER)
		return false;

	memcpy(number, start, r->p - start);
	number[r->p - start] = '\0';
	value->val.numeric =
		DatumGetNumeric(DirectFunctionCall3(numeric_in,
											CStringGetDatum(number),
											ObjectIdGetDatum(InvalidOid),
											Int32GetDatum(-1)));
	return true;
}

static bool
read_word(Reader *r, JsonbValue *value)
{
	static const struct
	{
		const char *word;
		enum jbvType type;
		bool		boolean;
	}			words[] = {
		{.word = "null", .type = jbvNull},
		{.word = "true", .type = jbvBool, .boolean = true},
		{.word = "false", .type = jbvBool}
	};

	for (int i = 0; i < lengthof(words); i++)
	{
		size_t		length = strlen(words[i].word);

		if (strncmp(r->p, words[i].word, length) != 0)
			continue;
		r->p += length;
		value->type = words[i].type;
		if (words[i].type == jbvBool)
			value->val.boolean = words[i].boolean;
		return true;
	}
	return false;
}

/*
 * Is this the key of members of that name, which may be NULL?
 */
static bool
is_named(const JsonbValue *key, const char *name)
{
	return name != NULL && key->val.string.len == strlen(name) &&
		memcmp(key->val.string.val, name, key->val.string.len) == 0;
}

/*
 * Leave out the value of a member, if that is what is wanted of it and it is
 * an array that can hold numbers alone: it becomes null.  Such an array ends
 * with the first bracket that closes, so what is in it needs no look.
 */
static bool
leave_out(Reader *r, const JsonbValue *key)
{
	JsonbValue	null = {.type = jbvNull};
	const char *start;
	const char *end;

	if (!is_named(key, r->name))
		return false;
	skip_space(r);
	start = r->p;
	if (*start != '[' ||
		strchr("-0123456789]", start[1 + strspn(start + 1, " \t\n\r")]) == NULL)
		return false;
	end = strchr(start, ']');
	if (end == NULL)
		return false;

	r->left_out->n++;
	r->left_out->start = start;
	r->left_out->length = end + 1 - start;
	r->p = end + 1;
	hrflow_compat_push_jsonb(&r->state, WJB_VALUE, &null);
	return true;
}

/*
 * Read an array or an object behind its bracket.
 */
static bool
read_container(Reader *r, bool is_object)
{
	char		end = is_object ? '}' : ']';
	bool		ended;

	if (++r->depth > HRFLOW_MAX_JSON_DEPTH)
	{
		r->too_deep = true;
		return false;
	}
	hrflow_compat_push_jsonb(&r->state, is_object ? WJB_BEGIN_OBJECT :
							 WJB_BEGIN_ARRAY, NULL);
	ended = take(r, end);
	while (!ended)
	{
		JsonbValue	key;
		bool		is_done = false;

		CHECK_FOR_INTERRUPTS();
		if (++r->nvalues > MAX_VALUES)
			return false;
		if (is_object)
		{
			if (r->depth == 1)
				r->converts = false;
			if (!take(r, '"') || !read_string(r, &key) || !take(r, ':'))
				return false;
			if (r->depth == 1)
				r->converts = is_named(&key, r->converted);
			hrflow_compat_push_jsonb(&r->state, WJB_KEY, &key);
			is_done = leave_out(r, &key);
		}
		if (!is_done && !read_value(r, is_object ? WJB_VALUE : WJB_ELEM))
			return false;
		if (!take(r, ','))
		{
			if (!take(r, end))
				return false;
			ended = true;
		}
	}
	hrflow_compat_push_jsonb(&r->state, is_object ? WJB_END_OBJECT :
							 WJB_END_ARRAY, NULL);
	r->depth--;
	return true;
}

/*
 * Read a value that is an element or belongs to a key.
 */
static bool
read_value(Reader *r, JsonbIteratorToken token)
{
	JsonbValue	value;
	bool		good;

	skip_space(r);
	switch (*r->p)
	{
		case '{':
		case '[':
			return read_container(r, *r->p++ == '{');
		case '"':
			r->p++;
			good = read_string(r, &value);
			break;
		case '-':
		case '0':
		case '1':
		case '2':
		case '3':
		case '4':
		case '5':
		case '6':
		case '7':
		case '8':
		case '9':
			good = read_number(r, &value);
			break;
		default:
			good = read_word(r, &value);
			break;
	}
	if (good)
		hrflow_compat_push_jsonb(&r->state, token, &value);
	return good;
}

static JsonbValue *
parse(Reader *r, bool *too_deep)
{
	bool		good;

	skip_space(r);
	good = (*r->p == '{' || *r->p == '[') &&
		read_container(r, *r->p++ == '{');
	*too_deep = r->too_deep;
	if (!good)
		return NULL;
	skip_space(r);
	if (*r->p != '\0')
		return NULL;
	return r->state.result;
}

/*
 * Read an object or an array.  "text" is valid UTF-8, ended by its only NUL.
 * Returns NULL where it is not that, or jsonb cannot hold it; *too_deep tells
 * whether that is because it nests deeper than HRFLOW_MAX_JSON_DEPTH.
 * palloc'd, with strings that may still be in "text": those of the outermost
 * object's member "converted" are in the server encoding, and NULL is returned
 * where that lacks a character of theirs; the others are in UTF-8.
 */
JsonbValue *
hrflow_json_parse(const char *text, const char *converted, bool *too_deep)
{
	Reader		r = {.p = text, .converted = converted};

	return parse(&r, too_deep);
}

/*
 * The same, but members of that name, an ASCII one, whose values are arrays of
 * numbers become null: "left_out" is where they are in the text.  Whether they
 * are JSON is for who reads them there to find out.
 */
JsonbValue *
hrflow_json_parse_without(const char *text, const char *converted,
						  const char *name, HrflowSpan *left_out,
						  bool *too_deep)
{
	Reader		r = {.p = text, .converted = converted, .name = name,
	.left_out = left_out};

	left_out->n = 0;
	return parse(&r, too_deep);
}
