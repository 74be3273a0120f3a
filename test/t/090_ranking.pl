# Ranking candidates for a job: the ranking is correct, has one row per profile,
# uses an index of pgvector if there is one, and planning it sends no request.
# This is not a regression test because it needs pgvector and the stand-in's log.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 64);
my $node = Hrflow::Node->new('ranking', $api, link_hosts => '127.0.0.1');

sub sql { return $node->safe_psql('postgres', @_); }

my @occupations = ('nurse', 'welder', 'cook', 'teacher');
my $has_pgvector = sql(q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});

# Create a store of 400 profiles of four occupations, with three sections.
sub make_store
{
	my ($name, $type) = @_;

	sql(qq{
		SELECT hrflow_create_store('$name', '$type');
		SELECT hrflow_track('$name', 'acme',
			array_agg((ARRAY['nurse', 'welder', 'cook', 'teacher'])[i % 4 + 1] || '-' || i))
			FROM generate_series(1, 400) i});
	sql(qq{CALL hrflow_refresh('$name', '{"profile": 1, "skills": 1, "experiences": [0, 1]}')});
	is(sql("SELECT ok FROM hrflow_store_status('$name')"),
		'400', "all profiles of $name are refreshed");
	return;
}

# Check that a second refresh, for which nothing has changed, writes no vector.  A
# session reports its counts when it ends.  Once they include all updates of the
# table of profiles, which each claim, each result and our UPDATE make, those of
# the vectors are complete.
sub check_unchanged
{
	my ($name) = @_;
	my $counts = "SELECT n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables
		WHERE relid = '$name'::regclass";
	my $wait = sub {
		my ($updates) = @_;
		$node->poll_query_until(
			'postgres',
			"SELECT n_tup_upd >= $updates FROM pg_stat_user_tables
				WHERE relid = '${name}_profile'::regclass"
		) or die "fewer than $updates updates were counted";
	};

	$wait->(2 * 400);
	my $written = sql($counts);
	like($written, qr/^[1-9]\d*\|0\|0$/, "every vector of $name was written once");
	sql("UPDATE ${name}_profile SET due_at = now()");
	sql(qq{CALL hrflow_refresh('$name', '{"profile": 1, "skills": 1, "experiences": [0, 1]}')});
	is(sql("SELECT count(*) FROM ${name}_profile WHERE due_at > now()"),
		'400', "all profiles of $name are refreshed again");
	$wait->(5 * 400);
	is(sql($counts), $written, "a second refresh writes no vector of $name");
	return;
}

# Check the rankings that every kind of store must return.
sub check_ranking
{
	my ($name) = @_;

	foreach my $occupation (@occupations)
	{
		my @best = split /\n/,
		  sql("SELECT profile_id FROM hrflow_match('$name', hrflow_job_vector('$occupation-job'))");
		is(scalar(grep { /^$occupation-/ } @best),
			10, "the ten best matches in $name for a $occupation are ${occupation}s");
	}
	my $one = sql("SELECT min(profile_id) FROM $name WHERE section = 'experiences' AND item = 1");
	is( sql("SELECT count(*), count(DISTINCT profile_id), bool_and(section = 'experiences')
		FROM hrflow_match(
				'$name', (SELECT vector::real[] FROM $name WHERE profile_id = '$one'
					AND section = 'experiences' AND item = 1), 50, 'experiences')"
		),
		'50|50|t',
		"a profile in $name with several items of a section is returned once");
	is( sql("SELECT profile_id, item, round(similarity::numeric, 3) FROM hrflow_match(
				'$name', (SELECT vector::real[] FROM $name WHERE profile_id = '$one'
					AND section = 'experiences' AND item = 1), 1, 'experiences')"
		),
		"$one|1|1.000",
		"a profile in $name is returned with its nearest item");

	# Compute the expected result by its definition, in SQL.
	my $query =
	  "(SELECT vector::real[] FROM $name WHERE profile_id = 'welder-1' AND section = 'profile')";
	is( sql(qq{SELECT profile_id, section, item, round(similarity::numeric, 4)
		FROM hrflow_match_weighted(
				'$name', $query, '{"profile": 0.6, "skills": 0.3, "experiences": 0.1}', 5)}),
		sql(qq{
			WITH near AS (
				SELECT DISTINCT ON (profile_id, section) profile_id, section, item,
					   hrflow_cosine_similarity(vector::real[], $query) *
					   CASE section WHEN 'profile' THEN 0.6 WHEN 'skills' THEN 0.3
						ELSE 0.1 END AS part
				  FROM $name ORDER BY profile_id, section, part DESC)
			SELECT profile_id, (array_agg(section ORDER BY part DESC))[1],
				   (array_agg(item ORDER BY part DESC))[1], round(sum(part)::numeric, 4)
			  FROM near GROUP BY profile_id ORDER BY sum(part) DESC LIMIT 5}),
		"hrflow_match_weighted() for $name agrees with its definition in SQL");
	return;
}

