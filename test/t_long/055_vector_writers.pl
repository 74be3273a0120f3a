# Payloads that common programs and libraries, from Debian's packages, write for one
# vector are decoded bit for bit or refused, as docs/vectors.md says.  Its payloads that
# cannot be recognized are decoded to other numbers.  A regression test has no other
# program than PostgreSQL.  Writers that are not installed are skipped.
use strict;
use warnings FATAL => 'all';
use Digest::MD5 qw(md5_hex);
use Hrflow::Node;
use IPC::Run                ();
use MIME::Base64            qw(decode_base64 encode_base64);
use PostgreSQL::Test::Utils ();
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
my $node = Hrflow::Node->new('vector_writers', undef);

# The vector that is written: each exponent, including those of subnormal numbers, with
# both signs and arbitrary digits, and 1/3.  Its halves are exact in half precision.
my @vector = (
	map({ unpack 'f', pack 'L', ($_ & 1) << 31 | $_ << 23 | ($_ + 1) * 2654435761 % (1 << 23) }
		0 .. 254),
	unpack('f', pack 'f', 1 / 3));
my @halves = (0.5, 0.333251953125, -2, 65504, -2**-24, 2**-14);

# What the decoder is expected to return for the given elements: its dimensions, and the
# MD5 of its elements as big-endian floats.
sub exactly
{
	my @elements = @_;
	return '[1:' . @elements . '] ' . md5_hex(pack 'f>*', @elements);
}

my $exact = exactly(@vector);
my $two = $exact =~ s/1:256/1:2][1:128/r;
my $refused = '22P03';

$node->safe_psql(
	'postgres', q{
	CREATE FUNCTION decoded(path text) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE
		v real[];
	BEGIN
		v := hrflow_decode_vector(pg_read_binary_file(path));
		RETURN array_dims(v) || ' ' || (SELECT md5(string_agg(float4send(x), '' ORDER BY n))
			FROM unnest(v) WITH ORDINALITY u (x, n));
	EXCEPTION WHEN data_exception THEN
		RETURN SQLSTATE;
	END $$;
	CREATE TABLE written AS SELECT ARRAY[}
	  . join(', ', map { sprintf q{'%.9g'}, $_ } @vector) . q{]::real[] AS v});
my $has_pgvector = $node->safe_psql('postgres',
	q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});
$node->safe_psql('postgres', 'CREATE EXTENSION vector') if $has_pgvector;

# Files that writers read the vector from
my %input = (
	floats => pack('f*', @vector),
	json => '[' . join(', ', map { sprintf '%.17g', $_ } @vector) . ']',
	'xtensor.cpp' => <<'END');
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>
#if __has_include(<xtensor/io/xnpy.hpp>)
#include <xtensor/containers/xarray.hpp>
#include <xtensor/io/xnpy.hpp>
#else
#include <xtensor/xarray.hpp>
#include <xtensor/xnpy.hpp>
#endif
int main(int, char **argv)
{
	std::string what = argv[1];
	std::vector<float> v(256);
	std::ifstream("floats", std::ios::binary).read((char *) v.data(), 1024);
	if (what == "version")
		std::cout << XTENSOR_VERSION_MAJOR << "." << XTENSOR_VERSION_MINOR;
	else if (what == "float") {
		xt::xarray<float> a = xt::zeros<float>({256});
		std::copy(v.begin(), v.end(), a.begin());
		std::cout << xt::dump_npy(a);
	} else if (what == "double") {
		xt::xarray<double> a = xt::zeros<double>({2, 128});
		std::copy(v.begin(), v.end(), a.begin());
		std::cout << xt::dump_npy(a);
	} else if (what == "column_major") {
		xt::xarray<float, xt::layout_type::column_major> a = xt::zeros<float>({2, 128});
		for (size_t i = 0; i < 256; i++)
			a(i / 128, i % 128) = v[i];
		std::cout << xt::dump_npy(a);
	} else if (what == "bool")
		std::cout << xt::dump_npy(xt::xarray<bool>(xt::ones<bool>({256})));
}
END
foreach my $name (keys %input)
{
	open(my $file, '>:raw', "$dir/$name") or die $!;
	print $file $input{$name};
	close $file or die $!;
}

