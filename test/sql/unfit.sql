-- hrflow_refresh() and hrflow_schedule() refuse a store whose tables cannot store
-- vectors, before any request is paid for
CREATE EXTENSION hrflow_embed;
SET application_name = 'pg_cron'; -- omit progress reports, which contain times
SET hrflow_embed.link_hosts = '127.0.0.1';
CREATE ROLE regress_hrflow_unfit;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO regress_hrflow_unfit;
GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA public TO regress_hrflow_unfit;
CREATE SCHEMA unfit AUTHORIZATION regress_hrflow_unfit;
CREATE FOREIGN DATA WRAPPER regress_hrflow_wrapper;
CREATE SERVER regress_hrflow_server FOREIGN DATA WRAPPER regress_hrflow_wrapper;
GRANT USAGE ON FOREIGN SERVER regress_hrflow_server TO regress_hrflow_unfit;
SET ROLE regress_hrflow_unfit;
SELECT hrflow_create_store('unfit.store', 'real[]');
SELECT hrflow_track('unfit.store', 'acme', '{cook-1,cook-2}');
RESET ROLE;
SELECT hrflow_embed_stats_reset();
SET ROLE regress_hrflow_unfit;

-- No primary key
ALTER TABLE unfit.store DROP CONSTRAINT store_pkey;
CALL hrflow_refresh('unfit.store'); -- error
SELECT hrflow_schedule('unfit.store'); -- error

-- A key that is deferrable, or has other columns
ALTER TABLE unfit.store ADD PRIMARY KEY (source_id, profile_id, section, item) DEFERRABLE;
CALL hrflow_refresh('unfit.store'); -- error
ALTER TABLE unfit.store DROP CONSTRAINT store_pkey, ADD PRIMARY KEY (source_id, profile_id, section);
CALL hrflow_refresh('unfit.store'); -- error
ALTER TABLE unfit.store DROP CONSTRAINT store_pkey,
	ADD PRIMARY KEY (source_id, profile_id, section, fetched_at);
CALL hrflow_refresh('unfit.store'); -- error
ALTER TABLE unfit.store DROP CONSTRAINT store_pkey, ADD PRIMARY KEY (profile_id, source_id, section, item);

-- A column without a default, and one that cannot be written
ALTER TABLE unfit.store ADD COLUMN batch int NOT NULL;
CALL hrflow_refresh('unfit.store'); -- error
ALTER TABLE unfit.store ALTER COLUMN batch SET DEFAULT 0;
ALTER TABLE unfit.store_profile DROP COLUMN attempts, ADD COLUMN attempts int GENERATED ALWAYS AS (0) STORED;
CALL hrflow_refresh('unfit.store'); -- error
ALTER TABLE unfit.store_profile DROP COLUMN attempts, ADD COLUMN attempts int NOT NULL DEFAULT 0;

-- A deferred constraint on either table
ALTER TABLE unfit.store ADD CONSTRAINT tracked FOREIGN KEY (source_id, profile_id) REFERENCES unfit.store_profile
	DEFERRABLE INITIALLY DEFERRED;
CALL hrflow_refresh('unfit.store'); -- error
SELECT hrflow_schedule('unfit.store'); -- error
ALTER TABLE unfit.store DROP CONSTRAINT tracked;
ALTER TABLE unfit.store_profile ADD CONSTRAINT due_once UNIQUE (due_at, profile_id) DEFERRABLE INITIALLY DEFERRED;
CALL hrflow_refresh('unfit.store'); -- error
ALTER TABLE unfit.store_profile DROP CONSTRAINT due_once;

-- Lack of privileges
REVOKE INSERT ON unfit.store FROM regress_hrflow_unfit;
CALL hrflow_refresh('unfit.store'); -- error
GRANT INSERT ON unfit.store TO regress_hrflow_unfit;
REVOKE DELETE ON unfit.store FROM regress_hrflow_unfit;
CALL hrflow_refresh('unfit.store'); -- error
GRANT DELETE ON unfit.store TO regress_hrflow_unfit;
REVOKE UPDATE ON unfit.store_profile FROM regress_hrflow_unfit;
CALL hrflow_refresh('unfit.store'); -- error
GRANT UPDATE ON unfit.store_profile TO regress_hrflow_unfit;

-- A partition that is a foreign table
CREATE TABLE unfit.parts (LIKE unfit.store) PARTITION BY HASH (profile_id);
CREATE TABLE unfit.part_0 PARTITION OF unfit.parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE FOREIGN TABLE unfit.part_1 PARTITION OF unfit.parts FOR VALUES WITH (MODULUS 2, REMAINDER 1)
	SERVER regress_hrflow_server;
CALL hrflow_refresh('unfit.parts', profiles => 'unfit.store_profile'); -- error
DROP TABLE unfit.parts;

-- No request was sent so far, but now all profiles are requested
RESET ROLE;
SELECT requests FROM hrflow_embed_stats;
SET ROLE regress_hrflow_unfit;
SELECT state, attempts, lease_until, count(*) FROM unfit.store_profile GROUP BY 1, 2, 3;
CALL hrflow_refresh('unfit.store');
SELECT state, attempts, count(*) FROM unfit.store_profile GROUP BY 1, 2;
SELECT profile_id, section FROM unfit.store ORDER BY 1;

RESET ROLE;
DROP SERVER regress_hrflow_server;
DROP FOREIGN DATA WRAPPER regress_hrflow_wrapper;
DROP SCHEMA unfit CASCADE;
DROP EXTENSION hrflow_embed;
DROP ROLE regress_hrflow_unfit;
