# Batches, links and texts through the web servers and proxies that people have,
# from Debian's packages, over HTTP/1.1 and HTTP/2: what they do to connections,
# URLs and bodies costs no element.  docs/servers.md tells what each of them did.
# A server that is not installed is skipped.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Server;
use Hrflow::Session;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new('--latency' => 5);
my $node = Hrflow::Node->new('servers', $api, shared_preload_libraries => 'hrflow_embed');

# The statuses of a batch's rows, and how many there are of each.
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

# How many requests the API has received for one that was to be sent.
sub requests { return $api->stats->{api_requests}; }

# A statement's rows, and nothing else: a warning shows.
sub answer { return $_[0] =~ s/\n?-- done\n//r; }

sub try_server
{
	my ($server, $name) = @_;
	my $session = Hrflow::Session->new($node, timeout => 120);
	my $ask = sub { answer($session->ask($_[0])) };

	$ask->($server->settings);

	# Connections that end after 20 requests
	$api->reset;
	is($ask->(statuses_of(batch(500))), 'ok 500', "$name: 500 profiles");
	cmp_ok(requests(), '<=', 510, 'hardly a request is sent twice') or diag(requests());
	$api->reset;
	is( $ask->(
			statuses_of("hrflow_profile_vectors('acme', " . profiles(150) . q{, '{"profile": 1}')})
		),
		'ok 150',
		"$name: the vectors of 150 profiles");
	is( $ask->(
			q{SELECT count(*)
				FROM hrflow_profile_vectors('acme', '{nurse-1,nurse-2}', '{"profile": 1}') a
			JOIN hrflow_fetch_vectors(ARRAY(SELECT link FROM unnest('{nurse-1,nurse-2}'::text[]) p,
				hrflow_profile_embedding_links('acme', p, '{"profile": 1}'))) b USING (ordinality)
			WHERE a.vector = b.vector;}),
		'2',
		'are the right ones');
	$api->reset;

	# A text is not sent again when its connection turns out to have ended.
	like(
		$ask->(statuses_of("hrflow_text_embeddings(" . profiles(100) . ')')),
		qr/^(?:connection_failed \d, )?ok (?:9\d|100)$/,
		"$name: 100 texts");
	cmp_ok(requests(), '<=', 100, 'none is sent twice');

	# Kept connections that the server has closed
	foreach my $call (batch(3), "hrflow_text_embeddings('{a,b,c}')")
	{
		next unless $server->has('idle');
		ok($server->wait_for_close, "$name: connections that are idle are closed");
		$api->reset;
		is($ask->(statuses_of($call)),
			'ok 3', 'and those that were asked over them are not sent in vain');
		cmp_ok(requests(), '<=', 3, 'and are sent once');
	}

	# Odd identifiers arrive as they are
	is( $ask->(
			q{SELECT count(*) FROM unnest(ARRAY['a/b', 'a//b', 'a/../b', 'a%2Fb', 'a+b c', 'é✓',
				'a?b#c', '.', '..', 'a;b']) id,
			hrflow_profile_vectors('acme', ARRAY[id], '{"profile": 1}') v WHERE v.status = 'ok';}),
		'10',
		"$name: links with odd characters in their paths");

	# URLs that may be too long for it
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
		'ok 284', "$name: URLs of 17,000 characters cost no other profile of their batch");

	# The server is restarted in the middle of a batch
	$api->reset;
	$session->send(statuses_of(batch(600, 100)) . "\\echo -- done");
	$api->wait_until(sub { $_[0]{api_requests} >= 100 });
	$server->restart;
	is(answer($session->wait_for(qr/-- done/)),
		'ok 600', "$name: a restart in the middle of a batch");
	$session->finish;
	return;
}

# More than the server lets through in a second, which it refuses without a word
# of when to come back.
sub try_limit
{
	my ($server, $name) = @_;
	my $session = Hrflow::Session->new($node, timeout => 120);
	my $n = 3 * $server->rate;

	$session->ask(
		$server->settings . "SET hrflow_embed.base_url = '" . $server->limited_url . "';");
	is(answer($session->ask(statuses_of(batch($n)))),
		"ok $n",
		"$name: three times as many as it lets through in a second, refused with 429 beyond");
	$session->finish;
	return;
}

# nghttpx has its own tests; it rewrites paths such as a/../b.
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
	'no backend has met what cannot happen');

done_testing();
