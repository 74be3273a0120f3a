# A server may offer HTTP/2 and then refuse it, for a whole connection or for single
# requests.  Every request must still get a reply, the number of connections must
# stay limited, and requests that libcurl sends again must be counted.  The server
# for this test is written in Python, and can be told to refuse HTTP/2, or to leave
# connections open.  Time passes by setting the clock of the extension forward.
use strict;
use warnings FATAL => 'all';
use Hrflow::Http2Peer;
use Hrflow::Injector;
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new;
plan skip_all => 'Python with TLS is not installed'
  unless Hrflow::Http2Peer->new('refuse', $api);

my $injector = Hrflow::Injector->new;
my $node = Hrflow::Node->new(
	'http2_refused', $api,
	shared_preload_libraries => 'hrflow_embed',
	ca_file => $api->ca);
$injector->leave;
my $stats = 'SELECT requests, retries FROM hrflow_embed_stats';

# Return the number of rows of forty profiles with each status, with a given number of
# requests in flight, and the result of a query after them.
sub batch
{
	my ($peer, $concurrency, $set, $more) = @_;

	$peer->reset;
	return $node->safe_psql(
		'postgres',
		"SET hrflow_embed.base_url = '"
		  . $peer->base_url . "';
		SET hrflow_embed.max_concurrency = $concurrency; $set
		SELECT hrflow_embed_stats_reset();
		SELECT status, count(*) FROM hrflow_profile_embeddings('acme',
			(SELECT array_agg('p' || i) FROM generate_series(1, 40) i)) GROUP BY 1; $more"
	) =~ s/^\n//r;
}

foreach my $case ([ 'goaway', 'ends connections with HTTP_1_1_REQUIRED' ],
	[ 'close', 'closes connections of HTTP/2' ])
{
	my ($how, $does) = @$case;

	foreach my $concurrency (1, 32)
	{
		my $name = "a server that $does, with $concurrency in flight";
		my ($peer, $connections);

		# libcurl may open more connections on a busy machine.
		for my $try (1 .. 3)
		{
			$peer = Hrflow::Http2Peer->new($how, $api);
			is(batch($peer, $concurrency, '', ''), 'ok|40', "a batch succeeds at $name");
			$connections = $peer->count('h2') + $peer->count('http/1.1');
			last if $connections <= 150;
		}
		cmp_ok($connections, '<=', 150, "the number of connections to $name is limited");
		is(batch($peer, $concurrency, '', $stats),
			"ok|40\n40|0", "the next batch sends each request once to $name");
		is($peer->count('h2'), 0, "the next batch opens no HTTP/2 connection to $name");
	}
}

