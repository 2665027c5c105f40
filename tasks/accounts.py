"""As whom PostgreSQL runs: never as root."""

import os
import pwd
from contextlib import suppress
from dataclasses import dataclass

from tasks.errors import Refused


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the operating system."""

    name: str
    uid: int
    gid: int


def account_named(user: str) -> Account:
    """Look a user up by name or number; refused when there is none."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        message = (
            f"There is no user {user!r} in the passwd database, and PostgreSQL needs one: "
            "add it (useradd --system NAME), or name another one in ONEVAULT_RUN_AS"
        )
        raise Refused(message) from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def unprivileged_account() -> Account | None:
    """Say as whom PostgreSQL runs when we are root; None when we are an ordinary user.

    ONEVAULT_RUN_AS, else ``postgres``, else ``nobody``. Refused when the user does not exist, is
    root, or when we run under a number without a passwd entry (PostgreSQL does not start so).
    """
    if os.geteuid() != 0:
        account_named(str(os.geteuid()))
        return None
    wanted = os.environ.get("ONEVAULT_RUN_AS")
    if wanted:
        account = account_named(wanted)
        if account.uid == 0:
            message = (
                "ONEVAULT_RUN_AS names root, and PostgreSQL does not run as root: name another user"
            )
            raise Refused(message)
        return account
    with suppress(Refused):
        return account_named("postgres")
    return account_named("nobody")
