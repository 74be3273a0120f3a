-- A relation NAME_aside that cannot be used for vectors that are put aside: vectors of
-- erased persons may remain in it, so statements that erase say so
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION hrflow_embed;
CREATE ROLE regress_hrflow_aside;
CREATE SCHEMA talent;
SELECT hrflow_create_store('talent.embedding', 'real[]');
CREATE TABLE talent.candidate (id text);
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'id', 'acme');
CREATE VIEW talent.left_over AS
	SELECT 'stored' AS place, profile_id FROM talent.embedding
	UNION ALL SELECT 'tracked', profile_id FROM talent.embedding_profile ORDER BY 1, 2;

-- Fill the store with persons whose vectors are partly put aside
CREATE PROCEDURE talent.fill() LANGUAGE sql AS $$
	INSERT INTO talent.candidate SELECT 'nurse-' || i FROM generate_series(1, 9) i;
	INSERT INTO talent.embedding SELECT source_id, profile_id, 'profile', 0, '{1}' FROM talent.embedding_profile
		ON CONFLICT DO NOTHING;
	INSERT INTO talent.embedding_aside (source_id, profile_id, section, item, vector, fetched_at, reason)
		SELECT source_id, profile_id, 'skills', 0, '{1}', now(), 'no vector' FROM talent.embedding_profile
		ON CONFLICT DO NOTHING;
$$;
CALL talent.fill();

-- Statements that erase persons, while the table has another owner
ALTER TABLE talent.embedding_aside OWNER TO regress_hrflow_aside;
SELECT * FROM hrflow_store_orphans('talent.embedding'); -- error
\echo :LAST_ERROR_SQLSTATE
DELETE FROM talent.candidate WHERE id = 'nurse-1';
UPDATE talent.candidate SET id = 'cook-2' WHERE id = 'nurse-2';
SELECT hrflow_untrack('talent.embedding', 'acme', '{nurse-3}');
CALL hrflow_untrack_batches('talent.embedding', 'acme', '{nurse-4}');
SELECT * FROM talent.left_over;

-- A WARNING is raised once per statement, no matter how many persons, calls and batches
SELECT hrflow_untrack('talent.embedding', 'acme', ARRAY['nurse-' || i]) FROM generate_series(5, 7) i;
CALL hrflow_untrack_batches('talent.embedding', 'acme', '{nurse-8,nobody,somebody}', 1);
BEGIN;
DELETE FROM talent.candidate WHERE id = 'nurse-8';
TRUNCATE talent.candidate;
COMMIT;
SELECT * FROM talent.left_over;

-- Nothing is reported if no person is erased
DELETE FROM talent.candidate;
INSERT INTO talent.candidate VALUES ('nurse-1'), ('nurse-1');
DELETE FROM talent.candidate WHERE ctid = (SELECT min(ctid) FROM talent.candidate);
BEGIN;
TRUNCATE talent.candidate;
INSERT INTO talent.candidate VALUES ('nurse-1');
COMMIT;

-- The hint shows how to find and erase what was left over
ALTER TABLE talent.embedding_aside OWNER TO CURRENT_USER;
SELECT * FROM hrflow_store_orphans('talent.embedding');
SELECT hrflow_untrack('talent.embedding', 'acme', array_agg(profile_id)) FROM hrflow_store_orphans('talent.embedding');
SELECT * FROM hrflow_store_orphans('talent.embedding');
SELECT profile_id FROM talent.embedding_aside;

-- Other reasons: a column that was renamed, dropped or has another type, and other kinds of relations
BEGIN;
CALL talent.fill();
ALTER TABLE talent.embedding_aside RENAME COLUMN profile_id TO id;
DELETE FROM talent.candidate;
COMMIT;
SELECT * FROM hrflow_store_orphans('talent.embedding'); -- error
ALTER TABLE talent.embedding_aside RENAME COLUMN id TO profile_id;
BEGIN;
CALL talent.fill();
ALTER TABLE talent.embedding_aside ALTER section TYPE "char";
DELETE FROM talent.candidate;
COMMIT;
SELECT * FROM hrflow_store_orphans('talent.embedding'); -- error
ALTER TABLE talent.embedding_aside ALTER section TYPE text;
BEGIN;
CALL talent.fill();
ALTER TABLE talent.embedding_aside DROP due_at;
DELETE FROM talent.candidate;
COMMIT;
SELECT * FROM hrflow_store_orphans('talent.embedding'); -- error
ALTER TABLE talent.embedding_aside ADD due_at timestamptz;
BEGIN;
CALL talent.fill();
ALTER TABLE talent.embedding_aside RENAME TO renamed;
CREATE VIEW talent.embedding_aside AS TABLE talent.renamed;
DELETE FROM talent.candidate;
COMMIT;
SELECT * FROM hrflow_store_orphans('talent.embedding'); -- error

-- Vectors are not put aside, either
INSERT INTO talent.candidate VALUES ('cook-1');
SELECT hrflow_untrack_table('talent.embedding', 'talent.candidate');
SELECT * FROM talent.left_over;

-- A store without such a relation has no other vectors
ALTER VIEW talent.embedding_aside RENAME TO unrelated;
SELECT * FROM hrflow_store_orphans('talent.embedding');
SELECT hrflow_untrack('talent.embedding', 'acme', '{cook-1}');
ALTER TABLE talent.renamed RENAME TO embedding_aside;
DROP VIEW talent.unrelated, talent.left_over;

