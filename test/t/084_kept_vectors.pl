# Vectors that were paid for are stored although the table rejects another vector of the
# same profile.  A regression test could see neither the requests that are sent nor other
# sessions.
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
				DETAIL:\ \ Fetched\ vectors\ that\ the\ table\ accepted\ were\ stored\..*\n
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

done_testing();
