/*-------------------------------------------------------------------------
 *
 * json.c
 *		Parses the JSON of a reply into a JsonbValue, without raising errors
 *		about invalid JSON.
 *
 * We do not use jsonb_in(), because it raises errors for input that a reply
 * may contain (before PostgreSQL 16, for all invalid input), and limits the
 * nesting depth only by max_stack_depth.  Within our limits, this parser
 * accepts the same objects and arrays as jsonb_in(), with the same result; a
 * fuzzer compares the two.
 *
 * Only strings in the member "data", which may be stored as jsonb, are
 * converted to the server encoding.  All other strings remain in UTF-8,
 * because they may contain characters that the server encoding lacks.
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
 * Maximum length of a number, in characters.  Apart from the elements of
 * vectors, the numbers in replies are three-digit status codes.
 */
#define MAX_NUMBER 100

/*
 * Maximum number of digits in the exponent of a number.  A number of at most
 * MAX_NUMBER characters with such an exponent fits into numeric.
 */
#define MAX_EXPONENT_DIGITS 3

/* Any integer with fewer digits than this fits into an int64. */
#define INT64_DIGITS 19

/*
 * Maximum number of values in a reply.  Each takes about 40 bytes while the
 * reply is parsed.  The API's replies contain dozens of values.
 *
 * An array or object counts as additional values, because pushJsonbValue()
 * allocates about 600 bytes for it, even if it is empty.
 */
#define MAX_VALUES 1000000
#define VALUES_PER_CONTAINER 16

typedef struct Reader
{
	const char *p;				/* next byte; the text ends with a NUL */
	int			depth;			/* number of enclosing arrays and objects */
	bool		too_deep;
	int			nvalues;		/* number of values so far, as counted for
								 * MAX_VALUES; a skipped array counts as one */
	const char *converted;		/* name of the member of the outermost object
								 * in which strings are converted to the
								 * server encoding, or NULL */
	bool		converts;		/* is the position inside the member
								 * "converted"? */
	const char *name;			/* name of the members whose arrays are
								 * skipped, or NULL */
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
 * Read the rest of an escape that begins with "\u", including the second half
 * of a surrogate pair, and append it to *to as UTF-8.  A NUL is not accepted,
 * since jsonb cannot store it.
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
 * Find the closing quote of the string that continues at "p".  Returns the end
 * of the text if there is none.
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
 * Read the rest of a string that contains escapes.  The first "length" bytes,
 * which begin at "start", have been read already.  Replacing escapes never
 * makes a string longer.
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
 * Does the text contain a control character, which JSON requires to be
 * escaped?  The compiler can vectorize this loop, which matters because links
 * are long.
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
 * Read a string, after its opening quote.  The result points into the text if
 * the string need not be changed.
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
 * Is this the key of a member with the given name, which may be NULL?
 */
static bool
is_named(const JsonbValue *key, const char *name)
{
	return name != NULL && key->val.string.len == strlen(name) &&
		memcmp(key->val.string.val, name, key->val.string.len) == 0;
}

/*
 * If a member has the name r->name, and its value is an array that begins with
 * a number or is empty, skip the array, store null instead, and return true.
 * The array is assumed to contain only numbers, so it ends at the first
 * closing bracket, and its content need not be parsed.
 */
static bool
skip_array(Reader *r, const JsonbValue *key)
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
 * Read an array or an object, after its opening bracket.
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
	r->nvalues += VALUES_PER_CONTAINER;
	if (r->nvalues > MAX_VALUES)
		return false;
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
			is_done = skip_array(r, &key);
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
 * Read a value: an array element if "token" is WJB_ELEM, or the value of a
 * member if it is WJB_VALUE.
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
 * Parse an object or an array.  "text" must be valid UTF-8 and terminated by
 * its only NUL.  Returns NULL if the text is not a valid JSON object or array,
 * jsonb cannot store it, or it exceeds one of our limits.  Sets *too_deep to
 * whether that limit is HRFLOW_MAX_JSON_DEPTH.
 *
 * The result is palloc'd, and its strings may point into "text".  Strings in
 * the member "converted" of the outermost object are converted to the server
 * encoding; NULL is returned if that is not possible.  All other strings
 * remain in UTF-8.
 */
JsonbValue *
hrflow_json_parse(const char *text, const char *converted, bool *too_deep)
{
	Reader		r = {.p = text, .converted = converted};

	return parse(&r, too_deep);
}

/*
 * Like hrflow_json_parse(), but if the value of a member with the given ASCII
 * name is an array that is empty or begins with a number, replace the array by
 * null, and record it in *left_out.  The caller must validate the skipped
 * array.
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
