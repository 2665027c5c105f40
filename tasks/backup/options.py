"""How a backup-and-verify run is to behave; Prefect's UI shows it as a form."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tasks import windows


def _window(text: str) -> str:
    windows.parse(text)
    return text


class BackupOptions(BaseModel):
    """The options of a backup run; every one has a safe default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(
        "default", description="The name of the store block that receives the backup."
    )
    keyring: str = Field(
        "default", description="The name of the keyring block that encrypts and signs it."
    )
    window: Annotated[str, AfterValidator(_window)] = Field(
        "always",
        description="When the run may work, for example 'mon-fri 22:00-04:00 Europe/Berlin'; late runs are skipped.",
    )
    verify: bool = Field(
        True, description="Restore the backup into a scratch server and compare it with the source."
    )
    compare: Literal["content", "counts", "none"] = Field(
        "content",
        description="Compare the content of every row, row counts only, or nothing (then no data is read twice).",
    )
    heap_all_indexed: bool = Field(
        False,
        description="Let pg_amcheck also look every heap tuple up in its indexes (slow, thorough).",
    )
    level: int = Field(
        1, ge=1, le=19, description="The zstd level; 1 is the fastest and rarely much larger."
    )
    threads: int = Field(
        2, ge=1, le=64, description="Compression workers on the server, for a physical backup."
    )
    jobs: int = Field(
        2,
        ge=1,
        le=32,
        description="Connections that count the source, and jobs of the restore test.",
    )
    lock_wait_seconds: int = Field(
        60, ge=1, description="How long pg_dump waits for a table lock before it gives up."
    )
    timeout_seconds: float = Field(
        4 * 3600.0, gt=0, description="How long one step may take before it is stopped."
    )
    scratch: Path | None = Field(
        None, description="Where scratch servers are made; the home directory by default."
    )
