# Refreshes a store while sessions are killed, servers crash and the network
# fails, and checks that no vectors are lost and no requests wasted.
#
#   Hrflow::Disturb::run($node, $api, 'profile', 2000,
#		qw(kill crash network cancel terminate))
#
# Each word is a disturbance, which happens at a random point of a run.  Some
# profiles fail in various ways, and some are changed or removed meanwhile.  Texts
# and documents that may have been sent are reported, and not sent again before
# hrflow_retry().
package Hrflow::Disturb;

use strict;
use warnings FATAL => 'all';
use Hrflow::Session;
use Hrflow::Store;
use Test::More;
use Time::HiRes qw(sleep);

my %disturb = (
	kill => sub {
		my ($node, undef, @backends) = @_;
		$node->kill_backend($backends[0]) if @backends;
	},
	terminate => sub {
		my ($node, undef, @backends) = @_;
		$node->safe_psql('postgres', "SELECT pg_terminate_backend($_)") foreach @backends;
	},
	cancel => sub {
		my ($node, undef, @backends) = @_;
		$node->safe_psql('postgres', "SELECT pg_cancel_backend($_)") foreach @backends;
	},
	crash => sub {
		my ($node) = @_;
		$node->stop('immediate');
		$node->start;
	},
	network => sub {
		my (undef, $api) = @_;
		$api->stop;
		sleep 0.05 + rand 0.2;
		$api->restart('--latency' => 20, '--dim' => 64);
	});

# What a run reports after each kind of disturbance.  It may report nothing about an outage
# of the network, since it requests again what it has lost.
my %says = (
	kill => qr/server closed the connection|terminating connection/,
	terminate => qr/57P01/,
	cancel => qr/57014/,
	crash => qr/server closed the connection|terminating connection/);

# Wait until two runs have claimed a batch each, and at most the given number of
# profiles, but more than none, are left.  Returns the backends, or nothing if the runs have
# ended before.
sub wait_for_work
{
	my ($node, $todo) = @_;
	my $session = Hrflow::Session->new($node);
	my $backends;

	for (my $try = 0; $try < 20000; $try++)
	{
		($backends) = $session->ask(
			"SELECT string_agg(pid::text, ' ') FROM pg_stat_activity
			WHERE query LIKE 'CALL hrflow_refresh%' AND state = 'active'
			HAVING count(*) = 2
				AND (SELECT count(*) FILTER (WHERE lease_until IS NULL) BETWEEN 1 AND $todo
				AND count(DISTINCT lease_until) >= 2 FROM disturbed.embedding_profile
					WHERE due_at <= now());"
		) =~ /^([\d ]+)$/m;
		last if $backends;
		sleep 0.005;
	}
	$session->finish;
	return split / /, $backends // '';
}

