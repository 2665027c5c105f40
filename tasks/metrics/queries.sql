-- name: clock
-- The vault's time.
SELECT clock_timestamp();

-- name: vault_now
-- The vault's time, and what changes when the numbers of series may mean others: a restart, a restore, a failover.
SELECT
    clock_timestamp(),
    pg_postmaster_start_time()::text,
    'monitoring.series'::regclass::oid,
    pg_relation_filenode('monitoring.series');

-- name: tenant
-- The key of a tenant.
SELECT tenant_hk FROM auth.tenant_h WHERE tenant_bk = %(tenant)s;

-- name: adopt_server
-- Give a server that never said who it is to the tenant that its facts name.
UPDATE monitoring.server_h AS hub
SET tenant_hk = %(tenant_hk)s
WHERE hub.server_hk = %(server_hk)s
  AND hub.tenant_hk = util.get_system_operations_tenant_hk()
  AND NOT EXISTS (SELECT FROM monitoring.server_s AS said WHERE said.server_hk = hub.server_hk);

-- name: tenant_of_server
-- The tenant that a server belongs to.
SELECT tenant_bk
FROM monitoring.server_h JOIN auth.tenant_h USING (tenant_hk)
WHERE server_hk = %(server_hk)s;

-- name: find_series
-- The numbers of known series, each with its place in the question.
SELECT wanted.place, series.series_id
FROM unnest(%(families)s::text[], %(labels)b::text[]) WITH ORDINALITY AS wanted (family, labels, place)
JOIN monitoring.series
    ON series.server_hk = %(server_hk)s
   AND series.family = wanted.family
   AND series.labels = wanted.labels::jsonb;

-- name: add_series
-- Number new series; another writer may have been first.
INSERT INTO monitoring.series (server_hk, family, labels)
SELECT %(server_hk)s, wanted.family, wanted.labels::jsonb
FROM unnest(%(families)s::text[], %(labels)b::text[]) AS wanted (family, labels)
ORDER BY wanted.family, wanted.labels::jsonb
ON CONFLICT (server_hk, family, labels) DO NOTHING;

-- name: add_samples
-- Samples of many series at once; one that is there already stays as it is.
INSERT INTO monitoring.metric_sample (series_id, sampled_at, interval_seconds, "values")
SELECT series_id, sampled_at, interval_seconds, "values"::jsonb
FROM unnest(
    %(series_ids)s::integer[], %(sampled_at)s::timestamptz[], %(intervals)s::real[], %(values)b::text[]
) AS sample (series_id, sampled_at, interval_seconds, "values")
ON CONFLICT (series_id, sampled_at) DO NOTHING;

-- name: upsert_latest
-- The newest sample of each series; it goes back in time only from a moment that the vault has not reached.
INSERT INTO monitoring.metric_latest AS stored (
    series_id, sampled_at, interval_seconds, "values", raw, texts, epoch
)
SELECT series_id, sampled_at, interval_seconds, "values"::jsonb, raw::jsonb, texts::jsonb, epoch
FROM unnest(
    %(series_ids)s::integer[], %(sampled_at)s::timestamptz[], %(intervals)s::real[], %(values)b::text[],
    %(raw)b::text[], %(texts)b::text[], %(epochs)s::text[]
) AS sample (series_id, sampled_at, interval_seconds, "values", raw, texts, epoch)
ORDER BY series_id
ON CONFLICT (series_id) DO UPDATE SET
    sampled_at = excluded.sampled_at,
    interval_seconds = excluded.interval_seconds,
    "values" = excluded."values",
    raw = excluded.raw,
    texts = excluded.texts,
    epoch = excluded.epoch
WHERE stored.sampled_at < excluded.sampled_at OR stored.sampled_at > now();

-- name: upsert_family_status
-- What came of asking for each family; only an answer moves collected_at.
INSERT INTO monitoring.family_status AS stored (
    server_hk, family, database_name, state, attempted_at, collected_at, duration_ms, message
)
SELECT
    %(server_hk)s, family, database_name, state, attempted_at,
    CASE WHEN state = 'OK' THEN attempted_at END, duration_ms, message
