/*-------------------------------------------------------------------------
 *
 * schedule.c
 *		Schedules refreshes with pg_cron.
 *
 * The functions in this file execute their statements as the store's owner,
 * because a pg_cron job belongs to the role that creates it.  Only the owner
 * can call hrflow_schedule() and hrflow_unschedule().
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "compat.h"
#include "datatype/timestamp.h"
#include "ask/ask.h"
#include "miscadmin.h"
#include "store/refresh.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(hrflow_schedule);
PG_FUNCTION_INFO_V1(hrflow_unschedule);

/* Argument numbers of hrflow_schedule(). */
enum
{
	ARG_STORE,
	ARG_SCHEDULE,
	ARG_FIELDS,
	ARG_MAX_AGE
};

/*
 * SQL template for the beginning of a job's statement, before the store's
 * name.
 */
static const char command_prefix_sql[] = "CALL %s(";

/* SQL template for the beginning of a job's statement, with the store's name. */
static const char command_beginning_sql[] = "%s%L::regclass,";

/*
 * SQL template for the statement of a job.  It casts the arguments to the
 * exact parameter types of hrflow_refresh(), so that it cannot call an
 * overloaded procedure that another role has created in the same schema.
 */
static const char command_sql[] =
"%s %s::jsonb, max_age => %L::interval,"
" time_budget => %L::interval)";

static const char schedule_sql[] = "SELECT cron.schedule($1, $2, $3)";

/*
 * Statement that drops the current user's jobs for stores that no longer
 * exist, and returns the number of jobs dropped.  $1 is the prefix of the
 * names of this database's jobs, and $2 is the prefix of their statements.
 * The job with the name $3 is dropped even if its store exists.
 */
static const char drop_jobs_sql[] =
"SELECT count(cron.unschedule(j.jobid))"
" FROM (SELECT j.*, substr(j.jobname, length($1) + 1) AS store"
" FROM cron.job AS j WHERE j.username = CURRENT_USER"
" AND starts_with(j.jobname, $1) OFFSET 0) AS j"
" WHERE j.jobname = $3"
" OR CASE WHEN j.database = current_database()"
" AND starts_with(j.command, $2 || quote_literal(j.store) || '::regclass,')"
" THEN NOT EXISTS (SELECT FROM pg_class AS c"
" JOIN pg_namespace AS n ON n.oid = c.relnamespace"
" WHERE ARRAY[n.nspname::text, c.relname::text]"
" = parse_ident(j.store)) END";

static const char may_drop_jobs_sql[] =
"SELECT CASE WHEN has_schema_privilege('cron', 'USAGE')"
" THEN has_table_privilege('cron.job', 'SELECT')"
" AND has_function_privilege('cron.unschedule(bigint)', 'EXECUTE')"
" ELSE false END";

/*
 * Query for the schedule and the statement of the current user's active job
 * with the name $1 in this database, if its statement begins with $2.  In the
 * result, the statement begins with $3 instead.
 */
static const char read_job_sql[] =
"SELECT j.schedule, $3 || substr(j.command, length($2) + 1)"
" FROM cron.job AS j WHERE j.username = CURRENT_USER AND j.active"
" AND j.database = current_database() AND j.jobname = $1"
" AND starts_with(j.command, $2)";

static const char may_read_cron_sql[] =
"SELECT CASE WHEN has_schema_privilege('cron', 'USAGE')"
" THEN has_table_privilege('cron.job', 'SELECT')"
" AND has_table_privilege('cron.job_run_details', 'SELECT')"
" ELSE false END";

static const char may_use_cron_sql[] =
"SELECT has_schema_privilege('cron', 'USAGE')";

/*
 * Statement that returns the status of the last execution of the job with the
 * name $1 and, if the execution failed, its error message.  It orders by
 * runid, because an execution that could not connect has neither a start nor
 * an end time.
 */
