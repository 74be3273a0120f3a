--
-- The roles described in docs/refresh.md: what they can and cannot do
--
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION hrflow_embed;
SET application_name = 'pg_cron'; -- omit progress reports, which contain times
SET hrflow_embed.link_hosts = '127.0.0.1';
CREATE SCHEMA talent;

-- An owner creates stores for tables of their own, refreshes them, and decides what is
-- fetched again or erased
CREATE ROLE regress_hrflow_owner LOGIN;
GRANT CREATE, USAGE ON SCHEMA talent TO regress_hrflow_owner;
GRANT EXECUTE ON FUNCTION hrflow_create_store(text, text, text, text), hrflow_drop_store(regclass),
	hrflow_track_table(regclass, regclass, name, text, name, name[], name[], text),
	hrflow_untrack_table(regclass, regclass), hrflow_release_columns(regclass, regclass),
	hrflow_change_model(regclass, text), hrflow_switch_model(regclass, double precision),
	hrflow_track(regclass, text, text[]), hrflow_mark_due(regclass, text, text[]),
	hrflow_untrack(regclass, text, text[]), hrflow_restore(regclass, text, text[]),
	hrflow_retry(regclass), hrflow_index_statement(regclass, text),
	hrflow_refresh_estimate(regclass, jsonb, interval, int),
	hrflow_schedule(regclass, text, jsonb, interval), hrflow_unschedule(regclass),
	hrflow_store_status(regclass), hrflow_store_failures(regclass),
	hrflow_store_orphans(regclass) TO regress_hrflow_owner;
GRANT EXECUTE ON PROCEDURE
	hrflow_refresh(regclass, jsonb, interval, interval, bigint, int, int, regclass),
	hrflow_untrack_batches(regclass, text, text[], int),
	hrflow_untrack_table_batches(regclass, regclass, int) TO regress_hrflow_owner;

-- The owner creates a table and a store, and fills the store
SET ROLE regress_hrflow_owner;
CREATE TABLE talent.candidate (name text, hrflow_id text UNIQUE);
SELECT hrflow_create_store('talent.embedding', 'real[]');
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'hrflow_id', source_id => 'acme');
INSERT INTO talent.candidate VALUES ('Ada', 'nurse-1'), ('Bob', 'welder-1'), ('Mo', 'missing-1');
CALL hrflow_refresh('talent.embedding');
SELECT tracked, ok, missing, last_run_status FROM hrflow_store_status('talent.embedding');
SELECT sum(profiles) > 2 AS forecast FROM hrflow_refresh_estimate('talent.embedding', max_age => '10 days');
SELECT hrflow_release_columns('talent.embedding', 'talent.candidate') AS track \gset
ALTER TABLE talent.candidate ALTER COLUMN hrflow_id TYPE varchar(99);
:track;
\set VERBOSITY sqlstate
SELECT hrflow_job_vector('nurse-job'); -- error
SELECT * FROM hrflow_match('talent.embedding', '{1}'); -- error
RESET ROLE;

-- An owner who may not log in cannot schedule a store
SET ROLE regress_hrflow_owner;
\set VERBOSITY terse
SELECT hrflow_schedule('talent.embedding'); -- error
RESET ROLE;
ALTER ROLE regress_hrflow_owner NOLOGIN;
SET ROLE regress_hrflow_owner;
SELECT hrflow_schedule('talent.embedding'); -- error
RESET ROLE;
ALTER ROLE regress_hrflow_owner LOGIN;
\set VERBOSITY sqlstate

-- A reader ranks candidates and monitors the store, but sends no requests
CREATE ROLE regress_hrflow_reader;
GRANT USAGE ON SCHEMA talent TO regress_hrflow_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA talent TO regress_hrflow_reader;
GRANT EXECUTE ON FUNCTION hrflow_match(regclass, real[], int, text, text[], text),
	hrflow_match_weighted(regclass, real[], jsonb, int, text[], text),
	hrflow_match_all(regclass, regclass, int, text, text),
	hrflow_match_recall(regclass, text, int, int, text[], text),
	hrflow_store_status(regclass), hrflow_store_failures(regclass),
	hrflow_store_orphans(regclass) TO regress_hrflow_reader;

