"""PostgresServer against a real server."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest
from psycopg import sql
from pydantic import SecretStr

from blocks.errors import Refused
from blocks.postgres import PostgresServer
from tests.clusters import Database

PASSWORD = "it's: a \\ secret"


@pytest.fixture
def login(database: Database) -> Iterator[PostgresServer]:
    """A login role, a member of another role, for one test."""
    user, role = f"login {token_hex(4)}", f"acting {token_hex(4)}"
    names = {
        "user": sql.Identifier(user),
        "role": sql.Identifier(role),
        "password": sql.Literal(PASSWORD),
    }
    with database.connect() as connection:
        connection.execute(sql.SQL("create role {user} login password {password}").format(**names))
        connection.execute(sql.SQL("create role {role}; grant {role} to {user}").format(**names))
    yield PostgresServer(
        host=database.server.host,
        port=database.server.port,
        database=database.name,
        user=user,
        password=SecretStr(PASSWORD),
        role=role,
        sslmode="disable",
    )
    with database.connect() as connection:
        connection.execute(sql.SQL("drop role {user}; drop role {role}").format(**names))


def test_it_connects_and_acts_as_its_role(login: PostgresServer) -> None:
    with login.connect() as connection:
        row = connection.execute(
            "select session_user, current_user, current_database(), current_setting('application_name')"
        ).fetchone()
        assert row == (login.user, login.role, login.database, "onevault")
        assert connection.autocommit
    with login.connect("postgres", autocommit=False) as connection:
        assert connection.info.dbname == "postgres"
        assert not connection.autocommit


def test_client_programs_connect_with_environment_and_passfile(
    login: PostgresServer, tmp_path: Path, installation
) -> None:
    login.write_passfile(tmp_path / "pass")
    environment = login.libpq_environment(tmp_path / "pass")
    argv = [str(installation.program("pg_dump")), "--schema-only", "--no-password"]
    done = subprocess.run(
        argv,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "PostgreSQL database dump complete" in done.stdout


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"password": SecretStr("wrong: hunter2")}, "password authentication failed"),
        ({"password": None}, "no password supplied"),
        ({"user": "nobody here"}, "authentication failed"),
        ({"database": "no such"}, 'database "no such" does not exist'),
        ({"role": "no such role"}, "role"),
        ({"role": "pg_monitor"}, "permission denied"),
        ({"sslmode": "require"}, "does not support SSL"),
        ({"options": "-c nonsense=1x"}, "nonsense"),
    ],
)
def test_what_the_server_refuses_is_refused_in_words(
    login: PostgresServer, fields: dict[str, object], words: str
) -> None:
    changed = login.model_copy(update=fields)
    with pytest.raises(Refused, match=words) as caught:
        changed.connect()
    text = str(caught.value)
    assert (
        f'{login.host} port {login.port}, database "{changed.database}", user "{changed.user}"'
        in text
    )
    assert "secret" not in text
    assert "hunter2" not in text
