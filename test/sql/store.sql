-- Stores: made, fed, refreshed, looked at. What needs several sessions, time or
-- crashes is in t/080_refresh.pl.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION hrflow_embed;
SET application_name = 'pg_cron'; -- no progress, which tells the time
SET hrflow_embed.link_hosts = '127.0.0.1';
CREATE SCHEMA talent;
SELECT hrflow_create_store('talent.embedding', 'real[]');
\d talent.embedding
\d talent.embedding_profile
SELECT attstorage FROM pg_attribute WHERE attrelid = 'talent.embedding'::regclass AND attname = 'vector';

-- A table feeds it
CREATE TABLE talent.candidate (name text, "Hrflow id" text UNIQUE, cv_updated_at timestamptz, cv json, note text);
INSERT INTO talent.candidate VALUES ('Ada', 'nurse-1'), ('Bob', 'welder-1'), ('Cleo', NULL), ('Dan', '');
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'Hrflow id',
	source_id => 'acme', refresh_columns => '{cv_updated_at,cv}');
SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'talent.candidate'::regclass ORDER BY 1;
CREATE VIEW talent.state AS
	SELECT profile_id, state, due_at <= clock_timestamp() AS due, lease_until, attempts, generation, refreshed_at IS NOT NULL AS refreshed, http_status, last_error, manual
	FROM talent.embedding_profile ORDER BY profile_id COLLATE "C";
SELECT * FROM talent.state;

-- INSERT tracks, once; twice the same profile too
INSERT INTO talent.candidate SELECT 'Eve ' || i, 'cook-' || i FROM generate_series(1, 2) i;
SELECT profile_id, state FROM talent.state;

-- What is due is fetched
CALL hrflow_refresh('talent.embedding', '{"profile": 1, "skills": 1}');
SELECT * FROM talent.state;
SELECT profile_id, section, item, cardinality(vector) FROM talent.embedding ORDER BY profile_id COLLATE "C", section;
SELECT tracked, due, leased, ok, failed, missing, gone, oldest_due, refreshed_last_minute, requests_due, last_error, last_run FROM hrflow_store_status('talent.embedding');

-- An UPDATE of what matters marks due, one of anything else does not
UPDATE talent.candidate SET note = 'seen';
UPDATE talent.candidate SET cv_updated_at = cv_updated_at, cv = cv;
SELECT count(*) FILTER (WHERE due) FROM talent.state;
UPDATE talent.candidate SET cv_updated_at = '2026-01-01' WHERE name = 'Ada';
UPDATE talent.candidate SET cv = '{"a": 1}' WHERE name = 'Bob';
SELECT profile_id, state, due, generation FROM talent.state;

-- Another identifier is another profile; none is none
UPDATE talent.candidate SET "Hrflow id" = 'teacher-1' WHERE name = 'Eve 1';
UPDATE talent.candidate SET "Hrflow id" = NULL WHERE name = 'Eve 2';
UPDATE talent.candidate SET "Hrflow id" = 'cook-3' WHERE name = 'Cleo';
SELECT profile_id, state, due FROM talent.state;
SELECT DISTINCT profile_id FROM talent.embedding ORDER BY 1;

-- DELETE erases, unless somebody else wants the profile
SELECT hrflow_track('talent.embedding', 'acme', '{nurse-1,nurse-1}');
CREATE TABLE talent.other (id text, source text);
INSERT INTO talent.other VALUES ('welder-1', 'acme'), ('welder-1', 'beta');
SELECT hrflow_track_table('talent.embedding', 'talent.other', 'id', source_column => 'source');
DELETE FROM talent.candidate WHERE name IN ('Ada', 'Bob', 'Cleo');
SELECT profile_id, manual FROM talent.state;
DELETE FROM talent.other WHERE source = 'acme';
SELECT source_id, profile_id FROM talent.embedding_profile ORDER BY 1, 2;
TRUNCATE talent.other, talent.candidate;
SELECT profile_id, manual FROM talent.state;
SELECT hrflow_untrack('talent.embedding', 'acme', '{nurse-1,nobody}');
SELECT count(*) FROM talent.embedding;

