/*
 * fuzz_backend.c
 *		Fuzzers for functions that need a backend, for example because they use
 *		jsonb.  This is a library with a SQL function that runs libFuzzer in
 *		the backend that calls it, which must be a single-user backend.
 *
 * None of the functions fuzzed here may raise an error because of its input.
 * The page after the end of an input cannot be read.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "ask/ask.h"
#include "mb/pg_wchar.h"
#include "transport/transfer.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(hrflow_fuzz);

typedef void (*FuzzTarget) (const char *data, size_t size);

extern int	LLVMFuzzerRunDriver(int *argc, char ***argv,
								int (*one) (const uint8_t *, size_t));

static FuzzTarget target;
static MemoryContext context;

#define KEY "askr_0123456789abcdef0123456789abcdef"

/*
 * Interpret a reply.  The input consists of two bytes for status and content
 * type, and the body.
 */
static void
fuzz_reply(const char *data, size_t size)
{
	static const int statuses[] = {200, 200, 200, 201, 400, 401, 403, 404, 429, 500};
	static const char *const types[] = {
		"application/json", "application/json; charset=utf-8", "text/html", NULL
	};
	static const char *const asked[] = {
		"{\"profile\": 1}", "{\"experiences\": [0, 2]}",
		"{\"experiences\": [\"a\"], \"educations\": []}"
	};
	HrflowSettings settings = {.api_key = KEY};
	HrflowReply reply = {0};
	HrflowResult result;
	List	   *links;
	char	   *detail;

	if (size < 2)
		return;
	settings.vector_dimension = size % 3;
	reply.http_status = statuses[(unsigned char) data[0] % lengthof(statuses)];
	reply.content_type = types[(unsigned char) data[1] % lengthof(types)];
	reply.attempts = 1;
	reply.body = data + 2;		/* a NUL follows it */
	reply.length = size - 2;

	for (HrflowEndpoint endpoint = HRFLOW_AUTH;; endpoint--)
	{
		hrflow_response_parse(&reply, endpoint, &settings, &result);
		if ((result.status == HRFLOW_OK) !=
			(endpoint == HRFLOW_TEXT || endpoint == HRFLOW_DOCUMENT ?
			 result.vector != NULL : result.data != NULL) ||
			(result.status == HRFLOW_OK) != (result.detail == NULL))
			abort();
		if (result.detail != NULL &&
			(strstr(result.detail, KEY) != NULL ||
			 strpbrk(result.detail, "\n\r\t\x01") != NULL ||
			 strlen(result.detail) > HRFLOW_MAX_MESSAGE + 200))
			abort();
		if (endpoint == HRFLOW_PROFILE)
			break;
	}
	for (int i = 0; result.data != NULL && i < lengthof(asked); i++)
	{
		Jsonb	   *fields = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
																CStringGetDatum(asked[i])));
		ListCell   *cell;

		if (!hrflow_links_collect(result.data, fields, KEY, &links, &detail))
			continue;
		if (list_length(links) > HRFLOW_MAX_LINKS)
			abort();
		foreach(cell, links)
		{
			HrflowLink *link = lfirst(cell);

			if (link->item < 0 || link->url == NULL || link->section == NULL)
				abort();
		}
	}

	hrflow_response_parse_vector(&reply, &result);
	if ((result.status == HRFLOW_OK) != (result.vector != NULL))
		abort();
	/* The detail of an error may contain nothing of its body except the code. */
	if (reply.http_status >= 300 &&
		(result.detail == NULL || strlen(result.detail) > 120))
		abort();
}

/*
 * Compare the refusal that the transport finds in a body with the status of
 * the reply.  They agree if the body is valid, and has a single "code" that is
 * written without \u or an exponent.
 */
static void
fuzz_envelope(const char *data, size_t size)
{
	static const char code[] = "\"code\"";
	HrflowSettings settings = {.api_key = KEY};
	HrflowReply reply = {
		.http_status = 200, .content_type = "application/json", .attempts = 1,
		.body = data, .length = size
	};
	HrflowResult result;
	bool		limited = hrflow_envelope_is_limited(data);
	const char *first = strstr(data, code);
	bool		too_deep;

	if (limited && (first == NULL || strstr(first, "429") == NULL))
		abort();
	/* Neither space before the body nor what follows a refusal matters. */
	if (hrflow_envelope_is_limited(psprintf("\n \t%s", data)) != limited ||
		(limited && !hrflow_envelope_is_limited(psprintf("%s, \"code\": 200}", data))))
		abort();

	if (strlen(data) != size ||
		pg_encoding_verifymbstr(PG_UTF8, data, size) != size ||
		hrflow_json_parse(data, NULL, &too_deep) == NULL)
		return;
	hrflow_response_parse(&reply, HRFLOW_PROFILE, &settings, &result);
	if (strstr(data, "\\u") != NULL ||
		(first != NULL && strstr(first + 1, code) != NULL))
		return;
	for (const char *p = data; *p; p++)
	{
		if ((*p >= '0' && *p <= '9') && (p[1] == 'e' || p[1] == 'E'))
			return;
	}
	if (limited != (result.status == HRFLOW_RATE_LIMITED))
		abort();
}

