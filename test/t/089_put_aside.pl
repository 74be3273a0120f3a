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
	qr/WARNING:\ .*shop\.embedding\ has\ put\ aside\ vectors\ of\ 1\ profile\ because
		\ the\ API\ no\ longer\ has\ them\n
		HINT:.*hrflow_restore/x,
	'a WARNING says how many profiles have lost vectors');
is(vectors("profile_id = 'missing-welder-1'"),
	'0 1', 'the vectors of a profile that is gone are put aside');
is($store->sql(q{SELECT reason, delete_at - put_aside_at FROM shop.embedding_aside}),
	'gone|3 days', 'vectors that are put aside are kept for three days by default');
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
	q{ALTER TABLE shop.embedding_aside ALTER COLUMN delete_at SET DEFAULT now() + interval '3 days'}
);

# Another session has locked the table
lose('-6$');
my $locker = Hrflow::Session->new($node);
$locker->ask('BEGIN; LOCK TABLE shop.embedding_aside IN SHARE MODE;');
unlike($store->call, qr/WARNING|ERROR/,
	'a run does not wait to put aside vectors of lost profiles');
is( $store->profiles('state', q{profile_id = 'missing-cook-6'}) . ' '
	  . vectors("profile_id = 'missing-cook-6'"),
	'missing 1 0',
	'a profile keeps its vectors while another session has locked the table for them');
$locker->ask('COMMIT;');
$locker->finish;
$store->hasten(q{profile_id = 'missing-cook-6'});
$store->call;
is( $store->profiles('state', q{profile_id = 'missing-cook-6'}) . ' '
	  . vectors("profile_id = 'missing-cook-6'"),
	'gone 0 1',
	'the vectors of a lost profile are put aside by the next run');
$store->sql('DELETE FROM shop.embedding_aside');

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
is($store->sql(q{SELECT hrflow_mark_due('shop.embedding', 'acme', '{nurse-1,nurse-2}')}),
	0, 'hrflow_mark_due() neither counts unwanted profiles nor makes them due');
$store->sql(q{UPDATE shop.embedding_profile SET due_at = now() WHERE state = 'unwanted'});
$api->reset;
$store->call;
is($api->stats->{requests}, 0, 'an unwanted profile is not fetched, even if it has become due');
is($store->states, 'ok 98, unwanted 2', 'unwanted profiles stay unwanted if they have become due');
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
	qr/WARNING:\ .*keeps\ the\ vectors\ of\ 33\ profiles\ that\ are\ in\ no\ table\ that\ feeds\ it\n/x,
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
	qr/WARNING:\ .*not\ erasing\ profiles\ .*tracked\ table\ "second"\ does\ not\ belong/x,
	'reconciling warns about a table that has another owner');
is(vectors(q{profile_id ~ 'cook'}),
	'10 0', 'reconciling erases nothing while a table has another owner');
$store->sql(
	q{CREATE TABLE shop.third (id text);
	SELECT hrflow_track_table('shop.embedding', 'shop.third', 'id', 'acme');
	INSERT INTO shop.third VALUES ('nurse-1')});
