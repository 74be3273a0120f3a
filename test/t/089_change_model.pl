# The way to another model that docs/refresh.md describes: hrflow_change_model() creates a
# second store beside the first, which is filled, and hrflow_switch_model() gives it the name
# of the first one.  Each profile is bought once, the old vectors stay until the switch, a
# deleted person is erased from both stores, and whatever fails loses nothing.  A regression
# test could not see the requests that are sent, use several sessions, or restart the server.
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
my $has_pgvector =
  $node->safe_psql('postgres',
	q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});

$node->safe_psql('postgres', 'CREATE EXTENSION vector') if $has_pgvector;

# Return the output and the messages of statements of the stores' owner.
sub ask
{
	my ($sql, $server) = @_;
	my (undef, $out, $err) = ($server // $node)->psql('postgres', "SET ROLE keeper; $sql");

	return "$out\n$err";
}

# Refresh the second store with the new model.  Return the messages and the number of
# requests for each profile.
sub refresh_next
{
	my ($store, $arguments) = @_;

	$wide_api->reset;
	my (undef, undef, $err) = $store->{node}->psql(
		'postgres',
		"SET hrflow_embed.base_url = '${\ $wide_api->base_url }'; SET ROLE keeper;
		CALL hrflow_refresh("
		  . join(', ', "'$store->{name}.embedding_next'", $store->{fields} // (), $arguments // ())
		  . ')',
		on_error_stop => 0);
	my %counted = (%$store, api => $wide_api);
	return ($err, Hrflow::Store::asked(\%counted));
}

# Count the rows of a person in the tables of both stores.
sub rows_of
{
	my ($store, $person) = @_;

	return $store->sql(
		'SELECT ' . join(
			' + ',
			map {
				"(SELECT count(*) FROM $store->{name}.embedding$_ WHERE $store->{id} = '$person')"
			} '',
			'_profile',
			'_aside', '_next',
			'_next_profile',
			'_next_aside'));
}

my $triggers = q{SELECT t.tgrelid::regclass || ' ' || string_agg(encode(t.tgargs, 'escape'), ' '
		ORDER BY t.tgtype, t.tgname) FROM pg_trigger t
	WHERE t.tgrelid::regclass::text IN ('SHOP.candidate', 'SHOP.more')
		AND NOT t.tgisinternal AND encode(t.tgargs, 'escape') LIKE 'SHOP.embedding\\\\000%'
	GROUP BY t.tgrelid ORDER BY 1};

#
# Each kind of content, and each type of vectors
#
foreach my $case (
	map {
		my $content = $_;
		map { [ $content, $_ ] } 'real[]', $has_pgvector ? 'vector(16)' : ()
	} qw(profile job text document))
{
	my ($content, $type) = @$case;
	my $name = "${content}_" . ($type =~ /^(\w+)/)[0];
	my $what = "a store of type $type for each $content";
	my $store = Hrflow::Store->new($node, $api, $name, content => $content);
	my $dimensions =
	  'SELECT array_length(vector::real[], 1), count(*) FROM SHOP.%s GROUP BY 1' =~ s/SHOP/$name/r;
	my $change = "SELECT hrflow_change_model('$name.embedding', '$type')";
	my $switch = "SELECT hrflow_switch_model('$name.embedding')";
	my $nold = 15 * $store->{vectors};
	my $fed_by = $triggers =~ s/SHOP/$name/gr;

	$store->add_table('more');
	$store->track("SELECT 'nurse-' || i FROM generate_series(1, 12) i");
	$store->sql("INSERT INTO $name.more VALUES ('nurse-1'), ('cook-1'), ('cook-2'), ('cook-3')");
	$store->sql("SELECT hrflow_track('$name.embedding', '$store->{source}', '{nurse-2,welder-1}')");
	$store->call;
	my $feeders = $store->sql($fed_by);
	my $nmanual = $store->{posts} ? 0 : 1;    # no row has the content of welder-1
	my $n = 15 + $nmanual;
	$nold = $n * $store->{vectors};
	is($store->sql(sprintf $dimensions, 'embedding'), "8|$nold", "$what has old vectors");

	# Give it up
	$api->reset;
	is($store->sql($change), "$name.embedding_next", "a second store is created for $what");
	is_deeply($api->stats->{requests}, 0, "creating a second store for $what sends no request");
	like(
		ask($change),
		qr/ERROR:\ \ cannot\ change\ the\ model\ of\ store\ $name\.embedding\ because\ relation\ 
			$name\.embedding_next\ exists\n
			HINT:\ .*hrflow_drop_store\('$name\.embedding_next'\)/x,
		"the model of $what cannot be changed twice at once");
	is( $store->sql($fed_by =~ s/embedding\\/embedding_next\\/r),
		$feeders =~ s/\.embedding\\/.embedding_next\\/gr,
		"the tables of $what feed the second store with the same arguments");
	refresh_next($store, 'max_profiles => 5');
	$store->sql("SELECT hrflow_drop_store('$name.embedding_next')");
	is($store->sql(sprintf $dimensions, 'embedding'),
		"8|$nold", "giving up a second store leaves the vectors of $what");
	is($store->sql($fed_by), $feeders, "giving up a second store leaves the triggers of $what");

	# Part of it, a restart, and an erasure
	$store->sql($change);
	my ($printed, $first) = refresh_next($store, 'max_profiles => 7');
	is(scalar keys %$first, 7, "a part of the second store is fetched for $what");
	$node->restart;
	is($store->sql(sprintf $dimensions, 'embedding'),
		"8|$nold", "the old vectors of $what are still there after a restart");
	my ($person) = grep { /^nurse-(?!1$|2$)/ } sort keys %$first;
	$store->sql("DELETE FROM $name.candidate WHERE hrflow_id = '$person'");
	is(rows_of($store, $person), 0, "a person is erased from both stores of $what");
	like(
		ask($switch),
		qr/\Af\n.*NOTICE:\ \ store\ $name\.embedding\ was\ not\ replaced\n
			DETAIL:\ \ Only\ 6\ of\ @{[ $n - 1 ]}\ profiles\ have\ vectors\ of\ the\ same\ sections
			\ in\ $name\.embedding_next\.\n/x,
		"$what is not replaced before the second store is filled");
	is($store->sql($fed_by), $feeders, "a refused switch changes no trigger of $what");

	# A profile that is tracked, and one that is untracked, in the first store only
	$store->sql(
		"SELECT hrflow_track('$name.embedding', '$store->{source}', '{driver-1,driver-2}')");
	$store->sql("SELECT hrflow_untrack('$name.embedding', '$store->{source}', '{welder-1}')");

	# The rest
	($printed, my $second) = refresh_next($store);
	is_deeply([ grep { $first->{$_} } keys %$second ], [], "no profile of $what is bought twice");
	is_deeply([ grep { $_ > 1 } values %$first, values %$second ],
		[], "each profile of $what takes one request");

	# The switch
	$wide_api->reset;
	like(ask("BEGIN; $switch; ROLLBACK;"), qr/^t$/m, "the switch to the new model of $what works");
	is( $store->sql(sprintf $dimensions, 'embedding'),
		"8|" . 14 * $store->{vectors},
		"the switch of $what can be rolled back");
	is($store->sql($fed_by), $feeders, "the triggers of $what exist after a rollback");
	is(ask($switch), "t\n", "$what is replaced without a message");
	is($wide_api->stats->{requests}, 0, "the switch of $what sends no request");
	is( $store->sql(sprintf $dimensions, 'embedding'),
		"16|" . 14 * $store->{vectors},
		"the new store takes the name of $what");
	is( $store->sql(
			"SELECT count(*) FROM $name.embedding_erased
			WHERE fingerprint = hrflow_fingerprint('$store->{source}', '$person')"),
		2,
		"the record of both stores of $what is kept");
	is($store->sql($fed_by), $feeders, "only the new store of $what is fed after the switch");
	is( $store->sql(
			"SELECT string_agg(relname, ' ' ORDER BY relname COLLATE \"C\") FROM pg_class
			WHERE relnamespace = '$name'::regnamespace AND relkind = 'r'
				AND relname LIKE 'embedding%'"),
		'embedding embedding_aside embedding_erased embedding_profile embedding_run',
		"all tables of the new store of $what are renamed");
	is( $store->sql(
			"SELECT string_agg($store->{id} || ' ' || state, ', ' ORDER BY $store->{id})
			FROM $name.embedding_profile WHERE manual"),
		'driver-1 due, driver-2 due, nurse-2 ok',
		"the new store of $what tracks explicitly what the old one did");
	is( $store->sql(
			"SELECT count(*) FROM $name.embedding_profile
			WHERE state <> 'ok' AND NOT manual"),
		0,
		"nothing else is due after the switch of $what");
	$store->sql("DELETE FROM $name.candidate WHERE hrflow_id IN ('nurse-1', 'nurse-12')");
	$store->sql("DELETE FROM $name.more WHERE hrflow_id = 'cook-1'");
	is( $store->sql(
			"SELECT string_agg(DISTINCT $store->{id}, ' ') FROM $name.embedding
			WHERE $store->{id} IN ('nurse-1', 'nurse-12', 'cook-1')"),
		'nurse-1',
		"persons are erased after the switch of $what");

	# Once more, in one transaction, and without a second store
	like(
		ask($switch),
		qr/ERROR:  the model of store $name\.embedding is not being changed/,
		"$what is not replaced if there is no second store");
	$store->sql(
		"BEGIN; SELECT hrflow_change_model('$name.embedding');
		DELETE FROM $name.candidate WHERE hrflow_id = 'nurse-3';
		SELECT hrflow_switch_model('$name.embedding', 0); COMMIT");
	is($store->sql("SELECT count(*) FROM $name.embedding"),
		0, "$what can be replaced by an empty store");
	is( $store->sql(
			"SELECT count(*) FROM $name.embedding_profile
			WHERE $store->{id} = 'nurse-3'"),
		0,
		"a person is erased from the new store of $what by the transaction of the switch");
	is( $store->sql(
			"SELECT format_type(atttypid, atttypmod) FROM pg_attribute
			WHERE attrelid = '$name.embedding'::regclass AND attname = 'vector'"),
		$type =~ s/\(.*//r,
		"without another type, the new store of $what has the old one without a dimension");
}

#
# Arguments, names and privileges
#
my $store = Hrflow::Store->new($node, $api, 'shop');
my $long = 'x' x 50;

$store->fill(6);
$store->call;
foreach my $case (
	[ 'hrflow_change_model(NULL)', qr/22023: argument "store" must not be null/ ],
	[   q{hrflow_change_model('shop.embedding', 'text')},
		qr/22023: invalid value for argument "vector_type"/ ],
	[ q{hrflow_change_model('shop.candidate')}, qr/42P01: "candidate" is not a vector/ ],
	[ q{hrflow_switch_model('shop.embedding')}, qr/55000: the model of .* is not being/ ],
	[ q{hrflow_switch_model('shop.embedding', 1.1)}, qr/22023: argument "part" must be/ ],
	[ q{hrflow_switch_model('shop.embedding', -0.1)}, qr/22023: argument "part" must be/ ],
	[ q{hrflow_switch_model('shop.embedding', 'NaN')}, qr/22023: argument "part" must be/ ])
{
	my ($call, $expected) = @$case;

	like($node->error_of("SET ROLE keeper; SELECT $call"), $expected, "$call is refused");
}

is($store->sql(q{SELECT hrflow_switch_model('shop.embedding', NULL) IS NULL}),
	't', 'hrflow_switch_model() returns NULL if "part" is NULL');

# 0.55 * 100 is greater than 55.
$store->sql(
	q{SELECT hrflow_create_store('shop.round', 'real[]');
	SELECT hrflow_track('shop.round', 'acme', array_agg(i::text)) FROM generate_series(1, 100) i;
	SELECT hrflow_change_model('shop.round');
	INSERT INTO shop.round SELECT 'acme', i::text, 'profile', 0, '{1}' FROM generate_series(1, 100) i;
	INSERT INTO shop.round_next SELECT * FROM shop.round WHERE profile_id::int <= 55});
is($store->sql(q{SELECT hrflow_switch_model('shop.round', 0.56)}),
	'f', 'a store is not replaced if fewer profiles have vectors than the part');
is($store->sql(q{SELECT hrflow_switch_model('shop.round', 0.55)}),
	't', 'a store is replaced if as many profiles have vectors as the part');

# A store whose name is too long with the suffix, and one with the truncated name
$store->sql(
	"SELECT hrflow_create_store('shop.${long}x', 'real[]');
	SELECT hrflow_create_store('shop.$long', 'real[]')");
like(
	$node->error_of("SET ROLE keeper; SELECT hrflow_change_model('shop.${long}x')"),
	qr/42622: store name "${long}x_next" is too long/,
	'hrflow_change_model() refuses a name that is too long with the suffix');
like(
	$node->error_of("SET ROLE keeper; SELECT hrflow_switch_model('shop.${long}x')"),
	qr/42622: store name "${long}x_next" is too long/,
	'hrflow_switch_model() refuses a name that is too long with the suffix');
is( $store->sql(
		"SELECT hrflow_change_model('shop.$long');
		SELECT hrflow_switch_model('shop.$long')"),
	"shop.${long}_next\nt",
	'a store whose new name is just short enough is replaced');

# Quotes in all names
$store->sql(
	q{SET search_path = pg_temp, public; SET quote_all_identifiers = on;
	CREATE TABLE shop."It's a ""table""" ("the ""id""" text, "cv's" text);
	SELECT hrflow_create_store('shop."It''s a ""store"""', 'real[]');
	SELECT hrflow_track_table('shop."It''s a ""store"""', 'shop."It''s a ""table"""',
		'the "id"', $$it's$$, refresh_columns => '{cv''s}');
	INSERT INTO shop."It's a ""table""" VALUES ('nurse-1')});
is( $store->sql(
		q{SET search_path = pg_temp, public; SET quote_all_identifiers = on;
		SELECT hrflow_change_model('shop."It''s a ""store"""');
		UPDATE shop."It's a ""table""" SET "cv's" = 'new', "the ""id""" = 'nurse-2';
		SELECT hrflow_switch_model('shop."It''s a ""store"""');
		UPDATE shop."It's a ""table""" SET "the ""id""" = 'nurse-3';
		SELECT source_id, profile_id, manual FROM shop."It's a ""store""_profile"}),
	qq{"shop"."It's a ""store""_next"\nt\nit's|nurse-3|f},
	'names may contain quotes');

# Temporary stores
is( $store->sql(
		q{SET client_min_messages = error;
		SELECT hrflow_create_store('pg_temp.passing', 'real[]');
		CREATE TEMP TABLE person (id text);
		SELECT hrflow_track_table('passing', 'person', 'id', 'acme');
		SELECT hrflow_change_model('passing');
		INSERT INTO person VALUES ('nurse-1');
		SELECT hrflow_switch_model('passing');
		SELECT profile_id FROM passing_profile}),
	"passing\n0\npassing_next\nt\nnurse-1",
	'a temporary store can be replaced');

# A store that was renamed is still fed through its old name
$store->sql(
	q{SELECT hrflow_create_store('shop.first', 'real[]');
	CREATE TABLE shop.person (id text, old text);
	SELECT hrflow_track_table('shop.first', 'shop.person', 'id', 'acme', refresh_columns => '{old}');
	INSERT INTO shop.person VALUES ('nurse-1');
	ALTER TABLE shop.first RENAME TO named;
	ALTER TABLE shop.first_profile RENAME TO named_profile;
	ALTER TABLE shop.first_aside RENAME TO named_aside;
	ALTER TABLE shop.first_erased RENAME TO named_erased;
	ALTER TABLE shop.person RENAME old TO cv});
is( $store->sql(
		q{SELECT hrflow_change_model('shop.named');
		SELECT profile_id FROM shop.named_next_profile}),
	"shop.named_next\nnurse-1",
	'the model of a store that was renamed can be changed');
is( $store->sql(
		q{SELECT hrflow_switch_model('shop.named'), to_regclass('shop.named_run') IS NULL;
		UPDATE shop.person SET cv = 'new';
		SELECT generation FROM shop.named_profile}),
	"t|f\n1",
	'a store that was renamed can be replaced');

# What cannot be tracked again
$store->sql(
	q{DO $$ BEGIN EXECUTE (SELECT format('DROP TRIGGER %I ON shop.person', tgname)
	FROM pg_trigger WHERE tgrelid = 'shop.person'::regclass AND tgname LIKE '%update'); END $$});
like(
	$node->error_of(q{SET ROLE keeper; SELECT hrflow_change_model('shop.named')}),
	qr/55000: table "person" has no trigger on UPDATE that feeds store shop\.named/,
	'the model is not changed if the refresh columns of a table are unknown');
$node->safe_psql('postgres', 'ALTER TABLE shop.person OWNER TO CURRENT_USER');
like(
	$node->error_of(q{SET ROLE keeper; SELECT hrflow_change_model('shop.named')}),
	qr/55000: cannot change the model of store shop\.named$/m,
	'the model is not changed if a table no longer feeds the store');
is($store->sql(q{SELECT to_regclass('shop.named_next')}), '',
	'nothing is left of a refused change');

# A table that feeds a store through several sets of keys
$store->sql(
	q{CREATE TABLE shop.several (id text, other text);
	SELECT hrflow_create_store('shop.various', 'real[]');
	SELECT hrflow_track_table('shop.various', 'shop.several', 'id', 'acme');
	DO $$ BEGIN EXECUTE (SELECT replace(replace(pg_get_triggerdef(oid), tgname, 'again'), '''id''',
		'''other''') FROM pg_trigger
		WHERE tgrelid = 'shop.several'::regclass AND tgname LIKE '%delete'); END $$});
like(
	$node->error_of(q{SET ROLE keeper; SELECT hrflow_change_model('shop.various')}),
	qr/55000: triggers on table "several" that feed store shop\.various have different columns/,
	'the model is not changed if a table feeds the store through several sets of keys');

# A table that is being untracked in batches
$store->sql(
	q{SELECT hrflow_track_table('shop.various', 'shop.several', 'id', 'acme');
	DO $$ DECLARE name text; BEGIN
		FOR name IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'shop.several'::regclass
			AND NOT tgisinternal AND tgname NOT LIKE '%delete'
		LOOP EXECUTE format('DROP TRIGGER %I ON shop.several', name); END LOOP;
		EXECUTE (SELECT format('ALTER TABLE shop.several DISABLE TRIGGER %I', tgname)
			FROM pg_trigger WHERE tgrelid = 'shop.several'::regclass AND tgname LIKE '%delete');
	END $$;
	SELECT hrflow_change_model('shop.various');
	SELECT hrflow_switch_model('shop.various')});
is($store->sql(q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'shop.several'::regclass}),
	0, 'a table that is being untracked does not feed the second store');

# Another store has the name
$store->sql(q{SELECT hrflow_create_store('shop.embedding_next', 'real[]', content => 'job')});
like(
	$node->error_of(q{SET ROLE keeper; SELECT hrflow_switch_model('shop.embedding', 0)}),
	qr/55000: store shop\.embedding_next cannot replace store shop\.embedding/,
	'a store is not replaced by one of another kind');
$store->sql(q{SELECT hrflow_drop_store('shop.embedding_next')});

# Privileges
$node->safe_psql(
	'postgres',
	'CREATE ROLE other; GRANT USAGE, CREATE ON SCHEMA shop TO other;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO other');
foreach my $role ('SET ROLE other', 'RESET ROLE')
{
	foreach my $function (qw(hrflow_change_model hrflow_switch_model))
	{
		like(
			$node->error_of("$role; SELECT $function('shop.embedding')"),
			qr/42501: must be owner of store shop\.embedding/,
			"$function() requires ownership after $role");
	}
}
$node->safe_psql('postgres',
	'REVOKE EXECUTE ON FUNCTION hrflow_create_store, hrflow_drop_store FROM keeper');
like(
	$node->error_of(q{SET ROLE keeper; SELECT hrflow_change_model('shop.embedding')}),
	qr/42501: permission denied for function hrflow_create_store/,
	'hrflow_change_model() requires the privilege to create a store');
$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION hrflow_create_store TO keeper');
$store->sql(q{SELECT hrflow_change_model('shop.embedding')});
like(
	$node->error_of(q{SET ROLE keeper; SELECT hrflow_switch_model('shop.embedding', 0)}),
	qr/42501: permission denied for function hrflow_drop_store/,
	'hrflow_switch_model() requires the privilege to drop a store');
$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION hrflow_drop_store TO keeper');

# Code of the owner cannot become the role of the session
$store->sql(
	q{DELETE FROM shop.candidate WHERE id = 1;
	CREATE FUNCTION shop.trap() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN RESET ROLE; RETURN NEW; END $$;
	CREATE TRIGGER trap BEFORE INSERT ON shop.embedding_next_erased FOR EACH ROW
		EXECUTE FUNCTION shop.trap()});
like(
	$node->error_of(q{SET ROLE keeper; SELECT hrflow_switch_model('shop.embedding', 0)}),
	qr/42501: cannot set parameter "role" within security-restricted operation/,
	'triggers of the owner are executed in a security-restricted operation');
$store->sql('DROP TRIGGER trap ON shop.embedding_next_erased');

# Views
$store->sql('CREATE VIEW shop.report AS SELECT profile_id FROM shop.embedding');
like(
	ask(q{SELECT hrflow_switch_model('shop.embedding', 0)}),
	qr/ERROR:\ \ cannot\ drop\ .*\ because\ other\ objects\ depend\ on\ them\n
		DETAIL:\ \ view\ shop\.report\ depends\ on\ table\ shop\.embedding\n
		HINT:\ \ Drop\ these\ objects,\ call\ hrflow_switch_model\(\),\ and\ create\ them\ again/x,
	'a store on which a view depends is not replaced');
is($store->sql(q{SELECT count(*) FROM shop.report, hrflow_store_status('shop.embedding')}),
	10, 'a view still works after it has prevented the switch');
$store->sql('DROP VIEW shop.report');

#
# What the tables have besides their rows
#
$node->safe_psql('postgres', 'CREATE ROLE reader; CREATE ROLE "the ""admin"""');
$store->sql(
	q{GRANT SELECT ON shop.embedding TO reader, PUBLIC;
	GRANT SELECT, UPDATE ON shop.embedding_profile TO "the ""admin""" WITH GRANT OPTION;
	GRANT SELECT (erased_at, reason) ON shop.embedding_erased TO reader;
	ALTER TABLE shop.embedding ENABLE ROW LEVEL SECURITY;
	ALTER TABLE shop.embedding_run ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
	CREATE FUNCTION shop.sees(text) RETURNS boolean LANGUAGE sql RETURN true;
	CREATE POLICY "some ""rows""" ON shop.embedding FOR SELECT TO reader, "the ""admin"""
		USING (shop.sees(profile_id) AND section = 'it''s');
	CREATE POLICY "outer" ON shop.embedding FOR SELECT USING (EXISTS
		(SELECT FROM shop.candidate c WHERE c.hrflow_id = embedding.profile_id));
	CREATE POLICY sibling ON shop.embedding FOR SELECT USING (EXISTS
		(SELECT FROM shop.embedding_profile p WHERE p.profile_id = embedding.profile_id));
	CREATE POLICY none ON shop.embedding AS RESTRICTIVE USING (true) WITH CHECK (false);
	CREATE POLICY own ON shop.embedding_next FOR DELETE USING (false);
	ALTER TABLE shop.embedding_aside ALTER COLUMN delete_at SET DEFAULT now() + interval '9 days';
	DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE shop.candidate ENABLE ALWAYS TRIGGER %I', tgname)
		FROM pg_trigger WHERE tgrelid = 'shop.candidate'::regclass
			AND tgname LIKE '%delete' AND encode(tgargs, 'escape') LIKE 'shop.embedding\\\\000%');
	END $$});
my $access = q{SET search_path = pg_catalog; SELECT c.relname, c.relacl, c.relrowsecurity,
		c.relforcerowsecurity, (SELECT string_agg(a.attname || a.attacl::text, ' ' ORDER BY a.attname)
			FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL)
	FROM pg_class c WHERE c.relnamespace = 'shop'::regnamespace AND c.relkind = 'r'
		AND c.relname ~ '^embedding(_profile|_run|_aside|_erased)?$' ORDER BY 1;
	SELECT tablename, policyname, permissive, roles, cmd, qual, with_check
	FROM pg_policies WHERE tablename = 'embedding' ORDER BY 2;
	SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
	WHERE adrelid = 'shop.embedding_aside'::regclass ORDER BY 1;
	SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'shop.candidate'::regclass
		AND NOT tgisinternal AND encode(tgargs, 'escape') LIKE 'shop.embedding\\\\000%' ORDER BY 1};
my $before = $store->sql($access);
like($before, qr/delete\|A/, 'a trigger is enabled always before the switch');
$store->sql(q{SELECT hrflow_switch_model('shop.embedding', 0)});
is($store->sql($access) =~ s/^embedding\|own\|PERMISSIVE\|\{public\}\|DELETE\|false\|\n//mr,
	$before, 'privileges, policies, the delay and ENABLE ALWAYS are copied at the switch');

# A section that the second store lacks
my $narrow = Hrflow::Store->new($node, $api, 'narrow');
$narrow->fill(4);
$narrow->call;
$narrow->sql(q{SELECT hrflow_change_model('narrow.embedding')});
refresh_next({ %$narrow, fields => q{fields => '{"profile": 1}'} });
like(
	ask(q{SELECT hrflow_switch_model('narrow.embedding')}),
	qr/NOTICE:  store .* was not replaced\nDETAIL:  Only 0 of 4 profiles have vectors of the same/,
	'a store is not replaced by one that lacks a section');
is(ask(q{SELECT hrflow_switch_model('narrow.embedding', 0)}),
	"t\n", 'a store is replaced by one that lacks a section if the part is 0');

# A profile that is unwanted in both stores, and then tracked explicitly in the first one
$narrow->sql(
	q{SELECT hrflow_change_model('narrow.embedding');
	INSERT INTO narrow.embedding_next (source_id, profile_id, section, item, vector)
		SELECT source_id, profile_id, 'profile', 0, '{1,2}' FROM narrow.embedding_next_profile;
	UPDATE narrow.embedding_next_profile SET state = 'ok', due_at = now() + interval '1 day';
	SELECT hrflow_untrack_table('narrow.embedding', 'narrow.candidate');
	SELECT hrflow_untrack_table('narrow.embedding_next', 'narrow.candidate');
	SELECT hrflow_track('narrow.embedding', 'acme', ARRAY[min(profile_id)])
	FROM narrow.embedding_profile;
	SELECT hrflow_switch_model('narrow.embedding', 0)});
is( $narrow->sql(
		q{SELECT state, count(v.profile_id) FROM narrow.embedding_profile
		LEFT JOIN narrow.embedding v USING (source_id, profile_id) GROUP BY 1 ORDER BY 1}),
	"ok|1\nunwanted|0",
	'a profile that is tracked explicitly gets its vectors back');

# Triggers that a dump has restored feed a store by its name only
my $nfeeding = q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'shop.candidate'::regclass
	AND NOT tgisinternal};
my $nbefore = $store->sql($nfeeding);
$store->sql(
	q{SELECT hrflow_change_model('shop.embedding');
	DO $$ DECLARE name text; definition text; BEGIN
		FOR name, definition IN SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger
			WHERE tgrelid = 'shop.candidate'::regclass AND NOT tgisinternal
		LOOP
			EXECUTE format('DROP TRIGGER %I ON shop.candidate', name);
			EXECUTE definition;
		END LOOP;
	END $$;
	SELECT hrflow_switch_model('shop.embedding', 0);
	INSERT INTO shop.candidate (hrflow_id) VALUES ('cook-80')});
is($store->sql($nfeeding), $nbefore, 'triggers that a dump has restored are replaced');
is($store->sql(q{SELECT state FROM shop.embedding_profile WHERE profile_id = 'cook-80'}),
	'due', 'a table whose triggers a dump has restored feeds the new store');

# Default privileges, and a privilege that is revoked after the switch has taken its snapshot
my $readable = q{SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class
	WHERE relnamespace = 'shop'::regnamespace AND relname ~ '^embedding' AND relkind = 'r'
		AND has_table_privilege('nosy', oid, 'SELECT, INSERT')};
$node->safe_psql('postgres', 'CREATE ROLE nosy');
$store->sql(
	q{ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT, INSERT ON TABLES TO nosy, PUBLIC;
	REVOKE ALL ON shop.embedding FROM PUBLIC;
	GRANT SELECT ON shop.embedding, shop.embedding_run TO nosy;
	SELECT hrflow_change_model('shop.embedding');
	ALTER DEFAULT PRIVILEGES IN SCHEMA shop REVOKE ALL ON TABLES FROM nosy, PUBLIC});
is( $store->sql($readable),
	'embedding embedding_run',
	'only the owner has privileges on the second store');
my $session = Hrflow::Session->new($node);
$session->ask('SET ROLE keeper;');
$session->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;');
$store->sql('REVOKE SELECT ON shop.embedding FROM nosy');
$session->query(q{SELECT hrflow_switch_model('shop.embedding', 0); COMMIT;});
is($store->sql($readable), 'embedding_run', 'privileges that were revoked are not copied');
$session->finish;

# A table that was tracked during the change
$store->sql(
	q{SELECT hrflow_change_model('shop.embedding');
	CREATE TABLE shop.late (id text);
	INSERT INTO shop.late VALUES ('welder-9');
	SELECT hrflow_track_table('shop.embedding', 'shop.late', 'id', 'acme');
	SELECT hrflow_switch_model('shop.embedding', 0);
	INSERT INTO shop.late VALUES ('welder-10')});
is( $store->sql(
		q{SELECT string_agg(profile_id, ' ' ORDER BY profile_id)
		FROM shop.embedding_profile WHERE profile_id LIKE 'welder-_%' AND state = 'due'
			AND profile_id IN (SELECT id FROM shop.late)}),
	'welder-10 welder-9',
	'a table that was tracked during the change feeds the new store');

# Profiles that are still in a table, but were untracked: before the change, during it in both
# stores, during it in the first one, and one that was tracked again
$store->sql(
	q{INSERT INTO shop.candidate (hrflow_id)
		SELECT 'cook-9' || i FROM generate_series(1, 4) i;
	SELECT hrflow_untrack('shop.embedding', 'acme', '{cook-91}');
	SELECT hrflow_change_model('shop.embedding')});
my $cooks = q{SELECT string_agg(profile_id, ' ' ORDER BY profile_id) FROM shop.%s_profile
	WHERE profile_id LIKE 'cook-9_'};
is( $store->sql(sprintf $cooks, 'embedding_next'),
	'cook-92 cook-93 cook-94',
	'a profile that was untracked is not tracked for the second store');
$store->sql(
	q{SELECT hrflow_untrack('shop.embedding', 'acme', '{cook-92,cook-93,cook-94}');
	SELECT hrflow_untrack('shop.embedding_next', 'acme', '{cook-92}');
	SELECT hrflow_track('shop.embedding', 'acme', '{cook-94}');
	SELECT hrflow_switch_model('shop.embedding', 0)});
is($store->sql(sprintf $cooks, 'embedding'),
	'cook-94', 'a profile that was untracked is not tracked again by the switch');

# A table that was untracked during the change, when the first store had no vectors of its
# profile, because it was no longer refreshed
foreach my $case ([ 'the first store', '1 0', 'embedding' ],
	[ 'both stores', '0 1', 'embedding', 'embedding_next' ])
{
	my ($which, $left, @untracked) = @$case;

	$store->sql(
		q{INSERT INTO shop.late VALUES ('welder-11');
		SELECT hrflow_change_model('shop.embedding');
		INSERT INTO shop.embedding_next (source_id, profile_id, section, item, vector)
		VALUES ('acme', 'welder-11', 'profile', 0, '{1,2}')});
	$store->sql("SELECT hrflow_untrack_table('shop.$_', 'shop.late')") foreach @untracked;
	$store->sql(q{SELECT hrflow_switch_model('shop.embedding', 0)});
	is( $store->sql(
			q{SELECT (SELECT count(*) FROM shop.embedding WHERE profile_id = 'welder-11') || ' '
				|| (SELECT count(*) FROM shop.embedding_aside WHERE profile_id = 'welder-11')}),
		$left,
		"vectors of the second store are kept if a table was untracked for $which");
}

#
# Sessions
#
my @sessions = map { Hrflow::Session->new($node) } 1 .. 2;
$_->ask('SET ROLE keeper;') foreach @sessions;

sub wait_for_lock
{
	my ($session) = @_;

	return $node->poll_query_until('postgres',
		"SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pid = $session->{pid}");
}

# Run a statement in the first session's transaction, and the other one at the same time
sub at_once
{
	my ($first, $second) = @_;

	$sessions[0]->query("BEGIN; $first;");
	$sessions[1]->start("$second;");
	wait_for_lock($sessions[1]) or die;
	$sessions[0]->query('COMMIT;');
	my $out = eval { $sessions[1]->result };
	return $out // $@;
}

like(
	at_once((q{SELECT hrflow_change_model('shop.embedding')}) x 2),
	qr/ERROR:  55000: cannot change the model of store shop\.embedding because relation/,
	'only one of two sessions begins a change');
like(
	at_once((q{SELECT hrflow_switch_model('shop.embedding', 0)}) x 2),
	qr/ERROR:  42P01: relation with OID \d+ does not exist/,
	'only one of two sessions replaces the store');
$store->sql(q{SELECT hrflow_change_model('shop.embedding')});
is( at_once(
		q{SELECT hrflow_switch_model('shop.embedding', 0)},
		q{INSERT INTO shop.candidate (hrflow_id) VALUES ('nurse-77')}),
	'',
	'a writer waits for the switch');
$store->sql(q{SELECT hrflow_change_model('shop.embedding')});
is( at_once(
		q{DELETE FROM shop.candidate WHERE hrflow_id = 'nurse-77'},
		q{SELECT hrflow_switch_model('shop.embedding', 0)}),
	't',
	'the switch waits for a writer');
is($store->sql(q{SELECT count(*) FROM shop.embedding_profile WHERE profile_id = 'nurse-77'}),
	0, 'a person whose deletion delays the switch is erased');

# No other table feeds this store, so the switch waits for a lock on the store.
$store->sql(
	q{SELECT hrflow_create_store('shop.bare', 'real[]'); SELECT hrflow_change_model('shop.bare');
	CREATE TABLE shop.later (hrflow_id text)});
is( at_once(
		q{SELECT hrflow_track_table('shop.bare', 'shop.later', 'hrflow_id', source_id => 'acme')},
		q{SELECT hrflow_switch_model('shop.bare')}),
	't',
	'the switch waits until a table has been tracked');
$store->sql(q{INSERT INTO shop.later VALUES ('nurse-78')});
is($store->sql(q{SELECT count(*) FROM shop.bare_profile}),
	1, 'a table that was tracked while the switch was waiting feeds the store');
$store->sql(q{SELECT hrflow_drop_store('shop.bare'); DROP TABLE shop.later});

# A run of the second store in progress continues under the new name
$store->sql('DELETE FROM shop.late');
$store->track("SELECT 'nurse-' || i FROM generate_series(1, 8) i");
$store->sql(q{SELECT hrflow_change_model('shop.embedding')});
$api->script('hold=9', count => 8);
my $run = Hrflow::Session->new($node);
$run->ask('SET ROLE keeper; SET hrflow_embed.request_timeout = 100000;');
$run->start("CALL hrflow_refresh('shop.embedding_next', '$Hrflow::Store::FIELDS');");
$api->wait_until(sub { $_[0]{requests} >= 8 }) or die;
is($store->sql(q{SELECT hrflow_switch_model('shop.embedding')}),
	't', 'a store can be replaced during a run of the second one');
$api->release(9);
unlike($run->result, qr/ERROR/, 'a run in progress continues under the new name');
is($store->states, 'ok 8', 'a run in progress keeps what it has fetched under the new name');
is($store->sql('SELECT count(*) FROM shop.embedding'),
	16, 'a run in progress stores vectors under the new name');

# A run of the first store in progress ends when its store is dropped
$store->sql(
	q{SELECT hrflow_change_model('shop.embedding');
	UPDATE shop.embedding_profile SET due_at = now()});
$api->reset;
$api->script('hold=9', count => 8);
$run->start("CALL hrflow_refresh('shop.embedding', '$Hrflow::Store::FIELDS');");
$api->wait_until(sub { $_[0]{requests} >= 8 }) or die;
is($store->sql(q{SELECT hrflow_switch_model('shop.embedding', 0)}),
	't', 'a store can be replaced during its run');
$api->release(9);
eval { $run->result };
like($@, qr/ERROR:  42P01: /, 'a run in progress ends when its store is dropped');
is($store->states, 'due 8', 'a run of the dropped store does not change the new one');
$_->finish foreach @sessions, $run;

#
# An index
#
SKIP:
{
	skip 'pgvector is not available', 2 if !$has_pgvector;

	my $indexed = Hrflow::Store->new($node, $api, 'indexed');
	$indexed->fill(8);
	$indexed->call;
	my $index = sub {
		my ($table) = @_;
		return "CREATE INDEX ON indexed.$table USING hnsw ((vector::vector(8)) vector_cosine_ops)";
	};
	$indexed->sql($index->('embedding'));
	$indexed->sql(q{SELECT hrflow_change_model('indexed.embedding')});
	like(
		ask(q{SELECT hrflow_switch_model('indexed.embedding', 0)}),
		qr/NOTICE:\ \ store\ indexed\.embedding\ no\ longer\ has\ a\ pgvector\ index\n
			HINT:\ .*\ SELECT\ hrflow_index_statement\('indexed\.embedding'\)/x,
		'a missing index is reported');
	$indexed->sql($index->('embedding'));
	$indexed->sql(q{SELECT hrflow_change_model('indexed.embedding')});
	$indexed->sql($index->('embedding_next'));
	is(ask(q{SELECT hrflow_switch_model('indexed.embedding', 0)}),
		"t\n", 'an index that the new store has is not reported');
}

#
# Jobs of pg_cron
#
SKIP:
{
	skip 'pg_cron is not available', 5
	  if !-e $node->config_data('--sharedir') . '/extension/pg_cron.control';

	my $cron = Hrflow::Node->new(
		'change_cron', $api,
		link_hosts => '127.0.0.1',
		shared_preload_libraries => 'pg_cron',
		'cron.database_name' => 'postgres',
		'cron.use_background_workers' => 'on');
	my $scheduled = Hrflow::Store->new($cron, $api, 'shop');
	my $jobs = q{SELECT jobname, schedule, command FROM cron.job};
	$cron->safe_psql('postgres', 'CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO keeper');

	# So that no job runs during the test
	my $never = '0 0 30 2 *';
	$scheduled->sql(
		"SELECT hrflow_schedule('shop.embedding', '$never', '{\"profile\": 1}');
		SELECT hrflow_change_model('shop.embedding')");
	my $old = $scheduled->sql($jobs);
	like($old, qr/^hrflow_refresh postgres\.shop\.embedding\|\Q$never\E\|CALL /, 'there is a job');
	$scheduled->sql(q{SELECT hrflow_switch_model('shop.embedding')});
	is($scheduled->sql($jobs), $old, 'the job of the old store stays if there is no other');

	$scheduled->sql(
		"SELECT hrflow_change_model('shop.embedding');
		SELECT hrflow_unschedule('shop.embedding');
		SELECT hrflow_schedule('shop.embedding_next', '1 1 30 2 *', '{\"skills\": 1}', '3 days')");
	my $new = $scheduled->sql($jobs);
	$scheduled->sql(q{SELECT hrflow_switch_model('shop.embedding')});
	is( $scheduled->sql($jobs),
		$new =~ s/embedding_next/embedding/gr,
		'the job of the second store becomes that of the store');
	$scheduled->sql(
		"SELECT hrflow_change_model('shop.embedding');
		SELECT hrflow_unschedule('shop.embedding');
		SELECT hrflow_schedule('shop.embedding_next', '$never')");
	$cron->safe_psql('postgres', 'UPDATE cron.job SET active = false');
	$scheduled->sql(q{SELECT hrflow_switch_model('shop.embedding', 0)});
	is($scheduled->sql($jobs), '', 'a job that is paused is dropped by the switch');
	$scheduled->sql("SELECT hrflow_schedule('shop.embedding', '$never')");
	$scheduled->sql(q{SELECT hrflow_drop_store('shop.embedding')});
	is($scheduled->sql($jobs), '', 'the job is dropped with the store');
}

done_testing();
