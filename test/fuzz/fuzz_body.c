/*
 * fuzz_body.c
 *		Fuzzer for the callbacks that receive the headers and the body of a
 *		reply.
 *
 * The input consists of three bytes of options, header lines up to an
 * empty line, and the body.  Depending on the options, the body is repeated and
 * compressed, interim responses precede the headers, and the headers are
 * repeated as trailers.
 */
#include "postgres.h"

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <time.h>
#include <zlib.h>

#include "pieces.h"
#include "transport/transfer.h"

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The time that the functions see. */
#define NOW 1767225600

/* Limit for the buffers of all replies together, in bytes. */
#define MOST_BUFFERED (HRFLOW_MAX_BUFFERED + HRFLOW_KEEP_HANDLES * HRFLOW_KEEP_BUFFER)

/* Memory for a single reply that is left when "others" are full, in bytes. */
#define LEFT_BY_OTHERS (40 * 1024)

/* Maximum of max_response_size and of the size of a body, in bytes. */
#define MOST_LIMIT (128 * 1024)

/* Options of an input. */
#define IS_PACKED	0x01		/* compress the body */
#define HAS_INTERIM 0x02		/* begin with interim responses */
#define HAS_TRAILERS 0x04		/* repeat the headers as trailers */
#define IS_ALONE	0x08		/* it is the only request in flight */
#define IS_AT_LIMIT 0x10		/* make the size of the body about the limit */

/* What the headers mean. */
typedef struct Meaning
{
	bool		has_reply;
	bool		has_ended;
	bool		is_bad;			/* must the reply be refused? */
	int			ngzip;
	int64		nleft;
	int64		reset;
} Meaning;

/* An input. */
typedef struct Input
{
	int			options;
	size_t		limit;			/* max_response_size */
	const char *headers;
	size_t		headers_size;
	const char *body;
	size_t		body_size;
	size_t		longest;		/* maximum size of a piece of the body */
	int			ninterim;		/* number of interim responses */
} Input;

static HrflowSettings settings;
static HrflowTransport transport = {.settings = &settings};

/*
 * ------------------------------------------------------------------------
 * Replacements for other files of the transport
 * ------------------------------------------------------------------------
 */

time_t
time(time_t *t)
{
	if (t != NULL)
		*t = NOW;
	return NOW;
}

void
hrflow_transfer_advance(HrflowTransfer *transfer, HrflowTransferState state)
{
}

bool
hrflow_sharing_check(HrflowTransfer *transfer)
{
	return true;
}

void
hrflow_poller_note_version(int fd, char version)
{
}

HrflowProtocol
hrflow_origin_protocol(const char *url)
{
	return HRFLOW_PROTOCOL_UNKNOWN;
}

void
hrflow_origin_note(const char *url, HrflowProtocol protocol)
{
}

/*
 * ------------------------------------------------------------------------
 * The meaning of headers
 * ------------------------------------------------------------------------
 */

/*
 * Return the trimmed and lower-cased elements of a comma-separated list, each
 * followed by a comma.
 */
static void
normalize_list(const char *list, char *result)
{
	const char *space = " \t\r\n";

	do
	{
		int			length;

		list += strspn(list, space);
		length = strcspn(list, ",");
		for (int i = length; i > 0 && strchr(space, list[i - 1]) != NULL; i--)
			length--;
		for (int i = 0; i < length; i++)
			*result++ = pg_ascii_tolower(list[i]);
		*result++ = ',';
		list += strcspn(list, ",");
	} while (*list++ != '\0');
	*result = '\0';
}

/*
 * Count the elements of a normalized list that are in "names", each of which
 * is enclosed in commas.  Sets *unknown if there are other elements.
 */
static int
count_names(char *list, const char *names, const char *others, bool *unknown)
{
	int			n = 0;
	char	   *name;
	char		enclosed[64];

	while ((name = strsep(&list, ",")) != NULL)
	{
		if (*name == '\0')
			continue;
		snprintf(enclosed, sizeof(enclosed), ",%s,", name);
		if (strstr(names, enclosed) != NULL)
			n++;
		else if (strstr(others, enclosed) == NULL)
			*unknown = true;
	}
	return n;
}

/*
 * Read the number in a header with this name, or with "X-" before it.  Numbers
 * with 11 digits or more need not be understood.
 */
