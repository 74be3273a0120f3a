# Batches, as the API sees them.
#
# The log of the stand-in API shows how many requests were in flight, over which
# connections, in which order, and with which pauses between them.  None of this
# is visible from SQL, and several cases take more than one backend, so these are
# not regression tests.  An identifier such as "fault:status=503,id=a" tells the stand-in how
# to reply; see test/api/README.md.
#
# A slow machine can prolong a wait, but cannot shorten one.  Therefore waits are tested
# for a minimum, in milliseconds of the stand-in's clock.  Because the stand-in may notice
# the arrival of a request late, a minimum counts from its reply to an earlier request, or
# from a time before the first request.  If requests must be in flight at the same time,
# the stand-in holds their replies until they are.
#
# Maximum times are those of $time_limit, and of with_time_limit().  Where they do not apply,
# each request has the 30 seconds that are the default of request_timeout.  There is one
# exception, which a comment explains.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Server;
use Hrflow::Session;
use Hrflow::StandIn;
use JSON::PP                qw(decode_json);
use PostgreSQL::Test::Utils ();
use Test::More;

# Time after which requests and batches time out in tests of that, in seconds and in
# milliseconds.  All else that such a test does within this time takes a tenth of it on an
# idle machine; it takes longer if the server is instrumented, as by AddressSanitizer.
my $time_limit_s = $ENV{HRFLOW_INSTRUMENT} ? 20 : 4;
my $time_limit = 1000 * $time_limit_s;

# Number of requests that a batch sends at most before the first reply shows that
# the API accepts them: HRFLOW_MAX_WASTED in src/base/base.h.
my $max_wasted = 32;

# Backends share what they learn about an API, such as its rate limit, so each subtest
# starts a stand-in of its own and sets base_url.
my $no_api;
my $node = Hrflow::Node->new('batch', $no_api, shared_preload_libraries => 'hrflow_embed');

# Run a subtest.  An exception fails it, but those after it still run.
sub run_subtest
{
	my ($name, $code) = @_;

	return subtest $name => sub {
		eval { $code->(); 1 } or fail("$name runs to its end") or diag($@);
	};
}

# Return this many distinct identifiers.
sub ids
{
	my ($n, $prefix) = @_;

	$prefix //= 'p';
	return map { "$prefix$_" } 1 .. $n;
}

# Return this many distinct identifiers, each of which requests a fault of the stand-in.
sub fault_ids
{
	my ($n, $fault) = @_;

	return map { "fault:$fault,id=$_" } 1 .. $n;
}

# Return a text as an SQL literal.
sub literal
{
	my ($text) = @_;

	return "'" . $text =~ s/'/''/gr . "'";
}

