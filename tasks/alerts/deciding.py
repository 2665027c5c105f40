"""The whole decision of one evaluation, without a database: what was read and remembered in, what changes out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tasks.alerts import machine, quiet, watching, wording
from tasks.alerts.conditions import is_clear, read, watches
from tasks.alerts.health import health_of
from tasks.alerts.models import (
    Alert,
    AlertStatus,
    FamilyStatus,
    Health,
    Memory,
    Notify,
    Reading,
    Rule,
    Series,
    Transition,
    View,
    Watched,
    fingerprint,
)
from tasks.alerts.notification import decide as decide_notification
from tasks.alerts.notification import told
from tasks.alerts.rules import RuleSet
from tasks.datavault import hash_key
from tasks.metrics.models import Family, FamilyState, Source

_SLACK = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one condition on one object: its memory, and the alert if there is one."""

    rule: Rule
    server: Watched
    memory: Memory
    reading: Reading
    before: Alert | None = None
    after: Alert | None = None


@dataclass(frozen=True, slots=True)
class Decisions:
    """Everything to be written. A memory of None is to be forgotten."""

    transitions: tuple[Transition, ...]
    versions: Mapping[str, Alert]
    memories: Mapping[str, Memory | None]
    health: tuple[Health, ...]
    failures: tuple[str, ...]
    open_alerts: int


@dataclass(slots=True)
class _Round:
    """What one evaluation has found so far."""

    rules: RuleSet
    view: View
    now: datetime
    known: frozenset[tuple[str, str]] = frozenset()
    changes: dict[str, Change] = field(default_factory=dict)
    health: list[Health] = field(default_factory=list)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)


def decide(rules: RuleSet, view: View, now: datetime) -> Decisions:
    """Evaluate every rule on every server, then decide who is to hear of it."""
    known = frozenset(
        {(memory.server, memory.rule) for memory in view.memories.values()}
        | {(alert.server, alert.rule) for alert in view.alerts.values()}
    )
    found = _Round(rules, view, now, known)
    for server in view.servers.values():
        _evaluate_server(found, server)
    ended = dict(_ended(found))
    firing = [change.after for change in found.changes.values() if _is_firing(change.after)]
    open_alerts = [alert for alert in firing if alert is not None]
    told_changes = dict(_tell(found, {**found.changes, **ended}, open_alerts))
    return _collected(found, told_changes, len(open_alerts))


def no_longer_watched(alert: Alert, server: Watched, now: datetime) -> Transition:
    """End an alert because nobody watches its server any more; told to those who heard that it began."""
    was_told = alert.last_notified_at is not None
    after = _resolved(alert, now, "no longer watched")
    return Transition(
        alert=replace(after, last_notified_at=now) if was_told else after,
        from_status=alert.status,
        happened_at=now,
        value=None,
        notify=Notify.RESOLVED if was_told else None,
        not_notified_because=None if was_told else "nobody was told that it began",
        next_step=str(alert.details.get("next_step", "")),
        runbook=alert.details.get("runbook"),
        tenant=server.tenant,
    )


def _evaluate_server(found: _Round, server: Watched) -> None:
    failed: list[str] = []
    rules = found.rules.of(server)
    for rule in sorted(rules, key=lambda rule: rule.family == watching.FAMILY):
        # One rule that fails may not keep the others from being evaluated: the failure is an alert itself.
        try:
            for key, change in list(_evaluate(found, rule, server, failed)):
                found.changes[key] = change
        except Exception as error:
            failed.append(rule.name)
            found.failures[server.name, rule.name] = f"{type(error).__name__}: {error}"


def _evaluate(
    found: _Round, rule: Rule, server: Watched, failed: Sequence[str]
) -> Iterator[tuple[str, Change]]:
    family = found.rules.families[rule.family]
    statuses = found.view.statuses.get((server.name, rule.family), ())
    longest_gap = timedelta(seconds=family.stale_after_seconds)
    for series in _series(found, rule, server, failed):
        if _is_gone(series, statuses, family) or not watches(rule, _words(series)):
            continue
        reading = read(rule, series, found.now, family.stale_after_seconds)
        # Most objects are fine and were so before: nothing is to be remembered or decided of them.
        if (server.name, rule.name) not in found.known and is_clear(rule, reading):
            if rule.health:
                found.health.append(health_of(rule, family, None, series, reading))
            continue
        key = fingerprint(rule.name, server.name, series.labels)
        alert = found.view.alerts.get(key)
        memory = machine.recall(found.view.memories.get(key), alert, rule, server.name)
        memory = replace(memory, labels=series.labels)
        memory = machine.step(rule, memory, reading, longest_gap, found.rules.flapping)
        change = Change(rule, server, memory, reading, alert)
        change = replace(change, after=_alert_after(change, series, key, found.now))
        yield key, change
        if rule.health:
            found.health.append(health_of(rule, family, memory, series, reading))


