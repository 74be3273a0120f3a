# A query whose calls are read ahead returns the same rows in the same order, or
# the same error, as without read-ahead, and sends no more requests than
# docs/read_ahead.md allows.  Each query below runs with hrflow_embed.read_ahead
# off and on.  The stand-in counts the requests.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Test::More;

# Maximum number of requests in flight, and of rows read ahead: so few that 40
# rows exceed both.
my $concurrency = 4;
my $ahead = 4 * $concurrency;

my $api = Hrflow::StandIn->new('--dim' => 4);
my $node = Hrflow::Node->new(
	'read_ahead', $api,
	link_hosts => '127.0.0.1',
	max_concurrency => $concurrency,
	max_attempts => 1,

	# Show the plan of each statement in the log as EXPLAIN VERBOSE does, which must not fail.
	session_preload_libraries => 'auto_explain',
	'auto_explain.log_min_duration' => 0,
	'auto_explain.log_nested_statements' => 'on',
	'auto_explain.log_verbose' => 'on');

$node->safe_psql(
	'postgres', q{
	CREATE TABLE c (id int PRIMARY KEY, hid text, name text, source text, grp int,
		active bool, at int, doc jsonb, v real[], d jsonb) WITH (autovacuum_enabled = off);
	INSERT INTO c
	SELECT i, 'p' || i, 'n' || i % 7, 'S', i % 5, i % 3 > 0, 100 - i,
		jsonb_build_object('hid', 'q' || i)
	FROM generate_series(1, 40) i;
	CREATE TABLE few AS SELECT id, hid FROM c WHERE id <= 3;
	CREATE TABLE twice AS SELECT i AS n, 'p' || i % 10 AS hid FROM generate_series(1, 40) i;
	CREATE TABLE holes AS SELECT i AS n, CASE WHEN i % 3 > 0 THEN 'p' || i END AS hid,
		CASE WHEN i % 4 > 0 THEN 'S' END AS source FROM generate_series(1, 40) i;
	CREATE TABLE bad AS SELECT i AS n, CASE i WHEN 12 THEN 'missing' ELSE 'p' || i END AS hid,
		CASE i WHEN 15 THEN '' ELSE 'p' || i END AS empty_hid, i - 20 AS zero_at_20
		FROM generate_series(1, 40) i;
	CREATE TABLE job AS SELECT i AS n, 'j' || i AS jid, 'job text ' || i AS txt
		FROM generate_series(1, 20) i;
	CREATE TABLE link AS SELECT i AS n, f.link FROM generate_series(1, 20) i,
		LATERAL hrflow_profile_embedding_links('S', 'l' || i, '{"profile": 1}') f;
	CREATE TABLE part (id int, hid text, k int) PARTITION BY LIST (k);
	CREATE TABLE part0 PARTITION OF part FOR VALUES IN (0);
	CREATE TABLE part1 PARTITION OF part FOR VALUES IN (1);
	CREATE TABLE part2 (k int, x text, hid text, id int);
	ALTER TABLE part2 DROP COLUMN x;
	ALTER TABLE part ATTACH PARTITION part2 FOR VALUES IN (2);
	INSERT INTO part SELECT i, 'p' || i, i % 3 FROM generate_series(1, 30) i;
	CREATE INDEX ON part (id);
	CREATE TABLE parent (id int, hid text);
	CREATE TABLE child (extra text) INHERITS (parent);
	INSERT INTO parent SELECT i, 'p' || i FROM generate_series(1, 10) i;
	INSERT INTO child SELECT i, 'p' || i FROM generate_series(11, 20) i;
	CREATE TABLE sink (n serial, id int, e jsonb, v real[]);
	CREATE TABLE unique_sink (id int PRIMARY KEY, e jsonb);
	INSERT INTO unique_sink SELECT i FROM generate_series(1, 20) i;
	CREATE VIEW seen AS SELECT id, hrflow_profile_embedding('S', hid, '{"profile": 1}') AS e FROM c;
	CREATE FUNCTION e(text) RETURNS jsonb LANGUAGE sql VOLATILE
		AS $$SELECT hrflow_profile_embedding('S', $1, '{"profile": 1}')$$;
	CREATE FUNCTION loud(int) RETURNS int LANGUAGE plpgsql VOLATILE
		AS $$BEGIN RAISE NOTICE 'row %', $1; RETURN $1; END$$;
	CREATE FUNCTION stable_upper(text) RETURNS text LANGUAGE plpgsql STABLE
		AS $$BEGIN RETURN upper($1); END$$;
	CREATE FUNCTION waits(int) RETURNS text LANGUAGE plpgsql VOLATILE
		AS $$BEGIN IF $1 = 1 THEN PERFORM pg_advisory_xact_lock(66); PERFORM FROM few; END IF;
			RETURN 'n' || $1; END$$;
	CREATE FUNCTION scarce(int) RETURNS text LANGUAGE plpgsql STABLE
		AS $$BEGIN IF $1 = 9 THEN RAISE out_of_memory; END IF; RETURN 'p' || $1; END$$;
	CREATE FUNCTION wrapped(text) RETURNS jsonb LANGUAGE plpgsql VOLATILE
		AS $$BEGIN RETURN hrflow_profile_embedding('S', $1, '{"profile": 1}'); END$$;
	CREATE FUNCTION each_row() RETURNS SETOF jsonb LANGUAGE plpgsql VOLATILE
		AS $$DECLARE r record; BEGIN
			FOR r IN SELECT hrflow_profile_embedding('S', hid, '{"profile": 1}') e FROM c
				ORDER BY id LOOP
				RETURN NEXT r.e; EXIT WHEN r.e ->> 'profile' LIKE '%p5/%'; END LOOP; END$$;
	CREATE FUNCTION rows_of_sql() RETURNS SETOF jsonb LANGUAGE sql VOLATILE
		AS $$SELECT hrflow_profile_embedding('S', hid, '{"profile": 1}') FROM c ORDER BY id$$;
	CREATE FUNCTION slow_rows() RETURNS SETOF jsonb LANGUAGE plpgsql VOLATILE
		AS $$DECLARE r record; BEGIN
			FOR r IN SELECT hrflow_profile_embedding('S', 'fault:latency=50,id=' || id) e
				FROM c LOOP RETURN NEXT r.e; EXIT; END LOOP; END$$;
	CREATE FUNCTION catching() RETURNS SETOF jsonb LANGUAGE plpgsql VOLATILE
		AS $$DECLARE r record; BEGIN
			FOR r IN SELECT n, hrflow_profile_embedding('S', lower(hid), '{"profile": 1}') e
				FROM bad WHERE n < 12 ORDER BY n LOOP
				BEGIN RETURN NEXT r.e; PERFORM 1 / (r.n % 2);
				EXCEPTION WHEN division_by_zero THEN RAISE NOTICE 'caught %', r.n; END;
			END LOOP; END$$;
	CREATE TABLE triggered (id int, e jsonb, w jsonb);
	CREATE FUNCTION before_row() RETURNS trigger LANGUAGE plpgsql
		AS $$BEGIN NEW.w := wrapped('w' || NEW.id); RETURN CASE WHEN NEW.id <> 5 THEN NEW END; END$$;
	CREATE TRIGGER before_row BEFORE INSERT OR UPDATE ON triggered
		FOR EACH ROW EXECUTE FUNCTION before_row();
	CREATE TABLE visible AS SELECT id, hid FROM c;
	ALTER TABLE visible ENABLE ROW LEVEL SECURITY;
	CREATE POLICY even ON visible USING (id % 2 = 0);
	CREATE ROLE regress_hrflow_ahead;
	GRANT SELECT ON visible TO regress_hrflow_ahead;
	GRANT EXECUTE ON FUNCTION hrflow_profile_embedding TO regress_hrflow_ahead;
	CREATE TABLE long AS SELECT i AS n, repeat(md5(i::text), 30000) AS txt
		FROM generate_series(1, 20) i;
	CREATE TABLE many AS SELECT i AS n, md5(i::text) AS x FROM generate_series(1, 3000) i;
	CREATE INDEX ON c (at);
	CREATE SEQUENCE q;
	ANALYZE;
});

my $e = q{hrflow_profile_embedding('S', hid, '{"profile": 1}')};
my $ce = q{hrflow_profile_embedding('S', c.hid, '{"profile": 1}')};
my $links = q{LATERAL hrflow_profile_embedding_links('S', c.hid)};

my $memoized = "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off;
	SELECT s.id, s.e ->> 'profile', d.name
	FROM (SELECT id, grp, $e e FROM c OFFSET 0) s JOIN c d ON d.id = s.grp";

# A join that needs one row of "few", and whose need for rows of its other side is
# unknown
my $join_one = "CROSS JOIN (SELECT FROM few WHERE id = 1 OFFSET 0) f";

my $partly_sorted = "SET enable_seqscan = off; SET enable_sort = off;
	SELECT at, id, e FROM (SELECT at, id, $e e FROM c ORDER BY at OFFSET 0) s ORDER BY at, id";

# A reply with a link whose path contains no item: {"skills": ["https://api.test/x"]}
my $pathless = 'fault:data=eyJza2lsbHMiOlsiaHR0cHM6Ly9hcGkudGVzdC94Il19';

