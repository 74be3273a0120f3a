# hrflow_embed_activity shows what backends are doing: the progress of a batch,
# of a query whose calls are read ahead and of a refresh, what they are waiting
# for and until when, and to whom it shows that.  Nothing is left of a statement
# that has ended in any way.  One session has to observe another.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;

# Pauses and turns apply to a key.
my @keys = ($Hrflow::StandIn::KEY, map { "askr_key$_" } 1 .. 2);
my $api = Hrflow::StandIn->new(map { ('--key' => $_) } @keys);
my $node = Hrflow::Node->new(
	'activity', $api,
	link_hosts => '127.0.0.1',
	max_response_size => '64MB',
	request_timeout => '120s',
	shared_preload_libraries => 'hrflow_embed');
my $watcher = Hrflow::Session->new($node);
my $session = Hrflow::Session->new($node, timeout => 180);

sub sees
{
	my ($sql, $by) = @_;
	my $seen = ($by // $watcher)->ask("$sql;");

	return $seen =~ s/\n?-- done\n?//r;
}

# Run a statement, wait until a condition on its backend's row is true, return
# columns of the row, and cancel the statement.
sub shown
{
	my ($statement, $condition, $columns) = @_;
	my ($row, $row_of_backend) = ('', "FROM hrflow_embed_activity WHERE pid = $session->{pid}");

	$session->send("$statement;\n\\echo -- done");
	foreach my $try (1 .. 3000)
	{
		last if $row = sees("SELECT $columns $row_of_backend AND $condition");
		select(undef, undef, undef, 0.01);
	}
	diag(sees("SELECT * $row_of_backend") . $session->{err}) unless $row;
	sees("SELECT pg_cancel_backend($session->{pid})");
	$session->wait_for(qr/-- done/);
	is(sees("SELECT count(*) $row_of_backend"), 0, "nothing is left of: $statement");
	$session->ask('ROLLBACK;');
	return $row;
}

my $state =
  "function, store, elements_total, elements_done, ok, failed, requests, retries, in_flight,
	waiting_for, resumes_at, started_at <= clock_timestamp()";

#
# Progress of statements
#
is( shown(
		q{SELECT count(*) FROM hrflow_profile_embeddings('acme',
			ARRAY['fault:silent', 'missing-1', NULL, 'p', 'p']
			|| ARRAY(SELECT 'p' || i FROM generate_series(1, 15) i))},
		'elements_done = 19 AND waiting_for IS NOT NULL',
		"$state, eta BETWEEN clock_timestamp() - interval '1 minute'
			AND clock_timestamp() + interval '1 minute'"
	),
	'hrflow_profile_embeddings||20|19|17|2|18|0|1|network||t|t',
	'a batch shows how many of its elements are complete, and when all are expected to be');
is( shown(
		q{SELECT count(*) FROM hrflow_profile_vectors('acme',
			'{fault:silent,p,"fault:v.status=403,id=1"}', '{"profile": 1, "skills": 1}')},
		'elements_done = 2 AND waiting_for IS NOT NULL',
		$state),
	'hrflow_profile_vectors||3|2|1|1|7|0|1|network||t',
	'an element is complete when all its links are, and ok if all its vectors are');
is( shown(
		q{SELECT hrflow_text_embedding('fault:silent')}, "waiting_for = 'network'", "$state, eta"),
	'hrflow_text_embedding||1|0|0|0|1|0|1|network||t|',
	'a call of a function that returns one value is shown');
is( shown(
		q{SELECT hrflow_profile_embedding('acme', CASE i WHEN 5 THEN 'fault:silent' ELSE 'p' || i END)
			FROM generate_series(1, 8) i},
		'elements_done = 7 AND waiting_for IS NOT NULL',
		"$state, eta"),
	'hrflow_profile_embedding|||7|7|0|8|0|1|network||t|',
	'a query whose calls are read ahead shows the calls that are complete');

# Nested functions
$node->safe_psql(
	'postgres', q{
	CREATE FUNCTION nested(text) RETURNS bigint LANGUAGE sql
		AS $$ SELECT count(*) FROM hrflow_text_embeddings(ARRAY['x', $1]) $$;
	CREATE FUNCTION caught() RETURNS jsonb LANGUAGE plpgsql AS $$
	BEGIN
		BEGIN
			PERFORM hrflow_profile_embeddings('unknown', '{a,b}');
		EXCEPTION WHEN invalid_parameter_value THEN
		END;
		RETURN hrflow_profile_embedding('acme', 'fault:silent');
	END $$});
is( shown(
		q{SELECT hrflow_profile_embedding('acme', 'p' || i), nested('fault:silent')
			FROM generate_series(1, 3) i},
		'elements_done = 1 AND waiting_for IS NOT NULL',
		'function, elements_total'),
	'hrflow_text_embeddings|2',
	'if functions are nested, the one that began last is shown');
is(shown('SELECT caught()', "waiting_for = 'network' AND requests = 1", 'function'),
	'hrflow_profile_embedding', 'nothing is left of a batch whose error was caught');

# In a transaction block.  PL/pgSQL keeps its memory until ROLLBACK.
$session->ask(
	q{CREATE FUNCTION assigned(batch bool) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		v jsonb;
	BEGIN
		IF batch THEN
			PERFORM hrflow_profile_embeddings('acme', '{a,fault:silent}');
		ELSE
			v := hrflow_profile_embedding('acme', 'fault:silent');
		END IF;
	END $$;});
foreach my $case ([ 'false', 'hrflow_profile_embedding' ], [ 'true', 'hrflow_profile_embeddings' ])
{
	my ($batch, $function) = @$case;

	$session->ask('BEGIN;');
	is(shown("SELECT assigned($batch)", "waiting_for = 'network'", 'function'),
		$function, "$function() in a PL/pgSQL function is shown");
}

# A cursor
$session->ask(
	q{BEGIN; DECLARE c CURSOR FOR SELECT i, hrflow_profile_embedding('acme', 'p' || i) IS NOT NULL
		FROM generate_series(1, 40) i; FETCH 2 FROM c;});
is(sees('SELECT count(*) FROM hrflow_embed_activity'),
	0, 'a cursor that is not being fetched from is not shown');
$session->ask('COMMIT;');

#
# Reasons for which backends wait
#
like(
	shown(
		qq{SET hrflow_embed.api_key = '$keys[1]'; SET hrflow_embed.max_requests_per_minute = 1;
			SELECT count(*) FROM hrflow_text_embeddings('{a,b,c}')},
		"elements_done = 1 AND waiting_for = 'rate'",
		"in_flight, resumes_at > clock_timestamp() + interval '1 second', eta > clock_timestamp()"),
	qr/^0\|t\|t$/,
	'a batch that waits for its turn within the rate shows when its turn is');
is( shown(
		qq{SET hrflow_embed.api_key = '$keys[2]'; SET hrflow_embed.max_requests_per_minute = 0;
			SELECT hrflow_profile_embedding('acme', 'fault:status=429,retry_after=60')},
		"waiting_for = 'rate'",
		"in_flight, resumes_at BETWEEN clock_timestamp()
			AND clock_timestamp() + interval '60 seconds'"
	),
	'0|t',
	'a call during a pause shows when the pause is over');
$session->ask('RESET ALL;');
is( shown(
		q{SELECT count(*) FROM hrflow_profile_vectors('acme', '{"fault:v.status=503,v.retry_after=60"}',
			'{"profile": 1}')},
		"waiting_for = 'retry'",
		"requests, in_flight, resumes_at BETWEEN clock_timestamp()
			AND clock_timestamp() + interval '60 seconds'"
	),
	'2|0|t',
	'a batch that waits for a retry shows when the retry is due');
is( shown(
		q{SELECT count(*) FROM hrflow_profile_embeddings('acme',
			'{"fault:big=40000000,stall=34000000,id=1","fault:big=40000000,stall=34000000,id=2"}')},
		"waiting_for = 'memory'",
		'elements_done, in_flight, resumes_at'),
	'0|1|',
	'a batch whose replies use all the memory they may shows that it waits for memory');

#
# A refresh, and rows of its store that others have locked
#
my $store = Hrflow::Store->new($node, $api, 'shop');
$store->track(q{SELECT unnest('{nurse-1,nurse-2,fault:silent}'::text[])});
$session->send(
	q{SET hrflow_embed.request_timeout = '10s'; SET hrflow_embed.max_attempts = 1;
	SET ROLE keeper; CALL hrflow_refresh('shop.embedding'); RESET ALL; RESET ROLE;
	\echo -- done});
my $seen = '';
for (my $try = 0; $seen eq '' && $try < 3000; $try++)
{
	select(undef, undef, undef, 0.01);
	$seen = sees(
		"SELECT $state, role FROM hrflow_embed_activity WHERE elements_done = 2
		AND in_flight = 1 AND waiting_for = 'network'");
}
is( $seen,
	'hrflow_refresh|shop.embedding|3|2|2|0|5|0|1|network||t|keeper',
	'a refresh shows its store, its role and the profiles that are complete');
$watcher->ask(
	q{BEGIN; SELECT FROM shop.embedding_profile WHERE profile_id = 'fault:silent' FOR UPDATE;});
$seen = '';
for (my $try = 0; $seen eq '' && $try < 3000; $try++)
{
	select(undef, undef, undef, 0.01);
	$seen = sees(
		"SELECT elements_done, failed, in_flight FROM hrflow_embed_activity
		WHERE waiting_for = 'lock'");
}
is($seen, '3|1|0',
	'a refresh that waits for locked rows of its store shows that it waits for a lock');
$watcher->ask('COMMIT;');
$session->wait_for(qr/-- done/);

#
# Privileges to see the activity of other roles
#
$node->safe_psql(
	'postgres', q{
	CREATE ROLE reader LOGIN; CREATE ROLE monitor LOGIN IN ROLE pg_read_all_stats;
	CREATE ROLE team; CREATE ROLE member LOGIN IN ROLE team;
	GRANT EXECUTE ON FUNCTION hrflow_text_embedding TO team});
$session->send(q{SET ROLE team; SELECT hrflow_text_embedding('fault:silent'); RESET ROLE;});
foreach my $case (
	[ reader => "$session->{pid}|team|||||" ],
	[ monitor => "$session->{pid}|team|hrflow_text_embedding|1|0|1|network" ],
	[ member => "$session->{pid}|team|hrflow_text_embedding|1|0|1|network" ])
{
	my ($role, $expected) = @$case;

	$node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM hrflow_embed_activity WHERE waiting_for = 'network'");
	is( $node->safe_psql(
			'postgres',
			'SELECT pid, role, function, elements_total, elements_done, requests, waiting_for
				FROM hrflow_embed_activity',
			extra_params => [ '-U', $role ]),
		$expected,
		"$role sees what it may of another role's row");
}

# A session that ends
sees("SELECT pg_terminate_backend($session->{pid})");
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM hrflow_embed_activity'),
	'nothing is left of a backend that was terminated');

#
# Without shared_preload_libraries
#
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
$session = Hrflow::Session->new($node);
$watcher = Hrflow::Session->new($node);
if ($watcher->ask('SHOW server_version_num;') =~ /^1[56]/)
{
	like(
		$watcher->ask('TABLE hrflow_embed_activity;'),
		qr/NOTICE:.*not visible\nHINT:  Add hrflow_embed to "shared_preload_libraries"\./,
		'if no memory is shared, a NOTICE says what to do');
	unlike($watcher->ask('TABLE hrflow_embed_activity;'),
		qr/NOTICE/, 'if no memory is shared, a session says so once');
}
else
{
	is( shown(
			q{SELECT hrflow_text_embedding('fault:silent')},
			"waiting_for = 'network'", 'function'),
		'hrflow_text_embedding',
		'since PostgreSQL 17 nothing needs to be preloaded');
}

$_->finish foreach $session, $watcher;
$node->stop('fast');
done_testing();
