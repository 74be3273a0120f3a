# Erasure when rows are deleted: the vectors of rows that are deleted and inserted
# again in one transaction are kept, and those of all other deleted rows are
# erased when it commits.  This holds for all kinds of stores.  A regression test
# could see no requests to the API, and has neither concurrent sessions nor prepared
# transactions.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new(
	'erasure', $api,
	link_hosts => '127.0.0.1',
	max_prepared_transactions => 2);
my ($store, $id);


# Return the numbers of profiles and of profiles with vectors, as "990 990"
sub tracked
{
	my ($where) = @_;
	$where //= 'true';
	return $store->sql(
		"SELECT (SELECT count(*) FROM shop.embedding_profile WHERE $where) || ' '
			|| (SELECT count(DISTINCT $id) FROM shop.embedding WHERE $where)");
}

# Return the standard error of psql
sub warnings_of
{
	my ($sql) = @_;
	my (undef, undef, $err) = $node->psql('postgres', "SET ROLE keeper;\n$sql");
	return $err;
}

$node->safe_psql('postgres', 'CREATE ROLE somebody');
foreach my $content (qw(profile job text document))
{
	$store = Hrflow::Store->new($node, $api, 'shop', content => $content);
	$id = $store->{id};
	my ($source, $n) = @$store{qw(source vectors)};

	note("stores of ${content}s");
	#
	# A table that is reloaded
	#
	my $load = 'INSERT INTO shop.candidate (hrflow_id, cv) SELECT hrflow_id, cv FROM shop.staging;';
	$store->fill(1000);
	$store->sql('CREATE TABLE shop.staging AS SELECT hrflow_id, cv FROM shop.candidate');
	$store->call;
	is($store->states, 'ok 1000', 'a store of 1,000 profiles is refreshed');
	$store->sql(
		"UPDATE shop.embedding_profile SET state = 'gone', due_at = NULL
		WHERE $id IN ('nurse-4', 'nurse-8')");
	foreach my $delete (
		'TRUNCATE shop.candidate',
		'DELETE FROM shop.candidate',
		'SAVEPOINT s; TRUNCATE shop.candidate; ROLLBACK TO s; DELETE FROM shop.candidate')
	{
		my $before = $store->profiles("$id, state, due_at, generation");

		$api->reset;
		is(warnings_of("BEGIN; $delete; $load COMMIT"),
			'', "$delete, then INSERT of the rows, in one transaction, raises no WARNING");
		is(tracked(), '1000 1000', "$delete, then INSERT of the rows, erases no vector");
		is($store->profiles("$id, state, due_at, generation"),
			$before,
			"$delete, then INSERT of the rows, makes no profile due, not even one that is gone")
		  if !$store->{posts};    # their contents may have changed
		$store->call;
		is($store->states, 'gone 2, ok 998', "$delete, then INSERT of the rows, changes no state")
		  if $store->{posts};
		is($api->stats->{requests}, 0, "$delete, then INSERT of the rows, costs no request");
	}
	is( warnings_of(
			"BEGIN; DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-4';
			INSERT INTO shop.candidate (hrflow_id, cv)
				SELECT hrflow_id, cv FROM shop.staging WHERE hrflow_id = 'nurse-4';
			ALTER TABLE shop.candidate DROP CONSTRAINT candidate_hrflow_id_key;
			INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-8'), ('nurse-8'); COMMIT"),
		'',
		'a transaction deletes and inserts rows of profiles that are gone');
	is($store->profiles("$id, state", "$id IN ('nurse-4', 'nurse-8')"),
		"nurse-4|gone\nnurse-8|due",
		'a profile that is gone becomes due by a new row, but not by a row that is reloaded');
	$store->sql(
		q{DELETE FROM shop.candidate WHERE ctid IN
			(SELECT ctid FROM shop.candidate WHERE hrflow_id = 'nurse-8' ORDER BY id DESC LIMIT 2);
		ALTER TABLE shop.candidate ADD UNIQUE (hrflow_id)});
	is(warnings_of('BEGIN; TRUNCATE shop.candidate; ROLLBACK'),
		'', 'a TRUNCATE that is rolled back raises no WARNING');
	is(tracked(), '1000 1000', 'a TRUNCATE that is rolled back erases nothing');
	$store->sql(
		"UPDATE shop.embedding_profile SET state = 'ok', due_at = now() + interval '1 day'
		WHERE state IN ('gone', 'due')");

	# Profiles whose rows are not inserted again are erased at the end of the
	# transaction
	my $session = Hrflow::Session->new($node);
	$session->ask("SET ROLE keeper; DELETE FROM shop.staging WHERE hrflow_id ~ '-1\$';");
	$session->ask("BEGIN; TRUNCATE shop.candidate; $load");
	is( $session->ask('SELECT count(*) FROM shop.embedding_profile;'),
		"1000\n-- done\n",
		'a transaction that deletes rows erases nothing before it commits');
	$session->ask('COMMIT;');
	is(tracked(), '999 999', 'a profile whose row was not inserted again is erased by the commit');
	is(tracked("$id ~ '-1\$'"),
		'0 0', 'a profile whose row was deleted is in neither table after the commit');
	$session->ask(
		"BEGIN; DELETE FROM shop.candidate WHERE hrflow_id ~ '-2\$'; SAVEPOINT s;
		DELETE FROM shop.candidate WHERE hrflow_id ~ '-3\$'; ROLLBACK TO s;
		UPDATE shop.candidate SET hrflow_id = 'new-5' WHERE hrflow_id ~ '-5\$'; COMMIT;");
	is(tracked("$id ~ '-[235]\$'"),
		'2 1', 'a commit erases profiles of deleted and renamed rows, unless rolled back');
	$session->ask(
		"BEGIN; UPDATE shop.candidate SET hrflow_id = 'x' WHERE hrflow_id ~ '-6\$';
		UPDATE shop.candidate SET hrflow_id = 'cook-6' WHERE hrflow_id = 'x'; COMMIT;");
	is(tracked("$id IN ('x', 'cook-6')"),
		'1 1', 'an identifier that is changed and changed back keeps its vectors');
	$store->sql(
		"DO \$\$ BEGIN
		DELETE FROM shop.candidate WHERE hrflow_id ~ '-7\$';
		COMMIT;
		INSERT INTO shop.candidate (hrflow_id) VALUES ('driver-7');
		END \$\$");
	is(tracked("$id ~ '-7\$'"),
		'1 0', 'COMMIT in a DO block erases the profiles of rows that it has deleted');
	$store->sql(
		"BEGIN; DELETE FROM shop.candidate WHERE hrflow_id ~ '-9\$'; PREPARE TRANSACTION 'p'");
	is(tracked("$id ~ '-9\$'"), '1 1', 'a prepared transaction has not erased any profile yet');
	$store->sql("COMMIT PREPARED 'p'");
	is(tracked("$id ~ '-9\$'"),
		'0 0', 'a prepared transaction erases profiles when it is committed');

	#
	# Deleting many rows is not limited, but reported
	#
	is( warnings_of(
			'DELETE FROM shop.candidate WHERE id IN (SELECT id FROM shop.candidate LIMIT 40)'),
		'',
		'a DELETE of less than 5 % of the profiles raises no WARNING');
	like(
		warnings_of(
			'DELETE FROM shop.candidate WHERE id IN (SELECT id FROM shop.candidate LIMIT 60)'),
		qr/WARNING:\ .*erased\ 60\ profiles\ and\ their\ vectors\ from\ store\ shop\.embedding
			\ because\ rows\ were\ deleted\ or\ their\ keys\ were\ changed\n
			DETAIL:.*5%/x,
		'a DELETE of more than 5 % of the profiles raises a WARNING');
	my $before = tracked();
	my ($left) = $before =~ /(\d+)/;
	like(
		warnings_of('TRUNCATE shop.candidate'),
		qr/WARNING:\ .*erased\ $left\ profiles/,
		'a TRUNCATE without a subsequent INSERT raises a WARNING');
	is(tracked(), '0 0', 'a TRUNCATE without a subsequent INSERT erases all profiles');

	#
	# Two tables with rows for the same profile
	#
	$store->add_table('other');
	$store->sql(
		q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-1'), ('nurse-2'), ('nurse-3');
		INSERT INTO shop.other VALUES ('nurse-1'), ('nurse-2')});
	$store->sql(
		'BEGIN; TRUNCATE shop.candidate; INSERT INTO shop.other SELECT $$nurse-3$$; COMMIT');
	is($store->profiles($id),
		"nurse-1\nnurse-2\nnurse-3",
		'TRUNCATE of one table keeps profiles that have rows in another table');
	$store->sql(q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-1')});
	my $other = Hrflow::Session->new($node);
	$session->ask("BEGIN; DELETE FROM shop.other WHERE hrflow_id = 'nurse-1';");
	$other->ask(
		"SET ROLE keeper; BEGIN; DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-1'; COMMIT;");
	is($store->profiles($id),
		"nurse-1\nnurse-2\nnurse-3",
		'a profile is kept while the deletion of its last row is uncommitted');
	$session->ask('COMMIT;');
	is($store->profiles($id),
		"nurse-2\nnurse-3",
		'a profile is erased by the last of two transactions that delete its rows');

	# Two transactions are committing: one waits for the other, which can still see the
	# row of the first
	$store->sql(
		q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-2');
		CREATE FUNCTION shop.wait() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
		CREATE CONSTRAINT TRIGGER wait AFTER DELETE ON shop.other DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW EXECUTE FUNCTION shop.wait()});
	$session->ask('SELECT pg_advisory_lock(1);');
	$other->send("DELETE FROM shop.other WHERE hrflow_id = 'nurse-2';");
	$node->poll_query_until('postgres',
		"SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid = $other->{pid})")
	  or die;
	$store->sql(q{DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-2'});
	$session->ask('SELECT pg_advisory_unlock(1);');
	$other->ask('SELECT 1;');
	is($store->profiles($id),
		'nurse-3', 'a profile is erased by one of two transactions that commit at the same time');
	$store->sql('DROP TRIGGER wait ON shop.other');

	# Another table is tracked while a DELETE waits for that
	$store->sql(
		qq{CREATE TABLE shop.late (hrflow_id text $store->{columns});
		INSERT INTO shop.late VALUES ('nurse-4');
		INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-4')});
	$session->ask(
		"BEGIN; SELECT hrflow_track_table('shop.embedding', 'shop.late', 'hrflow_id', $store->{track});"
	);
	$other->send(q{DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-4';});
	$node->poll_query_until('postgres',
		"SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid = $other->{pid})")
	  or die;
	$session->ask('COMMIT;');
	$other->ask('SELECT 1;');
	is($store->profiles($id),
		"nurse-3\nnurse-4", 'a DELETE considers a table that was tracked while the DELETE waited');
	$store->sql('DELETE FROM shop.late; DROP TABLE shop.late');

	# A tracked table whose owner has changed
	$store->add_table('lost');
	$store->sql(
		q{INSERT INTO shop.lost VALUES ('nurse-5');
		INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-5')});
	$node->safe_psql('postgres', 'ALTER TABLE shop.lost OWNER TO somebody');
	like(
		warnings_of(q{DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-5'}),
		qr/WARNING:\ .*not\ erasing\ profiles\ .*tracked\ table\ "lost"\ does\ not\ belong/x,
		'a DELETE warns about a tracked table that has another owner');
	is($store->profiles($id),
		"nurse-3\nnurse-5", 'a DELETE erases nothing while a tracked table has another owner');
	$node->safe_psql('postgres', 'ALTER TABLE shop.lost OWNER TO keeper');
	$store->sql('DELETE FROM shop.lost; DROP TABLE shop.lost');
	is($store->profiles($id),
		'nurse-3', 'a DELETE erases again once all tables have the same owner');

	# A trigger that deletes rows when profiles are erased
	$store->add_table('third');
	$store->sql(
		q{INSERT INTO shop.third VALUES ('cook-1');
		CREATE FUNCTION shop.also() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN DELETE FROM shop.third; RETURN NULL; END $$;
		CREATE TRIGGER also AFTER DELETE ON shop.embedding_profile
			FOR EACH ROW EXECUTE FUNCTION shop.also();
		DELETE FROM shop.other});
	is(tracked(), '0 0',
		'profiles of rows that a trigger on the store deletes at the commit are erased, too');
	$store->sql('DROP TRIGGER also ON shop.embedding_profile');

	#
	# The record of erased profiles
	#
	my $erased =
	  'SELECT reason, vectors, count(*) FROM shop.embedding_erased GROUP BY 1, 2 ORDER BY 1, 2';
	$store->sql('TRUNCATE shop.embedding_erased');
	$store->track(q{SELECT unnest('{nurse-1,nurse-2,nurse-3,nurse-4}'::text[])});
	$store->call;
	$store->sql(
		qq{DELETE FROM shop.embedding_erased;
		INSERT INTO shop.embedding (source_id, $id, section, item, vector)
			VALUES ('$source', 'orphan', 'profile', 0, '{1}');
		BEGIN; DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-1'; ROLLBACK;
		DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-2';
		UPDATE shop.candidate SET hrflow_id = 'nurse-5' WHERE hrflow_id = 'nurse-3';
		UPDATE shop.candidate SET hrflow_id = 'nurse-6' WHERE hrflow_id = 'nurse-5';});
	is($store->sql($erased),
		"delete|0|1\ndelete|$n|2",
		'profiles erased by a DELETE or UPDATE are recorded when it commits');
	is( $store->sql(
			"SELECT reason, vectors FROM shop.embedding_erased
			WHERE fingerprint = hrflow_fingerprint('$source', 'nurse-2')"),
		"delete|$n",
		'an erased profile is found by its fingerprint');
	is( $store->sql(
			"SELECT hrflow_fingerprint('$source', 'nurse-2') =
			sha256(sha256('$source'::bytea) || sha256('nurse-2'::bytea))"),
		't',
		'hrflow_fingerprint() returns the documented hash');
	is($store->sql(q{SELECT count(*) FROM shop.embedding_erased e WHERE e::text ~ 'nurse|acme'}),
		0, 'the record of erased profiles contains no identifiers');
	is($store->sql(q{SELECT * FROM hrflow_store_orphans('shop.embedding')}),
		"$source|orphan|1", 'hrflow_store_orphans() returns vectors without a profile');
	is( $store->sql(
			"SELECT hrflow_untrack('shop.embedding', '$source', '{nurse-1,nurse-6,orphan,nobody}')"
		),
		2,
		'hrflow_untrack() returns the number of profiles that were tracked');
	is( $store->sql("$erased"),
		"delete|0|1\ndelete|$n|2\nuntrack|0|1\n"
		  . ($n == 2 ? "untrack|1|1\nuntrack|2|1" : 'untrack|1|2'),
		'hrflow_untrack() records what it has erased, including orphans');
	is($store->sql(q{SELECT count(*) FROM hrflow_store_orphans('shop.embedding')}),
		0, 'hrflow_untrack() erases orphans');

	# Vectors without a profile, of which "wanted" still has a row in another table
	my @stored = ("source_id, $id, section, item, vector", "'profile', 0, '{1}'::real[]");
	my $lost = "FROM unnest('{lost,aside,wanted,renamed}'::text[]) i";
	foreach my $delete (
		q{DELETE FROM shop.candidate WHERE hrflow_id IN ('lost', 'aside', 'wanted', 'nobody');
			UPDATE shop.candidate SET hrflow_id = 'nobody' WHERE hrflow_id = 'renamed'},
		'TRUNCATE shop.candidate',
		q{DELETE FROM shop.candidate; INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-3')})
	{
		$store->sql(
			"INSERT INTO shop.candidate (hrflow_id) SELECT i $lost ON CONFLICT DO NOTHING;
			INSERT INTO shop.candidate (hrflow_id) VALUES ('nobody'), ('nurse-1'), ('nurse-3')
				ON CONFLICT DO NOTHING;
			INSERT INTO shop.third VALUES ('wanted');
			DELETE FROM shop.embedding_profile WHERE $id !~ 'nurse';
			INSERT INTO shop.embedding ($stored[0])
				SELECT '$source', i, $stored[1] $lost WHERE i <> 'aside'
				UNION ALL SELECT '$source', 'other', $stored[1];
			INSERT INTO shop.embedding_aside ($stored[0], fetched_at, reason)
				SELECT '$source', i, $stored[1], now(), 'untrack' $lost WHERE i IN ('lost', 'aside');
			DELETE FROM shop.embedding_erased");
		is(warnings_of("BEGIN; $delete; COMMIT"), '', "$delete raises no WARNING");
		is( $store->sql(q{SELECT * FROM hrflow_store_orphans('shop.embedding')}),
			"$source|other|1\n$source|wanted|1",
			"$delete erases the vectors of deleted rows that have no profile");
		is( $store->sql(
				"SELECT i, vectors FROM shop.embedding_erased, unnest('{lost,aside,wanted,nobody,
					other,renamed}'::text[]) i
				WHERE fingerprint = hrflow_fingerprint('$source', i) AND reason = 'delete'
				ORDER BY 1"),
			"aside|1\nlost|2\nrenamed|1",
			"$delete records the erasure of vectors that have no profile");
		$store->sql(
			'DELETE FROM shop.candidate; DELETE FROM shop.third; DELETE FROM shop.embedding;
			DELETE FROM shop.embedding_aside; DELETE FROM shop.embedding_profile');
	}

	# The record has no key, but its rows can be deleted on a publisher
	$node->safe_psql('postgres',
		"SET client_min_messages = error; CREATE PUBLICATION everything FOR ALL TABLES");
	is($node->error_of('DELETE FROM shop.embedding_erased WHERE erased_at < now()'),
		'', 'records can be deleted while all tables are published');
	$node->safe_psql('postgres', 'DROP PUBLICATION everything');

	#
	# The store is renamed or dropped before the transaction commits
	#
	$store->sql('DELETE FROM shop.candidate');
	$store->sql(q{INSERT INTO shop.third VALUES ('cook-1'), ('cook-2')});
	like(
		$node->error_of(
			q{BEGIN; DELETE FROM shop.third WHERE hrflow_id = 'cook-1';
				DROP EXTENSION hrflow_embed CASCADE; COMMIT}
		),
		qr/^55006: cannot drop extension/,
		'a transaction that has deleted rows cannot drop the extension');
	is(tracked(), '2 0', 'a transaction that cannot commit has erased nothing');
	is( $node->error_of(
			q{BEGIN; DELETE FROM shop.third WHERE hrflow_id = 'cook-1';
			ALTER TABLE shop.embedding RENAME TO e;
			ALTER TABLE shop.embedding_profile RENAME TO e_profile;
			ALTER TABLE shop.embedding_aside RENAME TO e_aside;
			ALTER TABLE shop.embedding_erased RENAME TO e_erased; COMMIT}
		),
		'',
		'a store can be renamed by a transaction that has deleted rows');
	is($store->sql("SELECT $id FROM shop.e_profile"),
		'cook-2', 'profiles of deleted rows are erased from a store that was renamed since');
	$store->sql("SELECT hrflow_track_table('shop.e', 'shop.third', 'hrflow_id', $store->{track})");
	is($node->error_of(q{BEGIN; TRUNCATE shop.third; DROP TABLE shop.e, shop.e_profile; COMMIT}),
		'', 'a store can be dropped by a transaction that has deleted rows');
	$_->finish foreach $session, $other;
	$store->sql('DROP SCHEMA shop CASCADE');
}

#
# Many rows
#
$store = Hrflow::Store->new($node, $api, 'shop');
$node->safe_psql('postgres',
	'GRANT EXECUTE ON FUNCTION pg_get_backend_memory_contexts() TO keeper');

# A reload of a table with many profiles that are gone.  In quadratic time, half of them
# took more than 30 seconds.
$store->sql(
	q{INSERT INTO shop.candidate (hrflow_id) SELECT 'nurse-' || i FROM generate_series(1, 60000) i;
	UPDATE shop.embedding_profile SET state = 'gone', due_at = NULL;
	CREATE TABLE shop.staging AS SELECT hrflow_id FROM shop.candidate});
my $reload = 'TRUNCATE shop.candidate;
	INSERT INTO shop.candidate (hrflow_id) SELECT hrflow_id FROM shop.staging;';
is(warnings_of("SET work_mem = '64kB'; SET statement_timeout = '120s'; BEGIN; $reload COMMIT"),
	'', 'a table with many profiles that are gone is reloaded in less than quadratic time');
is($store->states, 'gone 60000', 'a reload makes no profile due that is gone');

# Memory for the locks
$store->sql(
	q{CREATE TABLE shop.memory (bytes bigint);
	CREATE FUNCTION shop.note_memory() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO shop.memory SELECT sum(total_bytes) FROM pg_get_backend_memory_contexts()
		WHERE name = 'SPI TupTable';
		RETURN NULL; END $$;
	CREATE TRIGGER note_memory AFTER DELETE ON shop.embedding_profile
		FOR EACH STATEMENT EXECUTE FUNCTION shop.note_memory();});
foreach my $statement (q{DELETE FROM shop.candidate WHERE id % 2 = 0},
	q{SELECT hrflow_untrack('shop.embedding', 'acme', array_agg(hrflow_id)) FROM shop.candidate})
{
	$store->sql("SET client_min_messages = error; TRUNCATE shop.memory; $statement");
	cmp_ok($store->sql('SELECT max(bytes) FROM shop.memory'),
		'<', 200000, "locking many profiles needs no memory for each: $statement");
}
$store->sql('DROP TRIGGER note_memory ON shop.embedding_profile; TRUNCATE shop.candidate');

#
# A reload does not notice that refresh columns have changed, unless that is reported
# before the rows are deleted, as documented
#
$store->sql(
	q{DROP TABLE shop.staging;
	INSERT INTO shop.candidate (hrflow_id, cv) VALUES ('nurse-1', 'old'), ('nurse-2', 'old');
	CREATE TABLE shop.staging AS
		SELECT hrflow_id, CASE hrflow_id WHEN 'nurse-1' THEN 'new' ELSE cv END AS cv
		FROM shop.candidate});
$store->call;
my $mark = q{SELECT hrflow_mark_due('shop.embedding', 'acme', array_agg(c.hrflow_id))
	FROM shop.candidate c JOIN shop.staging s USING (hrflow_id)
	WHERE s.cv IS DISTINCT FROM c.cv HAVING count(*) > 0;};
my $with_cv = 'TRUNCATE shop.candidate;
	INSERT INTO shop.candidate (hrflow_id, cv) SELECT hrflow_id, cv FROM shop.staging;';
$store->sql("BEGIN; $mark $with_cv COMMIT");
is($store->profiles('profile_id, state'),
	"nurse-1|due\nnurse-2|ok", 'a reload can report which refresh columns will change');
$store->call;
$store->sql("UPDATE shop.staging SET cv = 'newer'; BEGIN; $with_cv $mark COMMIT");
is($store->states, 'ok 2', 'a reload does not notice changed refresh columns');
$store->sql('TRUNCATE shop.candidate');

#
# Keys of deleted profiles that could not be stored in a temporary file
#
$store->sql(
	q{INSERT INTO shop.candidate (hrflow_id) SELECT 'cook-' || i FROM generate_series(1, 9999) i});
foreach my $statement (
	q{FOR i IN 0 .. 99 LOOP
		DELETE FROM shop.candidate WHERE hrflow_id <> 'cook-1' AND id % 100 = i; END LOOP},
	q{FOR i IN 0 .. 199 LOOP
		UPDATE shop.candidate SET hrflow_id = 'x' || hrflow_id
		WHERE hrflow_id <> 'cook-1' AND id % 200 = i; END LOOP},
	q{TRUNCATE shop.candidate})
{
	my $caught = qq{DO \$\$ BEGIN $statement; EXCEPTION WHEN configuration_limit_exceeded THEN
		RAISE NOTICE 'caught'; END \$\$};

	foreach my $next (
		'',
		q{DELETE FROM shop.candidate WHERE hrflow_id = 'cook-1';},
		q{INSERT INTO shop.candidate (hrflow_id) VALUES ('cook-0');})
	{
		my (undef, undef, $err) = $node->psql(
			'postgres', "SET temp_file_limit = 0; SET work_mem = '64kB'; SET ROLE keeper;
			BEGIN; DELETE FROM shop.candidate WHERE hrflow_id = 'cook-2'; $caught;
			RESET ROLE; RESET temp_file_limit; SET ROLE keeper; $next COMMIT");
		like(
			$err,
			qr/NOTICE:\ \ caught.*ERROR:\ \ could\ not\ erase\ deleted\ profiles\ from\ store\ shop\.embedding/xs,
			"no profile is erased if the keys of some are lost: $statement; $next");
	}
}
is($store->sql('SELECT count(*) FROM shop.candidate'),
	9999, 'a transaction that has lost the keys of deleted profiles is rolled back');
$store->sql('DROP SCHEMA shop CASCADE');

#
# Stores are processed in the order of their OIDs, also those in which a trigger of
# the user deletes profiles at the commit
#
$store = Hrflow::Store->new($node, $api, 'shop');
$store->sql(
	q{CREATE TABLE shop.log (n int GENERATED ALWAYS AS IDENTITY, name text);
	CREATE FUNCTION shop.log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO shop.log (name) VALUES (tg_argv[0]);
		IF tg_argv[0] = 'a' THEN DELETE FROM shop.row_b; END IF;
		RETURN NULL; END $$;
	DO $$ DECLARE x text; BEGIN
	FOREACH x IN ARRAY '{a,b,c}'::text[] LOOP
		EXECUTE format('CREATE TABLE shop.row_%s (id text)', x);
		PERFORM hrflow_create_store('shop.' || x, 'real[]');
		PERFORM hrflow_track_table(('shop.' || x)::regclass, ('shop.row_' || x)::regclass, 'id', 'acme');
		EXECUTE format('INSERT INTO shop.row_%s VALUES (1)', x);
		EXECUTE format('CREATE TRIGGER log AFTER DELETE ON shop.%s_profile
			FOR EACH ROW EXECUTE FUNCTION shop.log(%1$s)', x);
	END LOOP; END $$;
	BEGIN; DELETE FROM shop.row_c; DELETE FROM shop.row_a; COMMIT});
is($store->sql(q{SELECT string_agg(name, ' ' ORDER BY n) FROM shop.log}),
	'a b c', 'stores that are added at the commit are processed in the order of their OIDs');
$store->sql('DROP SCHEMA shop CASCADE');

done_testing();
