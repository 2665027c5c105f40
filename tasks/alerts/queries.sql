-- name: take_turn
-- The lock that keeps two evaluations apart until the transaction ends; false when another one is at work.
SELECT pg_try_advisory_xact_lock(hashtextextended('onevault:alerts:evaluate', 0));

-- name: wait_for_turn
-- The same lock, for what a person does to an alert.
SELECT pg_advisory_xact_lock(hashtextextended('onevault:alerts:evaluate', 0));

-- name: servers
-- The servers that are looked after, with their tenants.
SELECT server.server_bk AS name, server.tenant_hk, tenant.tenant_bk AS tenant
FROM monitoring.server_h AS server
JOIN auth.tenant_h AS tenant USING (tenant_hk)
WHERE %(servers)s::text[] IS NULL OR server.server_bk = ANY(%(servers)s);

-- name: latest
-- The newest sample of every object of the families that rules look at.
SELECT
    series.series_id, server.server_bk AS server, series.family, series.labels, latest.sampled_at,
    latest."values", latest.interval_seconds, latest.texts
FROM monitoring.series
JOIN monitoring.server_h AS server USING (server_hk)
JOIN monitoring.metric_latest AS latest USING (series_id)
WHERE series.family = ANY(%(families)s) AND (%(servers)s::text[] IS NULL OR server.server_bk = ANY(%(servers)s));

-- name: growths
-- What counters grew by in some time up to their newest sample, for the rules that look at more than one sample.
SELECT series.series_id, wanted.metric, wanted.span, grown.growth, coalesce(grown.seconds, 0) AS seconds
FROM unnest(%(families)s::text[], %(metrics)s::text[], %(spans)s::interval[]) AS wanted (family, metric, span)
JOIN monitoring.series USING (family)
JOIN monitoring.server_h AS server USING (server_hk)
JOIN monitoring.metric_latest AS latest USING (series_id)
CROSS JOIN LATERAL (
    SELECT
        sum((sample."values" ->> wanted.metric)::double precision) AS growth,
        sum(sample.interval_seconds::double precision) AS seconds
    FROM monitoring.metric_sample AS sample
    WHERE sample.series_id = series.series_id
      AND sample.sampled_at > latest.sampled_at - wanted.span AND sample.sampled_at <= latest.sampled_at
      AND sample."values" ? wanted.metric
) AS grown
WHERE latest.sampled_at > %(now)s::timestamptz - interval '1 day' AND grown.growth IS NOT NULL
  AND (%(servers)s::text[] IS NULL OR server.server_bk = ANY(%(servers)s));

-- name: statement_means
-- How many statements, of those that ran more than five times in five minutes, were slow on average.
SELECT
    server.server_bk AS server, status.collected_at AS sampled_at,
    count(*) FILTER (WHERE statement.mean_ms > 1000)::double precision AS slow,
    count(*) FILTER (WHERE statement.mean_ms > 5000)::double precision AS critical,
    (array_agg(left(known.query, 200) ORDER BY statement.mean_ms DESC NULLS LAST))[1] AS slowest
FROM monitoring.server_h AS server
JOIN monitoring.family_status AS status
    ON status.server_hk = server.server_hk AND status.family = 'statements' AND status.state = 'OK'
LEFT JOIN LATERAL (
    SELECT sample.query_id, sum(sample.total_exec_ms) / sum(sample.calls) AS mean_ms
    FROM monitoring.statement_sample AS sample
    WHERE sample.server_hk = server.server_hk AND sample.query_id <> 0
      AND sample.sampled_at > %(now)s::timestamptz - interval '5 minutes' AND sample.sampled_at <= %(now)s
    GROUP BY sample.database_name, sample.role_name, sample.query_id, sample.toplevel
    HAVING sum(sample.calls) > 5
) AS statement ON statement.mean_ms > 1000
LEFT JOIN monitoring.statement_text AS known
    ON known.server_hk = server.server_hk AND known.query_id = statement.query_id
WHERE status.collected_at IS NOT NULL AND (%(servers)s::text[] IS NULL OR server.server_bk = ANY(%(servers)s))
GROUP BY server.server_bk, status.collected_at;

-- name: family_statuses
-- How asking for each family went the last time.
SELECT
    server.server_bk AS server, status.family, status.database_name AS database, status.state,
    status.attempted_at, status.collected_at
FROM monitoring.family_status AS status
JOIN monitoring.server_h AS server USING (server_hk)
WHERE %(servers)s::text[] IS NULL OR server.server_bk = ANY(%(servers)s);

