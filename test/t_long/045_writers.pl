# Three sessions refresh a store while five write to the tables that feed it, for ten
# minutes or HRFLOW_STRESS seconds.  They insert, change, rename, delete and reload rows,
# roll back, track and untrack profiles, and reconcile a table.  Every 30 seconds all stop:
# each profile that is wanted has the right vectors, no other has any, and none was bought
# more often than it was inserted or changed.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use List::Util qw(max min);
use Test::More;
use Time::HiRes qw(sleep time);

my $seconds = $ENV{HRFLOW_STRESS} // 600;
my $api = Hrflow::StandIn->new('--dim' => 16, '--latency' => 5);
my $node = Hrflow::Node->new(
	'writers', $api,
	link_hosts => '127.0.0.1',
	max_concurrency => 16,
	refresh_debounce => '1s');
my $store = Hrflow::Store->new($node, $api, 'shop');
$store->add_table('other');

# An INSERT of a profile, or a change of it, justifies one purchase.
$store->sql(
	q{
	CREATE TABLE shop.reason (profile_id text);
	CREATE FUNCTION shop.note_reason() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO shop.reason VALUES (NEW.profile_id);
		RETURN NULL;
	END $$;
	CREATE TRIGGER note_insert AFTER INSERT ON shop.embedding_profile FOR EACH ROW
		EXECUTE FUNCTION shop.note_reason();
	CREATE TRIGGER note_change AFTER UPDATE ON shop.embedding_profile FOR EACH ROW
		WHEN (NEW.generation > OLD.generation) EXECUTE FUNCTION shop.note_reason();
	CREATE TABLE shop.done (what text, ended text);
	DROP TRIGGER note_claim ON shop.embedding_profile;

	CREATE FUNCTION shop.anyone(kind text) RETURNS text LANGUAGE sql VOLATILE AS $$
		SELECT kind || '-' || floor(random() * 2000) $$;
	CREATE FUNCTION shop.some(n int) RETURNS text[] LANGUAGE sql VOLATILE AS $$
		SELECT array_agg(shop.anyone('nurse')) FROM generate_series(1, n) $$;

	CREATE PROCEDURE shop.write_for(seconds float) LANGUAGE plpgsql AS $$
	DECLARE
		ends timestamptz := clock_timestamp() + seconds * interval '1 second';
		kinds text[] := '{insert,insert,insert,change,change,rename,delete,reload,truncate,other,
			rollback,mark,track,untrack,reconcile}';
		kind text;
		ids text[];
		how text;
	BEGIN
		WHILE clock_timestamp() < ends LOOP
			kind := kinds[1 + floor(random() * cardinality(kinds))];
			ids := shop.some(1 + (random() * 5)::int);
			how := 'ok';
			BEGIN
				CASE kind
				WHEN 'insert' THEN
					INSERT INTO shop.candidate (hrflow_id) SELECT DISTINCT unnest(ids)
						ON CONFLICT DO NOTHING;
				WHEN 'change' THEN
					UPDATE shop.candidate SET cv = random() WHERE hrflow_id = ANY (ids);
				WHEN 'rename' THEN
					UPDATE shop.candidate SET hrflow_id = shop.anyone('nurse')
						WHERE hrflow_id = ids[1];
				WHEN 'delete' THEN
					DELETE FROM shop.candidate WHERE hrflow_id = ANY (ids);
				WHEN 'reload' THEN
					WITH deleted AS (DELETE FROM shop.candidate
						WHERE id IN (SELECT id FROM shop.candidate ORDER BY random() LIMIT 50)
						RETURNING hrflow_id)
					SELECT array_agg(hrflow_id) FROM deleted INTO ids;
					INSERT INTO shop.candidate (hrflow_id) SELECT unnest(ids[2:])
						ON CONFLICT DO NOTHING;
				WHEN 'truncate' THEN
					IF random() < 0.1 THEN
						LOCK TABLE shop.other IN ACCESS EXCLUSIVE MODE;
						ids := ARRAY(SELECT hrflow_id FROM shop.other);
						TRUNCATE shop.other;
						INSERT INTO shop.other SELECT unnest(ids[2:]);
					END IF;
				WHEN 'other' THEN
					INSERT INTO shop.other SELECT DISTINCT unnest(ids);
					DELETE FROM shop.other WHERE hrflow_id = ANY (shop.some(30));
				WHEN 'rollback' THEN
					DELETE FROM shop.candidate WHERE hrflow_id = ANY (shop.some(30));
					INSERT INTO shop.candidate (hrflow_id) SELECT DISTINCT unnest(ids)
						ON CONFLICT DO NOTHING;
					RAISE EXCEPTION USING ERRCODE = '00R00', MESSAGE = 'undo it';
				WHEN 'mark' THEN
					PERFORM hrflow_mark_due('shop.embedding', 'acme', ids);
				WHEN 'track' THEN
					PERFORM hrflow_track('shop.embedding', 'acme', ARRAY[shop.anyone('teacher')]);
				WHEN 'untrack' THEN
					PERFORM hrflow_untrack('shop.embedding', 'acme',
						ARRAY(SELECT 'teacher-' || floor(random() * 2000)
							FROM generate_series(1, 20)));
				WHEN 'reconcile' THEN
					IF random() < 0.1 THEN
						PERFORM hrflow_track_table('shop.embedding', 'shop.candidate', 'hrflow_id',
							source_id => 'acme', refresh_columns => '{cv}');
					END IF;
				END CASE;
			EXCEPTION WHEN OTHERS THEN
				how := SQLSTATE;
			END;
			INSERT INTO shop.done VALUES (kind, how);
			COMMIT;
			PERFORM pg_sleep(random() * 0.05);
			COMMIT;
		END LOOP;
	END $$;

	CREATE PROCEDURE shop.refresh_for(seconds float) LANGUAGE plpgsql AS $$
	DECLARE
		ends timestamptz := clock_timestamp() + seconds * interval '1 second';
	BEGIN
		WHILE clock_timestamp() < ends LOOP
			CALL hrflow_refresh('shop.embedding', '} . $Hrflow::Store::FIELDS . q{',
				time_budget => '1 s', batch_size => 40);
			PERFORM pg_sleep(0.05);
			COMMIT;
		END LOOP;
	END $$;});
