# Refreshing a store whose table of profiles rejects the new states of some profiles,
# because of a constraint or a trigger of its owner: the others are written, and those
# profiles are not paid for again and again.  A regression test could see neither the
# requests that are sent nor other sessions, and could not cancel a run.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use List::Util qw(sum);
use Test::More;
use Time::HiRes qw(sleep);

my $api = Hrflow::StandIn->new('--dim' => 64);
my $node = Hrflow::Node->new('rejected', $api, link_hosts => '127.0.0.1', max_attempts => 1);
my %of = map { $_ => Hrflow::Store->new($node, $api, $_, content => $_) } qw(profile text document);
my $store = $of{profile};

foreach my $of (values %of)
{
	$of->sql(
		"CREATE FUNCTION $of->{name}.fail() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			RAISE EXCEPTION 'the owner says no' USING ERRCODE = COALESCE(TG_ARGV[0], 'XX123');
		END \$\$;
		CREATE FUNCTION $of->{name}.suppress() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			RETURN NULL;
		END \$\$;");
}

# How to reject states.  SHOP is the schema of the store, and BAD the condition for the
# profiles.  "as" is how these are recorded: as failures; if these are rejected, too, by
# leases of a day; or else by the leases of the run.
sub trigger
{
	my ($when, $condition, $function) = @_;
	my $deferrable = $when =~ s/ (DEFERRABLE)$// ? $1 : '';
	my $constraint = $deferrable && 'CONSTRAINT';

	return "CREATE $constraint TRIGGER planted $when ON SHOP.embedding_profile $deferrable
		FOR EACH ROW WHEN ($condition) EXECUTE FUNCTION SHOP.$function";
}

my %rejection = (
	'a trigger' => {
		plant => trigger('BEFORE UPDATE', "NEW.state = 'ok' AND NEW.BAD", 'fail()'),
		says => 'the owner says no',
		as => 'failed' },
	'an AFTER trigger' => {
		plant => trigger('AFTER UPDATE', "NEW.state = 'ok' AND NEW.BAD", 'fail()'),
		says => 'the owner says no',
		as => 'failed' },
	'a deferrable constraint trigger' => {
		plant => trigger('AFTER UPDATE DEFERRABLE', "NEW.state = 'ok' AND NEW.BAD", 'fail()'),
		says => 'the owner says no',
		as => 'failed' },
	'a trigger that suppresses updates' => {
		plant => trigger('BEFORE UPDATE', "NEW.state = 'ok' AND NEW.BAD", 'suppress()'),
		says => 'suppressed an update',
		as => 'failed' },
	'a constraint' => {
		plant => "ALTER TABLE SHOP.embedding_profile ADD CONSTRAINT planted
			CHECK (state <> 'ok' OR (BAD) IS NOT TRUE)",
		drop => 'ALTER TABLE SHOP.embedding_profile DROP CONSTRAINT planted',
		says => 'violates check constraint',
		as => 'failed' },
	'a trigger that rejects all states' => {
		plant => trigger('BEFORE UPDATE OF state', 'NEW.BAD', 'fail()'),
		says => 'the owner says no',
		as => 'leased for a day' },
	'a trigger that rejects all updates' => {
		plant => trigger('BEFORE UPDATE', 'OLD.lease_until IS NOT NULL AND NEW.BAD', 'fail()'),
		says => 'the owner says no',
		as => 'leased' });

sub plant
{
	my ($of, $sql, @bad) = @_;
	my $bad = "$of->{id} IN (" . join(', ', map { "'$_'" } @bad) . ')';

	$of->sql($sql =~ s/\bSHOP\b/$of->{name}/gr =~ s/\bBAD\b/$bad/gr);
	return;
}

sub drop
{
	my ($of, $rejection) = @_;

	plant($of, $rejection->{drop} // 'DROP TRIGGER planted ON SHOP.embedding_profile');
	return;
}

# Return the number of profiles that are written with all vectors, and the number of
# those that are recorded in another way, and have no vectors.
sub kept
{
	my ($of, $as) = @_;
	my $untouched = "state = 'due' AND attempts = 0 AND last_error IS NULL";
	my $failed = "attempts = 1 AND lease_until IS NULL AND last_error ~ '^Could not be stored: .'";
	my %condition = (
		  'failed' => $of->{posts}
		? "$failed AND state = 'failed' AND due_at IS NULL AND sent_hash IS NOT NULL"
		: "$failed AND state = 'due'
			AND due_at BETWEEN now() + interval '11 hours' AND now() + interval '1 day'",
		'leased for a day' => "$untouched
			AND lease_until BETWEEN now() + interval '23 hours' AND now() + interval '1 day'",
		'leased' => "$untouched
			AND lease_until BETWEEN now() + interval '1 minute' AND now() + interval '6 minutes'");

	return $of->sql(
		"SELECT count(*) FILTER (WHERE state = 'ok' AND lease_until IS NULL AND n = $of->{vectors}),
			count(*) FILTER (WHERE $condition{$as} AND n = 0)
		FROM (SELECT *, (SELECT count(*) FROM $of->{name}.embedding e
			WHERE e.$of->{id} = p.$of->{id}) AS n FROM $of->{name}.embedding_profile p) p");
}

# Return the number of requests for profiles whose names begin like this.
sub paid
{
	my ($of, $name) = @_;
	my $asked = $of->asked;

	$name //= 'cook';
	return sum(0, map { $asked->{$_} } grep { /^$name/ } keys %$asked);
}

# Check what a run has written of "all" profiles, "n" of which were rejected, and what
# the next run requests.
sub check_rejected
{
	my ($of, $name, $rejection, $n, $all, $printed) = @_;

	like(
		$printed,
		qr/WARNING:\ .*could\ not\ write\ the\ states?\ of\ $n\ profiles?:\ .*\Q$rejection->{says}\E.*\n
			DETAIL:\ \ Vectors\ fetched\ for\ (?:this\ profile|these\ profiles)\ were\ not\ stored\.\n
			HINT:\ \ Check\ the\ constraints\ and\ triggers\ of\ table\ $of->{name}\.embedding_profile/x,
		"$name are reported");
	is( kept($of, $rejection->{as}),
		$all - $n . "|$n",
		"$name do not keep the others from being written") or diag($printed);
	is(paid($of), $all, "$name are requested once");
	like($of->call, qr/: 0 refreshed/, "$name are not refreshed by the next run");
	is(paid($of), $all, "$name are not requested by the next run");
	return;
}

#
# The last write of a run
#
foreach my $kind (sort keys %of)
{
	my $of = $of{$kind};

	foreach my $what (sort keys %rejection)
	{
		my $rejection = $rejection{$what};

		# Texts and documents are not even sent if no update is accepted
		next if $of->{posts} && $rejection->{as} eq 'leased';

		foreach my $bad ([qw(cook-7)], [qw(cook-7 cook-39)])
		{
			my $n = @$bad;
			my $name = "$n of 40 ${kind}s that $what rejects";

			next if $of->{posts} && $n == 1;
			$of->track("SELECT 'cook-' || i FROM generate_series(1, 40) i");
			plant($of, $rejection->{plant}, @$bad);
			my $printed = $of->call;
			unlike($printed, qr/ERROR/, "$name do not end the run with an error");
			check_rejected($of, $name, $rejection, $n, 40, $printed);
			is( $of->sql(
					"SELECT count(*) FROM hrflow_store_failures('$of->{name}.embedding')
						WHERE last_error ~ '$rejection->{says}'"
				),
				$of->{posts} && $rejection->{as} eq 'failed' ? $n : 0,
				"$name are listed by hrflow_store_failures() if they have failed for good");
			drop($of, $rejection);
			$of->hasten("state <> 'ok'");
			$of->call;
			$of->sql("SELECT hrflow_retry('$of->{name}.embedding')");
			$of->call;
			is(kept($of, 'failed'), '40|0', "$name are written once they are accepted");
			is(paid($of), 40 + $n, "$name are requested once more then");
		}
	}
}

#
# The writes after a run has been canceled
#
foreach my $kind (sort keys %of)
{
	my $of = $of{$kind};
	my $locker = Hrflow::Session->new($node);

	foreach my $what ('a constraint', 'a trigger', 'a trigger that rejects all states')
	{
		my $rejection = $rejection{$what};
		my $name = "2 of 32 ${kind}s that $what rejects after a cancel";

		$of->track("SELECT 'cook-' || i FROM generate_series(1, 32) i");
		plant($of, $rejection->{plant}, 'cook-7', 'cook-23');
		my $call = $of->start_held(32, $locker);

		# Cancel the run in the middle of a wait for the lock.  Release the lock soon.
		my $tries = 0;
		until (
			$locker->ask(
				"SELECT pg_cancel_backend(pid) FROM pg_locks
				WHERE relation = '$of->{name}.embedding_profile'::regclass
					AND clock_timestamp() - waitstart BETWEEN '50 ms' AND '250 ms';") =~ /^t$/m)
		{
			die if $tries++ == 10_000;
			sleep 0.01;
		}
		$locker->ask('COMMIT;');
		my $printed = $of->finish_call($call);
		like($printed, qr/ERROR:  57014/, "$name do not change the error");
		check_rejected($of, $name, $rejection, 2, 32, $printed);
		drop($of, $rejection);
	}
	$locker->finish;
}

#
# How often a profile is paid for
#
$store->track("SELECT 'cook-' || i FROM generate_series(1, 10) i");
plant($store, $rejection{'a trigger'}{plant}, 'cook-7');
foreach my $attempt (1 .. 4)
{
	$store->call('max_attempts => 3');
	$store->hasten("profile_id = 'cook-7' AND due_at IS NOT NULL");
}
is($store->asked->{'cook-7'},
	3, 'a profile whose state is rejected is requested max_attempts times');
is( $store->sql(
		"SELECT profile_id, state, attempts, last_error
		FROM hrflow_store_failures('profile.embedding')"),
	'cook-7|failed|3|Could not be stored: the owner says no',
	'a profile whose state is rejected max_attempts times has failed');

# A profile that changes while it is requested would be due again after a minute
$store->track("SELECT 'cook-' || i FROM generate_series(1, 10) i");
$api->script('hold=11', count => 10);
my $call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 10 }) or die;
$store->sql("UPDATE profile.candidate SET cv = 'new' WHERE hrflow_id = 'cook-7'");
drop($store, $rejection{'a trigger'});
plant($store, trigger('BEFORE UPDATE', 'NEW.refreshed_at IS NOT NULL AND NEW.BAD', 'fail()'),
	'cook-7');
$api->release(11);
like(
	$store->finish_call($call),
	qr/could not write the state of 1 profile/,
	'the state of a profile that has changed is rejected');
is($store->profiles("state, due_at > now() + interval '11 hours'", "profile_id = 'cook-7'"),
	'due|t', 'a profile that has changed is not soon requested again if its state is rejected');
drop($store, $rejection{'a trigger'});

# If nothing is accepted any longer, a run does not continue
$store->track("SELECT 'cook-' || i FROM generate_series(1, 3) i");
$store->sql("UPDATE profile.embedding_profile SET due_at = now() - interval '1 hour'");
$store->sql(
	"INSERT INTO profile.candidate (hrflow_id)
	SELECT 'nurse-' || i FROM generate_series(1, 1000) i");
plant($store, trigger('BEFORE UPDATE', "NEW.state = 'ok' AND NEW.profile_id ~ 'nurse'", 'fail()'));
my $printed = $store->call('batch_size => 32');

# On a busy machine, the first write may contain rejected profiles already
like(
	$printed,
	qr/WARNING:\ .*was\ stopped:\ (?:fetched\ vectors\ could\ not\ be\ stored\n
		DETAIL:\ \ Nothing\ was\ stored\ for\ the\ last\ \d+\ profiles\.\ .*the\ owner\ says\ no
		|the\ store\ does\ not\ accept\ the\ states\ .*the\ owner\ says\ no\nDETAIL:.*)\n
		HINT:\ \ Check\ the\ constraints\ and\ triggers\ of/x,
	'a run stops if no state is accepted any longer');
cmp_ok(paid($store, 'nurse'), '<', 500, 'a run stops soon if no state is accepted any longer');
drop($store, $rejection{'a trigger'});
like($store->call, qr/INFO: .* [1-9]\d* refreshed/,
	'the next run continues if states are accepted');

# If nothing is accepted, neither states nor failures, the next run requests one profile
$store->track("SELECT 'cook-' || i FROM generate_series(1, 100) i");
plant($store, trigger('BEFORE UPDATE OF state', 'true', 'fail()'));
foreach my $run (1 .. 3)
{
	like(
		$store->call,
		qr/was stopped: the store does not accept the states of fetched profiles; Could/,
		"run $run stops if neither states nor failures are accepted");
	my $paid = paid($store);
	ok($paid >= 8 && $paid <= 32,
		'the first run stops after a few requests if neither states nor failures are accepted')
	  if $run == 1;
	is( $paid -
		  $store->sql('SELECT count(*) FROM profile.embedding_profile WHERE lease_until > now()'),
		0,
		"profiles that were requested by run $run are leased");
	is($paid, $store->{paid} + 1, "run $run requests one profile") if $run > 1;
	$store->{paid} = $paid;
}
drop($store, $rejection{'a trigger'});

#
# A table of vectors that begins to reject them during a run
#
my $owner = Hrflow::Session->new($node);
my %denial = (
	'a constraint' => [
		q{ALTER TABLE profile.embedding ADD CONSTRAINT planted CHECK (false) NOT VALID},
		'violates check constraint "planted"' ],
	'a trigger' => [
		q{CREATE TRIGGER planted BEFORE INSERT ON profile.embedding FOR EACH ROW
			EXECUTE FUNCTION profile.fail()},
		'the owner says no' ],
	'a table without a key' => [
		q{ALTER TABLE profile.embedding DROP CONSTRAINT embedding_pkey},
		'no unique or exclusion constraint' ]);
foreach my $what (sort keys %denial)
{
	my ($sql, $says) = @{ $denial{$what} };

	# Profiles without a vector do not hide that nothing is stored
	$store->track(
		"SELECT CASE WHEN i % 3 = 0 THEN 'missing-' ELSE 'nurse-' END || i
		FROM generate_series(1, 3000) i");
	$api->script('own,latency=20');
	$call =
	  $store->start_call('batch_size => 16', settings => { 'hrflow_embed.max_concurrency' => 8 });
	$node->poll_query_until('postgres', 'SELECT count(*) > 20 FROM profile.embedding') or die;
	$owner->ask("SET ROLE keeper; $sql;");
	$api->script('own');
	$printed = $store->finish_call($call);
	my $stored = $store->sql(q{SELECT count(DISTINCT profile_id) FROM profile.embedding});
	like(
		$printed,
		qr/WARNING:\ .*was\ stopped:\ fetched\ vectors\ could\ not\ be\ stored\n
			DETAIL:\ \ No\ vector\ was\ stored\ for\ the\ last\ \d+\ profiles.*\ \ The\ last\ error\ was:
			\ .*\Q$says\E.*\n
			HINT:\ \ Check\ the\ type\ of\ the\ column\ "vector"/x,
		"a run stops if $what begins to reject all vectors");
	like(
		$printed,
		qr/WARNING:\ .*could\ not\ store\ the\ vectors\ of\ \d+\ profiles:\ .*\Q$says\E.*\n
			DETAIL:\ .*\n
			HINT:\ \ Check\ the\ constraints,\ indexes\ and\ triggers\ of\ table\ profile\.embedding\./x,
		"a WARNING counts the profiles whose vectors $what rejects");
	is($store->sql('SELECT stop_reason FROM profile.embedding_run ORDER BY run DESC LIMIT 1'),
		'not_kept', "the history says that $what rejects the vectors");
	cmp_ok(paid($store, 'nurse') - $stored,
		'<=', 256 + 32, "few vectors are paid for if $what begins to reject them");
	$owner->ask(
		q{ALTER TABLE profile.embedding DROP CONSTRAINT IF EXISTS planted;
		DROP TRIGGER IF EXISTS planted ON profile.embedding;
		ALTER TABLE profile.embedding DROP CONSTRAINT IF EXISTS embedding_pkey;
		ALTER TABLE profile.embedding ADD CONSTRAINT embedding_pkey
			PRIMARY KEY (source_id, profile_id, section, item);});
}

# A run goes on if the table accepts any of the vectors, or those of some profiles
foreach my $case (
	[   'a section of most profiles',
		q{section <> 'skills'},
		qr/only partly update the vectors of \d+ / ],
	[   'many profiles',
		q{right(profile_id, 1) IN ('1', '2')},
		qr/could not store the vectors of 401 profiles: .*planted/ ])
{
	my ($what, $accepted, $warning) = @$case;

	$store->track("SELECT 'nurse-' || i FROM generate_series(1, 600) i");
	$store->sql(
		"UPDATE profile.embedding_profile SET due_at = now() - interval '1 hour'
			WHERE length(profile_id) < 9;
		ALTER TABLE profile.embedding ADD CONSTRAINT planted
			CHECK (length(profile_id) < 9 OR $accepted)");
	$printed = $store->call('batch_size => 16');
	unlike($printed, qr/stopped/, "a run goes on if the table rejects $what");
	like($printed, $warning, "a WARNING says that the table rejects $what");
	is(paid($store, 'nurse'), 600, "all profiles are requested if the table rejects $what");
	$store->sql('ALTER TABLE profile.embedding DROP CONSTRAINT planted');
}

#
# Errors that are not about a profile, but are raised for one only.  After a run that
# stored something, the next one requests all profiles at once.
#
my $application = Hrflow::Session->new($node);
$store->track("SELECT 'cook-1'");
$store->call;
foreach my $ids ([7], [ 1 .. 7 ])
{
	my $n = @$ids;

	$store->track("SELECT 'cook-' || i FROM generate_series(1, 32) i");
	plant(
		$store,
		trigger('BEFORE UPDATE', "NEW.state = 'ok' AND NEW.BAD", "fail('58030')"),
		map { "cook-$_" } @$ids);
	$call = $store->start_held(32, $application);
	$application->ask('COMMIT;');
	$printed = $store->finish_call($call);
	like(
		$printed,
		qr/ERROR:  58030: the owner says no/,
		"errors about the server for $n of 32 profiles end a run");
	like(
		$printed,
		qr/could not store the vectors fetched for $n profile/,
		"only the replies are lost for which $n errors about the server are raised");
	is( $store->states,
		"due $n, ok " . (32 - $n),
		"all profiles are written except the $n for which errors about the server are raised");
	drop($store, $rejection{'a trigger'});
}

# Triggers that wait until the run is canceled
$store->sql(
	q{CREATE FUNCTION profile.wait() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_sleep(60);
		RETURN NEW;
	END $$});
foreach my $ids ([7], [ 7, 23 ])
{
	my $n = @$ids;

	plant(
		$store,
		trigger('BEFORE UPDATE', "NEW.state = 'ok' AND NEW.BAD", 'wait()'),
		map { "cook-$_" } @$ids);

	# On a busy machine, the timeout may come before all replies have arrived
	foreach my $timeout ('1s', '5s', '20s')
	{
		$store->track("SELECT 'cook-' || i FROM generate_series(1, 32) i");
		$printed =
		  $store->call(undef, role => 'keeper', settings => { statement_timeout => $timeout });
		last if $store->states eq "due $n, ok " . (32 - $n);
	}
	like($printed, qr/ERROR:  57014/,
		"statement_timeout ends a run in the triggers of $n profiles");
	like(
		$printed,
		qr/could not store the vectors fetched for $n profile/,
		"only the replies are lost whose $n triggers wait");
	is( $store->states,
		"due $n, ok " . (32 - $n),
		"all profiles are written except the $n whose triggers wait");
	is($store->profiles('lease_until'), '', "a run in which $n triggers wait leaves no lease");
	drop($store, $rejection{'a trigger'});
}

# A trigger that waits for a lock of another session
$store->sql(
	q{CREATE TABLE profile.door (); INSERT INTO profile.door DEFAULT VALUES;
	CREATE FUNCTION profile.enter() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM FROM profile.door FOR UPDATE;
		RETURN NEW;
	END $$});
$store->track("SELECT 'cook-' || i FROM generate_series(1, 40) i");
plant($store, trigger('BEFORE UPDATE', "NEW.state = 'ok' AND NEW.BAD", 'enter()'), 'cook-7');
$application->ask('SET ROLE keeper; BEGIN; SELECT FROM profile.door FOR UPDATE;');
$call = $store->start_call;
ok( $node->poll_query_until(
		'postgres', "SELECT count(*) = 39 FROM profile.embedding_profile WHERE state = 'ok'"),
	'the others are written while the trigger of a profile waits for a lock');
$application->ask('COMMIT;');
like(
	$store->finish_call($call),
	qr/: 40 refreshed/,
	'a profile is written once its trigger has its lock');
is(paid($store), 40, 'a profile whose trigger waits for a lock is requested once');
drop($store, $rejection{'a trigger'});

# A trigger that waits for such a lock while the failures of profiles are recorded whose
# vectors are rejected
$store->sql(
	"ALTER TABLE profile.embedding ADD CONSTRAINT narrow
	CHECK (profile_id !~ 'cook-[1-8]\$') NOT VALID");
$store->track("SELECT 'cook-' || i FROM generate_series(1, 40) i");
plant(
	$store,
	trigger(
		'BEFORE UPDATE',
		"NEW.state = 'due' AND OLD.lease_until IS NOT NULL AND NEW.BAD", 'enter()'),
	map { "cook-$_" } 1 .. 8);
$application->ask('SET ROLE keeper; BEGIN; SELECT FROM profile.door FOR UPDATE;');
$call = $store->start_call;
ok( $node->poll_query_until(
		'postgres', "SELECT count(*) = 32 FROM profile.embedding_profile WHERE state = 'ok'"),
	'the others are written while the failures of 8 profiles wait for a lock');
$application->ask('COMMIT;');
$printed = $store->finish_call($call);
like(
	$printed,
	qr/: 32 refreshed, 8 to be retried/,
	'failures are recorded once the lock is released');
unlike($printed, qr/could not write the state/, 'a lock is not taken for a rejection');
is($store->states, 'due 8, ok 32', 'profiles whose failures waited for a lock are due');
is(paid($store), 40, 'profiles whose failures wait for a lock are requested once');
drop($store, $rejection{'a trigger'});
$store->sql('ALTER TABLE profile.embedding DROP CONSTRAINT narrow');
$application->finish;

# A serialization failure
$store->sql(
	q{CREATE SEQUENCE profile.tries;
	CREATE FUNCTION profile.conflict() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF nextval('profile.tries') < 4 THEN
			RAISE EXCEPTION 'could not serialize' USING ERRCODE = 'serialization_failure';
		END IF;
		RETURN NEW;
	END $$});
$store->track("SELECT 'cook-' || i FROM generate_series(1, 40) i");
plant($store, trigger('BEFORE UPDATE', "NEW.state = 'ok' AND NEW.BAD", 'conflict()'), 'cook-7');
like($store->call, qr/: 40 refreshed/, 'a profile is written after serialization failures');
is(paid($store), 40, 'a profile with serialization failures is requested once');
drop($store, $rejection{'a trigger'});

#
# A text whose reply could not be written, and that another key has, too
#
$of{text}->sql(
	q{SELECT hrflow_create_store('text.twins', 'real[]', content => 'text');
	CREATE TABLE text.letter (id text, body text);
	SELECT hrflow_track_table('text.twins', 'text.letter', 'id', content_columns => '{body}');
	CREATE TRIGGER planted BEFORE UPDATE OF state ON text.twins_profile
		FOR EACH ROW WHEN (NEW.key = 'first') EXECUTE FUNCTION text.fail();
	INSERT INTO text.letter VALUES ('first', 'the same text'), ('other', 'another text')});
$api->reset;
$of{text}->sql(q{CALL hrflow_refresh('text.twins')});
is($api->stats->{requests}, 2, 'a text is sent although its state will be rejected');
$of{text}->sql(
	q{INSERT INTO text.letter VALUES ('second', 'the same text');
	CALL hrflow_refresh('text.twins')});
is($api->stats->{requests},
	2, 'a text whose reply could not be written is not sent for another key');
is($of{text}->sql(q{SELECT state FROM text.twins_profile WHERE key = 'second'}),
	'failed', 'the other key with the text has failed');

#
# Other states that are rejected
#
$store->track("SELECT 'cook-' || i FROM generate_series(1, 30) i UNION ALL SELECT 'missing-1'");
plant($store, trigger('BEFORE UPDATE', "NEW.state = 'missing'", 'fail()'));
like($store->call, qr/: 30 refreshed, 1 to be retried/, 'a missing profile may be rejected');
is($store->profiles('state, attempts', "profile_id = 'missing-1'"),
	'due|1', 'a missing profile that is rejected is recorded as a failure');
drop($store, $rejection{'a trigger'});

# Vectors that are put aside, which the row records
$store->track("SELECT 'cook-' || i FROM generate_series(1, 30) i");
$store->call;
$store->sql(
	"INSERT INTO profile.embedding (source_id, profile_id, section, item, vector)
	SELECT source_id, profile_id, 'skills', i, vector FROM profile.embedding,
		generate_series(1, 3) i WHERE profile_id IN ('cook-7', 'cook-8') AND section = 'skills'");
$store->hasten('true');
plant($store, trigger('BEFORE UPDATE', 'NEW.erased_at IS NOT NULL AND NEW.BAD', 'fail()'),
	'cook-7');
like(
	$store->call,
	qr/: 29 refreshed, 1 to be retried/,
	'a profile that has lost vectors may be rejected');
is( $store->sql(
		"SELECT profile_id, count(*) FROM profile.embedding WHERE section = 'skills'
		AND profile_id IN ('cook-7', 'cook-8') GROUP BY 1 ORDER BY 1"),
	"cook-7|4\ncook-8|1",
	'a profile that is rejected loses no vectors');
drop($store, $rejection{'a trigger'});

done_testing();
