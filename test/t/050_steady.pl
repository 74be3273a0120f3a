# A backend that lives long stays as it is: after 10,000 calls, good ones, bad
# ones, some out of time and some in savepoints rolled back, it has the same
# sockets and the same memory, and good calls share one connection.
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

SKIP:
{
	skip '/proc is not to be had', 4 unless -e '/proc/self/fd';

	# Until the allocator has what it keeps: RSS is level after a thousand.
	sql('CALL call_mixed(1000)');
	sql('CALL call_late(50)');
	cancel_some(20);
	sql('CALL call_mixed(50)');
	my $before = state();

	sql('CALL call_mixed(9000)');
	sql('CALL call_late(200)');
	cancel_some(100);
	sql('CALL call_mixed(50)');
	my $after = state();

	# A batch of ten profiles keeps at most some three dozen connections, sooner
	# or later.
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
		# AddressSanitizer keeps what is freed, and has a shadow for it.
		skip 'the process is instrumented', 1 if $ENV{HRFLOW_INSTRUMENT};
		cmp_ok(
			$after->{rss}, '<=',
			$before->{rss} + 1024,
			"the process has not grown by more than the allocator's 1 MB");
	}
	note("$_: $before->{$_} $after->{$_}") foreach sort keys %$before;

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
