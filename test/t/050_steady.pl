# A long-lived backend does not leak: after 9,000 calls, some of which fail,
# time out or are in savepoints that are rolled back, it has the same sockets
# and the same memory, and successful calls share one connection.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use List::Util qw(max);
use Test::More;

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new(
	'steady', $api,
	max_attempts => 1,
	max_response_size => '64kB',
	link_hosts => '127.0.0.1');

my $session = Hrflow::Session->new($node, timeout => 300);

sub sql { return $session->ask("$_[0];") =~ s/\n?-- done\n.*//sr; }

sql(q{
	CREATE PROCEDURE call_mixed(calls int) LANGUAGE plpgsql AS $$
	DECLARE
		ids text[] := ARRAY['nurse-1', 'missing-1', 'fault:status=500', 'nurse-2', 'fault:reset',
			'fault:truncated', 'nurse-3', 'fault:big=100000', 'fault:break=20', 'nurse-4'];
	BEGIN
		FOR i IN 1 .. calls LOOP
			BEGIN	-- a savepoint
				IF i % 50 = 0 THEN
					PERFORM count(*) FROM hrflow_profile_vectors('acme', ids);
				ELSIF i % 7 = 0 THEN
					PERFORM hrflow_profile_embedding_links('acme', ids[i % 10 + 1],
						'{"profile": 1}');
				ELSE
					PERFORM hrflow_profile_embedding('acme', ids[i % 10 + 1], '{"profile": 1}');
				END IF;
				IF i % 3 = 0 THEN
					RAISE EXCEPTION 'rolled back';
				END IF;
			EXCEPTION WHEN OTHERS THEN
				NULL;
			END;
		END LOOP;
	END $$;
	CREATE PROCEDURE call_late(calls int) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. calls LOOP
			BEGIN
				SET LOCAL hrflow_embed.request_timeout = '10ms';
				PERFORM hrflow_profile_embedding('acme', 'fault:silent');
			EXCEPTION WHEN OTHERS THEN
				NULL;
			END;
		END LOOP;
	END $$;
});

sub state
{
	my @state = split /\|/, sql(
		q{
		SELECT (SELECT sum(total_bytes) FROM pg_backend_memory_contexts),
			substring(pg_read_file('/proc/self/status') FROM 'RssAnon:\s+(\d+)')});
	return { sockets => $session->sockets, contexts => $state[0], rss => $state[1] };
}

sub cancel_some
{
	my ($n) = @_;

	sql(q{SET statement_timeout = '3ms'});
	sql(q{SELECT hrflow_profile_embedding('acme', 'fault:silent')}) for 1 .. $n;
	sql(q{RESET statement_timeout});
	return;
}

# Calls of all kinds: $n that end soon, some that time out, and some that are
# canceled.
sub call_all
{
	my ($n) = @_;

	sql("CALL call_mixed($n)");
	sql('CALL call_late(50)');
	cancel_some(20);
	sql('CALL call_mixed(50)');
	return state();
}

# Memory that an allocator keeps for reuse is not a leak: a leak grows with
# every round.
my $ROUNDS = 8;
my $CALLS = 2000;

SKIP:
{
	skip '/proc is not available', 4 unless -e '/proc/self/fd';

	my $before = call_all(1000);
	my @states = ($before);
	my $growth;
	my $round = 0;

	do
	{
		push @states, call_all($CALLS);
		$growth = $states[-1]{rss} - $states[-2]{rss};
	} while (++$round < 4 || ($growth > $CALLS * 32 / 1024 && $round < $ROUNDS));
	my $after = $states[-1];

	# A batch of ten profiles keeps at most about three dozen connections for
	# some time.
	cmp_ok(
		$after->{sockets}, '<=',
		max($before->{sockets} + 5, 40),
		'no more sockets are open than before, apart from those a batch keeps');
	cmp_ok(
		$after->{contexts}, '<=',
		$before->{contexts} + 65536,
		"PostgreSQL's memory contexts have not grown");
	SKIP:
	{
		# AddressSanitizer keeps freed memory, and has shadow memory for it.
		skip 'the process is instrumented', 1 if $ENV{HRFLOW_INSTRUMENT};
		cmp_ok(
			$growth, '<=',
			$CALLS * 32 / 1024,
			"the last $CALLS calls have not made the process grow by 32 bytes each");
	}
	foreach my $what (sort keys %$before)
	{
		note("$what: " . join(' ', map { $_->{$what} } @states));
	}

	$api->reset;
	sql(q{SELECT count(hrflow_profile_embedding('acme', 'nurse-' || i, '{"profile": 1}'))
		FROM generate_series(1, 2000) i}
	);
	sql(q{SELECT count(hrflow_profile_embedding('acme', 'nurse-' || i, '{"profile": 1}'))
		FROM generate_series(1, 10) i}
	);
	my %connections = map { $_->{connection} => 1 } $api->log;
	is(scalar(keys %connections), 1, '2,010 successful calls share one connection');
}
$session->finish;

done_testing();
