# Texts and documents are sent once: not again because a row was updated, nor because
# another row has the same text, nor because a session was lost that may have sent
# them.  Stores of them survive what stores of profiles survive: a dump, a rename, a
# kill and a loss of many rows.  A regression test could see neither requests nor
# other sessions.
use strict;
use warnings FATAL => 'all';
use Hrflow::Disturb;
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Session;
use Hrflow::StandIn;
use MIME::Base64 qw(encode_base64url);
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 64);
my $node = Hrflow::Node->new('texts', $api, link_hosts => '127.0.0.1', max_concurrency => 8);

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Number of requests since the last reset, also of those without an answer yet, which
# the log does not contain.
sub requests { return $api->stats->{api_requests}; }

sub states
{
	return sql(
		q{SELECT string_agg(state || ' ' || n, ', ' ORDER BY state)
		FROM (SELECT state, count(*) AS n FROM vectors_profile GROUP BY 1) s});
}

# Number of vectors that are not those of the text in the row with their key.
sub wrong
{
	return sql(
		q{SELECT count(*) FROM (SELECT vector, hrflow_text_embedding(title || E'\n\n' || body) AS own
			FROM vectors v LEFT JOIN job ON job.id = v.key) v
		WHERE vector IS DISTINCT FROM own}
	);
}

sub refresh { return sql(q{CALL hrflow_refresh('vectors')}); }

sql('ALTER SYSTEM SET restart_after_crash = on');
sql('SELECT pg_reload_conf()');
sql(q{SELECT hrflow_create_store('vectors', 'real[]', content => 'text');
	CREATE TABLE job (id text PRIMARY KEY, title text, body text, seen timestamptz);
	SELECT hrflow_track_table('vectors', 'job', 'id', content_columns => '{title,body}',
		refresh_columns => '{seen}')});

#
# Equal texts, and texts that have not changed
#
my $n = $ENV{HRFLOW_TEXTS} // 1000;
my $distinct = $n * 6 / 10;
sql(qq{INSERT INTO job SELECT i, 'Nurse', 'in room ' || (i % $distinct) FROM generate_series(1, $n) i}
);
$api->reset;
refresh();
is(states(), "ok $n", 'a refresh gets a vector for each text');
is(requests(), $distinct, "$n texts of which only $distinct are distinct take $distinct requests");
is(wrong(), 0, 'each text has its own vector') if $n <= 1000;
$api->reset;
sql('UPDATE job SET title = title, body = body');
is(states(), "ok $n", 'a text that is updated to itself is not due');
sql('UPDATE job SET seen = now()');
is(states(), "due $n", 'a change of a refresh column makes texts due');
refresh();
is(states(), "ok $n", 'texts that have not changed are refreshed');
sql(q{UPDATE vectors_profile SET due_at = now()});
refresh();
is(requests(), 0, 'texts that have not changed take no request');
sql(q{UPDATE job SET body = 'in room 2' WHERE id = '1'});
refresh();
is(requests(), 0, 'a text that another row has takes no request');
sql(q{UPDATE job SET body = 'elsewhere' WHERE id = '1'});
refresh();
is(requests(), 1, 'a text that has changed is requested once');
sql(q{UPDATE vectors_profile SET content_hash = NULL, due_at = now() WHERE key IN ('1', '2')});
refresh();
is(requests(), 2, 'a text whose hash was removed is requested again, unless another row has it');

# Rows that are new or deleted, while others have their keys
sql('ALTER TABLE job DROP CONSTRAINT job_pkey');
foreach my $change (
	q{UPDATE job SET id = 5 - id::int WHERE id IN ('2', '3')},
	q{BEGIN; CREATE TEMP TABLE saved AS SELECT * FROM job; DELETE FROM job;
		INSERT INTO job SELECT id, title, 'now ' || body FROM saved; COMMIT},
	q{INSERT INTO job VALUES ('4', 'A', 'first'), ('5', 'A', 'first')},
	q{DELETE FROM job WHERE title = 'A' AND id = '4'},
	q{UPDATE job SET id = '6' WHERE title = 'A'})
{
	sql($change);
	refresh();
	is( sql(q{SELECT count(*) FROM vectors WHERE key::int <= 40 AND vector <>
				hrflow_text_embedding((SELECT min((title || E'\n\n' || body) COLLATE "C")
					FROM job WHERE id = key))}
		),
		0,
		"each key has the vector of its text after $change");
}
sql(q{TRUNCATE job});
is(sql('SELECT count(*) FROM vectors'), 0, 'TRUNCATE erases all vectors');
sql('ALTER TABLE job ADD PRIMARY KEY (id)');

