# No role can undo what a superuser has configured by a value that is set before the
# library is loaded: if PostgreSQL refuses the value, the default does not apply in
# place of that of the configuration file.  This needs connection options, other roles
# and files.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('refused', $api, max_requests_per_day => 1000);
my $call = q{SELECT hrflow_profile_embedding('acme', 'p') IS NOT NULL};
my $refused =
  qr/ERROR:\ \ 55000:\ value\ of\ parameter\ "hrflow_embed\.(\w+)"\ was\ refused\ when\ .*
	DETAIL:\ .*HINT:\ /xs;
my $permission = qr/permission denied to set parameter/;

sub sql { return $node->safe_psql('postgres', @_); }

# Run statements in a new session, with connection options.  Returns the output and the
# messages.
sub run_as
{
	my ($role, $options, $sql) = @_;
	local $ENV{PGOPTIONS} = $options;
	my ($status, $out, $err) = $node->psql(
		'postgres',
		"\\set VERBOSITY verbose\n$sql",
		extra_params => [ '-U', $role ],
		on_error_stop => 0);

	return "$out\n$err";
}

# Begin a session of a role, with connection options.
sub session_as
{
	my ($role, $options) = @_;
	local $ENV{PGOPTIONS} = $options;
	local $ENV{PGUSER} = $role;

	return Hrflow::Session->new($node);
}

sub configure
{
	my (@lines) = @_;

	$node->append_conf('postgresql.conf', join("\n", @lines));
	$node->reload;
	return;
}

my $superuser = sql('SELECT current_user');
sql(q{CREATE ROLE recruiter LOGIN;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO recruiter});
my %kinds = map { split /\|/ } split /\n/, sql(
	q{LOAD 'hrflow_embed';
	SELECT name, vartype FROM pg_settings
		WHERE name LIKE 'hrflow\_embed.%' AND context = 'superuser'});
$kinds{'hrflow_embed.api_key'} = 'string';
cmp_ok(scalar(keys %kinds), '>=', 12, 'many settings are for superusers only');
unlike(run_as('recruiter', '', $call), qr/ERROR/, 'a role may call');

#
# Options of the connection
#
my %values = (
	integer => [ 1, 'many' ],
	string => [ '', 'x', 'https://example.com/v1' ],
	enum => [ 'key', 'x' ]);
foreach my $name (sort keys %kinds)
{
	foreach my $value (@{ $values{ $kinds{$name} } })
	{
		$api->reset;
		my $said = run_as('recruiter', "-c $name=$value", "$call;");
		like($said, qr/WARNING.*$permission "\Q$name\E"/,
			"'$value' of a role for $name is refused");
		is( ($said =~ $refused)[0] // 'none',
			$name =~ s/.*\.//r,
			"a call fails if '$value' for $name was refused");
		is($api->stats->{requests}, 0, "nothing is sent if '$value' for $name was refused");
	}
}
like(run_as('recruiter', '-c HRFLOW_EMBED.Max_requests_per_DAY=1', $call),
	$refused, 'a call fails if the refused option was written in upper case');

my $option = '-c hrflow_embed.max_requests_per_day=1';
foreach my $sql (
	q{SELECT hrflow_profile_embedding('acme', 'p' || i) FROM generate_series(1, 3) i},
	q{SELECT * FROM hrflow_profile_embeddings('acme', '{a,b}')},
	q{SELECT * FROM hrflow_profile_embedding_links('acme', 'a')},
	q{SELECT * FROM hrflow_fetch_vectors('{https://a.s3.amazonaws.com/}')},
	q{SELECT * FROM hrflow_estimate('acme', '{a,b}')},
	'SELECT hrflow_auth()')
{
	like(run_as('recruiter', $option, "$sql;"), $refused, "fails: $sql");
}
like(run_as('recruiter', $option, q{SELECT hrflow_decode_vector('[1]')}),
	qr/^\{1\}/, 'functions that do not use the network work');

foreach my $option ('max_attempts=2', 'max_attempts=0', 'on_missing=null', 'read_ahead=x')
{
	like(run_as('recruiter', "-c hrflow_embed.$option", $call),
		qr/^t$/m, "a role may connect with $option, which is for all users");
}
like(run_as($superuser, '-c hrflow_embed.max_requests_per_day=2000', $call),
	qr/^t$/m, 'a superuser may connect with a value');
