--
-- Jobs and the account: hrflow_job_embedding(), hrflow_job_vector() and
-- hrflow_auth()
--
CREATE EXTENSION hrflow_embed;
SET hrflow_embed.max_attempts = 1;

-- Owner and permissions of the API key
SELECT jsonb_pretty(hrflow_auth());

-- Links are secret and differ between runs.  Show only the part that does not.
CREATE FUNCTION shorten(link jsonb) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN jsonb_typeof(link) || ' ' || regexp_replace(link #>> '{}', '^https?://[^/]+(/[^?]*)\?X-Amz-.*$', '\1');
CREATE FUNCTION base64url(value text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN translate(encode(convert_to(value, 'UTF8'), 'base64'), E'+/=\n', '-_');

-- The data of an answer is a link
SELECT shorten(hrflow_job_embedding('nurse-job'));
SELECT shorten(hrflow_job_embedding(job_reference => 'REQ 4711/b', board_id => 'jobs'));
SELECT shorten(hrflow_job_embedding('nurse-job', 'REQ 4711/b', 'jobs'));
SET hrflow_embed.api_dialect = 'key';
SET hrflow_embed.api_user = 'founder@example.com';
SELECT shorten(hrflow_job_embedding('nurse-job', board_id => 'jobs'));
SELECT shorten(hrflow_job_embedding(job_reference => 'nurse-job'));
RESET hrflow_embed.api_dialect;
RESET hrflow_embed.api_user;

-- The host of the link must be allowed
\set VERBOSITY sqlstate
SELECT hrflow_job_vector('nurse-job'); -- error
\set VERBOSITY default
SET hrflow_embed.link_hosts = '127.0.0.1';
SELECT array_ndims(v), cardinality(v), round(hrflow_cosine_similarity(v, v)::numeric, 6) AS self
FROM hrflow_job_vector('nurse-job') v;
SELECT hrflow_job_vector('nurse-job') = hrflow_fetch_vector(hrflow_job_embedding('nurse-job') #>> '{}') AS same;

-- Each function counts as one call
SELECT hrflow_embed_stats_reset();
SELECT cardinality(hrflow_job_vector('nurse-job'));
SELECT calls, requests FROM hrflow_embed_stats;

-- Without an identifier, no request is sent, so a wrong URL does not matter
SET hrflow_embed.base_url = 'http://127.0.0.1:1';
SELECT hrflow_job_embedding() IS NULL AS embedding, hrflow_job_vector() IS NULL AS vector;
SELECT hrflow_job_embedding(NULL, NULL, 'jobs') IS NULL AS embedding, hrflow_job_vector(NULL, NULL, 'jobs') IS NULL AS vector;

-- Invalid arguments, for which no request is sent
SELECT hrflow_job_embedding(''); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_job_embedding('a', ''); -- error
SELECT hrflow_job_vector('a', NULL, ''); -- error
SELECT hrflow_job_vector(repeat('x', 100000)) \g (format=unaligned) /dev/null
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
RESET hrflow_embed.base_url;

-- Errors returned by the API
SELECT hrflow_job_embedding('missing-1'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_job_vector(job_reference => 'missing-1'); -- error
SELECT hrflow_job_embedding('nurse-job', board_id => 'unknown-board'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_job_embedding('fault:status=400,message=Invalid key. File doesn''t exist'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_job_embedding('fault:status=404'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_job_embedding('fault:status=422'); -- error
SELECT hrflow_job_embedding('fault:status=403'); -- error
SELECT hrflow_job_embedding('fault:status=401,echo'); -- error

-- Invalid answers
CREATE FUNCTION outcome(call text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	message text;
	detail text;
BEGIN
	EXECUTE 'SELECT ' || call;
	RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
	RETURN format('%s %s: %s', SQLSTATE, message, detail);
END
$$;
SELECT data, outcome(format('hrflow_job_embedding(%L)', 'fault:data=' || base64url(data)))
FROM (VALUES ('{}'), ('["https://h/x"]'), ('null'), ('1'), ('"https://h/x"')) v(data);
SELECT fault, outcome(format('hrflow_job_vector(%L)', 'fault:' || fault))
FROM (VALUES ('data=' || base64url('"https://example.com/x"')), ('data=' || base64url('"file:///etc/passwd"')), ('data=' || base64url('""')),
	('v.status=403'), ('v.nan'), ('v.dtype=|O'), ('empty'), ('html')) v(fault);
SET hrflow_embed.api_key = 'askr_ffffffffffffffffffffffffffffffff';
SELECT hrflow_auth(); -- error
\echo :LAST_ERROR_SQLSTATE
RESET hrflow_embed.api_key;

-- EXPLAIN sends no request
SELECT hrflow_embed_stats_reset();
EXPLAIN (COSTS OFF) SELECT hrflow_job_embedding('a'), hrflow_job_vector('a'), hrflow_auth();
EXPLAIN (COSTS OFF) SELECT * FROM hrflow_job_vector('a') v ORDER BY hrflow_cosine_similarity(v, (SELECT hrflow_job_vector('b'))) \g /dev/null
SELECT requests FROM hrflow_embed_stats;

DROP FUNCTION outcome(text), shorten(jsonb), base64url(text);
DROP EXTENSION hrflow_embed;
