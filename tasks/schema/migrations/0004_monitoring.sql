-- Metrics: who is watched, what was read, its roll-ups, and how healthy it was.

CREATE SCHEMA monitoring;

CREATE TABLE monitoring.server_h (
    server_hk bytea PRIMARY KEY,
    server_bk varchar(255) NOT NULL UNIQUE,
    tenant_hk bytea NOT NULL DEFAULT util.get_system_operations_tenant_hk() REFERENCES auth.tenant_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source()
);
COMMENT ON COLUMN monitoring.server_h.server_bk IS 'The name of the server''s block.';

CREATE TABLE monitoring.server_s (
    server_hk bytea NOT NULL REFERENCES monitoring.server_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    load_end_date timestamptz,
    hash_diff bytea NOT NULL,
    host text NOT NULL,
    port integer NOT NULL,
    database_name text NOT NULL,
    server_version text NOT NULL,
    system_identifier text NOT NULL,
    is_in_recovery boolean NOT NULL,
    postmaster_started_at timestamptz NOT NULL,
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    PRIMARY KEY (server_hk, load_date),
    CHECK (load_end_date >= load_date)
);
COMMENT ON TABLE monitoring.server_s IS 'What a server said of itself; a new version is a restart, an upgrade or a failover.';
CREATE UNIQUE INDEX server_s_one_open ON monitoring.server_s (server_hk) WHERE load_end_date IS NULL;
CREATE TRIGGER set_hash_diff BEFORE INSERT ON monitoring.server_s
    FOR EACH ROW EXECUTE FUNCTION util.set_hash_diff();

-- Samples do not version. A series is a family of metrics of one object; a sample is one reading of it.
CREATE TABLE monitoring.series (
    series_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    server_hk bytea NOT NULL REFERENCES monitoring.server_h,
    family text NOT NULL,
    labels jsonb NOT NULL DEFAULT '{}',
    first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (server_hk, family, labels)
);

CREATE TABLE monitoring.metric_sample (
    series_id integer NOT NULL,
    sampled_at timestamptz NOT NULL,
    interval_seconds real,
    "values" jsonb NOT NULL,
    PRIMARY KEY (series_id, sampled_at)
) PARTITION BY RANGE (sampled_at);
COMMENT ON TABLE monitoring.metric_sample IS
    'Gauges as read, and the growth of counters over interval_seconds. One partition a UTC day; old ones are dropped.';