FROM unnest(
    %(families)s::text[], %(databases)s::text[], %(states)s::text[], %(attempted_at)s::timestamptz[],
    %(durations)s::real[], %(messages)s::text[]
) AS answer (family, database_name, state, attempted_at, duration_ms, message)
ORDER BY family, database_name
ON CONFLICT (server_hk, family, database_name) DO UPDATE SET
    state = excluded.state,
    attempted_at = excluded.attempted_at,
    collected_at = CASE
        WHEN excluded.collected_at IS NOT NULL THEN excluded.collected_at
        WHEN stored.collected_at > excluded.attempted_at THEN excluded.attempted_at
        ELSE stored.collected_at
    END,
    duration_ms = excluded.duration_ms,
    message = excluded.message
WHERE stored.attempted_at <= excluded.attempted_at OR stored.attempted_at > now();

-- name: end_databases
-- Databases that a complete list no longer has are waited for no longer.
UPDATE monitoring.family_status AS stored
SET state = 'NOT_APPLICABLE',
    attempted_at = %(listed_at)s,
    message = format('There is no database "%%s" to connect to any more.', stored.database_name)
WHERE stored.server_hk = %(server_hk)s
  AND stored.database_name <> ''
  AND stored.database_name <> ALL (%(databases)s::text[])
  AND stored.state <> 'NOT_APPLICABLE'
  AND (stored.attempted_at <= %(listed_at)s OR stored.attempted_at > now());

-- name: end_families
-- Families that nobody answers for any more are waited for no longer.
UPDATE monitoring.family_status AS stored
SET state = 'NOT_APPLICABLE',
    attempted_at = %(listed_at)s,
    message = 'What answers for it is not configured any more.'
WHERE stored.server_hk = %(server_hk)s
  AND stored.family = ANY(%(families)s::text[])
  AND stored.state <> 'NOT_APPLICABLE'
  AND (stored.attempted_at <= %(listed_at)s OR stored.attempted_at > now());

-- name: mark_late
-- Hours that had ended when samples of them came: their roll-ups are made again. The lock lasts until the samples are there.
INSERT INTO monitoring.late_bucket AS stored (server_hk, bucket_at, marked_at)
SELECT %(server_hk)s, bucket_at, now()
FROM unnest(%(buckets)s::timestamptz[]) AS late (bucket_at)
ORDER BY bucket_at
ON CONFLICT (server_hk, bucket_at) DO UPDATE SET marked_at = excluded.marked_at;

-- name: add_statement_texts
-- Texts of statements, each once.
INSERT INTO monitoring.statement_text (server_hk, query_id, query)
SELECT %(server_hk)s, query_id, query
FROM unnest(%(query_ids)s::bigint[], %(texts)b::text[]) AS statement (query_id, query)
ORDER BY query_id
ON CONFLICT (server_hk, query_id) DO NOTHING;

-- name: use_statement_texts
-- Remember, to the day, that statements were seen.
UPDATE monitoring.statement_text AS stored
SET last_seen_at = now()
WHERE stored.server_hk = %(server_hk)s
  AND stored.query_id = ANY(%(query_ids)s::bigint[])
  AND stored.last_seen_at < now() - interval '1 day';

-- name: add_statement_samples
-- What statements grew by.
INSERT INTO monitoring.statement_sample (
    server_hk, sampled_at, database_name, role_name, query_id, toplevel, interval_seconds, calls, total_exec_ms, rows,
    shared_blks_hit, shared_blks_read, shared_blks_dirtied, temp_blks_read, temp_blks_written, wal_bytes
)
SELECT %(server_hk)s, sample.*
FROM unnest(
    %(sampled_at)s::timestamptz[], %(database_name)s::text[], %(role_name)s::text[], %(query_id)s::bigint[],
    %(toplevel)s::boolean[], %(interval_seconds)s::real[], %(calls)s::bigint[], %(total_exec_ms)s::double precision[],
    %(rows)s::bigint[], %(shared_blks_hit)s::bigint[], %(shared_blks_read)s::bigint[],
    %(shared_blks_dirtied)s::bigint[], %(temp_blks_read)s::bigint[], %(temp_blks_written)s::bigint[],
    %(wal_bytes)s::numeric[]
) AS sample
ON CONFLICT (server_hk, sampled_at, database_name, role_name, query_id, toplevel) DO NOTHING;

-- name: upsert_statement_snapshot
-- The counters of pg_stat_statements as they stood.
INSERT INTO monitoring.statement_snapshot AS stored (server_hk, taken_at, epoch, snapshot)
VALUES (%(server_hk)s, %(taken_at)s, %(epoch)s, %(snapshot)s)
ON CONFLICT (server_hk) DO UPDATE SET
    taken_at = excluded.taken_at,
    epoch = excluded.epoch,
    snapshot = excluded.snapshot
