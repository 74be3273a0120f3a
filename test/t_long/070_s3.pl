# Links presigned by the SDK for object stores, with unusual characters in their keys,
# lead to their vectors in an object store that is independent of our stand-in, and its
# error codes determine statuses.  The store does not verify the signatures themselves.
#
# This requires Node.js with s3rver, @aws-sdk/client-s3 and
# @aws-sdk/s3-request-presigner, which are not packaged: see HRFLOW_NODE_MODULES in
# test/run.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use Hrflow::Node;
use Hrflow::StandIn;
use IPC::Run                ();
use JSON::PP                qw(decode_json);
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(time);

my $modules = $ENV{HRFLOW_NODE_MODULES} // '';
plan skip_all => 'HRFLOW_NODE_MODULES does not name a directory with s3rver'
  unless -d "$modules/s3rver";

# Node looks for modules in the directory of the program.
my $folder = PostgreSQL::Test::Utils::tempdir();
symlink($modules, "$folder/node_modules") or die $!;
PostgreSQL::Test::Utils::system_or_bail('cp', dirname(__FILE__) . '/070_s3.js', $folder);
mkdir "$folder/objects" or die $!;

my ($in, $out, $err) = ('', '', '');
my $timeout = IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default);
my $store = IPC::Run::start([ 'node', "$folder/070_s3.js", "$folder/objects" ],
	'<', \$in, '>', \$out, '2>', \$err, $timeout);
while ($out !~ /\n/)
{
	BAIL_OUT("the object store did not start: $err") unless $store->pumpable;
	$store->pump;
}
$timeout->reset;
my $said = decode_json($out);

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('s3', $api, link_hosts => '127.0.0.1', max_attempts => 1);

sub outcome
{
	my ($link) = @_;
	return $node->safe_psql('postgres',
		"SELECT status, vector, error FROM hrflow_fetch_vectors(ARRAY[\$link\$$link\$link\$])");
}

foreach my $n (0 .. $#{ $said->{links} })
{
	my $object = $said->{links}[$n];
	my $key = $object->{key};

	utf8::encode($key);
	is(outcome($object->{link}),
		"ok|{$n,0.5}|", "a presigned link to the key $key leads to its vector");
}
cmp_ok(scalar(@{ $said->{links} }), '>=', 14, 'there are at least 14 keys');

like(outcome($said->{missing}),
	qr/^no_vector\|.*NoSuchKey/, 'a link to a key that does not exist has no vector');

my $foreign = $said->{links}[0]{link} =~ s/Credential=S3RVER/Credential=OTHER/r;
like(
	outcome($foreign),
	qr/^http_error\|.*InvalidAccessKeyId/,
	'a link signed with an unknown access key is not reported as expired');

my $now;
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
do { $now = outcome($said->{expiring}) } until $now !~ /^ok/ || time > $deadline;
like($now, qr/^link_expired\|.*AccessDenied/, 'a link that has expired is reported as expired');

$store->kill_kill;
done_testing();
