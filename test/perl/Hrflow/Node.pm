# A private server with the extension in its database "postgres", set up for a
# stand-in API as the README recommends, with the key in a file.
#
#   my $node = Hrflow::Node->new('main', $api, setting => 'value', ...);
#
# If $api is undef, sessions must set hrflow_embed.base_url.
#
# Settings without a dot are those of hrflow_embed, except that install_path is the
# directory of another PostgreSQL version to use.  The object is a
# PostgreSQL::Test::Cluster whose psql() and safe_psql() die after half an hour unless another
# timeout is specified, with more methods:
#   error_of($sql)            SQLSTATE and message of the statement's error
#   key_file                  path of the key file
#   write_key($content)       writes the key file
#   kill_backend($pid)        kills a backend, and waits until the server has restarted, which
#                             ends all sessions; requires restart_after_crash
package Hrflow::Node;

use strict;
use warnings FATAL => 'all';
use Hrflow::StandIn;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils ();

use parent -norequire, 'PostgreSQL::Test::Cluster';

# Time limit of psql in seconds, which no test exceeds unless it hangs, even on a busy
# machine.  It must end before test/run-in-copy ends the suite, which would not show the test.
my $limit = 10 * $PostgreSQL::Test::Utils::timeout_default;

sub new
{
	my ($class, $name, $api, %settings) = @_;
	my @options =
	  exists $settings{install_path} ? (install_path => delete $settings{install_path}) : ();
	my $self = bless PostgreSQL::Test::Cluster->new($name, @options), $class;

	$self->init;
	$self->write_key($Hrflow::StandIn::KEY);
	$self->append_conf('postgresql.conf',
		"fsync = off\ntimezone = 'UTC'\nhrflow_embed.api_key_file = '" . $self->key_file . "'\n");
	$self->append_conf('postgresql.conf', "hrflow_embed.base_url = '" . $api->base_url . "'\n")
	  if $api;
	foreach my $setting (sort keys %settings)
	{
		my $full =
			$setting =~ /\.|^(log|session_preload|shared_preload|wal|max_(?:wal|prepared|files))_/
		  ? $setting
		  : "hrflow_embed.$setting";
		$self->append_conf('postgresql.conf', "$full = '$settings{$setting}'\n");
	}
	$self->start;
	$self->safe_psql('postgres', 'CREATE EXTENSION hrflow_embed');
	return $self;
}

# Called at the end of a test file.  Do not use immediate mode, in which
# backends would exit without writing their coverage data.
sub teardown_node
{
	my ($self, @options) = @_;

	return $self->SUPER::teardown_node(@options)
	  if ($ENV{HRFLOW_INSTRUMENT} // '') ne 'gcov';
	eval { $self->stop('fast'); 1 } or $self->stop('immediate');
	return;
}

# If the server does not accept the connection, psql may end before the statements have been
# written to it, and IPC::Run throws.  Try again, unless the text may be too long for the
# pipe: psql may then have executed its beginning.
sub psql
{
	my ($self, $dbname, $sql, %parameters) = @_;
	my $is_list = wantarray;
	my $is_short = length $sql < 4096;
	my @result;

	for my $try (1 .. 5)
	{
		return $is_list ? @result : $result[0]
		  if eval { @result = $self->_psql($is_list, $dbname, $sql, %parameters); 1 };
		die $@ if $@ !~ /Broken pipe/ || !$is_short || $try == 5;
		select(undef, undef, undef, 0.1);
	}
}

sub _psql
{
	my ($self, $is_list, $dbname, $sql, %parameters) = @_;
	my @arguments = ($dbname, $sql, timeout => $limit, %parameters);

	return $is_list ? $self->SUPER::psql(@arguments) : scalar $self->SUPER::psql(@arguments);
}

# The inherited function runs psql itself.
sub poll_query_until
{
	my ($self, @arguments) = @_;
	my $met;

	for (1 .. 100)
	{
		return $met if eval { $met = $self->SUPER::poll_query_until(@arguments); 1 };
		die $@      if $@ !~ /Broken pipe/;
	}
	die $@;
}

# The lost session ends before the postmaster notices that its backend was killed, and until
# then the server accepts connections that it is about to terminate.  So wait for another
# checkpointer.
sub kill_backend
{
	my ($self, $pid) = @_;
	my $start = q{SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'};
	my $before = $self->safe_psql('postgres', $start);

	kill('KILL', $pid) == 1 or die "backend $pid has ended: $!";
	$self->poll_query_until('postgres', "SELECT ($start) > '$before'")
	  or die 'the server has not recovered';
	return;
}

sub key_file { return $_[0]->basedir . '/hrflow.key'; }

sub write_key
{
	my ($self, $content) = @_;

	open(my $file, '>', $self->key_file) or die $!;
	binmode $file;
	chmod 0600, $self->key_file or die $!;
	print $file $content;
	close $file or die $!;
	return;
}

sub error_of
{
	my ($self, $sql) = @_;
	my ($status, $out, $err) = $self->psql('postgres', "\\set VERBOSITY verbose\n$sql");

	return $err =~ /ERROR:\s+(.*)/ ? $1 : '';
}

1;