WHERE stored.taken_at < excluded.taken_at OR stored.taken_at > now();

-- name: latest_counters
-- The counters of one server as they stood at the last reading, and its clock.
SELECT
    series.family, series.labels, latest.sampled_at,
    CASE WHEN series.family = 'availability' THEN latest."values" ELSE '{}' END,
    latest.interval_seconds, latest.raw, latest.epoch
FROM monitoring.series
JOIN monitoring.metric_latest AS latest USING (series_id)
WHERE series.server_hk = %(server_hk)s
  AND (latest.raw <> '{}' OR (series.family = 'availability' AND latest."values" ? 'clock_epoch_seconds'));

-- name: latest_snapshot
-- The statements' counters of one server as they stood.
SELECT taken_at, epoch, snapshot FROM monitoring.statement_snapshot WHERE server_hk = %(server_hk)s;

-- name: beat
-- A collector lives; the time is the vault's.
INSERT INTO monitoring.collector (
    collector_name, host, process_id, flow_run_id, started_at, heartbeat_at, servers, buffered_rows, lost_rows
)
VALUES (
    %(name)s, %(host)s, %(process_id)s, %(flow_run_id)s, %(started_at)s, clock_timestamp(),
    %(servers)s, %(buffered_rows)s, %(lost_rows)s
)
ON CONFLICT (collector_name) DO UPDATE SET
    host = excluded.host,
    process_id = excluded.process_id,
    flow_run_id = excluded.flow_run_id,
    started_at = excluded.started_at,
    heartbeat_at = excluded.heartbeat_at,
    servers = excluded.servers,
    buffered_rows = excluded.buffered_rows,
    lost_rows = excluded.lost_rows;

-- name: collectors
-- Every collector with the age of its last sign of life.
SELECT
    collector_name AS name, host, process_id, flow_run_id, started_at, servers, buffered_rows, lost_rows,
    heartbeat_at, extract(epoch FROM clock_timestamp() - heartbeat_at)::double precision AS age_seconds
FROM monitoring.collector
ORDER BY collector_name;

-- name: end_when_gone
-- A leader whose host or network went loses its session, and so the lead, in a minute instead of two hours.
SELECT
    set_config('tcp_keepalives_idle', '20', false),
    set_config('tcp_keepalives_interval', '10', false),
    set_config('tcp_keepalives_count', '4', false);

-- name: try_lead
-- The lock of the one collector that leads under a name, held by the session.
SELECT pg_try_advisory_lock(hashtextextended('onevault:collector:' || %(name)s, 0));

-- name: stop_leading
-- Give the lead back.
SELECT pg_advisory_unlock(hashtextextended('onevault:collector:' || %(name)s, 0));

-- name: show_in_utc
-- Times in this transaction are written in UTC.
SELECT set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO', true);

-- name: partitions
-- The partitions of a table, with their bounds.
SELECT child.relname, coalesce(pg_get_expr(child.relpartbound, child.oid), '')
FROM pg_inherits AS link JOIN pg_class AS child ON child.oid = link.inhrelid
WHERE link.inhparent = %(parent)s::text::regclass;

-- name: limit_waiting
-- Nobody waits behind this transaction for longer.
SELECT set_config('lock_timeout', %(lock_timeout)s, true);

-- name: take_partitions
-- Partitions are made and dropped by one session at a time.
SELECT pg_advisory_xact_lock(hashtextextended('onevault:partitions', 0));

-- name: make_partition
-- A table to become a partition; made apart, so that the parent is never locked against readers and writers.
CREATE TABLE {partition} (LIKE {parent} INCLUDING ALL);

-- name: close_partition
-- Nobody but the owner reads a partition past its parent's policy.
ALTER TABLE {partition} ENABLE ROW LEVEL SECURITY;

-- name: attach_partition
-- Let the parent have it.
ALTER TABLE {parent} ATTACH PARTITION {partition} FOR VALUES FROM ({starts_at}) TO ({ends_at});

-- name: detach_partition
-- Take it from the parent.
ALTER TABLE {parent} DETACH PARTITION {partition};

-- name: drop_partition
-- Remove it.
DROP TABLE {partition};

-- name: take_roll_up
-- Roll-ups are made by one session at a time.
SELECT pg_try_advisory_xact_lock(hashtextextended('onevault:roll_up', 0));

