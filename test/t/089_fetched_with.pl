# The "fields", API key and dimension that vectors were fetched with determine what
# a later refresh fetches, keeps and erases: with other "fields", only what is
# lacking is fetched, and a run stops if another model returns the vectors.  A
# regression test could not see the requests that are sent.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use MIME::Base64 qw(encode_base64url);
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 8);
my $node = Hrflow::Node->new(
	'fetched_with', $api,
	link_hosts => '127.0.0.1',
	max_attempts => 1,
	shared_preload_libraries => 'hrflow_embed');
my $store = Hrflow::Store->new($node, $api, 'shop');
my $due = 'UPDATE shop.embedding_profile SET due_at = now()';

# Return the stored items of a section, with "fields" after refreshing the profile
sub items
{
	my ($section, $fields) = @_;
	if ($fields)
	{
		$store->sql($due);
		like(
			$store->call("fields => '$fields'"),
			qr/: 1 refreshed/,
			"a run refreshes one profile with $fields");
	}
	return $store->sql(
		"SELECT string_agg(item::text, ' ' ORDER BY item) FROM shop.embedding
		WHERE section = '$section'");
}

#
# Elements that are not requested are kept
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
	'0 1 2 7 8 9', 'elements that a list does not name are kept');
is(items('experiences', '{"experiences": [0]}'),
	'0 1 2 7 8 9', 'elements of a longer list are kept when a shorter one is requested');
is($store->sql('SELECT last_error FROM shop.embedding_profile'),
	'', 'requesting a shorter list of elements records no error');
is(items('experiences', '{"experiences": [1, 7]}'),
	'0 1 2 8 9', 'an element that the reply to a list lacks is deleted');
is(items('experiences', '{"experiences": 1}'),
	'0 1 2 3', 'all elements are replaced if the section is requested as a whole');

#
# A section that the API no longer has is also reported for a profile that changes
# while it is fetched
#
$store->track("SELECT 'novector-nurse'");
$store->sql(
	q{INSERT INTO shop.embedding (source_id, profile_id, section, item, vector)
	SELECT source_id, profile_id, 'skills', 0, '{1}' FROM shop.embedding_profile});
$api->script('hold=2', count => 1);
my $call = $store->start_call;
$api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
$store->sql(q{SELECT hrflow_mark_due('shop.embedding', 'acme', '{novector-nurse}')});
$api->release(2);
$store->finish_call($call);
is( $store->profiles('state, last_error, failed_at > refreshed_at - interval $$1 s$$'),
	'due|HrFlow no longer has vectors of the requested sections: skills|t',
	'the error of a profile that changes while it is fetched names the section it lost');

#
# With other fields, only what is lacking is fetched
#
my $fetched = 'SELECT DISTINCT dimension, sections, account FROM shop.embedding_profile ORDER BY 2';

# Run a refresh with "fields".  Return its output and the number of profiles that
# were requested.
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
	'the dimension, sections and key that a profile was fetched with are stored');

foreach my $case (
	[ q('{"profile": 1, "skills": 1}'), 10, 'another section' ],
	[ q('{"profile": 1, "skills": 1}'), 0, 'the same sections, one of which one profile lacks' ],
	[ q('{"skills": true}'), 0, 'fewer sections' ],
	[ 'NULL', 0, 'no fields' ],
	[ q('{"profile": 1, "experiences": [0, 1]}'), 10, 'elements' ],
	[ q('{"experiences": [1], "skills": 1, "interests": 0}'), 0, 'fewer elements' ],
	[ q('{"profile": 1, "experiences": [2]}'), 10, 'another element' ],
	[ q('{"experiences": 1}'), 10, 'all elements' ],
	[ q('{"experiences": [7]}'), 0, 'an element of a section that was requested before' ])
{
	my ($fields, $n, $what) = @$case;
	my ($printed, $asked) = refresh($fields);
	is($asked, $n, "a run that requests $what sends requests for $n of 10 profiles");
}
is( $store->sql($fetched),
	"8|{experiences,experiences[0],experiences[1],experiences[2],profile,skills}|$account",
	'all sections that were requested for a profile are stored');

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

# A run makes a profile due that lacks a section only if it requests the profile
# itself, because another run might not request that section
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 10) i");
refresh(q('{"profile": 1}'));
is( $store->sql(
		q{SELECT profiles, requests
		FROM hrflow_refresh_estimate('shop.embedding', '{"profile": 1, "skills": 1}', days => 1)
		WHERE day = 0}),
	'10|10',
	'hrflow_refresh_estimate() counts profiles that lack a section as due now');
is((refresh(q('{"profile": 1, "skills": 1}', max_profiles => 2)))[1],
	2, 'a run with max_profiles requests no more profiles even if all lack a section');
is((refresh(q('{"profile": 1}')))[1],
	0, 'a run with max_profiles makes no profiles due that it does not request');

