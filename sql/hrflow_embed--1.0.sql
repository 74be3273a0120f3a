/* sql/hrflow_embed--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION hrflow_embed" to load this file. \quit

--
-- docs/reference.md describes the functions and views of this script: their
-- arguments and results, the requests they send, the privileges they require,
-- and the errors they raise.  The comments here give the reasons for the
-- declarations.
--
-- Volatility and parallel safety
--
-- Functions that send requests only read, but they are VOLATILE because a call
-- may cost money, and the planner executes STABLE functions to estimate
-- selectivities, even for EXPLAIN.  They are PARALLEL RESTRICTED because
-- connections, the number of requests in flight and the number sent by a
-- statement belong to a backend: each parallel worker would open its own
-- connections and count from zero.
--
-- Functions that read a store are VOLATILE because they execute statements
-- with new snapshots; a STABLE function would have to use the snapshot of the
-- calling query.  (Functions that rank search the vectors with the snapshot of
-- the calling query, but use new ones otherwise, for example to find an
-- index.)  Functions that read a store are PARALLEL UNSAFE because these
-- statements advance the command counter and may start parallel workers, both
-- of which PostgreSQL restricts in a query that is executed in parallel
-- itself.
--
-- hrflow_estimate() and the functions of the views are VOLATILE because what
-- they return may change at any time.  They and hrflow_embed_stats_reset() are
-- PARALLEL RESTRICTED because counts and estimates may belong to a backend,
-- and because a NOTICE is raised once in a session.
--
-- Costs
--
-- Functions that send requests or compare many vectors have a high COST, so
-- that the planner evaluates other conditions before them.
--
-- Nulls
--
-- Functions with an argument for which a null has a meaning or is an error are
-- CALLED ON NULL INPUT.  Other functions with arguments are STRICT, and return
-- a null, or no rows, if an argument is null.
--
-- Privileges
--
-- EXECUTE is revoked from PUBLIC for functions that send or estimate requests,
-- access a store, or return or reset statistics, and for those that only the
-- extension itself needs.  Where PUBLIC may execute a function, a comment says
-- why.
--

--
-- Support functions of the planner
--

-- A query that calls a function with this support function for each of its
-- rows may have up to hrflow_embed.max_concurrency calls in flight.  The
-- support function does nothing, but the planner loads the library in order to
-- call it, so that the hooks that implement reading ahead are installed while
-- the first such query of a session is planned.
CREATE FUNCTION hrflow_support(internal)
RETURNS internal
AS 'MODULE_PATHNAME'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION hrflow_support(internal) IS
'planner support for functions whose calls over a table are read ahead';

REVOKE ALL ON FUNCTION hrflow_support(internal) FROM PUBLIC;

-- The function estimates the number of rows from the length of the longest
-- array, if the planner knows it.
CREATE FUNCTION hrflow_elements_support(internal)
RETURNS internal
AS 'MODULE_PATHNAME'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION hrflow_elements_support(internal) IS
'planner support for batches that return one row for each element';

REVOKE ALL ON FUNCTION hrflow_elements_support(internal) FROM PUBLIC;

-- The function estimates the number of rows from the length of the longest
-- array and the number of items that "fields" requests, if the planner knows
-- them.
CREATE FUNCTION hrflow_items_support(internal)
RETURNS internal
AS 'MODULE_PATHNAME'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION hrflow_items_support(internal) IS
'planner support for batches that return one row for each link or vector';

REVOKE ALL ON FUNCTION hrflow_items_support(internal) FROM PUBLIC;

--
-- One profile
--

CREATE FUNCTION hrflow_profile_embedding(
	source_id text,
	profile_id text DEFAULT NULL,
	fields jsonb DEFAULT NULL,
	profile_reference text DEFAULT NULL,
	profile_email text DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
COST 1000
SUPPORT @extschema@.hrflow_support;

COMMENT ON FUNCTION hrflow_profile_embedding(text, text, jsonb, text, text) IS
'links to the vectors of a profile, as the HrFlow API returns them; one request; calls over a table are read ahead';

REVOKE ALL ON FUNCTION hrflow_profile_embedding(text, text, jsonb, text, text) FROM PUBLIC;

CREATE FUNCTION hrflow_profile_embedding_links(
	source_id text,
	profile_id text DEFAULT NULL,
	fields jsonb DEFAULT NULL,
	profile_reference text DEFAULT NULL,
	profile_email text DEFAULT NULL)
RETURNS TABLE (section text, item int, link text)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
COST 1000 ROWS 5
SUPPORT @extschema@.hrflow_support;

COMMENT ON FUNCTION hrflow_profile_embedding_links(text, text, jsonb, text, text) IS
'links to the vectors of a profile, one row for each; one request; calls in LATERAL are read ahead';

REVOKE ALL ON FUNCTION hrflow_profile_embedding_links(text, text, jsonb, text, text) FROM PUBLIC;

--
-- Many profiles
--
-- A function that sends requests for the elements of arrays is a batch: it has
-- up to hrflow_embed.max_concurrency requests in flight, and returns at least
-- one row, with a status, for each element.
--

CREATE FUNCTION hrflow_profile_embeddings(
	source_id text,
	profile_ids text[] DEFAULT NULL,
	fields jsonb DEFAULT NULL,
	profile_references text[] DEFAULT NULL,
	profile_emails text[] DEFAULT NULL)
RETURNS TABLE (ordinality bigint, profile_id text, profile_reference text,
	profile_email text, status text, http_status int, data jsonb, error text)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
COST 10000 ROWS 1000
SUPPORT @extschema@.hrflow_elements_support;

COMMENT ON FUNCTION hrflow_profile_embeddings(text, text[], jsonb, text[], text[]) IS
'links to the vectors of many profiles, one row for each profile; one request for each';

REVOKE ALL ON FUNCTION hrflow_profile_embeddings(text, text[], jsonb, text[], text[]) FROM PUBLIC;

CREATE FUNCTION hrflow_profile_links(
	source_id text,
	profile_ids text[] DEFAULT NULL,
	fields jsonb DEFAULT NULL,
	profile_references text[] DEFAULT NULL,
	profile_emails text[] DEFAULT NULL)
RETURNS TABLE (ordinality bigint, profile_id text, profile_reference text,
	profile_email text, section text, item int, link text, status text,
	http_status int, error text)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
COST 10000 ROWS 1000
SUPPORT @extschema@.hrflow_items_support;

COMMENT ON FUNCTION hrflow_profile_links(text, text[], jsonb, text[], text[]) IS
'links to the vectors of many profiles, one row for each link; one request for each profile';

REVOKE ALL ON FUNCTION hrflow_profile_links(text, text[], jsonb, text[], text[]) FROM PUBLIC;

CREATE FUNCTION hrflow_profile_vectors(
	source_id text,
	profile_ids text[] DEFAULT NULL,
	fields jsonb DEFAULT NULL,
	profile_references text[] DEFAULT NULL,
	profile_emails text[] DEFAULT NULL)
RETURNS TABLE (ordinality bigint, profile_id text, profile_reference text,
	profile_email text, section text, item int, vector real[], status text,
	http_status int, error text)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
COST 10000 ROWS 1000
SUPPORT @extschema@.hrflow_items_support;

COMMENT ON FUNCTION hrflow_profile_vectors(text, text[], jsonb, text[], text[]) IS
'vectors of many profiles, one row for each vector; one request for each profile';

REVOKE ALL ON FUNCTION hrflow_profile_vectors(text, text[], jsonb, text[], text[]) FROM PUBLIC;

CREATE FUNCTION hrflow_estimate(
	source_id text,
	profile_ids text[] DEFAULT NULL,
	fields jsonb DEFAULT NULL,
	profile_references text[] DEFAULT NULL,
	profile_emails text[] DEFAULT NULL)
RETURNS TABLE (elements bigint, requests bigint, links bigint,
	seconds double precision)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
ROWS 1;

COMMENT ON FUNCTION hrflow_estimate(text, text[], jsonb, text[], text[]) IS
'expected cost of hrflow_profile_vectors() with the same arguments; sends no request';

REVOKE ALL ON FUNCTION hrflow_estimate(text, text[], jsonb, text[], text[]) FROM PUBLIC;

--
-- Links to vectors
--
-- These functions fetch only links to the hosts in hrflow_embed.link_hosts, by
-- https unless the host is a loopback address, and do not send the API key.
--

CREATE FUNCTION hrflow_fetch_vector(link text)
RETURNS real[]
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED
COST 1000
SUPPORT @extschema@.hrflow_support;

COMMENT ON FUNCTION hrflow_fetch_vector(text) IS
'vector that a link of the HrFlow API leads to; calls over a table are read ahead';

REVOKE ALL ON FUNCTION hrflow_fetch_vector(text) FROM PUBLIC;

CREATE FUNCTION hrflow_fetch_vectors(links text[])
RETURNS TABLE (ordinality bigint, link text, vector real[], status text,
	http_status int, error text)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
COST 10000 ROWS 1000
SUPPORT @extschema@.hrflow_elements_support;

COMMENT ON FUNCTION hrflow_fetch_vectors(text[]) IS
'vectors that many links of the HrFlow API lead to, one row for each link';

REVOKE ALL ON FUNCTION hrflow_fetch_vectors(text[]) FROM PUBLIC;

--
-- Jobs
--

CREATE FUNCTION hrflow_job_embedding(
	job_id text DEFAULT NULL,
	job_reference text DEFAULT NULL,
	board_id text DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
COST 1000
SUPPORT @extschema@.hrflow_support;

COMMENT ON FUNCTION hrflow_job_embedding(text, text, text) IS
'link to the vector of a job, as the HrFlow API returns it; one request; calls over a table are read ahead';

REVOKE ALL ON FUNCTION hrflow_job_embedding(text, text, text) FROM PUBLIC;

CREATE FUNCTION hrflow_job_vector(
	job_id text DEFAULT NULL,
	job_reference text DEFAULT NULL,
	board_id text DEFAULT NULL)
RETURNS real[]
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
COST 1000
SUPPORT @extschema@.hrflow_support;

COMMENT ON FUNCTION hrflow_job_vector(text, text, text) IS
'vector of a job; one request; calls over a table are read ahead';

REVOKE ALL ON FUNCTION hrflow_job_vector(text, text, text) FROM PUBLIC;

--
-- Texts
--

CREATE FUNCTION hrflow_text_embedding(input text)
RETURNS real[]
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED
COST 1000
SUPPORT @extschema@.hrflow_support;

COMMENT ON FUNCTION hrflow_text_embedding(text) IS
'vector of a text; one request; calls over a table are read ahead';

REVOKE ALL ON FUNCTION hrflow_text_embedding(text) FROM PUBLIC;

CREATE FUNCTION hrflow_text_embeddings(inputs text[])
RETURNS TABLE (ordinality bigint, vector real[], status text, http_status int,
	error text)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
COST 10000 ROWS 1000
SUPPORT @extschema@.hrflow_elements_support;

COMMENT ON FUNCTION hrflow_text_embeddings(text[]) IS
'vectors of many texts, one row for each text; one request for each';

REVOKE ALL ON FUNCTION hrflow_text_embeddings(text[]) FROM PUBLIC;

--
-- Documents
--
-- A document is the JSON of a profile or a job that HrFlow need not have
-- indexed.
--

CREATE FUNCTION hrflow_document_embedding(
	item_type text,
	item jsonb,
	return_sequences boolean DEFAULT false)
RETURNS real[]
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED
COST 1000
SUPPORT @extschema@.hrflow_support;

COMMENT ON FUNCTION hrflow_document_embedding(text, jsonb, boolean) IS
'vector of the JSON of a profile or a job; one request; calls over a table are read ahead';

REVOKE ALL ON FUNCTION hrflow_document_embedding(text, jsonb, boolean) FROM PUBLIC;

CREATE FUNCTION hrflow_document_embeddings(item_type text, items jsonb[])
RETURNS TABLE (ordinality bigint, vector real[], status text, http_status int,
	error text)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
COST 10000 ROWS 1000
SUPPORT @extschema@.hrflow_elements_support;

COMMENT ON FUNCTION hrflow_document_embeddings(text, jsonb[]) IS
'vectors of the JSON of many profiles or jobs, one row for each; one request for each';

REVOKE ALL ON FUNCTION hrflow_document_embeddings(text, jsonb[]) FROM PUBLIC;

--
-- The account
--

CREATE FUNCTION hrflow_auth()
RETURNS jsonb
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL RESTRICTED
COST 1000;

COMMENT ON FUNCTION hrflow_auth() IS
'owner and permissions of the API key, as the HrFlow API returns them; one request';

REVOKE ALL ON FUNCTION hrflow_auth() FROM PUBLIC;

--
-- Vectors
--
-- PUBLIC may execute these functions because they only compute something from
-- their arguments.
--

CREATE FUNCTION hrflow_decode_vector(payload bytea)
RETURNS real[]
AS 'MODULE_PATHNAME'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION hrflow_decode_vector(bytea) IS
'decode a vector from a NumPy file, a JSON array, or base64 of big-endian floats';

CREATE FUNCTION hrflow_cosine_similarity(a real[], b real[])
RETURNS double precision
AS 'MODULE_PATHNAME'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
COST 10;

COMMENT ON FUNCTION hrflow_cosine_similarity(real[], real[]) IS
'cosine similarity of two vectors';

-- The type "any" makes the function accept pgvector's types, whether or not
-- pgvector is installed.
CREATE FUNCTION hrflow_vector_similarity(vector "any", query real[])
RETURNS double precision
AS 'MODULE_PATHNAME'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
COST 20;

COMMENT ON FUNCTION hrflow_vector_similarity("any", real[]) IS
'cosine similarity of a stored vector with a query, or NULL if it is undefined';

--
-- Stores
--
-- A store is a set of ordinary tables that belong to one role and are not
-- members of the extension.  Most functions that take a store execute
-- statements as its owner, in a security-restricted operation.
--

CREATE FUNCTION hrflow_create_store(
	name text,
	vector_type text DEFAULT 'auto',
	identifier text DEFAULT NULL,
	content text DEFAULT 'profile')
RETURNS regclass
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_create_store(text, text, text, text) IS
'create the tables of a vector store';

REVOKE ALL ON FUNCTION hrflow_create_store(text, text, text, text) FROM PUBLIC;

CREATE FUNCTION hrflow_drop_store(store regclass)
RETURNS void
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_drop_store(regclass) IS
'drop a vector store, the triggers that feed it, and its pg_cron job';

REVOKE ALL ON FUNCTION hrflow_drop_store(regclass) FROM PUBLIC;

-- The function creates the store NAME_next, which is fed by the same tables.
CREATE FUNCTION hrflow_change_model(store regclass, vector_type text DEFAULT NULL)
RETURNS regclass
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_change_model(regclass, text) IS
'create a second store for the vectors of another model';

REVOKE ALL ON FUNCTION hrflow_change_model(regclass, text) FROM PUBLIC;

-- Drops the store, gives its name to NAME_next, and returns true.  Returns false,
-- and changes nothing, if too few profiles have vectors of the same sections in
-- NAME_next.
CREATE FUNCTION hrflow_switch_model(store regclass, part double precision DEFAULT 1)
RETURNS boolean
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_switch_model(regclass, double precision) IS
'replace a store with its second store, if enough profiles have vectors there';

REVOKE ALL ON FUNCTION hrflow_switch_model(regclass, double precision) FROM PUBLIC;

-- The profiles stay tracked until hrflow_untrack() or hrflow_untrack_batches()
-- is called, whatever the tables that feed the store contain.
CREATE FUNCTION hrflow_track(store regclass, source_id text, profile_ids text[])
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_track(regclass, text, text[]) IS
'track profiles in a store, and return the number of new ones';

REVOKE ALL ON FUNCTION hrflow_track(regclass, text, text[]) FROM PUBLIC;

-- If a profile is being fetched when the function is called, vectors that
-- arrive are stored, and the profile is due again after
-- hrflow_embed.refresh_debounce.
CREATE FUNCTION hrflow_mark_due(store regclass, source_id text, profile_ids text[])
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_mark_due(regclass, text, text[]) IS
'make profiles of a store due because they have changed, and return their number';

REVOKE ALL ON FUNCTION hrflow_mark_due(regclass, text, text[]) FROM PUBLIC;

-- The function records the erasures in the table NAME_erased, unless the owner
-- has dropped it.  Each row has the hrflow_fingerprint() of a profile.
CREATE FUNCTION hrflow_untrack(store regclass, source_id text, profile_ids text[])
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_untrack(regclass, text, text[]) IS
'erase profiles and their vectors from a store, and return their number';

REVOKE ALL ON FUNCTION hrflow_untrack(regclass, text, text[]) FROM PUBLIC;

-- This is a procedure because it commits after each batch, so that sessions
-- that change one of the profiles wait for one batch only.
CREATE PROCEDURE hrflow_untrack_batches(
	store regclass,
	source_id text,
	profile_ids text[],
	batch_size int DEFAULT 1000)
AS 'MODULE_PATHNAME'
LANGUAGE C;

COMMENT ON PROCEDURE hrflow_untrack_batches(regclass, text, text[], int) IS
'erase profiles and their vectors from a store, one batch per transaction';

REVOKE ALL ON PROCEDURE hrflow_untrack_batches(regclass, text, text[], int) FROM PUBLIC;

-- The function creates triggers on the table.  If it is called again, it
-- reconciles the store with the table.
CREATE FUNCTION hrflow_track_table(
	store regclass,
	source_table regclass,
	profile_column name,
	source_id text DEFAULT NULL,
	source_column name DEFAULT NULL,
	refresh_columns name[] DEFAULT NULL,
	content_columns name[] DEFAULT NULL,
	item_type text DEFAULT 'profile')
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_track_table(regclass, regclass, name, text, name, name[], name[], text) IS
'let the rows of a table determine which profiles a store tracks, and return the number of new ones';

REVOKE ALL ON FUNCTION hrflow_track_table(regclass, regclass, name, text, name, name[], name[], text) FROM PUBLIC;

-- The function drops the triggers, and puts aside the profiles that are in no
-- other table that feeds the store, and were not tracked by hrflow_track().
CREATE FUNCTION hrflow_untrack_table(store regclass, source_table regclass)
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_untrack_table(regclass, regclass) IS
'stop a table from feeding a store, and return the number of profiles no longer tracked';

REVOKE ALL ON FUNCTION hrflow_untrack_table(regclass, regclass) FROM PUBLIC;

-- This is a procedure because it commits after each batch, so that readers and
-- writers of the table wait for one batch only.
CREATE PROCEDURE hrflow_untrack_table_batches(
	store regclass,
	source_table regclass,
	batch_size int DEFAULT 1000)
AS 'MODULE_PATHNAME'
LANGUAGE C;

COMMENT ON PROCEDURE hrflow_untrack_table_batches(regclass, regclass, int) IS
'stop a table from feeding a store, one batch of profiles per transaction';

REVOKE ALL ON PROCEDURE hrflow_untrack_table_batches(regclass, regclass, int) FROM PUBLIC;

-- The function drops the trigger on UPDATE, and returns the statement that
-- creates it again.
CREATE FUNCTION hrflow_release_columns(store regclass, source_table regclass)
RETURNS text
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_release_columns(regclass, regclass) IS
'release the tracked columns of a table, so that their types can be changed';

REVOKE ALL ON FUNCTION hrflow_release_columns(regclass, regclass) FROM PUBLIC;

-- The function acts as the owner of the table, so that roles that write to the
-- table need no privileges on the store.  hrflow_track_table() grants EXECUTE
-- to the owner.
CREATE FUNCTION hrflow_track_trigger()
RETURNS trigger
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE;

COMMENT ON FUNCTION hrflow_track_trigger() IS
'trigger function by which a table feeds a store, used by hrflow_track_table()';

REVOKE ALL ON FUNCTION hrflow_track_trigger() FROM PUBLIC;

-- This is a procedure because it commits: it holds no snapshot while it
-- fetches profiles, and results are committed about once a second, or more
-- often.
CREATE PROCEDURE hrflow_refresh(
	store regclass,
	fields jsonb DEFAULT '{"profile": 1}',
	max_age interval DEFAULT '30 days',
	time_budget interval DEFAULT NULL,
	max_profiles bigint DEFAULT NULL,
	batch_size int DEFAULT 256,
	max_attempts int DEFAULT 5,
	profiles regclass DEFAULT NULL)
AS 'MODULE_PATHNAME'
LANGUAGE C;

COMMENT ON PROCEDURE hrflow_refresh(regclass, jsonb, interval, interval, bigint, int, int, regclass) IS
'fetch the vectors of the profiles that are due in a store';

REVOKE ALL ON PROCEDURE hrflow_refresh(regclass, jsonb, interval, interval, bigint, int, int, regclass) FROM PUBLIC;

CREATE FUNCTION hrflow_refresh_estimate(
	store regclass,
	fields jsonb DEFAULT '{"profile": 1}',
	max_age interval DEFAULT '30 days',
	days int DEFAULT 30)
RETURNS TABLE (day int, until timestamptz, profiles bigint, requests bigint,
	duration interval)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
ROWS 31;

COMMENT ON FUNCTION hrflow_refresh_estimate(regclass, jsonb, interval, int) IS
'expected cost of refreshing a store, now and on each of the next days';

REVOKE ALL ON FUNCTION hrflow_refresh_estimate(regclass, jsonb, interval, int) FROM PUBLIC;

-- This function and hrflow_unschedule() also remove the caller's jobs for
-- stores that have been dropped or renamed.
CREATE FUNCTION hrflow_schedule(
	store regclass,
	schedule text DEFAULT '* * * * *',
	fields jsonb DEFAULT '{"profile": 1}',
	max_age interval DEFAULT '30 days')
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_schedule(regclass, text, jsonb, interval) IS
'create or change the pg_cron job that refreshes a store, and return its jobid';

REVOKE ALL ON FUNCTION hrflow_schedule(regclass, text, jsonb, interval) FROM PUBLIC;

CREATE FUNCTION hrflow_unschedule(store regclass)
RETURNS boolean
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_unschedule(regclass) IS
'remove the pg_cron job that refreshes a store, and return whether a job was removed';

REVOKE ALL ON FUNCTION hrflow_unschedule(regclass) FROM PUBLIC;

CREATE FUNCTION hrflow_store_status(store regclass)
RETURNS TABLE (tracked bigint, due bigint, leased bigint, ok bigint,
	failed bigint, missing bigint, gone bigint, oldest_due timestamptz,
	refreshed_last_minute bigint, refreshed_last_hour bigint,
	requests_due bigint, time_due interval, last_error text,
	last_run timestamptz, last_run_status text, erased_last_day bigint,
	last_run_error text, last_job_status text, put_aside bigint)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
ROWS 1;

COMMENT ON FUNCTION hrflow_store_status(regclass) IS
'number of profiles of a store in each state, and its last run';

REVOKE ALL ON FUNCTION hrflow_store_status(regclass) FROM PUBLIC;

CREATE FUNCTION hrflow_store_failures(store regclass)
RETURNS TABLE (source_id text, profile_id text, state text, attempts int,
	http_status int, last_error text, refreshed_at timestamptz)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
ROWS 100;

COMMENT ON FUNCTION hrflow_store_failures(regclass) IS
'failed, missing and gone profiles of a store';

REVOKE ALL ON FUNCTION hrflow_store_failures(regclass) FROM PUBLIC;

CREATE FUNCTION hrflow_store_orphans(store regclass)
RETURNS TABLE (source_id text, profile_id text, vectors bigint)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
ROWS 100;

COMMENT ON FUNCTION hrflow_store_orphans(regclass) IS
'profiles that have vectors in a store but are not tracked';

REVOKE ALL ON FUNCTION hrflow_store_orphans(regclass) FROM PUBLIC;

-- This is STABLE rather than IMMUTABLE because convert_to() is.  PUBLIC may
-- execute it because it only computes something from its arguments.
CREATE FUNCTION hrflow_fingerprint(source_id text, profile_id text)
RETURNS bytea
LANGUAGE SQL STABLE STRICT PARALLEL SAFE
RETURN sha256(sha256(convert_to(source_id, getdatabaseencoding()))
	|| sha256(convert_to(profile_id, getdatabaseencoding())));

COMMENT ON FUNCTION hrflow_fingerprint(text, text) IS
'fingerprint of a profile in the record of erased profiles';

CREATE FUNCTION hrflow_restore(
	store regclass,
	source_id text DEFAULT NULL,
	profile_ids text[] DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_restore(regclass, text, text[]) IS
'restore vectors of a store that were put aside, and return the number of profiles';

REVOKE ALL ON FUNCTION hrflow_restore(regclass, text, text[]) FROM PUBLIC;

CREATE FUNCTION hrflow_retry(store regclass)
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_retry(regclass) IS
'make failed and gone profiles of a store due again, and return their number';

REVOKE ALL ON FUNCTION hrflow_retry(regclass) FROM PUBLIC;

--
-- Ranking
--
-- These functions execute as the owner of the store, except that a caller to
-- whom row-level security applies gets the rows that the policies show to
-- them.
--
-- In hrflow_match() and hrflow_match_weighted(), some arguments share their
-- names with result columns, because both are named like the columns of a
-- store.  That is not ambiguous: C functions access their arguments by
-- position.
--

-- The function searches the index of the section if that is cheaper.
-- Otherwise, or if the index returns too few profiles, it compares all
-- vectors.
CREATE FUNCTION hrflow_match(
	store regclass,
	query real[],
	k int DEFAULT 10,
	section text DEFAULT 'profile',
	profiles text[] DEFAULT NULL,
	source_id text DEFAULT NULL)
RETURNS TABLE (source_id text, profile_id text, section text, item int,
	similarity double precision)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
COST 1000 ROWS 10;

COMMENT ON FUNCTION hrflow_match(regclass, real[], int, text, text[], text) IS
'profiles of a store that are most similar to a vector';

REVOKE ALL ON FUNCTION hrflow_match(regclass, real[], int, text, text[], text) FROM PUBLIC;

-- The similarity of a profile is the weighted sum of the similarities of its
-- best item of each section.
CREATE FUNCTION hrflow_match_weighted(
	store regclass,
	query real[],
	weights jsonb,
	k int DEFAULT 10,
	profiles text[] DEFAULT NULL,
	source_id text DEFAULT NULL)
RETURNS TABLE (source_id text, profile_id text, section text, item int,
	similarity double precision, parts jsonb)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
COST 1000 ROWS 10;

COMMENT ON FUNCTION hrflow_match_weighted(regclass, real[], jsonb, int, text[], text) IS
'profiles of a store that are most similar to a vector in several sections';

REVOKE ALL ON FUNCTION hrflow_match_weighted(regclass, real[], jsonb, int, text[], text) FROM PUBLIC;

-- The function compares all vectors, even if there is an index.
CREATE FUNCTION hrflow_match_all(
	store regclass,
	others regclass,
	k int DEFAULT 10,
	section text DEFAULT 'profile',
	other_section text DEFAULT 'profile')
RETURNS TABLE (source_id text, profile_id text, item int,
	other_source_id text, other_profile_id text, other_item int,
	similarity double precision)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
COST 100000 ROWS 10000;

COMMENT ON FUNCTION hrflow_match_all(regclass, regclass, int, text, text) IS
'most similar profiles of another store, for each vector of a store';

REVOKE ALL ON FUNCTION hrflow_match_all(regclass, regclass, int, text, text) FROM PUBLIC;

CREATE FUNCTION hrflow_match_recall(
	store regclass,
	section text DEFAULT 'profile',
	sample int DEFAULT 20,
	k int DEFAULT 10,
	profiles text[] DEFAULT NULL,
	source_id text DEFAULT NULL)
RETURNS double precision
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
COST 1000;

COMMENT ON FUNCTION hrflow_match_recall(regclass, text, int, int, text[], text) IS
'fraction of the most similar profiles that the index of a section finds';

REVOKE ALL ON FUNCTION hrflow_match_recall(regclass, text, int, int, text[], text) FROM PUBLIC;

-- The function does not execute the statement, because an index cannot be
-- created concurrently in a function.
CREATE FUNCTION hrflow_index_statement(
	store regclass,
	section text DEFAULT 'profile')
RETURNS text
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_index_statement(regclass, text) IS
'statement that creates the index of a section of a store';

REVOKE ALL ON FUNCTION hrflow_index_statement(regclass, text) FROM PUBLIC;

--
-- Activity
--

-- PUBLIC may execute this and read the view because a caller who has neither
-- the privileges of a backend's role nor those of pg_read_all_stats sees only
-- the process ID and the role of that backend.
CREATE FUNCTION hrflow_embed_activity()
RETURNS TABLE (pid int, role name, function text, store text,
	started_at timestamptz, elements_total bigint, elements_done bigint,
	ok bigint, failed bigint, requests bigint, retries bigint, in_flight int,
	waiting_for text, resumes_at timestamptz, eta timestamptz)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL RESTRICTED
ROWS 10;

COMMENT ON FUNCTION hrflow_embed_activity() IS
'rows of the view hrflow_embed_activity';

CREATE VIEW hrflow_embed_activity AS
	SELECT pid, role, function, store, started_at, elements_total,
		elements_done, ok, failed, requests, retries, in_flight, waiting_for,
		resumes_at, eta
	FROM @extschema@.hrflow_embed_activity();

COMMENT ON VIEW hrflow_embed_activity IS
'progress of functions that send requests, one row for each backend that executes one';

GRANT SELECT ON hrflow_embed_activity TO PUBLIC;

--
-- Statistics
--

-- Only pg_read_all_stats may read the statistics, because they count what all
-- roles do.
CREATE FUNCTION hrflow_embed_stats(
	OUT scope text,
	OUT calls bigint,
	OUT requests bigint,
	OUT retries bigint,
	OUT rate_limits bigint,
	OUT bytes_received bigint,
	OUT wait_seconds double precision,
	OUT connections_opened bigint,
	OUT connections_reused bigint,
	OUT rows_by_status jsonb,
	OUT reset_at timestamptz,
	OUT api_requests bigint,
	OUT link_requests bigint)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION hrflow_embed_stats() IS
'row of the view hrflow_embed_stats';

REVOKE ALL ON FUNCTION hrflow_embed_stats() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION hrflow_embed_stats() TO pg_read_all_stats;

CREATE VIEW hrflow_embed_stats AS
	SELECT scope, calls, requests, retries, rate_limits, bytes_received,
		wait_seconds, connections_opened, connections_reused, rows_by_status,
		reset_at, api_requests, link_requests
	FROM @extschema@.hrflow_embed_stats();

COMMENT ON VIEW hrflow_embed_stats IS
'statistics of hrflow_embed since they were reset';

GRANT SELECT ON hrflow_embed_stats TO pg_read_all_stats;

CREATE FUNCTION hrflow_embed_stats_reset()
RETURNS void
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION hrflow_embed_stats_reset() IS
'reset the statistics of hrflow_embed_stats';

REVOKE ALL ON FUNCTION hrflow_embed_stats_reset() FROM PUBLIC;

--
-- Usage
--

-- PUBLIC may execute this and read the view because a caller without the
-- privileges of pg_read_all_stats sees only the rows of roles whose privileges
-- the caller has.
CREATE FUNCTION hrflow_embed_usage()
RETURNS TABLE (day date, role name, function text, api_requests bigint,
	link_requests bigint)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL RESTRICTED
ROWS 100;

COMMENT ON FUNCTION hrflow_embed_usage() IS
'rows of the view hrflow_embed_usage';

CREATE VIEW hrflow_embed_usage AS
	SELECT day, role, function, api_requests, link_requests
	FROM @extschema@.hrflow_embed_usage();

COMMENT ON VIEW hrflow_embed_usage IS
'number of requests by day, role and function';

GRANT SELECT ON hrflow_embed_usage TO PUBLIC;
