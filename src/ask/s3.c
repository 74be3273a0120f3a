/*-------------------------------------------------------------------------
 *
 * s3.c
 *		Errors of an object store that speaks the protocol of Amazon S3.
 *
 * https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
 *
 * The body of an error is a small XML document.  Its <Code> is for programs.
 * Everything else may repeat what was signed, such as the link's signature and
 * the name of the object, so none of it is ever shown.
 *
 * Pure: the results depend on the arguments alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ask.h"
#include "ask/vector.h"

/* Longer than any code of S3's; the longest has 33 characters. */
#define MAX_CODE 48

/* What a code means where the HTTP status does not tell. */
typedef struct CodeInfo
{
	const char *code;
	HrflowStatus status;
	bool		transient;
} CodeInfo;

static const CodeInfo known_codes[] = {
	/* The credentials that signed the link have expired, and it with them. */
	{.code = "ExpiredToken", .status = HRFLOW_LINK_EXPIRED},
	{.code = "NoSuchKey", .status = HRFLOW_NO_VECTOR},
	/* Also HTTP 404, but no vector is missing there. */
	{.code = "NoSuchBucket", .status = HRFLOW_HTTP_ERROR},
	{.code = "SlowDown", .status = HRFLOW_RATE_LIMITED, .transient = true},
	/* MinIO's */
	{.code = "SlowDownRead", .status = HRFLOW_RATE_LIMITED, .transient = true},
	/* HTTP 400: the store has closed a connection that was idle. */
	{.code = "RequestTimeout", .status = HRFLOW_TIMEOUT, .transient = true},
	/* HTTP 409 */
	{.code = "OperationAborted", .status = HRFLOW_HTTP_ERROR, .transient = true}
};

/*
 * Find a string in bytes.  Returns where it ends, or NULL.
 */
static const char *
find_after(const char *start, const char *end, const char *string)
{
	size_t		length = strlen(string);

	for (const char *p = start; end - p >= (ssize_t) length; p++)
	{
		if (memcmp(p, string, length) == 0)
			return p + length;
	}
	return NULL;
}

/*
 * Where the content of the root element <Error> begins, or NULL when the body
 * is something else.
 */
static const char *
find_error(const char *body, const char *end)
{
	const char *p = body;

	if (end - p >= 3 && memcmp(p, "\xEF\xBB\xBF", 3) == 0)
		p += 3;
	for (;;)
	{
		while (p < end &&
			   (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n'))
			p++;
		if (end - p < 2 || p[0] != '<' || p[1] != '?')
			break;
		p = find_after(p, end, "?>");
		if (p == NULL)
			return NULL;
	}
	if (end - p < 7 || memcmp(p, "<Error", 6) != 0 ||
		(p[6] != '>' && p[6] != ' '))
		return NULL;
	return find_after(p, end, ">");
}

static inline bool
is_code_character(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
		hrflow_is_digit(c);
}

/*
 * The code of an error, palloc'd, or NULL.  It is valid in any server encoding:
 * what has other characters than letters and digits of ASCII is no code.
 */
static char *
read_code(const char *error, const char *end)
{
	const char *code = find_after(error, end, "<Code>");
	int			length = 0;

	if (code == NULL)
		return NULL;
	while (code + length < end && length < MAX_CODE &&
		   is_code_character(code[length]))
		length++;
	if (length == 0 || end - code - length < 7 ||
		memcmp(code + length, "</Code>", 7) != 0)
		return NULL;
	return pnstrdup(code, length);
}

/*
 * Was access denied because the link has expired?  There is no code for that.
 * Amazon's S3 adds the time when it did; others, such as MinIO, only a message.
 */
static bool
has_expired(const char *error, const char *end)
{
	return find_after(error, end, "<Expires>") != NULL ||
		find_after(error, end, "<Message>Request has expired") != NULL;
}

/*
 * Read an error of an object store.  Returns its code, palloc'd, or NULL when
 * the body is no such error.  Sets *status to what the code means, and
 * *transient to whether another try may do better; or leaves both alone where
 * the HTTP status decides.
 */
char *
hrflow_s3_read_error(const char *body, size_t length, HrflowStatus *status,
					 bool *transient)
{
	const char *end = body + length;
	const char *error = find_error(body, end);
	char	   *code = error != NULL ? read_code(error, end) : NULL;

	if (code == NULL)
		return NULL;
	if (strcmp(code, "AccessDenied") == 0 && has_expired(error, end))
		*status = HRFLOW_LINK_EXPIRED;
	for (int i = 0; i < lengthof(known_codes); i++)
	{
		if (strcmp(code, known_codes[i].code) != 0)
			continue;
		*status = known_codes[i].status;
		*transient = known_codes[i].transient;
	}
	return code;
}
