# Refusals and failures of the API apply to all requests with the account's key:
# after a refusal of the rate, however it is worded, all backends pause and one
# request is sent as a probe.  No row is lost that a pause would have saved, and
# no backend waits longer than the server requested.  A regression test could see
# neither time nor other backends.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Session;
use Hrflow::StandIn;
use IO::Socket::INET;
use IPC::Run                ();
use List::Util              qw(min);
use MIME::Base64            qw(encode_base64url);
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(time);

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('account', $api, shared_preload_libraries => 'hrflow_embed');

# Pauses apply to a key at an origin, so each test has an origin of its own.
sub batch
{
	my ($standin, $ids, %settings) = @_;
	my $set = join '', map { "SET hrflow_embed.$_ = '$settings{$_}'; " } sort keys %settings;

	return "SET hrflow_embed.base_url = '" . $standin->base_url . "'; $set" . qq{
		SELECT status || ' ' || count(*) FROM hrflow_profile_embeddings('acme', $ids)
		GROUP BY status ORDER BY 1;\n};
}

sub ids
{
	my ($n, $prefix) = @_;

	$prefix //= 'p';
	return "(SELECT array_agg('$prefix' || i) FROM generate_series(1, $n) i)";
}

# Return the output of a statement, and the seconds it took.
sub timed
{
	my ($sql) = @_;
	my $began = time;
	my ($result, $out, $err) = $node->psql('postgres', $sql);

	return ($out, time - $began, $err);
}

# Return the output of a batch.
sub outcome
{
	return (timed(batch(@_)))[0];
}

# Return the number of requests that were refused.
sub refused
{
	my ($standin) = @_;
	return $standin->stats->{by_status}{429} // 0;
}

# Return the seconds that hrflow_estimate() expects a number of requests to take.
sub estimated
{
	my ($standin, $n) = @_;
	return sql_at($standin, 'SELECT seconds FROM hrflow_estimate(\'acme\', ' . ids($n, 'q') . ')');
}

sub sql_at
{
	my ($standin, $sql) = @_;
	return $node->safe_psql('postgres',
		"SET hrflow_embed.base_url = '" . $standin->base_url . "'; $sql");
}

#
# An account that will have been used for some time when it meets its limit,
# further below
#
my $used = Hrflow::StandIn->new('--rate' => '20/1', '--retry-after' => 'none', '--free-refusals');
is(outcome($used, ids(1)), 'ok 1', 'an account that is not limited yet is used');

#
# 100 requests in two seconds, from a server that does not say how long to wait
#
foreach my $wording ('none', '0', 'past', 'soon')
{
	my $limited =
	  Hrflow::StandIn->new('--rate' => '100/2', '--retry-after' => $wording, '--free-refusals');
	my ($out, $seconds) = timed(batch($limited, ids(300), max_concurrency => 64));
	my $refused = refused($limited);

	is($out, 'ok 300',
		"three times as many requests as the rate allows succeed with a Retry-After of $wording");
	cmp_ok($refused, '<=', 2 * 64,
		"at most twice as many requests are refused as are in flight with a Retry-After of $wording"
	);
	note("Retry-After $wording: $seconds s, refused $refused");
}

