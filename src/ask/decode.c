/*-------------------------------------------------------------------------
 *
 * decode.c
 *		Bytes to an array of real.
 *
 * Three encodings are read, told apart by how they begin, which is different
 * for each:
 *
 *	0x93 "NUMPY"	NumPy's .npy file (what links lead to), in npy.c
 *	"["				a JSON array of numbers, or of such arrays, in numbers.c
 *	else			base64 of big-endian IEEE floats of 4 bytes, in base64.c
 *
 * All of this is pure: what is made depends on the arguments alone.  The
 * decoders raise no error for what the payload holds, and allocate at most 4
 * bytes for each byte of it.  Where an element takes a while they can be
 * interrupted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ask.h"
#include "ask/vector.h"
#include "fmgr.h"

PG_FUNCTION_INFO_V1(hrflow_decode_vector);

/*
 * Decode a payload.  Returns a palloc'd array of real, of one dimension or
 * two; or NULL, and *problem as a sentence in ASCII.
 */
ArrayType *
hrflow_vector_decode(const char *payload, size_t length, char **problem)
{
	const char *start = hrflow_skip_space(payload, payload + length);

	*problem = NULL;
	if (start == payload + length)
	{
		*problem = pstrdup("It is empty.");
		return NULL;
	}
	if (hrflow_npy_recognize(payload, length))
		return hrflow_npy_decode(payload, length, problem);
	if (*start == '[')
		return hrflow_numbers_decode(payload, length, problem);
	return hrflow_base64_decode(payload, length, problem);
}

/*
 * hrflow_decode_vector(payload bytea) RETURNS real[]
 */
Datum
hrflow_decode_vector(PG_FUNCTION_ARGS)
{
	bytea	   *payload = PG_GETARG_BYTEA_PP(0);
	char	   *problem;
	ArrayType  *vector;

	vector = hrflow_vector_decode(VARDATA_ANY(payload),
								  VARSIZE_ANY_EXHDR(payload), &problem);
	if (vector == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("invalid vector"),
				 errdetail("%s", problem)));
	PG_RETURN_ARRAYTYPE_P(vector);
}
