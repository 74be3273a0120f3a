# The extension in its environment: in a schema of its own, with planted objects
# earlier on the search path; on a standby; with parallel workers, prepared
# statements, poolers that reset a session, several databases, sessions in which
# it is dropped and re-created, and roles that may not load a library.  This
# needs several servers, databases and sessions.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use PostgreSQL::Test::Utils ();
use Test::More;

my $key = $Hrflow::StandIn::KEY;
my $own_key = 'askr_00000000000000000000000000000001';
my $api = Hrflow::StandIn->new('--key' => $key, '--key' => $own_key, '--dim' => 8);
my $node = Hrflow::Node->new(
	'life', $api,
	link_hosts => '127.0.0.1',
	max_attempts => 1,
	wal_level => 'replica',
	max_wal_senders => 4);
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');

sub sql { return $node->safe_psql('postgres', @_); }

# Return the error or the rows of a statement in another database.
sub said
{
	my ($database, $sql, %options) = @_;
	my ($status, $out, $err) = ($options{node} // $node)->psql(
		$database,
		"\\set VERBOSITY verbose\n$sql",
		on_error_stop => 0,
		extra_params => $options{role} ? [ '-U', $options{role} ] : []);

	return $err eq '' ? $out : "$err\n$out";
}

sub key_sent { return ($api->log)[-1]{headers}{'X-API-KEY'} // 'none'; }

my $has_pgvector = sql(q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});

#
# Planted objects
#

# A sequence counts calls even if they are rolled back.
sql('CREATE DATABASE planted');
$node->safe_psql(
	'planted', q{
	CREATE SCHEMA hostile;
	CREATE SEQUENCE hostile.ran;
	CREATE FUNCTION hostile.caught() RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN PERFORM pg_catalog.nextval('hostile.ran');
			RAISE EXCEPTION 'a planted object ran' USING ERRCODE = 'XX999'; END $$;
	DO $do$
	DECLARE
		f record;
		o record;
		args text;
	BEGIN
		-- Every operator between what our statements compare, add and join
		FOR o IN SELECT name, type FROM
				unnest('{=,<>,<,>,<=,>=,||,+,-,*,/,->,->>,?,@>,<@,<=>,~}'::text[]) name,
				unnest('{text,integer,bigint,oid,name,boolean,timestamptz,interval,jsonb,text[],
					real[],double precision,regclass,anyelement,"char"}'::text[]) type
		LOOP
			IF to_regprocedure(format('hostile.planted(%s,%s)', o.type, o.type)) IS NULL THEN
				EXECUTE format('CREATE FUNCTION hostile.planted(%1$s, %1$s) RETURNS boolean
					LANGUAGE plpgsql AS $$ BEGIN PERFORM hostile.caught(); RETURN true; END $$',
					o.type);
			END IF;
			EXECUTE format('CREATE OPERATOR hostile.%1$s (LEFTARG = %2$s, RIGHTARG = %2$s,
				FUNCTION = hostile.planted)', o.name, o.type);
		END LOOP;
		FOR o IN SELECT *
			FROM (VALUES ('->>', 'jsonb', 'text'), ('->', 'jsonb', 'text'),
			('+', 'timestamptz', 'interval'), ('-', 'timestamptz', 'interval'),
			('*', 'interval', 'double precision'), ('*', 'double precision', 'interval'),
			('=', 'text', 'name')) v (name, a, b)
		LOOP
			EXECUTE format('CREATE OR REPLACE FUNCTION hostile.planted(%1$s, %2$s) RETURNS boolean
				LANGUAGE plpgsql AS $$ BEGIN PERFORM hostile.caught(); RETURN true; END $$',
				o.a, o.b);
			EXECUTE format('CREATE OPERATOR hostile.%s (LEFTARG = %s, RIGHTARG = %s,
				FUNCTION = hostile.planted)', o.name, o.a, o.b);
		END LOOP;

		-- Every ordinary function that they could call, with its very arguments
		FOR f IN
			SELECT p.proname, pg_get_function_identity_arguments(p.oid) args,
				pg_get_function_result(p.oid) result
			FROM pg_proc p
			WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f'
				AND proname = ANY ('{
					now,clock_timestamp,statement_timestamp,transaction_timestamp,unnest,
					format,quote_ident,quote_literal,cardinality,array_length,
					array_to_string,array_append,coalesce,lower,upper,length,left,right,
					substr,replace,concat,concat_ws,random,floor,ceil,round,abs,power,
					greatest,least,to_char,date_trunc,make_interval,extract,date_part,
					generate_series,generate_subscripts,current_setting,set_config,
					pg_try_advisory_lock,pg_advisory_lock,jsonb_each,jsonb_object_keys,
					jsonb_build_object,jsonb_typeof,hashtext,hashtextextended,text,int4,
					int8,float8,float4,name,md5,exp,log,ln,sqrt,interval_mul,
					array_position,string_to_array}'::text[])
				AND pg_get_function_identity_arguments(p.oid) !~ 'OUT|internal|cstring|"any"'
				AND pg_get_function_result(p.oid) !~ 'internal|SETOF record|TABLE'
		LOOP
			EXECUTE format('CREATE FUNCTION hostile.%I(%s) RETURNS %s
				LANGUAGE plpgsql AS $$ BEGIN PERFORM hostile.caught(); RETURN; END $$',
				f.proname, f.args,
				CASE WHEN f.result ~ '^SETOF' THEN f.result ELSE 'SETOF ' || f.result END);
		END LOOP;
	END $do$;
	CREATE FUNCTION hostile.sfunc(bigint) RETURNS bigint LANGUAGE plpgsql
		AS $$ BEGIN PERFORM hostile.caught(); RETURN 1; END $$;
	CREATE AGGREGATE hostile.count(*) (SFUNC = hostile.sfunc, STYPE = bigint, INITCOND = '41');
	CREATE FUNCTION hostile.agg(bigint, bigint) RETURNS bigint LANGUAGE plpgsql
		AS $$ BEGIN PERFORM hostile.caught(); RETURN 1; END $$;
	CREATE AGGREGATE hostile.sum(bigint) (SFUNC = hostile.agg, STYPE = bigint, INITCOND = '41');
	CREATE AGGREGATE hostile.max(bigint) (SFUNC = hostile.agg, STYPE = bigint, INITCOND = '41');
	CREATE FUNCTION hostile.refused(text) RETURNS boolean LANGUAGE plpgsql
		AS $$ BEGIN PERFORM hostile.caught(); RETURN true; END $$;
	CREATE DOMAIN hostile.text AS pg_catalog.text CHECK (hostile.refused(VALUE));
	CREATE DOMAIN hostile.timestamptz AS pg_catalog.timestamptz
		CHECK (hostile.refused(VALUE::pg_catalog.text));
	CREATE DOMAIN hostile.jsonb AS pg_catalog.jsonb CHECK (hostile.refused(VALUE::pg_catalog.text));
	CREATE DOMAIN hostile.regclass AS pg_catalog.regclass
		CHECK (hostile.refused(VALUE::pg_catalog.text));
	CREATE DOMAIN hostile.uuid AS pg_catalog.uuid CHECK (hostile.refused(VALUE::pg_catalog.text));
	CREATE DOMAIN hostile.name AS pg_catalog.name CHECK (hostile.refused(VALUE::pg_catalog.text));
	CREATE DOMAIN hostile.bytea AS pg_catalog.bytea CHECK (hostile.refused('x'));
	CREATE DOMAIN hostile.vector AS pg_catalog.text CHECK (hostile.refused(VALUE));
	CREATE TABLE hostile.pg_extension (extname pg_catalog.text, extnamespace oid);
	CREATE TABLE hostile.pg_namespace (nspname pg_catalog.text, oid oid);
	CREATE SCHEMA s;
	CREATE SCHEMA talent;
	CREATE TABLE talent.candidate (id bigint GENERATED ALWAYS AS IDENTITY,
		hrflow_id pg_catalog.text, changed int);
	INSERT INTO talent.candidate (hrflow_id) VALUES ('nurse-1'), ('welder-1')});

