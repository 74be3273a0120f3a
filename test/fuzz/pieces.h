/*
 * pieces.h
 *		Passes an input on in pieces, as libcurl passes a reply.
 */
#ifndef PIECES_H
#define PIECES_H

#include "postgres.h"

#include <stdlib.h>

/*
 * Pass data to a function in pieces of 1 to "longest" bytes, or as a whole if
 * "longest" is 0, until the function returns false.  Each piece is a copy of
 * its own, so that AddressSanitizer detects a read beyond its end.  Returns
 * whether the function has always returned true.
 */
static bool
pass_in_pieces(const char *data, size_t size, size_t longest,
			   bool (*take) (void *arg, char *piece, size_t length), void *arg)
{
	uint32		state = size + 1;

	for (size_t done = 0; done < size;)
	{
		size_t		length = size - done;
		char	   *piece;
		bool		good;

		state = state * 1664525 + 1013904223;
		if (longest > 0)
			length = Min(length, 1 + (state >> 16) % longest);
		piece = malloc(length);
		if (piece == NULL)
			abort();
		memcpy(piece, data + done, length);
		good = take(arg, piece, length);
		free(piece);
		if (!good)
			return false;
		done += length;
	}
	return true;
}

#endif							/* PIECES_H */
