"""How a command ends: a sentence and an exit code, never a traceback for people who are paged at night."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TRY_AGAIN = 3
EXIT_DAMAGED = 4
EXIT_SKIPPED = 5
EXIT_FIRING = 6

CODES = f"""\b
Exit codes:
  0  done, and proven where a proof was asked for
  {EXIT_FAILED}  refused or failed; the sentence says what to do
  {EXIT_USAGE}  wrong usage
  {EXIT_TRY_AGAIN}  something did not answer; try again later
  {EXIT_DAMAGED}  a copy is damaged or did not restore equal to its source
  {EXIT_SKIPPED}  outside the maintenance window, or another one is at work; nothing was done
  {EXIT_FIRING}  an alert of severity HIGH or CRITICAL is open, or nobody watches (status --check)
"""


@contextmanager
def sentences() -> Iterator[None]:
    """Turn what went wrong into one sentence and an exit code; no tracebacks for people who are paged at night."""
    from tasks.errors import OneVaultError

    try:
        yield
    except OneVaultError as error:
        _fail(error, _exit_code(error), str(error))
    except (click.ClickException, click.Abort):
        raise
    except KeyboardInterrupt as error:
        _fail(error, EXIT_FAILED, "interrupted")
    except Exception as error:
        name = type(error).__name__
        if _is_silence_of_prefect(error):
            sentence = f"The Prefect API does not answer ({name}): check PREFECT_API_URL and `prefect server start`."
            _fail(error, EXIT_TRY_AGAIN, sentence)
        advice = "this was not foreseen; `onevault --verbose ...` shows the traceback"
        _fail(error, EXIT_FAILED, f"{name}: {error} ({advice})")


def _exit_code(error: Exception) -> int:
    from tasks.errors import Damaged, Unavailable

    if isinstance(error, Damaged):
        return EXIT_DAMAGED
    return EXIT_TRY_AGAIN if isinstance(error, Unavailable) else EXIT_FAILED


def _is_silence_of_prefect(error: BaseException | None) -> bool:
    # Only Prefect's client uses httpx here; whoever did not import it cannot have met its errors.
    transport_error = getattr(sys.modules.get("httpx"), "TransportError", ())
    while error is not None:
        if isinstance(error, transport_error) or "Failed to reach API" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _fail(error: BaseException, code: int, sentence: str) -> NoReturn:
    from tasks.redaction import redact

    if click.get_current_context().find_root().params.get("verbose"):
        click.echo(redact("".join(traceback.format_exception(error))), err=True)
    said = "\n".join([sentence, *getattr(error, "__notes__", [])])
    click.secho(f"onevault: {redact(said)}", err=True, fg="red")
    sys.exit(code)
