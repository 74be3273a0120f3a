# What vectors were fetched with decides what a later refresh fetches, keeps and
# erases: other "fields" fetch what is lacking, and nothing else, and a run stops
# where another model answers.  SQL does not see what is asked for.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use MIME::Base64 qw(encode_base64url);
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
# What the API no longer has is told of a profile that changes meanwhile, too
#
$store->track("SELECT 'novector-nurse'");
$store->sql(
	q{INSERT INTO shop.embedding (source_id, profile_id, section, item, vector)
	SELECT source_id, profile_id, 'skills', 0, '{1}' FROM shop.embedding_profile});
$api->script('latency=1000', count => 3);
my $call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 1 });
$store->sql(q{SELECT hrflow_mark_due('shop.embedding', 'acme', '{novector-nurse}')});
$store->finish_call($call);
is( $store->profiles('state, last_error, failed_at > refreshed_at - interval $$1 s$$'),
	'due|HrFlow no longer has vectors of sections asked for: skills|t',
	'the error of a profile that changes while it is fetched names the sections that it lost');

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

#
# Another model
#
my $wide_api = Hrflow::StandIn->new('--dim' => 16);
my %wide = ('hrflow_embed.base_url' => $wide_api->base_url);
my $has_pgvector =
  $node->safe_psql('postgres',
	q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});
$node->safe_psql('postgres', 'CREATE EXTENSION vector') if $has_pgvector;
$store->sql(
	q{CREATE FUNCTION shop.to_8(real[]) RETURNS real[] IMMUTABLE LANGUAGE plpgsql AS $$
	BEGIN
		IF cardinality($1) <> 8 THEN
			RAISE 'expected 8 dimensions, not %', cardinality($1) USING errcode = '22000';
		END IF;
		RETURN $1;
	END $$});

# Tables of vectors of 8 dimensions, by what they take
sub set_column
{
	my ($type, $index) = @_;
	$store->sql('DROP INDEX IF EXISTS shop.small; DELETE FROM shop.embedding');
	$store->sql("ALTER TABLE shop.embedding ALTER COLUMN vector TYPE $type USING NULL");
	$store->sql("CREATE INDEX small ON shop.embedding ($index)") if $index;
	return;
}

# A run that asks the other model: what it prints, and the number of requests
sub refresh_wide
{
	$wide_api->reset;
	my $printed = $store->call(undef, settings => \%wide);
	return ($printed, scalar(() = $wide_api->get('/log') =~ /profile_id=/g));
}

my $state = q{SELECT DISTINCT state, attempts, lease_until, dimension FROM shop.embedding_profile};
my $vectors =
  'SELECT count(*), min(array_length(vector::real[], 1)), max(array_length(vector::real[], 1))
	FROM shop.embedding';
my @takes =
  ([ 'any dimension', 'real[]' ], [ 'one dimension in an index', 'real[]', 'shop.to_8(vector)' ]);
push @takes,
  [ 'one dimension in an index of pgvector', 'real[]', '(vector::vector(8))' ],
  [ 'one dimension', 'vector(8)' ]
  if $has_pgvector;
