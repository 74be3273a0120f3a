/*-------------------------------------------------------------------------
 *
 * products.c
 *		Computes the inner products of many vectors with many others.
 *
 * Rows are multiplied in single precision, which takes a quarter of the time
 * of double precision.  The products serve to exclude rows that cannot be
 * among the nearest; hrflow_similarity_compare() computes the similarity of
 * the remaining rows.  Whatever the order of summation, the error of an inner
 * product is at most 2^-24 times the number of elements times the product of
 * the two vectors' lengths.
 *
 * The loops for x86-64 multiply a few rows of each array at a time, so that
 * each element that is loaded into a register is used several times.  There is
 * one set of loops for each instruction set.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ask.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_X86_LOOPS 1
#include <immintrin.h>
#endif

/*
 * A function that multiplies Kernel.rows rows of "a" by Kernel.columns rows of
 * "b", each with "n" elements.  "width" is the number of elements in a row of
 * "products".
 */
typedef void (*Multiply) (const float4 *a, const float4 *b, int n,
						  float4 *products, int width);

typedef struct Kernel
{
	int			rows;			/* number of rows of "a" in each call; divides
								 * HRFLOW_PRODUCTS_ROWS */
	int			columns;		/* number of rows of "b" in each call; divides
								 * HRFLOW_PRODUCTS_ROWS */
	Multiply	multiply;
} Kernel;

/*
 * ------------------------------------------------------------------------
 * Any processor
 * ------------------------------------------------------------------------
 */

/*
 * Number of partial sums.  They are independent, so the compiler can vectorize
 * the loop.
 */
#define LANES 16

static void
multiply_one_by_one(const float4 *a, const float4 *b, int n, float4 *products,
					int width)
{
	float4		sums[LANES] = {0};
	float4		sum = 0;

	for (int i = 0; i < n; i += LANES)
	{
		for (int lane = 0; lane < LANES; lane++)
			sums[lane] += a[i + lane] * b[i + lane];
	}
	for (int lane = 0; lane < LANES; lane++)
		sum += sums[lane];
	*products = sum;
}

/*
 * ------------------------------------------------------------------------
 * x86-64 with AVX2 and FMA, or with AVX-512
 * ------------------------------------------------------------------------
 */
#ifdef HAVE_X86_LOOPS

#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f")))

