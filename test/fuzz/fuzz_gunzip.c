/*
 * fuzz_gunzip.c
 *		Fuzzer for the decompression of replies: the result must be the same as
 *		zlib's own for the whole input, however the input is split, and what
 *		zlib has compressed must be decompressed again.
 *
 * The input consists of three bytes of options, and data, which is repeated and
 * then decompressed or, depending on the options, compressed first.
 */
#include "postgres.h"

#include <stdlib.h>
#include <zlib.h>

#include "pieces.h"
#include "transport/transfer.h"

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The sink accepts no more than this, in bytes. */
#define MOST (1024 * 1024)

/* Maximum size of the repeated data, in bytes. */
#define MOST_INPUT (128 * 1024)

/* What has been decompressed. */
typedef struct Output
{
	HrflowGunzip *gunzip;
	bool		is_full;		/* has the sink returned false? */
	size_t		length;
	char		data[MOST];
} Output;

static Output whole;
static Output split;

/* What zlib decompresses, and the input if that is compressed first. */
static Bytef reference[MOST];
static Bytef packed[2 * MOST_INPUT];

static bool
keep(void *arg, const char *data, size_t length)
{
	Output	   *output = arg;

	/* A sink that has returned false must not be called again. */
	if (output->is_full || length == 0)
		abort();
	output->is_full = length > MOST - output->length;
	if (output->is_full)
		return false;
	memcpy(output->data + output->length, data, length);
	output->length += length;
	return true;
}

static bool
feed(void *arg, char *piece, size_t length)
{
	Output	   *output = arg;
	bool		no_memory = false;
	bool		good = hrflow_gunzip_feed(output->gunzip, piece, length, keep,
										  output, &no_memory);

	if (no_memory || (good && output->is_full))
		abort();
	return good;
}

/*
 * Decompress data in pieces.  Returns whether they are valid, and sets
 * *complete to whether the data ends at the end of a member.
 */
static bool
decompress(Output *output, const char *data, size_t size, size_t longest,
		   bool *complete)
{
	bool		good;

	/* Backends use a decompressor for many replies. */
	if (output->gunzip == NULL)
		output->gunzip = hrflow_gunzip_create();
	else
		hrflow_gunzip_reset(output->gunzip);
	if (output->gunzip == NULL || hrflow_gunzip_is_complete(output->gunzip))
		abort();
	output->is_full = false;
	output->length = 0;
	good = pass_in_pieces(data, size, longest, feed, output);
	*complete = hrflow_gunzip_is_complete(output->gunzip);
	return good;
}

/*
 * Decompress all members of the data by zlib, as a whole.  Returns whether
 * they are valid and not too long.  "reference" contains what could be
 * decompressed.
 */
static bool
decompress_by_zlib(const char *data, size_t size, size_t *length,
				   bool *complete)
{
	z_stream	stream = {0};
	int			result = Z_OK;

	*complete = false;
	stream.next_in = (Bytef *) unconstify(char *, data);
	stream.avail_in = size;
	stream.next_out = reference;
	stream.avail_out = MOST;
	while (stream.avail_in > 0 && (result == Z_OK || result == Z_STREAM_END))
	{
		z_stream	member = stream;

		if (inflateInit2(&member, MAX_WBITS + 16) != Z_OK)
			abort();
		result = inflate(&member, Z_SYNC_FLUSH);
		(void) inflateEnd(&member);
		stream.next_in = member.next_in;
		stream.avail_in = member.avail_in;
		stream.next_out = member.next_out;
		stream.avail_out = member.avail_out;
		*complete = result == Z_STREAM_END;
		if (result == Z_OK && stream.avail_in > 0)
			result = Z_BUF_ERROR;	/* too long */
	}
	*length = MOST - stream.avail_out;
	return result == Z_STREAM_END || result == Z_OK;
}

/*
 * Check that data is decompressed as zlib does, whole and in pieces.
 */
