# Batches under pressure: replies that exhaust the memory for them, a connection
# that is dead without notice, a backend that is terminated or busy with other
# work, and a server that requests a pause.  A regression test could see neither
# requests in flight nor other backends.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Session;
use Hrflow::StandIn;
use IO::Select;
use IO::Socket::INET;
use IPC::Run     ();
use List::Util   qw(max);
use MIME::Base64 qw(encode_base64url);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(time);

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('pressure', $api, shared_preload_libraries => 'hrflow_embed');

# Time limits to try, because a busy machine may need more than the first for what a batch
# does before it times out.
my @limits = ('500ms', '4s', '20s');

sub sql { return $node->safe_psql('postgres', @_); }

# Return this many distinct identifiers.
sub ids
{
	my ($n, $prefix) = @_;

	$prefix //= 'p';
	return "(SELECT array_agg('$prefix' || i) FROM generate_series(1, $n) i)";
}

# Return the number of rows with each status.
sub batch
{
	my ($ids, $function) = @_;

	$function //= 'hrflow_profile_embeddings';
	return qq{SELECT status || ' ' || count(*) FROM $function('acme', $ids, '{"profile": 1}')
		GROUP BY status ORDER BY 1;\n};
}

# Return the times, in milliseconds, at which matching requests were answered.
sub answered
{
	my ($pattern) = @_;
	return map { $_->{ms} } grep { $_->{query} =~ $pattern } $api->log;
}

# Forward bytes between two sockets until either is closed, or a function
# returns true.
sub relay
{
	my ($one, $other, $is_over) = @_;
	my %to = (fileno($one) => $other, fileno($other) => $one);
	my @both = ($one, $other);

	for (;;)
	{
		my $ready = '';
		vec($ready, fileno($_), 1) = 1 foreach @both;
		select($ready, undef, undef, undef);
		return if $is_over && $is_over->();
		foreach my $from (grep { vec($ready, fileno($_), 1) } @both)
		{
			sysread($from, my $bytes, 65536) or return;
			syswrite($to{ fileno($from) }, $bytes);
		}
	}
}

# Start nghttpx in front of the stand-in, for HTTP/2 and for names that are not
# in its certificate.  Returns undef if it is not installed.
sub start_nghttpx
{
	my $nghttpx = '/usr/sbin/nghttpx';
	my $dir = $api->dir;
	my ($out, $err) = ('', '');

	return unless -x $nghttpx;
	PostgreSQL::Test::Utils::system_or_bail(
		'sh', '-c', qq{cd '$dir' &&
		openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \\
			-subj '/CN=front' -keyout front.key -out front.csr 2>front.log &&
		printf 'subjectAltName=DNS:localhost,DNS:api.example\\n' >front.ext &&
		openssl x509 -req -in front.csr -CA ca.pem -CAkey ca.key -set_serial 2 \\
			-days 30 -extfile front.ext -out front.pem 2>>front.log});

	# It cannot choose a free port and report it, so try others if necessary.
	for my $try (1 .. 5)
	{
		my $port = PostgreSQL::Test::Cluster::get_free_port();
		my $process = IPC::Run::start(
			[   $nghttpx, "-f127.0.0.1,$port",
				'-b127.0.0.1,' . $api->http, '--conf=/dev/null',
				'--workers=1', '--no-ocsp',
				'--errorlog-file=/dev/stderr', '--accesslog-file=/dev/null',
				'--backend-connections-per-host=64', "$dir/front.key",
				"$dir/front.pem" ],
			'<',
			\'',
			'>',
			\$out,
			'2>',
			\$err);
		for my $attempt (1 .. 500)
		{
			return ($process, $port)
			  if IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port);
			select(undef, undef, undef, 0.02);
		}
		$process->kill_kill;
		diag("nghttpx does not listen on $port: $err");
	}
	return;
}

#
# The 64 MB for the bodies of all replies
#
is(sql(batch(ids(250, 'fault:first=1,status=408,big=300000,id='))),
	'ok 250', 'a reply that will be requested again does not keep its memory');

