-- Calls that are issued ahead of their rows: which plans contain the node
-- HrflowReadAhead.  t/066_read_ahead.pl shows that results, errors and requests
-- are the same as without it.
CREATE EXTENSION hrflow_embed;
CREATE TEMP TABLE candidate (id int PRIMARY KEY, hid text, email text, note text, active bool, e jsonb, v real[]);
INSERT INTO candidate
SELECT i, 'p' || i, 'p' || i || '@example.com', 'a nurse', i % 2 = 0 FROM generate_series(1, 5) i;
ANALYZE candidate;

-- A call in a target list is read ahead, even if nothing was preloaded
EXPLAIN (COSTS OFF)
SELECT id, hrflow_profile_embedding('S', hid) FROM candidate;
EXPLAIN (COSTS OFF, VERBOSE)
SELECT id, hrflow_text_embedding(note), lower(email) FROM candidate ORDER BY id LIMIT 3;

-- Each level of nested calls has a node of its own
EXPLAIN (COSTS OFF)
SELECT id, hrflow_fetch_vector(hrflow_profile_embedding('S', hid) ->> 'profile') FROM candidate;

-- In statements that write, the node is below ModifyTable
EXPLAIN (COSTS OFF)
UPDATE candidate SET v = hrflow_job_vector(hid), e = hrflow_job_embedding(hid);

-- Sorting, grouping and DISTINCT
EXPLAIN (COSTS OFF)
SELECT DISTINCT hrflow_profile_embedding('S', hid) FROM candidate;
EXPLAIN (COSTS OFF)
SELECT hrflow_profile_embedding('S', max(hid)) FROM candidate;

-- A call that may not be needed for each row is not read ahead
EXPLAIN (COSTS OFF)
SELECT CASE WHEN active THEN hrflow_profile_embedding('S', hid) END,
	COALESCE(e, hrflow_profile_embedding('S', hid))
FROM candidate WHERE hrflow_profile_embedding('S', hid) IS NOT NULL;
EXPLAIN (COSTS OFF)
SELECT hrflow_profile_embedding('S', 'alone');

-- Neither is one whose function cannot be called directly
CREATE FUNCTION pg_temp.definer(text) RETURNS jsonb LANGUAGE sql SECURITY DEFINER
AS $$SELECT hrflow_profile_embedding('S', $1)$$;
EXPLAIN (COSTS OFF)
SELECT pg_temp.definer(hid) FROM candidate;
BEGIN;
ALTER FUNCTION hrflow_profile_embedding SECURITY DEFINER;
EXPLAIN (COSTS OFF)
SELECT hrflow_profile_embedding('S', hid) FROM candidate;
ROLLBACK;

-- EXPLAIN ANALYZE shows counters.  The rest of its output differs between versions.
CREATE FUNCTION pg_temp.counts(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	line text;
BEGIN
	FOR line IN EXECUTE 'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) ' || query LOOP
		IF line ~ 'Calls:|Requests:|Maximum ' THEN
			RETURN NEXT ltrim(line);
		END IF;
	END LOOP;
END$$;
SELECT pg_temp.counts($$SELECT id, hrflow_profile_embedding('S', hid) FROM candidate LIMIT 3$$);
SELECT pg_temp.counts($$SELECT hrflow_profile_embedding('S', 'the same') FROM candidate$$);

-- read_ahead = off affects existing plans, too: the node reads nothing ahead
PREPARE q AS SELECT id, hrflow_profile_embedding('S', hid) IS NOT NULL AS answered FROM candidate ORDER BY id;
EXECUTE q;
SET hrflow_embed.read_ahead = off;
SELECT pg_temp.counts('EXECUTE q');
EXECUTE q;
RESET hrflow_embed.read_ahead;

-- An error is raised when its row is reached, and has its CONTEXT
UPDATE candidate SET hid = 'missing' WHERE id = 4;
BEGIN;
DECLARE c CURSOR FOR SELECT id, hrflow_profile_embedding('S', hid) IS NOT NULL FROM candidate ORDER BY id;
FETCH 3 FROM c;
FETCH 1 FROM c; -- error
ROLLBACK;
UPDATE candidate SET hid = '' WHERE id = 4;
SELECT id, hrflow_profile_embedding('S', hid) IS NOT NULL FROM candidate ORDER BY id; -- error
SELECT id, hrflow_profile_embedding('S', hid) IS NOT NULL FROM candidate ORDER BY id LIMIT 3;

-- The privilege to execute the function is checked
CREATE ROLE regress_hrflow_ahead;
GRANT SELECT ON candidate TO regress_hrflow_ahead;
SET ROLE regress_hrflow_ahead;
SELECT hrflow_profile_embedding('S', hid) FROM candidate; -- error
RESET ROLE;
REVOKE ALL ON candidate FROM regress_hrflow_ahead;
DROP ROLE regress_hrflow_ahead;
DROP EXTENSION hrflow_embed;
