# A persistent psql session, which can be observed while its statements run.
#
#   my $session = Hrflow::Session->new($node);
#                              timeout => N, in seconds, is for each call of a method;
#                              the default is that of PostgreSQL's tests
#   $session->query($sql)      runs statements; returns their output, without a final
#                              newline; dies if one of them fails
#   $session->start($sql)      starts statements
#   $session->result           waits for them, and returns or dies as query() does
#   $session->ask($sql)        runs statements; returns output and errors, followed by
#                              a line "-- done"
#   $session->send($sql)       sends input without waiting
#   $session->wait_for(qr//)   waits until the output matches
#   $session->pid              pid of the backend
#   $session->sockets          number of sockets that the backend has open
#   $session->finish           ends psql; dies if psql fails, other than by losing its
#                              connection when a test has terminated the backend
package Hrflow::Session;

use strict;
use warnings FATAL => 'all';
use IPC::Run                ();
use PostgreSQL::Test::Utils ();

# Line that psql prints after the output of statements
my $END = '-- done';

# Status of psql when it has lost its connection
my $LOST_CONNECTION = 2 << 8;

sub new
{
	my ($class, $node, %options) = @_;
	my $self = bless { in => '', out => '', err => '' }, $class;

	$self->{timeout} =
	  IPC::Run::timeout($options{timeout} // $PostgreSQL::Test::Utils::timeout_default);
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

	# This throws if psql has ended, which _wait_until() notices.
	eval { $self->{psql}->pump_nb };
	return;
}

# Wait until a condition is true or psql has exited.
sub _wait_until
{
	my ($self, $holds, $what) = @_;

	while (!$holds->())
	{
		next if eval { $self->{psql}->pump; 1 };
		die "psql did not print $what in time: $self->{out}$self->{err}"
		  if $self->{timeout}->is_expired;
		last;
	}
	return;
}

# Wait until the output matches or psql has exited.  Returns the output.
sub wait_for
{
	my ($self, $pattern) = @_;

	$self->_wait_until(sub { "$self->{out}$self->{err}" =~ $pattern }, $pattern);
	return "$self->{out}$self->{err}";
}

sub ask
{
	my ($self, $sql) = @_;
	$self->send("$sql\n\\echo $END");
	return $self->wait_for(qr/$END/);
}

sub start
{
	my ($self, $sql) = @_;

	$self->send("$sql\n\\echo $END\n\\warn $END");
	return;
}

# Output and errors arrive over two pipes, so both must have their end.
sub result
{
	my ($self) = @_;
	my $end = qr/^$END\n/m;

	$self->_wait_until(sub { $self->{out} =~ $end && $self->{err} =~ $end }, $END);
	my ($out, $err) = @$self{ 'out', 'err' };
	$out =~ s/$end// && $err =~ s/$end// or die "psql has ended: $out$err";
	die "statement failed: $err" if $err =~ /^(?:ERROR|FATAL|PANIC):/m;
	chomp $out;
	return $out;
}

sub query
{
	my ($self, $sql) = @_;

	$self->start($sql);
	return $self->result;
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
