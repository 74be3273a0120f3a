# A statement that fails leaves no requests behind, even if the error is rolled back to a
# savepoint and its cursor remains open: nothing is sent, or shown, on its behalf from then
# on, while other cursors continue.  The stand-in counts the requests.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 4);
my $node = Hrflow::Node->new(
	'savepoints', $api,
	link_hosts => '127.0.0.1',
	max_attempts => 10,
	request_timeout => '60s',
	shared_preload_libraries => 'hrflow_embed');

# When these statements time out, requests are waiting to be retried.  The server asks for
# the links to be retried after a second.
my $timeout = q{SET LOCAL statement_timeout = '700ms'};
my $ids = q{ARRAY(SELECT 'fault:v.status=503,v.retry_after=1,id=' || i
	FROM generate_series(1, 12) i)};
my $batch = "SELECT ordinality FROM hrflow_profile_vectors('S', $ids)";
my $call = q{hrflow_job_vector('fault:v.status=503,v.retry_after=1')};

$node->safe_psql(
	'postgres', qq{
	CREATE FUNCTION in_sql() RETURNS SETOF bigint LANGUAGE sql AS \$\$ $batch \$\$;
	CREATE FUNCTION in_plpgsql() RETURNS SETOF bigint LANGUAGE plpgsql
		AS \$\$ BEGIN RETURN QUERY $batch; END \$\$;
	CREATE FUNCTION in_loop() RETURNS SETOF bigint LANGUAGE plpgsql
		AS \$\$ DECLARE r record; BEGIN FOR r IN $batch LOOP RETURN NEXT 1; END LOOP; END \$\$;
	CREATE FUNCTION in_expression() RETURNS real[] LANGUAGE plpgsql
		AS \$\$ BEGIN RETURN $call; END \$\$;
});

my $session = Hrflow::Session->new($node);
my $other = Hrflow::Session->new($node);

# In a transaction, run statements that time out in what $name says, and roll that back.
# Nothing may be left then: no activity, and no request that another call would send.
sub check_failure
{
	my ($name, $sql) = @_;
	my ($printed, $nanswered);

	# A busy machine may need more time to answer a request.
	foreach my $ms (700, 4000)
	{
		$session->ask('ROLLBACK;');
		$api->reset;
		$printed = $session->ask('BEGIN; ' . $sql =~ s/700ms/${ms}ms/r . ';');
		$nanswered = $api->log;
		last if $nanswered > 0;
	}
	like($printed, qr/57014/, "the timeout of $name is reported");
	cmp_ok($nanswered, '>', 0, "requests are answered before the timeout of $name");
	is($other->query('SELECT count(*) FROM hrflow_embed_activity;'),
		0, "nothing is shown after the timeout of $name");
	$api->reset;
	is( $session->query(
			q{SELECT hrflow_text_embedding('fault:latency=1000,id=later') IS NOT NULL;}),
		't',
		"another call succeeds after the timeout of $name");
	is(scalar($api->log), 1, "no other request is sent after the timeout of $name");
	return;
}

#
# What a cursor is executing
#
foreach my $case (
	[ 'a batch' => $batch ],
	[   'a batch that fetches no links' => q{SELECT * FROM hrflow_profile_embeddings('S',
		ARRAY(SELECT 'fault:status=503,id=' || i FROM generate_series(1, 12) i))} ],
	[ 'a batch in a column' => "SELECT hrflow_profile_vectors('S', $ids)" ],
	[ 'a batch in a subquery' => "SELECT (SELECT count(*) FROM ($batch) s)" ],
	[ 'a batch in an SQL function' => 'SELECT * FROM in_sql()' ],
	[ 'a batch in an SQL function in a column' => 'SELECT in_sql()' ],
	[ 'a batch in a PL/pgSQL function' => 'SELECT * FROM in_plpgsql()' ],
	[ 'a batch in a loop' => 'SELECT in_loop()' ],
	[ 'a call' => "SELECT CASE WHEN random() >= 0 THEN $call END" ],
	[ 'a call in FROM' => "SELECT * FROM unnest($call)" ],
	[ 'a call in an expression' => 'SELECT in_expression()' ],
	[ 'a call read ahead' => "SELECT $call FROM generate_series(1, 3)" ])
{
	my ($what, $query) = @$case;

	check_failure("$what in a cursor",
		"DECLARE q CURSOR FOR $query; SAVEPOINT s; $timeout; FETCH q; ROLLBACK TO s");
}

