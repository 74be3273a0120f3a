--
-- Requests for many profiles: hrflow_profile_embeddings()
--
CREATE EXTENSION hrflow_embed;
SET hrflow_embed.max_attempts = 1;

-- A row for every element, including duplicates, NULLs and invalid identifiers
SELECT ordinality, profile_id, status, http_status, data ? 'profile' AS has_profile, error
FROM hrflow_profile_embeddings('acme',
	'{nurse-1,missing-1,nurse-1,NULL,"",novector-1,fault:status=500,fault:truncated,fault:status=403}',
	'{"profile": 1, "skills": 1}')
ORDER BY ordinality;

-- References and e-mail addresses, separately or together in one request
SELECT ordinality, profile_id, profile_reference, profile_email, status
FROM hrflow_profile_embeddings('acme', '{nurse-1,NULL,NULL,NULL}', '{"profile": 1}',
	'{ref-1,ref-2,NULL,NULL}', '{NULL,NULL,a@example.com,NULL}')
ORDER BY ordinality;
SELECT ordinality, profile_reference, status
FROM hrflow_profile_embeddings('acme', profile_references => '{a,b,missing}')
ORDER BY ordinality;
SELECT ordinality, profile_email, status
FROM hrflow_profile_embeddings('acme', profile_emails => '{a@x,b@x,missing@x}')
ORDER BY ordinality;

-- Equal elements are requested once.  Elements that differ in any identifier are
-- not equal.
SELECT hrflow_embed_stats_reset();
SELECT count(*), count(DISTINCT ordinality)
FROM hrflow_profile_embeddings('acme', array_fill('nurse-1'::text, ARRAY[1000]));
SELECT count(*), count(DISTINCT ordinality)
FROM hrflow_profile_embeddings('acme', '{a,a,NULL,a}', NULL, '{b,NULL,b,b}');
SELECT count(*), count(DISTINCT ordinality)
FROM hrflow_profile_embeddings('acme', '{NULL,NULL,NULL}', NULL, '{c,c,d}');
SELECT calls, requests, retries, rate_limits, rows_by_status FROM hrflow_embed_stats;

-- Elements with equal hashes are still compared.  The hash of a reference is
-- incremented by one.
CREATE TEMP TABLE hashed AS SELECT 'p' || i AS id, hashtext('p' || i) AS hash FROM generate_series(1, 200000) i;
SELECT min(id) AS a, max(id) AS b FROM hashed GROUP BY hash HAVING count(*) > 1 LIMIT 1 \gset
SELECT count(DISTINCT data ->> 'profile')
FROM hrflow_profile_embeddings('acme', ARRAY[:'a', :'b'], '{"profile": 1}');
SELECT min(a) AS a, min(b) AS b
FROM (SELECT id AS a, NULL AS b, hash::bigint FROM hashed UNION ALL SELECT NULL, id, hash::bigint + 1 FROM hashed) h
GROUP BY hash HAVING count(a) > 0 AND count(b) > 0 LIMIT 1 \gset
SELECT count(DISTINCT data ->> 'profile')
FROM hrflow_profile_embeddings('acme', ARRAY[:'a', NULL], '{"profile": 1}', ARRAY[NULL, :'b']);

-- A join with the table that the identifiers came from
CREATE TEMP TABLE candidate (name text, hrflow_id text);
INSERT INTO candidate VALUES ('Ada', 'nurse-1'), ('Bob', 'welder-2'), ('Cleo', NULL), ('Dan', 'missing-4');
SELECT c.name, e.status
FROM candidate c
LEFT JOIN hrflow_profile_embeddings('acme', (SELECT array_agg(hrflow_id) FROM candidate), '{"profile": 1}') e
ON e.profile_id = c.hrflow_id
ORDER BY c.name;

-- No elements result in no rows.  So does a NULL array, as array_agg() returns for
-- no rows.
SELECT count(*) FROM hrflow_profile_embeddings('acme', '{}');
SELECT hrflow_embed_stats_reset();
SELECT count(*) FROM hrflow_profile_embeddings('acme', (SELECT array_agg(hrflow_id) FROM candidate WHERE false));
SELECT count(*) FROM hrflow_profile_vectors('acme', profile_emails => (SELECT array_agg(name) FROM candidate WHERE false));
SELECT count(*) FROM hrflow_profile_embeddings('acme', NULL);
SELECT count(*) FROM hrflow_profile_embeddings('acme', profile_references => NULL::text[]);
PREPARE embeddings(text[]) AS SELECT count(*) FROM hrflow_profile_embeddings('acme', $1);
EXECUTE embeddings(NULL);
DEALLOCATE embeddings;
DO $$
DECLARE
	ids text[];
