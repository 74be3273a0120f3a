--
-- The estimated cost of a batch: hrflow_estimate()
--
CREATE EXTENSION hrflow_embed;
SELECT hrflow_embed_stats_reset();

-- Distinct elements, requests and links.  As in a batch, equal elements count once,
-- and invalid elements send no request.
SELECT elements, requests, links
FROM hrflow_estimate('acme', '{a,a,b,NULL,NULL,""}', '{"profile": 1, "skills": 1}');
SELECT elements, requests, links
FROM hrflow_estimate('acme', '{a,a,NULL}', '{"profile": 1, "experiences": [0, 2, 3]}', '{b,c,NULL}');
SELECT elements, requests, links
FROM hrflow_estimate('acme', profile_emails => ARRAY(SELECT i || '@example.com' FROM generate_series(1, 1000) i));
SELECT elements, requests, links FROM hrflow_estimate('acme', '{a}', '{}');
SELECT elements, requests, links FROM hrflow_estimate(NULL, '{a,b}', '{"profile": 1}');
SELECT elements, requests, links, seconds FROM hrflow_estimate('acme', '{}', '{"profile": 1}');
SELECT elements, requests, links FROM hrflow_estimate('acme', (SELECT array_agg(x) FROM (VALUES ('a')) v (x) WHERE false), '{"profile": 1}');

-- Seconds with a rate limit.  The requests of one second are sent at once.
SET hrflow_embed.api_key = 'askr_estimate';
SET hrflow_embed.max_requests_per_minute = 120;
SELECT elements, requests, round(seconds::numeric, 1) AS seconds
FROM hrflow_estimate('acme', ARRAY(SELECT 'p' || i FROM generate_series(1, 122) i), '{"profile": 1}');
RESET hrflow_embed.max_requests_per_minute;

-- No request was sent
SELECT requests FROM hrflow_embed_stats;

-- Invalid arguments
SELECT * FROM hrflow_estimate('acme'); -- error
SELECT * FROM hrflow_estimate('acme', '{a,b}', NULL, '{a}'); -- error
SELECT * FROM hrflow_estimate('acme', '{a}', '[1]'); -- error
RESET hrflow_embed.api_key;

DROP EXTENSION hrflow_embed;
