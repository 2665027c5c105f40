-- Backups: what was intended, what was done, what was proven; schedules and recoveries.

CREATE SCHEMA backup_mgmt;

CREATE TABLE backup_mgmt.backup_execution_h (
    backup_hk bytea PRIMARY KEY,
    backup_bk varchar(255) NOT NULL UNIQUE,
    tenant_hk bytea NOT NULL DEFAULT util.get_system_operations_tenant_hk() REFERENCES auth.tenant_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    CHECK (backup_bk ~ '^\d{8}T\d{6}Z-[a-z_]+-[0-9a-f]{8}$')
);
COMMENT ON COLUMN backup_mgmt.backup_execution_h.backup_bk IS 'UTC start, kind and 8 hex digits: sorts by time.';

CREATE TABLE backup_mgmt.backup_execution_s (
    backup_hk bytea NOT NULL REFERENCES backup_mgmt.backup_execution_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    load_end_date timestamptz,
    hash_diff bytea NOT NULL,
    backup_type varchar(50) NOT NULL,
    backup_scope varchar(50) NOT NULL,
    backup_method varchar(50) NOT NULL,
    backup_status varchar(20) NOT NULL DEFAULT 'PENDING',
    backup_start_time timestamptz NOT NULL,
    backup_end_time timestamptz,
    backup_duration_seconds numeric(12, 3),
    -- The server, as it called itself.
    server_name text NOT NULL,
    system_identifier text NOT NULL,
    server_version text NOT NULL,
    database_name text,
    timeline bigint,
    start_lsn pg_lsn,
    stop_lsn pg_lsn,
    snapshot_id text,
    -- The bytes, as they were written.
    backup_size_bytes bigint,
    compressed_size_bytes bigint,
    compression_ratio numeric,
    codec varchar(50),
    compression_level smallint,
    encryption_enabled boolean,
    cipher varchar(100),
    encryption_key_id varchar(255),
    part_size_bytes bigint,
    manifest_sha256 varchar(64),
    -- The place, as it was used.
    storage_type varchar(50) NOT NULL DEFAULT 'LOCAL',
    store_name varchar(255) NOT NULL,
    store_location text NOT NULL,
    backup_location text NOT NULL,
    offsite_copy_state varchar(20) NOT NULL DEFAULT 'NOT_CONFIGURED',
    -- How long it is kept.
    retention_period interval NOT NULL DEFAULT '7 years',
    retention_policy varchar(100) NOT NULL DEFAULT 'STANDARD_7_YEAR',
    expiration_date date NOT NULL,
    archive_to_cold_storage_after interval DEFAULT '90 days',
    -- What was proven of it; NULL means that nobody has looked.
    verification_required boolean NOT NULL DEFAULT true,
    verification_status varchar(20) NOT NULL DEFAULT 'PENDING',
    verified_at timestamptz,
    checksum_verified boolean,
    restore_test_passed boolean,
    integrity_check_passed boolean,
    restore_seconds double precision,
    verification_details jsonb,
    -- The run that made it.
    error_code varchar(50),
    error_message text,
    retry_count integer NOT NULL DEFAULT 0,
    max_retries integer NOT NULL DEFAULT 3,
    initiated_by varchar(255) NOT NULL DEFAULT session_user,
    host text NOT NULL,
    tool_version text,
    prefect_flow_run_id uuid,
    backup_priority integer NOT NULL DEFAULT 5,
    tags jsonb,
    additional_metadata jsonb,
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    PRIMARY KEY (backup_hk, load_date),
    CHECK (load_end_date >= load_date),
    CONSTRAINT backup_type_known CHECK (
        backup_type IN ('FULL', 'INCREMENTAL', 'DIFFERENTIAL', 'PITR', 'LOGICAL', 'PHYSICAL', 'WAL_ARCHIVE')
    ),
    CONSTRAINT backup_scope_known CHECK (backup_scope IN ('SYSTEM', 'DATABASE', 'TENANT', 'SCHEMA', 'TABLE')),
    CONSTRAINT backup_method_known CHECK (backup_method IN ('PG_BASEBACKUP', 'PG_DUMP', 'CUSTOM', 'WAL_ARCHIVE')),
    CONSTRAINT backup_status_known CHECK (
        backup_status IN (
            'PENDING', 'RUNNING', 'COMPLETED', 'VERIFIED', 'FAILED', 'CANCELLED', 'PARTIAL', 'EXPIRED'
        )
    ),
    CONSTRAINT verification_status_known CHECK (
        verification_status IN ('PENDING', 'RUNNING', 'VERIFIED', 'FAILED', 'PARTIAL', 'SKIPPED')
    ),
    CONSTRAINT storage_type_known CHECK (storage_type IN ('LOCAL', 'S3', 'AZURE', 'GCS', 'NFS')),
    CONSTRAINT offsite_copy_state_known CHECK (
        offsite_copy_state IN ('NOT_CONFIGURED', 'PENDING', 'STORED', 'VERIFIED', 'FAILED')
    ),
    CONSTRAINT sizes_are_not_negative CHECK (
        backup_size_bytes >= 0 AND compressed_size_bytes >= 0 AND part_size_bytes > 0
        AND backup_duration_seconds >= 0 AND restore_seconds >= 0 AND retry_count >= 0
    ),
    -- Percent saved; below zero when the data do not compress.
    CONSTRAINT compression_ratio_is_percent CHECK (compression_ratio <= 100),
    CONSTRAINT backup_priority_in_range CHECK (backup_priority BETWEEN 1 AND 10),
    CONSTRAINT manifest_sha256_is_hex CHECK (manifest_sha256 ~ '^[0-9a-f]{64}$'),
    CONSTRAINT ends_after_it_starts CHECK (backup_end_time >= backup_start_time),
    CONSTRAINT encrypted_means_by_a_known_key CHECK (
        encryption_enabled IS NOT TRUE OR (cipher IS NOT NULL AND encryption_key_id IS NOT NULL)
    ),
    CONSTRAINT good_means_committed CHECK (
        backup_status NOT IN ('COMPLETED', 'VERIFIED', 'PARTIAL')
        OR (backup_end_time IS NOT NULL AND manifest_sha256 IS NOT NULL AND encryption_enabled IS NOT NULL)
    ),
    CONSTRAINT verified_means_restored CHECK (
        backup_status <> 'VERIFIED'
        OR (verified_at IS NOT NULL AND restore_test_passed IS TRUE AND verification_status <> 'FAILED')
    ),
    CONSTRAINT failed_says_why CHECK (backup_status <> 'FAILED' OR error_message IS NOT NULL)
);
COMMENT ON COLUMN backup_mgmt.backup_execution_s.backup_location IS 'The prefix of the backup''s objects within the store.';
COMMENT ON COLUMN backup_mgmt.backup_execution_s.restore_seconds IS 'How long the last restore test took: the measured RTO.';
CREATE UNIQUE INDEX backup_execution_s_one_open ON backup_mgmt.backup_execution_s (backup_hk) WHERE load_end_date IS NULL;
CREATE TRIGGER set_hash_diff BEFORE INSERT ON backup_mgmt.backup_execution_s
    FOR EACH ROW EXECUTE FUNCTION util.set_hash_diff();

