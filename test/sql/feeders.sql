-- Tables that feed a store: which tables are refused, and how their columns can be
-- changed
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION hrflow_embed;
CREATE SCHEMA talent;
SELECT hrflow_create_store('talent.embedding', 'real[]');

-- A table with inheritance children, an inheritance child and a partition are
-- refused, because their triggers would miss statements
CREATE TABLE talent.person (name text, hrflow_id text);
CREATE TABLE talent.nurse (ward text) INHERITS (talent.person);
CREATE TABLE talent.parted (hrflow_id text, year int) PARTITION BY LIST (year);
CREATE TABLE talent.part PARTITION OF talent.parted DEFAULT;
SELECT hrflow_track_table('talent.embedding', 'talent.person', 'hrflow_id', 'acme'); -- error
SELECT hrflow_track_table('talent.embedding', 'talent.nurse', 'hrflow_id', 'acme'); -- error
SELECT hrflow_track_table('talent.embedding', 'talent.part', 'hrflow_id', 'acme'); -- error
SELECT hrflow_track_table('talent.embedding', 'talent.parted', 'hrflow_id', 'acme');

-- A table can be tracked once it has no children
ALTER TABLE talent.nurse NO INHERIT talent.person;
SELECT hrflow_track_table('talent.embedding', 'talent.person', 'hrflow_id', 'acme');
INSERT INTO talent.person VALUES ('Ada', 'nurse-1');

-- A child that is created later is detected when the table is reconciled, and
-- nothing is erased
INSERT INTO talent.nurse VALUES ('Bob', 'nurse-2');
ALTER TABLE talent.nurse INHERIT talent.person;
SELECT hrflow_track_table('talent.embedding', 'talent.person', 'hrflow_id', 'acme'); -- error
SELECT profile_id FROM talent.embedding_profile;
DROP TABLE talent.nurse;
SELECT hrflow_track_table('talent.embedding', 'talent.person', 'hrflow_id', 'acme');
SELECT hrflow_untrack_table('talent.embedding', 'talent.person');

-- Changing the type of a tracked column does not lose vectors
CREATE TABLE talent.candidate (id int, "Hrflow id" varchar(20), cv text, "seen at" text, note text);
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'Hrflow id', 'it''s', refresh_columns => '{cv,"seen at"}');
INSERT INTO talent.candidate VALUES (1, 'cook-1', '{"a": 1}', '2026-01-01'), (2, 'cook-2', '{}', NULL);
INSERT INTO talent.embedding SELECT source_id, profile_id, 'profile', 0, '{1}' FROM talent.embedding_profile;
\set VERBOSITY terse
ALTER TABLE talent.candidate ALTER COLUMN "Hrflow id" TYPE text; -- error
\set VERBOSITY default
BEGIN;
SELECT hrflow_release_columns('talent.embedding', 'talent.candidate') AS track \gset
ALTER TABLE talent.candidate ALTER COLUMN "Hrflow id" TYPE text,
	ALTER COLUMN cv TYPE jsonb USING cv::jsonb, ALTER COLUMN "seen at" TYPE date USING "seen at"::date;
\echo :track
:track;
COMMIT;
SELECT profile_id, cardinality(vector) FROM talent.embedding ORDER BY 1;
SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'talent.candidate'::regclass AND tgname ~ 'update';
UPDATE talent.embedding_profile SET state = 'ok', due_at = NULL;
UPDATE talent.candidate SET cv = '{"a": 2}' WHERE id = 1;
SELECT profile_id, state FROM talent.embedding_profile ORDER BY 1;

-- The column that identifies the source
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'Hrflow id', source_column => 'note');
BEGIN;
SELECT hrflow_release_columns('talent.embedding', 'talent.candidate');
SELECT hrflow_release_columns('talent.embedding', 'talent.candidate'); -- error
ROLLBACK;
SELECT hrflow_release_columns('talent.embedding', 'talent.person'); -- error