#
# The queries.  Flags:
#   A    the plan contains the node; N: it does not; neither: not checked
#   g    the number of rows needed is unknown: at most one more request is
#        wasted than was useful
#   e    the query fails: at most the requests for rows ahead are wasted
#
my @shapes = (

	# Plain
	[ A => "SELECT id, $e FROM c" ],
	[ A => "SELECT $e FROM c" ],
	[ A => "SELECT $e, id FROM c ORDER BY id" ],
	[ A => "SELECT $e, id FROM c ORDER BY at" ],
	[ A => "SELECT $e, id FROM c ORDER BY name, id DESC" ],
	[ A => "SELECT *, $e FROM c ORDER BY id" ],
	[ A => "SELECT c, $e FROM c ORDER BY id" ],
	[ A => "SELECT ctid, tableoid::regclass, $e FROM c ORDER BY id" ],
	[ A => "SELECT $e, $e FROM c ORDER BY id" ],
	[   A => "SELECT $e, hrflow_profile_embedding('S', doc ->> 'hid', '{\"skills\": 1}') FROM c
			ORDER BY id"
	],
	[ A => "SELECT $e ->> 'profile' FROM c ORDER BY id" ],
	[ A => "SELECT id, length(($e)::text) > 10 FROM c ORDER BY id" ],
	[ A => "SELECT ($e ->> 'profile') IS NULL FROM c ORDER BY id" ],
	[ A => "SELECT ARRAY[$e ->> 'profile', name] FROM c ORDER BY id" ],
	[ A => "SELECT (ARRAY[$e ->> 'profile', name])[1] FROM c ORDER BY id" ],
	[ A => "SELECT (ARRAY[$e ->> 'profile', name])[:1] FROM c ORDER BY id" ],
	[ A => "SELECT ROW(id, $e) FROM c ORDER BY id" ],
	[ A => "SELECT id, $e FROM c WHERE active ORDER BY id" ],
	[ A => "SELECT id, $e FROM c WHERE id = 7" ],
	[ A => "SELECT id, $e FROM c WHERE id IN (7, 9, 11) ORDER BY id" ],
	[ N => "SELECT id, $e FROM c WHERE false" ],
	[ A => "SELECT id, $e FROM c WHERE id > 1000" ],
	[ A => "SELECT id, hrflow_profile_embedding(source, hid) FROM c ORDER BY id" ],
	[   A => "SELECT id, hrflow_profile_embedding(profile_id => hid, source_id => source) FROM c
			ORDER BY id"
	],
	[   A => "SELECT id, hrflow_profile_embedding('S', profile_email => hid || '\@x.com') FROM c
			ORDER BY id"
	],
	[   A => "SELECT id, hrflow_profile_embedding('S', lower(hid), jsonb_build_object('profile', 1))
			FROM c ORDER BY id"
	],
	[ A => "SELECT id, hrflow_profile_embedding('S', id::text) FROM c ORDER BY id" ],
	[ A => "SELECT id, hrflow_profile_embedding('S', stable_upper(hid)) FROM c ORDER BY id" ],
	[   A =>
		  "SELECT id, hrflow_profile_embedding('S', (SELECT max(hid) FROM few)) FROM c ORDER BY id"
	],
	[ A => "SELECT id, hrflow_profile_embedding('S', 'the same') FROM c ORDER BY id" ],

	# Initplans in arguments that may raise an error.  An initplan is executed when
	# a row first needs it.
	[   A => "SELECT id, hrflow_profile_embedding((SELECT 'S' FROM few WHERE id = 1), 'p' || id)
			FROM c ORDER BY id"
	],
	[   A => "SELECT id, hrflow_profile_embedding('S', lower((SELECT max(hid) FROM few)))
			FROM c ORDER BY id"
	],
	[   A => "SELECT id, $e, hrflow_text_embedding((SELECT max(hid) FROM few) || id) FROM c
			ORDER BY id LIMIT 9"
	],
	[   A => "SELECT id, hrflow_text_embedding(CASE WHEN id > 5 THEN (SELECT max(hid) FROM few)
			ELSE 'p' END || id) FROM c ORDER BY id"
	],
	[   A => "SELECT id, hrflow_text_embedding(CASE WHEN id > 90 THEN (SELECT 1 / (max(id) - 3)
			FROM few) ELSE id END::text) FROM c ORDER BY id"
	],
	[   Ae => "SELECT id, hrflow_text_embedding(CASE WHEN id > 9 THEN (SELECT 1 / (max(id) - 3)
			FROM few) ELSE id END::text) FROM c ORDER BY id"
	],
	[   A => "SELECT id, hrflow_text_embedding(CASE WHEN id > 9 THEN (SELECT 1 / (max(id) - 3)
			FROM few) ELSE id END::text) FROM c ORDER BY id LIMIT 9"
	],
	[   Ae => "SELECT n, hrflow_profile_embedding('S', 'missing'),
			hrflow_text_embedding((SELECT (1 / (max(id) - 3))::text FROM few)) FROM bad ORDER BY n"
	],
	[ A => "SELECT id, $e, (SELECT count(*) FROM few f WHERE f.id <= c.id) FROM c ORDER BY id" ],
	[ A => "SELECT loud(id), $e FROM c ORDER BY id" ],
	[   A => "SELECT n, hrflow_profile_embedding(source, hid, '{\"profile\": 1}') FROM holes
			ORDER BY n"
	],
	[   A => "SELECT id, hrflow_document_embedding('job', CASE WHEN active THEN doc END) FROM c
			ORDER BY id"
	],
	[ A => "SELECT n, $e FROM twice ORDER BY n" ],
	[ A => "SELECT i, hrflow_profile_embedding('S', 'p' || i) FROM generate_series(1, 20) i" ],
	[ A => "SELECT v.*, hrflow_profile_embedding('S', x) FROM (VALUES ('a'), ('b'), ('c')) v (x)" ],
	[ A => "SELECT hid, $e FROM unnest(ARRAY['a', 'b', 'c']) hid" ],

	# LIMIT
	[ A => "SELECT id, $e FROM c LIMIT 7" ],
	[ A => "SELECT id, $e FROM c LIMIT 0" ],
	[ A => "SELECT id, $e FROM c LIMIT 1" ],
	[ A => "SELECT id, $e FROM c LIMIT 33" ],
	[ A => "SELECT id, $e FROM c LIMIT 100" ],
	[ A => "SELECT id, $e FROM c LIMIT NULL" ],
	[ A => "SELECT id, $e FROM c ORDER BY id LIMIT 7" ],
	[ A => "SELECT id, $e FROM c ORDER BY at LIMIT 7" ],
	[ A => "SELECT id, $e FROM c ORDER BY name, id LIMIT 7" ],
	[ A => "SELECT id, $e FROM c ORDER BY id LIMIT 7 OFFSET 5" ],
	[ A => "SELECT id, $e FROM c ORDER BY id OFFSET 35" ],
	[ A => "SELECT id, $e FROM c ORDER BY id OFFSET 100" ],
	[ A => "SELECT id, $e FROM c ORDER BY id LIMIT (SELECT 7)" ],
	[ A => "SELECT name, $e FROM c ORDER BY name FETCH FIRST 3 ROWS WITH TIES" ],
	[ A => "SELECT * FROM (SELECT id, $e FROM c OFFSET 0) s LIMIT 7" ],
	[   A =>
		  "SELECT * FROM (SELECT id, $e e FROM c ORDER BY id LIMIT 9) s WHERE e IS NOT NULL LIMIT 5"
	],
	[   A =>
		  "SELECT * FROM (SELECT id, $e e FROM c ORDER BY id LIMIT 20) s WHERE id % 2 = 0 LIMIT 5"
	],
	[ A => "SELECT * FROM seen LIMIT 5" ],
	[ A => "SELECT * FROM seen ORDER BY id LIMIT 5" ],

	# Top-N sorts, whose limits change between rescans
	[ A => "SELECT id, $e FROM c ORDER BY name, id LIMIT 7 OFFSET 3" ],
	[ A => "SELECT id, hrflow_fetch_vector($e ->> 'profile') FROM c ORDER BY name, id LIMIT 7" ],
	[ A => "SELECT * FROM (SELECT id, $e FROM c ORDER BY name, id OFFSET 0) s LIMIT 7 OFFSET 3" ],
	[   Ag => "SELECT n, s.* FROM (VALUES (2), (9), (NULL), (5), (0), (3)) v (n),
			LATERAL (SELECT id, $e FROM c ORDER BY name, id LIMIT n) s"
	],
	[   Ag => "SELECT n, s.* FROM (VALUES (2), (9), (4)) v (n),
			LATERAL (SELECT id, $e FROM c WHERE id > n ORDER BY name, id LIMIT n OFFSET n) s"
	],
	[   Ag => "SELECT n, s.* FROM (VALUES (9), (2), (4)) v (n),
			LATERAL (SELECT id, hrflow_fetch_vector($e ->> 'profile') FROM c
			ORDER BY name, id LIMIT n) s"
	],
	[   A => "SELECT id FROM (SELECT id, $e e FROM c ORDER BY name, id OFFSET 0) s
			WHERE e ->> 'profile' ~ '[27]/' LIMIT 3"
	],
	[ A => "SELECT id, $e FROM c ORDER BY name, id LIMIT 9223372036854775807 OFFSET 35" ],
	[   '' => "BEGIN; DECLARE q SCROLL CURSOR FOR SELECT id, $e FROM c ORDER BY name, id
			LIMIT 9 OFFSET 2; FETCH 5 FROM q; FETCH BACKWARD 3 FROM q; FETCH ALL FROM q;
			FETCH BACKWARD 4 FROM q; FETCH ALL FROM q; FETCH FIRST FROM q; FETCH ALL FROM q; ROLLBACK"
	],

	# Nodes above that keep or sort rows in part
	[ A => $memoized ],
	[ A => $partly_sorted ],
	[ A => "$partly_sorted LIMIT 9" ],
	[   A => "SELECT id, e, count(*) OVER (PARTITION BY name) FROM (SELECT id, name, $e e FROM c
			ORDER BY name, id OFFSET 0) s ORDER BY name, id LIMIT 9"
	],
	[ A => "SET work_mem = '64kB'; SELECT id, $e FROM c ORDER BY name, id" ],
	[ A => "SET work_mem = '64kB'; SELECT n, hrflow_text_embedding(hid) FROM twice ORDER BY n" ],

	# DISTINCT, GROUP BY and window functions.  Where results must be equal, use texts,
	# because the links of a profile change every second.
	[ A => "SELECT DISTINCT hrflow_text_embedding(hid) FROM twice ORDER BY 1" ],
	[ A => "SELECT DISTINCT ON (name) name, $e FROM c ORDER BY name, id" ],
	[   A => "SELECT name, hrflow_profile_embedding('S', name), count(*) FROM c GROUP BY name
			ORDER BY name"
	],
	[   A =>
		  "SELECT hrflow_profile_embedding('S', lower(name)), count(*) FROM c GROUP BY lower(name)
			ORDER BY lower(name)"
	],
	[   A => "SELECT upper(lower(name)), hrflow_profile_embedding('S', lower(name)) FROM c
			GROUP BY lower(name) ORDER BY 1"
	],
	[ A => "SELECT hrflow_profile_embedding('S', max(hid)), grp FROM c GROUP BY grp ORDER BY grp" ],
	[ A => "SELECT hrflow_profile_embedding('S', max(hid)) FROM c" ],
	[   A => "SELECT (ARRAY[hrflow_profile_embedding('S', max(hid)) ->> 'profile', max(name)])[1]
			FROM c"
	],
	[ '' => "SELECT hrflow_profile_embedding('S', max(id)::text) FROM c" ],
	[   A => "SELECT hrflow_profile_embedding('S', name) FROM c GROUP BY name HAVING count(*) > 5
			ORDER BY name"
	],
	[ A => "SELECT id, $e FROM c GROUP BY id ORDER BY id" ],
	[   A => "SELECT hrflow_text_embedding(hid), count(*) FROM twice
			GROUP BY hrflow_text_embedding(hid) ORDER BY 1"
	],
	[ N => "SELECT id, $e, row_number() OVER (ORDER BY at) FROM c ORDER BY id" ],
	[   N => "SELECT id, $e, sum(at) OVER (PARTITION BY grp ORDER BY id) FROM c ORDER BY id LIMIT 5"
	],
	[   N =>
		  "SELECT id, hrflow_profile_embedding('S', lag(hid) OVER (ORDER BY id)) FROM c ORDER BY id"
	],
	[ A => "SELECT id, e, count(*) OVER () FROM (SELECT id, $e e FROM c OFFSET 0) s ORDER BY id" ],
	[ A => "SELECT id, e, generate_series(1, 2) FROM (SELECT id, $e e FROM c OFFSET 0) s" ],
	[ Ag => "SELECT e, generate_series(1, 2) FROM (SELECT $e e FROM c OFFSET 0) s LIMIT 5" ],
	[   Ag => "SELECT * FROM (SELECT id, e, row_number() OVER (ORDER BY id) r
			FROM (SELECT id, $e e FROM c ORDER BY id OFFSET 0) s) t WHERE r <= 5"
	],
	[   g => "BEGIN; SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off;
			SELECT id, $e FROM part ORDER BY id LIMIT 4; ROLLBACK"
	],
	[   g => "BEGIN; SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off;
			SELECT id, $e FROM part ORDER BY id; ROLLBACK"
	],
	[   g => "BEGIN; SET LOCAL parallel_setup_cost = 0; SET LOCAL parallel_tuple_cost = 0;
			SET LOCAL min_parallel_table_scan_size = 0;
			SELECT id, hrflow_profile_embedding('S', lower(hid)) FROM c ORDER BY id; ROLLBACK"
	],
	[   g => "BEGIN; DECLARE q SCROLL CURSOR FOR SELECT id, $e FROM c ORDER BY id;
			FETCH 38 FROM q; FETCH BACKWARD 2 FROM q; FETCH ALL FROM q; FETCH BACKWARD 1 FROM q;
				ROLLBACK"
	],
	[ A => "SELECT id, $e FROM c ORDER BY $e, id" ],
	[ A => "SELECT id FROM c ORDER BY $e ->> 'profile', id" ],
	[ A => "SELECT id, $e FROM c ORDER BY lower(name), id" ],

	# Joins
	[ A => "SELECT c.id, $ce FROM c JOIN few USING (id) ORDER BY id" ],
	[ A => "SELECT c.id, t.n, $ce FROM c JOIN twice t ON t.hid = c.hid ORDER BY c.id, t.n" ],
	[ A => "SELECT c.id, $ce FROM c LEFT JOIN few f ON f.id = c.id ORDER BY c.id" ],
	[   A =>
		  "SELECT c.id, hrflow_profile_embedding('S', f.hid) FROM c LEFT JOIN few f ON f.id = c.id
			ORDER BY c.id"
	],
	[ A => "SELECT c.id, $ce FROM c FULL JOIN few f ON f.id = c.id + 39 ORDER BY c.id" ],
	[   A =>
		  "SELECT c.id, $ce FROM c WHERE EXISTS (SELECT FROM few f WHERE f.id = c.id) ORDER BY c.id"
	],
	[ A => "SELECT c.id, $ce FROM c WHERE id NOT IN (SELECT id FROM few) ORDER BY c.id" ],
	[ A => "SELECT c.id, few.id, $ce FROM c, few ORDER BY 1, 2" ],
	[ Ag => "SELECT * FROM (SELECT id, $e FROM c OFFSET 0) s JOIN few f USING (id) ORDER BY id" ],
	[ Ag => "SELECT * FROM (SELECT id, $e FROM c OFFSET 0) s JOIN few f USING (id) LIMIT 2" ],
	[ Ag => "SELECT * FROM (SELECT id, $e FROM c OFFSET 0) s CROSS JOIN few f LIMIT 2" ],
	[   A => "SELECT * FROM (SELECT id, $e FROM c OFFSET 0) s LEFT JOIN few f ON f.id > s.id
			ORDER BY s.id, f.id"
	],
	[   Ag => "SELECT f.id, s.* FROM few f, LATERAL (SELECT c.id, $ce FROM c WHERE c.id > f.id
			ORDER BY c.id LIMIT 3) s ORDER BY 1, 2"
	],
	[   Ag => "SELECT f.id, s.* FROM few f LEFT JOIN LATERAL (SELECT c.id, $ce FROM c
			WHERE c.id = f.id OFFSET 0) s ON true ORDER BY 1"
	],
	[   A => "SELECT a.id, b.id, hrflow_profile_embedding('S', a.hid),
			hrflow_profile_embedding('S', b.hid) FROM c a JOIN c b ON b.id = a.id + 1 ORDER BY 1"
	],

	# Subqueries, CTEs, set operations
	[   A => "SELECT * FROM (SELECT id, $e AS e FROM c) s WHERE e ->> 'profile' LIKE '%p1%'
			ORDER BY id"
	],
	[ A => "WITH s AS (SELECT id, $e FROM c) SELECT * FROM s ORDER BY id" ],
	[ A => "WITH s AS MATERIALIZED (SELECT id, $e FROM c) SELECT * FROM s LIMIT 5" ],
	[ A => "WITH s AS NOT MATERIALIZED (SELECT id, $e FROM c) SELECT * FROM s LIMIT 5" ],
	[   A => "WITH s AS (SELECT id, $e FROM c), t AS (SELECT * FROM s WHERE id % 2 = 0)
			SELECT * FROM t LIMIT 5"
	],
	[   Ag => "WITH s AS (SELECT id, $e FROM c) (SELECT * FROM s LIMIT 3)
			UNION ALL (SELECT * FROM s LIMIT 5)"
	],
	[   Ag => "WITH s AS (SELECT id, $e e FROM c) SELECT a.id, b.e FROM s a
			JOIN s b ON b.id = a.id + 1 ORDER BY 1"
	],
	[ A => "SELECT id, $e FROM c WHERE id < 10 UNION ALL SELECT id, $e FROM c WHERE id > 30" ],
	[ A => "SELECT id, $e FROM c UNION ALL SELECT id, $e FROM c LIMIT 45" ],
	[   A => "SELECT hrflow_text_embedding(hid) FROM c WHERE id < 10
			UNION SELECT hrflow_text_embedding(hid) FROM c WHERE id < 12 ORDER BY 1"
	],
	[   A => "SELECT hrflow_text_embedding(hid) FROM c WHERE id < 10
			INTERSECT SELECT hrflow_text_embedding(hid) FROM c WHERE id > 5 ORDER BY 1"
	],
	[   A => "SELECT hrflow_text_embedding(hid) FROM c WHERE id < 10
			EXCEPT SELECT hrflow_text_embedding(hid) FROM c WHERE id > 5 ORDER BY 1"
	],
	[ g => "SELECT f.id, (SELECT $ce FROM c WHERE c.id = f.id) FROM few f ORDER BY id" ],
	[   g => "SELECT f.id, (SELECT $ce FROM c WHERE c.id > f.id ORDER BY c.id LIMIT 1) FROM few f
			ORDER BY id"
	],
	[   g => "SELECT f.id, ARRAY(SELECT $ce FROM c WHERE c.id > f.id ORDER BY c.id) FROM few f
			ORDER BY id"
	],
	[ '' => "SELECT ARRAY(SELECT $e FROM c ORDER BY id)" ],
	[ g => "SELECT id FROM few WHERE EXISTS (SELECT $e FROM c)" ],
	[ g => "SELECT id FROM few WHERE hid IN (SELECT $e ->> 'profile' FROM c) ORDER BY id" ],
	[ g => "SELECT id FROM few WHERE hid NOT IN (SELECT $e ->> 'profile' FROM c) ORDER BY id" ],
	[   Ag => "WITH RECURSIVE r AS (SELECT 1 AS n, (SELECT hid FROM c
			WHERE id = 1) AS hid, NULL::jsonb AS e
		UNION ALL SELECT r.n + 1, c.hid, $ce FROM r JOIN c ON c.id = r.n + 1 WHERE r.n < 9)
			SELECT n, e FROM r"
	],
	[ A => "SELECT count(*), count(e) FROM (SELECT $e e FROM c) s" ],
	[   Ag => "SELECT * FROM (SELECT id, e, hrflow_text_embedding(id::text)
			FROM (SELECT id, $e e FROM c OFFSET 0) s OFFSET 0) t
			CROSS JOIN (SELECT id FROM few WHERE id = 1 OFFSET 0) f LIMIT 9"
	],
	[   Ag => "WITH s AS MATERIALIZED (SELECT id, hrflow_profile_embedding('S', name) FROM c
			WHERE $e ->> 'profile' ~ '/p(1|2|40)/') SELECT * FROM s LIMIT 2"
	],
	[   Ag => "WITH s AS MATERIALIZED (SELECT id, hrflow_profile_embedding('S', name)
			FROM (SELECT *, $e e FROM c OFFSET 0) t WHERE e ->> 'profile' ~ '/p(1|2|40)/')
			SELECT * FROM s LIMIT 2"
	],
	[   Ag => "SELECT grp, name, count(e) FROM (SELECT grp, name, $e e FROM c
			ORDER BY grp, name OFFSET 0) s GROUP BY CUBE (grp, name) LIMIT 2"
	],
	[   A => "SELECT grp, jsonb_agg(e ORDER BY id) FROM (SELECT grp, id, $e e FROM c) s GROUP BY grp
			ORDER BY grp"
	],

	# Queries that are not supported
	[ N => "SELECT hrflow_profile_embedding('S', 'alone')" ],
	[ N => "SELECT hrflow_profile_embedding('S', 'alone') WHERE true" ],
	[ N => "SELECT id, CASE WHEN active THEN $e END FROM c ORDER BY id" ],
	[ N => "SELECT id, COALESCE(d, $e) FROM c ORDER BY id" ],
	[ N => "SELECT id, active AND ($e IS NOT NULL) FROM c ORDER BY id" ],
	[ N => "SELECT id, active OR ($e IS NOT NULL) FROM c ORDER BY id" ],
	[ N => "SELECT id, GREATEST(name, $e ->> 'profile') FROM c ORDER BY id" ],
	[ N => "SELECT id, LEAST(name, $e ->> 'profile') FROM c ORDER BY id" ],
	[ N => "SELECT id FROM c WHERE $e IS NOT NULL ORDER BY id" ],
	[ N => "SELECT id FROM c WHERE active AND $e IS NOT NULL ORDER BY id LIMIT 3" ],
	[   N => "SELECT grp FROM c
			GROUP BY grp HAVING hrflow_profile_embedding('S', max(hid)) IS NOT NULL ORDER BY grp"
	],
	[ N => "SELECT count($e) FROM c" ],
	[ N => "SELECT count(*) FILTER (WHERE $e IS NOT NULL) FROM c" ],
	[ N => "SELECT jsonb_object_keys($e) FROM c ORDER BY id" ],
	[ N => "SELECT $e, generate_series(1, 2) FROM c ORDER BY id" ],
	[   N => "SELECT grp, name, hrflow_profile_embedding('S', name) FROM c
			GROUP BY GROUPING SETS ((grp, name), ()) ORDER BY 1, 2"
	],
	[ N => "SELECT id, hrflow_profile_embedding('S', loud(id)::text) FROM c ORDER BY id" ],
	[   N => "SELECT id, hrflow_profile_embedding('S', (SELECT max(f.hid) FROM few f
			WHERE f.id < c.id)) FROM c ORDER BY id"
	],
	[   N => "SELECT id, hrflow_profile_embedding('S', CASE WHEN active THEN $e ->> 'x' END) FROM c
			ORDER BY id"
	],
	[ N => "SELECT id, wrapped(hid) FROM c ORDER BY id" ],
	[ N => "SELECT id, (SELECT $ce) FROM c ORDER BY id" ],
	[ N => "VALUES ($e)" =~ s/hid/'a'/r ],
	[ '' => "SELECT id, e(hid) FROM c ORDER BY id" ],
	[ g => "SELECT * FROM each_row()" ],
	[ g => "SELECT * FROM rows_of_sql() LIMIT 4" ],
	[ g => "SELECT rows_of_sql() LIMIT 4" ],

	# Errors
	[ Ae => "SELECT n, $e FROM bad ORDER BY n" ],
	[ Ae => "SELECT n, hrflow_profile_embedding('S', empty_hid) FROM bad ORDER BY n" ],
	[ Ae => "SELECT n, hrflow_profile_embedding('S', 'p' || 1 / zero_at_20) FROM bad ORDER BY n" ],
	[ Ae => "SELECT n, hrflow_profile_embedding('S', hid, to_jsonb(n)) FROM bad ORDER BY n" ],
	[ Ae => "SELECT 1 / zero_at_20, hrflow_profile_embedding('S', n::text) FROM bad ORDER BY n" ],
	[ A => "SET hrflow_embed.on_missing = 'null'; SELECT n, $e FROM bad ORDER BY n" ],
	[   A => "SET hrflow_embed.on_missing = 'null'; SELECT n, hrflow_fetch_vector($e ->> 'profile')
			FROM bad ORDER BY n LIMIT 14"
	],
	[   A => "SET hrflow_embed.on_missing = 'null'; SELECT b.n, l.section
			FROM bad b, LATERAL hrflow_profile_embedding_links('S', b.hid) l ORDER BY 1, 2"
	],
	[ A => "SELECT n, $e FROM bad ORDER BY n LIMIT 11" ],
	[ Ae => "SELECT n, $e FROM bad ORDER BY n LIMIT 12" ],
	[ A => "SELECT n, hrflow_profile_embedding('S', empty_hid) FROM bad ORDER BY n LIMIT 14" ],
	[   A => "SELECT n, hrflow_profile_embedding('S', 'p' || 1 / zero_at_20) FROM bad ORDER BY n
			LIMIT 19"
	],
	[ Ae => "SELECT n, hrflow_profile_embedding('unknown source', hid) FROM bad ORDER BY n" ],
	[   Ae =>
		  "SELECT n, hrflow_profile_embedding('S', 'fault:status=500,id=' || n) FROM bad ORDER BY n"
	],
	[ Ae => "SELECT n, hrflow_profile_embedding('S', repeat('long', 20000)) FROM bad ORDER BY n" ],
	[   Ae => "SELECT n, hrflow_profile_embedding('S', CASE n WHEN 9 THEN 'fault:html' ELSE hid END)
			FROM bad ORDER BY n"
	],
	[   Ae =>
		  "SELECT n, hrflow_fetch_vector(CASE n WHEN 9 THEN 'https://example.com/x' ELSE link END)
			FROM link ORDER BY n"
	],
	[ Ae => "SET hrflow_embed.api_key = 'askr_wrong'; SELECT n, $e FROM bad ORDER BY n" ],
	[ Ae => "SET hrflow_embed.api_key_file = ''; SELECT n, $e FROM bad ORDER BY n" ],
	[   A => "SET hrflow_embed.api_key_file = ''; SELECT n, hrflow_profile_embedding(NULL, hid)
			FROM bad ORDER BY n"
	],
	[   e => "BEGIN; DECLARE q CURSOR FOR SELECT n, $e FROM bad ORDER BY n; FETCH 11 FROM q; FETCH 1
			FROM q; ROLLBACK"
	],

	[ Ae => "SELECT n, hrflow_profile_embedding('S', scarce(n)) FROM bad ORDER BY n" ],

	# Rows that the query may not need are not read ahead if that could fail
	[   A => "WITH s AS MATERIALIZED (SELECT n, hrflow_fetch_vector($e ->> 'profile') v FROM bad)
			SELECT n FROM s LIMIT 9"
	],
	[   Ag => "SELECT n FROM (SELECT n, hrflow_fetch_vector($e ->> 'profile') v FROM bad
			OFFSET 0) s $join_one LIMIT 11"
	],
	[   Ag => "SELECT n FROM (SELECT n, hrflow_text_embedding(v::text) FROM
			(SELECT n, $e v FROM bad OFFSET 0) t OFFSET 0) s $join_one LIMIT 11"
	],
	[   Ag => "SELECT n FROM (SELECT n, hrflow_text_embedding(v::text) FROM
			(SELECT n, $e v FROM bad OFFSET 0) t WHERE v IS NOT NULL OFFSET 0) s $join_one LIMIT 11"
	],
	[   Ag => "SELECT n FROM (SELECT n, hrflow_text_embedding(z::text) FROM
			(SELECT n, 1 / zero_at_20 z FROM bad OFFSET 0) t OFFSET 0) s $join_one LIMIT 19"
	],
	[   Ag => "SELECT n FROM (SELECT n, hrflow_text_embedding(hid) FROM bad
			WHERE 1 / zero_at_20 < 5 OFFSET 0) s $join_one LIMIT 19"
	],
	[   Ag => "SELECT n FROM (SELECT n, hrflow_text_embedding(hid) FROM bad
			WHERE n < 20 OR hid = (SELECT (1 / (max(id) - 3))::text FROM few) OFFSET 0) s
			$join_one LIMIT 19"
	],
	[   Ag => "WITH t AS MATERIALIZED (SELECT n, hid FROM bad WHERE 1 / zero_at_20 < 5)
			SELECT n FROM (SELECT n, hrflow_text_embedding(hid) FROM t OFFSET 0) s
			$join_one LIMIT 19"
	],
	[   Ag => "SELECT n FROM (SELECT n, hrflow_text_embedding(v::text) FROM
			(SELECT n, $e v FROM bad OFFSET 0) t WHERE current_user > '' OFFSET 0) s
			$join_one LIMIT 11"
	],
	[   Ag => "SELECT b.n, l.section, m.section FROM bad b,
			LATERAL hrflow_profile_embedding_links('S', b.hid, '{\"profile\": 1}') l,
			LATERAL hrflow_profile_embedding_links('S', l.section || b.n, '{\"profile\": 1}') m
			LIMIT 11"
	],
	[   Ae => "SELECT n, hrflow_profile_embedding('S',
			CASE n WHEN 11 THEN 'fault:latency=100,status=500,id=11' ELSE hid END,
			jsonb_build_object('profile', ($e IS NOT NULL)::int)) FROM bad ORDER BY n"
	],

	# For such rows no volatile function is executed, and no row is locked
	[   '' => "SELECT setval('q', 100); WITH s AS MATERIALIZED (SELECT id, hrflow_text_embedding(t)
			FROM (SELECT id, nextval('q')::text t FROM c OFFSET 0) x) SELECT * FROM s LIMIT 5;
			SELECT nextval('q')"
	],
	[   g => "SELECT setval('q', 100); SELECT * FROM (SELECT id, hrflow_text_embedding(t)
			FROM (SELECT id, nextval('q')::text t FROM c OFFSET 0) x OFFSET 0) s $join_one LIMIT 5;
			SELECT nextval('q')"
	],
	[   g => "BEGIN; SELECT * FROM (SELECT id, hrflow_text_embedding(hid)
			FROM (SELECT id, hid FROM c FOR UPDATE SKIP LOCKED) x OFFSET 0) s $join_one LIMIT 5;
			SELECT id FROM c WHERE xmax::text = pg_current_xact_id()::text; ROLLBACK"
	],

	# Retries
	[   A => "SET hrflow_embed.max_attempts = 2; "
		  . "SELECT id, hrflow_profile_embedding('S', 'fault:first=1,status=503,id=' || id)
			FROM few"
	],

	# The other functions, and calls in calls
	[ A => "SELECT n, hrflow_job_embedding(jid) FROM job ORDER BY n" ],
	[ A => "SELECT n, hrflow_job_vector(jid) FROM job ORDER BY n" ],
	[   A =>
		  "SELECT n, hrflow_job_vector(jid), hrflow_job_embedding(jid) FROM job ORDER BY n LIMIT 5"
	],
	[ A => "SELECT n, hrflow_text_embedding(txt) FROM job ORDER BY n" ],
	[ A => "SELECT n, hrflow_text_embedding(txt) FROM job ORDER BY n LIMIT 3" ],
	[ A => "SELECT n, hrflow_text_embedding(NULLIF(txt, 'job text 4')) FROM job ORDER BY n" ],

	# The hash of the second text's request is 0, like that of a call without a request
	[   A => "SELECT n, hrflow_text_embedding(CASE n WHEN 1 THEN 'a' WHEN 3 THEN
			'xxf&gsB gh!K/I' END) FROM job ORDER BY n"
	],
	[ A => "SELECT n, hrflow_fetch_vector(link) FROM link ORDER BY n" ],
	[ A => "SELECT n, hrflow_fetch_vector(NULLIF(link, link)) FROM link ORDER BY n" ],
	[   A => "SELECT n, hrflow_cosine_similarity(hrflow_fetch_vector(link),
			hrflow_text_embedding('nurse')) FROM link ORDER BY n"
	],
	[ A => "SELECT id, hrflow_fetch_vector($e ->> 'profile') FROM c ORDER BY id" ],
	[ A => "SELECT id, hrflow_fetch_vector($e ->> 'profile') FROM c ORDER BY id LIMIT 5" ],
	[ A => "SELECT id, $e, hrflow_fetch_vector($e ->> 'profile') FROM c ORDER BY id LIMIT 5" ],
	[ A => "SELECT id, hrflow_fetch_vector($e ->> 'profile') FROM c ORDER BY at LIMIT 5" ],
	[ Ae => "SELECT n, hrflow_fetch_vector($e ->> 'profile') FROM bad ORDER BY n" ],
	[   A => "SELECT id, hrflow_text_embedding(hrflow_profile_embedding('S', hid)::text) IS NULL
			FROM c ORDER BY id LIMIT 5"
	],

	# LATERAL
	[ A => "SELECT c.id, l.* FROM c, $links l ORDER BY 1, 2, 3" ],
	[ A => "SELECT c.id, l.* FROM c, $links l" ],
	[ A => "SELECT c.name, l.section, l.item FROM c, $links l ORDER BY c.at, 2, 3" ],
	[ A => "SELECT c.id, l.* FROM c CROSS JOIN $links l WHERE c.active ORDER BY 1, 2, 3" ],
	[ A => "SELECT c.id, l.* FROM c LEFT JOIN $links l ON l.item = 1 ORDER BY 1, 2, 3" ],
	[ A => "SELECT c.id, l.link FROM c JOIN $links l ON l.section = 'skills' ORDER BY 1" ],
	[ A => "SELECT c.id, l.link FROM c, $links l WHERE l.section = c.name ORDER BY 1" ],
	[ A => "SELECT c.id, l.* FROM c, $links WITH ORDINALITY l ORDER BY 1, 2, 3" ],
	[ A => "SELECT count(*), count(DISTINCT c.id) FROM c, $links l" ],
	[ A => "SELECT c.grp, count(l.link) FROM c, $links l GROUP BY c.grp ORDER BY 1" ],
	[ A => "SELECT c.id, count(*) FROM c, $links l GROUP BY c.id HAVING count(*) > 1 ORDER BY 1" ],
	[ A => "SELECT DISTINCT l.section FROM c, $links l ORDER BY 1" ],
	[ A => "SELECT DISTINCT l.section FROM c, $links l" ],
	[ A => "SELECT DISTINCT ON (c.id) c.id, l.* FROM c, $links l ORDER BY c.id, l.section DESC" ],
	[   A => "SET enable_hashagg = off;
			SELECT c.id, l.section FROM c, $links l GROUP BY c.id, l.section ORDER BY 1, 2"
	],
	[ A => "SELECT c.id, l.* FROM c, $links l ORDER BY c.id, l.section, l.item FOR UPDATE OF c" ],
	[ A => "SELECT c.id, row_number() OVER (ORDER BY c.id, l.section, l.item) FROM c, $links l" ],
	[ A => "SELECT c.id, l.section FROM c, $links l UNION ALL SELECT 0, 'none'" ],
	[ A => "SELECT * FROM (SELECT c.id, l.* FROM c, $links l OFFSET 0) s ORDER BY 1, 2, 3" ],
	[   A => "WITH s AS MATERIALIZED (SELECT c.id, l.link FROM c, $links l)
			SELECT count(*), max(id) FROM s"
	],
	[ A => "SELECT c.id, f.id, l.* FROM c JOIN few f USING (id), $links l ORDER BY 1, 3, 4" ],
	[ A => "SELECT f.hid, l.* FROM c JOIN few f ON f.id = c.grp, $links l ORDER BY c.id, 2, 3" ],
	[   A => "SELECT c.id, l.link, m.link FROM c, $links l,
			LATERAL hrflow_profile_embedding_links('S', 'm' || c.id, '{\"skills\": 1}') m
			ORDER BY 1, 2, 3"
	],
	[   A => "SELECT c.id, l.section, m.section FROM c, $links l,
			LATERAL hrflow_profile_embedding_links('S', c.hid || l.section, '{\"profile\": 1}') m
			ORDER BY 1, 2, 3"
	],
	[ A => "SELECT c.id, l.link, $ce FROM c, $links l ORDER BY 1, 2" ],
	[   A => "SELECT c.id, hrflow_fetch_vector(l.link) FROM c,
			LATERAL hrflow_profile_embedding_links('S', c.hid, '{\"profile\": 1}') l ORDER BY 1"
	],
	[   A => "SELECT c.id, l.* FROM c,
			LATERAL hrflow_profile_embedding_links('S', fields => '{\"profile\": 1}',
				profile_email => c.hid || '\@example.com') l ORDER BY 1"
	],

	# The path of the link contains no item, so the item is the one in "fields"
	[   A => "SELECT c.id, l.* FROM c, LATERAL hrflow_profile_embedding_links('S',
			'$pathless,id=' || c.id, jsonb_build_object('skills', jsonb_build_array(c.at))) l"
	],
	[   A => "SELECT s.id, l.* FROM (SELECT id, '$pathless,id=' || id AS x,
			jsonb_build_object('skills', jsonb_build_array(at)) AS f FROM c OFFSET 0) s,
			LATERAL hrflow_profile_embedding_links('S', s.x, s.f) l"
	],
	[   A => "SELECT t.n, l.link FROM twice t,
			LATERAL hrflow_profile_embedding_links('S', t.hid, '{\"profile\": 1}') l"
	],
	[   A => "SELECT h.n, l.* FROM holes h
			LEFT JOIN LATERAL hrflow_profile_embedding_links(h.source, h.hid) l ON true
			WHERE h.source IS NOT NULL AND h.hid IS NOT NULL ORDER BY 1, 2, 3"
	],
	[ A => "INSERT INTO sink (id, e) SELECT c.id, to_jsonb(l.link) FROM c, $links l" ],
	[   A => "UPDATE sink SET e = to_jsonb(l.link) FROM c,
			LATERAL hrflow_profile_embedding_links('S', c.hid, '{\"profile\": 1}') l
			WHERE sink.id = c.id"
	],
	[ A => "SELECT p.id, l.* FROM part p, LATERAL hrflow_profile_embedding_links('S', p.hid) l" ],
	[   A => "SELECT x.id, l.link FROM generate_series(1, 30) x(id),
			LATERAL hrflow_profile_embedding_links('S', 'g' || x.id, '{\"profile\": 1}') l"
	],
	[   A => "SELECT x.id, l.* FROM (SELECT id, hid FROM c ORDER BY at LIMIT 9) x,
			LATERAL hrflow_profile_embedding_links('S', x.hid) l ORDER BY 1, 2, 3"
	],

	[   A => "SELECT c.id, l.* FROM c,
			LATERAL hrflow_profile_embedding_links((SELECT 'S' FROM few WHERE id = 1),
				'p' || c.id) l ORDER BY 1, 2, 3"
	],

	# LATERAL, where more rows may be read than are needed
	[ Ag => "SELECT c.id, l.section FROM c, $links l LIMIT 5" ],
	[ Ag => "SELECT c.id, l.section FROM c, $links l OFFSET 7 LIMIT 5" ],
	[   Ag => "SELECT c.id, (SELECT l.link FROM few f,
			LATERAL hrflow_profile_embedding_links('S', f.hid || c.id) l LIMIT 1) FROM c ORDER BY 1"
	],
	[   Ag => "SELECT c.id, EXISTS (SELECT FROM few f,
			LATERAL hrflow_profile_embedding_links('S', f.hid || c.id) l
			WHERE l.section = 'skills') FROM c ORDER BY 1"
	],
	[   Ag => "SELECT f.id, s.* FROM few f, LATERAL (SELECT c.id, l.section FROM c, $links l
			WHERE c.id > f.id LIMIT 4) s"
	],

	# LATERAL that fails
	[ Ae => "SELECT b.n, l.* FROM bad b, LATERAL hrflow_profile_embedding_links('S', b.hid) l" ],
	[   Ae => "SELECT b.n, l.* FROM bad b
			LEFT JOIN LATERAL hrflow_profile_embedding_links('S', b.empty_hid) l ON true"
	],
	[   Ae => "SELECT b.n, l.* FROM bad b,
			LATERAL hrflow_profile_embedding_links('S', (100 / b.zero_at_20)::text) l"
	],
	[   Ae => "SELECT h.n, l.* FROM holes h,
			LATERAL hrflow_profile_embedding_links(h.source, h.hid) l"
	],

	# LATERAL that is not read ahead
	[   N => "SELECT c.id, l.* FROM c,
			LATERAL hrflow_profile_embedding_links('S', c.hid || left(random()::text, 0)) l
			ORDER BY 1, 2, 3"
	],
	[   N => "SELECT c.id, l.* FROM c,
			LATERAL ROWS FROM (hrflow_profile_embedding_links('S', c.hid), unnest(ARRAY[1, 2])) l
			ORDER BY 1, 2, 3"
	],
	[   N =>
		  "SELECT c.id, l.* FROM c, hrflow_profile_embedding_links('S', 'same') l ORDER BY 1, 2, 3"
	],
	[   N => "SELECT c.id, l.* FROM c
			LEFT JOIN hrflow_profile_embedding_links('S', 'same') l ON true ORDER BY 1, 2, 3"
	],
	[   N => "SELECT c.id, l.* FROM c,
			LATERAL hrflow_profile_embedding_links('S', (SELECT c.hid)) l ORDER BY 1, 2, 3"
	],
	[   N => "SELECT c.id, f.id, l.* FROM c LEFT JOIN
			(few f CROSS JOIN LATERAL hrflow_profile_embedding_links('S', c.hid) l)
			ON f.id < 3 ORDER BY 1, 2, 3, 4"
	],
	[   N => "SELECT c.id FROM c
			WHERE EXISTS (SELECT FROM hrflow_profile_embedding_links('S', c.hid) l) ORDER BY 1"
	],
	[ N => "SELECT l.* FROM hrflow_profile_embedding_links('S', 'p1') l ORDER BY 1, 2" ],

	# Partitions and inheritance
	[ A => "SELECT id, $e FROM part ORDER BY id" ],
	[ A => "SELECT id, $e FROM part" ],
	[ A => "SELECT id, $e FROM part LIMIT 13" ],
	[ A => "SELECT tableoid::regclass, id, $e FROM part WHERE k > 0 ORDER BY id LIMIT 9" ],
	[ A => "SELECT id, $e FROM parent" ],
	[ A => "SELECT id, $e FROM parent LIMIT 12" ],
	[ A => "SELECT id, $e FROM ONLY parent" ],

	# Statements that write
	[   '' => "BEGIN; INSERT INTO sink (id, e) SELECT id, $e FROM c ORDER BY id; SELECT id, e
			FROM sink ORDER BY n; ROLLBACK"
	],
	[   '' => "BEGIN; INSERT INTO sink (id, e) SELECT id, $e FROM c ORDER BY id LIMIT 5
			RETURNING id, e; ROLLBACK"
	],
	[ '' => "BEGIN; UPDATE c SET d = $e; SELECT id, d FROM c ORDER BY id; ROLLBACK" ],
	[ '' => "BEGIN; UPDATE c SET d = $e WHERE id < 6 RETURNING id, d; ROLLBACK" ],
	[   '' => "BEGIN; UPDATE c SET d = $ce, name = f.hid FROM few f WHERE f.id = c.id;
			SELECT id, d, name FROM c ORDER BY id; ROLLBACK"
	],
	[   '' => "BEGIN; UPDATE c SET (d, name) = (SELECT $ce, 'x'); SELECT id, d, name FROM c
			ORDER BY id; ROLLBACK"
	],
	[   '' => "BEGIN; UPDATE part SET hid = $e ->> 'profile'; SELECT id, hid FROM part ORDER BY id;
			ROLLBACK"
	],
	[   '' => "BEGIN; UPDATE part SET k = 0, hid = $e ->> 'profile' WHERE k = 1; SELECT id, k, hid
			FROM part ORDER BY id; ROLLBACK"
	],
	[   '' => "BEGIN; UPDATE parent SET hid = $e ->> 'profile'; SELECT tableoid::regclass, *
			FROM parent ORDER BY id; ROLLBACK"
	],
	[ '' => "BEGIN; DELETE FROM few RETURNING id, $e; ROLLBACK" ],
	[   '' =>
		  "BEGIN; INSERT INTO unique_sink SELECT id, $e FROM c ORDER BY id ON CONFLICT DO NOTHING;
			SELECT * FROM unique_sink ORDER BY 1; ROLLBACK"
	],
	[   '' => "BEGIN; INSERT INTO unique_sink SELECT id, $e FROM c ORDER BY id ON CONFLICT (id) DO
			UPDATE SET e = EXCLUDED.e; SELECT * FROM unique_sink ORDER BY 1; ROLLBACK"
	],
	[   '' => "BEGIN; INSERT INTO unique_sink SELECT id FROM few ON CONFLICT (id) DO UPDATE
			SET e = hrflow_profile_embedding('S', EXCLUDED.id::text); SELECT * FROM unique_sink
			ORDER BY 1; ROLLBACK"
	],
	[   '' => "BEGIN; MERGE INTO unique_sink u USING (SELECT id, $e e FROM c) s ON s.id = u.id
			WHEN MATCHED THEN UPDATE SET e = s.e WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.e);
			SELECT * FROM unique_sink ORDER BY 1; ROLLBACK"
	],
	[   '' => "BEGIN; MERGE INTO unique_sink u USING few s ON s.id = u.id WHEN MATCHED THEN UPDATE
			SET e = hrflow_profile_embedding('S', s.hid); SELECT * FROM unique_sink ORDER BY 1;
			ROLLBACK"
	],
	[   '' =>
		  "BEGIN; CREATE TABLE t AS SELECT id, $e e FROM c ORDER BY id; SELECT * FROM t; ROLLBACK"
	],
	[   '' => "BEGIN; CREATE MATERIALIZED VIEW m AS SELECT id, $e e FROM c ORDER BY id;
			REFRESH MATERIALIZED VIEW m; SELECT * FROM m; ROLLBACK"
	],
	[ '' => "BEGIN; SELECT id, $e INTO t FROM c; SELECT * FROM t ORDER BY id; ROLLBACK" ],
	[ '' => "COPY (SELECT id, $e FROM c ORDER BY id) TO STDOUT" ],
	[   g => "BEGIN; WITH w AS (INSERT INTO sink (id, e) SELECT id, $e FROM c ORDER BY id
			RETURNING id, e) SELECT * FROM w LIMIT 3; SELECT count(*) FROM sink; ROLLBACK"
	],
	[ e => "INSERT INTO sink (id, e) SELECT n, $e FROM bad ORDER BY n" ],
	[ e => "UPDATE bad SET hid = $e ->> 'profile'" ],

	# Triggers, row-level security, WHERE CURRENT OF
	[   '' => "BEGIN; INSERT INTO triggered SELECT id, $e FROM c WHERE id < 12;
			UPDATE triggered SET e = hrflow_profile_embedding('S', id::text);
			SELECT * FROM triggered ORDER BY id; ROLLBACK"
	],
	[   '' => "SET ROLE regress_hrflow_ahead; SELECT id, $e FROM visible;
			SELECT id, $e FROM visible LIMIT 3; SELECT id, hrflow_job_embedding(hid) FROM visible"
	],
	[   '' => "BEGIN; DECLARE q CURSOR FOR SELECT id FROM c FOR UPDATE; FETCH 3 FROM q;
			UPDATE c SET d = $e WHERE CURRENT OF q RETURNING id, d; ROLLBACK"
	],

	# Locks, cursors, prepared statements, PL/pgSQL
	[ A => "SELECT id, $e FROM c ORDER BY id FOR UPDATE" ],
	[ A => "SELECT id, $e FROM c ORDER BY id LIMIT 6 FOR SHARE SKIP LOCKED" ],
	[   '' =>
		  "BEGIN; DECLARE q CURSOR FOR SELECT id, $e FROM c ORDER BY id; FETCH 10 FROM q; FETCH 1
			FROM q; FETCH 3 FROM q; ROLLBACK"
	],
	[   '' => "BEGIN; DECLARE q CURSOR FOR SELECT id, $e FROM c; FETCH 5 FROM q; FETCH BACKWARD 3
			FROM q; FETCH 4 FROM q; ROLLBACK"
	],
	[   '' => "BEGIN; DECLARE q CURSOR FOR SELECT id, $e FROM c; FETCH 5 FROM q; FETCH BACKWARD 9
			FROM q; FETCH 4 FROM q; ROLLBACK"
	],
	[   '' => "BEGIN; DECLARE q CURSOR FOR SELECT id, $e FROM c; FETCH ALL FROM q; FETCH BACKWARD 3
			FROM q; FETCH 9 FROM q; ROLLBACK"
	],
	[   '' => "BEGIN; DECLARE q CURSOR FOR SELECT id, $e FROM c; MOVE ALL FROM q; FETCH BACKWARD 3
			FROM q; ROLLBACK"
	],
	[   '' => "BEGIN; DECLARE q CURSOR FOR SELECT id, $e FROM c; FETCH 2 FROM q; FETCH LAST FROM q;
			FETCH FIRST FROM q; FETCH ABSOLUTE 6 FROM q; FETCH RELATIVE -2 FROM q; ROLLBACK"
	],
	[   '' => "BEGIN; DECLARE q SCROLL CURSOR FOR SELECT id, $e FROM c ORDER BY at; FETCH 5 FROM q;
			FETCH BACKWARD 3 FROM q; FETCH PRIOR FROM q; FETCH 8 FROM q; ROLLBACK"
	],
	[   '' => "BEGIN; DECLARE q SCROLL CURSOR FOR SELECT id, hrflow_fetch_vector($e ->> 'profile')
			FROM c; FETCH 5 FROM q; FETCH BACKWARD 3 FROM q; FETCH 2 FROM q; ROLLBACK"
	],
	[   '' =>
		  "BEGIN; DECLARE q NO SCROLL CURSOR FOR SELECT id, $e FROM c ORDER BY id; FETCH 5 FROM q;
			FETCH 6 FROM q; ROLLBACK"
	],
	[   '' =>
		  "BEGIN; DECLARE q CURSOR WITH HOLD FOR SELECT id, $e FROM c ORDER BY id; COMMIT; FETCH 5
			FROM q; CLOSE q"
	],
	[   g => "BEGIN; DECLARE q CURSOR FOR WITH s AS MATERIALIZED (SELECT n,
			hrflow_profile_embedding('S', lower(hid)) FROM bad) SELECT * FROM s; SAVEPOINT s;
			FETCH 3 FROM q; ROLLBACK TO s; FETCH 3 FROM q; SAVEPOINT s; SELECT 1 / 0; ROLLBACK TO s;
			FETCH 2 FROM q; SET LOCAL hrflow_embed.read_ahead = off; FETCH 3 FROM q; ROLLBACK"
	],
	[   '' => "BEGIN; DECLARE q CURSOR FOR SELECT id, $e FROM c LIMIT 12 OFFSET 3; FETCH 5 FROM q;
			FETCH BACKWARD 2 FROM q; FETCH ALL FROM q; FETCH BACKWARD 4 FROM q; FETCH 9 FROM q;
			ROLLBACK"
	],
	[   '' => "BEGIN; DECLARE q CURSOR FOR SELECT id, $e FROM c FOR UPDATE; FETCH 3 FROM q; UPDATE c
			SET name = 'x' WHERE CURRENT OF q RETURNING id; FETCH 1 FROM q; DELETE FROM c
			WHERE CURRENT OF q RETURNING id; FETCH 2 FROM q; ROLLBACK"
	],
	[   '' => "PREPARE p AS SELECT id, $e FROM c WHERE id > \$1 ORDER BY id LIMIT \$2; "
		  . join('; ', map { "EXECUTE p($_, 3)" } 1 .. 7) ],
	[   '' => "SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT id, $e FROM c
			WHERE id > \$1 ORDER BY id LIMIT \$2; EXECUTE p(1, 9); EXECUTE p(30, 3)"
	],
	[   '' => "DO \$\$DECLARE r record; BEGIN FOR r IN SELECT id, $e e FROM c ORDER BY id
			LOOP RAISE NOTICE '% %', r.id, r.e; END LOOP; END\$\$"
	],
	[   g => "DO \$\$DECLARE r record; BEGIN FOR r IN SELECT id, $e e FROM c ORDER BY id LOOP EXIT
			WHEN r.id = 3; END LOOP; END\$\$"
	],
	[   '' => "DO \$\$DECLARE x jsonb; BEGIN SELECT $e INTO x FROM c
			ORDER BY id; RAISE NOTICE '%', x; END\$\$"
	],
	[   '' => "DO \$\$DECLARE x jsonb; BEGIN x := hrflow_profile_embedding('S', 'simple');
			RAISE NOTICE '%', x; END\$\$"
	],
	[ e => "DO \$\$DECLARE x jsonb; BEGIN SELECT $e INTO STRICT x FROM c ORDER BY id; END\$\$" ],
	[   e => "DO \$\$BEGIN PERFORM $e FROM bad ORDER BY n; EXCEPTION
			WHEN no_data_found THEN RAISE NOTICE 'caught'; END\$\$; SELECT id, $e FROM c
			ORDER BY id LIMIT 3"
	],
	[ g => "SELECT * FROM catching()" ],
	[   '' => "DO \$\$DECLARE r record; BEGIN FOR r IN SELECT id, $e e FROM c ORDER BY id
			LOOP RAISE NOTICE '% %', r.id, r.e; COMMIT; END LOOP; END\$\$"
	],
	[ '' => "SELECT id, $e, e(name) FROM c ORDER BY id" ],
	[ '' => "SELECT id, $e, wrapped(name) FROM c ORDER BY id" ],
	[   g => "BEGIN; DECLARE a CURSOR FOR SELECT id, $e FROM c ORDER BY id; DECLARE b CURSOR FOR
			SELECT n, $e FROM twice ORDER BY n; FETCH 3 FROM a; FETCH 3 FROM b; FETCH 3 FROM a;
			FETCH 3 FROM b; ROLLBACK"
	],

	# Parallel query
	(   map {
			[   A => "SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0;
					SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; $_"
			]
		} "SELECT id, $e FROM c WHERE at < 1000 ORDER BY id",
		"SELECT id, hrflow_profile_embedding('S', lower(hid)) FROM c ORDER BY id",
		"SELECT name, hrflow_profile_embedding('S', name), count(*) FROM c GROUP BY name
			ORDER BY name",
		"SELECT c.id, $ce FROM c JOIN twice t ON t.n = c.id ORDER BY 1"),
	[   Ae => "SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0;
			SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
			SELECT n, hrflow_profile_embedding('S', 'p' || 1 / zero_at_20) FROM bad
			WHERE n < 100 ORDER BY n"
	],);

