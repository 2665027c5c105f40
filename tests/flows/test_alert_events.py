"""Events of alerts whose evaluation was cut off before Prefect had them: the next announcement emits them, once."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from secrets import token_hex

import psycopg
import pytest
from prefect.client.orchestration import get_client
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.events.schemas.events import ReceivedEvent

from tasks import vault as vaults
from tasks.alerts import acknowledging, evaluation, reading, rules, store
from tasks.alerts.models import Evaluation
from tasks.alerts.tasks import announce
from tasks.metrics import catalog
from tasks.programs import Installation
from tests.backups import until
from tests.integration.alerts.readings import Readings
from tests.monitoring import fresh_vault, monitoring_servers

NAMES = [f"onevault.alert.{name}" for name in ("firing", "acknowledged", "resolved")]
NOW = datetime.now(UTC)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds - 600)


@pytest.fixture(scope="module")
def vault(installation: Installation) -> Iterator[psycopg.Connection]:
    with (
        monitoring_servers(installation) as servers,
        fresh_vault(servers) as site,
        vaults.connect(site.vault_url) as conn,
    ):
        yield conn


def events_of(server: str) -> list[ReceivedEvent]:
    with get_client(sync_client=True) as client:
        page = client.read_events(EventFilter(event=EventNameFilter(name=NAMES)), limit=50)
    return [event for event in page.events if event.resource.get("onevault.server") == server]


def happen(vault: psycopg.Connection, server: str) -> None:
    """Let a slot be lost, someone take it on, and the slot come back, with nobody announcing it."""
    shipped = rules.load().bound(catalog.load().families)
    readings = Readings(vault)
    labels = {"slot_name": "s"}
    readings.add("slots.is_lost", 1.0, at(0), labels=labels, server=server)
    evaluation.evaluate(vault, shipped, at(1), [server])
    (alert,) = reading.open_alerts(vault, server)
    acknowledging.acknowledge(vault, alert.fingerprint, by="ann", now=at(30))
    readings.add("slots.is_lost", 0.0, at(60), labels=labels, server=server)
    evaluation.evaluate(vault, shipped, at(61), [server])


def test_what_was_cut_off_is_emitted_once_by_the_next_announcement(vault):
    server, last = f"shop-{token_hex(3)}", f"bank-{token_hex(3)}"
    happen(vault, server)
    assert len(store.not_emitted(vault)) == 3
    for _ in range(2):
        announce(vault, Evaluation(at(62)))
        assert store.not_emitted(vault) == []
    # Events come in the order in which they were emitted: had there been another one, it would be there before these.
    happen(vault, last)
    announce(vault, Evaluation(at(63)))
    until(lambda: len(events_of(last)) == 3)
    found = events_of(server)
    assert Counter(event.event for event in found) == Counter(NAMES)
    by_name = {event.event: event for event in found}
    assert [by_name[name].occurred for name in NAMES] == [at(1), at(30), at(61)]
    assert [by_name[name].payload["status"] for name in NAMES] == [
        "OPEN",
        "ACKNOWLEDGED",
        "RESOLVED",
    ]
    assert by_name[NAMES[1]].payload["not_notified_because"] == "ann has acknowledged it"
