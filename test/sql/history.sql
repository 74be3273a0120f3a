-- The history of the runs of a store, and the errors that a scheduler gets
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION hrflow_embed;
SET application_name = 'pg_cron'; -- omit progress reports, which contain times
SET hrflow_embed.link_hosts = '127.0.0.1';
SET hrflow_embed.max_attempts = 1;
CREATE SCHEMA talent;
SELECT hrflow_create_store('talent.embedding', 'real[]');
\d talent.embedding_run
SELECT last_run, last_run_status, last_run_error, last_job_status FROM hrflow_store_status('talent.embedding');

-- Each run has a row, regardless of its outcome
SELECT hrflow_track('talent.embedding', 'acme', '{nurse-1,nurse-2,cook-1,missing-1,"fault:status=422,id=x"}');
CALL hrflow_refresh('talent.embedding');
CALL hrflow_refresh('talent.embedding');
UPDATE talent.embedding_profile SET due_at = now() WHERE profile_id ~ 'nurse';
CALL hrflow_refresh('talent.embedding', time_budget => '0 s');
CALL hrflow_refresh('talent.embedding', max_profiles => 1);
UPDATE talent.embedding_profile SET due_at = now() WHERE profile_id ~ 'nurse';
SET hrflow_embed.max_requests_per_statement = 1;
SET hrflow_embed.max_concurrency = 1;
CALL hrflow_refresh('talent.embedding');
RESET hrflow_embed.max_requests_per_statement;
RESET hrflow_embed.max_concurrency;
CREATE VIEW talent.run AS
	SELECT run, ended_at >= started_at AS ended, pid = pg_backend_pid() AS mine, stop_reason, asked, ok, failed, missing, erased, requests, error
	FROM talent.embedding_run ORDER BY run;
SELECT * FROM talent.run;
SELECT now() - last_run < interval '5 minutes' AS recent, last_run_status, last_run_error FROM hrflow_store_status('talent.embedding');

-- A refusal raises an error if a scheduler runs the refresh, after everything else
-- has been committed
UPDATE talent.embedding_profile SET due_at = now() WHERE profile_id ~ 'nurse';
SET hrflow_embed.api_key = 'askr_ffffffffffffffffffffffffffffffff';
CALL hrflow_refresh('talent.embedding'); -- error
\echo :LAST_ERROR_SQLSTATE
RESET hrflow_embed.api_key;
SELECT hrflow_track('talent.embedding', 'acme', '{"fault:status=402,id=y"}');
UPDATE talent.embedding_profile SET due_at = now() - interval '1 hour' WHERE profile_id ~ 'nurse';
SET hrflow_embed.max_concurrency = 1;
UPDATE talent.embedding_profile SET state = 'due' WHERE profile_id ~ 'nurse';
CALL hrflow_refresh('talent.embedding'); -- error
\echo :LAST_ERROR_SQLSTATE
RESET hrflow_embed.max_concurrency;
SELECT profile_id, state, due_at > now() AS later FROM talent.embedding_profile WHERE profile_id ~ 'nurse|402' ORDER BY 1;
SELECT hrflow_untrack('talent.embedding', 'acme', '{"fault:status=402,id=y"}');

-- Other errors are raised too, for example if vectors cannot be stored
ALTER TABLE talent.embedding DROP CONSTRAINT embedding_pkey;
CALL hrflow_refresh('talent.embedding'); -- error
ALTER TABLE talent.embedding ADD PRIMARY KEY (source_id, profile_id, section, item);
SELECT * FROM talent.run WHERE run > 5;
SELECT last_run_status, last_run_error FROM hrflow_store_status('talent.embedding');

-- An unknown reason is shown as a failure
UPDATE talent.embedding_run SET stop_reason = 'for lunch' WHERE run = (SELECT max(run) FROM talent.embedding_run);
SELECT last_run_status FROM hrflow_store_status('talent.embedding');

-- A run without an end whose session no longer exists was killed
UPDATE talent.embedding_run SET ended_at = NULL, stop_reason = NULL, error = NULL WHERE run = (SELECT max(run) FROM talent.embedding_run);
SELECT last_run_status, last_run_error FROM hrflow_store_status('talent.embedding');

