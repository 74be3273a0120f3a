# A web server or proxy packaged by Debian, between us and a stand-in API.  It
# runs on loopback, as the user of the test.
#
#   foreach my $name (Hrflow::Server::names()) {
#       my $server = Hrflow::Server->new($name, $api, http2 => 1) or next;
#       $server->base_url          https://localhost:PORT/v1
#       $server->limited_url       a base URL at which the rate is limited by 429
#                                  or 503 without Retry-After; or undef
#       $server->port
#       $server->version           "nginx 1.22.1"
#       $server->has('gzip')       is it configured so?  See below
#       $server->settings          SET statements for a session
#       $server->wait_for_close    waits until all idle connections are closed
#       $server->restart           stop, and start on the same port
#       $server->stop
#   }
#
# It forwards requests to the stand-in, and is configured to be strict where
# possible:
#   requests     it closes a connection after 20 requests
#   idle         it closes a connection that was idle for a second
#   gzip         it compresses bodies
#   http2        it offers HTTP/2 over TLS, if requested
#   tls          it uses TLS; otherwise base_url is http
#   cache        it answers repeated requests from its cache
#   tunnel       it is a proxy for CONNECT, to be set as hrflow_embed.proxy, and
#                leads all connections to port 443 to the stand-in
#
# new() returns nothing if the program is missing or lacks HTTP/2.  nghttpx also
# accepts streams => N, which limits the concurrent requests per HTTP/2
# connection.
package Hrflow::Server;

use strict;
use warnings FATAL => 'all';
use Hrflow::Resolver;
use IO::Socket::INET;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils ();

