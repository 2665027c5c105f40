"""What a run leaves to look at in Prefect. Showing never fails the work: without the API it is said in the log."""

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from tasks.progress import Reading

_UPDATE_SECONDS = 3.0
_FINISHED_PERCENT = 100.0
_AWAY_SECONDS = 60.0


def artifact_key(*words: str) -> str:
    """Return an artifact key of these words: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def show_markdown(key: str, markdown: str, description: str) -> None:
    """Leave a page on the run."""
    _pages.show(lambda: create_markdown_artifact(markdown, key=key, description=description))


def show_table(key: str, rows: Sequence[dict[str, str | int | None]], description: str) -> None:
    """Leave a table on the run."""
    _pages.show(lambda: create_table_artifact(list(rows), key=key, description=description))


class ProgressArtifact:
    """A progress bar on the run, updated every few seconds; a listener of progress.

    Readings come from the threads of a pipeline; the API is called from a thread of its own, in the context of the
    task that made this, so that a slow or absent API never slows the work down.
    """

    def __init__(self, description: str) -> None:
        self._description = description
        self._context = copy_context()
        self._caller = ThreadPoolExecutor(1, "progress-artifact")
        self._waiting: Future[None] | None = None
        self._artifact_id: UUID | None = None
        self._shown = 0.0
        self._alive = True

    def __call__(self, reading: Reading) -> None:
        """Show a reading; the last one always."""
        now = time.monotonic()
        if reading.finished:
            self._submit(_FINISHED_PERCENT)
            self._caller.shutdown(wait=False)
        elif now - self._shown >= _UPDATE_SECONDS and (
            self._waiting is None or self._waiting.done()
        ):
            self._shown = now
            self._submit(reading.percent or 0.0)

    def _submit(self, percent: float) -> None:
        if self._alive:
            self._waiting = self._caller.submit(self._context.copy().run, self._show, percent)

    def _show(self, percent: float) -> None:
        self._alive = self._alive and _quietly(lambda: self._call(percent))

    def _call(self, percent: float) -> None:
        # A bar is not worth waiting for an API that is away.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            if self._artifact_id is None:
                created = create_progress_artifact(percent, description=self._description)
                self._artifact_id = cast("UUID", created)
            else:
                update_progress_artifact(self._artifact_id, progress=percent)


class _Pages:
    """Shows pages on the run; when the API did not answer for one, the next ones do not wait for it again."""

    def __init__(self) -> None:
        self._away_until = 0.0

    def show(self, create: Callable[[], object]) -> None:
        """Show a page unless the API was away a moment ago."""
        if time.monotonic() < self._away_until:
            get_run_logger().warning("not shown in Prefect: its API does not answer")
        elif not _quietly(create):
            self._away_until = time.monotonic() + _AWAY_SECONDS


_pages = _Pages()


def _quietly(show: Callable[[], object]) -> bool:
    try:
        show()
    except Exception as error:
        get_run_logger().warning("not shown in Prefect (%s: %s)", type(error).__name__, error)
        return not isinstance(error, httpx.TransportError)
    return True
