-- Forecasts of the cost of refreshing a store, and warnings about arguments that
-- would probably cost more than intended
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION hrflow_embed;
SET application_name = 'pg_cron'; -- omit progress reports, which contain times
SET hrflow_embed.link_hosts = '127.0.0.1';
SET hrflow_embed.max_attempts = 1;
CREATE SCHEMA talent;
SELECT hrflow_create_store('talent.embedding', 'real[]');

-- No profile is due
SELECT day, until - now() > '-1 second' AND until - now() < '1 minute' AS now, profiles, requests, duration FROM hrflow_refresh_estimate('talent.embedding', days => 0);
SELECT count(*), sum(profiles), sum(requests) FROM hrflow_refresh_estimate('talent.embedding');

-- New profiles take a request each, and are due again after max_age
SELECT hrflow_track('talent.embedding', 'acme', (SELECT array_agg('nurse-' || i) FROM generate_series(1, 64) i));
SELECT day, profiles, requests, duration FROM hrflow_refresh_estimate('talent.embedding') WHERE profiles > 0;
SELECT day, profiles, requests FROM hrflow_refresh_estimate('talent.embedding', max_age => '10 days') WHERE profiles > 0;
SELECT day, profiles FROM hrflow_refresh_estimate('talent.embedding', max_age => '12 hours', days => 3);

-- The duration depends on the configured rate and concurrency, and on the speed of
-- the latest runs
SET hrflow_embed.max_concurrency = 4;
SELECT duration FROM hrflow_refresh_estimate('talent.embedding', days => 0);
SET hrflow_embed.max_requests_per_minute = 60;
SELECT duration FROM hrflow_refresh_estimate('talent.embedding', days => 0);
RESET hrflow_embed.max_requests_per_minute;
RESET hrflow_embed.max_concurrency;
INSERT INTO talent.embedding_run (started_at, ended_at, pid, stop_reason, requests)
VALUES ('2026-01-01', '2026-01-01 00:00:10', 1, 'done', 320), ('2026-01-02', '2026-01-02 00:10', 1, 'outage', 1), ('2026-01-03', '2026-01-04', 1, 'done', 0);
SELECT duration FROM hrflow_refresh_estimate('talent.embedding', days => 0);

-- A profile that lacks a section takes one more request for each section.  Profiles
-- that were never refreshed are assumed to lack sections as often as the others.
UPDATE talent.embedding_profile SET state = 'ok', refreshed_at = now() WHERE profile_id <= 'nurse-2';
INSERT INTO talent.embedding SELECT source_id, profile_id, s, 0, '{1}' FROM talent.embedding_profile, unnest('{profile,skills}'::text[]) s
WHERE refreshed_at IS NOT NULL AND NOT (s = 'skills' AND profile_id IN ('nurse-1', 'nurse-10', 'nurse-11'));
SELECT count(*), count(refreshed_at) FROM talent.embedding_profile;
SELECT profiles, requests FROM hrflow_refresh_estimate('talent.embedding', '{"profile": 1}', days => 0);
SELECT profiles, requests FROM hrflow_refresh_estimate('talent.embedding', '{"profile": 1, "skills": 1}', days => 0);
SELECT profiles, requests FROM hrflow_refresh_estimate('talent.embedding', NULL, days => 0);

-- The next run sends as many requests as forecast
SELECT hrflow_untrack('talent.embedding', 'acme', (SELECT array_agg(profile_id) FROM talent.embedding_profile));
SELECT hrflow_track('talent.embedding', 'acme', '{cook-1,cook-2,novector-cook}');
CALL hrflow_refresh('talent.embedding', '{"profile": 1, "skills": 1}');
UPDATE talent.embedding_profile SET due_at = now();
SELECT profiles, requests FROM hrflow_refresh_estimate('talent.embedding', '{"profile": 1, "skills": 1}', days => 0);
CALL hrflow_refresh('talent.embedding', '{"profile": 1, "skills": 1}');
SELECT requests FROM talent.embedding_run ORDER BY run DESC LIMIT 1;