CREATE TABLE monitoring.metric_latest (
    series_id integer PRIMARY KEY REFERENCES monitoring.series,
    sampled_at timestamptz NOT NULL,
    interval_seconds real,
    "values" jsonb NOT NULL,
    raw jsonb NOT NULL DEFAULT '{}',
    texts jsonb NOT NULL DEFAULT '{}',
    epoch text NOT NULL DEFAULT ''
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
COMMENT ON COLUMN monitoring.metric_latest.raw IS
    'The counters as they stood, from which a collector goes on after a restart without a gap.';

CREATE TABLE monitoring.family_status (
    server_hk bytea NOT NULL REFERENCES monitoring.server_h,
    family text NOT NULL,
    database_name text NOT NULL DEFAULT '',
    state text NOT NULL,
    attempted_at timestamptz NOT NULL,
    collected_at timestamptz,
    duration_ms real NOT NULL DEFAULT 0,
    message text NOT NULL DEFAULT '',
    PRIMARY KEY (server_hk, family, database_name),
    CHECK (state IN ('OK', 'DEGRADED', 'REFUSED', 'UNAVAILABLE', 'NOT_APPLICABLE'))
) WITH (fillfactor = 50);
COMMENT ON COLUMN monitoring.family_status.collected_at IS 'When it last answered; a series not in that answer is gone.';

CREATE TABLE monitoring.metric_hourly (
    series_id integer NOT NULL,
    bucket_at timestamptz NOT NULL,
    samples integer NOT NULL,
    covered_seconds double precision NOT NULL,
    stats jsonb NOT NULL,
    PRIMARY KEY (series_id, bucket_at)
) PARTITION BY RANGE (bucket_at);
COMMENT ON COLUMN monitoring.metric_hourly.stats IS 'By metric: n, sum, min, max of its values in this hour.';

CREATE TABLE monitoring.metric_daily (
    series_id integer NOT NULL,
    bucket_at timestamptz NOT NULL,
    samples integer NOT NULL,
    covered_seconds double precision NOT NULL,
    stats jsonb NOT NULL,
    PRIMARY KEY (series_id, bucket_at)
) PARTITION BY RANGE (bucket_at);

-- What the roll-ups have done, and what came in too late for them and is to be done again.
CREATE TABLE monitoring.roll_up_progress (
    roll_up text PRIMARY KEY,
    done_until timestamptz NOT NULL,
    CONSTRAINT roll_up_known CHECK (roll_up IN ('hourly'))
);
COMMENT ON COLUMN monitoring.roll_up_progress.done_until IS 'The end of the last hour that was rolled up.';
INSERT INTO monitoring.roll_up_progress (roll_up, done_until)
    VALUES ('hourly', date_trunc('hour', now(), 'UTC') - interval '2 days');

CREATE TABLE monitoring.late_bucket (
    server_hk bytea NOT NULL REFERENCES monitoring.server_h,
    bucket_at timestamptz NOT NULL,
    marked_at timestamptz NOT NULL,
    PRIMARY KEY (server_hk, bucket_at)
);
COMMENT ON TABLE monitoring.late_bucket IS 'Hours that had ended when samples of them came in, as from a buffer.';

CREATE TABLE monitoring.metric_baseline (
    series_id integer NOT NULL REFERENCES monitoring.series,
    metric text NOT NULL,
    hour_of_week smallint NOT NULL,
    low double precision NOT NULL,
    median double precision NOT NULL,
    high double precision NOT NULL,
    samples integer NOT NULL,
    computed_at timestamptz NOT NULL,
    PRIMARY KEY (series_id, metric, hour_of_week),
    CHECK (hour_of_week BETWEEN 0 AND 167)
);
COMMENT ON COLUMN monitoring.metric_baseline.hour_of_week IS 'In UTC; 0 is Monday 00:00.';

-- Statements: what each one grew by, and its text once.
CREATE TABLE monitoring.statement_text (
    server_hk bytea NOT NULL REFERENCES monitoring.server_h,
    query_id bigint NOT NULL,
    query text NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (server_hk, query_id)
);

CREATE TABLE monitoring.statement_sample (
    server_hk bytea NOT NULL,
    sampled_at timestamptz NOT NULL,
    database_name text NOT NULL,
    role_name text NOT NULL,
    query_id bigint NOT NULL,
    toplevel boolean NOT NULL,
    interval_seconds real NOT NULL,
    calls bigint NOT NULL,
    total_exec_ms double precision NOT NULL,
    rows bigint NOT NULL,
    shared_blks_hit bigint NOT NULL,
    shared_blks_read bigint NOT NULL,
    shared_blks_dirtied bigint NOT NULL,
    temp_blks_read bigint NOT NULL,
    temp_blks_written bigint NOT NULL,
    wal_bytes numeric NOT NULL,
    PRIMARY KEY (server_hk, sampled_at, database_name, role_name, query_id, toplevel)
) PARTITION BY RANGE (sampled_at);

CREATE TABLE monitoring.statement_snapshot (
    server_hk bytea PRIMARY KEY REFERENCES monitoring.server_h,
    taken_at timestamptz NOT NULL,
    epoch text NOT NULL,
    snapshot bytea NOT NULL
);
COMMENT ON TABLE monitoring.statement_snapshot IS
    'The counters of pg_stat_statements as they stood, compressed; the next growth is reckoned from them after a restart.';

CREATE TABLE monitoring.collector (
    collector_name text PRIMARY KEY,
    host text NOT NULL,
    process_id integer NOT NULL,
    flow_run_id uuid,
    started_at timestamptz NOT NULL,
    heartbeat_at timestamptz NOT NULL,
    servers integer NOT NULL DEFAULT 0,
    buffered_rows integer NOT NULL DEFAULT 0,
    lost_rows bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
COMMENT ON COLUMN monitoring.collector.lost_rows IS
    'Rows that the buffer could not hold while the vault was away, and that the vault would never take, since the start.';

-- Health: one version for each change of status or threshold; the value in between stands in metric_latest.
CREATE TABLE monitoring.system_health_metric_h (
    health_metric_hk bytea PRIMARY KEY,
    health_metric_bk varchar(1000) NOT NULL UNIQUE,
    tenant_hk bytea NOT NULL DEFAULT util.get_system_operations_tenant_hk() REFERENCES auth.tenant_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source()
);

CREATE TABLE monitoring.system_health_metric_s (
    health_metric_hk bytea NOT NULL REFERENCES monitoring.system_health_metric_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    load_end_date timestamptz,
    hash_diff bytea NOT NULL,
    server_name text NOT NULL,
    metric_name varchar(200) NOT NULL,
    labels jsonb NOT NULL DEFAULT '{}',
    metric_category varchar(50) NOT NULL,
    metric_value double precision,
    metric_unit varchar(50) NOT NULL,
    metric_direction varchar(20) NOT NULL,
    threshold_warning double precision,
    threshold_critical double precision,
    measurement_timestamp timestamptz,
    status varchar(20) NOT NULL DEFAULT 'UNKNOWN',
    additional_context jsonb NOT NULL DEFAULT '{}',
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    PRIMARY KEY (health_metric_hk, load_date),
    CHECK (load_end_date >= load_date),
    CONSTRAINT health_status_known CHECK (status IN ('NORMAL', 'WARNING', 'CRITICAL', 'UNKNOWN')),
    CONSTRAINT metric_category_known CHECK (
        metric_category IN ('PERFORMANCE', 'AVAILABILITY', 'SECURITY', 'COMPLIANCE', 'CAPACITY', 'BACKUP', 'MONITORING')
    ),
    CONSTRAINT metric_direction_known CHECK (metric_direction IN ('higher_is_worse', 'lower_is_worse', 'neutral')),
    CONSTRAINT no_value_is_unknown CHECK (metric_value IS NOT NULL OR status = 'UNKNOWN')
);
CREATE UNIQUE INDEX system_health_metric_s_one_open
    ON monitoring.system_health_metric_s (health_metric_hk) WHERE load_end_date IS NULL;
CREATE INDEX idx_system_health_metric_s_server
    ON monitoring.system_health_metric_s (server_name, status) WHERE load_end_date IS NULL;
CREATE INDEX idx_system_health_metric_s_load_date ON monitoring.system_health_metric_s (load_date);
CREATE TRIGGER set_hash_diff BEFORE INSERT ON monitoring.system_health_metric_s
    FOR EACH ROW EXECUTE FUNCTION util.set_hash_diff();

CREATE TABLE monitoring.performance_metric_h (
    performance_metric_hk bytea PRIMARY KEY,
    performance_metric_bk varchar(1000) NOT NULL UNIQUE,
    tenant_hk bytea NOT NULL DEFAULT util.get_system_operations_tenant_hk() REFERENCES auth.tenant_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source()
);
COMMENT ON COLUMN monitoring.performance_metric_h.performance_metric_bk IS
    'Server, database, role, query id and UTC hour, as a JSON array.';

CREATE TABLE monitoring.performance_metric_s (
    performance_metric_hk bytea NOT NULL REFERENCES monitoring.performance_metric_h,
    load_date timestamptz NOT NULL DEFAULT util.current_load_date(),
    load_end_date timestamptz,
    hash_diff bytea NOT NULL,
    server_name text NOT NULL,
    query_hash varchar(64) NOT NULL,
    database_name text NOT NULL,
    username text NOT NULL,
    query_text text,
    total_time_ms double precision NOT NULL,
    mean_time_ms double precision NOT NULL,
    calls bigint NOT NULL,
    rows_returned bigint NOT NULL,
    shared_blks_hit bigint NOT NULL,
    shared_blks_read bigint NOT NULL,
    shared_blks_dirtied bigint NOT NULL,
    temp_blks_read bigint NOT NULL,
    temp_blks_written bigint NOT NULL,
    cache_hit_percent double precision,
    measurement_period_start timestamptz NOT NULL,
    measurement_period_end timestamptz NOT NULL,
    performance_rating varchar(20) NOT NULL,
    optimization_suggestions text[] NOT NULL DEFAULT '{}',
    record_source varchar(100) NOT NULL DEFAULT util.get_record_source(),
    PRIMARY KEY (performance_metric_hk, load_date),
    CHECK (load_end_date >= load_date),
    CHECK (measurement_period_end >= measurement_period_start),
    CONSTRAINT performance_rating_known CHECK (performance_rating IN ('EXCELLENT', 'GOOD', 'POOR', 'CRITICAL'))
);
CREATE UNIQUE INDEX performance_metric_s_one_open
    ON monitoring.performance_metric_s (performance_metric_hk) WHERE load_end_date IS NULL;
CREATE INDEX idx_performance_metric_s_worst
    ON monitoring.performance_metric_s (server_name, measurement_period_start, total_time_ms DESC)
    WHERE load_end_date IS NULL;
CREATE TRIGGER set_hash_diff BEFORE INSERT ON monitoring.performance_metric_s
    FOR EACH ROW EXECUTE FUNCTION util.set_hash_diff();

-- A tenant sees its own servers and nothing of others'. The lists of own servers and of own series are made once a query.
ALTER TABLE monitoring.server_h ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.server_h USING (tenant_hk = (SELECT util.current_tenant_hk()));
ALTER TABLE monitoring.server_s ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.server_s USING (server_hk IN (SELECT hub.server_hk FROM monitoring.server_h AS hub));
ALTER TABLE monitoring.series ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.series USING (server_hk IN (SELECT hub.server_hk FROM monitoring.server_h AS hub));
ALTER TABLE monitoring.metric_sample ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.metric_sample
    USING (EXISTS (SELECT FROM monitoring.series WHERE series.series_id = metric_sample.series_id));
ALTER TABLE monitoring.metric_latest ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.metric_latest
    USING (EXISTS (SELECT FROM monitoring.series WHERE series.series_id = metric_latest.series_id));
ALTER TABLE monitoring.metric_hourly ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.metric_hourly
    USING (EXISTS (SELECT FROM monitoring.series WHERE series.series_id = metric_hourly.series_id));
ALTER TABLE monitoring.metric_daily ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.metric_daily
    USING (EXISTS (SELECT FROM monitoring.series WHERE series.series_id = metric_daily.series_id));
ALTER TABLE monitoring.metric_baseline ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.metric_baseline
    USING (EXISTS (SELECT FROM monitoring.series WHERE series.series_id = metric_baseline.series_id));
ALTER TABLE monitoring.family_status ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.family_status USING (server_hk IN (SELECT hub.server_hk FROM monitoring.server_h AS hub));
ALTER TABLE monitoring.statement_text ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.statement_text USING (server_hk IN (SELECT hub.server_hk FROM monitoring.server_h AS hub));
ALTER TABLE monitoring.statement_sample ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.statement_sample USING (server_hk IN (SELECT hub.server_hk FROM monitoring.server_h AS hub));
ALTER TABLE monitoring.statement_snapshot ENABLE ROW LEVEL SECURITY;
ALTER TABLE monitoring.roll_up_progress ENABLE ROW LEVEL SECURITY;
ALTER TABLE monitoring.late_bucket ENABLE ROW LEVEL SECURITY;
ALTER TABLE monitoring.collector ENABLE ROW LEVEL SECURITY;
ALTER TABLE monitoring.system_health_metric_h ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.system_health_metric_h USING (tenant_hk = (SELECT util.current_tenant_hk()));
ALTER TABLE monitoring.system_health_metric_s ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.system_health_metric_s USING (
    EXISTS (
        SELECT FROM monitoring.system_health_metric_h AS hub
        WHERE hub.health_metric_hk = system_health_metric_s.health_metric_hk
          AND hub.tenant_hk = (SELECT util.current_tenant_hk())
    )
);
ALTER TABLE monitoring.performance_metric_h ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.performance_metric_h USING (tenant_hk = (SELECT util.current_tenant_hk()));
ALTER TABLE monitoring.performance_metric_s ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON monitoring.performance_metric_s USING (
    EXISTS (
        SELECT FROM monitoring.performance_metric_h AS hub
        WHERE hub.performance_metric_hk = performance_metric_s.performance_metric_hk
          AND hub.tenant_hk = (SELECT util.current_tenant_hk())
    )
);
