# Refreshing a store when something else fails: replies that are wrong for all
# profiles, errors and locks caused by the owner, and limits that are too low.
# Also the memory use of a run, and when profiles are due again.  A regression
# test could see neither the requests that are sent nor other sessions.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use List::Util qw(max sum);
use Test::More;
use Time::HiRes qw(sleep);

# Consecutive failures pause their account, for all sessions if they share
# memory.  So use accounts of their own for tests with failures.
my $api = Hrflow::StandIn->new(
	'--dim' => 64,
	map { ('--key' => $_) } $Hrflow::StandIn::KEY,
	map { Hrflow::Store::key_of($_) } 1 .. 12);
my $node = Hrflow::Node->new('faults', $api, link_hosts => '127.0.0.1', max_attempts => 1);
my $store = Hrflow::Store->new($node, $api, 'shop');

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
	skip 'an instrument uses memory of its own', 1 if $ENV{HRFLOW_INSTRUMENT};
	skip 'only Linux reports the private memory of a process', 1 unless -e "/proc/$$/status";

	my ($call, @early, @late);

	# A busy machine may not allow samples to be taken in time
	for (my $try = 0; $try < 5 && !(@early && @late); $try++)
	{
		my $pid;

		(@early, @late) = ();
		$store->track("SELECT 'nurse-' || i FROM generate_series(1, 3000) i");
		$call = $store->start_call;
		while ($call->{err} !~ /refreshed, / && $call->{process}->pumpable)
		{
			($pid) = $store->backends unless $pid;
			my $requests = $api->stats->{requests};
			push @{ $requests < 3500 ? \@early : \@late }, anonymous_memory($pid)
			  if $pid && $requests > 1500;
			sleep 0.02;
			$call->{process}->pump_nb;
		}
		$store->finish_call($call);
	}
	like($call->{err}, qr/: 3000 refreshed/, 'a run of many batches refreshes all profiles');

	# If the memory of each batch leaked, the growth would be 5 MB.  Fragmentation
	# adds a few hundred kB.
	my $growth = max(@late, 0) - max(@early, 0);
	ok(@early && @late && $growth < 2000, 'later batches use no more memory than the first ones');
	note("$growth kB more: @early / @late");
}

#
# Replies that are wrong for all profiles erase nothing, even in small runs
#
my $nowhere = Hrflow::RawPeer->new(
	sub {
		my ($socket) = @_;
		while (Hrflow::RawPeer::read_request($socket))
		{
			my $body = '{"code": 404, "message": "Profile not found"}';
			print $socket
			  "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: "
			  . length($body)
			  . "\r\n\r\n$body";
		}
	});
my %nowhere = (
	role => 'keeper',
	settings => { 'hrflow_embed.base_url' => 'http://127.0.0.1:' . $nowhere->port . '/v1' });

$store->track("SELECT 'cook-' || i FROM generate_series(1, 15) i");
$store->call;
for my $round (1, 2)
{
	$store->age('5 days');
	$store->hasten('true');
	my @printed = map { $store->call('max_profiles => 3', %nowhere) } 1 .. 5;
	is(scalar(grep { / 3 not found, 0 gone/ } @printed),
		5, "runs of three profiles in round $round find no profile, but none is gone");
	is( scalar(grep { /WARNING/ } @printed),
		$round == 1 ? 0 : 5,
		"runs in round $round warn only if profiles have been missing for days") or diag(@printed);
	like(
		$printed[0],
		qr/WARNING:\ \ .*shop\.embedding\ keeps\ 3\ profiles\ for\ which\ the\ API\ has\ no\ vectors\n
			DETAIL:\ \ No\ other/x,
		"the warning in round $round says why profiles are kept") if $round == 2;
}
is($store->states, 'missing 15', 'profiles that were not found twice are missing');
is($store->wrong_vectors, 0, 'profiles that were not found twice keep their vectors');

# Vectors are also kept in a small store, whose profiles are all refreshed in each run
$store->track("SELECT 'cook-' || i FROM generate_series(1, 5) i");
$store->call;
for (1 .. 3)
{
	$store->age('5 days');
	$store->hasten('true');
	$store->call(undef, %nowhere);
}
is($store->states, 'missing 5',
	'all profiles of a small store are missing, not gone, if the API finds none');
is($store->sql('SELECT count(*) FROM shop.embedding'),
	10, 'a small store keeps its vectors if the API finds no profile');

