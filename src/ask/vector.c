/*-------------------------------------------------------------------------
 *
 * vector.c
 *		Bytes to an array of real.
 *
 * Three encodings are read, told apart by how they begin, which is different
 * for each:
 *
 *	0x93 "NUMPY"	NumPy's .npy file, versions 1.0 to 3.0 (what links lead to)
 *	"["				a JSON array of numbers, or of such arrays
 *	else			base64 of big-endian IEEE floats of 4 bytes
 *
 * Pure: what is made depends on the arguments alone.  The decoders raise no
 * error for what the payload holds, and allocate no more than 4 bytes for an
 * element of which a byte is there, at least.  Where an element takes a while
 * they can be interrupted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "ask/ask.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(hrflow_decode_vector);
PG_FUNCTION_INFO_V1(hrflow_cosine_similarity);

/* As many elements as PostgreSQL's own functions let an array have. */
#define MAX_ELEMENTS MaxArraySize

/* What is worth quoting of a payload. */
#define MAX_QUOTED 40

typedef struct Shape
{
	uint64		rows;			/* vectors */
	uint64		columns;		/* elements of each */
} Shape;

/*
 * ------------------------------------------------------------------------
 * Arrays
 * ------------------------------------------------------------------------
 */

/*
 * An array of real of this shape, whose elements are to be written.  A matrix
 * of one row is a vector.  NULL and *problem where it cannot be.
 */
static ArrayType *
make_array(const Shape *shape, char **problem)
{
	int			ndim = shape->rows == 1 ? 1 : 2;
	Size		header = ARR_OVERHEAD_NONULLS(ndim);
	Size		size;
	ArrayType  *array;

	if (shape->rows == 0 || shape->columns == 0)
	{
		*problem = pstrdup("It has no elements.");
		return NULL;
	}
	if (shape->columns > MAX_ELEMENTS ||
		shape->rows > MAX_ELEMENTS / shape->columns)
	{
		*problem = pstrdup("It has too many elements.");
		return NULL;
	}

	size = header + shape->rows * shape->columns * sizeof(float4);
	array = palloc(size);
	memset(array, 0, header);
	SET_VARSIZE(array, size);
	array->ndim = ndim;
	array->elemtype = FLOAT4OID;
	if (ndim == 2)
		ARR_DIMS(array)[0] = (int) shape->rows;
	ARR_DIMS(array)[ndim - 1] = (int) shape->columns;
	for (int i = 0; i < ndim; i++)
		ARR_LBOUND(array)[i] = 1;
	return array;
}

static inline float4 *
array_elements(ArrayType *array)
{
	return (float4 *) ARR_DATA_PTR(array);
}

/*
 * Are all elements finite?  Says in *problem which one is not.  Finds it in a
 * second loop, so that the first can be vectorised.
 */
static bool
check_finite(const float4 *elements, size_t n, char **problem)
{
	uint32		any = 0;

	for (size_t i = 0; i < n; i++)
	{
		uint32		bits;

		memcpy(&bits, &elements[i], sizeof(bits));
		any |= (bits & 0x7F800000) == 0x7F800000;
	}
	if (!any)
		return true;

	for (size_t i = 0; i < n; i++)
	{
		if (!isfinite(elements[i]))
		{
			*problem = psprintf("Its element %zu is not a finite real.", i + 1);
			break;
		}
	}
	return false;
}