BEGIN
	ASSERT NOT EXISTS (SELECT FROM hrflow_profile_embeddings('acme', ids));
END $$;
SELECT requests FROM hrflow_embed_stats;

-- Without a source, no request is sent
SELECT ordinality, status, error FROM hrflow_profile_embeddings(NULL, '{a,b}') ORDER BY 1;
SELECT ordinality, status, error FROM hrflow_profile_embeddings('', '{a}') ORDER BY 1;

-- An identifier that is too long is not sent, but the other elements are
SELECT hrflow_embed_stats_reset();
SELECT ordinality, length(profile_id), status, http_status, error
FROM hrflow_profile_embeddings('acme', ARRAY['a', repeat('x', 1000000), 'b', NULL])
ORDER BY 1;
SELECT requests FROM hrflow_embed_stats;

-- NULL is an empty array, in a view, too
CREATE VIEW of_null AS SELECT * FROM hrflow_profile_embeddings('acme', NULL);
SELECT count(*) FROM of_null;
DROP VIEW of_null;

-- Invalid arguments
SELECT * FROM hrflow_profile_embeddings('acme'); -- error
\echo :SQLSTATE
SELECT * FROM hrflow_profile_embeddings('acme', '{a,b}', NULL, '{a}'); -- error
\echo :SQLSTATE
SELECT * FROM hrflow_profile_embeddings('acme', '{{a,b},{c,d}}'); -- error
\echo :SQLSTATE
SELECT * FROM hrflow_profile_embeddings('acme', '{a}', '[1]'); -- error
\echo :SQLSTATE

--
-- Refusals that apply to all elements
--
SELECT * FROM hrflow_profile_embeddings('unknown-source', '{a,b,c}'); -- error
SELECT * FROM hrflow_profile_embeddings('acme', '{fault:status=401,a,b,c}') WHERE ordinality = 0;
SET hrflow_embed.max_concurrency = 1;
SELECT * FROM hrflow_profile_embeddings('acme', '{fault:status=401,a,b,c}'); -- error
\echo :SQLSTATE
SELECT * FROM hrflow_profile_embeddings('acme', '{fault:status=402,a,b,c}'); -- error
\echo :SQLSTATE
SELECT * FROM hrflow_profile_embeddings('acme', '{fault:status=429,a,b,c}'); -- error
\echo :SQLSTATE
-- results received before the refusal are kept
SELECT hrflow_embed_stats_reset();
SELECT ordinality, status, http_status
FROM hrflow_profile_embeddings('acme', '{a,missing,fault:status=402,b,a,c}');
SELECT requests, rows_by_status FROM hrflow_embed_stats;
-- one 403 applies to its element only, but a second one to all elements
SELECT ordinality, status, http_status
FROM hrflow_profile_embeddings('acme', '{a,fault:status=403,b,"fault:status=403,id=2",c}');
SELECT * FROM hrflow_profile_embeddings('acme', '{fault:status=403,"fault:status=403,id=2",c}'); -- error
\echo :SQLSTATE
RESET hrflow_embed.max_concurrency;

-- A WARNING is raised if most elements of a batch fail or none succeeds, but not
-- because of NULLs or a few failures
SELECT status, count(*) FROM hrflow_profile_embeddings('acme', '{a,missing-1,missing-2,missing-3}') GROUP BY status ORDER BY 1;
SELECT status, count(*) FROM hrflow_profile_embeddings('acme', '{missing-1,missing-2,missing-3}') GROUP BY status;
SELECT status, count(*) FROM hrflow_profile_embeddings('acme', '{missing-1,"",novector-1}') GROUP BY status ORDER BY 1;
SELECT status, count(*) FROM hrflow_profile_embeddings('acme', '{a,b,missing-1,missing-2}') GROUP BY status ORDER BY 1;
SELECT status, count(*) FROM hrflow_profile_embeddings('acme', '{a,NULL,NULL,NULL}') GROUP BY status ORDER BY 1;
SELECT status, count(*) FROM hrflow_profile_embeddings('acme', '{NULL,NULL}') GROUP BY status ORDER BY 1;

