"""What a run leaves to look at in Prefect. Showing never fails the work: without the API it is said in the log."""

import re
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from tasks.progress import Reading

_UPDATE_SECONDS = 3.0
_FINISHED_PERCENT = 100.0


def artifact_key(*words: str) -> str:
    """Return an artifact key of these words: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def show_markdown(key: str, markdown: str, description: str) -> None:
    """Leave a page on the run."""
    _quietly(lambda: create_markdown_artifact(markdown, key=key, description=description, _sync=True))  # type: ignore[call-arg]


def show_table(key: str, rows: Sequence[dict[str, str | int | None]], description: str) -> None:
    """Leave a table on the run."""
    _quietly(lambda: create_table_artifact(list(rows), key=key, description=description, _sync=True))  # type: ignore[call-arg]


class ProgressArtifact:
    """A progress bar on the run, updated every few seconds; a listener of progress."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._artifact_id: UUID | None = None
        self._shown = 0.0
        self._alive = True

    def __call__(self, reading: Reading) -> None:
        """Show a reading; the last one always."""
        now = time.monotonic()
        if not self._alive or (not reading.finished and now - self._shown < _UPDATE_SECONDS):
            return
        self._shown = now
        percent = _FINISHED_PERCENT if reading.finished else reading.percent or 0.0
        self._alive = _quietly(lambda: self._show(percent))

    def _show(self, percent: float) -> None:
        if self._artifact_id is None:
            created = create_progress_artifact(percent, description=self._description, _sync=True)  # type: ignore[call-arg]
            self._artifact_id = created  # type: ignore[assignment]
        else:
            update_progress_artifact(self._artifact_id, progress=percent, _sync=True)  # type: ignore[call-arg]


def _quietly(show: Callable[[], object]) -> bool:
    try:
        show()
    except Exception as error:  # noqa: BLE001 - the work goes on whatever the API says
        get_run_logger().warning("not shown in Prefect (%s: %s)", type(error).__name__, error)
        return False
    return True