#
# Texts that are not sent
#
$api->reset;
sql(q{INSERT INTO job VALUES ('long', repeat('x', 1048577), NULL), ('null', NULL, NULL),
	('empty', '', ''), ('blank', E' \n\t', NULL)});
refresh();
is(requests(), 0, 'neither a text over the limit nor an empty one is sent');
is(states(), 'empty 3, failed 1', 'only a text over the limit fails');
like(
	sql(q{SELECT last_error FROM hrflow_store_failures('vectors')}),
	qr/The text is longer than 1048576 bytes/,
	'a text over the limit is reported');
sql(q{UPDATE job SET title = 'Nurse' WHERE id IN ('long', 'null')});
refresh();
is(states(), 'empty 2, ok 2', 'a text that was shortened or filled in gets a vector');
is(requests(), 1, 'equal texts that were shortened or filled in take one request');

#
# A loss of many texts
#
sql(q{TRUNCATE job; INSERT INTO job SELECT i, 'Cook', 'number ' || i FROM generate_series(1, 40) i}
);
refresh();
my ($out, $err);
sql(q{UPDATE job SET title = NULL, body = NULL});
$node->psql('postgres', q{CALL hrflow_refresh('vectors')}, stdout => \$out, stderr => \$err);
like(
	$err,
	qr/keeps the vectors of 40 keys whose contents have become empty/,
	'vectors are kept if too many texts become empty at once');
is(sql('SELECT count(*) FROM vectors'),
	40, 'all vectors are kept if too many texts become empty at once');
$api->reset;
sql(q{UPDATE job SET title = 'Cook', body = 'number ' || id});
refresh();
is(requests(), 0, 'texts are not sent again when they are restored after becoming empty');
is(states(), 'ok 40', 'keys are refreshed when their texts are restored after becoming empty');
sql(q{TRUNCATE job; INSERT INTO job SELECT i, 'Cook', 'number ' || i FROM generate_series(1, 40) i}
);
refresh();
sql(q{UPDATE job SET title = NULL, body = ' ' WHERE id::int <= 3});
refresh();
is(sql('SELECT count(*) FROM vectors_aside'),
	3, 'vectors of a few texts that became empty are put aside');
is(states(), 'empty 3, ok 37', 'keys of a few texts that became empty have nothing to request');
is(sql(q{SELECT count(*) FROM vectors_profile WHERE content_hash IS NULL}),
	3, 'keys of a few texts that became empty keep no hash');

#
# A table whose owner is changed cannot be read, which does not mean that it is empty
#
sql(q{CREATE ROLE stranger; ALTER TABLE job OWNER TO stranger;
	UPDATE vectors_profile SET due_at = now()});
like(
	$node->error_of(q{CALL hrflow_refresh('vectors')}),
	qr/55000: cannot read the contents of store public\.vectors/,
	'a run is refused while a table belongs to another owner');
is( states(),
	'empty 3, ok 37',
	'a run that is refused because a table belongs to another owner changes no state');
$api->reset;
sql('ALTER TABLE job OWNER TO CURRENT_USER; DROP ROLE stranger');
refresh();
is(requests(), 0, 'no text is sent again when the owner of its table is restored');

#
# Nor does a store without tables have empty contents, such as a part of another one
#
sql(q{CREATE TABLE part (LIKE vectors INCLUDING ALL);
	CREATE TABLE part_profile (LIKE vectors_profile INCLUDING ALL);
	INSERT INTO part SELECT * FROM vectors; INSERT INTO part_profile SELECT * FROM vectors_profile;
	UPDATE part_profile SET due_at = now()});
like(
	$node->error_of(q{CALL hrflow_refresh('part')}),
	qr/55000: cannot read the contents of store public\.part/,
	'a run is refused if no table feeds the store');
is(sql('SELECT count(content_hash), (SELECT count(*) FROM part) FROM part_profile'),
	'37|37', 'a run that is refused because no table feeds the store keeps hashes and vectors');
sql('DROP TABLE part, part_profile');

