"""Full disks, closed folders, wrong keys, and what dead runs left behind."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from blocks.keyring import LocalKeyring
from blocks.storage.local import LocalStore
from tasks import processes, vault
from tasks.backup import journal, manifest
from tasks.backup import store as catalog
from tasks.backup.lifecycle import BackupStatus
from tasks.backup.models import BackupKind, Outcome
from tasks.backup.restore import OpenBackup
from tasks.errors import OneVaultError, Refused
from tasks.opening import local_keyring, open_store
from tests.backups import Backup, BackupMaker, is_root, maker_of, until
from tests.clusters import Server, make_database

KINDS = pytest.mark.parametrize("kind", list(BackupKind), ids=lambda kind: kind.value)


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own, soon full."""
    if not is_root():
        pytest.skip("only root can mount a small file system")
    place.mkdir(mode=0o711, parents=True)
    try:
        processes.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "tmpfs", place],
            timeout_seconds=10,
        )
    except OneVaultError as error:
        pytest.skip(f"no small file system can be mounted here: {error}")
    try:
        yield place
    finally:
        processes.run(["umount", place], timeout_seconds=10)


@pytest.fixture(scope="module")
def incompressible(source: Server) -> Iterator[str]:
    made = make_database(source, "incompressible")
    with made.connect() as connection:
        connection.execute(
            "create table noise as select i, string_agg(sha512((i * 100 + j)::text::bytea), '') as b"
            " from generate_series(1, 4000) i, generate_series(1, 16) j group by i"
        )
    yield made.name
    with source.connect() as connection:
        connection.execute("drop database incompressible with (force)")


@KINDS
def test_a_full_store_is_a_sentence_and_keeps_nothing(
    maker: BackupMaker,
    incompressible: str,
    vault_url: str,
    kind: BackupKind,
    monkeypatch: pytest.MonkeyPatch,
):
    from tasks.backup import preflight  # noqa: PLC0415

    # The estimate of the preflight would refuse at once; here the disk fills up meanwhile.
    monkeypatch.setattr(preflight, "_STORE_SHARE", 0)
    with small_disk(maker.folder / "small", "2m") as place:
        maker.store = LocalStore(directory=place)
        with pytest.raises(
            Refused, match=r"^disk full: .* needs \d+ bytes more, .* are free\. Free"
        ):
            maker.take_journaled(vault_url, kind, incompressible)
        assert maker.leftovers() == []
        assert maker.newest(vault_url).backup_status is BackupStatus.FAILED
        assert shutil.disk_usage(place).free > 1_900_000


def test_a_store_without_room_is_refused_before_anything_begins(
    maker: BackupMaker, incompressible: str
):
    with small_disk(maker.folder / "small", "1m") as place:
        maker.store = LocalStore(directory=place)
        with pytest.raises(Refused, match=r"GiB free and about 0\.\d\d GiB are needed: free space"):
            maker.check(BackupKind.LOGICAL, incompressible)


@KINDS
def test_a_full_scratch_disk_says_nothing_of_the_backup(
    maker: BackupMaker, incompressible: str, kind: BackupKind
):
    backup = maker.take(kind, incompressible if kind is BackupKind.LOGICAL else None)
    # Room for a fresh cluster and its WAL, and not for the data.
    size = "44m" if kind is BackupKind.LOGICAL else "12m"
    with small_disk(maker.folder / "small", size) as place:
        maker.scratch = place / "scratch"
        with (
            pytest.raises(
                Refused, match=r"the disk of .*scratch became full, so the restore could"
            ),
            maker.rehearsed(backup),
        ):
            pass
        assert [path for path in maker.scratch.iterdir() if path.name != ".lock"] == []
    maker.scratch = maker.folder / "scratch"
    with maker.rehearsed(backup) as copy:
        assert copy.restored.rung.outcome is Outcome.PASS


