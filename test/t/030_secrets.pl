# The key cannot be read anywhere: in no message, log, catalog, view or SHOW, by
# no role, whether or not the session has called anything.  The key file is read
# as the README says.  This needs logs, other roles, replication connections and
# restarts.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Session;
use Hrflow::StandIn;
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(time);

my $key = $Hrflow::StandIn::KEY;
my $rotated = 'askr_fedcba9876543210fedcba9876543210';
my $secret = qr/0123456789abcdef0123/;
my $api = Hrflow::StandIn->new('--key', $key, '--key', $rotated);
my $closed = Hrflow::RawPeer->new(undef);
my $closed_port = $closed->port;
$closed->stop;

sub roles
{
	my ($node) = @_;
	$node->safe_psql(
		'postgres', q{
		CREATE ROLE plain LOGIN;
		CREATE ROLE repl LOGIN REPLICATION;
		CREATE ROLE monitor LOGIN;
		GRANT pg_monitor, pg_read_all_settings, pg_read_all_stats TO monitor;});
	return;
}

# Return everything that a role can read about settings in a new session.
sub everything
{
	my ($node, $role, $first) = @_;
	my ($status, $out, $err) = $node->psql(
		'postgres', "$first\n" . q{
		SHOW ALL;
		SHOW hrflow_embed.api_key;
		SELECT current_setting('hrflow_embed.api_key', true);
		SELECT * FROM pg_settings;
		SELECT * FROM pg_file_settings;
		SELECT * FROM pg_db_role_setting;
		SELECT * FROM pg_stat_activity;
		SELECT * FROM hrflow_embed_stats;
		SELECT * FROM pg_prepared_statements;
		SELECT * FROM pg_proc WHERE proconfig IS NOT NULL;},
		extra_params => [ '-U', $role ],
		on_error_stop => 0);
	return "$out\n$err";
}

# Return what a role can read about the key over a replication connection.  The
# IDENTIFY_SYSTEM shows that the server did not refuse the connection.
sub walsender
{
	my ($node, $role) = @_;
	my ($status, $out, $err) = $node->psql(
		'postgres',
		"SHOW hrflow_embed.api_key;\nSHOW hrflow_embed.api_key_file;\nIDENTIFY_SYSTEM;",
		replication => 'true',
		extra_params => [ '-U', $role ],
		on_error_stop => 0);
	return "$out\n$err";
}

#
# Setup of the README: a file
#
my $node = Hrflow::Node->new(
	'file', $api,
	max_attempts => 1,
	log_min_messages => 'debug5',
	log_statement => 'all',
	log_error_verbosity => 'verbose',
	log_connections => 'on',
	wal_level => 'replica',
	max_wal_senders => 4);
roles($node);

my $tls = $api->base_url('https');
my @calls = (
	q{SELECT hrflow_profile_embedding('s', 'nurse-1')},
	q{SELECT * FROM hrflow_profile_embedding_links('s', 'nurse-1')},
	q{SELECT hrflow_profile_embedding('s', 'missing-1')},
	q{SELECT hrflow_profile_embedding('s', 'fault:status=401,echo')},
	q{SELECT hrflow_profile_embedding('s', 'fault:status=500,echo')},
	q{SELECT hrflow_profile_embedding('s', 'fault:status=400,echo')},
	q{SELECT hrflow_profile_embedding('s', 'fault:html,echo')},
	q{SELECT hrflow_profile_embedding('s', 'fault:truncated,echo')},
	q{SELECT hrflow_profile_embedding('s', 'fault:reset')},
	q{SELECT hrflow_profile_embedding('s', 'fault:redirect')},
	q{SET hrflow_embed.request_timeout = '50ms';
		SELECT hrflow_profile_embedding('s', 'fault:silent')},
	q{SELECT status, error FROM hrflow_profile_embeddings('s', '{a,"fault:status=401,echo",b}')},
	q{SELECT status, error FROM hrflow_profile_embeddings('s', '{a,"fault:status=500,echo",b}')},
	q{SELECT status, error FROM hrflow_profile_vectors('s', '{a,b}')},
	"SET hrflow_embed.base_url = '$tls'; SELECT hrflow_profile_embedding('s', 'a')",
	"SET hrflow_embed.base_url = 'http://127.0.0.1:$closed_port/v1';
		SELECT hrflow_profile_embedding('s', 'a')"
);
my $said = '';
foreach my $call (@calls)
{
	my ($status, $out, $err) = $node->psql(
		'postgres',
		"\\set VERBOSITY verbose\nSET client_min_messages = debug5;\n$call;",
		on_error_stop => 0);
	$said .= "$out\n$err\n";
}
like($said, qr/profile\.hflw/, 'some of the calls succeed');
like($said, qr/28000: HrFlow API refused the API key/, 'some of the calls are refused');
like($said, qr/Invalid secret key: \*{8}/, 'a reply that repeats the key is shown without it');
unlike($said, $secret, 'no client sees the key, whatever its message level');

