# Vectors are correct, and links are safe to fetch: files written by NumPy, the
# stand-in's vectors bit for bit in every encoding, what the host of a link
# receives, and which hosts are allowed.  A regression test has neither NumPy nor
# a second host.
use strict;
use warnings FATAL => 'all';
use Digest::MD5 qw(md5_hex);
use Hrflow::Node;
use Hrflow::Resolver;
use Hrflow::StandIn;
use IPC::Run ();
use JSON::PP;
use List::Util              qw(min);
use MIME::Base64            qw(encode_base64url);
use PostgreSQL::Test::Utils ();
use Test::More;

my @private = qw(10.0.0.1 172.16.5.5 192.168.1.1 127.0.0.1 169.254.169.254
  100.64.0.1 0.0.0.0 ::1 fd00::1 fe80::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1);
my %names = map { ("private-$_.s3.amazonaws.com" => $private[$_]) } 0 .. $#private;

my $store = Hrflow::StandIn->new;
my $store_url = 'http://127.0.0.1:' . $store->http;
my $api = Hrflow::StandIn->new('--link-base' => $store_url);
my $node;
{
	my $resolver = Hrflow::Resolver->new(%names);
	$node = Hrflow::Node->new(
		'vectors', $api,
		max_attempts => 1,
		connect_timeout => '5s',
		api_user => 'account@example.com',
		link_hosts => '127.0.0.1, *.s3.amazonaws.com');
}

sub sql { return $node->safe_psql('postgres', @_); }

# The bytes of a vector, as hexadecimal digits of big-endian floats.
sql(q{CREATE FUNCTION hex(v real[]) RETURNS text LANGUAGE sql AS
	$$SELECT string_agg(encode(float4send(x), 'hex'), '' ORDER BY n)
	  FROM unnest(v) WITH ORDINALITY u(x, n)$$});

#
# NumPy's files
#
my $dir = PostgreSQL::Test::Utils::tempdir();
my $python = <<'END';
import sys, numpy as np
dir = sys.argv[1]
rng = np.random.default_rng(1)
n = 0

def emit(a, name, version=None):
    global n
    path = f"{dir}/{n}.npy"
    n += 1
    with open(path, "wb") as f:
        np.lib.format.write_array(f, a, version=version, allow_pickle=True)
    shown = a.reshape(-1) if a.ndim == 2 and a.shape[0] == 1 else a
    dims = "".join(f"[1:{d}]" for d in shown.shape)
    with np.errstate(all="ignore"):
        try:
            hex = shown.astype(">f4").tobytes(order="C").hex()
        except Exception:
            hex = ""
    print(path, dims, hex or "-", name, sep="|")

for dtype in ("<f2 >f2 <f4 >f4 <f8 >f8 i1 u1 "
              "<i2 >i2 <u2 >u2 <i4 >i4 <u4 >u4 <i8 >i8 <u8 >u8").split():
    for shape in [(1,), (7,), (1, 7), (3, 5), (5, 1), (2, 64)]:
        for order in "CF":
            if np.dtype(dtype).kind == "f":
                a = rng.standard_normal(shape).astype(dtype)
            else:
                i = np.iinfo(dtype)
                native = np.dtype(dtype).newbyteorder("=")
                a = rng.integers(i.min, i.max, shape, dtype=native, endpoint=True).astype(dtype)
            emit(np.asarray(a, order=order), f"{dtype} {shape} {order}")
for version in [(1, 0), (2, 0), (3, 0)]:
    emit(rng.standard_normal(1024).astype("<f4"), f"version {version}", version)
halves = np.arange(65536, dtype="<u2")
finite = halves[np.isfinite(halves.view("<f2"))]
emit(np.frombuffer(finite.tobytes(), "<f2"), "every finite half")
emit(rng.standard_normal(2048)[::2], "strided")
END
my ($out, $err) = ('', '');
my $numpy = IPC::Run::run([ '/usr/bin/python3', '-c', $python, $dir ], '>', \$out, '2>', \$err);

