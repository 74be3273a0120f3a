# A statement does not exceed its limit of requests, however it is written:
# results received are kept, the other rows say why they failed, and only
# superusers can raise a limit set by one of them.  Limits, refusals and outages
# stop refreshes of all kinds of stores.  The stand-in counts the requests, which a
# regression test cannot see.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use PostgreSQL::Test::Utils ();
use Test::More;

# A refusal may pause an account for all sessions, so statements that fail have
# keys of their own.
my $api = Hrflow::StandIn->new(map { ('--key' => $_) } $Hrflow::StandIn::KEY,
	map { Hrflow::Store::key_of($_) } 1 .. 20);
my $node = Hrflow::Node->new('budget', $api, link_hosts => '127.0.0.1');
my $limit = 'SET hrflow_embed.max_requests_per_statement = ';

# Run a statement, and check its output, its messages and the number of
# requests.
sub run
{
	my ($sql) = @_;

	$api->reset;
	my ($status, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\n$sql");
	return ($out, $err, $api->stats->{api_requests});
}

sub is_run
{
	my ($sql, $rows, $said, $requests, $name) = @_;
	my ($out, $err, $asked) = run($sql);

	is($out, $rows, "$name: the rows");
	like($err, $said, "$name: what is said");
	is($asked, $requests, "$name: the requests");
	return;
}

sub ids
{
	my ($n) = @_;
	return "(SELECT array_agg('p' || i) FROM generate_series(1, $n) i)";
}

#
# Every kind of statement
#
is_run(
	"$limit 10; SELECT status, count(*), bool_and(error ~ 'The limit per statement is 10')
		FROM hrflow_profile_embeddings('acme', " . ids(100) . ') GROUP BY 1 ORDER BY 1',
	"ok|10|\nover_budget|90|t",
	qr/WARNING:.*statement reached its limit of requests.*\nDETAIL:  .* for 10 of 100 elements/,
	10, 'a batch');
is_run(
	"$limit 10; SELECT count(*), count(DISTINCT profile_id) FROM hrflow_profile_vectors('acme', "
	  . ids(10)
	  . q{, '{"profile": 1, "skills": 1}')},
	'20|10', qr/^$/, 10, 'vectors, whose links do not count');
is_run(
	"$limit 3; SELECT status, count(*) FROM hrflow_profile_embeddings('acme',
		'{a,a,a,b,b,c,c,c}') GROUP BY 1",
	'ok|8', qr/^$/, 3, 'equal elements, which are asked for once');

# A retry would make the failure of the second element final, so the server delays it until
# the limit has been reached.  The first is retried before that, after at most 250 ms.
is_run(
	"$limit 5; SET hrflow_embed.max_attempts = 2; SET hrflow_embed.max_concurrency = 1;
	SELECT status, count(*) FROM hrflow_profile_embeddings('acme',
		'{\"fault:first=1,status=500\",\"fault:status=500,retry_after=20\",
			fault:latency=400,c,d}')
		GROUP BY 1 ORDER BY 1",
	"ok|3\nover_budget|2",
	qr/DETAIL:  The API sent a final reply for 3 of 5 elements/,
	5, 'a request that is retried: all attempts count');
foreach my $ahead ('on', 'off')
{
	is_run(
		"$limit 5; SET hrflow_embed.read_ahead = $ahead;
		SELECT i, hrflow_profile_embedding('acme', 'p' || i) IS NOT NULL
			FROM generate_series(1, 5) i",
		join("\n", map { "$_|t" } 1 .. 5),
		qr/^$/, 5, "as many calls as may be sent, with read_ahead $ahead");
	is_run(
		"$limit 5; SET hrflow_embed.read_ahead = $ahead;
		SELECT hrflow_profile_embedding('acme', 'p' || i) FROM generate_series(1, 20) i",
		'',
		qr/ERROR:\ \ 53400:\ statement\ reached\ its\ limit\ of\ requests\ to\ the\ HrFlow\ API\n
			.*is\ 5\..*\n
			HINT:\ \ Send\ fewer\ requests\ in\ one\ statement/x,
		5,
		"more calls than the limit allows, with read_ahead $ahead");
}
is_run(
	"$limit 3; SELECT count(*) FROM hrflow_profile_embeddings('acme',
		(SELECT array_agg('missing' || i) FROM generate_series(1, 10) i))",
	'',
	qr/ERROR:  53400.*\nDETAIL:  The limit .* is 3\.  The API sent .* for 3 of 10 elements\./,
	3, 'a batch in which nothing has succeeded before the limit');
