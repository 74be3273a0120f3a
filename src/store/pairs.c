/*-------------------------------------------------------------------------
 *
 * pairs.c
 *		Implements hrflow_match_all(), which finds, for each vector in a
 *		section of a store, the nearest profiles of another store, or of the
 *		same store.
 *
 * The first store is read in blocks, and for each block the second store is
 * read once.  The vectors of the second store are collected in tiles, which
 * are usually small enough for the second-level cache of the processor, and
 * compared with the block.  This comparison uses single precision, which
 * suffices to find the pairs that may be among the best.  For these pairs, the
 * similarity is then computed in the same way as in hrflow_match().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "compat.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "store/match.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(hrflow_match_all);

/* Argument numbers of hrflow_match_all(). */
enum
{
	ARG_ALL_STORE,
	ARG_ALL_OTHERS,
	ARG_ALL_K,
	ARG_ALL_SECTION,
	ARG_ALL_OTHER_SECTION
};

/*
 * Maximum estimated size of a block, including its best matches, in bytes.  It
 * is chosen to keep the memory of a call, including the tile and the
 * executor's memory, below 64 MB.
 */
#define MAX_BLOCK_SIZE (40 * 1024 * 1024)

/*
 * Maximum number of dimensions of a vector.  Vectors with more dimensions are
 * ignored, because a tile and a chunk of them could make a call use more than
 * 64 MB.
 */
#define MAX_DIMENSION 65536

/*
 * Maximum number of matches per vector.  The number is limited because adding
 * a match requires a linear search through the vector's other matches.
 */
#define MAX_ALL_K 1000

/* Estimated size of a match's source and identifier, in bytes. */
#define NAMES_SIZE 160

/* Number of vectors of the block that are compared with the tile at a time. */
#define CHUNK_ROWS (2 * HRFLOW_PRODUCTS_ROWS)

/*
 * Maximum number of vectors in a tile.  With 1,024 elements per vector, a tile
 * and CHUNK_ROWS vectors of the block take 400 kB together, so that they fit
 * into the second-level cache of most processors.
 */
#define TILE_ROWS (6 * HRFLOW_PRODUCTS_ROWS)

/*
 * Maximum size of a tile, including its vectors in double precision, in bytes.
 * For long vectors, it reduces the number of vectors in a tile.
 */
#define MAX_TILE_SIZE (10 * 1024 * 1024)

StaticAssertDecl(MAX_TILE_SIZE >= (sizeof(float4) + sizeof(double)) *
				 MAX_DIMENSION * HRFLOW_PRODUCTS_ROWS,
				 "MAX_TILE_SIZE must allow for HRFLOW_PRODUCTS_ROWS vectors");

/*
 * ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------
 */

/*
 * Statement that returns the first $2 vectors of section $1, in the order of
 * their keys.
 */
static const char first_page_sql[] =
"SELECT v.source_id, v.%I, v.section, v.item, v.vector FROM %V AS v"
" WHERE v.section = $1"
" ORDER BY v.source_id, v.%I, v.item LIMIT $2";

/*
 * Statement that returns the $2 vectors of section $1 that follow the key ($3,
 * $4, $5), in the order of their keys.
 */
static const char next_page_sql[] =
"SELECT v.source_id, v.%I, v.section, v.item, v.vector FROM %V AS v"
" WHERE v.section = $1 AND (v.source_id, v.%I, v.item) > ($3, $4, $5)"
" ORDER BY v.source_id, v.%I, v.item LIMIT $2";

/* Statement that returns all vectors of section $1. */
static const char others_sql[] =
"SELECT v.source_id, v.%I, v.section, v.item, v.vector FROM %V AS v"
" WHERE v.section = $1";

/*
 * ------------------------------------------------------------------------
 * Data structures
 * ------------------------------------------------------------------------
 */

/*
 * The key of a vector.
 */
typedef struct Key
{
	char	   *source_id;
	char	   *identifier;
	int			item;
} Key;

/*
 * A vector of the second store that is among the best matches of at least one
 * vector of the block, or that is in the tile and has been found to be a
 * possible match.  It is freed when the last reference is released.
 */
typedef struct Other
{
	int			nrefs;
	int			item;
	uint32		hash;			/* hash of source_id and identifier */

	/* Both strings are allocated together with this struct. */
	char	   *source_id;
	char	   *identifier;
} Other;