AVX2 static inline float4
add_up_eight(__m256 x)
{
	__m128		four = _mm_add_ps(_mm256_castps256_ps128(x),
								  _mm256_extractf128_ps(x, 1));
	__m128		two = _mm_add_ps(four, _mm_movehl_ps(four, four));

	return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/*
 * Multiply one row of "b" by three rows of "a".  For four rows of "b", this
 * uses 16 registers: 12 for sums, 3 for rows of "a", and 1 for a row of "b".
 */
#define WITH_THREE(column) \
	y = _mm256_loadu_ps(b + (column) * n + i); \
	sums0##column = _mm256_fmadd_ps(x0, y, sums0##column); \
	sums1##column = _mm256_fmadd_ps(x1, y, sums1##column); \
	sums2##column = _mm256_fmadd_ps(x2, y, sums2##column)

#define ZERO_THREE(column) \
	__m256 sums0##column = _mm256_setzero_ps(); \
	__m256 sums1##column = _mm256_setzero_ps(); \
	__m256 sums2##column = _mm256_setzero_ps()

#define STORE_THREE(column) \
	products[column] = add_up_eight(sums0##column); \
	products[width + (column)] = add_up_eight(sums1##column); \
	products[2 * width + (column)] = add_up_eight(sums2##column)

AVX2 static void
multiply_three_by_four(const float4 *a, const float4 *b, int n,
					   float4 *products, int width)
{
	ZERO_THREE(0);
	ZERO_THREE(1);
	ZERO_THREE(2);
	ZERO_THREE(3);

	for (int i = 0; i < n; i += 8)
	{
		__m256		x0 = _mm256_loadu_ps(a + i);
		__m256		x1 = _mm256_loadu_ps(a + n + i);
		__m256		x2 = _mm256_loadu_ps(a + 2 * n + i);
		__m256		y;

		WITH_THREE(0);
		WITH_THREE(1);
		WITH_THREE(2);
		WITH_THREE(3);
	}
	STORE_THREE(0);
	STORE_THREE(1);
	STORE_THREE(2);
	STORE_THREE(3);
}

/*
 * Multiply one row of "b" by four rows of "a".  For six rows of "b", this uses
 * 29 of the 32 AVX-512 registers, each of which is twice as wide as an AVX2
 * register.
 */
#define WITH_FOUR(column) \
	y = _mm512_loadu_ps(b + (column) * n + i); \
	sums0##column = _mm512_fmadd_ps(x0, y, sums0##column); \
	sums1##column = _mm512_fmadd_ps(x1, y, sums1##column); \
	sums2##column = _mm512_fmadd_ps(x2, y, sums2##column); \
	sums3##column = _mm512_fmadd_ps(x3, y, sums3##column)

#define ZERO_FOUR(column) \
	__m512 sums0##column = _mm512_setzero_ps(); \
	__m512 sums1##column = _mm512_setzero_ps(); \
	__m512 sums2##column = _mm512_setzero_ps(); \
	__m512 sums3##column = _mm512_setzero_ps()

#define STORE_FOUR(column) \
	products[column] = _mm512_reduce_add_ps(sums0##column); \
	products[width + (column)] = _mm512_reduce_add_ps(sums1##column); \
	products[2 * width + (column)] = _mm512_reduce_add_ps(sums2##column); \
	products[3 * width + (column)] = _mm512_reduce_add_ps(sums3##column)

AVX512 static void
multiply_four_by_six(const float4 *a, const float4 *b, int n,
					 float4 *products, int width)
{
	ZERO_FOUR(0);
	ZERO_FOUR(1);
	ZERO_FOUR(2);
	ZERO_FOUR(3);
	ZERO_FOUR(4);
	ZERO_FOUR(5);

	for (int i = 0; i < n; i += 16)
	{
		__m512		x0 = _mm512_loadu_ps(a + i);
		__m512		x1 = _mm512_loadu_ps(a + n + i);
		__m512		x2 = _mm512_loadu_ps(a + 2 * n + i);
		__m512		x3 = _mm512_loadu_ps(a + 3 * n + i);
		__m512		y;

		WITH_FOUR(0);
		WITH_FOUR(1);
		WITH_FOUR(2);
		WITH_FOUR(3);
		WITH_FOUR(4);
		WITH_FOUR(5);
	}
	STORE_FOUR(0);
	STORE_FOUR(1);
	STORE_FOUR(2);
	STORE_FOUR(3);
	STORE_FOUR(4);
	STORE_FOUR(5);
}
#endif							/* HAVE_X86_LOOPS */

/*
 * Return the fastest kernel for this machine.  __builtin_cpu_supports() also
 * checks whether the operating system saves the vector registers.
 */
static const Kernel *
choose_kernel(void)
{
	static const Kernel plain = {1, 1, multiply_one_by_one};

#ifdef HAVE_X86_LOOPS
	static const Kernel avx2 = {3, 4, multiply_three_by_four};
	static const Kernel avx512 = {4, 6, multiply_four_by_six};

	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx512f"))
		return &avx512;
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		return &avx2;
#endif
	return &plain;
}

/*
 * Compute the inner product of each of the "na" rows of "a" with each of the
 * "nb" rows of "b": products[i * nb + j] is the product of row i of "a" and
 * row j of "b".  "na" and "nb" must be multiples of HRFLOW_PRODUCTS_ROWS, and
 * "n", the number of elements of a row, must be a multiple of
 * HRFLOW_PRODUCTS_STEP.  Callers pad rows and elements with zeros.
 */
void
hrflow_products(const float4 *a, int na, const float4 *b, int nb, int n,
				float4 *products)
{
	static const Kernel *kernel = NULL;

	Assert(na % HRFLOW_PRODUCTS_ROWS == 0 && nb % HRFLOW_PRODUCTS_ROWS == 0);
	Assert(n % HRFLOW_PRODUCTS_STEP == 0);

	if (kernel == NULL)
		kernel = choose_kernel();
	for (int j = 0; j < nb; j += kernel->columns)
	{
		for (int i = 0; i < na; i += kernel->rows)
			kernel->multiply(a + (size_t) i * n, b + (size_t) j * n, n,
							 products + (size_t) i * nb + j, nb);
	}
}
