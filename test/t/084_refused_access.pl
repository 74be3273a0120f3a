# Refreshing stores when the API refuses access (403) to some profiles, to a source, or
# to everything: all others get their turn, and a key that may read nothing stops each
# run after few requests.  A regression test could not see the requests that are sent.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new('refused_access', $api, link_hosts => '127.0.0.1');
my $closed = q{'fault:status=403,id=' || i};
my $waits = q{state = 'due' AND attempts = 0 AND due_at > now() AND last_error ~ 'refused access'};

# Requests in flight when a run decides, besides those on which the decision is based
my $slack = 32;

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

sub last_stop
{
	my ($store) = @_;

	return sql("SELECT stop_reason FROM ${store}_vectors_run ORDER BY run DESC LIMIT 1");
}

#
# A source that the key may not read, and whose profiles have been due longest
#
foreach my $kind ([ profile => 'source' ], [ job => 'board' ])
{
	my ($what, $source) = @$kind;

	create_store($what, $what, "source_column => 'source'");
	insert($what, 20, "'closed'", $closed, 300);
	insert($what, 10, "'open'", "'nurse-' || i", 100);
	my ($err, $requests) = refresh($what);
	is(counts($what, "source_id = 'open' AND state = 'ok'", "source_id = 'closed' AND $waits"),
		'100|300', "the ${what}s of a $source are refreshed although another one is refused");
	like(
		$err,
		qr/WARNING:\ \ skipping\ $source\ "closed"\ in\ refresh\ of\ \S+\ access\ refused\n
			DETAIL:\ \ .*refused\ access.*\n
			HINT:\ \ .*may\ read\ the\ $source/x,
		"a WARNING says that the $source is skipped");
	is(last_stop($what), 'done', "a $source that is refused does not stop the run");
	cmp_ok($requests - 100, '<=', 8 + $slack, "a $source that is refused costs few requests");

	# While nothing else is due
	sql("UPDATE ${what}_vectors_profile SET due_at = now(), failed_at = now() - interval '30 min'
		WHERE source_id = 'closed'");
	($err, $requests) = refresh($what);
	like(
		$err,
		qr/ERROR: .*stopped: HrFlow API refused access/,
		"a run fails if all ${what}s that are due are of a $source that is refused");
	is(last_stop($what), 'refused', "the history says that a $source was refused");
	cmp_ok($requests, '<=', 8 + $slack, "a $source that is still refused costs few requests");

	# It waits for as long as it has been refused
	insert($what, 1, "'open'", "'cook-' || i", 10);
	sql("UPDATE ${what}_vectors_profile SET due_at = now() - interval '1 day'
		WHERE source_id = 'closed'");
	refresh($what);
	is(counts($what, "state = 'ok'", "$waits AND due_at > now() + interval '20 minutes'"),
		'110|300', "the ${what}s of a $source that has been refused for long wait longer");

	# Access is granted
	sql("DELETE FROM $what WHERE source = 'closed'");
	insert($what, 1, "'closed'", "'welder-' || i", 50);
	refresh($what);
	is(counts($what, "state = 'ok'", 'true'),
		'160|160', "a $source is refreshed once it may be read");
}

#
# Profiles to which access is refused, in a source that the key may read
#
foreach my $limit ('', 'SET hrflow_embed.max_concurrency = 1;')
{
	my $store = $limit ? 'one_by_one' : 'at_once';

	create_store($store, 'profile', "source_id => 'acme'");
	insert($store, 20, 'NULL', $closed, 2);
	insert($store, 10, 'NULL', "'nurse-' || i", 300);
	my ($err) = refresh($store, $limit);
	is(counts($store, "state = 'ok'", q{state = 'due' AND attempts = 1 AND due_at > now()}),
		'300|2', "two profiles that are refused do not stop a run ($store)");
	unlike($err, qr/skipping|ERROR/, "two profiles that are refused are not reported ($store)");
	sql("UPDATE ${store}_vectors_profile SET due_at = now() WHERE state = 'due'");
}
create_store('firewall', 'profile', "source_id => 'acme'");
insert('firewall', 20, 'NULL', $closed, 20);
insert('firewall', 10, 'NULL', "'nurse-' || i", 300);
my $nruns = 0;
refresh('firewall', 'SET hrflow_embed.max_concurrency = 1;')
  while counts('firewall', "state = 'ok'") < 300 && $nruns++ < 5;
is(counts('firewall', "state = 'ok'"),
	300, 'however many profiles are refused, the next runs request others');

#
# A key that may read nothing
#
create_store('nothing', 'profile', "source_id => 'acme'");
insert('nothing', 10, 'NULL', "'nurse-' || i", 500);
$api->script('status=403');
my ($err, $requests) = refresh('nothing');
like($err, qr/ERROR: .*stopped: HrFlow API refused access/, 'a key that may read nothing fails');
is(last_stop('nothing'), 'refused', 'the history says that the key was refused');
cmp_ok($requests, '<=', 8 + $slack, 'a key that may read nothing costs few requests');
is(counts('nothing', 'attempts > 0'), 0, 'a key that may read nothing increments no attempts');
is(counts('nothing', 'due_at > now()'), $requests, 'only the profiles that were requested wait');
refresh('nothing');
is( counts('nothing', "state = 'ok'"),
	500 - $requests,
	'all others are refreshed as soon as the key may read them');

create_store('few', 'profile', "source_id => 'acme'");
insert('few', 10, 'NULL', $closed, 3);
($err) = refresh('few');
like(
	$err,
	qr/ERROR: .*stopped: HrFlow API refused access/,
	'a run of few profiles fails if all are refused');
is(counts('few', $waits), 3, 'few profiles that are all refused wait, and are not given up');

create_store('many', 'job', "source_column => 'source'");
insert('many', 10, "'board-' || i", "'nurse-' || i", 500);
$api->script('status=403');
($err, $requests) = refresh('many');
like(
	$err,
	qr/ERROR: .*stopped: HrFlow API refused access/,
	'a key that may read none of many boards fails');
cmp_ok($requests, '<=', 64 + $slack, 'a key that may read none of many boards costs few requests');
is(counts('many', 'attempts > 0'),
	0, 'a key that may read none of many boards increments no attempts');

#
# Texts
#
create_store('text', 'text', "content_columns => '{content}'");
insert('text', 10, 'NULL', "'key-' || i", 2, q{'fault:status=403,id=1'});
($err, $requests) = refresh('text');
is(counts('text', 'attempts = 1 AND due_at > now()'),
	2, 'a text of two keys that is refused is a failure of both');
is($requests, 1, 'a text of two keys is sent once');
unlike($err, qr/ERROR/, 'a text of two keys that is refused does not stop the run');
sql('DELETE FROM text');

insert('text', 20, 'NULL', "'fine-' || i", 50, "'nurse ' || i");
insert('text', 10, 'NULL', "'later-' || i", 500, "'cook ' || i");
$api->script('id=ok', count => 50);
$api->script('status=403');
($err, $requests) = refresh('text', 'SET hrflow_embed.max_concurrency = 8;');
like(
	$err,
	qr/ERROR: .*stopped: HrFlow API refused access/,
	'a key that may no longer send texts stops the run');
is(counts('text', "state = 'ok'", 'attempts > 0'),
	'50|0', 'a key that may no longer send texts increments no attempts');
cmp_ok($requests, '<=', 50 + 8 + 8, 'a key that may no longer send texts costs few requests');

done_testing();
