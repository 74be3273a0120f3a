# Deciding whether profiles of a large store may lose vectors, and what that costs.  A
# regression test could not see how many rows are read.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 4);
my $node = Hrflow::Node->new('limits', $api, link_hosts => '127.0.0.1', max_attempts => 1);
my $store = Hrflow::Store->new($node, $api, 'shop');
my $n = 4000;

# Return how many rows of profiles have been read sequentially.  A session is certain to
# have reported its rows only once it has ended.
sub seq_tup_read
{
	$node->poll_query_until(
		'postgres',
		q{SELECT count(*) = 0 FROM pg_stat_activity
			WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()}) or die;
	return $store->sql(
		"SELECT seq_tup_read FROM pg_stat_user_tables
		WHERE relid = 'shop.embedding_profile'::regclass");
}

# Return the output of a run, and how many rows of profiles it has read sequentially.
sub rows_read
{
	my $before = seq_tup_read();
	my $printed =
	  $store->call('batch_size => 1', settings => { 'hrflow_embed.max_concurrency' => 1 });

	return ($printed, seq_tup_read() - $before);
}

# Let profiles have lost their skills.
sub lose
{
	my ($count) = @_;

	$store->sql(
		"UPDATE shop.embedding_profile SET due_at = now() WHERE profile_id IN
			(SELECT profile_id FROM shop.embedding_profile
				WHERE profile_id ~ 'novector' AND erased_at IS NULL AND due_at > now()
				ORDER BY 1 LIMIT $count)");
	return;
}

$store->track(
	"SELECT 'nurse-' || i FROM generate_series(1, $n) i
	UNION ALL SELECT 'novector-' || i FROM generate_series(1, 400) i");
$store->sql(
	"UPDATE shop.embedding_profile SET state = 'ok', refreshed_at = now(),
		sections = '{profile,skills}', due_at = now() + interval '1 day';
	INSERT INTO shop.embedding SELECT source_id, profile_id, section, 0, '{1, 2, 3, 4}', now()
		FROM shop.embedding_profile, unnest('{profile,skills}'::text[]) section
		WHERE profile_id ~ 'novector';
	ANALYZE shop.embedding_profile");

foreach my $case (
	[ 15, 15, 0, 'at most 20 profiles' ],
	[ 45, 60, 4 * 60 * 20, 'some more profiles' ],
	[ 200, 220, 3 * $n, 'more profiles than the limit' ])
{
	my ($count, $nerased, $limit, $what) = @$case;

	lose($count);
	my ($printed, $nread) = rows_read();
	like($printed, qr/: $count refreshed/, "a run refreshes $count profiles that lack a section");
	is($store->sql("SELECT erased_last_day FROM hrflow_store_status('shop.embedding')"),
		$nerased, "$nerased profiles in all have lost vectors");
	cmp_ok($nread, '<=', $limit, "a run reads few rows to decide about $what");
	note("read $nread rows");
}

#
# Very many profiles that have been missing for long.  A run decides about 10,000 of
# them.  The others might have vectors, and count towards the limit.
#
my $most = 10000;
foreach my $case ([ 15, 5, 'have lost their vectors' ], [ 50, 0, 'keep their vectors' ])
{
	my ($others, $nput, $what) = @$case;
	my $nmissing = $most + $others;

	$store->track(
		"SELECT 'missing-' || i FROM generate_series(1, $nmissing) i
		UNION ALL SELECT 'cook-1'");
	$store->sql(
		"UPDATE shop.embedding_profile SET state = 'missing',
			failed_at = now() - interval '5 days', due_at = now() - interval '1 hour'
			WHERE profile_id ~ 'missing';
		UPDATE shop.embedding_profile SET due_at = now() - interval '1 day'
			WHERE profile_id ~ '^missing-[1-5]\$';
		INSERT INTO shop.embedding SELECT source_id, profile_id, 'skills', 0, '{1, 2, 3, 4}', now()
			FROM shop.embedding_profile WHERE profile_id ~ '^missing-[1-5]\$'");
	my $ngone = $most - 5 + $nput;
	like($store->call, qr/, $ngone gone/, "a run with $nmissing missing profiles considers $most");
	is($store->sql("SELECT count(*) FROM shop.embedding WHERE profile_id ~ 'missing'"),
		5 - $nput, "missing profiles $what if there are $others more than the run considers");
}
$store->age('5 days');
$store->hasten("state <> 'gone'");
like($store->call, qr/ 0 not found, 55 gone/, 'another run considers the others');

#
# hrflow_embed.max_erased_percent.  Each step is the number of profiles that would lose their
# vectors, of 100, and whether they do.
#
my $few = Hrflow::Store->new($node, $api, 'few');

# Delete rows without firing triggers, and track the table again.  Returns the messages.
sub lose_rows
{
	my ($first, $last, $percent) = @_;

	$node->safe_psql(
		'postgres', "SET session_replication_role = replica;
		DELETE FROM few.candidate WHERE substr(hrflow_id, 7)::int BETWEEN $first AND $last");
	my (undef, undef, $err) = $node->psql(
		'postgres', "SET ROLE keeper; SET hrflow_embed.max_erased_percent = $percent;
		SELECT hrflow_track_table('few.embedding', 'few.candidate', 'hrflow_id',
			source_id => 'acme', refresh_columns => '{cv}')");
	return $err;
}

# Profiles that the API has not known for days
sub lose_profiles
{
	my ($first, $last, $percent) = @_;

	foreach my $table ('embedding', 'embedding_profile')
	{
		$few->sql(
			"UPDATE few.$table SET profile_id = replace(profile_id, 'nurse', 'missing')
			WHERE profile_id ~ 'nurse' AND substr(profile_id, 7)::int BETWEEN $first AND $last");
	}
	$few->sql(
		"UPDATE few.embedding_profile SET state = 'missing', due_at = now(),
			failed_at = now() - interval '5 days' WHERE profile_id ~ 'missing' AND state <> 'gone'");
	return $few->call(undef, settings => { 'hrflow_embed.max_erased_percent' => $percent });
}

foreach my $case (
	[ 0, [ 21, 0 ], [ 20, 1 ], [ 1, 0 ] ],
	[ 5, [ 20, 1 ], [ 1, 0 ] ],
	[ 50, [ 51, 0 ], [ 30, 1 ], [ 20, 1 ], [ 1, 0 ] ],
	[ 100, [ 60, 1 ], [ 39, 1 ] ])
{
	my ($percent, @steps) = @$case;

	foreach my $way ([ 'unwanted', \&lose_rows ], [ 'gone', \&lose_profiles ])
	{
		my ($state, $lose) = @$way;
		my ($next, $nput) = (1, 0);

		foreach my $step (@steps)
		{
			my ($count, $is_put) = @$step;

			if ($next == 1 || !$nput)
			{
				$few->track("SELECT 'nurse-' || i FROM generate_series(1, 100) i");
				$few->sql(
					"TRUNCATE few.embedding_aside;
					UPDATE few.embedding_profile SET state = 'ok', refreshed_at = now(),
						sections = '{profile,skills}', due_at = now() + interval '1 day';
					INSERT INTO few.embedding
						SELECT source_id, profile_id, 'profile', 0, '{1, 2, 3, 4}', now()
						FROM few.embedding_profile");
				$next = 1;
			}
			my $warnings = $lose->($next, $next + $count - 1, $percent);
			$next += $count;
			$nput += $count if $is_put;
			is( $few->sql("SELECT count(*) FROM few.embedding"),
				100 - $nput,
				"at $percent %, $count profiles that are $state "
				  . ($is_put ? 'lose' : 'keep')
				  . " their vectors, $nput of 100 have lost theirs");
			like(
				$warnings,
				$is_put ? qr/^(?!.*At most)/s
				: qr/DETAIL:.*At most $percent% of .*"hrflow_embed\.max_erased_percent"/,
				$is_put ? "no WARNING mentions the limit for $count $state profiles at $percent %"
				: "a WARNING states the limit for $count $state profiles at $percent %");
		}
	}
}
like(
	$node->error_of(q{LOAD 'hrflow_embed'; SET hrflow_embed.max_erased_percent = 101}),
	qr/22023: 101 is outside the valid range/,
	'hrflow_embed.max_erased_percent cannot exceed 100');

done_testing;
