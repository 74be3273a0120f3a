# A refresh keeps what was paid for: it stores replies continually, and stores all
# that have arrived when the run is ended, for whatever reason.  Also, no profile
# waits for the reply for another one.  A regression test could see neither the
# requests that are sent nor other sessions, and could not end a run.
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
	request_timeout => '30s');
my $store = Hrflow::Store->new($node, $api, 'shop');
my $slow_api = Hrflow::StandIn->new('--latency' => 200, '--dim' => 64);
my %slow = ('hrflow_embed.base_url' => $slow_api->base_url);

# Return the number of requests to the API, without those for links
sub paid
{
	my ($from) = @_;
	return scalar(() = $from->get('/log') =~ /profile_id=/g);
}

my $application = Hrflow::Session->new($node);
$application->ask('SET ROLE keeper;');

# Return the profiles for which the API had replied, and sent both vectors, by a time of
# its own clock
sub answered
{
	my ($from, $until) = @_;
	my %replies;

	foreach my $request (grep { $_->{ms} <= $until } $from->log)
	{
		$replies{$1}++
		  if "$request->{path}?$request->{query}" =~ m{(?:profile_id=|/profiles/)([\w-]+)};
	}
	return grep { $replies{$_} >= 3 } keys %replies;
}

# Return how many replies were lost by a run that "end" starts and ends.  As the run
# waits only 100 ms for requests in flight, it may lose some on a busy machine, so try
# up to twenty times to lose none.
sub lost_replies
{
	my ($from, $end) = @_;
	my $lost;

	foreach my $try (1 .. 20)
	{
		$from->reset;
		$end->();
		$lost = paid($from) - $store->refreshed;
		last if $lost == 0;
		note("try $try lost $lost replies");
	}
	return $lost;
}

#
# Profiles for which no reply arrives do not hold up others.  The run ends before they
# are due again.
#
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 500) i");
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id)
	SELECT 'fault:silent,id=' || i FROM generate_series(1, 8) i;
	UPDATE shop.embedding_profile SET due_at = now() - interval '1 hour'
		WHERE profile_id ~ 'silent'");
my $began = time;
my $call = $store->start_call(undef, settings => { 'hrflow_embed.request_timeout' => '20s' });
$node->poll_query_until('postgres',
	"SELECT count(*) = 500 FROM shop.embedding_profile WHERE state = 'ok'")
  or die;
my $took = time - $began;
is($api->stats->{in_flight},
	8, 'a run waits at the same time for eight profiles for which no reply arrives');
my $printed = $store->finish_call($call);
like(
	$printed,
	qr/: 500 refreshed, 8 to be retried/,
	'profiles for which no reply arrives are retried, and all others are refreshed');
note("500 of 508 profiles were refreshed after $took s");

#
# Time limits that end a run repeatedly
#
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 4000) i");
like(
	$store->call(undef, role => 'keeper', settings => { %slow, statement_timeout => '5s' }),
	qr/ERROR:  57014: canceling statement due to statement timeout/,
	'statement_timeout ends a run with its error');
cmp_ok($store->refreshed, '>', 0, 'vectors fetched before statement_timeout are stored');
is($store->profiles('attempts, lease_until'),
	'0|', 'a run that is ended by statement_timeout leaves no lease and counts no attempt');

$store->track("SELECT 'nurse-' || i FROM generate_series(1, 200) i");
$slow_api->reset;
foreach my $run (1 .. 3)
{
	$store->call("time_budget => '300ms'", role => 'keeper', settings => \%slow);
	is(paid($slow_api), $store->refreshed,
		"all replies in run $run are stored although time_budget ends it");
}