is_run(
	"$limit 1; SELECT hrflow_profile_embedding('acme', 'fault:status=500')",
	'', qr/ERROR:  58000/,
	1, 'a request that fails and may not be retried');
is_run(
	"$limit 4;
	DO \$\$ BEGIN
		FOR i IN 1 .. 3 LOOP PERFORM hrflow_text_embedding('text ' || i); END LOOP;
		PERFORM hrflow_profile_embeddings('acme', '{a,b,c}');
		FOR i IN 1 .. 3 LOOP PERFORM hrflow_text_embedding('text ' || i); END LOOP;
	END \$\$",
	'', qr/ERROR:  53400/, 4, 'a block of several calls');
is_run(
	"$limit 2; SELECT hrflow_text_embedding('a') IS NOT NULL;
	SELECT hrflow_text_embedding('b') IS NOT NULL AND hrflow_text_embedding('c') IS NOT NULL;
	BEGIN; SELECT hrflow_text_embedding('d') IS NOT NULL; COMMIT",
	"t\nt\nt", qr/^$/, 4, 'statements that have their limits to themselves');
is_run("$limit 1; SELECT hrflow_auth() IS NOT NULL; SELECT hrflow_text_embedding('a') IS NOT NULL",
	"t\nt", qr/^$/, 2, 'a check of the key, which has its own');

