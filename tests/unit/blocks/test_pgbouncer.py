"""PgBouncerConsole without a pooler: connection strings and refusals."""

import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from blocks.errors import Refused
from blocks.pgbouncer import PgBouncerConsole

PASSWORD = "it's a \\ secret"


def test_the_connection_string_leads_to_the_console() -> None:
    console = PgBouncerConsole(host="pooler", user="stats", password=SecretStr(PASSWORD))
    assert conninfo_to_dict(console.conninfo().get_secret_value()) == {
        "host": "pooler",
        "port": "6432",
        "user": "stats",
        "dbname": "pgbouncer",
        "password": PASSWORD,
        "sslmode": "prefer",
        "connect_timeout": "5",
    }
    assert PASSWORD not in f"{console!r}{console.conninfo()!r}"


def test_a_url_is_read_and_written_back() -> None:
    url = "postgresql://stats:s%20p@10.0.0.9:7000/pgbouncer?sslmode=require&sslrootcert=system"
    console = PgBouncerConsole.from_conninfo(SecretStr(url))
    assert (console.host, console.port, console.sslmode) == ("10.0.0.9", 7000, "require")
    assert console.password is not None
    assert console.password.get_secret_value() == "s p"
    parts = conninfo_to_dict(console.conninfo().get_secret_value())
    assert (parts["dbname"], parts["sslrootcert"]) == ("pgbouncer", "system")


@pytest.mark.parametrize(
    ("conninfo", "words"),
    [
        ("postgresql://stats:hunter2@[bad", "not valid"),
        ("host=h user=u password=hunter2 options=-cx=1", "options"),
        ("user=u password=hunter2", "must name a host and a user"),
        ("host=h password=hunter2", "must name a host and a user"),
    ],
)
def test_what_cannot_be_used_is_refused_without_repeating_it(conninfo: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        PgBouncerConsole.from_conninfo(conninfo)
    assert "hunter2" not in str(caught.value)
