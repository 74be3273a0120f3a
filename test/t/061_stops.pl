# Batches stop early when it is pointless to continue, keep what has arrived,
# and say why.  The stand-in shows what is sent and how long it takes, and
# simulates a server that goes away.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Session;
use Hrflow::StandIn;
use IPC::Run                ();
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(time);

my $api = Hrflow::StandIn->new('--latency' => 5);
my $node = Hrflow::Node->new('stops', $api);

# Run a batch.  Returns its output, and its warnings or error.
sub batch
{
	my ($ids, %with) = @_;
	my $function = $with{function} // 'hrflow_profile_embeddings';
	my $fields = $with{fields} // '{"profile": 1}';
	my ($out, $err) = ('', '');

	$node->psql(
		'postgres',
		($with{settings} // '')
		  . "SELECT status || ' ' || count(*) FROM $function('acme', $ids, '$fields')"
		  . ' GROUP BY status ORDER BY 1',
		stdout => \$out,
		stderr => \$err);
	return ($out, $err);
}

# Return this many distinct identifiers.
sub ids
{
	my ($n, $prefix) = @_;

	$prefix //= 'p';
	return "(SELECT array_agg('$prefix' || i) FROM generate_series(1, $n) i)";
}

#
# Refusals caused by the request
#
foreach my $concurrency (1, 32, 256)
{
	my $settings = "SET hrflow_embed.max_concurrency = $concurrency;";

	$api->reset;
	my ($out, $err) = batch(ids(5003), fields => '{"profil": 1}', settings => $settings);
	like(
		$err,
		qr/ERROR:  invalid request to the HrFlow API/,
		"unknown fields are an error with $concurrency in flight");
	is(scalar($api->log), 32, "unknown fields cost 32 requests with $concurrency in flight");

	$api->reset;
	($out, $err) = batch(
		ids(5003),
		function => 'hrflow_profile_vectors',
		settings => "$settings SET hrflow_embed.link_hosts = 'example.com';");
	like(
		$err,
		qr/ERROR:  link to a vector is not allowed/,
		"links that may not be followed are an error with $concurrency in flight");
	is(scalar($api->log), 32,
		"links that may not be followed cost 32 requests with $concurrency in flight");
}

# The refusals have a common reason, although their details differ.  Each case has a stand-in
# of its own, because a 429 affects the account.
foreach my $case (
	[ '{"profil": 1}', 'p', 'status=503', 33, 'one of the requests meets a 503 first' ],
	[ '{"profil": 1}', 'p', 'reset', 33, 'one of the connections breaks first' ],
	[ '{"profil": 1}', 'p', 'status=429', 33, 'one of the requests meets a 429 first' ],
	[   '{"profile": 1}',
		'fault:status=422,message=Cannot read profile ',
		undef, 32, 'the messages name the profiles' ])
{
	my ($fields, $prefix, $fault, $n, $what) = @$case;
	my $other = Hrflow::StandIn->new('--latency' => 100);

	$other->script($fault, count => 1) if $fault;
	my ($out, $err) = batch(
		ids(5003, $prefix),
		fields => $fields,
		settings => "SET hrflow_embed.base_url = '" . $other->base_url . "';");
	like(
		$err,
		qr/ERROR:  invalid request to the HrFlow API/,
		"Requests that are all refused are an error if $what.");
	is(scalar($other->log), $n, "Requests that are all refused cost $n requests if $what.");
}

# A text whose connection breaks is not sent again.
{
	my $other = Hrflow::StandIn->new('--latency' => 100);

	$other->script('reset', count => 1);
	$other->script('status=422');
	my ($result, $out, $err) = $node->psql(
		'postgres',
		"SET hrflow_embed.base_url = '"
		  . $other->base_url
		  . q{'; SELECT count(*) FROM hrflow_text_embeddings(
			ARRAY(SELECT 'nurse ' || i FROM generate_series(1, 5003) i))});
	like(
		$err,
		qr/ERROR:  invalid request to the HrFlow API/,
		'texts that are all refused, except one that was lost, are an error');
	is(scalar($other->log), 33, 'one text that was lost costs one more request');
}

