"""Options that several commands share."""

import json
from typing import Any

import click

as_json = click.option("--json", "json_output", is_flag=True, help="Print JSON, for scripts.")
store_option = click.option(
    "--store",
    default="default",
    show_default=True,
    metavar="NAME|DIR",
    help="Store block, or a directory (with a slash).",
)
keyring_option = click.option(
    "--keyring",
    default="default",
    show_default=True,
    metavar="NAME|DIR",
    help="Keyring block, or a directory (with a slash).",
)


def dump(value: Any) -> str:
    """Write JSON for scripts."""
    return json.dumps(value, indent=2, default=str)