-- The reader can rank and monitor, but nothing else
CREATE FUNCTION talent.best(query real[]) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT c.name FROM hrflow_match('talent.embedding', query) m JOIN talent.candidate c ON c.hrflow_id = m.profile_id ORDER BY m.similarity DESC $$;
SET ROLE regress_hrflow_reader;
SELECT talent.best((SELECT vector FROM talent.embedding WHERE profile_id = 'welder-1'));
SELECT tracked, ok, missing, last_run_status FROM hrflow_store_status('talent.embedding');
SELECT profile_id, state FROM hrflow_store_failures('talent.embedding');
SELECT hrflow_text_embedding('a nurse'); -- error
SELECT hrflow_fetch_vector('https://127.0.0.1/x'); -- error
SELECT hrflow_profile_embedding('acme', 'nurse-1'); -- error
SELECT hrflow_mark_due('talent.embedding', 'acme', '{nurse-1}'); -- error
SELECT hrflow_untrack('talent.embedding', 'acme', '{nurse-1}'); -- error
CALL hrflow_untrack_batches('talent.embedding', 'acme', '{nurse-1}'); -- error
CALL hrflow_refresh('talent.embedding'); -- error
DELETE FROM talent.embedding; -- error
RESET ROLE;

-- An operator also sends requests, and decides what is fetched again or erased
CREATE ROLE regress_hrflow_operator;
GRANT regress_hrflow_reader TO regress_hrflow_operator;
GRANT INSERT, UPDATE, DELETE ON talent.embedding, talent.embedding_profile TO regress_hrflow_operator;
GRANT EXECUTE ON FUNCTION hrflow_auth(),
	hrflow_profile_embedding(text, text, jsonb, text, text),
	hrflow_profile_embedding_links(text, text, jsonb, text, text),
	hrflow_profile_embeddings(text, text[], jsonb, text[], text[]),
	hrflow_profile_links(text, text[], jsonb, text[], text[]),
	hrflow_profile_vectors(text, text[], jsonb, text[], text[]),
	hrflow_estimate(text, text[], jsonb, text[], text[]),
	hrflow_fetch_vector(text), hrflow_fetch_vectors(text[]),
	hrflow_job_embedding(text, text, text), hrflow_job_vector(text, text, text),
	hrflow_text_embedding(text), hrflow_text_embeddings(text[]),
	hrflow_document_embedding(text, jsonb, boolean), hrflow_document_embeddings(text, jsonb[]),
	hrflow_track(regclass, text, text[]), hrflow_mark_due(regclass, text, text[]),
	hrflow_untrack(regclass, text, text[]), hrflow_restore(regclass, text, text[]),
	hrflow_retry(regclass) TO regress_hrflow_operator;
GRANT EXECUTE ON PROCEDURE
	hrflow_untrack_batches(regclass, text, text[], int) TO regress_hrflow_operator;

-- The operator can send requests, and have profiles fetched again or erased
SET ROLE regress_hrflow_operator;
SELECT hrflow_auth() ->> 'api_key_permission' AS permission;
SELECT talent.best(hrflow_job_vector('nurse-job'));
SELECT cardinality(hrflow_text_embedding('a nurse')) > 0 AS embedded;
SELECT hrflow_profile_embedding('acme', 'cook-1', '{"profile": 1}') IS NOT NULL AS answered;
SELECT profile_id, status FROM hrflow_profile_embeddings('acme', '{cook-1}', '{"profile": 1}');
SELECT profile_id, status FROM hrflow_profile_vectors('acme', '{cook-1}', '{"profile": 1}');
SELECT hrflow_mark_due('talent.embedding', 'acme', '{nurse-1}'), hrflow_track('talent.embedding', 'acme', '{cook-1}');
SELECT hrflow_untrack('talent.embedding', 'acme', '{welder-1}'), hrflow_restore('talent.embedding'), hrflow_retry('talent.embedding');
CALL hrflow_untrack_batches('talent.embedding', 'acme', '{welder-1}');
SELECT profile_id, state FROM talent.embedding_profile ORDER BY profile_id;
CALL hrflow_refresh('talent.embedding'); -- error
CALL hrflow_untrack_table_batches('talent.embedding', 'talent.candidate'); -- error
SELECT hrflow_drop_store('talent.embedding'); -- error
SELECT hrflow_track_table('talent.embedding', 'talent.candidate', 'hrflow_id', source_id => 'acme'); -- error
SELECT hrflow_create_store('talent.other'); -- error
TRUNCATE talent.embedding; -- error
\set VERBOSITY default
RESET ROLE;
-- Others must become the owner, even superusers.  A hint says so to those who can.
GRANT EXECUTE ON FUNCTION hrflow_drop_store(regclass) TO regress_hrflow_operator;
SELECT hrflow_drop_store('talent.embedding'); -- error
SELECT hrflow_schedule('talent.embedding'); -- error
SELECT hrflow_unschedule('talent.embedding'); -- error
SELECT hrflow_untrack_table('talent.embedding', 'talent.candidate'); -- error
CALL hrflow_untrack_table_batches('talent.embedding', 'talent.candidate'); -- error
SET SESSION AUTHORIZATION regress_hrflow_operator;
SELECT hrflow_drop_store('talent.embedding'); -- error
RESET SESSION AUTHORIZATION;
GRANT regress_hrflow_owner TO regress_hrflow_operator;
SET SESSION AUTHORIZATION regress_hrflow_operator;
SELECT hrflow_drop_store('talent.embedding'); -- error
RESET SESSION AUTHORIZATION;
REVOKE regress_hrflow_owner FROM regress_hrflow_operator;
REVOKE EXECUTE ON FUNCTION hrflow_drop_store(regclass) FROM regress_hrflow_operator;
SET ROLE regress_hrflow_operator;
\set VERBOSITY sqlstate
-- No role can read the key or send it elsewhere
SHOW hrflow_embed.api_key;
SET hrflow_embed.base_url = 'https://attacker.example.com'; -- error
SET hrflow_embed.link_hosts = '*.example.com'; -- error
RESET ROLE;