static inline bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static inline bool
is_space(char c)
{
	return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/*
 * A piece of the payload as it may be shown.
 */
static char *
quote(const char *text, size_t length)
{
	char	   *quoted = pnstrdup(text, Min(length, MAX_QUOTED));

	for (char *p = quoted; *p; p++)
	{
		if (*p < ' ' || *p > '~')
			*p = '?';
	}
	return quoted;
}

/*
 * ------------------------------------------------------------------------
 * NumPy files.  https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
 * ------------------------------------------------------------------------
 */

static const char npy_magic[] = "\x93NUMPY";

#define NPY_MAGIC_LENGTH 6

typedef struct NpyHeader
{
	char		kind;			/* 'f', 'i' or 'u' */
	int			width;			/* bytes of an element */
	bool		swapped;		/* not in this machine's byte order */
	bool		fortran_order;	/* the first index varies fastest */
	Shape		shape;
} NpyHeader;

/* Where the header, a Python dictionary, is being read. */
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
 * Step over a character that must come next, blanks aside.
 */
static bool
take(NpyCursor *c, char wanted)
{
	skip_blanks(c);
	if (c->p >= c->end || *c->p != wanted)
		return false;
	c->p++;
	return true;
}

/*
 * Step over a string in single or double quotes.
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
	for (start = c->p; c->p < c->end && is_digit(*c->p); c->p++)
	{
		if (c->p - start >= 18)
			return false;
		*number = *number * 10 + (*c->p - '0');
	}
	return c->p > start;
}

/*
 * Read a "descr", such as '<f4'.  Returns NULL, or what is wrong with it.
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
		return pstrdup("It is a NumPy array of structures, of which no vector can be made.");
	if (!take_string(c, &dtype, &length))
		return pstrdup("Its NumPy header has no dtype.");

	/* |O, or |O8 as it was once written; the rest is a pickle. */
	if (length >= 2 && dtype[1] == 'O')
		return pstrdup("It is a NumPy object array, which is never unpickled.");

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
	return psprintf("Its NumPy dtype \"%s\" is not a real or integer type of a known byte order.",
					quote(dtype, length));
}

/*
 * Read a "shape": (d,) or (n, d).  Returns NULL, or what is wrong with it.
 */
static char *
read_shape(NpyCursor *c, Shape *shape)
{
	uint64		numbers[2] = {1, 1};
	int			n = 0;
	bool		comma = true;
	const char *start;

	skip_blanks(c);
	start = c->p;
	if (!take(c, '('))
		return pstrdup("Its NumPy header has no shape.");
	while (!take(c, ')'))
	{
		uint64		number;

		if (!comma || !take_number(c, &number))
			return pstrdup("Its NumPy header has no shape that can be read.");
		if (n < 2)
			numbers[n] = number;
		n++;
		comma = take(c, ',');
	}
	if (n < 1 || n > 2)
		return psprintf("Its NumPy shape %s has not one or two dimensions.",
						quote(start, c->p - start));
	shape->rows = n == 2 ? numbers[0] : 1;
	shape->columns = numbers[n - 1];
	return NULL;
}

/*
 * Read the dictionary.  Returns NULL, or what is wrong with it.  NumPy wants
 * these three keys and no other; so do we.
 */
static char *
read_npy_dictionary(NpyCursor *c, NpyHeader *header)
{
	static const char *const names[] = {"descr", "fortran_order", "shape"};
	bool		seen[lengthof(names)] = {false};
	bool		comma = true;

	if (!take(c, '{'))
		return pstrdup("Its NumPy header is not a dictionary.");
	while (!take(c, '}'))
	{
		const char *name;
		size_t		length;
		char	   *problem = NULL;
		int			key;

		if (!comma || !take_string(c, &name, &length) || !take(c, ':'))
			return pstrdup("Its NumPy header is not a dictionary.");
		for (key = 0; key < lengthof(names); key++)
		{
			if (strlen(names[key]) == length &&
				memcmp(names[key], name, length) == 0)
				break;
		}
		if (key == lengthof(names) || seen[key])
			return psprintf("Its NumPy header has an unexpected \"%s\".",
							quote(name, length));
		seen[key] = true;

		if (key == 0)
			problem = read_dtype(c, header);
		else if (key == 2)
			problem = read_shape(c, &header->shape);
		else if (take_word(c, "True"))
			header->fortran_order = true;
		else if (!take_word(c, "False"))
			problem = pstrdup("Its NumPy header has no order.");
		if (problem != NULL)
			return problem;
		comma = take(c, ',');
	}
	skip_blanks(c);
	if (c->p < c->end)
		return pstrdup("Its NumPy header has something behind the dictionary.");
	if (!seen[0] || !seen[1] || !seen[2])
		return pstrdup("Its NumPy header is incomplete.");
	return NULL;
}

