# A database with a store can be moved to another server by pg_dump and pg_restore:
# the extension, the store with its states, the tracked table and the privileges are
# preserved, and the store can be refreshed.  The other server has the same version.
# If run by root, make check-long also restores the dump into the versions whose roots
# make check-versions has built.
#
# Environment variables:
#   HRFLOW_DUMP_TO=DIR     write the dump to this directory, and keep it
#   HRFLOW_DUMP_FROM=DIR   restore a dump from this directory, instead of making one
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use Hrflow::Store;
use IPC::Run ();
use JSON::PP;
use PostgreSQL::Test::Utils ();
use Test::More;

my %settings = (link_hosts => '127.0.0.1', max_attempts => 1);
my $api = Hrflow::StandIn->new('--dim' => 64);
my $dir = $ENV{HRFLOW_DUMP_FROM};

if (!$dir)
{
	my $node = Hrflow::Node->new('dumped', $api, %settings);
	my $store = Hrflow::Store->new($node, $api, 'shop');

	$store->fill(200);
	$store->sql(
		q{INSERT INTO shop.candidate (hrflow_id) VALUES ('fault:status=500'), ('missing-1');
		SELECT hrflow_track('shop.embedding', 'acme', '{teacher-1}')});
	$store->call('max_attempts => 1');
	$store->sql(
		q{
		INSERT INTO shop.candidate (hrflow_id) VALUES ('teacher-2'), ('O''Neil "quoted" \\ é %');
		UPDATE shop.candidate SET cv = 'new' WHERE hrflow_id = 'nurse-4';
		UPDATE shop.embedding_profile SET lease_until = now() + '1 day'
			WHERE profile_id = 'teacher-2';
		UPDATE shop.embedding_profile SET due_at = now() + '1 day' WHERE state = 'missing';
		TRUNCATE shop.claim});
	$node->safe_psql(
		'postgres', q{
		CREATE ROLE reader LOGIN;
		GRANT USAGE ON SCHEMA shop TO reader;
		GRANT SELECT ON shop.embedding, shop.embedding_profile TO reader;
		GRANT INSERT ON shop.candidate TO reader;
		GRANT EXECUTE ON FUNCTION hrflow_match(regclass, real[], int, text, text[], text),
			hrflow_store_status(regclass) TO reader;
		LOAD 'hrflow_embed';
		ALTER DATABASE postgres SET hrflow_embed.max_concurrency = 7});
	$dir = $ENV{HRFLOW_DUMP_TO} // $node->basedir;

	# Settings of the database are restored only by pg_restore --create.
	foreach my $command (
		[ 'pg_dump', '-Fc', '-d', $node->connstr('postgres'), '-f', "$dir/shop.dump" ],
		[ 'pg_dumpall', '--roles-only', '-d', $node->connstr('postgres'), '-f', "$dir/roles.sql" ])
	{
		ok(IPC::Run::run($command),
			"$command->[0] of PostgreSQL " . $node->pg_version . ' succeeds');
	}
	open(my $file, '>', "$dir/picture.json") or die $!;
	print $file encode_json({ version => $node->pg_version . '', %{ $store->picture } });
	close $file or die $!;
	$node->stop;
}

my $before = decode_json(PostgreSQL::Test::Utils::slurp_file("$dir/picture.json"));
my $from = delete $before->{version};
my $there = Hrflow::Node->new('restored', $api, %settings);
my $to = $there->pg_version;

note("from $from to $to");
$there->safe_psql(
	'postgres', q{DROP EXTENSION hrflow_embed;
	LOAD 'hrflow_embed';
	ALTER DATABASE postgres SET hrflow_embed.max_concurrency = 7});

# Ignore the error for the superuser, which exists already.
$there->psql('postgres', PostgreSQL::Test::Utils::slurp_file("$dir/roles.sql"), on_error_stop => 0);
my $err;
ok( IPC::Run::run(
		[ 'pg_restore', '--exit-on-error', '-d', $there->connstr('postgres'), "$dir/shop.dump" ],
		'2>', \$err),
	"a dump of PostgreSQL $from can be restored into $to") or diag($err);

my $store = Hrflow::Store->existing($there, $api, 'shop');
my $after = $store->picture;
ok($after->{$_} eq $before->{$_}, "$_ are the same as before the dump") foreach sort keys %$before;
isnt($before->{$_}, '', "$_ are not empty") foreach sort keys %$before;

# Using the restored store
is( $store->states,
	'due 3, failed 1, missing 1, ok 200',
	'the profiles have the same states as before the dump');
$there->safe_psql('postgres',
	q{SET ROLE reader; INSERT INTO shop.candidate (hrflow_id) VALUES ('driver-9999')});
is($store->sql(q{SELECT state FROM shop.embedding_profile WHERE profile_id = 'driver-9999'}),
	'due', 'a row written by a role without privileges on the store is tracked');
$store->sql(q{UPDATE shop.candidate SET cv = 'newer' WHERE hrflow_id = 'welder-1'});
$store->sql(q{DELETE FROM shop.candidate WHERE hrflow_id = 'cook-2'});
is( $store->states,
	'due 5, failed 1, missing 1, ok 198',
	'an UPDATE and a DELETE of candidates are tracked');
is($store->sql(q{SELECT count(*) FROM shop.embedding WHERE profile_id = 'cook-2'}),
	0, 'a DELETE of a candidate erases vectors');
like($there->error_of(q{SET ROLE reader; SELECT hrflow_track('shop.embedding', 'acme', '{a}')}),
	qr/^42501/, 'a role cannot execute a function that was not granted to it');
like(
	$there->safe_psql(
		'postgres',
		q{SELECT vector FROM shop.embedding
			WHERE profile_id = 'nurse-8' AND section = 'profile' \gset
		SET ROLE reader;
		SELECT profile_id FROM hrflow_match('shop.embedding', :'vector', 1)}),
	qr/^nurse-8$/m,
	'a role can execute a function that was granted to it');

my $printed = $store->call('max_attempts => 1');
like(
	$printed,
	qr/: 4 refreshed, 0 to be retried, 0 failed, 0 not found, 0 gone/,
	'a refresh fetches profiles that are due and not leased');
$store->hasten("state = 'due'");
like($store->call, qr/: 1 refreshed/,
	'a refresh fetches a leased profile once its lease has ended');
is($store->sql(q{SELECT hrflow_retry('shop.embedding')}),
	1, 'hrflow_retry() makes a failed profile due');
$store->call('max_attempts => 1');
is($store->states, 'failed 1, missing 1, ok 203', 'all profiles finally have the right states');
is($store->wrong_vectors(q{profile_id !~ '^(fault|missing)'}),
	0, 'all profiles finally have the right vectors');
is( $store->sql(
		q{SELECT hrflow_track_table('shop.embedding', 'shop.candidate', 'hrflow_id', 'acme', NULL,
			'{cv}')}
	),
	0,
	'the restored triggers have missed no row');
is( $store->sql(
		q{SELECT hrflow_drop_store('shop.embedding');
			SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal}
	),
	"\n0",
	'dropping a restored store drops its triggers');
$there->stop;

done_testing();