#
# Erasure
#
sql(q{UPDATE job SET id = 'person' WHERE id = '40'});
refresh();
sql(q{DELETE FROM job WHERE id = 'person'});
is( sql(q{SELECT (SELECT count(*) FROM vectors WHERE key = 'person')
		+ (SELECT count(*) FROM vectors_profile WHERE key = 'person')}),
	0,
	'the vector and the hash of a deleted text are erased immediately');
is( sql(q{SELECT count(*) FROM vectors_erased WHERE fingerprint = hrflow_fingerprint('', 'person')}
	),
	1,
	'the erasure of a text is recorded');

#
# A dump, and columns that are renamed.  A column was dropped before, so that columns
# have other numbers in the copy.
#
sql(q{SET client_min_messages = error;
	SELECT hrflow_track_table('vectors', 'job', 'id', content_columns => '{title,body}')});
sql(q{ALTER TABLE job DROP COLUMN seen; ALTER TABLE job ADD later text;
	ALTER TABLE job RENAME body TO older; ALTER TABLE job RENAME later TO body;
	UPDATE job SET body = older;
	SELECT hrflow_track_table('vectors', 'job', 'id', content_columns => '{title,body}');
	ALTER TABLE job DROP COLUMN older});
sql('CREATE DATABASE copy');
my $dump = $node->basedir . '/texts.sql';
$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $dump ],
	'a store of texts can be dumped');
$node->command_ok(
	[ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('copy'), '-f', $dump ],
	'the dump can be restored');
$api->reset;
foreach my $database ('copy', 'postgres')
{
	$node->safe_psql(
		$database, q{ALTER TABLE job RENAME body TO words; ALTER TABLE job RENAME TO post;
		UPDATE post SET words = 'in Rome' WHERE id = '20'; INSERT INTO post VALUES ('new', 'Cook', 'in Paris');
		CALL hrflow_refresh('vectors')});
	is( $node->safe_psql(
			$database,
			q{SELECT string_agg(key, ' ' ORDER BY key) FROM vectors WHERE vector =
				hrflow_text_embedding(E'Cook\n\n' || CASE key WHEN 'new' THEN 'in Paris' ELSE 'in Rome' END)}
		),
		'20 new',
		"texts are read from renamed columns of a renamed table in database $database");
	$node->safe_psql($database,
		q{ALTER TABLE post RENAME TO job; ALTER TABLE job RENAME words TO body});
}

#
# Two tables that feed a store
#
sql(q{CREATE TABLE note (id text, words text);
	INSERT INTO note VALUES ('19', 'A cook'), ('other', 'A cook');
	SELECT hrflow_track_table('vectors', 'note', 'id', content_columns => '{words}');
	UPDATE vectors_profile SET due_at = now()});
$api->reset;
refresh();
is(requests(), 1, 'two tables feed a store');
is( sql(q{SELECT count(*) FROM vectors WHERE key IN ('19', 'other')
		AND vector = hrflow_text_embedding('A cook')}),
	2,
	'of the texts of two tables with one key, the one that sorts first is used');
sql(q{DELETE FROM note WHERE id = '19'});
refresh();
is( sql(q{SELECT vector = hrflow_text_embedding(E'Cook\n\nnumber 19') FROM vectors WHERE key = '19'}
	),
	't',
	'the text of the other table is used when the one that sorts first is deleted');
sql(q{INSERT INTO note VALUES ('several', 'a' || repeat('x', 1048576)), ('several', 'b')});
refresh();
is(sql(q{SELECT vector = hrflow_text_embedding('b') FROM vectors WHERE key = 'several'}),
	't', 'of several rows with one key, one is used whose text can be sent');
sql('DELETE FROM note; DROP TABLE note');

#
# Texts that change while no table wants them
#
sql(q{SELECT hrflow_create_store('parts', 'real[]', content => 'text');
	CREATE TABLE part (id text, words text, half int) PARTITION BY LIST (half);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
	CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2);
	SELECT hrflow_track_table('parts', 'part', 'id', content_columns => '{words}');
	INSERT INTO part VALUES ('a', 'A baker', 1), ('b', 'A barber', 2), ('c', 'A butcher', 2);
	CALL hrflow_refresh('parts');
	ALTER TABLE part DETACH PARTITION part_2;
	SET client_min_messages = error;
	SELECT hrflow_track_table('parts', 'part', 'id', content_columns => '{words}')});
is( sql(q{SELECT string_agg(key || ' ' || state, ', ' ORDER BY key) FROM parts_profile}),
	'a ok, b unwanted, c unwanted',
	'the texts of a partition that is detached are unwanted');