/*
 * Parse a text by jsonb_in.  Returns NULL if it raises an error.
 */
static Jsonb *
parse_by_jsonb_in(const char *text)
{
	MemoryContext here = CurrentMemoryContext;
	Jsonb	   *volatile result = NULL;

	PG_TRY();
	{
		result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													CStringGetDatum(text)));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(here);
		FlushErrorState();
	}
	PG_END_TRY();
	return result;
}

/*
 * Parse JSON, and compare the result with that of jsonb_in.  Our parser refuses
 * scalars, values that nest too deeply, and long numbers.
 */
static void
fuzz_json(const char *data, size_t size)
{
	bool		too_deep;
	JsonbValue *value;
	Jsonb	   *ours;
	Jsonb	   *theirs;
	const char *begin = data + strspn(data, " \t\n\r");

	if (strlen(data) != size ||
		pg_encoding_verifymbstr(PG_UTF8, data, size) != size)
		return;
	value = hrflow_json_parse(data, NULL, &too_deep);
	ours = value == NULL ? NULL : JsonbValueToJsonb(value);
	if (too_deep && ours != NULL)
		abort();
	theirs = parse_by_jsonb_in(data);
	if (ours != NULL && (theirs == NULL || VARSIZE(ours) != VARSIZE(theirs) ||
						 memcmp(ours, theirs, VARSIZE(ours)) != 0))
		abort();
	if (ours == NULL && theirs != NULL && !too_deep &&
		(*begin == '{' || *begin == '['))
	{
		/* There must be a number with many characters or a large exponent. */
		bool		found = false;

		for (const char *p = data; *p; p++)
		{
			size_t		length = strspn(p, "0123456789.eE+-");

			found |= length > 100 ||
				((*p == 'e' || *p == 'E') && strspn(p + 1 + strspn(p + 1, "+-"), "0123456789") > 3);
		}
		if (!found)
			abort();
	}
}

/*
 * Check that an IPv4 address is private no matter how it is embedded in an
 * IPv6 address, and that loopback addresses are private.
 */
static void
check_address(const char *data)
{
	static const unsigned char prefixes[][12] = {
		{0}, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, {0, 0x64, 0xff, 0x9b}
	};
	struct sockaddr_in v4 = {.sin_family = AF_INET};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
	char		url[64] = "http://";
	HrflowUrl	parsed;
	bool		is_private;

	memcpy(&v4.sin_addr, data, 4);
	is_private = hrflow_link_is_private((struct sockaddr *) &v4);
	for (int i = 0; i < lengthof(prefixes); i++)
	{
		memcpy(&v6.sin6_addr, prefixes[i], 12);
		memcpy(&v6.sin6_addr.s6_addr[12], data, 4);
		if (hrflow_link_is_private((struct sockaddr *) &v6) != is_private)
			abort();
	}
	/* 6to4; the bytes after the IPv4 address are arbitrary. */
	memcpy(&v6.sin6_addr, "\x20\x02", 2);
	memcpy(&v6.sin6_addr.s6_addr[2], data, 4);
	if (hrflow_link_is_private((struct sockaddr *) &v6) != is_private)
		abort();
	inet_ntop(AF_INET, &v4.sin_addr, url + 7, sizeof(url) - 7);
	if (hrflow_url_parse(url, &parsed) != NULL || (parsed.loopback && !is_private))
		abort();
}

/*
 * Check a link.  The input consists of a line with hosts, and a line with a
 * link.  If we allow the link, libcurl must find the same host, port and scheme
 * in it.
 */
static void
fuzz_link(const char *data, size_t size)
{
	char	   *hosts = pnstrdup(data, size);
	char	   *link = strchr(hosts, '\n');
	char	   *described;
	bool		by_name;
	CURLU	   *url;
	char	   *host;
	HrflowUrl	parsed;

	if (size >= 4)
		check_address(data);
	if (link == NULL)
		return;
	*link++ = '\0';
	if (hrflow_link_bad_hosts(hosts) != NULL)
		return;
	described = hrflow_link_describe(link);
	if (strpbrk(described, "#@") != NULL ||
		strlen(described) > strcspn(link, "?#"))
		abort();
	if (hrflow_link_refusal(link, hosts, &by_name) != NULL)
		return;
	if (hrflow_url_parse(link, &parsed) != NULL)
		abort();
	if (!parsed.https && !parsed.loopback)
		abort();

	url = curl_url();
	if (curl_url_set(url, CURLUPART_URL, link, CURLU_PATH_AS_IS | CURLU_DISALLOW_USER) == CURLUE_OK &&
		curl_url_get(url, CURLUPART_HOST, &host, 0) == CURLUE_OK)
	{
		/* libcurl normalizes IPv6 addresses. */
		if (host[0] != '[' &&
			(strlen(host) != parsed.host_length ||
			 pg_strncasecmp(host, parsed.host, parsed.host_length) != 0))
			abort();
		curl_free(host);
	}
	curl_url_cleanup(url);
}

