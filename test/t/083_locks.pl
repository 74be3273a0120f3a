# Locks, writes and reads of tracking: hrflow_track_table() for a table that is
# already tracked, while other sessions write to the table, and triggers in a
# database with many stores.  A regression test has only one session.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use List::Util qw(min);
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new('locks', $api);

# autovacuum invalidates relations, and then their triggers are read again.
$node->append_conf('postgresql.conf', 'autovacuum = off');
$node->reload;

$node->safe_psql(
	'postgres', q{
	CREATE ROLE keeper LOGIN;
	GRANT CREATE ON SCHEMA public TO keeper;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO keeper;
	GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA public TO keeper;});

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', "SET ROLE keeper; $sql");
}

sub waits
{
	my ($waiting) = @_;
	return $node->poll_query_until('postgres',
		"SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid = $waiting->{pid})")
	  || die;
}

my $reconcile = "SELECT 'tracked ' || hrflow_track_table('embedding', 'candidate', 'id', 'acme',
	refresh_columns => '{cv}');";

sql(qq{
	CREATE TABLE candidate (id text PRIMARY KEY, cv text);
	SELECT hrflow_create_store('embedding', 'real[]');
	$reconcile
	INSERT INTO candidate SELECT i FROM generate_series(1, 100) i;});

my $writer = Hrflow::Session->new($node);
my $reconciler = Hrflow::Session->new($node);
$_->ask("SET ROLE keeper; SET lock_timeout = '30s';") foreach $writer, $reconciler;

#
# Reconciling a table, that is, calling hrflow_track_table() again, while other
# sessions write to the table
#
$writer->ask(
	q{BEGIN; INSERT INTO candidate VALUES ('open'); UPDATE candidate SET cv = 'new' WHERE id = '1';
	DELETE FROM candidate WHERE id = '2';});
like(
	$reconciler->ask($reconcile),
	qr/^tracked 0$/m,
	'a table can be reconciled while an open transaction has written to it');
$writer->ask('COMMIT;');

like(
	$reconciler->ask("BEGIN; $reconcile"),
	qr/^tracked 0$/m,
	'reconciling a table that is up to date tracks no profile');
like(
	$reconciler->ask("SELECT 'xid: ' || coalesce(pg_current_xact_id_if_assigned()::text, 'none');"),
	qr/^xid: none$/m,
	'reconciling a table that is up to date writes and locks no row');
unlike(
	$writer->ask(
		q{INSERT INTO candidate VALUES ('late'); UPDATE candidate SET cv = 'newer' WHERE id = '1';
		DELETE FROM candidate WHERE id = '3'; INSERT INTO candidate VALUES ('2'), ('3');}),
	qr/ERROR/,
	'a table can be written while an open transaction has reconciled it');
$reconciler->ask('COMMIT;');

#
# A row whose profile is not tracked is deleted concurrently
#
my $lose = q{DELETE FROM embedding_profile WHERE profile_id IN ('1', '2')};
my $left = q{SELECT string_agg(profile_id, ' ') FROM embedding_profile
			WHERE profile_id IN ('1', '2')};
sql($lose);
$writer->ask(q{BEGIN; DELETE FROM candidate WHERE id = '1';});
$reconciler->send($reconcile);
waits($reconciler);
$writer->ask('COMMIT;');
like(
	$reconciler->wait_for(qr/^tracked|ERROR/m),
	qr/^tracked 1$/m,
	'a row that is deleted while its table is reconciled is not tracked');
is(sql($left), '2', 'no profile is left for a row that was deleted before it was reconciled');

sql("$lose; INSERT INTO candidate VALUES ('1'); $lose");
$reconciler->ask("BEGIN; $reconcile");
$writer->send(q{DELETE FROM candidate WHERE id = '1'; SELECT 'deleted';});
waits($writer);
$reconciler->ask('COMMIT;');
like($writer->wait_for(qr/^deleted|ERROR/m),
	qr/^deleted$/m, 'a row can be deleted after it was reconciled');
is(sql($left), '2', 'no profile is left for a row that was deleted after it was reconciled');

#
# A row concurrently takes an identifier that no row had
#
my $unwanted = q{INSERT INTO embedding_profile (source_id, profile_id, state, due_at, manual)
	VALUES ('acme', 'spare', 'due', now(), false);};
