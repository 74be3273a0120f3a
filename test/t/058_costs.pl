# The cost of requests: it is estimated before a batch sends them, counted by
# role, function and day as by the API, kept across a restart, and limited per
# day.  The stand-in counts the requests received; shared and saved counts need
# several sessions and restarts.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Port;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use IPC::Run                ();
use PostgreSQL::Test::Utils ();
use Test::More;

# Counts of a day are tested, so do not begin just before the day ends.
{
	my $left = 86_400 - time % 86_400;
	sleep $left if $left < 300;
}

# Requests per day are counted for each key.
my @keys = ($Hrflow::StandIn::KEY, map { "askr_key$_" } 1 .. 5);
my $api = Hrflow::StandIn->new('--latency' => 20, map { ('--key' => $_) } @keys);
my $node = Hrflow::Node->new(
	'costs', $api,
	link_hosts => '127.0.0.1',
	shared_preload_libraries => 'hrflow_embed');

sub sql { return $node->safe_psql('postgres', @_); }

# Return the requests to the API and for links that the stand-in has counted.
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
# Estimates
#
my $arguments = "'acme', " . ids(40) . q( || '{p1,p2,NULL}'::text[], '{"profile": 1, "skills": 1}');
$api->reset;
my $told = sql("SELECT requests, links FROM hrflow_estimate($arguments)");
is($api->stats->{requests}, 0, 'an estimate sends no request');
is(sql("SELECT seconds IS NULL FROM hrflow_estimate($arguments)"),
	't', 'before the first request no estimate of the time is returned');
sql("SELECT count(*) FROM hrflow_profile_vectors($arguments)");
is(received(), $told, 'an estimate has the number of requests and links of a batch');

