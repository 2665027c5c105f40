"""A strict reading of prefect.yaml: Prefect ignores what it does not know, a misspelt limit for example."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

import yaml
from prefect import Flow
from prefect._vendor.croniter.croniter import CroniterBadDateError
from prefect.flows import load_flow_from_entrypoint
from prefect.server.schemas.schedules import CronSchedule
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from deployments.register import WORK_POOL
from tasks import windows
from tasks.errors import OneVaultError

# Any year does: all its days, and both changes of the clock.
_YEAR = (datetime(2027, 1, 1, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC))
_CRON_FIELDS = 5
_KEBAB = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"
_MODULE_ENTRYPOINT = r"^flows(\.[a-z_]+){2}$"


def _cron_line(cron: str) -> str:
    # Prefect takes six as well, and misreads them.
    if len(cron.split()) != _CRON_FIELDS:
        msg = f"the cron line {cron!r} does not have 5 fields"
        raise ValueError(msg)
    return CronSchedule(cron=cron, timezone="UTC").cron


def _iana(zone: str) -> str:
    if zone not in available_timezones():
        msg = f"{zone!r} is not an IANA time zone"
        raise ValueError(msg)
    return zone


def _our_pool(name: str) -> str:
    if name != WORK_POOL:
        msg = f"the work pool is called {WORK_POOL!r}, not {name!r}"
        raise ValueError(msg)
    return name


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Schedule(_Strict):
    slug: str = Field(pattern=_KEBAB)
    cron: Annotated[str, AfterValidator(_cron_line)]
    timezone: Annotated[str, AfterValidator(_iana)]
    active: bool = True

    def fires(self) -> list[datetime]:
        """List the moments of a year at which Prefect's scheduler makes a run."""
        return list(_fires(self.cron, self.timezone))


class WorkPool(_Strict):
    name: Annotated[str, AfterValidator(_our_pool)]
    job_variables: dict[str, Any] = {}


class ConcurrencyLimit(_Strict):
    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"]
    grace_period_seconds: int | None = None


class Deployment(_Strict):
    name: str = Field(pattern=_KEBAB)
    entrypoint: str = Field(pattern=_MODULE_ENTRYPOINT)
    description: str = Field(min_length=20)
    tags: list[str] = Field(min_length=1)
    work_pool: WorkPool
    concurrency_limit: ConcurrencyLimit | None = None
    parameters: dict[str, Any]
    schedules: list[Schedule]

    def flow(self) -> "Flow[Any, Any]":
        """Import the flow; raise what its import raises."""
        return load_flow_from_entrypoint(self.entrypoint, use_placeholder_flow=False)


class PrefectFile(_Strict):
    name: str
    version: str = Field(alias="prefect-version")
    definitions: dict[str, Any] = {}
    deployments: list[Deployment] = Field(min_length=1)


class _NoDuplicates(yaml.SafeLoader):
    """YAML's own rule, which PyYAML does not keep: a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        for key in keys:
            if keys.count(key) > 1:
                msg = f"the key {key!r} stands twice, line {node.start_mark.line + 1} and on"
                raise yaml.YAMLError(msg)
        return super().construct_mapping(node, deep)


def read(text: str) -> PrefectFile:
    """Read the file; raise ValidationError or YAMLError when it is not as strict as it shall be."""
    return PrefectFile.model_validate(yaml.load(text, _NoDuplicates))  # noqa: S506 - a SafeLoader


def faults(text: str) -> list[str]:
    """Say everything that is wrong with a prefect.yaml."""
    try:
        file = read(text)
    except yaml.YAMLError as error:
        return [str(error)]
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    return [
        *_twice([(d.entrypoint, d.name) for d in file.deployments]),
        *(f"{d.entrypoint}/{d.name}: {fault}" for d in file.deployments for fault in _faults_of(d)),
    ]


def _faults_of(deployment: Deployment) -> Iterator[str]:
    yield from _twice([s.slug for s in deployment.schedules])
    try:
        flow = deployment.flow()
        parameters = _validated(flow, deployment)
    except OneVaultError as error:
        yield str(error)
    except Exception as error:  # whatever an import or Prefect's validation may raise
        yield f"{type(error).__name__}: {error}"
    else:
        yield from _schedule_faults(deployment, getattr(parameters.get("options"), "window", None))


def _validated(flow: "Flow[Any, Any]", deployment: Deployment) -> dict[str, Any]:
    """Validate as a run does; what nobody schedules may leave its required parameters to whoever starts it."""
    given = dict(deployment.parameters)
    if not deployment.schedules:
        given |= {name: "given later" for name in flow.parameters.required if name not in given}
    return flow.validate_parameters(given)


def _schedule_faults(deployment: Deployment, window: str | None) -> Iterator[str]:
    for schedule in deployment.schedules:
        yield from _clock_faults(schedule)
        if window is None:  # a light flow, without a window
            continue
        if deployment.concurrency_limit is None:
            yield "heavy work on a schedule needs a concurrency_limit"
        if windows.parse(window) == windows.ALWAYS:
            yield "heavy work on a schedule needs a window in parameters.options.window"
        late = [at for at in schedule.fires() if not windows.parse(window).is_open(at)]
        if late:
            yield f"{schedule.slug} fires outside its window {window}, {len(late)} times a year, first at {late[0]}"


def _clock_faults(schedule: Schedule) -> Iterator[str]:
    fires = schedule.fires()
    if not fires:
        yield f"{schedule.slug} never fires"
    local = [at.astimezone(ZoneInfo(schedule.timezone)) for at in fires]
    if _changes_its_clock(schedule.timezone) and any(1 <= at.hour < 3 for at in local):
        yield f"{schedule.slug} fires between 01:00 and 03:00 {schedule.timezone}, where an hour is skipped and another comes twice"


def _changes_its_clock(zone: str) -> bool:
    days = [_YEAR[0] + timedelta(days=day) for day in range(366)]
    return len({day.astimezone(ZoneInfo(zone)).utcoffset() for day in days}) > 1


@cache
def _fires(cron: str, zone: str) -> tuple[datetime, ...]:
    schedule = CronSchedule(cron=cron, timezone=zone)
    start, end = _YEAR
    found: list[datetime] = []
    with suppress(CroniterBadDateError):  # no such day in the calendar
        while start < end:  # by the week: Prefect looks at a thousand moments at most
            found += asyncio.run(schedule.get_dates(500, start, start + timedelta(days=7)))
            start += timedelta(days=7)
    return tuple(dict.fromkeys(at for at in found if at < end))


def _twice(names: list[Any]) -> list[str]:
    return [f"{name} stands twice" for name in dict.fromkeys(names) if names.count(name) > 1]
