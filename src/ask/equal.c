/*-------------------------------------------------------------------------
 *
 * equal.c
 *		Finds equal elements of a batch, so that each distinct element is
 *		requested only once.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/batch.h"
#include "miscadmin.h"
#include "utils/memutils.h"

typedef struct EqualEntry
{
	int			first;			/* first element of a set of equal elements;
								 * the hash key */
	int			last;			/* last element of the set so far */
	uint32		hash;
	char		status;
} EqualEntry;

static uint32
hash_element(const HrflowSource *source, int element)
{
	return source->methods->hash(source, element);
}

static bool
elements_equal(const HrflowSource *source, int a, int b)
{
	return source->methods->equal(source, a, b);
}

#define SH_PREFIX equal
#define SH_ELEMENT_TYPE EqualEntry
#define SH_KEY_TYPE int
#define SH_KEY first
#define SH_HASH_KEY(table, key) hash_element((HrflowSource *) (table)->private_data, key)
#define SH_EQUAL(table, a, b) elements_equal((HrflowSource *) (table)->private_data, a, b)
#define SH_STORE_HASH
#define SH_GET_HASH(table, entry) (entry)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/*
 * Find the equal elements of a source.  For 100,000 elements, this takes about
 * 20 ms, and the result takes 500 kB in the current memory context.
 */
void
hrflow_equal_find(HrflowEqualElements *elements, HrflowSource *source)
{
	int			n = source->nelements;
	equal_hash *table;

	if (source->methods->hash == NULL)
		return;
	elements->next = MemoryContextAllocHuge(CurrentMemoryContext,
											sizeof(int) * n);
	for (int i = 0; i < n; i++)
		elements->next[i] = -1;
	elements->is_repeated = palloc0(sizeof(bool) * n);
	table = equal_create(CurrentMemoryContext, 1024, source);

	for (int i = 0; i < n; i++)
	{
		bool		found;
		EqualEntry *entry = equal_insert(table, i, &found);

		if (i % 10000 == 0)
			CHECK_FOR_INTERRUPTS();
		if (found)
		{
			elements->next[entry->last] = i;
			elements->is_repeated[i] = true;
		}
		entry->last = i;
	}
	equal_destroy(table);
}

/*
 * Return the next element that is equal to this one, or -1 if there is none.
 */
int
hrflow_equal_next(const HrflowEqualElements *elements, int element)
{
	return elements->next == NULL ? -1 : elements->next[element];
}

/*
 * Is an earlier element equal to this one?
 */
bool
hrflow_equal_is_repeated(const HrflowEqualElements *elements, int element)
{
	return elements->is_repeated != NULL && elements->is_repeated[element];
}
