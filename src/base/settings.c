/*-------------------------------------------------------------------------
 *
 * settings.c
 *		Defines the settings (hrflow_embed.*), checks their values, and takes
 *		the snapshots of them that statements use.
 *
 * PostgreSQL's settings are not designed to hold secrets such as the API key.
 * To protect the key, check hooks keep PostgreSQL from printing rejected
 * values, SHOW prints asterisks, pg_settings omits the setting, and the key
 * cannot be stored in a catalog that everyone can read.  docs/reference.md
 * describes what we cannot prevent, and recommends api_key_file.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/parallel.h"
#include "access/xact.h"
#include "base/base.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/varlena.h"

/* SHOW prints this instead of the key. */
#define MASK "********"

static const struct config_enum_entry dialect_options[] = {
	{"id", HRFLOW_DIALECT_ID, false},
	{"key", HRFLOW_DIALECT_KEY, false},
	{NULL, 0, false}
};

/* Values of hrflow_embed.on_missing. */
typedef enum OnMissing
{
	ON_MISSING_ERROR,
	ON_MISSING_NULL
}			OnMissing;

static const struct config_enum_entry on_missing_options[] = {
	{"error", ON_MISSING_ERROR, false},
	{"null", ON_MISSING_NULL, false},
	{NULL, 0, false}
};

typedef enum HttpVersion
{
	HRFLOW_HTTP_AUTO,
	HRFLOW_HTTP_1
}			HttpVersion;

static const struct config_enum_entry http_version_options[] = {
	{"auto", HRFLOW_HTTP_AUTO, false},
	{"1.1", HRFLOW_HTTP_1, false},
	{NULL, 0, false}
};

/* Values of the settings, assigned by PostgreSQL. */
static char *api_key = NULL;
static char *api_key_file = NULL;
static char *api_user = NULL;
static char *base_url = NULL;
static int	api_dialect = HRFLOW_DIALECT_ID;
static char *ca_file = NULL;
static char *proxy = NULL;
static char *link_hosts = NULL;
static int	connect_timeout = HRFLOW_CONNECT_TIMEOUT;
static int	request_timeout = 30000;
static int	batch_timeout = 0;
static int	refresh_debounce = 60000;
static int	max_attempts = 4;
static int	on_missing = ON_MISSING_ERROR;
static int	max_concurrency = 128;
static int	max_requests_per_minute = 0;
static int	max_requests_per_statement = 0;
static int	statement_request_limit = 0;
static int	max_requests_per_day = 0;
static int	max_response_size = 4096;
static int	vector_dimension = 0;
static bool allow_in_shard_queries = false;
static bool read_ahead = true;
static int	max_erased_percent = 5;
static int	http_version = HRFLOW_HTTP_AUTO;

/*
 * A snapshot of the settings.  It is immutable, and is freed when it is no
 * longer "current" and no memory context pins it.  A copy made by
 * hrflow_settings_copy() belongs to a memory context instead, and may be
 * modified.
 */
typedef struct SettingsCopy
{
	HrflowSettings settings;
	MemoryContext context;		/* memory context of this struct and its
								 * strings, or NULL for a copy */
	int			npins;			/* number of pins, plus one if this is
								 * "current" or a copy */
} SettingsCopy;

/* A pin held by a memory context, released when the context is reset. */
typedef struct Pin
{
	MemoryContextCallback on_reset;
	SettingsCopy *copy;
} Pin;

/*
 * Incremented whenever a setting that snapshots contain is assigned, which
 * makes the current snapshot obsolete.
 */
static uint64 assignments = 1;

/* The latest snapshot, or NULL if none has been taken. */
static SettingsCopy *current = NULL;

/* Value of "assignments" when "current" was taken. */
static uint64 current_assignments = 0;

/*
 * True while the settings are being defined, when PostgreSQL applies the
 * values that were set before the library was loaded; remains true if that
 * fails.
 */
static bool defining = false;

/* Have the settings been defined? */
static bool defined = false;

/* Was the key set in a configuration file before the library was loaded? */
static bool key_was_in_file = false;

/*
 * ------------------------------------------------------------------------
 * Check hooks.  Each hook sets its own message, because PostgreSQL's default
 * message would include the rejected value.
 * ------------------------------------------------------------------------
 */

/*
 * Reject a value without printing it.  Parallel workers accept all of their
 * leader's values, because the context of an error raised in a worker would
 * include the value.  Workers should not use the settings; if one does,
 * hrflow_settings_get() checks the values again, except the paths of files.
 */
