"""Blocks: the outside. Configuration, credentials and connections; they speak primitives.

The block classes are loaded when they are asked for: the errors of this package must not cost an import of Prefect.
"""

from importlib import import_module

_BLOCKS = {
    "EnvironmentProfile": "blocks.environment",
    "LocalKeyring": "blocks.keyring",
    "LocalStore": "blocks.storage.local",
    "PgBouncerConsole": "blocks.pgbouncer",
    "PostgresServer": "blocks.postgres",
}

__all__ = sorted(_BLOCKS)  # noqa: PLE0605 - a list, made from the one place that names the blocks


def __getattr__(name: str) -> object:
    """Load a block class by its name."""
    if name not in _BLOCKS:
        msg = f"module 'blocks' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_BLOCKS[name]), name)


def __dir__() -> list[str]:
    """List the block classes, so that prefect block register -m blocks finds them."""
    return [*globals(), *_BLOCKS]