#
# All backends know the rate that one of them has learned
#
{
	my $limited =
	  Hrflow::StandIn->new('--rate' => '100/2', '--retry-after' => 'none', '--free-refusals');

	timed(batch($limited, ids(200)));
	my $before = refused($limited);
	cmp_ok($before, '>=', 4, 'a rate that is not known is exceeded at first');
	my $estimated = estimated($limited, 600);

	# The server allows 100 requests at once, and the others in 10 seconds.
	cmp_ok($estimated, '>=', 8, 'hrflow_estimate() knows a limit that was learned');

	my @backends;
	foreach my $prefix ('a' .. 'd')
	{
		my %backend = (out => '');

		$backend{process} = IPC::Run::start(
			[   'psql', '-XAtq',
				'-d', $node->connstr('postgres'),
				'-c', batch($limited, ids(150, $prefix)) ],
			'>',
			\$backend{out},
			'2>&1',
			IPC::Run::timeout(120));
		push @backends, \%backend;
	}
	foreach my $backend (@backends)
	{
		$backend->{process}->finish or die "psql failed: $backend->{out}";
	}

	is_deeply(
		[ map { $_->{out} } @backends ],
		[ ("ok 150\n") x 4 ],
		'four backends succeed together, at a rate that was learned');

	my $after = refused($limited);
	cmp_ok($after - $before, '<=', 30, 'hardly any request exceeds a rate that was learned');

	# Consider only the time in which all four send requests.  There is no queue: each
	# tries again when the next request may be sent.  On an idle machine each gets more
	# than half its share; allow for a busy one.
	my (%nsent, %share);
	my $nshared = 0;
	foreach my $request ($limited->log)
	{
		next unless $request->{status} == 200 && $request->{query} =~ /=([a-d])\d/;
		my $backend = $1;
		last if ++$nsent{$backend} == 150;
		next if keys %nsent < 4;
		$share{$backend}++;
		$nshared++;
	}
	cmp_ok(
		$share{$_} // 0,
		'>=',
		$nshared / 16,
		"backend $_ gets at least a quarter of its share of the rate") foreach 'a' .. 'd';
	note("of $nshared requests they get ", join(' ', map { $share{$_} // 0 } 'a' .. 'd'));
	note("refused $before, then " . ($after - $before));
}

#
# Few requests per second, by an account that had sent one some time before: the
# time in between does not count
#
{
	my $limited =
	  Hrflow::StandIn->new('--rate' => '8/1', '--retry-after' => 'none', '--free-refusals');

	is(outcome($limited, ids(1)), 'ok 1', 'an account that allows few requests is used');

	# Requests of the second period are not all sent at once, so that others get
	# their share.  A busy machine may receive them at once, so try several times.
	my ($rows, @begun);
	for my $try (1 .. 5)
	{
		my $other =
		  Hrflow::StandIn->new('--rate' => '20/4', '--retry-after' => 'none', '--free-refusals');

		$rows = outcome($other, ids(40));
		@begun = sort { $a <=> $b } map { $_->{begun} } grep { $_->{status} == 200 } $other->log;
		note('20/4: ', join ' ', map { int($_ - $begun[0]) } @begun);
		last if @begun == 40 && $begun[39] - $begun[21] >= 12;
	}
	is($rows, 'ok 40', 'a batch takes two periods of a limit');
	cmp_ok($begun[39] - $begun[21],
		'>=', 12, 'requests of the second period of a limit are spread over some milliseconds');

	my ($out, $seconds) = timed(batch($limited, ids(24)));
	is($out, 'ok 24', 'a batch succeeds where very few requests are allowed in a second');
	cmp_ok(estimated($limited, 400),
		'<=', 200, 'the limit that is learned is not one per time in which little was sent');
	note("8/1: $seconds s, refused " . refused($limited) . ', ' . estimated($limited, 400));
}

#
# A limit that no longer exists
#
{
	my $limited =
	  Hrflow::StandIn->new('--rate' => '20/1', '--retry-after' => 'none', '--free-refusals');

	is(outcome($limited, ids(60)), 'ok 60', 'a batch succeeds at a rate that will be raised');
	my $estimated = estimated($limited, 1000);
	$limited->restart;
	my $batches = 0;
	foreach my $prefix ('a' .. 't')
	{
		is(outcome($limited, ids(50, $prefix)),
			'ok 50', "batch $prefix succeeds at a rate that was learned, or a higher one");
		$batches++;
		last if estimated($limited, 1000) < $estimated;
	}
	cmp_ok(estimated($limited, 1000),
		'<', $estimated, 'a rate at which nothing is refused for long is raised');
	cmp_ok($batches, '>', 1, 'a rate that was learned is not raised at once');
	note("$batches batches; $estimated s, then " . estimated($limited, 1000));
}

#
# An account whose first requests are refused: nothing is known to have been
# admitted
#
{
	my $closed = Hrflow::StandIn->new;

	$closed->script('status=429', count => 2);
	is(outcome($closed, ids(1)), 'ok 1', 'a profile whose first two requests are refused succeeds');
	is($closed->stats->{requests}, 3,
		'a profile is requested once for each refusal, and once more');
}

#
# A refusal that only the envelope reports, with HTTP 200 or another status, is like
# HTTP 429: a probe that is refused prolongs the pause, and teaches no limit
#
foreach my $fault ('status=429', 'code=429', 'status=400,code=429')
{
	my $closed = Hrflow::StandIn->new;

	is(outcome($closed, ids(40)), 'ok 40', "an account is used before a refusal by $fault");
	$closed->reset;

	# All requests that a batch begins with are refused at the same time.
	$closed->script("$fault,hold=32", count => 32);
	$closed->script($fault, ms => 3000);
	is(outcome($closed, ids(200, 'q')),
		'ok 200', "no row is lost in three seconds of refusals by $fault");

	my @begun = sort { $a <=> $b } map { $_->{begun} } $closed->log;
	my $probes = grep { $_ < $begun[32] + 3000 } @begun[ 32 .. $#begun ];
	cmp_ok($probes, '<=', 6, "pauses grow while probes are refused by $fault");
	cmp_ok($probes, '>=', 1, "a probe follows a refusal by $fault");
	cmp_ok(scalar(@begun) - $probes,
		'<=', 232, "only requests in flight are refused by $fault besides probes");
	note("$fault: $probes probes, " . @begun . ' requests');
}

# Only the outermost member counts, wherever it is.  After a refusal, a probe is sent
# alone.
foreach my $case (
	[ 1, '{"code": 429, "message": "Too many requests"}' ],
	[ 1, ' { "data" : {"a": [1, "x\\"}", {}], "code": 1}, "n": 1, "code" :429}' ],
	[ 0, '{"data": {"code": 429}, "message": "code"}' ],
	[ 0, '{"code": 4290}' ],
	[ 0, '{"code": "429"}' ],
	[ 0, '{"code" 429}' ],
	[ 0, '{429}' ],
	[ 0, '{"code' ],
	[ 0, '{"data": [' ],
	[ 0, '["code", 429]' ])
{
	my ($refuses, $body) = @$case;
	my $judged = Hrflow::StandIn->new;
	my $fault = 'fault:retry_after=5,body=' . encode_base64url($body);

	outcome($judged, "'{\"$fault\"}'", max_attempts => 1);
	$judged->reset;
	if ($refuses)
	{
		is(outcome($judged, ids(4, 'fault:latency=600,id=')),
			'ok 4', "a batch succeeds after $body");
		my @begun = sort { $a <=> $b } map { $_->{begun} } $judged->log;
		cmp_ok($begun[1] - $begun[0], '>=', 500, "$body is a refusal");
	}
	else
	{
		# A probe alone would not be answered before the pause has ended.
		is(outcome($judged, ids(4, 'fault:hold=4,id=')), 'ok 4', "a batch succeeds after $body");
		my @begun = sort { $a <=> $b } map { $_->{begun} } $judged->log;
		cmp_ok($begun[3] - $begun[0], '<', 4000, "$body is not a refusal");
	}
}

#
# Headers that say how many requests are left
#
foreach my $prefix ('RateLimit', 'X-RateLimit')
{
	my $limited = Hrflow::StandIn->new(
		'--rate' => '100/2',
		'--retry-after' => 'none',
		'--latency' => 20,
		'--rate-headers' => $prefix,
		'--free-refusals');
	my ($out) = timed(batch($limited, ids(300), max_concurrency => 16));

	is($out, 'ok 300', "a batch succeeds at the rate that $prefix tells");
	cmp_ok(refused($limited),
		'<=', 16, "fewer requests are refused than are in flight where $prefix tells the rate");
	note("$prefix: refused " . refused($limited));
}

#
# The second number may be a time, and either may be none: then it is taken for
# absent, as if the server sent no such header
#
foreach my $case (
	[ 'left_reset_date=3', 1900, 'a time in three seconds' ],
	[ 'left_reset=soon', 900, 'no number' ],
	[ 'left_reset=99999999999', 900, 'too large a number' ])
{
	my ($reset, $least, $name) = @$case;
	my $told = Hrflow::StandIn->new;

	$told->script("left=0,$reset", count => 1);
	is(outcome($told, ids(2), max_concurrency => 1),
		'ok 2', "a batch succeeds if no request is left, and RateLimit-Reset is $name");
	my @begun = map { $_->{begun} } $told->log;
	cmp_ok($begun[1] - $begun[0],
		'>=', $least, "a request waits if none is left, and RateLimit-Reset is $name");
}
foreach my $left ('', 'none', '99999999999')
{
	my $told = Hrflow::StandIn->new;

	$told->script("latency=50,left=$left,left_reset=60");
	is(outcome($told, ids(40), max_concurrency => 4),
		'ok 40', "a batch succeeds if RateLimit-Remaining is '$left'");
	cmp_ok((sort { $b <=> $a } map { $_->{in_flight} } ($told->log)[ 20 .. 39 ])[0],
		'>', 1, "requests do not wait for each other if RateLimit-Remaining is '$left'");
}

#
# A refusal that has no usable Retry-After, but says that no request is left until a reset, is
# obeyed for as long; other numbers are not
#
foreach my $case (
	[ 'status=429,left=0,left_reset=2', 1900, 20_000 ],
	[ 'status=429,left=0,left_reset_date=3', 1900, 20_000 ],
	[ 'code=429,left=0,left_reset=2', 1900, 20_000 ],
	[ 'status=429,left=0,left_reset=2,retry_after=0', 1900, 20_000 ],
	[ 'status=429,left=0,left_reset=60,retry_after=1', 900, 20_000 ],
	[ 'status=429,left=5,left_reset=60', 0, 20_000 ],
	[ 'status=429,left=0,left_reset=400', 0, 20_000 ],
	[ 'status=429,left_reset=60', 0, 20_000 ])
{
	my ($fault, $least, $most) = @$case;
	my $limited = Hrflow::StandIn->new;

	$limited->script($fault, count => 1);
	is(outcome($limited, ids(2), max_concurrency => 1), 'ok 2', "a batch succeeds after $fault");
	my @begun = map { $_->{begun} } $limited->log;
	cmp_ok($begun[1] - $begun[0], '>=', $least, "the pause after $fault is long enough");
	cmp_ok($begun[1] - $begun[0], '<', $most, "the pause after $fault is not too long");
}
{
	my $limited = Hrflow::StandIn->new;

	$limited->script('status=429,left=0,left_reset=3', ms => 2500);
	is(sql_at($limited, q{SELECT hrflow_profile_embedding('acme', 'p') IS NOT NULL}),
		't', 'a single call succeeds although requests are refused for some seconds');
	is($limited->stats->{requests},
		2, 'a single call sends no request before the reset that a refusal announces');
}

#
# A probe without an answer
#
{
	my $silent = Hrflow::StandIn->new;

	$silent->script('status=429,retry_after=1', count => 1);
	$silent->script('silent', count => 1);
	my ($one, $other) = ('', '');
	my $slow = IPC::Run::start(
		[   'psql', '-XAtq', '-d', $node->connstr('postgres'),
			'-c', batch($silent, ids(2, 'one'), request_timeout => '10s', max_concurrency => 1) ],
		'>',
		\$one,
		'2>',
		\$other,
		IPC::Run::timeout(120));

	ok($silent->wait_until(sub { $_[0]{requests} >= 2 }), 'a probe is sent after the pause');
	is(outcome($silent, ids(5, 'two')),
		'ok 5', 'another backend succeeds after an unanswered probe');
	is($silent->stats->{in_flight},
		1, 'another backend does not wait until an unanswered probe times out');
	$slow->finish or die "psql failed: $other";
	is( $one,
		"ok 1\ntimeout 1\n",
		'the backend whose probe got no answer continues with its other request');
}

#
# A limit that is met by an account that has been used for some time: when each
# request was sent is no longer known as exactly as a period of a second needs
#
{
	is(outcome($used, ids(60)), 'ok 60', 'a batch succeeds at a rate that a used account meets');
	my $before = refused($used);

	cmp_ok(estimated($used, 1000), '>=', 45, 'the rate that a used account meets is learned');
	cmp_ok(estimated($used, 1000),
		'<=', 300, 'the rate that a used account meets is not that of its whole history');

	# A busy machine may delay requests, some of which then arrive together.
	my $least = 60;
	foreach my $try (1 .. 4)
	{
		my $earlier = refused($used);

		is(outcome($used, ids(60, "q$try-")),
			'ok 60', "a batch succeeds at the rate of a used account, in round $try");
		$least = min($least, refused($used) - $earlier);
		last if $least <= 8;
	}
	cmp_ok($least, '<=', 8, 'hardly any request exceeds the rate of a used account');
	note("20/1: refused $before, then $least");
}

#
# A refusal, after which the API does not answer about 60 profiles of one
# backend, but answers another backend.  A busy machine may delay either batch, so try several
# times.
#
{
	my %seconds;

	for my $try (1 .. 5)
	{
		foreach my $before ('nothing', 'a 429')
		{
			my $silent = Hrflow::StandIn->new;
			my $out = '';

			$silent->script('status=429', count => 1) if $before eq 'a 429';
			my $began = time;
			my $slow = IPC::Run::start(
				[   'psql', '-XAtq', '-d', $node->connstr('postgres'),
					'-c', batch($silent, ids(60, 'fault:silent,id='), request_timeout => '8s') ],
				'>',
				\$out,
				'2>&1',
				IPC::Run::timeout(180));
			ok($silent->wait_until(sub { $_[0]{requests} >= 2 }),
				"profiles are requested after $before");
			my ($healthy, $took) = timed(batch($silent, ids(3, 'healthy')));
			is($healthy, 'ok 3', "another backend is answered after $before");

			# The first batch begins with 32 requests, and sends more when they time out.
			# The 429, if any, was an answer to a further request.
			cmp_ok(
				$silent->stats->{requests},
				'<=',
				32 + 1 + 3,
				"another backend does not wait for a timeout after $before");
			$slow->finish;
			$seconds{$before} = time - $began;
			like(
				$out,
				qr/^(?:timeout 60$|ERROR:.*in time)/m,
				"the profiles that get no answer time out after $before");
			note("after $before: $seconds{$before} s, another backend $took s: $out");
		}
		last if $seconds{'a 429'} < $seconds{nothing} + 6;
	}
	cmp_ok(
		$seconds{'a 429'}, '<',
		$seconds{nothing} + 6,
		'a batch that gets no answers takes not much longer because of a 429');
}

#
# A pause that is too long to wait for
#
{
	my $closed = Hrflow::StandIn->new;

	$closed->script('status=429,retry_after=86400', count => 1);
	my $settings =
	  "SET statement_timeout = '30s'; SET hrflow_embed.base_url = '" . $closed->base_url . "';";
	my ($out, $seconds, $err) = timed("$settings SELECT hrflow_profile_embedding('acme', 'p1')");
	like(
		$err,
		qr/limited the rate/,
		'a call that is told to come back a day later fails without waiting');
	($out, $seconds, $err) = timed("$settings SELECT hrflow_profile_embedding('acme', 'p2')");
	like(
		$err,
		qr/limited the rate.*more than five minutes/s,
		'later calls fail without waiting and say that the pause is long');
	is($closed->stats->{requests},
		1, 'later calls send no request during a pause that is too long to wait for');
}

#
# A request in flight whose refusal arrives later, and asks for a shorter pause
#
foreach my $late ('429,retry_after=10', '429,retry_after=300', '503,retry_after=10')
{
	my $closed = Hrflow::StandIn->new;

	$closed->script("status=$late,latency=6000", count => 1);
	$closed->script('status=429,retry_after=86400', count => 1);
	timed("SET statement_timeout = '60s'; " . batch($closed, ids(2)));
	is($closed->stats->{requests}, 2, "two requests are refused, one of them later, by $late");
	my (undef, undef, $err) =
	  timed("SET statement_timeout = '60s'; SET hrflow_embed.base_url = '"
		  . $closed->base_url
		  . "'; SELECT hrflow_profile_embedding('acme', 'p1')");
	like(
		$err,
		qr/limited the rate.*more than five minutes/s,
		"calls fail without waiting although a later reply was $late");
	is($closed->stats->{requests}, 2, "they send no request after $late");
}

#
# A long pause is reported
#
{
	my $patient = Hrflow::StandIn->new;

	$patient->script('status=429,retry_after=6', count => 1);
	my ($out, $seconds, $err) = timed(batch($patient, ids(2)));
	is($out, 'ok 2', 'a batch succeeds after a long pause');
	is(scalar(() = $err =~ /NOTICE:  waiting \d s for the HrFlow API/g),
		1, 'a NOTICE reports a long pause once');
}

#
# 503, with and without Retry-After
#
foreach my $case ([ 'status=503', 'without Retry-After' ],
	[ 'status=503,retry_after=1', 'with Retry-After' ])
{
	my ($fault, $name) = @$case;
	my $restarted = Hrflow::StandIn->new;

	$restarted->script('id=ok', count => 50);
	$restarted->script($fault, ms => 3000);
	my ($out, $seconds) = timed(batch($restarted, ids(1000), max_attempts => 3));
	is($out, 'ok 1000', "no row is lost in three seconds of 503 $name");

	# Pauses that are too long cannot be counted, only measured: they may double until
	# the API answers again, but not grow beyond that.
	cmp_ok($seconds, '<', 40, "a batch continues soon after three seconds of 503 $name");
	cmp_ok($restarted->stats->{by_status}{503}, '<', 150, "few requests meet 503 $name");
	note("503 $name: $seconds s, " . $restarted->stats->{by_status}{503});
}

#
# A Retry-After after failures that pause the account for less time
#
foreach my $case (
	[ 'status=500,retry_after=4' => 4 ],
	[ 'status=504,retry_after=4' => 4 ],
	[ 'status=500,retry_after=1000' => undef ],
	[ 'status=503,retry_after=1000' => undef ])
{
	my ($fault, $least) = @$case;
	my $failing = Hrflow::StandIn->new;

	is(outcome($failing, ids(1)), 'ok 1', "an API answers before $fault");
	$failing->script('status=500', count => 15);
	$failing->script($fault, count => 1);
	sql_at(
		$failing, q{SET hrflow_embed.max_attempts = 1;
		DO $$ BEGIN
			FOR i IN 1 .. 15 LOOP
				BEGIN
					PERFORM hrflow_profile_embedding('acme', 'p' || i);
				EXCEPTION WHEN OTHERS THEN
				END;
			END LOOP;
		END $$;});
	my ($out, $seconds, $err) =
	  timed("SET hrflow_embed.base_url = '"
		  . $failing->base_url
		  . "'; SELECT 'ok' WHERE hrflow_profile_embedding('acme', 'last') IS NOT NULL;");
	my @requests = $failing->log;
	splice(@requests, 0, 16);

	is( $out,
		$least ? 'ok' : '',
		'a call ' . ($least ? 'succeeds' : 'fails') . " if many failures are followed by $fault"
	) or diag($err);
	is( scalar(@requests),
		$least ? 2 : 1,
		'there is ' . ($least ? 'a' : 'no') . " retry if many failures are followed by $fault");
	cmp_ok(
		$requests[1]{begun} - $requests[0]{ms},
		'>=',
		1000 * $least,
		"a retry waits for as long as $fault specifies") if $least && @requests > 1;
}

#
# A server that is restarted: requests in flight are reset, and no connection is
# accepted for three seconds
#
{
	my $restarted = Hrflow::StandIn->new('--latency' => 20);
	my $out = '';
	my $batch = IPC::Run::start(
		[   'psql', '-XAtq',
			'-d', $node->connstr('postgres'),
			'-c', batch($restarted, ids(2000), max_attempts => 3) ],
		'>',
		\$out,
		'2>&1',
		IPC::Run::timeout(180));

	ok($restarted->wait_until(sub { $_[0]{requests} >= 100 }), 'a server is used');
	$restarted->stop;
	my $stopped = time;
	sleep 3;
	$restarted->restart('--latency' => 20);
	$batch->finish;
	is($out, "ok 2000\n", 'no row is lost while a server is restarted');
	cmp_ok(time - $stopped, '<', 40, 'a batch continues soon after a server was restarted');
	note('restart: ' . (time - $stopped) . ' s');
}

#
# An outage that another backend has noticed: only few requests of a batch use up
# their attempts before the account is paused
#
{
	my $restarted = Hrflow::StandIn->new;

	is(outcome($restarted, ids(1)), 'ok 1', 'an account is used before an outage');
	$restarted->script('status=503', ms => 4000);
	sql_at(
		$restarted, q{SET hrflow_embed.max_attempts = 1;
		DO $$ BEGIN
			FOR i IN 1 .. 12 LOOP
				BEGIN
					PERFORM hrflow_text_embedding('text ' || i);
				EXCEPTION WHEN OTHERS THEN
				END;
			END LOOP;
		END $$});
	is(outcome($restarted, ids(200), max_attempts => 1),
		'ok 200', 'no row is lost in an outage, even if few requests use up their attempts');
}

#
# An API to which no connection can be established: attempts that a role gives up soon, by
# its own connect_timeout, do not pause the account, but those that last as long as by default do
#
{
	my $server = Hrflow::StandIn->new;
	my $deaf = PostgreSQL::Test::Utils::tempdir() . '/deaf';
	my $front = Hrflow::RawPeer->new(
		sub {
			sleep 20 if -e $deaf;
			Hrflow::RawPeer::forward($_[0], $server->https);
		});
	my $settings =
		"SET hrflow_embed.base_url = 'https://localhost:"
	  . $front->port
	  . "/v1'; SET hrflow_embed.ca_file = '"
	  . $server->ca
	  . "'; SET hrflow_embed.http_version = '1.1'; SET hrflow_embed.max_attempts = 1;";
	is((timed("$settings SELECT hrflow_profile_embedding('acme', 'p') IS NOT NULL"))[0],
		't', 'an account is used before connections fail');
	PostgreSQL::Test::Utils::append_to_file($deaf, '');
	my (undef, $seconds, $err) = timed(
		"$settings SET hrflow_embed.connect_timeout = '20ms';" . q{
		DO $$ BEGIN
			FOR i IN 1 .. 26 LOOP
				BEGIN
					PERFORM hrflow_profile_embedding('acme', 'p' || i);
				EXCEPTION WHEN sqlstate '08001' THEN
					RAISE NOTICE 'no connection';
				END;
			END LOOP;
		END $$});
	is(scalar(() = $err =~ /no connection/g), 26, 'no connection is established in 20 ms');
	cmp_ok($seconds, '<', 6, 'attempts that a role gives up after 20 ms do not pause the account');
	my $session = Hrflow::Session->new($node);
	$session->query($settings);
	$session->send(q{SELECT status || ' ' || count(*) FROM hrflow_profile_embeddings('acme', }
		  . ids(30)
		  . ") GROUP BY status ORDER BY 1;\n\\echo -- done");
	for (1 .. 200)
	{
		last if $session->sockets > 30;
		select(undef, undef, undef, 0.02);
	}
	unlink $deaf or die $!;
	my ($nok) = $session->wait_for(qr/-- done/) =~ /^ok (\d+)$/m;
	cmp_ok($nok // 0, '>=', 10,
		'attempts that fail after the default of connect_timeout pause the account');
	$session->finish;
}

#
# A request that was not sent, because the kept connection that libcurl chose for it has
# data to read, does not count towards the rate, whether a setting limits it or the server
#
foreach my $case (
	[ 1, 'none', 'a setting allows one request per minute' ],
	[ 0, 1, 'the server says that one request is left' ])
{
	my ($per_minute, $left, $name) = @$case;
	my $stray = PostgreSQL::Test::Utils::tempdir() . '/stray';
	my $straying = Hrflow::RawPeer->new(
		sub {
			my ($socket, $n) = @_;
			my $body = '{"code": 200, "message": "ok", "data": {}}';
			my $remaining = $n == 0 || $left eq 'none' ? $left : $left - 1;
			my $reply =
				"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
			  . "RateLimit-Remaining: $remaining\r\nRateLimit-Reset: 60\r\n"
			  . "Content-Length: "
			  . length($body)
			  . "\r\n\r\n$body";

			while (Hrflow::RawPeer::read_request($socket))
			{
				print $socket $reply;
				next if $n > 0;
				select(undef, undef, undef, 0.05);
				print $socket $reply;
				PostgreSQL::Test::Utils::append_to_file($stray, '');
			}
		});
	my $session = Hrflow::Session->new($node);

	$session->query("SET hrflow_embed.base_url = 'http://127.0.0.1:" . $straying->port . "/v1';");
	is($session->query(q{SELECT hrflow_profile_embedding('acme', 'p');}),
		'{}', "a connection is kept over which an unrequested reply arrives, if $name");
	for (1 .. 500)
	{
		last if -e $stray;
		select(undef, undef, undef, 0.02);
	}

	# If the first attempt counted, the second would have to wait.
	$session->query(
		qq{SET hrflow_embed.max_requests_per_minute = $per_minute;
		SET statement_timeout = '30s';});
	like($session->ask(q{SELECT hrflow_profile_embedding('acme', 'q');}),
		qr/^\{\}$/m,
		"a request whose first attempt was not sent does not wait for the rate, if $name");
	like(
		$session->ask(
			q{SET statement_timeout = '1s'; SELECT hrflow_profile_embedding('acme', 'r');}),
		qr/57014/,
		"a request that was sent at the second attempt counts towards the rate, if $name");
	$session->finish;
}

#
# A request that was not sent, because the TLS handshake failed, changes nothing of what the
# server says: neither is it counted when the reply to an earlier request arrives, nor is the
# number of requests that are left forgotten
#
foreach my $kind ('the handshake is reset', 'the certificate is not trusted')
{
	my $server = Hrflow::StandIn->new;
	my $other = Hrflow::StandIn->new;
	my $front = Hrflow::RawPeer->new(
		sub {
			my ($socket, $n) = @_;

			if ($n == 1 && $kind eq 'the handshake is reset')
			{
				sysread($socket, my $hello, 1);
				Hrflow::RawPeer::reset_connection($socket);
				return;
			}
			Hrflow::RawPeer::forward($socket, $server->https);
		});
	my $call = sub {
		return "SELECT 'ok' WHERE hrflow_profile_embedding('acme', '$_[0]') IS NOT NULL;";
	};
	my @sessions = map { Hrflow::Session->new($node) } 1 .. 2;

	foreach my $session (@sessions)
	{
		$session->query("SET hrflow_embed.base_url = 'https://localhost:"
			  . $front->port
			  . "/v1'; SET hrflow_embed.ca_file = '"
			  . $server->ca
			  . "'; SET hrflow_embed.max_attempts = 1; SET statement_timeout = '20s';");
	}
	$sessions[0]->start($call->('fault:latency=1500,left=1,left_reset=60,id=a'));
	ok($server->wait_until(sub { $_[0]{requests} >= 1 }), "a request is sent before $kind");
	$sessions[1]->query("SET hrflow_embed.ca_file = '" . $other->ca . "';")
	  if $kind eq 'the certificate is not trusted';
	like($sessions[1]->ask($call->('b')), qr/ERROR:  08001/, "a request fails because $kind");
	is($sessions[0]->result, 'ok', "the server says that one request is left after $kind");

	$sessions[0]->start($call->('fault:hold=2,left=1,left_reset=60,id=c'));
	ok( $server->wait_until(sub { $_[0]{requests} >= 2 }),
		"the request that is left is sent although $kind");
	$sessions[1]->query("SET hrflow_embed.ca_file = '" . $server->ca . "';");
	like($sessions[1]->ask("SET statement_timeout = '1s'; " . $call->('d')),
		qr/57014/, "no more requests than are left are sent although $kind");
	$server->release(2);
	is($sessions[0]->result, 'ok', "the request that was left succeeds although $kind");
	$_->finish foreach @sessions;
}

#
# A request that was not sent, because no connection could be established in time, does not
# count towards a rate that was learned.  A busy machine may delay the requests that follow, so
# try several times.
#
{
	my @rate = ('--rate' => '20/4', '--retry-after' => 'none', '--free-refusals');
	my $waited;

	for my $try (1 .. 5)
	{
		my $limited = Hrflow::StandIn->new(@rate);

		is(outcome($limited, ids(26), max_concurrency => 32),
			'ok 26', 'a batch meets a rate of 20 requests in 4 seconds');
		cmp_ok(estimated($limited, 60), '>=', 4, 'the rate was learned');

		# Six requests count at this time.  If those that fail counted, too, there would be
		# more than the rate allows.  They fail only after a while, so that the time at which
		# they were admitted differs from the time at which they fail.
		my ($port) = $limited->base_url =~ /:(\d+)/;
		$limited->stop;
		my $deaf = Hrflow::RawPeer->new(undef, backlog => 0, port => $port);
		my @queue =
		  map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port, Blocking => 0) }
		  1 .. 4;
		unlike(outcome($limited, ids(12, 'f'), max_attempts => 1, connect_timeout => '500ms'),
			qr/^ok/m, 'requests fail while no connection can be established');
		@queue = ();
		$deaf->stop;
		$limited->restart(@rate);
		my $session = Hrflow::Session->new($node);
		$session->query('SELECT hrflow_embed_stats_reset();');
		is($session->query(batch($limited, ids(12, 'q'))),
			'ok 12', 'all requests succeed when connections can be established again');
		$waited = $session->query('SELECT wait_seconds FROM hrflow_embed_stats;');
		$session->finish;
		last if $waited < 2;
	}
	cmp_ok($waited, '<', 2, 'requests that were not sent do not count towards a learned rate');
}

done_testing();
