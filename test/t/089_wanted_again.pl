# Profiles whose vectors were put aside because no table wanted them get these vectors
# back when a table wants them again, even late.  A regression test could neither see
# the requests that are sent nor miss triggers.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new('again', $api, link_hosts => '127.0.0.1');
my $store = Hrflow::Store->new($node, $api, 'shop');
my $track = q{SELECT hrflow_track_table('shop.embedding', 'shop.candidate', 'hrflow_id',
	source_id => 'acme', refresh_columns => '{cv}')};

# Execute SQL, without the triggers of the table
sub unseen
{
	my ($sql) = @_;
	$node->safe_psql('postgres', "SET session_replication_role = replica; $sql");
	return;
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

#
# Vectors that have expired when their profile is wanted again
#
$store->track(q{SELECT 'nurse-' || i FROM generate_series(1, 30) i});
$store->call;
my $fresh = $store->profiles('profile_id, state, due_at, refreshed_at', q{profile_id = 'nurse-1'});
my $arguments = q{('shop.embedding', 'shop.other')};
foreach my $case (
	[ 'reconciling', $track ],
	[ 'tracking with other arguments', $track =~ s/cv/note/r ],
	[ 'hrflow_untrack_table()', "SELECT hrflow_untrack_table$arguments" ],
	[ 'hrflow_untrack_table_batches', "CALL hrflow_untrack_table_batches$arguments" ])
{
	my ($name, $sql) = @$case;

	$store->add_table('other');
	$store->sql(q{INSERT INTO shop.other VALUES ('cook-1')});
	$store->call;
	unseen(q{DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-1'});
	$store->sql($track);
	is(vectors(q{profile_id = 'nurse-1'}), '0 2', "the vectors of a profile are put aside: $name");
	unseen(
		q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-1');
		DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-2'});
	$store->sql('UPDATE shop.embedding_aside SET delete_at = now()');
	$api->reset;
	$store->sql($sql);
	is(vectors(q{profile_id = 'nurse-1'}),
		'2 0', "$name restores expired vectors of a profile that is wanted again");
	is($store->profiles('profile_id, state, due_at, refreshed_at', q{profile_id = 'nurse-1'}),
		$fresh, "$name restores when such a profile is due");
	$store->call;
	is($api->stats->{requests}, 0, "such a profile costs no request: $name");

	$store->sql(
		q{DROP TABLE shop.other; INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-2')
			ON CONFLICT DO NOTHING});
	$store->sql($track);
	$store->sql(
		q{SELECT hrflow_untrack('shop.embedding', 'acme', '{cook-1}');
		DELETE FROM shop.embedding_erased});
	$store->call;
}

done_testing();
