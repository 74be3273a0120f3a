# A waiting statement ends at once when it is canceled, times out or is
# terminated, whatever it is waiting for.  It leaves no socket open, and the next
# statement works.  Other sessions see the wait event.  A regression test cannot
# interrupt itself.
#
# The time that an interrupt takes is compared with the time to interrupt pg_sleep(),
# which is also longer on a slow or busy machine.  Because a busy machine can delay any
# single interrupt, measure again if one takes too long.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Resolver;
use Hrflow::Session;
use Hrflow::StandIn;
use IO::Socket::INET;
use Socket qw(SOCK_STREAM);
use Test::More;
use Time::HiRes qw(time);

# Pauses and turns apply to a key, so cases that cause one use a key of their
# own.
my @keys = ($Hrflow::StandIn::KEY, map { "askr_key$_" } 1 .. 5);
my $api = Hrflow::StandIn->new(map { ('--key' => $_) } @keys);

# Maximum number of measurements
my $most_tries = 6;

my $silent_tls = Hrflow::RawPeer->new(sub { sleep 600 });

# This peer never accepts connections, so when its backlog is full, connections
# are never established.
my $deaf = Hrflow::RawPeer->new(undef, backlog => 0);
my @queue =
  map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $deaf->port, Blocking => 0) }
  1 .. 4;

my $node;
{
	my $resolver = Hrflow::Resolver->new('silent.example' => 'silent');
	$node = Hrflow::Node->new(
		'interrupts', $api,
		connect_timeout => '60s',
		max_concurrency => 32,
		request_timeout => '60s',
		link_hosts => '127.0.0.1');
}

my $control = Hrflow::Session->new($node);

# Return the wait event of a backend, as other sessions see it.
sub waits_for
{
	my ($session) = @_;
	my $seen = $control->ask(
		"SELECT wait_event_type, wait_event FROM pg_stat_activity WHERE pid = $session->{pid}
			AND state = 'active';"
	);
	return $seen =~ s/\n?-- done\n//r;
}

sub wait_until_it_waits
{
	my ($session) = @_;

	for (1 .. 10_000)
	{
		return if waits_for($session) =~ /^(?:Extension|Timeout)/;
		select(undef, undef, undef, 0.005);
	}
	die 'it waits neither for the API nor in pg_sleep(), but for ' . waits_for($session);
}

