-- name: tables
-- Every table whose rows can be compared: ordinary tables, leaf partitions and populated materialized views.
SELECT n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, c.relpersistence::text AS persistence,
       pg_relation_size(c.oid) AS size_bytes,
       NOT EXISTS (
           SELECT
             FROM pg_attribute a
             JOIN pg_type t ON t.oid = a.atttypid
             LEFT JOIN pg_type element ON element.oid = t.typelem AND t.typcategory = 'A'
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
              AND coalesce(element.typtype, t.typtype) <> 'e'
              AND NOT EXISTS (
                  SELECT
                    FROM pg_opclass o
                    JOIN pg_am m ON m.oid = o.opcmethod AND m.amname = 'hash'
                    JOIN pg_amproc p ON p.amprocfamily = o.opcfamily AND p.amprocnum = 2
                                    AND p.amproclefttype = o.opcintype
                   WHERE o.opcdefault
                     AND o.opcintype IN (coalesce(element.oid, t.oid),
                                         CASE coalesce(element.oid, t.oid)
                                              WHEN 'varchar'::regtype THEN 'text'::regtype END))
       ) AS hashed_as_record
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'm') AND c.relispopulated AND c.relpersistence <> 't'
   AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema'
   AND NOT EXISTS (SELECT FROM pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
                      AND NOT EXISTS (SELECT FROM pg_extension e WHERE c.oid = ANY (e.extconfig)))
 ORDER BY pg_relation_size(c.oid) DESC, 1, 2

-- name: sequences
-- The sequences, to be read one by one: their state is not part of any snapshot.
SELECT n.nspname AS schema, c.relname AS name, c.relpersistence::text AS persistence, s.seqincrement AS increment
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_sequence s ON s.seqrelid = c.oid
 WHERE n.nspname NOT LIKE 'pg\_%' AND c.relpersistence <> 't'
 ORDER BY 1, 2

-- name: large_objects
-- How many large objects there are, and a fingerprint of their content, read in pieces of 64 MiB; holes read as zeros.
WITH RECURSIVE piece (loid, number, bytes, digest) AS (
    SELECT m.oid, 0::bigint, length(got.data), sha256(got.data)
      FROM pg_largeobject_metadata m
     CROSS JOIN LATERAL (SELECT lo_get(m.oid, 0, 67108864) AS data OFFSET 0) AS got
     UNION ALL
    SELECT p.loid, p.number + 1, length(got.data), sha256(got.data)
      FROM piece p
     CROSS JOIN LATERAL (SELECT lo_get(p.loid, (p.number + 1) * 67108864, 67108864) AS data OFFSET 0) AS got
     WHERE p.bytes = 67108864
)
SELECT (SELECT count(*) FROM pg_largeobject_metadata) AS count,
       coalesce(sum(hashtextextended(loid || ':' || number || ':' || encode(digest, 'hex'), 0)), 0)::text AS fingerprint
  FROM piece

-- name: extensions
-- The installed extensions and their versions.
SELECT extname AS name, extversion AS version FROM pg_extension ORDER BY 1

-- name: invalid_objects
-- Indexes that are not valid and constraints that were never validated.
SELECT 'index ' || i.indexrelid::regclass AS object
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE NOT (i.indisvalid AND i.indisready) AND c.relkind = 'i'
UNION ALL
SELECT 'constraint ' || quote_ident(conname) || ' on ' || conrelid::regclass
  FROM pg_constraint
 WHERE NOT convalidated AND conrelid <> 0
 ORDER BY 1

-- name: roles
-- The roles with their attributes and settings; no passwords.
SELECT r.rolname AS name,
       concat_ws(' ', CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN rolcreaterole THEN 'CREATEROLE' END,
                 CASE WHEN rolcreatedb THEN 'CREATEDB' END, CASE WHEN rolcanlogin THEN 'LOGIN' END,
                 CASE WHEN rolreplication THEN 'REPLICATION' END, CASE WHEN rolbypassrls THEN 'BYPASSRLS' END,
                 CASE WHEN NOT rolinherit THEN 'NOINHERIT' END, 'CONNECTION LIMIT ' || rolconnlimit,
                 'VALID UNTIL ' || rolvaliduntil,
                 (SELECT 'SET ' || setconfig::text FROM pg_db_role_setting s WHERE s.setrole = r.oid AND s.setdatabase = 0))
           AS attributes
  FROM pg_roles r
 WHERE r.rolname NOT LIKE 'pg\_%'
 ORDER BY 1

-- name: memberships
-- Who is a member of what.
SELECT pg_get_userbyid(m.member) AS name, pg_get_userbyid(m.roleid) AS attributes
  FROM pg_auth_members m
 WHERE pg_get_userbyid(m.member) NOT LIKE 'pg\_%'
 ORDER BY 1, 2

-- name: databases
-- The databases that can be entered, largest first.
SELECT datname AS name, pg_database_size(oid) AS size_bytes
  FROM pg_database
 WHERE datallowconn AND NOT datistemplate
 ORDER BY 2 DESC, 1

-- name: session_settings
-- Text forms must not depend on who asks.
SELECT set_config('row_security', 'off', false), set_config('extra_float_digits', '3', false),
       set_config('datestyle', 'ISO, YMD', false), set_config('timezone', 'UTC', false),
       set_config('intervalstyle', 'iso_8601', false), set_config('bytea_output', 'hex', false),
       set_config('search_path', 'pg_catalog', false), set_config('max_parallel_workers_per_gather', '0', false)

-- name: limits
-- How long a statement of this session may wait for a lock, and take.
SELECT set_config('lock_timeout', %(lock_ms)s, false), set_config('statement_timeout', %(statement_ms)s, false)

-- name: moment
-- The transactions that a snapshot shows; prepared ones are in progress for as long as they stay prepared.
SELECT pg_current_snapshot()::text AS snapshot, pg_snapshot_xmax(pg_current_snapshot())::text AS xmax,
       (SELECT count(*) FROM pg_snapshot_xip(pg_current_snapshot()) AS running(xid)
         WHERE running.xid::xid NOT IN (SELECT transaction FROM pg_prepared_xacts)) AS running

-- name: bootstrap_superuser
-- The role that initdb made.
SELECT rolname FROM pg_roles WHERE oid = 10
