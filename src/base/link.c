/*-------------------------------------------------------------------------
 *
 * link.c
 *		Decides which links may be fetched.
 *
 * A link is a URL that comes from the API or from the caller of
 * hrflow_fetch_vector() or hrflow_fetch_vectors().  The database server can
 * often reach machines that its clients cannot, so we must not let a link give
 * access to the internal network.
 *
 * These functions are pure: their results depend on the arguments alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "base/base.h"

/*
 * Does a host match a pattern, ignoring case?  "*" in the pattern matches any
 * number of characters other than a dot.
 */
static bool
matches(const char *host, int host_length, const char *pattern,
		int pattern_length)
{
	if (pattern_length == 0)
		return host_length == 0;
	if (*pattern == '*')
	{
		for (int n = 0; n <= host_length; n++)
		{
			if (matches(host + n, host_length - n, pattern + 1,
						pattern_length - 1))
				return true;
			if (n < host_length && host[n] == '.')
				return false;
		}
		return false;
	}
	return host_length > 0 &&
		pg_tolower((unsigned char) *host) ==
		pg_tolower((unsigned char) *pattern) &&
		matches(host + 1, host_length - 1, pattern + 1, pattern_length - 1);
}

/*
 * Return the next element of a list of hosts, and advance *list past it.  The
 * element is not NUL-terminated; *length is set to its length.  Returns NULL
 * at the end of the list.
 */
static const char *
next_host(const char **list, int *length)
{
	const char *host;

	*list += strspn(*list, ", \t");
	if (**list == '\0')
		return NULL;
	host = *list;
	*length = strcspn(host, ", \t");
	*list += *length;
	return host;
}

/*
 * Check a value for hrflow_embed.link_hosts.  Returns NULL, or a sentence that
 * describes the problem, to be translated by the caller.
 */
const char *
hrflow_link_bad_hosts(const char *hosts)
{
	const char *host;
	int			length;

	while ((host = next_host(&hosts, &length)) != NULL)
	{
		int			stars = 0;

		if (length > 253)
			return gettext_noop("The value has a host that is too long.");
		for (int i = 0; i < length; i++)
		{
			bool		good = (host[i] >= 'a' && host[i] <= 'z') ||
			(host[i] >= 'A' && host[i] <= 'Z') ||
			(host[i] >= '0' && host[i] <= '9') ||
			strchr("-._:*", host[i]) != NULL;

			if (!good)
				return gettext_noop("The value is not a list of host names.");
			stars += host[i] == '*';
		}

		/*
		 * Limit the number of asterisks, because matches() backtracks over
		 * them.
		 */
		if (stars > 4)
			return gettext_noop("The value has a host with more than four asterisks.");
	}
	return NULL;
}

/*
 * Check whether a link may be fetched, according to "hosts", a list of host
 * names and patterns.  Returns NULL if so, else the reason as a whole
 * sentence.
 *
 * Sets *by_name to whether the list contains the exact name of the link's
 * host, without asterisks.  Only such a host may have a private address.
 */
const char *
hrflow_link_refusal(const char *link, const char *hosts, bool *by_name)
{
	HrflowUrl	url;
	bool		by_pattern = false;
	const char *host;
	int			length;

	*by_name = false;
	if (strlen(link) > HRFLOW_MAX_URL ||
		hrflow_url_parse(link, &url) != NULL)
		return "The link is not a valid URL.";

	while ((host = next_host(&hosts, &length)) != NULL)
	{
		if (!matches(url.host, url.host_length, host, length))
			continue;
		if (memchr(host, '*', length) != NULL)
			by_pattern = true;
		else
			*by_name = true;
	}

	if (!by_pattern && !*by_name)
		return "The host of the link is not in \"hrflow_embed.link_hosts\".";
	if (url.loopback && !*by_name)
		return "The host of the link has a private address, and \"hrflow_embed.link_hosts\" does not contain its exact name.";
	if (!url.https && !url.loopback)
		return "The link does not begin with \"https://\".";
	if (!url.loopback && url.port != 443)
		return "The link specifies a port other than 443.";
	return NULL;
}

