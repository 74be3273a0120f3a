-- Stores: creating, tracking, refreshing and monitoring.  Tests that need several
-- sessions, time or crashes are in t/080_refresh.pl.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION hrflow_embed;
SET application_name = 'pg_cron'; -- omit progress reports, which contain times
SET hrflow_embed.link_hosts = '127.0.0.1';
CREATE SCHEMA talent;
SELECT hrflow_create_store('talent.embedding', 'real[]');
\d talent.embedding
\d talent.embedding_profile
\d talent.embedding_aside
\d talent.embedding_erased
SELECT attstorage FROM pg_attribute WHERE attrelid = 'talent.embedding'::regclass AND attname = 'vector';

-- A table feeds the store
CREATE TABLE talent.candidate (name text, "Hrflow id" text UNIQUE, cv_updated_at timestamptz, cv json, note text);
INSERT INTO talent.candidate VALUES ('Ada', 'nurse-1'), ('Bob', 'welder-1'), ('Cleo', NULL), ('Dan', '');
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'Hrflow id',
	source_id => 'acme', refresh_columns => '{cv_updated_at,cv}');
SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'talent.candidate'::regclass ORDER BY 1;
CREATE VIEW talent.state AS
	SELECT profile_id, state, due_at <= clock_timestamp() AS due, lease_until, attempts, generation, refreshed_at IS NOT NULL AS refreshed, http_status, last_error, manual
	FROM talent.embedding_profile ORDER BY profile_id COLLATE "C";
SELECT * FROM talent.state;

-- INSERT tracks profiles
INSERT INTO talent.candidate SELECT 'Eve ' || i, 'cook-' || i FROM generate_series(1, 2) i;
SELECT profile_id, state FROM talent.state;

-- A refresh fetches profiles that are due
CALL hrflow_refresh('talent.embedding', '{"profile": 1, "skills": 1}');
SELECT * FROM talent.state;
SELECT profile_id, section, item, cardinality(vector) FROM talent.embedding ORDER BY profile_id COLLATE "C", section;
SELECT tracked, due, leased, ok, failed, missing, gone, oldest_due, refreshed_last_minute, requests_due, last_error, last_run_status FROM hrflow_store_status('talent.embedding');

-- Only an UPDATE of refresh columns makes a profile due
UPDATE talent.candidate SET note = 'seen';
UPDATE talent.candidate SET cv_updated_at = cv_updated_at, cv = cv;
SELECT count(*) FILTER (WHERE due) FROM talent.state;
UPDATE talent.candidate SET cv_updated_at = '2026-01-01' WHERE name = 'Ada';
UPDATE talent.candidate SET cv = '{"a": 1}' WHERE name = 'Bob';
SELECT profile_id, state, due, generation FROM talent.state;

-- Changing an identifier tracks another profile, or none
UPDATE talent.candidate SET "Hrflow id" = 'teacher-1' WHERE name = 'Eve 1';
UPDATE talent.candidate SET "Hrflow id" = NULL WHERE name = 'Eve 2';
UPDATE talent.candidate SET "Hrflow id" = 'cook-3' WHERE name = 'Cleo';
SELECT profile_id, state, due FROM talent.state;
SELECT DISTINCT profile_id FROM talent.embedding ORDER BY 1;

-- DELETE erases a profile, unless it was tracked by hand or has other rows
SELECT hrflow_track('talent.embedding', 'acme', '{nurse-1,nurse-1}');
CREATE TABLE talent.other (id text, source text);
INSERT INTO talent.other VALUES ('welder-1', 'acme'), ('welder-1', 'beta');
SELECT hrflow_track_table('talent.embedding', 'talent.other', 'id', source_column => 'source');
DELETE FROM talent.candidate WHERE name IN ('Ada', 'Bob', 'Cleo');
SELECT profile_id, manual FROM talent.state;
DELETE FROM talent.other WHERE source = 'acme';
SELECT source_id, profile_id FROM talent.embedding_profile ORDER BY 1, 2;