sql(q{UPDATE part_2 SET words = 'A blacksmith' WHERE id = 'b';
	ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES IN (2);
	SELECT hrflow_track_table('parts', 'part', 'id', content_columns => '{words}')});
is(sql('SELECT count(*) FROM parts'), 3, 'the vectors of texts that are wanted again are restored');
$api->reset;
sql(q{CALL hrflow_refresh('parts')});
is(requests(), 1, 'of texts that are wanted again, only the one that has changed is requested');
is( sql(q{SELECT count(*) FROM parts JOIN part ON id = key
		WHERE vector = hrflow_text_embedding(words)}),
	3,
	'texts that are wanted again have their own vectors');
sql(q{SELECT hrflow_drop_store('parts'); DROP TABLE part});

#
# A session that is killed or canceled
#
foreach my $disturbance (qw(cancel kill))
{
	sql(qq{TRUNCATE job; INSERT INTO job SELECT '$disturbance ' || i, 'Nurse',
		'$disturbance number ' || i FROM generate_series(1, 400) i});
	$api->restart('--latency' => 20, '--dim' => 64);

	# After 150 replies, the requests in flight are not answered, so the run waits.
	$api->script('id=ok', count => 150);
	$api->script('silent', count => 8);
	my $session = Hrflow::Session->new($node);
	$session->send(q{CALL hrflow_refresh('vectors', batch_size => 50);});
	$api->wait_until(sub { $_[0]->{requests} >= 150 + 8 }) or die;
	$node->poll_query_until('postgres',
		q{SELECT count(*) BETWEEN 100 AND 350 FROM vectors_profile WHERE state = 'ok'})
	  or die;
	if ($disturbance eq 'kill')
	{
		$node->kill_backend($session->{pid});
	}
	else
	{
		sql("SELECT pg_cancel_backend($session->{pid})");
		$session->wait_for(qr/57014/);
	}
	my $asked = requests();
	my $kept = sql('SELECT count(*) FROM vectors');
	my $marked = sql('SELECT count(sent_hash) FROM vectors_profile');
	cmp_ok($asked - $kept, '<=', $marked, "what was sent before a $disturbance is known");
	sql(q{UPDATE vectors_profile SET lease_until = NULL, due_at = now() WHERE state = 'due'});
	refresh();
	is( states(),
		$marked == 0 ? 'ok 400' : "failed $marked, ok " . (400 - $marked),
		"what may have been sent before a $disturbance is reported");
	is(requests(), 400 - $marked + $asked - $kept, "nothing is sent twice after a $disturbance");
	is( sql(q{SELECT count(*) FROM hrflow_store_failures('vectors')
			WHERE last_error LIKE '%may have been sent, and paid for%'}),
		$marked,
		"the failures after a $disturbance say that texts may have been sent");
	sql(q{UPDATE vectors_profile SET due_at = now()});
	refresh();
	is( requests(),
		400 - $marked + $asked - $kept,
		"later runs send nothing twice after a $disturbance");
	sql(q{SELECT hrflow_retry('vectors')});
	refresh();
	is(states(), 'ok 400', "hrflow_retry() lets texts be sent again after a $disturbance");
	is(wrong(), 0, "each text has its own vector after a $disturbance");
}

#
# A request without an answer, whose lease is lost
#
sql(q{TRUNCATE job; INSERT INTO job VALUES ('lost', 'Baker', '1')});
$api->restart('--dim' => 64);
$api->script('silent', count => 1);
my $session = Hrflow::Session->new($node);
$session->send(q{CALL hrflow_refresh('vectors');});
$node->poll_query_until('postgres', q{SELECT count(sent_hash) = 1 FROM vectors_profile}) or die;
$api->wait_until(sub { $_[0]->{requests} >= 1 })                                         or die;
sql(q{UPDATE vectors_profile SET lease_until = now() - interval '1 minute'});
refresh();
is(states(), 'failed 1', 'a text that another session still waits for is not sent again');
sql(qq{SELECT pg_terminate_backend($session->{pid})});
$session->wait_for(qr/57P01|server closed/);
$api->reset;
sql(q{UPDATE job SET body = '2'});
refresh();
is(states(), 'ok 1', 'a text that has changed since is sent');
is(requests(), 1, 'a text that has changed since is sent once');

