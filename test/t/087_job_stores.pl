# Stores of jobs are refreshed like stores of profiles: requests name the board only
# if there is one; and a session that is killed or canceled, a loss of many rows and
# an erasure have the same effects.  A regression test could see neither requests
# nor other sessions.
use strict;
use warnings FATAL => 'all';
use Hrflow::Disturb;
use Hrflow::Node;
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
# A board that the API does not know
#
sql(q{SELECT hrflow_create_store('unknown', 'real[]', content => 'job');
	SELECT hrflow_track('unknown', 'unknown-1', array_agg('nurse ' || i))
	FROM generate_series(1, 100) i});
my $err = '';
$node->psql('postgres', q{CALL hrflow_refresh('unknown')}, stderr => \$err);
like(
	$err,
	qr/WARNING:  skipping board "unknown-1" in refresh of \S+ board not found\n.*\n.*the board id/,
	'a WARNING says that the board is not found');
sql(q{UPDATE unknown_profile SET due_at = now() - interval '1 minute'});
$api->reset;
sql(q{SET client_min_messages = error; CALL hrflow_refresh('unknown')});
is(scalar(my @asked = queries()), 1, 'the next run requests one job of a board that was not found');

#
# Sessions that are killed, crash, or lose the network
#
Hrflow::Disturb::run($node, $api, 'job', 600, qw(kill crash network cancel));

#
# A loss of many rows
#
sql(q{TRUNCATE job; INSERT INTO job SELECT 'north', 'nurse ' || i FROM generate_series(1, 400) i;});
sql(q{CALL hrflow_refresh('vectors')});
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
sql(q{INSERT INTO job VALUES ('north', 'nurse 1')});
sql(q{DELETE FROM job WHERE hrflow_id = 'nurse 1'});
is(sql(q{SELECT count(*) FROM vectors WHERE job_id = 'nurse 1'}),
	0, 'the vector of a deleted job is erased immediately');
is( sql(q{SELECT count(*) FROM vectors_erased
		WHERE fingerprint = hrflow_fingerprint('north', 'nurse 1')}
	),
	1,
	'the erasure of a job is recorded');

done_testing();
