# Vectors that are lost although nobody deleted their profiles are put aside: for
# how long, how they are restored, and when they are deleted.  A regression test
# could neither see the requests that are sent nor restore a dump.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new('aside', $api, link_hosts => '127.0.0.1');
my $store = Hrflow::Store->new($node, $api, 'shop');
my $track = q{SELECT hrflow_track_table('shop.embedding', 'shop.candidate', 'hrflow_id',
	source_id => 'acme', refresh_columns => '{cv}')};

# Return the standard error of psql
sub warnings_of
{
	my ($sql) = @_;
	my (undef, undef, $err) = $node->psql('postgres', "SET ROLE keeper;\n$sql");
	return $err;
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

# Delete profiles from the account, and pretend that they have been missing for
# days, so that they are gone after the next run
sub lose
{
	my ($name) = @_;

	$store->sql(
		"UPDATE shop.candidate SET hrflow_id = 'missing-' || hrflow_id WHERE hrflow_id ~ '$name';
		DELETE FROM shop.embedding_profile WHERE profile_id ~ '^missing-.*$name';
		INSERT INTO shop.embedding_profile (source_id, profile_id, state, due_at,
				failed_at, refreshed_at, manual)
			SELECT 'acme', hrflow_id, 'missing', now(), now() - interval '5 days',
				now() - interval '9 days', false
			FROM shop.candidate WHERE hrflow_id ~ '^missing-.*$name';
		INSERT INTO shop.embedding (source_id, profile_id, section, item, vector)
			SELECT 'acme', hrflow_id, 'profile', 0, '{1,0}' FROM shop.candidate
			WHERE hrflow_id ~ '^missing-.*$name';"
	);
	return;
}

$store->fill(100);
$store->call;
is($store->states, 'ok 100', 'a store of 100 profiles is refreshed');

#
# Profiles that are gone
#
lose('-1$');
like(
	$store->call,
	qr/WARNING:\ .*shop\.embedding\ has\ put\ aside\ vectors\ of\ 1\ profile\ that
		\ the\ API\ no\ longer\ has\n
		HINT:.*hrflow_restore/x,
	'a WARNING says how many profiles have lost vectors');
is(vectors("profile_id = 'missing-welder-1'"),
	'0 1', 'the vectors of a profile that is gone are put aside');
is($store->sql(q{SELECT reason, delete_at - put_aside_at FROM shop.embedding_aside}),
	'gone|1 day', 'vectors that are put aside are kept for a day by default');
is($store->sql(q{SELECT gone, put_aside FROM hrflow_store_status('shop.embedding')}),
	'1|1', 'hrflow_store_status() counts profiles whose vectors are put aside');
is($store->sql('SELECT count(*) FROM shop.embedding_erased WHERE reason = $$gone$$'),
	0, 'vectors that are put aside are not recorded as erased yet');
is( $store->sql(
		q{SELECT profile_id FROM hrflow_match('shop.embedding',
		(SELECT array_agg(i::int::real) FROM (VALUES (1), (0)) v(i)), 1)}),
	'',
	'vectors that are put aside are not ranked');
unlike($store->call, qr/put aside/, 'a run that puts nothing aside raises no WARNING about that');
is($store->sql(q{SELECT hrflow_restore('shop.embedding', 'other')}),
	0, 'hrflow_restore() with source_id restores only vectors of that source');
is($store->sql(q{SELECT hrflow_restore('shop.embedding', profile_ids => '{nobody}')}),
	0, 'hrflow_restore() with profile_ids restores only vectors of those profiles');
is($store->sql(q{SELECT hrflow_restore('shop.embedding')}),
	1, 'hrflow_restore() restores all vectors that were put aside');
is( $store->sql(
		q{SELECT vector, (SELECT state FROM shop.embedding_profile p
		WHERE p.profile_id = e.profile_id) FROM shop.embedding e WHERE profile_id ~ '^missing'}),
	'{1,0}|due',
	'a restored profile that was gone has its vectors again and is due');
like(
	$store->call,
	qr/ 1 not found, 0 gone/,
	'a restored profile that the API does not know is missing again at first');
is(vectors("profile_id = 'missing-welder-1'"),
	'1 0', 'a restored profile keeps its vectors while it is missing');

# Vectors that have been put aside long enough
lose('-2$');
$store->call;
$store->sql('UPDATE shop.embedding_aside SET delete_at = now()');
$store->call;
is(vectors("profile_id = 'missing-cook-2'"),
	'0 0', 'a run deletes vectors that were put aside long enough');
is( $store->sql(
		q{SELECT reason, vectors, put_aside_at < erased_at FROM shop.embedding_erased
			WHERE fingerprint = hrflow_fingerprint('acme', 'missing-cook-2')}),
	'gone|1|t',
	'vectors that are deleted after being put aside are recorded');
is($store->sql(q{SELECT hrflow_restore('shop.embedding')}),
	0, 'hrflow_restore() cannot restore vectors that were deleted');

# No grace period
$store->sql('ALTER TABLE shop.embedding_aside ALTER COLUMN delete_at SET DEFAULT now()');
lose('-3$');
$store->call;
is(vectors("profile_id = 'missing-driver-3'"),
	'0 0', 'lost vectors are deleted at once if there is no grace period');
is( $store->sql(
		q{SELECT count(*) FROM shop.embedding_erased
			WHERE fingerprint = hrflow_fingerprint('acme', 'missing-driver-3')}),
	1,
	'vectors that are deleted without a grace period are recorded');
$store->sql(
	q{ALTER TABLE shop.embedding_aside ALTER COLUMN delete_at SET DEFAULT now() + interval '1 day'}
);

#
# A section of which the API no longer has a vector
#
$store->sql(q{INSERT INTO shop.candidate (hrflow_id) VALUES ('novector-cook')});
$store->call;
$store->sql(
	q{INSERT INTO shop.embedding (source_id, profile_id, section, item, vector)
		VALUES ('acme', 'novector-cook', 'skills', 0, '{1,0}');
	SELECT hrflow_mark_due('shop.embedding', 'acme', '{novector-cook}')});
like(
	$store->call,
	qr/put aside vectors of 1 profile/,
	'a run warns about vectors of a section that the API no longer has');
is( $store->sql(q{SELECT section, reason FROM shop.embedding_aside}),
	'skills|no vector',
	'vectors of a section that the API no longer has are put aside');
my $before = $store->profiles('state, due_at', q{profile_id = 'novector-cook'});
is($store->sql(q{SELECT hrflow_restore('shop.embedding', 'acme', '{novector-cook}')}),
	1, 'hrflow_restore() restores the vectors of a section');
is($store->profiles('state, due_at', q{profile_id = 'novector-cook'}),
	$before, 'restoring a profile that was not gone does not change when it is due');
$store->sql(q{SELECT hrflow_mark_due('shop.embedding', 'acme', '{novector-cook}')});
$store->call;
is(vectors("profile_id = 'novector-cook' AND section = 'skills'"),
	'0 1', 'restored vectors that the API still does not have are put aside again');

# The erasure of a person is not delayed
$store->sql(q{DELETE FROM shop.candidate WHERE hrflow_id = 'novector-cook'});
is(vectors("profile_id = 'novector-cook'"),
	'0 0', 'a DELETE erases vectors that are put aside in the same transaction');
lose('-5$');
$store->call;
is($store->sql(q{SELECT hrflow_untrack('shop.embedding', 'acme', '{missing-welder-5}')}),
	1, 'hrflow_untrack() counts a profile that is gone');
is(vectors("profile_id = 'missing-welder-5'"),
	'0 0', 'hrflow_untrack() erases vectors that are put aside in the same transaction');
is( $store->sql(
		q{SELECT reason, vectors FROM shop.embedding_erased
			WHERE fingerprint IN (hrflow_fingerprint('acme', 'novector-cook'),
				hrflow_fingerprint('acme', 'missing-welder-5')) ORDER BY 1}),
	"delete|2\nuntrack|1",
	'vectors that were put aside are recorded when their profile is erased');

#
# Profiles without rows
#
my $unseen = 'SET session_replication_role = replica';
$store->track(q{SELECT 'nurse-' || i FROM generate_series(1, 100) i});
$store->sql('DELETE FROM shop.embedding_aside; DELETE FROM shop.embedding_erased');
$store->call;
my $fresh = $store->profiles('profile_id, state, due_at, refreshed_at');
$node->safe_psql(
	'postgres', "$unseen; CREATE TABLE shop.away AS SELECT * FROM shop.candidate
	WHERE hrflow_id IN ('nurse-1', 'nurse-2', 'nurse-3');
	DELETE FROM shop.candidate WHERE hrflow_id IN ('nurse-1', 'nurse-2', 'nurse-3')");
like(
	warnings_of($track),
	qr/WARNING:\ .*vectors\ of\ 3\ profiles\ of\ store\ shop\.embedding\ were\ put\ aside\n
		DETAIL:.*\nHINT:.*hrflow_restore/x,
	'reconciling warns about profiles without rows');
is($store->states, 'ok 97, unwanted 3', 'reconciling sets profiles without rows to unwanted');
is(vectors('true'), '194 6', 'reconciling puts aside the vectors of profiles without rows');
is( $store->sql(
		q{SELECT tracked, put_aside, erased_last_day FROM hrflow_store_status('shop.embedding')}),
	'97|3|3',
	'profiles without rows are not counted as tracked');
is(warnings_of($track), '', 'reconciling again raises no WARNING about vectors put aside before');
$api->reset;
$store->call;
$node->safe_psql(
	'postgres', "$unseen; INSERT INTO shop.candidate (hrflow_id, cv, note)
	SELECT hrflow_id, cv, note FROM shop.away");

# If the disk is full, nothing that could be restored later is fetched again
$store->sql(
	q{CREATE FUNCTION shop.fill_disk() RETURNS trigger LANGUAGE plpgsql
		AS $$BEGIN RAISE disk_full; END$$;
	CREATE TRIGGER fill_disk BEFORE INSERT ON shop.embedding FOR EACH ROW
		EXECUTE FUNCTION shop.fill_disk()});
like(
	warnings_of($track),
	qr/ERROR:  disk_full/,
	'an error of the server ends a reconciliation that would restore vectors');
is($store->states, 'ok 97, unwanted 3', 'profiles remain put aside after an error of the server');
$store->sql('DROP TRIGGER fill_disk ON shop.embedding');
is($store->sql($track), 0, 'unwanted profiles that have rows again do not count as newly tracked');
is($store->profiles('profile_id, state, due_at, refreshed_at'),
	$fresh, 'unwanted profiles that have rows again are due when they were before');
is(vectors('true'), '200 0', 'unwanted profiles that have rows again have their vectors again');
$store->call;
is($api->stats->{requests}, 0, 'profiles without rows for some time cost no request');

$node->safe_psql('postgres',
	"$unseen; DELETE FROM shop.candidate WHERE hrflow_id IN ('nurse-1', 'nurse-2')");
$store->sql($track);
is($store->sql(q{SELECT hrflow_restore('shop.embedding')}),
	2, 'hrflow_restore() restores unwanted profiles');
is($store->profiles('profile_id, state, due_at, refreshed_at'),
	$fresh, 'restoring unwanted profiles does not change when they are due');
$store->sql($track);
$store->sql(q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-1')});
is($store->profiles('state', q{profile_id = 'nurse-1'}),
	'due', 'an INSERT makes an unwanted profile due');
$store->sql('UPDATE shop.embedding_aside SET delete_at = now()');
$store->sql($track);
is($store->states, 'due 1, ok 98', 'reconciling deletes profiles that were unwanted long enough');
is(vectors('profile_id IN ($$nurse-1$$, $$nurse-2$$)'),
	'0 0', 'reconciling deletes vectors that were put aside long enough');
is($store->sql(q{SELECT reason, vectors, count(*) FROM shop.embedding_erased GROUP BY 1, 2}),
	'reconcile|2|2', 'profiles that reconciling deletes are recorded');

# Too many profiles without rows
$node->safe_psql('postgres', "$unseen; DELETE FROM shop.candidate WHERE hrflow_id ~ '-[5-7]'");
like(
	warnings_of($track),
	qr/WARNING:\ .*keeps\ the\ vectors\ of\ 33\ profiles\ that\ no\ table\ wants\n/x,
	'reconciling warns if too many profiles have no rows');
is(vectors('true'), '196 0',
	'reconciling keeps the vectors of profiles without rows if these are too many');
$store->sql(
	q{INSERT INTO shop.candidate (hrflow_id) SELECT profile_id FROM shop.embedding_profile
	WHERE profile_id ~ '-[5-7]'});

# Untracking a table is not limited
$store->call;
$fresh = $store->profiles('profile_id, state, due_at, refreshed_at');
my $erased = $store->sql(q{SELECT erased_last_day FROM hrflow_store_status('shop.embedding')});
like(
	warnings_of(q{SELECT hrflow_untrack_table('shop.embedding', 'shop.candidate')}),
	qr/vectors of 99 profiles .* were put aside/,
	'hrflow_untrack_table() warns about vectors that it puts aside');
is(vectors('true'), '0 198', 'hrflow_untrack_table() puts aside any number of vectors');
is($store->sql(q{SELECT erased_last_day FROM hrflow_store_status('shop.embedding')}),
	$erased, 'profiles untracked by hrflow_untrack_table() do not count towards the limit');
$store->sql($track);
is($store->profiles('profile_id, state, due_at, refreshed_at'),
	$fresh, 'profiles of a table that is tracked again are due when they were before');

#
# One of two tables has another owner
#
$node->safe_psql('postgres', 'CREATE ROLE other');
$store->sql(
	q{CREATE TABLE shop.second (id text);
	SELECT hrflow_track_table('shop.embedding', 'shop.second', 'id', 'acme');
	INSERT INTO shop.second SELECT 'cook-' || i FROM generate_series(1, 5) i});
$store->call;
$node->safe_psql('postgres', 'ALTER TABLE shop.second OWNER TO other');
like(
	warnings_of($track),
	qr/WARNING:\ .*not\ erasing\ profiles\ .*the\ owner\ of\ tracked\ table\ "second"\ has\ changed/x,
	'reconciling warns about a table that has another owner');
is(vectors(q{profile_id ~ 'cook'}),
	'10 0', 'reconciling erases nothing while a table has another owner');
$store->sql(
	q{CREATE TABLE shop.third (id text);
	SELECT hrflow_track_table('shop.embedding', 'shop.third', 'id', 'acme');
	INSERT INTO shop.third VALUES ('nurse-1')});
like(
	warnings_of(q{CALL hrflow_untrack_table_batches('shop.embedding', 'shop.third')}),
	qr/WARNING:\ .*not\ erasing\ profiles\ .*the\ owner\ of\ tracked\ table\ "second"\ has\ changed/x,
	'untracking a table in batches warns about another table that has another owner');
is(vectors(q{profile_id ~ 'cook'}),
	'10 0', 'untracking a table in batches erases nothing while another has another owner');
$node->safe_psql('postgres', 'ALTER TABLE shop.second OWNER TO keeper');

#
# Another table is tracked while a table is reconciled
#
my $tracker = Hrflow::Session->new($node);
$tracker->ask('SET ROLE keeper;');
$node->safe_psql('postgres', "$unseen; DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-10'");
$store->sql(q{CREATE TABLE shop.late (id text); INSERT INTO shop.late VALUES ('nurse-10')});
$tracker->ask(q{BEGIN; SELECT hrflow_track_table('shop.embedding', 'shop.late', 'id', 'acme');});
$store->sql($track);
$tracker->ask('COMMIT;');
is(vectors(q{profile_id = 'nurse-10'}),
	'2 0', 'reconciling keeps a profile that another session is about to track');
$store->sql(
	q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-10');
	DELETE FROM shop.late; DROP TABLE shop.late});

#
# A store that is dumped, restored and renamed, and whose tables are tracked again
#
my $dump = $node->basedir . '/shop.sql';
$store->sql(q{INSERT INTO shop.second SELECT 'cook-' || i FROM generate_series(6, 40) i});
$store->call;
$store->sql(q{UPDATE shop.embedding_profile SET due_at = now() + interval '20 days'});
lose('nurse-9$');
$store->call;
$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $dump ],
	'a store with vectors put aside can be dumped');
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok(
	[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('copy'), '-f', $dump ],
	'a store with vectors put aside can be restored from a dump');

sub copy
{
	return $node->safe_psql('copy', "SET client_min_messages = error; SET ROLE keeper; $_[0]");
}

# Count the profiles of the two tables, and one of a person who is deleted
my $counts = q{SELECT count(*) FILTER (WHERE profile_id ~ 'nurse-'),
	count(*) FILTER (WHERE profile_id ~ 'cook-'), count(*) FILTER (WHERE profile_id = 'nurse-8')
	FROM (SELECT DISTINCT profile_id FROM shop.vectors) v};
is(copy(q{SELECT count(*) FROM shop.embedding_aside}),
	1, 'vectors that are put aside are included in a dump');
is(copy(q{SELECT hrflow_restore('shop.embedding')}),
	1, 'hrflow_restore() restores vectors that were put aside before the dump');
copy(
	q{ALTER TABLE shop.embedding RENAME TO vectors;
	ALTER TABLE shop.embedding_profile RENAME TO vectors_profile;
	ALTER TABLE shop.embedding_aside RENAME TO vectors_aside;
	ALTER TABLE shop.embedding_erased RENAME TO vectors_erased;
	ALTER TABLE shop.candidate RENAME TO people;
	ALTER TABLE shop.second RENAME TO others;
	DELETE FROM shop.people WHERE hrflow_id = 'nurse-8'});
my $first = q{SELECT hrflow_track_table('shop.vectors', 'shop.people', 'hrflow_id', 'acme')};
my $other = q{SELECT hrflow_track_table('shop.vectors', 'shop.others', 'id', 'acme')};
copy("$first; $first");
is(copy($counts), '99|40|1', 'reconciling keeps profiles of a table that is not tracked again yet');
copy("$other; $first");
is(copy($counts), '98|40|0',
	'reconciling puts aside a deleted person once all tables are tracked again');
is( copy(
		q{SELECT count(*) FROM shop.vectors_profile
			WHERE due_at <= now() AND profile_id !~ 'nurse-9'}
	),
	0,
	'no profile is due because a store was restored');

# A dump of data only, which must be restored without triggers
$node->safe_psql('postgres', 'CREATE DATABASE data');
foreach my $part (qw(schema-only data-only))
{
	$node->command_ok(
		[   'pg_dump', '-d', $node->connstr('postgres'),
			"--$part", $part =~ /data/ ? '--disable-triggers' : (),
			'-f', $dump ],
		"a store can be dumped by pg_dump --$part");
	$node->command_ok(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('data'), '-f', $dump ],
		"a store can be restored from a dump by pg_dump --$part");
}
my $all = q{SELECT profile_id, state, due_at FROM shop.embedding_profile ORDER BY 1};
is($node->safe_psql('data', $all),
	$store->sql($all), 'restoring a dump of data only without triggers changes no profile');

