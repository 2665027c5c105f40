"""The queries that the documents show to a DBA run on the vault, and find what they promise."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from tasks.backup import store
from tasks.backup.catalog import BackupFacts, BackupIntent, VerificationRecord
from tasks.backup.models import BackupKind, Outcome
from tests.markdown import ROOT, Block, blocks

PAGES = (ROOT / "docs/reference/catalog.md", ROOT / "docs/how-to/rotate-keys.md")
QUERIES = [(page, block) for page in PAGES for block in blocks(page) if block.kind == "sql"]
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def filled(vault: psycopg.Connection) -> psycopg.Connection:
    """A vault that knows a proven backup of two days ago, a failed one, and one that is only stored."""
    proven = _backup(vault, "aaaaaaaa", NOW - timedelta(days=2))
    store.record_verification(
        vault,
        VerificationRecord(
            proven,
            NOW - timedelta(days=2),
            NOW - timedelta(days=2),
            reread=Outcome.PASS,
            restore=Outcome.PASS,
            comparison=Outcome.PASS,
            structure=Outcome.PASS,
            restore_seconds=12.5,
        ),
    )
    _backup(vault, "bbbbbbbb", NOW - timedelta(hours=3))
    failed = _begin(vault, "cccccccc", NOW)
    store.mark_failed(vault, failed, "DISK_FULL", "disk full")
    return vault


def _begin(vault: psycopg.Connection, suffix: str, at: datetime) -> str:
    backup_id = f"{at:%Y%m%dT%H%M%SZ}-logical-{suffix}"
    intent = BackupIntent(
        backup_id=backup_id,
        kind=BackupKind.LOGICAL,
        started_at=at,
        server_name="shop",
        system_identifier="7",
        server_version="17.10",
        database_name="orders",
        store_name="default",
        store_location="file:///srv/backups",
        backup_location=f"file:///srv/backups/7/{backup_id}",
        host="here",
    )
    store.register_backup(vault, intent)
    store.mark_running(vault, backup_id)
    return backup_id


def _backup(vault: psycopg.Connection, suffix: str, at: datetime) -> str:
    backup_id = _begin(vault, suffix, at)
    facts = BackupFacts(
        finished_at=at + timedelta(seconds=30),
        source_bytes=1000,
        stored_bytes=100,
        codec="zstd",
        compression_level=1,
        encryption_enabled=True,
        cipher="age-v1 ChaCha20-Poly1305",
        encryption_key_id="key",
        part_size_bytes=8388608,
        manifest_sha256="0" * 64,
    )
    store.mark_completed(vault, backup_id, facts)
    return backup_id


def ask(vault: psycopg.Connection, query: str) -> list[tuple[object, ...]]:
    return vault.execute(query.encode()).fetchall()


@pytest.mark.parametrize(
    ("page", "block"), QUERIES, ids=[f"{page.stem}-{n}" for n, (page, _) in enumerate(QUERIES)]
)
def test_each_query_runs_and_finds_something(filled: psycopg.Connection, page: Path, block: Block):
    assert ask(filled, block.text), page


def query_with(words: str) -> str:
    return next(block.text for _, block in QUERIES if words in block.text)


def test_the_newest_proven_backup_is_found(filled: psycopg.Connection):
    (row,) = ask(filled, query_with("latest_verified_backup"))
    assert row[:3] == ("shop", "orders", "LOGICAL")
    assert str(row[3]).endswith("aaaaaaaa")
    assert float(str(row[5])) == 12.5


def test_a_server_without_a_recent_proof_is_found(filled: psycopg.Connection):
    (row,) = ask(filled, query_with("HAVING"))
    assert row == ("shop", NOW - timedelta(days=2))


def test_what_nobody_may_rely_on_is_found(filled: psycopg.Connection):
    rows = ask(filled, query_with("'COMPLETED', 'PARTIAL', 'FAILED'"))
    assert [(row[3], row[4]) for row in rows] == [("FAILED", "disk full"), ("COMPLETED", None)]


def test_every_column_of_the_view_is_documented(vault: psycopg.Connection):
    rows = ask(
        vault,
        "select column_name from information_schema.columns"
        " where table_schema = 'backup_mgmt' and table_name = 'backup_catalog'",
    )
    text = PAGES[0].read_text().partition("## Columns")[2]
    assert [name for (name,) in rows if f"`{name}`" not in text] == []
