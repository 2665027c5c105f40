-- name: knowledge
-- What a server says of itself and of our login.
SELECT session_user AS login,
    (SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user) AS connection_limit,
    (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
    (SELECT coalesce(jsonb_object_agg(extname, nspname), '{}')
     FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace) AS extensions,
    (SELECT coalesce(jsonb_agg(role_name), '[]')
     FROM unnest(%(rights)s::text[]) AS wanted (role_name)
     WHERE EXISTS (
         SELECT FROM pg_roles WHERE rolname = role_name AND pg_has_role(current_user, pg_roles.oid, 'USAGE')
     )) AS rights;

-- name: standing
-- Whether it is a standby, and since when its counters may be compared: each crash makes pg_stat_bgwriter begin anew.
SELECT pg_is_in_recovery() AS is_in_recovery,
    pg_postmaster_start_time() AS postmaster_started_at,
    (SELECT stats_reset FROM pg_stat_bgwriter) AS counters_began_at;

-- name: limit_statement
-- The time limit of the statements that follow in this transaction.
SELECT set_config('statement_timeout', %(milliseconds)s, true);

-- name: forget_plans
-- Drop the session's prepared statements.
DEALLOCATE ALL;

-- name: databases
-- The databases one can connect to, templates and half-dropped ones left out.
SELECT datname::text AS name, has_database_privilege(oid, 'CONNECT') AS may_connect
FROM pg_database
WHERE NOT datistemplate AND datallowconn AND datconnlimit <> -2
ORDER BY datname;

-- name: statement_texts
-- The texts of statements, cut where they are very long.
SELECT queryid AS query_id, left(min(query), 10000) AS query
FROM {schema}.pg_stat_statements(true)
WHERE queryid = ANY(%(query_ids)s::bigint[]) AND query <> '<insufficient privilege>'
GROUP BY queryid;
