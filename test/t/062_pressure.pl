# Batches under pressure: replies that fill the memory there is for them, a
# connection that is dead without a word, a backend that is ended or has other
# work to do, and a server that asks for patience.  SQL sees neither what is in
# flight nor other backends.
use strict;
use warnings;
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Session;
use Hrflow::StandIn;
use IO::Socket::INET;
use IPC::Run ();
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(time);

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('pressure', $api, shared_preload_libraries => 'hrflow_embed');

sub sql { return $node->safe_psql('postgres', @_); }

# So many distinct identifiers.
sub ids
{
	my ($n, $prefix) = (@_, 'p');
	return "(SELECT array_agg('$prefix' || i) FROM generate_series(1, $n) i)";
}

# The rows by status.
sub batch
{
	my ($ids, $function) = (@_, 'hrflow_profile_embeddings');
	return "SELECT status || ' ' || count(*) FROM $function('acme', $ids, '{\"profile\": 1}') GROUP BY status ORDER BY 1;\n";
}

# The milliseconds at which the requests were answered that match.
sub answered
{
	my ($pattern) = @_;
	return map { $_->{ms} } grep { $_->{query} =~ $pattern } $api->log;
}

#
# The 64 MB that there are for the bodies of all replies
#
is(sql(batch(ids(250, 'fault:first=1,status=503,retry_after=1,big=300000,id='))),
	'ok 250', 'a reply that will be asked for again is not kept meanwhile');

$api->reset;
my $session = Hrflow::Session->new($node);
$session->send('SET hrflow_embed.max_concurrency = 100;'
	. batch('(SELECT array_agg(id ORDER BY i) FROM ('
		. q{SELECT i, 'fault:big=1100000,id=' || i FROM generate_series(1, 100) i UNION ALL }
		. q{SELECT i, 'fault:status=404,id=' || i FROM generate_series(101, 500) i UNION ALL }
		. q{SELECT i, 'fault:latency=500,id=' || i FROM generate_series(501, 600) i) a(i, id))})
	. '\echo -- done');
$api->wait_until(sub { ($_[0]{by_status}{404} // 0) == 400 });
ok($api->wait_until(sub { $_[0]{in_flight} > 64 }),
	'there are as many in flight as before when replies have become small again');
is($session->wait_for(qr/-- done/), "invalid_reply 100\nnot_found 400\nok 100\n-- done\n",
	'100 replies of 1.1 MB at once are too much, but none of them is');
cmp_ok(scalar(answered(qr/big/)), '<', 200, 'and hardly any is asked for a third time');
$session->finish;

done_testing();
