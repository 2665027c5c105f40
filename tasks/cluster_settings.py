"""The settings of a private cluster, and who may log in to it."""

import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

SOCKET_PORT = 5432

# Nothing that an adopted data folder brings along may reach out, fail the start or slow it down.
_NEUTRAL = {
    "listen_addresses": "",
    "port": str(SOCKET_PORT),
    "unix_socket_permissions": "0777",  # the folder around the socket is the lock
    "external_pid_file": "",
    "ssl": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "event_triggers": "off",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "archive_mode": "off",
    "archive_library": "",
    "archive_command": "",
    "archive_cleanup_command": "",
    "restore_command": "",
    "recovery_end_command": "",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "synchronous_standby_names": "",
    "hot_standby": "off",
    "summarize_wal": "off",
    "io_method": "worker",
    "huge_pages": "off",
    "shared_buffers": "128MB",
    "jit": "off",
}
_SINCE = {"event_triggers": 17, "summarize_wal": 17, "io_method": 18}
_THROWAWAY = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1h",
}


def throwaway_settings(major: int) -> dict[str, str]:
    """Return the settings of a cluster that nobody will miss, for this major version."""
    known = {name: value for name, value in _NEUTRAL.items() if _SINCE.get(name, 0) <= major}
    return known | _THROWAWAY


def write_access_rules(conf: Path, users: Iterable[str], superuser: str) -> None:
    """Write pg_hba.conf and pg_ident.conf: these system users are the superuser on the socket.

    Everybody else, and everybody on TCP (loopback only), is asked for a password.
    """
    kinds = ("all", "replication")
    rules = [f'local {kind} "{superuser}" peer map=us' for kind in kinds]
    rules += [f"local {kind} all scram-sha-256" for kind in kinds]
    for net in ("127.0.0.1/32", "::1/128"):
        rules += [f"host {kind} all {net} scram-sha-256" for kind in kinds]
    _write(conf / "pg_hba.conf", rules)
    _write(conf / "pg_ident.conf", [f'us "{user}" "{superuser}"' for user in sorted(set(users))])


def write_settings(conf: Path, settings: Mapping[str, str]) -> None:
    """Write postgresql.conf with just these settings."""
    lines = [f"{name} = {_quoted(value)}" for name, value in settings.items()]
    _write(conf / "postgresql.conf", lines)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o644)  # the account that runs PostgreSQL reads it; there is no secret in it


def free_port() -> int:
    """Find a TCP port on the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
