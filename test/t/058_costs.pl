# What requests cost: told before a batch sends them, counted by role, function
# and day as the API counts them, kept over a restart, and limited by day.  The
# stand-in says how many there were; what is shared and kept takes several
# sessions and restarts.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use IO::Socket::INET        ();
use IPC::Run                ();
use PostgreSQL::Test::Utils ();
use Test::More;

# The requests of a day are a key's.
my @keys = ($Hrflow::StandIn::KEY, map { "askr_key$_" } 1 .. 4);
my $api = Hrflow::StandIn->new('--latency' => 20, map { ('--key' => $_) } @keys);
my $node = Hrflow::Node->new(
	'costs', $api,
	link_hosts => '127.0.0.1',
	shared_preload_libraries => 'hrflow_embed');

sub sql { return $node->safe_psql('postgres', @_); }

# Requests to the API and for links, as the stand-in counts them.
sub received
{
	my $stats = $api->stats;
	return "$stats->{api_requests}|$stats->{store_requests}";
}

sub ids
{
	my ($n) = @_;
	return "ARRAY(SELECT 'p' || i FROM generate_series(1, $n) i)";
}

#
# Told before
#
my $arguments = "'acme', " . ids(40) . q( || '{p1,p2,NULL}'::text[], '{"profile": 1, "skills": 1}');
$api->reset;
my $told = sql("SELECT requests, links FROM hrflow_estimate($arguments)");
is($api->stats->{requests}, 0, 'an estimate sends no request');
is(sql("SELECT seconds IS NULL FROM hrflow_estimate($arguments)"),
	't', 'before the first request nothing is known of the time that others take');
sql("SELECT count(*) FROM hrflow_profile_vectors($arguments)");
is(received(), $told, 'an estimate tells the requests and the links of a batch');

