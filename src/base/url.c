/*-------------------------------------------------------------------------
 *
 * url.c
 *		The parts of a URL.
 *
 * Pure: depends on its argument alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "base/base.h"

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
hrflow_url_parse(const char *url, HrflowUrl *parsed)
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