$node->append_conf('postgresql.conf', 'hrflow_embed.max_concurrency = 8');
$node->reload;
$node->poll_query_until('postgres',
	q{SELECT current_setting('hrflow_embed.max_concurrency') = '8'});
foreach my $role (qw(plain monitor repl), $node->safe_psql('postgres', 'SELECT current_user'))
{
	unlike(everything($node, $role, ''), $secret, "$role finds no key in a fresh session");
	unlike(everything($node, $role, q{LOAD 'hrflow_embed'; SELECT hrflow_decode_vector('[1]');}),
		$secret, "$role finds no key once the library is loaded");
}
my $walsender = walsender($node, 'repl');
unlike($walsender, $secret, 'a replication connection finds no key');
like($walsender, qr/^\d{10,}\|1\|/m, 'the replication connection was accepted');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile),
	$secret, 'the server log has no key at debug5, even after a reload');
$node->stop;
my $grep = `grep -rlE '0123456789abcdef0123' @{[ $node->data_dir ]}`;
is($grep, '', 'no file below the data directory has the key');
$node->start;

#
# An API that repeats the key in a section, a link or a number
#
my $echo = Hrflow::RawPeer->new(
	sub {
		my ($socket) = @_;
		while (my $head = Hrflow::RawPeer::read_request($socket))
		{
			my ($path, $sent, $length) = (
				$head =~ m{^\S+ (\S+)},
				$head =~ /^X-API-KEY: (\S+)/mi,
				$head =~ /^Content-Length: (\d+)/mi);
			read($socket, my $body, $length) if $length;
			my $data =
				$path =~ m{/text/} ? qq([{"embedding": [1, $sent]}])
			  : $path =~ m{/document/} ? qq("$sent")
			  : $path =~ m{/job/} ? qq("https://other.example/$sent/v.hflw?s")
			  : $path =~ /=section/ ? qq({"$sent": 5})
			  : qq({"profile": "https://other.example/$sent/v.hflw"});
			$body = qq({"code": 200, "data": $data});
			print $socket "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
			  . length($body)
			  . "\r\n\r\n$body";
		}
	});
foreach my $sent ($key, 'Zx9-old_style.key_of_another_form')
{
	$node->write_key($sent);
	foreach my $call (
		'hrflow_text_embedding(\'x\')',
		'hrflow_text_embeddings(\'{x}\')',
		'hrflow_document_embedding(\'job\', \'{"name": "x"}\')',
		'hrflow_job_vector(\'x\')',
		'hrflow_profile_embedding_links(\'s\', \'section\')',
		'hrflow_profile_vectors(\'s\', \'{section,link}\')')
	{
		my (undef, $out, $err) = $node->psql('postgres',
				"\\set VERBOSITY verbose\nSET hrflow_embed.base_url = 'http://127.0.0.1:"
			  . $echo->port
			  . "/v1'; SELECT * FROM $call;");
		like("$out$err", qr/\*{8}/, "$call shows what is wrong with a reply that contains the key");
		unlike("$out$err", qr/$secret|_style\.key/,
			"$call does not show a key contained in a reply");
	}
}
$node->write_key($key);

#
# The key's file
#
my $session = Hrflow::Session->new($node);
my $call = q{SELECT 'called' FROM hrflow_profile_embedding('s', 'p');};

