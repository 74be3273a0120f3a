# Servers that offer HTTP/2 and refuse it, connection by connection or request by
# request: every profile is answered all the same, a limited number of
# connections is made, and what libcurl sends again is counted.  It takes a
# server that does so on purpose; Python has what one needs.
use strict;
use warnings FATAL => 'all';
use Hrflow::Http2Peer;
use Hrflow::Node;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new;
plan skip_all => 'Python with TLS is not installed'
  unless Hrflow::Http2Peer->new('refuse', $api);

my $node = Hrflow::Node->new(
	'http2_refused', $api,
	shared_preload_libraries => 'hrflow_embed',
	ca_file => $api->ca);
my $stats = 'SELECT requests, retries FROM hrflow_embed_stats';

# The rows of forty profiles by status, with so many requests in flight, and what
# is selected after them.
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
		my $peer = Hrflow::Http2Peer->new($how, $api);
		my $name = "a server that $does, with $concurrency in flight";

		is(batch($peer, $concurrency, '', ''), 'ok|40', "a batch succeeds at $name");
		cmp_ok($peer->count('h2') + $peer->count('http/1.1'),
			'<=', 100, "a limited number of connections is made to $name");
		is(batch($peer, $concurrency, '', $stats),
			"ok|40\n40|0", "the next batch sends each request once to $name");
		is($peer->count('h2'), 0, "the next batch makes no connection of HTTP/2 to $name");
	}
}

{
	my $peer = Hrflow::Http2Peer->new('goaway', $api);

	is(batch($peer, 8, "SET hrflow_embed.http_version = '1.1';", $stats),
		"ok|40\n40|0", 'with http_version = 1.1 each request is sent once');
	is($peer->count('h2'), 0, 'with http_version = 1.1 no connection of HTTP/2 is made');
}

# REFUSED_STREAM says that a request was not processed: libcurl sends it again.
{
	my $peer = Hrflow::Http2Peer->new('refuse', $api);

	is(batch($peer, 1, 'SET hrflow_embed.max_attempts = 1;', $stats),
		"ok|40\n41|1", 'a request that is refused with REFUSED_STREAM is sent again and counted');
	is($peer->count('request'),
		41, 'the server of HTTP/2 has received as many requests as were counted');
}

# A request every 50 ms, after as many as a second has
{
	my $peer = Hrflow::Http2Peer->new('alternate', $api);

	is( batch(
			$peer, 1,
			'SET hrflow_embed.max_attempts = 1; SET hrflow_embed.max_requests_per_minute = 1200;',
			$stats),
		"ok|40\n80|40",
		'a batch succeeds where each request is refused with REFUSED_STREAM once');
	my @times = $peer->times('request');
	is(scalar(@times), 80, 'the server has received what is refused and what is sent again');
	cmp_ok(
		$times[-1] - $times[0],
		'>',
		(80 - 20 - 2) * 0.05,
		'requests that are sent again after REFUSED_STREAM are held against the rate');
}

done_testing();
