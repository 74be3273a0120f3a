# Partitions of other roles in a table that feeds a store: as which role their code
# runs, and what is erased.  A regression test could not refresh a store.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new('partitions', $api, link_hosts => '127.0.0.1');
my $store = Hrflow::Store->new($node, $api, 'shop');

sub sql { return $node->safe_psql('postgres', @_); }

# Execute SQL as the owner of the store, or as another role, in a new session.  Return
# what psql writes to its standard error.
sub errors_of
{
	my ($sql, $role) = @_;
	my (undef, undef, $err) = $node->psql('postgres',
		'SET ROLE ' . ($role // 'keeper') . ";\n\\set VERBOSITY verbose\n$sql");
	return $err;
}

sub tracked
{
	my ($name) = @_;
	return sql(
		"SELECT string_agg(profile_id || ':' || generation, ' ' ORDER BY profile_id)
		FROM shop.${name}_profile");
}

#
# A partition of a superuser, such as a job creates
#
$store->sql(
	q{CREATE TABLE shop.person (id text, year int, cv text) PARTITION BY LIST (year);
	CREATE TABLE shop.person_1 PARTITION OF shop.person FOR VALUES IN (1);
	SELECT hrflow_create_store('shop.people', 'real[]');});
my $track = q{SELECT hrflow_track_table('shop.people', 'shop.person', 'id', 'acme',
	refresh_columns => '{cv}')};
$store->sql($track);
sql(q{CREATE TABLE shop.person_2 PARTITION OF shop.person FOR VALUES IN (2);
	CREATE TABLE shop.person_3 PARTITION OF shop.person FOR VALUES IN (3) PARTITION BY LIST (year);
	CREATE TABLE shop.person_3_all PARTITION OF shop.person_3 DEFAULT;});
$store->sql(
	q{INSERT INTO shop.person SELECT y || '-' || i, y
		FROM generate_series(1, 3) y, generate_series(1, 2) i});
is( errors_of(
		q{UPDATE shop.person SET cv = 'new'; UPDATE shop.person SET id = id || 'b' WHERE id ~ '-2'}
	),
	'',
	'rows in partitions of a superuser can be updated');
is( tracked('people'),
	'1-1:1 1-2b:0 2-1:1 2-2b:0 3-1:1 3-2b:0',
	'an UPDATE of rows in partitions of a superuser marks profiles due, and tracks others');
is(errors_of("DELETE FROM shop.person WHERE id ~ '-1'"),
	'', 'rows in partitions of a superuser can be deleted');
is( tracked('people'),
	'1-2b:0 2-2b:0 3-2b:0',
	'profiles of deleted rows in partitions of a superuser are erased');
is(errors_of($track), '', 'a table with partitions of a superuser can be reconciled');

# More rows than those that are processed immediately
$store->sql(q{INSERT INTO shop.person SELECT 'many-' || i, 2 FROM generate_series(1, 300) i});
errors_of(q{UPDATE shop.person SET cv = 'newer' WHERE id ~ 'many'});
is(sql(q{SELECT sum(generation) FROM shop.people_profile WHERE profile_id ~ 'many'}),
	300, 'an UPDATE of many rows in a partition of a superuser marks all profiles due');
$store->sql(q{DELETE FROM shop.person WHERE id ~ 'many'});

#
# A partition, or an inheritance child, of a role that may have attached code to it
#
sql(q{CREATE ROLE tenant;
	CREATE ROLE application;
	CREATE SCHEMA tenant AUTHORIZATION tenant;
	GRANT USAGE ON SCHEMA shop TO application, tenant;
	GRANT CREATE ON SCHEMA shop TO tenant;
	GRANT USAGE ON SCHEMA tenant TO PUBLIC;});
sql(q{SET ROLE tenant;
	CREATE FUNCTION tenant.f() RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
	BEGIN
		RAISE WARNING 'code of the tenant runs as %', current_user;
		RETURN 'x';
	END $$});
$store->sql(
	q{CREATE TABLE shop.plain (id text, year int, cv text);
	CREATE TABLE shop.second (id text, cv text);
	DELETE FROM shop.person;
	SELECT hrflow_create_store('shop.texts', 'real[]', content => 'text');});
sql('DROP TABLE shop.person_2, shop.person_3');
my $track_all = join(';',
	$track,
	$track =~ s/person/plain/r,
	q{SELECT hrflow_track_table('shop.people', 'shop.second', 'id', 'acme')},
	map { "SELECT hrflow_track_table('shop.texts', 'shop.$_', 'id', content_columns => '{cv}')" }
	  qw(person plain));
my %tables = (
	partition => {
		table => 'person',
		create => 'PARTITION OF shop.person FOR VALUES IN (4)',
		mine => 'person_4' },
	'partition of a partition' => {
		table => 'person',
		create => 'PARTITION OF shop.person FOR VALUES IN (4) PARTITION BY LIST (year);
			CREATE TABLE shop.person_4_all PARTITION OF shop.person_4 DEFAULT',
		mine => 'person_4_all' },
	'inheritance child' => {
		table => 'plain',
		create => '() INHERITS (shop.plain)',
		mine => 'person_4' });

foreach my $kind (sort keys %tables)
{
	my ($table, $mine) = @{ $tables{$kind} }{qw(table mine)};
	my $is_child = $kind =~ /inheritance/;
	my $track_it = $track =~ s/person/$table/r;
	my $as = qr/code of the tenant runs as keeper/;
	my $refused = qr/ERROR:\ \ 42501:\ table\ "$mine"\ and\ store\ shop.people\ do\ not\ have
		.*\n\s*DETAIL:.*of\ table\ "$table"/x;

	$store->sql(
		"$track_all;
		CREATE TABLE shop.person_4 $tables{$kind}{create};
		INSERT INTO shop.$table SELECT 'a-' || i, 4 FROM generate_series(1, 9) i;
		INSERT INTO shop.person_4 VALUES ('b-1', 4);
		INSERT INTO shop.second SELECT 'b-' || i FROM generate_series(1, 2) i;
		GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA shop
			TO application");
	sql("ALTER TABLE shop.$mine OWNER TO tenant");
	sql("SET ROLE tenant; ALTER TABLE shop.$mine ADD CHECK (tenant.f() IS NOT NULL);
		CREATE INDEX ON shop.$mine ((tenant.f()))");

	# An UPDATE, INSERT or DELETE reads nothing from the table until the commit
	my $before = tracked('people');
	my $err = errors_of("UPDATE shop.$table SET cv = 'new' WHERE id = 'a-1'", 'application');
	unlike($err, $as, "$kind: no code of its owner runs as the owner of the store in an UPDATE");
	unlike($err, qr/ERROR/, "$kind: an UPDATE is possible");
	is(tracked('people'), $before =~ s/a-1:0/a-1:1/r, "$kind: an UPDATE marks its profile due");
	$err = errors_of("DELETE FROM shop.$table WHERE id = 'a-1'", 'application');
	unlike($err, $as, "$kind: no code of its owner runs as the owner of the store in a DELETE");
	like(
		$err,
		qr/WARNING:\ .*not\ erasing\ profiles\ from\ store\ shop.people:\ 
			.*"$mine"\ of\ tracked\ table\ "$table".*\n
			HINT:\ .*owner\ of\ "$mine"\ .*by\ which\ "$table"\ feeds/x,
		"$kind: a DELETE warns that nothing is erased");
	like(tracked('people'), qr/a-1:1/, "$kind: a DELETE erases nothing");
	$err = errors_of("UPDATE shop.$table SET id = 'a-2b' WHERE id = 'a-2'", 'application');
	unlike($err, $as, "$kind: no code of its owner runs as the owner when an identifier changes");
	like($err, qr/not erasing profiles/, "$kind: a changed identifier erases nothing");

	# Others read all rows
	$err = errors_of("TRUNCATE shop.$table", 'application');
	unlike($err, $as, "$kind: no code of its owner runs as the owner of the store in a TRUNCATE");
	like($err, $refused, "$kind: a TRUNCATE is refused");
	foreach my $statement ($track_it, $track_it =~ s/'\{cv\}'/NULL/r)
	{
		$err = errors_of($statement);
		unlike($err, $as, "$kind: no code of its owner runs as the owner when it is tracked");
		like($err, $refused, "$kind: the table cannot be tracked");
	}
	$err = errors_of(q{DELETE FROM shop.second WHERE id = 'b-1'}, 'application');
	unlike($err, $as, "$kind: no code of its owner runs in a DELETE of another table");
	like($err, qr/not erasing profiles/, "$kind: a DELETE of another table erases nothing");
	$err = errors_of(
		q{SELECT hrflow_track_table('shop.people', 'shop.second', 'id', 'acme');
		SELECT hrflow_untrack_table('shop.people', 'shop.second');
		CALL hrflow_untrack_table_batches('shop.people', 'shop.second')}
	);
	unlike($err, $as, "$kind: no code of its owner runs when another table is untracked");
	like($err, qr/not erasing profiles/, "$kind: reconciling another table puts nothing aside");
	$err = errors_of("SELECT hrflow_untrack_table('shop.people', 'shop.$table')");
	like($err, $refused, "$kind: the table cannot be untracked");

	# A run reads texts
	$err = errors_of(q{CALL hrflow_refresh('shop.texts')});
	unlike($err, $as, "$kind: no code of its owner runs when texts are read");
	like(
		$err,
		qr/55000: cannot read the contents/,
		"$kind: a run does not consider the texts of the table empty");

	# The role is a member of the owner's role for a while
	sql('GRANT keeper TO tenant');
	$err = errors_of($track_it);
	unlike($err, $refused, "$kind: the table may belong to a member of the owner's role");
	sql('REVOKE keeper FROM tenant');
	$err = errors_of($track_it);
	like($err, $refused, "$kind: the table may not belong to a role that is no longer a member");

	# The role is made a superuser for a while
	sql('ALTER ROLE tenant SUPERUSER');
	$store->sql(q{SELECT hrflow_track_table('shop.people', 'shop.second', 'id', 'acme')});
	$err = errors_of(q{DELETE FROM shop.second WHERE id = 'b-2'}, 'application');
	unlike($err, qr/not erasing profiles/, "$kind: the table may belong to a superuser");
	unlike(tracked('people'), qr/b-2/,
		"$kind: a DELETE of another table erases profiles if the table belongs to a superuser");
	sql('ALTER ROLE tenant NOSUPERUSER');
	$err = errors_of($track_it);
	like($err, $refused, "$kind: the table may not belong to a role that is no longer a superuser");

	# After a dump was restored, triggers do not depend on the store
	sql(q{SET allow_system_table_mods = on;
		DELETE FROM pg_depend WHERE classid = 'pg_trigger'::regclass
			AND refobjid = 'shop.people'::regclass});
	$store->sql(
		q{SELECT hrflow_track_table('shop.people', 'shop.second', 'id', 'acme');
		INSERT INTO shop.second VALUES ('b-1')});
	$err = errors_of(q{DELETE FROM shop.second WHERE id = 'b-1'}, 'application');
	like(
		$err,
		qr/not erasing profiles/,
		"$kind: a DELETE of another table erases nothing after a dump was restored");
	like(tracked('people'), qr/b-1/,
		"$kind: a profile of another table is kept after a dump was restored");

	# The owner is changed back
	sql("ALTER TABLE shop.$mine OWNER TO keeper");
	$err = errors_of('DELETE FROM shop.second');
	unlike(
		$err,
		qr/not erasing profiles/,
		"$kind: a DELETE of another table erases profiles when the owner is restored");
	$store->sql(
		q{DROP TABLE shop.person_4; DELETE FROM shop.people_profile; DELETE FROM shop.texts_profile;
		TRUNCATE shop.person, shop.plain, shop.second});
}

done_testing();
