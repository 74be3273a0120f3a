/*-------------------------------------------------------------------------
 *
 * toast.c
 *		Reads vectors that are stored out of line, one after the other, faster
 *		than PostgreSQL's detoasting code.
 *
 * A vector of more than about 2 kB, or 500 elements of type real, is stored
 * out of line, in chunks of that size, and an exact search spends most of its
 * time fetching the chunks: for each value, PostgreSQL opens and locks the
 * TOAST table and its index, and descends the index from its root.
 *
 * Rows that were written one after the other usually have adjacent chunks, in
 * the TOAST table and in its index.  So we keep an index scan open, and
 * continue it from the end of the last value, skipping the entries of a few
 * other values without reading their chunks.  If the wanted value is farther
 * away, we restart the scan at the index's root, for this value only, because
 * a scan without an upper bound always reads a whole index page.
 *
 * We leave everything unexpected (a value that is compressed or in memory, a
 * table of another access method, a missing chunk) to PostgreSQL's detoasting
 * code, which throws an error if necessary.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/heaptoast.h"
#include "access/skey.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/toast_internals.h"
#include "catalog/pg_am.h"
#include "compat.h"
#include "store/match.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"

/*
 * Maximum difference between the OIDs of two values at which the scan
 * continues from one value to the other, rather than restarting at the root of
 * the index.  A profile has a few vectors, which were written together and
 * thus have similar OIDs, and a search usually reads only some of them.
 */
#define MAX_PASSED 16

/*
 * State of a reader of TOASTed values.
 */
struct HrflowToast
{
	MemoryContext context;		/* memory context of this struct and its data */
	Oid			relid;			/* OID of the TOAST table; InvalidOid if none
								 * is open */
	bool		is_heap;		/* is the access method of the TOAST table
								 * heap? */
	Relation	relation;
	Relation   *indexes;
	int			nindexes;
	SnapshotData snapshot;
	IndexScanDesc scan;
	bool		goes_on;		/* can the scan continue to later values? */
	Oid			at;				/* value OID in the index entry that was read
								 * last */
	TupleTableSlot *slot;		/* last chunk */
	struct varlena *value;		/* buffer for values */
	Size		size;			/* allocated size of "value" */
};

/*
 * Create a reader of TOASTed values in the current memory context.  Does not
 * open a table yet.
 */
HrflowToast *
hrflow_toast_begin(void)
{
	HrflowToast *toast = palloc0(sizeof(HrflowToast));

	toast->context = CurrentMemoryContext;
	return toast;
}

static void
close_table(HrflowToast *toast)
{
	if (toast->scan != NULL)
	{
		index_endscan(toast->scan);
		ExecDropSingleTupleTableSlot(toast->slot);
		toast->scan = NULL;
	}
	if (OidIsValid(toast->relid))
	{
		toast_close_indexes(toast->indexes, toast->nindexes, AccessShareLock);
		table_close(toast->relation, AccessShareLock);
		toast->relid = InvalidOid;
	}
}

/*
 * Close the table, and free the reader.  After an error, the resource owner
 * closes the table.
 */
void
hrflow_toast_end(HrflowToast *toast)
{
	close_table(toast);
	if (toast->value != NULL)
		pfree(toast->value);
	pfree(toast);
}

static void
open_table(HrflowToast *toast, Oid relid)
{
	MemoryContext old = MemoryContextSwitchTo(toast->context);
	int			valid;

	close_table(toast);
	toast->relation = table_open(relid, AccessShareLock);
	valid = toast_open_indexes(toast->relation, AccessShareLock,
							   &toast->indexes, &toast->nindexes);
	toast->relid = relid;
	toast->is_heap = toast->relation->rd_rel->relam == HEAP_TABLE_AM_OID;
	toast->goes_on = false;
	toast->at = InvalidOid;
	if (toast->is_heap)
	{
		toast->slot = table_slot_create(toast->relation, NULL);
		toast->scan =
			hrflow_compat_begin_index_scan(toast->relation,
										   toast->indexes[valid],
										   hrflow_compat_toast_snapshot(&toast->snapshot),
										   1);
		toast->scan->xs_want_itup = true;
	}
	MemoryContextSwitchTo(old);
}

/*
 * Advance the scan to the index entry of a chunk.  Returns false if the scan
 * finds no such entry.
 */
static bool
find_entry(HrflowToast *toast, Oid value, int number)
{
	IndexScanDesc scan = toast->scan;

	while (index_getnext_tid(scan, ForwardScanDirection) != NULL)
	{
		bool		is_null;
		int			at_number;

		toast->at = DatumGetObjectId(index_getattr(scan->xs_itup, 1,
												   scan->xs_itupdesc,
												   &is_null));
		at_number = DatumGetInt32(index_getattr(scan->xs_itup, 2,
												scan->xs_itupdesc, &is_null));
		if (toast->at == value && at_number == number)
			return true;
		if (toast->at >= value)
			return false;
	}
	toast->goes_on = false;
	return false;
}

