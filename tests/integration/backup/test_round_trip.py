"""The awkward database there and back, and what a comparison finds when the copy is not equal."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from tasks.backup import certificate
from tasks.backup import rehearsal as rehearsals
from tasks.backup.models import BackupKind, Outcome, Proof, Rung
from tasks.progress import Progress
from tests.backups import AWKWARD_DATABASE, Backup, BackupMaker, Rehearsed, maker_of
from tests.clusters import Server


@pytest.fixture(scope="module")
def makers(source: Server) -> Iterator[BackupMaker]:
    with maker_of(source) as maker:
        yield maker


@pytest.fixture(scope="module")
def dump(makers: BackupMaker) -> Backup:
    return makers.take(BackupKind.LOGICAL, AWKWARD_DATABASE)


@pytest.fixture(scope="module")
def logical(makers: BackupMaker, dump: Backup) -> Iterator[Rehearsed]:
    with makers.rehearsed(dump) as rehearsed:
        yield rehearsed


@pytest.fixture
def fresh(makers: BackupMaker, dump: Backup) -> Iterator[Rehearsed]:
    """One that may be changed for good; the structure check installs amcheck in it."""
    with makers.rehearsed(dump) as rehearsed:
        yield rehearsed


@pytest.fixture
def physical(makers: BackupMaker) -> Iterator[Rehearsed]:
    with makers.rehearsed(makers.take(BackupKind.PHYSICAL)) as rehearsed:
        yield rehearsed


def proof_of(rehearsed: Rehearsed) -> tuple[Proof, str]:
    """Climb the whole ladder and return the proof and its certificate."""
    started_at = datetime.now(UTC)
    made = rehearsed.backup.manifest
    reread, size = rehearsals.reread(rehearsed.backup, Progress("re-read"))
    restored = rehearsed.restored
    comparison, _ = rehearsed.compare()
    structure = rehearsed.structure()
    now = datetime.now(UTC)
    proof = Proof(
        made.backup_id,
        started_at,
        now,
        reread,
        restored.rung,
        comparison,
        structure,
        restored.seconds,
        size,
    )
    return proof, certificate.markdown(made, proof, rehearsed.backup.store.location())


def test_a_logical_backup_is_proven(fresh: Rehearsed):
    proof, page = proof_of(fresh)
    assert {name: rung.outcome for name, rung in proof.rungs.items()} == dict.fromkeys(
        ("re-read", "restore", "comparison", "structure"), Outcome.PASS
    ), proof
    assert page.startswith(f"# ✅ PASS — logical backup of test/{AWKWARD_DATABASE}")
    made = fresh.backup.manifest
    for words in (
        made.backup_id,
        "13 tables with 87,804 rows are equal in the source and in the restored copy",
        f"snapshot {made.point.snapshot}",
        made.encryption_key_id,
        made.recipients[0],
        made.server.system_identifier,
        "measured restore time (RTO)",
        "pg_amcheck found no fault",
    ):
        assert words in page
    assert "## Findings" not in page
    assert not [line for line in page.splitlines() if line.startswith("|") and line[-1] != "|"]


def test_every_table_of_a_logical_backup_stands_side_by_side(logical: Rehearsed):
    _, rows = logical.compare()
    by_name = {row.table: row for row in rows}
    assert by_name['Sales Dept.Order "Items"'].restored_rows == 5000
    assert by_name["shop.no_columns"].source_rows == by_name["shop.no_columns"].restored_rows == 3
    assert by_name["shop.scratchpad"].content.startswith("equal")
    assert {row.content.partition(" (")[0] for row in rows} == {"equal"}
    assert len(certificate.table_artifact(rows)) == 13


def test_a_physical_backup_is_proven(physical: Rehearsed):
    proof, page = proof_of(physical)
    assert proof.outcome is Outcome.PASS, proof
    assert page.startswith("# ✅ PASS — physical backup of test")
    assert "pg_verifybackup accepted every file" in page
    assert "the data checksums of all" in page
    assert f"LSN {physical.backup.manifest.point.stop_lsn}" in page


def test_what_a_physical_copy_lost_is_found(physical: Rehearsed):
    with physical.connect(AWKWARD_DATABASE) as connection:
        connection.execute("delete from shop.tenant_secret where tenant = 't3'")
        connection.execute("create role stranger")
    rung, rows = physical.compare()
    assert "demo_shop: table shop.tenant_secret has 600 rows instead of 700" in rung.findings
    assert any(found.startswith("role stranger (") for found in rung.findings)
    # The copy itself was written to, so its transactions are not the source's.
    assert rung.outcome in (Outcome.FAIL, Outcome.PARTIAL)
    assert (rows[0].table, rows[0].content) in {
        ("shop.tenant_secret", "DIFFERENT"),
        ("shop.scratchpad", "emptied (UNLOGGED)"),
    }


@dataclass(frozen=True)
class Change:
    """Something done to the restored copy, how to undo it, and what must be said of it."""

    do: str
    undo: str
    said: str


CHANGES = {
    "row changed": Change(
        'update "Sales Dept"."Order ""Items""" set net = net + 0.01 where "Id" = 7',
        'update "Sales Dept"."Order ""Items""" set net = net - 0.01 where "Id" = 7',
        'demo_shop: table Sales Dept.Order "Items" has other content in its 5,000 rows',
    ),
    "row lost": Change(
        "delete from shop.no_columns where ctid = (select min(ctid) from shop.no_columns)",
        "insert into shop.no_columns default values",
        "demo_shop: table shop.no_columns has 2 rows instead of 3",
    ),
    "row in another partition": Change(
        "update shop.event set region = 'us' where at > '2026-01-02' and seq = 40000",
        "update shop.event set region = 'eu' where at > '2026-01-02' and seq = 40000",
        "demo_shop: table shop.event_2026_eu has",
    ),
    "table dropped": Change(
        "drop table shop.empty_table",
        "create table shop.empty_table (id integer primary key, what text);"
        " revoke all on shop.empty_table from demo_app",
        "demo_shop: table shop.empty_table is missing",
    ),
    "table added": Change(
        "create table shop.stranger ()",
        "drop table shop.stranger",
        "demo_shop: table shop.stranger is in the copy only",
    ),
    "column altered": Change(
        "alter table shop.booking alter room type bigint",
        "alter table shop.booking alter room type integer",
        "demo_shop: schema: -    room integer NOT NULL,",
    ),
    "grant revoked": Change(
        "revoke select on shop.tenant_secret from demo_app",
        "grant select on shop.tenant_secret to demo_app",
        "demo_shop: schema: -GRANT SELECT ON TABLE shop.tenant_secret TO demo_app;",
    ),
    "sequence moved": Change(
        "select setval('shop.ticket_number', 5000)",
        "select setval('shop.ticket_number', 1007)",
        "demo_shop: sequence shop.ticket_number stands at 5000, not between 1007 and 1007",
    ),
    "index added": Change(
        "create index extra on shop.booking (room)",
        "drop index shop.extra",
        "demo_shop: schema: +CREATE INDEX extra ON shop.booking USING btree (room);",
    ),
    "index not valid": Change(
        "update pg_index set indisvalid = false where indexrelid = 'shop.customer_lower_mail'::regclass",
        "update pg_index set indisvalid = true where indexrelid = 'shop.customer_lower_mail'::regclass",
        "demo_shop: index shop.customer_lower_mail is not valid in the restored copy",
    ),
    "large object changed": Change(
        "select lo_put((select min(oid) from pg_largeobject_metadata), 0, 'L')",
        "select lo_put((select min(oid) from pg_largeobject_metadata), 0, 'l')",
        "demo_shop: the content of large objects differs",
    ),
    "large object lost": Change(
        "select lo_unlink((select max(oid) from pg_largeobject_metadata))",
        "",
        "demo_shop: 5 large objects became 4",
    ),
    "trigger off": Change(
        "alter table shop.customer disable trigger customer_touch",
        "alter table shop.customer enable trigger customer_touch",
        "demo_shop: schema: +ALTER TABLE shop.customer DISABLE TRIGGER customer_touch;",
    ),
    "role altered": Change(
        "alter role demo_app createdb",
        "alter role demo_app nocreatedb",
        "role demo_app (LOGIN CONNECTION LIMIT 20 SET {statement_timeout=30s}) is missing or different",
    ),
    "membership revoked": Change(
        "revoke demo_owner from demo_app",
        "grant demo_owner to demo_app",
        "membership of demo_app (demo_owner) is missing or different",
    ),
    "extension dropped": Change(
        "drop extension pg_trgm cascade",
        "",
        "demo_shop: extension pg_trgm",
    ),
    "setting lost": Change(
        "alter database demo_shop reset default_statistics_target",
        "alter database demo_shop set default_statistics_target = '250'",
        "demo_shop: schema: -ALTER DATABASE demo_shop SET default_statistics_target TO '250';",
    ),
}
FOR_GOOD = [name for name, change in CHANGES.items() if not change.undo]


