# The SQL of the README and of docs works as printed, executed by a superuser from
# the first block of each page to the last, and recipes have the promised results.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use Hrflow::Node;
use Hrflow::StandIn;
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

#
# Checks of the results of blocks.  A block is found by a pattern.  "before" is
# executed before the block, its unaligned output must match "prints", with the
# label "name", and finally "then" is called.
#
my $element = qr/(?:(?:Ada|Bob|Cleo)\|ok\|\{.*|\|invalid_request\|\|.+)/;
my $begins_with_nurses = qr/\A(nurse \d+\|.*\n){9}nurse \d+\|.*\z/;
my %looks = (
	'README.md' => [
		[   qr/^ALTER SYSTEM/m,
			prints => qr/"api_key_permission": "read"/,
			name => 'hrflow_auth() prints the permissions of the key' ],
		[   qr/^GRANT EXECUTE/,
			then => sub {
				is( as_recruiter(
						"SELECT count(hrflow_profile_embedding('acme', hrflow_id)) FROM candidate"),
					'3',
					"a recruiter can run the first query after the README's GRANTs");
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
			before => q{UPDATE candidate SET embedding = NULL WHERE name <> 'Ada'},
			then => sub {
				is(value_of($right_vectors),
					'3', 'the recipe for chunks stores the vectors that were missing');
				is( join(' ',
						sort map { $_->{query} =~ /profile_id=([^&]*)/ } requests_of_profiles()),
					'nurse-2 welder-1',
					'the recipe for chunks requests no profile whose vector is stored');
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
	'docs/read_ahead.md' => [],
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

	foreach my $look (@looks)
	{
		value_of($look->{before}) if $look->{before};
	}
	$api->reset;
	$block =~ s{/etc/postgresql/hrflow_api_key_2}{$other_key_file};
	$block =~ s{/etc/postgresql/hrflow_api_key}{$key_file};
	$block =~ s/OTHER_SOURCE/other/g;
	$block =~ s/SOURCE_ID/acme/g;
	$block =~ s/PROFILE_ID/nurse-9/g;
	$block =~ s/JOB_ID/nurse-job/g;
	my $status = $node->psql('postgres', $block, stdout => \my $out, stderr => \my $err);
	$err =~ s/^.*INFO:.*\n?//mg;
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