typedef struct Pair
{
	double		similarity;
	Other	   *other;
} Pair;

/*
 * A vector of the block, and its best matches so far.
 */
typedef struct Row
{
	Key			key;
	double		norm;
	float4		limit;			/* a vector of the second store, scaled to
								 * length 1, is a possible match if its scalar
								 * product with this vector is at least
								 * "limit" */
	int			n;				/* number of matches */
	Pair	   *pairs;			/* matches, best first, at most one per
								 * profile */
} Row;

/*
 * A vector of the tile.
 */
typedef struct TileRow
{
	Key			key;
	float4		inverse;		/* 1 / length */
	double	   *elements;		/* vector in double precision, or NULL until
								 * it is needed */
	double		norm;
	Other	   *other;			/* NULL until the vector is a possible match
								 * of a vector in the block */
} TileRow;

typedef struct Pairing
{
	FunctionCallInfo fcinfo;
	Oid			store;
	Oid			others;
	char	   *section;
	char	   *other_section;
	int			k;
	bool		is_same;		/* are both stores the same?  If so, a profile
								 * must not match itself */
	bool		has_rows;		/* was any match returned? */

	List	   *dimensions;		/* dimensions found in the first store so far */
	int			dimension;		/* dimension that is being compared */
	int			width;			/* number of elements per row, including
								 * padding */
	double		margin;			/* upper bound on the error of a similarity
								 * that is computed in single precision */

	/* The block. */
	MemoryContext context;		/* memory context of the block and its matches */
	HrflowLayout layout;		/* vector layout of the store that is being
								 * read */
	HrflowToast *toast;			/* reader of the store's TOASTed vectors */
	int			nrows;
	int			max_rows;		/* a multiple of CHUNK_ROWS */
	Row		   *rows;
	float4	   *elements;

	/* Key of the last row that was read from the first store. */
	MemoryContext key_context;
	Key			last;
	bool		has_last;
	int64		nread;			/* number of rows read for the block,
								 * including rows that cannot be compared */
	bool		has_warned;		/* was there a WARNING about vectors with more
								 * than MAX_DIMENSION dimensions? */

	/* The tile. */
	MemoryContext tile_context; /* memory context of the keys in the tile;
								 * reset after each tile */
	int			ntile;
	int			max_tile;		/* a multiple of HRFLOW_PRODUCTS_ROWS */
	TileRow		tile[TILE_ROWS];
	float4	   *tile_elements;
	float4		products[CHUNK_ROWS * TILE_ROWS];
} Pairing;

static uint32
hash_names(const Key *key)
{
	return hash_combine(hash_bytes((const unsigned char *) key->source_id,
								   strlen(key->source_id)),
						hash_bytes((const unsigned char *) key->identifier,
								   strlen(key->identifier)));
}

static Other *
make_other(MemoryContext context, const Key *key)
{
	int			source_size = strlen(key->source_id) + 1;
	int			identifier_size = strlen(key->identifier) + 1;
	Other	   *other = MemoryContextAlloc(context, sizeof(Other) +
										   source_size + identifier_size);

	other->nrefs = 0;
	other->item = key->item;
	other->hash = hash_names(key);
	other->source_id = (char *) (other + 1);
	other->identifier = other->source_id + source_size;
	memcpy(other->source_id, key->source_id, source_size);
	memcpy(other->identifier, key->identifier, identifier_size);
	return other;
}

static void
release_other(Other *other)
{
	if (--other->nrefs == 0)
		pfree(other);
}

static bool
is_of_profile(const Other *other, const Other *another)
{
	return other->hash == another->hash &&
		strcmp(other->source_id, another->source_id) == 0 &&
		strcmp(other->identifier, another->identifier) == 0;
}

/*
 * Add a match to the k best matches of a row, if it is one of them.  The match
 * replaces a worse match with the same profile or, if there already are k
 * matches, the worst match.
 */