#
# Writers: a command that prints the version, one that executes a program, and cases of a
# name, a program and the expected result.  $version is the version printed.
#
my $python =
	'import array, base64, json, struct, sys; '
  . 'out = lambda b: sys.stdout.buffer.write(b if isinstance(b, bytes) else b.encode()); '
  . 'a = array.array("f", open("floats", "rb").read()); ';
my $numpy =
	$python
  . 'import io, pickle, numpy as np; v = np.array(a); f = io.BytesIO(); '
  . 'save = lambda x: (np.save(f, x), out(f.getvalue())); ';
my @psql = ('psql', '-d', $node->connstr('postgres'), '-XAtqc');
my @writers = (
	[   'NumPy',
		[ '/usr/bin/python3', '-c', 'import numpy; print(numpy.__version__)' ],
		sub { [ '/usr/bin/python3', '-c', $numpy . $_[0] ] },
		[ 'np.save() of float32', 'save(v)', $exact ],
		[ 'np.save() of float64', 'save(v.astype("f8"))', $exact ],
		[ 'np.save() of big-endian float32', 'save(v.astype(">f4"))', $exact ],
		[ 'np.save() of a matrix', 'save(v.reshape(2, 128))', $two ],
		[   'np.save() of a matrix in Fortran order',
			'save(np.asfortranarray(v.reshape(2, 128)))',
			$two ],
		[   'np.save() of float16',
			"save(np.array([@{[join ', ', @halves]}], dtype='f2'))",
			exactly(@halves) ],
		[ 'np.save() of longdouble', 'save(v.astype(np.longdouble))', $refused ],
		[ 'np.save() of a list of objects', 'save(np.array(list(v), dtype=object))', $refused ],
		[ 'np.savez()', 'np.savez(f, v); out(f.getvalue())', $refused ],
		[ 'np.savetxt()', 'np.savetxt(f, v); out(f.getvalue())', $refused ],
		[ 'pickle.dumps()', 'out(pickle.dumps(v))', $refused ],
		[ 'tobytes()', 'out(v.tobytes())', $refused ],
		[ 'base64 of np.save()', 'np.save(f, v); out(base64.b64encode(f.getvalue()))', $refused ],
		[ 'base64 of astype(">f4")', 'out(base64.b64encode(v.astype(">f4").tobytes()))', $exact ],
		[ 'json.dumps() of tolist()', 'out(json.dumps(v.tolist()))', $exact ],
		[ 'str() of tolist()', 'out(str(v.tolist()))', $exact ],
		[ 'str() of the array', 'out(str(v))', $refused ],
		[ 'str() of list()', 'out(str(list(v)))', sub { $_[0] =~ /^1\./ ? $exact : $refused } ] ],
	[   'xtensor',
		[ 'sh', '-c', 'g++ -std=c++20 -o xtensor xtensor.cpp && ./xtensor version' ],
		sub { [ "$dir/xtensor", $_[0] ] },
		[ 'dump_npy() of float', 'float', $exact ],
		[ 'dump_npy() of a matrix of double', 'double', $two ],
		[ 'dump_npy() of a column-major matrix', 'column_major', $two ],
		[ 'dump_npy() of bool', 'bool', $refused ] ],
	[   'Python',
		[ '/usr/bin/python3', '-c', 'import platform; print(platform.python_version())' ],
		sub { [ '/usr/bin/python3', '-c', $python . $_[0] ] },
		[ 'json.dumps()', 'out(json.dumps(a.tolist()))', $exact ],
		[ 'json.dumps(indent=1)', 'out(json.dumps(a.tolist(), indent=1))', $exact ],
		[ 'json.dumps() of lists', 'out(json.dumps([a.tolist()[:128], a.tolist()[128:]]))', $two ],
		[ 'json.dumps() of NaN', 'out(json.dumps([0.5, float("nan")]))', $refused ],
		[ 'json.dumps() of an object', 'out(json.dumps({"embedding": a.tolist()}))', $refused ],
		[   'base64 of struct.pack(">...f")',
			'out(base64.b64encode(struct.pack(">256f", *a)))',
			$exact ],
		[ 'base64 of byteswap()', 'a.byteswap(); out(base64.b64encode(a.tobytes()))', $exact ],
		[ 'encodebytes()', 'a.byteswap(); out(base64.encodebytes(a.tobytes()))', $exact ],
		[   'urlsafe_b64encode()', 'a.byteswap(); out(base64.urlsafe_b64encode(a.tobytes()))',
			$refused ],
		[   'base64 without padding',
			'a.byteswap(); out(base64.b64encode(a.tobytes()).rstrip(b"="))', $refused ],
		[   'base64 of little-endian floats',
			'out(base64.b64encode(struct.pack("<2f", 0.1, 0.2)))',
			exactly(unpack 'f>*', pack 'f<*', 0.1, 0.2) ],
		[   'base64 of a little-endian float that would be NaN',
			'out(base64.b64encode(bytes.fromhex("3dccc07f")[::-1]))',
			$refused ],
		[   'base64 of big-endian doubles',
			'out(base64.b64encode(struct.pack(">2d", 0.1, 0.2)))',
			exactly(unpack 'f>*', pack 'd>*', 0.1, 0.2) ],
		[   'hexadecimal digits',
			'out(struct.pack(">4f", 0.1, 0.2, 0.3, 0.4).hex())',
			exactly(unpack 'f>*', decode_base64 unpack 'H*', pack 'f>*', 0.1, 0.2, 0.3, 0.4) ] ],
	[   'base64 (coreutils)',
		[ 'sh', '-c', 'base64 --version | sed "s/.* //; q"' ],
		sub { [ 'sh', '-c', $_[0] ] },
		[ 'lines of 76 digits', swapped('base64'), $exact ],
		[ 'a single line', swapped('base64 -w 0'), $exact ] ],
	[   'OpenSSL',
		[ 'sh', '-c', q{openssl version | sed 's/^OpenSSL //; s/ .*//'} ],
		sub { [ 'sh', '-c', $_[0] ] },
		[ 'lines of 64 digits', swapped('openssl base64'), $exact ] ],
	[   'PostgreSQL',
		[ @psql, q{SELECT split_part(current_setting('server_version'), ' ', 1)} ],
		sub { [ @psql, $_[0] ] },
		[ 'to_json(real[])', 'SELECT to_json(v) FROM written', $exact ],
		[ 'to_jsonb(real[])', 'SELECT to_jsonb(v) FROM written', $exact ],
		[   'to_json(real[]) of two dimensions',
			'SELECT to_json(ARRAY[v[:128], v[129:]]) FROM written', $two ],
		[   'to_json(real[]) with extra_float_digits = 0',
			q{SET extra_float_digits = 0; SELECT to_json('{0.123456789}'::real[])},
			exactly(0.123457) ],
		[   'array of an object in jsonb',
			q{SELECT '{"embedding": [0.5, 0.25]}'::jsonb->'embedding'},
			exactly(0.5, 0.25) ],
		[ 'to_json(real[]) of NaN', q{SELECT to_json('{0.5,NaN}'::real[])}, $refused ],
		[ 'real[] as text', 'SELECT v FROM written', $refused ],
		[   'encode(float4send(), base64)',
			q{SELECT encode(string_agg(float4send(x), '' ORDER BY n), 'base64')
				FROM written, unnest(v) WITH ORDINALITY u (x, n)},
			$exact ] ],
	[   'pgvector',
		[ @psql, q{SELECT extversion FROM pg_extension WHERE extname = 'vector'} ],
		sub { [ @psql, $_[0] ] },
		[ 'vector as text', 'SELECT v::vector FROM written', $exact ],
		[ 'halfvec as text', "SELECT '[@{[join ', ', @halves]}]'::halfvec", exactly(@halves) ],
		[ 'sparsevec as text', q{SELECT '{1:0.5,3:2}/5'::sparsevec}, $refused ] ],
	[   'Node.js',
		[ 'node', '-p', 'process.versions.node' ],
		sub {
			[   'node', '-e',
				'const b = fs.readFileSync("floats"), f = new Float32Array(Uint8Array.from(b).buffer);'
				  . "process.stdout.write($_[0])" ]
		},
		[ 'JSON.stringify() of an Array', 'JSON.stringify(Array.from(f))', $exact ],
		[ 'JSON.stringify() of a Float32Array', 'JSON.stringify(f)', $refused ],
		[ 'JSON.stringify() of NaN', 'JSON.stringify([0.5, NaN])', $refused ],
		[ 'JSON.stringify() of -0', 'JSON.stringify([0.5, -0])', exactly(0.5, 0) ],
		[ 'base64 of swap32()', 'b.swap32().toString("base64")', $exact ] ],
	[   'PHP',
		[ 'php', '-n', '-r', 'echo PHP_VERSION;' ],
		sub {
			[   'php', '-n', '-r',
				'$v = array_values(unpack("f*", file_get_contents("floats"))); echo ' . "$_[0];" ]
		},
		[ 'json_encode()', 'json_encode($v)', $exact ],
		[ 'json_encode() of NAN', 'json_encode([0.5, NAN])', $refused ],
		[ 'base64 of pack("G*")', 'base64_encode(pack("G*", ...$v))', $exact ] ],
	[   'JSON::PP',
		[ 'perl', '-MJSON::PP', '-e', 'print JSON::PP->VERSION' ],
		sub {
			[   'perl', '-MJSON::PP', '-0777ne',
				'@v = unpack "f*", $_; print JSON::PP->new->encode(' . "$_[0])", 'floats' ]
		},

		# JSON::PP 4.07 quotes some larger numbers.
		[   'numbers below 1e15',
			'[ grep { abs($_) < 1e15 } @v ]',
			exactly(grep { abs($_) < 1e15 } @vector) ],
		[ 'strings', '[ split /,/, "0.5,0.25" ]', $refused ],
		[ 'NaN', '[ 0.5, "NaN" + 0 ]', $refused ] ],
	[   'jq',
		[ 'sh', '-c', 'jq --version | sed s/^jq-//' ],
		sub { [ 'jq', $_[0], 'json' ] },
		[ 'numbers as read', '.', $exact ],
		[ 'numbers that were calculated', 'map(. * 1)', $exact ],
		[ 'NaN', '[0.5, nan]', $refused ],
		[ 'a member of an object', '{"embedding": .} | .embedding', $exact ] ]);

