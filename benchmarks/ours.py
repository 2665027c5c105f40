"""One run of ours in a process of its own: takes, re-reads, restores, compares; prints what it measured as JSON."""

import time

_BEGUN = time.monotonic()

import json  # noqa: E402 - the imports below are what is timed
import re  # noqa: E402
import resource  # noqa: E402
import secrets  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import asdict, dataclass, field  # noqa: E402
from datetime import UTC, datetime  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import get_args  # noqa: E402

import click  # noqa: E402

from blocks.postgres import PostgresServer  # noqa: E402
from tasks.backup import capture, manifest, preflight, rehearsal  # noqa: E402
from tasks.backup.capture import Order, Taken  # noqa: E402
from tasks.backup.inventory import Depth  # noqa: E402
from tasks.backup.models import PART_BYTES, BackupKind, Manifest, Rung, backup_id_for  # noqa: E402
from tasks.backup.pipeline import Destination  # noqa: E402
from tasks.backup.preflight import Ready, Wanted  # noqa: E402
from tasks.backup.rehearsal import Rehearsal, ScratchServer  # noqa: E402
from tasks.backup.restore import OpenBackup  # noqa: E402
from tasks.opening import NamedServer, local_keyring, local_store  # noqa: E402
from tasks.progress import Progress  # noqa: E402

_IMPORT_SECONDS = time.monotonic() - _BEGUN
_SERVER = "benchmark"


@dataclass
class Measured:
    """What one process did: seconds by stage, the outcome of each check, bytes, its own peak memory."""

    backup_id: str = ""
    stored_bytes: int = 0
    source_bytes: int = 0
    peak_bytes: int = 0
    cpu_seconds: float = 0.0
    counting_seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=lambda: {"import": _IMPORT_SECONDS})
    outcomes: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        begun = time.monotonic()
        yield
        self.stages[name] = time.monotonic() - begun

    def note(self, name: str, rung: Rung) -> None:
        """Keep what a check said, with its sentence unless it passed."""
        said = rung.outcome.value
        self.outcomes[name] = said if said == "PASS" else f"{said}: {rung.summary}"


class Run:
    """The stages of the flow, called as the flow calls them."""

    def __init__(self, conninfo: str, folder: Path, kind: BackupKind, depth: Depth) -> None:
        self.server = NamedServer(_SERVER, PostgresServer.from_conninfo(conninfo))
        self.store = local_store(folder / "store")
        self.keyring = local_keyring(folder / "keys")
        self.plan = Rehearsal(folder / "scratch")
        self.kind = kind
        self.depth = depth
        self.measured = Measured()

    def take(self) -> str:
        """Take a backup and commit it; return its id."""
        begun_at = datetime.now(UTC)
        wanted = Wanted(_SERVER, self.kind, None, verify=True)
        ready = preflight.check(self.server, self.store, self.plan.scratch, wanted)
        self.measured.source_bytes = ready.source_bytes
        backup_id = backup_id_for(self.kind, begun_at, secrets.token_hex(4))
        order = Order(backup_id, ready.server.database, depth=self.depth)
        prefix = manifest.prefix_of(ready.server.system_identifier, backup_id)
        stored_at: list[float] = []
        to = Destination(
            self.store, self.keyring, prefix, lambda _: stored_at.append(time.monotonic())
        )
        logical = self.kind is BackupKind.LOGICAL
        take = capture.take_logical if logical else capture.take_physical
        with self.measured.stage("take"):
            taken = take(self.server, ready.tools, to, order, Progress("take"))
            made = self._manifest(begun_at, ready, order, taken)
            manifest.publish(self.store, prefix, made, self.keyring)
        # The inventory is stored last: what lies before it is counting after the last byte of data.
        self.measured.counting_seconds = stored_at[-1] - stored_at[-2]
        return backup_id

    def _manifest(self, begun_at: datetime, ready: Ready, order: Order, taken: Taken) -> Manifest:
        wrapped = self.keyring.wrap(bytes(16))
        return Manifest(
            backup_id=order.backup_id,
            kind=self.kind,
            started_at=begun_at,
            completed_at=datetime.now(UTC),
            server=ready.server,
            point=taken.point,
            tool=taken.tool,
            compression_level=order.level,
            compressed_by="server" if taken.compressed_by_server else "client",
            encryption_key_id=wrapped.key_id,
            recipients=wrapped.recipients,
            part_bytes=PART_BYTES,
            objects=taken.objects,
            onevault_version="benchmark",
        )

    def verify(self, backup_id: str, stages: Sequence[str]) -> None:
        """Climb the chosen rungs of the ladder."""
        prefix = manifest.find_prefix(self.store, backup_id)
        backup = OpenBackup.open(self.store, self.keyring, prefix)
        self.measured.backup_id = backup_id
        self.measured.stored_bytes = backup.manifest.stored_bytes
        if "reread" in stages:
            with self.measured.stage("reread"):
                rung, _ = rehearsal.reread(backup, Progress("re-read"))
            self.measured.note("reread", rung)
        if "restore" in stages:
            self._restore(backup, stages)

    def _restore(self, backup: OpenBackup, stages: Sequence[str]) -> None:
        with rehearsal.scratch_cluster(backup, self.plan) as cluster:
            with self.measured.stage("restore"):
                restored = rehearsal.restore(backup, cluster, self.plan, Progress("restore"))
            self.measured.note("restore", restored.rung)
            if restored.server:
                self._look_at(backup, restored.server, stages)

    def _look_at(self, backup: OpenBackup, server: ScratchServer, stages: Sequence[str]) -> None:
        if "compare" in stages:
            with self.measured.stage("compare"):
                rung, _ = rehearsal.compare_with_source(backup, server, self.plan)
            self.measured.note("compare", rung)
        if "structure" in stages:
            with self.measured.stage("structure"):
                rung = rehearsal.check_structure(backup, server, self.plan)
            self.measured.note("structure", rung)


@click.command()
@click.option(
    "--conninfo", required=True, help="The source, over its socket; it holds no password."
)
@click.option("--folder", type=click.Path(path_type=Path), required=True)
@click.option("--kind", type=click.Choice([kind.value for kind in BackupKind]), required=True)
@click.option("--depth", type=click.Choice(get_args(Depth)), default="content")
@click.option("--stages", default="take,reread,restore,compare,structure")
@click.option("--backup-id", default="", help="Verify this one instead of taking one.")
def main(conninfo: str, folder: Path, kind: str, depth: Depth, stages: str, backup_id: str) -> None:
    """Run the stages named and print what was measured."""
    run = Run(conninfo, folder, BackupKind(kind), depth)
    chosen = stages.split(",")
    if "take" in chosen:
        backup_id = run.take()
    run.verify(backup_id, chosen)
    run.measured.peak_bytes = peak_bytes()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    run.measured.cpu_seconds = usage.ru_utime + usage.ru_stime
    click.echo(json.dumps(asdict(run.measured)))


def peak_bytes() -> int:
    """Return the most memory this process ever held."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    # getrusage also counts what the parent held when it started us.
    kilobytes = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024


if __name__ == "__main__":
    main()
