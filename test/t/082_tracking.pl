# Tracking with several roles and sessions: whose code runs when a table of
# candidates is written, and which profiles are tracked and erased when tables,
# stores, policies, indexes and the extension itself are created and dropped,
# when other sessions write at the same time, and when rows are replicated.  A
# regression test has only one session.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use PostgreSQL::Test::Utils ();
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new(
	'tracking', $api,
	link_hosts => '127.0.0.1',
	max_prepared_transactions => 1,
	wal_level => 'logical',
	max_wal_senders => 4);

sub sql { return $node->safe_psql('postgres', @_); }

sub waits
{
	return $node->poll_query_until('postgres',
		"SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid = $_[0]{pid})")
	  || die;
}

sub is_superuser
{
	my ($role) = @_;
	return sql("SELECT rolsuper FROM pg_roles WHERE rolname = '$role'");
}

#
# A table that is not owned by the owner of the store does not feed the store,
# even if it has the triggers
#
sql(q{
	CREATE ROLE mallory LOGIN;
	CREATE ROLE application LOGIN;
	CREATE SCHEMA mallory AUTHORIZATION mallory;
	CREATE SCHEMA hr;
	CREATE TABLE hr.candidate (id text PRIMARY KEY);
	GRANT USAGE ON SCHEMA hr TO application;
	GRANT SELECT, INSERT, UPDATE, DELETE ON hr.candidate TO application;
	SELECT hrflow_create_store('hr.embedding', 'real[]');
	SELECT hrflow_track_table('hr.embedding', 'hr.candidate', 'id', 'acme');
	INSERT INTO hr.candidate SELECT i FROM generate_series(1, 9) i;});

my $planted = q{CREATE TRIGGER t AFTER INSERT ON mallory.trap REFERENCING NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION hrflow_track_trigger('hr.embedding', 'c', 'acme', '')};
my $trap = q{SET ROLE mallory;
	CREATE TYPE mallory.t AS (x text);
	CREATE FUNCTION mallory.cast(mallory.t) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
			ALTER ROLE mallory SUPERUSER;
		END IF;
		RETURN $1.x;
	END $$;
	CREATE CAST (mallory.t AS text) WITH FUNCTION mallory.cast(mallory.t);
	CREATE TABLE mallory.trap (c mallory.t);
	INSERT INTO mallory.trap VALUES (ROW('1'));};
sql($trap);
like($node->error_of("SET ROLE mallory; BEGIN; $planted; ROLLBACK"),
	qr/^42501/, 'a role needs a privilege to create a trigger that feeds a store');

# A role that has the privilege can create such a trigger
sql("GRANT EXECUTE ON FUNCTION hrflow_track_trigger() TO mallory; SET ROLE mallory; $planted");
sql(q{SET ROLE application; DELETE FROM hr.candidate WHERE id = '1'});
is(is_superuser('mallory'), 'f',
	'a trigger on the table of another role does not run code of that role');
is(sql(q{SELECT count(*) FROM hr.embedding_profile WHERE profile_id = '1'}),
	0, 'a trigger on the table of another role does not keep a profile from being erased');
like($node->error_of(q{SET ROLE mallory; INSERT INTO mallory.trap VALUES (ROW('x'))}),
	qr/^42501/, 'a trigger on the table of another role raises an error');
is(sql(q{SELECT count(*) FROM hr.embedding_profile WHERE profile_id = 'x'}),
	0, 'a trigger on the table of another role tracks no profile');

sql(q{SET ROLE mallory;
	DROP TABLE mallory.trap;
	CREATE TABLE mallory.trap (c text, other text);});
sql("SET ROLE mallory; $planted");
my $session = Hrflow::Session->new($node);
my $other = Hrflow::Session->new($node);
$session->ask('SET ROLE mallory; BEGIN; LOCK TABLE mallory.trap IN ACCESS EXCLUSIVE MODE;');
is( $node->error_of(
		q{SET lock_timeout = '2s'; SET ROLE application; DELETE FROM hr.candidate WHERE id = '2'}),
	'',
	"a lock on another role's table delays no DELETE");
is( $node->error_of(
		q{SET lock_timeout = '2s';
			SELECT hrflow_track_table('hr.embedding', 'hr.candidate', 'id', 'acme')}
	),
	'',
	"a lock on another role's table does not delay reconciling");
is( $node->error_of(
		q{SET lock_timeout = '2s'; BEGIN; SELECT hrflow_drop_store('hr.embedding'); ROLLBACK}),
	'',
	"a lock on another role's table does not delay dropping the store");
$session->ask('ROLLBACK;');

# A role that may create triggers on the owner's table: converting a key to text
# must not run code of that role
sql(q{GRANT USAGE ON SCHEMA hr TO mallory;
	ALTER TABLE hr.candidate ADD c mallory.t;
	UPDATE hr.candidate SET c = ROW('3') WHERE id = '3';
	GRANT TRIGGER ON hr.candidate TO mallory;
	SET ROLE mallory;
	CREATE TRIGGER t AFTER INSERT ON hr.candidate REFERENCING NEW TABLE AS n FOR EACH STATEMENT
		EXECUTE FUNCTION hrflow_track_trigger('hr.embedding', 'c', 'acme', '')});
$node->psql('postgres', q{SET ROLE application; DELETE FROM hr.candidate WHERE id = '3'});
$node->psql('postgres', q{SET ROLE application; INSERT INTO hr.candidate VALUES ('10')});
is(is_superuser('mallory'), 'f',
	"a trigger that another role creates on the owner's table does not run code of that role");
sql('DROP TRIGGER t ON hr.candidate; ALTER TABLE hr.candidate DROP c');

# A role that may call hrflow_track_table() needs no other privilege
sql(q{CREATE ROLE keeper LOGIN;
	GRANT EXECUTE ON FUNCTION hrflow_create_store(text, text, text, text) TO keeper;
	GRANT EXECUTE ON FUNCTION hrflow_track_table(regclass, regclass, name, text, name, name[], name[], text)
		TO keeper;
	CREATE SCHEMA kept AUTHORIZATION keeper;
	SET ROLE keeper;
	CREATE TABLE kept.candidate (id text, day date) PARTITION BY RANGE (day);
	CREATE TABLE kept.part_1 PARTITION OF kept.candidate
		FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
	SELECT hrflow_create_store('kept.embedding', 'real[]');
	SELECT hrflow_track_table('kept.embedding', 'kept.candidate', 'id', 'acme');
	SELECT hrflow_track_table('kept.embedding', 'kept.candidate', 'id', 'acme');
	CREATE TABLE kept.part_2 PARTITION OF kept.candidate
		FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
	INSERT INTO kept.candidate VALUES ('1', '2026-01-03'), ('2', '2026-02-03');
	UPDATE kept.candidate SET id = '3' WHERE id = '2'});
is(sql('SELECT string_agg(profile_id, $$ $$ ORDER BY 1) FROM kept.embedding_profile'),
	'1 3', 'EXECUTE on hrflow_track_table() suffices to track a table and its future partitions');

#
# A role that acts as the owner of a store does not expose its own privileges to
# triggers of the owner
#
sql(q{GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO mallory;
	GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA public TO mallory;
	SET ROLE mallory;
	CREATE TABLE mallory.candidate (id text);
	SELECT hrflow_create_store('mallory.e', 'real[]');
	SELECT hrflow_track_table('mallory.e', 'mallory.candidate', 'id', 'acme');
	INSERT INTO mallory.candidate VALUES ('nurse-1');
	CREATE FUNCTION mallory.spring() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		RESET ROLE;
		ALTER ROLE mallory SUPERUSER;
		RETURN NULL;
	EXCEPTION WHEN OTHERS THEN
		RETURN NULL;
	END $$;
	CREATE TRIGGER spring AFTER INSERT OR UPDATE OR DELETE ON mallory.e_profile FOR EACH ROW
		EXECUTE FUNCTION mallory.spring();
	CREATE TRIGGER spring AFTER INSERT OR UPDATE OR DELETE ON mallory.e FOR EACH ROW
		EXECUTE FUNCTION mallory.spring();}
);
foreach my $statement (
	"CALL hrflow_refresh('mallory.e')",
	"INSERT INTO mallory.candidate VALUES ('nurse-2')",
	"DELETE FROM mallory.candidate WHERE id = 'nurse-2'",
	"SELECT hrflow_track('mallory.e', 'acme', '{nurse-3}')",
	"SELECT hrflow_track_table('mallory.e', 'mallory.candidate', 'id', 'beta')",
	"SELECT hrflow_untrack_table('mallory.e', 'mallory.candidate')")
{
	is($node->error_of("SET ROLE mallory;\n$statement"), '', "the owner can run: $statement");
	is(is_superuser('mallory'), 'f',
		"a trigger planted on the store gains no privileges by: $statement");
	sql('ALTER ROLE mallory NOSUPERUSER');
}
is(sql(q{SELECT count(*) FROM mallory.e_profile WHERE state <> 'unwanted'}),
	1, 'the statements of the owner have taken effect');

# A deferred trigger must not run after the role has been restored
sql(q{SET ROLE mallory;
	DROP TRIGGER spring ON mallory.e_profile;
	CREATE CONSTRAINT TRIGGER spring AFTER INSERT OR UPDATE ON mallory.e_profile
		DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION mallory.spring();});
