# Another model: hrflow_change_model() creates a second store beside the first, which is
# refreshed, and hrflow_switch_model() lets it replace the first.  Each profile is
# bought once, the old vectors stay until the switch, and a deleted person is erased
# from both stores.  A regression test could not see the requests that are sent, restart
# the server, or use pg_cron.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::Session;
use Hrflow::StandIn;
use Hrflow::Store;
use Test::More;

my $api = Hrflow::StandIn->new('--dim' => 8);
my $wide_api = Hrflow::StandIn->new('--dim' => 16);
my $node = Hrflow::Node->new('change_model', $api, link_hosts => '127.0.0.1');
my $store = Hrflow::Store->new($node, $api, 'shop');
my $has_pgvector =
  $node->safe_psql('postgres',
	q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});
my $track = q{'shop.candidate', 'hrflow_id', source_id => 'acme', refresh_columns => '{cv}'};
my $dimensions = 'SELECT array_length(vector::real[], 1), count(*) FROM shop.%s GROUP BY 1';

# Refresh the second store with the new model.  Return the output and the number of
# requests for each profile.
sub refresh_next
{
	my ($arguments) = @_;

	$wide_api->reset;
	my ($code, $out, $err) = $node->psql(
		'postgres', "SET hrflow_embed.base_url = '${\ $wide_api->base_url }'; SET ROLE keeper;
		CALL hrflow_refresh('shop.embedding_next'"
		  . ($store->{fields} ? ", $store->{fields}" : '')
		  . "$arguments)",
		on_error_stop => 0);
	my %asked;
	$asked{$_}++ foreach $wide_api->get('/log') =~ /profile_id=([^&"]+)/g;
	return ($err, \%asked);
}

# Return what the owner's statement prints, with WARNINGs and errors
sub printed_by
{
	my ($sql) = @_;
	my (undef, $out, $err) = $node->psql(
		'postgres',
		"SET ROLE keeper;\n$sql",
		extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return join("\n", grep { $_ ne '' } $out, $err =~ s/^psql:<stdin>:\d+: //mgr);
}

my $change = q{SELECT hrflow_change_model('shop.embedding'%s)};
my $switch = q{SELECT hrflow_switch_model('shop.embedding'%s)};

# What protects the tables of the store
my $protection = q{SELECT c.relname, c.relrowsecurity, c.relforcerowsecurity, c.relacl,
	(SELECT string_agg(a.attname || a.attacl::text, ' ' ORDER BY a.attnum) FROM pg_attribute a
		WHERE a.attrelid = c.oid),
	(SELECT string_agg(concat_ws(' ', policyname, permissive, roles, cmd, qual, with_check), ', '
		ORDER BY policyname) FROM pg_policies p WHERE p.tablename = c.relname)
	FROM pg_class c WHERE relnamespace = 'shop'::regnamespace AND relname ~ '^embedding'
		AND relkind = 'r' ORDER BY 1};
my $names = q{SELECT string_agg(relname, ' ' ORDER BY relname COLLATE "C") FROM pg_class
	WHERE relnamespace = 'shop'::regnamespace AND relname ~ '^embedding' AND relkind IN ('r', 'i')};

$node->safe_psql(
	'postgres', 'CREATE ROLE reader; CREATE ROLE other;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO other');
$node->safe_psql('postgres', 'CREATE EXTENSION vector') if $has_pgvector;
foreach my $type ('real[]', $has_pgvector ? 'vector(16)' : ())
{
	my $type_argument = $type eq 'real[]' ? '' : ", '$type'";

	$store->track("SELECT 'nurse-' || i FROM generate_series(1, 40) i");
	$store->sql(
		q{TRUNCATE shop.embedding_erased; SELECT hrflow_track('shop.embedding', 'acme', '{cook-1}')}
	);
	$store->call;
	$store->sql(
		q{GRANT SELECT ON shop.embedding TO reader;
		GRANT UPDATE (due_at, "state") ON shop.embedding_profile TO reader WITH GRANT OPTION;
		ALTER TABLE shop.embedding_aside ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
		CREATE POLICY acme ON shop.embedding_aside AS RESTRICTIVE FOR UPDATE TO reader, other
			USING (source_id = 'acme') WITH CHECK (item = 0)});
	$store->sql(
		q{CREATE INDEX ON shop.embedding USING hnsw ((vector::vector(8)) vector_cosine_ops)
		WHERE section = 'profile'}) if $has_pgvector;

	# Give up
	like(
		printed_by(sprintf $change, $type_argument),
		qr/^shop\.embedding_next\n.*^NOTICE: .* store shop\.embedding_next will request 41 profiles$/ms,
		"a second store of $type is created, which will request each profile");
	refresh_next(', max_profiles => 5');
	$store->sql(q{SELECT hrflow_drop_store('shop.embedding_next')});
	is($store->states, 'ok 41', "dropping a store of $type leaves the profiles of the other one");
	is($store->sql(sprintf $dimensions, 'embedding'),
		'8|82', "dropping a store of $type leaves the vectors of the other one");
	$store->sql(
		q{INSERT INTO shop.candidate (hrflow_id) VALUES ('cook-2');
		DELETE FROM shop.candidate WHERE hrflow_id = 'cook-2'});

	# Part of it, a restart, and an erasure
	my $made = $store->sql($names);
	$store->sql("SET client_min_messages = error; ${\ sprintf $change, $type_argument }");
	like(
		printed_by(sprintf $change, $type_argument),
		qr/ERROR:  42P07/,
		"a second store of $type is not created twice");
	my ($printed, $first) = refresh_next(', max_profiles => 15');
	is(scalar keys %$first, 15, "a part of a store of $type is fetched");
	$node->restart;
	is($store->sql(sprintf $dimensions, 'embedding'),
		'8|82', "the old vectors are still there while a store of $type is filled");
	my ($person) = grep { /nurse/ } sort keys %$first;
	$store->sql("DELETE FROM shop.candidate WHERE hrflow_id = '$person'");
	is( $store->sql(
			"SELECT (SELECT count(*) FROM shop.embedding WHERE profile_id = '$person'),
			(SELECT count(*) FROM shop.embedding_next WHERE profile_id = '$person'),
			(SELECT count(*) FROM shop.embedding_profile WHERE profile_id = '$person'),
			(SELECT count(*) FROM shop.embedding_next_profile WHERE profile_id = '$person')"),
		'0|0|0|0',
		"a person is erased from both stores while one of $type is filled");
	like(
		printed_by(sprintf $switch, ''),
		qr/ERROR:\ \ 55000:\ store\ shop\.embedding_next\ has\ vectors\ of\ only\ 14\ of\ 40\ profiles\n
			DETAIL:.*\nHINT:\ \ Call\ hrflow_refresh\(\)/x,
		"a store of $type is not switched to while it lacks many profiles");
	is($store->sql(sprintf $dimensions, 'embedding'),
		'8|80', "a switch to a store of $type that is refused erases nothing");

	# The rest, but for one profile
	$store->sql(q{INSERT INTO shop.candidate (hrflow_id) VALUES ('late-nurse')});
	$store->call;
	$store->sql(
		q{UPDATE shop.embedding_next_profile SET due_at = 'infinity' WHERE profile_id = 'late-nurse'}
	);
	($printed, my $second) = refresh_next('');
	like($printed, qr/: 26 refreshed/, "the rest of a store of $type is fetched");
	is_deeply([ grep { $first->{$_} } keys %$second ],
		[], "no profile of a store of $type is bought twice");
	is_deeply([ grep { $_ > 1 } values %$first, values %$second ],
		[], "each profile of a store of $type takes one request");

	# Profiles that hrflow_track() and hrflow_untrack() are called for in the first store
	$store->sql(
		q{SELECT hrflow_track('shop.embedding', 'acme', '{cook-3,nurse-40}');
		SELECT hrflow_untrack('shop.embedding', 'acme', '{cook-1}')});

	# The switch
	foreach my $case (
		[   'another role',
			"SET ROLE other; $switch",
			qr/42501.*must be owner of store shop\.embedding/s ],
		[   'a view of the store',
			"BEGIN; CREATE VIEW shop.v AS TABLE shop.embedding; $switch", qr/2BP01/ ],
		[   'another table that feeds the store',
			"BEGIN; CREATE TABLE shop.more (id text);
				SELECT hrflow_track_table('shop.embedding', 'shop.more', 'id', 'acme'); $switch",
			qr/55000:\ store\ shop\.embedding_next\ cannot\ replace\ store\ shop\.embedding\n.*
				HINT:\ \ Run:\ SELECT\ public\.hrflow_track_table\('shop\.embedding_next',\ 'shop\.more'/sx
		],
		[   'a part above 1',
			"SELECT hrflow_switch_model('shop.embedding', 1.1)",
			qr/22023: part must be between 0 and 1/ ],
		[   'all profiles, of which one is missing',
			"SELECT hrflow_switch_model('shop.embedding', 1)",
			qr/55000: .* only 39 of 40 profiles/ ])
	{
		my ($name, $sql, $error) = @$case;

		$node->safe_psql('postgres', 'GRANT USAGE ON SCHEMA shop TO other');
		like(printed_by($sql =~ s/%s//r), $error, "$name makes a switch to a store of $type fail");
	}
	is($store->sql(sprintf $dimensions, 'embedding'),
		'8|80', "a switch to a store of $type that fails erases nothing");
	my $protected = $store->sql($protection =~ s/\^embedding/^embedding(?!_next)/r);
	$printed = printed_by(sprintf $switch, '');
	like(
		$printed,
		qr/WARNING:\ .*erased\ the\ vectors\ of\ 1\ profile\ of\ store\ shop\.embedding,
			\ of\ which\ there\ are\ none\ of\ the\ new\ model$/mx,
		"a switch to a store of $type reports profiles that lose their vectors");
	like(
		$printed,
		$has_pgvector
		? qr/^CREATE INDEX CONCURRENTLY ON shop\.embedding USING hnsw \((?:\(vector::public\.vector\(16\)\)|vector) public.* 'profile'$/m
		: qr/^WARNING/,
		"a switch to a store of $type returns the statements for indexes");
	is($store->sql(sprintf $dimensions, 'embedding'),
		'16|78', "a store of $type takes the name of the old one");
	is( $store->sql($names) =~ s/extend\w+_idx/extended_idx/r,    # a name that was truncated
		$made =~ s/ embedding_vector_idx//r,
		"the tables and indexes of a store of $type have the names of the old ones");
	is($store->sql($protection),
		$protected, "a store of $type has the privileges and policies of the old one");
	is($store->states, 'due 2, ok 39',
		"only new profiles are due after the switch to a store of $type");
	is( $store->sql(
			q{SELECT string_agg(profile_id, ' ' ORDER BY profile_id) FROM shop.embedding_profile WHERE manual}
		),
		'cook-3 nurse-40',
		"profiles tracked explicitly are tracked after the switch to a store of $type");
	is( $store->sql(
			"SELECT string_agg(concat_ws(' ', reason, vectors), ', ' ORDER BY reason)
			FROM shop.embedding_erased WHERE fingerprint = hrflow_fingerprint('acme', '$person')
				OR fingerprint = hrflow_fingerprint('acme', 'late-nurse')"),
		'delete 2, delete 2, model 2',
		"the record of both stores is kept by the switch to a store of $type");
	is( $store->sql(q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'shop.candidate'::regclass}),
		4, "only one store is fed after the switch to a store of $type");
	$store->sql(q{DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-39'});
	is($store->sql(q{SELECT count(*) FROM shop.embedding WHERE profile_id = 'nurse-39'}),
		0, "a person is erased after the switch to a store of $type");
	is(printed_by("SELECT hrflow_track_table('shop.embedding', $track)"),
		0, "tracking the table again after the switch to a store of $type changes nothing");

	# Begin with the old model again
	$store->sql(
		qq{SET client_min_messages = error; SELECT hrflow_drop_store('shop.embedding');
		SELECT hrflow_create_store('shop.embedding', 'real[]');
		SELECT hrflow_track_table('shop.embedding', $track)});
}
like(
	printed_by(sprintf $switch, ''),
	qr/ERROR:  42P01: store shop\.embedding_next does not exist\nHINT:  Call hrflow_change_model/,
	'a store without a second one cannot be switched');
is(printed_by('SELECT hrflow_change_model(NULL), hrflow_switch_model(NULL)'),
	'', 'hrflow_change_model() and hrflow_switch_model() return nothing for NULL');

# A table that feeds the store has another owner, or its columns have been released
foreach my $case (
	[   'ALTER TABLE shop.candidate OWNER TO other',
		qr/owner of tracked table "candidate" has changed/ ],
	[   q{SET ROLE keeper; SELECT hrflow_release_columns('shop.embedding', 'shop.candidate')},
		qr/columns of table "candidate" are already released/ ])
{
	my ($sql, $error) = @$case;

	like(
		$node->error_of("BEGIN; $sql; SET ROLE keeper; ${\ sprintf $change, '' }"),
		qr/^55000: .*$error/,
		"a second store cannot be created after: $sql");
}
like(
	printed_by(
		"BEGIN; SELECT hrflow_create_store('shop.embedding_next', 'real[]', content => 'job');
		${\ sprintf $switch, '' }"
	),
	qr/ERROR:  55000: .*cannot replace .*\nDETAIL:  They do not have the same content/,
	'a store of jobs does not replace one of profiles');
like(
	printed_by(
		q{BEGIN; CREATE TABLE shop.parts (LIKE shop.embedding) PARTITION BY HASH (profile_id);
		CREATE TABLE shop.parts_profile (LIKE shop.embedding_profile);
		SELECT hrflow_change_model('shop.parts')}
	),
	qr/ERROR:  0A000: .*which is partitioned\nHINT:  Create the store shop\.parts_next /,
	'no second store is created for a partitioned one');

# A person is deleted, and candidates are added, while another session switches.  The
# second store lacks the table for the record of what was erased.
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 40) i");
$store->call;
$store->sql("SET client_min_messages = error; ${\ sprintf $change, '' }");
refresh_next('');
my $nerased =
  $store->sql('DROP TABLE shop.embedding_next_erased; SELECT count(*) FROM shop.embedding_erased');
my $writer = Hrflow::Session->new($node);
my $switcher = Hrflow::Session->new($node);
$switcher->ask("SET ROLE keeper; BEGIN; ${\ sprintf $switch, '' };");
$writer->send(
	q{SET ROLE keeper; DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-1';
	INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-41'); SELECT 'written';});
$node->poll_query_until('postgres',
	"SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid = $writer->{pid})");
$switcher->ask('COMMIT;');
like($writer->wait_for(qr/^written|ERROR/m),
	qr/^written$/m, 'a row can be written that waited for a switch');
is($store->states, 'due 1, ok 39', 'rows that waited for a switch are tracked and erased');
is($store->sql(sprintf $dimensions, 'embedding'),
	'16|78', 'a person who is deleted during a switch has no vectors');
is( $store->sql('SELECT count(*) FROM shop.embedding_erased'),
	$nerased + 1,
	'the record of what was erased is kept if the second store has none');
$_->finish foreach $writer, $switcher;
$store->sql('DROP SCHEMA shop CASCADE');

#
# Stores of other kinds, and identifiers of another kind
#
foreach my $content (qw(job text document))
{
	$store = Hrflow::Store->new($node, $api, 'shop', content => $content);
	$store->fill(20);
	$store->call;
	$store->sql("SET client_min_messages = error; ${\ sprintf $change, '' }");
	my ($printed) = refresh_next('');
	like($printed, qr/: 20 refreshed/, "a second store of ${content}s is refreshed");
	is(printed_by(sprintf $switch, ', 1'), '', "a second store of ${content}s replaces the first");
	is($store->states, 'ok 20', "no profile is due after the switch to a store of ${content}s");
	is($store->sql(sprintf $dimensions, 'embedding'),
		'16|20', "a store of ${content}s has the vectors of the new model after the switch");
	$store->sql(q{DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-4'});
	is($store->states, 'ok 19', "a store of ${content}s is fed after the switch");
	$store->sql('DROP SCHEMA shop CASCADE');
}
my ($type, $general) = $has_pgvector ? ('halfvec(8)', 'halfvec') : ('real[]', 'real[]');
is( $node->safe_psql(
		'postgres', qq{SET client_min_messages = error;
		SELECT hrflow_create_store('"Of refs"', '$type', 'reference');} . q{
		CREATE TABLE "Row" ("Ref" text, source text);
		SELECT hrflow_track_table('"Of refs"', '"Row"', 'Ref', source_column => 'source');
		INSERT INTO "Row" VALUES ('a', 'acme'), ('b', '');
		SELECT hrflow_change_model('"Of refs"');
		SELECT hrflow_switch_model('"Of refs"');
		INSERT INTO "Row" VALUES ('c', 'acme');
		SELECT string_agg(profile_reference, ' ' ORDER BY profile_reference) FROM "Of refs_profile";
		SELECT format_type(atttypid, atttypmod) FROM pg_attribute
			WHERE attrelid = '"Of refs"'::regclass AND attname = 'vector'}),
	qq{"Of refs"\n0\n"Of refs_next"\na c\n$general},
	'a store with references and quoted names has its model changed');

#
# Jobs of pg_cron
#
SKIP:
{
	skip 'pg_cron is not available', 3
	  unless -e $node->config_data('--sharedir') . '/extension/pg_cron.control';
	my $cron = Hrflow::Node->new(
		'jobs', $api,
		shared_preload_libraries => 'pg_cron',
		'cron.database_name' => 'postgres');
	$cron->safe_psql('postgres', 'CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO PUBLIC');
	$node = $cron;
	$store = Hrflow::Store->new($cron, $api, 'shop');
	my $jobs = 'SELECT jobname, schedule, command FROM cron.job';
	$store->sql(
		q{SELECT hrflow_schedule('shop.embedding', '0 0 1 1 *', '{"skills": 1}', '9 days')});
	my $job = $store->sql($jobs);
	like(
		printed_by(sprintf $change, ''),
		qr/NOTICE: .*pg_cron job of store shop\.embedding now refreshes store shop\.embedding_next$/m,
		'hrflow_change_model() reports that it changes a job');
	is( $store->sql($jobs),
		$job =~ s/shop\.embedding/shop.embedding_next/gr,
		'hrflow_change_model() lets the job of a store refresh the second one');
	printed_by(sprintf $switch, '');
	is($store->sql($jobs), $job, 'hrflow_switch_model() lets the job refresh the store again');
}

done_testing();
