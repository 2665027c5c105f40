"""The documents say what the program does: commands, settings, deployments, manifest, links."""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from pydantic import BaseModel

from blocks.pgbouncer import PgBouncerConsole
from deployments import cli, sentences
from tasks.alerts import rules
from tasks.backup.lifecycle import BackupStatus
from tasks.backup.models import Manifest, RecoveryPoint, SourceServer, StoredObject
from tasks.backup.options import BackupOptions
from tasks.environment import NAMES, Profile, load_profile
from tests.markdown import ROOT, anchors, blocks, documents, links

REFERENCE = ROOT / "docs" / "reference"
COMMANDS = sorted(cli.cli.commands)
# They steer a test, not the product.
_OF_TESTS = {"ONEVAULT_DAMAGE_SEED"}
_SECTION = re.compile(r"^## (?P<title>.+)\n(?P<text>(?:(?!## ).*\n?)*)", re.MULTILINE)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sections(path: Path) -> dict[str, str]:
    return {found["title"]: found["text"] for found in _SECTION.finditer(path.read_text() + "\n")}


def options(command: click.Command) -> list[click.Option]:
    return [item for item in command.params if isinstance(item, click.Option)]


def flags(option: click.Option) -> list[str]:
    return [*option.opts, *option.secondary_opts]


# The command line.


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_documented_with_its_options(name: str):
    text = sections(REFERENCE / "command-line.md")[f"onevault {name}"]
    for option in options(cli.cli.commands[name]):
        for flag in flags(option):
            assert re.search(rf"`{re.escape(flag)}\b", text), f"{flag} of onevault {name}"
        if isinstance(option.type, click.Choice):
            assert all(f"`{choice}`" in text for choice in option.type.choices), flags(option)


@pytest.mark.parametrize("name", COMMANDS)
def test_documented_options_and_defaults_are_those_of_the_command(name: str):
    text = sections(REFERENCE / "command-line.md")[f"onevault {name}"]
    known = {flag: option for option in options(cli.cli.commands[name]) for flag in flags(option)}
    for row in re.findall(r"^\| (`-.*) \|$", text, re.MULTILINE):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)]
        named = re.findall(r"`(--?[a-z-]+)", cells[0])
        assert set(named) <= known.keys(), row
        option = known[named[0]]
        if len(cells) == 3 and cells[1] and option.show_default:
            assert cells[1].strip("`") in {str(option.default), *named}, row


def test_the_options_of_the_program_itself_are_documented():
    text = sections(REFERENCE / "command-line.md")["onevault"]
    context = click.Context(cli.cli)
    for option in cli.cli.get_params(context):
        if isinstance(option, click.Option):
            assert all(f"`{flag}`" in text for flag in flags(option)), flags(option)


def test_no_command_is_documented_that_does_not_exist():
    titles = [title for title in sections(REFERENCE / "command-line.md") if " " in title]
    written = [title.split()[1] for title in titles if title.startswith("onevault ")]
    assert sorted(written) == COMMANDS


def test_exit_codes_are_documented_as_the_help_says_them():
    codes = {str(value) for name, value in vars(sentences).items() if name.startswith("EXIT_")} | {
        "0"
    }
    text = sections(REFERENCE / "command-line.md")["Exit codes"]
    documented = dict(re.findall(r"^\| (\d) \| (.+?) \|$", text, re.MULTILINE))
    helped = dict(re.findall(r"^ +(\d)  (.+)$", cli.cli.epilog or "", re.MULTILINE))
    assert documented.keys() == helped.keys() == codes
    for code in codes:
        assert documented[code].startswith(helped[code]), code


def test_the_commands_in_examples_exist_with_their_options():
    found = list(_examples())
    assert len(found) >= 15
    for path, words in found:
        if words[:1] == ["..."] or words[0].startswith("-"):
            continue
        command = cli.cli.commands[words[0]]
        known = {flag for option in options(command) for flag in flags(option)} | {"--help"}
        given = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
        assert given <= known, f"{relative(path)}: onevault {shlex.join(words)}"