-- name: open_alerts
-- The alerts that are not resolved, each in its open version.
SELECT {columns}
FROM monitoring.alert_instance_s AS alert
WHERE alert.load_end_date IS NULL AND alert.alert_status <> 'RESOLVED'
  AND (%(servers)s::text[] IS NULL OR alert.server_name = ANY(%(servers)s));

-- name: memories
-- What the last evaluation remembered.
SELECT fingerprint, state
FROM monitoring.rule_state
WHERE %(servers)s::text[] IS NULL OR server_name = ANY(%(servers)s);

-- name: silences
-- The silences that have not ended.
SELECT silence_id, matchers, starts_at, ends_at, created_by, comment, tenant_hk
FROM monitoring.alert_silence
WHERE ends_at > %(now)s
ORDER BY ends_at, silence_id;

-- name: insert_silence
-- A new silence.
INSERT INTO monitoring.alert_silence (silence_id, matchers, starts_at, ends_at, created_by, comment)
VALUES (%(silence_id)s, %(matchers)s, %(starts_at)s, %(ends_at)s, %(by)s, %(comment)s);

-- name: end_silence
-- A silence that holds or is to come ends now.
UPDATE monitoring.alert_silence
SET ends_at = greatest(%(now)s, starts_at + interval '1 microsecond')
WHERE silence_id = %(id)s AND ends_at > %(now)s;

-- name: insert_alert_hubs
-- Episodes of alerts that begin, each of its rule and its server's tenant.
INSERT INTO monitoring.alert_instance_h (alert_instance_hk, alert_instance_bk, alert_definition_hk, tenant_hk)
SELECT row.alert_instance_hk, row.alert_instance_bk, row.alert_definition_hk, row.tenant_hk
FROM jsonb_populate_recordset(NULL::monitoring.alert_instance_h, %(rows)s) AS row
ON CONFLICT (alert_instance_hk) DO NOTHING;

-- name: append_alert_versions
-- The open versions are closed and the new ones added, in one statement.
WITH change AS MATERIALIZED (
    SELECT * FROM jsonb_populate_recordset(NULL::monitoring.alert_instance_s, %(rows)s)
), closed AS (
    UPDATE monitoring.alert_instance_s AS version
    SET load_end_date = greatest(util.current_load_date(), version.load_date + interval '1 microsecond')
    FROM change
    WHERE version.alert_instance_hk = change.alert_instance_hk AND version.load_end_date IS NULL
    RETURNING version.alert_instance_hk, version.load_end_date
)
INSERT INTO monitoring.alert_instance_s (load_date, {columns})
SELECT coalesce(closed.load_end_date, util.current_load_date()), {changed}
FROM change
LEFT JOIN closed USING (alert_instance_hk);

-- name: insert_transitions
-- What happened, and who is to hear of it.
INSERT INTO monitoring.alert_transition (
    alert_instance_hk, fingerprint, happened_at, from_status, to_status, urgency_level, metric_value, notify_reason,
    not_notified_because
)
SELECT
    row.alert_instance_hk, row.fingerprint, row.happened_at, row.from_status, row.to_status, row.urgency_level,
    row.metric_value, row.notify_reason, row.not_notified_because
FROM jsonb_populate_recordset(NULL::monitoring.alert_transition, %(rows)s) AS row;

-- name: remember
-- What the next evaluation has to know.
INSERT INTO monitoring.rule_state (fingerprint, server_name, rule_name, state, updated_at)
SELECT row.fingerprint, row.server_name, row.rule_name, row.state, row.updated_at
FROM jsonb_populate_recordset(NULL::monitoring.rule_state, %(rows)s) AS row
ON CONFLICT (fingerprint) DO UPDATE SET state = excluded.state, updated_at = excluded.updated_at;

-- name: forget
-- What nobody needs to remember any more.
DELETE FROM monitoring.rule_state WHERE fingerprint = ANY(%(fingerprints)s);

-- name: open_health
-- The health metrics as their open versions say them.
SELECT health_metric_hk, status, threshold_warning, threshold_critical
FROM monitoring.system_health_metric_s
WHERE load_end_date IS NULL AND (%(servers)s::text[] IS NULL OR server_name = ANY(%(servers)s));

-- name: insert_health_hubs
-- Health metrics seen for the first time.
INSERT INTO monitoring.system_health_metric_h (health_metric_hk, health_metric_bk, tenant_hk)
SELECT row.health_metric_hk, row.health_metric_bk, row.tenant_hk
FROM jsonb_populate_recordset(NULL::monitoring.system_health_metric_h, %(rows)s) AS row
ON CONFLICT (health_metric_hk) DO NOTHING;

