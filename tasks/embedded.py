"""The embedded default: a PostgreSQL of our own on this machine, for the demo and for trying out.

It outlives us, listens on the loopback interface only, asks for a password and waits for the disk.
Never for production data. Every server lies in ``<home>/pg<major>-<name>``.
"""

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from tasks.errors import Refused
from tasks.folders import locked, remove_tree
from tasks.home import home, make_home

__all__ = ["EmbeddedServer", "ensure", "home", "status", "stop", "stop_all", "wipe"]

_HOST = "127.0.0.1"
_USER = "onevault"
_FOLDER = re.compile(r"pg(\d+)-([a-z][a-z0-9_-]{0,31})")
_CONNECT_SECONDS = 2


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A server of ours: where it is and how to log in. ``port`` is 0 while it does not run."""

    name: str
    major: int
    directory: Path
    port: int
    password: str = field(repr=False)
    host: str = _HOST
    user: str = _USER

    @property
    def is_running(self) -> bool:
        """Whether it accepts connections."""
        return self.port != 0

    @property
    def log_path(self) -> Path:
        """Where the server writes its log."""
        return self.directory / "log"

    def url(self, database: str = "postgres") -> str:
        """Return the connection URL of a database, with the password: not for logs."""
        login = f"{self.user}:{quote(self.password, safe='')}"
        return f"postgresql://{login}@{self.host}:{self.port}/{quote(database, safe='')}"


def ensure(name: str = "vault") -> EmbeddedServer:
    """Return the running server of this name, made and started if need be.

    A data folder of another major version is used with that version's programs. Several callers
    at once get the same server. Refused when no programs fit or PostgreSQL does not start.
    """
    _check(name)
    place = make_home()
    server = _find(name)
    if server is not None and server.is_running:
        return server
    with locked(place / ".lock"):
        server = _find(name)
        if server is not None and server.is_running:
            return server
        return _start(name, server)


def status() -> list[EmbeddedServer]:
    """List the servers that have been made, running or not; start nothing."""
    return list(_servers())


def stop(name: str = "vault") -> bool:
    """Stop the servers of this name; say whether one was running."""
    _check(name)
    return _stop([server for server in _servers() if server.name == name])


def stop_all() -> bool:
    """Stop every server in the home directory; say whether one was running."""
    return _stop(list(_servers()))


def wipe(name: str = "vault") -> bool:
    """Stop the servers of this name and delete their data; say whether there were any."""
    _check(name)
    mine = [server for server in _servers() if server.name == name]
    _stop(mine)
    for server in mine:
        with locked(home() / ".lock"):
            remove_tree(server.directory)
    return bool(mine)


def _check(name: str) -> None:
    if not _FOLDER.fullmatch(f"pg0-{name}"):
        message = f"{name!r} cannot name an embedded server: use lower-case letters, digits, - and _, beginning with a letter"
        raise Refused(message)


def _servers() -> Iterator[EmbeddedServer]:
    for directory in sorted(home().glob("pg*-*")):
        named = _FOLDER.fullmatch(directory.name)
        if named and (directory / "data").is_dir():
            yield _look_at(directory, int(named[1]), named[2])


def _look_at(directory: Path, major: int, name: str) -> EmbeddedServer:
    try:
        password = (directory / "password").read_text().strip()
        port = _port_in_use(directory / "data" / "postmaster.pid")
    except PermissionError as error:
        message = f"{directory} belongs to another user: run as that user, or set ONEVAULT_HOME to a folder of your own"
        raise Refused(message) from error
    except FileNotFoundError as error:
        message = f"{error.filename} is missing: delete {directory} (its data is lost), or put the file back"
        raise Refused(message) from error
    return EmbeddedServer(name, major, directory, port, password)


def _find(name: str) -> EmbeddedServer | None:
    mine = [server for server in _servers() if server.name == name]
    running = [server for server in mine if server.is_running]
    newest_first = sorted(running or mine, key=lambda server: server.major, reverse=True)
    return newest_first[0] if newest_first else None


def _port_in_use(pid_file: Path) -> int:
    # PostgreSQL's own words: pid, data folder, start time, port, socket folder, address, key, state.
    try:
        pid, _, _, port, *_, state = pid_file.read_text().splitlines()
    except (FileNotFoundError, ValueError):
        return 0
    running = state.strip() == "ready" and _is_alive(int(pid)) and _answers(int(port))
    return int(port) if running else 0


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((_HOST, port), timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _start(name: str, server: EmbeddedServer | None) -> EmbeddedServer:
    # Only now: whoever finds a running server need not load the driver.
    from tasks import embedded_start  # noqa: PLC0415

    directory = embedded_start.create(make_home(), name) if server is None else server.directory
    embedded_start.start(directory)
    started = _find(name)
    if started is None or not started.is_running:
        message = f"The embedded PostgreSQL in {directory} stopped right after its start: see {directory / 'log'}"
        raise Refused(message)
    return started


def _stop(servers: list[EmbeddedServer]) -> bool:
    from tasks import embedded_start  # noqa: PLC0415

    if not servers:
        return False
    with locked(home() / ".lock"):
        stopped = [embedded_start.stop(s.directory) for s in servers if s.directory.is_dir()]
    return any(stopped)
