# If an allocation fails, or a cancel arrives, at any point of a statement, it
# ends with an error or rows as documented in docs/reference.md, the backend's
# next statement works, and nothing is left open or leased.  A regression test
# could cause neither at a chosen point.
#
# Each allocation of a statement, in libcurl and in the extension, is made to
# fail, one at a time, and so is each wait and each call of libcurl's multi handle,
# and the statement is canceled at each wakeup of its backend.  The waits of a backend that
# might poll are only counted.
use strict;
use warnings FATAL => 'all';
use Hrflow::Injector;
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use List::Util              qw(max);
use PostgreSQL::Test::Utils ();
use Test::More;

# Maximum number of points to test; of more, this many are chosen.
my $most_points = 80;

# Time in seconds after which a session dies whose statement, which normally takes
# milliseconds, has not ended
my $most_seconds = 60;

# A backend whose statements have 4 requests in flight may keep 4 more handles,
# for replies in use and waiting links.  A leak would add one at each point.
my $most_handles = 16;

my $api = Hrflow::StandIn->new;
my $injector = Hrflow::Injector->new;
my $node = Hrflow::Node->new(
	'injection', $api,
	link_hosts => '127.0.0.1, localhost',
	log_error_verbosity => 'verbose',
	max_attempts => 1,
	request_timeout => '6s');
$injector->leave;

$node->safe_psql(
	'postgres', "SELECT hrflow_create_store('kept');
	SELECT hrflow_track('kept', 'acme', (SELECT array_agg('fault:latency=2,id=' || i)
		FROM generate_series(1, 20) i));
	CREATE FUNCTION state_of_kept() RETURNS text LANGUAGE sql AS \$\$
		SELECT 'ok ' || count(*) FILTER (WHERE state = 'ok') || ' leased ' || count(lease_until)
			|| ' attempts ' || sum(attempts) || ' vectors ' || (SELECT count(*) FROM kept)
				FROM kept_profile \$\$;
	CREATE FUNCTION caught(statement text) RETURNS text LANGUAGE plpgsql AS \$\$
	DECLARE result text;
	BEGIN
		BEGIN
			EXECUTE statement INTO result;
		EXCEPTION WHEN query_canceled OR out_of_memory THEN
			EXECUTE statement INTO result;
			result := 'caught ' || result;
		END;
		RETURN result;
	END \$\$;");

#
# The statements.  "ok" is their output if all is well.  They must wait for
# their requests: without latency the wakeups would depend on scheduling.
#
sub of_ids
{
	return "(SELECT array_agg('fault:latency=2,id=' || i) FROM generate_series(1, $_[0]) i)";
}

sub counted
{
	return "SELECT string_agg(s, ' ' ORDER BY s) FROM (SELECT status || '=' || count(*) FROM $_[0]
		GROUP BY status) c(s)";
}

my $post = {
	name => 'hrflow_text_embedding',
	sql => q{SELECT 'ok' WHERE hrflow_text_embedding('x') IS NOT NULL;},
	ok => 'ok' };
my $single = sub {
	return {
		name => 'hrflow_profile_embedding',
		ok => 'ok',
		sql => qq{SELECT 'ok'
			WHERE hrflow_profile_embedding('acme', '$_[0]', '{"profile": 1}') IS NOT NULL;}
	};
};
my $batch = sub {
	my ($n) = @_;
	return {
		name => 'hrflow_profile_embeddings',
		ok => "ok=$n",
		sql => counted("hrflow_profile_embeddings('acme', " . of_ids($n) . ')') . ';' };
};
my $vectors = sub {
	my ($n) = @_;
	return {
		name => 'hrflow_profile_vectors',
		ok => "ok=$n",
		sql => counted("hrflow_profile_vectors('acme', " . of_ids($n) . q{, '{"profile": 1}')})
		  . ';' };
};
my $ahead = sub {
	my ($n) = @_;
	return {
		name => 'read-ahead in a target list and in LATERAL',
		ok => "ok=$n",
		sql => qq{SELECT 'ok=' || count(v) FROM (SELECT hrflow_fetch_vector(l.link) AS v
			FROM generate_series(1, $n) i, LATERAL hrflow_profile_embedding_links('acme',
				'fault:latency=2,id=' || i, '{"profile": 1}') l OFFSET 0) s;} };
};
my $caught = {
	name => 'hrflow_profile_vectors in a block that catches errors',
	ok => 'ok=12',
	sql => "SELECT caught(\$\$"
	  . counted("hrflow_profile_vectors('acme', " . of_ids(12) . q{, '{"profile": 1}')}) . '$$);' };