-- So does TRUNCATE
INSERT INTO talent.other VALUES ('teacher-1', 'acme');
INSERT INTO talent.embedding VALUES ('acme', 'teacher-1', 'profile', 0, '{1}');
TRUNCATE talent.candidate;
SELECT source_id, profile_id, manual FROM talent.embedding_profile ORDER BY 1, 2;
SELECT DISTINCT profile_id FROM talent.embedding ORDER BY 1;
TRUNCATE talent.other;
SELECT profile_id, manual FROM talent.state;
SELECT DISTINCT profile_id FROM talent.embedding ORDER BY 1;
INSERT INTO talent.candidate VALUES ('Ada', 'cook-1');
INSERT INTO talent.other VALUES ('cook-1', 'acme'), ('cook-2', 'acme');
TRUNCATE talent.other, talent.candidate;
SELECT profile_id, manual FROM talent.state;
SELECT hrflow_untrack('talent.embedding', 'acme', '{nurse-1,nobody}');
SELECT count(*) FROM talent.embedding;

-- Reconciling finds changes that triggers have missed
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

-- A profile that is not found is missing, and gone after some days if another one of
-- its source is found
SELECT hrflow_track('talent.embedding', 'acme', '{missing-1,nurse-1}');
CALL hrflow_refresh('talent.embedding');
SELECT profile_id, state, due, last_error FROM talent.state;
SELECT profile_id, state, attempts, http_status, refreshed_at FROM hrflow_store_failures('talent.embedding');
SELECT due_at - failed_at BETWEEN interval '50 seconds' AND interval '61 seconds' AS soon FROM talent.embedding_profile WHERE state = 'missing';
SELECT hrflow_mark_due('talent.embedding', 'acme', '{missing-1,nurse-1}');
CALL hrflow_refresh('talent.embedding');
SELECT profile_id, state, due, generation FROM talent.state;
UPDATE talent.embedding_profile SET failed_at = now() - interval '4 days', due_at = now() WHERE state = 'missing';
CALL hrflow_refresh('talent.embedding');
SELECT profile_id, state, due, generation FROM talent.state;

-- So is a profile without a vector
SELECT hrflow_track('talent.embedding', 'acme', '{novector-cook,"fault:data=e30,id=cook"}');
CALL hrflow_refresh('talent.embedding', '{"skills": 1}');
SELECT profile_id, state, attempts, http_status, last_error FROM hrflow_store_failures('talent.embedding') WHERE profile_id ~ 'cook';
SELECT hrflow_untrack('talent.embedding', 'acme', '{novector-cook,"fault:data=e30,id=cook"}');

-- An unknown state, added by a user, is treated as due.  A URL that would be too
-- long is not sent.
SELECT hrflow_create_store('talent.loose', 'real[]');
ALTER TABLE talent.loose_profile DROP CONSTRAINT loose_profile_state_check;
INSERT INTO talent.loose_profile (source_id, profile_id, state)
VALUES ('acme', 'nurse-1', 'new'), ('acme', repeat('x', 100000), 'due');
CALL hrflow_refresh('talent.loose');
SELECT left(profile_id, 9) AS profile, state, due_at > now() AS later, attempts, http_status, last_error
FROM talent.loose_profile ORDER BY 1;

-- Nothing is erased from a store that does not record since when profiles are
-- missing
ALTER TABLE talent.loose_profile DROP COLUMN failed_at, DROP COLUMN erased_at;
INSERT INTO talent.loose_profile (source_id, profile_id, state, due_at)
VALUES ('acme', 'missing-1', 'missing', now() - interval '9 days');
INSERT INTO talent.loose VALUES ('acme', 'missing-1', 'profile', 0, '{1}');
UPDATE talent.loose_profile SET due_at = now() - interval '9 days' WHERE profile_id = 'nurse-1';
CALL hrflow_refresh('talent.loose');
SELECT p.profile_id, p.state, p.due_at > now() + interval '20 hours' AS in_a_day, cardinality(v.vector)
FROM talent.loose_profile p JOIN talent.loose v USING (profile_id) WHERE v.section = 'profile' ORDER BY 1;
SELECT erased_last_day FROM hrflow_store_status('talent.loose');
SELECT hrflow_restore(NULL); -- error
SELECT hrflow_drop_store('talent.loose');