# A run remembers that the API has no vector of a section, even if another job
# requests other sections
$store->track(q{SELECT unnest('{nurse-1,novector-nurse}'::text[])});
refresh(q('{"profile": 1}'));
is((refresh(q('{"skills": 1}')))[1],
	2, 'a run requests profiles for a section that another job does not request');
$store->hasten('true');
refresh(q('{"profile": 1}'));
is((refresh(q('{"skills": 1}')))[1],
	0, 'a profile is not requested repeatedly for a section of which the API has no vector');

# Elements that were not requested are not gone
$store->track(qq{SELECT unnest('{nurse-1,$profile}'::text[])});
refresh(q('{"experiences": [0, 1]}'));
$store->sql($due);
refresh(q('{"experiences": [90]}'));
is($store->states, 'missing 2', 'profiles that lack a requested element are missing');
$store->age('5 days');
$store->sql("UPDATE shop.embedding_profile SET refreshed_at = now() WHERE profile_id = 'nurse-1'");
$store->hasten("profile_id = '$profile'");
refresh(q('{"experiences": [90]}'));
is($store->profiles('state', "profile_id = '$profile'"),
	'missing', 'a profile with other elements than the requested one is not gone');
is($store->sql("SELECT count(*) FROM shop.embedding WHERE profile_id = '$profile'"),
	2, 'elements that were not requested are not erased');

# A profile that is missing or failed is not requested before it is due
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
	\@before, 'the time at which a missing or failed profile is due does not change');