static bool
refuse_value(const char *name, const char *why)
{
	if (InitializingParallelWorker)
		return true;
	GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
	GUC_check_errmsg("invalid value for parameter \"%s\"", name);
	GUC_check_errdetail("%s", _(why));
	return false;
}

/*
 * Does this source mean that the value is, or will be, stored in
 * pg_db_role_setting or pg_proc, which everyone can read?
 */
static bool
in_catalog(GucSource source)
{
	return source == PGC_S_TEST || source == PGC_S_GLOBAL ||
		source == PGC_S_DATABASE || source == PGC_S_USER ||
		source == PGC_S_DATABASE_USER;
}

static bool
check_api_key(char **newval, void **extra, GucSource source)
{
	const char *why = hrflow_key_problem(*newval);

	if (**newval == '\0')
		return true;

	if (in_catalog(source) && !InitializingParallelWorker)
	{
		GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
		GUC_check_errmsg("parameter \"%s\" cannot be set for a role, a database or a function",
						 "hrflow_embed.api_key");
		GUC_check_errdetail("Every role could read the key in the catalogs.");
		GUC_check_errhint("Set \"hrflow_embed.api_key_file\" instead.");
		return false;
	}
	if (strcmp(*newval, MASK) == 0)
		return refuse_value("hrflow_embed.api_key",
							gettext_noop("The value is the placeholder that SHOW prints instead of a key."));
	if (why != NULL)
		return refuse_value("hrflow_embed.api_key", why);

	if (defining && source == PGC_S_FILE)
		key_was_in_file = true;
	return true;
}

static bool
check_api_user(char **newval, void **extra, GucSource source)
{
	const char *why = hrflow_key_problem(*newval);

	return why == NULL || refuse_value("hrflow_embed.api_user", why);
}

static bool
check_file(const char *name, const char *value)
{
	return *value == '\0' || is_absolute_path(value) ||
		refuse_value(name, gettext_noop("The value is not an absolute path."));
}

static bool
check_api_key_file(char **newval, void **extra, GucSource source)
{
	return check_file("hrflow_embed.api_key_file", *newval);
}

static bool
check_ca_file(char **newval, void **extra, GucSource source)
{
	return check_file("hrflow_embed.ca_file", *newval);
}

static bool
check_base_url(char **newval, void **extra, GucSource source)
{
	const char *why = hrflow_url_bad_base(*newval);

	return why == NULL || refuse_value("hrflow_embed.base_url", why);
}

static bool
check_proxy(char **newval, void **extra, GucSource source)
{
	const char *why = hrflow_url_bad_proxy(*newval);

	if (why == NULL && in_catalog(source) && strchr(*newval, '@') != NULL)
		why = gettext_noop("The value contains a user name or a password, which every role could read in the catalogs.");
	return why == NULL || refuse_value("hrflow_embed.proxy", why);
}

static bool
check_link_hosts(char **newval, void **extra, GucSource source)
{
	const char *why = hrflow_link_bad_hosts(*newval);

	return why == NULL || refuse_value("hrflow_embed.link_hosts", why);
}

/*
 * ------------------------------------------------------------------------
 * Definitions
 * ------------------------------------------------------------------------
 */

static void
assign_string(const char *newval, void *extra)
{
	assignments++;
}

static void
assign_int(int newval, void *extra)
{
	assignments++;
}

static void
assign_bool(bool newval, void *extra)
{
	assignments++;
}

static const char *
show_api_key(void)
{
	return api_key != NULL && *api_key != '\0' ? MASK : "";
}

/*
 * Does a list such as session_preload_libraries contain this library?
 */
static bool
is_listed(const char *libraries)
{
	char	   *copy = pstrdup(libraries ? libraries : "");
	List	   *names = NIL;
	ListCell   *cell;
	bool		found = false;

	if (SplitDirectoriesString(copy, ',', &names))
	{
		foreach(cell, names)
		{
			const char *name = last_dir_separator(lfirst(cell));

			name = name ? name + 1 : lfirst(cell);
			if (strcmp(name, "hrflow_embed") == 0 ||
				strcmp(name, "hrflow_embed" DLSUFFIX) == 0)
				found = true;
		}
	}
	list_free_deep(names);
	pfree(copy);
	return found;
}