def run(connection: "psycopg.Connection[Any]", statements: str) -> None:
    connection.execute(statements.encode())


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in FOR_GOOD])
def test_a_difference_is_found_and_named(logical: Rehearsed, name: str):
    change = CHANGES[name]
    with logical.connect(AWKWARD_DATABASE) as connection:
        run(connection, change.do)
        try:
            rung, _ = logical.compare()
        finally:
            run(connection, change.undo)
    check_said(rung, change)
    assert logical.compare()[0].outcome is Outcome.PASS


def test_differences_add_up(fresh: Rehearsed):
    with fresh.connect(AWKWARD_DATABASE) as connection:
        for name in FOR_GOOD:
            run(connection, CHANGES[name].do)
    rung, _ = fresh.compare()
    for name in FOR_GOOD:
        check_said(rung, CHANGES[name])


def check_said(rung: Rung, change: Change) -> None:
    assert rung.outcome is Outcome.FAIL
    assert any(found.startswith(change.said) for found in rung.findings), rung.findings
    assert "differences between the source and the restored copy: " in rung.summary


def test_a_damaged_index_of_the_copy_is_found(fresh: Rehearsed):
    """pg_amcheck reads what no comparison reads: the structure of an index."""
    cluster = fresh.cluster
    with fresh.connect(AWKWARD_DATABASE) as connection:
        found = connection.execute("select pg_relation_filepath('shop.booking_pkey')").fetchone()
    assert found is not None
    cluster.stop()
    with (cluster.data / found[0]).open("r+b") as file:
        # Two items of the first leaf page change places.
        file.seek(8192 + 24)
        items = file.read(16)
        file.seek(8192 + 24)
        file.write(items[8:] + items[:8])
    cluster.start({"ignore_checksum_failure": "on"})
    rung = fresh.structure()
    assert rung.outcome is Outcome.FAIL
    assert "booking_pkey" in " ".join(rung.findings)
    assert "structural errors: pg_amcheck: " in rung.summary
