"""The catalogue is read strictly, and ours holds everything that is asked of it."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

from tasks.errors import Refused
from tasks.metrics import catalog
from tasks.metrics.models import Direction, Family, Kind, Level, Runs, Source, Tier

OURS = catalog.load()

SMALLEST = """
availability:
  description: Whether it answers.
  tier: light
  timeout_ms: 1000
  metrics:
    up: {kind: gauge, unit: boolean, direction: lower_is_worse, description: 1 when it answers.}
  sql: {15: select 1 as up}
"""
COUNTING = """
archive:
  description: What was archived.
  tier: minute
  timeout_ms: 500
  level: database
  runs: on_standby
  needs_right: pg_monitor
  needs_extension: ext
  labels: [name]
  texts: [words]
  epoch: since
  metrics:
    done: {kind: counter, unit: count, direction: neutral, description: Done.}
    failed: {kind: counter, unit: count, direction: higher_is_worse, description: Failed.}
    queue: {kind: gauge, unit: count, direction: higher_is_worse, description: To be done.}
  derived:
    failed_percent: {unit: percent, direction: higher_is_worse, description: Failed of all., numerator: [failed],
                     denominator: [done, failed], scale: 100}
  sql:
    15: |
      select 15 from {ext}.x
    17: select 17 from {ext}.y
