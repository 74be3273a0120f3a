# docs/reference.md says what the catalog says.  Functions with their arguments
# and results, settings, and the columns of hrflow_embed_stats are compared in
# both directions: whatever is missing on either side, or differs, is a failure.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use Hrflow::Node;
use Hrflow::StandIn;
use PostgreSQL::Test::Utils ();
use Test::More;

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('reference', $api);
my $reference = PostgreSQL::Test::Utils::slurp_file(dirname(__FILE__) . '/../../docs/reference.md');

# Lines in byte order, so that neither a collation nor the order of the page matters
sub sorted
{
	return join("\n", sort @_) . "\n";
}

# The rows of the table below a heading, without the backquotes and as many
# columns as the catalog has
sub rows_below
{
	my ($heading, $columns) = @_;
	my ($section) = $reference =~ /^## \Q$heading\E\n(.*?)(?=^## |\z)/ms;
	my @rows;

	foreach my $line ($section =~ /^\| (`.*) \|$/mg)
	{
		my @cells = map { s/`//g; s/^ +| +$//g; $_ } split(/ \|(?: |$)/, $line);
		push @rows, join(' | ', @cells[ 0 .. $columns - 1 ]);
	}
	return @rows;
}

my $functions = $node->safe_psql(
	'postgres', q{
	SELECT format('%s(%s) returns %s', proname,
		(SELECT string_agg(concat_ws(' ', NULLIF(proargnames[i], ''), format_type(type, NULL)), ', ' ORDER BY i)
		 FROM unnest(proargtypes) WITH ORDINALITY AS a(type, i)),
		coalesce(
			(SELECT string_agg(proargnames[i] || ' ' || format_type(type, NULL), ', ' ORDER BY i)
			 FROM unnest(proallargtypes) WITH ORDINALITY AS a(type, i)
			 WHERE proargmodes[i] IN ('o', 't')),
			pg_get_function_result(p.oid), 'nothing'))
	FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
	JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
	WHERE e.extname = 'hrflow_embed' AND d.deptype = 'e'});
my @documented;
while ($reference =~ /^### `(.+)`\n\nReturns `(.+?)`/mg)
{
	push @documented, "$1 returns $2";
}
is( sorted(@documented),
	sorted(split(/\n/, $functions)),
	'the reference has every function with its arguments and its result, and no other');

# The key is not in pg_settings at all, so the page describes it in a paragraph.
my $settings = $node->safe_psql(
	'postgres', q{
	LOAD 'hrflow_embed';
	SELECT concat_ws(' | ', replace(name, 'hrflow_embed.', ''), vartype,
		CASE WHEN boot_val = '' THEN 'none' ELSE boot_val END,
		coalesce(unit, '-'),
		coalesce(min_val || ' to ' || max_val, array_to_string(enumvals, ', '), '-'),
		CASE context WHEN 'user' THEN 'anybody' ELSE context END)
	FROM pg_settings WHERE name LIKE 'hrflow\_embed.%'});
is( sorted(rows_below('Settings', 6)),
	sorted(split(/\n/, $settings)),
	'the reference has every setting with its type, default, unit, range and context, and no other');

my $columns = $node->safe_psql(
	'postgres', q{
	SELECT attname || ' | ' || format_type(atttypid, NULL)
	FROM pg_attribute WHERE attrelid = 'hrflow_embed_stats'::regclass AND attnum > 0});
is( sorted(rows_below('Statistics', 2)),
	sorted(split(/\n/, $columns)),
	'the reference has every column of hrflow_embed_stats with its type, and no other');

done_testing();
