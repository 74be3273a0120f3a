# A statement that waits comes back at once, whatever it waits for: cancelled,
# out of time or terminated, it takes no more than 100 ms, leaves nothing open,
# and the next one works.  SQL cannot interrupt itself.
use strict;
use warnings;
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Resolver;
use Hrflow::Session;
use Hrflow::StandIn;
use IO::Socket::INET;
use List::Util qw(min);
use Socket qw(SOCK_STREAM);
use Test::More;
use Time::HiRes qw(time);

# A pause, and a turn, are of a key: they have keys of their own.
my @keys = ($Hrflow::StandIn::KEY, map { "askr_key$_" } 1 .. 2);
my $api = Hrflow::StandIn->new(map { ('--key' => $_) } @keys);
my $silent_tls = Hrflow::RawPeer->new(sub { sleep 600 });

# Nobody accepts: when its queue is full, a connection is never made.
my $deaf = Hrflow::RawPeer->new(undef, backlog => 0);
my @queue = map {
	IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $deaf->port,
		Blocking => 0)
} 1 .. 4;

my $node;
{
	my $resolver = Hrflow::Resolver->new('silent.example' => 'silent');
	$node = Hrflow::Node->new(
		'interrupts', $api,
		connect_timeout => '60s',
		request_timeout => '60s',
		link_hosts => '127.0.0.1');
}

my $control = Hrflow::Session->new($node);

sub wait_until_it_waits
{
	my ($session) = @_;

	for (1 .. 1000)
	{
		last if $control->ask("SELECT wait_event_type FROM pg_stat_activity WHERE pid = $session->{pid} AND state = 'active';") =~ /Extension/;
		select(undef, undef, undef, 0.005);
	}
	return;
}

# Interrupt a statement; returns the milliseconds it took to come back, and
# what was printed.
my %ways = (
	'cancelled' => sub { "SELECT pg_cancel_backend($_[0]);" },
	'terminated' => sub { "SELECT pg_terminate_backend($_[0]);" });

sub interrupt
{
	my ($session, $sql, $way) = @_;

	$session->send("$sql\n\\echo -- done");
	wait_until_it_waits($session);
	my $began = time;
	$control->send($ways{$way}->($session->{pid}));
	my $printed = $session->wait_for(qr/57014|57P01/);
	return ((time - $began) * 1000, $printed);
}

my $url = 'SET hrflow_embed.base_url = ';
my $one = sub { "SELECT hrflow_profile_embedding('acme', '$_[0]', '{\"profile\": 1}');" };
my @cases = (
	[ 'resolving', "${url}'https://silent.example/v1';", $one->('a') ],
	[ 'connecting', "${url}'http://127.0.0.1:" . $deaf->port . "/v1';", $one->('a') ],
	[ 'in TLS', "${url}'https://localhost:" . $silent_tls->port . "/v1'; SET hrflow_embed.ca_file = '" . $api->ca . "';", $one->('a') ],
	[ 'in the headers', '', $one->('fault:silent') ],
	[ 'in the body', '', $one->('fault:stall=20') ],
	[ 'in a body that dribbles', '', $one->('fault:slow=5000') ],
	[ 'until another try', '', $one->('fault:status=503,retry_after=60') ],
	[ 'until a pause of the rate ends', "SET hrflow_embed.api_key = '$keys[1]';", $one->('fault:status=429,retry_after=60') ],
	[ 'for its turn within the rate', "SET hrflow_embed.api_key = '$keys[2]'; SET hrflow_embed.max_requests_per_minute = 1;", q{SELECT hrflow_profile_embedding('acme', 'turn' || i) FROM generate_series(1, 2) i;} ],
	[ 'in a batch', '', q{SELECT count(*) FROM hrflow_profile_embeddings('acme', (SELECT array_agg('fault:latency=100,id=' || i) FROM generate_series(1, 10000) i));} ],
	[ 'for a vector', '', q{SELECT hrflow_fetch_vector(link) FROM hrflow_profile_embedding_links('acme', 'fault:v.silent', '{"profile": 1}');} ],
	[ 'for vectors', '', q{SELECT count(*) FROM hrflow_profile_vectors('acme', '{a,b,fault:v.stall=100,c}');} ]);

