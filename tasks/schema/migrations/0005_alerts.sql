-- Alerts: what would be a fault, which ones are open, every change of state, and who asked for silence.

CREATE TABLE monitoring.alert_definition_h (
    alert_definition_hk bytea PRIMARY KEY,
    alert_definition_bk varchar(255) NOT NULL UNIQUE,
    tenant_hk bytea NOT NULL DEFAULT util.get_system_operations_tenant_hk() REFERENCES auth.tenant_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source()
);
COMMENT ON COLUMN monitoring.alert_definition_h.alert_definition_bk IS 'The name of the rule.';

CREATE TABLE monitoring.alert_definition_s (
    alert_definition_hk bytea NOT NULL REFERENCES monitoring.alert_definition_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    load_end_date timestamptz,
    hash_diff bytea NOT NULL,
    alert_name varchar(200) NOT NULL,
    alert_description text NOT NULL,
    alert_category varchar(50) NOT NULL,
    metric_source varchar(200) NOT NULL,
    threshold_operator varchar(10) NOT NULL,
    condition_logic jsonb NOT NULL,
    is_enabled boolean NOT NULL DEFAULT true,
    suppression_window_minutes integer NOT NULL,
    runbook text,
    next_step text NOT NULL,
    created_by varchar(255) NOT NULL DEFAULT session_user,
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    PRIMARY KEY (alert_definition_hk, load_date),
    CHECK (load_end_date >= load_date),
    CONSTRAINT alert_category_known CHECK (
        alert_category IN ('PERFORMANCE', 'AVAILABILITY', 'SECURITY', 'CAPACITY', 'COMPLIANCE', 'BACKUP', 'MONITORING')
    ),
    CONSTRAINT threshold_operator_known CHECK (threshold_operator IN ('>', '<', '=', '!=', '>=', '<='))
);
CREATE UNIQUE INDEX alert_definition_s_one_open
    ON monitoring.alert_definition_s (alert_definition_hk) WHERE load_end_date IS NULL;
CREATE TRIGGER set_hash_diff BEFORE INSERT ON monitoring.alert_definition_s
    FOR EACH ROW EXECUTE FUNCTION util.set_hash_diff();

CREATE TABLE monitoring.alert_instance_h (
    alert_instance_hk bytea PRIMARY KEY,
    alert_instance_bk varchar(255) NOT NULL UNIQUE,
    alert_definition_hk bytea NOT NULL REFERENCES monitoring.alert_definition_h,
    tenant_hk bytea NOT NULL DEFAULT util.get_system_operations_tenant_hk() REFERENCES auth.tenant_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source()
);
COMMENT ON COLUMN monitoring.alert_instance_h.alert_instance_bk IS 'The fingerprint and the moment at which this episode began.';

CREATE TABLE monitoring.alert_instance_s (
    alert_instance_hk bytea NOT NULL REFERENCES monitoring.alert_instance_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    load_end_date timestamptz,
    hash_diff bytea NOT NULL,
    fingerprint varchar(64) NOT NULL,
    rule_name varchar(200) NOT NULL,
    server_name text NOT NULL,
    labels jsonb NOT NULL DEFAULT '{}',
    alert_category varchar(50) NOT NULL,
    alert_status varchar(20) NOT NULL,
    urgency_level varchar(20) NOT NULL,
    started_timestamp timestamptz NOT NULL,
    triggered_timestamp timestamptz NOT NULL,
    acknowledged_timestamp timestamptz,
    resolved_timestamp timestamptz,
    trigger_value double precision,
    threshold_value double precision,
    summary text NOT NULL,
    trigger_details jsonb NOT NULL DEFAULT '{}',
    acknowledged_by varchar(255),
    resolution_notes text,
    suppression_reason text,
    is_flapping boolean NOT NULL DEFAULT false,
    false_positive boolean NOT NULL DEFAULT false,
    escalation_level integer NOT NULL DEFAULT 0,
    last_notified_timestamp timestamptz,
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    PRIMARY KEY (alert_instance_hk, load_date),
    CHECK (load_end_date >= load_date),
    CONSTRAINT alert_status_known CHECK (
        alert_status IN ('OPEN', 'ACKNOWLEDGED', 'ESCALATED', 'SUPPRESSED', 'RESOLVED')
    ),
    CONSTRAINT urgency_level_known CHECK (urgency_level IN ('LOW', 'MEDIUM', 'HIGH', 'CRITICAL')),
    CONSTRAINT fingerprint_is_hex CHECK (fingerprint ~ '^[0-9a-f]{64}$'),
    CONSTRAINT triggered_after_it_started CHECK (triggered_timestamp >= started_timestamp),
    CONSTRAINT resolved_says_when CHECK ((alert_status = 'RESOLVED') = (resolved_timestamp IS NOT NULL)),
    CONSTRAINT suppressed_says_why CHECK (alert_status <> 'SUPPRESSED' OR suppression_reason IS NOT NULL),
    CONSTRAINT escalation_level_in_range CHECK (escalation_level >= 0)
);
COMMENT ON COLUMN monitoring.alert_instance_s.alert_status IS
    'OPEN: firing. A condition that does not hold for long enough yet is no alert: it stands in rule_state alone.';
