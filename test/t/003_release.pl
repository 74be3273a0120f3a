# The files that describe a release agree with each other.  The version is defined in
# the control file, but the formats of other tools require it in their own files.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use JSON::PP;
use PostgreSQL::Test::Utils ();
use Test::More;

# PGXS may run the tests in the directory of the sources or in another one.
my $root = dirname(__FILE__) . '/../..';

sub read_file { return PostgreSQL::Test::Utils::slurp_file("$root/$_[0]"); }

my ($version) = read_file('hrflow_embed.control') =~ /^default_version = '(\d+\.\d+)'$/m;
my $meta = decode_json(read_file('META.json'));
my $provided = $meta->{provides}{hrflow_embed};

is($meta->{version}, "$version.0", 'META.json has the version of the control file');
is($provided->{version}, "$version.0",
	'the extension in META.json has the version of the control file');
is( $provided->{file},
	"sql/hrflow_embed--$version.sql",
	'META.json names the script of that version');
foreach my $file (@$provided{qw(file docfile)})
{
	ok(-f "$root/$file", "the file $file named by META.json exists");
}

# https://pgxn.org/spec/, version 1.0.0.
my @missing =
  grep { !defined $meta->{$_} } qw(name version abstract maintainer license provides meta-spec);
is("@missing", '', 'META.json has all fields that PGXN requires');
is($meta->{'meta-spec'}{version}, '1.0.0', 'META.json has the version of the specification');

like(
	read_file('CHANGELOG.md'),
	qr/^## \Q$version\E\b/m,
	'CHANGELOG.md has a section for the version');

#
# The packaging for Debian
#
SKIP:
{
	skip 'archives of a release do not contain debian/', 6 unless -d "$root/debian";

	my ($packaged, $distribution, $packager) =
	  read_file('debian/changelog') =~ /^hrflow-embed \(([^-)]+)-[^)]+\) (\S+);.*?^ -- (.*?)  /ms;
	my ($released_as) = read_file('CHANGELOG.md') =~ /^## \Q$version\E \((.*)\)$/m;
	my $control = read_file('debian/control');
	my ($maintainer) = $control =~ /^Maintainer: (.*)$/m;
	my ($oldest) = $meta->{prereqs}{runtime}{requires}{PostgreSQL} =~ /^(\d+)/;
	my ($licence) = read_file('LICENSE') =~ /^(Permission .*)/ms;

	is($packaged, $version, 'debian/changelog begins with the version of the control file');
	is( $distribution eq 'UNRELEASED',
		$released_as eq 'not released',
		'debian/changelog and CHANGELOG.md agree on whether the version is released');
	is($packager, $maintainer, 'debian/changelog and debian/control name the same maintainer');
	is( $control,
		read_file('debian/control.in') =~ s/PGVERSION/$oldest/gr,
		'debian/control is debian/control.in for the oldest PostgreSQL');
	is(read_file('debian/pgversions'),
		"$oldest+\n", 'packages are built for the versions of PostgreSQL in META.json');
	is(read_file('debian/copyright') =~ s/^ \.?//mgr =~ s/.*?(?=^Permission)//msr,
		$licence, 'debian/copyright has the text of LICENSE');
}

done_testing();