# Only the first requests to a server that refuses HTTP/2 are sent twice.  After ten minutes,
# or first after ten seconds if the server has used HTTP/2 before, one request tries HTTP/2
# again.
sub refuse_for_a_while
{
	my ($name, $peer, $has_used_http2) = @_;

	is(batch($peer, 8, '', ''), 'ok|40', "$name: a batch succeeds when HTTP/2 is refused");
	cmp_ok($peer->count('h2'), '>=', 1, "$name: the batch tries HTTP/2");

	if ($has_used_http2)
	{
		$injector->set_clock_forward(20);
		is(batch($peer, 8, '', ''), 'ok|40', "$name: a batch some seconds later succeeds");
		cmp_ok($peer->count('h2'), '>=', 1, "$name: a batch some seconds later tries HTTP/2");
	}

	$injector->set_clock_forward(500);
	is(batch($peer, 8, '', $stats),
		"ok|40\n40|0", "$name: a batch some minutes later sends each request once");
	is($peer->count('h2'), 0, "$name: a batch some minutes later does not try HTTP/2");

	$injector->set_clock_forward(200);
	is(batch($peer, 8, 'SET hrflow_embed.max_attempts = 1;', ''),
		'ok|40', "$name: a batch after ten minutes whose requests are not retried succeeds");
	is($peer->count('h2'), 0,
		"$name: a batch after ten minutes whose requests are not retried does not try HTTP/2");
	my ($rows, $nrequests, $nretries) = batch($peer, 8, '', $stats) =~ /^(.*)\n(\d+)\|(\d+)$/s;
	is($rows, 'ok|40', "$name: a batch after ten minutes succeeds");
	cmp_ok($peer->count('h2'), '>=', 1, "$name: a batch after ten minutes tries HTTP/2");
	is($nrequests, 40 + $nretries, "$name: the requests of that batch are counted");
	is($peer->count('request'),
		$nrequests, "$name: the server has received as many requests as were counted");

	# libcurl sends a request at most five times more before it gives up.
	cmp_ok($nretries, '<=', 6, "$name: only one request of that batch tries HTTP/2");
	is(batch($peer, 8, '', $stats), "ok|40\n40|0", "$name: the next batch sends each request once");
	is($peer->count('h2'), 0, "$name: the next batch does not try HTTP/2");

	$injector->set_clock_forward(700);
	$peer->reset;
	is( $node->safe_psql(
			'postgres',
			"SET hrflow_embed.base_url = '"
			  . $peer->base_url
			  . q{'; SET hrflow_embed.max_requests_per_statement = 1;
			SELECT status FROM hrflow_profile_embeddings('acme', '{p}')}),
		'ok',
		"$name: a request after ten minutes that may not be sent again succeeds");
	is($peer->count('h2'), 0, "$name: that request does not try HTTP/2");
	$injector->set_clock_forward(600);
	batch($peer, 8, 'SET hrflow_embed.max_attempts = 1;', '');
	cmp_ok($peer->count('h2'), '>=', 1,
		"$name: a batch after twenty minutes tries HTTP/2 although no request is retried");

	$peer->follow('answer');
	$injector->set_clock_forward(700);
	is(batch($peer, 8, '', $stats),
		"ok|40\n40|0", "$name: when HTTP/2 works, a batch sends each request once");
	cmp_ok($peer->count('h2'), '>=', 1, "$name: that batch finds out that HTTP/2 works");
	is(batch($peer, 8, '', $stats),
		"ok|40\n40|0", "$name: when HTTP/2 is known to work, a batch sends each request once");
	is($peer->count('http/1.1'), 0, "$name: when HTTP/2 is known to work, only that is used");
	return;
}

