# docs/reference.md agrees with the catalog and the sources.  Functions with their
# arguments and results, settings, statuses with their SQLSTATEs, columns and the
# privileges of PUBLIC are compared in both directions.  Every function has an entry that
# describes its arguments and columns, and says what it requests, requires and raises.
# The other pages do not name functions, settings or messages that do not exist.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use Hrflow::Node;
use Hrflow::StandIn;
use PostgreSQL::Test::Utils ();
use Test::More;

my $root = dirname(__FILE__) . '/../..';
my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('reference', $api);

sub read_file { return PostgreSQL::Test::Utils::slurp_file("$root/$_[0]"); }
sub rows_of   { return split(/\n/, $node->safe_psql('postgres', $_[0])); }

my $reference = read_file('docs/reference.md');

# Sort lines in byte order, so that neither a collation nor the order of the page
# matters
sub sorted
{
	return join("\n", sort @_) . "\n";
}

sub section_of
{
	my ($page, $heading) = @_;
	my ($section) = $page =~ /^## \Q$heading\E\n(.*?)(?=^## |\z)/ms;

	return $section // '';
}

# Return the first cells of each row of the tables below a heading, without
# backquotes
sub cells_below
{
	my ($page, $heading, $columns) = @_;
	my @rows;

	foreach my $line (section_of($page, $heading) =~ /^\| (`.*) \|$/mg)
	{
		my @cells = map { s/`//gr =~ s/^ +| +$//gr } split(/ \|(?: |$)/, $line);
		push @rows, join(' | ', @cells[ 0 .. $columns - 1 ]);
	}
	return @rows;
}

#
# Functions
#
my $members = q{
	FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
	JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
	WHERE e.extname = 'hrflow_embed' AND d.deptype = 'e'};
my @functions = map { s/::[a-z]+(\[\])?//gr } rows_of(
	q{SELECT format('%s(%s)%s', proname,
		CASE WHEN 'o' = ANY (proargmodes) THEN ''
			ELSE regexp_replace(pg_get_function_arguments(p.oid), '\mIN ', '', 'g') END,
		' RETURNS ' || pg_get_function_result(p.oid))} . $members);
my @documented;
while ($reference =~ /^### (hrflow_\w+)\n\n```\n(.*?)\n```\n/msg)
{
	my ($name, $signature) = ($1, $2);

	$signature =~ s/\(\s+/(/g;
	$signature =~ s/\s+/ /g;
	like($signature, qr/^$name\(/,
		"the heading $name is followed by the signature of that function");
	push @documented, $signature;
}
is(sorted(@documented), sorted(@functions),
	'the reference has exactly the existing functions, with arguments, defaults and results');

my ($executable) = $reference =~ /^PUBLIC may execute (.*?)\. /ms;
is( sorted($executable =~ /(hrflow_\w+)\(\)/g),
	sorted(
		rows_of("SELECT proname $members AND has_function_privilege('public', p.oid, 'EXECUTE')")),
	'the reference names exactly the functions that PUBLIC may execute');

my $ahead = read_file('docs/read_ahead.md');
my ($read_ahead) = $ahead =~ /ahead of the rows, up to (.*?)\. /ms;
my @read_ahead = rows_of("SELECT proname $members AND p.prosupport::text ~ 'hrflow_support'");
is(sorted($read_ahead =~ /`(hrflow_\w+)`/g),
	sorted(@read_ahead),
	'docs/read_ahead.md lists exactly the functions whose calls are read ahead');
my @said_ahead =
  grep { $reference =~ /^### $_\n(?:(?!^##).)*read\s+ahead/ms } map { /^(\w+)/ } @functions;
is(sorted(grep { $_ ne 'hrflow_support' } @said_ahead),
	sorted(@read_ahead),
	'the reference describes read-ahead for exactly the functions that support it');

#
# Entries of functions
#
my (@in_order, %description, %paragraphs);
foreach my $section (split /^(?=## )/m, $reference)
{
	my ($introduction, @entries) = split /^(?=### hrflow_)/m, $section;

	foreach my $entry (@entries)
	{
		my ($name, $text) = $entry =~ /^### (\w+)\n\n```\n.*?\n```\n(.*)/s;

		push @in_order, $name unless $introduction =~ /^## Internal functions$/m;
		$description{$name} = $introduction . $text =~ s/^\*Errors:\* .*?(?=\n\n|\z)//msr;
		$paragraphs{$name} = { $text =~ /^\*(\w+):\* (.*?)(?=\n\*|\n\n|\z)/msg };
		like(
			join(' ', $text =~ /^\*(\w+):\*/mg),
			qr/^(Endpoint ?)?(Requests ?)?(Requires ?)?(Errors)?$/,
			"the paragraphs about $name have the usual names and order");
	}
}

# Return the functions whose entry has a paragraph that matches a pattern.
sub with_paragraph
{
	my ($label, $pattern) = @_;

	return grep { ($paragraphs{$_}{$label} // '') =~ $pattern } keys %paragraphs;
}

is( join("\n", @in_order),
	join(
		"\n",
		rows_of(
			"SELECT proname $members
			AND prorettype NOT IN ('internal'::regtype, 'trigger'::regtype) ORDER BY p.oid")),
	'the reference has the functions in the order of the SQL script');

my $in_general = section_of($reference, 'Calls in general');
my @undescribed = grep {
	my ($name, $argument) = split / /;
	"$in_general$description{$name}" !~ /`$argument`/
} rows_of("SELECT proname || ' ' || unnest(proargnames) $members");
is(join("\n", @undescribed), '', 'the reference describes every argument and result column');

my $callers = read_file('src/base/caller.c');
my @callers = $callers =~ /^\t\[HRFLOW_BY_\w+\] = "(\w+)"/mg;
is(sorted(with_paragraph('Requests', qr/^(?!none\.$|none now)./)),
	sorted(@callers),
	'the reference has the number of requests of exactly the functions that send any');
is( sorted(with_paragraph('Endpoint', qr/./)),
	sorted(grep { !/^hrflow_fetch_/ } @callers),
	'the reference has the endpoint of exactly the functions that use the API');

# Arguments come before result columns in proargnames.
my @of_stores = rows_of("SELECT proname $members AND proargnames[1] = 'store' AND pronargs > 0");
is(sorted(with_paragraph('Errors', qr/^store errors\b/)),
	sorted(@of_stores),
	'the reference lists store errors of exactly the functions that take a store');
is( sorted(with_paragraph('Requires', qr/./)),
	sorted(@of_stores, 'hrflow_create_store'),
	'the reference lists the privileges that functions require for stores');
is( sorted(with_paragraph('Errors', qr/^batch errors\b/)),
	sorted(
		rows_of(
			"SELECT proname $members AND proretset AND prosupport <> 0
			AND (proargtypes::oid[] && '{text[],jsonb[]}'::regtype[]::oid[])")),
	'the reference lists batch errors of exactly the batches');

# hrflow_restore() is not one of these, since its last two arguments are optional.
is( sorted(with_paragraph('Errors', qr/\bidentifier errors\b/)),
	sorted(
		rows_of(
			"SELECT proname $members AND proargnames[1] = 'store'
			AND proargnames[3] = 'profile_ids' AND pronargdefaults < 2")),
	'the reference lists identifier errors of exactly the functions that take identifiers');
is( sorted(
		grep   { !$paragraphs{$_}{Errors} }
		  grep { $description{$_} !~ /^## (?:Activity|Statistics|Usage|Internal)/ }
		  keys %paragraphs),
	sorted(),
	'the reference lists the errors of every function');

#
# Settings, except the key, which pg_settings omits
#
my @settings = rows_of(
	q{LOAD 'hrflow_embed';
	SELECT concat_ws(' | ', replace(name, 'hrflow_embed.', ''), vartype,
		CASE WHEN boot_val = '' THEN 'none' ELSE boot_val END,
		coalesce(unit, '-'),
		coalesce(min_val || ' to ' || max_val, array_to_string(enumvals, ', '), '-'),
		context)
	FROM pg_settings WHERE name LIKE 'hrflow\_embed.%'});
is(sorted(cells_below($reference, 'Settings', 6)),
	sorted(@settings),
	'the reference has exactly the existing settings, with all their properties');

#
# Columns
#
foreach my $view (
	[ 'Activity' => 'hrflow_embed_activity' ],
	[ 'Statistics' => 'hrflow_embed_stats' ],
	[ 'Usage' => 'hrflow_embed_usage' ])
{
	my ($heading, $name) = @$view;

	is( join("\n", cells_below($reference, $heading, 2)),
		join(
			"\n",
			rows_of(
				"SELECT attname || ' | ' || format_type(atttypid, NULL)
				FROM pg_attribute WHERE attrelid = '$name'::regclass AND attnum > 0
				ORDER BY attnum")),
		"the reference has the columns of $name with their types, in the right order");
}

$node->safe_psql('postgres', q{SELECT hrflow_create_store('name', 'real[]')});
my $refresh = read_file('docs/refresh.md');
my $columns_of = q{SELECT attname FROM pg_attribute
	WHERE attrelid = '%s'::regclass AND attnum > 0 AND NOT attisdropped};
my ($vectors) = section_of($refresh, 'The tables') =~ /has a row for every vector:\s+`\((.*?)\)`/;
is( sorted(split(/, /, $vectors // '')),
	sorted(rows_of(sprintf $columns_of, 'name')),
	'docs/refresh.md has the columns of the table of vectors');
my @profile_columns = cells_below($refresh, 'The tables', 1);
is( sorted('source_id', 'profile_id', map { split /, / } @profile_columns),
	sorted(rows_of(sprintf $columns_of, 'name_profile')),
	'docs/refresh.md has the columns of the table of profiles');
is( sorted(map { split /, / } cells_below($refresh, 'The history of runs', 1)),
	sorted(rows_of(sprintf $columns_of, 'name_run')),
	'docs/refresh.md has the columns of the table of runs');
is( sorted(map { split /, / } cells_below($refresh, 'What is put aside', 1)),
	sorted(rows_of(sprintf $columns_of, 'name_aside')),
	'docs/refresh.md has the columns of the table of vectors put aside');
is( sorted(cells_below($refresh, 'What was erased', 1)),
	sorted(rows_of(sprintf $columns_of, 'name_erased')),
	'docs/refresh.md has the columns of the record of erased profiles');

#
# Statuses and SQLSTATEs, compared with the sources
#
my $sources =
  join("\n", map { PostgreSQL::Test::Utils::slurp_file($_) } glob("$root/src/{,*/}*.c"));
my $include = $node->config_data('--includedir-server');
my %sqlstate;
foreach (split /\n/, PostgreSQL::Test::Utils::slurp_file("$include/utils/errcodes.h"))
{
	my ($code, $letters) = /^#define (ERRCODE_\w+) MAKE_SQLSTATE\((.*)\)/ or next;
	$sqlstate{$code} = join('', $letters =~ /'(.)'/g);
}
my %status_name = $sources =~ /^\t\[(HRFLOW_\w+)\] = "(\w+)",?$/mg;
my %status_code = $sources =~ /^\t\[(HRFLOW_\w+)\] = \{\s+\.sqlerrcode = (ERRCODE_\w+),/mg;
my %raised = map { ("$status_name{$_} | $sqlstate{ $status_code{$_} }" => 1) }
  grep { $status_code{$_} } keys %status_name;
my @errors = section_of($reference, 'Errors') =~ /\| (`\w+` \| \w+) \|$/mg;
cmp_ok(scalar(keys %raised), '>=', 16, 'statuses and their SQLSTATEs are found in the sources');
is( sorted(map { s/`//gr } @errors),
	sorted(keys %raised),
	'the reference has exactly the existing statuses, with their SQLSTATEs');

my %known = map { ($_ => 1) } values %sqlstate;
my @codes = map { /\b([0-9A-Z]{5})\b/g } $reference =~ /^\*Errors:\* (.*?)\n\n/msg;
cmp_ok(scalar(@codes), '>=', 50, 'SQLSTATEs of functions are found in the reference');
is(join(' ', grep { !$known{$_} } @codes), '',
	'all SQLSTATEs in the reference exist in PostgreSQL');

#
# Functions and settings that the pages for users name
#
my %exists = map { ($_ => 1) } map { /^(\w+)/ } @functions;
my %setting = map { ("hrflow_embed.$_" => 1) } 'api_key', map { /^(\w+)/ } @settings;
foreach my $page ('README.md',
	map { "docs/$_.md" }
	qw(operation ranking read_ahead recipes reference refresh scaling servers troubleshooting))
{
	my $text = read_file($page);
	my %names = map { ($_ => 1) } $text =~ /\b(hrflow_\w+)\(/g, $text =~ /`(hrflow_\w+)`/g;
	my %settings = map { ($_ => 1) } $text =~ /\b(hrflow_embed\.(?!so\b|control\b|stat\b)\w+)/g;

	delete @names{qw(hrflow_embed hrflow_embed_stats hrflow_id)};
	is(join(' ', grep { !$exists{$_} } sort keys %names),
		'', "all functions that $page names exist");
	is(join(' ', grep { !$setting{$_} } sort keys %settings),
		'', "all settings that $page names exist");
}

#
# Messages that are headings of docs/troubleshooting.md
#
my @messages =
  map { s/"\s*\n\s*"//gr } $sources =~ /"((?:[^"\\\n]|\\.)+(?:"\s*\n\s*"(?:[^"\\\n]|\\.)+)*)"/g;
my @patterns;
foreach my $message (@messages)
{
	my @parts =
	  map { s/\\"/"/gr } split(/%(?:\d+\$)?[-.*0-9]*l*[sdufm]|" INT64_FORMAT "/, $message, -1);

	push @patterns, join('.+', map { quotemeta } @parts) if length(join('', @parts)) >= 10;
}
my @headings = read_file('docs/troubleshooting.md') =~ /^### "(.*)"$/mg;
cmp_ok(scalar(@headings), '>=', 10, 'docs/troubleshooting.md has messages as headings');
foreach my $heading (@headings)
{
	ok((grep { $heading =~ /^$_$/ } @patterns),
		"a heading of docs/troubleshooting.md is a message of the sources: $heading");
}

done_testing();
