--
-- How answers are interpreted: JSON, the content type, and the items of the links
-- of a section
--
CREATE EXTENSION hrflow_embed;
SET hrflow_embed.max_attempts = 1;

CREATE FUNCTION base64url(value text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN translate(encode(convert_to(value, 'UTF8'), 'base64'), E'+/=\n', '-_');

-- Return the data of an answer, or the error
CREATE FUNCTION answer(data text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	detail text;
BEGIN
	RETURN hrflow_profile_embedding('acme', 'fault:data=' || base64url(data));
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RETURN SQLSTATE || ': ' || detail;
END
$$;

-- JSON that is parsed as PostgreSQL does
SELECT data, answer(data) = data::jsonb::text AS same
FROM (VALUES (1, '{"a": true, "b": false, "c": null}'),
	(2, '{"\"\\\/\b\f\n\r\t": "\u00e9\u00E9\u20ac\uD83D\uDE00\ud83d\ude00 ok"}'),
	(3, '{"a": [], "b": {}, "c": [[], [{}]], "d": "", "": 1}'),
	(4, '{"a": -0, "b": 0.5, "c": -1.25e+2, "d": 1E-2, "e": 10}'),
	(5, ' { "a"	: [ 1 , 2 ]
 } '),
	(6, '{"a": 1, "a": 2}'),
	(7, '{"a": "é€😀"}'),
	(8, '{"a": ' || repeat('9', 100) || '}')) v(n, data)
ORDER BY n;

-- Invalid JSON, and values that jsonb cannot store
SELECT data, answer(data)
FROM (VALUES (1, '{"a": "\u00g0"}'), (2, '{"a": "\ud83d"}'), (3, '{"a": "\ud83dx"}'), (4, '{"a": "\ud83d\u0041"}'),
	(5, '{"a": "\ud83d\uxxxx"}'), (6, '{"a": "\ude00"}'), (7, '{"a": "\x"}'), (8, '{"a": "\'), (9, '{"a": "x'),
	(10, E'{"a": "x\ty"}'), (11, E'{"a": "\\n\ty"}'), (12, '{"a": -}'), (13, '{"a": 01}'), (14, '{"a": 1.}'),
	(15, '{"a": 1e}'), (16, '{"a": 1e1000}'), (17, '{"a": .5}'), (18, '{"a": +1}'), (19, '{"a": nul}'),
	(20, '{"a": truely}'), (21, '{"a" 1}'), (22, '{a: 1}'), (23, '{"a": 1 "b": 2}'), (24, '{"a": [1, 2}'),
	(25, '{"a": [1,]}'), (26, '{"a": }'), (27, '{"\x": 1}')) v(n, data)
ORDER BY n;
SELECT answer('{"a": ' || repeat('9', 101) || '}');

-- The content type.  Suppress the warnings of batches whose only element fails.
SET client_min_messages = error;
SELECT type, (SELECT status FROM hrflow_profile_embeddings('acme', ARRAY['fault:type=' || type]))
FROM (VALUES (1, 'application/json'), (2, 'Application/JSON;charset=utf-8'), (3, E'application/json \t; charset=utf-8'),
	(4, 'application/json2'), (5, 'application/json x'), (6, 'application')) v(n, type)
ORDER BY n;

-- Only text that looks like a key is masked in a message
SELECT error FROM hrflow_profile_embeddings('acme', '{"fault:status=400,message=ask askr asking ask_me askr_ ask_0123456789abcdef0123456789abcdef"}');
RESET client_min_messages;

-- Items.  The path of a link ends with /SECTION/INDEX.hflw if it names its item.
CREATE FUNCTION items(fields jsonb, data text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	detail text;
BEGIN
	RETURN (SELECT string_agg(section || ' ' || item || ' ' || link, ', ' ORDER BY section, item)
		FROM hrflow_profile_embedding_links('acme', 'fault:data=' || base64url(data), fields));
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RETURN SQLSTATE || ': ' || detail;
END
$$;
SELECT fields, data, items(fields, data)
FROM (VALUES (1, '{"a": [5, 3]}'::jsonb, '{"a": ["x", "y"]}'),
	(2, '{"a": [5, 3]}', '{"a": ["x"]}'),
	(3, '{"a": [5, 3]}', '{"a": ["/a/3.hflw"]}'),
	(4, '{"a": [5, 3, 1]}', '{"a": ["/a/3.hflw", "/a/3.hflw"]}'),
	(5, '{"a": [5, 3]}', '{"a": [null, "y"]}'),
	(6, '{"a": ["x", 3]}', '{"a": ["/a/3.hflw", "/a/7.hflw"]}'),
	(7, '{"a": [1.5]}', '{"a": ["x"]}'),
	(8, '{"a": [-1]}', '{"a": ["/a/0.hflw"]}'),
	(9, '{"a": [5]}', '{"a": "x"}'),
	(10, '{"a": [5, 3]}', '{"a": "/a/3.hflw"}'),
	(11, '{"a": [5, 3]}', '{"a": "x"}'),
	(12, '{"a": 1}', '{"a": ["x", null, "y"]}'),
	(13, '{"a": 1}', '{"a": ["/a/0.hflw?q", "/a/2.hflw#f"]}'),
	(14, '{"a": 1}', '{"a": ["/a/0.hflw", "x"]}'),
	(15, '{"a": 1}', '{"a": ["/a/1234567890.hflw", "x"]}'),
	(16, '{"a": 1}', '{"a": "/b/3.hflw", "b": "3.hflw", "c": "/c/.hflw", "d": null}'),
	(17, NULL, '{"a": {"b": 1}}'),
	(18, NULL, '{"a": ["x", 1]}'),
	(19, NULL, '{"a": 1}')) v(n, fields, data)
ORDER BY n;

-- An answer may have at most 1,000 links
SELECT items(NULL, '{"a": [' || repeat('"", ', 999) || '""]}') LIKE '%a 999%' AS as_many;
SELECT items(NULL, '{"a": [' || repeat('"", ', 1000) || '""]}');
SELECT items(NULL, '{"a": [' || repeat('"", ', 999) || '""], "b": "x"}');

DROP FUNCTION items(jsonb, text), answer(text), base64url(text);
DROP EXTENSION hrflow_embed;