static bool
read_number(const char *line, const char *name, int64 *number)
{
	if (strncasecmp(line, "X-", 2) == 0)
		line += 2;
	if (strncasecmp(line, name, strlen(name)) != 0)
		return false;
	line += strlen(name);
	line += strspn(line, " ");
	if (*line < '0' || *line > '9')
		return false;
	*number = strtoll(line, NULL, 10);	/* PG_INT64_MAX if it is too large */
	return *number / 10 <= PG_INT32_MAX;
}

static void
read_line(Meaning *meaning, const char *line)
{
	static char list[128 * 1024];
	int64		number;

	if (strncmp(line, "HTTP/", 5) == 0 && strlen(line) >= 6 && !meaning->has_reply)
	{
		memset(meaning, 0, sizeof(*meaning));
		meaning->nleft = -1;
		meaning->has_reply = strncmp(line + strcspn(line, " "), " 1", 2) != 0;
	}
	else if (*line == '\r' || *line == '\n')
		meaning->has_ended = true;
	if (meaning->has_ended || !meaning->has_reply)
		return;
	if (strncasecmp(line, "Content-Encoding:", 17) == 0)
	{
		normalize_list(line + 17, list);
		meaning->ngzip += count_names(list, ",gzip,x-gzip,", ",identity,aws-chunked,none,",
									  &meaning->is_bad);
		meaning->is_bad |= meaning->ngzip > 1;
	}
	if (strncasecmp(line, "Transfer-Encoding:", 18) == 0)
	{
		normalize_list(line + 18, list);
		(void) count_names(list, "", ",chunked,identity,", &meaning->is_bad);
	}
	if (read_number(line, "RateLimit-Remaining:", &number))
		meaning->nleft = number;
	if (read_number(line, "RateLimit-Reset:", &number))
		meaning->reset = number <= 1000000000 ? number : Max(number - NOW, 0);
}

/*
 * ------------------------------------------------------------------------
 * Receiving
 * ------------------------------------------------------------------------
 */

static bool
take_piece(void *arg, char *piece, size_t length)
{
	HrflowTransfer *transfer = arg;
	HrflowAttempt before = transfer->attempt;
	size_t		taken = hrflow_body_on_data(piece, 1, length, transfer);

	if (taken != (transfer->attempt.fault == HRFLOW_NO_FAULT ? length : 0))
		abort();
	if (transfer->reply.length > settings.max_response_size ||
		(taken > 0 && transfer->attempt.body_bytes > settings.max_response_size) ||
		transfer->capacity > settings.max_response_size + 1 ||
		(transfer->reply.length > 0 && transfer->reply.length >= transfer->capacity))
		abort();
	/* A transfer that has failed must not count or keep anything more. */
	if (before.fault != HRFLOW_NO_FAULT &&
		memcmp(&before, &transfer->attempt, sizeof(before)) != 0)
		abort();
	return taken == length;
}

/*
 * Pass header lines to the callback, as libcurl does: whole lines.  If there
 * is an empty line, nothing follows it.
 */
static bool
take_headers(HrflowTransfer *transfer, const char *headers, size_t size)
{
	for (size_t done = 0; done < size;)
	{
		const char *newline = memchr(headers + done, '\n', size - done);
		size_t		length = newline - (headers + done) + 1;
		char	   *line = malloc(length);
		size_t		before = transfer->attempt.header_bytes;
		size_t		taken;

		if (line == NULL)
			abort();
		memcpy(line, headers + done, length);
		taken = hrflow_body_on_header(line, 1, length, transfer);
		free(line);
		if (taken != (transfer->attempt.fault == HRFLOW_NO_FAULT ? length : 0))
			abort();
		if (taken == 0)
			return false;
		if (transfer->attempt.header_bytes != before + length ||
			transfer->attempt.header_bytes > HRFLOW_MAX_HEADERS ||
			transfer->attempt.nleft < -1 || transfer->attempt.reset < 0)
			abort();
		done += length;
	}
	return true;
}

/*
 * Receive an input, and check what needs no other input to compare with.
 */
