# Refreshes that are disturbed twenty times, at random points; see Hrflow::Disturb.
use strict;
use warnings FATAL => 'all';
use Hrflow::Disturb;
use Hrflow::Node;
use Hrflow::StandIn;
use Test::More;

my $api = Hrflow::StandIn->new('--latency' => 20, '--dim' => 64);
my $node = Hrflow::Node->new('disturbed', $api, link_hosts => '127.0.0.1', max_attempts => 1);

Hrflow::Disturb::run($node, $api, 'profile', 20000, (qw(kill crash network cancel terminate)) x 4);
done_testing();
