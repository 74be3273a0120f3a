# Equal contents of several rows are sent once, whichever sessions claim their keys: also
# while the claim of the first one is not committed, and while its request is in flight.
# The others postpone their keys, and do not wait.  A regression test could see neither
# requests nor other sessions.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 64);
my $node = Hrflow::Node->new('equal', $api, link_hosts => '127.0.0.1');

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Number of requests since the last reset, also of those without an answer yet
sub requests { return $api->stats->{api_requests}; }

# Triggers that let a claim wait while it marks contents as sent, and that do not let a
# failure be written, while the test holds locks
sql(q{CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql
		AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$;
	CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql
		AS $$ BEGIN IF NOT pg_try_advisory_xact_lock_shared(2) THEN
			RAISE lock_not_available; END IF; RETURN NEW; END $$});
sql('ALTER SYSTEM SET restart_after_crash = on');
sql('SELECT pg_reload_conf()');

foreach my $kind ([ text => 'text', q{'%s'} ], [ document => 'jsonb', q{'{"key": "%s"}'} ])
{
	my ($content, $type, $value) = @$kind;
	my ($store, $keys) = ("${content}s", "${content}s_profile");
	my $call = "CALL hrflow_refresh('$store');";
	my ($first, $second, $locker) = map { Hrflow::Session->new($node) } 1 .. 3;

	# Insert rows with one content
	my $insert = sub {
		my ($what, @keys) = @_;

		sql("INSERT INTO $content VALUES " . join ', ',
			map { "('$_', " . sprintf($value, $what) . ')' } @keys);
	};

	# Let the first session send a content, to which there is no answer before release()
	my $send = sub {
		my ($faults, $what, @keys) = @_;

		$insert->($what, @keys);
		$api->reset;
		$api->script("hold=2$faults", count => 1);
		$first->send($call);
		$api->wait_until(sub { $_[0]->{requests} >= 1 }) or die;
	};
	my $answer = sub {
		$api->release(2);
		$first->ask('SELECT 1;');
		$api->reset;
	};

	# Let keys be due now, note the time, and the second session refresh them
	my $since;
	my $refresh = sub {
		my ($pattern, $arguments) = @_;

		$since = sql(
			"UPDATE $keys SET due_at = now() WHERE key ~ '$pattern';
			SELECT clock_timestamp()");
		return $second->ask("CALL hrflow_refresh('$store'" . ($arguments // '') . ');');
	};
	my $states = sub {
		return sql(
			"SELECT string_agg(key || ' ' || state, ', ' ORDER BY key) FROM $keys
			WHERE key ~ '$_[0]'");
	};
	my $is_postponed = sub {
		my ($pattern, $name) = @_;

		is( sql("SELECT bool_and(state = 'due' AND lease_until IS NULL AND attempts = 0
					AND sent_hash IS NULL AND last_error IS NULL
					AND due_at > '$since' AND due_at <= now() + interval '10 s')
				FROM $keys WHERE key ~ '$pattern'"),
			't',
			$name);
	};

	sql("SELECT hrflow_create_store('$store', 'real[]', content => '$content');
		CREATE TABLE $content (id text PRIMARY KEY, value $type);
		SELECT hrflow_track_table('$store', '$content', 'id', content_columns => '{value}')");

	#
	# A content that is in flight
	#
	$send->('', 'flight', 'flight 1');
	$insert->('flight', 'flight 2', 'flight 3');
	$insert->('other', 'other');
	sql("UPDATE $keys SET due_at = now() + interval '1 hour' WHERE key = 'other'");
	my $said = $refresh->('flight [23]');
	unlike($said, qr/ERROR|WARNING/, "a run ends as usual while another one awaits a $content");
	like(
		$said,
		qr/DETAIL:  2 profiles were postponed, because other sessions were sending/,
		"a run says how many keys it has postponed while another one awaits a $content");
	$is_postponed->('flight [23]', "keys are postponed while another run awaits their $content");
	is(requests(), 1, "a $content is not sent again while another run awaits it");
	sql("UPDATE $keys SET due_at = now() - interval '1 hour' WHERE key ~ 'flight [23]'");
	$refresh->('other', ', batch_size => 1, max_profiles => 1');
	is($states->('other'), 'other ok',
		"another $content is fetched after several that are postponed");
	$is_postponed->(
		'flight [23]', "keys whose $content is awaited are postponed each time that they are due");
	is(requests(), 2, "a run sends no $content but those that no other run awaits");
	$answer->();
	$refresh->('flight [23]');
	is( $states->('flight'),
		'flight 1 ok, flight 2 ok, flight 3 ok',
		"keys are refreshed when their $content has been answered");
	is(requests(), 0, "keys whose $content has been answered are refreshed without a request");
	is(sql("SELECT count(DISTINCT vector) FROM $store WHERE key ~ 'flight'"),
		1, "keys with the same $content get the same vector");

	#
	# A claim that is not committed
	#
	sql("CREATE TRIGGER wait AFTER UPDATE OF sent_hash ON $keys
		FOR EACH STATEMENT EXECUTE FUNCTION wait()");
	$locker->ask('BEGIN; SELECT pg_advisory_xact_lock(1);');
	$insert->('claim', 'claim 1');
	$first->send($call);
	$node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_locks WHERE pid = $first->{pid} AND NOT granted")
	  or die;
	$insert->('claim', 'claim 2');
	$second->ask("SET lock_timeout = '10s';");
	$refresh->('claim 2');
	$is_postponed->('claim 2', "a key is postponed while another run claims one with its $content");
	$locker->ask('COMMIT;');
	$first->ask('SELECT 1;');
	$refresh->('claim 2');
	is( $states->('claim'),
		'claim 1 ok, claim 2 ok',
		"keys with one $content are refreshed once the claim of the first is committed");
	is(requests(), 1, "a $content is sent once although two runs claim keys with it");
	sql("DROP TRIGGER wait ON $keys");

	#
	# A content that is refused
	#
	$send->(',status=422', 'refused', 'refused 1');
	$insert->('refused', 'refused 2');
	$refresh->('refused 2');
	$answer->();
	$refresh->('refused 2');
	is( $states->('refused'),
		'refused 1 due, refused 2 ok',
		"a $content that was refused is sent for another key");
	is(requests(), 1, "a $content that was refused for one key is sent once for the others");

	#
	# A content that is refused, and then claimed by the same run, before the failure can be
	# written
	#
	sql("CREATE TRIGGER conflict BEFORE UPDATE ON $keys FOR EACH ROW
		WHEN (NEW.http_status = 403) EXECUTE FUNCTION conflict()");
	$locker->ask('BEGIN; SELECT pg_advisory_xact_lock(2);');
	$insert->("fault:first=1,status=403,id=own-$content", 'own 1');
	$insert->("fault:hold=2,id=held-$content", 'held');
	$api->reset;
	$first->send($call);
	$api->wait_until(sub { $_[0]->{requests} >= 2 }) or die;
	$insert->("fault:first=1,status=403,id=own-$content", 'own 2');
	$node->poll_query_until('postgres',
		"SELECT state = 'ok' OR due_at > now() FROM $keys WHERE key = 'own 2'")
	  or die;
	is( $states->('own'),
		'own 1 due, own 2 ok',
		"a run postpones no key because of its own requests");
	$locker->ask('COMMIT;');
	$answer->();
	is(sql("SELECT attempts FROM $keys WHERE key = 'own 1'"),
		1, "the failure of a $content is written when that is no longer prevented");
	sql("DROP TRIGGER conflict ON $keys");

	#
	# A session that is killed
	#
	$send->('', 'killed', 'killed 1');
	$node->kill_backend($first->{pid});
	$second = Hrflow::Session->new($node);
	$insert->('killed', 'killed 2');
	$refresh->('killed 2');
	$is_postponed->(
		'killed 2', "a key is postponed until the lease of a killed session with its $content ends"
	);
	sql("UPDATE $keys SET lease_until = now() WHERE key = 'killed 1'");
	$refresh->('killed');
	is( $states->('killed'),
		'killed 1 failed, killed 2 failed',
		"keys fail whose $content a killed session may have sent");
	is(requests(), 1, "a $content that a killed session may have sent is not sent again");
	sql("SELECT hrflow_retry('$store')");
	$refresh->('killed');
	is( $states->('killed'),
		'killed 1 ok, killed 2 ok',
		"hrflow_retry() lets a $content be sent again that may have been sent");
	is(requests(), 2, "hrflow_retry() lets a $content be sent once for all of its keys");
	$api->restart('--dim' => 64);
}

done_testing();
