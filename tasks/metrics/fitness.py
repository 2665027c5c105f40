"""Whether a family can be had from a server at all, told without asking for it."""

from dataclasses import dataclass

from tasks.metrics.models import Family, Runs


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a server said on connecting, to be asked again every hour.

    extensions are those of the database with their schemas, rights the roles whose rights the login has, learned_at
    is of time.monotonic(), and a connection_limit of -1 is none.
    """

    login: str
    connection_limit: int
    system_identifier: str
    extensions: dict[str, str]
    rights: frozenset[str]
    learned_at: float


def is_role(right: str | None) -> bool:
    """Tell whether a needed right is a role to be a member of; other rights are told in words, and not checked here."""
    return right is not None and right.isidentifier()


def unfit(family: Family, server_major: int, *, is_standby: bool) -> str:
    """Say why a family makes no sense on this server, or nothing."""
    if family.runs is Runs.ON_PRIMARY and is_standby:
        return "It is for primaries, and this server is a standby."
    if family.runs is Runs.ON_STANDBY and not is_standby:
        return "It is for standbys, and this server is a primary."
    return "" if family.statement(server_major) else f"PostgreSQL {server_major} has no such thing."


def missing(family: Family, knowledge: Knowledge, server: str, database: str) -> str:
    """Say which right or extension is missing, and what to do, or nothing.

    Without the right of pg_monitor PostgreSQL shows other sessions' fields as NULL, which would be counted as zeros.
    """
    right, extension = family.needs_right, family.needs_extension
    if is_role(right) and right not in knowledge.rights:
        return (
            f'The login "{knowledge.login}" on {server} lacks the role {right}, without which it would read only a '
            f'part: GRANT {right} TO "{knowledge.login}".'
        )
    if extension and extension not in knowledge.extensions:
        return (
            f'{extension} is not installed in database "{database}" of {server}: '
            f"CREATE EXTENSION {extension} there."
        )
    return ""