-- If all elements are refused for the same reason, at most 32 are requested,
-- because the reason does not lie in the profiles
SELECT hrflow_embed_stats_reset();
SELECT count(*) FROM hrflow_profile_embeddings('acme', (SELECT array_agg('p' || i) FROM generate_series(1, 1000) i), '{"profil": 1}'); -- error
\echo :SQLSTATE
SELECT requests FROM hrflow_embed_stats;
-- neither are more if no link may be fetched
SET hrflow_embed.link_hosts = 'example.com';
SELECT hrflow_embed_stats_reset();
\set VERBOSITY terse
SELECT count(*) FROM hrflow_profile_vectors('acme', (SELECT array_agg('p' || i) FROM generate_series(1, 1000) i), '{"profile": 1}'); -- error
\set VERBOSITY default
\echo :SQLSTATE
SELECT requests FROM hrflow_embed_stats;
RESET hrflow_embed.link_hosts;
-- unknown profiles are not refusals, so all are requested
SELECT hrflow_embed_stats_reset();
SELECT status, count(*)
FROM hrflow_profile_embeddings('acme', (SELECT array_agg('missing-' || i) FROM generate_series(1, 200) i)) GROUP BY status;
SELECT requests FROM hrflow_embed_stats;

-- When the time limit of a batch expires, results received so far are kept
SET hrflow_embed.batch_timeout = '2s';
SELECT ordinality, status, http_status, error
FROM hrflow_profile_embeddings('acme', '{a,fault:silent,b}')
ORDER BY ordinality;
SET hrflow_embed.max_concurrency = 1;
SELECT ordinality, status, error
FROM hrflow_profile_embeddings('acme', '{a,fault:silent,b,missing}')
ORDER BY ordinality;
RESET hrflow_embed.max_concurrency;
RESET hrflow_embed.batch_timeout;

-- Retries are sent while other elements are requested
SET hrflow_embed.max_attempts = 3;
SELECT status, count(*)
FROM hrflow_profile_embeddings('acme',
	(SELECT array_agg('fault:first=2,status=' || (ARRAY[500, 502, 503])[i % 3 + 1] || ',id=' || i || gen_random_uuid())
	 FROM generate_series(1, 100) i))
GROUP BY status;
-- A slow machine may report a pause
SET client_min_messages = warning;
SELECT status, count(*)
FROM hrflow_profile_embeddings('acme',
	(SELECT array_agg(CASE i % 5 WHEN 0 THEN 'fault:first=1,status=429,retry_after=0,id=' || gen_random_uuid() ELSE 'p' || i END)
	 FROM generate_series(1, 100) i))
GROUP BY status;
RESET client_min_messages;

-- In a target list, in a cursor that is closed early, and in a savepoint that is
-- rolled back
SELECT (hrflow_profile_embeddings('acme', '{a}')).status;
BEGIN;
DECLARE c CURSOR FOR SELECT status FROM hrflow_profile_embeddings('acme', '{a,b,c}');
FETCH 1 FROM c;
CLOSE c;
SAVEPOINT s;
SELECT * FROM hrflow_profile_embeddings('unknown', '{a}'); -- error
ROLLBACK TO s;
SELECT count(*) FROM hrflow_profile_embeddings('acme', '{a,b}');
COMMIT;

-- hrflow_profile_links() returns a row for each link that
-- hrflow_profile_embedding_links() returns for each profile
SELECT ordinality, profile_id, section, item, link IS NOT NULL AS has_link, status, http_status
FROM hrflow_profile_links('acme', '{nurse-2,missing-1,NULL,novector-1,nurse-2}', '{"profile": 1, "experiences": [0, 2]}')
ORDER BY ordinality, section, item;
SELECT count(*)
FROM hrflow_profile_links('acme', '{nurse-1,welder-2}', '{"profile": 1, "skills": 1}') many
JOIN LATERAL hrflow_profile_embedding_links('acme', many.profile_id, '{"profile": 1, "skills": 1}') one
USING (section, item) WHERE regexp_replace(one.link, '\?.*', '') = regexp_replace(many.link, '\?.*', '');

