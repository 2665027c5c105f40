import threading
from concurrent.futures import ThreadPoolExecutor
from secrets import token_hex

import psycopg
import pytest

from tasks import connection, vault
from tasks.errors import Refused, Unavailable
from tests.clusters import PASSWORD, Database, drop_database


def setting(conn: psycopg.Connection, name: str) -> object:
    return connection.fetch_value(conn, "SELECT current_setting(%(name)s)", name=name)


def test_a_session_is_named_and_has_limits(database):
    with connection.connect(
        database.url, application_name="onevault test", statement_timeout_ms=50
    ) as conn:
        assert conn.autocommit
        assert setting(conn, "application_name") == "onevault test"
        assert setting(conn, "lock_timeout") == "5s"
        with (
            pytest.raises(
                Unavailable, match="Could not wait: canceling statement due to statement timeout"
            ),
            connection.translating("wait"),
        ):
            conn.execute("SELECT pg_sleep(5)")


def test_options_that_were_given_stay(database):
    with connection.connect(f"{database.conninfo} options='-c work_mem=7MB'") as conn:
        assert setting(conn, "work_mem") == "7MB"
        assert setting(conn, "statement_timeout") == "1min"


def test_the_vault_ends_forgotten_transactions(database):
    with vault.connect(database.conninfo) as conn:
        assert setting(conn, "idle_in_transaction_session_timeout") == "1min"


def test_a_replication_connection_speaks_the_replication_protocol(database):
    with connection.connect(database.conninfo, replication=True) as conn:
        assert conn.pgconn.exec_(b"IDENTIFY_SYSTEM").fname(0) == b"systemid"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"password": "sesame"}, 'password authentication failed for user "ops"'),
        ({"user": "nobody_here"}, "authentication failed"),
        ({"dbname": "no_such_place"}, 'database "no_such_place" does not exist'),
    ],
)
def test_a_server_that_says_no_is_not_asked_again(database, change, words):
    conninfo = psycopg.conninfo.make_conninfo(database.url, **change)
    with pytest.raises(Refused, match=words) as caught:
        connection.connect(conninfo)
    message = str(caught.value)
    assert "127.0.0.1 port" in message
    assert "sesame" not in message
    assert PASSWORD not in message


def test_a_lost_session_is_unavailable(database):
    with database.connect() as other, connection.connect(database.conninfo) as conn:
        other.execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])
        with pytest.raises(Unavailable, match="Could not look"), connection.translating("look"):
            conn.execute("SELECT 1")


def test_a_missing_right_is_named(pg_cluster, database):
    role = f"reader_{token_hex(4)}"
    with database.connect() as conn:
        conn.execute("CREATE TABLE secrets ()")
        conn.execute(psycopg.sql.SQL("CREATE ROLE {}").format(psycopg.sql.Identifier(role)))
        try:
            conn.execute(psycopg.sql.SQL("SET ROLE {}").format(psycopg.sql.Identifier(role)))
            with (
                pytest.raises(Refused, match="Could not read: permission denied for table secrets"),
                connection.translating("read"),
            ):
                conn.execute("SELECT FROM secrets")
        finally:
            conn.execute("RESET ROLE")
            conn.execute(psycopg.sql.SQL("DROP ROLE {}").format(psycopg.sql.Identifier(role)))


def test_a_database_is_made_once_by_many(pg_cluster):
    name = f'Odd "{token_hex(4)}"'
    start = threading.Barrier(3)

    def make() -> bool:
        start.wait(timeout=10)
        return vault.ensure_database(pg_cluster.conninfo(), name)

    try:
        with ThreadPoolExecutor(3) as pool:
            made = [future.result() for future in [pool.submit(make) for _ in range(3)]]
        assert sorted(made) == [False, False, True]
        assert vault.ensure_database(pg_cluster.conninfo(), name) is False
    finally:
        drop_database(Database(pg_cluster, name))
