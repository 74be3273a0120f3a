# Read-ahead changes nothing but the time at which requests are sent: EXPLAIN can show
# each plan, and a statement that fails or ends leaves no requests behind.  The stand-in
# counts the requests.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use PostgreSQL::Test::Utils ();
use Test::More;

my $concurrency = 4;

my $api = Hrflow::StandIn->new('--dim' => 4);
my $node = Hrflow::Node->new(
	'ahead_effects', $api,
	link_hosts => '127.0.0.1',
	max_concurrency => $concurrency,
	max_attempts => 1,
	request_timeout => '60s');

# Statements must have the same plan and order of rows without and with read-ahead.
$node->append_conf('postgresql.conf', 'autovacuum = off');
$node->reload;

$node->safe_psql(
	'postgres', q{
	CREATE TABLE c (id int PRIMARY KEY, hid text);
	INSERT INTO c SELECT i, 'p' || i FROM generate_series(1, 40) i;
	CREATE TABLE few AS SELECT id, hid FROM c WHERE id <= 3;
	ANALYZE;
});

my $e = q{hrflow_profile_embedding('S', hid, '{"profile": 1}')};
my $ce = q{hrflow_profile_embedding('S', c.hid, '{"profile": 1}')};

my $session = Hrflow::Session->new($node);

# Run statements, in one transaction each time, without and with read-ahead.  Returns
# what is printed, and the numbers of requests.
sub run_both
{
	my ($sql) = @_;
	my @results;

	foreach my $read_ahead ('off', 'on')
	{
		$api->reset;
		push @results, $session->ask(
			"DISCARD ALL; SET hrflow_embed.read_ahead = $read_ahead;
			BEGIN; $sql; ROLLBACK;") =~ s/\?X-Amz[^"\s,)}]*//gr, scalar($api->log);
	}
	return @results[ 0, 2, 1, 3 ];
}

#
# EXPLAIN VERBOSE of statements whose target has several tables.  Where the table is
# among others in a path's target, the planner represents its row identities, such as
# ctid, by special Vars.  The foreign table needs the whole row, too.
#
{
	my $host = $node->host;
	my $port = $node->port;

	$node->safe_psql(
		'postgres', qq{
		CREATE EXTENSION postgres_fdw;
		CREATE SERVER self FOREIGN DATA WRAPPER postgres_fdw
			OPTIONS (host '$host', port '$port', dbname 'postgres');
		CREATE USER MAPPING FOR CURRENT_USER SERVER self;
		CREATE TABLE part (id int, hid text, k int) PARTITION BY LIST (k);
		CREATE TABLE part0 PARTITION OF part FOR VALUES IN (0);
		CREATE TABLE part1 (k int, x text, hid text, id int);
		ALTER TABLE part1 DROP COLUMN x;
		ALTER TABLE part ATTACH PARTITION part1 FOR VALUES IN (1);
		INSERT INTO part SELECT i, 'p' || i, i % 2 FROM generate_series(1, 12) i;
		CREATE TABLE parent (id int, hid text, k int);
		CREATE TABLE child (extra text) INHERITS (parent);
		INSERT INTO parent SELECT i, 'p' || i FROM generate_series(1, 6) i;
		INSERT INTO child SELECT i, 'p' || i FROM generate_series(7, 12) i;
		CREATE TABLE far_part (id int, hid text, k int);
		CREATE TABLE far_child (id int, hid text, k int, more int);
		INSERT INTO far_part VALUES (13, 'p13', 2), (14, 'p14', 2);
		INSERT INTO far_child VALUES (13, 'p13', 2), (14, 'p14', 2);
		CREATE TABLE mixed_part (id int, hid text, k int) PARTITION BY LIST (k);
		CREATE TABLE mixed0 PARTITION OF mixed_part FOR VALUES IN (0);
		CREATE FOREIGN TABLE mixed2 PARTITION OF mixed_part FOR VALUES IN (2) SERVER self
			OPTIONS (table_name 'far_part');
		INSERT INTO mixed_part SELECT i, 'p' || i, 0 FROM generate_series(1, 12) i;
		CREATE TABLE mixed_parent (id int, hid text, k int);
		INSERT INTO mixed_parent SELECT i, 'p' || i FROM generate_series(1, 12) i;
		CREATE FOREIGN TABLE mixed_child (more int) INHERITS (mixed_parent) SERVER self
			OPTIONS (table_name 'far_child');
		CREATE FUNCTION row_written() RETURNS trigger LANGUAGE plpgsql
			AS \$\$BEGIN RAISE NOTICE '% % %', TG_OP, OLD, NEW; RETURN NULL; END\$\$;
		CREATE TRIGGER row_written AFTER UPDATE OR DELETE ON mixed2
			FOR EACH ROW EXECUTE FUNCTION row_written();
		CREATE TRIGGER row_written AFTER UPDATE OR DELETE ON mixed_child
			FOR EACH ROW EXECUTE FUNCTION row_written();
		ANALYZE;
	});
}

