# Replaces the name server for servers that are started while this object is in
# scope; see resolver.c.
#
#   my $resolver = Hrflow::Resolver->new('a.example' => '10.0.0.1',
#       'b.example' => 'silent', 'c.example' => '10.0.0.1,203.0.113.7');
#
# With 443 => PORT, connections to port 443 of any address are made to PORT of
# 127.0.0.1 instead, without either side noticing.
package Hrflow::Resolver;

use strict;
use warnings FATAL => 'all';
use File::Basename          qw(dirname);
use PostgreSQL::Test::Utils ();

sub new
{
	my ($class, %names) = @_;
	my $self = bless {}, $class;
	my $library = PostgreSQL::Test::Utils::tempdir_short() . '/resolver.so';

	system('gcc', '-shared', '-fPIC', '-O1', '-o', $library,
		dirname(__FILE__) . '/resolver.c', '-ldl') == 0
	  or die "could not compile the resolver";
	$self->{before} = { map { $_ => $ENV{$_} } qw(LD_PRELOAD HRFLOW_RESOLVE HRFLOW_PUBLIC) };
	$ENV{LD_PRELOAD} = $library;
	$ENV{HRFLOW_PUBLIC} = delete $names{443} if $names{443};
	$ENV{HRFLOW_RESOLVE} = join(' ', map { "$_=$names{$_}" } sort keys %names);
	return $self;
}

sub DESTROY
{
	my ($self) = @_;

	foreach my $name (keys %{ $self->{before} })
	{
		my $value = $self->{before}{$name};
		if (defined $value) { $ENV{$name} = $value; }
		else                { delete $ENV{$name}; }
	}
	return;
}

1;
