"""A thousand damages to small backups, each of which must be found.

The seed is new in every run and stands in the message of a failure; ONEVAULT_DAMAGE_SEED repeats it.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blocks.keyring import LocalKeyring
from tasks.backup import envelope as envelopes
from tasks.backup import manifest, pipeline, rehearsal
from tasks.backup.models import BackupKind, Manifest, Outcome
from tasks.backup.restore import OpenBackup
from tasks.errors import OneVaultError
from tasks.opening import local_keyring
from tasks.programs import Installation
from tasks.progress import Progress
from tests.backups import Backup, BackupMaker
from tests.clusters import Server, running_server

SEED = int(os.environ.get("ONEVAULT_DAMAGE_SEED") or random.SystemRandom().randrange(2**32))
PART_BYTES = {BackupKind.LOGICAL: 64 * 1024, BackupKind.PHYSICAL: 256 * 1024}
MANIFEST = manifest.MANIFEST_NAME

Files = Mapping[str, bytes]
Changes = dict[str, bytes | None]
"""What a damage does to a backup's folder: new content by name, None for a removed file."""


@dataclass(frozen=True)
class Subject:
    """A backup to be damaged, its files, and those of a later one of the same server and keys."""

    backup: Backup
    files: Files
    later: Files
    strangers: LocalKeyring

    def changed(self, changes: Changes) -> bool:
        return any(self.files.get(name) != data for name, data in changes.items())

    def apply(self, changes: Changes) -> None:
        for name, data in changes.items():
            path = self.backup.folder / name
            if data is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)

    def undo(self, changes: Changes) -> None:
        self.apply({name: self.files.get(name) for name in changes})

    def verdict(self, keyring: LocalKeyring | None = None) -> str | None:
        """Return why the backup is refused, None when it is good."""
        backup = self.backup
        try:
            opened = OpenBackup.open(backup.store, keyring or backup.keyring, backup.prefix)
        except OneVaultError as error:
            return str(error)
        rung, read_bytes = rehearsal.reread(opened, Progress("re-read"))
        if rung.outcome is Outcome.PASS:
            return None
        assert (rung.outcome, read_bytes) == (Outcome.FAIL, 0)
        return rung.summary


@pytest.fixture(scope="module")
def loaded_server(installation: Installation, empty_data: Path) -> Iterator[Server]:
    with running_server(installation, empty_data) as server:
        _load(server)
        yield server


