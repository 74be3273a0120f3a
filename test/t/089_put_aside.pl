# Vectors that are lost without anybody's having deleted them are put aside: for
# how long, what brings them back, and what deletes them.  SQL of one session
# shows neither what the API is asked nor what becomes of a dump.
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

# What psql prints on standard error
sub warnings_of
{
	my ($sql) = @_;
	my (undef, undef, $err) = $node->psql('postgres', "SET ROLE keeper;\n$sql");
	return $err;
}

# How many vectors of some profiles are in the store, and how many aside
sub vectors
{
	my ($where) = @_;
	return $store->sql(
		"SELECT (SELECT count(*) FROM shop.embedding WHERE $where) || ' '
			|| (SELECT count(*) FROM shop.embedding_aside WHERE $where)");
}

# Profiles are deleted from the account, and were missing for days: the next run
# finds them gone
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
# What is gone
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
	'gone|1 day', 'what is put aside is kept for a day by default');
is($store->sql(q{SELECT gone, put_aside FROM hrflow_store_status('shop.embedding')}),
	'1|1', 'the status shows what is put aside');
is($store->sql('SELECT count(*) FROM shop.embedding_erased WHERE reason = $$gone$$'),
	0, 'what is put aside is not yet recorded as erased');
is( $store->sql(
		q{SELECT profile_id FROM hrflow_match('shop.embedding',
		(SELECT array_agg(i::int::real) FROM (VALUES (1), (0)) v(i)), 1)}),
	'',
	'what is put aside is not ranked');
unlike($store->call, qr/put aside/, 'a run that puts nothing aside says nothing');
is($store->sql(q{SELECT hrflow_restore('shop.embedding', 'other')}),
	0, 'hrflow_restore() brings back the vectors of one source');
is($store->sql(q{SELECT hrflow_restore('shop.embedding', profile_ids => '{nobody}')}),
	0, 'hrflow_restore() brings back the vectors of some profiles');
is($store->sql(q{SELECT hrflow_restore('shop.embedding')}),
	1, 'hrflow_restore() brings back what was put aside');
is( $store->sql(
		q{SELECT vector, (SELECT state FROM shop.embedding_profile p
		WHERE p.profile_id = e.profile_id) FROM shop.embedding e WHERE profile_id ~ '^missing'}),
	'{1,0}|due',
	'a profile that was gone has its vectors again and is due');
like($store->call, qr/ 1 not found, 0 gone/, 'a profile that was brought back is missing at first');
is(vectors("profile_id = 'missing-welder-1'"),
	'1 0', 'a profile that was brought back keeps its vectors for days');

# When its time is over
lose('-2$');
$store->call;
$store->sql('UPDATE shop.embedding_aside SET delete_at = now()');
$store->call;
is(vectors("profile_id = 'missing-cook-2'"), '0 0', 'a run deletes what was put aside long enough');
is( $store->sql(
		q{SELECT reason, vectors, put_aside_at < erased_at FROM shop.embedding_erased
			WHERE fingerprint = hrflow_fingerprint('acme', 'missing-cook-2')}),
	'gone|1|t',
	'what is deleted after that is recorded');
is($store->sql(q{SELECT hrflow_restore('shop.embedding')}),
	0, 'what was deleted cannot be brought back');

# At once
$store->sql('ALTER TABLE shop.embedding_aside ALTER COLUMN delete_at SET DEFAULT now()');
lose('-3$');
$store->call;
is(vectors("profile_id = 'missing-driver-3'"),
	'0 0', 'without a grace what is lost is deleted at once');
is( $store->sql(
		q{SELECT count(*) FROM shop.embedding_erased
			WHERE fingerprint = hrflow_fingerprint('acme', 'missing-driver-3')}),
	1,
	'what is deleted at once is recorded');
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
like($store->call, qr/put aside vectors of 1 profile/, 'a run warns of a section that is lost');
is( $store->sql(q{SELECT section, reason FROM shop.embedding_aside}),
	'skills|no vector',
	'the vectors of a section that is lost are put aside');
my $before = $store->profiles('state, due_at', q{profile_id = 'novector-cook'});
is($store->sql(q{SELECT hrflow_restore('shop.embedding', 'acme', '{novector-cook}')}),
	1, 'the vectors of a section are brought back');
is($store->profiles('state, due_at', q{profile_id = 'novector-cook'}),
	$before, 'a profile that was not gone is due when it was before');
