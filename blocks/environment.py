"""The environment's profile as a block, so that it can be read and changed in the Prefect UI."""

from typing import Literal

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl


class EnvironmentProfile(Block):
    """What one environment does by default, and what it refuses to start without.

    Attributes:
        name: The environment: development, staging or production.
        backup_retention_days: How many days a backup is kept.
        monitoring_frequency_seconds: How many seconds lie between two collections.
        alert_suppression_minutes: How many minutes an alert that was sent is not sent again.
        audit_level: FULL or BASIC.
        encryption_required: Whether backups must be encrypted.
        verification_required: Whether backups must be restored to count.
        recovery_recipient_required: Whether an offline key must be able to open every backup.
        minimum_sslmode: The weakest sslmode that a connection over the network may have.
        embedded_server_allowed: Whether the embedded PostgreSQL may be the vault or the server.
        time_zone: The IANA zone in which days and months are counted.
        maintenance_window: When heavy work may run.

    Example:
        Load a profile and ask how long backups are kept:
        ```python
        from blocks.environment import EnvironmentProfile

        profile = EnvironmentProfile.load("BLOCK_NAME")
        print(profile.backup_retention_days)
        ```
    """

    _block_type_name = "OneVault Environment Profile"
    _block_type_slug = "onevault-environment-profile"
    _description = "What one environment does by default, and what it refuses to start without."
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/process.png"
    )
    _documentation_url = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")

    model_config = ConfigDict(extra="forbid")

    name: Literal["development", "staging", "production"] = Field(
        description="The environment: development, staging or production."
    )
    backup_retention_days: int = Field(gt=0, description="How many days a backup is kept.")
    monitoring_frequency_seconds: int = Field(
        gt=0, description="How many seconds lie between two collections of metrics."
    )
    alert_suppression_minutes: int = Field(
        ge=0, description="For how many minutes an alert that was sent is not sent again."
    )
    audit_level: Literal["FULL", "BASIC"] = Field(
        description="FULL records every step of the outside world's changes, BASIC only the changes."
    )
    encryption_required: bool = Field(
        default=True, description="Whether backups must be encrypted."
    )
    verification_required: bool = Field(
        default=True, description="Whether backups must be restored to count as good."
    )
    recovery_recipient_required: bool = Field(
        default=True, description="Whether an offline key must be able to open every backup."
    )
    minimum_sslmode: Literal[
        "disable", "allow", "prefer", "require", "verify-ca", "verify-full"
    ] = Field(
        default="verify-full",
        description="The weakest sslmode that a connection over the network may have.",
    )
    embedded_server_allowed: bool = Field(
        default=False,
        description="Whether the embedded PostgreSQL may be the vault or the looked-after server.",
    )
    time_zone: str = Field(
        default="UTC", description="The IANA zone in which days and months are counted."
    )
    maintenance_window: str = Field(
        default="daily 01:00-05:00 UTC",
        description="When heavy work may run, such as mon-fri 22:00-04:00 Europe/Berlin, or always.",
    )

    def settings(self) -> dict[str, str | int]:
        """Return the fields, by name, for the profile that decides with them."""
        return {name: getattr(self, name) for name in EnvironmentProfile.model_fields}
