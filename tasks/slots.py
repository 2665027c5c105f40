"""One heavy job at a time on a server: backup, vacuum and rebuild share a Prefect concurrency limit."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.concurrency.sync import concurrency
from prefect.logging import get_run_logger

from tasks.errors import Unavailable

LIMIT_PREFIX = "onevault-server-"
# The shortest that Prefect gives: so long the next run waits when this one is killed.
_LEASE_SECONDS = 60


@contextmanager
def server_slot(server: str, wait_seconds: float) -> Iterator[None]:
    """Hold the server's slot for the time of a block, waiting for it; a server without a limit has no slots to hold.

    Raises Unavailable when other work does not end in time. Losing the slot's lease, or Prefect's server, never
    stops the work: what must not happen twice is also locked in the vault.
    """
    held = ExitStack()
    try:
        held.enter_context(
            concurrency(
                f"{LIMIT_PREFIX}{server}",
                timeout_seconds=wait_seconds,
                lease_duration=_LEASE_SECONDS,
                strict=False,
                raise_on_lease_renewal_failure=False,
            )
        )
    except TimeoutError as error:
        message = f"other heavy work on {server} did not end within {wait_seconds:.0f} s; see Concurrency in the Prefect UI, or try later"
        raise Unavailable(message) from error
    try:
        yield
    finally:
        try:
            held.close()
        except Exception as error:  # the lease runs out by itself
            get_run_logger().warning("the slot of %s was not given back (%s)", server, error)