# A reset connection
sql(q{INSERT INTO job VALUES ('reset', 'Baker', '3')});
$api->reset;
$api->script('reset', count => 1);
refresh();
sql(q{UPDATE vectors_profile SET due_at = now()});
refresh();
is(states(), 'failed 1, ok 1', 'a text whose connection was lost is not sent again');
is( scalar(
		() =
		  sql(q{SELECT last_error FROM hrflow_store_failures('vectors')}) =~ /may have been sent/g),
	1,
	'a text whose connection was lost is reported as one that may have been sent');

#
# Whether a text was sent does not depend on why its request failed.  One is sent over a
# kept connection that breaks, and libcurl would send it again to a server whose certificate
# is not trusted.  The other waits for a connection until its time is over.
#
{
	my $other = Hrflow::StandIn->new('--dim' => 64);
	my $distrusted = Hrflow::RawPeer->new(
		sub { Hrflow::RawPeer::forward($_[0], $_[1] == 0 ? $api->https : $other->https) });
	my $silent = Hrflow::RawPeer->new(sub { sleep 600 });

	foreach my $case (
		[   'sent', $distrusted, q{SELECT hrflow_text_embedding('warm') IS NULL;},
			'failed 1', 'a text is not sent again that was lost before a connection failed' ],
		[   'unsent', $silent, q{SET hrflow_embed.request_timeout = '1s';
				SET hrflow_embed.connect_timeout = '1s';},
			'ok 1', 'a text is sent that could not be sent before its time was over' ])
	{
		my ($what, $peer, $set, $state, $name) = @$case;
		my $session = Hrflow::Session->new($node);

		sql(qq{TRUNCATE job; INSERT INTO job VALUES ('$what', 'Baker', '$what')});
		$session->query("SET hrflow_embed.ca_file = '"
			  . $api->ca
			  . "'; SET hrflow_embed.base_url = 'https://localhost:"
			  . $peer->port
			  . "/v1'; $set");
		$api->reset;
		$api->script('reset', count => 1) if $what eq 'sent';
		$session->ask(q{CALL hrflow_refresh('vectors', max_attempts => 1);});
		like(
			sql(q{SELECT last_error FROM vectors_profile}),
			$what eq 'sent' ? qr/could not connect/ : qr/did not answer/,
			"the request of a text fails that was $what");
		sql(q{UPDATE vectors_profile SET due_at = now()});
		refresh();
		is(states(), $state, $name);
		is(requests(), 1, "a text that was $what takes one request");
		$session->finish;
	}
}

#
# A text that another row has, while the request of that one has no answer
#
sql(q{TRUNCATE job; INSERT INTO job VALUES ('a', 'Baker', 'same'), ('b', 'Baker', 'same')});
$api->reset;
$api->script('silent', count => 1);
sql(q{SET hrflow_embed.request_timeout = '1s'; SET hrflow_embed.max_concurrency = 1;
}
	  . q{CALL hrflow_refresh('vectors', batch_size => 1)});
is($api->stats->{requests}, 1, 'a text without an answer is not sent for another row');

#
# A table that another session has locked
#
sql(q{TRUNCATE job; INSERT INTO job SELECT i, 'Welder', 'number ' || i FROM generate_series(1, 100) i}
);
$api->restart('--dim' => 64);
$api->script('latency=3000', count => 32);
$session = Hrflow::Session->new($node);
my $locker = Hrflow::Session->new($node);
$session->send(q{CALL hrflow_refresh('vectors');});
$api->wait_until(sub { $_[0]->{requests} >= 16 }) or die;
$locker->ask('BEGIN; LOCK TABLE job IN ACCESS EXCLUSIVE MODE;');
$node->poll_query_until('postgres',
	q{SELECT count(*) = 1 FROM pg_locks WHERE relation = 'job'::regclass AND NOT granted})
  or die;
is(sql('SELECT count(sent_hash) FROM vectors_profile'),
	0, 'a run waits for a lock on a table only when all answers have been written');
$locker->ask('COMMIT;');
$session->ask('SELECT 1;');
is(states(), 'ok 100', 'no answer is lost because a table was locked');
is($api->stats->{requests}, 100, 'no text is sent twice because a table was locked');
$api->restart('--dim' => 64);

