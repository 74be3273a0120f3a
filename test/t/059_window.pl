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

my $api = Hrflow::StandIn->new('--latency' => 300);
my $node = Hrflow::Node->new('window', $api);

# Return a batch of this many distinct profiles.
sub batch
{
	my ($n, %with) = @_;
	my $prefix = $with{prefix} // 'p';
	return qq{SELECT status || ' ' || count(*) FROM hrflow_profile_embeddings('acme',
		ARRAY(SELECT '$prefix' || i FROM generate_series(1, $n) i), '{"profile": 1}')
		GROUP BY status ORDER BY 1;\n};
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
$session->ask(batch(20));
is($api->stats->{max_in_flight}, 20, 'A batch of 20 has 20 requests in flight.');
cmp_ok($api->stats->{connections_opened}, '<=', 21, 'A batch of 20 opens 20 connections.');

$api->reset;
like($session->ask(batch(800)), qr/^ok 800$/m, 'A batch of 800 succeeds.');
my $grown = $api->stats->{max_in_flight};
is(sent_first($api->log), 32, 'A batch sends 32 requests before the first one is answered.');
cmp_ok($grown, '>', 64, 'In the end more than twice as many requests are in flight as initially.');
cmp_ok($grown, '<=', 128, 'No more requests are in flight than max_concurrency allows by default.');

$api->reset;
$session->ask(batch(200));
is(sent_first($api->log),
	32, 'Even if the server is known, 32 requests are sent before the first is answered.');
cmp_ok($api->stats->{max_in_flight}, '>', 40, 'When it is, more of them are in flight.');

$api->reset;
$session->ask('SET hrflow_embed.max_concurrency = 50;' . batch(300));
is($api->stats->{max_in_flight}, 50, 'No more requests are in flight than max_concurrency says.');
$session->ask('RESET hrflow_embed.max_concurrency;');

$api->reset;
$session->ask(batch(800, prefix => 'fault:latency=450,id='));
cmp_ok(max(map { $_->{in_flight} } ($api->log)[ 500 .. 799 ]),
	'>', 64, 'If requests take longer, but do not queue, the same number is in flight.');

#
# Reduction
#
foreach my $fault ('status=503', 'break=1')
{
	my $cut = Hrflow::Session->new($node);

	$cut->ask(batch(800));
	$api->reset;
	$api->script($fault, count => 8);
	like($cut->ask(batch(40)), qr/^ok 40$/m, "A batch that meets \"$fault\" succeeds.");
	$api->reset;
	$cut->ask(batch(200));
	cmp_ok($api->stats->{max_in_flight},
		'<', 120, "After \"$fault\", fewer requests are in flight.");
	$cut->finish;
}

my $queueing = Hrflow::StandIn->new('--latency' => 100, '--serve' => 20);
$session->ask("SET hrflow_embed.base_url = '" . $queueing->base_url . "';" . batch(1500));
my @in_flight = map { $_->{in_flight} } $queueing->log;
cmp_ok(median(@in_flight[ 1000 .. 1499 ]),
	'<', 90, 'If a server serves 20 requests at the same time, fewer are in flight than 128.');
cmp_ok(median(@in_flight[ 1000 .. 1499 ]),
	'>', 12, 'A server that serves 20 requests at the same time always has work.');
$session->ask('RESET hrflow_embed.base_url;');

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
		"With a wrong key, $name sends at most 32 requests, although more were in flight before.");
	cmp_ok(scalar($api->log), '>', 0, "With a wrong key, $name is refused by the API.");
}
$session->ask("SET hrflow_embed.api_key = '$key';");

done_testing();
