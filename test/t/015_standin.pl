# The stand-in API and the peers of other tests behave as specified, in cases in
# which the tests that rely on them could not tell: limits of an account, the
# script, the encodings of bodies, and what a proxy refuses.  This test uses no
# database.
use strict;
use warnings FATAL => 'all';
use Hrflow::Proxy;
use Hrflow::RawPeer;
use Hrflow::StandIn;
use HTTP::Tiny;
use IO::Socket::INET;
use IO::Uncompress::Gunzip  qw(gunzip $GunzipError);
use List::Util              qw(max min sum);
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(sleep);

my $query = 'profile/embedding?source_id=acme&fields=%7B%22profile%22:1%7D&profile_id=';

sub ask
{
	my ($api, $id) = @_;
	return HTTP::Tiny->new(timeout => 5, keep_alive => 0)->get(
		$api->base_url . "/$query" . ($id // 'nurse-1'),
		{ headers => { 'X-API-KEY' => $Hrflow::StandIn::KEY } });
}

sub statuses
{
	my ($api, $n) = @_;
	return join ' ', map { ask($api)->{status} } 1 .. $n;
}

# Send several requests at the same time.  Returns the statuses of the responses
# in the order of the log.
sub ask_at_once
{
	my ($api, $n) = @_;
	my @sockets =
	  map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $api->http) or die $@ }
	  1 .. $n;

	my $request = "GET /v1/${query}nurse-1 HTTP/1.1\r\nHost: a\r\n"
	  . "X-API-KEY: $Hrflow::StandIn::KEY\r\nConnection: close\r\n\r\n";
	print $_ $request foreach @sockets;
	foreach my $socket (@sockets) { local $/; <$socket>; }
	return map { $_->{status} } $api->log;
}

