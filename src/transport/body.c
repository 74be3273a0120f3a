/*-------------------------------------------------------------------------
 *
 * body.c
 *		Receives the headers and the body of a reply, and decompresses the
 *		body.
 *
 * The total memory for the bodies of a backend's transfers is limited.
 * Nothing here throws, since this is called from libcurl's callbacks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "transport/transfer.h"

/* A RateLimit-Reset above this is a Unix time, not a number of seconds. */
#define UNIX_TIME_MIN 1000000000

/* Total size of the buffers of all transfers, in bytes. */
static size_t buffered = 0;

/* Maximum of "buffered" since the last call of hrflow_body_most_buffered(). */
static size_t most_buffered = 0;

/*
 * Free a transfer's buffer, and any body in it.  Does not throw.
 */
void
hrflow_body_drop(HrflowTransfer *transfer)
{
	buffered -= transfer->capacity;
	free(transfer->body);
	transfer->body = NULL;
	transfer->capacity = 0;
	transfer->reply.body = "";
	transfer->reply.length = 0;
}

/*
 * Return the maximum total size of the buffers since the last call.
 */
size_t
hrflow_body_most_buffered(void)
{
	size_t		most = most_buffered;

	most_buffered = buffered;
	return most;
}

/*
 * Enlarge a transfer's buffer to at least "size" bytes.  Returns false, with
 * the fault set, if that is not possible.  The limit for all buffers together
 * does not apply to a request that is alone, which would otherwise never
 * succeed.
 */
static bool
enlarge_body(HrflowTransfer *transfer, size_t size)
{
	size_t		capacity = Max(transfer->capacity, 4096);
	char	   *body;

	if (size <= transfer->capacity)
		return true;
	while (capacity < size)
		capacity *= 2;
	capacity = Min(capacity,
				   transfer->transport->settings->max_response_size + 1);

	if (!transfer->attempt.is_alone &&
		buffered - transfer->capacity + capacity >
		HRFLOW_MAX_BUFFERED + HRFLOW_KEEP_HANDLES * HRFLOW_KEEP_BUFFER)
	{
		/*
		 * The next attempt may have enough memory, when other transfers have
		 * freed their buffers.  Free this buffer at once, so that they can
		 * use the memory.
		 */
		transfer->attempt.fault = HRFLOW_EXCEEDS_BUDGET;
		hrflow_body_drop(transfer);
		return false;
	}
	body = realloc(transfer->body, capacity);
	if (body == NULL)
	{
		transfer->attempt.fault = HRFLOW_NO_MEMORY;
		return false;
	}
	buffered += capacity - transfer->capacity;
	most_buffered = Max(most_buffered, buffered);
	transfer->body = body;
	transfer->capacity = capacity;
	return true;
}

/*
 * Append uncompressed data to a body.  Returns false, with the fault set, if
 * that is not possible.
 */
static bool
add_to_body(void *arg, const char *data, size_t length)
{
	HrflowTransfer *transfer = arg;
	size_t		total = transfer->reply.length + length;

	if (total > transfer->transport->settings->max_response_size)
	{
		transfer->attempt.fault = HRFLOW_EXCEEDS_LIMIT;
		return false;
	}
	if (!enlarge_body(transfer, total + 1))
		return false;
	memcpy(transfer->body + transfer->reply.length, data, length);
	transfer->reply.length = total;
	return true;
}

/*
 * libcurl callback that receives a part of the body of a reply.  The size
 * before decompression is limited too, because gzip allows any number of empty
 * blocks.
 */
size_t
hrflow_body_on_data(char *data, size_t one, size_t length, void *arg)
{
	HrflowTransfer *transfer = arg;
	bool		no_memory = false;
	bool		good;

	if (transfer->attempt.fault != HRFLOW_NO_FAULT)
		return 0;
	transfer->attempt.body_bytes += length;
	if (transfer->attempt.body_bytes >
		transfer->transport->settings->max_response_size)
	{
		transfer->attempt.fault = HRFLOW_EXCEEDS_LIMIT;
		return 0;
	}
	if (!transfer->attempt.is_gzip)
		good = add_to_body(transfer, data, length);
	else
	{
		good = hrflow_gunzip_feed(transfer->gunzip, data, length, add_to_body,
								  transfer, &no_memory);
		if (!good && transfer->attempt.fault == HRFLOW_NO_FAULT)
			transfer->attempt.fault = no_memory ? HRFLOW_NO_MEMORY :
				HRFLOW_BAD_ENCODING;
	}
	return good ? length : 0;
}

