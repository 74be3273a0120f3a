# The grants for three roles in docs/refresh.md are exactly those with which
# test/sql/roles.sql tests what each role may do, and they include every function that the
# examples of the pages call.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use Hrflow::Node;
use Hrflow::StandIn;
use PostgreSQL::Test::Utils ();
use Test::More;

my $root = dirname(__FILE__) . '/../..';

sub read_file { return PostgreSQL::Test::Utils::slurp_file("$root/$_[0]"); }

# Return the statements that create roles and grant them privileges, one per line.
sub grants_of
{
	my ($sql) = @_;

	return join("\n", map { s/\s+/ /gr } $sql =~ /^((?:CREATE ROLE|GRANT)\b[^;]*;)/msg) . "\n";
}

# Return the names of the functions and procedures that the code blocks of a page call.
sub functions_called
{
	my ($page) = @_;
	my %called;

	foreach my $block (read_file($page) =~ /^```\w*\n(.*?)^```/msg)
	{
		$block =~ s/^GRANT\b[^;]*;//mg;
		$called{$_} = 1 foreach $block =~ /\b(hrflow_\w+)\(/g;
	}
	return sort keys %called;
}

my ($section) = read_file('docs/refresh.md') =~ /^### Three roles$(.*?)^## /ms;
my ($block) = $section =~ /^```sql\n(.*?)^```/ms;

# What follows this comment grants privileges that the roles should not have.
my ($tested) = read_file('test/sql/roles.sql') =~ /\A(.*?)^-- Others must become the owner/ms;

is( grants_of($tested),
	grants_of($block =~ s/\btalent_(?=owner|reader|operator)/regress_hrflow_/gr),
	'test/sql/roles.sql tests exactly the grants of docs/refresh.md');

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('roles', $api);
$node->safe_psql(
	'postgres', qq{
	CREATE SCHEMA talent;
	SELECT hrflow_create_store('talent.embedding');
	$block});

# Return the functions that none of these roles may execute.
sub refused
{
	my ($roles, @functions) = @_;

	return $node->safe_psql(
		'postgres', qq{
		SELECT proname FROM pg_proc, unnest('{$roles}'::text[]) role
		WHERE proname = ANY ('{@{[join(',', @functions)]}}')
		GROUP BY proname HAVING NOT bool_or(has_function_privilege(role, oid, 'EXECUTE'))
		ORDER BY proname});
}

my @of_stores = functions_called('docs/refresh.md');
cmp_ok(scalar(@of_stores), '>=', 15, 'docs/refresh.md calls at least 15 functions');
is(refused('talent_owner', @of_stores),
	'', 'the owner may execute every function that docs/refresh.md calls');

foreach my $page ('README.md', map { "docs/$_.md" } qw(recipes ranking read_ahead troubleshooting))
{
	my @called = functions_called($page);

	cmp_ok(scalar(@called), '>=', 1, "$page calls functions");
	is(refused('talent_owner,talent_operator', @called),
		'', "the owner or an operator may execute every function that $page calls");
}

$node->stop;
done_testing();
