# Ranking of 20,000 profiles of 1,024 dimensions, as many as a company might have:
# results of an index of pgvector are compared with an exact search, and the time of
# an exact search without pgvector with that of plain SQL.  Most of the time of this
# test is for filling the store and building the index.  Then time and memory of
# ranking 1,000,000 profiles of 64 dimensions are measured.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use Test::More;
use Time::HiRes 'time';

my $nprofiles = 20_000;
my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('ranking', $api, link_hosts => '127.0.0.1');

$node->append_conf('postgresql.conf', 'shared_buffers = 512MB');
$node->restart;

sub sql { return $node->safe_psql('postgres', @_); }

# Return the time of a statement in milliseconds, the best of three.
sub best_time
{
	my ($statement) = @_;
	my $best;

	foreach (1 .. 3)
	{
		my $out = sql(
			"SELECT clock_timestamp() AS t \\gset\n$statement;
			SELECT extract(epoch FROM clock_timestamp() - :'t') * 1000;"
		);
		my ($time) = $out =~ /([\d.]+)\s*\z/;

		$best = $time if !defined $best || $time < $best;
	}
	return $best;
}

sub fill
{
	my ($store, $type) = @_;

	sql("SELECT hrflow_create_store('$store', '$type');
		 SELECT hrflow_track('$store', 'acme', array_agg('p' || i))
			FROM generate_series(1, $nprofiles) i"
	);
	sql("CALL hrflow_refresh('$store')");
	is(sql("SELECT count(*) FROM $store"),
		$nprofiles, "store $store has the vectors of all profiles");
	return;
}

fill('plain', 'real[]');

my $ours = best_time(
	"SELECT count(*) FROM hrflow_match('plain', (SELECT vector FROM plain WHERE profile_id = 'p1'))"
);
my $theirs = best_time(
	q{
	SELECT count(*) FROM (
		SELECT profile_id FROM plain, (SELECT vector AS q FROM plain WHERE profile_id = 'p1') q
		 WHERE section = 'profile'
		 ORDER BY (SELECT sum(a * b) FROM unnest(vector, q) AS x(a, b)) DESC LIMIT 10) x});
note(
	sprintf(
		'exact search of %d: %.0f ms; with unnest and sum: %.0f ms; ratio %.0f',
		$nprofiles, $ours, $theirs, $theirs / $ours));
cmp_ok($theirs / $ours, '>=', 20, 'an exact search is 20 times as fast as with unnest and sum');

# Fill a store with different vectors, each of which consists of one of a thousand
# first halves and one of a thousand second halves.
sub fill_million
{
	my ($store, $nprofiles) = @_;

	sql(qq{
		SELECT hrflow_create_store('$store', 'real[]');
		SELECT setseed(0.5);
		CREATE TEMP TABLE half AS
			SELECT h, array_agg((random() - 0.5)::real) AS x
			  FROM generate_series(0, 1999) h, generate_series(1, 32) GROUP BY h;
		INSERT INTO $store SELECT 'acme', 'p' || p, 'profile', 0, a.x || b.x
			FROM generate_series(1, $nprofiles) p
			JOIN half a ON a.h = p % 1000 JOIN half b ON b.h = 1000 + p / 1000 % 1000;
		VACUUM ANALYZE $store});
	return;
}

fill_million('million', 1_000_000);
fill_million('quarter', 250_000);

my $query = "(SELECT array_agg(sin(i)::real) FROM generate_series(1, 64) i)";
my $best = q{SELECT string_agg(profile_id, ' ' ORDER BY similarity DESC, profile_id) FROM };
my $nearest = sql(
	qq{
	$best (SELECT profile_id, hrflow_cosine_similarity(vector, $query) AS similarity
			 FROM million ORDER BY similarity DESC LIMIT 10) AS nearest});

is(sql("$best hrflow_match('million', $query)"),
	$nearest, 'the ten best of a million profiles are those by definition');
is( sql("$best hrflow_match('million', $query,
			profiles => ARRAY(SELECT 'p' || i FROM generate_series(1, 1000000) i))"),
	$nearest,
	'hrflow_match() can rank a million given profiles');
is(sql("$best hrflow_match('million', $query, profiles => string_to_array('$nearest', ' '))"),
	$nearest, 'hrflow_match() can rank ten given profiles of a million');

# Use a single session, so that the growth of its peak by each search is known.  The
# second query maps the buffers of the larger table, which count as memory of the
# session.  It must access a column, because PostgreSQL 17 does not scan a table for
# nulls in a column that is NOT NULL.
my $peak = q{SELECT substring(pg_read_file('/proc/self/status') FROM 'VmHWM:\s+(\d+)');};
my @peaks = split /\n/, sql(
	"SET max_parallel_workers_per_gather = 0;
	SELECT count(*) FROM hrflow_match('quarter', $query); $peak
	SELECT count(vector[1]) FROM million; $peak
	SELECT count(*) FROM hrflow_match('million', $query); $peak");
cmp_ok($peaks[5] - $peaks[3],
	'<', 4096, 'a search among a million profiles takes no more memory than among 250,000');

my ($quarter, $million) =
  map { best_time("SELECT count(*) FROM hrflow_match('$_', $query)") } 'quarter', 'million';
note(sprintf('exact search of 250,000: %.0f ms; of 1,000,000: %.0f ms', $quarter, $million));
cmp_ok($million / $quarter,
	'<=', 6, 'the time of an exact search is proportional to the number of profiles');
sql('DROP TABLE million, million_profile, quarter, quarter_profile');

SKIP:
{
	skip 'pgvector is not available', 1
	  unless sql(q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});

	sql("CREATE EXTENSION vector");
	fill('indexed', 'auto');
	sql("SET maintenance_work_mem = '512MB'; " . sql("SELECT hrflow_index_statement('indexed')"));

	my ($found, $all) = (0, 0);
	foreach my $i (1 .. 50)
	{
		my $query =
			"(SELECT vector FROM plain WHERE profile_id = 'p"
		  . $i * 397
		  . "' AND section = 'profile')";
		my %exact = map { $_ => 1 } split /\n/,
		  sql("SELECT profile_id FROM hrflow_match('plain', $query)");

		$found += grep { $exact{$_} } split /\n/,
		  sql("SELECT profile_id FROM hrflow_match('indexed', $query)");
		$all += keys %exact;
	}
	note(sprintf('recall at 10: %.3f', $found / $all));
	cmp_ok($found / $all, '>=', 0.95, 'an index of pgvector finds 95 % of the ten best');
}

$node->stop('fast');
done_testing();