/*
 * Advance the scan to a visible chunk.  Returns its data, which is valid until
 * the next call, or NULL if the chunk was not found or is not as expected.
 */
static struct varlena *
read_chunk(HrflowToast *toast, Oid value, int number)
{
	TupleTableSlot *slot = toast->slot;
	struct varlena *chunk;

	do
	{
		if (!find_entry(toast, value, number))
			return NULL;
	} while (!index_fetch_heap(toast->scan, slot));
	slot_getsomeattrs(slot, 3);
	if (slot->tts_isnull[2])
		return NULL;
	chunk = (struct varlena *) DatumGetPointer(slot->tts_values[2]);
	return VARATT_IS_EXTENDED(chunk) && !VARATT_IS_SHORT(chunk) ? NULL : chunk;
}

/*
 * Return the first chunk of a value, or NULL if it was not found.  If the
 * value is near, first continue the scan; if that does not find the chunk,
 * descend the index from its root.
 */
static struct varlena *
find_value(HrflowToast *toast, Oid value)
{
	bool		is_near = value > toast->at && value - toast->at <= MAX_PASSED;
	struct varlena *chunk = NULL;
	ScanKeyData key;

	if (is_near && toast->goes_on)
		chunk = read_chunk(toast, value, 0);
	if (chunk != NULL)
		return chunk;
	ScanKeyInit(&key, (AttrNumber) 1,
				is_near ? BTGreaterEqualStrategyNumber : BTEqualStrategyNumber,
				is_near ? F_OIDGE : F_OIDEQ, ObjectIdGetDatum(value));
	index_rescan(toast->scan, &key, 1, NULL, 0);
	toast->goes_on = is_near;
	return read_chunk(toast, value, 0);
}

/*
 * Copy the chunks of a value of "length" bytes into the buffer.  Returns false
 * if a chunk is missing or has an unexpected size.
 */
static bool
copy_chunks(HrflowToast *toast, Oid value, Size length)
{
	char	   *to = VARDATA(toast->value);
	char	   *end = to + length;
	struct varlena *chunk = find_value(toast, value);

	for (int number = 1; chunk != NULL; number++)
	{
		Size		n = VARSIZE_ANY_EXHDR(chunk);

		if (n != Min(TOAST_MAX_CHUNK_SIZE, end - to))
			return false;
		hrflow_prefetch_next(chunk);
		memcpy(to, VARDATA_ANY(chunk), n);
		to += n;
		if (to == end)
			return true;
		chunk = read_chunk(toast, value, number);
	}
	return false;
}

/*
 * Return a detoasted value, which the caller must not free.  The value is in
 * the reader's buffer, where it is valid until the next call, or in the
 * current memory context, or it is the datum itself, if that need not be
 * detoasted.
 */
struct varlena *
hrflow_toast_read(HrflowToast *toast, Datum datum)
{
	struct varlena *stored = (struct varlena *) DatumGetPointer(datum);
	struct varatt_external external;
	Size		length;
	MemoryContext old;
	bool		is_whole;

	if (!VARATT_IS_EXTERNAL_ONDISK(stored))
		return PG_DETOAST_DATUM(datum);
	VARATT_EXTERNAL_GET_POINTER(external, stored);
	length = VARATT_EXTERNAL_GET_EXTSIZE(external);
	if (VARATT_EXTERNAL_IS_COMPRESSED(external) || length == 0)
		return PG_DETOAST_DATUM(datum);

	if (external.va_toastrelid != toast->relid)
		open_table(toast, external.va_toastrelid);
	if (!toast->is_heap)
		return PG_DETOAST_DATUM(datum);
	if (toast->size < length + VARHDRSZ)
	{
		if (toast->value != NULL)
			pfree(toast->value);
		toast->value = NULL;
		toast->size = 0;
		toast->value = MemoryContextAlloc(toast->context, length + VARHDRSZ);
		toast->size = length + VARHDRSZ;
	}

	/*
	 * The memory that index scans allocate on demand must live as long as the
	 * reader.
	 */
	old = MemoryContextSwitchTo(toast->context);
	is_whole = copy_chunks(toast, external.va_valueid, length);
	MemoryContextSwitchTo(old);
	if (!is_whole)
		return PG_DETOAST_DATUM(datum);
	SET_VARSIZE(toast->value, length + VARHDRSZ);
	return toast->value;
}
