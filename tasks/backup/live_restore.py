"""Restoring a logical backup into a server that people use: look first, add to nothing that is there, stop at an error."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tasks import connection, streaming
from tasks.backup.pipeline import OnBytes
from tasks.backup.restore import Limits, OpenBackup, errors_in
from tasks.errors import OneVaultError, Refused, Unavailable
from tasks.processes import ProgramFailed
from tasks.programs import Installation

_SCHEMES = ("postgresql://", "postgres://")
_SECRETS = ("password", "sslpassword", "oauth_client_secret")
_LOST = re.compile(
    r"server closed the connection|terminating connection|could not connect|connection to server"
)
_TAKEN = re.compile(r'database ".*" already exists')
_ABSENT = re.compile(r'(?:role|tablespace) ".*" does not exist')
# One statement about a role or tablespace, to its end: semicolons and line ends may stand inside quotes.
_ABOUT = re.compile(
    rb"""^(?:CREATE|ALTER|COMMENT\ ON)\ (?P<kind>ROLE|TABLESPACE)\ (?P<name>"(?:[^"]|"")+"|[^\s;"]+)"""
    rb"""(?:[^'";]|'(?:[^']|'')*'|"(?:[^"]|"")*")*;\n""",
    re.MULTILINE | re.VERBOSE,
)
_FIRST_TABLESPACE = re.compile(rb"^CREATE TABLESPACE ", re.MULTILINE)
# 16384 is the first object id that a server gives to what users make; what came with an extension is not theirs.
_USER_OBJECTS = """
SELECT count(*)
  FROM (SELECT 'pg_class'::regclass AS classid, oid FROM pg_class
         WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND relpersistence <> 't'
        UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_proc
        UNION ALL SELECT 'pg_type'::regclass, oid FROM pg_type WHERE typtype IN ('d', 'e', 'r')
        UNION ALL SELECT 'pg_namespace'::regclass, oid FROM pg_namespace WHERE nspname !~ '^pg_'
        UNION ALL SELECT 'pg_largeobject'::regclass, oid FROM pg_largeobject_metadata) AS found
 WHERE found.oid >= 16384
   AND NOT EXISTS (SELECT FROM pg_depend
                    WHERE classid = found.classid AND objid = found.oid AND deptype = 'e')
"""


@dataclass(frozen=True, slots=True)
class LiveServer:
    """A server to restore into: how our own sessions and the client programs reach it. Holds no password."""

    conninfo: str
    environment: Mapping[str, str]
    tools: Installation

    @property
    def host(self) -> str:
        """Return where it is, for people."""
        return self.environment.get("PGHOST", "the local socket")

    def connect(self, database: str | None = None) -> "psycopg.Connection[Any]":
        """Open a session on a database, the maintenance database unless named."""
        named = {"dbname": database} if database else {}
        return connection.connect(make_conninfo(self.conninfo, **named))

    def has(self, database: str) -> bool:
        """Return whether a database of this name exists."""
        with self._looking() as session:
            query = "SELECT FROM pg_database WHERE datname = %s"
            return session.execute(query, [database]).fetchone() is not None

    def names(self) -> dict[str, set[str]]:
        """Return the names of its roles and tablespaces, by ROLE and TABLESPACE."""
        with self._looking() as session:
            roles = session.execute("SELECT rolname FROM pg_roles").fetchall()
            tablespaces = session.execute("SELECT spcname FROM pg_tablespace").fetchall()
        return {
            "ROLE": {name for (name,) in roles},
            "TABLESPACE": {name for (name,) in tablespaces},
        }

    @contextmanager
    def _looking(self, database: str | None = None) -> "Iterator[psycopg.Connection[Any]]":
        with (
            self.connect(database) as session,
            connection.translating(f"look at the server {self.host}"),
        ):
            yield session

    def user_objects(self, database: str) -> int:
        """Count what users made in a database."""
        with self._looking(database) as session:
            row = session.execute(_USER_OBJECTS).fetchone()
        return row[0] if row else 0


def live_server(
    place: str, environ: Mapping[str, str], choose_tools: Callable[[bool], Installation]
) -> LiveServer:
    """Read the URL of a server; `choose_tools` is told whether they must speak TLS.

    What the URL does not say comes from libpq's own variables. Refused when it is no URL, or holds a password.
    """
    parts = _parts(place)
    variables = {
        option.keyword.decode(): option.envvar.decode()
        for option in pq.Conninfo.get_defaults()
        if option.envvar
    }
    if unknown := sorted(parts.keys() - variables.keys()):
        message = f"--to cannot say {', '.join(unknown)}: leave it out"
        raise Refused(message)
    inherited = {
        name: value
        for name, value in environ.items()
        if name.startswith(("PG", "KRB5")) and not name.startswith("PG_")
    }
    environment = inherited | {variables[name]: value for name, value in parts.items()}
    needs_tls = environment.get("PGSSLMODE") in ("require", "verify-ca", "verify-full")
    return LiveServer(make_conninfo("", **parts), environment, choose_tools(needs_tls))


def refuse_unfit(server: LiveServer, database: str, *, prepared: bool) -> None:
    """Refuse a database that is in the way; a prepared one must exist and be empty instead."""
    exists = server.has(database)
    if exists and not prepared:
        message = (
            f'database "{database}" exists on {server.host}: a restore never overwrites; '
            "drop it, or restore into an empty one with --as-database"
        )
        raise Refused(message)
    if prepared and not exists:
        message = (
            f'there is no database "{database}" on {server.host}: make it empty '
            "(createdb --template=template0 NAME), or leave --as-database out to restore under the old name"
        )
        raise Refused(message)
    if prepared and (count := server.user_objects(database)):
        message = (
            f'database "{database}" on {server.host} is not empty ({count} objects): a restore never adds to what '
            "is there; name an empty one (createdb --template=template0 NAME)"
        )
        raise Refused(message)


def restore_globals(backup: OpenBackup, server: LiveServer, limits: Limits) -> str:
    """Make the roles and tablespaces that the server lacks; those it has stay as they are. Say what was there.

    Roles and their memberships are made together or not at all.
    """
    text = b"".join(backup.content(backup.manifest.object("globals")))
    text, kept = without_present(text, server.names())
    argv: list[str | Path] = [
        server.tools.program("psql"),
        "--no-psqlrc",
        "--quiet",
        "--no-password",
        "--set=ON_ERROR_STOP=1",
        "--file=-",
    ]
    with _as_refusal("make the roles and tablespaces"):
        streaming.feed(
            argv,
            [in_one_transaction(text)],
            env=server.environment,
            timeout_seconds=limits.timeout_seconds,
        )
    return _kept_sentence(kept)


def restore_database(
    backup: OpenBackup,
    server: LiveServer,
    as_database: str | None,
    limits: Limits,
    on_bytes: OnBytes,
) -> None:
    """Restore the dump under its old name, which must be free, or into an empty database; stop at the first error.

    Whatever fails carries a note about the database that is left half restored.
    """
    name = as_database or backup.manifest.server.database or ""
    into = as_database or server.environment["PGDATABASE"]
    argv: list[str | Path] = [
        server.tools.program("pg_restore"),
        "--no-password",
        "--exit-on-error",
        *(() if as_database else ("--create",)),
        # A connection string: a bare name with an equals sign in it would be taken for one.
        f"--dbname={make_conninfo('', dbname=into)}",
    ]
    with _noting_remains(server, name), _as_refusal(f'restore database "{name}"'):
        streaming.feed(
            argv,
            backup.content(backup.manifest.object("dump"), on_bytes),
            env=server.environment,
            timeout_seconds=limits.timeout_seconds,
        )


def without_present(
    text: bytes, present: Mapping[str, set[str]]
) -> tuple[bytes, dict[str, list[str]]]:
    """Return the globals without what is said of roles and tablespaces that exist, and the names of those.

    Passwords, attributes and settings of a role that exists belong to the people who use it.
    """
    kept: dict[str, list[str]] = {kind: [] for kind in present}

    def leave_out(found: re.Match[bytes]) -> bytes:
        kind, name = found["kind"].decode(), _plain(found["name"].decode())
        if name not in present[kind]:
            return found[0]
        if name not in kept[kind]:
            kept[kind].append(name)
        return b""

    return _ABOUT.sub(leave_out, text), kept


def in_one_transaction(text: bytes) -> bytes:
    """Return the globals with all that comes before the tablespaces, which know no transactions, in one."""
    first = _FIRST_TABLESPACE.search(text)
    cut = first.start() if first else len(text)
    return b"BEGIN READ WRITE;\n" + text[:cut] + b"\nCOMMIT;\n" + text[cut:]


def _parts(place: str) -> dict[str, str]:
    if not place.startswith(_SCHEMES):
        message = "a logical backup is restored into a server: --to postgresql://user@host:port/maintenance_database"
        raise Refused(message)
    connection.describe(place)  # refuses what is not valid, without quoting it
    parts = {
        name: str(value) for name, value in conninfo_to_dict(place).items() if value is not None
    }
    if any(name in parts for name in _SECRETS):
        message = "no passwords on the command line, others can read it: set PGPASSWORD, PGPASSFILE or ~/.pgpass"
        raise Refused(message)
    return {"dbname": "postgres"} | parts


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _kept_sentence(kept: Mapping[str, Iterable[str]]) -> str:
    said = [
        f"{len(list(names))} {kind.lower()}s ({', '.join(names)})"
        for kind, names in kept.items()
        if names
    ]
    return f"{' and '.join(said)} were there already and stay as they are" if said else ""


@contextmanager
def _as_refusal(doing: str) -> Iterator[None]:
    # What the target says against it is no word about the backup: its bytes are checked as they are read.
    try:
        yield
    except ProgramFailed as error:
        if error.returncode < 0:
            raise
        words = (errors_in(error.lines) or [str(error)])[0]
        hint = (
            "; --globals makes the roles and tablespaces of the source"
            if _ABSENT.search(words)
            else ""
        )
        kind = Unavailable if _LOST.search(words) else Refused
        raise kind(f"could not {doing}: {words}{hint}") from error


@contextmanager
def _noting_remains(server: LiveServer, name: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not _TAKEN.search(str(error)) and _may_be_there(server, name):
            error.add_note(
                f'Database "{name}" on {server.host} is not whole: do not use it; drop it before you try again.'
            )
        raise


def _may_be_there(server: LiveServer, name: str) -> bool:
    try:
        return server.has(name)
    except OneVaultError:
        return True