# Use two sessions, so that a query need not wait for a connection.
my %session = map { $_ => Hrflow::Session->new($node) } 'off', 'on';

sub ask
{
	my ($read_ahead, $sql) = @_;
	my $session = $session{$read_ahead};

	$session->send("DISCARD ALL; SET hrflow_embed.read_ahead = $read_ahead;\n$sql;\n"
		  . "\\echo -- done\n\\warn -- done");
	return $session->wait_for(qr/-- done.*-- done/s) =~ s/-- done\s*//gr;
}

# Run a query.  Returns its output, without parts that differ between requests,
# and the number of its requests.
sub run_shape
{
	my ($read_ahead, $sql) = @_;

	$api->reset;
	my $printed = ask($read_ahead, $sql) =~ s/\?X-Amz[^"\s,)}]*//gr;
	return ($printed, scalar($api->log));
}

# Show the first line that differs, because whole results are too long to read.
sub is_same
{
	my @got = split /\n/, $_[0];
	my @expected = split /\n/, $_[1];

	while (@got && @expected && $got[0] eq $expected[0])
	{
		shift @got;
		shift @expected;
	}
	return is($got[0], $expected[0], 'the query prints the same as without read-ahead');
}

foreach my $shape (@shapes)
{
	my ($flags, $sql) = @$shape;
	my ($expected, $sequential) = run_shape('off', $sql);
	my ($got, $requests) = run_shape('on', $sql);
	my $most =
	  $flags =~ /g/ ? 2 * $sequential + 1 : $flags =~ /e/ ? $sequential + $ahead : $sequential;

	subtest $sql =~ s/\s+/ /gr => sub {
		is_same($got, $expected);
		unlike($got, qr/ERROR:  XX000/, 'the query raises no internal error');
		cmp_ok($requests, '<=', $most, "the query makes at most $most requests");
		my ($settings, $statement) = $sql =~ /^((?:SET [^;]*;\s+)*)(.*)$/s;
		if (my ($wanted) = $flags =~ /([AN])/)
		{
			my $plan = ask('on', "$settings; EXPLAIN (COSTS OFF) $statement");
			my $has = $plan =~ /HrflowReadAhead/ ? 'A' : 'N';
			is($has, $wanted, 'the query is ' . ($wanted eq 'N' ? 'not ' : '') . 'read ahead')
			  or diag($plan);
		}
	};
}

foreach my $case ([ 'Memoize', $memoized ], [ 'Incremental Sort', $partly_sorted ])
{
	my ($node_above, $sql) = @$case;
	my ($settings, $statement) = $sql =~ /^(.*;)\s*(.*)$/s;

	like(
		ask('on', "$settings EXPLAIN (COSTS OFF) $statement"),
		qr/$node_above.*HrflowReadAhead|HrflowReadAhead.*$node_above/s,
		"a plan with $node_above is read ahead");
}

# 100 candidates, each of which is joined with four rows, take 100 requests
{
	$api->reset;
	my $printed = ask(
		'on',
		"SELECT count(e) FROM (SELECT $e AS e FROM (SELECT 'h' || i AS hid
			FROM generate_series(1, 100) i) s CROSS JOIN generate_series(1, 4) n
			ORDER BY hid OFFSET 0) t");
	like($printed, qr/^400$/m, 'each of 400 joined rows has a result');
	is($api->stats->{api_requests}, 100, '400 joined rows of 100 candidates take 100 requests');
}