SKIP:
{
	skip 'python3-numpy is not available', 2
	  if !$numpy && $err =~ /No module named/;
	is($err, '', 'NumPy writes its files');

	my @files = split /\n/, $out;
	my @wrong;
	my $answers = sql(
		join '',
		map {
			my ($path) = split /\|/;
			"SELECT array_dims(v) || '|' || hex(v)
				FROM hrflow_decode_vector(pg_read_binary_file('$path')) v;\n"
		} @files);
	my @answers = split /\n/, $answers;
	for my $i (0 .. $#files)
	{
		my ($path, $dims, $hex, $name) = split /\|/, $files[$i];
		push @wrong, $name if $answers[$i] ne "$dims|$hex";
	}
	is("@wrong", '', scalar(@files) . ' files that NumPy wrote are read as NumPy reads them');
}

my $refused = <<'END';
import sys, numpy as np
for n, a in enumerate([np.array([1, "a", None], dtype=object), np.array([1 + 2j]), np.array([True]),
        np.array(["abc"]), np.array([b"abc"]), np.array(["2020-01-01"], dtype="M8[D]"),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
        np.zeros((2, 2, 2)), np.float32(1), np.zeros(0),
        np.array([np.nan]), np.array([np.inf], dtype="f2"), np.array([1e39])]):
    np.save(f"{sys.argv[1]}/r{n}.npy", a, allow_pickle=True)
END
SKIP:
{
	skip 'python3-numpy is not available', 1 unless $numpy;
	IPC::Run::run([ '/usr/bin/python3', '-c', $refused, $dir ]) or die;
	my @codes = map {
		$node->error_of("SELECT hrflow_decode_vector(pg_read_binary_file('$dir/r$_.npy'));") =~
		  /^(\w+)/
		  ? $1
		  : 'none'
	} 0 .. 12;
	is( "@codes",
		join(' ', ('22P03') x 9, '22000', ('22P03') x 3),
		'what is no vector is refused: objects, complex, booleans, text, dates, structures, '
		  . 'three dimensions, none, no elements, NaN, infinity, overflow');
}

#
# The stand-in's vectors
#
sub expected_hex
{
	my ($profile, $section, $item) = @_;
	return unpack('H*', pack('N*', unpack('V*', $api->vector($profile, $section, $item))));
}

# Encode an identifier for the stand-in's page of vectors.
sub escape
{
	my ($text) = @_;
	$text =~ s/([^A-Za-z0-9])/sprintf('%%%02X', ord($1))/ge;
	return $text;
}

foreach my $fault (
	'nurse-2', 'fault:v.dtype=<f4',
	'fault:v.dtype=>f4', 'fault:v.dtype=<f8',
	'fault:v.dtype=>f8', 'fault:v.order=F',
	'fault:v.version=2', 'fault:v.version=3',
	'fault:v.shape=1xd', 'fault:v.encoding=base64')
{
	is( sql(qq{
			SELECT section || '/' || item || ' ' || md5(hex(vector))
			FROM hrflow_profile_vectors('acme', ARRAY['$fault'], '{"profile":1,"skills":1}')
			ORDER BY section}),
		join("\n",
			map { "$_/0 " . md5_hex(expected_hex(escape($fault), $_, 0)) } qw(profile skills)),
		"vectors of $fault are the stand-in's, bit for bit");
}

# Through JSON, with as many digits as needed for a real, for a double, and more
foreach my $format ('%.9g', '%.17g', '%.25e', '%.40f')
{
	my @floats = unpack('f<*', $api->vector('nurse-2', 'profile', 0));
	my $json = '[' . join(', ', map { sprintf $format, $_ } @floats) . ']';
	is( sql("SELECT md5(hex(hrflow_decode_vector('$json')))"),
		md5_hex(expected_hex('nurse-2', 'profile', 0)),
		"JSON written with $format is read bit for bit");
}

#
# As many elements as PostgreSQL's own functions support (MaxArraySize), which depends
# on the size of a Datum
#
my $n = sql(
	q{SELECT 1073741823 / CASE WHEN float8_pass_by_value THEN 8 ELSE 4 END + 1
		FROM pg_control_init()});
my $too_many = "{'descr': '|i1', 'fortran_order': False, 'shape': ($n,)}";
my (undef, undef, $refusal) = $node->psql(
	'postgres',
	sprintf q{\set VERBOSITY verbose
		SELECT cardinality(hrflow_decode_vector('\x%s'::bytea || convert_to(repeat('a', %d),
		'UTF8')))},
	unpack('H*', "\x93NUMPY\x01\x00" . pack('v', length $too_many) . $too_many),
	$n);
like(
	$refusal,
	qr/54000: invalid vector\nDETAIL:  The vector has too many elements/,
	'an array with more elements than PostgreSQL can handle is refused');

#
# Decoding large vectors can be interrupted
#
foreach my $case (
	[ 'JSON', q{convert_to('[' || repeat('1e-46,', 5000000) || '1]', 'UTF8')} ],
	map {
		my $header = "{'descr': '|i1', 'fortran_order': $_, 'shape': (5000, 10000)}";
		[   "NumPy's, fortran_order $_",
			sprintf(q{decode('%s', 'hex') || decode(repeat('00', 50000000), 'hex')},
				unpack('H*', "\x93NUMPY\x01\x00" . pack('v', length $header) . $header)) ]
	} 'True',
	'False')
{
	my ($name, $payload) = @$case;
	my $decode = 'SELECT cardinality(hrflow_decode_vector(payload)) > 1000000 FROM long;';

	sql("DROP TABLE IF EXISTS long; CREATE TABLE long AS SELECT $payload AS payload");
	my ($printed, $all, $interrupted);

	# A busy machine can delay any decoding and any interrupt, so measure again if one takes
	# too long, and compare the shortest times.
	foreach my $try (1 .. 5)
	{
		my (undef, $out, $err) = $node->psql(
			'postgres',
			"\\timing on\n$decode\nSET statement_timeout = '20ms';\n" . "$decode\n" x 3,
			on_error_stop => 0);
		my ($whole, undef, @times) = $out =~ /Time: ([\d.]+) ms/g;
		$printed = "$out$err";
		$all = min(grep { defined } $whole, $all);
		$interrupted = min(grep { defined } @times, $interrupted);
		last if $interrupted < $all / 2;
	}
	like(
		$printed,
		qr/^t\n.*canceling statement due to statement timeout/s,
		"$name: decoding obeys statement_timeout");

	# Compared with the whole time, which grows with that on a slow machine
	cmp_ok($interrupted, '<', $all / 2, "$name: statement_timeout takes effect at once");
}

#
# Requests that the host of a link receives
#
$store->reset;
sql(q{SELECT count(*) FROM hrflow_profile_vectors('acme', '{nurse-1,nurse-2,fault:v.status=403}')});
sql(q{SELECT hrflow_fetch_vector(link)
	FROM hrflow_profile_embedding_links('acme', 'nurse-3', '{"profile":1}')}
);
my @received = $store->log;
cmp_ok(scalar(@received), '>', 5, 'the links are fetched from their host');
is_deeply(
	[ sort keys %{ { map { lc($_) => 1 } map { keys %{ $_->{headers} } } @received } } ],
	[qw(accept accept-encoding host user-agent)],
	"a link's host receives neither headers of HrFlow's nor cookies");
unlike(
	encode_json(\@received),
	qr/$Hrflow::StandIn::KEY|account\@example/,
	"a link's host receives neither the key nor the account");

#
# Hosts of links that are allowed
#
$api->reset;
my $elsewhere = encode_base64url($api->base_url . '/auth');
is( sql(qq{SELECT status, http_status
	FROM hrflow_profile_vectors('acme', '{fault:v.redirect=$elsewhere}', '{"profile":1}')}
	),
	'invalid_reply|302',
	'a redirect of a link is an error');
is(scalar(grep { $_->{path} =~ /auth/ } $api->log), 0, 'a redirect of a link is not followed');

is( sql(join "\nUNION ALL\n",
		map { "SELECT status FROM hrflow_fetch_vectors('{https://$_/x}')" } sort keys %names),
	join("\n", ('link_refused') x @private),
	'a public name that resolves to a private address is refused');
like(
	$node->error_of(
		"SELECT hrflow_fetch_vector('https://private-0.s3.amazonaws.com/a?X-Amz-Signature=secret')"
	),
	qr/^42501/,
	'a link to a public name that resolves to a private address is an error with 42501');
is( sql(qq{
		SET hrflow_embed.link_hosts = 'private-3.s3.amazonaws.com';
		SELECT status FROM hrflow_fetch_vectors('{https://private-3.s3.amazonaws.com/x}')}),
	'connection_failed',
	'a private address is used if link_hosts contains that exact host');
like($node->error_of("SELECT hrflow_fetch_vector('https://example.com/a?X-Amz-Signature=secret')"),
	qr/^42501/, 'a foreign host is refused with 42501');

#
# An expired link
#
$api->stop;
$api = Hrflow::StandIn->new('--link-ttl' => 0);
my $base_url = $api->base_url;
like(
	$node->error_of(
		qq{SET hrflow_embed.base_url = '$base_url';
		SELECT hrflow_fetch_vector(link)
			FROM hrflow_profile_embedding_links('acme', 'nurse-3', '{"profile":1}')}
	),
	qr/^58000: link to a vector has expired/,
	'an expired link is reported as expired');

unlike(
	PostgreSQL::Test::Utils::slurp_file($node->logfile),
	qr/X-Amz-Signature=[0-9a-f]{8}/,
	"no link's query is in the log");

done_testing();
