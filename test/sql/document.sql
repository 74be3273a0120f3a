--
-- Documents: hrflow_document_embedding() and hrflow_document_embeddings()
--
CREATE EXTENSION hrflow_embed;
SET hrflow_embed.max_attempts = 1;

CREATE FUNCTION base64url(value text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN translate(encode(convert_to(value, 'UTF8'), 'base64'), E'+/=\n', '-_');

-- A vector for the JSON of a profile or a job.  Vectors of the same occupation are
-- similar.
SELECT array_ndims(v), cardinality(v), round(hrflow_cosine_similarity(v, v)::numeric, 6) AS self
FROM hrflow_document_embedding('profile', '{"info": {"summary": "A nurse"}, "skills": [{"name": "triage"}]}') v;
SELECT hrflow_cosine_similarity(job, hrflow_document_embedding('profile', '{"key": "nurse"}')) > 0.5 AS nurse,
	hrflow_cosine_similarity(job, hrflow_document_embedding('profile', '{"key": "welder"}')) > 0.5 AS welder,
	hrflow_cosine_similarity(job, hrflow_text_embedding('a nurse')) > 0.5 AS text
FROM hrflow_document_embedding('job', '{"name": "Nurse wanted"}') job;

-- Several vectors are concatenated, so no request is sent unless their dimension is
-- known
SELECT hrflow_embed_stats_reset();
SELECT hrflow_document_embedding('profile', '{"name": "nurse"}', true); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT requests FROM hrflow_embed_stats;
SET hrflow_embed.vector_dimension = 1024;
SELECT name, array_dims(hrflow_document_embedding('profile', jsonb_build_object('name', name), true)) AS all,
	array_dims(hrflow_document_embedding('profile', jsonb_build_object('name', name))) AS one
FROM unnest('{nurse,welder,cook}'::text[]) name;
SET hrflow_embed.vector_dimension = 512;
SELECT array_dims(hrflow_document_embedding('profile', '{"name": "nurse"}'));
SET hrflow_embed.vector_dimension = 1000;
SELECT hrflow_document_embedding('profile', '{"name": "nurse"}'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT vector, status, http_status, error FROM hrflow_document_embeddings('profile', '{"{\"name\": \"nurse\"}"}');
SET hrflow_embed.vector_dimension = 16001; -- error
RESET hrflow_embed.vector_dimension;

-- NULL, an invalid type, an empty item and one that is too long send no request, so
-- a wrong URL does not matter
SET hrflow_embed.base_url = 'http://127.0.0.1:1';
SELECT hrflow_document_embedding(NULL, '{"a": 1}') IS NULL AS no_type, hrflow_document_embedding('job', NULL) IS NULL AS no_item,
	hrflow_document_embedding('job', '{"a": 1}', NULL) IS NULL AS no_choice;
SELECT hrflow_document_embedding('Profile', '{"a": 1}'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_document_embedding('job", "x": "', '{"a": 1}'); -- error
SELECT hrflow_document_embedding('job', '[{"a": 1}]'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_document_embedding('job', '"{}"'); -- error
SELECT hrflow_document_embedding('job', '{}'); -- error
SELECT hrflow_document_embedding('job', jsonb_build_object('a', repeat('x', 1048576))); -- error
\echo :LAST_ERROR_SQLSTATE
-- An item that is too large even as jsonb
SELECT hrflow_document_embedding('job', jsonb_build_object('a', repeat('x', 17000000))); -- error
-- An item that is small as jsonb, but too long as JSON
SELECT hrflow_document_embedding('job', jsonb_build_object('a', array_fill(1e100000, ARRAY[11]))); -- error
SELECT hrflow_document_embedding('job', jsonb_build_object('a', (SELECT jsonb_object_agg(i, 1e100000) FROM generate_series(1, 200) i))); -- error
SELECT hrflow_document_embedding('job', jsonb_build_object('a', repeat(E'\x01', 200000))); -- error
SELECT ordinality, vector, status, http_status, error
FROM hrflow_document_embeddings('job', ARRAY[NULL, '{}', '1', jsonb_build_object('a', array_fill(1e100000, ARRAY[11]))])
ORDER BY ordinality;
SELECT count(*) FROM hrflow_document_embeddings('job', '{}');
SELECT count(*) FROM hrflow_document_embeddings('job', NULL);
SELECT * FROM hrflow_document_embeddings(NULL, '{}'); -- error
SELECT * FROM hrflow_document_embeddings('cv', '{}'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM hrflow_document_embeddings('job', ARRAY[ARRAY['{"a": 1}'::jsonb], ARRAY['{"a": 1}'::jsonb]]); -- error
RESET hrflow_embed.base_url;
SELECT cardinality(hrflow_document_embedding('job', jsonb_build_object('a', repeat('x', 1048567)))) AS longest;

-- A row for every element
SELECT ordinality, cardinality(vector) AS dimension, status, http_status, error
FROM hrflow_document_embeddings('profile', ARRAY(SELECT jsonb_build_object('key', key)
	FROM unnest('{nurse,"",nurse,fault:status=500,fault:truncated,"fault:status=400,message=Invalid item",fault:html,fault:status=403}'::text[]) key)
	|| ARRAY[NULL, '{}']::jsonb[])
ORDER BY ordinality;

-- Elements are requested once if they are equal as jsonb and have the same text
SELECT hrflow_embed_stats_reset();
SELECT count(*), count(DISTINCT ordinality), count(DISTINCT vector)
FROM hrflow_document_embeddings('job', array_fill('{"a": 1, "b": 2}'::jsonb, ARRAY[1000]) || '{"b": 2, "a":1}'::jsonb || '{"a": 1.0, "b": 2}'::jsonb);
SELECT calls, requests, retries, rows_by_status FROM hrflow_embed_stats;

-- A POST is not sent again if it may have been processed
SELECT hrflow_embed_stats_reset();
SET hrflow_embed.max_attempts = 3;
SELECT status, http_status FROM hrflow_document_embeddings('job', '{"{\"key\": \"fault:first=1,status=500\"}"}');
SELECT requests, retries FROM hrflow_embed_stats;
SET hrflow_embed.max_attempts = 1;

-- Refusals that apply to all elements
SET hrflow_embed.max_concurrency = 1;
SELECT * FROM hrflow_document_embeddings('job', ARRAY(SELECT jsonb_build_object('key', key) FROM unnest('{fault:status=401,a,b}'::text[]) key)); -- error
\echo :SQLSTATE
SELECT ordinality, status, http_status
FROM hrflow_document_embeddings('job', ARRAY(SELECT jsonb_build_object('key', key) FROM unnest('{a,fault:status=402,b,a,c}'::text[]) key));
RESET hrflow_embed.max_concurrency;

-- Invalid and valid answers
CREATE FUNCTION outcome(text)
RETURNS text LANGUAGE plpgsql SET client_min_messages = error AS $$
DECLARE
	item jsonb := jsonb_build_object('key', $1);
	vector real[];
	message text;
	detail text;
	status text;
BEGIN
	SELECT e.status INTO STRICT status FROM hrflow_document_embeddings('job', ARRAY[item]) e;
	vector := hrflow_document_embedding('job', item);
	RETURN format('%s %s', status, vector);
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
	RETURN format('%s, raises %s %s: %s', status, SQLSTATE, message, detail);
END
$$;
SET hrflow_embed.vector_dimension = 2;
SELECT data, outcome('fault:data=' || base64url(data))
FROM (VALUES ('"P4AAAA=="'), ('"P4AAAEAAAAA="'), ('"P4AAAEAAAABAQAAAQIAAAA=="'), ('"P4AAAEAAAABAQAAA"'), ('"P4AAAEAAAABAQAAAQIAAAA"'),
	('"P4A AAEAAAAA="'), ('"P4AA\nAEAA\nAAA="'), ('"f4AAAEAAAAA="'), ('"f8AAAEAAAAA="'), ('"????"'), ('"é"'), ('"\u00e9"'), ('"A"'), ('"="'), ('"=="'),
	('""'), ('" "'), ('"[1, 2]"'), ('["P4AAAEAAAAA="]'), ('[1, 2]'), ('{"a": 1}'), ('1'), ('null'), ('[]')) v(data);
RESET hrflow_embed.vector_dimension;
SELECT fault, outcome('fault:' || fault)
FROM (VALUES ('status=400'), ('status=404'), ('status=404,html'), ('status=413'), ('status=422'), ('status=402'), ('status=429'),
	('status=500'), ('status=503'), ('code=400,message=Invalid Item type: profil'), ('redirect'), ('empty'), ('html'), ('type=text/plain'), ('badutf8'),
	('nul'), ('deep=100'), ('big=10000000')) v(fault)
UNION ALL
SELECT fault, left(outcome('fault:' || fault), 23)
FROM (VALUES ('reset'), ('charset'), ('gzip')) v(fault);

-- The complete messages
SELECT hrflow_document_embedding('job', '{"key": "fault:status=422", "name": "Jane Doe"}'); -- error
SELECT hrflow_document_embedding('job', '{"key": "fault:status=401,echo"}'); -- error

-- Calls for the rows of a table are read ahead, and EXPLAIN sends no request
SELECT hrflow_embed_stats_reset();
CREATE TEMP TABLE posting AS SELECT jsonb_build_object('name', i) AS item FROM generate_series(1, 7) i;
EXPLAIN (COSTS OFF) SELECT hrflow_document_embedding('job', item) FROM posting;
EXPLAIN (COSTS OFF) SELECT * FROM hrflow_document_embeddings('job', '{}') WHERE status = 'ok';
SELECT requests FROM hrflow_embed_stats;
SELECT count(DISTINCT v) FROM (SELECT hrflow_document_embedding('job', item) AS v FROM posting) s;

DROP FUNCTION outcome(text), base64url(text);
DROP EXTENSION hrflow_embed;
