# Profiles whose replies take longer than a run: they are postponed, so that other
# profiles are requested, but only if their requests have been sent, and have been in
# flight for some seconds.  A regression test could not wait for that, or cancel a run.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 64);
my $node = Hrflow::Node->new('slow', $api, link_hosts => '127.0.0.1', max_attempts => 1);
my $store = Hrflow::Store->new($node, $api, 'shop');
my $error = 'the HrFlow API did not answer in time: The run ended before there was an answer.';

# Let these profiles have been due longest.
sub prefer
{
	my ($pattern) = @_;

	$store->sql(
		"UPDATE shop.embedding_profile
		SET due_at = now() - interval '1 hour' WHERE profile_id ~ '$pattern'");
	return;
}

#
# More slow profiles than a run requests before it has stored a vector
#
$store->track(
	"SELECT 'fault:silent,id=' || i FROM generate_series(1, 40) i
	UNION ALL SELECT 'nurse-' || i FROM generate_series(1, 20) i");
prefer('silent');
$store->call("time_budget => '2s'");
is( $store->profiles(
		'state, attempts, http_status, last_error, lease_until,
			due_at - failed_at BETWEEN \'50 s\' AND \'61 s\'',
		'last_error IS NOT NULL'),
	"due|0||$error||t",
	'a profile without a reply at the end of a run is due a minute later');
$store->call("time_budget => '2s'");
is($store->refreshed, 20, 'profiles without replies do not keep others from being requested');

$store->age('20 minutes');
$store->hasten;
$store->call("time_budget => '2s'");
is( $store->profiles(
		"count(*) >= 32, min(due_at) > now() + interval '15 minutes', max(attempts)",
		"due_at > now()" . " AND state = 'due'"),
	't|t|0',
	'a profile without replies is due as much later as it has had none');

#
# Replies that take longer than a run in other ways, of which the API has sent a part
#
foreach my $case (
	[ 'fault:latency=3500,v.silent', '', "the link.s host" ],
	[ 'novector-1', 'latency=6000', 'the HrFlow API' ],
	[ 'fault:latency=2800,v.retry_after=60,v.status=503', '', "the link.s host" ])
{
	my ($profile, $fault, $who) = @$case;

	$store->track("SELECT '$profile'");
	$api->script($fault) if $fault;
	$store->call("time_budget => '2s'", settings => { 'hrflow_embed.max_attempts' => 3 });
	is($store->profiles("attempts, due_at > now(), last_error ~ '^$who did not answer in time'"),
		'0|t|t', "profile $profile, whose reply is late, is postponed");
}
$api->reset;

#
# A run that is canceled, or that waits for other reasons
#
foreach my $case ([ '2s', 0 ], [ '8s', 3 ])
{
	my ($timeout, $npostponed) = @$case;

	$store->track("SELECT 'fault:silent,id=' || i FROM generate_series(1, 3) i");
	like($store->call(undef, role => 'keeper', settings => { statement_timeout => $timeout }),
		qr/57014/, "statement_timeout ends a run after $timeout");
	is($store->profiles('count(*)', 'due_at > now() AND last_error IS NOT NULL'),
		$npostponed, "$npostponed profiles without a reply are postponed after $timeout");
}

# A profile that has changed is due when a changed profile may be requested again.
$store->track("SELECT 'fault:silent'");
my $call = $store->start_call("time_budget => '2s'");
$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
$store->sql("UPDATE shop.candidate SET cv = 'new'");
$store->finish_call($call);
is($store->profiles("attempts, last_error, due_at > now() + interval '30 s', lease_until"),
	'0||t|', 'a profile that changes while its reply is awaited is postponed, too');

# This comes last, because the account keeps its rate after the end of the session.
$store->track("SELECT 'fault:silent,id=' || i FROM generate_series(1, 20) i");
$store->call("time_budget => '2s'", settings => { 'hrflow_embed.max_requests_per_minute' => 5 });
is( $store->profiles('count(*), max(attempts)', 'due_at > now()'),
	$api->stats->{requests} . '|0',
	'only profiles whose requests were sent are postponed');
cmp_ok($api->stats->{requests}, '<', 10, 'the rate limit delays most requests');

done_testing;