sub run
{
	my ($node, $api, $content, $n, @disturbances) = @_;
	my $seed = $ENV{HRFLOW_SEED} // int rand 2**31;
	my (%asked, %allowed);
	my $collect = sub {
		my ($store) = @_;
		my $asked = $store->asked;
		$asked{s/%(..)/chr hex $1/ger} += $asked->{$_} foreach keys %$asked;
		$api->reset;
	};

	note("HRFLOW_SEED=$seed");
	srand $seed;
	$node->safe_psql('postgres', 'ALTER SYSTEM SET restart_after_crash = on');
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	my $store = Hrflow::Store->new($node, $api, 'disturbed', content => $content);
	my ($id, $source, $posts) = @$store{qw(id source posts)};
	$store->fill($n);
	my @others = (
		'missing-1', 'missing-2',
		'missing-3', 'novector-nurse',
		'novector-cook', 'fault:status=403,id=driver');
	$store->sql(
		"INSERT INTO disturbed.candidate (hrflow_id) VALUES ('" . join("'), ('", @others) . q{');
		UPDATE disturbed.embedding_profile SET due_at = due_at - random() * interval '1 hour';
		CREATE TABLE disturbed.picked (profile_id text, claims bigint, is_deleted bool);});
	$api->reset;

	foreach my $disturbance (@disturbances)
	{
		# Let texts and documents be written often, because those that have not been
		# written count as sent.
		my @again = split /\n/, $store->sql(
			"SELECT $id FROM disturbed.embedding_profile WHERE state = 'ok' ORDER BY random()
			LIMIT (SELECT GREATEST(0.75 * $n - count(*), 0) FROM disturbed.embedding_profile
				WHERE due_at <= now())"
		);
		my $again = "'{" . join(',', map { qq("$_") } @again) . "}'";
		$store->sql("SELECT hrflow_mark_due('disturbed.embedding', '$source', $again)");
		if ($posts)
		{
			# Let them be sent again although they have not changed
			$store->sql(
				"UPDATE disturbed.embedding_profile SET content_hash = NULL
				WHERE $id = ANY ($again)");
			$allowed{$_}++ foreach @again;
		}
		my ($todo) =
		  $store->sql('SELECT count(*) FROM disturbed.embedding_profile WHERE due_at <= now()');

		# After some requests, let replies take long, so that no run ends before it is
		# disturbed, however long that takes.
		my $requests = int $n * (0.3 + rand 0.2);
		$api->script('own', count => $requests);
		$api->script('own,latency=2000');
		my @calls = map {
			$store->start_call(
				"time_budget => '120s', batch_size => "
				  . ($posts ? 20 + int rand 20 : 100 + int rand 150),
				settings => {
					'hrflow_embed.max_attempts' => 1,
					'hrflow_embed.max_concurrency' => $posts ? 2
					: $n < 2000 ? 4
					: $n < 10_000 ? 12
					: 32 })
		} 1 .. 2;
		my @claiming = wait_for_work($node, $todo);
		is(scalar(@claiming), 2, "two runs have claimed ${content}s before the $disturbance");

		# Change some profiles that are being fetched, and untrack others
		$store->sql(
			qq{INSERT INTO disturbed.picked
			SELECT p.id, (SELECT count(*) FROM disturbed.claim c
				WHERE c.profile_id = p.id), row_number() OVER () > 3
			FROM (SELECT $id AS id FROM disturbed.embedding_profile
				WHERE lease_until > now() AND $id !~ '^(missing|novector|fault)'
					ORDER BY random() LIMIT 6) p;
			UPDATE disturbed.candidate SET cv = clock_timestamp()
			WHERE hrflow_id IN (SELECT profile_id FROM disturbed.picked WHERE NOT is_deleted);
			DELETE FROM disturbed.candidate
				WHERE hrflow_id IN (SELECT profile_id FROM disturbed.picked WHERE is_deleted);}
		);

		# The log is lost when the stand-in is stopped
		my @backends = wait_for_work($node, $todo - $requests);
		$collect->($store) if $disturbance eq 'network';
		is(scalar(@backends), 2, "two runs are in progress before the disturbance ($disturbance)");
		$disturb{$disturbance}->($node, $api, @backends);
		my @printed = map { $store->finish_call($_) } @calls;
		$node->poll_query_until('postgres', 'SELECT true') or die;
		ok( scalar(grep { /$says{$disturbance}/ } @printed),
			"at least one run reports the disturbance ($disturbance)")
		  or diag(@printed)
		  if $says{$disturbance};
		$collect->($store);
		my $left = $store->sql('SELECT count(lease_until) FROM disturbed.embedding_profile');
		note("$disturbance: " . $store->states . ", leased $left");
		is($left, 0, 'a canceled run releases its leases') if $disturbance eq 'cancel';
		cmp_ok($left, '>', 0, "disturbed runs leave leases behind ($disturbance)")
		  if $disturbance =~ /kill|crash/;
		$store->hasten("state = 'due'");
		$store->sql("UPDATE disturbed.embedding_profile SET attempts = 0 WHERE $id ~ '^fault'");
	}

	# Repeat until the profile that is refused has been given up
	my $of = "disturbed by @disturbances";
	my $complete = sub {
		for (1 .. 5)
		{
			$store->call;
			$store->hasten("state = 'due'");
		}
		$collect->($store);
	};
	$complete->();
	if ($posts)
	{
		is_deeply([ grep { !/^fault/ && $asked{$_} > 1 + ($allowed{$_} // 0) } keys %asked ],
			[], "no $content was sent twice, $of");
		is( $store->sql(
				"SELECT count(*) FROM disturbed.embedding_profile
				WHERE $id !~ '^fault' AND ((sent_hash IS NOT NULL) <> (state = 'failed')
					OR (state = 'failed')
						<> (coalesce(last_error, '') ~ 'may have been sent, and paid for'))"),
			0,
			"each $content that may have been sent is reported, $of");
		$store->sql("SELECT hrflow_retry('disturbed.embedding')");
		$complete->();
	}

	my $deleted = $store->sql('SELECT count(*) FROM disturbed.picked WHERE is_deleted');
	cmp_ok($deleted, '>', 0, "some ${content}s were deleted while they were fetched, $of");
	is( $store->states,
		$posts
		? 'failed 1, ok ' . ($n + 5 - $deleted)
		: 'failed 1, missing 3, ok ' . ($n + 2 - $deleted),
		"all remaining ${content}s of $n are ok, $of");
	is($store->wrong_vectors("$id !~ '^(novector|missing|fault)'"),
		0, "the remaining ${content}s have the right vectors, $of");
	is( $store->sql(
			"SELECT profile_id, section FROM disturbed.embedding WHERE profile_id ~ '^novector'
				ORDER BY 1"
		),
		"novector-cook|profile\nnovector-nurse|profile",
		"profiles that lack a section have their other vectors, $of") if $content eq 'profile';
	is( $store->sql(
			"SELECT $id, state, http_status FROM disturbed.embedding_profile
				WHERE state IN ('missing', 'failed') ORDER BY 1"
		),
		join("\n",
			'fault:status=403,id=driver|failed|403',
			$posts ? () : map { "missing-$_|missing|400" } 1 .. 3),
		"the other ${content}s are missing or failed, $of");
	$api->reset;

	# Missing profiles are requested again after a minute
	is($store->sql("SELECT count(*) FROM disturbed.claim WHERE state NOT IN ('due', 'missing')"),
		0, "no $content that is ok was claimed, $of");
	my %claims = map { split /\|/ } split /\n/,
	  $store->sql('SELECT profile_id, count(*) FROM disturbed.claim GROUP BY 1');
	is(scalar(keys %claims), $n + @others, "all ${content}s were claimed, $of");
	is( $store->sql(
			'SELECT count(*) FROM disturbed.picked p WHERE NOT is_deleted
		AND (SELECT count(*) FROM disturbed.claim c WHERE c.profile_id = p.profile_id) <= claims
		AND NOT EXISTS (SELECT FROM disturbed.picked d WHERE d.profile_id = p.profile_id
			AND d.is_deleted)'
		),
		0,
		"${content}s that changed while they were fetched were claimed again, $of");

	# Refresh once more, requesting each section separately
	is_deeply(
		[   grep { $asked{$_} > $claims{$_} * (/^novector/ && $content eq 'profile' ? 3 : 1) }
			  keys %asked ],
		[],
		"no $content was requested more often than it was claimed, $of");
	note(scalar(grep { $_ > 1 } values %asked) . ' were asked for more than once');
	$store->sql('DROP SCHEMA disturbed CASCADE');
	return;
}

1;