def test_a_scratch_folder_that_cannot_be_made_is_refused(maker: BackupMaker):
    (maker.folder / "file").touch()
    maker.scratch = maker.folder / "file" / "scratch"
    with pytest.raises(Refused, match=r"the scratch folder .* cannot be made \(Not a directory\)"):
        maker.check(BackupKind.LOGICAL, verify=True)


def test_a_folder_that_somebody_named_for_scratch_keeps_its_mode(maker: BackupMaker):
    maker.scratch = maker.folder / "shared"
    maker.scratch.mkdir()
    maker.scratch.chmod(0o1777)
    maker.check(BackupKind.LOGICAL, verify=True)
    assert maker.scratch.stat().st_mode & 0o7777 == 0o1777


def test_a_store_that_is_missing_is_explained(maker: BackupMaker):
    maker.store = LocalStore(directory=maker.folder / "gone")
    with pytest.raises(Refused, match=r"gone does not exist\. Create it, or mount the file system"):
        maker.check(BackupKind.LOGICAL)


def test_a_store_that_may_not_be_written_is_explained(maker: BackupMaker):
    if is_root():
        with small_disk(maker.folder / "small", "1m") as place:
            processes.run(["mount", "-o", "remount,ro", place], timeout_seconds=10)
            maker.store = LocalStore(directory=place)
            with pytest.raises(Refused, match=r"read-only file system\. Mount it for writing"):
                maker.check(BackupKind.LOGICAL)
    else:
        maker.store.directory.chmod(0o500)
        with pytest.raises(Refused, match="permission denied for the user with id"):
            maker.check(BackupKind.LOGICAL)


@pytest.fixture(scope="module")
def stored(source: Server) -> Iterator[tuple[BackupMaker, Backup]]:
    with maker_of(source) as maker:
        yield maker, maker.take(BackupKind.LOGICAL, "postgres")


def test_a_keyring_without_the_signing_key_names_it(stored: tuple[BackupMaker, Backup]):
    maker, backup = stored
    key_id = backup.manifest.encryption_key_id
    strangers = local_keyring(maker.folder / "strangers")
    with pytest.raises(
        Refused, match=f"Unknown signing key id '{key_id}'. Put its .ed25519.pub file"
    ):
        OpenBackup.open(backup.store, strangers, backup.prefix)


def test_a_keyring_that_may_verify_and_not_open_says_which_key_would(
    stored: tuple[BackupMaker, Backup],
):
    maker, backup = stored
    auditors = local_keyring(maker.folder / "auditors")
    public = f"{backup.manifest.encryption_key_id}.ed25519.pub"
    shutil.copy(maker.keyring.directory / public, auditors.directory / public)
    opened = OpenBackup.open(backup.store, auditors, backup.prefix)
    with pytest.raises(Refused, match=r"None of the keys held in .*auditors .* opens this"):
        opened.inventory()


def test_a_rotated_key_still_opens_what_it_closed(stored: tuple[BackupMaker, Backup]):
    maker, backup = stored
    rotated = LocalKeyring(directory=maker.keyring.directory)
    rotated.rotate()
    assert OpenBackup.open(backup.store, rotated, backup.prefix).inventory().databases


def test_what_was_committed_before_the_run_died_is_completed(maker: BackupMaker, vault_url: str):
    backup = maker.take(BackupKind.LOGICAL, "postgres")
    begin(maker, vault_url, backup)
    said = mend(maker, vault_url, backup)
    assert said == [
        f"{backup.manifest.backup_id} had been stored whole before its run died: it is COMPLETED"
    ]
    with vault.connect(vault_url) as conn:
        entry = catalog.find(conn, backup.manifest.backup_id)
    assert entry is not None
    assert entry.backup_status is BackupStatus.COMPLETED
    assert entry.stored_bytes == backup.manifest.stored_bytes
    assert entry.manifest_sha256 is not None
    assert mend(maker, vault_url, backup) == []
    assert manifest.is_committed(backup.store, backup.prefix)