my %servers = (
	nginx => {
		program => '/usr/sbin/nginx',
		version => ['-v'],
		has => 'tls http2 gzip requests idle',
		rate => 200,
		configure => sub {
			my ($self, $http2) = @_;
			my $paths = join ' ',
			  map { "${_}_temp_path $self->{dir}/$_;" } qw(client_body proxy fastcgi uwsgi scgi);

			return <<"END", [ '-p', $self->{dir}, '-e', 'stderr', '-c', "$self->{dir}/conf" ];
daemon off;
worker_processes 1;
pid $self->{dir}/pid;
error_log $self->{dir}/error.log;
events { worker_connections 512; }
http {
	access_log off;
	$paths
	server {
		listen 127.0.0.1:$self->{port} ssl @{[ $http2 ? 'http2' : '' ]};
		ssl_certificate $self->{certificate};
		ssl_certificate_key $self->{key};
		keepalive_requests 20;
		keepalive_timeout 1s;
		gzip on;
		gzip_types application/json;
		proxy_set_header Host \$http_host;
		proxy_set_header X-Forwarded-Proto https;
		location / { proxy_pass http://127.0.0.1:$self->{backend}; }
		location /limited/ {
			limit_req zone=limited burst=10 nodelay;
			limit_req_status 429;
			proxy_pass http://127.0.0.1:$self->{backend}/;
		}
	}
	limit_req_zone \$server_name zone=limited:1m rate=200r/s;
}
END
		}
	},
	haproxy => {
		program => '/usr/sbin/haproxy',
		version => ['-v'],
		has => 'tls http2 gzip idle',
		rate => 100,
		configure => sub {
			my ($self, $http2) = @_;
			my $alpn = $http2 ? 'h2,http/1.1' : 'http/1.1';

			$self->write('both.pem',
				map { PostgreSQL::Test::Utils::slurp_file($self->{$_}) } qw(certificate key));
			return <<"END", [ '-db', '-f', "$self->{dir}/conf" ];
defaults
	mode http
	timeout connect 5s
	timeout client 5s
	timeout server 60s
	timeout http-keep-alive 1s
frontend front
	bind 127.0.0.1:$self->{port} ssl crt $self->{dir}/both.pem alpn $alpn
	compression algo gzip
	compression type application/json
	http-request set-header X-Forwarded-Proto https
	stick-table type string size 1k expire 10s store http_req_rate(1s)
	acl limited path_beg /limited/
	http-request track-sc0 str(all) if limited
	http-request deny deny_status 429 if limited { sc_http_req_rate(0) gt 100 }
	http-request replace-path /limited/(.*) /\\1 if limited
	default_backend back
backend back
	server api 127.0.0.1:$self->{backend}
END
		}
	},
	apache2 => {
		program => '/usr/sbin/apache2',
		version => ['-v'],
		has => 'tls http2 gzip requests idle',
		configure => sub {
			my ($self, $http2) = @_;
			my @modules = qw(mpm_event authz_core ssl socache_shmcb http2 proxy proxy_http
			  headers filter deflate);

			return join('',
				map { "LoadModule ${_}_module /usr/lib/apache2/modules/mod_$_.so\n" } @modules)
			  . <<"END", [ '-d', $self->{dir}, '-f', "$self->{dir}/conf", '-DFOREGROUND' ];
ServerName localhost
Listen 127.0.0.1:$self->{port}
PidFile $self->{dir}/pid
DefaultRuntimeDir $self->{dir}
ErrorLog $self->{dir}/error.log
KeepAliveTimeout 1
MaxKeepAliveRequests 20
Protocols @{[ $http2 ? 'h2 ' : '' ]}http/1.1
SSLEngine on
SSLCertificateFile $self->{certificate}
SSLCertificateKeyFile $self->{key}
SSLSessionCache none
AddOutputFilterByType DEFLATE application/json
RequestHeader set X-Forwarded-Proto https
AllowEncodedSlashes NoDecode
ProxyPreserveHost on
ProxyPass / http://127.0.0.1:$self->{backend}/ nocanon
END
		}
	},
	h2o => {
		program => '/usr/bin/h2o',
		version => ['--version'],
		has => 'tls http2 gzip idle',
		configure => sub {
			my ($self, $http2) = @_;

			return <<"END", [ '-c', "$self->{dir}/conf" ];
listen:
  host: 127.0.0.1
  port: $self->{port}
  ssl:
    certificate-file: $self->{certificate}
    key-file: $self->{key}
pid-file: $self->{dir}/pid
error-log: $self->{dir}/error.log
num-threads: 1
http1-request-timeout: 1
http2-idle-timeout: 1
compress: [ gzip ]
proxy.preserve-host: ON
hosts:
  default:
    paths:
      /:
        proxy.reverse.url: http://127.0.0.1:$self->{backend}/
END
		},

		# It always offers HTTP/2.
		only_http2 => 1 },
	caddy => {
		program => '/usr/bin/caddy',
		version => ['version'],
		has => 'tls http2 gzip idle',
		configure => sub {
			my ($self, $http2) = @_;
			my $protocols = $http2 ? 'h1 h2' : 'h1';

			return <<"END", [ 'run', '--config', "$self->{dir}/conf", '--adapter', 'caddyfile' ];
{
	admin off
	auto_https off
	storage file_system $self->{dir}
	default_bind 127.0.0.1
	log {
		output file $self->{dir}/error.log
	}
	servers {
		protocols $protocols
		timeouts {
			idle 1s
		}
	}
}
https://localhost:$self->{port} {
	tls $self->{certificate} $self->{key}
	encode {
		gzip
		match header Content-Type application/json*
	}
	reverse_proxy 127.0.0.1:$self->{backend}
}
END
		}
	},
	nghttpx => {
		program => '/usr/sbin/nghttpx',
		version => ['-v'],
		has => 'tls http2',
		only_http2 => 1,
		configure => sub {
			my ($self) = @_;

			return '',
			  [ "-f127.0.0.1,$self->{port}",
				"-b127.0.0.1,$self->{backend}",
				'--conf=/dev/null',
				'--workers=1',
				'--no-ocsp',
				"--errorlog-file=$self->{dir}/error.log",
				'--accesslog-file=/dev/null',
				'--backend-connections-per-host=64',
				"--frontend-http2-max-concurrent-streams=$self->{streams}",
				$self->{key},
				$self->{certificate} ];
		}
	},
	varnish => {
		program => '/usr/sbin/varnishd',
		version => ['-V'],
		has => 'idle cache',
		configure => sub {
			my ($self) = @_;

			return '',
			  [ '-F', '-n', $self->{dir}, '-j',
				'none', '-a', "127.0.0.1:$self->{port}", '-b',
				"127.0.0.1:$self->{backend}", '-s', 'malloc,10M', '-p',
				'timeout_idle=1' ];
		}
	},
	squid => {
		program => '/usr/sbin/squid',
		version => ['-v'],
		has => 'tls tunnel',
		configure => sub {
			my ($self) = @_;

			$self->write('hosts', "127.0.0.1 api.store.example\n");
			return <<"END", [ '-N', '-f', "$self->{dir}/conf" ];
http_port 127.0.0.1:$self->{port}
hosts_file $self->{dir}/hosts
pid_filename $self->{dir}/pid
cache_log $self->{dir}/error.log
access_log none
cache_store_log none
coredump_dir $self->{dir}
http_access allow all
cache deny all
shutdown_lifetime 0 seconds
END
		}
	});