$store->fill(1000);

# Let all sessions work until a time.  Begin again after a deadlock, which ends one of two
# transactions that reload a table, or change several rows, and want the same profiles.
# Returns all other errors, and the number of deadlocks.
sub work_until
{
	my ($until) = @_;
	my @sessions = map { Hrflow::Session->new($node, timeout => $until - time + 120) } 1 .. 8;
	my @working = 0 .. 7;
	my (@errors, @heard);
	my $ndeadlocks = 0;
	my $begin = sub {
		my ($i) = @_;
		my $what = $i < 3 ? 'refresh' : 'write';

		$heard[$i] = 0;
		$sessions[$i]->send(
			"SET client_min_messages = error; SET ROLE keeper;
			CALL shop.${what}_for(" . ($until - time) . ");\n\\echo -- done");
	};

	$begin->($_) foreach @working;
	while (@working)
	{
		my @still;

		foreach my $i (@working)
		{
			my $session = $sessions[$i];
			my $is_over = !eval { $session->{psql}->pump_nb; 1 } || !$session->{psql}->pumpable;
			my $said = "$session->{out}$session->{err}";

			# An error may be read after the line that follows it.
			if (!$is_over && ($said !~ /-- done/ || !$heard[$i]++))
			{
				push @still, $i;
				next;
			}
			push @errors, "session $i: $@" if $is_over;
			push @errors, grep { !/40P01/ } $said =~ /((?:ERROR|FATAL|PANIC): .*)/g;
			$ndeadlocks += () = $said =~ /40P01/g;
			next if $is_over || time > $until - 1;
			$begin->($i);
			push @still, $i;
		}
		@working = @still;
		sleep 0.05;
	}
	$_->finish foreach @sessions;
	return (\@errors, $ndeadlocks);
}

my %asked;
my $ends = time + $seconds;
my $round = 0;
while (time < $ends)
{
	my ($errors, $ndeadlocks) = work_until(time + max(5, min(30, $ends - time)));

	$round++;
	is_deeply($errors, [], "no session fails in round $round");
	note("$ndeadlocks deadlocks in round $round");

	# Buy the rest
	for (1 .. 10)
	{
		$store->sql(q{UPDATE shop.embedding_profile SET due_at = now() WHERE state = 'due'});
		$store->call;
		last if $store->states =~ /^ok \d+$/;
	}
	my $asked = $store->asked;
	$asked{$_} += $asked->{$_} foreach keys %$asked;
	$api->reset;

	is( $store->sql(
			q{SELECT string_agg(concat_ws(' ', hrflow_id, profile_id, state), ', ')
			FROM (SELECT hrflow_id FROM shop.candidate UNION SELECT hrflow_id FROM shop.other
				UNION SELECT profile_id FROM shop.embedding_profile WHERE manual) w
			FULL JOIN shop.embedding_profile p ON profile_id = hrflow_id
			WHERE state IS DISTINCT FROM 'ok' OR hrflow_id IS NULL OR lease_until IS NOT NULL}),
		'',
		"exactly the profiles that are wanted are tracked and refreshed after round $round");
	is($store->sql(q{SELECT count(*) FROM hrflow_store_orphans('shop.embedding')}),
		0, "there are no orphans after round $round");
	is($store->wrong_vectors, 0, "all vectors are right after round $round");
	$api->reset;
	my %reasons = map { split /\|/ }
	  split /\n/, $store->sql('SELECT profile_id, count(*) FROM shop.reason GROUP BY 1');
	is_deeply([ grep { $asked{$_} > ($reasons{$_} // 0) } sort keys %asked ],
		[], "no profile is bought more often than it changed, up to round $round");
}

# A writer may lose against another one: two rows get one identifier, or two UPDATEs of
# several rows deadlock.
is( $store->sql(
		q{SELECT string_agg(DISTINCT what || ' ' || ended, ', ') FROM shop.done
		WHERE ended NOT IN ('ok', '40P01') AND what || ended NOT IN ('rename23505', 'rollback00R00')}
	),
	'',
	'no writer has an unexpected error');
is($store->sql('SELECT count(DISTINCT what) FROM shop.done'), 12, 'writers have done everything');
note($store->sql('SELECT what, ended, count(*) FROM shop.done GROUP BY 1, 2 ORDER BY 1, 2'));
my $bought = 0;
$bought += $_ foreach values %asked;
note("$bought requests for ", scalar(keys %asked), ' profiles; ', $store->states);
done_testing();
