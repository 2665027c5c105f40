"""What is here, what is missing, and what to do about it. Looks only; starts nothing."""

import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from rich.table import Table

from tasks import embedded
from tasks.alerts import loading
from tasks.errors import OneVaultError, Refused
from tasks.home import home
from tasks.metrics import catalog
from tasks.processes import death_signal_tool, redact, unprivileged_account
from tasks.programs import Installation, client_tools, default_server, discover, problems
from tasks.scratch import abandoned

ENVIRONMENTS = ("development", "staging", "production")
SUPPORTED_MAJORS = (15, 16, 17, 18)

_OLDEST_PYTHON = (3, 11)
_PREFECT_RANGE = ((3, 8, 8), (4,))
_API_SECONDS = 3
_LITTLE_SPACE_BYTES = 5 * 1024**3
_NO_SPACE_BYTES = 512 * 1024**2


class State(StrEnum):
    """How well something is."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: about what, how it is, what was found, and what to do about it."""

    subject: str
    state: State
    found: str
    advice: str = ""


def diagnose() -> list[Check]:
    """Look at everything the product needs on this machine; takes well under a second.

    (Up to three seconds more when the Prefect API does not answer.)
    """
    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _environment,
        _account,
        _installations,
        _clients,
        _ending_of_children,
        _places,
        _embedded,
        _prefect,
        _prefect_api,
        _alert_rules,
    )
    return [check for part in parts for check in part()]


def worst(checks: Sequence[Check]) -> State:
    """Return the worst state among the checks."""
    order = list(State)
    return max((check.state for check in checks), key=order.index, default=State.OK)


