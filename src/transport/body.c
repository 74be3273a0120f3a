/*-------------------------------------------------------------------------
 *
 * body.c
 *		Receives a reply: its headers, and its body, decompressed.
 *
 * The bodies of all requests in flight have a budget together.  Nothing here
 * throws, since these are libcurl's callbacks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/transfer.h"

/* Bytes of all transfers' bodies, and the most since it was asked for. */
static size_t buffered = 0;
static size_t most_buffered = 0;

/*
 * Give the memory of a transfer's body back: it will be asked for again, and
 * may have to wait long.  Does not throw.
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
 * The most bytes that bodies had at one time since this was called last.
 */
size_t
hrflow_body_most_buffered(void)
{
	size_t		most = most_buffered;

	most_buffered = buffered;
	return most;
}

/*
 * Make room for "size" bytes in a body.
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
		 * What others hold may be released before the next try.  They have
		 * this one's room at once.
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
 * Add to a body what was received, decompressed.
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
 * libcurl's callback for what it receives of a body.  That is limited too,
 * since gzip has blocks that hold nothing.
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
 * A reply's status line tells what the origin speaks, if HTTP/2 was offered.
 *
 * An origin that never answered over HTTP/2, and does over HTTP/1.1 when the
 * request is sent again, is asked over HTTP/1.1 from then on.  That is our next
 * try, or libcurl's own: libcurl 8.22 falls back to HTTP/1.1 by itself
 * (071_http2_refused.pl).  So is an origin with which libcurl mixes replies up.
 */
static bool
note_protocol(HrflowTransfer *transfer, char version)
{
	bool		is_ours = version == '2' || hrflow_sharing_check(transfer);
	bool		refuses;

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
 * Is this one of a list of names?
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
 * Read a Content-Encoding's names.  Some denote no transformation: object
 * stores give back what they were told when the object was written.
 */
static bool
read_encoding(HrflowTransfer *transfer, const char *names, size_t length)
{
	static const char *const compressed[] = {"gzip", "x-gzip"};
	static const char *const plain[] = {"identity", "aws-chunked", "none", ""};
	const char *end = names + length;

	while (names < end)
	{
		const char *comma = memchr(names, ',', end - names);
		const char *last = comma != NULL ? comma : end;
		const char *next = last + 1;

		while (names < last && strchr(" \t\r\n", *names) != NULL)
			names++;
		while (last > names && strchr(" \t\r\n", last[-1]) != NULL)
			last--;
		if (is_among(names, last - names, compressed, lengthof(compressed)) &&
			!transfer->try.is_gzip)
			transfer->try.is_gzip = true;
		else if (!is_among(names, last - names, plain, lengthof(plain)))
			return false;
		names = next;
	}
	return true;
}

/*
 * Prepare for the body that a header announces.
 */
static bool
note_encoding(HrflowTransfer *transfer, const char *line, size_t length)
{
	static const char name[] = "Content-Encoding:";

	if (length < strlen(name) || pg_strncasecmp(line, name, strlen(name)) != 0)
		return true;
	if (!read_encoding(transfer, line + strlen(name), length - strlen(name)))
	{
		transfer->try.fault = HRFLOW_BAD_ENCODING;
		return false;
	}
	if (!transfer->try.is_gzip)
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
 * libcurl's callback for a line of a reply's headers.
 */
size_t
hrflow_body_on_header(char *data, size_t one, size_t length, void *arg)
{
	HrflowTransfer *transfer = arg;

	if (transfer->try.fault != HRFLOW_NO_FAULT)
		return 0;
	hrflow_transfer_advance(transfer, HRFLOW_RECEIVING);

	/* An empty line ends them, unless it ends those of an HTTP 100. */
	if (length >= 6 && memcmp(data, "HTTP/", 5) == 0)
	{
		const char *space = memchr(data, ' ', length);

		transfer->try.headers_ended = false;
		transfer->try.is_gzip = false;
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
	if (!transfer->try.headers_ended && !note_encoding(transfer, data, length))
		return 0;
	return length;
}
