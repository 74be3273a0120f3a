# Stores and batches on more than one server: partitions that are foreign tables,
# tables that Citus has distributed, a replica of the vectors alone, PL/Proxy, and
# a standby whose recovery conflicts with a batch.  That takes several databases
# and servers, and counts of the requests that they send.
#
# Citus itself is not used.  Its catalog is imitated, which shows how the extension
# interprets it, but not how Citus behaves; the tests in ../scale need a cluster.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use PostgreSQL::Test::Utils ();
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new(
	'scaling', $api,
	link_hosts => '127.0.0.1',
	wal_level => 'logical',
	max_wal_senders => 6);

# The snapshot of an autovacuum worker, which analyzes another table, would prevent the
# removal of rows that a snapshot of the standby may see.
$node->append_conf('postgresql.conf', 'autovacuum = off');
$node->reload;

my $fields = q{'{"profile": 1}'};
my $query = q{(SELECT array_agg(sin(i)::real) FROM generate_series(1, 16) i)};

# Execute statements in a database of this server or of another one.
sub in_db
{
	my ($database, $sql, $server) = @_;
	return ($server // $node)->safe_psql($database, $sql);
}

# Return the rows of a statement, or its error with all fields.
sub said
{
	my ($database, $sql, $server) = @_;
	my ($status, $out, $err) =
	  ($server // $node)->psql($database, "\\set VERBOSITY verbose\n$sql");
	return $err eq '' ? $out : $err;
}

sub make_database
{
	my ($database, @statements) = @_;

	in_db('postgres', "CREATE DATABASE $database");
	in_db($database, join(";\n", 'CREATE EXTENSION hrflow_embed', @statements));
	return;
}

# Create a store of real[] with these profiles, and refresh it.
sub make_store
{
	my ($database, $store, @profiles) = @_;

	in_db(
		$database,
		"SELECT hrflow_create_store('$store', 'real[]');
		SELECT hrflow_track('$store', 'acme', '{" . join(',', @profiles) . "}')");
	in_db($database, "CALL hrflow_refresh('$store', $fields)") if @profiles;
	return;
}

my $hint = qr/HINT:  .*docs\/scaling\.md/;

# Calls of every function that would change or fill a store.
my @refused = (
	q{SELECT hrflow_track('STORE', 'acme', '{new-1}')},
	q{SELECT hrflow_mark_due('STORE', 'acme', '{nurse-1}')},
	q{SELECT hrflow_untrack('STORE', 'acme', '{nurse-1}')},
	q{SELECT hrflow_retry('STORE')},
	q{SELECT hrflow_restore('STORE')},
	q{SELECT hrflow_track_table('STORE', 'fed', 'id', 'acme')},
	q{SELECT hrflow_untrack_table('STORE', 'fed')},
	q{CALL hrflow_untrack_batches('STORE', 'acme', '{nurse-1}')},
	q{CALL hrflow_untrack_table_batches('STORE', 'fed')},
	q{SELECT hrflow_schedule('STORE')},
	q{CALL hrflow_refresh('STORE')});

sub refuses
{
	my ($database, $store, $message, $name) = @_;

	$api->reset;
	foreach my $statement (map { s/STORE/$store/r } @refused)
	{
		like(said($database, $statement), qr/ERROR:  $message.*$hint/s, "$name: $statement");
	}
	is($api->stats->{requests}, 0, "$name: no request is sent");
	return;
}

#
# Partitions that are foreign tables
#
make_database('shelf');
make_store('shelf', 'embedding', qw(nurse-3 cook-3 nurse-4));
in_db('shelf', q{UPDATE embedding_profile SET due_at = now() WHERE profile_id = 'cook-3'});
my $elsewhere = "host '" . $node->host . "', port '" . $node->port . "'";
make_store('postgres', 'here', qw(nurse-1 cook-1));
in_db(
	'postgres', qq{
	CREATE EXTENSION postgres_fdw;
	CREATE SERVER shelf FOREIGN DATA WRAPPER postgres_fdw OPTIONS ($elsewhere, dbname 'shelf');
	CREATE USER MAPPING FOR CURRENT_USER SERVER shelf;
	CREATE TABLE fed (id text PRIMARY KEY);
	CREATE TABLE part (LIKE here INCLUDING DEFAULTS) PARTITION BY LIST (profile_id);
	CREATE TABLE part_0 PARTITION OF part FOR VALUES IN ('nurse-1', 'cook-1');
	CREATE TABLE part_profile (LIKE here_profile INCLUDING DEFAULTS)
		PARTITION BY LIST (profile_id);
	CREATE TABLE part_profile_0 PARTITION OF part_profile FOR VALUES IN ('nurse-1', 'cook-1');
	INSERT INTO part SELECT * FROM here;
	INSERT INTO part_profile SELECT * FROM here_profile;});
is(in_db('postgres', q{SELECT tracked, ok FROM hrflow_store_status('part')}),
	'2|2', 'the status counts the profiles of partitions');
in_db(
	'postgres', q{
	CREATE FOREIGN TABLE part_1 PARTITION OF part DEFAULT SERVER shelf
		OPTIONS (table_name 'embedding');
	CREATE FOREIGN TABLE part_profile_1 PARTITION OF part_profile DEFAULT SERVER shelf
		OPTIONS (table_name 'embedding_profile');
	CREATE TABLE everything AS SELECT * FROM part;
	CREATE TABLE everything_profile AS SELECT * FROM part_profile;});

# The columns that are the same whichever way the status is counted.
my $counts = q{SELECT tracked, due, leased, ok, failed, missing, gone, oldest_due,
	refreshed_last_hour, last_error};
is(in_db('postgres', q{SELECT tracked, due, ok FROM hrflow_store_status('part')}),
	'5|1|5', 'the status counts the profiles of foreign partitions');
my $change = q{UPDATE embedding_profile SET
	state = (ARRAY['failed', 'missing', 'unwanted'])[n],
	lease_until = CASE n WHEN 2 THEN 'infinity'::timestamptz END,
	refreshed_at = CASE n WHEN 2 THEN now() - interval '2 hours' END, last_error = 'n' || n
	FROM (SELECT profile_id AS id, row_number() OVER (ORDER BY profile_id) AS n
		FROM embedding_profile) AS o WHERE profile_id = o.id};
in_db('shelf', $change);
in_db('postgres', 'TRUNCATE everything_profile; INSERT INTO everything_profile TABLE part_profile');
is( in_db('postgres', "$counts FROM hrflow_store_status('part')"),
	in_db('postgres', "$counts FROM hrflow_store_status('everything')"),
	'the status of a store with foreign partitions equals that of an ordinary store with the same rows'
);
is( in_db('postgres', "SELECT * FROM hrflow_match('part', $query)"),
	in_db('postgres', "SELECT * FROM hrflow_match('everything', $query)"),
	'the profiles of foreign partitions are ranked together with the others');
is( in_db('postgres', qq{SELECT * FROM hrflow_match_weighted('part', $query, '{"profile": 1}')}),
	in_db(
		'postgres', qq{SELECT * FROM hrflow_match_weighted('everything', $query, '{"profile": 1}')}
	),
	'the profiles of foreign partitions are ranked by weights together with the others');
refuses(
	'postgres', 'part',
	qr/0A000: table "part" has rows on other servers/, 'a store with foreign partitions');

# Foreign tables as a store, and as tables that feed one
in_db(
	'postgres', q{
	IMPORT FOREIGN SCHEMA public LIMIT TO (embedding, embedding_profile)
		FROM SERVER shelf INTO public;
	CREATE TABLE half_fed (id text) PARTITION BY LIST (id);
	CREATE FOREIGN TABLE half_fed_1 PARTITION OF half_fed DEFAULT SERVER shelf;});
refuses(
	'postgres', 'embedding',
	qr/0A000: table "embedding(?:_profile)?" has rows on other servers/,
	'a store of foreign tables');
foreach my $statement (
	"SELECT * FROM hrflow_match('embedding', $query)",
	q{SELECT * FROM hrflow_store_status('embedding')},
	q{SELECT hrflow_track_table('here', 'embedding', 'profile_id', 'acme')},
	q{SELECT hrflow_track_table('here', 'half_fed', 'id', 'acme')})
{
	like(said('postgres', $statement), qr/ERROR:  0A000.*$hint/s, "foreign tables: $statement");
}

#
# A catalog like that of Citus
#
make_database('citus');
make_store('citus', 'embedding', qw(nurse-1 cook-1 cook-2));
make_store('citus', 'shard_102008');
in_db(
	'citus', q{
	SET allow_system_table_mods = on;
	CREATE TABLE fed (id text PRIMARY KEY);
	CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass NOT NULL,
		partmethod "char" NOT NULL, partkey text, colocationid integer DEFAULT 0 NOT NULL,
		repmodel "char" DEFAULT 'c' NOT NULL);
	INSERT INTO pg_dist_partition VALUES ('embedding_profile', 'h', NULL, 1, 's');});
refuses(
	'citus', 'embedding',
	qr/0A000: table "embedding_profile" has rows on other servers.*managed by Citus/s,
	'a distributed store');
is(in_db('citus', q{SELECT tracked, ok, failed FROM hrflow_store_status('embedding')}),
	'3|3|0', 'the status of a distributed store is counted by a query, which Citus distributes');
in_db('citus', q{INSERT INTO pg_dist_partition VALUES ('fed', 'h', NULL, 1, 's')});
like(
	said('citus', q{SELECT hrflow_track_table('shard_102008', 'fed', 'id', 'acme')}),
	qr/ERROR:  0A000: table "fed" has.*$hint/s,
	'a distributed table cannot feed a store');
$api->reset;
in_db('citus', q{SELECT hrflow_track('shard_102008', 'acme', '{nurse-7}')});
in_db('citus', "CALL hrflow_refresh('shard_102008', $fields)");
is($api->stats->{api_requests}, 1, 'a store of tables that the catalog does not list is refreshed');
in_db('citus', q{SELECT hrflow_drop_store('embedding')});
is(in_db('citus', q{SELECT to_regclass('embedding_profile') IS NULL}),
	't', 'a distributed store can be dropped');

#
# A replica of only the vectors
#
make_database('ranker');
make_store('ranker', 'embedding');
in_db(
	'shelf', q{
	UPDATE embedding_profile SET state = 'ok', lease_until = NULL;
	CREATE PUBLICATION vectors FOR TABLE embedding;
	SELECT pg_create_logical_replication_slot('vectors', 'pgoutput');});
my $publisher = $node->connstr('shelf') =~ s/'/''/gr;
in_db(
	'ranker', "CREATE SUBSCRIPTION vectors CONNECTION '$publisher' PUBLICATION vectors
	WITH (create_slot = false, slot_name = 'vectors')");
ok($node->poll_query_until('ranker', 'SELECT count(*) = 3 FROM embedding'),
	'vectors are replicated');
foreach my $statement ("SELECT * FROM hrflow_match('embedding', $query)",
	qq{SELECT * FROM hrflow_match_weighted('embedding', $query, '{"profile": 1}')})
{
	is( in_db('ranker', $statement),
		in_db('shelf', $statement),
		"a replica of the vectors returns the same as the publisher: $statement");
}
is(in_db('ranker', q{SELECT hrflow_profile_embedding('acme', 'nurse-1') ? 'profile'}),
	't', 'a subscriber can send requests to the API');
$api->reset;
foreach my $statement (q{CALL hrflow_refresh('embedding')}, q{SELECT hrflow_schedule('embedding')})
{
	like(
		said('ranker', $statement),
		qr/ERROR:  25006: .*subscriber.*$hint/s,
		"a subscriber refuses $statement");
}
is(in_db('ranker', 'SELECT count(*), sum(tracked) FROM hrflow_store_status($$embedding$$)'),
	'1|0', 'the status on a subscriber of the vectors counts no profiles');
is(in_db('ranker', 'SELECT count(*) FROM embedding_run'),
	0, 'a refresh that a subscriber refuses is not in the history');
in_db('shelf', q{SELECT hrflow_untrack('embedding', 'acme', '{nurse-3}')});
ok( $node->poll_query_until(
		'ranker', q{SELECT count(*) = 0 FROM embedding WHERE profile_id = 'nurse-3'}),
	'vectors that are erased on the publisher are erased on the subscriber');
is($api->stats->{requests}, 0, 'a refresh that a subscriber refuses sends no requests');
in_db(
	'ranker', q{ALTER SUBSCRIPTION vectors DISABLE;
	SELECT hrflow_track('embedding', 'acme', '{nurse-8}')});
in_db('ranker', "CALL hrflow_refresh('embedding', $fields)");
is($api->stats->{api_requests}, 1, 'a store is refreshed once its subscription is disabled');
in_db('ranker', 'ALTER SUBSCRIPTION vectors SET (slot_name = NONE); DROP SUBSCRIPTION vectors');
in_db('shelf', q{SELECT pg_drop_replication_slot('vectors')})
  if $node->poll_query_until('shelf',
	q{SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'vectors'});

# Replicas of a partitioned store
my $partitioned = q{
	SELECT hrflow_create_store('form', 'real[]');
	CREATE TABLE part (LIKE form INCLUDING ALL) PARTITION BY HASH (profile_id);
	CREATE TABLE part_0 PARTITION OF part FOR VALUES WITH (MODULUS 1, REMAINDER 0);
	CREATE TABLE part_profile (LIKE form_profile INCLUDING ALL) PARTITION BY HASH (profile_id);
	CREATE TABLE part_profile_0 PARTITION OF part_profile
		FOR VALUES WITH (MODULUS 1, REMAINDER 0);};
make_database($_, $partitioned) foreach qw(whole copy);
in_db(
	'whole', q{
	CREATE PUBLICATION parts FOR TABLE part, part_profile;
	SELECT pg_create_logical_replication_slot('parts', 'pgoutput');});
$publisher = $node->connstr('whole') =~ s/'/''/gr;
in_db(
	'copy', "CREATE SUBSCRIPTION parts CONNECTION '$publisher' PUBLICATION parts
	WITH (create_slot = false, slot_name = 'parts', copy_data = false)");
my @refreshes =
  (q{CALL hrflow_refresh('part')}, q{CALL hrflow_refresh('part_0', profiles => 'part_profile_0')});
foreach my $root (qw(false true))
{
	in_db('whole', "ALTER PUBLICATION parts SET (publish_via_partition_root = $root)");
	in_db('copy', 'ALTER SUBSCRIPTION parts REFRESH PUBLICATION WITH (copy_data = false)');
	is( in_db(
			'copy',
			'SELECT string_agg(srrelid::regclass::text, $$ $$ ORDER BY srrelid::regclass::text)
			FROM pg_subscription_rel'),
		$root eq 'true' ? 'part part_profile' : 'part_0 part_profile_0',
		"publish_via_partition_root = $root: the subscription lists what it writes to");
	foreach my $statement (@refreshes)
	{
		like(
			said('copy', $statement),
			qr/ERROR:  25006: .*subscriber.*$hint/s,
			"publish_via_partition_root = $root: a subscriber refuses $statement");
	}
}
in_db(
	'copy', q{ALTER SUBSCRIPTION parts DISABLE;
	ALTER SUBSCRIPTION parts SET (slot_name = NONE); DROP SUBSCRIPTION parts});
unlike(said('copy', $_), qr/ERROR/, "no longer a subscriber: $_") foreach @refreshes;
in_db('whole', q{SELECT pg_drop_replication_slot('parts')})
  if $node->poll_query_until('whole',
	q{SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'parts'});

#
# PL/Proxy
#
SKIP:
{
	skip 'PL/Proxy cannot be installed', 5
	  if in_db('postgres', q{SELECT count(*) FROM pg_available_extensions WHERE name = 'plproxy'})
	  eq '0';
	my ($dir) = __FILE__ =~ m{(.*)/};
	my ($front) =
	  PostgreSQL::Test::Utils::slurp_file("$dir/../../docs/scaling.md") =~
	  /^```pgsql\n(CREATE EXTENSION plproxy;\n.*?)^```/ms;
	ok(defined $front, 'docs/scaling.md has a recipe for PL/Proxy');

	# Let databases of this server stand for the servers of the recipe.
	$front =~ s/host=node-(\d)/"dbname=node_$1 host=" . $node->host . ' port=' . $node->port/ge;
	foreach my $n (0, 1)
	{
		make_database("node_$n", 'CREATE SCHEMA talent');
		make_store("node_$n", 'talent.embedding', map { "nurse-$_" } $n + 1, $n + 3, $n + 5);
	}
	make_database('front', 'CREATE SCHEMA talent');
	in_db('front', $front);
	is(in_db('front', 'SELECT sum(tracked), sum(ok) FROM talent.status_of_all()'),
		'6|6', 'PL/Proxy adds up the status of all databases');
	in_db(
		'postgres', q{
		SELECT hrflow_create_store('all_nodes', 'real[]')});
	foreach my $n (0, 1)
	{
		my $rows = in_db(
			"node_$n",
			q{SELECT format('INSERT INTO all_nodes VALUES (%L, %L, %L, %L, %L)',
			source_id, profile_id, section, item, vector) FROM talent.embedding});
		in_db('postgres', $rows =~ s/$/;/mgr);
	}
	is( in_db(
			'front', "SELECT * FROM talent.match_all($query, 4)
			ORDER BY similarity DESC LIMIT 4"),
		in_db('postgres', "SELECT * FROM hrflow_match('all_nodes', $query, 4)"),
		'PL/Proxy ranks the profiles of all databases as one store would');
	$api->reset;
	is( in_db('front', q{SELECT count(*) FROM talent.match_all(hrflow_job_vector('nurse-job'), 2)}),
		4,
		'every database returns its best profiles');
	is($api->stats->{api_requests}, 1,
		'a job is requested once, however many databases are ranked');
}

#
# A standby, whose recovery conflicts with a batch
#
in_db('postgres', 'CREATE TABLE churn (n int)');
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf',
	"max_standby_streaming_delay = 0\nwal_receiver_status_interval = 1s");
$standby->start;
$node->wait_for_catchup($standby);

# Start a batch of three profiles, for the last of which there is no answer.
sub start_batch
{
	my $session = Hrflow::Session->new($standby);

	$api->reset;
	$session->send(
		q{SELECT count(*) FROM hrflow_profile_embeddings('acme', '{nurse-1,nurse-2,fault:silent}');}
	);
	ok( $api->wait_until(sub { $_[0]{api_requests} == 3 }),
		'a batch on a standby requests its profiles');
	return $session;
}

# Remove rows that a snapshot of the standby may see.
sub churn
{
	in_db('postgres', 'INSERT INTO churn VALUES (1); DELETE FROM churn');
	in_db('postgres', 'VACUUM churn');
	$node->wait_for_catchup($standby, 'replay');
	return;
}
my $batch = start_batch();
churn();
like(
	$batch->wait_for(qr/^CONTEXT: .*\n/m),
	qr/ERROR:  40001: .*recovery.*HINT:  Set "hot_standby_feedback".*CONTEXT:  HrFlow batch of 3/s,
	'the error of a batch that recovery has canceled tells how to avoid it');
$batch->finish;
$standby->append_conf('postgresql.conf', 'hot_standby_feedback = on');
$standby->reload;
$batch = start_batch();
ok( $node->poll_query_until(
		'postgres', 'SELECT count(*) = 1 FROM pg_stat_replication WHERE backend_xmin IS NOT NULL'),
	'the standby reports which rows its batch may see');
churn();
is(in_db('postgres', "SELECT state FROM pg_stat_activity WHERE pid = $batch->{pid}", $standby),
	'active', 'a batch continues if its standby sends feedback');
in_db('postgres', "SELECT pg_cancel_backend($batch->{pid})", $standby);
like($batch->wait_for(qr/ERROR/), qr/57014/, 'a batch that continues can be canceled');
$batch->finish;

# Promotion
in_db('postgres', q{SELECT hrflow_track('here', 'acme', '{nurse-2,nurse-5}')});
$node->wait_for_catchup($standby);
$standby->promote;
$api->reset;
in_db('postgres', "CALL hrflow_refresh('here', $fields)", $standby);
is($api->stats->{api_requests},
	2, 'a promoted standby requests the profiles that were due on its primary');
is(in_db('postgres', q{SELECT tracked, ok FROM hrflow_store_status('here')}, $standby),
	'4|4', 'a promoted standby has the whole store');
$standby->stop;

done_testing();
