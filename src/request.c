/*-------------------------------------------------------------------------
 *
 * request.c
 *		Arguments to URL and body, and the parts of a URL.
 *
 * Pure: nothing here reads a setting or reaches the network.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "hrflow_embed.h"
#include "lib/stringinfo.h"
#include "utils/json.h"

/* The paths of the endpoints, below base_url. */
static const char *const paths[] = {
	[HRFLOW_PROFILE] = "/profile/embedding",
	[HRFLOW_JOB] = "/job/embedding",
	[HRFLOW_TEXT] = "/text/embedding",
	[HRFLOW_AUTH] = "/auth"
};

/*
 * The names of the parameters in either dialect of the API.  In the key
 * dialect the documentation says "email" and the Python SDK sends
 * "profile_email"; we do as the SDK does.
 */
typedef struct ParameterNames
{
	const char *source;
	const char *profile;
	const char *reference;
	const char *email;
} ParameterNames;

static const ParameterNames parameter_names[] = {
	[HRFLOW_DIALECT_ID] = {
		"source_id", "profile_id", "profile_reference", "profile_email"
	},
	[HRFLOW_DIALECT_KEY] = {
		"source_key", "key", "reference", "profile_email"
	}
};

typedef struct JobParameterNames
{
	const char *board;
	const char *job;
	const char *reference;
} JobParameterNames;

static const JobParameterNames job_parameter_names[] = {
	[HRFLOW_DIALECT_ID] = {"board_id", "job_id", "job_reference"},
	[HRFLOW_DIALECT_KEY] = {"board_key", "key", "reference"}
};

/*
 * Append "value" percent-encoded: all but RFC 3986's unreserved characters,
 * byte by byte, so that no value can end its parameter or begin another.
 */
static void
append_encoded(StringInfo url, const char *value)
{
	static const char hex[] = "0123456789ABCDEF";

	for (const unsigned char *p = (const unsigned char *) value; *p; p++)
	{
		if ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
			(*p >= '0' && *p <= '9') ||
			*p == '-' || *p == '.' || *p == '_' || *p == '~')
			appendStringInfoCharMacro(url, *p);
		else
		{
			appendStringInfoCharMacro(url, '%');
			appendStringInfoCharMacro(url, hex[*p >> 4]);
			appendStringInfoCharMacro(url, hex[*p & 15]);
		}
	}
}

/*
 * Append one parameter, unless it has no value.  "separator" is that of the
 * next parameter: '?' before the first one.
 */
static void
append_parameter(StringInfo url, char *separator, const char *name,
				 const char *value)
{
	if (value == NULL)
		return;

	if (url->len > HRFLOW_MAX_URL)
		return;

	/*
	 * What is over the limit is not encoded whole, since it may be three
	 * times as long then: the caller looks at the length only.
	 */
	appendStringInfoCharMacro(url, *separator);
	appendStringInfoString(url, name);
	appendStringInfoCharMacro(url, '=');
	append_encoded(url, strnlen(value, HRFLOW_MAX_URL + 1) > HRFLOW_MAX_URL ?
				   pnstrdup(value, HRFLOW_MAX_URL + 1) : value);
	*separator = '&';
}

/*
 * A URL that is done, or NULL when it is longer than HRFLOW_MAX_URL.
 */
static char *
finish_url(StringInfo url)
{
	if (url->len <= HRFLOW_MAX_URL)
		return url->data;
	pfree(url->data);
	return NULL;
}

/*
 * The URL that asks for a profile's embedding, palloc'd; or NULL when it
 * would be longer than HRFLOW_MAX_URL.
 */
char *
hrflow_request_profile(const char *base_url, HrflowDialect dialect,
					   const HrflowQuery *query)
{
	const ParameterNames *names = &parameter_names[dialect];
	StringInfoData url;
	char		separator = '?';

	initStringInfo(&url);
	appendStringInfoString(&url, base_url);
	appendStringInfoString(&url, paths[HRFLOW_PROFILE]);

	append_parameter(&url, &separator, names->source, query->source_id);
	append_parameter(&url, &separator, names->profile, query->profile_id);
	append_parameter(&url, &separator, names->reference,
					 query->profile_reference);
	append_parameter(&url, &separator, names->email, query->profile_email);
	append_parameter(&url, &separator, "fields", query->fields);
	return finish_url(&url);
}

/*
 * The same for a job's.
 */
char *
hrflow_request_job(const char *base_url, HrflowDialect dialect,
				   const HrflowJobQuery *query)
{
	const JobParameterNames *names = &job_parameter_names[dialect];
	StringInfoData url;
	char		separator = '?';

	initStringInfo(&url);
	appendStringInfoString(&url, base_url);
	appendStringInfoString(&url, paths[HRFLOW_JOB]);

	append_parameter(&url, &separator, names->board, query->board_id);
	append_parameter(&url, &separator, names->job, query->job_id);
	append_parameter(&url, &separator, names->reference,
					 query->job_reference);
	return finish_url(&url);
}

/*
 * The URL of an endpoint that takes no parameters, palloc'd.
 */