-- A profile that is gone is listed as a failure.  hrflow_retry() and
-- hrflow_mark_due() make it due again, but tracking its table again does not.
SELECT profile_id, state, attempts, http_status FROM hrflow_store_failures('talent.embedding');
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'Hrflow id', source_id => 'acme');
UPDATE talent.embedding_profile SET state = 'gone', due_at = NULL WHERE profile_id = 'nurse-2';
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'Hrflow id', source_id => 'acme');
SELECT profile_id, state, due, generation FROM talent.state;
BEGIN;
SELECT hrflow_retry('talent.embedding');
SELECT profile_id, state, due, generation FROM talent.state;
ROLLBACK;
SELECT hrflow_untrack_table('talent.embedding', 'talent.candidate');
SELECT hrflow_mark_due('talent.embedding', 'acme', '{missing-1}');
SELECT profile_id, state, due, generation FROM talent.state;

-- A profile that fails is retried later, but not forever
SELECT hrflow_untrack('talent.embedding', 'acme', '{missing-1}');
SELECT hrflow_track('talent.embedding', 'acme', '{"fault:status=403,id=x"}');
SET hrflow_embed.max_attempts = 1;
CALL hrflow_refresh('talent.embedding', max_attempts => 2);
SELECT profile_id, state, due, attempts, http_status FROM talent.state;
-- meanwhile it is counted as tracked, but in no other column
SELECT tracked, due, leased, ok, failed, missing, gone FROM hrflow_store_status('talent.embedding');
SELECT profile_id, attempts FROM talent.embedding_profile WHERE state = 'due' AND due_at > now() AND (lease_until <= now()) IS NOT FALSE;
UPDATE talent.embedding_profile SET due_at = now() WHERE state = 'due';
CALL hrflow_refresh('talent.embedding', max_attempts => 2);
SELECT profile_id, state, due, attempts, http_status FROM talent.state;
SELECT hrflow_retry('talent.embedding');
SELECT profile_id, state, due, attempts, http_status FROM talent.state;

-- All counters, each with a different value
SELECT hrflow_create_store('talent.counted', 'real[]');
BEGIN;
INSERT INTO talent.counted_profile (source_id, profile_id, state, due_at, lease_until, refreshed_at, last_error, failed_at)
SELECT 'acme', what || i, state, now() + due, now() + lease, now() - refreshed, error, now() - failed
FROM (VALUES ('leased', 2, 'due', '-1 day'::interval, '5 minutes'::interval, NULL::interval, 'of the lease', '3 hours'::interval),
	('lease over', 1, 'due', '-2 minutes', '-1 minute', NULL, NULL, NULL),
	('waiting', 1, 'due', '-1 hour', NULL, NULL, NULL, NULL),
	('old', 3, 'ok', '-1 minute', NULL, '2 hours', NULL, NULL),
	('new', 4, 'ok', '30 days', NULL, '30 seconds', NULL, NULL),
	('newish', 6, 'ok', '30 days', NULL, '30 minutes', NULL, NULL),
	('failed', 7, 'failed', NULL, NULL, NULL, 'last', '1 hour'),
	('missing', 8, 'missing', '1 day', NULL, '1 day', 'not found', '2 hours'),
	('gone', 9, 'gone', NULL, NULL, NULL, 'not found', NULL),
	('later', 10, 'due', '5 minutes', NULL, NULL, 'at some time', NULL)) AS v(what, n, state, due, lease, refreshed, error, failed),
	generate_series(1, n) i;
UPDATE talent.counted_profile SET erased_at = now() - interval '23 hours' WHERE profile_id IN ('gone1', 'gone2', 'new1');
UPDATE talent.counted_profile SET erased_at = now() - interval '25 hours' WHERE profile_id = 'gone3';
SELECT tracked, due, leased, ok, failed, missing, gone, oldest_due - now() AS oldest_due, refreshed_last_minute,
	refreshed_last_hour, requests_due, time_due, last_error, last_run, last_run_status, erased_last_day FROM hrflow_store_status('talent.counted');
COMMIT;
SELECT hrflow_drop_store('talent.counted');

-- Profiles of a source that the API does not know are not requested one by one
UPDATE talent.embedding_profile SET state = 'failed', due_at = NULL WHERE profile_id LIKE 'fault:%';
SELECT hrflow_track('talent.embedding', 'unknown-source', (SELECT array_agg('p' || i) FROM generate_series(1, 9) i));
SELECT hrflow_embed_stats_reset();
SET hrflow_embed.max_concurrency = 1;
CALL hrflow_refresh('talent.embedding');
RESET hrflow_embed.max_concurrency;
SELECT state, attempts, count(*), max(last_error) ~ 'source not found' AS told FROM talent.state WHERE profile_id LIKE 'p_' GROUP BY 1, 2;
SELECT requests FROM hrflow_embed_stats;
SELECT hrflow_untrack('talent.embedding', 'unknown-source', (SELECT array_agg('p' || i) FROM generate_series(1, 9) i));

