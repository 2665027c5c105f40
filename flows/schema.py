"""Flows that keep the vault's own schema up to date."""

from prefect import flow

from tasks.schema.tasks import apply_migrations


@flow(name="migrate-schema")
def migrate_schema() -> list[str]:
    """Bring the vault's schema to the version of the code and return the migrations applied now."""
    return apply_migrations()
