/*-------------------------------------------------------------------------
 *
 * gunzip.c
 *		Decompresses the body of a reply as it arrives (RFC 1952).
 *
 * We do not let libcurl decompress the body, because it decompresses all
 * encodings that it supports, not only those requested (a zstd reply of 2 kB
 * can take 128 MB), treats unknown encodings as errors although some denote no
 * transformation, and reads only the first member of a gzip file.
 *
 * Nothing here throws, since this is called from libcurl's callbacks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <zlib.h>

#include "transport/transfer.h"

/* Size of the buffer for decompressed data, in bytes. */
#define CHUNK (16 * 1024)

struct HrflowGunzip
{
	z_stream	stream;
	bool		is_complete;	/* has the latest member ended? */
};

/*
 * Create a decompressor.  Returns NULL if there is not enough memory.  A
 * decompressor takes about 10 kB, and another 32 kB once it is used.
 */
HrflowGunzip *
hrflow_gunzip_create(void)
{
	HrflowGunzip *gunzip = calloc(1, sizeof(HrflowGunzip));

	/* Adding 16 selects the gzip format. */
	if (gunzip != NULL && inflateInit2(&gunzip->stream, MAX_WBITS + 16) != Z_OK)
	{
		free(gunzip);
		return NULL;
	}
	return gunzip;
}

/*
 * Free a decompressor, which may be NULL.
 */
void
hrflow_gunzip_free(HrflowGunzip *gunzip)
{
	if (gunzip == NULL)
		return;
	(void) inflateEnd(&gunzip->stream);
	free(gunzip);
}

/*
 * Prepare a decompressor for another body or member.
 */
void
hrflow_gunzip_reset(HrflowGunzip *gunzip)
{
	(void) inflateReset(&gunzip->stream);
	gunzip->is_complete = false;
}

/*
 * Does the data received so far end at the end of a member?
 */
bool
hrflow_gunzip_is_complete(const HrflowGunzip *gunzip)
{
	return gunzip->is_complete;
}

/*
 * Decompress a part of the body, which may contain several members, and pass
 * the result to "sink".  Returns false if the part is not valid gzip data, if
 * there is not enough memory, in which case *no_memory is set to true, or if
 * "sink" returned false.
 */
bool
hrflow_gunzip_feed(HrflowGunzip *gunzip, const char *data, size_t length,
				   HrflowGunzipSink sink, void *arg, bool *no_memory)
{
	z_stream   *stream = &gunzip->stream;
	char		chunk[CHUNK];

	stream->next_in = (Bytef *) unconstify(char *, data);
	stream->avail_in = length;
	do
	{
		int			result;

		if (gunzip->is_complete)
			hrflow_gunzip_reset(gunzip);
		stream->next_out = (Bytef *) chunk;
		stream->avail_out = CHUNK;
		result = inflate(stream, Z_NO_FLUSH);
		*no_memory |= result == Z_MEM_ERROR;
		if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR)
			return false;
		gunzip->is_complete = result == Z_STREAM_END;
		if (stream->avail_out < CHUNK &&
			!sink(arg, chunk, CHUNK - stream->avail_out))
			return false;
	} while (stream->avail_in > 0 ||
			 (stream->avail_out == 0 && !gunzip->is_complete));
	return true;
}