SKIP:
{
	skip 'transaction_timeout was added in PostgreSQL 17', 2
	  if $node->safe_psql('postgres', 'SHOW server_version_num') < 170000;

	# A write that begins half a second too late on a busy machine exceeds the timeout, too
	my $printed;
	foreach my $try (1 .. 5)
	{
		$store->track("SELECT 'nurse-' || i FROM generate_series(1, 300) i");
		$slow_api->reset;
		$printed =
		  $store->call(undef, role => 'keeper', settings => { %slow, transaction_timeout => '1s' });
		last if $printed =~ /: 300 refreshed/;
		note("try $try: $printed");
	}
	like(
		$printed,
		qr/: 300 refreshed/,
		'transactions of a run do not last long enough for transaction_timeout');
	is(paid($slow_api), 300, 'no request is sent twice because of transaction_timeout');
}

#
# Sessions that are canceled or terminated at random times
#
my $rounds = $ENV{HRFLOW_CANCELS} // 10;
foreach my $function ('pg_cancel_backend', 'pg_terminate_backend')
{
	my ($lost, $paid, $ended) = (0, 0, 0);

	foreach my $round (1 .. $rounds)
	{
		$store->track("SELECT 'nurse-' || i FROM generate_series(1, 3000) i");
		my $call = $store->start_call(undef, settings => { 'hrflow_embed.max_concurrency' => 32 });
		$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
		sleep rand 0.5;

		# A run waits 100 ms for the requests in flight.  Even on a busy machine, it can
		# read in that time what had been sent before half of it has passed.
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
	cmp_ok($ended, '>', 0, "$function() ends a run with its error");
	is($lost, 0, "all replies are stored although $function() ends the run");
	note("$lost of $paid answers were lost to $ended calls of $function()");
}

# Replies that arrive just after that.  Those of the API are there when the process, which
# is stopped until then, notices the signal.  As the run then waits only 100 ms for the links,
# try up to twenty times.
my $quick_api = Hrflow::StandIn->new('--dim' => 64);
foreach my $signal ('INT', 'TERM')
{
	my $kept = 0;

	for (my $try = 0; $try < 20 && $kept < 4; $try++)
	{
		$store->track("SELECT 'nurse-' || i FROM generate_series(1, 4) i");
		$quick_api->reset;
		$quick_api->script('hold=5', count => 4);
		my $call = $store->start_call(undef,
			settings => { 'hrflow_embed.base_url' => $quick_api->base_url });
		$quick_api->wait_until(sub { $_[0]{requests} >= 4 }) or die;
		my ($backend) = $store->backends;
		kill 'STOP', $backend;
		kill $signal, $backend;
		$quick_api->release(5);
		$quick_api->wait_until(sub { $quick_api->log >= 5 }) or die;
		kill 'CONT', $backend;
		$store->finish_call($call);
		$kept = $store->refreshed;
	}
	is($kept, 4, "replies that arrive just after SIG$signal are stored");
}

#
# A client that has been killed
#
sub wait_for_end
{
	return $node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'CALL hrflow_refresh%'");
}

my $has_ended;
my $lost = lost_replies(
	$api,
	sub {
		$store->track("SELECT 'nurse-' || i FROM generate_series(1, 3000) i");
		my $call = $store->start_call(
			undef,
			role => 'keeper',
			settings => {
				client_connection_check_interval => '1s',
				'hrflow_embed.max_concurrency' => 4 });
		$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
		$call->{process}->kill_kill(grace => 0.1);
		$has_ended = wait_for_end();
	});
ok($has_ended, 'a run ends if its client is gone');
cmp_ok($store->refreshed, '<', 3000,
	'a run whose client is gone ends before all profiles are fetched');
is($lost, 0, 'all replies are stored although the client is gone');
is($store->profiles('lease_until'), '', 'a run whose client is gone leaves no lease');

#
# A client that has been killed, and a trigger that sends messages to it
#
foreach my $table ('embedding', 'embedding_profile')
{
	$store->sql(
		qq{CREATE OR REPLACE FUNCTION shop.tell() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			RAISE NOTICE 'the owner tells something';
			RETURN NULL;
		END \$\$;
		CREATE TRIGGER tell AFTER INSERT OR UPDATE ON shop.$table FOR EACH ROW
			EXECUTE FUNCTION shop.tell()});
	$lost = lost_replies(
		$api,
		sub {
			$store->track("SELECT 'nurse-' || i FROM generate_series(1, 3000) i");
			my $call =
			  $store->start_call(undef, settings => { 'hrflow_embed.max_concurrency' => 4 });
			$api->wait_until(sub { $_[0]{requests} > 32 }) or die;
			$call->{process}->kill_kill(grace => 0.1);
			wait_for_end();
		});
	cmp_ok($store->refreshed, '<', 3000, 'a run ends before its trigger sends all messages');
	is($lost, 0, "all replies are stored although the client of a trigger of $table is gone");
	is($store->profiles('lease_until'), '', "a run with a trigger of $table leaves no lease");
	like(
		$store->call('max_profiles => 1'),
		qr/NOTICE: .*the owner tells something/,
		"a client that is there receives messages of a trigger of $table");
	$store->sql("DROP TRIGGER tell ON shop.$table");
}

#
# A client that has been killed, which a run notices when it reports its progress,
# just before it claims a profile
#
my $lost_api = Hrflow::StandIn->new('--latency' => 20, '--dim' => 64);
$lost = lost_replies(
	$lost_api,
	sub {
		$store->track("SELECT 'nurse-' || i FROM generate_series(1, 3000) i");
		my $call = $store->start_call(
			'batch_size => 1',
			settings => {
				'hrflow_embed.base_url' => $lost_api->base_url,
				'hrflow_embed.max_concurrency' => 4 });
		$lost_api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
		$call->{process}->kill_kill(grace => 0.1);
		wait_for_end();
	});
cmp_ok($store->refreshed, '<', 3000,
	'a run that cannot report its progress ends before all profiles are fetched');
is($lost, 0, 'all replies are stored although the client is gone when progress is reported');
is($store->profiles('lease_until'), '', 'a run that cannot report its progress leaves no lease');
is($store->sql('SELECT stop_reason FROM shop.embedding_run ORDER BY run DESC LIMIT 1'),
	'terminated', 'a run that cannot report its progress records its end');

#
# A run is canceled while it writes many vectors, each of which takes long
#
sub cancel
{
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($_)") foreach $store->backends;
	return;
}

$store->sql(
	'CREATE FUNCTION shop.delay() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_sleep(0.03);
		RETURN NEW;
	END $$;
	CREATE TRIGGER delay BEFORE INSERT ON shop.embedding
		FOR EACH ROW EXECUTE FUNCTION shop.delay()');
$lost = lost_replies(
	$api,
	sub {
		$store->track("SELECT 'nurse-' || i FROM generate_series(1, 40) i");
		my $call = $store->start_call;
		$node->poll_query_until('postgres',
			"SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
		  or die;
		cancel();
		$printed = $store->finish_call($call);
	});
like($printed, qr/57014/, 'a run whose vectors take long to write can be canceled');
is($lost, 0, 'all replies are stored although it takes long to write their vectors');
$store->sql('DROP TRIGGER delay ON shop.embedding');

# Fetch the vectors of "n" profiles again that differ from those that are stored.
sub differ
{
	my ($n) = @_;

	$store->track("SELECT 'nurse-' || i FROM generate_series(1, $n) i");
	$store->call;
	$store->sql("UPDATE shop.embedding SET vector = '{1}'");
	$store->hasten('true');
	$api->reset;
	return;
}

# Return the number of profiles whose vectors have been written since.
sub rewritten
{
	return $store->sql(
		"SELECT count(DISTINCT profile_id) FROM shop.embedding WHERE vector <> '{1}'");
}

#
# A run is canceled while another session has locked a single vector
#
my $lock_vector = "BEGIN; SELECT FROM shop.embedding WHERE profile_id = 'nurse-1' FOR UPDATE;";
differ(30);
$application->ask($lock_vector);
$call = $store->start_call;
$api->wait_until(sub { $api->log >= 3 * 30 }) or die;
cancel();
$printed = $store->finish_call($call);
$application->ask('COMMIT;');
like($printed, qr/57014/, 'a run can be canceled while a vector is locked');
is(rewritten(), 29, 'a cancel loses only the profile whose vector is locked');
like(
	$printed,
	qr/WARNING:\ .*could\ not\ store\ the\ vectors\ fetched\ for\ 1\ profile\n
		DETAIL:\ .*locks\ .*"attempts"\ were\ not\ incremented/x,
	'a run that is canceled warns about a profile whose vector is locked');

#
# Another session holds a lock for longer than a request may take
#
$store->sql(
	q{CREATE TABLE shop.guard ();
	CREATE FUNCTION shop.read_guard() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM FROM shop.guard;
		RETURN NEW;
	END $$;
	CREATE TRIGGER read_guard BEFORE UPDATE ON shop.embedding_profile FOR EACH ROW
		WHEN (NEW.refreshed_at IS DISTINCT FROM OLD.refreshed_at)
		EXECUTE FUNCTION shop.read_guard()});
my $second_lock = Hrflow::Session->new($node);
foreach my $case (
	[ 1, "SELECT FROM shop.embedding WHERE profile_id = 'nurse-1' FOR UPDATE" ],
	[ 30, "SELECT FROM shop.embedding WHERE profile_id ~ 'nurse' FOR UPDATE" ],
	[ 0, 'LOCK TABLE shop.embedding IN SHARE MODE' ],
	[ 0, 'LOCK TABLE shop.embedding_profile IN SHARE MODE' ],
	[ 0, 'LOCK TABLE shop.embedding, shop.embedding_profile IN ACCESS EXCLUSIVE MODE' ],
	[ 0, 'LOCK TABLE shop.guard IN ACCESS EXCLUSIVE MODE' ])
{
	my ($is_row, $lock) = @$case;
	my $begin = "BEGIN; $lock;";
	my $end = 'SELECT pg_sleep(6); COMMIT;';
	my $n = $is_row + 12;

	# A run that begins waits for the locks of tables before it sends a request
	differ($is_row);
	$store->sql(
		"INSERT INTO shop.candidate (hrflow_id)
		SELECT 'fault:latency=1000,id=' || i FROM generate_series(1, 12) i");
	$application->ask($begin) if $is_row;
	$application->send($end)  if $is_row == 1;
	$call = $store->start_call(
		undef,
		settings => {
			'hrflow_embed.request_timeout' => '4500ms',
			'hrflow_embed.max_concurrency' => 4,
			lock_timeout => '20s' });
	$api->wait_until(sub { $_[0]{requests} >= 4 }) or die;
	$application->ask("$begin $end") if !$is_row;

	# Once the vectors of a profile were found to be locked, lock the profile, too
	if ($is_row > 1)
	{
		$api->wait_until(sub { $_[0]{requests} > 3 * $is_row }) or die;
		$node->poll_query_until('postgres',
			"SELECT lease_until IS NOT NULL FROM shop.embedding_profile WHERE profile_id = 'nurse-2'"
		) or die;
		$second_lock->ask(
			"BEGIN; SELECT FROM shop.embedding_profile WHERE profile_id = 'nurse-2' FOR UPDATE;");
		$application->ask('COMMIT;');
		$second_lock->ask('SELECT pg_sleep(3); COMMIT;');
	}
	$printed = $store->finish_call($call);
	$application->ask('SELECT 1;');
	like(
		$printed,
		qr/: $n refreshed, 0 to be retried/,
		"no request in flight times out because of $lock");
	unlike($printed, qr/WARNING|ERROR/, "no reply is lost because of $lock");
	is(paid($api), $n, "no profile is requested twice because of $lock");
}
$second_lock->finish;
$store->sql('DROP TRIGGER read_guard ON shop.embedding_profile');

SKIP:
{
	skip 'transaction_timeout was added in PostgreSQL 17', 2
	  if $node->safe_psql('postgres', 'SHOW server_version_num') < 170000;
	foreach my $try (1 .. 5)
	{
		differ(20);
		$application->ask($lock_vector);
		$printed =
		  $store->call(undef, role => 'keeper', settings => { transaction_timeout => '1s' });
		$application->ask('COMMIT;');
		last if $printed =~ /: 19 refreshed/;
		note("try $try: $printed");
	}
	like(
		$printed,
		qr/WARNING:.* fetched for 1 profile\n.*: 19 refreshed/s,
		'transaction_timeout does not end a run that waits for a lock');
	is(rewritten(), 19, 'transaction_timeout loses only the profile whose vector is locked');
}

#
# A run is canceled while it releases leases at the end of its time budget
#
$store->sql(
	q{CREATE SEQUENCE shop.releases;
	CREATE FUNCTION shop.note_write() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM set_config('shop.written', pg_current_xact_id()::text, false);
		RETURN NEW;
	END $$;
	CREATE FUNCTION shop.wait_release() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF current_setting('shop.written', true) IS DISTINCT FROM pg_current_xact_id()::text
			AND nextval('shop.releases') = 1 THEN
			PERFORM pg_sleep(60);
		END IF;
		RETURN NEW;
	END $$;
	CREATE TRIGGER a BEFORE UPDATE OF state ON shop.embedding_profile
		FOR EACH ROW EXECUTE FUNCTION shop.note_write();
	CREATE TRIGGER b BEFORE UPDATE ON shop.embedding_profile FOR EACH ROW
		WHEN (OLD.lease_until IS NOT NULL AND NEW.lease_until IS NULL)
		EXECUTE FUNCTION shop.wait_release();});
$store->track("SELECT 'fault:latency=2500,id=' || i FROM generate_series(1, 10) i");
$call =
  $store->start_call("time_budget => '2s'", settings => { 'hrflow_embed.max_concurrency' => 1 });
$node->poll_query_until('postgres',
	"SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
  or die;
cancel();
$printed = $store->finish_call($call);
like($printed, qr/ERROR:  57014/, 'a cancel while leases are released ends the run');
unlike($printed, qr/WARNING/, 'a cancel while leases are released does not keep the leases');
is($store->profiles('lease_until'), '', 'leases are released in spite of a cancel');
is($store->sql('SELECT stop_reason FROM shop.embedding_run ORDER BY run DESC LIMIT 1'),
	'cancelled', 'a run that is canceled while it releases leases records that');
$store->sql('DROP TRIGGER a ON shop.embedding_profile; DROP TRIGGER b ON shop.embedding_profile');

#
# Cancels in quick succession
#
my $ended = 0;
foreach my $round (1 .. $rounds)
{
	$store->track("SELECT 'fault:silent,id=' || i FROM generate_series(1, 200) i");
	my $call = $store->start_call;
	$api->wait_until(sub { $_[0]{requests} >= 8 }) or die;
	my ($backend) = $store->backends;
	my $until = time + 0.3;
	kill 'INT', $backend while time < $until;
	my $has_ended = $node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $backend AND state = 'active'");
	kill 'KILL', $backend unless $has_ended;
	$ended++ if $store->finish_call($call) =~ /57014/ && $has_ended;
}
is($ended, $rounds,
	'a run that is canceled many times in quick succession ends with the error of a cancel');

#
# A profile that changes constantly
#
my $writer = Hrflow::Session->new($node);
$writer->ask('SET ROLE keeper;');
foreach my $case (
	[ 'whose row changes', "UPDATE shop.candidate SET cv = coalesce(cv, '') || 'x'" ],
	[   'that is marked due',
		"SELECT hrflow_mark_due('shop.embedding', 'acme', array_agg(hrflow_id))
		FROM shop.candidate" ])
{
	my ($who, $change) = @$case;

	$store->track("SELECT 'fault:latency=1500,id=cook'");
	$began = time;
	while (time - $began < 4)
	{
		my $call = $store->start_call;
		while ($call->{err} !~ /refreshed, / && $call->{process}->pumpable)
		{
			$writer->ask("$change;");
			$call->{process}->pump_nb;
			sleep 0.1;
		}
		$store->finish_call($call);
	}
	is(paid($api), 1, "a profile $who constantly is requested once a minute");
	is($store->sql('SELECT count(*) FROM shop.embedding'),
		2, "the vectors of a profile $who constantly are stored");
	is($store->profiles("state, due_at BETWEEN now() AND now() + interval '60 seconds'"),
		'due|t', "a profile $who constantly is due again within a minute");
}
$writer->finish;

#
# A change of its row does not move a due profile to the end of the queue
#
$store->track("SELECT 'cook-' || i FROM generate_series(1, 10) i");
$store->sql(
	"UPDATE shop.embedding_profile SET due_at = now() - interval '1 hour'
		WHERE profile_id = 'cook-5';
	UPDATE shop.candidate SET cv = 'new' WHERE hrflow_id = 'cook-5';
	SELECT hrflow_mark_due('shop.embedding', 'acme', '{cook-5}')");
like(
	$store->call('max_profiles => 1'),
	qr/: 1 refreshed/,
	'a run with max_profiles refreshes one profile');
is($store->sql("SELECT state FROM shop.embedding_profile WHERE profile_id = 'cook-5'"),
	'ok', 'a run refreshes the profile that has been due longest, although its row changed');

#
# due_at is updated while the profile is being fetched
#
$store->track("SELECT 'fault:hold=2,id=cook'");
$call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
$store->sql('UPDATE shop.embedding_profile SET due_at = now()');
$api->release(2);
$store->finish_call($call);
is($store->profiles("state, due_at < now() + interval '2 minutes'"),
	'due|t', 'an update of due_at while the profile is being fetched is not lost');

#
# A profile that the application has locked, for four seconds or until the run ends
#
$store->track("SELECT 'fault:hold=2,id=cook'");
$call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
$application->ask('SET ROLE keeper; BEGIN; SELECT FROM shop.embedding_profile FOR UPDATE;');
$api->release(2);
$application->ask('SELECT pg_sleep(4); COMMIT;');
like($store->finish_call($call), qr/: 1 refreshed/, 'a run waits at its end for a locked profile');

$store->track("SELECT 'fault:hold=2,id=cook'");
$call = $store->start_call('max_attempts => 1');
$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
$application->ask('BEGIN; SELECT FROM shop.embedding_profile FOR UPDATE;');
$api->release(2);
$printed = $store->finish_call($call);
$application->ask('COMMIT;');
like(
	$printed,
	qr/WARNING:\ .*could\ not\ store\ the\ vectors\ fetched\ for\ 1\ profile\n
		DETAIL:\ .*"attempts"\ were\ not\ incremented/x,
	'a run warns about a profile that is locked until its end');
is($store->profiles('state, attempts'),
	'due|0', 'a profile that is locked until the end of a run does not fail');

#
# A reply cannot be stored because the profile has lost its lease, or is locked.  Only
# the loss of vectors is worth a WARNING, and only if the profile is still tracked.
#
my $unwritten = qr/WARNING:\ .*could\ not\ store\ the\ vectors\ fetched\ for\ 1\ profile\n/x;
my $no_vectors = 'status=404,';
foreach my $case (
	[   'its lease was cleared', '',
		'UPDATE shop.embedding_profile SET lease_until = NULL, due_at = NULL',
		qr/DETAIL:\ +Other\ sessions\ took\ over,\ or\ cleared,\ the\ lease\ of.*\n
			HINT:\ +Clear\ only\ leases/x ],
	[   'another session has taken over its lease',
		'',
		q{UPDATE shop.embedding_profile SET lease_until = now() + interval '5 minutes'},
		qr/DETAIL:\ +Other\ sessions\ took\ over/x ],
	[   'its lease was cleared, but the API had no vectors',
		$no_vectors,
		'UPDATE shop.embedding_profile SET lease_until = NULL, due_at = NULL' ],
	[ 'it was deleted', '', 'DELETE FROM shop.candidate' ],
	[   'it is locked, but the API had no vectors',
		$no_vectors,
		'BEGIN; SELECT FROM shop.embedding_profile FOR UPDATE' ],
	[   'it is unwanted', '',
		q{INSERT INTO shop.embedding SELECT source_id, profile_id, 'profile', 9, '{1}'
			FROM shop.embedding_profile;
		SELECT hrflow_untrack_table('shop.embedding', 'shop.candidate')} ])
{
	my ($name, $fault, $change, $detail) = @$case;

	$store->track("SELECT 'fault:${fault}hold=2,id=cook'");
	$call = $store->start_call('max_attempts => 1');
	$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
	$application->ask("$change;");
	$api->release(2);
	$printed = $store->finish_call($call);
	$application->ask('COMMIT;') if $change =~ /BEGIN/;
	like(
		$printed,
		$detail ? qr/$unwritten.*$detail/s : qr/\A(?!.*could not store)/s,
		"a run that cannot store a profile " . ($detail ? 'warns' : 'does not warn') . " if $name");
}
$store->sql(
	q{SELECT hrflow_track_table('shop.embedding', 'shop.candidate', 'hrflow_id', 'acme',
		refresh_columns => '{cv}')});
$application->finish;

#
# Leases that are undone by a trigger
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
	qr/fetched vectors could not be stored/,
	'a run stops if the leases of the profiles that it claims are undone');
$store->sql('DROP TRIGGER unlease ON shop.embedding_profile');

#
# Links that do not work
#
$store->track("SELECT 'fault:v.status=403,id=' || i FROM generate_series(1, 12) i");
like(
	$store->call,
	qr/was stopped: no profile could be fetched completely|12 to be retried/,
	'a run in which no link works stops or will retry the profiles');
is($store->profiles('state, attempts'), 'due|1', 'links that do not work count as attempts');

#
# Profiles whose links never work are given up even if others succeed, and even if
# there are many runs
#
$store->track("SELECT 'fault:v.status=403,id=' || i FROM generate_series(1, 30) i");
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id) SELECT 'nurse-' || i FROM generate_series(1, 10) i");
foreach (1 .. 8)
{
	$store->call("fields => '{\"profile\": 1}'");
	$store->hasten("due_at IS NOT NULL");
}
is( $store->states,
	'failed 30, ok 10',
	'profiles whose links never work are given up although others succeed');
my $asked = $store->asked;
is(scalar(grep { /403/ && $asked->{$_} > 5 } keys %$asked),
	0, 'a profile whose link never works is requested at most max_attempts times');

#
# A snapshot held by another session keeps old versions of the rows claimed so
# far, and their index entries.  Claims do not read them all again, except for one
# claim per second, because profiles may have become due there again.
#
# The statistics say that each page but one is empty, as after all rows have been
# deleted and loaded again.  The table is not read as a whole nevertheless.
#
$store->sql('ALTER TABLE shop.embedding_profile SET (autovacuum_enabled = off)');
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 4000) i");
$node->safe_psql(
	'postgres', "UPDATE pg_class SET reltuples = 1, relpages = 100
	WHERE 'shop.embedding_profile'::regclass IN (oid,
		(SELECT indrelid FROM pg_index WHERE indexrelid = pg_class.oid))");
my $holder = Hrflow::Session->new($node);
$holder->ask('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM shop.candidate;');
my $claiming_since = time;
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
my $seconds = time - $claiming_since;
my @buffers;

foreach my $plan (split /^(?=NOTICE:)/m, $explained)
{
	push @buffers, $2
	  if $plan =~ /Query Text: WITH claimed.*?actual rows=(\d+).*?Buffers: shared hit=(\d+)/s
	  && $1 >= 32;
}
$holder->finish;
like(
	$explained,
	qr/: 4000 refreshed/,
	'a run refreshes all profiles while another session holds an old snapshot');
cmp_ok(scalar(@buffers), '>=', 40, 'auto_explain logs the claims of a run');
is( join(
		"\n", $explained =~ /^Query\ Text:\ ([^\n]*\n(?:(?!NOTICE:)[^\n]*\n)*?
		.*Rows\ Removed\ by\ Join\ Filter.*)/mxg),
	'',
	'no statement of a run joins the whole store, although the statistics are wrong');
my $early = (sort { $a <=> $b } @buffers[ 0 .. 14 ])[3];
my $large = grep { $_ >= 2 * $early } @buffers;
cmp_ok(
	$large, '<=',
	$seconds + 2,
	'while an old snapshot is held, at most one claim per second reads more than early ones');
$store->sql('ALTER TABLE shop.embedding_profile RESET (autovacuum_enabled)');
note("early claims read $early buffers; $large of ", scalar(@buffers),
	" claims read twice as many");

#
# The number of profiles claimed at a time: 64, unless they could not be requested
# soon.  The rate limit belongs to a separate account.
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

# Time limits that end a run repeatedly while it waits because of the rate limit
foreach my $run (1 .. 3)
{
	$lost = lost_replies(
		$limited_api,
		sub {
			$store->track("SELECT 'nurse-$run-' || i FROM generate_series(1, 300) i");
			$printed = $store->call(
				undef,
				role => 'keeper',
				settings => {
					'hrflow_embed.base_url' => $limited_api->base_url,
					'hrflow_embed.max_requests_per_minute' => 600,
					statement_timeout => '1500ms' });
		});
	like($printed, qr/57014/,
		"statement_timeout ends run $run, which waits because of the rate limit");
	is($lost, 0, "all replies in run $run are stored although it waits because of the rate limit");
}

#
# Profiles are claimed before all of those claimed earlier have been fetched: replies
# are held until 8 are, which is the least number of requests in flight after the window
# is cut, and the number of profiles claimed at a time, 60, is no multiple of 8.
#
my $holding_api = Hrflow::StandIn->new('--latency' => 300, '--dim' => 64);
$store->track("SELECT 'fault:hold=8,id=' || i FROM generate_series(1, 152) i");
$store->call(
	undef,
	settings => {
		'hrflow_embed.base_url' => $holding_api->base_url,
		'hrflow_embed.max_concurrency' => 30 });
is($store->states, 'ok 152', 'a run claims profiles while requests are in flight');

#
# A table of profiles that is partitioned.  Rows of different partitions have the same
# physical locations; a run writes only those that it has claimed.
#
$store->sql(
	q{CREATE TABLE shop.split (LIKE shop.embedding INCLUDING ALL);
	CREATE TABLE shop.split_profile (LIKE shop.embedding_profile INCLUDING ALL)
		PARTITION BY HASH (profile_id);
	CREATE TABLE shop.split_profile_0 PARTITION OF shop.split_profile
		FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE shop.split_profile_1 PARTITION OF shop.split_profile
		FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	SELECT hrflow_track('shop.split', 'acme', array_agg(i)) FROM
		(SELECT CASE WHEN i % 4 = 0 THEN 'missing' ELSE 'nurse-' END || i AS i
		FROM generate_series(1, 40) i) AS k;});
my ($failed) = $store->sql(
	q{CALL hrflow_refresh('shop.split', max_profiles => 10, batch_size => 5);
	SELECT count(*) FROM shop.split_profile WHERE state <> 'due' OR lease_until IS NOT NULL});
is($failed, 10, 'a run of a partitioned store claims no more profiles than it may');
is( $store->sql(
		q{CALL hrflow_refresh('shop.split', '{"profile": 1}', batch_size => 7);
		SELECT string_agg(DISTINCT concat_ws(' ', p.state, p.profile_id ~ 'missing',
			EXISTS (SELECT FROM shop.split v WHERE v.profile_id = p.profile_id),
			p.last_error IS NULL), ', ')
		FROM shop.split_profile p}),
	'missing t f f, ok f t t',
	'each profile of a partitioned store has its own state');

done_testing();
