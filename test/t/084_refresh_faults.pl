# What a store's refresh does where something beside it is wrong: an answer that
# is wrong for all, an error or a lock of the owner's own, a limit set too low.
# And that its memory stays what it is, and when it asks again.  SQL sees neither
# what is asked nor other sessions.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use List::Util qw(max);
use Test::More;
use Time::HiRes qw(sleep time);

# Failures in a row pause their account, for up to a minute and for all sessions
# where they share memory: what fails has accounts of its own.
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
	skip 'an instrument keeps memory of its own', 1 if $ENV{HRFLOW_INSTRUMENT};
	skip 'Linux tells what is a process\'s own', 1 unless -e "/proc/$$/status";

	$store->track("SELECT 'nurse-' || i FROM generate_series(1, 6000) i");
	my $call = $store->start_call;
	my ($pid, @early, @late);
	for (;;)
	{
		$call->{process}->pump_nb;
		last if $call->{err} =~ /refreshed, / || !$call->{process}->pumpable;
		($pid) = $store->backends unless $pid;
		my $requests = $api->stats->{requests};
		push @{ $requests < 6000 ? \@early : \@late }, anonymous_memory($pid)
		  if $pid && $requests > 1500;
		sleep 0.02;
	}
	like($store->finish_call($call), qr/: 6000 refreshed/, 'many batches are refreshed');

	# Where each batch stays, it is 11 MB; the allocator's is some hundred kB.
	my $growth = max(@late, 0) - max(@early, 0);
	ok(@early && @late && $growth < 2000,
		"later batches take no more memory than the first ones ($growth kB more)");
	note("@early / @late");
}

#
# An answer that is wrong for all erases nothing, however small the runs
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

$store->track("SELECT 'cook-' || i FROM generate_series(1, 30) i");
$store->call;
for my $round (1, 2)
{
	$store->age('5 days');
	$store->hasten('true');
	my @printed = map { $store->call('max_profiles => 3', %nowhere) } 1 .. 10;
	is(scalar(grep { / 3 not found, 0 gone/ } @printed),
		10, "in round $round runs of three profiles find none, and none is gone");
	is( scalar(grep { /WARNING/ } @printed),
		$round == 1 ? 0 : 10,
		"in round $round a profile that is missing for days gives a warning") or diag(@printed);
	like(
		$printed[0],
		qr/WARNING:\ \ .*shop\.embedding\ keeps\ 3\ profiles\ that\ the\ API\ does\ not\ know\n
			DETAIL:\ \ .*no\ other/x,
		"in round $round the warning tells why profiles are kept") if $round == 2;
}
is($store->states, 'missing 30', 'profiles that were not found twice are missing');
is($store->wrong_vectors, 0, 'profiles that were not found twice keep their vectors');

# Nor a small store as a whole
$store->track("SELECT 'cook-' || i FROM generate_series(1, 5) i");
$store->call;
for (1 .. 3)
{
	$store->age('5 days');
	$store->hasten('true');
	$store->call(undef, %nowhere);
}
is($store->states, 'missing 5', 'a small store is missing, not gone, when no profile is found');
is($store->sql('SELECT count(*) FROM shop.embedding'),
	10, 'a small store keeps its vectors when no profile is found');

# They are asked for soon at first, then each day, and then less and less
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
		"a profile missing for $age is due in $minutes minutes");
}
$store->hasten('true');
like($store->call, qr/: 5 refreshed/, 'missing profiles are refreshed once the API finds them');
is($store->profiles('state, attempts, last_error'),
	'ok|0|', 'missing profiles that were found have no attempts and no error left');

# Where the source lives, who was deleted is erased: with others in one run, ...
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
	0, 'a profile deleted from the account loses its vectors');

# ... or alone, where another was refreshed since
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
like($printed, qr/keeps 1 profile that the API/, 'a warning says that a profile is kept');
$store->sql(
	"INSERT INTO shop.embedding_profile (source_id, profile_id) VALUES ('another', 'driver-1')");
$store->call;
$store->hasten("profile_id ~ 'cook-2'");
like(
	$store->call,
	qr/ 1 not found, 0 gone/,
	'a profile of another source does not count as refreshed since');
$store->hasten("profile_id = 'cook-3'");
$store->call;
$store->hasten("profile_id ~ 'cook-2'");
like(
	$store->call,
	qr/ 0 not found, 1 gone/,
	'a profile that is not found is gone once another of its source was refreshed');

