"""The peers that read metrics: postgres_exporter, and the checks of check_pgactivity."""

import http.client
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.metrics_server import DATABASE, HOST, WatchedServer, cpu_seconds
from tasks import processes
from tasks.cluster_settings import free_port
from tasks.errors import Refused

EXPORTER = "prometheus-postgres-exporter"
CHECKS = "check_pgactivity"
SERVICES = ("backends", "locks")
COVERED = "services that ask for what we ask for"
"""Those of check_pgactivity without which it would not read what the whole standard batch reads.

archiver and replication_slots are left out because pg_monitor does not suffice them, bgwriter and temp_files because
they divide by zero when they run twice within a second.
"""
_COVERED_SERVICES = (
    *("connection", "uptime", "is_master", "backends", "backends_status", "locks"),
    *("longest_query", "oldest_idlexact", "oldest_2pc", "oldest_xmin", "wal_files", "autovacuum"),
    *("checksum_errors", "commit_ratio", "hit_ratio", "session_stats", "database_size"),
    "max_freeze_age",
)
_THRESHOLDS = {
    "backends": ("--warning=90%", "--critical=95%"),
    "locks": ("--warning=90%", "--critical=95%"),
    "longest_query": ("--warning=1h", "--critical=2h"),
    "oldest_idlexact": ("--warning=1h", "--critical=2h"),
    "oldest_2pc": ("--warning=1h", "--critical=2h"),
}
_PLUGINS = "/usr/lib/nagios/plugins"
_READY_SECONDS = 20.0
_UNKNOWN = 3

_TABLE_LABELS = ("datname", "schemaname", "relname")
_TABLE_COUNTERS = (
    *("seq_scan", "seq_tup_read", "idx_scan", "idx_tup_fetch"),
    *("n_tup_ins", "n_tup_upd", "n_tup_hot_upd", "n_tup_del"),
    *("vacuum_count", "autovacuum_count", "analyze_count", "autoanalyze_count"),
)
_TABLE_GAUGES = ("n_live_tup", "n_dead_tup", "n_mod_since_analyze", "n_ins_since_vacuum")
_STATEMENT_LABELS = ("rolname", "datname", "queryid", "toplevel")
_STATEMENT_COUNTERS = (
    *("calls", "total_exec_time", "rows", "shared_blks_hit", "shared_blks_read"),
    *("shared_blks_dirtied", "temp_blks_read", "temp_blks_written", "wal_bytes"),
)


def _query(text: str, **columns: tuple[str, ...]) -> dict[str, Any]:
    usages = [(name, usage) for usage, names in columns.items() for name in names]
    return {
        "query": text,
        "metrics": [{name: {"usage": u, "description": name}} for name, u in usages],
    }


def queries(statements: int | None) -> dict[str, Any]:
    """Return the exporter's further queries, so that it reads what we read: tables, and statements or the top of them."""
    limit = f" ORDER BY total_exec_time DESC LIMIT {statements}" if statements else ""
    tables = ", ".join((*_TABLE_LABELS[1:], *_TABLE_COUNTERS, *_TABLE_GAUGES))
    counters = ", ".join(_STATEMENT_COUNTERS)
    return {
        "pg_stat_user_tables": _query(
            f"SELECT current_database() AS datname, {tables} FROM pg_stat_user_tables",  # noqa: S608 - our own names
            LABEL=_TABLE_LABELS,
            COUNTER=_TABLE_COUNTERS,
            GAUGE=_TABLE_GAUGES,
        ),
        "pg_statio_user_tables": _query(
            "SELECT current_database() AS datname, schemaname, relname, heap_blks_read, heap_blks_hit"
            " FROM pg_statio_user_tables",
            LABEL=_TABLE_LABELS,
            COUNTER=("heap_blks_read", "heap_blks_hit"),
        ),
        "pg_stat_statements": _query(
            f"SELECT rolname, datname, queryid, toplevel, {counters} FROM pg_stat_statements(false) AS s"  # noqa: S608
            " JOIN pg_roles AS r ON r.oid = s.userid JOIN pg_database AS d ON d.oid = s.dbid"
            f" WHERE queryid IS NOT NULL{limit}",
            LABEL=_STATEMENT_LABELS,
            COUNTER=_STATEMENT_COUNTERS,
        ),
    }


@dataclass
class Exporter:
    """A running postgres_exporter, scraped over one HTTP connection that stays, uncompressed."""

    name: str
    server: WatchedServer
    login: str
    pid: int
    port: int
    share: int = 1
    every: int = 1
    _http: http.client.HTTPConnection | None = None

    async def run(self) -> int:
        """Scrape once and return how many numbers it gave of PostgreSQL."""
        return sum(line.startswith(b"pg_") for line in self.scrape().splitlines())

    def scrape(self) -> bytes:
        """Return what it exports; Refused when it could not read the server."""
        if self._http is None:
            self._http = http.client.HTTPConnection(HOST, self.port, timeout=60)
        self._http.request("GET", "/metrics")
        body = self._http.getresponse().read()
        if b"\npg_up 1\n" not in body or b"\npg_exporter_last_scrape_error 0\n" not in body:
            message = f"{EXPORTER} could not read everything: look at the queries it is given."
            raise Refused(message)
        return body

    def client_seconds(self) -> float:
        """Return the CPU seconds of the exporter; those of whoever scrapes it do not count."""
        return cpu_seconds(self.pid)

    def server_seconds(self) -> float:
        """Return the CPU seconds of its backends."""
        return self.server.backends_seconds(self.login)

    async def close(self) -> None:
        """Close the HTTP connection."""
        if self._http is not None:
            self._http.close()


