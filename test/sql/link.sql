--
-- Fetching links: hrflow_profile_vectors(), hrflow_fetch_vector() and
-- hrflow_fetch_vectors()
--
CREATE EXTENSION hrflow_embed;
SET hrflow_embed.max_attempts = 1;

-- A loopback address, as used by tests, must be listed like any other host
\set VERBOSITY terse
SELECT status, count(*) FROM hrflow_profile_vectors('acme', '{nurse-1}', '{"profile": 1, "skills": 1}') GROUP BY 1;
\set VERBOSITY default
SET hrflow_embed.link_hosts = '127.0.0.1';

-- A row for every vector.  The vectors have length 1.
SELECT ordinality, profile_id, section, item, array_length(vector, 1) AS dimension,
	round(hrflow_cosine_similarity(vector, vector)::numeric, 6) AS self, status, http_status, error
FROM hrflow_profile_vectors('acme', '{nurse-2,missing-1,NULL,welder-2,nurse-2}',
	'{"profile": 1, "experiences": [0, 2]}')
ORDER BY ordinality, section, item;

-- Vectors of the same occupation are similar
WITH v AS (
	SELECT profile_id, vector
	FROM hrflow_profile_vectors('acme', '{nurse-1,nurse-2,welder-1}', '{"profile": 1}'))
SELECT a.profile_id, b.profile_id, hrflow_cosine_similarity(a.vector, b.vector) > 0.5 AS similar
FROM v a JOIN v b ON a.profile_id < b.profile_id
ORDER BY 1, 2;

-- NULL identifiers return no vectors
SELECT count(*) FROM hrflow_profile_vectors('acme', '{}');
SELECT section, item, vector, status FROM hrflow_profile_vectors('acme', '{"fault:data=e30"}');

-- All encodings of a vector give the same result
SELECT fault, bool_and(v.vector = plain.vector) AS same, min(v.status) AS status
FROM (VALUES ('<f4'), ('>f4'), ('<f8'), ('>f8')) f(fault),
	LATERAL hrflow_profile_vectors('acme', ARRAY['fault:v.dtype=' || fault || ',id=1'], '{"profile": 1}') v,
	LATERAL hrflow_profile_vectors('acme', ARRAY['fault:v.dtype=' || fault || ',id=1'], '{"profile": 1}') plain
GROUP BY 1 ORDER BY 1;

-- Statuses of links
CREATE FUNCTION outcome(fault text)
RETURNS text LANGUAGE plpgsql SET client_min_messages = error AS $$
DECLARE
	link text;
	raised text := 'nothing';
	message text;
	detail text;
	status text;
BEGIN
	SELECT l.link INTO STRICT link
	FROM hrflow_profile_embedding_links('acme', 'fault:v.' || fault, '{"profile": 1}') l;
	BEGIN
		PERFORM hrflow_fetch_vector(link);
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS raised = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
	END;
	SELECT v.status INTO STRICT status FROM hrflow_fetch_vectors(ARRAY[link]) v;
	IF raised = '08006' THEN
		detail := NULL;	-- the text of libcurl's messages varies
	END IF;
	RETURN format('%s, raises %s: %s%s', status, raised, message, ' | ' || nullif(detail, ''));
END
$$;
SET hrflow_embed.max_response_size = '100kB';
SELECT fault, outcome(fault)
FROM (VALUES ('status=403'), ('status=404'), ('status=500'), ('status=429'), ('status=408'), ('redirect'),
	('empty'), ('dtype=|O'), ('nan'), ('short'), ('trailing'), ('shape=2xd'), ('dtype=<f2'), ('dtype=<i4'),
	('version=3'), ('encoding=base64'), ('big=1000000'), ('bomb=1000000'), ('reset'), ('break=100')) f(fault);
RESET hrflow_embed.max_response_size;

-- The error code of an object store, rather than its HTTP status, determines the
-- status, and is the only part of its answer that is shown
SELECT fault, outcome(fault)
FROM (VALUES ('error=AccessDenied'), ('error=SignatureDoesNotMatch'), ('error=RequestTimeTooSkewed'),
	('status=400,v.error=ExpiredToken'), ('status=404,v.error=NoSuchKey'), ('status=404,v.error=NoSuchBucket'),
	('status=400,v.error=RequestTimeout'), ('status=503,v.error=SlowDown'), ('status=500,v.error=InternalError'),
	('status=301,v.error=PermanentRedirect'), ('status=403,v.html'),
	('status=503,v.error=SlowDownRead'), ('status=409,v.error=OperationAborted')) f(fault);