-- Old rows are deleted
ALTER TABLE talent.embedding_run ALTER run RESTART WITH 10003;
CALL hrflow_refresh('talent.embedding');
SELECT min(run), max(run) FROM talent.embedding_run;
SELECT last_run_status FROM hrflow_store_status('talent.embedding');

-- A trigger may suppress the row; a table of another owner, or a view, is not used as the history
CREATE FUNCTION talent.leave_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER leave_out BEFORE INSERT ON talent.embedding_run FOR EACH ROW EXECUTE FUNCTION talent.leave_out();
CALL hrflow_refresh('talent.embedding');
SELECT max(run) FROM talent.embedding_run;
DROP TRIGGER leave_out ON talent.embedding_run;
CREATE ROLE regress_hrflow_other;
ALTER TABLE talent.embedding_run OWNER TO regress_hrflow_other;
CALL hrflow_refresh('talent.embedding');
SELECT max(run) FROM talent.embedding_run;
SELECT last_run, last_run_status FROM hrflow_store_status('talent.embedding');
ALTER TABLE talent.embedding_run OWNER TO CURRENT_USER;
ALTER TABLE talent.embedding_run RENAME TO run_kept;
CREATE VIEW talent.embedding_run AS TABLE talent.run_kept;
CALL hrflow_refresh('talent.embedding');
SELECT max(run) FROM talent.embedding_run;
SELECT last_run, last_run_status FROM hrflow_store_status('talent.embedding');
DROP VIEW talent.embedding_run;
ALTER TABLE talent.run_kept RENAME TO embedding_run;

-- Nor is a table whose columns have other types
ALTER TABLE talent.embedding_run RENAME TO run_kept;
CREATE TABLE talent.embedding_run (run bigint, started_at text, ended_at text, pid int, stop_reason text, asked bigint,
	ok bigint, failed bigint, missing bigint, erased bigint, requests bigint, error text);
INSERT INTO talent.embedding_run (run, started_at, stop_reason) VALUES (1, 'yesterday', 'done');
SELECT last_run, last_run_status FROM hrflow_store_status('talent.embedding');
ALTER TABLE talent.embedding_run ALTER run TYPE text, ALTER started_at TYPE timestamptz USING now();
SELECT last_run, last_run_status FROM hrflow_store_status('talent.embedding');
CALL hrflow_refresh('talent.embedding');
SELECT run, stop_reason FROM talent.embedding_run;
DROP TABLE talent.embedding_run;
ALTER TABLE talent.run_kept RENAME TO embedding_run;

-- A trigger sees that the run of its own session is in progress
CREATE TABLE talent.seen (last_run_status text);
CREATE FUNCTION talent.see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO talent.seen SELECT last_run_status FROM public.hrflow_store_status('talent.embedding');
	RETURN NULL; END $$;
UPDATE talent.embedding_profile SET due_at = now() WHERE profile_id ~ 'nurse';
CREATE TRIGGER see AFTER UPDATE ON talent.embedding_profile FOR EACH STATEMENT EXECUTE FUNCTION talent.see();
CALL hrflow_refresh('talent.embedding');
SELECT DISTINCT last_run_status FROM talent.seen;
SELECT last_run_status FROM hrflow_store_status('talent.embedding');
DROP FUNCTION talent.see CASCADE;
DROP TABLE talent.seen;

-- The history is renamed separately, and dropped with the store.  Without it, runs
-- are not recorded.
ALTER TABLE talent.embedding RENAME TO renamed;
ALTER TABLE talent.embedding_profile RENAME TO renamed_profile;
ALTER TABLE talent.embedding_aside RENAME TO renamed_aside;
ALTER TABLE talent.embedding_erased RENAME TO renamed_erased;
CALL hrflow_refresh('talent.renamed');
SELECT last_run, last_run_status FROM hrflow_store_status('talent.renamed');
ALTER TABLE talent.embedding_run RENAME TO renamed_run;
SELECT last_run_status FROM hrflow_store_status('talent.renamed');
DROP VIEW talent.run;
SELECT hrflow_drop_store('talent.renamed');
SELECT relname FROM pg_class WHERE relnamespace = 'talent'::regnamespace;
DROP SCHEMA talent CASCADE;
DROP ROLE regress_hrflow_other;
DROP EXTENSION hrflow_embed;
