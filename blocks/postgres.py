"""A PostgreSQL server: where it is, who we are there, and how its client programs learn both without argv."""

import os
import re
from pathlib import Path
from typing import Any, Literal

import psycopg
from prefect.blocks.core import Block
from psycopg.conninfo import make_conninfo
from pydantic import ConfigDict, Field, HttpUrl, SecretStr

from blocks.conninfo import read_conninfo
from blocks.durable_files import explaining
from blocks.errors import Refused, Unavailable

SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]

_FIELDS = {"dbname": "database", "connect_timeout": "connect_timeout_seconds"}
_KNOWN = frozenset(
    [
        "host",
        "port",
        "dbname",
        "user",
        "password",
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "connect_timeout",
        "application_name",
        "options",
    ]
)
_ENVIRONMENT = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "dbname": "PGDATABASE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "application_name": "PGAPPNAME",
    "options": "PGOPTIONS",
}
# A connection that fails has no SQLSTATE, only words; these will be the same next time.
_FINAL = re.compile(
    r"authentication failed|no password supplied|pg_hba\.conf|does not exist|permission denied"
    r"|does not support SSL|certificate|not permitted to log in|invalid|unrecognized",
    re.IGNORECASE,
)


class PostgresServer(Block):
    """A PostgreSQL server that is looked after, and the login we have there.

    Attributes:
        host: A host name, an address, or the directory of a Unix socket.
        port: The server's port.
        database: The database that maintenance connects to.
        user: The login role.
        password: Its password, if it needs one.
        role: A role to act as after connecting.
        sslmode: How the connection is encrypted, in libpq's words.
        sslrootcert: The file with the certificates that are trusted, or system.
        sslcert: The file with our own certificate.
        sslkey: The file with its key.
        pooled_host: The host of a connection pooler in front of the server.
        pooled_port: The pooler's port.
        connect_timeout_seconds: How long to wait for the server to answer.
        application_name: What the server calls us in pg_stat_activity.
        options: Options for the server, such as -c statement_timeout=60000.
        metrics_user: The login role for reading metrics, if it is another one.
        metrics_password: That role's password, if it needs one.
        tenant: The business key of the tenant whose server it is.

    Example:
        Load a server and ask for its version:
        ```python
        from blocks.postgres import PostgresServer

        server = PostgresServer.load("BLOCK_NAME")
        with server.connect() as connection:
            print(connection.info.server_version)
        ```
    """

    _block_type_name = "OneVault PostgreSQL Server"
    _block_type_slug = "onevault-postgres-server"
    _description = "A PostgreSQL server that is looked after, and the login we have there."
    _logo_url = HttpUrl(
        "https://cdn.sanity.io/images/3ugk85nk/production/3c7dff04f70aaf4528e184a3b028f9e40b98d68c-250x250.png"
    )
    _documentation_url = HttpUrl("https://www.postgresql.org/docs/current/libpq-connect.html")

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    host: str = Field(
        min_length=1,
        description="A host name, an address, or the directory of a Unix socket.",
        examples=["db.example.com", "/run/postgresql"],
    )
    port: int = Field(default=5432, ge=1, le=65535, description="The server's port.")
    database: str = Field(
        default="postgres", description="The database that maintenance connects to."
    )
    user: str = Field(min_length=1, description="The login role; give it the least rights that do.")
    password: SecretStr | None = Field(
        default=None, description="The login role's password, if it needs one."
    )
    role: str | None = Field(
        default=None,
        description="A role to act as after connecting, which the login role is a member of.",
    )
    sslmode: SslMode = Field(
        default="prefer",
        description="How the connection is encrypted, in libpq's words; production uses verify-full.",
    )
    sslrootcert: str | None = Field(
        default=None,
        description="The file with the trusted certificates; system trusts what this machine trusts.",
    )
    sslcert: str | None = Field(default=None, description="The file with our own certificate.")
    sslkey: str | None = Field(default=None, description="The file with our certificate's key.")
    pooled_host: str | None = Field(
        default=None,
        description="The host of a connection pooler such as pgbouncer, if there is one.",
    )
    pooled_port: int = Field(default=6432, ge=1, le=65535, description="The pooler's port.")
    connect_timeout_seconds: int = Field(
        default=10, ge=2, description="For how many seconds to wait until the server answers."
    )
    application_name: str = Field(
        default="onevault", description="What the server calls us in pg_stat_activity."
    )
    options: str = Field(
        default="",
        description="Options for the server, such as -c statement_timeout=60000.",
        examples=[""],
    )
    metrics_user: str | None = Field(
        default=None,
        description="The login role for reading metrics; pg_monitor is all it needs. By default the user above.",
    )
    metrics_password: SecretStr | None = Field(
        default=None, description="The metrics role's password, if it needs one."
    )
    tenant: str = Field(
        default="SYSTEM_OPERATIONS",
        description="The business key of the tenant whose server it is; SYSTEM_OPERATIONS is nobody's and everybody's.",
    )

    @classmethod
    def from_conninfo(cls, conninfo: str | SecretStr) -> "PostgresServer":
        """Read a connection string or URL; raises Refused, without repeating it, for one we cannot use."""
        parts = read_conninfo(conninfo, _KNOWN, "database")
        return cls.model_validate({_FIELDS.get(name, name): value for name, value in parts.items()})

    def conninfo(self, database: str | None = None, *, pooled: bool = False) -> SecretStr:
        """Write the connection string, password and role included; pooled ones go to the pooler.

        Raises Refused when there is no pooler, or when a role would have to be set through one.
        """
        return SecretStr(make_conninfo(**self._parameters(database, pooled), **self._login()))

    def for_metrics(self) -> "PostgresServer":
        """Return this server with the login for reading metrics; its own login when there is no other."""
        if self.metrics_user is None:
            return self
        login = {"user": self.metrics_user, "password": self.metrics_password, "role": None}
        return self.model_copy(update=login)

    def connect(
        self, database: str | None = None, *, pooled: bool = False, autocommit: bool = True
    ) -> psycopg.Connection:
        """Open a connection; raises Unavailable or Refused, with a sentence that never holds the password."""
        conninfo = self.conninfo(database, pooled=pooled).get_secret_value()
        try:
            return psycopg.connect(conninfo, autocommit=autocommit)
        except psycopg.Error as error:
            raise self._explained(error, database, pooled) from None

    def libpq_environment(self, passfile: Path) -> dict[str, str]:
        """Return the PG* variables that lead a client program here; the password stays in the passfile."""
        parameters = self._parameters(None, pooled=False)
        named = {_ENVIRONMENT[name]: str(value) for name, value in parameters.items()}
        return {**named, "PGPASSFILE": str(passfile)}

    def write_passfile(self, path: Path) -> None:
        """Write a new file of mode 0600 in the form of .pgpass; without a password it is empty."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with explaining(path), os.fdopen(os.open(path, flags, 0o600), "w") as file:
            file.write(self._passfile_line())

    def _passfile_line(self) -> str:
        if not self.password:
            return ""
        password = self.password.get_secret_value()
        if "\n" in password or "\n" in self.user:
            msg = "A passfile cannot hold a user name or password with a line feed. Choose another one."
            raise Refused(msg)
        # libpq looks a default socket up as localhost, and each of several hosts on its own: the star is all of them.
        host = "*" if re.search(r"^[/@]|,", self.host) else self.host
        fields = (host, str(self.port), "*", self.user, password)
        return (
            ":".join(each if each == "*" else re.sub(r"([\\:])", r"\\\1", each) for each in fields)
            + "\n"
        )

    def _login(self) -> dict[str, str]:
        return {"password": self.password.get_secret_value()} if self.password else {}

    def _parameters(self, database: str | None, pooled: bool) -> dict[str, Any]:
        if pooled and not self.pooled_host:
            msg = (
                f"The server {self.host} has no pooled_host. Set it, or connect without the pooler."
            )
            raise Refused(msg)
        every = {
            "host": self.pooled_host if pooled else self.host,
            "port": self.pooled_port if pooled else self.port,
            "user": self.user,
            "dbname": database or self.database,
            "sslmode": self.sslmode,
            "sslrootcert": self.sslrootcert,
            "sslcert": self.sslcert,
            "sslkey": self.sslkey,
            "connect_timeout": self.connect_timeout_seconds,
            "application_name": self.application_name,
            "options": self._options(pooled),
        }
        return {name: value for name, value in every.items() if value}

    def _options(self, pooled: bool) -> str:
        if not self.role:
            return self.options
        if pooled:
            msg = (
                f"A pooler shares its sessions, so the role {self.role} cannot be set through it. "
                f"Give the login role its role for good: ALTER ROLE {self.user} SET role = {self.role}."
            )
            raise Refused(msg)
        escaped = re.sub(r"([\\\s])", r"\\\1", self.role)
        return f"{self.options} -c role={escaped}".strip()

    def _explained(
        self, error: psycopg.Error, database: str | None, pooled: bool
    ) -> Unavailable | Refused:
        words = " ".join(str(error).split()).rpartition("failed: ")[2].rstrip(".")
        if self.password and (password := self.password.get_secret_value()):
            words = words.replace(password, "...")
        host, port = (self.pooled_host, self.pooled_port) if pooled else (self.host, self.port)
        where = f'{host} port {port}, database "{database or self.database}", user "{self.user}"'
        sentence = f"Could not connect to PostgreSQL at {where}: {words}."
        if _FINAL.search(words.replace(str(host), "")) or not isinstance(
            error, psycopg.OperationalError
        ):
            return Refused(f"{sentence} Correct the login, or the server's rules.")
        return Unavailable(
            f"{sentence} Check that the server runs and can be reached, then try again."
        )
