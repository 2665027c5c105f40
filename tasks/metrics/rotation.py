"""Which database of a server is next, when there are more of them than connections and time."""

from collections.abc import Iterable

from tasks.metrics.models import Tier


class Rotation:
    """Databases, what each of them is still owed, and when it had its turn."""

    def __init__(self) -> None:
        self._owed: dict[str, set[Tier]] = {}
        self._turns: dict[str, int] = {}
        self._turn = 0

    @property
    def is_behind(self) -> bool:
        """Tell whether any database is owed a turn."""
        return any(self._owed.values())

    def is_owed(self, database: str) -> bool:
        """Tell whether this database is owed a turn."""
        return bool(self._owed.get(database))

    def owe(self, databases: Iterable[str], tiers: Iterable[Tier]) -> list[str]:
        """Add these tiers to what each database is owed and return them, the longest waiting first.

        Databases that are not named are forgotten.
        """
        names, due = list(databases), set(tiers)
        self._owed = {name: self._owed.get(name, set()) | due for name in names}
        self._turns = {name: self._turns.get(name, 0) for name in names}
        return sorted(names, key=lambda name: (self._turns[name], name))

    def visit(self, database: str) -> frozenset[Tier]:
        """Begin a database's turn and return the tiers it is owed, which it is no longer."""
        self._turn += 1
        self._turns[database] = self._turn
        owed = frozenset(self._owed.get(database, ()))
        self._owed[database] = set()
        return owed
