# Tests of batches, as the API sees them.
#
# The log of the stand-in API shows how many requests were in flight, over which
# connections, in which order, and with which pauses between them.  None of this
# is visible from SQL, and several cases take more than one backend, so these are
# not regression tests.
#
# A slow machine can prolong a wait, but cannot shorten one.  Therefore waits are
# tested for a minimum, in milliseconds of the stand-in's clock, and for a maximum
# only where a comment gives the reason.  The stand-in may also notice the arrival of
# a request late, so a minimum counts from its reply to an earlier request, or from a
# time before the first request.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Server;
use Hrflow::Session;
use Hrflow::StandIn;
use IPC::Run                ();
use List::Util              qw(max uniq);
use PostgreSQL::Test::Utils ();
use Test::More;

# Number of requests that a batch sends at most before the first reply shows that
# the API accepts them.
my $max_wasted = 32;

# Each block starts a stand-in API of its own, because backends share what they
# learn about an API, such as its rate limit.
my $node = Hrflow::Node->new('batch', undef, shared_preload_libraries => 'hrflow_embed');

# Return this many distinct identifiers.
sub ids
{
	my ($n, $prefix) = @_;

	$prefix //= 'p';
	return map { "$prefix$_" } 1 .. $n;
}

# Return a call of hrflow_profile_embeddings().
#
#   elements => [...]       identifiers
#   source => 'acme'        source of the profiles
sub call
{
	my (%batch) = @_;
	my $source = $batch{source} // 'acme';
	my $elements = join ',', map { qq("$_") } @{ $batch{elements} };

	return qq{hrflow_profile_embeddings('$source', '{$elements}', '{"profile": 1}')};
}

# Return SET statements for settings of hrflow_embed, among them the URL of an API.
sub settings
{
	my ($api, %settings) = @_;

	$settings{base_url} //= $api->base_url;
	return join '', map { "SET hrflow_embed.$_ = '$settings{$_}';\n" } sort keys %settings;
}

