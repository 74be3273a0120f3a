# Stores of jobs are refreshed like stores of profiles: requests name the board only
# if there is one; and a session that is killed or canceled, a loss of many rows and
# an erasure have the same effects.  A regression test could see neither requests
# nor other sessions.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 64);
my $node = Hrflow::Node->new(
	'jobs', $api,
	link_hosts => '127.0.0.1',
	api_user => 'account@example.com',
	max_concurrency => 8);

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Return the query strings of the requests to the API, decoded, in byte order.
sub queries
{
	return sort map { $_->{query} =~ s/%([0-9A-F]{2})/chr(hex($1))/ger }
	  grep { $_->{path} eq '/v1/job/embedding' } $api->log;
}

sub states
{
	return sql(
		q{SELECT string_agg(state || ' ' || n, ', ' ORDER BY state)
		FROM (SELECT state, count(*) AS n FROM vectors_profile GROUP BY 1) s});
}

sql('ALTER SYSTEM SET restart_after_crash = on');
sql('SELECT pg_reload_conf()');
sql(q{SELECT hrflow_create_store('vectors', 'real[]', content => 'job');
	CREATE TABLE job (board text, hrflow_id text, changed_at timestamptz);
	SELECT hrflow_track_table('vectors', 'job', 'hrflow_id', source_column => 'board',
		refresh_columns => '{changed_at}')});

#
# Requests
#
sql(q{INSERT INTO job VALUES ('north & south', 'nurse/1'), (NULL, 'cook 1'), ('', 'welder-1')});
$api->reset;
sql(q{CALL hrflow_refresh('vectors')});
is( join("\n", queries()),
	"board_id=north & south&job_id=nurse/1\njob_id=cook 1\njob_id=welder-1",
	'a refresh names the board of each job that has one');
is($api->stats->{requests}, 6, 'a refresh sends a request for each job, and fetches its link');
sql(q{UPDATE job SET changed_at = now()});
$api->reset;
sql(q{SET hrflow_embed.api_dialect = 'key'; CALL hrflow_refresh('vectors')});
is( join("\n", queries()),
	"board_key=north & south&key=nurse/1\nkey=cook 1\nkey=welder-1",
	'a refresh uses the names of parameters of the key dialect');
sql(q{SELECT hrflow_create_store('by_reference', 'real[]', 'reference', 'job');
	SELECT hrflow_track('by_reference', '', '{"R 1"}')});
$api->reset;
sql(q{CALL hrflow_refresh('by_reference')});
is(join("\n", queries()), 'job_reference=R 1', 'a job is requested by its reference');

#
# A session that is killed or canceled
#
foreach my $disturbance (qw(kill cancel))
{
	sql(qq{TRUNCATE job;
		INSERT INTO job SELECT 'north', '$disturbance nurse ' || i FROM generate_series(1, 400) i});
	$api->restart('--latency' => 20, '--dim' => 64);
	my $session = Hrflow::Session->new($node);
	$session->send(q{CALL hrflow_refresh('vectors', batch_size => 50);});
	$node->poll_query_until('postgres',
		q{SELECT count(*) BETWEEN 100 AND 399 FROM vectors_profile WHERE state = 'ok'})
	  or die;
	if ($disturbance eq 'kill')
	{
		kill 'KILL', $session->{pid};
		$session->wait_for(qr/server closed|terminat|connection to server was lost/);
	}
	else
	{
		sql("SELECT pg_cancel_backend($session->{pid})");
		$session->wait_for(qr/57014/);
	}
	$node->poll_query_until('postgres', 'SELECT true') or die;
	my $kept = sql(q{SELECT count(*) FROM vectors});
	my $leased = sql(q{SELECT count(lease_until) FROM vectors_profile});
	my $asked = () = queries();
	cmp_ok($kept, '>=', 100, "vectors that were written before a $disturbance are kept");
	is($leased, 0, 'a run that is canceled releases its leases') if $disturbance eq 'cancel';
	cmp_ok(
		$asked - $kept,
		'<=',
		$disturbance eq 'kill' ? $leased : 16,
		"a $disturbance loses only jobs that were in flight or not yet written");
	sql(q{UPDATE vectors_profile SET lease_until = NULL, due_at = now() WHERE state = 'due'});
	sql(q{CALL hrflow_refresh('vectors')});
	is(states(), 'ok 400', "all jobs are refreshed after a $disturbance");
	is( scalar(() = queries()),
		400 + $asked - $kept,
		"jobs that were written before a $disturbance are not requested again");
	is( sql(q{SELECT count(*) FROM vectors v
			WHERE vector <> hrflow_job_vector(job_id, board_id => source_id)}
		),
		0,
		"each job has its own vector after a $disturbance");
}

#
# A loss of many rows
#
is( sql(q{SET session_replication_role = replica; DELETE FROM job; RESET session_replication_role;
		SET client_min_messages = error;
		SELECT hrflow_track_table('vectors', 'job', 'hrflow_id', source_column => 'board',
			refresh_columns => '{changed_at}')}),
	0,
	'a table that has lost its rows without triggers is reconciled');
is(sql(q{SELECT count(*) FROM vectors}),
	400, 'jobs keep their vectors if too many become unwanted at once');

#
# Erasure of a job
#
sql(q{INSERT INTO job VALUES ('north', 'cancel nurse 1')});
sql(q{DELETE FROM job WHERE hrflow_id = 'cancel nurse 1'});
is(sql(q{SELECT count(*) FROM vectors WHERE job_id = 'cancel nurse 1'}),
	0, 'the vector of a deleted job is erased immediately');
is( sql(q{SELECT count(*) FROM vectors_erased
		WHERE fingerprint = hrflow_fingerprint('north', 'cancel nurse 1')}
	),
	1,
	'the erasure of a job is recorded');

done_testing();
