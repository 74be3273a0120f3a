# What a store's refresh does where something beside it is wrong: an answer that
# is wrong for all, an error or a lock of the owner's own, a limit set too low.
# And that its memory stays what it is.  SQL sees neither what is asked nor
# other sessions.
use strict;
use warnings;
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use List::Util qw(max);
use Test::More;
use Time::HiRes qw(sleep time);

my $api = Hrflow::StandIn->new('--dim' => 64);
my $node = Hrflow::Node->new('faults', $api, link_hosts => '127.0.0.1', max_attempts => 1);
my $store = Hrflow::Store->new($node, $api, 'shop');

# Nothing but these profiles, due.
sub track
{
	my ($select) = @_;

	$store->sql("DELETE FROM shop.candidate;
		DELETE FROM shop.embedding_profile;
		DELETE FROM shop.embedding;
		INSERT INTO shop.candidate (hrflow_id) $select");
	$api->reset;
	return;
}

# What the state table says.
sub profiles
{
	my ($columns, $where) = @_;
	$where //= 'true';
	return $store->sql("SELECT DISTINCT $columns FROM shop.embedding_profile WHERE $where ORDER BY 1");
}

#
# Memory
#
sub anonymous_memory
{
	my ($pid) = @_;
	open(my $status, '<', "/proc/$pid/status") or return 0;
	return (map { /^RssAnon:\s*(\d+)/ } <$status>)[0] // 0;
}

SKIP:
{
	skip 'an instrument keeps memory of its own', 1 if $ENV{HRFLOW_INSTRUMENT};
	skip 'Linux tells what is a process\'s own', 1 unless -e "/proc/$$/status";

	track("SELECT 'nurse-' || i FROM generate_series(1, 6000) i");
	my $call = $store->start_call;
	my ($pid, @early, @late);
	for (;;)
	{
		$call->{process}->pump_nb;
		last if $call->{err} =~ /refreshed, / || !$call->{process}->pumpable;
		($pid) = $store->backends unless $pid;
		my $requests = $api->stats->{requests};
		push @{ $requests < 6000 ? \@early : \@late }, anonymous_memory($pid) if $pid && $requests > 3000;
		sleep 0.02;
	}
	like($store->finish_call($call), qr/: 6000 refreshed/, 'many batches are refreshed');
	my $growth = max(@late, 0) - max(@early, 0);
	ok(@early && @late && $growth < 500, "in the memory of the first ones");
	note("$growth kB more in the last two thirds: @early / @late");
}

done_testing();
