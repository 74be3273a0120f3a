# Ranking under a condition, with an index that returns too few rows, and for roles
# to whom row-level security shows only a part of the store; also the warnings of
# hrflow_match(), and the parts of a weighted similarity.  This is not a regression
# test because it needs pgvector.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use Hrflow::Node;
use Hrflow::StandIn;
use PostgreSQL::Test::Utils ();
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new('conditions', $api, link_hosts => '127.0.0.1');

sub sql { return $node->safe_psql('postgres', @_); }

# Return the output of a statement, and the messages that it raises.
sub output_and_notices
{
	my ($statement) = @_;
	my ($status, $out, $err) = $node->psql('postgres', $statement);

	return ($out, $err);
}

# Return the output of a statement, and the plans of all statements that it executes.
sub explained
{
	my ($statement) = @_;

	return output_and_notices(
		"LOAD 'auto_explain';
		SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;
		SET auto_explain.log_level = notice;
		$statement");
}

my $has_pgvector = sql(q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});
my $nprofiles = 3000;
my $query = "(SELECT array_agg(sin(i * 0.37)::real) FROM generate_series(1, 16) i)";

# Create profiles of two sources, with vectors of two sections, one of which has
# several items.  The vectors have random directions, or if $grouped is large, are
# grouped around eleven directions.  ivfflat needs groups for its lists, while the
# graph of HNSW may lose a group that is far from all others.
sub make_store
{
	my ($name, $type, $grouped) = @_;

	$grouped //= 0;

	sql(qq{
		SELECT hrflow_create_store('$name', '$type');
		INSERT INTO $name (source_id, profile_id, section, item, vector)
		SELECT CASE WHEN p % 10 = 0 THEN 'small' ELSE 'large' END, 'p' || p, section, item,
			   (SELECT array_agg(($grouped * sin(p % 11 * 5.1 + i * i)
								 + sin(p * 7.3 + item * 1.7 + length(section) + i * i * p))::real)
				  FROM generate_series(1, 16) i)
		  FROM generate_series(1, $nprofiles) p,
			   (VALUES ('profile', 0), ('skills', 0), ('skills', 1), ('skills', 2))
				s (section, item);
		VACUUM ANALYZE $name});
	return;
}

# Return the expected result by its definition, in SQL.
sub definition
{
	my ($name, $k, $section, $condition) = @_;

	return sql(
		qq{
		SELECT profile_id,
			   round(max(hrflow_cosine_similarity(vector::real[], $query))::numeric, 5) s
		  FROM $name WHERE section = '$section' AND $condition
		 GROUP BY source_id, profile_id ORDER BY 2 DESC, 1 LIMIT $k});
}

sub answer
{
	my ($name, $k, $section, $arguments) = @_;

	return sql(
		qq{
		SELECT profile_id, round(similarity::numeric, 5) s
		  FROM hrflow_match('$name', $query, $k, '$section', $arguments) ORDER BY 2 DESC, 1});
}

sub check_conditions
{
	my ($name, $how, $recall) = @_;
	my $every =
	  sub { "(SELECT array_agg('p' || i * $_[0]) FROM generate_series(1, $nprofiles) i)" };

	foreach my $case (
		[   'a few profiles',
			"profiles => '{p1,p20,p300,p300,nobody,NULL}'",
			"profile_id IN ('p1', 'p20', 'p300')" ],
		[   'one in a hundred profiles',
			'profiles => ' . $every->(100),
			'substr(profile_id, 2)::int % 100 = 0' ],
		[   'every second profile',
			'profiles => ' . $every->(2),
			'substr(profile_id, 2)::int % 2 = 0' ],
		[ 'a small source', "source_id => 'small'", "source_id = 'small'" ],
		[ 'a large source', "source_id => 'large'", "source_id = 'large'" ],
		[   'some profiles of a source',
			"source_id => 'small', profiles => '{p10,p11,p20}'",
			"source_id = 'small' AND profile_id IN ('p10', 'p11', 'p20')" ],
		[ 'no profile', "profiles => '{}'", 'false' ],
		[ 'the identifier NULL', "profiles => '{NULL}'", 'false' ],
		[ 'a source that does not exist', "source_id => 'none'", 'false' ])
	{
		my ($what, $arguments, $condition) = @$case;

		foreach my $section ('profile', 'skills')
		{
			my @wanted = split /\n/, definition($name, 10, $section, $condition);
			my @found = split /\n/, answer($name, 10, $section, $arguments);
			my %is_wanted = map { $_ => 1 } @wanted;

			is(scalar(@found), scalar(@wanted),
				"a search $how in $section for $what returns as many rows as exist");
			cmp_ok(
				scalar(grep { $is_wanted{$_} } @found),
				'>=',
				$recall * @wanted,
				"a search $how in $section for $what finds the best profiles");
		}
	}
	is( sql(qq{SELECT count(*), bool_and(profile_id IN ('p10', 'p11'))
		FROM hrflow_match_weighted('$name',
			$query, '{"profile": 1, "skills": 2}', 5, '{p10,p11,nobody}')}),
		'2|t',
		"a weighted search $how returns only the requested profiles");
	is( sql(qq{SELECT count(*), bool_and(source_id = 'small') FROM hrflow_match_weighted('$name',
			$query, '{"profile": 1, "skills": 2}', 500, source_id => 'small')}),
		$nprofiles / 10 . '|t',
		"a weighted search $how returns all profiles of the requested source");
	return;
}

