# The history of the runs of a store: concurrent runs, runs that are ended by a
# cancel, the end of the session or a crash, and the errors that pg_cron gets.  A
# regression test has only one session, and could not see the requests.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use IPC::Run                ();
use PostgreSQL::Test::Utils ();
use Test::More;

my $api = Hrflow::StandIn->new('--latency' => 20, '--dim' => 16);
my %settings = (link_hosts => '127.0.0.1');
my $wrong_key = 'askr_' . 'f' x 32;

# pg_cron starts jobs at the beginning of a minute, so schedule them now, and test
# everything else in the meantime
my ($cron, $cron_api, %denied);
my ($share) = PostgreSQL::Test::Utils::run_command([ 'pg_config', '--sharedir' ]);
if (-e "$share/extension/pg_cron.control")
{
	$cron_api = Hrflow::StandIn->new('--dim' => 16);
	$cron = Hrflow::Node->new(
		'cron', $cron_api, %settings,
		shared_preload_libraries => 'pg_cron',
		'cron.database_name' => 'postgres',
		'cron.use_background_workers' => 'on');
	$cron->safe_psql('postgres', 'CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO PUBLIC');
	%denied =
	  map { ($_ => Hrflow::Store->new($cron, $cron_api, "shop_of_$_", owner => $_)) } 'mistaken',
	  'absent';
	my $wrong_key_file = $cron->basedir . '/wrong.key';
	PostgreSQL::Test::Utils::append_to_file($wrong_key_file, "$wrong_key\n");
	chmod 0600, $wrong_key_file or die $!;
	$cron->safe_psql(
		'postgres',
		"ALTER ROLE mistaken SET hrflow_embed.api_key_file = '$wrong_key_file';
		ALTER ROLE absent NOLOGIN");
	foreach my $owner (sort keys %denied)
	{
		$denied{$owner}->fill(10);
		$denied{$owner}->sql(
			"SET client_min_messages = error;
			SELECT hrflow_schedule('shop_of_$owner.embedding', '* * * * *')");
	}
}

my $node = Hrflow::Node->new('history', $api, %settings);
my $store = Hrflow::Store->new($node, $api, 'shop');
my $run_columns = 'stop_reason, asked, ok, failed, missing, requests, error';

sub runs
{
	my ($columns) = @_;
	return $store->sql("SELECT $columns FROM shop.embedding_run ORDER BY run");
}

sub forget_runs
{
	$store->sql('DELETE FROM shop.embedding_run');
	return;
}

sub last_run
{
	return $store->sql(
		"SELECT last_run_status, last_run_error FROM hrflow_store_status('shop.embedding')");
}

sub paid { return scalar(() = $api->get('/log') =~ /profile_id=/g); }

# Wait until a run has sent a request, and return its process
sub wait_for_run
{
	my ($pid);

	$api->wait_until(sub { $_[0]{requests} >= 1 }) or die 'no run sends a request';
	($pid) = $store->backends;
	return $pid;
}

#
# Concurrent runs, and retries
#
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 400) i");
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id)
		VALUES ('fault:first=2,status=503,id=cook'), ('novector-cook'), ('missing-1'), ('fault:status=422,id=x')"
);
my @calls = map { $store->start_call } 1 .. 3;
$store->finish_call($_) foreach @calls;
is( runs('stop_reason, error IS NULL, ended_at >= started_at'),
	join("\n", ('done|t|t') x 3),
	'each of three concurrent runs has a row in the history');
is( $store->sql(
		'SELECT count(DISTINCT pid), sum(asked), sum(ok), sum(failed), sum(missing)
			FROM shop.embedding_run'
	),
	'3|404|402|1|1',
	'the rows of three concurrent runs count all profiles and their outcomes');
is($store->sql('SELECT sum(requests) FROM shop.embedding_run'),
	paid(), 'the rows of three concurrent runs count all requests, including retries');
is(last_run(), 'succeeded|', 'hrflow_store_status() shows that the last run succeeded');

#
# Runs that are canceled, terminated or killed
#
foreach my $case ([ 'pg_cancel_backend', 'cancelled', 'canceling statement due to user request' ],
	[ 'pg_terminate_backend', 'terminated', '' ])
{
	my ($function, $reason, $error) = @$case;

	$store->track("SELECT 'fault:latency=1000,id=' || i FROM generate_series(1, 2000) i");
	forget_runs();
	my $call = $store->start_call;
	my $pid = wait_for_run();
	is(last_run(), 'running|', "hrflow_store_status() shows a running run before it is $reason");
	$node->safe_psql('postgres', "SELECT $function($pid)");
	$store->finish_call($call);
	is(runs('stop_reason, error'),
		"$reason|$error", "the row of a run that was $reason has that as its reason");
	is( $store->sql(
			'SELECT ok - (SELECT count(*) FROM shop.embedding_profile
			WHERE refreshed_at IS NOT NULL) FROM shop.embedding_run'),
		0,
		"the row of a run that was $reason counts the profiles that were stored");
	is(runs('requests >= ok AND asked >= ok'),
		't', "the row of a run that was $reason counts its requests");
	is(last_run(), "failed|$error",
		"hrflow_store_status() shows that a run that was $reason failed");
	is( $store->sql(
			"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 'shop.embedding_run'::regclass"
		),
		0,
		"a run that was $reason leaves no lock");
}