/*
 * Count the characters of valid UTF-8.
 */
static size_t
count_characters(const char *text)
{
	size_t		n = 0;

	for (; *text; text++)
		n += ((unsigned char) *text & 0xC0) != 0x80;
	return n;
}

/*
 * Convert text, such as a message from a reply, to a server encoding.  The
 * first byte selects the encoding.  EUC_TW and EUC_JIS_2004 are not among
 * them, because PostgreSQL converts some characters to byte sequences that it
 * then considers invalid (U+6F17 and U+0082).
 */
static void
fuzz_encoding(const char *data, size_t size)
{
	static const pg_enc encodings[] = {
		PG_UTF8, PG_LATIN1, PG_LATIN10, PG_WIN1251, PG_KOI8R, PG_ISO_8859_8,
		PG_EUC_JP, PG_EUC_KR, PG_EUC_CN, PG_SQL_ASCII
	};
	const char *text = data + 1;
	int			encoding;
	bool		valid;
	char	   *shown;
	const char *converted;
	const char *back;

	if (size < 1 || strlen(data) != size)
		return;
	encoding = encodings[(unsigned char) data[0] % lengthof(encodings)];
	valid = pg_encoding_verifymbstr(PG_UTF8, text, size - 1) == size - 1;
	SetDatabaseEncoding(encoding);

	shown = hrflow_text_show_utf8(text, size - 1);
	if (strlen(shown) > (size - 1) * MAX_CONVERSION_GROWTH ||
		pg_encoding_verifymbstr(encoding, shown, strlen(shown)) != strlen(shown))
		abort();
	if (valid && pg_encoding_max_length(encoding) == 1 && encoding != PG_SQL_ASCII &&
		strlen(shown) != count_characters(text))
		abort();
	if (valid && encoding != PG_SQL_ASCII)
	{
		converted = hrflow_text_from_utf8(text, size - 1);
		if (converted != NULL &&
			(pg_encoding_verifymbstr(encoding, converted, strlen(converted)) !=
			 strlen(converted) || strcmp(shown, converted) != 0))
			abort();
		/* Single-byte encodings are converted back to the same text. */
		back = converted == NULL ? NULL : hrflow_text_to_utf8(converted);
		if (converted != NULL &&
			(back == NULL ||
			 (pg_encoding_max_length(encoding) == 1 && strcmp(back, text) != 0)))
			abort();
	}
	/* The server's own text is converted to valid UTF-8, or refused. */
	back = pg_encoding_verifymbstr(encoding, text, size - 1) != size - 1 ? NULL :
		hrflow_text_to_utf8(text);
	if (back != NULL &&
		pg_encoding_verifymbstr(PG_UTF8, back, strlen(back)) != strlen(back))
		abort();
	SetDatabaseEncoding(PG_UTF8);
}

