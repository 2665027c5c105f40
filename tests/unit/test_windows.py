"""Maintenance windows, held against a clock that is read minute by minute."""

import math
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.errors import Refused
from tasks.windows import ALWAYS, MaintenanceWindow, parse

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = timedelta(minutes=1)

# Berlin jumps by an hour, Lord Howe by half of one, Apia skipped a whole date; St. John's changed at 00:01.
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "America/St_Johns",
]
CHANGES = [
    datetime(2026, 3, 29, 1, 0, tzinfo=UTC),
    datetime(2026, 10, 25, 1, 0, tzinfo=UTC),
    datetime(2026, 3, 8, 7, 0, tzinfo=UTC),
    datetime(2026, 11, 1, 6, 0, tzinfo=UTC),
    datetime(2026, 4, 4, 15, 0, tzinfo=UTC),
    datetime(2026, 10, 3, 15, 30, tzinfo=UTC),
    datetime(2011, 12, 30, 10, 0, tzinfo=UTC),
    datetime(2010, 11, 7, 2, 31, tzinfo=UTC),
]

times = st.builds(time, st.integers(0, 23), st.sampled_from([0, 1, 15, 30, 45, 59]))
windows = st.builds(
    MaintenanceWindow,
    st.frozensets(st.integers(0, 6), min_size=1),
    st.one_of(times, st.builds(time, st.integers(0, 3), st.just(30))),
    st.one_of(times, st.builds(time, st.integers(0, 3), st.just(30))),
    st.sampled_from(ZONES),
)
moments = st.builds(
    lambda change, minutes: change + minutes * MINUTE,
    st.sampled_from(CHANGES),
    st.integers(-3000, 3000),
)


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


def first_minute_showing(local: datetime, zone: ZoneInfo) -> datetime:
    """Read the clock of the zone minute by minute, from before until it shows this time or a later one."""
    step = timedelta(hours=1)
    moment = local.replace(tzinfo=UTC) - timedelta(hours=40)
    while (moment + step).astimezone(zone).replace(tzinfo=None) < local:
        moment += step
    while moment.astimezone(zone).replace(tzinfo=None) < local:
        moment += MINUTE
    return moment


def open_by_the_clock(window: MaintenanceWindow, now: datetime) -> bool:
    zone = ZoneInfo(window.zone)
    for days in range(-3, 3):
        day = now.astimezone(zone).date() + timedelta(days)
        if day.weekday() in window.weekdays:
            end_day = day if window.start < window.end else day + timedelta(1)
            opens = first_minute_showing(datetime.combine(day, window.start), zone)
            closes = first_minute_showing(datetime.combine(end_day, window.end), zone)
            if opens <= now < closes:
                return True
    return False


@given(window=windows, now=moments)
@example(parse("sun 02:30-04:00 Europe/Berlin"), berlin("2026-03-29T03:00"))
@example(parse("sun 02:15-02:45 Europe/Berlin"), berlin("2026-03-29T03:15"))
@example(parse("sun 01:30-02:30 Europe/Berlin"), berlin("2026-10-25T02:15").replace(fold=1))
@settings(deadline=None, max_examples=150)
def test_it_is_open_when_the_clock_says_so(window: MaintenanceWindow, now: datetime) -> None:
    assert window.is_open(now) == open_by_the_clock(window, now)


@given(window=windows, now=moments)
@settings(deadline=None)
def test_open_means_time_left_and_a_closing_that_is_closed(
    window: MaintenanceWindow, now: datetime
) -> None:
    closes = window.closes_at(now)
    assert (window.seconds_left(now) > 0) == window.is_open(now)
    if closes is not None:
        assert closes > now
        assert window.is_open(closes - timedelta(microseconds=1))
        assert not window.is_open(closes)
        assert window.seconds_left(now) == (closes - now).total_seconds()
        assert all(window.is_open(now + (closes - now) * part / 7) for part in range(7))


@given(window=windows, now=moments)
@settings(deadline=None)
def test_the_next_opening_is_open_and_just_before_it_is_closed(
    window: MaintenanceWindow, now: datetime
) -> None:
    opens = window.next_opening(now)
    assert window.is_open(opens)
    if window.is_open(now):
        assert opens == now
    else:
        assert opens > now
        assert not window.is_open(opens - timedelta(microseconds=1))
        assert not any(window.is_open(now + (opens - now) * part / 7) for part in range(7))


@given(window=windows)
def test_its_text_reads_back(window: MaintenanceWindow) -> None:
    assert parse(str(window)) == window