static const char last_status_sql[] =
"SELECT d.status || CASE WHEN d.status = 'failed'"
" THEN COALESCE(': ' || rtrim(d.return_message, E'\\n'), '') ELSE '' END"
" FROM cron.job_run_details AS d"
" JOIN cron.job AS j ON j.jobid = d.jobid"
" WHERE j.jobname = $1 ORDER BY d.runid DESC LIMIT 1";

/*
 * SQL templates for statements that the user must execute in the database that
 * has pg_cron.
 */
static const char schedule_elsewhere_sql[] =
"SELECT cron.schedule_in_database(%L, %L, %L, %L, %L);";
static const char unschedule_elsewhere_sql[] = "SELECT cron.unschedule(%L);";

/*
 * Assumed interval of a schedule that we cannot parse, in seconds.  Also the
 * maximum interval of a schedule with the syntax "n seconds".
 */
#define UNKNOWN_INTERVAL (60 * 60)

/*
 * Return the prefix of the names of this database's jobs.  The prefix includes
 * the name of the database, because pg_cron keeps the jobs of all databases in
 * a single table.
 */
static char *
job_prefix(void)
{
	return psprintf("hrflow_refresh %s.",
					quote_identifier(get_database_name(MyDatabaseId)));
}

/*
 * Return the name of a store's job.
 */
static char *
job_name(const HrflowStore *store)
{
	return psprintf("%s%s", job_prefix(), store->vectors_name);
}

/*
 * Return the status that pg_cron has recorded for the last execution of a
 * store's job, with the error message if the execution failed.  Returns NULL
 * if no status has been recorded, if the owner lacks the privileges to read
 * it, or if pg_cron is not installed in this database.
 */
char *
hrflow_schedule_last_status(const HrflowStore *store)
{
	HrflowParameters parameters = {0};

	if (!OidIsValid(get_extension_oid("pg_cron", true)))
		return NULL;
	hrflow_store_execute(may_read_cron_sql, NULL);
	if (!DatumGetBool(hrflow_store_datum(0, 1)))
		return NULL;
	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(job_name(store)));
	if (hrflow_store_execute(last_status_sql, &parameters) == 0)
		return NULL;
	return hrflow_store_value_or_null(0, 1);
}

/*
 * Parse one field of a cron schedule, and set element i of "set" to true for
 * each value i of the field.  All values must be less than "max".  Returns a
 * pointer to the text after the field, or NULL if the field cannot be parsed,
 * or is not followed by a space or tab.
 */
static const char *
read_field(const char *p, int max, bool *set)
{
	while (*p == ' ' || *p == '\t')
		p++;
	for (;;)
	{
		long		first = 0;
		long		last = max - 1;
		long		step = 1;
		char	   *end;

		if (*p == '*')
			p++;
		else
		{
			first = last = strtol(p, &end, 10);
			if (end == p)
				return NULL;
			p = end;
			if (*p == '-')
			{
				last = strtol(p + 1, &end, 10);
				p = end;
			}
		}
		if (*p == '/')
		{
			step = strtol(p + 1, &end, 10);
			p = end;
		}
		if (first < 0 || last >= max || step < 1 || step > max)
			return NULL;
		for (long i = first; i <= last; i += step)
			set[i] = true;
		if (*p != ',')
			break;
		p++;
	}
	return *p == ' ' || *p == '\t' ? p : NULL;
}

/*
 * Estimate the minimum time between two runs of a schedule, in seconds.  Only
 * the syntax "n seconds" and the minutes and hours of a cron schedule are
 * considered.  Returns UNKNOWN_INTERVAL if they cannot be parsed.
 */