# That is of this life only
$store->sql("SELECT hrflow_mark_due('shop.embedding', 'acme', '{missing-cook-2}')");
like(
	$store->call,
	qr/ 1 not found, 0 gone/,
	'a profile that is marked due after it was gone is missing at first');
$store->age('4 days');
$store->hasten("profile_id ~ 'cook-2'");
like($store->call, qr/ 1 not found, 0 gone/, 'only refreshes after a profile became missing count');

# A new one that is not indexed yet, and changes meanwhile
$store->track("SELECT unnest('{missing-1,cook-1}'::text[])");
$store->call;
$store->age('4 days');
$store->sql("UPDATE shop.candidate SET cv = 'new'");
like($store->call, qr/: 1 refreshed, .* 1 not found, 0 gone/, 'a change begins the days anew');
$store->hasten('true');
like(
	$store->call,
	qr/: 1 refreshed, .* 1 not found, 0 gone/,
	'a profile is not gone days after it was new, but days after it has changed');

#
# Errors that are not the profiles' fault
#
$store->track("SELECT 'cook-' || i FROM generate_series(1, 10) i");
$store->sql("ALTER TABLE shop.embedding_profile ADD CONSTRAINT never CHECK (state <> 'ok')");
my @errors = map { $store->call } 1 .. 6;
is(scalar(grep { /ERROR:  23514/ } @errors), 6, "a constraint of the owner's fails every run");
is($store->profiles('state, attempts, lease_until'),
	'due|0|', "a constraint of the owner's counts no attempt and leaves no lease");
$store->sql('ALTER TABLE shop.embedding_profile DROP CONSTRAINT never');
like($store->call, qr/: 10 refreshed/, 'profiles are refreshed once the constraint is dropped');

#
# Many that are never answered do not keep the others waiting
#
$store->track("SELECT 'fault:status=500,id=' || i FROM generate_series(1, 300) i");
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id) SELECT 'cook-' || i FROM generate_series(1, 100) i");
$store->change_account;
like(
	$store->call,
	qr/WARNING:  .*was stopped: nothing was answered/,
	'a batch without any answer stops the run');

# Besides what is in flight at the end: what was in flight when the account's
# pause began is sent again after it.
cmp_ok(
	$api->stats->{requests},
	'<',
	256 + 4 * 32,
	'a batch without any answer is the last of its run, but for what is in flight');
is( $store->profiles(
		"state, attempts, lease_until, due_at BETWEEN now() AND now() + interval '70 seconds'",
		'http_status = 500'),
	'due|0||t',
	'profiles without an answer are due a minute later');
like(
	$store->call,
	qr/: 100 refreshed, \d+ to be tried again/,
	'the next run refreshes other profiles');

#
# Nor do those of a source that the API does not know
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
	qr/WARNING:  .*leaves a source out.* (?!0)\d+ refreshed/s,
	'newer profiles are refreshed in the run that leaves a source out');
cmp_ok(asked_of_unknown(), '<=', 32,
	'no more is asked of an unknown source than what was in flight');
is($store->profiles('attempts, due_at > now()', "source_id = 'unknown-1'"),
	'0|t', 'all profiles of an unknown source have to wait');
$api->reset;
$store->call('max_profiles => 100');
is($store->states, 'due 2000, ok 100', 'the next run refreshes the others');
is(asked_of_unknown(), 0, 'the next run asks nothing of an unknown source');

foreach my $age ([ '3 hours', '150 minutes', '3 hours' ], [ '8 days', '21 hours', '1 day' ])
{
	$store->sql("UPDATE shop.embedding_profile SET failed_at = now() - interval '$age->[0]'");
	$store->hasten("source_id = 'unknown-1'");
	$api->reset;
	$store->call;
	is(asked_of_unknown(), 1,
		"a source that is unknown for $age->[0] is asked for one profile only");
	is( $store->profiles(
			"due_at BETWEEN now() + interval '$age->[1]' AND now() + interval '$age->[2]'",
			"source_id = 'unknown-1'"),
		't',
		"a source unknown for $age->[0] is asked again between $age->[1] and $age->[2] later");
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
# New candidates do not wait for the many that are fetched again
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
	15, 'the rest of a run are those that are due again');

