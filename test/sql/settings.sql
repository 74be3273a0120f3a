--
-- Settings: who may set them, which values are rejected, and what is never shown
--
CREATE EXTENSION hrflow_embed;
LOAD 'hrflow_embed';

SELECT name, setting, unit, context, vartype, min_val, max_val, enumvals
FROM pg_settings
WHERE name LIKE 'hrflow\_embed.%' AND name <> 'hrflow_embed.base_url'
ORDER BY name;

-- Neither SHOW nor a view reveals the key
SET hrflow_embed.api_key = 'askr_ffffffffffffffffffffffffffffffff';
SHOW hrflow_embed.api_key;
SELECT current_setting('hrflow_embed.api_key');
SELECT count(*) FROM pg_settings WHERE name = 'hrflow_embed.api_key';
SET hrflow_embed.api_key = '';
SHOW hrflow_embed.api_key;
RESET hrflow_embed.api_key;

-- Messages do not repeat a rejected value
SET hrflow_embed.api_key = '********'; -- error
SET hrflow_embed.api_key = E'secret\r\nX-Injected: 1'; -- error
SET hrflow_embed.api_key = 'secret with spaces'; -- error
SET hrflow_embed.api_key = 'sécret'; -- error
\set long_key `printf 'secret%.0s' $(seq 100)`
SET hrflow_embed.api_key = :'long_key'; -- error
SET hrflow_embed.api_user = E'secret\nX: 1'; -- error
SET hrflow_embed.base_url = 'https://user:secret@api.example.com/v1'; -- error
SET hrflow_embed.base_url = 'http://api.example.com/v1'; -- error
SET hrflow_embed.base_url = 'ftp://api.example.com/v1'; -- error
SET hrflow_embed.base_url = 'api.example.com/v1'; -- error
SET hrflow_embed.base_url = 'https://api.example.com/v1?secret=1'; -- error
SET hrflow_embed.base_url = 'https://api.example.com/v1#secret'; -- error
SET hrflow_embed.base_url = 'https://api.example.com\@secret/v1'; -- error
SET hrflow_embed.base_url = 'https://api.example.com:99999/v1'; -- error
SET hrflow_embed.base_url = 'https:///v1'; -- error
SET hrflow_embed.base_url = ''; -- error
SET hrflow_embed.base_url = 'http://127.0.0.1.example.com/v1'; -- error
SET hrflow_embed.base_url = 'http://localhost:secret/v1'; -- error
SET hrflow_embed.base_url = 'http://127.1/v1'; -- error
SET hrflow_embed.base_url = 'http://[::2]/v1'; -- error
SET hrflow_embed.base_url = 'http://[::1/v1'; -- error
SET hrflow_embed.base_url = 'http://[127.0.0.1]/v1'; -- error
SET hrflow_embed.base_url = 'https://[127.1]/v1'; -- error
SET hrflow_embed.base_url = 'http://localhost!/v1'; -- error
SET hrflow_embed.base_url = 'http://localhost:123456/v1'; -- error
\set long_path `printf 'secret%.0s' $(seq 200)`
\set long_url 'https://api.example.com/' :long_path
SET hrflow_embed.base_url = :'long_url'; -- error
\set long_url 'http://' :long_path '.example.com/v1'
SET hrflow_embed.base_url = :'long_url'; -- error
SET hrflow_embed.base_url = 'http://a-name-that-is-longer-than-any-address-of-ipv6.example.com/v1'; -- error
\set long_url 'http://user:' :long_path '@proxy.example.com'
SET hrflow_embed.proxy = :'long_url'; -- error
SET hrflow_embed.link_hosts = 'https://secret.example.com'; -- error
SET hrflow_embed.link_hosts = 'a.example.com, *.*.*.*.*.example.com'; -- error
SET hrflow_embed.link_hosts = :'long_path'; -- error
SET hrflow_embed.link_hosts = 'a.example.com', 'https://secret.example.com'; -- error
SET hrflow_embed.link_hosts = 'a.example.com', '*.example.com';
SHOW hrflow_embed.link_hosts;
RESET hrflow_embed.link_hosts;
SET hrflow_embed.proxy = 'user:secret@proxy:3128'; -- error
SET hrflow_embed.proxy = 'file:///secret'; -- error
SET hrflow_embed.api_key_file = 'secret.txt'; -- error
SET hrflow_embed.ca_file = '../secret.pem'; -- error
SET hrflow_embed.api_dialect = 'secret'; -- error
SET hrflow_embed.max_attempts = 0; -- error
SET hrflow_embed.max_concurrency = 257; -- error
SET hrflow_embed.no_such_setting = 1; -- error
\set VERBOSITY sqlstate
SET hrflow_embed.max_response_size = '1GB'; -- error
\set VERBOSITY default