static void
check(const char *data, size_t size, size_t longest)
{
	size_t		length;
	bool		is_complete[3];
	bool		valid = decompress_by_zlib(data, size, &length, &is_complete[0]);
	bool		good = decompress(&whole, data, size, 0, &is_complete[1]);

	if (decompress(&split, data, size, longest, &is_complete[2]) != good)
		abort();
	/* Nothing may be passed on that zlib does not decompress. */
	if (whole.length > length || memcmp(whole.data, reference, whole.length) != 0 ||
		split.length > length || memcmp(split.data, reference, split.length) != 0)
		abort();
	/* zlib cannot tell whether more than MOST bytes would have followed. */
	if (length == MOST)
		return;
	if (good != valid)
		abort();
	if (good && (whole.length != length || split.length != length ||
				 is_complete[1] != is_complete[0] ||
				 is_complete[2] != is_complete[0]))
		abort();
}

/*
 * Compress data as one member, which is appended to "packed".  Returns its
 * length.
 */
static size_t
compress_member(const char *data, size_t size, unsigned int options,
				size_t used)
{
	z_stream	stream = {0};
	gz_header	header = {0};

	if (deflateInit2(&stream, options % 10, Z_DEFLATED,
					 16 + 9 + options / 10 % 7, 1 + options / 70 % 9,
					 options / 630 % 5) != Z_OK)
		abort();
	header.extra = (Bytef *) "extra";
	header.extra_len = 5;
	header.name = (Bytef *) "name";
	header.hcrc = 1;
	if (options % 2 == 1 && deflateSetHeader(&stream, &header) != Z_OK)
		abort();
	stream.next_out = packed + used;
	stream.avail_out = sizeof(packed) - used;

	/* End a block in the middle, and insert an empty one. */
	stream.next_in = (Bytef *) unconstify(char *, data);
	stream.avail_in = size / 2;
	if (deflate(&stream, Z_SYNC_FLUSH) != Z_OK ||
		deflate(&stream, Z_FULL_FLUSH) != Z_OK)
		abort();
	stream.avail_in = size - size / 2;
	if (deflate(&stream, Z_FINISH) != Z_STREAM_END)
		abort();
	(void) deflateEnd(&stream);
	return sizeof(packed) - used - stream.avail_out;
}

/*
 * Compress data as several members, and check that decompressing them results
 * in the same data, and that only a cut at the end of a member is not noticed.
 */
static void
check_compressed(const char *data, size_t size, size_t longest,
				 unsigned int options)
{
	size_t		ends[4] = {0};
	int			n = 1 + options % lengthof(ends);
	bool		complete;
	size_t		cut;
	bool		at_end = false;

	for (int i = 0; i < n; i++)
	{
		size_t		from = size * i / n;

		ends[i] = i > 0 ? ends[i - 1] : 0;
		ends[i] += compress_member(data + from, size * (i + 1) / n - from,
								   options * (i + 1), ends[i]);
	}
	if (!decompress(&split, (char *) packed, ends[n - 1], longest, &complete) ||
		!complete || split.length != size || memcmp(split.data, data, size) != 0)
		abort();
	check((char *) packed, ends[n - 1], longest);

	cut = options * 7919 % ends[n - 1];
	for (int i = 0; i < n; i++)
		at_end |= cut == ends[i];
	if (!decompress(&split, (char *) packed, cut, longest, &complete) ||
		complete != at_end || split.length > size ||
		memcmp(split.data, data, split.length) != 0)
		abort();

	/* Damage the checksum of the last member. */
	packed[ends[n - 1] - 8 + options % 4] ^= 1 << options % 8;
	if (decompress(&split, (char *) packed, ends[n - 1], longest, &complete))
		abort();

	/* Damage any other byte. */
	packed[options * 6841 % ends[n - 1]] ^= 1 << options % 8;
	check((char *) packed, ends[n - 1], longest);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char input[MOST_INPUT];
	size_t		nrepeats;
	size_t		longest;
	size_t		length = 0;

	if (size < 3)
		return 0;
	longest = 1 + (data[0] >> 1) * (data[0] >> 1);
	nrepeats = 1 << data[2] % 14;
	for (; nrepeats > 0 && length + size - 3 <= MOST_INPUT; nrepeats--)
	{
		memcpy(input + length, data + 3, size - 3);
		length += size - 3;
	}
	/* Many short pieces would take too long. */
	longest = Max(longest, length / 256);
	if (data[0] & 1)
		check_compressed(input, length, longest, data[1]);
	else
		check(input, length, longest);
	return 0;
}
