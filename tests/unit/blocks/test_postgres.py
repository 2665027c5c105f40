"""PostgresServer without a server: connection strings, passfiles, environments and refusals."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from blocks.errors import Refused, Unavailable
from blocks.postgres import PostgresServer

PASSWORD = "p:w\\d 'x' hunter2"


@pytest.fixture
def server() -> PostgresServer:
    return PostgresServer(
        host="db.example.com",
        user="ops",
        password=SecretStr(PASSWORD),
        sslmode="verify-full",
        sslrootcert="system",
    )


def parts(conninfo: SecretStr) -> dict[str, object]:
    return dict(conninfo_to_dict(conninfo.get_secret_value()))


def test_the_connection_string_holds_everything(server: PostgresServer) -> None:
    assert parts(server.conninfo("app")) == {
        "host": "db.example.com",
        "port": "5432",
        "user": "ops",
        "password": PASSWORD,
        "dbname": "app",
        "sslmode": "verify-full",
        "sslrootcert": "system",
        "connect_timeout": "10",
        "application_name": "onevault",
    }
    assert parts(server.conninfo())["dbname"] == "postgres"
    assert "hunter2" not in f"{server.conninfo()!r}{server.conninfo()}"


@given(
    password=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    database=st.text("ab '\\=", min_size=1),
)
def test_any_password_and_database_survive_the_connection_string(
    password: str, database: str
) -> None:
    server = PostgresServer(host="h", user="u", password=SecretStr(password))
    found = parts(server.conninfo(database))
    assert (found["password"], found["dbname"]) == (password, database)


def test_a_pooled_connection_goes_to_the_pooler(server: PostgresServer) -> None:
    pooled = server.model_copy(update={"pooled_host": "pool"})
    assert {"host": "pool", "port": "6432"}.items() <= parts(pooled.conninfo(pooled=True)).items()
    assert parts(pooled.conninfo())["host"] == "db.example.com"
    with pytest.raises(Refused, match="no pooled_host"):
        server.conninfo(pooled=True)


def test_a_role_is_set_by_the_connection_but_not_through_a_pooler(server: PostgresServer) -> None:
    acting = server.model_copy(
        update={"role": r"a b\c", "options": "-c x=y", "pooled_host": "pool"}
    )
    assert parts(acting.conninfo())["options"] == r"-c x=y -c role=a\ b\\c"
    with pytest.raises(Refused, match="cannot be set through it"):
        acting.conninfo(pooled=True)


@pytest.mark.parametrize(
    "server_url", ["postgresql://ops:p%40ss@db:5433/app?sslmode=require&connect_timeout=5"]
)
def test_a_url_is_read(server_url: str) -> None:
    server = PostgresServer.from_conninfo(SecretStr(server_url))
    assert (server.host, server.port, server.database, server.user) == ("db", 5433, "app", "ops")
    assert (server.sslmode, server.connect_timeout_seconds) == ("require", 5)
    assert PostgresServer.from_conninfo(server.conninfo()) == server
    assert server.password == SecretStr("p@ss")


@pytest.mark.parametrize(
    ("conninfo", "sentence"),
    [
        ("postgresql://ops:hunter2@db:port/app", "port|not valid"),
        ("hunter2", "not valid"),
        (
            "postgresql://ops:hunter2@db/app?target_session_attrs=any",
            "not supported: target_session_attrs",
        ),
        ("postgresql:///app", "name a host and a user"),
        ("host=db password=hunter2", "name a host and a user"),
        ("host=db user=ops password=hunter2 sslmode=hunter2", "sslmode"),
    ],
)
def test_a_connection_string_we_cannot_use_is_refused_and_not_repeated(
    conninfo: str, sentence: str
) -> None:
    with pytest.raises((Refused, ValueError), match=sentence) as caught:
        PostgresServer.from_conninfo(conninfo)
    assert "hunter2" not in f"{caught.value}{caught.value!r}"


def test_client_programs_get_all_but_the_password(server: PostgresServer, tmp_path: Path) -> None:
    environment = server.libpq_environment(tmp_path / "pass")
    assert environment == {
        "PGHOST": "db.example.com",
        "PGPORT": "5432",
        "PGUSER": "ops",
        "PGDATABASE": "postgres",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "system",
        "PGCONNECT_TIMEOUT": "10",
        "PGAPPNAME": "onevault",
        "PGPASSFILE": str(tmp_path / "pass"),
    }


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, r"db.example.com:5432:*:ops:p\:w\\d 'x' hunter2"),
        ({"host": "::1", "user": "a:b"}, r"\:\:1:5432:*:a\:b:p\:w\\d 'x' hunter2"),
        ({"host": "/run/postgresql"}, r"*:5432:*:ops:p\:w\\d 'x' hunter2"),
        ({"host": "one,two"}, r"*:5432:*:ops:p\:w\\d 'x' hunter2"),
    ],
)
def test_the_passfile_is_escaped(
    server: PostgresServer, tmp_path: Path, fields: dict[str, str], line: str
) -> None:
    server.model_copy(update=fields).write_passfile(tmp_path / "pass")
    assert (tmp_path / "pass").read_text() == f"{line}\n"


def test_the_passfile_is_new_and_for_its_owner_only(server: PostgresServer, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        server.write_passfile(tmp_path / "pass")
    finally:
        os.umask(before)
    assert (tmp_path / "pass").stat().st_mode & 0o777 == 0o600
    with pytest.raises(Refused, match="exists already"):
        server.write_passfile(tmp_path / "pass")
    with pytest.raises(Refused, match="does not exist"):
        server.write_passfile(tmp_path / "none" / "pass")


@pytest.mark.parametrize("password", [None, SecretStr("")])
def test_without_a_password_the_passfile_is_empty(
    tmp_path: Path, password: SecretStr | None
) -> None:
    PostgresServer(host="h", user="u", password=password).write_passfile(tmp_path / "pass")
    assert (tmp_path / "pass").read_bytes() == b""


def test_a_password_of_two_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="line feed") as caught:
        PostgresServer(host="h", user="u", password=SecretStr("one\ntwo")).write_passfile(
            tmp_path / "pass"
        )
    assert "two" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "/nowhere", "no.such.host.invalid"])
def test_a_server_that_does_not_answer_is_unavailable(host: str) -> None:
    server = PostgresServer(host=host, port=9, user="ops", password=SecretStr(PASSWORD))
    with pytest.raises(Unavailable) as caught:
        server.connect("app")
    text = str(caught.value)
    assert text.startswith(
        f'Could not connect to PostgreSQL at {host} port 9, database "app", user "ops": '
    )
    assert "then try again." in text
    assert PASSWORD not in text
    assert "\n" not in text