my $spare = q{SELECT string_agg(profile_id, ' ') FROM embedding_profile
	WHERE profile_id IN ('2', 'spare')};
sql("$unwanted DELETE FROM embedding_profile WHERE profile_id = '2'");
$writer->ask(q{BEGIN; SELECT FROM candidate WHERE id = '2' FOR UPDATE;});
$reconciler->send($reconcile);
waits($reconciler);
unlike($writer->ask(q{UPDATE candidate SET id = 'spare' WHERE id = '2'; COMMIT;}),
	qr/ERROR/, 'a row can take an identifier that no row had while reconciling waits for it');
like(
	$reconciler->wait_for(qr/^tracked|ERROR/m),
	qr/^tracked 0$/m,
	'reconciling does not deadlock with a row that takes an identifier that no row had');
is(sql($spare), 'spare', 'reconciling keeps a profile whose identifier a row has taken meanwhile');

$writer->ask(q{UPDATE candidate SET id = '2' WHERE id = 'spare';});
sql($unwanted);
$writer->ask(q{BEGIN; UPDATE candidate SET id = 'spare' WHERE id = '2';});
like(
	$reconciler->ask("SET lock_timeout = '60s'; $reconcile RESET lock_timeout;"),
	qr/^tracked 0$/m,
	'reconciling does not wait for a profile that another session has locked');
$writer->ask('COMMIT;');
is(sql($spare), 'spare', 'reconciling keeps a profile that another session had locked');
$writer->ask(q{UPDATE candidate SET id = '2' WHERE id = 'spare';});

#
# Reconciling keeps correct triggers
#
my $triggers = q{SELECT string_agg(tgenabled, '' ORDER BY tgname) FROM pg_trigger
	WHERE tgrelid = 'candidate'::regclass};
sql(q{DO $$ DECLARE name text; BEGIN
	FOR name IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'candidate'::regclass LOOP
		EXECUTE format('ALTER TABLE candidate ENABLE ALWAYS TRIGGER %I', name);
	END LOOP;
END $$;} . $reconcile);
is(sql($triggers), 'AAAA', 'reconciling a table leaves its triggers as they are');
sql("ALTER TABLE candidate DISABLE TRIGGER USER; $reconcile");
is(sql($triggers), 'OOOO', 'reconciling a table re-creates triggers that are disabled');
$reconciler->ask(
	q{SET client_min_messages = error; BEGIN;
	SELECT hrflow_track_table('embedding', 'candidate', 'id', 'acme');});
unlike($writer->ask('SELECT FROM embedding_profile FOR UPDATE NOWAIT;'),
	qr/ERROR/, 'tracking a table again with other refresh columns locks no profile');
$reconciler->ask('ROLLBACK; RESET client_min_messages;');
sql(q{REVOKE UPDATE ON candidate FROM keeper});
is(sql("DELETE FROM embedding_profile WHERE profile_id = '7'; $reconcile"),
	'tracked 1', 'a table can be reconciled even if its owner may not lock its rows');

#
# A large number of profiles is untracked in batches.  Another session has locked
# a profile in the middle, so that its batch waits.
#
my $some = q{SELECT string_agg(profile_id, ' ' ORDER BY profile_id) FROM embedding_profile
	WHERE profile_id LIKE 'batch-_' AND state <> 'unwanted'};
sql(q{CREATE TABLE batched (id text PRIMARY KEY, cv text);
	SELECT hrflow_track_table('embedding', 'batched', 'id', 'acme', refresh_columns => '{cv}');
	INSERT INTO batched SELECT 'batch-' || i FROM generate_series(1, 6) i;
	INSERT INTO embedding SELECT 'acme', id, 'profile', 0, '{1}' FROM batched;});
my $lock = q{BEGIN; UPDATE embedding_profile SET http_status = 200 WHERE profile_id = 'batch-4';};

$writer->ask($lock);
$reconciler->send(
	q{DO $$ DECLARE ids text[] := ARRAY(SELECT id FROM batched);
	BEGIN CALL hrflow_untrack_batches('embedding', 'acme', ids, 2); END $$;});
waits($reconciler);
is( sql($some),
	'batch-3 batch-4 batch-5 batch-6',
	'hrflow_untrack_batches() has committed the batches before one that waits');