# Longer and longer
$store->track("SELECT 'fault:status=500,id=' || i FROM generate_series(1, 10) i");
foreach my $age (
	[ '0', '50 seconds', '65 seconds' ],
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
		"profiles that failed first $age->[0] ago wait between $age->[1] and $age->[2]");
}

#
# What a setting or an argument makes of all is no profile's fault
#
foreach my $case (
	[   'hosts of links that are not those', undef,
		'none.example', qr/not in hrflow_embed\.link_hosts/ ],
	[ 'fields that there are not', qq(fields => '{"profiles": 1}'), '127.0.0.1', qr/HTTP 400/ ])
{
	my ($name, $arguments, $hosts, $says) = @$case;
	foreach my $n (8, 7)
	{
		$store->track("SELECT 'nurse-' || i FROM generate_series(1, $n) i");
		my $call = $store->start_call(
			$arguments,
			role => 'keeper',
			settings => { 'hrflow_embed.link_hosts' => $hosts });
		$printed = $store->finish_call($call);
		if ($n == 8)
		{
			like(
				$printed,
				qr/WARNING:  .*was stopped: all profiles met the same; .*$says/s,
				"$name end a run");
			is( $store->profiles(
					"state, attempts, lease_until,
						due_at BETWEEN now() AND now() + interval '70 seconds'"
				),
				'due|0||t',
				"$name count no attempt");
		}
		else
		{
			like(
				$printed,
				qr/: 0 refreshed, 7 to be tried again/,
				"$name met by a few profiles alone are retried");
		}
	}
}

# Nor what they meet for reasons of their own
foreach my $case ([ 'different refusals', 'status=422,message=one', 'status=422,message=two' ],
	[ 'refusals and errors', 'status=422', 'status=500' ])
{
	my ($name, @faults) = @$case;

	$store->track(
		"SELECT 'fault:' || f || ',id=' || i
			FROM generate_series(1, 8) i, unnest('{\"$faults[0]\",\"$faults[1]\"}'::text[]) f"
	);
	like($store->call, qr/: 0 refreshed, 16 to be tried again/, "$name are counted as attempts");
}

#
# A limit that is too low for anything ends a run
#
$store->track("SELECT 'fault:latency=2000,id=' || i FROM generate_series(1, 5) i");
my $call = $store->start_call(
	undef,
	role => 'keeper',
	settings => { 'hrflow_embed.batch_timeout' => '200ms', statement_timeout => '10s' });
like(
	$store->finish_call($call),
	qr/WARNING:  .*was stopped: nothing was answered within 200 ms/,
	'a batch_timeout that is too low ends a run');
is($api->stats->{requests},
	5, 'a batch_timeout that is too low lets each profile be requested once');
is($store->profiles('state, attempts, lease_until, due_at > now()'),
	'due|0||t', 'a batch_timeout that is too low counts no attempt');

# However few have failed by then
$store->track("SELECT 'fault:status=500,latency=200,id=' || i FROM generate_series(1, 30) i");
like(
	$store->call(
		undef,
		role => 'keeper',
		settings => {
			'hrflow_embed.batch_timeout' => '1s',
			'hrflow_embed.max_concurrency' => 1,
			'hrflow_embed.max_attempts' => 1 }),
	qr/WARNING:  .*was stopped: nothing was answered; .*HTTP 500/,
	'a slow outage ends a run');
cmp_ok($api->stats->{requests}, '<', 8, 'a slow outage ends a run after a few requests');
is($store->profiles('state, attempts, lease_until, due_at > now()', 'http_status = 500'),
	'due|0||t', 'a slow outage counts no attempt');

# Where its time is the run's, what is in flight is still waited for
$store->track("SELECT 'fault:latency=2000,id=' || i FROM generate_series(1, 5) i");
$printed = $store->call("time_budget => '300ms'");
unlike($printed, qr/WARNING/, 'the end of time_budget gives no warning');
like($printed, qr/: 5 refreshed/, 'what is in flight at the end of time_budget is kept');

#
# What the owner's triggers throw comes as it is
#
$store->sql(
	q{
	CREATE FUNCTION shop.fail() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		RAISE EXCEPTION 'the owner says no' USING ERRCODE = 'XX123';
	END $$;
	CREATE FUNCTION shop.sleep() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_sleep(60);
		RETURN NEW;
	END $$;});