foreach my $statement ("SELECT hrflow_track('mallory.e', 'acme', '{nurse-4}')",
	"CALL hrflow_refresh('mallory.e')")
{
	like(
		$node->error_of("SET ROLE mallory;\n$statement"),
		qr/^(?:42501: cannot fire deferred trigger|55000: store mallory\.e cannot accept)/,
		"a trigger deferred to the end of the transaction is refused by: $statement");
	is(is_superuser('mallory'), 'f', "a deferred trigger gains no privileges by: $statement");
	sql('ALTER ROLE mallory NOSUPERUSER');
}
sql('DROP TRIGGER spring ON mallory.e_profile');

#
# Policies apply to those who read and write the tables, not to tracking
#
sql(q{SET ROLE keeper;
	CREATE TABLE kept.row (id text, tenant text);
	SELECT hrflow_create_store('kept.rows', 'real[]');
	SELECT hrflow_track_table('kept.rows', 'kept.row', 'id', 'acme');
	INSERT INTO kept.row VALUES ('1', 'x'), ('2', 'x'), ('1', 'y');
	CREATE POLICY own ON kept.row USING (tenant = current_setting('app.tenant'));
	ALTER TABLE kept.row ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
	GRANT USAGE ON SCHEMA kept TO application;
	GRANT SELECT, INSERT, UPDATE, DELETE ON kept.row TO application;});