$store->sql(q{SELECT hrflow_mark_due('shop.embedding', 'acme', '{novector-cook}')});
$store->call;
is(vectors("profile_id = 'novector-cook' AND section = 'skills'"), '0 1', 'it is lost again');

# A person's own erasure does not wait
$store->sql(q{DELETE FROM shop.candidate WHERE hrflow_id = 'novector-cook'});
is(vectors("profile_id = 'novector-cook'"),
	'0 0', 'a DELETE erases what is put aside in the same transaction');
lose('-5$');
$store->call;
is($store->sql(q{SELECT hrflow_untrack('shop.embedding', 'acme', '{missing-welder-5}')}),
	1, 'a profile that is gone is untracked');
is(vectors("profile_id = 'missing-welder-5'"),
	'0 0', 'hrflow_untrack() erases what is put aside in the same transaction');
is( $store->sql(
		q{SELECT reason, vectors FROM shop.embedding_erased
			WHERE fingerprint IN (hrflow_fingerprint('acme', 'novector-cook'),
				hrflow_fingerprint('acme', 'missing-welder-5')) ORDER BY 1}),
	"delete|2\nuntrack|1",
	'what was put aside is recorded when a person is erased');

#
# What nothing wants
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
	'reconciling warns of profiles that nothing wants');
is($store->states, 'ok 97, unwanted 3', 'profiles that nothing wants are unwanted');
is(vectors('true'), '194 6', 'the vectors of profiles that nothing wants are put aside');
is( $store->sql(
		q{SELECT tracked, put_aside, erased_last_day FROM hrflow_store_status('shop.embedding')}),
	'97|3|3',
	'profiles that nothing wants are not counted as tracked');
is(warnings_of($track), '', 'reconciling again puts nothing aside again');
$api->reset;
$store->call;
$node->safe_psql(
	'postgres', "$unseen; INSERT INTO shop.candidate (hrflow_id, cv, note)
	SELECT hrflow_id, cv, note FROM shop.away");
is($store->sql($track), 0, 'profiles that are wanted again were not untracked');
is($store->profiles('profile_id, state, due_at, refreshed_at'),
	$fresh, 'profiles that are wanted again are as fresh as they were');
is(vectors('true'), '200 0', 'profiles that are wanted again have their vectors again');
$store->call;
is($api->stats->{requests}, 0, 'profiles that nothing wanted for a while cost no request');

$node->safe_psql('postgres',
	"$unseen; DELETE FROM shop.candidate WHERE hrflow_id IN ('nurse-1', 'nurse-2')");
$store->sql($track);
is($store->sql(q{SELECT hrflow_restore('shop.embedding')}), 2,
	'unwanted profiles are brought back');
is($store->profiles('profile_id, state, due_at, refreshed_at'),
	$fresh, 'unwanted profiles are brought back as fresh as they were');
$store->sql($track);
$store->sql(q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-1')});
is($store->profiles('state', q{profile_id = 'nurse-1'}),
	'due', 'INSERT makes an unwanted profile due');
$store->sql('UPDATE shop.embedding_aside SET delete_at = now()');
$store->sql($track);
is($store->states, 'due 1, ok 98', 'reconciling deletes unwanted profiles when their time is over');
is(vectors('profile_id IN ($$nurse-1$$, $$nurse-2$$)'),
	'0 0', 'reconciling deletes what was put aside long enough');
is($store->sql(q{SELECT reason, vectors, count(*) FROM shop.embedding_erased GROUP BY 1, 2}),
	'reconcile|2|2', 'what reconciling deletes is recorded');

# Too many
$node->safe_psql('postgres', "$unseen; DELETE FROM shop.candidate WHERE hrflow_id ~ '-[5-7]'");
like(
	warnings_of($track),
	qr/WARNING:\ .*keeps\ the\ vectors\ of\ 33\ profiles\ that\ no\ table\ wants\n/x,
	'reconciling warns of profiles that nothing wants and that are too many');
is(vectors('true'), '196 0', 'profiles that nothing wants are kept if they are too many');
$store->sql(
	q{INSERT INTO shop.candidate (hrflow_id) SELECT profile_id FROM shop.embedding_profile
	WHERE profile_id ~ '-[5-7]'});

# What is untracked on purpose is not limited
$store->call;
$fresh = $store->profiles('profile_id, state, due_at, refreshed_at');
my $erased = $store->sql(q{SELECT erased_last_day FROM hrflow_store_status('shop.embedding')});
like(
	warnings_of(q{SELECT hrflow_untrack_table('shop.embedding', 'shop.candidate')}),
	qr/vectors of 99 profiles .* were put aside/,
	'hrflow_untrack_table() puts aside what nothing else wants');
is(vectors('true'), '0 198', 'hrflow_untrack_table() is not limited');
is($store->sql(q{SELECT erased_last_day FROM hrflow_store_status('shop.embedding')}),
	$erased, 'what is untracked on purpose does not count');
$store->sql($track);
is($store->profiles('profile_id, state, due_at, refreshed_at'),
	$fresh, 'a table that is tracked again has its profiles again as fresh as they were');

#
# One table of two gets another owner
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
	qr/WARNING:\ .*nothing\ is\ erased\ .*"second",\ which\ was\ tracked,\ has\ another\ owner/x,
	'reconciling warns of a table that has another owner');
is(vectors(q{profile_id ~ 'cook'}),
	'10 0', 'reconciling erases nothing where a table has another owner');
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
	'2 0', 'reconciling leaves a profile that another session is about to track');
