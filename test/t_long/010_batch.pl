# What takes long of batches: memory and time from 1,000 to 1,000,000 elements,
# and a rate over a whole minute.
use strict;
use warnings;
use Hrflow::Node;
use Hrflow::StandIn;
use IPC::Run ();
use Test::More;
use Time::HiRes qw(time);

my $api = Hrflow::StandIn->new('--log' => 5000);
my $node = Hrflow::Node->new('long_batch', $api,
	shared_preload_libraries => 'hrflow_embed');

# Runs a batch in a backend of its own; returns what it printed, its peak of
# memory in MB, and the seconds that it took.
sub measure
{
	my ($n) = @_;
	my $result = $node->safe_psql('postgres', qq{
		SELECT count(*) FROM hrflow_profile_embeddings('acme', '{warm,up}');
		CREATE TEMP TABLE ids AS SELECT array_agg('p' || i) AS ids FROM generate_series(1, $n) i;
		SELECT length(ids::text) FROM ids \\g /dev/null
		CREATE TEMP TABLE began AS SELECT clock_timestamp() AS t;
		SELECT count(*) || ' ' || count(*) FILTER (WHERE status = 'ok') || ' ' || count(DISTINCT ordinality)
		FROM hrflow_profile_embeddings('acme', (SELECT ids FROM ids), '{"profile": 1}');
		SELECT extract(epoch FROM clock_timestamp() - t) FROM began;
		SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/status') FROM 'VmHWM:\\s+(\\d+)');
		SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/status') FROM 'RssShmem:\\s+(\\d+)');
		SELECT pg_column_size(array_agg('p' || i)) FROM generate_series(1, $n) i});
	my (undef, $counts, $seconds, $peak, $shared, $array) = split /\n/, $result;
	return ($counts, ($peak - $shared) / 1024, $seconds, $array / 1024 / 1024);
}

SKIP:
{
	skip '/proc is not to be had', 6 unless -e '/proc/self/status';

	my ($counts, $base, $base_seconds) = measure(1000);
	is($counts, '1000 1000 1000', '1,000 elements');
	foreach my $n (100_000, 1_000_000)
	{
		my ($counts, $peak, $seconds, $array) = measure($n);
		my $allowed = $base + 8 + 64 * $n / 1024 / 1024 + 2 * $array;

		is($counts, "$n $n $n", "$n elements");
		cmp_ok($peak, '<=', $allowed, sprintf '%d take %.1f MB where 1,000 take %.1f MB', $n, $peak, $base);
		note(sprintf '%d: %.1f s, %.1f MB, array %.1f MB', $n, $seconds, $peak, $array);
	}
}

# Four backends share 600 a minute, for two minutes and a bit
$node->append_conf('postgresql.conf', 'hrflow_embed.max_requests_per_minute = 600');
$node->reload;
$api->reset;
my @running = map {
	my $batch = "SELECT count(*) FROM hrflow_profile_embeddings('acme', (SELECT array_agg('rate$_-' || i) FROM generate_series(1, 325) i))";
	IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', $batch ],
		'>', \my $ignored);
} 1 .. 4;
$_->finish foreach @running;
my @ms = sort { $a <=> $b } map { $_->{ms} } $api->log;
is(scalar(@ms), 1300, 'all of 1,300 requests were sent');
my ($most, $from, $fewest) = (0, 0, 1e9);
foreach my $to (0 .. $#ms)
{
	$from++ while $ms[$from] <= $ms[$to] - 60000;
	my $n = $to - $from + 1;
	$most = $n if $n > $most;
	$fewest = $n if $ms[$to] > $ms[0] + 61000 && $n < $fewest;
}
cmp_ok($most, '<=', 610, "no window of 60 s has more than 610 (it has $most)");
cmp_ok($fewest, '>=', 570, "and none with work has fewer than 570 (it has $fewest)");

done_testing();
