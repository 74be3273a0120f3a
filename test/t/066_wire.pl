# Details of the protocol: encodings, a proxy that refuses, broken connections,
# servers that use TLS.  A regression test could see neither requests nor time.
use strict;
use warnings FATAL => 'all';
use Hrflow::Http2Peer;
use Hrflow::Node;
use Hrflow::Proxy;
use Hrflow::RawPeer;
use Hrflow::Session;
use Hrflow::StandIn;
use POSIX                   ();
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(time);

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new(
	'wire', $api,
	shared_preload_libraries => 'hrflow_embed',
	ca_file => $api->ca,
	max_attempts => 2);

sub sql { return $node->safe_psql('postgres', @_); }

sub status_of
{
	my ($id, $set) = @_;

	$set //= '';
	return sql("$set SELECT status FROM hrflow_profile_embeddings('acme', ARRAY['$id'])");
}

# Count connections of a session's backend to a port in a TCP state: 01 is
# ESTABLISHED; in 08, CLOSE_WAIT, the peer has closed the connection, but the
# backend has not.
sub count_connections
{
	my ($session, $port, $state) = @_;
	my $remote = sprintf ':%04X', $port;
	my %inodes = map { (readlink($_) // '') =~ /^socket:\[(\d+)\]/ ? ($1 => 1) : () }
	  glob('/proc/' . $session->pid . '/fd/*');

	# The third column is the peer, the fourth the state, the tenth the inode.
	return scalar grep {
		my @columns = split;
		$columns[2] =~ /$remote$/ && $columns[3] eq $state && $inodes{ $columns[9] }
	} split /\n/, PostgreSQL::Test::Utils::slurp_file('/proc/net/tcp');
}

#
# Encodings
#
foreach my $case (
	[ 'coding=gzip', 'ok', 'a reply in gzip is read' ],
	[ 'coding=x-gzip', 'ok', 'a reply in x-gzip is read' ],
	[ 'members=3', 'ok', 'a reply in gzip of three members is read' ],
	[ 'coding=aws-chunked', 'ok', 'the encoding aws-chunked denotes no transformation' ],
	[ 'coding=AWS-Chunked', 'ok', 'the encoding AWS-Chunked denotes no transformation' ],
	[ 'coding=identity', 'ok', 'the encoding identity denotes no transformation' ],
	[ 'coding=none', 'ok', 'the encoding none denotes no transformation' ],
	[ 'coding=gzip+aws-chunked', 'ok', 'gzip beside aws-chunked is read' ],
	[ 'coding=gzip+identity', 'ok', 'gzip beside identity is read' ],
	[ 'coding=gzip+none', 'ok', 'gzip beside none is read' ],
	[ 'coding=zstd', 'invalid_reply', 'a reply in zstd, which was not asked for, is refused' ],
	[ 'coding=br', 'invalid_reply', 'a reply in brotli, which was not asked for, is refused' ],
	[   'coding=deflate', 'invalid_reply',
		'a reply in deflate, which was not asked for, is refused' ])
{
	my ($fault, $status, $name) = @$case;
	is(status_of("fault:$fault,id=x"), $status, $name);
}

# A header of 128 bytes and 2,032 doubles are the 16 kB that are decompressed at
# a time.
{
	my $exact = Hrflow::StandIn->new('--dim' => 2032);
	is( sql(    "SET hrflow_embed.base_url = '"
			  . $exact->base_url
			  . q{'; SET hrflow_embed.link_hosts = '127.0.0.1';
				SELECT status, cardinality(vector)
				FROM hrflow_profile_vectors('acme', '{"fault:v.gzip,v.dtype=<f8"}',
					'{"profile": 1}')}),
		'ok|2032',
		'a reply in gzip is read that ends where the buffer does');
}

sql('SELECT hrflow_embed_stats_reset()');
is(status_of('fault:empty_blocks=200000000'),
	'too_large', 'gzip that holds nothing is received up to the limit of a reply');
cmp_ok(sql('SELECT bytes_received FROM hrflow_embed_stats'),
	'<', 6_000_000, 'bytes_received counts what was received, and that is limited');

#
# A proxy that refuses the password, and may lock an account after a few wrong
# ones
#
{
	my $proxy = Hrflow::Proxy->new(
		user => 'u',
		password => 'right',
		port => $api->https);
	my $through = sub {
		my ($password) = @_;
		return "SET hrflow_embed.proxy = 'http://u:$password\@127.0.0.1:" . $proxy->port . q{';
			SET hrflow_embed.base_url = 'https://api.store.example/v1';};
	};
	my $batch = q{SELECT status, count(*) FROM hrflow_profile_embeddings('acme',
		(SELECT array_agg('fault:latency=100,id=' || i) FROM generate_series(1, 200) i))
		GROUP BY status};
	my ($result, $out, $err) = $node->psql(
		'postgres',
		$through->('wrong') . $batch,
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like(
		$err,
		qr/ERROR:  28000: proxy in "hrflow_embed.proxy" refused/,
		'a 407 of the proxy ends the batch');
	unlike($err, qr/wrong/, 'the error does not show the password');
	is( join(', ', $proxy->connects),
		'api.store.example:443 407',
		'a batch sends a wrong password to the proxy once');

	# The API of the second case is on the local machine.
	my $local = Hrflow::StandIn->new('--link-base' => 'https://links.store.example');
	foreach my $case (
		[   'links',
			$api,
			q{SELECT count(*) FROM hrflow_fetch_vectors(
			ARRAY(SELECT 'https://links.store.example/' || i FROM generate_series(1, 200) i))} ],
		[   'links in replies',
			$local,
			q{SELECT count(*) FROM hrflow_profile_vectors('acme',
			ARRAY(SELECT 'p' || i FROM generate_series(1, 200) i), '{"profile": 1, "skills": 1}')}
		])
	{
		my ($what, $server, $sql) = @$case;

		$proxy->reset;
		($result, $out, $err) = $node->psql(
			'postgres',
			$through->('wrong')
			  . "SET hrflow_embed.base_url = '"
			  . $server->base_url
			  . "'; SET hrflow_embed.link_hosts = 'links.store.example'; $sql",
			extra_params => [ '-v', 'VERBOSITY=verbose' ]);
		like(
			$err,
			qr/ERROR:  28000: proxy in "hrflow_embed.proxy" refused/,
			"a 407 of the proxy ends a batch of $what");
		is( join(', ', $proxy->connects),
			'links.store.example:443 407',
			"a batch of $what sends a wrong password to the proxy once");
	}
	cmp_ok(scalar($local->log), '<', 150,
		'a 407 of the proxy for a link stops a batch of profiles');

	# A pause of the account does not end because the proxy refuses its probe.  If it
	# did, all requests would be sent at once.
	$api->reset;
	($result, $out, $err) = $node->psql(
		'postgres',
		$through->('right')
		  . q{SET hrflow_embed.max_attempts = 1;
			SELECT hrflow_profile_embedding('acme', 'fault:status=429,retry_after=1');
			SELECT pg_sleep(1.2);}
		  . $through->('wrong')
		  . q{SELECT hrflow_profile_embedding('acme', 'probe');}
		  . $through->('right')
		  . q{SELECT status, count(*) FROM hrflow_profile_embeddings('acme',
			(SELECT array_agg('fault:latency=600,id=' || i) FROM generate_series(1, 8) i))
			GROUP BY status},
		on_error_stop => 0);
	like($err, qr/limited the rate.*proxy in .* refused/s, 'a probe is refused by the proxy');
	like($out, qr/^ok\|8$/m, 'a batch succeeds after the proxy has refused a probe');
	my @begun = sort { $a <=> $b } map { $_->{begun} } grep { $_->{status} == 200 } $api->log;
	is(scalar(grep { $_ < $begun[0] + 500 } @begun),
		1, 'after a probe that the proxy refused, another is sent alone');
	note('begun after ', join ' ', map { $_ - $begun[0] } @begun);

	sql(q{SELECT hrflow_create_store('proxied'); SELECT hrflow_track('proxied', 'acme',
		(SELECT array_agg('proxied' || i) FROM generate_series(1, 300) i))});
	foreach my $run ('first', 'second')
	{
		$proxy->reset;
		($result, $out, $err) = $node->psql(
			'postgres',
			$through->('wrong') . q{SET application_name = pg_cron; CALL hrflow_refresh('proxied')},
			extra_params => [ '-v', 'VERBOSITY=verbose' ]);
		like(
			$err,
			qr/ERROR:  28000: refresh of public\.proxied was stopped: proxy /,
			"a 407 of the proxy ends the $run scheduled refresh");
		is( join(', ', $proxy->connects),
			'api.store.example:443 407',
			"the $run scheduled refresh sends a wrong password to the proxy once");
	}
	is( sql(q{SELECT count(*) FROM proxied_profile WHERE attempts > 0 OR lease_until IS NOT NULL}),
		'0', 'a 407 of the proxy does not count as an attempt of a profile');

	$proxy->reset;
	$api->reset;

	# The replies to 8 requests are held until all 8 are in flight.
	is( sql($through->('right') . $batch =~ s/fault:latency=100,id=' \|\| i/' || CASE
			WHEN i BETWEEN 41 AND 48 THEN 'fault:hold=8,id=' ELSE 'p' END || i/r),
		'ok|200',
		'a batch succeeds through a proxy whose password is right');
	cmp_ok($api->stats->{max_in_flight},
		'>=', 8, 'many requests are in flight once the proxy has accepted the password');
	sql(q{SELECT hrflow_drop_store('proxied')});

	# The server behind the proxy is not trusted
	$proxy->reset;
	is( sql($through->('right')
			  . q{SET hrflow_embed.ca_file = '';
			SELECT status, count(*) FROM hrflow_profile_embeddings('acme', '{a,b,c}')
			GROUP BY status}),
		'connection_failed|3',
		'a failure behind a proxy is not a refusal by the proxy');
	is( join(', ', $proxy->connects),
		join(', ', ('api.store.example:443 200') x 3),
		'a failure behind a proxy does not end the batch');
}

# Neither a connection that fails nor a request that bypasses the proxy shows that the
# proxy accepts the password.
{
	my $proxy = Hrflow::Proxy->new(user => 'u', password => 'right', drop => 1);
	my $local = $api->base_url . "/x";
	my ($result, $out, $err) = $node->psql(
		'postgres',
		"SET hrflow_embed.proxy = 'http://u:wrong\@127.0.0.1:"
		  . $proxy->port
		  . qq{'; SET hrflow_embed.base_url = 'https://api.store.example/v1';
			SET hrflow_embed.link_hosts = '127.0.0.1';
			SELECT count(*) FROM hrflow_fetch_vectors(array['$local', '$local']);
			SELECT status, count(*) FROM hrflow_profile_embeddings('acme',
				(SELECT array_agg('p' || i) FROM generate_series(1, 200) i)) GROUP BY status});
	is($out, '2', 'links to the local machine are fetched without the proxy');
	is( join(', ', $proxy->connects),
		'api.store.example:443 dropped, api.store.example:443 407',
		'after a local request and a broken connection, a wrong password is sent once');
}

# A password that the proxy accepted may be changed.  If that was long ago, a batch sends it once,
# even if a connection has been kept.  If a call has just been refused, so does the next batch.
foreach my $is_idle (1, 0)
{
	my $proxy = Hrflow::Proxy->new(user => 'u', password => 'old', port => $api->https);
	my $session = Hrflow::Session->new($node);
	my $id = $is_idle ? 'p' : 'fault:close';
	my $when = $is_idle ? 'long ago' : 'just before';
	my $is_refused = sub {
		my ($statement, $name) = @_;

		$proxy->reset;
		eval { $session->query($statement) };
		like(
			$@,
			qr/ERROR:.*proxy in .* refused/,
			"$name fails if a proxy has changed a password that it accepted $when");
		is( join(', ', $proxy->connects),
			'api.store.example:443 407',
			"$name sends a password once that was accepted $when");
	};

	is( $session->query(
				"SET hrflow_embed.proxy = 'http://u:old\@127.0.0.1:"
			  . $proxy->port
			  . qq{'; SET hrflow_embed.base_url = 'https://api.store.example/v1';
				SELECT hrflow_profile_embedding('acme', '$id') IS NOT NULL;}),
		't',
		"a proxy accepts a password $when");
	$proxy->change_password('new');
	if ($is_idle) { $session->query('SELECT pg_sleep(21);') }
	else          { $is_refused->(q{SELECT hrflow_profile_embedding('acme', 'p');}, 'a call') }
	$is_refused->(
		q{SELECT count(*) FROM hrflow_profile_embeddings('acme',
			(SELECT array_agg('p' || i) FROM generate_series(1, 200) i));},
		'a batch');
	$session->finish;
}

# A proxy whose password has not been accepted yet does not hold up requests that bypass it.
# The replies are held until all 8 requests are in flight.
is( sql(q{SET hrflow_embed.proxy = 'http://u:wrong@127.0.0.1:9';
		SET hrflow_embed.request_timeout = '5s';
		SELECT status, count(*) FROM hrflow_profile_embeddings('acme',
			(SELECT array_agg('fault:hold=8,id=' || i) FROM generate_series(1, 8) i)) GROUP BY 1}),
	'ok|8',
	'requests to the local machine are in flight together, whatever the proxy');

# SOCKS5 refuses a password in its own way (RFC 1928 and 1929).
{
	my $log = PostgreSQL::Test::Utils::tempdir() . '/log';
	my $proxy = Hrflow::RawPeer->new(
		sub {
			my ($socket) = @_;
			sysread($socket, my $methods, 257);
			syswrite($socket, "\x05\x02");
			sysread($socket, my $credentials, 513);
			PostgreSQL::Test::Utils::append_to_file($log, "refused\n");
			syswrite($socket, "\x01\x01");
		});
	my ($result, $out, $err) = $node->psql(
		'postgres',
		"SET hrflow_embed.proxy = 'socks5h://u:wrong\@127.0.0.1:"
		  . $proxy->port . q{';
			SET hrflow_embed.base_url = 'https://api.store.example/v1';
			SELECT status FROM hrflow_profile_embeddings('acme',
				(SELECT array_agg('p' || i) FROM generate_series(1, 200) i))},
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like(
		$err,
		qr/ERROR:  28000: proxy in "hrflow_embed.proxy" refused.*SOCKS5/s,
		'a refusal by a SOCKS5 proxy ends the batch');
	is(PostgreSQL::Test::Utils::slurp_file($log),
		"refused\n", 'a batch sends a wrong password to a SOCKS5 proxy once');
}

#
# A connection over which nothing is acknowledged
#
{
	my $deaf = Hrflow::RawPeer->new(sub { sleep 600; });
	my ($result, $out, $err) = $node->psql(
		'postgres',
		"SET hrflow_embed.base_url = 'http://127.0.0.1:"
		  . $deaf->port . q{/v1';
		SET hrflow_embed.connect_timeout = '1s'; SET hrflow_embed.max_attempts = 1;
		SELECT hrflow_text_embedding(repeat('text ', 200000))});

	# At request_timeout, the error would be that there was no reply in time.
	like(
		$err,
		qr/lost the connection/,
		'a connection that takes no more bytes is given up before request_timeout');
}

#
# Kept connections that break: each gets one answer, and is closed when the next
# request has been read.  libcurl sends that request again by itself
#
{
	my $log = PostgreSQL::Test::Utils::tempdir() . '/log';
	my $breaking = Hrflow::RawPeer->new(
		sub {
			my ($socket) = @_;
			my $body = '{"code": 200, "message": "ok", "data": {}}';

			for my $is_first (1, 0)
			{
				Hrflow::RawPeer::read_request($socket) // return;
				PostgreSQL::Test::Utils::append_to_file($log, time . "\n");
				print $socket "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",
				  'Content-Length: ', length($body), "\r\n\r\n$body"
				  if $is_first;
			}
		});

	# One request every 50 ms, after a burst of one second.
	my $began = time;
	is( sql("SELECT hrflow_embed_stats_reset(); SET hrflow_embed.max_requests_per_minute = 1200;
			SET hrflow_embed.max_concurrency = 1; SET hrflow_embed.max_attempts = 1;
			SET hrflow_embed.base_url = 'http://127.0.0.1:" . $breaking->port . q{/v1';
			SELECT status, count(*) FROM hrflow_profile_embeddings('acme',
				(SELECT array_agg('p' || i) FROM generate_series(1, 30) i)) GROUP BY 1;
			SELECT requests, retries FROM hrflow_embed_stats}
		),
		"\nok|30\n59|29",
		'requests that libcurl sends again by itself are counted as requests and as retries');
	my @received = split /\n/, PostgreSQL::Test::Utils::slurp_file($log);
	is(scalar(@received), 59, 'the server has received as many requests as were counted');
	cmp_ok(
		$received[-1] - $began,
		'>',
		(59 - 20 - 2) * 0.05,
		'requests that libcurl sends again by itself count towards the rate');

	my $session = Hrflow::Session->new($node);
	my $n_before;
	$session->ask(
		"SET hrflow_embed.max_requests_per_statement = 1; SET hrflow_embed.base_url = 'http://127.0.0.1:"
		  . $breaking->port
		  . "/v1';");
	is( $session->ask("SELECT hrflow_profile_embedding('acme', 'p');"),
		"{}\n-- done\n",
		'a statement sends its only request');
	$n_before = () = PostgreSQL::Test::Utils::slurp_file($log) =~ /\n/g;
	like(
		$session->ask("SELECT hrflow_profile_embedding('acme', 'q');"),
		qr/ERROR:  08006: lost the connection/,
		'a statement whose only request is lost fails');
	is((() = PostgreSQL::Test::Utils::slurp_file($log) =~ /\n/g) - $n_before,
		1, 'libcurl does not send a request again beyond the limit of a statement');
	$session->finish;
}

#
# A reply that nobody requested, on a kept connection: it must not be taken for the reply
# to the next request.  libcurl 7.88 and 8.22 would do that
#
foreach my $scheme ('http', 'https')
{
	my $strays = PostgreSQL::Test::Utils::tempdir() . '/strays';
	my ($peer, $base_url);

	if ($scheme eq 'http')
	{
		$peer = Hrflow::RawPeer->new(
			sub {
				my ($socket) = @_;

				while (Hrflow::RawPeer::read_request($socket))
				{
					foreach my $data ('{}', '{"stray": 1}')
					{
						my $body = qq({"code": 200, "message": "ok", "data": $data});
						print $socket "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",
						  'Content-Length: ', length($body), "\r\n\r\n$body";
						select(undef, undef, undef, 0.05) if $data eq '{}';
					}
					PostgreSQL::Test::Utils::append_to_file($strays, "stray\n");
				}
			});
		$base_url = 'http://127.0.0.1:' . $peer->port . '/v1';
	}
	else
	{
		$peer = Hrflow::Http2Peer->new('stray', $api);
		$base_url = $peer && $peer->base_url;
		$strays = $peer && $peer->{log};
	}

	SKIP:
	{
		skip 'Python with TLS is not installed', 3 unless $peer;
		my $session = Hrflow::Session->new($node);

		$session->ask(
			"SET hrflow_embed.base_url = '$base_url'; SET hrflow_embed.max_attempts = 1;");
		foreach my $n (1 .. 3)
		{
			is( $session->ask("SELECT hrflow_profile_embedding('acme', 'p$n');"),
				"{}\n-- done\n",
				"call $n over $scheme gets its own reply");
			for (1 .. 500)
			{
				last
				  if -e $strays
				  && (() = PostgreSQL::Test::Utils::slurp_file($strays) =~ /^stray/mg) >= $n;
				select(undef, undef, undef, 0.02);
			}
		}
		$session->finish;
	}
}

#
# A connection that the server closes just after its reply: a text must not be sent over
# it, because a POST that was lost is not sent again
#
foreach my $scheme ('http', 'https')
{
	my $replied = PostgreSQL::Test::Utils::tempdir() . '/replied';
	my $to = $scheme eq 'http' ? $api->http : $api->https;
	my $closing = Hrflow::RawPeer->new(
		sub {
			my ($socket, $n) = @_;
			local $SIG{ALRM} = sub { POSIX::_exit(0) if -e $replied && -s $replied > $n };

			Time::HiRes::ualarm(20_000, 20_000);
			Hrflow::RawPeer::forward($socket, $to);
		});
	my $session = Hrflow::Session->new($node);

	$session->ask("SET hrflow_embed.base_url = '$scheme://localhost:"
		  . $closing->port
		  . "/v1'; SET hrflow_embed.max_attempts = 1;");
	$api->reset;
	foreach my $n (1 .. 4)
	{
		is($session->ask("SELECT cardinality(hrflow_text_embedding('text $n')) > 0;"),
			"t\n-- done\n", "text $n over $scheme is not sent over a closed connection");
		PostgreSQL::Test::Utils::append_to_file($replied, '.');
		for (1 .. 500)
		{
			last if count_connections($session, $closing->port, '01') == 0;
			select(undef, undef, undef, 0.02);
		}
		is(count_connections($session, $closing->port, '01'),
			0, "the connection is closed after text $n over $scheme");
	}
	is($api->stats->{requests}, 4, "each text is sent once over $scheme");
	$session->finish;
}

#
# Connections that are kept needlessly
#
foreach my $scheme ('http', 'https')
{
	my $over = PostgreSQL::Test::Utils::tempdir() . '/over';
	my $to = $scheme eq 'http' ? $api->http : $api->https;
	my $closing = Hrflow::RawPeer->new(
		sub {
			my ($socket, $n) = @_;
			local $SIG{ALRM} = sub { POSIX::_exit(0) if $n < 64 && -e $over };

			Time::HiRes::ualarm(100_000, 100_000);
			Hrflow::RawPeer::forward($socket, $to);
		});
	my $session = Hrflow::Session->new($node);
	my $batch = q{SELECT status, count(*) FROM hrflow_profile_embeddings('acme',
		(SELECT array_agg('fault:latency=1000,id=' || i) FROM generate_series(1, 64) i))
			GROUP BY 1;};

	is( $session->ask(
				"SET hrflow_embed.base_url = '$scheme://localhost:"
			  . $closing->port
			  . "/v1'; SET hrflow_embed.connect_timeout = '60s';"
			  . " SET hrflow_embed.max_concurrency = 64; $batch"),
		"ok|64\n-- done\n",
		"a batch makes connections over $scheme");
	PostgreSQL::Test::Utils::append_to_file($over, '');
	foreach (1 .. 500)
	{
		last if count_connections($session, $closing->port, '01') == 0;
		select(undef, undef, undef, 0.02);
	}
	cmp_ok(count_connections($session, $closing->port, '08'),
		'>=', 16, "the server closes the connections of an idle backend over $scheme");

	# libcurl 8.22 may need some time to shut TLS down, and looks for connections that the
	# server has closed at most once a second.
	my $closed;
	foreach (1 .. 5)
	{
		select(undef, undef, undef, 0.5);
		$session->ask("SELECT hrflow_profile_embedding('acme', 'p');");
		$closed = count_connections($session, $closing->port, '08');
		last if $closed <= 1;
	}
	cmp_ok($closed, '<=', 1, "the next calls close what the server has closed over $scheme");
	$session->finish;
}

{
	my $session = Hrflow::Session->new($node);
	my ($before, %printed);

	# The number of requests in flight grows only while the CPU is not busy.
	for (my $try = 0; ($before // 0) < 80 && $try < 20; $try++)
	{
		$printed{
			$session->ask(
				q{SET hrflow_embed.max_concurrency = 100;
				SELECT status, count(*) FROM hrflow_profile_embeddings('acme',
					(SELECT array_agg('fault:latency=500,id=' || i)
						FROM generate_series(1, 300) i)) GROUP BY 1;}) }++;
		$before = $session->sockets;
	}
	is( join('', sort keys %printed),
		"ok|300\n-- done\n",
		'a batch with 100 requests in flight succeeds');
	cmp_ok($before, '>=', 80, 'the connections of a batch with 100 requests in flight are kept');
	$session->ask(
		"SET hrflow_embed.max_concurrency = 1; SELECT hrflow_profile_embedding('acme', 'p');");
	cmp_ok(
		$session->sockets, '<',
		$before - 30,
		'connections beyond the limit are closed when max_concurrency has been lowered');
	$session->finish;
}

#
# Links are sent byte for byte, because their signature depends on that
#
{
	my $log = PostgreSQL::Test::Utils::tempdir() . '/log';
	my $store = Hrflow::RawPeer->new(
		sub {
			my ($socket) = @_;
			my ($target) = Hrflow::RawPeer::read_request($socket) =~ /^GET (\S+) HTTP/;
			PostgreSQL::Test::Utils::append_to_file($log, "$target\n");
			print $socket "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
		});
	my @targets = (
		'/a%2fb%c3%a9/x.hflw?X-Amz-Credential=a%2fb%2Fc&X-Amz-Signature=0f',
		'/A%2FB%C3%A9/x.hflw?y=%c3%A9',
		'/%7euser/~user/..%2f/a//b/%2E%2e/x.hflw?a+b=%20&&c=/?d',
		"/a!\$&'()*+,;=:\@b/x.hflw?");
	foreach my $target (@targets)
	{
		my $link = 'http://127.0.0.1:' . $store->port . $target;
		sql("SET hrflow_embed.link_hosts = '127.0.0.1';
			SELECT status FROM hrflow_fetch_vectors(ARRAY[\$link\$$link\$link\$])");
	}
	is( PostgreSQL::Test::Utils::slurp_file($log),
		join('', map { "$_\n" } @targets),
		'the path and the query of a link arrive byte for byte');
}

#
# HTTP/1.1 over TLS
#
{
	my $set =
		"SET hrflow_embed.base_url = '"
	  . $api->base_url('https')
	  . q{'; SET hrflow_embed.request_timeout = '5s';};
	is( sql("$set SELECT status || ' ' || count(*) FROM hrflow_profile_embeddings('acme',
			(SELECT array_prepend('fault:silent', array_agg('p' || i))
				FROM generate_series(1, 31) i)) GROUP BY status ORDER BY 1"
		),
		"ok 31\ntimeout 1",
		'elements with an answer do not wait for one without over TLS');
	is( sql("$set SET hrflow_embed.http_version = '1.1';
		SELECT status FROM hrflow_profile_embeddings('acme', ARRAY['p1'])"),
		'ok',
		'http_version = 1.1 is used over TLS');

	# Requests must not wait for a connection that the server will close.  No reply is
	# sent before all 20 requests are in flight.
	my $closing = Hrflow::StandIn->new('--close');
	is( sql(    "SET hrflow_embed.base_url = '"
			  . $closing->base_url('https')
			  . "'; SET hrflow_embed.ca_file = '"
			  . $closing->ca
			  . q{'; SELECT status, count(*) FROM hrflow_profile_embeddings('acme',
				(SELECT array_agg('fault:hold=20,id=' || i) FROM generate_series(1, 20) i))
				GROUP BY status}
		),
		'ok|20',
		'requests do not wait for each other at a server that closes each connection');

	# Connection 5 is reset during its handshake.
	my $resetting = Hrflow::RawPeer->new(
		sub {
			my ($socket, $n) = @_;
			return Hrflow::RawPeer::forward($socket, $api->{https}) if $n != 5;
			sysread($socket, my $hello, 16384);
			Hrflow::RawPeer::reset_connection($socket);
		});
	is( sql(    "SET hrflow_embed.base_url = 'https://localhost:"
			  . $resetting->port
			  . "/v1'; SET hrflow_embed.max_attempts = 1;
			SET hrflow_embed.connect_timeout = '60s'; SET hrflow_embed.request_timeout = '90s';
			SELECT status || ' ' || count(*) FROM hrflow_profile_embeddings('acme',
				(SELECT array_agg('fault:latency=500,id=' || i) FROM generate_series(1, 32) i))
			GROUP BY status ORDER BY 1"
		),
		"connection_failed 1\nok 31",
		'a handshake that is reset fails its own request and no other');
}

done_testing();