sub names
{
	return sort keys %servers;
}

sub new
{
	my ($class, $name, $api, %options) = @_;
	my $description = $servers{$name};
	my %has = map { $_ => 1 } split / /, $description->{has};

	return unless -x $description->{program};
	return if $options{http2} ? !$has{http2} : $description->{only_http2};
	my $self = bless {
		name => $name,
		api => $api,
		has => \%has,
		rate => $description->{rate},
		streams => $options{streams} // 100,
		dir => PostgreSQL::Test::Utils::tempdir_short(),
		backend => $api->http,
		certificate => $api->dir . '/server.pem',
		key => $api->dir . '/server.key' }, $class;
	foreach (1 .. 5)
	{
		$self->{port} = PostgreSQL::Test::Cluster::get_free_port();
		my ($configuration, $arguments) = $description->{configure}->($self, $options{http2});
		$self->write('conf', $configuration);
		$self->{command} = [ $description->{program}, @$arguments ];
		return $self if $self->start;
	}
	die "$name does not listen: $self->{said}"
	  . (
		-e "$self->{dir}/error.log"
		? PostgreSQL::Test::Utils::slurp_file("$self->{dir}/error.log")
		: '');
}

sub write
{
	my ($self, $name, @content) = @_;

	open(my $file, '>', "$self->{dir}/$name") or die $!;
	print $file @content;
	close $file or die $!;
	return;
}

# Start the server.  Returns whether it listens.
sub start
{
	my ($self) = @_;

	local $ENV{HOME} = $self->{dir};
	my $resolver = $self->has('tunnel') && Hrflow::Resolver->new(443 => $self->{api}->https);

	$self->{said} = '';
	$self->{process} =
	  IPC::Run::start($self->{command}, '<', '/dev/null', '>&', \$self->{said});
	foreach (1 .. 1000)
	{
		return 1 if IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port});
		$self->{process}->pump_nb;
		last unless $self->{process}->pumpable;
		select(undef, undef, undef, 0.02);
	}
	$self->stop;
	return 0;
}

sub stop
{
	my ($self) = @_;
	my $process = delete $self->{process} or return;

	$process->kill_kill(grace => 10);
	return;
}

sub restart
{
	my ($self) = @_;

	$self->stop;
	foreach (1 .. 5)
	{
		return if $self->start;
	}
	die "$self->{name} does not listen again: $self->{said}";
}

sub has { return $_[0]{has}{ $_[1] }; }

sub port { return $_[0]{port}; }

# Return the rate limit of limited_url, in requests per second.
sub rate { return $_[0]{rate}; }

sub base_url
{
	my ($self) = @_;

	return 'https://api.store.example/v1'       if $self->has('tunnel');
	return "https://localhost:$self->{port}/v1" if $self->has('tls');
	return "http://127.0.0.1:$self->{port}/v1";
}

sub limited_url
{
	my ($self) = @_;

	return $self->rate && "https://localhost:$self->{port}/limited/v1";
}

# Settings that a session needs in addition to base_url.
sub settings
{
	my ($self) = @_;
	my %settings = (
		base_url => $self->base_url,
		ca_file => $self->{api}->ca,
		link_hosts => 'localhost, 127.0.0.1, api.store.example');

	$settings{proxy} = "http://127.0.0.1:$self->{port}" if $self->has('tunnel');
	return join ' ', map { "SET hrflow_embed.$_ = '$settings{$_}';" } sort keys %settings;
}

# Count connections that the server has not closed, as seen by the kernel.
sub open_connections
{
	my ($self) = @_;
	my $port = sprintf ':%04X', $self->{port};

	return scalar grep { (split)[2] =~ /$port$/ && (split)[3] eq '01' } split /\n/,
	  PostgreSQL::Test::Utils::slurp_file('/proc/net/tcp');
}

sub wait_for_close
{
	my ($self) = @_;

	foreach (1 .. 500)
	{
		return 1 if !$self->open_connections;
		select(undef, undef, undef, 0.02);
	}
	return 0;
}

sub version
{
	my ($self) = @_;
	my $said = '';
	my $options = $servers{ $self->{name} }{version};

	IPC::Run::run([ $self->{command}[0], @$options ], '<', '/dev/null', '>&', \$said);
	return "$self->{name} " . ($said =~ /(\d+\.\d+(?:\.\d+)?)/)[0];
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!, $@);
	eval { $self->stop };
	return;
}

1;