CREATE INDEX idx_backup_execution_h_tenant_hk ON backup_mgmt.backup_execution_h (tenant_hk);
CREATE INDEX idx_backup_execution_h_load_date ON backup_mgmt.backup_execution_h (load_date);
CREATE INDEX idx_backup_execution_s_start_time ON backup_mgmt.backup_execution_s (backup_start_time)
    WHERE load_end_date IS NULL;
CREATE INDEX idx_backup_execution_s_status ON backup_mgmt.backup_execution_s (backup_status)
    WHERE load_end_date IS NULL;
CREATE INDEX idx_backup_execution_s_server ON backup_mgmt.backup_execution_s (server_name, backup_start_time)
    WHERE load_end_date IS NULL;
CREATE INDEX idx_backup_execution_s_unfinished ON backup_mgmt.backup_execution_s (system_identifier)
    WHERE load_end_date IS NULL AND backup_status IN ('PENDING', 'RUNNING');
CREATE INDEX idx_backup_execution_s_verification ON backup_mgmt.backup_execution_s (verification_status)
    WHERE load_end_date IS NULL;
CREATE INDEX idx_backup_execution_s_expiration ON backup_mgmt.backup_execution_s (expiration_date)
    WHERE load_end_date IS NULL;

CREATE TABLE backup_mgmt.backup_verification (
    verification_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    backup_hk bytea NOT NULL REFERENCES backup_mgmt.backup_execution_h,
    tenant_hk bytea NOT NULL REFERENCES auth.tenant_h,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    outcome varchar(10) NOT NULL,
    upload_outcome varchar(10) NOT NULL DEFAULT 'NOT_RUN',
    reread_outcome varchar(10) NOT NULL DEFAULT 'NOT_RUN',
    restore_outcome varchar(10) NOT NULL DEFAULT 'NOT_RUN',
    comparison_outcome varchar(10) NOT NULL DEFAULT 'NOT_RUN',
    structure_outcome varchar(10) NOT NULL DEFAULT 'NOT_RUN',
    restore_seconds double precision,
    reread_bytes_per_second double precision,
    details jsonb NOT NULL DEFAULT '{}',
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    CHECK (finished_at >= started_at),
    CHECK (outcome IN ('PASS', 'FAIL', 'PARTIAL')),
    CHECK (upload_outcome IN ('PASS', 'FAIL', 'PARTIAL', 'NOT_RUN')),
    CHECK (reread_outcome IN ('PASS', 'FAIL', 'PARTIAL', 'NOT_RUN')),
    CHECK (restore_outcome IN ('PASS', 'FAIL', 'PARTIAL', 'NOT_RUN')),
    CHECK (comparison_outcome IN ('PASS', 'FAIL', 'PARTIAL', 'NOT_RUN')),
    CHECK (structure_outcome IN ('PASS', 'FAIL', 'PARTIAL', 'NOT_RUN')),
    CHECK (restore_seconds >= 0 AND reread_bytes_per_second >= 0),
    CONSTRAINT outcome_is_the_worst_rung CHECK (
        outcome = CASE
            WHEN 'FAIL' IN (upload_outcome, reread_outcome, restore_outcome, comparison_outcome, structure_outcome)
            THEN 'FAIL'
            WHEN 'PARTIAL' IN (upload_outcome, reread_outcome, restore_outcome, comparison_outcome, structure_outcome)
            THEN 'PARTIAL'
            WHEN 'PASS' IN (upload_outcome, reread_outcome, restore_outcome, comparison_outcome, structure_outcome)
            THEN 'PASS'
            ELSE 'NOT_RUN' -- NULL would let any outcome through
        END
    )
);
CREATE INDEX idx_backup_verification_latest ON backup_mgmt.backup_verification (backup_hk, finished_at DESC);
CREATE INDEX idx_backup_verification_tenant_hk ON backup_mgmt.backup_verification (tenant_hk);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON backup_mgmt.backup_verification
    FOR EACH STATEMENT EXECUTE FUNCTION util.refuse_change();