$api->reset;
my ($out, $err) = batch("array_cat('{a}'::text[], " . ids(100, 'fault:status=422,id=') . ')');
is( $out,
	"invalid_request 100\nok 1",
	'a batch in which one element succeeded requests all elements');
like(
	$err,
	qr/WARNING:  100 of 101 rows of the batch failed/,
	'a WARNING says how many elements of a batch were refused');
is(scalar($api->log), 101,
	'a batch in which one element succeeded sends a request for each element');

($out, $err) = batch("array_cat('{missing}'::text[], " . ids(100, 'missing') . ')');
like(
	$err,
	qr/WARNING:  none of the profiles in the batch were found in the specified source/,
	'a WARNING says that no profile was found');

($out, $err) = batch(
	ids(40) . ' || ' . ids(60, 'missing'),
	function => 'hrflow_profile_links',
	fields => '{"profile": 1, "skills": 1, "interests": 1}');
is($out, "not_found 60\nok 120", 'a profile that is not found has one row, others have three');
like(
	$err,
	qr/WARNING:  60 of 100 elements of the batch failed with status "not_found"/,
	'a WARNING says that more than half of the profiles were not found');

#
# Requests that are in flight, but have not been sent, when a batch stops
#
{
	# Only the first connection is answered before the batch has ended.  If it does not
	# end, the others are answered after 20 seconds.
	my $ended = PostgreSQL::Test::Utils::tempdir() . '/ended';
	my $front = Hrflow::RawPeer->new(
		sub {
			my ($socket, $n) = @_;

			for (my $try = 0; $n > 0 && $try < 1000 && !-e $ended; $try++)
			{
				select(undef, undef, undef, 0.02);
			}
			Hrflow::RawPeer::forward($socket, $api->https);
		});

	$api->reset;
	$api->script('status=401');
	my ($out, $err) = batch(
		ids(100, 'unsent-'),
		settings => "SET hrflow_embed.ca_file = '"
		  . $api->ca
		  . "'; SET hrflow_embed.base_url = 'https://localhost:"
		  . $front->port
		  . "/v1'; SET hrflow_embed.connect_timeout = '60s';");
	PostgreSQL::Test::Utils::append_to_file($ended, '');
	like($err, qr/refused the API key/, 'a key that is refused over TLS stops a batch');
	is(scalar(grep { $_->{query} =~ /unsent/ } $api->log),
		1, 'requests that are still being connected are not sent after a stop');
}

