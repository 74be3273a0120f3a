# What vectors were fetched with decides what a later refresh fetches, keeps and
# erases: other "fields" fetch what is lacking, and nothing else.  SQL does not see
# what is asked for.
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
is(items('experiences', '{"experiences": 1}'),
	'0 1 2 3', 'a section that is asked for as a whole replaces all elements');

#
# Other fields fetch what is lacking
#
my $fetched = 'SELECT DISTINCT dimension, sections, account FROM shop.embedding_profile ORDER BY 2';

# A run with "fields": what it prints, and the profiles that were asked for
sub refresh
{
	my ($fields, %options) = @_;
	$api->reset;
	my $printed = $store->call("fields => $fields", role => 'keeper', %options);
	return ($printed, scalar keys %{ $store->asked });
}

my $account = $store->sql(qq(SELECT left(encode(sha256('$Hrflow::StandIn::KEY'), 'hex'), 8)));
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 9) i UNION SELECT 'novector-nurse'");
refresh(q('{"profile": 1}'));
is($store->sql($fetched),
	"8|{profile}|$account",
	'a profile tells the dimension, the sections and the key that it was fetched with');

foreach my $case (
	[ q('{"profile": 1, "skills": 1}'), 10, 'a section more' ],
	[ q('{"profile": 1, "skills": 1}'), 0, 'the same sections, one of which a profile lacks' ],
	[ q('{"skills": true}'), 0, 'fewer sections' ],
	[ 'NULL', 0, 'no fields' ],
	[ q('{"profile": 1, "experiences": [0, 1]}'), 10, 'elements' ],
	[ q('{"experiences": [1], "skills": 1, "interests": 0}'), 0, 'fewer elements' ],
	[ q('{"profile": 1, "experiences": [2]}'), 10, 'another element' ],
	[ q('{"experiences": 1}'), 10, 'all elements' ],
	[ q('{"experiences": [7]}'), 0, 'an element of a section that was asked for' ])
{
	my ($fields, $n, $what) = @$case;
	my ($printed, $asked) = refresh($fields);
	is($asked, $n, "a run that asks for $what requests $n of 10 profiles");
}
is( $store->sql($fetched),
	"8|{experiences,experiences[0],experiences[1],experiences[2],profile,skills}|$account",
	'a profile tells all sections that it was asked for');

$store->sql(
	"INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-10');
	UPDATE shop.embedding_profile SET sections = '{profile}' WHERE profile_id ~ '[123]'");
like(
	(   refresh(
			q('{"profile": 1, "skills": 1}'),
			settings => { 'hrflow_embed.max_concurrency' => 1 }))[0],
	qr/: 4 refreshed.*DETAIL:  3 profiles were not due/s,
	'a run reports how many profiles it requests for sections that they lack');
is(($api->log)[0]{query} =~ /profile_id=([^&]+)/ && $1,
	'nurse-10', 'a new profile is requested before those that lack a section');

# Only what this run asks for is made due: another would not ask for what is lacking
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 10) i");
refresh(q('{"profile": 1}'));
is( $store->sql(
		q{SELECT profiles, requests
		FROM hrflow_refresh_estimate('shop.embedding', '{"profile": 1, "skills": 1}', days => 1)
		WHERE day = 0}),
	'10|10',
	'profiles that lack a section are estimated to be due now');
is((refresh(q('{"profile": 1, "skills": 1}', max_profiles => 2)))[1],
	2, 'a run with a limit requests no more profiles for a section that they lack');
is((refresh(q('{"profile": 1}')))[1],
	0, 'a run with a limit makes no profiles due that it does not request');

# That the API has no vector of a section is an answer, for another job as well
$store->track(q{SELECT unnest('{nurse-1,novector-nurse}'::text[])});
refresh(q('{"profile": 1}'));
is((refresh(q('{"skills": 1}')))[1], 2, 'another job requests another section');
$store->hasten('true');
refresh(q('{"profile": 1}'));
is((refresh(q('{"skills": 1}')))[1],
	0, 'a profile without a vector of a section is not requested for it again and again');

