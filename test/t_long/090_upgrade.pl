# A server with a store can be upgraded by pg_upgrade from the previous version of
# PostgreSQL: the store with its states, vectors and index, the tracked table, the
# privileges and the settings are preserved, and the store can be refreshed.  The
# extension is built and installed for both versions.
#
# This requires that the previous version is installed.  make check-long also runs this
# test in the roots of other versions; that of PostgreSQL 19 has 18 as well.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use Hrflow::Node;
use Hrflow::StandIn;
use Hrflow::Store;
use IPC::Run                ();
use PostgreSQL::Test::Utils ();
use Test::More;

my $to = $ENV{PG_VERSION} // 0;
my $from = $to - 1;
my $system = "/usr/lib/postgresql/$from";
plan skip_all => "PostgreSQL $from and its headers are not installed"
  unless -x "$system/bin/initdb" && -e "$system/lib/pgxs/src/makefiles/pgxs.mk";

# Build the extension for the previous version, with a private copy of that version.
my $root = dirname(__FILE__) . '/../..';
my $source = PostgreSQL::Test::Utils::tempdir();
my $tree = PostgreSQL::Test::Utils::tempdir();
my $old_path = "$tree/usr/lib/postgresql/$from";

my $out;
delete @ENV{qw(MAKEFLAGS MFLAGS MAKELEVEL INITDB_TEMPLATE)};
foreach my $command (
	[ "$root/test/private-tree", $from, $tree ],
	[ 'cp', '-R', (map { "$root/$_" } qw(Makefile hrflow_embed.control sql src)), $source ],
	[ 'find', $source, '-name', '*.o', '-delete' ],
	[ 'make', '-s', '-C', $source, 'install', 'with_llvm=no', "PG_CONFIG=$old_path/bin/pg_config" ])
{
	IPC::Run::run($command, '>', \$out, '2>&1')
	  or BAIL_OUT("could not build the extension for PostgreSQL $from: $out");
}

my $api = Hrflow::StandIn->new('--dim' => 64);
my %settings = (link_hosts => '127.0.0.1', max_attempts => 1);
my $old = Hrflow::Node->new('old', $api, %settings, install_path => $old_path);
my $new = Hrflow::Node->new('new', $api, %settings);
my $has_pgvector = !grep {
	$_->safe_psql('postgres', q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'})
	  == 0
} $old, $new;

# A store with every state, and an index if pgvector is available for both versions
my $store = Hrflow::Store->new($old, $api, 'shop');
$store->fill(200);
$store->sql(q{INSERT INTO shop.candidate (hrflow_id) VALUES ('fault:status=500'), ('missing-1')});
$store->call('max_attempts => 1');
$store->sql(
	q{INSERT INTO shop.candidate (hrflow_id) VALUES ('teacher-1');
	UPDATE shop.candidate SET cv = 'new' WHERE hrflow_id = 'nurse-4';
	UPDATE shop.embedding_profile SET due_at = now() + '1 day' WHERE state = 'missing'});
$old->safe_psql(
	'postgres', q{LOAD 'hrflow_embed';
	ALTER DATABASE postgres SET hrflow_embed.max_concurrency = 7});
$old->safe_psql(
	'postgres', q{CREATE EXTENSION vector;
	SELECT hrflow_index_statement('shop.embedding') \gexec}) if $has_pgvector;
my $before = $store->picture;

$old->stop;
$new->safe_psql('postgres', 'DROP EXTENSION hrflow_embed');
$new->stop;
my $upgraded = IPC::Run::run(
	[   'pg_upgrade', '--no-sync', '-b', "$old_path/bin",
		'-B', $new->config_data('--bindir'), '-d', $old->data_dir,
		'-D', $new->data_dir, '-p', $old->port,
		'-P', $new->port, '-s', $new->host ],
	'>',
	\$out,
	'2>&1',
	init => sub { chdir $source or die $! });
ok($upgraded, "pg_upgrade from PostgreSQL $from to $to succeeds") or diag($out);
$new->start;

$store->{node} = $new;
my $after = $store->picture;
is($after->{$_}, $before->{$_}, "$_ are the same as before pg_upgrade") foreach sort keys %$before;
is( $store->states,
	'due 2, failed 1, missing 1, ok 199',
	'the profiles have the same states as before pg_upgrade');

SKIP:
{
	skip "pgvector is not available for PostgreSQL $from and $to", 2 unless $has_pgvector;
	like($after->{indexes}, qr/USING hnsw/, 'an index of pgvector is kept');
	is($store->sql(q{SELECT hrflow_match_recall('shop.embedding')}),
		1, 'an index of pgvector finds the vectors');
}

# Using the upgraded store
$store->sql(
	q{INSERT INTO shop.candidate (hrflow_id) VALUES ('driver-9999');
	UPDATE shop.candidate SET cv = 'newer' WHERE hrflow_id = 'welder-1';
	DELETE FROM shop.candidate WHERE hrflow_id = 'cook-2'});
is( $store->states,
	'due 4, failed 1, missing 1, ok 197',
	'an INSERT, an UPDATE and a DELETE of candidates are tracked');
like(
	$store->call,
	qr/: 4 refreshed, 0 to be retried, 0 failed/,
	'a refresh fetches the profiles that are due');
is($store->states, 'failed 1, missing 1, ok 201', 'all profiles finally have the right states');
is($store->wrong_vectors(q{profile_id !~ '^(fault|missing)'}),
	0, 'all profiles finally have the right vectors');
$new->stop;

done_testing();
