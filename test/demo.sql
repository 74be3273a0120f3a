-- Run by "demo".  Each statement is shown before its result.
\set ECHO none
CREATE FUNCTION short(text) RETURNS text LANGUAGE sql
RETURN regexp_replace($1, '^(https://[^/]+)/.*/embedding/(.*)\?.*$', '\1/…/\2?…');
CREATE FUNCTION short(jsonb) RETURNS text LANGUAGE sql
RETURN jsonb_pretty(regexp_replace($1::text, '/teams/[^"]*/embedding/([^"?]*)\?[^"]*"', '/…/\1?…"', 'g')::jsonb);
\echo
\echo 'All candidates, jobs and vectors below are made up: a program on this machine stands'
\echo 'in for the HrFlow API. Vectors of the same occupation have a similarity of about 0.6,'
\echo 'others of about 0. The function short() shortens links, and is not part of the extension.'
\set ECHO queries
\echo
\echo == Candidates in PostgreSQL, profiles at HrFlow
\echo
CREATE EXTENSION hrflow_embed;
CREATE TABLE candidate (name text, hrflow_id text);
INSERT INTO candidate VALUES
	('Ada Nurse', 'ada-nurse'), ('Bob Welder', 'bob-welder'), ('Cleo Nurse', 'cleo-nurse'),
	('Dan Cook', 'dan-cook'), ('Eve, not parsed yet', NULL);
SELECT * FROM candidate;

\echo == One profile, as the API returns it
\echo
SELECT short(hrflow_profile_embedding('source-1', 'ada-nurse', '{"profile": 1, "experiences": [0]}'));

\echo == Links as rows, by the reference in your own system, and by e-mail address
\echo
SELECT section, item, short(link) AS link
FROM hrflow_profile_embedding_links('source-1', profile_reference => 'ATS 4711/b', fields => '{"profile": 1, "skills": 1}');
SELECT section, item, short(link) AS link
FROM hrflow_profile_embedding_links('source-1', profile_email => 'bob.welder@example.com', fields => '{"profile": 1}');

\echo == Links joined with the candidates
\echo
SELECT c.name, l.section, short(link) AS link
FROM candidate c
LEFT JOIN LATERAL hrflow_profile_embedding_links('source-1', c.hrflow_id, '{"profile": 1}') l ON true;

\echo == All candidates at once: a row for each, even if its request fails
\echo
SELECT ordinality, profile_id, status, left(data::text, 40) || '…' AS data, error
FROM hrflow_profile_embeddings('source-1', (SELECT array_agg(hrflow_id) FROM candidate) || '{missing-1}', '{"profile": 1}')
ORDER BY ordinality;

\echo == The vectors, and the candidates most similar to Ada
\echo
ALTER TABLE candidate ADD embedding real[];
WITH v AS MATERIALIZED (
    SELECT * FROM hrflow_profile_vectors('source-1', (SELECT array_agg(hrflow_id) FROM candidate), '{"profile": 1}'))
UPDATE candidate c SET embedding = v.vector
FROM v WHERE v.profile_id = c.hrflow_id AND v.section = 'profile' AND v.status = 'ok';
SELECT name, cardinality(embedding) AS dimension, embedding[1:3] AS first_elements
FROM candidate WHERE embedding IS NOT NULL;
SELECT c.name, round(hrflow_cosine_similarity(c.embedding, ada.embedding)::numeric, 3) AS similarity
FROM candidate c, candidate ada
WHERE ada.name = 'Ada Nurse' AND c.embedding IS NOT NULL
ORDER BY 2 DESC;

\echo == A store of vectors, which follows the table of candidates
\echo
SELECT hrflow_create_store('embedding');
SELECT hrflow_track_table('embedding', 'candidate', 'hrflow_id', source_id => 'source-1');
INSERT INTO candidate (name, hrflow_id)
SELECT initcap(occupation) || ' ' || i, occupation || '-' || i
FROM unnest('{nurse,welder,cook,teacher}'::text[]) occupation, generate_series(1, 50) i;
CALL hrflow_refresh('embedding', '{"profile": 1, "skills": 1}');
SELECT tracked, due, ok, failed, missing, gone FROM hrflow_store_status('embedding');

\echo == The ten best candidates for a job, and the section that counts most
\echo
\echo 'The similarity is 0.7 times that of the profiles plus 0.3 times that of the skills. The'
\echo 'vectors of skills have little in common with that of a job here, so the sum is about 0.45,'
\echo 'where the similarity of the profiles alone, further below, is about 0.64.'
\echo
SELECT c.name, round(m.similarity::numeric, 3) AS similarity, m.section AS best_section
FROM hrflow_match_weighted('embedding', (SELECT hrflow_job_vector('nurse-job')), '{"profile": 0.7, "skills": 0.3}') m
JOIN candidate c ON c.hrflow_id = m.profile_id
ORDER BY similarity DESC;

\echo == Both directions: the best jobs for Ada, and the best candidates for each job, from a store of jobs
\echo
SELECT hrflow_create_store('opening', content => 'job');
SELECT hrflow_track('opening', '', '{nurse-job,welder-job,cook-job,teacher-job}');
CALL hrflow_refresh('opening');
SELECT m.profile_id AS job, round(m.similarity::numeric, 3) AS similarity
FROM hrflow_match('opening',
	(SELECT vector::real[] FROM embedding WHERE profile_id = 'ada-nurse' AND section = 'profile'), 2) m
ORDER BY m.similarity DESC;
SELECT m.profile_id AS job, c.name, round(m.similarity::numeric, 3) AS similarity
FROM hrflow_match_all('opening', 'embedding', 2) m
JOIN candidate c ON c.hrflow_id = m.other_profile_id
ORDER BY job, m.similarity DESC;

\echo == The best candidates for a job in plain SQL
\echo
SELECT c.name, round(hrflow_cosine_similarity(e.vector::real[], job.vector)::numeric, 3) AS similarity
FROM embedding e JOIN candidate c ON c.hrflow_id = e.profile_id,
	(SELECT hrflow_job_vector('nurse-job') AS vector OFFSET 0) job
WHERE e.section = 'profile'
ORDER BY 2 DESC LIMIT 3;

\echo == 2,000 profiles at once
\echo
\timing on
SELECT status, count(*)
FROM hrflow_profile_embeddings('source-1', (SELECT array_agg('profile-' || i) FROM generate_series(1, 2000) i), '{"profile": 1}')
GROUP BY status;
\timing off
SELECT calls, requests, connections_opened, connections_reused, rows_by_status FROM hrflow_embed_stats;

\echo == A profile that does not exist
\echo
SELECT hrflow_profile_embedding('source-1', 'missing-1');

\echo
\echo == A key that is refused, and not revealed
\echo
SET hrflow_embed.api_key_file = :'old_key';
SELECT hrflow_profile_embedding('source-1', 'ada-nurse');
\echo 'A key in a setting is not revealed, either: SHOW prints asterisks, and pg_settings omits it.'
\echo
SET hrflow_embed.api_key = 'askr_this_key_was_revoked_last_week';
SHOW hrflow_embed.api_key;
SELECT count(*) AS in_pg_settings FROM pg_settings WHERE name = 'hrflow_embed.api_key';

\set ECHO none
\echo == Next, with your own account
\echo
\echo '    sudo make install'
\echo '    CREATE EXTENSION hrflow_embed;   -- in your database, with the key in a file: see README.md'
\echo '    SELECT hrflow_auth();            -- whose key it is, and what it may do'
\echo
\echo 'Without an account, "test/with-api psql -U postgres" starts the same private server and API.'
\echo
