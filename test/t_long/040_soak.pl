# Everything at the same time, for five minutes or HRFLOW_SOAK seconds: eight backends
# call all functions, a tenth of their requests have faults, backends are canceled and
# terminated at random times, and the stand-in is restarted now and then.  Nothing
# crashes, hangs or leaks, every element has its row, and every profile finally has the
# right state.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use List::Util              qw(max);
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(sleep time);

my $seconds = $ENV{HRFLOW_SOAK} // 300;
my $seed = $ENV{HRFLOW_SEED} // int rand 2**31;
my @options = ('--dim' => 64, '--latency' => 2);
my $api = Hrflow::StandIn->new(@options);
my $node = Hrflow::Node->new(
	'soak', $api,
	link_hosts => '127.0.0.1',
	max_attempts => 3,
	request_timeout => '1s',
	connect_timeout => '1s',
	max_concurrency => 16,
	shared_preload_libraries => 'hrflow_embed');

sub sql { return $node->safe_psql('postgres', @_); }

plan skip_all => '/proc is not available' unless -e '/proc/self/fd';
note("HRFLOW_SEED=$seed HRFLOW_SOAK=$seconds");
srand $seed;

# Status of a profile, and of its vector, with each fault.  All requests may fail while
# the stand-in is down, and after a restart it does not know which requests it has
# received before.
my %faults = (
	'fault:reset' => [ 'connection_failed', 'connection_failed' ],
	'fault:status=500' => [ 'http_error', 'http_error' ],
	'fault:silent' => [ 'timeout', 'timeout' ],
	'fault:break=100' => [ 'connection_failed', 'connection_failed' ],
	'fault:truncated' => [ 'invalid_reply', 'invalid_reply' ],
	'fault:html' => [ 'http_error', 'http_error' ],
	'fault:redirect' => [ 'invalid_reply', 'invalid_reply' ],
	'fault:big=20000000' => [ 'too_large', 'too_large' ],
	'fault:first=1,reset' => [ 'ok', 'ok' ],
	'fault:first=1,status=503' => [ 'ok http_error', 'ok http_error' ],
	'fault:first=1,break=50' => [ 'ok', 'ok' ],
	'fault:slow=50' => [ 'ok', 'ok' ],
	'fault:gzip' => [ 'ok', 'ok' ],
	'fault:v.nan' => [ 'ok', 'invalid_vector' ],
	'fault:v.short' => [ 'ok', 'invalid_vector' ],
	'fault:v.encoding=base64' => [ 'ok', 'ok' ]);
my $values = join(', ', map { "('$_', '$faults{$_}[0]', '$faults{$_}[1]')" } sort keys %faults);