$store->track("SELECT 'cook-' || i FROM generate_series(1, 10) i");
my $trigger = "CREATE TRIGGER planted BEFORE UPDATE ON shop.embedding_profile FOR EACH ROW WHEN (%s)
	EXECUTE FUNCTION shop.%s()";
$store->sql(sprintf $trigger, "NEW.state = 'ok'", 'fail');
$printed = $store->call;
like($printed, qr/ERROR:  XX123: the owner says no/, "the caller sees the error of a trigger");
unlike($printed, qr/WARNING/, 'there is no warning beside the error of a trigger');
is($store->profiles('state, attempts, lease_until'),
	'due|0|', 'the error of a trigger gives the leases back');

$store->sql('DROP TRIGGER planted ON shop.embedding_profile');
$store->sql(sprintf $trigger, "NEW.state = 'ok'", 'sleep');
like(
	$store->call(undef, role => 'keeper', settings => { statement_timeout => '1s' }),
	qr/ERROR:  57014: canceling statement due to statement timeout/,
	'the caller sees a statement_timeout in a trigger');
is($store->profiles('state, attempts, lease_until'),
	'due|0|', 'a statement_timeout in a trigger gives the leases back');

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
	'a deferred trigger of the owner is refused');
is($api->stats->{requests}, 0, 'a deferred trigger of the owner is refused without a request');
is($store->profiles('state, attempts, lease_until'),
	'due|0|', 'the refusal of a deferred trigger leaves no lease');

# Even where they cannot be given back
$store->sql('DROP TRIGGER planted ON shop.embedding_profile');
$store->sql(sprintf $trigger, "OLD.lease_until IS NOT NULL", 'fail');
$printed = $store->call;
like(
	$printed,
	qr/ERROR:  XX123: the owner says no/,
	'the caller sees the first error where leases cannot be given back');
like(
	$printed,
	qr/WARNING:  .*leases could not be given back: the owner says no/,
	'a warning says that leases cannot be given back');
is($store->profiles('state, lease_until > now()'), 'due|t',
	'leases that cannot be given back stay');
$store->sql('DROP TRIGGER planted ON shop.embedding_profile');
$store->hasten('true');
like($store->call, qr/: 10 refreshed/, 'profiles are refreshed once their leases have ended');

#
# Locks of the application's
#
$store->track("SELECT 'fault:latency=1500,id=' || o FROM unnest('{cook,driver,nurse}'::text[]) o");
my $application = Hrflow::Session->new($node);
$call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 3 });
$application->ask(
	"SET ROLE keeper; SET deadlock_timeout = '10ms'; BEGIN;
	UPDATE shop.candidate SET cv = 'new' WHERE hrflow_id ~ 'nurse';");
like(
	$store->finish_call($call),
	qr/: 2 refreshed/,
	'a run does not wait for rows that others have locked');
is( $store->profiles('profile_id, lease_until > now()'),
	"fault:latency=1500,id=cook|\nfault:latency=1500,id=driver|\nfault:latency=1500,id=nurse|t",
	'a profile that others have locked keeps its lease');
unlike($application->ask("UPDATE shop.candidate SET cv = 'new' WHERE hrflow_id ~ 'cook'; COMMIT;"),
	qr/ERROR/, 'a run does not deadlock with those who lock rows');
$store->hasten('true');
like($store->call, qr/: 3 refreshed/, 'a profile that others had locked is fetched again');

# Nor while leases are given back
$store->hasten('true');
$store->sql(
	"ALTER TABLE shop.embedding_profile
		ADD CONSTRAINT never CHECK (state <> 'ok' OR attempts > 0) NOT VALID"
);
$api->reset;
$call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 3 });
$application->ask("BEGIN; UPDATE shop.candidate SET cv = 'newer' WHERE hrflow_id ~ 'nurse';");
my $began = time;
like(
	$store->finish_call($call),
	qr/ERROR:  23514/,
	'an error of the run is raised although a row is locked');
cmp_ok(time - $began, '<', 10, 'an error of the run is raised at once although a row is locked');
unlike(
	$application->ask("UPDATE shop.candidate SET cv = 'newer' WHERE hrflow_id ~ 'cook'; COMMIT;"),
	qr/ERROR/, 'nobody waits for leases to be given back');
$store->sql('ALTER TABLE shop.embedding_profile DROP CONSTRAINT never');

