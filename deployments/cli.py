"""The command line `onevault`. Commands import what they need when they run, so that --help is instant."""

import os
import sys
from typing import Any

import click

from deployments.monitoring.commands import COMMANDS
from deployments.options import as_json, dump, keyring_option, store_option
from deployments.sentences import CODES, EXIT_FAILED, EXIT_SKIPPED, sentences


@click.group(
    epilog=CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("-v", "--verbose", is_flag=True, help="Also show the run's log, and tracebacks.")
@click.version_option(package_name="onevault")
def cli(verbose: bool) -> None:
    """OneVault Ops: PostgreSQL backups that prove themselves, metrics and alerts that mean something.

    Start with `onevault demo` (everything from nothing, two minutes), then `onevault doctor`.
    """
    if verbose:
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"


@cli.command()
@click.option(
    "--scale",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="pgbench scale of the demo data (about 15 MB each).",
)
@click.option(
    "--keep/--no-keep",
    default=True,
    show_default=True,
    help="Leave the servers running to look at.",
)
def demo(scale: int, keep: bool) -> None:
    """Run the main job on a private PostgreSQL, from nothing, and damage a copy to see it caught."""
    from deployments.demo import show

    with sentences():
        sys.exit(show.run(scale, keep=keep))


@cli.command()
@click.option(
    "--wipe",
    is_flag=True,
    help="Also delete the data of the embedded servers, and the default store, keys and scratch.",
)
def down(wipe: bool) -> None:
    """Stop what `demo` started: Prefect server, worker and the embedded PostgreSQL servers."""
    from deployments.demo import services

    with sentences():
        if wipe and sys.stdin.isatty() and (loss := services.loss_by_wiping()):
            click.confirm(loss, abort=True)
        for sentence in services.down(wipe=wipe):
            click.echo(sentence)


@cli.command()
@click.argument("server", default="default")
@click.option(
    "--kind",
    type=click.Choice(["logical", "physical"]),
    default="logical",
    show_default=True,
    help="One database by pg_dump, or the whole server by BASE_BACKUP.",
)
@click.option(
    "-d", "--database", help="The database of a logical backup; the server block's own by default."
)
@store_option
@keyring_option
@click.option(
    "--window",
    default="always",
    show_default=True,
    help="Skip unless open, e.g. 'mon-fri 22:00-04:00 Europe/Berlin'.",
)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Restore the backup and compare it with the source.",
)
@click.option(
    "--compare",
    type=click.Choice(["content", "counts", "none"]),
    default="content",
    show_default=True,
    help="Compare every row's content, row counts only, or nothing.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 32),
    default=2,
    show_default=True,
    help="Connections that count the source, and jobs of the restore test.",
)
@as_json
def backup(server: str, kind: str, database: str | None, json_output: bool, **options: Any) -> None:
    """Back up SERVER (the name of its block), restore the copy, compare it with the source.

    The run appears in the Prefect UI when PREFECT_API_URL is set.
    """
    from deployments import running

    with sentences():
        report = running.backup(server, kind, database, options, quiet=json_output)
        if report is None:
            click.echo("outside the window: nothing was done", err=True)
            sys.exit(EXIT_SKIPPED)
        _report(report, json_output)


@cli.command()
@click.argument("backup_id")
@click.option(
    "--restore/--reread-only",
    default=True,
    show_default=True,
    help="Restore and compare, or only re-read every stored byte.",
)
@store_option
@keyring_option
@as_json
def verify(backup_id: str, restore: bool, store: str, keyring: str, json_output: bool) -> None:
    """Prove a stored backup once more: re-read it, restore it into a scratch server, compare it."""
    from deployments import running

    with sentences():
        options = {"store": store, "keyring": keyring}
        _report(running.verify(backup_id, options, restore=restore, quiet=json_output), json_output)


