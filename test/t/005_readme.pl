# The SQL of the README and of docs works as printed, executed by a superuser from
# the first block of each page to the last, and recipes have the promised results.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use Hrflow::Node;
use Hrflow::StandIn;
use IPC::Run                ();
use PostgreSQL::Test::Utils ();
use Test::More;

my $root = dirname(__FILE__) . '/../..';
my $api = Hrflow::StandIn->new;
my ($share) = PostgreSQL::Test::Utils::run_command([ 'pg_config', '--sharedir' ]);
my $has_pg_cron = -e "$share/extension/pg_cron.control";
my $has_pgvector = -e "$share/extension/vector.control";
my $node = Hrflow::Node->new(
	'readme', $api,
	link_hosts => '127.0.0.1',
	$has_pg_cron
	? ( shared_preload_libraries => 'pg_cron',
		'cron.database_name' => 'postgres',
		'cron.use_background_workers' => 'on')
	: ());

sub value_of { return $node->safe_psql('postgres', $_[0]); }

# Create what the README assumes: candidates, a role, and the file of the key.
value_of(
	q{DROP EXTENSION hrflow_embed;
	CREATE TABLE candidate (name text, city text, hrflow_id text);
	INSERT INTO candidate VALUES ('Ada', 'Paris', 'nurse-1'), ('Bob', 'Lyon', 'welder-1'),
		('Cleo', 'Paris', 'nurse-2'), ('Dan', 'Lille', NULL);
	CREATE ROLE recruiter LOGIN});
value_of('CREATE EXTENSION vector')  if $has_pgvector;
value_of('CREATE EXTENSION pg_cron') if $has_pg_cron;

# The key of another account, which the stand-in does not accept
my $other_key_file = $node->key_file . '2';
PostgreSQL::Test::Utils::append_to_file($other_key_file, "askr_fedcba9876543210fedcba9876543210\n");
chmod 0600, $other_key_file or die;

# Count candidates that have the vectors of their profiles, rather than skills
my $right_vectors = q{
	SELECT count(*) FROM candidate c JOIN candidate_embedding e ON e.profile_id = c.hrflow_id
	WHERE e.section = 'profile' AND e.vector::real[] = c.embedding};

sub requests_of_profiles
{
	return grep { $_->{path} =~ m{/profile/embedding} } $api->log;
}

# Run a statement as the role "recruiter".
sub as_recruiter
{
	my ($sql) = @_;

	$node->psql(
		'postgres', $sql,
		stdout => \my $out,
		stderr => \my $err,
		extra_params => [ '-U', 'recruiter' ]);
	return "$out$err";
}

# Run the recipe for chunks, with one candidate each, until the key is refused in the third
# chunk.  The profile of the first candidate does not exist.
sub interrupt_chunks
{
	my ($block) = @_;

	value_of(
		q{UPDATE candidate SET embedding = NULL WHERE name <> 'Ada';
		INSERT INTO candidate (name, hrflow_id) VALUES ('Eve', 'fault:status=404')});
	like($block, qr/LIMIT 1\)/, 'the chunks of the recipe for chunks can be made smaller');
	$api->script('own', count => 2);
	$api->script('status=401');
	$node->psql('postgres', $block, stderr => \my $err);
	like($err, qr/refused the API key/, 'the recipe for chunks ends if the key is refused');
	is(value_of('SELECT name FROM candidate WHERE embedding IS NOT NULL ORDER BY 1'),
		"Ada\nCleo", 'the recipe for chunks keeps the vectors of the chunks before an error');

	# An endless loop would be ended by the second step of this script.
	$api->reset;
	$api->script('own', count => 2);
	$api->script('status=401');
	return;
}