make_store('plain', 'real[]');
check_conditions('plain', 'without an index', 1);

# A hundred sources are too many to look up the profiles of each separately.
sql(q{
	SELECT hrflow_create_store('sources', 'real[]');
	INSERT INTO sources SELECT 'source ' || i % 100, 'p' || i / 100, 'profile', 0, ARRAY[i, 1]
		FROM generate_series(0, 999) i});
is( sql(q{SELECT count(*), count(DISTINCT source_id), min(profile_id), max(profile_id)
		FROM hrflow_match('sources', '{1,0}', 1000, profiles => '{p3,p7}')}),
	'200|100|p3|p7',
	'an identifier is found in each of a hundred sources');

# Vectors that are stored out of line are read by a few scans of the index of the
# TOAST table, rather than by one scan for each vector.
sql(q{
	SELECT hrflow_create_store('long', 'real[]');
	INSERT INTO long SELECT 'acme', 'p' || p, section, 0,
			(SELECT array_agg(sin(p * i + length(section))::real) FROM generate_series(1, 600) i)
		FROM generate_series(1, 500) p, unnest('{a,bb,ccc}'::text[]) section ORDER BY p, section;
	VACUUM ANALYZE long});
my $scans = q{
	SELECT pg_stat_force_next_flush() \\g /dev/null
	SELECT sum(idx_scan) FROM pg_stat_all_indexes
		WHERE relid = (SELECT reltoastrelid FROM pg_class WHERE relname = 'long');};

