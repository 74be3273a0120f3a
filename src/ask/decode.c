/*-------------------------------------------------------------------------
 *
 * decode.c
 *		Decodes vectors.
 *
 * Three encodings are supported, and recognized by their first bytes or, in
 * the case of JSON, by the first byte that is not whitespace:
 *
 * 	0x93 "NUMPY"	NumPy's .npy format, used for links; see npy.c
 * 	"["				JSON array (or array of arrays) of numbers; see numbers.c
 * 	else			base64 of big-endian 4-byte IEEE floats; see base64.c
 *
 * The decoders are pure: their results depend on their arguments alone.  They
 * do not raise errors about the content of the payload, but can be canceled
 * and can run out of memory.  At any time, they have allocated less than 8
 * bytes for each byte of the payload, apart from a small constant.  Loops
 * check for interrupts unless they take only a few nanoseconds for each
 * element or byte.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ask.h"
#include "ask/vector.h"
#include "fmgr.h"

PG_FUNCTION_INFO_V1(hrflow_decode_vector);

/*
 * Decode a payload.  Returns a palloc'd array of real with one or two
 * dimensions, or NULL with *bad set.
 *
 * "dimension" is the number of elements of each vector in a base64 payload,
 * which does not describe its shape; 0 means that the payload is a single
 * vector.
 */
ArrayType *
hrflow_decode_payload(const char *payload, size_t length, int dimension,
					  HrflowBadVector *bad)
{
	const char *start = hrflow_skip_space(payload, payload + length);

	*bad = (HrflowBadVector)
	{
		.sqlerrcode = ERRCODE_INVALID_BINARY_REPRESENTATION
	};
	if (start == payload + length)
	{
		bad->detail = pstrdup("The payload is empty.");
		return NULL;
	}
	if (hrflow_npy_recognize(payload, length))
		return hrflow_npy_decode(payload, length, bad);
	if (*start == '[')
		return hrflow_numbers_decode(payload, length, bad);
	return hrflow_base64_decode(payload, length, dimension, bad);
}

/*
 * hrflow_decode_vector(payload bytea) RETURNS real[]
 */
Datum
hrflow_decode_vector(PG_FUNCTION_ARGS)
{
	bytea	   *payload = PG_GETARG_BYTEA_PP(0);
	HrflowBadVector bad;
	ArrayType  *vector;

	vector = hrflow_decode_payload(VARDATA_ANY(payload),
								   VARSIZE_ANY_EXHDR(payload), 0, &bad);
	if (vector == NULL)
		ereport(ERROR,
				(errcode(bad.sqlerrcode),
				 errmsg("invalid vector"),
				 errdetail_internal("%s", bad.detail)));
	PG_RETURN_ARRAYTYPE_P(vector);
}
