/*
 * decimals.c
 *		Compares the reals that our JSON decoder reads with those that strtof()
 *		returns, for millions of decimals: random ones, and those that are hard
 *		to round.
 */
#include "postgres.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "backend.h"
#include "ask/ask.h"
#include "random.h"

static unsigned long ndecimals = 0;

static void
check(const char *decimal)
{
	char		json[512];
	HrflowBadVector bad;
	float		wanted = strtof(decimal, NULL);
	ArrayType  *array;

	snprintf(json, sizeof(json), "[%s]", decimal);
	array = hrflow_decode_payload(json, strlen(json), 0, &bad);
	if (isfinite(wanted) ? array == NULL || memcmp(ARR_DATA_PTR(array), &wanted, 4) != 0 :
		array != NULL)
	{
		fprintf(stderr, "%s is read wrong\n", decimal);
		exit(1);
	}
	ndecimals++;
	if (ndecimals % 64 == 0)
		backend_reset();
}

/*
 * Check a decimal with random digits and a random exponent.
 */
static void
check_random(void)
{
	char		decimal[128];
	char	   *p = decimal;
	int			whole = random_bits() % 4 ? 1 : 1 + random_bits() % 30;
	int			fraction = random_bits() % 30;

	if (random_bits() % 2)
		*p++ = '-';
	*p++ = whole > 1 ? '1' + random_bits() % 9 : '0' + random_bits() % 10;
	while (--whole > 0)
		*p++ = '0' + random_bits() % 10;
	if (fraction > 0)
		*p++ = '.';
	while (fraction-- > 0)
		*p++ = '0' + random_bits() % 10;
	*p = '\0';
	if (random_bits() % 2)
		sprintf(p, "e%d", (int) (random_bits() % 110) - 60);
	check(decimal);
}

/*
 * Check the midpoint of two adjacent reals, and numbers close to it.
 */
static void
check_midpoint(void)
{
	uint32		bits = random_bits() & 0x7F7FFFFF;
	float		low;
	double		middle;
	char		decimal[256];

	memcpy(&low, &bits, sizeof(low));
	middle = ((double) low + (double) nextafterf(low, INFINITY)) / 2;
	if (!isfinite(middle))
		return;
	snprintf(decimal, sizeof(decimal), "%.120e", middle);
	check(decimal);
	for (int digits = 8; digits <= 24; digits++)
	{
		snprintf(decimal, sizeof(decimal), "%.*e", digits, middle);
		check(decimal);
	}
	snprintf(decimal, sizeof(decimal), "%.17g", nextafter(middle, INFINITY));
	check(decimal);
	snprintf(decimal, sizeof(decimal), "%.17g", nextafter(middle, 0));
	check(decimal);
	snprintf(decimal, sizeof(decimal), "%.9g", low);
	check(decimal);
}

/*
 * decimals SECONDS
 */
int
main(int argc, char **argv)
{
	time_t		end = time(NULL) + atoi(argv[1]);

	while (time(NULL) < end)
	{
		for (int i = 0; i < 1000; i++)
		{
			check_random();
			check_midpoint();
		}
	}
	printf("stat::number_of_executed_units: %lu\n", ndecimals);
	return 0;
}
