-- name: take_server
-- The lock that keeps two backups of one server apart, held by the session.
SELECT pg_try_advisory_lock(hashtextextended('onevault:backup:' || %(system_identifier)s, 0));

-- name: leave_server
-- Give the server's lock back.
SELECT pg_advisory_unlock(hashtextextended('onevault:backup:' || %(system_identifier)s, 0));

-- name: interrupted
-- Backups of one server that were begun and not finished, oldest first: running now, or cut off.
SELECT {columns}
FROM backup_mgmt.backup_catalog
WHERE system_identifier = %(system_identifier)s AND backup_status IN ('PENDING', 'RUNNING')
ORDER BY started_at;

-- name: find
-- One backup by its id.
SELECT {columns} FROM backup_mgmt.backup_catalog WHERE backup_id = %(backup_id)s;

-- name: catalog
-- The newest backups, of one server or of all.
SELECT {columns}
FROM backup_mgmt.backup_catalog
WHERE %(server)s::text IS NULL OR server_name = %(server)s
ORDER BY started_at DESC
LIMIT %(limit)s;

-- name: latest_verified
-- The newest backup of each database, or of a server as a whole, that was restored as a test.
SELECT {columns}
FROM backup_mgmt.latest_verified_backup
WHERE %(server)s::text IS NULL OR server_name = %(server)s
ORDER BY server_name, database_name, backup_type;

-- name: insert_verification
-- One run of the verification ladder; rows are never changed.
INSERT INTO backup_mgmt.backup_verification (
    verification_id, backup_hk, tenant_hk, started_at, finished_at, outcome, upload_outcome, reread_outcome,
    restore_outcome, comparison_outcome, structure_outcome, restore_seconds, reread_bytes_per_second, details
)
SELECT
    %(verification_id)s, backup_hk, tenant_hk, %(started_at)s, %(finished_at)s, %(outcome)s, %(upload)s, %(reread)s,
    %(restore)s, %(comparison)s, %(structure)s, %(restore_seconds)s, %(reread_bytes_per_second)s, %(details)s
FROM backup_mgmt.backup_execution_h
WHERE backup_bk = %(backup_id)s;

-- name: tenant_of
-- The tenant a backup belongs to.
SELECT tenant_hk FROM backup_mgmt.backup_execution_h WHERE backup_bk = %(backup_id)s;
