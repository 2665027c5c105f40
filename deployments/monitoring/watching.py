"""`onevault watch` and `onevault collect`: flows run here, for people and for supervisors such as systemd."""

import logging
import threading
from collections.abc import Sequence

from deployments.monitoring.durations import given_for
from deployments.monitoring.vault_door import opened_vault
from tasks.errors import OneVaultError, Unavailable
from tasks.metrics import sink, store

_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0


def watch(servers: Sequence[str] | None, run_for: str, *, once: bool) -> bool:
    """Run one collecting flow after the other until interrupted; False when another collector led (with once).

    A run that fails because something is away is begun again after a growing pause; other failures are raised.
    """
    from flows.metrics import watch_servers  # noqa: PLC0415

    seconds = given_for(run_for).total_seconds()
    _log_to_terminal()
    chosen = None if servers is None else list(servers)
    pause, wait = _PAUSE_SECONDS, threading.Event()
    while True:
        if not once:
            _wait_for_the_lead(wait)
        try:
            report = watch_servers(chosen, seconds)
        except Unavailable as error:
            if once:
                raise
            logging.getLogger("onevault.collector").warning("%s", error)
            wait.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            continue
        pause = _PAUSE_SECONDS
        if once:
            return report is not None


def collect(servers: Sequence[str] | None) -> str:
    """Run collect_metrics once, and say what came of it."""
    from flows.metrics import collect_metrics  # noqa: PLC0415

    return collect_metrics(None if servers is None else list(servers)).sentence


def _wait_for_the_lead(wait: threading.Event) -> None:
    # Asking costs a query; a flow run that finds the lead taken would be one more line in everybody's list of runs.
    said = False
    while _is_led():
        if not said:
            logging.getLogger("onevault.collector").info("another collector leads: waiting")
        said = True
        wait.wait(_PAUSE_SECONDS)


def _is_led() -> bool:
    try:
        with opened_vault() as conn:
            return not store.try_lead(conn, sink.FLEET)
    except OneVaultError:  # the flow says it better
        return False


def _log_to_terminal() -> None:
    """Show servers that go and come, and alerts that begin and end; the rest of the log is Prefect's."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("onevault")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False