-- The forecast by day, without profiles that are leased or never due
UPDATE talent.embedding_profile SET due_at = now() + interval '36 hours' WHERE profile_id = 'cook-1';
UPDATE talent.embedding_profile SET lease_until = now() + interval '1 hour' WHERE profile_id = 'cook-2';
UPDATE talent.embedding_profile SET due_at = NULL WHERE profile_id = 'novector-cook';
SELECT day, profiles FROM hrflow_refresh_estimate('talent.embedding', days => 7) WHERE profiles > 0;

-- Intervals without a unit
SELECT * FROM hrflow_refresh_estimate('talent.embedding', max_age => '30'); -- error
CALL hrflow_refresh('talent.embedding', max_age => '30'); -- error
SELECT hrflow_schedule('talent.embedding', max_age => '30'); -- error
CALL hrflow_refresh('talent.embedding', max_age => '90'); -- error
SELECT hrflow_schedule('talent.embedding', max_age => '365'); -- error
SELECT * FROM hrflow_refresh_estimate('talent.embedding', max_age => '3599'); -- error
SELECT profiles FROM hrflow_refresh_estimate('talent.embedding', max_age => '1 hour', days => 0);
SELECT hrflow_schedule('talent.embedding', '30'); -- error
SELECT hrflow_schedule('talent.embedding', ' 5 '); -- error

-- Unknown sections
SELECT profiles FROM hrflow_refresh_estimate('talent.embedding', '{"profil": 1, "skills": 1}', days => 0);
SELECT profiles FROM hrflow_refresh_estimate('talent.embedding', jsonb_build_object(repeat('profile', 20), 1), days => 0);
CALL hrflow_refresh('talent.embedding', '{"skils": 1}', max_profiles => 1);
SELECT hrflow_schedule('talent.embedding', fields => '{"experience": [0]}'); -- error
SELECT status FROM hrflow_profile_vectors('acme', '{cook-1}', '{"hobbies": 1}');
SELECT count(*) FROM hrflow_match('talent.embedding', '{1}', section => 'profil');
SELECT count(*) FROM hrflow_match('talent.embedding', '{1}', section => 'interests');
SELECT count(*) FROM hrflow_match_weighted('talent.embedding', '{1}', '{"profile": 1, "skil": 1}');
SELECT hrflow_create_store('talent.empty', 'real[]');
SELECT count(*) FROM hrflow_match('talent.empty', '{1}', section => 'profil');
SELECT count(*) FROM hrflow_match('talent.empty', '{1}', section => 'profile');

-- Other errors
SELECT hrflow_refresh_estimate(NULL); -- error
SELECT hrflow_refresh_estimate('talent.embedding', days => -1); -- error
SELECT hrflow_refresh_estimate('talent.embedding', days => NULL); -- error
SELECT hrflow_refresh_estimate('talent.embedding', '[]'); -- error
CREATE ROLE regress_hrflow_reader;
GRANT USAGE ON SCHEMA talent TO regress_hrflow_reader;
GRANT SELECT ON talent.embedding TO regress_hrflow_reader;
SET ROLE regress_hrflow_reader;
SELECT profiles FROM hrflow_refresh_estimate('talent.embedding', days => 0); -- error
RESET ROLE;
GRANT EXECUTE ON FUNCTION hrflow_refresh_estimate(regclass, jsonb, interval, int) TO regress_hrflow_reader;
SET ROLE regress_hrflow_reader;
SELECT profiles FROM hrflow_refresh_estimate('talent.embedding', days => 0); -- error
RESET ROLE;
GRANT SELECT ON talent.embedding_profile TO regress_hrflow_reader;
SET ROLE regress_hrflow_reader;
SELECT profiles FROM hrflow_refresh_estimate('talent.embedding', days => 0);
RESET ROLE;
SELECT hrflow_drop_store('talent.embedding'), hrflow_drop_store('talent.empty');
DROP SCHEMA talent;
DROP OWNED BY regress_hrflow_reader;
DROP ROLE regress_hrflow_reader;
DROP EXTENSION hrflow_embed;
