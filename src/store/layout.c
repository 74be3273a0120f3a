/*-------------------------------------------------------------------------
 *
 * layout.c
 *		Identifies the layout of stored vectors (real[], or pgvector's vector
 *		or halfvec), and reads them.
 *
 * Apart from the format of the elements, no other file depends on pgvector's
 * layout.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "compat.h"
#include "store/store.h"
#include "utils/array.h"
#include "utils/builtins.h"

/*
 * The layout of pgvector's vector, unchanged since pgvector 0.1, and of its
 * halfvec, unchanged since 0.7 (src/vector.h and src/halfvec.h of pgvector).
 */
typedef struct PgVector
{
	int32		vl_len_;
	int16		dimension;
	int16		unused;			/* zero */
	char		elements[FLEXIBLE_ARRAY_MEMBER];
} PgVector;

/*
 * Find the layout in which a type stores vectors: real[], or pgvector's vector
 * or halfvec.  Returns false for any other type.
 */
bool
hrflow_layout_find(Oid type, HrflowLayout *layout)
{
	Oid			extension;
	char	   *name;

	*layout = HRFLOW_LAYOUT_ARRAY;
	if (type == FLOAT4ARRAYOID)
		return true;
	extension = getExtensionOfObject(TypeRelationId, type);
	if (!OidIsValid(extension) ||
		extension != get_extension_oid("vector", true))
		return false;
	name = format_type_extended(type, -1, FORMAT_TYPE_FORCE_QUALIFY);
	name = strrchr(name, '.');
	if (name == NULL)
		return false;			/* the schema has been dropped concurrently */
	*layout = strcmp(name, ".halfvec") == 0 ? HRFLOW_LAYOUT_HALFVEC :
		HRFLOW_LAYOUT_VECTOR;
	return strcmp(name, ".vector") == 0 || strcmp(name, ".halfvec") == 0;
}

/*
 * Return a pointer to the elements of a detoasted vector, and set *n to their
 * number.  For an array that is not a vector, because it is not
 * one-dimensional or contains nulls, *n is set to 0.
 *
 * Throws XX001 if a pgvector value has an unknown layout.
 */
const void *
hrflow_layout_read(HrflowLayout layout, const struct varlena *value, int *n)
{
	const PgVector *vector = (const PgVector *) value;
	const ArrayType *array = (const ArrayType *) value;
	Size		width = layout == HRFLOW_LAYOUT_HALFVEC ? sizeof(uint16) :
	sizeof(float4);

	if (layout == HRFLOW_LAYOUT_ARRAY)
	{
		*n = ARR_NDIM(array) != 1 || array_contains_nulls(unconstify(ArrayType *, array)) ?
			0 : ARR_DIMS(array)[0];
		return ARR_DATA_PTR(array);
	}
	if (VARSIZE(value) < offsetof(PgVector, elements) ||
		vector->unused != 0 || vector->dimension < 1 ||
		VARSIZE(value) != offsetof(PgVector, elements) + vector->dimension * width)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("pgvector value has an unrecognized layout"),
				 errhint("Use a version of hrflow_embed that supports this version of pgvector.")));
	*n = vector->dimension;
	return vector->elements;
}
