/*
 * vector.c
 *		Deterministic unit vectors, and their encodings.
 *
 * A vector is the sum of the direction of its occupation and of random noise.
 * Profiles with the same occupation have a cosine of about 0.6, others of
 * about 0.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "standin.h"

static const char *const occupations[] = {
	"nurse", "developer", "welder", "accountant",
	"teacher", "cook", "driver", "electrician"
};

uint64_t
hash_text(const char *text, uint64_t seed)
{
	uint64_t	hash = 0xcbf29ce484222325ULL ^ (seed * 0x9e3779b97f4a7c15ULL);

	for (; *text; text++)
		hash = (hash ^ (unsigned char) *text) * 0x100000001b3ULL;
	hash ^= hash >> 32;
	hash *= 0xd6e8feb86659fd93ULL;
	return hash ^ hash >> 32;
}

const char *
occupation_of(const char *identifier)
{
	for (size_t i = 0; i < 8; i++)
	{
		if (strcasestr(identifier, occupations[i]))
			return occupations[i];
	}
	return occupations[hash_text(identifier, 7) % 8];
}

static uint64_t
next_random(uint64_t *state)
{
	uint64_t	z = *state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

/*
 * Make a random direction.  A uniform distribution in a cube is good enough.
 */
static void
direction(uint64_t seed, double *out, int n)
{
	double		sum = 0;

	for (int i = 0; i < n; i++)
	{
		out[i] = (double) (int64_t) next_random(&seed) / 9.3e18;
		sum += out[i] * out[i];
	}
	sum = sqrt(sum);
	for (int i = 0; i < n; i++)
		out[i] /= sum;
}

void
vector_make(const char *profile, const char *section, int item, float *vector)
{
	int			n = options.dim;
	const char *occupation_section = section;
	double		common[2048];
	double		own[2048];
	double		sum = 0;

	/* Jobs, texts and documents are compared with profiles as a whole. */
	if (strcmp(section, "job") == 0 || strcmp(section, "text") == 0 ||
		strcmp(section, "document") == 0)
		occupation_section = "profile";
	direction(hash_text(occupation_of(profile), hash_text(occupation_section, 1)),
			  common, n);
	direction(hash_text(profile, hash_text(section, 2) + item), own, n);
	for (int i = 0; i < n; i++)
	{
		own[i] = 0.7745966692 * common[i] + 0.6324555320 * own[i];
		sum += own[i] * own[i];
	}
	sum = sqrt(sum);
	for (int i = 0; i < n; i++)
		vector[i] = (float) (own[i] / sum);
}

static uint16_t
to_half(float value)
{
	uint32_t	bits;
	int			exponent;
	uint32_t	mantissa;
	uint16_t	sign;

	memcpy(&bits, &value, 4);
	sign = bits >> 16 & 0x8000;
	exponent = (int) (bits >> 23 & 0xff) - 127 + 15;
	mantissa = bits & 0x7fffff;
	if (exponent <= 0)
	{
		if (exponent < -10)
			return sign;
		mantissa |= 0x800000;
		return sign | (mantissa >> (14 - exponent));
	}
	return sign | exponent << 10 | mantissa >> 13;
}

/* Append an element in the type and byte order of "dtype", on any machine. */
static void
add_element(Buffer *out, float value, const char *dtype)
{
	const char	machine_order = *(const char *) &(uint16_t) {1} ? '<' : '>';
	unsigned char bytes[8];
	int			size = dtype[2] - '0';
	double		d = value;
	uint16_t	h = to_half(value);
	int64_t		integer = (int64_t) (value * 1000);

	if (dtype[1] == 'f' && size == 2)
		memcpy(bytes, &h, 2);
	else if (dtype[1] == 'f' && size == 4)
		memcpy(bytes, &value, 4);
	else if (dtype[1] == 'f')
		memcpy(bytes, &d, 8);
	else
		memcpy(bytes, &integer, 8);
	if (dtype[0] != machine_order)
	{
		for (int i = 0; i < size / 2; i++)
		{
			unsigned char t = bytes[i];

			bytes[i] = bytes[size - 1 - i];
			bytes[size - 1 - i] = t;
		}
	}
	buffer_add(out, bytes, size);
}

