-- name: host_facts
-- Where the server keeps its files, and how its host's list of processes knows our own backend.
SELECT pid,
       backend_start,
       (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS data_directory,
       coalesce(
           (SELECT json_object_agg(spcname, pg_tablespace_location(oid))
            FROM pg_tablespace
            WHERE pg_tablespace_location(oid) <> ''),
           '{}'
       ) AS tablespaces
FROM pg_stat_activity
WHERE pid = pg_backend_pid();
