# Requests to the other endpoints contain exactly what was passed, whatever
# characters it consists of.  A POST is not sent again unless the API cannot
# have processed it, and interrupts and the key are handled as in other
# functions.  A regression test cannot see requests or interrupt itself.
use strict;
use warnings FATAL => 'all';
use utf8;
use Encode qw(decode encode);
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Server;
use Hrflow::Session;
use Hrflow::StandIn;
use JSON::PP;
use PostgreSQL::Test::Utils ();
use Test::More;

my $store = Hrflow::StandIn->new;
my $api = Hrflow::StandIn->new('--link-base' => 'http://127.0.0.1:' . $store->http);
my $node = Hrflow::Node->new(
	'jobs_texts', $api,
	api_user => 'account@example.com',
	link_hosts => '127.0.0.1');

sub sql { return $node->safe_psql('postgres', @_); }

# Return any text as a literal that neither psql nor the shell changes.
sub literal
{
	my ($text) = @_;
	return 'NULL' unless defined $text;
	return sprintf q{convert_from(decode('%s', 'hex'), 'UTF8')},
	  unpack('H*', encode('UTF-8', $text));
}

# Decode the parameters of a query, sorted, without using the code under test.
sub decode_query
{
	my ($query) = @_;
	return [
		sort { $a->[0] cmp $b->[0] } map {
			my ($name, $value) = split /=/, $_, 2;
			$value =~ s/%([0-9A-F]{2})/chr(hex($1))/ge;
			[ $name, decode('UTF-8', $value) ];
		} split /&/,
		$query,
		-1 ];
}

# Return a body as received.  In the log, each of its bytes is a character.
sub body { return $_[0]{body}; }

my @nasty = (
	'old id', 'a+b',
	'a&job_id=b', 'a/b/../c',
	'100%', '%00',
	'?q', '#f',
	'x=y', '"quoted"',
	"it's", '\\back\\slash',
	"tab\there", "line\nbreak\r\n",
	"\x01\x1f\x7f", "Zo\x{eb}",
	"\x{5f20}\x{4f1f}", "\x{645}\x{62d}",
	"\x{1f600}\x{200d}\x{1f680}", "e\x{301}",
	"\x{feff}bom", "\x{2028}\x{2029}",
	'{"text": "x"}', '"}',
	'\\', '\\u0041',
	'\\"', '</script>',
	' ', '.',
	'a' x 2000);