my $refresh = {
	name => 'hrflow_refresh',
	ok => '',
	before => "UPDATE kept_profile SET due_at = now();",
	sql => "CALL hrflow_refresh('kept', batch_size => 8);" };

# Start a new backend, whose settings are not set by statements.
sub new_session
{
	my ($tls) = @_;
	my $session = Hrflow::Session->new($node, timeout => $most_seconds);

	$session->ask(
		"LOAD 'hrflow_embed'; SET application_name = pg_cron; SET hrflow_embed.max_concurrency = 4;"
	);
	$session->ask("SET hrflow_embed.base_url = '"
		  . $api->base_url('https')
		  . "'; SET hrflow_embed.ca_file = '"
		  . $api->ca . "';")
	  if $tls;
	return $session;
}

sub descriptors
{
	my ($session) = @_;
	return
	  scalar grep { (readlink($_) // '') !~ m{/(?:base|global|pg_wal)/} }
	  glob("/proc/" . $session->pid . '/fd/*');
}

# Execute a statement.  Return its output, and its effects on the backend.
sub ask
{
	my ($session, $statement, $what, $nth) = @_;

	$session->ask($statement->{before}) if $statement->{before};
	$injector->arm($session->pid, $what, $nth);
	my $printed = $session->ask($statement->{sql});
	my $seen = $injector->disarm;
	$printed =~ s/-- done\n//;
	chomp $printed;
	return ($printed, $seen);
}

# Choose the points to test, out of this many.
sub points
{
	my ($n) = @_;
	my $stride = max(1, $n / $most_points);
	return map { 1 + int($_ * $stride) } 0 .. $n / $stride - 1;
}

#
# Test a statement with a failure at each of its points.  A case consists of a
# statement, what fails, a pattern of the allowed output, and optionally
#   tls => 1       over TLS
#   first => 1     in a backend that has sent no request yet, each time
#
sub walk
{
	my ($statement, $what, $allowed, %more) = @_;
	my $session = new_session($more{tls});
	my $name =
		"$statement->{name}, "
	  . ($more{first} ? 'first of its backend' : 'another')
	  . ($more{tls} ? ', over TLS'             : '')
	  . ": $what";
	my $made = 0;
	my (%printed, @problems);

	if (!$more{first})
	{
		ask($session, $statement, $what, 0) for 1 .. 2;
	}
	my ($printed, $seen) = ask($session, $statement, $what, 0);
	my $descriptors = descriptors($session);
	is($printed, $statement->{ok}, "$name: the statement succeeds without a failure");
	note("$seen->{seen} points");

	foreach my $nth (points($seen->{seen}))
	{
		my $problem = sub { push @problems, "at point $nth: $_[0]" };

		if ($more{first})
		{
			$session->finish;
			$session = new_session($more{tls});
		}
		my ($printed, $seen) = ask($session, $statement, $what, $nth);
		my ($error) = $printed =~ /ERROR:  (\w+)/;

		$printed{ $error // $printed =~ s/\n.*//sr }++;
		$problem->("it printed $printed")
		  if $printed !~ ($seen->{injected} ? $allowed : qr/^\Q$statement->{ok}\E$/);
		$problem->("$seen->{added} requests are left in libcurl") if $seen->{added} != 0;
		$made = $seen->{handles} + ($more{first} ? 0 : $made);

		# It may have arrived between two statements: before the first wakeup,
		# or at the last one, after which there is one more.
		$problem->('a cancel was lost')
		  if $what eq 'wakeups'
		  && $seen->{injected}
		  && $printed eq $statement->{ok}
		  && $nth > 1
		  && $seen->{seen} > $nth + 1;
		if ($statement == $refresh)
		{
			my $state = $session->ask('SELECT state_of_kept();');
			$problem->("the store has $state")
			  if $state !~ ($error && $error eq '57014' ? qr/leased 0 attempts 0 / : qr/leased 0 /);
		}

		($printed, $seen) = ask(
			$session,
			{   %$statement,
				before => $statement->{before}
				  && "UPDATE kept_profile SET due_at = now(), state = 'due', attempts = 0;" },
			$what, 0);
		$problem->("the next one printed $printed") if $printed ne $statement->{ok};
		$made += $seen->{handles};
		$problem->("there are $made handles more") if $made > $most_handles;
		if ($statement == $refresh)
		{
			my $state = $session->ask('SELECT state_of_kept();');
			$problem->("then the store has $state")
			  if $state !~ /^ok 20 leased 0 attempts 0 vectors 20\n/;
		}

		# A request whose HTTP/2 connection was lost is sent again over
		# HTTP/1.1; some of these connections are kept.  On a busy machine, a
		# request may find that a connection is still in use, and open another
		# one, which is kept.  A leak would add up.
		$problem->(descriptors($session) . " descriptors are open, instead of $descriptors")
		  if descriptors($session) > $descriptors + 3;
	}
	is(join("\n", @problems),
		'', "$name: the statement ends as it should and leaves nothing behind");
	note(join ', ', map { "$_ $printed{$_} times" } sort keys %printed);
	$session->finish;
	return \%printed;
}

#
# Memory
#
# Almost always the error is 53200.  libcurl does not report some failures: a
# name is then not resolved; up to 8.5, a header is reported as too long; if
# there is no memory for the query of a URL, the request is sent without it, so
# the server refuses it; and 8.22 may lose a request, which then times out.
#
my $of_memory =
  qr/^(?:.*ERROR:  (?:53200:\ out\ of\ memory|08001:|08006:|54000:|22023:\ HrFlow\ source
		|58000:\ link)
	|(?:timeout=\d\ ?|connection_failed=\d\ ?|invalid_request=\d\ ?|link_expired=\d\ ?
		|ok=\d+\ ?|too_large=\d\ ?)+
	|caught\ ok=12|ok|WARNING:.*skipping\ source|)/xm;

foreach my $case (
	[ $single->('nurse') ],
	[$post],
	[ $batch->(3) ],
	[ $vectors->(3) ],
	[ $vectors->(3), tls => 1 ],
	[ $ahead->(3) ],
	[$refresh],
	[$caught],
	[ $single->('nurse'), first => 1 ],
	[ $vectors->(2), first => 1 ],
	[ $single->('nurse'), first => 1, tls => 1 ])
{
	my ($statement, %more) = @$case;
	my $printed = walk($statement, 'memory', $of_memory, %more);
	cmp_ok($printed->{53200} // $printed->{"caught $statement->{ok}"} // 0,
		'>=', 10, "$statement->{name}: most failures are reported as out of memory");
}

# Refresh a store while the first of four replies that arrive together is without memory.
# The run waits only 100 ms for the others, so it may lose some on a busy machine: try up
# to five times, with a new store that "create" creates, until "query" returns what is
# "wanted".  Returns what the run printed and the number of failures, and the number of
# requests and the result of the query after "next".
sub refresh_without_memory
{
	my ($create, $next, $query, $wanted) = @_;
	my ($printed, $seen, $requests, $found);

	foreach my $try (1 .. 5)
	{
		my $session = new_session();

		$session->ask("DROP SCHEMA IF EXISTS paid CASCADE; CREATE SCHEMA paid; $create");
		$api->reset;
		$api->script('hold=4', count => 4);
		$injector->arm($session->pid, 'bodies', 1);
		$printed = $session->ask("CALL hrflow_refresh('paid.vectors');");
		$seen = $injector->disarm;
		$session->ask($next);
		$requests = $api->stats->{api_requests};
		$found = $session->ask($query);
		$session->finish;
		last if $found eq $wanted;
		note("try $try found $found");
	}
	return ($printed, $seen->{injected}, $requests, $found);
}

# A reply without memory ends a statement.  A refresh then loses no other reply
# that was paid for, and a batch does not return waiting requests as answered.
SKIP:
{
	skip 'AddressSanitizer has allocators of its own', 9 if $ENV{HRFLOW_INSTRUMENT};

	my $wanted = "3\n0\n-- done\n";
	my ($printed, $injected, $requests, $found) = refresh_without_memory(
		"SELECT hrflow_create_store('paid.vectors');
		SELECT hrflow_track('paid.vectors', 'acme',
			(SELECT array_agg('paid' || i) FROM generate_series(1, 20) i));",
		'',
		'SELECT count(*) FROM paid.vectors; SELECT count(lease_until) FROM paid.vectors_profile;',
		$wanted);
	like(
		$printed,
		qr/^.*ERROR:  53200: out of memory/m,
		'a refresh ends if there is no memory for a reply');
	is($injected, 1, 'there was no memory for one reply');
	is($requests, 4, 'no request is sent after a reply without memory');
	is($found, $wanted, 'the other replies are written when there is no memory for one');

	# A text that may have been sent is not sent again
	$wanted = "failed|1\nok|11\n-- done\n";
	($printed, undef, $requests, $found) = refresh_without_memory(
		"SELECT hrflow_create_store('paid.vectors', content => 'text');
		CREATE TABLE paid.words (word text);
		SELECT hrflow_track_table('paid.vectors', 'paid.words', 'word',
			content_columns => '{word}');
		INSERT INTO paid.words SELECT 'paid' || i FROM generate_series(1, 12) i;",
		"CALL hrflow_refresh('paid.vectors');",
		'SELECT state, count(*) FROM paid.vectors_profile GROUP BY 1 ORDER BY 1;',
		$wanted);
	like(
		$printed,
		qr/^.*ERROR:  53200: out of memory/m,
		'a refresh of texts ends if there is no memory for a reply');
	is($requests, 12, 'a text whose reply was lost for lack of memory is not sent again');
	is($found, $wanted, 'a text whose reply was lost for lack of memory is reported as failed');

	my $session = new_session();
	$session->ask('SET hrflow_embed.max_requests_per_minute = 6;');
	$api->reset;
	$injector->arm($session->pid, 'bodies', 1);
	like(
		$session->ask(
			"SELECT count(*) FROM hrflow_profile_embeddings('acme',
				(SELECT array_agg('fault:latency=300,id=rated' || i) FROM generate_series(1, 4) i));"
		),
		qr/^.*ERROR:  53200: out of memory/m,
		'a batch ends if there is no memory for a reply while requests wait to be sent');
	$injector->disarm;
	is($api->stats->{api_requests},
		1, 'requests that wait are not sent after a reply without memory');
	$session->finish;
}

# Decompression
foreach my $fault ('gzip', 'v.gzip')
{
	my $session = new_session();
	my $statement =
	  counted("hrflow_profile_vectors('acme', '{\"fault:$fault,id=1\"}', '{\"profile\": 1}')")
	  . ';';

	$injector->arm($session->pid, 'inflations', 1);
	like(
		$session->ask($statement),
		qr/^.*ERROR:  53200: out of memory/m,
		"$fault: lack of memory to decompress a reply is reported as out of memory");
	is($injector->disarm->{injected}, 1, "$fault: there was no memory to decompress a reply");
	is($session->ask($statement), "ok=1\n-- done\n", "$fault: the next reply is decompressed");
	$session->finish;
}

#
# Waits, and libcurl's multi handle
#
# The texts of a store are requested one at a time, over a connection that is open
# already.  The failure occurs when a reply has arrived, but has not been taken yet.
#
my %errors = (
	waits => qr/ERROR:  (?:XX000: epoll_wait\(\) failed|53200: could not watch)/,
	actions => qr/ERROR:  58000: curl_multi_socket_action failed/,
	additions => qr/ERROR:  53200: out of memory/);

$node->safe_psql(
	'postgres',
	"SELECT hrflow_create_store('whole', content => 'text'); CREATE TABLE wholes (whole text);
	SELECT hrflow_track_table('whole', 'wholes', 'whole', content_columns => '{whole}');");
foreach my $what (sort keys %errors)
{
	my $session = new_session();
	my $nerrors = 0;
	my @problems;

	$session->ask(q{SET hrflow_embed.max_concurrency = 1; SELECT hrflow_text_embedding('x');});
	foreach my $nth (1 .. 10)
	{
		$session->ask(
			"TRUNCATE whole, whole_profile, wholes;
			INSERT INTO wholes SELECT 'fault:latency=5,id=$what$nth-' || i
				FROM generate_series(1, 5) i;");
		$api->reset;
		$injector->arm($session->pid, $what, $nth);
		my $printed = $session->ask("CALL hrflow_refresh('whole');");
		my $injected = $injector->disarm->{injected};
		my $nanswered = $api->stats->{api_requests};

		$nerrors += $injected;
		push @problems, "at point $nth: it printed $printed"
		  if $printed !~ ($injected ? $errors{$what} : qr/^-- done/);
		my $state =
		  $session->ask(
			'SELECT count(*), (SELECT count(lease_until) FROM whole_profile) FROM whole;');
		push @problems, "at point $nth: $nanswered answers, but the store has $state"
		  if $state ne "$nanswered|0\n-- done\n";
	}
	is(join("\n", @problems),
		'', "a refresh keeps all replies that have arrived before one of its $what fails");
	cmp_ok($nerrors, '>=', 4, "a refresh ends if one of its $what fails");
	$session->finish;

	# After a failure in read-ahead, a function that is called again replaces the
	# multi handle, and the requests ahead are lost.
	walk($_, $what, qr/^(?:.*$errors{$what}|.*ERROR:  08006|\Q$_->{ok}\E$)/m)
	  foreach $batch->(20), $vectors->(10), $ahead->(10), $refresh;
}

#
# Cancels
#
foreach my $case (
	[ $single->('fault:slow=1') ],
	[ $batch->(40) ],
	[ $vectors->(20) ],
	[ $vectors->(20), tls => 1 ],
	[ $ahead->(20) ],
	[$refresh], [$caught])
{
	my ($statement, %more) = @$case;
	my $printed =
	  walk($statement, 'wakeups', qr/^(?:.*ERROR:  57014: |(?:caught )?\Q$statement->{ok}\E$)/m,
		%more);
	cmp_ok($printed->{57014} // $printed->{"caught $statement->{ok}"} // 0,
		'>=', 5, "$statement->{name}: most cancels are reported as cancels");
}

# A backend does not poll while a batch of a function in the target list has more requests
# than may be in flight, although a request that was read ahead is due to be retried.  The
# batch waits for six seconds, and the retry is due after one.
{
	my $session = new_session();

	$session->query(
		q{SET hrflow_embed.max_concurrency = 2; SET hrflow_embed.max_attempts = 3;
		SET hrflow_embed.request_timeout = '60s';
		CREATE FUNCTION pg_temp.nested(i int) RETURNS bigint LANGUAGE plpgsql VOLATILE
			AS $$BEGIN RETURN CASE i WHEN 1 THEN (
				SELECT count(*) FROM hrflow_profile_embeddings('S',
					ARRAY['fault:first=1,status=500', 'fault:latency=6000,id=a',
						'fault:latency=6000,id=b']) WHERE status = 'ok')
			END; END$$;});
	$injector->arm($session->pid, 'wakeups', 0);
	is( $session->query(
			q{SELECT hrflow_profile_embedding('S', hid) IS NOT NULL, pg_temp.nested(i)
			FROM (VALUES (1, 'fault:latency=300'),
				(2, 'fault:first=1,status=500,retry_after=1')) v (i, hid);}
		),
		"t|3\nt|",
		'a batch is run while a request that was read ahead is due to be retried');
	my $waits = $injector->disarm->{seen};
	ok($waits > 0 && $waits < 1000, 'a backend does not poll while it waits for a batch')
	  or diag("the backend waited $waits times");
	$session->finish;
}

unlike(
	PostgreSQL::Test::Utils::slurp_file($node->logfile),
	qr/PANIC|terminated by signal|XX000(?!: epoll_wait\(\) failed)/,
	'no backend reached what cannot happen');

done_testing();
