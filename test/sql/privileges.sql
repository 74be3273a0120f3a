--
-- Privileges
--
CREATE EXTENSION hrflow_embed;

-- EXECUTE is revoked from PUBLIC for all functions that use the network or change
-- anything.  List the functions for which it is not.
SELECT p.oid::regprocedure AS for_all
FROM pg_depend d JOIN pg_proc p ON d.objid = p.oid
WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'hrflow_embed')
  AND has_function_privilege('public', p.oid, 'EXECUTE')
ORDER BY p.proname;

-- Functions that use the network are volatile, and their cost is set
SELECT p.proname, p.provolatile, p.proparallel, p.proisstrict, p.prosecdef, p.procost, p.prorows
FROM pg_depend d JOIN pg_proc p ON d.objid = p.oid
WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'hrflow_embed')
ORDER BY p.proname;

-- Every function has a comment
SELECT p.oid::regprocedure AS without_comment
FROM pg_depend d JOIN pg_proc p ON d.objid = p.oid
WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
  AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'hrflow_embed')
  AND obj_description(p.oid, 'pg_proc') IS NULL;

CREATE ROLE regress_hrflow_plain;
CREATE ROLE regress_hrflow_reader;
GRANT EXECUTE ON FUNCTION hrflow_profile_embedding_links(text, text, jsonb, text, text) TO regress_hrflow_reader;

SET ROLE regress_hrflow_plain;
SELECT hrflow_profile_embedding('acme', 'nurse-1'); -- error
SELECT hrflow_profile_embedding_links('acme', 'nurse-1'); -- error
SELECT hrflow_profile_embeddings('acme', '{nurse-1}'); -- error
SELECT hrflow_job_embedding('nurse-job'); -- error
SELECT hrflow_job_vector('nurse-job'); -- error
SELECT hrflow_text_embedding('a nurse'); -- error
SELECT hrflow_text_embeddings('{a nurse}'); -- error
SELECT hrflow_document_embedding('job', '{"name": "nurse"}'); -- error
SELECT hrflow_document_embeddings('job', '{}'); -- error
SELECT hrflow_auth(); -- error
SELECT hrflow_embed_stats_reset(); -- error
SELECT count(*) FROM hrflow_embed_stats; -- error
SELECT * FROM hrflow_embed_stats(); -- error
RESET ROLE;
GRANT pg_read_all_stats TO regress_hrflow_plain;
SET ROLE regress_hrflow_plain;
SELECT count(*) FROM hrflow_embed_stats;
RESET ROLE;
REVOKE pg_read_all_stats FROM regress_hrflow_plain;

-- A reader can use the key, but can neither read it nor send it elsewhere
SET ROLE regress_hrflow_reader;
SELECT section FROM hrflow_profile_embedding_links('acme', 'nurse-1', '{"profile": 1}');
SHOW hrflow_embed.api_key;
\set VERBOSITY sqlstate
SHOW hrflow_embed.proxy; -- error
\set VERBOSITY default
SET hrflow_embed.api_key = 'x'; -- error
SET hrflow_embed.api_key_file = '/etc/passwd'; -- error
SET hrflow_embed.api_user = 'x'; -- error
SET hrflow_embed.base_url = 'https://attacker.example.com'; -- error
SET hrflow_embed.ca_file = '/etc/passwd'; -- error
SET hrflow_embed.proxy = 'http://attacker.example.com'; -- error
SET hrflow_embed.api_dialect = 'key'; -- error
SET hrflow_embed.max_response_size = '64MB'; -- error
SET hrflow_embed.max_requests_per_minute = 0; -- error
-- Settings that a reader may change
SET hrflow_embed.connect_timeout = '1s';
SET hrflow_embed.request_timeout = '10s';
SET hrflow_embed.batch_timeout = '10s';
SET hrflow_embed.max_attempts = 2;
SET hrflow_embed.max_concurrency = 4;

RESET ROLE;
DROP EXTENSION hrflow_embed;
DROP ROLE regress_hrflow_plain, regress_hrflow_reader;
