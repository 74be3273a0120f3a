# The extension works with features of later versions of PostgreSQL: when it is installed
# in a directory of extension_control_path (18), during REPACK (CONCURRENTLY) of the tables
# of a store while it is refreshed, and with INSERT ... ON CONFLICT DO SELECT on a tracked
# table (19).  The expected files of regression tests are the same for all versions.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(basename);
use File::Copy     qw(copy);
use File::Path     qw(make_path);
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use List::Util              qw(max);
use PostgreSQL::Test::Utils ();
use Test::More;

my $api = Hrflow::StandIn->new('--latency' => 20, '--dim' => 64);
my $node = Hrflow::Node->new(
	'versions', $api,
	link_hosts => '127.0.0.1',
	max_attempts => 1,
	wal_level => 'replica');
my $major = $node->pg_version->major;

# Install the extension in another directory, and remove the system's directories from
# both paths.  The library is also preloaded from there.
sub try_control_path
{
	my $there = PostgreSQL::Test::Utils::tempdir() . '/postgresql';
	my $installed = $node->config_data('--sharedir') . '/extension';
	my $library = $node->config_data('--pkglibdir') . '/hrflow_embed.so';

	make_path("$there/share/extension", "$there/lib");
	copy($_, "$there/share/extension/" . basename($_))
	  or die "$_: $!"
	  foreach glob "$installed/hrflow_embed*";
	copy($library, "$there/lib/hrflow_embed.so") or die "$library: $!";
	my $other = Hrflow::Node->new('elsewhere', $api, link_hosts => '127.0.0.1');
	$other->append_conf(
		'postgresql.conf', qq{
		extension_control_path = '$there/share'
		dynamic_library_path = '$there/lib'
		shared_preload_libraries = 'hrflow_embed'});
	$other->safe_psql('postgres', 'DROP EXTENSION hrflow_embed');
	$other->restart;
	is( $other->safe_psql(
			'postgres', q{
			CREATE EXTENSION hrflow_embed;
			SELECT status FROM hrflow_profile_embeddings('acme', '{nurse-1}')}),
		'ok',
		'the extension works when it is installed in a directory of extension_control_path');
	is( $other->safe_psql(
			'postgres', q{
			LOAD 'hrflow_embed';
			SELECT DISTINCT substring(line FROM '/.*hrflow_embed[.]so')
				FROM regexp_split_to_table(
					pg_read_file('/proc/' || pg_backend_pid() || '/maps'), E'\n') line
				WHERE line ~ 'hrflow_embed[.]so'}),
		"$there/lib/hrflow_embed.so",
		'the library is loaded from a directory of dynamic_library_path, and from no other');
	$other->stop;
	return;
}

# Rewrite the tables of a store, and the one that feeds it, until a run has ended.
sub try_repack
{
	my $store = Hrflow::Store->new($node, $api, 'shop');
	my $session = Hrflow::Session->new($node);
	my @tables = qw(shop.embedding_profile shop.embedding shop.candidate);
	my $before = "SELECT array_agg(relfilenode ORDER BY oid) FROM pg_class
		WHERE oid = ANY ('{@{[ join ',', @tables ]}}'::regclass[])";
	my ($repacked, $errors) = (0, '');

	$store->fill(3000);
	my $nodes = $store->sql($before);
	$api->reset;
	my $call =
	  $store->start_call('batch_size => 50', settings => { 'hrflow_embed.max_concurrency' => 16 });
	until ($call->{err} =~ /refreshed, /)
	{
		my $out = $session->ask("REPACK (CONCURRENTLY) $tables[$repacked % @tables];");

		$errors .= $out if $out =~ /ERROR/;
		$repacked++;
		last unless $call->{process}->pumpable;
		$call->{process}->pump_nb;
	}
	like(
		$store->finish_call($call),
		qr/: 3000 refreshed, 0 to be retried, 0 failed, 0 not found, 0 gone/,
		'a run refreshes all profiles while REPACK (CONCURRENTLY) rewrites the tables');
	is(max(values %{ $store->asked }),
		1, 'no profile is requested twice beside REPACK (CONCURRENTLY)');
	is($errors, '', 'REPACK (CONCURRENTLY) succeeds beside a run');
	cmp_ok($repacked, '>', @tables, 'all tables were rewritten during the run');
	isnt($store->sql($before), $nodes, 'the tables have new files');
	is($store->states, 'ok 3000', 'REPACK (CONCURRENTLY) keeps the states that a run writes');
	is($store->wrong_vectors, 0, 'REPACK (CONCURRENTLY) keeps the vectors that a run writes');
	$store->sql(
		q{UPDATE shop.candidate SET cv = 'new' WHERE hrflow_id = 'nurse-4';
		DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-8'});
	is($store->states, 'due 1, ok 2998', 'a table that was rewritten is still tracked');
	$session->finish;
	return;
}

sub try_do_select
{
	my $store = Hrflow::Store->new($node, $api, 'choice');
	my $insert = q{INSERT INTO choice.candidate (hrflow_id)
		VALUES ('nurse-1'), ('cook-2'), ('driver-3') ON CONFLICT (hrflow_id) DO SELECT};
	my $states = q{SELECT string_agg(profile_id || ' ' || state, ', ' ORDER BY profile_id)
		FROM choice.embedding_profile};

	$store->sql(q{INSERT INTO choice.candidate (hrflow_id) VALUES ('nurse-1')});
	$store->call;
	is($store->sql("$insert RETURNING hrflow_id"),
		"nurse-1\ncook-2\ndriver-3", 'ON CONFLICT DO SELECT returns rows that exist, too');
	is( $store->sql($states),
		'cook-2 due, driver-3 due, nurse-1 ok',
		'ON CONFLICT DO SELECT tracks the rows that are inserted, and changes no other');
	$store->call;
	is($store->sql("$insert FOR UPDATE RETURNING hrflow_id"),
		"nurse-1\ncook-2\ndriver-3", 'ON CONFLICT DO SELECT FOR UPDATE returns rows that exist');
	is( $store->sql($states),
		'cook-2 ok, driver-3 ok, nurse-1 ok',
		'ON CONFLICT DO SELECT FOR UPDATE makes no profile due');
	return;
}

foreach my $case (
	[ 18, 'extension_control_path', \&try_control_path ],
	[ 19, 'REPACK (CONCURRENTLY)', \&try_repack ],
	[ 19, 'INSERT ... ON CONFLICT DO SELECT', \&try_do_select ])
{
	my ($since, $feature, $try) = @$case;

	SKIP:
	{
		skip "$feature requires PostgreSQL $since", 1 if $major < $since;
		$try->();
	}
}

unlike(
	PostgreSQL::Test::Utils::slurp_file($node->logfile),
	qr/PANIC|terminated by signal|XX000/,
	'no backend has crashed or raised an internal error');

done_testing();
