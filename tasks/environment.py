"""What each environment demands, and what a setup lacks of it."""

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks import windows
from tasks.errors import Refused

Environment = Literal["development", "staging", "production"]
SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]

NAMES: tuple[Environment, ...] = ("development", "staging", "production")
SSL_MODES: tuple[SslMode, ...] = (
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
)

_PROFILES = Path(__file__).parents[1] / "deployments" / "environments"


class Profile(BaseModel):
    """What one environment does by default, and what it refuses to start without."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Environment
    backup_retention_days: int = Field(gt=0)
    monitoring_frequency_seconds: int = Field(gt=0)
    alert_suppression_minutes: int = Field(ge=0)
    audit_level: Literal["FULL", "BASIC"]
    encryption_required: bool
    verification_required: bool
    recovery_recipient_required: bool
    minimum_sslmode: SslMode
    embedded_server_allowed: bool
    time_zone: str
    maintenance_window: str

    @field_validator("maintenance_window")
    @classmethod
    def _is_a_window(cls, text: str) -> str:
        with _as_value_error():
            return str(windows.parse(text))

    @field_validator("time_zone")
    @classmethod
    def _is_a_zone(cls, zone: str) -> str:
        with _as_value_error():
            return replace(windows.ALWAYS, zone=zone).zone


@contextmanager
def _as_value_error() -> Iterator[None]:
    # Pydantic gathers ValueErrors, so that a profile shows all its faults at once.
    try:
        yield
    except Refused as error:
        raise ValueError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Setup:
    """What an installation is set up with, as far as a profile has a say.

    server_host is where the looked-after server is reached; a directory of Unix sockets needs no TLS. server_tls says
    whether a connection to it was found to be encrypted; None means that nobody looked. Without recovery_recipients
    there is no keyring in what is about to be done.
    """

    recovery_recipients: int | None
    server_host: str
    server_sslmode: str
    vault_is_embedded: bool
    server_is_embedded: bool = False
    server_tls: bool | None = None
    encryption: bool = True
    verification: bool = True


def current_environment(environ: Mapping[str, str] = os.environ) -> Environment:
    """Return the environment that ONEVAULT_ENV names; there is no default, so that nothing is weaker by accident."""
    given = environ.get("ONEVAULT_ENV", "")
    for name in NAMES:
        if given == name:
            return name
    msg = f"ONEVAULT_ENV is {given!r}. Set it to development, staging or production."
    raise Refused(msg)


def load_profile(name: str, directory: Path = _PROFILES) -> Profile:
    """Read an environment's profile; raises Refused when the file is missing, or anything in it is unknown or wrong."""
    path = directory / f"{current_environment({'ONEVAULT_ENV': name})}.toml"
    try:
        return Profile.model_validate(
            tomllib.loads(path.read_text(encoding="utf-8")) | {"name": name}
        )
    except OSError as error:
        msg = f"The profile {path} cannot be read: {error.strerror}. Restore the file."
        raise Refused(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"The profile {path} is not valid: {error}. Correct the file."
        raise Refused(msg) from None
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
        )
        msg = f"The profile {path} is not valid: {faults}. Correct the file."
        raise Refused(msg) from None


def weaknesses(profile: Profile, setup: Setup) -> list[str]:
    """List, in sentences, all that is missing or weaker than the profile demands; production has a floor of its own."""
    return [
        *_weak_profile(profile),
        *_weak_setup(profile, setup),
        *_weak_connection(profile, setup),
    ]


def refuse_weaknesses(profile: Profile, setup: Setup) -> None:
    """Raise Refused with every weakness in one message; do nothing when there is none."""
    if found := weaknesses(profile, setup):
        listed = "\n".join(f"- {each}" for each in found)
        msg = f"The {profile.name} environment does not start with this setup:\n{listed}"
        raise Refused(msg)


def _weak_profile(profile: Profile) -> Iterator[str]:
    if profile.name != "production":
        return
    switches = {
        "encryption_required": True,
        "verification_required": True,
        "recovery_recipient_required": True,
        "embedded_server_allowed": False,
        "audit_level": "FULL",
    }
    for field, wanted in switches.items():
        if getattr(profile, field) != wanted:
            shown = str(wanted).lower() if isinstance(wanted, bool) else f'"{wanted}"'
            yield f"production.toml weakens {field}. Set it to {shown}."
    if not _reaches(profile.minimum_sslmode, "require"):
        yield f'production.toml allows sslmode {profile.minimum_sslmode}. Set minimum_sslmode to "require" or better.'


def _weak_setup(profile: Profile, setup: Setup) -> Iterator[str]:
    if profile.encryption_required and not setup.encryption:
        yield "Encryption of backups is off. Turn it on."
    if profile.verification_required and not setup.verification:
        yield "Verification of backups is off. Turn it on: a backup that was never restored proves nothing."
    if profile.recovery_recipient_required and setup.recovery_recipients == 0:
        yield "The keyring has no recovery recipient. Make an offline key (age-keygen) and add its public half."
    if setup.vault_is_embedded and not profile.embedded_server_allowed:
        yield "The vault is the embedded server. Set ONEVAULT_VAULT_URL to a PostgreSQL server of your own."
    if setup.server_is_embedded and not profile.embedded_server_allowed:
        yield "The server is the embedded one. Set ONEVAULT_SERVER_URL to the server to look after."


def _weak_connection(profile: Profile, setup: Setup) -> Iterator[str]:
    if setup.server_host.startswith(("/", "@")):
        return
    if not _reaches(setup.server_sslmode, profile.minimum_sslmode):
        yield (
            f"The connection to {setup.server_host} has sslmode {setup.server_sslmode or 'prefer'}. "
            f"Set sslmode={profile.minimum_sslmode} in ONEVAULT_SERVER_URL."
        )
    if setup.server_tls is False and _reaches(profile.minimum_sslmode, "require"):
        yield f"The server {setup.server_host} speaks no TLS. Give it a certificate and set ssl = on."


def _reaches(sslmode: str, minimum: SslMode) -> bool:
    return sslmode in SSL_MODES and SSL_MODES.index(sslmode) >= SSL_MODES.index(minimum)
