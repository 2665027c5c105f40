-- name: facts
-- What the server says of itself and of this login.
SELECT current_setting('server_version_num')::int AS version_num, current_setting('server_version') AS version,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       pg_is_in_recovery() AS in_recovery, current_setting('data_checksums') = 'on' AS data_checksums,
       (SELECT rolname FROM pg_roles WHERE oid = 10) AS superuser, current_user AS login,
       r.rolsuper OR r.rolreplication AS may_replicate, r.rolsuper AS is_superuser,
       pg_has_role(current_user, 'pg_read_all_data', 'USAGE') AND r.rolbypassrls AS may_read_all,
       current_setting('wal_level') AS wal_level, current_setting('max_wal_senders')::int AS max_wal_senders,
       pg_database_size(current_database()) AS database_bytes,
       -- An estimate must not wait: pg_table_size takes a lock that an exclusively locked table does not give.
       (SELECT sum(pg_table_size(c.oid)) FROM pg_class c WHERE c.relkind IN ('r', 'm') AND c.oid >= 16384
           AND NOT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                            WHERE d.datname = current_database() AND l.relation = c.oid AND l.mode = 'AccessExclusiveLock')
       )::bigint AS table_bytes,
       (SELECT sum(pg_database_size(oid)) FROM pg_database WHERE has_database_privilege(oid, 'CONNECT') OR r.rolsuper)::bigint
           AS cluster_bytes
  FROM pg_roles r WHERE r.rolname = current_user

-- name: unreadable_large_objects
-- How many large objects this login may not read.
SELECT count(*) AS objects
  FROM pg_largeobject_metadata l
 WHERE NOT current_setting('lo_compat_privileges')::boolean AND NOT pg_has_role(l.lomowner, 'USAGE')
   AND NOT EXISTS (SELECT FROM aclexplode(l.lomacl) a
                    WHERE a.privilege_type = 'SELECT' AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))

-- name: unreadable_large_objects
-- since: 18
-- How many large objects this login may not read.
SELECT count(*) AS objects
  FROM pg_largeobject_metadata
 WHERE NOT current_setting('lo_compat_privileges')::boolean AND NOT has_largeobject_privilege(oid, 'SELECT')

-- name: unreadable_tables
-- Tables that this login may not read, or would see only some rows of.
SELECT c.oid::regclass::text AS name, row_security_active(c.oid) AS by_row_security
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'm', 'S') AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema'
   AND (NOT has_schema_privilege(n.oid, 'USAGE') OR row_security_active(c.oid)
        OR NOT CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(c.oid, 'SELECT')
                    ELSE has_table_privilege(c.oid, 'SELECT') END)
 ORDER BY 1
 LIMIT 20