# Of two kept connections, one refuses the key.  The other then breaks after it has received
# a request, which libcurl would send again by itself.  Other connections are not answered.
{
	my $log = PostgreSQL::Test::Utils::tempdir() . '/log';
	my $count = sub {
		my ($pattern) = @_;
		return
		  scalar(() = (-e $log ? PostgreSQL::Test::Utils::slurp_file($log) : '') =~ /$pattern/g);
	};
	my $wait_for = sub {
		my ($pattern, $n) = @_;

		for (1 .. 500)
		{
			return if $count->($pattern) >= $n;
			select(undef, undef, undef, 0.02);
		}
	};
	my $breaking = Hrflow::RawPeer->new(
		sub {
			my ($socket) = @_;

			while (my $head = Hrflow::RawPeer::read_request($socket))
			{
				my $body = '{"code": 200, "message": "ok", "data": {}}';

				sysread($socket, $head, $1, length $head) if $head =~ /^Content-Length: (\d+)/mi;
				my ($what) = $head =~ /(warm|refused|late|other)/;
				PostgreSQL::Test::Utils::append_to_file($log, "$what\n");
				$wait_for->('warm', 2) if $what eq 'warm';
				$wait_for->('late', 1) if $what eq 'refused';
				sleep 600              if $what eq 'other';
				if ($what eq 'late')
				{
					# Give the backend time to read the refusal.
					$wait_for->('told', 1);
					sleep 1;
					return;
				}
				print $socket 'HTTP/1.1 ', ($what eq 'warm' ? '200 OK' : '401 Unauthorized'),
				  "\r\nContent-Type: application/json\r\nContent-Length: ", length($body),
				  "\r\n\r\n$body";
				PostgreSQL::Test::Utils::append_to_file($log, "told\n") if $what eq 'refused';
			}
		});
	my $of = sub { "SELECT count(*) FROM hrflow_profile_embeddings('acme', '{$_[0]}');" };

	foreach my $case (
		[ 'a batch', $of->('refused,late'), qr/refused the API key/ ],

		# Row 1 was lost, which is found out after row 2 has been refused.  The request for
		# row 3 is abandoned.
		[   'a query that reads texts ahead',
			q{SELECT hrflow_text_embedding(t) FROM unnest('{late,refused,other}'::text[]) t;},
			qr/lost the connection/ ])
	{
		my ($what, $statement, $error) = @$case;
		my ($warm, $stopped);

		# A busy machine may need more time to read the refusal.
		for my $try (1 .. 5)
		{
			my $session = Hrflow::Session->new($node);

			unlink $log;
			$session->ask(
				"SET hrflow_embed.base_url = 'http://127.0.0.1:" . $breaking->port . "/v1';");
			$warm = $session->ask($of->('warm-1,warm-2'));
			$stopped = $session->ask($statement);
			$session->finish;
			last if $count->('late') == 1;
		}
		is($warm, "2\n-- done\n", "$what has two kept connections");
		like($stopped, $error, "$what is stopped by a key that is refused");
		is($count->('late'), 1, "$what does not send a request again that was lost after the stop");
	}
}

#
# The API is down
#
my $closed;
{
	my $gone = Hrflow::StandIn->new;
	$closed = $gone->base_url;
}

# Nothing that listens could count the attempts.  If each element had attempts of its
# own, the batch would take some minutes.
my $began = time;
($out, $err) = batch(ids(5004), settings => "SET hrflow_embed.base_url = '$closed';");
cmp_ok(time - $began,
	'<', 60,
	'a batch does not try to connect for each element if no connection can be established');
like(
	$err,
	qr/ERROR:  could not connect to the HrFlow API/,
	'a batch without a single answer is an error');

my $few = "SET hrflow_embed.max_attempts = 2; SET hrflow_embed.base_url = '$closed';";
($out, $err) = batch(ids(3), settings => $few);
is($out, 'connection_failed 3', 'a few elements without a connection fail individually');
is( $node->safe_psql(
		'postgres',
		"$few SELECT count(*) FROM hrflow_profile_embeddings('acme', "
		  . ids(3)
		  . q{) WHERE error LIKE '%(2 attempts)%'}),
	'3',
	'a few elements without a connection fail after their own attempts');

# The second batch waits 11 seconds on connections that it has kept.  These could be dead
# although the API is not, so it makes sure.
{
	my $silent = Hrflow::StandIn->new;
	my $settings =
		"SET hrflow_embed.base_url = '"
	  . $silent->base_url
	  . "'; SET hrflow_embed.request_timeout = '11s';";

	$silent->script('silent');
	($out, $err) = batch(ids(5004), settings => $settings);
	like(
		$err,
		qr/ERROR:  the HrFlow API did not answer in time/,
		'a batch is an error if the API accepts connections, but does not answer');
	is($silent->stats->{api_requests},
		32, 'if the API does not answer for more than ten seconds, no more requests are sent');

	$silent->reset;
	my $session = Hrflow::Session->new($node);
	$session->ask("$settings SET hrflow_embed.max_concurrency = 8;");
	$session->ask("SELECT count(*) FROM hrflow_profile_embeddings('acme', "
		  . ids(8, 'fault:hold=8,id=')
		  . ');');
	$silent->script('silent', count => 8);
	is( $session->ask(
				"SELECT status, count(*) FROM hrflow_profile_embeddings('acme', "
			  . ids(100)
			  . ') GROUP BY status;'),
		"ok|100\n-- done\n",
		'a batch continues if only the connections that it has kept were silent');
	$session->finish;
}