def test_what_was_not_committed_is_removed_to_the_last_byte(maker: BackupMaker, vault_url: str):
    backup = maker.take(BackupKind.LOGICAL, "postgres")
    good = maker.take(BackupKind.LOGICAL, "postgres")
    begin(maker, vault_url, backup)
    (backup.folder / manifest.MANIFEST_NAME).unlink()
    # What a killed writer leaves.
    (backup.folder / ".partial-0123456789abcdef").write_bytes(b"half")
    said = mend(maker, vault_url, backup)
    assert len(said) == 1
    assert "the run died before the backup was complete" in said[0]
    with vault.connect(vault_url) as conn:
        entry = catalog.find(conn, backup.manifest.backup_id)
    assert entry is not None
    assert (entry.backup_status, entry.error_code) == (BackupStatus.FAILED, "INTERRUPTED")
    assert not backup.folder.exists()
    assert {path.split("/")[1] for path in maker.leftovers()} == {good.manifest.backup_id}


def test_what_cannot_be_cleaned_up_yet_is_said_and_tried_again(maker: BackupMaker, vault_url: str):
    backup = maker.take(BackupKind.LOGICAL, "postgres")
    begin(maker, vault_url, backup)
    (backup.folder / manifest.MANIFEST_NAME).unlink()
    away = maker.store.directory.rename(maker.folder / "away")
    said = mend(maker, vault_url, backup)
    assert "was left by a dead run and could not be cleaned up yet: " in said[0]
    away.rename(maker.store.directory)
    assert "what it had stored was removed" in mend(maker, vault_url, backup)[0]
    assert maker.leftovers() == []


def test_an_entry_that_the_vault_refuses_to_mend_stops_nothing(maker: BackupMaker, vault_url: str):
    """A manifest that ended before its backup began: the clock was set back, then the run died."""
    backup = maker.take(BackupKind.LOGICAL, "postgres")
    later = replace_times(backup, timedelta(hours=1))
    begin(maker, vault_url, later)
    assert "could not be cleaned up yet" in mend(maker, vault_url, backup)[0]
    with vault.connect(vault_url) as conn:
        catalog.mark_failed(conn, backup.manifest.backup_id, "TEST", "given up")


def replace_times(backup: Backup, later: timedelta) -> Backup:
    started_at = backup.manifest.started_at + later
    return replace(backup, manifest=backup.manifest.model_copy(update={"started_at": started_at}))


def begin(maker: BackupMaker, vault_url: str, backup: Backup) -> None:
    """Tell the vault of a backup whose run is about to die."""
    ready = maker.check(BackupKind.LOGICAL, "postgres")
    made = backup.manifest
    intent = maker.intent(BackupKind.LOGICAL, ready, made.backup_id)
    with vault.connect(vault_url) as conn:
        catalog.register_backup(conn, replace(intent, started_at=made.started_at))
        catalog.mark_running(conn, made.backup_id)


def mend(maker: BackupMaker, vault_url: str, backup: Backup) -> list[str]:
    with vault.connect(vault_url) as conn:
        system = backup.manifest.server.system_identifier
        said = journal.mend(conn, system, open_store, maker.keyring)
    return [sentence for sentence in said if backup.manifest.backup_id in sentence]


def test_passwords_of_killed_runs_are_removed(maker: BackupMaker, monkeypatch: pytest.MonkeyPatch):
    """A run that is killed leaves its password file; the next one removes it."""
    home = maker.folder / "home"
    monkeypatch.setenv("ONEVAULT_HOME", str(home))
    maker.take(BackupKind.LOGICAL, "postgres")
    dead = home / "logins" / "scratch-dead"
    dead.mkdir()
    (dead / "pgpass").write_text("secret")
    maker.take(BackupKind.LOGICAL, "postgres")
    assert not dead.exists()
    assert list(home.rglob("pgpass")) == []
    until(lambda: not os.path.lexists(dead))
