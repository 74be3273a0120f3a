# What is on the wire is what was asked for and no more: encodings, a proxy that
# refuses, connections that are dead, servers that speak TLS.  SQL sees neither
# requests nor time.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Proxy;
use Hrflow::RawPeer;
use Hrflow::StandIn;
use Test::More;
use Time::HiRes qw(time);

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new(
	'wire', $api,
	shared_preload_libraries => 'hrflow_embed',
	ca_file => $api->ca,
	max_attempts => 2);

sub sql { return $node->safe_psql('postgres', @_); }

sub status_of
{
	my ($id, $set) = (@_, '');
	return sql("$set SELECT status FROM hrflow_profile_embeddings('acme', ARRAY['$id'])");
}

#
# Encodings
#
foreach my $case (
	[ 'coding=gzip', 'ok', 'a reply in gzip is read' ],
	[ 'coding=x-gzip', 'ok', 'a reply in x-gzip is read' ],
	[ 'members=3', 'ok', 'a reply in gzip of three members is read' ],
	[ 'coding=aws-chunked', 'ok', 'an encoding that denotes no transformation is ignored' ],
	[ 'coding=gzip+aws-chunked', 'ok', 'such an encoding beside gzip is ignored' ],
	[ 'coding=zstd', 'invalid_reply', 'a reply in zstd, which was not asked for, is refused' ],
	[ 'coding=br', 'invalid_reply', 'a reply in brotli, which was not asked for, is refused' ],
	[   'coding=deflate', 'invalid_reply',
		'a reply in deflate, which was not asked for, is refused' ])
{
	my ($fault, $status, $name) = @$case;
	is(status_of("fault:$fault,id=x"), $status, $name);
}

# 128 bytes of header and 2,032 doubles are the 16 kB that are decompressed at once.
{
	my $exact = Hrflow::StandIn->new('--dim' => 2032);
	is( sql(    "SET hrflow_embed.base_url = '"
			  . $exact->base_url
			  . q{'; SET hrflow_embed.link_hosts = '127.0.0.1';
				SELECT status, cardinality(vector)
				FROM hrflow_profile_vectors('acme', '{"fault:v.gzip,v.dtype=<f8"}', '{"profile": 1}')}),
		'ok|2032',
		'a reply in gzip is read that ends where the buffer does');
}

sql('SELECT hrflow_embed_stats_reset()');
is(status_of('fault:empty_blocks=200000000'),
	'too_large', 'gzip that holds nothing is received up to the limit of a reply');
cmp_ok(sql('SELECT bytes_received FROM hrflow_embed_stats'),
	'<', 6_000_000, 'bytes_received counts what was received, and that is limited');

#
# A proxy that refuses the password
#
{
	my $proxy = Hrflow::Proxy->new(user => 'u', password => 'right');
	my $set =
		'SET hrflow_embed.proxy = \'http://u:wrong@127.0.0.1:'
	  . $proxy->port . '\';'
	  . q{SET hrflow_embed.base_url = 'https://api.example/v1';};
	my ($result, $out, $err) = $node->psql(
		'postgres', "$set
		SELECT status FROM hrflow_profile_embeddings('acme', (SELECT array_agg('p' || i) FROM generate_series(1, 200) i))",
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	like(
		$err,
		qr/ERROR:  28000: proxy in "hrflow_embed.proxy" refused/,
		'a 407 of the proxy ends the batch');
	unlike($err, qr/wrong/, 'the error does not show the password');
	cmp_ok(scalar($proxy->connects), '<=', 32, 'nothing more is sent after a 407 of the proxy');
}

#
# A connection over which nothing is acknowledged
#
{
	my $deaf = Hrflow::RawPeer->new(sub { sleep 30; });
	my $began = time;
	my ($result, $out, $err) = $node->psql(
		'postgres',
		"SET hrflow_embed.base_url = 'http://127.0.0.1:"
		  . $deaf->port . q{/v1';
		SET hrflow_embed.connect_timeout = '1s'; SET hrflow_embed.max_attempts = 1;
		SELECT hrflow_text_embedding(repeat('text ', 200000))});
	like($err, qr/lost the connection/, 'a connection that takes no more bytes is given up');
	cmp_ok(time - $began, '<', 15, 'a dead connection is given up long before request_timeout');
}

#
# HTTP/1.1 over TLS
#
{
	my $set =
		"SET hrflow_embed.base_url = '"
	  . $api->base_url('https')
	  . q{'; SET hrflow_embed.request_timeout = '5s';};
	is( sql("$set SELECT status || ' ' || count(*) FROM hrflow_profile_embeddings('acme',
			(SELECT array_append(array_agg('p' || i), 'fault:silent') FROM generate_series(1, 31) i)) GROUP BY status ORDER BY 1"
		),
		"ok 31\ntimeout 1",
		'good elements do not wait for a silent one over TLS');
	is( sql("$set SET hrflow_embed.http_version = '1.1';
		SELECT status FROM hrflow_profile_embeddings('acme', ARRAY['p1'])"),
		'ok',
		'http_version = 1.1 is used over TLS');
}

done_testing();
