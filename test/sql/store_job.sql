--
-- Stores of jobs: their differences from stores of profiles, and what they have in common
--
CREATE EXTENSION hrflow_embed;
SET application_name = 'pg_cron'; -- no progress messages, which contain times
SET hrflow_embed.link_hosts = '127.0.0.1';
SET hrflow_embed.max_attempts = 1;

-- The names of the columns depend on what the store contains
SELECT hrflow_create_store('opening', 'real[]', content => 'job');
SELECT hrflow_create_store('posting', 'real[]', 'reference', 'job');
SELECT attrelid::regclass, string_agg(attname, ', ' ORDER BY attnum) AS columns
FROM pg_attribute WHERE attrelid IN ('opening'::regclass, 'posting'::regclass, 'opening_aside'::regclass) AND attnum > 0
GROUP BY 1 ORDER BY 1;
SELECT obj_description('opening'::regclass), obj_description('opening_profile'::regclass);
SELECT hrflow_create_store('other', 'real[]', 'email', 'job'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_create_store('other', 'real[]', 'key'); -- error
SELECT hrflow_create_store('other', 'real[]', content => 'cv'); -- error
\echo :LAST_ERROR_SQLSTATE

-- A table feeds the store, with a column of boards or without a board
CREATE TABLE job (title text, board text, hrflow_id text);
INSERT INTO job VALUES ('Nurse', 'north', 'nurse-job'), ('Welder', NULL, 'welder-job'), ('Cook', '', 'cook-job'),
	('Driver', 'unknown-board', 'driver-job'), ('Teacher', 'north', 'missing-job'), ('Nobody', 'north', NULL), ('Nobody', NULL, '');
SELECT hrflow_track_table('opening', 'job', 'hrflow_id', source_column => 'board');
SELECT hrflow_track_table('posting', 'job', 'hrflow_id');
SELECT hrflow_track_table('posting', 'job', 'hrflow_id', source_id => 'a', source_column => 'board'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT source_id, job_id, state FROM opening_profile ORDER BY job_id;
SELECT DISTINCT source_id, state, count(*) FROM posting_profile GROUP BY 1, 2;
SELECT day, profiles, requests FROM hrflow_refresh_estimate('opening', days => 0);
SELECT hrflow_embed_stats_reset();
CALL hrflow_refresh('opening');
SELECT api_requests, link_requests FROM hrflow_embed_stats;
SELECT source_id, job_id, state, http_status, last_error FROM opening_profile ORDER BY job_id;
SELECT source_id, job_id, section, item, vector = hrflow_job_vector(job_id, board_id => nullif(source_id, '')) AS same FROM opening ORDER BY job_id;
SELECT dimension, sections, count(*) FROM opening_profile GROUP BY 1, 2 ORDER BY 1;
SELECT tracked, ok, missing, due, last_run_status FROM hrflow_store_status('opening');
SELECT source_id, profile_id, state FROM hrflow_store_failures('opening');
CALL hrflow_refresh('posting');
SELECT count(*) FROM posting;

-- Fresh jobs are not requested again, whether or not "fields" names their section
SELECT hrflow_embed_stats_reset();
CALL hrflow_refresh('opening', '{"job": 1}');
CALL hrflow_refresh('opening', NULL);
SELECT api_requests FROM hrflow_embed_stats;
CALL hrflow_refresh('opening', '{"job": 1, "skills": 1}'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM hrflow_refresh_estimate('opening', '{"experiences": [0]}'); -- error

-- In triggers, too, a board that is NULL means the empty source
SELECT hrflow_embed_stats_reset();
UPDATE job SET board = '' WHERE hrflow_id = 'welder-job';
UPDATE job SET board = NULL WHERE hrflow_id = 'cook-job';
UPDATE job SET board = 'south' WHERE hrflow_id = 'nurse-job';
DELETE FROM job WHERE hrflow_id IN ('cook-job', 'driver-job');
INSERT INTO job VALUES ('Electrician', NULL, 'electrician-job');
SELECT source_id, job_id, state, generation FROM opening_profile ORDER BY job_id, source_id;
SELECT source_id, job_id FROM opening ORDER BY job_id;
SELECT reason, fingerprint = hrflow_fingerprint('', 'cook-job') AS cook FROM opening_erased ORDER BY 2, 1;
CALL hrflow_refresh('opening');
SELECT api_requests FROM hrflow_embed_stats;
SELECT hrflow_track_table('opening', 'job', 'hrflow_id', source_column => 'board') AS reconciled;
SELECT hrflow_release_columns('opening', 'job');
SELECT hrflow_release_columns('posting', 'job');
SELECT hrflow_track_table('opening', 'job', 'hrflow_id', source_column => 'board') AS made_again;

-- Jobs that are tracked by calling functions
SELECT hrflow_track('opening', '', '{accountant-job}'), hrflow_track('opening', 'north', '{accountant-job}');
CALL hrflow_refresh('opening');
SELECT hrflow_mark_due('opening', '', '{accountant-job}'), hrflow_untrack('opening', 'north', '{accountant-job}'), hrflow_retry('opening');
SELECT source_id, job_id, state FROM opening_profile WHERE job_id = 'accountant-job';
CALL hrflow_refresh('opening');
SELECT hrflow_untrack_table('opening', 'job') AS put_aside;
SELECT count(*) FROM opening;
SELECT hrflow_restore('opening') AS restored;
SELECT source_id, job_id, state FROM opening_profile ORDER BY job_id, source_id;
SELECT count(*) FROM opening;
DELETE FROM opening_profile WHERE job_id = 'accountant-job';
SELECT * FROM hrflow_store_orphans('opening');

-- Jobs of a board that the API does not know are not requested one by one
SELECT hrflow_track('opening', 'unknown-board', '{baker-job,miller-job}');
SET hrflow_embed.max_concurrency = 1;
CALL hrflow_refresh('opening');
RESET hrflow_embed.max_concurrency;
SELECT last_error, count(*) FROM opening_profile WHERE source_id = 'unknown-board' GROUP BY 1 ORDER BY 1;
SELECT hrflow_untrack('opening', 'unknown-board', '{baker-job,miller-job}');

-- In ranking, 'profile', the default, means the section 'job'
SELECT profile_id, section, item, similarity > 0.5 AS near
FROM hrflow_match('opening', (SELECT vector FROM hrflow_profile_vectors('acme', '{nurse-1}', '{"profile": 1}')), 2);
SELECT profile_id, section FROM hrflow_match('opening', hrflow_text_embedding('a welder'), 1, 'job', source_id => '');
SELECT profile_id, parts FROM hrflow_match_weighted('opening', hrflow_job_vector('welder-job'), '{"profile": 2}', 1);
SELECT profile_id FROM hrflow_match('opening', hrflow_text_embedding('a welder'), 3, 'skills');
SELECT hrflow_match_recall('opening'); -- error
\echo :LAST_ERROR_SQLSTATE

-- A store of jobs is recognized by its column of identifiers; columns added by users do not matter
ALTER TABLE opening ADD profile_id text, ADD job_reference text;
SELECT profile_id, section FROM hrflow_match('opening', hrflow_text_embedding('a welder'), 1);
ALTER TABLE opening DROP profile_id, DROP job_reference;
ALTER TABLE opening RENAME COLUMN job_id TO key;
SELECT hrflow_store_status('opening'); -- error
\echo :LAST_ERROR_SQLSTATE
ALTER TABLE opening RENAME COLUMN key TO job_id;

SELECT hrflow_drop_store('opening'), hrflow_drop_store('posting');
DROP TABLE job;
DROP EXTENSION hrflow_embed;
