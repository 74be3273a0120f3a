# A TLS server that refuses HTTP/2 in one of several ways; see http2_peer.py.
#
#   my $peer = Hrflow::Http2Peer->new('goaway', $api) or skip ...;
#   $peer->base_url            https://localhost:PORT/v1; needs $api->ca as ca_file
#   $peer->count('request')    number of requests received
#   $peer->count('h2')         number of HTTP/2 connections
#   $peer->times('request')    times of the requests, in seconds
#   $peer->reset               resets the counts
#   $peer->follow('answer')    from now on, refuses HTTP/2 in another way, or not
#
# new() returns nothing if Python with TLS is not available.
package Hrflow::Http2Peer;

use strict;
use warnings FATAL => 'all';
use File::Basename          qw(dirname);
use IPC::Run                ();
use PostgreSQL::Test::Utils ();

sub new
{
	my ($class, $how, $api) = @_;
	my $self = bless { in => '', out => '', log => PostgreSQL::Test::Utils::tempdir() . '/log' },
	  $class;

	return
	  unless eval { IPC::Run::run([ 'python3', '-c', 'import ssl' ], '2>', '/dev/null') };
	$self->reset;
	$self->{timeout} = IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default);
	$self->{process} = IPC::Run::start(
		[   'python3', dirname(__FILE__) . '/http2_peer.py',
			$how, $api->dir . '/server.pem',
			$api->dir . '/server.key', $self->{log} ],
		'<',
		\$self->{in},
		'>',
		\$self->{out},
		$self->{timeout});
	while ($self->{out} !~ /^\d+\n/)
	{
		die 'http2_peer.py did not start' unless $self->{process}->pumpable;
		$self->{process}->pump;
	}
	$self->{timeout}->reset;
	($self->{port}) = $self->{out} =~ /(\d+)/;
	return $self;
}

sub base_url { return "https://localhost:$_[0]{port}/v1"; }

sub times
{
	my ($self, $what) = @_;
	return map { /^\Q$what\E (\S+)$/ ? $1 : () } split /\n/,
	  PostgreSQL::Test::Utils::slurp_file($self->{log});
}

sub count
{
	my ($self, $what) = @_;
	return scalar(() = $self->times($what));
}

sub reset
{
	my ($self) = @_;

	open(my $log, '>', $self->{log}) or die $!;
	close $log;
	return;
}

sub follow
{
	my ($self, $how) = @_;

	$self->{out} = '';
	$self->{timeout}->start;
	$self->{in} .= "$how\n";
	while ($self->{out} !~ /^\Q$how\E\n/)
	{
		die 'http2_peer.py has ended' unless $self->{process}->pumpable;
		$self->{process}->pump;
	}
	$self->{timeout}->reset;
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!, $@);
	eval { $self->{process}->kill_kill(grace => 10) } if $self->{process};
	return;
}

1;
