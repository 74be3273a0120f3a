# The cost of hosts that cannot be reached.  Over TLS they take no more time than
# over plain HTTP, although requests share a connection there.  While names cannot
# be resolved, the number of threads and descriptors is limited, although lookups
# cannot be stopped.  A regression test could not see any of this, or start a
# server that does not answer.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Resolver;
use Hrflow::Session;
use Hrflow::StandIn;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(time);

my $api = Hrflow::StandIn->new;
my $node;
{
	my $resolver = Hrflow::Resolver->new(
		'api.example' => 'silent',
		map { ("host-$_.example" => 'silent') } 1 .. 200);
	$node = Hrflow::Node->new(
		'unreachable', $api,
		link_hosts => '*.example, 127.0.0.1',
		max_concurrency => 32);
}
my $session = Hrflow::Session->new($node);

sub ids { return "(SELECT array_agg('p' || i) FROM generate_series(1, $_[0]) i)"; }

sub batch
{
	return
		"SELECT status || ' ' || count(*) FROM hrflow_profile_embeddings('acme', "
	  . ids($_[0])
	  . ') GROUP BY status ORDER BY 1;';
}

# Return the output of a statement, and the seconds it took.
sub timed
{
	my ($statement) = @_;
	my $began = time;
	my $printed = $session->ask($statement) =~ s/\n?-- done\n//r;

	return ($printed, time - $began);
}

#
# Over TLS
#
# Requests that wait for another's connection fail together with it.  One after
# another, 40 would take 20 s.
my $deaf = Hrflow::RawPeer->new(undef, backlog => 0);
my @queue =
  map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $deaf->port, Blocking => 0) }
  1 .. 4;
my $mute = Hrflow::RawPeer->new(sub { sleep 600 });

$session->ask(
	"SET client_min_messages = error;
		SET hrflow_embed.connect_timeout = '500ms'; SET hrflow_embed.request_timeout = '3s';
		SET hrflow_embed.max_attempts = 2;
	SET hrflow_embed.ca_file = '" . $api->ca . "';");
foreach my $case (
	[ 'a host that does not accept', '127.0.0.1:' . $deaf->port ],
	[ 'a host that does not answer', 'localhost:' . $mute->port ],
	[ 'a name server that is silent', 'api.example' ])
{
	my ($name, $host) = @$case;

	$session->ask(
		"SET hrflow_embed.base_url = 'https://$host/v1'; SELECT hrflow_embed_stats_reset();");
	my ($printed, $seconds) = timed(batch(32));
	is($printed, 'connection_failed 32', "over TLS, $name fails every element of the batch");

	# Nothing counts connections that are not established.  The attempts of one element
	# take a second, and those of 32, one after another, 32 seconds.
	cmp_ok($seconds, '<', 25, "over TLS, $name fails the batch within the time of its attempts");
	is((timed('SELECT requests, retries FROM hrflow_embed_stats;'))[0],
		'0|0', "over TLS, $name has no request counted, since none is sent");
	is( (   timed(
					q{SELECT count(*) FROM hrflow_profile_embeddings('acme', }
				  . ids(32)
				  . q{) WHERE error LIKE '%(2 attempts)%';}))[0],
		'32',
		"over TLS, $name uses all attempts of each element");
}
my ($printed) =
  timed('SELECT DISTINCT error FROM hrflow_profile_embeddings(\'acme\', ' . ids(8) . ');');
unlike($printed, qr/\n/, 'every element fails with the same message');

$session->ask(
		"SET hrflow_embed.base_url = 'https://localhost:"
	  . $api->https
	  . "/v1'; RESET hrflow_embed.ca_file; RESET hrflow_embed.connect_timeout;
		RESET hrflow_embed.request_timeout;");
is( (timed(batch(32)))[0],
	'connection_failed 32',
	'a certificate that is not trusted fails every element of the batch');
like(
	(timed(batch(5004)))[0],
	qr/^ERROR:  08001/,
	'a certificate that is not trusted ends a batch that has further elements');
$session->ask('SET hrflow_embed.ca_file = ' . "'" . $api->ca . "';");
is((timed(batch(64)))[0], 'ok 64', 'the batch succeeds once the certificate is trusted');
$session->ask('RESET hrflow_embed.base_url;');

#
# Names
#
SKIP:
{
	skip '/proc is not available', 5 unless -e "/proc/$session->{pid}/task";

	my $count = sub { my ($what) = @_; return scalar(() = glob("/proc/$session->{pid}/$what/*")); };
	my %before = map { $_ => $count->($_) } qw(task fd);
	my $links = "SELECT status || ' ' || count(*), max(error)
		FROM hrflow_fetch_vectors((SELECT array_agg('https://host-' || i || '.example/x')
		FROM generate_series(1, 200) i)) GROUP BY status;";

	$session->ask("SET hrflow_embed.connect_timeout = '50ms'; SET hrflow_embed.max_attempts = 1;");
	like(
		(timed($links))[0],
		qr/^connection_failed 200\|/,
		'links to 200 hosts whose names cannot be resolved fail');
	like(
		(timed($links))[0],
		qr/^connection_failed 200\|/,
		'links to 200 hosts whose names cannot be resolved fail again in the next statement');
	$session->ask(
		"SET hrflow_embed.connect_timeout = '20s'; SET statement_timeout = '200ms';
			$links RESET statement_timeout;"
	) for 1 .. 3;
	cmp_ok($count->('task') - $before{task},
		'<=', 64 + 32, 'interrupted lookups of names leave a limited number of threads');
	cmp_ok(
		$count->('fd') - $before{fd},
		'<=',
		64 + 2 * 32 + 2,
		'interrupted lookups of names leave a limited number of file descriptors');
	is((timed(batch(3)))[0], 'ok 3', 'the API can be reached after interrupted lookups of names');
}
$session->finish;

done_testing();
