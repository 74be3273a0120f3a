/*-------------------------------------------------------------------------
 *
 * toast.c
 *		Vectors that are stored out of line, read one after the other.
 *
 * A vector of more than about 500 dimensions is stored out of line, in chunks
 * of about 2 kB, and most of the time of an exact search is spent fetching the
 * chunks: for each value PostgreSQL opens and locks the TOAST
 * table and its index, and descends the index from its root.
 *
 * Rows that were written one after the other have their chunks next to each
 * other, in the TOAST table and in its index.  So we keep one index scan, and
 * go on from where the last value ended, passing over the entries of a few
 * other values without reading their chunks.  If the wanted value is further
 * away, the scan starts again from the index's root, and returns this value
 * alone: a scan that is to go on reads all of a page of the index at once.
 *
 * Whatever is not as expected here (a value that is compressed or in memory, a
 * table of another access method, a missing chunk) is left to PostgreSQL, which
 * raises the error if there is one.
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
 * Maximum distance of two values between which a scan goes on.  A store has a
 * few vectors of each profile, which were written together, and a search reads
 * one of them.
 */
#define MAX_PASSED 16

/*
 * A TOAST table that is read.
 */
struct HrflowToast
{
	MemoryContext context;		/* holds all of this */
	Oid			relid;			/* of the TOAST table; InvalidOid: none yet */
	bool		is_heap;		/* does it have the layout we know? */
	Relation	relation;
	Relation   *indexes;
	int			nindexes;
	SnapshotData snapshot;
	IndexScanDesc scan;
	bool		goes_on;		/* does the scan go on to later values? */
	Oid			at;				/* the value of its last entry */
	TupleTableSlot *slot;		/* the chunk that was read last */
	struct varlena *value;		/* the value that was read last */
	Size		size;			/* allocated */
};

/*
 * Begin to read values, in the current memory context.  Nothing is opened yet.
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
 * Close what was opened.  After an error the resource owner does.
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
 * Go on to the index's entry of this chunk.  Returns false if it is not there.
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
 * Go on to this chunk.  Returns its bytes, or NULL.
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
 * Find the first chunk of a value: from where the last one ended, or from the
 * index's root.
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
 * Copy the chunks of a value of "length" bytes.
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
 * Return a value in one piece: valid until the next call, or in the current
 * memory context.
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

	/* An index scan allocates some of its memory when it needs it. */
	old = MemoryContextSwitchTo(toast->context);
	is_whole = copy_chunks(toast, external.va_valueid, length);
	MemoryContextSwitchTo(old);
	if (!is_whole)
		return PG_DETOAST_DATUM(datum);
	SET_VARSIZE(toast->value, length + VARHDRSZ);
	return toast->value;
}