-- Reconciled: what the triggers have missed
INSERT INTO talent.candidate VALUES ('Ada', 'nurse-1');
SET session_replication_role = replica;
INSERT INTO talent.candidate VALUES ('Fay', 'nurse-2');
DELETE FROM talent.candidate WHERE name = 'Ada';
RESET session_replication_role;
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'Hrflow id', source_id => 'acme', refresh_columns => '{cv_updated_at}');
SELECT profile_id FROM talent.state;
SELECT hrflow_untrack_table('talent.embedding', 'talent.candidate');
SELECT count(*) FROM talent.embedding_profile;
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'talent.candidate'::regclass;

-- Not found, twice, is gone; without a vector for a section the others are had
SELECT hrflow_track('talent.embedding', 'acme', '{missing-1,nurse-1}');
CALL hrflow_refresh('talent.embedding');
SELECT profile_id, state, due, last_error FROM talent.state;
SELECT profile_id, state, attempts, http_status, refreshed_at FROM hrflow_store_failures('talent.embedding');
SELECT hrflow_mark_due('talent.embedding', 'acme', '{missing-1}');
CALL hrflow_refresh('talent.embedding');
SELECT profile_id, state, due FROM talent.state;
SELECT hrflow_mark_due('talent.embedding', 'acme', '{missing-1}');
SELECT profile_id, state, due FROM talent.state;

-- A failure is tried again later, and not for ever
SELECT hrflow_untrack('talent.embedding', 'acme', '{missing-1}');
SELECT hrflow_track('talent.embedding', 'acme', '{"fault:status=403,id=x"}');
SET hrflow_embed.max_attempts = 1;
CALL hrflow_refresh('talent.embedding', max_attempts => 2);
SELECT profile_id, state, due, attempts, http_status FROM talent.state;
UPDATE talent.embedding_profile SET due_at = now() WHERE state = 'due';
CALL hrflow_refresh('talent.embedding', max_attempts => 2);
SELECT profile_id, state, due, attempts, http_status FROM talent.state;
SELECT hrflow_retry('talent.embedding');
SELECT profile_id, state, due, attempts, http_status FROM talent.state;

-- A vector that the column does not take fails its profile only
ALTER TABLE talent.embedding ADD CHECK (profile_id <> 'cook-1');
SELECT hrflow_track('talent.embedding', 'acme', '{cook-1,cook-2}');
SELECT hrflow_untrack('talent.embedding', 'acme', '{"fault:status=403,id=x"}');
CALL hrflow_refresh('talent.embedding');
SELECT profile_id, state, attempts, last_error FROM talent.state;
SELECT DISTINCT profile_id FROM talent.embedding ORDER BY 1;

-- Many at once that are refused: the error can be caught
ALTER TABLE talent.embedding_profile ADD CONSTRAINT no_bakers CHECK (profile_id NOT LIKE 'baker%');
CREATE TABLE talent.many (id text);
SELECT hrflow_track_table('talent.embedding', 'talent.many', 'id', source_id => 'acme');
DO $$
BEGIN
	INSERT INTO talent.many VALUES ('driver-1');
	BEGIN
		INSERT INTO talent.many SELECT 'baker-' || i FROM generate_series(1, 2000) i;
	EXCEPTION WHEN check_violation THEN
		RAISE WARNING '%', SQLERRM;
	END;
	INSERT INTO talent.many VALUES ('driver-2');
END $$;
SELECT * FROM talent.many;
SELECT profile_id, state FROM talent.state WHERE profile_id ~ 'baker|driver';
DROP TABLE talent.many;
SELECT hrflow_untrack('talent.embedding', 'acme', '{driver-1,driver-2}');
ALTER TABLE talent.embedding_profile DROP CONSTRAINT no_bakers;