-- Some error codes are retried, whatever the HTTP status
SET hrflow_embed.max_attempts = 2;
SELECT fault, outcome('first=1,v.' || fault)
FROM (VALUES ('status=503,v.error=SlowDown'), ('status=503,v.error=SlowDownRead'),
	('status=400,v.error=RequestTimeout'), ('status=409,v.error=OperationAborted')) f(fault);
SET hrflow_embed.max_attempts = 1;
SELECT replace(body, U&'\FEFF', '(BOM)') AS body, outcome('status=403,v.body=' || translate(encode(convert_to(body, 'UTF8'), 'base64'), E'+/=\n', '-_'))
FROM (VALUES (''), ('<Error><Code>InvalidAccessKeyId</Code></Error>'), (U&'\FEFF \000a<?xml version="1.0"?><?a?><Error xmlns="urn:x"> <Code>Odd1</Code>'),
	('<Error><Message>Request has expired</Message><Code>AccessDenied</Code></Error>'), ('<Errors><Code>A</Code></Errors>'),
	('<html><Code>A</Code></html>'), ('<Error></Error>'), ('<Error><Code></Code></Error>'), ('<Error><Code>a b</Code></Error>'), ('<Error><Code>A'), ('<Error'), ('<?xml'),
	('<Error><Code>' || repeat('a', 48) || '</Code>'), ('<Error><Code>' || repeat('a', 49) || '</Code>')) f(body);
SELECT status, error
FROM hrflow_fetch_vectors(ARRAY(
	SELECT regexp_replace(link, 'X-Amz-Signature=.', 'X-Amz-Signature=x')
	FROM hrflow_profile_embedding_links('acme', 'nurse-1', '{"profile": 1}')));

-- Links that the caller may pass
\set VERBOSITY terse
SELECT link, status, error
FROM hrflow_fetch_vectors(ARRAY[NULL, '', 'x', 'file:///etc/passwd', 'ftp://127.0.0.1/x', 'http://example.com/x',
	'https://example.com/secret?X-Amz-Signature=abc', 'https://s3.amazonaws.com.example.com/x',
	'https://user:secret@127.0.0.1/x', 'https://127.0.0.1.example.com/', 'http://localhost/x', 'https://169.254.169.254/latest',
	E'https://127.0.0.1/a b', E'https://127.0.0.1/\x01', 'https://[::1]/x', 'https://2130706433/', 'https://0x7f.1/'])
ORDER BY ordinality;
SELECT error FROM hrflow_fetch_vectors(ARRAY['https://user:secret?x@127.0.0.1/x', 'https://user:secret#x@127.0.0.1/x',
	'https://user:secret/x?x@127.0.0.1/x', 'https://user:' || repeat('secret', 99) || '@127.0.0.1/x', 'user:secret?@127.0.0.1/x',
	'https://example.com/x?a@b', 'https://example.com/x@y?a@b'])
ORDER BY ordinality;
SELECT hrflow_fetch_vector(NULL) IS NULL AS null_for_null;
SELECT count(*) FROM hrflow_fetch_vectors('{}');
SELECT count(*) FROM hrflow_fetch_vectors(NULL);
SELECT hrflow_fetch_vectors('{{a,b},{c,d}}'); -- error
SELECT hrflow_fetch_vector('https://example.com/x?X-Amz-Signature=abc'); -- error
\echo :LAST_ERROR_SQLSTATE

-- Only https links to the default port of a listed host are fetched
SET hrflow_embed.link_hosts = 'example.com';
SELECT status, error FROM hrflow_fetch_vectors('{http://example.com/x,https://example.com:8443/x}') ORDER BY ordinality;

-- A host that matches only a pattern must not have a private address
SET hrflow_embed.link_hosts = 'local*, 127.0.0.*, *.1';
SELECT status, error FROM hrflow_fetch_vectors('{https://127.0.0.1/x}');
SELECT status FROM hrflow_fetch_vectors('{https://localhost:1/x}');

-- Links without a path and with a fragment are requested as libcurl normalizes them
SET hrflow_embed.link_hosts = '127.0.0.1';
SELECT rest, status, http_status
FROM unnest(ARRAY['?a', '/x?a#b']) rest,
	hrflow_fetch_vectors(ARRAY[regexp_replace(current_setting('hrflow_embed.base_url'), '(//[^/]*).*', '\1') || rest])
ORDER BY rest;

DROP FUNCTION outcome;
DROP EXTENSION hrflow_embed;