-- name: rolled_up_until
-- The end of the last hour that was rolled up, and the last hour that has ended for good.
SELECT
    done_until,
    date_trunc('hour', least(%(now)s, clock_timestamp()) - make_interval(secs => %(grace_seconds)s), 'UTC')
FROM monitoring.roll_up_progress
WHERE roll_up = 'hourly';

-- name: set_rolled_up_until
-- Remember it.
UPDATE monitoring.roll_up_progress SET done_until = %(until)s WHERE roll_up = 'hourly';

-- name: forget_late
-- The marks of an hour about to be rolled up; a writer who has marked it and not committed is waited for.
DELETE FROM monitoring.late_bucket WHERE bucket_at = %(bucket_at)s;

-- name: take_late
-- Take the oldest mark of an hour that was rolled up before its samples came.
DELETE FROM monitoring.late_bucket
WHERE (server_hk, bucket_at) = (
    SELECT server_hk, bucket_at FROM monitoring.late_bucket WHERE bucket_at < %(until)s ORDER BY bucket_at LIMIT 1
)
RETURNING server_hk, bucket_at;

-- name: roll_up_hour
-- An hour's samples by series and metric; of counters, the growth and the seconds over which it was seen.
INSERT INTO monitoring.metric_hourly AS stored (series_id, bucket_at, samples, covered_seconds, stats)
SELECT
    series_id, %(bucket_at)s, max(n), coalesce(max(seconds), 0),
    jsonb_object_agg(metric, jsonb_build_object('n', n, 'sum', total, 'min', low, 'max', high))
FROM (
    SELECT
        sample.series_id, reading.key AS metric, count(*) AS n,
        sum(reading.value::double precision) AS total,
        min(reading.value::double precision) AS low,
        max(reading.value::double precision) AS high,
        sum(sample.interval_seconds::double precision) AS seconds
    FROM monitoring.metric_sample AS sample
    CROSS JOIN LATERAL jsonb_each(sample."values") AS reading
    WHERE sample.sampled_at >= %(bucket_at)s
      AND sample.sampled_at < %(bucket_at)s + interval '1 hour'
      {of_server}
    GROUP BY sample.series_id, reading.key
) AS by_metric
GROUP BY series_id
ON CONFLICT (series_id, bucket_at) DO UPDATE SET
    samples = excluded.samples,
    covered_seconds = excluded.covered_seconds,
    stats = excluded.stats
WHERE stored.stats <> excluded.stats OR stored.covered_seconds <> excluded.covered_seconds;

-- name: roll_up_day
-- A day's hours by series and metric.
WITH hourly AS MATERIALIZED (
    SELECT series_id, samples, covered_seconds, stats
    FROM monitoring.metric_hourly AS sample
    WHERE sample.bucket_at >= %(bucket_at)s
      AND sample.bucket_at < %(bucket_at)s + interval '1 day'
      {of_server}
),
by_series AS (
    SELECT series_id, sum(samples) AS samples, sum(covered_seconds) AS covered_seconds FROM hourly GROUP BY series_id
),
by_metric AS (
    SELECT
        hourly.series_id, hour.key AS metric,
        sum((hour.value -> 'n')::bigint) AS n,
        sum((hour.value -> 'sum')::double precision) AS total,
        min((hour.value -> 'min')::double precision) AS low,
        max((hour.value -> 'max')::double precision) AS high
    FROM hourly CROSS JOIN LATERAL jsonb_each(hourly.stats) AS hour
    GROUP BY hourly.series_id, hour.key
)
INSERT INTO monitoring.metric_daily AS stored (series_id, bucket_at, samples, covered_seconds, stats)
SELECT
    by_series.series_id, %(bucket_at)s, by_series.samples, by_series.covered_seconds,
    jsonb_object_agg(metric, jsonb_build_object('n', n, 'sum', total, 'min', low, 'max', high))
FROM by_series JOIN by_metric USING (series_id)
GROUP BY by_series.series_id, by_series.samples, by_series.covered_seconds
ON CONFLICT (series_id, bucket_at) DO UPDATE SET
    samples = excluded.samples,
    covered_seconds = excluded.covered_seconds,
    stats = excluded.stats
WHERE stored.stats <> excluded.stats OR stored.covered_seconds <> excluded.covered_seconds;

-- name: performance_since
-- From which hour the worst statements may be missing or may have grown: two hours before the last recorded one.
SELECT greatest(
    date_trunc('hour', %(now)s::timestamptz, 'UTC') - interval '1 day',
    (SELECT max(measurement_period_start) FROM monitoring.performance_metric_s WHERE load_end_date IS NULL)
        - interval '2 hours'
);

