# Certificates with unusual names, messages in characters that the database
# lacks, proxies that use TLS, and links that could bypass a proxy.  This needs
# TLS servers, databases in several encodings and the log of a proxy.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Resolver;
use Hrflow::Session;
use Hrflow::StandIn;
use IPC::Run                ();
use MIME::Base64            qw(encode_base64url);
use PostgreSQL::Test::Utils ();
use Test::More;

my $api = Hrflow::StandIn->new;
my $other_ca = Hrflow::StandIn->new;
my $node;
{
	my $resolver = Hrflow::Resolver->new(
		'x.localhost' => '127.0.0.1',
		'localhost.' => '127.0.0.1',
		'wrong.example' => '127.0.0.1');
	$node = Hrflow::Node->new('peers', $api, max_attempts => 1);
}
my %encodings = (latin1 => 'LATIN1', euc_jp => 'EUC_JP', ascii => 'SQL_ASCII');
foreach my $database (sort keys %encodings)
{
	$node->safe_psql(
		'postgres',
		"CREATE DATABASE $database ENCODING '$encodings{$database}'
			TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
	);
	is( $node->safe_psql(
			$database, 'CREATE EXTENSION hrflow_embed; SELECT hrflow_decode_vector($$[1]$$)'),
		'{1}',
		"the extension can be created in a database in $encodings{$database}");
}

