"""How long, as people give it with --for."""

from datetime import timedelta

from tasks.alerts.models import parse_duration
from tasks.errors import Refused


def given_for(text: str) -> timedelta:
    """Read the value of --for, such as 30s, 10m or 2h; Refused for anything else."""
    try:
        return parse_duration(text)
    except ValueError as error:
        message = f"--for: {error}."
        raise Refused(message) from None
