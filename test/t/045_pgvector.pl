# Vectors can be stored in pgvector's types as docs/operation.md says, and its
# index is used for the documented query.  pgvector is packaged only for
# PostgreSQL 17 and later.
use strict;
use warnings FATAL => 'all';
use Hrflow::Node;
use Hrflow::StandIn;
use PostgreSQL::Test::Utils ();
use Test::More;

my $api = Hrflow::StandIn->new;
my $node = Hrflow::Node->new('pgvector', $api, link_hosts => '127.0.0.1');

sub sql { return $node->safe_psql('postgres', @_); }

plan skip_all => 'pgvector is not available'
  unless sql(q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});

sql('CREATE EXTENSION vector');

foreach
  my $case ([ 'vector', 1024, '', 'vector' ], [ 'halfvec', 2048, '::halfvec(2048)', 'halfvec' ])
{
	my ($type, $dimension, $cast, $ops) = @$case;
	my $large = Hrflow::StandIn->new('--dim' => $dimension);
	my $base_url = $large->base_url;

	sql(qq{
		SET hrflow_embed.base_url = '$base_url';
		CREATE TABLE candidate_$type (profile_id text PRIMARY KEY, embedding $type($dimension));
		INSERT INTO candidate_$type
			SELECT profile_id, vector FROM hrflow_profile_vectors('acme',
				(SELECT array_agg((ARRAY['nurse', 'welder', 'cook', 'teacher'])[i % 4 + 1]
					|| '-' || i)
				 FROM generate_series(1, 400) i), '{"profile": 1}');
		CREATE INDEX ON candidate_$type USING hnsw (embedding ${ops}_cosine_ops);
		ANALYZE candidate_$type});
	is(sql("SELECT count(*) FROM candidate_$type WHERE vector_dims(embedding) = $dimension"),
		'400',
		"vectors of $dimension dimensions are stored in $type($dimension) by a plain INSERT");

	# As in docs/operation.md: the query vector in a scalar subquery, with a
	# cast.
	my $query = qq{
		SELECT profile_id FROM candidate_$type
		ORDER BY embedding <=> (
			SELECT vector::$type($dimension)
				FROM hrflow_profile_vectors('acme', '{nurse-query}', '{"profile": 1}'))
		LIMIT 10};
	$large->reset;
	my $plan = sql(
		"SET hrflow_embed.base_url = '$base_url'; SET enable_seqscan = off;
			EXPLAIN (COSTS OFF) $query"
	);
	like(
		$plan,
		qr/Index Scan using candidate_${type}_embedding_idx/,
		"a query by $type($dimension) uses the index");
	is(scalar($large->log), 0, "EXPLAIN of a query by $type($dimension) sends no request");
	note($plan);
	my @best = split /\n/,
	  sql("SET hrflow_embed.base_url = '$base_url'; SET enable_seqscan = off; $query");
	is(scalar(grep { /^nurse-/ } @best), 10, "the ten $type rows nearest to a nurse are nurses");
	is(scalar(grep { $_->{path} =~ /embedding$/ } $large->log),
		1, "the query vector of $type($dimension) takes one request");
}

# An index of halfvec on a column of real[], for more than 2,000 dimensions
sql(q{
	CREATE TABLE large (embedding vector(2048));
	INSERT INTO large SELECT array_agg(sin(i * j)::real)
		FROM generate_series(1, 2048) i, generate_series(1, 20) j GROUP BY j;
	CREATE INDEX ON large USING hnsw ((embedding::halfvec(2048)) halfvec_cosine_ops);
	ANALYZE large});
like(
	sql(q{SET enable_seqscan = off; EXPLAIN (COSTS OFF) SELECT * FROM large
		ORDER BY embedding::halfvec(2048) <=> (SELECT array_agg(cos(i))::real[]::halfvec(2048)
			FROM generate_series(1, 2048) i) LIMIT 3}
	),
	qr/Index Scan using large_embedding_idx/,
	'a vector column of 2,048 dimensions is indexed as halfvec');

# Similarities agree
is( sql(q{
	SELECT count(*) FROM (
		SELECT 1 - (a.embedding <=> b.embedding) AS theirs,
			hrflow_cosine_similarity(a.embedding::real[], b.embedding::real[]) AS ours
		FROM candidate_vector a, candidate_vector b LIMIT 10000) s
	WHERE abs(theirs - ours) > 1e-6}),
	'0',
	"hrflow_cosine_similarity() agrees with pgvector's distance");

done_testing();
