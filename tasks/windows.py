"""Maintenance windows: weekdays, start, end and zone, in which heavy work may run.

A window means the clock on the wall. On its weekdays it opens when that clock first shows its start or later, and
closes when it first shows its end or later; so a start that daylight saving time skips opens at the jump, and an
hour that comes twice does not open it twice. It is open at its first moment and closed at its last.
"""

import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from tasks.errors import Refused

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEK = frozenset(range(7))
_FORM = re.compile(
    r"(?P<days>[a-z,-]+) (?P<start>(?:[01]\d|2[0-3]):[0-5]\d)-(?P<end>(?:[01]\d|2[0-3]):[0-5]\d|24:00) (?P<zone>\S+)",
    re.IGNORECASE,
)
_MIDNIGHT = time(0, 0)
# A window lasts a day at most, but zones have skipped whole dates; and one may stay shut for a week or two.
_DAYS_BACK, _DAYS_AHEAD = 2, 16


@dataclass(frozen=True, slots=True)
class MaintenanceWindow:
    """The weekdays (0 is Monday) on which it opens, at which wall-clock times, in which IANA zone.

    An end that is not after the start lies on the next day; an end equal to the start is a whole day later.
    """

    weekdays: frozenset[int]
    start: time
    end: time
    zone: str

    def __post_init__(self) -> None:
        if not self.weekdays or not self.weekdays <= _WEEK or self.start.tzinfo or self.end.tzinfo:
            raise Refused(_bad(f"{set(self.weekdays)} {self.start}-{self.end}"))
        try:
            ZoneInfo(self.zone)
        except (ValueError, OSError, LookupError):
            msg = f"{self.zone!r} is not a time zone. Use a name like Europe/Berlin or UTC."
            raise Refused(msg) from None

    def __str__(self) -> str:
        if self == ALWAYS:
            return "always"
        return f"{_days_text(self.weekdays)} {self.start:%H:%M}-{self.end:%H:%M} {self.zone}"

    def is_open(self, now: datetime) -> bool:
        """Tell whether the window is open at this moment."""
        return self._opening_at(now) is not None

    def closes_at(self, now: datetime) -> datetime | None:
        """Return when the window that is open now closes; None when it is closed, or never closes."""
        opening = self._opening_at(now)
        if opening is None or self._never_closes():
            return None
        closes = opening[1]
        while (following := self._opening_at(closes)) is not None:
            closes = following[1]
        return closes

    def next_opening(self, now: datetime) -> datetime:
        """Return the first moment, from now on, at which the window is open: now itself if it is."""
        if self.is_open(now):
            return now
        return min(opens for opens, _ in self._openings(now) if opens > now)

    def seconds_left(self, now: datetime) -> float:
        """Return the seconds until the window closes: 0 when it is closed, infinity when it never closes."""
        if not self.is_open(now):
            return 0.0
        closes = self.closes_at(now)
        return (closes - now).total_seconds() if closes else math.inf

    def _never_closes(self) -> bool:
        return self.weekdays == _WEEK and self.start == self.end

    def _opening_at(self, now: datetime) -> tuple[datetime, datetime] | None:
        return next(
            ((opens, closes) for opens, closes in self._openings(now) if opens <= now < closes),
            None,
        )

    def _openings(self, now: datetime) -> list[tuple[datetime, datetime]]:
        if now.tzinfo is None:
            msg = "A window needs an aware time, such as datetime.now(UTC)."
            raise ValueError(msg)
        zone = ZoneInfo(self.zone)
        today = now.astimezone(zone).date()
        days = (today + timedelta(days) for days in range(-_DAYS_BACK, _DAYS_AHEAD))
        openings = [self._opening_on(day, zone) for day in days if day.weekday() in self.weekdays]
        return [(opens, closes) for opens, closes in openings if opens < closes]

    def _opening_on(self, day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
        last_day = day if self.start < self.end else day + timedelta(1)
        return _first_moment(day, self.start, zone), _first_moment(last_day, self.end, zone)


ALWAYS = MaintenanceWindow(_WEEK, _MIDNIGHT, _MIDNIGHT, "UTC")


def parse(text: str) -> MaintenanceWindow:
    """Read "mon-fri 22:00-04:00 Europe/Berlin", "daily 01:00-05:00 UTC", "sat,sun 00:00-24:00 UTC" or "always".

    Raises Refused for anything else.
    """
    if text.strip().lower() == "always":
        return ALWAYS
    found = _FORM.fullmatch(" ".join(text.split()))
    if found is None:
        raise Refused(_bad(text))
    try:
        start, end = (
            time.fromisoformat(found["start"]),
            time.fromisoformat(found["end"].replace("24:00", "00:00")),
        )
        return MaintenanceWindow(_parse_days(found["days"].lower()), start, end, found["zone"])
    except ValueError:
        raise Refused(_bad(text)) from None


def _first_moment(day: date, wall: time, zone: ZoneInfo) -> datetime:
    """Return the first moment, in UTC, at which the clock of that zone shows this time of this day, or a later one."""
    local = datetime.combine(day, wall)
    before, after = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if before <= after:
        return before
    # The clock jumps over this time; the jump lies between the two readings of it.
    early, late = after, before
    while late - early > timedelta(seconds=1):
        middle = early + (late - early) // 2
        if middle.astimezone(zone).replace(tzinfo=None) >= local:
            late = middle
        else:
            early = middle
    return late.replace(microsecond=0)


def _parse_days(text: str) -> frozenset[int]:
    if text == "daily":
        return _WEEK
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        start = _DAYS.index(first)
        length = (_DAYS.index(last) - start) % 7 if dash else 0
        days |= {(start + step) % 7 for step in range(length + 1)}
    return frozenset(days)


def _days_text(weekdays: frozenset[int]) -> str:
    if weekdays == _WEEK:
        return "daily"
    runs: list[list[int]] = []
    for day in sorted(weekdays):
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    return ",".join(
        _DAYS[run[0]] if len(run) == 1 else f"{_DAYS[run[0]]}-{_DAYS[run[-1]]}" for run in runs
    )


def _bad(text: str) -> str:
    return f'{text!r} is not a maintenance window. Write it like "mon-fri 22:00-04:00 Europe/Berlin", or "always".'
