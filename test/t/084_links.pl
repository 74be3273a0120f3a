# Profiles for which the API replies, but whose vectors cannot be fetched or read: they
# fail after some attempts, and a run stops if there are no others.  If the host of the
# links is down, no attempt is counted, but the API is paid, so the waits grow.  A
# regression test could not see which requests are sent.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use Hrflow::Store;
use List::Util   qw(max);
use MIME::Base64 qw(encode_base64url);
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 8);
my $node = Hrflow::Node->new(
	'links', $api,
	link_hosts => '127.0.0.1',
	max_attempts => 1,
	max_concurrency => 8,
	max_response_size => '64kB');
my $store = Hrflow::Store->new($node, $api, 'shop');
my $texts = Hrflow::Store->new($node, $api, 'words', content => 'text');

sub stopped
{
	my ($reason, $detail) = @_;
	return qr/WARNING:  .*was stopped: \Q$reason\E; .*\nDETAIL:  .*\Q$detail\E/;
}
my $useless = stopped('no profile could be fetched completely',
	q{The API has replied for these profiles, so their "attempts" were incremented});
my $down = stopped("the links' host sent no usable reply", 'Stopping the run did not increment');
my @useless = ($useless, 'due|1|t');
my @down = ($down, 'due|0|t');

#
# All profiles fail, for the same reason or for several
#
foreach my $case (
	[ 'links that have expired', [@useless], 'v.status=403' ],
	[ 'links with a wrong signature', [@useless], 'v.error=SignatureDoesNotMatch' ],
	[ 'links to which access is denied', [@useless], 'v.error=AccessDenied' ],
	[ 'links without an object', [@useless], 'v.status=404' ],
	[ 'links to a bucket that is lost', [@useless], 'v.status=404,v.error=NoSuchBucket' ],
	[ 'links that are redirected', [@useless], 'v.redirect' ],
	[ 'HTTP 500 of links', [@useless], 'v.status=500' ],
	[ 'a page instead of vectors', [@useless], 'v.html,v.status=200' ],
	[ 'pickled vectors', [@useless], 'v.dtype=|O' ],
	[ 'vectors with NaN', [@useless], 'v.nan' ],
	[ 'several vectors in a file', [@useless], 'v.shape=2xd' ],
	[ 'vectors that are too large', [@useless], 'v.big=100000' ],
	[ 'different reasons', [@useless], 'v.nan', 'v.status=403', 'v.status=500' ],
	[ 'HTTP 502 of links', [@down], 'v.status=502' ],
	[ 'HTTP 503 of links', [@down], 'v.status=503' ],
	[ 'HTTP 503 and 504 of links', [@down], 'v.status=503', 'v.status=504' ],
	[ 'HTTP 429 of links', [@down], 'v.status=429' ],
	[ 'links to a host that is too busy', [@down], 'v.status=503,v.error=SlowDown' ],
	[ 'links whose connections are reset', [@down], 'v.reset' ])
{
	my ($name, $expected, @faults) = @$case;
	my ($reason, $states) = @$expected;
	my $values = join ', ', map { "('$_')" } @faults;

	$store->track(
		"SELECT 'fault:' || f || ',id=' || i
		FROM generate_series(1, 12) i, (VALUES $values) v(f)");
	like($store->call, $reason, "a run stops because of $name");
	is($store->profiles('state, attempts, due_at > now()'),
		$states, $states =~ /1/ ? "$name count as attempts" : "$name do not count as attempts");
}

my $words = encode_base64url('[{"embedding": [1, "two"]}]', '');
$texts->track("SELECT 'fault:data=$words,id=' || i FROM generate_series(1, 12) i");
like($texts->call, $useless, 'a run stops because of texts with invalid vectors');
is($texts->sql('SELECT DISTINCT state, attempts FROM words.embedding_profile'),
	'due|1', 'invalid vectors of texts count as attempts');

# Profiles of which some vectors can be read
$store->track("SELECT 'fault:v.first=1,v.nan,id=' || i FROM generate_series(1, 60) i");
unlike(
	$store->call(q{fields => '{"profile": 1, "skills": 1}'}),
	qr/was stopped/,
	'a run does not stop because one section cannot be read');
is( $store->sql(
		q{SELECT count(*), min(p.attempts) FROM shop.embedding
		JOIN shop.embedding_profile p USING (source_id, profile_id)}),
	'60|1',
	'the section that can be read is stored for each profile, and an attempt is counted');

# Fewer than a batch do not stop a run while others succeed
$store->track("SELECT 'fault:v.nan,id=' || i FROM generate_series(1, 12) i");
$store->sql(
	"INSERT INTO shop.candidate (hrflow_id) SELECT 'nurse-' || i FROM generate_series(1, 40) i;
	UPDATE shop.embedding_profile SET due_at = now() - interval '1 hour' WHERE profile_id ~ 'nan'");
my $printed = $store->call;
like($printed, qr/: 40 refreshed, 12 to be retried/, 'some invalid vectors are retried');
unlike($printed, qr/WARNING/, 'a run does not stop because of some invalid vectors');

#
# A batch of failures stops a run
#
foreach my $fault ('v.nan', 'v.error=SignatureDoesNotMatch')
{
	$store->track("SELECT 'fault:$fault,id=' || i FROM generate_series(1, 200) i");
	like($store->call('batch_size => 16'),
		$useless, "a run stops after a batch of profiles with $fault");
	cmp_ok(
		scalar(keys %{ $store->asked }),
		'<=',
		16 + 3 * 8,
		"a run requests few more profiles than a batch with $fault");
}

#
# The API understands no request, and does not know some profiles
#
$store->track(
	"SELECT CASE WHEN i % 5 = 1 THEN 'missing-' ELSE 'nurse-' END || i
	FROM generate_series(1, 200) i");
$printed = $store->call(q{fields => '{"profil": 1}'});
like(
	$printed,
	qr/stopped: all profiles failed in the same way; .*\nDETAIL: .*Stopping the run.*\nHINT: .*"fields"/,
	'a run stops because of wrong fields although some profiles are unknown');
is($store->profiles('attempts', "profile_id ~ 'nurse'"),
	'0', 'no attempt is counted because of wrong fields');
cmp_ok(scalar(keys %{ $store->asked }),
	'<=', 100, 'a run with wrong fields requests few more profiles than 32 that it knows');

#
# Profiles that always fail are given up, even if no other profile is due
#
foreach my $fault ('v.nan', 'v.error=SignatureDoesNotMatch', 'v.status=500')
{
	$store->track("SELECT 'nurse-' || i FROM generate_series(1, 10) i");
	$store->call;
	$store->sql(
		"INSERT INTO shop.candidate (hrflow_id)
		SELECT 'fault:$fault,id=' || i FROM generate_series(1, 30) i");
	foreach (1 .. 6)
	{
		$store->call;
		$store->hasten;
	}
	is( $store->states,
		'failed 30, ok 10',
		"profiles with $fault are given up although no other profile is due");
	is(max(values %{ $store->asked }), 5, "profiles with $fault are requested max_attempts times");
}

#
# If the host of the links is down for long, the waits grow up to a day
#
foreach
  my $age ([ '3 hours', '150 minutes', '181 minutes' ], [ '8 days', '21 hours', '1441 minutes' ])
{
	$store->track("SELECT 'fault:v.status=503,id=' || i FROM generate_series(1, 10) i");
	$store->call;
	$store->age($age->[0]);
	$store->hasten;
	$store->call;
	is( $store->profiles(
			"state, attempts,
				due_at BETWEEN now() + interval '$age->[1]' AND now() + interval '$age->[2]'"),
		'due|0|t',
		"profiles whose links have answered HTTP 503 for $age->[0] wait $age->[1] to $age->[2]");
}
$store->sql(
	"SELECT hrflow_mark_due('shop.embedding', 'acme', array_agg(hrflow_id)) FROM shop.candidate");
is($store->profiles('state, due_at <= now()'),
	'due|t', 'profiles that wait because of an error are due once they are marked due');

# Errors that differ only in the milliseconds that libcurl reports are the same error
$store->track("SELECT 'fault:v.silent,id=' || i FROM generate_series(1, 10) i");
my @impatient = (undef, settings => { 'hrflow_embed.request_timeout' => '5s' });
$store->call(@impatient);
$store->age('20 minutes');
$store->sql(
	q{UPDATE shop.embedding_profile
		SET last_error = regexp_replace(last_error, '\d+', '7', 'g')});
$store->hasten;
$store->call(@impatient);
is( $store->profiles(
		"attempts, due_at BETWEEN now() + interval '17 minutes' AND now() + interval '21 minutes'"),
	'0|t',
	'profiles whose links have timed out for 20 minutes wait as long, whatever the milliseconds');

done_testing;