#
# Jobs
#
foreach my $names ([ 'id', 'job_id', 'job_reference', 'board_id' ],
	[ 'key', 'key', 'reference', 'board_key' ])
{
	my ($dialect, @names) = @$names;
	my (@calls, @wanted);

	foreach my $i (0 .. $#nasty)
	{
		foreach my $row (
			[ $nasty[$i] ],
			[ undef, $nasty[$i] ],
			[ 'j', undef, $nasty[$i] ],
			[ $nasty[$i], $nasty[ $i - 1 ], $nasty[ $i - 2 ] ])
		{
			push @calls, sprintf 'PERFORM hrflow_job_embedding(%s, %s, %s)',
			  map { literal($_) } @$row[ 0 .. 2 ];
			push @wanted,
			  [ sort { $a->[0] cmp $b->[0] }
				map { [ $names[$_], $row->[$_] ] } grep { defined $row->[$_] } 0 .. 2 ];
		}
	}
	$api->reset;
	sql("SET hrflow_embed.api_dialect = '$dialect'; SET hrflow_embed.max_attempts = 1;" . join '',
		map { "DO \$\$ BEGIN $_; EXCEPTION WHEN OTHERS THEN NULL; END \$\$;" } @calls);
	my @log = $api->log;

	is(scalar(@log), scalar(@calls),
		"in the $dialect dialect each call for a job sends one request");
	is_deeply([ grep { "$_->{method} $_->{path}" ne 'GET /v1/job/embedding' } @log ],
		[], "in the $dialect dialect a call for a job is a GET of its endpoint");
	is_deeply([ map { decode_query($_->{query}) } @log ],
		\@wanted, "in the $dialect dialect the decoded pairs are the arguments of the call");
	is(scalar(grep { $_->{query} !~ /^(?:[A-Za-z0-9._~-]|%[0-9A-F]{2}|&|=)*$/ } @log),
		0, "in the $dialect dialect everything but unreserved characters is percent-encoded");
}

# The vector is the stand-in's, bit for bit, and the key stays with the API
sql(q{CREATE FUNCTION hex(v real[]) RETURNS text LANGUAGE sql AS
	$$SELECT string_agg(encode(float4send(x), 'hex'), '' ORDER BY n)
	  FROM unnest(v) WITH ORDINALITY u(x, n)$$});

sub expected_hex
{
	my ($identifier, $section, $row) = @_;
	$identifier =~ s/([^A-Za-z0-9])/sprintf('%%%02X', ord($1))/ge;
	return unpack('H*', pack('N*', unpack('V*', $api->vector($identifier, $section, $row // 0))));
}

$store->reset;
is( sql(q{SELECT hex(hrflow_job_vector('nurse-job'))}),
	expected_hex('nurse-job', 'job'),
	"a job's vector is read bit for bit");
my @received = $store->log;
is(scalar(@received), 1, "the link of a job's vector is fetched once");
is_deeply(
	[ sort map { lc } keys %{ $received[0]{headers} } ],
	[qw(accept accept-encoding host user-agent)],
	"a job's link sends no header of HrFlow's to its host");
unlike(
	encode_json(\@received),
	qr/$Hrflow::StandIn::KEY|account\@example/,
	"a job's link sends neither the key nor the account to its host");

#
# Texts
#
$api->reset;
sql('SELECT status FROM hrflow_text_embeddings(ARRAY['
	  . join(', ', map { literal($_) } @nasty) . ']);'
	  . join '',
	map { 'SELECT cardinality(hrflow_text_embedding(' . literal($_) . '));' } @nasty);
my @log = $api->log;
is(scalar(@log), 2 * @nasty, 'each text sends one request');
is_deeply(
	[   grep { "$_->{method} $_->{path} $_->{query}$_->{status}" ne 'POST /v1/text/embedding 200' }
		  @log ],
	[],
	'a text is a POST to its endpoint without a query string');
my @texts = map { decode_json(encode('latin1', body($_)))->{text} } @log;
is_deeply(
	[ sort @texts[ 0 .. $#nasty ] ],
	[ sort @nasty ],
	'the bodies of a batch are JSON documents with the texts');
is_deeply([ @texts[ @nasty .. $#texts ] ],
	\@nasty, 'the body of a single call is a JSON document with the text');
is(body($log[ scalar @nasty ]), '{"text": "old id"}', 'the body has the text as its only member');
is_deeply([ grep { encode('latin1', body($_)) =~ /[\x00-\x1f]/ } @log ],
	[], 'control characters are escaped in the body');

my $headers = $log[0]{headers};
is_deeply(
	[ sort map { lc } keys %$headers ],
	[qw(accept accept-encoding content-length content-type host user-agent x-api-key x-user-email)],
	'a request for a text has exactly the expected headers');
is( "$headers->{'Content-Type'} $headers->{'X-API-KEY'}",
	"application/json $Hrflow::StandIn::KEY",
	'a request for a text carries its content type and the key');

is( sql(q{SELECT hex(hrflow_text_embedding('a nurse & more'))}),
	expected_hex('a nurse & more', 'text'),
	"a text's vector is read bit for bit");
is( sql(q{SELECT DISTINCT hex(vector)
	FROM hrflow_text_embeddings('{a nurse & more,a nurse & more}')}
	),
	expected_hex('a nurse & more', 'text'),
	'the vectors of a batch of texts are read bit for bit');

#
# Documents
#
sub document
{
	my ($text, $sequences) = @_;
	return sprintf q{hrflow_document_embedding('job', jsonb_build_object('name', %s, 'n', 1.50)%s)},
	  literal($text), $sequences ? ', true' : '';
}
$api->reset;
sql(q{SELECT status FROM hrflow_document_embeddings('profile', ARRAY[}
	  . join(', ', map { 'jsonb_build_object(' . literal($_) . ', ' . literal($_) . ')' } @nasty)
	  . ']);'
	  . join '',
	map { 'SELECT cardinality(' . document($_) . ');' } @nasty);
@log = $api->log;
is_deeply(
	[   grep {
			"$_->{method} $_->{path} $_->{query}$_->{status}" ne 'POST /v1/document/embedding 200'
		} @log ],
	[],
	'a document is a POST to its endpoint without a query string');
my @documents = map { decode_json(encode('latin1', body($_))) } @log;
is_deeply(
	[ sort { (keys %{ $a->{item} })[0] cmp(keys %{ $b->{item} })[0] } @documents[ 0 .. $#nasty ] ],
	[   map { { item_type => 'profile', item => { $_ => $_ }, return_sequences => 'False' } }
		sort @nasty ],
	'the bodies of a batch are JSON documents with the items, their type and nothing else');
is_deeply(
	[ @documents[ @nasty .. $#documents ] ],
	[   map {
			{   item_type => 'job',
				item => { name => $_, n => 1.5 },
				return_sequences => 'False' }
		} @nasty ],
	'the body of a single call is a JSON document with the item');
is( body($log[ scalar @nasty ]),
	'{"item_type": "job", "item": {"n": 1.50, "name": "old id"}, "return_sequences": "False"}',
	'the item is sent as jsonb writes it');
is_deeply(
	[ sort map { lc } keys %{ $log[0]{headers} } ],
	[ sort map { lc } keys %$headers ],
	'a request for a document has the headers of one for a text');

my $item = '{"name": "a nurse & more"}';
is( sql(qq{SELECT hex(hrflow_document_embedding('profile', '$item'))}),
	expected_hex($item, 'document'),
	"a document's vector is read bit for bit");
my ($rows, $hex) = split /\|/, sql(
	qq{SET hrflow_embed.vector_dimension = 1024;
	SELECT array_length(v, 1), hex(v)
	FROM hrflow_document_embedding('profile', '{"name": "cook"}', true) v});
is( $hex,
	join('', map { expected_hex('{"name": "cook"}', 'document', $_) } 0 .. $rows - 1),
	"the vectors of a document's parts are read bit for bit");
cmp_ok($rows, '>', 1, 'the document has several parts');
is(decode_json(body(($api->log)[-1]))->{return_sequences},
	'True', 'the body says whether a vector for each part is to be returned');

# A GET after a POST, over the same connection, has no body
$api->reset;
sql(q{SELECT cardinality(hrflow_text_embedding('a')), hrflow_auth(),
	cardinality(hrflow_text_embedding('b')), hrflow_profile_embedding('s', 'p')}
);
@log = $api->log;
is( join(' ', map { $_->{method} . (defined $_->{body} ? '+body' : '') } @log),
	'POST+body GET POST+body GET',
	'POST and GET alternate over one connection');
is_deeply([ grep { exists $_->{headers}{'Content-Type'} } @log[ 1, 3 ] ],
	[], 'a GET after a POST has no content type');
my %connections = map { $_->{connection} => 1 } @log;
is(scalar(keys %connections), 1, 'POST and GET share a connection');

# Many large texts
$api->reset;
is( sql(q{SET hrflow_embed.connect_timeout = '60s';
	SELECT status || ' ' || count(*)
	FROM hrflow_text_embeddings((SELECT array_agg(i || repeat('x', 1000000))
	FROM generate_series(1, 80) i)) GROUP BY status}
	),
	'ok 80',
	'a batch of 80 MB of texts succeeds');
is($api->stats->{by_status}{200}, 80, 'each text of a large batch is sent once');

#
# More members in a reply than any answer has, with the name that the JSON
# parser skips
#
my $many = Hrflow::RawPeer->new(
	sub {
		my ($socket) = @_;
		my $body = '{"code": 200, "data": [{' . '"embedding": [],' x 1_000_000 . '"x": 1}]}';
		my ($length) = Hrflow::RawPeer::read_request($socket) =~ /Content-Length: (\d+)/i;
		read($socket, my $text, $length);
		print $socket "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
		  . length($body)
		  . "\r\n\r\n$body";
	});
my (undef, undef, $refusal) = $node->psql('postgres',
		"SET hrflow_embed.base_url = 'http://127.0.0.1:"
	  . $many->port
	  . "/v1'; SET hrflow_embed.max_response_size = '64MB'; SELECT hrflow_text_embedding('many');");
like(
	$refusal,
	qr/not a JSON object that jsonb can hold/,
	'a reply with a million embeddings is refused');

#
# Other encodings
#
sql(q{CREATE DATABASE latin1 ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'});
sql(q{CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'});
$node->safe_psql($_, 'CREATE EXTENSION hrflow_embed') foreach qw(latin1 ascii);
$api->reset;
$node->safe_psql(
	'latin1', q{SELECT cardinality(hrflow_text_embedding('Zo' || chr(235) || chr(10)));
	SELECT hrflow_job_embedding('Zo' || chr(235))});
@log = $api->log;
is( encode('latin1', body($log[0])),
	"{\"text\": \"Zo\xc3\xab\\n\"}",
	'a text in a database in LATIN1 is sent as UTF-8');
is($log[1]{query}, 'job_id=Zo%C3%AB',
	'an identifier of a job in a database in LATIN1 is sent as UTF-8');
$api->reset;
my $ascii = q{convert_from('\x5a6f%s', 'SQL_ASCII')};
$node->safe_psql('ascii',
	'SELECT cardinality(hrflow_text_embedding(' . sprintf($ascii, 'c3ab') . '))');
is( encode('latin1', body(($api->log)[0])),
	"{\"text\": \"Zo\xc3\xab\"}",
	'a text in a database in SQL_ASCII is sent unchanged if it is UTF-8');
my (undef, $out, $err) = $node->psql(
	'ascii',
	'\set VERBOSITY sqlstate' . "\n"
	  . 'SELECT hrflow_text_embedding('
	  . sprintf($ascii, 'eb')
	  . '); SELECT status FROM hrflow_text_embeddings(ARRAY['
	  . sprintf($ascii, 'eb')
	  . ']); SELECT status, error FROM hrflow_document_embeddings(\'job\', ARRAY[jsonb_build_object(\'a\', '
	  . sprintf($ascii, 'eb') . ')]);',
	on_error_stop => 0);
like($err, qr/ERROR:  22023/, 'a text in a database in SQL_ASCII is refused if it is not UTF-8');
is( $out,
	"invalid_request\ninvalid_request|invalid request to the HrFlow API: The item cannot be converted to UTF-8.",
	'a text or an item that is not UTF-8 fails its row of a batch');
is(scalar($api->log), 1, 'a text or an item that is not UTF-8 sends no request');

#
# Requests that are retried
#
my @cases = (

	# fault, status, requests of a text or a document, of a job
	[ 'first=1,reset', 'connection_failed', 1, 2 ],
	[ 'first=1,break=50', 'connection_failed', 1, 2 ],
	[ 'first=1,status=500', 'http_error', 1, 2 ],
	[ 'first=1,status=502,html', 'http_error', 1, 2 ],
	[ 'first=1,status=503', 'http_error', 1, 2 ],
	[ 'first=1,status=504', 'http_error', 1, 2 ],
	[ 'first=1,status=408', 'timeout', 1, 2 ],
	[ 'first=1,status=500,retry_after=1', 'http_error', 1, 2 ],
	[ 'first=1,status=429', 'ok', 2, 2 ],
	[ 'first=1,status=429,retry_after=1', 'ok', 2, 2 ],
	[ 'first=1,status=503,retry_after=1', 'ok', 2, 2 ],
	[ 'silent', 'timeout', 1, 1 ]);
my $n = 0;
foreach my $case (@cases)
{
	my ($fault, $status, $of_text, $of_job) = @$case;

	# Only what is never answered times out, however slow the machine is.
	my $timeout = $fault eq 'silent' ? '700ms' : '20s';
	my %requests;

	foreach my $kind (qw(text texts document documents job))
	{
		my $id = "'fault:$fault,id=" . $n++ . "'";
		my $call =
			$kind eq 'text' ? "SELECT 'ok' FROM hrflow_text_embedding($id)"
		  : $kind eq 'texts' ? "SELECT status FROM hrflow_text_embeddings(ARRAY[$id])"
		  : $kind eq 'document'
		  ? "SELECT 'ok' FROM hrflow_document_embedding('job', jsonb_build_object('key', $id))"
		  : $kind eq 'documents' ? "SELECT status FROM hrflow_document_embeddings('job',
				ARRAY[jsonb_build_object('key', $id)])"
		  : "SELECT 'ok' FROM hrflow_job_embedding($id)";

		$api->reset;
		my (undef, $out) =
		  $node->psql('postgres',
			"SET hrflow_embed.request_timeout = '$timeout'; SELECT $id; $call");
		my @log = sort { $a->{ms} <=> $b->{ms} } $api->log;
		$requests{$kind} = $fault eq 'silent' ? $api->stats->{requests} : scalar(@log);
		is((split /\n/, $out)[1] // 'raised', $status, "one of $kind that meets $fault is $status")
		  if $kind =~ /s$/;
		cmp_ok($log[1]{ms} - $log[0]{ms},
			'>=', 900, "a text that meets $fault is retried after Retry-After")
		  if $kind eq 'text' && $fault =~ /retry_after/ && $of_text > 1;
	}
	is_deeply(
		\%requests,
		{   text => $of_text,
			texts => $of_text,
			document => $of_text,
			documents => $of_text,
			job => $of_job },
		"what meets $fault is requested $of_text times if it is posted, $of_job times if a job");
}
$api->reset;
like(
	$node->error_of(
		q{SET hrflow_embed.max_attempts = 3; SELECT hrflow_text_embedding('fault:status=429');}),
	qr/^53400/,
	'a text whose attempts are all answered 429 fails');
is(scalar($api->log), 3, 'a text that is answered 429 is sent max_attempts times');

# libcurl retries a request by itself if a kept connection turns out to be closed
my $reply = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s";
my $answer = '{"code": 200, "data": [{"embedding": [1, 2]}]}';
my $count = PostgreSQL::Test::Utils::tempdir() . '/requests';
my $peer = Hrflow::RawPeer->new(
	sub {
		my ($socket, $connection) = @_;
		for (my $i = 0;; $i++)
		{
			my $head = Hrflow::RawPeer::read_request($socket) // return;
			my ($length) = $head =~ /^Content-Length: (\d+)/mi;
			read($socket, my $body, $length // 0);
			open(my $log, '>>', $count) or die;
			print $log "$connection/$i\n";
			close $log;
			return if $i > 0;    # the second request is read, but not answered
			printf $socket $reply, length($answer), $answer;
		}
	});
my $at_peer = "SET hrflow_embed.base_url = 'http://127.0.0.1:" . $peer->port . "/v1';";
$node->psql(
	'postgres',
	"$at_peer \\set VERBOSITY verbose\nSELECT hrflow_text_embedding('a');
	SELECT hrflow_text_embedding('b');",
	stdout => \$out,
	stderr => \$err);
is($out, '{1,2}', 'a text is embedded over a new connection');
like(
	$err,
	qr/ERROR:  08006: lost the connection to the HrFlow API/,
	'a text whose kept connection breaks fails');
is(PostgreSQL::Test::Utils::slurp_file($count),
	"0/0\n0/1\n", 'a text whose kept connection breaks is not sent again');
unlink $count;
$node->psql(
	'postgres',
	"$at_peer SET hrflow_embed.max_attempts = 1; SELECT hrflow_text_embedding('a');
		SELECT hrflow_auth();"
);
like(
	PostgreSQL::Test::Utils::slurp_file($count),
	qr{^(\d+)/0\n\1/1\n(?!\1)\d+/0\n$},
	'a GET whose kept connection breaks is sent again');

# A connection that the server has closed while it was idle is not used.  Over
# TLS the server sends an alert before, which libcurl 7.88 considers a sign of
# life.
foreach my $name ('nginx', 'haproxy')
{
	SKIP:
	{
		my $server = Hrflow::Server->new($name, $api) or skip "$name is not installed", 4;
		my $session = Hrflow::Session->new($node);
		my $texts = q{SELECT status, count(*) FROM hrflow_text_embeddings('{a,b,c,d}') GROUP BY 1;};

		$api->reset;
		is( $session->ask($server->settings . $texts),
			"ok|4\n-- done\n",
			"texts are embedded through $name");
		ok($server->wait_for_close, "$name closes idle connections");
		is( $session->ask($texts),
			"ok|4\n-- done\n",
			"texts are embedded after $name has closed their connections");
		is($api->stats->{api_requests}, 8, "each text is sent once through $name");
		$session->finish;
		$server->stop;
	}
}

# A text is sent again if no connection could be established
my $closed = Hrflow::RawPeer->new(undef);
my $port = $closed->port;
$closed->stop;
is( sql(qq{SET hrflow_embed.base_url = 'http://127.0.0.1:$port/v1';
	SET hrflow_embed.max_attempts = 3; SELECT hrflow_embed_stats_reset();
		SELECT status, error LIKE '%(3 attempts)%' FROM hrflow_text_embeddings('{a}');
		SELECT requests FROM hrflow_embed_stats}) =~ s/^\n//r,
	"connection_failed|t\n0",
	'a text is retried when the connection cannot be established');

#
# Interrupts
#
my $control = Hrflow::Session->new($node);

# This is a different account, because of its origin, so no other test waits for
# its pause.
my $elsewhere = $api->base_url =~ s/127\.0\.0\.1/localhost/r;

# Cancel a statement while it waits.  Returns what it prints.
sub cancel
{
	my ($session, $sql) = @_;
	my $waits = "SELECT wait_event_type FROM pg_stat_activity
		WHERE pid = $session->{pid} AND state = 'active';";

	$session->send("$sql\n\\echo -- done");
	for (1 .. 10_000)
	{
		last if $control->ask($waits) =~ /Extension/;
		select(undef, undef, undef, 0.005);
	}
	$control->query("SELECT pg_cancel_backend($session->{pid});");
	return $session->wait_for(qr/-- done/);
}

# If a cancel did not end them, these statements would take longer than the timeout of a
# session.  020_interrupts.pl measures how soon a cancel takes effect.
foreach my $case (
	[ 'a text', q{SELECT hrflow_text_embedding('fault:silent');} ],
	[   'a text until another try',
		"SET hrflow_embed.base_url = '$elsewhere';
			SELECT hrflow_text_embedding('fault:status=503,retry_after=290');
			RESET hrflow_embed.base_url;" ],
	[ 'a body that dribbles', q{SELECT hrflow_text_embedding('fault:slow=60000');} ],
	[   'texts',
		q{SELECT count(*)
			FROM hrflow_text_embeddings((SELECT array_agg(
				CASE i WHEN 1 THEN 'fault:silent' ELSE 'fault:latency=100,id=' || i END)
			FROM generate_series(1, 10000) i));}
	],
	[ 'a job', q{SELECT hrflow_job_embedding('fault:silent');} ],
	[ q{a job's vector}, q{SELECT hrflow_job_vector('fault:v.silent');} ])
{
	my ($name, $sql) = @$case;
	my $session = Hrflow::Session->new($node);

	$session->ask(q{SET hrflow_embed.request_timeout = '600s'; SELECT hrflow_auth();});
	like(
		cancel($session, $sql),
		qr/ERROR:  57014: canceling statement due to user request/,
		"waiting for $name: a cancel is reported as a cancel");
	like($session->ask(q{SELECT cardinality(hrflow_text_embedding('next'));}),
		qr/^1024$/m, "waiting for $name: the next call works");
	$session->finish;
}
$control->finish;

#
# Secrets
#
$node->psql(
	'postgres', "SET client_min_messages = debug5; SET hrflow_embed.max_attempts = 1;\n$_;",
	stdout => \$out,
	stderr => \$err,
	on_error_stop => 0)
  and unlike("$out$err", qr/0123456789abcdef0123/, "nothing said of $_ has the key")
  foreach q{SELECT hrflow_auth()}, q{SELECT hrflow_text_embedding('fault:status=401,echo')},
  q{SELECT hrflow_job_embedding('fault:status=500,echo')};
my $logged = PostgreSQL::Test::Utils::slurp_file($node->logfile);
unlike($logged, qr/0123456789abcdef0123/, 'the log does not contain the key');
unlike($logged, qr/X-Amz-Signature=[0-9a-f]{8}/, "the log does not contain a link's query");

done_testing();
