/*-------------------------------------------------------------------------
 *
 * libcurl.h
 *		Declarations for the files that use libcurl: curl.c, failure.c,
 *		features.c, headers.c, idle.c, lookup.c, pool.c, sharing.c and trust.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HRFLOW_LIBCURL_H
#define HRFLOW_LIBCURL_H

#include "postgres.h"

#include <curl/curl.h>

#include "transport/transfer.h"

#define HRFLOW_SETOPT(easy, option, value) \
	hrflow_pool_check_option(curl_easy_setopt(easy, option, value), #option)

/*
 * libcurl's lists of headers; see HrflowHeaders in transfer.h.
 */
struct HrflowHeaders
{
	uint64		serial;			/* serial of the settings */
	int			nusers;			/* number of transports that use these
								 * headers, plus one if they are
								 * cached_headers */
	struct curl_slist *get;		/* for GET requests to the API */
	struct curl_slist *post;	/* for POST requests to the API */
	struct curl_slist *link;	/* for links */
};

/* in failure.c */
extern void hrflow_failure_classify(HrflowTransfer *transfer, CURLcode code);

/* in features.c */
extern void hrflow_features_check(void);
extern bool hrflow_features_http2(void);

/* in pool.c */
extern void hrflow_pool_check_option(CURLcode code, const char *what);
extern curl_socket_t hrflow_pool_open_socket(const struct curl_sockaddr *address,
											 int connect_timeout);
extern int	hrflow_pool_close_socket(void *arg, curl_socket_t fd);
extern void hrflow_pool_discard(void);
extern bool hrflow_pool_is_short(void);
extern void hrflow_pool_add(CURL *easy);
extern void hrflow_pool_remove(CURL *easy);
extern CURLMsg *hrflow_pool_next_message(void);

/* in trust.c */
extern bool hrflow_trust_changed(const HrflowSettings *settings);
extern void hrflow_trust_configure(CURL *easy, const HrflowSettings *settings);

#endif							/* HRFLOW_LIBCURL_H */