-- Empty fields, and fields that exclude a section
SELECT hrflow_track('talent.embedding', 'acme', '{baker-1}');
CALL hrflow_refresh('talent.embedding', '{}');
SELECT count(DISTINCT section) > 2 AS several FROM talent.embedding WHERE profile_id = 'baker-1';
SELECT hrflow_untrack('talent.embedding', 'acme', '{baker-1}'), hrflow_track('talent.embedding', 'acme', '{baker-1}');
CALL hrflow_refresh('talent.embedding', '{"profile": 1, "skills": 0}');
SELECT section FROM talent.embedding WHERE profile_id = 'baker-1';
SELECT hrflow_untrack('talent.embedding', 'acme', '{baker-1}');

-- A vector that the table does not accept fails only its profile
ALTER TABLE talent.embedding ADD CHECK (profile_id <> 'cook-1');
SELECT hrflow_track('talent.embedding', 'acme', '{cook-1,cook-2}');
SELECT hrflow_untrack('talent.embedding', 'acme', '{"fault:status=403,id=x"}');
CALL hrflow_refresh('talent.embedding');
SELECT profile_id, state, attempts, last_error FROM talent.state;
SELECT DISTINCT profile_id FROM talent.embedding ORDER BY 1;

-- So does an error of a trigger, unless its class is about the server itself
CREATE FUNCTION talent.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE 'no teachers' USING ERRCODE = TG_ARGV[0];
END $$;
SELECT hrflow_track('talent.embedding', 'acme', '{teacher-1,driver-1}');
CREATE TRIGGER refuse BEFORE INSERT ON talent.embedding FOR EACH ROW WHEN (NEW.profile_id = 'teacher-1')
	EXECUTE FUNCTION talent.refuse('XX000');
CALL hrflow_refresh('talent.embedding');
SELECT profile_id, state, attempts, last_error FROM talent.state WHERE profile_id ~ 'teacher|driver';
CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON talent.embedding FOR EACH ROW WHEN (NEW.profile_id = 'teacher-1')
	EXECUTE FUNCTION talent.refuse('XX001');
UPDATE talent.embedding_profile SET due_at = now() WHERE profile_id = 'teacher-1';
CALL hrflow_refresh('talent.embedding'); -- error
SELECT profile_id, state, attempts, lease_until FROM talent.state WHERE profile_id = 'teacher-1';
DROP TRIGGER refuse ON talent.embedding;

-- Writes that are rolled back have no effect: a vector is refused twice, and then
-- the update of its profile is
CREATE SEQUENCE talent.tries;
CREATE FUNCTION talent.refuse_at_first() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF nextval('talent.tries') <= 3 THEN
		RAISE 'not yet';
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER refuse_at_first BEFORE INSERT ON talent.embedding FOR EACH ROW EXECUTE FUNCTION talent.refuse_at_first();
CREATE TRIGGER refuse_at_first BEFORE UPDATE ON talent.embedding_profile FOR EACH ROW
	WHEN (OLD.lease_until IS NOT NULL) EXECUTE FUNCTION talent.refuse_at_first();
UPDATE talent.embedding_profile SET due_at = now() WHERE profile_id = 'teacher-1';
CALL hrflow_refresh('talent.embedding');
SELECT profile_id, state, attempts, last_error FROM talent.state WHERE profile_id = 'teacher-1';
DROP TRIGGER refuse_at_first ON talent.embedding;
DROP TRIGGER refuse_at_first ON talent.embedding_profile;
SELECT hrflow_untrack('talent.embedding', 'acme', '{teacher-1,driver-1}');

-- The error of a statement that tracks many profiles can be caught
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

