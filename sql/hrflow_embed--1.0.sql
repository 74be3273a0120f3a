/* sql/hrflow_embed--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION hrflow_embed" to load this file. \quit

--
-- One profile
--

-- The "data" object of GET /profile/embedding: for every section asked for, a
-- link to its vector, or a list of links.
--
--   source_id          the source the profile is in
--   profile_id         \
--   profile_reference   > which profile: at least one; those given are sent
--   profile_email      /  together
--   fields             the sections, such as
--                      {"profile": 1, "skills": 1, "experiences": [0, 2]};
--                      any JSON object is passed on as it is; NULL and {} are
--                      left out, and the API decides
--
-- Returns NULL, without a request, when source_id or all three identifiers
-- are NULL.  A link grants whoever has it a person's data, for 20 minutes.
--
-- Cost: one request, and one more for every further try.
-- Errors: 22023 invalid argument, setting, source or request; P0002 no such
-- profile, or no vector for a section; 55000 no API key; 28000 API key
-- refused; 53400 over quota or rate; 08001, 08006 network; 08P01 invalid
-- reply; 54000 reply too large; 58000 error of the API.
-- Source: https://developers.hrflow.ai, "Get Profile Embedding".
CREATE FUNCTION hrflow_profile_embedding(
	source_id text,
	profile_id text DEFAULT NULL,
	fields jsonb DEFAULT NULL,
	profile_reference text DEFAULT NULL,
	profile_email text DEFAULT NULL)
RETURNS jsonb
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
COST 100000;

COMMENT ON FUNCTION hrflow_profile_embedding(text, text, jsonb, text, text) IS
'links to a profile''s embeddings, as the HrFlow API answers; one request';

REVOKE ALL ON FUNCTION hrflow_profile_embedding(text, text, jsonb, text, text) FROM PUBLIC;

-- The same, a row for every link.
--
--   section   such as 'profile', 'skills', 'experiences'
--   item      counts from 0 within the section, as the API does; 0 where the
--             section has one vector
--   link      URL of the vector, valid for 20 minutes
--
-- No rows, without a request, where the above returns NULL.
CREATE FUNCTION hrflow_profile_embedding_links(
	source_id text,
	profile_id text DEFAULT NULL,
	fields jsonb DEFAULT NULL,
	profile_reference text DEFAULT NULL,
	profile_email text DEFAULT NULL)
RETURNS TABLE (section text, item int, link text)
AS 'MODULE_PATHNAME'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED
COST 100000 ROWS 5;

COMMENT ON FUNCTION hrflow_profile_embedding_links(text, text, jsonb, text, text) IS
'links to a profile''s embeddings, a row each; one request';

REVOKE ALL ON FUNCTION hrflow_profile_embedding_links(text, text, jsonb, text, text) FROM PUBLIC;