my $links = q{LATERAL hrflow_profile_embedding_links('S', c.hid, '{"profile": 1}') l};

foreach my $table ('part', 'parent', 'mixed_part', 'mixed_parent')
{
	my $after = "SELECT tableoid::regclass, * FROM $table ORDER BY id";
	my @lateral = (
		"UPDATE $table t SET hid = l.section || c.id FROM c CROSS JOIN $links WHERE c.id = t.id",
		"UPDATE $table t SET hid = hrflow_text_embedding(l.section || c.id)::text
			FROM c, $links WHERE c.id = t.id",
		"DELETE FROM $table t USING c, $links WHERE c.id = t.id AND l.section <> 'x'");

	# Foreign tables do not support MERGE.
	push @lateral, "MERGE INTO $table t USING (SELECT c.id, l.section FROM c, $links) s
			ON s.id = t.id WHEN MATCHED AND t.id < 9 THEN UPDATE SET hid = s.section || t.id
			WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN DO NOTHING"
	  if $table !~ /mixed/;

	foreach my $case (
		[ '' => "UPDATE $table SET hid = $e ->> 'profile'" ],
		[ '' => "UPDATE $table SET hid = $ce ->> 'profile' FROM c WHERE c.id = $table.id" ],
		[   '' => "UPDATE $table t SET hid = $ce ->> 'profile' FROM c WHERE c.id = t.id
				RETURNING t.tableoid::regclass, t.*, c.*"
		],
		[   '' => "UPDATE $table t SET hid = hrflow_profile_embedding('S', c.hid || length(t::text)
				|| t.tableoid::regclass || (t.ctid IS NOT NULL)) ->> 'profile'
				FROM c WHERE c.id = t.id"
		],
		[   '' => "UPDATE $table t SET hid =
				(hrflow_fetch_vector($ce ->> 'profile'))[1]::text FROM c WHERE c.id = t.id"
		],
		[   '' => "UPDATE $table t SET hid = s.e ->> 'profile'
				FROM (SELECT id, $e e FROM c OFFSET 0) s WHERE s.id = t.id"
		],
		[   '' => "UPDATE $table t SET hid = $ce ->> 'profile' FROM c LEFT JOIN few USING (id)
				WHERE c.id = t.id AND t.id < 10"
		],
		[   '' => "WITH w AS (UPDATE $table t SET hid = $ce ->> 'profile' FROM c WHERE c.id = t.id
				RETURNING t.id, t.hid) SELECT * FROM w ORDER BY id"
		],
		[   'SET LOCAL enable_partitionwise_join = on;' => "UPDATE $table t
				SET hid = hrflow_profile_embedding('S', o.hid) ->> 'profile'
				FROM $table o WHERE o.id = t.id AND o.k = t.k"
		],

		# Let the planner join the target before the function, or after it.
		(map { [ '' => $_ ], [ 'SET LOCAL join_collapse_limit = 1;' => $_ ] } @lateral))
	{
		my ($settings, $sql) = @$case;

		subtest "$settings $sql" =~ s/\s+/ /gr => sub {
			my $plan = $session->ask(
				"DISCARD ALL; BEGIN; $settings EXPLAIN (VERBOSE, COSTS OFF) $sql; ROLLBACK;");
			unlike($plan, qr/ERROR/, 'EXPLAIN VERBOSE shows the plan');
			like($plan, qr/HrflowReadAhead/, 'is read ahead') or diag($plan);
			my ($expected, $got, $sequential, $requests) = run_both("$settings $sql; $after");
			is($got, $expected, 'has the same effect');
			unlike($got, qr/ERROR/, 'raises no error');
			is($requests, $sequential, 'makes as many requests');
		};
	}

	# Conditions without columns of the table are evaluated once for each partition.
	foreach my $condition (
		'current_user <> $$nobody$$',
		'(SELECT count(*) FROM few) = 3',
		'EXISTS (SELECT FROM few)',
		"current_setting('work_mem') = '1'")
	{
		foreach my $sql (
			"UPDATE $table SET hid = $e ->> 'profile' WHERE $condition",
			"UPDATE $table t SET hid = (hrflow_fetch_vector($ce ->> 'profile'))[1]::text
				FROM c WHERE c.id = t.id AND $condition",
			"UPDATE $table t SET hid = hrflow_profile_embedding('S', t.hid || (t.ctid IS NOT NULL))
				->> 'profile' WHERE $condition")
		{
			my $name = $sql =~ s/\s+/ /gr;
			my $plan = $session->ask("DISCARD ALL; EXPLAIN (VERBOSE, COSTS OFF) $sql;");
			my ($expected, $got, $sequential, $requests) = run_both("$sql; $after");

			unlike($plan, qr/ERROR/, "EXPLAIN VERBOSE shows the plan: $name");
			like($plan, qr/HrflowReadAhead/, "is read ahead: $name") or diag($plan);
			is($got, $expected, "has the same effect: $name");
			unlike($got, qr/ERROR/, "raises no error: $name");
			is($requests, $sequential, "makes as many requests: $name");
		}
	}
}

