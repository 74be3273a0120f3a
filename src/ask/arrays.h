/*-------------------------------------------------------------------------
 *
 * arrays.h
 *		Batch sources whose elements come from the array arguments of a SQL
 *		function.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_ARRAYS_H
#define HRFLOW_ARRAYS_H

#include "postgres.h"

#include "ask/batch.h"
#include "fmgr.h"

/* Maximum number of arrays that describe an element. */
#define HRFLOW_MAX_ARRAYS 3

/*
 * An array of text or jsonb, with one element for each element of the batch.
 */
typedef struct HrflowArray
{
	const char *name;			/* name of one element, for messages */
	Datum	   *values;			/* NULL if no array was passed */
	bool	   *nulls;
} HrflowArray;

/*
 * A source whose elements are described by one or more arrays.
 */
typedef struct HrflowArraySource
{
	HrflowSource base;
	HrflowArray arrays[HRFLOW_MAX_ARRAYS];	/* ids, references and e-mail
											 * addresses of profiles; or a
											 * single array of links, texts or
											 * items */
	int			narrays;

	/* For profiles: */
	const char *source_id;		/* in UTF-8, or NULL if no element can be
								 * requested */
	const char *bad_source_id;	/* if source_id is NULL, a whole sentence that
								 * says why no element can be requested */
	Jsonb	   *fields;			/* "fields" parameter, or NULL to omit it */
	const char *fields_text;	/* "fields" as JSON text in UTF-8 */

	/* For documents: the type of all items. */
	const char *item_type;

	/* For texts and documents: the URL to POST to, which the caller sets. */
	const char *post_url;
} HrflowArraySource;

static inline bool
hrflow_array_is_null(const HrflowArray *array, int element)
{
	return array->values == NULL || array->nulls[element];
}

/* in arrays.c */
extern void hrflow_arrays_take_profiles(HrflowArraySource *source,
										FunctionCallInfo fcinfo);
extern void hrflow_arrays_take_links(HrflowArraySource *source,
									 FunctionCallInfo fcinfo);
extern void hrflow_arrays_take_texts(HrflowArraySource *source,
									 FunctionCallInfo fcinfo);
extern void hrflow_arrays_take_documents(HrflowArraySource *source,
										 FunctionCallInfo fcinfo);

#endif							/* HRFLOW_ARRAYS_H */
