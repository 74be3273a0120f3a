# Refreshing a store, as other sessions see it: concurrent runs, jobs of pg_cron,
# and runs that are killed, canceled, or lose the network or the server; what a
# run locks, writes and leaves behind; and the privileges it needs.  A regression
# test could see neither the requests that are sent nor other sessions.
use strict;
use warnings FATAL => 'all';
use Hrflow::Disturb;
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use IPC::Run                ();
use List::Util              qw(max sum);
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(sleep time);

my $api = Hrflow::StandIn->new('--latency' => 20, '--dim' => 64);
my %settings = (link_hosts => '127.0.0.1', max_attempts => 1);
my $node = Hrflow::Node->new('refresh', $api, %settings);

sub sql { return $node->safe_psql('postgres', @_); }

#
# pg_cron starts jobs at the beginning of a minute, so schedule them now, and
# test everything else in the meantime.
#
my ($cron, $cron_api, $cron_store, $cron_lock);
if (-e $node->config_data('--sharedir') . '/extension/pg_cron.control')
{
	$cron_api = Hrflow::StandIn->new('--latency' => 50, '--dim' => 64);
	$cron = Hrflow::Node->new(
		'cron', $cron_api, %settings,
		shared_preload_libraries => 'pg_cron',
		'cron.database_name' => 'postgres',
		'cron.use_background_workers' => 'on',
		client_connection_check_interval => '1s');    # of a worker, which has no client
	$cron_store = Hrflow::Store->new($cron, $cron_api, 'shop');
	(undef, undef, my $refusal) =
	  $cron->psql('postgres', "SET ROLE keeper; SELECT hrflow_schedule('shop.embedding')");
	like(
		$refusal,
		qr/ERROR:\ \ extension\ "pg_cron"\ is\ not\ installed\ in\ this\ database\n
			HINT:\ \ Run\ CREATE\ EXTENSION\ pg_cron\./x,
		'hrflow_schedule() says if pg_cron only has to be created');
	$cron->safe_psql('postgres', 'CREATE EXTENSION pg_cron');
	my $last_run = "SELECT last_run, last_run_status FROM hrflow_store_status('shop.embedding')";
	is($cron_store->sql($last_run),
		'|', 'hrflow_store_status() shows no last run to a role without privileges on pg_cron');
	$cron->safe_psql('postgres', 'GRANT USAGE ON SCHEMA cron TO keeper');
	is($cron_store->sql($last_run),
		'|', 'hrflow_store_status() shows no last run before the first run');
	$cron_store->fill(5000);
	$cron->safe_psql('postgres', 'ALTER ROLE keeper NOLOGIN');
	(undef, undef, my $warning) = $cron->psql('postgres',
		"SET ROLE keeper; SELECT hrflow_schedule('shop.embedding', '0 0 1 1 *')");
	like(
		$warning,
		qr/WARNING:\ \ role\ "keeper"\ is\ not\ permitted\ to\ log\ in\n
			DETAIL:\ .*\ store\ shop\.embedding\ .*\n
			HINT:\ \ Run\ ALTER\ ROLE\ keeper\ LOGIN/x,
		'hrflow_schedule() warns if the owner is not permitted to log in');
	$cron->safe_psql('postgres', 'ALTER ROLE keeper LOGIN');

	# Run the jobs once an hour, for the first time in about a minute, so that
	# they can wait for the rest of this test
	my $minute = $cron->safe_psql('postgres',
		"SELECT extract(minute FROM (now() + interval '75 seconds') AT TIME ZONE 'GMT')");
	my $again = $cron_store->sql(
		"BEGIN;
		SELECT hrflow_schedule('shop.embedding', fields => '$Hrflow::Store::FIELDS');
		SELECT hrflow_schedule('shop.embedding', '$minute * * * *',
			fields => '$Hrflow::Store::FIELDS');
		COMMIT;");
	my ($first, $second) = split /\n/, $again;
	is($first, $second, 'a store that is scheduled twice has one job');
	is( $first,
		$cron_store->sql('SELECT jobid FROM cron.job'),
		'hrflow_schedule() returns the id of the job');

	# The time budget of a job, for each way in which pg_cron lets seconds be written
	SKIP:
	{
		my $version = $cron->safe_psql('postgres',
			"SELECT extversion FROM pg_extension WHERE extname = 'pg_cron'");
		skip 'pg_cron 1.4 has no schedules in seconds', 4 if $version =~ /^1\.4/;
		foreach my $seconds ('30 seconds', '30 SECONDS', ' 30  second', '30seconds')
		{
			my $command = $cron_store->sql(
				"BEGIN; SELECT hrflow_schedule('shop.embedding', '$seconds') \\gset
				SELECT command FROM cron.job; ROLLBACK;");
			like(
				$command,
				qr/time_budget => '(?:00:00:)?28/,
				"a run that is scheduled every '$seconds' has a time budget of 28 seconds");
		}
	}

	# Schedule another job that overlaps with it.  Neither must claim profiles yet
	$cron_store->sql(
		"SELECT cron.schedule('overlap', '$minute * * * *', (SELECT command FROM cron.job))");
	$cron_lock = Hrflow::Session->new($cron);
	$cron_lock->ask('BEGIN; LOCK TABLE shop.embedding_profile IN SHARE MODE;');
}

#
# Four concurrent runs
#
my $store = Hrflow::Store->new($node, $api, 'shop');
$store->fill(5000);
$api->reset;
my @calls = map { $store->start_call } 1 .. 4;
my @printed = map { $store->finish_call($_) } @calls;
like(
	$_,
	qr/^INFO:.*\ shop\.embedding:\ \d+\ refreshed,\ 0\ to\ be\ retried,
		\ 0\ failed,\ 0\ not\ found,\ 0\ gone/mx,
	'each of four runs at once succeeds') foreach @printed;
is(sum(map { /: (\d+) refreshed/ } @printed), 5000, 'four runs at once refresh all profiles');
my $asked = $store->asked;
is(scalar(keys %$asked), 5000, 'four runs at once request all profiles');
is(max(values %$asked), 1, 'four runs at once request no profile twice');
is($store->states, 'ok 5000', 'four runs at once leave all profiles ok');
is($store->wrong_vectors("profile_id LIKE '%5'"), 0, 'four runs at once store the right vectors');

#
# Start a slow run, whose progress reports are checked further below
#
my $slow_api = Hrflow::StandIn->new('--latency' => 50, '--dim' => 64);
my $slow = Hrflow::Store->new($node, $slow_api, 'slow');
$slow->fill(100);
my $slow_call = $slow->start_call(
	q{fields => '{"profile": 1}', batch_size => 10},
	settings =>
	  { 'hrflow_embed.base_url' => $slow_api->base_url, 'hrflow_embed.max_concurrency' => 1 });

#
# Profiles whose vectors have not changed
#

# Return how many vectors were inserted, updated and deleted.  A session reports
# its counts when it ends.  Once they include the given number of updates of
# the table of profiles, which each claim and each result updates, they are
# complete.
sub written
{
	my ($updates) = @_;

	$node->poll_query_until(
		'postgres',
		"SELECT n_tup_upd >= $updates FROM pg_stat_user_tables
			WHERE relid = 'shop.embedding_profile'::regclass"
	) or die "fewer than $updates updates were counted";
	return $store->sql(
		"SELECT n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables
		WHERE relid = 'shop.embedding'::regclass");
}
is(written(2 * 5000), '10000|0|0', 'every vector was written once');
$store->hasten("substr(profile_id, 1, 1) = 'n'");
$api->reset;
like($store->call, qr/ 1250 refreshed/, 'a run refreshes the profiles that are due again');
is(scalar(keys %{ $store->asked }), 1250, 'the profiles that are due again are requested');
is(written(2 * 5000 + 1250 + 2 * 1250), '10000|0|0', 'no vector is written if none has changed');

#
# A run does not block other sessions that use the candidates
#
$store->sql('ALTER TABLE shop.candidate SET (autovacuum_enabled = off)'); # autovacuum locks it, too
$store->hasten("substr(profile_id, 1, 1) = 'w'");
my $watcher = Hrflow::Session->new($node);
$api->reset;
my $call =
  $store->start_call('batch_size => 50', settings => { 'hrflow_embed.max_concurrency' => 8 });

# Before its first request, a run looks at the triggers of the table.
$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
my ($locks, $waits) = (0, 0);
until ($call->{err} =~ /refreshed, /)
{
	$waits++
	  if $watcher->ask('BEGIN; LOCK TABLE shop.candidate IN ACCESS EXCLUSIVE MODE NOWAIT; COMMIT;')
	  =~ /ERROR/;
	$locks++;
	last unless $call->{process}->pumpable;
	$call->{process}->pump_nb;
}
like(
	$store->finish_call($call),
	qr/ 1250 refreshed/,
	'a run refreshes while the table of candidates is watched');

is($waits, 0, 'the table of candidates could be locked at any time while the run sent requests');
cmp_ok($locks, '>', 20, 'the table of candidates was locked often during the run');

#
# The transaction, snapshot and locks of a run that waits for the network, also
# while it requests the sections of a profile one by one.  On a busy machine, samples of
# some of its phases may be missing, so try up to five times.
#
my $far_api = Hrflow::StandIn->new('--latency' => 500, '--dim' => 64);
my (%holds, %phases);
for (my $try = 0; $try < 5 && keys %phases < 3; $try++)
{
	$store->sql(
		q{DELETE FROM shop.candidate;
		INSERT INTO shop.candidate (hrflow_id)
			VALUES ('nurse-1'), ('novector-cook'), ('driver-1');
		UPDATE shop.embedding_profile SET due_at = now() - CASE profile_id
			WHEN 'nurse-1' THEN interval '3 minutes' WHEN 'novector-cook' THEN '2 minutes'
				ELSE '1 minute' END;}
	);
	$far_api->reset;
	$call = $store->start_call(
		'batch_size => 1',
		application => 'watched',
		settings => {
			'hrflow_embed.base_url' => $far_api->base_url,
			'hrflow_embed.max_concurrency' => 1 });
	my ($requests, $since, $looked_at, $last) = (0, time, time, '');
	until ($call->{err} =~ /refreshed, /)
	{
		(my $before, $looked_at) = ($looked_at, time);
		my $n = $far_api->stats->{requests};
		($requests, $since, $last) = ($n, $before, '') if $n != $requests;
		my ($sample) = split /\n/, $watcher->ask(
			"SELECT wait_event_type, backend_xid, backend_xmin,
			(SELECT count(*) FROM pg_locks l WHERE l.pid = a.pid AND locktype <> 'virtualxid'
				AND (locktype, classid)
					IS DISTINCT FROM ('advisory', 'shop.embedding_run'::regclass))
			FROM pg_stat_activity a WHERE application_name = 'watched' AND state = 'active';");

		# Skip samples taken when the reply may have arrived.  The values in a sample are
		# not read at the same time, so count only those that do not change.
		if ($n > 0 && time - $since < 0.4)
		{
			if ($sample eq $last)
			{
				$holds{$sample}++;
				$phases{ $n <= 4 ? 'first' : $n <= 7 ? 'section by section' : 'last' }++;
			}
			$last = $sample;
		}
		last unless $call->{process}->pumpable;
		$call->{process}->pump_nb;
	}
	like($store->finish_call($call), qr/: 3 refreshed/, 'a run refreshes profiles one by one');
	is( $far_api->stats->{requests},
		3 + 4 + 3,
		'a profile with a section that has no vector takes a request for each section');
}
my $waiting = delete $holds{'Extension|||0'};
is_deeply([ grep { /^Extension/ } keys %holds ],
	[], 'a run that waits for the network has no transaction, snapshot or lock');
ok($waiting, 'a run was seen waiting for the network');
is_deeply(
	[ sort keys %phases ],
	[ 'first', 'last', 'section by section' ],
	'a run was watched from its beginning to its end');

#
# The claim finds due profiles by an index
#
$store->sql("UPDATE shop.embedding_profile SET due_at = now() WHERE profile_id = 'nurse-1'");
$call = $store->start_call(
	undef,
	settings => {
		session_preload_libraries => 'auto_explain',
		'auto_explain.log_min_duration' => 0,
		'auto_explain.log_nested_statements' => 'on',
		'auto_explain.log_level' => 'notice' });
like(
	$store->finish_call($call),
	qr/CTE\ claimed\n\s+->\ \ Limit\ .*\n\s+->\ \ LockRows\ .*\n
		\s+->\ \ Index\ Scan\ using\ embedding_profile_due_at_idx\ .*\n
		\s+Index\ Cond:\ \(\(due_at\ >=\ .*\(due_at\ <=\ /x,
	'the claim finds due profiles by the index on due_at');
like(
	$call->{out} . $call->{err},
	qr/Index\ Scan\ using\ embedding_profile_due_at_idx1\ /x,
	'the claim finds new profiles by an index of their own');

#
# Profiles that change while they are fetched
#
$store->sql(
	q{DELETE FROM shop.candidate;
	INSERT INTO shop.candidate (hrflow_id)
		VALUES ('fault:hold=4,id=nurse'), ('fault:hold=4,id=cook'),
		('fault:hold=4,id=driver')}
);
$api->reset;
$call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 3 }) or die;
$store->sql(
	q{UPDATE shop.candidate SET cv = 'new' WHERE hrflow_id LIKE '%nurse';
	DELETE FROM shop.candidate WHERE hrflow_id LIKE '%cook'});
$api->release(4);
like(
	$store->finish_call($call),
	qr/: 2 refreshed/,
	'two of three profiles are refreshed if one is marked and one deleted meanwhile');
is( $store->sql(
		"SELECT profile_id, state, generation, attempts, lease_until FROM shop.embedding_profile
			ORDER BY 1"
	),
	"fault:hold=4,id=driver|ok|0|0|\nfault:hold=4,id=nurse|due|1|0|",
	'a profile that is deleted while it is fetched is not written');
is_deeply(
	$store->asked,
	{   (   map { ("fault:hold=4,id=$_" =~ s/([:=,])/sprintf('%%%02X', ord $1)/ger => 1) }
			  qw(nurse cook driver)),
		'fault:hold=4,id=release' => 1 },
	'a profile that is marked while it is fetched is not fetched again at once');
is( $store->sql(
		"SELECT profile_id FROM shop.embedding_profile
			WHERE due_at BETWEEN now() + interval '30 seconds' AND now() + interval '60 seconds'"
	),
	'fault:hold=4,id=nurse',
	'a profile that is marked while it is fetched is due again a minute later');
is( $store->sql('SELECT DISTINCT profile_id FROM shop.embedding ORDER BY 1'),
	"fault:hold=4,id=driver\nfault:hold=4,id=nurse",
	'the vectors of a profile that is marked while it is fetched are kept');

#
# A profile that is deleted before its reply arrives
#
$store->sql(
	q{DELETE FROM shop.candidate;
		INSERT INTO shop.candidate (hrflow_id) VALUES ('fault:hold=2,id=nurse')}
);
$api->reset;
$call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
$store->sql('DELETE FROM shop.candidate');
$api->release(2);
like(
	$store->finish_call($call),
	qr/ 0 refreshed, 0 to be retried, 0 failed/,
	'a profile that is no longer tracked when its reply arrives is ignored');
is($store->sql('SELECT count(*) FROM shop.embedding'),
	0, 'the vectors of a profile that is no longer tracked are not stored');

#
# Profiles that the API no longer has
#
sub gone_run
{
	my ($missing, $good) = @_;

	$store->sql(
		"DELETE FROM shop.candidate;
		DELETE FROM shop.embedding_profile;
		DELETE FROM shop.embedding;
		INSERT INTO shop.candidate (hrflow_id) SELECT 'cook-' || i FROM generate_series(1, $good) i;
		INSERT INTO shop.candidate (hrflow_id) SELECT 'nurse-' || i
			FROM generate_series(1, $missing) i;"
	);
	$store->call;

	# Simulate their deletion from the account by ids that the API does not know
	$store->sql(
		"UPDATE shop.embedding_profile SET profile_id = 'missing-' || profile_id
			WHERE profile_id LIKE 'nurse%';
		UPDATE shop.embedding SET profile_id = 'missing-' || profile_id
			WHERE profile_id LIKE 'nurse%';");
	$store->hasten('true');
	my $first = $store->call;
	$store->age('4 days');
	$store->hasten('true');
	return ($first, $store->call);
}
my ($first, $second) = gone_run(19, 2);
like(
	$first,
	qr/: 2 refreshed, .* 19 not found, 0 gone/,
	'a profile that the API does not know is missing at first');
is($store->sql("SELECT count(*) FROM shop.embedding WHERE profile_id LIKE 'missing%'"),
	0, 'the vectors of a profile that has been missing for four days are erased');
like(
	$second,
	qr/: 2 refreshed, .* 0 not found, 19 gone/,
	'a profile that has been missing for four days is gone');

# The limit applies to all runs of a day together
sub lose
{
	my ($n) = @_;
	$store->sql(
		"UPDATE shop.embedding_profile SET state = 'missing', due_at = now(),
			profile_id = replace(profile_id, 'cook', 'missing'),
			failed_at = now() - interval '5 days'
		WHERE profile_id = ANY (SELECT profile_id FROM shop.embedding_profile
			WHERE state = 'ok' AND profile_id ~ '^cook' ORDER BY 1 LIMIT $n);
		UPDATE shop.embedding SET profile_id = replace(profile_id, 'cook', 'missing')
			WHERE profile_id NOT IN (SELECT profile_id FROM shop.embedding_profile)"
	);
	return $store->call;
}
($first, $second) = gone_run(21, 390);
like(
	$second,
	qr/WARNING:\ .*\ keeps\ the\ vectors\ of\ 21\ profiles\ .*\n
		DETAIL:\ .*At\ most\ 5%/x,
	'a run warns if more than 20 profiles and more than 5 % of all would be gone');
is($store->states, 'missing 21, ok 390', 'no profile is gone if too many are missing');
is($store->sql("SELECT count(*) FROM shop.embedding WHERE profile_id LIKE 'missing%'"),
	42, 'missing profiles keep their vectors if too many are missing');
($first, $second) = gone_run(20, 390);
like($second, qr/ 20 gone/, 'one run may erase the vectors of 20 missing profiles');
like(
	lose(1),
	qr/keeps the vectors of 1 profile /,
	'a run warns if it exceeds the limit together with an earlier run of the day');
is($store->sql("SELECT count(*) FROM shop.embedding WHERE profile_id LIKE 'missing%'"),
	2, 'a missing profile beyond the limit of the day keeps its vectors');
is($store->sql("SELECT erased_last_day FROM hrflow_store_status('shop.embedding')"),
	20, 'hrflow_store_status() shows how many profiles have lost vectors within a day');
$store->age('1 day');
like(
	lose(1),
	qr/ 0 not found, 1 gone/,
	'a run may erase the vectors of another missing profile a day later');
($first, $second) = gone_run(21, 420);
like($second, qr/ 21 gone/, 'one run may erase the vectors of 5 % of the profiles');

# A profile that lacks the requested section keeps its other sections
$store->track("SELECT 'cook-' || i FROM generate_series(1, 3) i");
$store->call(q(fields => '{"profile": 1}'));
$store->sql(
	"UPDATE shop.embedding_profile SET profile_id = 'novector-' || profile_id
		WHERE profile_id = 'cook-1';
	UPDATE shop.embedding SET profile_id = 'novector-' || profile_id WHERE profile_id = 'cook-1'"
);
$store->hasten('true');
$store->call(q(fields => '{"skills": 1}'));
$store->age('4 days');
$store->hasten('true');
$store->call(q(fields => '{"skills": 1}'));
is( $store->sql(
		"SELECT p.state, v.section FROM shop.embedding_profile p LEFT JOIN shop.embedding v
			USING (profile_id)
			WHERE profile_id = 'novector-cook-1'"
	),
	'missing|profile',
	'a profile that lacks the requested section keeps its other sections');

# A missing profile that was not requested again is not gone, although replies for
# others prove that the API knows its source
$store->track("SELECT 'cook-' || i FROM generate_series(1, 3) i");
$store->call;
$store->sql(
	"UPDATE shop.embedding_profile SET state = 'missing', failed_at = now() - interval '5 days',
		profile_id = 'missing-1', due_at = now() + interval '1 hour' WHERE profile_id = 'cook-1';
	UPDATE shop.embedding_profile SET state = 'missing', failed_at = now() - interval '5 days',
		profile_id = 'missing-2', due_at = now() WHERE profile_id = 'cook-2';
	UPDATE shop.embedding SET profile_id = replace(profile_id, 'cook', 'missing')
		WHERE profile_id <> 'cook-3'");
$store->call;
is( $store->profiles('profile_id, state'),
	"cook-3|ok\nmissing-1|missing\nmissing-2|gone",
	'a missing profile is gone only after it has been requested again');

# Profiles without vectors do not count towards the limit
$store->sql("DELETE FROM shop.candidate; DELETE FROM shop.embedding_profile");
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id) SELECT 'missing-' || i FROM generate_series(1, 50) i;
	INSERT INTO shop.candidate (hrflow_id) VALUES ('cook-1')");
$store->call;
$store->age('4 days');
$store->hasten('true');
like(
	$store->call,
	qr/ 0 not found, 50 gone/,
	'any number of missing profiles that never had vectors may be gone');

# Sections that the API no longer has
$store->track("SELECT 'cook-' || i FROM generate_series(1, 60) i");
$store->call;
$store->sql(
	"UPDATE shop.embedding_profile SET profile_id = 'novector-' || profile_id;
	UPDATE shop.embedding SET profile_id = 'novector-' || profile_id");

# Return SQL that makes some of the profiles count towards the limit.  A run considers
# those whose replies have arrived, so how many it considers at once depends on the
# speed of the machine.  Therefore let none be left.
my $use_up = sub {
	my ($n) = @_;
	return "UPDATE shop.embedding_profile SET erased_at = now() WHERE profile_id IN
		(SELECT profile_id FROM shop.embedding_profile WHERE erased_at IS NULL
			ORDER BY 1 DESC LIMIT $n)";
};
$store->sql($use_up->(20));
$store->hasten('true');
like(
	$store->call,
	qr/keeps the vectors of 60 profiles although the API no longer has them/,
	'a run warns when more than 20 profiles would have lost a section');
is($store->sql('SELECT section, count(*) FROM shop.embedding GROUP BY 1 ORDER BY 1'),
	"profile|60\nskills|60", 'missing sections are kept if too many are missing');
is( $store->profiles("state, last_error, due_at > now() + interval '20 days'"),
	'ok|HrFlow no longer has vectors of the requested sections: skills|t',
	'a profile that keeps a missing section says so, and is not due again for weeks');
$store->sql(
	q{UPDATE shop.embedding_profile SET last_error = 'earlier', failed_at = now() - interval '1 hour'
		WHERE profile_id = 'novector-cook-1'});
is( $store->sql(q{SELECT last_error FROM hrflow_store_status('shop.embedding')}),
	'HrFlow no longer has vectors of the requested sections: skills',
	'the last error of the store may be that of a profile that has lost vectors');
$store->sql('UPDATE shop.embedding_profile SET erased_at = NULL');
$store->hasten("profile_id < 'novector-cook-2'");
like($store->call, qr/: 11 refreshed/, 'a run refreshes a few profiles that lack a section');
is($store->sql('SELECT section, count(*) FROM shop.embedding GROUP BY 1 ORDER BY 1'),
	"profile|60\nskills|49", 'missing sections are erased if only a few are missing');
$store->sql($use_up->(9));
$store->hasten("profile_id >= 'novector-cook-5'");
like(
	$store->call,
	qr/keeps the vectors of 16 profiles although the API no longer has them/,
	'a run warns if the limit for sections has been used up by an earlier run of the day');

# An API that suddenly has no vectors
foreach my $fault ("status=400,message=Invalid key. File doesn't exist", 'data=e30')
{
	$store->track("SELECT 'cook-' || i FROM generate_series(1, 60) i");
	$store->call;
	$store->hasten('true');
	$api->script($fault);
	$store->call;
	is($store->states, 'missing 60', "$fault for every profile makes them missing");
	is($store->sql('SELECT count(*) FROM shop.embedding'),
		120, "$fault for every profile erases no vector");
	$api->reset;
	$store->hasten('true');
	$store->call;
	is($store->states, 'ok 60', "profiles are refreshed again after $fault for every profile");
}

#
# Nothing is erased if every request fails
#
$store->sql(
	"DELETE FROM shop.candidate; DELETE FROM shop.embedding_profile; DELETE FROM shop.embedding;");
$store->fill(40);
$store->call;
my $peer = Hrflow::RawPeer->new(
	sub {
		my ($socket) = @_;
		while (Hrflow::RawPeer::read_request($socket))
		{
			print $socket
			  "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n",
			  "Content-Length: 9\r\n\r\nNot Found";
		}
	});
my %nowhere = ('hrflow_embed.base_url' => 'http://127.0.0.1:' . $peer->port . '/v1');
for my $run (1 .. 2)
{
	$store->hasten('true');
	like(
		$store->call(undef, role => 'keeper', settings => \%nowhere),
		qr/WARNING:  .*refresh of shop\.embedding was stopped: the API sent no usable reply/,
		"run $run stops at an address that answers 404 to every request");
}
$peer->stop;
is( $store->sql('SELECT string_agg(DISTINCT state || attempts, $$ $$) FROM shop.embedding_profile'),
	'ok0', 'an address that answers 404 to every request changes no state');
is($store->sql('SELECT count(*) FROM shop.embedding'),
	80, 'an address that answers 404 to every request erases no vector');

for my $run (1 .. 2)
{
	$store->hasten('true');
	like(
		$store->call(undef, settings => { 'hrflow_embed.api_key' => 'askr_' . 'f' x 32 }),
		qr/WARNING:  .*was stopped: HrFlow API refused the API key/,
		"run $run stops because of a wrong key");
	is( $store->sql(
			'SELECT string_agg(DISTINCT state || attempts, $$ $$), count(lease_until)
				FROM shop.embedding_profile'
		),
		'ok0|0',
		"run $run with a wrong key changes no state and leaves no lease");
	is($store->sql('SELECT count(*) FROM shop.embedding'),
		80, "run $run with a wrong key erases no vector");
}
$store->sql(
	"INSERT INTO shop.embedding_profile (source_id, profile_id)
		VALUES ('unknown-1', 'a'), ('unknown-1', 'b')"
);
for my $run (1 .. 2)
{
	$store->hasten('true');
	my $out = $store->call;
	like(
		$out,
		qr/WARNING:  .*skipping source "unknown-1" in refresh of shop\.embedding: source not found\n/,
		"run $run skips a source of another account");
	like($out, qr/: 40 refreshed/, "run $run refreshes the profiles of the known source");
	is($store->sql('SELECT count(*) FROM shop.embedding'),
		80, "run $run, which skips a source, erases no vector");
}
is( $store->sql("SELECT state, attempts FROM shop.embedding_profile WHERE source_id = 'unknown-1'"),
	"due|0\ndue|0", 'the profiles of a source that was skipped stay due');
$store->sql("SELECT hrflow_untrack('shop.embedding', 'unknown-1', '{a,b}')");

# Vectors that were fetched before a refusal are kept
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id) VALUES ('fault:status=402,hold=2,id=nurse');
	DELETE FROM shop.embedding;");
$store->hasten('true');
$api->reset;
$call = $store->start_call('batch_size => 4');
$api->wait_until(sub { ($_[0]{by_status}{200} // 0) >= 3 * 40 && $_[0]{in_flight} == 1 }) or die;
$api->release(2);
like(
	$store->finish_call($call),
	qr/WARNING:  .*was stopped: HrFlow account is over its quota.* 40 refreshed/s,
	'a run stops when the account is over its quota');
is($store->sql('SELECT count(*) FROM shop.embedding'),
	2 * 40, 'vectors fetched before the quota was exceeded are kept');
is($store->sql('SELECT count(*) FROM shop.embedding_profile WHERE due_at > now()'),
	40, 'profiles fetched before the quota was exceeded are not due again');
is( $store->sql(
		"SELECT count(*) FROM shop.embedding_profile WHERE lease_until IS NOT NULL OR attempts > 0"
	),
	0,
	'a run that stops because of the quota counts no attempt and leaves no lease');
$store->sql("DELETE FROM shop.candidate WHERE hrflow_id LIKE 'fault%'");

#
# Profiles that lack a section or need to be retried
#
$store->call;
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id)
		VALUES ('novector-nurse'), ('fault:first=1,status=500,id=cook')"
);
$api->reset;
like(
	$store->call,
	qr/: 1 refreshed, 1 to be retried/,
	'a profile without skills is refreshed, and one that fails will be retried');
is($store->asked->{'novector-nurse'},
	3, 'a profile that lacks a section is requested section by section');
is( $store->sql("SELECT profile_id, section FROM shop.embedding WHERE profile_id ~ 'novec|fault'"),
	'novector-nurse|profile', 'the other vectors of a profile without skills are stored');
$store->hasten;
like(
	$store->call,
	qr/: 1 refreshed/,
	'a profile that failed once is refreshed by the second attempt');
is( $store->sql(
		"SELECT state, attempts, last_error FROM shop.embedding_profile WHERE profile_id ~ 'fault'"
	),
	'ok|0|',
	'a successful attempt resets the attempts and the error');

# A profile that lacks a section, in a run that requests all sections: the run
# requests each section it knows of, and deletes no others
my $partly = q{fault:first=1,status=400,message=Invalid key. File doesn't exist,id=cook};
my $sections = "SELECT string_agg(DISTINCT section, ' ' ORDER BY section) FROM shop.embedding
	WHERE profile_id ~ 'File'";
$store->sql("INSERT INTO shop.candidate (hrflow_id) VALUES (\$\$$partly\$\$)");
foreach my $round ('new', 'known')
{
	$api->reset;
	$store->hasten("profile_id ~ 'File'");
	like(
		$store->call('fields => NULL'),
		qr/: 1 refreshed/,
		"a $round profile that lacks a section is refreshed");
	is_deeply([ values %{ $store->asked } ],
		[6], "every known section of a $round profile that lacks one is requested");
	is( $store->sql($sections),
		'educations experiences interests profile skills' . ($round eq 'known' ? ' summary' : ''),
		"the sections that a $round profile has are stored");
	$store->sql(
		"INSERT INTO shop.embedding (source_id, profile_id, section, item, vector)
			SELECT source_id, profile_id, 'summary', 0, '{1}'
		FROM shop.embedding_profile WHERE profile_id ~ 'File' ON CONFLICT DO NOTHING");
}
$store->hasten("profile_id ~ 'File'");
$store->call('fields => NULL');
unlike($store->sql($sections), qr/summary/, 'a reply that lacks a section deletes its vectors');
$store->sql(
	"INSERT INTO shop.embedding (source_id, profile_id, section, item, vector)
		SELECT source_id, profile_id, 'summary', 0, '{1}'
	FROM shop.embedding_profile WHERE profile_id ~ 'File'");
$store->hasten("profile_id ~ 'File'");
$store->call(q(fields => '{"profile": 1, "summary": false, "skills": null}'));
is( $store->sql($sections),
	'educations experiences interests profile skills summary',
	'a section that is not requested keeps its vectors');
$store->sql("DELETE FROM shop.candidate WHERE hrflow_id ~ 'File'");

like(
	$slow->finish_call($slow_call),
	qr/INFO:\ .*\ slow\.embedding:\ \d+\ done,\ 0\ of\ them\ unsuccessful,\ \d+\ remaining,
		\ \d+\ per\ second,\ about\ \d+\ s\ left.*slow\.embedding:\ 100\ refreshed/sx,
	'a long run reports its progress');

#
# Canceled runs
#
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id) SELECT 'fault:silent,id=' || i
		FROM generate_series(1, 100) i"
);
$api->reset;

# A run that waited for these requests would not end within the time limit of finish_call().
my %longer_than_a_call = (settings => { 'hrflow_embed.request_timeout' => '600s' });
$call = $store->start_call(undef, %longer_than_a_call);
$api->wait_until(sub { $_[0]{requests} >= 32 }) or die;
sql("SELECT pg_cancel_backend($_)") foreach $store->backends;
like(
	$store->finish_call($call),
	qr/57014: canceling statement/,
	'a canceled run does not wait for its requests');
is( $store->sql(
		"SELECT count(*) FROM shop.embedding_profile WHERE lease_until IS NOT NULL OR attempts > 0"
	),
	0,
	'a canceled run releases its leases');

# A run that is canceled while it writes
$store->sql(
	q{DELETE FROM shop.candidate WHERE hrflow_id LIKE 'fault:silent%';
	INSERT INTO shop.candidate (hrflow_id) VALUES ('teacher-1');
	CREATE FUNCTION shop.sleep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60);
		RETURN NEW; END $$;
	CREATE TRIGGER sleep BEFORE INSERT ON shop.embedding FOR EACH ROW
		EXECUTE FUNCTION shop.sleep();});
$call = $store->start_call;
$node->poll_query_until('postgres',
	"SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')");
sql("SELECT pg_cancel_backend($_)") foreach $store->backends;
like(
	$store->finish_call($call),
	qr/57014: canceling statement/,
	'a run can be canceled while it writes');
is( $store->sql(
		"SELECT state, attempts, lease_until FROM shop.embedding_profile
			WHERE profile_id = 'teacher-1'"
	),
	'due|0|',
	'a run that is canceled while it writes releases its leases');
$store->sql(
	q{DROP TRIGGER sleep ON shop.embedding;
	INSERT INTO shop.candidate (hrflow_id) SELECT 'fault:silent,id=' || i
		FROM generate_series(1, 100) i;}
);

# Runs with a limit on time or profiles
like(
	$store->call("time_budget => '500ms'", %longer_than_a_call),
	qr/: [01] refreshed/,
	'a run ends after its time_budget although requests are in flight');
is( $store->sql(
		"SELECT count(*) FROM shop.embedding_profile WHERE lease_until IS NOT NULL OR attempts > 0"
	),
	0,
	'profiles that were not fetched within the time_budget keep their state');
{
	my $limited = Hrflow::StandIn->new('--dim' => 64);
	my $out = sql(
		"SELECT hrflow_create_store('limited');
		SELECT hrflow_track('limited', 'acme',
			(SELECT array_agg('nurse-' || i) FROM generate_series(1, 9) i));
		SET hrflow_embed.base_url = '" . $limited->base_url . "';
		SET hrflow_embed.max_requests_per_minute = 6;
		SELECT hrflow_embed_stats_reset();
		CALL hrflow_refresh('limited', time_budget => '5s');
		SELECT rows_by_status FROM hrflow_embed_stats;
		DROP TABLE limited, limited_profile CASCADE;");
	like(
		$out,
		qr/^\{"ok": 1\}$/m,
		'profiles that were not fetched within the time_budget are not counted as rows');
}
$store->sql(
	"DELETE FROM shop.candidate WHERE hrflow_id ~ 'fault:silent|teacher';
	SELECT hrflow_mark_due('shop.embedding', 'acme', array_agg(profile_id))
	FROM (SELECT profile_id FROM shop.embedding_profile
		WHERE state = 'ok' AND profile_id !~ 'fault' ORDER BY 1 LIMIT 3) p");
like($store->call('max_profiles => 2'), qr/: 2 refreshed/, 'max_profiles limits a run');
like(
	$store->call,
	qr/: 1 refreshed/,
	'profiles that max_profiles left out are refreshed by the next run');

# hrflow_refresh() commits, so it cannot run inside a transaction block
my (undef, undef, $in_block) = $node->psql(
	'postgres', "\\set VERBOSITY verbose
	SET ROLE keeper; BEGIN; CALL hrflow_refresh('shop.embedding');");
like(
	$in_block,
	qr/ERROR:\ \ 2D000:\ hrflow_refresh\ cannot\ run\ inside\ a\ transaction\ block\n
		HINT:\ \ Call\ it\ outside\ of\ transaction\ blocks/x,
	'hrflow_refresh() in a transaction block raises an error with a hint how to call it');

#
# Triggers never use the network
#
$api->reset;
$store->sql(
	q{DELETE FROM shop.candidate;
	INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-1'), ('cook-1'), ('driver-1');
	UPDATE shop.candidate SET cv = 'new';
	UPDATE shop.candidate SET hrflow_id = 'welder-1' WHERE hrflow_id = 'cook-1';
	DELETE FROM shop.candidate WHERE hrflow_id = 'driver-1';});
is($store->states, 'due 2', 'candidates that are inserted, updated and deleted are tracked');
$store->sql('TRUNCATE shop.candidate');
is($store->states, '', 'TRUNCATE untracks all candidates');
is($api->stats->{requests}, 0, 'triggers send no request');

#
# A backend is killed, the server crashes, or the network fails, at random points of
# runs
#
Hrflow::Disturb::run($node, $api, 'profile', 2000, qw(kill crash network));

#
# Privileges
#
$node->safe_psql(
	'postgres', 'CREATE ROLE application LOGIN;
	GRANT USAGE ON SCHEMA shop TO application;
	GRANT SELECT, INSERT, UPDATE, DELETE ON shop.candidate TO application');
is( sql("SET ROLE application;
	INSERT INTO shop.candidate (hrflow_id) VALUES ('teacher-1'), ('teacher-2');
	UPDATE shop.candidate SET cv = 'new' WHERE hrflow_id = 'teacher-1';
	DELETE FROM shop.candidate WHERE hrflow_id = 'teacher-2';
	RESET ROLE;
	SELECT profile_id, generation FROM shop.embedding_profile WHERE profile_id LIKE 'teacher%'"),
	'teacher-1|1',
	'a role that writes candidates needs no privileges on the store');
like($node->error_of("SET ROLE application; SELECT * FROM shop.embedding"),
	qr/^42501/, 'a role that writes candidates has no privileges on the store');
like(
	$store->call(undef, role => 'postgres'),
	qr/ERROR:  42501: .*\nHINT:.*SET ROLE/s,
	'a superuser cannot refresh the store of another role');
like(
	$store->call(undef, role => 'application'),
	qr/ERROR:  42501/,
	"another role cannot refresh the owner's store");

# The owner of a store plants code wherever it might run
sql(q{CREATE ROLE mallory LOGIN;
	CREATE ROLE visitor;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO mallory, visitor;
	GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA public TO mallory, visitor;
	CREATE SCHEMA trap AUTHORIZATION mallory;
	CREATE TABLE trap_log (who name, how text);
	GRANT INSERT, SELECT ON trap_log TO PUBLIC;
	SET ROLE mallory;
	SELECT hrflow_create_store('trap.embedding', 'real[]');
	CREATE TABLE trap.candidate (hrflow_id text);
	SELECT hrflow_track_table('trap.embedding', 'trap.candidate', 'hrflow_id', 'acme');
	CREATE FUNCTION trap.spring() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.trap_log VALUES (current_user, TG_TABLE_NAME || ' ' || TG_OP);
		BEGIN
			SET ROLE postgres;
			INSERT INTO public.trap_log VALUES (current_user, 'set role');
		EXCEPTION WHEN OTHERS THEN
			INSERT INTO public.trap_log VALUES (current_user, SQLSTATE);
		END;
		RETURN COALESCE(NEW, OLD);
	END $$;
	CREATE FUNCTION trap.check_it(text) RETURNS bool LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.trap_log VALUES (current_user, 'check');
		RETURN true;
	END $$;
	CREATE TRIGGER spring BEFORE INSERT OR UPDATE OR DELETE ON trap.embedding_profile FOR EACH ROW
		EXECUTE FUNCTION trap.spring();
	CREATE TRIGGER spring BEFORE INSERT OR UPDATE OR DELETE ON trap.embedding FOR EACH ROW
		EXECUTE FUNCTION trap.spring();
	ALTER TABLE trap.embedding_profile ADD CHECK (trap.check_it(profile_id)),
		ALTER due_at SET DEFAULT CASE WHEN trap.check_it('') THEN now() END;
	ALTER TABLE trap.embedding ADD CHECK (trap.check_it(section)),
		ALTER fetched_at SET DEFAULT CASE WHEN trap.check_it('') THEN now() END;
	CREATE POLICY look ON trap.embedding_profile USING (trap.check_it(profile_id));
	CREATE POLICY look ON trap.embedding USING (trap.check_it(section));
	ALTER TABLE trap.embedding_profile ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
	ALTER TABLE trap.embedding ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
	GRANT USAGE ON SCHEMA trap TO visitor;
	GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA trap TO visitor;
	CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE sql AS $$ INSERT INTO public.trap_log
		VALUES (current_user, 'now'); SELECT pg_catalog.now() $$;
	ALTER ROLE mallory SET search_path = trap, pg_catalog;});
foreach my $case (
	[ 'postgres', '', 0 ],
	[ 'visitor', '', 6 ],
	[ 'visitor', 'DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY', 0 ])
{
	my ($who, $security, $refused) = @$case;

	sql("SET ROLE mallory; " . (
			$security
			  && "ALTER TABLE trap.embedding_profile $security;
				ALTER TABLE trap.embedding $security; "
		  ) . q{INSERT INTO trap.embedding VALUES ('acme', 'a', 'profile', 0, '{1,2}');
			INSERT INTO trap.embedding_profile
				VALUES ('acme', 'a', 'ok', now()), ('acme', 'f', 'failed', NULL);
			RESET ROLE;
			TRUNCATE trap_log});
	my (undef, undef, $errors) = $node->psql(
		'postgres', "SET ROLE $who;" . q{SET search_path = trap, public;
		SELECT public.hrflow_track('trap.embedding', 'acme', '{a,b}');
		SELECT public.hrflow_mark_due('trap.embedding', 'acme', '{a}');
		SELECT * FROM public.hrflow_store_status('trap.embedding');
		SELECT * FROM public.hrflow_store_failures('trap.embedding');
		SELECT public.hrflow_retry('trap.embedding');
		SELECT * FROM public.hrflow_match('trap.embedding', '{1,2}');
		SELECT * FROM public.hrflow_match_weighted('trap.embedding', '{1,2}', '{"profile": 1}');
		SELECT public.hrflow_index_statement('trap.embedding', 'profile');
		SELECT public.hrflow_untrack('trap.embedding', 'acme', '{a,b,f}');
		INSERT INTO trap.candidate VALUES ('c');
		DELETE FROM trap.candidate;
		SELECT public.hrflow_track_table('trap.embedding', 'trap.candidate', 'hrflow_id', 'acme');
		SELECT public.hrflow_untrack_table('trap.embedding', 'trap.candidate');
		SELECT public.hrflow_schedule('trap.embedding');
		SELECT public.hrflow_unschedule('trap.embedding');
		CALL public.hrflow_refresh('trap.embedding');
		SELECT public.hrflow_change_model('trap.embedding');
		SELECT public.hrflow_switch_model('trap.embedding');
		SELECT public.hrflow_drop_store('trap.embedding');}, on_error_stop => 0);
	my $name = "as $who" . ($security && ', to whom no policy applies');
	is(scalar(() = $errors =~ /must be owner of store/g),
		8, "$name, functions that require the owner are refused");
	is(scalar(() = $errors =~ /row-level security policy for table/g),
		$refused, "$name, functions that would miss rows because of a policy are refused");
	is( sql(q{SELECT string_agg(DISTINCT who || ' ' || how, ', ') FROM trap_log
		WHERE who <> 'mallory'}
		),
		$refused ? 'visitor check' : '',
		"$name, code planted by the owner of a store runs as the owner, except in a policy");
	is( sql('SELECT string_agg(DISTINCT how COLLATE "C", $$, $$ ORDER BY how COLLATE "C")
		FROM trap_log'
		),
		$refused
		? '42501, check, embedding_profile DELETE, embedding_profile INSERT'
		: '42501, check, embedding DELETE, embedding_profile DELETE, '
		  . 'embedding_profile INSERT, embedding_profile UPDATE',
		"$name, code planted by the owner of a store cannot become another role");
	sql('SET ROLE mallory; DELETE FROM trap.embedding; DELETE FROM trap.embedding_profile');
}

#
# Partitioned tables
#
$store->sql(
	q{
	CREATE TABLE shop.part (id int, hrflow_id text) PARTITION BY RANGE (id);
	CREATE TABLE shop.part_1 PARTITION OF shop.part FOR VALUES FROM (0) TO (10);
	CREATE TABLE shop.part_2 PARTITION OF shop.part FOR VALUES FROM (10) TO (20);
	SELECT hrflow_create_store('shop.parts', 'real[]');
	SELECT hrflow_track_table('shop.parts', 'shop.part', 'hrflow_id', 'acme');
	INSERT INTO shop.part VALUES (1, 'nurse-1'), (11, 'nurse-11');
	INSERT INTO shop.part_2 VALUES (12, 'nurse-12');});
is($store->sql('SELECT profile_id FROM shop.parts_profile ORDER BY 1'),
	"nurse-1\nnurse-11",
	'rows are tracked if written to a partitioned table, but not directly to a partition');
is($store->sql("SELECT hrflow_track_table('shop.parts', 'shop.part', 'hrflow_id', 'acme')"),
	1, 'reconciling a partitioned table tracks the rows written directly to a partition');
$store->sql('DELETE FROM shop.part WHERE id < 10');
is($store->sql('SELECT profile_id FROM shop.parts_profile ORDER BY 1'),
	"nurse-11\nnurse-12", 'a DELETE from a partitioned table erases its profiles');

# A partitioned store, whose partitions are refreshed separately
$store->sql(
	q{
	CREATE TABLE shop.shard (LIKE shop.parts INCLUDING ALL) PARTITION BY HASH (profile_id);
	CREATE TABLE shop.shard_profile (LIKE shop.parts_profile INCLUDING ALL)
		PARTITION BY HASH (profile_id);
	CREATE TABLE shop.shard_0 PARTITION OF shop.shard FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE shop.shard_1 PARTITION OF shop.shard FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	CREATE TABLE shop.shard_profile_0 PARTITION OF shop.shard_profile
		FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE shop.shard_profile_1 PARTITION OF shop.shard_profile
		FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	SELECT hrflow_track('shop.shard', 'acme',
		'{nurse-1,nurse-2,nurse-3,nurse-4,nurse-5,nurse-6,nurse-7,nurse-8}');}
);
my ($n) = $store->sql('SELECT count(*) FROM shop.shard_profile_1');
cmp_ok($n, '>', 0, 'the profiles of a partitioned store are spread over its partitions');
$node->safe_psql(
	'postgres',
	"SET ROLE keeper; SET application_name = pg_cron;
		CALL hrflow_refresh('shop.shard_1', profiles => 'shop.shard_profile_1')"
	  =~ s/SET ROLE keeper; /SET ROLE keeper;\n/r =~ s/; CALL/;\nCALL/r);
is( $store->sql("SELECT state, count(*) FROM shop.shard_profile GROUP BY 1 ORDER BY 1"),
	join("\n", 'due|' . (8 - $n), "ok|$n"),
	'a partitioned store is refreshed partition by partition');

#
# A store that is dumped, restored and refreshed
#
$store->sql(
	"DELETE FROM shop.candidate;
		DROP TABLE shop.shard, shop.shard_profile, shop.part, shop.parts, shop.parts_profile;"
);
$store->fill(20);
$store->call('max_profiles => 10');
my $dump = $node->basedir . '/shop.sql';
IPC::Run::run([ 'pg_dump', '-d', $node->connstr('postgres'), '-n', 'shop', '-f', $dump ]) or die;
my $other_api = Hrflow::StandIn->new('--dim' => 64);
my $other = Hrflow::Node->new('restored', $other_api, %settings);
$other->safe_psql(
	'postgres', 'CREATE ROLE keeper; CREATE ROLE application;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO keeper;
	GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA public TO keeper');
ok( IPC::Run::run(
		[ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $other->connstr('postgres'), '-f', $dump ],
		'>',
		\my $restored,
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default)),
	'a dump of the schema of a store can be restored');
my $there = bless { %$store, node => $other, api => $other_api }, 'Hrflow::Store';
is($there->states, 'due 10, ok 10', 'a restored store has the states that were dumped');
$there->sql("INSERT INTO shop.candidate (hrflow_id) VALUES ('teacher-1')");
like($there->call, qr/: 11 refreshed/, 'a restored store is refreshed');
is($there->wrong_vectors, 0, 'a restored store has the right vectors');
is(max(values %{ $there->asked }),
	2, 'a restored store requests no profile twice, apart from the check of its vectors');

like($other->error_of('DROP EXTENSION hrflow_embed'),
	qr/^2BP01/, 'the extension cannot be dropped without CASCADE while it feeds a store');
$other->safe_psql('postgres',
	'SET client_min_messages = error; DROP EXTENSION hrflow_embed CASCADE');
is($there->sql('SELECT count(*) FROM shop.embedding'),
	42, 'dropping the extension keeps the tables of the store');
$there->sql("INSERT INTO shop.candidate (hrflow_id) VALUES ('teacher-2')");
$other->safe_psql(
	'postgres', 'CREATE EXTENSION hrflow_embed;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO keeper;
	GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA public TO keeper');
is( $there->sql(
		"SELECT hrflow_track_table('shop.embedding', 'shop.candidate', 'hrflow_id', 'acme')"),
	1,
	'a table is tracked again once the extension is re-created');

#
# The jobs of pg_cron that were scheduled first
#
SKIP:
{
	skip 'pg_cron is not available', 12 unless $cron;

	# Start four more runs, and let all of them claim profiles
	my @more = map { $cron_store->start_call } 1 .. 4;
	ok( $cron->poll_query_until(
			'postgres',
			"SELECT count(*) = 6 FROM pg_locks WHERE relation = 'shop.embedding_profile'::regclass
				AND NOT granted"
		),
		'two jobs and four calls are waiting to claim profiles');
	$cron_lock->ask('COMMIT;');
	my ($by_call) = sum(map { $cron_store->finish_call($_) =~ /: (\d+) refreshed/ } @more);
	ok( $cron->poll_query_until(
			'postgres', "SELECT count(*) = 2 FROM cron.job_run_details WHERE status = 'succeeded'"),
		'pg_cron completes two jobs of a store');
	is( $cron->safe_psql(
			'postgres',
			'SELECT count(*), max(start_time) < min(end_time) FROM cron.job_run_details'),
		'2|t',
		'the two jobs run at the same time');
	is($cron_store->states, 'ok 5000', 'jobs and calls refresh the whole store')
	  or diag($cron->safe_psql('postgres', 'SELECT * FROM cron.job_run_details'));
	is($cron_store->sql('SELECT count(DISTINCT pid), count(*) FROM shop.claim'),
		'6|5000', 'each job and each call has claimed some profiles');
	ok($by_call > 0 && $by_call < 5000, "the calls have refreshed some of the profiles ($by_call)");
	my $by_all = $cron_store->asked;
	is(scalar(keys %$by_all), 5000, 'jobs and calls together request all profiles');
	is(max(values %$by_all), 1, 'jobs and calls together request no profile twice');
	is($cron_store->wrong_vectors("profile_id LIKE '%05'"),
		0, 'jobs and calls together store the right vectors');
	like($cron_store->sql("SELECT last_run FROM hrflow_store_status('shop.embedding')"),
		qr/^20\d\d-/, 'hrflow_store_status() shows the last run');
	unlike(
		PostgreSQL::Test::Utils::slurp_file($cron->logfile),
		qr/refreshed, /,
		'a job reports no progress in the server log');
	is( $cron_store->sql(
			"SELECT hrflow_unschedule('shop.embedding'); SELECT jobname FROM cron.job"),
		"t\noverlap",
		'hrflow_unschedule() removes the job');
}

$_->finish foreach grep { defined } $watcher, $cron_lock;
done_testing();