CREATE UNIQUE INDEX alert_instance_s_one_version
    ON monitoring.alert_instance_s (alert_instance_hk) WHERE load_end_date IS NULL;
CREATE UNIQUE INDEX alert_instance_s_one_open_alert
    ON monitoring.alert_instance_s (fingerprint) WHERE load_end_date IS NULL AND alert_status <> 'RESOLVED';
CREATE INDEX idx_alert_instance_s_open
    ON monitoring.alert_instance_s (server_name, urgency_level) WHERE load_end_date IS NULL AND alert_status <> 'RESOLVED';
CREATE INDEX idx_alert_instance_s_triggered
    ON monitoring.alert_instance_s (triggered_timestamp DESC) WHERE load_end_date IS NULL;
CREATE INDEX idx_alert_instance_s_fingerprint ON monitoring.alert_instance_s (fingerprint, load_date DESC);
CREATE TRIGGER set_hash_diff BEFORE INSERT ON monitoring.alert_instance_s
    FOR EACH ROW EXECUTE FUNCTION util.set_hash_diff();

CREATE TABLE monitoring.alert_transition (
    transition_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert_instance_hk bytea NOT NULL REFERENCES monitoring.alert_instance_h,
    fingerprint varchar(64) NOT NULL,
    happened_at timestamptz NOT NULL,
    from_status varchar(20),
    to_status varchar(20) NOT NULL,
    urgency_level varchar(20) NOT NULL,
    metric_value double precision,
    -- What a person is to hear of it: first, worse, refire, repeat, resolved; NULL when nothing.
    notify_reason varchar(20),
    not_notified_because text,
    event_emitted_at timestamptz,
    CONSTRAINT notify_reason_known CHECK (notify_reason IN ('first', 'worse', 'refire', 'repeat', 'resolved'))
);
CREATE INDEX idx_alert_transition_instance ON monitoring.alert_transition (alert_instance_hk, happened_at);
CREATE INDEX idx_alert_transition_happened_at ON monitoring.alert_transition (happened_at DESC, transition_id DESC);
CREATE INDEX idx_alert_transition_fingerprint ON monitoring.alert_transition (fingerprint, happened_at DESC);
CREATE INDEX idx_alert_transition_not_emitted ON monitoring.alert_transition (transition_id) WHERE event_emitted_at IS NULL;

CREATE TABLE monitoring.alert_silence (
    silence_id uuid PRIMARY KEY,
    tenant_hk bytea NOT NULL DEFAULT util.get_system_operations_tenant_hk() REFERENCES auth.tenant_h,
    matchers jsonb NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    comment text NOT NULL,
    CONSTRAINT ends_after_it_starts CHECK (ends_at > starts_at),
    CONSTRAINT a_silence_says_why CHECK (comment <> ''),
    CONSTRAINT a_silence_matches_something_named CHECK (matchers <> '{}')
);
CREATE INDEX idx_alert_silence_ends_at ON monitoring.alert_silence (ends_at);

CREATE TABLE monitoring.rule_state (
    fingerprint varchar(64) PRIMARY KEY,
    server_name text NOT NULL,
    rule_name varchar(200) NOT NULL,
    state jsonb NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT fingerprint_is_hex CHECK (fingerprint ~ '^[0-9a-f]{64}$')
) WITH (fillfactor = 50);
COMMENT ON TABLE monitoring.rule_state IS
    'What an evaluation must remember of a condition: since when each level holds or is clear, its last flips, what people heard.';
CREATE INDEX idx_rule_state_server ON monitoring.rule_state (server_name);

ALTER TABLE monitoring.alert_definition_h ENABLE ROW LEVEL SECURITY;
CREATE POLICY readable ON monitoring.alert_definition_h
    USING (tenant_hk IN ((SELECT util.current_tenant_hk()), util.get_system_operations_tenant_hk()));
ALTER TABLE monitoring.alert_definition_s ENABLE ROW LEVEL SECURITY;
CREATE POLICY readable ON monitoring.alert_definition_s USING (
    EXISTS (
        SELECT FROM monitoring.alert_definition_h AS hub
        WHERE hub.alert_definition_hk = alert_definition_s.alert_definition_hk
    )
);
ALTER TABLE monitoring.alert_instance_h ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.alert_instance_h USING (tenant_hk = (SELECT util.current_tenant_hk()));
ALTER TABLE monitoring.alert_instance_s ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.alert_instance_s USING (
    EXISTS (
        SELECT FROM monitoring.alert_instance_h AS hub
        WHERE hub.alert_instance_hk = alert_instance_s.alert_instance_hk
    )
);
ALTER TABLE monitoring.alert_transition ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.alert_transition USING (
    EXISTS (
        SELECT FROM monitoring.alert_instance_h AS hub
        WHERE hub.alert_instance_hk = alert_transition.alert_instance_hk
    )
);
ALTER TABLE monitoring.alert_silence ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.alert_silence USING (tenant_hk = (SELECT util.current_tenant_hk()));
ALTER TABLE monitoring.rule_state ENABLE ROW LEVEL SECURITY;
