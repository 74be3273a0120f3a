/*-------------------------------------------------------------------------
 *
 * base64.c
 *		Base64 (RFC 4648, with padding) of big-endian IEEE floats of 4 bytes
 *		to an array of real.
 *
 * Pure, as described in decode.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/vector.h"

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
		if (!hrflow_is_space(payload[i]))
			copy[n++] = payload[i];
	}
	*length = n;
	return copy;
}

/*
 * Decode base64.  Returns a palloc'd array, or NULL and *problem.
 */
ArrayType *
hrflow_base64_decode(const char *payload, size_t length, char **problem)
{
	const char *end;
	HrflowShape shape = {1};
	ArrayType  *array;
	size_t		padding = 0;
	size_t		bytes;

	if (memchr(payload, '\n', length) != NULL || hrflow_is_space(payload[0]) ||
		hrflow_is_space(payload[length - 1]))
		payload = without_space(payload, &length);

	end = payload + length;
	while (padding < Min(length, 2) && end[-1 - (int) padding] == '=')
		padding++;
	bytes = length / 4 * 3 - padding;
	if (length % 4 != 0 || bytes % sizeof(float4) != 0)
	{
		*problem = psprintf("It is not a NumPy file or a JSON array, and %zu characters are not base64 of floats of 4 bytes: \"%s\".",
							length, hrflow_vector_quote(payload, length));
		return NULL;
	}

	shape.columns = bytes / sizeof(float4);
	array = hrflow_vector_make(&shape, problem);
	if (array == NULL)
		return NULL;
	if (!decode_digits((const unsigned char *) payload, hrflow_vector_elements(array),
					   shape.columns))
	{
		*problem = psprintf("It is not a NumPy file, a JSON array or base64: \"%s\".",
							hrflow_vector_quote(payload, length));
		return NULL;
	}
	return hrflow_vector_check_finite(hrflow_vector_elements(array), shape.columns, problem) ?
		array : NULL;
}
