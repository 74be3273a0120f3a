# Batches, links and texts through common web servers and proxies, from Debian's
# packages, over HTTP/1.1 and HTTP/2: no element fails because of how they treat
# connections, URLs and bodies.  docs/servers.md describes the behavior of each server.
# Servers that are not installed are skipped.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Server;
use Hrflow::Session;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new('--latency' => 5);
my $node = Hrflow::Node->new('servers', $api, shared_preload_libraries => 'hrflow_embed');

# Return a query for the number of rows with each status in a batch.
sub statuses_of
{
	my ($call) = @_;
	return "SELECT string_agg(status || ' ' || n, ', ' ORDER BY status)
		FROM (SELECT status, count(*) AS n FROM $call GROUP BY 1) s;";
}

sub profiles
{
	my ($n, $latency) = @_;
	my $id = $latency ? "'fault:latency=$latency,id=' || i" : "'nurse-' || i";
	return "(SELECT array_agg($id) FROM generate_series(1, $n) i)";
}

sub batch { return "hrflow_profile_embeddings('acme', " . profiles(@_) . q{, '{"profile": 1}')}; }

# Return the number of requests that the API has received.
sub requests { return $api->stats->{api_requests}; }

# Return the output of a statement, including warnings.
sub answer { return $_[0] =~ s/\n?-- done\n//r; }

sub try_server
{
	my ($server, $name) = @_;
	my $session = Hrflow::Session->new($node, timeout => 120);
	my $ask = sub { answer($session->ask($_[0])) };

	$ask->($server->settings);

	# Connections that the server closes after 20 requests
	$api->reset;
	is($ask->(statuses_of(batch(500))), 'ok 500', "$name passes on a batch of 500 profiles");
	cmp_ok(requests(), '<=', 510, "hardly any request is sent twice through $name")
	  or diag(requests());
	$api->reset;
	is( $ask->(
			statuses_of("hrflow_profile_vectors('acme', " . profiles(150) . q{, '{"profile": 1}')})
		),
		'ok 150',
		"$name passes on the vectors of 150 profiles");
	is( $ask->(
			q{SELECT count(*)
				FROM hrflow_profile_vectors('acme', '{nurse-1,nurse-2}', '{"profile": 1}') a
			JOIN hrflow_fetch_vectors(ARRAY(SELECT link FROM unnest('{nurse-1,nurse-2}'::text[]) p,
				hrflow_profile_embedding_links('acme', p, '{"profile": 1}'))) b USING (ordinality)
			WHERE a.vector = b.vector;}),
		'2',
		"the vectors passed on by $name are the right ones");
	$api->reset;

	# A text is not sent again if its connection has been closed.
	like(
		$ask->(statuses_of("hrflow_text_embeddings(" . profiles(100) . ')')),
		qr/^(?:connection_failed \d, )?ok (?:9\d|100)$/,
		"$name passes on 100 texts");
	cmp_ok(requests(), '<=', 100, "no text is sent twice through $name");

	# Kept connections that the server has closed
	foreach my $call (batch(3), "hrflow_text_embeddings('{a,b,c}')")
	{
		next unless $server->has('idle');
		ok($server->wait_for_close, "$name closes idle connections");
		$api->reset;
		is($ask->(statuses_of($call)),
			'ok 3', "no element fails because $name has closed an idle connection");
		cmp_ok(requests(), '<=', 3,
			"elements are sent once after $name has closed an idle connection");
	}

	# Unusual identifiers
	is( $ask->(
			q{SELECT count(*) FROM unnest(ARRAY['a/b', 'a//b', 'a/../b', 'a%2Fb', 'a+b c', 'é✓',
				'a?b#c', '.', '..', 'a;b']) id,
			hrflow_profile_vectors('acme', ARRAY[id], '{"profile": 1}') v WHERE v.status = 'ok';}),
		'10',
		"$name passes on links with unusual characters in their paths");

	# URLs that may be too long for the server
	my $references =
	  q{ARRAY(SELECT CASE WHEN i % 18 = 0 THEN repeat('x', 17000) || i ELSE 'nurse-' || i END
		FROM generate_series(1, 300) i)};
	my $batch = "hrflow_profile_embeddings('acme', NULL, '{\"profile\": 1}', $references)";
	$ask->("CREATE TEMP TABLE long AS SELECT * FROM $batch;");
	note(
			"$name: URLs of 17,000 characters: "
		  . $ask->(statuses_of(q{long WHERE profile_reference ~ 'x'}))
		  . ', HTTP '
		  . $ask->(
			q{SELECT string_agg(DISTINCT http_status::text, ' ') FROM long
				WHERE profile_reference ~ 'x';}
		  ));
	is($ask->(statuses_of(q{long WHERE profile_reference !~ 'x'})),
		'ok 284', "no other profile fails because of URLs of 17,000 characters through $name");

	# The server is restarted during a batch
	$api->reset;
	$session->send(statuses_of(batch(600, 100)) . "\\echo -- done");
	$api->wait_until(sub { $_[0]{api_requests} >= 100 });
	$server->restart;
	is(answer($session->wait_for(qr/-- done/)),
		'ok 600', "no profile of a batch fails because $name is restarted");
	$session->finish;
	return;
}

# Send more requests than the server admits per second.  It refuses the others, without
# saying when to retry.
sub try_limit
{
	my ($server, $name) = @_;
	my $session = Hrflow::Session->new($node, timeout => 120);
	my $n = 3 * $server->rate;

	$session->ask($server->settings
		  . "SET hrflow_embed.base_url = '"
		  . $server->limited_url
		  . "'; SET client_min_messages = warning;");
	is(answer($session->ask(statuses_of(batch($n)))),
		"ok $n", "no profile of a batch fails because $name limits the rate with 429");
	$session->finish;
	return;
}

# nghttpx has tests of its own, because it rewrites paths such as a/../b.
foreach my $name (grep { $_ ne 'nghttpx' } Hrflow::Server::names())
{
	my $any = 0;

	foreach my $http2 (0, 1)
	{
		my $server = Hrflow::Server->new($name, $api, http2 => $http2) or next;
		my $full = $server->version . ($http2 ? ', HTTP/2' : ', HTTP/1.1');

		$any = 1;
		note($full);
		try_server($server, $full);
		try_limit($server, $full) if $server->limited_url;
		$server->stop;
	}
	next if $any;
	SKIP: { skip "$name is not installed", 1; }
}

unlike(
	PostgreSQL::Test::Utils::slurp_file($node->logfile),
	qr/PANIC|terminated by signal|XX000/,
	'no backend has crashed or raised an internal error');

done_testing();
