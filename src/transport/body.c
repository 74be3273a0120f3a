/*-------------------------------------------------------------------------
 *
 * body.c
 *		Receives the headers and the body of a reply, and decompresses the
 *		body.
 *
 * The memory for the bodies of all transfers of a backend is limited.  These
 * are libcurl's callbacks, so none of them may throw.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "transport/transfer.h"

/* Numbers of seconds above this are times since 1970. */
#define UNIX_TIME_MIN 1000000000

/*
 * Size of the buffers of all transfers, in bytes, and its maximum since
 * hrflow_body_most_buffered() was last called.
 */
static size_t buffered = 0;
static size_t most_buffered = 0;

/*
 * Free a transfer's buffer, because the body will have to be requested again,
 * possibly much later.  Does not throw.
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
 * Return the maximum size of all buffers since the last call.
 */
size_t
hrflow_body_most_buffered(void)
{
	size_t		most = most_buffered;

	most_buffered = buffered;
	return most;
}

/*
 * Enlarge a transfer's buffer to at least "size" bytes.
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

	if (!transfer->try.is_alone &&
		buffered - transfer->capacity + capacity >
		HRFLOW_MAX_BUFFERED + HRFLOW_KEEP_HANDLES * HRFLOW_KEEP_BUFFER)
	{
		/*
		 * Other transfers may free their buffers before the next attempt.
		 * Free ours at once for them to use.
		 */
		transfer->try.fault = HRFLOW_EXCEEDS_BUDGET;
		hrflow_body_drop(transfer);
		return false;
	}
	body = realloc(transfer->body, capacity);
	if (body == NULL)
	{
		transfer->try.fault = HRFLOW_NO_MEMORY;
		return false;
	}
	buffered += capacity - transfer->capacity;
	most_buffered = Max(most_buffered, buffered);
	transfer->body = body;
	transfer->capacity = capacity;
	return true;
}

/*
 * Append decompressed data to a body.
 */
static bool
add_to_body(void *arg, const char *data, size_t length)
{
	HrflowTransfer *transfer = arg;
	size_t		total = transfer->reply.length + length;

	if (total > transfer->transport->settings->max_response_size)
	{
		transfer->try.fault = HRFLOW_EXCEEDS_LIMIT;
		return false;
	}
	if (!enlarge_body(transfer, total + 1))
		return false;
	memcpy(transfer->body + transfer->reply.length, data, length);
	transfer->reply.length = total;
	return true;
}

/*
 * libcurl's callback for the data of a body.  The size before decompression is
 * limited too, because gzip allows any number of empty blocks.
 */
size_t
hrflow_body_on_data(char *data, size_t one, size_t length, void *arg)
{
	HrflowTransfer *transfer = arg;
	bool		good;

	if (transfer->try.fault != HRFLOW_NO_FAULT)
		return 0;
	transfer->try.body_bytes += length;
	if (transfer->try.body_bytes >
		transfer->transport->settings->max_response_size)
	{
		transfer->try.fault = HRFLOW_EXCEEDS_LIMIT;
		return 0;
	}
	if (!transfer->try.is_gzip)
		good = add_to_body(transfer, data, length);
	else
	{
		good = hrflow_gunzip_feed(transfer->gunzip, data, length, add_to_body,
								  transfer);
		if (!good && transfer->try.fault == HRFLOW_NO_FAULT)
			transfer->try.fault = HRFLOW_BAD_ENCODING;
	}
	return good ? length : 0;
}

/*
 * Evaluate the HTTP version in a reply's status line.  Returns false if the
 * reply cannot be attributed to this request.
 *
 * If HTTP/2 was offered, remember the version that the origin uses.  If an
 * origin has never answered over HTTP/2, and a request that failed over it is
 * answered when it is sent again over HTTP/1.1, use only HTTP/1.1 from then
 * on. It may be our retry or libcurl's: libcurl 8.22 falls back to HTTP/1.1 by
 * itself (071_http2_refused.pl).  Do the same for origins whose replies
 * libcurl mixes up.
 */