/*
 * Read the header.  Sets *data to what follows it.  Returns NULL, or what is
 * wrong.
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
		return pstrdup("It is a NumPy file that was cut off.");
	if (bytes[6] < 1 || bytes[6] > 3 || bytes[7] != 0)
		return psprintf("It is a NumPy file of the unknown version %d.%d.",
						bytes[6], bytes[7]);

	fixed = NPY_MAGIC_LENGTH + (bytes[6] == 1 ? 4 : 6);
	if (length < fixed)
		return pstrdup("It is a NumPy file that was cut off.");
	size = bytes[8] | bytes[9] << 8;
	if (bytes[6] > 1)
		size |= bytes[10] << 16 | (size_t) bytes[11] << 24;
	if (length - fixed < size)
		return pstrdup("It is a NumPy file that was cut off.");

	c.p = payload + fixed;
	c.end = *data = payload + fixed + size;
	return read_npy_dictionary(&c, header);
}

/*
 * A float of 2 bytes as one of 4, exactly.
 */
static inline float4
half_to_float(uint16 half)
{
	uint32		sign = (uint32) (half & 0x8000) << 16;
	uint32		exponent = half >> 10 & 0x1F;
	uint32		fraction = half & 0x3FF;
	uint32		bits;
	float4		result;

	if (exponent == 0)
	{
		result = (float4) fraction / (1 << 24);
		return sign ? -result : result;
	}
	bits = sign | fraction << 13 |
		(exponent == 0x1F ? 0x7F800000 : (exponent + 112) << 23);
	memcpy(&result, &bits, sizeof(result));
	return result;
}

/*
 * Read one element of whatever type.  A double that a real cannot hold
 * becomes infinite, which is found out later.
 */