# A profile without any vectors loses its record of requested sections
foreach my $case ([ 'nurse-1', 'missing-2', '' ], [ 'missing-2', 'nurse-1', '{profile}' ])
{
	my ($from, $to, $sections) = @$case;
	$store->sql(
		"UPDATE shop.embedding_profile SET profile_id = '$to', due_at = now()
		WHERE profile_id = '$from'");
	refresh(q('{"profile": 1}'));
	is($store->sql("SELECT sections FROM shop.embedding_profile WHERE profile_id = '$to'"),
		$sections, "a profile that was $from and is $to has the requested sections '$sections'");
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
unlike((refresh(q('{"profile": 1}')))[0],
	qr/WARNING/, 'a run with the first API key raises no warning');
$store->sql("UPDATE shop.embedding_profile SET due_at = now() WHERE profile_id = 'nurse-1'");
my ($printed) = refresh(q('{"profile": 1}'), settings => \%new);
like(
	$printed,
	qr/WARNING:\ .*\ store\ shop\.embedding\ has\ vectors\ that\ were\ fetched\ with\ another\ API\ key
		.*UPDATE\ shop\.embedding_profile\ SET\ due_at\ =\ now\(\)
		\ WHERE\ state\ =\ 'ok'\ AND\ account\ <>\ '[0-9a-f]{8}'/sx,
	'a run with another API key warns that vectors may not be comparable');
unlike(
	$printed,
	qr/\Q$new_key\E|\Q$Hrflow::StandIn::KEY\E/,
	'the warning about another API key does not contain any key');
$store->sql($printed =~ /(UPDATE shop.*')/);
unlike((refresh(q('{"profile": 1}'), settings => \%new))[0],
	qr/WARNING/, 'another run with the new API key raises no warning');
is($store->sql('SELECT count(DISTINCT account) FROM shop.embedding_profile'),
	1, 'all profiles are fetched with the new API key after the statement in the hint');

# The key is rotated during a run.  The profile fetched with the old key cannot be
# written before that, because its row is locked, so the next one waits for it.
my $both_api =
  Hrflow::StandIn->new('--dim' => 8, map { ('--key' => $_) } $Hrflow::StandIn::KEY, $new_key);
my %both = (
	'hrflow_embed.base_url' => $both_api->base_url,
	'hrflow_embed.max_concurrency' => 1);
my $new_account = $store->sql(qq(SELECT left(encode(sha256('$new_key'), 'hex'), 8)));
my $locker = Hrflow::Session->new($node);
foreach my $what ('an empty store', 'a store with vectors')
{
	$store->track($what =~ /empty/ ? q(SELECT 'nurse-0' WHERE false) : "SELECT 'nurse-0'");
	refresh(q('{"profile": 1}'));
	$store->sql(
		q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-1');
		INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-2')});
	$both_api->reset;
	$both_api->script('hold=2', count => 1);
	my $call =
	  $store->start_call(q(fields => '{"profile": 1}', batch_size => 1), settings => \%both);
	$both_api->wait_until(sub { $_[0]{requests} >= 1 }) or die;
	$locker->query(
		q{BEGIN; SELECT FROM shop.embedding_profile WHERE profile_id = 'nurse-1' FOR UPDATE;});
	$both_api->release(2);
	$node->poll_query_until('postgres',
		q{SELECT EXISTS (SELECT FROM hrflow_embed_activity WHERE waiting_for = 'lock')})
	  or die;
	$node->write_key($new_key);
	$locker->query('ROLLBACK;');
	my $printed = $store->finish_call($call);
	is( $store->profiles('profile_id, account', q{profile_id <> 'nurse-0'}),
		"nurse-1|$account\nnurse-2|$new_account",
		"each vector has the key it was fetched with if the key of $what is rotated during a run");
	is(scalar(() = $both_api->get('/log') =~ /profile_id=nurse/g),
		2, "no profile is requested twice if the key of $what is rotated during a run");
	like(
		$printed,
		qr/WARNING: .* has vectors that were fetched with another API key/,
		"a run warns if the key of $what is rotated meanwhile");
	$node->write_key($Hrflow::StandIn::KEY);
}
$locker->finish;

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

# Change the type and the index of the vectors in the store, which becomes empty
sub set_column
{
	my ($type, $index) = @_;
	$store->sql('DROP INDEX IF EXISTS shop.small; DELETE FROM shop.embedding');
	$store->sql("ALTER TABLE shop.embedding ALTER COLUMN vector TYPE $type USING NULL");
	$store->sql("CREATE INDEX small ON shop.embedding ($index)") if $index;
	return;
}

# Run a refresh that gets vectors of the other model.  Return its output and the
# number of requests.
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
			"a run with $due profiles due stops if the model changed and the table takes $what");
		cmp_ok($requests, '<=', 32,
			"a run with $due profiles due sends at most 32 requests if the table takes $what");
		is(scalar(() = $printed =~ /WARNING/g),
			1, "a run with $due profiles due raises one warning if the table takes $what");
		is( $store->sql('SELECT stop_reason FROM shop.embedding_run ORDER BY run DESC LIMIT 1'),
			'not_kept',
			"the history shows why a run with $due profiles due stopped if the table takes $what");
		is($store->sql($state),
			'ok|0||8', "a run with $due profiles due changes no state if the table takes $what");
		is($store->sql($vectors),
			'600|8|8', "a run with $due profiles due changes no vector if the table takes $what");
	}
	$store->sql($due);
	is((refresh_wide())[1],
		1, "the next run with another model sends a single request if the table takes $what");
	$store->sql($due);
	like(
		$store->call,
		qr/: 300 refreshed/,
		"a run with the original model refreshes all profiles if the table takes $what");
}

# The dimension of an empty store is determined by its column and index only
foreach my $case (@takes)
{
	my ($what, $type, $index) = @$case;

	set_column($type, $index);
	$store->track("SELECT 'nurse-' || i FROM generate_series(1, 300) i");
	my ($printed, $requests) = refresh_wide();
	if ($what eq 'any dimension')
	{
		like($printed, qr/: 300 refreshed/, 'a run fills an empty store that takes any dimension');
		next;
	}
	like(
		$printed,
		qr/WARNING: .* was stopped: the (API returned vectors of 16|store does not accept fetched)/,
		"a run with another model stops if the table is empty and takes $what");
	cmp_ok($requests, '<=', 32,
		"a run sends at most 32 requests if the table is empty and takes $what");
	is($store->profiles('state, attempts, lease_until'),
		'due|0|',
		"a run with another model counts no attempt if the table is empty and takes $what");
	$store->sql($due);
	is((refresh_wide())[1],
		1, "the next run sends a single request if the table is empty and takes $what");
}

# A single profile whose vector has another dimension
my $link = encode_base64url(
	'{"profile": "' . $node->safe_psql(
		'postgres', "SET hrflow_embed.base_url = '$wide{'hrflow_embed.base_url'}';
		SELECT hrflow_profile_embedding('acme', 'nurse-1', '{\"profile\": 1}')->>'profile'")
	  . '"}');
foreach my $case ([ 'any dimension', 'real[]', undef, 'ok|16' ],
	[ 'one dimension', 'real[]', 'shop.to_8(vector)', 'due|' ])
{
	my ($what, $type, $index, $expected) = @$case;

	foreach my $fault ("fault:data=$link", "fault:latency=500,data=$link")
	{
		my $when = $fault =~ /latency/ ? 'last' : 'among others';

		set_column($type, $index);
		$store->track("SELECT 'nurse-' || i FROM generate_series(1, 20) i");
		$store->call(q(fields => '{"profile": 1}'));
		$store->sql("INSERT INTO shop.candidate (hrflow_id) VALUES ('$fault'); $due");
		unlike($store->call(q(fields => '{"profile": 1}')), qr/stopped/,
			"a single vector of another dimension, $when, does not stop a run if the table takes $what"
		);
		is( $store->profiles('state, dimension', "profile_id ~ 'fault'"),
			$expected,
			"the state of a profile with another dimension, $when, is right if the table takes $what"
		);
	}
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
		$expected,
		"a run that gets 16 dimensions ends as it should if $wide of 40 profiles have them");
}

done_testing();
