/*-------------------------------------------------------------------------
 *
 * similarity.c
 *		Computes the cosine similarity of two vectors.
 *
 * All products and sums are computed in double precision, in which the squares
 * of real and halfvec elements can neither overflow nor underflow: the square
 * of the smallest real is 2e-90, and the sum of 16,000 squares of the largest
 * is 2e81.
 *
 * One of the two vectors, usually that of a query, is compared with many
 * others, so it is converted to double precision once for all comparisons.
 *
 * The loops for the machine's instruction set are chosen when they are first
 * needed.  Loops for different instruction sets add the same products in a
 * different order, so their results may differ, but by no more than 1e-12.
 * Nonetheless, hrflow_cosine_similarity() is IMMUTABLE, as are PostgreSQL's
 * functions that depend on the C library; compare its results with a
 * tolerance.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_AVX2 1
#include <cpuid.h>
#include <immintrin.h>
#endif

#include "fmgr.h"
#include "ask/vector.h"
#include "utils/array.h"

PG_FUNCTION_INFO_V1(hrflow_cosine_similarity);

/*
 * The sums that one pass over two vectors computes.
 */
typedef struct Sums
{
	double		ab;				/* sum of the products of the elements of "a"
								 * and "b" */
	double		aa;				/* sum of the squares of the elements of "a" */
} Sums;

typedef void (*SumFunction) (const void *a, const double *b, int n, Sums *sums);

/*
 * ------------------------------------------------------------------------
 * Any processor
 * ------------------------------------------------------------------------
 */

/*
 * Number of partial sums.  They are independent, so the compiler can vectorize
 * the loop.
 */
#define LANES 4

static void
sum_reals(const void *a, const double *b, int n, Sums *sums)
{
	const float4 *x = a;
	double		ab[LANES] = {0};
	double		aa[LANES] = {0};
	int			i = 0;

	for (; i + LANES <= n; i += LANES)
	{
		for (int lane = 0; lane < LANES; lane++)
		{
			ab[lane] += x[i + lane] * b[i + lane];
			aa[lane] += (double) x[i + lane] * x[i + lane];
		}
	}
	for (; i < n; i++)
	{
		ab[0] += x[i] * b[i];
		aa[0] += (double) x[i] * x[i];
	}
	sums->ab = (ab[0] + ab[1]) + (ab[2] + ab[3]);
	sums->aa = (aa[0] + aa[1]) + (aa[2] + aa[3]);
}

static void
sum_halves(const void *a, const double *b, int n, Sums *sums)
{
	const uint16 *halves = a;
	double		ab = 0;
	double		aa = 0;

	for (int i = 0; i < n; i++)
	{
		double		x = hrflow_half_to_real(halves[i]);

		ab += x * b[i];
		aa += x * x;
	}
	sums->ab = ab;
	sums->aa = aa;
}

/*
 * ------------------------------------------------------------------------
 * x86-64 with AVX2, FMA and F16C: Intel since 2013, AMD since 2015
 * ------------------------------------------------------------------------
 */
#ifdef HAVE_AVX2

#define AVX2 __attribute__((target("avx2,fma,f16c")))

/* Number of elements processed in each iteration of the loops below. */
#define STEP 16

/*
 * Add the products of four elements of "a" and "b", and the squares of those
 * of "a", to partial sums.
 */
AVX2 static inline void
add_four(__m128 a, const double *b, __m256d *ab, __m256d *aa)
{
	__m256d		x = _mm256_cvtps_pd(a);

	*ab = _mm256_fmadd_pd(x, _mm256_loadu_pd(b), *ab);
	*aa = _mm256_fmadd_pd(x, x, *aa);
}

AVX2 static inline double
add_up(const __m256d *parts)
{
	__m256d		four = _mm256_add_pd(_mm256_add_pd(parts[0], parts[1]),
									 _mm256_add_pd(parts[2], parts[3]));
	__m128d		two = _mm_add_pd(_mm256_castpd256_pd128(four),
								 _mm256_extractf128_pd(four, 1));

	return _mm_cvtsd_f64(two) + _mm_cvtsd_f64(_mm_unpackhi_pd(two, two));
}