static float4
read_npy_element(const char *p, const NpyHeader *header)
{
	uint64		raw = 0;

	/* As an integer of 64 bits, in our byte order. */
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
		return half_to_float((uint16) raw);
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

static ArrayType *
decode_npy(const char *payload, size_t length, char **problem)
{
	NpyHeader	header = {0};
	const char *data = payload;
	ArrayType  *array;
	float4	   *elements;
	uint64		n;
	uint64		columns;

	*problem = read_npy_header(payload, length, &header, &data);
	if (*problem != NULL)
		return NULL;

	/* Bytes first, so that no array is made for a shape that lies. */
	Assert(header.width > 0);
	columns = header.shape.columns;
	length -= data - payload;
	n = length / header.width;
	if (length % header.width != 0 ||
		(columns == 0 ? n != 0 : n / columns != header.shape.rows ||
		 n % columns != 0))
	{
		*problem = psprintf("It has %zu bytes of elements, which is not what a shape of " UINT64_FORMAT " x " UINT64_FORMAT " and %d bytes each take.",
							length, header.shape.rows, columns, header.width);
		return NULL;
	}

	array = make_array(&header.shape, problem);
	if (array == NULL)
		return NULL;
	elements = array_elements(array);
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
		elements = array_elements(array);
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
	return check_finite(elements, n, problem) ? array : NULL;
}

/*
 * ------------------------------------------------------------------------
 * JSON arrays
 * ------------------------------------------------------------------------
 */

/*
 * Powers of ten, each the double next to it.  With up to 19 digits before
 * them, they reach over all that a real can hold.
 */
static const double powers_of_ten[] = {
	1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13,
	1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22, 1e23, 1e24, 1e25,
	1e26, 1e27, 1e28, 1e29, 1e30, 1e31, 1e32, 1e33, 1e34, 1e35, 1e36, 1e37,
	1e38, 1e39, 1e40, 1e41, 1e42, 1e43, 1e44, 1e45, 1e46, 1e47, 1e48, 1e49,
	1e50, 1e51, 1e52, 1e53, 1e54, 1e55, 1e56, 1e57, 1e58, 1e59, 1e60
};

#define MAX_POWER ((int) lengthof(powers_of_ten) - 1)

/* So many digits fit into 64 bits. */
#define MAX_DIGITS 19

/* No text is so long that this could bring its digits into the range. */
#define MAX_EXPONENT INT64CONST(10000000000)

/*
 * A number's text as the C library reads it, which is right for any.
 */
static float4
read_slowly(const char *text, size_t length)
{
	char		buffer[64];
	char	   *copy = length < sizeof(buffer) ? buffer : palloc(length + 1);
	float4		result;

	memcpy(copy, text, length);
	copy[length] = '\0';
	result = strtof(copy, NULL);
	if (copy != buffer)
		pfree(copy);
	return result;
}

/*
 * digits * 10^exponent as the nearest real, if that can be told.
 *
 * The double computed here is within 3 units of its last place of the true
 * value, for each of three steps (digits to double, the power, the
 * operation) is off by half a unit to one, and digits beyond the 19th by less
 * than a hundredth.  Rounding it to a real gives what rounding the true value
 * gives, unless there is a midpoint of two reals between the two: a double
 * whose last 29 bits are 1 and zeros.  So these need another way, and
 * those that a real holds with fewer bits, or not at all.
 */
static inline bool
read_fast(uint64 digits, int64 exponent, float4 *result)
{
	double		value = (double) digits;
	uint64		bits;

	if (exponent < -MAX_POWER || exponent > MAX_POWER)
		return false;
	if (exponent < 0)
		value /= powers_of_ten[-exponent];
	else
		value *= powers_of_ten[exponent];

	memcpy(&bits, &value, sizeof(bits));
	if (value < FLT_MIN || value > FLT_MAX ||
		(bits & 0x1FFFFFFF) - (0x10000000 - 4) <= 8)
		return false;
	*result = (float4) value;
	return true;
}

/*
 * Read the number at *text, as JSON writes them, and step over it.  Returns
 * false if there is none.  One that a real cannot hold becomes infinite, which
 * is found out later; one that is too small becomes zero.
 */
static inline bool
read_number(const char **text, const char *end, float4 *result)
{
	const char *start = *text;
	const char *p = start;
	const char *first;
	uint64		digits = 0;
	int			ndigits = 0;	/* in "digits" */
	int64		exponent = 0;
	bool		negative;

	negative = p < end && *p == '-';
	p += negative;

	/* The whole part: 0, or digits that do not begin with one. */
	for (first = p; p < end && is_digit(*p); p++)
	{
		if (ndigits < MAX_DIGITS)
		{
			digits = digits * 10 + (*p - '0');
			ndigits += digits != 0;
		}
		else
			exponent++;
	}
	if (p == first || (*first == '0' && p - first > 1))
		return false;

	if (p < end && *p == '.')
	{
		for (first = ++p; p < end && is_digit(*p); p++)
		{
			if (ndigits < MAX_DIGITS)
			{
				digits = digits * 10 + (*p - '0');
				ndigits += digits != 0;
				exponent--;
			}
		}
		if (p == first)
			return false;
	}

	if (p < end && (*p == 'e' || *p == 'E'))
	{
		int64		written = 0;
		bool		minus;

		p++;
		minus = p < end && *p == '-';
		p += p < end && (*p == '-' || *p == '+');
		for (first = p; p < end && is_digit(*p); p++)
		{
			if (written < MAX_EXPONENT)
				written = written * 10 + (*p - '0');
		}
		if (p == first)
			return false;
		exponent += minus ? -written : written;
	}

	*text = p;
	if (digits == 0)
		*result = negative ? -0.0f : 0.0f;
	else if (!read_fast(digits, exponent, result))
		*result = read_slowly(start, p - start);
	else if (negative)
		*result = -*result;
	return true;
}

/* The numbers read so far. */
typedef struct Numbers
{
	float4	   *elements;
	size_t		n;
	size_t		capacity;
} Numbers;

static inline const char *
skip_space(const char *p, const char *end)
{
	while (p < end && is_space(*p))
		p++;
	return p;
}

/*
 * Step over the comma or the bracket that must follow an element.  Returns
 * NULL and *problem if there is neither.
 */
static inline const char *
skip_separator(const char *p, const char *start, const char *end, bool *ended,
			   char **problem)
{
	p = skip_space(p, end);
	if (p < end && (*p == ',' || *p == ']'))
	{
		*ended = *p == ']';
		return p + 1;
	}
	*problem = psprintf("At byte %zu of the JSON there is neither a comma nor the array's end: \"%s\".",
						(size_t) (p - start) + 1, quote(p, end - p));
	return NULL;
}

/*
 * Read an array of numbers behind its opening bracket.  Returns what follows
 * the closing one, or NULL and *problem.
 */
static const char *
read_json_row(const char *p, const char *start, const char *end,
			  Numbers *numbers, char **problem)
{
	bool		ended = false;

	while (p != NULL && !ended)
	{
		CHECK_FOR_INTERRUPTS();
		p = skip_space(p, end);
		if (numbers->n == numbers->capacity)
		{
			if (numbers->capacity == MAX_ELEMENTS)
			{
				*problem = pstrdup("It has too many elements.");
				return NULL;
			}
			numbers->capacity = Min(numbers->capacity * 2, MAX_ELEMENTS);
			numbers->elements = repalloc(numbers->elements,
										 numbers->capacity * sizeof(float4));
		}
		if (!read_number(&p, end, &numbers->elements[numbers->n]))
		{
			*problem = psprintf("At byte %zu of the JSON there is no number: \"%s\".",
								(size_t) (p - start) + 1, quote(p, end - p));
			return NULL;
		}
		numbers->n++;
		p = skip_separator(p, start, end, &ended, problem);
	}
	return p;
}

/*
 * Read an array of arrays behind its opening bracket, likewise.
 */
static const char *
read_json_rows(const char *p, const char *start, const char *end,
			   Numbers *numbers, Shape *shape, char **problem)
{
	bool		ended = false;

	while (p != NULL && !ended)
	{
		size_t		before = numbers->n;

		p = skip_space(p, end);
		if (p >= end || *p != '[')
		{
			*problem = psprintf("At byte %zu of the JSON there is no array, as the others are: \"%s\".",
								(size_t) (p - start) + 1, quote(p, end - p));
			return NULL;
		}
		p = read_json_row(p + 1, start, end, numbers, problem);
		if (p == NULL)
			return NULL;
		if (shape->rows++ == 0)
			shape->columns = numbers->n;
		else if (numbers->n - before != shape->columns)
		{
			*problem = psprintf("Its vector " UINT64_FORMAT " has %zu elements where the first has " UINT64_FORMAT ".",
								shape->rows, numbers->n - before,
								shape->columns);
			return NULL;
		}
		p = skip_separator(p, start, end, &ended, problem);
	}
	return p;
}

static ArrayType *
decode_json(const char *payload, size_t length, char **problem)
{
	const char *end = payload + length;
	const char *p = skip_space(payload, end) + 1;	/* behind the bracket */
	Numbers		numbers;
	Shape		shape = {0};
	ArrayType  *array = NULL;

	/* A number of an embedding takes 10 to 22 bytes, its comma included. */
	numbers.n = 0;
	numbers.capacity = Min(length / 8 + 16, MAX_ELEMENTS);
	numbers.elements = palloc(numbers.capacity * sizeof(float4));

	p = skip_space(p, end);
	if (p < end && *p == '[')
		p = read_json_rows(p, payload, end, &numbers, &shape, problem);
	else if (p < end && *p == ']')
		p++;
	else
	{
		p = read_json_row(p, payload, end, &numbers, problem);
		shape.rows = 1;
		shape.columns = numbers.n;
	}

	if (p != NULL && skip_space(p, end) < end)
		*problem = pstrdup("It has something behind the JSON array's end.");
	else if (p != NULL)
		array = make_array(&shape, problem);
	if (array != NULL)
	{
		memcpy(array_elements(array), numbers.elements,
			   numbers.n * sizeof(float4));
		if (!check_finite(numbers.elements, numbers.n, problem))
			array = NULL;
	}
	pfree(numbers.elements);
	return array;
}

/*
 * ------------------------------------------------------------------------
 * Base64 (RFC 4648, with padding) of big-endian floats
 * ------------------------------------------------------------------------
 */

/* The bits of each character; those of no digit are negative. */
static const int8 base64_digits[256] = {
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 62, -1, -1, -1, 63,
	52, 53, 54, 55, 56, 57, 58, 59, 60, 61, -1, -1, -1, -1, -1, -1,
	-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
	15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, -1, -1, -1, -1, -1,
	-1, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40,
	41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
	-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1
};

/*
 * Four digits as 24 bits; negative if one of them is none.
 */
static inline int32
read_digits(const unsigned char *p)
{
	/* Shifted as unsigned: a sign survives in the upper bits. */
	return (int32) ((uint32) (int32) base64_digits[p[0]] << 18 |
					(uint32) (int32) base64_digits[p[1]] << 12 |
					(uint32) (int32) base64_digits[p[2]] << 6 |
					(uint32) (int32) base64_digits[p[3]]);
}

static inline void
put_float(float4 *element, uint32 bits)
{
	memcpy(element, &bits, sizeof(bits));
}

/*
 * Decode digits without space or padding, whole floats, which are three to 16
 * digits, and what is left of them.  "n" is the number of floats.  Returns
 * false if there is something that is no digit, or a bit is set that no byte
 * has.
 */
static bool
decode_digits(const unsigned char *p, float4 *elements, size_t n)
{
	static const int ndigits[] = {0, 6, 11};	/* of n % 3 floats */
	unsigned char last[16];
	int32		v[4];
	int32		bad = 0;
	int			rest = n % 3;

	for (; n >= 3; n -= 3, p += 16, elements += 3)
	{
		for (int i = 0; i < 4; i++)
			v[i] = read_digits(p + 4 * i);
		bad |= v[0] | v[1] | v[2] | v[3];
		put_float(&elements[0], (uint32) v[0] << 8 | (uint32) v[1] >> 16);
		put_float(&elements[1], (uint32) v[1] << 16 | (uint32) v[2] >> 8);
		put_float(&elements[2], (uint32) v[2] << 24 | (uint32) v[3]);
	}
	if (rest > 0)
	{
		uint32		bits[3];

		memset(last, 'A', sizeof(last));	/* zeros */
		memcpy(last, p, ndigits[rest]);
		for (int i = 0; i < 4; i++)
			v[i] = read_digits(last + 4 * i);
		bad |= v[0] | v[1] | v[2] | v[3];
		bits[0] = (uint32) v[0] << 8 | (uint32) v[1] >> 16;
		bits[1] = (uint32) v[1] << 16 | (uint32) v[2] >> 8;
		bits[2] = (uint32) v[2] << 24 | (uint32) v[3];
		for (int i = 0; i < rest; i++)
			put_float(&elements[i], bits[i]);
		if (bits[rest] != 0)
			return false;
	}
	return bad >= 0;
}

/*
 * A copy without space, such as the ends of lines in what encode() makes.
 */
static char *
without_space(const char *payload, size_t *length)
{
	char	   *copy = palloc(*length + 1);
	size_t		n = 0;

	for (size_t i = 0; i < *length; i++)
	{
		if (!is_space(payload[i]))
			copy[n++] = payload[i];
	}
	*length = n;
	return copy;
}

static ArrayType *
decode_base64(const char *payload, size_t length, char **problem)
{
	const char *end;
	Shape		shape = {1};
	ArrayType  *array;
	size_t		padding = 0;
	size_t		bytes;

	if (memchr(payload, '\n', length) != NULL || is_space(payload[0]) ||
		is_space(payload[length - 1]))
		payload = without_space(payload, &length);

	end = payload + length;
	while (padding < Min(length, 2) && end[-1 - (int) padding] == '=')
		padding++;
	bytes = length / 4 * 3 - padding;
	if (length % 4 != 0 || bytes % sizeof(float4) != 0)
	{
		*problem = psprintf("It is not a NumPy file or a JSON array, and %zu characters are not base64 of floats of 4 bytes: \"%s\".",
							length, quote(payload, length));
		return NULL;
	}

	shape.columns = bytes / sizeof(float4);
	array = make_array(&shape, problem);
	if (array == NULL)
		return NULL;
	if (!decode_digits((const unsigned char *) payload, array_elements(array),
					   shape.columns))
	{
		*problem = psprintf("It is not a NumPy file, a JSON array or base64: \"%s\".",
							quote(payload, length));
		return NULL;
	}
	return check_finite(array_elements(array), shape.columns, problem) ?
		array : NULL;
}

/*
 * ------------------------------------------------------------------------
 * For others
 * ------------------------------------------------------------------------
 */

/*
 * Decode a payload.  Returns a palloc'd array of real, of one dimension or
 * two; or NULL, and *problem as a sentence in ASCII.
 */
ArrayType *
hrflow_vector_decode(const char *payload, size_t length, char **problem)
{
	const char *start = skip_space(payload, payload + length);

	*problem = NULL;
	if (start == payload + length)
	{
		*problem = pstrdup("It is empty.");
		return NULL;
	}
	if (length >= NPY_MAGIC_LENGTH &&
		memcmp(payload, npy_magic, NPY_MAGIC_LENGTH) == 0)
		return decode_npy(payload, length, problem);
	if (start < payload + length && *start == '[')
		return decode_json(payload, length, problem);
	return decode_base64(payload, length, problem);
}

/*
 * hrflow_decode_vector(payload bytea) RETURNS real[]
 */
Datum
hrflow_decode_vector(PG_FUNCTION_ARGS)
{
	bytea	   *payload = PG_GETARG_BYTEA_PP(0);
	char	   *problem;
	ArrayType  *vector;

	vector = hrflow_vector_decode(VARDATA_ANY(payload),
								  VARSIZE_ANY_EXHDR(payload), &problem);
	if (vector == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("invalid vector"),
				 errdetail("%s", problem)));
	PG_RETURN_ARRAYTYPE_P(vector);
}