# Missing profiles are requested again soon at first, then daily, then less often
foreach my $case (
	[ '0', 1 ],
	[ '1 minute', 5 ],
	[ '6 minutes', 30 ],
	[ '36 minutes', 6 * 60 ],
	[ '7 hours', 24 * 60 ],
	[ '3 days', 24 * 60 ],
	[ '8 days', 8 * 24 * 60 ],
	[ '800 days', 30 * 24 * 60 ])
{
	my ($age, $minutes) = @$case;

	$store->sql(
		"UPDATE shop.embedding_profile SET failed_at = now() - interval '$age',
			refreshed_at = now() - interval '$age' - interval '1 day'"
	);
	$store->hasten('true');
	$store->call(undef, %nowhere);
	is( $store->profiles(
			"state, due_at BETWEEN now() + 0.9 * interval '$minutes minutes' - interval '20 seconds'
				AND now() + interval '$minutes minutes'"
		),
		'missing|t',
		"a profile that has been missing for $age is due in $minutes minutes");
}
$store->hasten('true');
like($store->call, qr/: 5 refreshed/, 'missing profiles are refreshed once the API finds them');
is($store->profiles('state, attempts, last_error'),
	'ok|0|', 'profiles that are no longer missing have no attempts and no error');

# A profile deleted from the account is erased if others prove that the API knows
# the source.  Here the others are refreshed in the same run.
sub delete_from_account
{
	$store->sql(
		"UPDATE shop.embedding_profile SET profile_id = 'missing-' || profile_id WHERE $_[0];
		UPDATE shop.embedding SET profile_id = 'missing-' || profile_id WHERE $_[0]");
	return;
}
delete_from_account("profile_id = 'cook-1'");
$store->hasten('true');
$store->call;
$store->hasten('true');
like($store->call, qr/ 1 not found, 0 gone/, 'a profile that is not found twice is missing');
$store->age('4 days');
$store->hasten('true');
like($store->call, qr/: 4 refreshed, .* 1 gone/, 'a profile deleted from the account is gone');
is($store->sql("SELECT count(*) FROM shop.embedding WHERE profile_id ~ 'missing'"),
	0, 'the vectors of a profile deleted from the account are erased');

# Here the others were refreshed after it was found to be missing
delete_from_account("profile_id = 'cook-2'");
$store->hasten("profile_id ~ 'cook-2'");
$store->call;
$store->age('4 days');
$store->hasten("profile_id ~ 'cook-2'");
my $printed = $store->call;
like(
	$printed,
	qr/ 1 not found, 0 gone/,
	'a profile that is not found is kept if no other was refreshed since');
like(
	$printed,
	qr/keeps 1 profile for which the API has no vectors/,
	'a run warns that it keeps a profile that the API does not know');
$store->sql(
	"INSERT INTO shop.embedding_profile (source_id, profile_id) VALUES ('another', 'driver-1')");
$store->call;
$store->hasten("profile_id ~ 'cook-2'");
like(
	$store->call,
	qr/ 1 not found, 0 gone/,
	'a refreshed profile of another source does not prove that a profile is gone');
$store->hasten("profile_id = 'cook-3'");
$store->call;
$store->hasten("profile_id ~ 'cook-2'");
like(
	$store->call,
	qr/ 0 not found, 1 gone/,
	'a profile that is not found is gone once another of its source has been refreshed');

# Profiles refreshed before a profile became missing again prove nothing
$store->sql("SELECT hrflow_mark_due('shop.embedding', 'acme', '{missing-cook-2}')");
like(
	$store->call,
	qr/ 1 not found, 0 gone/,
	'a profile that is marked due after it was gone is missing again at first');
$store->age('4 days');
$store->hasten("profile_id ~ 'cook-2'");
like(
	$store->call,
	qr/ 1 not found, 0 gone/,
	'only profiles refreshed after a profile became missing prove that it is gone');

# A new profile that is not indexed yet, and changes in the meantime
$store->track("SELECT unnest('{missing-1,cook-1}'::text[])");
$store->call;
$store->age('4 days');
$store->sql("UPDATE shop.candidate SET cv = 'new'");
like(
	$store->call,
	qr/: 1 refreshed, .* 1 not found, 0 gone/,
	'a change of its row restarts the time that a profile has been missing');
$store->hasten('true');
like(
	$store->call,
	qr/: 1 refreshed, .* 1 not found, 0 gone/,
	'a profile is not gone until days after its row last changed');

#
# Errors caused by the owner, not by profiles
#
$store->track("SELECT 'cook-' || i FROM generate_series(1, 10) i");
$store->sql("ALTER TABLE shop.embedding_profile ADD CONSTRAINT never CHECK (state <> 'ok')");
foreach my $run (1 .. 6)
{
	like(
		$store->call,
		qr/WARNING:\ .*was\ stopped:\ the\ store\ does\ not\ accept\ the\ states\ of\ .*"never"\n
			DETAIL:\ .*for\ (?:10\ profiles|1\ profile)\ were\ not\ stored,\ .*"attempts".*\n
			HINT:\ .*Check\ the\ constraints\ and\ triggers\ of\ table\ shop\.embedding_profile/x,
		"run $run stops because all states violate a constraint that the owner has added");
	is( $store->profiles("state, attempts, lease_until, due_at < now() + interval '70 seconds'"),
		'due|0||t',
		"run $run, which violates a constraint, counts no attempt and leaves no lease");
	is(sum(values %{ $store->asked }) - 9,
		$run, "run $run requests one profile if the last one could not write any state");
	$store->hasten('true');
}
like(
	$store->call(undef, application => 'pg_cron'),
	qr/ERROR:  55000: .*was stopped: the store does not accept the states/,
	'a job fails if all states violate a constraint');
$store->hasten('true');
$store->sql('ALTER TABLE shop.embedding_profile DROP CONSTRAINT never');
like($store->call, qr/: 10 refreshed/, 'profiles are refreshed once the constraint is dropped');

#
# Many profiles whose requests always fail do not keep the others waiting
#
$store->track("SELECT 'fault:status=500,id=' || i FROM generate_series(1, 300) i");
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id) SELECT 'cook-' || i FROM generate_series(1, 100) i");
$store->change_account;
like(
	$store->call,
	qr/WARNING:  .*was stopped: the API sent no usable reply/,
	'a run stops after a batch of requests that all fail');