sub key_sent { return ($api->log)[-1]{headers}{'X-API-KEY'} // 'none'; }

foreach my $case (
	[ 'as it is', $key, $key ],
	[ 'with a newline', "$key\n", $key ],
	[ "with DOS's", "$key\r\n", $key ],
	[ 'that was rotated', "$rotated\n", $rotated ])
{
	my ($name, $content, $sent) = @$case;
	$node->write_key($content);
	$api->reset;
	like($session->ask($call), qr/called/, "a key $name is used by the session's next statement");
	is(key_sent(), $sent, "a key $name is sent correctly");
}
foreach my $case (
	[ 'empty', '', '55000' ],
	[ 'a newline', "\n", '55000' ],
	[ 'too long', 'x' x 10000, '22023' ],
	[ 'two lines', "$key\n$key\n", '22023' ],
	[ 'a space', "askr 0123456789abcdef0123", '22023' ],
	[ 'a NUL', "askr_0123456789abcdef0123\0x", '22023' ],
	[ 'UTF-8', "askr_0123456789abcdef0123\xc3\xa9", '22023' ],
	[ 'an injected header', "askr_0123456789abcdef0123\r\nX-Evil: 1", '22023' ],
	[ 'quotes', qq("$key"\n), '22023', 'is in quotes' ],
	[ 'a name and a value', "HRFLOW_API_KEY=$key\n", '22023', 'follows a name and "="' ],
	[ 'a name and a value in quotes', "api_key='$key'\n", '22023', 'follows a name and "="' ])
{
	my ($name, $content, $state, $detail) = @$case;
	$node->write_key($content);
	$api->reset;
	my $printed = $session->ask($call);
	like(
		$printed,
		qr/ERROR:  $state:.*hrflow_embed\.api_key_file/,
		"a key file with $name is refused, and the setting is named");
	like(
		$printed,
		qr/DETAIL:  The key $detail; the file must contain the key alone/,
		"a key file with $name is refused with the reason") if $detail;
	unlike($printed, qr/$secret|X-Evil/, "the content of a key file with $name is not shown");
	is(scalar($api->log), 0, "a key file with $name sends no request");
}

my $path = $node->key_file;
unlink $path;
like($session->ask($call), qr/ERROR:  55000:/, 'a key file that does not exist is refused');
mkdir $path;
like($session->ask($call), qr/ERROR:  55000:/, 'a directory is refused as a key file');
rmdir $path;
system('mkfifo', $path) == 0 or die;

# Opening it would wait for a process that writes, until the session's time limit.
like($session->ask($call), qr/ERROR:  55000:/, 'a FIFO is refused without waiting for it');
unlink $path;
SKIP:
{
	skip '/proc is not available', 1 unless -e '/proc/self/mem';
	like(
		$session->ask(
			"SET hrflow_embed.api_key_file = '/proc/self/mem';
				$call RESET hrflow_embed.api_key_file;"
		),
		qr/ERROR:  55000: could not read.*Input/,
		'a key file whose reading fails is refused');
}
SKIP:
{
	skip 'root may read all', 1 if $> == 0;
	$node->write_key($key);
	chmod 0, $path;
	like(
		$session->ask($call),
		qr/ERROR:  55000:.*Permission denied/,
		'a key file without read permission is refused');
	unlink $path;
}
$node->write_key($key);

# A file that has not changed for some seconds is not read again.  A file that has
# changed is read again, even if its times were set back to hide the change.
SKIP:
{
	my $reads = sub {
		my $io = '/proc/' . $session->pid . '/io';
		return -r $io && PostgreSQL::Test::Utils::slurp_file($io) =~ /^syscr: (\d+)/m ? $1 : undef;
	};
	skip '/proc is not available', 5 unless defined $reads->();

	my $calls =
	  q{SELECT count(hrflow_profile_embedding('s', 'p' || i)) FROM generate_series(1, 100) i;};
	my $changed = (stat $path)[10];
	select(undef, undef, undef, 0.1) until time - $changed > 3.1;
	like($session->ask($calls), qr/^100$/m, 'calls with a key file that is some seconds old work');
	my $before = $reads->();
	$session->ask($calls);
	cmp_ok($reads->() - $before, '<', 50, 'a key file that has not changed is not read again');
	$before = $reads->();
	my @times = (stat $path)[ 8, 9 ];
	open(my $file, '+<', $path) or die $!;
	print $file $rotated;
	close $file          or die $!;
	utime(@times, $path) or die $!;
	$session->ask($call);
	is(key_sent(), $rotated,
		'a key written over the old one, of the same length and time, is used at once');

	# It is no longer read by each call two seconds after the change.  On a busy machine,
	# some calls may be later, so try several times.
	my ($ncalls, $nreads) = (20, 0);
	for (my $try = 0; $nreads < $ncalls && $try < 20; $try++)
	{
		$node->write_key($rotated);
		$before = $reads->();
		$session->ask($calls =~ s/100/$ncalls/r);
		$nreads = $reads->() - $before;
	}
	cmp_ok($nreads, '>=', $ncalls, 'a key file that has just changed is read by each call');
	$node->write_key($key);
	$session->ask($call);
	is(key_sent(), $key, 'a key file that changes twice within a second is read again');
}

# A file that other users can read
my $warning = qr/WARNING: .* file specified by "hrflow_embed.api_key_file" has world access/;
chmod 0640, $path;
unlike($session->ask($call), qr/WARNING/, 'there is no warning where the group may read the file');
chmod 0604, $path;
like($session->ask($call), $warning, 'there is a warning where everybody may read the file');
unlike($session->ask($call), qr/WARNING/, 'the warning is not repeated in a session');
chmod 0600, $path;

# A key set in the session
like($session->ask("SET hrflow_embed.api_key = '$rotated'; $call"),
	qr/called/, 'a superuser may set a key for a session');
is(key_sent(), $rotated, 'a key set in the session overrides the key file');
like($session->ask('SHOW hrflow_embed.api_key;'),
	qr/^\*{8}$/m, 'a key set in the session is shown as asterisks');
$session->ask("RESET hrflow_embed.api_key; $call");
is(key_sent(), $key, 'RESET ends the use of a key set in the session');
$session->ask("SET hrflow_embed.api_key = '$rotated'; DISCARD ALL; $call");
is(key_sent(), $key, 'DISCARD ALL ends the use of a key set in the session');
$session->ask("BEGIN; SET LOCAL hrflow_embed.api_key = '$rotated'; COMMIT; $call");
is(key_sent(), $key, 'the end of the transaction ends the use of a key set with SET LOCAL');
$session->finish;

# Settings that PostgreSQL stores where everyone can read them
foreach my $statement (
	"ALTER ROLE plain SET hrflow_embed.api_key = '$rotated'",
	"ALTER DATABASE postgres SET hrflow_embed.api_key = '$rotated'",
	"CREATE FUNCTION f() RETURNS int LANGUAGE sql
		SET hrflow_embed.api_key = '$rotated' AS 'SELECT 1'",
	q{SET hrflow_embed.api_key = '********'})
{
	like($node->error_of("LOAD 'hrflow_embed'; $statement;"),
		qr/^22023/, ($statement =~ s/ ?(=|SET).*//r) . ' … api_key is refused');
}
my (undef, undef, $err) =
  $node->psql('postgres', "LOAD 'hrflow_embed'; SET hrflow_embed.api_key = 'with space $rotated';");
unlike($err, qr/with space askr|=/, 'a refused value is not printed');
$node->stop;

#
# In the configuration, preloaded
#
my $preloaded = Hrflow::Node->new(
	'preloaded', $api,
	shared_preload_libraries => 'hrflow_embed',
	api_key => $key,
	max_attempts => 1,
	log_min_messages => 'debug5',
	wal_level => 'replica',
	max_wal_senders => 4);
roles($preloaded);
foreach my $role (qw(plain monitor repl), $preloaded->safe_psql('postgres', 'SELECT current_user'))
{
	my $all = everything($preloaded, $role, '') =~ s/^.*pg_file_settings.*$//mr;
	my $is_superuser = $role !~ /plain|monitor|repl/;

	# pg_file_settings shows the file, to roles that may read it anyway.
	$all =~ s/^.*postgresql\.conf\|.*$//mg if $is_superuser;
	unlike($all, $secret, "preloaded: $role finds no key");
	like($all, qr/^\*{8}$/m, "preloaded: $role sees asterisks");
}
$walsender = walsender($preloaded, 'repl');
unlike($walsender, $secret, 'preloaded: a replication connection finds no key');
like($walsender, qr/^\*{8}$/m, 'preloaded: the replication connection shows asterisks');
unlike(PostgreSQL::Test::Utils::slurp_file($preloaded->logfile),
	$secret, 'preloaded: the server log has no key');
like(
	$preloaded->safe_psql(
		'postgres', q{SELECT hrflow_profile_embedding('s', 'p', '{"profile": 1}')}),
	qr/profile.hflw/,
	'preloaded: the configured key is used');
$preloaded->stop;

#
# In the configuration, not preloaded, which docs/reference.md advises against
# and a WARNING too
#
my $late = Hrflow::Node->new('late', $api, api_key => $key);
$late->psql('postgres', q{LOAD 'hrflow_embed'}, stderr => \$err);
like(
	$err,
	qr/WARNING:  every role could read parameter "hrflow_embed.api_key" until hrflow_embed was loaded/,
	'a WARNING reports a key that every role could read until now');
unlike($err, $secret, 'the warning does not show the key');
$late->append_conf('postgresql.conf', "session_preload_libraries = 'hrflow_embed'");
$late->reload;
$late->poll_query_until('postgres',
	q{SELECT current_setting('session_preload_libraries') = 'hrflow_embed'});
$late->psql('postgres', q{SELECT 1}, stderr => \$err);
is($err, '', 'there is no warning with session_preload_libraries');
$late->append_conf('postgresql.conf', "session_preload_libraries = '\$libdir/hrflow_embed.so'");
$late->reload;
$late->poll_query_until('postgres',
	q{SELECT current_setting('session_preload_libraries') LIKE '%.so'});
$late->psql('postgres', q{SELECT 1}, stderr => \$err);
is($err, '', 'there is no warning with session_preload_libraries, however the library is named');

done_testing();
