from collections.abc import Callable

import psycopg

from tests.clusters import Database, Server


def test_a_database_is_reached_over_the_socket_and_over_tcp_with_a_password(
    database: Database, pg_major: int
):
    for conninfo in (database.conninfo, database.url):
        with psycopg.connect(conninfo) as connection:
            row = connection.execute("select current_user, current_database()").fetchone()
            assert row == ("ops", database.name)
            assert connection.info.server_version // 10000 == pg_major
            connection.execute("create table if not exists leftover ()")


def test_every_test_has_a_fresh_database(database: Database):
    with database.connect() as connection:
        assert connection.execute("select to_regclass('leftover')").fetchone() == (None,)


def test_the_shared_cluster_can_be_backed_up(pg_cluster: Server):
    with psycopg.connect(pg_cluster.url(), autocommit=True, replication="database") as connection:
        assert connection.execute("IDENTIFY_SYSTEM").fetchone() is not None


def test_another_cluster_takes_settings(other_cluster: Callable[..., Server], pg_cluster: Server):
    server = other_cluster(work_mem="7MB")
    with server.connect() as connection:
        assert connection.execute("show work_mem").fetchone() == ("7MB",)
    assert server.port != pg_cluster.port