-- What each role may do with each kind of store.  A writer may only write the tables
-- that feed them, whose contents are read as the owner.  Procedures that a role may
-- call end with 2D000, because they cannot run inside a function.
CREATE ROLE regress_hrflow_writer;
GRANT USAGE ON SCHEMA talent TO regress_hrflow_writer;
CREATE TEMP TABLE kind AS SELECT * FROM (VALUES
	('profile', 'acme', $$source_id => 'acme'$$), ('job', 'acme', $$source_id => 'acme'$$),
	('text', '', $$content_columns => '{word}'$$), ('document', '', $$content_columns => '{item}'$$))
	AS k(content, source, track);
GRANT SELECT ON kind TO regress_hrflow_owner;
SET ROLE regress_hrflow_owner;
SELECT format('CREATE TABLE talent.feeds_%1$s (word text, item jsonb)', content),
	format('SELECT hrflow_create_store(%L, %L, content => %L)', 'talent.' || content, 'real[]', content),
	format('SELECT hrflow_track_table(%L, %L, %L, %s)', 'talent.' || content, 'talent.feeds_' || content, 'word', track),
	format('GRANT SELECT ON talent.%1$s, talent.%1$s_profile, talent.%1$s_aside TO regress_hrflow_reader', content),
	format('GRANT INSERT, UPDATE, DELETE ON talent.%1$s, talent.%1$s_profile, talent.%1$s_aside TO regress_hrflow_operator', content),
	format('GRANT SELECT, INSERT, UPDATE, DELETE ON talent.feeds_%s TO regress_hrflow_writer', content)