#
# Savepoints and cursors
#
foreach my $case (
	[ 'a statement' => "SAVEPOINT s; $timeout; $batch; ROLLBACK TO s" ],
	[   'a cursor that is rolled back, too,' => "SAVEPOINT s; DECLARE q CURSOR FOR $batch; $timeout;
		FETCH q; ROLLBACK TO s" ],
	[   'a cursor of an outer savepoint' => "SAVEPOINT r; DECLARE q CURSOR FOR $batch; SAVEPOINT s;
		$timeout; FETCH q; ROLLBACK TO s" ],
	[   'a cursor of a released savepoint' => "SAVEPOINT r; DECLARE q CURSOR FOR $batch; RELEASE r;
		SAVEPOINT s; $timeout; FETCH q; ROLLBACK TO s" ],
	[   'a cursor in a nested savepoint' =>
		  "DECLARE q CURSOR FOR $batch; SAVEPOINT r; SAVEPOINT s; $timeout;
		FETCH q; ROLLBACK TO r" ],
	[   'a loop in a PL/pgSQL block' => "$timeout; DO \$\$
		DECLARE r record;
		BEGIN
			FOR r IN $batch LOOP NULL; END LOOP;
		EXCEPTION WHEN query_canceled THEN RAISE NOTICE '57014';
		END \$\$; SET LOCAL statement_timeout = 0" ],
	[   'a cursor opened outside of a PL/pgSQL block' => "$timeout; DO \$\$
		DECLARE q refcursor; r record;
		BEGIN
			OPEN q FOR $batch;
			BEGIN
				FETCH q INTO r;
			EXCEPTION WHEN query_canceled THEN RAISE NOTICE '57014';
			END;
		END \$\$; SET LOCAL statement_timeout = 0" ],
	[   'an expression in a PL/pgSQL block' => "$timeout; DO \$\$
		DECLARE v real[];
		BEGIN
			v := $call;
		EXCEPTION WHEN query_canceled THEN RAISE NOTICE '57014';
		END \$\$; SET LOCAL statement_timeout = 0" ])
{
	my ($how, $sql) = @$case;

	check_failure($how, $sql);
}

#
# Requests in flight when a cursor fails do not count towards max_concurrency any longer.
# The later ones are answered only if four are in flight.
#
$session->ask(
	"ROLLBACK; BEGIN; SET LOCAL hrflow_embed.max_concurrency = 4;
	DECLARE q CURSOR FOR SELECT * FROM hrflow_profile_embeddings('S',
		ARRAY(SELECT 'fault:silent,id=' || i FROM generate_series(1, 8) i));
	SAVEPOINT s; $timeout; FETCH q; ROLLBACK TO s;");
is( $session->query(
		q{SET LOCAL statement_timeout = '20s';
		SELECT count(*) FROM hrflow_profile_embeddings('S',
			ARRAY(SELECT 'fault:hold=4,id=' || i FROM generate_series(1, 4) i))
		WHERE status = 'ok';}),
	4,
	'requests in flight when a cursor fails do not delay other requests');

#
# Cursors that have not failed continue, even if they were used since the savepoint, and
# send no request again.
#
$session->ask('ROLLBACK;');
$api->reset;
like(
	$session->ask(
		"BEGIN;
		DECLARE ahead CURSOR FOR SELECT i, hrflow_text_embedding('good ' || i) IS NOT NULL
			FROM generate_series(1, 9) i;
		DECLARE batch CURSOR FOR SELECT ordinality, status FROM hrflow_text_embeddings(
			ARRAY(SELECT 'good ' || i FROM generate_series(11, 19) i)) ORDER BY 1;
		DECLARE q CURSOR FOR $batch;
		MOVE 2 FROM ahead;
		SAVEPOINT r;
		SAVEPOINT s;
		MOVE 2 FROM ahead;
		MOVE 4 FROM batch;
		RELEASE s;
		$timeout;
		FETCH q;
		ROLLBACK TO r;"),
	qr/57014/,
	'one of three cursors fails');
is( $session->query('FETCH ALL FROM ahead; FETCH ALL FROM batch;'),
	join("\n", (map { "$_|t" } 5 .. 9), (map { "$_|ok" } 5 .. 9)),
	'cursors that have not failed continue after a rollback to a savepoint');
is(scalar(grep { ($_->{body} // '') =~ /good/ } $api->log),
	18, 'cursors that continue after a rollback to a savepoint send no request again');

$session->ask('ROLLBACK;');
$other->finish;
$session->finish;
done_testing();