/*
 * Until this library is loaded, "hrflow_embed.api_key" is a placeholder that
 * every role can SHOW.  Warn if a configuration file set the key before the
 * library was loaded, unless shared_preload_libraries or
 * session_preload_libraries contains the library.  Parallel workers do not
 * warn.
 */
static void
warn_if_key_was_readable(void)
{
	if (!key_was_in_file || process_shared_preload_libraries_in_progress ||
		IsParallelWorker() ||
		is_listed(shared_preload_libraries_string) ||
		is_listed(session_preload_libraries_string))
		return;

	ereport(WARNING,
			(errmsg("every role could read parameter \"%s\" until hrflow_embed was loaded",
					"hrflow_embed.api_key"),
			 errhint("Set \"hrflow_embed.api_key_file\" instead, or add hrflow_embed to \"shared_preload_libraries\".")));
}

/*
 * Transaction callback: define the settings before the commit, when parallel
 * mode has certainly ended.  Do nothing if an earlier attempt failed, because
 * another attempt would probably fail, too, and the session could never
 * commit.
 */
static void
define_deferred(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_COMMIT && !defining)
		hrflow_settings_define();
}

/*
 * Define all settings.  Called when the library is loaded, and again until it
 * has succeeded.  The library may be loaded in the postmaster, so this must
 * not initialize libcurl.
 *
 * In parallel mode the definitions are deferred, because PostgreSQL would
 * discard values that were set earlier, with only a warning, and use the
 * defaults.  The settings are then defined by the first statement that needs
 * them outside of parallel mode, or when the transaction is about to commit.
 * Until then, parallel workers, which do define the settings, may reject the
 * session's values.
 */
