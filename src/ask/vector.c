/*-------------------------------------------------------------------------
 *
 * vector.c
 *		Bytes to an array of real.
 *
 * Three encodings are read, told apart by how they begin, which is different
 * for each:
 *
 *	0x93 "NUMPY"	NumPy's .npy file (what links lead to), in npy.c
 *	"["				a JSON array of numbers, or of such arrays, in numbers.c
 *	else			base64 of big-endian IEEE floats of 4 bytes, in base64.c
 *
 * Pure: what is made depends on the arguments alone.  The decoders raise no
 * error for what the payload holds, and allocate no more than 4 bytes for an
 * element of which a byte is there, at least.  Where an element takes a while
 * they can be interrupted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "ask/ask.h"
#include "ask/vector.h"

PG_FUNCTION_INFO_V1(hrflow_decode_vector);

/* Maximum number of bytes of a payload that a message quotes. */
#define MAX_QUOTED 40

/*
 * ------------------------------------------------------------------------
 * For the decoders
 * ------------------------------------------------------------------------
 */

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

/*
 * ------------------------------------------------------------------------
 * Decoding
 * ------------------------------------------------------------------------
 */

/*
 * Decode a payload.  Returns a palloc'd array of real, of one dimension or
 * two; or NULL, and *problem as a sentence in ASCII.
 */
ArrayType *
hrflow_vector_decode(const char *payload, size_t length, char **problem)
{
	const char *start = hrflow_skip_space(payload, payload + length);

	*problem = NULL;
	if (start == payload + length)
	{
		*problem = pstrdup("It is empty.");
		return NULL;
	}
	if (hrflow_npy_recognize(payload, length))
		return hrflow_npy_decode(payload, length, problem);
	if (*start == '[')
		return hrflow_numbers_decode(payload, length, problem);
	return hrflow_base64_decode(payload, length, problem);
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