-- Erasing many profiles in batches, and untracking a table in batches
INSERT INTO talent.candidate SELECT i, 'many-' || i, NULL, NULL, 'acme' FROM generate_series(1, 7) i;
INSERT INTO talent.embedding SELECT source_id, profile_id, 'profile', 0, '{1}' FROM talent.embedding_profile
	WHERE profile_id <> 'many-2' ON CONFLICT DO NOTHING;
CALL hrflow_untrack_batches('talent.embedding', 'acme', '{many-1,nobody,many-3,many-4,many-3}', batch_size => 2);
CALL hrflow_untrack_batches('talent.embedding', 'acme', '{}');
SELECT profile_id FROM talent.embedding_profile WHERE source_id = 'acme' ORDER BY 1;
SELECT profile_id FROM talent.embedding WHERE source_id = 'acme' ORDER BY 1;
SELECT hrflow_track('talent.embedding', 'acme', '{many-5}');
CALL hrflow_untrack_table_batches('talent.embedding', 'talent.candidate', batch_size => 1);
SELECT profile_id, state FROM talent.embedding_profile ORDER BY 1;
SELECT profile_id, reason FROM talent.embedding_aside ORDER BY 1;
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'talent.candidate'::regclass;
-- Nothing is put aside if the table is no longer tracked
SET client_min_messages = notice;
CALL hrflow_untrack_table_batches('talent.embedding', 'talent.candidate');
SELECT hrflow_untrack_table('talent.embedding', 'talent.candidate');
SELECT hrflow_untrack_table('talent.embedding', 0);
SET client_min_messages = warning;

CALL hrflow_untrack_batches('talent.embedding', 'acme', NULL); -- error
CALL hrflow_untrack_batches('talent.embedding', '', '{many-5}'); -- error
CALL hrflow_untrack_batches('talent.embedding', 'acme', '{many-5,NULL}'); -- error
CALL hrflow_untrack_batches('talent.embedding', 'acme', '{many-5}', 0); -- error
CALL hrflow_untrack_table_batches('talent.embedding', NULL); -- error
CALL hrflow_untrack_table_batches('talent.embedding', 'talent.candidate', NULL); -- error
BEGIN;
CALL hrflow_untrack_batches('talent.embedding', 'acme', '{many-5}'); -- error
ROLLBACK;
BEGIN;
CALL hrflow_untrack_table_batches('talent.embedding', 'talent.candidate'); -- error
ROLLBACK;
SELECT profile_id FROM talent.embedding_profile WHERE state <> 'unwanted';

-- A table whose columns have other types is not used for vectors that are put aside,
-- nor for the record of erasures
DROP TABLE talent.embedding_aside, talent.embedding_erased;
CREATE TABLE talent.embedding_aside (source_id bigint, profile_id bigint, section text, item int, vector real[],
	fetched_at timestamptz, reason text, state text, due_at timestamptz, put_aside_at timestamptz, delete_at timestamptz);
INSERT INTO talent.embedding_aside (source_id, profile_id, delete_at) VALUES (4096, 4096, now());
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'Hrflow id', 'acme');
CALL hrflow_untrack_table_batches('talent.embedding', 'talent.candidate');
SELECT source_id FROM talent.embedding_aside;
ALTER TABLE talent.embedding_aside ALTER source_id TYPE text;
CALL hrflow_untrack_table_batches('talent.embedding', 'talent.candidate');
SELECT source_id FROM talent.embedding_aside;
CREATE TABLE talent.embedding_erased (erased_at timestamptz, reason int, vectors bigint, put_aside_at timestamptz,
	fingerprint bytea);
SELECT hrflow_untrack('talent.embedding', 'acme', '{many-5}');
SELECT reason FROM talent.embedding_erased;
SET client_min_messages = error;
SELECT hrflow_drop_store('talent.embedding');
DROP SCHEMA talent CASCADE;
DROP EXTENSION hrflow_embed;