# 1600 requests of 20 ms, 32 at a time
is( sql("SET hrflow_embed.max_concurrency = 32;
		SELECT seconds >= 0.99 FROM hrflow_estimate('acme', " . ids(1600) . ')'),
	't',
	'an estimate of the time goes by the latency seen before');

#
# Counted
#
sql(q{
	CREATE ROLE recruiter LOGIN; CREATE ROLE monitor LOGIN IN ROLE pg_read_all_stats;
	CREATE ROLE analyst LOGIN; CREATE ROLE plain LOGIN;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO recruiter, analyst;
	CREATE FUNCTION definer() RETURNS bigint LANGUAGE sql SECURITY DEFINER
		AS $$ SELECT count(*) FROM hrflow_text_embeddings('{a,b,c}') $$});
my $usage = q{SELECT role, function, api_requests, link_requests FROM hrflow_embed_usage
	WHERE role IN ('recruiter', 'analyst', 'keeper')
	ORDER BY role, function COLLATE "C"};

sub run_as
{
	my ($role, $sql) = @_;

	$node->psql('postgres', $sql, extra_params => [ '-U', $role ]);
	return;
}

$api->reset;
sql('SELECT hrflow_embed_stats_reset()');
run_as('recruiter',
		"SELECT count(*) FROM hrflow_profile_vectors('acme', "
	  . ids(30)
	  . q{, '{"profile": 1, "skills": 1}')});
run_as('recruiter', q{SELECT hrflow_auth(); SELECT definer()});
run_as('recruiter',
	"SELECT hrflow_profile_embedding('acme', 'p' || i) FROM generate_series(1, 20) i");
run_as(
	'analyst', q{SELECT hrflow_text_embedding('text ' || i), hrflow_job_vector('job-' || i)
		FROM generate_series(1, 10) i});
run_as('analyst', q{SELECT hrflow_profile_embedding('acme', 'fault:first=2,status=500')});
run_as(
	'analyst',
	q{SET hrflow_embed.batch_timeout = '3s';
	SELECT count(*) FROM hrflow_profile_embeddings('acme', '{fault:silent,p}')});
my $store = Hrflow::Store->new($node, $api, 'shop');
$store->fill(8);
$store->call;

my $counted = 'analyst|hrflow_job_vector|10|10
analyst|hrflow_profile_embedding|3|0
analyst|hrflow_profile_embeddings|2|0
analyst|hrflow_text_embedding|10|0
keeper|hrflow_refresh|8|16
recruiter|hrflow_auth|1|0
recruiter|hrflow_profile_embedding|20|0
recruiter|hrflow_profile_vectors|30|60
recruiter|hrflow_text_embeddings|3|0';
is(sql($usage), $counted, 'requests are counted by role and function');
is(sql('SELECT api_requests, link_requests FROM hrflow_embed_stats'),
	received(), 'the statistics have the requests to the API and for links that were received');
is( sql(q{SELECT sum(api_requests), sum(link_requests) FROM hrflow_embed_usage
			WHERE role IN ('recruiter', 'analyst', 'keeper')}),
	received(),
	'the usage of all roles has them, too');
is(sql(q{SELECT DISTINCT day = (now() AT TIME ZONE 'UTC')::date FROM hrflow_embed_usage}),
	't', 'requests are counted on the day in UTC');

sub roles_seen_by
{
	my ($role) = @_;

	return sql(
		"SELECT string_agg(DISTINCT role, ',' ORDER BY role) FROM hrflow_embed_usage
			WHERE role IN ('recruiter', 'analyst', 'keeper')",
		extra_params => [ '-U', $role ]);
}
is(roles_seen_by('monitor'), 'analyst,keeper,recruiter', 'pg_read_all_stats sees the rows of all');
is(roles_seen_by('analyst'), 'analyst', 'others see their own rows');
is(roles_seen_by('plain'), '', 'and nothing where they have none');

#
# Kept
#
$node->restart;
is(sql($usage), $counted, 'what was counted is kept over a restart');
run_as('analyst', q{SELECT hrflow_text_embedding('one more')});
$node->restart;
like(
	sql($usage),
	qr/^analyst\|hrflow_text_embedding\|11\|0$/m,
	'what is counted after a restart is added, and kept over the next');
ok(!-e $node->data_dir . '/pg_stat/hrflow_embed.stat', 'no file is left while the server runs');

# A backend that is killed has the server reset what is shared.
{
	my $before = sql($usage);
	my $started = q{SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'};
	my $then = sql($started);
	sql('ALTER SYSTEM SET restart_after_crash = on');
	$node->reload;
	kill(KILL => Hrflow::Session->new($node)->{pid}) or die $!;
	$node->poll_query_until('postgres', "SELECT ($started) > '$then'")
	  or die 'the server has not recovered';
	is(sql($usage), $before, 'what was counted is kept when a backend has crashed');
}

# A server that cannot start, for a mistake that is found after the file was read
{
	my $before = sql($usage);
	my $hba = $node->data_dir . '/pg_hba.conf';
	my $content = PostgreSQL::Test::Utils::slurp_file($hba);
	$node->stop;
	PostgreSQL::Test::Utils::append_to_file($hba, "nonsense\n");
	ok(!$node->start(fail_ok => 1), 'a server with a mistake in pg_hba.conf does not start');
	open(my $fh, '>', $hba) or die $!;
	print $fh $content;
	close($fh);
	$node->start;
	is(sql($usage), $before, 'what was counted is kept when it starts later');
}

# As many rows, and as many accounts, as there is room for
{
	my ($then, $today) = (9000, sql(q{SELECT (now() AT TIME ZONE 'UTC')::date - '2000-01-01'}));
	my $file = $node->data_dir . '/pg_stat/hrflow_embed.stat';
	my $text = "SELECT hrflow_text_embedding('a')";

	$node->stop;
	my ($magic) = unpack('L', PostgreSQL::Test::Utils::slurp_file($file));
	open(my $fh, '>:raw', $file) or die $!;
	print $fh pack('L l', $magic, 4096);
	print $fh pack('l L l x4 Q2', $then, 10, 0, $_ == 7 ? 1 : 2, 1) foreach 1 .. 4096;
	print $fh pack('Q2', $_, ($_ == 7 ? $then : $today) << 32 | 5)  foreach 1 .. 64;
	close($fh);
	$node->start;

	my $old =
	  q{SELECT count(*), min(api_requests) FROM hrflow_embed_usage WHERE day = '2024-08-22'};
	is(sql($old), '4096|1', 'as many rows are loaded as are kept');
	run_as('analyst', $text);
	is(sql($old), '4095|2', 'where there is no room, the smallest row of the first day gives way');
	is(sql($usage), 'analyst|hrflow_text_embedding|1|0', 'to the new one');

	# The last of the others has sent five.
	my $ask = "SET hrflow_embed.max_requests_per_day = 6; $text";
	$node->safe_psql('postgres', "SET hrflow_embed.api_key = '$keys[3]'; $ask");
	like($node->error_of("SET hrflow_embed.api_key = '$keys[4]'; $ask"),
		qr/^53400/, 'an account that finds no room counts together with another');
}

# A file that is cut off, or is something else
$node->stop;
my $file = $node->data_dir . '/pg_stat/hrflow_embed.stat';
ok(-s $file, 'the file is there while the server is down');
truncate($file, 100) or die $!;
$node->start;
like(
	PostgreSQL::Test::Utils::slurp_file($node->logfile),
	qr/ignoring invalid data in file "pg_stat\/hrflow_embed.stat"/,
	'a file that is cut off is told, and the server starts');
sql('SELECT hrflow_auth()');
is(sql(q{SELECT sum(api_requests) >= 1 FROM hrflow_embed_usage}), 't', 'and counts go on');

#
# Limited
#
sub limited
{
	my ($key, $limit, $sql) = @_;
	my ($status, $out, $err) = $node->psql('postgres', <<"END");
\\set VERBOSITY verbose
SET hrflow_embed.api_key = '$key';
SET hrflow_embed.max_requests_per_day = $limit;
$sql
END
	return "$out\n$err";
}

my $batch =
	"SELECT status, count(*) FROM hrflow_profile_embeddings('acme', "
  . ids(50)
  . ') GROUP BY 1 ORDER BY 1;';
$api->reset;
like(
	limited($keys[1], 20, $batch),
	qr/^ok\|20\nover_budget\|30\n
		.*WARNING:.*account\ has\ sent\ as\ many\ requests\ to\ the\ HrFlow\ API\ today\ as\ it\ may
		.*DETAIL:\ \ 20\ of\ 50\ elements\ were\ answered/xs,
	'when an account has sent what it may on a day, what came is kept, and the rest is told');
is($api->stats->{api_requests}, 20, 'no request more was sent');
like(
	limited($keys[1], 20, "SELECT hrflow_text_embedding('a');"),
	qr/ERROR:\ \ 53400:\ account\ has\ sent.*\nDETAIL:\ \ The\ limit\ is\ 20\ requests\ a\ day\.
		\nHINT:\ \ .*max_requests_per_day/x,
	'another session may send none either');
is($api->stats->{api_requests}, 20, 'and sends none');
$node->restart;
like(
	limited($keys[1], 20, "SELECT hrflow_text_embedding('a');"),
	qr/ERROR:  53400/,
	'nor after a restart');
is($api->stats->{api_requests}, 20, 'where none is sent');
like(limited($keys[1], 22, $batch), qr/^ok\|2\nover_budget\|48\n/,
	'a higher limit admits the rest');
like(limited($keys[2], 20, $batch), qr/^ok\|20\n/, 'another key has its own limit');
is(limited($keys[3], 0, $batch) =~ s/\n+\z//r, 'ok|50', 'what is sent without a limit');
like(
	limited($keys[3], 40, "SELECT hrflow_text_embedding('a');"),
	qr/ERROR:  53400/,
	'counts towards one that is set later');
like(
	limited($keys[4], 3, "SELECT hrflow_profile_embedding('acme', 'fault:status=500');"),
	qr/ERROR:  58000/,
	'where the limit is met by retries, the failure is what is raised');

# An outage of the network
{
	my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) or die $!;
	my $port = $socket->sockport;
	close($socket);
	my $before = sql($usage);
	my $sql = "SELECT hrflow_text_embedding('a');";
	my $printed = limited(
		$keys[4], 1,
		"SET hrflow_embed.base_url = 'http://127.0.0.1:$port';
		SET hrflow_embed.max_attempts = 2; SET hrflow_embed.max_requests_per_statement = 2;
		\\set ON_ERROR_STOP 0\n$sql $sql $sql");
	is_deeply(
		[ $printed =~ /ERROR:  (\w+)/g ],
		[ ('08001') x 3 ],
		'what finds no connection does not count towards the limit of a day');
	is(sql($usage), $before, 'nor is it counted as sent');
}

# Several sessions at once
my @sessions = map {
	my %run = (out => '');
	$run{process} = IPC::Run::start(
		[   'psql', '-XAtq',
			'-d', $node->connstr('postgres'),
			'-c', "SET hrflow_embed.api_key = '$keys[2]'",
			'-c', 'SET hrflow_embed.max_requests_per_day = 70',
			'-c', $batch ],
		'>',
		\$run{out},
		'2>',
		'/dev/null');
	\%run
} 1 .. 4;
$_->{process}->finish foreach @sessions;
my $sum = 0;
$sum += $_ foreach map { $_->{out} =~ /ok\|(\d+)/ ? $1 : 0 } @sessions;
is($sum, 50, 'sessions that send at the same time do not exceed the limit together');

$node->stop('fast');
done_testing();
