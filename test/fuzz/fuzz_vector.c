/*
 * fuzz_vector.c
 *		Fuzzer for the decoders of vectors: they must not crash, the memory
 *		that they allocate must be in proportion to the payload, and numbers in
 *		JSON must be the same as strtof() returns.
 */
#include "postgres.h"

#include <math.h>
#include <stdlib.h>

#include "backend.h"
#include "ask/ask.h"

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/*
 * Compare an array with the numbers in JSON as read by strtof().
 */
static void
check_json(const char *text, size_t size, ArrayType *array)
{
	const float4 *element = (const float4 *) ARR_DATA_PTR(array);
	char	   *copy = pnstrdup(text, size);
	char	   *p = copy;

	for (;;)
	{
		float4		value;

		p += strspn(p, "[], \n\t\r");
		if (*p == '\0')
			break;
		value = strtof(p, &p);
		if (memcmp(&value, element++, sizeof(value)) != 0)
			abort();
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	HrflowBadVector bad;
	ArrayType  *array;

	array = hrflow_decode_payload((const char *) data, size, size % 3, &bad);

	/* At most one real per byte, and twice as much while an array grows. */
	if (backend_largest > 8 * size + 4096)
		abort();
	if ((array == NULL) != (bad.detail != NULL))
		abort();
	if (array != NULL)
	{
		int			n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));

		if (n < 1 || VARSIZE(array) != ARR_OVERHEAD_NONULLS(ARR_NDIM(array)) +
			n * sizeof(float4))
			abort();
		for (int i = 0; i < n; i++)
		{
			if (!isfinite(((float4 *) ARR_DATA_PTR(array))[i]))
				abort();
		}
		if (data[strspn((const char *) pnstrdup((const char *) data, size),
						" \n\t\r")] == '[')
			check_json((const char *) data, size, array);
	}
	backend_reset();
	return 0;
}
