/*-------------------------------------------------------------------------
 *
 * text.c
 *		Conversion between the server encoding and UTF-8 without errors.
 *
 * pg_server_to_any() and pg_any_to_server() raise an error for a character
 * that the other encoding lacks, but in a batch that must fail only one row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "base/base.h"
#include "mb/pg_wchar.h"

/*
 * Convert "length" bytes of text, which must be followed by a NUL.  Returns
 * the text itself if no conversion is needed, a palloc'd copy, or NULL if the
 * text cannot be converted.
 */
static const char *
convert(const char *text, size_t length, int from, int to)
{
	Oid			proc;
	size_t		size;
	char	   *converted;

	if (from == to)
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
 * Convert from the server encoding to UTF-8.  Returns NULL if that is not
 * possible.  The encoding of text in a SQL_ASCII database is unknown, so it is
 * accepted if it is valid UTF-8.
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
 * Convert valid UTF-8 to the server encoding, which must not be SQL_ASCII.
 * Returns NULL if that is not possible.
 */
const char *
hrflow_text_from_utf8(const char *text, size_t length)
{
	return convert(text, length, PG_UTF8, GetDatabaseEncoding());
}

/*
 * Convert what should be UTF-8 to the server encoding for use in a message.
 * Characters that the server encoding lacks become question marks; if the text
 * is not valid UTF-8, so does each non-ASCII byte.  The result is palloc'd.
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
