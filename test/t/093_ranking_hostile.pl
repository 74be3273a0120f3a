# Ranking in unusual situations: values and indexes that a search must not use,
# hundreds of thousands of identifiers, rows that are deleted during the search, a
# cancel, and a standby.  Also the statements that a search executes, as logged by
# auto_explain, to show that it does no unnecessary work.  A regression test has
# only one session and one server.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('hostile', $api, wal_level => 'replica', max_wal_senders => 4);

sub sql { return $node->safe_psql('postgres', @_); }

my $has_pgvector = sql(q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});
my $query = "(SELECT array_agg(sin(i * 0.37)::real) FROM generate_series(1, 16) i)";

sub make_store
{
	my ($name, $type, $nprofiles) = @_;

	sql(qq{
		SELECT hrflow_create_store('$name', '$type');
		INSERT INTO $name SELECT 'acme', 'p' || p, 'profile', 0,
				(SELECT array_agg(sin(p * 7.3 + i * i * p)::real) FROM generate_series(1, 16) i)
			FROM generate_series(1, $nprofiles) p;
		VACUUM ANALYZE $name});
	return;
}

# Return the rows of a search, and the statements that it executed, with their plans.
sub explained
{
	my ($settings, $call) = @_;
	my ($status, $out, $err) = $node->psql(
		'postgres', qq{
		LOAD 'auto_explain';
		SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;
		SET auto_explain.log_level = notice;
		SET client_min_messages = notice;
		$settings
		SELECT profile_id FROM $call});

	return ($out, $err);
}

# Check that the statements of a call that read a store are not compiled, although the
# calling statement is.  The plan says so even if the server has no LLVM.
sub check_not_compiled
{
	my ($store, $call) = @_;
	my $oid = sql("SELECT '$store'::regclass::oid");
	my ($status, $out, $err) = $node->psql(
		'postgres', qq{
		SET jit = on; SET jit_above_cost = 0; SET debug_print_plan = on;
		SET client_min_messages = log;
		SELECT count(*) FROM $call});
	my @plans = split /^LOG:/m, $err;
	my @of_store = grep { /:relid\s+$oid\b/ } @plans;

	cmp_ok(scalar(grep { /:jitFlags\s+[1-9]/ } @plans),
		'>=', 1, "a statement that calls $call is compiled");
	cmp_ok(scalar(@of_store), '>=', 1, "$call reads the store");
	is(scalar(grep { !/:jitFlags\s+0\b/ } @of_store), 0, "no statement of $call is compiled");
	return;
}

make_store('plain', 'real[]', 20000);
my $best = sql("SELECT profile_id FROM hrflow_match('plain', $query)");