# A run that ends with an error
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 20) i");
forget_runs();
$store->sql(
	q{CREATE FUNCTION shop.refuse() RETURNS trigger LANGUAGE plpgsql AS
		$$BEGIN RAISE 'disk full' USING ERRCODE = '53100'; END$$;
	CREATE TRIGGER refuse BEFORE INSERT ON shop.embedding FOR EACH ROW
		EXECUTE FUNCTION shop.refuse()}
);
like($store->call, qr/ERROR:  53100: disk full/, 'an error of the server ends a run');
like(
	runs('stop_reason, asked, ok, error'),
	qr/^error\|\d+\|0\|disk full$/,
	'the row of a run that ended with an error contains the error');
$store->sql('DROP TRIGGER refuse ON shop.embedding');

$store->track("SELECT 'fault:latency=1000,id=' || i FROM generate_series(1, 1000) i");
forget_runs();
my $call = $store->start_call;
wait_for_run();
$node->stop('immediate');
$store->finish_call($call);
$node->start;
is(runs('ended_at, stop_reason, asked'),
	'||', 'the row of a run that a crash has killed has a start time but no end time');
is(last_run(), 'killed|', 'hrflow_store_status() shows that a run was killed');

#
# The history is locked when a run begins, or when it ends
#
my $locker = Hrflow::Session->new($node);
my $warning = qr/WARNING: .*could\ not\ record\ the\ run\ in\ the\ history
	\ of\ store\ shop\.embedding
	\nDETAIL: .*lock\ timeout/x;
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 10) i");
forget_runs();
$locker->ask('BEGIN; LOCK TABLE shop.embedding_run;');
like($store->call, $warning, 'a run that begins does not wait long for a locked history');
$locker->ask('ROLLBACK;');
is($store->states, 'ok 10', 'a run that cannot insert its row still refreshes the store');
is(runs('run'), '', 'a run that cannot insert its row when it begins does not insert it later');

$store->sql(
	q{CREATE FUNCTION shop.wait() RETURNS trigger LANGUAGE plpgsql AS
		$$BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END$$;
	CREATE TRIGGER wait BEFORE INSERT ON shop.embedding FOR EACH STATEMENT
		EXECUTE FUNCTION shop.wait()}
);
$store->track("SELECT 'cook-' || i FROM generate_series(1, 10) i");
$locker->ask('SELECT pg_advisory_lock(1);');
$call = $store->start_call;
$node->poll_query_until('postgres', 'SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)');
$locker->ask('BEGIN; LOCK TABLE shop.embedding_run; SELECT pg_advisory_unlock(1);');
like($store->finish_call($call),
	$warning, 'a run that ends does not wait long for a locked history');
$locker->ask('ROLLBACK;');
$locker->finish;
is($store->states, 'ok 10', 'a run that cannot update its row still refreshes the store');
is(last_run(), 'killed|',
	'hrflow_store_status() shows a run that could not update its row as killed');
$store->sql('DROP TRIGGER wait ON shop.embedding');

#
# Errors that a scheduler gets.  Failures can pause their account, which is a key at
# an address, so use a separate account for them.
#
my $down_api = Hrflow::StandIn->new;
foreach my $case (
	[   'a wrong key', 'refused',
		qr/ERROR:  28000: .*shop\.embedding was stopped: HrFlow API refused the API key/ ],
	[ 'an outage', 'outage', qr/ERROR:  58000: .*was stopped: the API sent no usable reply; / ])
{
	my ($name, $reason, $message) = @$case;
	my $fault = $reason eq 'outage' ? 'fault:status=500,id=' : 'nurse-';

	$store->track("SELECT '$fault' || i FROM generate_series(1, 10) i");
	forget_runs();
	my %options = (
		settings => {
			'hrflow_embed.max_attempts' => 1,
			$reason eq 'refused'
			? ('hrflow_embed.api_key' => $wrong_key)
			: ('hrflow_embed.base_url' => $down_api->base_url) });
	my $printed = $store->call('batch_size => 8', %options, application => 'pg_cron scheduler');
	like($printed, $message, "$name raises an error in a run of a scheduler");
	is(runs('stop_reason'), $reason,
		"the row of a run that $name stopped is kept despite the error");
	$store->hasten('true');
	like(
		$store->call('batch_size => 8', %options),
		qr/WARNING:  .*was stopped: /,
		"$name raises a warning in a run of a user");
	like(last_run(), qr/^failed\|./,
		"hrflow_store_status() shows that a run that $name stopped failed");
}
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 30) i");
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id) VALUES ('fault:status=402,latency=1000,id=nurse')");
like(
	$store->call('batch_size => 4', application => 'pg_cron'),
	qr/ERROR:  53400: .*was stopped: HrFlow account is over its quota/,
	'a quota that is exceeded raises an error in a run of a scheduler');
