# The way to another model that docs/refresh.md describes: a second store is filled
# beside the first, and then takes its name.  Each profile is bought once, the old
# vectors stay until the switch, and a deleted person is erased from both stores.  A
# regression test could not see the requests that are sent, or restart the server.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 8);
my $wide_api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new('change_model', $api, link_hosts => '127.0.0.1');
my $store = Hrflow::Store->new($node, $api, 'shop');
my $has_pgvector =
  $node->safe_psql('postgres',
	q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});
my $track = q{'shop.candidate', 'hrflow_id', source_id => 'acme', refresh_columns => '{cv}'};
my $dimensions = 'SELECT array_length(vector::real[], 1), count(*) FROM shop.%s GROUP BY 1';

# Refresh the second store with the new model.  Return the output and the number of
# requests for each profile.
sub refresh_next
{
	my ($arguments) = @_;

	$wide_api->reset;
	my ($code, $out, $err) = $node->psql(
		'postgres', "SET hrflow_embed.base_url = '${\ $wide_api->base_url }'; SET ROLE keeper;
		CALL hrflow_refresh('shop.embedding_next', '$Hrflow::Store::FIELDS'$arguments)",
		on_error_stop => 0);
	my %asked;
	$asked{$_}++ foreach $wide_api->get('/log') =~ /profile_id=([^&"]+)/g;
	return ($err, \%asked);
}

# Create the second store, tracking what the first one does
sub create_next
{
	my ($type) = @_;

	$store->sql(
		qq{SELECT hrflow_create_store('shop.embedding_next', '$type');
		SELECT hrflow_track_table('shop.embedding_next', $track);
		SELECT hrflow_track('shop.embedding_next', source_id, array_agg(profile_id))
			FROM shop.embedding_profile WHERE manual AND state <> 'unwanted' GROUP BY source_id});
	return;
}

$node->safe_psql('postgres', 'CREATE EXTENSION vector') if $has_pgvector;
foreach my $type ('real[]', $has_pgvector ? 'vector(16)' : ())
{
	$store->track("SELECT 'nurse-' || i FROM generate_series(1, 40) i");
	$store->sql(q{SELECT hrflow_track('shop.embedding', 'acme', '{cook-1}')});
	$store->call;

	# Cancel
	create_next($type);
	refresh_next(', max_profiles => 5');
	$store->sql(q{SELECT hrflow_drop_store('shop.embedding_next')});
	is($store->states, 'ok 41', "dropping a store of $type leaves the profiles of the other one");
	is($store->sql(sprintf $dimensions, 'embedding'),
		'8|82', "dropping a store of $type leaves the vectors of the other one");
	$store->sql(
		q{INSERT INTO shop.candidate (hrflow_id) VALUES ('cook-2');
		DELETE FROM shop.candidate WHERE hrflow_id = 'cook-2'});

	# Part of it, a restart, and an erasure
	create_next($type);
	my ($printed, $first) = refresh_next(', max_profiles => 15');
	is(scalar keys %$first, 15, "a part of a store of $type is fetched");
	$node->restart;
	is($store->sql(sprintf $dimensions, 'embedding'),
		'8|82', "the old vectors are still there while a store of $type is filled");
	my ($person) = grep { /nurse/ } sort keys %$first;
	$store->sql("DELETE FROM shop.candidate WHERE hrflow_id = '$person'");
	is( $store->sql(
			"SELECT (SELECT count(*) FROM shop.embedding WHERE profile_id = '$person'),
			(SELECT count(*) FROM shop.embedding_next WHERE profile_id = '$person'),
			(SELECT count(*) FROM shop.embedding_profile WHERE profile_id = '$person'),
			(SELECT count(*) FROM shop.embedding_next_profile WHERE profile_id = '$person')"),
		'0|0|0|0',
		"a person is erased from both stores while one of $type is filled");
	is( $store->sql(
			q{SELECT count(*) FROM (SELECT source_id, profile_id FROM shop.embedding
			EXCEPT SELECT source_id, profile_id FROM shop.embedding_next) AS l}),
		26,
		"the profiles that a store of $type lacks can be counted");

	# The rest
	($printed, my $second) = refresh_next('');
	like($printed, qr/: 26 refreshed/, "the rest of a store of $type is fetched");
	is_deeply([ grep { $first->{$_} } keys %$second ],
		[], "no profile of a store of $type is bought twice");
	is_deeply([ grep { $_ > 1 } values %$first, values %$second ],
		[], "each profile of a store of $type takes one request");

	# The switch
	my $switch = qq{BEGIN;
		INSERT INTO shop.embedding_next_erased SELECT * FROM shop.embedding_erased;
		SELECT hrflow_drop_store('shop.embedding');
		ALTER TABLE shop.embedding_next RENAME TO embedding;
		ALTER TABLE shop.embedding_next_profile RENAME TO embedding_profile;
		ALTER TABLE shop.embedding_next_run RENAME TO embedding_run;
		ALTER TABLE shop.embedding_next_aside RENAME TO embedding_aside;
		ALTER TABLE shop.embedding_next_erased RENAME TO embedding_erased;
		SELECT hrflow_track_table('shop.embedding', $track);
		COMMIT;};
	$node->safe_psql('postgres', 'CREATE ROLE other') if $type eq 'real[]';
	like(
		$node->error_of(
			"GRANT ALL ON SCHEMA shop TO other;
			GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO other; SET ROLE other;
			SELECT hrflow_drop_store('shop.embedding')"),
		qr/must be owner of store shop\.embedding/,
		"another role cannot drop the old store to switch to one of $type");
	$store->sql("SET client_min_messages = error; $switch");
	is($store->sql(sprintf $dimensions, 'embedding'),
		'16|80', "a store of $type takes the name of the old one");
	is($store->states, 'ok 40', "no profile is due after the switch to a store of $type");
	is( $store->sql(
			"SELECT count(*) FROM shop.embedding_erased
			WHERE fingerprint = hrflow_fingerprint('acme', '$person')"),
		2,
		"the record of both stores is kept by the switch to a store of $type");
	is( $store->sql(q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'shop.candidate'::regclass}),
		4, "only one store is fed after the switch to a store of $type");
	$store->sql(q{DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-40'});
	is($store->states, 'ok 39', "a person is erased after the switch to a store of $type");

	# Begin with the old model again
	$store->sql(
		qq{SET client_min_messages = error; SELECT hrflow_drop_store('shop.embedding');
		SELECT hrflow_create_store('shop.embedding', 'real[]');
		SELECT hrflow_track_table('shop.embedding', $track)});
}

done_testing();