def _series(found: _Round, rule: Rule, server: Watched, failed: Sequence[str]) -> Sequence[Series]:
    if rule.family != watching.FAMILY:
        return found.view.series.get((server.name, rule.family), ())
    own = watching.statuses_of(server.name, found.view.statuses, found.rules.families)
    return [watching.watch(server.name, own, found.rules.families, failed, found.now)]


def _words(series: Series) -> Mapping[str, str]:
    return {**series.texts, **series.labels}


def _is_gone(series: Series, statuses: Sequence[FamilyStatus], family: Family) -> bool:
    """Tell whether the family has answered since without this object."""
    database = series.labels.get("database", "")
    own = [status for status in statuses if status.database == database] or [
        status for status in statuses if status.database == ""
    ]
    return any(_has_answered(status, series.sampled_at, family) for status in own)


def _alert_after(change: Change, series: Series, key: str, now: datetime) -> Alert | None:
    held, before = change.memory.held, change.before
    if held is None:
        return _resolved(before, now, "the condition is clear") if before else None
    level = change.rule.level(held) or change.rule.levels[0]
    if before is None:
        return _opened(change, series, key, now)
    if held is before.severity:
        return replace(before, is_flapping=change.memory.is_flapping)
    worse = held.rank > before.severity.rank
    # A worse severity is news, whoever has acknowledged the lesser one.
    return replace(
        before,
        severity=held,
        status=AlertStatus.OPEN if worse else before.status,
        summary=wording.sentence(change.rule, level, series, change.reading),
        trigger_value=change.reading.value,
        threshold=level.threshold,
        is_flapping=change.memory.is_flapping,
    )


def _opened(change: Change, series: Series, key: str, now: datetime) -> Alert:
    held = change.memory.held
    assert held is not None  # noqa: S101
    rule, reading = change.rule, change.reading
    level = rule.level(held) or rule.levels[0]
    since = change.memory.levels[held].since if held in change.memory.levels else None
    return Alert(
        alert_hk=hash_key(f"{key} {now.isoformat()}"),
        fingerprint=key,
        rule=rule.name,
        server=series.server,
        labels=series.labels,
        category=rule.category.value,
        status=AlertStatus.OPEN,
        severity=held,
        # A collector whose clock is ahead reads in the future.
        started_at=min(since or reading.at, now),
        triggered_at=now,
        summary=wording.sentence(rule, level, series, reading),
        trigger_value=reading.value,
        threshold=level.threshold,
        details={
            "metric": rule.metric,
            "texts": dict(series.texts),
            "read_at": reading.at.isoformat(),
            "next_step": rule.next_step,
            **({"runbook": rule.runbook} if rule.runbook else {}),
        },
        is_flapping=change.memory.is_flapping,
    )


def _resolved(alert: Alert, now: datetime, why: str) -> Alert:
    return replace(alert, status=AlertStatus.RESOLVED, resolved_at=now, resolution_notes=why)


def _is_firing(alert: Alert | None) -> bool:
    return alert is not None and alert.status is not AlertStatus.RESOLVED


def _ended(found: _Round) -> Iterator[tuple[str, Change]]:
    """Resolve alerts whose object or rule is no longer there; what merely could not be read stays."""
    for key, alert in found.view.alerts.items():
        server = found.view.servers.get(alert.server)
        if key in found.changes or server is None:
            continue
        rules = {rule.name: rule for rule in found.rules.of(server)}
        rule = rules.get(alert.rule)
        if rule is not None and not _is_known_gone(found, rule, alert):
            continue
        why = rule.gone if rule else "the rule is no longer in force"
        rule = rule or found.rules.rules.get(alert.rule)
        memory = found.view.memories.get(key) or Memory(alert.rule, alert.server, alert.labels)
        memory = replace(memory, held=None, levels={})
        if rule is None:
            rule = _forgotten(alert)
        after = _resolved(alert, found.now, why)
        yield key, Change(rule, server, memory, Reading(found.now, None), alert, after)


