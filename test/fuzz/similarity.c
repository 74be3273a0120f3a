/*
 * similarity.c
 *		Compares the loops for AVX2 with those for any processor, for vectors of
 *		random dimensions with elements of all magnitudes.  Their results must
 *		agree within the tolerance documented in src/ask/similarity.c.  Also
 *		compares the conversion of every half with that of the processor.
 */
#include "ask/similarity.c"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "random.h"

#define MAX_DIMENSION 2100
#define TOLERANCE 1e-12

static unsigned long ncomparisons = 0;

#ifdef HAVE_AVX2

/*
 * A real of about the given power of two; one in eight is zero.
 */
static float4
random_real(int exponent)
{
	if (random_bits() % 8 == 0)
		return 0;
	return ldexpf((float4) random_bits() / (float4) PG_UINT64_MAX - 0.5f,
				  exponent + random_bits() % 8);
}

static void
compare_sums(const char *what, const Sums *a, const Sums *b, double norm)
{
	double		similarity_a = a->ab / (sqrt(a->aa) * norm);
	double		similarity_b = b->ab / (sqrt(b->aa) * norm);

	ncomparisons++;
	if (isfinite(similarity_a) != isfinite(similarity_b) ||
		fabs(similarity_a - similarity_b) > TOLERANCE ||
		fabs(a->aa - b->aa) > TOLERANCE * a->aa)
	{
		fprintf(stderr, "%s: %.17g and %.17g\n", what, similarity_a,
				similarity_b);
		exit(1);
	}
}

static void
compare_loops(void)
{
	static float4 a[MAX_DIMENSION + 1];
	static double b[MAX_DIMENSION + 1];
	static float4 reals_of_b[MAX_DIMENSION + 1];
	static uint16 halves[MAX_DIMENSION + 1];
	int			n = random_bits() % (MAX_DIMENSION + 1);
	int			offset = random_bits() % 2;
	int			exponent = (int) (random_bits() % 240) - 130;
	Sums		portable;
	Sums		fast;
	Sums		query;

	for (int i = 0; i < n + offset; i++)
	{
		a[i] = random_real(exponent);
		b[i] = reals_of_b[i] = random_real(-exponent);
		do
			halves[i] = random_bits();
		while ((halves[i] & 0x7C00) == 0x7C00);
	}
	sum_reals(reals_of_b, b, n, &query);
	sum_reals(a + offset, b, n, &portable);
	sum_reals_avx2(a + offset, b, n, &fast);
	compare_sums("reals", &portable, &fast, sqrt(query.aa));
	sum_halves(halves + offset, b, n, &portable);
	sum_halves_avx2(halves + offset, b, n, &fast);
	compare_sums("halves", &portable, &fast, sqrt(query.aa));
}

AVX2 static void
compare_conversions(void)
{
	for (int i = 0; i <= PG_UINT16_MAX; i++)
	{
		uint16		halves[4] = {i};
		float4		wanted[4];
		float4		found = hrflow_half_to_real(i);

		_mm_storeu_ps(wanted, load_four_halves(halves));
		if (isnan(wanted[0]) ? !isnan(found) :
			memcmp(&found, wanted, sizeof(float4)) != 0)
		{
			fprintf(stderr, "half %04x is read wrong\n", i);
			exit(1);
		}
	}
}
#endif

/*
 * similarity SECONDS
 */
int
main(int argc, char **argv)
{
#ifdef HAVE_AVX2
	time_t		end = time(NULL) + atoi(argv[1]);

	if (has_avx2())
	{
		compare_conversions();
		while (time(NULL) < end)
		{
			for (int i = 0; i < 1000; i++)
				compare_loops();
		}
	}
#endif
	printf("stat::number_of_executed_units: %lu\n", ncomparisons);
	return 0;
}
