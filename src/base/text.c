/*-------------------------------------------------------------------------
 *
 * text.c
 *		Converts text between the server encoding and UTF-8, without raising
 *		errors for characters that cannot be converted.
 *
 * pg_server_to_any() and pg_any_to_server() raise an error for a character
 * that does not exist in the target encoding.  In a batch, only the row that
 * contains such a character must fail.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "base/base.h"
#include "common/string.h"
#include "mb/pg_wchar.h"

/*
 * Convert "length" bytes of text, which must be followed by a NUL, from one
 * encoding to another.  Returns "text" itself if no conversion is needed, NULL
 * if the text cannot be converted, or else a palloc'd copy.  ASCII needs no
 * conversion, since it is a subset of all server encodings; MULE_INTERNAL has
 * no conversion to or from UTF-8 for anything else.
 */
static const char *
convert(const char *text, size_t length, int from, int to)
{
	Oid			proc;
	size_t		size;
	char	   *converted;

	if (from == to || pg_is_ascii(text))
		return text;
	proc = FindDefaultConversionProc(from, to);
	if (!OidIsValid(proc))
		return NULL;

	size = length * MAX_CONVERSION_GROWTH + 1;
	converted = palloc_extended(size, MCXT_ALLOC_HUGE);
	if (pg_do_encoding_conversion_buf(proc, from, to,
									  (unsigned char *) unconstify(char *, text),
									  length, (unsigned char *) converted,
									  size, true) != length)
	{
		pfree(converted);
		return NULL;
	}
	return converted;
}

/*
 * Convert NUL-terminated text from the server encoding to UTF-8.  Returns
 * "text" itself if no conversion is needed, NULL if the text cannot be
 * converted, or else a palloc'd copy.  In a SQL_ASCII database, whose text has
 * no known encoding, the text is accepted if it is valid UTF-8.
 */
const char *
hrflow_text_to_utf8(const char *text)
{
	size_t		length = strlen(text);

	if (GetDatabaseEncoding() == PG_SQL_ASCII)
		return pg_encoding_verifymbstr(PG_UTF8, text, length) == length ?
			text : NULL;
	return convert(text, length, GetDatabaseEncoding(), PG_UTF8);
}

/*
 * Convert valid UTF-8, which must be followed by a NUL, to the server
 * encoding, which must not be SQL_ASCII.  Returns "text" itself if no
 * conversion is needed, NULL if the text cannot be converted, or else a
 * palloc'd copy.
 */
const char *
hrflow_text_from_utf8(const char *text, size_t length)
{
	return convert(text, length, PG_UTF8, GetDatabaseEncoding());
}

/*
 * Convert text that should be UTF-8 to the server encoding, for use in a
 * message.  Question marks replace the characters that do not exist in the
 * server encoding or, if the text is not valid UTF-8 or there is no
 * conversion, all non-ASCII bytes.  The result is palloc'd.
 */
char *
hrflow_text_show_utf8(const char *text, size_t length)
{
	int			encoding = GetDatabaseEncoding();
	bool		valid = pg_encoding_verifymbstr(PG_UTF8, text, length) == length;
	Oid			proc = InvalidOid;
	size_t		size = length * MAX_CONVERSION_GROWTH + 1;
	char	   *shown;
	char	   *to;

	if (valid && (encoding == PG_UTF8 || encoding == PG_SQL_ASCII))
		return pnstrdup(text, length);
	if (valid)
		proc = FindDefaultConversionProc(PG_UTF8, encoding);
	if (!OidIsValid(proc))
	{
		shown = pnstrdup(text, length);
		for (char *p = shown; *p; p++)
		{
			if (IS_HIGHBIT_SET(*p))
				*p = '?';
		}
		return shown;
	}

	shown = to = palloc(size);
	*to = '\0';
	while (length > 0)
	{
		int			n = pg_do_encoding_conversion_buf(proc, PG_UTF8, encoding,
													  (unsigned char *) unconstify(char *, text),
													  length, (unsigned char *) to,
													  size - (to - shown), true);

		to += strlen(to);
		if (n < length)
		{
			*to++ = '?';
			*to = '\0';
			n += pg_encoding_mblen(PG_UTF8, text + n);
		}
		text += n;
		length -= n;
	}
	return shown;
}
