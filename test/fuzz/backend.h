/*
 * backend.h
 *		Functions of backend.c that PostgreSQL does not have.
 */
#ifndef BACKEND_H
#define BACKEND_H

#include <stddef.h>

/* Largest piece of memory requested since the last reset, in bytes. */
extern size_t backend_largest;

extern void backend_reset(void);

#endif							/* BACKEND_H */
