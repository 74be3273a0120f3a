/*-------------------------------------------------------------------------
 *
 * vector.c
 *		Arrays of real, as the decoders of vectors make them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "ask/vector.h"

/* Maximum number of bytes of a payload that a message quotes. */
#define MAX_QUOTED 40

/*
 * An array of real of this shape, whose elements are to be written.  A matrix
 * of one row is a vector.  NULL and *problem where it cannot be.
 */
ArrayType *
hrflow_vector_make(const HrflowShape *shape, char **problem)
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
	if (shape->columns > HRFLOW_MAX_ELEMENTS ||
		shape->rows > HRFLOW_MAX_ELEMENTS / shape->columns)
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

/*
 * Are all elements finite?  Says in *problem which one is not.  Finds it in a
 * second loop, so that the first can be vectorised.
 */
bool
hrflow_vector_check_finite(const float4 *elements, size_t n, char **problem)
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

/*
 * A piece of the payload as it may be shown.
 */
char *
hrflow_vector_quote(const char *text, size_t length)
{
	char	   *quoted = pnstrdup(text, Min(length, MAX_QUOTED));

	for (char *p = quoted; *p; p++)
	{
		if (*p < ' ' || *p > '~')
			*p = '?';
	}
	return quoted;
}
