import stat

import psycopg
import pytest

from tasks import connection, vault
from tasks.errors import Refused, Unavailable


@pytest.mark.parametrize(
    "conninfo",
    [
        "sesame",
        "postgresql://u:sesame@x@h/d",
        "postgresql://u:p@sesame@h/d",
        "host=h passwort=sesame",
    ],
)
def test_a_string_that_cannot_be_read_is_not_shown(conninfo):
    with pytest.raises(Refused, match="The connection string is not valid") as caught:
        connection.connect(conninfo)
    assert "sesame" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_server_that_does_not_answer_is_named_without_its_password():
    with pytest.raises(Unavailable) as caught:
        connection.connect("postgresql://ann:sesame@127.0.0.1:1/books")
    message = str(caught.value)
    assert '127.0.0.1 port 1, database "books", user "ann"' in message
    assert "try again" in message
    assert "sesame" not in message


def test_describe_has_no_password():
    described = connection.describe("postgresql://ann:sesame@db.example:6543/books")
    assert described == 'db.example port 6543, database "books", user "ann"'


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.errors.InsufficientPrivilege("no"), Refused),
        (psycopg.errors.ReadOnlySqlTransaction("no"), Refused),
        (psycopg.errors.LockNotAvailable("no"), Unavailable),
        (psycopg.errors.DeadlockDetected("no"), Unavailable),
        (psycopg.errors.AdminShutdown("no"), Unavailable),
        (psycopg.errors.DiskFull("no"), Unavailable),
        (psycopg.errors.QueryCanceled("no"), Unavailable),
        (psycopg.OperationalError("the connection is lost"), Unavailable),
        (psycopg.InterfaceError("the connection is closed"), Unavailable),
    ],
)
def test_errors_become_ours(error, expected):
    with (
        pytest.raises(expected, match="Could not look: ") as caught,
        connection.translating("look"),
    ):
        raise error
    assert caught.value.__cause__ is error


def test_mistakes_of_our_own_are_not_dressed_up():
    with pytest.raises(psycopg.errors.UndefinedColumn), connection.translating("look"):
        raise psycopg.errors.UndefinedColumn


def test_without_configuration_there_is_no_vault_url():
    assert vault.vault_url({}) is None
    assert vault.vault_url({"ONEVAULT_VAULT_URL": ""}) is None
    assert vault.vault_url({"ONEVAULT_VAULT_URL": "host=h"}) == "host=h"


def test_the_vault_url_may_stand_in_a_secret_file(tmp_path):
    path = tmp_path / "vault"
    path.write_text("host=h password=sesame\n")
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert vault.vault_url({"ONEVAULT_VAULT_URL_FILE": str(path)}) == "host=h password=sesame"


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("host=h", 0o640, "run chmod 600"),
        ("host=h", 0o604, "run chmod 600"),
        (" \n", 0o600, "is empty"),
    ],
)
def test_a_secret_file_that_is_open_or_empty_is_refused(tmp_path, text, mode, words):
    path = tmp_path / "vault"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(Refused, match=words):
        vault.vault_url({"ONEVAULT_VAULT_URL_FILE": str(path)})


def test_a_secret_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(Refused, match="cannot be read: No such file"):
        vault.vault_url({"ONEVAULT_VAULT_URL_FILE": str(tmp_path / "none")})


def test_two_places_for_one_url_are_refused():
    with pytest.raises(Refused, match="both set"):
        vault.vault_url({"ONEVAULT_VAULT_URL": "host=h", "ONEVAULT_VAULT_URL_FILE": "f"})


def test_production_does_not_fall_back_to_the_embedded_server():
    with pytest.raises(Refused, match="Production needs a vault of its own"):
        vault.ensure_url({"ONEVAULT_ENV": "production"})