#
# Limits, refusals and outages end a refresh of any kind of store: results are kept,
# no attempt is counted, and the next run continues.  No text or document is taken for
# one that may have been sent, unless it was and had no answer.
#
my $accounts = 0;
foreach my $content (qw(profile job text document))
{
	my $store = Hrflow::Store->new($node, $api, $content . 's', content => $content);
	my $table = $content . 's.embedding_profile';
	my $due = "SELECT count(*) FROM $table WHERE due_at <= now()";
	my $marked = $store->{posts} ? "SELECT count(sent_hash) FROM $table" : 'SELECT 0';
	my $add = sub {
		$store->sql(
			"INSERT INTO ${content}s.candidate (hrflow_id)
			SELECT '$_[0] ' || i FROM generate_series(1, 40) i");
		$api->reset;
		return;
	};
	my $refresh = sub {
		my ($arguments, %settings) = @_;
		return $store->finish_call(
			$store->start_call(
				$arguments,
				settings => { map { ("hrflow_embed.$_" => $settings{$_}) } sort keys %settings }));
	};

	$store->{accounts} = $accounts;
	$store->fill(30);
	foreach my $left (20, 10, 0)
	{
		$api->reset;
		my $printed = $refresh->(undef, max_requests_per_statement => 10);
		is($store->sql($due), $left,
			"a refresh of ${content}s with 10 requests left keeps its results: $left are due");
		is($api->stats->{api_requests},
			10, "a refresh of ${content}s with 10 requests left sends 10 when $left remain");
		is($store->sql($marked),
			0, "no $content may have been sent without an answer when $left remain");
		like(
			$printed,
			$left ? qr/WARNING:.*statement reached its limit/ : qr/: 10 refreshed/,
			"a refresh of ${content}s reports that it reached the limit when $left remain");
	}

	$add->('rate');
	$refresh->("time_budget => '200ms'", max_requests_per_minute => 5);
	cmp_ok($api->stats->{api_requests}, '<=', 6, "a refresh of ${content}s obeys a rate");
	cmp_ok($store->sql("SELECT count(*) FROM ${content}s.claim WHERE profile_id ~ 'rate'"),
		'<', 40, "a refresh of ${content}s does not claim what the rate does not admit");
	is($store->sql($marked), 0, "no $content that the rate has held back counts as sent");

	foreach my $case (
		[ 'status=402', qr/over its quota/ ],
		[ 'status=429,retry_after=1000', qr/limited the rate/ ],
		[ 'status=401', qr/refused the API key/ ],
		[ 'status=500', qr/the API sent no usable reply/ ])
	{
		my ($fault, $reason) = @$case;

		$add->($fault =~ s/\W/ /gr);
		$api->script($fault);
		like(
			$refresh->('batch_size => 8', max_concurrency => 4, max_attempts => 1),
			qr/WARNING:  .*refresh of ${content}s.embedding was stopped: .*$reason/,
			"$fault stops a refresh of ${content}s");
		cmp_ok($api->stats->{api_requests},
			'<=', 12, "$fault: few more ${content}s are requested by the run that it stops");
		is($store->sql($marked), 0, "$fault: no $content counts as sent");
		$store->hasten;
		$store->change_account;
		$api->reset;
		$store->call;
		like($store->states, qr/^ok \d+$/, "$fault: the next run refreshes all ${content}s");
	}

	# An outage in which requests are lost
	$add->('lost');
	$api->script('reset');
	like(
		$refresh->('batch_size => 8', max_concurrency => 4, max_attempts => 1),
		qr/was stopped: the API sent no usable reply/,
		"lost connections stop a refresh of ${content}s");
	my $lost = $api->stats->{api_requests};
	cmp_ok($lost, '<=', 12, "few more ${content}s are lost by a run that lost connections stop");
	$store->hasten;
	$store->change_account;
	$accounts = $store->{accounts};
	$api->reset;
	$store->call;
	is( $store->sql(
			"SELECT state, count(*) FROM $table WHERE $store->{id} ~ 'lost' GROUP BY 1 ORDER BY 1"),
		$store->{posts} ? "failed|$lost\nok|" . (40 - $lost) : 'ok|40',
		"the next run refreshes all ${content}s that may be sent again");
	is( $api->stats->{api_requests},
		$store->{posts} ? 40 - $lost : 40,
		"the next run requests all ${content}s that may be sent again");
	is($store->sql("SELECT sum(attempts) FROM $table WHERE state <> 'failed'"),
		0, "neither limits, refusals nor outages count as attempts of ${content}s");
}

#
# Portions of a result
#
is_run(
	"$limit 10; BEGIN; DECLARE c CURSOR FOR
		SELECT i, hrflow_profile_embedding('acme', 'p' || i) IS NOT NULL
			FROM generate_series(1, 40) i;
	FETCH 10 FROM c; FETCH 10 FROM c; COMMIT",
	join("\n", map { "$_|t" } 1 .. 20),
	qr/^$/, 20, 'a cursor, of which each FETCH is a statement');

#
# A limit that the user may not change
#
$node->safe_psql(
	'postgres', 'CREATE ROLE recruiter LOGIN;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO recruiter');
$node->append_conf('postgresql.conf', 'hrflow_embed.statement_request_limit = 15');
$node->reload;
$node->poll_query_until('postgres',
	"SELECT current_setting('hrflow_embed.statement_request_limit') = '15'");

sub sent_by_recruiter
{
	my ($settings) = @_;

	$api->reset;
	my ($status, $out, $err) = $node->psql(
		'postgres',
		"\\set VERBOSITY verbose\n$settings; SELECT count(*)
			FROM hrflow_profile_embeddings('acme', "
		  . ids(30) . ')',
		extra_params => [ '-U', 'recruiter' ]);
	return ($api->stats->{api_requests}, $err);
}

# Before the library is loaded, SET does not know its settings.
my ($requests, $err) = sent_by_recruiter('SET hrflow_embed.statement_request_limit = 0');
is($requests, 15, 'a limit set by a superuser applies to a user who tries to remove it');
like(
	$err,
	qr/permission denied to set parameter "hrflow_embed.statement_request_limit"/,
	'a user who tries to remove the limit of a superuser is warned');
($requests) = sent_by_recruiter("$limit 20");
is($requests, 15, 'a limit set by a superuser applies to a user who sets a higher one');
($requests) = sent_by_recruiter("$limit 0");
is($requests, 15, 'a limit set by a superuser applies to a user who sets none');
($requests) = sent_by_recruiter("$limit 5");
is($requests, 5, 'a user may set a lower limit than the superuser');
$node->safe_psql('postgres', 'ALTER ROLE recruiter SET hrflow_embed.statement_request_limit = 25');
($requests) = sent_by_recruiter('SELECT');
is($requests, 25, 'a superuser may raise the limit for a role');

# A connection option is applied before the library is loaded, unless that is
# preloaded.
{
	local $ENV{PGOPTIONS} = '-c hrflow_embed.statement_request_limit=0';
	($requests) = sent_by_recruiter('SELECT');
	is($requests, 0, 'a connection option cannot remove the limit');
}
$node->append_conf('postgresql.conf', 'shared_preload_libraries = hrflow_embed');
$node->restart;
{
	local $ENV{PGOPTIONS} = '-c hrflow_embed.statement_request_limit=0';
	($requests, $err) = sent_by_recruiter('SELECT');
	like(
		$err,
		qr/permission denied to set parameter "hrflow_embed.statement_request_limit"/,
		'if the library is preloaded, a connection option cannot remove the limit');
}

#
# A backend that is terminated before its requests have been sent gives back what was
# counted for the day
#
{
	my $works = PostgreSQL::Test::Utils::tempdir() . '/works';
	my $front = Hrflow::RawPeer->new(
		sub {
			sleep 600 unless -e $works;
			Hrflow::RawPeer::forward($_[0], $api->https);
		});
	my $settings = "SET hrflow_embed.max_requests_per_day = 14;
		SET hrflow_embed.connect_timeout = '600s'; SET hrflow_embed.request_timeout = '600s';
		SET hrflow_embed.ca_file = '"
	  . $api->ca
	  . "'; SET hrflow_embed.base_url = 'https://localhost:"
	  . $front->port
	  . "/v1'; SET hrflow_embed.http_version = '1.1';";
	my $batch =
		'SELECT status, count(*) FROM hrflow_profile_embeddings(\'acme\', '
	  . ids(30)
	  . ') GROUP BY 1 ORDER BY 1;';
	my $session = Hrflow::Session->new($node);

	$session->ask($settings);
	$session->send($batch);
	for (1 .. 1000)
	{
		last if $session->sockets > 10;
		select(undef, undef, undef, 0.02);
	}
	cmp_ok($session->sockets, '>', 10, 'a batch opens connections that are never established');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($session->{pid}, 60000)");
	PostgreSQL::Test::Utils::append_to_file($works, '');
	is_run(
		"$settings $batch",
		"ok|14\nover_budget|16", qr/DETAIL:  The API sent a final reply for 14 of 30 elements/,
		14, 'a batch after one was terminated before anything was sent');
}

#
# A request that the limit allows is sent although the kept connection that libcurl chooses
# for it has data to read, and another request reaches the limit meanwhile
#
{
	my $log = PostgreSQL::Test::Utils::tempdir() . '/log';
	my $count = sub {
		return scalar(() = (-e $log ? PostgreSQL::Test::Utils::slurp_file($log) : '') =~ /$_[0]/g);
	};
	my $straying = Hrflow::RawPeer->new(
		sub {
			my ($socket, $n) = @_;
			my $body = '{"code": 200, "message": "ok", "data": {}}';
			my $reply =
				"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
			  . length($body)
			  . "\r\n\r\n$body";

			while (Hrflow::RawPeer::read_request($socket))
			{
				PostgreSQL::Test::Utils::append_to_file($log, "request\n");
				print $socket $reply;
				next if $n > 0;
				select(undef, undef, undef, 0.05);
				print $socket $reply;
				PostgreSQL::Test::Utils::append_to_file($log, "stray\n");
			}
		});
	my $session = Hrflow::Session->new($node);

	$session->query(
		"SET hrflow_embed.base_url = 'http://127.0.0.1:" . $straying->port . "/v1'; $limit 3;");
	is($session->query("SELECT hrflow_profile_embedding('acme', 'p');"),
		'{}', 'a connection is kept over which an unrequested reply arrives');
	for (1 .. 500)
	{
		last if $count->('stray') > 0;
		select(undef, undef, undef, 0.02);
	}
	die 'no unrequested reply was sent' if $count->('stray') == 0;
	is( $session->query(
				'SELECT status, count(*) FROM hrflow_profile_embeddings(\'acme\', '
			  . ids(10)
			  . ') GROUP BY 1 ORDER BY 1;'),
		"ok|3\nover_budget|7",
		'a batch gets as many results as its limit allows, whatever connection is chosen');
	is($count->('request'), 4,
		'a batch sends no more requests than its limit, whatever connection is chosen');
	$session->finish;
}

$node->stop('fast');
done_testing();
