# hrflow_match() and hrflow_match_weighted() return the same profiles as NumPy for
# random stores with ties, zero vectors, elements of 1e30 and 1e-30, mixed
# dimensions, several items, conditions and weights.  HRFLOW_SEED repeats a run;
# HRFLOW_CASES is the number of cases.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use Hrflow::Node;
use Hrflow::StandIn;
use IPC::Run ();
use JSON::PP;
use Test::More;

my $seed = $ENV{HRFLOW_SEED} // int rand 2**31;
my $ncases = $ENV{HRFLOW_CASES} // 90;

plan skip_all => 'NumPy is not available'
  unless eval { IPC::Run::run([ 'python3', '-c', 'import numpy' ], '>&', \my $output) };
note("HRFLOW_SEED=$seed HRFLOW_CASES=$ncases");

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('numpy', $api);
my $has_pgvector = $node->safe_psql('postgres',
	q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});
$node->safe_psql('postgres', 'CREATE EXTENSION vector') if $has_pgvector;

IPC::Run::run(
	[ 'python3', dirname(__FILE__) . '/092_ranking_numpy.py', $seed, $ncases, $has_pgvector ],
	'>', \my $cases)
  or die 'the script with NumPy failed';

# Return a description of the first difference, or an empty string.  Rows with equal
# similarities may be in any order, so each row is looked up by its profile, and
# only similarities are compared by their rank.
sub difference
{
	my ($case, @rows) = @_;
	my @best = @{ $case->{best} };
	my %seen;

	return scalar(@rows) . ' rows, not ' . scalar(@best) if @rows != @best;
	foreach my $rank (0 .. $#rows)
	{
		my ($profile, $similarity) = $rows[$rank] =~ /^(.*)\|(.*)$/;
		my $wanted = $case->{all}{$profile};

		return "$profile is returned twice" if $seen{$profile}++;
		return "$profile was not requested" if !defined $wanted;
		return "$profile has the similarity $similarity, not $wanted"
		  if abs($similarity - $wanted) > 1e-9;
		return "row $rank has the similarity $similarity, not $best[$rank]"
		  if abs($similarity - $best[$rank]) > 1e-9;
	}
	return '';
}

my @cases = map { decode_json($_) } split /\n/, $cases;
my ($status, $out, $err) = $node->psql(
	'postgres',
	join("\n",
		'SET client_min_messages = error;',
		map { ($_->{setup}, '\echo case', $_->{query}) } @cases),
	on_error_stop => 1);
is("$status$err", '0', 'all random stores are filled and searched');

my @answers = split /^case\n?/m, $out;
my ($compared, $wrong) = (0, 0);
shift @answers;
foreach my $case (@cases)
{
	my $difference = difference($case, split /\n/, shift @answers // '');

	$compared += @{ $case->{best} };
	next if $difference eq '';
	$wrong++;
	diag("$difference: $case->{query}");
}
is($wrong, 0, "NumPy gets the same result for each of $ncases random searches");
cmp_ok($compared, '>', $ncases, 'most of the random searches return rows');

done_testing();