static int
schedule_interval(const char *schedule)
{
	bool		minutes[60] = {false};
	bool		hours[24] = {false};
	int			first = -1;
	int			last = -1;
	int			interval = 24 * 60;
	char	   *end;
	long		seconds = strtol(schedule, &end, 10);
	const char *p = end + strspn(end, " \t");

	if (end != schedule && pg_strncasecmp(p, "second", strlen("second")) == 0)
		return Max(1, Min(seconds, UNKNOWN_INTERVAL));

	p = read_field(schedule, lengthof(minutes), minutes);
	if (p == NULL || read_field(p, lengthof(hours), hours) == NULL)
		return UNKNOWN_INTERVAL;
	for (int i = 0; i < lengthof(hours) * lengthof(minutes); i++)
	{
		if (!hours[i / 60] || !minutes[i % 60])
			continue;
		if (last >= 0)
			interval = Min(interval, i - last);
		else
			first = i;
		last = i;
	}
	return 60 * Min(interval, 24 * 60 - last + first);
}

/*
 * Check that a schedule is not just a number, which may mean seconds or
 * minutes.
 *
 * Throws 22023.
 */
static void
check_unit(const char *schedule)
{
	const char *p = schedule + strspn(schedule, " \t");
	int			ndigits = strspn(p, "0123456789");

	if (ndigits > 0 && p[ndigits + strspn(p + ndigits, " \t")] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("schedule \"%s\" has no unit", schedule),
				 errhint("For example, use '30 seconds', or a cron schedule such as '*/5 * * * *'.")));
}

/*
 * Return the beginning of a job's statement.  "caller" is the OID of any SQL
 * function of the extension.
 */
static char *
command_prefix(Oid caller)
{
	return hrflow_store_sql(NULL, command_prefix_sql,
							hrflow_catalog_function_name("hrflow_refresh",
														 caller));
}

/*
 * Return the beginning of the statement of a job that refreshes the store with
 * this quoted and qualified name.
 */
static char *
command_beginning(const char *store, Oid caller)
{
	return hrflow_store_sql(NULL, command_beginning_sql,
							command_prefix(caller), store);
}

/*
 * Return the time budget of the runs of a schedule, in seconds.  If possible,
 * it ends a little before the next run, so that runs seldom overlap.
 */
static int
get_time_budget(const char *schedule)
{
	int			interval = schedule_interval(schedule);

	return Max(interval - Max(interval / 12, 1), 1);
}

/*
 * Return the statement that a job executes.
 */
static char *
make_command(FunctionCallInfo fcinfo, const HrflowStore *store,
			 const char *schedule)
{
	Jsonb	   *fields = PG_ARGISNULL(ARG_FIELDS) ? NULL :
	hrflow_check_fields(PG_GETARG_JSONB_P(ARG_FIELDS));
	char	   *max_age =
	DatumGetCString(DirectFunctionCall1(interval_out,
										PG_GETARG_DATUM(ARG_MAX_AGE)));

	hrflow_kind_check_fields(store->kind, fields);
	return hrflow_store_sql(store, command_sql,
							command_beginning(store->vectors_name,
											  fcinfo->flinfo->fn_oid),
							fields == NULL ? "NULL" :
							quote_literal_cstr(JsonbToCString(NULL,
															  &fields->root,
															  VARSIZE(fields))),
							max_age,
							psprintf("%d seconds", get_time_budget(schedule)));
}

/*
 * Drop the current user's jobs for stores that no longer exist, for example
 * because their tables were dropped or renamed.  If "store" is not NULL, drop
 * the job of that store as well.  Returns whether any job was dropped.
 *
 * A job's store is considered not to exist if the job runs in this database,
 * its name has this database's prefix, its statement begins like a statement
 * that hrflow_schedule() creates for that store, and there is no relation with
 * the store's name.
 */
static bool
drop_jobs(const HrflowStore *store, Oid caller)
{
	HrflowParameters parameters = {0};

	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(job_prefix()));
	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(command_prefix(caller)));
	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(store == NULL ? "" :
										 job_name(store)));
	hrflow_store_execute(drop_jobs_sql, &parameters);
	return DatumGetInt64(hrflow_store_datum(0, 1)) > 0;
}

/*
 * Is pg_cron installed in this database, and does the current user have the
 * privileges to read and drop jobs?
 */