-- name: worst_statements
-- Of each server, the statements that took most of one hour.
SELECT hub.server_bk AS server, hub.tenant_hk, worst.*
FROM monitoring.server_h AS hub
CROSS JOIN LATERAL (
    SELECT
        sample.database_name AS database, sample.role_name AS role, sample.query_id, text.query,
        sum(sample.calls)::bigint AS calls,
        sum(sample.total_exec_ms) AS total_ms,
        sum(sample.rows)::bigint AS rows,
        sum(sample.shared_blks_hit)::bigint AS shared_blks_hit,
        sum(sample.shared_blks_read)::bigint AS shared_blks_read,
        sum(sample.shared_blks_dirtied)::bigint AS shared_blks_dirtied,
        sum(sample.temp_blks_read)::bigint AS temp_blks_read,
        sum(sample.temp_blks_written)::bigint AS temp_blks_written
    FROM monitoring.statement_sample AS sample
    LEFT JOIN monitoring.statement_text AS text USING (server_hk, query_id)
    WHERE sample.server_hk = hub.server_hk
      AND sample.sampled_at >= %(since)s
      AND sample.sampled_at < %(until)s
      AND sample.query_id <> 0
    GROUP BY sample.database_name, sample.role_name, sample.query_id, text.query
    HAVING sum(sample.calls) > %(above_calls)s
    ORDER BY total_ms DESC
    LIMIT %(limit)s
) AS worst;

-- name: add_performance_hubs
-- Keys of the worst statements of an hour.
INSERT INTO monitoring.performance_metric_h (performance_metric_hk, performance_metric_bk, tenant_hk)
SELECT util.hash_binary(key), key, decode(tenant, 'hex')
FROM jsonb_to_recordset(%(rows)s) AS row (key text, tenant text)
ON CONFLICT (performance_metric_hk) DO NOTHING;

-- name: close_performance
-- Close the versions that late samples have overtaken.
UPDATE monitoring.performance_metric_s AS stored
SET load_end_date = greatest(util.current_load_date(), stored.load_date + interval '1 microsecond')
FROM jsonb_to_recordset(%(rows)s) AS row (key text, calls bigint, total_time_ms double precision)
WHERE stored.performance_metric_hk = util.hash_binary(row.key)
  AND stored.load_end_date IS NULL
  AND (stored.calls <> row.calls OR abs(stored.total_time_ms - row.total_time_ms) > 0.0005);

-- name: add_performance
-- The worst statements that have no open version.
INSERT INTO monitoring.performance_metric_s (
    performance_metric_hk, server_name, query_hash, database_name, username, query_text, total_time_ms, mean_time_ms,
    calls, rows_returned, shared_blks_hit, shared_blks_read, shared_blks_dirtied, temp_blks_read, temp_blks_written,
    cache_hit_percent, measurement_period_start, measurement_period_end, performance_rating, optimization_suggestions
)
SELECT
    util.hash_binary(row.key), server_name, query_hash, database_name, username, query_text, total_time_ms, mean_time_ms,
    calls, rows_returned, shared_blks_hit, shared_blks_read, shared_blks_dirtied, temp_blks_read, temp_blks_written,
    cache_hit_percent, %(since)s, %(until)s, performance_rating, optimization_suggestions
FROM jsonb_to_recordset(%(rows)s) AS row (
    key text, server_name text, query_hash text, database_name text, username text, query_text text,
    total_time_ms double precision, mean_time_ms double precision, calls bigint, rows_returned bigint,
    shared_blks_hit bigint, shared_blks_read bigint, shared_blks_dirtied bigint, temp_blks_read bigint,
    temp_blks_written bigint, cache_hit_percent double precision, performance_rating text,
    optimization_suggestions text[]
)
WHERE NOT EXISTS (
    SELECT FROM monitoring.performance_metric_s AS stored
    WHERE stored.performance_metric_hk = util.hash_binary(row.key) AND stored.load_end_date IS NULL
);

-- name: fleet
-- Every server with its state, the age of its last sample, its open alerts and what is not healthy.
SELECT
    hub.server_bk AS server,
    tenant.tenant_bk AS tenant,
    said.server_version,
    said.is_in_recovery,
    said.host,
    said.port,
    (latest."values" -> 'up')::double precision = 1 AS is_up,
    latest.sampled_at,
    extract(epoch FROM clock_timestamp() - latest.sampled_at)::double precision AS age_seconds,
    alerts.worst AS worst_alert,
    alerts.open_alerts,
    health.critical, health.warning, health.unknown,
    families.faulty AS faulty_families