# A small reply with many values
foreach my $value ('{}', '[]', '[[]]', '{"a":{}}', '0')
{
	my $n = int 3_900_000 / (1 + length $value);
	my $body = '{"code": 200, "message": "ok", "data": [' . join(',', ($value) x $n) . ']}';
	my $peer = Hrflow::RawPeer->new(
		sub {
			Hrflow::RawPeer::read_request($_[0]);
			print { $_[0] } "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ",
			  length $body, "\r\n\r\n$body";
		});
	my $reader = Hrflow::Session->new($node);

	$reader->ask("SET hrflow_embed.base_url = 'http://127.0.0.1:" . $peer->port . "/v1';");
	like(
		$reader->ask("SELECT hrflow_profile_embedding('acme', 'p');"),
		qr/ERROR:  08P01/,
		"a reply with many values $value is refused");
	my ($peak) =
	  $reader->ask(q{SELECT substring(pg_read_file('/proc/self/status') FROM 'VmHWM:\s+(\d+)');})
	  =~ /(\d+)/;
	cmp_ok($peak, '<', 200_000, "a reply with many values $value takes little memory");
	$reader->finish;
}

# The first 32 are too large for the memory, which has room for 21 of them.  If the machine
# is busy, replies may be so slow that fewer requests are in flight for that reason, so try
# several times.
my ($result, $most_in_flight);
for my $try (1 .. 5)
{
	my $session = Hrflow::Session->new($node);

	$api->reset;
	$result = $session->ask(
			'SET hrflow_embed.max_concurrency = 100;'
		  . 'SET client_min_messages = error;'
		  . batch(
				'(SELECT array_agg(id ORDER BY i) FROM ('
			  . q{SELECT i, 'fault:big=3000000,id=' || i FROM generate_series(1, 40) i UNION ALL }
			  . q{SELECT i, 'fault:status=404,latency=300,id=' || i }
			  . q{FROM generate_series(101, 400) i UNION ALL }
			  . q{SELECT i, 'fault:latency=200,id=small' || i }
			  . q{FROM generate_series(801, 896) i) a(i, id))}));
	$session->finish;
	$most_in_flight = max(map { $_->{in_flight} } grep { $_->{query} =~ /small/ } $api->log);
	last if $most_in_flight >= 24;
}
is( $result,
	"invalid_reply 40\nnot_found 300\nok 96\n-- done\n",
	'40 replies of 3 MB that arrive at once are refused, but each of them has its turn');
cmp_ok($most_in_flight, '>=', 24, 'more requests are in flight when replies are small again');
cmp_ok(scalar(answered(qr/big/)),
	'<', 80, 'hardly any reply is requested a third time for lack of memory');

# A POST has been processed when its reply exceeds the memory
$api->reset;
is( sql(q{SET hrflow_embed.max_concurrency = 100; SET client_min_messages = error;
		SELECT count(*), bool_or(error ~ 'memory'), bool_or(error ~ 'max_response_size')
		FROM hrflow_text_embeddings(
			(SELECT array_agg('fault:big=3000000,id=' || i) FROM generate_series(1, 100) i))}),
	'100|t|f',
	'100 texts whose replies of 3 MB arrive at once have a row each, some of which lack memory');
is($api->stats->{api_requests}, 100, 'a text whose reply exceeds the memory is not sent again');

is( sql('SET hrflow_embed.max_concurrency = 100; ' . batch(ids(200, 'fault:gzip,latency=200,id='))),
	'ok 200',
	'100 compressed replies at once are decompressed');