sub tracked
{
	my ($store) = @_;
	return sql(
		"SELECT string_agg(profile_id, ' ' ORDER BY profile_id COLLATE \"C\") FROM ${store}_profile"
	);
}
foreach my $role (qw(application keeper))
{
	sql("SET app.tenant = 'x'; SET ROLE $role;
		INSERT INTO kept.row VALUES ('3', 'x');
		DELETE FROM kept.row WHERE id IN ('1', '3');");
	is(tracked('kept.rows'), '1 2',
		"a DELETE by $role does not erase a profile that belongs to rows of another tenant, too");
	sql("INSERT INTO kept.row VALUES ('1', 'x')");
}
sql("SET app.tenant = 'nobody'; SET ROLE keeper;
	SELECT hrflow_track_table('kept.rows', 'kept.row', 'id', 'acme')"
);
is(tracked('kept.rows'), '1 2',
	'reconciling by an owner from whom a policy hides all rows erases nothing');
sql(q{SET ROLE keeper; CREATE POLICY none ON kept.rows_profile USING (false);
	ALTER TABLE kept.rows_profile ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY});
sql(q{SET app.tenant = 'x'; SET ROLE application; DELETE FROM kept.row WHERE id = '2'});
is(tracked('kept.rows'), '1',
	'a policy on the store does not keep a profile without rows from being erased');
sql('DROP TABLE kept.row');

sql('GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO keeper');

#
# A role that writes candidates needs no privileges on the store or its schema
#
sql(q{CREATE SCHEMA vault AUTHORIZATION keeper;
	SET ROLE keeper;
	SELECT hrflow_create_store('vault.embedding', 'real[]');
	CREATE TABLE kept.open (id text, cv text);
	SELECT hrflow_track_table('vault.embedding', 'kept.open', 'id', 'acme',
		refresh_columns => '{cv}');
	GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON kept.open TO application;});
foreach my $case (
	[ "INSERT INTO kept.open VALUES ('1'), ('2'), ('3')", '1 2 3' ],
	[ "UPDATE kept.open SET id = '4' WHERE id = '3'", '1 2 4' ],
	[ "UPDATE kept.open SET cv = 'new' WHERE id = '2'", '1 2 4' ],
	[ "DELETE FROM kept.open WHERE id = '4'", '1 2' ],
	[ 'TRUNCATE kept.open', '' ])
{
	is($node->error_of("SET ROLE application; $case->[0]"),
		'', "a role without privileges on the store can run: $case->[0]");
	is(tracked('vault.embedding'), $case->[1], "the right profiles are tracked after: $case->[0]");
}

#
# A profile tracked by hrflow_track() stays if its row is deleted concurrently
#
sql(q{SET ROLE keeper;
	INSERT INTO kept.open VALUES ('1'), ('2');
	UPDATE vault.embedding_profile SET state = 'gone' WHERE profile_id = '2';});
$_->ask('SET ROLE keeper;') foreach $session, $other;
my $third = Hrflow::Session->new($node);
$session->ask("BEGIN; DELETE FROM kept.open WHERE id = '2'; PREPARE TRANSACTION 'deleted';");
$other->send("SELECT 'new ' || hrflow_track('vault.embedding', 'acme', '{1,2,3,3}');");
waits($other);
$third->send(
	"SET ROLE keeper; SET lock_timeout = '60s'; DELETE FROM kept.open WHERE id = '1';
		SELECT 'deleted';"
);
$node->poll_query_until(
	'postgres',
	"SELECT state = 'idle' OR EXISTS (SELECT FROM pg_locks l WHERE NOT granted AND l.pid = a.pid)
	FROM pg_stat_activity a WHERE pid = $third->{pid}") or die;
$session->ask("COMMIT PREPARED 'deleted';");
like($other->wait_for(qr/^new|ERROR/m),
	qr/^new 2$/m, 'hrflow_track() counts the profiles that were not tracked');
like($third->wait_for(qr/^deleted|ERROR/m),
	qr/^deleted$/m, 'a row can be deleted while hrflow_track() tracks its profile');
is( sql('SELECT string_agg(profile_id || state || manual, $$ $$ ORDER BY profile_id)
	FROM vault.embedding_profile'
	),
	'1duetrue 2duetrue 3duetrue',
	'a profile tracked by hrflow_track() stays if its row is deleted meanwhile');
sql(q{UPDATE vault.embedding_profile SET state = 'gone', generation = 7, manual = false
	WHERE profile_id = '2';
	UPDATE vault.embedding_profile SET state = 'ok', manual = false WHERE profile_id = '3'});
is(sql("SELECT hrflow_track('vault.embedding', 'acme', '{1,2,3,4}')"),
	1, 'hrflow_track() does not count profiles that were already tracked');
is( sql('SELECT string_agg(profile_id || state || manual || generation, $$ $$ ORDER BY profile_id)
	FROM vault.embedding_profile'
	),
	'1duetrue0 2duetrue8 3oktrue0 4duetrue0',
	'hrflow_track() makes a profile that was gone due, but not one that was fetched');
$third->finish;

#
# Two rows that exchange their identifiers at the same time
#
sql(q{SET ROLE keeper;
	CREATE TABLE kept.swap (n int, id text);
	SELECT hrflow_create_store('kept.swapped', 'real[]');
	SELECT hrflow_track_table('kept.swapped', 'kept.swap', 'id', 'acme');
	INSERT INTO kept.swap VALUES (1, 'a'), (2, 'b'), (3, 'a'), (4, 'b')});
$third = Hrflow::Session->new($node);
$third->ask('SET ROLE keeper;');
foreach my $held (qw(a b))
{
	$session->ask(
		"SET ROLE keeper; BEGIN;
			SELECT FROM kept.swapped_profile WHERE profile_id = '$held' FOR UPDATE;"
	);
	$other->send(q{UPDATE kept.swap SET id = 'b' WHERE n = 1; SELECT 'first';});
	waits($other);
	$third->send(q{UPDATE kept.swap SET id = 'a' WHERE n = 2; SELECT 'second';});
	waits($third);
	$session->ask('ROLLBACK;');
	is($other->wait_for(qr/^first|ERROR/m),
		"first\n", "with profile $held locked, a row can change its identifier to b");
	is($third->wait_for(qr/^second|ERROR/m),
		"second\n", "with profile $held locked, another row can change its identifier to a");
	sql(q{UPDATE kept.swap SET id = 'a' WHERE n = 1; UPDATE kept.swap SET id = 'b' WHERE n = 2});
}
is(tracked('kept.swapped'), 'a b',
	'both profiles stay tracked when rows exchange their identifiers');
sql(q{UPDATE kept.swap SET id = 'a' WHERE n IN (2, 4)});
is(tracked('kept.swapped'), 'a', 'a profile is erased when its last row changes its identifier');
$third->finish;

#
# A large UPDATE tracks its profiles at its end, with the same result as if it did
# so for each row, as in the first statement of a session, which loads the library
#
sql(q{SET ROLE keeper;
	CREATE TABLE kept.origin (id text PRIMARY KEY);
	CREATE TABLE kept.bulk (n int, id text, cv text)
		PARTITION BY RANGE (n);
	CREATE TABLE kept.bulk_1 PARTITION OF kept.bulk FOR VALUES FROM (1) TO (200);
	CREATE TABLE kept.bulk_2 PARTITION OF kept.bulk FOR VALUES FROM (200) TO (1000);
	CREATE TABLE kept.also (id text);
	SELECT hrflow_create_store('kept.' || name, 'real[]') FROM unnest('{bulks,twins}'::text[]) AS name;
	SELECT hrflow_track_table('kept.bulks', 'kept.also', 'id', 'acme');
	SELECT hrflow_track_table('kept.' || name, 'kept.bulk', 'id', 'acme', refresh_columns => '{cv}')
		FROM unnest('{bulks,twins}'::text[]) AS name;
	CREATE TABLE kept.executed (event text);
	CREATE FUNCTION kept.execute() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO kept.executed VALUES (tg_op);
		RETURN NULL;
	END $$;
	CREATE TRIGGER execute AFTER INSERT OR UPDATE ON kept.bulks_profile
		FOR EACH STATEMENT EXECUTE FUNCTION kept.execute();});

# Return the profiles of both stores, and the number of statements that have written
# to one of them, after executing a statement.
sub after_update
{
	my ($load, $statement) = @_;
	sql(q{SET client_min_messages = error;
		TRUNCATE kept.bulk, kept.also, kept.origin, kept.bulks_profile, kept.twins_profile;
		INSERT INTO kept.origin SELECT i FROM generate_series(1, 400) AS i;
		INSERT INTO kept.bulk SELECT i, i, 'old' FROM generate_series(1, 400) AS i;
		INSERT INTO kept.also SELECT i FROM generate_series(1, 400, 5) AS i;
		INSERT INTO kept.bulks_profile (source_id, profile_id, manual)
			SELECT 'acme', 'x' || i, false FROM generate_series(1, 400, 10) AS i;
		UPDATE kept.bulks_profile SET generation = 0, due_at = '2020-01-01', attempts = 2,
			state = (ARRAY['due', 'ok', 'gone', 'missing', 'unwanted', 'failed'])
				[1 + abs(hashtext(profile_id) % 6)];
		TRUNCATE kept.executed;});
	sql("SET client_min_messages = error; $load SET ROLE keeper; $statement");
	return (
		sql(q{SELECT string_agg(concat_ws(',', store, profile_id, state, generation, attempts,
				due_at = '2020-01-01'), ' ' ORDER BY store, profile_id)
			FROM (SELECT 'bulks' AS store, * FROM kept.bulks_profile
				UNION ALL SELECT 'twins', * FROM kept.twins_profile) AS p}),
		sql('SELECT count(*) FROM kept.executed'));
}

foreach my $statement (
	"UPDATE kept.bulk SET id = 'x' || id",
	"UPDATE kept.bulk SET cv = 'new'",
	'UPDATE kept.bulk SET id = n + 1',
	"UPDATE kept.bulk SET id = CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN id
		ELSE 'x' || id END, cv = 'new'",
	"UPDATE kept.bulk SET id = NULL WHERE n % 4 > 0; UPDATE kept.bulk SET cv = 'new'",
	"UPDATE kept.bulk_2 SET id = 'x' || id, cv = 'new'",
	"WITH u AS (UPDATE kept.bulk SET id = 'x' || id RETURNING id) SELECT count(*) FROM u",
	"MERGE INTO kept.bulk AS b USING generate_series(1, 300) AS i ON b.n = i
		WHEN MATCHED AND i % 3 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET id = 'x' || id",
	"DO \$\$ BEGIN UPDATE kept.bulk SET id = 'x' || id; RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN UPDATE kept.bulk SET cv = 'new'; END \$\$",
	"BEGIN; UPDATE kept.bulk SET cv = 'new'; UPDATE kept.bulk SET id = 'x' || id; COMMIT",
	"BEGIN; SAVEPOINT s; UPDATE kept.bulk SET id = 'x' || id; ROLLBACK TO s; COMMIT")
{
	my ($by_row) = after_update('', $statement);
	my ($at_end, $executed) = after_update("LOAD 'hrflow_embed';", $statement);

	is($at_end, $by_row,
		"at its end or for each row, the same profiles are tracked by: $statement");
	cmp_ok($executed, '<', 350, "the profiles of many rows are tracked at once by: $statement");
}
my $new_cv = "UPDATE kept.bulk SET cv = 'new'";
cmp_ok((after_update('', $new_cv))[1],
	'==', 400, 'the first statement of a session tracks the profiles of each row');

# The identifiers of a tracked table that a foreign key changes
sql(q{ALTER TABLE kept.bulk ADD FOREIGN KEY (id) REFERENCES kept.origin ON UPDATE CASCADE});
my $cascade = "UPDATE kept.origin SET id = 'x' || id";
my ($by_row) = after_update('', $cascade);
my ($at_end, $executed) = after_update("LOAD 'hrflow_embed';", $cascade);
is($at_end, $by_row,
	'identifiers that a foreign key changes are tracked at the end of the statement');
like($at_end, qr/twins,x400,due,0,0/, 'identifiers that a foreign key changes are tracked');
cmp_ok($executed, '<', 210, 'identifiers that a foreign key changes are tracked at once');

#
# Statements lock profiles in a fixed order, regardless of the order of their
# arguments or rows, and of their plans
#
sql(q{SET ROLE keeper;
	CREATE TABLE kept.pair (n int, id text);
	SELECT hrflow_create_store('kept.paired', 'real[]');
	SELECT hrflow_track_table('kept.paired', 'kept.pair', 'id', 'acme');});

# One session scans in the order of the keys, the other in physical order
$other->ask(
	q{SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashagg = off;
		SET enable_hashjoin = off;}
);
$third = Hrflow::Session->new($node);
$third->ask(
	q{SET ROLE keeper; SET enable_indexscan = off; SET enable_bitmapscan = off;
		SET enable_sort = off;
	SET enable_nestloop = off; SET enable_mergejoin = off;});
my $forth = '{a,b,c,d,e,f,g,h}';
my $back = '{h,g,f,e,d,c,b,a}';
my $hold = q{SELECT FROM kept.paired_profile WHERE profile_id = 'a' FOR UPDATE};
my $many =
  q{INSERT INTO kept.pair SELECT 3, 'x' || i FROM generate_series(1000, 1999) i ORDER BY i};
foreach my $case (
	[   'insert', $hold,
		"INSERT INTO kept.pair SELECT 3, unnest('$forth'::text[])",
		"INSERT INTO kept.pair SELECT 3, unnest('$back'::text[])" ],
	[   'insert many', q{SELECT hrflow_track('kept.paired', 'acme', '{x1000}')}, $many,
		"$many DESC" ],
	[ 'delete', $hold, 'DELETE FROM kept.pair WHERE n = 1', 'DELETE FROM kept.pair WHERE n = 2' ],
	[   'delete and insert',
		$hold,
		'DELETE FROM kept.pair WHERE n = 1',
		"INSERT INTO kept.pair SELECT 3, unnest('$back'::text[])" ],
	(   map {
			[   $_, $hold,
				"SELECT $_('kept.paired', 'acme', '$forth')",
				"SELECT $_('kept.paired', 'acme', '$back')" ]
		} qw(hrflow_track hrflow_mark_due hrflow_untrack)),
	[ 'hrflow_retry', $hold, (q{SELECT hrflow_retry('kept.paired')}) x 2 ])
{
	my ($name, $held, $first, $second) = @$case;

	# The physical order of the rows is the reverse of the order of the keys
	sql(q{SET session_replication_role = replica;
		TRUNCATE kept.pair, kept.paired_profile;
		INSERT INTO kept.pair SELECT n, chr(i)
			FROM generate_series(1, 2) n, generate_series(97, 104) i;
		INSERT INTO kept.paired_profile (source_id, profile_id, state, manual)
		SELECT 'acme', chr(i), 'failed', false FROM generate_series(104, 97, -1) i});
	$session->ask("SET ROLE keeper; BEGIN; $held;");
	$other->send("$first; SELECT 'first';");
	waits($other);
	$third->send("$second; SELECT 'second';");
	waits($third);
	$session->ask('ROLLBACK;');
	like($other->wait_for(qr/^first$/m),
		qr/\A(\d\n)?first\n\z/, "the first of two concurrent statements does not deadlock ($name)");
	like($third->wait_for(qr/^second$/m),
		qr/\A(\d\n)?second\n\z/,
		"the second of two concurrent statements does not deadlock ($name)");
}
$other->ask('RESET ALL;');
$third->finish;

# Two concurrent TRUNCATEs do deadlock, because each must read the other's table
sql(q{SET ROLE keeper; CREATE TABLE kept.pair_2 (id text);
	SELECT hrflow_track_table('kept.paired', 'kept.pair_2', 'id', 'acme');
	INSERT INTO kept.pair_2 VALUES ('a')}
);
$session->ask('BEGIN; LOCK TABLE kept.pair;');
$other->send(q{TRUNCATE kept.pair_2; SELECT 'other';});
waits($other);
my $answers = $session->ask('TRUNCATE kept.pair; COMMIT;') . $other->wait_for(qr/^other$/m);
is(scalar(() = $answers =~ /ERROR:  40P01/g),
	1, 'the deadlock check ends one of two concurrent TRUNCATEs');

#
# Tables that feed a store are dropped while other sessions look for them
#
sub feed_two
{
	sql(q{SET ROLE keeper;
		DROP TABLE IF EXISTS kept.one, kept.two;
		CREATE TABLE kept.one (id text);
		CREATE TABLE kept.two (id text);
		SELECT hrflow_create_store('kept.both', 'real[]');
		SELECT hrflow_track_table('kept.both', 'kept.one', 'id', 'acme');
		SELECT hrflow_track_table('kept.both', 'kept.two', 'id', 'acme');});
	return;
}
foreach my $case (
	[ "SELECT hrflow_drop_store('kept.both');", 'LOCK TABLE kept.one;', 'the store is dropped' ],
	[   "SELECT hrflow_untrack_table('kept.both', 'kept.one');",
		'LOCK TABLE kept.one;',
		'a table is untracked' ],
	[ 'DELETE FROM kept.one;', 'DROP TABLE kept.two;', 'a row is deleted' ])
{
	my ($statement, $held, $name) = @$case;

	feed_two();
	sql("INSERT INTO kept.one VALUES ('1')");
	$session->ask("BEGIN; $held");
	$other->send("$statement SELECT 'done';");
	waits($other);
	sql('DROP TABLE kept.two') if $held =~ /LOCK/;
	$session->ask('COMMIT;');
	like($other->wait_for(qr/^done|ERROR|server closed/m),
		qr/^done/m, "$name although another table that feeds the store is dropped meanwhile");
	unlike(
		$other->wait_for(qr/./),
		qr/ERROR|server closed/,
		"$name without an error although another table is dropped meanwhile");
	sql("SET ROLE keeper; SELECT hrflow_drop_store('kept.both')") unless $statement =~ /drop_store/;
}
$session->ask('RESET ROLE;');

# A temporary store
is( sql(q{SET ROLE mallory;
	SET client_min_messages = warning;
	SELECT hrflow_create_store('pg_temp.e', 'real[]') IS NULL;
	CREATE TEMP TABLE candidate (id text);
	SELECT hrflow_track_table('pg_temp.e', 'candidate', 'id', 'acme');
	INSERT INTO candidate VALUES ('nurse-1'), ('nurse-2');
	DELETE FROM candidate WHERE id = 'nurse-2';
	SET application_name = 'pg_cron';
	CALL hrflow_refresh('pg_temp.e');
	SELECT profile_id, state FROM e_profile;
	SELECT hrflow_drop_store('pg_temp.e');}),
	"f\n0\nnurse-1|ok\n",
	'a temporary store can be tracked, refreshed and dropped');

#
# Dropping a table, or dropping or detaching a partition, fires no trigger
#
sql(q{SET ROLE keeper;
	CREATE TABLE kept.day (id text, day int) PARTITION BY LIST (day);
	CREATE TABLE kept.day_1 PARTITION OF kept.day FOR VALUES IN (1);
	CREATE TABLE kept.day_2 PARTITION OF kept.day FOR VALUES IN (2);
	CREATE TABLE kept.day_3 PARTITION OF kept.day FOR VALUES IN (3);
	CREATE TABLE kept.extra (id text);
	SELECT hrflow_create_store('kept.days', 'real[]');
	SELECT hrflow_track_table('kept.days', 'kept.day', 'id', 'acme'),
		hrflow_track_table('kept.days', 'kept.extra', 'id', 'acme');
	INSERT INTO kept.day VALUES ('1', 1), ('2', 2), ('3', 3), ('4', 1), ('4', 2);
	INSERT INTO kept.extra VALUES ('5');
	SELECT hrflow_track('kept.days', 'acme', '{6}');
	DROP TABLE kept.day_1;
	ALTER TABLE kept.day DETACH PARTITION kept.day_3;
	DROP TABLE kept.extra;});
is(tracked('kept.days'), '1 2 3 4 5 6',
	'profiles of a dropped table, and of a dropped or detached partition, stay tracked');
sql(q{SET ROLE keeper; SELECT hrflow_track_table('kept.days', 'kept.day', 'id', 'acme')});
is(tracked('kept.days'), '2 4 6', 'reconciling erases the profiles of dropped and detached tables');
sql(q{SET ROLE keeper; DROP TABLE kept.day;
	SELECT hrflow_untrack('kept.days', source_id, array_agg(profile_id)) FROM kept.days_profile
		WHERE NOT manual GROUP BY source_id}
);
is(tracked('kept.days'), '6',
	'hrflow_untrack() erases the remaining profiles if no table feeds the store');

# Moving a row to another partition fires no trigger that sees it, and neither
# does a TRUNCATE of a partition
sql(q{SET ROLE keeper;
	CREATE TABLE kept.month (id text, month int, cv text) PARTITION BY LIST (month);
	CREATE TABLE kept.month_1 PARTITION OF kept.month FOR VALUES IN (1);
	CREATE TABLE kept.month_2 PARTITION OF kept.month FOR VALUES IN (2);
	SELECT hrflow_create_store('kept.months', 'real[]');});
my $track_month = q{SET ROLE keeper;
	SELECT hrflow_track_table('kept.months', 'kept.month', 'id', 'acme',
	refresh_columns => '{cv}');};
sql("$track_month INSERT INTO kept.month VALUES ('1', 1), ('2', 1), ('3', 1), ('4', 2);
	UPDATE kept.month SET month = 2, id = '5' WHERE id = '1';
	UPDATE kept.month SET month = 2, cv = 'new' WHERE id = '2';");
is(tracked('kept.months'), '1 2 3 4',
	'an identifier that changes when its row moves to another partition is not tracked');
is(sql($track_month), 1, 'reconciling tracks an identifier that changed when its row moved');
is(tracked('kept.months'), '2 3 4 5',
	'reconciling erases the previous identifier of a row that moved');
is(sql('SELECT sum(generation) FROM kept.months_profile'),
	0, 'reconciling does not notice that a refresh column has changed');
sql('TRUNCATE kept.month_2');
is(tracked('kept.months'), '2 3 4 5', 'profiles of a truncated partition stay tracked');
is(sql($track_month), 0, 'reconciling after a partition was truncated tracks no other profile');
is(tracked('kept.months'), '3', 'reconciling erases the profiles of a truncated partition');

#
# Indexes are used for keys of any type and collation
#
sql(q{SET ROLE keeper;
	CREATE DOMAIN kept.number AS bigint CHECK (VALUE <> 0);
	CREATE TABLE kept.key (t text PRIMARY KEY, c text COLLATE "C" UNIQUE, v varchar(40) UNIQUE,
		b bigint UNIQUE,
		i integer UNIQUE, s smallint UNIQUE, u uuid UNIQUE, d kept.number UNIQUE);
	INSERT INTO kept.key SELECT 'x' || n, 'x' || n, 'x' || n, 9223372036854775807 - n, n - 10000,
		n - 10000,
		md5(n::text)::uuid, -n FROM generate_series(1, 20000) n;
	ANALYZE kept.key;});
foreach my $column (qw(t c v b i s u d))
{
	sql(qq{SET ROLE keeper; SELECT hrflow_create_store('kept.by_$column', 'real[]');
		SELECT hrflow_track_table('kept.by_$column', 'kept.key', '$column', 'acme');
		ANALYZE kept.by_${column}_profile, kept.by_$column;});
}
is( sql(q{SET ROLE keeper; BEGIN;
	DELETE FROM kept.key WHERE t IN ('x1', 'x2', 'x20000');
	SELECT count(*), sum(seq_scan) FROM pg_stat_xact_user_tables WHERE schemaname = 'kept'
		AND relname ~ '^by_._profile$|^key$'}
	),
	'9|0',
	'a DELETE scans neither the candidates nor the profiles sequentially');
sql('SET ROLE keeper; DELETE FROM kept.key WHERE i % 4 = 0');
foreach my $column (qw(t c v b i s u d))
{
	is( sql(qq{SELECT count(*), count(k.$column) FROM kept.by_${column}_profile p
		LEFT JOIN kept.key k ON k.$column\::text = p.profile_id}
		),
		'15000|15000',
		"a DELETE erases the right profiles with the key $column");
}
sql(q{SET ROLE keeper; DROP TABLE kept.key});

# Keys that are equal in a nondeterministic collation are different identifiers
SKIP:
{
	skip 'PostgreSQL was built without ICU', 3
	  unless $node->psql(
		'postgres',
		q{CREATE COLLATION anycase (provider = icu, locale = 'und-u-ks-level2',
			deterministic = false)}
	  ) == 0;
	sql(q{SET ROLE keeper; CREATE TABLE kept.letter (id text COLLATE public.anycase);
		SELECT hrflow_create_store('kept.letters', 'real[]');
		SELECT hrflow_track_table('kept.letters', 'kept.letter', 'id', 'acme');
		INSERT INTO kept.letter VALUES ('abc'), ('Abc'), ('DEF');});
	is(tracked('kept.letters'), 'Abc DEF abc',
		'identifiers that differ in case are distinct even if their collation ignores case');
	sql(q{SET ROLE keeper; UPDATE kept.letter SET id = 'def' WHERE id = 'DEF'});
	is(tracked('kept.letters'), 'Abc abc def',
		'changing the case of an identifier makes it another identifier');
	sql(q{SET ROLE keeper; DELETE FROM kept.letter WHERE id COLLATE "C" = 'abc'});
	is(tracked('kept.letters'), 'Abc def',
		'deleting a row erases only the identifier with the same case');
}

#
# A store that is dropped after it was restored from a dump, which does not
# contain the dependency of the triggers on it
#
sql(q{CREATE SCHEMA moved AUTHORIZATION keeper;
	SET ROLE keeper;
	CREATE TABLE moved.candidate (id text PRIMARY KEY, cv text);
	CREATE TABLE moved.part (id text, day int) PARTITION BY LIST (day);
	CREATE TABLE moved.part_1 PARTITION OF moved.part DEFAULT;
	SELECT hrflow_create_store('moved.embedding', 'real[]');
	SELECT hrflow_track_table('moved.embedding', 'moved.candidate', 'id', 'acme',
		refresh_columns => '{cv}');
	SELECT hrflow_track_table('moved.embedding', 'moved.part', 'id', 'acme');
	INSERT INTO moved.candidate SELECT i FROM generate_series(1, 3) i;
	INSERT INTO moved.part VALUES ('4', 1)});
my $dump = $node->basedir . '/moved.sql';

sub restore
{
	my ($database) = @_;
	sql("CREATE DATABASE $database");
	$node->safe_psql($database, 'CREATE EXTENSION hrflow_embed');
	$node->command_ok(
		[ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($database), '-f', $dump ],
		"a dump with a store can be restored into database $database");
	return;
}
$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-n', 'moved', '-f', $dump ],
	'a schema with a store can be dumped');
restore('quoted');
$node->safe_psql(
	'quoted', q{INSERT INTO moved.candidate VALUES ('4');
	SET quote_all_identifiers = on; DELETE FROM moved.candidate WHERE id IN ('3', '4')});
is( $node->safe_psql(
		'quoted', 'SELECT string_agg(profile_id, $$ $$ ORDER BY 1) FROM moved.embedding_profile'),
	'1 2 4',
	'a DELETE with quote_all_identifiers keeps profiles that belong to another table, too');
restore('dropped');
$node->safe_psql('dropped', 'DROP TABLE moved.embedding, moved.embedding_profile');
foreach my $statement (
	"INSERT INTO moved.candidate VALUES ('5')",
	"UPDATE moved.candidate SET cv = 'new'",
	"UPDATE moved.candidate SET id = id || 'x'",
	"UPDATE moved.part SET id = '6'",
	'DELETE FROM moved.candidate',
	'TRUNCATE moved.candidate, moved.part')
{
	my ($status, $out, $err) = $node->psql('dropped', "SET ROLE keeper; $statement");
	is($status, 0, "a table whose store was dropped can be written by: $statement");
	my @warnings = $err =~ /WARNING:  store moved.embedding of trigger "\w+" does not exist/g;
	is( scalar(@warnings),
		$statement =~ /TRUNCATE/ ? 2 : 1,
		"one warning for each table is raised by: $statement");
	like(
		$err,
		qr/HINT:  Run DROP TRIGGER hrflow_moved_embedding_\w+ ON moved\.(candidate|part)\b/,
		"the hint names the trigger to drop after: $statement");
	is( scalar(() = $err =~ /DETAIL:  If the store was renamed, the vectors of deleted rows/g),
		$statement =~ /TRUNCATE/ ? 2 : $statement =~ /INSERT/ ? 0 : 1,
		"each warning that vectors may not be erased is raised by: $statement");
}

#
# Tables that are tracked again one after the other, after the extension was
# re-created, do not erase profiles of the other tables
#
restore('anew');

sub anew
{
	my ($sql) = @_;
	return $node->safe_psql('anew', "SET client_min_messages = error; SET ROLE keeper; $sql");
}

sub tracked_anew
{
	return anew(
		q{SELECT string_agg(profile_id, ' ' ORDER BY profile_id) FROM moved.embedding_profile});
}
my $track_candidate =
  q{SELECT hrflow_track_table('moved.embedding', 'moved.candidate', 'id', 'acme',
	refresh_columns => '{cv}');};
my $track_part = q{SELECT hrflow_track_table('moved.embedding', 'moved.part', 'id', 'acme');};
$node->safe_psql(
	'anew',
	'SET client_min_messages = error;
		DROP EXTENSION hrflow_embed CASCADE;
		CREATE EXTENSION hrflow_embed;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO keeper');
anew(q{DELETE FROM moved.candidate WHERE id = '3'});
is(anew($track_candidate), 0, 'a table can be tracked again after the extension was re-created');
is(tracked_anew(), '1 2 3 4', 'the profiles of a table that is not tracked again yet are kept');
is(anew(q{SELECT hrflow_untrack_table('moved.embedding', 'moved.part')}),
	0, 'a table cannot be untracked before it is tracked again');
is(tracked_anew(), '1 2 3 4', 'untracking a table that is not tracked erases nothing');
anew($track_part);
is( anew(
		"$track_part SELECT hrflow_track_table('moved.embedding', 'moved.candidate', 'id', 'acme')"
	),
	"0\n0",
	'tracking all tables again tracks no further profile');
is(tracked_anew(), '1 2 4', 'profiles without rows are erased once all tables are tracked again');

#
# Renamed tables, columns and stores
#
sub fails_with
{
	my ($sql) = @_;
	my ($status, $out, $err) =
	  $node->psql('postgres', "SET client_min_messages = error; SET ROLE keeper; $sql");
	return $err;
}
sql(q{SET ROLE keeper; ALTER TABLE moved.candidate RENAME TO people;
	INSERT INTO moved.people VALUES ('5'); DELETE FROM moved.people WHERE id = '3'});
is(tracked('moved.embedding'),
	'1 2 4 5', 'a table still feeds its store after the table was renamed');

sql(q{ALTER TABLE moved.people RENAME id TO key});
foreach my $statement (
	"INSERT INTO moved.people VALUES ('6')",
	"UPDATE moved.people SET cv = 'newer'",
	'DELETE FROM moved.people',
	'DELETE FROM moved.part',
	'TRUNCATE moved.part')
{
	like(
		fails_with($statement),
		qr/ERROR:\ \ column\ "id"\ of\ relation\ "people"\ does\ not\ exist\n
			HINT:\ \ If\ the\ column\ was\ renamed,\ call\ hrflow_track_table\(\)\ again/x,
		"an error has a hint after a column was renamed: $statement");
}
is( fails_with(
		q{SELECT hrflow_track_table('moved.embedding', 'moved.people', 'key', 'acme',
			refresh_columns => '{cv}');
	INSERT INTO moved.people VALUES ('6'); DELETE FROM moved.people WHERE key = '2'}),
	'',
	'a table can be written once it is tracked again after a column was renamed');
is(tracked('moved.embedding'),
	'1 4 5 6', 'the right profiles are tracked after a column was renamed');

sql(q{ALTER TABLE moved.embedding RENAME TO renamed;
	ALTER TABLE moved.embedding_profile RENAME TO renamed_profile;
	ALTER TABLE moved.embedding_aside RENAME TO renamed_aside;
	ALTER TABLE moved.embedding_erased RENAME TO renamed_erased}
);
foreach my $statement (
	"INSERT INTO moved.people VALUES ('7')",
	"UPDATE moved.people SET cv = 'newest'",
	'DELETE FROM moved.people',
	"UPDATE moved.part SET id = '8'")
{
	like(
		fails_with($statement),
		qr/ERROR:\ \ store\ moved.embedding\ of\ trigger\ "\w+"\ has\ been\ renamed\n
			DETAIL:\ \ The\ trigger\ belongs\ to\ store\ moved.renamed\.\n
			HINT:\ \ Call\ hrflow_track_table\(\)\ for\ store\ moved.renamed\ again/x,
		"an error has a hint after the store was renamed: $statement");
}
is( fails_with(
		q{SELECT hrflow_track_table('moved.renamed', 'moved.people', 'key', 'acme',
			refresh_columns => '{cv}');
	SELECT hrflow_track_table('moved.renamed', 'moved.people', 'key', 'acme',
		refresh_columns => '{cv}');
	INSERT INTO moved.people VALUES ('7'); DELETE FROM moved.people WHERE key = '5'}),
	'',
	'a table can be written once it is tracked again after its store was renamed');
is(tracked('moved.renamed'),
	'1 4 6 7', 'profiles of other tables are kept after the store was renamed');
is(sql(q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'moved.people'::regclass}),
	4, 'tracking a table again drops the triggers for the old name of the store');
sql(q{SET ROLE keeper; SELECT hrflow_drop_store('moved.renamed')});
is(fails_with(q{INSERT INTO moved.people VALUES ('8'); INSERT INTO moved.part VALUES ('9', 1)}),
	'', 'tables can be written after a store that was renamed is dropped');

#
# A key column was renamed, and another column has its name now
#
sql(q{GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA public TO keeper;
	SET ROLE keeper;
	CREATE TABLE kept.applicant (id text);
	CREATE TABLE kept.person (id text, id_new text, source text, source_new text, cv text);
	SELECT hrflow_create_store('kept.people', 'real[]');
	SELECT hrflow_track_table('kept.people', 'kept.applicant', 'id', 'acme');});

sub track_person
{
	my ($id, $source) = @_;
	return "SELECT hrflow_track_table('kept.people', 'kept.person', '$id',
		source_column => '$source', refresh_columns => '{cv}')";
}

sub wanted
{
	return sql(
		q{SELECT string_agg(profile_id, ' ' ORDER BY profile_id) FROM kept.people_profile
			WHERE state <> 'unwanted'});
}

# Return the standard error of psql, which includes warnings
sub warned
{
	my ($sql) = @_;
	my (undef, undef, $err) =
	  $node->psql('postgres', "SET ROLE keeper;\nSET application_name = 'pg_cron';\n$sql");
	return $err;
}
foreach my $column (qw(id source))
{
	sql("SET ROLE keeper; " . track_person('id', 'source'));
	sql(q{SET ROLE keeper; TRUNCATE kept.person, kept.applicant;
		INSERT INTO kept.person VALUES ('1', 'x', 'acme', 'beta'), ('2', 'y', 'acme', 'beta');
		INSERT INTO kept.applicant VALUES ('1'), ('3');
		INSERT INTO kept.people SELECT source_id, profile_id, 'profile', 0, '{1}', now()
			FROM kept.people_profile;
		UPDATE kept.people_profile SET due_at = NULL});
	sql("ALTER TABLE kept.person RENAME $column TO ${column}_old;
		ALTER TABLE kept.person RENAME ${column}_new TO $column");
	foreach my $statement (
		"INSERT INTO kept.person VALUES ('4', 'z', 'acme', 'beta')",
		"UPDATE kept.person SET cv = 'new'",
		"UPDATE kept.person SET ${column}_old = NULL",
		"DELETE FROM kept.person",
		'TRUNCATE kept.person',
		"DELETE FROM kept.applicant WHERE id = '1'",
		"SELECT hrflow_release_columns('kept.people', 'kept.person')")
	{
		like(
			fails_with($statement),
			qr/ERROR:\ \ column\ "$column"\ of\ relation\ "person"\ has\ been\ renamed
				\ to\ "${column}_old"\nDETAIL:\ \ Another\ column\ has\ the\ old\ name\.\n
				HINT:\ \ Call\ hrflow_track_table\(\)\ again\./x,
			"an error has a hint if another column has the name of a key column: $statement");
	}
	foreach my $statement ("SELECT hrflow_store_status('kept.people')",
		"CALL hrflow_refresh('kept.people')")
	{
		like(
			warned($statement),
			qr/WARNING:  store kept.people misses changes to table "person"/,
			"a WARNING names the table whose key column has been renamed: $statement");
	}
	is( warned(
			"UPDATE kept.person SET $column = NULL;
			SELECT hrflow_track_table('kept.people', 'kept.applicant', 'id', 'acme')"),
		'',
		"another column with the name of the column $column can be written");
	is(tracked('kept.people'),
		'1 2 3', "no profile is erased while another column has the name of the column $column");
	my @keys = $column eq 'id' ? ('id_old', 'source') : ('id', 'source_old');
	is(warned(track_person(@keys)), '', "a table can be tracked by the renamed column $column");
	is(warned("DELETE FROM kept.person WHERE $keys[0] = '2'; DELETE FROM kept.applicant"),
		'', "a table can be written once it is tracked by the renamed column $column");
	is(tracked('kept.people'),
		'1', "the right profiles are erased once a table is tracked by the renamed column $column");
	sql("ALTER TABLE kept.person RENAME $column TO ${column}_new;
		ALTER TABLE kept.person RENAME ${column}_old TO $column");
}
sql("SET ROLE keeper; " . track_person('id', 'source'));
sql('ALTER TABLE kept.person RENAME id TO id_old; ALTER TABLE kept.person RENAME id_new TO id');
like(
	warned(track_person('id', 'source')),
	qr/WARNING:  table "person" no longer feeds store kept\.people through its previous keys/,
	'a WARNING tells that another column with the same name is tracked');
is(wanted(), 'x', 'the profiles of the other column with the same name are tracked');

# A key column and a refresh column exchange their names
sql('ALTER TABLE kept.person RENAME id TO t; ALTER TABLE kept.person RENAME cv TO id;
	ALTER TABLE kept.person RENAME t TO cv');
like(
	fails_with('DELETE FROM kept.person'),
	qr/column "id" .* renamed to "cv"/,
	'a key column may have the name of a refresh column');
warned(track_person('id', 'source'));
is(warned(q{TRUNCATE kept.person; INSERT INTO kept.person (id, source) VALUES ('9', 'acme')}),
	'', 'a table can be tracked again after two of its columns have exchanged their names');
is(wanted(), '9', 'the right column is tracked after the exchange');

# Partitions whose columns have another order
sql(q{SET ROLE keeper;
	CREATE TABLE kept.split (id text, other text, cv text, day int) PARTITION BY LIST (day);
	CREATE TABLE kept.split_1 (day int, cv text, dropped int, other text, id text);
	ALTER TABLE kept.split_1 DROP dropped;
	ALTER TABLE kept.split ATTACH PARTITION kept.split_1 DEFAULT;
	SELECT hrflow_create_store('kept.splits', 'real[]');
	SELECT hrflow_track_table('kept.splits', 'kept.split', 'id', 'acme', refresh_columns => '{cv}');
	INSERT INTO kept.split VALUES ('1', 'x'), ('2', 'y');
	UPDATE kept.split SET cv = 'new';
	UPDATE kept.split_1 SET id = '3' WHERE id = '2';
	DELETE FROM kept.split WHERE id = '1'});
is(tracked('kept.splits'), '3', 'partitions may have another order of columns');
sql('ALTER TABLE kept.split RENAME id TO id_old; ALTER TABLE kept.split RENAME other TO id');
like(
	fails_with($_),
	qr/ERROR:  column "id" of relation "split\w*" has been renamed to "id_old"/,
	"an error has a hint if another column of a partitioned table has the name of a key: $_")
  foreach "UPDATE kept.split SET cv = 'newer'",
  'UPDATE kept.split_1 SET id_old = NULL',
  'DELETE FROM kept.split';

#
# Triggers that do not fire for ordinary changes
#
sql(q{SET ROLE keeper;
	CREATE TABLE kept.silent (id text, cv text);
	SELECT hrflow_create_store('kept.silents', 'real[]');
	SELECT hrflow_track_table('kept.silents', 'kept.silent', 'id', 'acme', refresh_columns => '{cv}')}
);
foreach my $event (qw(insert update delete truncate))
{
	foreach my $case (
		[ 'DISABLE' => qr/disabled/ ],
		[ 'ENABLE REPLICA' => qr/fires only/ ],
		['ENABLE ALWAYS'], ['ENABLE'])
	{
		my ($mode, $detail) = @$case;

		sql(qq{DO \$\$BEGIN EXECUTE (
			SELECT format('ALTER TABLE kept.silent $mode TRIGGER %I', tgname) FROM pg_trigger
			WHERE tgrelid = 'kept.silent'::regclass
				AND pg_get_triggerdef(oid) ~ (' (AFTER|BEFORE) ' || upper('$event'))); END\$\$});
		foreach my $statement ("SELECT hrflow_store_status('kept.silents')",
			"CALL hrflow_refresh('kept.silents')")
		{
			my $warning = warned($statement);
			my $name = "after $mode TRIGGER for $event: $statement";

			if (defined $detail)
			{
				like(
					$warning,
					qr/WARNING:\ \ store\ kept\.silents\ misses\ changes\ to\ table\ "silent"\n
						DETAIL:\ .*$detail/x,
					"a WARNING names the table $name");
			}
			else
			{
				unlike($warning, qr/WARNING/, "no WARNING is raised $name");
			}
		}
	}
}
sql('ALTER TABLE kept.silent DISABLE TRIGGER USER');
sql(q{SET ROLE keeper;
	SELECT hrflow_track_table('kept.silents', 'kept.silent', 'id', 'acme',
		refresh_columns => '{cv}')});
unlike(warned("SELECT hrflow_store_status('kept.silents')"),
	qr/WARNING/, 'hrflow_track_table() enables the triggers again');

#
# Triggers that were dropped by hand
#
foreach my $content (qw(profile text))
{
	my $with = $content eq 'profile' ? q{source_id => 'acme', refresh_columns} : 'content_columns';
	my $store = "kept.${content}s_left";
	my $states = "SELECT state, count(*) FROM ${store}_profile GROUP BY 1 ORDER BY 1";
	my $ok = 'ok|31';

	sql(qq{SET ROLE keeper;
		SELECT hrflow_create_store('$store', 'real[]', content => '$content');
		CREATE TABLE kept.gap AS SELECT i::text AS id, 'cv'::text AS cv FROM generate_series(1, 30) i;
		CREATE TABLE kept.other AS SELECT '31' AS id, 'cv'::text AS cv;
		SELECT hrflow_track_table('$store', 'kept.gap', 'id', $with => '{cv}');
		SELECT hrflow_track_table('$store', 'kept.other', 'id', $with => '{cv}')});
	sql("SET ROLE keeper; CALL hrflow_refresh('$store')");
	is(sql($states), $ok, "$content: profiles are fetched before triggers are dropped");
	foreach my $event (qw(insert delete truncate update))
	{
		sql(qq{DO \$\$BEGIN EXECUTE (
			SELECT format('DROP TRIGGER %I ON kept.gap', tgname) FROM pg_trigger
			WHERE tgrelid = 'kept.gap'::regclass
				AND pg_get_triggerdef(oid) ~ (' (AFTER|BEFORE) ' || upper('$event'))); END\$\$});
		like(
			warned("SELECT hrflow_store_status('$store')"),
			qr/misses\ changes\ to\ table\ "gap"\nDETAIL:\ \ The\ trigger\ on\ \U$event\E/x,
			"$content: a WARNING names a table without a trigger on $event");

		# Without the trigger on UPDATE, the content columns are unknown.
		sql(qq{SET ROLE keeper;
			UPDATE ${store}_profile SET due_at = now(), content_hash = NULL;
			CALL hrflow_refresh('$store')}) if $content eq 'text' && $event ne 'update';
		sql(qq{SET ROLE keeper; SET client_min_messages = error;
			SELECT hrflow_track_table('$store', 'kept.other', 'id', $with => '{cv}')});
		is(sql($states), $ok, "$content: a table without a trigger on $event wants its profiles");
		sql(qq{SET ROLE keeper; SET client_min_messages = error;
			SELECT hrflow_untrack_table('$store', 'kept.other')});
		is(sql($states), "ok|30\nunwanted|1",
			"$content: another table is untracked beside one without a trigger on $event");
		sql(qq{SET ROLE keeper;
			SELECT hrflow_track_table('$store', 'kept.other', 'id', $with => '{cv}');
			SELECT hrflow_track_table('$store', 'kept.gap', 'id', $with => '{cv}')});
		sql("SET ROLE keeper; CALL hrflow_refresh('$store')");
		is(warned("SELECT hrflow_store_status('$store')"),
			'', "$content: hrflow_track_table() creates the trigger on $event again");
		is(sql($states), $ok,
			"$content: profiles are ok once the trigger on $event is there again");
	}
	sql("SET ROLE keeper; SELECT hrflow_drop_store('$store'); DROP TABLE kept.gap, kept.other");
}

#
# DROP COLUMN ... CASCADE of a refresh column drops the trigger on UPDATE
#
foreach my $case ([ profile => 'profile_id' ], [ job => 'job_id' ], [ text => 'key' ],
	[ document => 'key' ])
{
	my ($content, $id) = @$case;
	my $column = $content =~ /text|document/ ? 'content_columns' : 'refresh_columns';
	my $source = $content =~ /profile/ ? "source_id => 'acme'," : '';
	my $store = "kept.${content}s_of_row";
	my $track = "SELECT hrflow_track_table('$store', 'kept.wide', 'id', $source
		$column => '{cv}')";

	sql("SET ROLE keeper;
		CREATE TABLE kept.wide (id text, cv " . ($content eq 'document' ? 'jsonb' : 'text') . ");
		CREATE TABLE kept.slim (LIKE kept.wide);
		SELECT hrflow_create_store('$store', 'real[]', content => '$content');
		$track;
		@{[ $track =~ s/wide/slim/r ]};
		INSERT INTO kept.wide VALUES ('1'), ('2');
		INSERT INTO kept.slim VALUES ('2'), ('3')");
	like(
		warned('ALTER TABLE kept.wide DROP cv CASCADE'),
		qr/drop cascades to trigger/,
		"$content: dropping a refresh column drops a trigger");
	sql("UPDATE kept.wide SET id = NULL WHERE id = '1'");
	is(warned("INSERT INTO kept.wide VALUES ('4'); DELETE FROM kept.slim WHERE id = '3'"),
		'', "$content: tables can be written after a trigger was dropped");
	foreach my $statement ("SELECT hrflow_store_status('$store')",
		"CALL hrflow_refresh('$store', time_budget => '1 min')")
	{
		like(
			warned($statement),
			qr/WARNING:  store \Q$store\E misses changes to table "wide"/,
			"$content: a WARNING names the table whose trigger was dropped: $statement");
	}
	is(sql("SELECT string_agg($id, ' ' ORDER BY $id) FROM ${store}_profile"),
		'1 2 4', "$content: only deleted profiles are erased after a trigger was dropped");
	sql('ALTER TABLE kept.wide ADD cv ' . ($content eq 'document' ? 'jsonb' : 'text'));
	warned($track);
	is(warned("SELECT hrflow_store_status('$store')"),
		'', "$content: nothing is warned of once the table is tracked again");
	is( sql("SELECT string_agg($id, ' ' ORDER BY $id) FROM ${store}_profile
			WHERE state <> 'unwanted'"),
		'2 4',
		"$content: profiles that were missed after a trigger was dropped are no longer wanted");
	sql('DROP TABLE kept.wide, kept.slim');
}

#
# The vectors of a store can feed another store, but do not keep profiles tracked
# in their own
#
sql(q{SET ROLE keeper;
	CREATE TABLE kept.first_row (id text);
	SELECT hrflow_create_store('kept.first', 'real[]');
	SELECT hrflow_create_store('kept.second', 'real[]');
	SELECT hrflow_track_table('kept.first', 'kept.first_row', 'id', 'acme'),
		hrflow_track_table('kept.second', 'kept.first', 'profile_id', source_column => 'source_id');
	INSERT INTO kept.first_row VALUES ('nurse-1'), ('nurse-2');
	SET application_name = 'pg_cron';
	CALL hrflow_refresh('kept.first', '{"profile": 1}');
	DELETE FROM kept.first_row WHERE id = 'nurse-1'});
is(tracked('kept.first'), 'nurse-2', 'a profile is erased although the vectors feed another store');
is(sql('SELECT string_agg(profile_id, $$ $$) FROM kept.first'),
	'nurse-2', 'the vectors of a profile are erased although they feed another store');
is(tracked('kept.second'), 'nurse-2',
	'a profile is erased from a store that is fed by the vectors of another');

#
# At higher isolation levels, changes made by other sessions since the snapshot
# are respected when profiles are erased or marked due, and raise a serialization failure
# when profiles are tracked
#
sql(q{SET ROLE keeper;
	CREATE TABLE kept.level (id text, cv text);
	SELECT hrflow_create_store('kept.levels', 'real[]');
	SELECT hrflow_track_table('kept.levels', 'kept.level', 'id', 'acme',
		refresh_columns => '{cv}');});
my $leased = q{UPDATE kept.levels_profile SET lease_until = now()};
my $wanted = q{INSERT INTO kept.level VALUES ('m', 'other'), ('n', 'other')};
foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	foreach my $case (
		[ $leased, "UPDATE kept.level SET id = 'a'", 'a' ],
		[ $leased, "UPDATE kept.level SET id = 'z'", 'z' ],
		[ $leased, 'DELETE FROM kept.level', '' ],
		[ $leased, 'TRUNCATE kept.level', '' ],
		[ $leased, "INSERT INTO kept.level VALUES ('n')", 'm n' ],
		[ $leased, "INSERT INTO kept.level VALUES ('m')", undef ],
		[ $leased, "SELECT hrflow_track('kept.levels', 'acme', '{m}')", undef ],
		[ $wanted, "UPDATE kept.level SET id = 'a'", 'a m n' ],
		[ $wanted, 'DELETE FROM kept.level', 'm n' ],
		[ $wanted, "INSERT INTO kept.level VALUES ('n')", undef ])
	{
		my ($meanwhile, $statement, $tracked) = @$case;
		my $name =
			"$level, with "
		  . ($meanwhile eq $leased ? 'a profile leased' : 'rows inserted')
		  . " since the snapshot: $statement";

		sql(q{TRUNCATE kept.level; INSERT INTO kept.level VALUES ('m')});
		$session->ask("SET ROLE keeper; BEGIN ISOLATION LEVEL $level; SELECT FROM kept.level;");
		sql($meanwhile);
		my $answer = $session->ask("$statement;");
		$session->ask('COMMIT; RESET ROLE;');
		if (defined $tracked)
		{
			is($answer, "-- done\n", "$name succeeds");
			is(tracked('kept.levels'), $tracked, "$name leaves the right profiles tracked");
		}
		else
		{
			like($answer, qr/ERROR:  40001:/, "$name raises a serialization failure");
		}
	}
}

# Profiles that were written or tracked since the snapshot are marked due, too
foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	foreach my $meanwhile (
		q{UPDATE kept.levels_profile SET state = 'gone', due_at = NULL},
		q{DELETE FROM kept.levels_profile;
			INSERT INTO kept.levels_profile (source_id, profile_id, state, due_at, manual)
				VALUES ('acme', 'm', 'failed', NULL, false)})
	{
		foreach my $case (
			[ "SELECT hrflow_mark_due('kept.levels', 'acme', '{m}')", '1' ],
			[ "SELECT hrflow_retry('kept.levels')", '1' ],
			[ "UPDATE kept.level SET cv = 'new'", '' ],
			[ "UPDATE kept.level SET cv = 'new' WHERE id <> 'm' OR cv IS NULL", '' ])
		{
			my ($statement, $result) = @$case;
			my $name = "$level, after $meanwhile: $statement" =~ s/\s+/ /gr;

			# The trigger collects the rows after the first 100.
			my $others = $statement =~ /WHERE/ ? 120 : 0;

			sql("TRUNCATE kept.level;
				INSERT INTO kept.level SELECT 'x' || i, 'x' FROM generate_series(1, $others) i;
				INSERT INTO kept.level VALUES ('m')");
			$session->ask("SET ROLE keeper; BEGIN ISOLATION LEVEL $level; SELECT FROM kept.level;");
			sql($meanwhile);
			is( $session->ask("$statement;"),
				($result ne '' ? "$result\n" : '') . "-- done\n",
				"$name succeeds");
			$session->ask('COMMIT; RESET ROLE;');
			is(sql(q{SELECT state FROM kept.levels_profile WHERE profile_id = 'm'}),
				'due', "$name marks the profile");
		}
	}
}

# Vectors that were stored or put aside since the snapshot are erased and restored, too
foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	my $track = q{SELECT hrflow_track_table('kept.levels', 'kept.level', 'id', 'acme',
		refresh_columns => '{cv}')};
	my $aside = q{UPDATE kept.levels_profile SET state = 'unwanted', due_at = NULL;
		INSERT INTO kept.levels_aside (source_id, profile_id, section, item, vector, fetched_at,
			reason) SELECT 'acme', 'm', 'profile', 1, '{2}', now(), 'reconcile'};

	foreach my $case (
		[ "SELECT hrflow_untrack('kept.levels', 'acme', '{m,n}')", '', 0, 0 ],
		[ "SELECT hrflow_restore('kept.levels')", 'mdue nunwanted', 2, 0 ],
		[ $track, 'mdue ndue', 2, 0 ])
	{
		my ($statement, $states, @vectors) = @$case;
		my $name = "$level, with vectors stored since the snapshot: $statement";

		sql(q{TRUNCATE kept.level; INSERT INTO kept.level VALUES ('m')});
		$session->ask("SET ROLE keeper; BEGIN ISOLATION LEVEL $level; SELECT FROM kept.level;");
		sql("INSERT INTO kept.level VALUES ('n');
			INSERT INTO kept.levels VALUES ('acme', 'n', 'profile', 0, '{1}', now());
			$aside");
		unlike($session->ask("$statement; COMMIT; RESET ROLE;"), qr/ERROR/, "$name succeeds");
		is( sql(q{SELECT string_agg(profile_id || state, ' ' ORDER BY profile_id)
				FROM kept.levels_profile}),
			$states,
			"$name leaves the right profiles tracked");
		is( sql('SELECT (SELECT count(*) FROM kept.levels), (SELECT count(*) FROM kept.levels_aside)'
			),
			join('|', @vectors),
			"$name leaves the right vectors");
	}
}

# The first hrflow_track_table() tracks the current rows, at every level
foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	foreach my $first (1, 0)
	{
		my $name = ($first ? 'the first' : 'a later') . " hrflow_track_table() at $level";

		sql(q{DROP TABLE IF EXISTS kept.early; SET ROLE keeper;
			CREATE TABLE kept.early (id text);
			INSERT INTO kept.early VALUES ('early');
			SELECT hrflow_create_store('kept.at_once', 'real[]');});
		sql(q{SET ROLE keeper; SELECT hrflow_track_table('kept.at_once', 'kept.early', 'id', 'acme');
			ALTER TABLE kept.early DISABLE TRIGGER USER}) if !$first;
		$session->ask("SET ROLE keeper; BEGIN ISOLATION LEVEL $level; SELECT FROM kept.level;");
		sql(q{INSERT INTO kept.early VALUES ('late'); DELETE FROM kept.early WHERE id = 'early'});
		like(
			$session->ask(
				q{SELECT hrflow_track_table('kept.at_once', 'kept.early', 'id', 'acme');}),
			qr/^1$/m,
			"$name counts a row inserted since the snapshot");
		$session->ask('COMMIT; RESET ROLE;');
		is(tracked('kept.at_once'), 'late', "$name tracks the current rows");
		sql(q{SET ROLE keeper; SELECT hrflow_drop_store('kept.at_once')});
	}
}

# hrflow_refresh() always runs at READ COMMITTED
my $shop = Hrflow::Store->new($node, $api, 'shop');
foreach my $level ('repeatable read', 'serializable')
{
	$shop->sql('DELETE FROM shop.candidate');
	$shop->fill(40);
	$api->reset;

	# Update all rows after both runs have taken their snapshots
	$session->ask('BEGIN; LOCK TABLE shop.embedding_profile IN SHARE MODE;');
	my @calls = map {
		$shop->start_call('max_profiles => 20, batch_size => 5',
			settings => { default_transaction_isolation => $level =~ s/ /\\ /r })
	} 1 .. 2;
	$node->poll_query_until(
		'postgres', q{SELECT count(*) = 2 FROM pg_locks
		WHERE NOT granted AND relation = 'shop.embedding_profile'::regclass}) or die;
	$session->ask('UPDATE shop.embedding_profile SET attempts = 0; COMMIT;');
	foreach my $call (@calls)
	{
		like(
			$shop->finish_call($call),
			qr/^INFO:  .*: 20 refreshed, 0 to be retried/m,
			"each of two runs at $level refreshes half of the profiles");
	}
	is($shop->states, 'ok 40', "two runs at $level refresh all profiles");
	is(join(' ', grep { $_ != 1 } values %{ $shop->asked }),
		'', "two runs at $level request no profile twice");
}

#
# Changes applied by logical replication fire no triggers, except for those that are
# enabled ALWAYS
#
my $copied = q{CREATE TABLE kept.copied (id text PRIMARY KEY, cv text)};
my $track_copied = q{SET ROLE keeper;
	SELECT hrflow_track_table('kept.copies', 'kept.copied', 'id', 'acme',
	refresh_columns => '{cv}')};
sub upstream { return $node->safe_psql('upstream', @_); }

sub copied
{
	return $node->poll_query_until('postgres',
		"SELECT coalesce(string_agg(id, ' ' ORDER BY id), '') = '$_[0]' FROM kept.copied")
	  || die;
}
sql('CREATE DATABASE upstream');
upstream(
	"CREATE SCHEMA kept; $copied;
	INSERT INTO kept.copied VALUES ('1'), ('2'), ('3');
	CREATE PUBLICATION candidates FOR TABLE kept.copied;
	SELECT pg_create_logical_replication_slot('hrflow', 'pgoutput')");
sql("SET ROLE keeper; $copied; SELECT hrflow_create_store('kept.copies', 'real[]')");
sql($track_copied);

# The slot must already exist if publisher and subscriber are the same server:
# creating it waits for all transactions, including that of CREATE SUBSCRIPTION
my $connection = $node->connstr('upstream') =~ s/'/''/gr;
sql("CREATE SUBSCRIPTION candidates CONNECTION '$connection' PUBLICATION candidates
	WITH (create_slot = false, slot_name = 'hrflow')");
copied('1 2 3');
is(tracked('kept.copies'), '', "rows copied initially by logical replication are not tracked");
is(sql($track_copied), 3, 'reconciling tracks rows copied initially by logical replication');
upstream(
	q{INSERT INTO kept.copied VALUES ('4');
	UPDATE kept.copied SET id = '5' WHERE id = '2';
	UPDATE kept.copied SET cv = 'new' WHERE id = '3';
	DELETE FROM kept.copied WHERE id = '1'});
copied('3 4 5');
is(tracked('kept.copies'), '1 2 3',
	'changes applied by logical replication neither track nor erase profiles');
is(sql($track_copied), 2, 'reconciling tracks rows inserted by logical replication');
is( sql('SELECT string_agg(profile_id || generation, $$ $$ ORDER BY profile_id)
	FROM kept.copies_profile'
	),
	'30 40 50',
	'reconciling does not notice that logical replication changed a refresh column');
upstream('TRUNCATE kept.copied');
copied('');
is(tracked('kept.copies'), '3 4 5', 'TRUNCATE by logical replication erases nothing');
is(sql($track_copied), 0, 'reconciling after TRUNCATE by logical replication tracks no profile');
is(tracked('kept.copies'), '',
	'reconciling after TRUNCATE by logical replication erases all profiles');

# Some of these changes fire triggers that are enabled ALWAYS
upstream(q{INSERT INTO kept.copied VALUES ('1'), ('2'), ('3')});
copied('1 2 3');
sql("$track_copied;
	SELECT format('ALTER TABLE kept.copied ENABLE ALWAYS TRIGGER %I', tgname) FROM pg_trigger
	WHERE tgrelid = 'kept.copied'::regclass \\gexec");
upstream(
	q{INSERT INTO kept.copied VALUES ('4');
	UPDATE kept.copied SET id = '5' WHERE id = '1';
	UPDATE kept.copied SET cv = 'new' WHERE id = '2';
	DELETE FROM kept.copied WHERE id = '3'});
copied('2 4 5');
is( sql('SELECT string_agg(profile_id || generation, $$ $$ ORDER BY profile_id)
	FROM kept.copies_profile'
	),
	'21 30 50',
	'triggers enabled ALWAYS see UPDATE by logical replication, but not INSERT or DELETE');
upstream('TRUNCATE kept.copied');
copied('');
is(tracked('kept.copies'),
	'3', 'triggers enabled ALWAYS erase profiles after TRUNCATE by logical replication');
sql('DROP SUBSCRIPTION candidates');

# After columns of two tables were renamed, either can be the first to be tracked
# again
sql(q{SET ROLE keeper;
	CREATE TABLE kept.left (id text);
	CREATE TABLE kept.right (id text, source text);
	SELECT hrflow_create_store('kept.sides', 'real[]');
	SELECT hrflow_track_table('kept.sides', 'kept.left', 'id', 'acme'),
		hrflow_track_table('kept.sides', 'kept.right', 'id', source_column => 'source');
	INSERT INTO kept.left VALUES ('1'), ('2');
	INSERT INTO kept.right VALUES ('3', 'acme'), ('4', 'acme');
	ALTER TABLE kept.left RENAME id TO key;
	ALTER TABLE kept.right RENAME source TO origin;});
sql(q{SET session_replication_role = replica; DELETE FROM kept.left WHERE key = '2'});
is(fails_with(q{SELECT hrflow_track_table('kept.sides', 'kept.left', 'key', 'acme')}),
	'', 'the first of two tables with renamed columns can be tracked again');
is(tracked('kept.sides'), '1 2 3 4', 'tracking the first of two tables again erases nothing');
is( fails_with(
		q{SELECT hrflow_track_table('kept.sides', 'kept.right', 'id', source_column => 'origin')}),
	'',
	'the second of two tables with renamed columns can be tracked again');
is(tracked('kept.sides'), '1 3 4',
	'tracking the second of two tables again erases profiles without rows');
is(fails_with(q{DELETE FROM kept.left; DELETE FROM kept.right WHERE id = '3'}),
	'', 'rows of both tables can be deleted once they are tracked again');
is(tracked('kept.sides'), '4', 'deleting rows of both tables erases their profiles');

# A temporary table cannot feed a permanent store, because other sessions would
# have to read it
like(
	$session->ask(
		q{SET ROLE keeper; CREATE TEMP TABLE passing (id text);
	SELECT hrflow_track_table('kept.sides', 'passing', 'id', 'acme');}),
	qr/ERROR:  42809: temporary table "passing" cannot feed permanent store kept.sides/,
	'a temporary table cannot feed a permanent store');
is(fails_with('DELETE FROM kept.right'),
	'', 'other tables can be written after a temporary table was refused');

# Keys may be generated columns, if these are stored
foreach my $case ([ 'STORED', '', '3' ],
	$node->pg_version < 18 ? () : [ 'VIRTUAL', 'is a virtual generated column', '' ])
{
	my ($kind, $error, $tracked) = @$case;

	sql("SET ROLE keeper;
		CREATE TABLE kept.number_$kind (n numeric, id text GENERATED ALWAYS AS (n::text) $kind,
		day int);
		SELECT hrflow_create_store('kept.numbers_$kind', 'real[]')");
	my $raised = fails_with(
		"SELECT hrflow_track_table('kept.numbers_$kind', 'kept.number_$kind', 'id', 'acme')");
	if ($error)
	{
		like($raised, qr/\Q$error\E/, "a key that is a $kind generated column is refused");
	}
	else
	{
		is($raised, '', "a key that is a $kind generated column is accepted");
	}
	is( fails_with(
			"INSERT INTO kept.number_$kind VALUES (1), (2);
		UPDATE kept.number_$kind SET n = 3 WHERE n = 2; DELETE FROM kept.number_$kind WHERE n = 1"),
		'',
		"a table whose key is a $kind generated column can be written");
	is(tracked("kept.numbers_$kind"),
		$tracked, "the right profiles are tracked if the key is a $kind generated column");
}

$_->finish foreach $session, $other;
done_testing();