static bool
may_manage_jobs(void)
{
	if (!OidIsValid(get_extension_oid("pg_cron", true)))
		return false;
	hrflow_store_execute(may_drop_jobs_sql, NULL);
	return DatumGetBool(hrflow_store_datum(0, 1));
}

/*
 * Create or replace the job of a store, and return its number.
 */
static int64
create_job(const HrflowStore *store, const HrflowJob *job)
{
	HrflowParameters parameters = {0};

	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(job_name(store)));
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(job->schedule));
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(job->command));
	hrflow_store_execute(schedule_sql, &parameters);
	return DatumGetInt64(hrflow_store_datum(0, 1));
}

/*
 * Drop the job of a store that is about to be dropped, and jobs for stores
 * that no longer exist, if pg_cron is installed in this database and the
 * current user has the privileges.  "caller" is the OID of any SQL function of
 * the extension.  The caller must have connected to SPI.
 */
void
hrflow_schedule_forget(const HrflowStore *store, Oid caller)
{
	if (may_manage_jobs())
		drop_jobs(store, caller);
}

/*
 * Read the job of a store.  job->command is a statement that refreshes the
 * store "name" with the same arguments.  Returns false if there is no active
 * job in this database that refreshes the store with such a statement, or if
 * the current user, who must be the owner, may not manage jobs.
 */
bool
hrflow_schedule_read(const HrflowStore *store, const char *name, Oid caller,
					 HrflowJob *job)
{
	HrflowParameters parameters = {0};

	if (!may_manage_jobs())
		return false;
	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(job_name(store)));
	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(command_beginning(store->vectors_name,
														   caller)));
	hrflow_store_add(&parameters, TEXTOID,
					 CStringGetTextDatum(command_beginning(name, caller)));
	if (hrflow_store_execute(read_job_sql, &parameters) == 0)
		return false;
	job->schedule = hrflow_store_value(0, 1);
	job->command = hrflow_store_value(0, 2);
	return true;
}

/*
 * Create a job for a store, as hrflow_schedule_read() has returned it, and
 * drop jobs for stores that no longer exist.
 */
void
hrflow_schedule_again(const HrflowStore *store, Oid caller,
					  const HrflowJob *job)
{
	drop_jobs(NULL, caller);
	(void) create_job(store, job);
}

/*
 * Throw an error because pg_cron is not installed in this database.  If
 * pg_cron is configured for another database, the hint is to execute
 * "statement" there.  Otherwise, the hint says how to let a scheduler execute
 * "command".  "command" is NULL if a job is to be removed; then there is no
 * such hint.
 */
HRFLOW_NORETURN static void
refuse_schedule(const char *command, const char *statement)
{
	const char *database = GetConfigOption("cron.database_name", true, false);
	const char *hint = NULL;

	if (database != NULL &&
		strcmp(database, get_database_name(MyDatabaseId)) != 0)
		hint = psprintf("In database \"%s\", for which pg_cron is configured, run: %s",
						database, statement);
	else if (command != NULL && database != NULL)
		hint = "Run CREATE EXTENSION pg_cron.";
	else if (command != NULL)
		hint = psprintf("Add pg_cron to \"shared_preload_libraries\", or let another scheduler run: %s",
						command);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("extension \"pg_cron\" is not installed in this database"),
			 hint ? errhint("%s", hint) : 0));
}

/*
 * Check that the current user has USAGE on the schema of pg_cron, which must
 * be installed in this database.
 *
 * Throws 42501.
 */
static void
check_cron_privileges(void)
{
	hrflow_store_execute(may_use_cron_sql, NULL);
	if (!DatumGetBool(hrflow_store_datum(0, 1)))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for schema %s", "cron"),
				 errhint("As a superuser, run GRANT USAGE ON SCHEMA cron TO %s.",
						 quote_identifier(GetUserNameFromId(GetUserId(),
															false)))));
}