# Return the status and error of a statement's rows, in UTF-8, or the error if they are
# not valid in the database.
sub rows
{
	my ($database, $settings, $call) = @_;
	my ($status, $out, $err) = $node->psql(
		$database, "$settings SET client_min_messages = error;
		SELECT status, encode(convert_to(coalesce(error, ''), 'UTF8'), 'hex') FROM $call;");
	$out =~ s/\|(\w*)$/'|' . pack('H*', $1)/gem;
	return "$out$err";
}

sub profile
{
	my ($id) = @_;
	return "hrflow_profile_embeddings('s', ARRAY['$id'])";
}

#
# The name in a certificate, which libcurl quotes
#
my $dir = PostgreSQL::Test::Utils::tempdir();
my ($none, $ignored, $openssl_err) = ('') x 3;
my $key = substr($Hrflow::StandIn::KEY, 0, 30);
IPC::Run::run(
	[   'openssl', 'req', '-x509', '-newkey',
		'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes',
		'-utf8', '-subj', "/CN=öß ł\nfgh $key", '-keyout',
		"$dir/name.key", '-out', "$dir/name.pem", '-days',
		'30' ],
	'<',
	\$none,
	'>',
	\$ignored,
	'2>',
	\$openssl_err) or die $openssl_err;
my $tls = IPC::Run::start(
	[   'openssl', 's_server', '-accept', '127.0.0.1:0',
		'-www', '-cert', "$dir/name.pem", '-key',
		"$dir/name.key" ],
	'<',
	'/dev/null',
	'>',
	"$dir/log",
	'2>',
	"$dir/err");
my $tls_port;
for (1 .. 500)
{
	($tls_port) = PostgreSQL::Test::Utils::slurp_file("$dir/log") =~ /^ACCEPT .*:(\d+)\n/m;
	last if $tls_port;
	select(undef, undef, undef, 0.02);
}
my $unnamed = "SET hrflow_embed.base_url = 'https://127.0.0.1:$tls_port/v1';
	SET hrflow_embed.ca_file = '$dir/name.pem';";
foreach my $case ([ 'postgres', 'öß ł' ], [ 'ascii', 'öß ł' ], [ 'latin1', 'öß \?' ],
	[ 'euc_jp', 'öß ł' ])
{
	my ($database, $shown) = @$case;
	like(
		rows($database, $unnamed, profile('p')),
		qr/\Aconnection_failed\|.*'$shown fgh \*{8}' does not match[^\n]*\Z/,
		"$database: a certificate's name is shown in one line, in its encoding and without the key"
	);
	my (undef, undef, $err) =
	  $node->psql($database, "$unnamed SELECT hrflow_profile_embedding('s', 'p');");
	like(
		$err,
		qr/^DETAIL:  .* fgh \*{8}' does not match/m,
		"$database: an error shows a certificate's name without the key");
}
$tls->signal('TERM');
$tls->finish;

#
# A ca_file that changes
#
{
	my $trusted = "$dir/trusted.pem";
	my $trust = sub {
		my ($ca) = @_;
		PostgreSQL::Test::Utils::append_to_file("$trusted.new",
			PostgreSQL::Test::Utils::slurp_file($ca));
		rename("$trusted.new", $trusted) or die $!;
		sleep 1;    # it is checked once a second
	};
	my $port = $api->https;
	my $session = Hrflow::Session->new($node);
	my $call = 'SELECT status, error FROM ' . profile('p') . ';';
	my $ok = "ok|\n-- done\n";

	$trust->($api->ca);
	$session->ask(
		"SET hrflow_embed.base_url = 'https://localhost:$port/v1';
			SET hrflow_embed.ca_file = '$trusted'; $call"
	);
	my $before = $api->stats->{connections_opened};
	is($session->ask($call), $ok, 'a server whose authority is in ca_file is trusted');
	is($api->stats->{connections_opened}, $before, 'the connection to a trusted server is reused');
	$trust->($other_ca->ca);
	like(
		$session->ask($call),
		qr/^connection_failed\|.*issuer certificate/,
		'no connection is used whose authority has been taken out of ca_file');
	$trust->($api->ca);
	is($session->ask($call), $ok,
		'a server is trusted again once its authority is back in ca_file');
	unlink $trusted;
	sleep 1;
	like(
		$session->ask($call),
		qr/^connection_failed\|.*ca_file" cannot be read/,
		'no server is trusted while ca_file does not exist');
	$session->finish;
}

#
# Answers in characters that the database lacks
#
my $said = 'The HrFlow API answered HTTP 200';
my $unfit =
	"invalid_reply|invalid reply from the HrFlow API: $said: "
  . 'the body is not a JSON object that jsonb can hold';
foreach my $case (
	[   'a message',
		'{"code": 200, "message": "Profile embedding ✓", "data": {"profile": null, "ë": null}}',
		('ok|') x 3 ],
	[   'other members',
		'{"code": 200, "message": "\u2713", "✓": {"✓": "\u2713"}, "data": {"\u00eb": null}}',
		('ok|') x 3 ],
	[   'the message of an error',
		'{"code": 400, "message": "Invalid profile “ë” ✓"}',
		map { "not_found|HrFlow profile not found: $said, code 400: Invalid profile $_" } '“ë” ✓',
		'?ë? ?',
		'“ë” ?' ],
	[ 'data', '{"code": 200, "message": "ok", "data": {"✓": null}}', 'ok|', $unfit, $unfit ],
	[ 'data that is escaped', '{"data": {"a": ["\u2713"]}}', 'ok|', $unfit, $unfit ],
	[   'data further on',
		'{"message": "✓", "other": {"data": "✓"}, "data": {"a": "✓"}}',
		'ok|', $unfit, $unfit ])
{
	my ($name, $answer, @rows) = @$case;
	my $call = profile('fault:body=' . encode_base64url($answer));
	is(rows((qw(postgres latin1 euc_jp))[$_], '', $call),
		$rows[$_],
		(qw(UTF-8 LATIN1 EUC_JP))[$_] . ": characters that an encoding may lack, in $name")
	  foreach 0 .. 2;
}
is( $node->safe_psql(
		'latin1',
		q{SELECT encode(convert_to((hrflow_profile_embedding('s', 'fault:body=}
		  . encode_base64url(
				'{"\u00eb✓": 1, "message": "✓", '
			  . '"data": {"zz": 2, "ë": 1, "\u00eb\u00ebx": 3, "aa": [{"ëë": "ë"}]}}')
		  . q{'))::text, 'UTF8'), 'hex')}),
	unpack('H*', '{"ë": 1, "aa": [{"ëë": "ë"}], "zz": 2, "ëëx": 3}'),
	'data with escaped characters has its keys in order');

#
# Proxies
#
my $seen = "$dir/seen";
my $proxy = Hrflow::RawPeer->new(
	sub {
		my ($socket) = @_;
		PostgreSQL::Test::Utils::append_to_file($seen,
			Hrflow::RawPeer::read_request($socket) // '');
		print $socket "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
	});
my $https = $api->https;
foreach my $case (
	[ 'that ca_file trusts is spoken to', $api->ca, 'localhost', qr/CONNECT/ ],
	[ 'that ca_file does not trust is not', $other_ca->ca, 'localhost', qr/issuer certificate/ ],
	[ "with another's certificate is not", $api->ca, 'wrong.example', qr/subject name/ ])
{
	my ($name, $ca, $host, $says) = @$case;
	like(
		rows(
			'postgres',
			"SET hrflow_embed.ca_file = '$ca'; SET hrflow_embed.proxy = 'https://$host:$https';
			SET hrflow_embed.base_url = 'https://api.example.invalid/v1';", profile('p')),
		qr/^connection_failed\|.*$says/,
		"a proxy reached over TLS $name");
}

my @numbers =
  qw(2130706433 127.1 0177.1 0x7f.1 127.0.0.01 0x7F000001 127.0.0.0x1 10.1 127.1. 127.0.0.1. 0x
  00000000127.0.0.1);

sub links
{
	my ($hosts, @links) = @_;
	return rows(
		'postgres',
		"SET hrflow_embed.link_hosts = '$hosts'; SET hrflow_embed.proxy = 'http://127.0.0.1:"
		  . $proxy->port . "';",
		'hrflow_fetch_vectors(ARRAY['
		  . join(', ', map { "'https://$_/x'" } @links)
		  . ']) ORDER BY ordinality');
}
is( links('*, *.*, *.*.*, *.*.*.*', @numbers),
	join(
		"\n",
		map {
				'link_refused|link to a vector is not allowed: '
			  . "The link is not a valid URL. Link: https://$_/x"
		} @numbers),
	'a link whose host is a number, which resolvers accept as an address, is refused');
ok(!-e $seen, 'a link whose host is a number does not reach the proxy');
is( links('*.*', qw(x.localhost localhost. b.example)),
	join(
		"\n",
		(       "connection_failed|could not connect to the link's host: "
			  . 'CONNECT tunnel failed, response 403') x 3),
	'a link allowed by a pattern goes to the proxy');
is( join(' ', sort(PostgreSQL::Test::Utils::slurp_file($seen) =~ /^CONNECT (\S+)/mg)),
	'b.example:443 localhost.:443 x.localhost:443',
	'the proxy is given the host name of every link allowed by a pattern');
like(
	links('localhost', 'localhost'),
	qr/^connection_failed\|.*Failed to connect/,
	'a link to localhost, if link_hosts names it, bypasses the proxy');

done_testing();
