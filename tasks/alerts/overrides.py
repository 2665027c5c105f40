"""What the files of rules hold: the rules, and how a user bends them for some servers or tenants."""

from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from tasks import windows
from tasks.alerts.flapping import FlapControl
from tasks.alerts.inhibition import Inhibition
from tasks.alerts.models import Duration, Level, Rule, Strict, Watched
from tasks.errors import Refused
from tasks.windows import MaintenanceWindow


def _window(text: object) -> MaintenanceWindow:
    if isinstance(text, MaintenanceWindow):
        return text
    try:
        return windows.parse(str(text))
    except Refused as refused:
        raise ValueError(str(refused)) from None


class Override(Strict):
    """A change of rules on some servers: by the server's name or its tenant."""

    rules: str
    server: str = "*"
    tenant: str = "*"
    disable: bool = False
    enable: bool = False
    levels: tuple[Level, ...] | None = Field(default=None, min_length=1)
    lasting: Duration | None = Field(default=None, alias="for")
    clear_for: Duration | None = None
    suppression: Duration | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Override":
        if self.disable and self.enable:
            message = "a rule is either disabled or enabled"
            raise ValueError(message)
        return self

    def names(self, rule: str) -> bool:
        """Tell whether the override is about this rule."""
        return fnmatchcase(rule, self.rules)

    def reaches(self, rule: str, server: Watched) -> bool:
        """Tell whether it is about this rule on this server."""
        return (
            self.names(rule)
            and fnmatchcase(server.name, self.server)
            and fnmatchcase(server.tenant, self.tenant)
        )

    def apply(self, rule: Rule) -> Rule:
        """Return the rule as this override has it."""
        levels = self.levels or rule.levels
        if self.lasting is not None:
            levels = tuple(level.model_copy(update={"lasting": self.lasting}) for level in levels)
        changes: dict[str, object] = {"levels": levels}
        for name in ("clear_for", "suppression"):
            if (value := getattr(self, name)) is not None:
                changes[name] = value
        if self.disable or self.enable:
            changes["enabled"] = self.enable
        return rule.model_copy(update=changes)


class Maintenance(Strict):
    """A window in which alerts are recorded and nobody is told."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    window: Annotated[MaintenanceWindow, BeforeValidator(_window)]
    servers: str = "*"
    rules: str = "*"
    comment: str = Field(min_length=3)

    def covers(self, server: str, rule: str, now: datetime) -> bool:
        """Tell whether this rule on this server lies in the window at this moment."""
        return (
            fnmatchcase(server, self.servers)
            and fnmatchcase(rule, self.rules)
            and self.window.is_open(now)
        )


class RulesFile(Strict):
    """The shipped rules."""

    rules: tuple[Rule, ...] = Field(min_length=1)
    inhibitions: tuple[Inhibition, ...] = ()
    flapping: FlapControl | None = None


class OverridesFile(Strict):
    """A user's own file: changes, more rules, windows."""

    rules: tuple[Rule, ...] = ()
    overrides: tuple[Override, ...] = ()
    maintenance: tuple[Maintenance, ...] = ()
    inhibitions: tuple[Inhibition, ...] = ()
    flapping: FlapControl | None = None