static void
keep_pair(Pairing *pairing, Row *row, double similarity, Other *other)
{
	int			at = 0;
	int			gap;

	for (gap = 0; gap < row->n; gap++)
	{
		if (is_of_profile(row->pairs[gap].other, other))
			break;
	}
	if (gap < row->n && row->pairs[gap].similarity >= similarity)
		return;
	if (gap == row->n && row->n == pairing->k)
	{
		gap--;
		if (row->pairs[gap].similarity >= similarity)
			return;
	}
	if (gap < row->n)
		release_other(row->pairs[gap].other);
	else
		row->n++;
	while (at < gap && row->pairs[at].similarity >= similarity)
		at++;
	memmove(&row->pairs[at + 1], &row->pairs[at], sizeof(Pair) * (gap - at));
	row->pairs[at].similarity = similarity;
	row->pairs[at].other = other;
	other->nrefs++;
	if (row->n == pairing->k)
		row->limit = (row->pairs[row->n - 1].similarity - pairing->margin) *
			row->norm;
}

/*
 * ------------------------------------------------------------------------
 * Comparing
 * ------------------------------------------------------------------------
 */

/*
 * Compute the exact similarity of a row and a possible match, and keep the
 * match if it is among the k best of the row.  A profile never matches itself.
 */
static void
look_at_pair(Pairing *pairing, Row *row, const float4 *elements,
			 TileRow *other, const float4 *other_elements)
{
	double		similarity;
	double		norms;

	if (pairing->is_same &&
		strcmp(row->key.source_id, other->key.source_id) == 0 &&
		strcmp(row->key.identifier, other->key.identifier) == 0)
		return;
	if (other->elements == NULL)
		other->elements = hrflow_similarity_prepare(other_elements,
													pairing->dimension,
													&other->norm);
	if (!hrflow_similarity_compare(elements, HRFLOW_REAL, other->elements,
								   pairing->dimension, other->norm,
								   &similarity, &norms))
		return;
	if (other->other == NULL)
	{
		/* Count the reference that the tile holds. */
		other->other = make_other(pairing->context, &other->key);
		other->other->nrefs = 1;
	}
	keep_pair(pairing, row, similarity, other->other);
}

/*
 * Compare the tile with the block, and empty the tile.
 */
static void
compare_tile(Pairing *pairing)
{
	int			width = pairing->width;
	int			ntile;
	MemoryContext old;

	if (pairing->ntile == 0)
		return;
	ntile = (pairing->ntile + HRFLOW_PRODUCTS_ROWS - 1) /
		HRFLOW_PRODUCTS_ROWS * HRFLOW_PRODUCTS_ROWS;
	memset(pairing->tile_elements + (size_t) pairing->ntile * width, 0,
		   sizeof(float4) * width * (ntile - pairing->ntile));
	old = MemoryContextSwitchTo(pairing->tile_context);
	for (int first = 0; first < pairing->nrows; first += CHUNK_ROWS)
	{
		float4	   *chunk = pairing->elements + (size_t) first * width;
		int			n = Min(CHUNK_ROWS, pairing->nrows - first);

		CHECK_FOR_INTERRUPTS();
		hrflow_products(chunk, CHUNK_ROWS, pairing->tile_elements, ntile,
						width, pairing->products);
		for (int i = 0; i < n; i++)
		{
			Row		   *row = &pairing->rows[first + i];
			const float4 *products = pairing->products + i * ntile;

			for (int j = 0; j < pairing->ntile; j++)
			{
				if (unlikely(products[j] * pairing->tile[j].inverse >= row->limit))
					look_at_pair(pairing, row, chunk + (size_t) i * width,
								 &pairing->tile[j],
								 pairing->tile_elements + (size_t) j * width);
			}
		}
	}
	for (int j = 0; j < pairing->ntile; j++)
	{
		if (pairing->tile[j].other != NULL)
			release_other(pairing->tile[j].other);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(pairing->tile_context);
	pairing->ntile = 0;
}

/*
 * ------------------------------------------------------------------------
 * Reading
 * ------------------------------------------------------------------------
 */

/*
 * Copy the key of a match into the current memory context.
 */
static void
copy_key(Key *key, const HrflowMatch *match)
{
	key->source_id = pstrdup(match->source_id);
	key->identifier = pstrdup(match->identifier);
	key->item = match->item;
}

/*
 * Is a stored value larger than a vector with MAX_DIMENSION dimensions?  If
 * so, warn, but only once per call of hrflow_match_all().
 */
static bool
is_too_large(Pairing *pairing, Datum value)
{
	if (toast_raw_datum_size(value) <=
		ARR_OVERHEAD_NONULLS(1) + sizeof(float4) * MAX_DIMENSION)
		return false;
	if (!pairing->has_warned)
		ereport(WARNING,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("ignoring vectors with more than %d dimensions",
						MAX_DIMENSION)));
	pairing->has_warned = true;
	return true;
}

