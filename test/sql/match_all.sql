--
-- hrflow_match_all() returns what hrflow_match() returns for each vector, all at once
--
CREATE EXTENSION hrflow_embed;
SELECT hrflow_create_store('opening', 'real[]', content => 'job'), hrflow_create_store('candidate', 'real[]');

-- Vectors of different dimensions, very long and very short ones, some of length zero, and equal ones; profiles with several items
CREATE FUNCTION random_vector(dimension int, factor float8) RETURNS real[] LANGUAGE sql VOLATILE
RETURN ARRAY(SELECT ((random() - 0.5) * factor)::real FROM generate_series(1, dimension));
SELECT setseed(0.25);
INSERT INTO opening
SELECT CASE WHEN i % 3 = 0 THEN '' ELSE 'board ' || i % 3 END, 'job ' || i, 'job', 0,
	random_vector(CASE WHEN i % 50 = 0 THEN 3 ELSE 70 END, CASE i % 7 WHEN 1 THEN 1e30 WHEN 2 THEN 1e-30 WHEN 3 THEN 0 ELSE 1 END)
FROM generate_series(1, 400) i;
INSERT INTO candidate
SELECT 'acme', 'candidate ' || i / 2, section, i % 2,
	random_vector(CASE WHEN i % 40 = 0 THEN 3 WHEN i % 41 = 0 THEN 4 ELSE 70 END,
		CASE i % 11 WHEN 1 THEN 1e30 WHEN 2 THEN 1e-30 WHEN 3 THEN 0 ELSE 1 END)
FROM unnest('{profile,skills}'::text[]) section, generate_series(1, 500) i;
INSERT INTO candidate SELECT source_id, 'twin of ' || profile_id, section, item, vector
FROM candidate WHERE profile_id LIKE '%7' AND section = 'profile';

-- The owner of a table may permit nulls
ALTER TABLE opening ALTER vector DROP NOT NULL;
ALTER TABLE candidate ALTER vector DROP NOT NULL;
INSERT INTO opening VALUES ('', 'job without a vector', 'job', 0, NULL);
INSERT INTO candidate VALUES ('acme', 'candidate without a vector', 'profile', 0, NULL);

-- Count the rows, and those that differ from hrflow_match() for each vector
CREATE FUNCTION differs(k int, other_section text DEFAULT 'profile')
RETURNS TABLE (matches bigint, wrong bigint) LANGUAGE sql AS $$
	WITH every AS (
		SELECT *, row_number() OVER (PARTITION BY source_id, profile_id ORDER BY similarity DESC) AS rank
		FROM hrflow_match_all('opening', 'candidate', k, other_section => other_section)),
	single AS (
		SELECT o.source_id, o.job_id, m.profile_id, m.item, m.similarity,
			row_number() OVER (PARTITION BY o.source_id, o.job_id ORDER BY m.similarity DESC) AS rank
		FROM opening o CROSS JOIN LATERAL hrflow_match('candidate', o.vector, k, other_section) m
		WHERE (SELECT bool_or(x <> 0) FROM unnest(o.vector) x))
	SELECT count(*), count(*) FILTER (WHERE abs(e.similarity - s.similarity) < 1e-9) - count(*)
	FROM every e FULL JOIN single s ON s.source_id = e.source_id AND s.job_id = e.profile_id AND s.rank = e.rank $$;
SET client_min_messages = error;
SELECT k, d.* FROM unnest('{1,3,10,1000}'::int[]) k, differs(k) d;
SELECT d.* FROM differs(3, 'skills') d;
RESET client_min_messages;

-- Each profile is returned once, with its best item and their similarity
SELECT count(*) AS repeated
FROM (SELECT source_id, profile_id, other_profile_id FROM hrflow_match_all('opening', 'candidate', 20) GROUP BY 1, 2, 3 HAVING count(*) > 1) r;
SELECT count(*), count(*) FILTER (WHERE abs(m.similarity - hrflow_vector_similarity(o.vector, c.vector)) < 1e-9) AS right
FROM hrflow_match_all('opening', 'candidate', 5) m
JOIN opening o ON (o.source_id, o.job_id) = (m.source_id, m.profile_id)
JOIN candidate c ON (c.source_id, c.profile_id, c.section, c.item) = (m.other_source_id, m.other_profile_id, 'profile', m.other_item);

-- The best profiles come first
SELECT bool_and(similarity <= previous) AS sorted
FROM (SELECT similarity, lag(similarity) OVER (PARTITION BY source_id, profile_id ORDER BY n) AS previous
	FROM hrflow_match_all('opening', 'candidate', 5) WITH ORDINALITY AS m(source_id, profile_id, item, s, p, i, similarity, n)) m;

-- Duplicates are found within a store, in which no profile is compared with itself
SELECT profile_id, item, other_profile_id, other_item, round(similarity::numeric, 9) AS similarity
FROM hrflow_match_all('candidate', 'candidate', 1)
WHERE similarity > 0.999999 AND profile_id LIKE 'candidate 1_7' ORDER BY 1, 2, 3;