@cli.command()
@click.argument("backup_id")
@click.option(
    "--to",
    "place",
    required=True,
    metavar="DIR|URL",
    help="An empty directory (physical), or postgresql://user@host/maintenance_db of a server (logical).",
)
@click.option(
    "--as-database",
    metavar="NAME",
    help="Restore a logical backup into this database, which exists and is empty.",
)
@click.option(
    "--globals/--no-globals",
    "with_globals",
    default=False,
    show_default=True,
    help="First make the roles and tablespaces that the server lacks (logical).",
)
@click.option(
    "--accept-unsigned",
    is_flag=True,
    help="Restore although the public half of the signing key is not held, as with a recovery key alone.",
)
@store_option
@keyring_option
def restore(**request: Any) -> None:
    """Restore a backup for good, into a new database or directory; what is there is never overwritten.

    Needs no vault, and no Prefect when --store and --keyring are directories. The password of a target server comes
    from PGPASSWORD, PGPASSFILE or ~/.pgpass, never from the command line.
    """
    from deployments import restoring

    with sentences():
        for sentence in restoring.restore(restoring.Request(**request)):
            click.echo(sentence)


@cli.command()
@click.option("--server", help="Only of this server.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="How many, newest first.",
)
@as_json
def backups(server: str | None, limit: int, json_output: bool) -> None:
    """Show the catalog: every backup, its state, and what was proven of it."""
    from deployments import tables

    with sentences():
        entries = tables.catalog(server, limit)
        click.echo(dump(tables.plain(entries))) if json_output else tables.show_catalog(entries)


@cli.command()
@as_json
def doctor(json_output: bool) -> None:
    """Say what was found on this machine, and what to do about what is missing."""
    from deployments import doctor as checks
    from deployments import tables

    with sentences():
        found = checks.diagnose()
        click.echo(dump(tables.plain(found))) if json_output else tables.show(checks.render(found))
        sys.exit(EXIT_FAILED if any(check.state is checks.State.FAIL for check in found) else 0)


@cli.command()
@as_json
def config(json_output: bool) -> None:
    """Show the settings in force, where each comes from, and the blocks in Prefect; no secrets."""
    from deployments import saved_blocks, tables

    with sentences():
        settings = [*tables.settings(), *saved_blocks.listed()]
        click.echo(dump(tables.plain(settings))) if json_output else tables.show(
            tables.settings_table(settings)
        )


@cli.command()
def migrate() -> None:
    """Bring the vault's schema up to date; safe to run twice, and by two at once."""
    from deployments import restoring

    with sentences():
        for sentence in restoring.migrate():
            click.echo(sentence)


@cli.command()
@click.argument("environment", type=click.Choice(["development", "staging", "production"]))
@click.option(
    "--name",
    default="default",
    show_default=True,
    help="The blocks' name; one per looked-after server.",
)
def register(environment: str, name: str) -> None:
    """Save blocks, work pool and concurrency limit of a server in Prefect; safe to repeat.

    \b
    Reads from the environment, never from the command line:
      ONEVAULT_SERVER_URL           postgresql://user:password@host:port/database
      ONEVAULT_METRICS_URL          the same with the role that reads metrics, if it is another one
      ONEVAULT_STORE                the directory that receives the backups
      ONEVAULT_KEYRING              the directory that holds the keys
      ONEVAULT_RECOVERY_RECIPIENTS  age1... public halves of offline keys (production needs one)
    """
    from deployments import register as registration

    with sentences():
        for sentence in registration.register(environment, name=name):
            click.echo(sentence)


@cli.command("rotate-key")
@keyring_option
def rotate_key(keyring: str) -> None:
    """Make a new key the active one; older backups stay readable with the older keys."""
    from deployments import restoring

    with sentences():
        click.echo(restoring.rotate(keyring))


for _command in COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    # The log goes to Prefect; on the terminal it would bury the result. Set before anything imports Prefect.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    cli()


def _report(report: Any, json_output: bool) -> None:
    if json_output:
        click.echo(
            dump(
                {
                    "backup_id": report.backup_id,
                    "outcome": report.outcome.value,
                    "sentence": report.sentence,
                    "stored_bytes": report.stored_bytes,
                    "restore_seconds": report.restore_seconds,
                }
            )
        )
    else:
        from deployments import running, tables

        tables.show(running.rungs_table(report))
        click.secho(report.sentence, fg="green")


if __name__ == "__main__":
    main()