# Statements that a search executes
{
	my $allowed = "profiles => (SELECT array_agg('p' || i * 200) FROM generate_series(1, 100) i)";
	my ($out, $plans) = explained('', "hrflow_match('plain', $query)");

	is($out, $best, 'a search returns the same rows with auto_explain');
	unlike($plans, qr/pg_index/,
		'a search in a table without an index on vectors does not read pg_index');

	($out, $plans) = explained('', "hrflow_match('plain', $query, $allowed)");
	like(
		$plans,
		qr/(Index Scan using|Bitmap Index Scan on) plain_pkey/,
		'a hundred of 20,000 profiles are looked up by their key');
	unlike(
		$plans,
		qr/Join|Nested Loop|Gather/,
		'a hundred of 20,000 profiles are looked up without a join');

	check_not_compiled('plain', $_)
	  foreach "hrflow_match('plain', $query)",
	  "hrflow_match('plain', $query, $allowed)",
	  qq{hrflow_match_weighted('plain', $query, '{"profile": 1}')};

	my $workers = 'ALTER TABLE plain SET (parallel_workers = 2);
		SET parallel_setup_cost = 0;';
	($out, $plans) = explained($workers, "hrflow_match('plain', $query)");
	is($out, $best, 'a search without workers returns the ten best');
	unlike($plans, qr/Gather/, 'no parallel workers are started for a store of two megabytes');
	($out, $plans) = explained("$workers SET min_parallel_table_scan_size = '32kB';",
		"hrflow_match('plain', $query)");
	is($out, $best, 'a search with workers returns the ten best');
	like($plans, qr/Gather/, 'parallel workers are started if a store is large enough');

	# Vectors of other dimensions are sorted last, so the statement is not executed again
	# with a higher limit.
	sql(q{INSERT INTO plain SELECT 'acme', 'p' || i, 'profile', 1, ARRAY[i, 3]
		FROM generate_series(1, 3) i});
	foreach my $case ([ 3, '{1,1}', "p3\np2\np1" ], [ 0, '{1,1,1}', '' ])
	{
		my ($n, $vector, $wanted) = @$case;

		($out, $plans) = explained("$workers SET min_parallel_table_scan_size = '32kB';",
			"hrflow_match('plain', '$vector')");
		is($out, $wanted, "$n vectors of the dimension of the query are found among 20,003");
		is(scalar(() = $plans =~ /Query Text: SELECT .* ORDER BY 5 DESC/g),
			1, "$n vectors of the dimension of the query are found by one statement");
	}
	sql('DELETE FROM plain WHERE item = 1');

	# The plan that is passed to workers contains the array of identifiers.
	foreach my $case ([ 20_000, 1 ], [ 200_000, 0 ])
	{
		my ($n, $is_parallel) = @$case;
		my $among = "profiles => (SELECT array_agg('p' || i) FROM generate_series(1, $n) i)";

		foreach my $call ("hrflow_match('plain', $query, $among)",
			qq{hrflow_match_weighted('plain', $query, '{"profile": 1}', $among)})
		{
			my ($name) = $call =~ /(\w+)/;

			($out, $plans) = explained(
				"$workers SET min_parallel_table_scan_size = '32kB';
				SET parallel_tuple_cost = 0; SET work_mem = '1GB';", $call);
			is($out, $best, "$name() among $n identifiers returns the ten best");
			is( $plans =~ /Gather/ ? 1 : 0,
				$is_parallel,
				"parallel workers are used by $name() only if the array of identifiers is small ($n)"
			);
		}
	}
	sql('ALTER TABLE plain RESET (parallel_workers)');
}

# Identifiers in several sources: the statement forms the pairs of an identifier and a
# source only if these are few, or if there is only one source.
sql(q{
	SELECT hrflow_create_store('sources', 'real[]');
	INSERT INTO sources SELECT 'source ' || i % 16, 'p' || i / 16, 'profile', 0, ARRAY[i, 1]
		FROM generate_series(0, 31999) i;
	VACUUM ANALYZE sources});
foreach my $case ([ 12_500, 16, 1 ], [ 12_501, 16, 0 ], [ 300_000, 1, 1 ])
{
	my ($n, $nsources, $is_paired) = @$case;
	my $among = "profiles => ARRAY(SELECT 'p' || i FROM generate_series(1, $n) i)";
	my $source = $nsources == 1 ? ", source_id => 'source 15'" : '';

	foreach my $call ("hrflow_match('sources', '{1,0}', 3, $among $source)",
		qq{hrflow_match_weighted('sources', '{1,0}', '{"profile": 1}', 3, $among $source)})
	{
		my ($name) = $call =~ /(\w+)/;
		my ($out, $plans) = explained('', $call);

		is( $out,
			$nsources == 1 ? "p1999\np1998\np1997" : "p1999\np1999\np1999",
			"$name() finds the best of $n identifiers in $nsources sources");
		is($plans =~ /unnest\(\$5\)/ ? 1 : 0,
			$is_paired,
			"$name() forms pairs of $n identifiers and $nsources sources only if these are few");
	}
}

# Arrays of identifiers
is( sql("SELECT profile_id FROM hrflow_match('plain', $query, profiles =>
			(SELECT array_agg(CASE WHEN i % 5 > 0 THEN 'p' || i % 30000 END)
			   FROM generate_series(0, 249999) i))"),
	sql("SELECT profile_id FROM hrflow_match('plain', $query, 100)
			WHERE substr(profile_id, 2)::int % 5 > 0 LIMIT 10"),
	'the ten best of 250,000 identifiers, with repetitions and NULLs, are returned');
is( sql("SELECT count(*), count(DISTINCT profile_id) FROM hrflow_match('plain', $query, 10,
			profiles => (SELECT array_agg('p' || i % 3) FROM generate_series(1, 9000) i))"),
	'2|2',
	'a profile whose identifier is passed 3,000 times is returned once');
is(sql("SELECT count(*) FROM hrflow_match('plain', $query, profiles => '{{p1,p2},{p3,NULL}}')"),
	'3', 'an array of identifiers may have two dimensions');

# A query that changes between calls of one expression: PL/pgSQL evaluates an expression
# with the same state in the whole transaction, and so do cached plans.
sql(q{
	CREATE FUNCTION similarity(v real[], q real[]) RETURNS float8 LANGUAGE plpgsql AS
		'BEGIN RETURN hrflow_vector_similarity(v, q); END';
	CREATE FUNCTION fixed(v real[]) RETURNS float8 LANGUAGE plpgsql AS
		$$BEGIN RETURN hrflow_vector_similarity(v, '{0,1}'); END$$});
foreach my $case (
	[ 'in a PL/pgSQL expression', "similarity('{1,0}', q::real[])" ],
	[ 'in a PL/pgSQL expression whose vector changes', "similarity(q::real[], '{1,0}')" ],
	[ 'in a query', "hrflow_vector_similarity('{1,0}'::real[], q::real[])" ])
{
	my ($where, $call) = @$case;

	is( sql(qq{
			SELECT string_agg(COALESCE(round(($call)::numeric, 3)::text, 'null'), ' ' ORDER BY n)
			  FROM (VALUES (1, '{1,0}'), (2, '{0,1}'), (3, '{0,1}'), (4, '{-1,0}'), (5, '{1,0,0}'),
				(6, '{1,1}'), (7, NULL), (8, '{0,0}'), (9, '{1,NULL}'), (10, '{1,0}')) q (n, q)}),
		'1.000 0.000 0.000 -1.000 null 0.707 null null null 1.000',
		"the query of each call is compared $where");
}
is(sql(q{SELECT fixed('{0,1}'), fixed('{1,0}'), fixed('{0,-1}')}),
	'1|0|-1', 'a constant query is compared with each vector in a PL/pgSQL expression');
foreach my $mode ('force_custom_plan', 'force_generic_plan')
{
	is( sql(qq{
			SET plan_cache_mode = $mode;
			PREPARE compared (real[]) AS SELECT string_agg(
				hrflow_vector_similarity(v, \$1)::text, ' ' ORDER BY n)
				FROM (VALUES (1, '{1,0}'::real[]), (2, '{0,1}')) v (n, v);
			EXECUTE compared('{1,0}');
			EXECUTE compared('{0,1}')}),
		"1 0\n0 1",
		"the query of each execution of a prepared statement is compared ($mode)");
}
is( sql(q{SELECT string_agg(hrflow_vector_similarity(v, (SELECT q::real[]))::text, ' '
				ORDER BY n, q)
			FROM (VALUES (1, '{1,0}'::real[]), (2, '{0,1}')) v (n, v),
				(VALUES ('{0,1}'), ('{1,0}')) q (q)}),
	'0 1 1 0',
	'the query of each execution of a subquery is compared');

# Vectors whose similarity is undefined are ignored
sql(q{
	SELECT hrflow_create_store('odd', 'real[]');
	INSERT INTO odd SELECT 'acme', n, 'profile', 0, v::real[] FROM (VALUES
		('empty', '{}'), ('nan', '{NaN,1}'), ('infinite', '{Infinity,1}'), ('zero', '{0,0}'),
		('null', '{1,NULL}'), ('square', '{{1,0},{0,1}}'), ('long', '{1,0,0}'), ('good', '{1,1}'),
		('shifted', '[5:6]={1,0}')) v (n, v)});
foreach my $settings ('', 'SET min_parallel_table_scan_size = 0;')
{
	is(sql("$settings SELECT string_agg(profile_id, ' ') FROM hrflow_match('odd', '{2,1}')"),
		'good shifted', 'only vectors whose similarity is defined are returned');
	is( sql("$settings SELECT string_agg(profile_id, ' ') FROM hrflow_match('odd', '{2,1}',
			profiles => '{null,square,empty,good,NULL}')"),
		'good',
		'only vectors whose similarity is defined are returned for given profiles');
	is( sql(qq{$settings SELECT string_agg(profile_id, ' ')
			FROM hrflow_match_weighted('odd', '{2,1}', '{"profile": 2}')}),
		'good shifted',
		'only vectors whose similarity is defined are returned by a weighted search');
}
check_not_compiled('odd', "hrflow_match_all('odd', 'odd')");

# With an infinite sum of weights, similarities would be meaningless
like(
	$node->error_of(
		qq{SELECT * FROM hrflow_match_weighted('plain', $query,
		'{"profile": 1.5e308, "skills": 1.5e308}')}),
	qr/^22023: sum of weights is out of range for type double precision/,
	'weights whose sum is infinite are refused');

# Columns that were dropped before and between the others, and one that was added
sql(q{
	CREATE TABLE reshaped (gone int, source_id text, profile_id text, more text, section text,
		item int, gone2 text, vector real[], fetched_at timestamptz);
	ALTER TABLE reshaped DROP gone, DROP gone2;
	INSERT INTO reshaped SELECT source_id, profile_id, 'x', section, item, vector, fetched_at FROM plain}
);
is(sql("SELECT profile_id FROM hrflow_match('reshaped', $query)"),
	$best, 'a table with dropped columns and without a key is ranked');

# Two names of the same section
sql(q{SELECT hrflow_create_store('opening', 'real[]', content => 'job');
	INSERT INTO opening VALUES ('acme', 'j', 'job', 0, '{1,0}')});
is( sql(q{SELECT job.similarity, job.parts
			FROM hrflow_match_weighted('opening', '{1,0}', '{"profile": 0.5, "job": 0.25}') job}),
	'0.75|{"job": 0.75}',
	'weights of two names of the same section are added up');

# All statements of a search see what the calling statement sees: in these queries, the
# store before a function of the same query has changed it.
sql(q{
	SELECT hrflow_create_store('seen', 'real[]');
	INSERT INTO seen VALUES ('a', 'one', 'profile', 0, '{1,0}'),
		('b', 'two', 'profile', 0, '{0,1}');
	CREATE FUNCTION delete_seen(source text) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		DELETE FROM seen WHERE source_id LIKE source;
		RETURN 'profile';
	END $$});
is( sql(q{BEGIN;
		SELECT string_agg(m.profile_id, ' ' ORDER BY m.profile_id) FROM delete_seen('b') AS section,
			LATERAL hrflow_match('seen', '{1,1}', 10, section, '{one,two}') m;
		ROLLBACK}),
	'one two',
	'a search by identifiers finds those of a source that has been deleted meanwhile');
is( sql(q{BEGIN;
		SELECT count(*) FROM delete_seen('%') AS section,
			LATERAL hrflow_match_all('seen', 'seen', 1, section, section);
		ROLLBACK}),
	'2',
	'hrflow_match_all() compares vectors that have been deleted meanwhile');

# A function of another role in the schema of the extension, with more specific argument
# types than ours
{
	my %calls = (
		'a parallel search' =>
		  "SET min_parallel_table_scan_size = 0; SELECT profile_id FROM hrflow_match('plain', $query)",
		'a weighted search' =>
		  qq{SELECT profile_id FROM hrflow_match_weighted('plain', $query, '{"profile": 1}')},
		'a weighted search by identifiers' =>
		  qq{SELECT profile_id FROM hrflow_match_weighted('plain', $query, '{"profile": 1}',
			profiles => (SELECT array_agg(profile_id) FROM plain))});
	my %feeds = (
		by_id => "source_id => 'acme', refresh_columns => '{cv}'",
		by_column => "source_column => 'source'",
		by_content => "content_columns => '{cv}', item_type => 'job', refresh_columns => '{id}'");
	foreach my $store (sort keys %feeds)
	{
		my $content = $store eq 'by_content' ? 'document' : 'profile';

		sql("SELECT hrflow_create_store('$store', 'real[]', content => '$content');
			CREATE TABLE feeds_$store (id text, source text, cv jsonb);
			SELECT hrflow_track_table('$store', 'feeds_$store', 'id', $feeds{$store})");
	}
	sql(q{
		CREATE ROLE intruder;
		GRANT CREATE ON SCHEMA public TO intruder;
		SET ROLE intruder;
		CREATE FUNCTION public.hrflow_vector_similarity(v real[], q real[]) RETURNS float8
			LANGUAGE plpgsql PARALLEL SAFE AS
			$$BEGIN RAISE WARNING 'intruder acts as %', current_user; RETURN random(); END$$});
	foreach my $what (sort keys %calls)
	{
		my ($status, $out, $err) = $node->psql('postgres', $calls{$what});

		is("$err$out", $best, "$what does not call a function that overloads ours");
	}

	# The statement of a job
	sql(join "\n",
		'SET ROLE intruder;',
		map {
			"CREATE PROCEDURE public.hrflow_refresh($_) LANGUAGE plpgsql AS
			\$\$BEGIN RAISE WARNING 'intruder acts as %', current_user; END\$\$;"
		} 'store text, fields text, max_age text, time_budget text',
		'store regclass, fields jsonb, max_age text, time_budget text',
		'store text, fields jsonb, max_age interval, time_budget interval');
	my (undef, undef, $hint) = $node->psql('postgres', "SELECT hrflow_schedule('plain')");
	my ($job) = $hint =~ /another scheduler run: (CALL .*)/ or die "no statement in $hint";
	my ($status, undef, $err) = $node->psql('postgres', $job);
	is($status, 0, 'the statement of a job succeeds although procedures overload ours');
	unlike($err, qr/intruder/,
		'the statement of a job does not call a procedure that overloads ours');
	sql(q{SET ROLE intruder; CREATE PROCEDURE public.hrflow_refresh(store regclass, fields jsonb,
			max_age interval, time_budget interval) LANGUAGE plpgsql AS
			$$BEGIN RAISE WARNING 'intruder acts as %', current_user; END$$});
	like(
		$node->error_of($job),
		qr/^42725: procedure public.hrflow_refresh/,
		'the statement of a job fails if a procedure has the same arguments');

	# The statement that tracks a table again
	sql(join "\n",
		'SET ROLE intruder;',
		map {
			"CREATE FUNCTION public.hrflow_track_table($_) RETURNS bigint LANGUAGE plpgsql AS
			\$\$BEGIN RAISE WARNING 'intruder acts as %', current_user; RETURN 0; END\$\$;"
		  } 'store text, source_table text, profile_column text, source_id text,
			refresh_columns text',
		'store regclass, source_table regclass, profile_column text, source_column text',
		'store regclass, source_table regclass, profile_column name, content_columns text,
			item_type text, refresh_columns text');
	foreach my $store (sort keys %feeds)
	{
		my $track = sql("SELECT hrflow_release_columns('$store', 'feeds_$store')");

		($status, undef, $err) = $node->psql('postgres', $track);
		is($status, 0, "the statement of hrflow_release_columns() succeeds: $track");
		unlike($err, qr/intruder/,
			"the statement of hrflow_release_columns() does not call an overload: $track");
		is(sql("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'feeds_$store'::regclass"),
			4, "the statement of hrflow_release_columns() re-creates the triggers: $track");
	}
	sql('DROP OWNED BY intruder; DROP ROLE intruder');
}

# Rows are deleted and vacuumed while a search is reading them.  A policy makes the
# search wait at a row in the middle, for a lock that we hold.
{
	my $deleting = $node->background_psql('postgres');

	sql(q{
		SELECT hrflow_create_store('long', 'real[]');
		INSERT INTO long SELECT 'acme', 'p' || p, 'profile', 0,
				(SELECT array_agg(sin(p * i)::real) FROM generate_series(1, 1000) i)
			FROM generate_series(1, 200) p;
		CREATE FUNCTION wait_at(id text) RETURNS bool LANGUAGE plpgsql AS $$
		BEGIN
			IF id = 'p100' THEN
				PERFORM pg_advisory_xact_lock(7);
			END IF;
			RETURN true;
		END $$;
		CREATE ROLE reader;
		GRANT SELECT ON long TO reader;
		GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO reader;
		ALTER TABLE long ENABLE ROW LEVEL SECURITY;
		CREATE POLICY waits ON long FOR SELECT TO reader USING (wait_at(profile_id))});
	$deleting->query_safe('SELECT pg_advisory_lock(7)');

	my $search = $node->background_psql('postgres');
	$search->query_until(
		qr/searching/, qq{
		SET ROLE reader;
		\\echo searching
		SELECT count(*), min(similarity) IS NOT NULL FROM hrflow_match('long',
			(SELECT array_agg(1::real) FROM generate_series(1, 1000)), 1000);
		\\echo done
	});
	$node->poll_query_until('postgres',
		q{SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted})
	  or die 'the search did not wait';
	sql('DELETE FROM long');
	sql('VACUUM long');
	$deleting->query_safe('SELECT pg_advisory_unlock(7)');
	like($search->query_until(qr/done/, ''),
		qr/200\|t/, 'a search returns rows that are deleted and vacuumed while it runs');
	$search->quit;

	# The search is canceled at the same row.
	sql("INSERT INTO long SELECT 'acme', 'p' || p, 'profile', 0, '{1,0}'
		FROM generate_series(1, 200) p");
	$deleting->query_safe('SELECT pg_advisory_lock(7)');
	$search = $node->background_psql('postgres', on_error_stop => 0);
	$search->query_until(
		qr/searching/, qq{
		SET ROLE reader;
		\\echo searching
		SELECT count(*) FROM hrflow_match('long', '{1,1}');
		RESET ROLE;
		SELECT count(*), current_setting('search_path') FROM hrflow_match('long', '{1,1}');
		\\echo done
	});
	$node->poll_query_until(
		'postgres',
		q{SELECT count(pg_cancel_backend(pid)) = 1
			FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}) or die 'the search did not wait';
	like(
		$search->query_until(qr/done/, ''),
		qr/^10\|"\$user", public$/m,
		'a session can search again after a cancel, and its settings are unchanged');
	$search->quit;
	$deleting->quit;
}

# Queries of a function that a policy calls are not planned with the settings with which a
# search is planned.  Here, no workers are used because of the many identifiers.
sql(q{
	CREATE FUNCTION may_use_workers() RETURNS bool LANGUAGE plpgsql AS
		$$BEGIN RETURN current_setting('max_parallel_workers_per_gather') = '3'; END$$;
	GRANT SELECT ON plain TO reader;
	ALTER TABLE plain ENABLE ROW LEVEL SECURITY;
	CREATE POLICY may_use_workers ON plain FOR SELECT TO reader USING (may_use_workers())});
is( sql("SET ROLE reader; SET max_parallel_workers_per_gather = 3;
		SELECT count(*), current_setting('max_parallel_workers_per_gather')
			FROM hrflow_match('plain', $query,
				profiles => ARRAY(SELECT 'p' || i FROM generate_series(1, 200000) i))"),
	'10|3',
	'a policy is evaluated with max_parallel_workers_per_gather of the session');
sql('ALTER TABLE plain DISABLE ROW LEVEL SECURITY');

# A standby, which is read-only
{
	my $standby = PostgreSQL::Test::Cluster->new('standby');

	$node->backup('copy');
	$standby->init_from_backup($node, 'copy', has_streaming => 1);
	$standby->start;
	$node->wait_for_catchup($standby);
	is($standby->safe_psql('postgres', "SELECT profile_id FROM hrflow_match('plain', $query)"),
		$best, 'hrflow_match() returns the same on a standby as on its primary');
	is( $standby->safe_psql(
			'postgres',
			qq{SELECT profile_id FROM hrflow_match_weighted('plain', $query, '{"profile": 1}')}),
		$best,
		'hrflow_match_weighted() returns the same on a standby as on its primary');
	$standby->stop;
}

SKIP:
{
	skip 'pgvector is not available', 1 unless $has_pgvector;

	sql('CREATE EXTENSION vector');
	make_store('indexed', 'vector(16)', 2000);

	# Indexes that must not be used.  The result is exact without them.
	my $exact = sql("SELECT profile_id FROM hrflow_match('indexed', $query)");
	foreach my $case (
		[ 'has another condition', "WHERE section = 'profile' AND item = 1" ],
		[ 'is for another section', "WHERE section = 'skills'" ],
		[ 'is invalid', "WHERE section = 'profile'" ])
	{
		my ($what, $condition) = @$case;

		sql("CREATE INDEX bad ON indexed USING hnsw (vector vector_cosine_ops) $condition");
		sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'bad'::regclass")
		  if $what eq 'is invalid';
		my ($out, $plans) = explained('', "hrflow_match('indexed', $query)");

		is($out, $exact, "a search returns the ten best although there is an index that $what");
		unlike($plans, qr/ on bad /, "a search does not use an index that $what");
		sql('DROP INDEX bad');
	}

	# A partitioned store that has an index, but no partitions yet
	sql(q{
		CREATE TABLE parted (source_id text, profile_id text, section text, item int,
			vector vector(16), fetched_at timestamptz) PARTITION BY LIST (source_id);
		CREATE INDEX ON parted USING hnsw (vector vector_cosine_ops)});
	is(sql("SELECT count(*) FROM hrflow_match('parted', $query)"),
		'0', 'an indexed store without partitions has no matches');

	# hrflow_match_recall() raises an error if it does not find the index.
	sql(q{INSERT INTO indexed SELECT source_id, profile_id, 'it''s "a" \b', item, vector
			FROM indexed});
	sql(sql(q{SELECT hrflow_index_statement('indexed', 'it''s "a" \b')}));
	cmp_ok(sql(q{SELECT hrflow_match_recall('indexed', 'it''s "a" \b')}),
		'>=', 0.9, 'the index of a section with quotes and a backslash is used');

	# Planning the statement that finds an index takes about 2 ms, which is a quarter of
	# the time of a search among 20,000 profiles of 1,024 dimensions.
	is( sql(qq{
			SELECT count(*) FROM hrflow_match('indexed', $query) \\g /dev/null
			SELECT count(*) FROM hrflow_match('indexed', $query, 10, 'skills') \\g /dev/null
			SELECT count(*) FROM pg_backend_memory_contexts
				WHERE name = 'CachedPlanSource' AND ident LIKE '% FROM pg_index %'}),
		'1',
		'the statement that finds an index is planned once in a session');

	sql(sql("SELECT hrflow_index_statement('indexed')"));
	check_not_compiled('indexed', "hrflow_match('indexed', $query)");

	# The memory used by hrflow_match_recall() does not grow with the sample.
	skip '/proc does not exist', 1 unless -e '/proc/self/status';
	skip 'an instrument uses memory of its own', 1 if $ENV{HRFLOW_INSTRUMENT};
	my $peak = q{SELECT substring(pg_read_file('/proc/self/status') FROM 'VmHWM:\s+(\d+)');};
	my @peaks = split /\n/, sql(
		"SELECT hrflow_match_recall('indexed', sample => 20, profiles => '{p1}'); $peak
		SELECT hrflow_match_recall('indexed', sample => 1500, profiles => '{p1}'); $peak");
	cmp_ok($peaks[3] - $peaks[1],
		'<', 4096, 'hrflow_match_recall() uses no more memory for 1,500 samples than for 20');
}

$node->stop('fast');
done_testing();
