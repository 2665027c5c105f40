from datetime import timedelta

import pytest

from tasks.alerts.models import AlertStatus, Memory, Notify, Severity
from tasks.alerts.notification import decide, told
from tests.unit.alerts.making import at

HOUR = timedelta(hours=1)
OPEN, RESOLVED, TAKEN = AlertStatus.OPEN, AlertStatus.RESOLVED, AlertStatus.ACKNOWLEDGED


def memory(severity: Severity | None = Severity.HIGH, **changes) -> Memory:
    return Memory("disk_used", "shop", {}, held=severity, **changes)


def after(seconds: float, severity: Severity = Severity.HIGH, **changes) -> Memory:
    """Someone who was told `seconds` before the start, in this episode."""
    given = {"notified_at": at(-seconds), "notified_severity": severity, "notified_episode": True}
    return memory(severity, **{**given, **changes})


def test_the_first_time_people_are_told():
    assert decide(memory(), OPEN, at(0), HOUR, None) == (Notify.FIRST, None)


def test_within_the_window_they_are_not_told_again():
    notify, because = decide(after(60), OPEN, at(0), HOUR, None)
    assert notify is None
    assert because is not None
    assert "until" in because or "12:59" in because


def test_what_is_urgent_is_repeated_after_the_window_and_the_rest_after_a_day_of_them():
    assert decide(after(3600), OPEN, at(0), HOUR, None)[0] is Notify.REPEAT
    assert decide(after(3600, Severity.LOW), OPEN, at(0), HOUR, None)[0] is None
    assert decide(after(86400, Severity.LOW), OPEN, at(0), HOUR, None)[0] is Notify.REPEAT


def test_a_worse_severity_breaks_through():
    worse = memory(
        Severity.CRITICAL,
        notified_at=at(-1),
        notified_severity=Severity.HIGH,
        notified_episode=True,
    )
    assert decide(worse, OPEN, at(0), HOUR, None) == (Notify.WORSE, None)


def test_a_refire_breaks_through():
    again = memory(notified_at=at(-60), notified_severity=Severity.HIGH, notified_episode=False)
    assert decide(again, OPEN, at(0), HOUR, None) == (Notify.REFIRE, None)
    assert decide(again, OPEN, at(7200), HOUR, None) == (Notify.FIRST, None)


def test_who_has_acknowledged_is_not_reminded_but_hears_of_worse():
    assert decide(after(7200), TAKEN, at(0), HOUR, None) == (None, "someone has acknowledged it")
    worse = memory(
        Severity.CRITICAL,
        notified_at=at(-1),
        notified_severity=Severity.HIGH,
        notified_episode=True,
    )
    assert decide(worse, TAKEN, at(0), HOUR, None)[0] is Notify.WORSE


@pytest.mark.parametrize("status", [OPEN, TAKEN])
def test_quiet_holds_back_and_says_why(status):
    assert decide(after(7200), status, at(0), HOUR, "silenced by ann") == (None, "silenced by ann")


def test_who_was_told_of_the_beginning_hears_of_the_end_through_the_quiet():
    assert decide(after(60), RESOLVED, at(0), HOUR, "silenced by ann") == (Notify.RESOLVED, None)
    begun_in_it = decide(memory(None), RESOLVED, at(0), HOUR, "silenced by ann")
    assert begun_in_it == (None, "nobody was told that it began")


def test_after_the_quiet_people_are_told_what_they_missed():
    assert decide(memory(), OPEN, at(0), HOUR, None)[0] is Notify.FIRST


def test_the_end_is_told_to_those_who_heard_of_the_beginning():
    assert decide(after(60), RESOLVED, at(0), HOUR, None) == (Notify.RESOLVED, None)
    assert decide(memory(None), RESOLVED, at(0), HOUR, None)[0] is None


def test_flapping_is_told_once():
    flapping = after(60, is_flapping=True)
    assert decide(flapping, OPEN, at(0), HOUR, None)[0] is Notify.REFIRE
    flapping = told(flapping, Notify.REFIRE, at(0))
    assert decide(flapping, OPEN, at(86400), HOUR, None)[0] is None


def test_without_a_window_nothing_is_repeated():
    assert decide(after(7200), OPEN, at(0), timedelta(0), None)[0] is None


def test_what_was_told_is_remembered():
    heard = told(memory(Severity.CRITICAL), Notify.FIRST, at(5))
    assert (heard.notified_at, heard.notified_severity) == (at(5), Severity.CRITICAL)
    assert heard.notified_episode
    assert not told(heard, Notify.RESOLVED, at(9)).notified_episode
