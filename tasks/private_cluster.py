"""A private PostgreSQL cluster in a folder of ours, run as our own child.

Layout of the folder, which belongs to us: ``data`` (belongs to the account that runs PostgreSQL),
``conf`` (our configuration; the one in an adopted data folder is not used), ``log``, and
``socket``, unless its path would be too long for a socket.
"""

import os
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from psycopg import pq
from psycopg.conninfo import make_conninfo

from tasks.accounts import Account, account_named, unprivileged_account
from tasks.cluster_settings import (
    SOCKET_PORT,
    throwaway_settings,
    write_access_rules,
    write_settings,
)
from tasks.errors import Refused
from tasks.folders import give_tree, make_folder, remove_tree
from tasks.processes import Process, TimedOut, TimeoutExpired, run, start, stop_group
from tasks.programs import Installation
from tasks.programs_copy import usable_by
from tasks.server_log import complaints, size_of

# A socket's path may have 103 (macOS) or 107 bytes (Linux), its file name included.
_SOCKET_FOLDER_BYTES = 80
_AUTO_CONF = "postgresql.auto.conf"
SOCKET_NOTE = "socket-folders"
_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_INITDB_OPTIONS = (
    "--encoding=UTF8",
    "--locale=C",
    "--auth-local=peer",
    "--auth-host=scram-sha-256",
    "--no-instructions",
)
_POLL_SECONDS = 0.03
_CHECKSUMS_BY_DEFAULT_SINCE = 18


class ClusterDidNotStart(Refused):
    """A private PostgreSQL did not come up; the message carries its last log lines."""


