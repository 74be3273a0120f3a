# A stand-in API for a test: starts and stops it, and reports what it received.
#
#   my $api = Hrflow::StandIn->new('--latency' => 20);
#   $api->base_url             http://127.0.0.1:PORT/v1
#   $api->base_url('https')    https://localhost:PORT/v1; needs ca as ca_file
#   $api->log                  a hash for each request since the last reset, in the
#                              order of the replies
#   $api->stats                counts of these
#   $api->script('status=503', ms => 3000)
#                              faults for the next requests; count => N
#   $api->release($n)          sends the last of N requests whose replies are held (hold=N)
#
# It is stopped when the object is destroyed, or when this process exits in any
# way.
package Hrflow::StandIn;

use strict;
use warnings FATAL => 'all';
use Carp;
use HTTP::Tiny;
use Hrflow::Port;
use IPC::Run ();
use JSON::PP;
use PostgreSQL::Test::Utils ();
use Scalar::Util            qw(weaken);

my @started;

# Ports of all stand-ins so far. The kernel may assign a port again, but what a backend
# has learned about an origin, such as its rate, must not apply to another stand-in.
my %used;

our $KEY = 'askr_0123456789abcdef0123456789abcdef';

sub new
{
	my ($class, @options) = @_;
	my $self = bless {}, $class;

	croak "HRFLOW_API does not name the stand-in's program"
	  unless $ENV{HRFLOW_API};
	$self->{dir} = PostgreSQL::Test::Utils::tempdir_short();

	# Its ports remain reserved after it has been stopped.  What a backend has learned about
	# an origin, such as its rate, must not apply to another stand-in.
	$self->{$_} = Hrflow::Port::reserve() foreach 'http', 'https';
	$self->_start(@options);
	weaken($started[@started] = $self);
	return $self;
}

# Objects that still exist during perl's global destruction cannot be stopped in
# an orderly way, because IPC::Run may have been destroyed already.
END
{
	local $?;
	eval { $_->stop } foreach grep { defined } @started;
}

sub _start
{
	my ($self, @options) = @_;
	my ($out, $err) = ('', '');
	my $timeout = IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default);

	push @options, map { ("--$_" => $self->{$_}) } 'http', 'https';
	$self->{in} = '';
	$self->{process} =
	  IPC::Run::start([ $ENV{HRFLOW_API}, '--dir', $self->{dir}, '--stdin', @options ],
		'<', \$self->{in}, '>', \$out, '2>', \$err, $timeout);
	while ($out !~ /^ready$/m)
	{
		croak "the stand-in API did not start: $err"
		  unless $self->{process}->pumpable;
		$self->{process}->pump;
	}
	$timeout->reset;
	($self->{ca}) = $out =~ /^ca (.+)$/m;
	return;
}

sub http  { return $_[0]{http}; }
sub https { return $_[0]{https}; }
sub ca    { return $_[0]{ca}; }
sub dir   { return $_[0]{dir}; }

sub base_url
{
	my ($self, $scheme) = @_;

	return "https://localhost:$self->{https}/v1"
	  if ($scheme // 'http') eq 'https';
	return "http://127.0.0.1:$self->{http}/v1";
}

# Fetch a page of the stand-in's own, such as its log, as text.
sub get
{
	my ($self, $path) = @_;
	my $reply = HTTP::Tiny->new(timeout => 20)->get("http://127.0.0.1:$self->{http}$path");

	croak "the stand-in API answered $path with $reply->{status}"
	  unless $reply->{success};
	return $reply->{content};
}

sub stats
{
	my ($self) = @_;
	return decode_json($self->get('/stats'));
}

sub log
{
	my ($self) = @_;
	my @lines = grep { /\S/ } split /\n/, $self->get('/log');
	return map { decode_json($_) } @lines;
}

sub reset
{
	my ($self) = @_;
	$self->get('/reset');
	return;
}

# Add a step to the stand-in's script; see its README.
sub script
{
	my ($self, $faults, %limits) = @_;

	$faults =~ s/([^\w.~-])/sprintf '%%%02X', ord $1/ge;
	$self->get(join '&', "/script?fault=$faults", map { "$_=$limits{$_}" } sort keys %limits);
	return;
}

# Wait until a condition on the stand-in's stats is true.  Returns false if that takes
# longer than PostgreSQL's tests wait.
sub wait_until
{
	my ($self, $holds) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;

	while (time < $deadline)
	{
		return 1 if $holds->($self->stats);
		select(undef, undef, undef, 0.005);
	}
	return 0;
}

# Release the replies to $n - 1 requests with the fault hold=$n, by sending the last one
# of these requests.
sub release
{
	my ($self, $n) = @_;
	my $query = "source_id=acme&profile_id=fault:hold=$n,id=release";
	my $reply = HTTP::Tiny->new(timeout => 60)
	  ->get($self->base_url . "/profile/embedding?$query", { headers => { 'X-API-KEY' => $KEY } });

	croak "the stand-in API answered with $reply->{status}" unless $reply->{success};
	return;
}

# Return the vector of a section, as the bytes of little-endian floats.
sub vector
{
	my ($self, $profile, $section, $item) = @_;

	return $self->get("/vector?profile=$profile&section=$section&item=$item");
}

sub stop
{
	my ($self) = @_;
	my $process = delete $self->{process} or return;

	$process->kill_kill(grace => 10);
	return;
}

# Stop it, and start it again on the same ports.
sub restart
{
	my ($self, @options) = @_;

	$self->stop;
	$self->_start(@options);
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local $@;
	local $?;
	eval { $self->stop };
	return;
}

1;
