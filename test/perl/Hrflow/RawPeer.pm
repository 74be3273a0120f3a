# A server that does what no HTTP library would: a process that listens on a
# port of 127.0.0.1 and passes each connection to a function.
#
#   my $peer = Hrflow::RawPeer->new(sub {
#       my ($socket, $n) = @_;      # $n: 0 for the first connection
#       Hrflow::RawPeer::read_request($socket);
#       print $socket "HTTP/1.1 200 OK\r\n...";
#   });
#   $peer->port
#
# Each connection is served by a process of its own, and is closed when the
# function returns.  A peer without a function never accepts connections.  The port of a
# peer that was stopped refuses connections.
#
# A function may forward a connection to another server, reset it, or drop all
# further packets that it receives, as a NAT does that has forgotten the
# connection:
#       Hrflow::RawPeer::forward($socket, $port);
#       Hrflow::RawPeer::reset_connection($socket);
#       Hrflow::RawPeer::drop_packets($socket);
# By combining these, a peer in front of a TLS server can reset a particular
# handshake:
#       sysread($socket, my $hello, 1) if $n == 4;    # of the fifth connection
#
# Some kernels let only root drop packets.  A test that does so begins with
#       BEGIN { Hrflow::RawPeer::obtain_right_to_drop_packets() }
package Hrflow::RawPeer;

use strict;
use warnings FATAL => 'all';
use Hrflow::Port;
use IO::Socket::INET;
use POSIX  qw(WNOHANG);
use Socket qw(AF_INET IPPROTO_TCP SOCK_DGRAM SO_LINGER SOL_SOCKET TCP_NODELAY);

sub new
{
	my ($class, $serve, %options) = @_;
	my $listener = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1',
		LocalPort => $options{port} // Hrflow::Port::reserve(),
		Listen => $options{backlog} // 512,
		ReuseAddr => 1) or die "could not listen: $!";
	my $self = bless { port => $listener->sockport, owner => $$ }, $class;

	# IO::Socket replaces a backlog of 0 by 5.
	listen($listener, $options{backlog}) if defined $options{backlog};

	if (!$serve)
	{
		$self->{listener} = $listener;
		return $self;
	}
	pipe(my $ours, my $theirs) or die $!;
	$self->{pid} = fork() // die "could not fork: $!";
	if ($self->{pid} == 0)
	{
		close $theirs;
		_serve($listener, $ours, $serve);
	}
	close $ours;
	$self->{alive} = $theirs;    # the peer exits when this is closed
	return $self;
}

# In the child: serve until our parent closes the pipe.
sub _serve
{
	my ($listener, $alive, $serve) = @_;
	my $n = 0;
	my %children;

	# The kernel does not assign the pid of a child again before it has been reaped.
	my $end = sub { kill 'KILL', keys %children; POSIX::_exit(0) };

	$SIG{TERM} = $end;
	$SIG{PIPE} = 'IGNORE';
	for (;;)
	{
		my $ready = '';
		while ((my $pid = waitpid(-1, WNOHANG)) > 0) { delete $children{$pid} }
		vec($ready, fileno($listener), 1) = 1;
		vec($ready, fileno($alive), 1) = 1;
		next if select($ready, undef, undef, undef) < 0;
		last if vec($ready, fileno($alive), 1);
		my $socket = $listener->accept or next;
		my $pid = fork() // last;

		if ($pid == 0)
		{
			$SIG{TERM} = 'DEFAULT';
			$listener->close;
			$socket->autoflush(1);
			setsockopt($socket, IPPROTO_TCP, TCP_NODELAY, 1);
			eval { $serve->($socket, $n) };
			POSIX::_exit(0);
		}
		$children{$pid} = 1;
		$socket->close;
		$n++;
	}
	$end->();
}

sub port { return $_[0]{port}; }

# Read the head of a request.  Returns it, or nothing if the connection was
# closed.
sub read_request
{
	my ($socket) = @_;
	my $head = '';

	while ($head !~ /\r\n\r\n$/)
	{
		sysread($socket, my $byte, 1) or return;
		$head .= $byte;
	}
	return $head;
}

# Forward bytes to and from a port of 127.0.0.1, until either side closes.
sub forward
{
	my ($socket, $port) = @_;
	my $other = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or return;
	my %across = (fileno($socket) => $other, fileno($other) => $socket);

	setsockopt($other, IPPROTO_TCP, TCP_NODELAY, 1);
	for (;;)
	{
		my $ready = '';
		vec($ready, $_, 1) = 1 foreach keys %across;
		next if select($ready, undef, undef, undef) < 0;
		foreach my $from ($socket, $other)
		{
			next unless vec($ready, fileno($from), 1);
			sysread($from, my $bytes, 65536)        or return;
			$across{ fileno($from) }->print($bytes) or return;
		}
	}
}

# Close a connection by a reset.
sub reset_connection
{
	my ($socket) = @_;

	setsockopt($socket, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
	close($socket);
	return;
}

# Drop all packets that a connection receives from now on, before TCP
# acknowledges them.  The filter is the BPF instruction "return 0" (socket(7)).
sub drop_packets
{
	my ($socket) = @_;
	my $program = pack('SCCL', 0x06, 0, 0, 0);
	my $so_attach_filter = 26;

	setsockopt($socket, SOL_SOCKET, $so_attach_filter, pack('S x![P] P', 1, $program))
	  or die "could not attach a filter: $!";
	return;
}

# Can packets be dropped?  Some kernels, such as Linux 6.18, let only root filter
# those of a TCP connection.
sub can_drop_packets
{
	my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1)
	  or die "could not listen: $!";

	return eval { drop_packets($socket); 1 };
}

# If packets cannot be dropped, run this program again in user and network namespaces of
# its own, if possible, in which it has the capabilities of root but the same user.  Must
# be called before anything else is done.
sub obtain_right_to_drop_packets
{
	my @unshare = ('unshare', '--user', '--map-current-user', '--keep-caps', '--net');

	if ($ENV{HRFLOW_NAMESPACE})
	{
		# Enable loopback: netdevice(7).  The numbers are SIOCSIFFLAGS and IFF_UP.
		my $request = pack('a16 s x22', 'lo', 1);
		socket(my $socket, AF_INET, SOCK_DGRAM, 0) or die $!;
		ioctl($socket, 0x8914, $request)           or die "could not enable loopback: $!";
		return;
	}
	return if can_drop_packets();
	return unless system("@unshare true 2>/dev/null") == 0;
	$ENV{HRFLOW_NAMESPACE} = 1;
	exec @unshare, $^X, (map { "-I$_" } @INC), $0 or die "could not run unshare: $!";
}

sub stop
{
	my ($self) = @_;

	return if $$ != $self->{owner};
	delete $self->{alive};
	delete $self->{listener};
	if (my $pid = delete $self->{pid})
	{
		kill 'TERM', $pid;
		for (1 .. 500)
		{
			return if waitpid($pid, WNOHANG) != 0;
			select(undef, undef, undef, 0.01);
		}
		kill 'KILL', $pid;
		waitpid($pid, 0);
	}
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!, $@);
	$self->stop;
	return;
}

1;
