/*-------------------------------------------------------------------------
 *
 * headers.c
 *		Creates the headers of requests.
 *
 * libcurl does not copy headers, so they are kept as long as a transport uses
 * them.  Transports with the same settings share the headers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/libcurl.h"

/* The most recently created headers. */
static HrflowHeaders *cached_headers = NULL;

/*
 * Add a header.  An empty value makes libcurl omit its own header of that
 * name.  Returns false if there is not enough memory, or if the header is too
 * long, which cannot happen, because keys and users longer than HRFLOW_MAX_KEY
 * have been refused.
 */
static bool
add_header(struct curl_slist **headers, const char *name, const char *value)
{
	char		line[HRFLOW_MAX_KEY + 32];
	struct curl_slist *list;
	int			length = snprintf(line, sizeof(line), "%s: %s", name, value);

	if (length < 0 || length >= (int) sizeof(line))
		return false;
	list = curl_slist_append(*headers, line);
	if (list != NULL)
		*headers = list;
	return list != NULL;
}

/*
 * Add the headers that all requests have.
 *
 * libcurl has an option for each of them, but formats the value of an option
 * character by character, twice for each request, which takes a tenth of
 * libcurl's CPU time.
 */
static bool
add_client_headers(struct curl_slist **headers)
{
	return add_header(headers, "User-Agent",
					  "hrflow_embed/" HRFLOW_EMBED_VERSION) &&
		add_header(headers, "Accept-Encoding", HRFLOW_ACCEPTED_ENCODING);
}

/*
 * Add the headers that all requests to the API have.
 */
static bool
add_api_headers(struct curl_slist **headers, const HrflowSettings *settings)
{
	return add_client_headers(headers) &&
		add_header(headers, "X-API-KEY", settings->api_key) &&
		(*settings->api_user == '\0' ||
		 add_header(headers, "X-USER-EMAIL", settings->api_user)) &&
		add_header(headers, "Accept", "application/json");
}

/*
 * Free headers.  Does not throw.
 */
static void
free_headers(HrflowHeaders *headers)
{
	curl_slist_free_all(headers->get);
	curl_slist_free_all(headers->post);
	curl_slist_free_all(headers->link);
	free(headers);
}

/*
 * Return the headers for requests with these settings.  The caller must
 * release them once no request that uses them is in flight.  Throws if there
 * is not enough memory.
 */
HrflowHeaders *
hrflow_headers_get(const HrflowSettings *settings)
{
	HrflowHeaders *headers = cached_headers;

	if (headers != NULL && headers->serial == settings->serial)
	{
		headers->nusers++;
		return headers;
	}

	/*
	 * The empty Expect header prevents libcurl from waiting up to 1 s for
	 * "100 Continue", which some servers never send.
	 */
	headers = calloc(1, sizeof(HrflowHeaders));
	if (headers == NULL ||
		!add_client_headers(&headers->link) ||
		!add_api_headers(&headers->get, settings) ||
		!add_api_headers(&headers->post, settings) ||
		!add_header(&headers->post, "Content-Type", "application/json") ||
		!add_header(&headers->post, "Expect", ""))
	{
		if (headers != NULL)
			free_headers(headers);
		hrflow_out_of_memory();
	}
	if (cached_headers != NULL)
		hrflow_headers_release(cached_headers);
	headers->serial = settings->serial;
	headers->nusers = 2;
	cached_headers = headers;
	return headers;
}

/*
 * Release headers, and free them unless they are still in use.  Does not
 * throw.
 */
void
hrflow_headers_release(HrflowHeaders *headers)
{
	if (--headers->nusers == 0)
		free_headers(headers);
}