-- A store that was not made by hrflow_create_store() may contain nulls
CREATE TABLE talent.loose AS TABLE talent.embedding WITH NO DATA;
CREATE TABLE talent.loose_profile AS TABLE talent.embedding_profile WITH NO DATA;
INSERT INTO talent.loose VALUES ('acme', 'cook-1', 'profile', 0, NULL, now()), ('acme', 'cook-2', 'profile', 0, '{1,0}', now());
SELECT profile_id FROM hrflow_match('talent.loose', '{1,0}');
INSERT INTO talent.loose VALUES (NULL, NULL, 'profile', 0, '{1,0}', now());
SELECT * FROM hrflow_match('talent.loose', '{1,0}'); -- error
SELECT * FROM hrflow_match_weighted('talent.loose', '{1,0}', '{"profile": 1}'); -- error
UPDATE talent.loose SET source_id = 'acme', profile_id = 'cook-3', item = NULL WHERE source_id IS NULL;
SELECT * FROM hrflow_match('talent.loose', '{1,0}'); -- error
INSERT INTO talent.loose_profile (source_id, profile_id, state, due_at, generation) VALUES ('acme', 'cook-1', 'due', now(), 0);
ALTER TABLE talent.loose ADD UNIQUE (source_id, profile_id, section, item);
CALL hrflow_refresh('talent.loose'); -- error
UPDATE talent.loose_profile SET attempts = 0, generation = NULL;
CALL hrflow_refresh('talent.loose'); -- error
UPDATE talent.loose_profile SET generation = 0, state = NULL;
CALL hrflow_refresh('talent.loose'); -- error
DROP TABLE talent.loose, talent.loose_profile;

-- Stores of profiles by reference and by e-mail address
SELECT hrflow_create_store('talent.by_reference', 'real[]', 'reference');
SELECT hrflow_create_store('talent.by_email', 'real[]', 'email');
SELECT hrflow_track('talent.by_reference', 'acme', '{ATS 1}'), hrflow_track('talent.by_email', 'acme', '{a+b@example.com}');
CALL hrflow_refresh('talent.by_reference');
CALL hrflow_refresh('talent.by_email');
SELECT profile_reference, section FROM talent.by_reference UNION ALL SELECT profile_email, section FROM talent.by_email;
SELECT m.profile_id FROM talent.by_email e, hrflow_match('talent.by_email', e.vector) m;
SELECT hrflow_drop_store('talent.by_reference'), hrflow_drop_store('talent.by_email');

-- Ranking uses the nearest vector of a profile.  A section without a vector, or
-- with a zero vector, adds nothing.
SELECT hrflow_create_store('talent.ranked', 'real[]');
INSERT INTO talent.ranked (source_id, profile_id, section, item, vector)
VALUES ('acme', 'both', 'profile', 0, '{3,4}'), ('acme', 'both', 'skills', 0, '{0,1}'), ('acme', 'both', 'skills', 1, '{1,0}'),
	('acme', 'profile', 'profile', 0, '{1,0}'), ('acme', 'zero', 'profile', 0, '{0,1}'), ('acme', 'zero', 'skills', 0, '{0,0}'),
	('acme', 'other', 'other', 0, '{1,0}');
SELECT profile_id, section, item, round(similarity::numeric, 6) AS similarity FROM hrflow_match('talent.ranked', '{1,0}', 5);
SELECT profile_id, section, item, round(similarity::numeric, 6) AS similarity FROM hrflow_match('talent.ranked', '{1,0}', 5, 'skills');
SELECT profile_id, section, item, round(similarity::numeric, 6) AS similarity FROM hrflow_match_weighted('talent.ranked', '{1,0}', '{"profile": 0.5, "skills": 0.5}', 5);
SELECT hrflow_drop_store('talent.ranked');

-- Names and sources that must be quoted
SELECT hrflow_create_store('talent."Odd %I ''name"', 'real[]');
SELECT hrflow_track_table('talent."Odd %I ''name"', 'talent.candidate', 'Hrflow id', source_id => 'it''s %V');
SELECT source_id FROM talent."Odd %I 'name_profile";
DROP TABLE talent."Odd %I 'name", talent."Odd %I 'name_profile";
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'talent.candidate'::regclass;

-- One table can feed several stores, even if their triggers would have equal names
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