#
# The rate
#
foreach my $case (
	[ [], qr/^(?:[1-9]|10)$/, 'the seconds until the next is admitted' ],
	[ [ '--retry-after' => 'none' ], qr/^none$/, 'nothing' ],
	[ [ '--retry-after' => '0' ], qr/^0$/, '0' ],
	[ [ '--retry-after' => 'soon' ], qr/^soon$/, 'a word' ],
	[ [ '--retry-after' => '86400' ], qr/^86400$/, 'a day' ],
	[ [ '--retry-after' => 'past' ], qr/^\w{3}, .* GMT$/, 'a date that is past' ])
{
	my ($options, $expected, $name) = @$case;
	my $api =
	  Hrflow::StandIn->new('--rate' => '3/10', '--rate-headers' => 'X-RateLimit', @$options);

	is(statuses($api, 3),
		'200 200 200', "requests within the rate are answered, with a Retry-After of $name");
	my $refused = ask($api);
	is($refused->{status}, 429, "a request over the rate is refused, with a Retry-After of $name");
	like($refused->{headers}{'retry-after'} // 'none', $expected, "Retry-After gives $name");
	is(join(' ', map { $refused->{headers}{"x-ratelimit-$_"} } qw(limit remaining)),
		'3 0', "the other headers give the limit, with a Retry-After of $name");
}
{
	my $api = Hrflow::StandIn->new('--rate' => '3/10', '--latency' => 1000);
	my @statuses = ask_at_once($api, 5);

	is( join(' ', sort @statuses),
		'200 200 200 429 429',
		'the fourth of five requests that come at once is refused');
	my ($first) =
	  sort { $a->{number} <=> $b->{number} } grep { $_->{status} == 429 } $api->log;
	is($first->{in_flight}, 4, 'the log tells how many requests were in flight');
}
foreach my $case ([ [], 429 ], [ ['--free-refusals'], 200 ])
{
	my ($options, $expected) = @$case;
	my @statuses;

	# On a busy machine a request may be late.
	for my $try (1 .. 5)
	{
		my $api = Hrflow::StandIn->new('--rate' => '1/4', @$options);

		ask($api);
		@statuses = map { sleep 2.2; ask($api)->{status} } 1 .. 2;
		last if "@statuses" eq "429 $expected";
	}
	is($statuses[0], 429, 'a request within the period of the rate is refused');
	is($statuses[1], $expected,
		'a refused request ' . (@$options ? 'does not count with --free-refusals' : 'counts'));
}

#
# Requests served at a time
#
{
	my $api = Hrflow::StandIn->new('--serve' => 2, '--latency' => 100);

	# A busy machine may answer late, but not early.
	ask_at_once($api, 10);
	my @log = $api->log;
	my $begun = min(map { $_->{begun} } @log);
	my @ms = sort { $a <=> $b } map { $_->{ms} - $begun } @log;
	is(scalar(grep { $ms[$_] < 100 * (1 + int($_ / 2)) - 1 } 0 .. 9),
		0, 'of ten requests of 100 ms, two are served at the same time');

	# Requests that do not wait for each other are not queued.  A busy machine may delay even
	# these.
	my $queued = max(map { $_->{ms} - $_->{begun} } @log);
	my $alone;
	for my $try (1 .. 5)
	{
		$api->reset;
		statuses($api, 5);
		$alone = min(map { $_->{ms} - $_->{begun} } $api->log);
		last if $alone < $queued;
	}
	cmp_ok($alone, '<', $queued,
		'a single request is served sooner than the last of ten that were queued');
}

#
# Occupations
#
{
	my $api = Hrflow::StandIn->new('--dim' => 256);
	my $vector_of = sub {
		my ($parameter, $value) = @_;
		my $reply = HTTP::Tiny->new->get(
			$api->base_url
			  . "/profile/embedding?source_id=acme&fields=%7B%22profile%22:1%7D&$parameter=$value",
			{ headers => { 'X-API-KEY' => $Hrflow::StandIn::KEY } });
		my ($profile) = $reply->{content} =~ m{/profiles/([^/]+)/} or die $reply->{content};

		return unpack 'f<*', $api->vector($profile, 'profile', 0);
	};
	my @welder = $vector_of->(profile_id => 'welder-1');

	foreach my $case (
		[ profile_id => 'welder-2', 1 ],
		[ profile_reference => 'welder-3', 1 ],
		[ profile_email => 'a.welder%40example.com', 1 ],
		[ profile_reference => 'nurse-2', 0 ])
	{
		my ($parameter, $value, $is_welder) = @$case;
		my @other = $vector_of->($parameter => $value);
		my $cosine = sum(map { $welder[$_] * $other[$_] } 0 .. $#welder);

		cmp_ok(abs($cosine - 0.6 * $is_welder), '<', 0.3,
				"the vector of $parameter=$value is "
			  . ($is_welder ? '' : 'not ')
			  . 'that of a welder');
	}
}

#
# Replies that are held
#
{
	my $api = Hrflow::StandIn->new;
	my @sockets;
	my $send = sub {
		my ($id) = @_;
		my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $api->http)
		  or die $@;
		print $socket "GET /v1/$query$id HTTP/1.1\r\nHost: a\r\n"
		  . "X-API-KEY: $Hrflow::StandIn::KEY\r\nConnection: close\r\n\r\n";
		push @sockets, $socket;
	};

	$send->('fault:hold=2,id=first');
	$api->wait_until(sub { $_[0]{in_flight} == 1 }) or die 'no request has arrived';
	is(ask($api)->{status}, 200, 'other requests are answered while a reply is held');
	is(scalar($api->log), 1, 'a reply is held as long as too few are');
	$send->('fault:hold=2,id=second');
	foreach my $socket (@sockets) { local $/; <$socket>; }
	my @log = $api->log;
	is(scalar(@log), 3, 'replies are no longer held when as many as specified are');
	is($log[0]{number}, 2, 'the log counts requests in the order of their arrival');
	is(join(' ', sort map { $_->{number} } @log), '1 2 3', 'the log counts requests from 1');
}

#
# The script, and connections
#
{
	my $api = Hrflow::StandIn->new;

	$api->script('status=429,retry_after_text=soon', count => 2);
	$api->script('status=503', ms => 300);
	is(statuses($api, 2),
		'429 429', 'the first step of a script applies to as many requests as it says');
	is(ask($api)->{status}, 503, 'the second step of a script applies to the requests after these');
	sleep 0.4;
	is(statuses($api, 2), '200 200', 'a step of a script ends after the specified time');
	$api->script('v.status=503');
	is(ask($api)->{status}, 200, "a step for the store does not apply to the API");
	my ($link) = ask($api)->{content} =~ /"(http:[^"]*)"/;
	is(HTTP::Tiny->new->get($link)->{status}, 503, 'a step for the store applies to the store');
	$api->script('own,status=503', count => 2);
	is(ask($api, 'fault:retry_after=7')->{headers}{'retry-after'},
		7, 'a step with the fault "own" has the faults of the identifier, too');
	is(ask($api)->{status}, 503, 'a step with the fault "own" has faults of its own');
	$api->script('status=500');
	$api->reset;
	is(ask($api)->{status}, 200, 'a reset ends the script');
	is(ask($api, 'fault:close')->{headers}{connection},
		'close', 'a fault can close the connection after a reply');
	$api->restart('--close');
	is(ask($api)->{headers}{connection}, 'close', '--close closes each connection after its reply');

	my $peer = Hrflow::RawPeer->new(
		sub {
			my ($socket, $n) = @_;
			return Hrflow::RawPeer::forward($socket, $api->http) if $n != 1;
			sysread($socket, my $byte, 1);
			Hrflow::RawPeer::reset_connection($socket);
		});
	my $url = 'http://127.0.0.1:' . $peer->port . '/stats';
	is(join(' ', map { HTTP::Tiny->new->get($url)->{status} } 1 .. 3),
		'200 599 200', 'a peer forwards all connections but one');
}

