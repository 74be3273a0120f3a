/*-------------------------------------------------------------------------
 *
 * trust.c
 *		Chooses the certificate authorities to trust for servers and proxies.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <dirent.h>
#include <sys/stat.h>

#include "transport/libcurl.h"

/*
 * Certificates to trust if hrflow_embed.ca_file is not set.  They are
 * determined once.
 */
static struct
{
	bool		is_known;
	char	   *folder;			/* OpenSSL's hashed directory of certificates,
								 * malloc'd; or NULL */
	bool		is_default;		/* use libcurl's defaults */
}			trust;

/*
 * Has the file that ca_file names changed since the last check, or is this the
 * first check of an existing file?  Checking takes 3% of the time of a call
 * over loopback (BENCH_ONLY=1 make bench), so check at most once a second.
 */
bool
hrflow_trust_changed(const HrflowSettings *settings)
{
	static struct stat file;	/* status of the file when it was last checked */
	static int64 seen = 0;		/* time of that check */
	struct stat before;
	int64		now = hrflow_clock_now();

	if (*settings->ca_file == '\0' || now - seen < HRFLOW_SEC)
		return false;
	before = file;
	seen = now;
	if (stat(settings->ca_file, &file) != 0)
		memset(&file, 0, sizeof(file));
	return before.st_dev != file.st_dev ||
		before.st_ino != file.st_ino ||
		before.st_size != file.st_size ||
		before.st_mtime != file.st_mtime ||
		before.st_ctime != file.st_ctime;
}

/*
 * Does a directory contain a file that OpenSSL would find by the hash of a
 * certificate, such as "4042bcee.0"?
 */
static bool
is_hashed_folder(const char *path)
{
	DIR		   *dir = opendir(path);
	struct dirent *entry;
	bool		found = false;

	if (dir == NULL)
		return false;
	while (!found && (entry = readdir(dir)) != NULL)
		found = strspn(entry->d_name, "0123456789abcdef") == 8 &&
			entry->d_name[8] == '.' && entry->d_name[9] == '0' &&
			entry->d_name[10] == '\0';
	closedir(dir);
	return found;
}

/*
 * Does libcurl use OpenSSL?  If libcurl was built with several TLS libraries,
 * it reports the unused libraries in parentheses.
 */
static bool
is_openssl(const char *tls)
{
	const char *found = strstr(tls, "OpenSSL");

	return found != NULL && (found == tls || found[-1] != '(');
}

/*
 * Determine the certificate authorities to trust by default.
 *
 * OpenSSL 3 takes 21 ms to parse Debian's certificate bundle.  By default,
 * libcurl sets both a bundle and a directory, and then makes OpenSSL parse the
 * bundle for every connection.  Therefore set only one of them.  OpenSSL reads
 * the files of a hashed directory as needed, and libcurl caches a bundle,
 * except in version 8.22.0 (060_batch.pl).  For other TLS libraries, keep the
 * defaults.
 */
static void
find_trust(CURL *easy)
{
	const char *tls = curl_version_info(CURLVERSION_NOW)->ssl_version;
	char	   *path = NULL;

	if (trust.is_known)
		return;

	trust.is_default = tls == NULL || !is_openssl(tls);
	if (!trust.is_default &&
		curl_easy_getinfo(easy, CURLINFO_CAPATH, &path) == CURLE_OK &&
		path != NULL && is_hashed_folder(path))
	{
		trust.folder = strdup(path);
		if (trust.folder == NULL)
			hrflow_out_of_memory();
	}
	trust.is_known = true;
}

/*
 * libcurl's options for TLS: verification of the peer's certificate, minimum
 * version, and CA file and directory.  Servers and HTTPS proxies have separate
 * sets of options.
 */
typedef struct TrustOptions
{
	CURLoption	verify_peer;
	CURLoption	verify_host;
	CURLoption	version;
	CURLoption	file;
	CURLoption	folder;
} TrustOptions;

static const TrustOptions server_trust = {
	.verify_peer = CURLOPT_SSL_VERIFYPEER,
	.verify_host = CURLOPT_SSL_VERIFYHOST,
	.version = CURLOPT_SSLVERSION,
	.file = CURLOPT_CAINFO,
	.folder = CURLOPT_CAPATH
};

static const TrustOptions proxy_trust = {
	.verify_peer = CURLOPT_PROXY_SSL_VERIFYPEER,
	.verify_host = CURLOPT_PROXY_SSL_VERIFYHOST,
	.version = CURLOPT_PROXY_SSLVERSION,
	.file = CURLOPT_PROXY_CAINFO,
	.folder = CURLOPT_PROXY_CAPATH
};

static void
set_options(CURL *easy, const HrflowSettings *settings,
			const TrustOptions *options)
{
	HRFLOW_SETOPT(easy, options->verify_peer, 1L);
	HRFLOW_SETOPT(easy, options->verify_host, 2L);
	HRFLOW_SETOPT(easy, options->version, (long) CURL_SSLVERSION_TLSv1_2);

	if (*settings->ca_file != '\0')
	{
		HRFLOW_SETOPT(easy, options->file, settings->ca_file);
		HRFLOW_SETOPT(easy, options->folder, NULL);
	}
	else if (trust.folder != NULL)
	{
		HRFLOW_SETOPT(easy, options->file, NULL);
		HRFLOW_SETOPT(easy, options->folder, trust.folder);
	}
	else if (!trust.is_default)
		HRFLOW_SETOPT(easy, options->folder, NULL);
}

/*
 * Configure a handle to verify its peers according to these settings.
 */
void
hrflow_trust_configure(CURL *easy, const HrflowSettings *settings)
{
	find_trust(easy);
	set_options(easy, settings, &server_trust);
	if (*settings->proxy != '\0')
		set_options(easy, settings, &proxy_trust);
}
