--
-- Stores of texts and documents: the contents come from columns of tables
--
CREATE EXTENSION hrflow_embed;
SET application_name = 'pg_cron'; -- no progress messages, which contain times
SET hrflow_embed.link_hosts = '127.0.0.1';
SET hrflow_embed.max_attempts = 1;

-- Keys have no kind of identifier and no source
SELECT hrflow_create_store('opening', 'real[]', content => 'text');
SELECT hrflow_create_store('cv', 'real[]', 'key', 'document');
SELECT attrelid::regclass, string_agg(attname, ', ' ORDER BY attnum) AS columns
FROM pg_attribute WHERE attrelid IN ('opening'::regclass, 'opening_profile'::regclass, 'cv'::regclass) AND attnum > 0
GROUP BY 1 ORDER BY 1;
SELECT obj_description('opening'::regclass), obj_description('cv_profile'::regclass);
SELECT hrflow_create_store('other', 'real[]', 'id', 'text'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_create_store('other', 'real[]', content => 'cv'); -- error
SELECT hrflow_create_store('other', NULL, content => 'text') IS NULL AS nothing;

-- The columns must be named, and of suitable types
CREATE TABLE job (id int PRIMARY KEY, title text, body varchar(80), salary int, cv jsonb, seen timestamptz);
SELECT hrflow_track_table('opening', 'job', 'id'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_track_table('opening', 'job', 'id', content_columns => '{title,salary}'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_track_table('opening', 'job', 'id', content_columns => '{titel}'); -- error
SELECT hrflow_track_table('opening', 'job', 'id', source_id => 'a', content_columns => '{title}'); -- error
SELECT hrflow_track_table('cv', 'job', 'id', content_columns => '{cv,cv}'); -- error
SELECT hrflow_track_table('cv', 'job', 'id', content_columns => '{title}'); -- error
SELECT hrflow_track_table('cv', 'job', 'id', content_columns => '{cv}', item_type => 'text'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_create_store('person', 'real[]');
SELECT hrflow_track_table('person', 'job', 'id', 'a', content_columns => '{title}'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_track('opening', 'a', '{1}'); -- error

-- The columns of a text are joined by newlines; without a text there is no vector
INSERT INTO job VALUES (1, 'Nurse', 'in Paris', 1, '{"name": "nurse"}'), (2, 'Welder', NULL, 1, '{"name": "welder"}'),
	(3, NULL, NULL, 1, NULL), (4, E' \t\n', '', 1, '{}'), (5, repeat('x', 1048577), NULL, 1, '[1]'),
	(6, 'Nurse', 'in Paris', 1, '{"name": "nurse"}');
SELECT hrflow_track_table('opening', 'job', 'id', refresh_columns => '{seen}', content_columns => '{title,body}');
SELECT hrflow_track_table('cv', 'job', 'id', content_columns => '{cv}');
SELECT day, profiles, requests FROM hrflow_refresh_estimate('opening', days => 0);
SELECT hrflow_embed_stats_reset();
CALL hrflow_refresh('opening');
SELECT api_requests FROM hrflow_embed_stats;
SELECT source_id, key, state, attempts, last_error, dimension, sections, length(content_hash), sent_hash FROM opening_profile ORDER BY key;
SELECT key, section, item, vector = hrflow_text_embedding(CASE key WHEN '2' THEN 'Welder' ELSE E'Nurse\n\nin Paris' END) AS same FROM opening ORDER BY key;
SELECT source_id, profile_id, state, last_error FROM hrflow_store_failures('opening');
SELECT tracked, ok, failed, due, last_run_status FROM hrflow_store_status('opening');
SELECT hrflow_embed_stats_reset();
CALL hrflow_refresh('cv');
SELECT api_requests FROM hrflow_embed_stats;
SELECT key, state, last_error, dimension FROM cv_profile ORDER BY key;
SELECT key, section, vector = hrflow_document_embedding('profile', (SELECT cv FROM job WHERE id::text = key)) AS same FROM cv ORDER BY key;

-- What has not changed is not requested again, nor is a text that another key has
SELECT hrflow_embed_stats_reset();
UPDATE job SET title = title, seen = now();
SELECT count(*) FROM opening_profile WHERE state = 'due';
CALL hrflow_refresh('opening');
UPDATE job SET title = 'Nurse', body = 'in Paris' WHERE id = 2;
INSERT INTO job VALUES (7, 'Nurse', 'in Paris');
CALL hrflow_refresh('opening');
CALL hrflow_refresh('opening', max_age => '0');
SELECT api_requests FROM hrflow_embed_stats;
SELECT key, state, http_status, last_error FROM opening_profile ORDER BY key;
SELECT count(*), count(DISTINCT vector) FROM opening;
CALL hrflow_refresh('opening', '{"text": 1}');
CALL hrflow_refresh('opening', '{"skills": 1}'); -- error

-- A text that becomes empty loses its vector, which is put aside
UPDATE job SET title = NULL, body = '' WHERE id = 7;
CALL hrflow_refresh('opening');
SELECT key, state, last_error, content_hash FROM opening_profile WHERE key = '7';
SELECT key, reason FROM opening_aside;
SELECT hrflow_restore('opening');
SELECT count(*) FROM opening;

-- Columns can be renamed, and their order changed
ALTER TABLE job RENAME title TO headline;
SELECT hrflow_embed_stats_reset();
UPDATE job SET headline = 'Cook' WHERE id = 1;
CALL hrflow_refresh('opening');
SELECT api_requests FROM hrflow_embed_stats;
SELECT vector = hrflow_text_embedding(E'Cook\n\nin Paris') AS same FROM opening WHERE key = '1';
SELECT hrflow_release_columns('opening', 'job');
SELECT hrflow_release_columns('cv', 'job');
UPDATE cv_profile SET due_at = now();
CALL hrflow_refresh('cv'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_track_table('cv', 'job', 'id', content_columns => '{cv}', item_type => 'job');
SELECT hrflow_track_table('opening', 'job', 'id', refresh_columns => '{seen}', content_columns => '{body,headline}');
SELECT hrflow_track_table('opening', 'job', 'id', refresh_columns => '{seen}', content_columns => '{body,headline}');
CALL hrflow_refresh('opening');
SELECT vector = hrflow_text_embedding(E'in Paris\n\nCook') AS same FROM opening WHERE key = '1';
CALL hrflow_refresh('cv');
SELECT key, vector = hrflow_document_embedding('job', (SELECT cv FROM job WHERE id::text = key)) AS same FROM cv ORDER BY key;

-- Of several rows with one key, the text that sorts first counts
CREATE TABLE note (id text, words text);
INSERT INTO note VALUES ('n', 'b'), ('n', 'a'), ('n', ' '), ('1', 'zzz');
SELECT hrflow_track_table('opening', 'note', 'id', content_columns => '{words}');
UPDATE opening_profile SET due_at = now() WHERE key = '1';
CALL hrflow_refresh('opening');
SELECT key, vector = hrflow_text_embedding(CASE key WHEN 'n' THEN 'a' ELSE E'in Paris\n\nCook' END) AS same FROM opening WHERE key IN ('n', '1') ORDER BY key;
DELETE FROM note;
SELECT count(*) FROM opening_profile WHERE key = 'n';
SELECT count(*) FROM opening_erased WHERE fingerprint = hrflow_fingerprint('', 'n') AND reason = 'delete';

-- A trigger that a user has created, whose condition refers to a whole row or a system
-- column instead of content columns, is reported and can be replaced
INSERT INTO note VALUES ('w', 'words');
SELECT hrflow_release_columns('opening', 'note');
CREATE TRIGGER own AFTER UPDATE ON note FOR EACH ROW
	WHEN (OLD.id IS DISTINCT FROM NEW.id OR OLD.* IS DISTINCT FROM NEW.*)
	EXECUTE FUNCTION hrflow_track_trigger('public.opening', 'id', '', '', '1', '');
CALL hrflow_refresh('opening'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_release_columns('opening', 'note'); -- error
DROP TRIGGER own ON note;
CREATE TRIGGER own AFTER UPDATE ON note FOR EACH ROW
	WHEN (OLD.id IS DISTINCT FROM NEW.id OR OLD.tableoid IS DISTINCT FROM NEW.tableoid)
	EXECUTE FUNCTION hrflow_track_trigger('public.opening', 'id', '', '', '1', '');
CALL hrflow_refresh('opening'); -- error
SELECT hrflow_release_columns('opening', 'note'); -- error
SELECT hrflow_track_table('opening', 'note', 'id', content_columns => '{words}');
CALL hrflow_refresh('opening');
SELECT vector = hrflow_text_embedding('words') AS same FROM opening WHERE key = 'w';
DELETE FROM note;

-- A request that a session may have sent is not sent again before hrflow_retry()
SELECT hrflow_embed_stats_reset();
INSERT INTO job VALUES (8, 'Baker');
INSERT INTO job VALUES (9, 'Baker');
UPDATE opening_profile SET sent_hash = encode(sha256('{"text": "Baker"}'), 'hex'), lease_until = now() - interval '1 minute' WHERE key = '8';
CALL hrflow_refresh('opening');
SELECT key, state, last_error FROM opening_profile WHERE key IN ('8', '9') ORDER BY key;
UPDATE job SET seen = now() WHERE id = 8;
CALL hrflow_refresh('opening');
SELECT api_requests FROM hrflow_embed_stats;
SELECT hrflow_retry('opening');
CALL hrflow_refresh('opening');
SELECT api_requests FROM hrflow_embed_stats;
SELECT key, state, last_error, sent_hash FROM opening_profile WHERE key IN ('8', '9') ORDER BY key;

-- Ranking, in which 'profile' means the section 'text' or 'document'
SELECT profile_id, section, similarity > 0.99 AS same FROM hrflow_match('opening', hrflow_text_embedding('Baker'), 1);
SELECT profile_id, section FROM hrflow_match('cv', hrflow_document_embedding('job', '{"name": "welder"}'), 1);
SELECT count(*) FROM hrflow_match_all('opening', 'cv', 1);
SELECT profile_id, parts FROM hrflow_match_weighted('cv', hrflow_document_embedding('job', '{"name": "welder"}'), '{"profile": 2}', 1);

SELECT hrflow_drop_store('opening'), hrflow_drop_store('cv'), hrflow_drop_store('person');
DROP TABLE job, note;
DROP EXTENSION hrflow_embed;
