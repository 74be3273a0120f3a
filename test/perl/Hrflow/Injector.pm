# Injects failures into backends of servers that are started while this object
# is in scope; see injector.c.
#
#   my $injector = Hrflow::Injector->new;
#   $injector->arm($pid, 'memory', 3)   the third allocation fails; 0: none;
#                                       'wakeups': the third wait is canceled;
#                                       'bodies': the third enlargement of a
#                                       reply's body fails;
#                                       'waits', 'actions', 'additions': the third
#                                       wait, action on a socket or addition of a
#                                       request fails;
#                                       'inflations': the third inflate() fails;
#                                       'terminations': the backend is terminated at
#                                       the third wait
#   $injector->arm($pid, 'wakeups', 3, 1)   likewise, and while the backend has no
#                                       request in flight, its clock is set forward
#                                       instead of waiting
#   my $seen = $injector->disarm        a hash with the number of events seen,
#                                       failures injected, and libcurl handles
#                                       created and added since
#   $injector->set_clock_forward($seconds)  the monotonic clock that the extension
#                                       sees, in all backends
#   $injector->ahead            seconds by which this clock is ahead
package Hrflow::Injector;

use strict;
use warnings FATAL => 'all';
use File::Basename          qw(dirname);
use PostgreSQL::Test::Utils ();

my $layout = 'l l q q q q q q';
my $size = length pack($layout, (0) x 8);
my %whats = (
	memory => 1,
	wakeups => 2,
	bodies => 3,
	waits => 4,
	actions => 5,
	additions => 6,
	inflations => 7,
	terminations => 8);

sub new
{
	my ($class) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir_short();
	my $self = bless { path => "$dir/order" }, $class;

	system('gcc', '-shared', '-fPIC', '-O1', '-fno-optimize-sibling-calls', '-o',
		"$dir/injector.so", dirname(__FILE__) . '/injector.c', '-ldl') == 0
	  or die "could not compile the injector";
	PostgreSQL::Test::Utils::append_to_file($self->{path}, pack("$layout q", (0) x 9));
	open($self->{file}, '+<', $self->{path}) or die $!;
	$self->{before} = { map { $_ => $ENV{$_} } qw(LD_PRELOAD HRFLOW_INJECT) };
	$ENV{LD_PRELOAD} = "$dir/injector.so";
	$ENV{HRFLOW_INJECT} = $self->{path};
	return $self;
}

# Do not affect servers that are started from now on.
sub leave
{
	my ($self) = @_;
	my $before = delete $self->{before} or return;

	foreach my $name (keys %$before)
	{
		if (defined $before->{$name}) { $ENV{$name} = $before->{$name}; }
		else                          { delete $ENV{$name}; }
	}
	return;
}

sub _write
{
	my ($self, @fields) = @_;

	sysseek($self->{file}, 0, 0);
	syswrite($self->{file}, pack($layout, @fields)) == $size or die $!;
	return;
}

sub arm
{
	my ($self, $pid, $what, $nth, $skips) = @_;

	$self->_write($pid, $whats{$what}, $nth, (0) x 4, $skips // 0);
	return;
}

sub disarm
{
	my ($self) = @_;
	my %seen;

	sysseek($self->{file}, 0, 0);
	sysread($self->{file}, my $content, $size);
	(undef, undef, undef, @seen{qw(seen injected handles added)}) = unpack($layout, $content);
	$self->_write((0) x 8);
	return \%seen;
}

sub ahead
{
	my ($self) = @_;

	sysseek($self->{file}, $size, 0);
	sysread($self->{file}, my $ahead, 8) == 8 or die $!;
	return unpack('q', $ahead) / 1000;
}

sub set_clock_forward
{
	my ($self, $seconds) = @_;
	my $ahead = $self->ahead + $seconds;

	sysseek($self->{file}, $size, 0);
	syswrite($self->{file}, pack('q', $ahead * 1000)) == 8 or die $!;
	return;
}

sub DESTROY
{
	my ($self) = @_;
	$self->leave;
	return;
}

1;
