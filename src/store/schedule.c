/*-------------------------------------------------------------------------
 *
 * schedule.c
 *		Refreshing by pg_cron.
 *
 * What is done here is done as the caller, who must be the store's owner: the
 * job that pg_cron makes is his.
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

/* The arguments of hrflow_schedule, in their order. */
enum
{
	ARG_STORE,
	ARG_SCHEDULE,
	ARG_FIELDS,
	ARG_MAX_AGE
};

/* The statement of a job begins so; the store's name follows, as a literal. */
static const char command_prefix_sql[] = "CALL %s(";

static const char command_sql[] =
"%s%L, %s, max_age => %L, time_budget => %L)";

static const char schedule_sql[] = "SELECT cron.schedule($1, $2, $3)";

/*
 * $1 is the prefix of the names of this database's jobs, $2 that of their
 * statements, and $3 the name of a job to drop in any case.
 */
static const char drop_jobs_sql[] =
"SELECT count(cron.unschedule(j.jobid))"
" FROM (SELECT j.*, substr(j.jobname, length($1) + 1) AS store"
" FROM cron.job AS j WHERE j.username = CURRENT_USER"
" AND starts_with(j.jobname, $1) OFFSET 0) AS j"
" WHERE j.jobname = $3"
" OR CASE WHEN j.database = current_database()"
" AND starts_with(j.command, $2 || quote_literal(j.store) || ',')"
" THEN NOT EXISTS (SELECT FROM pg_class AS c"
" JOIN pg_namespace AS n ON n.oid = c.relnamespace"
" WHERE ARRAY[n.nspname::text, c.relname::text]"
" = parse_ident(j.store)) END";

static const char may_drop_jobs_sql[] =
"SELECT CASE WHEN has_schema_privilege('cron', 'USAGE')"
" THEN has_table_privilege('cron.job', 'SELECT')"
" AND has_function_privilege('cron.unschedule(bigint)', 'EXECUTE')"
" ELSE false END";

static const char may_read_cron_sql[] =
"SELECT has_schema_privilege('cron', 'USAGE')"
" AND has_table_privilege('cron.job', 'SELECT')"
" AND has_table_privilege('cron.job_run_details', 'SELECT')";

/*
 * $1 is the name of the store's job.  A job that could not connect has neither
 * a start nor an end.
 */
static const char last_status_sql[] =
"SELECT d.status || CASE WHEN d.status = 'failed'"
" THEN COALESCE(': ' || rtrim(d.return_message, E'\\n'), '') ELSE '' END"
" FROM cron.job_run_details AS d"
" JOIN cron.job AS j ON j.jobid = d.jobid"
" WHERE j.jobname = $1 ORDER BY d.runid DESC LIMIT 1";

/* What to run where pg_cron is in another database. */
static const char schedule_elsewhere_sql[] =
"SELECT cron.schedule_in_database(%L, %L, %L, %L, %L);";
static const char unschedule_elsewhere_sql[] = "SELECT cron.unschedule(%L);";

/* A schedule that is not understood here is taken for an hourly one. */
#define UNKNOWN_INTERVAL (60 * 60)

/*
 * What the names of this database's jobs begin with: pg_cron has those of all
 * databases in one table.
 */
static char *
job_prefix(void)
{
	return psprintf("hrflow_refresh %s.",
					quote_identifier(get_database_name(MyDatabaseId)));
}

/*
 * The name of a store's job.
 */
static char *
job_name(const HrflowStore *store)
{
	return psprintf("%s%s", job_prefix(), store->vectors_name);
}

/*
 * What pg_cron says of the store's job when it last ran it, or tried to; NULL
 * where it says nothing, or not to the owner.
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
 * Read one field of a cron schedule, of values below "max", into "set".
 * Returns what is behind it, or NULL.
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
 * The shortest time between two runs of a schedule, in seconds: "n seconds",
 * or the minutes and hours of a cron schedule.
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
	const char *p;

	if (end != schedule && strncmp(end, " second", strlen(" second")) == 0)
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
 * Refuse a schedule that is a number alone: it may mean seconds or minutes.
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
				 errhint("Write '30 seconds', or a schedule of cron such as '*/5 * * * *'.")));
}

/*
 * The beginning of the statement of a job.  "caller" is one of our functions.
 */
static char *
command_prefix(Oid caller)
{
	return hrflow_store_sql(NULL, command_prefix_sql,
							hrflow_catalog_function_name("hrflow_refresh",
														 caller));
}

/*
 * The statement that a job executes.  It ends a little before the next run,
 * that the two do not overlap: they might, but to no use.
 */
