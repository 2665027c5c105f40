"""How open alerts look on the command line."""

from dataclasses import replace

from rich.console import Console

from deployments.monitoring.alerting import Found, show
from deployments.monitoring.health import alerts_table
from tasks.alerts.models import Alert, AlertStatus, Severity
from tests.unit.alerts.making import at

ALERT = Alert(
    alert_hk=b"1",
    fingerprint="0123456789abcdef",
    rule="disk_used",
    server="shop",
    labels={},
    category="CAPACITY",
    status=AlertStatus.ACKNOWLEDGED,
    severity=Severity.HIGH,
    started_at=at(0),
    triggered_at=at(0),
    summary="/data is full",
    acknowledged_at=at(10),
    acknowledged_by="ann",
)


def shown(alert: Alert) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(alerts_table([alert]))
    return captured.get()


def test_only_what_is_acknowledged_now_is_shown_so():
    assert "acknowledged" in shown(ALERT)
    assert "acknowledged" not in shown(replace(ALERT, status=AlertStatus.OPEN))


def test_times_say_that_they_are_utc():
    assert "since (UTC)" in shown(ALERT)


def test_an_alert_says_what_is_usual_at_this_hour(capsys):
    details = {"next_step": "Extend it.", "usually": "usually 10-20 at this hour of the week"}
    show(Found(alerts=[replace(ALERT, details=details)]), history=False)
    assert "usually 10-20 at this hour of the week" in capsys.readouterr().out