# Nor where they cannot be given back for a lock on the table
$store->track("SELECT 'fault:silent,id=cook'");
$call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 1 });
$application->ask('BEGIN; LOCK TABLE shop.embedding_profile IN ACCESS EXCLUSIVE MODE;');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($_)") foreach $store->backends;
ok( $node->poll_query_until(
		'postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity
	WHERE query LIKE 'CALL hrflow_refresh%' AND state = 'active')"),
	'one cancel ends a run whose table is locked');
$application->ask('COMMIT;');
$printed = $store->finish_call($call);
like(
	$printed,
	qr/ERROR:  57014: canceling statement/,
	'a run whose table is locked raises the cancel');
like(
	$printed,
	qr/WARNING:  55P03: leases could not be given back/,
	'a run whose table is locked warns that leases cannot be given back');
is($store->profiles('state, lease_until > now()'), 'due|t', 'leases stay when the table is locked');
$application->finish;

#
# A lease begins when it is taken
#
$store->track("SELECT 'fault:latency=3000,id=cook'");
my $locker = Hrflow::Session->new($node);
$locker->ask('SET ROLE keeper; BEGIN; LOCK TABLE shop.embedding_profile IN SHARE MODE;');
$call =
  $store->start_call(undef, role => 'keeper', settings => { 'hrflow_embed.batch_timeout' => '5s' });
$node->poll_query_until('postgres', "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)");
sleep 3;
$locker->ask('COMMIT;');
$api->wait_until(sub { $_[0]{requests} >= 1 });
cmp_ok($store->profiles('extract(epoch FROM lease_until - now())'),
	'>', 33, 'a lease is not shortened by waiting for a lock');
$store->finish_call($call);

#
# A lock on a vector is not the profile's fault
#
$store->track("SELECT 'cook-' || i FROM generate_series(1, 2) i");
$store->call;
$store->sql("UPDATE shop.embedding SET vector = '{1}' WHERE profile_id = 'cook-1'");
$store->hasten('true');
$locker->ask("BEGIN; SELECT FROM shop.embedding WHERE profile_id = 'cook-1' FOR UPDATE;");
like(
	$store->call(undef, role => 'keeper', settings => { lock_timeout => '100ms' }),
	qr/ERROR:  55P03: canceling statement due to lock timeout/,
	'a lock timeout fails a run');
is($store->profiles('state, attempts, last_error, lease_until'),
	'ok|0||', 'a lock timeout does not count as an attempt');
$locker->ask('COMMIT;');
like(
	$store->call,
	qr/: 1 refreshed/,
	'a profile whose vector was locked is refreshed by the next run');
$locker->finish;

#
# A lease ends by itself, and is one session's
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

# Another one has it by the time the answer comes, or the run is cancelled
foreach my $case ([ 'latency=1500', qr/: 0 refreshed, 0 to be tried again, 0 failed/ ],
	[ 'silent', qr/57014: canceling statement/ ])
{
	my ($fault, $end) = @$case;

	$store->track("SELECT 'fault:$fault,id=cook'");
	my $call = $store->start_call;
	$api->wait_until(sub { $_[0]{requests} >= 1 });
	$store->sql("UPDATE shop.embedding_profile SET lease_until = now() + interval '1 hour'");
	if ($fault eq 'silent')
	{
		$node->safe_psql('postgres', "SELECT pg_cancel_backend($_)") foreach $store->backends;
	}
	like($store->finish_call($call), $end, "$fault: a run whose lease was taken over ends");
	is( $store->profiles(
			"state, attempts, refreshed_at, http_status,
				lease_until > now() + interval '50 minutes'"
		),
		'due|0|||t',
		"$fault: a run whose lease was taken over leaves the profile alone");
	is($store->sql('SELECT count(*) FROM shop.embedding'),
		0, "$fault: a run whose lease was taken over writes no vector");
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
		"20 profiles to be due in $least to $most days are fetched");
	my $days = 'extract(epoch FROM due_at - refreshed_at) / 86400';
	is( $store->sql(
			"SELECT min($days) > $least - 0.001
				AND max($days) <= $most, max($days) - min($days) > ($most - $least) / 4.0
			FROM shop.embedding_profile"),
		't|t',
		"profiles are due at different times, $least to $most days later");
	like(
		$store->call,
		qr/: 0 refreshed/,
		"profiles to be due in $least to $most days are not due before");
}