CREATE TABLE backup_mgmt.backup_dependency_l (
    link_backup_dependency_hk bytea PRIMARY KEY,
    source_backup_hk bytea NOT NULL REFERENCES backup_mgmt.backup_execution_h,
    dependent_backup_hk bytea NOT NULL REFERENCES backup_mgmt.backup_execution_h,
    tenant_hk bytea NOT NULL DEFAULT util.get_system_operations_tenant_hk() REFERENCES auth.tenant_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    UNIQUE (source_backup_hk, dependent_backup_hk),
    CHECK (source_backup_hk <> dependent_backup_hk)
);
CREATE INDEX idx_backup_dependency_l_dependent ON backup_mgmt.backup_dependency_l (dependent_backup_hk);

CREATE TABLE backup_mgmt.backup_schedule_h (
    schedule_hk bytea PRIMARY KEY,
    schedule_bk varchar(255) NOT NULL UNIQUE,
    tenant_hk bytea NOT NULL DEFAULT util.get_system_operations_tenant_hk() REFERENCES auth.tenant_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source()
);
CREATE INDEX idx_backup_schedule_h_tenant_hk ON backup_mgmt.backup_schedule_h (tenant_hk);

CREATE TABLE backup_mgmt.backup_schedule_s (
    schedule_hk bytea NOT NULL REFERENCES backup_mgmt.backup_schedule_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    load_end_date timestamptz,
    hash_diff bytea NOT NULL,
    schedule_name varchar(200) NOT NULL,
    schedule_description text,
    backup_type varchar(50) NOT NULL,
    schedule_expression varchar(100) NOT NULL,
    timezone varchar(100) NOT NULL DEFAULT 'UTC',
    execution_window_start time,
    execution_window_end time,
    max_execution_duration interval NOT NULL DEFAULT '4 hours',
    is_active boolean NOT NULL DEFAULT true,
    next_execution_time timestamptz,
    last_execution_time timestamptz,
    execution_count bigint NOT NULL DEFAULT 0,
    retention_period interval NOT NULL DEFAULT '7 years',
    max_backup_count integer NOT NULL DEFAULT 30,
    notify_on_success boolean NOT NULL DEFAULT false,
    notify_on_failure boolean NOT NULL DEFAULT true,
    notification_recipients text[],
    backup_priority integer NOT NULL DEFAULT 5,
    resource_constraints jsonb,
    created_by varchar(255) NOT NULL DEFAULT session_user,
    tags jsonb,
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    PRIMARY KEY (schedule_hk, load_date),
    CHECK (load_end_date >= load_date),
    CHECK (backup_type IN ('FULL', 'INCREMENTAL', 'DIFFERENTIAL', 'PITR', 'LOGICAL', 'PHYSICAL', 'WAL_ARCHIVE')),
    -- A window may cross midnight: its end may be earlier in the day than its start.
    CHECK ((execution_window_start IS NULL) = (execution_window_end IS NULL)),
    CHECK (execution_window_start <> execution_window_end),
    CHECK (max_execution_duration > interval '0' AND execution_count >= 0 AND max_backup_count > 0),
    CHECK (backup_priority BETWEEN 1 AND 10)
);
CREATE UNIQUE INDEX backup_schedule_s_one_open ON backup_mgmt.backup_schedule_s (schedule_hk) WHERE load_end_date IS NULL;
CREATE INDEX idx_backup_schedule_s_next_execution ON backup_mgmt.backup_schedule_s (next_execution_time)
    WHERE load_end_date IS NULL AND is_active;
