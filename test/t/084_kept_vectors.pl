# Vectors that were paid for are stored although the table rejects another vector of the
# same profile, or although the run has lost the lease of the profile.  A regression test
# could see neither the requests that are sent nor other sessions.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new('kept', $api, link_hosts => '127.0.0.1');
my $store = Hrflow::Store->new($node, $api, 'shop');
my $old = "array_fill(1::real, '{16}')";
my $bad = "NEW.profile_id = 'cook-7' AND NEW.section = 'SECTION'";

$store->sql(
	q{CREATE FUNCTION shop.fail() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		RAISE EXCEPTION 'the owner says no' USING ERRCODE = COALESCE(TG_ARGV[0], 'XX123');
	END $$;
	CREATE FUNCTION shop.unlabel() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		NEW.label := NULL;
		RETURN NEW;
	END $$;});

# How the owner's table rejects vectors of SECTION of the profile cook-7, and what the
# error says.  The triggers are called "planted".
my %rejection = (
	'a constraint' => {
		plant => "ALTER TABLE shop.embedding ADD CONSTRAINT planted CHECK (vector = $old
			OR profile_id <> 'cook-7' OR section <> 'SECTION')",
		drop => 'ALTER TABLE shop.embedding DROP CONSTRAINT planted',
		says => 'violates check constraint' },
	'a trigger' => {
		plant => "CREATE TRIGGER planted BEFORE INSERT ON shop.embedding FOR EACH ROW
			WHEN ($bad) EXECUTE FUNCTION shop.fail()",
		says => 'the owner says no' },
	'an AFTER trigger' => {
		plant => "CREATE TRIGGER planted AFTER INSERT OR UPDATE ON shop.embedding FOR EACH ROW
			WHEN ($bad) EXECUTE FUNCTION shop.fail()",
		says => 'the owner says no' },
	'a column that is NOT NULL' => {
		plant => "ALTER TABLE shop.embedding ADD label text DEFAULT '' NOT NULL;
			CREATE TRIGGER planted BEFORE INSERT ON shop.embedding FOR EACH ROW
			WHEN ($bad) EXECUTE FUNCTION shop.unlabel()",
		drop => 'DROP TRIGGER planted ON shop.embedding;
			ALTER TABLE shop.embedding DROP label',
		says => 'violates not-null constraint' },
	'a unique index' => {
		plant => "INSERT INTO shop.embedding (source_id, profile_id, section, item, vector)
				VALUES ('other', 'cook-7', 'SECTION', 0, '{2}');
			CREATE UNIQUE INDEX planted ON shop.embedding (profile_id, section, (vector = $old))
				WHERE profile_id = 'cook-7' AND section = 'SECTION'",
		drop => "DROP INDEX shop.planted;
			DELETE FROM shop.embedding WHERE source_id = 'other'",
		says => 'duplicate key value violates unique constraint' });

sub plant
{
	my ($rejection, $section) = @_;
	$store->sql($rejection->{plant} =~ s/SECTION/$section/gr);
	return;
}