static int
hex_value(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/*
 * Return the next value of a query, decoded.  All of its characters must be
 * unreserved or percent-encoded.
 */
static char *
next_value(const char **p, const char *name)
{
	char	   *value = palloc(strlen(*p) + 1);
	char	   *to = value;

	if (strncmp(*p, name, strlen(name)) != 0)
		abort();
	*p += strlen(name);
	for (; **p != '&' && **p != '\0'; (*p)++)
	{
		if (**p == '%')
		{
			if (hex_value((*p)[1]) < 0 || hex_value((*p)[2]) < 0)
				abort();
			*to++ = hex_value((*p)[1]) << 4 | hex_value((*p)[2]);
			*p += 2;
		}
		else if (strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~", **p))
			*to++ = **p;
		else
			abort();
	}
	*to = '\0';
	return value;
}

/*
 * Make the JSON for a text, and check that it is parsed as that text.
 */
static void
fuzz_text(const char *text)
{
	bool		too_deep;
	JsonbValue *body;
	JsonbPair  *pair;

	if (pg_encoding_verifymbstr(PG_UTF8, text, strlen(text)) != strlen(text))
		return;
	body = hrflow_json_parse(hrflow_request_text_body(text), NULL,
							 &too_deep);
	if (body == NULL || body->type != jbvObject ||
		body->val.object.nPairs != 1)
		abort();
	pair = body->val.object.pairs;
	if (pair->key.val.string.len != 4 ||
		memcmp(pair->key.val.string.val, "text", 4) != 0 ||
		pair->value.type != jbvString ||
		pair->value.val.string.len != strlen(text) ||
		memcmp(pair->value.val.string.val, text, strlen(text)) != 0)
		abort();
}

/*
 * Make the URLs for a profile and a job, and check that decoding them results
 * in the same parameters.  Each line of the input is a parameter.
 */
static void
fuzz_request(const char *data, size_t size)
{
	static const char *const names[2][5] = {
		{"source_id=", "&profile_id=", "&profile_reference=", "&profile_email=", "&fields="},
		{"source_key=", "&key=", "&reference=", "&profile_email=", "&fields="}
	};
	static const char *const job_names[2][3] = {
		{"board_id=", "&job_id=", "&job_reference="},
		{"board_key=", "&key=", "&reference="}
	};
	HrflowQuery query = {0};
	HrflowJobQuery job;
	const char **parts[] = {&query.source_id, &query.profile_id,
	&query.profile_reference, &query.profile_email, &query.fields};
	HrflowDialect dialect = size > 0 && data[0] & 1;
	char	   *rest = pnstrdup(data, size);
	char	   *line;
	char	   *url;
	const char *p;
	HrflowUrl	parsed;

	fuzz_text(rest);
	for (int i = 0; i < lengthof(parts) && (line = strsep(&rest, "\n")) != NULL; i++)
		*parts[i] = *line != '\0' || i == 0 ? line : NULL;
	if (query.source_id == NULL)
		return;
	url = hrflow_request_profile("https://api.hrflow.ai/v1", dialect, &query);
	if (url == NULL)
		return;
	if (hrflow_url_parse(url, &parsed) != NULL ||
		strncmp(url, "https://api.hrflow.ai/v1/profile/embedding?", 43) != 0)
		abort();
	p = url + 43;
	for (int i = 0; i < lengthof(parts); i++)
	{
		if (*parts[i] != NULL &&
			strcmp(next_value(&p, names[dialect][i]), *parts[i]) != 0)
			abort();
	}
	if (*p != '\0')
		abort();

	job.board_id = query.source_id;
	job.job_id = query.profile_id;
	job.job_reference = query.profile_reference;
	url = hrflow_request_job("https://api.hrflow.ai/v1", dialect, &job);
	if (strncmp(url, "https://api.hrflow.ai/v1/job/embedding?", 39) != 0)
		abort();
	p = url + 39;
	for (int i = 0; i < 3; i++)
	{
		if (*parts[i] != NULL &&
			strcmp(next_value(&p, job_names[dialect][i]), *parts[i]) != 0)
			abort();
	}
	if (*p != '\0')
		abort();
}

/*
 * Run a target on a copy of the input that is terminated by a NUL at the end of
 * a page, after which memory cannot be accessed.
 */
static int
run_one(const uint8_t *data, size_t size)
{
	static char *end = NULL;
	static size_t room = 1024 * 1024;

	if (end == NULL)
	{
		size_t		page = sysconf(_SC_PAGESIZE);
		char	   *map = mmap(NULL, room + page, PROT_READ | PROT_WRITE,
							   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (map == MAP_FAILED || mprotect(map + room, page, PROT_NONE) != 0)
			abort();
		end = map + room;
	}
	if (size >= room)
		return 0;
	end[-1] = '\0';
	memcpy(end - 1 - size, data, size);

	PG_TRY();
	{
		target(end - 1 - size, size);
	}
	PG_CATCH();
	{
		EmitErrorReport();
		abort();
	}
	PG_END_TRY();
	MemoryContextReset(context);
	return 0;
}

/*
 * hrflow_fuzz(target text, VARIADIC arguments text[]) RETURNS void
 *
 * Does not return.
 */
Datum
hrflow_fuzz(PG_FUNCTION_ARGS)
{
	static const struct
	{
		const char *name;
		FuzzTarget	run;
	}			targets[] = {
		{"reply", fuzz_reply}, {"envelope", fuzz_envelope}, {"json", fuzz_json},
		{"link", fuzz_link}, {"encoding", fuzz_encoding}, {"request", fuzz_request}
	};
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Datum	   *values;
	int			n;
	char	  **argv;

	for (int i = 0; i < lengthof(targets); i++)
	{
		if (strcmp(targets[i].name, name) == 0)
			target = targets[i].run;
	}
	if (target == NULL)
		elog(ERROR, "no such target: %s", name);

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false,
					  TYPALIGN_INT, &values, NULL, &n);
	argv = palloc0(sizeof(char *) * (n + 2));
	argv[0] = name;
	for (int i = 0; i < n; i++)
		argv[i + 1] = TextDatumGetCString(values[i]);
	n++;
	context = AllocSetContextCreate(TopMemoryContext, "fuzz",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	LLVMFuzzerRunDriver(&n, &argv, run_one);
	PG_RETURN_VOID();
}
