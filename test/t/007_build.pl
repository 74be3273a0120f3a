# The extension can be built inside and outside of its directory, installs exactly
# the files that a package needs, and cleans up; and the check of the layers detects
# violations.  None of this can be tested in SQL.
use strict;
use warnings FATAL => 'all';
use File::Basename          qw(dirname);
use File::Find              qw(find);
use File::Path              qw(make_path);
use IPC::Run                ();
use PostgreSQL::Test::Utils ();
use Test::More;

my $root = dirname(__FILE__) . '/../..';
my $source = PostgreSQL::Test::Utils::tempdir();
my $elsewhere = PostgreSQL::Test::Utils::tempdir();
my $destination = PostgreSQL::Test::Utils::tempdir();

# Ignore the options of a make that may be running this test.
delete @ENV{qw(MAKEFLAGS MFLAGS MAKELEVEL)};

# Return the files below a directory, relative to it.
sub files_in
{
	my ($folder) = @_;
	my @files;

	find(sub { push @files, $File::Find::name =~ s{^\Q$folder\E/}{}r if -f }, $folder);
	return sort @files;
}

# Run make in a directory, and return whether it succeeded.
sub make
{
	my ($folder, @arguments) = @_;
	my @command = ('make', '-s', '-C', $folder, 'COPT=-O0 -g0 -U_FORTIFY_SOURCE', 'with_llvm=no');
	my $ok = IPC::Run::run([ @command, @arguments ], '>', \my $out, '2>&1');

	note($out);
	return $ok;
}

system('cp', '-R', (map { "$root/$_" } qw(Makefile hrflow_embed.control sql src)), $source) == 0
  or die;
find(sub { unlink if /\.(o|bc|gcno|gcda)$/ }, $source);
my @sources = files_in($source);

#
# Builds in the directory of the sources
#
ok( make($source, 'src/module.o', 'src/base/clock.o'),
	'objects can be built in the directory of the sources');
is( join(' ', grep { /\.o$/ } files_in($source)),
	'src/base/clock.o src/module.o',
	'objects are in the same directories as their sources');
ok(make($source, '-q', 'src/module.o'), 'an object is up to date after it has been built');
utime(2, 2, "$source/src/module.o")                         or die;
utime(1, 1, map { "$source/$_" } grep { !/\.h$/ } @sources) or die;
ok(!make($source, '-q', 'src/module.o'), 'an object is out of date when a header is newer');
ok(make($source, 'clean'), 'make clean succeeds');
is_deeply([ files_in($source) ], \@sources, 'make clean leaves nothing but the sources');

#
# Builds in another directory
#
my @from = ('-f', "$source/Makefile");
ok(make($elsewhere, @from), 'the extension can be built in another directory');
ok(make($elsewhere, @from, 'install', "DESTDIR=$destination"), 'make install obeys DESTDIR');
is( join(' ', sort map { s{.*/}{}r } files_in($destination)),
	join(' ', sort 'hrflow_embed.control', 'hrflow_embed.so', map { s{.*/}{}r } <$source/sql/*>),
	'the library, the control file and the scripts are installed, and nothing else');
ok(make($elsewhere, @from, 'clean'), 'make clean succeeds in another directory');
is_deeply([ files_in($elsewhere) ], [], 'make clean in another directory removes all files');
is_deeply([ files_in($source) ],
	\@sources, 'a build in another directory writes nothing to that of the sources');

#
# The check of the layers, with a few small files
#
foreach my $case (
	[ undef, undef, '' ],
	[ 'base/a.c', '#include "ask/ask.h"', "base/a.c: includes ask/ask.h, of a higher layer\n" ],
	[   'transport/b.c',
		'#include "ask/ask.h"',
		"transport/b.c: includes ask/ask.h, of a higher layer\n" ],
	[   'transport/transport.h',
		'#include "rate.h"',
		"transport/transport.h: is one of a circle of headers\n"
		  . "transport/rate.h: is one of a circle of headers\n" ],
	[ 'ask/c.c', '# include <curl/curl.h>', "ask/c.c: includes a header of libcurl\n" ],
	[   'store/d.c',
		'#if PG_VERSION_NUM >= 180000',
		"store/d.c: looks at a version, which is for compat.h to do\n" ],
	[   'ask/c.c',
		'#if LIBCURL_VERSION_MAJOR >= 8',
		"ask/c.c: looks at a version, which is for compat.h to do\n" ],
	[ 'transport/b.c', '#include "curl/curl.h"', "transport/b.c: includes a header of libcurl\n" ],
	[ 'base/a.c', '#include <ask/ask.h>', "base/a.c: includes ask/ask.h, of a higher layer\n" ],
	[ 'base/a.c', '#include "../ask/ask.h"', "base/a.c: includes a path of its own\n" ],
	[ 'base/a.c', "\n" x 800, "base/a.c: has more than 800 lines\n" ])
{
	my ($where, $line, $expected) = @$case;
	my $planted = PostgreSQL::Test::Utils::tempdir();
	my %line = (
		'compat.h' => '#if PG_VERSION_NUM >= 160000 && LIBCURL_VERSION_NUM > 0',
		'module.c' => '#include "store/store.h"',
		'base/base.h' => '#include "compat.h"',
		'base/a.c' => '#include "base/base.h"',
		'transport/transport.h' => '#include "base/base.h"',
		'transport/rate.h' => '#include "transport/transport.h"',
		'transport/libcurl.h' => '#include <curl/curl.h>',
		'transport/b.c' => '#include "transport/libcurl.h"',
		'ask/ask.h' => '#include "transport/transport.h"',
		'ask/c.c' => '#include "ask/ask.h"',
		'store/store.h' => '#include "ask/ask.h"',
		'store/d.c' => '#include "store.h"');

	$line{$where} .= "\n$line" if $where;
	foreach my $file (keys %line)
	{
		make_path(dirname("$planted/$file"));
		PostgreSQL::Test::Utils::append_to_file("$planted/$file", "$line{$file}\n");
	}
	IPC::Run::run([ "$root/test/instrument/layers", $planted ], '>', \my $out, '2>&1');
	is( join('', sort $out      =~ /.*\n/g),
		join('', sort $expected =~ /.*\n/g),
		$where
		? "the check of the layers finds "
		  . ($line =~ /\S/ ? $line : 'too many lines')
		  . " in $where"
		: 'the check of the layers accepts files without violations');
}

done_testing();