#
# CTEs that scan each other twice.  The time that it takes to decide how far the query may
# read ahead must not double with each of them.
#
{
	my $twice = 'SELECT id, hid FROM %1$s UNION ALL SELECT id, hid FROM %1$s';
	my $nested = 'SELECT id, hid FROM c';
	my @ctes = "c0 AS MATERIALIZED ($nested)";

	foreach my $level (1 .. 26)
	{
		push @ctes, "c$level AS MATERIALIZED (" . sprintf($twice, 'c' . ($level - 1)) . ')';
		$nested = "WITH n$level AS MATERIALIZED ($nested) " . sprintf($twice, "n$level");
	}
	foreach my $case (
		[ 'that are defined one after another' => 'WITH ' . join(', ', @ctes), 'c26' ],
		[ 'that contain each other' => "WITH n AS MATERIALIZED ($nested)", 'n' ])
	{
		my ($how, $with, $name) = @$case;
		my ($expected, $got) =
		  run_both("SET LOCAL statement_timeout = '10s'; $with SELECT id, $e FROM $name LIMIT 3");

		is($got, $expected, "CTEs $how return the same rows");
		unlike($got, qr/ERROR/, "CTEs $how are started quickly");
	}
}

#
# Requests of a query that has failed.  If it belongs to a cursor that the error leaves
# open, none of its requests is sent while the session makes other calls.
#
my $other = Hrflow::Session->new($node);
my $slow = q{hrflow_text_embedding('fault:latency=50,id=' || id)};

