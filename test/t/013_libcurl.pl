# How the extension uses a libcurl that lacks some features.  A preloaded
# library hides these features of the distribution's libcurl.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use Hrflow::Node;
use Hrflow::StandIn;
use PostgreSQL::Test::Utils ();
use Test::More;

# CURL_VERSION_* bits of <curl/curl.h>.
my %bits =
  (TLS => 1 << 2, zlib => 1 << 3, 'an asynchronous resolver' => 1 << 7, 'HTTP/2' => 1 << 16);

my $api = Hrflow::StandIn->new;
my $library = PostgreSQL::Test::Utils::tempdir_short() . '/features.so';
system('gcc', '-shared', '-fPIC', '-O1', '-o', $library,
	dirname(__FILE__) . '/../perl/Hrflow/features.c', '-ldl') == 0
  or die 'could not compile features.c';

my $node = Hrflow::Node->new('libcurl', $api, max_attempts => 1);

# Restart the server with a libcurl that lacks a feature.
sub restart_without
{
	my ($feature) = @_;
	local $ENV{LD_PRELOAD} = join(' ', grep { $_ } $ENV{LD_PRELOAD}, $library);
	local $ENV{HRFLOW_WITHOUT} = $bits{$feature};

	$node->restart;
	$api->reset;
	return;
}

my $call = q{SELECT hrflow_profile_embedding('acme', 'nurse', '{"profile": 1}') IS NOT NULL;};

$node->safe_psql('postgres', $call);
is(($api->log)[0]{headers}{'Accept-Encoding'}, 'gzip', 'a libcurl with all features offers gzip');

foreach my $feature ('TLS', 'an asynchronous resolver')
{
	restart_without($feature);
	my (undef, undef, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\n$call");
	like(
		$err,
		qr/ERROR:\ \ 0A000:\ libcurl\ \S+\ was\ built\ without\ \Q$feature\E\n
			.*HINT:\ \ Install\ libcurl\ from\ your\ distribution\ \(libcurl4\ on\ Debian/sx,
		"a libcurl without $feature is refused, and the hint names the package");
	is(scalar($api->log), 0, "no request is sent by a libcurl without $feature");
	is($node->safe_psql('postgres', q{SELECT hrflow_decode_vector('[1, 2]')}),
		'{1,2}', "functions that use no network work with a libcurl without $feature");
}

restart_without('zlib');
is($node->safe_psql('postgres', $call), 't', 'a libcurl without zlib can send requests');
is(($api->log)[0]{headers}{'Accept-Encoding'},
	'gzip', 'a libcurl without zlib offers gzip, which it need not decompress');

restart_without('HTTP/2');
my $https = $api->base_url('https');
my $ca = $api->ca;
is( $node->safe_psql(
		'postgres', "SET hrflow_embed.base_url = '$https'; SET hrflow_embed.ca_file = '$ca'; $call"
	),
	't',
	'a libcurl without HTTP/2 sends requests over HTTP/1.1');

done_testing();
