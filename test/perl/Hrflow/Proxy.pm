# An HTTP proxy for CONNECT that requires a user and a password, and records its
# requests.
#
#   my $proxy = Hrflow::Proxy->new(user => 'u', password => 'p');
#   $proxy->port
#   $proxy->connects           a string for each CONNECT, such as
#                              'api.example:443 407'
#   $proxy->reset              discards these records
#   $proxy->change_password('q')    for connections that are opened from now on
#
# Without a user, no authentication is required.  With port => PORT every
# CONNECT leads to that port of 127.0.0.1, whatever host and port it names.  With
# drop => N, the first N connections are closed without an answer after each reset,
# with the status "dropped".
package Hrflow::Proxy;

use strict;
use warnings FATAL => 'all';
use Hrflow::RawPeer;
use MIME::Base64            qw(encode_base64);
use PostgreSQL::Test::Utils ();

my $refusal = "HTTP/1.1 407 Proxy Authentication Required\r\n"
  . "Proxy-Authenticate: Basic realm=\"a test\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

sub new
{
	my ($class, %options) = @_;
	my $self = bless { log => PostgreSQL::Test::Utils::tempdir_short() . '/log' }, $class;

	$self->{user} = $options{user};
	$self->{drop} = $options{drop} // 0;
	$self->change_password($options{password} // '');
	$self->{peer} = Hrflow::RawPeer->new(sub { $self->_serve($_[0], $options{port}) });
	$self->reset;
	return $self;
}

# Return the expected credentials, or nothing if none are required.
sub _expected
{
	my ($self) = @_;

	return unless defined $self->{user};
	return encode_base64(
		"$self->{user}:" . PostgreSQL::Test::Utils::slurp_file("$self->{log}.password"), '');
}

sub _serve
{
	my ($self, $socket, $to) = @_;
	my $expected = $self->_expected;
	my $request = Hrflow::RawPeer::read_request($socket) // return;
	my ($host, $port) = $request =~ /^CONNECT (\S+):(\d+) /;
	my ($given) = $request =~ /^Proxy-Authorization: Basic (\S+)\r$/mi;
	my $status = !$host ? 405 : $expected && ($given // '') ne $expected ? 407 : 200;

	$status = 'dropped' if $self->connects < $self->{drop};
	PostgreSQL::Test::Utils::append_to_file($self->{log},
		($host ? "$host:$port" : 'no CONNECT') . " $status\n");
	return if $status eq 'dropped';
	if ($status == 407) { print $socket $refusal; }
	elsif ($status == 405)
	{
		print $socket "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n";
	}
	else
	{
		print $socket "HTTP/1.1 200 Connection established\r\n\r\n";
		Hrflow::RawPeer::forward($socket, $to // $port);
	}
	return;
}

sub port { return $_[0]{peer}->port; }

sub connects
{
	my ($self) = @_;
	return split /\n/, PostgreSQL::Test::Utils::slurp_file($self->{log});
}

sub change_password
{
	my ($self, $password) = @_;

	open(my $file, '>', "$self->{log}.password") or die $!;
	print $file $password;
	close $file;
	return;
}

sub reset
{
	my ($self) = @_;

	open(my $log, '>', $self->{log}) or die $!;
	close $log;
	return;
}

1;