like(run_as($superuser, '-c hrflow_embed.max_requests_per_day=many', $call),
	$refused, 'a call of a superuser fails if a value was not valid');
sql('GRANT SET ON PARAMETER hrflow_embed.max_requests_per_day TO recruiter');
like(run_as('recruiter', '-c hrflow_embed.max_requests_per_day=2000', $call),
	qr/^t$/m, 'a role that may set a parameter may connect with a value');
sql('REVOKE SET ON PARAMETER hrflow_embed.max_requests_per_day FROM recruiter');

#
# SET and ALTER ROLE
#
foreach my $name ('max_requests_per_day', 'max_requests_per_minute')
{
	my $said =
	  run_as('recruiter', '', "SET hrflow_embed.$name = 1; $call; SHOW hrflow_embed.$name");

	like($said, $permission, "a role may not set $name");
	like(
		$said,
		$name eq 'max_requests_per_day' ? qr/^t\n1000$/m : qr/^t\n0$/m,
		"if a SET of $name is refused, what was configured applies");
}
like(run_as('recruiter', '', 'ALTER ROLE recruiter SET hrflow_embed.max_requests_per_day = 1'),
	$permission, 'a role may not set a parameter for itself');
sql('ALTER ROLE recruiter SET hrflow_embed.max_requests_per_day = 2000');
like(run_as('recruiter', '', "$call; SHOW hrflow_embed.max_requests_per_day"),
	qr/^t\n2000$/m, 'a superuser may set a parameter for a role');
sql('ALTER ROLE recruiter RESET hrflow_embed.max_requests_per_day');
foreach my $case ([ base_url => 'ftp://example.com' ], [ api_key => 'key' ])
{
	my ($name, $value) = @$case;

	sql("ALTER ROLE recruiter SET hrflow_embed.$name = '$value'");
	is((run_as('recruiter', '', "$call;") =~ $refused)[0],
		$name, "a call fails if the $name that a superuser has set for the role is not allowed");
	sql("ALTER ROLE recruiter RESET hrflow_embed.$name");
}

#
# Ways out
#
{
	my $session = session_as($superuser, '-c hrflow_embed.max_requests_per_day=many');

	like($session->ask("$call;"), $refused, 'a call fails before a SET');
	is($session->query("SET hrflow_embed.max_requests_per_day = 0; $call;"),
		't', 'after a SET, a call succeeds, even if the value is the default');
	like($session->ask("RESET hrflow_embed.max_requests_per_day; $call;"),
		$refused, 'RESET does not make the default apply');
	is( $session->query("BEGIN; SET LOCAL hrflow_embed.max_requests_per_day = 50; $call; COMMIT;"),
		't', 'after a SET LOCAL, a call succeeds');
	like($session->ask("$call;"), $refused, 'after the transaction of a SET LOCAL, a call fails');
	$session->finish;
}
{
	my $session = session_as('recruiter', $option);
	my $said = '';

	like($session->ask("$call;"), $refused, 'a call fails before a reload');
	configure();
	for (1 .. 100)
	{
		$said = $session->ask("$call;");
		last if $said !~ $refused;
		select(undef, undef, undef, 0.1);
	}
	like($said, qr/^t$/m, 'after a reload, a call succeeds');
	is($session->query('SHOW hrflow_embed.max_requests_per_day; RESET ALL;' . " $call;"),
		"1000\nt", 'after a reload, what was configured applies');
	$session->finish;
}

#
# Preloading
#
configure("session_preload_libraries = 'hrflow_embed'");
like(run_as('recruiter', $option, "$call;"),
	$refused, 'a call fails if session_preload_libraries has loaded the library');
configure("session_preload_libraries = ''");

configure("shared_preload_libraries = 'hrflow_embed'", 'hrflow_embed.max_requests_per_day = many');
$node->restart;
foreach my $value ("'1 s'", 1000)
{
	my $wanted = $value eq '1000' ? qr/^t$/m : $refused;

	configure("hrflow_embed.max_requests_per_day = $value");
	my $said = '';
	for (1 .. 100)
	{
		$said = run_as('recruiter', '', "$call;");
		last if $said =~ $wanted;
		select(undef, undef, undef, 0.1);
	}
	like($said, $wanted, "a value that is not valid must be corrected: it is $value");
}

$node->stop('fast');
done_testing();