-- By reference, by e-mail
SELECT hrflow_create_store('talent.by_reference', 'real[]', 'reference');
SELECT hrflow_create_store('talent.by_email', 'real[]', 'email');
SELECT hrflow_track('talent.by_reference', 'acme', '{ATS 1}'), hrflow_track('talent.by_email', 'acme', '{a+b@example.com}');
CALL hrflow_refresh('talent.by_reference');
CALL hrflow_refresh('talent.by_email');
SELECT profile_reference, section FROM talent.by_reference UNION ALL SELECT profile_email, section FROM talent.by_email;
SELECT hrflow_drop_store('talent.by_reference'), hrflow_drop_store('talent.by_email');

-- Names are whatever names are
SELECT hrflow_create_store('talent."Odd %I ''name"', 'real[]');
SELECT hrflow_track_table('talent."Odd %I ''name"', 'talent.candidate', 'Hrflow id', source_id => 'it''s %V');
SELECT source_id FROM talent."Odd %I 'name_profile";
DROP TABLE talent."Odd %I 'name", talent."Odd %I 'name_profile";
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'talent.candidate'::regclass;

-- Two stores are fed by one table, whatever they are called
CREATE SCHEMA talent_a;
CREATE SCHEMA talent_embedding_of_the_department_of_human_resources;
CREATE TABLE talent.shared (id text);
SELECT hrflow_create_store('talent_a.b', 'real[]'), hrflow_create_store('talent.a_b', 'real[]');
SELECT hrflow_create_store('talent_embedding_of_the_department_of_human_resources.candidates_in_the_north_' || i, 'real[]') FROM generate_series(1, 2) i;
SELECT store, hrflow_track_table(store, 'talent.shared', 'id', 'acme') FROM unnest('{talent_a.b,talent.a_b,
	talent_embedding_of_the_department_of_human_resources.candidates_in_the_north_1,
	talent_embedding_of_the_department_of_human_resources.candidates_in_the_north_2}'::regclass[]) store;
INSERT INTO talent.shared VALUES ('nurse-1');
SELECT (SELECT count(*) FROM talent_a.b_profile), (SELECT count(*) FROM talent.a_b_profile),
	(SELECT count(*) FROM talent_embedding_of_the_department_of_human_resources.candidates_in_the_north_1_profile),
	(SELECT count(*) FROM talent_embedding_of_the_department_of_human_resources.candidates_in_the_north_2_profile);
SELECT tgname FROM pg_trigger WHERE tgrelid = 'talent.shared'::regclass AND tgname LIKE '%insert' ORDER BY tgname COLLATE "C";

-- A trigger of that name, but another's, is not replaced
SELECT tgname AS taken FROM pg_trigger WHERE tgrelid = 'talent.shared'::regclass AND tgname LIKE '%insert' AND encode(tgargs, 'escape') ~ 'a_b' \gset
SELECT hrflow_untrack_table('talent.a_b', 'talent.shared');
CREATE FUNCTION talent.nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER :"taken" AFTER INSERT ON talent.shared FOR EACH STATEMENT EXECUTE FUNCTION talent.nothing();
SELECT hrflow_track_table('talent.a_b', 'talent.shared', 'id', 'acme'); -- error
DROP TABLE talent.shared;
SET client_min_messages = error;
DROP SCHEMA talent_a, talent_embedding_of_the_department_of_human_resources CASCADE;
SET client_min_messages = warning;