static bool
note_protocol(HrflowTransfer *transfer, char version)
{
	bool		is_ours = version == '2' || hrflow_sharing_check(transfer);
	bool		refuses;

	hrflow_poller_note_version(transfer->try.socket, version);
	if (!transfer->try.offers_http2 && !transfer->avoids_http2)
		return is_ours;
	refuses = hrflow_origin_protocol(transfer->url) == HRFLOW_PROTOCOL_UNKNOWN &&
		(transfer->avoids_http2 || transfer->try.nsent > 1);
	if (version == '2')
		hrflow_origin_note(transfer->url, HRFLOW_HTTP_2);
	else if (refuses || (!is_ours && transfer->try.offers_http2))
		hrflow_origin_note(transfer->url, HRFLOW_HTTP_1_1_ONLY);
	else if (transfer->try.offers_http2)
		hrflow_origin_note(transfer->url, HRFLOW_HTTP_1_1);
	return is_ours;
}

/*
 * Is this name in a list, ignoring case?
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
 * Take the first name from a list separated by commas.  Returns its length, or
 * -1 at the end of the list.
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
 * Parse the value of a Content-Encoding header.  Some values denote no
 * transformation, because object stores return whatever they were given when
 * the object was written.  Returns false if the encoding is not supported.
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
			!transfer->try.is_gzip)
			transfer->try.is_gzip = true;
		else if (!is_among(name, length, plain, lengthof(plain)))
			return false;
	}
	return true;
}

/*
 * Check the value of a Transfer-Encoding header.  Compression, which we do not
 * request, must be refused: libcurl 7.88 would decompress whatever it can, and
 * our limits of memory do not include what that takes.
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
 * is Transfer-Encoding, check it.
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
		transfer->try.fault = HRFLOW_BAD_ENCODING;
		return false;
	}
	if (content == NULL || !transfer->try.is_gzip)
		return true;
	if (transfer->gunzip == NULL)
		transfer->gunzip = hrflow_gunzip_create();
	else
		hrflow_gunzip_reset(transfer->gunzip);
	if (transfer->gunzip == NULL)
		transfer->try.fault = HRFLOW_NO_MEMORY;
	return transfer->gunzip != NULL;
}

/*
 * Return the number that is the value of a header line with this name, or with
 * X- before it; -1 if there is none.
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
 * Record how many requests the account may still send, and when it may send
 * others.  Some servers specify the latter as Unix time.
 */
static void
note_left(HrflowTransfer *transfer, const char *line, size_t length)
{
	int64		nleft = number_of_header(line, length, "RateLimit-Remaining:");
	int64		reset = number_of_header(line, length, "RateLimit-Reset:");

	if (nleft >= 0)
		transfer->try.nleft = nleft;
	if (reset > UNIX_TIME_MIN)
		reset = Max(reset - (int64) time(NULL), 0);
	if (reset >= 0)
		transfer->try.reset = reset;
}

/*
 * libcurl's callback for a header line.
 */
size_t
hrflow_body_on_header(char *data, size_t one, size_t length, void *arg)
{
	HrflowTransfer *transfer = arg;

	if (transfer->try.fault != HRFLOW_NO_FAULT)
		return 0;
	hrflow_transfer_advance(transfer, HRFLOW_RECEIVING);

	/*
	 * The headers end with an empty line.  If they are those of an interim
	 * response (HTTP 1xx), another status line follows.  Any other line that
	 * looks like one is a header or a trailer.
	 */
	if (!transfer->try.has_reply && length >= 6 && memcmp(data, "HTTP/", 5) == 0)
	{
		const char *space = memchr(data, ' ', length);

		transfer->try.headers_ended = false;
		transfer->try.is_gzip = false;
		transfer->try.nleft = -1;
		if (!note_protocol(transfer, data[5]))
			return 0;
		transfer->try.has_reply = space == NULL || space[1] != '1';
	}
	else if (length > 0 && (*data == '\r' || *data == '\n'))
		transfer->try.headers_ended = true;

	transfer->try.header_bytes += length;
	if (transfer->try.header_bytes > HRFLOW_MAX_HEADERS)
	{
		transfer->try.fault = HRFLOW_EXCEEDS_LIMIT;
		return 0;
	}
	if (transfer->try.headers_ended || !transfer->try.has_reply)
		return length;
	note_left(transfer, data, length);
	return note_encoding(transfer, data, length) ? length : 0;
}
