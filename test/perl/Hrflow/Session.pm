# A persistent psql session, which can be observed while its statements run.
#
#   my $session = Hrflow::Session->new($node);      timeout => 60, in seconds
#   $session->ask($sql)        runs a statement; returns output and errors
#   $session->send($sql)       likewise, without waiting
#   $session->wait_for(qr//)   waits until the output matches
#   $session->pid              pid of the backend
#   $session->sockets          number of sockets that the backend has open
package Hrflow::Session;

use strict;
use warnings FATAL => 'all';
use IPC::Run ();

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

	eval { $self->{in} .= "\\q\n"; $self->{psql}->finish };
	return;
}

1;