-- By one column at a time: the other's profiles go, which it says
CREATE TABLE talent.two_columns (id text, old_id text, source text);
INSERT INTO talent.two_columns VALUES ('cook-1', 'cook-1', 'acme'), ('cook-2', 'cook-9', 'acme');
SELECT hrflow_create_store('talent.columns', 'real[]');
SELECT hrflow_track_table('talent.columns', 'talent.two_columns', 'id', 'acme');
SELECT hrflow_track_table('talent.columns', 'talent.two_columns', 'id', 'acme', refresh_columns => '{old_id}');
SELECT hrflow_track_table('talent.columns', 'talent.two_columns', 'old_id', 'acme');
SELECT profile_id FROM talent.columns_profile ORDER BY 1;
SELECT hrflow_track_table('talent.columns', 'talent.two_columns', 'old_id', source_column => 'source');
SELECT hrflow_track_table('talent.columns', 'talent.two_columns', 'old_id', 'beta');
ALTER TABLE talent.two_columns RENAME old_id TO new_id;
SELECT hrflow_track_table('talent.columns', 'talent.two_columns', 'new_id', 'beta');
SELECT hrflow_drop_store('talent.columns');
DROP TABLE talent.two_columns;

-- What is refused
\set VERBOSITY sqlstate
SELECT hrflow_create_store('talent.embedding', 'real[]'); -- error
SELECT hrflow_create_store('talent.x', 'text'); -- error
SELECT hrflow_create_store('talent.x', 'vector(0)'); -- error
SELECT hrflow_create_store('talent.x', 'vector(3); DROP TABLE x'); -- error
SELECT hrflow_create_store('talent.x', 'real[]', 'key'); -- error
SELECT hrflow_create_store(repeat('x', 60), 'real[]'); -- error
SELECT hrflow_create_store(''); -- error
SELECT hrflow_create_store(NULL);
SELECT hrflow_track('talent.embedding', NULL, '{a}'); -- error
SELECT hrflow_track('talent.embedding', '', '{a}'); -- error
SELECT hrflow_track('talent.embedding', 'acme', NULL); -- error
SELECT hrflow_track('talent.embedding', 'acme', '{a,NULL}'); -- error
SELECT hrflow_track('talent.embedding', 'acme', '{a,""}'); -- error
SELECT hrflow_track('talent.embedding', 'acme', '{{a}}'); -- error
SELECT hrflow_track('talent.embedding', 'acme', '{}');
SELECT hrflow_track('talent.candidate', 'acme', '{a}'); -- error
SELECT hrflow_track('pg_class', 'acme', '{a}'); -- error
SELECT hrflow_track(0, 'acme', '{a}'); -- error
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'Hrflow id'); -- error
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'Hrflow id', 'a', 'name'); -- error
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'no', 'a'); -- error
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'cv', 'a'); -- error
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'name', 'a', refresh_columns => '{no}'); -- error
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'name', 'a', refresh_columns => '{NULL}'); -- error
SELECT hrflow_track_table('talent.embedding', 'talent.state', 'profile_id', 'a'); -- error
CALL hrflow_refresh('talent.candidate'); -- error
CALL hrflow_refresh(NULL); -- error
CALL hrflow_refresh('talent.embedding', '[]'); -- error
CALL hrflow_refresh('talent.embedding', max_age => '-1 day'); -- error
CALL hrflow_refresh('talent.embedding', max_age => NULL); -- error
CALL hrflow_refresh('talent.embedding', batch_size => 0); -- error
CALL hrflow_refresh('talent.embedding', max_attempts => 0); -- error
CALL hrflow_refresh('talent.embedding', time_budget => '-1 s'); -- error
BEGIN;
CALL hrflow_refresh('talent.embedding'); -- error
ROLLBACK;
DO $$ BEGIN CALL hrflow_refresh('talent.embedding', max_profiles => 0); END $$;
CREATE FUNCTION pg_temp.f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CALL hrflow_refresh('talent.embedding'); END $$;
SELECT pg_temp.f(); -- error
SELECT hrflow_schedule('talent.embedding'); -- error

-- Not a store any more
\set VERBOSITY default
DROP VIEW talent.state;
ALTER TABLE talent.embedding_profile DROP COLUMN attempts;
SELECT hrflow_mark_due('talent.embedding', 'acme', '{a}'); -- error

DROP SCHEMA talent CASCADE;
DROP EXTENSION hrflow_embed;