# Return a call of hrflow_profile_embeddings() for these profiles.  Their source is
# "acme" by default.
sub embeddings_call
{
	my ($elements, $source) = @_;
	my $array = join ', ', map { literal($_) } @$elements;

	$source = literal($source // 'acme');
	return qq{hrflow_profile_embeddings($source, ARRAY[$array], '{"profile": 1}')};
}

# Return SET statements for settings of hrflow_embed, among them the URL of an API.
sub set_statements
{
	my ($api, %settings) = @_;

	$settings{base_url} //= $api->base_url;
	return join '',
	  map { "SET hrflow_embed.$_ = " . literal($settings{$_}) . ";\n" } sort keys %settings;
}

# Return the SQL of a batch, which prints its number of rows by status as JSON.
sub batch_sql
{
	my ($api, $elements, %settings) = @_;

	return
		set_statements($api, %settings)
	  . 'SELECT json_object_agg(status, n) FROM (SELECT status, count(*) AS n FROM '
	  . embeddings_call($elements)
	  . ' GROUP BY status) AS counts;';
}

# Run a batch in a new session.  Returns its number of rows by status, as a hash.
sub run_batch
{
	my ($api, $elements, %settings) = @_;

	return decode_json($node->safe_psql('postgres', batch_sql($api, $elements, %settings)));
}

# Run a batch in an existing session, in which its settings remain.  Returns its number of
# rows by status, as a hash.
sub run_batch_in
{
	my ($session, $api, $elements, %settings) = @_;

	return decode_json($session->query(batch_sql($api, $elements, %settings)));
}

# Start a batch in a new session, without waiting for it.  Returns the session.
sub start_batch
{
	my ($api, $elements, %settings) = @_;
	my $session = Hrflow::Session->new($node);

	$session->start(batch_sql($api, $elements, %settings));
	return $session;
}

# Wait for a batch that was started, and end its session.  Returns its number of rows by
# status, as a hash.
sub finish_batch
{
	my ($session) = @_;
	my $rows = decode_json($session->result);

	$session->finish;
	return $rows;
}

# Call a function with a time limit in milliseconds.  If its result is not the expected one,
# the machine may be too busy for the limit, so try again with a longer one.  Returns the
# result.
sub with_time_limit
{
	my ($expected, $code) = @_;
	my $result;

	foreach my $limit ($time_limit, 5 * $time_limit)
	{
		$result = $code->($limit);
		last if eq_array([$result], [$expected]);
		note("not the expected result within $limit ms");
	}
	return $result;
}

# Return the requests that a stand-in has answered, in the order of their arrival.
sub requests
{
	my ($api) = @_;
	my @requests = sort { $a->{number} <=> $b->{number} } $api->log;

	return @requests;
}

# Return the identifier of the profile in a link to its data.
sub profile_in_link
{
	my ($link) = @_;
	my ($id) = $link =~ m{/profiles/([^/]+)/} or die "no profile in $link";

	return $id =~ s/%([0-9A-F]{2})/chr hex $1/egr;
}

# Return the number of connections over which these requests were sent.
sub connections_used
{
	my (@requests) = @_;
	my %used = map { $_->{connection} => 1 } @requests;

	return scalar keys %used;
}

# Return the present time of a stand-in, in milliseconds.
sub time_of
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

# The statistics are those of the whole server.
sub reset_statistics
{
	$node->safe_psql('postgres', 'SELECT hrflow_embed_stats_reset()');
	return;
}

# Return columns of the statistics, as a hash.
sub statistics
{
	my (@columns) = @_;
	my $row = decode_json(
		$node->safe_psql('postgres', 'SELECT row_to_json(s) FROM hrflow_embed_stats AS s'));

	return { map { $_ => $row->{$_} } @columns };
}

#
# Requests in flight, and their connections
#
foreach my $limit (1, 7, 32)
{
	run_subtest "max_concurrency = $limit" => sub {
		my $api = Hrflow::StandIn->new('--latency' => 100);

		# The first replies are held until as many requests as may be in flight have
		# arrived.  The latency leaves a batch time to exceed the limit, then and later.
		my @elements = (fault_ids($limit, "hold=$limit"), ids(9 * $limit));

		is_deeply(
			run_batch($api, \@elements, max_concurrency => $limit),
			{ ok => scalar @elements },
			"a batch with max_concurrency = $limit succeeds");
		is($api->stats->{max_in_flight},
			$limit, "a batch reaches and does not exceed max_concurrency = $limit");
		cmp_ok(connections_used($api->log),
			'<=', $limit, "a batch with max_concurrency = $limit uses at most $limit connections");
	};
}

run_subtest 'connections of a session' => sub {
	my $api = Hrflow::StandIn->new('--latency' => 5);
	my $session = Hrflow::Session->new($node);

	run_batch_in($session, $api, [ ids(200, $_) ], max_concurrency => 32) foreach 'p', 'q', 'r';
	my @requests = $api->log;
	is(scalar(@requests), 600, 'three batches of 200 elements send 600 requests');
	cmp_ok(connections_used(@requests),
		'<=', 32, 'three batches of a session use at most 32 connections');
	$session->finish;
};

run_subtest 'order of requests' => sub {
	my $api = Hrflow::StandIn->new;
	my @elements = ids(50);

	is_deeply(
		run_batch($api, [ @elements, @elements ], max_concurrency => 1),
		{ ok => 100 },
		'a batch with duplicates has a row for each element');
	is_deeply([ map { $_->{query} =~ /profile_id=(\w+)/ } requests($api) ],
		\@elements, 'distinct elements are requested once each, and in their order');
};

#
# A function in FROM runs to its end, as the README warns
#
foreach my $case (
	{   name => 'LIMIT',
		sql => 'SELECT profile_id FROM %s LIMIT 1;' },
	{   name => 'a cursor that is closed',
		sql => 'BEGIN;
			DECLARE c CURSOR FOR SELECT profile_id FROM %s;
			FETCH 1 FROM c;
			CLOSE c;
			COMMIT;'
	})
{
	run_subtest $case->{name} => sub {
		my $api = Hrflow::StandIn->new;
		my $sql = sprintf $case->{sql}, embeddings_call([ ids(20) ]);

		like($node->safe_psql('postgres', set_statements($api, max_concurrency => 1) . $sql),
			qr/^p\d+$/, "a batch with $case->{name} returns one row");
		is(scalar($api->log), 20, "all elements are requested despite $case->{name}");
	};
}

#
# Time limits
#
# In both cases, all elements but a few wait for 200 ms each, one after another.  The
# two batches wait at the same time.
#
run_subtest 'request_timeout of elements that wait' => sub {
	my @elements = ids(10 + $time_limit / 200);
	my @cases = (
		{   name => 'an element waits for another request',
			api => Hrflow::StandIn->new('--latency' => 200),
			settings => { max_concurrency => 1 } },
		{   name => 'an element waits for the rate limit',
			api => Hrflow::StandIn->new,
			settings => { max_requests_per_minute => 300 } });

	foreach my $case (@cases)
	{
		$case->{since} = time_of($case->{api});
		$case->{running} = start_batch(
			$case->{api}, \@elements,
			max_attempts => 1,
			request_timeout => $time_limit,
			%{ $case->{settings} });
	}
	foreach my $case (@cases)
	{
		is_deeply(
			finish_batch($case->{running}),
			{ ok => scalar @elements },
			"request_timeout does not count the time for which $case->{name}");
		my $last = (requests($case->{api}))[-1];
		cmp_ok($last->{ms} - $case->{since},
			'>', $time_limit, "a batch takes longer than request_timeout because $case->{name}");
	}
};

run_subtest 'batch_timeout' => sub {
	my $api;
	my $expected = { ok => 100, timeout => 2 };
	my $rows = with_time_limit(
		$expected,
		sub {
			$api = Hrflow::StandIn->new;
			return run_batch(
				$api, [ ids(100), fault_ids(2, 'silent') ],
				batch_timeout => $_[0],
				max_concurrency => 8,
				request_timeout => '30min');
		});

	is_deeply($rows, $expected, 'batch_timeout ends a batch with the results that have arrived');
	is($api->stats->{requests}, 102, 'a batch that times out has requested each element once');
};

#
# Certificates
#
# OpenSSL takes 21 ms to parse the certificates of Debian, so they must not be read
# for each connection.  libcurl keeps them, except for version 8.22.0; 7.88.1, 8.14.1 and
# 8.23.0 do.  Only reading is counted: text between certificates makes the file large.
# What the backend receives from sockets is not part of "rchar".
#
run_subtest 'certificates' => sub {
	plan skip_all => '/proc/PID/io is not available' unless -r "/proc/$$/io";
	plan skip_all => 'libcurl 8.22.0 reads the certificates for each connection'
	  if (qx(curl-config --version) // '') =~ /8\.22\.0/;

	my $api = Hrflow::StandIn->new;
	my $bundle = $api->dir . '/bundle.pem';
	PostgreSQL::Test::Utils::append_to_file($bundle,
		"A line between certificates\n" x 20_000 . PostgreSQL::Test::Utils::slurp_file($api->ca));

	my $session = Hrflow::Session->new($node);
	my $bytes_read = sub {
		my $io = PostgreSQL::Test::Utils::slurp_file('/proc/' . $session->pid . '/io');
		my ($bytes) = $io =~ /^rchar: (\d+)$/m or die "no rchar in $io";
		return $bytes;
	};

	# Fill the caches of the backend.
	run_batch_in($session, $api, ['warm']);
	$api->reset;
	my $before = $bytes_read->();
	is_deeply(
		run_batch_in(
			$session, $api, [ fault_ids(8, 'hold=8') ],
			base_url => $api->base_url('https'),
			ca_file => $bundle),
		{ ok => 8 },
		'a batch over TLS with HTTP/1.1 succeeds');
	my $read = $bytes_read->() - $before;
	is(connections_used($api->log),
		8, 'a batch over TLS with HTTP/1.1 uses a connection for each request in flight');
	cmp_ok($read, '>=', -s $bundle, 'the first batch over TLS reads the certificates');
	cmp_ok($read, '<', 2 * -s $bundle, 'a batch over TLS reads the certificates only once');
	$session->finish;
};

#
# HTTP/2
#
# The latency lets the number of requests in flight grow.  It need not exceed $max_wasted
# in more than one of some 16 round trips.
#
run_subtest 'HTTP/2' => sub {
	my $api = Hrflow::StandIn->new('--latency' => 200);
	my $proxy = Hrflow::Server->new('nghttpx', $api, http2 => 1)
	  or plan skip_all => 'nghttpx is not installed';
	my %http2 = (base_url => $proxy->base_url, ca_file => $api->ca);
	my $limit = 64;

	# libcurl has sockets of its own, which it opens with the first request.  It
	# closes all connections when ca_file changes, so set that before counting.
	my $session = Hrflow::Session->new($node);
	run_batch_in($session, $api, ['warm'], ca_file => $api->ca);
	my $sockets = $session->sockets;
	reset_statistics();
	$api->reset;

	foreach my $which ('first', 'second')
	{
		is_deeply(
			run_batch_in($session, $api, [ ids(500, $which) ], %http2, max_concurrency => $limit),
			{ ok => 500 },
			"the $which batch over HTTP/2 succeeds");
	}
	is_deeply(
		statistics('connections_opened'),
		{ connections_opened => 1 },
		'two batches over HTTP/2 count one connection');
	is($session->sockets, $sockets + 1, 'two batches over HTTP/2 open one socket');
	my $max_in_flight = $api->stats->{max_in_flight};
	cmp_ok($max_in_flight, '>', $max_wasted,
		'an HTTP/2 connection carries more requests at once than a batch begins with');
	cmp_ok($max_in_flight, '<=', $limit,
		'an HTTP/2 connection carries no more requests at once than max_concurrency');
	$session->finish;

	# nghttpx answers with 502 when the stand-in resets its connection.
	my $expected = { ok => 2, http_error => 2, timeout => 1 };
	my $rows = with_time_limit(
		$expected,
		sub {
			return run_batch(
				$api, [ 'a', 'fault:reset', 'b', 'fault:status=500', 'fault:silent' ],
				%http2,
				max_attempts => 1,
				request_timeout => $_[0]);
		});

	is_deeply($rows, $expected, 'an HTTP/2 stream that fails does not affect the others');
};

#
# Outages
#
run_subtest 'an outage in which texts are lost' => sub {
	my $api = Hrflow::StandIn->new;
	my $texts = join ', ', map { literal($_) } ids(40, 'text ');
	my $since = time_of($api);

	# A text is not sent again after an HTTP 503, because the API could have processed it.
	# When eight in a row have failed, fewer than eight others have been submitted.
	$api->script('status=503', count => 16);
	is_deeply(
		decode_json(
			$node->safe_psql(
				'postgres',
				set_statements($api, max_concurrency => 2)
				  . "SELECT json_object_agg(status, n) FROM (SELECT status, count(*) AS n
					FROM hrflow_text_embeddings(ARRAY[$texts]) GROUP BY status) AS counts;")),
		{ ok => 24, http_error => 16 },
		'a batch of texts continues after an outage');
	my @requests = requests($api);
	is(scalar(@requests), 40, 'a batch of texts sends each text once, in spite of an outage');
	cmp_ok($requests[15]{begun} - $since, '>=', 250, 'a batch of texts pauses during an outage');
};

run_subtest 'an element that fails before, during and after an outage' => sub {
	my ($rows, $n_bad);

	# The others fail while the first is in flight, for which a busy machine may need more
	# time.
	foreach my $latency (1000, 5000)
	{
		my $api = Hrflow::StandIn->new;
		my $bad_id = "fault:status=503,latency=$latency,id=bad";

		$rows = run_batch(
			$api, [ $bad_id, fault_ids(16, 'first=1,status=503'), ids(20) ],
			max_attempts => 1,
			max_concurrency => 2);
		$n_bad = grep { $_->{query} =~ /bad/ } $api->log;
		last if $n_bad == 2;
	}
	is_deeply(
		$rows,
		{ ok => 36, http_error => 1 },
		'elements that fail during an outage succeed after it, unless they still fail');
	is($n_bad, 2, 'an element that fails although others succeed is not requested again');
};

#
# Failures of one element in twenty
#
run_subtest 'failures of some elements' => sub {
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
	my (@elements, @expected);

	# Ten times, each fault is followed by 19 elements without one.
	foreach my $i (0 .. 10 * @faults - 1)
	{
		my ($fault, $status) = @{ $faults[ $i % @faults ] }{ 'fault', 'status' };
		my $bad_id = "fault:$fault,id=$i";
		my @good_ids = ids(19, "after-$i-");

		push @elements, $bad_id, @good_ids;
		push @expected, { status => $status, data_of => $status eq 'ok' ? $bad_id : undef };
		push @expected, map { +{ status => 'ok', data_of => $_ } } @good_ids;
	}
	my $call = embeddings_call(\@elements);
	my $rows;
	my $got = with_time_limit(
		\@expected,
		sub {
			my $api = Hrflow::StandIn->new('--latency' => 5);

			$rows = decode_json(
				$node->safe_psql(
					'postgres',
					set_statements($api, max_attempts => 3, request_timeout => $_[0])
					  . "SELECT json_agg(json_build_object('status', status, 'error', error,
						'link', data->>'profile') ORDER BY ordinality)
						FROM $call;"));
			return [
				map {
					+{  status => $_->{status},
						data_of => defined $_->{link} ? profile_in_link($_->{link}) : undef }
				} @$rows ];
		});

	is_deeply($got, \@expected, 'each element has its own status and data if one in 20 fails')
	  or diag(map { "$_->{error}\n" } grep { defined $_->{error} } @$rows);
};

#
# Retries
#
run_subtest 'an element whose attempts all fail' => sub {
	my $api = Hrflow::StandIn->new;
	my $retry_after = 2;
	my @elements = ("fault:status=503,retry_after=$retry_after", ids(500));

	is_deeply(
		run_batch($api, \@elements, max_attempts => 2),
		{ http_error => 1, ok => 500 },
		'an element whose attempts all fail has its row');
	my @attempts = grep { $_->{status} == 503 } requests($api);
	is(scalar(@attempts), 2, 'an element whose attempts all fail is requested max_attempts times');
	my $pause = $attempts[1]{begun} - $attempts[0]{ms};
	cmp_ok($pause, '>=', 1000 * $retry_after, 'a retry waits for as long as Retry-After specifies');
};

run_subtest 'other elements during the pause before a retry' => sub {
	my $api = Hrflow::StandIn->new('--latency' => 5);
	my @elements = ("fault:status=500,retry_after=$time_limit_s", ids(100));

	is_deeply(
		run_batch($api, \@elements, max_attempts => 2),
		{ http_error => 1, ok => 100 },
		'an element that meets an internal error of the API has its row');
	my @statuses = map { $_->{status} } requests($api);
	is(scalar(grep { $_ == 500 } @statuses),
		2, 'an element that meets an internal error is requested again');
	is(scalar(@statuses), 102, 'each other element is requested once');
	is($statuses[-1], 500, 'other elements do not wait for a retry');
};

#
# Refusals
#
foreach my $case (
	{   name => 'unknown key',
		call => embeddings_call([ ids(1000) ]),
		settings => { api_key => 'askr_unknown' },
		sqlstate => '28000' },
	{   name => 'unknown key and a request without a reply',
		call => embeddings_call([ 'fault:silent', ids(1000) ]),
		settings =>
		  { api_key => 'askr_unknown', max_attempts => 1, request_timeout => $time_limit },
		sqlstate => '28000',
		lasts => $time_limit },
	{   name => 'unknown source',
		call => embeddings_call([ ids(1000) ], 'unknown'),
		sqlstate => '22023' })
{
	my $what = "a batch with an $case->{name}";

	run_subtest $what => sub {
		my $api = Hrflow::StandIn->new('--latency' => 5);
		my $since = time_of($api);
		my $sql = set_statements($api, %{ $case->{settings} // {} });

		like($node->error_of("$sql SELECT count(*) FROM $case->{call};"),
			qr/^$case->{sqlstate}:/, "$what raises an error");
		cmp_ok($api->stats->{requests},
			'<=', $max_wasted, "$what sends at most $max_wasted requests");
		cmp_ok(time_of($api) - $since,
			'>=', $case->{lasts}, "$what waits for the requests in flight")
		  if $case->{lasts};
	};
}

run_subtest 'quota' => sub {
	my ($quota, $excess, $in_flight) = (1000, 2000, 128);
	my $api = Hrflow::StandIn->new('--quota' => $quota);

	my ($status, $out, $err) = $node->psql('postgres',
		batch_sql($api, [ ids($quota + $excess) ], max_concurrency => $in_flight));
	is($status, 0, 'a quota that ends within a batch does not raise an error');
	is_deeply(
		decode_json($out),
		{ ok => $quota, over_quota => $excess },
		'a quota that ends within a batch keeps the results from before');
	like(
		$err,
		qr/WARNING:  batch stopped early: HrFlow account is over its quota/,
		'a quota that ends within a batch raises a warning');
	my $most = $quota + $in_flight;
	cmp_ok(scalar($api->log), '<=', $most,
		'a batch exceeds a quota by at most the requests in flight');
};

# Replies that do not end a batch
foreach my $case (
	{   name => 'a single 403',
		elements => [ 'fault:status=403', ids(100) ],
		rows => { unauthorized => 1, ok => 100 },
		requests => 101 },
	{   name => 'the code 429 only in a body',
		elements => [ 'fault:first=1,code=429', ids(100) ],
		rows => { ok => 101 },
		requests => 102 })
{
	run_subtest "a batch that meets $case->{name}" => sub {
		my $api = Hrflow::StandIn->new;

		is_deeply(run_batch($api, $case->{elements}, max_concurrency => 4),
			$case->{rows}, "a batch that meets $case->{name} has the right rows");
		is(scalar($api->log),
			$case->{requests}, "a batch that meets $case->{name} sends $case->{requests} requests");
	};
}

#
# 429 pauses all backends that use the key
#
run_subtest 'pause after a 429' => sub {
	my $api = Hrflow::StandIn->new;
	my $retry_after = 2;

	reset_statistics();
	my $refused = start_batch($api, ["fault:first=1,status=429,retry_after=$retry_after"]);

	# The backend has received a 429 when it counts it.
	$node->poll_query_until('postgres', 'SELECT rate_limits = 1 FROM hrflow_embed_stats')
	  or die 'the first batch was not refused';
	is_deeply(
		run_batch($api, [ ids(20) ]),
		{ ok => 20 },
		'another backend succeeds after a pause that a 429 requests');
	is_deeply(
		finish_batch($refused),
		{ ok => 1 },
		'the request that was answered with 429 succeeds after the pause');

	my ($refusal, @later) = requests($api);
	is($refusal->{status}, 429, 'the first request of two backends is answered with 429');
	is(scalar(@later), 21, 'two backends send all other requests after the 429');
	my $pause = $later[0]{begun} - $refusal->{ms};
	cmp_ok($pause, '>=', 1000 * $retry_after, 'no backend sends a request during the pause');
};

#
# Rate limits of several backends
#
run_subtest 'backends with different limits' => sub {
	my $api = Hrflow::StandIn->new;
	my $since = time_of($api);

	foreach my $case (
		{ limit => 60, elements => 1, name => 'one request per second' },
		{ limit => 6000, elements => 2, name => 'a hundred requests per second' },
		{ limit => 0, elements => 1, name => 'no limit' })
	{
		my @elements = ids($case->{elements}, "limit-$case->{limit}-");

		is_deeply(
			run_batch($api, \@elements, max_requests_per_minute => $case->{limit}),
			{ ok => scalar @elements },
			"a backend with $case->{name} gets its rows from a key with several limits");
	}
	my @requests = requests($api);
	is(scalar(@requests), 4, 'backends with several limits send a request for each element');
	is_deeply([ too_early(\@requests, since => $since, burst => 1, interval => 1000) ],
		[], 'the lowest rate limit applies to all backends with the key');
};

# While a backend is limited to one request per second, another sends 20 requests with
# another key.
run_subtest 'backends with different keys' => sub {
	my @keys = ('askr_limited', 'askr_other');
	my ($rows, $limited_rows, $n);
	my $last_key = with_time_limit(
		$keys[0],
		sub {
			my ($limit) = @_;
			my $api = Hrflow::StandIn->new(map { ('--key' => $_) } @keys);

			$n = 1 + $limit / 1000;
			my $limited =
			  start_batch($api, [ ids($n) ], api_key => $keys[0], max_requests_per_minute => 60);
			$api->wait_until(sub { $_[0]{requests} >= 1 })
			  or die 'the limited batch sends no request';
			$rows =
			  run_batch($api, [ ids(20) ], api_key => $keys[1], max_requests_per_minute => 6000);
			$limited_rows = finish_batch($limited);
			return (requests($api))[-1]{headers}{'X-API-KEY'};
		});

	is_deeply($rows, { ok => 20 }, 'a backend with another key than a limited one succeeds');
	is_deeply($limited_rows, { ok => $n }, 'a backend with a limited key succeeds');
	is($last_key, $keys[0], 'a rate limit does not delay a backend with another key');
};

run_subtest 'backends that share a rate' => sub {
	my $api = Hrflow::StandIn->new;
	my %rate = (since => time_of($api), burst => 5, interval => 200);    # 300 per minute
	my @running =
	  map { start_batch($api, [ ids(6, "backend-$_-") ], max_requests_per_minute => 300) } 1 .. 4;

	foreach my $i (0 .. 3)
	{
		is_deeply(
			finish_batch($running[$i]),
			{ ok => 6 },
			"backend $i of four that share a rate gets its rows");
	}
	my @requests = requests($api);
	is(scalar(@requests), 24, 'four backends that share a rate send a request for each element');
	is_deeply([ too_early(\@requests, %rate) ],
		[], 'four backends together exceed neither their rate nor its burst');

	# That the rate is used cannot be shown without a maximum time.  Requests follow each
	# other after one interval, and after a delay sooner, so most pauses are short even on
	# a busy machine.  If the backends used a quarter of the rate, each would take four
	# intervals.
	my @pauses =
	  map { $requests[$_]{begun} - $requests[ $_ - 1 ]{begun} } $rate{burst} .. $#requests;
	my @short_pauses = grep { $_ < 2 * $rate{interval} } @pauses;
	cmp_ok(2 * @short_pauses, '>', scalar(@pauses), 'four backends together use their whole rate');
};

run_subtest 'the rate of an origin' => sub {
	my $api = Hrflow::StandIn->new;
	my $port = $api->http;
	my $since = time_of($api);

	foreach my $url ("http://localhost:$port/v1", "HTTP://LocalHost:$port/v1/")
	{
		is_deeply(
			run_batch($api, ['one'], base_url => $url, max_requests_per_minute => 60),
			{ ok => 1 },
			"a batch with the URL $url succeeds");
	}
	is_deeply([ too_early([ requests($api) ], since => $since, burst => 1, interval => 1000) ],
		[], 'the rate limit of an origin does not depend on how base_url is written');
};

#
# Counters
#
run_subtest 'statistics of two batches' => sub {
	my $api = Hrflow::StandIn->new;
	my $session = Hrflow::Session->new($node);
	my @elements = ('fault:first=1,status=429,retry_after=1', ids(9));

	reset_statistics();
	my $since = time_of($api);
	foreach my $which ('first', 'second')
	{
		is_deeply(
			run_batch_in($session, $api, \@elements),
			{ ok => 10 },
			"the $which of two batches that are counted succeeds");
	}
	my $seconds = (time_of($api) - $since) / 1000;
	my $sent = $api->stats;
	my $connections = connections_used($api->log);
	$session->finish;

	is($sent->{requests}, 21, 'two batches of ten with a 429 send 21 requests');
	is($sent->{by_status}{429}, 1, 'one of 21 requests is answered with 429');
	cmp_ok($connections, '<=', 10, 'two batches of ten use at most ten connections');
	is_deeply(
		statistics(
			qw(calls requests retries rate_limits bytes_received connections_opened
			  connections_reused rows_by_status)),
		{   calls => 2,
			requests => 21,
			retries => 1,
			rate_limits => 1,
			bytes_received => $sent->{bytes_sent},
			connections_opened => $connections,
			connections_reused => 21 - $connections,
			rows_by_status => { ok => 20 } },
		'the statistics agree with the log of the API');
	my $waited = statistics('wait_seconds')->{wait_seconds};
	cmp_ok($waited, '<=', $seconds, 'wait_seconds is not more than the time that has passed');

	# A small part of the pause has passed when the backend begins to wait.
	cmp_ok($waited, '>=', 0.5, 'wait_seconds includes a pause that a 429 requests');
};

foreach my $case (
	{   name => 'a retry of each request',
		elements => [ fault_ids(8, 'first=1,hold=8,status=429,retry_after=1') ],
		rows => { ok => 8 },
		statistics => { requests => 16, retries => 8, connections_opened => 8 } },
	{   name => 'a refusal of each request in the body of the reply',
		elements => [ fault_ids(8, 'first=1,hold=8,code=429') ],
		rows => { ok => 8 },
		statistics => { requests => 16, rate_limits => 8 } },
	{   name => 'requests without a reply',
		elements => [ fault_ids(5, 'silent') ],
		settings => { batch_timeout => $time_limit },
		rows => { timeout => 5 },
		statistics => { requests => 5, retries => 0, connections_opened => 5 } })
{
	my ($what, $expected) = ("a batch with $case->{name}", $case->{statistics});

	run_subtest "statistics of $what" => sub {
		my $api = Hrflow::StandIn->new;

		reset_statistics();
		is_deeply(run_batch($api, $case->{elements}, %{ $case->{settings} // {} }),
			$case->{rows}, "$what has a row for each element");
		is_deeply(statistics(keys %$expected),
			$expected, "the requests and connections of $what are counted");
	};
}

run_subtest 'statistics of a running batch' => sub {
	my $api = Hrflow::StandIn->new;

	reset_statistics();
	my $running =
	  start_batch($api, [ ids(20), 'fault:hold=2,id=held' ], request_timeout => '30min');
	my $pid = $running->pid;
	ok( $node->poll_query_until(
			'postgres',
			qq[SELECT s.calls = 1 AND s.requests = 21 AND s.rows_by_status = '{"ok": 20}'
					AND a.state = 'active'
				FROM hrflow_embed_stats AS s, pg_stat_activity AS a WHERE a.pid = $pid]),
		'results are counted while their batch is running');

	# This is the second reply to be held, so the first is sent, too.
	run_batch($api, ['fault:hold=2,id=release']);
	is_deeply(finish_batch($running), { ok => 21 }, 'a batch that was observed succeeds');
};

done_testing();