def _is_known_gone(found: _Round, rule: Rule, alert: Alert) -> bool:
    """Tell whether the family has answered since, or makes no sense any more: silence alone proves nothing."""
    if (alert.server, rule.name) in found.failures:
        return False
    family = found.rules.families[rule.family]
    return any(
        _has_answered(status, alert.triggered_at, family)
        for status in found.view.statuses.get((alert.server, rule.family), ())
    )


def _has_answered(status: FamilyStatus, since: datetime, family: Family) -> bool:
    if status.state == FamilyState.NOT_APPLICABLE:
        # A collector on another host cannot see the disks: they are as full as they were.
        return family.source is not Source.HOST and status.attempted_at - since > _SLACK
    return (
        status.state == FamilyState.OK
        and status.collected_at is not None
        and status.collected_at - since > _SLACK
    )


def _forgotten(alert: Alert) -> Rule:
    """Stand in for a rule that was taken out of the files while its alert was open."""
    return Rule.model_validate(
        {
            "name": alert.rule,
            "description": "A rule that is no longer there.",
            "category": alert.category,
            "metric": "forgotten.metric",
            "operator": ">",
            "levels": [{"severity": alert.severity, "threshold": 0}],
            "next_step": "Nothing is to be done.",
            "summary": alert.summary.replace("{", "(").replace("}", ")") or "Nothing more.",
            "health": False,
        }
    )


def _tell(
    found: _Round, changes: Mapping[str, Change], open_alerts: Sequence[Alert]
) -> Iterator[tuple[str, tuple[Change, Transition | None]]]:
    for key, change in changes.items():
        if change.after is None:
            yield key, (change, None)
            continue
        reason = quiet.why(found.rules, found.view, change.after, open_alerts, found.now)
        window = found.rules.window(change.rule)
        notify, because = decide_notification(
            change.memory, change.after.status, found.now, window, reason
        )
        yield key, _told(found, change, notify, because, reason)


def _told(
    found: _Round, change: Change, notify: Notify | None, because: str | None, reason: str | None
) -> tuple[Change, Transition | None]:
    assert change.after is not None  # noqa: S101
    after = replace(change.after, suppression_reason=reason)
    memory = change.memory
    if notify is not None:
        after = replace(after, last_notified_at=found.now)
        memory = told(memory, notify, found.now)
    elif after.status is AlertStatus.RESOLVED:
        memory = replace(memory, notified_episode=False, notified_flapping=False)
    if notify is None and not _is_news(change.before, after):
        # A silence that has ended since must not be shown for ever, nor one that has begun be hidden.
        same = change.before is not None and change.before.suppression_reason == reason
        return replace(change, memory=memory, after=None if same else after), None
    transition = Transition(
        alert=after,
        from_status=change.before.status if change.before else None,
        happened_at=found.now,
        value=change.reading.value,
        notify=notify,
        not_notified_because=because if notify is None else None,
        next_step=change.rule.next_step,
        runbook=change.rule.runbook,
        tenant=change.server.tenant,
    )
    return replace(change, memory=memory, after=after), transition


def _is_news(before: Alert | None, after: Alert) -> bool:
    return before is None or (before.status, before.severity, before.is_flapping) != (
        after.status,
        after.severity,
        after.is_flapping,
    )


def _collected(
    found: _Round, told_changes: Mapping[str, tuple[Change, Transition | None]], open_alerts: int
) -> Decisions:
    memories: dict[str, Memory | None] = {}
    for key, before in found.view.memories.items():
        is_watched = before.server in found.view.servers
        if key not in told_changes and is_watched and key not in found.view.alerts:
            memories[key] = None
    for key, (change, _) in told_changes.items():
        kept = change.memory if _is_worth(change.memory, found) else None
        if kept != found.view.memories.get(key):
            memories[key] = kept
    return Decisions(
        transitions=tuple(made for _, made in told_changes.values() if made is not None),
        versions={key: change.after for key, (change, _) in told_changes.items() if change.after},
        memories=memories,
        health=tuple(found.health),
        failures=tuple(
            f"{server}, rule {rule}: {why}" for (server, rule), why in found.failures.items()
        ),
        open_alerts=open_alerts,
    )


def _is_worth(memory: Memory, found: _Round) -> bool:
    """Tell whether there is anything to remember: most conditions of most objects are simply clear."""
    rule = found.rules.rules.get(memory.rule)
    window = found.rules.window(rule) if rule else found.rules.suppression
    recently = memory.notified_at is not None and found.now - memory.notified_at < window
    counting = any(level.since or level.active for level in memory.levels.values())
    flipped = bool(memory.flips) and found.now - memory.flips[-1] < timedelta(hours=1)
    return memory.held is not None or counting or flipped or recently