-- name: append_health_versions
-- The open versions are closed and the new ones added, in one statement.
WITH change AS MATERIALIZED (
    SELECT * FROM jsonb_populate_recordset(NULL::monitoring.system_health_metric_s, %(rows)s)
), closed AS (
    UPDATE monitoring.system_health_metric_s AS version
    SET load_end_date = greatest(util.current_load_date(), version.load_date + interval '1 microsecond')
    FROM change
    WHERE version.health_metric_hk = change.health_metric_hk AND version.load_end_date IS NULL
    RETURNING version.health_metric_hk, version.load_end_date
)
INSERT INTO monitoring.system_health_metric_s (
    load_date, health_metric_hk, server_name, metric_name, labels, metric_category, metric_value, metric_unit,
    metric_direction, threshold_warning, threshold_critical, measurement_timestamp, status
)
SELECT
    coalesce(closed.load_end_date, util.current_load_date()), change.health_metric_hk, change.server_name,
    change.metric_name, change.labels, change.metric_category, change.metric_value, change.metric_unit,
    change.metric_direction, change.threshold_warning, change.threshold_critical, change.measurement_timestamp,
    change.status
FROM change
LEFT JOIN closed USING (health_metric_hk);

-- name: close_health
-- Health metrics of objects that are gone.
UPDATE monitoring.system_health_metric_s
SET load_end_date = greatest(util.current_load_date(), load_date + interval '1 microsecond')
WHERE load_end_date IS NULL AND health_metric_hk = ANY(%(keys)s);

-- name: definitions
-- What the rules were when they were last written down.
SELECT hub.alert_definition_bk AS name, version.condition_logic ->> 'digest' AS digest, version.is_enabled
FROM monitoring.alert_definition_h AS hub
JOIN monitoring.alert_definition_s AS version USING (alert_definition_hk)
WHERE version.load_end_date IS NULL;

-- name: not_emitted
-- Changes of status, severity or flapping, and notifications, for which no event has been emitted yet, oldest first.
SELECT
    transition.transition_id, transition.fingerprint, transition.happened_at, transition.from_status,
    transition.to_status, transition.urgency_level, transition.metric_value, transition.notify_reason,
    transition.not_notified_because, alert.rule_name, alert.server_name, alert.labels, alert.summary, alert.is_flapping,
    alert.acknowledged_by, alert.resolution_notes, alert.alert_category, alert.threshold_value, alert.started_timestamp, definition.next_step, definition.runbook
FROM monitoring.alert_transition AS transition
JOIN monitoring.alert_instance_s AS alert
    ON alert.alert_instance_hk = transition.alert_instance_hk AND alert.load_end_date IS NULL
JOIN monitoring.alert_definition_s AS definition
    ON definition.alert_definition_hk = (
        SELECT hub.alert_definition_hk FROM monitoring.alert_instance_h AS hub
        WHERE hub.alert_instance_hk = transition.alert_instance_hk
    ) AND definition.load_end_date IS NULL
WHERE transition.event_emitted_at IS NULL
ORDER BY transition.transition_id
LIMIT %(limit)s;

-- name: mark_emitted
-- The events of these transitions were emitted.
UPDATE monitoring.alert_transition SET event_emitted_at = %(now)s
WHERE transition_id = ANY(%(ids)s) AND event_emitted_at IS NULL;

-- name: forget_transitions
-- What happened long ago to alerts that are resolved.
DELETE FROM monitoring.alert_transition AS transition
USING monitoring.alert_instance_s AS alert
WHERE transition.happened_at < %(before)s
  AND alert.alert_instance_hk = transition.alert_instance_hk AND alert.load_end_date IS NULL
  AND alert.alert_status = 'RESOLVED' AND alert.resolved_timestamp < %(before)s;

-- name: unwatched
-- Servers that the vault knows, that are not on the list, and of which nothing was heard since.
SELECT server.server_bk AS name, server.tenant_hk, tenant.tenant_bk AS tenant
FROM monitoring.server_h AS server
JOIN auth.tenant_h AS tenant USING (tenant_hk)
WHERE server.server_bk <> ALL(%(watched)s::text[])
  AND NOT EXISTS (
      SELECT FROM monitoring.family_status AS status
      WHERE status.server_hk = server.server_hk AND status.family = %(family)s AND status.attempted_at >= %(since)s
  );

-- name: forget_servers
-- What was remembered of servers that are not watched any more.
DELETE FROM monitoring.rule_state WHERE server_name = ANY(%(servers)s);

-- name: history
-- What happened to alerts, newest first.
SELECT
    transition.happened_at, transition.from_status, transition.to_status, transition.urgency_level,
    transition.metric_value, transition.notify_reason, transition.not_notified_because, transition.fingerprint,
    alert.rule_name, alert.server_name, alert.labels, alert.summary