# The statistics count the requests as they count those of a batch
{
	my $counts = q{SELECT 'counted', requests, retries, api_requests FROM hrflow_embed_stats};
	my @counted;

	foreach my $statement (
		"SELECT count(e) FROM (SELECT $e AS e FROM c OFFSET 0) t",
		q{SELECT count(*) FROM hrflow_profile_embeddings('S', (SELECT array_agg(hid) FROM c),
			'{"profile": 1}')})
	{
		ask('on', 'SELECT hrflow_embed_stats_reset()');
		push @counted, ask('on', "$statement; $counts") =~ /^(counted.*)$/m;
	}
	is($counted[0], 'counted|40|0|40', 'statistics count the requests of a query');
	is($counted[1], $counted[0], 'statistics count the requests of a batch as those of a query');
}

# Statements whose plans EXPLAIN does not show above
my $slow = q{hrflow_profile_embedding('S', 'fault:latency=50,id=' || id)};
foreach my $statement (
	"INSERT INTO sink (id, e) SELECT id, $slow FROM c WHERE id < 9",
	"UPDATE c SET d = $slow WHERE id < 9",
	"CREATE TABLE t AS SELECT id, $slow FROM c WHERE id < 9",
	"SELECT hrflow_profile_embedding((SELECT 'S' FROM few WHERE id = 1),
		'fault:latency=50,id=' || id) FROM c",
	"SELECT hrflow_profile_embedding(COALESCE(source, (SELECT hid FROM few WHERE id = 1)),
		'fault:latency=50,id=' || id) FROM c WHERE id < 9",
	"SELECT id, $slow FROM c WHERE id < 6 OFFSET 4 LIMIT 9223372036854775807",
	"SELECT * FROM (SELECT id, $slow FROM c WHERE id < 4 OFFSET 9223372036854775807) s LIMIT 3",
	"WITH s AS (SELECT $slow FROM c WHERE upper(name) > '' AND id < 9) SELECT * FROM s",
	"WITH w AS (UPDATE c SET d = $slow WHERE upper(name) > '' AND id < 9) SELECT 1",
	"WITH w AS (UPDATE c SET d = $slow WHERE upper(name) > '' AND id < 9 RETURNING id)
		SELECT * FROM w LIMIT 1",
	"SELECT ARRAY(SELECT $slow FROM c WHERE upper(name) > '' AND id < 9)",
	"SELECT 'x' IN (SELECT $slow ->> 'profile' FROM c WHERE upper(name) > '' AND id < 9)",
	"SELECT * FROM (SELECT $slow FROM c WHERE upper(name) > '' AND id < 9 OFFSET 0) s, few",
	"SET LOCAL enable_mergejoin = off; SET LOCAL enable_nestloop = off; SELECT count(e)
		FROM (SELECT id, $slow e FROM c WHERE upper(name) > '' AND id < 9 OFFSET 0) s
		JOIN few USING (id)",
	"SELECT * FROM (SELECT $slow FROM c WHERE ctid >= '(0,1)' OFFSET 0) s $join_one LIMIT 9",
	"SET LOCAL enable_sort = off; SELECT * FROM (SELECT $slow FROM (SELECT DISTINCT n AS id
		FROM bad WHERE 100 / n > 0) t OFFSET 0) s $join_one LIMIT 9",
	"WITH t AS MATERIALIZED (SELECT id FROM c) SELECT * FROM (SELECT $slow FROM t OFFSET 0) s
		$join_one LIMIT 9",
	"SELECT * FROM (SELECT hrflow_text_embedding(v::text) FROM (SELECT $slow v FROM c OFFSET 0) t
		WHERE current_user > '' OFFSET 0) s $join_one LIMIT 9",
	"CREATE MATERIALIZED VIEW m AS SELECT id, $slow FROM c WHERE id < 9 WITH NO DATA;
		REFRESH MATERIALIZED VIEW m",
	"COPY (SELECT id, $slow FROM c WHERE id < 9) TO STDOUT",
	"DECLARE q CURSOR FOR SELECT id, $slow FROM c; FETCH 8 FROM q",
	'SELECT * FROM slow_rows()')
{
	$api->reset;
	ask('on', "BEGIN; $statement; ROLLBACK");
	cmp_ok($api->stats->{max_in_flight}, '>', 1, 'requests overlap in ' . $statement =~ s/\s+/ /gr);
}

