from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from tasks import audit
from tasks.audit import Event, Phase, Result
from tasks.errors import Refused, Unavailable


def rows(conn: psycopg.Connection) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT * FROM audit.audit_detail_s ORDER BY load_date").fetchall()


def test_an_act_leaves_a_row_before_and_one_after(vault):
    event = Event("vacuum", "shop.public.orders", actor="ann")
    with audit.audited(vault, event, {"mode": "full"}) as found:
        (before,) = rows(vault)
        found["pages"] = 7
    assert (before["phase"], before["outcome"], before["details"]) == (
        "BEFORE",
        "STARTED",
        {"mode": "full"},
    )
    _, after = rows(vault)
    assert (after["phase"], after["outcome"], after["details"]) == (
        "AFTER",
        "SUCCEEDED",
        {"pages": 7},
    )
    for row in (before, after):
        assert (row["event_type"], row["subject"], row["actor"]) == (
            "vacuum",
            "shop.public.orders",
            "ann",
        )
        assert row["operation_id"] == event.operation_id
        assert row["changed_by"] == "ops"


@pytest.mark.parametrize(
    ("error", "outcome", "said"),
    [
        (Refused("No password=sesame here."), "REFUSED", "No password=*** here."),
        (Unavailable("Later."), "FAILED", "Later."),
        (RuntimeError("sesame"), "FAILED", "RuntimeError"),
        (KeyboardInterrupt(), "CANCELLED", "KeyboardInterrupt"),
    ],
)
def test_what_came_of_it_is_told_without_secrets(vault, error, outcome, said):
    with pytest.raises(type(error)), audit.audited(vault, Event("cancel", "backend 7")):
        raise error
    _, after = rows(vault)
    assert (after["outcome"], after["details"]) == (outcome, {"error": said})


def lose_the_vault_and_fail(vault: psycopg.Connection) -> None:
    with audit.audited(vault, Event("cancel", "backend 7")):
        vault.close()
        message = "the first"
        raise Refused(message)


def test_a_vault_lost_meanwhile_does_not_hide_the_error(migrated, vault):
    with pytest.raises(Refused, match="the first") as caught:
        lose_the_vault_and_fail(vault)
    assert "audit row after it could not be written" in caught.value.__notes__[0]
    with migrated.connect() as conn:
        assert [row["phase"] for row in rows(conn)] == ["BEFORE"]


@pytest.mark.parametrize("table", ["audit_event_h", "audit_detail_s"])
@pytest.mark.parametrize(
    "act", ["DELETE FROM {}", "UPDATE {} SET record_source = 'x'", "TRUNCATE {} CASCADE"]
)
def test_the_trail_is_never_changed(vault, table, act):
    audit.record(vault, Event("vacuum", "t"), Phase.AFTER, Result.SUCCEEDED)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="is append-only"):
        vault.execute(sql.SQL(act).format(sql.Identifier("audit", table)))
    assert len(rows(vault)) == 1


def test_an_outcome_belongs_to_its_phase(vault):
    with pytest.raises(psycopg.errors.CheckViolation):
        audit.record(vault, Event("vacuum", "t"), Phase.BEFORE, Result.SUCCEEDED)
    assert rows(vault) == []
    assert vault.execute("SELECT count(*) FROM audit.audit_event_h").fetchone() == (0,)


def test_the_actor_is_somebody():
    user, _, host = audit.default_actor().partition("@")
    assert user
    assert host