# In addition to the requests in flight at the end, those that were in flight when
# the pause of the account began are sent again after it.
cmp_ok(
	$api->stats->{requests},
	'<',
	256 + 4 * 32,
	'a run sends no further batch after one in which all requests fail');
is( $store->profiles(
		"state, attempts, lease_until, due_at BETWEEN now() AND now() + interval '70 seconds'",
		'http_status = 500'),
	'due|0||t',
	'profiles whose requests failed are due a minute later');
like($store->call, qr/: 100 refreshed, \d+ to be retried/, 'the next run refreshes other profiles');

#
# Neither do profiles of a source that the API does not know
#
sub asked_of_unknown
{
	return scalar grep { /source_id=unknown-1/ } split /\n/, $api->get('/log');
}
$store->track("SELECT 'cook-' || i FROM generate_series(1, 100) i");
$store->sql(
	"INSERT INTO shop.embedding_profile (source_id, profile_id, due_at)
		SELECT 'unknown-1', 'p' || i, now() - interval '1 hour' FROM generate_series(1, 2000) i"
);
like(
	$store->call('max_profiles => 100'),
	qr/WARNING:  .*skipping source .* (?!0)\d+ refreshed/s,
	'newer profiles are refreshed by the run that skips an unknown source');
cmp_ok(asked_of_unknown(), '<=', 32,
	'no more profiles of an unknown source are requested than were in flight');
is($store->profiles('attempts, due_at > now()', "source_id = 'unknown-1'"),
	'0|t', 'all profiles of an unknown source are due later');
$api->reset;
$store->call('max_profiles => 100');
is($store->states, 'due 2000, ok 100', 'the next run refreshes the profiles of the known source');
is(asked_of_unknown(), 0, 'the next run requests no profile of an unknown source');

foreach my $age ([ '3 hours', '150 minutes', '3 hours' ], [ '8 days', '21 hours', '1 day' ])
{
	$store->sql("UPDATE shop.embedding_profile SET failed_at = now() - interval '$age->[0]'");
	$store->hasten("source_id = 'unknown-1'");
	$api->reset;
	$store->call;
	is(asked_of_unknown(), 1,
		"one profile of a source that has been unknown for $age->[0] is requested");
	is( $store->profiles(
			"due_at BETWEEN now() + interval '$age->[1]' AND now() + interval '$age->[2]'",
			"source_id = 'unknown-1'"),
		't',
		"a source unknown for $age->[0] is tried again after $age->[1] to $age->[2]");
}
$store->sql(
	"DELETE FROM shop.embedding_profile WHERE profile_id > 'p2';
	UPDATE shop.embedding_profile SET source_id = 'acme' WHERE source_id = 'unknown-1'");
$store->hasten("profile_id ~ '^p'");
like(
	$store->call,
	qr/: (?:[2-9]\d\d|1\d{3}) refreshed/,
	'all profiles of a source are refreshed once the API knows it');

#
# New profiles do not wait for a large number of profiles that are due again
#
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 200) i");
$store->call;
$store->sql("UPDATE shop.embedding_profile SET due_at = now() - interval '1 day'");
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id) SELECT 'cook-' || i FROM generate_series(1, 10) i");
$store->call('max_profiles => 15');
is($store->profiles('state', "profile_id ~ 'cook'"),
	'ok', 'new profiles are fetched before older ones that are due again');