/* Append the floats in little-endian order. */
void
vector_write(const float *vector, Buffer *out)
{
	for (int i = 0; i < options.dim; i++)
		add_element(out, vector[i], "<f4");
}

static void
encode_npy(const float *vector, const Fault *fault, Buffer *out)
{
	const char *dtype = fault->dtype ? fault->dtype : "<f4";
	bool		object = strchr(dtype, 'O') != NULL;
	int			rows = fault->shape && *fault->shape == '2' ? 2 : 1;
	bool		two_d = fault->shape && strchr(fault->shape, 'x') != NULL;
	char		shape[64];
	char		header[256];
	int			prefix = fault->version >= 2 ? 12 : 10;
	int			length;

	if (two_d)
		snprintf(shape, sizeof(shape), "(%d, %d)", rows, options.dim);
	else
		snprintf(shape, sizeof(shape), "(%d,)", options.dim);
	length = snprintf(header, sizeof(header),
					  "{'descr': '%s', 'fortran_order': %s, 'shape': %s, }",
					  object ? "|O" : dtype, fault->fortran ? "True" : "False",
					  shape);
	while ((prefix + length + 1) % 64 != 0)
		header[length++] = ' ';
	header[length++] = '\n';

	buffer_add(out, "\x93NUMPY", 6);
	buffer_add(out, &(char) {(char) fault->version}, 1);
	buffer_add(out, "", 1);
	buffer_add(out, &(char) {(char) (length & 0xff)}, 1);
	buffer_add(out, &(char) {(char) (length >> 8)}, 1);
	if (prefix == 12)
		buffer_add(out, "\0\0", 2);
	buffer_add(out, header, length);
	if (object)
	{
		buffer_add(out, "\x80\x04]q\0.", 6);
		return;
	}
	if (fault->fortran && rows == 2)
	{
		for (int i = 0; i < options.dim; i++)
		{
			add_element(out, vector[i], dtype);
			add_element(out, -vector[i], dtype);
		}
		return;
	}
	for (int row = 0; row < rows; row++)
	{
		for (int i = 0; i < options.dim; i++)
			add_element(out, row ? -vector[i] : vector[i], dtype);
	}
}

/* Base64 of the floats, big-endian. */
void
vector_encode_base64(const float *elements, int n, Buffer *out)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	Buffer		raw = {0};

	for (int i = 0; i < n; i++)
		add_element(&raw, elements[i], ">f4");
	for (size_t i = 0; i < raw.length; i += 3)
	{
		unsigned	bits = (unsigned char) raw.data[i] << 16;
		size_t		left = raw.length - i;
		char		quad[4];

		if (left > 1)
			bits |= (unsigned char) raw.data[i + 1] << 8;
		if (left > 2)
			bits |= (unsigned char) raw.data[i + 2];
		for (int k = 0; k < 4; k++)
			quad[k] = (size_t) k <= left ? digits[bits >> (18 - 6 * k) & 63] : '=';
		buffer_add(out, quad, 4);
	}
	free(raw.data);
}

/*
 * Append the content of a link: .npy, unless the fault requires otherwise.
 */
void
vector_encode(const float *vector, const Fault *fault, Buffer *out)
{
	float		copy[2048];

	memcpy(copy, vector, options.dim * sizeof(float));
	if (fault->nan)
		copy[options.dim / 2] = NAN;

	if (fault->encoding && strcmp(fault->encoding, "base64") == 0)
		vector_encode_base64(copy, options.dim, out);
	else if (fault->encoding && strcmp(fault->encoding, "json") == 0)
	{
		for (int i = 0; i < options.dim; i++)
			buffer_printf(out, "%s%.9g", i ? "," : "[", copy[i]);
		buffer_add(out, "]", 1);
	}
	else
		encode_npy(copy, fault, out);
	if (fault->cut)
		out->length -= 3;
	if (fault->trailing)
		buffer_add(out, "xyz", 3);
}
