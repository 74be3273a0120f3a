/*-------------------------------------------------------------------------
 *
 * base64.c
 *		Decodes base64 (RFC 4648, with padding) of big-endian 4-byte IEEE
 *		floats.
 *
 * These functions are pure in the sense described in decode.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/vector.h"

/* Value of each base64 digit; -1 for all other characters. */
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

/* The first 6 bytes of a NumPy file, in base64. */
static const char npy_digits[] = "k05VTVBZ";

#define NPY_DIGITS_LENGTH 8

/*
 * Decode four digits to 24 bits.  Returns a negative number if any of the
 * characters is not a base64 digit.
 */
static inline int32
read_digits(const unsigned char *p)
{
	/*
	 * Shift unsigned values, because shifting a negative value is undefined.
	 * If any of the values is -1, the sign bit of the result is set.
	 */
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
 * Decode "n" floats from base64 digits without whitespace or padding.  Three
 * floats take 16 digits.  Returns false if there is an invalid character, or
 * if any of the unused bits after the last float is set.
 */
static bool
decode_digits(const unsigned char *p, float4 *elements, size_t n)
{
	static const int ndigits[] = {0, 6, 11};	/* number of digits that
												 * encode n % 3 floats */
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

		memset(last, 'A', sizeof(last));	/* digits whose value is 0 */
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

static bool
contains_space(const char *payload, size_t length)
{
	return memchr(payload, '\n', length) != NULL ||
		memchr(payload, ' ', length) != NULL ||
		memchr(payload, '\t', length) != NULL ||
		memchr(payload, '\r', length) != NULL;
}

/*
 * Copy the payload without whitespace, such as the line breaks that encode()
 * inserts.
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
 * Decode one or more vectors of "dimension" elements each, whose concatenation
 * is encoded in base64.  If "dimension" is 0, decode a single vector of any
 * dimension.  Returns a palloc'd array, or NULL with *bad set.
 */
ArrayType *
hrflow_base64_decode(const char *payload, size_t length, int dimension,
					 HrflowBadVector *bad)
{
	const char *digits = payload;
	size_t		ndigits = length;	/* including padding */
	HrflowShape shape = {1};
	ArrayType  *array;
	size_t		padding = 0;
	size_t		bytes;
	size_t		n;

	if (contains_space(payload, length))
		digits = without_space(payload, &ndigits);

	/*
	 * A NumPy file in base64 often has a valid number of bytes, and would be
	 * decoded to a wrong vector.  The first two elements of a correct vector
	 * cannot plausibly be -2.6e-27 and 1.46e10.
	 */
	if (ndigits >= NPY_DIGITS_LENGTH &&
		memcmp(digits, npy_digits, NPY_DIGITS_LENGTH) == 0)
	{
		bad->detail = pstrdup("The payload is a NumPy file in base64, which is not a supported encoding.");
		return NULL;
	}

	while (padding < Min(ndigits, 2) && digits[ndigits - 1 - padding] == '=')
		padding++;
	bytes = ndigits / 4 * 3 - padding;
	if (ndigits % 4 != 0 || bytes % sizeof(float4) != 0)
	{
		bad->detail = psprintf("The payload is neither a NumPy file nor a JSON array, and its %zu characters are not base64 of 4-byte floats: \"%s\".",
							   length, hrflow_vector_quote(payload, length));
		return NULL;
	}
	n = bytes / sizeof(float4);
	if (dimension != 0 && n % dimension != 0)
	{
		bad->detail = psprintf("The number of elements in the payload (%zu) is not a multiple of \"hrflow_embed.vector_dimension\" (%d).",
							   n, dimension);
		return NULL;
	}

	shape.columns = n;
	if (dimension != 0 && n != 0)
	{
		shape.rows = n / dimension;
		shape.columns = dimension;
	}
	array = hrflow_vector_make(&shape, bad);
	if (array == NULL)
		return NULL;
	if (!decode_digits((const unsigned char *) digits,
					   hrflow_vector_elements(array), n))
	{
		bad->detail = psprintf("The payload is not a NumPy file, a JSON array or base64: \"%s\".",
							   hrflow_vector_quote(payload, length));
		return NULL;
	}
	return hrflow_vector_check_finite(hrflow_vector_elements(array), n,
									  bad) ? array : NULL;
}