#
# Ports of servers that were stopped, and to which nobody has connected
#
{
	my $api = Hrflow::StandIn->new;
	my $peer = Hrflow::RawPeer->new(sub { });

	$_->stop foreach $api, $peer;
	foreach my $port ($api->http, $api->https, $peer->port)
	{
		ok(!IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Proto => 'tcp'),
			'the port of a server that was stopped is not assigned to others');
		ok( !IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) && $!{ECONNREFUSED},
			'the port of a server that was stopped refuses connections');
	}
	$api->restart;
	is(ask($api)->{status}, 200, 'a stand-in that is restarted uses the same ports');
}

#
# Encoded bodies
#
{
	my $api = Hrflow::StandIn->new;
	my $plain = qr/^\{"code": 200, .*\}$/;
	my %decoders = (
		gzip => sub { gunzip(\$_[0], \my $out, MultiStream => 1) or die $GunzipError; $out },
		same => sub { $_[0] },
		zstd => \&unzstd,
		br => \&unbrotli);

	foreach my $case (
		[ 'gzip', 'gzip', 'gzip' ],
		[ 'members=3', 'gzip', 'gzip' ],
		[ 'coding=x-gzip', 'x-gzip', 'gzip' ],
		[ 'coding=aws-chunked', 'aws-chunked', 'same' ],
		[ 'coding=gzip%2Baws-chunked', 'gzip, aws-chunked', 'gzip' ],
		[ 'coding=zstd', 'zstd', 'zstd' ],
		[ 'coding=br', 'br', 'br' ])
	{
		my ($fault, $names, $decoder) = @$case;
		my $reply = ask($api, "fault:$fault");

		is($reply->{headers}{'content-encoding'},
			$names, "a body with $fault is declared as $names");
		like($decoders{$decoder}->($reply->{content}),
			$plain, "a body with $fault is encoded as declared");
	}
	my $members = () = ask($api, 'fault:members=3')->{content} =~ /\x1f\x8b\x08\0\0\0\0\0\0\x03/g;
	is($members, 3, 'a gzip body may have several members');
	my $empty = ask($api, 'fault:empty_blocks=100000')->{content};
	like(
		$empty,
		qr/\A\x1f\x8b\x08\0{6}\x03(?:\0\0\0\xff\xff){20000}\z/,
		'a gzip body may have empty blocks without an end');
}

# Decode a frame of raw blocks, as made by the stand-in.
sub unzstd
{
	my ($in) = @_;
	my $out = '';

	$in =~ s/\A\x28\xb5\x2f\xfd\x00\x88//s or return 'no frame';
	for (;;)
	{
		my $header = unpack 'V', substr($in, 0, 3, '') . "\0";
		$out .= substr $in, 0, $header >> 3, '';
		return $in eq '' ? $out : 'more' if $header & 1;
	}
}

# Decode a short brotli stream, whose only meta-block has a header of 24 bits.
sub unbrotli
{
	my ($in) = @_;
	my $header = unpack 'V', substr($in, 0, 3, '') . "\0";
	my $length = ($header >> 7 & 0xffff) + 1;

	return 'no meta-block' if ($header & 0x7f) != 0x0f || $header >> 23 != 1;
	return length $in == $length + 1 && $in =~ s/\x03\z//s ? $in : 'more';
}

#
# A proxy
#
{
	my $api = Hrflow::StandIn->new;
	my $proxy = Hrflow::Proxy->new(user => 'someone', password => 'secret');
	my $connect = sub {
		my ($credentials) = @_;
		my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $proxy->port)
		  or die $@;

		print $socket 'CONNECT localhost:' . $api->http . " HTTP/1.1\r\n", $credentials, "\r\n";
		my $reply = Hrflow::RawPeer::read_request($socket);
		return $reply if $reply !~ / 200 /;
		print $socket "GET /stats HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
		return $reply . Hrflow::RawPeer::read_request($socket);
	};

	like(
		$connect->(''),
		qr/^HTTP\/1.1 407 .*Proxy-Authenticate: Basic/s,
		'a proxy asks for credentials');
	like(
		$connect->("Proxy-Authorization: Basic c29tZW9uZTp3cm9uZw==\r\n"),
		qr/^HTTP\/1.1 407 /,
		'a proxy refuses a wrong password');
	like(
		$connect->("Proxy-Authorization: Basic c29tZW9uZTpzZWNyZXQ=\r\n"),
		qr/^HTTP\/1.1 200 .*HTTP\/1.1 200 OK/s,
		'a proxy forwards a connection with the right password');
	is( join(', ', $proxy->connects),
		join(', ', map { 'localhost:' . $api->http . " $_" } 407, 407, 200),
		'a proxy records its CONNECT requests');
}

done_testing();
