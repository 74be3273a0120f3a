# A query cancel and statement_timeout end a refresh that waits for a lock, even if
# they arrive at the very moment at which a lock timeout ends the wait.  PostgreSQL
# reports only one of them then.  A regression test could not stop a backend.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;
use Time::HiRes qw(sleep);

my $api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new('cancels', $api, link_hosts => '127.0.0.1', max_attempts => 1);
my $store = Hrflow::Store->new($node, $api, 'shop');
my $locker = Hrflow::Session->new($node);
$locker->ask('SET ROLE keeper;');

# Start a run that has fetched 8 profiles, and has not written them, because the table
# of profiles is locked.  Stop its process for some seconds while it waits for the lock,
# which is longer than any wait lasts.  Call "arrive", if any, meanwhile.  Return what the
# run has printed, or nothing if it has ended too early.
sub run_stopped
{
	my ($stopped, $arrive, %settings) = @_;
	my ($call, $pid);

	$store->track("SELECT 'nurse-' || i FROM generate_series(1, 8) i");
	$call = eval { $store->start_held(8, $locker, undef, settings => \%settings) };
	$node->poll_query_until(
		'postgres',
		q{SELECT EXISTS (SELECT FROM pg_locks
				WHERE relation = 'shop.embedding_profile'::regclass AND NOT granted)
			OR NOT EXISTS (SELECT FROM pg_stat_activity
				WHERE query LIKE 'CALL hrflow_refresh%' AND state = 'active')});
	($pid) = $store->backends;
	kill STOP => $pid if $pid;
	$arrive->($pid) if $arrive && $pid;
	sleep $stopped;
	kill CONT => $pid if $pid;

	# Let the interrupts be processed before the lock is granted.
	sleep 0.3;
	$locker->ask('COMMIT;');
	return $call ? $store->finish_call($call) : '';
}

my $printed = run_stopped(0.7);
like($printed, qr/8 refreshed/, 'a run goes on after its process was stopped');
is($store->states, 'ok 8', 'a run that goes on stores all replies');

$printed =
  run_stopped(0.7, sub { $node->safe_psql('postgres', "SELECT pg_cancel_backend($_[0])") });
like(
	$printed,
	qr/ERROR:  57014: canceling statement due to user request/,
	'a cancel ends a run although a lock timeout is pending, too');
is($store->states, 'ok 8', 'a run that is canceled stores all replies');

# statement_timeout must expire while the process is stopped.  On a busy machine, it may
# expire before that.
foreach my $limit (1.5, 5, 20)
{
	$printed = run_stopped($limit + 0.2, undef, statement_timeout => 1000 * $limit);
	last if $printed =~ /57014/ && $store->states eq 'ok 8';
}
like(
	$printed,
	qr/ERROR:  57014: canceling statement due to statement timeout/,
	'statement_timeout ends a run although a lock timeout is pending, too');
is($store->states, 'ok 8', 'a run that statement_timeout ends stores all replies');

done_testing();