FROM monitoring.server_h AS hub
JOIN auth.tenant_h AS tenant USING (tenant_hk)
LEFT JOIN monitoring.server_s AS said ON said.server_hk = hub.server_hk AND said.load_end_date IS NULL
LEFT JOIN monitoring.series
    ON series.server_hk = hub.server_hk AND series.family = 'availability' AND series.labels = '{}'
LEFT JOIN monitoring.metric_latest AS latest USING (series_id)
CROSS JOIN LATERAL (
    SELECT
        count(*) AS open_alerts,
        (array_agg(alert.urgency_level ORDER BY array_position(
            ARRAY['CRITICAL', 'HIGH', 'MEDIUM', 'LOW'], alert.urgency_level::text)))[1] AS worst
    FROM monitoring.alert_instance_s AS alert
    WHERE alert.server_name = hub.server_bk
      AND alert.load_end_date IS NULL
      AND alert.alert_status <> 'RESOLVED'
) AS alerts
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE metric.status = 'CRITICAL') AS critical,
        count(*) FILTER (WHERE metric.status = 'WARNING') AS warning,
        count(*) FILTER (WHERE metric.status = 'UNKNOWN') AS unknown
    FROM monitoring.system_health_metric_s AS metric
    WHERE metric.server_name = hub.server_bk AND metric.load_end_date IS NULL
) AS health
CROSS JOIN LATERAL (
    SELECT count(*) AS faulty
    FROM monitoring.family_status AS family
    WHERE family.server_hk = hub.server_hk AND family.state IN ('DEGRADED', 'REFUSED', 'UNAVAILABLE')
) AS families
WHERE %(server)s::text IS NULL OR hub.server_bk = %(server)s
ORDER BY hub.server_bk;

-- name: server_metrics
-- The newest sample of each series of one server; is_gone when its family answered later without it.
SELECT
    series.family, series.labels, latest."values", latest.texts, latest.interval_seconds, latest.sampled_at,
    extract(epoch FROM clock_timestamp() - latest.sampled_at)::double precision AS age_seconds,
    EXISTS (
        SELECT FROM monitoring.family_status AS status
        WHERE status.server_hk = series.server_hk
          AND status.family = series.family
          AND status.database_name IN ('', series.labels ->> 'database')
          AND status.collected_at > latest.sampled_at
    ) AS is_gone
FROM monitoring.series
JOIN monitoring.metric_latest AS latest USING (series_id)
WHERE series.server_hk = %(server_hk)s
  AND (%(families)s::text[] IS NULL OR series.family = ANY (%(families)s::text[]))
ORDER BY series.family, series.labels;

-- name: families_not_ok
-- Families that did not answer the last time, faults first.
SELECT
    hub.server_bk AS server, status.family, status.database_name AS database, status.state, status.message,
    status.attempted_at, status.collected_at,
    extract(epoch FROM clock_timestamp() - status.collected_at)::double precision AS age_seconds
FROM monitoring.family_status AS status
JOIN monitoring.server_h AS hub USING (server_hk)
WHERE status.state <> 'OK' AND (%(server)s::text IS NULL OR hub.server_bk = %(server)s)
ORDER BY status.state = 'NOT_APPLICABLE', hub.server_bk, status.family, status.database_name;

-- name: health
-- Health metrics with their status, worst first.
SELECT
    server_name AS server, metric_name AS metric, labels, metric_category AS category, metric_value AS value,
    metric_unit AS unit, metric_direction AS direction, threshold_warning, threshold_critical, status,
    measurement_timestamp AS measured_at, load_date AS since,
    extract(epoch FROM clock_timestamp() - measurement_timestamp)::double precision AS age_seconds
FROM monitoring.system_health_metric_s
WHERE load_end_date IS NULL AND (%(server)s::text IS NULL OR server_name = %(server)s)
ORDER BY
    array_position(ARRAY['CRITICAL', 'WARNING', 'UNKNOWN', 'NORMAL'], status::text),
    server_name, metric_name, labels;

-- name: open_alerts
-- Alerts of one server, or of all, that are not resolved; the worst and oldest first.
SELECT
    server_name AS server, rule_name AS rule, labels, alert_category AS category, alert_status AS status,
    urgency_level AS urgency, summary, trigger_value, threshold_value, started_timestamp AS started_at,
    extract(epoch FROM clock_timestamp() - started_timestamp)::double precision AS age_seconds