/*
 * Read the vector in a result row, scale it, and store it in "elements", which
 * is a row of the block or the tile.  Returns false if the value is null, not
 * a vector, or too large, or if the vector does not have the dimension that is
 * being compared, or has no similarity with any vector.  Sets *n to the
 * dimension of the vector, or to 0 in the first three cases, and, before it
 * returns true, *norm to the length of the scaled vector.
 */
static bool
read_vector(Pairing *pairing, const TupleTableSlot *slot, float4 *elements,
			double *norm, int *n)
{
	const struct varlena *value;
	const void *stored;

	*n = 0;
	if (slot->tts_isnull[4] || is_too_large(pairing, slot->tts_values[4]))
		return false;
	hrflow_prefetch_next((struct varlena *) DatumGetPointer(slot->tts_values[4]));
	value = hrflow_toast_read(pairing->toast, slot->tts_values[4]);
	stored = hrflow_layout_read(pairing->layout, value, n);
	if (*n == 0 || *n != pairing->dimension ||
		!hrflow_similarity_scale(stored,
								 pairing->layout == HRFLOW_LAYOUT_HALFVEC ?
								 HRFLOW_HALF : HRFLOW_REAL, *n, elements, norm))
		return false;
	memset(elements + *n, 0, sizeof(float4) * (pairing->width - *n));
	return true;
}

/*
 * Set the dimension to be compared and the maximum numbers of rows of a block
 * and of a tile, and let the next block begin with the first vector.
 */
static void
set_dimension(Pairing *pairing, int dimension)
{
	int			width = (dimension + HRFLOW_PRODUCTS_STEP - 1) /
	HRFLOW_PRODUCTS_STEP * HRFLOW_PRODUCTS_STEP;
	Size		row_size = sizeof(Row) + NAMES_SIZE + sizeof(float4) * width +
	pairing->k * (sizeof(Pair) + sizeof(Other) + NAMES_SIZE);

	pairing->dimension = dimension;
	pairing->width = width;

	/*
	 * Use twice the error bound given in products.c, to cover other rounding
	 * errors.
	 */
	pairing->margin = (width + 16) * ldexp(1, -23);
	pairing->max_rows = Max(MAX_BLOCK_SIZE / row_size / CHUNK_ROWS, 1) *
		CHUNK_ROWS;
	pairing->max_tile = Min(MAX_TILE_SIZE /
							((sizeof(float4) + sizeof(double)) * width) /
							HRFLOW_PRODUCTS_ROWS * HRFLOW_PRODUCTS_ROWS,
							TILE_ROWS);
	pairing->has_last = false;
}

/*
 * HrflowTake callback: add a vector of the first store to the block if it can
 * be compared or, if it has another dimension, record that dimension.
 */
static bool
take_row_of_block(void *arg, TupleTableSlot *slot)
{
	Pairing    *pairing = arg;
	Row		   *row = &pairing->rows[pairing->nrows];
	HrflowMatch match;
	MemoryContext old;
	int			n;

	hrflow_stream_read(slot, &match);
	MemoryContextReset(pairing->key_context);
	old = MemoryContextSwitchTo(pairing->key_context);
	copy_key(&pairing->last, &match);
	pairing->has_last = true;
	pairing->nread++;
	MemoryContextSwitchTo(old);
	if (read_vector(pairing, slot, pairing->elements +
					(size_t) pairing->nrows * pairing->width, &row->norm, &n))
	{
		MemoryContextSwitchTo(pairing->context);
		copy_key(&row->key, &match);
		row->limit = -FLT_MAX;
		row->pairs = palloc(sizeof(Pair) * pairing->k);
		pairing->nrows++;
	}
	else if (n > 0 && n != pairing->dimension)
	{
		MemoryContextSwitchTo(GetMemoryChunkContext(pairing));
		pairing->dimensions = list_append_unique_int(pairing->dimensions, n);
	}
	MemoryContextSwitchTo(old);
	return true;
}

/*
 * HrflowTake callback: add a vector of the second store to the tile if it can
 * be compared, and compare the tile when it is full.
 */
