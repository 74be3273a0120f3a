/*-------------------------------------------------------------------------
 *
 * features.c
 *		Checks the features of the libcurl that was loaded.
 *
 * Distributions usually build libcurl with everything we need, but a server
 * may find a different build in its library path.  Without TLS or an
 * asynchronous resolver, requests would not be safe; without HTTP/2, they are
 * only slower.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/libcurl.h"

/* Hint that names the packages with all features. */
#define FEATURES_HINT \
	"Install libcurl from your distribution (libcurl4 on Debian and Ubuntu, libcurl on Red Hat), and remove other builds of it from the server's library path."

/* CURL_VERSION_* bits, cached because curl_version_info() is not cheap. */
static int	features = 0;

/*
 * Raise an error unless libcurl supports TLS and has an asynchronous resolver.
 * A blocking resolver would delay cancels, and exceed all time limits, for as
 * long as a name server does not answer.
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
 * Does libcurl support HTTP/2?  hrflow_features_check() must have been called.
 */
bool
hrflow_features_http2(void)
{
	return (features & CURL_VERSION_HTTP2) != 0;
}
