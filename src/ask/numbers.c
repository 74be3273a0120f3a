/*-------------------------------------------------------------------------
 *
 * numbers.c
 *		Decodes JSON arrays of numbers, or of arrays of numbers.
 *
 * Each number is converted to the nearest float4, as by strtof().  The
 * functions are pure in the sense described in decode.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <float.h>

#include "ask/vector.h"
#include "miscadmin.h"

/*
 * Powers of ten, each rounded to the nearest double.  Applied to numbers of up
 * to 19 digits, they cover all float4 values that are not subnormal.
 */
static const double powers_of_ten[] = {
	1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13,
	1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22, 1e23, 1e24, 1e25,
	1e26, 1e27, 1e28, 1e29, 1e30, 1e31, 1e32, 1e33, 1e34, 1e35, 1e36, 1e37,
	1e38, 1e39, 1e40, 1e41, 1e42, 1e43, 1e44, 1e45, 1e46, 1e47, 1e48, 1e49,
	1e50, 1e51, 1e52, 1e53, 1e54, 1e55, 1e56, 1e57, 1e58, 1e59, 1e60
};

#define MAX_POWER ((int) lengthof(powers_of_ten) - 1)

/* Maximum number of decimal digits that always fit into 64 bits. */
#define MAX_DIGITS 19

/*
 * Value beyond which further digits of an exponent are ignored.  The other
 * digits of a number can never compensate for such an exponent, because no
 * payload is that long.
 */
#define MAX_EXPONENT INT64CONST(10000000000)

/*
 * Convert the text of a number with strtof(), which rounds every number
 * correctly.
 */
static float4
convert_by_strtof(const char *text, size_t length)
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
 * Compute digits * 10^exponent, rounded to the nearest float4.  Returns false
 * if the result might not be rounded correctly.
 *
 * The double computed here differs from the true value by at most about 3
 * units in its last place: each of three steps (conversion of the digits to
 * double, the power of ten, and the multiplication or division) is off by half
 * a unit to one unit, and ignoring digits after the 19th adds less than a
 * hundredth of a unit.  Rounding the double to float4 gives the same result as
 * rounding the true value, unless a midpoint between two adjacent float4
 * values lies between the double and the true value.  A midpoint is a double
 * whose last 29 bits are 1 followed by zeros.  Therefore return false if the
 * double is within 4 units of a midpoint, if the number is subnormal or out of
 * range for float4, or if the table lacks the power of ten.
 */
static inline bool
convert_fast(uint64 digits, int64 exponent, float4 *result)
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
 * Read the JSON number at *text, and advance *text past it.  Returns false if
 * there is no valid number.  A number that is too large for float4 becomes
 * infinite, which hrflow_vector_check_finite() detects; a number that is too
 * small becomes zero.
 */
