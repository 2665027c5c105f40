"""The audit trail: who did what to the outside world, one row before and one after, never changed."""

import getpass
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from uuid import UUID, uuid4

import psycopg

from tasks import datavault
from tasks.errors import OneVaultError, Refused
from tasks.redaction import redact


class Phase(StrEnum):
    """Whether the row was written before the act or after it."""

    BEFORE = "BEFORE"
    AFTER = "AFTER"


class Result(StrEnum):
    """What was about to happen (the first two), or what came of it."""

    INTENDED = "INTENDED"
    STARTED = "STARTED"
    SUCCEEDED = "SUCCEEDED"
    PARTIAL = "PARTIAL"
    FAILED = "FAILED"
    REFUSED = "REFUSED"
    CANCELLED = "CANCELLED"


@cache
def default_actor() -> str:
    """Return user@host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a passwd line
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


@dataclass(frozen=True, slots=True)
class Event:
    """An act on the outside world: what kind, on what, by whom.

    `operation_id` joins its rows; an operation whose last row is BEFORE was cut off.
    """

    event_type: str
    subject: str
    actor: str = field(default_factory=default_actor)
    operation_id: UUID = field(default_factory=uuid4)
    tenant_hk: bytes = datavault.SYSTEM_TENANT_HK


def record(
    conn: psycopg.Connection,
    event: Event,
    phase: Phase,
    outcome: Result,
    details: Mapping[str, object] | None = None,
) -> None:
    """Write one row of the trail, in the caller's transaction when there is one. Details are plain JSON values."""
    with conn.transaction():
        hub_key = datavault.insert_hub(
            conn,
            "audit.audit_event_h",
            "audit_event",
            f"{event.operation_id}-{phase.value}-{uuid4()}",
            event.tenant_hk,
        )
        row = {
            "operation_id": event.operation_id,
            "event_type": event.event_type,
            "phase": phase.value,
            "subject": event.subject,
            "actor": event.actor,
            "outcome": outcome.value,
            "details": dict(details or {}),
        }
        datavault.append_version(conn, "audit.audit_detail_s", "audit_event_hk", hub_key, row)


@contextmanager
def audited(
    conn: psycopg.Connection, event: Event, details: Mapping[str, object] | None = None
) -> Iterator[dict[str, object]]:
    """Write a row before the block and one after it, whatever comes of it.

    Yields a dict whose entries go into the row after. Needs an autocommit connection outside a
    transaction, so that the first row stands even if this process dies in the block.
    """
    record(conn, event, Phase.BEFORE, Result.STARTED, details)
    found: dict[str, object] = {}
    try:
        yield found
    except BaseException as error:
        found["error"] = (
            redact(str(error)) if isinstance(error, OneVaultError) else type(error).__name__
        )
        _record_failure(conn, event, error, found)
        raise
    record(conn, event, Phase.AFTER, Result.SUCCEEDED, found)


def _record_failure(
    conn: psycopg.Connection, event: Event, error: BaseException, found: dict[str, object]
) -> None:
    try:
        record(conn, event, Phase.AFTER, _result_of(error), found)
    except psycopg.Error as lost:  # the first error is the one to show
        error.add_note(f"The audit row after it could not be written: {type(lost).__name__}.")


def _result_of(error: BaseException) -> Result:
    if isinstance(error, Refused):
        return Result.REFUSED
    return Result.FAILED if isinstance(error, Exception) else Result.CANCELLED
