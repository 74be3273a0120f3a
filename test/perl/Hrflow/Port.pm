# Ports of 127.0.0.1 that the kernel assigns to no other socket while this process exists.
#
#   my $port = Hrflow::Port::reserve();
#
# A server with SO_REUSEADDR can listen on such a port.  While none does, connections are
# refused, even if many other tests run at the same time.
package Hrflow::Port;

use strict;
use warnings FATAL => 'all';
use IO::Socket::INET;

# Sockets that are bound, but do not listen
my @reserved;

sub reserve
{
	my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Proto => 'tcp', ReuseAddr => 1)
	  or die "could not reserve a port: $@";

	push @reserved, $socket;
	return $socket->sockport;
}

1;