sql(qq{
	CREATE TABLE fault (name text PRIMARY KEY, profile text, vector text);
	INSERT INTO fault VALUES $values;
	CREATE TABLE tally (at timestamptz DEFAULT clock_timestamp(), kind text, n int, row_count int,
		elements int,
		ok int, faulty int, wrong text, state text);
} . q{
	CREATE FUNCTION pick() RETURNS text LANGUAGE sql VOLATILE AS $$
		SELECT CASE WHEN random() < 0.1
			THEN (SELECT name FROM fault ORDER BY random()
				LIMIT 1) || ',id=' || floor(random() * 1e9)
			ELSE (ARRAY['nurse', 'welder', 'cook', 'driver'])[1 + floor(random() * 4)] || '-'
				|| floor(random() * 10000) END $$;

	-- Is this an expected status?
	CREATE FUNCTION fits(id text, is_vector boolean, status text) RETURNS boolean
		LANGUAGE sql STABLE AS $$
		SELECT status IN ('connection_failed', 'timeout') OR status = ANY (string_to_array(
			coalesce((SELECT CASE WHEN is_vector THEN vector ELSE profile END FROM fault
				WHERE name = regexp_replace(id, ',id=.*', '')), 'ok'), ' ')) $$;

	CREATE PROCEDURE soak(seconds float) LANGUAGE plpgsql AS $$
	DECLARE
		ends timestamptz := clock_timestamp() + seconds * interval '1 second';
		kinds text[] :=
			'{single,single,links,fetch,batch,batch,vectors,vectors,job,text,texts,store,error}';
		kind text;
		ids text[];
		nrows int;
		nelements int;
		nok int;
		odd text;
		failed text;
	BEGIN
		WHILE clock_timestamp() < ends LOOP
			kind := kinds[1 + floor(random() * cardinality(kinds))];
			ids := ARRAY(SELECT pick() FROM generate_series(1, 1 + (random() * 60)::int));
			failed := NULL;
			nrows := NULL;
			nelements := NULL;
			nok := NULL;
			odd := NULL;
			BEGIN
				CASE kind
				WHEN 'single' THEN
					PERFORM hrflow_profile_embedding('acme', ids[1], '{"profile": 1}');
				WHEN 'links' THEN
					PERFORM * FROM hrflow_profile_embedding_links('acme', ids[1]);
				WHEN 'job' THEN
					PERFORM hrflow_job_vector('nurse-' || floor(random() * 1000));
				WHEN 'text' THEN
					PERFORM hrflow_text_embedding(repeat('a nurse ', (random() * 1000)::int + 1));
				WHEN 'error' THEN
					PERFORM hrflow_decode_vector('[1, ');
				WHEN 'store' THEN
					PERFORM *
						FROM hrflow_match('shop.embedding', (SELECT vector FROM shop.embedding
						LIMIT 1)), hrflow_store_status('shop.embedding');
				WHEN 'fetch' THEN
					SELECT count(*), count(DISTINCT f.ordinality), count(*)
						FILTER (WHERE f.status = 'ok'),
						   string_agg(l.link || ' ' || f.status, ', ')
							FILTER (WHERE f.status NOT IN ('ok', 'connection_failed', 'timeout',
							'invalid_vector'))
					  INTO nrows, nelements, nok, odd
					  FROM (SELECT coalesce(array_agg(link), '{}') AS links
						FROM hrflow_profile_embeddings('acme', ids, '{"profile": 1}') e,
						LATERAL (SELECT e.data->>'profile' AS link) x WHERE status = 'ok') l0,
						   LATERAL hrflow_fetch_vectors(links) f
							JOIN LATERAL (SELECT f.link) l ON true;
					ids := ids[:nelements];
				WHEN 'batch' THEN
					SELECT count(*), count(DISTINCT ordinality), count(*)
						FILTER (WHERE status = 'ok'),
						   string_agg(profile_id || ' ' || status || ' ' || error, ', ')
							FILTER (WHERE NOT fits(profile_id, false, status)
							OR profile_id <> ids[ordinality])
					  INTO nrows, nelements, nok, odd
						FROM hrflow_profile_embeddings('acme', ids, '{"profile": 1}');
				WHEN 'vectors' THEN
					SELECT count(*), count(DISTINCT ordinality), count(*)
						FILTER (WHERE status = 'ok' AND cardinality(vector) = 64),
						   string_agg(profile_id || ' ' || status || ' ' || error, ', ')
							FILTER (WHERE NOT fits(profile_id, true, status)
							OR profile_id <> ids[ordinality])
					  INTO nrows, nelements, nok, odd
						FROM hrflow_profile_vectors('acme', ids, '{"profile": 1}');
				WHEN 'texts' THEN
					SELECT count(*), count(DISTINCT ordinality), count(*)
						FILTER (WHERE status = 'ok'),
						   string_agg(ids[ordinality] || ' ' || status || ' ' || error, ', ')
							FILTER (WHERE status NOT IN ('ok', 'connection_failed', 'timeout')
							AND ids[ordinality] NOT LIKE 'fault:%')
					  INTO nrows, nelements, nok, odd FROM hrflow_text_embeddings(ids);
				END CASE;
			EXCEPTION WHEN OTHERS THEN
				failed := SQLSTATE;
			END;
			INSERT INTO tally (kind, n, row_count, elements, ok, faulty, wrong, state)
				VALUES (kind, cardinality(ids), nrows, nelements, nok,
					(SELECT count(*) FROM unnest(ids) i WHERE i LIKE 'fault:%'), odd, failed);
			COMMIT;
			IF random() < 0.2 THEN
				INSERT INTO shop.candidate (hrflow_id)
					VALUES ('cook-' || 100000 + floor(random() * 1e6)) ON CONFLICT DO NOTHING;
				UPDATE shop.candidate SET cv = random()::text WHERE id = 1 + floor(random() * 1000);
				DELETE FROM shop.candidate WHERE id = 1 + floor(random() * 1000)
					AND hrflow_id !~ '^(missing|fault)';
				COMMIT;
			END IF;
		END LOOP;
	END $$});

my $store = Hrflow::Store->new($node, $api, 'shop');
$store->fill(1000);
$store->sql(
	q{
	INSERT INTO shop.candidate (hrflow_id) SELECT 'missing-' || i FROM generate_series(1, 10) i;
	INSERT INTO shop.candidate (hrflow_id) SELECT 'fault:status=500,id=' || i
		FROM generate_series(1, 10) i;
	INSERT INTO shop.candidate (hrflow_id) SELECT 'fault:first=2,status=500,id=' || i
		FROM generate_series(1, 50) i}
);
sql('GRANT pg_read_all_stats TO keeper');