@given(window=windows, now=moments, zone=st.sampled_from(ZONES))
@settings(deadline=None)
def test_the_zone_of_now_does_not_matter(
    window: MaintenanceWindow, now: datetime, zone: str
) -> None:
    assert window.is_open(now) == window.is_open(now.astimezone(ZoneInfo(zone)))


def test_it_crosses_midnight_and_belongs_to_the_day_it_opened() -> None:
    window = parse("fri 22:00-04:00 Europe/Berlin")
    assert not window.is_open(berlin("2026-06-05T21:59"))
    assert window.is_open(berlin("2026-06-05T22:00"))
    assert window.is_open(berlin("2026-06-06T03:59:59"))
    assert not window.is_open(berlin("2026-06-06T04:00"))
    assert not window.is_open(berlin("2026-06-06T23:00"))
    assert window.closes_at(berlin("2026-06-05T23:00")) == berlin("2026-06-06T04:00")
    assert window.next_opening(berlin("2026-06-06T12:00")) == berlin("2026-06-12T22:00")


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-28", 5), ("2026-10-24", 7), ("2026-06-05", 6)]
)
def test_a_night_of_change_is_shorter_or_longer(day: str, hours: int) -> None:
    now = berlin(f"{day}T22:00")
    assert parse("daily 22:00-04:00 Europe/Berlin").seconds_left(now) == hours * 3600


def test_a_start_that_is_skipped_opens_at_the_jump() -> None:
    window = parse("daily 02:30-04:00 Europe/Berlin")
    assert window.next_opening(berlin("2026-03-29T01:00")) == datetime(
        2026, 3, 29, 1, 0, tzinfo=UTC
    )


def test_a_window_that_is_skipped_whole_waits_for_the_next_day() -> None:
    window = parse("daily 02:15-02:45 Europe/Berlin")
    assert window.next_opening(berlin("2026-03-29T01:00")) == berlin("2026-03-30T02:15")


def test_an_hour_that_comes_twice_opens_once() -> None:
    window = parse("daily 01:30-02:30 Europe/Berlin")
    assert window.closes_at(berlin("2026-10-25T01:30")) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert not window.is_open(datetime(2026, 10, 25, 1, 15, tzinfo=UTC))


def test_windows_that_touch_are_one() -> None:
    window = parse("sat,sun 00:00-24:00 UTC")
    assert window.closes_at(datetime(2026, 6, 6, 5, tzinfo=UTC)) == datetime(2026, 6, 8, tzinfo=UTC)


@pytest.mark.parametrize("text", ["always", "Always ", "daily 00:00-24:00 UTC"])
def test_always_is_always(text: str) -> None:
    window, now = parse(text), datetime(2026, 6, 6, tzinfo=UTC)
    assert window == ALWAYS
    assert str(window) == "always"
    assert window.is_open(now)
    assert window.closes_at(now) is None
    assert window.seconds_left(now) == math.inf
    assert window.next_opening(now) == now


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Mon-Fri 22:00-04:00 Europe/Berlin", "mon-fri 22:00-04:00 Europe/Berlin"),
        ("fri-mon  01:00-02:00 UTC", "mon,fri-sun 01:00-02:00 UTC"),
        ("mon,tue,wed,sun 01:00-02:00 UTC", "mon-wed,sun 01:00-02:00 UTC"),
        ("mon-sun 01:00-24:00 UTC", "daily 01:00-00:00 UTC"),
    ],
)
def test_ways_to_write_it(text: str, plain: str) -> None:
    assert str(parse(text)) == plain


@pytest.mark.parametrize(
    "text",
    [
        "",
        "never",
        "mon 22:00-04:00",
        "mon 25:00-04:00 UTC",
        "mon 24:00-04:00 UTC",
        "mon 2:00-4:00 UTC",
        "mo 22:00-04:00 UTC",
        "mon- 22:00-04:00 UTC",
        "mon,,tue 22:00-04:00 UTC",
        "mon 22:00-04:00 UTC extra",
    ],
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="is not a maintenance window"):
        parse(text)


@pytest.mark.parametrize("zone", ["Europe/Berlln", "../etc/passwd", "/etc/localtime", "Europe"])
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(Refused, match="is not a time zone"):
        parse(f"mon 22:00-04:00 {zone}")


def test_a_time_without_zone_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="aware"):
        ALWAYS.is_open(datetime(2026, 6, 6))  # noqa: DTZ001 - the mistake