like(
	warnings_of(q{CALL hrflow_untrack_table_batches('shop.embedding', 'shop.third')}),
	qr/WARNING:\ .*not\ erasing\ profiles\ .*tracked\ table\ "second"\ does\ not\ belong/x,
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
	qr/WARNING:\ .*keeps\ profiles\ that\ are\ in\ no\ table\ that\ feeds\ it\n
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

#
# Another store, whose profiles have lists of elements
#
my $mall = Hrflow::Store->new($node, $api, 'mall');
my $reconcile = $track =~ s/shop/mall/gr;
my $items = q{fields => '{"experiences": 1}'};
my $put = qr/has put aside vectors of/;

# Return the output of a refresh of all profiles
sub refresh_items
{
	$mall->sql('UPDATE mall.embedding_profile SET due_at = now()');
	return $mall->call($items);
}

# Return how many elements of the given numbers are in the store, and how many have
# been put aside
sub elements
{
	my ($where) = @_;
	return $mall->sql(
		"SELECT (SELECT count(*) FROM mall.embedding WHERE $where) || ' '
			|| (SELECT count(*) FROM mall.embedding_aside WHERE $where)");
}

# Store elements of some profiles that the API does not have
sub add_elements
{
	my ($from, $to, $where) = @_;
	$mall->sql(
		"INSERT INTO mall.embedding (source_id, profile_id, section, item, vector)
		SELECT source_id, profile_id, 'experiences', i, '{1,0}'
		FROM mall.embedding_profile, generate_series($from, $to) i WHERE $where");
	return;
}

# Delete the rows of some profiles without the triggers
sub unwant
{
	my ($count) = @_;
	$node->safe_psql(
		'postgres', "$unseen; DELETE FROM mall.candidate WHERE id IN
		(SELECT id FROM mall.candidate ORDER BY id LIMIT $count)");
	return;
}

my $keeper = Hrflow::Session->new($node);
$keeper->ask('SET ROLE keeper;');
$mall->fill(100);
$mall->call($items);
my $present = $mall->sql('SELECT count(*) FROM mall.embedding');

#
# Elements of lists
#
# The limit has been used up.  How many of these profiles a run considers at the same
# time depends on when their replies arrive.
$mall->sql(
	'UPDATE mall.embedding_profile SET erased_at = now() WHERE profile_id IN
		(SELECT profile_id FROM mall.embedding_profile ORDER BY 1 LIMIT 20)');
add_elements(10, 19, 'true');
like(
	refresh_items(),
	qr/WARNING:\ .*keeps\ the\ vectors\ of\ 100\ profiles/x,
	'a run warns if most elements of too many profiles are lost');
is(elements('item >= 10'),
	'1000 0', 'the elements of lists are kept if too many profiles have lost most of them');

# Such profiles are due weeks later, but are fetched for another section.  One that has
# been postponed is not.
my $wider = q{'{"experiences": 1, "profile": 1}'};
$mall->sql(
	q{UPDATE mall.embedding_profile
		SET due_at = now() + interval '1 hour', last_error = 'postponed'
		WHERE profile_id = 'nurse-4'});
is( $mall->sql(
		"SELECT profiles FROM hrflow_refresh_estimate('mall.embedding', $wider, days => 1)
			WHERE day = 0"),
	99,
	'profiles that keep what they have lost count as due for another section');
like(
	$mall->call("fields => $wider"),
	qr/: 99 refreshed.*DETAIL:\s+99 profiles were not due/s,
	'profiles that keep what they have lost are fetched for another section');
is($mall->sql(q{SELECT count(*) FROM mall.embedding WHERE section = 'profile'}),
	99, 'the vectors of the other section are stored');
unlike($mall->call("fields => $wider"),
	qr/DETAIL/, 'profiles that keep what they have lost are fetched for another section once');
$mall->sql(
	q{DELETE FROM mall.embedding WHERE section = 'profile';
	UPDATE mall.embedding_profile SET erased_at = NULL;
	DELETE FROM mall.embedding WHERE item >= 10 AND profile_id !~ '-[12]$'});
like(refresh_items(), qr/$put 2 profiles/, 'a run warns about profiles that lose most elements');
is(elements('item >= 10'), '0 20', 'elements that the API no longer has are put aside');
is($mall->sql('SELECT count(*) FROM mall.embedding'),
	$present, 'elements that the API still has are kept');
like(
	$mall->profiles('last_error', 'last_error IS NOT NULL'),
	qr/^HrFlow no longer has vectors of the requested sections: experiences \(10 of 1[1-4]\)$/m,
	'the error of a profile says how many elements of a section were lost');
is($mall->sql(q{SELECT erased_last_day FROM hrflow_store_status('mall.embedding')}),
	2, 'profiles that lose most elements of a section count towards the limit');
is($mall->sql(q{SELECT hrflow_restore('mall.embedding')}), 2, 'hrflow_restore() restores elements');
is(elements('item >= 10'), '20 0', 'restored elements are in the store again');
$mall->sql('DELETE FROM mall.embedding WHERE item >= 10');
add_elements(10, 10, 'true');
my $shortened =
  qr/WARNING: .*has put aside vectors of some list elements in 100 of 100 refreshed profiles\n/;
like(refresh_items(), $shortened,
	'a run warns about many profiles that lose at most half of their elements');
is(elements('item >= 10'), '0 100', 'each of these elements is put aside');
is($mall->sql(q{SELECT erased_last_day FROM hrflow_store_status('mall.embedding')}),
	2, 'profiles that lose at most half of their elements do not count towards the limit');
is($mall->sql(q{SELECT erased FROM mall.embedding_run ORDER BY run DESC LIMIT 1}),
	100, 'the history of runs counts profiles that lose elements');

# This is usual for some profiles
my $some = q{profile_id ~ '-(1?[0-9]|20)$'};
add_elements(11, 11, $some);
$mall->sql("UPDATE mall.embedding_profile SET due_at = now() WHERE $some");
unlike($mall->call($items), qr/WARNING/,
	'a run does not warn about 20 profiles that lose at most half of their elements');
is(elements('item = 11'), '0 20', 'these elements are put aside, too');
$mall->sql('DELETE FROM mall.embedding_aside WHERE item = 11');
$mall->sql(
	q{INSERT INTO mall.embedding (source_id, profile_id, section, item, vector)
		VALUES ('acme', 'cook-2', 'experiences', 10, '{0,1}')});
$mall->sql(q{SELECT hrflow_restore('mall.embedding', 'acme', '{cook-2,driver-3}')});
is( $mall->sql(q{SELECT profile_id, vector FROM mall.embedding WHERE item = 10 ORDER BY 1}),
	"cook-2|{0,1}\ndriver-3|{1,0}",
	'hrflow_restore() restores an element only if there is no newer vector of it');
$mall->sql('UPDATE mall.embedding_aside SET delete_at = now()');
refresh_items();
is( $mall->sql(
		q{SELECT reason, vectors, put_aside_at IS NOT NULL, count(*)
		FROM mall.embedding_erased GROUP BY 1, 2, 3}),
	'no vector|1|t|98',
	'elements that are deleted are recorded');

# A profile that is wanted again gets only what it lost when it became unwanted
$mall->sql('DELETE FROM mall.embedding_aside');
add_elements(11, 11, q{profile_id = 'nurse-4'});
refresh_items();
$node->safe_psql('postgres', "$unseen; DELETE FROM mall.candidate WHERE hrflow_id = 'nurse-4'");
$mall->sql($reconcile);
$node->safe_psql('postgres', "$unseen; INSERT INTO mall.candidate (hrflow_id) VALUES ('nurse-4')");
$mall->sql($reconcile);
is( $mall->profiles('state', q{profile_id = 'nurse-4'}) . ' '
	  . elements(q{profile_id = 'nurse-4' AND item = 11}),
	'ok 0 1',
	'a profile that is wanted again does not get elements that it had lost before');

# Without the table, elements are kept as well
$mall->sql('ALTER TABLE mall.embedding_aside RENAME TO renamed');
add_elements(12, 12, q{profile_id = 'nurse-8'});
like(
	refresh_items(),
	qr/WARNING:\ .*keeps\ the\ vectors\ of\ 1\ profile\ .*\n.*DETAIL:\ .*no\ table\ for\ vectors/x,
	'a run warns about elements that it keeps because they cannot be put aside');
is($mall->sql('SELECT count(*) FROM mall.embedding WHERE item = 12'),
	1, 'elements that cannot be put aside are kept');
$mall->sql(
	'DELETE FROM mall.embedding WHERE item >= 10;
	ALTER TABLE mall.renamed RENAME TO embedding_aside');

#
# Many vectors expire at the same time
#
my $many = 11000;
my $expire = "INSERT INTO mall.embedding_aside
		(source_id, profile_id, section, item, vector, fetched_at, reason, delete_at)
	SELECT 'acme', 'old-' || (i - 1) / 10, 'old', i, '{1}', now(), 'no vector', now()
	FROM generate_series(1, $many) i";
my $waiting = q{SELECT count(*) FROM mall.embedding_aside WHERE section = 'old'};
$mall->sql("DELETE FROM mall.embedding_aside; $expire");
$mall->sql($reconcile);
cmp_ok($mall->sql($waiting), '>', 5000, 'hrflow_track_table() deletes expired vectors in part');
refresh_items();
is($mall->sql($waiting), 0, 'a run deletes all expired vectors');
is( $mall->sql(
		q{SELECT reason, sum(vectors) FROM mall.embedding_erased WHERE vectors > 1 GROUP BY 1}),
	"no vector|$many",
	'all expired vectors are recorded');
$mall->sql(
	"$expire;
	CREATE FUNCTION mall.slow() RETURNS trigger LANGUAGE plpgsql AS
		\$\$ BEGIN PERFORM pg_sleep(0.005); RETURN OLD; END \$\$;
	CREATE TRIGGER slow BEFORE DELETE ON mall.embedding_aside FOR EACH ROW
		WHEN (OLD.item % 4 = 0) EXECUTE FUNCTION mall.slow();
	UPDATE mall.embedding_profile SET due_at = now() WHERE profile_id = 'cook-2'");
my $refreshed = $mall->profiles('refreshed_at', q{profile_id = 'cook-2'});
my $call = $mall->start_call($items);
$node->poll_query_until('postgres', "SELECT ($waiting) < $many") or die;
$node->safe_psql('postgres', "SELECT pg_cancel_backend($_)") foreach $mall->backends;
like($mall->finish_call($call), qr/57014/, 'a cancel ends a run that deletes many expired vectors');
isnt($mall->profiles('refreshed_at', q{profile_id = 'cook-2'}),
	$refreshed, 'a run that cannot delete all expired vectors in time refreshes the store');
cmp_ok($mall->sql($waiting), '<', $many, 'what such a run has deleted is not rolled back');
$mall->sql('DROP TRIGGER slow ON mall.embedding_aside');
$mall->call($items);
is($mall->sql($waiting), 0, 'the next run deletes the rest');

# Vectors that cannot be deleted do not stop a run
$mall->sql(
	q{INSERT INTO mall.embedding_aside (source_id, profile_id, section, item, vector,
		fetched_at, reason, delete_at)
		VALUES ('acme', 'nobody', 'old', 0, '{1}', now(), 'gone', now());
	CREATE FUNCTION mall.refuse() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN RAISE 'the owner keeps everything'; END $$;
	CREATE TRIGGER refuse BEFORE DELETE ON mall.embedding_aside FOR EACH ROW
		EXECUTE FUNCTION mall.refuse();
	UPDATE mall.embedding_profile SET due_at = now() WHERE profile_id = 'cook-2'});
my $printed = $mall->call($items);
like(
	$printed,
	qr/WARNING:\ .*could\ not\ erase\ expired\ vectors\ of\ store\ mall\.embedding\n
		DETAIL:\ .*the\ owner\ keeps\ everything/x,
	'a run warns about expired vectors that cannot be deleted');
like($printed, qr/: 1 refreshed/, 'a run that cannot delete expired vectors refreshes profiles');
is($mall->sql($waiting), 1, 'expired vectors that cannot be deleted remain');
$mall->sql('DROP TRIGGER refuse ON mall.embedding_aside');
$mall->call($items);
is($mall->sql($waiting), 0, 'expired vectors are deleted as soon as they can be');

#
# A profile does not disappear before its vectors
#
$mall->sql(
	'DELETE FROM mall.embedding_aside; DELETE FROM mall.embedding_erased;
	UPDATE mall.embedding_profile SET erased_at = NULL');
$node->safe_psql('postgres', "$unseen; DELETE FROM mall.candidate WHERE hrflow_id = 'cook-6'");
$mall->sql($reconcile);
$mall->sql('UPDATE mall.embedding_aside SET delete_at = now()');
$keeper->ask(q{BEGIN; UPDATE mall.embedding_aside SET delete_at = 'infinity';});
$mall->call($items);
is($mall->profiles('state', q{profile_id = 'cook-6'}),
	'unwanted', 'a profile is kept while another session changes when its vectors expire');
$keeper->ask('COMMIT;');
is($mall->sql(q{SELECT hrflow_restore('mall.embedding')}),
	1, 'vectors whose time another session has changed can be restored');
$mall->sql(
	q{INSERT INTO mall.embedding_aside (source_id, profile_id, section, item, vector,
		fetched_at, reason) VALUES ('acme', 'nobody', 'profile', 0, '{1}', now(), 'gone')});
is($mall->sql(q{SELECT * FROM hrflow_store_orphans('mall.embedding')}),
	'acme|nobody|1', 'hrflow_store_orphans() returns vectors put aside without a profile');
$mall->sql('DELETE FROM mall.embedding_aside');

#
# Several sessions
#
$mall->sql($reconcile);
$mall->sql('UPDATE mall.embedding_profile SET erased_at = NULL');
$keeper->ask('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;');
unwant(15);
$mall->sql($reconcile);
unwant(15);
$keeper->query("$reconcile; COMMIT;");
is($mall->profiles('count(*)', q{state = 'unwanted' AND profile_id <> 'cook-6'}),
	15, 'sessions with old snapshots put aside no more profiles than the limit');
$mall->sql(
	q{UPDATE mall.embedding_profile SET erased_at = NULL;
	INSERT INTO mall.candidate (hrflow_id) SELECT profile_id FROM mall.embedding_profile
		ON CONFLICT DO NOTHING; SELECT hrflow_restore('mall.embedding')});
$mall->call($items);

# A foreign key of the user
$mall->sql(
	q{CREATE TABLE mall.note (source_id text, profile_id text,
		FOREIGN KEY (source_id, profile_id) REFERENCES mall.embedding_profile ON DELETE CASCADE);
	UPDATE mall.embedding_profile SET due_at = now() WHERE profile_id = 'nurse-96'});
$keeper->ask(q{BEGIN; INSERT INTO mall.note VALUES ('acme', 'nurse-96');});
like(
	$mall->call($items),
	qr/: 1 refreshed/,
	'a run refreshes a profile to which an uncommitted row of a foreign key refers');
$keeper->ask('COMMIT;');

# Another session is about to put vectors aside
add_elements(10, 19, q{profile_id = 'nurse-88'});
my $track_other = q{SELECT hrflow_track_table('mall.embedding', 'mall.other', 'id', 'acme')};
$mall->sql("CREATE TABLE mall.other (id text); $track_other");
unwant(1);
$keeper->ask("BEGIN; $reconcile;");
$mall->sql(q{UPDATE mall.embedding_profile SET due_at = now() WHERE profile_id = 'nurse-88'});
unlike($mall->call($items), qr/WARNING/, 'a run does not warn about a limit that is not known');
is( $mall->profiles(
		q{state, due_at BETWEEN now() AND now() + interval '2 minutes'},
		q{profile_id = 'nurse-88'}),
	'ok|t',
	'a profile that has lost vectors is due soon if another session decides about the limit');
is(elements(q{profile_id = 'nurse-88' AND item >= 10}),
	'10 0', 'a profile keeps its vectors while another session decides about the limit');
my $count_unwanted = sub { $mall->profiles('count(*)', q{state = 'unwanted'}) };
my $unwanted = $count_unwanted->();
unwant(1);
is(warnings_of("SET lock_timeout = '20s'; $track_other"),
	'', 'reconciling does not warn about a limit that is not known');
is($count_unwanted->(), $unwanted,
	'reconciling keeps a profile while another session decides about the limit');
$keeper->ask('COMMIT;');
$mall->sql("$track_other; DROP TABLE mall.other");
is( $count_unwanted->(),
	$unwanted + 2,
	'reconciling later puts aside the profiles that were kept meanwhile');
$mall->hasten(q{profile_id = 'nurse-88'});
like(
	$mall->call($items),
	qr/$put 1 profile/,
	'the next run puts aside vectors that were kept while another session decided');

# Another session has locked the table.  A profile loses most elements of a list, or one.
foreach my $n (10, 1)
{
	add_elements(10, 9 + $n, q{profile_id = 'nurse-84'});
	$mall->sql(
		q{INSERT INTO mall.embedding_aside (source_id, profile_id, section, item, vector,
			fetched_at, reason, delete_at)
			VALUES ('acme', 'nobody', 'old', 0, '{1}', now(), 'gone', now());
		UPDATE mall.embedding_profile SET due_at = now() WHERE profile_id = 'nurse-84'});
	$keeper->ask('BEGIN; LOCK TABLE mall.embedding_aside IN SHARE MODE;');
	$printed = $mall->call($items, settings => { lock_timeout => '20s' });
	unlike($printed, qr/WARNING|ERROR/, "a run does not wait to put $n vectors aside");
	is(elements(q{profile_id = 'nurse-84' AND item >= 10}) . ' ' . $mall->sql($waiting),
		"$n 0 1", "a run neither puts $n vectors aside nor deletes any while the table is locked");
	is( $mall->profiles(
			q{state, due_at BETWEEN now() AND now() + interval '2 minutes'},
			q{profile_id = 'nurse-84'}),
		'ok|t',
		"a profile that has lost $n vectors is due soon if they could not be put aside");

	# As long as nothing can be decided, the profile is requested less and less often
	foreach my $hours (0, 3, 48)
	{
		my $wait = $hours < 24 ? $hours : 24;

		$mall->age("$hours hours", q{profile_id = 'nurse-84'});
		$mall->hasten(q{profile_id = 'nurse-84'});
		$api->reset;
		$mall->call($items);
		is( $mall->asked->{'nurse-84'} . ' ' . $mall->profiles(
				qq{state, last_error, (due_at - now()) BETWEEN interval '$wait hours' * 0.8 AND
					interval '$wait hours' + interval '2 minutes'}, q{profile_id = 'nurse-84'}),
			'1 ok|Lost vectors were not put aside, because another session held a lock|t',
			"a profile that has waited $hours hours to lose $n vectors waits $wait more");
	}
	is(elements(q{profile_id = 'nurse-84' AND item >= 10}),
		"$n 0", "a profile that waits for a decision about $n vectors keeps them");
	$keeper->ask('COMMIT;');
	$mall->hasten(q{profile_id = 'nurse-84'});
	$printed = $mall->call($items);
	is(elements(q{profile_id = 'nurse-84' AND item >= 10}),
		"0 $n", "the next run puts $n vectors aside");
	like(
		$mall->profiles('last_error', q{profile_id = 'nurse-84'}),
		$n == 1 ? qr/^$/ : qr/^HrFlow no longer has vectors of .*: experiences \(10 of 1\d\)$/,
		"the error about $n vectors that could not be put aside ends with it");
	is($mall->sql($waiting), 0, "the next run, which puts $n vectors aside, deletes expired ones");
	$mall->sql(q{DELETE FROM mall.embedding_aside WHERE profile_id = 'nurse-84'});
}

# The table is renamed while a session waits for it
unwant(1);
$unwanted = $count_unwanted->();
$keeper->ask('BEGIN; ALTER TABLE mall.embedding_aside RENAME TO renamed;');
my $waiter = Hrflow::Session->new($node);
$waiter->send("SET ROLE keeper; $reconcile;\n\\echo -- done\n\\warn -- done");
$node->poll_query_until('postgres', 'SELECT count(*) > 0 FROM pg_locks WHERE NOT granted') or die;
$keeper->ask('COMMIT;');
like(
	$waiter->wait_for(qr/-- done.*-- done/s),
	qr/WARNING: .*keeps profiles that are in no table/,
	'reconciling warns if the table was renamed while it waited for it');
is($count_unwanted->(), $unwanted, 'reconciling keeps a profile whose vectors it cannot put aside');
$waiter->finish;
$mall->sql('ALTER TABLE mall.renamed RENAME TO embedding_aside');

# The table is dropped while vectors are written
add_elements(10, 19, q{profile_id = 'nurse-92'});
$mall->sql(
	q{CREATE FUNCTION mall.wait() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN
			WHILE NOT pg_try_advisory_xact_lock(1) LOOP PERFORM pg_sleep(0.01); END LOOP;
			RETURN NEW;
		END $$;
	CREATE TRIGGER wait BEFORE INSERT OR UPDATE ON mall.embedding FOR EACH ROW
		EXECUTE FUNCTION mall.wait();
	DELETE FROM mall.embedding WHERE profile_id = 'nurse-92' AND item = 0;
	UPDATE mall.embedding_profile SET due_at = now() WHERE profile_id = 'nurse-92'});
$keeper->query('SELECT pg_advisory_lock(1);');
$call = $mall->start_call($items);
$node->poll_query_until('postgres',
	q{SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')})
  or die;
eval { $keeper->query(q{SET lock_timeout = '1s'; DROP TABLE mall.embedding_aside;}); };
like($@, qr/55P03/, 'the table cannot be dropped while a run is about to put vectors aside');
$keeper->query('SELECT pg_advisory_unlock(1);');
$mall->finish_call($call);
is(elements(q{profile_id = 'nurse-92' AND item >= 10}),
	'0 10', 'no vector is deleted that should have been put aside');
$keeper->finish;

# Without the column erased_at, it is not known how many profiles have lost vectors
$mall->sql(
	'DROP TRIGGER wait ON mall.embedding;
	ALTER TABLE mall.embedding_profile DROP COLUMN erased_at');
$unwanted = $count_unwanted->();
unwant(1);
like(
	warnings_of($reconcile),
	qr/WARNING: .*keeps the vectors of \d profiles? that (is|are) in no table.*\nDETAIL: .*"erased_at"/,
	'reconciling warns if the number of profiles that have lost vectors is not known');
is($count_unwanted->(),
	$unwanted, 'reconciling keeps a profile if the number of these profiles is not known');
add_elements(10, 29, q{profile_id = 'nurse-76'});
like(
	refresh_items(),
	qr/WARNING: .*keeps the vectors of 1 profile .*\nDETAIL: .*"erased_at"/,
	'a run warns about lost elements if the number of these profiles is not known');
$mall->sql(
	q{DELETE FROM mall.embedding WHERE item >= 10;
	UPDATE mall.embedding_profile SET profile_id = 'missing-76', state = 'missing',
		failed_at = now() - interval '5 days' WHERE profile_id = 'nurse-76';
	UPDATE mall.embedding SET profile_id = 'missing-76' WHERE profile_id = 'nurse-76'});
like(
	refresh_items(),
	qr/WARNING: .*keeps the vectors of 1 profile .*\nDETAIL: .*"erased_at"/,
	'a run warns about a missing profile if the number of these profiles is not known');

# Without the column failed_at, it is not known how long nothing could be decided
$mall->sql(
	q{ALTER TABLE mall.embedding_profile DROP COLUMN failed_at;
	UPDATE mall.embedding_profile SET due_at = now() WHERE profile_id = 'nurse-80'});
add_elements(10, 10, q{profile_id = 'nurse-80'});
$keeper = Hrflow::Session->new($node);
$keeper->ask('BEGIN; LOCK TABLE mall.embedding_aside IN SHARE MODE;');
foreach my $minutes (1, 60)
{
	$mall->hasten(q{profile_id = 'nurse-80'});
	$mall->call($items);
	is( $mall->profiles(
			qq{(due_at - now()) BETWEEN interval '$minutes minutes' * 0.5 AND
				interval '$minutes minutes' * 1.1}, q{profile_id = 'nurse-80'}),
		't',
		"a profile that has lost a vector waits $minutes minutes without the column failed_at");
}
$keeper->ask('COMMIT;');
$keeper->finish;

done_testing();