# At once, where max_age is nothing: by the next run, not the same
$store->track("SELECT unnest('{cook-1,cook-2,missing-1}'::text[])");
like(
	$store->call("max_age => '0', time_budget => '5 seconds'"),
	qr/: 2 refreshed, .* 1 not found, 0 gone/,
	'a run with a max_age of zero ends');
is_deeply(
	$store->asked,
	{ 'cook-1' => 1, 'cook-2' => 1, 'missing-1' => 1 },
	'a run with a max_age of zero requests each profile once');
is($store->states, 'missing 1, ok 2', 'a run with a max_age of zero leaves its states');
is($store->profiles('due_at <= clock_timestamp()'),
	't', 'a max_age of zero leaves all profiles due');
like(
	$store->call("max_age => '0', time_budget => '5 seconds'"),
	qr/: 2 refreshed, .* 1 not found, 0 gone/,
	'the next run fetches all profiles again after a max_age of zero');

# After a failure later and later
$store->track("SELECT 'fault:status=500,id=' || i FROM generate_series(1, 7) i");
my $attempt = 0;
foreach my $minutes ([ 0.5, 1 ], [ 2.5, 5 ], [ 12.5, 25 ], [ 62.5, 125 ], [ 12 * 60, 24 * 60 ])
{
	my ($least, $most) = @$minutes;

	# The last time after many more, of which a day is the end
	$attempt = $most == 24 * 60 ? 12 : $attempt + 1;
	$store->sql("UPDATE shop.embedding_profile SET attempts = $attempt - 1");
	$store->hasten;
	$store->change_account;
	like(
		$store->call('max_attempts => 20'),
		qr/: 0 refreshed, 7 to be tried again/,
		"attempt $attempt fails");
	is( $store->profiles(
			"attempts, due_at - failed_at
				BETWEEN interval '$least minutes' - interval '1 second'
				AND interval '$most minutes'"
		),
		"$attempt|t",
		"attempt $attempt is followed by another $least to $most minutes later");
}

#
# Jobs of pg_cron
#
SKIP:
{
	skip 'pg_cron is not to be had', 8
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
		'stores of one name in two databases have a job each');

	# Of a store that is renamed, or dropped
	$cron->safe_psql(
		'postgres',
		"ALTER TABLE embedding RENAME TO vectors;
			ALTER TABLE embedding_profile RENAME TO vectors_profile;
		SELECT hrflow_schedule('vectors')");
	is( $jobs->(),
		qq{hrflow_refresh "other db".public.embedding|other db\n}
		  . 'hrflow_refresh postgres.public.vectors|postgres',
		'the job of the old name is removed when a renamed store is scheduled');
	$cron->safe_psql(
		'postgres', "SELECT hrflow_create_store('second', 'real[]');
		SELECT hrflow_schedule('second'), hrflow_schedule('vectors')");
	like($jobs->(), qr/public\.second/,
		'the job of another store stays when a renamed store is scheduled');
	$cron->safe_psql('postgres', "SELECT hrflow_drop_store('vectors')");
	unlike($jobs->(), qr/vectors/, 'dropping a store removes its job');
	$cron->safe_psql('postgres',
		"ALTER TABLE second RENAME TO third; ALTER TABLE second_profile RENAME TO third_profile;");
	is( $cron->safe_psql(
			'postgres', "SELECT hrflow_unschedule('third'), hrflow_unschedule('third')"),
		't|f',
		'hrflow_unschedule() removes the job of the old name');
	is( $jobs->(),
		qq{hrflow_refresh "other db".public.embedding|other db},
		'hrflow_unschedule() keeps the job of the other database');

	# A role that has no right on pg_cron drops its store all the same
	$cron->safe_psql(
		'postgres',
		'REVOKE USAGE ON SCHEMA cron FROM PUBLIC; CREATE ROLE keeper;
		CREATE SCHEMA shop AUTHORIZATION keeper;
		GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO keeper');
	$cron->safe_psql(
		'postgres',
		"SET ROLE keeper; SELECT hrflow_create_store('shop.e', 'real[]');
			SELECT hrflow_drop_store('shop.e')"
	);
	is($cron->safe_psql('postgres', "SELECT to_regclass('shop.e')"),
		'', 'a role without rights on pg_cron can drop a store');
	like($cron->error_of("SELECT hrflow_schedule('third', max_age => '-1 day')"),
		qr/^22023/, 'a negative max_age is refused');
}

done_testing();