foreach my $case (@takes)
{
	my ($what, $type, $index) = @$case;
	my ($printed, $requests);

	set_column($type, $index);
	$store->track("SELECT 'nurse-' || i FROM generate_series(1, 300) i");
	$store->call;
	foreach my $due (300, 3)
	{
		$store->sql(
			"UPDATE shop.embedding_profile SET last_error = NULL, failed_at = NULL,
				due_at = CASE WHEN substr(profile_id, 7)::int <= $due THEN now()
					ELSE now() + interval '1 hour' END");
		($printed, $requests) = refresh_wide();
		like(
			$printed,
			qr/WARNING:\ .*\ refresh\ of\ shop\.embedding\ was\ stopped:\ the\ API\ returned\ vectors\ of
				\ 16\ dimensions,\ and\ those\ of\ the\ store\ have\ 8
				.*DETAIL:\ .*\ not\ stored.*HINT:\ .*create\ another\ store/sx,
			"a run with $due profiles due is stopped if the model changed and the table takes $what"
		);
		cmp_ok($requests, '<=', 32,
			"a run with $due profiles due sends at most 32 requests if the table takes $what");
		is(scalar(() = $printed =~ /WARNING/g),
			1, "a run with $due profiles due gives one warning if the table takes $what");
		is( $store->sql('SELECT stop_reason FROM shop.embedding_run ORDER BY run DESC LIMIT 1'),
			'not_kept',
			"the history tells of a run with $due profiles due if the table takes $what");
		is($store->sql($state),
			'ok|0||8', "no state of $due profiles due changes if the table takes $what");
		is($store->sql($vectors),
			'600|8|8', "no vector of $due profiles due changes if the table takes $what");
	}
	$store->sql($due);
	is((refresh_wide())[1], 1,
		"the run after that sends a single request if the table takes $what");
	$store->sql($due);
	like(
		$store->call,
		qr/: 300 refreshed/,
		"the run after the model is the same again refreshes all if the table takes $what");
}

# A store that is empty has no dimension but the type of its column
foreach my $case (@takes)
{
	my ($what, $type, $index) = @$case;

	set_column($type, $index);
	$store->track("SELECT 'nurse-' || i FROM generate_series(1, 300) i");
	my ($printed, $requests) = refresh_wide();
	if ($what eq 'any dimension')
	{
		like($printed, qr/: 300 refreshed/, 'an empty store that takes any dimension is filled');
		next;
	}
	like(
		$printed,
		qr/WARNING: .* was stopped: the (API returned vectors of 16 dimensions|store takes nothing)/,
		"a run is stopped that finds an empty table that takes $what");
	cmp_ok($requests, '<=', 32,
		"a run sends at most 32 requests that finds an empty table that takes $what");
	is($store->profiles('state, attempts, lease_until'),
		'due|0|', "no attempt is counted where an empty table takes $what");
	$store->sql($due);
	is((refresh_wide())[1],
		1, "the run after that sends a single request if an empty table takes $what");
}

# One profile that differs is its own fault, or its own affair
my $link = encode_base64url(
	'{"profile": "' . $node->safe_psql(
		'postgres', "SET hrflow_embed.base_url = '$wide{'hrflow_embed.base_url'}';
		SELECT hrflow_profile_embedding('acme', 'nurse-1', '{\"profile\": 1}')->>'profile'")
	  . '"}');
foreach my $case ([ 'any dimension', 'real[]', undef, 'ok|16' ],
	[ 'one dimension', 'real[]', 'shop.to_8(vector)', 'due|' ])
{
	my ($what, $type, $index, $expected) = @$case;

	set_column($type, $index);
	$store->track("SELECT 'nurse-' || i FROM generate_series(1, 20) i");
	$store->call(q(fields => '{"profile": 1}'));
	$store->sql("INSERT INTO shop.candidate (hrflow_id) VALUES ('fault:data=$link'); $due");
	unlike($store->call(q(fields => '{"profile": 1}')),
		qr/stopped/, "a single vector of another dimension stops no run if the table takes $what");
	is($store->profiles('state, dimension', "profile_id ~ 'fault'"),
		$expected, "a single vector of another dimension is stored if the table takes $what");
}

# The dimensions of a store are those that many of its profiles have
set_column('real[]');
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 40) i");
$store->call;
foreach my $case ([ 2, qr/ stopped: the API returned vectors of 16 dimensions/ ],
	[ 20, qr/: 20 refreshed/ ])
{
	my ($wide, $expected) = @$case;

	$store->sql(
		"UPDATE shop.embedding_profile SET failed_at = NULL, last_error = NULL,
			dimension = CASE WHEN is_wide THEN 16 ELSE 8 END,
			due_at = CASE WHEN is_wide THEN now() + interval '1 hour' ELSE now() END
			FROM (SELECT profile_id AS id, substr(profile_id, 7)::int <= $wide AS is_wide
				FROM shop.embedding_profile) p WHERE id = profile_id");
	like((refresh_wide())[0],
		$expected, "a run fetches 16 dimensions where $wide other profiles of 40 have them");
}

done_testing();
