"""`onevault silence`."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deployments import tables
from deployments.monitoring.durations import given_for
from deployments.monitoring.vault_door import opened_vault
from tasks.alerts import reading, silences
from tasks.alerts.models import Silence
from tasks.audit import default_actor
from tasks.errors import Refused

_MATCHERS = ("server", "rule", "category", "severity")


def current() -> Sequence[Silence]:
    """Read the silences that have not ended."""
    with opened_vault() as conn:
        return silences.current(conn, datetime.now(UTC))


def add(request: Mapping[str, Any]) -> str:
    """Begin a silence now; Refused when it does not say what, how long and why."""
    if not request["run_for"] or not request["comment"]:
        message = "A silence needs --for (such as 2h) and --comment (why): it ends by itself, and people will ask."
        raise Refused(message)
    now = datetime.now(UTC)
    ends_at = now + given_for(request["run_for"])
    with opened_vault() as conn:
        made = silences.add(
            conn,
            matchers(request),
            starts_at=now,
            ends_at=ends_at,
            comment=request["comment"],
            by=default_actor(),
        )
        matched = [a for a in reading.open_alerts(conn) if silences.matches(made.matchers, a)]
    until = f"{ends_at:%Y-%m-%d %H:%M} UTC"
    return f"{made.silence_id} silences until {until}, {len(matched)} alerts that are open now among them; `onevault silence --end {made.silence_id}` ends it"


def matchers(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is to be matched, from the options."""
    found: dict[str, Any] = {name: request[name] for name in _MATCHERS if request[name]}
    labels = [label.partition("=") for label in request["labels"]]
    if wrong := [name for name, sign, _ in labels if not sign]:
        message = f"--label {wrong[0]} has no value: write it as NAME=VALUE."
        raise Refused(message)
    return found | ({"labels": {name: value for name, _, value in labels}} if labels else {})


def end(silence_id: str) -> str:
    """End a silence now."""
    with opened_vault() as conn:
        ended = silences.expire(conn, silence_id, by=default_actor(), now=datetime.now(UTC))
    return f"{silence_id} has ended" if ended else f"{silence_id} had ended already, or never was"


def plain(found: Sequence[Silence]) -> list[dict[str, Any]]:
    """Return them as JSON values."""
    return tables.plain(found)


def show(found: Sequence[Silence]) -> None:
    """Print them."""
    if not found:
        tables.show(Text("no silences"))
        return
    table = Table(title="silences", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("matches", "until (UTC)", "by", "why", "id"):
        table.add_column(heading, overflow="fold")
    for each in found:
        what = ", ".join(f"{name} {value}" for name, value in each.matchers.items())
        until = f"{each.ends_at.astimezone(UTC):%Y-%m-%d %H:%M}"
        table.add_row(
            escape(what), until, escape(each.created_by), escape(each.comment), each.silence_id
        )
    tables.show(table)