#
# A store without the table of vectors that are put aside
#
$store->sql('DROP TABLE shop.embedding_aside');
$node->safe_psql('postgres', "$unseen; DELETE FROM shop.second WHERE id = 'cook-1'");
like(
	warnings_of($track),
	qr/WARNING:\ .*keeps\ profiles\ that\ no\ table\ wants\n
		DETAIL:.*"embedding_aside"/x,
	'reconciling warns if there is no table to put vectors aside');
is($store->profiles('state', q{profile_id = 'cook-1'}),
	'ok', 'reconciling keeps a profile without rows if there is no table to put it aside');
$store->sql(q{DELETE FROM shop.second WHERE id = 'cook-2'});
is($store->profiles('state', q{profile_id = 'cook-2'}),
	'', 'a DELETE erases a profile even if there is no table to put vectors aside');
$store->sql(q{INSERT INTO shop.candidate (hrflow_id) VALUES ('novector-cook')});
$store->call;
$store->sql(
	q{INSERT INTO shop.embedding (source_id, profile_id, section, item, vector)
		VALUES ('acme', 'novector-cook', 'skills', 0, '{1,0}');
	SELECT hrflow_mark_due('shop.embedding', 'acme', '{novector-cook}')});
$store->call;
is( $store->sql(
		q{SELECT section FROM shop.embedding WHERE profile_id = 'novector-cook' ORDER BY 1}),
	"profile\nskills",
	'a section of which the API no longer has a vector is kept if it cannot be put aside');

done_testing();
