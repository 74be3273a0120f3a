# The key is nowhere to be read: in no message, log, catalog, view or SHOW, for
# no role, whether the session has called anything or not; and the key's file is
# read as the README says.  That takes logs, other roles, replication
# connections and restarts.
use strict;
use warnings;
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
	$node->safe_psql('postgres', q{
		CREATE ROLE plain LOGIN;
		CREATE ROLE repl LOGIN REPLICATION;
		CREATE ROLE monitor LOGIN;
		GRANT pg_monitor, pg_read_all_settings, pg_read_all_stats TO monitor;});
	return;
}

# All that can be read about settings, as some role, in a fresh session.
sub everything
{
	my ($node, $role, $first) = @_;
	my ($status, $out, $err) = $node->psql('postgres', "$first\n" . q{
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
		extra_params => [ '-U', $role ], on_error_stop => 0);
	return "$out\n$err";
}

sub walsender
{
	my ($node, $role) = @_;
	my ($status, $out, $err) = $node->psql('postgres',
		"SHOW hrflow_embed.api_key;\nSHOW hrflow_embed.api_key_file;",
		replication => 'true', extra_params => [ '-U', $role ], on_error_stop => 0);
	return "$out\n$err";
}

#
# As the README sets it up: a file
#
my $node = Hrflow::Node->new(
	'file', $api,
	max_attempts => 1,
	log_min_messages => 'debug5',
	log_statement => 'all',
	log_error_verbosity => 'verbose',
	log_connections => 'on');
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
	q{SET hrflow_embed.request_timeout = '50ms'; SELECT hrflow_profile_embedding('s', 'fault:silent')},
	q{SELECT status, error FROM hrflow_profile_embeddings('s', '{a,"fault:status=401,echo",b}')},
	q{SELECT status, error FROM hrflow_profile_embeddings('s', '{a,"fault:status=500,echo",b}')},
	q{SELECT status, error FROM hrflow_profile_vectors('s', '{a,b}')},
	"SET hrflow_embed.base_url = '$tls'; SELECT hrflow_profile_embedding('s', 'a')",
	"SET hrflow_embed.base_url = 'http://127.0.0.1:$closed_port/v1'; SELECT hrflow_profile_embedding('s', 'a')");
my $said = '';
foreach my $call (@calls)
{
	my ($status, $out, $err) = $node->psql('postgres',
		"\\set VERBOSITY verbose\nSET client_min_messages = debug5;\n$call;",
		on_error_stop => 0);
	$said .= "$out\n$err\n";
}
like($said, qr/profile\.hflw/, 'calls succeed');
like($said, qr/28000: HrFlow API refused the API key/, 'and fail');
like($said, qr/Invalid secret key: \*{8}/, 'and an answer that repeats the key is shown without it');
unlike($said, $secret, 'no client is told the key, at any level');

$node->append_conf('postgresql.conf', 'hrflow_embed.max_concurrency = 8');
$node->reload;
$node->poll_query_until('postgres', q{SELECT current_setting('hrflow_embed.max_concurrency') = '8'});
foreach my $role (qw(plain monitor repl), $node->safe_psql('postgres', 'SELECT current_user'))
{
	unlike(everything($node, $role, ''), $secret, "$role finds no key in a fresh session");
	unlike(everything($node, $role, q{LOAD 'hrflow_embed'; SELECT hrflow_decode_vector('[1]');}),
		$secret, 'nor when the library is loaded');
}
unlike(walsender($node, 'repl'), $secret, 'nor over a replication connection');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), $secret,
	'the log does not have it at debug5, a reload included');
$node->stop;
my $grep = `grep -rlE '0123456789abcdef0123' @{[ $node->data_dir ]}`;
is($grep, '', 'no file below the data directory has it');
$node->start;

