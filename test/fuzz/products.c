/*
 * products.c
 *		Compares the loops of src/ask/products.c for each kind of processor that
 *		this one includes with products in double precision, for rows of random
 *		length with elements of all magnitudes.  The difference must be within
 *		half of what src/store/pairs.c allows for.
 */
#include "ask/products.c"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "random.h"

#define MAX_STEPS (2100 / HRFLOW_PRODUCTS_STEP)

/*
 * Fill rows with reals of about the given power of two; one in eight is zero.
 */
static void
fill(float4 *elements, int n, int exponent)
{
	for (int i = 0; i < n; i++)
		elements[i] = random_bits() % 8 == 0 ? 0 :
			ldexpf((float4) random_bits() / (float4) PG_UINT64_MAX - 0.5f,
				   exponent + random_bits() % 8);
}

static void
check(const char *what, const Kernel *kernel, const float4 *a, const float4 *b,
	  int n, const float4 *products)
{
	for (int i = 0; i < kernel->rows; i++)
	{
		for (int j = 0; j < kernel->columns; j++)
		{
			double		sum = 0;
			double		norm_a = 0;
			double		norm_b = 0;

			for (int k = 0; k < n; k++)
			{
				double		x = a[i * n + k];
				double		y = b[j * n + k];

				sum += x * y;
				norm_a += x * x;
				norm_b += y * y;
			}
			if (!(fabs(products[i * kernel->columns + j] - sum) <=
				  (n + 16) * ldexp(1, -24) * sqrt(norm_a) * sqrt(norm_b)))
			{
				fprintf(stderr, "%s, row %d, column %d of %d elements: %.9g and %.17g\n",
						what, i, j, n, products[i * kernel->columns + j], sum);
				exit(1);
			}
		}
	}
}

/*
 * products SECONDS
 */
int
main(int argc, char **argv)
{
	static float4 a[HRFLOW_PRODUCTS_ROWS * MAX_STEPS * HRFLOW_PRODUCTS_STEP];
	static float4 b[HRFLOW_PRODUCTS_ROWS * MAX_STEPS * HRFLOW_PRODUCTS_STEP];
	static const char *const names[] = {"any processor", "AVX2", "AVX-512"};
	Kernel		kernels[lengthof(names)] = {{1, 1, multiply_one_by_one}};
	unsigned long ncomparisons = 0;
	time_t		end = time(NULL) + atoi(argv[1]);

#ifdef HAVE_X86_LOOPS
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		kernels[1] = (Kernel) {3, 4, multiply_three_by_four};
	if (__builtin_cpu_supports("avx512f"))
		kernels[2] = (Kernel) {4, 6, multiply_four_by_six};
#endif
	while (time(NULL) < end)
	{
		int			n = (random_bits() % MAX_STEPS + 1) * HRFLOW_PRODUCTS_STEP;
		int			exponent = (int) (random_bits() % 60) - 30;
		float4		products[HRFLOW_PRODUCTS_ROWS * HRFLOW_PRODUCTS_ROWS];

		fill(a, HRFLOW_PRODUCTS_ROWS * n, exponent);
		fill(b, HRFLOW_PRODUCTS_ROWS * n, -exponent);
		for (int i = 0; i < lengthof(kernels); i++)
		{
			if (kernels[i].multiply == NULL)
				continue;
			kernels[i].multiply(a, b, n, products, kernels[i].columns);
			check(names[i], &kernels[i], a, b, n, products);
			ncomparisons++;
		}
	}
	printf("stat::number_of_executed_units: %lu\n", ncomparisons);
	return 0;
}