is($store->sql('SELECT count(*) FROM shop.embedding_profile WHERE due_at > now()'),
	15, 'a run with max_profiles also refreshes profiles that are due again');

# Profiles wait longer after each failure
$store->track("SELECT 'fault:status=500,id=' || i FROM generate_series(1, 10) i");
foreach my $age (
	[ '0', '40 seconds', '65 seconds' ],
	[ '8 minutes', '7 minutes', '9 minutes' ],
	[ '2 days', '50 minutes', '61 minutes' ])
{
	$store->sql("UPDATE shop.embedding_profile SET failed_at = now() - interval '$age->[0]'");
	$store->hasten('true');
	$store->change_account;
	$store->call;
	is( $store->profiles(
			"state, attempts,
				due_at BETWEEN now() + interval '$age->[1]' AND now() + interval '$age->[2]'"
		),
		'due|0|t',
		"profiles that first failed $age->[0] ago wait between $age->[1] and $age->[2]");
}

#
# Failures caused by a setting or an argument do not count as attempts
#
foreach my $case (
	[   'links to hosts not in link_hosts', undef,
		'none.example', qr/not in "hrflow_embed\.link_hosts"/ ],
	[ 'unknown fields', qq(fields => '{"profiles": 1}'), '127.0.0.1', qr/HTTP 400/ ])
{
	my ($name, $arguments, $hosts, $says) = @$case;
	foreach my $n (8, 7)
	{
		$store->track("SELECT 'nurse-' || i FROM generate_series(1, $n) i");
		$printed = $store->call($arguments, settings => { 'hrflow_embed.link_hosts' => $hosts });
		if ($n == 8)
		{
			like(
				$printed,
				qr/WARNING:  .*was stopped: all profiles failed in the same way; .*$says/s,
				"a run that fails because of $name stops");
			is( $store->profiles(
					"state, attempts, lease_until,
						due_at BETWEEN now() AND now() + interval '70 seconds'"
				),
				'due|0||t',
				"a run that stops because of $name counts no attempt");
		}
		else
		{
			like(
				$printed,
				qr/: 0 refreshed, 7 to be retried/,
				"a few profiles that fail because of $name will be retried");
		}
	}
}

# Failures for different reasons do
foreach my $case ([ 'different refusals', 'status=422,message=one', 'status=422,message=two' ],
	[ 'refusals and errors', 'status=422', 'status=500' ])
{
	my ($name, @faults) = @$case;

	$store->track(
		"SELECT 'fault:' || f || ',id=' || i
			FROM generate_series(1, 8) i, unnest('{\"$faults[0]\",\"$faults[1]\"}'::text[]) f"
	);
	like(
		$store->call,
		qr/: 0 refreshed, 16 to be retried/,
		"profiles that fail because of $name will be retried");
}

#
# A run stops if its time limit is too low for any request
#
$store->track("SELECT 'fault:latency=10000,id=' || i FROM generate_series(1, 5) i");
like(
	$store->call(
		undef, settings => { 'hrflow_embed.batch_timeout' => '3900ms', statement_timeout => '30s' }
	),
	qr/WARNING:  .*was stopped: the API did not reply within 3900 ms/,
	'a run with a batch_timeout that is too low stops');
is($api->stats->{requests},
	5, 'a run with a batch_timeout that is too low requests each profile once');
is($store->profiles('state, attempts, lease_until, due_at > now()'),
	'due|0||t', 'a run with a batch_timeout that is too low counts no attempt');

# So does a run in a slow outage, in which only a few requests have failed by then
$store->track("SELECT 'fault:status=500,latency=1000,id=' || i FROM generate_series(1, 30) i");
like(
	$store->call(
		undef,
		settings => {
			'hrflow_embed.batch_timeout' => '4500ms',
			'hrflow_embed.max_concurrency' => 1,
			'hrflow_embed.max_attempts' => 1 }),
	qr/WARNING:  .*was stopped: the API sent no usable reply; .*HTTP 500/,
	'a run in a slow outage stops');
cmp_ok($api->stats->{requests}, '<', 8, 'a run in a slow outage stops after a few requests');
is($store->profiles('state, attempts, lease_until, due_at > now()', 'http_status = 500'),
	'due|0||t', 'a run in a slow outage counts no attempt');

# At the end of time_budget, a run waits for the requests in flight
$store->track("SELECT 'fault:latency=4000,id=' || i FROM generate_series(1, 5) i");
$printed = $store->call("time_budget => '3s'");
unlike($printed, qr/WARNING/, 'a run does not warn at the end of time_budget');
like(
	$printed,
	qr/: 5 refreshed/,
	'replies to requests in flight at the end of time_budget are kept');