#
# Statistics that are wrong, as after all rows have been deleted and loaded again
#
sql(q{ALTER TABLE vectors SET (autovacuum_enabled = off);
	ALTER TABLE vectors_profile SET (autovacuum_enabled = off); TRUNCATE job;
	INSERT INTO job SELECT i, 'Driver', 'number ' || i FROM generate_series(1, 1000) i; ANALYZE job;
	UPDATE pg_class SET reltuples = 1, relpages = 100 WHERE EXISTS
		(SELECT FROM unnest('{vectors,vectors_profile}'::regclass[]) AS t WHERE t IN (pg_class.oid,
			(SELECT indrelid FROM pg_index WHERE indexrelid = pg_class.oid)))});
$node->psql(
	'postgres', q{LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0;
	SET auto_explain.log_nested_statements = on; SET auto_explain.log_analyze = on;
	SET auto_explain.log_timing = off; SET auto_explain.log_level = notice;
}
	  . q{CALL hrflow_refresh('vectors')}, stderr => \$err);
my @plans = grep { /_hash/ } split /^(?=\S*\s*NOTICE:)/m, $err;
cmp_ok(scalar(@plans), '>=', 30, 'auto_explain logs the statements about contents');
is(join("\n", grep { /Rows Removed by .*: (\d+)/ && $1 > 500 } @plans),
	'', 'no statement about contents reads the whole store, although the statistics are wrong');
sql('ALTER TABLE vectors RESET (autovacuum_enabled); ALTER TABLE vectors_profile RESET (autovacuum_enabled)'
);