$store->sql(
	q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-10');
	DELETE FROM shop.late; DROP TABLE shop.late});

#
# Dumped, restored, renamed; a person deleted; reconciled twice
#
my $dump = $node->basedir . '/shop.sql';
$store->sql(q{INSERT INTO shop.second SELECT 'cook-' || i FROM generate_series(6, 40) i});
$store->call;
$store->sql(q{UPDATE shop.embedding_profile SET due_at = now() + interval '20 days'});
lose('nurse-9$');
$store->call;
$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $dump ],
	'the store is dumped');
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok(
	[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('copy'), '-f', $dump ],
	'the store is restored');

sub copy
{
	return $node->safe_psql('copy', "SET client_min_messages = error; SET ROLE keeper; $_[0]");
}

# Profiles of the two tables and of a person
my $counts = q{SELECT count(*) FILTER (WHERE profile_id ~ 'nurse-'),
	count(*) FILTER (WHERE profile_id ~ 'cook-'), count(*) FILTER (WHERE profile_id = 'nurse-8')
	FROM (SELECT DISTINCT profile_id FROM shop.vectors) v};
is(copy(q{SELECT count(*) FROM shop.embedding_aside}),
	1, 'what is put aside is dumped and restored');
is(copy(q{SELECT hrflow_restore('shop.embedding')}), 1, 'what was restored can be brought back');
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
is(copy($counts), '99|40|1', 'what a table wants that is not tracked again yet is not erased');
copy("$other; $first");
is(copy($counts), '98|40|0',
	'a person who was deleted meanwhile is put aside when all tables are tracked again');
is( copy(
		q{SELECT count(*) FROM shop.vectors_profile
			WHERE due_at <= now() AND profile_id !~ 'nurse-9'}
	),
	0,
	'a restored store buys nothing again');

# Data alone: triggers must not fire
$node->safe_psql('postgres', 'CREATE DATABASE data');
foreach my $part (qw(schema-only data-only))
{
	$node->command_ok(
		[   'pg_dump', '-d', $node->connstr('postgres'),
			"--$part", $part =~ /data/ ? '--disable-triggers' : (),
			'-f', $dump ],
		"the store is dumped, $part");
	$node->command_ok(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('data'), '-f', $dump ],
		"the store is restored, $part");
}
my $all = q{SELECT profile_id, state, due_at FROM shop.embedding_profile ORDER BY 1};
is($node->safe_psql('data', $all),
	$store->sql($all), 'data alone is restored without a trigger as it was');

#
# A store without the table
#
$store->sql('DROP TABLE shop.embedding_aside');
$node->safe_psql('postgres', "$unseen; DELETE FROM shop.second WHERE id = 'cook-1'");
like(
	warnings_of($track),
	qr/WARNING:\ .*keeps\ profiles\ that\ no\ table\ wants\n
		DETAIL:.*"embedding_aside"/x,
	'reconciling warns that there is no table to put vectors aside');
is($store->profiles('state', q{profile_id = 'cook-1'}),
	'ok', 'a profile that nothing wants stays where there is no table to put it aside');
$store->sql(q{DELETE FROM shop.second WHERE id = 'cook-2'});
is($store->profiles('state', q{profile_id = 'cook-2'}),
	'', 'a DELETE erases though there is no table to put vectors aside');

done_testing();
