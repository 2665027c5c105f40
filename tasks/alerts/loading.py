"""The rules as an installation has them: shipped, overridden by its own file, checked against the catalogue."""

import os
from collections.abc import Mapping
from pathlib import Path

from tasks.alerts import rules
from tasks.alerts.rules import RuleSet
from tasks.environment import current_environment, load_profile
from tasks.metrics.models import Family


def load(families: Mapping[str, Family], environ: Mapping[str, str] = os.environ) -> RuleSet:
    """Load the shipped rules and the overrides that ONEVAULT_RULES names, for the environment of ONEVAULT_ENV.

    Refused, in one message, for everything in them that cannot be used.
    """
    named = environ.get("ONEVAULT_RULES")
    suppression = load_profile(current_environment(environ)).alert_suppression_minutes
    loaded = rules.load(overrides=Path(named) if named else None, suppression_minutes=suppression)
    return loaded.bound(families)