static char *
make_command(FunctionCallInfo fcinfo, const HrflowStore *store,
			 const char *schedule)
{
	int			interval = schedule_interval(schedule);
	Jsonb	   *fields = PG_ARGISNULL(ARG_FIELDS) ? NULL :
	hrflow_check_fields(PG_GETARG_JSONB_P(ARG_FIELDS));
	char	   *max_age =
	DatumGetCString(DirectFunctionCall1(interval_out,
										PG_GETARG_DATUM(ARG_MAX_AGE)));

	hrflow_kind_check_fields(store->kind, fields);
	return hrflow_store_sql(store, command_sql,
							command_prefix(fcinfo->flinfo->fn_oid),
							store->vectors_name,
							fields == NULL ? "NULL" :
							quote_literal_cstr(JsonbToCString(NULL,
															  &fields->root,
															  VARSIZE(fields))),
							max_age,
							psprintf("%d seconds",
									 Max(interval - Max(interval / 12, 1), 1)));
}

/*
 * Drop the caller's jobs that refresh stores that are no more, for that they
 * were dropped as tables, or renamed; and that of a store, if it is given.
 * Returns whether there was any.
 *
 * A job is of a store that is no more where it is called as one of this
 * database's, does what we had it do for that name, and no table is called so.
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
 * A store is about to be dropped: drop its job, where pg_cron is in this
 * database and the caller may.  SPI is connected.
 */
void
hrflow_schedule_forget(const HrflowStore *store, Oid caller)
{
	if (!OidIsValid(get_extension_oid("pg_cron", true)))
		return;
	hrflow_store_execute(may_drop_jobs_sql, NULL);
	if (DatumGetBool(hrflow_store_datum(0, 1)))
		drop_jobs(store, caller);
}

/*
 * pg_cron is not here: say what to do where it is.
 */
HRFLOW_NORETURN static void
refuse_schedule(const char *statement)
{
	const char *database = GetConfigOption("cron.database_name", true, false);

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("pg_cron is not in this database"),
			 errhint("In the database that has it%s%s, run: %s",
					 database ? ", " : "", database ? database : "",
					 statement)));
}

/*
 * A job runs in a session of the store's owner, who may be a role that nobody
 * logs in as: pg_cron takes the job, and it fails whenever it is due.
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
				 errdetail("pg_cron runs jobs in sessions of their owner: those of store %s will fail.",
						   store->vectors_name),
				 errhint("ALTER ROLE %s LOGIN.",
						 quote_identifier(NameStr(role->rolname)))));
	ReleaseSysCache(tuple);
}

/*
 * hrflow_schedule(store regclass, schedule text, fields jsonb,
 *				   max_age interval) RETURNS bigint
 *
 * The job of the name that a store had before goes.
 */
Datum
hrflow_schedule(PG_FUNCTION_ARGS)
{
	HrflowParameters parameters = {0};
	HrflowStore store;
	char	   *schedule;
	char	   *job;
	char	   *command;
	int64		id;

	for (int i = 0; i <= ARG_MAX_AGE; i++)
	{
		if (i != ARG_FIELDS && PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s must not be null",
							i == ARG_STORE ? "store" :
							i == ARG_SCHEDULE ? "schedule" : "max_age")));
	}
	(void) hrflow_state_get_max_age(fcinfo, ARG_MAX_AGE);
	schedule = text_to_cstring(PG_GETARG_TEXT_PP(ARG_SCHEDULE));
	check_unit(schedule);

	SPI_connect();
	hrflow_store_open(&store, PG_GETARG_OID(ARG_STORE), InvalidOid,
					  HRFLOW_STORE_OWN);
	hrflow_ready_check(&store);
	job = job_name(&store);
	command = make_command(fcinfo, &store, schedule);
	warn_of_login(&store);
	if (!OidIsValid(get_extension_oid("pg_cron", true)))
		refuse_schedule(hrflow_store_sql(&store, schedule_elsewhere_sql, job,
										 schedule, command,
										 get_database_name(MyDatabaseId),
										 GetUserNameFromId(GetUserId(), false)));

	drop_jobs(NULL, fcinfo->flinfo->fn_oid);
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(job));
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(schedule));
	hrflow_store_add(&parameters, TEXTOID, CStringGetTextDatum(command));
	hrflow_store_execute(schedule_sql, &parameters);
	id = DatumGetInt64(hrflow_store_datum(0, 1));
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
		refuse_schedule(hrflow_store_sql(&store, unschedule_elsewhere_sql,
										 job_name(&store)));
	found = drop_jobs(&store, fcinfo->flinfo->fn_oid);
	hrflow_store_close(&store);
	SPI_finish();
	PG_RETURN_BOOL(found);
}
