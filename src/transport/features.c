/*-------------------------------------------------------------------------
 *
 * features.c
 *		What the libcurl that was loaded was built with.
 *
 * Distributions build libcurl with everything we use, but a server may find
 * another one in its library path.  Without TLS or an asynchronous resolver
 * there is no safe way to send a request; without HTTP/2 requests are only
 * slower.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/libcurl.h"

/* Names the package that has all features. */
#define FEATURES_HINT \
	"Install libcurl from your distribution (libcurl4 on Debian and Ubuntu, libcurl on Red Hat), and remove other builds of it from the server's library path."

/* CURL_VERSION_* of what there is; curl_version_info() is not cheap. */
static int	features = 0;

/*
 * Throw unless libcurl can make requests that are verified and can be
 * cancelled.  A blocking resolver would hold up cancels and exceed every time
 * limit for as long as a name server does not answer.
 */
void
hrflow_features_check(void)
{
	const curl_version_info_data *info = curl_version_info(CURLVERSION_NOW);

	features = info->features;
	if (!(features & CURL_VERSION_SSL))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("libcurl %s was built without TLS", info->version),
				 errhint(FEATURES_HINT)));
	if (!(features & CURL_VERSION_ASYNCHDNS))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("libcurl %s was built without an asynchronous resolver",
						info->version),
				 errhint(FEATURES_HINT)));
}

/*
 * Can HTTP/2 be offered to servers?  hrflow_features_check() has been called.
 */
bool
hrflow_features_http2(void)
{
	return (features & CURL_VERSION_HTTP2) != 0;
}