sql(q{INSERT INTO batched VALUES ('batch-7'); UPDATE batched SET cv = 'new' WHERE id = 'batch-1';
	DELETE FROM batched WHERE id = 'batch-2'; INSERT INTO batched VALUES ('batch-2');});
is( sql($some),
	'batch-2 batch-3 batch-4 batch-5 batch-6 batch-7',
	'a profile can be tracked again while hrflow_untrack_batches() waits');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($reconciler->{pid})");
like($reconciler->wait_for(qr/57014/), qr/57014/, 'hrflow_untrack_batches() can be canceled');
$writer->ask('COMMIT;');
is( sql($some),
	'batch-2 batch-3 batch-4 batch-5 batch-6 batch-7',
	'profiles that a canceled hrflow_untrack_batches() has not erased stay tracked');
like(
	$reconciler->ask(
		q{CALL hrflow_untrack_batches('embedding', 'acme', '{batch-1,batch-2,batch-3}', 2);}),
	qr/INFO:.*: 2 profiles are no longer tracked/,
	'hrflow_untrack_batches() continues after a cancel');
sql(q{SELECT hrflow_track_table('embedding', 'batched', 'id', 'acme', refresh_columns => '{cv}');
	INSERT INTO embedding SELECT 'acme', id, 'profile', 0, '{1}' FROM batched ON CONFLICT DO NOTHING;}
);

$writer->ask($lock);
$reconciler->send(q{CALL hrflow_untrack_table_batches('embedding', 'batched', 2);});
waits($reconciler);
is( sql($some),
	'batch-3 batch-4 batch-5 batch-6 batch-7',
	'hrflow_untrack_table_batches() has committed the batches before one that waits');
is( sql(q{SET lock_timeout = '60s'; UPDATE batched SET cv = 'newer'; SELECT count(*) FROM batched;}
	),
	7,
	'a table can be read and written while its vectors are put aside');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($reconciler->{pid})");
$reconciler->finish;
$writer->ask('COMMIT;');
$reconciler = Hrflow::Session->new($node);
$reconciler->ask('SET ROLE keeper;');
is( sql($some),
	'batch-3 batch-4 batch-5 batch-6 batch-7',
	'profiles that a terminated session has not put aside stay tracked');
my $enabled = $triggers =~ s/candidate/batched/r;
is(sql($enabled), 'D', 'a table that is being untracked has one trigger, which is disabled');
like(
	sql(qq{SET client_min_messages = error; BEGIN;
		SELECT hrflow_track_table('embedding', 'batched', 'id', 'acme', refresh_columns => '{cv}');
		$enabled; ROLLBACK}),
	qr/^OOOO$/m,
	'hrflow_track_table() re-creates the triggers of a table that is being untracked');
like(
	$reconciler->ask(q{CALL hrflow_untrack_table_batches('embedding', 'batched', 2);}),
	qr/WARNING:.*the vectors of 5 profiles .*INFO:.*: 5 profiles are no longer tracked/s,
	'hrflow_untrack_table_batches() continues after its session was terminated');
is(sql($some), '', 'hrflow_untrack_table_batches() untracks all profiles of a table');
is( sql(q{SELECT count(*), count(DISTINCT reason) FROM embedding_aside WHERE profile_id ~ '^batch'}
	),
	'7|1',
	'hrflow_untrack_table_batches() puts aside the vectors of all profiles of a table');
is(sql(q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'batched'::regclass}),
	0, 'hrflow_untrack_table_batches() drops all triggers');