static void
receive(const Input *input, const Meaning *meaning, size_t longest,
		HrflowTransfer *transfer)
{
	static const char interim[] = "HTTP/1.1 103 Early Hints\r\n"
		"Content-Encoding: br\r\nRateLimit-Remaining: 7\r\nRateLimit-Reset: 8\r\n\r\n";
	HrflowAttempt *attempt = &transfer->attempt;
	size_t		expected = input->headers_size;
	char		more = 'x';
	bool		fits;

	memset(attempt, 0, sizeof(*attempt));
	attempt->nleft = -1;
	attempt->is_alone = (input->options & IS_ALONE) != 0;
	hrflow_body_drop(transfer);
	settings.max_response_size = input->limit;

	for (int i = 0; i < input->ninterim; i++)
	{
		if (take_headers(transfer, interim, strlen(interim)))
			continue;
		if ((i + 1) * strlen(interim) <= HRFLOW_MAX_HEADERS ||
			attempt->fault != HRFLOW_EXCEEDS_LIMIT)
			abort();
		return;
	}
	expected += input->ninterim * strlen(interim);
	fits = expected <= HRFLOW_MAX_HEADERS;
	if (take_headers(transfer, input->headers, input->headers_size) !=
		(fits && !meaning->is_bad))
		abort();
	if (attempt->fault != HRFLOW_NO_FAULT)
	{
		if (attempt->fault != (fits ? HRFLOW_BAD_ENCODING : HRFLOW_EXCEEDS_LIMIT) &&
			!(meaning->is_bad && attempt->fault == HRFLOW_BAD_ENCODING))
			abort();
		return;
	}
	if (attempt->header_bytes != expected ||
		attempt->has_reply != meaning->has_reply ||
		attempt->headers_ended != meaning->has_ended ||
		(meaning->has_reply &&
		 (attempt->is_gzip != (meaning->ngzip > 0) ||
		  attempt->nleft != meaning->nleft || attempt->reset != meaning->reset)))
		abort();

	if (!pass_in_pieces(input->body, input->body_size, longest, take_piece, transfer))
		(void) take_piece(transfer, &more, 1);
	else if (attempt->body_bytes != input->body_size)
		abort();
	if ((input->options & HAS_TRAILERS) && meaning->has_reply &&
		meaning->has_ended && attempt->fault == HRFLOW_NO_FAULT)
	{
		HrflowAttempt before = *attempt;

		fits = expected + input->headers_size <= HRFLOW_MAX_HEADERS;
		if (take_headers(transfer, input->headers, input->headers_size) != fits)
			abort();
		before.header_bytes = attempt->header_bytes;
		before.fault = fits ? HRFLOW_NO_FAULT : HRFLOW_EXCEEDS_LIMIT;
		if (memcmp(&before, attempt, sizeof(before)) != 0)
			abort();
	}
}

/*
 * Fill the buffers of two other transfers, so that LEFT_BY_OTHERS bytes are
 * left for a transfer that is not alone.
 */
static void
fill_others(void)
{
	static HrflowTransfer others[2] = {{.transport = &transport}, {.transport = &transport}};
	size_t		size = (MOST_BUFFERED - LEFT_BY_OTHERS) / 2 - 1;
	char	   *data = calloc(1, size);

	settings.max_response_size = size;
	for (int i = 0; i < 2; i++)
	{
		if (data == NULL || hrflow_body_on_data(data, 1, size, &others[i]) != size ||
			others[i].capacity != size + 1)
			abort();
	}
	free(data);
}

/*
 * May a body of this size be kept?  A buffer's size is a power of two, unless
 * the limit is lower.
 */
static bool
may_keep(const Input *input, size_t size)
{
	size_t		capacity = 4096;

	while (capacity < size + 1)
		capacity *= 2;
	return size <= input->limit && input->body_size <= input->limit &&
		((input->options & IS_ALONE) || size == 0 ||
		 Min(capacity, input->limit + 1) <= LEFT_BY_OTHERS);
}

/*
 * Receive an input whole and in pieces, and compare the results with each
 * other and with the original of the body, which is NULL if it is unknown.
 */
