/*-------------------------------------------------------------------------
 *
 * npy.c
 *		Decodes vectors and matrices of numbers in NumPy's .npy format,
 *		versions 1.0 to 3.0.
 *
 * The format is described at
 * https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
 *
 * These functions are pure in the sense described in decode.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/vector.h"
#include "miscadmin.h"

static const char npy_magic[] = "\x93NUMPY";

#define NPY_MAGIC_LENGTH 6

/*
 * Maximum length of a header, in bytes.  NumPy's reader has the same limit by
 * default.
 */
#define NPY_MAX_HEADER 10000

typedef struct NpyHeader
{
	char		kind;			/* 'f', 'i' or 'u' */
	int			width;			/* size of an element, in bytes */
	bool		swapped;		/* is the byte order the opposite of this
								 * machine's? */
	bool		fortran_order;	/* does the first index vary fastest? */
	HrflowShape shape;
} NpyHeader;

/* The unread part of the header, which is a Python dictionary. */
typedef struct NpyCursor
{
	const char *p;
	const char *end;
} NpyCursor;

static void
skip_blanks(NpyCursor *c)
{
	while (c->p < c->end && (*c->p == ' ' || *c->p == '\n'))
		c->p++;
}

/*
 * Skip blanks and the given character.  Returns false if the character is not
 * next.
 */
static bool
take_character(NpyCursor *c, char wanted)
{
	skip_blanks(c);
	if (c->p >= c->end || *c->p != wanted)
		return false;
	c->p++;
	return true;
}

/*
 * Read a string without escapes in single or double quotes.
 */
static bool
take_string(NpyCursor *c, const char **string, size_t *length)
{
	char		mark;
	const char *close;

	skip_blanks(c);
	if (c->p >= c->end || (*c->p != '\'' && *c->p != '"'))
		return false;
	mark = *c->p++;
	close = memchr(c->p, mark, c->end - c->p);
	if (close == NULL || memchr(c->p, '\\', close - c->p) != NULL)
		return false;
	*string = c->p;
	*length = close - c->p;
	c->p = close + 1;
	return true;
}

static bool
take_word(NpyCursor *c, const char *word)
{
	size_t		length = strlen(word);

	skip_blanks(c);
	if (c->end - c->p < length || memcmp(c->p, word, length) != 0)
		return false;
	c->p += length;
	return true;
}

static bool
take_number(NpyCursor *c, uint64 *number)
{
	const char *start;

	skip_blanks(c);
	*number = 0;
	for (start = c->p; c->p < c->end && hrflow_is_digit(*c->p); c->p++)
	{
		if (c->p - start >= 18)
			return false;
		*number = *number * 10 + (*c->p - '0');
	}
	return c->p > start;
}

/*
 * Read a "descr", such as '<f4'.  Returns NULL, or an error detail.
 */
static char *
read_dtype(NpyCursor *c, NpyHeader *header)
{
	const char *dtype;
	size_t		length;
	static const char known[][3] = {
		"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"
	};

	skip_blanks(c);
	if (c->p < c->end && *c->p == '[')
		return pstrdup("The NumPy file contains an array of structures, which is not supported.");
	if (!take_string(c, &dtype, &length))
		return pstrdup("The NumPy header has no dtype.");

	/*
	 * An object array has the dtype "|O", formerly written as "|O8"; its data
	 * is a pickle.
	 */
	if (length >= 2 && dtype[1] == 'O')
		return pstrdup("The NumPy file contains an object array, which is never unpickled.");

	for (int i = 0; length == 3 && i < lengthof(known); i++)
	{
		if (memcmp(dtype + 1, known[i], 2) != 0)
			continue;
		header->kind = dtype[1];
		header->width = dtype[2] - '0';
#ifdef WORDS_BIGENDIAN
		header->swapped = dtype[0] == '<';
#else
		header->swapped = dtype[0] == '>';
#endif
		if (dtype[0] == '<' || dtype[0] == '>' ||
			(dtype[0] == '|' && header->width == 1))
			return NULL;
	}
	return psprintf("The NumPy dtype \"%s\" is not a supported floating-point or integer type with a known byte order.",
					hrflow_vector_quote(dtype, length));
}