#
# Checks of the results of blocks.  A block is found by a pattern.  "before" is
# executed before the block, or called with it if it is a function; "edit" changes the
# block.  Its unaligned output must match "prints", with the label "name", its messages
# must match "warns", and finally "then" is called.
#
my $element = qr/(?:(?:Ada|Bob|Cleo)\|ok\|\{.*|\|invalid_request\|\|.+)/;
my $refresh_talent = q{CALL hrflow_refresh('talent.embedding', '{"profile": 1, "skills": 1}')};
my $begins_with_nurses = qr/\A(nurse \d+\|.*\n){9}nurse \d+\|.*\z/;
my %looks = (
	'README.md' => [
		[   qr/^ALTER SYSTEM/m,
			prints => qr/"api_key_permission": "read"/,
			name => 'hrflow_auth() prints the permissions of the key' ],
		[   qr/LIMIT 3/,
			prints => qr/\A(?:(?:nurse-[12]|welder-1)\|profile\|ok\|1024\n?){3}\z/,
			name => 'the first query returns the vectors of three candidates' ],
		[   qr/^GRANT EXECUTE/,
			then => sub {
				is( as_recruiter(
						"SELECT count(hrflow_profile_embedding('acme', hrflow_id)) FROM candidate"),
					'3',
					"a recruiter can run the README's query for links after its GRANTs");
			}
		],
		[   qr/'PROFILE_ID', '\{"profile": 1, "skills": 1\}'/,
			prints => qr/\A\{"skills": "http.*", "profile": "http.*"\}\z/,
			name => 'the request for one profile returns the requested sections' ],
		[   qr/^WITH .* hrflow_profile_embeddings/ms,
			prints => qr/\A1\|$element\n2\|$element\n3\|$element\n4\|$element\z/,
			name => 'the batch of the README returns a status for each element' ],
		[   qr/^SELECT hrflow_create_store/m,
			then => sub {
				is(value_of($right_vectors),
					'3', "the README's UPDATE stores the vectors of profiles, not of skills");
			}
		],
		[   qr/^SELECT hrflow_schedule/m,
			then => sub {
				is( value_of(
						'SELECT schedule, active FROM cron.job;
						SELECT cron.unschedule(jobid) FROM cron.job'
					),
					"* * * * *|t\nt",
					"the README's call of hrflow_schedule() creates one job");
			}
		],
		[   qr/hrflow_match/,
			prints => qr/\A(Ada\|0\.\d+\nCleo|Cleo\|0\.\d+\nAda)\|0\.\d+\z/,
			name => 'the ranking under a condition returns the candidates in Paris' ] ],
	'docs/operation.md' => [
		[   qr/hrflow_cosine_similarity/,
			prints => qr/\AAda\|(1|0\.99999\d*)\nCleo\|0\.\d+\nBob\|-?0\.\d+\z/,
			name => 'the cosine similarity finds that another nurse is nearest to a nurse' ],
		[   qr/<=>/,
			prints => qr/\Anurse-[12]\nnurse-[12]\nwelder-1\z/,
			name => "the query with pgvector finds that nurses are nearest to a nurse" ] ],
	'docs/recipes.md' => [
		[   qr/purge cron/,
			then => sub {
				is( value_of(
						q{DELETE FROM cron.job_run_details;
						INSERT INTO cron.job_run_details (runid, status, start_time, end_time)
							VALUES (1, 'succeeded', now() - interval '9 days', now() - interval '9 days'),
							(2, 'failed', NULL, NULL), (3, 'running', now() - interval '9 days', NULL),
							(4, 'succeeded', now() - interval '9 days', now()),
							(5, 'failed', now() - interval '8 days', now() - interval '8 days'),
							(6, 'failed', NULL, NULL), (7, 'succeeded', now(), now());
						DO 'BEGIN EXECUTE (SELECT command FROM cron.job); END';
						SELECT string_agg(runid::text, ' ' ORDER BY runid) FROM cron.job_run_details}
					),
					'3 4 6 7',
					'the recipe for pg_cron purges what has ended, with or without a time');
				is( value_of(
						'SELECT jobname FROM cron.job; SELECT cron.unschedule(jobid) FROM cron.job'
					),
					"purge cron.job_run_details\nt",
					'the recipe for pg_cron creates a job that purges its log');
			}
		],
		[   qr/profile_references/,
			prints => qr/\Anurse-7\|ok\|1024\z/,
			name => 'the recipe for ids finds a profile by its reference' ],
		[   qr/^DO/,
			edit => sub { $_[0] =~ s/LIMIT 1000/LIMIT 1/r },
			before => \&interrupt_chunks,
			warns =>
			  qr/\A.*WARNING:  none of the profiles in the batch were found.*\nDETAIL:.*\nHINT:.*\n/,
			then => sub {
				is(value_of($right_vectors),
					'3', 'the recipe for chunks stores the vectors that were missing');
				is( join(' ',
						sort map { $_->{query} =~ /profile_id=([^&]*)/ } requests_of_profiles()),
					'fault%3Astatus%3D404 welder-1',
					'the recipe for chunks requests each profile without a vector once');
				value_of(q{DELETE FROM candidate WHERE name = 'Eve'});
			}
		],
		[   qr/LATERAL/,
			before => 'UPDATE candidate SET embedding = NULL',
			then => sub {
				is(value_of($right_vectors),
					'3', 'the recipe for several sources stores all vectors');
				is( join(' ',
						sort map { $_->{query} =~ /source_id=([^&]*)/ } requests_of_profiles()),
					'acme acme other',
					'the recipe for several sources requests each profile from its source');
			}
		],
		[   qr/source_column/,
			then => sub {
				is( value_of(
						'SELECT source_id, profile_id FROM source_embedding ORDER BY profile_id'),
					"acme|nurse-1\nacme|nurse-2\nother|welder-1",
					'the recipe for a source column tracks each profile in its source');
			}
		],
		[   qr/VIEW candidate_link/,
			prints => qr/\AAda\|http\S+\z/,
			name => 'the view over single calls returns the link of the requested row',
			then => sub {
				is(scalar(requests_of_profiles()), 1,
					'the view over single calls sends a request only for the row that is returned');
			}
		],
		[   qr/VIEW candidate_profile_vector/,
			then => sub {
				is(value_of('SELECT count(*) FROM candidate_profile_vector'),
					'3', 'the view over the store returns the vectors of the profiles');
			}
		],
		[   qr/batch_timeout/,
			prints => qr/\Ainvalid_request\|1\nok\|3\z/,
			name => 'a batch that ends within batch_timeout returns all rows' ],
		[   qr/^ALTER ROLE recruiter/,
			then => sub {
				like(
					as_recruiter("SELECT hrflow_profile_embedding('acme', 'nurse-1')"),
					qr/HrFlow API refused the API key/,
					"sessions of a role with its own key file use that key");
				like(value_of("SELECT hrflow_profile_embedding('acme', 'nurse-1')"),
					qr/^\{/, "sessions of other roles use the key of the configuration");
			}
		] ],
	'docs/troubleshooting.md' => [
		[   qr/GROUP BY status/,
			prints => qr/\Aok\|200\|\|3\ninvalid_request\|\|.+\|1\z/,
			name => 'the query for statuses counts those of a batch' ] ],
	'docs/refresh.md' => [
		[   qr/CREATE TABLE talent.candidate/,
			prints => qr/^(Ada|Bob)\|profile\|.*\n(?!\1)(?:Ada|Bob)\|profile\|/m,
			name => 'the first store of docs/refresh.md has the vectors of the candidates' ],
		[   qr/^CREATE TABLE talent\.opening/m,
			then => sub {
				is( value_of(
						q{INSERT INTO talent.opening VALUES ('Nurse', 'nurse-job');
						CALL hrflow_refresh('talent.opening_embedding');
						SELECT job_id, cardinality(vector::real[]) FROM talent.opening_embedding}
					),
					'nurse-job|1024',
					'the table of the recipe for jobs feeds its store');
			}
		],
		[   qr/^CREATE TABLE talent\.posting/m,
			then => sub {
				is( value_of(
						q{INSERT INTO talent.posting VALUES (1, 'Nurse', 'Night shifts');
						CALL hrflow_refresh('talent.posting_embedding');
						SELECT key, cardinality(vector::real[]) FROM talent.posting_embedding}
					),
					'1|1024',
					'the table of the recipe for texts feeds its store');
			}
		],
		[   qr/^SELECT source_id, profile_id, due_at, attempts/m,
			before => q{UPDATE talent.embedding_profile SET state = 'due', attempts = 1,
				due_at = now() + interval '1 hour', last_error = 'timeout'
				WHERE profile_id = 'nurse-1'},
			prints => qr/\Aacme\|nurse-1\|[^|]+\|1\|timeout\z/,
			name => 'the query for waiting profiles finds one that will be retried',
			then => sub {
				value_of("UPDATE talent.embedding_profile SET due_at = now(); $refresh_talent");
			}
		],
		[   qr/^SELECT last_run, last_run_status/m,
			prints => qr/\A[^|]+\|succeeded\|\|.*\n(?:[^|]+\|[^|]+\|done\|\d\|\d\n?)+\z/,
			name => 'the queries for the history of a store print its runs' ],
		[   qr/^SELECT put_aside FROM/m,
			before => q{WITH v AS (DELETE FROM talent.embedding WHERE profile_id = 'nurse-1'
					RETURNING *)
				INSERT INTO talent.embedding_aside
					(source_id, profile_id, section, item, vector, fetched_at, reason)
				SELECT source_id, profile_id, section, item, vector::real[], fetched_at, 'no vector'
				FROM v},
			prints => qr/\A1\n1\n0\z/,
			name => 'vectors that were put aside are counted, and restored once' ],
		[   qr/ALTER COLUMN delete_at SET DEFAULT now\(\);/,
			before => q{INSERT INTO talent.embedding_aside
					(source_id, profile_id, section, item, vector, fetched_at, reason)
				SELECT source_id, profile_id, section, item, vector::real[], fetched_at, 'gone'
				FROM talent.embedding},
			then => sub {
				is( value_of(
						q{SELECT DISTINCT delete_at FROM talent.embedding_aside;
						UPDATE talent.embedding_aside SET delete_at = DEFAULT;
						SELECT bool_and(delete_at <= now()) FROM talent.embedding_aside;
						TRUNCATE talent.embedding_aside}
					),
					"infinity\nt",
					'the statements for delays keep vectors, and let others be deleted at once');
			}
		],
		[   qr/^SELECT source_id, hrflow_untrack\(/m,
			before => q{INSERT INTO talent.embedding
				SELECT source_id, 'orphan-1', section, item, vector FROM talent.embedding
				WHERE profile_id = 'nurse-1'},
			prints => qr/\Aacme\|0\z/,
			name => 'hrflow_untrack() erases vectors of a profile that is not tracked',
			then => sub {
				is( value_of(
						q{SELECT count(*) FROM talent.embedding WHERE profile_id = 'orphan-1'}),
					'0',
					'the statement for vectors of untracked profiles erases them');
			}
		],
		[   qr/^CREATE TEMP TABLE staging/m,
			prints => qr/\A2\z/,
			name => 'the recipe for loading all rows anew marks those that have changed',
			then => sub {
				is( value_of(
						q{SELECT count(cv_updated_at), (SELECT count(*) FROM talent.embedding)
						FROM talent.candidate}
					),
					'2|4',
					'the recipe for loading all rows anew keeps their vectors');
			}
		],
		[   qr/ALTER COLUMN cv_updated_at TYPE timestamp/,
			then => sub {
				is( value_of(
						q{SELECT DISTINCT pg_typeof(cv_updated_at) FROM talent.candidate;
						SELECT count(*) FROM pg_trigger WHERE tgrelid = 'talent.candidate'::regclass}
					),
					"timestamp without time zone\n4",
					'the recipe for the type of a column changes it, and re-creates the triggers');
			}
		],
		[   qr/^SELECT erased_at, reason, vectors/m,
			before => q{DELETE FROM talent.candidate WHERE hrflow_id = 'nurse-1'},
			prints => qr/\A[^|]+\|\w+\|2\n0\|0\|0\z/,
			name => "the queries for a person's data find that it was erased",
			then => sub {
				value_of(
					"INSERT INTO talent.candidate (name, hrflow_id) VALUES ('Ada', 'nurse-1');
					$refresh_talent");
			}
		],
		[   qr/^DELETE FROM talent\.embedding_erased/m,
			before => q{UPDATE talent.embedding_erased SET erased_at = now() - interval '4 years'},
			then => sub {
				is(value_of('SELECT count(*) FROM talent.embedding_erased'),
					'0', 'the statement for the record of erasures deletes old entries');
			}
		],
		[   qr/^CREATE ROLE talent_reader/m,
			then => sub {
				is( value_of(
						q{SET ROLE talent_reader;
						SELECT count(*) FROM hrflow_match('talent.embedding',
							(SELECT vector::real[] FROM talent.embedding
							WHERE profile_id = 'nurse-1' AND section = 'profile'))}
					),
					'2',
					'the reader of the recipe for roles can rank candidates');
			}
		],
		[   qr/last_error LIKE 'Could not be stored/,
			before => q{UPDATE talent.embedding_profile SET state = 'due',
				due_at = now() + interval '1 day', lease_until = now() + interval '2 hours',
				last_error = 'Could not be stored: x' WHERE profile_id = 'nurse-1'},
			then => sub {
				is( value_of(
						q{SELECT due_at <= now(), lease_until IS NULL FROM talent.embedding_profile
						WHERE profile_id = 'nurse-1'} . "; $refresh_talent"),
					't|t',
					'the statements for profiles that could not be stored make them due');
			}
		],
		[   qr/^SELECT account, dimension, count/m,
			prints => qr/\A[0-9a-f]{8}\|1024\|2\|[^|\n]+\z/,
			name => 'the query for accounts and dimensions finds one of each' ],
		[   qr/^SELECT hrflow_switch_model/m,
			before => q{SELECT hrflow_change_model('talent.embedding')
				WHERE to_regclass('talent.embedding_next') IS NULL;
				SELECT hrflow_track('talent.embedding_next', 'acme', '{cook-1}');
				CALL hrflow_refresh('talent.embedding_next', '{"profile": 1, "skills": 1}')},
			prints => qr/\At\z/,
			name => 'the next store of the recipe for another model replaces the first',
			then => sub {
				is( value_of(
						q{SELECT count(*), to_regclass('talent.embedding_next') IS NULL
						FROM talent.embedding}
					),
					'6|t',
					'the new vectors of the recipe for another model have the name of the old ones'
				);
			}
		],
		[   qr/^TRUNCATE talent\.embedding,/m,
			then => sub {
				is(value_of("$refresh_talent; SELECT count(*) FROM talent.embedding"),
					'6', 'all vectors are fetched again after the recipe without a second store');
			}
		],
		[   qr/FROM hrflow_refresh_estimate/,
			prints => qr/\A0\|0\|0\|[\d:.]+(?:\n\d+\|\d+\|\d+\|[\d:.]+){30}\z/,
			name => 'the estimate for 30 days finds nothing to be requested today' ],
		[   qr/^SELECT hrflow_schedule\('talent.embedding_next'/m,
			then => sub {
				is( value_of(
						'SELECT jobname FROM cron.job; SELECT cron.unschedule(jobid) FROM cron.job'
					),
					"hrflow_refresh postgres.talent.embedding_next\nt",
					'the recipe for another model leaves a job for the new store only');
			}
		],
		[   qr/^SELECT hrflow_schedule\('talent.embedding',/m,
			then => sub {
				is( value_of(
						'SELECT jobname FROM cron.job; SELECT cron.unschedule(jobid) FROM cron.job'
					),
					"hrflow_refresh postgres.talent.embedding\nt",
					"the call of hrflow_schedule() in docs/refresh.md creates the job of the store"
				);
			}
		],
		[   qr/^SELECT tracked, due/,
			prints => qr/\A2\|0\|0\|2\|0\|0\|0\|\n0\z/,
			name => 'hrflow_store_status() shows that all profiles were fetched' ] ],
	'docs/ranking.md' => [
		[   qr/paediatrics/,
			prints => qr/\A(?:acme\|nurse-\d+\|profile\|0\|0\.\d+\n?){5}\z/,
			name => 'the five best for a text about nurses are nurses' ],
		[   qr/^CREATE TABLE agency\.posting/m,
			prints => qr/\nNurse\|nurse \d+\|0\.\d+\nWelder\|welder \d+\|0\.\d+\z/,
			name => 'the best candidate for the text of a posting has its occupation' ],
		[   qr/\ASELECT c.name, m.similarity\n.*hrflow_job_vector\('nurse-job'\)\)\) m/,
			prints => $begins_with_nurses,
			name => 'the ten best for the job of a nurse are nurses' ],
		[   qr/ARRAY\(SELECT hrflow_id FROM agency.candidate WHERE city/,
			prints => qr/\A(?:nurse (?:3|6|9|[1-5]\d)\|0\.\d+\n?){10}\z/,
			name => 'ten nurses are found among the candidates in Paris' ],
		[   qr/WHERE job_id = 'nurse-job'/,
			prints => $begins_with_nurses,
			name => 'the ten best candidates for the stored vector of a job for nurses are nurses'
		],
		[   qr/hrflow_match\('agency.opening_embedding'/,
			prints => qr/\AWelder\|0\.\d+\n(?:(?:Night nurse|Baker)\|-?0\.\d+\n?){2}\z/,
			name => 'the best job for a welder is that of a welder' ],
		[   qr/WHERE c.hrflow_id <> 'welder-2'/,
			prints => qr/\A(?:welder (?!2\|)\d+\|0\.\d+\n?){5}\z/,
			name => 'the five candidates most similar to a welder are welders' ],
		[   qr/hrflow_match_all\('agency.opening_embedding', 'agency.embedding', 3\)/,
			prints =>
			  qr/\A(?:Baker\|cook.*\n){3}(?:Night nurse\|nurse.*\n){3}(?:Welder\|welder.*\n?){3}\z/,
			name => 'the three best candidates for each job have its occupation' ],
		[   qr/hrflow_match_all\('agency.embedding', 'agency.embedding'/,
			before => q{UPDATE agency.embedding e SET vector = o.vector FROM agency.embedding o
				WHERE e.profile_id IN ('nurse-2', 'nurse-3') AND o.profile_id = 'nurse-1'
				AND e.section = 'profile' AND o.section = 'profile';
				INSERT INTO agency.embedding
				SELECT 'other', profile_id, section, item, vector FROM agency.embedding
				WHERE profile_id = 'nurse-1' AND section = 'profile'},
			prints => qr/\A(?:\{acme,nurse-[123]\}\|\{(?:acme,nurse-[23]|other,nurse-1)\}\|
				(?:1|0\.99\d+)\n?){6}\z/x,
			name => 'all pairs of a candidate who exists four times are found',
			then => sub {
				value_of(q{DELETE FROM agency.embedding WHERE source_id = 'other'});
			}
		],
		[   qr/CROSS JOIN LATERAL hrflow_match\(/,
			prints => qr/\A(?:(?:Baker\|cook|Night nurse\|nurse|Welder\|welder)-.*\n?){9}\z/,
			name => 'a query for each job finds three candidates with its occupation' ],
		[   qr/hrflow_match_weighted/,
			prints => $begins_with_nurses,
			name => 'the ten best by several sections are nurses' ],
		[   qr/FULL JOIN/,
			prints => qr/\A(?:nurse-\d+\|0\.\d+\n?){10}\z/,
			name => 'the ten best by both ranks are nurses' ],
		[   qr/ORDER BY hrflow_vector_similarity/,
			prints => qr/\A(?:nurse \d+\n?){10}\z/,
			name => 'the ten nearest in plain SQL are nurses' ],
		[   qr/\ASELECT c.name\n.*ORDER BY e.vector::vector/s,
			prints => qr/\A(?:nurse \d+\n?){10}\z/,
			name => 'the ten nearest by the operator of pgvector are nurses' ],
		[   qr/hnsw.iterative_scan/,
			prints => qr/\A(?:nurse \d+\n?){10}\z/,
			name => 'the ten nearest in Paris by the operator of pgvector are nurses' ] ],
	'docs/read_ahead.md' => [
		[   qr/^CREATE TABLE name_vector/m,
			before => 'UPDATE candidate SET embedding = NULL',
			prints =>
			  qr/\AAda\|\{.*\}\nBob\|\{.*\}\nCleo\|\{.*\}\nDan\|\n(?:(?:Ada|Bob|Cleo)\|\w+\|\{.*\n?)+\z/,
			name => 'queries that are read ahead return links and vectors',
			then => sub {
				is(value_of("SELECT count(vector) FROM name_vector; $right_vectors"),
					"4\n3", 'statements that are read ahead store the right vectors');
			}
		],
		[   qr/^DO/,
			then => sub {
				is(scalar(requests_of_profiles()),
					'3', 'the block that is read ahead requests each profile once');
			}
		] ],
	'docs/scaling.md' => [
		[   qr/^UPDATE candidate/m,
			before => 'UPDATE candidate SET embedding = NULL',
			then => sub {
				is(value_of($right_vectors),
					'3', 'the batch joined with a table stores its vectors');
			}
		] ]);

# Run a block, and check that it succeeds with no messages other than INFO.
sub run_block
{
	my ($block, $name, @looks) = @_;
	my ($title) = $block =~ /^(\S.*)$/m;
	my $key_file = $node->key_file;

	$block =~ s{/etc/postgresql/hrflow_api_key_2}{$other_key_file};
	$block =~ s{/etc/postgresql/hrflow_api_key}{$key_file};
	$block =~ s/OTHER_SOURCE/other/g;
	$block =~ s/SOURCE_ID/acme/g;
	$block =~ s/PROFILE_ID/nurse-9/g;
	$block =~ s/JOB_ID/nurse-job/g;
	$api->reset;
	foreach my $look (@looks)
	{
		my $before = $look->{before} or next;

		$block = $look->{edit}->($block) if $look->{edit};
		if (ref $before) { $before->($block); }
		else             { value_of($before); }
	}
	my $status = $node->psql('postgres', $block, stdout => \my $out, stderr => \my $err);
	$err =~ s/^.*INFO:.*\n?//mg;
	foreach my $warns (grep { defined } map { $_->{warns} } @looks)
	{
		ok($err =~ s/$warns//, "$name: $title: the WARNING is printed");
	}
	is("$status $err", '0 ', "$name: $title");

	foreach my $look (@looks)
	{
		like($out, $look->{prints}, $look->{name}) if $look->{prints};
		$look->{then}->()                          if $look->{then};
	}
	return;
}

foreach my $file ('README.md',
	map { "docs/$_.md" } qw(operation recipes scaling troubleshooting refresh ranking read_ahead))
{
	my @blocks = PostgreSQL::Test::Utils::slurp_file("$root/$file") =~ /^```sql\n(.*?)^```/msg;
	my @looks = @{ $looks{$file} };
	my %used;

	cmp_ok(scalar(@blocks), '>=', 1, "$file contains blocks of SQL");
	foreach my $block (@blocks)
	{
		my @numbers = grep { $block =~ $looks[$_][0] } 0 .. $#looks;

		@used{@numbers} = ();
		SKIP:
		{
			skip 'pgvector is not available', 1
			  if !$has_pgvector && $block =~ /\bvector\(|hnsw/;
			skip 'pg_cron is not available', 1
			  if !$has_pg_cron && $block =~ /SELECT (?:hrflow_|cron\.)schedule/;
			run_block($block, $file, map { my (undef, %look) = @{ $looks[$_] }; \%look } @numbers);
		}
	}
	is(scalar(keys %used), scalar(@looks), "$file contains every recipe whose result is checked");
}

SKIP:
{
	skip 'pgvector is not available', 2 unless $has_pgvector;

	my $ranking = PostgreSQL::Test::Utils::slurp_file("$root/docs/ranking.md");
	my ($index) = $ranking =~ /^(SELECT hrflow_index_statement\(.* \\gexec)$/m;
	my ($recalls) = $ranking =~ /^(SELECT hrflow_match_recall\(.*?)^```/ms;
	value_of($index);
	is( value_of(
			q{SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%agency.embedding USING hnsw%'}),
		'1',
		'the statement of docs/ranking.md creates an index');
	like(
		value_of($recalls),
		qr/\A(?:1|0\.9\d*)\n(?:1|0\.9\d*)\z/,
		'the recall of docs/ranking.md is near 1, also under a condition');
}

# Recipes that are not executed by psql, or not as printed
{
	my $recipes = PostgreSQL::Test::Utils::slurp_file("$root/docs/recipes.md");
	my ($name, $value) = $recipes =~ /^(PGAPPNAME)=(\w+)$/m;
	my ($crontab) = $recipes =~ /^\* \* \* \* \* +(psql .*)$/m;
	my $owner = value_of('SELECT current_user');
	local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, $name => $value);

	unlike($crontab, qr/%/, 'the entry for crontab has no character that cron would replace');
	$crontab =~ s/DATABASE/postgres/;
	$crontab =~ s/OWNER/$owner/;
	ok( IPC::Run::run(
			[ 'sh', '-c', $crontab ],
			'>', \my $out, '2>', \my $err,
			IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default)),
		'the entry for crontab succeeds');
	is("$out$err" =~ s/^INFO:.*\n//mgr, '', 'the entry for crontab prints nothing but INFO');

	my $started = Hrflow::StandIn->new;
	my $url = 'http://127.0.0.1:' . $started->http . '/v1';
	my ($settings) = $recipes =~ /^(ALTER SYSTEM SET hrflow_embed\.base_url .*?)^```/ms;
	value_of($settings =~ s/8080/$started->http/er);
	$node->poll_query_until('postgres', 'SHOW hrflow_embed.base_url', $url) or die;
	value_of('SELECT hrflow_auth()');
	is($started->stats->{requests},
		1, 'the recipe for the stand-in lets requests be sent to the stand-in');
}

cmp_ok(-s "$root/README.md", '<=', 10_000, 'README.md has at most 10 kB');

# The drawing contains every file.  "store.c, store.h" and "refresh.c, .h" name two.
my ($drawing) =
  PostgreSQL::Test::Utils::slurp_file("$root/docs/hacking.md") =~ /^## How it works$(.*?)^## /ms;
$drawing =~ s/\b(\w+)\.c, \.h\b/$1.c, $1.h/g;
is(join(' ', grep { $drawing !~ /\b\Q$_\E\b/ } map { s{.*/}{}r } glob("$root/src/{,*/}*.[ch]")),
	'', 'the drawing in docs/hacking.md names every file of src');

my $sources = join "\n", map { PostgreSQL::Test::Utils::slurp_file($_) } glob("$root/src/{,*/}*.c");
my %sql = map { $_ => 1 } qw(hrflow_refresh hrflow_match hrflow_track_table
  hrflow_profile_embedding hrflow_profile_vectors);
is(join(' ', grep { !$sql{$_} && $sources !~ /^\Q$_\E\(/m } $drawing =~ /\b(hrflow_\w+)\(\)/g),
	'', 'every function that the drawing in docs/hacking.md names exists');

# Links between pages
my @dead;
foreach my $file ('README.md', map { s{^\Q$root\E/}{}r } glob("$root/docs/*.md"))
{
	my $text = PostgreSQL::Test::Utils::slurp_file("$root/$file");

	while ($text =~ /\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)/g)
	{
		my ($path, $anchor) = ($1, $2);
		my $target = $path eq '' ? $file : $file =~ m{^docs/} ? "docs/$path" : $path;

		$target =~ s{docs/\.\./}{};
		if (!-e "$root/$target")
		{
			push @dead, "$file: $path";
			next;
		}
		next unless defined $anchor;
		my @anchors = map { lc s/[^\w\- ]//gr =~ s/ /-/gr }
		  PostgreSQL::Test::Utils::slurp_file("$root/$target") =~ /^#+ (.*)$/mg;
		push @dead, "$file: $path#$anchor" unless grep { $_ eq $anchor } @anchors;
	}
}
is(join("\n", @dead), '', 'links between pages lead to existing files and headings');

done_testing();