# Elements that nobody has asked for are not gone
$store->track(qq{SELECT unnest('{nurse-1,$profile}'::text[])});
refresh(q('{"experiences": [0, 1]}'));
$store->sql($due);
refresh(q('{"experiences": [90]}'));
is($store->states, 'missing 2', 'profiles without an element that is asked for are missing');
$store->age('5 days');
$store->sql("UPDATE shop.embedding_profile SET refreshed_at = now() WHERE profile_id = 'nurse-1'");
$store->hasten("profile_id = '$profile'");
refresh(q('{"experiences": [90]}'));
is($store->profiles('state', "profile_id = '$profile'"),
	'missing', 'a profile with elements that were not asked for is not gone');
is($store->sql("SELECT count(*) FROM shop.embedding WHERE profile_id = '$profile'"),
	2, 'elements that were not asked for are not erased');

# A profile that is neither fetched nor due is not asked for before its time
$store->track(q{SELECT unnest(ARRAY['nurse-1', 'missing-1', 'fault:status=400,message=odd'])});
refresh(q('{"profile": 1}'));
my $times = 'SELECT profile_id, state, due_at FROM shop.embedding_profile ORDER BY 1';
$store->sql(
	"UPDATE shop.embedding_profile SET dimension = 8, account = '$account', sections = '{profile}'"
);
my @before = grep { !/nurse/ } split /\n/, $store->sql($times);
is((refresh(q('{"profile": 1, "skills": 1}')))[1],
	1, 'a profile that is missing or failed is not requested for a section that it lacks');
is_deeply([ grep { !/nurse/ } split /\n/, $store->sql($times) ],
	\@before, 'a profile that is missing or failed stays due when it was');

# One that had no vector at all is asked for all sections when it has some
foreach my $case ([ 'nurse-1', 'missing-2', '' ], [ 'missing-2', 'nurse-1', '{profile}' ])
{
	my ($from, $to, $sections) = @$case;
	$store->sql(
		"UPDATE shop.embedding_profile SET profile_id = '$to', due_at = now()
		WHERE profile_id = '$from'");
	refresh(q('{"profile": 1}'));
	is($store->sql("SELECT sections FROM shop.embedding_profile WHERE profile_id = '$to'"),
		$sections, "a profile that was $from and is $to has been asked for '$sections'");
}

#
# Another API key
#
my $new_key = 'askr_' . '5' x 32;
my $new_api = Hrflow::StandIn->new('--dim' => 8, '--key' => $new_key);
my %new = (
	'hrflow_embed.base_url' => $new_api->base_url,
	'hrflow_embed.api_key' => $new_key);
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 2) i");
unlike((refresh(q('{"profile": 1}')))[0], qr/WARNING/, 'the first API key gives no warning');
$store->sql("UPDATE shop.embedding_profile SET due_at = now() WHERE profile_id = 'nurse-1'");
my ($printed) = refresh(q('{"profile": 1}'), settings => \%new);
like(
	$printed,
	qr/WARNING:\ .*\ store\ shop\.embedding\ has\ vectors\ that\ were\ fetched\ with\ another\ API\ key
		.*UPDATE\ shop\.embedding_profile\ SET\ due_at\ =\ now\(\)\ WHERE\ account\ <>\ '[0-9a-f]{8}'/sx,
	'a run with another API key warns that vectors may not be comparable');
unlike($printed, qr/\Q$new_key\E|\Q$Hrflow::StandIn::KEY\E/, 'the warning has no API key');
$store->sql($printed =~ /(UPDATE shop.*')/);
unlike((refresh(q('{"profile": 1}'), settings => \%new))[0],
	qr/WARNING/, 'a run with the same API key again gives no warning');
is($store->sql('SELECT count(DISTINCT account) FROM shop.embedding_profile'),
	1, 'the statement of the hint fetches all vectors with the new API key');

done_testing();