# 1600 requests of 20 ms, 32 at a time
is( sql("SET hrflow_embed.max_concurrency = 32;
		SELECT seconds >= 0.99 FROM hrflow_estimate('acme', " . ids(1600) . ')'),
	't',
	'an estimate of the time is based on the latency measured before');

#
# Counts
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
	'the usage of all roles adds up to the requests received');
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
is(roles_seen_by('monitor'),
	'analyst,keeper,recruiter', 'a member of pg_read_all_stats sees the rows of all roles');
is(roles_seen_by('analyst'), 'analyst', 'a role without pg_read_all_stats sees its own rows');
is(roles_seen_by('plain'), '', 'a role that has sent nothing sees no rows');

#
# Other sessions see the requests of a statement before it ends
#
my $sums = q{SELECT sum(api_requests), (SELECT api_requests FROM hrflow_embed_stats)
	FROM hrflow_embed_usage};
sql(q{CREATE TABLE slow (vector real[]);
	CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql
		AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN NEW; END $$;
	CREATE TRIGGER slow BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION be_slow()});

# The requests for 30 rows are sent together.  For 300 rows, more are sent while rows are
# inserted, but their replies are always complete before their rows.
foreach my $case ([ 30, 30 ], [ 300, 150 ])
{
	my ($nrows, $least) = @$case;
	my $session = Hrflow::Session->new($node);
	my ($before) = split /\|/, sql($sums);
	my $seen;

	$api->reset;
	$session->send(
		"INSERT INTO slow SELECT hrflow_text_embedding('text ' || i)
			FROM generate_series(1, $nrows) i;\n\\echo -- done");
	$api->wait_until(sub { $_[0]{requests} >= 1 }) or die 'no request was sent';
	$node->poll_query_until(
		'postgres',
		qq{SELECT sum(api_requests) >= $before + $least OR NOT EXISTS
			(SELECT FROM pg_stat_activity WHERE pid = $session->{pid} AND state = 'active')
			FROM hrflow_embed_usage});
	$seen = sql($sums);
	is( sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity
			WHERE pid = $session->{pid} AND state = 'active'"),
		't',
		"a slow INSERT of $nrows rows still runs when its usage can be seen");
	my ($usage, $stats) = split /\|/, $seen;
	cmp_ok($usage - $before, '>=', $least, "the usage of a slow INSERT of $nrows rows can be seen");
	cmp_ok(
		$stats, '>=',
		$usage - $before,
		"the statistics of a slow INSERT of $nrows rows can be seen");
	$session->wait_for(qr/-- done/);
	$session->finish;
}
{
	my $session = Hrflow::Session->new($node);
	my ($before) = split /\|/, sql($sums);

	$api->reset;
	$session->query(
		q{BEGIN; DECLARE c CURSOR FOR
			SELECT hrflow_text_embedding('text ' || i) FROM generate_series(1, 100) i;
		MOVE 5 FROM c;});
	my ($usage) = split /\|/, sql($sums);
	cmp_ok($api->stats->{api_requests}, '>=', 5, 'a cursor sends requests');
	is( $usage - $before,
		$api->stats->{api_requests},
		'the requests of a cursor can be seen while the client does not fetch');
	$session->finish;
}

#
# Saved counts
#
$node->restart;
is(sql($usage), $counted, 'counts are kept across a restart');
run_as('analyst', q{SELECT hrflow_text_embedding('one more')});
$node->restart;
like(
	sql($usage),
	qr/^analyst\|hrflow_text_embedding\|11\|0$/m,
	'requests after a restart are added to the counts, and kept across the next');
ok(!-e $node->data_dir . '/pg_stat/hrflow_embed.stat', 'no file is left while the server runs');

# When a backend is killed, the server reinitializes shared memory.
{
	my $before = sql($usage);
	sql('ALTER SYSTEM SET restart_after_crash = on');
	$node->reload;
	$node->kill_backend(Hrflow::Session->new($node)->{pid});
	is(sql($usage), $before, 'counts are kept when a backend has crashed');
}

# A server that fails to start because of a mistake that is found after the file
# was read
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
	is(sql($usage), $before, 'counts are kept when a server that could not start is started later');
}

# As many rows and accounts as there is room for
{
	my ($then, $today) = (9000, sql(q{SELECT (now() AT TIME ZONE 'UTC')::date - '2000-01-01'}));
	my $file = $node->data_dir . '/pg_stat/hrflow_embed.stat';
	my $text = "SELECT hrflow_text_embedding('a')";

	# Structs are padded, which depends on the architecture.
	my $align = sql('SELECT max_data_alignment FROM pg_control_init()');

	$node->stop;
	my ($magic) = unpack('L', PostgreSQL::Test::Utils::slurp_file($file));
	open(my $fh, '>:raw', $file) or die $!;
	print $fh pack('L l', $magic, 4096);
	print $fh pack("l L l x!$align Q2", $then, 10, 0, $_ == 7 ? 1 : 2, 1) foreach 1 .. 4096;
	print $fh pack('Q2', $_, ($_ == 7 ? $then : $today) << 32 | 5) foreach 1 .. 64;
	close($fh);
	$node->start;

	my $old =
	  q{SELECT count(*), min(api_requests) FROM hrflow_embed_usage WHERE day = '2024-08-22'};
	is(sql($old), '4096|1', 'a file with the maximum number of rows is loaded completely');
	run_as('analyst', $text);
	is(sql($old), '4095|2',
		'if there is no room, the row of the oldest day with the fewest requests is replaced');
	is(sql($usage), 'analyst|hrflow_text_embedding|1|0', 'to the new one');

	# The last of the other accounts has sent five requests.
	my $ask = "SET hrflow_embed.max_requests_per_day = 6; $text";
	$node->safe_psql('postgres', "SET hrflow_embed.api_key = '$keys[3]'; $ask");
	like($node->error_of("SET hrflow_embed.api_key = '$keys[4]'; $ask"),
		qr/^53400/, 'an account that finds no room counts together with another');
}

# A file that is truncated or has other content
$node->stop;
my $file = $node->data_dir . '/pg_stat/hrflow_embed.stat';
ok(-s $file, 'the file of counts exists while the server is down');
truncate($file, 100) or die $!;
$node->start;
like(
	PostgreSQL::Test::Utils::slurp_file($node->logfile),
	qr/ignoring invalid data in file "pg_stat\/hrflow_embed.stat"/,
	'a truncated file is reported, and the server starts');
sql('SELECT hrflow_auth()');
is(sql(q{SELECT sum(api_requests) >= 1 FROM hrflow_embed_usage}),
	't', 'requests are counted after the file was truncated');

#
# The daily limit
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
		.*WARNING:.*account\ reached\ its\ daily\ limit\ of\ requests\ to\ the\ HrFlow\ API
		.*DETAIL:\ \ The\ API\ sent\ a\ final\ reply\ for\ 20\ of\ 50\ elements/xs,
	'when an account reaches its daily limit, results are kept, and the other rows say why they failed'
);
is($api->stats->{api_requests}, 20, 'a batch sends no more requests than the daily limit');
like(
	limited($keys[1], 20, "SELECT hrflow_text_embedding('a');"),
	qr/ERROR:\ \ 53400:\ account\ reached\ its\ daily\ limit.*\nDETAIL:\ \ The\ daily\ limit\ is\ 20\.
		\nHINT:\ \ .*max_requests_per_day/x,
	'another session may not send requests after the daily limit was reached');