CREATE TRIGGER set_hash_diff BEFORE INSERT ON backup_mgmt.backup_schedule_s
    FOR EACH ROW EXECUTE FUNCTION util.set_hash_diff();

CREATE TABLE backup_mgmt.schedule_execution_l (
    link_schedule_execution_hk bytea PRIMARY KEY,
    schedule_hk bytea NOT NULL REFERENCES backup_mgmt.backup_schedule_h,
    backup_hk bytea NOT NULL REFERENCES backup_mgmt.backup_execution_h,
    tenant_hk bytea NOT NULL DEFAULT util.get_system_operations_tenant_hk() REFERENCES auth.tenant_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    UNIQUE (schedule_hk, backup_hk)
);
CREATE INDEX idx_schedule_execution_l_backup ON backup_mgmt.schedule_execution_l (backup_hk);

CREATE TABLE backup_mgmt.recovery_operation_h (
    recovery_hk bytea PRIMARY KEY,
    recovery_bk varchar(255) NOT NULL UNIQUE,
    tenant_hk bytea NOT NULL DEFAULT util.get_system_operations_tenant_hk() REFERENCES auth.tenant_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    CHECK (recovery_bk ~ '^\d{8}T\d{6}Z-[a-z_]+-[0-9a-f]{8}$')
);
CREATE INDEX idx_recovery_operation_h_tenant_hk ON backup_mgmt.recovery_operation_h (tenant_hk);