# A command that encodes the vector by the given command, after its bytes were swapped.
sub swapped
{
	my ($command) = @_;
	return q{perl -0777ne 'print pack "f>*", unpack "f*", $_' floats | } . $command;
}

# Run a command, and return whether it succeeded and its output.
sub run_writer
{
	my ($command, @redirection) = @_;
	my ($out, $err) = ('', '');
	my $ok = eval {
		IPC::Run::run($command, '<', \undef, @redirection ? @redirection : ('>', \$out),
			'2>', \$err, init => sub { chdir $dir or die });
	};
	chomp $out;
	return ($ok && $out || @redirection && $ok, $out, $err || $@);
}

foreach my $writer (@writers)
{
	my ($name, $version_command, $command_of, @cases) = @$writer;
	my ($found, $version) = run_writer($version_command);

	if (!$found)
	{
		SKIP: { skip "$name is not installed", scalar @cases; }
		next;
	}
	note("$name $version");
	foreach my $case (@cases)
	{
		my ($what, $program, $expected) = @$case;
		my ($ok, undef, $err) = run_writer($command_of->($program), '>', "$dir/payload");

		$expected = $expected->($version) if ref $expected;
		is( $ok ? $node->safe_psql('postgres', "SELECT decoded('$dir/payload')") : $err,
			$expected,
			"$name $version, $what: the payload "
			  . (
				  $expected eq $refused ? 'is refused'
				: $expected eq $exact || $expected eq $two ? 'is decoded bit for bit'
				: 'is decoded as documented')
		) or diag(substr PostgreSQL::Test::Utils::slurp_file("$dir/payload"), 0, 200);
	}
}

done_testing();