/*
 * Warn if the owner of a store cannot log in.  A job runs in a session of the
 * owner.  pg_cron accepts a job of a role without LOGIN, but the job fails
 * whenever it is started.
 */
static void
warn_of_login(const HrflowStore *store)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID,
										ObjectIdGetDatum(store->owner));
	Form_pg_authid role;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for role %u", store->owner);
	role = (Form_pg_authid) GETSTRUCT(tuple);
	if (!role->rolcanlogin)
		ereport(WARNING,
				(errmsg("role \"%s\" is not permitted to log in",
						NameStr(role->rolname)),
				 errdetail("pg_cron runs jobs in sessions of their owner, so jobs of store %s will fail.",
						   store->vectors_name),
				 errhint("Run ALTER ROLE %s LOGIN.",
						 quote_identifier(NameStr(role->rolname)))));
	ReleaseSysCache(tuple);
}

/*
 * Warn if the runs of a schedule abandon requests that have not timed out yet.
 */
static void
warn_of_interval(const char *schedule)
{
	int			timeout = hrflow_settings_get(false)->request_timeout;
	int			longest = get_time_budget(schedule) +
	HRFLOW_BUDGET_GRACE / HRFLOW_SEC;

	if (timeout > longest * 1000)
		ereport(WARNING,
				(errmsg("interval of schedule \"%s\" is too short for \"hrflow_embed.request_timeout\"",
						schedule),
				 errdetail("Runs end after at most %d s, but requests may take %d ms.",
						   longest, timeout),
				 errhint("Use a longer interval, or lower \"hrflow_embed.request_timeout\".")));
}

/*
 * hrflow_schedule(store regclass, schedule text, fields jsonb,
 *				   max_age interval) RETURNS bigint
 *
 * Also drops the caller's jobs for stores that no longer exist, such as the
 * job that a renamed store had under its former name.
 */
Datum
hrflow_schedule(PG_FUNCTION_ARGS)
{
	HrflowStore store;
	HrflowJob	job;
	int64		id;

	for (int i = 0; i <= ARG_MAX_AGE; i++)
	{
		if (i != ARG_FIELDS && PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"%s\" must not be null",
							i == ARG_STORE ? "store" :
							i == ARG_SCHEDULE ? "schedule" : "max_age")));
	}
	(void) hrflow_state_get_max_age(fcinfo, ARG_MAX_AGE);
	job.schedule = text_to_cstring(PG_GETARG_TEXT_PP(ARG_SCHEDULE));
	check_unit(job.schedule);

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(ARG_STORE), InvalidOid,
					  HRFLOW_STORE_OWN);
	hrflow_ready_check(&store);
	job.command = make_command(fcinfo, &store, job.schedule);
	warn_of_login(&store);
	warn_of_interval(job.schedule);
	if (!OidIsValid(get_extension_oid("pg_cron", true)))
		refuse_schedule(job.command,
						hrflow_store_sql(&store, schedule_elsewhere_sql,
										 job_name(&store), job.schedule,
										 job.command,
										 get_database_name(MyDatabaseId),
										 GetUserNameFromId(GetUserId(), false)));
	check_cron_privileges();

	drop_jobs(NULL, fcinfo->flinfo->fn_oid);
	id = create_job(&store, &job);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_INT64(id);
}

/*
 * hrflow_unschedule(store regclass) RETURNS boolean
 */
Datum
hrflow_unschedule(PG_FUNCTION_ARGS)
{
	HrflowStore store;
	bool		found;

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(ARG_STORE), InvalidOid,
					  HRFLOW_STORE_OWN);
	if (!OidIsValid(get_extension_oid("pg_cron", true)))
		refuse_schedule(NULL, hrflow_store_sql(&store, unschedule_elsewhere_sql,
											   job_name(&store)));
	check_cron_privileges();
	found = drop_jobs(&store, fcinfo->flinfo->fn_oid);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_BOOL(found);
}