def _examples() -> Iterator[tuple[Path, list[str]]]:
    """Find each onevault command in a shell block or in inline code."""
    for path in documents():
        scripts = [block.text.replace("\\\n", " ") for block in blocks(path) if block.kind == "sh"]
        scripts += re.findall(r"`((?:\./ops run )?onevault [a-z][^`]*)`", path.read_text())
        for line in "\n".join(scripts).splitlines():
            if match := re.search(r"(?:^|\s)onevault (?P<rest>[a-z-].*)", line):
                yield path, shlex.split(match["rest"].replace("[OPTIONS]", ""), comments=True)


def test_the_ops_commands_in_the_documents_exist():
    usage = subprocess.run(
        ["sh", ROOT / "ops", "--help"], capture_output=True, text=True, check=True
    ).stdout
    known = set(re.findall(r"^  ([a-z]+)\b", usage, re.MULTILINE))
    for path in documents():
        for word in re.findall(r"\./ops ([a-z]+)", path.read_text()):
            assert word in known, f"{relative(path)}: ./ops {word}"


# Settings.


def _variables() -> set[str]:
    places = [ROOT / "ops", *(ROOT / "tests").glob("conftest.py")]
    for room in ("flows", "tasks", "blocks", "deployments"):
        places += (ROOT / room).rglob("*.py")
    text = "\n".join(place.read_text() for place in places)
    return set(re.findall(r"\bONEVAULT_[A-Z_]*[A-Z]\b", text))


def test_every_variable_the_program_reads_is_documented_and_no_other():
    text = (REFERENCE / "settings.md").read_text()
    assert set(re.findall(r"^\| `(ONEVAULT_[A-Z_]+)`", text, re.MULTILINE)) == _variables()


def test_no_document_names_a_variable_that_nothing_reads():
    for path in documents():
        named = set(re.findall(r"\bONEVAULT_[A-Z_]*[A-Z]\b", path.read_text()))
        assert named <= _variables() | _OF_TESTS, relative(path)


def test_the_table_of_environments_is_that_of_the_profiles():
    rows = _table(sections(REFERENCE / "settings.md")["Environments"])
    assert [row[0] for row in rows] == [
        f"`{name}`" for name in Profile.model_fields if name != "name"
    ]
    for row in rows:
        field = row[0].strip("`")
        values = [_shown(getattr(load_profile(name), field)) for name in NAMES]
        assert row[1:] == values, field