"""


def test_an_entry_becomes_a_family():
    family = catalog.parse(COUNTING + SMALLEST).families["archive"]
    assert (family.source, family.level, family.tier) == (
        Source.POSTGRES,
        Level.DATABASE,
        Tier.MINUTE,
    )
    assert (family.runs, family.needs_right, family.needs_extension) == (
        Runs.ON_STANDBY,
        "pg_monitor",
        "ext",
    )
    assert (family.labels, family.texts, family.epoch) == (("name",), ("words",), "since")
    assert family.counters == {"done", "failed"}
    assert family.metrics["queue"].direction is Direction.HIGHER_IS_WORSE
    ratio = family.derived["failed_percent"]
    assert (ratio.numerator, ratio.denominator, ratio.scale) == (
        ("failed",),
        ("done", "failed"),
        100,
    )
    assert (ratio.metric.name, ratio.metric.kind) == ("failed_percent", Kind.GAUGE)


@pytest.mark.parametrize(
    ("major", "text"), [(14, None), (15, "select 15 from {ext}.x"), (19, "select 17 from {ext}.y")]
)
def test_a_query_names_itself_and_fits_the_version(major: int, text: str | None):
    family = catalog.parse(COUNTING + SMALLEST).families["archive"]
    assert family.statement(major) == (text and f"/* onevault:metrics.archive */ {text}")


def test_the_console_of_pgbouncer_gets_its_command_bare():
    pools = OURS.families["pgbouncer_pools"]
    assert pools.statement(0) == "SHOW POOLS"


def test_availability_comes_first():
    assert list(catalog.parse(COUNTING + SMALLEST).families) == ["availability", "archive"]


def test_a_file_can_be_read(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(SMALLEST)
    assert list(catalog.load(path).families) == ["availability"]


@pytest.mark.parametrize(
    ("found", "instead", "sentence"),
    [
        ("tier: minute", "tier: minute\n  colour: red", r"archive: colour: Extra inputs"),
        ("unit: count, direction: neutral", "unit: count, way: up, direction: neutral", r"archive: metrics\.done\.way: Extra"),
        ("tier: minute", "tier: minute\n  tier: hourly", r"the key 'tier' comes twice.* line 12"),
        ("    17: select", "    15: select", r"the key 15 comes twice"),
        ("    failed: {kind", "    done: {kind", r"the key 'done' comes twice"),
        ("tier: minute", "tier: sometimes", r"archive: tier: must be one of light, minute, five_minutes, hourly"),
        ("kind: gauge", "kind: needle", r"archive: metrics\.queue\.kind: must be one of gauge, counter"),
        ("direction: neutral", "direction: up", r"archive: metrics\.done\.direction: must be one of"),
        ("unit: percent", "unit: per mille", r"archive: derived\.failed_percent: unit must be one of boolean, "),
        ("level: database", "level: cluster", r"archive: level: must be one of instance, database"),
        ("runs: on_standby", "runs: sometimes", r"archive: runs: must be one of"),
        ("level: database", "source: oracle", r"archive: source: must be one of"),
        ("timeout_ms: 500", "timeout_ms: '500'", r"archive: timeout_ms: Input should be a valid integer"),
        ("timeout_ms: 500", "timeout_ms: 0", r"archive: timeout_ms: .*greater than 0"),
        ("labels: [name]", "labels: name", r"archive: labels: .*list"),
        ("labels: [name]", "labels: [1]", r"archive: labels\.0: .*string"),
        ("labels: [name]", "labels: [Name]", r"archive: labels\.0: .*pattern"),
        ("texts: [words]", "texts: [name]", r"archive: name is named more than once"),
        ("epoch: since", "epoch: done", r"archive: done is named more than once"),
        ("numerator: [failed]", "numerator: [queue]", r"archive: derived failed_percent is made of queue, which is no counter"),
        ("denominator: [done, failed]", "denominator: [all]", r"derived failed_percent is made of all"),
        ("denominator: [done, failed]", "denominator: []", r"archive: derived\.failed_percent\.denominator: "),
        ("scale: 100", "scale: 0", r"archive: derived\.failed_percent\.scale: "),
        ("select 17 from {ext}.y", "select 17", r"archive: a query must hold \{ext\}"),
        ("select 17 from {ext}.y", "select 17 from {other}.y", r"archive: a query must hold \{ext\}"),
        ("select 17 from {ext}.y", "''", r"archive: sql\.17: .*at least 1 character"),
        ("    17: select", "    new: select", r"archive: sql\.new"),
        ("  needs_extension: ext\n", "", r"archive: a query must hold no \{place\}"),
        ("  level: database", "  source: host", r"archive: host takes no sql"),
        ("description: What was archived.", "description: ''", r"archive: description"),
        ("archive:", "Archive-1:", r"'Archive-1' is no name of a family"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_by_name(found: str, instead: str, sentence: str):
    assert found in COUNTING
    with pytest.raises(Refused, match=sentence):
        catalog.parse(SMALLEST + COUNTING.replace(found, instead, 1))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must be a mapping of families"),
        ("- availability", "must be a mapping of families"),
        ("a: [", "no valid YAML: .*line 1"),
        ("a: !!python/name:os.system", "no valid YAML"),
        ("availability: yes", "availability: "),
        (COUNTING, "lacks availability"),
        (SMALLEST.replace("  sql: {15: select 1 as up}\n", ""), "availability: metrics without a query in sql"),
        (re.sub(r"\n  metrics:\n.*", "", SMALLEST), "availability: metrics: Field required"),
        (re.sub(r"\n    up: .*", " {}", SMALLEST), "availability: metrics: .*at least 1"),
    ],
)  # fmt: skip
def test_what_is_no_catalogue_is_refused(text: str, sentence: str):
    with pytest.raises(Refused, match=sentence):
        catalog.parse(dedent(text))


# Ours

ASKED_FOR = [
    "availability.up",
    "availability.uptime_seconds",
    "availability.in_recovery",
    "connections.active",
    "connections.idle",
    "connections.idle_in_transaction",
    "connections.total",
    "connections.used_percent",
    "sessions_long.longest_transaction_seconds",
    "sessions_long.longest_idle_in_transaction_seconds",
    "xmin_horizon.age_transactions",
    "locks_waiting.waiting",
    "locks_waiting.longest_wait_seconds",
    "locks_waiting.roots",
    "wal.lsn_bytes",
    "wal.size_bytes",
    "wal.files",
    "archiver.archived_count",
    "archiver.failed_count",
    "archiver.is_failing",
    "archiver.seconds_since_last_archived",
    "archiver.ready_files",
    "archiver.archiving_on",
    "replication.replay_lag_bytes",
    "replication.replay_lag_seconds",
    "standby.replay_lag_seconds",
    "standby.receiver_up",
    "slots.retained_bytes",
    "slots.active",
    "slots.is_lost",
    "slots.safe_wal_size_bytes",
    "checkpointer.timed",
    "checkpointer.requested",
    "bgwriter.maxwritten_clean",
    "io.reads",
    "io.read_bytes",
    "wal_stats.wal_bytes",
    "databases.xact_commit",
    "databases.deadlocks",
    "databases.temp_files",
    "databases.temp_bytes",
    "databases.cache_hit_percent",
    "database_sizes.size_bytes",
    "checksums.failures",
    "temp_files.size_bytes",
    "statements.calls",
    "statements.total_exec_ms",
    "statements.mean_exec_ms",
    "statements_info.dealloc",
    "tables.live_tuples",
    "tables.dead_tuples",
    "tables.seq_scans",
    "tables.idx_scans",
    "tables.size_bytes",
    "table_sizes.total_bytes",
    "indexes.scans",
    "indexes.size_bytes",
    "invalid_indexes.total",
    "freeze.xid_age",
    "freeze.mxid_age",
    "freeze.wraparound_percent",
    "freeze_tables.xid_age",
    "sequences.used_percent",
    "sequences_summary.unreadable",
    "settings.pending_restart",
    "extensions.outdated",
    "autovacuum.workers",
    "progress.done_percent",
    "prepared_transactions.total",
    "host_cpu.cpu_percent",
    "host_memory.memory_used_percent",
    "filesystem.used_percent",
    "filesystem.inodes_used_percent",
    "pgbouncer_pools.cl_waiting",
    "pgbouncer_pools.maxwait_seconds",
    "pgbouncer_databases.pool_size",
    "pgbouncer_stats.wait_ms",
    "collection.duration_ms",
    "collection.lost_rows",
]


@pytest.mark.parametrize("name", ASKED_FOR)
def test_every_metric_that_is_asked_for_is_there(name: str):
    assert OURS.metric(name).name == name.partition(".")[2]


@pytest.mark.parametrize(
    "name", ["databases", "databases.", ".up", "nothing.up", "databases.nothing", "a.b.c"]
)
def test_another_metric_is_not(name: str):
    with pytest.raises(LookupError, match="There is no metric"):
        OURS.metric(name)


def test_families_are_chosen_by_source_level_and_tier():
    chosen = OURS.of(Source.POSTGRES, Level.DATABASE, {Tier.FIVE_MINUTES, Tier.LIGHT})
    assert {family.name for family in chosen} == {"tables", "indexes", "invalid_indexes"}
    assert next(iter(OURS.of(Source.POSTGRES, Level.INSTANCE, list(Tier)))).name == "availability"
    assert OURS.of(Source.HOST, Level.DATABASE, list(Tier)) == ()
    parts = [len(OURS.of(s, level, [t])) for s in Source for level in Level for t in Tier]
    assert sum(parts) == len(OURS.families)


@pytest.mark.parametrize("family", OURS.families.values(), ids=lambda family: family.name)
def test_a_family_can_be_told_apart_and_bounded(family: Family):
    if family.source in {Source.POSTGRES, Source.PGBOUNCER}:
        assert family.statement(15) or family.name == "io"
    # The next round must not wait for the last one.
    assert family.timeout_ms <= 1000 * family.tier.seconds / 2
    for metric in family.metrics.values():
        for ending, unit in (
            ("_bytes", "bytes"),
            ("_seconds", "seconds"),
            ("_percent", "percent"),
            ("_ms", "milliseconds"),
        ):
            if metric.name.endswith(ending):
                assert metric.unit in (unit, "epoch_seconds"), metric.name


@pytest.mark.parametrize(
    "family", OURS.of(Source.POSTGRES, Level.INSTANCE, list(Tier)) + OURS.of(Source.POSTGRES, Level.DATABASE, list(Tier)),
    ids=lambda family: family.name,
)  # fmt: skip
def test_a_query_names_itself_and_bounds_what_it_gives(family: Family):
    for variant in family.variants:
        assert variant.text.startswith(f"/* onevault:metrics.{family.name} */ ")
        # Statements are all needed: what a statement grew by cannot be told from a part of them.
        if family.labels and family.name not in UNBOUNDED:
            assert re.search(r"\blimit \d+", variant.text)


UNBOUNDED = {"statements", "xmin_horizon"}


@pytest.mark.parametrize("family", OURS.families.values(), ids=lambda family: family.name)
def test_a_part_in_percent_is_of_things_of_one_kind(family: Family):
    for ratio in family.derived.values():
        if ratio.metric.unit == "percent":
            counted = {*ratio.numerator, *ratio.denominator}
            assert len({family.metrics[name].unit for name in counted}) == 1, ratio.metric.name