#
# Errors of the owner's triggers are rethrown unchanged if they are about the server
#
$store->sql(
	q{
	CREATE FUNCTION shop.fail() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		RAISE EXCEPTION 'the owner says no' USING ERRCODE = COALESCE(TG_ARGV[0], 'XX123');
	END $$;
	CREATE FUNCTION shop.sleep() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_sleep(60);
		RETURN NEW;
	END $$;});
$store->track("SELECT 'cook-' || i FROM generate_series(1, 10) i");
my $trigger = "CREATE TRIGGER planted BEFORE UPDATE ON shop.embedding_profile FOR EACH ROW WHEN (%s)
	EXECUTE FUNCTION shop.%s(%s)";
$store->sql(sprintf $trigger, "NEW.state = 'ok'", 'fail', "'58030'");
my $application = Hrflow::Session->new($node);
my $call = $store->start_held(10, $application);
$application->ask('COMMIT;');
$printed = $store->finish_call($call);
like($printed, qr/ERROR:  58030: the owner says no/, "the caller gets the error of a trigger");
like(
	$printed,
	qr/WARNING:\ .*could\ not\ store\ the\ vectors\ fetched\ for\ 10\ profiles\n
		DETAIL:\ \ The\ run\ ended\ before\ they\ were\ written/x,
	'a run that fails because of a trigger warns that all replies are lost');
is($store->profiles('state, attempts, lease_until'),
	'due|0|', 'a run that fails because of a trigger releases its leases');

$store->sql('DROP TRIGGER planted ON shop.embedding_profile');
$store->sql(sprintf $trigger, "NEW.state = 'ok'", 'sleep', '');
like(
	$store->call(undef, role => 'keeper', settings => { statement_timeout => '1s' }),
	qr/ERROR:  57014: canceling statement due to statement timeout/,
	'the caller gets the error of statement_timeout in a trigger');
is($store->profiles('state, attempts, lease_until'),
	'due|0|', 'a run that is canceled in a trigger releases its leases');

$store->sql(
	'DROP TRIGGER planted ON shop.embedding_profile;
	CREATE CONSTRAINT TRIGGER planted AFTER UPDATE ON shop.embedding_profile
		DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW WHEN (NEW.state = $$ok$$) EXECUTE FUNCTION shop.fail()');
$api->reset;
like(
	$store->call,
	qr/ERROR:\ \ 55000:\ .*\n
		DETAIL:\ \ Constraint\ "planted"\ of\ table\ "embedding_profile"\ is\ INITIALLY\ DEFERRED/x,
	'a run refuses a deferred trigger of the owner');
is($api->stats->{requests}, 0, 'a run refuses a deferred trigger before it sends any request');
is($store->profiles('state, attempts, lease_until'),
	'due|0|', 'a run that refuses a deferred trigger leaves no lease');

# The error of a trigger even prevents leases from being released
$store->sql('DROP TRIGGER planted ON shop.embedding_profile');
$store->sql(sprintf $trigger, "OLD.lease_until IS NOT NULL", 'fail', '');
$api->reset;
$api->script('silent', count => 1);
$call = $store->start_call(
	undef,
	role => 'keeper',
	settings => { 'hrflow_embed.max_concurrency' => 1 });
$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
$node->safe_psql('postgres', "SELECT pg_cancel_backend($_)") foreach $store->backends;
$printed = $store->finish_call($call);
like(
	$printed,
	qr/ERROR:  57014: canceling statement/,
	'the caller gets the first error if leases cannot be released');
like(
	$printed,
	qr/WARNING:  XX123: refresh of \S+ could not release leases: the owner says no/,
	'a run warns if leases cannot be released');
is($store->profiles('state', 'lease_until > now()'),
	'due', 'leases that could not be released remain');
$store->sql('DROP TRIGGER planted ON shop.embedding_profile');
$store->hasten('true');
like($store->call, qr/: 10 refreshed/, 'profiles are refreshed once their leases have ended');

#
# Locks held by the application
#
$store->track("SELECT unnest('{cook-1,driver-1,nurse-1}'::text[])");
$api->script('hold=4', count => 3);
$call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 3 }) or die;
$application->ask(
	"SET ROLE keeper; SET deadlock_timeout = '10ms'; BEGIN;
	UPDATE shop.candidate SET cv = 'new' WHERE hrflow_id ~ 'nurse';");
$api->release(4);
like(
	$store->finish_call($call),
	qr/: 2 refreshed/,
	'a run does not wait for rows locked by other sessions');
is( $store->profiles('profile_id, lease_until > now()'),
	"cook-1|\ndriver-1|\nnurse-1|t",
	'a profile locked by another session keeps its lease');
unlike($application->ask("UPDATE shop.candidate SET cv = 'new' WHERE hrflow_id ~ 'cook'; COMMIT;"),
	qr/ERROR/, 'a run does not deadlock with sessions that lock rows');
$store->hasten('true');
like($store->call, qr/: 3 refreshed/, 'a profile that another session had locked is fetched again');

# Releasing leases does not wait for locked rows, either
$store->hasten('true');
$store->sql("UPDATE shop.embedding_profile SET state = 'due'");
$store->sql(sprintf $trigger, "NEW.state = 'ok'", 'fail', "'58030'");
$api->reset;
$api->script('hold=4', count => 3);
$call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 3 }) or die;
$application->ask("BEGIN; UPDATE shop.candidate SET cv = 'newer' WHERE hrflow_id ~ 'nurse';");
$api->release(4);
like(
	$store->finish_call($call),
	qr/ERROR:  58030/,
	'the error of a run is raised while another session still has a row locked');
