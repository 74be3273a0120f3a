# A store that is fed by a table of candidates, for tests that refresh it.
#
#   my $store = Hrflow::Store->new($node, $api, 'shop', owner => 'ROLE',
#		content => 'job');
#   Hrflow::Store->existing(...)   the same arguments, for a store that exists already
#   $store->fill(1000)         adds candidates, cycling through occupations
#   $store->add_table('other') creates another table that feeds the store
#   $store->track("SELECT 'nurse-1'")   replaces all candidates by these, due
#   $store->call('fields => ...')       CALL hrflow_refresh; returns its output
#   $store->start_call(...)    likewise, without waiting; returns a handle for
#                              $store->finish_call
#   $store->start_held($n, $session)   likewise; returns when the replies for the $n
#                              profiles that are due have been sent, but none can be
#                              written until $session ends its transaction
#   $store->change_account     uses a different account from now on, which is not
#                              paused; $api must accept its key
#   $store->states             'ok 990, due 10'
#   $store->profiles('state, attempts')   the distinct rows of these columns
#   $store->refreshed          number of profiles that were ever refreshed
#   $store->age('5 days')      moves all times into the past by this much
#   $store->wrong_vectors      number of vectors that are wrong or missing
#   $store->picture            all that must survive a move to another server, as a
#                              hash of texts
#   $store->asked              number of requests for each profile, as a hash
#
# The store is in the schema SHOP, which contains the tables candidate (id,
# hrflow_id, cv, note), embedding and embedding_profile, and claim, with a row
# for each lease that was taken.
#
# A store may also contain jobs, texts or documents.  For texts and documents, the
# identifiers are both the keys and the contents, so that they also request faults
# of the stand-in.  Differences between kinds of stores are members of the object:
#
#   $store->{id}               column with the identifier
#   $store->{source}           source of all candidates
#   $store->{vectors}          number of vectors of each
#   $store->{posts}            are contents sent, which is not repeated?
package Hrflow::Store;

use strict;
use warnings FATAL => 'all';
use IPC::Run ();

# Queries whose results must be the same after the database was moved to another
# server
my %picture = (
	states => q{SELECT * FROM SHOP.embedding_profile ORDER BY source_id, profile_id COLLATE "C"},
	vectors => q{SELECT md5(string_agg(
		concat_ws('|', source_id, profile_id, section, item, vector, fetched_at), E'\n'
		ORDER BY profile_id COLLATE "C", section COLLATE "C", item)) FROM SHOP.embedding},
	status =>
	  q{SELECT tracked, due, leased, ok, failed, missing, gone, oldest_due, requests_due, last_error
		FROM hrflow_store_status('SHOP.embedding')},
	failures =>
	  q{SELECT * FROM hrflow_store_failures('SHOP.embedding') ORDER BY profile_id COLLATE "C"},
	candidates => 'SELECT * FROM SHOP.candidate ORDER BY id',
	triggers => q{SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
		ORDER BY tgname COLLATE "C"},
	constraints => q{SELECT conrelid::regclass::text COLLATE "C", pg_get_constraintdef(oid)
		FROM pg_constraint
		WHERE connamespace = 'SHOP'::regnamespace AND contype <> 'n' ORDER BY 1, 2},
	indexes =>
	  q{SELECT indexdef FROM pg_indexes WHERE schemaname = 'SHOP' ORDER BY indexname COLLATE "C"},
	storage => q{SELECT attrelid::regclass, attname, attstorage FROM pg_attribute
		WHERE attrelid = 'SHOP.embedding'::regclass AND attnum > 0 ORDER BY attnum},
	extension =>
	  q{SELECT extversion, n.nspname, (SELECT count(*) FROM pg_depend WHERE refobjid = e.oid
		AND refclassid = 'pg_extension'::regclass AND deptype = 'e'
		AND classid IN ('pg_proc'::regclass, 'pg_class'::regclass)) FROM pg_extension e
		JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'hrflow_embed'},
	functions =>
	  q{SELECT rolname, oid::regprocedure FROM pg_proc, unnest(ARRAY(SELECT rolname FROM pg_roles
		WHERE NOT rolsuper AND rolname !~ '^pg_')) rolname
		WHERE proname LIKE 'hrflow%' AND has_function_privilege(rolname, oid, 'EXECUTE')
		ORDER BY rolname, oid::regprocedure::text COLLATE "C"},
	tables => q{SELECT rolname, relname, p FROM pg_class, unnest(ARRAY(SELECT rolname FROM pg_roles
		WHERE NOT rolsuper AND rolname !~ '^pg_')) rolname,
		unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) p WHERE relnamespace = 'SHOP'::regnamespace
		AND relkind = 'r' AND has_table_privilege(rolname, oid, p) ORDER BY 1, 2, 3},
	setting => q{SHOW hrflow_embed.max_concurrency});