is($store->states, 'due 1, ok 30',
	'profiles fetched before the quota was exceeded are stored despite the error');

#
# Restoring a dump of data only, as docs/refresh.md describes
#
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 20) i");
$store->call;
my %dump = map { ($_ => $node->basedir . "/$_.sql") } 'schema', 'data';
foreach my $part (sort keys %dump)
{
	IPC::Run::run(
		[   'pg_dump', '-d', $node->connstr('postgres'),
			'-n', 'shop', "--$part-only", '-f', $dump{$part} ]) or die;
}
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->safe_psql(
	'restored', 'CREATE EXTENSION hrflow_embed;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO keeper;
	GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA public TO keeper');

sub restore
{
	my ($part, $options) = @_;
	my $err = '';

	local $ENV{PGOPTIONS} = $options;
	IPC::Run::run(
		[   'psql', '-Xq1', '-v', 'ON_ERROR_STOP=1',
			'-d', $node->connstr('restored'), '-f', $dump{$part} ],
		'>',
		\my $out,
		'2>',
		\$err,
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return $err;
}
is(restore('schema', ''), '', 'a dump of the schema only can be restored');
like(
	restore('data', ''),
	qr/duplicate key/,
	'a dump of data only cannot be restored while triggers are enabled');
is(restore('data', '-c session_replication_role=replica'),
	'', 'a dump of data only can be restored while triggers are disabled');
$api->reset;
$node->safe_psql(
	'restored', "SET ROLE keeper;
	SELECT hrflow_track_table('shop.embedding', 'shop.candidate', 'hrflow_id',
		source_id => 'acme', refresh_columns => '{cv}');
	SET application_name = pg_cron;
	CALL hrflow_refresh('shop.embedding')");
is($api->stats->{requests}, 0, 'no profile is requested after data only was restored');
is( $node->safe_psql(
		'restored',
		'SELECT count(*), (SELECT count(*) FROM shop.embedding_profile),
			(SELECT max(run) FROM shop.embedding_run)
				> (SELECT min(run) FROM shop.embedding_run) FROM shop.embedding'
	),
	'40|20|t',
	'vectors, states and the history are the same after data only was restored');

#
# The jobs of pg_cron that were scheduled first
#
SKIP:
{
	skip 'pg_cron is not available', 5 unless $cron;

	foreach my $owner (sort keys %denied)
	{
		ok( $cron->poll_query_until(
				'postgres',
				"SELECT count(*) > 0 FROM cron.job_run_details
					WHERE username = '$owner' AND status NOT IN ('starting', 'running')"
			),
			"pg_cron has run the job of the role $owner");
	}

	# The last run must not be one that has only started.  At the beginning of a minute,
	# pg_cron may start one without having noticed that it must not.
	$cron->safe_psql('postgres', 'UPDATE cron.job SET active = false');
	$cron->poll_query_until(
		'postgres',
		"SELECT extract(second FROM clock_timestamp()) BETWEEN 5 AND 55 AND count(*) = 0
			FROM cron.job_run_details WHERE status IN ('starting', 'running')") or die;
	my %status = map {
		(   $_ => $denied{$_}->sql(
				"SELECT last_run_status, last_run_error, last_job_status
				FROM hrflow_store_status('shop_of_$_.embedding')"
			))
	} sort keys %denied;
	like(
		$status{mistaken},
		qr/^failed\|HrFlow API refused the API key.*\|failed: .*was stopped: HrFlow API refused/s,
		'both pg_cron and the history show that a job with a wrong key failed');
	like($status{absent}, qr/^\|\|failed/,
		'only pg_cron shows that a job that could not connect failed');
	is($cron->safe_psql('postgres', 'SELECT count(*) FROM shop_of_absent.embedding_run'),
		0, 'the history has no row for a job that could not connect');
}

# A history that cannot be written, and an unrelated table with its name
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 3) i");
$store->sql('ALTER TABLE shop.embedding_run ADD CONSTRAINT closed CHECK (false) NOT VALID');
my $printed = $store->call;
like(
	$printed,
	qr/WARNING:  .*could not record the run in the history of store shop\.embedding\n/,
	'a run that cannot be entered in the history raises a warning');
like(
	$printed,
	qr/: 3 refreshed/,
	'a run that cannot be entered in the history refreshes all profiles');
$store->sql(
	'ALTER TABLE shop.embedding_run RENAME TO closed_run;
	CREATE TABLE shop.embedding_run (note text)');
like(
	$store->call,
	qr/: 0 refreshed/,
	'a run is not affected by an unrelated table with the name of the history');
$store->sql("SELECT hrflow_drop_store('shop.embedding')");
is($store->sql('SELECT count(*) FROM shop.embedding_run'),
	0, 'an unrelated table with the name of the history is not dropped with the store');

done_testing();
