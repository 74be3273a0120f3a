# Batches as seen by the API: the number of requests in flight, their
# connections and their rate; no answer is lost when many fail; refusals stop a
# batch; and the counters agree with what was sent.  A regression test could see
# neither requests nor other backends.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use IPC::Run                ();
use POSIX                   ();
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(time);

# Limits apply to a key, so tests of limits use keys of their own.
my @keys = ($Hrflow::StandIn::KEY, map { "askr_key$_" } 1 .. 4);
my $api = Hrflow::StandIn->new('--latency' => 5, map { ('--key' => $_) } @keys);
my $node = Hrflow::Node->new('batch', $api, shared_preload_libraries => 'hrflow_embed');

sub sql { return $node->safe_psql('postgres', @_); }

# Return this many distinct identifiers.
sub ids
{
	my ($n, $prefix) = (@_, 'p');
	return "(SELECT array_agg('$prefix' || i) FROM generate_series(1, $n) i)";
}

sub batch
{
	my ($ids) = @_;
	return qq{SELECT status || ' ' || count(*)
		FROM hrflow_profile_embeddings('acme', $ids, '{"profile": 1}')
		GROUP BY status ORDER BY 1;\n};
}

#
# Requests in flight, connections
#
foreach my $limit (1, 7, 32)
{
	$api->reset;
	is(sql("SET hrflow_embed.max_concurrency = $limit;" . batch(ids(300))),
		'ok 300', "a batch with $limit requests in flight succeeds");
	my $stats = $api->stats;
	cmp_ok($stats->{max_in_flight},
		'<=', $limit, "a batch has no more than $limit requests in flight");
	cmp_ok(
		$stats->{max_in_flight},
		'>=',
		$limit * 0.8,
		"a batch has nearly $limit requests in flight");
	cmp_ok(
		$stats->{connections_opened}, '<=', $limit + 1,    # one is our own
		"a batch with $limit requests in flight opens no more connections");
}

$api->reset;
sql(    'SET hrflow_embed.max_concurrency = 32;'
	  . batch(ids(200))
	  . batch(ids(200, 'q'))
	  . batch(ids(200, 'r')));
my %connections = map { $_->{connection} => 1 } $api->log;
cmp_ok(scalar(keys %connections), '<=', 32,
	'three statements in a row use the same 32 connections');

# Requests are sent in the order of the input
$api->reset;
sql('SET hrflow_embed.max_concurrency = 1;' . batch(ids(50)));
is( join(' ', map { $_->{query} =~ /profile_id=(\w+)/ } $api->log),
	join(' ', map { "p$_" } 1 .. 50),
	'requests are sent in the order of the elements');

# A function in FROM runs to its end, as the README warns
foreach my $case (
	[ 'LIMIT', 'SELECT profile_id FROM all_of_them LIMIT 1;' ],
	[   'closing a cursor',
		'BEGIN; DECLARE c CURSOR FOR SELECT profile_id FROM all_of_them;
		FETCH 1 FROM c; CLOSE c; COMMIT;'
	])
{
	my ($name, $sql) = @$case;
	my $all = "hrflow_profile_embeddings('acme', " . ids(20) . q{, '{"profile": 1}')};
	$api->reset;
	like(sql('SET hrflow_embed.max_concurrency = 1; ' . $sql =~ s/all_of_them/$all/r),
		qr/^p\d+$/, "with $name one row is returned");
	is(scalar($api->log), 20, "with $name all elements are requested all the same");
}

#
# Time limits
#
my $began = time;
is( sql("SET hrflow_embed.max_attempts = 1; SET hrflow_embed.request_timeout = '700ms';
	SET hrflow_embed.max_concurrency = 2;"
		  . batch(ids(20, 'fault:latency=100,id='))),
	'ok 20',
	'request_timeout does not count the time before a request is sent');