static bool
take_row_of_tile(void *arg, TupleTableSlot *slot)
{
	Pairing    *pairing = arg;
	TileRow    *row = &pairing->tile[pairing->ntile];
	HrflowMatch match;
	MemoryContext old;
	double		norm;
	int			n;

	if (!read_vector(pairing, slot, pairing->tile_elements +
					 (size_t) pairing->ntile * pairing->width, &norm, &n))
		return true;
	hrflow_stream_read(slot, &match);
	old = MemoryContextSwitchTo(pairing->tile_context);
	memset(row, 0, sizeof(TileRow));
	copy_key(&row->key, &match);
	row->inverse = 1 / norm;
	MemoryContextSwitchTo(old);
	if (++pairing->ntile == pairing->max_tile)
		compare_tile(pairing);
	return true;
}

/*
 * Read vectors of a section of a store, and pass them to take(): the vectors
 * of the next block if "is_block", or else all vectors.  Each call opens the
 * store, which checks the privileges of the caller.
 */
static void
read_store(Pairing *pairing, Oid relid, char *section, bool is_block,
		   HrflowTake take)
{
	HrflowStore store;
	HrflowParameters parameters = {0};
	const char *template = others_sql;

	SPI_connect();
	hrflow_store_open(&store, relid, InvalidOid, HRFLOW_STORE_RANK);
	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(hrflow_kind_section(store.kind,
															 section)));
	if (is_block)
	{
		template = pairing->has_last ? next_page_sql : first_page_sql;
		hrflow_store_add(&parameters, INT8OID,
						 Int64GetDatum(pairing->max_rows));
	}
	if (template == next_page_sql)
	{
		const Key  *last = &pairing->last;

		hrflow_store_add(&parameters, TEXTOID,
						 CStringGetTextDatum(last->source_id));
		hrflow_store_add(&parameters, TEXTOID,
						 CStringGetTextDatum(last->identifier));
		hrflow_store_add(&parameters, INT4OID, Int32GetDatum(last->item));
	}
	pairing->layout = store.layout;
	pairing->toast = hrflow_toast_begin();
	hrflow_stream(hrflow_store_sql(&store, template), &parameters, InvalidOid,
				  false, take, pairing);
	hrflow_toast_end(pairing->toast);
	hrflow_store_close(&store);
	SPI_finish();
}

/*
 * Read the next block.
 */
static void
read_block(Pairing *pairing)
{
	MemoryContextReset(pairing->context);
	pairing->rows = MemoryContextAllocZero(pairing->context,
										   sizeof(Row) * pairing->max_rows);
	pairing->elements =
		MemoryContextAllocHuge(pairing->context, sizeof(float4) *
							   pairing->width * pairing->max_rows);
	pairing->tile_elements =
		MemoryContextAllocHuge(pairing->context, sizeof(float4) *
							   pairing->width * pairing->max_tile);
	pairing->nrows = 0;
	pairing->nread = 0;
	read_store(pairing, pairing->store, pairing->section, true,
			   take_row_of_block);

	/* Fill up the last chunk with zeroes. */
	memset(pairing->elements + (size_t) pairing->nrows * pairing->width, 0,
		   sizeof(float4) * pairing->width *
		   Min(CHUNK_ROWS, pairing->max_rows - pairing->nrows));
}

/*
 * ------------------------------------------------------------------------
 * The SQL function
 * ------------------------------------------------------------------------
 */

/*
 * Return the best matches of the block as rows.
 */
static void
put_pairs(Pairing *pairing)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) pairing->fcinfo->resultinfo;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "hrflow_embed rows",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	for (int i = 0; i < pairing->nrows; i++)
	{
		const Row  *row = &pairing->rows[i];
		Datum		values[7];
		bool		nulls[7] = {false};

		CHECK_FOR_INTERRUPTS();
		values[0] = CStringGetTextDatum(row->key.source_id);
		values[1] = CStringGetTextDatum(row->key.identifier);
		values[2] = Int32GetDatum(row->key.item);
		for (int j = 0; j < row->n; j++)
		{
			const Pair *pair = &row->pairs[j];

			values[3] = CStringGetTextDatum(pair->other->source_id);
			values[4] = CStringGetTextDatum(pair->other->identifier);
			values[5] = Int32GetDatum(pair->other->item);
			values[6] = Float8GetDatum(pair->similarity);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
								 nulls);
			pairing->has_rows = true;
		}
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/*
 * Return the dimension of an arbitrary vector in the requested section of the
 * first store, or 0 if the section has no vector.
 */
