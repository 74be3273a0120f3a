/*
 * fuzz_s3.c
 *		Fuzzer for the XML in which object stores report errors.
 *
 * The input is the body of an error, which need not be terminated.
 */
#include "postgres.h"

#include <stdlib.h>

#include "backend.h"
#include "ask/ask.h"
#include "ask/vector.h"

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The result for a body. */
typedef struct Error
{
	char	   *code;
	HrflowStatus status;
	bool		transient;
} Error;

/*
 * Interpret prefix, body and suffix, in memory that ends with them.
 */
static Error
read_error(const char *prefix, const char *body, size_t size,
		   const char *suffix)
{
	size_t		before = strlen(prefix);
	size_t		after = strlen(suffix);
	char	   *copy = malloc(before + size + after);
	Error		error = {.status = HRFLOW_OK,.transient = size % 2 == 0};

	if (before + size + after > 0)
	{
		memcpy(copy, prefix, before);
		memcpy(copy + before, body, size);
		memcpy(copy + before + size, suffix, after);
	}
	error.code = hrflow_s3_read_error(copy, before + size + after,
									  &error.status, &error.transient);
	free(copy);
	return error;
}

static bool
are_equal(Error a, Error b)
{
	return (a.code == NULL) == (b.code == NULL) &&
		(a.code == NULL || strcmp(a.code, b.code) == 0) &&
		a.status == b.status && a.transient == b.transient;
}

/*
 * Does the body contain a text?
 */
static bool
contains(const char *body, size_t size, const char *text)
{
	for (size_t i = 0; i + strlen(text) <= size; i++)
	{
		if (memcmp(body + i, text, strlen(text)) == 0)
			return true;
	}
	return false;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *body = (const char *) data;
	Error		error = read_error("", body, size, "");
	Error		longer;

	if (error.code == NULL)
	{
		/* Nothing may be concluded from a body that is not an error. */
		if (error.status != HRFLOW_OK || error.transient != (size % 2 == 0))
			abort();
	}
	else
	{
		/* The code is shown to users, so it must be harmless. */
		if (*error.code == '\0' || strlen(error.code) > 48 ||
			strspn(error.code, "abcdefghijklmnopqrstuvwxyz"
				   "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != strlen(error.code))
			abort();
		if (!contains(body, size, psprintf("<Code>%s</Code>", error.code)) ||
			!contains(body, size, "<Error"))
			abort();
		if (error.status == HRFLOW_LINK_EXPIRED &&
			strcmp(error.code, "ExpiredToken") != 0 &&
			strcmp(error.code, "AccessDenied") != 0)
			abort();

		/* The code is the first one, whatever follows. */
		longer = read_error("", body, size, "<Code>NoSuchKey</Code>");
		if (longer.code == NULL || strcmp(longer.code, error.code) != 0)
			abort();
	}

	/* What may precede the root element makes no difference. */
	if (size < 3 || memcmp(body, "\xEF\xBB\xBF", 3) != 0)
	{
		if (!are_equal(error, read_error("\xEF\xBB\xBF", body, size, "")) ||
			!are_equal(error, read_error(" <?xml version=\"1.0\"?>\r\n", body, size, "")))
			abort();
	}
	/* In any other element, the same body is not an error. */
	if (read_error("<html>", body, size, "").code != NULL)
		abort();
	backend_reset();
	return 0;
}