/*
 * Read a "shape": (d,) or (n, d).  Returns NULL, or an error detail.  As in
 * Python, (d) is not a tuple.
 *
 * Python 2 wrote sizes with the suffix of a long integer, as in (2L,), on
 * platforms where its int was narrower than the type of a size, such as
 * Windows.  NumPy still accepts the suffix in files of versions 1.0 and 2.0,
 * which Python 2 could write; see _filter_header() in NumPy
 * (numpy/lib/_format_impl.py, formerly format.py).
 */
static char *
read_shape(NpyCursor *c, bool allow_long, HrflowShape *shape)
{
	uint64		numbers[2] = {1, 1};
	int			n = 0;
	bool		comma = true;
	const char *start;

	skip_blanks(c);
	start = c->p;
	if (!take_character(c, '('))
		return pstrdup("The NumPy header has no shape.");
	while (!take_character(c, ')'))
	{
		uint64		number;

		if (!comma || !take_number(c, &number))
			return pstrdup("The NumPy header has an invalid shape.");
		if (allow_long && c->p < c->end && *c->p == 'L')
			c->p++;
		if (n < 2)
			numbers[n] = number;
		n++;
		comma = take_character(c, ',');
	}
	if (n == 1 && !comma)
		return pstrdup("The NumPy header has an invalid shape.");
	if (n < 1 || n > 2)
		return psprintf("The NumPy shape %s does not have one or two dimensions.",
						hrflow_vector_quote(start, c->p - start));
	shape->rows = n == 2 ? numbers[0] : 1;
	shape->columns = numbers[n - 1];
	return NULL;
}

/*
 * Read the dictionary.  Like NumPy, require exactly the keys "descr",
 * "fortran_order" and "shape".  Returns NULL, or an error detail.
 */
static char *
read_npy_dictionary(NpyCursor *c, bool allow_long, NpyHeader *header)
{
	static const char *const names[] = {"descr", "fortran_order", "shape"};
	bool		seen[lengthof(names)] = {false};
	bool		comma = true;

	if (!take_character(c, '{'))
		return pstrdup("The NumPy header is not a dictionary.");
	while (!take_character(c, '}'))
	{
		const char *name;
		size_t		length;
		char	   *problem = NULL;
		int			key;

		if (!comma || !take_string(c, &name, &length) || !take_character(c, ':'))
			return pstrdup("The NumPy header is not a dictionary.");
		for (key = 0; key < lengthof(names); key++)
		{
			if (strlen(names[key]) == length &&
				memcmp(names[key], name, length) == 0)
				break;
		}
		if (key == lengthof(names) || seen[key])
			return psprintf("The NumPy header has an unexpected key \"%s\".",
							hrflow_vector_quote(name, length));
		seen[key] = true;

		if (key == 0)
			problem = read_dtype(c, header);
		else if (key == 2)
			problem = read_shape(c, allow_long, &header->shape);
		else if (take_word(c, "True"))
			header->fortran_order = true;
		else if (!take_word(c, "False"))
			problem = pstrdup("The NumPy header has no valid \"fortran_order\".");
		if (problem != NULL)
			return problem;
		comma = take_character(c, ',');
	}
	skip_blanks(c);
	if (c->p < c->end)
		return pstrdup("The NumPy header contains data after the dictionary.");
	if (!seen[0] || !seen[1] || !seen[2])
		return pstrdup("The NumPy header is incomplete.");
	return NULL;
}

/*
 * Read the header, and set *data to the data that follows it.  Returns NULL,
 * or an error detail.
 */
static char *
read_npy_header(const char *payload, size_t length, NpyHeader *header,
				const char **data)
{
	const unsigned char *bytes = (const unsigned char *) payload;
	NpyCursor	c;
	size_t		fixed;
	size_t		size;

	if (length < NPY_MAGIC_LENGTH + 4)
		return pstrdup("The NumPy file is truncated.");
	if (bytes[6] < 1 || bytes[6] > 3 || bytes[7] != 0)
		return psprintf("The NumPy file has the unsupported version %d.%d.",
						bytes[6], bytes[7]);

	fixed = NPY_MAGIC_LENGTH + (bytes[6] == 1 ? 4 : 6);
	if (length < fixed)
		return pstrdup("The NumPy file is truncated.");
	size = bytes[8] | bytes[9] << 8;
	if (bytes[6] > 1)
		size |= bytes[10] << 16 | (size_t) bytes[11] << 24;
	if (length - fixed < size)
		return pstrdup("The NumPy file is truncated.");
	if (size > NPY_MAX_HEADER)
		return psprintf("The NumPy header is longer than %d bytes.",
						NPY_MAX_HEADER);

	c.p = payload + fixed;
	c.end = *data = payload + fixed + size;
	return read_npy_dictionary(&c, bytes[6] <= 2, header);
}

