"""What happens to batches when the vault does not take them, and who may still write."""

import os
from datetime import UTC, datetime

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tasks import vault as vaults
from tasks.errors import Refused, Unavailable
from tasks.metrics import store
from tasks.metrics.sink import VaultSink
from tasks.metrics.store import Heartbeat
from tests.backups import until
from tests.clusters import PASSWORD, Database
from tests.integration.metrics.samples import availability, batch, facts, later, sample


def sink_of(migrated: Database, made: list[psycopg.Connection]) -> VaultSink:
    """A sink that says which connections it made."""

    def connect() -> psycopg.Connection:
        made.append(vaults.connect(migrated.conninfo))
        return made[-1]

    identity = Heartbeat("test", "here", os.getpid(), datetime.now(UTC))
    return VaultSink(connect, identity, lambda: None)


def stored(vault: psycopg.Connection) -> int:
    ((number,),) = vault.execute("select count(*) from monitoring.metric_sample").fetchall()
    return int(number)


def test_a_vault_that_became_read_only_is_away_and_nothing_is_dropped(migrated, vault):
    made: list[psycopg.Connection] = []
    sink = sink_of(migrated, made)
    assert sink.lead()
    made[0].execute("set default_transaction_read_only = on")
    with pytest.raises(Unavailable, match="read-only"):
        sink.write([batch(availability())])
    assert made[0].closed
    sink.write([batch(availability())])
    sink.close()
    assert (len(made), stored(vault)) == (2, 1)


def test_what_the_vault_does_not_take_of_one_server_holds_up_no_other(migrated, vault, caplog):
    made: list[psycopg.Connection] = []
    sink = sink_of(migrated, made)
    unknown = batch(availability(), facts=facts(tenant="ACME"))
    odd = batch(availability(later(-3 * 86400)), sample(), server="odd")
    refused = sink.write([unknown, batch(availability(), server="other"), odd, odd])
    sink.close()
    assert refused == {"shop-1": unknown.size, "odd": 2}
    assert stored(vault) == 2
    assert "which the vault does not know" in caplog.text


def test_a_closed_sink_writes_nothing_and_leaves_the_lead_free(migrated, vault):
    made: list[psycopg.Connection] = []
    sink = sink_of(migrated, made)
    assert sink.lead()
    sink.close()
    with pytest.raises(Refused, match="nothing is written any more"):
        sink.write([batch(availability())])
    assert len(made) == 1
    assert stored(vault) == 0
    until(lambda: store.try_lead(vault, "test"))


def test_a_leader_whose_host_went_loses_the_lead_in_a_minute(migrated):
    address = {"host": "127.0.0.1", "password": PASSWORD}
    with vaults.connect(make_conninfo(migrated.conninfo, **address)) as conn:
        assert store.try_lead(conn, "test")
        row = conn.execute(
            "select string_agg(setting, '+' order by name) from pg_settings"
            " where name in ('tcp_keepalives_idle', 'tcp_keepalives_interval', 'tcp_keepalives_count')"
        ).fetchone()
    assert row == ("4+20+10",)