-- The planner knows the number of rows if it knows the number of elements
CREATE FUNCTION estimated_rows(query text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	plan jsonb;
BEGIN
	EXECUTE 'EXPLAIN (FORMAT json) SELECT FROM ' || query INTO plan;
	RETURN jsonb_path_query_first(plan, 'strict $.**?(@."Node Type" == "Function Scan" && @."Function Name" like_regex "^hrflow")."Plan Rows"');
END
$$;
CREATE TEMP TABLE known AS SELECT 'p' || i AS id FROM generate_series(1, 5000) i;
ANALYZE known;
SELECT query, estimated_rows('hrflow_' || query) FROM (VALUES
	($$profile_embeddings('acme', '{a,b,c}')$$),
	($$profile_embeddings('acme', NULL, NULL, ARRAY['a', current_user])$$),
	($$profile_vectors('acme', '{a,b,c}', '{"profile": 1, "experiences": [0, 2]}')$$),
	($$profile_links('acme', (SELECT array_agg(id) FROM known), '{"profile": 1, "skills": 1}')$$),
	($$text_embeddings(ARRAY(SELECT id FROM known LIMIT 100))$$),
	($$fetch_vectors(ARRAY(SELECT id FROM known))$$),
	($$document_embeddings('job', ARRAY(SELECT to_jsonb(known) FROM known LIMIT 20))$$),
	($$profile_embeddings('acme', ARRAY(SELECT id FROM known LIMIT 7), NULL,
		ARRAY(SELECT id FROM known LIMIT 9))$$),
	($$text_embeddings((SELECT ARRAY[id, id] FROM known LIMIT 1))$$),
	($$profile_embeddings('acme', string_to_array(current_user, 'x'))$$)) q(query);
SELECT estimated_rows($$(SELECT array_agg(id) AS ids FROM known) k
	WHERE (SELECT count(*) FROM hrflow_text_embeddings(k.ids)) > 0$$) AS of_another_query;

-- Since version 16, PostgreSQL may execute array_agg() in parallel workers
CREATE TABLE shared_known AS TABLE known;
ANALYZE shared_known;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SELECT estimated_rows('hrflow_text_embeddings((SELECT array_agg(id) FROM shared_known))') AS of_parallel_aggregate;
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
RESET min_parallel_table_scan_size;
DROP TABLE shared_known;
DROP FUNCTION estimated_rows;

-- EXPLAIN sends no request
SELECT hrflow_embed_stats_reset();
EXPLAIN (COSTS OFF) SELECT hrflow_profile_embedding('acme', 'a');
EXPLAIN (COSTS OFF) SELECT * FROM hrflow_profile_embeddings('acme', '{a}') WHERE status = 'ok' ORDER BY ordinality LIMIT 1;
EXPLAIN (COSTS OFF) SELECT c.name, l.link FROM candidate c, hrflow_profile_embedding_links('acme', c.hrflow_id) l;
SELECT requests FROM hrflow_embed_stats;

-- In a query that Citus runs on a shard, each shard would send all requests
SET application_name = 'citus_internal gpid=10000000042';
SELECT * FROM hrflow_profile_embeddings('acme', '{a,b}'); -- error
SELECT * FROM hrflow_profile_vectors('acme', '{a,b}'); -- error
SELECT * FROM hrflow_text_embeddings('{a,b}'); -- error
SELECT * FROM hrflow_fetch_vectors('{https://b.s3.amazonaws.com/x}'); -- error
SELECT requests FROM hrflow_embed_stats;
SELECT count(*) FROM hrflow_profile_embeddings('acme', '{}');
SELECT hrflow_profile_embedding('acme', 'a') IS NOT NULL AS single;
SET hrflow_embed.allow_in_shard_queries = on;
SELECT status FROM hrflow_profile_embeddings('acme', '{a,b}');
RESET hrflow_embed.allow_in_shard_queries;
SET application_name = 'citus_run_command gpid=10000000042';
SELECT status FROM hrflow_profile_embeddings('acme', '{a,b}');
RESET application_name;

DROP EXTENSION hrflow_embed;