# Triggers were dropped by hand.  A trigger on UPDATE or INSERT cannot show that the table
# was being untracked, so everything is in one transaction.
my @events = qw(delete truncate update);
$node->safe_psql('postgres', 'CREATE ROLE stranger');
sql(q{CREATE TABLE lent (id text); SELECT hrflow_track_table('embedding', 'lent', 'id', 'acme')});
foreach my $n (2, 3)
{
	my @dropped = @events[ 0 .. $n - 1 ];

	sql(q{SET client_min_messages = error; DELETE FROM embedding_aside;
		SELECT hrflow_track_table('embedding', 'batched', 'id', 'acme', refresh_columns => '{cv}');
		INSERT INTO embedding SELECT 'acme', id, 'profile', 0, '{1}' FROM batched
			ON CONFLICT DO NOTHING;});
	foreach my $event (@dropped)
	{
		my $name = sql(
			"SELECT tgname FROM pg_trigger WHERE tgrelid = 'batched'::regclass AND tgname ~ '$event'"
		);
		sql("DROP TRIGGER $name ON batched");
	}
	$node->safe_psql('postgres', 'ALTER TABLE lent OWNER TO stranger');
	like(
		$reconciler->ask(q{CALL hrflow_untrack_table_batches('embedding', 'batched', 2);}),
		qr/WARNING:.*ERROR:\ \ 55000:\ could\ not\ untrack\ table\ "batched"\ .*\n
			DETAIL:.*still\ feeds/sx,
		"a table without triggers on @dropped is not untracked if nothing can be put aside");
	is( sql($enabled) . sql($some),
		'O' x (4 - $n) . 'batch-1 batch-2 batch-3 batch-4 batch-5 batch-6 batch-7',
		"a refused call leaves the triggers of a table without triggers on @dropped");
	$node->safe_psql('postgres', 'ALTER TABLE lent OWNER TO keeper');

	$writer->ask($lock);
	$reconciler->send(q{CALL hrflow_untrack_table_batches('embedding', 'batched', 2);});
	waits($reconciler);
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($reconciler->{pid})");
	$reconciler->wait_for(qr/57014/);
	$writer->ask('COMMIT;');
	is( sql($enabled),
		'O' x (4 - $n),
		"a canceled call leaves the triggers of a table without triggers on @dropped");
	like(
		$reconciler->ask(q{CALL hrflow_untrack_table_batches('embedding', 'batched', 2);}),
		qr/WARNING:.*the vectors of 7 profiles .*INFO:.*: 7 profiles are no longer tracked/s,
		"all profiles of a table without triggers on @dropped are untracked");
	is(sql($some), '', "no profile of a table without triggers on @dropped stays tracked");
	is(sql(q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'batched'::regclass}),
		0, "no trigger remains on a table without triggers on @dropped");
}
sql(q{SELECT hrflow_untrack_table('embedding', 'lent'); DROP TABLE lent});

# A table that feeds no store, or no longer does, puts nothing aside, even if no
# table wants any profile
sql(q{CREATE TABLE nothing (id text);
	ALTER TABLE candidate DISABLE TRIGGER USER;
	INSERT INTO embedding SELECT source_id, profile_id, 'profile', 0, '{1}' FROM embedding_profile
		WHERE state <> 'unwanted' ON CONFLICT DO NOTHING;
	CREATE TABLE kept AS SELECT * FROM candidate;
	DELETE FROM candidate;});
foreach my $table (qw(nothing batched))
{
	like(
		$reconciler->ask("CALL hrflow_untrack_table_batches('embedding', '$table');"),
		qr/\A(?!.*WARNING).*NOTICE:.*table\ "$table"\ does\ not\ feed\ store\ public\.embedding\n
			HINT:.*INFO:.*:\ 0\ profiles\ are\ no\ longer\ tracked/sx,
		"hrflow_untrack_table_batches() puts nothing aside for table $table, which feeds no store");
}
sql(q{INSERT INTO candidate SELECT * FROM kept; ALTER TABLE candidate ENABLE TRIGGER USER;});

#
# Many stores
#
my $scans = q{SELECT pg_stat_force_next_flush();
	SELECT idx_scan FROM pg_stat_sys_tables WHERE relname = 'pg_trigger';};

