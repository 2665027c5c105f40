"""What the alert benchmark found, as a section of RESULTS.md."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.alert_scores import SLACK_SECONDS, Caught, Episode, Scores, percentile
from benchmarks.fault_kinds import OVERRIDES
from benchmarks.fault_schedule import Event
from benchmarks.report import machine
from tasks.programs import Installation

TITLE = "Alerts: quality"
_FALSE_TARGET = 0.10
_DELAY_TARGET = 60.0
_LIGHT_SECONDS, _MINUTE_SECONDS = 10.0, 60.0


@dataclass
class Run:
    """One run of the benchmark."""

    command: str
    installation: Installation
    seed: int
    servers: int
    begun_at: datetime
    treated_at: datetime
    events: list[Event]
    scores: Scores
    evaluation_seconds: list[float]
    failures: list[str]


def section(run: Run) -> str:
    """Return the section, its heading included."""
    return "\n".join(_lines(run)) + "\n"


def write_details(place: Path, found: Iterable[Episode], events: Iterable[Event]) -> None:
    """Write every alert and every act as JSON, for whoever wants to look closer."""
    acts = [{**vars(event), "fault": event.fault is not None} for event in events]
    details = {"alerts": [asdict(each) for each in found], "acts": acts}
    place.write_text(json.dumps(details, default=str, indent=1))


def _lines(run: Run) -> Iterator[str]:
    yield from _head(run)
    yield from _figures(run)
    yield from _by_kind(run.scores.caught)
    yield from _false(run)
    yield from _misses(run.scores.missed)
    yield from _rest(run)


def _head(run: Run) -> Iterator[str]:
    yield f"# {TITLE}"
    yield ""
    yield f"* {run.begun_at:%Y-%m-%d %H:%M} UTC, `{run.command}`"
    yield f"* {machine()}"
    yield (
        f"* {run.servers} servers (PostgreSQL {run.installation.version}) under pgbench, standbys and poolers included,"
        " watched by one collector with the shipped catalogue, tiers, rules and `for` times"
    )
    changed = "; ".join(f"`{rule}`: {change}" for rule, change in OVERRIDES.items())
    yield f"* rules that were made to speak sooner, as they would need an hour or ten million transactions: {changed}"
    yield ""
    yield (
        "Each server had three lanes of faults, one of faults that take minutes and one of harmless work, in an order by"
        " the seed. A fault lasts until 10 s after its alert fires, as if somebody mended it, or as long as it should"
        " take at most. An alert of MEDIUM or worse counts once, from firing to resolved; it is true when a fault that"
        f" explains its rule on that server had begun and was not over for more than {SLACK_SECONDS:g} s, whether or not"
        " it was told (inhibition, flapping). The delay runs from the fault's first act to the first firing; *own*"
        " leaves out what the rule itself waits for (a threshold of seconds, and `for`)."
    )
    yield ""


def _figures(run: Run) -> Iterator[str]:
    scores = run.scores
    share, low, high = scores.false_share
    delays = _numbers(each.delay_seconds for each in scores.caught)
    own = _numbers(each.own_seconds for each in scores.caught)
    found = len(scores.caught) - len(scores.missed)
    benign = [event for event in run.events if event.fault is None and not event.trouble]
    p95, own95 = percentile(delays, 0.95), percentile(own, 0.95)
    yield "| figure | value | target | |"
    yield "| --- | ---: | ---: | --- |"
    yield f"| alerts scored (MEDIUM or worse) | {scored(scores)} | >= 100 | {_met(scores.scored >= 100)} |"
    yield f"| of them false | {len(scores.false)} ({share:.1%}) | < 10 % | {_met(share < _FALSE_TARGET)} |"
    yield f"| Wilson 95 % interval of that share | {low:.1%} - {high:.1%} | < 10 % | {_met(high < _FALSE_TARGET)} |"
    yield f"| faults caused | {len(scores.caught)} of {len({c.event.name for c in scores.caught})} kinds | >= 10 kinds | |"
    yield f"| faults noticed | {found} ({found / max(1, len(scores.caught)):.1%}) | | |"
    yield f"| harmless acts | {len(benign)} of {len({e.name for e in benign})} kinds | | |"
    yield f"| delay, p50 / p95 | {percentile(delays, 0.5):.0f} / {p95:.0f} s | < 60 s | {_met(p95 < _DELAY_TARGET)} |"
    yield f"| own delay, p50 / p95 | {percentile(own, 0.5):.0f} / {own95:.0f} s | < 60 s | {_met(own95 < _DELAY_TARGET)} |"
    for name, seconds in (("10 s", _LIGHT_SECONDS), ("minute", _MINUTE_SECONDS)):
        some = [c for c in scores.caught if c.event.fault and c.event.fault.read_seconds == seconds]
        raw = _numbers(each.delay_seconds for each in some)
        net = _numbers(each.own_seconds for each in some)
        yield (
            f"| metrics read every {name}: delay p50 / p95; own p95 | {percentile(raw, 0.5):.0f} /"
            f" {percentile(raw, 0.95):.0f} s; {percentile(net, 0.95):.0f} s | | |"
        )
    yield f"| an evaluation, p50 / p95 | {1e3 * percentile(run.evaluation_seconds, 0.5):.0f} / {1e3 * percentile(run.evaluation_seconds, 0.95):.0f} ms | | |"
    yield ""


def scored(scores: Scores) -> str:
    """Return how many alerts were scored, and how many nobody was told of: inhibited, or known as flapping."""
    quiet = sum(not each.was_told for each in (*scores.true, *(e for e, _ in scores.false)))
    return f"{scores.scored}" + (f" ({quiet} not told: inhibited or flapping)" if quiet else "")


def _by_kind(caught: Iterable[Caught]) -> Iterator[str]:
    kinds: dict[str, list[Caught]] = {}
    for each in caught:
        kinds.setdefault(each.event.name, []).append(each)
    yield "| fault | read every | the rule waits | noticed | delay p50 / max | own p50 / max | rules that spoke first |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for name, some in sorted(kinds.items()):
        fault = some[0].event.fault
        assert fault is not None  # noqa: S101
        raw = _numbers(each.delay_seconds for each in some)
        net = _numbers(each.own_seconds for each in some)
        rules = Counter(each.episode.rule for each in some if each.episode)
        spoke = ", ".join(f"{rule} {count}" for rule, count in rules.most_common())
        yield (
            f"| {name} | {fault.read_seconds:g} s | {fault.patience_seconds:g} s | {len(raw)} of {len(some)} |"
            f" {_span(raw)} | {_span(net)} | {spoke} |"
        )
    yield ""


def _false(run: Run) -> Iterator[str]:
    yield "## False alerts"
    yield ""
    if not run.scores.false:
        yield "None."
        yield ""
        return
    yield "| at | rule | severity | server | what it said | what went on |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for episode, around in run.scores.false:
        happened = ", ".join(_event(event, episode) for event in around) or "nothing"
        yield (
            f"| {episode.began_at:%H:%M:%S} | {episode.rule} | {episode.severity} | {episode.server} |"
            f" {_cell(episode.summary)} | {happened} |"
        )
    yield ""


def _misses(missed: Iterable[Caught]) -> Iterator[str]:
    yield "## Faults that were missed"
    yield ""
    told = [
        f"* {each.event.begun_at:%H:%M:%S} {each.event.name} on {each.event.server}, {_lasted(each.event):.0f} s"
        for each in missed
    ]
    yield from told or ["None."]
    yield ""


def _rest(run: Run) -> Iterator[str]:
    low = Counter(each.rule for each in run.scores.low)
    unexplained = Counter(each.rule for each in run.scores.low_unexplained)
    yield "## Beside that"
    yield ""
    words = ", ".join(f"{rule} {count}" for rule, count in low.most_common()) or "none"
    yield f"* LOW, not scored: {words}"
    words = ", ".join(f"{rule} {count}" for rule, count in unexplained.most_common()) or "none"
    yield f"* of them not explained by a fault (a planned restart is none): {words}"
    true = Counter(each.rule for each in run.scores.true)
    yield f"* true alerts by rule: {', '.join(f'{rule} {count}' for rule, count in true.most_common())}"
    benign = Counter(
        event.name for event in run.events if event.fault is None and not event.trouble
    )
    yield f"* harmless acts: {', '.join(f'{name} {count}' for name, count in sorted(benign.items()))}"
    troubled = Counter(f"{e.name} ({_cell(e.trouble)})" for e in run.events if e.trouble)
    words = "; ".join(f"{name} {count}" for name, count in troubled.most_common()) or "none"
    yield f"* acts that could not be done, and are not scored: {words}"
    yield f"* rules that failed to be evaluated: {'; '.join(run.failures) or 'none'}"


def _event(event: Event, episode: Episode) -> str:
    ago = (episode.began_at - event.begun_at).total_seconds()
    ended = ""
    if event.ended_at and event.ended_at < episode.began_at:
        ended = f", over for {(episode.began_at - event.ended_at).total_seconds():.0f} s"
    return f"{event.name} (since {ago:.0f} s{ended})"


def _lasted(event: Event) -> float:
    return (event.ended_at - event.begun_at).total_seconds() if event.ended_at else 0.0


def _span(numbers: list[float]) -> str:
    return f"{percentile(numbers, 0.5):.0f} / {max(numbers):.0f} s" if numbers else "-"


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:160]


def _met(is_met: bool) -> str:
    return "met" if is_met else "NOT met"
