"""The task that brings the vault's schema up to date."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.tasks import Task

from tasks import vault
from tasks.errors import Unavailable
from tasks.schema import migrator


async def _may_pass(_: Task[..., object], __: TaskRun, state: State[object]) -> bool:
    return isinstance(await state.aresult(raise_on_failure=False), Unavailable)


@task(
    name="apply-migrations",
    retries=3,
    retry_delay_seconds=[5, 30, 120],
    retry_condition_fn=_may_pass,
    cache_policy=NO_CACHE,
    tags=["vault"],
)
def apply_migrations() -> list[str]:
    """Apply the vault's missing migrations and return their names; retried only while the vault is unavailable."""
    applied = [str(item) for item in migrator.migrate(vault.ensure_url())]
    get_run_logger().info(
        "The vault's schema is up to date. Applied now: %s", ", ".join(applied) or "nothing"
    )
    return applied