/*
 * Evaluate the HTTP version in a reply's status line.  Returns false if the
 * reply cannot be attributed to this request.
 *
 * If HTTP/2 was offered, remember the version that the origin uses.  If a
 * request that failed over HTTP/2 gets a reply when it is resent over
 * HTTP/1.1, use only HTTP/1.1 with the origin for some time.  The request may
 * have been resent by us or by libcurl, since libcurl falls back to HTTP/1.1
 * by itself in some cases (071_http2_refused.pl).  Also use only HTTP/1.1 if
 * libcurl has mixed up an origin's replies.
 */
static bool
note_protocol(HrflowTransfer *transfer, char version)
{
	bool		is_ours = version == '2' || hrflow_sharing_check(transfer);
	bool		refuses;

	hrflow_poller_note_version(transfer->attempt.socket, version);
	if (!transfer->attempt.offers_http2 && !transfer->avoids_http2)
		return is_ours;
	refuses = hrflow_origin_protocol(transfer->url) != HRFLOW_HTTP_1_1 &&
		(transfer->avoids_http2 || transfer->attempt.nsent > 1);
	if (version == '2')
		hrflow_origin_note(transfer->url, HRFLOW_HTTP_2);
	else if (!is_ours && transfer->attempt.offers_http2)
		hrflow_origin_note(transfer->url, HRFLOW_HTTP_1_1_ONLY);
	else if (refuses)
		hrflow_origin_note_refusal(transfer->url);
	else if (transfer->attempt.offers_http2)
		hrflow_origin_note(transfer->url, HRFLOW_HTTP_1_1);
	return is_ours;
}

/*
 * Is a name in a list?  Case is ignored.
 */
static bool
is_among(const char *name, size_t length, const char *const names[], int n)
{
	for (int i = 0; i < n; i++)
	{
		if (strlen(names[i]) == length &&
			pg_strncasecmp(names[i], name, length) == 0)
			return true;
	}
	return false;
}

/*
 * Take the first name from a comma-separated list, and advance *list past it.
 * Returns its length, or -1 at the end of the list.
 */
static int
take_name(const char **list, const char *end, const char **name)
{
	const char *comma;
	const char *last;

	if (*list >= end)
		return -1;
	comma = memchr(*list, ',', end - *list);
	last = comma != NULL ? comma : end;
	*name = *list;
	*list = last + 1;
	while (*name < last && strchr(" \t\r\n", **name) != NULL)
		(*name)++;
	while (last > *name && strchr(" \t\r\n", last[-1]) != NULL)
		last--;
	return last - *name;
}

/*
 * Parse the value of a Content-Encoding header.  Object stores return whatever
 * value they were given when the object was written, so accept values that
 * denote no transformation.  Returns false if the encoding is not supported,
 * or if the body is compressed twice.
 */
static bool
read_encoding(HrflowTransfer *transfer, const char *value, const char *end)
{
	static const char *const compressed[] = {"gzip", "x-gzip"};
	static const char *const plain[] = {"identity", "aws-chunked", "none", ""};
	const char *name;
	int			length;

	while ((length = take_name(&value, end, &name)) >= 0)
	{
		if (is_among(name, length, compressed, lengthof(compressed)) &&
			!transfer->attempt.is_gzip)
			transfer->attempt.is_gzip = true;
		else if (!is_among(name, length, plain, lengthof(plain)))
			return false;
	}
	return true;
}

/*
 * Check the value of a Transfer-Encoding header.  Compression is refused,
 * since we do not request it: before 8.1.0 (curl pull request 10899), libcurl
 * would decompress the body, and our memory limits do not include the memory
 * that this takes.
 */
static bool
is_framing(const char *value, const char *end)
{
	static const char *const framing[] = {"chunked", "identity", ""};
	const char *name;
	int			length;

	while ((length = take_name(&value, end, &name)) >= 0)
	{
		if (!is_among(name, length, framing, lengthof(framing)))
			return false;
	}
	return true;
}

/*
 * If a header line has this name, return its value, else NULL.
 */
