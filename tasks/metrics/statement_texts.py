"""Which texts of statements to ask a server for, and when: reading them makes it read a whole file."""

from collections.abc import Collection

ASK_EVERY_SECONDS = 300.0
_MISSING_SECONDS = 3_600.0
_KNOWN_SECONDS = 86_400.0
_MOST = 20_000


class StatementTexts:
    """Remembers which texts are known, wanted and not to be had; times are those of time.monotonic().

    A server is asked at most once in ask_every_seconds, and for a text that it did not have not again for an hour. What
    is known is forgotten after a day, so that a text which the vault has forgotten comes back.
    """

    def __init__(self, ask_every_seconds: float = ASK_EVERY_SECONDS) -> None:
        self._ask_every_seconds = ask_every_seconds
        self._asked_at: float | None = None
        self._known: set[int] = set()
        self._known_since: float | None = None
        self._missing: dict[int, float] = {}
        self._wanted: set[int] = set()

    def want(self, ids: Collection[int], now: float) -> frozenset[int]:
        """Add statements that were seen, and return those to ask for now."""
        if self._known_since is None or now - self._known_since >= _KNOWN_SECONDS:
            self.forget()
            self._known_since = now
        self._missing = {each: until for each, until in self._missing.items() if now < until}
        if len(self._known) + len(self._wanted) + len(self._missing) > _MOST:
            self.forget()
        self._wanted |= set(ids) - self._known - self._missing.keys() - {0}
        if self._asked_at is not None and now - self._asked_at < self._ask_every_seconds:
            return frozenset()
        return frozenset(self._wanted)

    def asked(self, now: float) -> None:
        """Note that the server was asked, whatever came of it."""
        self._asked_at = now

    def told(self, ids: Collection[int], found: Collection[int], now: float) -> None:
        """Note which of the texts asked for were found."""
        self._known |= set(found)
        self._missing |= dict.fromkeys(set(ids) - set(found), now + _MISSING_SECONDS)
        self._wanted -= set(ids)

    def forget(self) -> None:
        """Forget what is known, wanted and missing, but not when the server was asked."""
        self._known.clear()
        self._wanted.clear()
        self._missing.clear()