# AddressSanitizer reads the clock itself.
my @refusals = ($ENV{HRFLOW_INSTRUMENT} // '') eq 'asan' ? () : ('goaway', 'require', 'close');

foreach my $how (@refusals)
{
	refuse_for_a_while($how, Hrflow::Http2Peer->new($how, $api));
}

# A server that is known to use HTTP/2 may begin to refuse it.
foreach my $how (@refusals)
{
	my $peer = Hrflow::Http2Peer->new('answer', $api);
	my $name = "$how, after HTTP/2 has worked";

	batch($peer, 1, '', '');
	is($peer->count('http/1.1'), 0, "$name: a server is known to use HTTP/2");
	$peer->follow($how);
	refuse_for_a_while($name, $peer, 1);
}

# A server that ends a connection because of a long URL, as nginx and haproxy do: the other
# requests on that connection would be lost as well.  Long URLs are sent over HTTP/1.1, where
# the server can refuse only them.
{
	my $peer = Hrflow::Http2Peer->new('long', $api);

	$peer->reset;
	is( $node->safe_psql(
			'postgres',
			"SET hrflow_embed.base_url = '"
			  . $peer->base_url
			  . q{'; SET hrflow_embed.max_attempts = 1; SET hrflow_embed.max_concurrency = 8;
			SELECT status, count(*) FROM hrflow_profile_embeddings('acme', NULL, NULL,
				(SELECT array_agg(CASE WHEN i % 10 = 0 THEN repeat(md5(i::text), 400) ELSE 'r' END || i)
				FROM generate_series(1, 200) i)) GROUP BY 1}
		),
		'ok|200',
		'long URLs do not end the connections of other requests at a server that limits them');
	is($peer->count('request'), 200, 'each of these requests is sent once');
	cmp_ok($peer->count('h2'), '>=', 1, 'those that are not long are sent over HTTP/2');
	cmp_ok($peer->count('http/1.1'), '>=', 1, 'those that are long are sent over HTTP/1.1');
}

{
	my $peer = Hrflow::Http2Peer->new('goaway', $api);

	is(batch($peer, 8, "SET hrflow_embed.http_version = '1.1';", $stats),
		"ok|40\n40|0", 'with http_version = 1.1 each request is sent once');
	is($peer->count('h2'), 0, 'with http_version = 1.1 no HTTP/2 connection is opened');
}

# REFUSED_STREAM says that a request was not processed: libcurl sends it again.
{
	my $peer = Hrflow::Http2Peer->new('refuse', $api);

	is(batch($peer, 1, 'SET hrflow_embed.max_attempts = 1;', $stats),
		"ok|40\n41|1", 'a request that is refused with REFUSED_STREAM is sent again and counted');
	is($peer->count('request'),
		41, 'the HTTP/2 server has received as many requests as were counted');
}

# One request every 50 ms, after a burst of one second
{
	my $peer = Hrflow::Http2Peer->new('alternate', $api);

	my ($rows, $counts) = split /\n/,
	  batch($peer, 1,
		'SET hrflow_embed.max_attempts = 1; SET hrflow_embed.max_requests_per_minute = 1200;',
		$stats);
	is($rows, 'ok|40', 'a batch succeeds if each request is refused with REFUSED_STREAM once');
	is($counts, '80|40',
		'requests that are each refused with REFUSED_STREAM once are counted twice');
	my @times = $peer->times('request');
	is(scalar(@times), 80,
		'the server has received the refused requests and those that were sent again');
	cmp_ok(
		$times[-1] - $times[0],
		'>',
		(80 - 20 - 2) * 0.05,
		'requests that are sent again after REFUSED_STREAM count towards the rate');
}

# A server that closes a connection after its reply: the next request must not be sent over
# it.  Since 8.22, libcurl checks a connection at most once a second.
{
	my $peer = Hrflow::Http2Peer->new('leave', $api);
	my $session = Hrflow::Session->new($node);

	$session->query("SET hrflow_embed.base_url = '"
		  . $peer->base_url
		  . "'; SET hrflow_embed.max_attempts = 1; SELECT hrflow_embed_stats_reset();");
	foreach my $n (1 .. 4)
	{
		is($session->query("SELECT hrflow_profile_embedding('acme', 'p$n');"),
			'{}', "request $n is not sent over an HTTP/2 connection that the server has closed");
		for (1 .. 500)
		{
			last if $peer->count('left') >= $n;
			select(undef, undef, undef, 0.02);
		}
	}
	is($session->query("$stats;"), '4|0', 'requests over closed HTTP/2 connections are sent once');
	is($peer->count('h2'), 4, 'each of them is sent over an HTTP/2 connection of its own');
	$session->finish;
}

# A server that leaves connections open which it says it closes.  libcurl waits for
# it, and from 8.21 on does not notice when it has waited long enough.
SKIP:
{
	skip 'sockets of a process are counted in /proc', 4 unless -d '/proc/self/fd';
	my $peer = Hrflow::Http2Peer->new('linger', $api);
	my $session = Hrflow::Session->new($node);
	my $sockets = sub {
		return scalar grep { (readlink($_) // '') =~ /^socket:/ } glob "/proc/$session->{pid}/fd/*";
	};
	my $ask = sub {
		my ($n) = @_;
		return $session->ask(
			"SELECT status || ' ' || count(*) FROM hrflow_profile_embeddings('acme',
				(SELECT array_agg('p' || i) FROM generate_series(1, $n) i)) GROUP BY status;");
	};

	$session->ask("SET hrflow_embed.base_url = '"
		  . $peer->base_url
		  . "'; SET hrflow_embed.max_concurrency = 8;");
	like($ask->(400), qr/^ok 400/, 'a batch succeeds at a server that leaves connections open');
	cmp_ok($sockets->(), '<', 300, 'not all connections that the server leaves open are kept');
	$ask->(40);    # few enough to be kept, if the server had kept them
	cmp_ok($sockets->(), '<', 64,
		'connections that are left open are closed at the next statement');
	for (1 .. 20)
	{
		sleep 3;
		$ask->(1);
		last if $sockets->() < 10;
	}
	cmp_ok($sockets->(), '<', 10, 'no connection is left open for more than some seconds');
}

done_testing();
