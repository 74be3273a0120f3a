/*-------------------------------------------------------------------------
 *
 * gunzip.c
 *		Decompress a reply's body as it arrives (RFC 1952).
 *
 * libcurl decompresses what it can, and not what was asked for: a zstd reply of
 * 2 kB takes 128 MB.  It takes names that it does not know for errors, although
 * some denote no transformation, and it reads the first member of a file only.
 *
 * Nothing here throws, since libcurl's callbacks call it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <zlib.h>

#include "transport/transfer.h"

/* Bytes decompressed at a time. */
#define CHUNK (16 * 1024)

struct HrflowGunzip
{
	z_stream	stream;
	bool		is_complete;	/* the last member has ended */
};

/*
 * NULL where there is no memory.  It takes about 10 kB, and 32 kB more once it
 * is used.
 */
HrflowGunzip *
hrflow_gunzip_create(void)
{
	HrflowGunzip *gunzip = calloc(1, sizeof(HrflowGunzip));

	/* 16 stands for gzip's header and trailer. */
	if (gunzip != NULL && inflateInit2(&gunzip->stream, MAX_WBITS + 16) != Z_OK)
	{
		free(gunzip);
		return NULL;
	}
	return gunzip;
}

/*
 * NULL is allowed.
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
 * Begin with another body.
 */
void
hrflow_gunzip_reset(HrflowGunzip *gunzip)
{
	(void) inflateReset(&gunzip->stream);
	gunzip->is_complete = false;
}

/*
 * Decompress what has arrived, of all members, and pass it on.  Returns false
 * where it is not gzip's, or "sink" returned false.
 */
bool
hrflow_gunzip_feed(HrflowGunzip *gunzip, const char *data, size_t length,
				   HrflowGunzipSink sink, void *arg)
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