/*
 * Return a printable description of a link, palloc'd: the link without its
 * query (which usually contains a signature), fragment, user and password,
 * clipped to 300 bytes.
 */
char *
hrflow_link_describe(const char *link)
{
	int			length = Min(strcspn(link, "?#"), 300);
	int			scheme = pg_strncasecmp(link, "https://", 8) == 0 ? 8 : 0;
	char	   *shown;
	char	   *at;
	HrflowUrl	url;

	/*
	 * If an invalid link has an "@" after the part to be shown, a password
	 * may begin in that part, so show only the scheme.
	 */
	if (strchr(link + length, '@') != NULL &&
		hrflow_url_parse(link, &url) != NULL)
		length = scheme;

	/*
	 * Remove everything before the last "@" except "https://", even if the
	 * "@" is in the path, because a parser might take that part for a
	 * password.
	 */
	shown = pnstrdup(link, length);
	at = strrchr(shown, '@');
	if (at != NULL)
		memmove(shown + scheme, at + 1, strlen(at + 1) + 1);

	for (char *p = shown; *p; p++)
	{
		if (*p < ' ' || *p > '~')
			*p = '?';
	}
	return shown;
}

static bool
is_private_v4(uint32 a)
{
	static const struct
	{
		uint32		network;
		int			bits;
	}			private[] = {
		{0x00000000, 8},		/* "this network" */
		{0x0A000000, 8},		/* private */
		{0x64400000, 10},		/* carrier-grade NAT */
		{0x7F000000, 8},		/* loopback */
		{0xA9FE0000, 16},		/* link-local, including cloud metadata
								 * services */
		{0xAC100000, 12},		/* private */
		{0xC0000000, 24},		/* IETF protocol assignments */
		{0xC0A80000, 16},		/* private */
		{0xC6120000, 15},		/* benchmarking */
		{0xE0000000, 3}			/* multicast, reserved, broadcast */
	};

	for (int i = 0; i < lengthof(private); i++)
	{
		if ((a ^ private[i].network) >> (32 - private[i].bits) == 0)
			return true;
	}
	return false;
}

/*
 * Is this an address to which a public name should not resolve: loopback,
 * link-local, private, multicast or reserved?  An IPv6 address that embeds an
 * IPv4 address (mapped, compatible, NAT64 or 6to4) is private if the IPv4
 * address is.
 */
static bool
is_private_v6(const unsigned char *a)
{
	static const unsigned char mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
	static const unsigned char nat64[12] = {0, 0x64, 0xff, 0x9b};
	static const unsigned char zeros[12] = {0};
	const unsigned char *v4 = NULL;

	if (memcmp(a, mapped, 12) == 0 || memcmp(a, nat64, 12) == 0 ||
		memcmp(a, zeros, 12) == 0)
		v4 = a + 12;
	else if (a[0] == 0x20 && a[1] == 0x02)
		v4 = a + 2;				/* 6to4 */
	if (v4 != NULL)
		return is_private_v4((uint32) v4[0] << 24 | v4[1] << 16 |
							 v4[2] << 8 | v4[3]);

	/*
	 * Apart from the ranges above, an address is global only if it is in
	 * 2000::/3 and not in 2001::/23.
	 */
	return (a[0] & 0xe0) != 0x20 ||
		(a[0] == 0x20 && a[1] == 0x01 && (a[2] & 0xfe) == 0);
}

/*
 * Is this a private address, which a host must not have if only a pattern
 * allows the host?  Addresses of unknown families count as private.  Must not
 * throw, because libcurl's callbacks call this.
 */
bool
hrflow_link_is_private(const struct sockaddr *address)
{
	switch (address->sa_family)
	{
		case AF_INET:
			return is_private_v4(ntohl(((const struct sockaddr_in *) address)->sin_addr.s_addr));
		case AF_INET6:
			return is_private_v6(((const struct sockaddr_in6 *) address)->sin6_addr.s6_addr);
		default:
			return true;
	}
}