foreach my $case (
	[ 'an error in another column' => "SELECT id, $slow, 1 / (id - 3) FROM c" ],
	[   'an error of a call' => "SELECT id, $slow, hrflow_text_embedding(CASE id WHEN 3
		THEN 'fault:status=500' END) FROM c" ],
	[   'statement_timeout' =>
		  "SELECT id, $slow, pg_sleep(CASE id WHEN 3 THEN 60 ELSE 0 END) FROM c",
		q{SET LOCAL statement_timeout = '1s'} ],
	[   'statement_timeout in a request' => "SELECT id, hrflow_text_embedding(CASE id WHEN 3
		THEN 'fault:silent' ELSE 'fault:latency=50,id=' || id END) FROM c",
		q{SET LOCAL statement_timeout = '1s'} ],
	[ 'a cancel' => "SELECT id, $slow, pg_sleep(CASE id WHEN 3 THEN 60 ELSE 0 END) FROM c", '', 1 ])
{
	my ($what, $sql, $settings, $is_canceled) = @$case;

	$session->ask("DISCARD ALL; BEGIN; DECLARE q CURSOR FOR $sql; SAVEPOINT s;"
		  . ($settings ? "$settings;" : ''));
	$session->send("FETCH 30 FROM q;\n\\warn -- done");
	if ($is_canceled)
	{
		$node->poll_query_until('postgres',
			"SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
		  or die 'no session sleeps';
		$other->ask('SELECT pg_cancel_backend(' . $session->pid . ');');
	}
	like($session->wait_for(qr/-- done/), qr/ERROR/, "FETCH fails with $what");
	$session->ask('ROLLBACK TO s;');
	$api->reset;
	$session->query("SELECT hrflow_text_embedding('fault:latency=300,id=later');");
	is(scalar($api->log), 1, "no request of a cursor is sent after $what");
	like($session->ask('FETCH 1 FROM q;'), qr/55000/, "a cursor has failed after $what");
	$session->ask('ROLLBACK;');
}

# The cursor's UPDATE is executed by ExecutorFinish().
$session->ask('DISCARD ALL;');
$api->reset;
like(
	$session->ask(
		"DO \$\$
	DECLARE q refcursor; r record;
	BEGIN
		OPEN q FOR WITH w AS (UPDATE c SET hid = CASE id WHEN 3 THEN (1 / (id - 3))::text
			ELSE 'x' END || ($slow)[1]) SELECT 1;
		BEGIN
			FETCH q INTO r;
		EXCEPTION WHEN division_by_zero THEN
			PERFORM pg_sleep(2);
			PERFORM hrflow_text_embedding('fault:latency=300,id=later');
			RAISE NOTICE 'caught';
		END;
	END\$\$;"),
	qr/caught/,
	'the UPDATE of a cursor fails');
{
	my @log = $api->log;
	my ($later) = grep { $_->{body} =~ /later/ } @log;
	is(scalar(grep { $_->{begun} > $later->{begun} - 200 } @log),
		1, 'no request of an UPDATE is sent after it has failed');
}

# A query whose function catches the error of a query of its own
$node->safe_psql(
	'postgres', q{
	CREATE FUNCTION catches(i int) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
	BEGIN
		PERFORM hrflow_text_embedding('inner ' || i || ' ' || n), 1 / (n - 2)
		FROM generate_series(1, 20) n;
	EXCEPTION WHEN division_by_zero THEN
		RETURN 'caught';
	END$$;
});
{
	my ($expected, $got) = run_both("SELECT id, $slow IS NOT NULL, catches(id) FROM c ORDER BY id");
	my @outer = grep { $_->{body} =~ /fault/ } $api->log;

	is($got, $expected, 'a query continues after its function has caught an error');
	unlike($got, qr/ERROR/, 'a query does not fail with the error that its function has caught');
	is(scalar(@outer), 40, 'a query makes no call again after its function has caught an error');
}

#
# A statement that writes, above parallel workers.  Arguments that may raise an error are
# evaluated in a subtransaction, which is possible there since PostgreSQL 17.
#
foreach my $statement (
	"CREATE TABLE t AS SELECT id, hrflow_text_embedding('fault:latency=50,id=' || lower(hid)) FROM c",
	"SELECT id, hrflow_text_embedding('fault:latency=50,id=' || lower(hid)) INTO t FROM c",
	"CREATE TABLE t AS SELECT id, hrflow_text_embedding('fault:latency=50,id=' || 60 / (id - 41))
		FROM c",
	"CREATE MATERIALIZED VIEW t AS SELECT id, hrflow_text_embedding('fault:latency=50,id='
		|| lower(hid)) FROM c WITH NO DATA; REFRESH MATERIALIZED VIEW t")
{
	my $parallel = 'SET LOCAL parallel_setup_cost = 0; SET LOCAL parallel_tuple_cost = 0;
		SET LOCAL min_parallel_table_scan_size = 0;';
	my $name = $statement =~ s/\s+/ /gr;

	if ($statement =~ /^CREATE TABLE/)
	{
		like($session->ask("BEGIN; $parallel EXPLAIN $statement; ROLLBACK;"),
			qr/HrflowReadAhead.*Gather/s, "above parallel workers is read ahead: $name");
	}
	my ($expected, $got) = run_both("$parallel $statement; SELECT * FROM t ORDER BY id");
	is($got, $expected, "above parallel workers has the same effect: $name");
	unlike($got, qr/WARNING|ERROR/, "above parallel workers raises nothing: $name");
	cmp_ok($api->stats->{max_in_flight}, '>', 1, "above parallel workers, requests overlap: $name")
	  if $node->pg_version >= 17;
}

#
# A statement that has returned all of its rows does not wait for requests of rows that it
# has not needed.  The seventh row is read before the fifth is returned.
#
my $speculative = q{SELECT id, v IS NOT NULL FROM (SELECT id, hrflow_text_embedding(CASE id
		WHEN 7 THEN 'fault:latency=30000' ELSE 'p' || id END) v FROM c ORDER BY id OFFSET 0) s
	CROSS JOIN (SELECT FROM few WHERE id = 1 OFFSET 0) f LIMIT 5};

foreach my $statement (
	"CREATE TABLE t AS $speculative",
	$speculative,
	"INSERT INTO few (id) SELECT id FROM ($speculative) s",
	"COPY ($speculative) TO STDOUT",
	"DECLARE q SCROLL CURSOR FOR $speculative; FETCH ALL FROM q; FETCH BACKWARD 2 FROM q",
	"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF) $speculative",
	"WITH w AS (UPDATE c SET hid = NULL WHERE id > 30 AND $slow IS NOT NULL RETURNING id)
		SELECT s.*, w.id FROM ($speculative) s, w LIMIT 2")
{
	my $name = $statement =~ s/\s+/ /gr;

	$api->reset;
	my $printed = $session->ask(
		"DISCARD ALL; BEGIN; SET LOCAL statement_timeout = '15s';
		$statement; SELECT 'complete'; ROLLBACK;");
	like($printed, qr/complete/, "ends without its unnecessary requests: $name") or diag($printed);
}

$other->finish;
$session->finish;
done_testing();