#
# Queued links
#
{
	my $links = sub {
		my ($port) = @_;
		my $list = join ',', map { qq("http://127.0.0.1:$port/x?$_") } 1 .. 990;
		return 'fault:data=' . encode_base64url(qq({"experiences": [$list]})) . ',id=';
	};
	my $silent = Hrflow::RawPeer->new(undef);
	my $fetcher = Hrflow::Session->new($node, timeout => 300);
	my $peak = sub {
		my $status = PostgreSQL::Test::Utils::slurp_file('/proc/' . $fetcher->pid . '/status');
		return $status =~ /^VmHWM:\s+(\d+)/m ? $1 : die;
	};

	$fetcher->ask("SET hrflow_embed.link_hosts = '127.0.0.1'; SET client_min_messages = error;"
		  . batch(ids(64), 'hrflow_profile_vectors'));
	my $before = $peak->();
	is( $fetcher->ask(batch(ids(32, $links->($api->http)), 'hrflow_profile_vectors')),
		"no_vector 31680\n-- done\n",
		'all 990 links of each of 32 profiles are fetched');
	my $more = $peak->() - $before;
	SKIP:
	{
		skip 'an instrument keeps memory of its own', 1 if $ENV{HRFLOW_INSTRUMENT};
		cmp_ok($more, '<', 40_000, "31,680 links take $more kB of memory");
	}

	my $timeouts;
	foreach my $limit (@limits)
	{
		$timeouts =
		  $fetcher->ask(
			"SET hrflow_embed.batch_timeout = '$limit'; SET hrflow_embed.max_concurrency = 4;"
			  . batch(ids(5, $links->($silent->port)), 'hrflow_profile_vectors'));
		last if $timeouts =~ /3961/;
	}
	is( $timeouts,
		"timeout 3961\n-- done\n",
		'after batch_timeout each link has a row, and so has a profile that was not requested');
	is( $fetcher->ask(
			"SET hrflow_embed.batch_timeout = 0; SET hrflow_embed.max_concurrency = 2;"
			  . batch(
				"ARRAY['" . $links->($api->http) . "', 'fault:status=402,latency=20', 'p']",
				'hrflow_profile_vectors')),
		"no_vector 990\nover_quota 2\n-- done\n",
		'links are fetched although another profile was refused meanwhile');
	$fetcher->finish;
}

#
# A dead connection
#
my ($nghttpx, $nghttpx_port) = start_nghttpx();

SKIP:
{
	skip 'nghttp2-proxy is not available', 2 unless $nghttpx;

	# The first connection is dropped as by a NAT, without notice to either end.
	my $dropped = PostgreSQL::Test::Utils::tempdir() . '/dropped';
	my $nat = Hrflow::RawPeer->new(
		sub {
			my ($socket, $n) = @_;
			relay(
				$socket,
				IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $nghttpx_port),
				sub { return $n == 0 && -e $dropped });
			sleep 60;
		});
	my $session = Hrflow::Session->new($node);
	$session->ask("SET hrflow_embed.base_url = 'https://localhost:"
		  . $nat->port . "/v1';"
		  . "SET hrflow_embed.ca_file = '"
		  . $api->ca
		  . "'; SET hrflow_embed.max_concurrency = 8;");
	is( $session->ask(batch(ids(20))),
		"ok 20\n-- done\n",
		'a batch over HTTP/2 through a NAT succeeds');

	# Eight consecutive timeouts are an outage, after which the batch sends
	# these requests again.  If the first to time out shuts the connection down
	# before the others do, libcurl sends these again, and there are too few
	# timeouts.
	PostgreSQL::Test::Utils::append_to_file($dropped, '');
	like(
		$session->ask(
				"SET hrflow_embed.request_timeout = '2s'; "
			  . batch(ids(40, 'q'))
			  . 'RESET hrflow_embed.request_timeout;'),
		qr/^(?:ok 40|ok 3\d\ntimeout [1-7])\n/,
		'a batch stops using a connection over which nothing is received any more');
	is( $session->ask(batch(ids(20, 'r'))),
		"ok 20\n-- done\n",
		'the next statement does not use a dead connection');
	$session->finish;
}

