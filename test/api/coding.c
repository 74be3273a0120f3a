/*
 * coding.c
 *		Encodes the bodies of replies (Content-Encoding).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "standin.h"

/*
 * Maximum size of a zstd block (128 kB), and of a brotli meta-block with a
 * short length (64 kB).
 */
#define BLOCK 65536

/*
 * Append a gzip or zlib stream that contains these bytes, or that many zero
 * bytes if data is NULL.
 */
static void
add_deflated(Buffer *out, const char *data, size_t length, int window_bits)
{
	static const char zeros[BLOCK];
	char		piece[BLOCK];
	z_stream	z = {0};
	int			flush;

	deflateInit2(&z, 6, Z_DEFLATED, window_bits, 8, Z_DEFAULT_STRATEGY);
	do
	{
		size_t		n = length < BLOCK ? length : BLOCK;

		z.next_in = (unsigned char *) (uintptr_t) (data ? data : zeros);
		z.avail_in = n;
		length -= n;
		if (data)
			data += n;
		flush = length > 0 ? Z_NO_FLUSH : Z_FINISH;
		do
		{
			z.next_out = (unsigned char *) piece;
			z.avail_out = sizeof(piece);
			deflate(&z, flush);
			buffer_add(out, piece, sizeof(piece) - z.avail_out);
		} while (z.avail_out == 0);
	} while (flush != Z_FINISH);
	deflateEnd(&z);
}

/*
 * Append a gzip file with several members, which contain the bytes together.
 */
static void
add_members(Buffer *out, const char *data, size_t length, long members)
{
	for (; members > 1; members--)
	{
		size_t		n = length / members;

		add_deflated(out, data, n, 31);
		data += n;
		length -= n;
	}
	add_deflated(out, data, length, 31);
}

/*
 * Append a zstd frame (RFC 8878) of raw blocks.  It declares a window of 128
 * MB, the largest that decoders accept by default, which they allocate.
 */
static void
add_zstd(Buffer *out, const char *data, size_t length)
{
	bool		last;

	buffer_add(out, "\x28\xb5\x2f\xfd\x00\x88", 6);
	do
	{
		size_t		n = length < BLOCK ? length : BLOCK;
		unsigned	header;
		char		bytes[3];

		last = n == length;
		header = (unsigned) n << 3 | last;
		for (int i = 0; i < 3; i++)
			bytes[i] = (char) (header >> 8 * i);
		buffer_add(out, bytes, 3);
		buffer_add(out, data, n);
		data += n;
		length -= n;
	} while (!last);
}

/*
 * Append a brotli stream (RFC 7932) of uncompressed meta-blocks.  It declares
 * a window of 16 MB, the maximum.
 */
static void
add_brotli(Buffer *out, const char *data, size_t length)
{
	unsigned	window = 15;	/* code for a window of 24 bits */
	int			window_bits = 4;

	while (length > 0)
	{
		size_t		n = length < BLOCK ? length : BLOCK;
		unsigned	header;
		char		bytes[3];

		/*
		 * After the window, which only the first meta-block has: not the last
		 * (1 bit), length in four nibbles (2 bits), length minus one (16
		 * bits), uncompressed (1 bit), padding.
		 */
		header = ((unsigned) (n - 1) << 3 | 1u << 19) << window_bits | window;
		for (int i = 0; i < 3; i++)
			bytes[i] = (char) (header >> 8 * i);
		buffer_add(out, bytes, 3);
		buffer_add(out, data, n);
		data += n;
		length -= n;
		window = window_bits = 0;
	}
	/* Empty last meta-block. */
	buffer_add(out, window ? "\x3f" : "\x03", 1);
}

/* Does a Content-Encoding header contain this name? */
static bool
has_name(const char *names, const char *name)
{
	size_t		length = strlen(name);

	while (*names)
	{
		size_t		n = strcspn(names, "+");

		if (n == length && strncmp(names, name, n) == 0)
			return true;
		names += n + (names[n] == '+');
	}
	return false;
}

/*
 * Encode a body as the fault requires, into *out.  Returns the value of the
 * Content-Encoding header, to be freed, or NULL if the body is unchanged.
 */
char *
coding_apply(const Fault *fault, const char *data, size_t length, Buffer *out)
{
	const char *names = fault->coding ? fault->coding : "gzip";
	Buffer		value = {0};

	if (fault->coding == NULL && !fault->gzip && fault->members == 0 &&
		fault->bomb == 0 && fault->empty_blocks == 0)
		return NULL;

	buffer_add(out, "", 0);
	if (fault->empty_blocks > 0)
		buffer_add(out, "\x1f\x8b\x08\0\0\0\0\0\0\x03", 10);
	else if (fault->bomb > 0)
		add_deflated(out, NULL, fault->bomb, 31);
	else if (fault->members > 0)
		add_members(out, data, length, fault->members);
	else if (has_name(names, "gzip") || has_name(names, "x-gzip"))
		add_deflated(out, data, length, 31);
	else if (has_name(names, "deflate"))
		add_deflated(out, data, length, 15);
	else if (has_name(names, "zstd"))
		add_zstd(out, data, length);
	else if (has_name(names, "br"))
		add_brotli(out, data, length);
	else
		buffer_add(out, data, length);

	for (; *names; names++)
	{
		if (*names == '+')
			buffer_add(&value, ", ", 2);
		else
			buffer_add(&value, names, 1);
	}
	return value.data;
}
