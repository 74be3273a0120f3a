# Profiles that no table wants: when they are wanted again, they get back the vectors that
# were put aside, even late; and how many lose their vectors in a day is limited, even
# if that is not recorded.  A regression test could neither see the requests that are
# sent nor miss triggers.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new('again', $api, link_hosts => '127.0.0.1');
my $store = Hrflow::Store->new($node, $api, 'shop');
my $track = q{SELECT hrflow_track_table('shop.embedding', 'shop.candidate', 'hrflow_id',
	source_id => 'acme', refresh_columns => '{cv}')};

# Execute SQL, without the triggers of the table
sub unseen
{
	my ($sql) = @_;
	$node->safe_psql('postgres', "SET session_replication_role = replica; $sql");
	return;
}

# Return how many vectors of some profiles are in the store, and how many have been
# put aside
sub vectors
{
	my ($where) = @_;
	return $store->sql(
		"SELECT (SELECT count(*) FROM shop.embedding WHERE $where) || ' '
			|| (SELECT count(*) FROM shop.embedding_aside WHERE $where)");
}

#
# Vectors that have expired when their profile is wanted again
#
$store->track(q{SELECT 'nurse-' || i FROM generate_series(1, 30) i});
$store->call;
my $fresh = $store->profiles('profile_id, state, due_at, refreshed_at', q{profile_id = 'nurse-1'});
my $arguments = q{('shop.embedding', 'shop.other')};
foreach my $case (
	[ 'reconciling', $track ],
	[ 'tracking with other arguments', $track =~ s/cv/note/r ],
	[ 'hrflow_untrack_table()', "SELECT hrflow_untrack_table$arguments" ],
	[ 'hrflow_untrack_table_batches', "CALL hrflow_untrack_table_batches$arguments" ])
{
	my ($name, $sql) = @$case;

	$store->add_table('other');
	$store->sql(q{INSERT INTO shop.other VALUES ('cook-1')});
	$store->call;
	unseen(q{DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-1'});
	$store->sql($track);
	is(vectors(q{profile_id = 'nurse-1'}), '0 2', "the vectors of a profile are put aside: $name");
	unseen(
		q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-1');
		DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-2'});
	$store->sql('UPDATE shop.embedding_aside SET delete_at = now()');
	$api->reset;
	$store->sql($sql);
	is(vectors(q{profile_id = 'nurse-1'}),
		'2 0', "$name restores expired vectors of a profile that is wanted again");
	is($store->profiles('profile_id, state, due_at, refreshed_at', q{profile_id = 'nurse-1'}),
		$fresh, "$name restores when such a profile is due");
	$store->call;
	is($api->stats->{requests}, 0, "such a profile costs no request: $name");

	$store->sql(
		q{DROP TABLE shop.other; INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-2')
			ON CONFLICT DO NOTHING});
	$store->sql($track);
	$store->sql(
		q{SELECT hrflow_untrack('shop.embedding', 'acme', '{cook-1}');
		DELETE FROM shop.embedding_erased});
	$store->call;
}

#
# Profiles that had failed, were missing or waited for a retry before they were unwanted
#
$store->sql(
	q{UPDATE shop.embedding_profile AS p SET state = k.state, attempts = k.attempts,
		due_at = now() + k.wait, http_status = 404, last_error = 'an error', failed_at = now()
	FROM (VALUES ('nurse-1', 'failed', 5, NULL), ('nurse-2', 'missing', 0, interval '1 hour'),
		('nurse-3', 'due', 2, interval '2 hours')) AS k (i, state, attempts, wait)
	WHERE profile_id = k.i});
my $columns = 'profile_id, state, due_at, attempts, http_status, last_error, failed_at,
	refreshed_at';
my $former = $store->profiles($columns, q{profile_id ~ '^nurse-[123]$'});
foreach my $restore ($track, q{SELECT hrflow_restore('shop.embedding')})
{
	my ($name) = $restore =~ /(hrflow_\w+)/;

	unseen(q{DELETE FROM shop.candidate WHERE hrflow_id ~ '^nurse-[123]$'});
	$store->sql($track);
	is($store->states, 'ok 27, unwanted 3', "the profiles are unwanted before $name()");
	unseen(q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-1'), ('nurse-2'), ('nurse-3')});
	$api->reset;
	$store->sql($restore);
	is($store->profiles($columns, q{profile_id ~ '^nurse-[123]$'}),
		$former, "$name() restores the states that profiles had before they were unwanted");
	is(vectors('true'), '60 0', "$name() restores the vectors of such profiles");
	$store->call;
	is($api->stats->{requests}, 0, "such profiles cost no request: $name()");
}
$store->sql(
	q{UPDATE shop.embedding_profile SET state = 'ok', attempts = 0,
		due_at = now() + interval '1 day', last_error = NULL WHERE profile_id ~ '^nurse-[123]$'});

# Vectors that were put aside earlier, when the profile had another state
unseen(q{DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-1'});
$store->sql($track);
$store->sql(
	q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-1');
	UPDATE shop.embedding_profile SET state = 'failed', attempts = 5, due_at = NULL
	WHERE profile_id = 'nurse-1'});
unseen(q{DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-1'});
$store->sql($track);
unseen(q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-1')});
$store->sql($track);
is($store->profiles('state, attempts, due_at', q{profile_id = 'nurse-1'}),
	'failed|5|', 'the last state is restored, together with vectors that were put aside earlier');
is(vectors('true'), '60 0', 'vectors that were put aside earlier are restored');
$store->sql(
	q{UPDATE shop.embedding_profile SET state = 'ok', attempts = 0,
		due_at = now() + interval '1 day' WHERE profile_id = 'nurse-1'});

#
# Vectors that the store does not accept
#
my $untrack = q{SELECT hrflow_untrack_table('shop.embedding', 'shop.candidate')};

# Return the standard error of psql
sub warnings_of
{
	my ($sql) = @_;
	my (undef, undef, $err) = $node->psql('postgres', "SET ROLE keeper;\n$sql");
	return $err;
}

$fresh = $store->profiles('profile_id, state, due_at, refreshed_at', q{profile_id <> 'nurse-5'});
$store->sql(
	"$untrack; ALTER TABLE shop.embedding ADD CONSTRAINT fits CHECK (profile_id <> 'nurse-5')");
like(
	warnings_of($track),
	qr/WARNING:\ .*could\ not\ restore\ the\ vectors\ of\ 1\ profile\ of\ store\ shop\.embedding\n
		DETAIL:.*"fits"\nHINT:.*hrflow_restore/x,
	'reconciling warns about a profile whose vectors the store does not accept');
is($store->states, 'due 1, ok 29', 'only a profile whose vectors are not accepted is due');
is($store->profiles('profile_id, state, due_at, refreshed_at', q{profile_id <> 'nurse-5'}),
	$fresh, 'the others are due when they were before');
is(vectors('true'), '58 2', 'the others have their vectors again');
is(warnings_of($track), '', 'reconciling again does not warn about that profile');
$store->sql('ALTER TABLE shop.embedding DROP CONSTRAINT fits');
is($store->sql(q{SELECT hrflow_restore('shop.embedding')}),
	1, 'hrflow_restore() restores vectors as soon as the store accepts them');
is(vectors('true'), '60 0', 'all profiles have their vectors again');
$api->reset;
$store->call;
is_deeply($store->asked, { 'nurse-5' => 1 }, 'only the profile that was not restored is fetched');

# A store that accepts nothing.  The sequence counts attempts, even if they are rolled back.
$store->sql(
	q{CREATE SEQUENCE shop.attempts;
	CREATE FUNCTION shop.refuse() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN PERFORM nextval('shop.attempts'); RAISE 'another model'; END $$;
	INSERT INTO shop.candidate (hrflow_id) SELECT 'cook-' || i FROM generate_series(1, 5000) i;
	UPDATE shop.embedding_profile SET state = 'ok', due_at = now() + interval '1 day'
		WHERE profile_id ~ 'cook';
	INSERT INTO shop.embedding (source_id, profile_id, section, item, vector)
		SELECT source_id, profile_id, 'profile', 0, '{1,0}' FROM shop.embedding_profile
		WHERE profile_id ~ 'cook'});
$store->sql(
	"$untrack; CREATE TRIGGER refuse BEFORE INSERT ON shop.embedding FOR EACH ROW
		EXECUTE FUNCTION shop.refuse()");
like(
	warnings_of($track),
	qr/WARNING:\ .*could\ not\ restore\ the\ vectors\ of\ 5030\ profiles.*\nDETAIL:.*another\ model/x,
	'reconciling warns if the store accepts no vectors');
is($store->states, 'due 5030', 'all profiles are due if the store accepts no vectors');
cmp_ok($store->sql('SELECT last_value FROM shop.attempts'),
	'<', 2500, 'reconciling soon stops trying to restore profiles if the store accepts no vectors');

#
# The limit holds even if erasures are neither recorded nor delayed
#
$store->sql('DROP SCHEMA shop CASCADE');
$store = Hrflow::Store->new($node, $api, 'shop');
$store->sql(
	q{DROP TABLE shop.embedding_erased;
	ALTER TABLE shop.embedding_aside ALTER COLUMN delete_at SET DEFAULT now()});
$store->fill(100);
$store->call;
my $first = 'DELETE FROM shop.candidate WHERE id IN (SELECT id FROM shop.candidate ORDER BY id';
my $status =
  q{SELECT tracked, erased_last_day, put_aside FROM hrflow_store_status('shop.embedding')};
unseen("$first LIMIT 20)");
like(warnings_of($track), qr/ 20 profiles .* were put aside/, 'reconciling puts aside 20 profiles');
is(vectors('true'), '160 0', 'vectors that are put aside without a delay are erased at once');
unseen("$first LIMIT 1)");

foreach my $again ('reconciling again', 'reconciling after a run')
{
	like(warnings_of($track), qr/keeps the vectors of 1 profile /, "$again warns about the limit");
	is( vectors('true') . ' ' . $store->sql($status),
		'160 0 80|20|0',
		"$again erases no vectors of another profile");
	$store->call;
}
$store->age('1 day', q{state = 'unwanted'});
like(warnings_of($track), qr/ 1 profile .* were put aside/, 'reconciling a day later erases more');
is( vectors('true') . ' ' . $store->states,
	'158 0 ok 79, unwanted 1',
	'reconciling a day later also erases the profiles of the day before');

done_testing();