# If an HTTP/2 server refuses a POST by closing the connection, it may have
# processed it.
SKIP:
{
	skip 'nghttp2-proxy is not available', 4 unless $nghttpx;

	my $session = Hrflow::Session->new($node);
	my $opened = 'SELECT max(connections_opened) FROM hrflow_embed_stats;';
	my $texts = q{SELECT status || ' ' || count(*)
		FROM hrflow_text_embeddings((SELECT array_agg('nurse ' || i) FROM generate_series(1, 16) i))
		GROUP BY status;};

	$session->ask(
		"SET hrflow_embed.base_url = 'https://localhost:$nghttpx_port/v1';
			SET hrflow_embed.ca_file = '"
		  . $api->ca
		  . "'; SET hrflow_embed.max_concurrency = 4; SELECT hrflow_embed_stats_reset();");
	is($session->query(batch(ids(16, 's'))), 'ok 16', 'profiles are requested over HTTP/2');
	is($session->query($opened), 1, 'profiles share a connection over HTTP/2');
	is($session->query("$texts $texts"),
		"ok 16\nok 16", 'two batches of texts are sent over HTTP/2');
	is($session->query($opened),
		5, 'texts have connections of their own over HTTP/2, which are kept');
	$session->finish;
}

#
# A backend that is terminated while its probe is in flight
#
sql('SET hrflow_embed.max_attempts = 1; ' . batch(q{'{p1,"fault:status=429,retry_after=1"}'}));
$api->reset;
my $victim = Hrflow::Session->new($node);
$victim->send(batch(q{'{fault:silent}'}));
ok($api->wait_until(sub { $_[0]{requests} > 0 }), 'one backend probes whether the pause is over');
sql('SELECT pg_terminate_backend(' . $victim->pid . ')');
is(sql("SET statement_timeout = '20s'; " . batch(ids(3))),
	'ok 3', 'other backends continue when the backend with the probe has been terminated');
$victim->finish;

#
# A request that waits for its retry
#
$api->reset;
like(
	$node->error_of(
		"SET statement_timeout = '1s'; SET hrflow_embed.max_attempts = 20; "
		  . batch(q{'{fault:status=500}'})),
	qr/^57014/,
	'a statement is canceled while its request waits for a retry');
is(sql(batch(ids(3))), 'ok 3', 'a batch after a canceled retry succeeds');

#
# A 429 that is final
#
$api->reset;
like(
	$node->error_of(
		"SET hrflow_embed.batch_timeout = '2s'; " . batch(q{'{"fault:status=429,retry_after=3"}'})),
	qr/^53400/,
	'a 429 whose pause is longer than the time left to the batch is final');
is(sql(batch(ids(3))), 'ok 3', 'a batch after a final 429 succeeds');
my ($first, $second) = sort { $a <=> $b } answered(qr/profile_id/);
cmp_ok($second - $first, '>', 2900, 'a final 429 makes other requests pause');