#
# An API that puts the key into what it answers: a section, a link, a number
#
my $echo = Hrflow::RawPeer->new(sub {
	my ($socket) = @_;
	while (my $head = Hrflow::RawPeer::read_request($socket))
	{
		my ($path, $sent, $length) =
		  ($head =~ m{^\S+ (\S+)}, $head =~ /^X-API-KEY: (\S+)/mi, $head =~ /^Content-Length: (\d+)/mi);
		read($socket, my $body, $length) if $length;
		my $data =
			$path =~ m{/text/} ? qq([{"embedding": [1, $sent]}])
		  : $path =~ m{/job/} ? qq("https://other.example/$sent/v.hflw?s")
		  : $path =~ /=section/ ? qq({"$sent": 5})
		  : qq({"profile": "https://other.example/$sent/v.hflw"});
		$body = qq({"code": 200, "data": $data});
		print $socket "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
	}
});
foreach my $sent ($key, 'Zx9-old_style.key_of_another_form')
{
	$node->write_key($sent);
	foreach my $call ('hrflow_text_embedding(\'x\')', 'hrflow_text_embeddings(\'{x}\')', 'hrflow_job_vector(\'x\')',
		'hrflow_profile_embedding_links(\'s\', \'section\')', 'hrflow_profile_vectors(\'s\', \'{section,link}\')')
	{
		my (undef, $out, $err) = $node->psql('postgres',
			"\\set VERBOSITY verbose\nSET hrflow_embed.base_url = 'http://127.0.0.1:" . $echo->port . "/v1'; SELECT * FROM $call;");
		like("$out$err", qr/\*{8}/, "$call shows what is wrong");
		unlike("$out$err", qr/$secret|_style\.key/, 'without the key that is in it');
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
	[ 'as it is', $key, $key ], [ 'with a newline', "$key\n", $key ],
	[ "with DOS's", "$key\r\n", $key ], [ 'that was rotated', "$rotated\n", $rotated ])
{
	my ($name, $content, $sent) = @$case;
	$node->write_key($content);
	$api->reset;
	like($session->ask($call), qr/called/, "a key $name is taken by the session's next statement");
	is(key_sent(), $sent, 'and sent');
}
foreach my $case (
	[ 'empty', '', '55000' ], [ 'a newline', "\n", '55000' ], [ 'too long', 'x' x 10000, '22023' ],
	[ 'two lines', "$key\n$key\n", '22023' ], [ 'a space', "askr 0123456789abcdef0123", '22023' ],
	[ 'a NUL', "askr_0123456789abcdef0123\0x", '22023' ], [ 'UTF-8', "askr_0123456789abcdef0123\xc3\xa9", '22023' ],
	[ 'an injected header', "askr_0123456789abcdef0123\r\nX-Evil: 1", '22023' ])
{
	my ($name, $content, $state) = @$case;
	$node->write_key($content);
	$api->reset;
	my $printed = $session->ask($call);
	like($printed, qr/ERROR:  $state:.*hrflow_embed\.api_key_file/, "a file with $name is refused, and the setting named");
	unlike($printed, qr/$secret|X-Evil/, 'not what is in it');
	is(scalar($api->log), 0, 'and nothing is sent');
}

my $path = $node->key_file;
unlink $path;
like($session->ask($call), qr/ERROR:  55000:/, 'a file that is not there is refused');
mkdir $path;
like($session->ask($call), qr/ERROR:  55000:/, 'a directory is');
rmdir $path;
system('mkfifo', $path) == 0 or die;
my $began = time;
like($session->ask($call), qr/ERROR:  55000:/, 'a FIFO is');
cmp_ok(time - $began, '<', 2, 'at once');
unlink $path;
SKIP:
{
	skip '/proc is not to be had', 1 unless -e '/proc/self/mem';
	like($session->ask("SET hrflow_embed.api_key_file = '/proc/self/mem'; $call RESET hrflow_embed.api_key_file;"),
		qr/ERROR:  55000: could not read.*Input/, 'a file whose reading fails is');
}
SKIP:
{
	skip 'root may read all', 1 if $> == 0;
	$node->write_key($key);
	chmod 0, $path;
	like($session->ask($call), qr/ERROR:  55000:.*Permission denied/, 'a file that cannot be read is');
	unlink $path;
}
$node->write_key($key);

# A key of the session's own
like($session->ask("SET hrflow_embed.api_key = '$rotated'; $call"), qr/called/, 'a superuser may set a key for a session');
is(key_sent(), $rotated, 'which wins');
like($session->ask('SHOW hrflow_embed.api_key;'), qr/^\*{8}$/m, 'and is shown as asterisks');
$session->ask("RESET hrflow_embed.api_key; $call");
is(key_sent(), $key, 'until RESET');
$session->ask("SET hrflow_embed.api_key = '$rotated'; DISCARD ALL; $call");
is(key_sent(), $key, 'or DISCARD ALL');
$session->ask("BEGIN; SET LOCAL hrflow_embed.api_key = '$rotated'; COMMIT; $call");
is(key_sent(), $key, 'or the end of the transaction');
$session->finish;

# What PostgreSQL keeps where all can read it
foreach my $statement ("ALTER ROLE plain SET hrflow_embed.api_key = '$rotated'",
	"ALTER DATABASE postgres SET hrflow_embed.api_key = '$rotated'",
	"CREATE FUNCTION f() RETURNS int LANGUAGE sql SET hrflow_embed.api_key = '$rotated' AS 'SELECT 1'",
	q{SET hrflow_embed.api_key = '********'})
{
	like($node->error_of("LOAD 'hrflow_embed'; $statement;"), qr/^22023/,
		($statement =~ s/ ?(=|SET).*//r) . ' … api_key is refused');
}
my (undef, undef, $err) = $node->psql('postgres', "LOAD 'hrflow_embed'; SET hrflow_embed.api_key = 'with space $rotated';");
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
	log_min_messages => 'debug5');
roles($preloaded);
foreach my $role (qw(plain monitor repl), $preloaded->safe_psql('postgres', 'SELECT current_user'))
{
	my $all = everything($preloaded, $role, '') =~ s/^.*pg_file_settings.*$//mr;
	my $is_superuser = $role !~ /plain|monitor|repl/;

	# pg_file_settings prints the file, to those who may read it anyway.
	$all =~ s/^.*postgresql\.conf\|.*$//mg if $is_superuser;
	unlike($all, $secret, "preloaded: $role finds no key");
	like($all, qr/^\*{8}$/m, 'but asterisks');
}
my $walsender = walsender($preloaded, 'repl');
unlike($walsender, $secret, 'nor does a replication connection');
unlike(PostgreSQL::Test::Utils::slurp_file($preloaded->logfile), $secret, 'nor the log');
like($preloaded->safe_psql('postgres', q{SELECT hrflow_profile_embedding('s', 'p', '{"profile": 1}')}),
	qr/profile.hflw/, 'and the key is used');
$preloaded->stop;

#
# In the configuration, not preloaded: the README says not to, and so do we
#
my $late = Hrflow::Node->new('late', $api, api_key => $key);
$late->psql('postgres', q{LOAD 'hrflow_embed'}, stderr => \$err);
like($err, qr/WARNING:  every role could read "hrflow_embed.api_key" until hrflow_embed was loaded/,
	'a key that was readable until now is warned of');
unlike($err, $secret, 'without showing it');
$late->append_conf('postgresql.conf', "session_preload_libraries = 'hrflow_embed'");
$late->reload;
$late->poll_query_until('postgres', q{SELECT current_setting('session_preload_libraries') = 'hrflow_embed'});
$late->psql('postgres', q{SELECT 1}, stderr => \$err);
is($err, '', 'with session_preload_libraries there is no warning');
$late->append_conf('postgresql.conf', "session_preload_libraries = '\$libdir/hrflow_embed.so'");
$late->reload;
$late->poll_query_until('postgres', q{SELECT current_setting('session_preload_libraries') LIKE '%.so'});
$late->psql('postgres', q{SELECT 1}, stderr => \$err);
is($err, '', 'however the library is named there');

done_testing();