char *
hrflow_request_url(const char *base_url, HrflowEndpoint endpoint)
{
	return psprintf("%s%s", base_url, paths[endpoint]);
}

/*
 * The JSON that asks for a text's embedding, palloc'd.  "text" is UTF-8, and
 * no longer than HRFLOW_MAX_TEXT; escapes make it six times as long at most.
 */
char *
hrflow_request_text_body(const char *text)
{
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfoString(&body, "{\"text\": ");
	escape_json(&body, text);
	appendStringInfoChar(&body, '}');
	return body.data;
}

/*
 * Is this host the machine itself?  Only the dotted quad is an IPv4 address
 * here: "127.1" and "0x7f.1", which resolvers accept, are not.
 */
static bool
is_loopback(const char *host, int length)
{
	char		name[INET6_ADDRSTRLEN];
	struct in_addr v4;
	struct in6_addr v6;

	if (length <= 0 || length >= (int) sizeof(name))
		return false;
	memcpy(name, host, length);
	name[length] = '\0';

	if (pg_strcasecmp(name, "localhost") == 0)
		return true;
	if (inet_pton(AF_INET, name, &v4) == 1)
		return (ntohl(v4.s_addr) >> 24) == 127;
	if (inet_pton(AF_INET6, name, &v6) == 1)
		return IN6_IS_ADDR_LOOPBACK(&v6);
	return false;
}

/*
 * Would resolvers take this host for an IPv4 address though it is not written
 * as a dotted quad: "2130706433", "127.1", "0x7f.1", "0177.0.0.1"?  libcurl
 * writes them anew, after we have looked.  No name ends with a number, so the
 * last label tells.
 */
static bool
is_odd_address(const char *host, int length)
{
	char		name[INET_ADDRSTRLEN];
	const char *end = host + length;
	const char *label;
	const char *digits = "0123456789";
	struct in_addr v4;

	if (length > 0 && end[-1] == '.')
		end--;
	for (label = end; label > host && label[-1] != '.'; label--)
		;
	if (label == end)
		return false;
	if (end - label >= 2 && label[0] == '0' &&
		(label[1] == 'x' || label[1] == 'X'))
	{
		label += 2;
		digits = "0123456789abcdefABCDEF";
	}
	if (strspn(label, digits) < end - label)
		return false;

	if (length >= sizeof(name))
		return true;
	memcpy(name, host, length);
	name[length] = '\0';
	return inet_pton(AF_INET, name, &v4) != 1;
}

/*
 * Read the port at "p", if there is one, and leave *p behind it.
 */
static bool
parse_port(const char **p, int *port)
{
	int			digits = 0;
	int			value = 0;

	if (**p != ':')
		return true;
	for ((*p)++; **p >= '0' && **p <= '9'; (*p)++)
	{
		value = value * 10 + (**p - '0');
		if (++digits > 5)
			return false;
	}
	if (digits == 0 || value < 1 || value > 65535)
		return false;
	*port = value;
	return true;
}

/*
 * Take a URL apart.
 *
 * Returns NULL, or why it is refused, as a noun phrase's predicate ("has …").
 * This is stricter than RFC 3986, so that what libcurl makes of an accepted
 * URL cannot differ from what we make of it: the scheme is http or https,
 * there is no userinfo, a host is letters, digits, dots, hyphens and
 * underscores or an IPv6 address in brackets, an IPv4 address is a dotted
 * quad, and all of it is printable ASCII without spaces or backslashes.
 */
const char *
hrflow_request_parse_url(const char *url, HrflowUrl *parsed)
{
	const char *p;

	for (p = url; *p; p++)
	{
		if (*p <= ' ' || *p > '~' || *p == '\\')
			return "has a character that must be percent-encoded";
	}

	if (pg_strncasecmp(url, "https://", 8) == 0)
	{
		parsed->https = true;
		parsed->port = 443;
		p = url + 8;
	}
	else if (pg_strncasecmp(url, "http://", 7) == 0)
	{
		parsed->https = false;
		parsed->port = 80;
		p = url + 7;
	}
	else
		return "does not begin with \"https://\"";

	if (p[strcspn(p, "@/?#")] == '@')
		return "has a user name or a password in it";

	if (*p == '[')
	{
		parsed->host = ++p;
		parsed->host_length = strspn(p, "0123456789abcdefABCDEF:.");
		p += parsed->host_length;
		if (*p++ != ']')
			return "has an invalid host";
	}
	else
	{
		parsed->host = p;
		while ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
			   (*p >= '0' && *p <= '9') ||
			   *p == '.' || *p == '-' || *p == '_')
			p++;
		parsed->host_length = p - parsed->host;
		if (is_odd_address(parsed->host, parsed->host_length))
			return "has a number for a host";
	}
	if (parsed->host_length == 0 || parsed->host_length > 253)
		return "has an invalid host";

	if (!parse_port(&p, &parsed->port))
		return "has an invalid port";
	if (*p != '\0' && *p != '/' && *p != '?' && *p != '#')
		return "has an invalid host";

	parsed->path = p;
	parsed->loopback = is_loopback(parsed->host, parsed->host_length);
	return NULL;
}
