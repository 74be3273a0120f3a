# Replies are assigned to the right requests if some connections to a host use
# HTTP/1.1 and others HTTP/2: texts and long URLs are sent over HTTP/1.1,
# everything else over HTTP/2 if the server offers it.  This needs an HTTP/2
# server.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Server;
use Hrflow::Session;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new('--latency' => 20);
my $server = Hrflow::Server->new('nghttpx', $api, http2 => 1);
plan skip_all => 'nghttpx is not installed' unless $server;

my $node = Hrflow::Node->new('http2', $api);
my $session = Hrflow::Session->new($node);
$session->ask($server->settings);

my $ids = q{(SELECT array_agg('nurse-' || i) FROM generate_series(1, 200) i)};

# Count the rows, and those with the reply to their own request.
sub own_replies
{
	my ($of) = @_;
	return qq{SELECT count(*),
			count(*) FILTER (WHERE data->>'profile' LIKE '%/profiles/' || profile_id || '/%')
		FROM hrflow_profile_embeddings('acme', $of, '{"profile": 1}');};
}

# A few HTTP/1.1 connections are kept, fewer than the requests that follow.
foreach my $kept (1, 4, 16)
{
	is( $session->ask(
			qq{SET hrflow_embed.max_concurrency = $kept;
			SELECT status, count(*) FROM hrflow_text_embeddings($ids) GROUP BY 1;
			RESET hrflow_embed.max_concurrency;}),
		"ok|200\n-- done\n",
		"texts are sent over $kept connections at the same time");
	$api->reset;
	is( $session->ask(own_replies($ids)),
		"200|200\n-- done\n",
		'each profile that is requested after texts gets its own reply');
	is($api->stats->{api_requests},
		200, 'each profile that is requested after texts is requested once');
}

# The same connections, used by profiles.
foreach my $kept (1, 4, 16)
{
	is( $session->ask(
				"SET hrflow_embed.http_version = '1.1'; SET hrflow_embed.max_concurrency = $kept;"
			  . own_replies($ids)
			  . 'RESET hrflow_embed.http_version; RESET hrflow_embed.max_concurrency;'
			  . own_replies($ids)),
		"200|200\n200|200\n-- done\n",
		"each profile gets its own reply after $kept connections of http_version = 1.1");
}

$api->reset;
is( $session->ask(
		own_replies(
			q{(SELECT array_agg(CASE WHEN i % 5 = 0 THEN repeat('l', 8500) ELSE 'nurse-' END || i)
				FROM generate_series(1, 200) i)})),
	"200|200\n-- done\n",
	'each profile gets its own reply among URLs that are too long for HTTP/2');
is($api->stats->{api_requests},
	200, 'no profile is requested twice among URLs that are too long for HTTP/2');
$session->finish;

# A connection that allows one request at a time
{
	my $narrow = Hrflow::Server->new('nghttpx', $api, http2 => 1, streams => 1);
	my $session = Hrflow::Session->new($node);

	$session->ask($narrow->settings);
	$api->reset;
	is( $session->ask(
			own_replies(q{(SELECT array_agg('nurse-' || i) FROM generate_series(1, 600) i)})),
		"600|600\n-- done\n",
		'each profile gets its own reply from a server that takes one request at a time over HTTP/2'
	);
	is($api->stats->{api_requests},
		600, 'no profile is requested twice from a server that takes one request at a time');
	$session->finish;
	$narrow->stop;
}

# A host that uses HTTP/1.1 on some connections and HTTP/2 on others.
{
	my $mixed = Hrflow::RawPeer->new(
		sub {
			my ($socket, $n) = @_;
			Hrflow::RawPeer::forward($socket, $n % 2 == 0 ? $api->{https} : $server->{port});
		});
	my $of_both = Hrflow::Session->new($node);

	$of_both->ask($server->settings
		  . "SET hrflow_embed.base_url = 'https://localhost:"
		  . $mixed->port
		  . "/v1'; SET hrflow_embed.max_concurrency = 32;");

	my $replies = qq{SELECT
			count(*) FILTER (WHERE data->>'profile' NOT LIKE '%/profiles/' || profile_id || '/%'),
			count(*) FILTER (WHERE status = 'ok'), coalesce(string_agg(DISTINCT error, '; '), 'none')
		FROM hrflow_profile_embeddings('acme', $ids, '{"profile": 1}');};
	is( $of_both->ask($replies x 2),
		"0|200|none\n0|200|none\n-- done\n",
		'no profile gets the reply to another one from a host that mixes versions of HTTP');
	$of_both->finish;

	# Bodies that arrive piece by piece: no other request may read one of these.  Which
	# connection is used when depends on the server, so try several times.
	my $split =
	  q{(SELECT array_agg('fault:v.slow=3,id=nurse-' || i) FROM generate_series(1, 200) i)};
	my %outcomes;
	foreach (1 .. 6)
	{
		my $session = Hrflow::Session->new($node);

		$session->ask($server->settings
			  . "SET hrflow_embed.base_url = 'https://localhost:"
			  . $mixed->port
			  . "/v1'; SET hrflow_embed.max_concurrency = 32;");
		$outcomes{
			$session->ask(
				qq{SELECT status, count(*), max(error), bool_or((
					SELECT abs(sum(x::float8 * x) - 1) > 0.001 FROM unnest(vector) x))
				FROM hrflow_profile_vectors('acme', $split, '{"profile": 1}') GROUP BY 1;}) }++;
		$session->finish;
	}
	is( join('', sort keys %outcomes),
		"ok|200||f\n-- done\n",
		'no vector has parts of another reply from a host that mixes versions of HTTP');
}

done_testing();