void
hrflow_settings_define(void)
{
	static bool is_deferred = false;

	if (defined)
		return;
	if (IsInParallelMode())
	{
		if (!is_deferred)
			RegisterXactCallback(define_deferred, NULL);
		is_deferred = true;
		return;
	}
	defining = true;
	hrflow_refused_begin();

	DefineCustomStringVariable("hrflow_embed.api_key",
							   "Sets the key of the HrFlow API.",
							   "It is safer to set \"hrflow_embed.api_key_file\" instead.",
							   &api_key, "",
							   PGC_SUSET,
							   GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE,
							   check_api_key, assign_string, show_api_key);
	DefineCustomStringVariable("hrflow_embed.api_key_file",
							   "Sets the path of the file that contains the key of the HrFlow API.",
							   "The operating system user of the database server must be able to read it.",
							   &api_key_file, "",
							   PGC_SUSET, 0,
							   check_api_key_file, assign_string, NULL);
	DefineCustomStringVariable("hrflow_embed.api_user",
							   "Sets the e-mail address of the HrFlow account.",
							   "It is sent in the header X-USER-EMAIL, unless it is empty.",
							   &api_user, "",
							   PGC_SUSET, 0,
							   check_api_user, assign_string, NULL);
	DefineCustomStringVariable("hrflow_embed.base_url",
							   "Sets the URL of the HrFlow API.",
							   "The key is sent only to the origin of this URL.",
							   &base_url, "https://api.hrflow.ai/v1",
							   PGC_SUSET, 0,
							   check_base_url, assign_string, NULL);
	DefineCustomEnumVariable("hrflow_embed.api_dialect",
							 "Sets the names of the parameters that the HrFlow API expects.",
							 "With \"id\", it expects source_id and profile_id; with \"key\", source_key and key.",
							 &api_dialect, HRFLOW_DIALECT_ID, dialect_options,
							 PGC_SUSET, 0,
							 NULL, assign_int, NULL);
	DefineCustomEnumVariable("hrflow_embed.http_version",
							 "Sets the version of HTTP to use over TLS.",
							 "With \"auto\", HTTP/2 is used where possible; with \"1.1\", it is never used.",
							 &http_version, HRFLOW_HTTP_AUTO, http_version_options,
							 PGC_USERSET, 0,
							 NULL, assign_int, NULL);
	DefineCustomStringVariable("hrflow_embed.ca_file",
							   "Sets the path of a PEM file with the certificate authorities to trust.",
							   "They replace those of the system.",
							   &ca_file, "",
							   PGC_SUSET, 0,
							   check_ca_file, assign_string, NULL);
	DefineCustomStringVariable("hrflow_embed.proxy",
							   "Sets the URL of the proxy to use.",
							   "Requests to loopback addresses bypass it. The environment variables *_proxy are ignored.",
							   &proxy, "",
							   PGC_SUSET, GUC_SUPERUSER_ONLY,
							   check_proxy, assign_string, NULL);
	DefineCustomStringVariable("hrflow_embed.link_hosts",
							   "Sets the hosts whose links may be fetched.",
							   "This is a comma-separated list in which \"*\" matches any characters other than a dot. Only hosts listed without \"*\" may have a private address.",
							   &link_hosts,
							   "*.s3.amazonaws.com, *.s3.*.amazonaws.com",
							   PGC_SUSET, GUC_LIST_INPUT,
							   check_link_hosts, assign_string, NULL);
	DefineCustomIntVariable("hrflow_embed.connect_timeout",
							"Sets the maximum time to establish a connection, for each attempt.",
							NULL,
							&connect_timeout, HRFLOW_CONNECT_TIMEOUT, 10, INT_MAX / 1000,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, assign_int, NULL);
	DefineCustomIntVariable("hrflow_embed.request_timeout",
							"Sets the maximum duration of each attempt, including connecting and reading.",
							NULL,
							&request_timeout, 30000, 10, INT_MAX / 1000,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, assign_int, NULL);
	DefineCustomIntVariable("hrflow_embed.batch_timeout",
							"Sets the maximum duration of a batch.",
							"Elements not complete by then get the status \"timeout\"; results already received are kept. Zero means no limit.",
							&batch_timeout, 0, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, assign_int, NULL);
	DefineCustomIntVariable("hrflow_embed.refresh_debounce",
							"Sets the time before a profile that changed while it was being fetched is fetched again.",
							"Its answer is stored meanwhile. A profile that changes constantly is fetched at most once in this time.",
							&refresh_debounce, 60000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, assign_int, NULL);
	DefineCustomIntVariable("hrflow_embed.max_concurrency",
							"Sets the maximum number of requests in flight per backend.",
							"The actual number starts at no more than 32 and adapts to the server.",
							&max_concurrency,
							128, 1, HRFLOW_MAX_CONCURRENCY,
							PGC_USERSET, 0,
							NULL, assign_int, NULL);
	DefineCustomIntVariable("hrflow_embed.max_requests_per_minute",
							"Sets the maximum number of requests per minute to the HrFlow API with one key.",
							"Zero means no limit. All backends share the limit if hrflow_embed is in \"shared_preload_libraries\" or the server is PostgreSQL 17 or later; otherwise it applies to each backend.",
							&max_requests_per_minute, 0, 0, 1000000,
							PGC_SUSET, 0,
							NULL, assign_int, NULL);
	DefineCustomIntVariable("hrflow_embed.max_requests_per_statement",
							"Sets the maximum number of requests to the HrFlow API per statement of a client.",
							"Zero means no limit.",
							&max_requests_per_statement, 0, 0, INT_MAX,
							PGC_USERSET, 0,
							NULL, assign_int, NULL);
	DefineCustomIntVariable("hrflow_embed.statement_request_limit",
							"Sets the upper bound of \"hrflow_embed.max_requests_per_statement\".",
							"Only superusers, and roles with privilege SET on it, can change it. Zero means no bound.",
							&statement_request_limit, 0, 0, INT_MAX,
							PGC_SUSET, 0,
							NULL, assign_int, NULL);
	DefineCustomIntVariable("hrflow_embed.max_requests_per_day",
							"Sets the maximum number of requests per day (in UTC) to the HrFlow API with one key.",
							"Zero means no limit. All backends share the limit if hrflow_embed is in \"shared_preload_libraries\" or the server is PostgreSQL 17 or later; otherwise it applies to each backend.",
							&max_requests_per_day, 0, 0, INT_MAX,
							PGC_SUSET, 0,
							NULL, assign_int, NULL);
	DefineCustomIntVariable("hrflow_embed.max_attempts",
							"Sets the maximum number of attempts per request, including the first.",
							NULL,
							&max_attempts, 4, 1, 20,
							PGC_USERSET, 0,
							NULL, assign_int, NULL);
	DefineCustomEnumVariable("hrflow_embed.on_missing",
							 "Sets what happens if a profile, job or link is not found or has no vector.",
							 "With \"error\", an error is raised; with \"null\", functions that return one value return NULL, and a WARNING reports how many calls did.",
							 &on_missing, ON_MISSING_ERROR, on_missing_options,
							 PGC_USERSET, 0,
							 NULL, assign_int, NULL);
	DefineCustomIntVariable("hrflow_embed.max_response_size",
							"Sets the maximum size of a reply after decompression.",
							NULL,
							&max_response_size, 4096, 1,
							HRFLOW_MAX_BUFFERED / 1024,
							PGC_SUSET, GUC_UNIT_KB,
							NULL, assign_int, NULL);
	DefineCustomIntVariable("hrflow_embed.vector_dimension",
							"Sets the number of elements of the vectors of the account's model.",
							"It is needed to separate the vectors of a document, which the API concatenates. Zero means unknown.",
							&vector_dimension, 0, 0, 16000,
							PGC_USERSET, 0,
							NULL, assign_int, NULL);
	DefineCustomBoolVariable("hrflow_embed.allow_in_shard_queries",
							 "Allows batches in queries that Citus runs on shards.",
							 "Each shard would send all requests of the batch.",
							 &allow_in_shard_queries, false,
							 PGC_USERSET, 0,
							 NULL, assign_bool, NULL);

	DefineCustomBoolVariable("hrflow_embed.read_ahead",
							 "Enables issuing the calls of a query ahead of their rows.",
							 "Otherwise each call waits for the previous one.",
							 &read_ahead, true,
							 PGC_USERSET, 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable("hrflow_embed.max_erased_percent",
							"Sets the maximum percentage of a store's profiles that may lose vectors within 24 hours without being deleted or untracked.",
							"At least 20 profiles may lose vectors, regardless of this setting.",
							&max_erased_percent, 5, 0, 100,
							PGC_USERSET, 0,
							NULL, NULL, NULL);

	MarkGUCPrefixReserved("hrflow_embed");
	hrflow_refused_find();

	defining = false;
	defined = true;				/* set last, so that if a definition fails,
								 * the next call fails, too */
	warn_if_key_was_readable();
}

/*
 * ------------------------------------------------------------------------
 * Snapshots
 * ------------------------------------------------------------------------
 */

/*
 * Check a setting again when it is used, since its check hook may have
 * accepted an invalid value: see refuse_value().
 */
static void
check_at_use(const char *setting, const char *why)
{
	if (why != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for parameter \"%s\"", setting),
				 errdetail_internal("%s", _(why))));
}