my $path = 'SET search_path = hostile, public, pg_catalog';
my $planted = Hrflow::Session->new($node);
$planted->ask("\\c planted\n$path;");
like($planted->ask(q{SELECT 'a' = 'b'::pg_catalog.text;}),
	qr/XX999/, 'a planted operator runs when it is first on the search path');
like($planted->ask(q{SELECT * FROM now();}),
	qr/XX999/, 'a planted function runs when it is first on the search path');
like($planted->ask(q{SELECT count(*) FROM pg_class;}),
	qr/XX999/, 'a planted aggregate runs when it is first on the search path');
like($planted->ask(q{SELECT 'a'::text;}),
	qr/XX999/, 'a planted type runs when it is first on the search path');
is($node->safe_psql('planted', 'SELECT last_value FROM hostile.ran'),
	4, 'each run of a planted object is counted');

unlike($planted->ask('CREATE EXTENSION hrflow_embed SCHEMA s;'),
	qr/ERROR/, 'the extension can be created in a schema of its own');
unlike($planted->ask('CREATE EXTENSION vector SCHEMA s;'),
	qr/ERROR/, 'pgvector can be created in a schema of its own')
  if $has_pgvector;

# Call each function once, in a meaningful order
my $link =
  q{(SELECT link FROM s.hrflow_profile_embedding_links('acme', 'nurse-1', '{"profile": 1}'))};