FROM monitoring.alert_transition AS transition
JOIN monitoring.alert_instance_s AS alert
    ON alert.alert_instance_hk = transition.alert_instance_hk AND alert.load_end_date IS NULL
WHERE (%(server)s::text IS NULL OR alert.server_name = %(server)s) AND transition.happened_at >= %(since)s
ORDER BY transition.happened_at DESC, transition.transition_id DESC
LIMIT %(limit)s;

-- name: find_alerts
-- Alerts by the beginning of their id or fingerprint, open ones first, then the newest; of a fingerprint its last episode.
SELECT DISTINCT ON (alert.fingerprint) {columns}
FROM monitoring.alert_instance_s AS alert
WHERE alert.load_end_date IS NULL
  AND (alert.fingerprint LIKE %(prefix)s || '%%' OR encode(alert.alert_instance_hk, 'hex') LIKE %(prefix)s || '%%')
ORDER BY alert.fingerprint, alert.triggered_timestamp DESC
LIMIT 10;

-- name: baselines_of
-- What is usual at an hour of the week, for some objects.
SELECT series_id, metric, low, median, high, samples AS weeks
FROM monitoring.metric_baseline
WHERE series_id = ANY(%(series)s) AND hour_of_week = %(hour)s;

-- name: compute_baselines
-- For each hour of the week: the tenth of lows, the middle, the ninth tenth of highs of that hour and its neighbours.
WITH hours AS (
    SELECT
        hourly.series_id, stat.key AS metric, hourly.bucket_at,
        ((extract(isodow FROM hourly.bucket_at AT TIME ZONE 'UTC')::int - 1) * 24
            + extract(hour FROM hourly.bucket_at AT TIME ZONE 'UTC')::int) AS hour_of_week,
        (stat.value ->> 'min')::double precision AS low,
        (stat.value ->> 'sum')::double precision / nullif((stat.value ->> 'n')::double precision, 0) AS mean,
        (stat.value ->> 'max')::double precision AS high
    FROM monitoring.metric_hourly AS hourly
    JOIN monitoring.series USING (series_id)
    CROSS JOIN LATERAL jsonb_each(hourly.stats) AS stat
    WHERE hourly.bucket_at >= %(since)s AND hourly.bucket_at < %(now)s
      AND series.family || '.' || stat.key = ANY(%(metrics)s)
)
INSERT INTO monitoring.metric_baseline (series_id, metric, hour_of_week, low, median, high, samples, computed_at)
SELECT
    hours.series_id, hours.metric, place.hour_of_week,
    percentile_cont(0.1) WITHIN GROUP (ORDER BY hours.low),
    percentile_cont(0.5) WITHIN GROUP (ORDER BY hours.mean),
    percentile_cont(0.9) WITHIN GROUP (ORDER BY hours.high),
    count(*) FILTER (WHERE hours.hour_of_week = place.hour_of_week),
    %(now)s
FROM hours
CROSS JOIN LATERAL (
    SELECT (hours.hour_of_week + shift + 168) %% 168 AS hour_of_week FROM unnest(ARRAY[-1, 0, 1]) AS shift
) AS place
GROUP BY hours.series_id, hours.metric, place.hour_of_week
HAVING count(*) FILTER (WHERE hours.hour_of_week = place.hour_of_week) > 0
ON CONFLICT (series_id, metric, hour_of_week) DO UPDATE
SET low = excluded.low, median = excluded.median, high = excluded.high, samples = excluded.samples,
    computed_at = excluded.computed_at;

-- name: drop_old_baselines
-- Baselines that the last four weeks do not bear out any more.
DELETE FROM monitoring.metric_baseline WHERE computed_at < %(now)s;

-- name: anomalies
-- The last two values of each object that has a baseline for this hour, with enough weeks behind it.
SELECT
    series.family || '.' || baseline.metric AS metric, series.labels, baseline.low, baseline.median, baseline.high,
    baseline.samples AS weeks, points.recent
FROM monitoring.server_h AS server
JOIN monitoring.series USING (server_hk)
JOIN monitoring.metric_baseline AS baseline USING (series_id)
CROSS JOIN LATERAL (
    SELECT array_agg((point."values" ->> baseline.metric)::double precision ORDER BY point.sampled_at DESC) AS recent
    FROM (
        SELECT sample."values", sample.sampled_at
        FROM monitoring.metric_sample AS sample
        WHERE sample.series_id = series.series_id AND sample.sampled_at > %(since)s AND sample.sampled_at <= %(now)s
          AND sample."values" ? baseline.metric
        ORDER BY sample.sampled_at DESC
        LIMIT 2
    ) AS point
) AS points
WHERE server.server_bk = %(server)s AND baseline.hour_of_week = %(hour)s AND baseline.samples >= %(weeks)s;