CREATE TABLE backup_mgmt.recovery_operation_s (
    recovery_hk bytea NOT NULL REFERENCES backup_mgmt.recovery_operation_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    load_end_date timestamptz,
    hash_diff bytea NOT NULL,
    recovery_type varchar(50) NOT NULL,
    recovery_status varchar(20) NOT NULL DEFAULT 'PENDING',
    source_backup_hk bytea REFERENCES backup_mgmt.backup_execution_h,
    target_point_in_time timestamptz,
    recovery_target text,
    recovery_start_time timestamptz NOT NULL,
    recovery_end_time timestamptz,
    recovery_duration_seconds numeric(12, 3),
    validation_performed boolean NOT NULL DEFAULT false,
    validation_status varchar(20),
    data_integrity_verified boolean,
    records_recovered bigint,
    data_size_recovered bigint,
    recovery_success_rate numeric(5, 2),
    error_code varchar(50),
    error_message text,
    initiated_by varchar(255) NOT NULL DEFAULT session_user,
    recovery_reason text,
    approval_required boolean NOT NULL DEFAULT true,
    approved_by varchar(255),
    approval_date timestamptz,
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    PRIMARY KEY (recovery_hk, load_date),
    CHECK (load_end_date >= load_date),
    CHECK (recovery_type IN ('FULL_RESTORE', 'POINT_IN_TIME', 'PARTIAL_RESTORE', 'TABLE_RESTORE')),
    CHECK (
        recovery_status IN ('PENDING', 'APPROVED', 'REJECTED', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED')
    ),
    CHECK (validation_status IN ('PASSED', 'FAILED', 'PARTIAL')),
    CHECK (recovery_success_rate BETWEEN 0 AND 100),
    CHECK (recovery_end_time >= recovery_start_time),
    CHECK (recovery_duration_seconds >= 0 AND records_recovered >= 0 AND data_size_recovered >= 0),
    CONSTRAINT runs_only_when_approved CHECK (
        NOT approval_required
        OR recovery_status NOT IN ('APPROVED', 'RUNNING', 'COMPLETED')
        OR (approved_by IS NOT NULL AND approval_date IS NOT NULL)
    )
);
CREATE UNIQUE INDEX recovery_operation_s_one_open ON backup_mgmt.recovery_operation_s (recovery_hk) WHERE load_end_date IS NULL;
CREATE INDEX idx_recovery_operation_s_status ON backup_mgmt.recovery_operation_s (recovery_status)
    WHERE load_end_date IS NULL;
CREATE INDEX idx_recovery_operation_s_start_time ON backup_mgmt.recovery_operation_s (recovery_start_time)
    WHERE load_end_date IS NULL;
CREATE TRIGGER set_hash_diff BEFORE INSERT ON backup_mgmt.recovery_operation_s
    FOR EACH ROW EXECUTE FUNCTION util.set_hash_diff();

CREATE TABLE backup_mgmt.recovery_backup_l (
    link_recovery_backup_hk bytea PRIMARY KEY,
    recovery_hk bytea NOT NULL REFERENCES backup_mgmt.recovery_operation_h,
    backup_hk bytea NOT NULL REFERENCES backup_mgmt.backup_execution_h,
    tenant_hk bytea NOT NULL DEFAULT util.get_system_operations_tenant_hk() REFERENCES auth.tenant_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    UNIQUE (recovery_hk, backup_hk)
);
CREATE INDEX idx_recovery_backup_l_backup ON backup_mgmt.recovery_backup_l (backup_hk);

CREATE VIEW backup_mgmt.backup_catalog WITH (security_invoker = true) AS
SELECT
    hub.backup_bk AS backup_id,
    hub.tenant_hk,
    now.server_name,
    now.database_name,
    now.system_identifier,
    now.server_version,
    now.backup_type,
    now.backup_status,
    now.verification_status,
    now.backup_start_time AS started_at,
    now.backup_end_time AS finished_at,
    now.backup_duration_seconds AS duration_seconds,
    now.backup_size_bytes AS source_bytes,
    now.compressed_size_bytes AS stored_bytes,
    now.compression_ratio AS saved_percent,
    now.codec,
    now.compression_level,
    now.cipher,
    now.encryption_key_id,
    now.storage_type,
    now.store_name,
    now.store_location,
    now.backup_location,
    now.offsite_copy_state,
    now.manifest_sha256,
    now.timeline,
    now.start_lsn,
    now.stop_lsn,
    now.checksum_verified,
    now.restore_test_passed,
    now.integrity_check_passed,
    now.verified_at,
    now.restore_seconds,
    last.verification_id AS last_verification_id,
    last.outcome AS last_verification_outcome,
    last.finished_at AS last_verification_at,
    last.upload_outcome,
    last.reread_outcome,
    last.restore_outcome,
    last.comparison_outcome,
    last.structure_outcome,
    last.reread_bytes_per_second,
    now.expiration_date,
    now.error_code,
    now.error_message,
    now.host,
    now.tool_version,
    now.prefect_flow_run_id
FROM backup_mgmt.backup_execution_h AS hub
JOIN backup_mgmt.backup_execution_s AS now ON now.backup_hk = hub.backup_hk AND now.load_end_date IS NULL
LEFT JOIN LATERAL (
    SELECT *
    FROM backup_mgmt.backup_verification AS run
    WHERE run.backup_hk = hub.backup_hk
    ORDER BY run.finished_at DESC, run.load_date DESC
    LIMIT 1
) AS last ON true;
COMMENT ON VIEW backup_mgmt.backup_catalog IS 'One row per backup: its state now and its last verification.';

CREATE VIEW backup_mgmt.latest_verified_backup WITH (security_invoker = true) AS
SELECT DISTINCT ON (system_identifier, server_name, database_name, backup_type) *
FROM backup_mgmt.backup_catalog
WHERE backup_status = 'VERIFIED'
ORDER BY system_identifier, server_name, database_name, backup_type, started_at DESC;
COMMENT ON VIEW backup_mgmt.latest_verified_backup IS
    'What to restore first: the newest backup of each server, database and kind that was restored as a test.';

ALTER TABLE backup_mgmt.backup_execution_h ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON backup_mgmt.backup_execution_h USING (tenant_hk = (SELECT util.current_tenant_hk()));
ALTER TABLE backup_mgmt.backup_verification ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON backup_mgmt.backup_verification USING (tenant_hk = (SELECT util.current_tenant_hk()));
ALTER TABLE backup_mgmt.backup_dependency_l ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON backup_mgmt.backup_dependency_l USING (tenant_hk = (SELECT util.current_tenant_hk()));
ALTER TABLE backup_mgmt.backup_schedule_h ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON backup_mgmt.backup_schedule_h USING (tenant_hk = (SELECT util.current_tenant_hk()));
ALTER TABLE backup_mgmt.schedule_execution_l ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON backup_mgmt.schedule_execution_l USING (tenant_hk = (SELECT util.current_tenant_hk()));
ALTER TABLE backup_mgmt.recovery_operation_h ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON backup_mgmt.recovery_operation_h USING (tenant_hk = (SELECT util.current_tenant_hk()));
ALTER TABLE backup_mgmt.recovery_backup_l ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON backup_mgmt.recovery_backup_l USING (tenant_hk = (SELECT util.current_tenant_hk()));

ALTER TABLE backup_mgmt.backup_execution_s ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON backup_mgmt.backup_execution_s USING (
    EXISTS (
        SELECT FROM backup_mgmt.backup_execution_h AS hub
        WHERE hub.backup_hk = backup_execution_s.backup_hk AND hub.tenant_hk = (SELECT util.current_tenant_hk())
    )
);
ALTER TABLE backup_mgmt.backup_schedule_s ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON backup_mgmt.backup_schedule_s USING (
    EXISTS (
        SELECT FROM backup_mgmt.backup_schedule_h AS hub
        WHERE hub.schedule_hk = backup_schedule_s.schedule_hk AND hub.tenant_hk = (SELECT util.current_tenant_hk())
    )
);
ALTER TABLE backup_mgmt.recovery_operation_s ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON backup_mgmt.recovery_operation_s USING (
    EXISTS (
        SELECT FROM backup_mgmt.recovery_operation_h AS hub
        WHERE hub.recovery_hk = recovery_operation_s.recovery_hk AND hub.tenant_hk = (SELECT util.current_tenant_hk())
    )
);