sub unplant
{
	my ($rejection) = @_;
	$store->sql($rejection->{drop} // 'DROP TRIGGER planted ON shop.embedding');
	return;
}

# Return the sections of a profile, and whether their vectors are old
sub sections
{
	my ($profile) = @_;
	return $store->sql(
		"SELECT string_agg(section || item || CASE WHEN vector = $old THEN ' old' ELSE '' END,
				', ' ORDER BY section, item)
			FROM shop.embedding WHERE profile_id = '$profile' AND source_id = 'acme'");
}

sub start_held
{
	my ($requests, @arguments) = @_;
	my $call = $store->start_call(@arguments);

	$api->wait_until(sub { $_[0]{requests} >= $requests }) or die;
	return $call;
}

#
# A vector that the table rejects
#
foreach my $what (sort keys %rejection)
{
	my $rejection = $rejection{$what};

	foreach my $section (qw(profile skills))
	{
		my $other = $section eq 'profile' ? 'skills' : 'profile';
		my $name = "a vector of section $section is rejected by $what";

		# The store has old vectors, and one more that the reply lacks
		$store->track("SELECT 'cook-' || i FROM generate_series(1, 40) i");
		$store->call;
		$store->sql(
			"UPDATE shop.embedding SET vector = $old;
			INSERT INTO shop.embedding (source_id, profile_id, section, item, vector)
				VALUES ('acme', 'cook-7', '$other', 5, $old),
					('acme', 'cook-8', '$other', 5, $old)");
		$store->hasten('true');
		$api->reset;
		plant($rejection, $section);
		my $printed = $store->call;
		like($printed, qr/: 39 refreshed, 1 to be retried/, "a profile fails if $name");
		is( sections('cook-7'),
			join(', ', sort "${section}0 old", "${other}0", "${other}5 old"),
			"the other vector is stored, and no old one is lost, if $name");
		is(sections('cook-8'), 'profile0, skills0', "the other profiles are written if $name");
		is($store->sql('SELECT count(*) FROM shop.embedding_aside'),
			1, "only the other profile loses a vector if $name");
		$store->sql('DELETE FROM shop.embedding_aside');
		like(
			$printed,
			qr/WARNING:\ .*could\ only\ partly\ update\ the\ vectors\ of\ 1\ profile:\ .*\Q$rejection->{says}\E.*\n
				DETAIL:\ \ Fetched\ vectors\ that\ the\ table\ accepts\ were\ stored\..*\n
				HINT:\ \ Check\ the\ .*\ of\ table\ shop\.embedding\./x,
			"a WARNING is raised if $name");
		is( $store->profiles(
				"state, attempts, last_error ~ '^Could not be stored: .*$rejection->{says}',
					due_at BETWEEN now() AND now() + interval '1 minute', lease_until",
				"profile_id = 'cook-7'"),
			'due|1|t|t|',
			"the profile is due again like one that has failed if $name");
		is($store->asked->{'cook-7'}, 1, "the profile is requested once if $name");
		unplant($rejection);
		$store->hasten;
		like($store->call, qr/: 1 refreshed/, "the profile is refreshed later if $name");
		is($store->wrong_vectors, 0, "all vectors are right in the end if $name");
		is($store->profiles('state, attempts, last_error'),
			'ok|0|', "no profile has failed in the end if $name");

		# A profile without vectors
		next unless $what eq 'a trigger';
		$store->track("SELECT 'cook-' || i FROM generate_series(1, 40) i");
		plant($rejection, $section);
		like($store->call, qr/: 39 refreshed, 1 to be retried/, "a new profile fails if $name");
		is(sections('cook-7'), "${other}0", "a new profile has the other vector if $name");
		unplant($rejection);
	}
}

# All vectors of a profile are rejected
$store->track("SELECT 'cook-' || i FROM generate_series(1, 40) i");
$store->sql(
	"CREATE TRIGGER planted BEFORE INSERT ON shop.embedding FOR EACH ROW
	WHEN (NEW.profile_id = 'cook-7') EXECUTE FUNCTION shop.fail()");
my $printed = $store->call;
like(
	$printed,
	qr/\A(?!.*only partly).*: 39 refreshed, 1 to be retried/s,
	'no vector is stored of a profile whose vectors are all rejected');
is(sections('cook-7'), '', 'a profile whose vectors are all rejected has none');
$store->sql('DROP TRIGGER planted ON shop.embedding');

# The owner does not let vectors be put aside
$store->call;
$store->sql(
	"UPDATE shop.embedding SET vector = $old;
	INSERT INTO shop.embedding (source_id, profile_id, section, item, vector)
		VALUES ('acme', 'cook-8', 'skills', 5, $old);
	CREATE TRIGGER planted BEFORE DELETE ON shop.embedding FOR EACH ROW
		EXECUTE FUNCTION shop.fail()");
$store->hasten('true');
like(
	$store->call,
	qr/: 39 refreshed, 1 to be retried/,
	'a profile fails if its lost vector cannot be put aside');
is( sections('cook-8'),
	'profile0, skills0, skills5 old',
	'the vectors in the reply are stored if a lost one cannot be put aside');
$store->sql('DROP TRIGGER planted ON shop.embedding');

# Another vector of the profile is locked meanwhile
$store->track("SELECT 'cook-' || i FROM generate_series(1, 40) i");
$store->call;
$store->sql("UPDATE shop.embedding SET vector = $old");
$store->hasten('true');
plant($rejection{'a trigger'}, 'profile');
my $locker = Hrflow::Session->new($node);
$locker->ask(
	q{BEGIN; SELECT FROM shop.embedding WHERE profile_id = 'cook-7' AND section = 'skills'
		FOR UPDATE;});
my $call = $store->start_call;
ok( $node->poll_query_until(
		'postgres',
		q{SELECT count(*) = 39 FROM shop.embedding_profile WHERE state = 'ok'
			AND due_at > now()}),
	'the others are written while a vector is locked and another one is rejected');
$locker->ask('COMMIT;');
like(
	$store->finish_call($call),
	qr/: 39 refreshed, 1 to be retried/,
	'a profile with a locked and a rejected vector is written once the lock is released');
is( sections('cook-7'),
	'profile0 old, skills0',
	'a vector that was locked is stored although another one is rejected');
unplant($rejection{'a trigger'});

# The error of another vector ends the run
$store->track("SELECT 'cook-' || i FROM generate_series(1, 40) i");
plant($rejection{'a trigger'}, 'profile');
$store->sql(
	"CREATE TRIGGER planted_too BEFORE INSERT ON shop.embedding FOR EACH ROW
	WHEN (NEW.profile_id = 'cook-7' AND NEW.section = 'skills')
	EXECUTE FUNCTION shop.fail('58030')");
like(
	$store->call,
	qr/ERROR:  58030: the owner says no/,
	'an error about the server ends a run although another vector is rejected');
is($store->states, 'due 1, ok 39', 'an error about the server keeps only its profile');
$store->sql('DROP TRIGGER planted_too ON shop.embedding');
unplant($rejection{'a trigger'});

# A section that is always rejected stops a run soon
$store->track("SELECT 'cook-' || i FROM generate_series(1, 1000) i");
$store->sql(
	"CREATE TRIGGER planted BEFORE INSERT ON shop.embedding FOR EACH ROW
	WHEN (NEW.section = 'skills') EXECUTE FUNCTION shop.fail()");
$printed = $store->call;
like(
	$printed,
	qr/WARNING:.*was stopped: the store does not accept fetched vectors; Could not/,
	'a run stops if a section is always rejected');
my $paid = keys %{ $store->asked };
cmp_ok($paid, '<=', 32, 'a run stops soon if a section is always rejected');
is($store->sql('SELECT count(*), min(section), max(section) FROM shop.embedding'),
	"$paid|profile|profile", 'the other section of each profile is stored');
is($store->profiles('state, attempts'), 'due|0', 'the stop counts no attempts');
$store->sql('DROP TRIGGER planted ON shop.embedding');

#
# A lease that was taken over, or cleared
#
my $lost = qr/could not store the vectors/;
my $later = "now() + interval '1 hour'";

foreach my $case (
	[ 'taken over', "lease_until = $later", "lease_until > now() + interval '50 minutes'" ],
	[ 'cleared', 'lease_until = NULL', 'lease_until IS NULL' ],
	[   'taken over, and has ended',
		"lease_until = now() - interval '1 hour'",
		'lease_until < now()' ])
{
	my ($name, $change, $lease) = @$case;

	# Nothing else is due, and the profile is not claimed again by the same run
	$store->track("SELECT 'cook-1'");
	$store->call;
	$store->sql(
		"UPDATE shop.embedding SET vector = $old;
		INSERT INTO shop.embedding (source_id, profile_id, section, item, vector)
			VALUES ('acme', 'cook-1', 'skills', 5, $old)");
	$store->hasten('true');
	my $due = $store->profiles('due_at, generation');
	$api->reset;
	$api->script('hold=2', count => 1);
	$call = start_held(1, 'max_profiles => 1');
	$store->sql("UPDATE shop.embedding_profile SET $change");
	$api->release(2);
	$printed = $store->finish_call($call);
	like($printed, qr/: 1 refreshed/, "a profile is refreshed although its lease was $name");
	unlike($printed, $lost, "no WARNING is raised if a lease was $name");
	is( sections('cook-1'),
		'profile0, skills0, skills5 old',
		"vectors are stored, and none is put aside, if a lease was $name");
	is($store->profiles('due_at, generation'), $due, "due_at does not change if a lease was $name");
	is($store->profiles("$lease, refreshed_at > now() - interval '1 minute', attempts"),
		't|t|0', "the lease is left to its owner if it was $name");
	$store->sql('DELETE FROM shop.embedding WHERE item = 5');
	is($store->wrong_vectors, 0, "the vectors are right if a lease was $name");
}

# Two runs, each with an API of its own that holds the answer.  "first" is the run whose
# answer arrives first.
my $api_of_2 = Hrflow::StandIn->new('--dim' => 16);
foreach my $first (1, 2)
{
	my @apis = ($api, $api_of_2);
	my $name = "the answer of run $first arrives first";
	my @calls;

	$store->track("SELECT 'cook-1'");
	$_->reset foreach @apis;
	foreach my $run (1, 2)
	{
		my $its_api = $apis[ $run - 1 ];

		$its_api->script('hold=2', count => 1);
		push @calls,
		  $store->start_call('max_profiles => 1',
			settings => { 'hrflow_embed.base_url' => $its_api->base_url });
		$its_api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
		$store->sql('UPDATE shop.embedding_profile SET lease_until = NULL') if $run == 1;
	}
	$apis[ $first - 1 ]->release(2);
	$printed = $store->finish_call($calls[ $first - 1 ]);
	like($printed, qr/: 1 refreshed/, "an answer is written at once if $name");
	is(sections('cook-1'), 'profile0, skills0', "the vectors are stored at once if $name");
	is( $store->profiles('state, lease_until > now(), due_at <= now()'),
		$first == 1 ? 'due|t|t' : 'ok||f',
		"the state is left to the run with the lease if $name");

	# An older answer does not replace a newer one
	$store->sql("UPDATE shop.embedding SET vector = $old");
	$apis[ 2 - $first ]->release(2);
	$printed = $store->finish_call($calls[ 2 - $first ]);
	is( sections('cook-1'),
		$first == 1 ? 'profile0, skills0' : 'profile0 old, skills0 old',
		"the vectors are those of run 2 in the end if $name");
	is($store->profiles('state, lease_until, attempts, due_at > now()'),
		'ok||0|t', "the profile is ok in the end if $name");
	like(
		$printed,
		$first == 1 ? qr/\A(?!.*$lost)/s : $lost,
		"a WARNING is raised only for an answer that is not stored if $name");
}

# A run claims a profile again whose lease was cleared, and both answers arrive
$store->track("SELECT 'cook-' || i FROM generate_series(1, 2) i");
$api->script('hold=5', count => 4);
$call = start_held(2);
$store->sql('UPDATE shop.embedding_profile SET lease_until = NULL');
$store->sql("INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-1')");
$api->wait_until(sub { $_[0]{requests} >= 4 }) or die;
$api->release(5);
$printed = $store->finish_call($call);
unlike($printed, qr/ERROR|suppressed/, 'a run that requests a profile twice does not fail');
is($store->states, 'ok 3', 'a run that requests a profile twice writes its state');
is($store->wrong_vectors, 0, 'a run that requests a profile twice writes its vectors');

# The profile has changed, is no longer wanted, or was tracked again meanwhile
foreach my $case (
	[ 'has changed', "UPDATE shop.candidate SET cv = 'new'", 1 ],
	[   'was deleted and added again',
		q{DELETE FROM shop.candidate; INSERT INTO shop.candidate (hrflow_id) VALUES ('cook-1')}, 1
	],
	[   'is unwanted',
		q{INSERT INTO shop.embedding SELECT source_id, profile_id, 'profile', 9, '{1}'
			FROM shop.embedding_profile;
		SELECT hrflow_untrack_table('shop.embedding', 'shop.candidate')} ])
{
	my ($name, $change, $is_warned) = @$case;

	$store->track("SELECT 'cook-1'");
	$api->script('hold=2', count => 1);
	$call = start_held(1, 'max_profiles => 1');
	$store->sql("UPDATE shop.embedding_profile SET lease_until = $later; $change");
	$api->release(2);
	$printed = $store->finish_call($call);
	is(sections('cook-1'), '', "nothing is stored without a lease if a profile $name");
	like(
		$printed,
		$is_warned ? $lost : qr/\A(?!.*$lost)/s,
		"the WARNING is right if a profile without a lease $name");
}
$store->sql(
	q{SELECT hrflow_track_table('shop.embedding', 'shop.candidate', 'hrflow_id',
		source_id => 'acme', refresh_columns => '{cv}')});

# An answer without vectors, and one that lacks a vector because its link does not work
foreach my $case ([ 'has no vectors', 'status=404,', 0 ], [ 'is incomplete', '', 1 ])
{
	my ($name, $fault, $n) = @$case;

	$store->track("SELECT 'fault:${fault}hold=2,id=cook'");
	$api->script('v.status=403', count => 1);
	$call = start_held(1, 'max_profiles => 1');
	$store->sql("UPDATE shop.embedding_profile SET lease_until = $later");
	$api->release(2);
	$store->finish_call($call);
	is( $store->profiles(
			'state, attempts, http_status, last_error, refreshed_at, lease_until > now()'),
		'due|0||||t',
		"the row does not change without a lease if an answer $name");
	is($store->sql('SELECT count(*) FROM shop.embedding'),
		$n, "$n vectors are stored without a lease if an answer $name");
}

#
# The content of a text whose lease was taken over
#
my $text = Hrflow::Store->new($node, $api, 'text', content => 'text');
$text->track("SELECT 'cook-1'");
$api->script('hold=2', count => 1);
$call = $text->start_call('max_profiles => 1');
$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
$text->sql("UPDATE text.embedding_profile SET lease_until = $later");
$api->release(2);
like(
	$text->finish_call($call),
	qr/: 1 refreshed/,
	'a text is refreshed although its lease was taken over');
is($text->wrong_vectors, 0, 'the vector of a text whose lease was taken over is stored');
is($text->profiles("state, content_hash = sent_hash, lease_until > now()"),
	'due|t|t', 'the hash of the text is stored with the vector, and remains marked as sent');
$api->reset;
$text->hasten;
like($text->call, qr/: 1 refreshed/, 'the text is refreshed once the lease has ended');
is($api->stats->{requests}, 0, 'the text is not sent again');
is($text->profiles('state, sent_hash'), 'ok|', 'the text is no longer marked as sent');

done_testing();