@contextmanager
def exporter(
    server: WatchedServer, login: str, folder: Path, name: str, statements: int | None
) -> Iterator[Exporter]:
    """Run an exporter for the time of a block; Refused when it is not installed or does not come up."""
    program = shutil.which(EXPORTER)
    if program is None:
        message = f"not installed: apt install {EXPORTER}"
        raise Refused(message)
    file = folder / f"{login}.yaml"
    file.write_text(yaml.safe_dump(queries(statements), sort_keys=False))
    port = free_port()
    argv = [program, f"--web.listen-address={HOST}:{port}", f"--extend.query-path={file}"]
    # It reads 300 settings as numbers, which we do not.
    argv += ["--disable-settings-metrics", "--log.level=error"]
    env = {"DATA_SOURCE_NAME": server.url(login)}
    with (folder / f"{login}.log").open("wb") as log:
        process = processes.start(argv, env=env, stdout=log, stderr=log)
    try:
        _await_answer(port)
        made = Exporter(name, server, login, process.pid, port)
        made.scrape()
        yield made
    finally:
        processes.stop_group(process)


def _await_answer(port: int) -> None:
    until = time.monotonic() + _READY_SECONDS
    while time.monotonic() < until:
        try:
            connection = http.client.HTTPConnection(HOST, port, timeout=_READY_SECONDS)
            connection.request("GET", "/")
            connection.getresponse().read()
        except OSError:
            threading.Event().wait(0.1)
        else:
            connection.close()
            return
    message = f"{EXPORTER} did not answer within {_READY_SECONDS:g} s."
    raise Refused(message)


@dataclass
class PgActivity:
    """Services of check_pgactivity, one after the other, each started anew as its users' schedulers do."""

    name: str
    server: WatchedServer
    login: str
    services: Sequence[str]
    folder: Path
    share: int = 1
    every: int = 6
    _client: float = 0.0
    _server: float = 0.0

    async def run(self) -> int:
        """Run them once; Refused when one could not find out."""
        begun = self.server.ended_seconds()
        numbers = sum(map(self._ask, self.services))
        self._server += self.server.ended_seconds() - begun
        return numbers

    def _ask(self, service: str) -> int:
        code, seconds = self._run(service)
        said = (self.folder / "log").read_text(errors="replace").strip()
        if code >= _UNKNOWN:
            message = f"{CHECKS} {service} did not find out: {said[-300:]}"
            raise Refused(message)
        self._client += seconds
        return said.partition("|")[2].count("=")

    def _run(self, service: str) -> tuple[int, float]:
        program = shutil.which(CHECKS) or shutil.which(CHECKS, path=_PLUGINS)
        if program is None:
            message = "not installed: apt install check-pgactivity"
            raise Refused(message)
        argv = [program, f"--service={service}", f"--host={HOST}", f"--port={self.server.port}"]
        argv += [f"--username={self.login}", f"--dbname={DATABASE}"]
        argv += [f"--status-file={self.folder / 'status'}", *_THRESHOLDS.get(service, ())]
        env = {"PGPASSWORD": self.server.password}
        with (self.folder / "log").open("wb") as log:
            process = processes.start(argv, env=env, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_utime + usage.ru_stime

    def client_seconds(self) -> float:
        """Return the CPU seconds of all runs, psql included."""
        return self._client

    def server_seconds(self) -> float:
        """Return the CPU seconds of its backends, which end with it."""
        return self._server

    async def close(self) -> None:
        """There is nothing to close."""


def checks(server: WatchedServer, login: str, folder: Path) -> list[PgActivity]:
    """Return what is asked of check_pgactivity: single services, and as many as cover what we read."""
    single = [
        PgActivity(f"{CHECKS} {service}", server, login, [service], folder) for service in SERVICES
    ]
    name = f"{CHECKS}, {len(_COVERED_SERVICES)} {COVERED}"
    return [*single, PgActivity(name, server, login, _COVERED_SERVICES, folder, every=40)]


def versions() -> Iterator[str]:
    """Return the versions of the peers that are installed."""
    if program := shutil.which(EXPORTER):
        said = processes.run([program, "--version"], timeout_seconds=10)
        words = (said.text or " ".join(said.lines)).split()
        yield f"postgres_exporter {words[words.index('version') + 1]}"
    if program := shutil.which(CHECKS) or shutil.which(CHECKS, path=_PLUGINS):
        said = processes.run([program, "--version"], timeout_seconds=10, check=False)
        yield said.text.partition(",")[0]
