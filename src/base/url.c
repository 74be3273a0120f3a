/*-------------------------------------------------------------------------
 *
 * url.c
 *		Parses URLs, and checks those that are values of settings.
 *
 * These functions are pure: their results depend on their arguments alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "base/base.h"

/*
 * Is this host "localhost" or a loopback address?  IPv4 addresses are
 * recognized in dotted-quad form only, not in other forms that resolvers
 * accept, such as "127.1" and "0x7f.1".
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
 * Would a resolver take this host for an IPv4 address although it is not in
 * dotted-quad form, such as "2130706433", "127.1", "0x7f.1" or "0177.0.0.1"?
 * libcurl would normalize such a host after we have checked it.  The last
 * label of a valid name is not a number, so it suffices to look at that label.
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
 * Parse the port at *p, if there is one, and advance *p past it.  Returns
 * false if the port is not valid.
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
 * Parse a URL.  Returns NULL, or a sentence that describes the problem, to be
 * translated by the caller; then *parsed is undefined.
 *
 * The rules are stricter than RFC 3986, so that libcurl cannot interpret an
 * accepted URL differently: the scheme must be http or https, there is no
 * userinfo, the host consists of letters, digits, dots, hyphens and
 * underscores or looks like an IPv6 address in brackets, IPv4 addresses must
 * be dotted quads, and all characters must be printable ASCII other than space
 * and backslash.
 */
const char *
hrflow_url_parse(const char *url, HrflowUrl *parsed)
{
	const char *p;

	for (p = url; *p; p++)
	{
		if (*p <= ' ' || *p > '~' || *p == '\\')
			return gettext_noop("The value has a character that must be percent-encoded.");
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
		return gettext_noop("The value does not begin with \"https://\".");

	if (p[strcspn(p, "@/?#")] == '@')
		return gettext_noop("The value contains a user name or a password.");

	if (*p == '[')
	{
		parsed->host = ++p;
		parsed->host_length = strspn(p, "0123456789abcdefABCDEF:.");
		p += parsed->host_length;
		if (*p++ != ']' ||
			memchr(parsed->host, ':', parsed->host_length) == NULL)
			return gettext_noop("The value has an invalid host.");
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
			return gettext_noop("The value has an abbreviated or numeric IP address as its host.");
	}
	if (parsed->host_length == 0 || parsed->host_length > 253)
		return gettext_noop("The value has an invalid host.");

	if (!parse_port(&p, &parsed->port))
		return gettext_noop("The value has an invalid port.");
	if (*p != '\0' && *p != '/' && *p != '?' && *p != '#')
		return gettext_noop("The value has an invalid host.");

	parsed->path = p;
	parsed->loopback = is_loopback(parsed->host, parsed->host_length);
	return NULL;
}

/*
 * Check a value for hrflow_embed.base_url.  Returns NULL, or a sentence that
 * describes the problem, to be translated by the caller.
 */
const char *
hrflow_url_bad_base(const char *value)
{
	HrflowUrl	url;
	const char *why = hrflow_url_parse(value, &url);

	if (why != NULL)
		return why;
	if (!url.https && !url.loopback)
		return gettext_noop("The value does not begin with \"https://\" (\"http://\" is for loopback addresses only).");
	if (strpbrk(url.path, "?#") != NULL)
		return gettext_noop("The value has a query or a fragment.");
	if (strlen(value) > 1024)
		return gettext_noop("The value is too long.");
	return NULL;
}

/*
 * Check a value for hrflow_embed.proxy.  Returns NULL, or a sentence that
 * describes the problem, to be translated by the caller.  The host and port
 * must be valid, because libcurl's message about a proxy that it cannot parse
 * quotes the whole value, including the password.
 */
const char *
hrflow_url_bad_proxy(const char *value)
{
	static const char *const schemes[] = {"http://", "https://", "socks5h://"};
	HrflowUrl	url;

	if (*value == '\0')
		return NULL;
	for (int i = 0; i < lengthof(schemes); i++)
	{
		int			length = strlen(schemes[i]);
		const char *host = value + length;
		const char *why;
		char	   *copy;

		if (pg_strncasecmp(value, schemes[i], length) != 0)
			continue;
		if (strlen(value) > 1024)
			return gettext_noop("The value is too long.");
		if (host[strcspn(host, "@/?#")] == '@')
			host += strcspn(host, "@") + 1;
		copy = psprintf("http://%s", host);

		/* If the password contains "@", "/", "?" or "#", an "@" is left. */
		why = strchr(host, '@') != NULL ?
			gettext_noop("The value has a character that must be percent-encoded.") :
			hrflow_url_parse(copy, &url);
		if (why == NULL && url.path[0] != '\0' && strcmp(url.path, "/") != 0)
			why = gettext_noop("The value has a path, a query or a fragment.");
		for (const char *p = value; *p && why == NULL; p++)
		{
			if (*p <= ' ' || *p > '~')
				why = gettext_noop("The value has a character that must be percent-encoded.");
		}
		pfree(copy);
		return why;
	}
	return gettext_noop("The value does not begin with \"http://\", \"https://\" or \"socks5h://\".");
}
