# Links as returned by the API in production: https, port 443, at a public
# address of a host that is allowed by a pattern of link_hosts.  They are
# fetched, and no private address is used, by whatever name or connection it
# could be reached.  Tests must not use the Internet, so a preloaded library
# simulates public addresses.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Resolver;
use Hrflow::Session;
use Hrflow::StandIn;
use Socket                  qw(AF_INET6 SOCK_STREAM);
use PostgreSQL::Test::Utils ();
use Test::More;

# 203.0.113.0/24 and 2001:db8::/32 are reserved for documentation.
my %public = (
	'four' => '203.0.113.7',
	'six' => '2001:db8::7',
	'six-to-four' => '2002:cb00:7107::1',
	'translated' => '64:ff9b::cb00:7107');
my %private = (
	'ten' => '10.0.0.1',
	'metadata' => '169.254.169.254',
	'benchmark' => '198.18.0.1',
	'multicast' => '224.0.0.1',
	'nobody' => '255.255.255.255',
	'six-to-four-ten' => '2002:a00:1::1',
	'translated-ten' => '64:ff9b::a00:1',
	'compatible-ten' => '::10.0.0.1',
	'mapped-ten' => '::ffff:10.0.0.1',
	'teredo' => '2001::1',
	'unique' => 'fd00::1',
	'link-local' => 'fe80::1',
	'multicast-six' => 'ff02::1');
my %mixed = (
	'private-first' => '10.0.0.1,203.0.113.7',
	'public-first' => '203.0.113.7,10.0.0.1');
my $inside = 'inside';
my $api = Hrflow::StandIn->new('--link-base' => 'https://four.store.example');

# The peer resets a connection for every file in this directory.
my $resets = PostgreSQL::Test::Utils::tempdir();
my $front = Hrflow::RawPeer->new(
	sub {
		my ($socket) = @_;
		foreach my $reset (glob "$resets/*")
		{
			next unless unlink $reset;
			sysread($socket, my $hello, 1);
			return Hrflow::RawPeer::reset_connection($socket);
		}
		Hrflow::RawPeer::forward($socket, $api->https);
	});