def render(checks: Sequence[Check]) -> Table:
    """Lay the checks out as a table for the terminal."""
    colours = {State.OK: "green", State.WARN: "yellow", State.FAIL: "bold red"}
    table = Table(show_lines=False)
    for heading in ("", "subject", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        mark = f"[{colours[check.state]}]{check.state}[/]"
        table.add_row(mark, *map(_literal, (check.subject, check.found, check.advice)))
    return table


def _literal(text: str) -> str:
    return text.replace("[", r"\[")


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info[:2] >= _OLDEST_PYTHON:
        yield Check("Python", State.OK, found)
    else:
        yield Check("Python", State.FAIL, found, "install Python 3.11 or newer")


def _environment() -> Iterator[Check]:
    name = os.environ.get("ONEVAULT_ENV")
    if name is None:
        advice = "flows refuse to start without it: set ONEVAULT_ENV to development, staging or production"
        yield Check("environment", State.WARN, "ONEVAULT_ENV is not set", advice)
    elif name in ENVIRONMENTS:
        yield Check("environment", State.OK, name)
    else:
        advice = f"set ONEVAULT_ENV to {', '.join(ENVIRONMENTS[:-1])} or {ENVIRONMENTS[-1]}"
        yield Check("environment", State.FAIL, repr(name), advice)


def _account() -> Iterator[Check]:
    try:
        account = unprivileged_account()
    except Refused as error:
        yield Check("account", State.FAIL, "no user to run PostgreSQL as", str(error))
        return
    if account is None:
        yield Check("account", State.OK, "an ordinary user, who runs PostgreSQL as well")
    else:
        yield Check("account", State.OK, f"root; PostgreSQL runs as {account.name}")


def _installations() -> Iterator[Check]:
    for installation in discover():
        subject = f"PostgreSQL {installation.version}"
        yield Check(subject, State.OK, _described(installation))
    for problem in problems():
        advice = "repair or remove it; it is not used"
        yield Check(f"PostgreSQL in {problem.bin_dir}", State.WARN, redact(problem.reason), advice)
    try:
        default_server()
    except Refused as error:
        yield Check("PostgreSQL server programs", State.FAIL, "none", str(error))


def _described(installation: Installation) -> str:
    kinds = ["server"] * installation.has_server + ["client"] * installation.has_client
    tls = {True: "with TLS", False: "without TLS", None: "TLS unknown"}[installation.has_tls]
    return f"{' and '.join(kinds)}, {tls}, {installation.origin}: {installation.bin_dir}"


def _clients() -> Iterator[Check]:
    for major in SUPPORTED_MAJORS:
        subject = f"client tools for PostgreSQL {major}"
        try:
            chosen = client_tools(major, needs_tls=True)
        except Refused as error:
            yield Check(subject, State.WARN, "none with TLS", str(error))
        else:
            yield Check(subject, State.OK, f"{chosen.version}, {chosen.origin}")


def _ending_of_children() -> Iterator[Check]:
    tool = death_signal_tool()
    subject = "children end with us"
    if tool:
        yield Check(subject, State.OK, f"{tool} --pdeathsig")
    else:
        advice = (
            "install util-linux 2.33 or newer; without it a SIGKILL of ours leaves pg_dump running"
        )
        yield Check(subject, State.WARN, "no setpriv that knows --pdeathsig", advice)


def _places() -> Iterator[Check]:
    place = home()
    yield _space("home directory", place, "ONEVAULT_HOME")
    scratch = Path(os.environ.get("ONEVAULT_SCRATCH") or place / "scratch")
    yield _space("scratch space", scratch, "ONEVAULT_SCRATCH")
    left_over = abandoned(scratch)
    if left_over:
        found = f"{len(left_over)} left by a crash in {scratch}"
        yield Check("scratch folders", State.WARN, found, "the next run removes them")


def _space(subject: str, place: Path, variable: str) -> Check:
    existing = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{place}, {free / 1024**3:.1f} GiB free"
    if not os.access(existing, os.W_OK):
        return Check(subject, State.FAIL, f"{place} cannot be written", f"set {variable}")
    if free < _LITTLE_SPACE_BYTES:
        state = State.FAIL if free < _NO_SPACE_BYTES else State.WARN
        return Check(subject, state, found, f"free some space, or point {variable} at another disk")
    return Check(subject, State.OK, found)


def _embedded() -> Iterator[Check]:
    subject = "embedded PostgreSQL"
    try:
        servers = embedded.status()
    except OneVaultError as error:
        yield Check(subject, State.FAIL, "cannot be looked at", str(error))
        return
    if not servers:
        yield Check(subject, State.OK, "none made yet")
    for server in servers:
        state = f"running on port {server.port}" if server.is_running else "stopped"
        yield Check(subject, State.OK, f"{server.name} (PostgreSQL {server.major}): {state}")


def _prefect() -> Iterator[Check]:
    advice = "install it again from requirements.lock: ./ops setup"
    try:
        version = metadata.version("prefect")
    except metadata.PackageNotFoundError:
        yield Check("Prefect", State.FAIL, "not installed", advice)
        return
    lowest, too_high = _PREFECT_RANGE
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    fits = lowest <= numbers < too_high
    yield Check("Prefect", State.OK if fits else State.WARN, version, "" if fits else advice)


def _prefect_api() -> Iterator[Check]:
    subject = "Prefect API"
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        found = "PREFECT_API_URL is not set: the active Prefect profile decides"
        yield Check(subject, State.OK, found)
        return
    try:
        with urllib.request.urlopen(_health_url(url), timeout=_API_SECONDS):  # noqa: S310 - checked
            yield Check(subject, State.OK, f"{redact(url)} answers")
    except urllib.error.HTTPError as error:
        advice = "check PREFECT_API_URL and PREFECT_API_KEY or PREFECT_API_AUTH_STRING"
        yield Check(subject, State.WARN, f"{redact(url)} answers {error.code}", advice)
    except (OSError, ValueError) as error:
        found = f"{redact(url)} does not answer: {redact(str(error))}"
        yield Check(
            subject, State.FAIL, found, "start it (prefect server start) or correct the URL"
        )


def _alert_rules() -> Iterator[Check]:
    subject, own = "alert rules", os.environ.get("ONEVAULT_RULES")
    if os.environ.get("ONEVAULT_ENV") not in ENVIRONMENTS:
        return
    try:
        found = loading.load(catalog.load().families)
    except OneVaultError as error:
        yield Check(subject, State.FAIL, f"cannot be used{f': {own}' if own else ''}", str(error))
        return
    bent = f", bent by {own}" if own else ""
    yield Check(subject, State.OK, f"{len(found.rules)} rules{bent}")


def _health_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = "it is no http or https address"
        raise ValueError(message)
    # A login in the address is for Prefect; health needs none.
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path.rstrip('/')}/health"
