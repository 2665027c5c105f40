"""What must be true before a backup begins; everything that is not is said in one message."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tasks import queries
from tasks.backup.models import BackupKind, SourceServer
from tasks.backup.ports import ObjectStore, Server
from tasks.errors import Refused
from tasks.folders import make_folder
from tasks.programs import Installation, client_tools, server_programs

OLDEST_MAJOR = 15
_STORE_SHARE = 0.6
_SCRATCH_SHARE = 1.3
_GIB = 1024**3
_QUERIES = queries.load(Path(__file__).with_name("preflight.sql"))


@dataclass(frozen=True, slots=True)
class Ready:
    """A server that can be backed up, and the client tools that fit it."""

    server: SourceServer
    tools: Installation
    source_bytes: int
    table_bytes: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is about to be done."""

    server_name: str
    kind: BackupKind
    database: str | None
    verify: bool
    compared: bool = True
    needs_tls: bool = False


def check(server: Server, store: ObjectStore, scratch: Path, wanted: Wanted) -> Ready:
    """Return the facts a backup needs; Refused with every reason at once when it cannot be taken."""
    store.check()
    with server.connect(wanted.database) as connection:
        facts = _one(connection, "facts")
        problems = [*_server_problems(facts, wanted), *_reading_problems(connection, facts, wanted)]
    source_bytes = int(
        facts["database_bytes" if wanted.kind is BackupKind.LOGICAL else "cluster_bytes"] or 0
    )
    problems += _room_problems(store, scratch, source_bytes, wanted)
    tools = _tools(int(facts["version_num"]) // 10000, wanted, problems)
    if problems or tools is None:
        message = f"{wanted.server_name} cannot be backed up: " + "; ".join(problems)
        raise Refused(message)
    return Ready(
        _source(facts, wanted, server), tools, source_bytes, int(facts["table_bytes"] or 0)
    )


def _source(facts: dict[str, Any], wanted: Wanted, server: Server) -> SourceServer:
    return SourceServer(
        name=wanted.server_name,
        system_identifier=facts["system_identifier"],
        version=facts["version"],
        version_num=facts["version_num"],
        database=(wanted.database or server.database)
        if wanted.kind is BackupKind.LOGICAL
        else None,
        superuser=facts["superuser"],
        data_checksums=facts["data_checksums"],
        in_recovery=facts["in_recovery"],
    )


def _server_problems(facts: dict[str, Any], wanted: Wanted) -> Iterator[str]:
    if facts["version_num"] < OLDEST_MAJOR * 10000:
        yield f"it runs PostgreSQL {facts['version']}, and backups need {OLDEST_MAJOR} or newer"
    if wanted.kind is BackupKind.LOGICAL:
        return
    if not facts["may_replicate"]:
        yield f'a physical backup needs the REPLICATION attribute: ALTER ROLE "{facts["login"]}" REPLICATION'
    if facts["wal_level"] == "minimal":
        yield "a physical backup needs wal_level = replica (it is minimal; the change needs a restart)"
    if facts["max_wal_senders"] == 0:
        yield "a physical backup needs max_wal_senders of 1 or more (it is 0; the change needs a restart)"


def _reading_problems(
    connection: "psycopg.Connection[Any]", facts: dict[str, Any], wanted: Wanted
) -> Iterator[str]:
    if facts["is_superuser"]:
        return
    if wanted.kind is BackupKind.PHYSICAL:
        if wanted.compared and not facts["may_read_all"]:
            yield (
                f'the comparison reads every table: GRANT pg_read_all_data TO "{facts["login"]}" and'
                f' ALTER ROLE "{facts["login"]}" BYPASSRLS, or choose compare: none'
            )
        return
    rows = _all(connection, "unreadable_tables")
    if hidden := [row["name"] for row in rows if row["by_row_security"]]:
        yield f'row security hides rows of {hidden[0]} from "{facts["login"]}": ALTER ROLE "{facts["login"]}" BYPASSRLS'
    if denied := [row["name"] for row in rows if not row["by_row_security"]]:
        yield f'"{facts["login"]}" may not read {_listed(denied)}: GRANT pg_read_all_data TO "{facts["login"]}"'
    if count := _one(connection, "unreadable_large_objects")["objects"]:
        yield (
            f'"{facts["login"]}" may not read {count} large objects, and pg_read_all_data does not include them:'
            f' ALTER ROLE "{facts["login"]}" SET lo_compat_privileges = on'
        )


def _room_problems(
    store: ObjectStore, scratch: Path, source_bytes: int, wanted: Wanted
) -> Iterator[str]:
    free = store.free_bytes()
    needed = int(source_bytes * _STORE_SHARE)
    if free is not None and free < needed:
        yield f"{store.location()} has {free / _GIB:.2f} GiB free and about {needed / _GIB:.2f} GiB are needed: free space or add a disk"
    if not wanted.verify:
        return
    try:
        # A folder that somebody named, such as /var/tmp, keeps its mode.
        if not scratch.is_dir():
            make_folder(scratch, 0o711)
    except OSError as error:
        yield f"the scratch folder {scratch} cannot be made ({error.strerror}): set ONEVAULT_SCRATCH to another one"
        return
    free, needed = shutil.disk_usage(scratch).free, int(source_bytes * _SCRATCH_SHARE)
    if free < needed:
        yield f"the restore test needs about {needed / _GIB:.2f} GiB in {scratch} and {free / _GIB:.2f} GiB are free: set ONEVAULT_SCRATCH to a larger disk"


def _tools(major: int, wanted: Wanted, problems: list[str]) -> Installation | None:
    try:
        if wanted.verify:
            server_programs(major)
        return client_tools(major, needs_tls=wanted.needs_tls)
    except Refused as error:
        problems.append(str(error))
        return None


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and others"  # noqa: PLR2004 - three are shown


def _one(connection: "psycopg.Connection[Any]", name: str) -> dict[str, Any]:
    return _all(connection, name)[0]


def _all(connection: "psycopg.Connection[Any]", name: str) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        major = max(OLDEST_MAJOR, connection.info.server_version // 10000)
        return cursor.execute(_QUERIES.get(name, major)).fetchall()