class PrivateCluster:
    """One cluster: make it with ``create`` or ``adopt``, then run it with ``running``.

    It answers on a unix socket to the operating system's users that we and PostgreSQL run as, who
    log in as ``superuser`` without a password; TCP asks for a password (SCRAM). ``directory`` must
    be one that the account can enter; ``account`` is None for an ordinary user.
    """

    def __init__(
        self, directory: Path, installation: Installation, *, superuser: str = "onevault"
    ) -> None:
        self.account: Account | None = unprivileged_account()
        self.installation = usable_by(installation, self.account)
        self.superuser = superuser
        self.directory = directory
        self.data = directory / "data"
        self.conf = directory / "conf"
        self.log_path = directory / "log"
        self.process: Process | None = None
        self.port = SOCKET_PORT
        self._inherited: dict[str, str] = {}
        self._socket_dir: Path | None = None
        self._log: IO[bytes] | None = None

    @property
    def socket_dir(self) -> Path:
        """The folder of the unix socket; a short one for temporary files where ours is too long.

        Its name is written down before it is made, so that a sweep finds it.
        """
        if self._socket_dir is None:
            place = make_folder(self.directory, 0o711) / "socket"
            if len(os.fsencode(place)) > _SOCKET_FOLDER_BYTES:
                place = Path(f"/tmp/ov-{secrets.token_hex(8)}")  # noqa: S108 - unguessable, made below
                with (self.directory / SOCKET_NOTE).open("a") as note:
                    note.write(f"{place}\n")
                place.mkdir(mode=0o700)
            self._socket_dir = make_folder(place, 0o700, self.account)
        return self._socket_dir

    def create(
        self,
        *,
        password: str | None = None,
        durable: bool = False,
        checksums: bool = True,
        arguments: Sequence[str] = (),
    ) -> None:
        """Make a new, empty cluster in ``data`` with UTF8 and the C locale.

        ``password`` is the superuser's for TCP. ``durable`` waits for the disk. ``arguments`` go
        to initdb as they are. Raises ProgramFailed; an unfinished data folder is never left as
        ``data``.
        """
        self.write_configuration()
        fresh = self.directory / "data.new"
        remove_tree(fresh)
        make_folder(fresh, 0o700, self.account)
        argv: list[str | Path] = [self.installation.program("initdb"), f"--pgdata={fresh}"]
        argv += [f"--username={self.superuser}", *_INITDB_OPTIONS, *arguments]
        argv += _checksum_options(self.installation, checksums)
        argv += [] if durable else ["--no-sync"]
        with self._password_file(password) as given:
            run([*argv, *given], timeout_seconds=300, account=self.account)
        fresh.rename(self.data)

    def adopt(self) -> None:
        """Take over the data folder that lies in ``data``, such as an extracted base backup.

        Its files are given to the account. Its own configuration is not used; of that,
        postgresql.auto.conf is put beside ``data``, because PostgreSQL would read it there.
        Refused when it is no data folder or of another major version.
        """
        try:
            major = (self.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            message = f"{self.data} is not a PostgreSQL data folder: it has no PG_VERSION"
            raise Refused(message) from None
        if major != str(self.installation.major):
            message = f"{self.data} is of PostgreSQL {major}; PostgreSQL {self.installation.version} cannot run it"
            raise Refused(message)
        # While the folder is still ours alone, nobody can put links in the way.
        self.data.chmod(0o700)
        with suppress(FileNotFoundError):
            (self.data / _AUTO_CONF).rename(self.directory / _AUTO_CONF)
        give_tree(self.data, self.account)
        self._inherited = self._recorded_settings()
        self.write_configuration()

    def write_configuration(self, settings: Mapping[str, str] | None = None) -> None:
        """Write ``conf``: who may log in, and ``settings`` in its postgresql.conf."""
        make_folder(self.directory, 0o711)
        self._check_that_the_account_gets_in()
        make_folder(self.conf, 0o755)
        users = [account_named(str(os.geteuid())).name]
        users += [self.account.name] if self.account else []
        write_access_rules(self.conf, users, self.superuser)
        write_settings(self.conf, settings or {})

    def files(self) -> dict[str, str]:
        """Return the settings that point PostgreSQL at our configuration and our socket."""
        return {
            "config_file": str(self.conf / "postgresql.conf"),
            "hba_file": str(self.conf / "pg_hba.conf"),
            "ident_file": str(self.conf / "pg_ident.conf"),
            "unix_socket_directories": str(self.socket_dir),
        }

    def start(
        self, settings: Mapping[str, str] | None = None, *, ready_seconds: float = 60
    ) -> None:
        """Start the cluster as a child of ours, for throwing away, and wait until it answers.

        It does not listen on TCP, does not wait for the disk and does not vacuum; ``settings``
        override any of that. It is stopped at once when we die. Raises ClusterDidNotStart with the
        last log lines, TimedOut after ``ready_seconds`` (raise that for a long recovery).
        """
        chosen = throwaway_settings(self.installation.major) | self._inherited | self.files()
        chosen |= dict(settings or {})
        self.port = int(chosen["port"])
        argv: list[str | Path] = [self.installation.program("postgres"), "-D", self.data]
        for name, value in chosen.items():
            argv += ["-c", f"{name}={value}"]
        log_size = size_of(self.log_path)
        self._log = self.open_log()
        self.process = start(
            argv, stdout=self._log, stderr=self._log, account=self.account, death_signal="QUIT"
        )
        try:
            self._wait_until_ready(self.process, ready_seconds, log_size)
        except BaseException:
            self.stop("immediate")
            raise

    def stop(self, mode: str = "fast", *, timeout_seconds: float = 60) -> None:
        """Stop the child: ``smart``, ``fast`` or ``immediate``, as pg_ctl has them; then for sure.

        Nothing to do when it does not run.
        """
        process, self.process = self.process, None
        if process is not None:
            try:
                with suppress(ProcessLookupError, TimeoutExpired):
                    process.send_signal(_STOP_SIGNALS[mode])
                    process.wait(timeout_seconds)
            finally:
                stop_group(process, grace_seconds=0)
        if self._log is not None:
            self._log.close()
            self._log = None

    @contextmanager
    def running(
        self, settings: Mapping[str, str] | None = None, *, ready_seconds: float = 60
    ) -> Iterator["PrivateCluster"]:
        """Run the cluster for the time of a block; it is stopped at once when the block fails."""
        self.start(settings, ready_seconds=ready_seconds)
        mode = "immediate"
        try:
            yield self
            mode = "fast"
        finally:
            self.stop(mode)

    def remove(self) -> None:
        """Stop the cluster and remove its folder and its socket's."""
        self.stop("immediate")
        remove_tree(self.socket_dir)
        remove_tree(self.directory)

    def conninfo(self, database: str = "postgres", user: str | None = None) -> str:
        """Return a connection string for the unix socket; it holds no password."""
        return make_conninfo(
            host=str(self.socket_dir), port=self.port, dbname=database, user=user or self.superuser
        )

    def open_log(self) -> IO[bytes]:
        """Open the log for appending; only we may read it."""
        make_folder(self.directory, 0o711)
        descriptor = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(descriptor, "wb", buffering=0)

    def _check_that_the_account_gets_in(self) -> None:
        if self.account is None:
            return
        asked = run(
            ["test", "-x", self.directory], timeout_seconds=10, account=self.account, check=False
        )
        if asked.returncode != 0:
            message = (
                f"The user {self.account.name}, who runs PostgreSQL for root, cannot enter {self.directory}: "
                "choose a folder below one that everybody may enter, or set ONEVAULT_RUN_AS"
            )
            raise Refused(message)

    def _recorded_settings(self) -> dict[str, str]:
        # With fewer than the backed-up server had, its prepared transactions refuse the start.
        tool = self.installation.program("pg_controldata")
        answer = run([tool, "-D", self.data], timeout_seconds=30, account=self.account).text
        for line in answer.splitlines():
            if line.startswith("max_prepared_xacts setting:"):
                return {"max_prepared_transactions": line.split(":")[1].strip()}
        return {}

    @contextmanager
    def _password_file(self, password: str | None) -> Iterator[list[str]]:
        if password is None:
            yield []
            return
        descriptor, name = tempfile.mkstemp(prefix=".initdb-", dir=self.directory)
        path = Path(name)
        try:
            with os.fdopen(descriptor, "w") as file:
                if self.account:
                    os.fchown(file.fileno(), self.account.uid, self.account.gid)
                file.write(password + "\n")
            yield [f"--pwfile={path}"]
        finally:
            path.unlink(missing_ok=True)

    def _wait_until_ready(self, process: Process, ready_seconds: float, log_size: int) -> None:
        deadline = time.monotonic() + ready_seconds
        while pq.PGconn.ping(self.conninfo().encode()) != pq.Ping.OK:
            with suppress(TimeoutExpired):
                process.wait(_POLL_SECONDS)
            if process.returncode is not None:
                said = complaints(self.log_path, after_bytes=log_size)
                message = f"PostgreSQL {self.installation.version} did not start in {self.directory}: {said}"
                raise ClusterDidNotStart(message)
            if time.monotonic() > deadline:
                message = f"PostgreSQL in {self.directory} did not accept connections within {ready_seconds:g} s"
                raise TimedOut(message)


def _checksum_options(installation: Installation, wanted: bool) -> list[str]:
    if wanted:
        return ["--data-checksums"]
    return ["--no-data-checksums"] if installation.major >= _CHECKSUMS_BY_DEFAULT_SINCE else []
