# What a batch costs is told before it sends its requests.  The stand-in says how
# many there are, and SQL cannot ask it.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use IPC::Run                ();
use Test::More;

my $api = Hrflow::StandIn->new('--latency' => 20);
my $node = Hrflow::Node->new(
	'costs', $api,
	link_hosts => '127.0.0.1',
	shared_preload_libraries => 'hrflow_embed');

sub sql { return $node->safe_psql('postgres', @_); }

# Requests to the API and for links, as the stand-in counts them.
sub received
{
	my $stats = $api->stats;
	return "$stats->{api_requests}|$stats->{store_requests}";
}

sub ids
{
	my ($n) = @_;
	return "ARRAY(SELECT 'p' || i FROM generate_series(1, $n) i)";
}

#
# Told before
#
my $arguments = "'acme', " . ids(40) . q( || '{p1,p2,NULL}'::text[], '{"profile": 1, "skills": 1}');
$api->reset;
my $told = sql("SELECT requests, links FROM hrflow_estimate($arguments)");
is($api->stats->{requests}, 0, 'an estimate sends no request');
is(sql("SELECT seconds IS NULL FROM hrflow_estimate($arguments)"),
	't', 'before the first request nothing is known of the time that others take');
sql("SELECT count(*) FROM hrflow_profile_vectors($arguments)");
is(received(), $told, 'an estimate tells the requests and the links of a batch');

# 1600 requests of 20 ms, 32 at a time
is(sql("SELECT seconds >= 0.99 FROM hrflow_estimate('acme', " . ids(1600) . ')'),
	't', 'an estimate of the time goes by the latency seen before');

$node->stop('fast');
done_testing();
