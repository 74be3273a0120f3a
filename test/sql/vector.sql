--
-- Decoding and comparing vectors, without using the network
--
\set VERBOSITY terse

CREATE EXTENSION hrflow_embed;

-- Return a NumPy file with the given version, header and elements
CREATE FUNCTION npy(header text, elements bytea, version int DEFAULT 1)
RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
	SELECT '\x934e554d5059'::bytea || set_byte('\x0000', 0, version)
		|| CASE WHEN version = 1
			THEN set_byte(set_byte('\x0000', 0, n % 256), 1, n / 256)
			ELSE set_byte(set_byte('\x00000000', 0, n % 256), 1, n / 256) END
		|| convert_to(header, 'UTF8') || elements
	FROM octet_length(header) n
$$;

-- Return the error for a payload
CREATE FUNCTION problem(payload bytea)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
BEGIN
	RETURN 'no problem: ' || hrflow_decode_vector(payload)::text;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RETURN detail;
END
$$;

-- Every type in both byte orders: 1, 2 and, for signed types, -1
SELECT descr, hrflow_decode_vector(npy(format(
	'{''descr'': ''%s'', ''fortran_order'': False, ''shape'': (3,), }', descr), elements))
FROM (VALUES
	('<f4', '\x0000803f00000040000080bf'::bytea),
	('>f4', '\x3f80000040000000bf800000'),
	('<f8', '\x000000000000f03f0000000000000040000000000000f0bf'),
	('>f8', '\x3ff00000000000004000000000000000bff0000000000000'),
	('<f2', '\x003c004000bc'),
	('>f2', '\x3c004000bc00'),
	('|i1', '\x0102ff'),
	('|u1', '\x0102ff'),
	('<i2', '\x01000200ffff'),
	('>i2', '\x00010002ffff'),
	('<u2', '\x01000200ffff'),
	('<i4', '\x0100000002000000ffffffff'),
	('>i4', '\x0000000100000002ffffffff'),
	('<u4', '\x0100000002000000ffffffff'),
	('<i8', '\x01000000000000000200000000000000ffffffffffffffff'),
	('>i8', '\x00000000000000010000000000000002ffffffffffffffff'),
	('<u8', '\x01000000000000000200000000000000ffffffffffffffff')) v(descr, elements);

-- Half precision: the smallest number, the largest subnormal, the smallest normal
-- and the largest number, and zeros of both signs
SELECT hrflow_decode_vector(npy('{"descr": "<f2", "fortran_order": False, "shape": (6,)}',
	'\x0100ff030004ff7b00000080'));

-- Versions and shapes
SELECT version, shape, fortran, hrflow_decode_vector(npy(format(
	'{''descr'': ''|i1'', ''fortran_order'': %s, ''shape'': %s}   ' || E'\n', fortran, shape),
	'\x010203040506', version))
FROM (VALUES (1, '(6,)', 'False'), (2, '(6,)', 'False'), (3, '(6,)', 'True'),
	(1, '(1, 6)', 'False'), (1, '(1, 6)', 'True'), (1, '(2, 3)', 'False'),
	(1, '(2, 3)', 'True'), (1, '(6, 1)', 'False'), (1, '(3,2,)', 'True'),
	(1, '(6L,)', 'False'), (2, '(2L, 3L)', 'False')) v(version, shape, fortran);

-- Invalid NumPy files
SELECT header, problem(npy(header, '\x0000803f00000040'))
FROM (VALUES
	('{''descr'': ''|O'', ''fortran_order'': False, ''shape'': (2,)}'),
	('{''descr'': ''|O8'', ''fortran_order'': False, ''shape'': (2,)}'),
	('{''descr'': [(''a'', ''<f4'')], ''fortran_order'': False, ''shape'': (2,)}'),
	('{''descr'': ''<c8'', ''fortran_order'': False, ''shape'': (1,)}'),
	('{''descr'': ''=f4'', ''fortran_order'': False, ''shape'': (2,)}'),
	('{''descr'': ''|f4'', ''fortran_order'': False, ''shape'': (2,)}'),
	('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (3,)}'),
	('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (1,)}'),
	('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (2, 2)}'),
	('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (1, 1, 2)}'),
	('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': ()}'),
	('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (0,)}'),
	('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (-1,)}'),
	('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (4611686018427387905, 2)}'),
	('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (99999999999999999999,)}'),
	('{''descr'': ''<f4'', ''fortran_order'': Maybe, ''shape'': (2,)}'),
	('{''descr'': ''<f4'', ''fortran_order'': False}'),
	('{''descr'': ''<f4'', ''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (2,)}'),
	('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (2,), ''more'': 1}'),
	('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (2,)} {}'),
	('{''descr'': ''<f4'' ''fortran_order'': False, ''shape'': (2,)}'),
	('{''descr'': 4, ''fortran_order'': False, ''shape'': (2,)}'),
	('{''descr'': ''<f4, '), ('{''descr'': ''<\x66'', '),
	('{''descr'': ''<é'', ''fortran_order'': False, ''shape'': (2,)}'),
	('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': 2}'),
	('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (1234567890123456789,)}'),
	('__import__("os")'), ('')) v(header);