FROM monitoring.alert_instance_s
WHERE load_end_date IS NULL
  AND alert_status <> 'RESOLVED'
  AND (%(server)s::text IS NULL OR server_name = %(server)s)
ORDER BY array_position(ARRAY['CRITICAL', 'HIGH', 'MEDIUM', 'LOW'], urgency_level::text), started_timestamp;

-- name: top_statements
-- The statements that took most of the last minutes; the share is that of all statements' time on the same server.
WITH grown AS MATERIALIZED (
    SELECT
        hub.server_hk, hub.server_bk, sample.database_name, sample.role_name, sample.query_id,
        max(sample.sampled_at) AS sampled_at,
        sum(sample.calls)::bigint AS calls,
        sum(sample.total_exec_ms) AS total_ms,
        sum(sample.rows)::bigint AS rows,
        sum(sample.shared_blks_hit)::bigint AS hit,
        sum(sample.shared_blks_read)::bigint AS read,
        (sum(sample.temp_blks_read) + sum(sample.temp_blks_written))::bigint AS temporary,
        sum(sample.wal_bytes) AS wal_bytes
    FROM monitoring.server_h AS hub
    JOIN monitoring.statement_sample AS sample USING (server_hk)
    WHERE sample.sampled_at >= now() - make_interval(mins => %(minutes)s)
      AND sample.sampled_at <= now() + interval '5 minutes'
      AND (%(server)s::text IS NULL OR hub.server_bk = %(server)s)
    GROUP BY hub.server_hk, hub.server_bk, sample.database_name, sample.role_name, sample.query_id
),
ranked AS (
    SELECT
        grown.*,
        100 * total_ms / nullif(sum(total_ms) OVER (PARTITION BY server_hk), 0) AS share_percent
    FROM grown
)
SELECT
    ranked.server_bk AS server, ranked.database_name AS database, ranked.role_name AS role, ranked.query_id,
    text.query, ranked.calls, ranked.total_ms, ranked.total_ms / nullif(ranked.calls, 0) AS mean_ms, ranked.rows,
    100.0::double precision * hit / nullif(hit + read, 0) AS hit_percent, ranked.temporary AS temp_blocks,
    ranked.wal_bytes::bigint AS wal_bytes, ranked.share_percent, ranked.sampled_at,
    extract(epoch FROM clock_timestamp() - ranked.sampled_at)::double precision AS age_seconds
FROM ranked
LEFT JOIN monitoring.statement_text AS text USING (server_hk, query_id)
WHERE ranked.query_id <> 0
ORDER BY ranked.total_ms DESC
LIMIT %(limit)s;

-- name: history_of_samples
-- Metrics of one server over time, from samples, gathered into steps; one row a metric and object.
SELECT series.family, wanted.metric, series.labels, points.*
FROM unnest(%(families)s::text[], %(metrics)s::text[]) AS wanted (family, metric)
JOIN monitoring.series
    ON series.server_hk = %(server_hk)s
   AND series.family = wanted.family
   AND series.labels @> %(labels)s::jsonb
CROSS JOIN LATERAL (
    SELECT
        array_agg(at), array_agg(n), array_agg(total), array_agg(low), array_agg(high), array_agg(covered_seconds)
    FROM (
        SELECT
            date_bin(%(step)s::interval, reading.sampled_at, %(since)s) AS at,
            count(*) AS n,
            sum(reading.value) AS total,
            min(reading.value) AS low,
            max(reading.value) AS high,
            coalesce(sum(reading.interval_seconds::double precision), 0) AS covered_seconds
        FROM (
            SELECT
                sample.sampled_at, sample.interval_seconds,
                (sample."values" -> wanted.metric)::double precision AS value
            FROM monitoring.metric_sample AS sample
            WHERE sample.series_id = series.series_id
              AND sample.sampled_at >= %(since)s
              AND sample.sampled_at <= %(until)s
        ) AS reading
        WHERE reading.value IS NOT NULL
        GROUP BY at
        ORDER BY at
    ) AS step
    HAVING count(*) > 0
) AS points
ORDER BY series.family, wanted.metric, series.labels;