# Arguments that may raise an error are evaluated in a subtransaction, which is
# possible above parallel workers since PostgreSQL 17
if ($node->pg_version >= 17)
{
	my $parallel = 'SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
		SET min_parallel_table_scan_size = 0;';
	my $statement = "SELECT id, $slow FROM c WHERE at < 1000";

	like(
		ask('on', "$parallel EXPLAIN $statement"),
		qr/HrflowReadAhead.*Gather/s,
		'calls above parallel workers are read ahead');
	$api->reset;
	ask('on', "$parallel $statement");
	cmp_ok($api->stats->{max_in_flight},
		'>', 1, 'requests above parallel workers overlap even if arguments may raise an error');
}

# The requests for texts can be much larger than the rows, because of TOAST
{
	my $plan = ask(
		'on',
		"SET work_mem = '4MB';
		EXPLAIN (ANALYZE, COSTS OFF) SELECT hrflow_text_embedding(txt) FROM long");
	my ($rows) = $plan =~ /Maximum Rows Ahead: (\d+)/ or diag($plan);

	cmp_ok($rows, '<=', 5, 'no more requests of 1 MB are read ahead than fit into work_mem');
}

# The requests of a query and those of a function that it calls wait for the end
# of the same pause
{
	my $limited = Hrflow::StandIn->new;

	$limited->script('status=429,retry_after=1', count => 1);
	my $began = time;
	my $printed = ask('on',
			"SET hrflow_embed.max_attempts = 5; SET hrflow_embed.base_url = '"
		  . $limited->base_url
		  . "'; SELECT id, $e IS NOT NULL, wrapped(name) IS NOT NULL FROM c LIMIT 12");
	is(scalar(() = $printed =~ /^\d+\|t\|t$/mg), 12, 'a query with nested calls outlasts a pause');

	# A wait for a probe of the same backend ends after a second, and for 24 requests
	# would add up.  The requests are the same, so this can only be measured.
	cmp_ok(time - $began, '<', 20, 'nested calls do not wait for a probe of the same backend');
}

# A sort below LIMIT keeps only the rows that are needed
foreach my $case (
	[ 'a call' => "SELECT n, hrflow_text_embedding('t' || n) FROM many ORDER BY x LIMIT 5" ],
	[   'a call in a call' => "SELECT n, hrflow_fetch_vector(hrflow_profile_embedding('S', 'p' || n,
			'{\"profile\": 1}') ->> 'profile') FROM many ORDER BY x LIMIT 3 OFFSET 2"
	],
	[   'a call in a subquery' => "SELECT * FROM (SELECT n, hrflow_text_embedding('t' || n)
			FROM many ORDER BY x OFFSET 0) s LIMIT 5"
	])
{
	my ($what, $sql) = @$case;

	foreach my $read_ahead ('off', 'on')
	{
		like(
			ask($read_ahead, "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) $sql"),
			qr/HrflowReadAhead.*Sort Method: top-N heapsort/s,
			"the sort below $what keeps only the rows needed if read_ahead is $read_ahead");
	}
	is(ask('on', $sql), ask('off', $sql), "the rows of a sort below $what do not change");
}

