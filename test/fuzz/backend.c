/*
 * backend.c
 *		Replacements for the functions of a backend that the decoders use, so
 *		that fuzzers and micro-benchmarks can run them outside of one.
 *
 * palloc() gets its memory from malloc(), and backend_reset() frees all of it,
 * as resetting a memory context does.  An error ends the program.
 */
#include "postgres.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/memutils.h"
#include "utils/palloc.h"

size_t		backend_largest = 0;

/* Precedes each piece of memory.  Its size keeps the piece aligned. */
typedef struct Piece
{
	struct Piece *next;
	struct Piece *previous;
} Piece;

static Piece all = {&all, &all};

static void *
link_piece(Piece *piece)
{
	piece->next = all.next;
	piece->previous = &all;
	all.next->previous = piece;
	all.next = piece;
	return piece + 1;
}

static void
unlink_piece(Piece *piece)
{
	piece->next->previous = piece->previous;
	piece->previous->next = piece->next;
}

static void *
checked_alloc(void *old, Size size)
{
	Piece	   *piece;

	if (size > MaxAllocSize)
		abort();				/* a backend would raise an error */
	backend_largest = Max(backend_largest, size);
	piece = realloc(old, sizeof(Piece) + size);
	if (piece == NULL)
		abort();
	return link_piece(piece);
}

void
backend_reset(void)
{
	while (all.next != &all)
		pfree(all.next + 1);
	backend_largest = 0;
}

void *
palloc(Size size)
{
	return checked_alloc(NULL, size);
}

void *
palloc0(Size size)
{
	return memset(palloc(size), 0, size);
}

void *
repalloc(void *pointer, Size size)
{
	Piece	   *piece = (Piece *) pointer - 1;

	unlink_piece(piece);
	return checked_alloc(piece, size);
}

void
pfree(void *pointer)
{
	Piece	   *piece = (Piece *) pointer - 1;

	unlink_piece(piece);
	free(piece);
}

char *
pnstrdup(const char *in, Size length)
{
	char	   *out = palloc(strnlen(in, length) + 1);

	length = strnlen(in, length);
	memcpy(out, in, length);
	out[length] = '\0';
	return out;
}

char *
pstrdup(const char *in)
{
	return pnstrdup(in, strlen(in));
}

char *
psprintf(const char *format,...)
{
	va_list		args;
	char	   *out;
	int			length;

	va_start(args, format);
	length = vsnprintf(NULL, 0, format, args);
	va_end(args);
	out = palloc(length + 1);
	va_start(args, format);
	vsnprintf(out, length + 1, format, args);
	va_end(args);
	return out;
}

int
ArrayGetNItems(int ndim, const int *dims)
{
	int			n = ndim > 0;

	for (int i = 0; i < ndim; i++)
		n *= dims[i];
	return n;
}

/*
 * Never set, because there are no interrupts outside of a backend.
 */
volatile sig_atomic_t InterruptPending = false;

void
ProcessInterrupts(void)
{
	abort();
}

/*
 * Functions used only by the SQL functions, which are never called here.
 */
bool
errstart(int elevel, const char *domain)
{
	abort();
}

bool
errstart_cold(int elevel, const char *domain)
{
	abort();
}

void
errfinish(const char *file, int line, const char *function)
{
	abort();
}

int
errcode(int code)
{
	return 0;
}

int
errmsg(const char *format,...)
{
	return 0;
}

int
errmsg_internal(const char *format,...)
{
	return 0;
}

int
errdetail(const char *format,...)
{
	return 0;
}

int
errdetail_internal(const char *format,...)
{
	return 0;
}

struct varlena *
pg_detoast_datum(struct varlena *datum)
{
	abort();
}

struct varlena *
pg_detoast_datum_packed(struct varlena *datum)
{
	abort();
}

bool
array_contains_nulls(ArrayType *array)
{
	abort();
}
