/*-------------------------------------------------------------------------
 *
 * vector.h
 *		Declarations shared by the files that decode vectors.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_VECTOR_H
#define HRFLOW_VECTOR_H

#include "postgres.h"

#include "ask/ask.h"
#include "utils/array.h"
#include "utils/memutils.h"

/* Maximum number of elements in a PostgreSQL array. */
#define HRFLOW_MAX_ELEMENTS MaxArraySize

/*
 * Dimensions of a vector or a matrix.  A matrix with one row is a vector.
 */
typedef struct HrflowShape
{
	uint64		rows;			/* number of vectors */
	uint64		columns;		/* number of elements of each vector */
} HrflowShape;

static inline bool
hrflow_is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static inline bool
hrflow_is_space(char c)
{
	return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

static inline const char *
hrflow_skip_space(const char *p, const char *end)
{
	while (p < end && hrflow_is_space(*p))
		p++;
	return p;
}

/*
 * Return the elements of an array made by hrflow_vector_make().
 */
static inline float4 *
hrflow_vector_elements(ArrayType *array)
{
	return (float4 *) ARR_DATA_PTR(array);
}

/*
 * Convert a half (IEEE 754 binary16) to a real.  The conversion is always
 * exact.
 */
static inline float4
hrflow_half_to_real(uint16 half)
{
	uint32		sign = (uint32) (half & 0x8000) << 16;
	uint32		exponent = half >> 10 & 0x1F;
	uint32		fraction = half & 0x3FF;
	uint32		bits;
	float4		result;

	if (exponent == 0)
	{
		/* Zero, or a subnormal half, which is a normal number as a float4. */
		result = (float4) fraction / (1 << 24);
		return sign ? -result : result;
	}
	bits = sign | fraction << 13 |
		(exponent == 0x1F ? 0x7F800000 : (exponent + 112) << 23);
	memcpy(&result, &bits, sizeof(result));
	return result;
}

/* in vector.c */
extern ArrayType *hrflow_vector_make(const HrflowShape *shape,
									 HrflowBadVector *bad);
extern bool hrflow_vector_check_finite(const float4 *elements, size_t n,
									   HrflowBadVector *bad);
extern char *hrflow_vector_quote(const char *text, size_t length);

/* in npy.c */
extern bool hrflow_npy_recognize(const char *payload, size_t length);
extern ArrayType *hrflow_npy_decode(const char *payload, size_t length,
									HrflowBadVector *bad);

/* in numbers.c */
extern ArrayType *hrflow_numbers_decode(const char *payload, size_t length,
										HrflowBadVector *bad);

/* in base64.c */
extern ArrayType *hrflow_base64_decode(const char *payload, size_t length,
									   int dimension, HrflowBadVector *bad);

#endif							/* HRFLOW_VECTOR_H */