AVX2 static void
sum_reals_avx2(const void *a, const double *b, int n, Sums *sums)
{
	const float4 *x = a;
	__m256d		ab[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(),
	_mm256_setzero_pd(), _mm256_setzero_pd()};
	__m256d		aa[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(),
	_mm256_setzero_pd(), _mm256_setzero_pd()};
	Sums		rest;
	int			i = 0;

	for (; i + STEP <= n; i += STEP)
	{
		add_four(_mm_loadu_ps(x + i), b + i, &ab[0], &aa[0]);
		add_four(_mm_loadu_ps(x + i + 4), b + i + 4, &ab[1], &aa[1]);
		add_four(_mm_loadu_ps(x + i + 8), b + i + 8, &ab[2], &aa[2]);
		add_four(_mm_loadu_ps(x + i + 12), b + i + 12, &ab[3], &aa[3]);
	}
	sum_reals(x + i, b + i, n - i, &rest);
	sums->ab = add_up(ab) + rest.ab;
	sums->aa = add_up(aa) + rest.aa;
}

AVX2 static inline __m128
load_four_halves(const uint16 *halves)
{
	return _mm_cvtph_ps(_mm_loadl_epi64((const __m128i *) halves));
}

AVX2 static void
sum_halves_avx2(const void *a, const double *b, int n, Sums *sums)
{
	const uint16 *halves = a;
	__m256d		ab[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(),
	_mm256_setzero_pd(), _mm256_setzero_pd()};
	__m256d		aa[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(),
	_mm256_setzero_pd(), _mm256_setzero_pd()};
	Sums		rest;
	int			i = 0;

	for (; i + STEP <= n; i += STEP)
	{
		add_four(load_four_halves(halves + i), b + i, &ab[0], &aa[0]);
		add_four(load_four_halves(halves + i + 4), b + i + 4, &ab[1], &aa[1]);
		add_four(load_four_halves(halves + i + 8), b + i + 8, &ab[2], &aa[2]);
		add_four(load_four_halves(halves + i + 12), b + i + 12, &ab[3], &aa[3]);
	}
	sum_halves(halves + i, b + i, n - i, &rest);
	sums->ab = add_up(ab) + rest.ab;
	sums->aa = add_up(aa) + rest.aa;
}

/*
 * Can this processor run the loops above?  __builtin_cpu_supports() also
 * checks whether the operating system saves the vector registers.  Not every
 * compiler's __builtin_cpu_supports() accepts "f16c", so read the bit for F16C
 * from CPUID.
 */
static bool
has_avx2(void)
{
	unsigned int eax;
	unsigned int ebx;
	unsigned int ecx;
	unsigned int edx;

	__builtin_cpu_init();
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
		__get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}
#endif							/* HAVE_AVX2 */

/*
 * ------------------------------------------------------------------------
 * Comparing
 * ------------------------------------------------------------------------
 */

/*
 * The fastest function on this machine for each element type; NULL until the
 * first use.
 */
static SumFunction sum_functions[2];

static void
compute_sums(const void *a, HrflowElement element, const double *b, int n, Sums *sums)
{
	if (unlikely(sum_functions[element] == NULL))
	{
		sum_functions[HRFLOW_REAL] = sum_reals;
		sum_functions[HRFLOW_HALF] = sum_halves;
#ifdef HAVE_AVX2
		if (has_avx2())
		{
			sum_functions[HRFLOW_REAL] = sum_reals_avx2;
			sum_functions[HRFLOW_HALF] = sum_halves_avx2;
		}
#endif
	}
	sum_functions[element] (a, b, n, sums);
}

/*
 * Convert "n" elements to double precision for hrflow_similarity_compare().
 * The result is allocated in the current memory context.  Sets *norm to the
 * length of the vector, which is 0 for a vector of zeros, and infinite or NaN
 * if any element is.
 */