FROM kind \gexec
RESET ROLE;
SET ROLE regress_hrflow_writer;
INSERT INTO talent.feeds_profile VALUES ('nurse-1');
INSERT INTO talent.feeds_job VALUES ('nurse-1');
INSERT INTO talent.feeds_text VALUES ('nurse-1');
INSERT INTO talent.feeds_document VALUES ('nurse-1', '{"key": "nurse-1"}');
RESET ROLE;
SET ROLE regress_hrflow_owner;
CALL hrflow_refresh('talent.profile', '{"profile": 1}');
CALL hrflow_refresh('talent.job');
CALL hrflow_refresh('talent.text');
CALL hrflow_refresh('talent.document');
RESET ROLE;
CREATE FUNCTION talent.outcome(who text, statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('role', 'regress_hrflow_' || who, true);
	EXECUTE statement;
	RAISE EXCEPTION USING ERRCODE = '00OK0', MESSAGE = 'undo it';
EXCEPTION WHEN OTHERS THEN
	RETURN replace(SQLSTATE, '00OK0', 'ok');
END $$;
SET client_min_messages = error;
WITH outcome AS MATERIALIZED
	(SELECT n, statement, content, talent.outcome('owner', filled) AS owner, talent.outcome('reader', filled) AS reader,
		talent.outcome('operator', filled) AS operator, talent.outcome('writer', filled) AS writer
	FROM (VALUES (1, $$SELECT vector FROM talent.KIND$$), (2, $$SELECT word, item FROM talent.feeds_KIND$$),
		(3, $$UPDATE talent.feeds_KIND SET word = 'cook-1', item = '{"key": "cook-1"}'$$), (4, $$DELETE FROM talent.feeds_KIND$$),
		(5, $$SELECT hrflow_match('talent.KIND', '{1,0}')$$), (6, $$SELECT hrflow_match_all('talent.KIND', 'talent.KIND', 1)$$),
		(7, $$SELECT hrflow_store_status('talent.KIND')$$), (8, $$SELECT hrflow_store_failures('talent.KIND')$$),
		(9, $$SELECT hrflow_track('talent.KIND', 'SOURCE', '{a}')$$), (10, $$SELECT hrflow_mark_due('talent.KIND', 'SOURCE', '{nurse-1}')$$),
		(11, $$SELECT hrflow_untrack('talent.KIND', 'SOURCE', '{nurse-1}')$$), (12, $$SELECT hrflow_restore('talent.KIND')$$),
		(13, $$SELECT hrflow_retry('talent.KIND')$$), (14, $$CALL hrflow_untrack_batches('talent.KIND', 'SOURCE', '{nurse-1}')$$),
		(15, $$CALL hrflow_refresh('talent.KIND')$$), (16, $$SELECT hrflow_refresh_estimate('talent.KIND')$$),
		(17, $$SELECT hrflow_track_table('talent.KIND', 'talent.feeds_KIND', 'word', TRACK)$$),
		(18, $$SELECT hrflow_release_columns('talent.KIND', 'talent.feeds_KIND')$$),
		(19, $$SELECT hrflow_untrack_table('talent.KIND', 'talent.feeds_KIND')$$),
		(20, $$CALL hrflow_untrack_table_batches('talent.KIND', 'talent.feeds_KIND')$$),
		(21, $$SELECT hrflow_store_orphans('talent.KIND')$$), (22, $$SELECT hrflow_match_recall('talent.KIND')$$),
		(23, $$SELECT hrflow_drop_store('talent.KIND')$$)) AS s(n, statement),
		kind, LATERAL (SELECT replace(replace(replace(statement, 'KIND', content), 'SOURCE', source), 'TRACK', track) AS filled) AS f)
SELECT statement, owner, reader, operator, writer, string_agg(content, ' ' ORDER BY content) AS kinds
FROM outcome GROUP BY n, statement, owner, reader, operator, writer ORDER BY n, kinds;
SET client_min_messages = warning;

-- Which functions each role may execute.  The writer may execute only those of PUBLIC.
SELECT p.proname, has_function_privilege('regress_hrflow_owner', p.oid, 'EXECUTE') AS owner,
	has_function_privilege('regress_hrflow_reader', p.oid, 'EXECUTE') AS reader,
	has_function_privilege('regress_hrflow_operator', p.oid, 'EXECUTE') AS operator,
	has_function_privilege('regress_hrflow_writer', p.oid, 'EXECUTE') AS writer
FROM pg_depend d JOIN pg_proc p ON d.objid = p.oid
WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e' AND p.prorettype NOT IN ('internal'::regtype, 'trigger'::regtype)
	AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'hrflow_embed')
ORDER BY p.proname;

-- The owner can untrack and erase in batches, as the last step before the store is dropped
SET ROLE regress_hrflow_owner;
CALL hrflow_untrack_batches('talent.embedding', 'acme', '{cook-1}');
CALL hrflow_untrack_table_batches('talent.embedding', 'talent.candidate');
SELECT * FROM hrflow_store_orphans('talent.embedding');
SELECT hrflow_drop_store('talent.embedding');
RESET ROLE;
DROP SCHEMA talent CASCADE;
DROP OWNED BY regress_hrflow_reader, regress_hrflow_operator, regress_hrflow_owner, regress_hrflow_writer;
DROP ROLE regress_hrflow_reader, regress_hrflow_operator, regress_hrflow_owner, regress_hrflow_writer;
DROP EXTENSION hrflow_embed;