static int
find_dimension(const Pairing *pairing)
{
	HrflowStore store;
	int			dimension;

	SPI_connect();
	hrflow_store_open(&store, pairing->store, InvalidOid, HRFLOW_STORE_RANK);
	dimension = hrflow_index_dimension(&store,
									   hrflow_kind_section(store.kind,
														   pairing->section));
	hrflow_store_close(&store);
	SPI_finish();
	return dimension;
}

/*
 * Check that a table is a store that the caller may rank.  read_store() checks
 * this, too, but is not called for the second store if the first one has no
 * vectors to compare.
 */
static void
check_store(Oid relid)
{
	HrflowStore store;

	SPI_connect();
	hrflow_store_open(&store, relid, InvalidOid, HRFLOW_STORE_RANK);
	hrflow_store_close(&store);
	SPI_finish();
}

/*
 * hrflow_match_all(store regclass, others regclass, k int, section text,
 *					other_section text)
 *		RETURNS TABLE (source_id text, profile_id text, item int,
 *					   other_source_id text, other_profile_id text,
 *					   other_item int, similarity double precision)
 */
Datum
hrflow_match_all(PG_FUNCTION_ARGS)
{
	Pairing    *pairing = palloc0(sizeof(Pairing));
	int			dimension;

	InitMaterializedSRF(fcinfo, 0);
	pairing->fcinfo = fcinfo;
	pairing->store = PG_GETARG_OID(ARG_ALL_STORE);
	pairing->others = PG_GETARG_OID(ARG_ALL_OTHERS);
	pairing->k = PG_GETARG_INT32(ARG_ALL_K);
	if (pairing->k < 1 || pairing->k > MAX_ALL_K)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be between 1 and %d",
						"k", MAX_ALL_K)));
	pairing->section = text_to_cstring(PG_GETARG_TEXT_PP(ARG_ALL_SECTION));
	pairing->other_section =
		text_to_cstring(PG_GETARG_TEXT_PP(ARG_ALL_OTHER_SECTION));
	pairing->is_same = pairing->store == pairing->others;
	pairing->context = AllocSetContextCreate(CurrentMemoryContext,
											 "hrflow_embed block",
											 ALLOCSET_DEFAULT_SIZES);
	pairing->key_context = AllocSetContextCreate(CurrentMemoryContext,
												 "hrflow_embed key",
												 ALLOCSET_SMALL_SIZES);
	pairing->tile_context = AllocSetContextCreate(CurrentMemoryContext,
												  "hrflow_embed tile",
												  ALLOCSET_DEFAULT_SIZES);

	/*
	 * Begin with the dimension of some vector of the first store, but at most
	 * MAX_DIMENSION.  Reading a block appends other dimensions to the list,
	 * and vectors with those dimensions are compared in later iterations.  If
	 * the vector found here is too large to be compared, the first iteration
	 * still finds the dimensions of the store's other vectors.
	 */
	dimension = find_dimension(pairing);
	check_store(pairing->others);
	if (dimension > 0)
		pairing->dimensions = list_make1_int(Min(dimension, MAX_DIMENSION));
	for (int i = 0; i < list_length(pairing->dimensions); i++)
	{
		set_dimension(pairing, list_nth_int(pairing->dimensions, i));
		do
		{
			read_block(pairing);
			if (pairing->nrows == 0)
				continue;
			read_store(pairing, pairing->others, pairing->other_section,
					   false, take_row_of_tile);
			compare_tile(pairing);
			put_pairs(pairing);
		} while (pairing->nread == pairing->max_rows);
	}
	if (!pairing->has_rows)
	{
		SPI_connect();
		hrflow_match_warn(pairing->store, pairing->section, 0);
		if (!pairing->is_same ||
			strcmp(pairing->section, pairing->other_section) != 0)
			hrflow_match_warn(pairing->others, pairing->other_section,
							  pairing->has_warned ||
							  list_length(pairing->dimensions) > 1 ? 0 : dimension);
		SPI_finish();
	}
	MemoryContextDelete(pairing->tile_context);
	MemoryContextDelete(pairing->key_context);
	MemoryContextDelete(pairing->context);
	return (Datum) 0;
}