sub median
{
	return (sort { $a <=> $b } @_)[ $#_ / 2 ];
}

# Interrupt a waiting statement, if necessary after some replies.  Returns the
# milliseconds it took to end, and its output.
my %ways = (
	'cancelled' => [ 'pg_cancel_backend', qr/-- done.*57014/s ],
	'terminated' => [ 'pg_terminate_backend', qr/57P01/ ]);

sub interrupt
{
	my ($session, $sql, $way, $replies) = @_;

	$api->reset if $replies;
	$session->send("$sql\n\\echo -- done");
	if ($replies)
	{
		$api->wait_until(sub { ($_[0]{by_status}{200} // 0) >= $replies }) or die 'no replies';
	}
	wait_until_it_waits($session);
	my ($function, $ended) = @{ $ways{$way} };
	my $began = time;
	$control->send("SELECT $function($session->{pid});");
	my $printed = $session->wait_for($ended);
	return ((time - $began) * 1000, $printed);
}

# Run a statement that waits for longer than a statement_timeout, in milliseconds.
# Returns the milliseconds it took to end, and its output.
sub time_out
{
	my ($session, $sql, $timeout) = @_;
	my $printed =
	  $session->ask("SET statement_timeout = $timeout;\n\\timing on\n$sql\n\\timing off\n"
		  . 'RESET statement_timeout;');
	my ($ms) = $printed =~ /Time: ([\d.]+) ms/;

	return ($ms, $printed);
}

my $sleep = 'SELECT pg_sleep(600);';
my $url = 'SET hrflow_embed.base_url = ';
my $one = sub { "SELECT hrflow_profile_embedding('acme', '$_[0]', '{\"profile\": 1}');" };
my $many = q{SELECT count(*)
	FROM hrflow_profile_embeddings('acme', (SELECT array_agg('fault:latency=100,id=' || i)
	FROM generate_series(1, 10000) i))};
my @cases = (
	[ 'resolving', "${url}'https://silent.example/v1';", $one->('a') ],
	[ 'connecting', "${url}'http://127.0.0.1:" . $deaf->port . "/v1';", $one->('a') ],
	[   'in TLS',
		"${url}'https://localhost:"
		  . $silent_tls->port
		  . "/v1'; SET hrflow_embed.ca_file = '"
		  . $api->ca . "';",
		$one->('a') ],
	[ 'in the headers', '', $one->('fault:silent') ],
	[ 'in the body', '', $one->('fault:stall=20') ],
	[ 'in a body that dribbles', '', $one->('fault:slow=5000') ],
	[   'until another try',
		"SET hrflow_embed.api_key = '$keys[4]';",
		$one->('fault:status=503,retry_after=60') ],
	[   'until a pause of the rate ends',
		"SET hrflow_embed.api_key = '$keys[1]';",
		$one->('fault:status=429,retry_after=60') ],
	[   'for its turn within the rate',
		"SET hrflow_embed.api_key = '$keys[2]'; SET hrflow_embed.max_requests_per_minute = 1;",
		q{SELECT hrflow_profile_embedding('acme', 'turn' || i) FROM generate_series(1, 2) i;} ],
	[ 'in a batch', '', "$many;", 80 ],
	[   'for a vector',
		'',
		q{SELECT hrflow_fetch_vector(link)
			FROM hrflow_profile_embedding_links('acme', 'fault:v.silent', '{"profile": 1}');}
	],
	[   'for vectors', '',
		q{SELECT count(*) FROM hrflow_profile_vectors('acme', '{a,b,fault:v.stall=100,c}');} ]);

foreach my $case (@cases)
{
	my ($name, $settings, $sql, $replies) = @$case;
	my $session = Hrflow::Session->new($node);
	my (@ms, @ms_asleep, @descriptors, $printed);

	$session->ask($one->('warm'));
	$session->ask($settings) if $settings;
	foreach my $try (1 .. $most_tries)
	{
		@ms = @ms_asleep = @descriptors = ();
		foreach my $round (1 .. 5)
		{
			my ($ms, $out) = interrupt($session, $sql, 'cancelled', $replies);
			push @ms, $ms;
			$printed = $out;
			push @descriptors, $session->sockets;
			($ms) = interrupt($session, $sleep, 'cancelled');
			push @ms_asleep, $ms;
		}
		last if median(@ms) <= median(@ms_asleep) + 100;
	}
	like(
		$printed,
		qr/ERROR:  57014: canceling statement due to user request/,
		"waiting $name: a cancel is reported as a cancel");
	cmp_ok(
		median(@ms), '<=',
		median(@ms_asleep) + 100,
		"waiting $name: a cancel takes effect as soon as in pg_sleep()"
	) or diag('ms: ' . join(', ', map { int } @ms));

	# A thread of the C library that is still resolving a name holds a socket.
	# A batch keeps the connections that were between two requests, and those
	# over which a vector's link, a refusal or a failure was received.
	my $kept =
	  $name eq 'resolving' ? 4 : $name =~ /batch|vectors/ ? 32 : $name =~ /vector|rate|try/ ? 1 : 0;
	cmp_ok(
		$descriptors[4], '<=',
		$descriptors[0] + $kept,
		"waiting $name: a cancel leaves no socket open");

	my ($time_asleep, $time, $printed_after);
	foreach my $try (1 .. $most_tries)
	{
		($time_asleep) = time_out($session, $sleep, 250);
		($time, $printed_after) = time_out($session, $sql, 250);
		last if $time <= $time_asleep + 100;
	}
	like(
		$printed_after,
		qr/ERROR:  57014: canceling statement due to statement timeout/,
		"waiting $name: statement_timeout is obeyed");
	cmp_ok(
		$time, '<=',
		$time_asleep + 100,
		"waiting $name: statement_timeout takes effect as soon as in pg_sleep()");

	# Pauses and turns apply to a key at a host, so use another host.
	$session->ask(join ' ', map { "RESET hrflow_embed.$_;" } qw(base_url max_requests_per_minute));
	$session->ask(
		"SET hrflow_embed.base_url = '" . $api->base_url =~ s{127.0.0.1}{localhost}r . "';");
	like($session->ask($one->('nurse-1')),
		qr/profile.hflw/, "waiting $name: the call after a timeout works");

	my ($ms, $ms_asleep, $out);
	foreach my $try (1 .. $most_tries)
	{
		$session->ask("RESET hrflow_embed.base_url; $settings");
		($ms, $out) = interrupt($session, $sql, 'terminated', $replies);
		$session->finish;
		my $asleep = Hrflow::Session->new($node);
		($ms_asleep) = interrupt($asleep, $sleep, 'terminated');
		$asleep->finish;
		last if $ms <= $ms_asleep + 200;
		$session = Hrflow::Session->new($node);
		$session->ask($one->('warm'));
	}
	like($out, qr/57P01: terminating connection/, "waiting $name: a backend is terminated");
	cmp_ok($ms, '<=', $ms_asleep + 200, "waiting $name: a backend ends as soon as in pg_sleep()");
}

#
# Wait events of a waiting backend, and statements of other sessions meanwhile
#
foreach my $case (
	[ 'a reply', 'HrflowApi', '', $one->('fault:silent'), sub { $_[0]{requests} >= 1 } ],
	[   'its turn within the rate',
		'HrflowDelay',
		"SET hrflow_embed.api_key = '$keys[3]'; SET hrflow_embed.max_requests_per_minute = 1;",
		$one->('a') . $one->('b'),
		sub { ($_[0]{by_status}{200} // 0) >= 1 } ],
	[   'a retry',
		'HrflowDelay',
		"SET hrflow_embed.api_key = '$keys[5]';",
		$one->('fault:status=503,retry_after=60'),
		sub { ($_[0]{by_status}{503} // 0) >= 1 } ])
{
	my ($name, $event, $settings, $sql, $comes_to) = @$case;
	my $session = Hrflow::Session->new($node);
	my $awaited = 'Extension|' . ($node->pg_version >= 17 ? $event : 'Extension');

	$session->ask($settings);
	$api->reset;
	$session->send($sql);
	$api->wait_until($comes_to) or die "$name is not awaited";
	wait_until_it_waits($session);

	# At first, the backend may not have received the reply that the stand-in has counted.
	my $seen;
	foreach my $try (1 .. 10 * $most_tries)
	{
		my %seen;
		foreach my $look (1 .. 5)
		{
			select(undef, undef, undef, 0.02);
			$seen{ waits_for($session) } = 1;
		}
		$seen = join(', ', sort keys %seen);
		last if $seen eq $awaited;
	}
	is($seen, $awaited, "a backend that waits for $name shows its wait event");
	$control->ask("SELECT pg_terminate_backend($session->{pid});");
	$session->finish;
}

my $session = Hrflow::Session->new($node);
$control->ask('CREATE DATABASE other;');
$session->send($one->('fault:silent'));
wait_until_it_waits($session);
unlike($control->ask('DROP DATABASE other;'),
	qr/ERROR/, 'another database can be dropped while a call waits');
wait_until_it_waits($session);
pass('a call still waits after another database was dropped');

#
# Errors that are caught during a batch of 10,000
#
my $caught = Hrflow::Session->new($node);
$caught->ask($one->('warm'));
my $asleep = median(map { (time_out($caught, $sleep, 500))[0] } 1 .. 3);
my $before = $caught->sockets;
foreach my $case (
	[   'a savepoint is rolled back',
		"SAVEPOINT s;\n\\timing on\n$many;\n\\timing off\nROLLBACK TO s;" ],
	[   'PL/pgSQL catches it',
		"\\timing on\nDO \$\$ BEGIN PERFORM ($many);
			EXCEPTION WHEN query_canceled THEN NULL; END \$\$;\n\\timing off\n"
	])
{
	my ($name, $sql) = @$case;
	my (@ms, %next);

	foreach my $round (1 .. 5 * $most_tries)
	{
		if ($round % 5 == 1)
		{
			last if @ms && median(@ms) <= $asleep + 100;
			@ms = ();
		}
		my $printed = $caught->ask(
			"BEGIN;\nSET LOCAL statement_timeout = '500ms';\n$sql
			SET LOCAL statement_timeout = 0;
			SELECT 'next ' || status, count(*) FROM hrflow_profile_embeddings('acme', '{a,b,c,d}')
				GROUP BY 1;
			COMMIT;");
		push @ms, $printed =~ /Time: ([\d.]+) ms/ ? $1 : 1e9;
		$next{ $printed =~ /^(next .*)$/m ? $1 : $printed } = 1;
	}
	cmp_ok(median(@ms), '>=', 500,
		"in the middle of a batch $name: statement_timeout does not fire early");
	cmp_ok(
		median(@ms), '<=',
		$asleep + 100,
		"in the middle of a batch $name: statement_timeout takes effect as soon as in pg_sleep()");
	is(join(', ', keys %next),
		'next ok|4', "in the middle of a batch $name: the next batch in the transaction works");
	cmp_ok(
		$caught->sockets, '<=',
		$before + 32,
		"in the middle of a batch $name: no socket is left open beyond the batch's connections");
}
$before = $caught->sockets;
like(
	$caught->ask(
		q{
	BEGIN;
	SAVEPOINT s;
	SELECT count(*) FROM hrflow_profile_embeddings('unknown-source', '{a,b}');
	ROLLBACK TO s;
	SELECT 'still ' || count(*) FROM hrflow_profile_embeddings('acme', '{a,b}');
	SAVEPOINT s;
	SELECT 1 / (count(*) - 2) FROM hrflow_profile_embeddings('acme', '{a,b}');
	ROLLBACK TO s;
	SELECT 'again ' || count(*) FROM hrflow_profile_embeddings('acme', '{a,b}');
	COMMIT;}),
	qr/still 2.*again 2/s,
	'a batch works after one that was refused and after an error outside of one');
like(
	$caught->ask(
		q{
	BEGIN;
	DECLARE c CURSOR FOR SELECT 'row ' || profile_id
		FROM hrflow_profile_embeddings('acme', '{a,b,c,d}');
	FETCH 1 FROM c;
	CLOSE c;
	COMMIT;
	SELECT 'limit' FROM hrflow_profile_embeddings('acme', '{a,b,c,d}') LIMIT 1;}),
	qr/row .*limit/s,
	'a batch works with a cursor that is closed early and with LIMIT');
cmp_ok($caught->sockets, '<=', $before,
	'neither an error outside of a batch nor a closed cursor leaves a socket open');
$caught->finish;

#
# Shutdown of the server
#
# If it waited for the call, that would end with the error of request_timeout.
my $last = Hrflow::Session->new($node);
$last->send($one->('fault:silent'));
wait_until_it_waits($last);
$node->stop('fast');
like(
	$last->wait_for(qr/57P01/),
	qr/\AFATAL:  57P01:/,
	'a fast shutdown terminates a waiting call instead of waiting for it');
$_->finish foreach $session, $last;
$control->finish;

done_testing();
