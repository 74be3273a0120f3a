/* sql/hrflow_embed--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION hrflow_embed" to load this file. \quit

--
-- About the comments of this script
--
-- The comment above each function describes its result, its arguments and its
-- result columns, in this order, and ends with these paragraphs if they apply:
--
--   Endpoint  method and path, below hrflow_embed.base_url, of the requests
--             that the function sends to the HrFlow API, and the heading under
--             which https://developers.hrflow.ai documents it
--   Cost      number of requests to the API, which may be billed; without this
--             paragraph a function sends none
--   Requires  privileges, in addition to EXECUTE; 42501 is raised without them
--   Errors    SQLSTATEs, each followed by the condition that raises it
--
-- Conditions that many functions have in common are listed here.  Those that
-- can occur in any function, such as 53200 (out of memory) and 57014
-- (canceled), are not listed.
--
-- API errors, of every function with an endpoint:
--
--   0A000  libcurl was built without TLS or without an asynchronous resolver
--   08001  cannot resolve the name of the server, connect to it or verify its
--          certificate
--   08006  connection lost or no reply in time, in the last attempt
--   08P01  reply is a redirect, is not JSON, or lacks a required member
--   22023  a setting is invalid, or the API refused the request as invalid
--   28000  the API refused the key or the access, or the proxy its password
--   53400  the account is over its quota or rate, or the statement or the key
--          has reached a limit of requests that a setting imposes
--   54000  reply exceeds hrflow_embed.max_response_size
--   55000  no API key is configured, or the library was loaded during a
--          parallel query
--   58000  server error (HTTP 5xx) in the last attempt, or an unexpected HTTP
--          status
--
-- Store errors, of every function with the argument "store":
--
--   0A000  a table of the store is a foreign table
--   22004  a row of the store has a null in a column that must not have one
--   25006  the function changes the store, and the server is a standby
--   42501  the caller lacks the privileges under "Requires"
--   42809  the table, or the store's table of profiles, is not a table with
--          the columns of a store
--   42P01  the table, or the store's table of profiles, does not exist
--
-- Identifier errors, of functions that change the profiles of a store that are
-- given by "source_id" and "profile_ids":
--
--   0A000  the store has rows on other servers
--   22023  an argument is NULL, source_id is empty in a store of profiles or not
--          empty in a store of texts or documents, or profile_ids has several
--          dimensions, nulls or empty strings
--
-- Two groups of functions only read, and yet are not STABLE and PARALLEL SAFE.
--
-- Functions that send requests are VOLATILE because a call may cost money, and
-- the planner executes STABLE functions to estimate selectivities, even for
-- EXPLAIN.  They are PARALLEL RESTRICTED because connections, the number of
-- requests in flight and the number sent by a statement belong to a backend:
-- each parallel worker would open its own connections and count from zero.
--
-- Functions that read a store are VOLATILE because they execute statements with
-- new snapshots, where a STABLE function has to use that of the calling query.
-- (Those that rank read the vectors with the latter, but find indexes and
-- dimensions with new ones.)  They are PARALLEL UNSAFE because these statements
-- advance the command counter and may start parallel workers, both of which
-- PostgreSQL restricts in a query that is executed in parallel itself.
--

--
-- Support functions of the planner
--

-- Support function of the functions whose calls over a table are read ahead: a
-- query that evaluates such a function for each of its rows has up to
-- hrflow_embed.max_concurrency calls in flight (see hrflow_embed.read_ahead).
-- The support function does nothing, but the planner loads the library in order
-- to call it, so that the hooks that implement reading ahead are installed
-- while the first such query of a session is planned.
CREATE FUNCTION hrflow_support(internal)
RETURNS internal
AS 'MODULE_PATHNAME'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION hrflow_support(internal) IS
'planner support for functions whose calls over a table are read ahead';

REVOKE ALL ON FUNCTION hrflow_support(internal) FROM PUBLIC;

-- Estimates the number of rows of a batch that returns one row for each
-- element: the length of its longest array, if the planner knows it.
CREATE FUNCTION hrflow_elements_support(internal)
RETURNS internal
AS 'MODULE_PATHNAME'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION hrflow_elements_support(internal) IS
'planner support for batches that return one row for each element';

REVOKE ALL ON FUNCTION hrflow_elements_support(internal) FROM PUBLIC;

-- Estimates the number of rows of a batch that returns one row for each link or
-- vector: the length of its longest array times the number of items that
-- "fields" requests, if the planner knows them.
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

-- Returns the links to a profile's vectors: the "data" object of the API's
-- reply, which has for each requested section a link, or a list of links.  A
-- link is valid for 20 minutes, and gives anyone who has it access to a
-- person's data.
--
--   source_id          identifier of the source that contains the profile
--   profile_id         identifier of the profile
--   fields             sections to request, a JSON object such as
--                      {"profile": 1, "skills": 1, "experiences": [0, 2]};
--                      a list has indexes of items, from 0.  NULL and {} are
--                      not sent, and the API chooses the sections.
--   profile_reference  the customer's own reference of the profile
--   profile_email      e-mail address of the profile
--
-- The identifiers of the profile that are not NULL are sent together.  Returns
-- NULL, without a request, if source_id or all three identifiers are NULL.  If
-- hrflow_embed.on_missing is "null", also returns NULL for a profile that does
-- not exist or lacks a vector, and a WARNING at the end of the statement
-- reports the number of such profiles.
--
-- Endpoint: GET /profile/embedding ("Get Profile Embedding")
-- Cost: one request, and one more for each retry
-- Errors: API errors, and
--   22023  an argument is an empty string, fields is not an object, or the
--          source does not exist
--   P0002  the profile does not exist, or has no vector of a requested section
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

-- Returns the links to a profile's vectors, one row for each.
--
--   source_id          identifier of the source that contains the profile
--   profile_id         identifier of the profile
--   fields             sections to request, a JSON object; see
--                      hrflow_profile_embedding()
--   profile_reference  the customer's own reference of the profile
--   profile_email      e-mail address of the profile
--
--   section            name of the section, such as 'profile' or 'experiences'
--   item               index within the section, from 0; it is 0 if the section
--                      has a single vector.  This is the index that "fields"
--                      requested at the position of the link, unless the path
--                      of the link names another item.
--   link               URL of the vector, valid for 20 minutes
--
-- Returns no rows, without a request, if source_id or all three identifiers are
-- NULL.  If hrflow_embed.on_missing is "null", also returns no rows for a
-- profile that does not exist or lacks a vector.
--
-- Endpoint: GET /profile/embedding ("Get Profile Embedding")
-- Cost: one request, and one more for each retry
-- Errors: API errors, and
--   22023  an argument is an empty string, fields is not an object, or the
--          source does not exist
--   P0002  the profile does not exist, or has no vector of a requested section
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
-- Batches
--
-- A function that takes arrays is a batch: it has up to
-- hrflow_embed.max_concurrency requests in flight, and returns at least one row
-- for each element, in the order of completion.  Equal elements are requested
-- once.  An array that is NULL, as array_agg() returns for no rows, has no
-- elements: the batch returns no rows and sends no requests.  A function in
-- FROM runs to its end, so LIMIT saves no requests; pass a shorter array
-- instead.
--
-- All batches have these columns:
--
--   status       "ok", or the reason why the element has no result:
--                invalid_request    the element is invalid or was refused
--                not_found          the API does not know the profile
--                no_vector          a requested section has no vector, or the
--                                   link leads to none
--                unauthorized       key, access or proxy password refused
--                over_quota         quota of the account exhausted
--                rate_limited       rate exceeded, in the last attempt
--                over_budget        limit of requests of a setting reached
--                connection_failed  cannot connect, or connection lost
--                timeout            no reply in time
--                invalid_reply      reply is not what the API documents
--                http_error         server error, or unexpected HTTP status
--                too_large          reply exceeds max_response_size
--                link_refused       link_hosts does not allow the link
--                link_expired       the link is no longer valid
--                invalid_vector     reply is not a vector that can be decoded
--   http_status  HTTP status of the last attempt; NULL if there was no reply
--   error        description of the failure; NULL if the status is "ok"
--
-- A failure of one element does not end the batch.  A refusal that concerns all
-- elements does: of the key, the quota, the rate or the source; one that the
-- first 32 elements have in common, such as fields that the API does not know
-- or links that link_hosts does not allow; or an API that has not replied for
-- 10 seconds.  If no element has succeeded by then, it is raised as an error.
-- Otherwise the remaining rows have its status, and a WARNING reports it.
-- Requests that failed in a shorter outage are sent again after it.  A WARNING
-- also reports that no element succeeded, or that more than half of the rows
-- failed with the same status.
--
-- Batch errors, of every function in this script that takes arrays of elements:
--
--   0A000  Citus has sent the query to a shard, and every shard would send all
--          requests (see hrflow_embed.allow_in_shard_queries)
--   22023  an array has several dimensions, a setting is invalid, or the API
--          refused all elements as invalid
--   55000  no API key is configured, or the library was loaded during a
--          parallel query
--   08001, 08006, 28000, 53400, 58000
--          API errors that concern all elements, if none has succeeded
--

--
-- Many profiles
--

-- Returns the links to the vectors of many profiles, one row for each element.
--
--   source_id            identifier of the source that contains all of them
--   profile_ids          identifiers of the profiles
--   fields               sections to request, a JSON object; see
--                        hrflow_profile_embedding()
--   profile_references   the customer's own references of the profiles
--   profile_emails       e-mail addresses of the profiles
--
--   ordinality           position of the element in the arrays, from 1
--   profile_id, profile_reference, profile_email
--                        identifiers of the element, as passed
--   status, http_status, error
--                        result of the element; see "Batches"
--   data                 links as hrflow_profile_embedding() returns them, if
--                        the status is "ok"
--
-- At least one of the three arrays of identifiers must be passed, and all that
-- are must have the same length.  The identifiers at one position that are not
-- NULL are sent together.
--
-- Endpoint: GET /profile/embedding ("Get Profile Embedding")
-- Cost: one request for each distinct element, and one more for each retry
-- Errors: batch errors, and
--   22023  no array is passed, arrays differ in length, fields is not an
--          object, or the source does not exist
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

-- Returns the links to the vectors of many profiles, one row for each link.
--
--   source_id            identifier of the source that contains all of them
--   profile_ids          identifiers of the profiles
--   fields               sections to request, a JSON object; see
--                        hrflow_profile_embedding()
--   profile_references   the customer's own references of the profiles
--   profile_emails       e-mail addresses of the profiles
--
--   ordinality           position of the element in the arrays, from 1
--   profile_id, profile_reference, profile_email
--                        identifiers of the element, as passed
--   section              name of the section, such as 'profile'
--   item                 index within the section, from 0; it is 0 if the
--                        section has a single vector
--   link                 URL of the vector, valid for 20 minutes, if the status
--                        is "ok"; it gives anyone who has it access to a
--                        person's data
--   status, http_status, error
--                        result of the element; see "Batches"
--
-- An element without links has one row, in which section, item and link are
-- NULL.  At least one of the three arrays of identifiers must be passed, and
-- all that are must have the same length.
--
-- Endpoint: GET /profile/embedding ("Get Profile Embedding")
-- Cost: one request for each distinct element, and one more for each retry
-- Errors: batch errors, and
--   22023  no array is passed, arrays differ in length, fields is not an
--          object, or the source does not exist
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

-- Returns the vectors of many profiles, one row for each vector.  The links of
-- a profile are fetched as soon as they arrive.
--
--   source_id            identifier of the source that contains all of them
--   profile_ids          identifiers of the profiles
--   fields               sections to request, a JSON object; see
--                        hrflow_profile_embedding()
--   profile_references   the customer's own references of the profiles
--   profile_emails       e-mail addresses of the profiles
--
--   ordinality           position of the element in the arrays, from 1
--   profile_id, profile_reference, profile_email
--                        identifiers of the element, as passed
--   section              name of the section, such as 'profile'
--   item                 index within the section, from 0; it is 0 if the
--                        section has a single vector
--   vector               the vector, if the status is "ok"
--   status, http_status, error
--                        result of the vector, or of the element if it has no
--                        vectors; see "Batches"
--
-- An element without vectors has one row, in which section, item and vector are
-- NULL.  At least one of the three arrays of identifiers must be passed, and
-- all that are must have the same length.
--
-- Endpoint: GET /profile/embedding ("Get Profile Embedding"), and the links
-- Cost: one request for each distinct element, and one more for each retry;
-- fetching links is free
-- Errors: batch errors, and
--   22023  no array is passed, arrays differ in length, fields is not an
--          object, or the source does not exist
--   42501  hrflow_embed.link_hosts does not allow any of the links
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

-- Returns, in one row, the expected cost of hrflow_profile_vectors() with the
-- same arguments.
--
--   source_id            identifier of the source that contains all profiles
--   profile_ids          identifiers of the profiles
--   fields               sections to request, a JSON object; see
--                        hrflow_profile_embedding()
--   profile_references   the customer's own references of the profiles
--   profile_emails       e-mail addresses of the profiles
--
--   elements             number of distinct elements
--   requests             number of requests to the API without retries;
--                        elements that are NULL or invalid are not sent
--   links                number of links that would be fetched, one for each
--                        section or for each item of its list.  A section such
--                        as {"experiences": 1} may have more.  NULL if "fields"
--                        leaves the choice of sections to the API.
--   seconds              duration at the recent latency and within the rate of
--                        the account; NULL if neither is known, as before the
--                        first request
--
-- VOLATILE because the recent latency and rate change at any time, and PARALLEL
-- RESTRICTED because a backend may be the only one that knows them.
--
-- Errors:
--   22023  no array is passed, arrays differ in length or have several
--          dimensions, fields is not an object, or a setting is invalid
--   55000  no API key is configured, or the library was loaded during a
--          parallel query
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
COST 10000 ROWS 1;

COMMENT ON FUNCTION hrflow_estimate(text, text[], jsonb, text[], text[]) IS
'cost of hrflow_profile_vectors() with the same arguments; sends no request';

REVOKE ALL ON FUNCTION hrflow_estimate(text, text[], jsonb, text[], text[]) FROM PUBLIC;

--
-- Links to vectors
--

-- Returns the vector that a link leads to; see hrflow_decode_vector() for its
-- encodings.  Returns NULL for NULL.
--
--   link    URL of a vector, as hrflow_profile_embedding_links() returns it
--
-- Fetches https links to the hosts in hrflow_embed.link_hosts only, and never
-- from a private address unless the setting contains that exact host.  The API
-- key is neither needed nor sent.  If hrflow_embed.on_missing is "null",
-- returns NULL if the link leads to no vector, and a WARNING at the end of the
-- statement reports the number of such links.
--
-- Errors:
--   0A000  libcurl was built without TLS or without an asynchronous resolver
--   08001  cannot resolve the name of the host, connect to it or verify its
--          certificate
--   08006  connection lost or no reply in time, in the last attempt
--   08P01  reply is a redirect
--   22023  a setting is invalid
--   22P03  reply is not a vector that can be decoded
--   28000  the proxy refused its user or password
--   42501  hrflow_embed.link_hosts does not allow the link
--   53400  the host limited the rate, in the last attempt
--   54000  reply exceeds hrflow_embed.max_response_size
--   55000  the library was loaded during a parallel query
--   58000  the link has expired, or the host had an error; DETAIL has the error
--          code of the object store
--   P0002  the link leads to no vector
CREATE FUNCTION hrflow_fetch_vector(link text)
RETURNS real[]
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED
COST 1000
SUPPORT @extschema@.hrflow_support;

COMMENT ON FUNCTION hrflow_fetch_vector(text) IS
'vector that a link of the HrFlow API leads to; calls over a table are read ahead';

REVOKE ALL ON FUNCTION hrflow_fetch_vector(text) FROM PUBLIC;

-- Returns the vectors that many links lead to, one row for each link.
--
--   links        URLs of vectors, as hrflow_profile_links() returns them
--
--   ordinality   position of the link in the array, from 1
--   link         the link, as passed
--   vector       the vector, if the status is "ok"
--   status, http_status, error
--                result of the link; see "Batches"
--
-- Fetches https links to the hosts in hrflow_embed.link_hosts only, and never
-- from a private address unless the setting contains that exact host.  The API
-- key is neither needed nor sent.
--
-- Errors: batch errors, and
--   42501  hrflow_embed.link_hosts does not allow any of the links
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

-- Returns the link to a job's vector: the "data" of the API's reply, which is a
-- JSON string.  A link is valid for 20 minutes.
--
--   job_id          identifier of the job
--   job_reference   the customer's own reference of the job
--   board_id        identifier of the board that contains the job; not sent if
--                   it is NULL
--
-- The identifiers that are not NULL are sent together.  Returns NULL, without a
-- request, if both identifiers of the job are NULL.  If hrflow_embed.on_missing
-- is "null", also returns NULL for a job that does not exist or has no vector,
-- and a WARNING at the end of the statement reports the number of such jobs.
--
-- Endpoint: GET /job/embedding ("Get Job Embedding")
-- Cost: one request, and one more for each retry
-- Errors: API errors, and
--   22023  an argument is an empty string, or the board does not exist
--   P0002  the job does not exist, or has no vector
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

-- Returns a job's vector: requests its link, and fetches it.
--
--   job_id          identifier of the job
--   job_reference   the customer's own reference of the job
--   board_id        identifier of the board that contains the job; not sent if
--                   it is NULL
--
-- The identifiers that are not NULL are sent together.  Returns NULL, without a
-- request, if both identifiers of the job are NULL.  If hrflow_embed.on_missing
-- is "null", also returns NULL for a job that does not exist or has no vector,
-- and a WARNING at the end of the statement reports the number of such jobs.
--
-- Endpoint: GET /job/embedding ("Get Job Embedding"), and the link
-- Cost: one request, and one more for each retry; fetching the link is free
-- Errors: API errors, those of hrflow_fetch_vector(), and
--   22023  an argument is an empty string, or the board does not exist
--   P0002  the job does not exist, or has no vector
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

-- Returns the vector of a text.  Returns NULL for NULL.
--
--   input   text that is not empty, of at most 1 MB (1,048,576 bytes, both in
--           the encoding of the database and in UTF-8); the API determines how
--           much of it affects the vector
--
-- A POST is retried only if the API cannot have processed it: if no connection
-- could be established, after HTTP 429, and after 503 with Retry-After.
--
-- Endpoint: POST /text/embedding ("Embed a Text")
-- Cost: one request, and one more for each retry
-- Errors: API errors, and
--   22023  the text is empty or too long
--   22P03  reply has no vector that can be decoded
CREATE FUNCTION hrflow_text_embedding(input text)
RETURNS real[]
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED
COST 1000
SUPPORT @extschema@.hrflow_support;

COMMENT ON FUNCTION hrflow_text_embedding(text) IS
'vector of a text; one request; calls over a table are read ahead';

REVOKE ALL ON FUNCTION hrflow_text_embedding(text) FROM PUBLIC;

-- Returns the vectors of many texts, one row for each text.
--
--   inputs       texts that are not empty, of at most 1 MB each
--
--   ordinality   position of the text in the array, from 1
--   vector       the vector, if the status is "ok"
--   status, http_status, error
--                result of the text; see "Batches"
--
-- A POST is retried only if the API cannot have processed it: if no connection
-- could be established, after HTTP 429, and after 503 with Retry-After.
--
-- Endpoint: POST /text/embedding ("Embed a Text")
-- Cost: one request for each distinct element, and one more for each retry
-- Errors: batch errors
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

-- Returns the vector of a profile or a job that HrFlow need not have indexed,
-- from its JSON.  Returns NULL if an argument is NULL.
--
--   item_type          'profile' or 'job'
--   item               JSON object that describes the profile or job; it is not
--                      empty, and its text has at most 1 MB
--   return_sequences   whether the API is to return one vector for each part of
--                      the item; requires hrflow_embed.vector_dimension
--
-- The result has one dimension if the API returned one vector, and two if it
-- returned several.  Its reply is base64 without a shape, which is divided into
-- vectors of hrflow_embed.vector_dimension elements, unless the setting is 0.
--
-- A POST is retried only if the API cannot have processed it: if no connection
-- could be established, after HTTP 429, and after 503 with Retry-After.
--
-- Endpoint: POST /document/embedding ("Embed a Document")
-- Cost: one request, and one more for each retry
-- Errors: API errors, and
--   22023  item_type is neither 'profile' nor 'job'; item is not an object, is
--          empty or is too long; or return_sequences is true, but
--          hrflow_embed.vector_dimension is not set
--   22P03  reply has no vectors that can be decoded, or they do not have
--          hrflow_embed.vector_dimension elements
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

-- Returns the vectors of many profiles or jobs from their JSON, one row for
-- each.
--
--   item_type    'profile' or 'job', for all items
--   items        JSON objects that are not empty, of at most 1 MB each as text
--
--   ordinality   position of the item in the array, from 1
--   vector       the vector, if the status is "ok"
--   status, http_status, error
--                result of the item; see "Batches"
--
-- A POST is retried only if the API cannot have processed it: if no connection
-- could be established, after HTTP 429, and after 503 with Retry-After.
--
-- Endpoint: POST /document/embedding ("Embed a Document")
-- Cost: one request for each distinct element, and one more for each retry
-- Errors: batch errors, and
--   22023  item_type is NULL, or neither 'profile' nor 'job'
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

-- Returns the owner and the permissions of the API key: the "data" object of
-- the API's reply.  Call it first to verify a new key.
--
-- Endpoint: GET /auth ("Authentication")
-- Cost: one request, and one more for each retry
-- Errors: API errors
CREATE FUNCTION hrflow_auth()
RETURNS jsonb
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
COST 1000;

COMMENT ON FUNCTION hrflow_auth() IS
'owner and permissions of the API key, as the HrFlow API returns them; one request';

REVOKE ALL ON FUNCTION hrflow_auth() FROM PUBLIC;

--
-- Vectors
--

-- Decodes a vector.  The encoding is recognized by its first bytes:
--
--   NumPy file   of version 1.0 to 3.0 (.npy), the encoding of links: real or
--                integer elements of any size and byte order, of shape (d),
--                (1, d) or (n, d); object arrays are refused
--   JSON array   of numbers, or of such arrays
--   base64       of big-endian floats of 4 bytes; it has no shape, so n vectors
--                are decoded as a single one
--
-- The result has one dimension for one vector, and two for shape (n, d).
-- Elements are rounded to the nearest real.  Elements that are too large for
-- it, infinity and NaN are refused; those that are too small become zero.
--
-- Errors:
--   22P03  payload is in none of these encodings, or is incomplete
--   22000  it has no elements
--   54000  it has more elements than an array can have
CREATE FUNCTION hrflow_decode_vector(payload bytea)
RETURNS real[]
AS 'MODULE_PATHNAME'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION hrflow_decode_vector(bytea) IS
'decode a vector in a NumPy file, a JSON array, or base64 of big-endian floats';

-- Returns the cosine similarity of two vectors of the same dimension: 1 for the
-- same direction, 0 for a right angle, -1 for opposite directions.
--
-- Errors:
--   22023  dimensions differ, or a vector has several dimensions, nulls,
--          infinity or NaN, or only zeros
CREATE FUNCTION hrflow_cosine_similarity(a real[], b real[])
RETURNS double precision
AS 'MODULE_PATHNAME'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
COST 10;

COMMENT ON FUNCTION hrflow_cosine_similarity(real[], real[]) IS
'cosine similarity of two vectors';

--
-- Stores
--
-- A store is a set of ordinary tables that belong to one role and are not
-- members of the extension:
--
--   NAME           a row for each vector: (source_id, profile_id, section,
--                  item, vector, fetched_at); functions identify the store by
--                  it
--   NAME_profile   a row for each tracked profile, with its state
--   NAME_run       a row for each run of hrflow_refresh()
--   NAME_aside     vectors that were put aside before they are deleted
--   NAME_erased    a record of what was erased
--
-- A store contains profiles, jobs, texts or documents.  Comments about profiles
-- apply to the others as well.  For jobs, source_id is the identifier of the
-- board, or empty if there is none.  Texts and documents are identified by keys
-- of the user, and come from columns of tables; their source_id is empty.  They
-- and jobs have one vector each, in section 'job', 'text' or 'document'; there,
-- 'profile', which is the default of many arguments, means this section.
--
-- Except for hrflow_create_store(), these functions execute statements as the
-- owner of the store, in a security-restricted operation.  Only
-- hrflow_refresh() sends requests.
--

-- Creates the tables of a store, which the caller then owns.  Returns the table
-- of vectors.
--
--   name          name of the table of vectors, optionally qualified by a
--                 schema; the other tables have the same name with a suffix
--   vector_type   type of the column of vectors: 'real[]', or pgvector's
--                 'vector', 'vector(n)', 'halfvec' or 'halfvec(n)'; 'auto'
--                 means 'vector' if pgvector is installed, and 'real[]' if not
--   identifier    kind of identifier of the profiles: 'id', 'reference' or
--                 'email'; the column is then called profile_id,
--                 profile_reference or profile_email.  Jobs have 'id' (job_id)
--                 or 'reference' (job_reference), and texts and documents have
--                 'key' (key).  NULL means the first one.
--   content       contents of the store: 'profile', 'job', 'text' or 'document'
--
-- Returns NULL if another argument is NULL.
--
-- Requires: CREATE on the schema
-- Errors:
--   22023  invalid vector_type, identifier or content
--   3F000  the schema does not exist
--   42501  the caller may not create tables in the schema
--   42602  name is not a valid name
--   42622  name is too long with the suffix "_profile"
--   42704  vector_type is a type of pgvector, which is not installed
--   42P07  a table of that name exists
CREATE FUNCTION hrflow_create_store(
	name text,
	vector_type text DEFAULT 'auto',
	identifier text DEFAULT NULL,
	content text DEFAULT 'profile')
RETURNS regclass
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_create_store(text, text, text, text) IS
'create the tables of a store of vectors';

REVOKE ALL ON FUNCTION hrflow_create_store(text, text, text, text) FROM PUBLIC;

-- Drops the tables of a store, the triggers that feed it, and its pg_cron job.
--
--   store    table of vectors
--
-- Requires: ownership of the store, even for superusers (use SET ROLE)
-- Errors: store errors, and
--   2BP01  other objects depend on the tables
CREATE FUNCTION hrflow_drop_store(store regclass)
RETURNS void
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_drop_store(regclass) IS
'drop a store of vectors, the triggers that feed it, and its job';

REVOKE ALL ON FUNCTION hrflow_drop_store(regclass) FROM PUBLIC;

-- Tracks profiles, which are due at once.  They stay tracked until
-- hrflow_untrack() is called, whatever the tables that feed the store contain.
-- Returns the number of profiles that were not tracked before.
--
--   store         table of vectors
--   source_id     identifier of the source that contains the profiles
--   profile_ids   identifiers of the profiles, of the kind that the store uses;
--                 duplicates count once
--
-- Cost: none immediately; one request for each profile in the next refresh
-- Requires: SELECT, INSERT, UPDATE and DELETE on NAME and NAME_profile, and
-- that no row-level security applies to the caller
-- Errors: store errors, identifier errors
CREATE FUNCTION hrflow_track(store regclass, source_id text, profile_ids text[])
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_track(regclass, text, text[]) IS
'track profiles in a store';

REVOKE ALL ON FUNCTION hrflow_track(regclass, text, text[]) FROM PUBLIC;

-- Makes profiles due because they have changed.  If a profile is being fetched
-- at that time, the result is kept, and it is due again after
-- hrflow_embed.refresh_debounce.  Returns the number of the given profiles that
-- are tracked.
--
--   store         table of vectors
--   source_id     identifier of the source that contains the profiles
--   profile_ids   identifiers of the profiles, of the kind that the store uses
--
-- Cost: none immediately; one request for each profile in the next refresh
-- Requires: SELECT, INSERT, UPDATE and DELETE on NAME and NAME_profile, and
-- that no row-level security applies to the caller
-- Errors: store errors, identifier errors
CREATE FUNCTION hrflow_mark_due(store regclass, source_id text, profile_ids text[])
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_mark_due(regclass, text, text[]) IS
'make profiles of a store due because they have changed';

REVOKE ALL ON FUNCTION hrflow_mark_due(regclass, text, text[]) FROM PUBLIC;

-- Erases profiles: deletes their vectors, and no longer tracks them.
-- NAME_erased records the erasure under hrflow_fingerprint().  Returns the
-- number of the given profiles that were tracked.
--
--   store         table of vectors
--   source_id     identifier of the source that contains the profiles
--   profile_ids   identifiers of the profiles, of the kind that the store uses
--
-- If a table that feeds the store still has a row with the identifier, the next
-- hrflow_track_table() for that table tracks the profile again.
--
-- Requires: SELECT, INSERT, UPDATE and DELETE on NAME and NAME_profile, and
-- that no row-level security applies to the caller
-- Errors: store errors, identifier errors
CREATE FUNCTION hrflow_untrack(store regclass, source_id text, profile_ids text[])
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_untrack(regclass, text, text[]) IS
'erase profiles and their vectors from a store';

REVOKE ALL ON FUNCTION hrflow_untrack(regclass, text, text[]) FROM PUBLIC;

-- Erases very many profiles like hrflow_untrack(), but commits after each
-- batch, so that sessions that change one of the profiles wait for one batch
-- only.  An INFO message reports how many of them were tracked.
--
--   store         table of vectors
--   source_id     identifier of the source that contains the profiles
--   profile_ids   identifiers of the profiles, of the kind that the store uses
--   batch_size    number of identifiers in each transaction, from 1 to 100000
--
-- The procedure is not atomic: profiles that were erased before an error or a
-- cancel stay erased, and the same call erases the rest.
--
-- Requires: SELECT, INSERT, UPDATE and DELETE on NAME and NAME_profile, and
-- that no row-level security applies to the caller
-- Errors: store errors, identifier errors, and
--   22023  batch_size is out of range
--   2D000  called in a transaction block, in a function, or after another
--          statement in one string
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

-- Lets a table feed a store: creates triggers by which its rows determine the
-- profiles that the store tracks.
--
--   store             table of vectors
--   source_table      table of the store's owner; a temporary table can feed a
--                     temporary store only
--   profile_column    column with the identifiers, of type text, varchar, uuid
--                     or an integer type; a generated column must be stored.
--                     Index it, because DELETE looks for other rows with the
--                     identifier.  A table feeds a store through one column,
--                     the one that was passed last.
--   source_id         identifier of the source that contains all profiles
--   source_column     column with the source of each row.  Exactly one of these
--                     two must be passed, or at most one for a store of jobs:
--                     without it, the jobs have no board.  Neither may be
--                     passed for a store of texts or documents.
--   refresh_columns   columns whose changes make a profile due
--   content_columns   columns that the contents come from, for a store of texts
--                     or documents only: for texts, columns of type text,
--                     varchar, char or name, which are joined by two newlines
--                     without those that are NULL; for documents, one column of
--                     type jsonb.  Changes of these columns make a profile due.
--   item_type         what documents are: 'profile' or 'job'
--
-- Contents are read when they are requested, as the owner of the store.  If
-- several rows have the same identifier, the content that sorts first by its
-- bytes is used.  A content for which the store has a vector is not requested
-- again.  If the content is empty, the profile has no vector.
--
-- INSERT tracks a profile; a change of its identifier or source tracks the new
-- one; a change of a refresh column makes it due; DELETE and TRUNCATE erase it,
-- unless another row or hrflow_track() wants it when the transaction commits,
-- so that rows that are deleted and inserted again keep their vectors.  Rows
-- whose identifier is NULL or empty are ignored.
--
-- Returns the number of profiles newly tracked.  If it is called again, the
-- function reconciles the store with the table: it tracks the profiles that the
-- triggers have missed (for example those of logical replication, of rows
-- written to a partition, or with session_replication_role), puts aside
-- profiles that are no longer wanted, up to a limit and with a WARNING, and
-- restores those that are wanted again.  The first call, also after DROP
-- EXTENSION, puts nothing aside, because other tables may still have to be
-- tracked.  Refresh columns that are omitted in a later call are dropped, with
-- a WARNING.
--
-- The first call, and one with other arguments, blocks writers of the table
-- until the transaction ends.  Reconciling blocks no session that reads or
-- writes the table.
--
-- Cost: none immediately, nor in the triggers; one request for each profile in
-- the next refresh
-- Requires: ownership of the store and the table, even for superusers (use SET
-- ROLE)
-- Errors: store errors, and
--   0A000  a column is a virtual generated column, the table or the store has
--          rows on other servers, or the table is a partition or takes part in
--          inheritance, where statements that name another table do not fire
--          its triggers
--   22023  an argument is NULL that must not be, item_type is invalid, or
--          source_id, source_column and content_columns are not passed as
--          required
--   42703  a column does not exist
--   42710  another trigger has the name of one of the triggers
--   42804  a column has a type that is not supported
--   42809  source_table is not a table, or is temporary while the store is not
--   54011  refresh_columns or content_columns has more elements than a table can
--          have columns
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
'let the rows of a table determine which profiles a store tracks';

REVOKE ALL ON FUNCTION hrflow_track_table(regclass, regclass, name, text, name, name[], name[], text) FROM PUBLIC;

-- Removes the triggers by which a table feeds a store, and puts aside the
-- profiles that nothing else wants.  A later run of hrflow_refresh() erases
-- them, unless hrflow_restore() has restored them.  Returns the number of
-- profiles that were put aside, which is 0 if the table did not feed the store.
--
--   store          table of vectors
--   source_table   table that feeds the store
--
-- Requires: ownership of the store and the table, even for superusers (use SET
-- ROLE)
-- Errors: store errors
CREATE FUNCTION hrflow_untrack_table(store regclass, source_table regclass)
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_untrack_table(regclass, regclass) IS
'stop a table from feeding a store';

REVOKE ALL ON FUNCTION hrflow_untrack_table(regclass, regclass) FROM PUBLIC;

-- Like hrflow_untrack_table(), but commits after it has removed the triggers,
-- and after each batch of profiles that it puts aside, so that readers and
-- writers of the table do not wait for that.  An INFO message reports how many
-- profiles are no longer tracked.
--
--   store          table of vectors
--   source_table   table that feeds the store
--   batch_size     number of profiles in each transaction, from 1 to 100000
--
-- After an error or a cancel, the same call puts aside the rest, whether the
-- table still feeds the store or not.  Until then, these profiles are tracked.
--
-- Requires: ownership of the store and the table, even for superusers (use SET
-- ROLE)
-- Errors: store errors, and
--   22023  an argument is NULL, or batch_size is out of range
--   2D000  called in a transaction block, in a function, or after another
--          statement in one string
CREATE PROCEDURE hrflow_untrack_table_batches(
	store regclass,
	source_table regclass,
	batch_size int DEFAULT 1000)
AS 'MODULE_PATHNAME'
LANGUAGE C;

COMMENT ON PROCEDURE hrflow_untrack_table_batches(regclass, regclass, int) IS
'stop a table from feeding a store, one batch of profiles per transaction';

REVOKE ALL ON PROCEDURE hrflow_untrack_table_batches(regclass, regclass, int) FROM PUBLIC;

-- Drops the trigger on UPDATE of a table that feeds a store, so that ALTER
-- TABLE ... ALTER COLUMN ... TYPE can change the columns that it refers to.
-- Erases nothing.  Returns the call of hrflow_track_table(), with the arguments
-- that the table was tracked with, that creates the trigger again.  Changes of
-- these columns are missed until it is executed, so execute this function, the
-- ALTER TABLE and that call in one transaction.
--
--   store          table of vectors
--   source_table   table that feeds the store
--
-- Requires: ownership of the store, even for superusers (use SET ROLE)
-- Errors: store errors, and
--   42704  the table does not feed the store
--   55000  the trigger does not exist, so the columns have been released
--          already
CREATE FUNCTION hrflow_release_columns(store regclass, source_table regclass)
RETURNS text
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_release_columns(regclass, regclass) IS
'release the tracked columns of a table, so that their types can be changed';

REVOKE ALL ON FUNCTION hrflow_release_columns(regclass, regclass) FROM PUBLIC;

-- Function of the triggers that hrflow_track_table() creates.  It acts as the
-- owner of the table, who must also own the store: roles that write to the
-- table need no privileges on the store, nor on this function.
-- hrflow_track_table() grants the owner EXECUTE on it.
--
-- Errors:
--   39P01  not called as a trigger that hrflow_track_table() has created
--   42501  the table and the store do not have the same owner
--   42703  a column of the trigger's arguments does not exist
--   42P01  the store has been renamed; if it has been dropped, a WARNING
--          reports that instead
CREATE FUNCTION hrflow_track_trigger()
RETURNS trigger
AS 'MODULE_PATHNAME'
LANGUAGE C;

COMMENT ON FUNCTION hrflow_track_trigger() IS
'trigger function by which a table feeds a store, used by hrflow_track_table()';

REVOKE ALL ON FUNCTION hrflow_track_trigger() FROM PUBLIC;

-- Fetches the vectors that are due in a store, until nothing is due or a limit
-- is reached.  Profiles are claimed a few at a time and fetched with no
-- transaction open; results are written every second, or whenever batch_size
-- profiles have arrived.  Results that have arrived are written however the run
-- ends.  Several runs at once share the work.
--
--   store          table of vectors
--   fields         sections to request, a JSON object; see
--                  hrflow_profile_embedding().  The vectors of these sections
--                  and items are replaced, and all others are kept.  Profiles
--                  for which one of them was never requested are fetched when
--                  nothing else is due.
--   max_age        time after which a profile fetched now is due again;
--                  the due time of profiles fetched before does not change.
--                  Since '30' means 30 seconds, less than an hour raises a
--                  WARNING, and less than a minute is refused unless it is
--                  zero.
--   time_budget    time after which no more requests are started; those in
--                  flight are awaited.  NULL means no limit.
--   max_profiles   maximum number of profiles to fetch, at least 1; NULL means
--                  no limit
--   batch_size     maximum number of profiles written at once, from 1 to 10000
--   max_attempts   number of runs that fail to fetch a profile until its state
--                  is 'failed', from 1 to 1000
--   profiles       table of the profiles' states, if its name is not that of
--                  the store with "_profile", as for a shard
--
-- A refusal that concerns all profiles, an unreachable API, and vectors of
-- another dimension than those of the store end the run with a WARNING.  If a
-- scheduler has called the procedure, they end it with an error that has the
-- SQLSTATE of the condition, after what was fetched and the run's row in
-- NAME_run have been committed.
--
-- Endpoint: GET /profile/embedding ("Get Profile Embedding") or GET
-- /job/embedding ("Get Job Embedding"), and the links
-- Cost: one request for each profile that is due or for which a section was
-- never requested, one for each section if one of a profile's sections has no
-- vector, and one more for each retry
-- Requires: ownership of the store, even for superusers (use SET ROLE)
-- Errors: store errors, and
--   0A000  the store has rows on other servers
--   22023  invalid argument or setting
--   25006  a subscription of logical replication fills the store
--   2D000  called in a transaction block, in a function, or after another
--          statement in one string
--   55000  no API key is configured, or the store's tables cannot hold the
--          vectors
--   and the SQLSTATE of the condition that ended the run, if a scheduler has
--   called the procedure
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
'fetch the vectors that are due in a store';

REVOKE ALL ON PROCEDURE hrflow_refresh(regclass, jsonb, interval, interval, bigint, int, int, regclass) FROM PUBLIC;

-- Returns the expected cost of refreshing a store: in the first row for the
-- profiles that are due now, and in one row for each following period of 24
-- hours for those that will be due in it.
--
--   store      table of vectors
--   fields     sections to request, a JSON object; see hrflow_refresh()
--   max_age    time after which a refreshed profile is due again
--   days       number of periods, from 0 to 366
--
--   day        number of the period; 0 means now
--   until      end of the period
--   profiles   number of profiles that are due.  Each refresh is assumed to
--              succeed, so that the profile is due again after max_age.
--              Profiles for which a section of "fields" was never requested are
--              due now.
--   requests   minimum number of requests to the API; those for each section of
--              a profile that lacks vectors of one are included
--   duration   time that the requests take with max_concurrency requests in
--              flight, but at most 32, within the known rate, and at the
--              latency of the store's last runs, or 200 ms per request if there
--              were none
--
-- Requires: SELECT on NAME and NAME_profile, and that no row-level security
-- applies to the caller
-- Errors: store errors, and
--   22023  invalid argument
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
'cost of refreshing a store, now and on each day';

REVOKE ALL ON FUNCTION hrflow_refresh_estimate(regclass, jsonb, interval, int) FROM PUBLIC;

-- Creates the pg_cron job that refreshes a store, or changes it if it exists.
-- Returns the id of the job.  Also removes the caller's jobs for stores of this
-- database that have been dropped or renamed.
--
--   store      table of vectors
--   schedule   schedule that pg_cron accepts, except a single number; each run
--              ends shortly before the next one starts
--   fields     sections to request, a JSON object; see hrflow_refresh()
--   max_age    time after which a refreshed profile is due again
--
-- A WARNING is raised if the owner may not log in, because the job would fail.
--
-- Cost: none immediately; that of hrflow_refresh() for each run
-- Requires: ownership of the store, even for superusers (use SET ROLE)
-- Errors: store errors, those of pg_cron, and
--   0A000  the store has rows on other servers
--   22023  invalid argument
--   25006  a subscription of logical replication fills the store
--   55000  the store's tables cannot hold the vectors, or pg_cron is not
--          installed in this database; HINT has the statement to run in the
--          database that has it
CREATE FUNCTION hrflow_schedule(
	store regclass,
	schedule text DEFAULT '* * * * *',
	fields jsonb DEFAULT '{"profile": 1}',
	max_age interval DEFAULT '30 days')
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_schedule(regclass, text, jsonb, interval) IS
'create or change the pg_cron job that refreshes a store';

REVOKE ALL ON FUNCTION hrflow_schedule(regclass, text, jsonb, interval) FROM PUBLIC;

-- Removes the pg_cron job that refreshes a store, and the caller's jobs for
-- stores of this database that have been dropped or renamed.  Returns whether a
-- job was removed.
--
--   store    table of vectors
--
-- Requires: ownership of the store, even for superusers (use SET ROLE)
-- Errors: store errors, those of pg_cron, and
--   55000  pg_cron is not installed in this database; HINT has the statement to
--          run in the database that has it
CREATE FUNCTION hrflow_unschedule(store regclass)
RETURNS boolean
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_unschedule(regclass) IS
'remove the pg_cron job that refreshes a store';

REVOKE ALL ON FUNCTION hrflow_unschedule(regclass) FROM PUBLIC;

-- Returns the state of a store, in one row.
--
--   store                  table of vectors
--
--   tracked                number of profiles
--   due                    profiles that can be claimed now, in any state
--   leased                 profiles that are being fetched, or whose session
--                          was lost while it fetched them, in any state
--   ok, failed, missing, gone
--                          profiles by state: fetched; failed in max_attempts
--                          runs; unknown to the API or without any vector;
--                          missing for days
--   oldest_due             when the first of the due profiles became due
--   refreshed_last_minute  profiles refreshed in the last minute
--   refreshed_last_hour    profiles refreshed in the last hour
--   requests_due           minimum number of requests for the due profiles
--   time_due               duration of these requests at the rate of the last
--                          minute
--   last_error             error of the profile that failed last
--   last_run               when the last run of hrflow_refresh() started,
--                          according to NAME_run
--   last_run_status        its status: 'running', 'succeeded', 'failed', or
--                          'killed' if its session ended before the run
--   erased_last_day        profiles that lost vectors within 24 hours because
--                          the API no longer had them, or because no table was
--                          found to want them
--   last_run_error         error of the last run, or why it was stopped
--   last_job_status        status that pg_cron has recorded for the last run of
--                          the job of hrflow_schedule(), if the owner may read
--                          pg_cron's tables
--   put_aside              profiles whose vectors are put aside
--
-- Profiles that wait to be retried are counted as tracked, and in no other
-- column: their state in NAME_profile is 'due', but their due_at is in the
-- future.
--
-- Requires: SELECT on NAME and NAME_profile, and that no row-level security
-- applies to the caller
-- Errors: store errors
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
'number of profiles of a store that are due, fetched, failed, missing or gone, and its last run';

REVOKE ALL ON FUNCTION hrflow_store_status(regclass) FROM PUBLIC;

-- Returns the profiles of a store that are 'failed' (in max_attempts runs),
-- 'missing' (the API did not know them, or had no vector, when it was last
-- asked) or 'gone' (missing for days).
--
--   store          table of vectors
--
--   source_id      identifier of the source that contains the profile
--   profile_id     identifier of the profile, of the kind that the store uses:
--                  id, reference or e-mail address
--   state          'failed', 'missing' or 'gone'
--   attempts       failed attempts since the last success
--   http_status    HTTP status of the last reply
--   last_error     error of the last attempt
--   refreshed_at   when the profile was last fetched; NULL if it never was
--
-- Requires: SELECT on NAME and NAME_profile, and that no row-level security
-- applies to the caller
-- Errors: store errors
CREATE FUNCTION hrflow_store_failures(store regclass)
RETURNS TABLE (source_id text, profile_id text, state text, attempts int,
	http_status int, last_error text, refreshed_at timestamptz)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
ROWS 100;

COMMENT ON FUNCTION hrflow_store_failures(regclass) IS
'failed, missing or gone profiles of a store';

REVOKE ALL ON FUNCTION hrflow_store_failures(regclass) FROM PUBLIC;

-- Returns the profiles that have vectors in a store but are not tracked: rows
-- that the owner wrote, or that something outside of the extension left.  A
-- refresh does not change them, and the deletion of a candidate does not erase
-- them, but hrflow_untrack() does.
--
--   store        table of vectors
--
--   source_id    identifier of the source that contains the profile
--   profile_id   identifier of the profile, of the kind that the store uses
--   vectors      number of its vectors
--
-- Requires: SELECT on NAME and NAME_profile, and that no row-level security
-- applies to the caller
-- Errors: store errors
CREATE FUNCTION hrflow_store_orphans(store regclass)
RETURNS TABLE (source_id text, profile_id text, vectors bigint)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
ROWS 100;

COMMENT ON FUNCTION hrflow_store_orphans(regclass) IS
'profiles that have vectors in a store but are not tracked';

REVOKE ALL ON FUNCTION hrflow_store_orphans(regclass) FROM PUBLIC;

-- Returns the fingerprint under which NAME_erased records that a profile was
-- erased: sha256(sha256(source_id) || sha256(profile_id)), of the texts in the
-- encoding of the database.  Anyone who can read the record and guess an
-- identifier, such as an e-mail address, can tell whether it was erased.
--
--   source_id    identifier of the source that contained the profile
--   profile_id   identifier of the profile, of the kind that the store uses
--
-- STABLE rather than IMMUTABLE, because convert_to() is.
CREATE FUNCTION hrflow_fingerprint(source_id text, profile_id text)
RETURNS bytea
LANGUAGE SQL STABLE STRICT PARALLEL SAFE
RETURN sha256(sha256(convert_to(source_id, getdatabaseencoding()))
	|| sha256(convert_to(profile_id, getdatabaseencoding())));

COMMENT ON FUNCTION hrflow_fingerprint(text, text) IS
'fingerprint of a profile in the record of erased profiles';

-- Restores vectors that were put aside.  Vectors that were fetched since then
-- are not changed.  Returns the number of profiles.
--
--   store         table of vectors
--   source_id     source whose profiles are restored; NULL means any
--   profile_ids   identifiers of the profiles that are restored; NULL means all
--
-- A profile that was gone is due again.  One that nothing wants is put aside
-- again by the next hrflow_track_table() for a table that feeds the store,
-- unless a row wants it by then.
--
-- Cost: none immediately; one request in the next refresh for each profile that
-- was gone
-- Requires: SELECT, INSERT, UPDATE and DELETE on NAME and NAME_profile, and
-- that no row-level security applies to the caller
-- Errors: store errors, those of the table of vectors, such as 22000 if its
-- dimension has been changed, and
--   0A000  the store has rows on other servers
--   22023  store is NULL
CREATE FUNCTION hrflow_restore(
	store regclass,
	source_id text DEFAULT NULL,
	profile_ids text[] DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_restore(regclass, text, text[]) IS
'restore vectors of a store that were put aside';

REVOKE ALL ON FUNCTION hrflow_restore(regclass, text, text[]) FROM PUBLIC;

-- Makes all failed or gone profiles of a store due again.  Returns the number of
-- such profiles.
--
--   store    table of vectors
--
-- Cost: none immediately; one request for each profile in the next refresh
-- Requires: SELECT, INSERT, UPDATE and DELETE on NAME and NAME_profile, and
-- that no row-level security applies to the caller
-- Errors: store errors, and
--   0A000  the store has rows on other servers
CREATE FUNCTION hrflow_retry(store regclass)
RETURNS bigint
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION hrflow_retry(regclass) IS
'make failed or gone profiles of a store due';

REVOKE ALL ON FUNCTION hrflow_retry(regclass) FROM PUBLIC;

--
-- Ranking
--
-- These functions read only the table of vectors, with the snapshot of the
-- calling statement.  They execute as the owner of the store, except that a
-- caller to whom row-level security applies gets the rows that the policies
-- show to them; the policies are then evaluated as in a query of the caller.
--

-- Returns the cosine similarity of a stored vector with a query, computed in
-- double precision.  Returns NULL if they have none: if the dimensions differ,
-- or one of the two has only zeros, infinity or NaN, nulls, or two dimensions.
--
--   vector   real[], or pgvector's vector or halfvec
--   query    vector to compare it with
--
-- Errors:
--   42804  vector has another type
CREATE FUNCTION hrflow_vector_similarity(vector "any", query real[])
RETURNS double precision
AS 'MODULE_PATHNAME'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
COST 20;

COMMENT ON FUNCTION hrflow_vector_similarity("any", real[]) IS
'cosine similarity of a stored vector with a query, or NULL';

-- Returns the profiles of a store that are most similar to a vector by cosine
-- similarity, best first.
--
--   store        table of vectors
--   query        vector such as hrflow_job_vector() or hrflow_text_embedding()
--                returns
--   k            maximum number of rows, from 1 to 10000; each profile has one
--                row, with its best item of the section
--   section      section of the profiles
--   profiles     identifiers of the profiles to rank, such as ARRAY(SELECT
--                hrflow_id FROM candidate WHERE city = 'Paris'); nulls in the
--                array are ignored.  NULL, which array_agg() returns for no
--                rows, means all profiles.
--   source_id    source of the profiles to rank; NULL means any source
--
--   source_id, profile_id
--                source and identifier of the profile, of the kind that the
--                store uses: id, reference or e-mail address
--   section      the section, as passed; 'job' in a store of jobs
--   item         index of the most similar vector within the section, from 0
--   similarity   cosine similarity, from -1 to 1
--
-- If pgvector has an index for the section, as created by the statement that
-- hrflow_index_statement() returns, it is searched, and the result is as
-- approximate as the index.  All vectors are compared if there is no index, if
-- few profiles are to be ranked, or if the index returns fewer than k profiles
-- although there are more; then a NOTICE recommends VACUUM if dead rows may be
-- the reason.
--
-- Vectors of another dimension than the query are ignored, with a WARNING if
-- all are; so are vectors of zeros, arrays of two dimensions and arrays with
-- nulls.  A WARNING also reports a section that no vector has.  Returns no rows
-- if an argument other than "profiles" and "source_id" is NULL.
--
-- Requires: SELECT on the table of vectors
-- Errors: store errors, and
--   22023  k is out of range, or query has several dimensions, nulls, infinity
--          or NaN, or only zeros
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

-- Returns the profiles of a store that are most similar to a vector in several
-- sections, best first.  The similarity of a profile is the weighted sum of the
-- cosine similarities of its best item of each section; a section that the
-- profile lacks contributes nothing.
--
--   store        table of vectors
--   query        vector such as hrflow_job_vector() or hrflow_text_embedding()
--                returns
--   weights      weight of each section, a JSON object such as
--                {"profile": 0.6, "skills": 0.3, "experiences": 0.1}
--   k            maximum number of rows, from 1 to 10000; each profile has one
--                row
--   profiles     identifiers of the profiles to rank; NULL means all
--   source_id    source of the profiles to rank; NULL means any source
--
--   source_id, profile_id
--                source and identifier of the profile, of the kind that the
--                store uses
--   section, item
--                the vector that contributes most
--   similarity   weighted sum
--   parts        contribution of each section, such as {"profile": 0.55,
--                "skills": 0.21}, without sections that the profile lacks
--
-- If every section has an index, only the 10 * k best profiles of each section,
-- at most 10000, are candidates.  Returns no rows if an argument other than
-- "profiles" and "source_id" is NULL.
--
-- Requires: SELECT on the table of vectors
-- Errors: store errors, and
--   22023  k is out of range; query has several dimensions, nulls, infinity or
--          NaN, or only zeros; or weights is not an object, is empty, or has a
--          value that is not a number greater than zero
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
'profiles of a store that are most similar to a vector, by several sections';

REVOKE ALL ON FUNCTION hrflow_match_weighted(regclass, real[], jsonb, int, text[], text) FROM PUBLIC;

-- Returns, for every vector of a section of a store, the profiles of another
-- store that are most similar to it, such as the best candidates of every open
-- job.
--
--   store           table of the vectors that are compared, each by itself
--   others          table of vectors of the store whose profiles are ranked; if
--                   it is the same store, no profile is compared with itself
--   k               maximum number of rows for each vector, from 1 to 1000;
--                   each profile has one row, with its best item of the section
--   section         section of the vectors of "store"
--   other_section   section of the profiles of "others"
--
--   source_id, profile_id, item
--                   the vector of "store"
--   other_source_id, other_profile_id, other_item
--                   the profile of "others", and its most similar item
--   similarity      cosine similarity, from -1 to 1
--
-- The rows of a vector are adjacent, best first.  All vectors are compared, in
-- blocks of up to 40 MB, and "others" is read once for each block.  Neither an
-- index nor parallel workers are used.  A vector is compared only with those of
-- its own dimension.
--
-- Requires: SELECT on both tables of vectors
-- Errors: store errors, and
--   22023  k is out of range
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
'for all vectors of a store, the most similar profiles of another store';

REVOKE ALL ON FUNCTION hrflow_match_all(regclass, regclass, int, text, text) FROM PUBLIC;

-- Returns the recall of hrflow_match() for a section that has an index: the
-- average fraction of the k most similar profiles that it returns, from 0 to 1,
-- for a random sample of the section's vectors.  Returns NULL if the section
-- has no vectors, or if an argument other than "profiles" and "source_id" is
-- NULL.
--
--   store        table of vectors
--   section      section of the profiles
--   sample       number of vectors, from 1 to 10000; each is compared with
--                every vector of the section that is searched
--   k            number of rows, from 1 to 10000
--   profiles     identifiers of the profiles to search; NULL means all
--   source_id    source of the profiles to search; NULL means any source
--
-- The result is 1 if hrflow_match() compares all vectors, and is therefore
-- exact: if few profiles are to be searched, or if the index returns fewer than
-- k profiles although there are more.
--
-- Requires: SELECT on the table of vectors
-- Errors: store errors, and
--   22023  k or sample is out of range
--   55000  the section has no index
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

-- Returns the statement that creates pgvector's HNSW index for a section.
-- Execute it by itself, in psql with \gexec.  The dimension of the index is
-- that of a vector of the section.  Up to 2000 dimensions are indexed as
-- vector, or as halfvec if the store has that type, and up to 4000 as halfvec.
--
--   store      table of vectors
--   section    section to index
--
-- Requires: SELECT on the table of vectors
-- Errors: store errors, and
--   54000  the vectors have more than 4000 dimensions
--   55000  pgvector is not installed, or the section has no vectors
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

-- Returns the rows of the view hrflow_embed_activity.  VOLATILE because they
-- change at any time, and PARALLEL RESTRICTED because a NOTICE is raised once
-- in a session.
CREATE FUNCTION hrflow_embed_activity(
	OUT pid int,
	OUT role name,
	OUT function text,
	OUT store text,
	OUT started_at timestamptz,
	OUT elements_total bigint,
	OUT elements_done bigint,
	OUT ok bigint,
	OUT failed bigint,
	OUT requests bigint,
	OUT retries bigint,
	OUT in_flight int,
	OUT waiting_for text,
	OUT resumes_at timestamptz,
	OUT eta timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL RESTRICTED
ROWS 10;

COMMENT ON FUNCTION hrflow_embed_activity() IS
'rows of the view hrflow_embed_activity';

-- Progress of functions that send requests: one row for each backend of the
-- server, of whatever database, that is executing one.  If such functions are
-- nested, the row shows the one that began last, for which the others are
-- waiting.  A cursor has no row while no FETCH is running.
--
--   pid              process ID of the backend, as in pg_stat_activity
--   role             role that the client has set
--   function         name of the function; if the calls of several functions
--                    are read ahead, one of them
--   store            store that is being refreshed
--   started_at       when the function was called, or when the first of the
--                    calls that are read ahead was sent
--   elements_total   number of elements of a batch, or of profiles that were
--                    due when a refresh began; NULL if it is unknown, as for
--                    calls that are read ahead and for a refresh that reports
--                    no progress to a client
--   elements_done    number of these, or of calls, that are complete, at most a
--                    second ago
--   ok               complete elements whose results are all "ok"
--   failed           other complete elements
--   requests         requests to the API and for links, retries included
--   retries          retries among these requests
--   in_flight        requests in flight
--   waiting_for      'network'; 'rate': a turn within the rate of the account,
--                    or the end of a pause that the API has requested; 'retry':
--                    the time of a retry; 'memory': memory for replies; 'lock':
--                    rows of the store that other sessions have locked; NULL
--                    while it is working
--   resumes_at       when the wait for 'rate' or 'retry' ends
--   eta              when all elements will be complete, at the average speed
--                    so far
--
-- A role that has neither the privileges of the row's role nor those of
-- pg_read_all_stats sees pid and role, and NULL in all other columns.
--
-- On PostgreSQL 15 and 16 this requires hrflow_embed in
-- shared_preload_libraries.  Otherwise there are no rows, and a NOTICE says so
-- once in a session.
CREATE VIEW hrflow_embed_activity AS
	SELECT * FROM @extschema@.hrflow_embed_activity();

COMMENT ON VIEW hrflow_embed_activity IS
'progress of functions that send requests, one row for each backend';

GRANT SELECT ON hrflow_embed_activity TO PUBLIC;

--
-- Statistics
--

-- Returns the row of the view hrflow_embed_stats.  VOLATILE because the
-- counters change at any time, and PARALLEL RESTRICTED because they may be
-- those of the backend alone.
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

-- Statistics since reset_at, in one row.  A backend adds the counts of a
-- statement once a second, and when the statement ends.
--
--   scope               'server' if all backends are counted, on PostgreSQL 17
--                       and later or with hrflow_embed in
--                       shared_preload_libraries; 'session' otherwise
--   calls               calls of functions that use the network
--   requests            requests sent, retries included
--   retries             retries among these requests
--   rate_limits         replies with HTTP status 429
--   bytes_received      bytes of bodies, before decompression
--   wait_seconds        time that backends waited for the network, for a turn
--                       within max_requests_per_minute, or for a retry
--   connections_opened  connections opened
--   connections_reused  requests sent on a connection that was open
--   rows_by_status      rows of batches, such as {"ok": 990, "not_found": 10}
--   reset_at            when the counters were set to zero
--   api_requests        requests to the API, which may be billed
--   link_requests       requests for links, which are not billed
--
-- Only roles that have the privileges of pg_read_all_stats may read it, because
-- it counts what all roles do.
CREATE VIEW hrflow_embed_stats AS
	SELECT * FROM @extschema@.hrflow_embed_stats();

COMMENT ON VIEW hrflow_embed_stats IS
'statistics of hrflow_embed since they were reset';

GRANT SELECT ON hrflow_embed_stats TO pg_read_all_stats;

-- Sets the counters of hrflow_embed_stats to zero, and reset_at to the current
-- time.
CREATE FUNCTION hrflow_embed_stats_reset()
RETURNS void
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION hrflow_embed_stats_reset() IS
'reset the statistics of hrflow_embed_stats';

REVOKE ALL ON FUNCTION hrflow_embed_stats_reset() FROM PUBLIC;

-- Returns the rows of the view hrflow_embed_usage.  VOLATILE because they
-- change at any time, and PARALLEL RESTRICTED because it first adds the counts
-- of the backend that calls it, and a NOTICE is raised once in a session.
CREATE FUNCTION hrflow_embed_usage(
	OUT day date,
	OUT role name,
	OUT function text,
	OUT api_requests bigint,
	OUT link_requests bigint)
RETURNS SETOF record
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;

COMMENT ON FUNCTION hrflow_embed_usage() IS
'rows of the view hrflow_embed_usage';

-- Number of requests of the whole server by day, role and function, for
-- comparison with the bill.  A backend adds the counts of a statement once a
-- second, and when the statement ends.
--
--   day             day in UTC
--   role            role that the client had set; NULL if it has been dropped
--   function        name of the function
--   api_requests    requests to the API, retries included
--   link_requests   requests for links, which are not billed
--
-- A role sees its own rows and those of roles whose privileges it has, or all
-- rows if it has the privileges of pg_read_all_stats.
--
-- The latest 4096 rows are kept.  hrflow_embed_stats_reset() does not change
-- them.  They survive a restart if hrflow_embed is in shared_preload_libraries,
-- but not a crash of the server.  On PostgreSQL 15 and 16 nothing is counted
-- without shared_preload_libraries, and a NOTICE says so once in a session.
CREATE VIEW hrflow_embed_usage AS
	SELECT * FROM @extschema@.hrflow_embed_usage();

COMMENT ON VIEW hrflow_embed_usage IS
'number of requests by day, role and function';

GRANT SELECT ON hrflow_embed_usage TO PUBLIC;
