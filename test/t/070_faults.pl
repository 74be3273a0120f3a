# With each fault of a server or the network, a statement ends in time with the status
# and SQLSTATE documented in docs/reference.md, or the states documented in
# docs/refresh.md; its other requests succeed, nothing is left open, and the next call
# works.  A regression test could see neither time nor descriptors, and could not
# simulate faults of HTTP, TLS and DNS.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::RawPeer;
use Hrflow::Resolver;
use Hrflow::Session;
use Hrflow::StandIn;
use IO::Compress::Gzip ();
use IO::Socket::INET;
use IPC::Run     ();
use List::Util   qw(max sum uniq);
use MIME::Base64 qw(encode_base64url);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils ();
use Socket                  qw(SO_LINGER SOL_SOCKET);
use Test::More;
use Time::HiRes qw(sleep);

# Time in seconds after which a session that has not printed its results dies.  This is much
# longer than the time limits that apply to faults of timing ($short), so that a busy machine
# does not exceed it, and shorter than the limits that apply to all others ($long), so that
# waiting for them is noticed.
my $most_seconds = 60;
my $short = "'1s'";
my $long = '600s';

#
# The paths of a fault, which is in a reply of the API or of the host of a link.  Each
# path has its own backend, and its own key, because a 429 pauses all that use the key.
# "sql" makes a statement from literals of identifiers.  It returns a row with the
# statuses of all identifiers, in order, and perhaps their errors and HTTP statuses.
# "before" and "after" are executed before and after it; if there is an "after", that
# statement returns the row.
#
my $statuses = q{string_agg(status, ' ' ORDER BY ordinality), string_agg(DISTINCT error, '; '),
	string_agg(DISTINCT http_status::text, ' ')};
my $links = sub { "hrflow_profile_embedding_links('acme', $_[0], $_[1])" };
my $array = sub { 'ARRAY[' . join(', ', @_) . ']' };
my $outcome_of;