foreach my $case (
	[   'hrflow_profile_embedding',
		q{SELECT s.hrflow_profile_embedding('acme', 'nurse-1', '{"profile": 1}')},
		qr/^\{"profile"/ ],
	[   'hrflow_profile_embedding_links',
		q{SELECT section
			FROM s.hrflow_profile_embedding_links('acme', 'nurse-1', '{"profile": 1}')},
		qr/^profile$/m ],
	[   'hrflow_profile_embeddings',
		q{SELECT status, error
			FROM s.hrflow_profile_embeddings('acme', '{nurse-1,missing-1,nurse-1}')},
		qr/^ok\|\nok\|\nnot_found\|Profile|^(?=.*not_found)(?=.*ok\|\n)/s ],
	[   'hrflow_profile_vectors',
		q{SELECT status, section
			FROM s.hrflow_profile_vectors('acme', '{nurse-1}', '{"profile": 1, "skills": 1}')},
		qr/^ok\|(profile|skills)\nok\|/m ],
	[   'hrflow_profile_links',
		q{SELECT status, section
			FROM s.hrflow_profile_links('acme', '{nurse-1}', '{"profile": 1}')},
		qr/^ok\|profile$/m ],
	[ 'hrflow_fetch_vector', "SELECT s.hrflow_fetch_vector($link)", qr/^\{[-\d.]+,/ ],
	[   'hrflow_fetch_vectors',
		"SELECT status FROM s.hrflow_fetch_vectors(ARRAY[$link, 'https://example.com/x'])", qr/ok/
	],
	[ 'hrflow_job_embedding', q{SELECT s.hrflow_job_embedding('nurse-job')}, qr/^"http/ ],
	[ 'hrflow_job_vector', q{SELECT s.hrflow_job_vector('nurse-job')}, qr/^\{[-\d.]+,/ ],
	[ 'hrflow_text_embedding', q{SELECT s.hrflow_text_embedding('nurse')}, qr/^\{[-\d.]+,/ ],
	[   'hrflow_text_embeddings', q{SELECT status FROM s.hrflow_text_embeddings('{nurse,NULL}')},
		qr/ok/ ],
	[   'hrflow_document_embedding',
		q{SELECT s.hrflow_document_embedding('job', '{"key": "nurse"}')},
		qr/^\{[-\d.]+,/ ],
	[   'hrflow_document_embeddings',
		q{SELECT status FROM s.hrflow_document_embeddings('job', ARRAY['{"key": "nurse"}'::pg_catalog.jsonb])},
		qr/^ok$/m ],
	[ 'hrflow_auth', q{SELECT s.hrflow_auth()}, qr/^\{"/ ],
	[ 'hrflow_decode_vector', q{SELECT s.hrflow_decode_vector('[1, 2]')}, qr/^\{1,2\}$/m ],
	[   'hrflow_cosine_similarity', q{SELECT s.hrflow_cosine_similarity('{1,0}', '{0,1}')},
		qr/^0$/m ],
	[   'hrflow_vector_similarity',
		q{SELECT s.hrflow_vector_similarity('{1,0}'::real[], '{0,1}')}, qr/^0$/m ],
	[   'hrflow_create_store', q{SELECT s.hrflow_create_store('talent.embedding')},
		qr/^talent\.embedding$/m ],
	[   'hrflow_track_table',
		q{SELECT s.hrflow_track_table('talent.embedding', 'talent.candidate', 'hrflow_id', 'acme',
			NULL, '{changed}')},
		qr/^2$/m ],
	[   'hrflow_track',
		q{SELECT s.hrflow_track('talent.embedding', 'acme', '{cook-1,cook-2,fault:status=500}')},
		qr/^3$/m ],
	[   'hrflow_track_trigger, INSERT',
		q{INSERT INTO talent.candidate (hrflow_id) VALUES ('teacher-1') RETURNING hrflow_id},
		qr/^teacher-1$/m ],
	[   'hrflow_track_trigger, DELETE',
		q{DELETE FROM talent.candidate
			WHERE hrflow_id OPERATOR(pg_catalog.=) 'welder-1' RETURNING hrflow_id},
		qr/^welder-1$/m ],
	[   'hrflow_refresh',
		q{CALL s.hrflow_refresh('talent.embedding', '{"profile": 1, "skills": 1}',
			max_attempts => 1)},
		qr/^(?!.*(ERROR|WARNING))/s ],
	[   'hrflow_track_trigger, UPDATE',
		q{UPDATE talent.candidate SET changed = 1
			WHERE hrflow_id OPERATOR(pg_catalog.=) 'nurse-1' RETURNING hrflow_id},
		qr/^nurse-1$/m ],
	[   'hrflow_mark_due', q{SELECT s.hrflow_mark_due('talent.embedding', 'acme', '{cook-1}')},
		qr/^1$/m ],
	[   'hrflow_store_status',
		q{SELECT tracked, due, ok, failed FROM s.hrflow_store_status('talent.embedding')},
		qr/^5\|2\|2\|1$/m ],
	[   'hrflow_store_failures',
		q{SELECT profile_id FROM s.hrflow_store_failures('talent.embedding')},
		qr/^fault:status=500$/m ],
	[   'hrflow_store_orphans',
		q{SELECT pg_catalog.count(profile_id) FROM s.hrflow_store_orphans('talent.embedding')},
		qr/^0$/m ],
	[   'hrflow_fingerprint', q{SELECT s.hrflow_fingerprint('acme', 'nurse-1')},
		qr/^\\x[0-9a-f]{64}$/m ],
	[ 'hrflow_restore', q{SELECT s.hrflow_restore('talent.embedding')}, qr/^0$/m ],
	[ 'hrflow_retry', q{SELECT s.hrflow_retry('talent.embedding')}, qr/^1$/m ],
	[   'hrflow_match',
		q{SELECT profile_id
			FROM s.hrflow_match('talent.embedding', s.hrflow_job_vector('nurse-job'), 1)},
		qr/^nurse-1$/m ],
	[   'hrflow_match_weighted',
		q{SELECT profile_id
			FROM s.hrflow_match_weighted('talent.embedding', s.hrflow_job_vector('nurse-job'),
			'{"profile": 0.5, "skills": 0.5}', 1)},
		qr/^nurse-1$/m ],
	[   'hrflow_match_all',
		q{SELECT pg_catalog.count(profile_id)
			FROM s.hrflow_match_all('talent.embedding', 'talent.embedding', 1)},
		qr/^4$/m ],
	[   'hrflow_match_recall',
		q{SELECT s.hrflow_match_recall('talent.embedding')},
		qr/ERROR:  55000/ ],
	[   'hrflow_index_statement',
		q{SELECT s.hrflow_index_statement('talent.embedding')},
		$has_pgvector
		? qr/^CREATE INDEX CONCURRENTLY ON talent\.embedding USING hnsw .*s\.vector_cosine_ops/m
		: qr/ERROR:  55000/ ],
	(   $has_pgvector
		? ( [   'the index',
				"SELECT s.hrflow_index_statement('talent.embedding') \\gexec\nSELECT 1",
				qr/^(?!.*ERROR)/s ],
			[   'hrflow_match, by the index',
				q{SET enable_seqscan = off;
					SELECT profile_id
					FROM s.hrflow_match('talent.embedding', s.hrflow_job_vector('nurse-job'), 1)},
				qr/^nurse-1$/m ],
			[   'hrflow_match_recall, of the index',
				q{SELECT s.hrflow_match_recall('talent.embedding')},
				qr/^1$/m ])
		: ()),
	[   'hrflow_schedule',
		q{SELECT s.hrflow_schedule('talent.embedding')},
		qr/ERROR:  55000: extension "pg_cron" is not installed in this database/ ],
	[   'hrflow_unschedule',
		q{SELECT s.hrflow_unschedule('talent.embedding')},
		qr/^f$|ERROR:  55000/m ],
	[   'hrflow_untrack',
		q{SELECT s.hrflow_untrack('talent.embedding', 'acme', '{cook-1}')},
		qr/^1$/m ],
	[   'hrflow_untrack_batches',
		q{CALL s.hrflow_untrack_batches('talent.embedding', 'acme', '{cook-2}')},
		qr/^(?!.*ERROR).*INFO: .*1/s ],
	[   'hrflow_refresh_estimate',
		q{SELECT pg_catalog.max(day) FROM s.hrflow_refresh_estimate('talent.embedding')},
		qr/^30$/m ],
	[   'hrflow_release_columns',
		q{SELECT s.hrflow_release_columns('talent.embedding', 'talent.candidate')},
		qr/^SELECT s\.hrflow_track_table\('talent\.embedding'::pg_catalog\.regclass, /m ],
	[   'hrflow_untrack_table',
		q{SELECT s.hrflow_untrack_table('talent.embedding', 'talent.candidate')},
		qr/^2WARNING: .* were put aside$/m ],
	[   'hrflow_track_table, again',
		q{SELECT s.hrflow_track_table('talent.embedding', 'talent.candidate', 'hrflow_id', 'acme')},
		qr/^0$/m ],
	[   'hrflow_change_model',
		q{SELECT s.hrflow_change_model('talent.embedding')},
		qr/^talent\.embedding_next$/m ],
	[   'hrflow_switch_model',
		q{SELECT s.hrflow_switch_model('talent.embedding', 0)},
		qr/^t(?:NOTICE|$)/m ],
	[   'hrflow_untrack_table_batches',
		q{CALL s.hrflow_untrack_table_batches('talent.embedding', 'talent.candidate')},
		qr/^(?!.*ERROR).*INFO: .*2/s ],
	[ 'hrflow_drop_store', q{SELECT s.hrflow_drop_store('talent.embedding')}, qr/^$/m ],
	[   'hrflow_embed_stats',
		q{SELECT requests OPERATOR(pg_catalog.>) 0 FROM s.hrflow_embed_stats},
		qr/^t$/m ],
	[   'hrflow_estimate',
		q{SELECT elements, requests, links
			FROM s.hrflow_estimate('acme', '{a,a,b}', '{"profile": 1}')},
		qr/^2\|2\|2$/m ],
	[   'hrflow_embed_activity', q{SELECT pg_catalog.count(pid) FROM s.hrflow_embed_activity},
		qr/^0(?:NOTICE|$)/m ],
	[   'hrflow_embed_usage',
		q{SELECT pg_catalog.count(api_requests) OPERATOR(pg_catalog.>=) 0 FROM s.hrflow_embed_usage},
		qr/^t(?:NOTICE|$)/m ],
	[ 'hrflow_embed_stats_reset', q{SELECT s.hrflow_embed_stats_reset()}, qr/^$/m ])
{
	my ($name, $statement, $expected) = @$case;
	my $out = $planted->ask("$statement;") =~ s/\n?-- done\n//r;

	like($out, $expected, "$name() works with planted objects first on the search path");
}
is($node->safe_psql('planted', 'SELECT last_value FROM hostile.ran'),
	4, 'no function of the extension runs a planted object');

# All functions must have been called; add new functions above.
my $cases = PostgreSQL::Test::Utils::slurp_file($0);
is( join(
		' ',
		grep { $cases !~ /\[\s+'$_\b/ } split /\n/,
		$node->safe_psql(
			'planted', q{
		SELECT DISTINCT proname FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid
			AND d.deptype = 'e'
		JOIN pg_extension e ON e.oid = d.refobjid AND extname = 'hrflow_embed'
			WHERE d.classid = 'pg_proc'::regclass AND prorettype <> 'internal'::regtype}
		)),
	'',
	'every function of the extension was called with planted objects first on the search path');
$planted->finish;

#
# A renamed schema, and an attempt to change the schema
#
my $vector = sql(
	q{SELECT s FROM (SELECT '{' || string_agg((i % 7)::text, ',') || '}' s
		FROM generate_series(1, 8) i) x}
);
my $session = Hrflow::Session->new($node);
sub ask { return $session->ask("$_[0];") =~ s/\n?-- done\n//r; }

sql('CREATE DATABASE moved');
$session->ask("\\c moved");
ask('SET client_min_messages = warning; CREATE SCHEMA s; CREATE EXTENSION hrflow_embed SCHEMA s');
ask(q{CREATE TABLE candidate (hrflow_id text); SELECT s.hrflow_create_store('store');
	SELECT s.hrflow_track_table('store', 'candidate', 'hrflow_id', 'acme')}
);
ask(q{PREPARE p (text) AS SELECT status FROM s.hrflow_profile_embeddings('acme', ARRAY[$1])});
like(
	ask('SELECT hrflow_auth()'),
	qr/ERROR:  42883/,
	'a function in a schema that is not on the search path has to be qualified');
like(
	ask('ALTER EXTENSION hrflow_embed SET SCHEMA public'),
	qr/ERROR:  0A000/,
	'the extension refuses to move to another schema');
is(ask(q{EXECUTE p ('nurse-1')}), 'ok', 'a prepared statement works after the refused move');
ask('ALTER SCHEMA s RENAME TO "S 2"');
like(
	ask(q{EXECUTE p ('nurse-1')}),
	qr/ERROR:  3F000: schema "s"/,
	'a statement prepared before its schema was renamed fails with a clear message');
ask(q{DEALLOCATE p;
	PREPARE p (text) AS SELECT status FROM "S 2".hrflow_profile_embeddings('acme', ARRAY[$1])}
);
is(ask(q{EXECUTE p ('nurse-1')}),
	'ok', 'a statement prepared again after its schema was renamed works');
is( ask(q{INSERT INTO candidate VALUES ('nurse-1');
	SELECT "S 2".hrflow_track_table('store', 'candidate', 'hrflow_id', 'acme')}
	),
	0,
	'triggers work after the schema of the extension was renamed');
ask(q{CALL "S 2".hrflow_refresh('store')});
is(ask(q{SELECT ok FROM "S 2".hrflow_store_status('store')}),
	1, 'a refresh works after the schema of the extension was renamed');
like(
	ask(q{SELECT "S 2".hrflow_schedule('store')}),
	qr/CALL "S 2"\.hrflow_refresh/,
	'hrflow_schedule() uses the new name of the schema');

#
# Dropping and re-creating the extension, with open connections
#
$api->reset;
is(ask(q{EXECUTE p ('nurse-1')}),
	'ok', 'a prepared statement works before the extension is dropped');
ask(q{DROP EXTENSION hrflow_embed CASCADE});
like(
	ask(q{EXECUTE p ('nurse-1')}),
	qr/ERROR:  (42883|3F000|XX000)/,
	'a prepared statement fails once the extension is dropped');
is(ask(q{INSERT INTO candidate VALUES ('nurse-2'); SELECT count(*) FROM store_profile}),
	1,
	'a table that fed a store can be written once the extension is dropped, and the store stays');
ask('CREATE EXTENSION hrflow_embed');
is(ask(q{SELECT status FROM hrflow_profile_embeddings('acme', '{nurse-1}')}),
	'ok', 'a batch works once the extension is created again');
is(scalar(keys %{ { map { $_->{connection} => 1 } $api->log } }),
	1, 'the re-created extension uses the same connection');
is(ask(q{SELECT hrflow_track_table('store', 'candidate', 'hrflow_id', 'acme')}),
	1, 'the store is fed again once its table is tracked again');

foreach my $i (1 .. 5)
{
	ask('DROP EXTENSION hrflow_embed CASCADE; CREATE EXTENSION hrflow_embed');
}
cmp_ok($session->sockets, '<=', 3, 'dropping the extension leaves no socket open');
is( ask(q{BEGIN; DROP EXTENSION hrflow_embed CASCADE; ROLLBACK;
	SELECT status FROM hrflow_profile_embeddings('acme', '{nurse-1}')}
	),
	'ok',
	'a batch works after dropping the extension was rolled back');

#
# Prepared statements
#
$session->ask("\\c postgres");
ask('SET client_min_messages = warning');
foreach my $mode (qw(force_generic_plan force_custom_plan auto))
{
	ask("SET plan_cache_mode = $mode");
	ask(q{PREPARE ids (text[]) AS SELECT string_agg(status, ' ' ORDER BY ordinality)
		FROM hrflow_profile_embeddings('acme', $1, '{"profile": 1}');
		PREPARE one (text) AS
			SELECT hrflow_profile_embedding('acme', $1, '{"profile": 1}') ? 'profile';
		PREPARE near (real[]) AS
			SELECT round(hrflow_cosine_similarity($1, '{1,1}')::numeric, 6)::float});
	is( join(' ',
			map { ask("EXECUTE ids ('$_')") } '{nurse-1}',
			'{missing-1,nurse-1}', '{nurse-1,NULL,nurse-1}', '{}', '{a}', '{b}', '{c}'),
		'ok not_found ok ok invalid_request ok  ok ok ok',
		"$mode: a prepared batch takes any array of identifiers");
	is( join(' ', map { ask("EXECUTE one ('nurse-$_')") } 1 .. 7),
		join(' ', ('t') x 7),
		"$mode: a prepared call takes any identifier");
	like(
		ask(q{EXECUTE one ('missing-1')}),
		qr/ERROR:  P0002/,
		"$mode: a prepared call for an unknown profile fails");
	is(ask(q{EXECUTE one (NULL)}), '', "$mode: a prepared call for a null returns null");
	is(join(' ', map { ask("EXECUTE near ('{1,$_}')") } 1, 1, 1, 1, 1, -1),
		'1 1 1 1 1 0', "$mode: vectors");
	ask('DISCARD ALL');
	like(
		ask(q{EXECUTE one ('nurse-1')}),
		qr/ERROR:  26000/,
		"$mode: prepared statements are gone after DISCARD ALL");
}
is(ask(q{SELECT status FROM hrflow_profile_embeddings('acme', '{nurse-1}')}),
	'ok', 'a batch works after DISCARD ALL');
cmp_ok($session->sockets, '<=', 3, 'connections survive DISCARD ALL');

#
# Errors caught by PL/pgSQL
#
ask(q{SET client_min_messages = warning;
	CREATE FUNCTION state_of(statement text) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		EXECUTE statement;
		RETURN '00000';
	EXCEPTION WHEN OTHERS THEN
		RETURN SQLSTATE;
	END $$});
foreach my $case (
	[ q{hrflow_profile_embedding('acme', 'nurse-1')}, '00000' ],
	[ q{hrflow_profile_embedding('acme', '')}, '22023' ],
	[ q{hrflow_profile_embedding('acme', 'missing-1')}, 'P0002' ],
	[ q{hrflow_profile_embedding('acme', 'fault:status=401')}, '28000' ],
	[ q{hrflow_profile_embedding('acme', 'fault:status=402')}, '53400' ],
	[ q{hrflow_profile_embedding('acme', 'fault:status=500')}, '58000' ],
	[ q{hrflow_profile_embedding('acme', 'fault:reset')}, '08006' ],
	[ q{hrflow_profile_embedding('acme', 'fault:truncated')}, '08P01' ],
	[ q{hrflow_fetch_vector('https://example.com/x')}, '42501' ],
	[ q{hrflow_decode_vector('[1')}, '22P03' ],
	[ q{hrflow_cosine_similarity('{1}', '{0}')}, '22023' ],
	[ q{hrflow_text_embedding('fault:status=503')}, '58000' ],
	[ q{hrflow_track('pg_class', 'a', '{b}')}, '42P01' ])
{
	my ($call, $state) = @$case;
	my $quoted = $call =~ s/'/''/gr;

	is( ask("BEGIN;
		SELECT state_of('SELECT $quoted'),
		state_of('SELECT hrflow_profile_embedding(''acme'', ''nurse-1'')'); COMMIT"
		),
		"$state|00000",
		"an error of $call can be caught, and the next call works");
}
like(
	ask(q{DO $$ BEGIN CALL hrflow_refresh('x');
		EXCEPTION WHEN undefined_table THEN RAISE EXCEPTION 'no such table'; END $$}
	),
	qr/no such table/,
	'an error of hrflow_refresh() can be caught');

#
# Settings of a session or transaction end with it
#
my $call = q{SELECT 'called' FROM hrflow_profile_embedding('acme', 'nurse-1')};
foreach my $case (
	[ "SET hrflow_embed.api_key = '$own_key'", $own_key, 'SET' ],
	[ 'RESET hrflow_embed.api_key', $key, 'RESET' ],
	[ "SET hrflow_embed.api_key = '$own_key'; RESET ALL", $key, 'RESET ALL' ],
	[ "SET hrflow_embed.api_key = '$own_key'; DISCARD ALL", $key, 'DISCARD ALL' ],
	[   "SET hrflow_embed.api_key = '$own_key'; SET hrflow_embed.api_key TO DEFAULT",
		$key, 'SET TO DEFAULT' ],
	[   "BEGIN; SET LOCAL hrflow_embed.api_key = '$own_key'",
		$own_key,
		'SET LOCAL, in its transaction' ],
	[ 'COMMIT', $key, 'COMMIT after SET LOCAL' ],
	[   "BEGIN; SET LOCAL hrflow_embed.api_key = '$own_key'; SELECT 1 / 0; ROLLBACK",
		$key, 'SET LOCAL in a transaction that failed' ],
	[   "BEGIN; SET hrflow_embed.api_key = '$own_key'; ROLLBACK",
		$key, 'SET in a transaction rolled back' ],
	[   "BEGIN; SAVEPOINT a; SET LOCAL hrflow_embed.api_key = '$own_key'; $call; ROLLBACK TO a",
		$key, 'SET LOCAL in a savepoint rolled back' ],
	[ 'COMMIT', $key, 'COMMIT after that savepoint' ],
	[   "BEGIN; SELECT set_config('hrflow_embed.api_key', '$own_key', true); COMMIT",
		$key, 'set_config() local to a transaction' ])
{
	my ($statement, $sent, $name) = @$case;

	ask($statement);
	like(ask($call), qr/called/, "$name: a call works");
	is(key_sent(), $sent, "$name: the key sent is " . ($sent eq $key ? 'configured' : 'set'));
}

#
# Parallel workers
#
sql(qq{
	CREATE ROLE plain LOGIN;
	CREATE TABLE v AS
		SELECT i, '$vector'::real[] AS vector, convert_to('[' || i || ', 1]', 'UTF8') AS payload,
		'nurse-' || i AS id FROM generate_series(1, 3000) i;
	ANALYZE v;
	GRANT SELECT ON v TO plain});
my $force = (
	sql(q{SELECT name FROM pg_settings
		WHERE name IN ('force_parallel_mode', 'debug_parallel_query')}
	));
is( sql(q{SELECT string_agg(proname, ' ' ORDER BY proname) FROM pg_proc WHERE proname LIKE 'hrflow%'
	AND proparallel = 's' AND prorettype <> 'internal'::regtype}
	),
	'hrflow_cosine_similarity hrflow_decode_vector hrflow_fingerprint hrflow_vector_similarity',
	'only the functions that send no requests are parallel safe');
my $parallel = "SET $force = on; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
	SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2;
	SET parallel_leader_participation = off;";
my $safe = "SELECT count(*) || ' ' || round(sum(hrflow_cosine_similarity(vector, '$vector'))) || ' '
	|| round(sum((hrflow_decode_vector(payload))[1])) FROM v";
foreach my $case (
	[ $superuser, '', 'in a session that set nothing' ],
	[   $superuser,
		"SET hrflow_embed.api_key = '$own_key'; SET hrflow_embed.max_concurrency = 7;
			SET hrflow_embed.proxy = 'http://user:secret\@127.0.0.1:9';",
		'in one that set a key and a proxy' ],
	[   $superuser,
		"SET hrflow_embed.api_key = '$own_key'; SET ROLE plain;",
		'in one that changed its role then' ],
	[ 'plain', 'SET hrflow_embed.max_attempts = 2;', 'for a role without rights' ])
{
	my ($role, $first, $name) = @$case;

	like(
		said('postgres', "$parallel $first EXPLAIN (ANALYZE, COSTS OFF) $safe;", role => $role),
		qr/Workers Launched: [12]/,
		"workers compute similarities $name");
	is( said('postgres', "$parallel $first $safe;", role => $role),
		'3000 3000 4501500',
		"workers give correct results without a warning $name");
}
$api->reset;
unlike(
	said(
		'postgres',
		"$parallel EXPLAIN (COSTS OFF) SELECT hrflow_profile_embedding('acme', 'nurse-1');"),
	qr/Gather/,
	'a call that sends a request is not given to a worker');
is( said(
		'postgres',
		"$parallel SELECT count(hrflow_profile_embedding('acme', id)) FROM v WHERE i <= 50
			AND hrflow_cosine_similarity(vector, '$vector') > 0.5;"
	),
	50,
	'a call that sends a request works above a parallel scan');
is(scalar(keys %{ { map { $_->{connection} => 1 } $api->log } }),
	1, 'all requests above a parallel scan are sent by one process');
unlike(
	said(
		'postgres',
		"$parallel EXPLAIN (COSTS OFF) SELECT * FROM v WHERE hrflow_index_statement('v') IS NULL;"),
	qr/Gather/,
	'a function of stores is not given to a worker');

# The library is loaded when its first function is looked up, which may be
# during a parallel operation, where PostgreSQL assigns the defaults of
# settings, whatever the configuration says.
sql(q{
	CREATE FUNCTION fetch_other(int) RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS $$
	BEGIN RETURN (SELECT error
		FROM hrflow_fetch_vectors('{https://other.s3.amazonaws.com/y}')); END $$;
	CREATE FUNCTION fetch_one(int) RETURNS real[] LANGUAGE plpgsql PARALLEL SAFE AS $$
	BEGIN RETURN hrflow_fetch_vector('https://other.s3.amazonaws.com/y'); END $$;
	CREATE FUNCTION fetch_here(i int) RETURNS text
		LANGUAGE plpgsql PARALLEL RESTRICTED AS 'BEGIN RETURN fetch_other(i); END';
	CREATE FUNCTION alike(a real[]) RETURNS float
		LANGUAGE plpgsql PARALLEL SAFE AS 'BEGIN RETURN hrflow_cosine_similarity(a, a); END';
	GRANT EXECUTE ON FUNCTION hrflow_fetch_vectors(text[]), hrflow_fetch_vector(text) TO plain});
my $no_settings = qr/ERROR:  55000: cannot read the settings of hrflow_embed/;
my $allowed = (sql(q{LOAD 'hrflow_embed'; SHOW hrflow_embed.link_hosts}));
sql(q{LOAD 'hrflow_embed'; ALTER SYSTEM SET hrflow_embed.link_hosts = 'only.example';
	SELECT pg_reload_conf()}
);
$node->poll_query_until('postgres',
	q{SELECT current_setting('hrflow_embed.link_hosts', true) = 'only.example'});
like(
	said('postgres', 'SELECT fetch_other(1);', role => 'plain'),
	qr/not in "hrflow_embed.link_hosts"/,
	'link_hosts of the configuration applies outside of parallel operations');
foreach my $function ('fetch_other', 'fetch_one')
{
	like(said('postgres', "SET $force = on; SELECT $function(1);", role => 'plain'),
		$no_settings,
		"$function() is refused in a worker that has just loaded the library, without settings");
}
like(
	said(
		'postgres',
		($parallel =~ s/SET $force = on;//r)
		  . " SELECT fetch_here(i) FROM v WHERE i = 5; SELECT fetch_other(1);
			SHOW hrflow_embed.link_hosts;",
		role => 'plain'),
	qr/$no_settings.*not in "hrflow_embed.link_hosts".*\nonly\.example\z/s,
	'the library refuses to work when loaded in the leader, until the parallel operation ends');
is(said('postgres', "$parallel SELECT sum(alike(vector)) FROM v;", role => 'plain'),
	3000, 'functions that need no settings work when the library is loaded in a worker');

# A leader without the library would pass unchecked values to workers.
sql(qq{CREATE ROLE keyed LOGIN IN ROLE plain;
	ALTER ROLE keyed SET hrflow_embed.api_key = '$own_key';
	ALTER ROLE keyed SET hrflow_embed.proxy = 'no://proxy';
	GRANT SELECT ON v TO keyed});
my $computed = "SELECT sum(alike(vector)) FROM v;";
my $unforced = $parallel =~ s/SET $force = on;//r;
sql(q{CREATE FUNCTION alike_here(a real[]) RETURNS float
	LANGUAGE plpgsql PARALLEL RESTRICTED AS 'BEGIN RETURN hrflow_cosine_similarity(a, a); END'}
);
my $load = 'SELECT alike_here(vector) FROM v WHERE i = 5;';
my $again = said(
	'postgres',
	"$unforced SET hrflow_embed.max_attempts = 300; $load $computed SHOW hrflow_embed.api_key;",
	role => 'keyed');
like($again, qr/\n1\n3000\n\z/,
	'workers compute after the library was loaded during a parallel operation');
like(
	$again,
	qr/WARNING:  22023: parameter "hrflow_embed.api_key" cannot be set for a role/,
	'a setting that is not allowed is warned about when the library is loaded');
$again .= said('postgres', "$unforced BEGIN; $load $computed COMMIT;", role => 'keyed');
like($again, qr/\n1\n3000\z/, 'workers compute in the transaction that loaded the library');
unlike(
	$again . PostgreSQL::Test::Utils::slurp_file($node->logfile),
	qr/to "(?:\Q$own_key\E|no:)/,
	'the warning does not show the refused value');
sql('DROP OWNED BY keyed; DROP ROLE keyed');
sql(qq{LOAD 'hrflow_embed'; ALTER SYSTEM SET hrflow_embed.link_hosts = '$allowed';
	SELECT pg_reload_conf()}
);
$node->poll_query_until('postgres',
	qq{SELECT current_setting('hrflow_embed.link_hosts', true) = '$allowed'});

#
# Roles that may not load a library
#
sql('GRANT EXECUTE ON FUNCTION hrflow_profile_embedding(text, text, jsonb, text, text) TO plain');
like(
	said('postgres', q{LOAD 'hrflow_embed';}, role => 'plain'),
	qr/ERROR:  42501/,
	'only superusers may LOAD the library');
is( said(
		'postgres',
		q{SELECT hrflow_profile_embedding('acme', 'nurse-1') ? 'profile';},
		role => 'plain'),
	't',
	'a role with EXECUTE on a function has the library loaded by calling it');
my $stolen = Hrflow::StandIn->new('--key' => $key);
my $elsewhere = $stolen->base_url;
$api->reset;
like(
	said('postgres', "SET hrflow_embed.base_url = '$elsewhere'; $call;", role => 'plain'),
	qr/WARNING:  42501: .*hrflow_embed.base_url.*\ncalled/s,
	'a base_url set before the library was loaded is discarded if the role may not set it');
is(scalar($stolen->log), 0, 'the key is not sent to a base_url that was discarded');
like(
	said('postgres', "$call; SET hrflow_embed.base_url = '$elsewhere';", role => 'plain'),
	qr/ERROR:  42501/,
	'a role may not set base_url once the library is loaded');
like(
	said('postgres', "$call; SET hrflow_embed.nonsense = 1;", role => 'plain'),
	qr/ERROR:  (42602|22023|42704)/,
	'an unknown setting of the extension is an error');

#
# A standby
#
sql(q{SELECT hrflow_create_store('kept'); SELECT hrflow_track('kept', 'acme', '{nurse-1,cook-1}');
	CREATE TABLE fed (id text)}
);
sql(q{CALL hrflow_refresh('kept')});
sql(q{UPDATE kept_run SET ended_at = NULL, stop_reason = NULL});
is(sql(q{SELECT last_run_status FROM hrflow_store_status('kept')}),
	'killed', 'a run without an end that no session is executing was killed');
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);

foreach my $case (
	[ q{SELECT hrflow_profile_embedding('acme', 'nurse-1') ? 'profile'}, qr/^t$/ ],
	[   q{SELECT count(e), count(DISTINCT e) FROM (SELECT hrflow_text_embedding(upper('text ' || i)) e
		FROM generate_series(1, 5) i OFFSET 0) s},
		qr/^5\|5$/ ],
	[   q{SELECT string_agg(status, ' ' ORDER BY ordinality)
		FROM hrflow_profile_embeddings('acme', '{nurse-1,missing-1}')},
		qr/^ok not_found$/ ],
	[   q{SELECT status, cardinality(vector)
		FROM hrflow_profile_vectors('acme', '{nurse-1}', '{"profile": 1}')},
		qr/^ok\|8$/ ],
	[ q{SELECT cardinality(hrflow_job_vector('nurse-job'))}, qr/^8$/ ],
	[ q{SELECT cardinality(hrflow_text_embedding('a nurse'))}, qr/^8$/ ],
	[ q{SELECT hrflow_auth() IS NOT NULL}, qr/^t$/ ],
	[   q{SELECT profile_id FROM hrflow_match('kept', hrflow_job_vector('nurse-job'), 1)},
		qr/^nurse-1$/ ],
	[   q{SELECT profile_id
		FROM hrflow_match_weighted('kept', hrflow_job_vector('nurse-job'), '{"profile": 1}', 1)},
		qr/^nurse-1$/ ],
	[ q{SELECT tracked, ok FROM hrflow_store_status('kept')}, qr/^2\|2$/ ],

	# A standby does not know the sessions of the primary.
	[ q{SELECT last_run_status FROM hrflow_store_status('kept')}, qr/^running$/ ],
	[ q{SELECT count(*) FROM hrflow_store_failures('kept')}, qr/^0$/ ],
	[   q{SELECT requests > 0 FROM hrflow_embed_stats; SELECT hrflow_embed_stats_reset()},
		qr/^(t|f)\n?$/ ],
	[ q{CALL hrflow_refresh('kept')}, qr/ERROR:  25006: .*during recovery/ ],
	[ q{SELECT hrflow_track('kept', 'acme', '{cook-2}')}, qr/ERROR:  25006/ ],
	[ q{SELECT hrflow_mark_due('kept', 'acme', '{cook-1}')}, qr/ERROR:  25006/ ],
	[ q{SELECT hrflow_untrack('kept', 'acme', '{cook-1}')}, qr/ERROR:  25006/ ],
	[ q{CALL hrflow_untrack_batches('kept', 'acme', '{cook-1}')}, qr/ERROR:  25006/ ],
	[ q{CALL hrflow_untrack_table_batches('kept', 'fed')}, qr/ERROR:  25006/ ],
	[ q{SELECT hrflow_restore('kept')}, qr/ERROR:  25006/ ],
	[ q{SELECT hrflow_retry('kept')}, qr/ERROR:  25006/ ],
	[ q{SELECT hrflow_create_store('other')}, qr/ERROR:  25006/ ],
	[ q{SELECT hrflow_drop_store('kept')}, qr/ERROR:  25006/ ],
	[ q{SELECT hrflow_change_model('kept')}, qr/ERROR:  25006/ ],
	[ q{SELECT hrflow_switch_model('kept')}, qr/ERROR:  25006/ ],
	[ q{SELECT hrflow_track_table('kept', 'fed', 'id', 'acme')}, qr/ERROR:  25006/ ],
	[ q{SELECT hrflow_untrack_table('kept', 'fed')}, qr/ERROR:  25006/ ],
	[ q{SELECT hrflow_schedule('kept')}, qr/ERROR:  (25006|55000: extension "pg_cron" is not)/ ])
{
	my ($statement, $expected) = @$case;

	like(said('postgres', "$statement;", node => $standby), $expected, "on a standby: $statement");
}
$standby->promote;
is($standby->safe_psql('postgres', q{SELECT hrflow_track('kept', 'acme', '{cook-2}')}),
	1, 'a promoted standby tracks profiles');
$standby->safe_psql('postgres', q{CALL hrflow_refresh('kept')});
is($standby->safe_psql('postgres', q{SELECT ok FROM hrflow_store_status('kept')}),
	3, 'a promoted standby refreshes its stores');
$standby->stop;

#
# Databases of other encodings
#
foreach my $encoding (qw(LATIN1 EUC_JP SQL_ASCII))
{
	my $database = 'in_' . lc $encoding;

	sql("CREATE DATABASE $database ENCODING '$encoding' LOCALE 'C' TEMPLATE template0");
	is( said(
			$database,
			q{CREATE EXTENSION hrflow_embed;
				SELECT hrflow_profile_embedding('acme', 'nurse-1', '{"skills": 1}') ? 'skills'}
		),
		't',
		"the extension works in a database in $encoding");
}

#
# Several databases, and the library preloaded or not
#
my $second = Hrflow::StandIn->new;
my %base_url = (one => $api->base_url, two => $second->base_url);
foreach my $database (sort keys %base_url)
{
	sql("CREATE DATABASE $database");
	$node->safe_psql(
		$database,
		"CREATE EXTENSION hrflow_embed; LOAD 'hrflow_embed';
			ALTER DATABASE $database SET hrflow_embed.base_url = '$base_url{$database}'"
	);
}
$session->finish;

# Loaded after another library that requests shared memory
my $before =
  -e $node->config_data('--pkglibdir') . '/pg_stat_statements.so' ? 'pg_stat_statements, ' : '';
foreach my $preload ('', "${before}hrflow_embed")
{
	$node->append_conf('postgresql.conf', "shared_preload_libraries = '$preload'");
	$node->restart;
	my $name = $preload ? 'preloaded' : 'not preloaded';
	my $is_shared = $preload || $node->pg_version >= 17;
	my $stats = 'SELECT scope, requests FROM hrflow_embed_stats';

	$_->reset foreach $api, $second;
	is( said('one', "SELECT status FROM hrflow_profile_embeddings('acme', '{a,b}'); $stats;"),
		"ok\nok\n" . ($is_shared ? 'server' : 'session') . '|2',
		"$name: a batch works in a database");
	is( said('two', "SELECT status FROM hrflow_profile_embeddings('acme', '{a,b,c}'); $stats;"),
		"ok\nok\nok\n" . ($is_shared ? 'server|5' : 'session|3'),
		"$name: a batch works in another database");
	is(scalar($api->log) . ' ' . scalar($second->log),
		'2 3', "$name: each database uses its own base_url");
	is( said('one', "SET $force = on; SHOW hrflow_embed.base_url;", role => 'plain') =~
		  /^\Q$base_url{one}\E/ ? 1 : 0,
		1,
		"$name: SHOW gives the base_url of the database");
	is(said('postgres', 'SHOW shared_preload_libraries;'),
		$preload, "$name: SHOW gives shared_preload_libraries");

	# A request sent in one database counts in all databases, if they share memory and
	# use the same account.
	$node->safe_psql(
		'postgres',
		q{LOAD 'hrflow_embed'; ALTER SYSTEM SET hrflow_embed.max_requests_per_minute = 1;
			SELECT pg_reload_conf()}
	);
	$node->poll_query_until('postgres',
		q{SELECT current_setting('hrflow_embed.max_requests_per_minute', true) = '1'});
	my $burst = q{SET client_min_messages = error;
		SELECT count(*) FILTER (WHERE status = 'ok')
		FROM hrflow_profile_embeddings('acme', '{r1,r2,r3,r4,r5,r6}')};
	my $limits = "SET hrflow_embed.base_url = '$base_url{one}'; SET hrflow_embed.batch_timeout";
	my $first = said('one', "$limits = '4s'; $burst;");
	my $then = said('two', "$limits = '" . ($is_shared ? 2 : 4) . "s'; $burst;");

	is( "$first $then",
		$is_shared ? '1 0' : '1 1',
		"$name: the rate limit is the " . ($is_shared ? "server's" : "session's"));
	$node->safe_psql(
		'postgres',
		q{LOAD 'hrflow_embed'; ALTER SYSTEM RESET hrflow_embed.max_requests_per_minute;
			SELECT pg_reload_conf()}
	);
}
$node->stop;
is( scalar(
		grep { /PANIC|terminated by signal/ } split /\n/,
		PostgreSQL::Test::Utils::slurp_file($node->logfile)),
	0,
	'no backend has crashed');

done_testing();