unlike(
	$application->ask("UPDATE shop.candidate SET cv = 'newer' WHERE hrflow_id ~ 'cook'; COMMIT;"),
	qr/ERROR/, 'other sessions do not wait for leases to be released');
$store->sql('DROP TRIGGER planted ON shop.embedding_profile');

# A lock on the table prevents leases from being released
$store->track("SELECT 'fault:silent,id=cook'");
$call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
$application->ask('BEGIN; LOCK TABLE shop.embedding_profile IN ACCESS EXCLUSIVE MODE;');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($_)") foreach $store->backends;
ok( $node->poll_query_until(
		'postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity
	WHERE query LIKE 'CALL hrflow_refresh%' AND state = 'active')"),
	'a single cancel ends a run whose table is locked');
$application->ask('COMMIT;');
$printed = $store->finish_call($call);
like(
	$printed,
	qr/ERROR:  57014: canceling statement/,
	'a run whose table is locked raises the error of a cancel');
like(
	$printed,
	qr/WARNING:  55P03: refresh of \S+ could not release leases/,
	'a run whose table is locked warns that leases cannot be released');
is($store->profiles('state, lease_until > now()'), 'due|t', 'leases remain if the table is locked');
$application->finish;

#
# The time of a lease begins when the lease is taken
#
$store->track("SELECT 'fault:hold=2,id=cook'");
my $locker = Hrflow::Session->new($node);
$locker->ask('SET ROLE keeper; BEGIN; LOCK TABLE shop.embedding_profile IN SHARE MODE;');
$call =
  $store->start_call(undef, role => 'keeper', settings => { 'hrflow_embed.batch_timeout' => '5s' });
$node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)");
sleep 3;
my ($released) = $locker->ask('SELECT clock_timestamp(); COMMIT;') =~ /^(.*)$/m;
$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
cmp_ok($store->profiles("extract(epoch FROM lease_until - '$released'::timestamptz)"),
	'>', 34, 'a lease is not shortened by waiting for a lock');
$api->release(2);
$store->finish_call($call);

#
# A locked vector does not count as an attempt
#
$store->track("SELECT 'cook-' || i FROM generate_series(1, 2) i");
$store->call;
$store->sql("UPDATE shop.embedding SET vector = '{1}' WHERE profile_id = 'cook-1'");
$store->hasten('true');
$locker->ask("BEGIN; SELECT FROM shop.embedding WHERE profile_id = 'cook-1' FOR UPDATE;");
$printed = $store->call(undef, role => 'keeper', settings => { lock_timeout => '100ms' });
like(
	$printed,
	qr/WARNING:\ .*could\ not\ store\ the\ vectors\ fetched\ for\ 1\ profile\n
		DETAIL:\ \ Other\ sessions\ held\ locks.*:\ 1\ refreshed/sx,
	'a run warns about a vector that is locked until its end, and writes the others');
is( $store->profiles('profile_id, state, attempts, last_error, lease_until > now()'),
	"cook-1|ok|0||t\ncook-2|ok|0||",
	'a run counts no attempt for a locked vector, and leaves the lease');
$locker->ask('COMMIT;');
$store->hasten('true');
like(
	$store->call,
	qr/: 2 refreshed/,
	'a profile whose vector was locked is refreshed once its lease has ended');
$locker->finish;