{
	my $leaving = Hrflow::StandIn->new('--latency' => 20);
	my $url = $leaving->base_url;

	# Let it not end before the API goes down.
	my $n_answered = 1500;
	$leaving->script('id=ok', count => $n_answered);
	$leaving->script('silent');
	my $running = IPC::Run::start(
		[   'psql',
			'-XAtq',
			'-d',
			$node->connstr('postgres'),
			'-c',
			"SET hrflow_embed.base_url = '$url'",
			'-c',
			"SELECT status || ' ' || count(*) FROM hrflow_profile_embeddings('acme', "
			  . ids(5004)
			  . ", '{\"profile\": 1}') GROUP BY status ORDER BY 1" ],
		'>',
		\$out,
		'2>',
		\$err,
		IPC::Run::timeout(180));

	# Replies have arrived when their connections are used again, of which there are at
	# most 256.
	$leaving->wait_until(sub { ($_[0]{by_status}{200} // 0) == $n_answered }) or die;
	my $had = $n_answered - 256;
	$leaving->stop;

	# Again, nothing could count attempts, and those of all elements take minutes.
	$began = time;
	$running->finish or die "psql failed: $err";
	cmp_ok(time - $began,
		'<', 60, 'a batch does not try to connect for each element after the API has gone down');
	my ($ok) = $out =~ /^ok (\d+)$/m;
	my ($failed) = $out =~ /^connection_failed (\d+)$/m;
	cmp_ok($ok // 0, '>=', $had, 'results that had arrived before the API went down are kept');
	is(($ok // 0) + ($failed // 0),
		5004, 'rows without a result when the API went down have the status of the outage');
	like(
		$err,
		qr/WARNING:  batch stopped early: could not connect to the HrFlow API/,
		'a WARNING says why the batch stopped early');
}

#
# The server answers everything with errors
#
# Each case has a stand-in of its own, because failures pause an account that has had answers.
{
	my $broken = Hrflow::StandIn->new;

	$broken->script('status=500');
	($out, $err) =
	  batch(ids(5004), settings => "SET hrflow_embed.base_url = '" . $broken->base_url . "';");
	like(
		$err,
		qr/ERROR:  the HrFlow API returned an error/,
		'a batch to which the API answers HTTP 500 is an error');
	is(scalar($broken->log),
		128,
		'a batch to which the API answers HTTP 500 sends 32 requests, with four attempts each');

	my $mixed = Hrflow::StandIn->new;
	my $ids = q{(SELECT array_agg('fault:status=50' || i % 2 * 3 || ',id=' || i)
		FROM generate_series(1, 1000) i)};
	($out, $err) =
	  batch($ids, settings => "SET hrflow_embed.base_url = '" . $mixed->base_url . "';");
	like(
		$err,
		qr/ERROR:  the HrFlow API returned an error/,
		'a batch to which the API answers HTTP 500 or 503 is an error');
	cmp_ok(scalar($mixed->log), '<', 400,
		'a batch to which the API answers HTTP 500 or 503 does not send all requests');

	my $varied = Hrflow::StandIn->new;
	$ids = q{(SELECT array_agg('fault:status=' || (ARRAY[500, 520])[1 + i % 2] || ',id=' || i)
		FROM generate_series(1, 1000) i)};
	($out, $err) =
	  batch($ids, settings => "SET hrflow_embed.base_url = '" . $varied->base_url . "';");
	is(scalar($varied->log), 128,
		'a batch to which the API answers HTTP 500 or 520 sends 32 requests, with four attempts each'
	);
}

# Failures of links do not pause the account.
foreach my $case (
	[   'v.status=500,v.latency=500',
		200,
		ids(3000),
		'SET hrflow_embed.max_attempts = 1; SET hrflow_embed.max_concurrency = 16;',
		qr/^http_error \d+\nok 200$/,
		qr/WARNING:  batch stopped early: the link's host returned an error/,
		'server errors for more than ten seconds stop a batch' ],
	[   undef,
		0,
		ids(10, 'a') . '||' . ids(31, 'fault:v.status=500,id=') . '||' . ids(10, 'b'),
		'SET hrflow_embed.max_attempts = 1; SET hrflow_embed.max_concurrency = 1;',
		qr/^http_error 31\nok 20$/,
		qr/WARNING:  31 of 51 rows of the batch failed/,
		'31 server errors in succession do not stop a batch' ],
	[   undef,
		0,
		ids(10, 'a') . '||' . ids(40, 'fault:v.status=500,id='),
		'SET hrflow_embed.max_attempts = 1;',
		qr/^http_error 40\nok 10$/,
		qr/WARNING:  40 of 50 rows of the batch failed/,
		'Server errors do not stop a batch that has requested its last element' ])
{
	my ($fault, $n, $ids, $settings, $rows, $said, $what) = @$case;

	$api->reset;
	if ($fault)
	{
		$api->script('v.id=ok', count => $n);
		$api->script($fault);
	}
	($out, $err) = batch(
		$ids,
		function => 'hrflow_profile_vectors',
		settings => "SET hrflow_embed.link_hosts = '127.0.0.1'; $settings");
	like($out, $rows, "$what: the rows");
	like($err, $said, "$what: the WARNING");
	cmp_ok(scalar(grep { $_->{path} =~ /embedding$/ } $api->log), '<', 1500, "$what: the requests")
	  if $fault;
}

#
# A temporary outage
#
foreach my $fault ('reset', 'status=503')
{
	$api->reset;
	$api->script($fault, ms => 3000);
	($out, $err) = batch(ids(2000));
	is($out, 'ok 2000', "every element succeeds after three seconds of \"$fault\"");
	is($err, '', "a batch does not warn after three seconds of \"$fault\"");

	# Only the waits between attempts matter, so use the clock of the stand-in.  They are
	# at most a few seconds, but would grow to minutes if the batch did not probe.
	my @failed = grep { $_->{status} != 200 } $api->log;
	my @good = grep { $_->{status} == 200 } $api->log;
	my ($until) = sort { $b <=> $a } map { $_->{ms} } @failed;
	my ($again) = sort { $a <=> $b } grep { $_ > $until } map { $_->{begun} } @good;
	cmp_ok($again - $until, '<', 30_000, "a batch soon continues when \"$fault\" is over");
	my %answered;
	$answered{ $_->{query} }++ foreach @good;
	is(scalar(grep { $_ > 1 } values %answered),
		0, "no profile that was answered is requested again after \"$fault\"");
}

$api->reset;
$api->script('v.status=503', ms => 2000);
($out, $err) = batch(
	ids(300),
	function => 'hrflow_profile_vectors',
	settings => "SET hrflow_embed.link_hosts = '127.0.0.1';");
is($out, 'ok 300', 'every link is fetched after its host was down for two seconds');
is($err, '', 'there is no WARNING when the host of the links answers again');

# Connections that are refused and connections that break have the same status.
$api->reset;
($out, $err) = ('', '');
$node->psql(
	'postgres',
	q{SET hrflow_embed.link_hosts = '127.0.0.1'; SET hrflow_embed.max_attempts = 1;
	WITH links AS MATERIALIZED (SELECT link FROM hrflow_profile_links('acme',
			'{good-1,good-2,"fault:v.reset,id=1","fault:v.reset,id=2"}', '{"profile": 1}')
		UNION ALL SELECT 'http://127.0.0.1:1/' || i FROM generate_series(1, 2) i)
	SELECT status || ' ' || count(*) FROM hrflow_fetch_vectors((SELECT array_agg(link) FROM links))
	GROUP BY status ORDER BY 1},
	stdout => \$out,
	stderr => \$err);
is($out, "connection_failed 4\nok 2", 'two links are refused, two break, and two are fetched');
like(
	$err,
	qr/WARNING:  4 of 6 rows of the batch failed with status "connection_failed"/,
	'a WARNING counts all failures with the status that is shown');

#
# Batches of links to one host
#
# Fetch the links of this many profiles, after other SQL that returns links.
sub fetch
{
	my ($n, $others) = @_;
	my ($out, $err) = ('', '');

	$others //= 'SELECT NULL WHERE false';
	$node->psql(
		'postgres',
		q{SET hrflow_embed.link_hosts = '127.0.0.1';
			CREATE TEMP TABLE link AS SELECT link FROM hrflow_profile_links('acme', }
		  . ids($n) . qq{, '{"profile": 1}');
			SELECT status || ' ' || count(*) FROM hrflow_fetch_vectors(
				ARRAY($others UNION ALL SELECT link FROM link)) GROUP BY status ORDER BY 1},
		stdout => \$out,
		stderr => \$err);
	return ($out, $err);
}

my ($gone_host) = $closed =~ m{^(.*)/v1$};
($out, $err) = fetch(0, "SELECT '$gone_host/' || i FROM generate_series(1, 5004) i");
like(
	$err,
	qr/ERROR:  could not connect to the link's host/,
	'a batch of links is an error if their host is down');
($out, $err) = fetch(100, "SELECT '$gone_host/' || i FROM generate_series(1, 40) i");
is($out, "connection_failed 40\nok 100", 'links to other hosts are fetched if one host is down');

foreach my $fault ('v.reset', 'v.status=503')
{
	$api->reset;
	$api->script($fault, ms => 3000);
	($out, $err) = fetch(2000);
	is($out, 'ok 2000', "Every link is fetched after three seconds of \"$fault\".");
	is($err, '', "Nothing is warned of after three seconds of \"$fault\".");
}

$api->reset;
$api->script('v.id=ok', count => 300);
$api->script('v.reset');
($out, $err) = fetch(3000);
is( $out,
	"connection_failed 2700\nok 300",
	'links that were fetched before their host went down are kept');
like(
	$err,
	qr/batch stopped early: lost the connection .*\n.*final reply for 300 of 3000 links/,
	'a WARNING says why a batch of links stopped early');

# A text may have been processed when its connection breaks: it is not sent again.
$api->reset;
$api->script('reset', ms => 1000);
$out = $node->safe_psql(
	'postgres',
	q{SELECT status || ' ' || count(*)
		FROM hrflow_text_embeddings((SELECT array_agg('nurse ' || i)
			FROM generate_series(1, 500) i))
		GROUP BY status ORDER BY 1});
like(
	$out,
	qr/^connection_failed \d+\nok \d+$/,
	'a text whose connection breaks fails, and the others are embedded');
my ($lost, $embedded) = $out =~ /(\d+)/g;
is(($lost // 0) + ($embedded // 0),
	500, 'each text has a row after a second of broken connections');
cmp_ok($lost // 500, '<', 100, 'one text at a time is sent while connections break');

# A text is not sent again after a server error, either.
foreach my $status (500, 503)
{
	my $restarted = Hrflow::StandIn->new('--latency' => 20);

	$restarted->script('id=ok', count => 50);
	$restarted->script("status=$status", ms => 1000);
	my ($rows, $errors) = ('', '');
	$node->psql(
		'postgres', "SET hrflow_embed.max_concurrency = 4;
		SET hrflow_embed.base_url = '" . $restarted->base_url . "';
		SELECT status || ' ' || count(*)
		FROM hrflow_text_embeddings((SELECT array_agg('nurse ' || i)
			FROM generate_series(1, 1000) i))
		GROUP BY status ORDER BY 1",
		stdout => \$rows,
		stderr => \$errors);
	my ($n_failed, $n_embedded) = $rows =~ /^http_error (\d+)\nok (\d+)$/;
	is(($n_failed // 0) + ($n_embedded // 0),
		1000, "each text has a row after a second of HTTP $status");
	cmp_ok($n_embedded // 0, '>=', 600, "a second of HTTP $status does not stop a batch of texts");
	unlike($errors, qr/stopped early/, "no WARNING says that a second of HTTP $status stopped it");
}

#
# Pauses of an outage are for requests, so elements for which none is sent do not wait
#
# In both cases no request is in flight when the first of 100 such elements is considered.
# At first, requests of the batch are on trial, because 31 of 32 were refused and the other
# was lost.  Then ten texts were lost, so that the API may be down.
#
{
	my $unsent = "(SELECT array_agg(repeat('x', 100000) || i) FROM generate_series(1, 100) i)";
	my $refused =
	  "(SELECT array_agg('fault:latency=500,status=422,id=' || i) FROM generate_series(1, 31) i)";

	$began = time;
	($out, $err) = batch("ARRAY['fault:reset,id=lost'] || $refused || $unsent || ARRAY['good']",
		settings => 'SET hrflow_embed.max_attempts = 1;');
	cmp_ok(time - $began,
		'<', 12, 'elements for which no request is sent do not wait if others were refused');
	is( $out,
		"connection_failed 1\ninvalid_request 131\nok 1",
		'a batch continues after refusals, a lost request, and elements for which none is sent');

	$api->reset;
	$api->script('reset', count => 10);
	$began = time;
	$out = $node->safe_psql(
		'postgres',
		q{SET hrflow_embed.max_concurrency = 2;
		SELECT status || ' ' || count(*) FROM hrflow_text_embeddings(
			(SELECT array_agg('lost ' || i) FROM generate_series(1, 10) i)
			|| (SELECT array_agg(repeat('x', 1048576) || i) FROM generate_series(1, 100) i)
			|| ARRAY['nurse']) GROUP BY status ORDER BY 1});
	cmp_ok(time - $began,
		'<', 12, 'texts for which no request is sent do not wait if others were lost');
	is( $out,
		"connection_failed 10\ninvalid_request 100\nok 1",
		'a batch continues after lost texts, and texts for which no request is sent');
}

#
# Progress
#
{
	my @psql = ('psql', '-XAtq', '-d', $node->connstr('postgres'));
	my $statement = 'SELECT count(*) FROM hrflow_profile_embeddings(\'acme\', '
	  . ids(14, 'fault:latency=1000,id=') . ')';
	local $ENV{PGAPPNAME} = 'psql';
	my $began = time;

	IPC::Run::run([ @psql, '-c', 'SET hrflow_embed.max_concurrency = 2', '-c', $statement ],
		'>', \$out, '2>', \$err, IPC::Run::timeout(60))
	  or die "psql failed: $err";
	is($out, "14\n", 'a batch that shows progress returns its rows');
	my @lines = split /\n/, $err;
	like(
		$lines[0] // '',
		qr/^INFO:  batch: \d+ of 14 elements requested, \d+ rows so far, 0 of them failed/,
		'psql shows the progress of a batch that takes seven seconds');
	cmp_ok(5 * @lines, '<=', time - $began, 'psql shows progress at most every five seconds');

	# The API answers nothing.
	$api->reset;
	$api->script('silent');
	$err = '';
	my $waiting = IPC::Run::start(
		[ @psql, '-c', "SET hrflow_embed.request_timeout = '600s'", '-c', $statement ],
		'>', \$out, '2>', \$err, IPC::Run::timeout(60));
	eval { $waiting->pump until $err =~ /\n/ };
	like(
		$err,
		qr/^INFO:  batch: 14 of 14 elements requested, 0 rows so far/,
		'psql shows the progress of a batch before the first reply arrives');
	$waiting->signal('INT');
	$waiting->finish;
	like(
		$err,
		qr/canceling statement due to user request/,
		'a batch that shows progress can be canceled');
	$api->reset;
}

done_testing();