# Return a statistic of the sessions that have ended, whose counts are complete
sub statistic
{
	my ($query) = @_;
	my $others = join ', ', map { $_->pid } $session, $locker;

	$node->poll_query_until(
		'postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'client backend'
			AND pid NOT IN (pg_backend_pid(), $others)") or die;
	return sql($query);
}

#
# A text that all rows have
#
sql(q{TRUNCATE job; INSERT INTO job SELECT i, 'Driver', 'same' FROM generate_series(1, 1000) i});
refresh();
sql('UPDATE vectors_profile SET due_at = now()');
my $count_reads =
  q{SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'vectors_profile'};
my $before = statistic($count_reads);
refresh();
cmp_ok(statistic($count_reads) - $before,
	'<', 50 * 1000, 'a text that all rows have is not looked up in all of them, for each row');
is(states(), 'ok 1000', 'texts that are equal are refreshed');

#
# A text that many rows have, while its request has no answer
#
sql(q{TRUNCATE job; INSERT INTO job SELECT i, 'Driver', 'again' FROM generate_series(1, 1000) i});
$api->reset;
$api->script('hold=2', count => 1);
$session->send(q{CALL hrflow_refresh('vectors', batch_size => 50);});
$api->wait_until(sub { $_[0]->{requests} >= 1 })                                             or die;
$node->poll_query_until('postgres', q{SELECT count(lease_until) >= 50 FROM vectors_profile}) or die;
is( sql(q{SELECT count(*) < 100 FROM (SELECT pg_sleep(0.5)) s, vectors_profile
		WHERE lease_until > now()}),
	't',
	'no more rows than a batch wait for the answer to one request');
$api->release(2);
$session->ask('SELECT 1;');
is(states(), 'ok 1000', 'all rows with a text get the vector of its one request');
is(requests() - 1, 1, 'a text that 1,000 rows have is sent once');

#
# A text that the API refuses, and that many rows have
#
sql(q{TRUNCATE job; INSERT INTO job SELECT i, 'fault:status=422' FROM generate_series(1, 20) i});
$api->reset;
for (1 .. 2)
{
	sql(q{CALL hrflow_refresh('vectors', max_attempts => 1)});
	sql('UPDATE vectors_profile SET due_at = now() WHERE due_at IS NOT NULL');
}
is(states(), 'failed 20', 'one request that is refused for many rows is not taken for an outage');
is(requests(), 1, 'a text that is refused is sent once for all of its rows');

#
# Long texts
#
sql(q{TRUNCATE job; INSERT INTO job SELECT i, repeat('x', 1000000) FROM generate_series(1, 150) i});
for (1 .. 2)
{
	my $other = Hrflow::Session->new($node);

	$other->ask(q{CALL hrflow_refresh('vectors');});
	my ($peak) =
	  $other->ask(q{SELECT substring(pg_read_file('/proc/self/status') FROM 'VmHWM:\s+(\d+)');}) =~
	  /(\d+)/;
	cmp_ok($peak, '<', 200_000,
		$_ == 1
		? 'the texts of rows that wait for one request take no memory'
		: 'texts that have not changed take no memory');
	$other->finish;
	sql('UPDATE vectors_profile SET due_at = now()');
}
my $count_blocks = q{SELECT toast_blks_read + toast_blks_hit FROM pg_statio_user_tables
	WHERE relname = 'job'};
sql('ALTER TABLE job DROP CONSTRAINT job_pkey; ANALYZE job');
$before = statistic($count_blocks);
refresh();
cmp_ok(statistic($count_blocks) - $before,
	'<', 5000, 'a claim reads only the texts of the keys that it has claimed');
sql('ALTER TABLE job ADD PRIMARY KEY (id)');

#
# Vectors of another dimension, while others are found in the store.  The requests
# before let the number of requests in flight grow.
#
$session->ask('SET hrflow_embed.max_concurrency = 128;');
$api->restart('--dim' => 64, '--latency' => 50);
sql(q{TRUNCATE job;
	INSERT INTO job SELECT 'known ' || i, 'Driver', 'known' FROM generate_series(1, 300) i;
	INSERT INTO job SELECT i, 'Driver', 'number ' || i FROM generate_series(1, 1000) i});
$session->ask(q{CALL hrflow_refresh('vectors');});
$api->restart('--dim' => 32, '--latency' => 200);
sql(q{UPDATE vectors_profile SET due_at = now() - interval '1 hour', state = 'due'
	WHERE key ~ 'known';
	INSERT INTO job SELECT 'new ' || i, 'Driver', 'new ' || i FROM generate_series(1, 400) i});
like(
	$session->ask(q{CALL hrflow_refresh('vectors');}),
	qr/vectors of 32 dimensions, and those of the store have 64/,
	'a run is stopped if the API returns vectors of another dimension');
cmp_ok(requests(), '<=', 32,
	'a run is stopped by another dimension as soon as if no vector had been found');
$api->restart('--dim' => 64);

# A vector of another dimension is kept until other vectors show whether the model has
# changed.  Meanwhile, its text is found in another row.
$session->ask('SET hrflow_embed.max_concurrency = 1;');
my $narrow = 'fault:data=' . encode_base64url('[{"embedding": [1, 2]}]');
sql(qq{TRUNCATE job;
	INSERT INTO job SELECT 'known ' || i, 'Driver', 'known' FROM generate_series(1, 9) i});
$session->ask(q{CALL hrflow_refresh('vectors');});
$api->reset;
sql(qq{INSERT INTO job VALUES ('1', '$narrow', ''), ('2', '$narrow', ''), ('3', 'Driver', 'new');
	UPDATE vectors_profile SET due_at = now() - (10 - key::int) * interval '1 minute'
		WHERE key IN ('1', '2', '3')});
$session->ask(q{CALL hrflow_refresh('vectors', batch_size => 1);});
is(requests(), 2, 'a text is sent once although its vector has another dimension');
is( sql(q{SELECT string_agg(cardinality(vector)::text, ' ' ORDER BY key) FROM vectors
		WHERE key IN ('1', '2', '3')}),
	'2 2 64',
	'both rows with a text have its vector of another dimension');
$session->ask('RESET hrflow_embed.max_concurrency;');

#
# A vector that the store does not accept
#
sql(q{TRUNCATE job; CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
	AS $$ BEGIN IF NEW.key = 'bad' THEN RAISE 'refused'; END IF; RETURN NEW; END $$;
	CREATE TRIGGER refuse BEFORE INSERT ON vectors FOR EACH ROW EXECUTE FUNCTION refuse();
	INSERT INTO job VALUES ('bad', 'Baker', '1'), ('good', 'Baker', '2')});
$api->reset;
for (1 .. 3)
{
	refresh();
	sql('UPDATE vectors_profile SET due_at = now()');
}
is(requests(), 2, 'a text whose vector could not be stored is not sent again');
is(states(), 'failed 1, ok 1', 'a text fails whose vector could not be stored');
sql(q{DROP TRIGGER refuse ON vectors; SELECT hrflow_retry('vectors')});
refresh();
is(states(), 'ok 2', 'hrflow_retry() lets a text be stored whose vector could not be stored');
is(requests(), 3, 'hrflow_retry() lets a text be sent again whose vector could not be stored');

#
# hrflow_retry() while the text of a failed key is in flight again
#
sql(q{TRUNCATE job; INSERT INTO job VALUES ('retry', 'Baker', '1')});
$api->script('status=422', count => 1);
sql(q{CALL hrflow_refresh('vectors', max_attempts => 1)});
is(states(), 'failed 1', 'a text fails that the API refuses');
$api->reset;
$api->script('hold=2', count => 1);
sql('UPDATE vectors_profile SET due_at = now()');
$session->send(q{CALL hrflow_refresh('vectors');});
$node->poll_query_until('postgres', 'SELECT count(sent_hash) = 1 FROM vectors_profile') or die;
$api->wait_until(sub { $_[0]->{requests} >= 1 })                                        or die;
sql(q{SELECT hrflow_retry('vectors')});
is(sql('SELECT count(sent_hash) FROM vectors_profile'),
	1, 'hrflow_retry() does not forget a request that is in flight');
$api->release(2);
$session->ask('SELECT 1;');

#
# A crash while commits are asynchronous
#
sql('ALTER SYSTEM SET synchronous_commit = off');
sql(q{ALTER SYSTEM SET wal_writer_delay = '10s'});
$node->restart;
sql(q{TRUNCATE job; INSERT INTO job SELECT i, 'Driver', 'number ' || i FROM generate_series(1, 8) i}
);
sql('SET synchronous_commit = on; CREATE TABLE flushed ()');
$api->reset;
$api->script('silent', count => 8);
$session = Hrflow::Session->new($node);
$session->send(q{CALL hrflow_refresh('vectors');});
$api->wait_until(sub { $_[0]->{requests} >= 8 }) or die;
$node->kill_backend($session->{pid});
sql('UPDATE vectors_profile SET lease_until = NULL, due_at = now()');
refresh();
is($api->stats->{requests}, 8, 'nothing is sent twice after a crash, with synchronous_commit off');
is(states(), 'failed 8', 'all texts in flight fail after a crash, with synchronous_commit off');

#
# Documents
#
sql(q{SELECT hrflow_create_store('cv', 'real[]', content => 'document');
	CREATE TABLE person (id int, cv jsonb);
	INSERT INTO person SELECT i, jsonb_build_object('name', 'nurse ' || i % 6) FROM generate_series(1, 10) i;
	SELECT hrflow_track_table('cv', 'person', 'id', content_columns => '{cv}')});
$api->reset;
sql(q{CALL hrflow_refresh('cv'); UPDATE person SET cv = cv || '{}'; CALL hrflow_refresh('cv')});
is(requests(), 6, 'equal documents are requested once');
is( sql(q{SELECT count(*) FROM cv JOIN person ON id::text = key
		WHERE vector = hrflow_document_embedding('profile', cv)}),
	10,
	'each document has its own vector');
sql(q{INSERT INTO person SELECT i, jsonb_build_object('name', 'cook ' || i)
		FROM generate_series(11, 40) i;
	CALL hrflow_refresh('cv'); UPDATE person SET cv = '{}'});
$node->psql('postgres', q{CALL hrflow_refresh('cv')}, stdout => \$out, stderr => \$err);
like(
	$err,
	qr/keeps the vectors of 40 keys whose contents have become empty/,
	'vectors are kept if too many documents become empty at once');
is(sql('SELECT count(*) FROM cv'), 40, 'all those of documents');
sql(q{INSERT INTO person VALUES (11, '[1]'), (11, '{"name": "cook"}');
	SET hrflow_embed.vector_dimension = 32;
}
	  . q{CALL hrflow_refresh('cv')});
is( sql(q{SELECT vector = hrflow_document_embedding('profile', '{"name": "cook"}') FROM cv
			WHERE key = '11'}
	),
	't',
	'of several rows with one key, one is used whose document can be sent');
$api->restart('--dim' => 128);
sql(q{UPDATE person SET cv = cv || '{"new": 1}'; SET hrflow_embed.vector_dimension = 64;
}
	  . q{CALL hrflow_refresh('cv')});
is(sql('SELECT DISTINCT array_dims(vector) FROM cv'),
	'[1:64]', 'a vector of twice the dimension is not stored, whatever vector_dimension is');
$api->restart('--dim' => 64);

#
# Sessions that are killed, crash, or lose the network
#
Hrflow::Disturb::run($node, $api, $_, 600, qw(kill crash network)) foreach qw(text document);

done_testing();