# The counts of a session are complete once it has ended.
$node->poll_query_until('postgres',
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'client backend'")
  or die;
my @scans = split /\n/, sql(
	"$scans SELECT string_agg(profile_id, ' ') FROM hrflow_match('long',
		(SELECT vector FROM long WHERE profile_id = 'p7' AND section = 'bb'), 1, 'bb'); $scans");
is($scans[1], 'p7', 'a vector that is stored out of line is found');
cmp_ok($scans[2] - $scans[0],
	'<', 10, 'a search does not scan the TOAST index for each of 500 vectors');
is( sql(q{
		SELECT string_agg(profile_id, ' ' ORDER BY profile_id)
		  FROM hrflow_match('long', (SELECT vector FROM long WHERE profile_id = 'p7' AND section = 'bb'),
			  10, 'bb', ARRAY(SELECT 'p' || i * 97 % 500 FROM generate_series(1, 5) i))}),
	'p194 p291 p388 p485 p97',
	'vectors that are stored out of line are found in any order');

# Unknown sections
foreach my $case (
	[ "hrflow_match('plain', $query, 10, 'profil')", '^$', 'profil' ],
	[   qq{hrflow_match_weighted('plain', $query, '{"profile": 1, "skils": 1}')}, '^(.+\n){9}.+$',
		'skils' ])
{
	my ($call, $rows, $section) = @$case;
	my ($out, $err) = output_and_notices("SELECT profile_id FROM $call");

	like($out, qr/$rows/, "the misspelled section $section matches no vector");
	like(
		$err,
		qr/WARNING:\ \ store\ public\.plain\ has\ no\ vector\ of\ section\ "$section"\n
			DETAIL:\ \ The\ store\ has\ vectors\ of\ "profile",\ "skills"\./x,
		"a warning about section $section names the existing sections");
}
foreach my $call (
	"hrflow_match('plain', $query)",
	"hrflow_match('plain', $query, profiles => '{nobody}')",
	qq{hrflow_match_weighted('plain', $query, '{"profile": 1}', source_id => 'none')})
{
	my ($out, $err) = output_and_notices("SELECT count(*) FROM $call");

	is($err, '', "$call raises no warning");
}

# Very large and very small elements
sql(q{
	SELECT hrflow_create_store('edges', 'real[]');
	INSERT INTO edges VALUES ('acme', 'large', 'profile', 0, '{1e20,1e20,1}'),
		('acme', 'largest', 'profile', 0, '{3e38,3e38,3e38}'),
		('acme', 'small', 'profile', 0, '{1e-40,1e-40,0}'),
		('acme', 'infinite', 'profile', 0, '{Infinity,0,0}'),
		('acme', 'nan', 'profile', 0, '{NaN,0,0}')}
);
is( sql(q{SELECT string_agg(profile_id || ' ' || round(similarity::numeric, 6), ', '
	ORDER BY profile_id)
		FROM hrflow_match('edges', '{1,1,0}')}),
	'large 1.000000, largest 0.816497, small 1.000000',
	'vectors with very large or small elements are ranked, but not infinite ones');

# The parts of a weighted similarity
is( sql(q{
		SELECT profile_id, parts, round(similarity::numeric, 6) =
			   (SELECT round(sum(value::numeric), 6) FROM jsonb_each_text(parts)), section
		  FROM hrflow_match_weighted('plain',
			  (SELECT vector FROM plain WHERE profile_id = 'p7' AND section = 'profile'),
			  '{"profile": 0.25}', 1)}),
	'p7|{"profile": 0.25}|t|profile',
	'hrflow_match_weighted() returns the parts of the similarity');
sql(q{DELETE FROM plain WHERE profile_id = 'p7' AND section = 'skills'});
is( sql(q{
		SELECT profile_id, parts ? 'skills', parts ? 'profile'
		  FROM hrflow_match_weighted('plain',
			  (SELECT vector FROM plain WHERE profile_id = 'p7' AND section = 'profile'),
			  '{"profile": 1, "skills": 1}', 10, '{p7,p8}') ORDER BY 1}),
	"p7|f|t\np8|t|t",
	'a section that a profile lacks is not among the parts of its similarity');

# A table of vectors without a table of profiles, such as a partition or a shard
sql(q{
	CREATE TABLE whole (LIKE plain) PARTITION BY LIST (source_id);
	CREATE TABLE part PARTITION OF whole FOR VALUES IN ('small');
	CREATE TABLE rest PARTITION OF whole DEFAULT;
	INSERT INTO whole SELECT * FROM plain});
is( sql("SELECT count(*), count(DISTINCT source_id) FROM hrflow_match('part', $query, 500)"),
	$nprofiles / 10 . '|1',
	'a partition without a table of profiles is ranked');
is( sql("SELECT * FROM hrflow_match('whole', $query)"),
	sql("SELECT * FROM hrflow_match('plain', $query)"),
	'a partitioned table without a table of profiles is ranked');

# A role to which row-level security shows a part of the store
sql(q{
	CREATE ROLE reader;
	GRANT SELECT ON plain TO reader;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO reader;
	ALTER TABLE plain ENABLE ROW LEVEL SECURITY;
	CREATE POLICY own_source ON plain FOR SELECT TO reader
		USING (source_id = current_setting('app.source', true) AND current_user = 'reader')});
foreach my $source ('small', 'large')
{
	is( sql("SET ROLE reader; SET app.source = '$source';
			SELECT count(*), min(source_id), max(source_id)
				FROM hrflow_match('plain', $query, 3000)"),
		$nprofiles / 10 * ($source eq 'small' ? 1 : 9) . "|$source|$source",
		"the policy shows a reader the profiles of the $source source");
}
is( sql("SET ROLE reader; SET app.source = 'small';
		SELECT count(*) FROM hrflow_match('plain', $query, 10, profiles => '{p10,p11,p20}')"),
	'2',
	'a reader does not get profiles hidden by a policy by their identifiers');
is(sql("SET ROLE reader; SELECT count(*) FROM hrflow_match('plain', $query)"),
	'0', 'a reader from whom a policy hides all profiles gets none');
is(sql("SELECT count(*) FROM hrflow_match('plain', $query)"),
	'10', 'the owner of the table is not restricted by its policy');
sql('REVOKE SELECT ON plain FROM reader');
like(
	$node->error_of("SET ROLE reader; SELECT * FROM hrflow_match('plain', $query)"),
	qr/^42501: permission denied for table plain/,
	'a role without the privilege to SELECT is refused');
sql('ALTER TABLE plain DISABLE ROW LEVEL SECURITY');

# Ranking by similarity and full-text search, as described in docs/ranking.md
sql(q{
	SELECT hrflow_create_store('hybrid', 'real[]');
	INSERT INTO hybrid VALUES ('acme', 'near', 'profile', 0, '{1,0}'),
		('acme', 'both', 'profile', 0, '{1,1}'), ('acme', 'said', 'profile', 0, '{0,1}');
	CREATE TABLE candidate (hrflow_id text PRIMARY KEY, resume tsvector);
	INSERT INTO candidate VALUES ('near', to_tsvector('english', 'a welder')),
		('both', to_tsvector('english', 'night nurse, then paediatric nurse')),
		('said', to_tsvector('english', 'nurse'))});
is( sql(q{
		WITH near AS (
			SELECT profile_id, row_number() OVER (ORDER BY similarity DESC) AS rank
			  FROM hrflow_match('hybrid', '{1,0}', 100)),
		said AS (
			SELECT hrflow_id AS profile_id,
				   row_number() OVER (ORDER BY ts_rank_cd(resume, query) DESC) AS rank
			  FROM candidate, websearch_to_tsquery('english', 'nurse') AS query
			 WHERE resume @@ query
			 ORDER BY rank LIMIT 100)
		SELECT profile_id, near.rank, said.rank,
			   round(coalesce(1.0 / (60 + near.rank), 0)
				+ coalesce(1.0 / (60 + said.rank), 0), 5) AS score
		  FROM near FULL JOIN said USING (profile_id)
		 ORDER BY score DESC LIMIT 10}),
	"both|2|1|0.03252\nsaid|3|2|0.03200\nnear|1||0.01639",
	'reciprocal rank fusion combines rankings by similarity and full-text search');

SKIP:
{
	skip 'pgvector is not available', 1 unless $has_pgvector;

	my ($status, $out, $err);

	sql('CREATE EXTENSION vector');
	foreach my $case (
		[ 'vectors', 'vector(16)', 'hnsw', 0.9, 0 ],
		[ 'halves', 'halfvec(16)', 'hnsw', 0.9, 0 ],
		[ 'lists', 'vector(16)', 'ivfflat', 0.8, 3 ])
	{
		my ($name, $type, $method, $recall, $grouped) = @$case;

		make_store($name, $type, $grouped);
		foreach my $section ('profile', 'skills')
		{
			my $statement = sql("SELECT hrflow_index_statement('$name', '$section')");

			$statement =~ s/USING hnsw (.*) WHERE/USING ivfflat $1 WITH (lists = 10) WHERE/
			  if $method eq 'ivfflat';
			sql($statement);
		}
		check_conditions($name, "through $method on $type", $recall);
		cmp_ok(sql("SELECT hrflow_match_recall('$name', 'profile', 10)"),
			'>=', $recall, "hrflow_match_recall() measures the recall of $name");
		cmp_ok(sql("SELECT hrflow_match_recall('$name', 'skills', 3, 50)"),
			'<=', 1, "hrflow_match_recall() returns at most 1 for $name");
	}
	like(
		$node->error_of("SELECT hrflow_match_recall('plain')"),
		qr/^55000: store public\.plain has no usable index for section "profile"/,
		'hrflow_match_recall() raises an error if there is no index');
	is(sql("SELECT hrflow_match_recall('vectors', k => NULL)"),
		'', 'hrflow_match_recall() returns null for a null argument');

	# Indexes of both access methods on the same expression, of which the planner chooses
	# IVFFlat if it is to read a single list
	make_store('both_methods', 'vector(16)', 3);
	sql(sql("SELECT hrflow_index_statement('both_methods')"));
	sql(q{CREATE INDEX ON both_methods USING ivfflat (vector vector_cosine_ops)
			WITH (lists = 50) WHERE section = 'profile'});
	cmp_ok(sql("SELECT hrflow_match_recall('both_methods')"),
		'>=', 0.9, 'the recall is high if there is an index of each access method');

	# An index may return profiles that satisfy a condition in the wrong order if
	# they are in clusters far from the query.  If only a few profiles satisfy it,
	# it is cheaper to compare all of these, and the result is exact.
	sql(q{
		SELECT hrflow_create_store('clusters', 'vector(16)');
		INSERT INTO clusters SELECT 'acme', 'p' || p, 'profile', 0,
				(SELECT array_agg((sin(p % 100 * 5.1 + i * i) + sin(p * 7.3 + i * i * p) / 4)::real)
				   FROM generate_series(1, 16) i)
			FROM generate_series(1, 20000) p;
		VACUUM ANALYZE clusters});
	sql(sql("SELECT hrflow_index_statement('clusters')"));
	foreach my $case (
		[ '1 % of the profiles in all clusters', 'p BETWEEN 701 AND 900' ],
		[ '1 % of the profiles in one cluster', 'p % 100 = 7' ],
		[ '5 % of the profiles in all clusters', 'p <= 1000' ],
		[ '5 % of the profiles in five clusters', 'p % 100 < 5' ])
	{
		my ($what, $condition) = @$case;
		my $profiles =
		  "(SELECT array_agg('p' || p) FROM generate_series(1, 20000) p WHERE $condition)";

		is(sql("SELECT hrflow_match_recall('clusters', sample => 30, profiles => $profiles)"),
			'1', "a search among $what has a recall of 1");
		($out, $err) =
		  explained("SELECT count(*) FROM hrflow_match('clusters', $query, profiles => $profiles)");
		is($out, '10', "a search among $what returns ten rows");
		unlike($err, qr/clusters_vector_idx/, "a search among $what does not use the index");
	}

	# A scan of the index may visit a third of the 20,000 vectors.  A weighted search looks
	# for ten times as many profiles as it returns.
	foreach my $case (
		[ "hrflow_match('clusters', $query, 6000)", 6000, 1 ],
		[ "hrflow_match('clusters', $query, 7000)", 7000, 0 ],
		[ qq{hrflow_match_weighted('clusters', $query, '{"profile": 1}', 600)}, 600, 1 ],
		[ qq{hrflow_match_weighted('clusters', $query, '{"profile": 1}', 700)}, 700, 0 ])
	{
		my ($call, $k, $by_index) = @$case;

		($out, $err) = explained("SELECT count(*) FROM $call");
		is($out, $k, "a search for $k of 20,000 profiles returns them");
		is($err =~ /Index Scan using clusters_vector_idx/ ? 1 : 0,
			$by_index,
			"a search for $k of 20,000 profiles uses an index only if it can return enough");
	}

	# A policy is a condition that only the executor knows, so the index is searched.
	# As many further rows are taken from it as under other conditions.
	sql(q{
		GRANT SELECT ON clusters TO reader;
		CREATE TABLE query AS SELECT n,
				(SELECT array_agg(sin(i * 0.37 * n)::real) FROM generate_series(1, 16) i) AS vector
			FROM generate_series(1, 30) n;
		GRANT SELECT ON query TO reader;
		ALTER TABLE clusters ENABLE ROW LEVEL SECURITY;
		CREATE POLICY five_clusters ON clusters FOR SELECT TO reader
			USING (substr(profile_id, 2)::int % 100 < 5)});
	my ($rows, $best) = split /\|/, sql(
		q{
		SET ROLE reader;
		SELECT count(*), count(*) FILTER (WHERE m.profile_id IN (
				SELECT c.profile_id FROM clusters c
				ORDER BY hrflow_vector_similarity(c.vector, q.vector) DESC LIMIT 10))
			FROM query q, LATERAL hrflow_match('clusters', q.vector) m});
	is($rows, '300', 'a reader to whom a policy shows 5 % of the profiles gets ten in each search');
	cmp_ok($best, '>=', 294,
		'a reader to whom a policy shows 5 % of the profiles gets the best of these by an index');
	($out, $err) =
	  explained("SET ROLE reader; SELECT count(*) FROM hrflow_match('clusters', $query)");
	like(
		$err,
		qr/Index Scan using clusters_vector_idx/,
		'a search by a reader to whom a policy applies uses the index');

	# The settings with which a search of an index is planned do not apply to queries
	# of functions that a policy calls.
	sql(q{
		CREATE FUNCTION settings() RETURNS text LANGUAGE sql AS
			$$SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings WHERE name IN
				('enable_bitmapscan', 'enable_indexscan', 'enable_seqscan', 'enable_sort', 'jit')$$;
		CREATE FUNCTION are_kept() RETURNS bool LANGUAGE plpgsql AS $$
		BEGIN
			ASSERT public.settings() = 'on off on on on', 'settings: ' || public.settings();
			RETURN true;
		END $$;
		ALTER POLICY five_clusters ON clusters
			USING (are_kept() AND substr(profile_id, 2)::int % 100 < 5)});
	($status, $out, $err) = $node->psql(
		'postgres',
		"SET ROLE reader; SET enable_indexscan = off; SET jit = on;
		SELECT count(*), settings() FROM hrflow_match('clusters', $query)");
	is( "$out$err",
		'10|on off on on on',
		'a policy is evaluated with the settings of the session for the planner');

	# A profile with more items than a scan takes at a time
	sql(q{
		SELECT hrflow_create_store('crowd', 'vector(16)');
		INSERT INTO crowd SELECT 'acme', 'busy', 'skills', i,
				(SELECT array_agg(1 + sin(i * 7.3 + j + j * j * i) / 50)
				   FROM generate_series(1, 16) j)::real[]
			FROM generate_series(1, 3000) i;
		INSERT INTO crowd SELECT 'acme', 'other ' || i, 'skills', 0,
				(SELECT array_agg(sin(i * 7.3 + j + j * j * i)) FROM generate_series(1, 16) j)::real[]
			FROM generate_series(1, 15) i;
		VACUUM ANALYZE crowd});
	sql(sql("SELECT hrflow_index_statement('crowd', 'skills')"));
	foreach my $call ("hrflow_match('crowd', array_fill(1::real, ARRAY[16]), 10, 'skills')",
		"hrflow_match_weighted('crowd', array_fill(1::real, ARRAY[16]), '{\"skills\": 1}', 10)")
	{
		is( sql("SELECT count(*), count(DISTINCT profile_id), bool_or(profile_id = 'busy') FROM $call"
			),
			'10|10|t',
			"$call returns ten profiles although one has the 3,000 nearest items");
	}

	# An index that returns too few profiles, and not the nearest ones.  The vectors
	# are given as angles from the query.  Each of the first four is the center of a
	# list, and only the lists of 10 and 30 degrees are read: the profiles at more
	# than 50 degrees are found, but not the nearer ones at -20.  The nearest 39
	# vectors belong to one profile.
	sql(q{
		SELECT hrflow_create_store('angles', 'vector(2)');
		CREATE TABLE divided (LIKE angles INCLUDING DEFAULTS) PARTITION BY LIST (source_id);
		CREATE TABLE division PARTITION OF divided DEFAULT;
		CREATE FUNCTION at(angle float8) RETURNS real[] LANGUAGE sql
			RETURN ARRAY[cosd(angle), sind(angle)]::real[];
		INSERT INTO divided SELECT 'acme', 'busy', 'skills', angle, at(angle)
			FROM unnest('{10,30,-40,180}'::int[]) angle;
		CREATE INDEX divided_vector_idx ON divided USING ivfflat (vector vector_cosine_ops)
			WITH (lists = 4) WHERE section = 'skills';
		INSERT INTO divided SELECT 'acme', 'busy', 'skills', 200 + i, at(i / 100.0)
			FROM generate_series(1, 38) i;
		INSERT INTO divided SELECT 'acme', 'o' || i, 'skills', 0,
				at(CASE WHEN i <= 4 THEN -20 - i ELSE 50 + i END)
			FROM generate_series(1, 12) i;
		ANALYZE divided});
	my $few = "LOAD 'vector'; SET ivfflat.probes = 2; SET ivfflat.max_probes = 2;";
	is( sql("$few SET enable_seqscan = off; SET enable_sort = off;
			SELECT string_agg(DISTINCT profile_id, ' ')
				FROM (SELECT profile_id FROM divided WHERE section = 'skills'
					ORDER BY vector <=> '[1,0]') d"),
		'busy o10 o11 o12 o5 o6 o7 o8 o9',
		'an index with few probes does not return the nearest profiles');
	foreach my $k (10 .. 13)
	{
		is( sql("$few SELECT string_agg(profile_id, ' ')
				FROM hrflow_match('divided', '{1,0}', $k, 'skills')"),
			join(' ', ('busy', map { "o$_" } 1 .. 12)[ 0 .. $k - 1 ]),
			"the $k best profiles are found although an index returns only farther ones");
	}

	# The statement in plain SQL of docs/ranking.md, for a condition that 2 % meet.  Only the
	# 40 nearest candidates of all cities are read without the setting of the first line.
	my ($plain_sql) =
	  PostgreSQL::Test::Utils::slurp_file(dirname(__FILE__) . '/../../docs/ranking.md') =~
	  /^```sql\n(SET hnsw\.iterative_scan.*?)^```/ms
	  or die 'docs/ranking.md has no statement with an iterative scan';
	$plain_sql =~ s/\(1024\)/(16)/g;
	sql(qq{
		CREATE SCHEMA agency;
		CREATE TABLE agency.candidate (name text, city text, hrflow_id text PRIMARY KEY);
		INSERT INTO agency.candidate
			SELECT 'c' || p, CASE WHEN p % 50 = 0 THEN 'Paris' ELSE 'Lyon' END, 'p' || p
			FROM generate_series(1, $nprofiles) p});
	make_store('agency.embedding', 'auto');
	sql(sql("SELECT hrflow_index_statement('agency.embedding')"));
	sql('ANALYZE agency.candidate');
	foreach my $case ([ 'with', qr/\A(?:c\d*[05]0\n?){10}\z/ ],
		[ 'without', qr/\A(?:c\d*[05]0\n?){0,9}\z/ ])
	{
		my ($whether, $rows) = @$case;

		$plain_sql =~ s/^SET hnsw.*\n// if $whether eq 'without';
		($out, $err) = explained(
			"SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off;
			SET enable_hashjoin = off; SET enable_mergejoin = off;
			$plain_sql");
		like(
			$err,
			qr/Index Scan using embedding_vector_idx/,
			"the documented statement uses the index $whether an iterative scan");
		like($out, $rows,
			"the documented statement $whether an iterative scan returns the expected number of rows"
		);
	}

	# In an index of all sections, the section is a condition, too.  The lists of 10
	# and 30 degrees are read first, and contain enough profiles, but farther ones.
	sql(q{
		SELECT hrflow_create_store('circle', 'vector(2)');
		INSERT INTO circle SELECT 'acme', 'center', 'profile', angle, at(angle)
			FROM unnest('{10,30,-40,180}'::int[]) angle;
		CREATE INDEX circle_vector_idx ON circle USING ivfflat (vector vector_cosine_ops)
			WITH (lists = 4);
		INSERT INTO circle SELECT 'acme', 'o' || i, 'skills', 0,
				at(CASE WHEN i <= 4 THEN -20 - i ELSE 50 + i END)
			FROM generate_series(1, 12) i;
		ANALYZE circle});
	is( sql(q{SELECT string_agg(profile_id, ' ') FROM hrflow_match('circle', '{1,0}', 8, 'skills')}
		),
		'o1 o2 o3 o4 o5 o6 o7 o8',
		'the best profiles of a section are found with an index of all sections');

	# The library of pgvector is not loaded before the first statement of a session.
	is( sql("SELECT count(*) FROM hrflow_match('vectors', $query, 10,
			profiles => (SELECT array_agg('p' || i) FROM generate_series(1, 3000, 3) i))"),
		'10',
		'an index is scanned iteratively even in the first statement of a session');

	# Stored vectors whose squares overflow single precision
	sql(q{
		SELECT hrflow_create_store('huge', 'vector(3)');
		INSERT INTO huge VALUES ('acme', 'huge', 'profile', 0, '[1e20,1e20,1]'),
			('acme', 'other', 'profile', 0, '[1,0,0]')}
	);
	is( sql("SELECT profile_id, round(similarity::numeric, 6) FROM hrflow_match('huge', '{1,1,0}')"
		),
		"huge|1.000000\nother|0.707107",
		'a stored vector with huge elements is ranked');
	sql(sql("SELECT hrflow_index_statement('huge')"));
	is( sql("SELECT profile_id, round(similarity::numeric, 6) FROM hrflow_match('huge', '{1,1,0}')"
		),
		"huge|1.000000\nother|0.707107",
		'a stored vector with huge elements is ranked by an index');
	sql(q{INSERT INTO huge SELECT 'acme', 'p' || i, 'profile', 0,
			ARRAY[sin(i), cos(i), sin(i * i)]::real[] FROM generate_series(1, 2000) i});
	($out, $err) = explained("SELECT profile_id FROM hrflow_match('huge', '{1e20,1e20,1}', 1)");
	is($out, 'huge', 'a stored vector with huge elements is found among 2,000 others');
	like(
		$err,
		qr/Index Scan using huge_vector_idx/,
		'a stored vector with huge elements is found by an index');

	# A single dead row is not the reason why an index returns too few of the given
	# profiles, which are farther from the query than all vectors that a scan visits.
	sql(q{
		SELECT hrflow_create_store('arc', 'vector(2)');
		ALTER TABLE arc SET (autovacuum_enabled = off);
		INSERT INTO arc SELECT 'acme', 'p' || i, 'profile', 0, at(i / 50.0)
			FROM generate_series(1, 8000) i;
		ANALYZE arc});
	sql(sql("SELECT hrflow_index_statement('arc')"));
	sql("DELETE FROM arc WHERE profile_id = 'p4000'");
	$node->poll_query_until('postgres', "SELECT pg_stat_get_dead_tuples('arc'::regclass) > 0")
	  or die 'the dead row was not counted';
	($out, $err) = explained(
		q{SELECT string_agg(profile_id, ' ') FROM hrflow_match('arc', '{1,0}', 3,
			profiles => ARRAY(SELECT 'p' || i FROM generate_series(7001, 8000) i))});
	is($out, 'p7001 p7002 p7003', 'given profiles that are far from the query are found');
	like(
		$err,
		qr/Index Scan using arc_vector_idx.*Query Text: SELECT .* = ANY \(\$4\)/s,
		'given profiles that are far from the query are compared after a search of the index');
	unlike($err, qr/NOTICE:  index/, 'no message recommends to VACUUM because of one dead row');

	# All dead tuples are nearer to the query than the live ones.  The graph of
	# HNSW is random.  In some graphs the scan reaches the live tuples anyway, and
	# no message is raised, so try several.
	my ($dead, $search);
	foreach my $graph (1 .. 12)
	{
		$dead = "dead$graph";
		sql(qq{
			SELECT hrflow_create_store('$dead', 'vector(8)');
			ALTER TABLE $dead SET (autovacuum_enabled = off);
			INSERT INTO $dead SELECT 'acme', 'dead ' || i, 'profile', 0,
					(SELECT array_agg(1 + sin(i * j) / 100) FROM generate_series(1, 8) j)::real[]
				FROM generate_series(1, 21000) i;
			INSERT INTO $dead SELECT 'acme', 'alive ' || i, 'profile', 0,
					(SELECT array_agg(CASE WHEN j = 1 THEN 1 ELSE -1 END + sin(i * j) / 100)
						FROM generate_series(1, 8) j)::real[]
				FROM generate_series(1, 20) i});
		sql(sql("SELECT hrflow_index_statement('$dead')"));
		sql("DELETE FROM $dead WHERE profile_id LIKE 'dead%'");
		$node->poll_query_until('postgres',
			"SELECT pg_stat_get_dead_tuples('$dead'::regclass) >= 21000")
		  or die 'the dead rows were not counted';
		$search = "SELECT count(*) FROM hrflow_match('$dead', array_fill(1::real, ARRAY[8]))";
		($out, $err) = output_and_notices($search);
		last if $err ne '' || $out ne '10';
	}
	is($out, '10', 'live profiles are returned although the index finds only dead tuples');
	like(
		$err,
		qr/NOTICE:\ \ index\ \S+\ returned\ only\ \d\ profiles?,
			\ so\ all\ vectors\ were\ compared\n
			.*\nHINT:\ \ Run\ VACUUM\ public\.$dead\./x,
		'a message recommends to VACUUM if the index finds only dead tuples');

	# The same table and index as a partition.  The dead rows are counted there.
	sql(qq{
		CREATE TABLE parent (LIKE $dead INCLUDING ALL) PARTITION BY LIST (source_id);
		ALTER TABLE parent ATTACH PARTITION $dead DEFAULT});
	($out, $err) = output_and_notices($search =~ s/$dead/parent/r);
	is($out, '10', 'live profiles of a partition are returned although it has dead tuples');
	like(
		$err,
		qr/NOTICE:\ \ index\ \S+\ returned\ only\ \d\ profiles?,
			\ so\ all\ vectors\ were\ compared\n
			.*\nHINT:\ \ Run\ VACUUM\ public\.parent\./x,
		'a message recommends to VACUUM a partitioned table with dead tuples');
	sql("VACUUM parent");
	($out, $err) = output_and_notices($search);
	is("$out$err", '10', 'no message is raised after VACUUM has removed the dead tuples');
}

$node->stop('fast');
done_testing();
