# Requests contain exactly what was passed, whatever characters it consists of,
# and go to the right server.  This needs the logs of the API, of another host
# and of a proxy, which a regression test cannot see.
use strict;
use warnings FATAL => 'all';
use utf8;
use Encode qw(decode encode);
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Resolver;
use Hrflow::StandIn;
use JSON::PP;
use MIME::Base64            qw(encode_base64url);
use PostgreSQL::Test::Utils ();
use Test::More;

my $api = Hrflow::StandIn->new;

# Clients that honor the proxy of the environment connect to this.
my $proxy_log = PostgreSQL::Test::Utils::tempdir() . '/proxy.log';
my $proxy = Hrflow::RawPeer->new(
	sub {
		my ($socket) = @_;
		my $head = Hrflow::RawPeer::read_request($socket) // '';
		open(my $log, '>>', $proxy_log) or die;
		print $log $head;
		close $log;
		print $socket "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
	});
my $proxy_url = 'http://127.0.0.1:' . $proxy->port;
my $node;
{
	my $resolver =
	  Hrflow::Resolver->new('wrong.example' => '127.0.0.1', 'plain.example' => '127.0.0.1');
	local @ENV{qw(http_proxy https_proxy HTTPS_PROXY ALL_PROXY all_proxy)} = ($proxy_url) x 5;
	$node = Hrflow::Node->new('requests', $api, max_attempts => 1);
}

sub sql { return $node->safe_psql('postgres', @_); }

# Return any text as a literal that neither psql nor the shell changes.
sub literal
{
	my ($text) = @_;
	return 'NULL' unless defined $text;
	return sprintf q{convert_from(decode('%s', 'hex'), 'UTF8')},
	  unpack('H*', encode('UTF-8', $text));
}

# Decode the parameters of a query, in order, without using the code under test.
sub decode_query
{
	my ($query) = @_;
	return map {
		my ($name, $value) = split /=/, $_, 2;
		$value =~ s/%([0-9A-F]{2})/chr(hex($1))/ge;
		[ $name, decode('UTF-8', $value) ];
	} split /&/, $query, -1;
}

#
# Identifiers of any text
#
my @nasty = (
	'0123456789abcdef0123456789abcdef01234567', 'old id',
	'a+b', 'a&profile_id=b',
	'a/b/../c', '100%',
	'%00', '%2B',
	'?q', '#f',
	'x=y', '"quoted"',
	"it's", '\\back\\slash',
	"tab\there", "line\nbreak\r\n",
	"\x01\x1f\x7f", "Zo\x{eb} M\x{fc}ller",
	"\x{5f20}\x{4f1f}", "\x{645}\x{62d}\x{645}\x{62f}",
	"\x{1f600}\x{1f469}\x{200d}\x{1f680}", "e\x{301}",
	"\x{feff}bom", '; DROP TABLE x; --',
	'{}[]|<>^`', ' ',
	'.', '..',
	'~-._', 'a' x 2000);
my @names = (
	[ 'id', 'source_id', 'profile_id', 'profile_reference', 'profile_email' ],
	[ 'key', 'source_key', 'key', 'reference', 'profile_email' ]);