cmp_ok(time - $began, '>', 1, 'a batch may take longer than request_timeout');
$began = time;
is( sql("SET hrflow_embed.max_attempts = 1; SET hrflow_embed.request_timeout = '700ms';
	SET hrflow_embed.api_key = '$keys[1]';"
		  . 'SET hrflow_embed.max_requests_per_minute = 600;'
		  . batch(ids(20))),
	'ok 20',
	'request_timeout does not count the time spent waiting for the rate limit');
cmp_ok(time - $began, '>', 0.9, 'a batch limited by its rate may take longer than request_timeout');

#
# Certificates.  OpenSSL 3 takes 21 ms to parse those of Debian
#
SKIP:
{
	my $system = '/etc/ssl/certs/ca-certificates.crt';
	skip 'there is no bundle of certificates, or no /proc', 3
	  unless -r $system && -r "/proc/$$/stat";

	my $bundle = $api->dir . '/bundle.pem';
	PostgreSQL::Test::Utils::append_to_file($bundle, PostgreSQL::Test::Utils::slurp_file($_))
	  foreach $system, $api->ca;
	my $session = Hrflow::Session->new($node);
	my $cpu = sub {
		my $stat = PostgreSQL::Test::Utils::slurp_file('/proc/' . $session->pid . '/stat');
		my ($user, $kernel) = (split / /, $stat =~ s/.*\) //r)[ 11, 12 ];
		return ($user + $kernel) / POSIX::sysconf(POSIX::_SC_CLK_TCK());
	};

	$session->ask("SET hrflow_embed.base_url = '"
		  . $api->base_url('https')
		  . "'; SET hrflow_embed.ca_file = '$bundle';");
	$api->reset;
	my $before = $cpu->();
	is( $session->ask(batch(ids(32, 'fault:latency=200,id='))),
		"ok 32\n-- done\n",
		'a batch over TLS with HTTP/1.1 succeeds');
	my $spent = $cpu->() - $before;
	my %connections = map { $_->{connection} => 1 } $api->log;
	cmp_ok(scalar(keys %connections),
		'>=', 25, 'a batch over TLS with HTTP/1.1 has many connections');
	cmp_ok(
		$spent, '<', 0.6,
		sprintf 'a batch over TLS reads the certificates once, not for each connection (%d ms)',
		$spent * 1000);
	$session->finish;
}

#
# HTTP/2
#
SKIP:
{
	my $nghttpx = '/usr/sbin/nghttpx';
	skip 'nghttp2-proxy is not available', 5 unless -x $nghttpx;

	# It cannot choose a free port and report it, so try others if necessary.
	my ($port, $proxy);
	my ($proxy_out, $proxy_err) = ('', '');
	my $dir = $api->dir;
	for my $try (1 .. 5)
	{
		$port = PostgreSQL::Test::Cluster::get_free_port();
		$proxy = IPC::Run::start(
			[   $nghttpx, "-f127.0.0.1,$port",
				'-b127.0.0.1,' . $api->http, '--conf=/dev/null',
				'--workers=1', '--no-ocsp',
				'--errorlog-file=/dev/stderr', '--accesslog-file=/dev/null',
				'--backend-connections-per-host=64', "$dir/server.key",
				"$dir/server.pem" ],
			'<',
			\'',
			'>',
			\$proxy_out,
			'2>',
			\$proxy_err);
		my $until = time + 10;
		my $listens;
		until ($listens || time > $until)
		{
			$listens = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port);
			select(undef, undef, undef, 0.02) unless $listens;
		}
		last if $listens;
		$proxy->kill_kill;
		diag("nghttpx does not listen on $port: $proxy_err");
	}
	my $trust = "SET hrflow_embed.ca_file = '" . $api->ca . "';";
	my $settings = "$trust SET hrflow_embed.base_url = 'https://localhost:$port/v1';";

	# libcurl has internal sockets, and a new file makes it discard its
	# connections.
	my $session = Hrflow::Session->new($node);
	$session->ask($trust . batch(ids(1)));
	my $sockets = $session->sockets;
	$api->reset;
	is( $session->ask(
			"$settings SET hrflow_embed.max_concurrency = 64; SELECT hrflow_embed_stats_reset();"
			  . batch(ids(500))
			  . batch(ids(500, 'q'))
			  . 'SELECT connections_opened FROM hrflow_embed_stats;'),
		"\nok 500\nok 500\n1\n-- done\n",
		'HTTP/2 carries two batches over one connection');
	is($session->sockets, $sockets + 1, 'two batches over HTTP/2 open one socket');
	cmp_ok($api->stats->{max_in_flight},
		'>=', 25, 'HTTP/2 carries many requests at once over one connection');
	cmp_ok($api->stats->{max_in_flight},
		'<=', 64, 'HTTP/2 carries no more requests at once than max_concurrency');
	$session->finish;
	is( sql($settings . batch(q{'{a,fault:reset,b,fault:status=500,fault:silent}'}) =~
			  s/^/SET hrflow_embed.max_attempts = 1; SET hrflow_embed.request_timeout = '500ms';/r),
		"connection_failed 1\nhttp_error 1\nok 2\ntimeout 1" =~
		  s/connection_failed 1\nhttp_error 1/http_error 2/r,
		'an HTTP/2 stream that fails does not affect the others'
	);    # nghttpx turns a reset into a 502
	$proxy->signal('TERM');
	$proxy->finish;
}