SELECT shape, version, problem(npy(format('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': %s}', shape),
	'\x0000803f00000040', version))
FROM (VALUES (3, '(2L,)'), (1, '(2LL,)'), (1, '(L,)'), (1, '(2l,)'), (1, '(2)'), (1, '(2L)')) v(version, shape);
-- As in NumPy, a header has at most 10,000 characters
SELECT n, problem(npy(rpad('{''descr'': ''|u1'', ''fortran_order'': False, ''shape'': (2,)}', n), '\x0102'))
FROM (VALUES (10000), (10001)) v(n);
SELECT problem(npy('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (0,)}', ''));
SELECT problem(npy('{}', '', 4)), problem('\x934e554d5059'), problem('\x934e554d50590100ffff7b'), problem('\x934e554d505902001000');

-- Elements that type real cannot represent
SELECT problem(npy('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (2,)}', '\x0000803f0000c07f')) AS nan,
	problem(npy('{''descr'': ''<f2'', ''fortran_order'': False, ''shape'': (1,)}', '\x007c')) AS infinity,
	problem(npy('{''descr'': ''>f8'', ''fortran_order'': False, ''shape'': (1,)}', '\x7fe0000000000000')) AS overflow,
	problem(npy('{''descr'': ''>f8'', ''fortran_order'': False, ''shape'': (1,)}', '\x0010000000000000')) AS underflow;

-- JSON arrays
SELECT payload, problem(payload::text::bytea)
FROM (VALUES ('[1]'), (' [ 1 , -2.5e-1,3E+2, 0, -0, 0.1 ] '), ('[[1,2],[3,4]]'), ('[[1,2]]'),
	('[1e-50, 1e-45, 1.1754942e-38, 3.4028235e38]'),
	('[]'), ('[[]]'), ('[ [ ] , [] ]'), ('[[1],[]]'), ('[]]'), ('[[]'), ('['), ('[['), ('[1,]'), ('[1,'), ('[1'), ('[1,2'), ('[[1,2]'), ('[[1,2],[3]]'), ('[[1],2]'), ('[1,[2]]'),
	('[[[1]]]'), ('[1] 2'), ('["1"]'), ('[null]'), ('[NaN]'), ('[Infinity]'), ('[1e39]'), ('[-1e400]'),
	('[01]'), ('[.5]'), ('[5.]'), ('[+1]'), ('[1e]'), ('[0x1]'), ('[1 2]'), ('["' || repeat('x', 37) || '"]'), ('["' || repeat('x', 38) || '"]'), ('{"embedding": [1]}')) v(payload);

-- More numbers than memory was allocated for according to the length of the payload
SELECT hrflow_decode_vector(convert_to('[' || repeat('1,', 9999) || '2]', 'UTF8'))
	= array_append(array_fill(1::real, ARRAY[9999]), 2::real) AS all_of_them;

-- The result is the same as that of PostgreSQL's input function
SELECT count(*) AS numbers,
	count(*) FILTER (WHERE float4send((hrflow_decode_vector(convert_to('[' || number || ']', 'UTF8')))[1])
		IS DISTINCT FROM float4send(number::real)) AS different
FROM (SELECT format('%s%s.%se%s', CASE WHEN i % 2 = 0 THEN '-' END, i % 10,
		substr(md5num, 1, 1 + i % 30), i % 60 - 30) AS number
	FROM (SELECT i, translate(encode(sha512(i::text::bytea), 'hex'), 'abcdef', '123456') AS md5num
		FROM generate_series(1, 20000) i) s) t;

