# Refresh a store while sessions are killed, servers crash and the network dies,
# and see that nothing is lost, and nothing asked for in vain.
#
#   Hrflow::Disturb::run($node, $api, 2000, qw(kill crash network cancel terminate))
#
# Each word is one disturbance, at a random point of a run.
package Hrflow::Disturb;

use strict;
use warnings;
use Hrflow::Store;
use Test::More;
use Time::HiRes qw(sleep);

my %disturb = (
	kill => sub
	{
		my ($node, undef, @backends) = @_;
		kill 'KILL', $backends[0] if @backends;		# all others end too
	},
	terminate => sub
	{
		my ($node, undef, @backends) = @_;
		$node->safe_psql('postgres', "SELECT pg_terminate_backend($_)") foreach @backends;
	},
	cancel => sub
	{
		my ($node, undef, @backends) = @_;
		$node->safe_psql('postgres', "SELECT pg_cancel_backend($_)") foreach @backends;
	},
	crash => sub
	{
		my ($node) = @_;
		$node->stop('immediate');
		$node->start;
	},
	network => sub
	{
		my (undef, $api) = @_;
		$api->stop;
		sleep rand 0.2;
		$api->restart('--latency' => 20, '--dim' => 64);
	});

sub run
{
	my ($node, $api, $n, @disturbances) = @_;
	my $seed = $ENV{HRFLOW_SEED} // int rand 2**31;
	my %asked;
	my $collect = sub
	{
		my ($store) = @_;
		my $asked = $store->asked;
		$asked{$_} += $asked->{$_} foreach keys %$asked;
		$api->reset;
	};

	note("HRFLOW_SEED=$seed");
	srand $seed;
	$node->safe_psql('postgres', 'ALTER SYSTEM SET restart_after_crash = on');
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	my $store = Hrflow::Store->new($node, $api, 'disturbed');
	$store->fill($n);
	$api->reset;

	foreach my $disturbance (@disturbances)
	{
		# What it has to do, when it is disturbed, however far it came
		my @calls = map { $store->start_call("time_budget => '2s', batch_size => " . (16 + int rand 100)) } 1 .. 2;
		sleep 0.1 + rand 0.5;

		# Its log goes with the stand-in
		if ($disturbance eq 'network')
		{
			my $log = $store->asked;
			$asked{$_} += $log->{$_} foreach keys %$log;
		}
		$disturb{$disturbance}->($node, $api, $store->backends);
		$store->finish_call($_) foreach @calls;
		$node->poll_query_until('postgres', 'SELECT true') or die;
		$collect->($store);
		my $left = $store->sql('SELECT count(lease_until) FROM disturbed.embedding_profile');
		note("$disturbance: " . $store->states . ", leased $left");
		is($left, 0, 'a run that is cancelled gives its leases back') if $disturbance eq 'cancel';
		$store->hasten("state = 'due'");
	}
	$store->call;
	$store->hasten("state = 'due'");
	$store->call;
	$collect->($store);

	my $of = "disturbed by @disturbances";
	is($store->states, "ok $n", "all $n profiles are ok, $of");
	is($store->wrong_vectors, 0, 'with their right vectors');
	$api->reset;
	is($store->sql("SELECT count(*) FROM disturbed.claim WHERE state <> 'due'"), 0,
		'none was claimed that was ok');
	my %claims = map { split /\|/ } split /\n/,
	  $store->sql('SELECT profile_id, count(*) FROM disturbed.claim GROUP BY 1');
	is(scalar(keys %claims), $n, 'all were claimed');
	is_deeply([ grep { $asked{$_} > $claims{$_} } keys %asked ], [],
		'none was asked for more often than claimed');
	note(scalar(grep { $_ > 1 } values %asked) . ' were asked for more than once');
	$store->sql('DROP SCHEMA disturbed CASCADE');
	return;
}

1;
