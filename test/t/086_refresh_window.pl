# What was paid for is kept: a refresh writes as it goes, and what has arrived is
# written whatever ends the run.  And no profile waits for another's answer.  SQL
# sees neither what is asked nor other sessions, and cannot end a run.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;
use Time::HiRes qw(sleep time);

my $api = Hrflow::StandIn->new('--latency' => 20, '--dim' => 64);
my $node = Hrflow::Node->new(
	'window', $api,
	link_hosts => '127.0.0.1',
	max_attempts => 1,
	request_timeout => '5s');
my $store = Hrflow::Store->new($node, $api, 'shop');
my $slow_api = Hrflow::StandIn->new('--latency' => 200, '--dim' => 64);
my %slow = ('hrflow_embed.base_url' => $slow_api->base_url);

# The API's requests, not those for links
sub paid
{
	my ($from) = @_;
	return scalar(() = $from->get('/log') =~ /profile_id=/g);
}

# The profiles that the API had answered by then, by its own clock
sub answered
{
	my ($from, $until) = @_;
	return map { $_->{query} =~ /profile_id=([^&]+)/ ? $1 : () }
	  grep { $_->{ms} <= $until } $from->log;
}

#
# Profiles that are never answered hold no other profile up
#
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 2040) i");
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id)
	SELECT 'fault:silent,id=' || i FROM generate_series(1, 8) i;
	UPDATE shop.embedding_profile SET due_at = now() - interval '1 hour'
		WHERE profile_id ~ 'silent'");
my $began = time;
my $call = $store->start_call;
$node->poll_query_until('postgres',
	"SELECT count(*) = 2040 FROM shop.embedding_profile WHERE state = 'ok'");
my $took = time - $began;
my $printed = $store->finish_call($call);

# One after another they would take 40 s.
cmp_ok(time - $began, '<', 30, 'eight profiles that are never answered wait at the same time');
like(
	$printed,
	qr/: 2040 refreshed, 8 to be tried again/,
	'profiles that are never answered are tried again, and the others refreshed');
note("2040 of 2048 profiles were refreshed after $took s");

#
# A limit that comes again and again
#
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 500) i");
like(
	$store->call(undef, role => 'keeper', settings => { %slow, statement_timeout => '1500ms' }),
	qr/ERROR:  57014: canceling statement due to statement timeout/,
	'statement_timeout ends a run with its error');
cmp_ok($store->refreshed, '>', 0, 'what was fetched before statement_timeout is written');
is($store->profiles('attempts, lease_until'),
	'0|', 'statement_timeout leaves no lease and no attempt');

$store->track("SELECT 'nurse-' || i FROM generate_series(1, 200) i");
$slow_api->reset;
foreach my $run (1 .. 3)
{
	$store->call("time_budget => '300ms'", role => 'keeper', settings => \%slow);
	is(paid($slow_api), $store->refreshed,
		"nothing that was paid for is lost to time_budget in run $run");
}

SKIP:
{
	skip 'transaction_timeout came with PostgreSQL 17', 2
	  if $node->safe_psql('postgres', 'SHOW server_version_num') < 170000;
	$store->track("SELECT 'nurse-' || i FROM generate_series(1, 300) i");
	$slow_api->reset;
	like(
		$store->call(undef, role => 'keeper', settings => { %slow, transaction_timeout => '1s' }),
		qr/: 300 refreshed/,
		'no transaction of a run lasts as long as transaction_timeout');
	is(paid($slow_api), 300, 'transaction_timeout costs no request');
}

#
# Cancels at random, and the end of the session
#
my $rounds = $ENV{HRFLOW_CANCELS} // 10;
foreach my $function ('pg_cancel_backend', 'pg_terminate_backend')
{
	my ($lost, $paid, $ended) = (0, 0, 0);

	foreach my $round (1 .. $rounds)
	{
		$store->track("SELECT 'nurse-' || i FROM generate_series(1, 3000) i");
		my $call = $store->start_call(undef, settings => { 'hrflow_embed.max_concurrency' => 32 });
		$api->wait_until(sub { $_[0]{requests} >= 1 });
		sleep rand 0.5;

		# An answer takes 20 ms, and the run waits 100 ms for it, in which a busy
		# machine can take 32 of them with their vectors.  Where it takes longer,
		# only those count that came in time.
		my $until = $api->stats->{now} + 50;
		$node->safe_psql('postgres', "SELECT $function($_)") foreach $store->backends;
		my $printed = $store->finish_call($call);
		$ended++ if $printed =~ /57014|57P01/;

		my %kept = map { $_ => 1 } split /\n/,
		  $store->sql(
			'SELECT profile_id FROM shop.embedding_profile WHERE refreshed_at IS NOT NULL');
		my @answered = answered($api, $until);
		$paid += @answered;
		$lost += grep { !$kept{$_} } @answered;
	}
	cmp_ok($ended, '>', 0, "$function() ends runs with its error");
	is($lost, 0, "no answer is lost to $function()");
	note("$lost of $paid answers were lost to $ended calls of $function()");
}