#
# A 429 that is answered after the probe of an earlier pause was sent
#
{
	my $met = PostgreSQL::Test::Utils::tempdir();
	my $first = sub {
		my ($what) = @_;
		my $is_first = !-e "$met/$what";
		PostgreSQL::Test::Utils::append_to_file("$met/$what", '');
		return $is_first;
	};
	my $limited = Hrflow::RawPeer->new(
		sub {
			my ($socket) = @_;
			my ($id) = Hrflow::RawPeer::read_request($socket) =~ /profile_id=(\w+)/;
			my $body = '{"code": 200, "message": "ok", "data": {}}';
			my $pause = $id eq 'short' ? 1 : 7;

			if ($id ne 'other' && $first->($id))
			{
				select(undef, undef, undef, 2) if $id eq 'long';
				print $socket
				  "HTTP/1.1 429 Too Many Requests\r\nRetry-After: $pause\r\n",
				  "Content-Length: 0\r\nConnection: close\r\n\r\n";
				return;
			}
			select(undef, undef, undef, 2) if $id eq 'short';    # the probe
			print $socket
			  "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n",
			  'Content-Length: ',
			  length($body), "\r\n\r\n$body";
		});
	my @sessions = map { Hrflow::Session->new($node) } 1 .. 3;
	$_->ask("SET hrflow_embed.base_url = 'http://127.0.0.1:"
		  . $limited->port
		  . "/v1'; SET client_min_messages = warning;")
	  foreach @sessions;
	my $began = time;
	$sessions[0]->send(batch(q{'{short,long}'}) . '\echo -- done');
	select(undef, undef, undef, 2.5);
	$sessions[1]->send(batch(q{'{other}'}) . '\echo -- done');
	select(undef, undef, undef, 1);
	is( $sessions[2]->ask(batch(q{'{other}'})),
		"ok 1\n-- done\n",
		'a batch succeeds after a probe that found the pause over');
	cmp_ok(time - $began,
		'>', 8.9, 'a pause requested while a probe is in flight outlasts the probe');
	is( $sessions[0]->wait_for(qr/-- done/),
		"ok 2\n-- done\n",
		'the batch that was told to pause succeeds after the pause');
	is( $sessions[1]->wait_for(qr/-- done/),
		"ok 1\n-- done\n",
		'a batch that waits for the pause to end succeeds');

	# Only the time shows that the pause was not prolonged.  It is requested after 2 s
	# and takes 7 s; another pause of 7 s would end after 16 s.
	cmp_ok(time - $began, '<', 16, 'a pause is not prolonged by the end of an earlier one');
	$_->finish foreach @sessions;
}

#
# An outage that begins after a long pause.  Eight failures in succession are an
# outage, during which few requests are sent.
#
sql('SET hrflow_embed.max_attempts = 1; ' . batch(q{'{p1,"fault:status=429,retry_after=11"}'}));
$api->reset;
$api->script('status=503', count => 10);
is(sql(batch(ids(200))), 'ok 200', 'a batch outlasts an outage that begins after a pause of 11 s');

