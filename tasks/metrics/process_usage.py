"""What one process of this host has used: measured, or absent."""

from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """Resources of one process since its start, or between two readings; what cannot be measured is None.

    rss_bytes counts the shared memory that the process has touched; private_bytes is its own. Both are of the moment.
    """

    pid: int
    created_at_epoch: float
    cpu_seconds: float
    rss_bytes: int
    private_bytes: int | None
    read_bytes: int | None
    written_bytes: int | None

    def since(self, earlier: "ProcessUsage") -> "ProcessUsage | None":
        """Return what was used since an earlier reading; None when that was another process under this number."""
        if (self.pid, self.created_at_epoch) != (earlier.pid, earlier.created_at_epoch):
            return None
        return ProcessUsage(
            pid=self.pid,
            created_at_epoch=self.created_at_epoch,
            cpu_seconds=self.cpu_seconds - earlier.cpu_seconds,
            rss_bytes=self.rss_bytes,
            private_bytes=self.private_bytes,
            read_bytes=_difference(self.read_bytes, earlier.read_bytes),
            written_bytes=_difference(self.written_bytes, earlier.written_bytes),
        )


def process_usage(pid: int) -> ProcessUsage | None:
    """Read what a process of this host has used until now; None when it is gone or cannot be looked at.

    For a backend, prove first that the server runs on this host: host.is_own_backend. Bytes are those that went to
    and came from storage, not the cache; they and private_bytes need the right to look into the process.
    """
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            cpu, memory = process.cpu_times(), process.memory_info()
            created = process.create_time()
    except psutil.Error:
        return None
    read, written = _storage_bytes(process)
    return ProcessUsage(
        pid=pid,
        created_at_epoch=created,
        cpu_seconds=cpu.user + cpu.system,
        rss_bytes=memory.rss,
        private_bytes=_private_bytes(process),
        read_bytes=read,
        written_bytes=written,
    )


def _storage_bytes(process: psutil.Process) -> tuple[int | None, int | None]:
    try:
        found = process.io_counters()
    except (psutil.Error, OSError, NotImplementedError, AttributeError):
        return None, None
    return found.read_bytes, found.write_bytes


def _private_bytes(process: psutil.Process) -> int | None:
    try:
        return int(process.memory_full_info().uss)
    except (psutil.Error, OSError, NotImplementedError, AttributeError):
        return None


def _difference(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before
