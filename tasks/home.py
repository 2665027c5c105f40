"""Where OneVault keeps what is its own on this machine."""

import os
from pathlib import Path

from tasks.errors import Refused


def home() -> Path:
    """Name the home directory: ONEVAULT_HOME, else /var/lib/onevault for root, else XDG's data."""
    configured = os.environ.get("ONEVAULT_HOME")
    if configured:
        return Path(configured).expanduser().resolve()
    if os.geteuid() == 0:
        return Path("/var/lib/onevault")
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path("~/.local/share").expanduser()) / "onevault"


def make_home() -> Path:
    """Make the home directory if need be and return it.

    As root it can be passed through by others (0711), because PostgreSQL runs as another user and
    has its data below it; nothing in it can be listed. Refused when it cannot be made or written.
    """
    place = home()
    mode = 0o711 if os.geteuid() == 0 else 0o700
    try:
        place.mkdir(mode=mode, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            place.chmod(place.stat().st_mode | mode)
    except OSError as error:
        message = f"The home directory {place} cannot be made ({error.strerror}): set ONEVAULT_HOME to one that can"
        raise Refused(message) from error
    if not os.access(place, os.W_OK | os.X_OK):
        message = f"The home directory {place} cannot be written: set ONEVAULT_HOME to one that can"
        raise Refused(message)
    return place


def scratch_home() -> Path:
    """Name the folder of scratch servers: ONEVAULT_SCRATCH, else `scratch` in the home directory, which is made."""
    configured = os.environ.get("ONEVAULT_SCRATCH")
    return Path(configured).expanduser().resolve() if configured else make_home() / "scratch"