foreach my $names (@names)
{
	my ($dialect, @names) = @$names;
	my (@calls, @wanted);

	foreach my $i (0 .. $#nasty)
	{
		# Pass each text as each identifier, alone or with others
		my @rows = (
			[ $nasty[$i], 'p' ],
			[ 's', $nasty[$i] ],
			[ 's', undef, $nasty[$i] ],
			[ 's', undef, undef, $nasty[$i] ],
			[ $nasty[$i], $nasty[ $i - 1 ], $nasty[ $i - 2 ], $nasty[ $i - 3 ] ]);
		foreach my $row (@rows)
		{
			push @calls, sprintf 'PERFORM hrflow_profile_embedding(%s, %s, NULL, %s, %s)',
			  map { literal($_) } @$row[ 0 .. 3 ];
			push @wanted, [ map { [ $names[$_], $row->[$_] ] } grep { defined $row->[$_] } 0 .. 3 ];
		}
	}
	$api->reset;
	sql("SET hrflow_embed.api_dialect = '$dialect';" . join '',
		map { "DO \$\$ BEGIN $_; EXCEPTION WHEN OTHERS THEN NULL; END \$\$;" } @calls);
	my @log = $api->log;
	my @bad = grep { $_->{query} !~ /^(?:[A-Za-z0-9._~-]|%[0-9A-F]{2}|&|=)*$/ } @log;

	is(scalar(@log), scalar(@calls), "in the $dialect dialect each call sends one request");
	is(scalar(@bad), 0,
		"in the $dialect dialect everything but unreserved characters is percent-encoded");
	is_deeply(
		[   map {
				[ sort { $a->[0] cmp $b->[0] } decode_query($_->{query}) ]
			} @log ],
		[   map {
				[ sort { $a->[0] cmp $b->[0] } @$_ ]
			} @wanted ],
		"in the $dialect dialect the decoded pairs are the arguments of the call");
}

#
# Fields
#
my @fields = (
	'{"profile": 1}',
	'{"profile":1, "skills":1, "experiences":[0], "educations":[0]}',
	'{"experiences": ["3f2a", "b&c=d"]}',
	"{\"\x{e9}t\x{e9}\": [\"\x{1f600}\", {\"a\": null}], \"b\": 1.50}",
	'{"a": "x\"y\\\\z", "b": "\u0007"}');
$api->reset;
sql(join '',
	map {
			'DO $$ BEGIN PERFORM hrflow_profile_embedding('
		  . "'s', 'p', "
		  . literal($_)
		  . '::jsonb); EXCEPTION WHEN OTHERS THEN NULL; END $$;'
	} @fields);
is_deeply(
	[   map {
			my %pairs = map { @$_ } decode_query($_->{query});
			decode_json(encode('UTF-8', $pairs{fields}))
		} $api->log ],
	[ map { decode_json(encode('UTF-8', $_)) } @fields ],
	'fields are sent as the JSON document that was passed');

$api->reset;
sql(q{SELECT hrflow_profile_embedding('s', 'p', '{}'), hrflow_profile_embedding('s', 'p', NULL)});
is(scalar(grep { $_->{query} eq 'source_id=s&profile_id=p' } $api->log),
	2, 'fields that are empty or NULL are left out of the query');

#
# Calls that send no request
#
$api->reset;
sql(q{
	SELECT hrflow_profile_embedding(NULL, 'p'), hrflow_profile_embedding('s'),
		hrflow_profile_embedding('s', NULL, '{"profile": 1}');
	SELECT * FROM hrflow_profile_embedding_links(NULL, 'p');
	SELECT * FROM hrflow_profile_embeddings(NULL, '{a,b}');
	SELECT * FROM hrflow_profile_embeddings('s', '{}');
	SELECT * FROM hrflow_fetch_vectors('{}');
	SELECT hrflow_fetch_vector(NULL);
	CREATE TABLE candidate (name text, hrflow_id text, embedding real[]);
	EXPLAIN SELECT hrflow_profile_embedding('s', 'p');
	EXPLAIN SELECT * FROM hrflow_profile_embedding_links('s', 'p');
	EXPLAIN SELECT c.name, e.link
		FROM candidate c, hrflow_profile_embedding_links('s', c.hrflow_id) e;
	EXPLAIN SELECT *
		FROM hrflow_profile_embeddings('s', (SELECT array_agg(hrflow_id) FROM candidate));
	EXPLAIN UPDATE candidate c SET embedding = e.vector
		FROM hrflow_profile_vectors('s', (SELECT array_agg(hrflow_id) FROM candidate)) e
		WHERE e.profile_id = c.hrflow_id;
	EXPLAIN SELECT hrflow_fetch_vector('https://b.s3.amazonaws.com/x');
	EXPLAIN SELECT * FROM hrflow_fetch_vectors('{https://b.s3.amazonaws.com/x}');
	EXPLAIN SELECT name FROM candidate ORDER BY hrflow_cosine_similarity(embedding,
		(SELECT vector FROM hrflow_profile_vectors('s', '{p}', '{"profile": 1}')));
	PREPARE p AS SELECT hrflow_profile_embedding('s', $1);
	EXPLAIN EXECUTE p('a')});
is(scalar($api->log), 0, 'NULLs, empty arrays and EXPLAIN send nothing');

#
# Headers
#
$api->reset;
sql(q{SELECT hrflow_profile_embedding('s', 'p');
	SET hrflow_embed.api_user = 'account@example.com';
	SELECT hrflow_profile_embedding('s', 'p')});
my @headers = map { $_->{headers} } $api->log;
is_deeply(
	[ sort map { lc } keys %{ $headers[0] } ],
	[qw(accept accept-encoding host user-agent x-api-key)],
	'a request has exactly the expected headers');
is($headers[0]{'X-API-KEY'}, $Hrflow::StandIn::KEY, 'a request carries the API key');
is($headers[0]{'Accept-Encoding'}, 'gzip', 'a request accepts gzip');
like($headers[0]{'User-Agent'},
	qr{^hrflow_embed/[\d.]+$}, 'the User-Agent names the extension and its version');
is($headers[1]{'X-USER-EMAIL'}, 'account@example.com', 'X-USER-EMAIL is sent if api_user is set');
like(sql(q{SELECT hrflow_profile_embedding('s', 'fault:gzip', '{"profile": 1}')}),
	qr/profile.hflw/, 'a compressed reply is decompressed');

#
# Connections
#
$api->reset;
sql(q{SELECT count(hrflow_profile_embedding('s', 'p' || i)) FROM generate_series(1, 100) i} . ';'
	  . q{SELECT count(hrflow_profile_embedding('s', 'q' || i)) FROM generate_series(1, 100) i});
my %connections = map { $_->{connection} => 1 } $api->log;
is(scalar(keys %connections), 1, '200 calls of one session share a connection');

my $tls =
	"SET hrflow_embed.base_url = '"
  . $api->base_url('https')
  . "'; SET hrflow_embed.ca_file = '"
  . $api->ca . "';";
$api->reset;
sql("$tls SELECT count(hrflow_profile_embedding('s', 'p' || i)) FROM generate_series(1, 100) i;");
%connections = map { $_->{connection} => 1 } $api->log;
is(join(' ', scalar(keys %connections), map { $_->{listener} } ($api->log)[0]),
	'1 https', '100 calls over TLS share a connection');

#
# TLS
#
my $other_ca = Hrflow::StandIn->new;
my $https = $api->https;
foreach my $case (
	[ "the system's certificates", "SET hrflow_embed.base_url = 'https://localhost:$https/v1';" ],
	[   "another's certificate",
		"SET hrflow_embed.base_url = 'https://localhost:$https/v1'; SET hrflow_embed.ca_file = '"
		  . $other_ca->ca . "';" ],
	[   "another host's name",
		"SET hrflow_embed.base_url = 'https://wrong.example:$https/v1';
			SET hrflow_embed.ca_file = '"
		  . $api->ca . "';" ],
	[   "another address",
		"SET hrflow_embed.base_url = 'https://127.0.0.2:$https/v1'; SET hrflow_embed.ca_file = '"
		  . $api->ca . "';" ],
	[   "a server without TLS",
		"SET hrflow_embed.base_url = 'https://plain.example:"
		  . $api->http
		  . "/v1'; SET hrflow_embed.ca_file = '"
		  . $api->ca . "';" ])
{
	my ($name, $settings) = @$case;
	$api->reset;
	like($node->error_of("$settings SELECT hrflow_profile_embedding('s', 'p');"),
		qr/^08001/, "TLS with $name is refused");
	is(scalar($api->log), 0, "TLS with $name sends no request");
}

#
# No other server receives anything
#
my $elsewhere =
  encode_base64url($other_ca->base_url . '/profile/embedding?source_id=s&profile_id=p');
$other_ca->reset;
like($node->error_of("SELECT hrflow_profile_embedding('s', 'fault:redirect=$elsewhere');"),
	qr/^08P01/, 'a redirect is an error');
is(scalar($other_ca->log), 0, 'a redirect is not followed');

ok(!-e $proxy_log, "the proxies named by the server's environment are ignored");
like(
	$node->error_of(
		"SET hrflow_embed.base_url = 'https://api.example.invalid/v1';
			SET hrflow_embed.proxy = '$proxy_url';
		SELECT hrflow_profile_embedding('s', 'p');"),
	qr/^08001/,
	'a proxy that refuses the tunnel is an error');
my $seen = -e $proxy_log ? PostgreSQL::Test::Utils::slurp_file($proxy_log) : '';
like($seen, qr/^CONNECT api.example.invalid:443 /, 'the configured proxy is asked for a tunnel');
unlike(
	$seen,
	qr/$Hrflow::StandIn::KEY|profile_id/,
	'the proxy sees neither the key nor the profile');

#
# Other encodings
#
$node->safe_psql('postgres',
	q{CREATE DATABASE latin1 ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'});
$node->safe_psql('postgres',
	q{CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'});
$node->safe_psql($_, 'CREATE EXTENSION hrflow_embed') foreach qw(latin1 ascii);
$api->reset;
$node->safe_psql('latin1', q{SELECT hrflow_profile_embedding('s', 'Zo' || chr(235))});
is(($api->log)[0]{query}, 'source_id=s&profile_id=Zo%C3%AB', 'a database in LATIN1 sends UTF-8');
is( $node->safe_psql(
		'latin1',
		q{SELECT count(*)
			FROM hrflow_profile_embedding_links('s', 'Zo' || chr(235), '{"profile": 1}')}
	),
	'1',
	'a database in LATIN1 reads the reply to such a request');
$api->reset;
$node->safe_psql('ascii',
	q{SELECT hrflow_profile_embedding('s', convert_from('\x5a6fc3ab', 'SQL_ASCII'))});
is( ($api->log)[0]{query},
	'source_id=s&profile_id=Zo%C3%AB',
	'a database in SQL_ASCII sends valid UTF-8 unchanged');
my (undef, undef, $err) = $node->psql(
	'ascii', q{\set VERBOSITY sqlstate
	SELECT hrflow_profile_embedding('s', convert_from('\x5a6feb', 'SQL_ASCII'))});
like($err, qr/22\w{3}/, 'a database in SQL_ASCII refuses bytes that are not UTF-8');
is(scalar($api->log), 1, 'an identifier that is not UTF-8 sends no request');

# Characters that the other encoding lacks
my %unknown = (
	ascii => q{convert_from('\x5a6feb', 'SQL_ASCII')},
	win1252 => q{convert_from('\x5a6f81', 'WIN1252')});

# MULE_INTERNAL has no conversion to UTF-8, but ASCII needs none; PostgreSQL 19 dropped it.
$unknown{mule_internal} = q{convert_from('\x5a6f81eb', 'MULE_INTERNAL')}
  if $node->safe_psql('postgres', q{SELECT pg_char_to_encoding('MULE_INTERNAL') >= 0}) eq 't';

foreach my $encoding (grep { $_ ne 'ascii' } sort keys %unknown)
{
	$node->safe_psql(
		'postgres',
		"CREATE DATABASE $encoding ENCODING '$encoding'
			TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'");
	$node->safe_psql($encoding, 'CREATE EXTENSION hrflow_embed');
}

foreach my $database (sort keys %unknown)
{
	my $text = $unknown{$database};
	my $said = sub {
		my (undef, $out, $err) = $node->psql($database,
			"\\set VERBOSITY verbose\nSET client_min_messages = error;\n$_[0]");
		return "$out$err";
	};

	$api->reset;
	like(
		$said->("SELECT hrflow_profile_embedding('s', $text)"),
		qr/22023: argument "profile_id" cannot be converted/,
		"$database: an identifier that cannot be converted is refused");
	like(
		$said->("SELECT hrflow_profile_embedding('s', 'p', jsonb_build_object('a', $text))"),
		qr/22023: argument "fields" cannot be converted/,
		"$database: fields that cannot be converted are refused");
	is( $said->("SELECT status, error FROM hrflow_profile_embeddings('s', ARRAY[$text])") =~
		  s/.*request to the HrFlow API: //r,
		'The profile_id cannot be converted to UTF-8.',
		"$database: an identifier that cannot be converted fails its row of a batch");
	$said->(
		"SELECT hrflow_create_store('store', 'real[]');
			SELECT hrflow_track('store', 's', ARRAY[$text])"
	);
	like(
		$said->("CALL hrflow_refresh('store', max_attempts => 1)")
		  . $said->('SELECT state, last_error FROM store_profile'),
		qr/1\ failed.*failed\|.*An\ identifier\ cannot\ be\ converted\ to\ UTF-8
			|22023:\ argument\ "fields"\ cannot\ be\ converted/sx,
		"$database: an identifier that cannot be converted fails its profile in a store");
	is(scalar($api->log), 0, "$database: what cannot be converted sends no request");
	is( $said->(
			q{SET hrflow_embed.link_hosts = '127.0.0.1';
			SELECT status, data FROM hrflow_profile_embeddings('s', '{Zo}', '{"profile": 1}');
			SELECT status, cardinality(vector)
			FROM hrflow_profile_vectors('s', '{Zo}', '{"profile": 1}')}
		) =~ s/"http[^"]*"/a link/r,
		qq(ok|{"profile": a link}\nok|1024),
		"$database: ASCII is sent, and the reply is read");
}
my $euro = encode_base64url(qq({"\xe2\x82\xac": "\\u20ac"}));
(undef, undef, $err) = $node->psql('latin1',
	"\\set VERBOSITY verbose\nSELECT hrflow_profile_embedding('s', 'fault:data=$euro')");
like(
	$err,
	qr/08P01: .*DETAIL:.*jsonb can hold/s,
	'a reply with a character that the database encoding lacks is refused');
is( $node->safe_psql(
		'win1252',
		"SELECT encode(convert_to(hrflow_profile_embedding('s', 'fault:data=$euro')::text,
			'UTF8'), 'hex')"
	),
	unpack('H*', qq({"\xe2\x82\xac": "\xe2\x82\xac"})),
	'a character that the database encoding has is read, escaped or not');

#
# Size
#
foreach my $case (
	[ 'an identifier of 60 kB', q{'s', repeat('x', 60000)} ],
	[ 'an identifier of 100 kB', q{'s', repeat('x', 100000)} ],
	[ 'fields of 1 MB', q{'s', 'p', jsonb_build_object('a', repeat('x', 1000000))} ])
{
	my ($name, $arguments) = @$case;
	my $error = $node->error_of("SELECT hrflow_profile_embedding($arguments);");
	ok( $error eq '' || $error =~ /^(22023|P0002|58000)/,
		"$name works or is refused with a reason ($error)");
}

done_testing();
