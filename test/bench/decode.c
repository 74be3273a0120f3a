/*
 * decode.c
 *		Compares the time to decode a vector with that of the tightest loop in
 *		C that does the same without any checks.
 *
 * Prints the time in microseconds for 1,024 and 2,048 elements and the ratio.
 * Each time is the best of 25 rounds, because other programs can only make a
 * round slower.
 */
#include "postgres.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../fuzz/backend.h"
#include "ask/ask.h"

#define ROUNDS 25
#define MOST 2048

static float floats[MOST];
static float out[MOST];
static unsigned char table[256];

static double
microseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

/* The loops to compare with.  They rely on the given number of elements. */

static void
loop_base64(const char *payload, int n)
{
	const unsigned char *p = (const unsigned char *) payload;
	unsigned char *to = (unsigned char *) out;
	int			bytes = 4 * n;

	for (int i = 0; i + 3 <= bytes; i += 3, p += 4)
	{
		uint32		v = table[p[0]] << 18 | table[p[1]] << 12 |
			table[p[2]] << 6 | table[p[3]];

		to[i] = v >> 16;
		to[i + 1] = v >> 8;
		to[i + 2] = v;
	}
	for (int i = 0; i < n; i++)
	{
		uint32		v;

		memcpy(&v, &out[i], 4);
		v = __builtin_bswap32(v);
		memcpy(&out[i], &v, 4);
	}
}

static void
loop_copy(const char *payload, int n)
{
	memcpy(out, payload + 128, 4 * n);
}

static void
loop_strtof(const char *payload, int n)
{
	char	   *end;

	payload++;
	for (int i = 0; i < n; i++)
	{
		out[i] = strtof(payload, &end);
		payload = end + 1;
	}
}

static double
time_of(const char *payload, size_t length, int n,
		void (*loop) (const char *, int))
{
	double		best = 1e18;

	for (int round = 0; round < ROUNDS; round++)
	{
		const int	times = 400;
		double		began = microseconds();

		for (int i = 0; i < times; i++)
		{
			HrflowBadVector bad;

			if (loop != NULL)
			{
				loop(payload, n);
				__asm__ volatile("" ::: "memory");
				continue;
			}
			if (hrflow_decode_payload(payload, length, 0, &bad) == NULL)
			{
				fprintf(stderr, "decode: %s\n", bad.detail);
				exit(1);
			}
			backend_reset();
		}
		best = Min(best, (microseconds() - began) / times);
	}
	return best;
}

static void
compare(const char *name, const char *payload, size_t length, int n,
		const char *opponent, void (*loop) (const char *, int))
{
	HrflowBadVector bad;
	double		ours = time_of(payload, length, n, NULL);
	double		theirs = time_of(payload, length, n, loop);
	ArrayType  *array = hrflow_decode_payload(payload, length, 0, &bad);

	if (memcmp(ARR_DATA_PTR(array), floats, 4 * n) != 0)
	{
		fprintf(stderr, "decode: %s of %d elements is wrong\n", name, n);
		exit(1);
	}
	backend_reset();
	printf("%-10s %5d elements  %7.2f us   %-28s %7.2f us   ratio %.2f\n",
		   name, n, ours, opponent, theirs, ours / theirs);
}

static size_t
write_npy(char *payload, int n)
{
	int			length;

	memcpy(payload, "\x93NUMPY\x01\x00\x76\x00", 10);
	length = sprintf(payload + 10,
					 "{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }",
					 n);
	memset(payload + 10 + length, ' ', 117 - length);
	payload[127] = '\n';
	memcpy(payload + 128, floats, 4 * n);
	return 128 + 4 * n;
}

static size_t
write_base64(char *payload, int n)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	unsigned char bytes[4 * MOST + 2] = {0};
	char	   *p = payload;

	for (int i = 0; i < 64; i++)
		table[(unsigned char) digits[i]] = i;
	for (int i = 0; i < n; i++)
	{
		uint32		v;

		memcpy(&v, &floats[i], 4);
		v = __builtin_bswap32(v);
		memcpy(bytes + 4 * i, &v, 4);
	}
	for (int i = 0; i < 4 * n; i += 3, p += 4)
	{
		uint32		v = bytes[i] << 16 | bytes[i + 1] << 8 | bytes[i + 2];

		for (int j = 0; j < 4; j++)
			p[j] = i * 8 + j * 6 < 32 * n ? digits[v >> (18 - 6 * j) & 63] : '=';
	}
	*p = '\0';
	return p - payload;
}

static size_t
write_json(char *payload, int n)
{
	char	   *p = payload;

	/* Python prints such numbers with about 17 digits, too. */
	for (int i = 0; i < n; i++)
		p += sprintf(p, "%s%.17g", i == 0 ? "[" : ", ", (double) floats[i]);
	p += sprintf(p, "]");
	return p - payload;
}

int
main(void)
{
	static char payload[64 * MOST];
	double		norm = 0;

	srandom(1);
	for (int i = 0; i < MOST; i++)
	{
		floats[i] = random() / (float) RAND_MAX - 0.5f;
		norm += floats[i] * floats[i];
	}
	for (int i = 0; i < MOST; i++)
		floats[i] /= sqrt(norm);

	for (int n = 1024; n <= MOST; n *= 2)
	{
		size_t		length;

		length = write_npy(payload, n);
		compare(".npy <f4", payload, length, n, "memcpy", loop_copy);
		length = write_base64(payload, n);
		compare("base64", payload, length, n, "table lookup and byte swap",
				loop_base64);
		length = write_json(payload, n);
		compare("JSON", payload, length, n, "strtof, unchecked", loop_strtof);
	}
	return 0;
}