make_store('plain', 'real[]');
check_ranking('plain');

# Planning sends no requests
$api->reset;
sql("EXPLAIN $_")
  foreach (
	"SELECT * FROM hrflow_match('plain', hrflow_job_vector('nurse-job'))",
	"SELECT m.* FROM hrflow_match('plain', (SELECT hrflow_text_embedding('a nurse'))) m",
	"SELECT *
		FROM hrflow_match_weighted('plain', hrflow_job_vector('nurse-job'), '{\"profile\": 1}')",
	"SELECT profile_id FROM plain
		ORDER BY hrflow_cosine_similarity(vector, (SELECT hrflow_job_vector('nurse-job'))) DESC
		LIMIT 10"
  );
is(scalar($api->log), 0, 'EXPLAIN of the documented queries sends no request');

SKIP:
{
	skip 'pgvector is not available', 1 unless $has_pgvector;

	sql('CREATE SCHEMA "odd schema"; CREATE EXTENSION vector SCHEMA "odd schema"');
	foreach my $case (
		[ 'untyped', 'auto', '"odd schema".vector' ],
		[ 'typed', 'vector(64)', '"odd schema".vector(64)' ],
		[ 'halves', 'halfvec(64)', '"odd schema".halfvec(64)' ],
		[ 'reals', 'real[]', 'real[]' ])
	{
		my ($name, $type, $column) = @$case;

		make_store($name, $type);
		is( sql("SELECT format_type(atttypid, atttypmod) FROM pg_attribute
			WHERE attrelid = '$name'::regclass AND attname = 'vector'"
			),
			$column,
			"the vectors of $name have the type $column");
		check_unchanged($name);
		foreach my $section ('profile', 'skills', 'experiences')
		{
			sql(sql("SELECT hrflow_index_statement('$name', '$section')"));
		}
		is( sql("SELECT count(*) FROM pg_indexes WHERE tablename = '$name' AND indexdef ~ 'hnsw'"),
			'3', "the statements returned by hrflow_index_statement() for $name create indexes");
		sql("ANALYZE $name");
		check_ranking($name);

		my $plan = '';
		$node->psql(
			'postgres', qq{
			LOAD 'auto_explain';
			SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;
			SET auto_explain.log_level = notice; SET enable_seqscan = off;
				SET enable_bitmapscan = off; SET enable_sort = off;
			SELECT count(*) FROM hrflow_match('$name', hrflow_job_vector('cook-job'))},
			stderr => \$plan);
		like(
			$plan,
			qr/Index Scan using ${name}_vector\w*_idx/,
			"hrflow_match() for $name uses the index");
	}

	# Ranking in plain SQL
	my $query = q{
		SELECT e.profile_id FROM untyped e WHERE e.section = 'profile'
		ORDER BY e.vector::"odd schema".vector(64) OPERATOR("odd schema".<=>)
			(SELECT hrflow_job_vector('cook-job')::"odd schema".vector(64)) LIMIT 10};
	$api->reset;
	like(
		sql("SET enable_seqscan = off; SET enable_bitmapscan = off; EXPLAIN $query"),
		qr/Index Scan using untyped_vector/,
		'a query in plain SQL uses the index');
	is(scalar($api->log), 0, 'EXPLAIN of a query in plain SQL sends no request');
	is(scalar(grep { /^cook-/ } split /\n/, sql($query)),
		10, 'a query in plain SQL finds the ten best matches');

	# A reader to whom row-level security applies, without privileges on the schema of
	# pgvector
	sql(q{
		CREATE ROLE reader;
		GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO reader});
	foreach my $name ('untyped', 'typed', 'halves', 'reals')
	{
		my $search = "LOAD 'auto_explain';
			SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;
			SET auto_explain.log_level = notice; SET ROLE reader;
			SELECT profile_id FROM hrflow_match('$name',
				(SELECT vector::real[] FROM $name WHERE profile_id = 'cook-2' AND section = 'profile'))";

		sql("GRANT SELECT ON $name TO reader; ALTER TABLE $name ENABLE ROW LEVEL SECURITY;
			CREATE POLICY cooks ON $name FOR SELECT TO reader USING (profile_id LIKE 'cook-%')");
		foreach my $has_usage (0, 1)
		{
			my $whether = $has_usage ? 'with' : 'without';
			my ($out, $plans) = ('', '');

			sql('GRANT USAGE ON SCHEMA "odd schema" TO reader') if $has_usage;
			$node->psql('postgres', $search, stdout => \$out, stderr => \$plans);
			like(
				$out,
				qr/\Acook-2\n(?:cook-\d+\n?){9}\z/,
				"a reader $whether USAGE on the schema of pgvector gets the cooks in $name");
			is( $plans =~ /Index Scan using ${name}_vector/ ? 1 : 0,
				$has_usage,
				"an index of $name is used only for a reader with USAGE on the schema of pgvector");
		}
		sql(qq{REVOKE USAGE ON SCHEMA "odd schema" FROM reader; DROP POLICY cooks ON $name;
			ALTER TABLE $name DISABLE ROW LEVEL SECURITY});
	}

	# Only indexes of the vectors themselves are used, not those of other columns
	# or of expressions
	sql(q{
		SELECT hrflow_create_store('several', 'real[]'), hrflow_create_store('parts', 'vector(6)');
		INSERT INTO several VALUES ('acme', 'near', 'profile', 0, '{1,0,0}'),
			('acme', 'far', 'profile', 0, '{0,1,0}');
		INSERT INTO parts SELECT source_id, profile_id, section, item, vector || vector
			FROM several;
		SET search_path = "odd schema", public;
		ALTER TABLE several ADD COLUMN other vector(3);
		UPDATE several SET other = CASE profile_id WHEN 'far' THEN '[1,0,0]'
			ELSE '[0,1,0]' END::vector;
		CREATE INDEX ON several USING hnsw (other vector_cosine_ops);
		CREATE INDEX ON parts USING hnsw ((subvector(vector, 1, 3)::vector(3)) vector_cosine_ops)});
	is(sql("SELECT profile_id FROM hrflow_match('several', '{1,0,0}', 1)"),
		'near', "an index on another column is not used");
	is(sql("SELECT count(*) FROM hrflow_match('parts', '{1,0,0}')"),
		'0', 'an index on a part of the vectors is not used');

	# The length of a query vector does not matter
	foreach my $type ('halfvec', 'vector')
	{
		my $name = "of_$type";

		sql("SELECT hrflow_create_store('$name', '$type(3)');
			INSERT INTO $name SELECT source_id, profile_id, section, item, vector FROM several");
		sql(sql("SELECT hrflow_index_statement('$name')"));
		foreach my $length ('1e-45', '1e-30', '1e-9', '70000', '3e38')
		{
			is( sql("SELECT profile_id, similarity FROM hrflow_match('$name', '{$length,0,0}')"),
				"near|1\nfar|0",
				"a query of length $length finds the vectors in an index of type $type");
		}
	}

	# Settings for the output of numbers do not affect similarities
	is( sql(q{SET extra_float_digits = -13;
			SELECT similarity BETWEEN 0.883 AND 0.885
				FROM hrflow_match('parts', '{1,0.5,0,0.9,0.5,0}', 1)}),
		't',
		'extra_float_digits does not round a similarity without an index');
	sql(sql("SELECT hrflow_index_statement('parts')"));
	is( sql(q{SET extra_float_digits = -13;
			SELECT similarity BETWEEN 0.883 AND 0.885
				FROM hrflow_match('parts', '{1,0.5,0,0.9,0.5,0}', 1)}),
		't',
		'extra_float_digits does not round a similarity with an index');

	# A table created by a user may contain nulls
	sql("CREATE TABLE loose AS TABLE typed WITH NO DATA;
		CREATE TABLE loose_profile AS TABLE typed_profile WITH NO DATA;
		INSERT INTO loose VALUES ('acme', 'nurse-1', 'profile', 0, NULL, now())");
	like(
		$node->error_of("SELECT hrflow_index_statement('loose', 'profile')"),
		qr/^55000: store public.loose has no vector/,
		'hrflow_index_statement() raises an error if all vectors are null');
	sql("SELECT hrflow_create_store('empty', 'real[]');
		INSERT INTO empty VALUES ('acme', 'a', 'profile', 0, '{}')"
	);
	like(
		$node->error_of("SELECT hrflow_index_statement('empty', 'profile')"),
		qr/^55000: store public.empty has no vector/,
		'hrflow_index_statement() raises an error if all vectors are empty');
	sql("INSERT INTO empty VALUES ('acme', 'b', 'profile', 0, '{1,0}')");
	like(sql("SELECT hrflow_index_statement('empty', 'profile')"),
		qr/vector\(2\)/, 'hrflow_index_statement() ignores empty vectors');
	sql("CREATE INDEX ON loose USING hnsw (vector \"odd schema\".vector_cosine_ops)
		WHERE section = 'profile'"
	);
	is(sql("SELECT count(*) FROM hrflow_match('loose', array_fill(1::real, ARRAY[64]))"),
		0, 'hrflow_match() does not return a null vector');
	sql("INSERT INTO loose VALUES (NULL, NULL, 'profile', 0, array_fill(1::real, ARRAY[64]), now())"
	);
	like(
		$node->error_of("SELECT * FROM hrflow_match('loose', array_fill(1::real, ARRAY[64]))"),
		qr/^22004: column "source_id"/,
		'hrflow_match() raises an error for a vector whose source is null');
}

# Any array that hrflow_cosine_similarity() accepts is ranked, including one that
# used to contain a null
sql(q{
	SELECT hrflow_create_store('arrays', 'real[]');
	INSERT INTO arrays VALUES ('acme', 'plain', 'profile', 0, '{1,0}'),
		('acme', 'filled', 'profile', 0, '{NULL,1}'),
		('acme', 'null', 'profile', 0, '{NULL,1}'), ('acme', 'matrix', 'profile', 0, '{{1,1}}'),
		('acme', 'shifted', 'profile', 0, '[0:1]={-1,0}'), ('acme', 'empty', 'profile', 0, '{}');
	UPDATE arrays SET vector[1] = 1 WHERE profile_id = 'filled'});
foreach my $call ("hrflow_match('arrays', '{1,0}')",
	"hrflow_match_weighted('arrays', '{1,0}', '{\"profile\": 1}')")
{
	is( sql("SELECT string_agg(profile_id, ' ') FROM $call"),
		'plain filled shifted',
		"$call ranks one-dimensional arrays without nulls");
}

# A large table in which successive items of a profile may each be its best so far
sql(q{
	SELECT hrflow_create_store('many', 'real[]');
	INSERT INTO many SELECT 'source-' || i % 3, 'profile-' || i % 4000, 'profile', i / 12000,
			ARRAY[cos(i * 0.7), sin(i * 0.7), cos(i * 1.1)] FROM generate_series(0, 179999) i;
	ANALYZE many});

# Check that the k best matches are those by the definition.
sub check_many
{
	my ($how) = @_;

	foreach my $k (1, 7, 1000, 10000)
	{
		is( sql(qq{
			WITH wanted AS (
				SELECT row_number() OVER (ORDER BY s DESC) AS n, s
				  FROM (SELECT max(hrflow_cosine_similarity(vector::real[], '{1,0.5,0.2}')) AS s
						  FROM many GROUP BY source_id, profile_id) best
				 ORDER BY s DESC LIMIT $k),
			found AS (
				SELECT row_number() OVER () AS n, m.*
				  FROM hrflow_match('many', '{1,0.5,0.2}', $k) m)
			SELECT count(*), count(DISTINCT (f.source_id, f.profile_id)),
				bool_and(abs(f.similarity - s) < 1e-6),
				bool_and(abs(hrflow_cosine_similarity(v.vector::real[], '{1,0.5,0.2}') - s) < 1e-6)
			  FROM found f JOIN wanted USING (n)
			  JOIN many v USING (source_id, profile_id, section, item)}),
			"$k|$k|t|t",
			"the $k best of 180,000 vectors found $how are right");
	}
	SKIP:
	{
		skip 'an instrument would exceed the time limit', 1 if $ENV{HRFLOW_INSTRUMENT};
		my $printed = '';

		# A busy machine may take longer for once.
		for (my $try = 0; $printed ne '10000' && $try < 5; $try++)
		{
			my ($code, $out, $err) = $node->psql(
				'postgres', q{
				SET statement_timeout = '4s';
				SELECT count(*) FROM hrflow_match('many', '{1,0.5,0.2}', 10000)});
			$printed = "$out$err";
		}
		is($printed, '10000', "the 10,000 best of 180,000 vectors are found in four seconds $how");
	}
	return;
}

check_many('by comparing');

SKIP:
{
	skip 'pgvector is not available', 5 unless $has_pgvector;

	sql(q{
		SET search_path = public, "odd schema";
		ALTER TABLE many ALTER vector TYPE vector(3);
		CREATE INDEX ON many USING ivfflat (vector vector_cosine_ops) WITH (lists = 1);
		ANALYZE many});
	check_many('through an index');
}

# A profile with so many items that they fill the first results of workers does not
# hide the next profile
sql(q{
	SELECT hrflow_create_store('crowd', 'real[]');
	INSERT INTO crowd SELECT 'acme', 'busy', 'profile', i, '{1,0}' FROM generate_series(0, 99) i;
	INSERT INTO crowd VALUES ('acme', 'next', 'profile', 0, '{1,1}')});
is( sql(q{SET min_parallel_table_scan_size = 0;
		SELECT string_agg(profile_id, ' ') FROM hrflow_match('crowd', '{1,0}', 2)}),
	'busy next',
	'a profile of 100 items leaves room for the next profile in a parallel search');
is( sql(q{SET max_parallel_workers_per_gather = 0;
		SELECT string_agg(profile_id, ' ') FROM hrflow_match('crowd', '{1,0}', 2)}),
	'busy next',
	'a profile of 100 items leaves room for the next profile without parallel workers');

# Long vectors that are stored out of line, with or without compression, and after
# an update not in the order of the rows
foreach my $storage ('EXTERNAL', 'EXTENDED')
{
	my $ranked = "SELECT string_agg(profile_id, ' ' ORDER BY similarity DESC)
		FROM hrflow_match('far_$storage', array_fill(1::real, ARRAY[8000]), 5)";

	sql(qq{
		SELECT hrflow_create_store('far_$storage', 'real[]');
		ALTER TABLE far_$storage ALTER vector SET STORAGE $storage;
		INSERT INTO far_$storage SELECT 'acme', 'p' || i, 'profile', 0,
				(SELECT array_agg((1 + i * (n / 4001) * (hashint4(n) & 1023))::real)
					FROM generate_series(1, 8000) n)
			FROM generate_series(1, 5) i;
		INSERT INTO far_$storage VALUES
			('acme', 'longer', 'profile', 0, array_fill(1::real, ARRAY[9000]))});
	is(sql($ranked), 'p1 p2 p3 p4 p5', "vectors with $storage storage are ranked");
	sql("UPDATE far_$storage SET fetched_at = now() WHERE profile_id < 'p3'; ANALYZE far_$storage");
	is(sql($ranked), 'p1 p2 p3 p4 p5', "vectors with $storage storage are ranked after an update");
}

# Matches that are replaced by better ones do not stay in memory.  In the first
# call, which reads the whole table, the first match is the best.
SKIP:
{
	skip '/proc does not exist', 1 unless -e '/proc/self/status';
	skip 'an instrument uses memory of its own', 1 if $ENV{HRFLOW_INSTRUMENT};
	sql(q{
		SELECT hrflow_create_store('climb', 'real[]');
		INSERT INTO climb SELECT repeat('s', 200), lpad(i::text, 200, '0'), 'profile', 0,
			ARRAY[i, 100000]
			FROM generate_series(1, 50000) i});
	my @peaks = split /\n/, sql(
		q{
		SELECT 'first' FROM hrflow_match('climb', '{-1,1}', 1);
		SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/status')
			FROM 'VmHWM:\s+(\d+)');
		SELECT 'last' FROM hrflow_match('climb', '{1,0}', 1);
		SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/status')
			FROM 'VmHWM:\s+(\d+)')});
	cmp_ok($peaks[3] - $peaks[1], '<', 5000, 'matches that better ones replace are freed');

	# The documented maximum, with the longest vectors that are compared.  The table
	# is read before, so that the session has mapped its shared buffers.
	sql(q{
		SELECT hrflow_create_store('longest', 'real[]');
		INSERT INTO longest SELECT 'acme', 'p' || i, 'profile', 0,
				array_fill(1::real, ARRAY[65535]) || i::real
			FROM generate_series(1, 150) i});
	my $peak = q{SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/status')
			FROM 'VmHWM:\s+(\d+)');};
	my ($before, $n, $after) = split /\n/, sql(
		"SELECT sum(vector[1]) FROM longest \\g /dev/null
		$peak SELECT count(*) FROM hrflow_match_all('longest', 'longest', 3); $peak");
	is($n, 450, 'vectors with 65,536 dimensions are compared');
	cmp_ok($after - $before,
		'<', 64 * 1024,
		'hrflow_match_all() uses less than 64 MB for vectors with 65,536 dimensions');
}

# A query vector of another model matches nothing, which causes a warning.  A null
# vector has no dimension.
sql("ALTER TABLE plain ALTER vector DROP NOT NULL;
	INSERT INTO plain VALUES ('acme', 'without a vector', 'profile', 0, NULL, now())"
);
foreach my $call ("hrflow_match('plain', '{1}')",
	"hrflow_match_weighted('plain', '{1}', '{\"profile\": 1, \"skills\": 1}')")
{
	my ($code, $out, $err) = $node->psql('postgres', "SELECT * FROM $call");
	is($out, '', "$call returns no row");
	like(
		$err,
		qr/WARNING:\ \ search\ of\ store\ public\.plain\ found\ no\ vectors\ with\ 1\ dimensions\n
			DETAIL:\ \ .*\ has\ 64\ dimensions\./x,
		"$call warns about the number of dimensions");
}

# Invalid arguments
foreach my $case (
	[ "hrflow_match('plain', NULL)", '' ],
	[ "hrflow_match_weighted('plain', NULL, '{\"profile\": 1}')", '' ],
	[   "hrflow_match(4294967295::regclass, '{1}')",
		'ERROR:  relation with OID 4294967295 does not exist' ],
	[   "hrflow_vector_similarity('{1}'::int[], '{1}')",
		'ERROR:  type integer[] is not supported for vectors' ],
	[   "hrflow_match('plain', '{}')",
		'ERROR:  argument "query" must be a one-dimensional array without nulls' ],
	[   "hrflow_match('plain', '{0,0}')",
		'ERROR:  cosine similarity is undefined for a zero vector' ],
	[ "hrflow_match('plain', '{1,NaN}')", 'ERROR:  vector must not contain infinity or NaN' ],
	[   "hrflow_match('plain', '{{1,2}}')",
		'ERROR:  argument "query" must be a one-dimensional array without nulls' ],
	[   "hrflow_match('plain', '{1,NULL}')",
		'ERROR:  argument "query" must be a one-dimensional array without nulls' ],
	[ "hrflow_match('plain', '{1}', 0)", 'ERROR:  argument "k" must be between 1 and 10000' ],
	[ "hrflow_match('pg_class', '{1}')", 'ERROR:  "pg_class" is not a table of a vector store' ],
	[   "hrflow_match_weighted('plain', '{1}', '{}')",
		'ERROR:  argument "weights" must be a JSON object with a number for each section' ],
	[   "hrflow_match_weighted('plain', '{1}',
			(SELECT jsonb_object_agg(i, 1) FROM generate_series(1, 101) i))",
		'ERROR:  argument "weights" must not have more than 100 members' ],
	[   "hrflow_match_weighted('plain', '{1}', '{\"profile\": 0}')",
		'ERROR:  weight of section "profile" must be a number greater than zero' ],
	[   "hrflow_match_weighted('plain', '{1}', '{\"profile\": \"1\"}')",
		'ERROR:  weight of section "profile" must be a number greater than zero' ],
	(   map {
			[   "hrflow_match_weighted('plain', '{1}', '{\"profile\": $_}')",
				'ERROR:  weight of section "profile" must be a number greater than zero' ]
		} '1e400',
		'1e-400',
		'-1e400'))
{
	my ($call, $wanted) = @$case;
	my ($code, $out, $err) = $node->psql('postgres', "SELECT * FROM $call");

	$wanted eq ''
	  ? is("$out$err", '', "$call returns no row")
	  : like($err, qr/\Q$wanted\E/, "$call is refused");
}

$node->stop('fast');
done_testing();