#
# Cancellation of a batch that sends no requests, after as many rows as its
# error context says
#
foreach my $case (
	[   'are invalid',
		q{array_fill(''::text, ARRAY[1000000]), NULL,
			(SELECT array_agg('r' || i) FROM generate_series(1, 1000000) i)}
	],
	[ 'remain after a refusal', q{array_cat('{p,"fault:status=402"}', } . ids(1_000_000) . ')' ])
{
	my ($elements, $arguments) = @$case;
	my $session = Hrflow::Session->new($node);
	my $pid = $session->pid;
	my $rows;

	# On a busy machine, the batch may have ended before it is canceled.
	for my $try (1 .. 5)
	{
		$session->send(
			"SET hrflow_embed.max_concurrency = 1;
			SELECT count(*) FROM hrflow_profile_embeddings('acme', $arguments);
			\\echo -- done");
		$node->poll_query_until(
			'postgres',
			"SELECT elements_done > 10 OR state = 'idle' AND query ~ '^SELECT count'
				FROM pg_stat_activity LEFT JOIN hrflow_embed_activity USING (pid)
				WHERE pid = $pid") or die 'the batch neither begins nor ends';
		sql("SELECT pg_cancel_backend($pid)");
		($rows) = $session->wait_for(qr/-- done/) =~ /, (\d+) rows so far/;
		last if defined $rows;
	}
	ok(defined $rows && $rows < 1_000_000, "elements that $elements can be canceled");
	$session->finish;
}

#
# Replies that arrive while the backend is busy
#
my $stalled =
  'array_cat(' . ids(20, 'fault:latency=50,id=') . ", array_fill('p'::text, ARRAY[1000000]))";
foreach my $case ([ 'request_timeout', 'has not timed out' ],
	[ 'batch_timeout', 'is not too late for batch_timeout' ])
{
	my ($setting, $what) = @$case;
	my $rows;

	# On a busy machine, a reply may arrive later than that.
	for my $try (1 .. 5)
	{
		$rows = sql("SET hrflow_embed.$setting = '1s'; " . batch($stalled));
		last if $rows eq 'ok 1000020';
	}
	is($rows, 'ok 1000020', "a reply that arrives while a million rows are stored $what");
}

# Many replies that arrive while the backend is stopped, until batch_timeout has expired.
# The links lead to several hosts, because each may have 32 requests in flight at first.
# A batch submits up to 32 more links after each reply, so some are answered before.
{
	my @listeners =
	  map { IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 64) } 1 .. 5;
	my $links = join ',', map {
		my $i = $_;
		map { 'http://127.0.0.1:' . $_->sockport . "/$i" } @listeners
	} 1 .. 32;
	my $reply = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n[1, 2]";
	my $session = Hrflow::Session->new($node);
	my $select = IO::Select->new(@listeners);
	my $n_answered = 0;
	my @held;

	$session->query(
		q{SET hrflow_embed.link_hosts = '127.0.0.1'; SET hrflow_embed.max_concurrency = 256;
		SET hrflow_embed.connect_timeout = '60s'; SET hrflow_embed.request_timeout = '60s';
		SET hrflow_embed.batch_timeout = '10s';});
	my $began = time;
	$session->start(
		qq{SELECT status, count(*) FROM hrflow_fetch_vectors('{$links}') GROUP BY 1 ORDER BY 1;});
	while ($n_answered + @held < 160 && time < $began + 10)
	{
		my @ready = $select->can_read(0.1);

		foreach my $socket (@ready)
		{
			if (grep { $_ == $socket } @listeners)
			{
				$select->add(scalar $socket->accept);
			}
			elsif (Hrflow::RawPeer::read_request($socket)) { push @held, $socket }
			else                                           { $select->remove($socket) }
		}
		next if @ready || !@held;
		syswrite shift @held, $reply;
		$n_answered++;
	}
	cmp_ok(scalar(@held), '>', 2 * 64, 'a batch has many requests in flight');
	$node->poll_query_until('postgres',
		q{SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = } . $session->pid)
	  or die 'the batch does not wait';
	kill 'STOP', $session->pid;
	syswrite $_, $reply foreach @held;
	sleep 1 while time < $began + 11;
	kill 'CONT', $session->pid;
	is($session->result,
		'ok|160', 'no reply that arrives while the backend is stopped is too late');
	$session->finish;
}

is( sql("SET hrflow_embed.max_attempts = 2; "
		  . batch(q{'{"fault:first=1,status=503,retry_after_date=-2200000000"}'})),
	'ok 1',
	'a Retry-After in the past causes no pause');

#
# A probe without memory for its reply.  A body of 34 MB reserves 64 MB
#
$api->reset;
my $hoarder = Hrflow::Session->new($node);
$hoarder->ask("SET hrflow_embed.max_response_size = '64MB'; SET hrflow_embed.max_concurrency = 2;");
$hoarder->send(
	batch(q{'{"fault:big=40000000,stall=34000000","fault:hold=2","fault:big=3000000"}'}));
$api->wait_until(sub { $_[0]{requests} >= 2 }) or die;
$node->error_of(
	'SET hrflow_embed.max_attempts = 1; ' . batch(q{'{"fault:status=429,retry_after=1"}'}));
$api->release(2);
ok( $api->wait_until(sub { ($_[0]{by_status}{200} // 0) >= 4 }),
	'a probe is sent although there is no memory for its reply');
is(sql(batch(ids(3))), 'ok 3', 'other backends continue when a probe has no memory for its reply');
is(sql('SELECT state FROM pg_stat_activity WHERE pid = ' . $hoarder->pid),
	'active', 'a probe still has no memory for its reply when other backends have continued');
sql('SELECT pg_terminate_backend(' . $hoarder->pid . ')');
$hoarder->finish;

#
# The end of a batch that was refused
#
my $refused;
foreach my $limit (@limits)
{
	$refused = sql(
		"SET hrflow_embed.batch_timeout = '$limit'; SET hrflow_embed.max_concurrency = 2;
		SET hrflow_embed.link_hosts = '127.0.0.1';"
		  . batch(q{'{fault:v.silent,fault:status=402,p}'}, 'hrflow_profile_vectors'));
	last if $refused =~ /over_quota 2/;
}
is( $refused,
	"over_quota 2\ntimeout 1",
	'a link that was not fetched in time does not have the status over_quota');

$api->reset;
is( sql("SET hrflow_embed.link_hosts = '127.0.0.1'; SET hrflow_embed.max_concurrency = 3;" . batch(
			q{'{"fault:v.first=1,v.status=503,v.retry_after=1","fault:status=503,retry_after=2",
			"fault:latency=500,status=402"}'},
			'hrflow_profile_vectors')),
	"ok 1\nover_quota 2",
	'a refusal ends the retries of profiles, but not those of links');
is(scalar(answered(qr/status=503,retry|status%3D503%2Cretry/)),
	1, 'a profile that waits for its retry is not requested again after a refusal');

#
# More values in a reply than any answer has
#
my $many = Hrflow::RawPeer->new(
	sub {
		my ($socket) = @_;
		my $body = '{"code": 200, "data": {"a": [' . '0,' x 1_000_000 . '0]}}';
		Hrflow::RawPeer::read_request($socket);
		print $socket "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
		  . length($body)
		  . "\r\n\r\n$body";
	});
like(
	$node->error_of(
			"SET hrflow_embed.base_url = 'http://127.0.0.1:"
		  . $many->port
		  . "/v1'; SELECT hrflow_profile_embedding('acme', 'p');"),
	qr/^08P01/,
	'a reply with a million values is refused');

#
# Too large a header
#
$api->reset;
is(sql(batch(q{'{fault:header_size=150000}'})),
	'too_large 1', 'a reply with a header of 150 kB is refused');
is(scalar(answered(qr/header_size/)), 1, 'a reply with a header of 150 kB is not requested again');

#
# Scarce descriptors.  A third of those of a backend are reserved for code
# outside of PostgreSQL
#
my $few = Hrflow::Node->new('few', $api, max_attempts => 1, max_files_per_process => 100);
my $few_batch =
  'SET hrflow_embed.max_concurrency = 200; ' . batch(ids(300, 'fault:latency=20,id='));
$api->reset;
is($few->safe_psql('postgres', $few_batch), 'ok 300', 'a batch succeeds with few file descriptors');
cmp_ok($api->stats->{max_in_flight},
	'<', 32, 'a batch with few file descriptors has fewer requests in flight');
SKIP:
{
	skip 'dblink is not available',
	  3
	  unless $few->safe_psql('postgres',
		q{SELECT count(*) FROM pg_available_extensions WHERE name = 'dblink'});
	my $self = $few->connstr('postgres');
	my $take_all = qq{DO \$\$ BEGIN
			FOR i IN 1 .. 100 LOOP
				PERFORM dblink_connect('c' || i, \$c\$$self\$c\$);
			END LOOP;
		EXCEPTION WHEN OTHERS THEN
			NULL;
		END \$\$;};
	$few->safe_psql('postgres', 'CREATE EXTENSION dblink');

	# From 16 on dblink needs another descriptor while it connects, and leaves that one.
	my $takes_all = $few->pg_version < 16;
	my $error = $few->error_of("$take_all\n$few_batch");
	like(
		$error,
		$takes_all ? qr/^53000: could not wait for the network/ : qr/^$/,
		'a batch that begins without any free descriptor says so, where it needs one');
	$api->reset;
	my $silent = $api->stats->{in_flight};    # since before
	is( $few->safe_psql('postgres', batch(q{'{fault:reset}'}) . "$take_all\n$few_batch"),
		"connection_failed 1\nok 300",
		'a batch in a session that already has a descriptor succeeds');
	cmp_ok(
		$api->stats->{max_in_flight} - $silent,
		'<=',
		$takes_all ? 1 : 3,
		'a batch that is left with one descriptor sends its requests one after another');
}

if ($nghttpx)
{
	$nghttpx->signal('TERM');
	$nghttpx->finish;
}

done_testing();