#
# Five in a hundred fail
#
my %kinds = (
	'fault:reset' => 'connection_failed',
	'fault:status=500' => 'http_error',
	'fault:silent' => 'timeout',
	'fault:break=100' => 'connection_failed',
	'fault:truncated' => 'invalid_reply',
	'fault:first=1,reset' => 'ok',
	'fault:first=1,status=503' => 'ok',
	'fault:first=1,break=50' => 'ok',
	'fault:first=2,status=502,html' => 'ok',
	'fault:first=1,status=429,retry_after=0' => 'ok');
my @kinds = sort keys %kinds;
my $values = join(', ', map { "('$kinds[$_]', '$kinds{$kinds[$_]}', $_)" } 0 .. $#kinds);

is( sql(qq{
	SET hrflow_embed.request_timeout = '3s';
	SET hrflow_embed.max_attempts = 3;
	CREATE TABLE asked AS
		SELECT i, coalesce(fault || ',id=' || i, 'p' || i) AS id,
			coalesce(expected, 'ok') AS expected
		FROM generate_series(1, 2000) i
		LEFT JOIN (VALUES $values) f(fault, expected, n) ON i % 20 = 0 AND i / 20 % 10 = n;
	SELECT count(*) || ' rows, ' || count(DISTINCT ordinality) || ' elements, '
		|| count(*) FILTER (WHERE e.status <> a.expected) || ' wrong, '
		|| count(*) FILTER (WHERE e.status <> 'ok') || ' failed, '
		|| count(*)
			FILTER (WHERE e.status = 'ok'
			AND coalesce(strpos(e.data->>'profile', '/profiles/' || a.in_link || '/'), 0) = 0)
			|| ' with wrong data'
		|| coalesce(string_agg(', ' || a.id || ' is ' || e.status || ': ' || e.error, '')
			FILTER (WHERE e.status <> a.expected), '')
	FROM hrflow_profile_embeddings('acme', (SELECT array_agg(id ORDER BY i) FROM asked),
		'{"profile": 1}') e
	JOIN (SELECT *, replace(replace(replace(id, ':', '%3A'), '=', '%3D'), ',', '%2C') AS in_link
		FROM asked) a ON a.i = e.ordinality}
	),
	'2000 rows, 2000 elements, 0 wrong, 50 failed, 0 with wrong data',
	'when five in a hundred fail, each element has its row, its right status and its own data');

# An element that waits for a retry
$api->reset;
is( sql('SET hrflow_embed.max_attempts = 2;'
		  . batch(q{array_cat('{"fault:status=503,retry_after=2"}'::text[], } . ids(500) . ')')),
	"http_error 1\nok 500",
	'an element whose attempts all fail has its row');
{
	my @tries = map { $_->{ms} } grep { $_->{status} == 503 } $api->log;
	is(scalar(@tries), 2, 'an element that fails is requested twice if max_attempts is 2');
	cmp_ok($tries[1] - $tries[0],
		'>=', 1900, 'a retry waits for the time that Retry-After specifies');
}

$api->reset;
is( sql('SET hrflow_embed.max_attempts = 2;'
		  . batch(q{array_cat('{"fault:status=500,retry_after=2"}'::text[], } . ids(100) . ')')),
	"http_error 1\nok 100",
	'an element that the API fails to answer has its row');
{
	my ($first, @retries) = map { $_->{ms} } grep { $_->{status} == 500 } $api->log;
	my @others = grep { $_->{status} == 200 } $api->log;
	cmp_ok(scalar(grep { $_->{ms} < $retries[-1] } @others),
		'==', 100, 'other elements do not wait for a retry');
}

#
# Refusals
#
sub refusal
{
	my ($ids, $settings) = (@_, '');
	$api->reset;
	my $error = $node->error_of($settings . batch($ids));
	$error =~ s/:.*//;
	return ($error, scalar($api->log));
}

my ($error, $sent) =
  refusal(ids(1000), "SET hrflow_embed.api_key = 'askr_ffffffffffffffffffffffffffffffff';");
is($error, '28000', 'a refused key raises an error');
cmp_ok($sent, '<=', 32, 'after a refused key no more requests are sent than may be in flight');

($error, $sent) = refusal(
	q{array_cat('{fault:silent}'::text[], } . ids(1000) . ')',
	q{SET hrflow_embed.request_timeout = '300ms'; SET hrflow_embed.max_attempts = 1;
		SET hrflow_embed.api_key = 'x';}
);
is($error, '28000', 'a refusal is raised once the requests in flight are finished');

$api->reset;
is($node->error_of(batch(ids(1000)) =~ s/'acme'/'unknown'/r) =~ s/:.*//r,
	'22023', 'an unknown source raises an error');
cmp_ok(scalar($api->log), '<=', 32,
	'an unknown source stops the batch within the requests in flight');

my ($out, $err);
{
	my $quota = Hrflow::StandIn->new('--quota' => 1000);
	my $base_url = $quota->base_url;

	$node->psql(
		'postgres', "SET hrflow_embed.base_url = '$base_url';" . batch(ids(3000)),
		stdout => \$out,
		stderr => \$err);
	is( $out,
		"ok 1000\nover_quota 2000",
		'a quota that ends at the thousandth request keeps a thousand results');
	like(
		$err,
		qr/WARNING:  batch stopped early: HrFlow account is over its quota/,
		'a quota that ends within a batch gives a warning');
	cmp_ok(scalar($quota->log), '<=', 1128,
		'after the quota has ended only the requests in flight are refused');
}

is( sql('SET hrflow_embed.max_concurrency = 4;'
		  . batch(q{array_cat('{fault:status=403}'::text[], } . ids(100) . ')')),
	"ok 100\nunauthorized 1",
	'a single 403 does not stop a batch');

$began = time;
is( sql(q{SET hrflow_embed.batch_timeout = '500ms'; SET hrflow_embed.max_concurrency = 8;}
		  . batch(q{array_cat(} . ids(100) . q{, '{fault:silent,"fault:silent,id=2"}')})),
	"ok 100\ntimeout 2",
	'batch_timeout keeps the results that have arrived');
cmp_ok(time - $began, '<', 2, 'batch_timeout is obeyed');

#
# 429 pauses all backends that use the key
#
$api->reset;
{
	my @psql = ('psql', '-XAtq', '-d', $node->connstr('postgres'), '-c');
	my $first =
	  IPC::Run::start([ @psql, batch(q{'{"fault:first=1,status=429,retry_after=2,id=pause"}'}) ],
		'>', \my $first_out);
	$api->wait_until(sub { ($_[0]{by_status}{429} // 0) > 0 });
	$began = time;
	is(sql(batch(ids(20))), 'ok 20', 'another backend succeeds after the pause requested by a 429');
	cmp_ok(time - $began, '>', 1, 'another backend waits as long as Retry-After specifies');
	$first->finish;
	is($first_out, "ok 1\n", 'the request that was answered 429 succeeds after the pause');
}
my @log = sort { $a->{ms} <=> $b->{ms} } $api->log;
cmp_ok(scalar(grep { $_->{ms} > $log[0]{ms} + 5 && $_->{ms} < $log[0]{ms} + 1900 } @log),
	'==', 0, 'no request is sent during the pause');

# A 429 that is reported only in the body
$api->reset;
is(sql("SET hrflow_embed.api_key = '$keys[4]'; " . batch(q{'{"fault:first=1,code=429"}'})),
	'ok 1', 'a request whose reply has the code 429 only in its body is sent again');
is(scalar($api->log), 2, 'a request whose reply has the code 429 only in its body is sent twice');

#
# Different limits at the same time
#
$api->reset;
my $limit = 'SET hrflow_embed.max_requests_per_minute = ';
is( sql("SET hrflow_embed.api_key = '$keys[$_->[0]]'; $_->[1]"
		  . batch(ids($_->[2], "limit$_->[2]-"))),
	"ok $_->[2]",
	$_->[3])
  foreach (
	[ 2, "${limit}60;", 1, 'a backend with a limit of one request a second gets its row' ],
	[   2, "${limit}6000;",
		2, 'a backend with a limit of a hundred a second and the same key gets its rows' ],
	[ 2, '', 1, 'a backend without a limit and the same key gets its row' ],
	[   3, "${limit}6000;",
		20, 'a backend with a limit of a hundred a second and another key gets its rows' ]);
my @by_key = map {
	my $key = $_;
	[ sort { $a <=> $b } map { $_->{ms} } grep { $_->{headers}{'X-API-KEY'} eq $key } $api->log ]
} @keys[ 2, 3 ];
my @held = @{ $by_key[0] };
is(scalar(grep { $held[$_] - $held[ $_ - 1 ] > 900 } 1 .. $#held),
	3, 'the lowest rate limit applies to every backend with the key');
cmp_ok($by_key[1][-1] - $by_key[1][0], '<', 1000, 'a rate limit does not apply to another key');

#
# Counters
#
{
	my $ten =
	  q{array_cat('{"fault:first=1,status=429,retry_after=1,id=counted"}'::text[], } . ids(9) . ')';
	$api->reset;
	my @lines = split /\n/, sql(
			'SELECT hrflow_embed_stats_reset(); SELECT clock_timestamp() AS began \gset' . "\n"
		  . batch($ten)
		  . batch($ten)
		  . q{SELECT calls, requests, retries, rate_limits, bytes_received, connections_opened,
			connections_reused, rows_by_status FROM hrflow_embed_stats;
			SELECT extract(epoch FROM clock_timestamp() - :'began');
			SELECT wait_seconds FROM hrflow_embed_stats});
	my ($seconds, $waited) = @lines[ -2, -1 ];
	my $stats = $api->stats;
	my %connections = map { $_->{connection} => 1 } $api->log;
	my $opened = keys %connections;
	my $reused = $stats->{requests} - $opened;
	is( $lines[-3],
		"2|21|1|1|$stats->{bytes_sent}|$opened|$reused|" . '{"ok": 20}',
		'the statistics agree with the log of the API');
	is( "$stats->{requests} $stats->{by_status}{429} " . scalar($api->log),
		'21 1 21',
		'two batches of ten with one retry send 21 requests');
	cmp_ok($waited, '>=', 0.9, 'wait_seconds includes the pause requested by a 429');
	cmp_ok($waited, '<=', $seconds, 'wait_seconds is no more than the statements took');
}

#
# The rate of four backends
#
$api->reset;
$node->append_conf('postgresql.conf', 'hrflow_embed.max_requests_per_minute = 1200');
$node->reload;
$began = time;
my @running = map {
	IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', batch(ids(20, "rate$_")) ],
		'>', \my $ignored)
} 1 .. 4;
$_->finish foreach @running;
my $took = time - $began;
cmp_ok($took, '>', 2.5, 'four backends share a rate of 20 requests a second');
cmp_ok($took, '<', 4.5, 'four backends make use of the whole rate');
my @ms = sort { $a <=> $b } map { $_->{ms} } $api->log;
my $most = 0;
foreach my $i (0 .. $#ms)
{
	my $n = grep { $_ >= $ms[$i] && $_ < $ms[$i] + 1000 } @ms;
	$most = $n if $n > $most;
}
cmp_ok($most, '<=', 42, "no second has more requests than the rate allows with one second's burst");

# The rate applies to a key at an origin, however that is written
my $origin = $api->base_url =~ s{127.0.0.1}{localhost}r;
my $spelled = $origin =~ s{http://localhost(:\d+)/v1}{HTTP://LocalHost$1/v1/}r;
my $ask = "SELECT status FROM hrflow_profile_embeddings('acme', '{one}');";
is( sql("SET hrflow_embed.max_requests_per_minute = 60; SET hrflow_embed.batch_timeout = '300ms';
	SET hrflow_embed.base_url = '$origin'; $ask SET hrflow_embed.base_url = '$spelled'; $ask"),
	"ok\ntimeout",
	'the rate limit of an origin does not depend on how base_url is written');

# Retries are counted, whether or not they count as attempts, and so are the
# connections of abandoned requests
my $other_api = Hrflow::StandIn->new;
my $settings =
	"SET hrflow_embed.base_url = '"
  . $other_api->base_url
  . "'; SET hrflow_embed.max_requests_per_minute = 0;";
my $counts = 'SELECT requests, retries, connections_opened FROM hrflow_embed_stats';
is( sql(    "$settings SELECT hrflow_embed_stats_reset(); "
		  . batch(ids(8, 'fault:first=1,latency=100,status=429,retry_after=1,id='))
		  . $counts) =~ s/^\n//r,
	"ok 8\n16|8|8",
	'each of 8 requests that were answered 429 is counted as a retry');
is( sql("$settings SET hrflow_embed.batch_timeout = '300ms'; SELECT hrflow_embed_stats_reset(); "
		  . batch(ids(5, 'fault:silent,id='))
		  . $counts) =~ s/^\n//r,
	"timeout 5\n5|0|5",
	'the connections of abandoned requests are counted');

#
# Activity of a running batch, as shown to other sessions
#
sql('SELECT hrflow_embed_stats_reset()');
my $batch = IPC::Run::start(
	[   'psql', '-XAtq',
		'-d', $node->connstr('postgres'),
		'-c', batch(ids(20) . " || 'fault:latency=3000'::text") ],
	'>',
	\my $nothing);
ok( $node->poll_query_until(
		'postgres',
		q{SELECT calls = 1 AND requests = 21 AND rows_by_status @> '{"ok": 20}'
			FROM hrflow_embed_stats
	WHERE EXISTS (SELECT FROM pg_stat_activity WHERE query ~ 'latency' AND state = 'active'
		AND pid <> pg_backend_pid())}
	),
	'results are counted while their batch is still running');
$batch->finish;

done_testing();