-- Numbers at, just below and just above the midpoint of two reals
SELECT left(number, 60) AS number, hrflow_decode_vector(convert_to('[' || number || ']', 'UTF8')) = ARRAY[number::real] AS same
FROM (VALUES ('16777217'), ('16777217.0000000000000000000000001'), ('16777216.9999999999999999999999'),
	('33554434'), ('33554433.99999999999999999999'), ('1.00000005960464477539062500000'),
	('1.00000005960464477539062499999'), ('1.00000005960464477539062500001'),
	('340282346638528859811704183484516925440'), ('340282356779733661637539395458142568447'),
	('2.1019476964872256063859438749348741969203929128147736576356024258346866240288790902229957282543182373046875e-45'),
	('2.1019476964872256063859438749348741969203929128147736576356024258346866240288790902229957282543182373046874e-45'),
	('1.17549428e-38'), ('1.17549435e-38'), ('1.1754943157898259e-38'),
	('0.' || repeat('0', 400) || '1e401'), (repeat('9', 400) || 'e-400'), ('1' || repeat('0', 5000) || 'e-5000')) v(number);

-- Base64 of big-endian floats
SELECT n, hrflow_decode_vector(convert_to(encode(substr('\x3f80000040000000404000004080000040a00000'::bytea, 1, 4 * n), 'base64'), 'UTF8'))
FROM generate_series(1, 5) n;
SELECT hrflow_decode_vector(convert_to(encode(decode(repeat('3f800000', 100), 'hex'), 'base64'), 'UTF8'))
	= array_fill(1::real, ARRAY[100]) AS over_lines;
SELECT payload, problem(payload::bytea)
FROM (VALUES (''), (' '), ('P4AAAA=='), ('P4 AA'||E'\t'||'AA=='), (' P4AA AA== '), ('P4AAAA'), ('P4AAAA='), ('P4AAAB=='), ('P4AAAA==='), ('P4AA=A=='),
	('P4AAAEAA'), ('P-AAAA=='), ('f8AAAA=='), ('f4AAAA=='), ('<html>'), ('====')) v(payload);

-- A NumPy file in base64, in lines of 76 characters, could be taken for 33 floats
SELECT n, problem(convert_to(encode(substr(npy(rpad('{''descr'': ''<f4'', ''fortran_order'': False, ''shape'': (1,)}', 118),
	'\x0000803f'), 1, n), 'base64'), 'UTF8'))
FROM (VALUES (132), (8), (4)) v(n);

-- The functions return NULL for NULL
SELECT hrflow_decode_vector(NULL) IS NULL AS decoded, hrflow_cosine_similarity(NULL, '{1}') IS NULL AS similarity;

-- Cosine similarity
SELECT a, b, round(hrflow_cosine_similarity(a, b)::numeric, 12) AS similarity
FROM (VALUES ('{1,0}'::real[], '{0,1}'::real[]), ('{1,2,3,4,5}', '{2,4,6,8,10}'), ('{1,1}', '{-1,-1}'),
	('{3,4}', '{4,3}'), ('{1e38,1e38}', '{1e38,1e38}'), ('{1e-40,0}', '{1e-45,0}'), ('{-7}', '{3}'),
	('[5:6]={1,2}', '{1,2}')) v(a, b);
SELECT hrflow_cosine_similarity('{0,0}', '{1,1}');	-- error
SELECT hrflow_cosine_similarity('{1,1}', '{0,-0}');	-- error
SELECT hrflow_cosine_similarity('{}', '{}');	-- error
SELECT hrflow_cosine_similarity('{1,1}', '{1,1,1}');	-- error
SELECT hrflow_cosine_similarity('{1,NULL}', '{1,1}');	-- error
SELECT hrflow_cosine_similarity('{{1,1}}', '{1,1}');	-- error
SELECT hrflow_cosine_similarity('{1,NaN}', '{1,1}');	-- error
SELECT hrflow_cosine_similarity('{1,Infinity}', '{1,1}');	-- error
\set VERBOSITY sqlstate
SELECT hrflow_cosine_similarity('{0,0}', '{1,1}');	-- error
SELECT hrflow_decode_vector('[]');	-- error
SELECT hrflow_decode_vector('[[]]');	-- error
SELECT hrflow_decode_vector('[1');	-- error

DROP FUNCTION npy, problem;
DROP EXTENSION hrflow_embed;