double *
hrflow_similarity_prepare(const float4 *a, int n, double *norm)
{
	double	   *b = palloc(sizeof(double) * Max(n, 1));
	Sums		sums;

	for (int i = 0; i < n; i++)
		b[i] = a[i];
	compute_sums(a, HRFLOW_REAL, b, n, &sums);
	*norm = sqrt(sums.aa);
	return b;
}

/*
 * Copy "n" elements of the given type as reals.  Multiply them by a power of
 * two, so that the length of the copied vector is at least 0.5 and less than
 * 1.  Set *norm to this length.  Only elements smaller than 2^-125 times the
 * length of the original vector can lose precision.  Returns false if the
 * length is 0 or not finite.
 */
bool
hrflow_similarity_scale(const void *a, HrflowElement element, int n,
						float4 *scaled, double *norm)
{
	double		squares = 0;
	double		factor;
	int			exponent;

	for (int i = 0; i < n; i++)
	{
		double		x = element == HRFLOW_HALF ?
		hrflow_half_to_real(((const uint16 *) a)[i]) : ((const float4 *) a)[i];

		squares += x * x;
	}
	if (squares == 0 || !isfinite(squares))
		return false;
	*norm = frexp(sqrt(squares), &exponent);
	factor = ldexp(1, -exponent);
	for (int i = 0; i < n; i++)
		scaled[i] = factor * (element == HRFLOW_HALF ?
							  hrflow_half_to_real(((const uint16 *) a)[i]) :
							  ((const float4 *) a)[i]);
	return true;
}

/*
 * Compute the cosine similarity of two vectors of "n" elements: "a", with
 * elements of the given type, and "b", as returned by
 * hrflow_similarity_prepare().  "norm" is the length of "b".
 *
 * Returns false if the similarity is undefined, because the product of the
 * lengths is 0, infinite or NaN.  Sets *norms to this product in any case.
 */
bool
hrflow_similarity_compare(const void *a, HrflowElement element,
						  const double *b, int n, double norm,
						  double *similarity, double *norms)
{
	Sums		sums;

	compute_sums(a, element, b, n, &sums);
	*norms = sqrt(sums.aa) * norm;
	if (*norms == 0 || !isfinite(*norms))
		return false;

	/*
	 * Because of rounding errors, the quotient may be slightly greater than 1
	 * or less than -1.
	 */
	*similarity = Max(-1.0, Min(1.0, sums.ab / *norms));
	return true;
}

/*
 * ------------------------------------------------------------------------
 * The SQL function
 * ------------------------------------------------------------------------
 */

/*
 * Return the elements of an argument.  Raises 22023 if the argument has more
 * than one dimension or contains nulls.
 */
static const float4 *
get_vector(FunctionCallInfo fcinfo, int argno, int *n)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(argno);

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("vector must be a one-dimensional array")));
	if (array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("vector must not contain nulls")));
	*n = ARR_NDIM(array) == 0 ? 0 : ARR_DIMS(array)[0];
	return (const float4 *) ARR_DATA_PTR(array);
}

/*
 * hrflow_cosine_similarity(a real[], b real[]) RETURNS double precision
 */
Datum
hrflow_cosine_similarity(PG_FUNCTION_ARGS)
{
	int			n;
	int			n_of_b;
	const float4 *a = get_vector(fcinfo, 0, &n);
	const float4 *b = get_vector(fcinfo, 1, &n_of_b);
	double		similarity;
	double		norm;
	double		norms;
	double	   *prepared;

	if (n != n_of_b)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("vectors must have the same dimension"),
				 errdetail("The vectors have %d and %d elements.", n, n_of_b)));
	prepared = hrflow_similarity_prepare(b, n, &norm);
	if (!hrflow_similarity_compare(a, HRFLOW_REAL, prepared, n, norm,
								   &similarity, &norms))
	{
		if (norms == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("cosine similarity is undefined for a zero vector")));
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("vector must not contain infinity or NaN")));
	}
	PG_RETURN_FLOAT8(similarity);
}