foreach my $case (@cases)
{
	my ($name, $settings, $sql) = @$case;
	my $session = Hrflow::Session->new($node);
	my (@ms, @descriptors, $printed);

	$session->ask($one->('warm'));
	$session->ask($settings) if $settings;
	foreach my $round (1 .. 3)
	{
		my ($ms, $out) = interrupt($session, $sql, 'cancelled');
		push @ms, $ms;
		$printed = $out;
		$session->wait_for(qr/-- done/);
		push @descriptors, $session->sockets;
	}
	like($printed, qr/ERROR:  57014: canceling statement due to user request/,
		"waiting $name: a cancel is one");
	cmp_ok(min(@ms), '<=', 100, sprintf "and comes back at once (%s ms)", join(', ', map { int } @ms));

	# A thread of the C library's that still resolves a name holds one; of a
	# batch's connections those stay that were between two requests, and so do
	# the one over which a vector's link came and that of a refusal.
	my $kept = $name eq 'resolving' ? 2 : $name =~ /batch|vectors/ ? 32 : $name =~ /vector|rate/ ? 1 : 0;
	cmp_ok($descriptors[2], '<=', $descriptors[0] + $kept, 'leaving nothing open');

	$printed = $session->ask("SET statement_timeout = '250ms';\n\\timing on\n$sql\n\\timing off\nRESET statement_timeout;");
	like($printed, qr/ERROR:  57014: canceling statement due to statement timeout/,
		"waiting $name: statement_timeout is obeyed");
	my ($time) = $printed =~ /Time: ([\d.]+) ms/;
	cmp_ok($time - 250, '<=', 100, sprintf 'at once (%d ms)', $time - 250);

	# A pause, or a turn, is of a key at a host: ask another.
	$session->ask(join ' ', map { "RESET hrflow_embed.$_;" } qw(base_url max_requests_per_minute));
	$session->ask("SET hrflow_embed.base_url = '" . $api->base_url =~ s{127.0.0.1}{localhost}r . "';");
	like($session->ask($one->('nurse-1')), qr/profile.hflw/, 'the next call works');

	$session->ask("RESET hrflow_embed.base_url; $settings");
	my ($ms, $out) = interrupt($session, $sql, 'terminated');
	like($out, qr/57P01: terminating connection/, "waiting $name: a backend is terminated");
	cmp_ok($ms, '<=', 200, sprintf 'at once (%d ms)', $ms);
	$session->finish;
}

#
# What others do meanwhile
#
my $session = Hrflow::Session->new($node);
$control->ask('CREATE DATABASE other;');
$session->send($one->('fault:silent'));
wait_until_it_waits($session);
my $began = time;
unlike($control->ask('DROP DATABASE other;'), qr/ERROR/, 'another database is dropped meanwhile');
cmp_ok(time - $began, '<', 2, 'without delay');

#
# Errors that are caught
#
my $caught = Hrflow::Session->new($node);
like($caught->ask(q{
	SET statement_timeout = '200ms';
	DO $$
	BEGIN
		PERFORM count(*) FROM hrflow_profile_embeddings('acme', (SELECT array_agg('fault:latency=50,id=' || i) FROM generate_series(1, 10000) i));
	EXCEPTION WHEN query_canceled THEN
		PERFORM set_config('test.caught', 'caught', false);
	END $$;
	RESET statement_timeout;
	SELECT current_setting('test.caught') || count(*) FROM hrflow_profile_embeddings('acme', '{a,b,c,d}');}),
	qr/caught4/, 'after a cancel that PL/pgSQL caught, the next batch works');
my $before = $caught->sockets;
like($caught->ask(q{
	BEGIN;
	SAVEPOINT s;
	SELECT count(*) FROM hrflow_profile_embeddings('unknown-source', '{a,b}');
	ROLLBACK TO s;
	SELECT 'still ' || count(*) FROM hrflow_profile_embeddings('acme', '{a,b}');
	SAVEPOINT s;
	SELECT 1 / (count(*) - 2) FROM hrflow_profile_embeddings('acme', '{a,b}');
	ROLLBACK TO s;
	SELECT 'again ' || count(*) FROM hrflow_profile_embeddings('acme', '{a,b}');
	COMMIT;}), qr/still 2.*again 2/s, 'after a savepoint was rolled back too');
like($caught->ask(q{
	BEGIN;
	DECLARE c CURSOR FOR SELECT 'row ' || profile_id FROM hrflow_profile_embeddings('acme', '{a,b,c,d}');
	FETCH 1 FROM c;
	CLOSE c;
	COMMIT;
	SELECT 'limit' FROM hrflow_profile_embeddings('acme', '{a,b,c,d}') LIMIT 1;}),
	qr/row .*limit/s, 'and with a cursor closed early, or LIMIT');
cmp_ok($caught->sockets, '<=', $before, 'nothing is left open');
$caught->finish;

#
# The server's end
#
$began = time;
$node->stop('fast');
cmp_ok(time - $began, '<', 3, 'a fast shutdown is not delayed by a call that waits');
$session->finish;
$control->finish;

done_testing();