is($api->stats->{api_requests},
	20, 'another session sends no request after the daily limit was reached');
$node->restart;
like(
	limited($keys[1], 20, "SELECT hrflow_text_embedding('a');"),
	qr/ERROR:  53400/,
	'the daily limit still applies after a restart');
is($api->stats->{api_requests}, 20, 'where none is sent');
like(limited($keys[1], 22, $batch),
	qr/^ok\|2\nover_budget\|48\n/, 'a higher daily limit admits more requests');
like(limited($keys[2], 20, $batch), qr/^ok\|20\n/, 'another key has its own limit');
is(limited($keys[3], 0, $batch) =~ s/\n+\z//r,
	'ok|50', 'an account without a daily limit sends all requests');
like(
	limited($keys[3], 40, "SELECT hrflow_text_embedding('a');"),
	qr/ERROR:  53400/,
	'requests sent without a limit count towards a limit that is set later');
like(
	limited($keys[4], 3, "SELECT hrflow_profile_embedding('acme', 'fault:status=500');"),
	qr/ERROR:  58000/,
	'if retries reach the limit, the original failure is raised');

# A network outage
my $port = Hrflow::Port::reserve();

sub test_outage
{
	my ($when) = @_;
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
		"requests without a connection do not count towards the daily limit$when");
	is(sql($usage), $before, "requests without a connection are not counted as sent$when");
	return;
}
test_outage('');

# Concurrent sessions
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
		'/dev/null',
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	\%run
} 1 .. 4;
$_->{process}->finish foreach @sessions;
my $sum = 0;
$sum += $_ foreach map { $_->{out} =~ /ok\|(\d+)/ ? $1 : 0 } @sessions;
is($sum, 50, 'concurrent sessions do not exceed the daily limit together');

# Refreshes of all kinds of stores
my $sent = 0;
foreach my $content (qw(profile job text document))
{
	my $limited = Hrflow::Store->new($node, $api, $content . 's', content => $content);
	$limited->fill(15);
	$api->reset;
	$sent += 10;
	like(
		$limited->finish_call(
			$limited->start_call(
				undef,
				settings => {
					'hrflow_embed.api_key' => $keys[5],
					'hrflow_embed.max_requests_per_day' => $sent })),
		qr/was stopped: account reached its daily limit/,
		"the daily limit stops a refresh of ${content}s");
	is($api->stats->{api_requests}, 10, "a refresh of ${content}s does not exceed the daily limit");
	is($limited->states, 'due 5, ok 10',
		"a refresh of ${content}s keeps what was sent before the daily limit");
}

#
# A clock that is set back: the saved counts are those of another day
#
sub move_days
{
	my ($days) = @_;

	$node->stop;
	my $content = PostgreSQL::Test::Utils::slurp_file($file);
	my @counters = unpack('Q*', substr($content, -1024));
	$counters[ 2 * $_ + 1 ] += $days * (1 << 32) foreach grep { $counters[ 2 * $_ ] != 0 } 0 .. 63;
	substr($content, -1024) = pack('Q*', @counters);
	open(my $fh, '>:raw', $file) or die $!;
	print $fh $content;
	close($fh);
	$node->start;
	return;
}

# A clock that was wrong by more than a day must not block requests until that day.
my $text = "SELECT hrflow_text_embedding('a');";
foreach my $days (-1, 500, 2, 1)
{
	limited($keys[1], 0, "$text $text");
	test_outage(" before $days days");
	move_days($days);
	test_outage(" after $days days");
	if ($days == 1)
	{
		like(
			limited($keys[1], 2, $text),
			qr/ERROR:  53400/,
			'what was sent tomorrow counts today, when the clock was set back');
		my ($sent) = grep { limited($keys[1], $_, $text) !~ /ERROR/ } 3 .. 100;
		like(
			limited($keys[1], $sent, $text),
			qr/ERROR:  53400/,
			'what is sent today is added to what was sent tomorrow');
	}
	else
	{
		unlike(limited($keys[1], 1, $text),
			qr/ERROR/, "what was sent on another day does not count: $days days");
		like(
			limited($keys[1], 1, $text),
			qr/ERROR:  53400/,
			"what is sent today counts instead: $days days");
	}
}

$node->stop('fast');
done_testing();