# Return how often a DELETE of one row scans an index of pg_trigger, after the session has
# deleted another row: the least of several rows, because an invalidation makes the session
# read the triggers of the table again.
sub trigger_reads
{
	my ($session, @ids) = @_;
	my @counts;

	foreach my $id (@ids)
	{
		$session->ask("DELETE FROM candidate WHERE id = '$id';");
		push @counts, $session->ask($scans) =~ /^(\d+)$/m;
	}
	return min(map { $counts[$_] - $counts[ $_ - 1 ] } 1 .. $#counts);
}

my $few = trigger_reads($writer, 11 .. 14);
sql(q{DO $$ BEGIN
	FOR i IN 1 .. 50 LOOP
		EXECUTE format('CREATE TABLE candidate_%s (id text PRIMARY KEY)', i);
		PERFORM hrflow_create_store('embedding_' || i, 'real[]');
		PERFORM hrflow_track_table(('embedding_' || i)::regclass, ('candidate_' || i)::regclass,
			'id', 'acme');
	END LOOP;
END $$;});
cmp_ok($few, '>', 0, 'a DELETE reads the triggers of its store');
is(trigger_reads($writer, 31 .. 34),
	$few, 'a DELETE reads no more triggers if there are many other stores');

# Another table begins to feed the store
sql(q{CREATE TABLE other (id text PRIMARY KEY); INSERT INTO other VALUES ('15');
	SELECT hrflow_track_table('embedding', 'other', 'id', 'acme');});
$writer->ask(q{DELETE FROM candidate WHERE id IN ('15', '16');});
is( sql(q{SELECT string_agg(profile_id, ' ') FROM embedding_profile
			WHERE profile_id IN ('15', '16')}
	),
	'15',
	'a DELETE considers a table that another session has just begun to track');

#
# An INSERT of many rows, in which one row has the identifier of a tracked profile
# and two rows have the same identifier
#
my $inserted = q{SELECT pg_stat_force_next_flush();
	SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'embedding_profile';};
my ($before) = $writer->ask($inserted) =~ /^(\d+)$/m;
$writer->ask(
	q{ALTER TABLE other DROP CONSTRAINT other_pkey;
	INSERT INTO other SELECT 'many ' || i % 2000 FROM generate_series(1, 2001) i;
	INSERT INTO other SELECT 'many ' || i FROM generate_series(1999, 3999) i;});
my ($after) = $writer->ask($inserted) =~ /^(\d+)$/m;
is($after - $before, 4000, 'an INSERT writes no profile twice if some are already tracked');
is(sql(q{SELECT count(*) FROM embedding_profile WHERE profile_id LIKE 'many %'}),
	4000, 'an INSERT tracks all profiles if some are already tracked');

#
# A store that takes the name of another one, which still has the profiles
#
my $rename = q{ALTER TABLE embedding RENAME TO old;
	ALTER TABLE embedding_profile RENAME TO old_profile;
	ALTER TABLE embedding_run RENAME TO old_run;
	ALTER TABLE embedding_aside RENAME TO old_aside;
	ALTER TABLE embedding_erased RENAME TO old_erased;
	SELECT hrflow_create_store('embedding', 'real[]');};
sql(q{CREATE TABLE parted (id text, day int) PARTITION BY LIST (day);
	CREATE TABLE part PARTITION OF parted DEFAULT;
	SELECT hrflow_track_table('embedding', 'parted', 'id', 'acme');
	INSERT INTO parted VALUES ('parted', 1);
	GRANT UPDATE ON candidate TO keeper;});
sql($rename);

# Return the profiles in a store that have one of these identifiers
sub left
{
	my ($store, @ids) = @_;
	return sql(
		"SELECT string_agg(profile_id, ' ' ORDER BY profile_id) FROM ${store}_profile
		WHERE profile_id = ANY ('{" . join(',', @ids) . "}')");
}
foreach my $statement (
	q{INSERT INTO candidate VALUES ('new')},
	q{UPDATE candidate SET cv = 'newest' WHERE id = '20'},
	q{DELETE FROM candidate WHERE id = '20'},
	q{TRUNCATE candidate},
	q{UPDATE parted SET id = 'other'})
{
	my (undef, undef, $err) = $node->psql('postgres', "SET ROLE keeper; $statement");
	like(
		$err,
		qr/ERROR:\ \ store\ public\.embedding\ of\ trigger\ "\w+"\ has\ been\ renamed\n
			DETAIL:\ \ The\ trigger\ belongs\ to\ store\ public\.old,\ and\ another\ table\ has\ the\ old\ name\.\n
			HINT:\ \ Call\ hrflow_track_table\(\)\ for\ store\ public\.old\ again\./x,
		"a table whose store was renamed cannot be written if another has its name: $statement");
}
my ($status, undef, $refused) = $node->psql('postgres', "SET ROLE keeper; $reconcile");
like(
	$refused,
	qr/ERROR:\ \ trigger\ "\w+"\ for\ relation\ "candidate"\ already\ exists\n
		DETAIL:\ \ The\ trigger\ belongs\ to\ store\ public\.old\.\n
		HINT:\ \ If\ that\ store\ has\ been\ renamed,\ first\ call\ hrflow_track_table\(\)\ for\ it/x,
	'a store does not take the triggers of one that was renamed');
is(sql(q{SELECT hrflow_untrack_table('embedding', 'candidate')}),
	0, 'a table does not feed a store that has the old name of its store');
is(sql(q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'candidate'::regclass}),
	4, 'untracking a table keeps triggers of a store that had the name');
sql(qq{SELECT hrflow_track_table('old', name, 'id', 'acme')
		FROM unnest('{other,parted}'::regclass[]) AS name;
	SELECT hrflow_track_table('old', 'candidate', 'id', 'acme', refresh_columns => '{cv}');});
$writer->ask(q{DELETE FROM candidate WHERE id = '20';});
is(left('old', 20, 21), '21', 'a store that was renamed erases profiles once it is tracked again');
sql($reconcile);
$writer->ask(q{DELETE FROM candidate WHERE id = '21';});
is(left('old', 21, 22), '22', 'a table feeds a store that was renamed');
is(left('embedding', 21, 22), '22', 'a table also feeds the store that has taken the name');
sql('DROP TABLE old, old_profile, old_run');
$writer->ask(q{DELETE FROM candidate WHERE id = '22';});
is(left('embedding', 22, 23),
	'23', 'a table feeds a store that has taken the name of a store that was dropped');

# Dropping a store keeps the triggers of a renamed one
sql('DROP TABLE old_aside, old_erased');
sql($rename);
sql(q{SELECT hrflow_drop_store('embedding')});
is(sql(q{SELECT hrflow_untrack_table('old', 'candidate')}) > 0,
	1, 'dropping a store keeps the triggers of one that had its name');

#
# A table or the extension is dropped while another session waits for a lock
#
$node->safe_psql('postgres', 'CREATE DATABASE dropped');
$node->safe_psql(
	'dropped', q{CREATE EXTENSION hrflow_embed;
	CREATE TABLE candidate (id text);
	SELECT hrflow_create_store('embedding', 'real[]');
	SELECT hrflow_track_table('embedding', 'candidate', 'id', 'acme');});

# Send a statement in another session, which must wait for the open transaction
# "$dropping", then commit that transaction, and return the output of the other one
sub while_dropping
{
	my ($dropping, $statement) = @_;
	my @sessions = map { Hrflow::Session->new($node) } 1 .. 2;
	my $out;

	$_->ask('\c dropped') foreach @sessions;
	$sessions[1]->ask(q{SELECT FROM hrflow_store_status('embedding');});
	$sessions[0]->ask("BEGIN; $dropping");
	$sessions[1]->send("$statement;\n\\echo finished\n\\warn finished");
	$node->poll_query_until(
		'postgres', q{SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
			WHERE NOT granted AND datname = 'dropped')}) or die;
	$sessions[0]->ask('COMMIT;');
	$out = $sessions[1]->wait_for(qr/^finished.*^finished/ms);
	$_->finish foreach @sessions;
	return $out;
}