def test_the_options_of_a_run_are_documented_with_their_defaults():
    rows = _table(sections(REFERENCE / "settings.md")["Options of a run"])
    documented = {row[0].strip("`"): row[1].strip("`") for row in rows}
    fields = BackupOptions.model_fields
    assert documented.keys() == fields.keys()
    for name, field in fields.items():
        assert documented[name] == _shown(field.default), name


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _table(text: str) -> list[list[str]]:
    """Read the first table of a section, without its heading."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines[2:]
    ]


def test_every_deployment_is_documented_with_its_window():
    rows = _table(sections(REFERENCE / "settings.md")["Deployments"])
    windows = {row[0].strip("`"): row[2] for row in rows}
    listed = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    expected = {
        f"{each['entrypoint'].rpartition('.')[2].replace('_', '-')}/{each['name']}": (
            each["parameters"].get("options", {}).get("window", "")
        )
        for each in listed
    }
    assert windows == expected


# What lies in the store and in the vault.


@pytest.mark.parametrize(
    ("section", "model"),
    [
        ("manifest", Manifest),
        ("server", SourceServer),
        ("point", RecoveryPoint),
        ("objects", StoredObject),
    ],
)
def test_the_fields_of_the_manifest_are_documented(section: str, model: type[BaseModel]):
    text = (REFERENCE / "manifest.md").read_text()
    table = text.partition(f"\n### {section}\n")[2].partition("\n#")[0]
    rows = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == model.model_fields.keys()


def test_every_state_of_a_backup_is_documented():
    rows = _table(sections(REFERENCE / "catalog.md")["States"])
    assert set(re.findall(r"`(\w+)`", " ".join(row[0] for row in rows))) == set(BackupStatus)


def test_the_runbook_knows_every_sentence_of_the_preconditions():
    text = (ROOT / "docs" / "how-to" / "when-a-backup-failed.md").read_text()
    known = [_words(row) for row in re.findall(r"^\| `(.+?)` \|", text, re.MULTILINE)]
    source = (ROOT / "tasks" / "backup" / "preflight.py").read_text()
    sentences = re.findall(r"^ +yield f?(['\"])(.+)\1$", source, re.MULTILINE)
    assert len(sentences) >= 8
    for _, sentence in sentences:
        assert _words(re.sub(r"\{[^{}]*\}", "...", sentence.replace('\\"', '"'))) in known, sentence


def _words(sentence: str) -> str:
    return re.sub(r"(\.\.\.|\b15\b)", "*", sentence).replace("(* ", "(")


# Monitoring.


def test_the_overrides_in_the_documents_can_be_used(tmp_path: Path):
    examples = [
        block.text for path in documents() for block in blocks(path) if block.kind == "yaml"
    ]
    assert len(examples) >= 3
    for number, example in enumerate(examples):
        own = tmp_path / f"{number}.yaml"
        own.write_text(example)
        assert rules.load(overrides=own).rules


def test_the_role_for_metrics_is_that_of_the_script():
    script = (ROOT / "deployments" / "roles" / "monitoring.sql").read_text()
    page = ROOT / "docs" / "how-to" / "watch-servers.md"
    lines = [
        line for block in blocks(page) if block.kind == "sql" for line in block.text.splitlines()
    ]
    assert len(lines) == 3
    for line in lines:
        assert line in script, line


def test_the_example_of_a_console_can_be_used(monkeypatch: pytest.MonkeyPatch):
    (example,) = [
        block.text
        for block in blocks(ROOT / "docs" / "how-to" / "watch-servers.md")
        if block.kind == "python"
    ]
    saved: list[tuple[str, str, int]] = []

    def save(console: PgBouncerConsole, name: str) -> None:
        saved.append((name, console.host, console.port))

    monkeypatch.setattr(PgBouncerConsole, "save", save)
    exec(compile(example, "watch-servers.md", "exec"), {})  # noqa: S102 - our own document
    assert saved == [("shop", "pooler.example.com", 6432)]


# Links, and the release.


@pytest.mark.parametrize("path", documents(), ids=relative)
def test_every_relative_link_leads_somewhere(path: Path):
    for target in links(path):
        if target.startswith(("http://", "https://")):
            continue
        place, _, anchor = target.partition("#")
        led = (path.parent / place).resolve() if place else path
        assert led.exists(), target
        if anchor:
            assert anchor in anchors(led), target


def test_every_document_can_be_reached_from_the_readme():
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        reached.add(path)
        targets = (target.partition("#")[0] for target in links(path))
        found = {(path.parent / each).resolve() for each in targets if each.endswith(".md")}
        waiting += found - reached - set(waiting)
    docs = {path for path in documents() if "docs" in path.parts} | {ROOT / "CONTRIBUTING.md"}
    assert docs <= reached


def test_every_markdown_block_is_closed():
    for path in documents():
        fences = re.findall(r"^ *```", path.read_text(), re.MULTILINE)
        assert len(fences) % 2 == 0, relative(path)


def test_the_changelog_has_its_place_for_what_is_new():
    text = (ROOT / "CHANGELOG.md").read_text()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert "\n## Unreleased\n" in text
    assert f"## {version}" not in text or text.index("## Unreleased") < text.index(f"## {version}")