/*
 * Return the API key; the string is valid until the next call, or until
 * "hrflow_embed.api_key" is assigned.
 */
static const char *
find_key(void)
{
	if (api_key != NULL && *api_key != '\0')
	{
		check_at_use("hrflow_embed.api_key", hrflow_key_problem(api_key));
		return api_key;
	}
	if (api_key_file == NULL || *api_key_file == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no HrFlow API key is configured"),
				 errhint("Ask a superuser to set \"hrflow_embed.api_key_file\" to the path of a file that contains the key.")));
	return hrflow_key_read(api_key_file);
}

static const char *
copy_string(MemoryContext context, const char *value)
{
	return MemoryContextStrdup(context, value ? value : "");
}

/*
 * Take a snapshot of the settings, with "key" as the API key.  The caller owns
 * the only pin.
 */
static SettingsCopy *
take_copy(const char *key)
{
	static uint64 serial = 0;
	MemoryContext context;
	SettingsCopy *copy;
	char	   *url;

	/*
	 * Until the snapshot is complete, its context is a child of the current
	 * one, so that an error frees it.
	 */
	context = AllocSetContextCreate(CurrentMemoryContext,
									"hrflow_embed settings",
									ALLOCSET_SMALL_SIZES);
	url = unconstify(char *, copy_string(context, base_url));
	for (size_t n = strlen(url); n > 0 && url[n - 1] == '/'; n--)
		url[n - 1] = '\0';
	copy = MemoryContextAllocZero(context, sizeof(SettingsCopy));
	copy->context = context;
	copy->npins = 1;
	copy->settings.serial = ++serial;
	copy->settings.api_key = copy_string(context, key);
	copy->settings.api_user = copy_string(context, api_user);
	copy->settings.base_url = url;
	copy->settings.dialect = api_dialect;
	copy->settings.ca_file = copy_string(context, ca_file);
	copy->settings.proxy = copy_string(context, proxy);
	copy->settings.link_hosts = copy_string(context, link_hosts);
	copy->settings.connect_timeout = connect_timeout;
	copy->settings.request_timeout = request_timeout;
	copy->settings.batch_timeout = batch_timeout;
	copy->settings.refresh_debounce = refresh_debounce;
	copy->settings.max_attempts = max_attempts;
	copy->settings.missing_is_null = on_missing == ON_MISSING_NULL;
	copy->settings.max_concurrency = max_concurrency;
	copy->settings.max_requests_per_minute = max_requests_per_minute;
	copy->settings.max_requests_per_statement =
		max_requests_per_statement == 0 ? statement_request_limit :
		statement_request_limit == 0 ? max_requests_per_statement :
		Min(max_requests_per_statement, statement_request_limit);
	copy->settings.max_requests_per_day = max_requests_per_day;
	copy->settings.max_response_size = (size_t) max_response_size * 1024;
	copy->settings.vector_dimension = vector_dimension;
	copy->settings.allow_in_shard_queries = allow_in_shard_queries;
	copy->settings.http2 = http_version == HRFLOW_HTTP_AUTO;
	MemoryContextSetParent(context, TopMemoryContext);
	return copy;
}

