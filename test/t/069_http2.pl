# Replies go to the requests they are of, where connections to one host speak
# HTTP/1.1 and HTTP/2: texts go over HTTP/1.1, all else over HTTP/2 where the server
# offers it.  It takes a server of HTTP/2.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Server;
use Hrflow::Session;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new('--latency' => 20);
my $server = Hrflow::Server->new('nghttpx', $api, http2 => 1);
plan skip_all => 'nghttpx is not installed' unless $server;

my $node = Hrflow::Node->new('http2', $api);
my $session = Hrflow::Session->new($node, timeout => 60);
$session->ask($server->settings);

# A few connections are kept that speak HTTP/1.1, fewer than requests follow.
foreach my $kept (1, 4, 16)
{
	my $ids = q{(SELECT array_agg('nurse-' || i) FROM generate_series(1, 200) i)};

	is( $session->ask(
			qq{SET hrflow_embed.max_concurrency = $kept;
			SELECT status, count(*) FROM hrflow_text_embeddings($ids) GROUP BY 1;
			RESET hrflow_embed.max_concurrency;}),
		"ok|200\n-- done\n",
		"texts over $kept connections at a time");
	$api->reset;
	is( $session->ask(
			qq{SELECT count(*), count(*) FILTER (WHERE data->>'profile' LIKE '%/profiles/' || profile_id || '/%')
			FROM hrflow_profile_embeddings('acme', $ids, '{"profile": 1}');}),
		"200|200\n-- done\n",
		'each profile that is asked for after them gets its own reply');
	is($api->stats->{api_requests}, 200, 'and is asked for once');
}
$session->finish;

done_testing();
