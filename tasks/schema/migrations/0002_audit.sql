-- Who did what to the outside world: one row before, one after, never changed.

CREATE SCHEMA audit;

CREATE TABLE audit.audit_event_h (
    audit_event_hk bytea PRIMARY KEY,
    audit_event_bk varchar(255) NOT NULL UNIQUE,
    tenant_hk bytea NOT NULL DEFAULT util.get_system_operations_tenant_hk() REFERENCES auth.tenant_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source()
);

CREATE TABLE audit.audit_detail_s (
    audit_event_hk bytea NOT NULL REFERENCES audit.audit_event_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    load_end_date timestamptz,
    hash_diff bytea NOT NULL,
    operation_id uuid NOT NULL,
    event_type varchar(100) NOT NULL,
    phase varchar(10) NOT NULL,
    subject text NOT NULL,
    actor text NOT NULL,
    outcome varchar(20) NOT NULL,
    details jsonb NOT NULL DEFAULT '{}',
    table_name varchar(100),
    operation varchar(100),
    changed_by varchar(255) NOT NULL DEFAULT session_user,
    old_data jsonb,
    new_data jsonb,
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    PRIMARY KEY (audit_event_hk, load_date),
    CHECK (load_end_date IS NULL),
    CHECK (phase IN ('BEFORE', 'AFTER')),
    CHECK (outcome IN ('INTENDED', 'STARTED', 'SUCCEEDED', 'PARTIAL', 'FAILED', 'REFUSED', 'CANCELLED')),
    CHECK ((phase = 'BEFORE') = (outcome IN ('INTENDED', 'STARTED')))
);
COMMENT ON COLUMN audit.audit_detail_s.operation_id IS 'Joins the rows before and after: an operation with no AFTER row was cut off.';
CREATE UNIQUE INDEX audit_detail_s_one_open ON audit.audit_detail_s (audit_event_hk) WHERE load_end_date IS NULL;
CREATE INDEX idx_audit_detail_s_operation ON audit.audit_detail_s (operation_id);
CREATE INDEX idx_audit_detail_s_subject ON audit.audit_detail_s (subject, load_date);
CREATE INDEX idx_audit_detail_s_load_date ON audit.audit_detail_s (load_date);
CREATE INDEX idx_audit_event_h_tenant_hk ON audit.audit_event_h (tenant_hk);

CREATE TRIGGER set_hash_diff BEFORE INSERT ON audit.audit_detail_s
    FOR EACH ROW EXECUTE FUNCTION util.set_hash_diff();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.audit_event_h
    FOR EACH STATEMENT EXECUTE FUNCTION util.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.audit_detail_s
    FOR EACH STATEMENT EXECUTE FUNCTION util.refuse_change();

ALTER TABLE audit.audit_event_h ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON audit.audit_event_h USING (tenant_hk = (SELECT util.current_tenant_hk()));
ALTER TABLE audit.audit_detail_s ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON audit.audit_detail_s USING (
    EXISTS (
        SELECT FROM audit.audit_event_h AS hub
        WHERE hub.audit_event_hk = audit_detail_s.audit_event_hk
          AND hub.tenant_hk = (SELECT util.current_tenant_hk())
    )
);
