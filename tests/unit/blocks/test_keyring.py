"""LocalKeyring: files that age and openssl read, rotation, and refusals."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyrage  # type: ignore[import-untyped]
import pytest
from pydantic import ValidationError

from blocks import x25519
from blocks.errors import Refused
from blocks.keyring import LocalKeyring, UnknownSigner
from tasks.age import encrypt_stream, new_file_key, parse_header, seal_header

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
RECOVERY = x25519.generate()
RECOVERY_RECIPIENT = x25519.recipient_of(RECOVERY)
FILE_KEY = new_file_key()

needs_age = pytest.mark.skipif(
    not shutil.which("age"), reason="the age program is not installed (Debian: apt install age)"
)


@pytest.fixture
def keyring(tmp_path: Path) -> LocalKeyring:
    made = LocalKeyring(directory=tmp_path / "keys", recovery_recipients=[RECOVERY_RECIPIENT])
    made.create(NOW)
    return made


def age_file(keyring: LocalKeyring, plain: bytes) -> bytes:
    return seal_header(FILE_KEY, keyring.wrap(FILE_KEY).stanzas) + b"".join(
        encrypt_stream([plain], FILE_KEY)
    )


def identity_file(keyring: LocalKeyring, key_id: str) -> Path:
    return keyring.directory / f"{key_id}.agekey"


def test_wrap_names_the_active_key_and_every_recipient(keyring: LocalKeyring) -> None:
    wrapped = keyring.wrap(FILE_KEY)
    assert wrapped.key_id == keyring.active_key_id == keyring.key_ids()[-1]
    assert wrapped.recipients == keyring.recipients()
    assert wrapped.recipients[1:] == (RECOVERY_RECIPIENT,)
    assert len(wrapped.stanzas) == 2
    assert keyring.unwrap(wrapped.stanzas) == FILE_KEY
    assert keyring.unwrap(wrapped.stanzas[:1]) == FILE_KEY
    assert x25519.unwrap(wrapped.stanzas[1], RECOVERY) == FILE_KEY


def test_pyrage_reads_with_the_identity_file_and_with_the_recovery_key(
    keyring: LocalKeyring,
) -> None:
    lines = identity_file(keyring, keyring.active_key_id).read_text().splitlines()
    file = age_file(keyring, b"text")
    assert lines[1] == f"# public key: {keyring.recipients()[0]}"
    for text in (lines[-1], x25519.identity_text(RECOVERY)):
        assert pyrage.decrypt(file, [pyrage.x25519.Identity.from_str(text)]) == b"text"


def test_we_unwrap_what_pyrage_wraps(keyring: LocalKeyring) -> None:
    recipients = [pyrage.x25519.Recipient.from_str(each) for each in keyring.recipients()]
    file = pyrage.encrypt(b"text", recipients)
    header = parse_header(file[: file.index(b"\n", file.index(b"\n--- ") + 1) + 1])
    header.check(keyring.unwrap(header.stanzas))


@needs_age
def test_the_age_program_reads_with_the_identity_file_as_it_is(keyring: LocalKeyring) -> None:
    argv = ["age", "-d", "-i", str(identity_file(keyring, keyring.active_key_id))]
    done = subprocess.run(argv, input=age_file(keyring, b"text"), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"text", b"")


@needs_age
def test_we_unwrap_what_the_age_program_wraps(keyring: LocalKeyring) -> None:
    argv = ["age", "-r", keyring.recipients()[0], "-r", RECOVERY_RECIPIENT]
    file = subprocess.run(argv, input=b"text", capture_output=True, check=True).stdout
    header = parse_header(file[: file.index(b"\n", file.index(b"\n--- ") + 1) + 1])
    header.check(keyring.unwrap(header.stanzas))


def test_rotation_keeps_older_keys_readable(keyring: LocalKeyring) -> None:
    old = keyring.active_key_id
    before = keyring.wrap(FILE_KEY)
    signed = keyring.sign(b"manifest")
    new = keyring.rotate(NOW + timedelta(days=90))
    assert keyring.active_key_id == new != old
    assert keyring.key_ids() == (old, new)
    assert keyring.unwrap(before.stanzas) == FILE_KEY
    keyring.verify(b"manifest", signed.key_id, signed.value)
    assert keyring.sign(b"manifest").key_id == keyring.wrap(FILE_KEY).key_id == new


@pytest.mark.parametrize("later", [timedelta(0), timedelta(days=-400)])
def test_the_last_rotation_is_active_whatever_the_clock_says(
    keyring: LocalKeyring, later: timedelta
) -> None:
    for _ in range(3):
        assert keyring.rotate(NOW + later) == keyring.active_key_id


def test_rotations_at_the_same_moment_all_hold(keyring: LocalKeyring) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: keyring.rotate(NOW), range(8)))
    assert len(set(made)) == 8
    assert set(keyring.key_ids()) >= set(made)
    for key_id in made:
        assert identity_file(keyring, key_id).stat().st_nlink == 1
    keyring.verify(b"m", keyring.active_key_id, keyring.sign(b"m").value)


def test_create_is_idempotent(keyring: LocalKeyring) -> None:
    assert keyring.create() == keyring.active_key_id
    assert len(keyring.key_ids()) == 1


def test_files_are_for_their_owner_only(keyring: LocalKeyring) -> None:
    assert keyring.directory.stat().st_mode & 0o777 == 0o700
    files = list(keyring.directory.iterdir())
    assert sorted("".join(file.suffixes) for file in files) == [
        ".agekey",
        ".ed25519",
        ".ed25519.pub",
    ]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
@pytest.mark.parametrize("suffix", [".agekey", ".ed25519"])
def test_a_file_open_to_others_is_refused(keyring: LocalKeyring, mode: int, suffix: str) -> None:
    file = keyring.directory / f"{keyring.active_key_id}{suffix}"
    file.chmod(mode)
    with pytest.raises(Refused, match=f"chmod 600 {file}"):
        keyring.wrap(FILE_KEY) if suffix == ".agekey" else keyring.sign(b"")


@pytest.mark.parametrize("mode", [0o750, 0o701])
def test_a_directory_open_to_others_is_refused(keyring: LocalKeyring, mode: int) -> None:
    keyring.directory.chmod(mode)
    calls = (keyring.key_ids, keyring.create, keyring.rotate, lambda: keyring.sign(b""))
    for call in calls:
        with pytest.raises(Refused, match=f"chmod 700 {keyring.directory}"):
            call()
    keyring.directory.chmod(0o700)


def test_a_missing_or_empty_keyring_is_refused(tmp_path: Path) -> None:
    missing = LocalKeyring(directory=tmp_path / "none")
    with pytest.raises(Refused, match="does not exist"):
        missing.wrap(FILE_KEY)
    missing.directory.mkdir(mode=0o700)
    with pytest.raises(Refused, match="holds no key"):
        missing.wrap(FILE_KEY)


def test_a_key_that_was_half_made_is_not_there(keyring: LocalKeyring) -> None:
    before = keyring.key_ids()
    (keyring.directory / "20990101T000000Z-00000000.ed25519").write_bytes(b"")
    (keyring.directory / ".partial-0011").write_bytes(b"")
    assert keyring.key_ids() == before


def test_a_recovery_key_laid_into_the_directory_opens_but_never_seals(
    keyring: LocalKeyring, tmp_path: Path
) -> None:
    stanzas = keyring.wrap(FILE_KEY).stanzas
    other = LocalKeyring(directory=tmp_path / "other")
    active = other.create()
    with pytest.raises(Refused, match=r"None of the keys held .*written for 2026-x, age1y"):
        other.unwrap(stanzas, written_for=["2026-x", "age1y"])
    file = other.directory / "zz-recovery.agekey"
    file.touch(mode=0o600)
    file.write_text(f"# offline\n\n{x25519.identity_text(RECOVERY)}\n")
    assert other.unwrap(stanzas) == FILE_KEY
    assert other.active_key_id == active
    assert other.key_ids() == (active, "zz-recovery")


def test_a_recovery_key_alone_opens_and_neither_seals_nor_vouches(
    keyring: LocalKeyring, tmp_path: Path
) -> None:
    stanzas, signed = keyring.wrap(FILE_KEY).stanzas, keyring.sign(b"manifest")
    alone = LocalKeyring(directory=tmp_path / "alone")
    alone.directory.mkdir(mode=0o700)
    file = alone.directory / "recovery.agekey"
    file.touch(mode=0o600)
    file.write_text(x25519.identity_text(RECOVERY))
    assert alone.key_ids() == ("recovery",)
    assert alone.unwrap(stanzas) == FILE_KEY
    with pytest.raises(UnknownSigner, match=signed.key_id):
        alone.verify(b"manifest", signed.key_id, signed.value)
    command = f"onevault rotate-key --keyring {alone.directory}"
    for refused in (lambda: alone.wrap(FILE_KEY), lambda: alone.sign(b""), alone.recipients):
        with pytest.raises(Refused, match=command):
            refused()
    assert alone.create() == alone.active_key_id
    assert alone.unwrap(stanzas) == FILE_KEY


def test_an_unreadable_identity_file_is_named_and_not_shown(keyring: LocalKeyring) -> None:
    file = identity_file(keyring, keyring.active_key_id)
    text = file.read_text()
    file.write_text(text[:-2])
    with pytest.raises(Refused, match=file.name) as caught:
        keyring.wrap(FILE_KEY)
    assert text.splitlines()[-1][20:50] not in str(caught.value)
    file.write_text("# nothing\n")
    with pytest.raises(Refused, match="holds no age identity"):
        keyring.wrap(FILE_KEY)


def test_a_changed_message_or_signature_is_refused(keyring: LocalKeyring) -> None:
    signed = keyring.sign(b"manifest")
    keyring.verify(b"manifest", signed.key_id, signed.value)
    for message, value in [
        (b"Manifest", signed.value),
        (b"manifest", bytes(64)),
        (b"manifest", b""),
    ]:
        with pytest.raises(Refused, match="is wrong"):
            keyring.verify(message, signed.key_id, value)


@pytest.mark.parametrize("key_id", ["20200101T000000Z-00000000", "../other", "", "/etc/passwd"])
def test_an_unknown_signing_key_is_refused(keyring: LocalKeyring, key_id: str) -> None:
    with pytest.raises(UnknownSigner, match="Unknown signing key id"):
        keyring.verify(b"", key_id, bytes(64))


@pytest.mark.parametrize("suffix", [".ed25519", ".ed25519.pub"])
def test_a_broken_signing_file_is_refused(keyring: LocalKeyring, suffix: str) -> None:
    signed = keyring.sign(b"")
    (keyring.directory / f"{signed.key_id}{suffix}").write_bytes(b"-----BEGIN nothing")
    with pytest.raises(Refused, match="no readable Ed25519 key"):
        keyring.sign(b"") if suffix == ".ed25519" else keyring.verify(
            b"", signed.key_id, signed.value
        )


def test_openssl_reads_the_signing_key(keyring: LocalKeyring) -> None:
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("the openssl program is not installed")
    file = keyring.directory / f"{keyring.active_key_id}.ed25519"
    done = subprocess.run(
        [openssl, "pkey", "-in", file, "-pubout"], capture_output=True, check=True
    )
    assert done.stdout == file.with_suffix(".ed25519.pub").read_bytes()


def test_a_bad_recovery_recipient_is_refused_at_once_and_a_secret_is_not_shown(
    tmp_path: Path,
) -> None:
    for wrong in ("age1nonsense", x25519.identity_text(RECOVERY)):
        with pytest.raises((Refused, ValidationError)) as caught:
            LocalKeyring(directory=tmp_path, recovery_recipients=[wrong])
        assert x25519.identity_text(RECOVERY)[16:40] not in f"{caught.value!r}{caught.value}"


def test_a_relative_directory_is_refused() -> None:
    with pytest.raises(Refused, match="relative"):
        LocalKeyring(directory=Path("keys"))


def test_no_secret_is_in_any_text_of_the_block(keyring: LocalKeyring) -> None:
    secret = identity_file(keyring, keyring.active_key_id).read_text().splitlines()[-1]
    shown = f"{keyring!r}{keyring}{keyring.model_dump()}{keyring.model_dump_json()}{vars(keyring)}"
    keyring.wrap(FILE_KEY)
    assert secret not in shown
    assert "SECRET" not in shown


def test_os_errors_become_sentences(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="not a directory"):
        LocalKeyring(directory=tmp_path / "file" / "keys").create()
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208
