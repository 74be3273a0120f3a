--
-- Errors of a single call: SQLSTATE, message and detail
--
CREATE EXTENSION hrflow_embed;
\getenv https HRFLOW_API_HTTPS

CREATE FUNCTION base64url(value text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN translate(encode(convert_to(value, 'UTF8'), 'base64'), E'+/=\n', '-_');
CREATE FUNCTION base64url(value bytea) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN translate(encode(value, 'base64'), E'+/=\n', '-_');

-- Return the outcome of a call
CREATE FUNCTION outcome(id text, OUT state text, OUT message text, OUT detail text)
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM hrflow_profile_embedding('acme', id);
	state := '00000';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE,
		message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
END
$$;

-- The complete messages
SELECT hrflow_profile_embedding('acme', 'missing-1'); -- error
SELECT hrflow_profile_embedding('unknown-source', 'nurse-1'); -- error
-- a reference or an e-mail address is only identified by a hash
SELECT hrflow_profile_embedding('acme', NULL, NULL, 'missing-reference'); -- error
SELECT hrflow_profile_embedding('acme', NULL, NULL, NULL, 'missing@example.com'); -- error
SELECT encode(substr(sha256(convert_to(identifier, 'UTF8')), 1, 4), 'hex') AS fingerprint
FROM unnest('{missing-reference,missing@example.com}'::text[]) identifier;
SELECT hrflow_profile_embedding('acme', 'novector-1', '{"skills": 1}'); -- error
SELECT hrflow_profile_embedding('acme', repeat('missing', 30)); -- error

-- Don't wait for retries
SET hrflow_embed.max_attempts = 1;

-- Statuses by HTTP status and by the code in the body
SELECT fault, o.*
FROM (VALUES
	(1, 'status=400'),
	(2, 'status=401'),
	(3, 'status=402'),
	(4, 'status=403'),
	(5, 'status=404'),
	(6, 'status=404,html'),
	(7, 'status=408'),
	(8, 'status=410'),
	(9, 'status=418'),
	(10, 'status=422'),
	(11, 'status=500'),
	(12, 'status=502,html'),
	(13, 'status=503'),
	(14, 'status=504,empty'),
	(15, 'status=200,code=400'),
	(16, 'status=200,code=401'),
	(17, 'status=200,code=500'),
	(18, 'status=200,code=404'),
	(19, 'status=404,code=400,message=Invalid profile array'),
	(20, 'status=404,code=400,message=Invalid source fields'),
	(21, 'status=200,code=400,message=Invalid key. File doesn''t exist'),
	(22, 'status=500,code=200'),
	(23, 'status=200,code=201'),
	(24, 'status=201'),
	(25, 'status=401,html'),
	(26, 'redirect')
) AS f (n, fault), outcome('fault:' || fault) AS o
ORDER BY n;

-- 429, in a separate statement because it causes a pause
SELECT * FROM outcome('fault:status=429');

-- Invalid replies
SELECT fault, o.*
FROM (VALUES
	(1, 'status=200,html'),
	(2, 'empty'),
	(3, 'notype'),
	(4, 'type=text/json'),
	(5, 'type=application/jsonp'),
	(6, 'charset'),
	(7, 'truncated'),
	(8, 'deep=60'),
	(9, 'deep=1000000'),
	(10, 'badutf8'),
	(11, 'nul'),
	(12, 'gzip')
) AS f (n, fault), outcome('fault:' || fault) AS o
ORDER BY n;

-- Bodies of various kinds
SELECT body, o.state, o.detail
FROM (VALUES
	(1, 'null'), (2, '[]'), (3, '"x"'), (4, '42'), (5, '{}'), (6, '{"code": 200}'),
	(7, '{"code": 200, "data": null}'), (8, '{"code": 200, "data": []}'), (9, '{"code": 200, "data": "link"}'),
	(10, '{"data": {}}'), (11, '{"code": "200", "data": {}}'), (12, '{"code": 200.5, "data": {}}'),
	(13, '{"code": 1e9, "data": {}}'), (14, '{"code": -200, "data": {}}'), (15, '{"code": 0, "data": {}}'),
	(16, '{"code": 302, "data": {}}'), (17, '{"code": 200, "data": {"n": 1e999999999}}'),
	(18, '{"code": 200, "data": {"s": "\u0000"}}'), (19, '{"code": 200, "data": {"s": "\ud800"}}'),
	(20, '{"code": 200, "data": {}} {}'), (21, '{"code": 200, "data": {},}'), (22, '{"code": 400, "message": 7}'),
	(23, '{"code": 400, "message": "line' || E'\\n' || 'LOG:  forged"}'), (24, '{"code": 400, "message": ""}')
) AS f (n, body), outcome('fault:body=' || base64url(body)) AS o
ORDER BY n;

-- The key is masked wherever the server repeats it or a part of it
SELECT detail FROM outcome('fault:echo,status=401');
SELECT detail FROM outcome('fault:status=400,message=key ASKR_0123456789ABCDEF is bad');
SELECT detail FROM outcome('fault:status=400,message=key 89abcdef0123 is bad');
SELECT detail FROM outcome('fault:status=400,message=another askw_deadbeefdeadbeef00000000 is bad');
SELECT length(detail) < 600 AS is_clipped FROM outcome('fault:status=400,message=' || repeat('long ', 400));

-- Replies that are too large as received or after decompression, or whose headers
-- are too large
SET hrflow_embed.max_response_size = '64kB';
SELECT fault, o.*
FROM (VALUES
	(1, 'big=65537'),
	(2, 'big=1000000000'),
	(3, 'bomb=10000000'),
	(4, 'header_size=70000'),
	(5, 'headers=20')
) AS f (n, fault), outcome('fault:' || fault) AS o
ORDER BY n;
RESET hrflow_embed.max_response_size;

-- Network errors.  The messages of libcurl are not tested.
SET hrflow_embed.request_timeout = '300ms';
SELECT fault, o.state, o.message
FROM (VALUES
	(1, 'silent'),
	(2, 'stall=20'),
	(3, 'slow=200')
) AS f (n, fault), outcome('fault:' || fault) AS o
ORDER BY n;
RESET hrflow_embed.request_timeout;
SELECT fault, o.state, o.message
FROM (VALUES
	(1, 'reset'),
	(2, 'break=0'),
	(3, 'break=20'),
	(4, 'latency=20')
) AS f (n, fault), outcome('fault:' || fault) AS o
ORDER BY n;
SET hrflow_embed.base_url = 'http://127.0.0.1:1/v1';
SELECT state, message FROM outcome('nurse-1');
SET hrflow_embed.base_url = 'https://host.invalid/v1';
SELECT state, message FROM outcome('nurse-1');

-- A proxy that does not exist.  The message does not contain its password.
SET hrflow_embed.proxy = 'http://user:s3cret@proxy.invalid:3128';
SELECT * FROM outcome('nurse-1');
RESET hrflow_embed.proxy;

-- A file of certificates that does not exist
SELECT 'https://localhost:' || :'https' || '/v1' AS url \gset
SET hrflow_embed.base_url = :'url';
SET hrflow_embed.ca_file = '/no/such/file.pem';
SELECT * FROM outcome('nurse-1');
RESET hrflow_embed.ca_file;
RESET hrflow_embed.base_url;

-- Retries: the first attempts fail, and the last one succeeds
SET hrflow_embed.max_attempts = 3;
SELECT fault, o.state, o.detail
FROM (VALUES
	(1, 'status=500,first=2,id='),
	(2, 'status=503,first=2,retry_after=0,id='),
	(3, 'status=408,first=1,id='),
	(4, 'status=429,first=2,retry_after=1,id='),
	(5, 'break=20,first=2,id='),
	(6, 'reset,first=2,id='),
	(7, 'status=500,first=3,id='),
	(8, 'status=400,first=1,id='),
	(9, 'truncated,first=1,id='),
	(10, 'status=503,retry_after=3600,id=')
) AS f (n, fault), outcome('fault:' || fault || gen_random_uuid()) AS o
ORDER BY n;

-- A profile that is not found can be returned as NULL
SET hrflow_embed.on_missing = 'null';
SELECT id, hrflow_profile_embedding('acme', id, '{"skills": 1}') IS NULL AS is_null
FROM unnest('{nurse-1,missing-1,novector-1,NULL,missing-2}'::text[]) WITH ORDINALITY AS u(id, n) ORDER BY n;
SELECT hrflow_job_vector('missing-job') IS NULL AS is_null, hrflow_job_embedding('missing-job') IS NULL AS is_null;
SELECT * FROM hrflow_profile_embedding_links('acme', 'missing-1');
-- nested statements do not warn, but calls outside of any statement do
CREATE FUNCTION has_embedding(id text) RETURNS boolean
LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT hrflow_profile_embedding('acme', id) FROM (VALUES (1)) v) IS NOT NULL; END $$;
SELECT has_embedding('missing-' || i) FROM generate_series(1, 3) i;
DO $$ BEGIN ASSERT hrflow_profile_embedding('acme', 'missing-1') IS NULL; END $$;
-- one WARNING counts the calls of all statements in DO, CALL and triggers, also in a transaction block
DO $$ BEGIN PERFORM has_embedding('missing-' || i) FROM generate_series(1, 2) i; PERFORM has_embedding('missing-3'); END $$;
CREATE PROCEDURE embed_two() LANGUAGE plpgsql AS $$ BEGIN PERFORM has_embedding('missing-1'); PERFORM has_embedding('missing-2'); END $$;
BEGIN;
CALL embed_two();
CREATE TEMP TABLE hired (id text);
CREATE FUNCTION embed_hired() RETURNS trigger
LANGUAGE plpgsql AS $$ BEGIN PERFORM has_embedding(NEW.id); PERFORM has_embedding(NEW.id); RETURN NULL; END $$;
CREATE TRIGGER embed AFTER INSERT ON hired FOR EACH ROW EXECUTE FUNCTION embed_hired();
INSERT INTO hired SELECT 'missing-' || i FROM generate_series(1, 3) i;
COMMIT;
-- other errors are still raised, and a statement that fails is not counted
SELECT hrflow_profile_embedding('unknown-source', 'nurse-1'); -- error
SELECT hrflow_profile_embedding('acme', id) FROM (VALUES ('missing-1'), ('fault:status=422')) v(id); -- error
SELECT 1 AS one;
RESET hrflow_embed.on_missing;
DROP TABLE hired;
DROP PROCEDURE embed_two;
DROP FUNCTION has_embedding, embed_hired;

DROP EXTENSION hrflow_embed;
DROP FUNCTION outcome(text), base64url(text), base64url(bytea);
