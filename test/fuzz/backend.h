/*
 * backend.h
 *		What backend.c has beside PostgreSQL's own functions.
 */
#ifndef BACKEND_H
#define BACKEND_H

#include <stddef.h>

/* The largest piece asked for since the last reset, in bytes. */
extern size_t backend_largest;

extern void backend_reset(void);

#endif							/* BACKEND_H */
