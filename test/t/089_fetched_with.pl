# What vectors were fetched with decides what a later refresh keeps and erases.  SQL
# cannot choose what the API answers.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 8);
my $node = Hrflow::Node->new('fetched_with', $api, link_hosts => '127.0.0.1', max_attempts => 1);
my $store = Hrflow::Store->new($node, $api, 'shop');
my $due = 'UPDATE shop.embedding_profile SET due_at = now()';

# The items that are stored of a section, and with "fields" refreshed before
sub items
{
	my ($section, $fields) = @_;
	if ($fields)
	{
		$store->sql($due);
		like(
			$store->call("fields => '$fields'"),
			qr/: 1 refreshed/,
			"one profile is refreshed with $fields");
	}
	return $store->sql(
		"SELECT string_agg(item::text, ' ' ORDER BY item) FROM shop.embedding
		WHERE section = '$section'");
}

#
# Elements that are not asked for are kept
#
my $profile = $node->safe_psql(
	'postgres', q{SELECT profile_id FROM hrflow_profile_vectors('acme',
		(SELECT array_agg('nurse-' || i) FROM generate_series(1, 50) i), '{"experiences": 1}')
	WHERE item = 3 LIMIT 1});
$store->track("SELECT '$profile'");
$store->sql(
	q{INSERT INTO shop.embedding (source_id, profile_id, section, item, vector)
	SELECT source_id, profile_id, 'experiences', i, '{1}' FROM shop.embedding_profile,
		generate_series(7, 9) i});
is(items('experiences', '{"experiences": [0, 1, 2]}'),
	'0 1 2 7 8 9', 'a list of elements keeps those that it does not name');
is(items('experiences', '{"experiences": [0]}'),
	'0 1 2 7 8 9', 'a shorter list of elements keeps those of a longer one');
is($store->sql('SELECT last_error FROM shop.embedding_profile'),
	'', 'a shorter list of elements is no error');
is(items('experiences', '{"experiences": [1, 7]}'),
	'0 1 2 8 9', 'an element that the reply to a list lacks is deleted');
is(items('experiences', '{"experiences": ["3f2a"]}'),
	'0 1 2 8 9', 'a list of keys deletes no element');
is(items('experiences', '{"experiences": 1}'),
	'0 1 2 3', 'a section that is asked for as a whole replaces all elements');

done_testing();