-- Calls that have nothing to compare, and invalid ones
SELECT count(*) FROM hrflow_match_all('candidate', 'opening', 3, 'no such section');
SELECT count(*) FROM hrflow_match_all('opening', 'candidate', 3, other_section => 'no such section');
SELECT count(*) FROM hrflow_match_all('candidate', 'candidate', 3, 'no such section', 'another');
SELECT count(*) FROM hrflow_match_all('candidate', 'candidate', 3, 'no such section', 'no such section');
SELECT hrflow_create_store('nothing', 'real[]'), hrflow_create_store('five', 'real[]'), hrflow_create_store('six', 'real[]'), hrflow_create_store('zero', 'real[]');
INSERT INTO five SELECT 'acme', 'p' || i, 'profile', 0, array_fill(1::real, ARRAY[5]) FROM generate_series(1, 3) i;
INSERT INTO six SELECT 'acme', 'p' || i, 'profile', 0, array_fill(1::real, ARRAY[6]) FROM generate_series(1, 3) i;
INSERT INTO zero SELECT 'acme', 'p' || i, 'profile', 0, array_fill(0::real, ARRAY[5]) FROM generate_series(1, 3) i;
SELECT count(*) FROM hrflow_match_all('nothing', 'nothing');
SELECT count(*) FROM hrflow_match_all('nothing', 'candidate', other_section => 'profil');
SELECT count(*) FROM hrflow_match_all('candidate', 'nothing', other_section => 'profil');
SELECT count(*) FROM hrflow_match_all('five', 'six');
SELECT count(*) FROM hrflow_match_all('six', 'five');
SELECT count(*) FROM hrflow_match_all('five', 'candidate', other_section => 'profil');
SELECT count(*) FROM hrflow_match_all('five', 'zero');
SELECT * FROM hrflow_match_all('nothing', 'pg_class'); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM hrflow_match_all('opening', NULL);
SELECT * FROM hrflow_match_all('opening', 'candidate', 0); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM hrflow_match_all('opening', 'candidate', 1001); -- error
SELECT * FROM hrflow_match_all('opening', 'pg_class'); -- error
\echo :LAST_ERROR_SQLSTATE
CREATE ROLE regress_hrflow_reader;
GRANT EXECUTE ON FUNCTION hrflow_match_all TO regress_hrflow_reader;
GRANT SELECT ON candidate TO regress_hrflow_reader;
SET ROLE regress_hrflow_reader;
SELECT * FROM hrflow_match_all('candidate', 'opening', 1); -- error
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM hrflow_match_all('opening', 'candidate', 1); -- error
SELECT * FROM hrflow_match_all('candidate', 'opening', 1, 'no such section'); -- error
RESET ROLE;

-- Only rows that policies show to the caller are compared
GRANT SELECT ON opening TO regress_hrflow_reader;
ALTER TABLE candidate ENABLE ROW LEVEL SECURITY;
CREATE POLICY few ON candidate TO regress_hrflow_reader USING (profile_id = 'candidate 100');
SET ROLE regress_hrflow_reader;
SELECT DISTINCT other_profile_id FROM hrflow_match_all('opening', 'candidate', 3);
SELECT count(DISTINCT profile_id) FROM hrflow_match_all('candidate', 'opening', 3);
RESET ROLE;

-- Vectors with too many dimensions are ignored, also if they are the first, and the longest permitted ones fit into several tiles
SELECT hrflow_create_store('long', 'real[]');
INSERT INTO long
SELECT 'acme', n || letter, 'profile', 0, array_fill(1::real, ARRAY[n])
FROM unnest('{100000,65537,65536,3}'::int[]) WITH ORDINALITY AS d (n, at), unnest('{a,b}'::text[]) letter ORDER BY at;
SELECT profile_id, other_profile_id, round(similarity::numeric, 6) AS similarity FROM hrflow_match_all('long', 'long') ORDER BY 1;
INSERT INTO long
SELECT 'acme', 'many ' || i, 'skills', 0, array_fill(1::real, ARRAY[65535]) || i::real FROM generate_series(1, 30) i;
SELECT count(*), count(*) FILTER (WHERE abs(substr(profile_id, 6)::int - substr(other_profile_id, 6)::int) = 1) AS adjacent
FROM hrflow_match_all('long', 'long', 1, 'skills', 'skills');
DELETE FROM long WHERE cardinality(vector) < 100000;
SELECT count(*) FROM hrflow_match_all('long', 'long');
SELECT count(*) FROM hrflow_match_all('long', 'five');
SELECT hrflow_drop_store('long'), hrflow_drop_store('nothing'), hrflow_drop_store('five'), hrflow_drop_store('six'), hrflow_drop_store('zero');

SELECT hrflow_drop_store('opening'), hrflow_drop_store('candidate');
DROP FUNCTION differs, random_vector;
DROP OWNED BY regress_hrflow_reader;
DROP ROLE regress_hrflow_reader;
DROP EXTENSION hrflow_embed;