-- Valid values
SET hrflow_embed.base_url = 'http://127.0.0.2:8080/v1/';
SET hrflow_embed.base_url = 'http://[::1]:8080/v1';
SET hrflow_embed.base_url = 'http://localhost/v1';
SET hrflow_embed.base_url = 'https://api.example.com:8443';
SET hrflow_embed.request_timeout = '1min';
SHOW hrflow_embed.request_timeout;
SET hrflow_embed.max_response_size = '1MB';
SHOW hrflow_embed.max_response_size;
RESET hrflow_embed.base_url;
RESET hrflow_embed.request_timeout;
RESET hrflow_embed.max_response_size;

-- The key must not be stored in a catalog that every role can read
ALTER ROLE CURRENT_USER SET hrflow_embed.api_key = 'secret'; -- error
ALTER DATABASE contrib_regression SET hrflow_embed.api_key = 'secret'; -- error
CREATE FUNCTION f() RETURNS int LANGUAGE sql SET hrflow_embed.api_key = 'secret' RETURN 1; -- error

-- No key is configured
SET hrflow_embed.api_key = '';
SET hrflow_embed.api_key_file = '';
SELECT hrflow_profile_embedding('acme', 'nurse-1'); -- error
SELECT * FROM hrflow_profile_embeddings('acme', '{nurse-1}'); -- error
\echo :SQLSTATE

-- Messages about a file that cannot be used name the setting
SET hrflow_embed.api_key_file = '/no/such/file';
SELECT hrflow_profile_embedding('acme', 'nurse-1'); -- error
\echo :SQLSTATE
SET hrflow_embed.api_key_file = '/dev/null';
SELECT hrflow_profile_embedding('acme', 'nurse-1'); -- error
\echo :SQLSTATE
SET hrflow_embed.api_key_file = '/';
SELECT hrflow_profile_embedding('acme', 'nurse-1'); -- error
\echo :SQLSTATE

-- The URL of a proxy is validated as strictly as base_url, because messages of
-- libcurl quote what it cannot parse.  A password must not be stored in a catalog.
SET hrflow_embed.proxy = 'http://user:s3cret/pw@proxy.example.com:3128'; -- error
SET hrflow_embed.proxy = 'http://user:s3cret@proxy.example.com:99999'; -- error
SET hrflow_embed.proxy = 'http://user:s3 cret@proxy.example.com:3128'; -- error
SET hrflow_embed.proxy = 'http://user:s3cr@t@proxy.example.com:3128'; -- error
SET hrflow_embed.proxy = 'http://user:s3cr?t@proxy.example.com:3128'; -- error
SET hrflow_embed.proxy = 'http://user:s3cret@proxy.example.com:3128/path'; -- error
SET hrflow_embed.proxy = 'ftp://proxy.example.com'; -- error
SET hrflow_embed.proxy = 'socks5h://user:s3cret@proxy.example.com:1080';
RESET hrflow_embed.proxy;
ALTER ROLE CURRENT_USER SET hrflow_embed.proxy = 'http://user:s3cret@proxy.example.com:3128'; -- error

DROP EXTENSION hrflow_embed;
