"""The errors of OneVault Ops.

OneVaultError
├── Unavailable       it may pass: try again
└── Refused           it will not pass by itself: a person must change something
    ├── OutsideWindow     the maintenance window is closed
    └── Damaged           stored bytes are not what was written
"""

from blocks.errors import OneVaultError, Refused, Unavailable

__all__ = ["Damaged", "OneVaultError", "OutsideWindow", "Refused", "Unavailable"]


class OutsideWindow(Refused):
    """The maintenance window is closed."""


class Damaged(Refused):
    """Stored bytes are not what was written."""