static const char *
value_of_header(const char *line, size_t length, const char *name)
{
	return length >= strlen(name) &&
		pg_strncasecmp(line, name, strlen(name)) == 0 ?
		line + strlen(name) : NULL;
}

/*
 * If this header line is Content-Encoding, prepare to decode the body; if it
 * is Transfer-Encoding, check it.  Returns false, with the fault set, if the
 * body cannot be decoded.
 */
static bool
note_encoding(HrflowTransfer *transfer, const char *line, size_t length)
{
	const char *end = line + length;
	const char *content = value_of_header(line, length, "Content-Encoding:");
	const char *framing = value_of_header(line, length, "Transfer-Encoding:");

	if ((content != NULL && !read_encoding(transfer, content, end)) ||
		(framing != NULL && !is_framing(framing, end)))
	{
		transfer->attempt.fault = HRFLOW_BAD_ENCODING;
		return false;
	}
	if (content == NULL || !transfer->attempt.is_gzip)
		return true;
	if (transfer->gunzip == NULL)
		transfer->gunzip = hrflow_gunzip_create();
	else
		hrflow_gunzip_reset(transfer->gunzip);
	if (transfer->gunzip == NULL)
		transfer->attempt.fault = HRFLOW_NO_MEMORY;
	return transfer->gunzip != NULL;
}

/*
 * If a header line has this name, optionally preceded by "X-", and its value
 * begins with a number that is not too large, return the number, else -1.
 */
static int64
number_of_header(const char *line, size_t length, const char *name)
{
	const char *end = line + length;
	int64		number = 0;

	if (length > 2 && pg_strncasecmp(line, "X-", 2) == 0)
		line += 2;
	if (end - line <= strlen(name) ||
		pg_strncasecmp(line, name, strlen(name)) != 0)
		return -1;
	line += strlen(name);
	while (line < end && *line == ' ')
		line++;
	if (line == end || *line < '0' || *line > '9')
		return -1;
	for (; line < end && *line >= '0' && *line <= '9'; line++)
	{
		if (number > PG_INT32_MAX)
			return -1;
		number = 10 * number + (*line - '0');
	}
	return number;
}

/*
 * If this header line says how many requests the account may still send, or
 * when it may send more, record that.  Some servers specify the time as a Unix
 * time instead of a number of seconds.
 */
static void
note_left(HrflowTransfer *transfer, const char *line, size_t length)
{
	int64		nleft = number_of_header(line, length, "RateLimit-Remaining:");
	int64		reset = number_of_header(line, length, "RateLimit-Reset:");

	if (nleft >= 0)
		transfer->attempt.nleft = nleft;
	if (reset > UNIX_TIME_MIN)
		reset = Max(reset - (int64) time(NULL), 0);
	if (reset >= 0)
		transfer->attempt.reset = reset;
}

/*
 * libcurl callback that receives a header line of a reply.
 */
size_t
hrflow_body_on_header(char *data, size_t one, size_t length, void *arg)
{
	HrflowTransfer *transfer = arg;

	if (transfer->attempt.fault != HRFLOW_NO_FAULT)
		return 0;
	hrflow_transfer_advance(transfer, HRFLOW_RECEIVING);

	/*
	 * The headers end with an empty line.  Only after the headers of an
	 * interim response (HTTP 1xx) does another status line follow.  Any other
	 * line that looks like a status line is a header or a trailer.
	 */
	if (!transfer->attempt.has_reply && length >= 6 && memcmp(data, "HTTP/", 5) == 0)
	{
		const char *space = memchr(data, ' ', length);

		transfer->attempt.headers_ended = false;
		transfer->attempt.is_gzip = false;
		transfer->attempt.nleft = -1;
		transfer->attempt.reset = 0;
		if (!note_protocol(transfer, data[5]))
			return 0;
		transfer->attempt.has_reply = space == NULL || space[1] != '1';
	}
	else if (length > 0 && (*data == '\r' || *data == '\n'))
		transfer->attempt.headers_ended = true;

	transfer->attempt.header_bytes += length;
	if (transfer->attempt.header_bytes > HRFLOW_MAX_HEADERS)
	{
		transfer->attempt.fault = HRFLOW_EXCEEDS_LIMIT;
		return 0;
	}
	if (transfer->attempt.headers_ended || !transfer->attempt.has_reply)
		return length;
	note_left(transfer, data, length);
	return note_encoding(transfer, data, length) ? length : 0;
}