/*
 * Release a pin, and free the snapshot if no other pin is left.  Does not
 * throw.
 */
static void
unpin(SettingsCopy *copy)
{
	if (--copy->npins == 0)
		MemoryContextDelete(copy->context);
}

static void
on_pin_reset(void *arg)
{
	Pin		   *pin = arg;

	unpin(pin->copy);
}

/*
 * Keep a snapshot valid until the current memory context is reset, and return
 * the snapshot.  A copy must not be pinned for longer than it lives.
 */
const HrflowSettings *
hrflow_settings_pin(const HrflowSettings *settings)
{
	Pin		   *pin = palloc(sizeof(Pin));

	pin->copy = (SettingsCopy *) ((char *) unconstify(HrflowSettings *, settings) -
								  offsetof(SettingsCopy, settings));
	Assert(pin->copy->npins > 0);
	pin->copy->npins++;
	pin->on_reset.func = on_pin_reset;
	pin->on_reset.arg = pin;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &pin->on_reset);
	return settings;
}

/*
 * Return a copy of "settings" that the caller may modify before passing it to
 * other functions.  The copy is allocated in the current memory context, and
 * pins do not extend its life.  It shares the strings of "settings", which
 * must remain pinned.
 */
HrflowSettings *
hrflow_settings_copy(const HrflowSettings *settings)
{
	SettingsCopy *copy = palloc0(sizeof(SettingsCopy));

	copy->settings = *settings;
	copy->context = NULL;		/* the current context owns the copy */
	copy->npins = 1;
	return &copy->settings;
}

/*
 * Return the settings for a statement that is starting.  They do not change,
 * and live until the current memory context is reset.  Raises 55000 if a
 * needed key cannot be found or read, if the settings are not defined, or if
 * the value of one was refused, and 22023 if a setting or the key is invalid.
 *
 * A new snapshot is taken only if a setting has been assigned since the latest
 * one was taken, or if a key is needed that the latest one does not contain;
 * the transport compares serials to decide whether prepared handles and
 * headers are still valid.
 */
const HrflowSettings *
hrflow_settings_get(bool need_key)
{
	const char *key;
	SettingsCopy *copy;

	hrflow_settings_define();
	if (!defined)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot read the settings of hrflow_embed during a parallel operation"),
				 errhint("Add hrflow_embed to \"session_preload_libraries\", or call one of its functions earlier in the session.")));
	hrflow_refused_check();
	key = need_key ? find_key() : "";
	if (current_assignments == assignments &&
		(!need_key || strcmp(current->settings.api_key, key) == 0))
		return hrflow_settings_pin(&current->settings);

	check_at_use("hrflow_embed.base_url", hrflow_url_bad_base(base_url));
	check_at_use("hrflow_embed.api_user", hrflow_key_problem(api_user));
	check_at_use("hrflow_embed.proxy", hrflow_url_bad_proxy(proxy));
	check_at_use("hrflow_embed.link_hosts", hrflow_link_bad_hosts(link_hosts));

	copy = take_copy(key);
	if (current != NULL)
		unpin(current);
	current = copy;
	current_assignments = assignments;
	return hrflow_settings_pin(&current->settings);
}

/*
 * Is hrflow_embed.read_ahead enabled?
 */
bool
hrflow_settings_read_ahead(void)
{
	return read_ahead;
}

/*
 * Return hrflow_embed.max_erased_percent.
 */
int
hrflow_settings_max_erased(void)
{
	return max_erased_percent;
}
