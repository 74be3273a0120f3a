/*-------------------------------------------------------------------------
 *
 * s3.c
 *		Interprets errors from object stores that implement the Amazon S3
 *		protocol.
 *
 * https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
 *
 * The body of an error is a small XML document with an element <Code>, which
 * is meant for programs.  Other elements may repeat parts of the request, such
 * as the signature of the link and the name of the object, so they must not be
 * shown.
 *
 * The functions in this file are pure: their results depend on their arguments
 * alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "ask/ask.h"
#include "ask/vector.h"

/*
 * Maximum length of a code.  One of the longest codes of Amazon S3,
 * ServerSideEncryptionConfigurationNotFoundError, has 46 characters.
 */
#define MAX_CODE 48

/* An error code that is more specific than the HTTP status. */
typedef struct CodeInfo
{
	const char *code;
	HrflowStatus status;
	bool		transient;
} CodeInfo;

static const CodeInfo known_codes[] = {
	/* The temporary credentials that signed the link have expired. */
	{.code = "ExpiredToken", .status = HRFLOW_LINK_EXPIRED},
	{.code = "NoSuchKey", .status = HRFLOW_NO_VECTOR},
	/* HTTP 404, like NoSuchKey, but not caused by a missing vector. */
	{.code = "NoSuchBucket", .status = HRFLOW_HTTP_ERROR},
	{.code = "SlowDown", .status = HRFLOW_RATE_LIMITED, .transient = true},
	/* Sent by MinIO. */
	{.code = "SlowDownRead", .status = HRFLOW_RATE_LIMITED, .transient = true},
	/* HTTP 400: the store closed an idle connection. */
	{.code = "RequestTimeout", .status = HRFLOW_TIMEOUT, .transient = true},
	/* HTTP 409, but a retry might succeed. */
	{.code = "OperationAborted", .status = HRFLOW_HTTP_ERROR, .transient = true}
};

/*
 * Find a string between "start" and "end".  Returns the position after it, or
 * NULL if it is not found.
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
 * Return the start of the content of the root element <Error>, or NULL if the
 * body is not a document with this root element.
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
 * Return the code of an error, palloc'd, or NULL if there is no valid code.  A
 * code consists of ASCII letters and digits, so it is valid in any server
 * encoding.
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
 * Was access denied because the link has expired?  No error code is specific
 * to this case.  Amazon S3 includes the time of expiry; other object stores,
 * such as MinIO, send only a message.
 */
static bool
has_expired(const char *error, const char *end)
{
	return find_after(error, end, "<Expires>") != NULL ||
		find_after(error, end, "<Message>Request has expired") != NULL;
}

/*
 * Interpret the body of an error from an object store.  Returns the error
 * code, palloc'd, or NULL if the body is not such an error.  If the body is
 * more specific than the HTTP status, sets *status, and corrects *transient
 * (whether a retry might succeed).
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