#
# The backends.  0 to 3 survive, and 4 to 7 may be terminated.  0 and 4 refresh the
# store.
#
my $refresh =
	q{CALL hrflow_refresh('shop.embedding', '}
  . $Hrflow::Store::FIELDS
  . q{', time_budget => '2 s', max_attempts => 3, batch_size => 50);
	UPDATE shop.embedding_profile SET due_at = now() + interval '1 minute'
	WHERE (source_id, profile_id) IN (
		SELECT source_id, profile_id FROM shop.embedding_profile
		WHERE state = 'ok' AND due_at > now() + interval '1 minute' FOR UPDATE SKIP LOCKED);};
my $measure = q{SELECT 'measured', sum(total_bytes), coalesce(sum(total_bytes)
	FILTER (WHERE name LIKE 'hrflow%'), 0), sum(total_bytes)
	FILTER (WHERE name = 'TopMemoryContext') FROM pg_backend_memory_contexts;};
my (@sessions, @next, @measured, %count, @broken);
$count{$_} = 0 foreach qw(rounds cancelled terminated restarts lost);

sub begin_session
{
	my ($i) = @_;

	$sessions[$i] = Hrflow::Session->new($node, timeout => 60);
	$sessions[$i]->ask('SET ROLE keeper;') if $i % 4 == 0;
	return;
}

sub begin_round
{
	my ($i) = @_;
	my $session = $sessions[$i];

	$next[$i]++;
	$session->send(
		($i < 4 && $next[$i] % 5 == 0 ? $measure : $i % 4 == 0 ? $refresh : 'CALL soak(1);')
		. "\n\\echo -- done");
	return;
}

sub end_round
{
	my ($i) = @_;
	my $session = $sessions[$i];
	my $said = "$session->{out}$session->{err}";

	$count{rounds}++;
	if ($said =~ /^measured\|(\d+)\|(\d+)\|(\d+)$/m)
	{
		my ($total, $ours, $top) = ($1, $2, $3);
		my $pid = $session->pid;
		my ($rss) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") =~ /RssAnon:\s+(\d+)/;
		my @fds = glob("/proc/$pid/fd/*");

		push @{ $measured[$i] },
		  { at => time,
			total => $total,
			ours => $ours,
			top => $top,
			rss => $rss,
			fds => scalar(@fds) };
	}
	my $expected = $i < 4 ? qr/57014/ : qr/57014|57P01/;
	push @broken, "session $i: $said" if $said =~ /(ERROR|FATAL|PANIC):  (?!$expected)/;
	return;
}

begin_session($_), begin_round($_) foreach 0 .. 7;
my $began = time;
my $ends = $began + $seconds;
my $restart_at = $began + 5;
while (time < $ends)
{
	foreach my $i (0 .. 7)
	{
		my $session = $sessions[$i];

		if (!eval { $session->{psql}->pump_nb; 1 } || !$session->{psql}->pumpable)
		{
			# The backend was terminated, or did not end in time.
			$count{lost}++;
			push @broken, "session $i: $@ $session->{err}"
			  if $i < 4
			  || $@ =~ /timeout/
			  || $session->{err} !~ /57P01|closed the connection|no connection/;
			eval { $session->{psql}->kill_kill };
			begin_session($i);
			begin_round($i);
		}
		elsif ($session->{out} =~ /-- done/)
		{
			end_round($i);
			begin_round($i);
		}
	}
	if (rand() < 0.02)
	{
		my $i = int rand 8;

		$count{cancelled}++;
		kill 'INT', $sessions[$i]->pid;
	}
	if (rand() < 0.005)
	{
		my $i = 4 + int rand 4;

		$count{terminated}++;
		kill 'TERM', $sessions[$i]->pid;
	}
	if (time > $restart_at)
	{
		$count{restarts}++;
		$api->stop;
		sleep rand 0.3;
		$api->restart(@options);
		$restart_at = time + 5 + rand 20;
	}
	sleep 0.02;
}
foreach my $i (0 .. 7)
{
	$sessions[$i]->wait_for(qr/-- done/);
	end_round($i);
	$sessions[$i]->finish;
}
note(join(', ', map { "$_ $count{$_}" } sort keys %count));

#
# Unexpected errors
#
is_deeply(\@broken, [], 'no session has an unexpected error');
my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
unlike(
	$log,
	qr/PANIC|terminated by signal|TRAP|server process .* was|stuck spinlock/,
	'the server has not crashed');
unlike(
	$log,
	qr/WARNING:  .*(leak|not closed)/,
	'the server has not warned about a leak of its resources');
cmp_ok($count{$_}, '>', 0, "there are some $_ during the test")
  foreach qw(cancelled terminated restarts);

#
# Leaks
#
my $warm = $began + ($seconds >= 300 ? 60 : $seconds / 5);
my $window = max(20, $seconds / 10);
my %allowed = (total => 256 * 1024, ours => 64 * 1024, top => 64 * 1024, rss => 4096, fds => 8);
foreach my $i (0 .. 3)
{
	my @early = grep { $_->{at} >= $warm && $_->{at} < $warm + $window } @{ $measured[$i] };
	my @late = grep { $_->{at} >= $ends - $window } @{ $measured[$i] };

	cmp_ok(scalar(@early) * scalar(@late),
		'>', 0, "backend $i is measured at the beginning and at the end");
	foreach my $what (sort keys %allowed)
	{
		my $from = max(0, map { $_->{$what} } @early);
		my $to = max(0, map { $_->{$what} } @late);

		cmp_ok($to, '<=', $from + $allowed{$what},
			"$what of backend $i does not grow ($from, $to)");
	}
}

#
# The rows of batches
#
note(
	sql(q{SELECT kind, count(*), sum(n), sum(ok), sum(faulty), string_agg(DISTINCT state, ' ')
		FROM tally GROUP BY 1 ORDER BY 1}
	));
is(sql(q{SELECT count(DISTINCT kind) FROM tally}), 10, 'every kind of call is made');
is( sql(q{SELECT count(*) FROM tally WHERE kind IN ('batch', 'texts', 'fetch') AND state IS NULL
	AND row_count IS DISTINCT FROM n}
	),
	0,
	'every element of a batch has one row');
is( sql(q{SELECT count(*) FROM tally WHERE kind = 'vectors' AND state IS NULL
	AND (elements <> n OR row_count < n)}
	),
	0,
	'every element of a batch of vectors has at least one row');
is( sql(q{SELECT string_agg(wrong, E'\n')
	FROM (SELECT wrong FROM tally WHERE wrong IS NOT NULL LIMIT 10) w}
	),
	'',
	'every row has the right status');
is( sql(q{SELECT count(*) FROM tally WHERE kind IN ('batch', 'texts', 'vectors')
	AND state IS NOT NULL}
	),
	0,
	'no batch fails as a whole');
is( sql(q{SELECT string_agg(DISTINCT kind || ' ' || state, ', ') FROM tally
		WHERE state NOT IN ('08001', '08006')
			AND NOT (kind IN ('single', 'links') AND state IN ('58000', '08P01', '54000'))
		AND NOT (kind = 'error' AND state = '22P03')}),
	'',
	'no call has an error other than those of its faults');
is(sql(q{SELECT count(*) FROM tally WHERE kind = 'error' AND state IS DISTINCT FROM '22P03'}),
	0, 'every call that should fail does');
cmp_ok(
	sql(q{SELECT round(100.0 * sum(ok) / sum(n - faulty)) FROM tally
		WHERE kind IN ('batch', 'vectors')}
	),
	'>=',
	90,
	'nine of ten elements without a fault succeed although the stand-in is restarted');

#
# The final states of profiles
#

# Make all profiles due, because some are leased by backends that were terminated.
# Include profiles without a fault, because a run in which all requests fail stops and
# counts no attempt.
foreach my $try (1 .. 5)
{
	$store->sql(
		"UPDATE shop.embedding_profile SET failed_at = failed_at - interval '4 days'
			WHERE state = 'missing'"
	);
	$store->hasten("state NOT IN ('failed', 'gone')");
	my $printed = $store->call('max_attempts => 3');
	note($printed =~ s/\n.*//sr);
}
is( $store->sql(
		q{
		SELECT string_agg(concat_ws(' ', profile_id, hrflow_id, state, lease_until), ', ')
			FROM shop.embedding_profile p FULL JOIN shop.candidate c ON p.profile_id = c.hrflow_id
		WHERE p.state IS DISTINCT FROM CASE WHEN hrflow_id LIKE 'missing-%' THEN 'gone'
			WHEN hrflow_id LIKE 'fault:status%' THEN 'failed' ELSE 'ok' END
			OR p.profile_id IS NULL OR c.hrflow_id IS NULL OR p.lease_until IS NOT NULL}),
	'',
	'every candidate is tracked, and its profile has the right state');
note($store->states);
is($store->wrong_vectors(q{profile_id !~ '^(missing|fault)'}),
	0, 'every candidate has the right vectors');
$node->stop;

done_testing();
