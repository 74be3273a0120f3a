# The SQL of the README and of docs runs as it stands there, against a stand-in,
# as a superuser would run it from its first block to its last.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use Hrflow::Node;
use Hrflow::StandIn;
use PostgreSQL::Test::Utils ();
use Test::More;

my $root = dirname(__FILE__) . '/../..';
my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('readme', $api, link_hosts => '127.0.0.1');

# What the README takes for granted: candidates, a role, the key's file.
$node->safe_psql(
	'postgres', q{
	DROP EXTENSION hrflow_embed;
	CREATE TABLE candidate (name text, hrflow_id text);
	INSERT INTO candidate VALUES ('Ada', 'nurse-1'), ('Bob', 'welder-1'), ('Cleo', 'nurse-2'),
		('Dan', NULL);
	CREATE ROLE recruiter});
my $has_pgvector = $node->safe_psql('postgres',
	q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});
$node->safe_psql('postgres', 'CREATE EXTENSION vector') if $has_pgvector;

my $has_pg_cron = 0;

sub run_blocks
{
	my ($name, @blocks) = @_;

	foreach my $block (@blocks)
	{
		my ($title) = $block =~ /^(\S.*)$/m;
		my $key_file = $node->key_file;
		my ($out, $err);

		SKIP:
		{
			skip 'pgvector is not to be had', 1
			  if !$has_pgvector && $block =~ /\bvector\(/;
			skip 'pg_cron is not in this database', 1
			  if !$has_pg_cron && $block =~ /hrflow_schedule/;
			$block =~ s{/etc/postgresql/hrflow_api_key}{$key_file};
			$block =~ s/SOURCE_ID/acme/g;
			$block =~ s/PROFILE_ID/nurse-9/g;
			my $status = $node->psql('postgres', $block, stdout => \$out, stderr => \$err);
			$err =~ s/^.*INFO:.*\n?//mg;
			is("$status $err", '0 ', "$name: $title");
			note($out);
		}
	}
	return;
}

sub blocks_of
{
	my ($file) = @_;

	return PostgreSQL::Test::Utils::slurp_file("$root/$file") =~ /^```sql\n(.*?)^```/msg;
}

my @blocks = blocks_of('README.md');
cmp_ok(scalar(@blocks), '>=', 5, 'the README has SQL');
cmp_ok(-s "$root/README.md", '<=', 10_000, 'the README has at most 10 kB');

run_blocks('README', @blocks);
is( $node->safe_psql(
		'postgres', 'SELECT count(*) FROM candidate WHERE cardinality(embedding) = 1024'),
	'3',
	"the README's UPDATE stores a vector of every candidate that has an identifier");
is( $node->safe_psql(
		'postgres', q{
		SELECT count(*)
		FROM candidate c JOIN candidate_embedding e ON e.profile_id = c.hrflow_id
		WHERE e.section = 'profile' AND e.vector::real[] = c.embedding}),
	'3',
	"the vectors that the README's UPDATE stores are those of the profiles, not of their skills");
is( $node->safe_psql(
		'postgres', q{
		SET ROLE recruiter;
		SELECT count(hrflow_profile_embedding('acme', hrflow_id)) FROM candidate}),
	'3',
	"the README's GRANTs let the recruiter run its first query");

# Its drawing has every file: "store.c, store.h" and "refresh.c, .h" name two.
my ($drawing) =
  PostgreSQL::Test::Utils::slurp_file("$root/docs/hacking.md") =~ /^## How it works$(.*?)^## /ms;
$drawing =~ s/\b(\w+)\.c, \.h\b/$1.c, $1.h/g;
is(join(' ', grep { $drawing !~ /\b\Q$_\E\b/ } map { s{.*/}{}r } glob("$root/src/{,*/}*.[ch]")),
	'', 'every file of src is named in the drawing of docs/hacking.md');

foreach my $file ('docs/operation.md', 'docs/refresh.md', 'docs/ranking.md', 'docs/read_ahead.md')
{
	@blocks = blocks_of($file);
	cmp_ok(scalar(@blocks), '>=', 1, "$file has SQL");
	run_blocks($file, @blocks);
}

done_testing();