/*
 * The elements of an argument that must be a vector.
 */
static const float4 *
get_vector(FunctionCallInfo fcinfo, int argno, int *n)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(argno);

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("vector must have one dimension, not %d",
						ARR_NDIM(array))));
	if (array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("vector must not contain nulls")));
	*n = ARR_NDIM(array) == 0 ? 0 : ARR_DIMS(array)[0];
	return (const float4 *) ARR_DATA_PTR(array);
}

/*
 * Sums in so many parts can be computed side by side.
 */
#define LANES 4

static double
sum_lanes(const double *lanes)
{
	return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

/*
 * The length of a vector of n elements.
 */
double
hrflow_vector_norm(const float4 *a, int n)
{
	double		aa[LANES] = {0};
	int			i = 0;

	for (; i + LANES <= n; i += LANES)
	{
		for (int lane = 0; lane < LANES; lane++)
			aa[lane] += (double) a[i + lane] * a[i + lane];
	}
	for (; i < n; i++)
		aa[0] += (double) a[i] * a[i];
	return sqrt(sum_lanes(aa));
}

/*
 * Cosine similarity of two vectors of n elements, of which the second has the
 * length "norm".  Returns false, and the product of their lengths in *norms,
 * when there is none: it is 0, infinite or NaN.
 */
bool
hrflow_vector_compare(const float4 *a, const float4 *b, int n, double norm,
					  double *similarity, double *norms)
{
	double		ab[LANES] = {0};
	double		aa[LANES] = {0};
	int			i = 0;

	for (; i + LANES <= n; i += LANES)
	{
		for (int lane = 0; lane < LANES; lane++)
		{
			double		x = a[i + lane];

			ab[lane] += x * b[i + lane];
			aa[lane] += x * x;
		}
	}
	for (; i < n; i++)
	{
		ab[0] += (double) a[i] * b[i];
		aa[0] += (double) a[i] * a[i];
	}

	*norms = sqrt(sum_lanes(aa)) * norm;
	if (*norms == 0 || !isfinite(*norms))
		return false;

	/* Rounding may have gone beyond. */
	*similarity = Max(-1.0, Min(1.0, sum_lanes(ab) / *norms));
	return true;
}

/*
 * hrflow_cosine_similarity(a real[], b real[]) RETURNS double precision
 *
 * Computed in double precision, in which no product or sum of reals can
 * overflow.
 */
Datum
hrflow_cosine_similarity(PG_FUNCTION_ARGS)
{
	int			n;
	int			n_of_b;
	const float4 *a = get_vector(fcinfo, 0, &n);
	const float4 *b = get_vector(fcinfo, 1, &n_of_b);
	double		similarity;
	double		norms;

	if (n != n_of_b)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("vectors must have the same dimension"),
				 errdetail("One has %d elements, the other %d.", n, n_of_b)));
	if (!hrflow_vector_compare(a, b, n, hrflow_vector_norm(b, n), &similarity,
							   &norms))
	{
		if (norms == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a zero vector has no cosine similarity")));
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("vector must not contain infinity or NaN")));
	}
	PG_RETURN_FLOAT8(similarity);
}