our $FIELDS = '{"profile": 1, "skills": 1}';

# Besides the members above, there are more columns of tables that feed the store,
# arguments of hrflow_track_table() that tell how they do ("track"), arguments of
# hrflow_refresh() ("fields"), and an expression for the right vector.
my %kinds = (
	profile => {
		id => 'profile_id',
		source => 'acme',
		vectors => 2,
		fields => "fields => '$FIELDS'",
		track => "source_id => 'acme'" },
	job => {
		id => 'job_id',
		source => 'acme',
		vectors => 1,
		track => "source_id => 'acme'",
		vector => "hrflow_job_vector(job_id, board_id => 'acme')" },
	text => {
		id => 'key',
		source => '',
		vectors => 1,
		posts => 1,
		track => "content_columns => '{hrflow_id}'",
		vector => 'hrflow_text_embedding(key)' },
	document => {
		id => 'key',
		source => '',
		vectors => 1,
		posts => 1,
		columns => ', item jsonb GENERATED ALWAYS AS (SHOP.item_of(hrflow_id)) STORED',
		track => "content_columns => '{item}'",
		vector => "hrflow_document_embedding('profile', jsonb_build_object('key', key))" });

sub existing
{
	my ($class, $node, $api, $name, %options) = @_;
	my %kind = %{ $kinds{ $options{content} // 'profile' } };

	return bless {
		%kind,
		columns => ($kind{columns} // '') =~ s/SHOP/$name/gr,
		node => $node,
		api => $api,
		name => $name,
		owner => $options{owner} // 'keeper' }, $class;
}

sub new
{
	my ($class, $node, $api, $name, %options) = @_;
	my $content = $options{content} // 'profile';
	my $self = $class->existing($node, $api, $name, %options);
	my ($owner, $id, $columns) = @$self{qw(owner id columns)};

	$node->safe_psql('postgres', <<"END");
DO \$\$ BEGIN
	IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '$owner') THEN
		CREATE ROLE $owner LOGIN;
	END IF;
END \$\$;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO $owner;
GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA public TO $owner;
CREATE SCHEMA $name AUTHORIZATION $owner;
END
	$self->sql(<<"END");
CREATE FUNCTION $name.item_of(text) RETURNS jsonb LANGUAGE sql IMMUTABLE
	RETURN pg_catalog.jsonb_build_object('key', \$1);
CREATE TABLE $name.candidate (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	hrflow_id text UNIQUE, cv text, note text $columns);
SELECT hrflow_create_store('$name.embedding', 'real[]', content => '$content');
SELECT hrflow_track_table('$name.embedding', '$name.candidate', 'hrflow_id',
	$self->{track}, refresh_columns => '{cv}');
CREATE TABLE $name.claim (profile_id text, state text, pid int DEFAULT pg_backend_pid());
CREATE FUNCTION $name.note_claim() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
	INSERT INTO $name.claim VALUES (OLD.$id, OLD.state);
	RETURN NULL;
END \$\$;
CREATE TRIGGER note_claim AFTER UPDATE ON $name.embedding_profile FOR EACH ROW
	WHEN (NEW.lease_until > OLD.lease_until
		OR (OLD.lease_until IS NULL AND NEW.lease_until IS NOT NULL))
	EXECUTE FUNCTION $name.note_claim();
END
	return $self;
}

# Run SQL as the store's owner.
sub sql
{
	my ($self, $sql) = @_;
	return $self->{node}->safe_psql('postgres', "SET ROLE $self->{owner};\n$sql");
}

# Create another table that feeds the store, with a column hrflow_id.
sub add_table
{
	my ($self, $table) = @_;

	$self->sql(
		"CREATE TABLE $self->{name}.$table (hrflow_id text $self->{columns});
		SELECT hrflow_track_table('$self->{name}.embedding', '$self->{name}.$table',
			'hrflow_id', $self->{track})");
	return;
}

sub fill
{
	my ($self, $n) = @_;

	$self->sql(
		"INSERT INTO $self->{name}.candidate (hrflow_id)
		SELECT (ARRAY['nurse', 'welder', 'cook', 'driver'])[1 + i % 4] || '-' || i
			FROM generate_series(1, $n) i"
	);
	return;
}

# Replace all candidates by those of a query, and reset the stand-in's log.
sub track
{
	my ($self, $select) = @_;

	$self->sql(
		"DELETE FROM $self->{name}.candidate;
		DELETE FROM $self->{name}.embedding_profile;
		DELETE FROM $self->{name}.embedding;
		INSERT INTO $self->{name}.candidate (hrflow_id) $select");
	$self->{api}->reset;
	return;
}

sub _statement
{
	my ($self, $arguments) = @_;
	return 'CALL hrflow_refresh('
	  . join(', ',
		"'$self->{name}.embedding'",
		$arguments // (),
		$arguments && $arguments =~ /fields/ ? () : $self->{fields} // ())
	  . ')';
}

sub start_call
{
	my ($self, $arguments, %options) = @_;
	my %call = (out => '', err => '');

	my %settings = (
		$self->{accounts} ? ('hrflow_embed.api_key' => key_of($self->{accounts})) : (),
		%{ $options{settings} // {} });
	local $ENV{PGOPTIONS} = join(' ', map { "-c $_=$settings{$_}" } sort keys %settings);
	local $ENV{PGAPPNAME} = $options{application} // 'refresh';
	$call{process} = IPC::Run::start(
		[   'psql', '-XAtq',
			'-v', 'VERBOSITY=verbose',
			'-d', $self->{node}->connstr('postgres'),
			'-c', 'SET ROLE ' . ($options{role} // $self->{owner}),
			'-c', $self->_statement($arguments) ],
		'<',
		\'',
		'>',
		\$call{out},
		'2>',
		\$call{err},
		IPC::Run::timeout(300));
	return \%call;
}

# Hold the replies until all profiles have been requested, and then lock the table.
sub start_held
{
	my ($self, $n, $session, @arguments) = @_;
	my $api = $self->{api};
	my $nrequests = $n * ($self->{posts} ? 1 : 1 + $self->{vectors});

	$api->script('hold=' . ($n + 1), count => $n);
	my $call = $self->start_call(@arguments);
	$api->wait_until(sub { $_[0]{requests} >= $n }) or die;
	$session->ask("BEGIN; LOCK TABLE $self->{name}.embedding_profile IN SHARE MODE;");
	$api->release($n + 1);
	$api->wait_until(sub { $api->log > $nrequests }) or die;
	return $call;
}

# Return the key of the nth additional account.
sub key_of
{
	my ($n) = @_;
	return "askr_account_$n";
}

sub change_account
{
	my ($self) = @_;
	$self->{accounts}++;
	return;
}

sub finish_call
{
	my ($self, $call) = @_;

	$call->{process}->finish;
	return $call->{out} . $call->{err};
}

sub call
{
	my ($self, @arguments) = @_;
	return $self->finish_call($self->start_call(@arguments));
}

sub states
{
	my ($self) = @_;
	return $self->sql(
		"SELECT string_agg(state || ' ' || n, ', ' ORDER BY state COLLATE \"C\")
		FROM (SELECT state, count(*) AS n FROM $self->{name}.embedding_profile GROUP BY 1) s");
}

sub profiles
{
	my ($self, $columns, $where) = @_;
	$where //= 'true';
	return $self->sql(
		"SELECT DISTINCT $columns FROM $self->{name}.embedding_profile WHERE $where ORDER BY 1");
}

sub refreshed
{
	my ($self) = @_;
	return $self->sql(
		"SELECT count(*) FROM $self->{name}.embedding_profile WHERE refreshed_at IS NOT NULL");
}

# Make profiles due that are due later, or leased by a session that no longer
# exists.
sub hasten
{
	my ($self, $where) = @_;

	$self->sql(
		"UPDATE $self->{name}.embedding_profile
			SET lease_until = NULL, due_at = LEAST(due_at, now()) WHERE "
		  . ($where // "state = 'due'"));
	return;
}

# Move the times of refreshes and failures into the past by this much.
sub age
{
	my ($self, $interval, $where) = @_;
	$where //= 'true';
	$self->sql(
		"UPDATE $self->{name}.embedding_profile
			SET refreshed_at = refreshed_at - interval '$interval',
			failed_at = failed_at - interval '$interval',
			erased_at = erased_at - interval '$interval' WHERE $where");
	return;
}

sub picture
{
	my ($self) = @_;
	return {
		map {
			$_ => $self->{node}->safe_psql('postgres',
				"SET timezone = 'UTC'; LOAD 'hrflow_embed'; " . $picture{$_} =~
				  s/\bSHOP\b/$self->{name}/gr)
		} keys %picture };
}

sub wrong_vectors
{
	my ($self, $where) = @_;
	$where //= 'true';
	return $self->sql(<<"END") if $self->{vector};
SELECT count(*) FROM (SELECT vector, $self->{vector} AS right_one
	FROM $self->{name}.embedding_profile LEFT JOIN $self->{name}.embedding
		USING (source_id, $self->{id}) WHERE $where) v
WHERE vector IS DISTINCT FROM right_one
END
	return $self->sql(<<"END");
SET hrflow_embed.max_attempts = 5;
SET hrflow_embed.request_timeout = '60s';
SELECT count(*) FROM (SELECT profile_id, section, item, vector FROM $self->{name}.embedding
	WHERE $where) e
FULL JOIN (SELECT profile_id, section, item, vector FROM hrflow_profile_vectors('acme',
	(SELECT array_agg(profile_id) FROM $self->{name}.embedding_profile WHERE $where), '$FIELDS')) v
USING (profile_id, section, item) WHERE e.vector IS DISTINCT FROM v.vector
END
}

# Count the requests for each profile.  Parsing all of the stand-in's log would
# take longer than the refresh, so extract only the profiles.
sub asked
{
	my ($self) = @_;
	my %asked;

	foreach my $line (split /\n/, $self->{api}->get('/log'))
	{
		$asked{$1}++
		  if $line =~ /"query":"[^"]*?(?:profile|job)_id=([^&"]+)/
		  || $line =~ /"body":"\{\\u0022text\\u0022: ?\\u0022(.*?)\\u0022/
		  || $line =~ /"body":"\{.*\\u0022key\\u0022: ?\\u0022(.*?)\\u0022/;
	}
	return \%asked;
}

# Return the backends that are running a refresh.
sub backends
{
	my ($self) = @_;
	return split /\n/, $self->{node}->safe_psql(
		'postgres',
		"SELECT pid FROM pg_stat_activity WHERE query LIKE 'CALL hrflow_refresh%'
			AND state = 'active'"
	);
}

1;
