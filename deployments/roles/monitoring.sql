-- The role that OneVault reads metrics as. It sees statistics, settings and the texts of running statements, whose
-- literals OneVault masks before it stores any; it reads no row of a table and no password hash.
-- Run it once on each server as a superuser:  psql -d postgres -f monitoring.sql
-- Then give it a password so that psql hashes it and no log has it:  psql -d postgres -c '\password onevault_monitor'

CREATE ROLE onevault_monitor LOGIN CONNECTION LIMIT 5;
GRANT pg_monitor TO onevault_monitor;

-- Every other database, too, from which CONNECT was taken away from PUBLIC.
GRANT CONNECT ON DATABASE postgres TO onevault_monitor;

ALTER ROLE onevault_monitor SET default_transaction_read_only = on;
ALTER ROLE onevault_monitor SET lock_timeout = '500ms';
ALTER ROLE onevault_monitor SET statement_timeout = '30s';
ALTER ROLE onevault_monitor SET idle_in_transaction_session_timeout = '60s';

-- What each statement costs: once on each server, in the database that OneVault connects to. It needs pg_stat_statements in
-- shared_preload_libraries.
--   CREATE EXTENSION pg_stat_statements;
--   GRANT USAGE ON SCHEMA extensions TO onevault_monitor;  -- if it lies in a schema of its own

-- pg_monitor does not read sequences. To be warned before one of them overflows, in each schema that has any:
--   GRANT SELECT ON ALL SEQUENCES IN SCHEMA app TO onevault_monitor;
--   ALTER DEFAULT PRIVILEGES FOR ROLE app_owner IN SCHEMA app GRANT SELECT ON SEQUENCES TO onevault_monitor;