static inline bool
read_decimal(const char **text, const char *end, float4 *result)
{
	const char *start = *text;
	const char *p = start;
	const char *first;
	uint64		digits = 0;
	int			ndigits = 0;	/* number of significant digits in "digits" */
	int64		exponent = 0;
	bool		negative;

	negative = p < end && *p == '-';
	p += negative;

	/* Integer part: 0, or digits that do not begin with 0. */
	for (first = p; p < end && hrflow_is_digit(*p); p++)
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
		for (first = ++p; p < end && hrflow_is_digit(*p); p++)
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
		for (first = p; p < end && hrflow_is_digit(*p); p++)
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
	else if (!convert_fast(digits, exponent, result))
		*result = convert_by_strtof(start, p - start);
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

/*
 * Set bad->detail to describe the unexpected text or end at "p".  "format" is
 * the message for a text, with conversions for its position and the text.
 */
static void
report_unexpected(const char *format, const char *p, const char *start,
				  const char *end, HrflowBadVector *bad)
{
	size_t		offset = p - start;

	if (p == end)
		bad->detail = psprintf("The JSON ends unexpectedly after byte %zu.",
							   offset);
	else
		bad->detail = psprintf(format, offset + 1,
							   hrflow_vector_quote(p, end - p));
}

/*
 * Skip the comma or closing bracket that must follow an element.  Returns NULL
 * with *bad set if there is neither.
 */
static inline const char *
skip_separator(const char *p, const char *start, const char *end, bool *ended,
			   HrflowBadVector *bad)
{
	p = hrflow_skip_space(p, end);
	if (p < end && (*p == ',' || *p == ']'))
	{
		*ended = *p == ']';
		return p + 1;
	}
	report_unexpected("Expected \",\" or \"]\" at byte %zu of the JSON, but found \"%s\".",
					  p, start, end, bad);
	return NULL;
}

/*
 * Read an array of numbers, which may be empty, after its opening bracket.
 * Returns the position after the closing bracket, or NULL with *bad set.
 */
static const char *
read_json_row(const char *p, const char *start, const char *end,
			  Numbers *numbers, HrflowBadVector *bad)
{
	bool		ended = false;

	p = hrflow_skip_space(p, end);
	if (p < end && *p == ']')
		return p + 1;
	while (p != NULL && !ended)
	{
		CHECK_FOR_INTERRUPTS();
		p = hrflow_skip_space(p, end);
		if (numbers->n == numbers->capacity)
		{
			if (numbers->capacity == HRFLOW_MAX_ELEMENTS)
			{
				bad->sqlerrcode = ERRCODE_PROGRAM_LIMIT_EXCEEDED;
				bad->detail = pstrdup("The vector has too many elements.");
				return NULL;
			}
			numbers->capacity = Min(numbers->capacity * 2, HRFLOW_MAX_ELEMENTS);
			numbers->elements = repalloc(numbers->elements,
										 numbers->capacity * sizeof(float4));
		}
		if (!read_decimal(&p, end, &numbers->elements[numbers->n]))
		{
			report_unexpected("Expected a number at byte %zu of the JSON, but found \"%s\".",
							  p, start, end, bad);
			return NULL;
		}
		numbers->n++;
		p = skip_separator(p, start, end, &ended, bad);
	}
	return p;
}

/*
 * Read an array of arrays of numbers, after its opening bracket.  Returns the
 * position after the closing bracket, or NULL with *bad set.
 */
static const char *
read_json_rows(const char *p, const char *start, const char *end,
			   Numbers *numbers, HrflowShape *shape, HrflowBadVector *bad)
{
	bool		ended = false;

	while (p != NULL && !ended)
	{
		size_t		before = numbers->n;

		CHECK_FOR_INTERRUPTS();
		p = hrflow_skip_space(p, end);
		if (p >= end || *p != '[')
		{
			report_unexpected("Expected \"[\" at byte %zu of the JSON, but found \"%s\".",
							  p, start, end, bad);
			return NULL;
		}
		p = read_json_row(p + 1, start, end, numbers, bad);
		if (p == NULL)
			return NULL;
		if (shape->rows++ == 0)
			shape->columns = numbers->n;
		else if (numbers->n - before != shape->columns)
		{
			bad->detail = psprintf("Vector " UINT64_FORMAT " has dimension %zu, but the first vector has dimension " UINT64_FORMAT ".",
								   shape->rows, numbers->n - before,
								   shape->columns);
			return NULL;
		}
		p = skip_separator(p, start, end, &ended, bad);
	}
	return p;
}

/*
 * Decode a JSON array, which may be preceded by whitespace.  Returns a
 * palloc'd array, or NULL with *bad set.
 */
ArrayType *
hrflow_numbers_decode(const char *payload, size_t length, HrflowBadVector *bad)
{
	const char *end = payload + length;
	const char *p = hrflow_skip_space(payload, end) + 1;	/* after the bracket */
	Numbers		numbers;
	HrflowShape shape = {0};
	ArrayType  *array = NULL;

	/*
	 * Start with room for one number per 8 bytes.  In embeddings, a number
	 * and its comma take 10 to 22 bytes.
	 */
	numbers.n = 0;
	numbers.capacity = Min(length / 8 + 16, HRFLOW_MAX_ELEMENTS);
	numbers.elements = palloc(numbers.capacity * sizeof(float4));

	p = hrflow_skip_space(p, end);
	if (p < end && *p == '[')
		p = read_json_rows(p, payload, end, &numbers, &shape, bad);
	else
	{
		p = read_json_row(p, payload, end, &numbers, bad);
		shape.rows = 1;
		shape.columns = numbers.n;
	}

	if (p != NULL && hrflow_skip_space(p, end) < end)
		bad->detail = pstrdup("The payload contains data after the end of the JSON array.");
	else if (p != NULL)
		array = hrflow_vector_make(&shape, bad);
	if (array != NULL)
	{
		memcpy(hrflow_vector_elements(array), numbers.elements,
			   numbers.n * sizeof(float4));
		if (!hrflow_vector_check_finite(numbers.elements, numbers.n, bad))
			array = NULL;
	}
	pfree(numbers.elements);
	return array;
}
