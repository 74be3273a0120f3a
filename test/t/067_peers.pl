# What peers say of themselves, and how proxies are used: certificates with
# unusual names, messages in characters that the database lacks, proxies that
# speak TLS, and links that would go past a proxy.  It takes servers of TLS,
# databases in several encodings and a proxy's view.
use strict;
use warnings;
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Resolver;
use Hrflow::StandIn;
use IPC::Run ();
use MIME::Base64 qw(encode_base64url);
use PostgreSQL::Test::Utils ();
use Test::More;

my $api = Hrflow::StandIn->new;
my $other_ca = Hrflow::StandIn->new;
my $node;
{
	my $resolver = Hrflow::Resolver->new('x.localhost' => '127.0.0.1', 'localhost.' => '127.0.0.1',
		'wrong.example' => '127.0.0.1');
	$node = Hrflow::Node->new('peers', $api, max_attempts => 1);
}
my %encodings = (latin1 => 'LATIN1', euc_jp => 'EUC_JP', ascii => 'SQL_ASCII');
foreach my $database (sort keys %encodings)
{
	$node->safe_psql('postgres',
		"CREATE DATABASE $database ENCODING '$encodings{$database}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'");
	is($node->safe_psql($database, 'CREATE EXTENSION hrflow_embed; SELECT hrflow_decode_vector($$[1]$$)'), '{1}',
		"a database in $encodings{$database} can have the extension");
}

# The rows of a statement about status and error, in UTF-8; or why what they
# hold is not valid in the database.
sub rows
{
	my ($database, $settings, $call) = @_;
	my ($status, $out, $err) = $node->psql($database, "$settings
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
# A certificate's name, which libcurl quotes
#
my $dir = PostgreSQL::Test::Utils::tempdir();
my ($none, $ignored, $openssl_err) = ('') x 3;
my $key = substr($Hrflow::StandIn::KEY, 0, 30);
IPC::Run::run([ 'openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-utf8',
		'-subj', "/CN=öß ł\nfgh $key", '-keyout', "$dir/name.key", '-out', "$dir/name.pem", '-days', '30' ],
	'<', \$none, '>', \$ignored, '2>', \$openssl_err) or die $openssl_err;
my $tls = IPC::Run::start(
	[ 'openssl', 's_server', '-accept', '127.0.0.1:0', '-www', '-cert', "$dir/name.pem", '-key', "$dir/name.key" ],
	'<', '/dev/null', '>', "$dir/log", '2>', "$dir/err");
my $tls_port;
for (1 .. 500)
{
	($tls_port) = PostgreSQL::Test::Utils::slurp_file("$dir/log") =~ /^ACCEPT .*:(\d+)\n/m;
	last if $tls_port;
	select(undef, undef, undef, 0.02);
}
my $unnamed = "SET hrflow_embed.base_url = 'https://127.0.0.1:$tls_port/v1'; SET hrflow_embed.ca_file = '$dir/name.pem';";
foreach my $case ([ 'postgres', 'öß ł' ], [ 'ascii', 'öß ł' ], [ 'latin1', 'öß \?' ], [ 'euc_jp', 'öß ł' ])
{
	my ($database, $shown) = @$case;
	like(rows($database, $unnamed, profile('p')), qr/\Aconnection_failed\|.*'$shown fgh \*{8}' does not match[^\n]*\Z/,
		"$database: a certificate's name is shown in one line of its encoding, without the key");
	my (undef, undef, $err) = $node->psql($database, "$unnamed SELECT hrflow_profile_embedding('s', 'p');");
	like($err, qr/^DETAIL:  .* fgh \*{8}' does not match/m, 'in an error too');
}
$tls->signal('TERM');
$tls->finish;

done_testing();
