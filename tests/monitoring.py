"""Servers to be watched and a vault for what is read of them, for the tests of flows and commands."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, LiteralString

from psycopg import sql
from pydantic import SecretStr

from blocks.postgres import PostgresServer
from tasks import vault
from tasks.cluster_settings import free_port
from tasks.private_cluster import PrivateCluster
from tasks.programs import Installation
from tests.backups import make_vault
from tests.clusters import PASSWORD, SUPERUSER, Server, make_cluster, running_server, short_folder

ROLE = "onevault_monitor"
SECRET = "hunter2-monitor-marker"
TEMPLATE = "monitoring_template"


@dataclass(frozen=True, slots=True)
class MonitoringSite:
    """A server with a role that reads metrics, and a vault that can be stopped and started."""

    source: Server
    keeper: Server
    keeper_settings: Mapping[str, str]
    folder: Path
    vault_url: str
    server: str

    @property
    def environment(self) -> dict[str, str]:
        """Return what the program is told."""
        return {
            "ONEVAULT_ENV": "development",
            "ONEVAULT_HOME": str(self.folder / "home"),
            "ONEVAULT_VAULT_URL": self.vault_url,
        }

    def save_block(self, name: str | None = None, **changes: Any) -> str:
        """Save the server's block, for backups with the superuser and for metrics with the role; return its name."""
        name = name or self.server
        login = {"metrics_user": ROLE, "metrics_password": SecretStr(SECRET)}
        block = PostgresServer.from_conninfo(self.source.url())
        block.model_copy(update={**login, **changes}).save(name, overwrite=True)
        return name

    def query(self, text: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        """Ask the vault."""
        with vault.connect(self.vault_url) as conn:
            return conn.execute(text, values).fetchall()

    def readings(self, family: str, server: str | None = None) -> int:
        """Count at how many moments a family of a server was stored."""
        text: LiteralString = (
            "select count(distinct m.sampled_at) from monitoring.metric_sample m"
            " join monitoring.series s using (series_id)"
            " join monitoring.server_h h using (server_hk)"
            " where s.family = %s and h.server_bk = %s"
        )
        ((found,),) = self.query(text, family, server or self.server)
        return int(found)

    def overrides(self, text: str) -> str:
        """Write a file of overrides and return its path."""
        path = self.folder / f"rules-{token_hex(4)}.yaml"
        path.write_text(text)
        return str(path)

    def stop_vault(self) -> None:
        """Stop the vault's server as its host would."""
        self.keeper.cluster.stop("fast")

    def start_vault(self) -> None:
        """Start it again, on the same port."""
        self.keeper.cluster.start(self.keeper_settings)


@contextmanager
def monitoring_servers(installation: Installation) -> Iterator[MonitoringSite]:
    """Run both servers; the site's vault is a template to be copied for each test."""
    with short_folder() as folder, short_folder() as empty:
        cluster = PrivateCluster(empty, installation, superuser=SUPERUSER)
        cluster.create(password=PASSWORD)
        keeper = make_cluster(folder / "keeper", installation, cluster.data)
        settings = {"listen_addresses": "127.0.0.1", "port": str(free_port())}
        # As a server is in earnest: the tests' own settings would be alerts.
        earnest = {
            "shared_preload_libraries": "pg_stat_statements",
            "fsync": "on",
            "autovacuum": "on",
        }
        with running_server(installation, cluster.data, **earnest) as source:
            try:
                with keeper.running(settings):
                    _prepare(source)
                    keeping = Server(keeper)
                    template = make_vault(keeping, TEMPLATE)
                    yield MonitoringSite(source, keeping, settings, folder, template, "template")
            finally:
                keeper.remove()


@contextmanager
def fresh_vault(servers: MonitoringSite) -> Iterator[MonitoringSite]:
    """Give one test a vault of its own, and a name for the server that no other test has."""
    name = f"vault_{token_hex(4)}"
    with servers.keeper.connect() as conn:
        text = sql.SQL("create database {} template {}")
        conn.execute(text.format(sql.Identifier(name), sql.Identifier(TEMPLATE)))
    yield MonitoringSite(
        servers.source,
        servers.keeper,
        servers.keeper_settings,
        servers.folder,
        servers.keeper.url(name),
        f"shop-{token_hex(3)}",
    )
    with servers.keeper.connect() as conn:
        text = sql.SQL("drop database {} with (force)")
        conn.execute(text.format(sql.Identifier(name)))


def _prepare(source: Server) -> None:
    with source.connect() as conn:
        text = sql.SQL("create role {} login password {} connection limit 5")
        conn.execute(text.format(sql.Identifier(ROLE), sql.Literal(SECRET)))
        conn.execute(sql.SQL("grant pg_monitor to {}").format(sql.Identifier(ROLE)))
        conn.execute("create extension pg_stat_statements")
        conn.execute("create database shop")