# Return the SQL of a batch, which counts its rows by status.  Besides the options of
# call(), there are
#
#   api => $api             stand-in that receives the requests
#   settings => {...}       settings of hrflow_embed
sub batch_sql
{
	my (%batch) = @_;

	return
		settings($batch{api}, %{ $batch{settings} // {} })
	  . 'SELECT status, count(*) FROM '
	  . call(%batch)
	  . " GROUP BY status;\n";
}

# Return the number of rows by status, as a hash, that the SQL of a batch has printed.
sub counts
{
	my ($printed) = @_;

	return { $printed =~ /^(\w+)\|(\d+)$/mg };
}

# Run a batch in a new session, or in the one in session => $session.  Returns the
# number of rows by status, as a hash.
sub run_batch
{
	my (%batch) = @_;
	my $sql = batch_sql(%batch);
	my $printed =
	  $batch{session} ? $batch{session}->ask($sql) : $node->safe_psql('postgres', $sql);

	die "batch failed: $printed" if $printed =~ /ERROR/;
	return counts($printed);
}

# Return the SQLSTATE of the error of a batch.
sub sqlstate_of_batch
{
	my ($sqlstate) = $node->error_of(batch_sql(@_)) =~ /^(\w{5}):/;

	return $sqlstate // 'no error';
}

# Start a batch in a new session, without waiting for it.
sub start_batch
{
	my (%batch) = @_;
	my %running = (out => '', err => '');

	$running{psql} = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', batch_sql(%batch) ],
		'>', \$running{out}, '2>', \$running{err}, IPC::Run::timeout(120));
	return \%running;
}

# Wait for a batch that was started.  Returns the number of rows by status, as a hash.
sub finish_batch
{
	my ($running) = @_;

	$running->{psql}->finish or die "psql failed: $running->{err}";
	return counts($running->{out});
}

# Return the requests that a stand-in has answered, in the order of their arrival.
sub requests
{
	my ($api) = @_;
	my @log = $api->log;

	return sort { $a->{begun} <=> $b->{begun} } @log;
}

# Return the number of connections over which requests were sent.
sub connections_used
{
	my ($api) = @_;

	return scalar uniq(map { $_->{connection} } $api->log);
}

# Return the milliseconds from the arrival of the first request to the last reply.
sub duration
{
	my (@requests) = @_;

	return max(map { $_->{ms} } @requests) - $requests[0]{begun};
}

# Return the present time of a stand-in.
sub now
{
	my ($api) = @_;

	return $api->stats->{now};
}

# Return the numbers of the requests that exceed a rate.
#
#   since => $time          time before the first request
#   burst => $n             number of requests that may be sent at once
#   interval => $ms         milliseconds that each further request takes
sub too_early
{
	my ($requests, %rate) = @_;
	my @early;

	foreach my $i ($rate{burst} .. $#$requests)
	{
		my $earliest = $rate{since} + ($i - $rate{burst} + 1) * $rate{interval};

		push @early, $i if $requests->[$i]{begun} < $earliest;
	}
	return @early;
}

#
# Requests in flight, and their connections
#
# The latency is long compared with the time to send a request, so that a batch
# reaches its limit.
foreach my $case (
	{ limit => 1, elements => 5 },
	{ limit => 7, elements => 50 },
	{ limit => 32, elements => 300 })
{
	my $limit = $case->{limit};
	my $api = Hrflow::StandIn->new('--latency' => 200);

	is_deeply(
		run_batch(
			api => $api,
			elements => [ ids($case->{elements}) ],
			settings => { max_concurrency => $limit }),
		{ ok => $case->{elements} },
		"a batch with max_concurrency = $limit succeeds");
	my $stats = $api->stats;
	is($stats->{max_in_flight},
		$limit, "a batch with max_concurrency = $limit has up to $limit requests in flight");

	# The stand-in also counts the connection with which the test reads its statistics.
	cmp_ok($stats->{connections_opened} - 1,
		'<=', $limit, "a batch with max_concurrency = $limit opens at most $limit connections");
}

{
	my $api = Hrflow::StandIn->new('--latency' => 5);
	my $session = Hrflow::Session->new($node);

	foreach my $prefix ('p', 'q', 'r')
	{
		run_batch(
			session => $session,
			api => $api,
			elements => [ ids(200, $prefix) ],
			settings => { max_concurrency => 32 });
	}
	is(scalar($api->log), 600, 'three batches of 200 elements send 600 requests');
	cmp_ok(connections_used($api), '<=', 32, 'successive batches of a session share connections');
	$session->finish;
}

{
	my $api = Hrflow::StandIn->new;

	run_batch(api => $api, elements => [ ids(50) ], settings => { max_concurrency => 1 });
	is_deeply(
		[ map { $_->{query} =~ /profile_id=(\w+)/ } requests($api) ],
		[ ids(50) ],
		'requests are sent in the order of the elements');
}

#
# A function in FROM runs to its end, as the README warns
#
{
	my $call = call(elements => [ ids(20) ]);

	foreach my $case (
		{   name => 'LIMIT',
			sql => "SELECT profile_id FROM $call LIMIT 1;" },
		{   name => 'a cursor that is closed',
			sql => "BEGIN;
				DECLARE c CURSOR FOR SELECT profile_id FROM $call;
				FETCH 1 FROM c;
				CLOSE c;
				COMMIT;"
		})
	{
		my $api = Hrflow::StandIn->new;

		like($node->safe_psql('postgres', settings($api, max_concurrency => 1) . $case->{sql}),
			qr/^p\d+$/, "a batch with $case->{name} returns one row");
		is(scalar($api->log), 20, "all elements are requested despite $case->{name}");
	}
}

#
# Time limits
#
{
	my $api = Hrflow::StandIn->new('--latency' => 100);

	is_deeply(
		run_batch(
			api => $api,
			elements => [ ids(20) ],
			settings => { max_concurrency => 2, max_attempts => 1, request_timeout => '700ms' }),
		{ ok => 20 },
		'request_timeout does not count the time that an element waits for its request');
	cmp_ok(duration(requests($api)),
		'>', 700, 'a batch may take longer than request_timeout because it has many elements');
}

{
	my $api = Hrflow::StandIn->new;

	# A burst of 5 requests, and 15 at the rate of 5 per second
	is_deeply(
		run_batch(
			api => $api,
			elements => [ ids(20) ],
			settings => {
				max_attempts => 1,
				max_requests_per_minute => 300,
				request_timeout => '700ms' }),
		{ ok => 20 },
		'request_timeout does not count the time that an element waits for the rate limit');
	cmp_ok(duration(requests($api)),
		'>', 700, 'a batch may take longer than request_timeout because of the rate limit');
}

# An element without a reply is requested again after request_timeout, but not after
# batch_timeout.
{
	my $api = Hrflow::StandIn->new;

	is_deeply(
		run_batch(
			api => $api,
			elements => [ ids(100), 'fault:silent', 'fault:silent,id=2' ],
			settings => { batch_timeout => '2s', max_concurrency => 8, request_timeout => '20s' }),
		{ ok => 100, timeout => 2 },
		'batch_timeout keeps the results that have arrived');
	is($api->stats->{requests}, 102, 'batch_timeout ends a batch before request_timeout does');
}

#
# Certificates
#
# OpenSSL takes 21 ms to parse the certificates of Debian, so they must not be read
# for each connection.  libcurl keeps them, except for version 8.22.0; 7.88.1, 8.14.1 and
# 8.23.0 do.  Only reading is counted: text between certificates makes the file large.
# What the backend receives from sockets is not part of "rchar".
#
SKIP:
{
	skip '/proc/PID/io is not available', 4 unless -r "/proc/$$/io";

	my $api = Hrflow::StandIn->new;
	my $bundle = $api->dir . '/bundle.pem';
	PostgreSQL::Test::Utils::append_to_file($bundle,
		"A line between certificates\n" x 20_000 . PostgreSQL::Test::Utils::slurp_file($api->ca));

	my $session = Hrflow::Session->new($node);
	my $bytes_read = sub {
		my ($bytes) =
		  PostgreSQL::Test::Utils::slurp_file('/proc/' . $session->pid . '/io') =~
		  /^rchar: (\d+)$/m;
		return $bytes;
	};

	# Fill the caches of the backend.
	run_batch(session => $session, api => $api, elements => ['warm']);
	$api->reset;
	my $before = $bytes_read->();
	is_deeply(
		run_batch(
			session => $session,
			api => $api,
			elements => [ ids(32, 'fault:latency=200,id=') ],
			settings => { base_url => $api->base_url('https'), ca_file => $bundle }),
		{ ok => 32 },
		'a batch over TLS with HTTP/1.1 succeeds');
	my $read = $bytes_read->() - $before;
	cmp_ok(connections_used($api), '>=', 2,
		'a batch over TLS with HTTP/1.1 uses several connections');
	cmp_ok($read, '>=', -s $bundle, 'the first batch over TLS reads the certificates');
	$session->finish;
	skip 'libcurl 8.22.0 reads the certificates for each connection', 1
	  if qx(curl-config --version) =~ /8\.22\.0/;
	cmp_ok($read, '<', 2 * -s $bundle, 'a batch over TLS reads the certificates only once');
}

#
# HTTP/2
#
SKIP:
{
	my $api = Hrflow::StandIn->new('--latency' => 200);
	my $proxy = Hrflow::Server->new('nghttpx', $api, http2 => 1)
	  or skip 'nghttpx is not installed', 7;
	my %http2 = (base_url => $proxy->base_url, ca_file => $api->ca);

	# libcurl has sockets of its own, which it opens with the first request.  It
	# closes all connections when ca_file changes, so set that before counting.
	my $session = Hrflow::Session->new($node);
	run_batch(
		session => $session,
		api => $api,
		elements => ['warm'],
		settings => { ca_file => $api->ca });
	my $sockets = $session->sockets;
	$session->ask('SELECT hrflow_embed_stats_reset();');
	$api->reset;

	foreach my $which ('first', 'second')
	{
		is_deeply(
			run_batch(
				session => $session,
				api => $api,
				elements => [ ids(500, $which) ],
				settings => { %http2, max_concurrency => 64 }),
			{ ok => 500 },
			"the $which batch over HTTP/2 succeeds");
	}
	is($session->ask('SELECT connections_opened FROM hrflow_embed_stats;'),
		"1\n-- done\n", 'two batches over HTTP/2 count one connection');
	is($session->sockets, $sockets + 1, 'two batches over HTTP/2 open one socket');
	my $max_in_flight = $api->stats->{max_in_flight};
	cmp_ok($max_in_flight, '>', $max_wasted,
		'an HTTP/2 connection carries more requests at once than a batch begins with');
	cmp_ok($max_in_flight, '<=', 64,
		'an HTTP/2 connection carries no more requests at once than max_concurrency');
	$session->finish;

	# nghttpx answers with 502 when the stand-in resets its connection.
	is_deeply(
		run_batch(
			api => $api,
			elements => [ 'a', 'fault:reset', 'b', 'fault:status=500', 'fault:silent' ],
			settings => { %http2, max_attempts => 1, request_timeout => '2s' }),
		{ ok => 2, http_error => 2, timeout => 1 },
		'an HTTP/2 stream that fails does not affect the others');
}

#
# Failures of one element in twenty
#
{
	my $api = Hrflow::StandIn->new('--latency' => 5);
	my @faults = (
		{ fault => 'break=100', status => 'connection_failed' },
		{ fault => 'first=1,break=50', status => 'ok' },
		{ fault => 'first=1,reset', status => 'ok' },
		{ fault => 'first=1,status=429,retry_after=0', status => 'ok' },
		{ fault => 'first=1,status=503', status => 'ok' },
		{ fault => 'first=2,status=502,html', status => 'ok' },
		{ fault => 'reset', status => 'connection_failed' },
		{ fault => 'silent', status => 'timeout' },
		{ fault => 'status=500', status => 'http_error' },
		{ fault => 'truncated', status => 'invalid_reply' });
	my @elements = ids(2000);
	my @expected = ('ok') x 2000;

	foreach my $i (0 .. 99)
	{
		my $case = $faults[ $i % @faults ];

		$elements[ 20 * $i ] = "fault:$case->{fault},id=$i";
		$expected[ 20 * $i ] = $case->{status};
	}
	my $printed = $node->safe_psql('postgres',
			settings($api, max_attempts => 3, request_timeout => '3s')
		  . q{SELECT status, data->>'profile', replace(error, E'\n', ' ') FROM }
		  . call(elements => \@elements)
		  . ' ORDER BY ordinality');
	my @rows;
	foreach my $line (split /\n/, $printed)
	{
		my ($status, $link, $error) = split /\|/, $line, 3;

		push @rows, { status => $status, link => $link, error => $error };
	}
	is(scalar(@rows), 2000, 'each element has one row when one in twenty fails');

	my (@wrong_status, @wrong_data);
	foreach my $i (0 .. $#rows)
	{
		my $id_in_link = $elements[$i];

		$id_in_link =~ s/([:=,])/sprintf '%%%02X', ord $1/ge;
		push @wrong_status, "$elements[$i]: $rows[$i]{status}, $rows[$i]{error}"
		  if $rows[$i]{status} ne $expected[$i];
		push @wrong_data, "$elements[$i]: $rows[$i]{link}"
		  if $rows[$i]{status} eq 'ok' && $rows[$i]{link} !~ m{/profiles/\Q$id_in_link\E/};
	}
	is_deeply(\@wrong_status, [], 'each element has the right status when one in twenty fails');
	is_deeply(\@wrong_data, [], 'each element has its own data when one in twenty fails');
}

#
# Retries
#
{
	my $api = Hrflow::StandIn->new;

	is_deeply(
		run_batch(
			api => $api,
			elements => [ 'fault:status=503,retry_after=2', ids(500) ],
			settings => { max_attempts => 2 }),
		{ http_error => 1, ok => 500 },
		'an element whose attempts all fail has its row');
	my @tries = grep { $_->{status} == 503 } requests($api);
	is(scalar(@tries), 2, 'an element that fails is requested max_attempts times');
	cmp_ok($tries[1]{begun} - $tries[0]{ms},
		'>=', 2000, 'a retry waits for as long as Retry-After specifies');
}

{
	my $api = Hrflow::StandIn->new('--latency' => 5);

	is_deeply(
		run_batch(
			api => $api,
			elements => [ 'fault:status=500,retry_after=2', ids(100) ],
			settings => { max_attempts => 2 }),
		{ http_error => 1, ok => 100 },
		'an element that meets an internal error of the API has its row');
	my @tries = grep { $_->{status} == 500 } requests($api);
	is(scalar(@tries), 2, 'an element that meets an internal error is requested again');
	my @others = grep { $_->{status} == 200 && $_->{begun} < $tries[-1]{begun} } requests($api);
	is(scalar(@others), 100, 'other elements do not wait for a retry');
}

{
	my $api = Hrflow::StandIn->new;

	is_deeply(
		run_batch(api => $api, elements => ['fault:first=1,code=429']),
		{ ok => 1 },
		'a request whose reply has the code 429 only in its body is sent again');
	is(scalar($api->log), 2,
		'a request whose reply has the code 429 only in its body is sent twice');
}

#
# Refusals
#
{
	my $api = Hrflow::StandIn->new('--latency' => 5);

	is( sqlstate_of_batch(
			api => $api,
			elements => [ ids(1000) ],
			settings => { api_key => 'askr_unknown' }),
		'28000',
		'a key that the API refuses raises an error');
	cmp_ok(scalar($api->log), '<=', $max_wasted,
		'a batch whose key is refused ends with the requests in flight');
}

{
	my $api = Hrflow::StandIn->new;

	is( sqlstate_of_batch(
			api => $api,
			elements => [ 'fault:silent', ids(1000) ],
			settings => {
				api_key => 'askr_unknown',
				max_attempts => 1,
				request_timeout => '300ms' }),
		'28000',
		'a refusal is raised once the requests in flight are finished');
}

{
	my $api = Hrflow::StandIn->new('--latency' => 5);

	is(sqlstate_of_batch(api => $api, source => 'unknown', elements => [ ids(1000) ]),
		'22023', 'a source that the API does not know raises an error');
	cmp_ok(scalar($api->log),
		'<=', $max_wasted, 'a batch of an unknown source ends with the requests in flight');
}

{
	my $quota = 1000;
	my $in_flight = 128;
	my $api = Hrflow::StandIn->new('--quota' => $quota);

	my ($status, $out, $err) = $node->psql(
		'postgres',
		batch_sql(
			api => $api,
			elements => [ ids(3000) ],
			settings => { max_concurrency => $in_flight }));
	is($status, 0, 'a quota that ends within a batch does not raise an error');
	is_deeply(
		counts($out),
		{ ok => 1000, over_quota => 2000 },
		'a quota that ends within a batch keeps the results from before');
	like(
		$err,
		qr/WARNING:  batch stopped early: HrFlow account is over its quota/,
		'a quota that ends within a batch raises a warning');
	cmp_ok(
		scalar($api->log), '<=',
		$quota + $in_flight,
		'only requests in flight are refused after the quota has ended');
}

{
	my $api = Hrflow::StandIn->new;

	is_deeply(
		run_batch(
			api => $api,
			elements => [ 'fault:status=403', ids(100) ],
			settings => { max_concurrency => 4 }),
		{ unauthorized => 1, ok => 100 },
		'a single 403 does not stop a batch');
}

#
# 429 pauses all backends that use the key
#
{
	my $api = Hrflow::StandIn->new;
	my $refused =
	  start_batch(api => $api, elements => ['fault:first=1,status=429,retry_after=2,id=pause']);

	$api->wait_until(sub { ($_[0]{by_status}{429} // 0) > 0 })
	  or die 'the first batch was not refused';
	is_deeply(
		run_batch(api => $api, elements => [ ids(20) ]),
		{ ok => 20 },
		'another backend succeeds after a pause that a 429 requests');
	is_deeply(
		finish_batch($refused),
		{ ok => 1 },
		'the request that was answered with 429 succeeds after the pause');

	my ($refusal, @later) = requests($api);
	is($refusal->{status}, 429, 'the first request of two backends is answered with 429');
	is(scalar(@later), 21, 'two backends send all other requests after the 429');
	cmp_ok($later[0]{begun} - $refusal->{ms},
		'>=', 2000, 'no backend sends a request during the pause that a 429 requests');
}

#
# Rate limits of several backends
#
{
	my $api = Hrflow::StandIn->new;
	my $since = now($api);

	foreach my $case (
		{ limit => 60, elements => 1, name => 'one request per second' },
		{ limit => 6000, elements => 2, name => 'a hundred requests per second' },
		{ limit => 0, elements => 1, name => 'no limit' })
	{
		is_deeply(
			run_batch(
				api => $api,
				elements => [ ids($case->{elements}, "limit-$case->{limit}-") ],
				settings => { max_requests_per_minute => $case->{limit} }),
			{ ok => $case->{elements} },
			"a backend with $case->{name} gets its rows from a key with several limits");
	}
	my @requests = requests($api);
	is(scalar(@requests), 4, 'backends with several limits send a request for each element');
	is_deeply([ too_early(\@requests, since => $since, burst => 1, interval => 1000) ],
		[], 'the lowest rate limit applies to all backends with the key');
}

# While a backend is limited to one request per second, another sends 20 requests with
# another key.
{
	my @keys = ('askr_limited', 'askr_other');
	my $api = Hrflow::StandIn->new(map { ('--key' => $_) } @keys);
	my $limited = start_batch(
		api => $api,
		elements => [ ids(5) ],
		settings => { api_key => $keys[0], max_requests_per_minute => 60 });

	$api->wait_until(sub { $_[0]{requests} >= 1 }) or die 'the limited batch sends no request';
	is_deeply(
		run_batch(
			api => $api,
			elements => [ ids(20) ],
			settings => { api_key => $keys[1], max_requests_per_minute => 6000 }),
		{ ok => 20 },
		'a backend with another key than a limited one succeeds');
	is_deeply(finish_batch($limited), { ok => 5 }, 'a backend with a limited key succeeds');
	is((requests($api))[-1]{headers}{'X-API-KEY'},
		$keys[0], 'a rate limit does not delay a backend with another key');
}

# Four backends send 20 requests each, at a total of 20 per second.  The first 20 are a
# burst.
{
	my $rate = 20;
	my $interval = 1000 / $rate;
	my $api = Hrflow::StandIn->new;
	my $since = now($api);
	my @running = map {
		start_batch(
			api => $api,
			elements => [ ids(20, "backend-$_-") ],
			settings => { max_requests_per_minute => 60 * $rate })
	} 1 .. 4;

	foreach my $running (@running)
	{
		is_deeply(
			finish_batch($running),
			{ ok => 20 },
			'a backend that shares a rate gets its rows');
	}
	my @requests = requests($api);
	is(scalar(@requests), 80, 'four backends that share a rate send a request for each element');
	is_deeply([ too_early(\@requests, since => $since, burst => $rate, interval => $interval) ],
		[], 'four backends together exceed neither their rate nor its burst');

	# The rate is used if requests follow each other after 50 ms.  That they do so soon
	# cannot be shown without a clock, but most do even on a busy machine, whereas
	# backends that used a quarter of the rate would leave 200 ms between requests.
	my @begun = map { $_->{begun} } @requests[ $rate .. $#requests ];
	my @gaps = sort { $a <=> $b } map { $begun[$_] - $begun[ $_ - 1 ] } 1 .. $#begun;
	cmp_ok(
		$gaps[ @gaps / 2 ],
		'<',
		2 * $interval,
		'four backends together make use of their whole rate');
}

# Two requests in ten seconds are more than the rate allows, so the second one times
# out if it belongs to the same origin.
{
	my $api = Hrflow::StandIn->new;
	my $port = $api->http;
	my $session = Hrflow::Session->new($node);
	my %limits = (batch_timeout => '1s', max_requests_per_minute => 6);

	is_deeply(
		run_batch(
			session => $session,
			api => $api,
			elements => ['one'],
			settings => { %limits, base_url => "http://localhost:$port/v1" }),
		{ ok => 1 },
		'the first request to an origin is sent at once');
	is_deeply(
		run_batch(
			session => $session,
			api => $api,
			elements => ['two'],
			settings => { %limits, base_url => "HTTP://LocalHost:$port/v1/" }),
		{ timeout => 1 },
		'the rate limit of an origin does not depend on how base_url is written');
	$session->finish;
}

#
# Counters
#
{
	my $api = Hrflow::StandIn->new;
	my $session = Hrflow::Session->new($node);
	my %batch = (
		session => $session,
		api => $api,
		elements => [ 'fault:first=1,status=429,retry_after=1,id=counted', ids(9) ]);

	$session->ask(
		'SELECT hrflow_embed_stats_reset();
		SELECT clock_timestamp() AS began \gset');
	is_deeply(run_batch(%batch), { ok => 10 }, 'a batch with a 429 succeeds');
	is_deeply(run_batch(%batch), { ok => 10 }, 'a batch after one with a 429 succeeds');
	my $seconds_ago = "extract(epoch FROM clock_timestamp() - :'began')";
	my ($counted, $waited_less, $waited_long) = split /\n/, $session->ask(
		"SELECT calls, requests, retries, rate_limits, bytes_received, connections_opened,
				connections_reused, rows_by_status
			FROM hrflow_embed_stats;
		SELECT wait_seconds <= $seconds_ago FROM hrflow_embed_stats;
		SELECT wait_seconds >= 0.9 FROM hrflow_embed_stats;");

	my $stats = $api->stats;
	my $opened = connections_used($api);
	my $reused = 21 - $opened;
	is($stats->{requests}, 21, 'two batches of ten with a 429 send 21 requests');
	is($stats->{by_status}{429}, 1, 'one of 21 requests is answered with 429');
	is( $counted,
		"2|21|1|1|$stats->{bytes_sent}|$opened|$reused|" . '{"ok": 20}',
		'the statistics agree with the log of the API');
	is($waited_less, 't', 'wait_seconds is not more than the time that has passed');
	is($waited_long, 't', 'wait_seconds includes a pause that a 429 requests');
	$session->finish;
}

# Retries are counted, whether or not they count as attempts.
{
	my $api = Hrflow::StandIn->new;

	$node->safe_psql('postgres', 'SELECT hrflow_embed_stats_reset()');
	is_deeply(
		run_batch(
			api => $api,
			elements => [ ids(8, 'fault:first=1,latency=500,status=429,retry_after=1,id=') ]),
		{ ok => 8 },
		'eight requests that are answered with 429 succeed when sent again');
	is($node->safe_psql('postgres', 'SELECT requests, retries FROM hrflow_embed_stats'),
		'16|8', 'each of eight requests that are answered with 429 is counted as a retry');
	is($node->safe_psql('postgres', 'SELECT connections_opened FROM hrflow_embed_stats'),
		'8', 'the retry of a request does not open another connection');
}

{
	my $api = Hrflow::StandIn->new;

	$node->safe_psql('postgres', 'SELECT hrflow_embed_stats_reset()');
	is_deeply(
		run_batch(
			api => $api,
			elements => [ ids(5, 'fault:silent,id=') ],
			settings => { batch_timeout => '1s' }),
		{ timeout => 5 },
		'batch_timeout abandons requests without a reply');
	is( $node->safe_psql(
			'postgres', 'SELECT requests, retries, connections_opened FROM hrflow_embed_stats'),
		'5|0|5',
		'abandoned requests and their connections are counted');
}

{
	my $api = Hrflow::StandIn->new;

	$node->safe_psql('postgres', 'SELECT hrflow_embed_stats_reset()');
	my $running = start_batch(api => $api, elements => [ ids(20), 'fault:latency=3000' ]);
	ok( $node->poll_query_until(
			'postgres',
			q{SELECT calls = 1 AND requests = 21 AND rows_by_status @> '{"ok": 20}'
				FROM hrflow_embed_stats
				WHERE EXISTS (SELECT FROM pg_stat_activity WHERE query ~ 'latency'
					AND state = 'active' AND pid <> pg_backend_pid())}),
		'results are counted while their batch is running');
	is_deeply(finish_batch($running), { ok => 21 }, 'a batch that was observed succeeds');
}

done_testing();