-- A relation NAME_erased that cannot be used: statements that erase say so, once each
TRUNCATE talent.embedding_aside, talent.embedding_erased;
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'id', 'acme');
CALL talent.fill();
ALTER TABLE talent.embedding_erased OWNER TO regress_hrflow_aside;
DELETE FROM talent.candidate WHERE id = 'nurse-1';
BEGIN;
DELETE FROM talent.candidate WHERE id = 'nurse-2';
UPDATE talent.candidate SET id = 'nurse-2' WHERE id = 'nurse-3';
COMMIT;
SELECT hrflow_untrack('talent.embedding', 'acme', ARRAY['nurse-' || i]) FROM generate_series(4, 5) i;
ALTER TABLE talent.embedding_erased OWNER TO CURRENT_USER;
ALTER TABLE talent.embedding_erased ALTER vectors TYPE integer;
CALL hrflow_untrack_batches('talent.embedding', 'acme', '{nurse-6,nobody}', 1);
-- Vectors that are put aside are not erased until they expire
DELETE FROM talent.embedding_aside;
SELECT hrflow_untrack_table('talent.embedding', 'talent.candidate');
UPDATE talent.embedding_aside SET delete_at = now();
CALL hrflow_untrack_table_batches('talent.embedding', 'talent.candidate');
-- Profiles without vectors are erased at once
ALTER TABLE talent.embedding_erased DROP vectors;
INSERT INTO talent.candidate VALUES ('cook-2');
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'id', 'acme');
SELECT hrflow_untrack_table('talent.embedding', 'talent.candidate');
-- Without an erasure, or without such a relation, nothing is reported
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'id', 'acme');
INSERT INTO talent.candidate VALUES ('cook-1'), ('cook-1');
DELETE FROM talent.candidate WHERE ctid = (SELECT min(ctid) FROM talent.candidate WHERE id = 'cook-1');
ALTER TABLE talent.embedding_erased RENAME TO unrelated;
DELETE FROM talent.candidate;
SELECT hrflow_untrack('talent.embedding', 'acme', '{cook-1}');
SELECT count(*) FROM talent.unrelated;
CALL talent.fill();

-- Such a relation is not dropped with the store
ALTER TABLE talent.embedding_aside OWNER TO regress_hrflow_aside;
SELECT hrflow_drop_store('talent.embedding');
SELECT count(*) > 0 AS has_vectors FROM talent.embedding_aside;

-- After a store was renamed, its tables are not tracked again before NAME_aside and
-- NAME_erased have been renamed, too
SELECT hrflow_create_store('talent.old', 'real[]');
CREATE TABLE talent.person (id text);
SELECT hrflow_track_table('talent.old', 'talent.person', 'id', 'acme');
INSERT INTO talent.person VALUES ('nurse-7');
INSERT INTO talent.old_aside (source_id, profile_id, section, item, vector, fetched_at, reason)
	VALUES ('acme', 'nurse-7', 'skills', 0, '{1}', now(), 'no vector');
ALTER TABLE talent.old RENAME TO "New";
ALTER TABLE talent.old_profile RENAME TO "New_profile";
SELECT hrflow_track_table('talent."New"', 'talent.person', 'id', 'acme'); -- error
\echo :LAST_ERROR_SQLSTATE
DELETE FROM talent.person; -- error
-- If another relation has the old name, these tables may belong to it
BEGIN;
CREATE TABLE talent.old ();
SELECT hrflow_track_table('talent."New"', 'talent.person', 'id', 'acme');
ROLLBACK;
ALTER TABLE talent.old_aside RENAME TO "New_aside";
SELECT hrflow_track_table('talent."New"', 'talent.person', 'id', 'acme'); -- error
ALTER TABLE talent.old_erased RENAME TO "New_erased";
SELECT hrflow_track_table('talent."New"', 'talent.person', 'id', 'acme');
DELETE FROM talent.person WHERE id = 'nurse-7';
INSERT INTO talent.person VALUES ('nurse-7');
SELECT hrflow_restore('talent."New"');
-- Another schema
CREATE SCHEMA moved;
ALTER TABLE talent."New" SET SCHEMA moved;
ALTER TABLE talent."New_profile" SET SCHEMA moved;
SELECT hrflow_track_table('moved."New"', 'talent.person', 'id', 'acme'); -- error
ALTER TABLE talent."New_aside" SET SCHEMA moved;
ALTER TABLE talent."New_erased" SET SCHEMA moved;
SELECT hrflow_track_table('moved."New"', 'talent.person', 'id', 'acme');
ALTER SCHEMA moved RENAME TO again;
SELECT hrflow_track_table('again."New"', 'talent.person', 'id', 'acme');
-- The table of another store that has the old name
ALTER TABLE again."New" RENAME TO "Newer";
ALTER TABLE again."New_profile" RENAME TO "Newer_profile";
ALTER TABLE again."New_aside" RENAME TO "Newer_aside";
ALTER TABLE again."New_erased" RENAME TO "Newer_erased";
SELECT hrflow_create_store('again."New"', 'real[]');
SELECT hrflow_track_table('again."Newer"', 'talent.person', 'id', 'acme');
-- A store without these tables
DROP TABLE again."Newer_aside", again."Newer_erased";
ALTER TABLE again."Newer" RENAME TO newest;
ALTER TABLE again."Newer_profile" RENAME TO newest_profile;
SELECT hrflow_track_table('again.newest', 'talent.person', 'id', 'acme');
DROP SCHEMA again CASCADE;
DROP SCHEMA talent CASCADE;
DROP ROLE regress_hrflow_aside;
DROP EXTENSION hrflow_embed;