/*
 * Read an element of any supported type.  A double that is too large for
 * float4 becomes infinite, which hrflow_vector_check_finite() detects.
 */
static float4
read_npy_element(const char *p, const NpyHeader *header)
{
	uint64		raw = 0;

	/* Assemble the bytes into a 64-bit integer. */
	for (int i = 0; i < header->width; i++)
	{
#ifdef WORDS_BIGENDIAN
		int			at = header->swapped ? header->width - 1 - i : i;
#else
		int			at = header->swapped ? i : header->width - 1 - i;
#endif

		raw = raw << 8 | (unsigned char) p[at];
	}

	if (header->kind == 'u')
		return (float4) raw;
	if (header->kind == 'i')
	{
		int			unused = 64 - 8 * header->width;

		return (float4) ((int64) (raw << unused) >> unused);
	}
	if (header->width == 2)
		return hrflow_half_to_real((uint16) raw);
	if (header->width == 4)
	{
		uint32		bits = (uint32) raw;
		float4		result;

		memcpy(&result, &bits, sizeof(result));
		return result;
	}
	else
	{
		float8		result;

		memcpy(&result, &raw, sizeof(result));
		return (float4) result;
	}
}

/*
 * Does the payload begin like a NumPy file?
 */
bool
hrflow_npy_recognize(const char *payload, size_t length)
{
	return length >= NPY_MAGIC_LENGTH &&
		memcmp(payload, npy_magic, NPY_MAGIC_LENGTH) == 0;
}

/*
 * Decode a NumPy file.  Returns a palloc'd array, or NULL with *bad set.
 */
ArrayType *
hrflow_npy_decode(const char *payload, size_t length, HrflowBadVector *bad)
{
	NpyHeader	header = {0};
	const char *data = payload;
	ArrayType  *array;
	float4	   *elements;
	uint64		n;
	uint64		columns;
	bool		fits;

	bad->detail = read_npy_header(payload, length, &header, &data);
	if (bad->detail != NULL)
		return NULL;

	/*
	 * Check the size before allocating the array, so that a wrong shape
	 * cannot make us allocate more memory than the payload justifies.
	 */
	Assert(header.width > 0);
	columns = header.shape.columns;
	length -= data - payload;
	n = length / header.width;
	fits = columns == 0 ? n == 0 :
		n % columns == 0 && n / columns == header.shape.rows;
	if (length % header.width != 0 || !fits)
	{
		bad->detail = psprintf("The NumPy file has %zu bytes of elements, which do not fit a shape of " UINT64_FORMAT " x " UINT64_FORMAT " elements of %d bytes.",
							   length, header.shape.rows, columns, header.width);
		return NULL;
	}

	array = hrflow_vector_make(&header.shape, bad);
	if (array == NULL)
		return NULL;
	elements = hrflow_vector_elements(array);
	if (header.fortran_order && header.shape.rows > 1 && columns > 1)
	{
		uint64		rows = header.shape.rows;

		for (uint64 row = 0; row < rows; row++)
		{
			for (uint64 column = 0; column < columns; column++)
			{
				CHECK_FOR_INTERRUPTS();
				*elements++ = read_npy_element(data + (column * rows + row) *
											   header.width, &header);
			}
		}
		elements = hrflow_vector_elements(array);
	}
	else if (header.kind == 'f' && header.width == sizeof(float4) &&
			 !header.swapped)
		memcpy(elements, data, length);
	else
	{
		for (uint64 i = 0; i < n; i++)
		{
			CHECK_FOR_INTERRUPTS();
			elements[i] = read_npy_element(data + i * header.width, &header);
		}
	}
	return hrflow_vector_check_finite(elements, n, bad) ? array : NULL;
}
