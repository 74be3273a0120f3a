/*
 * features.c
 *		Simulates a libcurl that was built without some features.
 *
 * Preloaded by LD_PRELOAD, it hides the features whose CURL_VERSION_* bits are
 * set in HRFLOW_WITHOUT, and refuses HTTP/2 as a libcurl without it does.
 */
#define _GNU_SOURCE
#define CURL_DISABLE_TYPECHECK
#include <curl/curl.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>

#undef curl_easy_setopt

static int
without(void)
{
	return atoi(getenv("HRFLOW_WITHOUT"));
}

curl_version_info_data *
curl_version_info(CURLversion version)
{
	static curl_version_info_data hidden;
	curl_version_info_data *(*real) (CURLversion) =
		dlsym(RTLD_NEXT, "curl_version_info");

	hidden = *real(version);
	hidden.features &= ~without();
	return &hidden;
}

CURLcode
curl_easy_setopt(CURL *easy, CURLoption option, ...)
{
	CURLcode	(*real) (CURL *, CURLoption, ...) =
		dlsym(RTLD_NEXT, "curl_easy_setopt");
	CURLcode	code;
	va_list		arguments;

	va_start(arguments, option);
	if (option >= CURLOPTTYPE_OFF_T && option < CURLOPTTYPE_BLOB)
		code = real(easy, option, va_arg(arguments, curl_off_t));
	else if (option >= CURLOPTTYPE_OBJECTPOINT)
		code = real(easy, option, va_arg(arguments, void *));
	else
	{
		long		value = va_arg(arguments, long);

		if (option == CURLOPT_HTTP_VERSION && value >= CURL_HTTP_VERSION_2_0 &&
			(without() & CURL_VERSION_HTTP2))
			code = CURLE_UNSUPPORTED_PROTOCOL;
		else
			code = real(easy, option, value);
	}
	va_end(arguments);
	return code;
}