unlike(
	while_dropping(
		'DROP TABLE embedding_run; LOCK TABLE pg_subscription_rel;',
		q{CALL hrflow_refresh('embedding')}),
	qr/ERROR|WARNING|server closed/,
	'a store can be refreshed while its history is dropped');

# A table is tracked that has no triggers yet.  Its owner has been granted the trigger
# function, or not.  Wait for the table, or after the first trigger has been created;
# recent minor versions of PostgreSQL lock the function before that.
my $advisory = 'SELECT pg_advisory_xact_lock(1);';
my $late = qr/ERROR:  (42883: function with OID \d+ does not|42704: .*concurrently dropped)/;
$node->safe_psql(
	'dropped', q{CREATE ROLE owner;
	CREATE SCHEMA owned AUTHORIZATION owner;
	CREATE FUNCTION wait() RETURNS event_trigger LANGUAGE plpgsql AS
		$$ BEGIN PERFORM pg_catalog.pg_advisory_xact_lock(1); END $$;
	CREATE EVENT TRIGGER wait ON ddl_command_end WHEN TAG IN ('CREATE TRIGGER')
		EXECUTE FUNCTION wait();
	CREATE TABLE fresh (id text);
	SET ROLE owner;
	CREATE TABLE owned.fresh (id text)});