#
# A client that is gone
#
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 3000) i");
my $lost_call = $store->start_call(
	undef,
	role => 'keeper',
	settings => { client_connection_check_interval => '1s', 'hrflow_embed.max_concurrency' => 4 });
$api->wait_until(sub { $_[0]{requests} >= 1 });
$lost_call->{process}->kill_kill(grace => 0.1);
my $is_gone = $node->poll_query_until('postgres',
	"SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'CALL hrflow_refresh%'");
ok($is_gone, 'a run ends whose client is gone');
cmp_ok($store->refreshed, '<', 3000, 'a run whose client is gone ends before all is fetched');
is(paid($api), $store->refreshed, 'no answer is lost where the client is gone');
is($store->profiles('lease_until'), '', 'a run whose client is gone leaves no lease');

#
# Cancels that come again and again
#
my $ended = 0;
foreach my $round (1 .. $rounds)
{
	$store->track("SELECT 'fault:silent,id=' || i FROM generate_series(1, 200) i");
	my $call = $store->start_call;
	$api->wait_until(sub { $_[0]{requests} >= 8 });
	my ($backend) = $store->backends;
	my $until = time + 0.3;
	kill 'INT', $backend while time < $until;
	my $has_ended = $node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $backend AND state = 'active'");
	kill 'KILL', $backend unless $has_ended;
	$ended++ if $store->finish_call($call) =~ /57014/ && $has_ended;
}
is($ended, $rounds, 'every run that is cancelled again and again ends with the error of a cancel');

#
# A profile that changes all the time
#
$store->track("SELECT 'fault:latency=400,id=cook'");
my $writer = Hrflow::Session->new($node);
$writer->ask('SET ROLE keeper;');
$began = time;
while (time - $began < 4)
{
	my $call = $store->start_call;
	while ($call->{err} !~ /refreshed, / && $call->{process}->pumpable)
	{
		$writer->ask("UPDATE shop.candidate SET cv = coalesce(cv, '') || 'x';");
		$call->{process}->pump_nb;
		sleep 0.1;
	}
	$store->finish_call($call);
}
is(paid($api), 1, 'a profile that changes all the time is paid for once a minute');
is($store->sql('SELECT count(*) FROM shop.embedding'), 2, 'its vectors are kept');
is($store->profiles("state, due_at BETWEEN now() AND now() + interval '60 seconds'"),
	'due|t', 'and it is due again within the minute');
$writer->finish;

#
# A change does not send a profile to the back
#
$store->track("SELECT 'cook-' || i FROM generate_series(1, 10) i");
$store->sql(
	"UPDATE shop.embedding_profile SET due_at = now() - interval '1 hour'
		WHERE profile_id = 'cook-5';
	UPDATE shop.candidate SET cv = 'new' WHERE hrflow_id = 'cook-5';
	SELECT hrflow_mark_due('shop.embedding', 'acme', '{cook-5}')");
like($store->call('max_profiles => 1'), qr/: 1 refreshed/, 'a run of one profile');
is($store->sql("SELECT state FROM shop.embedding_profile WHERE profile_id = 'cook-5'"),
	'ok', 'fetches the one that is due longest, though it has changed since');

#
# A due_at that is set during the fetch
#
$store->track("SELECT 'fault:latency=1000,id=cook'");
$call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 1 });
$store->sql('UPDATE shop.embedding_profile SET due_at = now()');
$store->finish_call($call);
is($store->profiles("state, due_at < now() + interval '2 minutes'"),
	'due|t', 'a due_at that is set while the profile is fetched is not lost');