static void
check(const Input *input, const Meaning *meaning, const char *original, size_t size)
{
	static HrflowTransfer transfer = {.transport = &transport};
	static char *whole = NULL;
	static size_t others = 0;
	size_t		whole_length = 0;
	HrflowFault whole_fault = HRFLOW_NO_FAULT;

	if (whole == NULL)
	{
		whole = malloc(MOST_LIMIT);
		fill_others();
		(void) hrflow_body_most_buffered();
		others = hrflow_body_most_buffered();
	}
	for (int i = 0; i < 2; i++)
	{
		HrflowFault fault;
		size_t		most;

		receive(input, meaning, i == 0 ? 0 : input->longest, &transfer);
		fault = transfer.attempt.fault;
		most = hrflow_body_most_buffered();
		if (fault == HRFLOW_EXCEEDS_BUDGET ? transfer.capacity != 0 :
			most != others + transfer.capacity)
			abort();
		if (most > MOST_BUFFERED && !(input->options & IS_ALONE))
			abort();
		if (fault == HRFLOW_NO_MEMORY ||
			(fault == HRFLOW_EXCEEDS_BUDGET && (input->options & IS_ALONE)))
			abort();
		if (original != NULL && transfer.attempt.header_bytes <= HRFLOW_MAX_HEADERS &&
			!meaning->is_bad)
		{
			if ((fault == HRFLOW_NO_FAULT) != may_keep(input, size))
				abort();
			if (fault == HRFLOW_NO_FAULT &&
				(transfer.reply.length != size ||
				 (size > 0 && memcmp(transfer.body, original, size) != 0)))
				abort();
		}
		if (i == 0)
		{
			whole_fault = fault;
			whole_length = transfer.reply.length;
			if (whole_length > 0)
				memcpy(whole, transfer.body, whole_length);
		}
		else if ((fault == HRFLOW_NO_FAULT) != (whole_fault == HRFLOW_NO_FAULT) ||
				 (fault == HRFLOW_NO_FAULT &&
				  (whole_length != transfer.reply.length ||
				   (whole_length > 0 && memcmp(whole, transfer.body, whole_length) != 0))))
			abort();
		hrflow_body_drop(&transfer);
		(void) hrflow_body_most_buffered();
		if (hrflow_body_most_buffered() != others)
			abort();
	}
}

/*
 * Compress data in gzip's format.
 */
static size_t
compress_body(const char *data, size_t size, char *packed, size_t room)
{
	z_stream	stream = {0};

	stream.next_in = (Bytef *) unconstify(char *, data);
	stream.avail_in = size;
	stream.next_out = (Bytef *) packed;
	stream.avail_out = room;
	if (deflateInit2(&stream, 1, Z_DEFLATED, MAX_WBITS + 16, 9, Z_DEFAULT_STRATEGY) != Z_OK ||
		deflate(&stream, Z_FINISH) != Z_STREAM_END)
		abort();
	(void) deflateEnd(&stream);
	return room - stream.avail_out;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char body[MOST_LIMIT + 1];
	static char packed[2 * MOST_LIMIT];
	char	   *headers;
	Input		input = {0};
	Meaning		meaning = {.nleft = -1};
	size_t		nrepeats;
	size_t		longest;
	size_t		body_size = 0;
	size_t		most = MOST_LIMIT;

	if (size < 3)
		return 0;
	input.options = data[0];
	input.limit = 1024 << data[1] % 8;
	nrepeats = 1 << data[1] / 8 % 12;
	longest = 1 + data[2] * data[2];
	if (input.options & HAS_INTERIM)
		input.ninterim = 1 << data[2] % 11;
	if (input.options & IS_AT_LIMIT)
	{
		most = input.limit + data[2] % 3 - 1;
		nrepeats = most;
	}
	data += 3;
	size -= 3;

	/* libcurl refuses headers that contain a NUL. */
	headers = malloc(size + 1);
	memcpy(headers, data, size);
	headers[size] = '\0';
	input.headers = headers;
	while (!meaning.has_ended && strchr(headers + input.headers_size, '\n') != NULL)
	{
		char	   *line = headers + input.headers_size;
		char	   *end = strchr(line, '\n') + 1;
		char		next = *end;

		*end = '\0';
		read_line(&meaning, line);
		*end = next;
		input.headers_size += end - line;
	}
	size -= input.headers_size;
	for (; nrepeats > 0 && size > 0 && body_size < most; nrepeats--)
	{
		size_t		length = Min(size, most - body_size);

		memcpy(body + body_size, data + input.headers_size, length);
		body_size += length;
	}
	input.body = body;
	input.body_size = body_size;
	if (input.options & IS_PACKED)
	{
		input.body = packed;
		input.body_size = compress_body(body, body_size, packed, sizeof(packed));
	}
	if (!meaning.has_reply)
		input.ninterim = 0;

	/* Many short pieces would take too long. */
	input.longest = Max(longest, input.body_size / 256);
	if (meaning.has_reply && (meaning.ngzip > 0) == ((input.options & IS_PACKED) != 0))
		check(&input, &meaning, body, body_size);
	else
		check(&input, &meaning, NULL, 0);
	free(headers);
	return 0;
}
