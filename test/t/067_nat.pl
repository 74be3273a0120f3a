# Kept connections that a NAT has forgotten: nothing sent over them arrives, and
# neither end is notified.  A GET is sent again over a new connection after
# connect_timeout, or after request_timeout if that is shorter.  This needs a peer that drops packets.  Where only root may do that,
# the test runs in a user namespace of its own.
use strict;
use warnings FATAL => 'all';
use Hrflow::RawPeer;
BEGIN { Hrflow::RawPeer::obtain_right_to_drop_packets() }
use Hrflow::Node;
use Hrflow::Server;
use Hrflow::Session;
use Hrflow::StandIn;
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes ();

plan skip_all => 'this kernel lets only root drop packets, and there are no user namespaces'
  unless Hrflow::RawPeer::can_drop_packets();

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new(
	'nat', $api,
	ca_file => $api->ca,
	max_attempts => 2);

foreach my $case (
	[ 'http', 8, 3, 15 ],
	[ 'https', 8, 3, 15 ],
	[ 'HTTP/2', 1, 3, 15 ],
	[ 'http', 8, 30, 6 ],
	[ 'https', 8, 30, 6 ],
	[ 'HTTP/2', 1, 30, 6 ])
{
	my ($protocol, $n, $connect_timeout, $request_timeout) = @$case;
	my $name = "$protocol with a request_timeout of $request_timeout s";
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $front = $protocol eq 'HTTP/2' && Hrflow::Server->new('nghttpx', $api, http2 => 1);
	my $to = $front ? $front->port : $protocol eq 'http' ? $api->http : $api->https;
	my $session = Hrflow::Session->new($node);
	my $scheme = $protocol eq 'http' ? 'http' : 'https';

	SKIP:
	{
		skip 'nghttp2-proxy is not installed', 6 if $protocol eq 'HTTP/2' && !$front;

		my $nat = Hrflow::RawPeer->new(
			sub {
				my ($socket) = @_;
				my $is_old = !-e "$dir/forget";
				local $SIG{ALRM} = sub {
					return unless $is_old && -e "$dir/forget";
					Hrflow::RawPeer::drop_packets($socket);
					PostgreSQL::Test::Utils::append_to_file("$dir/forgotten", '.');
					$is_old = 0;
				};

				Time::HiRes::ualarm(50_000, 50_000);
				Hrflow::RawPeer::forward($socket, $to);
			});

		is( $session->ask(
					"SET hrflow_embed.base_url = '$scheme://localhost:"
				  . $nat->port
				  . "/v1'; SET hrflow_embed.connect_timeout = '${connect_timeout}s';
				SET hrflow_embed.request_timeout = '15s'; SET hrflow_embed.max_concurrency = 8;
				SELECT status, count(*) FROM hrflow_profile_embeddings('acme',
					(SELECT array_agg('fault:hold=$n,id=' || i) FROM generate_series(1, 8) i))
				GROUP BY 1;"
			),
			"ok|8\n-- done\n",
			"a batch makes $n connections through a NAT, over $name");
		PostgreSQL::Test::Utils::append_to_file("$dir/forget", '');
		my $forgotten = 0;
		foreach (1 .. 5000)
		{
			$forgotten = -s "$dir/forgotten" // 0;
			last if $forgotten >= $n;
			select(undef, undef, undef, 0.02);
		}
		is($forgotten, $n, "a NAT forgets $n connections, over $name");
		is( $session->ask(
				"SET hrflow_embed.request_timeout = '${request_timeout}s';
				SELECT status FROM hrflow_profile_embeddings('acme', '{p1}');"),
			"ok\n-- done\n",
			"a profile is requested again when a NAT has forgotten $n connections, over $name");
		is( $session->ask(
				q{SELECT status, count(*) FROM hrflow_profile_embeddings('acme',
					(SELECT array_agg('q' || i) FROM generate_series(1, 40) i)) GROUP BY 1;}
			),
			"ok|40\n-- done\n",
			"the profiles of the next batch are requested again as well, over $name");

		# A connection that works, to a server that does not answer
		$api->reset;
		is( $session->query(
				q{SET hrflow_embed.request_timeout = '3s';
				SELECT status FROM hrflow_profile_embeddings('acme', '{fault:silent}');}),
			'timeout',
			"a profile times out that the server does not answer, over $name");
		cmp_ok($api->stats->{requests}, '<=', 1, "that profile is not requested again, over $name");
	}
	$session->finish;
}

done_testing();
