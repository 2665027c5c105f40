from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.alerts import rules, silences
from tasks.alerts.evaluation import evaluate
from tasks.alerts.models import Notify, Silence
from tasks.errors import Refused
from tasks.metrics import catalog

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def add(vault, matchers: Any = None, **changes: Any) -> Silence:
    given: dict[str, Any] = {
        "ends_at": NOW + HOUR,
        "comment": "the disk is being changed",
        "by": "ann",
        "starts_at": NOW,
    }
    return silences.add(
        vault, {"server": "shop"} if matchers is None else matchers, **{**given, **changes}
    )


def test_a_silence_is_written_listed_and_ended(vault):
    made = add(vault, {"rule": "disk_*", "labels": {"path": "/data"}})
    assert silences.current(vault, NOW) == (made,)
    assert silences.expire(vault, made.silence_id, by="bob", now=NOW + timedelta(minutes=1))
    assert silences.current(vault, NOW + timedelta(minutes=1)) == ()
    assert not silences.expire(vault, made.silence_id, by="bob", now=NOW + timedelta(minutes=2))


def test_a_silence_to_come_can_be_ended(vault):
    made = add(vault, starts_at=NOW + timedelta(minutes=30))
    assert silences.expire(vault, made.silence_id, by="bob", now=NOW)


def test_a_silence_leaves_audit_rows(vault):
    made = add(vault)
    silences.expire(vault, made.silence_id, by="bob", now=NOW)
    rows = vault.execute(
        "SELECT event_type, phase, actor FROM audit.audit_detail_s WHERE subject = %s ORDER BY event_type, phase DESC",
        [made.silence_id],
    ).fetchall()
    assert rows == [
        ("ALERT_SILENCE_ADDED", "BEFORE", "ann"),
        ("ALERT_SILENCE_ADDED", "AFTER", "ann"),
        ("ALERT_SILENCE_ENDED", "BEFORE", "bob"),
        ("ALERT_SILENCE_ENDED", "AFTER", "bob"),
    ]


@pytest.mark.parametrize(
    ("matchers", "changes", "said"),
    [
        ({}, {}, "what it matches"),
        ({"host": "x"}, {}, "host is none of them"),
        (None, {"comment": "  "}, "needs a comment"),
        (None, {"ends_at": NOW}, "end after it starts"),
        (None, {"ends_at": NOW + timedelta(days=31)}, "30 days at most"),
        ({"labels": "path=x"}, {}, "labels"),
    ],
    ids=str,
)
def test_what_is_no_silence_is_refused(vault, matchers, changes, said):
    with pytest.raises(Refused, match=said):
        add(vault, matchers, **changes)
    assert silences.current(vault, NOW) == ()


def test_the_id_must_be_one(vault):
    with pytest.raises(Refused, match="not the id of a silence"):
        silences.expire(vault, "x", by="bob", now=NOW)


def test_who_was_silenced_hears_of_it_afterwards(vault, readings):
    shipped = rules.load().bound(catalog.load().families)
    add(vault, {"server": "shop"})
    readings.add("slots.is_lost", 1.0, NOW, labels={"slot_name": "s"})
    (begun,) = evaluate(vault, shipped, NOW + timedelta(seconds=1)).transitions
    assert (begun.notify, begun.alert.suppression_reason) == (
        None,
        "silenced by ann until 2026-03-02 13:00 UTC: the disk is being changed",
    )
    readings.add("slots.is_lost", 1.0, NOW + HOUR, labels={"slot_name": "s"})
    told = evaluate(vault, shipped, NOW + HOUR).transitions
    assert [(each.alert.rule, each.notify) for each in told] == [
        ("replication_slot_lost", Notify.FIRST)
    ]