@pytest.fixture(scope="module", params=list(BackupKind), ids=lambda kind: kind.value)
def subject(
    request: pytest.FixtureRequest, loaded_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    kind = request.param
    folder = tmp_path_factory.mktemp(kind.value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "PART_BYTES", PART_BYTES[kind])
        maker = BackupMaker(loaded_server, folder)
        backup, later = maker.take(kind), maker.take(kind)
        assert max(len(item.parts) for item in backup.manifest.objects) >= 6
        strangers = local_keyring(folder / "strangers")
        yield Subject(backup, _files(backup.folder), _files(later.folder), strangers)


def _load(server: Server) -> None:
    with server.connect() as connection:
        connection.execute("create table customer (id int primary key, name text)")
        connection.execute(
            "insert into customer select i, 'name ' || i from generate_series(1, 500) i"
        )
        connection.execute("create table noise (id bigserial primary key, data bytea)")
        connection.execute(
            "insert into noise (data) select sha512(i::text::bytea) from generate_series(1, 8000) i"
        )
        connection.execute('create table "an ""empty"" one" (j jsonb)')


def _files(folder: Path) -> Files:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# What may happen to a file.


def flip_bits(chance: random.Random, subject: Subject) -> Changes:
    name = chance.choice(sorted(subject.files))
    data = bytearray(subject.files[name])
    for position in chance.sample(range(8 * len(data)), chance.choice([1, 1, 1, 2, 8])):
        data[position // 8] ^= 1 << position % 8
    return {name: bytes(data)}


def truncate(chance: random.Random, subject: Subject) -> Changes:
    name = chance.choice(sorted(subject.files))
    data = subject.files[name]
    lost = chance.choice([1, 16, len(data), chance.randrange(1, len(data) + 1)])
    return {name: data[: max(0, len(data) - lost)]}


def append(chance: random.Random, subject: Subject) -> Changes:
    name = chance.choice(sorted(subject.files))
    data = subject.files[name]
    more = [b"\n", b"\0", b" ", data[-1:], data[:100], data, chance.randbytes(16)]
    return {name: data + chance.choice(more)}


def shift(chance: random.Random, subject: Subject) -> Changes:
    name = chance.choice(sorted(subject.files))
    data = subject.files[name]
    at, size = chance.randrange(len(data)), chance.choice([1, 16, 512])
    middle = chance.choice([b"", chance.randbytes(2 * size)])
    return {name: data[:at] + middle + data[at + size :]}


def overwrite(chance: random.Random, subject: Subject) -> Changes:
    name = chance.choice(sorted(subject.files))
    data = subject.files[name]
    size = min(len(data), chance.choice([1, 512, 4096]))
    at = chance.randrange(len(data) - size + 1)
    return {name: data[:at] + chance.choice([bytes(size), b"\xff" * size]) + data[at + size :]}


# What may happen to the parts of an object, to objects and to the whole folder.


def _cut(subject: Subject, chance: random.Random) -> tuple[str, list[bytes]]:
    objects = [item for item in subject.backup.manifest.objects if len(item.parts) > 1]
    item = chance.choice(objects)
    name = pipeline.payload_key(".", item.name).removeprefix("./")
    data, parts = subject.files[name], []
    for part in item.parts:
        parts.append(data[: part.size_bytes])
        data = data[part.size_bytes :]
    return name, parts


def swap_parts(chance: random.Random, subject: Subject) -> Changes:
    name, parts = _cut(subject, chance)
    one, other = chance.sample(range(len(parts)), 2)
    parts[one], parts[other] = parts[other], parts[one]
    return {name: b"".join(parts)}


def lose_or_repeat_part(chance: random.Random, subject: Subject) -> Changes:
    name, parts = _cut(subject, chance)
    at = chance.randrange(len(parts))
    parts[at] = chance.choice([b"", 2 * parts[at]])
    return {name: b"".join(parts)}


def swap_objects(chance: random.Random, subject: Subject) -> Changes:
    one, other = chance.sample(sorted(subject.files), 2)
    return {one: subject.files[other], other: subject.files[one]}


def lose_objects(chance: random.Random, subject: Subject) -> Changes:
    names = sorted(subject.files)
    return dict.fromkeys(chance.sample(names, chance.choice([1, 1, 1, 2, len(names)])))


def add_object(chance: random.Random, subject: Subject) -> Changes:
    name = chance.choice(sorted(subject.files))
    place = chance.choice(
        [f"{name}.1", f"copy of {name}", f"more/{name}", f"a{name}", "events.json"]
    )
    return {place: subject.files[name]}


def take_from_later_backup(chance: random.Random, subject: Subject) -> Changes:
    names = sorted(subject.later)
    chosen = chance.choice([[chance.choice(names)], [MANIFEST], _pair(chance, names), names])
    return {name: subject.later[name] for name in chosen}


def _pair(chance: random.Random, names: list[str]) -> list[str]:
    payload = chance.choice([name for name in names if name.endswith(".payload")])
    return [payload, payload.replace(".payload", ".header")]


# What somebody may do to the manifest.


def edit_manifest(chance: random.Random, subject: Subject) -> Changes:
    envelope = json.loads(subject.files[MANIFEST])
    _edit(chance, envelope["manifest"])
    return {MANIFEST: envelopes.canonical(envelope)}


def edit_signature(chance: random.Random, subject: Subject) -> Changes:
    envelope = json.loads(subject.files[MANIFEST])
    values: list[Any] = ["", None, 1, [], {}, "00" * 64, "../../etc/passwd", "\0", "é"]
    values += [envelope["signature"][name].upper() for name in ("value", "key_id")]
    values += [" " + envelope["signature"]["value"], subject.strangers.active_key_id]
    envelope["signature"][chance.choice(["value", "key_id", "algorithm"])] = chance.choice(values)
    return {MANIFEST: envelopes.canonical(envelope)}


def reformat_manifest(chance: random.Random, subject: Subject) -> Changes:
    envelope = json.loads(subject.files[MANIFEST])
    sealed = subject.files[MANIFEST]
    forms = [
        json.dumps(envelope).encode(),
        json.dumps(envelope, indent=1).encode(),
        b"\xef\xbb\xbf" + sealed,
        sealed.replace(b"{", b'{"manifest":{},', 1),
        envelopes.canonical(envelope | {"more": True}),
        envelopes.canonical([envelope]),
        envelopes.canonical(envelope["manifest"]),
        b"[" * 100_000,
        b"null",
    ]
    return {MANIFEST: chance.choice(forms)}


def sign_with_another_key(chance: random.Random, subject: Subject) -> Changes:
    body = json.loads(subject.files[MANIFEST])["manifest"]
    envelope = json.loads(
        manifest.seal(Manifest.model_validate_json(json.dumps(body)), subject.strangers)
    )
    if chance.random() < 0.5:
        envelope["signature"]["key_id"] = subject.backup.keyring.active_key_id
    return {MANIFEST: envelopes.canonical(envelope)}


def _edit(chance: random.Random, value: Any) -> None:
    """Change one leaf of a JSON value, or leave out or add a member of it."""
    while True:
        keys = sorted(value) if isinstance(value, dict) else list(range(len(value)))
        key = chance.choice(keys)
        if not isinstance(value[key], dict | list) or not value[key]:
            break
        value = value[key]
    if chance.random() < 0.2:
        del value[key]
    elif isinstance(value, dict) and chance.random() < 0.2:
        value[f"{key}_"] = value[key]
    else:
        value[key] = _other(value[key])


def _other(leaf: Any) -> Any:
    if isinstance(leaf, bool):
        return not leaf
    if isinstance(leaf, int):
        return leaf + 1
    return (leaf or "") + "0" if isinstance(leaf, str | None) else 0


Damage = Callable[[random.Random, Subject], Changes]
TIMES: dict[Damage, int] = {
    flip_bits: 150,
    truncate: 50,
    append: 30,
    shift: 30,
    overwrite: 30,
    swap_parts: 30,
    lose_or_repeat_part: 20,
    swap_objects: 20,
    lose_objects: 20,
    add_object: 20,
    take_from_later_backup: 20,
    edit_manifest: 40,
    edit_signature: 15,
    reformat_manifest: 15,
    sign_with_another_key: 5,
}
WRONG_KEYS = ("stranger", "no signing key", "no age key", "swapped signing key", "broken age key")


def test_there_are_a_thousand_damages():
    assert len(BackupKind) * (sum(TIMES.values()) + len(WRONG_KEYS)) == 1000


@pytest.mark.parametrize("damage", TIMES, ids=lambda damage: damage.__name__)
def test_every_damage_is_found(subject: Subject, damage: Damage):
    assert subject.verdict() is None
    chance = random.Random(f"{SEED} {subject.backup.manifest.kind} {damage.__name__}")  # noqa: S311
    for number in range(TIMES[damage]):
        changes = _real_changes(damage, chance, subject)
        subject.apply(changes)
        found = subject.verdict()
        subject.undo(changes)
        told = f"ONEVAULT_DAMAGE_SEED={SEED}: damage {number} to {', '.join(changes)}"
        assert found is not None, f"{told} was not found"
        assert len(found.split()) > 4, f"{told} is not explained: {found}"
    assert subject.verdict() is None


def _real_changes(damage: Damage, chance: random.Random, subject: Subject) -> Changes:
    # Zeros over zeros, for example, are no damage.
    while not subject.changed(changes := damage(chance, subject)):
        pass
    return changes


@pytest.mark.parametrize("wrong", WRONG_KEYS)
def test_a_wrong_key_opens_nothing(subject: Subject, wrong: str, tmp_path: Path):
    found = subject.verdict(_wrong_keyring(subject, wrong, tmp_path / "keys"))
    assert found is not None
    assert "key" in found.lower()


def _wrong_keyring(subject: Subject, wrong: str, place: Path) -> LocalKeyring:
    ours, theirs = subject.backup.keyring, subject.strangers
    if wrong == "stranger":
        return theirs
    shutil.copytree(ours.directory, place)
    age_file = place / f"{ours.active_key_id}.agekey"
    public_file = place / f"{ours.active_key_id}.ed25519.pub"
    if wrong == "no signing key":
        public_file.unlink()
    elif wrong == "no age key":
        age_file.unlink()
    elif wrong == "swapped signing key":
        public = theirs.directory / f"{theirs.active_key_id}.ed25519.pub"
        public_file.write_bytes(public.read_bytes())
    else:
        age_file.write_text(age_file.read_text().replace("AGE-SECRET-KEY-1", "AGE-SECRET-KEY-1Q"))
    return LocalKeyring(directory=place)


@pytest.mark.parametrize(
    "damage", [flip_bits, truncate, append, swap_parts], ids=lambda d: d.__name__
)
def test_a_restore_never_ends_well_on_damaged_bytes(subject: Subject, damage: Damage):
    """A restore reads without the re-read before it: it must stop all the same, at the damage or at the end."""
    backup = subject.backup
    opened = OpenBackup.open(backup.store, backup.keyring, backup.prefix)
    chance = random.Random(f"{SEED} restore {backup.manifest.kind} {damage.__name__}")  # noqa: S311
    for _ in range(10):
        changes = damage(chance, subject)
        while not next(iter(changes)).endswith(".payload"):
            changes = damage(chance, subject)
        subject.apply(changes)
        try:
            with pytest.raises(OneVaultError):
                _read_everything(opened)
        finally:
            subject.undo(changes)
    _read_everything(opened)


def _read_everything(backup: OpenBackup) -> None:
    for item in backup.manifest.objects:
        for _ in backup.content(item):
            pass
