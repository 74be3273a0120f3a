# The number of requests in flight adapts to the server: it grows while the
# server keeps up, and falls if requests queue or are refused.  Before one has
# succeeded, no more than 32 are sent.  The stand-in counts the requests in
# flight.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use List::Util qw(max min);
use Test::More;

my $key = $Hrflow::StandIn::KEY;

# A 429 also limits the rate of its key, so there is another key.
my $other_key = 'askr_fedcba9876543210fedcba9876543210';
my $api = Hrflow::StandIn->new('--latency' => 300, '--key' => $key, '--key' => $other_key);

# Maximum number of attempts to observe growth, which stops while the machine is busy
my $most_tries = 10;
my $node = Hrflow::Node->new('window', $api);

# Return a batch of this many distinct profiles.  Replies to the first "held" requests
# are held until all of these are in flight.
sub batch
{
	my ($n, %with) = @_;
	my $prefix = $with{prefix} // 'p';
	my $held = $with{held} // 0;
	return qq{SELECT status || ' ' || count(*) FROM hrflow_profile_embeddings('acme',
		ARRAY(SELECT CASE WHEN i <= $held THEN 'fault:latency=300,hold=$held,id=' ELSE '$prefix' END
			|| i FROM generate_series(1, $n) i), '{"profile": 1}')
		GROUP BY status ORDER BY 1;\n};
}

# Call a function until its result is as wanted, or has not been in several attempts.
# Return the last result.
sub attempt
{
	my ($code, $is_wanted) = @_;
	my $result;

	foreach my $try (1 .. $most_tries)
	{
		$result = $code->();
		last if $is_wanted->($result);
	}
	return $result;
}

# Return the maximum number of requests in flight during a statement.
sub in_flight_during
{
	my ($session, $sql) = @_;

	$api->reset;
	$session->ask($sql);
	return $api->stats->{max_in_flight};
}

# Return the number of requests that arrived before one was answered.
sub sent_first
{
	my @log = @_;
	my $answered = min(map { $_->{ms} } @log);
	return scalar(grep { $_->{begun} < $answered } @log);
}

sub median
{
	my @sorted = sort { $a <=> $b } @_;
	return $sorted[ @sorted / 2 ];
}

my $session = Hrflow::Session->new($node);

#
# Growth
#
$api->reset;
$session->ask(batch(20, held => 20));
is($api->stats->{max_in_flight}, 20, 'a batch of 20 has 20 requests in flight');
cmp_ok($api->stats->{connections_opened}, '<=', 21, 'a batch of 20 opens 20 connections');

$api->reset;
like($session->ask(batch(800, held => 32)), qr/^ok 800$/m, 'a batch of 800 succeeds');
my $grown = $api->stats->{max_in_flight};
is(sent_first($api->log), 32, 'a batch sends 32 requests before the first one is answered');
$grown = attempt(sub { in_flight_during($session, batch(800)) }, sub { $_[0] > 64 })
  if $grown <= 64;
cmp_ok($grown, '>', 64,
	'a batch of 800 ends with more than twice as many requests in flight as at its beginning');
cmp_ok($grown, '<=', 128, 'no more requests are in flight than max_concurrency allows by default');

$api->reset;
$session->ask(batch(200, held => 32));
is(sent_first($api->log),
	32, 'a batch sends 32 requests before the first is answered, even if the server is known');
$grown = $api->stats->{max_in_flight};
$grown = attempt(sub { in_flight_during($session, batch(200)) }, sub { $_[0] > 40 })
  if $grown <= 40;
cmp_ok($grown, '>', 40,
	'after the first reply of a server that is known, more than 40 requests are in flight');

$session->ask('SET hrflow_embed.max_concurrency = 50;');
is(attempt(sub { in_flight_during($session, batch(300)) }, sub { $_[0] >= 50 }),
	50, 'no more requests are in flight than max_concurrency says');
$session->ask('RESET hrflow_embed.max_concurrency;');

my $slower = sub {
	my $other = Hrflow::Session->new($node);

	$other->ask(batch(800));
	$api->reset;
	$other->ask(batch(800, prefix => 'fault:latency=450,id='));
	$other->finish;
	return max(map { $_->{in_flight} } ($api->log)[ 500 .. 799 ]);
};
cmp_ok(attempt($slower, sub { $_[0] > 64 }),
	'>', 64, 'requests that take longer, but do not queue, do not reduce the number in flight');

#
# Reduction
#
foreach my $fault ('status=503', 'break=1')
{
	my $cut = Hrflow::Session->new($node);

	$cut->ask(batch(800));
	$api->reset;
	$api->script($fault, count => 8);
	like($cut->ask(batch(40)), qr/^ok 40$/m, "a batch that meets \"$fault\" succeeds");
	$api->reset;
	$cut->ask(batch(200));
	cmp_ok($api->stats->{max_in_flight}, '<', 120, "fewer requests are in flight after \"$fault\"");
	$cut->finish;
}

{
	my $cut = Hrflow::Session->new($node);

	$cut->ask("SET hrflow_embed.max_attempts = 1; SET hrflow_embed.api_key = '$other_key';");
	$cut->ask(batch(800));
	$api->reset;
	$api->script('status=429');
	like($cut->ask(batch(40)), qr/limited the rate of requests/, 'A batch is refused by 429.');
	$api->reset;
	$cut->ask("SET hrflow_embed.api_key = '$key';" . batch(200));
	cmp_ok($api->stats->{max_in_flight},
		'<', 120, 'After a 429, fewer requests are in flight, also with another key.');
	$cut->finish;
}

my $queueing = Hrflow::StandIn->new('--latency' => 100, '--serve' => 20);
my $queue = sub {
	my $other = Hrflow::Session->new($node);

	$queueing->reset;
	$other->ask("SET hrflow_embed.base_url = '" . $queueing->base_url . "';" . batch(1500));
	$other->finish;
	return median((map { $_->{in_flight} } $queueing->log)[ 1000 .. 1499 ]);
};
my $queued = attempt($queue, sub { $_[0] > 12 && $_[0] < 90 });
cmp_ok($queued,
	'<', 90, 'if a server serves 20 requests at the same time, fewer are in flight than 128');
cmp_ok($queued, '>', 12, 'a server that serves 20 requests at the same time always has work');

#
# Refusals
#
foreach my $case (
	[ 'a batch', batch(500) ],
	[   'read-ahead',
		q{SELECT count(e) FROM (SELECT hrflow_profile_embedding('acme', 'p' || i, '{"profile": 1}')
			AS e FROM generate_series(1, 500) i OFFSET 0) s;}
	],
	[   'texts',
		q{SELECT count(*) FROM hrflow_text_embeddings(
			ARRAY(SELECT 'text ' || i FROM generate_series(1, 500) i));}
	])
{
	my ($name, $sql) = @$case;

	$session->ask("SET hrflow_embed.api_key = '$key';" . batch(500));
	$api->reset;
	$session->ask("SET hrflow_embed.api_key = 'askr_wrong'; $sql");
	cmp_ok(scalar($api->log), '<=', 32,
		"with a wrong key, $name sends at most 32 requests, although more were in flight before");
	cmp_ok(scalar($api->log), '>', 0, "with a wrong key, $name is refused by the API");
}
$session->ask("SET hrflow_embed.api_key = '$key';");

done_testing();