# Track profiles in the store, with an old vector in the requested section.
my $track = sub {
	my ($fields, @ids) = @_;
	return "SELECT hrflow_track('faulty', 'acme', " . $array->(@ids) . ") \\gset ignored_
		INSERT INTO faulty SELECT 'acme', id, (SELECT jsonb_object_keys($fields)), 0, '{1,2}'
			FROM unnest("
	  . $array->(@ids) . ') id;';
};

# Make the path of a refresh of another kind of store, from that for profiles.
# Identifiers of texts and documents are also their contents.
my $refresh_of = sub {
	my ($kind, $id, $source) = @_;
	my $of_kind = sub {
		return $_[0] =~ s/faulty/faulty_$kind/gr =~ s/profile_id/$id/gr =~ s/'acme'/'$source'/gr;
	};
	my $posts = $kind ne 'job';
	return {
		name => "hrflow_refresh of ${kind}s",
		of => $posts ? 'kinds' : 'kinds links',
		posts => $posts,
		before => sub {
			my ($fields, @ids) = @_;
			my $tracked = $of_kind->($track->(qq('{"$kind": 1}'), @ids));
			return $tracked if !$posts;
			return
				"INSERT INTO feeds_$kind SELECT id, jsonb_build_object('key', id) FROM unnest("
			  . $array->(@ids) . ') id;'
			  . $tracked =~ s/SELECT hrflow_track.*\n//r;
		},
		after => sub {
			my ($fields, @ids) = @_;
			my $outcome = $of_kind->($outcome_of->($fields, @ids));
			$outcome =~ s/'none'\)/$&, CASE WHEN sent_hash IS NOT NULL THEN 'sent' END/ if $posts;
			$outcome .= "DELETE FROM feeds_$kind;"                                      if $posts;
			return $outcome;
		},
		sql => sub { return "CALL hrflow_refresh('faulty_$kind');" } };
};
$outcome_of = sub {
	my ($fields, @ids) = @_;
	return "SELECT string_agg(concat_ws(' ', state, attempts,
			CASE WHEN lease_until IS NOT NULL THEN 'leased' WHEN due_at IS NULL THEN 'never'
				WHEN due_at <= now() THEN 'now'
				WHEN due_at <= now() + interval '1 minute' THEN 'soon' ELSE 'later' END,
			COALESCE((SELECT CASE WHEN vector = '{1,2}' THEN 'old' ELSE 'new' END FROM faulty v
				WHERE v.profile_id = p.profile_id), 'none')),
			', ' ORDER BY n), string_agg(DISTINCT last_error, '; '),
			string_agg(DISTINCT http_status::text, ' ')
		FROM faulty_profile p JOIN unnest("
	  . $array->(@ids) . ") WITH ORDINALITY AS u(id, n) ON profile_id = id;
		SELECT hrflow_untrack('faulty', 'acme', " . $array->(@ids) . ') \gset ignored_';
};
my @paths = (
	{   name => 'hrflow_profile_embedding',
		of => 'api',
		single => 1,
		sql => sub {
			my ($fields, $id) = @_;
			"SELECT CASE
				WHEN hrflow_profile_embedding('acme', $id, $fields) IS NOT NULL THEN 'ok' END;";
		}
	},
	{   name => 'hrflow_profile_embeddings',
		of => 'api',
		sql => sub {
			my ($fields, @ids) = @_;
			"SELECT $statuses FROM hrflow_profile_embeddings('acme', "
			  . $array->(@ids)
			  . ", $fields);";
		}
	},
	{   name => 'hrflow_profile_vectors',
		of => 'api store',
		sql => sub {
			my ($fields, @ids) = @_;
			"SELECT $statuses FROM hrflow_profile_vectors('acme', "
			  . $array->(@ids)
			  . ", $fields);";
		}
	},
	{   name => 'hrflow_refresh',
		of => 'api store',
		before => $track,
		after => $outcome_of,
		sql => sub { my ($fields) = @_; "CALL hrflow_refresh('faulty', $fields);" } },
	$refresh_of->('job', 'job_id', 'acme'),
	$refresh_of->('text', 'key', ''),
	$refresh_of->('document', 'key', ''),
	{   name => 'hrflow_fetch_vector',
		of => 'store',
		single => 1,
		sql => sub {
			my ($fields, $id) = @_;
			"SELECT CASE WHEN hrflow_fetch_vector(link) IS NOT NULL THEN 'ok' END FROM "
			  . $links->($id, $fields) . ';';
		}
	},
	{   name => 'hrflow_fetch_vectors',
		of => 'store',
		sql => sub {
			my ($fields, @ids) = @_;
			"SELECT $statuses FROM hrflow_fetch_vectors((SELECT array_agg(link ORDER BY n)
				FROM unnest("
			  . $array->(@ids)
			  . ') WITH ORDINALITY AS u(id, n), '
			  . $links->('id', $fields) . '));';
		}
	});

# Documented outcomes of refreshing a profile: its state, attempts, when it is due, and
# its vector.  If the run stops or skips a source, there is a pattern for its WARNING.
my %states = (
	fetched => ['ok 0 later new'],
	missing => ['missing 0 soon old'],
	empty => ['missing 0 soon old'],
	failed => ['due 1 soon old'],
	refused => [
		'due 0 now old',
		qr/WARNING:  .*refresh of public\.faulty\w* was stopped: (?!the API sent no usable reply)/
	],
	outage => [
		'due 0 soon old',
		qr/WARNING:  .*refresh of public\.faulty\w* was stopped: the API sent no usable reply; / ],
	alike => [
		'due 0 soon old',
		qr/WARNING:  .*refresh of public\.faulty\w* was stopped: all profiles failed in the same way; /
	],
	alike_links => [
		'due 1 soon old',
		qr/WARNING:  .*refresh of public\.faulty\w* was stopped: no profile could be fetched completely; /
	],
	left_out =>
	  [ 'due 0 soon old', qr/WARNING:  .*skipping source .* in refresh of public\.faulty\w*: / ]);
my %refreshed = (
	ok => 'fetched',
	map({ $_ => 'missing' } qw(no_vector not_found)),
	map({ $_ => 'refused' } qw(unauthorized over_quota rate_limited)),
	map({ $_ => 'failed' }
		qw(invalid_request connection_failed timeout invalid_reply http_error
		  too_large link_refused link_expired invalid_vector)));

# This many failures of the network without a success are an outage.
my $outage = 8;
my %whole = (
	map({ $_ => 'outage' } qw(connection_failed timeout invalid_reply http_error)),
	map({ $_ => 'alike' } qw(link_refused invalid_request)),
	link_expired => 'alike_links');

my $n = 0;
foreach my $path (@paths)
{
	$path->{$_} = 'askr_' . sprintf('%032x', ++$n) foreach qw(key spare_key);
}
my @keys = map { ('--key' => $_) } $Hrflow::StandIn::KEY, map { @$_{qw(key spare_key)} } @paths;
my $api = Hrflow::StandIn->new(@keys);
my $node;
{
	my $resolver = Hrflow::Resolver->new(
		'silent.example' => 'silent',
		'nobody.example' => 'a..b',
		'a.private.example' => '127.0.0.1');
	$node = Hrflow::Node->new(
		'faults', $api,
		link_hosts => '127.0.0.1, localhost, silent.example, nobody.example, *.private.example',
		max_response_size => '64kB');
}
$node->safe_psql(
	'postgres', q{SELECT hrflow_create_store('faulty');
	SELECT hrflow_create_store('faulty_job', content => 'job');
	SELECT hrflow_create_store('faulty_text', content => 'text');
	SELECT hrflow_create_store('faulty_document', content => 'document');
	CREATE TABLE feeds_text (word text, item jsonb);
	SELECT hrflow_track_table('faulty_text', 'feeds_text', 'word', content_columns => '{word}');
	CREATE TABLE feeds_document (word text, item jsonb);
	SELECT hrflow_track_table('faulty_document', 'feeds_document', 'word',
		content_columns => '{item}');});
my $descriptors_are_seen = -e '/proc/self/fd';

sub literal { return "'" . ($_[0] =~ s/'/''/gr) . "'"; }

# Return the number of elements of a statement.
sub elements
{
	my ($path, $whole) = @_;
	return $path->{single} ? 1 : $path->{after} && $whole ? $outage : 3;
}

# Return the three statements of a path, for an identifier, alone or between two
# identifiers without a fault.  A refresh in which all identifiers have the fault has as
# many of them as an outage takes.
sub question
{
	my ($path, $id, $fields, $beside, $whole) = @_;
	my @good =
	  $beside
	  ? map { "$beside,id=" . ++$n } 1 .. $outage - 1
	  : ('nurse-1', 'cook-1', map { "nurse-1$_" } 1 .. $outage - 3);
	my @ids = map { literal($_) }
	  (shift @good, $id, @good)[ $path->{single} ? 1 : 0 .. elements($path, $whole) - 1 ];

	$fields = literal($fields // '{"profile": 1}');
	return map { $path->{$_} ? $path->{$_}->($fields, @ids) : '' } qw(before sql after);
}

# Count open descriptors, except those of files of tables.
sub descriptors
{
	my ($path) = @_;
	return
	  scalar grep { (readlink($_) // '') !~ m{/(?:base|global|pg_wal)/} }
	  glob("/proc/$path->{session}{pid}/fd/*");
}

# Start new backends, and let them open as many connections as a statement needs.
sub warm_up
{
	foreach my $path (@paths)
	{
		$path->{session}->finish if $path->{session};
		my $session = $path->{session} = Hrflow::Session->new($node, timeout => $most_seconds);
		$session->ask(
			"SET hrflow_embed.api_key = '$path->{key}';
			SET hrflow_embed.max_attempts = 1;
			SET hrflow_embed.connect_timeout = '$long';
			SET hrflow_embed.request_timeout = '$long';");
		$session->ask(
			"SELECT count(*) FROM hrflow_profile_embeddings('acme',
			(SELECT array_agg('fault:latency=100,id=' || i) FROM generate_series(1, "
			  . ($path->{after} ? $outage : 3) . ') i));');
		$session->ask(join "\n", question($path, 'nurse-2'));
		$path->{descriptors} = descriptors($path);
	}
	return;
}

# Return how many more descriptors a backend has than after warm_up().  Connections
# closed by a server are closed by the next statement.
sub descriptors_left
{
	my ($path, $may_stay) = @_;
	my $left;

	for (1 .. 30)
	{
		$left = descriptors($path) - $path->{descriptors};
		last if $left <= $may_stay;
		sleep 0.1;
		$path->{session}->ask(join "\n", question($path, 'nurse-3'));
	}
	return max($left - $may_stay, 0);
}

# Wait for the outcome of a fault on a path.  Returns what the statement has printed, and what
# is expected.  See play() for the arguments.
sub read_outcome
{
	my ($path, $fault, $outcome, %more) = @_;
	my $printed = $path->{session}->wait_for(qr/-- done/);
	my ($row, $state, $after, $next) =
	  $printed =~ /^fault\n(.*\n)?state (\w+)\n(.*\n)?next\n(.*)\n?-- done/m;
	my ($statuses, $errors, $http) = split /\|/, ($after // $row // '') =~ s/\n//r, 3;
	my ($status, $sqlstate) =
	  split / /,
	  $path->{of} =~ /api store/ && $more{vectors} ? $more{vectors}
	  : $path->{posts} && $more{posts} ? $more{posts}
	  : $outcome;
	my $expected =
		$path->{single} ? ($sqlstate eq '00000' ? 'ok' : $sqlstate)
	  : $more{whole} ? "$status $status $status"
	  : "ok $status ok";
	my $warning;

	if ($path->{after})
	{
		my $state = $more{refreshed} // ($more{whole} && $whole{$status} || $refreshed{$status});
		my $good = $states{fetched}[0];

		$state = $refreshed{$status} if $path->{posts} && $more{posts};
		($expected, $warning) = @{ $states{$state} };
		$expected .= ' sent'
		  if $path->{posts} && $sqlstate eq '08006' && $fault !~ /status=408/;
		$expected = join ', ', $more{whole} ? ($expected) x $outage : ($good, $expected, $good);
	}
	my $got = !defined $state ? "no answer: $printed" : $state eq '00000' ? $statuses : $state;

	return {
		path => $path,
		got => $got,
		expected => $expected,
		warning => $warning,
		errors => $errors,
		http => $http,
		next => $next,
		printed => $printed };
}

#
# Test a fault on all of its paths.
#
# A case consists of a name, faults of the stand-in (or a function that makes an
# identifier from a word), the expected outcome ("STATUS SQLSTATE"), and optionally
#   settings => {...}     settings for the statement
#   late => [...]         values of request_timeout to try one after another
#   vectors => '...'      outcome of hrflow_profile_vectors()
#   refreshed => '...'    outcome of hrflow_refresh() (a key of %states), unless it
#                         follows from the status
#   whole => 1            all elements have the fault
#   fields => '...'       "fields" to request
#   says => qr/.../       pattern of the errors in rows
#   kept => N             number of descriptors that may stay open, or a function of
#                         the path
#   stored => '...'       error that only a store records, without digits
#   all_kinds => 1        also refresh stores of jobs, texts and documents, unless
#   of_profiles => 1      the fault is specific to profiles
#   posts => '...'        outcome for texts and documents, whose requests may not be
#                         repeated after this fault
#   spare_key => 1        use a key that is not used again
#   first => 1            execute the statement with other identifiers first
#   beside => '...'       the other elements, instead of good ones
#   meanwhile => sub {}   called during the statement, with the number of elements
#
sub play
{
	my ($of, $name, $fault, $outcome, %more) = @_;
	my $kinds = $of eq 'api' ? 'kinds' : 'links';
	my @takers =
	  grep { $_->{of} =~ /$of/ || $more{all_kinds} && !$more{of_profiles} && $_->{of} =~ /$kinds/ }
	  @paths;
	my %settings = %{ $more{settings} // {} };
	my $identifier = sub { ref $fault ? $fault->($_[0]) : "fault:$fault,id=$_[0]" };

	my @outcomes;

	foreach my $limit ($more{late} ? @{ $more{late} } : undef)
	{
		$settings{request_timeout} = $limit if $limit;
		foreach my $path (@takers)
		{
			my ($before, $statement, $after) =
			  question($path, $identifier->(++$n), $more{fields}, $more{beside}, $more{whole});

			$path->{session}->send(
				join "\n",
				$more{spare_key} ? "SET hrflow_embed.api_key = '$path->{spare_key}';" : (),
				(map { "SET hrflow_embed.$_ = $settings{$_};" } sort keys %settings),
				$more{first}
				? ( question(
						$path, $identifier->('first'),
						$more{fields}, $of eq 'api' && $identifier->('first')),
					'')
				: (),
				$before,
				'\echo fault',
				$statement,
				'\echo state :SQLSTATE',
				$after,
				"SET hrflow_embed.api_key = '$path->{key}';",
				(   map {
							$_ eq 'max_attempts' ? 'SET hrflow_embed.max_attempts = 1;'
						  : /timeout/ ? "SET hrflow_embed.$_ = '$long';"
						  : "RESET hrflow_embed.$_;"
					} sort keys %settings),
				'\echo next',
				question($path, 'nurse-3'),
				'\echo -- done');
		}
		$more{meanwhile}->(sum(map { elements($_, $more{whole}) } @takers)) if $more{meanwhile};
		@outcomes = map { read_outcome($_, $fault, $outcome, %more) } @takers;
		last if !grep { $_->{got} ne $_->{expected} } @outcomes;
	}

	my @said_in_rows;
	foreach (@outcomes)
	{
		my ($path, $got, $expected, $warning, $errors, $http, $next, $printed) =
		  @$_{qw(path got expected warning errors http next printed)};

		is($got, $expected, "with $name, $path->{name}() gives $expected");
		diag($errors) if $got ne $expected && $errors;
		like($errors, $more{says}, "with $name, $path->{name}() explains the failure")
		  if $more{says} && !$path->{single};
		like(
			$next // '',
			$path->{single} ? qr/^ok/
			: $path->{after} ? qr/^(?:ok 0 later new(?:, |\|)){3}/
			: qr/^ok ok ok\|/,
			"after $name, the next call of $path->{name}() works");

		# The store records the same errors as the rows of a batch, except that
		# profiles that are ok have no error, and those without vectors have one.
		# Ignore libcurl's messages about broken connections and timeouts, because they vary.
		my @said = (
			$http // '',
			uniq(
				sort map {
					s/(lost the connection to the [^:]*|could not connect to the [^:]*|[^:]* in time): .*/$1/r
				  }
				  split /; /,
				($errors // '') =~ s/\d+/N/gr));
		@said_in_rows = @said if $path->{name} =~ /profile_vectors/;
		next                  if !$path->{after};
		$#said_in_rows = 0    if $expected !~ /missing|due/;
		@said_in_rows = ($said_in_rows[0], 'HrFlow has no vector of the profile')
		  if ($more{refreshed} // '') eq 'empty';
		@said_in_rows = ($said_in_rows[0], $more{stored}) if $more{stored};
		is( join('|', @said),
			join('|', @said_in_rows),
			"with $name, the store records the same errors as the rows of a batch"
		) if $path->{of} =~ /api/;
		like(
			join('', $printed =~ /WARNING:  .*/g),
			$warning // qr/^$/,
			"with $name, the run " . ($warning ? 'warns' : 'does not warn'));
	}
	SKIP:
	{
		skip '/proc is not available', 1 unless $descriptors_are_seen;
		is( join(
				' ',
				grep { $_ } map {
					descriptors_left($_, ref $more{kept} ? $more{kept}->($_) : $more{kept} // 0)
				} @takers),
			'',
			"after $name, no descriptor is left open");
	}
	return;
}

sub base64_of { return encode_base64url($_[0]); }

#
# Faults that the stand-in can simulate
#
# Other requests of the statement must be answered within this time.  A peer in Perl
# takes longer for that, and so does everything on a busy machine.
my %late = (late => [ "'2s'", "'8s'" ]);
my %late_in_perl = (late => [ "'4s'", "'8s'" ]);
my %twice = (settings => { max_attempts => 2 });
my $lost = 'connection_failed 08006';
my $unreachable = 'connection_failed 08001';
my $invalid = 'invalid_reply 08P01';

warm_up();
play('api', @$_, all_kinds => 1)
  foreach (
	[ 'no fault', 'id=a', 'ok 00000' ],

	[ 'HTTP 400', 'status=400', 'invalid_request 22023' ],
	[   'HTTP 400 for a profile',
		'status=400,message=Invalid profile array',
		'not_found P0002',
		of_profiles => 1 ],
	[   'HTTP 400 for the source',
		'status=400,message=Invalid source array',
		'invalid_request 22023',
		of_profiles => 1,
		refreshed => 'left_out' ],
	[   'HTTP 400 for a section',
		q{status=400,message=Invalid key. File doesn't exist},
		'no_vector P0002',
		posts => 'invalid_request 22023' ],
	[ 'HTTP 401', 'status=401', 'unauthorized 28000' ],
	[ 'HTTP 401 that repeats the key', 'status=401,echo', 'unauthorized 28000' ],
	[ 'HTTP 402', 'status=402', 'over_quota 53400' ],
	[ 'HTTP 403', 'status=403', 'unauthorized 28000', refreshed => 'failed' ],
	[ 'HTTP 404', 'status=404', 'not_found P0002', posts => 'http_error 58000' ],
	[ 'HTTP 404 with a page', 'status=404,html', 'http_error 58000' ],
	[ 'HTTP 408', 'status=408', 'timeout 08006' ],
	[ 'HTTP 418', 'status=418', 'http_error 58000' ],
	[ 'HTTP 422', 'status=422', 'invalid_request 22023' ],
	[ 'HTTP 429', 'status=429', 'rate_limited 53400' ],
	[   'HTTP 429 for a long time',
		'status=429,retry_after=1000',
		'rate_limited 53400',
		%twice,
		spare_key => 1 ],
	[ 'HTTP 500', 'status=500', 'http_error 58000' ],
	[ 'HTTP 500 twice', 'status=500', 'http_error 58000', %twice ],
	[ 'HTTP 502 with a page', 'html', 'http_error 58000' ],
	[ 'HTTP 503 for a long time', 'status=503,retry_after=1000', 'http_error 58000', %twice ],
	[ 'HTTP 503 until a day', 'status=503,retry_after_date=1000', 'http_error 58000', %twice ],
	[ 'HTTP 200 whose body says 401', 'code=401', 'unauthorized 28000' ],
	[ 'HTTP 200 whose body says 500', 'code=500', 'http_error 58000' ],
	[ 'HTTP 500 whose body says 200', 'status=500,code=200', 'http_error 58000' ],
	[ 'a redirect', 'redirect', $invalid ],
	[ 'a redirect for good', 'redirect,status=308', $invalid ],

	[ 'a reset once', 'first=1,reset', 'ok 00000', %twice, posts => $lost ],
	[ 'a broken body once', 'first=1,break=20', 'ok 00000', %twice, posts => $lost ],
	[ 'HTTP 408 once', 'first=1,status=408', 'ok 00000', %twice, posts => 'timeout 08006' ],
	[ 'HTTP 429 once', 'first=1,status=429', 'ok 00000', %twice ],
	[ 'HTTP 503 once', 'first=1,status=503', 'ok 00000', %twice, posts => 'http_error 58000' ],

	[ 'a page', 'html,status=200', $invalid ],
	[ 'no body', 'empty', $invalid ],
	[ 'another content type', 'type=text/plain', $invalid ],
	[ 'no content type', 'notype', $invalid ],
	[ 'a charset', 'charset', 'ok 00000' ],
	[ 'half of the JSON', 'truncated', $invalid ],
	[ 'JSON that nests deeply', 'deep=1000', $invalid ],
	[ 'bytes that are not UTF-8', 'badutf8', $invalid ],
	[ 'a NUL', 'nul', $invalid ],
	[   'a number that jsonb refuses',
		'body=' . base64_of('{"code": 200, "data": {"x": 1e999999}}'), $invalid ],
	[ 'a list instead of an envelope', 'body=' . base64_of('[1]'), $invalid ],
	[ 'no data', 'body=' . base64_of('{"code": 200, "message": "OK"}'), $invalid ],
	[ 'a code that is a string', 'body=' . base64_of('{"code": "200", "data": {}}'), $invalid ],
	[ 'data that is text', 'data=' . base64_of('"x"'), $invalid, of_profiles => 1 ],
	[   'data without a section', 'data=' . base64_of('{}'), 'ok 00000',
		of_profiles => 1,
		refreshed => 'empty' ],
	[   'a section that is a number',
		'data=' . base64_of('{"profile": 1}'),
		'ok 00000',
		of_profiles => 1,
		vectors => $invalid ],
	[   'a list without its first link', 'drop', 'ok 00000',
		fields => '{"experiences": [0]}',
		of_profiles => 1,
		refreshed => 'empty' ],
	[ 'links whose paths name no item', 'opaque', 'ok 00000', of_profiles => 1 ],

	[ 'a compressed reply', 'gzip', 'ok 00000' ],
	[ 'a large reply', 'big=1000000', 'too_large 54000' ],
	[ 'a reply of spaces', 'big=1000', $invalid ],
	[ 'a bomb', 'bomb=10000000', 'too_large 54000' ],
	[ 'ten more headers', 'headers=10', 'ok 00000' ],
	[ '5,000 more headers', 'headers=5000', 'too_large 54000' ],
	[ 'a header of 50 kB', 'header_size=50000', 'ok 00000' ],
	[ 'a header of 200 kB', 'header_size=200000', 'too_large 54000' ],
	[ 'a header of 80 kB', 'header_size=80000', 'too_large 54000' ],

	[ 'a reset', 'reset', $lost ],
	[ 'a body that breaks at once', 'break=0', $lost ],
	[ 'a body that breaks', 'break=20', $lost ],
	[ 'a late reply', 'latency=60000', 'timeout 08006', %late ],
	[ 'a reply after 100 ms', 'latency=100', 'ok 00000' ],
	[ 'silence', 'silent', 'timeout 08006', %late ],
	[ 'silence for all', 'silent', 'timeout 08006', %late, whole => 1, beside => 'fault:silent' ],
	[ 'a body that stalls', 'stall=20', 'timeout 08006', %late ],
	[ 'a body that dribbles too slowly', 'slow=5000', 'timeout 08006', %late ],
	[ 'a body that dribbles', 'slow=5', 'ok 00000' ]);

play('store', @$_, all_kinds => 1)
  foreach (
	[ "no fault of a link's host", 'id=a', 'ok 00000' ],
	[   'a link to another host',
		'data=' . base64_of('{"profile": "https://other.example/x.hflw"}'),
		'link_refused 42501',
		of_profiles => 1 ],
	[   'a link in clear',
		'data=' . base64_of('{"profile": "http://other.example/x.hflw"}'),
		'link_refused 42501',
		of_profiles => 1 ],
	[   'a link to a file',
		'data=' . base64_of('{"profile": "file:///etc/passwd"}'),
		'link_refused 42501',
		of_profiles => 1 ],

	[ 'a link that has expired', 'v.status=403', 'link_expired 58000' ],
	[ 'a link whose signature is wrong', 'v.error=SignatureDoesNotMatch', 'http_error 58000' ],
	[   'a link whose signer has expired', 'v.status=400,v.error=ExpiredToken',
		'link_expired 58000' ],
	[ 'HTTP 403 of a link without a code', 'v.status=403,v.html', 'link_expired 58000' ],
	[ 'HTTP 404 of a link', 'v.status=404', 'no_vector P0002', refreshed => 'failed' ],
	[   'HTTP 404 of all links', 'v.status=404', 'no_vector P0002',
		whole => 1,
		beside => 'fault:v.status=404',
		refreshed => 'alike_links' ],
	[ 'HTTP 404 of a bucket', 'v.status=404,v.error=NoSuchBucket', 'http_error 58000' ],
	[   'a store that is too busy',
		'v.status=503,v.error=SlowDown',
		'rate_limited 53400',
		refreshed => 'failed' ],
	[   'a store that is too busy once', 'v.first=1,v.status=503,v.error=SlowDown',
		'ok 00000', %twice ],
	[   'a store that has closed an idle connection',
		'v.first=1,v.status=400,v.error=RequestTimeout',
		'ok 00000', %twice ],
	[ 'HTTP 408 of a link', 'v.status=408', 'timeout 08006' ],
	[ 'HTTP 429 of a link', 'v.status=429', 'rate_limited 53400', refreshed => 'failed' ],
	[ 'HTTP 500 of a link', 'v.status=500', 'http_error 58000' ],
	[   'HTTP 503 of a link for a long time', 'v.status=503,v.retry_after=1000',
		'http_error 58000', %twice ],
	[ 'a link that is redirected', 'v.redirect', $invalid ],
	[ 'a reset of a link once', 'v.first=1,v.reset', 'ok 00000', %twice ],
	[ 'HTTP 503 of a link once', 'v.first=1,v.status=503', 'ok 00000', %twice ],

	[ 'a vector without bytes', 'v.empty', 'invalid_vector 22P03' ],
	[   'a vector that is text',
		'v.body=' . base64_of('<?xml version="1.0"?>'),
		'invalid_vector 22P03' ],
	[ 'a vector of objects', 'v.dtype=|O', 'invalid_vector 22P03' ],
	[ 'a vector with NaN', 'v.nan', 'invalid_vector 22P03' ],
	[ 'a vector cut short', 'v.short', 'invalid_vector 22P03' ],
	[ 'a vector with trailing data', 'v.trailing', 'invalid_vector 22P03' ],
	[   'two rows in one vector', 'v.shape=2xd',
		'ok 00000',
		refreshed => 'failed',
		stored => 'invalid vector: There are N vectors instead of one.' ],
	[ 'a vector of doubles, big-endian', 'v.dtype=>f8', 'ok 00000' ],
	[ "a vector in Fortran's order", 'v.order=F', 'ok 00000' ],
	[ 'a vector in a newer file', 'v.version=2', 'ok 00000' ],
	[ 'a vector in base64', 'v.encoding=base64', 'ok 00000' ],
	[ 'a vector of another type', 'v.type=text/html', 'ok 00000' ],

	[ 'a compressed vector', 'v.gzip', 'ok 00000' ],
	[ 'a large vector', 'v.big=1000000', 'too_large 54000' ],
	[ 'a vector of spaces', 'v.big=1000', 'invalid_vector 22P03' ],
	[ 'a bomb for a vector', 'v.bomb=10000000', 'too_large 54000' ],
	[ 'a vector with a header of 200 kB', 'v.header_size=200000', 'too_large 54000' ],
	[ 'a vector with 5,000 headers', 'v.headers=5000', 'too_large 54000' ],

	[ 'a reset of a link', 'v.reset', $lost ],
	[ 'a vector that breaks at once', 'v.break=0', $lost ],
	[ 'a vector that breaks', 'v.break=100', $lost ],
	[ 'a late vector', 'v.latency=60000', 'timeout 08006', %late ],
	[ 'silence for a link', 'v.silent', 'timeout 08006', %late ],
	[ 'a vector that stalls', 'v.stall=100', 'timeout 08006', %late ],
	[ 'a vector that dribbles', 'v.slow=5000', 'timeout 08006', %late ]);

#
# Faults simulated by a peer in Perl
#
# The peer has an answer of the API and one of the host of a link.  For identifiers
# raw-FAULT-N it spoils them by these functions, whose arguments are the socket, the
# head of the answer and its body.
#
sub without_length { return $_[0] =~ s/^Content-Length:.*\r\n//mir; }
sub with_length    { return without_length($_[0]) . "Content-Length: $_[1]\r\n"; }
sub with_status    { return $_[0] =~ s/^HTTP.*?\r\n/$_[1]\r\n/r; }
sub chunked        { return without_length($_[0]) . "Transfer-Encoding: chunked\r\n\r\n"; }
sub chunk          { return sprintf "%x\r\n%s\r\n", length $_[0], $_[0]; }
sub gzip           { IO::Compress::Gzip::gzip(\$_[0] => \my $out) or die; return $out; }

# Return a chunk with a wrong size.
sub bad_chunk { return "$_[0]\r\n$_[1]\r\n0\r\n\r\n"; }

sub reset_connection
{
	my ($socket) = @_;
	setsockopt($socket, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
	return;
}

my $last_chunk = "0\r\n\r\n";
my %raw = (
	garbage => sub { my ($s, $head, $body) = @_; print $s "\0\xff what is this\r\n$head\r\n$body" },
	http09 => sub { my ($s, $head, $body) = @_; print $s $body },
	http2 => sub { my ($s) = @_; print $s "\0\0\0\x04\0\0\0\0\0" x 3 },
	no_status =>
	  sub { my ($s, $head, $body) = @_; print $s with_status($head, 'HTTP/1.1 OK'), "\r\n$body" },
	version => sub {
		my ($s, $head, $body) = @_;
		print $s with_status($head, 'HTTP/9.9 200 OK'), "\r\n$body";
	},
	switching => sub {
		my ($s, $head, $body) = @_;
		print $s with_status($head, 'HTTP/1.1 101 Switching Protocols'), "\r\n$body";
	},
	no_content =>
	  sub { my ($s) = @_; print $s "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n" },
	continue =>
	  sub { my ($s, $head, $body) = @_; print $s "HTTP/1.1 100 Continue\r\n\r\n", "$head\r\n$body" }
	,
	hints => sub {
		my ($s, $head, $body) = @_;
		print $s "HTTP/1.1 103 Early Hints\r\nContent-Encoding: br\r\n\r\n", "$head\r\n$body";
	},
	continues => sub {
		my ($s, $head, $body) = @_;
		print $s "HTTP/1.1 100 Continue\r\n\r\n" x 10000, "$head\r\n$body";
	},
	headers => sub {
		my ($s, $head, $body) = @_;
		print $s $head, (map { "X-$_: x\r\n" } 1 .. 10000), "\r\n$body";
	},
	header =>
	  sub { my ($s, $head, $body) = @_; print $s $head, 'X: ', 'x' x 1000000, "\r\n\r\n$body" },
	header_name =>
	  sub { my ($s, $head, $body) = @_; print $s $head, 'X' x 1000000, ": x\r\n\r\n$body" },
	status_line => sub {
		my ($s, $head, $body) = @_;
		print $s with_status($head, 'HTTP/1.1 200 ' . 'x' x 1000000), "\r\n$body";
	},
	no_colon => sub { my ($s, $head, $body) = @_; print $s $head, "X\r\n\r\n$body" },
	like_status => sub {
		my ($s, $head, $body) = @_;
		print $s with_length($head, length gzip($body)),
		  "Content-Encoding: gzip\r\nHTTP/2: x\r\n\r\n", gzip($body);
	},
	nul => sub { my ($s, $head, $body) = @_; print $s $head, "X: a\0b\r\n\r\n$body" },
	line_feeds => sub { my ($s, $head, $body) = @_; print $s "$head\r\n" =~ s/\r//gr, $body },
	more => sub { my ($s, $head, $body) = @_; print $s "$head\r\n$body", "$head\r\n$body" },
	slow_headers => sub {
		my ($s, $head) = @_;
		print $s $head;
		for (1 .. 1000) { sleep 0.05; print $s "X-$_: x\r\n" or last }
	},
	retry_after => sub {
		my ($s, $head) = @_;
		print $s
		  "HTTP/1.1 503 x\r\nRetry-After: soon\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
	},
	retry_never => sub {
		my ($s, $head) = @_;
		print $s
		  "HTTP/1.1 503 x\r\nRetry-After: 99999999999999999999\r\n",
		  "Content-Length: 0\r\nConnection: close\r\n\r\n";
	},

	length_none => sub { my ($s, $head, $body) = @_; print $s without_length($head), "\r\n$body" },
	length_long => sub {
		my ($s, $head, $body) = @_;
		print $s with_length($head, 10 + length $body), "\r\n$body";
	},
	length_open => sub {
		my ($s, $head, $body) = @_;
		print $s with_length($head, 10 + length $body), "\r\n$body";
		sleep 600;
	},
	length_short => sub {
		my ($s, $head, $body) = @_;
		print $s with_length($head, -10 + length $body), "\r\n$body";
	},
	length_huge =>
	  sub { my ($s, $head, $body) = @_; print $s with_length($head, '5000000000'), "\r\n$body" },
	length_negative =>
	  sub { my ($s, $head, $body) = @_; print $s with_length($head, -5), "\r\n$body" },
	length_text =>
	  sub { my ($s, $head, $body) = @_; print $s with_length($head, 'ten'), "\r\n$body" },
	length_overflow =>
	  sub { my ($s, $head, $body) = @_; print $s with_length($head, '9' x 30), "\r\n$body" },
	length_twice =>
	  sub { my ($s, $head, $body) = @_; print $s $head, "Content-Length: 5\r\n\r\n$body" },

	chunks => sub {
		my ($s, $head, $body) = @_;
		print $s chunked($head), (map { chunk($_) } $body =~ /.{1,7}/gs), $last_chunk;
	},
	chunks_and_length => sub {
		my ($s, $head, $body) = @_;
		print $s with_length(chunked($head) =~ s/\r\n$//r, 7), "\r\n", chunk($body), $last_chunk;
	},
	chunk_long => sub {
		my ($s, $head, $body) = @_;
		print $s chunked($head), bad_chunk(sprintf('%x', 100 + length $body), $body);
	},
	chunk_short => sub {
		my ($s, $head, $body) = @_;
		print $s chunked($head), bad_chunk(sprintf('%x', -10 + length $body), $body);
	},
	chunk_text =>
	  sub { my ($s, $head, $body) = @_; print $s chunked($head), bad_chunk('ten', $body) },
	chunk_huge =>
	  sub { my ($s, $head, $body) = @_; print $s chunked($head), bad_chunk('f' x 30, $body) },
	chunk_negative =>
	  sub { my ($s, $head, $body) = @_; print $s chunked($head), bad_chunk('-1', $body) },
	chunk_extension => sub {
		my ($s, $head, $body) = @_;
		print $s chunked($head), bad_chunk(sprintf('%x;', length $body) . 'x' x 1000000, $body);
	},
	no_end => sub { my ($s, $head, $body) = @_; print $s chunked($head), chunk($body) },
	no_end_open =>
	  sub { my ($s, $head, $body) = @_; print $s chunked($head), chunk($body); sleep 600 },
	trailer =>
	  sub { my ($s, $head, $body) = @_; print $s chunked($head), chunk($body), "0\r\nX: x\r\n\r\n" }
	,
	trailers => sub {
		my ($s, $head, $body) = @_;
		print $s chunked($head), chunk($body), "0\r\n", "X: x\r\n" x 100000, "\r\n";
	},
	transfer_gzip => sub {
		my ($s, $head, $body) = @_;
		print $s chunked($head) =~ s/: chunked/: gzip, chunked/r, chunk(gzip($body)), $last_chunk;
	},

	# zstd: a frame with a window of 128 MB, and a block that repeats one byte (RFC 8878)
	transfer_zstd => sub {
		my ($s, $head, $body) = @_;
		my $frame = pack('VCCVX', 0xFD2FB528, 0, 17 << 3, (1 << 17) * 8 + 3) . ' ';
		print $s chunked($head) =~ s/: chunked/: zstd, chunked/r, chunk($frame), $last_chunk;
	},
	transfer => sub {
		my ($s, $head, $body) = @_;
		print $s without_length($head), "Transfer-Encoding: nonsense\r\n\r\n$body";
	},

	encoding =>
	  sub { my ($s, $head, $body) = @_; print $s $head, "Content-Encoding: nonsense\r\n\r\n$body" },
	encoding_lie =>
	  sub { my ($s, $head, $body) = @_; print $s $head, "Content-Encoding: gzip\r\n\r\n$body" },
	encoding_cut => sub {
		my ($s, $head, $body) = @_;
		print $s with_length($head, 10),
		  "Content-Encoding: gzip\r\n\r\n\x1f\x8b\x08\0\0\0\0\0\0\x03";
	},
	encoding_no_end => sub {
		my ($s, $head, $body) = @_;
		my $cut = substr(gzip($body), 0, -8);    # without its checksum and length
		print $s with_length($head, length $cut), "Content-Encoding: gzip\r\n\r\n$cut";
	},
	encodings => sub {
		my ($s, $head, $body) = @_;
		print $s $head, 'Content-Encoding: ', join(', ', ('gzip') x 100), "\r\n\r\n$body";
	},

	close => sub { },
	close_after_continue => sub { my ($s) = @_; print $s "HTTP/1.1 100 Continue\r\n\r\n" },
	close_in_status => sub { my ($s) = @_; print $s 'HTTP/1.' },
	close_in_headers => sub { my ($s, $head) = @_; print $s $head },
	close_in_header => sub { my ($s, $head) = @_; print $s "${head}X-Half" },
	close_early =>
	  sub { my ($s) = @_; print $s "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" },
	reset => sub {
		my ($s, $head, $body) = @_;
		print $s "$head\r\n", substr($body, 0, 50);
		reset_connection($s);
	},

	# Faults of connections that have been used before
	then_close => sub { },
	then_reset => sub { my ($s) = @_; reset_connection($s) },
	then_silent => sub { sleep 600 },
	then_half => sub { my ($s, $head) = @_; print $s substr($head, 0, 50) });

# Return the head and the body of the stand-in's answer to a GET.
sub answer_of_api
{
	my ($path) = @_;
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $api->http) or die $@;
	my $answer = '';

	print $socket "GET $path HTTP/1.1\r\nHost: 127.0.0.1:", $api->http, "\r\n",
	  $path =~ m{^/v1/} ? "X-API-KEY: $Hrflow::StandIn::KEY\r\n" : '', "Connection: close\r\n\r\n";
	1 while sysread($socket, $answer, 65536, length $answer);
	return split /(?<=\r\n)\r\n/, $answer =~ s/^Connection:.*\r\n//mr, 2;
}

my @api_answer = answer_of_api(
	'/v1/profile/embedding?source_id=acme&profile_id=nurse-1&fields=%7B%22profile%22:1%7D');
my ($link_path) = $api_answer[1] =~ m{"http://[^/]+(/[^"]+)"};
my @link_answer = answer_of_api($link_path);

# Serve a connection, which is closed after an answer unless $keeps is true.  In that
# case, faults happen only to connections that have been used before.
sub serve_raw
{
	my ($socket, $keeps) = @_;

	for (my $served = 0; defined(my $request = Hrflow::RawPeer::read_request($socket)); $served++)
	{
		my ($head, $body) = $request =~ m{^GET /v1/} ? @api_answer : @link_answer;

		$head .= "Connection: close\r\n" unless $keeps;
		if ($request =~ /raw-(\w+)-(\w+)/ && $2 ne 'first' && ($served || !$keeps))
		{
			$raw{$1}->($socket, $head, $body);
			return;
		}

		# Be slow, so that each element of a statement uses its own connection.
		sleep 0.05 if $request =~ /raw-\w+-first/;
		print $socket "$head\r\n$body";
		return unless $keeps;
	}
	return;
}

my $raw = Hrflow::RawPeer->new(sub { serve_raw($_[0], 0) });
my $keeping = Hrflow::RawPeer->new(sub { serve_raw($_[0], 1) });

# Test a fault in the answer of the API and in that of the host of a link.  The outcome
# for the latter is the same, or "link"; undef means that it depends on libcurl.
sub play_raw
{
	my ($name, $fault, $outcome, %more) = @_;
	my $peer = 'http://127.0.0.1:' . ($more{first} ? $keeping : $raw)->port;

	play('api', $name, sub { "raw-$fault-$_[0]" },
		$outcome, %more, settings => { %{ $more{settings} // {} }, base_url => "'$peer/v1'" });
	play(
		'store',
		"$name in the reply for a link",
		sub { 'fault:data=' . base64_of(qq({"profile": "$peer/raw-$fault-$_[0].hflw"})) },
		$more{link} // $outcome, %more) unless exists $more{link} && !$more{link};
	return;
}

my %cut = (link => 'invalid_vector 22P03');

play_raw(@$_)
  foreach (
	[ 'garbage before the status line', 'garbage', $invalid ],
	[ 'HTTP/0.9', 'http09', $invalid ],
	[ 'HTTP/2 that was not requested', 'http2', $invalid ],
	[ 'a status line without status', 'no_status', $invalid ],
	[ 'HTTP/9.9', 'version', $invalid ],
	[ 'HTTP 101', 'switching', 'http_error 58000' ],
	[ 'HTTP 204', 'no_content', $invalid, %cut ],
	[ 'HTTP 100 before the reply', 'continue', 'ok 00000' ],
	[ 'HTTP 103 with an encoding before the reply', 'hints', 'ok 00000' ],
	[ 'an endless series of HTTP 100', 'continues', 'too_large 54000' ],
	[ '10,000 headers', 'headers', 'too_large 54000' ],
	[ 'a header of 1 MB', 'header', 'too_large 54000' ],
	[ 'the name of a header of 1 MB', 'header_name', 'too_large 54000' ],
	[ 'a status line of 1 MB', 'status_line', 'too_large 54000' ],
	[ 'a header that looks like a status line', 'like_status', 'ok 00000' ],
	[ 'a header without a colon', 'no_colon', $invalid ],
	[ 'a header with a NUL', 'nul', $invalid ],
	[ 'lines that end in LF', 'line_feeds', 'ok 00000' ],
	[ 'two replies', 'more', 'ok 00000' ],
	[ 'headers that dribble', 'slow_headers', 'timeout 08006', %late_in_perl ],
	[ 'a Retry-After that is not a time', 'retry_after', 'http_error 58000', %twice ],
	[ 'a Retry-After that is very long', 'retry_never', 'http_error 58000', %twice ],

	[ 'a body without length', 'length_none', 'ok 00000' ],
	[ 'a body that is too short', 'length_long', $lost ],
	[   'a body that is too short on an open connection', 'length_open',
		'timeout 08006', %late_in_perl ],
	[ 'a body that is too long', 'length_short', $invalid, %cut ],
	[ 'a length of 5 GB', 'length_huge', $lost ],
	[ 'a negative length', 'length_negative', $invalid ],
	[ 'a length that is not a number', 'length_text', $invalid ],
	[ 'a length that overflows', 'length_overflow', 'ok 00000' ],
	[ 'two lengths', 'length_twice', $invalid, link => undef ],

	[ 'small chunks', 'chunks', 'ok 00000' ],
	[ 'chunks, and a length', 'chunks_and_length', 'ok 00000' ],
	[ 'a chunk that is too short', 'chunk_long', $lost ],
	[ 'a chunk that is too long', 'chunk_short', $lost ],
	[ 'a chunk whose size is not a number', 'chunk_text', $lost ],
	[ 'a chunk that is too large', 'chunk_huge', $lost ],
	[ 'a chunk of negative size', 'chunk_negative', $lost ],
	[ 'a chunk with an extension of 1 MB', 'chunk_extension', 'ok 00000' ],
	[ 'chunks without end', 'no_end', $lost ],
	[ 'chunks without end on an open connection', 'no_end_open', 'timeout 08006', %late_in_perl ],
	[ 'a trailer', 'trailer', 'ok 00000' ],
	[ '100,000 trailers', 'trailers', 'too_large 54000' ],
	[ 'an unknown transfer encoding', 'transfer', $invalid ],
	[ 'gzip as a transfer encoding', 'transfer_gzip', $invalid ],
	[ 'zstd as a transfer encoding', 'transfer_zstd', $invalid ],

	[ 'an unknown content encoding', 'encoding', $invalid ],
	[ 'a body that is not compressed', 'encoding_lie', $invalid ],
	[ 'a compressed body that is cut', 'encoding_cut', $lost ],
	[ 'a compressed body without its end', 'encoding_no_end', $lost ],
	[ 'a body compressed 100 times', 'encodings', $invalid ],

	[ 'an end before the reply', 'close', $lost ],
	[ 'an end after HTTP 100', 'close_after_continue', $lost ],
	[ 'an end in the status line', 'close_in_status', $lost ],
	[ 'an end between headers', 'close_in_headers', $lost ],
	[ 'an end in a header', 'close_in_header', $lost ],
	[ 'an end before the length', 'close_early', $lost ],
	[ 'a reset in the body', 'reset', $lost ],

	[ 'a kept connection that is closed', 'then_close', 'ok 00000', first => 1, kept => 3 ],
	[ 'a kept connection that is reset', 'then_reset', 'ok 00000', first => 1, kept => 3 ],
	[ 'a kept connection that ends in the headers', 'then_half', $lost, first => 1, kept => 3 ],
	[   'a kept connection that is silent', 'then_silent', 'timeout 08006',
		first => 1,
		kept => 3,
		%late_in_perl ]);

undef $raw;
undef $keeping;
warm_up();

#
# Hosts that cannot be reached or trusted
#

# Test a fault of a host, which is that of the API, so that all elements have the
# fault, or that of a link.
sub play_host
{
	my ($name, $origin, $outcome, %more) = @_;
	my %settings = %{ $more{settings} // {} };

	play(
		'api', $name, 'id=a', $outcome, %more,
		whole => 1,
		settings => { %settings, base_url => "'$origin/v1'" });
	play(
		'store',
		"$name, for a link",
		'data=' . base64_of(qq({"profile": "$origin/x.hflw"})),
		$more{link} // $outcome, %more);
	return;
}

my %no_connection = (settings => { connect_timeout => $short });
my $closed = do { my $peer = Hrflow::RawPeer->new(undef); $peer->port };

# This peer never accepts connections, so when its backlog is full, connections are
# never established.
my $deaf = Hrflow::RawPeer->new(undef, backlog => 0);
my @queue =
  map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $deaf->port, Blocking => 0) }
  1 .. 4;

play_host('a port that is closed', "http://127.0.0.1:$closed", $unreachable);
play_host(
	'a host that does not accept',
	'http://127.0.0.1:' . $deaf->port,
	$unreachable, %no_connection);
play_host('a name that does not exist', 'https://nobody.example', $unreachable);
play(
	'store',
	'a public name of a private address',
	'data=' . base64_of('{"profile": "https://a.private.example/x.hflw"}'),
	'link_refused 42501');

# Connections that are not established in time do not leave descriptors reserved.  A
# few hundred of them would use up all descriptors of the backend.
SKIP:
{
	my $session = Hrflow::Session->new($node);

	skip 'dblink is not available', 1 if $session->ask('CREATE EXTENSION dblink;') =~ /ERROR/;
	$session->ask(
		"SET hrflow_embed.base_url = 'http://127.0.0.1:" . $deaf->port . "/v1';
		SET hrflow_embed.connect_timeout = '200ms';
		SET hrflow_embed.max_attempts = 1;
		SET hrflow_embed.max_concurrency = 200;
		SELECT count(*)
			FROM hrflow_profile_embeddings('acme', (SELECT array_agg('p' || i)
			FROM generate_series(1, 400) i));
		RESET hrflow_embed.base_url;");
	like(
		$session->ask(
				'SELECT dblink_connect('
			  . literal($node->connstr('postgres'))
			  . '), dblink_disconnect();'),
		qr/OK\|OK/,
		'other connections can be opened after 400 failed connections');
	$session->finish;
}

my %hello = (
	'closes' => sub { sysread($_[0], my $hello, 16384) },
	'resets' => sub { sysread($_[0], my $hello, 16384); reset_connection($_[0]) },
	'speaks HTTP' => sub {
		my ($s) = @_;
		sysread($s, my $hello, 16384);
		print $s "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
	},
	'sends an alert' =>
	  sub { my ($s) = @_; sysread($s, my $hello, 16384); print $s "\x15\x03\x03\x00\x02\x02\x28" },
	'sends half a record' =>
	  sub { my ($s) = @_; sysread($s, my $hello, 16384); print $s "\x16\x03\x03\x10\x00\x02" },
	'is silent' => sub { sleep 600 });
foreach my $what (sort keys %hello)
{
	my $peer = Hrflow::RawPeer->new($hello{$what});
	play_host(
		"a host that $what when TLS begins",
		'https://localhost:' . $peer->port,
		$unreachable, %no_connection);
}

#
# Certificates
#
my $certificates = PostgreSQL::Test::Utils::tempdir();
my @servers;

sub openssl
{
	my @arguments = @_;
	my $no_input = '';
	my $err;
	IPC::Run::run([ 'openssl', @arguments ],
		'<', \$no_input, '>', \my $out, '2>', \$err, init => sub { chdir $certificates })
	  or die "openssl @arguments: $err";
	return;
}

# Start a server with one of the certificates, which answers with a page.
sub tls_server
{
	my ($certificate, @options) = @_;
	my $log = "$certificates/" . @servers . '.log';

	push @servers,
	  IPC::Run::start(
		[   'openssl', 's_server',
			'-accept', '127.0.0.1:0',
			'-www', '-cert',
			"$certificates/$certificate.pem", '-key',
			"$certificates/server.key", @options ],
		'<',
		'/dev/null',
		'>', $log, '2>',
		"$log.err");
	for (1 .. 500)
	{
		return $1 if PostgreSQL::Test::Utils::slurp_file($log) =~ /^ACCEPT .*:(\d+)\n/m;
		sleep 0.02;
	}
	die 'openssl s_server does not listen: ' . PostgreSQL::Test::Utils::slurp_file("$log.err");
}

PostgreSQL::Test::Utils::append_to_file("$certificates/ca.cnf", <<'END');
[ca]
default_ca = this
[this]
database = issued
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
[req]
distinguished_name = any_name
[any_name]
END
PostgreSQL::Test::Utils::append_to_file("$certificates/issued", '');
my @new_key = ('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes');
openssl('req', '-x509', '-config', 'ca.cnf', @new_key, '-days', '30', '-subj', "/CN=$_", '-keyout',
	"$_.key", '-out', "$_.pem", '-addext', 'basicConstraints=critical,CA:TRUE')
  foreach qw(ca other_ca);
openssl('req', '-new', '-config', 'ca.cnf', @new_key, '-subj', '/CN=localhost', '-addext',
	'subjectAltName=DNS:localhost',
	'-keyout', 'server.key', '-out', 'server.csr');
openssl('req', '-new', '-config', 'ca.cnf', '-key', 'server.key', '-subj', '/CN=other.example',
	'-addext', 'subjectAltName=DNS:other.example',
	'-out', 'other.csr');
openssl('req', '-x509', '-config', 'ca.cnf', '-key', 'server.key', '-days', '30', '-subj',
	'/CN=localhost', '-addext', 'subjectAltName=DNS:localhost',
	'-out', 'self.pem');

foreach my $issue (
	[ 'good', 'ca', 'server.csr', '20200101000000Z', '20990101000000Z' ],
	[ 'expired', 'ca', 'server.csr', '20200101000000Z', '20200201000000Z' ],
	[ 'future', 'ca', 'server.csr', '20980101000000Z', '20990101000000Z' ],
	[ 'name', 'ca', 'other.csr', '20200101000000Z', '20990101000000Z' ],
	[ 'stranger', 'other_ca', 'server.csr', '20200101000000Z', '20990101000000Z' ])
{
	my ($name, $ca, $request, $start, $end) = @$issue;
	openssl(
		'ca', '-batch', '-notext', '-config', 'ca.cnf', '-cert',
		"$ca.pem", '-keyfile', "$ca.key", '-startdate', $start, '-enddate',
		$end, '-in', $request, '-out', "$name.pem");
}

foreach my $case (
	[   'a good certificate', 'good', $invalid,
		link => 'invalid_vector 22P03',
		says => qr/content type|NumPy/ ],
	[ 'an expired certificate', 'expired', $unreachable, says => qr/expired/ ],
	[ 'a certificate of the future', 'future', $unreachable, says => qr/not yet valid/ ],
	[ "another host's certificate", 'name', $unreachable, says => qr/subject name/ ],
	[ 'a self-signed certificate', 'self', $unreachable, says => qr/self.signed/ ],
	[ "a stranger's certificate", 'stranger', $unreachable, says => qr/issuer/ ],
	[   'TLS 1.1', 'good', $unreachable,
		options => [ '-tls1_1', '-cipher', 'DEFAULT@SECLEVEL=0' ],
		says => qr/protocol|version/ ])
{
	my ($name, $certificate, $outcome, %more) = @$case;
	my $port = tls_server($certificate, @{ delete $more{options} // [] });
	play_host($name, "https://localhost:$port", $outcome, %more,
		settings => { ca_file => literal("$certificates/ca.pem") });
}

# A CA that is no longer trusted, because it was removed from the file.
{
	my $port = tls_server('good');
	foreach
	  my $case ([ 'ca', $invalid, link => 'invalid_vector 22P03', says => qr/content type|NumPy/ ],
		[ 'other_ca', $unreachable, says => qr/issuer/ ])
	{
		my ($ca, $outcome, %more) = @$case;
		unlink "$certificates/trusted.pem";
		PostgreSQL::Test::Utils::append_to_file("$certificates/trusted.pem",
			PostgreSQL::Test::Utils::slurp_file("$certificates/$ca.pem"));
		sleep 1;    # the file is checked once a second
		play_host(
			'a certificate ' . ($ca eq 'ca' ? 'before' : 'after') . ' its CA was removed',
			"https://localhost:$port",
			$outcome,
			%more,
			settings => { ca_file => literal("$certificates/trusted.pem") });
	}
}
foreach my $server (@servers)
{
	$server->signal('TERM');
	$server->finish;
}

#
# A name server that never answers.  The threads that wait for it remain, and each has
# a descriptor
#
play_host('a name server that is silent',
	'https://silent.example', $unreachable, %no_connection,
	kept => sub { elements($_[0], 1) + elements($_[0]) });
warm_up();

#
# HTTP/2
#
# nghttpx is an HTTP/2 proxy for a stand-in that can be stopped.  It cannot report a
# port chosen by the system, so try several.
#
my $nghttpx = '/usr/sbin/nghttpx';
my $proxy_log = PostgreSQL::Test::Utils::tempdir() . '/nghttpx.log';

sub start_proxy
{
	my ($backend, $wanted) = @_;

	for (1 .. 5)
	{
		my $port = $wanted // PostgreSQL::Test::Cluster::get_free_port();
		my $proxy = IPC::Run::start(
			[   $nghttpx, "-f127.0.0.1,$port",
				'-b127.0.0.1,' . $backend->http, '--conf=/dev/null',
				'--workers=1', '--no-ocsp',
				"--errorlog-file=$proxy_log", '--accesslog-file=/dev/null',
				'--backend-connections-per-host=64', $api->dir . '/server.key',
				$api->dir . '/server.pem' ],
			'<',
			'/dev/null',
			'>',
			'/dev/null',
			'2>',
			'/dev/null');

		for (1 .. 500)
		{
			return ($port, $proxy)
			  if IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port);
			last unless $proxy->pumpable;
			sleep 0.02;
		}
		$proxy->kill_kill;
	}
	die 'nghttpx does not listen: ' . PostgreSQL::Test::Utils::slurp_file($proxy_log);
}

SKIP:
{
	skip "$nghttpx is not available", 1 unless -x $nghttpx;

	my $backend = Hrflow::StandIn->new(@keys);
	my ($port, $proxy) = start_proxy($backend);

	# A backend keeps one connection, or two if one of them has just been closed, two
	# HTTP/1.1 connections, over which lost requests are sent again, and two to $api.
	my $play = sub {
		my ($of, $name, $fault, $outcome, %more) = @_;
		play(
			$of,
			"HTTP/2 and $name",
			$fault, $outcome, %more,
			kept => 6,
			settings => {
				%{ $more{settings} // {} },
				ca_file => literal($api->ca),
				base_url => "'https://localhost:$port/v1'" });
	};

	$play->('api', @$_)
	  foreach (
		[ 'no fault', 'id=a', 'ok 00000' ],
		[ 'a reset by the server of the proxy', 'reset', 'http_error 58000' ],
		[ 'a stream that is reset', 'break=20', $lost ],
		[ 'a stream that is reset once', 'first=1,break=20', 'ok 00000', %twice ],
		[ 'a stream that is silent', 'silent', 'timeout 08006', %late ],
		[ 'a stream that stalls', 'stall=20', 'timeout 08006', %late ],
		[ 'a large reply', 'big=1000000', 'too_large 54000' ],
		[ 'a header of 80 kB', 'header_size=80000', 'http_error 58000' ],    # nghttpx answers 502
		[ 'a redirect', 'redirect', $invalid ]);
	$play->('store', @$_)
	  foreach (
		[ 'a link without fault', 'id=a', 'ok 00000' ],
		[ "a link's stream that is reset", 'v.break=100', $lost ],
		[ "a link's stream that is silent", 'v.silent', 'timeout 08006', %late ],
		[ 'a large vector', 'v.big=1000000', 'too_large 54000' ]);

	# Let something happen when all requests are in flight, none of which is answered before.
	my $happens = sub {
		my ($name, $fault, $outcome, $what, %more) = @_;
		$backend->reset;
		$play->(
			'api', $name, $fault, $outcome, %more,
			beside => "fault:$fault",
			meanwhile => sub {
				my ($count) = @_;
				$backend->wait_until(sub { $_[0]{requests} >= $count })
				  or die "there were never $count requests in flight";
				$what->();
			});
	};

	# Use another port, because broken connections have reduced the number of requests
	# in flight to this one.
	my $use_another_port = sub {
		$proxy->signal('TERM');
		$proxy->finish;
		($port, $proxy) = start_proxy($backend);
	};

	# After GOAWAY, requests in flight are completed.  Others may or may not be accepted,
	# depending on when GOAWAY arrives, so let the links lead elsewhere.
	my $first_backend = $backend;
	$backend = Hrflow::StandIn->new(@keys, '--link-base', $api->base_url('https') =~ s{/v1$}{}r);
	$use_another_port->();
	my $n_held = 1 + sum(map { elements($_, 1) } grep { $_->{of} =~ /api/ } @paths);
	$happens->(
		'a proxy that ends with GOAWAY',
		"hold=$n_held",
		'ok 00000',
		sub {
			$proxy->signal('QUIT');
			sleep 0.5;
			$backend->release($n_held);
		},
		whole => 1);
	$proxy->finish;
	$play->('api', 'a proxy that is gone', 'id=a', $unreachable, whole => 1);
	($port, $proxy) = start_proxy($backend, $port);
	$play->('api', 'a proxy that is back after GOAWAY', 'id=a', 'ok 00000');
	$backend = $first_backend;

	$use_another_port->();
	$happens->(
		'a proxy that is killed',
		'silent', $lost, sub { $proxy->signal('KILL') },
		whole => 1);
	$proxy->finish;
	($port, $proxy) = start_proxy($backend, $port);
	$play->('api', 'a proxy that is back after it was killed', 'id=a', 'ok 00000');
	$use_another_port->();
	$happens->(
		'a server of the proxy that is killed',
		'silent',
		'http_error 58000',
		sub { $backend->{process}->signal('KILL') },
		whole => 1);

	$proxy->signal('TERM');
	$proxy->finish;
}

#
# The API is restarted
#
warm_up();
$api->restart(@keys);
play($_, "a restart of the API before requests to $_", 'id=a', 'ok 00000') foreach qw(api store);

unlike(
	PostgreSQL::Test::Utils::slurp_file($node->logfile),
	qr/PANIC|terminated by signal|XX000/,
	'no backend has crashed or raised an internal error');

$_->{session}->finish foreach @paths;

done_testing();
