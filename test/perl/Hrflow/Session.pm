# A persistent psql session, which can be observed while its statements run.
#
#   my $session = Hrflow::Session->new($node);      timeout => 60, in seconds
#   $session->ask($sql)        runs a statement; returns output and errors
#   $session->send($sql)       likewise, without waiting
#   $session->wait_for(qr//)   waits until the output matches
#   $session->pid              pid of the backend
#   $session->sockets          number of sockets that the backend has open
#   $session->finish           ends psql; dies if psql fails, other than by losing its
#                              connection when a test has terminated the backend
package Hrflow::Session;

use strict;
use warnings FATAL => 'all';
use IPC::Run ();

# Status of psql when it has lost its connection
my $LOST_CONNECTION = 2 << 8;

sub new
{
	my ($class, $node, %options) = @_;
	my $self = bless { in => '', out => '', err => '' }, $class;

	$self->{timeout} = IPC::Run::timeout($options{timeout} // 60);
	$self->{psql} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('postgres') ],
		'<', \$self->{in}, '>', \$self->{out}, '2>', \$self->{err}, $self->{timeout});
	($self->{pid}) = $self->ask('SELECT pg_backend_pid();') =~ /(\d+)/;
	return $self;
}

sub send
{
	my ($self, $sql) = @_;
	$self->{out} = $self->{err} = '';
	$self->{timeout}->start;
	$self->{in} .= "$sql\n";
	$self->{psql}->pump_nb;
	return;
}

# Wait until the output matches or psql has exited.  Returns the output.
sub wait_for
{
	my ($self, $pattern) = @_;
	while ("$self->{out}$self->{err}" !~ $pattern)
	{
		next if eval { $self->{psql}->pump; 1 };
		die "psql did not print $pattern in time: $self->{out}$self->{err}"
		  if $self->{timeout}->is_expired;
		last;
	}
	return "$self->{out}$self->{err}";
}

sub ask
{
	my ($self, $sql) = @_;
	$self->send("$sql\n\\echo -- done");
	return $self->wait_for(qr/-- done/);
}

sub sockets
{
	my ($self) = @_;
	return scalar grep { (readlink($_) // '') =~ /socket/ } glob("/proc/$self->{pid}/fd/*");
}

sub pid { return $_[0]{pid}; }

sub finish
{
	my ($self) = @_;

	# The session may have been idle for longer than its timeout.
	$self->{timeout}->start;
	$self->{in} .= "\\q\n";
	if (!eval { $self->{psql}->finish; 1 })
	{
		die "psql did not end in time: $self->{out}$self->{err}" if $self->{timeout}->is_expired;

		# It ended before it could read this, because its connection was lost.
		return;
	}
	my $status = $self->{psql}->full_result;
	die "psql ended with $status: $self->{out}$self->{err}"
	  if $status != 0 && $status != $LOST_CONNECTION;
	return;
}

1;
