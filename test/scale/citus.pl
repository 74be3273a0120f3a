# The statements for Citus in docs/scaling.md work on an existing cluster, and send
# as many requests as documented.  "make installcheck-citus" runs this; README.md
# describes the requirements.
#
# The test uses a database of its own, which it creates on every node and drops at
# the end.  Citus creates the extension on the workers.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use HTTP::Tiny;
use IPC::Run ();
use JSON::PP;
use Test::More;

my $database = 'regress_hrflow_scale';
my $role = 'regress_hrflow_scale';
my $nprofiles = 40;
my $key = 'askr_0123456789abcdef0123456789abcdef';

# Each server creates this file in its data directory.
my $key_file = 'regress_hrflow_scale.key';

# Host, port and database of each node; the coordinator's are in the environment.
my $coordinator = {};
my (@nodes, @everywhere);

# Execute statements on a node.  Return what they print, and their error.
sub psql
{
	my ($node, $sql) = @_;
	my @at = $node->{host} ? ('-h', $node->{host}, '-p', $node->{port}) : ();
	my ($out, $err) = ('', '');

	local $ENV{PGDATABASE} = $node->{database};
	IPC::Run::run([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose', @at ],
		'<', \$sql, '>', \$out, '2>', \$err);
	chomp $out;
	return ($out, $err);
}

# Return what statements print, which must succeed.
sub value_of
{
	my ($sql, $node) = @_;
	my ($out, $err) = psql($node // $coordinator, "SET client_min_messages = error;\n$sql");

	die "$sql\n$err" if $err =~ /^\S*ERROR:/m || $err =~ /^psql: error/m;
	return $out;
}

sub error_of { return (psql($coordinator, $_[0]))[1]; }

sub standin
{
	return HTTP::Tiny->new->get("http://127.0.0.1:$ENV{HRFLOW_API_HTTP}/$_[0]")->{content};
}

# Return the number of API requests that are sent during some code.
sub requests_of
{
	my ($code) = @_;

	standin('reset');
	$code->();
	return decode_json(standin('stats'))->{api_requests};
}

my $docs = do
{
	local $/;
	open(my $file, '<', dirname(__FILE__) . '/../../docs/scaling.md') or die "docs/scaling.md: $!";
	<$file>;
};

# Return the blocks of SQL below a heading of docs/scaling.md, for another schema than
# that of the examples.
sub blocks
{
	my ($heading, $schema) = @_;
	my ($text) = $docs =~ /^## \Q$heading\E\n(.*?)(?=^## |\z)/ms or die "no heading $heading";

	return
	  map { s/\btalent\b/$schema/gr =~ s/SOURCE_ID/acme/gr =~ s/JOB_ID/nurse-job/gr }
	  $text =~ /^```(?:pgsql|sql)\n(.*?)^```/msg;
}

# Check rows of run_command_on_*(): nodename, nodeport, …, success and result.
sub all_succeed
{
	my ($rows, $name) = @_;
	my @failed = grep { !/\|t\|/ } split /\n/, $rows;

	ok($rows ne '' && !@failed, $name) or diag($rows);
	return;
}

#
# The cluster
#
$coordinator->{database} = $ENV{PGDATABASE} // 'postgres';
my ($version, $error) =
  psql($coordinator, q{SELECT extversion FROM pg_extension WHERE extname = 'citus'});
die $error if $error ne '';
plan skip_all => "database \"$coordinator->{database}\" has no Citus" if $version eq '';
@nodes = map { my ($host, $port) = split /\|/; { host => $host, port => $port } }
  split /\n/, value_of(
	q{SELECT nodename, nodeport FROM pg_dist_node
	WHERE groupid > 0 AND noderole = 'primary' AND isactive AND shouldhaveshards ORDER BY nodeid});
plan skip_all => 'the cluster has fewer than two workers' if @nodes < 2;
diag("Citus $version with " . @nodes . ' workers, PostgreSQL ' . value_of('SHOW server_version'));

my $home = $coordinator->{database};
$_->{database} = $home foreach @nodes;
@everywhere = ($coordinator, @nodes);

END
{
	local $?;
	foreach my $node (@everywhere)
	{
		psql(
			{ %$node, database => $home },
			"DROP DATABASE IF EXISTS $database WITH (FORCE);
			COPY (SELECT) TO PROGRAM 'rm -f $key_file';
			SET citus.enable_ddl_propagation = off;
			DROP ROLE IF EXISTS $role");
	}
}

foreach my $node (@everywhere)
{
	value_of(
		"DROP DATABASE IF EXISTS $database WITH (FORCE); CREATE DATABASE $database;
		COPY (SELECT '$key') TO PROGRAM 'umask 077; cat >$key_file'", $node);
	my $folder = value_of('SHOW data_directory', $node);
	value_of(
		"ALTER DATABASE $database SET hrflow_embed.base_url =
			'http://127.0.0.1:$ENV{HRFLOW_API_HTTP}/v1';
		ALTER DATABASE $database SET hrflow_embed.api_key_file = '$folder/$key_file';
		ALTER DATABASE $database SET hrflow_embed.link_hosts = '127.0.0.1'", $node);
	$node->{database} = $database;
	value_of('CREATE EXTENSION citus', $node);
}
value_of("SELECT citus_add_node('$_->{host}', $_->{port})") foreach @nodes;
value_of('CREATE EXTENSION hrflow_embed');
value_of(
	'SET citus.shard_count = 8; ' . join(
		'',
		map {
			"
	CREATE SCHEMA $_;
	CREATE TABLE $_.candidate (hrflow_id text PRIMARY KEY, embedding real[]);
	SELECT create_distributed_table('$_.candidate', 'hrflow_id');
	INSERT INTO $_.candidate
		SELECT CASE i % 2 WHEN 0 THEN 'nurse-' ELSE 'cook-' END || i
		FROM generate_series(1, $nprofiles) i;"
		} qw(talent spread)));

#
# A batch joined with a distributed table
#
my ($update) = blocks('A batch joined with a distributed table', 'talent');
my $pushed_down = q{SELECT count(*) FROM talent.candidate c JOIN
	hrflow_profile_vectors('acme', (SELECT array_agg(hrflow_id) FROM talent.candidate)) v
	ON v.profile_id = c.hrflow_id};
is( requests_of(
		sub {
			like(
				error_of($pushed_down),
				qr/ERROR:  0A000: .*MATERIALIZED/s,
				'a batch that Citus sends to every shard is refused');
		}),
	0,
	'a batch that Citus sends to every shard sends no requests');
is(requests_of(sub { value_of("SET search_path = talent, public; $update") }),
	$nprofiles, 'an UPDATE from a materialized batch requests each profile once');
is(value_of('SELECT count(*) FROM talent.candidate WHERE embedding IS NULL'),
	0, 'an UPDATE from a materialized batch stores every vector');

#
# A store on each worker
#
my ($setup, $refresh, $match, $due, $grant) = blocks('A store on each Citus worker', 'talent');
all_succeed(value_of($setup), 'a store on each worker tracks its shards');
value_of("CREATE ROLE $role");
all_succeed(value_of($grant =~ s/\banalyst\b/$role/gr), 'GRANT is sent to the workers');
is( value_of(
		qq{SELECT string_agg(result, '') FROM run_command_on_workers(\$\$
		SELECT has_schema_privilege('$role', 'talent', 'USAGE')
			AND has_table_privilege('$role', 'talent.embedding', 'SELECT') \$\$)}),
	't' x @nodes,
	'the role can read the store on every worker');
is(requests_of(sub { all_succeed(value_of($refresh), 'every worker refreshes its store') }),
	$nprofiles, 'the workers request each profile once');
my $status = q{SELECT sum(result::int) FROM run_command_on_workers($$
	SELECT STATUS FROM hrflow_store_status('talent.embedding') $$)};
is(value_of($status =~ s/STATUS/ok/r), $nprofiles, 'the workers have all profiles');

# The expected result of a merged ranking
my $best = q{SELECT hrflow_id FROM talent.candidate, hrflow_job_vector('nurse-job') AS j
	ORDER BY hrflow_cosine_similarity(embedding, j) DESC LIMIT 10};
is(join("\n", map { (split /\|/)[1] } split /\n/, value_of($match)),
	value_of($best), 'merging the rankings of all workers gives the ranking of all candidates');

is(value_of($due), '0', 'after a refresh nothing is due on any worker');
value_of(q{DELETE FROM talent.candidate WHERE hrflow_id = 'nurse-2'});
value_of(q{INSERT INTO talent.candidate VALUES ('welder-1')});
is(value_of($status =~ s/STATUS/tracked/r),
	$nprofiles, 'DELETE and INSERT of candidates change the store of their worker');
is(value_of($status =~ s/STATUS/due/r), 1, 'a candidate that was inserted is due');

# A shard moves to the other worker, and is tracked there.
my ($shard, $from_host, $from_port) = split /\|/, value_of(
	q{SELECT shardid, nodename, nodeport FROM citus_shards
	WHERE table_name = 'talent.candidate'::regclass ORDER BY shardid LIMIT 1});
my ($to) = grep { "$_->{host}:$_->{port}" ne "$from_host:$from_port" } @nodes;
value_of(
	"SELECT citus_move_shard_placement($shard, '$from_host', $from_port,
	'$to->{host}', $to->{port}, 'block_writes');
	CALL citus_cleanup_orphaned_resources()");
all_succeed(
	value_of($setup =~ s/.*^(?=-- Each shard)//msr),
	'the shards are tracked again after one was moved');
value_of($refresh);
is(value_of($status =~ s/STATUS/ok/r),
	$nprofiles, 'after a shard was moved, each profile is in one store');
value_of("SET citus.multi_shard_modify_mode = 'sequential'; TRUNCATE talent.candidate");
is(value_of($status =~ s/STATUS/tracked/r), 0, 'TRUNCATE of the candidates empties the stores');

#
# A distributed store
#
my ($distribute, $fetch, $rank) = blocks('A distributed store', 'spread');
value_of(q{SELECT hrflow_create_store('spread.embedding')});
value_of($distribute);
is( requests_of(
		sub {
			foreach my $call (
				q{SELECT hrflow_track('spread.embedding', 'acme', '{nurse-1}')},
				q{SELECT hrflow_mark_due('spread.embedding', 'acme', '{nurse-1}')},
				q{SELECT hrflow_untrack('spread.embedding', 'acme', '{nurse-1}')},
				q{SELECT hrflow_retry('spread.embedding')},
				q{SELECT hrflow_schedule('spread.embedding')},
				q{CALL hrflow_refresh('spread.embedding')},
				q{SELECT hrflow_track_table('spread.embedding', 'spread.candidate', 'hrflow_id', 'acme')}
			  )
			{
				like(
					error_of($call),
					qr/ERROR:  0A000: .*docs\/scaling\.md/s,
					"a distributed store: $call");
			}
		}),
	0,
	'a distributed store that is refused sends no requests');
is(requests_of(sub { all_succeed(value_of($fetch), 'every pair of shards is refreshed') }),
	$nprofiles, 'the shards request each profile once');
is(value_of(q{SELECT tracked, ok FROM hrflow_store_status('spread.embedding')}),
	"$nprofiles|$nprofiles", 'the status counts the profiles of all shards');
my $ranked = join("\n", map { (split /\|/)[0] } split /\n/, value_of($rank));
value_of(
	qq{UPDATE spread.candidate c SET embedding = e.vector::real[]
	FROM spread.embedding e WHERE e.profile_id = c.hrflow_id AND e.section = 'profile'});
is($ranked, value_of($best =~ s/talent/spread/r), 'SQL ranks the profiles of all shards');
is( value_of(
		q{SELECT string_agg(profile_id, E'\n' ORDER BY similarity DESC)
		FROM hrflow_match('spread.embedding', hrflow_job_vector('nurse-job'), 10)}),
	$ranked,
	'hrflow_match() ranks the profiles of all shards');

#
# A batch joined with shards on the coordinator, which are executed in its session
#
value_of(
	"SELECT citus_set_coordinator_host('127.0.0.1', current_setting('port')::int);
	SELECT citus_set_node_property('127.0.0.1', current_setting('port')::int,
		'shouldhaveshards', true)");
value_of("SELECT citus_set_node_property('$_->{host}', $_->{port}, 'shouldhaveshards', false)")
  foreach @nodes;
value_of(
	"SET citus.shard_count = 8;
	CREATE SCHEMA here;
	CREATE TABLE here.candidate (hrflow_id text PRIMARY KEY, embedding real[]);
	SELECT create_distributed_table('here.candidate', 'hrflow_id', colocate_with => 'none');
	INSERT INTO here.candidate SELECT 'nurse-' || i FROM generate_series(1, $nprofiles) i");
is( requests_of(sub { value_of($pushed_down =~ s/talent/here/gr) }),
	8 * $nprofiles,
	'each shard on the coordinator requests all profiles without the CTE');
is(requests_of(sub { value_of("SET search_path = here, public; $update") }),
	$nprofiles, 'the materialized CTE requests each profile once for such shards');
is( requests_of(
		sub {
			like(
				error_of(
					"SET citus.enable_local_execution = off; " . $pushed_down =~ s/talent/here/gr),
				qr/ERROR:  0A000: .*MATERIALIZED/s,
				'without local execution the batch is refused');
		}),
	0,
	'without local execution the batch sends no requests');

done_testing();
