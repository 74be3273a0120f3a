# The demonstration that "make demo" runs prints what its headings promise, and the commands
# that it recommends at its end work.  A regression test has neither a stand-in that offers
# TLS nor a database without the extension.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(basename dirname);
use Hrflow::Node;
use Hrflow::StandIn;
use IPC::Run                ();
use PostgreSQL::Test::Utils ();
use Test::More;

my $root = dirname(__FILE__) . '/../..';
my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('demo', $api);

# Run a command of the demonstration with the server and the stand-in, as superuser
# "postgres".  Returns its output.
sub run_command
{
	my @command = @_;
	local %ENV = (
		%ENV,
		PGHOST => $node->host,
		PGPORT => $node->port,
		PGUSER => 'postgres',
		HRFLOW_API_HTTPS => $api->https,
		HRFLOW_API_CA => $api->ca);
	my $ok = IPC::Run::run(\@command, '<', \undef, '>', \my $out, '2>&1',
		IPC::Run::timeout(2 * $PostgreSQL::Test::Utils::timeout_default));

	ok($ok, basename($command[0]) . ' succeeds') or diag($out);
	return $out;
}

$node->safe_psql(
	'postgres', q{DROP EXTENSION hrflow_embed;
	DO $$ BEGIN CREATE ROLE postgres SUPERUSER LOGIN;
		EXCEPTION WHEN duplicate_object THEN END $$});
my $out = run_command("$root/test/demo");

# The results are below the headings, each of which may have several.
my %printed = $out =~ /^== (.*)\n((?:(?!== ).*\n)*)/mg;
my $similar = qr/ +0\.[456]\d\d/;
my $other = qr/ +-?0\.[012]\d\d/;
my $both = qr/(?: (\w+)-job +\| (?i:(?:\w+ )?\g{-1}(?: \d+)?) +\|$similar\n)/;

foreach my $case (
	[   'One profile',
		qr{^\s*"profile": "https://.*/profile\.hflw\?…",?\s*\+?$}m,
		'returns a link for each section of a profile' ],
	[   'Links as rows',
		qr{^ skills .* https://.*\n profile .* https://.*\n(?s:.*)^ profile .* https://}m,
		'returns links by reference and by e-mail address' ],
	[   'Links joined',
		qr{^ Dan Cook .* https://.*\n Eve, not parsed yet *\| *\| *$}m,
		'joins links with candidates, of which one has none' ],
	[   'All candidates at once',
		qr{^ +4 \| dan-cook +\| ok .*\n +5 \| +\| invalid_request .*\n +6 \| missing-1 +\| not_found }m,
		'has a row for each candidate of a batch' ],
	[   'The vectors',
		qr/^ Ada Nurse +\| +1\.000\n Cleo Nurse +\|$similar\n(?: (?:Bob|Dan) \w+ +\|$other\n){2}/m,
		'finds the candidate most similar to another' ],
	[   'A store of vectors',
		qr/^ +204 \| +0 \| +204 \| +0 \| +0 \| +0$/m,
		'refreshes a store of all candidates' ],
	[   'The ten best candidates for a job',
		qr/^(?: (?:\w+ Nurse|Nurse \d+) +\| +0\.\d{3} +\| \w+\n){10}\n/m,
		'finds ten nurses for the job of a nurse' ],
	[   'Both directions',
		qr/^ nurse-job +\|$similar\n \w+-job +\|$other\n(?s:.*)^$both{8}/m,
		'finds the best jobs for a nurse, and the best candidates for each job' ],
	[   'The best candidates for a job in plain SQL',
		qr/^(?: (?:\w+ Nurse|Nurse \d+) +\|$similar\n){3}\n/m,
		'finds three nurses for the job of a nurse in plain SQL' ],
	[   '2,000 profiles at once',
		qr/^ ok +\| +2000\n\nTime: /m,
		'requests 2,000 profiles in a batch' ],
	[   'A profile that does not exist',
		qr/^ERROR:  .*not found/m,
		'shows the error for a profile that does not exist' ],
	[   'A key that is refused',
		qr/^ERROR:  HrFlow API refused the API key(?s:.*)^ \*+\n(?s:.*)^ +0\n/m,
		'shows the error for a key that is refused, and reveals no key' ])
{
	my ($heading, $pattern, $name) = @$case;
	my ($found) = grep { /^\Q$heading\E/ } sort keys %printed;

	like($printed{ $found // '' } // "no heading \"$heading\"", $pattern,
		"the demonstration $name");
}
unlike($out, qr/\Q$Hrflow::StandIn::KEY\E/, 'the demonstration does not print its key');
is(scalar(() = $out =~ /^(?:ERROR|FATAL|PANIC):/mg),
	2, 'the demonstration raises no errors but those that it announces');
unlike($out, qr/^WARNING:/m, 'the demonstration raises no warnings');

# The commands at its end
my ($make) = $out =~ /^    sudo (make install)$/m;
my ($create) = $out =~ /^    (CREATE EXTENSION hrflow_embed;) /m;
my ($auth) = $out =~ /^    (SELECT hrflow_auth\(\);) /m;
my ($start) = $out =~ /"(test\/with-api psql -U postgres)" starts/;

is( join('|', map { $_ // '' } $make, $create, $auth, $start),
	'make install|CREATE EXTENSION hrflow_embed;|SELECT hrflow_auth();'
	  . '|test/with-api psql -U postgres',
	'the demonstration ends with the next commands');
my $with_api = run_command(split(/ /, "$root/$start"), '-XAtq', '-d', 'postgres', '-c', $auth);
like(
	$with_api,
	qr/"api_key_permission": "read"/,
	'the command that starts a private API gives access to it');

# 007_build.pl tests "make install".  These statements need a new database, and a key in a
# file that still exists.
$node->safe_psql('postgres', 'ALTER SYSTEM RESET ALL; CREATE DATABASE own');
$node->restart;
like(
	$node->safe_psql('own', "$create $auth"),
	qr/"api_key_permission": "read"/,
	'the extension can be created, and tells what its key may do, as the demonstration says');

done_testing();