foreach my $case (
	[ '', q{hrflow_release_columns('embedding', 'candidate')} ],
	[ 'LOCK TABLE embedding;', q{hrflow_drop_store('embedding')} ],
	[ 'LOCK TABLE fresh;', q{hrflow_track_table('embedding', 'fresh', 'id', 'acme')} ],
	[ $advisory, q{hrflow_track_table('embedding', 'fresh', 'id', 'acme')}, $late ],
	[   'LOCK TABLE owned.fresh;',
		q{hrflow_track_table('owned.embedding', 'owned.fresh', 'id', 'acme')} ],
	[ $advisory, q{hrflow_track_table('owned.embedding', 'owned.fresh', 'id', 'acme')} ])
{
	my ($lock, $statement, $error) = @$case;
	my $role = $statement =~ /owned/ ? 'SET ROLE owner;' : '';

	$node->safe_psql(
		'dropped', qq{GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO owner;
		REVOKE ALL ON FUNCTION hrflow_track_trigger() FROM owner; $role
		SELECT hrflow_create_store('owned.embedding', 'real[]')
			WHERE to_regclass('owned.embedding') IS NULL AND '$role' <> ''});
	like(
		while_dropping("$lock DROP EXTENSION hrflow_embed CASCADE;", "$role SELECT $statement"),
		$error // qr/ERROR:\ \ 42883:\ function\ with\ OID\ \d+\ does\ not\ exist/x,
		"$statement raises an error if the extension is dropped while it waits: $lock");
	$node->safe_psql('dropped', 'CREATE EXTENSION hrflow_embed');
}
is($node->safe_psql('dropped', q{SELECT count(*) FROM pg_trigger WHERE tgname ~ 'hrflow'}),
	0, 'no trigger refers to an extension that was dropped');

#
# A table that is dropped while a function waits for it
#
my $lost = 'DROP TABLE gone_profile;';
my $track_gone = q{SELECT hrflow_track_table('gone', 'gone_row', 'id', 'acme');};
my $no_store = qr/"gone"\ is\ not\ a\ vector\ store\nDETAIL:\ .*\nHINT:\ .*restore/x;
my $no_table = qr/relation\ with\ OID\ \d+\ does\ not\ exist\nHINT:\ .*by\ name/x;
foreach my $case (
	[ $lost, q{SELECT hrflow_store_status('gone');}, $no_store ],
	[ $lost, q{CALL hrflow_refresh('gone');}, $no_store ],
	[ $lost, q{INSERT INTO gone_row VALUES ('2');}, $no_store ],
	[ 'DROP TABLE gone CASCADE;', q{SELECT hrflow_store_status('gone');}, $no_table ],
	[ 'DROP TABLE gone CASCADE;', q{SELECT hrflow_match('gone', '{1}'::real[]);}, $no_table ],
	[ 'DROP TABLE gone_row;', $track_gone, $no_table ],
	[ 'DROP TABLE gone_row;', q{SELECT hrflow_release_columns('gone', 'gone_row');}, $no_table ])
{
	my ($drop, $statement, $error) = @$case;

	sql("DROP TABLE IF EXISTS gone, gone_profile, gone_run, gone_aside, gone_erased, gone_row CASCADE;
		SELECT hrflow_create_store('gone', 'real[]');
		CREATE TABLE gone_row (id text);
		$track_gone
		INSERT INTO gone_row VALUES ('1');");
	$writer->ask("BEGIN; $drop");
	$reconciler->send($statement);
	waits($reconciler);
	$writer->ask('COMMIT;');
	like(
		$reconciler->wait_for(qr/HINT.*\n/),
		qr/ERROR:\ \ 42P01:\ $error/x,
		"$statement during $drop");
	like($reconciler->ask($statement), $error, "$statement after $drop") if $drop eq $lost;
}
like($reconciler->ask('SELECT hrflow_store_status(0);'),
	$no_table, 'the OID of a table that does not exist is reported as such');

$_->finish foreach $writer, $reconciler;
$node->stop;
done_testing();
