--
-- Requests for one profile: hrflow_profile_embedding() and
-- hrflow_profile_embedding_links()
--
CREATE EXTENSION hrflow_embed;

-- Links are secret and differ between runs.  Show only the part that does not.
CREATE FUNCTION shorten(link text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN regexp_replace(link, '^https?://[^/]+(/[^?]*)\?X-Amz-.*$', '\1');
CREATE FUNCTION shorten(data jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE
RETURN regexp_replace(data::text, '"https?://[^/"]+(/[^?"]*)\?X-Amz-[^"]*"', '"\1"', 'g')::jsonb;
CREATE FUNCTION base64url(value text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN translate(encode(convert_to(value, 'UTF8'), 'base64'), E'+/=\n', '-_');

-- The data of an answer, and its links as rows
SELECT jsonb_pretty(shorten(hrflow_profile_embedding('acme', 'nurse-1', '{"profile": 1, "skills": 1, "experiences": [0]}')));
SELECT section, item, shorten(link)
FROM hrflow_profile_embedding_links('acme', 'nurse-1', '{"profile": 1, "skills": 1, "experiences": [0]}');

-- Requests by reference, by e-mail address, and by several identifiers
SELECT section, item, link LIKE 'http%/profile.hflw?%' AS is_link
FROM hrflow_profile_embedding_links('acme', fields => '{"profile": 1}', profile_reference => 'ATS 4711/b');
SELECT section, item, link LIKE 'http%/profile.hflw?%' AS is_link
FROM hrflow_profile_embedding_links('acme', fields => '{"profile": 1}', profile_email => 'ada+cv@example.com');
SELECT section, item
FROM hrflow_profile_embedding_links('acme', 'nurse-1', '{"profile": 1}', 'ATS 4711/b', 'ada+cv@example.com');

-- Without fields, or with {}, the API chooses the sections
SELECT count(*) > 2 AS several,
       count(*) = (SELECT count(*) FROM hrflow_profile_embedding_links('acme', 'nurse-1', '{}')) AS same
FROM hrflow_profile_embedding_links('acme', 'nurse-1');

-- A call in a join, and a LATERAL call, which sends a request for each row
SELECT c.name, l.section
FROM (VALUES (1, 'Ada', 'nurse-1'), (2, 'Bob', 'welder-2'), (3, 'Cleo', NULL)) AS c (n, name, hrflow_id)
LEFT JOIN LATERAL hrflow_profile_embedding_links('acme', c.hrflow_id, '{"profile": 1}') l ON true
ORDER BY c.n;

-- The key dialect of the API
SET hrflow_embed.api_dialect = 'key';
SET hrflow_embed.api_user = 'founder@example.com';
SELECT section, item FROM hrflow_profile_embedding_links('acme', 'nurse-1', '{"profile": 1}');
SELECT section, item FROM hrflow_profile_embedding_links('acme', NULL, '{"profile": 1}', 'ATS 4711/b');
SELECT section, item FROM hrflow_profile_embedding_links('acme', NULL, '{"profile": 1}', NULL, 'ada+cv@example.com');
RESET hrflow_embed.api_dialect;
RESET hrflow_embed.api_user;

-- A slash at the end of base_url is ignored
SELECT set_config('hrflow_embed.base_url', current_setting('hrflow_embed.base_url') || '//', false) LIKE '%//' AS set;
SELECT section, item FROM hrflow_profile_embedding_links('acme', 'nurse-1', '{"profile": 1}');

-- Without an identifier, no request is sent, so a wrong URL does not matter
SET hrflow_embed.base_url = 'http://127.0.0.1:1';
SELECT hrflow_profile_embedding(NULL, 'nurse-1') IS NULL AS is_null;
SELECT hrflow_profile_embedding('acme') IS NULL AS is_null;
SELECT hrflow_profile_embedding('acme', NULL, '{"profile": 1}', NULL, NULL) IS NULL AS is_null;
SELECT * FROM hrflow_profile_embedding_links(NULL, 'nurse-1');
SELECT * FROM hrflow_profile_embedding_links('acme');

-- Invalid arguments, for which no request is sent
SELECT hrflow_profile_embedding('acme', repeat('x', 100000), NULL, 'ref-1'); -- error
SELECT hrflow_profile_embedding('', 'nurse-1'); -- error
SELECT hrflow_profile_embedding('acme', ''); -- error
SELECT hrflow_profile_embedding('acme', NULL, NULL, ''); -- error
SELECT hrflow_profile_embedding('acme', 'nurse-1', NULL, NULL, ''); -- error
SELECT hrflow_profile_embedding('acme', 'nurse-1', '[]'); -- error
SELECT hrflow_profile_embedding('acme', 'nurse-1', '"profile"'); -- error
SELECT hrflow_profile_embedding('acme', 'nurse-1', 'null'); -- error
SELECT * FROM hrflow_profile_embedding_links('acme', 'nurse-1', '1'); -- error
SELECT hrflow_profile_embedding('acme', repeat('x', 100000)) \g (format=unaligned) /dev/null
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
SELECT hrflow_profile_embedding('acme', 'nurse-1', jsonb_build_object('profile', repeat('é', 1000000))) \g /dev/null
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
RESET hrflow_embed.base_url;

--
-- The item of each link
--

-- the requested items, in the order of the request
SELECT section, item, shorten(link)
FROM hrflow_profile_embedding_links('acme', 'fault:id=items', '{"experiences": [0]}');
SELECT section, item
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": ["https://h/a", "https://h/b"]}'), '{"experiences": [4, 2]}');
-- items in another order, which are determined by the paths
SELECT section, item, link
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": ["https://h/experiences/0.hflw", "https://h/experiences/2.hflw"]}'), '{"experiences": [2, 0]}');
SELECT section, item, link
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": [null, "https://h/experiences/2.hflw"]}'), '{"experiences": [2, 0]}');
SELECT section, item, link
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": "https://h/experiences/0.hflw"}'), '{"experiences": [2]}');
-- an item that is requested twice
SELECT section, item, link
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": ["https://h/experiences/2.hflw", "https://h/experiences/2.hflw"]}'), '{"experiences": [2, 2]}');
-- paths that contradict the order, but name the same item or only some items
SELECT section, item
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": ["https://h/experiences/0.hflw", "https://h/experiences/0.hflw"]}'), '{"experiences": [2, 0]}') \g /dev/null
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
SELECT section, item
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": ["https://h/experiences/0.hflw", "https://h/opaque"]}'), '{"experiences": [2, 0]}') \g /dev/null
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
-- fewer items than requested, which are determined by the paths
SELECT section, item
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": ["https://h/v/experiences/2.hflw?x=/experiences/9.hflw"]}'), '{"experiences": [4, 2]}');
-- fewer items than requested, and paths that do not name them: raise an error
-- rather than return a vector as that of a wrong item
SELECT section, item
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": ["https://h/opaque"]}'), '{"experiences": [4, 2]}') \g /dev/null
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
SELECT section, item
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": ["https://h/v/myexperiences/2.hflw"]}'), '{"experiences": [4, 2]}') \g /dev/null
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
-- a whole section, whose items are determined by position, or by the paths, which
-- reflect gaps
SELECT section, item
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": ["https://h/a", "https://h/b"], "profile": "https://h/c"}'));
SELECT section, item
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": ["https://h/experiences/0.hflw", "https://h/experiences/3.hflw"]}'), '{"experiences": 1}');
-- null elements, which have no link but count as positions
SELECT section, item
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"skills": null, "experiences": [null, "https://h/b"]}'), '{"experiences": [7, 8], "skills": 1}');
-- a profile without vectors
SELECT * FROM hrflow_profile_embedding_links('acme', 'fault:data=' || base64url('{}'));
SELECT hrflow_profile_embedding('acme', 'fault:data=' || base64url('{}'));
-- values that are neither a link nor a list of links
SELECT *
FROM hrflow_profile_embedding_links('acme', 'fault:data=' || base64url('{"profile": {"a": 1}}')) \g /dev/null
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
SELECT *
FROM hrflow_profile_embedding_links('acme', 'fault:data=' || base64url('{"experiences": [1]}')) \g /dev/null
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE

-- paths that name only some items, or one item twice; and too many links
SELECT *
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": ["https://h/v/experiences/1.hflw", "https://h/x"]}')) \g /dev/null
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
SELECT *
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"experiences": ["https://h/v/experiences/1.hflw", "https://h/w/experiences/1.hflw"]}')) \g /dev/null
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
SELECT count(*)
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"a": [' || repeat('"h",', 999) || '"h"]}'));
SELECT count(*)
FROM hrflow_profile_embedding_links('acme',
	'fault:data=' || base64url('{"a": [' || repeat('"h",', 999) || '"h"], "b": ["h"]}')) \g /dev/null
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE

-- parsing many strings with escapes is fast
SELECT jsonb_array_length(hrflow_profile_embedding('acme',
	'fault:data=' || base64url('{"e": [' || repeat('"\u0026\n",', 3000) || '""]}')) -> 'e');

DROP EXTENSION hrflow_embed;
DROP FUNCTION shorten(text), shorten(jsonb), base64url(text);
