# Slow tests of batches: memory and time with 1,000 to 1,000,000 elements, and the
# rate limit over a whole minute.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use IPC::Run ();
use POSIX    ();
use Test::More;
use Time::HiRes qw(time);

my $api = Hrflow::StandIn->new('--log' => 5000);
my $node = Hrflow::Node->new('long_batch', $api, shared_preload_libraries => 'hrflow_embed');

# Arrays are made by another backend and stored uncompressed, so that a backend
# that is measured needs no memory for anything else.
$node->safe_psql(
	'postgres', q{
	CREATE TABLE input (n int, ids text[]);
	ALTER TABLE input ALTER ids SET STORAGE EXTERNAL;
	INSERT INTO input SELECT n, (SELECT array_agg('p' || i) FROM generate_series(1, n) i)
		FROM unnest('{1000,100000,1000000}'::int[]) n;
	CREATE FUNCTION status_of_process(what text) RETURNS bigint LANGUAGE sql AS
		$$ SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/status')
			FROM what || ':\s+(\d+)')::bigint $$;
	CREATE FUNCTION cpu_ticks() RETURNS bigint LANGUAGE sql AS
		$$ SELECT f[12]::bigint + f[13]::bigint
			FROM regexp_split_to_array(substring(pg_read_file('/proc/' || pg_backend_pid()
			|| '/stat') FROM '.*\) (.*)'), ' ') f $$}
);

# Run a batch several times in a new backend.  Return the counts printed by the last
# run, the peak of memory and the size of the array in MB, and the elapsed time and
# the CPU time for each profile in microseconds.
sub measure
{
	my ($n, $times, $from) = @_;

	$times //= 1;
	$from  //= $api;
	my $batch = qq{
		SELECT count(*) || ' ' || count(*) FILTER (WHERE status = 'ok') || ' ' || sum(ordinality)
		FROM hrflow_profile_embeddings('acme', (SELECT ids FROM input WHERE n = $n),
			'{"profile": 1}');};
	my $result = $node->safe_psql(
		'postgres', qq{
		SET hrflow_embed.base_url = '} . $from->base_url . qq{';
		SELECT count(*) FROM hrflow_profile_embeddings('acme', '{warm,up}');
		SELECT clock_timestamp() AS began, cpu_ticks() AS ticks \\gset
		} . $batch x $times . qq{
		SELECT extract(epoch FROM clock_timestamp() - :'began');
		SELECT cpu_ticks() - :ticks;
		SELECT status_of_process('VmHWM') - status_of_process('RssShmem');
		SELECT pg_column_size(ids) FROM input WHERE n = $n});
	my ($counts, $seconds, $ticks, $peak, $array) = (split /\n/, $result)[ -5 .. -1 ];
	return {
		counts => $counts,
		peak => $peak / 1024,
		array => $array / 1024 / 1024,
		time => $seconds * 1e6 / $n / $times,
		cpu => $ticks * 1e6 / POSIX::sysconf(POSIX::_SC_CLK_TCK()) / $n / $times };
}

sub sum_to { return $_[0] * ($_[0] + 1) / 2; }

SKIP:
{
	skip '/proc is not available', 7 unless -e '/proc/self/status';

	my $base = measure(1000);
	is($base->{counts}, '1000 1000 ' . sum_to(1000), 'a batch of 1,000 elements returns each once');
	foreach my $n (100_000, 1_000_000)
	{
		my $m = measure($n);
		my $allowed = $base->{peak} + 8 + 64 * $n / 1024 / 1024 + $m->{array};

		is($m->{counts}, "$n $n " . sum_to($n), "a batch of $n elements returns each once");
		cmp_ok($m->{peak}, '<=', $allowed,
			sprintf 'a batch of %d elements takes %.1f MB, and one of 1,000 %.1f MB',
			$n, $m->{peak}, $base->{peak});
		note(sprintf '%d: %.1f us each, %.1f MB, array %.1f MB',
			$n, $m->{time}, $m->{peak}, $m->{array});
	}

	# Time must be proportional to the number of profiles.  Use a server with a
	# latency, so that other processes affect the elapsed time less.  Since this
	# also hides the use of CPU, compare that separately; a result that spills to
	# disk takes somewhat more.  Repeat a small batch, and alternate with the large
	# one.
	my $slow = Hrflow::StandIn->new('--log' => 0, '--latency' => 5);
	my (@small, @large);
	foreach my $round (1 .. 3)
	{
		push @small, measure(1000, 20, $slow);
		push @large, measure(100_000, 1, $slow);
	}
	my %limits = (time => 1.5, cpu => 1.5);
	foreach my $what (sort keys %limits)
	{
		my ($small, $large) = map {
			(sort { $a <=> $b } map { $_->{$what} } @$_)[1]
		} \@small, \@large;
		cmp_ok(
			$large, '<=',
			$small * $limits{$what},
			sprintf 'each of 100,000 elements takes %.1f us of %s, and each of 1,000 %.1f us',
			$large, $what, $small);
	}
}

# Four backends share a limit of 600 requests per minute, for more than two minutes
$node->append_conf('postgresql.conf', 'hrflow_embed.max_requests_per_minute = 600');
$node->reload;
$api->reset;
my @running = map {
	my $batch = "SELECT count(*)
		FROM hrflow_profile_embeddings('acme', (SELECT array_agg('rate$_-' || i)
		FROM generate_series(1, 325) i))";
	IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', $batch ],
		'>', \my $ignored,
		IPC::Run::timeout(1800));
} 1 .. 4;
$_->finish foreach @running;
my @ms = sort { $a <=> $b } map { $_->{ms} } $api->log;
is(scalar(@ms), 1300, 'four backends that share a rate limit send all of 1,300 requests');
my ($most, $from, $fewest) = (0, 0, 1e9);
foreach my $to (0 .. $#ms)
{
	$from++ while $ms[$from] <= $ms[$to] - 60000;
	my $n = $to - $from + 1;
	$most = $n   if $n > $most;
	$fewest = $n if $ms[$to] > $ms[0] + 61000 && $n < $fewest;
}
cmp_ok($most, '<=', 610, "no window of 60 s has more than 610 requests (it has $most)");
cmp_ok($fewest, '>=', 570, "no window of 60 s has fewer than 570 requests (it has $fewest)");

done_testing();
