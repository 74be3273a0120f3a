/*-------------------------------------------------------------------------
 *
 * vector.c
 *		Provides the functions that the vector decoders share.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "ask/vector.h"

/* Maximum number of bytes of a payload to quote in a message. */
#define MAX_QUOTED 40

/*
 * Allocate an array of real with the given shape, for the caller to fill.  A
 * matrix with one row becomes a vector.  Returns NULL with *bad set if the
 * shape is empty or too large.
 */
ArrayType *
hrflow_vector_make(const HrflowShape *shape, HrflowBadVector *bad)
{
	int			ndim = shape->rows == 1 ? 1 : 2;
	Size		header = ARR_OVERHEAD_NONULLS(ndim);
	Size		size;
	ArrayType  *array;

	if (shape->rows == 0 || shape->columns == 0)
	{
		bad->sqlerrcode = ERRCODE_DATA_EXCEPTION;
		bad->detail = pstrdup("The vector has no elements.");
		return NULL;
	}
	if (shape->columns > HRFLOW_MAX_ELEMENTS ||
		shape->rows > HRFLOW_MAX_ELEMENTS / shape->columns)
	{
		bad->sqlerrcode = ERRCODE_PROGRAM_LIMIT_EXCEEDED;
		bad->detail = pstrdup("The vector has too many elements.");
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
 * Check that all elements are finite.  If not, set bad->detail, which names
 * the first element that is not finite, and return false.  A second loop
 * searches for this element, so that the compiler can vectorize the first
 * loop.
 */
bool
hrflow_vector_check_finite(const float4 *elements, size_t n,
						   HrflowBadVector *bad)
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
			bad->detail = psprintf("Element %zu is infinite, NaN, or out of range for type real.", i + 1);
			break;
		}
	}
	return false;
}

/*
 * Return the beginning of a payload, up to the first NUL, palloc'd.  Bytes
 * other than printable ASCII are replaced by question marks.  "..." is
 * appended if the payload is longer than MAX_QUOTED.
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
	return length > MAX_QUOTED ? psprintf("%s...", quoted) : quoted;
}
