# Refreshing stores when the API refuses access (403) to some profiles, to a source, or
# to everything: each run costs few requests, and the next ones request other profiles.
# A regression test could not see the requests that are sent.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use List::Util qw(max);
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new('refused_access', $api, link_hosts => '127.0.0.1');
my $closed = q{'fault:status=403,id=' || i};
my $waits = q{state = 'due' AND attempts = 0 AND due_at > now() AND last_error ~ 'refused access'};

# Limit on the requests that a run sends in vain: 32 before one has succeeded, and a few
# while the first refusal is processed
my $wasted = 64;

sub sql { return $node->safe_psql('postgres', "SET client_min_messages = error; $_[0]"); }

# Create a store that is fed by a table
sub create_store
{
	my ($store, $content, $arguments) = @_;

	sql("CREATE TABLE $store (source text, id text, content text);
		SELECT hrflow_create_store('${store}_vectors', 'real[]', content => '$content');
		SELECT hrflow_track_table('${store}_vectors', '$store', 'id', $arguments)");
	return;
}

# Insert rows whose profiles have been due for some hours
sub insert
{
	my ($store, $hours, $source, $id, $n, $content) = @_;
	$content //= 'NULL';

	sql("INSERT INTO $store SELECT $source, $id, $content FROM generate_series(1, $n) i;
		UPDATE ${store}_vectors_profile SET due_at = now() - interval '$hours hours'
			WHERE state = 'due' AND last_error IS NULL AND due_at > now() - interval '1 minute'");
	return;
}

# Refresh a store as a scheduler does.  Return the messages, and the number of requests to
# the API.
sub refresh
{
	my ($store, $settings) = @_;
	my $err = '';

	$node->psql(
		'postgres', "SET application_name = 'pg_cron'; ${\ ($settings // '') }
		CALL hrflow_refresh('${store}_vectors', max_attempts => 2)",
		stderr => \$err,
		on_error_stop => 0);
	my $requests = $api->stats->{api_requests};
	$api->reset;
	return ($err, $requests);
}

# Count the profiles that match each condition
sub counts
{
	my ($store, @conditions) = @_;

	return sql('SELECT '
		  . join(', ', map { "count(*) FILTER (WHERE $_)" } @conditions)
		  . " FROM ${store}_vectors_profile");
}

#
# A source that the key may not read, and whose profiles have been due longest
#
foreach my $kind ([ profile => 'source' ], [ job => 'board' ])
{
	my ($what, $source) = @$kind;
	my ($err, $requests);
	my $most = 0;
	my $nruns = 0;

	create_store($what, $what, "source_column => 'source'");
	insert($what, 20, "'closed'", $closed, 100);
	insert($what, 10, "'open'", "'nurse-' || i", 100);
	while (counts($what, "state = 'ok'") < 100 && $nruns++ < 110)
	{
		($err, $requests) = refresh($what);
		like($err, qr/HrFlow API refused access/, "a refusal fails run $nruns of ${what}s")
		  if $nruns == 1;
		$most = max($most, $requests - counts($what, "state = 'ok'"));
	}
	is(counts($what, "source_id = 'open' AND state = 'ok'", "state = 'failed'"),
		'100|0', "the ${what}s of a $source are refreshed although another one is refused");

	# The only 403 of a run may concern its profile alone, so it is counted as an attempt
	cmp_ok(counts($what, 'attempts > 0'),
		'<=', $nruns, "each run counts at most one attempt of the ${what}s of a refused $source");
	cmp_ok($most, '<=', $wasted, "a $source that is refused costs few requests in each run");

	# Access is granted
	sql("DELETE FROM $what WHERE source = 'closed'");
	insert($what, 1, "'closed'", "'welder-' || i", 50);
	refresh($what);
	is(counts($what, "state = 'ok'", 'true'),
		'150|150', "a $source is refreshed once it may be read");
}

#
# Profiles to which access is refused, in a source that the key may read
#
foreach my $limit ('', 'SET hrflow_embed.max_concurrency = 1;')
{
	my $store = $limit ? 'one_by_one' : 'at_once';
	my $nruns = 0;

	create_store($store, 'profile', "source_id => 'acme'");
	insert($store, 20, 'NULL', $closed, 4);
	insert($store, 10, 'NULL', "'nurse-' || i", 300);
	refresh($store, $limit) while counts($store, "state = 'ok'") < 300 && $nruns++ < 10;
	is(counts($store, "state = 'ok'"),
		300, "the runs after a refused profile request others ($store)");
}

#
# A key that may read nothing
#
create_store('nothing', 'profile', "source_id => 'acme'");
insert('nothing', 10, 'NULL', "'nurse-' || i", 500);
$api->script('status=403');
my ($err, $requests) = refresh('nothing');
like(
	$err,
	qr/ERROR: .*stopped: HrFlow API refused access/,
	'a key that may read nothing fails a run');
is(sql('SELECT stop_reason FROM nothing_vectors_run ORDER BY run DESC LIMIT 1'),
	'refused', 'the history says that the key was refused');
cmp_ok($requests, '<=', $wasted, 'a key that may read nothing costs few requests');
my $attempted = counts('nothing', 'attempts > 0');
cmp_ok($attempted, '<=', 1, 'a key that may read nothing is counted as an attempt at most once');
is(counts('nothing', $waits), $requests - $attempted, 'only profiles that were requested wait');
refresh('nothing');
is( counts('nothing', "state = 'ok'"),
	500 - $requests,
	'all others are refreshed as soon as the key may read them');
sql("UPDATE nothing_vectors_profile SET due_at = now(), failed_at = now() - interval '30 min'
	WHERE state = 'due'");
$api->script('status=403');
refresh('nothing');
cmp_ok(counts('nothing', "$waits AND due_at > now() + interval '20 min'"),
	'>', 1, 'profiles that have been refused for long wait longer');

#
# A text that has two keys
#
create_store('text', 'text', "content_columns => '{content}'");
insert('text', 10, 'NULL', "'key-' || i", 2, q{'fault:status=403,id=1'});
($err, $requests) = refresh('text');
is(counts('text', 'attempts = 1 AND due_at > now()'),
	2, 'a text of two keys that is refused is a failure of both');
is($requests, 1, 'a text of two keys is sent once');
unlike($err, qr/ERROR/, 'a text of two keys that is refused does not stop the run');

done_testing();
