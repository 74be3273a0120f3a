--
-- Texts: hrflow_text_embedding() and hrflow_text_embeddings()
--
CREATE EXTENSION hrflow_embed;
SET hrflow_embed.max_attempts = 1;

CREATE FUNCTION base64url(value text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN translate(encode(convert_to(value, 'UTF8'), 'base64'), E'+/=\n', '-_');

-- A vector for a text.  Vectors of the same occupation are similar.
SELECT array_ndims(v), cardinality(v), round(hrflow_cosine_similarity(v, v)::numeric, 6) AS self
FROM hrflow_text_embedding('A nurse, with 12 years in intensive care') v;
SELECT hrflow_cosine_similarity(nurse, hrflow_text_embedding('Nurse wanted')) > 0.5 AS nurse,
	hrflow_cosine_similarity(nurse, hrflow_text_embedding('Welder wanted')) > 0.5 AS welder
FROM hrflow_text_embedding('I am a nurse') nurse;

-- Characters that JSON must escape arrive unchanged
SELECT vector = (SELECT hrflow_text_embedding(E'tab\tquote"backslash\\ slash/ \x01\x1f\x7f\b\f\r\nZoë 张伟 😀 \\u0041 \u2028')) AS same, status
FROM hrflow_text_embeddings(ARRAY[E'tab\tquote"backslash\\ slash/ \x01\x1f\x7f\b\f\r\nZoë 张伟 😀 \\u0041 \u2028']);

-- NULL, an empty text and one that is too long send no request, so a wrong URL does
-- not matter
SET hrflow_embed.base_url = 'http://127.0.0.1:1';
SELECT hrflow_text_embedding(NULL) IS NULL AS is_null;
SELECT hrflow_text_embedding(''); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_text_embedding(repeat('x', 1048577)); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT hrflow_text_embedding(repeat('é', 524289)); -- error
SELECT ordinality, vector, status, http_status, error
FROM hrflow_text_embeddings(ARRAY[NULL, '', repeat('x', 1048577), ''])
ORDER BY ordinality;
SELECT count(*) FROM hrflow_text_embeddings('{}');
SELECT count(*) FROM hrflow_text_embeddings(NULL);
SELECT * FROM hrflow_text_embeddings('{{a,b},{c,d}}'); -- error
\echo :LAST_ERROR_SQLSTATE
RESET hrflow_embed.base_url;
SELECT cardinality(hrflow_text_embedding(repeat(E'\x01', 1048576))) AS longest;

-- A row for every element
SELECT ordinality, cardinality(vector) AS dimension, status, http_status, error
FROM hrflow_text_embeddings('{nurse,"",nurse,NULL,fault:status=500,fault:truncated,"fault:status=400,message=Invalid text",fault:html,fault:status=403}')
ORDER BY ordinality;

-- Equal elements are requested once
SELECT hrflow_embed_stats_reset();
SELECT count(*), count(DISTINCT ordinality), count(DISTINCT vector)
FROM hrflow_text_embeddings(array_fill('nurse'::text, ARRAY[1000]) || '{welder}');
SELECT calls, requests, retries, rows_by_status FROM hrflow_embed_stats;

-- A join with the table that the texts came from
SELECT t.input, e.status, cardinality(e.vector) AS dimension
FROM unnest('{a nurse,a welder,NULL}'::text[]) WITH ORDINALITY t(input, n)
JOIN hrflow_text_embeddings('{a nurse,a welder,NULL}') e ON e.ordinality = t.n
ORDER BY t.n;

-- Refusals that apply to all elements
SET hrflow_embed.max_concurrency = 1;
SELECT * FROM hrflow_text_embeddings('{fault:status=401,a,b,c}'); -- error
\echo :SQLSTATE
SELECT * FROM hrflow_text_embeddings('{fault:status=402,a,b,c}'); -- error
\echo :SQLSTATE
SELECT ordinality, status, http_status FROM hrflow_text_embeddings('{a,fault:status=402,b,a,c}');
SELECT * FROM hrflow_text_embeddings('{fault:status=403,"fault:status=403,id=2",c}'); -- error
\echo :SQLSTATE
SET hrflow_embed.batch_timeout = '2s';
SELECT ordinality, status, http_status, error FROM hrflow_text_embeddings('{a,fault:silent,b}') ORDER BY ordinality;
RESET hrflow_embed.batch_timeout;
RESET hrflow_embed.max_concurrency;

-- Invalid and valid answers
CREATE FUNCTION outcome(text)
RETURNS text LANGUAGE plpgsql SET client_min_messages = error AS $$
DECLARE
	vector real[];
	message text;
	detail text;
	status text;
BEGIN
	SELECT e.status INTO STRICT status FROM hrflow_text_embeddings(ARRAY[$1]) e;
	vector := hrflow_text_embedding($1);
	RETURN format('%s %s', status, vector);
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
	RETURN format('%s, raises %s %s: %s', status, SQLSTATE, message, detail);
END
$$;
SELECT data, outcome('fault:data=' || base64url(data))
FROM (VALUES ('[{"embedding": [1, -2.5e0,0.1]}]'), ('[ {"text": "x", "embedding":[ 1 ] , "n": [2]}]'),
	('[{"embedding": [3.4028235e38, 1e-50, -0]}]'), ('[{"embedding": []}]'), ('[{"embedding": [1e39]}]'), ('[{"embedding": [1,]}]'),
	('[{"embedding": [01]}]'), ('[{"embedding": [1 2]}]'), ('[{"embedding": [1, "2"]}]'), ('[{"embedding": [1, null]}]'),
	('[{"embedding": [null]}]'), ('[{"embedding": [[1],[2]]}]'), ('[{"embedding": [1, [2]]}]'), ('[{"embedding": [NaN]}]'),
	('[{"embedding": null}]'), ('[{"embedding": "AAAA"}]'), ('[{"embedding": {"a": [1]}}]'), ('[{"embedding": [1]}, {"embedding": [2]}]'),
	('[{"embedding": [1], "embedding": [2]}]'), ('[{"a": {"embedding": [1]}}]'), ('[[1]]'), ('[]'), ('{"embedding": [1]}'), ('null'), ('1')) v(data);
SELECT fault, outcome('fault:' || fault)
FROM (VALUES ('status=400'), ('status=404'), ('status=404,html'), ('status=413'), ('status=422'), ('status=402'), ('status=429'),
	('status=500'), ('status=503'), ('code=400,message=Invalid profile array'), ('redirect'), ('empty'), ('html'), ('type=text/plain'), ('badutf8'),
	('nul'), ('deep=100'), ('big=10000000'), ('reset'), ('charset'), ('gzip')) v(fault)
WHERE fault NOT IN ('reset', 'charset', 'gzip')
UNION ALL
SELECT fault, left(outcome('fault:' || fault), 23)
FROM (VALUES ('reset'), ('charset'), ('gzip')) v(fault);

-- The complete messages
SELECT hrflow_text_embedding('fault:status=422'); -- error
SELECT hrflow_text_embedding('fault:status=401,echo'); -- error

-- EXPLAIN sends no request
SELECT hrflow_embed_stats_reset();
CREATE TEMP TABLE candidate (name text, embedding real[]);
EXPLAIN (COSTS OFF) SELECT hrflow_text_embedding('a');
EXPLAIN (COSTS OFF) SELECT * FROM hrflow_text_embeddings('{a}') WHERE status = 'ok';
EXPLAIN (COSTS OFF) SELECT name FROM candidate ORDER BY hrflow_cosine_similarity(embedding, (SELECT hrflow_text_embedding('a'))) \g /dev/null
SELECT requests FROM hrflow_embed_stats;

DROP FUNCTION outcome(text), base64url(text);
DROP EXTENSION hrflow_embed;
