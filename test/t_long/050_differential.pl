# Requests contain exactly what was passed: thousands of random identifiers, fields and
# texts, with all characters of UTF-8, in both dialects, are compared with what
# decoders of Python, which are independent of our encoders, read in the requests that
# the stand-in received.  HRFLOW_SEED repeats a run; HRFLOW_CASES is the number of cases.
use strict;
use warnings FATAL => 'all';
use File::Basename qw(dirname);
use Hrflow::Node;
use Hrflow::StandIn;
use IPC::Run ();
use JSON::PP;
use Test::More;

my $seed = $ENV{HRFLOW_SEED} // int rand 2**31;
my $ncases = $ENV{HRFLOW_CASES} // 8000;
my @python = ('python3', dirname(__FILE__) . '/050_differential.py');

plan skip_all => 'python3 is not available'
  unless eval { IPC::Run::run([ 'python3', '--version' ], '>&', \my $version) };
note("HRFLOW_SEED=$seed HRFLOW_CASES=$ncases");

my $api = Hrflow::StandIn->new('--dim' => 8);
my $node = Hrflow::Node->new('differential', $api, max_attempts => 1);
my %path = map { $_ => $node->basedir . "/$_" } qw(cases log outcome);

# Make the call of each case, followed by a request for /auth that separates cases.
$node->safe_psql(
	'postgres', q{
	CREATE TABLE outcome (n bigint, state text);
	CREATE PROCEDURE ask(path text) LANGUAGE plpgsql AS $$
	DECLARE
		line record;
		c jsonb;
		v jsonb;
		state text;
	BEGIN
		FOR line IN SELECT n, l
				FROM regexp_split_to_table(pg_read_file(path), E'\n') WITH ORDINALITY r (l, n)
				WHERE l <> '' ORDER BY n LOOP
			c := line.l;
			v := c->'values';
			state := '00000';
			PERFORM set_config('hrflow_embed.api_dialect', c->>'dialect', false),
					set_config('hrflow_embed.api_user', c->>'user', false);
			BEGIN
				CASE c->>'kind'
				WHEN 'profile' THEN
					PERFORM hrflow_profile_embedding(v->>0, v->>1, NULLIF(v->4, 'null'),
						v->>2, v->>3);
				WHEN 'batch' THEN
					PERFORM hrflow_profile_embeddings(c->>'source', ids,
						NULLIF(c->'fields', 'null'), refs, emails)
					FROM (SELECT array_agg(r->>0 ORDER BY n) ids, array_agg(r->>1 ORDER BY n) refs,
						array_agg(r->>2 ORDER BY n) emails
						  FROM jsonb_array_elements(c->'rows') WITH ORDINALITY e (r, n)) a;
				WHEN 'job' THEN
					PERFORM hrflow_job_embedding(v->>1, v->>2, v->>0);
				WHEN 'text' THEN
					PERFORM hrflow_text_embedding(c->>'text');
				END CASE;
			EXCEPTION WHEN OTHERS THEN
				state := SQLSTATE;
			END;
			INSERT INTO outcome VALUES (line.n, state);
			PERFORM hrflow_auth();
		END LOOP;
	END $$});

ok(IPC::Run::run([ @python, 'make', $seed, $ncases, $path{cases} ]),
	"the script makes $ncases cases");
$api->reset;
$node->safe_psql('postgres', "CALL ask('$path{cases}')");
foreach my $what ([ 'log', $api->get('/log') ],
	[ 'outcome', $node->safe_psql('postgres', 'SELECT state FROM outcome ORDER BY n') . "\n" ])
{
	open(my $file, '>:raw', $path{ $what->[0] }) or die $!;
	print $file $what->[1];
	close $file or die $!;
}

my $said = '';
ok( IPC::Run::run(
		[ @python, 'check', @path{qw(cases log outcome)}, $api->base_url ],
		'>', \$said, '2>&1'),
	'the script compares all requests with the cases');
my ($last) = $said =~ /^(\{.*\})\s*\z/m;
my $counts = decode_json($last // '{"wrong": 1}');
is($counts->{wrong} // 0,
	0, 'each request contains what was passed, in order, and encoded according to RFC 3986')
  or diag($said);
cmp_ok($counts->{$_} // 0, '>', 0, "there are cases of this kind: $_")
  foreach 'batch', 'job', 'nothing to ask', 'profile', 'refused', 'text', 'too long';
cmp_ok($counts->{requests} // 0, '>=', $ncases / 2, 'at least half of the cases send requests');
note($last // $said);

# The stand-in answers 400 for identifiers and sections that it does not accept.  A
# batch does not stop because of these.
my $by_status = $api->stats->{by_status};
is(join(' ', sort keys %$by_status), '200 400', 'every request is answered with 200 or 400');
note(encode_json($by_status));
$node->stop;

done_testing();
