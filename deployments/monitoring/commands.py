"""The commands that read metrics and handle alerts."""

import sys

import click

from deployments.options import as_json, dump
from deployments.sentences import EXIT_FIRING, EXIT_SKIPPED, sentences

server_argument = click.argument("server", required=False)
servers_argument = click.argument("servers", nargs=-1)


@click.command()
@server_argument
@click.option(
    "--check",
    is_flag=True,
    help=f"Exit with {EXIT_FIRING} when an alert of severity HIGH or CRITICAL is open, or nobody watches.",
)
@as_json
def status(server: str | None, check: bool, json_output: bool) -> None:
    """Show the health of all servers, or of SERVER in full: alerts, metrics against thresholds, what cannot be read."""
    from deployments.monitoring import health

    with sentences():
        found = health.read(server)
        click.echo(dump(health.plain(found))) if json_output else health.show(found)
        if check and (found.is_firing or found.is_blind):
            sys.exit(EXIT_FIRING)


@click.command()
@server_argument
@click.option(
    "--minutes",
    type=click.IntRange(min=1),
    default=60,
    show_default=True,
    help="The time over which statements are compared.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many."
)
@as_json
def top(server: str | None, minutes: int, limit: int, json_output: bool) -> None:
    """Show the statements that took most time, on SERVER or on all: what each one grew by, not totals since a reset."""
    from deployments.monitoring import statements

    with sentences():
        found = statements.read(server, minutes, limit)
        click.echo(dump(statements.plain(found))) if json_output else statements.show(
            found, minutes
        )


@click.command()
@servers_argument
@click.option(
    "--for",
    "run_for",
    default="1h",
    show_default=True,
    metavar="DURATION",
    help="How long a flow run lasts, such as 30s, 10m or 1h; the next one follows at once.",
)
@click.option("--once", is_flag=True, help="End after one flow run instead of beginning the next.")
def watch(servers: tuple[str, ...], run_for: str, once: bool) -> None:
    """Collect metrics and evaluate alerts in the foreground until interrupted, from SERVERS or all that have a block.

    While another collector leads, this one waits and takes over when it is gone; with --once it ends.
    """
    from deployments.monitoring import watching

    with sentences():
        if not watching.watch(list(servers) or None, run_for, once=once):
            click.echo("another collector is at work: nothing was done", err=True)
            sys.exit(EXIT_SKIPPED)


@click.command()
@servers_argument
def collect(servers: tuple[str, ...]) -> None:
    """Read every metric of SERVERS (or all) once, store it and evaluate the alert rules.

    While a collector leads, its samples are used instead.
    """
    from deployments.monitoring import watching

    with sentences():
        click.echo(watching.collect(list(servers) or None))


@click.command()
@click.option("--server", help="Only of this server.")
@click.option("--history", is_flag=True, help="What happened in the last week, newest first.")
@as_json
def alerts(server: str | None, history: bool, json_output: bool) -> None:
    """Show the open alerts, worst first, with what to do next."""
    from deployments.monitoring import alerting

    with sentences():
        found = alerting.read(server, history=history)
        click.echo(dump(alerting.plain(found))) if json_output else alerting.show(
            found, history=history
        )


@click.command()
@click.argument("alert")
@click.option("--note", default="", help="What you know, or what you are about to do.")
@click.option("--false-positive", is_flag=True, help="Say that it was no fault; the note says why.")
def acknowledge(alert: str, note: str, false_positive: bool) -> None:
    """Take ALERT on (the first six or more characters of its id): it is not repeated until it gets worse or comes back."""
    from deployments.monitoring import alerting

    with sentences():
        click.echo(alerting.acknowledge(alert, note, false_positive=false_positive))


@click.command()
@click.option("--server", help="Alerts of this server; * and ? match, here and below.")
@click.option("--rule", help="Alerts of this rule.")
@click.option("--category", help="Alerts of this category.")
@click.option("--severity", help="Alerts of this severity.")
@click.option(
    "--label", "labels", multiple=True, metavar="NAME=VALUE", help="Alerts with this label."
)
@click.option("--for", "run_for", metavar="DURATION", help="How long, such as 30m, 2h or 1d.")
@click.option("--comment", help="Why; it is kept.")
@click.option("--list", "listing", is_flag=True, help="Show the silences that have not ended.")
@click.option("--end", metavar="ID", help="End a silence now.")
@as_json
def silence(listing: bool, end: str | None, json_output: bool, **request: object) -> None:
    """Tell nobody of matching alerts for a while; they are recorded all the same."""
    from deployments.monitoring import silencing

    with sentences():
        if listing:
            found = silencing.current()
            click.echo(dump(silencing.plain(found))) if json_output else silencing.show(found)
        else:
            click.echo(silencing.end(end) if end else silencing.add(request))


@click.command()
@click.argument("rule", required=False)
@click.option("--server", help="Say why RULE is or is not firing on this server.")
@as_json
def rules(rule: str | None, server: str | None, json_output: bool) -> None:
    """Show the alert rules in force, or RULE alone; with --server, how it stands there and what it waits for."""
    from deployments.monitoring import ruling

    with sentences():
        found = ruling.read(rule, server)
        click.echo(dump(ruling.plain(found))) if json_output else ruling.show(found)


COMMANDS = (status, top, watch, collect, alerts, acknowledge, silence, rules)