-- An unrelated trigger with the same name is not replaced
SELECT tgname AS taken FROM pg_trigger WHERE tgrelid = 'talent.shared'::regclass AND tgname LIKE '%insert' AND encode(tgargs, 'escape') ~ 'a_b' \gset
SELECT hrflow_untrack_table('talent.a_b', 'talent.shared');
CREATE FUNCTION talent.nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER :"taken" AFTER INSERT ON talent.shared FOR EACH STATEMENT EXECUTE FUNCTION talent.nothing();
SELECT hrflow_track_table('talent.a_b', 'talent.shared', 'id', 'acme'); -- error
-- A trigger that feeds another store is not replaced, either
SELECT tgname AS others FROM pg_trigger WHERE tgrelid = 'talent.shared'::regclass AND tgname LIKE '%insert' AND encode(tgargs, 'escape') ~ '^talent_a' \gset
DROP TRIGGER :"taken" ON talent.shared;
ALTER TRIGGER :"others" ON talent.shared RENAME TO :"taken";
SELECT hrflow_track_table('talent.a_b', 'talent.shared', 'id', 'acme'); -- error
DROP TABLE talent.shared;
SET client_min_messages = error;
DROP SCHEMA talent_a, talent_embedding_of_the_department_of_human_resources CASCADE;
SET client_min_messages = warning;

-- A table feeds a store through one column.  Tracking it by another column drops the
-- profiles of the first one, with a WARNING.
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

-- Refresh columns that are omitted when a table is tracked again are dropped, with a
-- WARNING
CREATE TABLE talent.watched (id text, source text, cv text, "Note" text);
SELECT hrflow_create_store('talent.watching', 'real[]');
SELECT hrflow_track_table('talent.watching', 'talent.watched', 'id', source_column => 'source', refresh_columns => '{cv,Note,id}');
SELECT hrflow_track_table('talent.watching', 'talent.watched', 'id', source_column => 'source', refresh_columns => '{Note,cv}');
ALTER TABLE talent.watched RENAME cv TO resume;
ALTER TABLE talent.watching RENAME TO watcher;
ALTER TABLE talent.watching_profile RENAME TO watcher_profile;
ALTER TABLE talent.watching_aside RENAME TO watcher_aside;
ALTER TABLE talent.watching_erased RENAME TO watcher_erased;
SELECT hrflow_track_table('talent.watcher', 'talent.watched', 'id', source_column => 'source', refresh_columns => '{Note}');
SELECT hrflow_track_table('talent.watcher', 'talent.watched', 'id', source_column => 'source', refresh_columns => '{Note,resume}');
SELECT hrflow_track_table('talent.watcher', 'talent.watched', 'resume', 'acme');
SELECT hrflow_track_table('talent.watcher', 'talent.watched', 'resume', 'acme', refresh_columns => '{id,Note}');
SELECT hrflow_track_table('talent.watcher', 'talent.watched', 'resume', 'acme');
SELECT hrflow_track_table('talent.watcher', 'talent.watched', 'resume', 'acme');
SELECT hrflow_drop_store('talent.watcher');
DROP TABLE talent.watched;

-- Errors
\set VERBOSITY sqlstate
SELECT hrflow_create_store('talent.embedding', 'real[]'); -- error
SELECT hrflow_create_store('talent.x', 'text'); -- error
SELECT hrflow_create_store('talent.x', 'vector(0)'); -- error
SELECT hrflow_create_store('talent.x', 'vector(3)'); -- error
SELECT hrflow_create_store('talent.x', 'halfvec'); -- error
SELECT hrflow_create_store('talent.x', 'vector(3); DROP TABLE x'); -- error
SELECT hrflow_create_store('talent.x', 'real[]', 'key'); -- error
SELECT hrflow_create_store(repeat('x', 60), 'real[]'); -- error
SELECT hrflow_create_store(''); -- error
SELECT hrflow_create_store('nowhere.x', 'real[]'); -- error
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
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'name', 'a', refresh_columns => (SELECT array_agg('name'::name) FROM generate_series(1, 2000))); -- error
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', NULL, 'a'); -- error
SELECT hrflow_track_table('talent.embedding', NULL, 'name', 'a'); -- error
SELECT hrflow_track_table('talent.embedding', 'talent.state', 'profile_id', 'a'); -- error
SELECT hrflow_track_trigger(); -- error
CALL hrflow_refresh('talent.candidate'); -- error
CALL hrflow_refresh(NULL); -- error
CALL hrflow_refresh('talent.embedding', '[]'); -- error
CALL hrflow_refresh('talent.embedding', max_age => '-1 day'); -- error
CALL hrflow_refresh('talent.embedding', max_age => NULL); -- error
CALL hrflow_refresh('talent.embedding', batch_size => 0); -- error
CALL hrflow_refresh('talent.embedding', max_attempts => 0); -- error
CALL hrflow_refresh('talent.embedding', max_attempts => 1001); -- error
CALL hrflow_refresh('talent.embedding', max_profiles => 0); -- error
CALL hrflow_refresh('talent.embedding', max_profiles => -5); -- error
CALL hrflow_refresh('talent.embedding', time_budget => '-1 s'); -- error
BEGIN;
CALL hrflow_refresh('talent.embedding'); -- error
ROLLBACK;
DO $$ BEGIN CALL hrflow_refresh('talent.embedding', time_budget => '0 s'); END $$;
CREATE FUNCTION pg_temp.f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CALL hrflow_refresh('talent.embedding'); END $$;
SELECT pg_temp.f(); -- error
SELECT hrflow_schedule('talent.embedding'); -- error
SELECT hrflow_schedule('talent.embedding', NULL); -- error
SELECT hrflow_schedule('talent.embedding', max_age => NULL); -- error
SELECT hrflow_schedule('talent.embedding', max_age => '-1 day'); -- error
SELECT hrflow_unschedule('talent.embedding'); -- error