-- name: history_of_hours
-- Metrics of one server over time, from the hourly roll-up; one row a metric and object.
SELECT series.family, wanted.metric, series.labels, points.*
FROM unnest(%(families)s::text[], %(metrics)s::text[]) AS wanted (family, metric)
JOIN monitoring.series
    ON series.server_hk = %(server_hk)s
   AND series.family = wanted.family
   AND series.labels @> %(labels)s::jsonb
CROSS JOIN LATERAL (
    SELECT
        array_agg(at),
        array_agg((stat -> 'n')::bigint),
        array_agg((stat -> 'sum')::double precision),
        array_agg((stat -> 'min')::double precision),
        array_agg((stat -> 'max')::double precision),
        array_agg(covered_seconds)
    FROM (
        SELECT hour.bucket_at AS at, hour.stats -> wanted.metric AS stat, hour.covered_seconds
        FROM monitoring.metric_hourly AS hour
        WHERE hour.series_id = series.series_id
          AND hour.bucket_at >= %(since)s
          AND hour.bucket_at <= %(until)s
        ORDER BY hour.bucket_at
    ) AS step
    WHERE stat IS NOT NULL
    HAVING count(*) > 0
) AS points
ORDER BY series.family, wanted.metric, series.labels;

-- name: history_of_days
-- Metrics of one server over time, from the daily roll-up; one row a metric and object.
SELECT series.family, wanted.metric, series.labels, points.*
FROM unnest(%(families)s::text[], %(metrics)s::text[]) AS wanted (family, metric)
JOIN monitoring.series
    ON series.server_hk = %(server_hk)s
   AND series.family = wanted.family
   AND series.labels @> %(labels)s::jsonb
CROSS JOIN LATERAL (
    SELECT
        array_agg(at),
        array_agg((stat -> 'n')::bigint),
        array_agg((stat -> 'sum')::double precision),
        array_agg((stat -> 'min')::double precision),
        array_agg((stat -> 'max')::double precision),
        array_agg(covered_seconds)
    FROM (
        SELECT day.bucket_at AS at, day.stats -> wanted.metric AS stat, day.covered_seconds
        FROM monitoring.metric_daily AS day
        WHERE day.series_id = series.series_id
          AND day.bucket_at >= %(since)s
          AND day.bucket_at <= %(until)s
        ORDER BY day.bucket_at
    ) AS step
    WHERE stat IS NOT NULL
    HAVING count(*) > 0
) AS points
ORDER BY series.family, wanted.metric, series.labels;

-- name: forget_gone
-- The newest samples of objects that nobody has seen for so long; their history stays in samples and roll-ups.
DELETE FROM monitoring.metric_latest WHERE sampled_at < %(now)s::timestamptz - make_interval(days => %(days)s);

-- name: forget_statuses
-- What nobody has asked for so long: families of dropped databases and of servers that are no longer watched.
DELETE FROM monitoring.family_status WHERE attempted_at < %(now)s::timestamptz - make_interval(days => %(days)s);

-- name: forget_texts
-- Texts of statements that nobody has seen for longer than their samples are kept.
DELETE FROM monitoring.statement_text WHERE last_seen_at < %(now)s::timestamptz - make_interval(days => %(days)s);

-- name: forget_baselines
-- What was usual of objects that are gone.
DELETE FROM monitoring.metric_baseline AS usual
WHERE NOT EXISTS (SELECT FROM monitoring.metric_latest AS latest WHERE latest.series_id = usual.series_id)
  AND usual.computed_at < %(now)s::timestamptz - make_interval(days => %(days)s);

-- name: forget_series
-- Numbers of series without any reading or roll-up, among so many chosen at random: each has partitions to look into.
DELETE FROM monitoring.series
USING (
    SELECT old.series_id
    FROM monitoring.series AS old
    WHERE old.first_seen_at < %(now)s::timestamptz - make_interval(days => %(days)s)
      AND NOT EXISTS (SELECT FROM monitoring.metric_latest AS latest WHERE latest.series_id = old.series_id)
      AND NOT EXISTS (SELECT FROM monitoring.metric_baseline AS usual WHERE usual.series_id = old.series_id)
    ORDER BY random()
    LIMIT %(limit)s
) AS looked_at
WHERE series.series_id = looked_at.series_id
  AND NOT EXISTS (SELECT FROM monitoring.metric_sample AS sample WHERE sample.series_id = series.series_id)
  AND NOT EXISTS (SELECT FROM monitoring.metric_hourly AS hour WHERE hour.series_id = series.series_id)
  AND NOT EXISTS (SELECT FROM monitoring.metric_daily AS day WHERE day.series_id = series.series_id);