is( ask('on', "SELECT n, count(e) FROM (VALUES (2), (9), (NULL), (5), (0), (3)) v (n),
		LATERAL (SELECT $e e FROM c ORDER BY name, id LIMIT n) s GROUP BY n ORDER BY n"),
	"2|2\n3|3\n5|5\n9|9\n|40\n",
	'a sort that is executed again keeps as many rows as its LIMIT then needs');

# Equal volatile columns remain different columns
like(
	ask('on', "SELECT count(*), count(*) FILTER (WHERE a = b) FROM
		(SELECT nextval('q') a, nextval('q') b, $e FROM few ORDER BY a, b OFFSET 0) s"),
	qr/^3\|0$/m,
	'equal volatile columns have different values');

# PostgreSQL 18 shows which nodes are disabled
{
	my $plan =
	  ask('on', "SET enable_seqscan = off; EXPLAIN (COSTS OFF) SELECT n, $e FROM bad LIMIT 3");

	cmp_ok(scalar(() = $plan =~ /Disabled/g), '<=', 1, 'only the scan is shown as disabled')
	  or diag($plan);
}

# An error unrelated to the row ends the statement, but nothing else
like(
	ask('on', "SELECT hrflow_profile_embedding('S', scarce(n)) FROM bad; SELECT 'goes on'"),
	qr/goes on.*53200/s,
	'a session continues after running out of memory while reading ahead');

# A cursor whose query does not tell how many rows are needed reads ahead, but
# none of its requests is in flight while the session is idle
{
	$session{on}->ask(
		"DISCARD ALL; BEGIN; DECLARE q CURSOR FOR WITH s AS MATERIALIZED (
			SELECT $e AS e FROM (SELECT CASE WHEN n = 4 THEN 'fault:latency=1000,id=4'
				WHEN n > 12 THEN 'fault:latency=100,id=' || n ELSE 'p' || n END AS hid
				FROM generate_series(1, 20) n) t)
		SELECT e ->> 'profile' FROM s;");
	$api->reset;
	my $fetched = $session{on}->ask('FETCH 3 FROM q;');
	my $in_flight = $api->stats->{in_flight};

	is(scalar(() = $fetched =~ m{/p\d}g), 3, 'a cursor returns the rows that are fetched');
	is($in_flight, 0, 'a cursor leaves no request in flight when FETCH has returned');
	like($session{on}->ask('FETCH 1 FROM q;'),
		qr/fault/, 'a cursor later returns the rows that it has read ahead');
	is(scalar(grep { $_->{query} =~ /fault/ } $api->log),
		1, 'a cursor does not request rows again that it has read ahead');
	$session{on}->ask('FETCH ALL FROM q;');
	cmp_ok($api->stats->{max_in_flight}, '>', 1, 'a cursor reads ahead');
	$session{on}->ask('ROLLBACK;');
}

# The time that a row takes does not count towards request_timeout: the replies to the
# requests in flight have arrived in the meantime, or are then received
{
	my $settings = "DISCARD ALL; SET hrflow_embed.request_timeout = '1s';";
	my $statement = "SELECT n, x IS NOT NULL, pg_sleep(CASE n WHEN 1 THEN 1.5 ELSE 0 END) IS NULL
		FROM (SELECT n, %s AS x FROM job ORDER BY n OFFSET 0) s;";
	my $rows = join('', map { "$_|t|f\n" } 1 .. 20) . "-- done\n";

	# A busy machine may take longer for the other replies, too, so try several times.
	my $run = sub {
		my ($call) = @_;
		my $printed;

		for my $try (1 .. 5)
		{
			$api->reset;
			$printed = $session{on}->ask("$settings " . sprintf($statement, $call));
			last if $printed eq $rows && $api->stats->{api_requests} == 20 || $call =~ /silent/;
		}
		return $printed;
	};

	is( $run->(
			"hrflow_text_embedding(CASE n WHEN 1 THEN txt ELSE 'fault:latency=300,id=' || n END)"),
		$rows,
		'a row that takes longer than request_timeout does not affect other rows');
	is($api->stats->{api_requests}, 20, 'a row that takes long does not cost further requests');

	# Some replies arrive after the row, longer than request_timeout after the requests.
	is( $run->(
			"hrflow_profile_embedding('S', CASE WHEN n IN (2, 3) THEN 'fault:latency=1900,id='
				ELSE 'p' END || n)"),
		$rows,
		'requests in flight go on after a row that takes longer than request_timeout');
	is($api->stats->{api_requests}, 20, 'a row that takes long does not repeat slow requests');

	# Requests without a reply still time out.
	like(
		$run->(
			"hrflow_profile_embedding('S', CASE n WHEN 1 THEN 'p' ELSE 'fault:silent,id=' END || n)"
		),
		qr/did not answer in time/,
		'requests in flight time out after a row that takes longer than request_timeout');
}

# A row changed by another session is computed from its new values
{
	my $other = Hrflow::Session->new($node);

	$other->ask("BEGIN; UPDATE c SET hid = 'changed' WHERE id = 3;");
	$api->reset;
	$session{on}->send(
		"DISCARD ALL; BEGIN;
		UPDATE c SET d = $e WHERE id < 6 RETURNING id, d ->> 'profile'; ROLLBACK;\n\\echo -- done");
	$node->poll_query_until('postgres',
		"SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
	  or die 'no session waits for a lock';
	$other->ask("COMMIT;");
	my %link = $session{on}->wait_for(qr/-- done/) =~ /^(\d+)\|(.*)$/mg;
	like($link{3}, qr{changed/}, 'an UPDATE requests the profile to which a row has been changed');
	like($link{4}, qr{p4/}, 'an UPDATE continues after a row that has been changed');
	is(scalar($api->log), 6, 'an UPDATE makes only the call of a changed row again');
	$other->finish;
}

# If a function is altered while a query is executed, the calls for a row changed by
# another session are evaluated as the altered function requires
{
	my $other = Hrflow::Session->new($node);

	$other->ask('SELECT pg_advisory_lock(66);');
	$session{on}->send(
		"DISCARD ALL; BEGIN;
		UPDATE c SET d = $e, name = waits(id) WHERE id < 6 RETURNING id, d ->> 'profile', name;
		ROLLBACK;\n\\echo -- done");
	$node->poll_query_until('postgres',
		"SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'advisory'")
	  or die 'no session waits for the lock';
	$other->ask("UPDATE c SET hid = 'again' WHERE id = 4;");
	$other->ask('ALTER FUNCTION hrflow_profile_embedding SECURITY DEFINER;');
	$other->ask('SELECT pg_advisory_unlock(66);');
	my $printed = $session{on}->wait_for(qr/-- done/);
	my %link = $printed =~ /^(\d+)\|(.*)$/mg;
	$other->ask('ALTER FUNCTION hrflow_profile_embedding SECURITY INVOKER;');
	is(scalar(keys %link), 5, 'an UPDATE continues after its function has been altered')
	  or diag($printed);
	like($link{4} // '',
		qr{again/.*\|n4$}, 'an UPDATE calls the altered function for a changed row');
	like($link{5} // '', qr{p5/.*\|n5$}, 'an UPDATE uses the calls that it has made before');
	$other->finish;
}

cmp_ok(scalar(@shapes), '>=', 150, 'there are at least 150 queries');

done_testing();