my $node;
{
	my %names = (
		%public, %private, %mixed,
		$inside => '127.0.0.1',
		map { ("host-$_" => '203.0.113.7') } 1 .. 200);
	my $resolver = Hrflow::Resolver->new((map { ("$_.store.example" => $names{$_}) } keys %names),
		443 => $front->port);
	$node = Hrflow::Node->new(
		'public', $api,
		max_attempts => 1,
		link_hosts => '*.store.example',
		ca_file => $api->ca);
}
my $has_ipv6 = socket(my $socket, AF_INET6, SOCK_STREAM, 0);
my $session = Hrflow::Session->new($node);
sub ask { return $session->ask("$_[0];") =~ s/\n?-- done\n.*//sr; }

# Return the requests for vectors.
sub fetched
{
	return grep { $_->{path} =~ /hflw/ } $api->log;
}

is( ask(q{SELECT section || ' ' || item || ' ' || status || ' ' || cardinality(vector)
	FROM hrflow_profile_vectors('acme', '{nurse-1,missing-1,cook-1}', '{"profile": 1, "skills": 1}')
		ORDER BY ordinality, section}
	),
	"profile 0 ok 1024\nskills 0 ok 1024\n\nprofile 0 ok 1024\nskills 0 ok 1024",
	'the vectors behind links to a public address are fetched');
my @fetched = fetched();
is( join(' ', map { $_->{listener} } @fetched),
	'https https https https',
	'the vectors are fetched over https');
is(scalar(grep { exists $_->{headers}{'X-API-KEY'} } @fetched),
	0, 'a request for a vector has no API key');

my $link =
  ask(q{SELECT link FROM hrflow_profile_embedding_links('acme', 'nurse-1', '{"profile": 1}')});
like($link, qr{^https://four\.store\.example/}, 'a link to a public host is returned');
$api->reset;
ask("SELECT hrflow_fetch_vector('$link') FROM generate_series(1, 10)");
my %connections = map { $_->{connection} => 1 } fetched();
is(scalar(keys %connections), 1, 'ten vectors of one host are fetched over one connection');

foreach my $name (sort keys %public)
{
	SKIP:
	{
		skip 'IPv6 is not available', 1 if $public{$name} =~ /:/ && !$has_ipv6;
		is(ask("SELECT cardinality(hrflow_fetch_vector('" . ($link =~ s/four/$name/r) . "'))"),
			'1024', "a host at $public{$name} is connected to");
	}
}
$api->reset;
foreach my $name (sort keys %private)
{
	is(ask("SELECT status FROM hrflow_fetch_vectors('{" . ($link =~ s/four/$name/r) . "}')"),
		'link_refused', "a host at $private{$name} is refused");
}
is(scalar(fetched()), 0, 'no request is sent to a private address');

# A host with a private address and a public one
foreach my $name (sort keys %mixed)
{
	my $fetch = "SELECT status FROM hrflow_fetch_vectors('{" . ($link =~ s/four/$name/r) . "}')";

	PostgreSQL::Test::Utils::append_to_file("$resets/1", '');
	is(ask($fetch), 'connection_failed',
		"a reset by the public address of a host at $mixed{$name} is not the private one's refusal"
	);
	PostgreSQL::Test::Utils::append_to_file("$resets/1", '');
	is(ask("SET hrflow_embed.max_attempts = 2; $fetch; RESET hrflow_embed.max_attempts"),
		'ok', "a reset by the public address of a host at $mixed{$name} is followed by a retry");
}

# A connection to a private address, opened while link_hosts contained the exact
# host
my $inner = $link =~ s/four/$inside/r;
my $named = "SET hrflow_embed.link_hosts = '$inside.store.example'";
is(ask("$named; SELECT cardinality(hrflow_fetch_vector('$inner'))"),
	'1024', 'a host that link_hosts contains exactly may have a private address');
$api->reset;
like(
	$session->ask(
		"SET hrflow_embed.link_hosts = '*.store.example'; SELECT hrflow_fetch_vector('$inner');"),
	qr/42501.*DETAIL:.*private address/s,
	'a connection to a private address is not used when a pattern allows the host');
is(scalar(fetched()), 0, 'no request is sent over such a connection');
is(ask("$named; SELECT cardinality(hrflow_fetch_vector('$inner'))"),
	'1024', 'a host named by link_hosts can be used again');

$session->finish;

# Scarce descriptors: each host needs a lookup and a connection of its own
SKIP:
{
	skip 'prlimit is not available', 5 unless -x '/usr/bin/prlimit';

	my $short = Hrflow::Session->new($node, timeout => 120);
	my $links =
	  "ARRAY(SELECT replace('$link', 'four', 'host-' || i) FROM generate_series(1, 200) i)";

	$short->ask("SET hrflow_embed.connect_timeout = '60s'; SELECT hrflow_fetch_vector('$link');");
	my $nopen = () = glob('/proc/' . $short->pid . '/fd/*');
	PostgreSQL::Test::Utils::system_or_bail('prlimit', '--pid', $short->pid,
		'--nofile=' . ($nopen + 34) . ':');
	is( $short->ask("SELECT status, count(*) FROM hrflow_fetch_vectors($links) GROUP BY 1;"),
		"ok|200\n-- done\n",
		'the vectors of 200 hosts are fetched with 34 file descriptors');
	$short->ask(q{SET hrflow_embed.base_url = 'https://four.store.example/v1';});

	# Connections that were kept, or are still being closed, take no descriptors away.
	foreach my $time (1 .. 3)
	{
		is( $short->ask(
				q{SELECT status, count(*) FROM hrflow_text_embeddings(
					ARRAY(SELECT 'nurse ' || i FROM generate_series(1, 200) i)) GROUP BY 1;}),
			"ok|200\n-- done\n",
			"200 texts are embedded with 34 file descriptors, time $time");
	}
	is( $short->ask("SELECT status, count(*) FROM hrflow_fetch_vectors($links) GROUP BY 1;"),
		"ok|200\n-- done\n",
		'the vectors of 200 hosts are fetched after texts whose connections were kept');
	$short->finish;
}

done_testing();