-- The time_budget of a job is a little less than the time between two runs
CREATE FUNCTION pg_temp.time_budget(schedule text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	PERFORM hrflow_schedule('talent.embedding', schedule);
EXCEPTION WHEN object_not_in_prerequisite_state THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RETURN substring(hint FROM 'time_budget => ''(.*?)''');
END $$;
SELECT schedule, pg_temp.time_budget(schedule)
FROM (VALUES ('* * * * *'), ('30 seconds'), ('1 second'), ('9223372036854775807 seconds'), ('-9223372036854775807 seconds'),
	('*/5 * * * *'), (' 0,30	* * * *'), ('10-20/5 1,2 * * *'),
	('0 3 * * *'), ('59 23 * * *'), ('55 * * * *'), ('0,59 0,23 * * *'), ('5/9223372036854775807 * * * *'), ('5-0 * * * *'),
	('@daily'), ('x * * * *'), ('60 * * * *'), ('-1 * * * *'), ('*/0 * * * *'), ('1-x * * * *'), ('5 5'), ('* 24 * * *'), ('')) v(schedule);

-- A run should not end before its requests time out
\set VERBOSITY default
SET hrflow_embed.request_timeout = '60s';
SELECT pg_temp.time_budget('* * * * *');
SET hrflow_embed.request_timeout = '60001ms';
SELECT pg_temp.time_budget('* * * * *');
RESET hrflow_embed.request_timeout;

-- After a column or the store is renamed, the table must be tracked again
CREATE TABLE talent.fed (id text, source text, cv text);
SELECT hrflow_track_table('talent.embedding', 'talent.fed', 'id', source_column => 'source', refresh_columns => '{cv}');
INSERT INTO talent.fed VALUES ('teacher-1', 'acme', 'a');
UPDATE talent.fed SET cv = 'b';
ALTER TABLE talent.fed RENAME COLUMN id TO identifier;
UPDATE talent.fed SET cv = 'c'; -- error
SELECT hrflow_track_table('talent.embedding', 'talent.fed', 'identifier', source_column => 'source', refresh_columns => '{cv}');
UPDATE talent.fed SET cv = 'd';
ALTER TABLE talent.embedding RENAME TO renamed;
ALTER TABLE talent.embedding_profile RENAME TO renamed_profile;
UPDATE talent.fed SET cv = 'e'; -- error
SELECT format('DROP TRIGGER %I ON talent.fed', tgname) FROM pg_trigger
WHERE tgrelid = 'talent.fed'::regclass ORDER BY 1 \gexec
SELECT hrflow_track_table('talent.renamed', 'talent.fed', 'identifier', source_column => 'source', refresh_columns => '{cv}');
UPDATE talent.fed SET cv = 'f';
SELECT profile_id, generation FROM talent.renamed_profile WHERE profile_id = 'teacher-1';

-- Triggers that were not created by hrflow_track_table()
CREATE TRIGGER of_ours BEFORE UPDATE ON talent.fed FOR EACH ROW EXECUTE FUNCTION hrflow_track_trigger('talent.renamed');
UPDATE talent.fed SET cv = 'g'; -- error
DROP TRIGGER of_ours ON talent.fed;
CREATE TRIGGER of_ours AFTER UPDATE ON talent.fed FOR EACH STATEMENT EXECUTE FUNCTION hrflow_track_trigger('talent.renamed', 'identifier', 'acme', '');
UPDATE talent.fed SET cv = 'h'; -- error
DROP TRIGGER of_ours ON talent.fed;
CREATE TRIGGER of_ours AFTER INSERT ON talent.fed REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION hrflow_track_trigger('talent.renamed');
INSERT INTO talent.fed SELECT * FROM talent.fed LIMIT 0; -- error
DROP TRIGGER of_ours ON talent.fed;
CREATE TRIGGER of_ours AFTER INSERT ON talent.fed REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION hrflow_track_trigger('renamed', 'identifier', 'acme', '');
INSERT INTO talent.fed SELECT * FROM talent.fed LIMIT 0; -- no such store: the name must include the schema
DROP TRIGGER of_ours ON talent.fed;

-- Tables with different owners
CREATE ROLE regress_hrflow_other;
GRANT ALL ON SCHEMA talent TO regress_hrflow_other;
ALTER TABLE talent.fed OWNER TO regress_hrflow_other;
UPDATE talent.fed SET cv = 'i'; -- error
SELECT hrflow_track_table('talent.renamed', 'talent.fed', 'identifier', source_column => 'source'); -- error
ALTER TABLE talent.renamed_profile OWNER TO regress_hrflow_other;
SELECT hrflow_store_status('talent.renamed'); -- error
ALTER TABLE talent.renamed_profile OWNER TO CURRENT_USER;
DROP TABLE talent.fed;

-- Privileges to read a store and to write to it
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO regress_hrflow_other;
SET ROLE regress_hrflow_other;
SELECT hrflow_store_status('talent.renamed'); -- error
SELECT hrflow_mark_due('talent.renamed', 'acme', '{a}'); -- error
RESET ROLE;
GRANT SELECT ON talent.renamed, talent.renamed_profile TO regress_hrflow_other;
SET ROLE regress_hrflow_other;
SELECT tracked > 0 AS reads FROM hrflow_store_status('talent.renamed');
SELECT hrflow_mark_due('talent.renamed', 'acme', '{a}'); -- error
RESET ROLE;
ALTER TABLE talent.renamed_profile ENABLE ROW LEVEL SECURITY;
SET ROLE regress_hrflow_other;
SELECT tracked FROM hrflow_store_status('talent.renamed'); -- error
RESET ROLE;
ALTER TABLE talent.renamed_profile DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM regress_hrflow_other;
DROP OWNED BY regress_hrflow_other;
DROP ROLE regress_hrflow_other;

-- A null state, which a user has allowed, is not counted
DROP VIEW talent.state;
BEGIN;
ALTER TABLE talent.renamed_profile ALTER COLUMN state DROP NOT NULL;
UPDATE talent.renamed_profile SET state = NULL;
SELECT tracked, due, ok FROM hrflow_store_status('talent.renamed');
ROLLBACK;

-- Tables that are no longer a store
CREATE VIEW talent.view AS SELECT * FROM talent.renamed;
CREATE VIEW talent.view_profile AS SELECT * FROM talent.renamed_profile;
SELECT hrflow_store_status('talent.view'); -- error
DROP VIEW talent.view, talent.view_profile;
BEGIN;
ALTER TABLE talent.renamed_profile DROP COLUMN manual;
SELECT hrflow_track('talent.renamed', 'acme', '{a}'); -- error
ROLLBACK;
BEGIN;
ALTER TABLE talent.renamed ALTER COLUMN section TYPE varchar;
SELECT hrflow_store_status('talent.renamed'); -- error
ROLLBACK;
BEGIN;
ALTER TABLE talent.renamed ALTER COLUMN vector TYPE double precision[];
SELECT hrflow_store_status('talent.renamed'); -- error
ROLLBACK;
ALTER TABLE talent.renamed_profile DROP COLUMN attempts;
SELECT hrflow_mark_due('talent.renamed', 'acme', '{a}'); -- error

DROP SCHEMA talent CASCADE;
DROP EXTENSION hrflow_embed;