#
# A profile that the application has locked, for four seconds and for good
#
$store->track("SELECT 'fault:latency=1000,id=cook'");
my $application = Hrflow::Session->new($node);
$call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 1 });
$application->ask(
	'SET ROLE keeper; BEGIN; SELECT FROM shop.embedding_profile FOR UPDATE; SELECT pg_sleep(4);
	COMMIT;');
like(
	$store->finish_call($call),
	qr/: 1 refreshed/,
	'a run waits at its end for the lock of a profile to be released');

$store->track("SELECT 'fault:latency=1000,id=cook'");
$call = $store->start_call('max_attempts => 1');
$api->wait_until(sub { $_[0]{requests} >= 1 });
$application->ask('BEGIN; SELECT FROM shop.embedding_profile FOR UPDATE;');
$printed = $store->finish_call($call);
$application->ask('COMMIT;');
like(
	$printed,
	qr/WARNING:\ .*could\ not\ store\ what\ was\ fetched\ for\ 1\ profile\n
		DETAIL:\ .*No\ attempt\ was\ counted/x,
	'a run warns of a profile that was locked until its end');
is($store->profiles('state, attempts'),
	'due|0', 'a profile that is locked when it is to be written does not fail');
$application->finish;

#
# What is claimed for nothing
#
$store->track("SELECT 'cook-' || i FROM generate_series(1, 64) i");
$store->sql(
	'CREATE FUNCTION shop.unlease() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		NEW.lease_until := NULL;
		RETURN NEW;
	END $$;
	CREATE TRIGGER unlease BEFORE UPDATE ON shop.embedding_profile
		FOR EACH ROW EXECUTE FUNCTION shop.unlease()');
like(
	$store->call,
	qr/nothing of what is fetched is kept/,
	'a run stops that claims profiles whose leases are undone');
$store->sql('DROP TRIGGER unlease ON shop.embedding_profile');

#
# Links that do not work
#
$store->track("SELECT 'fault:v.status=403,id=' || i FROM generate_series(1, 12) i");
like(
	$store->call,
	qr/was stopped: all profiles met the same|12 to be tried again/,
	'a run in which no link works is stopped');
is($store->profiles('state, attempts'), 'due|1', 'links that do not work count as attempts');

#
# Some whose links never work, beside others: they are given up, however many runs
# there are
#
$store->track("SELECT 'fault:v.status=403,id=' || i FROM generate_series(1, 30) i");
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id) SELECT 'nurse-' || i FROM generate_series(1, 10) i");
foreach (1 .. 8)
{
	$store->call("fields => '{\"profile\": 1}'");
	$store->hasten("due_at IS NOT NULL");
}
is($store->states, 'failed 30, ok 10',
	'profiles whose links never work are given up beside others');
my $asked = $store->asked;
is(scalar(grep { /403/ && $asked->{$_} > 5 } keys %$asked),
	0, 'a profile whose link never works is requested max_attempts times at most');

#
# A snapshot that is held elsewhere keeps the versions of rows and their entries in
# indexes that were claimed already: a claim does not read them again and again.
# Once a second one does, since something may be due there again.
#
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 4000) i");
my $holder = Hrflow::Session->new($node);
$holder->ask('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM shop.candidate;');
my $explained = $store->call(
	undef,
	settings => {
		session_preload_libraries => 'auto_explain',
		'auto_explain.log_min_duration' => 0,
		'auto_explain.log_nested_statements' => 'on',
		'auto_explain.log_analyze' => 'on',
		'auto_explain.log_buffers' => 'on',
		'auto_explain.log_timing' => 'off',
		'auto_explain.log_level' => 'notice',
		'hrflow_embed.max_concurrency' => 32 });
my @buffers;
foreach my $plan (split /^(?=NOTICE:)/m, $explained)
{
	push @buffers, $2
	  if $plan =~ /Query Text: WITH claimed.*?actual rows=(\d+).*?Buffers: shared hit=(\d+)/s
	  && $1 >= 32;
}
$holder->finish;
like($explained, qr/: 4000 refreshed/, 'a run refreshes all while an old snapshot is held');
cmp_ok(scalar(@buffers), '>=', 40, 'claims of a run were explained');
my ($first, $last) =
  map {
	(sort { $a <=> $b } @$_)[ @$_ / 2 ]
  }[ @buffers[ 0 .. 14 ] ], [ @buffers[ -15 .. -1 ] ];
cmp_ok($last, '<', 2 * $first,
	'a claim reads no more while an old snapshot keeps what was claimed before');
note("a claim reads $first buffers at first, and $last at last");

#
# How much is claimed at a time: 64 profiles where as many are soon asked for.  The
# rate is of an account of its own.
#
my $limited_api = Hrflow::StandIn->new('--dim' => 64);
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 300) i");
$store->sql('DELETE FROM shop.claim');
$store->call(
	"time_budget => '500ms'",
	settings => {
		'hrflow_embed.base_url' => $limited_api->base_url,
		'hrflow_embed.max_requests_per_minute' => 5 });
cmp_ok(
	$store->sql('SELECT count(*) FROM shop.claim'),
	'<',
	32 + 2 * 5,
	'a run that may send five requests a minute claims five profiles at a time');

# A limit that comes again and again, while the rate does not let a batch come
foreach my $run (1 .. 3)
{
	$store->track("SELECT 'nurse-$run-' || i FROM generate_series(1, 300) i");
	$limited_api->reset;
	like(
		$store->call(
			undef,
			role => 'keeper',
			settings => {
				'hrflow_embed.base_url' => $limited_api->base_url,
				'hrflow_embed.max_requests_per_minute' => 600,
				statement_timeout => '1500ms' }),
		qr/57014/,
		"statement_timeout ends run $run, which waits for the rate");
	is(paid($limited_api), $store->refreshed,
		"nothing that was paid for is lost where run $run waits for the rate");
}

$store->track("SELECT 'nurse-' || i FROM generate_series(1, 300) i");
$slow_api->reset;
$store->hasten;
$store->call(undef, settings => { %slow, 'hrflow_embed.max_concurrency' => 100 });
is($store->states, 'ok 300', 'a run with 100 requests in flight refreshes all profiles');
cmp_ok($slow_api->stats->{max_in_flight},
	'>', 80, 'a run keeps nearly as many requests in flight as max_concurrency allows');

done_testing();
