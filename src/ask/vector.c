/*-------------------------------------------------------------------------
 *
 * vector.c
 *		Bytes to an array of real, and the similarity of two such arrays.
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
PG_FUNCTION_INFO_V1(hrflow_cosine_similarity);

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

/*
 * ------------------------------------------------------------------------
 * Similarity
 * ------------------------------------------------------------------------
 */

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