#
# Leases of other sessions, which expire by themselves
#
$store->track("SELECT 'cook-' || i FROM generate_series(1, 3) i");
$store->sql(
	"UPDATE shop.embedding_profile SET lease_until = now() + CASE profile_id
	WHEN 'cook-1' THEN interval '-1 second' WHEN 'cook-2' THEN interval '1 hour' END");
like($store->call, qr/: 2 refreshed/, 'a profile leased by another session is not refreshed');
is_deeply(
	$store->asked,
	{ 'cook-1' => 1, 'cook-3' => 1 },
	'a profile leased by another session is not requested until the lease ends');
is( $store->sql(
		"SELECT profile_id, state, attempts, lease_until > now() FROM shop.embedding_profile
			ORDER BY 1"
	),
	"cook-1|ok|0|\ncook-2|due|0|t\ncook-3|ok|0|",
	'a profile leased by another session keeps its state');
is($store->sql('SELECT DISTINCT profile_id FROM shop.embedding ORDER BY 1'),
	"cook-1\ncook-3", 'a profile leased by another session has no vector');

# Another session has taken over the lease when the reply arrives, or when the run
# is canceled
foreach my $case ([ 'hold=2', qr/: 0 refreshed, 0 to be retried, 0 failed/ ],
	[ 'silent', qr/57014: canceling statement/ ])
{
	my ($fault, $end) = @$case;

	$store->track("SELECT 'fault:$fault,id=cook'");
	my $call = $store->start_call;
	$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
	$store->sql("UPDATE shop.embedding_profile SET lease_until = now() + interval '1 hour'");
	if ($fault eq 'silent')
	{
		$node->safe_psql('postgres', "SELECT pg_cancel_backend($_)") foreach $store->backends;
	}
	else
	{
		$api->release(2);
	}
	like($store->finish_call($call),
		$end, "a run whose lease was taken over ends as usual ($fault)");
	is( $store->profiles(
			"state, attempts, refreshed_at, http_status,
				lease_until > now() + interval '50 minutes'"
		),
		'due|0|||t',
		"a run whose lease was taken over does not change the profile ($fault)");
	is($store->sql('SELECT count(*) FROM shop.embedding'),
		0, "a run whose lease was taken over writes no vector ($fault)");
}

#
# When a profile is due again
#
foreach my $case ([ undef, 27, 30 ], [ "max_age => '10 days'", 9, 10 ])
{
	my ($arguments, $least, $most) = @$case;

	$store->track("SELECT 'cook-' || i FROM generate_series(1, 20) i");
	like(
		$store->call($arguments, role => 'keeper', settings => { TimeZone => 'UTC' }),
		qr/: 20 refreshed/,
		"profiles that will be due in $least to $most days are fetched");
	my $days = 'extract(epoch FROM due_at - refreshed_at) / 86400';
	is( $store->sql(
			"SELECT min($days) > $least - 0.001
				AND max($days) <= $most, max($days) - min($days) > ($most - $least) / 4.0
			FROM shop.embedding_profile"),
		't|t',
		"profiles are due at different times that are $least to $most days later");
	like(
		$store->call,
		qr/: 0 refreshed/,
		"profiles that will be due in $least to $most days are not due before");
}

# With a max_age of zero, profiles are due at once, but only for the next run
$store->track("SELECT unnest('{cook-1,cook-2,missing-1}'::text[])");
like(
	$store->call("max_age => '0', time_budget => '5 seconds'"),
	qr/: 2 refreshed, .* 1 not found, 0 gone/,
	'a run with a max_age of zero ends after all profiles');
is_deeply(
	$store->asked,
	{ 'cook-1' => 1, 'cook-2' => 1, 'missing-1' => 1 },
	'a run with a max_age of zero requests each profile once');
is($store->states, 'missing 1, ok 2',
	'a run with a max_age of zero sets the state of each profile');
is($store->profiles('due_at <= clock_timestamp()'),
	't', 'a max_age of zero leaves all profiles due');
like(
	$store->call("max_age => '0', time_budget => '5 seconds'"),
	qr/: 2 refreshed, .* 1 not found, 0 gone/,
	'the next run fetches all profiles again after a max_age of zero');

# After each failure, profiles are due later
$store->track("SELECT 'fault:status=500,id=' || i FROM generate_series(1, 7) i");
my $attempt = 0;
foreach my $minutes ([ 0.5, 1 ], [ 2.5, 5 ], [ 12.5, 25 ], [ 62.5, 125 ], [ 12 * 60, 24 * 60 ])
{
	my ($least, $most) = @$minutes;

	# The last case is a later attempt, when the pause has reached its limit of a day
	$attempt = $most == 24 * 60 ? 12 : $attempt + 1;
	$store->sql("UPDATE shop.embedding_profile SET attempts = $attempt - 1");
	$store->hasten;
	$store->change_account;
	like(
		$store->call('max_attempts => 20'),
		qr/: 0 refreshed, 7 to be retried/,
		"attempt $attempt of each profile fails");
	is( $store->profiles(
			"attempts, due_at - failed_at
				BETWEEN interval '$least minutes' - interval '1 second'
				AND interval '$most minutes'"
		),
		"$attempt|t",
		"attempt $attempt is followed by another one $least to $most minutes later");
}

#
# Jobs of pg_cron
#
SKIP:
{
	skip 'pg_cron is not available', 10
	  unless -e $node->config_data('--sharedir') . '/extension/pg_cron.control';
	my $cron = Hrflow::Node->new(
		'jobs', $api,
		shared_preload_libraries => 'pg_cron',
		'cron.database_name' => 'postgres');
	$cron->safe_psql(
		'postgres',
		'CREATE EXTENSION pg_cron; CREATE DATABASE "other db";
		GRANT USAGE ON SCHEMA cron TO PUBLIC;'
	);
	$cron->safe_psql('other db', 'CREATE EXTENSION hrflow_embed');
	my %statement;
	foreach my $database ('postgres', 'other db')
	{
		$cron->safe_psql($database, "SELECT hrflow_create_store('embedding', 'real[]')");
	}
	my $jobs =
	  sub { $cron->safe_psql('postgres', 'SELECT jobname, database FROM cron.job ORDER BY 1') };
	$cron->safe_psql('postgres', "SELECT hrflow_schedule('embedding')");
	my (undef, undef, $error) = $cron->psql('other db', "SELECT hrflow_schedule('embedding')");
	my ($statement) = $error =~ /HINT:  .*, run: (.*;)/;
	$cron->safe_psql('postgres', $statement);
	is( $jobs->(),
		qq{hrflow_refresh "other db".public.embedding|other db\n}
		  . 'hrflow_refresh postgres.public.embedding|postgres',
		'stores with the same name in two databases have separate jobs');

	# Jobs of a store that is renamed or dropped
	$cron->safe_psql(
		'postgres',
		"ALTER TABLE embedding RENAME TO vectors;
			ALTER TABLE embedding_profile RENAME TO vectors_profile;
		SELECT hrflow_schedule('vectors')");
	is( $jobs->(),
		qq{hrflow_refresh "other db".public.embedding|other db\n}
		  . 'hrflow_refresh postgres.public.vectors|postgres',
		'scheduling a renamed store removes the job for its old name');
	$cron->safe_psql(
		'postgres', "SELECT hrflow_create_store('second', 'real[]');
		SELECT hrflow_schedule('second'), hrflow_schedule('vectors')");
	like($jobs->(), qr/public\.second/,
		'scheduling a renamed store keeps the job of another store');
	$cron->safe_psql('postgres', "SELECT hrflow_drop_store('vectors')");
	unlike($jobs->(), qr/vectors/, 'dropping a store removes its job');
	$cron->safe_psql('postgres',
		"ALTER TABLE second RENAME TO third; ALTER TABLE second_profile RENAME TO third_profile;");
	is( $cron->safe_psql(
			'postgres', "SELECT hrflow_unschedule('third'), hrflow_unschedule('third')"),
		't|f',
		'hrflow_unschedule() removes the job for the old name of a store');
	is( $jobs->(),
		qq{hrflow_refresh "other db".public.embedding|other db},
		'hrflow_unschedule() keeps the job of a store in another database');

	# A role without privileges on pg_cron
	$cron->safe_psql(
		'postgres',
		'REVOKE USAGE ON SCHEMA cron FROM PUBLIC; CREATE ROLE keeper;
		CREATE SCHEMA shop AUTHORIZATION keeper;
		GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO keeper');
	$cron->safe_psql(
		'postgres',
		"SET ROLE keeper; SELECT hrflow_create_store('shop.e', 'real[]');
			SELECT hrflow_drop_store('shop.e');
			SELECT hrflow_create_store('shop.f', 'real[]')"
	);
	is($cron->safe_psql('postgres', "SELECT to_regclass('shop.e')"),
		'', 'a role without privileges on pg_cron can drop its store');
	foreach my $function ('hrflow_schedule', 'hrflow_unschedule')
	{
		my (undef, undef, $denied) =
		  $cron->psql('postgres', "SET ROLE keeper; SELECT $function('shop.f')");
		like(
			$denied,
			qr/ERROR:\ \ permission\ denied\ for\ schema\ cron\n
				HINT:\ \ As\ a\ superuser,\ run\ GRANT\ USAGE\ ON\ SCHEMA\ cron\ TO\ keeper\./x,
			"$function() names the privilege on pg_cron that the caller lacks");
	}
	like($cron->error_of("SELECT hrflow_schedule('third', max_age => '-1 day')"),
		qr/^22023/, 'a negative max_age is refused');
}

done_testing();
