"""A PgBouncer: where its admin console is, and who may look at it."""

from prefect.blocks.core import Block
from psycopg.conninfo import make_conninfo
from pydantic import ConfigDict, Field, HttpUrl, SecretStr

from blocks.conninfo import read_conninfo
from blocks.postgres import SslMode

_KNOWN = frozenset(["host", "port", "dbname", "user", "password", "sslmode", "sslrootcert"])


class PgBouncerConsole(Block):
    """The admin console of a PgBouncer, which says how busy its pools are.

    A console whose block has the same name as a PostgreSQL server's is that of the server's pooler.

    Attributes:
        host: A host name, an address, or the directory of a Unix socket.
        port: The pooler's port.
        user: A user of stats_users or admin_users; the first is enough.
        password: Its password, if it needs one.
        sslmode: How the connection is encrypted, in libpq's words.
        sslrootcert: The file with the certificates that are trusted, or system.
        connect_timeout_seconds: How long to wait for the pooler to answer.

    Example:
        Load a console and write its connection string:
        ```python
        from blocks.pgbouncer import PgBouncerConsole

        console = PgBouncerConsole.load("BLOCK_NAME")
        conninfo = console.conninfo().get_secret_value()
        ```
    """

    _block_type_name = "OneVault PgBouncer Console"
    _block_type_slug = "onevault-pgbouncer-console"
    _description = "The admin console of a PgBouncer, which says how busy its pools are."
    _logo_url = HttpUrl(
        "https://cdn.sanity.io/images/3ugk85nk/production/3c7dff04f70aaf4528e184a3b028f9e40b98d68c-250x250.png"
    )
    _documentation_url = HttpUrl("https://www.pgbouncer.org/usage.html#admin-console")

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    host: str = Field(
        min_length=1,
        description="A host name, an address, or the directory of a Unix socket.",
        examples=["pooler.example.com", "/run/postgresql"],
    )
    port: int = Field(default=6432, ge=1, le=65535, description="The pooler's port.")
    user: str = Field(
        min_length=1,
        description="A user of stats_users or admin_users; the first is enough to look.",
    )
    password: SecretStr | None = Field(
        default=None, description="The user's password, if it needs one."
    )
    sslmode: SslMode = Field(
        default="prefer",
        description="How the connection is encrypted, in libpq's words; production uses verify-full.",
    )
    sslrootcert: str | None = Field(
        default=None,
        description="The file with the trusted certificates; system trusts what this machine trusts.",
    )
    connect_timeout_seconds: int = Field(
        default=5, ge=2, description="For how many seconds to wait until the pooler answers."
    )

    @classmethod
    def from_conninfo(cls, conninfo: str | SecretStr) -> "PgBouncerConsole":
        """Read a connection string or URL; raises Refused, without repeating it, for one we cannot use."""
        parts = read_conninfo(conninfo, _KNOWN, "pgbouncer")
        return cls.model_validate({name: parts[name] for name in parts if name != "dbname"})

    def conninfo(self) -> SecretStr:
        """Write the connection string of the console, password included."""
        parts: dict[str, str | int | None] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "dbname": "pgbouncer",
            "password": self.password.get_secret_value() if self.password else None,
            "sslmode": self.sslmode,
            "sslrootcert": self.sslrootcert,
            "connect_timeout": self.connect_timeout_seconds,
        }
        return SecretStr(make_conninfo("", **parts))
